//! The one call that the client's wrapper does not offer.
#![allow(unsafe_code)]
// `Producer::flush` of the wrapper asks librdkafka to flush with a timeout of 0 and then waits for an event in steps of 100 ms.
// With delivery reports for errors only, no event comes in the good case, so every commit would take 100 ms at least instead
// of 3 ms. `rd_kafka_flush` with a timeout of its own waits on the queue itself and returns at once when it is empty. The
// commit after it can be the wrapper's: with an empty queue it does not wait.

use std::time::Duration;

use rdkafka::{bindings, client::Client, types::RDKafkaRespErr};

use super::config::Watch;

/// Sends what is queued without lingering, and waits at most `wait`; true if everything has been answered.
pub(super) fn flush(client: &Client<Watch>, wait: Duration) -> bool {
    let millis = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the pointer is valid as long as `client` is borrowed, librdkafka's functions are thread safe, and this one keeps
    // nothing after it returns.
    let answer = unsafe { bindings::rd_kafka_flush(client.native_ptr(), millis) };
    answer == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR
}
