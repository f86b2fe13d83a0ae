//! The keys that recent transactions touched, for as long as some snapshot may not see them. Pure.
//!
//! It is kept only while rows are read. A transaction leaves it once every chunk that is still on its way sees it. When its memory is
//! used up, a transaction's keys become one mark on the table: no chunk of that table is used that does not see the transaction.
//!
//! What every chunk sees is kept a while longer, as far as a little memory goes: a row whose newest event is as new as the row itself
//! need not be published again.

use std::collections::{HashMap, HashSet, VecDeque};

use headwater_connector::{Snapshot, fault};

/// Bytes of keys that are remembered because a chunk may not see them.
const LIMIT: usize = 32 << 20;
/// Bytes of keys that are remembered because their rows were just published.
const SETTLED_LIMIT: usize = 4 << 20;
/// In a key's length: its event lacks columns, so that the row is still worth reading.
const PARTIAL: u32 = 1 << 31;

#[cfg(not(test))]
const fn limit() -> usize {
    LIMIT
}

#[cfg(test)]
fn limit() -> usize {
    trial::LIMIT.get()
}

/// What the simulation makes smaller for the journals of its thread, or breaks.
#[cfg(test)]
pub mod trial {
    use std::cell::Cell;

    thread_local! {
        /// Bytes of keys.
        pub static LIMIT: Cell<usize> = const { Cell::new(super::LIMIT) };
        /// Whether keys that find no room are forgotten, and no mark is made.
        pub static FORGETS: Cell<bool> = const { Cell::new(false) };
    }
}

/// See the module's page.
pub struct Journal {
    entries: VecDeque<Entry>,
    /// Whether a topic's keys are wanted, by its index.
    watched: Vec<bool>,
    bytes: usize,
    limit: usize,
    /// The number of the next transaction.
    next: u64,
    settled: HashMap<u32, HashSet<Box<[u8]>>>,
    settled_bytes: usize,
}

struct Entry {
    number: u64,
    transaction: Box<str>,
    touched: Vec<Touched>,
}

struct Touched {
    topic: u32,
    /// Each with its length in front; none stands for all keys.
    keys: Option<Vec<u8>>,
}

/// The rows of a chunk for which something is published that is newer, or as new.
#[derive(Debug)]
pub enum Superseded<'a> {
    /// Those with these keys.
    Keys {
        /// Of transactions that are remembered.
        recent: HashSet<&'a [u8]>,
        /// Of those that every chunk sees.
        settled: Option<&'a HashSet<Box<[u8]>>>,
    },
    /// Any may be.
    All,
}

impl Superseded<'_> {
    /// Whether the row with this key is one of them.
    pub fn holds(&self, key: &[u8]) -> bool {
        match self {
            Self::Keys { recent, settled } => recent.contains(key) || settled.is_some_and(|settled| settled.contains(key)),
            Self::All => true,
        }
    }
}

impl Default for Journal {
    fn default() -> Self {
        let (entries, settled) = (VecDeque::new(), HashMap::new());
        Self { entries, watched: Vec::new(), bytes: 0, limit: limit(), next: 0, settled, settled_bytes: 0 }
    }
}

impl Journal {
    /// Remembers what is touched of a topic from now on; true if it did not before.
    pub fn begin(&mut self, topic: u32) -> bool {
        let at = topic as usize;
        if self.watched.len() <= at {
            self.watched.resize(at + 1, false);
        }
        !std::mem::replace(&mut self.watched[at], true)
    }

    /// Whether anything is remembered.
    pub fn is_kept(&self) -> bool {
        !self.watched.is_empty()
    }

    /// Whether a topic's keys are wanted.
    #[inline]
    pub fn watches(&self, topic: u32) -> bool {
        self.watched.get(topic as usize).copied().unwrap_or(false)
    }

    /// A transaction that is being published touched a key; `is_whole` unless its event lacks columns.
    pub fn touch(&mut self, topic: u32, transaction: &str, key: &[u8], is_whole: bool) {
        let full = self.bytes + key.len() + 4 > self.limit;
        let touched = self.of(topic, transaction);
        let Some(keys) = &mut touched.keys else { return };
        #[cfg(test)]
        if full && trial::FORGETS.get() {
            return;
        }
        if full {
            let freed = keys.len();
            touched.keys = None;
            self.bytes -= freed;
            return;
        }
        let head = key.len() as u32 | if is_whole { 0 } else { PARTIAL };
        keys.extend_from_slice(&head.to_le_bytes());
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
            self.entries.push_back(Entry { number: self.next, transaction: transaction.into(), touched: Vec::new() });
            self.next += 1;
        }
        let last = self.entries.len() - 1;
        let touched = &mut self.entries[last].touched;
        let at = touched.iter().position(|touched| touched.topic == topic).unwrap_or_else(|| {
            touched.push(Touched { topic, keys: Some(Vec::new()) });
            touched.len() - 1
        });
        &mut touched[at]
    }

    /// The keys of a topic whose rows in a chunk are not to be published: touched by a transaction that the chunk does not see, or
    /// published whole by one that it does see.
    pub fn superseded(&self, topic: u32, snapshot: &dyn Snapshot) -> Superseded<'_> {
        // The well-known window looks only at what came between two places of the log, which is what its snapshot does not see.
        self.against(topic, snapshot, !fault::variant("watermark-window"))
    }

    /// The keys of a topic that a transaction touched which the snapshot does not see.
    pub fn unseen(&self, topic: u32, snapshot: &dyn Snapshot) -> Superseded<'_> {
        self.against(topic, snapshot, false)
    }

    /// The number of the transaction that is remembered next. Called between two transactions.
    pub fn next_number(&self) -> u64 {
        self.next
    }

    /// Those of the keys with a number that a transaction before that number touched which the snapshot does not see.
    pub fn unseen_before(&self, topic: u32, snapshot: &dyn Snapshot, number: impl Fn(&[u8]) -> Option<u64>) -> HashSet<&[u8]> {
        let mut found = HashSet::new();
        for entry in self.entries.iter().filter(|entry| !snapshot.sees(&entry.transaction)) {
            let keys = entry.touched.iter().find(|touched| touched.topic == topic).and_then(|touched| touched.keys.as_ref());
            let keys = keys.into_iter().flat_map(|keys| Keys(keys)).map(|(key, _)| key);
            found.extend(keys.filter(|key| number(key).is_some_and(|number| entry.number < number)));
        }
        found
    }

    fn against(&self, topic: u32, snapshot: &dyn Snapshot, looks_back: bool) -> Superseded<'_> {
        let mut recent = HashSet::new();
        for entry in &self.entries {
            let Some(touched) = entry.touched.iter().find(|touched| touched.topic == topic) else { continue };
            let is_seen = snapshot.sees(&entry.transaction);
            match &touched.keys {
                Some(keys) => {
                    recent.extend(Keys(keys).filter(|(_, is_whole)| (looks_back && *is_whole) || !is_seen).map(|(key, _)| key))
                }
                None if is_seen => {}
                None => return Superseded::All,
            }
        }
        Superseded::Keys { recent, settled: self.settled.get(&topic).filter(|_| looks_back) }
    }

    /// Takes what this snapshot sees, and so every later one, out of what may stand against a chunk.
    pub fn forget(&mut self, snapshot: &dyn Snapshot) {
        let (bytes, settled, settled_bytes) = (&mut self.bytes, &mut self.settled, &mut self.settled_bytes);
        self.entries.retain(|entry| {
            if !snapshot.sees(&entry.transaction) {
                return true;
            }
            for touched in &entry.touched {
                let Some(keys) = &touched.keys else { continue };
                *bytes -= keys.len();
                settle(settled.entry(touched.topic).or_default(), keys, settled_bytes);
            }
            false
        });
    }
}

fn settle(settled: &mut HashSet<Box<[u8]>>, keys: &[u8], bytes: &mut usize) {
    for (key, is_whole) in Keys(keys) {
        if !is_whole {
            // The last word about this row lacks columns.
            if settled.remove(key) {
                *bytes -= key.len() + ENTRY;
            }
        } else if *bytes < SETTLED_LIMIT && settled.insert(key.into()) {
            *bytes += key.len() + ENTRY;
        }
    }
}

/// What a key in a set costs besides its bytes.
const ENTRY: usize = 32;

/// The keys of one transaction, and whether their events are whole.
struct Keys<'a>(&'a [u8]);

impl<'a> Iterator for Keys<'a> {
    type Item = (&'a [u8], bool);

    fn next(&mut self) -> Option<Self::Item> {
        let (len, rest) = self.0.split_first_chunk::<4>()?;
        let head = u32::from_le_bytes(*len);
        let (key, rest) = rest.split_at((head & !PARTIAL) as usize);
        self.0 = rest;
        Some((key, head & PARTIAL == 0))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Sees transactions whose number is below its own.
    pub struct Below(pub u32);

    impl Snapshot for Below {
        fn sees(&self, transaction: &str) -> bool {
            transaction.parse::<u32>().unwrap() < self.0
        }
    }

    fn held(journal: &Journal, topic: u32, below: u32) -> String {
        let superseded = journal.superseded(topic, &Below(below));
        ["a", "b", "c"].into_iter().filter(|key| superseded.holds(key.as_bytes())).collect()
    }

    #[test]
    fn what_a_snapshot_does_not_see_stands_against_it() {
        let mut journal = Journal::default();
        assert!(journal.begin(2) && !journal.begin(2));
        assert!(journal.watches(2) && !journal.watches(1) && !journal.watches(9));
        // Log order is not the order of the numbers. None is whole, so that only what is not seen counts.
        for (transaction, key) in [("7", "a"), ("5", "b"), ("5", "c"), ("8", "a")] {
            journal.touch(2, transaction, key.as_bytes(), false);
        }
        journal.touch(3, "9", b"b", false);
        assert_eq!([7, 5, 10].map(|below| held(&journal, 2, below)), ["a", "abc", ""]);
        journal.forget(&Below(8));
        assert_eq!(journal.entries.len(), 2);
        assert_eq!(held(&journal, 2, 8), "a");
        journal.forget(&Below(10));
        assert_eq!((journal.bytes, journal.entries.len()), (0, 0));
    }

    #[test]
    fn a_row_that_was_just_published_whole_is_not_published_again() {
        let mut journal = Journal::default();
        journal.touch(0, "1", b"a", true);
        journal.touch(0, "2", b"b", true);
        journal.touch(0, "3", b"c", false);
        assert_eq!(held(&journal, 0, 9), "ab");
        journal.forget(&Below(9));
        assert_eq!(held(&journal, 0, 9), "ab");
        journal.touch(0, "4", b"b", false);
        journal.forget(&Below(9));
        assert_eq!(held(&journal, 0, 9), "a", "its newest event lacks a column");
    }

    #[test]
    fn a_transaction_that_is_too_large_becomes_a_mark() {
        let mut journal = Journal { limit: 64, ..Journal::default() };
        for key in 0..20 {
            journal.touch(0, "1", format!("key-{key}").as_bytes(), true);
        }
        assert!(journal.bytes <= 64);
        assert!(matches!(journal.superseded(0, &Below(1)), Superseded::All));
        assert_eq!(held(&journal, 0, 2), "", "who sees it may go on");
        journal.forget(&Below(2));
        assert_eq!(journal.bytes, 0);
        journal.touch(0, "3", b"a", true);
        journal.touch_all(0, "3");
        assert_eq!((held(&journal, 0, 2).as_str(), journal.bytes), ("abc", 0));
    }
}
