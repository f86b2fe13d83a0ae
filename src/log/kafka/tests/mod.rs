//! The promises of the log, held against a real broker.

#[path = "../../../../tests/support/kafka.rs"]
mod server;

#[path = "../../../../tests/support/proxy.rs"]
mod proxy;

mod cluster;
mod proxied;
mod security;
mod topics;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use headwater_connector::{Error, Kind, Level, codes as shared};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};

use self::server::Kafka;
use super::{KafkaLog, Options, codes, config};
use crate::log::{Cleanup, From, Log, LogReader, LogWriter, StoredRecord, TopicSpec, Transaction, codes as log, partition};

const PREFIX: &str = "headwater";

fn options(bootstrap: &str, more: &str) -> Options {
    serde_json::from_str(&format!(r#"{{"bootstrap_servers":["{bootstrap}"]{more}}}"#)).unwrap()
}

/// With the shortest transaction timeout, so that a test that waits for one does not wait long.
fn log_at(bootstrap: &str) -> KafkaLog {
    KafkaLog::new(options(bootstrap, r#","transaction_timeout_seconds":10"#), PREFIX).unwrap()
}

fn shared() -> KafkaLog {
    log_at(&Kafka::shared().bootstrap)
}

/// A name that no other test uses.
fn unique(word: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{word}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

fn spec(name: &str, partitions: u32) -> TopicSpec {
    TopicSpec { name: name.to_owned(), partitions: Some(partitions), cleanup: Cleanup::Compact }
}

/// A transaction of records (topic, partition, key, value).
fn transaction(records: &[(&str, u32, &str, Option<&str>)]) -> Transaction {
    let mut built = Transaction::default();
    for (topic, partition, key, value) in records {
        let topic = built.topic_index(topic);
        let key = built.write(|bytes| bytes.extend_from_slice(key.as_bytes()));
        let value = value.map(|value| built.write(|bytes| bytes.extend_from_slice(value.as_bytes())));
        built.push_record(topic, *partition, 1_700_000_000_000, key, value);
    }
    built
}

async fn drain(reader: &mut Box<dyn LogReader>) -> Vec<StoredRecord> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut records = Vec::new();
    loop {
        records.extend(reader.read(10_000, Duration::from_millis(200)).await.unwrap());
        if reader.at_end().await.unwrap() {
            return records;
        }
        assert!(Instant::now() < deadline, "the reader does not get to the end");
    }
}

async fn read_all(log: &KafkaLog, topic: &str, partition: u32) -> Vec<StoredRecord> {
    drain(&mut log.reader(topic, partition, From::Earliest).await.unwrap()).await
}

fn keys(records: &[StoredRecord]) -> Vec<String> {
    records.iter().map(|record| String::from_utf8(record.key.clone()).unwrap()).collect()
}

/// A producer of `connector` that has written `key` to partition 0 and neither commits nor aborts.
fn leave_open(log: &KafkaLog, id: &str, topic: &str, key: &str) -> ThreadedProducer<config::Watch> {
    let settings = config::producer(&log.inner.options, id, 100_000).unwrap();
    let producer: ThreadedProducer<config::Watch> = settings.create_with_context(config::Watch::default()).unwrap();
    producer.init_transactions(Duration::from_secs(20)).unwrap();
    producer.begin_transaction().unwrap();
    producer.send(BaseRecord::to(topic).partition(0).key(key).payload("open")).map_err(|(cause, _)| cause).unwrap();
    producer.flush(Duration::from_secs(20)).unwrap();
    producer
}

#[tokio::test]
async fn what_is_written_comes_back_as_it_was() {
    let (log, topic) = (shared(), unique("as-it-was"));
    log.ensure_topics(&[spec(&topic, 3)]).await.unwrap();
    let mut writer = log.open_writer(&unique("c")).await.unwrap();
    let mut built = transaction(&[(&topic, 0, r#"{"id":1}"#, Some("one")), (&topic, 2, r#"{"id":2}"#, None)]);
    let value = built.write(|bytes| bytes.extend_from_slice(b"c"));
    let empty = built.write(|_| {});
    built.push_header("hw.op", value);
    built.push_header("hw.absent", empty);
    let (index, key) = (built.topic_index(&topic), built.write(|bytes| bytes.extend_from_slice(b"k")));
    built.push_record(index, 1, -5, key, Some(empty));
    writer.commit(built).await.unwrap();
    writer.close().await;

    let first = &read_all(&log, &topic, 0).await[0];
    assert_eq!((first.key.as_slice(), first.value.as_deref()), (&br#"{"id":1}"#[..], Some(&b"one"[..])));
    assert_eq!((first.offset, first.timestamp_ms, first.headers.len()), (0, 1_700_000_000_000, 0));
    let second = &read_all(&log, &topic, 1).await[0];
    assert_eq!(second.headers, [("hw.op".to_owned(), b"c".to_vec()), ("hw.absent".to_owned(), Vec::new())]);
    assert_eq!((second.value.as_deref(), second.timestamp_ms), (Some(&b""[..]), 1));
    assert_eq!(read_all(&log, &topic, 2).await[0].value, None, "a tombstone");

    let printed = Kafka::shared().console_consume(&topic);
    assert_eq!(printed.iter().map(|record| record.partition).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!((printed[0].key.as_deref(), printed[0].timestamp_ms), (Some(r#"{"id":1}"#), 1_700_000_000_000));
    assert_eq!(printed[1].headers[0], ("hw.op".to_owned(), "c".to_owned()));
    assert_eq!(printed[2].value, None);
}

#[tokio::test]
async fn a_transaction_is_seen_whole_or_not_at_all() {
    let (log, one, two, id) = (shared(), unique("whole"), unique("whole"), unique("c"));
    log.ensure_topics(&[spec(&one, 1), spec(&two, 1)]).await.unwrap();
    let killed = leave_open(&log, &format!("{PREFIX}.{id}"), &one, "killed");
    let mut reader = log.reader(&one, 0, From::Earliest).await.unwrap();
    assert!(reader.read(10, Duration::from_millis(300)).await.unwrap().is_empty(), "it is not committed");
    assert!(reader.at_end().await.unwrap());

    let mut writer = log.open_writer(&id).await.unwrap();
    drop(killed);
    writer.commit(transaction(&[(&one, 0, "a", Some("1")), (&two, 0, "b", Some("2"))])).await.unwrap();
    assert_eq!(keys(&drain(&mut reader).await), ["a"], "the killed writer's record was aborted");
    assert_eq!(keys(&read_all(&log, &two, 0).await), ["b"]);
    let mut late = log.reader(&one, 0, From::Latest).await.unwrap();
    assert!(late.at_end().await.unwrap());
    writer.commit(transaction(&[(&one, 0, "c", Some("3"))])).await.unwrap();
    assert_eq!(keys(&drain(&mut late).await), ["c"]);
    let all = read_all(&log, &one, 0).await;
    let mut from = log.reader(&one, 0, From::Offset(all[0].offset + 1)).await.unwrap();
    assert_eq!(keys(&drain(&mut from).await), ["c"], "the next offset that exists");
}

#[tokio::test]
async fn the_older_of_two_writers_is_fenced() {
    let (log, topic, id) = (shared(), unique("fence"), unique("c"));
    log.ensure_topics(&[spec(&topic, 1)]).await.unwrap();
    let mut older = log.open_writer(&id).await.unwrap();
    older.commit(transaction(&[(&topic, 0, "a", Some("1"))])).await.unwrap();
    let mut newer = log.open_writer(&id).await.unwrap();
    newer.commit(transaction(&[(&topic, 0, "b", Some("2"))])).await.unwrap();
    let refused = older.commit(transaction(&[(&topic, 0, "x", Some("3"))])).await.unwrap_err();
    assert_eq!((refused.kind(), refused.code().id), (Kind::Fenced, log::FENCED.id), "{refused}");
    newer.commit(transaction(&[(&topic, 0, "c", Some("4"))])).await.unwrap();
    assert_eq!(keys(&read_all(&log, &topic, 0).await), ["a", "b", "c"]);
}

#[tokio::test]
async fn the_last_records_are_read_past_markers_of_transactions() {
    let (log, topic, id) = (shared(), unique("last"), unique("c"));
    log.ensure_topics(&[spec(&topic, 1)]).await.unwrap();
    assert!(log.last_records(&topic).await.unwrap().is_empty());
    assert!(log.last_records("no-such-topic").await.unwrap().is_empty());
    let mut writer = log.open_writer(&id).await.unwrap();
    let mut built = transaction(&[(&topic, 0, "a", Some("1")), (&topic, 0, "b", Some("1")), (&topic, 0, "gone", Some("1"))]);
    built = writer.commit(built).await.unwrap();
    built.clear(0);
    writer.commit(transaction(&[(&topic, 0, "a", Some("2")), (&topic, 0, "gone", None)])).await.unwrap();
    // Aborted records and their marker are the last things in the partition.
    let killed = leave_open(&log, &unique("other"), &topic, "a");
    killed.abort_transaction(Duration::from_secs(20)).unwrap();
    let began = Instant::now();
    let last = log.last_records(&topic).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "the end is found without waiting for a time to run out");
    assert_eq!(keys(&last), ["b", "a"]);
    assert_eq!(last[1].value.as_deref(), Some(&b"2"[..]));
    assert_eq!(log.peek_records(&topic).await.unwrap(), last);
}

#[tokio::test]
async fn the_last_records_wait_for_an_open_transaction_and_a_peek_does_not() {
    let (log, topic) = (shared(), unique("open"));
    log.ensure_topics(&[spec(&topic, 1)]).await.unwrap();
    let open = leave_open(&log, &unique("slow"), &topic, "a");
    assert!(log.peek_records(&topic).await.unwrap().is_empty());
    let log_of_task = shared();
    let name = topic.clone();
    let waiting = tokio::spawn(async move { log_of_task.last_records(&name).await });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!waiting.is_finished(), "the transaction is still open");
    open.commit_transaction(Duration::from_secs(20)).unwrap();
    assert_eq!(keys(&waiting.await.unwrap().unwrap()), ["a"]);
}

#[tokio::test]
async fn a_foreign_transaction_that_does_not_end_is_named() {
    let (log, topic) = (shared(), unique("hanging"));
    log.ensure_topics(&[spec(&topic, 1)]).await.unwrap();
    // The stranger may take a minute; our own limit is 10 s and the margin.
    let stranger = KafkaLog::new(options(&Kafka::shared().bootstrap, ""), PREFIX).unwrap();
    let open = leave_open(&stranger, &unique("stranger"), &topic, "a");
    let failed = log.last_records(&topic).await.unwrap_err();
    assert_eq!((failed.code().id, failed.kind()), (codes::HANGING_TRANSACTION.id, Kind::Retry), "{failed}");
    open.abort_transaction(Duration::from_secs(20)).unwrap();
}

#[tokio::test]
async fn a_record_that_is_too_large_stops_its_transaction_before_anything_is_sent() {
    let (log, topic, id) = (shared(), unique("large"), unique("c"));
    log.ensure_topics(&[spec(&topic, 1)]).await.unwrap();
    let mut writer = log.open_writer(&id).await.unwrap();
    let large = "x".repeat(1_100_000);
    let records = [(&*topic, 0, "small", Some("1")), (&*topic, 0, "large", Some(&*large))];
    let refused = writer.commit(transaction(&records)).await.unwrap_err();
    assert_eq!((refused.code().id, refused.kind()), (codes::RECORD_TOO_LARGE.id, Kind::Environment), "{refused}");
    let text = refused.to_string();
    assert!(text.contains(&topic) && text.contains("1048588") && text.contains("max.message.bytes=2097152"), "{text}");
    assert!(read_all(&log, &topic, 0).await.is_empty());

    let bootstrap = &Kafka::shared().bootstrap;
    let alter = ["--bootstrap-server", bootstrap, "--alter", "--entity-type", "topics", "--entity-name", &topic];
    let args: Vec<&str> = alter.into_iter().chain(["--add-config", "max.message.bytes=2097152"]).collect();
    Kafka::shared().tool("kafka.admin.ConfigCommand", &args, "");
    let mut writer = log.open_writer(&id).await.unwrap();
    writer.commit(transaction(&records)).await.unwrap();
    assert_eq!(keys(&read_all(&log, &topic, 0).await), ["small", "large"]);
}

#[tokio::test]
async fn batches_fit_a_topic_with_a_low_limit() {
    let (log, topic, id) = (shared(), unique("low"), unique("c"));
    let bootstrap = &Kafka::shared().bootstrap;
    let create = ["--bootstrap-server", bootstrap, "--create", "--topic", &topic, "--partitions", "1"];
    let settings = ["--config", "max.message.bytes=20000", "--config", "cleanup.policy=compact"];
    let args: Vec<&str> = create.into_iter().chain(settings).collect();
    Kafka::shared().tool("org.apache.kafka.tools.TopicCommand", &args, "");
    let mut writer = log.open_writer(&id).await.unwrap();
    // Random text, so that compression does not hide a batch that is too large.
    let values: Vec<String> = (0..500).map(|_| (0..1000).map(|_| fastrand::alphanumeric()).collect()).collect();
    let records: Vec<_> = values.iter().map(|value| (&*topic, 0, "k", Some(&**value))).collect();
    let replaced = writer.commit(transaction(&records)).await.unwrap_err();
    assert_eq!(replaced.code().id, codes::RECYCLE.id, "the topic was not known when the writer was opened: {replaced}");
    let mut writer = log.open_writer(&id).await.unwrap();
    writer.commit(transaction(&records)).await.unwrap();
    assert_eq!(read_all(&log, &topic, 0).await.len(), 500);
}

#[tokio::test]
async fn topics_are_created_as_needed_and_verified() {
    let log = shared();
    let connector = unique("shop");
    let checkpoint = spec(&format!("{PREFIX}.{connector}.checkpoint"), 1);
    let events = TopicSpec { name: unique("events"), partitions: None, cleanup: Cleanup::Compact };
    let dead = TopicSpec { name: unique("dead"), partitions: Some(2), cleanup: Cleanup::Delete };
    let specs = [checkpoint.clone(), events.clone(), dead.clone()];
    assert_eq!(log.topics(std::slice::from_ref(&events.name)).await.unwrap(), [None]);
    let states = log.ensure_topics(&specs).await.unwrap();
    assert_eq!(states.iter().map(|state| state.partitions).collect::<Vec<_>>(), [1, log.default_partitions(), 2]);
    assert_eq!(log.ensure_topics(&specs).await.unwrap(), states, "what exists is adopted");
    let settings = super::admin::settings(&log.inner, &[&checkpoint.name, &dead.name]).await.unwrap();
    assert_eq!((&*settings[0]["cleanup.policy"], &*settings[0]["segment.ms"]), ("compact", "3600000"));
    assert_eq!(settings[1]["cleanup.policy"], "delete");

    let count = log.ensure_topics(&[spec(&dead.name, 5)]).await.unwrap_err();
    assert_eq!(count.code().id, log::TOPIC_MISMATCH.id);
    assert!(count.to_string().contains("2 partitions") && count.to_string().contains(&dead.name), "{count}");
    let policy = log.ensure_topics(&[spec(&dead.name, 2)]).await.unwrap_err();
    assert_eq!(policy.code().id, log::TOPIC_MISMATCH.id);
    assert!(policy.hint_text().contains("--add-config cleanup.policy=compact"), "{policy}");
    let replicas = options(&Kafka::shared().bootstrap, r#","replication_factor":3"#);
    let refused = KafkaLog::new(replicas, PREFIX).unwrap().ensure_topics(&[spec(&unique("many"), 1)]).await.unwrap_err();
    assert_eq!(refused.code().id, codes::NOT_CREATED.id, "{refused}");
}

#[tokio::test]
async fn a_missing_topic_is_named() {
    let log = shared();
    let missing = unique("missing");
    let failed = log.reader(&missing, 0, From::Earliest).await.map(drop).unwrap_err();
    assert_eq!(failed.code().id, log::TOPIC_UNKNOWN.id);
    let mut writer = log.open_writer(&unique("c")).await.unwrap();
    let failed = writer.commit(transaction(&[(&missing, 0, "a", Some("1"))])).await.unwrap_err();
    assert_eq!((failed.code().id, failed.kind()), (codes::TOPIC_VANISHED.id, Kind::Environment), "{failed}");
    assert!(failed.to_string().contains(&missing), "{failed}");
    assert_eq!(log.topics(&[missing]).await.unwrap(), [None], "nothing was created by the way");

    let there = unique("there");
    log.ensure_topics(&[spec(&there, 2)]).await.unwrap();
    let failed = log.reader(&there, 2, From::Earliest).await.map(drop).unwrap_err();
    assert_eq!(failed.code().id, log::TOPIC_UNKNOWN.id);
    let mut writer = log.open_writer(&unique("c")).await.unwrap();
    let failed = writer.commit(transaction(&[(&there, 0, "a", Some("1")), (&there, 7, "b", Some("1"))])).await.unwrap_err();
    assert_eq!(failed.code().id, codes::TOPIC_VANISHED.id, "{failed}");
    assert!(read_all(&log, &there, 0).await.is_empty(), "a record that is refused takes its transaction with it");
    writer.commit(Transaction::default()).await.unwrap_err();
}

#[tokio::test]
async fn the_check_tells_what_is_weak_and_what_cannot_work() {
    let findings = shared().check().await.unwrap();
    assert!(findings.iter().any(|finding| finding.level == Level::Ok && finding.what.contains("1 broker")), "{findings:?}");
    assert!(findings.iter().any(|finding| finding.level == Level::Warning && finding.what.contains("one replica")));
    assert!(findings.iter().all(|finding| finding.level != Level::Error), "{findings:?}");
    let release = findings.iter().find(|finding| finding.what.contains("protocol of Kafka"));
    assert!(release.is_some_and(|found| found.level == Level::Ok && found.what.contains(" 4.")), "{findings:?}");
    let long = options(&Kafka::shared().bootstrap, r#","transaction_timeout_seconds":3600"#);
    let log = KafkaLog::new(long, PREFIX).unwrap();
    let findings = log.check().await.unwrap();
    let error = findings.into_iter().find(|finding| finding.level == Level::Error).and_then(|finding| finding.error);
    assert_eq!(error.unwrap().code().id, codes::TIMEOUT_NOT_ALLOWED.id);
    let refused = log.open_writer(&unique("c")).await.map(drop).unwrap_err();
    assert_eq!((refused.code().id, refused.kind()), (codes::TIMEOUT_NOT_ALLOWED.id, Kind::Environment), "{refused}");
}

#[tokio::test]
async fn a_cluster_that_is_not_there_is_told_soon() {
    let log = log_at("127.0.0.1:1");
    let began = Instant::now();
    let check = log.check().await.unwrap_err();
    assert_eq!(check.code().id, shared::UNREACHABLE.id, "{check}");
    let open = log.open_writer("c").await.map(drop).unwrap_err();
    assert_eq!(open.code().id, shared::UNREACHABLE.id, "{open}");
    assert!(began.elapsed() < Duration::from_secs(30));
}

#[tokio::test]
async fn tls_spoken_to_a_plaintext_port_is_a_failed_login() {
    let security = r#","security":{"protocol":"ssl"}"#;
    let log = KafkaLog::new(options(&Kafka::shared().bootstrap, security), PREFIX).unwrap();
    let failed: Error = log.check().await.unwrap_err();
    assert!([codes::LOGIN_FAILED.id, shared::UNREACHABLE.id].contains(&failed.code().id), "{failed}");
}

#[tokio::test]
async fn the_partition_of_a_key_is_the_one_that_the_java_client_chooses() {
    let (log, topic) = (shared(), unique("murmur"));
    log.ensure_topics(&[spec(&topic, 7)]).await.unwrap();
    let keys: Vec<String> = (0..2000).map(|number: u64| format!("{{\"id\":{}}}", number.pow(3))).collect();
    let input: String = keys.iter().map(|key| format!("{key}\tv\n")).collect();
    let bootstrap = &Kafka::shared().bootstrap;
    let producer = ["--bootstrap-server", bootstrap, "--topic", &topic];
    let reading = ["--reader-property", "parse.key=true", "--reader-property", "key.separator=\t"];
    let args: Vec<&str> = producer.into_iter().chain(reading).collect();
    Kafka::shared().tool("org.apache.kafka.tools.ConsoleProducer", &args, &input);
    let mut seen = 0;
    for number in 0..7 {
        for record in read_all(&log, &topic, number).await {
            assert_eq!(partition::partition_of(&record.key, 7), number, "{}", String::from_utf8_lossy(&record.key));
            seen += 1;
        }
    }
    assert_eq!(seen, keys.len());
}

/// Every transaction is one event and one checkpoint with the same number.
fn numbered(events: &str, checkpoint: &str, number: u32) -> Transaction {
    let number = number.to_string();
    transaction(&[(events, 0, &number, Some(&number)), (checkpoint, 0, "position", Some(&number))])
}

/// Opens a writer and learns where to go on, as the pipeline does after any doubt.
async fn reopen(log: &KafkaLog, id: &str, checkpoint: &str) -> (Box<dyn LogWriter>, u32) {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let opened = async {
            let writer = log.open_writer(id).await?;
            let last = log.last_records(checkpoint).await?;
            Ok::<_, Error>((writer, last))
        };
        match opened.await {
            Ok((writer, last)) => {
                let number = last.last().and_then(|record| record.value.as_deref());
                let number = number.map_or(0, |value| String::from_utf8_lossy(value).parse::<u32>().unwrap() + 1);
                return (writer, number);
            }
            // As in the pipeline, a writer that is fenced while it opens is a doubt: a request of its own may have been repeated.
            Err(failed) => {
                assert!(matches!(failed.kind(), Kind::Retry | Kind::Fenced) && Instant::now() < deadline, "{failed}");
            }
        }
    }
}
