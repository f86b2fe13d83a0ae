//! The log on Apache Kafka.

use schemars::JsonSchema;
use serde::Deserialize;

/// Options of the Kafka log.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Brokers to begin with, as `host:port`.
    pub bootstrap_servers: Vec<String>,
}
