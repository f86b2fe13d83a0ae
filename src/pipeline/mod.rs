//! The pipelines of a daemon: one task per connector, nothing shared but the log.
//!
//! [`start`] takes a source's writer place and finds where it stood, [`ingest`] moves batches from there, [`supervisor`] decides
//! what an error means, [`daemon`] owns the connectors and obeys commands, [`reload`] compares new files with what runs, [`reset`]
//! begins anew, [`handle`] tells how it goes, [`preflight`] looks without touching.

pub mod backfill;
mod claims;
pub mod codes;
pub mod daemon;
pub mod handle;
pub mod histogram;
pub mod ingest;
pub mod preflight;
pub mod reload;
pub mod reset;
pub mod start;
pub mod supervisor;
mod topics;

#[cfg(test)]
pub(crate) mod simulation;

use std::time::{SystemTime, UNIX_EPOCH};

pub use daemon::Daemon;
pub use handle::Handle;

/// Microseconds since 1970 UTC. For timestamps only: no order or decision depends on the wall clock.
pub(crate) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Now, for people and records: RFC 3339 in UTC, to the second.
pub(crate) fn now_text() -> String {
    jiff::Timestamp::from_second(now_us() / 1_000_000).map_or_else(|_| String::new(), |now| now.to_string())
}
