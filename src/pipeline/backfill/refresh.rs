//! Rows whose newest event lacks columns: read again, so that the last event of every key is whole.
//!
//! Which keys these are stands in a topic of its own, in the same log transactions as their events, so that no death forgets one. They are
//! looked up in small batches by the rules of every row that is read; a key that a transaction touched which the snapshot does not see is
//! looked up again later. Of those, [`hot`](super::hot) keeps the newest row, so that none waits for a pause of its writers.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use headwater_connector::{Batch, Change, ChunkRequest, Error, Result, Schema, Snapshot, codes as contract, json};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{desk::Job, hot::Hot, order, run::Ticket};
use crate::{
    log::{StoredRecord, Transaction},
    mapping::encode::Keys,
};

/// Keys that are looked up at once.
const LOOK_UP: usize = 500;
/// How long keys gather before they are looked up, and how long one that could not be used rests.
const GATHER: Duration = Duration::from_millis(200);
/// Beyond this a table is read whole instead.
const LIMIT: usize = 100_000;

/// A record of the topic: its key names the row, its value is of no interest.
#[derive(Deserialize)]
struct Key<'a> {
    table: String,
    #[serde(borrow)]
    key: &'a RawValue,
}

/// See the module's page.
#[derive(Default)]
pub struct Refresh {
    tables: BTreeMap<String, Pending>,
    /// Of keys that a look-up came too late for, the newest published rows.
    pub hot: Hot,
    /// What the log transaction that is being made has to say: the table, the key, and whether it is pending from now on.
    changes: Vec<(String, Vec<u8>, bool)>,
}

/// The keys of one table.
struct Pending {
    topic: u32,
    schema: Arc<Schema>,
    keys: HashSet<Vec<u8>>,
    queue: VecDeque<Vec<u8>>,
    flight: Option<Flight>,
    next: Instant,
}

struct Flight {
    ticket: Ticket,
    keys: Vec<Vec<u8>>,
    floor: Option<Arc<dyn Snapshot>>,
}

impl Refresh {
    /// What the topic says. Tables that are not captured any more are left alone.
    pub fn load(records: &[StoredRecord], table: impl Fn(&str) -> Option<(u32, Arc<Schema>)>) -> Result<Self> {
        let mut refresh = Self::default();
        for record in records {
            let bad = || Error::new(&contract::INVARIANT, "a record of the refresh topic is none of headwater's");
            let Key { table: name, key } = serde_json::from_slice(&record.key).map_err(|_| bad())?;
            if let Some((topic, schema)) = table(&name) {
                refresh.of(&name, topic, &schema).add(key.get().as_bytes());
            }
        }
        Ok(refresh)
    }

    fn of(&mut self, table: &str, topic: u32, schema: &Arc<Schema>) -> &mut Pending {
        if !self.tables.contains_key(table) {
            let next = Instant::now() + GATHER;
            let (keys, queue) = (HashSet::new(), VecDeque::new());
            let pending = Pending { topic, schema: Arc::clone(schema), keys, queue, flight: None, next };
            self.tables.insert(table.to_owned(), pending);
        }
        let pending = self.tables.get_mut(table).expect("it was put there");
        if !Arc::ptr_eq(&pending.schema, schema) {
            pending.schema = Arc::clone(schema);
        }
        pending
    }

    /// An event that lacks columns is being published. False if there are too many: then the whole table is to be read.
    pub fn add(&mut self, topic: u32, schema: &Arc<Schema>, key: &[u8]) -> bool {
        let pending = self.of(&schema.table, topic, schema);
        if pending.keys.len() >= LIMIT && !pending.keys.contains(key) {
            return false;
        }
        if pending.add(key) {
            self.changes.push((schema.table.clone(), key.to_vec(), true));
        }
        true
    }

    /// An event is being published after which nothing of the row is missing.
    #[inline]
    pub fn settle(&mut self, table: &str, key: &[u8]) {
        let Some(pending) = self.tables.get_mut(table) else { return };
        if pending.keys.remove(key) {
            self.hot.end(pending.topic, key);
            self.changes.push((table.to_owned(), key.to_vec(), false));
        }
    }

    /// An event is being published: what it says of rows and of tables that lack something.
    pub fn follow(&mut self, topic: u32, (batch, change): (&Batch, &Change), event: &Keys<'_>) {
        let schema = &batch.schemas()[change.schema as usize];
        if event.is_whole {
            self.settle(&schema.table, event.key);
        }
        if let Some(old_key) = event.old_key {
            self.settle(&schema.table, old_key);
            // The row that the key names is another one now.
            self.hot.end(topic, event.key);
        }
        if self.hot.watches(topic) {
            self.hot.follow(topic, (batch, change), event.key);
        }
    }

    /// Whether something is to be looked up.
    pub fn is_active(&self) -> bool {
        !self.tables.is_empty()
    }

    /// The topics of the tables of which something is to be looked up.
    pub fn topics(&self) -> impl Iterator<Item = u32> {
        self.tables.values().map(|pending| pending.topic)
    }

    /// Forgets tables of which nothing is to be looked up any more.
    pub fn tidy(&mut self) {
        self.tables.retain(|_, pending| !pending.keys.is_empty() || pending.flight.is_some());
    }

    /// What to look up next, if it is time.
    pub fn next_job(&mut self, ticket: Ticket, floor: Option<&Arc<dyn Snapshot>>) -> Option<Job> {
        let now = Instant::now();
        let (table, pending) = self
            .tables
            .iter_mut()
            .find(|(_, pending)| pending.flight.is_none() && now >= pending.next && !pending.queue.is_empty())?;
        let mut keys = Vec::new();
        let mut cursors = Vec::new();
        while keys.len() < LOOK_UP {
            let Some(key) = pending.queue.pop_front() else { break };
            // It may have been settled since.
            if !pending.keys.contains(&key) {
                continue;
            }
            let parsed = serde_json::from_slice(&key).ok().and_then(|parsed| order::cursor(&pending.schema, &parsed, 0).ok());
            match parsed {
                Some(cursor) => {
                    cursors.push(cursor);
                    keys.push(key);
                }
                // Keys of bytes cannot be named to the server: such a row stays as it is until it is written again.
                None => drop(pending.keys.remove(&key)),
            }
        }
        if keys.is_empty() {
            return None;
        }
        pending.flight = Some(Flight { ticket, keys, floor: floor.cloned() });
        let request = ChunkRequest {
            table: table.clone(),
            after: None,
            until: None,
            filter: None,
            keys: Some(Arc::new(cursors)),
            max_rows: usize::MAX,
            max_bytes: usize::MAX,
            gate: None,
        };
        Some(Job::Chunk(request, ticket))
    }

    /// Whether the ticket is that of a look-up on its way.
    pub fn expects(&self, ticket: Ticket) -> bool {
        self.tables.values().any(|pending| pending.flight.as_ref().is_some_and(|flight| flight.ticket == ticket))
    }

    /// A look-up failed or cannot be used; its keys are looked up again.
    pub fn again(&mut self, ticket: Ticket) {
        self.land(ticket, |_| false, |_| false, 0);
    }

    /// A look-up has come to its end: keys for which `is_done` are settled, the others wait for the next one. Of those that it came too
    /// late for, says `is_late`, the rows are kept from the transaction with this number on.
    pub fn land(&mut self, ticket: Ticket, is_done: impl Fn(&[u8]) -> bool, is_late: impl Fn(&[u8]) -> bool, next: u64) {
        let landing = |pending: &&mut Pending| pending.flight.as_ref().is_some_and(|flight| flight.ticket == ticket);
        let Some(pending) = self.tables.values_mut().find(landing) else { return };
        let Some(flight) = pending.flight.take() else { return };
        pending.next = Instant::now() + GATHER;
        let table = pending.schema.table.clone();
        for key in flight.keys {
            if !pending.keys.contains(&key) {
                continue;
            }
            if is_done(&key) {
                pending.keys.remove(&key);
                self.hot.end(pending.topic, &key);
                self.changes.push((table.clone(), key, false));
            } else {
                if is_late(&key) {
                    self.hot.begin(pending.topic, &key, next);
                }
                pending.queue.push_back(key);
            }
        }
    }

    /// Whether a row is still missing something.
    pub fn wants(&self, table: &str, key: &[u8]) -> bool {
        self.tables.get(table).is_some_and(|pending| pending.keys.contains(key))
    }

    /// Whether a row is kept of a key that is looked up.
    pub fn keeps(&self, ticket: Ticket) -> bool {
        let flying = |pending: &Pending| {
            let flight = pending.flight.as_ref().filter(|flight| flight.ticket == ticket);
            flight.is_some_and(|flight| self.hot.keeps(pending.topic, flight.keys.iter()))
        };
        self.tables.values().any(flying)
    }

    /// The look-up on its way that was asked for first, and a snapshot that is older than its own.
    pub fn oldest_floor(&self) -> Option<(Ticket, Option<Arc<dyn Snapshot>>)> {
        let flights = self.tables.values().filter_map(|pending| pending.flight.as_ref());
        flights.min_by_key(|flight| flight.ticket).map(|flight| (flight.ticket, flight.floor.clone()))
    }

    /// Writes what has changed into the log transaction that makes it so.
    pub fn write(&mut self, topic: &str, at_ms: i64, out: &mut Transaction) {
        if self.changes.is_empty() {
            return;
        }
        let topic = out.topic_index(topic);
        for (table, key, is_pending) in self.changes.drain(..) {
            let key = out.write(|bytes| {
                bytes.extend_from_slice(br#"{"table":"#);
                json::push_string(bytes, &table);
                bytes.extend_from_slice(br#","key":"#);
                bytes.extend_from_slice(&key);
                bytes.push(b'}');
            });
            let value = is_pending.then(|| out.write(|bytes| bytes.extend_from_slice(b"{}")));
            out.push_record(topic, 0, at_ms, key, value);
        }
    }
}

impl Pending {
    fn add(&mut self, key: &[u8]) -> bool {
        if !self.keys.insert(key.to_vec()) {
            return false;
        }
        self.queue.push_back(key.to_vec());
        true
    }
}

#[cfg(test)]
mod tests {
    use headwater_connector::{Column, Type};

    use super::*;

    fn schema() -> Arc<Schema> {
        let column = Column { name: "id".into(), r#type: Type::Int64, source_type: "int8".into(), nullable: false };
        Arc::new(Schema { table: "public.t".into(), columns: vec![column], key: vec![0] })
    }

    fn key(id: u32) -> Vec<u8> {
        format!("{{\"id\":{id}}}").into_bytes()
    }

    fn written(refresh: &mut Refresh) -> Vec<(String, bool)> {
        let mut out = Transaction::default();
        refresh.write("refresh", 0, &mut out);
        let text = |record: &crate::log::Record| String::from_utf8(out.bytes(record.key).to_vec()).unwrap();
        out.records().iter().map(|record| (text(record), record.value.is_some())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_pending_until_an_event_has_everything() {
        let (mut refresh, schema) = (Refresh::default(), schema());
        assert!(refresh.add(0, &schema, &key(1)) && refresh.add(0, &schema, &key(2)) && refresh.add(0, &schema, &key(1)));
        let of = |id| format!(r#"{{"table":"public.t","key":{{"id":{id}}}}}"#);
        assert_eq!(written(&mut refresh), [(of(1), true), (of(2), true)]);
        assert!(refresh.next_job(1, None).is_none(), "they gather first");
        tokio::time::advance(GATHER).await;
        let Some(Job::Chunk(request, 1)) = refresh.next_job(1, None) else { panic!("a look-up") };
        assert_eq!(request.keys.unwrap().as_slice(), [["1"], ["2"]]);
        assert!(refresh.next_job(2, None).is_none() && refresh.expects(1));
        // One is written whole meanwhile, the other was touched by somebody whom the snapshot did not see.
        refresh.settle("public.t", &key(1));
        refresh.land(1, |_| false, |_| false, 0);
        assert_eq!(written(&mut refresh), [(of(1), false)]);
        tokio::time::advance(GATHER).await;
        let Some(Job::Chunk(request, 3)) = refresh.next_job(3, None) else { panic!("a look-up") };
        assert_eq!(request.keys.unwrap().as_slice(), [["2"]]);
        refresh.land(3, |_| true, |_| false, 0);
        assert_eq!(written(&mut refresh), [(of(2), false)]);
        refresh.tidy();
        assert!(!refresh.is_active());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_pending_survives_a_restart() {
        let record = StoredRecord {
            offset: 0,
            timestamp_ms: 0,
            key: br#"{"table":"public.t","key":{"id":7}}"#.to_vec(),
            value: Some(b"{}".to_vec()),
            headers: Vec::new(),
        };
        let mut refresh = Refresh::load(&[record], |table| (table == "public.t").then(|| (3, schema()))).unwrap();
        assert!(refresh.wants("public.t", &key(7)) && refresh.topics().eq([3]));
        tokio::time::advance(GATHER).await;
        assert!(refresh.next_job(1, None).is_some());
    }
}
