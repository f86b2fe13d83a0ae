//! The layout of the file, and topics in it.
//!
//! Each partition is a table of its own with the offset as row id, so that an append is SQLite's fast path: no search, no
//! second index. A view with the topic's name shows all its partitions to people.

use std::{collections::HashMap, fmt::Write};

use headwater_connector::{Error, Result};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use uuid::Uuid;

use super::{
    codes,
    error::Fault,
    file::{APPLICATION_ID, FORMAT},
};
use crate::log::{Cleanup, TopicSpec, TopicState, codes as shared, topic::name_fault};

/// A view joins at most 500 tables; half of that is far more than one file can use.
const PARTITIONS_MAX: u32 = 256;

/// Offsets are never used again, not even after every record of a partition is gone: `next_offset` only grows.
/// `marks` remembers when a partition had which length, because the time of a record is the source's time, not ours.
const LAYOUT: &str = "
CREATE TABLE topics (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  uid TEXT NOT NULL,
  partitions INTEGER NOT NULL,
  cleanup TEXT NOT NULL CHECK (cleanup IN ('compact', 'delete')),
  created TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
);
CREATE TABLE partitions (
  topic_id INTEGER NOT NULL,
  partition INTEGER NOT NULL,
  next_offset INTEGER NOT NULL DEFAULT 0,
  clean_offset INTEGER NOT NULL DEFAULT 0,
  clean_records INTEGER NOT NULL DEFAULT 0,
  clean_tombstones INTEGER NOT NULL DEFAULT 0,
  cleaned_at INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (topic_id, partition)
) WITHOUT ROWID;
CREATE TABLE marks (
  topic_id INTEGER NOT NULL,
  partition INTEGER NOT NULL,
  at INTEGER NOT NULL,
  next_offset INTEGER NOT NULL,
  PRIMARY KEY (topic_id, partition, at)
) WITHOUT ROWID;
CREATE TABLE owners (
  connector TEXT PRIMARY KEY,
  epoch INTEGER NOT NULL
) WITHOUT ROWID;
";

/// Writes the layout and marks the file as ours.
pub(super) fn create_layout(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(LAYOUT)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", FORMAT)?;
    transaction.commit()
}

/// A topic as the file knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Topic {
    pub(super) id: i64,
    pub(super) partitions: u32,
    pub(super) cleanup: Cleanup,
    uid: String,
}

impl Topic {
    pub(super) fn state(&self, name: &str) -> TopicState {
        TopicState { name: name.to_owned(), partitions: self.partitions, id: self.uid.clone() }
    }

    pub(super) fn part(&self, partition: u32) -> Part {
        Part { topic: self.id, partition }
    }
}

/// One partition, as a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Part {
    pub(super) topic: i64,
    pub(super) partition: u32,
}

impl Part {
    /// The table, quoted. The colon keeps it apart from every topic name, the id from names that differ in case only.
    pub(super) fn table(self) -> String {
        format!("\"records:{}:{}\"", self.topic, self.partition)
    }
}

/// The topic of that name.
pub(super) fn find(connection: &Connection, name: &str) -> rusqlite::Result<Option<Topic>> {
    let mut statement = connection.prepare_cached("SELECT id, partitions, cleanup, uid FROM topics WHERE name = ?1")?;
    statement.query_row([name], |row| topic_at(row, 0)).optional()
}

/// All topics.
pub(super) fn all(connection: &Connection) -> rusqlite::Result<HashMap<String, Topic>> {
    let mut statement = connection.prepare_cached("SELECT name, id, partitions, cleanup, uid FROM topics")?;
    statement.query_map([], |row| Ok((row.get(0)?, topic_at(row, 1)?)))?.collect()
}

fn topic_at(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Topic> {
    let cleanup: String = row.get(first + 2)?;
    Ok(Topic {
        id: row.get(first)?,
        partitions: row.get(first + 1)?,
        cleanup: if cleanup == "delete" { Cleanup::Delete } else { Cleanup::Compact },
        uid: row.get(first + 3)?,
    })
}

/// Creates what is missing and verifies what exists: all of it, or an error and nothing.
pub(super) fn ensure(connection: &mut Connection, specs: &[TopicSpec]) -> Result<Vec<TopicState>, Fault> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut states = Vec::with_capacity(specs.len());
    for spec in specs {
        let topic = match find(&transaction, &spec.name)? {
            Some(topic) => {
                verify(spec, &topic)?;
                topic
            }
            None => create(&transaction, spec)?,
        };
        states.push(topic.state(&spec.name));
    }
    transaction.commit()?;
    Ok(states)
}

fn verify(spec: &TopicSpec, topic: &Topic) -> Result<()> {
    let mismatch = |what: String, hint: &str| Err(Error::new(&shared::TOPIC_MISMATCH, what).at("topic", &spec.name).hint(hint));
    if let Some(wanted) = spec.partitions.filter(|wanted| *wanted != topic.partitions) {
        return mismatch(
            format!("the topic has {} partitions, not {wanted}", topic.partitions),
            "Set `events.partitions` to what the topic has, or choose another topic name.",
        );
    }
    if spec.cleanup != topic.cleanup {
        let name = |cleanup| if cleanup == Cleanup::Compact { "compacted" } else { "deleted by age" };
        return mismatch(
            format!("the topic is {}, but it is needed {}", name(topic.cleanup), name(spec.cleanup)),
            "Choose another topic name.",
        );
    }
    Ok(())
}

fn create(transaction: &Transaction<'_>, spec: &TopicSpec) -> Result<Topic, Fault> {
    let partitions = spec.partitions.unwrap_or(1);
    let fault = name_fault(&spec.name).or_else(|| {
        let fits = (1..=PARTITIONS_MAX).contains(&partitions);
        (!fits).then(|| format!("the embedded log has 1 to {PARTITIONS_MAX} partitions per topic, not {partitions}"))
    });
    if let Some(fault) = fault {
        return Err(Error::new(&codes::TOPIC_NOT_POSSIBLE, fault)
            .at("topic", &spec.name)
            .hint("Correct `events.topic` or `events.partitions`.")
            .into());
    }
    let uid = Uuid::new_v4().to_string();
    let cleanup = if spec.cleanup == Cleanup::Compact { "compact" } else { "delete" };
    transaction.execute(
        "INSERT INTO topics (name, uid, partitions, cleanup) VALUES (?1, ?2, ?3, ?4)",
        params![spec.name, uid, partitions, cleanup],
    )?;
    let topic = Topic { id: transaction.last_insert_rowid(), partitions, cleanup: spec.cleanup, uid };
    for partition in 0..partitions {
        create_part(transaction, topic.part(partition))?;
    }
    create_view(transaction, &spec.name, &topic)?;
    Ok(topic)
}

/// Key and value have no type: text where they are text, so that every tool shows them, else bytes.
fn create_part(transaction: &Transaction<'_>, part: Part) -> rusqlite::Result<()> {
    transaction.execute_batch(&format!(
        "CREATE TABLE {} (\"offset\" INTEGER PRIMARY KEY, timestamp INTEGER NOT NULL, key NOT NULL, value, headers TEXT)",
        part.table()
    ))?;
    transaction.execute("INSERT INTO partitions (topic_id, partition) VALUES (?1, ?2)", params![part.topic, part.partition])?;
    Ok(())
}

/// The view is for people. Where the name is taken (SQLite ignores case) or reserved, it is `topic:` and the id.
fn create_view(transaction: &Transaction<'_>, name: &str, topic: &Topic) -> rusqlite::Result<()> {
    let taken: bool = transaction.query_row(
        "SELECT ?1 LIKE 'sqlite!_%' ESCAPE '!' OR EXISTS (SELECT 1 FROM sqlite_schema WHERE lower(name) = lower(?1))",
        [name],
        |row| row.get(0),
    )?;
    let mut sql = if taken { format!("CREATE VIEW \"topic:{}\" AS", topic.id) } else { format!("CREATE VIEW \"{name}\" AS") };
    for partition in 0..topic.partitions {
        let union = if partition == 0 { "" } else { " UNION ALL" };
        let _ = write!(
            sql,
            "{union} SELECT {partition} AS partition, \"offset\", \
             coalesce(strftime('%Y-%m-%dT%H:%M:%fZ', timestamp / 1000.0, 'unixepoch'), timestamp) AS timestamp, \
             key, value, headers FROM {}",
            topic.part(partition).table()
        );
    }
    transaction.execute_batch(&sql)
}

/// The offset behind the last record that was ever committed to the partition.
pub(super) fn next_offset(connection: &Connection, part: Part) -> rusqlite::Result<i64> {
    let mut statement = connection.prepare_cached("SELECT next_offset FROM partitions WHERE topic_id = ?1 AND partition = ?2")?;
    statement.query_row(params![part.topic, part.partition], |row| row.get(0))
}

/// An error for a topic that must exist.
pub(super) fn unknown(name: &str) -> Error {
    Error::new(&shared::TOPIC_UNKNOWN, "there is no such topic")
        .at("topic", name)
        .hint("Check the spelling; `headwater plan` lists the topics.")
}

/// An error for a partition that must exist.
pub(super) fn unknown_partition(name: &str, partition: u32, partitions: u32) -> Error {
    let what = format!("there is no partition {partition}; the topic has {partitions}");
    Error::new(&shared::TOPIC_UNKNOWN, what).at("topic", name).hint("Count partitions from 0.")
}
