//! What a source hands over: changes that point into two arenas.
//!
//! A batch owns one byte arena and one cell arena and is used again after it was published, so that neither a row nor a
//! column costs an allocation.

use std::{ops::Range, sync::Arc};

use crate::{Position, Schema};

/// Memory that is kept for making a text.
const DRAFT_BYTES: usize = 1 << 20;

/// The value of one column as the source saw it.
///
/// Text is canonical for the column's [`Type`](crate::Type), so that no format needs to know the source:
/// integers and decimals are plain digits, floats are JSON numbers or `NaN`, `Infinity`, `-Infinity`;
/// dates, times and timestamps are ISO 8601 (`2026-01-02T03:04:05.123456Z`, no `Z` without a zone) with all digits of the column,
/// or `infinity`, `-infinity`, or the source's own text where the year is outside 0001 to 9999;
/// everything else is the source's exact text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// SQL NULL
    Null,
    /// The log does not carry the value because it did not change. Never the same as NULL.
    Unchanged,
    /// A boolean
    Bool(bool),
    /// A signed integer
    Int(i64),
    /// An unsigned integer
    Uint(u64),
    /// Canonical text of the column's type
    Text(&'a str),
    /// Raw bytes
    Bytes(&'a [u8]),
    /// Compact, valid JSON: a json column, or an array with its elements by the JSON rules of their type
    Json(&'a str),
    /// Bytes that cannot be a value of the column's type, for example text that is not UTF-8.
    /// The connector's data policy decides what happens to the row.
    Invalid(&'a [u8]),
}

#[derive(Clone, Copy, Debug)]
enum Cell {
    Null,
    Unchanged,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Text(u32, u32),
    Bytes(u32, u32),
    Json(u32, u32),
    Invalid(u32, u32),
}

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// A new row
    Insert,
    /// A changed row
    Update,
    /// A removed row
    Delete,
    /// A row that was read, not changed
    Read,
    /// All rows of the table are gone
    Truncate,
}

/// The cells of one row image: as many as the schema has columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    start: u32,
    len: u32,
}

/// The row before the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// The log does not carry it: the key did not change.
    None,
    /// Only the columns of the key (or replica identity) are true; the others are [`Value::Unchanged`].
    Key(Row),
    /// All columns.
    Full(Row),
}

impl Before {
    /// The row image, whichever it is.
    pub const fn row(self) -> Option<Row> {
        match self {
            Self::None => None,
            Self::Key(row) | Self::Full(row) => Some(row),
        }
    }
}

/// One change of one row (or one truncated table).
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// What happened.
    pub op: Op,
    /// Index into [`Batch::schemas`].
    pub schema: u32,
    /// Index into [`Batch::transactions`].
    pub transaction: u32,
    /// Which raw row message of the source transaction this came from, counted from 0 before any filter.
    /// Changes of one raw message share the number.
    pub ordinal: u64,
    /// The row before: for updates that changed the key or carry the old row, and for deletes.
    pub before: Before,
    /// The row after: for inserts, updates and reads.
    pub after: Option<Row>,
}

/// A source transaction that has changes in the batch.
#[derive(Clone, Debug)]
pub struct TransactionInfo {
    id: Range<u32>,
    /// When it committed, in microseconds since 1970 UTC.
    pub commit_time_us: i64,
}

/// Changes in commit order, and the position behind them.
///
/// A source appends whole source transactions. Only a transaction that alone exceeds the limits is cut, between two raw messages.
/// A batch without changes but with a position is progress: nothing of interest happened up to there.
#[derive(Debug, Default)]
pub struct Batch {
    /// Apart from other bytes, so that text is known to be UTF-8 and need not be looked at again whenever it is used.
    text: String,
    bytes: Vec<u8>,
    /// Where text is made, used again.
    draft: Vec<u8>,
    cells: Vec<Cell>,
    changes: Vec<Change>,
    transactions: Vec<TransactionInfo>,
    schemas: Vec<Arc<Schema>>,
    position: Option<Position>,
}

/// A place in a batch to go back to; see [`Batch::mark`].
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    text: usize,
    bytes: usize,
    cells: usize,
    changes: usize,
    transactions: usize,
    schemas: usize,
}

impl Batch {
    /// Remembers where the batch ends now.
    pub fn mark(&self) -> Mark {
        Mark {
            text: self.text.len(),
            bytes: self.bytes.len(),
            cells: self.cells.len(),
            changes: self.changes.len(),
            transactions: self.transactions.len(),
            schemas: self.schemas.len(),
        }
    }

    /// Drops everything behind `mark`, which this batch gave since it was cleared: a transaction that turns out to be unusable
    /// goes, and the ones before it can still be published.
    pub fn rewind(&mut self, mark: Mark) {
        self.text.truncate(mark.text);
        self.bytes.truncate(mark.bytes);
        self.cells.truncate(mark.cells);
        self.changes.truncate(mark.changes);
        self.transactions.truncate(mark.transactions);
        self.schemas.truncate(mark.schemas);
    }

    /// Empties the batch and keeps its memory, unless one huge row made it larger than `keep_bytes`.
    pub fn clear(&mut self, keep_bytes: usize) {
        self.text.clear();
        self.bytes.clear();
        self.cells.clear();
        self.changes.clear();
        self.transactions.clear();
        self.schemas.clear();
        self.position = None;
        self.text.shrink_to(keep_bytes);
        self.bytes.shrink_to(keep_bytes);
        self.cells.shrink_to(keep_bytes / size_of::<Cell>());
    }

    /// Begins a source transaction. `id` is unique per transaction and says where it committed.
    pub fn begin_transaction(&mut self, id: &str, commit_time_us: i64) {
        let id = self.push_str(id);
        self.transactions.push(TransactionInfo { id: id.0..id.0 + id.1, commit_time_us });
    }

    /// Makes a schema known and returns its index. The latest is found first; a batch knows few.
    ///
    /// Of a table whose rows may have been rewritten without a change of each, the next change has another `Arc`, also if it says the
    /// same. A value that the log does not carry is taken for the one before only under the same `Arc`.
    pub fn schema_index(&mut self, schema: &Arc<Schema>) -> u32 {
        let found = self.schemas.iter().rposition(|known| Arc::ptr_eq(known, schema));
        let index = found.unwrap_or_else(|| {
            self.schemas.push(Arc::clone(schema));
            self.schemas.len() - 1
        });
        index as u32
    }

    /// Begins a row image; push one value per column, then [`end_row`](Self::end_row).
    pub fn begin_row(&self) -> u32 {
        self.cells.len() as u32
    }

    /// Ends the row image that began at `start`.
    pub fn end_row(&self, start: u32) -> Row {
        Row { start, len: self.cells.len() as u32 - start }
    }

    /// Appends a value to the row image. Text and bytes are copied into the arena.
    pub fn push(&mut self, value: Value<'_>) {
        let cell = match value {
            Value::Null => Cell::Null,
            Value::Unchanged => Cell::Unchanged,
            Value::Bool(value) => Cell::Bool(value),
            Value::Int(value) => Cell::Int(value),
            Value::Uint(value) => Cell::Uint(value),
            Value::Text(text) => {
                let (start, len) = self.push_str(text);
                Cell::Text(start, len)
            }
            Value::Bytes(bytes) => {
                let (start, len) = self.push_bytes(bytes);
                Cell::Bytes(start, len)
            }
            Value::Json(text) => {
                let (start, len) = self.push_str(text);
                Cell::Json(start, len)
            }
            Value::Invalid(bytes) => {
                let (start, len) = self.push_bytes(bytes);
                Cell::Invalid(start, len)
            }
        };
        self.cells.push(cell);
    }

    /// Appends canonical text that `write` produces straight into the arena. What it writes must be UTF-8.
    /// After an error the batch holds a torn row and must be dropped.
    ///
    /// # Panics
    /// If what it writes is not UTF-8: that is a bug of the source.
    pub fn push_text_with<E>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        let (start, len) = self.write_text_with(write)?;
        self.cells.push(Cell::Text(start, len));
        Ok(())
    }

    /// Like [`push_text_with`](Self::push_text_with), for compact JSON.
    pub fn push_json_with<E>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        let (start, len) = self.write_text_with(write)?;
        self.cells.push(Cell::Json(start, len));
        Ok(())
    }

    /// Like [`push_text_with`](Self::push_text_with), for raw bytes.
    pub fn push_bytes_with<E>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        let start = self.bytes.len();
        write(&mut self.bytes)?;
        let (start, len) = Self::span(start, self.bytes.len());
        self.cells.push(Cell::Bytes(start, len));
        Ok(())
    }

    /// Appends a change of the transaction begun last.
    ///
    /// # Panics
    /// If no transaction was begun: that is a bug of the source.
    pub fn push_change(&mut self, op: Op, schema: u32, ordinal: u64, before: Before, after: Option<Row>) {
        assert!(!self.transactions.is_empty(), "a change needs a transaction");
        let transaction = self.transactions.len() as u32 - 1;
        self.changes.push(Change { op, schema, transaction, ordinal, before, after });
    }

    /// Sets the position behind everything in the batch.
    pub fn set_position(&mut self, position: Position) {
        self.position = Some(position);
    }

    /// The position behind everything in the batch; none if it is empty and brings no progress.
    pub fn position(&self) -> Option<&Position> {
        self.position.as_ref()
    }

    /// The changes in commit order.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// The schemas that changes refer to.
    pub fn schemas(&self) -> &[Arc<Schema>] {
        &self.schemas
    }

    /// The transactions that changes refer to.
    pub fn transactions(&self) -> &[TransactionInfo] {
        &self.transactions
    }

    /// The id of a transaction.
    pub fn transaction_id(&self, transaction: &TransactionInfo) -> &str {
        self.text(transaction.id.start, transaction.id.end - transaction.id.start)
    }

    /// The bytes that the batch holds, for limits.
    pub fn size_bytes(&self) -> usize {
        self.text.len() + self.bytes.len() + self.cells.len() * size_of::<Cell>()
    }

    /// The values of a row image, in the order of the schema's columns.
    pub fn values(&self, row: Row) -> impl ExactSizeIterator<Item = Value<'_>> {
        self.cells[row.start as usize..(row.start + row.len) as usize].iter().map(|cell| self.value_of(*cell))
    }

    /// One value of a row image.
    pub fn value(&self, row: Row, column: usize) -> Value<'_> {
        assert!(column < row.len as usize, "a row has as many cells as its schema has columns");
        self.value_of(self.cells[row.start as usize + column])
    }

    fn value_of(&self, cell: Cell) -> Value<'_> {
        match cell {
            Cell::Null => Value::Null,
            Cell::Unchanged => Value::Unchanged,
            Cell::Bool(value) => Value::Bool(value),
            Cell::Int(value) => Value::Int(value),
            Cell::Uint(value) => Value::Uint(value),
            Cell::Text(start, len) => Value::Text(self.text(start, len)),
            Cell::Bytes(start, len) => Value::Bytes(&self.bytes[start as usize..(start + len) as usize]),
            Cell::Json(start, len) => Value::Json(self.text(start, len)),
            Cell::Invalid(start, len) => Value::Invalid(&self.bytes[start as usize..(start + len) as usize]),
        }
    }

    fn text(&self, start: u32, len: u32) -> &str {
        &self.text[start as usize..(start + len) as usize]
    }

    fn push_str(&mut self, text: &str) -> (u32, u32) {
        let start = self.text.len();
        self.text.push_str(text);
        Self::span(start, self.text.len())
    }

    fn push_bytes(&mut self, bytes: &[u8]) -> (u32, u32) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        Self::span(start, self.bytes.len())
    }

    fn write_text_with<E>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(u32, u32), E> {
        self.draft.clear();
        write(&mut self.draft)?;
        let text = std::str::from_utf8(&self.draft).expect("a writer of text promised UTF-8");
        let start = self.text.len();
        self.text.push_str(text);
        if self.draft.len() > DRAFT_BYTES {
            // One huge value must not be held twice until the batch is cleared.
            self.draft = Vec::new();
        }
        Ok(Self::span(start, self.text.len()))
    }

    fn span(start: usize, end: usize) -> (u32, u32) {
        // Sources keep a batch far below 4 GiB: the limits of `next_batch` are in the tens of MiB and a row is at most 1 GiB.
        let start = u32::try_from(start).expect("a batch stays below 4 GiB");
        let end = u32::try_from(end).expect("a batch stays below 4 GiB");
        (start, end - start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Column, Type};

    #[test]
    fn a_row_comes_back_as_it_was_pushed() {
        let schema = Arc::new(Schema {
            table: "t".into(),
            columns: vec![Column { name: "a".into(), r#type: Type::String, source_type: "text".into(), nullable: true }],
            key: vec![0],
        });
        let mut batch = Batch::default();
        batch.begin_transaction("7@1", 5);
        let index = batch.schema_index(&schema);
        assert_eq!(index, batch.schema_index(&schema));
        let start = batch.begin_row();
        batch.push(Value::Text("héllo"));
        let row = batch.end_row(start);
        batch.push_change(Op::Insert, index, 0, Before::None, Some(row));
        assert_eq!(batch.value(row, 0), Value::Text("héllo"));
        assert_eq!(batch.transaction_id(&batch.transactions()[0]), "7@1");
        let mark = batch.mark();
        batch.begin_transaction("8@2", 6);
        let start = batch.begin_row();
        batch.push(Value::Null);
        let row = batch.end_row(start);
        batch.push_change(Op::Delete, index, 0, Before::Key(row), None);
        batch.rewind(mark);
        assert_eq!((batch.changes().len(), batch.transactions().len()), (1, 1));
        batch.clear(1024);
        assert!(batch.changes().is_empty() && batch.position().is_none());
    }
}
