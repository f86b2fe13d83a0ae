//! Reading: only what is committed, in short read transactions, so that the write-ahead log can always be emptied.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use headwater_connector::{Error, Result};
use rusqlite::{Connection, OptionalExtension, Row, params, types::ValueRef};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{
    blocking, codes,
    error::Fault,
    file::{self, Files, ReadConnection},
    headers,
    topics::{self, Part},
};
use crate::log::{From as Start, LogReader, StoredRecord};

/// Idle connections kept for later reads; more are opened when more read at once.
const IDLE_CONNECTIONS: usize = 4;

/// A read returns early beyond this, so that large values do not fill the memory.
const READ_BYTES: usize = 8 << 20;

/// How often another process looks for new records.
const POLL: Duration = Duration::from_millis(10);

/// Tells readers in this process that a partition has new records.
#[derive(Default)]
pub(super) struct Tails(Mutex<HashMap<Part, watch::Sender<()>>>);

impl Tails {
    pub(super) fn moved(&self, parts: &[Part]) {
        let mut tails = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for part in parts {
            // The last reader of the partition may have gone: then the entry goes, too.
            if tails.get(part).is_some_and(|tail| tail.send(()).is_err()) {
                tails.remove(part);
            }
        }
    }

    fn watch(&self, part: Part) -> watch::Receiver<()> {
        let mut tails = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tails.entry(part).or_insert_with(|| watch::channel(()).0).subscribe()
    }
}

/// What readers share.
pub(super) struct ReadSide {
    files: Files,
    idle: Mutex<Vec<Connection>>,
    /// None in a process that does not write: it looks again every [`POLL`].
    tails: Option<Arc<Tails>>,
}

impl ReadSide {
    /// Opens one connection to see whether the log can be read.
    pub(super) fn open(files: Files, tails: Option<Arc<Tails>>) -> Result<Self> {
        let side = Self { files, idle: Mutex::default(), tails };
        side.with("cannot open the log for reading", |_| Ok(()))?;
        Ok(side)
    }

    /// Runs `work` on a connection of its own; blocks.
    pub(super) fn with<T>(&self, doing: &str, work: impl Fn(&Connection) -> Result<T, Fault>) -> Result<T> {
        let name = |fault: Fault| fault.name(&self.files.database(), doing);
        loop {
            let idle = self.idle().pop();
            let (connection, once) = match idle {
                Some(connection) => (connection, false),
                None => {
                    let ReadConnection { connection, once } = file::open_for_reading(&self.files)?;
                    (connection, once)
                }
            };
            let result = work(&connection);
            if once {
                // A daemon began to write meanwhile: what was read without locks may be torn.
                if self.files.wal_bytes() > 0 {
                    continue;
                }
            } else if result.is_ok() {
                let mut idle = self.idle();
                if idle.len() < IDLE_CONNECTIONS {
                    idle.push(connection);
                }
            }
            return result.map_err(name);
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last record of each key in partition 0; a tombstone removes its key.
    pub(super) fn last_records(&self, topic: &str) -> Result<Vec<StoredRecord>> {
        self.with("cannot read the last records", |connection| {
            // One snapshot for both steps: compaction may run beside this.
            let snapshot = connection.unchecked_transaction()?;
            let Some(found) = topics::find(&snapshot, topic)? else { return Ok(Vec::new()) };
            let part = found.part(0);
            let mut offsets = last_offsets(&snapshot, part)?;
            offsets.sort_unstable();
            let mut get = snapshot.prepare_cached(&format!("{} WHERE \"offset\" = ?1", select(part)))?;
            let mut records = Vec::with_capacity(offsets.len());
            for offset in offsets {
                let mut rows = get.query([offset])?;
                let row = rows.next()?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
                records.push(record(row, topic)?);
            }
            Ok(records)
        })
    }
}

/// Only keys are held, and each once: a checkpoint topic has two keys and many thousands of records.
fn last_offsets(connection: &Connection, part: Part) -> Result<Vec<i64>, Fault> {
    let sql = format!("SELECT \"offset\", key, value IS NULL FROM {} ORDER BY \"offset\"", part.table());
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([])?;
    let mut last: HashMap<Vec<u8>, i64> = HashMap::new();
    while let Some(row) = rows.next()? {
        let key = raw(row, 1)?.unwrap_or_default();
        if row.get(2)? {
            last.remove(key);
        } else if let Some(offset) = last.get_mut(key) {
            *offset = row.get(0)?;
        } else {
            last.insert(key.to_vec(), row.get(0)?);
        }
    }
    Ok(last.into_values().collect())
}

fn select(part: Part) -> String {
    format!("SELECT \"offset\", timestamp, key, value, headers FROM {}", part.table())
}

/// Text and blobs are both bytes to us.
pub(super) fn raw<'a>(row: &'a Row<'_>, index: usize) -> rusqlite::Result<Option<&'a [u8]>> {
    match row.get_ref(index)? {
        ValueRef::Null => Ok(None),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Ok(Some(bytes)),
        other => Err(rusqlite::Error::InvalidColumnType(index, "bytes".to_owned(), other.data_type())),
    }
}

fn record(row: &Row<'_>, topic: &str) -> Result<StoredRecord, Fault> {
    let offset: i64 = row.get(0)?;
    let headers = raw(row, 4)?.map_or(Ok(Vec::new()), headers::decode).map_err(|error| {
        Error::new(&codes::DAMAGED, "the headers of a record cannot be read")
            .at("topic", topic)
            .at("offset", offset)
            .hint("Undo what was edited in `log.db`, or restore it from a backup.")
            .caused_by(error)
    })?;
    Ok(StoredRecord {
        offset: offset as u64,
        timestamp_ms: row.get(1)?,
        key: raw(row, 2)?.unwrap_or_default().to_vec(),
        value: raw(row, 3)?.map(<[u8]>::to_vec),
        headers,
    })
}

/// Reads one partition.
pub(super) struct EmbeddedReader {
    side: Arc<ReadSide>,
    place: Arc<Place>,
    next: i64,
    tail: Option<watch::Receiver<()>>,
}

/// What a reader reads.
struct Place {
    topic: String,
    part: Part,
    select: String,
}

impl EmbeddedReader {
    pub(super) async fn open(side: Arc<ReadSide>, topic: &str, partition: u32, from: Start) -> Result<Self> {
        let topic = topic.to_owned();
        blocking(move || {
            let (part, next) = side.with("cannot open a reader", |connection| {
                let found = topics::find(connection, &topic)?.ok_or_else(|| topics::unknown(&topic))?;
                if partition >= found.partitions {
                    return Err(topics::unknown_partition(&topic, partition, found.partitions).into());
                }
                let part = found.part(partition);
                let next = match from {
                    Start::Earliest => 0,
                    Start::Latest => topics::next_offset(connection, part)?,
                    Start::Offset(offset) => i64::try_from(offset).unwrap_or(i64::MAX),
                };
                Ok((part, next))
            })?;
            let tail = side.tails.as_ref().map(|tails| tails.watch(part));
            let select = format!("{} WHERE \"offset\" >= ?1 ORDER BY \"offset\" LIMIT ?2", select(part));
            Ok(Self { side, place: Arc::new(Place { topic, part, select }), next, tail })
        })
        .await
    }

    async fn read_now(&mut self, max: usize) -> Result<Vec<StoredRecord>> {
        let (side, place, next) = (Arc::clone(&self.side), Arc::clone(&self.place), self.next);
        let records = blocking(move || {
            side.with("cannot read from the log", |connection| {
                let mut statement = connection.prepare_cached(&place.select)?;
                let mut rows = statement.query(params![next, i64::try_from(max).unwrap_or(i64::MAX)])?;
                let mut records = Vec::new();
                let mut bytes = 0;
                while let Some(row) = rows.next()? {
                    let record = record(row, &place.topic)?;
                    bytes += record.key.len() + record.value.as_ref().map_or(0, Vec::len);
                    records.push(record);
                    if bytes >= READ_BYTES {
                        break;
                    }
                }
                Ok(records)
            })
        })
        .await?;
        if let Some(last) = records.last() {
            self.next = last.offset as i64 + 1;
        }
        Ok(records)
    }

    /// Returns when there may be something new, or at the deadline.
    async fn wait(&mut self, deadline: Instant) {
        if let Some(tail) = &mut self.tail {
            // The sender lives as long as this receiver: entries go only when nobody listens.
            let _ = timeout_at(deadline, tail.changed()).await;
        } else {
            tokio::time::sleep_until(deadline.min(Instant::now() + POLL)).await;
        }
    }
}

#[async_trait]
impl LogReader for EmbeddedReader {
    async fn read(&mut self, max: usize, wait: Duration) -> Result<Vec<StoredRecord>> {
        let deadline = Instant::now() + wait;
        loop {
            // Seen before the read, so that a commit during the read wakes the wait below.
            if let Some(tail) = &mut self.tail {
                tail.mark_unchanged();
            }
            let records = self.read_now(max).await?;
            if !records.is_empty() || max == 0 || Instant::now() >= deadline {
                return Ok(records);
            }
            self.wait(deadline).await;
        }
    }

    async fn at_end(&mut self) -> Result<bool> {
        let (side, place, next) = (Arc::clone(&self.side), Arc::clone(&self.place), self.next);
        blocking(move || {
            side.with("cannot read from the log", |connection| {
                let sql = format!("SELECT 1 FROM {} WHERE \"offset\" >= ?1 LIMIT 1", place.part.table());
                let more = connection.prepare_cached(&sql)?.query_row([next], |_| Ok(())).optional()?;
                Ok(more.is_none())
            })
        })
        .await
    }
}
