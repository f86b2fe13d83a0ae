//! The log on Apache Kafka.
//!
//! How the promises of [`Log`] are kept here:
//!
//! - A connector's writer is one transactional producer with a fixed transactional id; `init_transactions` fences the older
//!   ones and finishes or aborts what they left. After any doubt the producer is thrown away (K1, K2).
//! - Every record names its partition; the client chooses nothing.
//! - Reading "to the true end" compares the consumer's position with the end of everything written, since the last records of
//!   a partition are markers of transactions, which no consumer returns.
//! - Every call that waits for a broker has a thread of its own and a deadline.
//!
//! K numbers are the hazards of Kafka's transactions in `docs/architecture.md`: an outcome that is not known (K1), a commit that was
//! slow or disturbed (K2), records too large for their topic (K7), topics that vanish or appear by themselves (K8).

mod admin;
mod check;
mod check_topics;
mod client;
pub mod codes;
mod config;
mod error;
mod ffi;
mod options;
mod reader;
#[cfg(test)]
mod tests;
mod token;
mod versions;
mod writer;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use headwater_connector::{Finding, Result};

pub use options::{Compression, Mechanism, Options, Protocol, Sasl, Security};

use self::client::Probe;
use super::{Cleanup, From, Log, LogReader, LogWriter, StoredRecord, TopicSpec, TopicState};

/// What of the client's own log is worth showing: it reports every broker that comes and goes as an error.
pub const QUIET: &str = "librdkafka=warn";

/// Topics on a Kafka cluster.
pub struct KafkaLog {
    inner: Arc<Inner>,
}

/// What readers and writers share with the log.
struct Inner {
    options: Options,
    prefix: String,
    /// `max.message.bytes` by topic, as last read.
    limits: Mutex<BTreeMap<String, u64>>,
    /// Topics by name with the ids they had when they were last ensured.
    ids: Mutex<BTreeMap<String, String>>,
    /// Made at the first question.
    probe: Mutex<Option<Arc<Probe>>>,
}

impl KafkaLog {
    /// Does not connect. `prefix` is `log.prefix`; the options' first fault is the error.
    pub fn new(options: Options, prefix: &str) -> Result<Self> {
        if let Some(fault) = options.faults().into_iter().next() {
            return Err(fault);
        }
        let (limits, ids, probe) = (Mutex::default(), Mutex::default(), Mutex::default());
        Ok(Self { inner: Arc::new(Inner { options, prefix: prefix.to_owned(), limits, ids, probe }) })
    }
}

impl Inner {
    fn probe(&self) -> Result<Arc<Probe>> {
        let mut probe = self.probe.lock().expect("no panic while held");
        if let Some(probe) = &*probe {
            return Ok(Arc::clone(probe));
        }
        Ok(Arc::clone(probe.insert(Probe::new(&self.options)?)))
    }

    fn remember(&self, states: &[TopicState]) {
        let mut ids = self.ids.lock().expect("no panic while held");
        ids.extend(states.iter().map(|state| (state.name.clone(), state.id.clone())));
    }

    fn is_checkpoint(&self, topic: &str) -> bool {
        topic.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with('.') && rest.ends_with(".checkpoint"))
    }

    /// The settings that a topic is created with.
    fn wanted(&self, spec: &TopicSpec) -> Vec<(&'static str, &'static str)> {
        let mut wanted = vec![match spec.cleanup {
            Cleanup::Compact => ("cleanup.policy", "compact"),
            Cleanup::Delete => ("cleanup.policy", "delete"),
        }];
        if self.is_checkpoint(&spec.name) {
            // A checkpoint is read from the beginning at every start: it must stay short.
            wanted.push(("segment.ms", "3600000"));
            wanted.push(("min.cleanable.dirty.ratio", "0.1"));
            wanted.push(("delete.retention.ms", "604800000"));
        }
        wanted
    }

    /// The command that changes a setting of a topic.
    fn alter_command(&self, topic: &str, setting: &str) -> String {
        let server = self.server();
        format!(
            "kafka-configs.sh --bootstrap-server {server} --alter --entity-type topics --entity-name {topic} --add-config {setting}"
        )
    }

    /// A broker for commands in hints.
    fn server(&self) -> &str {
        self.options.bootstrap_servers.first().map_or("HOST:PORT", String::as_str)
    }
}

#[async_trait]
impl Log for KafkaLog {
    fn describe(&self) -> String {
        format!("kafka at {}", self.inner.options.bootstrap_servers.join(","))
    }

    fn default_partitions(&self) -> u32 {
        admin::DEFAULT_PARTITIONS
    }

    async fn topics(&self, names: &[String]) -> Result<Vec<Option<TopicState>>> {
        admin::topics(&self.inner, names).await
    }

    async fn ensure_topics(&self, specs: &[TopicSpec]) -> Result<Vec<TopicState>> {
        admin::ensure(&self.inner, specs).await
    }

    async fn last_records(&self, topic: &str) -> Result<Vec<StoredRecord>> {
        reader::last_records(&self.inner, topic, reader::Until::TrueEnd).await
    }

    async fn peek_records(&self, topic: &str) -> Result<Vec<StoredRecord>> {
        reader::last_records(&self.inner, topic, reader::Until::Committed).await
    }

    async fn open_writer(&self, connector: &str) -> Result<Box<dyn LogWriter>> {
        writer::open(&self.inner, connector).await
    }

    async fn reader(&self, topic: &str, partition: u32, from: From) -> Result<Box<dyn LogReader>> {
        reader::open(&self.inner, topic, partition, from).await
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        check::run(&self.inner).await
    }

    async fn check_topics(&self, specs: &[TopicSpec]) -> Result<Vec<Finding>> {
        check_topics::run(&self.inner, specs).await
    }
}
