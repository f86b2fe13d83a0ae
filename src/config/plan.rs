//! What the config means: resolved, cross-checked, all faults at once.

use std::{path::PathBuf, sync::Arc};

use headwater_connector::{ConnectorKind, SourceConnector};

use crate::{mapping::rule::Events, pipeline::ingest::CommitOptions};

/// Everything that `run`, `check` and `plan` work from. Nothing in it was connected to yet.
pub struct Plan {
    /// Where topics live.
    pub log: LogPlan,
    /// `log.prefix`: begins the names of internal topics and ids.
    pub prefix: String,
    /// `http.listen`; none switches HTTP off.
    pub listen: Option<std::net::SocketAddr>,
    /// Sources in the order of the files.
    pub sources: Vec<SourcePlan>,
    /// Findings that do not stop, for example a literal secret.
    pub warnings: Vec<headwater_connector::Error>,
}

/// The `log` part.
pub enum LogPlan {
    /// Inside the process.
    Embedded(crate::log::embedded::Options),
    /// Apache Kafka.
    Kafka(crate::log::kafka::Options),
}

/// One source connector.
#[derive(Clone)]
pub struct SourcePlan {
    /// The connector's name.
    pub name: String,
    /// Its kind.
    pub kind: &'static dyn ConnectorKind,
    /// The connector itself, built from its options.
    pub connector: Arc<dyn SourceConnector>,
    /// How rows become events.
    pub events: Events,
    /// When to commit.
    pub commit: CommitOptions,
    /// The file that declares it.
    pub file: PathBuf,
}
