//! From the plan to the log.

use std::sync::Arc;

use headwater_connector::Result;

pub use super::embedded::Mode;
use super::{
    SharedLog,
    embedded::{self, EmbeddedLog},
    kafka::{self, KafkaLog},
};

/// Which log, with its options.
pub enum LogPlan {
    /// Inside the process.
    Embedded(embedded::Options),
    /// Apache Kafka.
    Kafka(Box<kafka::Options>),
}

/// Opens the log for a daemon, which takes the embedded log's lock, or for reading beside one.
pub async fn open(plan: &LogPlan, prefix: &str, mode: Mode) -> Result<SharedLog> {
    Ok(match plan {
        LogPlan::Embedded(options) => {
            let log = EmbeddedLog::open(options.clone(), mode)?;
            if mode == Mode::Daemon {
                log.start_maintenance()?;
            }
            Arc::new(log)
        }
        LogPlan::Kafka(options) => Arc::new(KafkaLog::new((**options).clone(), prefix)?),
    })
}
