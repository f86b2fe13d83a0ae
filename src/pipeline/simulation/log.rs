//! The client to the model broker: what `log/kafka` does, in small, with the faults that it must not have.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use headwater_connector::{Error, Finding, Result};
use tokio::time::Instant;

use super::{
    Lie, Variant, World,
    broker::{Appended, Broker, POSITION_KEY, STATE_KEY},
};
use crate::log::{From, Log, LogReader, LogWriter, StoredRecord, TopicSpec, TopicState, Transaction, codes};

/// How long a reader waits for a transaction that is open.
const HANGING: Duration = Duration::from_secs(120);

/// One process's client.
pub struct ModelLog {
    world: Arc<World>,
    broker: Arc<Broker>,
    /// Of the variant that trusts what it read before it fenced.
    peeked: Mutex<Option<Vec<StoredRecord>>>,
}

impl ModelLog {
    pub fn new(world: Arc<World>, broker: Arc<Broker>) -> Self {
        Self { world, broker, peeked: Mutex::default() }
    }
}

fn doubt(what: &str) -> Error {
    Error::new(&codes::COMMIT_IN_DOUBT, what.to_owned())
}

fn appended(transaction: &Transaction) -> Vec<Appended> {
    let bytes = |span| transaction.bytes(span).to_vec();
    let topics: Vec<Arc<str>> = transaction.topics().iter().map(|topic| Arc::from(&**topic)).collect();
    let one = |record: &crate::log::Record| Appended {
        topic: Arc::clone(&topics[record.topic as usize]),
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

/// Whether rows that were read are among the records.
fn is_chunk(records: &[Appended]) -> bool {
    records.iter().any(|one| one.record.headers.iter().any(|(name, value)| name == "hw.op" && value == b"r"))
}

/// The last of each key.
fn last(records: Vec<StoredRecord>) -> Vec<StoredRecord> {
    let mut last = BTreeMap::new();
    for record in records {
        match record.value {
            Some(_) => drop(last.insert(record.key.clone(), record)),
            None => drop(last.remove(&record.key)),
        }
    }
    last.into_values().collect()
}

/// The variant that does not store the sequence number finds none.
fn without_seq(mut records: Vec<StoredRecord>) -> Vec<StoredRecord> {
    for record in records.iter_mut().filter(|record| record.key == POSITION_KEY) {
        let mut value: serde_json::Value = serde_json::from_slice(record.value.as_deref().expect("a value")).expect("JSON");
        value["seq"] = 0.into();
        record.value = Some(serde_json::to_vec(&value).expect("JSON"));
    }
    records
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
        let state = |name: &String, partitions| TopicState { name: name.clone(), partitions, id: String::new() };
        Ok(names.iter().map(|name| self.broker.partitions(name).map(|count| state(name, count))).collect())
    }

    async fn ensure_topics(&self, specs: &[TopicSpec]) -> Result<Vec<TopicState>> {
        self.world.network("ensure_topics").await?;
        let ensure = |spec: &TopicSpec| TopicState {
            name: spec.name.clone(),
            partitions: self.broker.create(&spec.name, spec.partitions.unwrap_or(1)),
            id: String::new(),
        };
        Ok(specs.iter().map(ensure).collect())
    }

    async fn last_records(&self, topic: &str) -> Result<Vec<StoredRecord>> {
        if self.world.variant == Variant::CheckpointBeforeFencing
            && let Some(peeked) = self.peeked.lock().expect("no panic while held").clone()
        {
            return Ok(peeked);
        }
        let deadline = Instant::now() + HANGING;
        loop {
            self.world.network("last_records").await?;
            let (records, more) = self.broker.read(topic);
            if !more || self.world.variant == Variant::ReadToTheStableEnd {
                let mut records = last(records);
                if self.world.variant == Variant::ForgetPending && topic.ends_with(".refresh") {
                    records.clear();
                }
                return Ok(if self.world.variant == Variant::SeqNotStored { without_seq(records) } else { records });
            }
            if Instant::now() >= deadline {
                return Err(doubt("a transaction hangs"));
            }
        }
    }

    async fn peek_records(&self, topic: &str) -> Result<Vec<StoredRecord>> {
        self.world.network("peek_records").await?;
        let records = last(self.broker.read(topic).0);
        *self.peeked.lock().expect("no panic while held") = Some(records.clone());
        Ok(records)
    }

    async fn open_writer(&self, _connector: &str) -> Result<Box<dyn LogWriter>> {
        self.world.network("open_writer").await?;
        let epoch = if self.world.variant == Variant::SkipFencing && self.broker.epoch() > 0 {
            self.broker.epoch()
        } else {
            loop {
                match self.broker.init() {
                    Ok(epoch) => break epoch,
                    Err(again) => tokio::time::sleep_until(again).await,
                }
            }
        };
        // The successor has fenced, but does not know it yet.
        self.world.network("open_writer").await?;
        let (world, broker) = (Arc::clone(&self.world), Arc::clone(&self.broker));
        Ok(Box::new(ModelWriter { world, broker, epoch, disturbed: false }))
    }

    async fn reader(&self, topic: &str, partition: u32, _: From) -> Result<Box<dyn LogReader>> {
        self.world.network("reader").await?;
        let (world, broker) = (Arc::clone(&self.world), Arc::clone(&self.broker));
        Ok(Box::new(ModelLogReader { world, broker, topic: topic.to_owned(), partition, next: 0 }))
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        Ok(Vec::new())
    }
}

/// Reads committed records of one partition from its beginning.
struct ModelLogReader {
    world: Arc<World>,
    broker: Arc<Broker>,
    topic: String,
    partition: u32,
    next: usize,
}

#[async_trait]
impl LogReader for ModelLogReader {
    async fn read(&mut self, max: usize, _: Duration) -> Result<Vec<StoredRecord>> {
        self.world.network("read").await?;
        let max = self.world.rng().usize(1..=max.min(20));
        let (records, _) = self.broker.read_partition(&self.topic, self.partition);
        let page: Vec<StoredRecord> = records.into_iter().skip(self.next).take(max).collect();
        self.next += page.len();
        Ok(page)
    }

    async fn at_end(&mut self) -> Result<bool> {
        self.world.network("at_end").await?;
        let (records, is_open) = self.broker.read_partition(&self.topic, self.partition);
        Ok(!is_open && self.next >= records.len())
    }
}

struct ModelWriter {
    world: Arc<World>,
    broker: Arc<Broker>,
    epoch: u64,
    /// A request of the last commit may still be on its way (K2).
    disturbed: bool,
}

impl ModelWriter {
    /// A copy of the request that ends a transaction arrives some time later.
    fn twin(&self) {
        let (broker, epoch) = (Arc::clone(&self.broker), self.epoch);
        let late = Duration::from_micros(self.world.rng().u64(0..200_000));
        self.world.tally().twins += 1;
        tokio::spawn(async move {
            tokio::time::sleep(late).await;
            let _ = broker.commit(epoch);
        });
    }

    /// Sends records in some requests; a request that fails may still arrive later.
    async fn send(&self, records: &[Appended]) -> Result<()> {
        tokio::time::sleep_until(self.broker.ready()).await;
        self.broker.begin(self.epoch)?;
        let size = self.world.rng().usize(1..=records.len().max(1));
        for chunk in records.chunks(size.max(records.len() / 3)) {
            self.world.delay().await;
            if !self.world.fault() {
                self.broker.produce(self.epoch, chunk)?;
            } else if self.world.variant != Variant::IgnoreSendError {
                if self.world.rng().bool() {
                    self.late(chunk.to_vec());
                }
                return Err(doubt("a record was not delivered"));
            }
        }
        Ok(())
    }

    /// Records arrive when nobody waits for them any more (C11).
    fn late(&self, records: Vec<Appended>) {
        let (broker, epoch) = (Arc::clone(&self.broker), self.epoch);
        let late = Duration::from_micros(self.world.rng().u64(0..500_000));
        tokio::spawn(async move {
            tokio::time::sleep(late).await;
            let _ = broker.produce(epoch, &records);
        });
    }

    async fn end(&mut self) -> Result<()> {
        self.world.delay().await;
        if !self.world.fault() {
            return self.broker.commit(self.epoch);
        }
        let outcome = self.world.rng().u32(0..5);
        match outcome {
            // Never received (C9).
            0 => Err(doubt("no answer to the commit")),
            // Carried out, and the answer is lost (C8).
            1 => {
                if self.world.lie == Lie::TornCommit {
                    self.broker.forget_checkpoint();
                }
                self.broker.commit(self.epoch)?;
                self.world.tally().lost_answers += 1;
                Err(doubt("no answer to the commit"))
            }
            // Received much later (C10).
            2 => {
                self.twin();
                Err(doubt("no answer to the commit"))
            }
            // A connection broke, the client repeated the request, and the first copy is still on its way (K2).
            3 => {
                self.twin();
                self.disturbed = true;
                self.broker.commit(self.epoch)
            }
            // Everything stalls beyond every timeout, then goes on.
            _ => {
                tokio::time::sleep(Duration::from_secs(200)).await;
                self.broker.commit(self.epoch)
            }
        }
    }

    async fn publish(&mut self, records: &[Appended]) -> Result<()> {
        self.send(records).await?;
        self.end().await
    }
}

#[async_trait]
impl LogWriter for ModelWriter {
    async fn commit(&mut self, transaction: Transaction) -> Result<Transaction> {
        if self.disturbed && self.world.variant != Variant::NoRecycling {
            return Err(doubt("a connection broke during the last commit, so the writer is replaced"));
        }
        let mut records = appended(&transaction);
        match self.world.variant {
            Variant::CheckpointOutside => {
                let at = records.iter().position(|one| one.topic.ends_with(".checkpoint")).unwrap_or(records.len());
                let checkpoint = records.split_off(at);
                if !records.is_empty() {
                    self.publish(&records).await?;
                }
                self.publish(&checkpoint).await?;
            }
            Variant::ProgressOutside | Variant::ProgressFirst if is_chunk(&records) => {
                let (state, rest): (Vec<_>, Vec<_>) = records.into_iter().partition(|one| one.record.key == STATE_KEY);
                let [first, second] = match self.world.variant {
                    Variant::ProgressFirst => [state, rest],
                    _ => [rest, state],
                };
                self.publish(&first).await?;
                self.publish(&second).await?;
            }
            Variant::ResendOnDoubt => {
                while let Err(error) = self.publish(&records).await {
                    if error.kind() == headwater_connector::Kind::Fenced {
                        return Err(error);
                    }
                }
            }
            _ => self.publish(&records).await?,
        }
        // A crash while waiting here is a lost answer too.
        self.world.delay().await;
        Ok(transaction)
    }

    async fn close(self: Box<Self>) {}
}
