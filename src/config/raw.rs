//! What is typed into the files. The doc comments are the descriptions in `config/schema.json` and in the reference.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::mapping::rule::Events;

/// A configuration of headwater.
//
// The loader reads it part by part, so that one fault does not hide another; as a whole it is the schema.
#[derive(Debug, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Root {
    /// Where topics live. Default: the embedded log in `./data`.
    pub log: Option<Log>,
    /// The HTTP interface with status and metrics.
    #[schemars(default)]
    pub http: Http,
    /// Further files that hold connectors: patterns relative to this file, for example `connectors/*.yaml`.
    #[schemars(default)]
    pub include: Vec<String>,
    /// The connectors by name. A name has lower-case letters, digits, `_` and `-`.
    #[schemars(default)]
    pub connectors: BTreeMap<String, Connector>,
}

/// Options that every kind of log has.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Begins the names of all internal topics and ids, so that two teams can share a cluster.
    pub prefix: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { prefix: "headwater".into() }
    }
}

/// The HTTP interface with status and metrics.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Address and port on this machine, for example `127.0.0.1:8787`; `off` or null switches HTTP off.
    pub listen: Option<String>,
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: Some("127.0.0.1:8787".into()) }
    }
}

/// One connector.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Connector {
    /// How rows become events.
    pub events: Events,
    /// When a log transaction is closed. The defaults favour latency when idle and throughput under backlog.
    pub commit: CommitOptions,
}

/// When a log transaction is committed. The defaults favour latency when idle and throughput under backlog.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CommitOptions {
    /// Commit at the latest with this many bytes of rows. A source transaction that alone is larger is published in slices.
    #[schemars(range(min = 65536, max = 67_108_864))]
    pub max_bytes: usize,
    /// Commit at the latest with this many events.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_events: usize,
    /// While an earlier transaction is being committed, gather for this many milliseconds. When idle, nothing waits.
    #[schemars(range(min = 0, max = 10_000))]
    pub linger_ms: u64,
}

impl Default for CommitOptions {
    fn default() -> Self {
        Self { max_bytes: 4 << 20, max_events: 20_000, linger_ms: 5 }
    }
}
