//! From replication messages to a batch: the state between two messages, and no IO.

use headwater_connector::{Batch, Before, Error, Mark, Op, Result, Row, Value, fault};

use crate::{
    codes,
    config::OnTruncate,
    decode,
    error::protocol,
    pgoutput::{self, Begin, Cell, Message, Old, Tuple},
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
    /// A transaction is complete.
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
    base: Lsn,
    resume: Option<Partial>,
    open: Option<Open>,
    /// End of the last transaction that had changes for us.
    changes_end: Lsn,
    id: String,
}

impl Decoder {
    /// Continues behind `place`.
    pub fn new(place: Place, on_truncate: OnTruncate) -> Self {
        Self {
            tables: Tables::default(),
            on_truncate,
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
                self.message(message, batch)
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
            Message::Logical { transactional: true } => self.count().map(|_| Event::Row),
            Message::Origin | Message::Type | Message::Logical { transactional: false } => Ok(Event::Nothing),
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
mod tests {
    use std::sync::Arc;

    use headwater_connector::{Column, Kind, Schema, Type};

    use super::*;
    use crate::{decode::Codec, relation::Table};

    fn frame(message: &[u8]) -> Vec<u8> {
        let mut bytes = vec![b'w'];
        bytes.resize(HEAD, 0);
        bytes.extend_from_slice(message);
        bytes
    }

    fn begin(xid: u32, commit: u64) -> Vec<u8> {
        let mut message = vec![b'B'];
        message.extend_from_slice(&commit.to_be_bytes());
        message.extend_from_slice(&0_i64.to_be_bytes());
        message.extend_from_slice(&xid.to_be_bytes());
        frame(&message)
    }

    fn commit(commit: u64, end: u64) -> Vec<u8> {
        let mut message = vec![b'C', 0];
        message.extend_from_slice(&commit.to_be_bytes());
        message.extend_from_slice(&end.to_be_bytes());
        message.extend_from_slice(&0_i64.to_be_bytes());
        frame(&message)
    }

    fn insert(relation: u32, cells: &[&str]) -> Vec<u8> {
        let mut message = vec![b'I'];
        message.extend_from_slice(&relation.to_be_bytes());
        message.push(b'N');
        message.extend_from_slice(&(cells.len() as u16).to_be_bytes());
        for cell in cells {
            message.push(b't');
            message.extend_from_slice(&(cell.len() as u32).to_be_bytes());
            message.extend_from_slice(cell.as_bytes());
        }
        frame(&message)
    }

    fn keepalive(end: u64) -> Vec<u8> {
        let mut bytes = vec![b'k'];
        bytes.extend_from_slice(&end.to_be_bytes());
        bytes.resize(18, 0);
        bytes
    }

    fn decoder(place: &str, codecs: Vec<Codec>) -> Decoder {
        let place = Place::from_position(&headwater_connector::Position::new(place)).unwrap();
        let mut decoder = Decoder::new(place, OnTruncate::Stop);
        let column = |_| Column { name: "c".into(), r#type: Type::String, source_type: "text".into(), nullable: true };
        let columns = codecs.iter().map(column).collect();
        let identity = vec![true; codecs.len()];
        let schema = Arc::new(Schema { table: "public.t".into(), columns, key: vec![0] });
        decoder.tables.put(Table { id: 1, raw: Vec::new(), shape: Some(Shape { schema, codecs, identity }) });
        decoder.tables.put(Table { id: 2, raw: Vec::new(), shape: None });
        decoder
    }

    fn feed(decoder: &mut Decoder, batch: &mut Batch, frames: &[Vec<u8>]) -> Result<Event> {
        let mut last = Event::Nothing;
        for frame in frames {
            last = decoder.apply(frame, batch)?;
        }
        Ok(last)
    }

    #[test]
    fn ordinals_count_before_the_filter_and_the_base_is_the_end_of_the_commit() {
        let (mut decoder, mut batch) = (decoder("1:0/10", vec![Codec::Text]), Batch::default());
        let frames = [begin(7, 0x20), insert(2, &["x"]), insert(1, &["y"])];
        assert_eq!(feed(&mut decoder, &mut batch, &frames).unwrap(), Event::Row);
        assert_eq!(batch.changes()[0].ordinal, 1);
        assert_eq!(decoder.place().to_string(), "1:0/10:7@0/20+2");
        assert_eq!(feed(&mut decoder, &mut batch, &[commit(0x20, 0x28)]).unwrap(), Event::Boundary);
        assert_eq!(decoder.place().to_string(), "1:0/28");
        assert_eq!(batch.transaction_id(&batch.transactions()[0]), "7@0/20");
    }

    #[test]
    fn a_partial_transaction_is_skipped_up_to_its_place() {
        let (mut decoder, mut batch) = (decoder("1:0/10:7@0/20+2", vec![Codec::Text]), Batch::default());
        feed(&mut decoder, &mut batch, &[keepalive(0x18), begin(7, 0x20), insert(1, &["x"])]).unwrap();
        assert_eq!(decoder.place().to_string(), "1:0/10:7@0/20+2", "not there yet, and not back either");
        feed(&mut decoder, &mut batch, &[insert(1, &["y"]), insert(1, &["z"]), commit(0x20, 0x28)]).unwrap();
        assert_eq!((batch.changes().len(), batch.changes()[0].ordinal), (1, 2));
    }

    #[test]
    fn what_does_not_fit_the_position_stops() {
        let code = |place: &str, frames: &[Vec<u8>]| {
            let error = feed(&mut decoder(place, vec![Codec::Text]), &mut Batch::default(), frames).unwrap_err();
            (error.code().id, error.kind())
        };
        let mismatch = (codes::PARTIAL_MISMATCH.id, Kind::Lost);
        assert_eq!(code("1:0/10:7@0/20+2", &[begin(8, 0x20)]), mismatch);
        assert_eq!(code("1:0/10:7@0/20+2", &[begin(7, 0x21)]), mismatch);
        assert_eq!(code("1:0/10:7@0/20+2", &[keepalive(0x21)]), mismatch);
        assert_eq!(code("1:0/10:7@0/20+2", &[begin(7, 0x20), insert(1, &["x"]), commit(0x20, 0x28)]), mismatch);
        assert_eq!(code("1:0/10", &[begin(7, 0xf)]), (codes::STREAM_BEHIND.id, Kind::Bug));
        let protocol = (codes::PROTOCOL.id, Kind::Bug);
        assert_eq!(code("1:0/10", &[insert(1, &["x"])]), protocol);
        assert_eq!(code("1:0/10", &[begin(7, 0x20), begin(8, 0x30)]), protocol);
        assert_eq!(code("1:0/10", &[begin(7, 0x20), insert(3, &["x"])]), protocol);
        assert_eq!(code("1:0/10", &[begin(7, 0x20), insert(1, &["x", "y"])]), protocol);
        assert_eq!(code("1:0/10", &[begin(7, 0x20), commit(0x30, 0x38)]), protocol);
        assert_eq!(code("1:0/10", &[frame(b"?")]), protocol);
    }

    #[test]
    fn a_keepalive_inside_a_transaction_is_no_progress() {
        let (mut decoder, mut batch) = (decoder("1:0/10", vec![Codec::Text]), Batch::default());
        feed(&mut decoder, &mut batch, &[begin(7, 0x20), keepalive(0xff)]).unwrap();
        assert_eq!(decoder.base(), Lsn(0x10));
        let last = feed(&mut decoder, &mut batch, &[commit(0x20, 0x28), keepalive(0xff)]).unwrap();
        assert_eq!((last, decoder.base()), (Event::Idle(Lsn(0xff)), Lsn(0xff)));
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_messages_never_panic(
            messages in proptest::collection::vec(
                (proptest::sample::select(b"BCIUDTMRO".to_vec()), proptest::collection::vec(0_u8..3, 0..40)), 0..12)
        ) {
            let (mut decoder, mut batch) = (decoder("1:0/10", vec![Codec::Text]), Batch::default());
            let _ = decoder.apply(&begin(7, 0x20), &mut batch);
            for (tag, rest) in messages {
                let _ = decoder.apply(&frame(&[&[tag][..], &rest].concat()), &mut batch);
                let _ = decoder.apply(&rest, &mut batch);
            }
            decoder.abandon(&mut batch);
        }
    }
}
