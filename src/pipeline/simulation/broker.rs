//! A model of Kafka's transactions, as brokers with the first version of the protocol do them: the epoch of a producer changes
//! only when it is initialised or times out, so a late request of the same epoch ends whatever is open at that moment.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering},
    time::Duration,
};

use headwater_connector::{Error, Result};
use tokio::time::Instant;

use super::{Lie, Place, World, server::parse};
use crate::log::{StoredRecord, codes};

/// After this the coordinator aborts a transaction and fences its producer.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest that markers need to reach all partitions, and readers to see them.
const MARKERS_MS: u64 = 60;
const READERS_MS: u64 = 40;

pub const POSITION_KEY: &[u8] = br#"{"checkpoint":"position"}"#;
pub const STATE_KEY: &[u8] = br#"{"checkpoint":"state"}"#;

/// One appended record, in the order of appends over all topics.
#[derive(Clone, Debug)]
pub struct Appended {
    pub topic: Arc<str>,
    pub partition: u32,
    pub record: StoredRecord,
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Open,
    Aborted,
    /// Decided; markers are in all partitions, and readers see them, from these moments on.
    Committed {
        marked: Instant,
        seen: Instant,
    },
}

#[derive(Default)]
struct State {
    topics: BTreeMap<String, u32>,
    /// Each with the transaction it belongs to.
    records: Vec<(Appended, usize)>,
    outcomes: Vec<Outcome>,
    next_offsets: BTreeMap<(Arc<str>, u32), u64>,
    epoch: u64,
    /// The open transaction and when it began.
    open: Option<(usize, Instant)>,
    /// The epoch whose last transaction was committed.
    ended: Option<u64>,
}

pub struct Broker {
    world: Arc<World>,
    state: Mutex<State>,
}

fn fenced() -> Error {
    Error::new(&codes::FENCED, "the producer's epoch has passed")
}

/// INVALID_TXN_STATE.
fn refused() -> Error {
    Error::new(&codes::COMMIT_IN_DOUBT, "the transaction is in another state")
}

impl State {
    /// What the coordinator does by itself.
    fn expire(&mut self) -> bool {
        let Some((open, _)) = self.open.filter(|(_, began)| began.elapsed() >= TRANSACTION_TIMEOUT) else { return false };
        self.outcomes[open] = Outcome::Aborted;
        self.open = None;
        self.epoch += 1;
        true
    }

    /// When the newest decided transaction has its markers.
    fn marked(&self) -> Option<Instant> {
        self.outcomes.iter().rev().find_map(|outcome| match outcome {
            Outcome::Committed { marked, .. } => Some(*marked),
            _ => None,
        })
    }
}

impl Broker {
    pub fn new(world: Arc<World>) -> Self {
        Self { world, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if state.expire() {
            self.world.tally().timeouts += 1;
        }
        state
    }

    pub fn partitions(&self, topic: &str) -> Option<u32> {
        self.state().topics.get(topic).copied()
    }

    pub fn create(&self, topic: &str, partitions: u32) -> u32 {
        *self.state().topics.entry(topic.to_owned()).or_insert(partitions)
    }

    pub fn epoch(&self) -> u64 {
        self.state().epoch
    }

    /// InitProducerId: ends what is open and gives the next epoch, or the moment at which to ask again.
    pub fn init(&self) -> Result<u64, Instant> {
        let mut state = self.state();
        if let Some((open, _)) = state.open.take() {
            state.outcomes[open] = Outcome::Aborted;
        }
        match state.marked() {
            Some(marked) if marked > Instant::now() => Err(marked),
            _ => {
                state.epoch += 1;
                Ok(state.epoch)
            }
        }
    }

    /// When the transaction before is over, so that records of the next one are taken.
    pub fn ready(&self) -> Instant {
        self.state().marked().unwrap_or_else(Instant::now)
    }

    /// AddPartitionsToTxn: begins a transaction, or joins the one that is open.
    pub fn begin(&self, epoch: u64) -> Result<()> {
        let mut state = self.state();
        self.admit(&state, epoch)?;
        if state.open.is_none() {
            let transaction = state.outcomes.len();
            state.outcomes.push(Outcome::Open);
            state.open = Some((transaction, Instant::now()));
        }
        Ok(())
    }

    fn admit(&self, state: &State, epoch: u64) -> Result<()> {
        if epoch != state.epoch && self.world.lie != Lie::NoFence { Err(fenced()) } else { Ok(()) }
    }

    /// Appends to the open transaction. Without one, the records are refused: the broker asks the coordinator (KIP-890).
    pub fn produce(&self, epoch: u64, records: &[Appended]) -> Result<()> {
        let mut state = self.state();
        self.admit(&state, epoch)?;
        let Some((transaction, _)) = state.open else { return Err(refused()) };
        for one in records {
            let mut one = one.clone();
            assert!(state.topics.get(&*one.topic).is_some_and(|count| one.partition < *count), "no such partition: {one:?}");
            let next = state.next_offsets.entry((Arc::clone(&one.topic), one.partition)).or_default();
            one.record.offset = *next;
            *next += 1;
            state.records.push((one, transaction));
        }
        Ok(())
    }

    /// EndTxn with commit: ends what is open at this moment.
    pub fn commit(&self, epoch: u64) -> Result<()> {
        let (markers, readers) = {
            let mut rng = self.world.rng();
            (Duration::from_millis(rng.u64(0..MARKERS_MS)), Duration::from_millis(rng.u64(0..READERS_MS)))
        };
        let mut state = self.state();
        self.admit(&state, epoch)?;
        let Some((open, _)) = state.open.take() else {
            // Said again, it is done; but what was aborted, or never begun, cannot be committed.
            return if state.ended == Some(epoch) { Ok(()) } else { Err(refused()) };
        };
        state.ended = Some(epoch);
        let marked = Instant::now() + markers;
        state.outcomes[open] = Outcome::Committed { marked, seen: marked + readers };
        let newest = state.records.iter().rev().take_while(|(_, transaction)| *transaction == open);
        let newest = newest.map(|(one, _)| one).find_map(place);
        let of_open = state.records.iter().rev().take_while(|(_, transaction)| *transaction == open);
        let read = of_open.map(|(one, _)| one).find_map(is_read);
        drop(state);
        if let Some(read) = read {
            self.world.read.store(read, Ordering::Relaxed);
        }
        if let Some(place) = newest {
            self.world.set_committed(place);
        }
        Ok(())
    }

    /// EndTxn with abort.
    pub fn abort(&self, epoch: u64) -> Result<()> {
        let mut state = self.state();
        self.admit(&state, epoch)?;
        let Some((open, _)) = state.open.take() else {
            return if state.ended == Some(epoch) { Err(refused()) } else { Ok(()) };
        };
        state.ended = None;
        state.outcomes[open] = Outcome::Aborted;
        Ok(())
    }

    /// A lie of [`Lie::TornCommit`]: the checkpoint of the open transaction vanishes.
    pub fn forget_checkpoint(&self) {
        let mut state = self.state();
        let Some((open, _)) = state.open else { return };
        state.records.retain(|(one, transaction)| *transaction != open || !one.topic.ends_with(".checkpoint"));
    }

    /// Committed records of a topic before the first that is undecided or not seen yet, and whether there is such a one.
    pub fn read(&self, topic: &str) -> (Vec<StoredRecord>, bool) {
        self.read_where(|one| &*one.topic == topic)
    }

    /// The same of one partition.
    pub fn read_partition(&self, topic: &str, partition: u32) -> (Vec<StoredRecord>, bool) {
        self.read_where(|one| &*one.topic == topic && one.partition == partition)
    }

    fn read_where(&self, is_wanted: impl Fn(&Appended) -> bool) -> (Vec<StoredRecord>, bool) {
        let state = self.state();
        let mut records = Vec::new();
        for (one, transaction) in state.records.iter().filter(|(one, _)| is_wanted(one)) {
            match state.outcomes[*transaction] {
                Outcome::Aborted if self.world.lie != Lie::AbortedIsSeen => {}
                Outcome::Open if self.world.lie == Lie::OpenIsSkipped => {}
                Outcome::Aborted => records.push(one.record.clone()),
                Outcome::Committed { seen, .. } if seen <= Instant::now() => records.push(one.record.clone()),
                _ => return (records, true),
            }
        }
        (records, false)
    }

    /// Whether the refresh topic names a row that lacks columns, or may do so soon.
    pub fn lacks_columns(&self) -> bool {
        let (records, is_cut) = self.read_where(|one| one.topic.ends_with(".refresh"));
        let mut pending = BTreeMap::new();
        for record in records {
            pending.insert(record.key, record.value.is_some());
        }
        is_cut || pending.into_values().any(|is_pending| is_pending)
    }

    /// Everything that was ever committed, for the checker.
    pub fn committed(&self) -> Vec<Appended> {
        let state = self.state();
        let committed = |transaction: &usize| matches!(state.outcomes[*transaction], Outcome::Committed { .. });
        state.records.iter().filter(|(_, transaction)| committed(transaction)).map(|(one, _)| one.clone()).collect()
    }
}

/// Whether nothing is to be read any more, if the record is a state.
fn is_read(one: &Appended) -> Option<bool> {
    if !one.topic.ends_with(".checkpoint") || one.record.key != STATE_KEY {
        return None;
    }
    let text = std::str::from_utf8(one.record.value.as_deref()?).ok()?;
    Some(
        text.contains(r#""backfills""#)
            && ![r#""state":"running""#, r#""state":"paused""#].iter().any(|open| text.contains(open)),
    )
}

/// The place that a record stores, if it is a checkpoint.
fn place(one: &Appended) -> Option<Place> {
    if !one.topic.ends_with(".checkpoint") || one.record.key != POSITION_KEY {
        return None;
    }
    let record: serde_json::Value = serde_json::from_slice(one.record.value.as_deref()?).ok()?;
    record["position"].as_str().map(parse)
}
