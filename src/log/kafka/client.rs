//! Calls that wait for a broker: each on a thread of its own, with a deadline, and tried again while the trouble may pass.

use std::{
    ops::Deref,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use headwater_connector::{Code, Error, Result, codes as shared};
use rdkafka::{
    client::Client,
    config::ClientConfig,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};
use tokio::sync::oneshot;

use super::{
    codes,
    config::{self, Isolation, Watch},
    error,
    ffi::{self, Cluster, Described},
};
use crate::log::kafka::Options;

/// How long a question may take before the cluster counts as not answering.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// One try of a call: between tries we look at what the client's threads report, so that a wrong password is not waited for.
const SLICE: Duration = Duration::from_secs(1);

/// With no broker reachable for this long, waiting on is the supervisor's business.
pub(super) const ALL_DOWN_LIMIT: Duration = Duration::from_secs(3);

/// Runs a call that blocks on a thread of its own.
///
/// Not on the runtime's blocking pool: a runtime waits for that when it shuts down, and a broker that hangs must not keep the
/// daemon from leaving. Dropping the future leaves the call to itself.
pub(super) async fn blocking<T: Send + 'static>(call: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, receiver) = oneshot::channel();
    let spawned = thread::Builder::new().name("kafka call".into()).spawn(move || {
        // Nobody may be waiting any more.
        let _ = sender.send(call());
    });
    spawned.map_err(|cause| Error::new(&codes::NO_ANSWER, "a thread cannot be started").caused_by(cause))?;
    receiver.await.unwrap_or_else(|_| Err(Error::new(&shared::INVARIANT, "a call of the Kafka client panicked")))
}

/// A client that is dropped on a thread of its own: the drop waits for the client's threads, which may hang on a broker.
pub(super) struct OffThread<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> OffThread<T> {
    pub(super) fn new(client: T) -> Self {
        Self(Some(client))
    }

    /// Takes the client out, for a thread that may wait for its end.
    pub(super) fn into_inner(mut self) -> T {
        self.0.take().expect("taken only here and in drop")
    }
}

impl<T: Send + 'static> Deref for OffThread<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("taken only when self goes")
    }
}

impl<T: Send + 'static> Drop for OffThread<T> {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            // If no thread can be started, the closure and with it the client is dropped here.
            let _ = thread::Builder::new().name("kafka drop".into()).spawn(move || drop(client));
        }
    }
}

pub(super) type Consuming = BaseConsumer<Watch>;

/// A client that asks about topics and offsets; its own events must be served by whoever uses it.
pub(super) fn consumer(options: &Options, config: &ClientConfig) -> Result<OffThread<Consuming>> {
    let made: KafkaResult<Consuming> = config.create_with_context(Watch::of(options));
    let consumer = made.map(OffThread::new).map_err(|cause| error::not_made(&cause))?;
    Watch::admit(consumer.client())?;
    Ok(consumer)
}

/// A question about topics and offsets.
pub(super) struct Probe {
    client: OffThread<Consuming>,
    /// Is told the end of what is committed, or more exactly of what comes before the first undecided transaction.
    committed: OffThread<Consuming>,
}

/// What the cluster says about a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TopicFacts {
    pub(super) partitions: u32,
    /// Whether every partition has a leader.
    pub(super) writable: bool,
}

/// The brokers of a cluster.
pub(super) type Brokers = Vec<(i32, String)>;

impl Probe {
    pub(super) fn new(options: &Options) -> Result<Arc<Self>> {
        let client = consumer(options, &config::consumer(options, Isolation::Uncommitted)?)?;
        let committed = consumer(options, &config::consumer(options, Isolation::Committed)?)?;
        Ok(Arc::new(Self { client, committed }))
    }

    /// A topic, or none if there is no such topic.
    pub(super) fn topic(&self, name: &str) -> Result<Option<TopicFacts>> {
        patiently(&self.client, PATIENCE, "the topics cannot be listed", |wait| {
            let metadata = self.client.fetch_metadata(Some(name), wait)?;
            let Some(topic) = metadata.topics().iter().find(|topic| topic.name() == name) else { return Ok(None) };
            match topic.error().map(RDKafkaErrorCode::from) {
                None => {}
                Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => return Ok(None),
                // A topic whose leaders are being elected exists.
                Some(RDKafkaErrorCode::LeaderNotAvailable) => {}
                Some(code) => return Err(KafkaError::MetadataFetch(code)),
            }
            let partitions = topic.partitions();
            Ok(Some(TopicFacts {
                partitions: partitions.len() as u32,
                writable: !partitions.is_empty() && partitions.iter().all(|partition| partition.leader() >= 0),
            }))
        })
        .map_err(|failed| failed.at("topic", name))
    }

    /// Topics with their ids and what we may do with them, in the order asked for.
    pub(super) fn describe(&self, names: &[&str], patience: Duration) -> Result<Vec<Described>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let found = patiently(&self.client, patience, "the topics cannot be described", |wait| {
            ffi::describe_topics(self.client.client(), names, wait)
        })?;
        // The answer need not keep the order.
        let of = |name: &&str| found.iter().find(|topic| topic.name == **name).cloned();
        names.iter().map(of).collect::<Option<Vec<_>>>().ok_or_else(|| Error::new(&codes::NO_ANSWER, "the answer lacks a topic"))
    }

    /// The cluster, and what we may do with it.
    pub(super) fn cluster(&self) -> Result<Cluster> {
        patiently(&self.client, PATIENCE, "the cluster cannot be described", |wait| {
            ffi::describe_cluster(self.client.client(), wait)
        })
    }

    /// The brokers. `name` is any topic; it need not exist and is not created.
    pub(super) fn brokers(&self, name: &str) -> Result<Brokers> {
        patiently(&self.client, PATIENCE, "the cluster cannot be reached", |wait| {
            let metadata = self.client.fetch_metadata(Some(name), wait)?;
            Ok(metadata.brokers().iter().map(|broker| (broker.id(), format!("{}:{}", broker.host(), broker.port()))).collect())
        })
    }

    /// The cluster's id, if it has one.
    pub(super) fn cluster_id(&self) -> Option<String> {
        self.client.client().fetch_cluster_id(SLICE)
    }

    /// The end of a partition with everything that has been written, committed or not.
    pub(super) fn end(&self, topic: &str, partition: u32) -> Result<u64> {
        Ok(watermarks(&self.client, topic, partition)?.1)
    }

    /// First offset and end of what is decided in a partition.
    pub(super) fn stable(&self, topic: &str, partition: u32) -> Result<(u64, u64)> {
        watermarks(&self.committed, topic, partition)
    }
}

/// First offset and end of a partition; the end is that of the consumer's isolation level.
fn watermarks(client: &Consuming, topic: &str, partition: u32) -> Result<(u64, u64)> {
    let mut again = false;
    let asked = patiently(client, PATIENCE, "the offsets of a partition cannot be read", |wait| {
        // The client goes on to ask the broker that led the partition when it first asked, for minutes after that one died.
        if std::mem::replace(&mut again, true) {
            client.fetch_metadata(Some(topic), wait)?;
        }
        client.fetch_watermarks(topic, partition as i32, wait)
    });
    let (low, high) = asked.map_err(|failed| failed.at("topic", topic).at("partition", partition))?;
    Ok((low.max(0) as u64, high.max(0) as u64))
}

/// Repeats a call until it succeeds, fails for good, or `patience` ends.
fn patiently<T>(
    client: &Consuming,
    patience: Duration,
    what: &str,
    mut call: impl FnMut(Duration) -> KafkaResult<T>,
) -> Result<T> {
    let began = Instant::now();
    client.context().forget();
    // A token that was to be renewed since the last question is.
    let _ = client.poll(Duration::ZERO);
    loop {
        let left = patience.saturating_sub(began.elapsed());
        let cause = match call(SLICE.min(left.max(Duration::from_millis(1)))) {
            Ok(answer) => return Ok(answer),
            Err(cause) => cause,
        };
        let Some(code) = error::code_of(&cause) else { return Err(error::from_client(&cause, what, &codes::NO_ANSWER)) };
        if !error::passes(code) {
            return Err(error::from_code(code, what, &codes::NO_ANSWER));
        }
        // Serves the client's events, which is how its threads' errors get to the watch, and paces the loop.
        let _ = client.poll(Duration::from_millis(20));
        stop_early(client.client(), began, what)?;
        if began.elapsed() >= patience {
            return Err(error::gave_up(client.context(), what, &cause, &codes::NO_ANSWER));
        }
    }
}

/// Fails if waiting on makes no sense: the login is refused, or no broker can be reached.
pub(super) fn stop_early(client: &Client<Watch>, began: Instant, what: &str) -> Result<()> {
    let Some((code, _)) = client.context().last() else { return Ok(()) };
    let down = client.context().all_down() && began.elapsed() >= ALL_DOWN_LIMIT;
    if down || error::is_refusal(code) {
        let otherwise: &'static Code = &codes::NO_ANSWER;
        return Err(error::gave_up(client.context(), what, &KafkaError::Global(code), otherwise));
    }
    Ok(())
}
