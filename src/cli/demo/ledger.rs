//! Both ends counted independently: what the database recorded by trigger against what the log holds.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use headwater_connector::Result;
use serde_json::Value as Json;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::shop::Fact;
use crate::log::{
    From, Log, StoredRecord,
    embedded::{EmbeddedLog, Mode, Options},
};

/// The tables of the shop.
pub const TABLES: [&str; 3] = ["customers", "orders", "payments"];

/// What the database says.
#[derive(Default)]
pub struct Truth {
    /// The rows that were there, and every change since.
    pub facts: Vec<Fact>,
    /// Table and key of every row at the end.
    pub rows: HashSet<(String, i64)>,
}

/// The two counts and how they differ.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Rows that were there before the start.
    pub rows: usize,
    /// These, and the row changes that the source committed.
    pub committed: usize,
    /// Events in the topics.
    pub arrived: usize,
    /// Of these, rows that were read.
    pub reads: usize,
    /// Of these, tombstones.
    pub tombstones: usize,
    /// Rows that were there and are not read, because an event with a newer state of them came first.
    pub overtaken: usize,
    /// Rows that were read once although they came as a change after the start.
    pub repeated: usize,
    /// Rows and changes without an event, and rows at the end that the topics lack.
    pub missing: usize,
    /// Events beyond one per row and change, and rows in the topics that are not there at the end.
    pub twice: usize,
}

/// A reader that follows the shop's topics and keeps what it saw: what a newer event of the same key supersedes goes from them after a
/// while, so whoever counts later counts too little.
pub struct Witness {
    events: Arc<Mutex<Vec<Event>>>,
    _reading: JoinSet<()>,
}

impl Witness {
    /// Begins at the first event.
    pub async fn start(log: &Path, connector: &str) -> Result<Self> {
        let log = EmbeddedLog::open(Options::new(log), Mode::Reader)?;
        let mut readers = Vec::new();
        for table in TABLES {
            readers.push((table, log.reader(&format!("{connector}.{table}"), 0, From::Earliest).await?));
        }
        let events = Arc::new(Mutex::new(Vec::new()));
        let (seen, mut reading) = (Arc::clone(&events), JoinSet::new());
        reading.spawn(async move {
            // Held for as long as its readers are.
            let _log = log;
            loop {
                for (table, reader) in &mut readers {
                    // Whoever cannot read sees too little, and the count says so.
                    let Ok(records) = reader.read(10_000, Duration::from_millis(20)).await else { return };
                    seen.lock().unwrap_or_else(PoisonError::into_inner).extend(records.iter().map(|record| event(table, record)));
                }
            }
        });
        Ok(Self { events, _reading: reading })
    }

    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    /// Counts until nothing is missing, or the deadline is over.
    pub async fn catch_up(witness: &Witness, truth: &Truth, deadline: Instant) -> Self {
        loop {
            let ledger = Self::compare(truth, &witness.events());
            if ledger.missing == 0 || Instant::now() > deadline {
                return ledger;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn compare(truth: &Truth, events: &[Event]) -> Self {
        let mut balance: HashMap<&Fact, i64> = HashMap::new();
        truth.facts.iter().for_each(|fact| *balance.entry(fact).or_default() += 1);
        events.iter().for_each(|event| *balance.entry(&event.fact).or_default() -= 1);
        // Events of a key stand in the order of its topic, so the last one wins.
        let mut last: HashMap<(&str, i64), bool> = HashMap::new();
        let mut changed: HashSet<(&str, i64)> = HashSet::new();
        for Event { fact, is_tombstone } in events {
            last.insert((&fact.table, fact.id), !is_tombstone);
            if fact.op != 'r' {
                changed.insert((&fact.table, fact.id));
            }
        }
        let mut ledger = Self {
            rows: truth.facts.iter().filter(|fact| fact.op == 'r').count(),
            committed: truth.facts.len(),
            arrived: events.len(),
            reads: events.iter().filter(|event| event.fact.op == 'r').count(),
            tombstones: events.iter().filter(|event| event.is_tombstone).count(),
            ..Self::default()
        };
        for (fact, count) in balance {
            let is_changed_row = fact.op == 'r' && changed.contains(&(fact.table.as_str(), fact.id));
            match count {
                1 if is_changed_row => ledger.overtaken += 1,
                // Once is what a read may do; whether the row was there before does not matter to it.
                -1 if is_changed_row && !truth.facts.contains(fact) => ledger.repeated += 1,
                0.. => ledger.missing += count.unsigned_abs() as usize,
                _ => ledger.twice += count.unsigned_abs() as usize,
            }
        }
        let live: HashSet<(&str, i64)> = last.into_iter().filter(|(_, lives)| *lives).map(|(key, _)| key).collect();
        let rows: HashSet<(&str, i64)> = truth.rows.iter().map(|(table, id)| (table.as_str(), *id)).collect();
        ledger.missing += rows.difference(&live).count();
        ledger.twice += live.difference(&rows).count();
        ledger
    }

    /// Nothing missing, nothing twice.
    pub fn is_exact(&self) -> bool {
        self.missing == 0 && self.twice == 0 && self.committed > 0
    }
}

/// An event of the topics.
struct Event {
    fact: Fact,
    is_tombstone: bool,
}

fn event(table: &str, record: &StoredRecord) -> Event {
    let header = |name: &str| {
        let value = record.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_slice());
        String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
    };
    let key: Json = serde_json::from_slice(&record.key).unwrap_or_default();
    let fact = Fact {
        xid: header("hw.tx").split('@').next().and_then(|xid| xid.parse().ok()).unwrap_or(0),
        table: table.to_owned(),
        op: header("hw.op").chars().next().unwrap_or('?'),
        id: key["id"].as_i64().unwrap_or(-1),
    };
    Event { fact, is_tombstone: record.value.is_none() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Cleanup, TopicSpec, Transaction};

    fn fact(op: char, id: i64) -> Fact {
        Fact { xid: if op == 'r' { 0 } else { 7 }, table: "orders".into(), op, id }
    }

    fn compare(facts: &[(char, i64)], events: &[(char, i64)], rows: &[i64]) -> Ledger {
        let facts = facts.iter().map(|(op, id)| fact(*op, *id)).collect();
        let events: Vec<Event> = events.iter().map(|(op, id)| Event { fact: fact(*op, *id), is_tombstone: *op == 'd' }).collect();
        Ledger::compare(&Truth { facts, rows: rows.iter().map(|id| ("orders".to_owned(), *id)).collect() }, &events)
    }

    #[test]
    fn missing_and_repeated_events_are_counted_apart() {
        let ledger = compare(&[('u', 1), ('u', 2), ('u', 3)], &[('u', 1), ('u', 3), ('u', 3)], &[1, 3]);
        assert_eq!((ledger.missing, ledger.twice), (1, 1));
        assert!(!ledger.is_exact());
        assert!(compare(&[('u', 1)], &[('u', 1)], &[1]).is_exact());
    }

    #[test]
    fn a_row_that_was_there_comes_once_unless_a_change_of_it_came() {
        let ledger =
            compare(&[('r', 1), ('r', 2), ('u', 2), ('r', 3), ('d', 3)], &[('r', 1), ('u', 2), ('r', 3), ('d', 3)], &[1, 2]);
        assert!(ledger.is_exact(), "{ledger:?}");
        assert_eq!((ledger.rows, ledger.reads, ledger.overtaken, ledger.tombstones), (3, 2, 1, 1));
        assert_eq!(compare(&[('r', 1)], &[], &[1]).missing, 2, "neither as an event nor in the end");
        assert_eq!(compare(&[('r', 1)], &[('r', 1), ('r', 1)], &[1]).twice, 1);
        // One that came as a change may be read once more, no further.
        let again = compare(&[('c', 9)], &[('c', 9), ('r', 9)], &[9]);
        assert!(again.is_exact() && again.repeated == 1, "{again:?}");
        assert!(!compare(&[('c', 9)], &[('c', 9), ('r', 9), ('r', 9)], &[9]).is_exact());
        assert!(!compare(&[('c', 9)], &[('c', 9), ('r', 8)], &[9]).is_exact(), "a row that nobody wrote");
        // A stale row behind a delete leaves a key that is not there.
        assert!(!compare(&[('r', 3), ('d', 3)], &[('d', 3), ('r', 3)], &[]).is_exact());
    }

    #[tokio::test]
    async fn changes_that_compaction_took_were_counted_as_missing() {
        let dir = tempfile::tempdir().unwrap();
        let log = EmbeddedLog::open(Options { compact_interval_seconds: 1, ..Options::new(dir.path()) }, Mode::Daemon).unwrap();
        let specs = TABLES.map(|table| TopicSpec { name: format!("shop.{table}"), partitions: None, cleanup: Cleanup::Compact });
        log.ensure_topics(&specs).await.unwrap();
        let mut transaction = Transaction::default();
        let topic = transaction.topic_index("shop.orders");
        // One key twice, and enough behind it that both are old.
        for id in [1, 1].into_iter().chain(2..5_000) {
            let op = transaction.write(|out| out.push(b'u'));
            let key = transaction.write(|out| out.extend_from_slice(format!("{{\"id\":{id}}}").as_bytes()));
            let value = transaction.write(|out| out.push(b'1'));
            transaction.push_header("hw.op", op);
            transaction.push_record(topic, 0, 1_767_323_045_123, key, Some(value));
        }
        let witness = Witness::start(dir.path(), "shop").await.unwrap();
        log.open_writer("shop").await.unwrap().commit(transaction).await.unwrap();
        log.start_maintenance().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let first = || async {
            let mut reader = log.reader("shop.orders", 0, From::Earliest).await.unwrap();
            reader.read(1, Duration::ZERO).await.unwrap()[0].offset
        };
        loop {
            let seen = witness.events().len();
            let first = first().await;
            if seen == 5_000 && first > 0 {
                break;
            }
            assert!(Instant::now() < deadline, "{seen} events, first {first}");
            sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(witness.events().iter().filter(|event| event.fact.id == 1).count(), 2);
    }
}
