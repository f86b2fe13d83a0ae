//! The embedded log: topics in one SQLite file.
//!
//! `log.db` holds everything; any SQLite tool reads it, beside the daemon or without one, through a view per topic.
//! The daemon holds an operating-system lock on `log.lock`, so there is one writer; connectors take turns in it. A commit is
//! one SQLite transaction that is flushed to disk before it is reported. Compaction and retention run beside it in small steps.

pub mod codes;
mod compaction;
mod error;
mod file;
mod headers;
mod maintenance;
mod reader;
#[cfg(test)]
mod tests;
mod topics;
mod writer;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use headwater_connector::{Error, Finding, Result, codes as common};
use schemars::JsonSchema;
use serde::Deserialize;

use self::{
    file::Files,
    maintenance::Maintenance,
    reader::{EmbeddedReader, ReadSide, Tails},
    writer::{EmbeddedWriter, SharedWriteSide, WriteSide},
};
use super::{From as Start, Log, LogReader, LogWriter, StoredRecord, TopicSpec, TopicState};

/// Options of the embedded log.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Directory of the log's files; created if missing, readable by this user alone. Relative to the main config file.
    #[schemars(extend("x-path" = true))]
    pub path: PathBuf,

    /// Hours for which records stay in topics that are not compacted, counted from when they were written; at least 1.
    /// Compacted topics keep the last record of each key for ever.
    #[serde(default = "default_retention_hours")]
    #[schemars(range(min = 1))]
    pub retention_hours: u32,

    /// Seconds between two rounds of compaction and retention; at least 1. A shorter time saves disk and costs some IO.
    #[serde(default = "default_compact_interval_seconds")]
    #[schemars(range(min = 1))]
    pub compact_interval_seconds: u32,
}

fn default_retention_hours() -> u32 {
    168
}

fn default_compact_interval_seconds() -> u32 {
    300
}

impl Options {
    /// The defaults, in a directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            retention_hours: default_retention_hours(),
            compact_interval_seconds: default_compact_interval_seconds(),
        }
    }
}

/// What the log is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Read and write; takes the lock and creates what is missing.
    Daemon,
    /// Read beside a daemon or without one; a log that does not exist is an error. Creates nothing.
    Reader,
    /// As [`Reader`](Self::Reader), but a log that does not exist is an empty one: for `check` and `plan` before the first run.
    Plan,
}

/// Topics in one SQLite file.
pub struct EmbeddedLog {
    options: Options,
    files: Files,
    /// None if the log does not exist, in [`Mode::Plan`].
    reads: Option<Arc<ReadSide>>,
    maintenance: Mutex<Option<Maintenance>>,
    /// Only the daemon has one. Dropped after the readers above, so that the last to close is the one that tidies up.
    writes: Option<SharedWriteSide>,
}

impl EmbeddedLog {
    /// Opens the log; blocks for as long as the disk needs.
    pub fn open(options: Options, mode: Mode) -> Result<Self> {
        let files = Files { dir: options.path.clone() };
        let (reads, writes) = match mode {
            Mode::Daemon => {
                let tails = Arc::new(Tails::default());
                let writes = WriteSide::open(&files, Arc::clone(&tails))?;
                (Some(ReadSide::open(files.clone(), Some(tails))?), Some(Arc::new(tokio::sync::Mutex::new(writes))))
            }
            Mode::Reader => (Some(ReadSide::open(files.clone(), None)?), None),
            Mode::Plan => match ReadSide::open(files.clone(), None) {
                Ok(reads) => (Some(reads), None),
                Err(error) if std::ptr::eq(error.code(), &codes::MISSING) => (None, None),
                Err(error) => return Err(error),
            },
        };
        Ok(Self { options, files, reads: reads.map(Arc::new), maintenance: Mutex::default(), writes })
    }

    /// Starts compaction and retention in a thread of their own; they stop with [`shutdown`](Self::shutdown) or on drop.
    /// Does nothing in a log that is open for reading, or if they run already.
    pub fn start_maintenance(&self) -> Result<()> {
        let Some(writes) = &self.writes else { return Ok(()) };
        let mut running = self.maintenance.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_none() {
            let interval = Duration::from_secs(self.options.compact_interval_seconds.max(1).into());
            let keep = Duration::from_secs(u64::from(self.options.retention_hours.max(1)) * 3600);
            *running = Some(Maintenance::start(self.files.clone(), Arc::clone(writes), interval, keep)?);
        }
        Ok(())
    }

    /// Stops compaction and retention, waiting for the step that is under way (a few milliseconds).
    pub fn shutdown(&self) {
        self.maintenance.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn writes(&self) -> Result<SharedWriteSide> {
        self.writes.as_ref().map(Arc::clone).ok_or_else(|| {
            Error::new(&common::INVARIANT, "a log that is open for reading was asked to write")
                .at("directory", self.files.dir.display())
                .hint("Report this message as a bug.")
        })
    }

    /// Runs `work` on the read side in a thread that may block; `empty` if the log does not exist.
    async fn read<T: Send + 'static>(&self, empty: T, work: impl FnOnce(&ReadSide) -> Result<T> + Send + 'static) -> Result<T> {
        let Some(reads) = self.reads.as_ref().map(Arc::clone) else { return Ok(empty) };
        blocking(move || work(&reads)).await
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// SQLite blocks, so it runs in tokio's threads for that. The work goes on even if the caller is dropped.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Error::new(&common::INVARIANT, "work on the log ended without an answer")
            .hint("Report this message as a bug.")
            .caused_by(error))
    })
}

#[async_trait]
impl Log for EmbeddedLog {
    fn describe(&self) -> String {
        format!("embedded log in {}", self.files.dir.display())
    }

    fn default_partitions(&self) -> u32 {
        1
    }

    async fn topics(&self, names: &[String]) -> Result<Vec<Option<TopicState>>> {
        let names = names.to_vec();
        self.read(vec![None; names.len()], move |reads| {
            reads.with("cannot list topics", |connection| {
                let mut states = Vec::with_capacity(names.len());
                for name in &names {
                    states.push(topics::find(connection, name)?.map(|topic| topic.state(name)));
                }
                Ok(states)
            })
        })
        .await
    }

    async fn ensure_topics(&self, specs: &[TopicSpec]) -> Result<Vec<TopicState>> {
        let specs = specs.to_vec();
        let mut guard = self.writes()?.lock_owned().await;
        blocking(move || {
            guard.with("cannot create topics", |connection, known| {
                let states = topics::ensure(connection, &specs)?;
                *known = topics::all(connection)?;
                Ok(states)
            })
        })
        .await
    }

    async fn last_records(&self, topic: &str) -> Result<Vec<StoredRecord>> {
        if let Some(writes) = &self.writes {
            // A commit whose caller has gone away still runs; what it writes belongs to the answer.
            drop(writes.lock().await);
        }
        let topic = topic.to_owned();
        self.read(Vec::new(), move |reads| reads.last_records(&topic)).await
    }

    async fn open_writer(&self, connector: &str) -> Result<Box<dyn LogWriter>> {
        Ok(Box::new(EmbeddedWriter::open(self.writes()?, connector).await?))
    }

    async fn reader(&self, topic: &str, partition: u32, from: Start) -> Result<Box<dyn LogReader>> {
        let Some(reads) = &self.reads else { return Err(topics::unknown(topic)) };
        Ok(Box::new(EmbeddedReader::open(Arc::clone(reads), topic, partition, from).await?))
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        let (files, reads, daemon) = (self.files.clone(), self.reads.clone(), self.writes.is_some());
        blocking(move || Ok(maintenance::findings(&files, reads.as_deref(), daemon))).await
    }
}
