//! Mapping rules as the user writes them: the `events` part of a connector.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How rows become events.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Events {
    /// Template of the topic's name. Known parts: `{connector}`, `{entity}`, `{schema}`, `{table}`, `{version}`.
    pub topic: TopicTemplate,
    /// What `{version}` stands for.
    pub version: Option<String>,
    /// Partitions of each topic. Default: 6 on Kafka, 1 embedded; the count of a topic that exists is adopted unless this is set.
    #[schemars(range(min = 1, max = 10000))]
    pub partitions: Option<u32>,
    /// What happens to a row that cannot be keyed or represented.
    pub on_data_error: OnDataError,
    /// Rules for single tables, by `schema.table`.
    pub tables: BTreeMap<String, TableRule>,
}

/// See [`Events::topic`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct TopicTemplate(pub String);

impl Default for TopicTemplate {
    fn default() -> Self {
        Self("{connector}.{entity}".into())
    }
}

/// What happens to a row that cannot be keyed or represented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDataError {
    /// Stop the connector with the position kept. Nothing of the log transaction that would hold the row is committed.
    #[default]
    Stop,
    /// Write the row to the topic `<log.prefix>.<connector>.dead`, in the same log transaction, and go on.
    DeadLetter,
}

/// A rule for one table.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TableRule {
    /// What a row is in the language of the business. Default: the bare table name.
    pub entity: Option<String>,
    /// Topic template of this table alone.
    pub topic: Option<TopicTemplate>,
    /// Key columns instead of the primary key: NOT NULL, together unique, and on PostgreSQL inside the replica identity.
    pub key: Option<Vec<String>>,
    /// Publish only these columns. The key columns must be among them.
    pub include: Option<Vec<String>>,
    /// Publish all but these columns. Key columns cannot be excluded.
    pub exclude: Option<Vec<String>>,
}
