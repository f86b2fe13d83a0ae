//! The embedded log: topics in one SQLite file.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

/// Options of the embedded log.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Directory of the log's files; created if missing. Relative to the main config file.
    pub path: PathBuf,
}
