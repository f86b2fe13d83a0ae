//! From replication messages to a batch: the state between two messages, and no IO.

use headwater_connector::{Batch, Before, Error, Mark, Op, Result, Row, Value, fault};

use crate::{
    codes,
    config::OnTruncate,
    decode,
    error::protocol,
    message::Messages,
    pgoutput::{self, Begin, Cell, EPOCH_2000_US, Logical, Message, Old, Tuple},
    position::{Lsn, Partial, Place},
    relation::{Shape, Stale, Tables},
    wire::{Cursor, Torn},
};

/// Bytes of an XLogData message in front of the plugin's message.
pub const HEAD: usize = 25;

/// What a message meant for the caller's loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing to decide.
    Nothing,
    /// A raw row message was taken; the batch may have outgrown its limits.
    Row,
    /// A transaction, or a message outside of any, is complete.
    Boundary,
    /// A table is described; the caller looks up what is missing and puts it into `tables`.
    Relation,
    /// A row has a label that its column is not known to have, and was not taken; the caller looks the labels up and applies the
    /// message again.
    Stale(Stale),
    /// Outside a transaction the server has read its log up to here.
    Idle(Lsn),
}

/// A transaction that has begun.
struct Open {
    begin: Begin,
    /// Ordinal of the next raw row message (invariant 4: counted before any filter).
    ordinal: u64,
    /// Raw messages that were published before a restart.
    skip: u64,
    /// Where it began in this batch; where the batch begins, if it was cut.
    mark: Mark,
    mark_bytes: usize,
    mark_changes: usize,
    /// Whether this batch knows it.
    announced: bool,
}

/// See the module's page.
pub struct Decoder {
    /// The tables described so far.
    pub tables: Tables,
    on_truncate: OnTruncate,
    messages: Option<Messages>,
    base: Lsn,
    resume: Option<Partial>,
    open: Option<Open>,
    /// End of the last transaction that had changes for us.
    changes_end: Lsn,
    id: String,
}

impl Decoder {
    /// Continues behind `place`.
    pub fn new(place: Place, on_truncate: OnTruncate, messages: Option<Messages>) -> Self {
        Self {
            tables: Tables::default(),
            on_truncate,
            messages,
            base: place.base,
            resume: place.partial,
            open: None,
            changes_end: place.base,
            id: String::new(),
        }
    }

    /// End of the last complete transaction, or further if the server was idle since.
    pub fn base(&self) -> Lsn {
        self.base
    }

    /// End of the last complete transaction that had changes for us.
    pub fn changes_end(&self) -> Lsn {
        self.changes_end
    }

    /// Where a batch that ends here stands.
    pub fn place(&self) -> Place {
        let partial = self.open.as_ref().filter(|open| open.ordinal > 0 || open.skip > 0).map(|open| Partial {
            xid: open.begin.xid,
            commit: open.begin.commit,
            // Messages before the resume point are published whether they were passed again yet or not.
            done: open.ordinal.max(open.skip),
        });
        // A partial position that was not reached again yet stays as it is.
        Place { base: self.base, partial: partial.or(self.resume) }
    }

    /// Whether the batch holds changes of a transaction that is not complete.
    pub fn is_torn(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.announced)
    }

    /// Whether everything that was begun is complete.
    pub fn is_between(&self) -> bool {
        self.open.is_none() && self.resume.is_none()
    }

    /// Begins an empty batch.
    pub fn begin_batch(&mut self, batch: &Batch) {
        if let Some(open) = &mut self.open {
            (open.announced, open.mark, open.mark_bytes, open.mark_changes) = (false, batch.mark(), 0, 0);
        }
    }

    /// Whether the open transaction alone has as much as a batch may.
    pub fn has_outgrown(&self, batch: &Batch, max_bytes: usize, max_changes: usize) -> bool {
        self.open.as_ref().is_some_and(|open| {
            batch.size_bytes() - open.mark_bytes >= max_bytes || batch.changes().len() - open.mark_changes >= max_changes
        })
    }

    /// After an error: takes the open transaction out of the batch. What is left ends at a transaction boundary.
    /// The decoder cannot go on.
    pub fn abandon(&mut self, batch: &mut Batch) {
        if let Some(open) = self.open.take() {
            batch.rewind(open.mark);
        }
    }

    /// Takes one replication message.
    #[inline]
    pub fn apply(&mut self, frame: &[u8], batch: &mut Batch) -> Result<Event> {
        match frame.first() {
            Some(b'w') => {
                let message = frame.get(HEAD..).ok_or(Torn).and_then(pgoutput::parse).map_err(|Torn| torn())?;
                match message {
                    Message::Logical(message) if !message.transactional => self.lone(&message, sent_us(frame), batch),
                    message => self.message(message, batch),
                }
            }
            Some(b'k') => self.keepalive(frame),
            _ => Err(torn()),
        }
    }

    fn keepalive(&mut self, frame: &[u8]) -> Result<Event> {
        let end = Cursor::new(&frame[1..]).u64().map(Lsn).map_err(|Torn| torn())?;
        if self.open.is_some() {
            // P25: in the middle of a transaction it says nothing about what we have.
            return Ok(Event::Nothing);
        }
        if let Some(partial) = self.resume {
            // The server is past the place where the rest of the transaction should have come.
            if end > partial.commit {
                return Err(mismatch(partial, "nothing at its place"));
            }
            return Ok(Event::Nothing);
        }
        self.base = self.base.max(end);
        Ok(Event::Idle(end))
    }

    fn message(&mut self, message: Message<'_>, batch: &mut Batch) -> Result<Event> {
        match message {
            Message::Insert { relation, new } => self.row(batch, relation, Op::Insert, Old::None, Some(new)),
            Message::Update { relation, old, new } => self.row(batch, relation, Op::Update, old, Some(new)),
            Message::Delete { relation, old } => self.row(batch, relation, Op::Delete, old, None),
            Message::Begin(begin) => self.begin(begin, batch),
            Message::Commit { commit, end } => self.commit(commit, end),
            Message::Relation(_) => Ok(Event::Relation),
            Message::Truncate { relations } => self.truncate(batch, relations),
            Message::Logical(message) => self.logical(&message, batch),
            Message::Origin | Message::Type => Ok(Event::Nothing),
        }
    }

    fn begin(&mut self, begin: Begin, batch: &Batch) -> Result<Event> {
        if self.open.is_some() {
            return Err(protocol("a transaction begins inside another"));
        }
        // Start rule 1.5(6): what was published must not come again.
        if begin.commit < self.base && !fault::variant("resume-where-the-slot-stands") {
            return Err(Error::new(&codes::STREAM_BEHIND, "the server sent a transaction from before the position")
                .at("position", self.base)
                .at("transaction", id(&begin)));
        }
        let skip = match self.resume.take() {
            None => 0,
            Some(partial) if (partial.xid, partial.commit) == (begin.xid, begin.commit) => partial.done,
            Some(partial) => return Err(mismatch(partial, &id(&begin))),
        };
        self.open = Some(Open {
            begin,
            ordinal: 0,
            skip,
            mark: batch.mark(),
            mark_bytes: batch.size_bytes(),
            mark_changes: batch.changes().len(),
            announced: false,
        });
        Ok(Event::Nothing)
    }

    fn commit(&mut self, commit: Lsn, end: Lsn) -> Result<Event> {
        let Some(open) = self.open.take() else { return Err(protocol("a transaction ends that did not begin")) };
        if open.begin.commit != commit || end < commit {
            return Err(protocol("a transaction ends at another place than it said"));
        }
        if open.ordinal < open.skip {
            let partial = Partial { xid: open.begin.xid, commit, done: open.skip };
            return Err(mismatch(partial, &format!("it with only {} messages", open.ordinal)));
        }
        self.base = end;
        if open.announced || open.skip > 0 {
            self.changes_end = end;
        }
        Ok(Event::Boundary)
    }

    /// Counts a raw row message. Its ordinal, or none if it was published before the restart.
    #[inline]
    fn count(&mut self) -> Result<Option<u64>> {
        let Some(open) = &mut self.open else { return Err(protocol("a row comes outside a transaction")) };
        let ordinal = open.ordinal;
        open.ordinal += 1;
        Ok((ordinal >= open.skip).then_some(ordinal))
    }

    fn announce(&mut self, batch: &mut Batch) {
        if let Some(open) = self.open.as_mut().filter(|open| !open.announced) {
            use std::fmt::Write;
            self.id.clear();
            // Writing to a String cannot fail.
            let _ = write!(self.id, "{}@{}", open.begin.xid, open.begin.commit);
            batch.begin_transaction(&self.id, open.begin.commit_time_us);
            open.announced = true;
        }
    }

    fn row(&mut self, batch: &mut Batch, relation: u32, op: Op, old: Old<'_>, new: Option<Tuple<'_>>) -> Result<Event> {
        let Some(ordinal) = self.count()? else { return Ok(Event::Nothing) };
        let Some(at) = self.tables.find(relation) else { return Err(protocol("a row's table was not described")) };
        if self.tables.get(at).shape.is_none() {
            return Ok(Event::Row);
        }
        self.announce(batch);
        let Some(shape) = &self.tables.get(at).shape else { return Ok(Event::Row) };
        let mark = batch.mark();
        match push_change(batch, shape, op, ordinal, old, new) {
            Ok(()) => Ok(Event::Row),
            Err(Fault::Label { column, label }) => {
                batch.rewind(mark);
                self.open.iter_mut().for_each(|open| open.ordinal = ordinal);
                Ok(Event::Stale(Stale { table: relation, column, label }))
            }
            Err(fault) => Err(fault.into_error(shape, self.open.as_ref().map(|open| id(&open.begin)))),
        }
    }

    /// A message of the open transaction.
    fn logical(&mut self, message: &Logical<'_>, batch: &mut Batch) -> Result<Event> {
        let Some(ordinal) = self.count()? else { return Ok(Event::Nothing) };
        if self.messages.as_ref().is_some_and(|messages| messages.take(message.prefix)) {
            self.announce(batch);
            self.messages.iter().for_each(|messages| messages.push(batch, ordinal, message));
        }
        Ok(Event::Row)
    }

    /// A message outside of any transaction, which is one of its own here, published by its own place.
    ///
    /// The server sends such a message when it reads its record, and a transaction when it reads the record of its commit. So they come
    /// in the order in which these records end, whichever transactions are open meanwhile: everything that ends before the message was
    /// sent before it, everything else begins its last record behind it. Its end is therefore a base like the end of a commit. The
    /// server resumes with the records that begin there, which leaves out this message, and nothing that was not sent.
    fn lone(&mut self, message: &Logical<'_>, sent_us: i64, batch: &mut Batch) -> Result<Event> {
        if self.open.is_some() {
            return Err(protocol("a message outside of transactions comes inside one"));
        }
        if let Some(partial) = self.resume.filter(|partial| message.end > partial.commit) {
            return Err(mismatch(partial, "a message from behind it"));
        }
        // What ends at or before the base is published.
        if message.end <= self.base {
            return Ok(Event::Nothing);
        }
        self.base = message.end;
        let Some(messages) = self.messages.as_ref().filter(|messages| messages.take(message.prefix)) else {
            return Ok(Event::Nothing);
        };
        batch.begin_transaction(&format!("message@{}", message.end), sent_us);
        messages.push(batch, 0, message);
        self.changes_end = message.end;
        Ok(Event::Boundary)
    }

    fn truncate(&mut self, batch: &mut Batch, relations: &[u8]) -> Result<Event> {
        let Some(ordinal) = self.count()? else { return Ok(Event::Nothing) };
        let mut shapes = Vec::new();
        for oid in relations.chunks_exact(4) {
            let oid = u32::from_be_bytes([oid[0], oid[1], oid[2], oid[3]]);
            let Some(at) = self.tables.find(oid) else { return Err(protocol("a truncated table was not described")) };
            if let Some(shape) = &self.tables.get(at).shape {
                shapes.push(std::sync::Arc::clone(&shape.schema));
            }
        }
        if shapes.is_empty() {
            return Ok(Event::Row);
        }
        if self.on_truncate == OnTruncate::Stop {
            let names: Vec<&str> = shapes.iter().map(|schema| schema.table.as_str()).collect();
            return Err(Error::new(&codes::TRUNCATE_STOPPED, "a table was truncated")
                .at("table", names.join(", "))
                .at("transaction", self.open.as_ref().map(|open| id(&open.begin)).unwrap_or_default())
                .hint(
                    "Set `on_truncate: event` to let truncates pass as events of their own, or take the table out of `tables`.",
                ));
        }
        self.announce(batch);
        for schema in shapes {
            let index = batch.schema_index(&schema);
            batch.push_change(Op::Truncate, index, ordinal, Before::None, None);
        }
        Ok(Event::Row)
    }
}

/// Why a row cannot be taken.
enum Fault {
    /// Not the form that the protocol prescribes.
    Torn,
    /// The row has another number of cells than its table has columns.
    Width,
    /// A cell is none of its column's labels.
    Label { column: usize, label: Option<String> },
}

impl From<Torn> for Fault {
    fn from(Torn: Torn) -> Self {
        Self::Torn
    }
}

impl Fault {
    #[cold]
    fn into_error(self, shape: &Shape, transaction: Option<String>) -> Error {
        let error = match self {
            Self::Torn | Self::Label { .. } => torn(),
            Self::Width => protocol("a row has another number of cells than its table has columns"),
        };
        error.at("table", &shape.schema.table).at("transaction", transaction.unwrap_or_default())
    }
}

fn push_change(
    batch: &mut Batch,
    shape: &Shape,
    op: Op,
    ordinal: u64,
    old: Old<'_>,
    new: Option<Tuple<'_>>,
) -> Result<(), Fault> {
    let (before, full) = match old {
        Old::None => (Before::None, None),
        Old::Key(tuple) => (Before::Key(push_row(batch, shape, tuple, true, None)?), None),
        Old::Full(tuple) => (Before::Full(push_row(batch, shape, tuple, false, None)?), Some(tuple)),
    };
    let after = match new {
        None => None,
        Some(tuple) => Some(push_row(batch, shape, tuple, false, full)?),
    };
    let index = batch.schema_index(&shape.schema);
    batch.push_change(op, index, ordinal, before, after);
    Ok(())
}

/// Appends a row image. Of an old key only the identity's columns mean something. Under a full identity a value that did not
/// change is taken from the old row (P1).
#[inline]
fn push_row(batch: &mut Batch, shape: &Shape, tuple: Tuple<'_>, key_only: bool, full: Option<Tuple<'_>>) -> Result<Row, Fault> {
    if usize::from(tuple.columns) != shape.codecs.len() {
        return Err(Fault::Width);
    }
    let mut cells = tuple;
    let start = batch.begin_row();
    for (at, codec) in shape.codecs.iter().enumerate() {
        let cell = match cells.next_cell()? {
            Cell::Unchanged => match full {
                Some(old) => nth_cell(old, at)?,
                None => Cell::Unchanged,
            },
            cell => cell,
        };
        match cell {
            _ if key_only && !shape.identity[at] => batch.push(Value::Unchanged),
            // Whether such a row stops the connector is the runtime's to decide.
            Cell::Text(raw) => match decode::push(batch, codec, raw) {
                Ok(()) => (),
                Err(decode::Bad) if codec.has_labels() => return Err(unknown_label(codec, at, raw)),
                Err(decode::Bad) => batch.push(Value::Invalid(raw)),
            },
            Cell::Null => batch.push(Value::Null),
            Cell::Unchanged => batch.push(Value::Unchanged),
        }
    }
    cells.end()?;
    Ok(batch.end_row(start))
}

#[cold]
fn unknown_label(codec: &decode::Codec, column: usize, raw: &[u8]) -> Fault {
    let label = std::str::from_utf8(raw).ok().filter(|_| matches!(codec, decode::Codec::Enum(_))).map(str::to_owned);
    Fault::Label { column, label }
}

fn nth_cell(mut tuple: Tuple<'_>, at: usize) -> Result<Cell<'_>, Torn> {
    for _ in 0..at {
        tuple.next_cell()?;
    }
    tuple.next_cell()
}

/// When the server sent it, in microseconds since 1970 UTC: a message outside of transactions has no time in the log.
fn sent_us(frame: &[u8]) -> i64 {
    let time = frame.get(HEAD - 8..HEAD).and_then(|time| time.try_into().ok()).map_or(0, i64::from_be_bytes);
    time.saturating_add(EPOCH_2000_US)
}

/// Names a transaction and where it committed; unique.
fn id(begin: &Begin) -> String {
    format!("{}@{}", begin.xid, begin.commit)
}

#[cold]
fn torn() -> Error {
    protocol("a replication message is torn or unknown")
}

fn mismatch(partial: Partial, found: &str) -> Error {
    let Partial { xid, commit, done } = partial;
    Error::new(
        &codes::PARTIAL_MISMATCH,
        format!("the server sends {found} instead of the rest of transaction {xid}@{commit} behind message {done}"),
    )
    .hint("Begin anew with `headwater reset`: the server's history is not the one that was published.")
}

#[cfg(test)]
mod tests;
