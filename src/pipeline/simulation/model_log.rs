//! A log in memory that outlives processes: atomic commits, epochs, lost answers, commits that land late.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use headwater_connector::{Error, Finding, Result, codes as contract};

use super::{Lie, World};
use crate::log::{From, Log, LogReader, LogWriter, StoredRecord, TopicSpec, TopicState, Transaction, codes};

/// One committed record, in the order of commits over all topics.
#[derive(Clone, Debug)]
pub struct Committed {
    pub topic: String,
    pub partition: u32,
    pub record: StoredRecord,
}

#[derive(Clone)]
pub struct ModelLog {
    world: Arc<World>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    topics: BTreeMap<String, u32>,
    records: Vec<Committed>,
    next_offsets: BTreeMap<(String, u32), u64>,
    epoch: u64,
    /// A commit that the coordinator has received but not yet carried out.
    in_flight: Option<Vec<Committed>>,
    lost_answers: u64,
}

impl ModelLog {
    pub fn new(world: Arc<World>) -> Self {
        Self { world, state: Arc::default() }
    }

    pub fn records(&self) -> Vec<Committed> {
        self.state().records.clone()
    }

    /// The newest committed value of a key in a topic.
    pub fn last(&self, topic: &str, key: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let found = state.records.iter().rev().find(|one| one.topic == topic && one.record.key == key.as_bytes());
        found.and_then(|one| one.record.value.clone())
    }

    pub fn lost_answers(&self) -> u64 {
        self.state().lost_answers
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn append(&mut self, records: Vec<Committed>) {
        for mut one in records {
            assert!(self.topics.get(&one.topic).is_some_and(|count| one.partition < *count), "no such partition: {one:?}");
            let next = self.next_offsets.entry((one.topic.clone(), one.partition)).or_default();
            one.record.offset = *next;
            *next += 1;
            self.records.push(one);
        }
    }
}

fn stored(transaction: &Transaction) -> Vec<Committed> {
    let bytes = |span| transaction.bytes(span).to_vec();
    let one = |record: &crate::log::Record| Committed {
        topic: transaction.topics()[record.topic as usize].to_string(),
        partition: record.partition,
        record: StoredRecord {
            offset: 0,
            timestamp_ms: record.timestamp_ms,
            key: bytes(record.key),
            value: record.value.map(bytes),
            headers: transaction.headers(record).iter().map(|header| (header.name.to_owned(), bytes(header.value))).collect(),
        },
    };
    transaction.records().iter().map(one).collect()
}

#[async_trait]
impl Log for ModelLog {
    fn describe(&self) -> String {
        "model".into()
    }

    fn default_partitions(&self) -> u32 {
        1
    }

    async fn topics(&self, names: &[String]) -> Result<Vec<Option<TopicState>>> {
        self.world.network("topics").await?;
        let state = self.state();
        let one = |name: &String| {
            state.topics.get(name).map(|count| TopicState { name: name.clone(), partitions: *count, id: String::new() })
        };
        Ok(names.iter().map(one).collect())
    }

    async fn ensure_topics(&self, specs: &[TopicSpec]) -> Result<Vec<TopicState>> {
        self.world.network("ensure_topics").await?;
        let mut state = self.state();
        let mut states = Vec::new();
        for spec in specs {
            let count = *state.topics.entry(spec.name.clone()).or_insert(spec.partitions.unwrap_or(1));
            states.push(TopicState { name: spec.name.clone(), partitions: count, id: String::new() });
        }
        Ok(states)
    }

    async fn last_records(&self, topic: &str) -> Result<Vec<StoredRecord>> {
        self.world.network("last_records").await?;
        let mut last = BTreeMap::new();
        for one in self.state().records.iter().filter(|one| one.topic == topic && one.partition == 0) {
            match one.record.value {
                Some(_) => drop(last.insert(one.record.key.clone(), one.record.clone())),
                None => drop(last.remove(&one.record.key)),
            }
        }
        Ok(last.into_values().collect())
    }

    async fn open_writer(&self, _connector: &str) -> Result<Box<dyn LogWriter>> {
        self.world.network("open_writer").await?;
        let carried_out = self.world.rng().bool();
        let epoch = {
            let mut state = self.state();
            // The coordinator ends the open transaction, one way or the other, before it lets a successor in.
            if let Some(records) = state.in_flight.take().filter(|_| carried_out) {
                state.append(records);
            }
            state.epoch += 1;
            state.epoch
        };
        // The successor has fenced, but does not know it yet.
        self.world.network("open_writer").await?;
        Ok(Box::new(ModelWriter { log: self.clone(), epoch }))
    }

    async fn reader(&self, _: &str, _: u32, _: From) -> Result<Box<dyn LogReader>> {
        Err(Error::new(&contract::INVARIANT, "the simulation reads the model itself"))
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        Ok(Vec::new())
    }
}

struct ModelWriter {
    log: ModelLog,
    epoch: u64,
}

impl ModelWriter {
    fn refuse_old(&self, state: &State) -> Result<()> {
        if self.epoch != state.epoch && self.log.world.lie != Lie::NoFence {
            return Err(Error::new(&codes::FENCED, "a newer writer has the place"));
        }
        Ok(())
    }

    /// The coordinator has the commit; the answer may get lost on the way back.
    fn carry_out(&self, transaction: &Transaction, answered: bool) -> Result<()> {
        let mut state = self.log.state();
        self.refuse_old(&state)?;
        let mut records = stored(transaction);
        if !answered && self.log.world.lie == Lie::TornCommit {
            records.retain(|one| !one.topic.ends_with(".checkpoint"));
        }
        state.append(records);
        if !answered {
            state.lost_answers += 1;
        }
        Ok(())
    }
}

#[async_trait]
impl LogWriter for ModelWriter {
    async fn commit(&mut self, transaction: Transaction) -> Result<Transaction> {
        let world = Arc::clone(&self.log.world);
        world.delay().await;
        self.refuse_old(&self.log.state())?;
        let doubt = || Error::new(&codes::COMMIT_IN_DOUBT, "no answer to the commit");
        if world.fault() {
            let outcome = world.rng().u32(0..4);
            match outcome {
                // Refused before anything happened.
                0 => return Err(doubt()),
                // Carried out, and the answer is lost at once.
                1 => {
                    self.carry_out(&transaction, false)?;
                    return Err(doubt());
                }
                // Received and forgotten by us: it lands, or not, when a successor comes.
                2 => {
                    self.log.state().in_flight = Some(stored(&transaction));
                    return Err(doubt());
                }
                // Everything stalls beyond every timeout, then it happens after all.
                _ => tokio::time::sleep(Duration::from_secs(200)).await,
            }
        }
        self.carry_out(&transaction, true)?;
        // A crash while waiting here is a lost answer too.
        world.delay().await;
        Ok(transaction)
    }

    async fn close(self: Box<Self>) {}
}
