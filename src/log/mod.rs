//! The log: topics, one transaction that joins events and checkpoint, and readers that see only what is committed.
//!
//! Exactly once, in the order of the calls:
//!
//! 1. [`Log::peek_records`] of the checkpoint topic *without* fencing anybody: a foreign identity stops here.
//! 2. [`Log::open_writer`] fences every older writer of the connector and returns only when their last transaction is
//!    committed or aborted.
//! 3. [`Log::last_records`] of it, now the truth: nobody else can write it any more.
//! 4. [`LogWriter::commit`] per batch: events and exactly one checkpoint, all or nothing.
//! 5. Any doubt about a commit: drop the writer and begin at 1. The checkpoint tells what happened.
//!
//! Two real logs implement this ([`embedded`], [`kafka`]); the simulation has a third that forgets, stalls and lies about answers.

pub mod checkpoint;
pub mod codes;
pub mod embedded;
pub mod kafka;
mod open;
pub mod partition;
pub mod topic;
pub mod transaction;

use std::sync::Arc;

use async_trait::async_trait;
use headwater_connector::{Finding, Result};

pub use open::{LogPlan, Mode, open};
pub use topic::{Cleanup, TopicSpec, TopicState};
pub use transaction::{Header, Record, Span, Transaction};

/// Where topics live.
#[async_trait]
pub trait Log: Send + Sync {
    /// `embedded` or `kafka`, and where, for messages.
    fn describe(&self) -> String;

    /// Partitions of a topic that is created without an explicit count.
    fn default_partitions(&self) -> u32;

    /// The topics as they are; none for one that does not exist. Changes nothing.
    async fn topics(&self, names: &[String]) -> Result<Vec<Option<TopicState>>>;

    /// Creates what is missing, waits until every partition can be written, verifies what exists, and returns all in the order asked for.
    async fn ensure_topics(&self, specs: &[TopicSpec]) -> Result<Vec<TopicState>>;

    /// The last committed record of each key in partition 0, read to the true end: records of a transaction that was still
    /// open when the call began are waited for. Empty if the topic does not exist. A tombstone removes its key.
    async fn last_records(&self, topic: &str) -> Result<Vec<StoredRecord>>;

    /// As [`last_records`](Self::last_records), but only what is committed by now: nothing is waited for. For the look at the
    /// checkpoint *before* the writer is opened: what a killed process left open is ended by `open_writer`, and waiting for it
    /// here would take until the transaction times out.
    async fn peek_records(&self, topic: &str) -> Result<Vec<StoredRecord>> {
        self.last_records(topic).await
    }

    /// Takes the writer's place of `connector`: fences every older writer. Topics that the writer will use exist already.
    async fn open_writer(&self, connector: &str) -> Result<Box<dyn LogWriter>>;

    /// Opens a topic's partition for reading committed records from `from` on.
    async fn reader(&self, topic: &str, partition: u32, from: From) -> Result<Box<dyn LogReader>>;

    /// Preflight of the log itself.
    async fn check(&self) -> Result<Vec<Finding>>;

    /// Preflight of the topics of a connector, as far as they exist.
    async fn check_topics(&self, _: &[TopicSpec]) -> Result<Vec<Finding>> {
        Ok(Vec::new())
    }
}

/// The one writer of a connector.
#[async_trait]
pub trait LogWriter: Send {
    /// Publishes all records in one transaction: `Ok` means durable and visible, and gives the memory back for the next one.
    ///
    /// After any error the writer is useless; whether the transaction happened is known only from the checkpoint.
    /// An error of kind Fenced means that the log refused this writer, which a timeout can also cause.
    async fn commit(&mut self, transaction: Transaction) -> Result<Transaction>;

    /// Leaves in order, so that a successor need not wait.
    async fn close(self: Box<Self>);
}

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The first record that is still there.
    Earliest,
    /// Behind the last committed record.
    Latest,
    /// This offset, or the next one that exists.
    Offset(u64),
}

/// A committed record with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// Offset in its partition.
    pub offset: u64,
    /// Milliseconds since 1970 UTC.
    pub timestamp_ms: i64,
    /// The key.
    pub key: Vec<u8>,
    /// None is a tombstone.
    pub value: Option<Vec<u8>>,
    /// Names and values in the order they were written.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// Reads one partition in offset order.
#[async_trait]
pub trait LogReader: Send {
    /// Up to `max` further records, waiting at most `wait` for the first; empty if none came.
    async fn read(&mut self, max: usize, wait: std::time::Duration) -> Result<Vec<StoredRecord>>;

    /// Whether everything that was committed before this call has been returned.
    async fn at_end(&mut self) -> Result<bool>;
}

/// A log that components share.
pub type SharedLog = Arc<dyn Log>;
