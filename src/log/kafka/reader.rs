//! Reading committed records of one partition.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use headwater_connector::{Error, Result, codes as shared};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::Consumer,
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers, Message},
};

use super::{
    Inner,
    client::{self, Consuming, OffThread, Probe, blocking},
    codes, config, error,
};
use crate::log::{From, LogReader, StoredRecord, codes as log};

/// Added to the transaction timeout: the brokers look for transactions that timed out every ten seconds only.
const ABORT_MARGIN: Duration = Duration::from_secs(20);

/// How long a confirmed commit may take to appear.
const SETTLE: Duration = Duration::from_millis(500);

/// One wait for records; between waits the deadline is looked at.
const POLL: Duration = Duration::from_millis(500);

/// How far [`last_records`] reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// Everything written when the call began: open transactions are waited for.
    TrueEnd,
    /// What is committed when the call begins.
    Committed,
}

/// The last record of each key in partition 0.
pub(super) async fn last_records(inner: &Arc<Inner>, topic: &str, until: Until) -> Result<Vec<StoredRecord>> {
    let (inner, topic) = (Arc::clone(inner), topic.to_owned());
    blocking(move || {
        let probe = inner.probe()?;
        if probe.topic(&topic)?.is_none() {
            return Ok(Vec::new());
        }
        let patience = Duration::from_secs(inner.options.transaction_timeout_seconds.into()) + ABORT_MARGIN;
        let deadline = Instant::now() + patience;
        let consumer = client::consumer(&inner.options, &config::reader(&inner.options, &inner.prefix)?)?;
        let (first, mut end) = probe.stable(&topic, 0)?;
        if until == Until::TrueEnd {
            end = wait_for_transactions(&inner, &probe, &topic, deadline)?;
        }
        let mut cursor = Cursor::new(consumer, &topic, 0, first)?;
        let mut last = Last::default();
        while cursor.next < end {
            // The last offset may belong to nothing at all, if the topic was compacted; then only the end itself tells.
            let ended = cursor.fill(usize::MAX, POLL)?;
            cursor.buffer.drain(..).for_each(|record| last.add(record));
            if ended || cursor.next >= end {
                break;
            }
            if Instant::now() >= deadline {
                return Err(Error::new(&codes::NO_ANSWER, "a topic cannot be read to its end in time")
                    .at("topic", &topic)
                    .hint("Look at the brokers' load; headwater tries again."));
            }
        }
        Ok(last.into_records())
    })
    .await
}

/// Waits until nothing below the end of everything written is undecided, and returns that end.
fn wait_for_transactions(inner: &Inner, probe: &Probe, topic: &str, deadline: Instant) -> Result<u64> {
    let end = probe.end(topic, 0)?;
    let mut pause = Duration::from_millis(2);
    loop {
        let (_, stable) = probe.stable(topic, 0)?;
        if stable >= end {
            return Ok(end);
        }
        if Instant::now() >= deadline {
            let what = format!("offsets {stable} to {end} are in a transaction that is neither committed nor aborted");
            return Err(Error::new(&codes::HANGING_TRANSACTION, what)
                .at("topic", topic)
                .at("partition", 0)
                .hint(hanging_hint(inner, topic, stable)));
        }
        // The brokers tell nobody when a transaction ends; it is asked for, less and less often.
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// The command that ends a transaction is told by where it begins; that is where everything before it is decided.
fn hanging_hint(inner: &Inner, topic: &str, begin: u64) -> String {
    let tool = format!("kafka-transactions.sh --bootstrap-server {}", inner.server());
    format!(
        "Find its producer and stop it, then run `{tool} abort --topic {topic} --partition 0 --start-offset {begin}`; \
         `headwater explain HW1244` says more."
    )
}

/// The last record of each key, in offset order.
#[derive(Default)]
struct Last(BTreeMap<Vec<u8>, StoredRecord>);

impl Last {
    fn add(&mut self, record: StoredRecord) {
        if record.value.is_some() {
            self.0.insert(record.key.clone(), record);
        } else {
            self.0.remove(&record.key);
        }
    }

    fn into_records(self) -> Vec<StoredRecord> {
        let mut records: Vec<_> = self.0.into_values().collect();
        records.sort_by_key(|record| record.offset);
        records
    }
}

/// Opens a reader.
pub(super) async fn open(inner: &Arc<Inner>, topic: &str, partition: u32, from: From) -> Result<Box<dyn LogReader>> {
    let (inner, topic) = (Arc::clone(inner), topic.to_owned());
    let opened = blocking(move || {
        let probe = inner.probe()?;
        let facts = probe.topic(&topic)?;
        let partitions = facts.map(|facts| facts.partitions);
        if partitions.is_none_or(|partitions| partition >= partitions) {
            let what = partitions.map_or_else(
                || "there is no such topic".into(),
                |partitions| format!("the topic has {partitions} partitions, and partition {partition} was asked for"),
            );
            return Err(Error::new(&log::TOPIC_UNKNOWN, what)
                .at("topic", &topic)
                .hint("Check the spelling; `headwater plan` lists the topics of every connector."));
        }
        let consumer = client::consumer(&inner.options, &config::reader(&inner.options, &inner.prefix)?)?;
        let (first, end) = probe.stable(&topic, partition)?;
        let begin = match from {
            From::Earliest => first,
            From::Latest => end,
            // Behind the end there is nothing to fetch yet; what comes below the wanted offset is left out.
            From::Offset(offset) => offset.clamp(first, end),
        };
        let mut cursor = Cursor::new(consumer, &topic, partition, begin)?;
        if let From::Offset(offset) = from {
            cursor.wanted = offset;
        }
        Ok((probe, cursor))
    });
    let (probe, cursor) = opened.await?;
    Ok(Box::new(KafkaReader { probe, cursor: Arc::new(Mutex::new(cursor)) }))
}

/// A reader of one partition.
struct KafkaReader {
    /// Asked for the end. On the reader's own connection the question would wait behind a fetch that waits for records.
    probe: Arc<Probe>,
    /// Shared with the thread of a call: what that thread fetched stays here if the call is dropped before it ends.
    cursor: Arc<Mutex<Cursor>>,
}

#[async_trait]
impl LogReader for KafkaReader {
    async fn read(&mut self, max: usize, wait: Duration) -> Result<Vec<StoredRecord>> {
        let cursor = Arc::clone(&self.cursor);
        blocking(move || {
            let mut cursor = lock(&cursor);
            let wait = if cursor.buffer.is_empty() { wait } else { Duration::ZERO };
            cursor.fill(max, wait)
        })
        .await?;
        let mut cursor = lock(&self.cursor);
        let count = cursor.buffer.len().min(max);
        Ok(cursor.buffer.drain(..count).collect())
    }

    async fn at_end(&mut self) -> Result<bool> {
        let (probe, cursor) = (Arc::clone(&self.probe), Arc::clone(&self.cursor));
        blocking(move || {
            let mut cursor = lock(&cursor);
            let end = settled(&probe, &cursor.topic, cursor.partition)?;
            if cursor.buffer.is_empty() && cursor.next < end {
                // Only markers of transactions may be left, which move the position when they are taken in.
                cursor.fill(1, Duration::from_millis(20))?;
            }
            Ok(cursor.buffer.is_empty() && cursor.next >= end)
        })
        .await
    }
}

/// The end of what is committed. The brokers confirm a commit before its markers are in every partition, so what was confirmed a
/// moment ago gets a moment to appear; a transaction that is really open is not waited for.
fn settled(probe: &Probe, topic: &str, partition: u32) -> Result<u64> {
    let written = probe.end(topic, partition)?;
    let deadline = Instant::now() + SETTLE;
    let mut pause = Duration::from_millis(2);
    loop {
        let (_, stable) = probe.stable(topic, partition)?;
        if stable >= written || Instant::now() >= deadline {
            return Ok(stable);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn lock(cursor: &Mutex<Cursor>) -> MutexGuard<'_, Cursor> {
    // A panic while it was held has been reported by the call that panicked; the state is a queue and two numbers.
    cursor.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A consumer that stands in one partition.
struct Cursor {
    consumer: OffThread<Consuming>,
    topic: String,
    partition: u32,
    /// Behind the last record or marker that was taken in.
    next: u64,
    /// Records below are left out.
    wanted: u64,
    /// Since when no broker could be reached, as far as is known.
    down_since: Option<Instant>,
    buffer: VecDeque<StoredRecord>,
}

impl Cursor {
    fn new(consumer: OffThread<Consuming>, topic: &str, partition: u32, begin: u64) -> Result<Self> {
        let cursor = Self {
            consumer,
            topic: topic.to_owned(),
            partition,
            next: begin,
            wanted: begin,
            down_since: None,
            buffer: VecDeque::new(),
        };
        let mut place = TopicPartitionList::with_capacity(1);
        let assigned = place
            .add_partition_offset(topic, partition as i32, Offset::Offset(begin as i64))
            .and_then(|()| cursor.consumer.assign(&place));
        assigned.map_err(|cause| cursor.failed(&cause))?;
        Ok(cursor)
    }

    /// Takes in up to `max` records, waiting at most `wait` for the first. True if the end of what is committed was met.
    fn fill(&mut self, max: usize, wait: Duration) -> Result<bool> {
        let deadline = Instant::now() + wait;
        let mut ended = false;
        while self.buffer.len() < max && !ended {
            let wait = if self.buffer.is_empty() { deadline.saturating_duration_since(Instant::now()) } else { Duration::ZERO };
            let polled = self.consumer.poll(wait).map(|result| result.map(|message| stored(&message)));
            match polled {
                // A marker ends a poll that does not wait; behind it there may be more.
                None if self.buffer.is_empty() || !self.take_in_markers() => break,
                None => {}
                Some(Ok(record)) => {
                    self.down_since = None;
                    self.next = record.offset + 1;
                    if record.offset >= self.wanted {
                        self.buffer.push_back(record);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    self.down_since = None;
                    ended = true;
                }
                Some(Err(cause)) if is_passing(&cause) || self.may_come_back(&cause) => {}
                Some(Err(cause)) => return Err(self.failed(&cause)),
            }
        }
        self.take_in_markers();
        Ok(ended)
    }

    /// The client reports at once that its last connection broke, also if the next one is made a moment later.
    fn may_come_back(&mut self, cause: &KafkaError) -> bool {
        let down = error::code_of(cause) == Some(RDKafkaErrorCode::AllBrokersDown);
        down && self.down_since.get_or_insert_with(Instant::now).elapsed() < client::ALL_DOWN_LIMIT
    }

    /// Markers of transactions move the consumer's position without being returned. True if there were any.
    fn take_in_markers(&mut self) -> bool {
        let before = self.next;
        let Ok(positions) = self.consumer.position() else { return false };
        let found = positions.find_partition(&self.topic, self.partition as i32);
        if let Some(Offset::Offset(position)) = found.map(|element| element.offset()) {
            self.next = self.next.max(position.max(0) as u64);
        }
        self.next > before
    }

    fn failed(&self, cause: &KafkaError) -> Error {
        const WHAT: &str = "a topic cannot be read";
        let failed = match error::code_of(cause) {
            Some(RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset) => {
                Error::new(&codes::HISTORY_GONE, format!("the records from offset {} on are no longer there", self.next))
                    .hint("Keep the topic's records longer (retention.ms), and start the reader again.")
            }
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                Error::new(&log::TOPIC_UNKNOWN, "the topic was deleted while it was read").hint("Find out who deleted it.")
            }
            Some(RDKafkaErrorCode::AllBrokersDown) => {
                error::gave_up(self.consumer.client().context(), WHAT, cause, &shared::UNREACHABLE)
            }
            _ => error::from_client(cause, WHAT, &codes::NO_ANSWER),
        };
        failed.at("topic", &self.topic).at("partition", self.partition)
    }
}

/// Whether a consumer mends an error by itself.
fn is_passing(cause: &KafkaError) -> bool {
    match error::code_of(cause) {
        // A permission on the group is not needed: it is never joined.
        Some(RDKafkaErrorCode::GroupAuthorizationFailed) => true,
        Some(RDKafkaErrorCode::AllBrokersDown) | None => false,
        Some(code) => error::passes(code),
    }
}

fn stored(message: &BorrowedMessage<'_>) -> StoredRecord {
    let headers = message
        .headers()
        .map(|headers| headers.iter().map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec())).collect());
    StoredRecord {
        offset: message.offset().max(0) as u64,
        timestamp_ms: message.timestamp().to_millis().unwrap_or_default(),
        key: message.key().unwrap_or_default().to_vec(),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers.unwrap_or_default(),
    }
}
