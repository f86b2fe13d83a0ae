//! Headwater: change data capture that joins events and source position in one log transaction.
//!
//! The map, in the order that data takes; `docs/architecture.md` has the protocol, the invariants (I…), crash points (C…) and
//! Kafka hazards (K…) that comments cite by number.
//!
//! - [`config`]: files and environment become a [`config::plan::Plan`], with all faults at once.
//! - [`registry`]: the one array of compiled-in connectors.
//! - [`pipeline`]: one task per connector; start, ingest, supervise, status.
//! - [`mapping`]: changes become keyed events; pure.
//! - [`format`]: rows become bytes; pure.
//! - [`log`]: topics and the transaction that joins events and checkpoint, embedded or on Kafka.
//! - [`http`], [`cli`]: what probes and people see.
//! - [`telemetry`], [`shutdown`]: logs, and the one signal that is passed down.

pub mod cli;
pub mod config;
pub mod format;
pub mod http;
pub mod log;
pub mod mapping;
pub mod pipeline;
pub mod registry;
pub mod shutdown;
pub mod telemetry;

#[cfg(test)]
mod traces;
