//! A running source.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{Batch, Identity, Position, Result};

/// When [`Source::next_batch`] stops adding to a batch.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Start no further transaction once the batch holds this many bytes; cut a transaction that alone has as many.
    pub max_bytes: usize,
    /// The same, counted in changes.
    pub max_changes: usize,
    /// How long to go on gathering after the first complete transaction. Zero takes what is there.
    pub linger: Duration,
    /// Return at the latest after this long, even with an empty batch.
    pub max_wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_bytes: 4 << 20, max_changes: 20_000, linger: Duration::ZERO, max_wait: Duration::from_secs(1) }
    }
}

/// A source that is open at a position and reads onward.
///
/// The runtime pulls batches, publishes each together with its position in one log transaction, and only then calls
/// [`ack`](Self::ack). After any error it drops the source and opens a new one at the last checkpoint, so no method needs to be
/// cancel-safe and none needs to repair its state after a failure.
#[async_trait]
pub trait Source: Send {
    /// Fills `batch`, which is empty, with what follows in the log.
    ///
    /// Waits until there is something or `limits.max_wait` is over. Sets a position whenever the batch has changes, and also when
    /// there are none but the log went on: idle time and irrelevant traffic must advance too, at a pace that the source chooses
    /// (a checkpoint is written for each).
    async fn next_batch(&mut self, batch: &mut Batch, limits: &Limits) -> Result<()>;

    /// Everything up to `position` is durable in the topics: the source may let its server forget it.
    /// Never called with a position that is not committed.
    async fn ack(&mut self, position: &Position) -> Result<()>;

    /// Whether everything up to `barrier` was handed out and no transaction is open. Asks the server how far its log has come
    /// if that is not known, so that it is found out soon also while nothing happens.
    fn passed(&mut self, barrier: &Position) -> Result<bool>;

    /// The server as it is now, if that may differ from what the checkpoint says in a way that [`open`] has accepted: another
    /// timeline after a failover. It is stored with the next position, so that later positions are compared with it.
    ///
    /// [`open`]: crate::SourceConnector::open
    fn identity(&self) -> Option<&Identity> {
        None
    }

    /// How far the server is ahead; usable while `next_batch` waits.
    fn monitor(&self) -> Arc<dyn Monitor>;

    /// Leaves the server in order; called on a graceful stop.
    async fn close(self: Box<Self>) -> Result<()>;
}

/// Measures the lag of a running source from the side, at the moment of asking.
#[async_trait]
pub trait Monitor: Send + Sync {
    /// Bytes of log between `committed` and the end of the server's log; 0 once everything that was committed at the
    /// server when the call began is covered by `committed`, also when the rest of the log is of no interest.
    async fn lag_bytes(&self, committed: &Position) -> Result<u64>;

    /// Where the topics differ from the tables although the source goes on, with what mends it. Does not ask the server.
    fn findings(&self) -> Vec<crate::Error> {
        Vec::new()
    }

    /// What the server keeps of what is behind `committed`; by default nothing is known. It may be asked while no source is open, which is
    /// when it matters.
    async fn retention(&self, committed: &Position) -> Result<Retention> {
        let _ = committed;
        Ok(Retention::default())
    }

    /// What `committed` says, in the words of the source's operators; by default nothing. Does not ask the server.
    fn standing(&self, committed: &Position) -> Standing {
        let _ = committed;
        Standing::default()
    }
}

/// A position taken apart for people and graphs. None where the kind of source knows no such thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The file of the server's log.
    pub file: Option<String>,
    /// The number of that file: it grows by one with each.
    pub file_number: Option<u64>,
    /// The byte in that file, or in the whole log where that is counted as one.
    pub position_bytes: Option<u64>,
    /// The published transactions by their global names.
    pub gtid_set: Option<String>,
}

/// How long the log that a source still needs stays on its server. None where the kind of server does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Bytes of log on the server's disk that it keeps for this source.
    pub held_bytes: Option<u64>,
    /// Bytes that may still be written before the server gives the source up; none without such a limit. Not negative.
    pub left_bytes: Option<u64>,
    /// Seconds until the server may delete log that this source has not read, if it reads no further; none if it deletes nothing by age.
    pub left_seconds: Option<u64>,
}
