//! Rows that are written so often that no snapshot sees their newest change. Pure.
//!
//! From the moment that a look-up came too late for a key, its newest published row is kept, with what the changes since then brought of
//! columns that the newest one lacks. What no change since then brought, none of them changed. So a snapshot that sees every change
//! *before* that moment has such a column as it is in the newest published row, and that row can be published whole: a state that existed.
//!
//! Only a plain change of the row goes on from what is kept. A changed key, a delete, a truncate and a table that was described anew, since
//! its rows may have been rewritten, end it; the next look-up that comes too late begins again.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use headwater_connector::{Batch, Change, Op, Row, Schema, Snapshot, Value};

use super::journal::Journal;

/// Bytes of rows that are kept. Who finds no room waits until others are published.
const LIMIT: usize = 8 << 20;
/// What a row costs besides its bytes.
const ENTRY: usize = 512;

/// See the module's page.
pub struct Hot {
    tables: HashMap<u32, Table>,
    bytes: usize,
    limit: usize,
}

/// The keys of one topic.
#[derive(Default)]
struct Table {
    /// As the stream described it last, and the first transaction under that description: who does not see it may not see either what
    /// was done to the table before.
    described: Option<(Arc<Schema>, String)>,
    keys: HashMap<Vec<u8>, Kept>,
}

struct Kept {
    /// The number in the journal of the first transaction that is told here; what came before must be seen.
    since: u64,
    /// Absent until the next change comes.
    row: Option<(Batch, Row)>,
    bytes: usize,
}

impl Default for Hot {
    fn default() -> Self {
        Self { tables: HashMap::new(), bytes: 0, limit: LIMIT }
    }
}

impl Hot {
    /// Whether changes of a topic are of interest.
    #[inline]
    pub fn watches(&self, topic: u32) -> bool {
        !self.tables.is_empty() && self.tables.contains_key(&topic)
    }

    /// A look-up came too late for a key. Called between two transactions; `since` is the number of the next one.
    pub fn begin(&mut self, topic: u32, key: &[u8], since: u64) {
        let bytes = key.len() + ENTRY;
        let is_known = self.tables.get(&topic).is_some_and(|table| table.keys.contains_key(key));
        if !is_known && self.bytes + bytes <= self.limit {
            self.bytes += bytes;
            self.tables.entry(topic).or_default().keys.insert(key.to_vec(), Kept { since, row: None, bytes });
        }
    }

    /// Nothing is missing of a row any more, or what is kept of it does not go on.
    pub fn end(&mut self, topic: u32, key: &[u8]) {
        let Some(table) = self.tables.get_mut(&topic) else { return };
        if let Some(kept) = table.keys.remove(key) {
            self.bytes -= kept.bytes;
        }
        if table.keys.is_empty() {
            self.tables.remove(&topic);
        }
    }

    /// Something happened to a topic that no key names.
    pub fn end_all(&mut self, topic: u32) {
        if let Some(table) = self.tables.remove(&topic) {
            self.bytes -= table.keys.values().map(|kept| kept.bytes).sum::<usize>();
        }
    }

    /// A change of a topic that is watched becomes an event.
    pub fn follow(&mut self, topic: u32, (batch, change): (&Batch, &Change), key: &[u8]) {
        let Some(table) = self.tables.get_mut(&topic) else { return };
        let schema = &batch.schemas()[change.schema as usize];
        if !table.described.as_ref().is_some_and(|(known, _)| Arc::ptr_eq(known, schema)) {
            let transaction = batch.transaction_id(&batch.transactions()[change.transaction as usize]);
            table.described = Some((Arc::clone(schema), transaction.to_owned()));
            // What was kept before may not be what a rewritten table has.
            for kept in table.keys.values_mut().filter(|kept| kept.row.is_some()) {
                self.bytes -= kept.bytes;
                kept.bytes = 0;
            }
            table.keys.retain(|_, kept| kept.bytes > 0);
            if table.keys.is_empty() {
                self.tables.remove(&topic);
                return;
            }
        }
        let Some(kept) = table.keys.get_mut(key) else { return };
        let Some(after) = change.after.filter(|_| change.op == Op::Update) else { return self.end(topic, key) };
        let mut row = Batch::default();
        let start = row.begin_row();
        for (column, value) in batch.values(after).enumerate() {
            row.push(match (value, &kept.row) {
                (Value::Unchanged, Some((before, at))) => before.value(*at, column),
                (value, _) => value,
            });
        }
        let image = row.end_row(start);
        let bytes = key.len() + ENTRY + row.size_bytes();
        let others = self.bytes - kept.bytes;
        // A single row may be larger: it is in memory anyway while it is published.
        if others > 0 && others + bytes > self.limit {
            return self.end(topic, key);
        }
        kept.row = Some((row, image));
        kept.bytes = bytes;
        self.bytes = others + bytes;
    }

    /// Whether a row of any of these keys is kept.
    pub fn keeps<'a>(&self, topic: u32, mut keys: impl Iterator<Item = &'a Vec<u8>>) -> bool {
        let table = self.tables.get(&topic);
        table.is_some_and(|table| keys.any(|key| table.keys.get(key).is_some_and(|kept| kept.row.is_some())))
    }

    /// Appends to the rows of a look-up, whose keys these are, the newest published ones that become whole by them, of keys that
    /// `is_late` names.
    pub fn complete(
        &self,
        topic: u32,
        (journal, seen): (&Journal, &dyn Snapshot),
        (keys, is_late): (&[Vec<u8>], impl Fn(&[u8]) -> bool),
        batch: &mut Batch,
    ) {
        let Some(table) = self.tables.get(&topic) else { return };
        let Some((schema, _)) = table.described.as_ref().filter(|(_, first)| seen.sees(first)) else { return };
        let since = |key: &[u8]| table.keys.get(key).filter(|kept| kept.row.is_some()).map(|kept| kept.since);
        let contradicted: HashSet<&[u8]> = journal.unseen_before(topic, seen, since);
        let count = batch.changes().len();
        for (at, key) in keys.iter().enumerate().take(count).filter(|(_, key)| is_late(key)) {
            let Some(Kept { row: Some((kept, image)), .. }) = table.keys.get(key) else { continue };
            let change = batch.changes()[at];
            let alike = are_alike(schema, &batch.schemas()[change.schema as usize]);
            let Some(read) = change.after.filter(|_| alike && !contradicted.contains(key.as_slice())) else { continue };
            let mut whole = Batch::default();
            let start = whole.begin_row();
            for (column, value) in kept.values(*image).enumerate() {
                whole.push(if value == Value::Unchanged { batch.value(read, column) } else { value });
            }
            let image = whole.end_row(start);
            let start = batch.begin_row();
            whole.values(image).for_each(|value| batch.push(value));
            let after = batch.end_row(start);
            batch.push_change(Op::Read, change.schema, (count + at) as u64, change.before, Some(after));
        }
    }
}

/// Whether rows of both have the same columns. The stream does not know what may be null.
fn are_alike(a: &Schema, b: &Schema) -> bool {
    let same = |(a, b): (&headwater_connector::Column, &headwater_connector::Column)| {
        a.name == b.name && a.r#type == b.r#type && a.source_type == b.source_type
    };
    a.columns.len() == b.columns.len() && a.key == b.key && a.columns.iter().zip(&b.columns).all(same)
}

#[cfg(test)]
mod tests {
    use headwater_connector::{Before, Column, Type};

    use super::{super::journal::tests::Below, *};

    fn schema() -> Arc<Schema> {
        let column = |name: &str| Column { name: name.into(), r#type: Type::Int64, source_type: "int8".into(), nullable: false };
        Arc::new(Schema { table: "public.t".into(), columns: ["id", "ver", "big"].map(column).into(), key: vec![0] })
    }

    /// The stream, and what is kept of the key `k`.
    struct Stream {
        schema: Arc<Schema>,
        journal: Journal,
        hot: Hot,
    }

    impl Stream {
        /// A look-up came too late for the key, behind these transactions.
        fn new(transactions: &[&str]) -> Self {
            let mut journal = Journal::default();
            journal.begin(0);
            transactions.iter().for_each(|transaction| journal.touch(0, transaction, b"k", false));
            let mut hot = Hot::default();
            hot.begin(0, b"k", journal.next_number());
            Self { schema: schema(), journal, hot }
        }

        fn change(&mut self, transaction: &str, op: Op, values: [Value<'_>; 3]) {
            let mut batch = Batch::default();
            batch.begin_transaction(transaction, 0);
            let index = batch.schema_index(&self.schema);
            let start = batch.begin_row();
            values.into_iter().for_each(|value| batch.push(value));
            let after = batch.end_row(start);
            batch.push_change(op, index, 0, Before::None, Some(after));
            self.journal.touch(0, transaction, b"k", false);
            self.hot.follow(0, (&batch, &batch.changes()[0]), b"k");
        }

        fn update(&mut self, transaction: &str, version: u64) {
            self.change(transaction, Op::Update, [Value::Uint(1), Value::Uint(version), Value::Unchanged]);
        }

        /// What a look-up brings that sees transactions below a number: the row is 1, 10, 7.
        fn look(&self, below: u32) -> Option<Vec<u64>> {
            let mut batch = Batch::default();
            batch.begin_transaction("read", 0);
            let index = batch.schema_index(&schema());
            let start = batch.begin_row();
            [1, 10, 7].into_iter().for_each(|value| batch.push(Value::Uint(value)));
            let after = batch.end_row(start);
            batch.push_change(Op::Read, index, 0, Before::None, Some(after));
            let late = |key: &[u8]| self.journal.unseen(0, &Below(below)).holds(key);
            self.hot.complete(0, (&self.journal, &Below(below)), (&[b"k".to_vec()], late), &mut batch);
            let number = |value| if let Value::Uint(value) = value { value } else { panic!("a number") };
            let whole = batch.changes().get(1)?.after?;
            Some(batch.values(whole).map(number).collect())
        }
    }

    #[test]
    fn the_newest_row_is_completed_by_a_snapshot_that_sees_all_before_it_is_kept() {
        let mut stream = Stream::new(&["3", "4"]);
        assert_eq!(stream.look(5), None, "no change has come since");
        stream.update("5", 11);
        stream.update("6", 12);
        stream.update("7", 13);
        assert_eq!(stream.look(4), None, "a change before may have changed the value");
        assert_eq!(stream.look(5), None, "the table may have been rewritten before the first transaction that is kept");
        assert_eq!(stream.look(6), Some(vec![1, 13, 7]));
        assert_eq!(stream.look(8), None, "it sees the newest itself");
    }

    #[test]
    fn what_a_later_change_brought_is_not_taken_from_the_snapshot() {
        let mut stream = Stream::new(&["3"]);
        stream.update("4", 11);
        stream.change("5", Op::Update, [Value::Uint(1), Value::Unchanged, Value::Uint(8)]);
        stream.update("6", 13);
        assert_eq!(stream.look(5), Some(vec![1, 13, 8]));
    }

    #[test]
    fn what_is_no_plain_change_of_the_row_ends_it() {
        for what in 0..5 {
            let mut stream = Stream::new(&["3"]);
            stream.update("4", 11);
            match what {
                0 => stream.hot.end(0, b"k"),
                1 => stream.hot.end_all(0),
                2 => stream.change("5", Op::Insert, [Value::Uint(1), Value::Uint(12), Value::Unchanged]),
                // Described anew.
                3 => stream.schema = schema(),
                _ => {
                    let other = Column { name: "x".into(), ..schema().columns[2].clone() };
                    stream.schema = Arc::new(Schema { columns: vec![other; 3], ..(*schema()).clone() });
                    stream.hot.tables.clear();
                    stream.hot.bytes = 0;
                    stream.hot.begin(0, b"k", stream.journal.next_number());
                }
            }
            stream.update("6", 13);
            stream.update("7", 14);
            assert_eq!([5, 6, 7].map(|below| stream.look(below)), [None, None, None], "{what}");
            if what < 4 {
                assert_eq!((stream.hot.bytes, stream.hot.watches(0)), (0, false), "{what}");
            }
        }
    }

    #[test]
    fn memory_is_bounded_and_one_row_always_finds_room() {
        let mut stream = Stream::new(&["3"]);
        stream.hot.limit = 3 * ENTRY;
        for key in 0..9_u8 {
            stream.hot.begin(0, &[key], 1);
        }
        assert!(stream.hot.bytes <= stream.hot.limit);
        assert_eq!(stream.hot.tables[&0].keys.len(), 2);
        stream.hot.end(0, &[0]);
        stream.hot.limit = 1;
        stream.update("4", 11);
        stream.update("5", 12);
        assert_eq!(stream.look(5), Some(vec![1, 12, 7]));
        stream.hot.end_all(0);
        assert_eq!(stream.hot.bytes, 0);
    }
}
