//! The contract between Headwater and its connectors. Read this first if you write one.
//!
//! A connector is one crate that depends on this crate and on nothing else of ours. It registers one [`ConnectorKind`]: a name,
//! an options struct (its doc comments become the reference page and the JSON Schema), and a way to build a
//! [`SourceConnector`] from options. The daemon does the rest: topics, transactions, checkpoints, retries, status, shutdown.
//!
//! In reading order:
//!
//! 1. [`error`]: seven kinds say what the daemon does, stable codes say what happened. Decide the kind with care: `Retry` is tried
//!    for ever, `Lost` needs an operator. Never put a row value or a secret into a message.
//! 2. [`position`]: where a source stands. The runtime stores it and hands it back; only you understand it. Make it the end of the
//!    last complete source transaction, plus a raw ordinal inside a transaction that was cut because of its size. Never the
//!    place of a row. Know what it means on another server: whether it travels, or binds the checkpoint to one.
//! 3. [`schema`], [`batch`]: rows as cells in an arena, with a closed set of logical types and a canonical text for each.
//!    [`Value::Unchanged`] is not NULL.
//! 4. [`source`]: pull batches, ack what is durable. On any error you are dropped and opened again at the last checkpoint.
//! 5. [`connector`]: look, prepare, create, verify, open; and `check`, which tells an operator everything at once.
//! 6. [`backfill`]: rows that are there already, with what proves that they do not contradict the stream. What a snapshot saw is not what
//!    the log held at that moment, on no server: you say which transactions it saw.
//! 7. [`sink`]: the way back out of the log.
//! 8. [`testkit`]: the suite that every source passes against a real server.
//!
//! Two things that every source needs are here for all: [`selection`], what `tables` selects, and [`quota`], how full a chunk is.
//!
//! `docs/write-a-source.md` goes through it in the order in which a source is built, with what the second source taught.
//!
//! What you promise:
//!
//! - *Whole transactions, in commit order.* A batch ends at a transaction boundary; only a transaction larger than the limits is cut,
//!   between two raw row messages, and reopening at the cut gives exactly the rest.
//! - *The same log gives the same changes.* Reopening at a position repeats the same raw messages with the same ordinals.
//! - *Unknown means stop.* What you cannot decode is an error with the position kept, never a guess and never a skip.
//! - *Bounded memory.* Whatever the server sends, you hold at most the limits plus one row.
//! - *The server is left in peace.* Keepalives are answered while nobody pulls; nothing is confirmed that was not acked.

pub mod backfill;
pub mod batch;
pub mod codes;
pub mod connector;
pub mod error;
pub mod fault;
pub mod json;
pub mod position;
pub mod quota;
pub mod schema;
pub mod secret;
pub mod selection;
pub mod sink;
pub mod source;
#[cfg(feature = "testkit")]
pub mod testkit;

pub use backfill::{
    BackfillMode, BackfillOptions, Chunk, ChunkRead, ChunkRequest, Condition, Cursor, Gate, Snapshot, TableReader,
};
pub use batch::{Batch, Before, Change, Mark, Op, Row, TransactionInfo, Value};
pub use connector::{
    Action, ConnectorKind, Intent, IntentMode, OptionFault, SourceConnector, SourceContext, Start, Survey, Table,
};
pub use error::{Code, Error, Finding, Kind, Level, Result};
pub use position::{Identity, Position};
pub use quota::{Quota, Verdict};
pub use schema::{Column, Fingerprint, Schema, Type};
pub use secret::Secret;
pub use selection::{Names, Selection};
pub use sink::{Sink, SinkRecord};
pub use source::{Limits, Monitor, Retention, Source, Standing};
