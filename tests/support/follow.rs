//! A consumer that reads on where it stopped, so that a long run need not start a process for every look at the topics.

use std::time::Instant;

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::Headers,
};

use super::{PATIENCE, record::Record};

/// A topic, a partition of it, and the first offset that is wanted.
pub type From<'a> = (&'a str, u32, u64);

/// Reads committed records only.
pub struct Follower {
    consumer: BaseConsumer,
}

impl Follower {
    /// A reader at this broker.
    pub fn new(bootstrap: &str) -> Self {
        let mut settings = ClientConfig::new();
        settings.set("bootstrap.servers", bootstrap).set("group.id", "follower").set("enable.auto.commit", "false");
        settings.set("isolation.level", "read_committed").set("enable.partition.eof", "true").set("fetch.wait.max.ms", "10");
        // A broker that was just restarted is asked again at once.
        settings.set("reconnect.backoff.max.ms", "200");
        Self { consumer: settings.create().expect("a consumer") }
    }

    /// Everything from these offsets to the last stable offset of each partition, in any order.
    pub fn read(&self, from: &[From]) -> Vec<Record> {
        let mut places = TopicPartitionList::new();
        for (topic, partition, offset) in from {
            let offset = Offset::Offset(i64::try_from(*offset).expect("an offset"));
            places.add_partition_offset(topic, i32::try_from(*partition).expect("a partition"), offset).expect("a place");
        }
        self.consumer.assign(&places).expect("an assignment");
        let deadline = Instant::now() + PATIENCE;
        let (mut records, mut ends) = (Vec::new(), 0);
        while ends < from.len() {
            assert!(Instant::now() < deadline, "{ends} of {} partitions could be read to their end", from.len());
            match self.consumer.poll(std::time::Duration::from_millis(100)) {
                Some(Ok(message)) => records.push(record(&message)),
                Some(Err(KafkaError::PartitionEOF(_))) => ends += 1,
                // The broker is away, or does not know the topic yet.
                Some(Err(_)) | None => {}
            }
        }
        records
    }
}

fn record(message: &impl Message) -> Record {
    let text = |bytes: Option<&[u8]>| bytes.map(|bytes| std::str::from_utf8(bytes).expect("UTF-8").to_owned());
    let time = message.timestamp().to_millis().expect("a timestamp");
    let headers = message.headers().into_iter().flat_map(Headers::iter);
    Record {
        topic: message.topic().to_owned(),
        partition: u32::try_from(message.partition()).expect("a partition"),
        offset: u64::try_from(message.offset()).expect("an offset"),
        timestamp: jiff::Timestamp::from_millisecond(time).expect("a time").strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        key: text(message.key()).expect("no key is null"),
        value: text(message.payload()).map(|text| serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))),
        headers: headers.map(|header| (header.key.to_owned(), text(header.value).unwrap_or_default())).collect(),
    }
}
