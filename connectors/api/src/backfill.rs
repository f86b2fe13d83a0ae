//! Reading rows that are in a table already, so that they never contradict the stream.
//!
//! The order of a log is not the order in which transactions become visible: a transaction can be in the log, and in the topics,
//! while a SELECT still does not see it. So a row that was read is published only if every transaction that touched its key, and
//! is or will be published before it, was visible to the SELECT's snapshot. The runtime decides that; a connector supplies
//! what it needs to know:
//!
//! - a *chunk*: rows in key order, read in one snapshot, with the snapshot's own test of [which transactions it saw](Snapshot::sees);
//! - a *barrier*: a position behind everything that the snapshot saw. The stream must have [passed](crate::Source::passed) it before
//!   the chunk is published;
//! - a *gate*: the runtime remembers which transactions it published only from some moment on. What was published before and is
//!   not visible yet would be forgotten, so the first chunk is read only in a snapshot that sees everything the gate names.

use std::{any::Any, fmt, sync::Arc};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Batch, Position, Result};

/// The values of a key, as text in the server's own form and in key order. They are handed back to the server and never compared here.
pub type Cursor = Vec<String>;

/// When rows that are in a table already are read, and how hard.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(from = "BackfillWords")]
#[schemars(with = "BackfillWords")]
pub struct BackfillOptions {
    /// See [`BackfillMode`].
    pub mode: BackfillMode,
    /// Chunks that are read at the same time; none lets the daemon choose.
    pub readers: Option<usize>,
    /// Rows read per second at most, over all tables.
    pub rows_per_second: Option<u64>,
    /// Megabytes read per second at most, over all tables.
    pub megabytes_per_second: Option<u64>,
    /// Above so many megabytes of log that the source has not been read yet, no chunk is read until it has caught up.
    pub max_lag_megabytes: u64,
    /// Tables to read first, in this order, as `schema.table`.
    pub first: Vec<String>,
}

impl Default for BackfillOptions {
    fn default() -> Self {
        BackfillWords::Mode(BackfillMode::Initial).into()
    }
}

impl BackfillOptions {
    /// The tables of `first` that are not captured, each with its place in the list.
    pub fn unknown_first(&self, is_captured: impl Fn(&str) -> bool) -> impl Iterator<Item = (usize, &str)> {
        self.first.iter().map(String::as_str).enumerate().filter(move |(_, table)| !is_captured(table))
    }
}

/// Whether a table's rows are read when the table is captured for the first time: `initial`, so that in the end the topic holds exactly
/// the table, or `never`, until somebody asks for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BackfillMode {
    // They are, while the stream goes on: in the end the topic holds exactly the table.
    #[default]
    Initial,
    // Only what changes from now on becomes an event, until somebody asks for a table with `headwater backfill`.
    Never,
}

/// A word, or a word with limits.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum BackfillWords {
    /// Only the mode
    Mode(BackfillMode),
    /// The mode and limits
    Limits(BackfillLimits),
}

/// The mode and how hard the server may be worked.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct BackfillLimits {
    /// Whether the rows of a table that is new to the connector are read.
    mode: BackfillMode,
    /// Chunks that are read at the same time, from one table or several; default 4, but no more than there are cores.
    #[schemars(range(min = 1, max = 32))]
    readers: Option<usize>,
    /// Rows read per second at most, over all tables; default no limit.
    #[schemars(range(min = 1))]
    rows_per_second: Option<u64>,
    /// Megabytes read per second at most, over all tables; default no limit.
    #[schemars(range(min = 1))]
    megabytes_per_second: Option<u64>,
    /// Above so many megabytes of unread log no chunk is read until the stream has caught up; default 256.
    #[schemars(range(min = 1))]
    max_lag_megabytes: Option<u64>,
    /// Tables to read first, in this order, as `schema.table`.
    first: Vec<String>,
}

impl From<BackfillWords> for BackfillOptions {
    fn from(words: BackfillWords) -> Self {
        let limits = match words {
            BackfillWords::Mode(mode) => BackfillLimits { mode, ..BackfillLimits::default() },
            BackfillWords::Limits(limits) => limits,
        };
        Self {
            mode: limits.mode,
            readers: limits.readers.map(|readers| readers.clamp(1, 32)),
            rows_per_second: limits.rows_per_second.filter(|limit| *limit > 0),
            megabytes_per_second: limits.megabytes_per_second.filter(|limit| *limit > 0),
            max_lag_megabytes: limits.max_lag_megabytes.unwrap_or(256),
            first: limits.first,
        }
    }
}

/// Which transactions a snapshot saw. What one snapshot saw, every later one of all readers of the open source sees too: a
/// connector whose readers are on a server of their own sees to that.
pub trait Snapshot: Send + Sync {
    /// Whether the transaction with this [id](crate::TransactionInfo) was visible. In doubt the answer is no: a row is then left out
    /// for which there is an event at least as new.
    fn sees(&self, transaction: &str) -> bool;
}

/// What must be visible before the first chunk; the connector's own.
pub type Gate = Arc<dyn Any + Send + Sync>;

/// What an operator may ask of rows, to be put into the server's language.
#[derive(Clone, Copy, Debug)]
pub enum Condition<'a> {
    /// Rows whose column is at least the value.
    From {
        /// A column of the table
        column: &'a str,
        /// in the server's own form.
        value: &'a str,
    },
    /// Rows with these keys.
    Keys(&'a [Cursor]),
}

/// Which rows to read.
#[derive(Clone, Debug)]
pub struct ChunkRequest {
    /// `schema.table`
    pub table: String,
    /// Behind this key; none begins at the first row.
    pub after: Option<Cursor>,
    /// Up to and including this key; none goes to the end.
    pub until: Option<Cursor>,
    /// A condition in the server's language that rows must meet.
    pub filter: Option<String>,
    /// Only rows with these keys, instead of a range.
    pub keys: Option<Arc<Vec<Cursor>>>,
    /// No more rows than this.
    pub max_rows: usize,
    /// Begin no further row once so many bytes are there.
    pub max_bytes: usize,
    /// What the snapshot must see, as long as no chunk has passed it.
    pub gate: Option<Gate>,
}

/// What came of a request.
pub enum ChunkRead {
    /// The snapshot does not see yet what the gate asks for. The words name what is waited for.
    Waiting(String),
    /// Rows are in the batch.
    Rows(Chunk),
}

/// Rows that were read, and what is known of their snapshot.
#[derive(Clone)]
pub struct Chunk {
    /// Which transactions the rows show.
    pub seen: Arc<dyn Snapshot>,
    /// Behind everything that the rows show.
    pub barrier: Position,
    /// The key of the last row; none if there is nothing behind it in the range.
    pub end: Option<Cursor>,
    /// Tells the table from a later one of the same name.
    pub table_id: String,
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunk").field("barrier", &self.barrier).field("table_id", &self.table_id).finish_non_exhaustive()
    }
}

/// A session that reads tables. After an error it is dropped and another is opened.
#[async_trait]
pub trait TableReader: Send {
    /// Names everything that may be in the log now and is not visible yet. Called after the runtime began to remember what
    /// it publishes.
    async fn gate(&mut self) -> Result<Gate>;

    /// Keys that cut a table into about so many ranges of like size, in key order; fewer, or none, if the table is small.
    async fn split(&mut self, table: &str, parts: usize) -> Result<Vec<Cursor>>;

    /// Reads rows in key order into `batch`, which is empty, as changes of [`Op::Read`](crate::Op) of one transaction. The rows are encoded exactly
    /// as the stream encodes them.
    ///
    /// A table that is gone, that may not be read, or whose rows a policy would hide is an error of the kinds Config or Environment:
    /// it ends the backfill of this table only. Retry is for everything that may pass.
    async fn read(&mut self, request: &ChunkRequest, batch: &mut Batch) -> Result<ChunkRead>;

    /// Ends the session.
    async fn close(self: Box<Self>);
}
