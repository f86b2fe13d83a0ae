//! The calls that the client's wrapper does not offer.
#![allow(unsafe_code)]
// Three reasons, one module:
//
// - `Producer::flush` of the wrapper asks librdkafka to flush with a timeout of 0 and then waits for an event in steps of 100 ms.
//   With delivery reports for errors only, no event comes in the good case, so every commit would take 100 ms at least instead
//   of 3 ms. `rd_kafka_flush` with a timeout of its own waits on the queue itself and returns at once when it is empty. The
//   commit after it can be the wrapper's: with an empty queue it does not wait.
// - The wrapper does not describe topics: their ids, which tell a topic from another of the same name, and what we may do with them.
// - The wrapper's admin client serves no token callback, so that its token has to be set.

use std::{
    ffi::{CStr, CString, c_char},
    ptr,
    time::Duration,
};

use rdkafka::{
    bindings as c,
    client::Client,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    types::RDKafkaRespErr,
};

use super::config::{Token, Watch};

/// Sends what is queued without lingering, and waits at most `wait`; true if everything has been answered.
pub(super) fn flush(client: &Client<Watch>, wait: Duration) -> bool {
    // SAFETY: the pointer is valid as long as `client` is borrowed, librdkafka's functions are thread safe, and this one keeps
    // nothing after it returns.
    let answer = unsafe { c::rd_kafka_flush(client.native_ptr(), millis(wait)) };
    answer == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
}

/// Gives a client its token without waiting until it asks for one.
pub(super) fn set_token(client: &Client<Watch>, token: &Token) -> Result<(), String> {
    let text = |text: &str| CString::new(text).map_err(|_| "the token holds a zero byte".to_owned());
    let (value, principal) = (text(&token.value)?, text(&token.principal)?);
    let mut reason = [0 as c_char; 512];
    // SAFETY: all pointers are valid during the call, which copies what it keeps; there are no extensions; the buffer has the
    // length that is given, and is terminated by the call or stays zero.
    let answer = unsafe {
        let client = client.native_ptr();
        let buffer = reason.as_mut_ptr();
        let (value, principal) = (value.as_ptr(), principal.as_ptr());
        let size = reason.len();
        c::rd_kafka_oauthbearer_set_token(client, value, token.expires_ms, principal, ptr::null_mut(), 0, buffer, size)
    };
    if answer == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Ok(());
    }
    // SAFETY: the buffer is zero-terminated, see above.
    Err(unsafe { owned(reason.as_ptr()) })
}

/// What the principal of a client may do with a topic or the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
    Create,
    Describe,
    DescribeConfigs,
    /// One that we never need.
    Other,
}

/// A topic as the brokers describe it.
#[derive(Clone, Debug)]
pub(super) struct Described {
    pub(super) name: String,
    /// Tells a topic from one of the same name that was deleted; empty if the brokers are too old to have ids.
    pub(super) id: String,
    /// Why there is nothing else.
    pub(super) error: Option<RDKafkaErrorCode>,
    /// Replicas of the partition that has the fewest.
    pub(super) replicas: usize,
    /// Replicas in sync of the partition that has the fewest.
    pub(super) in_sync: usize,
    /// Empty if the brokers do not say.
    pub(super) operations: Vec<Operation>,
}

/// The cluster as the brokers describe it.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    /// Whether a controller is known.
    pub(super) has_controller: bool,
    /// Empty if the brokers do not say.
    pub(super) operations: Vec<Operation>,
}

/// Describes topics; one that does not exist has an error.
pub(super) fn describe_topics(client: &Client<Watch>, names: &[&str], wait: Duration) -> KafkaResult<Vec<Described>> {
    let owned: Vec<CString> = names.iter().filter_map(|name| CString::new(*name).ok()).collect();
    let mut pointers: Vec<*const c_char> = owned.iter().map(|name| name.as_ptr()).collect();
    let admin = Admin::new(client, c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, wait);
    // SAFETY: the names live during the call, which copies them; the collection is used during the next call only; results
    // are read while the event that owns them is alive.
    unsafe {
        let topics = c::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        c::rd_kafka_DescribeTopics(client.native_ptr(), topics, admin.options, admin.queue);
        c::rd_kafka_TopicCollection_destroy(topics);
        let event = admin.answer(wait)?;
        let result = c::rd_kafka_event_DescribeTopics_result(event.0);
        if result.is_null() {
            return Err(KafkaError::AdminOp(RDKafkaErrorCode::Fail));
        }
        let mut count = 0;
        let topics = c::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        Ok(items(topics, count).iter().map(|topic| described(*topic)).collect())
    }
}

/// # Safety
/// `topic` belongs to an event that is alive.
unsafe fn described(topic: *const c::rd_kafka_TopicDescription_t) -> Described {
    // SAFETY: as of this function; librdkafka returns pointers into the same event.
    unsafe {
        let code = RDKafkaErrorCode::from(c::rd_kafka_error_code(c::rd_kafka_TopicDescription_error(topic)));
        let id = c::rd_kafka_TopicDescription_topic_id(topic);
        let id = if id.is_null() || is_zero(id) { String::new() } else { owned(c::rd_kafka_Uuid_base64str(id)) };
        let mut count = 0;
        let partitions = c::rd_kafka_TopicDescription_partitions(topic, &raw mut count);
        let partitions = items(partitions, count);
        let fewest =
            |of: unsafe extern "C" fn(*const c::rd_kafka_TopicPartitionInfo_t, *mut usize) -> *mut *const c::rd_kafka_Node_t| {
                let number = |partition: &*const c::rd_kafka_TopicPartitionInfo_t| {
                    let mut count = 0;
                    of(*partition, &raw mut count);
                    count
                };
                partitions.iter().map(number).min().unwrap_or_default()
            };
        let (replicas, in_sync) = (fewest(c::rd_kafka_TopicPartitionInfo_replicas), fewest(c::rd_kafka_TopicPartitionInfo_isr));
        let operations = c::rd_kafka_TopicDescription_authorized_operations(topic, &raw mut count);
        Described {
            name: owned(c::rd_kafka_TopicDescription_name(topic)),
            id,
            error: (code != RDKafkaErrorCode::NoError).then_some(code),
            replicas,
            in_sync,
            operations: items(operations, count).iter().map(|operation| ours(*operation)).collect(),
        }
    }
}

/// Describes the cluster.
pub(super) fn describe_cluster(client: &Client<Watch>, wait: Duration) -> KafkaResult<Cluster> {
    let admin = Admin::new(client, c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECLUSTER, wait);
    // SAFETY: options and queue live during the call; results are read while the event that owns them is alive.
    unsafe {
        c::rd_kafka_DescribeCluster(client.native_ptr(), admin.options, admin.queue);
        let event = admin.answer(wait)?;
        let result = c::rd_kafka_event_DescribeCluster_result(event.0);
        if result.is_null() {
            return Err(KafkaError::AdminOp(RDKafkaErrorCode::Fail));
        }
        let mut count = 0;
        let operations = c::rd_kafka_DescribeCluster_result_authorized_operations(result, &raw mut count);
        Ok(Cluster {
            has_controller: !c::rd_kafka_DescribeCluster_result_controller(result).is_null(),
            operations: items(operations, count).iter().map(|operation| ours(*operation)).collect(),
        })
    }
}

fn ours(operation: c::rd_kafka_AclOperation_t) -> Operation {
    use c::rd_kafka_AclOperation_t as Acl;
    match operation {
        Acl::RD_KAFKA_ACL_OPERATION_READ => Operation::Read,
        Acl::RD_KAFKA_ACL_OPERATION_WRITE => Operation::Write,
        Acl::RD_KAFKA_ACL_OPERATION_CREATE => Operation::Create,
        Acl::RD_KAFKA_ACL_OPERATION_DESCRIBE => Operation::Describe,
        Acl::RD_KAFKA_ACL_OPERATION_DESCRIBE_CONFIGS => Operation::DescribeConfigs,
        _ => Operation::Other,
    }
}

/// What one admin request needs, and where its answer comes.
struct Admin {
    options: *mut c::rd_kafka_AdminOptions_t,
    queue: *mut c::rd_kafka_queue_t,
}

impl Admin {
    fn new(client: &Client<Watch>, request: c::rd_kafka_admin_op_t, wait: Duration) -> Self {
        let mut reason = [0 as c_char; 128];
        // SAFETY: the client is borrowed; both results belong to us until they are destroyed, once, in `drop`. The setters fail
        // only for values out of range, with an error that is ours to destroy.
        unsafe {
            let options = c::rd_kafka_AdminOptions_new(client.native_ptr(), request);
            c::rd_kafka_AdminOptions_set_request_timeout(options, millis(wait), reason.as_mut_ptr(), reason.len());
            let error = c::rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
            if !error.is_null() {
                c::rd_kafka_error_destroy(error);
            }
            Self { options, queue: c::rd_kafka_queue_new(client.native_ptr()) }
        }
    }

    /// Waits for the answer; librdkafka's own timeout comes first.
    fn answer(&self, wait: Duration) -> KafkaResult<Event> {
        // SAFETY: the queue is alive; the event belongs to us and is destroyed by its guard.
        unsafe {
            let event = c::rd_kafka_queue_poll(self.queue, millis(wait + Duration::from_secs(1)));
            if event.is_null() {
                return Err(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut));
            }
            let event = Event(event);
            match c::rd_kafka_event_error(event.0) {
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(event),
                error => Err(KafkaError::AdminOp(error.into())),
            }
        }
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        // SAFETY: both were made in `new` and are destroyed only here. An answer that comes later finds its queue disabled.
        unsafe {
            c::rd_kafka_AdminOptions_destroy(self.options);
            c::rd_kafka_queue_destroy(self.queue);
        }
    }
}

struct Event(*mut c::rd_kafka_event_t);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is ours and destroyed only here.
        unsafe { c::rd_kafka_event_destroy(self.0) }
    }
}

fn millis(wait: Duration) -> i32 {
    i32::try_from(wait.as_millis()).unwrap_or(i32::MAX)
}

/// # Safety
/// `first` is null or points to `count` items that live as long as the answer is used.
unsafe fn items<'a, T>(first: *const T, count: usize) -> &'a [T] {
    if first.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: as of this function.
    unsafe { std::slice::from_raw_parts(first, count) }
}

/// # Safety
/// `text` is null or zero-terminated.
unsafe fn owned(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as of this function.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// # Safety
/// `id` belongs to an event that is alive.
unsafe fn is_zero(id: *const c::rd_kafka_Uuid_t) -> bool {
    // SAFETY: as of this function.
    unsafe { c::rd_kafka_Uuid_most_significant_bits(id) == 0 && c::rd_kafka_Uuid_least_significant_bits(id) == 0 }
}
