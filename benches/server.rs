//! The servers of a run: one database and, from its first use on, one broker.

use std::sync::OnceLock;

use crate::{source::Source, support::kafka::Kafka};

/// The servers.
pub struct Server<'a> {
    /// The database.
    pub source: &'a dyn Source,
    kafka: OnceLock<Kafka>,
}

impl<'a> Server<'a> {
    /// Starts nothing.
    pub fn new(source: &'a dyn Source) -> Self {
        Self { source, kafka: OnceLock::new() }
    }

    /// The broker.
    pub fn kafka(&self) -> &Kafka {
        self.kafka.get_or_init(|| Kafka::start_with("num.partitions=6\n"))
    }
}
