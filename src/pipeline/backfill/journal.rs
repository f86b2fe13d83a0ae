//! The keys that recent transactions touched, for as long as some snapshot may not see them. Pure.
//!
//! It is kept only while rows are read. A transaction leaves it once every chunk that is still on its way sees it. When its memory is
//! used up, a transaction's keys become one mark on the table: no chunk of that table is used that does not see the transaction.

use std::collections::{HashSet, VecDeque};

use headwater_connector::Snapshot;

/// Bytes of keys that are remembered.
const LIMIT: usize = 32 << 20;

/// See the module's page.
pub struct Journal {
    entries: VecDeque<Entry>,
    /// Whether a topic's keys are wanted, by its index.
    watched: Vec<bool>,
    bytes: usize,
    limit: usize,
}

struct Entry {
    transaction: Box<str>,
    touched: Vec<Touched>,
}

struct Touched {
    topic: u32,
    /// Each with its length in front; none stands for all keys.
    keys: Option<Vec<u8>>,
}

/// What a snapshot does not see of a topic's keys.
#[derive(Debug, PartialEq, Eq)]
pub enum Unseen<'a> {
    /// Rows with these keys are older than what is published.
    Keys(HashSet<&'a [u8]>),
    /// Any row may be.
    All,
}

impl Default for Journal {
    fn default() -> Self {
        Self { entries: VecDeque::new(), watched: Vec::new(), bytes: 0, limit: LIMIT }
    }
}

impl Journal {
    /// Remembers what is touched of a topic from now on.
    pub fn watch(&mut self, topic: u32) {
        let at = topic as usize;
        if self.watched.len() <= at {
            self.watched.resize(at + 1, false);
        }
        self.watched[at] = true;
    }

    /// Whether a topic's keys are wanted.
    #[inline]
    pub fn watches(&self, topic: u32) -> bool {
        self.watched.get(topic as usize).copied().unwrap_or(false)
    }

    /// A transaction that is being published touched a key.
    pub fn touch(&mut self, topic: u32, transaction: &str, key: &[u8]) {
        let full = self.bytes + key.len() + 4 > self.limit;
        let touched = self.of(topic, transaction);
        let Some(keys) = &mut touched.keys else { return };
        if full {
            let freed = keys.len();
            touched.keys = None;
            self.bytes -= freed;
            return;
        }
        keys.extend_from_slice(&(key.len() as u32).to_le_bytes());
        keys.extend_from_slice(key);
        self.bytes += key.len() + 4;
    }

    /// A transaction did something to a topic that no key names: a truncate, another schema, a row without a key.
    pub fn touch_all(&mut self, topic: u32, transaction: &str) {
        let freed = self.of(topic, transaction).keys.take().map_or(0, |keys| keys.len());
        self.bytes -= freed;
    }

    fn of(&mut self, topic: u32, transaction: &str) -> &mut Touched {
        if self.entries.back().is_none_or(|entry| &*entry.transaction != transaction) {
            self.entries.push_back(Entry { transaction: transaction.into(), touched: Vec::new() });
        }
        let last = self.entries.len() - 1;
        let touched = &mut self.entries[last].touched;
        let at = touched.iter().position(|touched| touched.topic == topic).unwrap_or_else(|| {
            touched.push(Touched { topic, keys: Some(Vec::new()) });
            touched.len() - 1
        });
        &mut touched[at]
    }

    /// The keys of a topic that transactions touched which the snapshot does not see.
    pub fn unseen(&self, topic: u32, snapshot: &dyn Snapshot) -> Unseen<'_> {
        let mut found = HashSet::new();
        for entry in &self.entries {
            let Some(touched) = entry.touched.iter().find(|touched| touched.topic == topic) else { continue };
            if snapshot.sees(&entry.transaction) {
                continue;
            }
            let Some(keys) = &touched.keys else { return Unseen::All };
            found.extend(Keys(keys));
        }
        Unseen::Keys(found)
    }

    /// Forgets what this snapshot sees, and so every later one.
    pub fn forget(&mut self, snapshot: &dyn Snapshot) {
        let bytes = &mut self.bytes;
        self.entries.retain(|entry| {
            let keep = !snapshot.sees(&entry.transaction);
            if !keep {
                *bytes -= entry.touched.iter().filter_map(|touched| touched.keys.as_ref()).map(Vec::len).sum::<usize>();
            }
            keep
        });
    }
}

/// The keys of one transaction.
struct Keys<'a>(&'a [u8]);

impl<'a> Iterator for Keys<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (len, rest) = self.0.split_first_chunk::<4>()?;
        let (key, rest) = rest.split_at(u32::from_le_bytes(*len) as usize);
        self.0 = rest;
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sees transactions whose number is below its own.
    struct Below(u32);

    impl Snapshot for Below {
        fn sees(&self, transaction: &str) -> bool {
            transaction.parse::<u32>().unwrap() < self.0
        }
    }

    fn keys<'a>(keys: &[&'a str]) -> Unseen<'a> {
        Unseen::Keys(keys.iter().map(|key| key.as_bytes()).collect())
    }

    #[test]
    fn only_what_a_snapshot_does_not_see_stands_against_it() {
        let mut journal = Journal::default();
        journal.watch(2);
        assert!(journal.watches(2) && !journal.watches(1) && !journal.watches(9));
        // Log order is not the order of the numbers.
        for (transaction, key) in [("7", "a"), ("5", "b"), ("5", "c"), ("8", "a")] {
            journal.touch(2, transaction, key.as_bytes());
        }
        journal.touch(3, "9", b"other");
        assert_eq!(journal.unseen(2, &Below(7)), keys(&["a"]));
        assert_eq!(journal.unseen(2, &Below(5)), keys(&["a", "b", "c"]));
        assert_eq!(journal.unseen(2, &Below(10)), keys(&[]));
        journal.forget(&Below(8));
        assert_eq!(journal.entries.len(), 2);
        assert_eq!(journal.unseen(2, &Below(8)), keys(&["a"]));
        journal.forget(&Below(10));
        assert_eq!((journal.bytes, journal.entries.len()), (0, 0));
    }

    #[test]
    fn a_transaction_that_is_too_large_becomes_a_mark() {
        let mut journal = Journal { limit: 64, ..Journal::default() };
        for key in 0..20 {
            journal.touch(0, "1", format!("key-{key}").as_bytes());
        }
        assert!(journal.bytes <= 64);
        assert_eq!(journal.unseen(0, &Below(1)), Unseen::All);
        assert_eq!(journal.unseen(0, &Below(2)), keys(&[]), "who sees it may go on");
        journal.forget(&Below(2));
        assert_eq!(journal.bytes, 0);
        journal.touch(0, "3", b"k");
        journal.touch_all(0, "3");
        assert_eq!((journal.unseen(0, &Below(2)), journal.bytes), (Unseen::All, 0));
    }
}
