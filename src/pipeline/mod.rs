//! The pipelines of a daemon: one task per connector, nothing shared but the log.
//!
//! [`start`] takes a source's writer place and finds where it stood, [`ingest`] moves batches from there, [`supervisor`] decides
//! what an error means, [`handle`] tells how it goes, [`preflight`] looks without touching.

pub mod codes;
pub mod handle;
pub mod ingest;
pub mod preflight;
pub mod start;
pub mod supervisor;

#[cfg(test)]
mod simulation;

use std::time::{SystemTime, UNIX_EPOCH};

pub use handle::Handle;
pub use supervisor::Daemon;

/// Microseconds since 1970 UTC. For timestamps only: no order or decision depends on the wall clock.
pub(crate) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
