//! Appending: one SQLite transaction per log transaction, and one writer at a time.

use std::{collections::HashMap, path::Path, sync::Arc};

use async_trait::async_trait;
use headwater_connector::{Error, Result, fault};
use rusqlite::{
    CachedStatement, Connection, ToSql, Transaction as SqlTransaction, TransactionBehavior, params,
    types::{ToSqlOutput, ValueRef},
};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{
    blocking, codes,
    error::{Fault, said},
    file::{self, Durability, Files, Lock},
    headers,
    reader::Tails,
    topics::{self, Part, Topic},
};
use crate::log::{LogWriter, Record, Transaction, codes as shared};

/// All writing goes through this, behind one mutex: SQLite has one writer, and a connection of its own per connector would
/// only add caches that each commit of another one invalidates.
pub(super) struct WriteSide {
    /// None after an error: the next use opens the file anew, so no doubtful state is carried on.
    connection: Option<Connection>,
    topics: HashMap<String, Topic>,
    headers: Vec<u8>,
    files: Files,
    identity: (u64, u64),
    tails: Arc<Tails>,
    /// Last, so that the connection is closed before a successor can get in. Held here, so that it outlasts a commit
    /// whose caller has gone away.
    _lock: Lock,
}

/// The write side as components share it.
pub(super) type SharedWriteSide = Arc<Mutex<WriteSide>>;

impl WriteSide {
    /// Takes the lock and opens the file, creating both where they are new.
    pub(super) fn open(files: &Files, tails: Arc<Tails>) -> Result<Self> {
        files.create_dir()?;
        let lock = file::take_lock(files)?;
        let connection = file::create_database(files)?;
        let topics =
            topics::all(&connection).map_err(|error| Fault::from(error).name(&files.database(), "cannot list topics"))?;
        let identity = files.identity().map_err(|error| replaced(&files.database()).caused_by(error))?;
        let files = files.clone();
        Ok(Self { connection: Some(connection), topics, headers: Vec::new(), files, identity, tails, _lock: lock })
    }

    /// Runs `work` on the connection; after an error of SQLite the connection is given up.
    pub(super) fn with<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&mut Connection, &mut HashMap<String, Topic>) -> Result<T, Fault>,
    ) -> Result<T> {
        self.verify_identity()?;
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => file::open_for_writing(&self.files, Durability::EachCommit)?,
        };
        let result = work(&mut connection, &mut self.topics);
        if !matches!(result, Err(Fault::Sqlite(_))) && connection.is_autocommit() {
            self.connection = Some(connection);
        }
        result.map_err(|fault| fault.name(&self.files.database(), doing))
    }

    /// What is appended to a file that was removed would vanish with the process, after it was reported as durable.
    pub(super) fn verify_identity(&self) -> Result<()> {
        match self.files.identity() {
            Ok(identity) if identity == self.identity => Ok(()),
            Ok(_) => Err(replaced(&self.files.database())),
            Err(error) => Err(replaced(&self.files.database()).caused_by(error)),
        }
    }

    fn commit(&mut self, owner: &Owner, transaction: &Transaction) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.headers);
        let database = self.files.database();
        let ends = self.with("cannot append to the log", |connection, topics| {
            let sql = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            verify_epoch(&sql, owner)?;
            fault::point("C5");
            let mut appender = Appender { topics, transaction, headers: &mut buffer, slots: Vec::new() };
            for (number, record) in transaction.records().iter().enumerate() {
                appender.append(&sql, record)?;
                if number == transaction.records().len() / 2 {
                    fault::point("C6");
                }
            }
            let ends = appender.finish(&sql)?;
            fault::point("C7");
            if transaction.changes_a_schema() {
                fault::point("C25");
            }
            sql.commit().map_err(|error| in_doubt(&database, error))?;
            fault::point("C8");
            Ok(ends)
        });
        self.headers = buffer;
        if ends.as_ref().is_err_and(|error| std::ptr::eq(error.code(), &shared::COMMIT_IN_DOUBT)) {
            self.connection = None;
        }
        self.tails.moved(&ends?);
        Ok(())
    }
}

/// Whether a failed COMMIT reached the disk is not known, except that a full disk leaves nothing.
fn in_doubt(database: &Path, error: rusqlite::Error) -> Fault {
    if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull) {
        return error.into();
    }
    Error::new(&shared::COMMIT_IN_DOUBT, "the log did not confirm a commit")
        .at("file", database.display())
        .hint("Look at the disk below `log.path` if this stays; headwater reads the checkpoint and goes on.")
        .caused_by(said(&error))
        .into()
}

fn replaced(database: &Path) -> Error {
    Error::new(&codes::REPLACED, "log.db is not the file any more that this daemon opened")
        .at("file", database.display())
        .hint("Restart the daemon; stop it before you replace the file.")
}

/// Who writes.
struct Owner {
    connector: String,
    epoch: i64,
}

/// In the same transaction as the records, so that an older writer cannot slip in between check and commit.
fn verify_epoch(sql: &SqlTransaction<'_>, owner: &Owner) -> Result<(), Fault> {
    let mut statement = sql.prepare_cached("SELECT epoch FROM owners WHERE connector = ?1")?;
    let epoch: i64 = statement.query_row([&owner.connector], |row| row.get(0))?;
    if epoch == owner.epoch {
        return Ok(());
    }
    Err(Error::new(&shared::FENCED, format!("a newer writer has epoch {epoch}, this one has {}", owner.epoch))
        .at("connector", &owner.connector)
        .hint("Find out which of the two should run and stop the other.")
        .into())
}

/// Raises the connector's epoch, which fences every older writer.
///
/// In an explicit transaction: a statement that returns a row commits when it is reset, and the driver does not report
/// a reset that fails. On a full disk that left a writer with an epoch that the file did not have.
fn take_over(connection: &mut Connection, connector: &str) -> Result<i64, Fault> {
    let sql = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let epoch = sql.query_row(
        "INSERT INTO owners (connector, epoch) VALUES (?1, 1) ON CONFLICT DO UPDATE SET epoch = epoch + 1 RETURNING epoch",
        [connector],
        |row| row.get(0),
    )?;
    fault::point("C2");
    sql.commit()?;
    Ok(epoch)
}

/// Rows that one statement appends, if there are so many for a partition: to begin a statement, to find its table's end and to end it
/// costs as much as a row.
const ROWS: usize = 16;

/// Appends the records of one transaction.
struct Appender<'a> {
    topics: &'a HashMap<String, Topic>,
    transaction: &'a Transaction,
    headers: &'a mut Vec<u8>,
    /// By the transaction's topic index, then by partition; filled where a record goes.
    slots: Vec<Vec<Option<Slot<'a>>>>,
}

/// A partition that this transaction appends to.
struct Slot<'a> {
    /// For one row.
    insert: CachedStatement<'a>,
    /// For [`ROWS`], once there have been as many.
    insert_many: Option<CachedStatement<'a>>,
    part: Part,
    next_offset: i64,
    /// Records that are not appended yet; fewer than `ROWS`.
    waiting: Vec<&'a Record>,
}

impl<'a> Appender<'a> {
    fn append(&mut self, sql: &'a SqlTransaction<'_>, record: &'a Record) -> Result<(), Fault> {
        let (topic, partition) = (record.topic as usize, record.partition as usize);
        if !matches!(self.slots.get(topic).and_then(|slots| slots.get(partition)), Some(Some(_))) {
            self.fill(sql, record)?;
        }
        let slot = self.slots[topic][partition].as_mut().expect("the slot was filled above");
        slot.waiting.push(record);
        if slot.waiting.len() == ROWS {
            let mut insert = match slot.insert_many.take() {
                Some(insert) => insert,
                None => sql.prepare_cached(&insert_into(slot.part, ROWS))?,
            };
            slot.next_offset = insert_rows(&mut insert, self.transaction, &slot.waiting, slot.next_offset, self.headers)?;
            slot.waiting.clear();
            slot.insert_many = Some(insert);
        }
        Ok(())
    }

    fn fill(&mut self, sql: &'a SqlTransaction<'_>, record: &Record) -> Result<(), Fault> {
        let name = &*self.transaction.topics()[record.topic as usize];
        let topic = self.topics.get(name).ok_or_else(|| topics::unknown(name))?;
        if record.partition >= topic.partitions {
            return Err(topics::unknown_partition(name, record.partition, topic.partitions).into());
        }
        let part = topic.part(record.partition);
        // Another connector may write to the same topic, so the file is asked in each transaction.
        let next_offset = topics::next_offset(sql, part)?;
        let insert = sql.prepare_cached(&insert_into(part, 1))?;
        let index = record.topic as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, Vec::new);
        }
        let slots = &mut self.slots[index];
        if slots.is_empty() {
            slots.resize_with(topic.partitions as usize, || None);
        }
        let slot = Slot { insert, insert_many: None, part, next_offset, waiting: Vec::with_capacity(ROWS) };
        slots[record.partition as usize] = Some(slot);
        Ok(())
    }

    /// Appends what waits, stores how far the partitions go now, and says which moved.
    fn finish(self, sql: &SqlTransaction<'_>) -> Result<Vec<Part>, Fault> {
        let mut update = sql.prepare_cached("UPDATE partitions SET next_offset = ?3 WHERE topic_id = ?1 AND partition = ?2")?;
        let mut moved = Vec::new();
        for mut slot in self.slots.into_iter().flatten().flatten() {
            for record in slot.waiting.chunks(1) {
                slot.next_offset = insert_rows(&mut slot.insert, self.transaction, record, slot.next_offset, self.headers)?;
            }
            update.execute(params![slot.part.topic, slot.part.partition, slot.next_offset])?;
            moved.push(slot.part);
        }
        Ok(moved)
    }
}

fn insert_into(part: Part, rows: usize) -> String {
    let values = vec!["(?, ?, ?, ?, ?)"; rows].join(", ");
    format!("INSERT INTO {} (\"offset\", timestamp, key, value, headers) VALUES {values}", part.table())
}

/// Appends as many records as the statement has rows. The offset behind them.
fn insert_rows(
    insert: &mut CachedStatement<'_>,
    transaction: &Transaction,
    records: &[&Record],
    mut offset: i64,
    buffer: &mut Vec<u8>,
) -> rusqlite::Result<i64> {
    for (row, record) in records.iter().enumerate() {
        headers::encode(buffer, transaction, record);
        let first = row * 5 + 1;
        insert.raw_bind_parameter(first, offset)?;
        insert.raw_bind_parameter(first + 1, record.timestamp_ms)?;
        insert.raw_bind_parameter(first + 2, Bytes(transaction.bytes(record.key)))?;
        insert.raw_bind_parameter(first + 3, record.value.map(|value| Bytes(transaction.bytes(value))))?;
        insert.raw_bind_parameter(first + 4, (!buffer.is_empty()).then_some(Bytes(buffer)))?;
        offset += 1;
    }
    insert.raw_execute()?;
    Ok(offset)
}

/// Text where it is UTF-8, else a blob; either way bound without a copy on our side.
struct Bytes<'a>(&'a [u8]);

impl ToSql for Bytes<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        // Most is ASCII, which is told much faster.
        let value = if self.0.is_ascii() || std::str::from_utf8(self.0).is_ok() {
            ValueRef::Text(self.0)
        } else {
            ValueRef::Blob(self.0)
        };
        Ok(ToSqlOutput::Borrowed(value))
    }
}

/// The writer of one connector.
pub(super) struct EmbeddedWriter {
    side: SharedWriteSide,
    owner: Arc<Owner>,
    useless: bool,
}

impl EmbeddedWriter {
    /// Fences every older writer. Their last transaction is over when this returns, because it waited for the mutex.
    pub(super) async fn open(side: SharedWriteSide, connector: &str) -> Result<Self> {
        let connector = connector.to_owned();
        let guard = Arc::clone(&side).lock_owned().await;
        let owner = blocking(move || {
            let mut guard = guard;
            let epoch = guard.with("cannot take over the log", |connection, _| take_over(connection, &connector))?;
            Ok(Owner { connector, epoch })
        })
        .await?;
        Ok(Self { side, owner: Arc::new(owner), useless: false })
    }
}

#[async_trait]
impl LogWriter for EmbeddedWriter {
    async fn commit(&mut self, transaction: Transaction) -> Result<Transaction> {
        if self.useless {
            return Err(Error::new(&shared::COMMIT_IN_DOUBT, "the writer is used after an error")
                .at("connector", &self.owner.connector)
                .hint("Open the connector again."));
        }
        // Stays so if this future is dropped halfway: the commit then runs to its end without us.
        self.useless = true;
        let owner = Arc::clone(&self.owner);
        let mut guard: OwnedMutexGuard<WriteSide> = Arc::clone(&self.side).lock_owned().await;
        let transaction = blocking(move || {
            guard.commit(&owner, &transaction)?;
            Ok(transaction)
        })
        .await?;
        self.useless = false;
        Ok(transaction)
    }

    async fn close(self: Box<Self>) {
        // Each commit was complete when it returned; there is nothing to leave behind.
    }
}
