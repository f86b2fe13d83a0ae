//! Readers.

use rusqlite::TransactionBehavior;

use super::*;
use crate::log::codes as shared;

#[tokio::test]
async fn a_reader_sees_nothing_of_an_open_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    let outside = open(dir.path(), Mode::Reader);
    create(&log, &[TOPIC]).await;
    let count = |log: &EmbeddedLog| {
        let sql = format!("SELECT count(*) FROM \"{TOPIC}\"");
        let reads = log.reads.as_ref().unwrap();
        reads.with("count", |connection| Ok(connection.query_row(&sql, [], |row| row.get::<_, i64>(0))?)).unwrap()
    };
    let writes = log.writes().unwrap();
    let mut side = writes.lock().await;
    side.with("write", |connection, topics| {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let table = topics[TOPIC].part(0).table();
        transaction.execute(&format!("INSERT INTO {table} VALUES (0, 0, 'k', 'v', NULL)"), [])?;
        // Readers neither see the record nor wait for the writer.
        assert_eq!((count(&log), count(&outside)), (0, 0));
        transaction.commit()?;
        assert_eq!((count(&log), count(&outside)), (1, 1));
        Ok(())
    })
    .unwrap();
}

#[tokio::test]
async fn a_reader_begins_where_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    create(&log, &[TOPIC]).await;
    append(&log, "shop", batch(TOPIC, &["0", "1", "2", "3"])).await;
    for (from, expected) in [
        (Start::Earliest, &[0, 1, 2][..]),
        (Start::Offset(2), &[2, 3]),
        (Start::Offset(9), &[]),
        (Start::Offset(u64::MAX), &[]),
        (Start::Latest, &[]),
    ] {
        let mut reader = log.reader(TOPIC, 0, from).await.unwrap();
        assert_eq!(reader.at_end().await.unwrap(), expected.is_empty());
        let records = reader.read(3, Duration::ZERO).await.unwrap();
        assert_eq!(records.iter().map(|record| record.offset).collect::<Vec<_>>(), expected, "{from:?}");
    }
    let mut latest = log.reader(TOPIC, 0, Start::Latest).await.unwrap();
    append(&log, "shop", batch(TOPIC, &["4"])).await;
    assert!(!latest.at_end().await.unwrap());
    assert_eq!(latest.read(9, Duration::ZERO).await.unwrap()[0].offset, 4);
    assert_eq!(code_of(log.reader("nowhere", 0, Start::Earliest).await), id(&shared::TOPIC_UNKNOWN));
    assert_eq!(code_of(log.reader(TOPIC, 1, Start::Earliest).await), id(&shared::TOPIC_UNKNOWN));
}

/// Neither reader is given a chance to time out: both must be woken by the commit.
#[tokio::test]
async fn a_waiting_reader_wakes_up_inside_and_outside_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    create(&log, &[TOPIC, "other"]).await;
    let outside = open(dir.path(), Mode::Reader);
    let mut writer = log.open_writer("shop").await.unwrap();
    let mut near = log.reader(TOPIC, 0, Start::Earliest).await.unwrap();
    let mut far = outside.reader(TOPIC, 0, Start::Earliest).await.unwrap();
    for round in 0..5 {
        let wait = Duration::from_secs(600);
        let (near, far, _) = tokio::join!(near.read(10, wait), far.read(10, wait), async {
            writer.commit(batch("other", &["x"])).await.unwrap();
            writer.commit(batch(TOPIC, &["y"])).await.unwrap();
        });
        assert_eq!((near.unwrap()[0].offset, far.unwrap()[0].offset), (round, round));
    }
    assert!(near.read(10, Duration::from_millis(1)).await.unwrap().is_empty());
    assert!(far.read(10, Duration::from_millis(1)).await.unwrap().is_empty());
}

#[tokio::test]
async fn large_values_come_in_small_batches() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    create(&log, &[TOPIC]).await;
    // The helper puts the value into the key, too.
    let large = "x".repeat(3 << 20);
    append(&log, "shop", batch(TOPIC, &[&large, &large, &large])).await;
    let mut reader = log.reader(TOPIC, 0, Start::Earliest).await.unwrap();
    assert_eq!(reader.read(100, Duration::ZERO).await.unwrap().len(), 2);
    assert_eq!(reader.read(100, Duration::ZERO).await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_last_records_are_one_per_key_without_tombstones() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    log.ensure_topics(&[spec(TOPIC, Some(2), Cleanup::Compact)]).await.unwrap();
    assert!(log.last_records("nowhere").await.unwrap().is_empty());
    let mut transaction = Transaction::default();
    for (partition, key, value) in [
        (0, "a", Some("1")),
        (0, "b", Some("1")),
        (0, "a", None),
        (0, "c", Some("1")),
        (0, "b", Some("2")),
        (0, "d", None),
        (0, "a", Some("3")),
        (0, "c", None),
        (1, "e", Some("1")),
    ] {
        push(&mut transaction, TOPIC, partition, key.as_bytes(), value.map(str::as_bytes));
    }
    append(&log, "shop", transaction).await;
    let last = log.last_records(TOPIC).await.unwrap();
    let last: Vec<_> = last.iter().map(|record| (record.offset, record.key.as_slice(), record.value.as_deref())).collect();
    assert_eq!(last, [(4, &b"b"[..], Some(&b"2"[..])), (6, b"a", Some(b"3"))]);
}
