//! A batch of changes becomes the records of one log transaction.

use std::{collections::BTreeMap, io::Write, sync::Arc};

use headwater_connector::{Batch, Before, Change, Error, Kind, Op, Result, Row, Schema, codes as contract, fault, json};

use super::{
    Routes, codes,
    key::{KeyWriter, no_key},
    payload::PayloadWriter,
};
use crate::log::{Span, Transaction, checkpoint::TableState, partition::partition_of, topic::InternalTopics};

/// Key of the event that says that a table was emptied.
const TRUNCATE_KEY: &[u8] = br#"{"hw.truncate":true}"#;

/// Schemas kept ready beyond one per table, before the cache starts anew.
const SPARE_SCHEMAS: usize = 64;

/// Where in the history of a connector a log transaction stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of resets so far.
    pub era: u32,
    /// Sequence number of the log transaction.
    pub seq: u64,
}

/// What encoding a batch brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Events written, dead letters included.
    pub events: u64,
    /// Rows that went to the dead-letter topic.
    pub dead_letters: u64,
    /// Whether [`Encoder::tables`] changed, so that the checkpoint's state must be written.
    pub state_changed: bool,
}

/// What an event is about.
pub struct Keys<'a> {
    /// The key's bytes.
    pub key: &'a [u8],
    /// The key that the row had before, if it changed.
    pub old_key: Option<&'a [u8]>,
    /// Whether no column is absent.
    pub is_whole: bool,
}

/// Who looks on while a batch is encoded: the journal of what is published, or the judge of rows that were read.
pub trait Side {
    /// A change of these keys is about to become an event. False leaves it out.
    fn passes(&mut self, batch: &Batch, change: &Change, topic: u32, event: &Keys<'_>) -> bool;

    /// A change of a topic that no key names: a truncate, a new schema, a row without a key.
    fn touched_all(&mut self, _batch: &Batch, _change: &Change, _topic: u32) {}
}

/// Nobody looks on.
impl Side for () {
    #[inline]
    fn passes(&mut self, _: &Batch, _: &Change, _: u32, _: &Keys<'_>) -> bool {
        true
    }
}

/// Turns batches into records. Holds the compiled form of each schema it has seen.
pub struct Encoder {
    connector: String,
    routes: Routes,
    internal: InternalTopics,
    partitions: BTreeMap<String, u32>,
    dead_letters: bool,
    tables: BTreeMap<String, TableState>,
    topics: Vec<Arc<str>>,
    compiled: Vec<Compiled>,
}

/// A schema, ready to write rows of.
struct Compiled {
    source: Arc<Schema>,
    published: Schema,
    entity: String,
    fingerprint: String,
    /// Index into the topics of [`Encoder::transaction`].
    topic: u32,
    topic_name: String,
    partitions: u32,
    key: KeyWriter,
    payload: PayloadWriter,
}

/// The bytes of one change, written but not yet pushed as records.
struct Pieces {
    op: usize,
    old_key: Option<Span>,
    key: Span,
    value: Option<Span>,
    absent: Option<Span>,
}

/// What is written once per log transaction and shared by its records.
struct Shared {
    place: Place,
    index: u64,
    ops: [Option<Span>; 5],
    transactions: Vec<Option<Span>>,
    schemas: Vec<Option<Span>>,
}

const CREATE: usize = 0;
const UPDATE: usize = 1;
const DELETE: usize = 2;
const READ: usize = 3;
const TRUNCATE: usize = 4;
const OP_TEXT: [&[u8]; 5] = [b"c", b"u", b"d", b"r", b"t"];

impl Encoder {
    /// `partitions` are the pinned counts by topic; `tables` is what the checkpoint knows; the two words say which topics there are
    /// besides: that of dead letters, and that of rows that are to be refreshed.
    pub fn new(
        connector: &str,
        routes: Routes,
        internal: InternalTopics,
        partitions: BTreeMap<String, u32>,
        tables: BTreeMap<String, TableState>,
        (dead_letters, refreshes): (bool, bool),
    ) -> Self {
        let connector = connector.to_owned();
        // A log looks at every topic that a transaction can name, so the dead-letter topic is among them only if it exists.
        let fixed = [&internal.schema, &internal.checkpoint].into_iter().chain(dead_letters.then_some(&internal.dead));
        let fixed = fixed.chain(refreshes.then_some(&internal.refresh));
        let topics = fixed.chain(routes.iter().map(|route| &route.topic)).map(|topic| topic.as_str().into());
        Self { topics: topics.collect(), connector, routes, internal, partitions, dead_letters, tables, compiled: Vec::new() }
    }

    /// An empty log transaction that [`encode`](Self::encode) can fill: it knows the topics by the encoder's indices.
    pub fn transaction(&self) -> Transaction {
        Transaction::new(self.topics.clone())
    }

    /// The tables as the checkpoint's state should know them.
    pub fn tables(&self) -> &BTreeMap<String, TableState> {
        &self.tables
    }

    /// Index of a table's topic in [`transaction`](Self::transaction).
    pub fn topic_of(&self, table: &str) -> Option<u32> {
        self.routes.get(table).map(|route| self.topic_index(&route.topic))
    }

    /// A table as it was when the connector started.
    pub fn schema_of(&self, table: &str) -> Option<Arc<Schema>> {
        self.routes.get(table).map(|route| Arc::clone(&route.schema))
    }

    /// The name of a table's topic and its partitions.
    pub fn topic_named(&self, table: &str) -> Option<(Arc<str>, u32)> {
        let route = self.routes.get(table)?;
        Some((Arc::clone(&self.topics[self.topic_index(&route.topic) as usize]), *self.partitions.get(&route.topic)?))
    }

    /// Appends the events of `batch` to `out`, which becomes the log transaction at `place`, but for those that `side` leaves out.
    ///
    /// After an error `out` is torn and must be dropped.
    pub fn encode(&mut self, batch: &Batch, place: Place, out: &mut Transaction, side: &mut dyn Side) -> Result<Encoded> {
        let schemas = self.compile_all(batch)?;
        let mut encoded = Encoded::default();
        let mut shared = Shared {
            place,
            index: 0,
            ops: [None; 5],
            transactions: vec![None; batch.transactions().len()],
            schemas: vec![None; schemas.len()],
        };
        for change in batch.changes() {
            let at = change.schema as usize;
            if shared.schemas[at].is_none() {
                if self.announce(schemas[at], batch, change, out) {
                    encoded.state_changed = true;
                    side.touched_all(batch, change, self.compiled[schemas[at]].topic);
                }
                let fingerprint = &self.compiled[schemas[at]].fingerprint;
                shared.schemas[at] = Some(out.write(|bytes| bytes.extend_from_slice(fingerprint.as_bytes())));
            }
            self.encode_change((batch, change), &self.compiled[schemas[at]], &mut shared, out, &mut encoded, side)?;
        }
        encoded.events = shared.index;
        Ok(encoded)
    }

    /// The keys of all rows of a batch, as the topic has them, in the order of the rows.
    pub fn keys(&mut self, batch: &Batch) -> Result<Vec<Vec<u8>>> {
        let schemas = self.compile_all(batch)?;
        let mut keys = Vec::with_capacity(batch.changes().len());
        for change in batch.changes() {
            let compiled = &self.compiled[schemas[change.schema as usize]];
            let row = change.after.ok_or_else(|| no_key(&compiled.source, "a row that was read has no columns"))?;
            let mut key = Vec::new();
            compiled.key.write(&mut key, batch, &compiled.source, row)?;
            keys.push(key);
        }
        Ok(keys)
    }

    /// Appends tombstones for keys that a table does not have to `out`, an empty log transaction that is at `place`.
    pub fn bury<'a>(
        &self,
        table: &str,
        keys: impl Iterator<Item = &'a [u8]>,
        place: Place,
        at_ms: i64,
        out: &mut Transaction,
    ) -> Result<u64> {
        let missing = || Error::new(&contract::INVARIANT, "a table that is reconciled has no route").at("table", table);
        let route = self.routes.get(table).ok_or_else(missing)?;
        let partitions = self.partitions.get(&route.topic).copied().ok_or_else(missing)?;
        let topic = self.topic_index(&route.topic);
        let mut shared = Shared { place, index: 0, ops: [None; 5], transactions: Vec::new(), schemas: Vec::new() };
        let op = out.write(|bytes| bytes.extend_from_slice(OP_TEXT[DELETE]));
        let schema = self.tables.get(table).map(|state| out.write(|bytes| bytes.extend_from_slice(state.schema.as_bytes())));
        for key in keys {
            let partition = partition_of(key, partitions);
            let key = out.write(|bytes| bytes.extend_from_slice(key));
            let pos = shared.pos(out);
            out.push_header("hw.op", op);
            out.push_header("hw.pos", pos);
            if let Some(schema) = schema {
                out.push_header("hw.schema", schema);
            }
            out.push_record(topic, partition, at_ms, key, None);
        }
        Ok(shared.index)
    }

    /// Index into `compiled` for each schema of the batch.
    fn compile_all(&mut self, batch: &Batch) -> Result<Vec<usize>> {
        if self.compiled.len() > SPARE_SCHEMAS + self.tables.len() {
            self.compiled.clear();
        }
        let mut indices = Vec::with_capacity(batch.schemas().len());
        for schema in batch.schemas() {
            let known = self.compiled.iter().rposition(|compiled| Arc::ptr_eq(&compiled.source, schema));
            indices.push(match known {
                Some(index) => index,
                None => {
                    self.compiled.push(self.compile(schema)?);
                    self.compiled.len() - 1
                }
            });
        }
        Ok(indices)
    }

    fn compile(&self, schema: &Arc<Schema>) -> Result<Compiled> {
        let unrouted = || {
            Error::new(&contract::INVARIANT, "the source sent a change of a table that has no route").at("table", &schema.table)
        };
        let route = self.routes.get(&schema.table).ok_or_else(unrouted)?;
        let partitions = self.partitions.get(&route.topic).copied().ok_or_else(unrouted)?;
        self.refuse_another_key(schema, &route.topic)?;
        let columns = route.columns.as_ref();
        let mut published = (**schema).clone();
        let takes = |name: &str| columns.is_none_or(|choice| choice.takes(name));
        published.columns.retain(|column| takes(&column.name));
        published.key = schema.key_names().into_iter().filter_map(|name| published.column(name)).collect();
        Ok(Compiled {
            fingerprint: published.fingerprint(&route.entity).to_string(),
            published,
            entity: route.entity.clone(),
            topic: self.topic_index(&route.topic),
            topic_name: route.topic.clone(),
            partitions,
            key: KeyWriter::new(schema),
            payload: PayloadWriter::new(schema, columns),
            source: Arc::clone(schema),
        })
    }

    /// Under another key the same rows would be there twice, and tombstones would miss their rows (P4).
    fn refuse_another_key(&self, schema: &Schema, topic: &str) -> Result<()> {
        let known = self.tables.get(&schema.table).filter(|state| state.topic == topic && !state.key.is_empty());
        let Some(known) = known.filter(|state| state.key != schema.key_names()) else { return Ok(()) };
        let what = format!("its key was ({}) and is ({}) now", known.key.join(", "), schema.key_names().join(", "));
        Err(Error::new(&codes::KEY_CHANGED, what)
            .at("table", &schema.table)
            .at("topic", topic)
            .hint("Set `key:` of the table to the old columns, or give it another topic, in which it begins anew."))
    }

    fn topic_index(&self, topic: &str) -> u32 {
        let found = self.topics.iter().position(|known| &**known == topic);
        found.expect("the encoder's topics hold every route's topic") as u32
    }

    /// Writes the schema record if the log does not have it as the table's latest.
    fn announce(&mut self, index: usize, batch: &Batch, change: &Change, out: &mut Transaction) -> bool {
        let compiled = &self.compiled[index];
        let table = &compiled.source.table;
        let known = self.tables.get(table);
        if known.is_some_and(|state| state.schema == compiled.fingerprint && state.topic == compiled.topic_name) {
            return false;
        }
        let topic = self.topic_index(&self.internal.schema);
        let key = out.write(|bytes| drop(write!(bytes, r#"{{"schema":"{}"}}"#, compiled.fingerprint)));
        let record = compiled.published.record(&self.connector, &compiled.entity).to_string();
        let value = out.write(|bytes| bytes.extend_from_slice(record.as_bytes()));
        out.push_record(topic, 0, timestamp_ms(batch, change), key, Some(value));
        let key = compiled.source.key_names().into_iter().map(str::to_owned).collect();
        let state = TableState { topic: compiled.topic_name.clone(), schema: compiled.fingerprint.clone(), key };
        self.tables.insert(table.clone(), state);
        true
    }

    fn encode_change(
        &self,
        (batch, change): (&Batch, &Change),
        compiled: &Compiled,
        shared: &mut Shared,
        out: &mut Transaction,
        encoded: &mut Encoded,
        side: &mut dyn Side,
    ) -> Result<()> {
        if change.op == Op::Truncate {
            side.touched_all(batch, change, compiled.topic);
            truncate(batch, change, compiled, shared, out);
            return Ok(());
        }
        let mark = out.mark();
        match compiled.write(batch, change, out) {
            Ok(pieces) => {
                let old_key = pieces.old_key.map(|key| out.bytes(key));
                let event = Keys { key: out.bytes(pieces.key), old_key, is_whole: pieces.absent.is_none() };
                if !side.passes(batch, change, compiled.topic, &event) {
                    out.rewind(mark);
                    return Ok(());
                }
                compiled.push(batch, change, &pieces, shared, out);
            }
            Err(error) if self.dead_letters && error.kind() == Kind::Data => {
                out.rewind(mark);
                side.touched_all(batch, change, compiled.topic);
                self.push_dead_letter(batch, change, compiled, &error, shared, out);
                encoded.dead_letters += 1;
            }
            Err(error) => {
                let transaction = &batch.transactions()[change.transaction as usize];
                return Err(error.at("transaction", batch.transaction_id(transaction)));
            }
        }
        Ok(())
    }

    /// `{"table":…,"pos":…}` → what is known of the row and why it could not be an event.
    fn push_dead_letter(
        &self,
        batch: &Batch,
        change: &Change,
        compiled: &Compiled,
        error: &Error,
        shared: &mut Shared,
        out: &mut Transaction,
    ) {
        let topic = self.topic_index(&self.internal.dead);
        let op = op_of(change);
        let pos = shared.pos(out);
        let pos_text = String::from_utf8_lossy(out.bytes(pos)).into_owned();
        let table = &compiled.source.table;
        let key = out.write(|bytes| {
            bytes.extend_from_slice(br#"{"table":"#);
            json::push_string(bytes, table);
            let _ = write!(bytes, r#","pos":"{pos_text}"}}"#);
        });
        let row = change.after.or(change.before.row());
        let value = out.write(|bytes| {
            bytes.extend_from_slice(br#"{"table":"#);
            json::push_string(bytes, table);
            let _ = write!(bytes, r#","op":"{}","code":"{}","reason":"#, char::from(OP_TEXT[op][0]), error.code().id);
            json::push_string(bytes, &error.what());
            bytes.extend_from_slice(br#","columns":"#);
            match row {
                Some(row) => compiled.payload.write_salvaged(bytes, batch, row),
                None => bytes.extend_from_slice(b"{}"),
            }
            bytes.push(b'}');
        });
        shared.push_headers(batch, change, op, pos, None, out);
        out.push_record(topic, 0, timestamp_ms(batch, change), key, Some(value));
    }
}

impl Compiled {
    /// Writes the bytes of a change. Nothing is pushed, so that a data error can be undone.
    fn write(&self, batch: &Batch, change: &Change, out: &mut Transaction) -> Result<Pieces> {
        let Some(after) = change.after else {
            let before = change.before.row().ok_or_else(|| no_key(&self.source, "the log does not carry the old row"))?;
            let key = self.write_key(batch, before, out)?;
            return Ok(Pieces { op: DELETE, old_key: None, key, value: None, absent: None });
        };
        let mut op = op_of(change);
        let key = self.write_key(batch, after, out)?;
        let mut old_key = None;
        if op == UPDATE && change.before != Before::None {
            let before = change.before.row().ok_or_else(|| no_key(&self.source, "the log does not carry the old row"))?;
            let old = self.write_key(batch, before, out)?;
            if out.bytes(old) != out.bytes(key) {
                // A changed key ends the old row and begins a new one.
                old_key = Some(old);
                op = CREATE;
            }
        }
        let mark = out.mark();
        let absent = self.payload.write(out.arena(), batch, &self.source, after)?;
        let value = Some(out.span_from(mark));
        let absent = absent.then(|| out.write(|bytes| self.payload.write_absent(bytes, batch, &self.source, after)));
        let old_key = old_key.filter(|_| !fault::variant("move-without-a-tombstone"));
        Ok(Pieces { op, old_key, key, value, absent })
    }

    fn write_key(&self, batch: &Batch, row: Row, out: &mut Transaction) -> Result<Span> {
        let mark = out.mark();
        self.key.write(out.arena(), batch, &self.source, row)?;
        Ok(out.span_from(mark))
    }

    /// Pushes the records of a change: the tombstone of the old key first.
    fn push(&self, batch: &Batch, change: &Change, pieces: &Pieces, shared: &mut Shared, out: &mut Transaction) {
        let topic = self.topic;
        let timestamp_ms = timestamp_ms(batch, change);
        if let Some(old_key) = pieces.old_key {
            let pos = shared.pos(out);
            shared.push_headers(batch, change, DELETE, pos, None, out);
            let partition = partition_of(out.bytes(old_key), self.partitions);
            out.push_record(topic, partition, timestamp_ms, old_key, None);
        }
        let pos = shared.pos(out);
        shared.push_headers(batch, change, pieces.op, pos, pieces.absent, out);
        let partition = partition_of(out.bytes(pieces.key), self.partitions);
        out.push_record(topic, partition, timestamp_ms, pieces.key, pieces.value);
    }
}

impl Shared {
    /// `<era>-<seq>-<index>` in fixed-width hex: sorts as text in publication order.
    fn pos(&mut self, out: &mut Transaction) -> Span {
        let (era, seq, index) = (u64::from(self.place.era), self.place.seq, self.index);
        self.index += 1;
        out.write(|bytes| {
            push_hex(bytes, era, 4);
            bytes.push(b'-');
            push_hex(bytes, seq, 12);
            bytes.push(b'-');
            push_hex(bytes, index, 8);
        })
    }

    fn push_headers(
        &mut self,
        batch: &Batch,
        change: &Change,
        op: usize,
        pos: Span,
        absent: Option<Span>,
        out: &mut Transaction,
    ) {
        let op_span = *self.ops[op].get_or_insert_with(|| out.write(|bytes| bytes.extend_from_slice(OP_TEXT[op])));
        out.push_header("hw.op", op_span);
        out.push_header("hw.pos", pos);
        if op != READ {
            let at = change.transaction as usize;
            let tx = *self.transactions[at].get_or_insert_with(|| {
                let id = batch.transaction_id(&batch.transactions()[at]);
                out.write(|bytes| bytes.extend_from_slice(id.as_bytes()))
            });
            out.push_header("hw.tx", tx);
        }
        if let Some(schema) = self.schemas[change.schema as usize] {
            out.push_header("hw.schema", schema);
        }
        if let Some(absent) = absent {
            out.push_header("hw.absent", absent);
        }
    }
}

/// One event in every partition, because the keys of the emptied table are in all of them.
fn truncate(batch: &Batch, change: &Change, compiled: &Compiled, shared: &mut Shared, out: &mut Transaction) {
    let topic = compiled.topic;
    let key = out.write(|bytes| bytes.extend_from_slice(TRUNCATE_KEY));
    for partition in 0..compiled.partitions {
        let pos = shared.pos(out);
        shared.push_headers(batch, change, TRUNCATE, pos, None, out);
        out.push_record(topic, partition, timestamp_ms(batch, change), key, None);
    }
}

fn op_of(change: &Change) -> usize {
    match change.op {
        Op::Insert => CREATE,
        Op::Update => UPDATE,
        Op::Delete => DELETE,
        Op::Read => READ,
        Op::Truncate => TRUNCATE,
    }
}

fn timestamp_ms(batch: &Batch, change: &Change) -> i64 {
    batch.transactions()[change.transaction as usize].commit_time_us.div_euclid(1000)
}

fn push_hex(out: &mut Vec<u8>, number: u64, digits: u32) {
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(number >> (4 * digit)) as usize & 15]);
    }
}

#[cfg(test)]
mod tests;
