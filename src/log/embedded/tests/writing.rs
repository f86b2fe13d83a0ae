//! Commits, fencing, topics, a full disk.

use std::{fs, sync::Arc};

use headwater_connector::Kind;
use rusqlite::Connection;

use super::*;
use crate::log::{codes as shared, embedded::codes};

#[tokio::test]
async fn a_commit_is_all_or_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    create(&log, &[TOPIC]).await;
    let mut unknown = batch(TOPIC, &["a", "b"]);
    push(&mut unknown, "nowhere", 0, b"k", None);
    let mut writer = log.open_writer("shop").await.unwrap();
    assert_eq!(code_of(writer.commit(unknown).await), id(&shared::TOPIC_UNKNOWN));
    // Useless after an error, whatever the error was.
    assert_eq!(code_of(writer.commit(batch(TOPIC, &["c"])).await), id(&shared::COMMIT_IN_DOUBT));
    let mut outside = batch(TOPIC, &["d"]);
    push(&mut outside, TOPIC, 1, b"k", None);
    let mut writer = log.open_writer("shop").await.unwrap();
    assert_eq!(code_of(writer.commit(outside).await), id(&shared::TOPIC_UNKNOWN));
    assert!(all(&log, TOPIC, 0).await.is_empty());
    append(&log, "shop", batch(TOPIC, &["e", "f"])).await;
    let offsets: Vec<u64> = all(&log, TOPIC, 0).await.iter().map(|record| record.offset).collect();
    assert_eq!(offsets, [0, 1]);
}

#[tokio::test]
async fn a_transaction_comes_back_and_can_be_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    create(&log, &[TOPIC, CHECKPOINT]).await;
    let mut writer = log.open_writer("shop").await.unwrap();
    let mut transaction = Transaction::default();
    for round in 0..3 {
        transaction.clear(1 << 20);
        push(&mut transaction, CHECKPOINT, 0, b"position", Some(format!("{round}").as_bytes()));
        push(&mut transaction, TOPIC, 0, b"k", Some(b"{}"));
        transaction = writer.commit(transaction).await.unwrap();
    }
    writer.commit(Transaction::default()).await.unwrap();
    writer.close().await;
    assert_eq!(values(&log, CHECKPOINT).await, ["0", "1", "2"]);
    assert_eq!(values(&log, TOPIC).await.len(), 3);
}

#[tokio::test]
async fn a_newer_writer_fences_the_older_one_of_the_same_connector_only() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    create(&log, &[TOPIC]).await;
    let mut old = log.open_writer("shop").await.unwrap();
    let mut other = log.open_writer("crm").await.unwrap();
    old.commit(batch(TOPIC, &["a"])).await.unwrap();
    let mut new = log.open_writer("shop").await.unwrap();
    let error = old.commit(batch(TOPIC, &["zombie"])).await.err().unwrap();
    assert_eq!((error.code().id, error.kind()), (id(&shared::FENCED), Kind::Fenced));
    new.commit(batch(TOPIC, &["b"])).await.unwrap();
    other.commit(batch(TOPIC, &["c"])).await.unwrap();
    assert_eq!(values(&log, TOPIC).await, ["a", "b", "c"]);
}

#[tokio::test]
async fn epochs_and_offsets_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let log = open(dir.path(), Mode::Daemon);
        create(&log, &[TOPIC]).await;
        append(&log, "shop", batch(TOPIC, &["a", "b"])).await;
        assert_eq!(all(&log, TOPIC, 0).await.last().unwrap().offset, round * 2 + 1);
    }
    let file = Connection::open(dir.path().join("log.db")).unwrap();
    let epoch: i64 = file.query_row("SELECT epoch FROM owners WHERE connector = 'shop'", [], |row| row.get(0)).unwrap();
    assert_eq!(epoch, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_connectors_write_at_the_same_time() {
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(open(dir.path(), Mode::Daemon));
    create(&log, &[TOPIC]).await;
    let mut tasks = Vec::new();
    for connector in ["a", "b"] {
        let log = Arc::clone(&log);
        tasks.push(tokio::spawn(async move {
            let mut writer = log.open_writer(connector).await.unwrap();
            for number in 0..40 {
                let values = [format!("{connector}{number:03}x"), format!("{connector}{number:03}y")];
                writer.commit(batch(TOPIC, &[&values[0], &values[1]])).await.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let records = all(&log, TOPIC, 0).await;
    assert!(records.iter().map(|record| record.offset).eq(0..160));
    let values = values(&log, TOPIC).await;
    assert!(values.chunks(2).all(|pair| pair[0][..4] == pair[1][..4]), "transactions are not interleaved");
    for connector in ["a", "b"] {
        assert!(values.iter().filter(|value| value.starts_with(connector)).is_sorted());
    }
}

#[tokio::test]
async fn a_commit_whose_caller_goes_away_belongs_to_the_next_answer() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    create(&log, &[CHECKPOINT]).await;
    let mut writer = log.open_writer("shop").await.unwrap();
    {
        let commit = writer.commit(batch(CHECKPOINT, &["a"]));
        // Polled once, which hands the work over, and dropped.
        tokio::select! { biased; _ = commit => {}, () = std::future::ready(()) => {} }
    }
    assert_eq!(log.last_records(CHECKPOINT).await.unwrap().len(), 1);
    assert_eq!(code_of(writer.commit(Transaction::default()).await), id(&shared::COMMIT_IN_DOUBT));
}

#[tokio::test]
async fn a_full_disk_leaves_nothing_and_passes() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    create(&log, &[TOPIC, CHECKPOINT]).await;
    append(&log, "shop", batch(CHECKPOINT, &["before"])).await;
    let mut writer = log.open_writer("shop").await.unwrap();
    {
        let writes = log.writes().unwrap();
        let mut side = writes.lock().await;
        let limit = |connection: &mut Connection| {
            let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
            connection.pragma_update(None, "max_page_count", pages + 4)
        };
        side.with("limit", |connection, _| Ok(limit(connection)?)).unwrap();
    }
    let large = "x".repeat(200_000);
    let mut transaction = batch(CHECKPOINT, &["after"]);
    push(&mut transaction, TOPIC, 0, b"k", Some(large.as_bytes()));
    let error = writer.commit(transaction).await.err().unwrap();
    assert_eq!((error.code().id, error.kind()), (id(&codes::DISK_FULL), Kind::Retry));
    assert!(!error.to_string().contains("xxx"), "no row value in a message: {error}");
    assert_eq!(values(&log, CHECKPOINT).await, ["before"]);
    assert!(all(&log, TOPIC, 0).await.is_empty());
    // The file is opened anew, here without the limit.
    append(&log, "shop", batch(TOPIC, &[&large])).await;
    assert_eq!(all(&log, TOPIC, 0).await[0].offset, 0);
}

#[tokio::test]
async fn a_file_that_was_replaced_is_not_written_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    create(&log, &[TOPIC]).await;
    let mut writer = log.open_writer("shop").await.unwrap();
    fs::rename(dir.path().join("log.db"), dir.path().join("moved.db")).unwrap();
    assert_eq!(code_of(writer.commit(batch(TOPIC, &["a"])).await), id(&codes::REPLACED));
    fs::copy(dir.path().join("moved.db"), dir.path().join("log.db")).unwrap();
    assert_eq!(code_of(log.open_writer("shop").await), id(&codes::REPLACED));
}

#[tokio::test]
async fn topics_are_created_once_and_verified() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    assert_eq!(log.topics(&["a".to_owned()]).await.unwrap(), [None]);
    let specs = [spec("a", None, Cleanup::Compact), spec("b", Some(3), Cleanup::Delete)];
    let states = log.ensure_topics(&specs).await.unwrap();
    assert_eq!(states.iter().map(|state| state.partitions).collect::<Vec<_>>(), [1, 3]);
    assert!(!states[0].id.is_empty() && states[0].id != states[1].id);
    assert_eq!(log.ensure_topics(&[spec("b", None, Cleanup::Delete)]).await.unwrap()[0], states[1]);
    let names = ["b".to_owned(), "c".to_owned(), "a".to_owned()];
    assert_eq!(log.topics(&names).await.unwrap(), [Some(states[1].clone()), None, Some(states[0].clone())]);
    // One that does not fit, so the new one beside it is not created either.
    let refused = [spec("c", None, Cleanup::Compact), spec("b", Some(2), Cleanup::Delete)];
    assert_eq!(code_of(log.ensure_topics(&refused).await), id(&shared::TOPIC_MISMATCH));
    assert_eq!(code_of(log.ensure_topics(&[spec("a", None, Cleanup::Delete)]).await), id(&shared::TOPIC_MISMATCH));
    assert_eq!(log.topics(&names[1..2]).await.unwrap(), [None]);
    for (name, partitions) in [("c", 0), ("c", 257), ("c d", 1), ("", 1), ("c\"", 1)] {
        let result = log.ensure_topics(&[spec(name, Some(partitions), Cleanup::Compact)]).await;
        assert_eq!(code_of(result), id(&codes::TOPIC_NOT_POSSIBLE));
    }
}

#[tokio::test]
async fn every_sqlite_tool_can_read_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    log.ensure_topics(&[spec("s.o", Some(2), Cleanup::Compact), spec("blobs", None, Cleanup::Compact)]).await.unwrap();
    let mut transaction = Transaction::default();
    push(&mut transaction, "s.o", 1, b"{\"id\":1}", Some("{\"name\":\"é\"}".as_bytes()));
    push(&mut transaction, "s.o", 0, b"{\"id\":2}", None);
    push(&mut transaction, "blobs", 0, &[0xff, 0], Some(&[0xfe]));
    append(&log, "shop", transaction).await;
    let tool = Connection::open(dir.path().join("log.db")).unwrap();
    let sql = "SELECT partition || '|' || offset || '|' || timestamp || '|' || key || '|' || coalesce(value, '-') || '|' || \
               json_extract(headers, '$.\"hw.op\"') FROM \"s.o\" ORDER BY partition";
    let lines: Vec<String> = tool.prepare(sql).unwrap().query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let time = "2026-01-02T03:04:05.123Z";
    assert_eq!(lines, [format!("0|0|{time}|{{\"id\":2}}|-|d"), format!("1|0|{time}|{{\"id\":1}}|{{\"name\":\"é\"}}|c")]);
    let kind: String = tool.query_row("SELECT typeof(key) || typeof(value) FROM blobs", [], |row| row.get(0)).unwrap();
    assert_eq!(kind, "blobblob");
    let stored = &all(&log, "blobs", 0).await[0];
    assert_eq!((stored.key.as_slice(), stored.value.as_deref()), (&[0xff, 0][..], Some(&[0xfe][..])));
    assert_eq!(stored.headers, [("hw.op".to_owned(), b"c".to_vec())]);
}

#[tokio::test]
async fn names_that_sqlite_confuses_are_topics_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    let names = ["Order", "order", "topics", "sqlite_x", "owners", "records"];
    create(&log, &names).await;
    for name in names {
        append(&log, "shop", batch(name, &[name])).await;
    }
    for name in names {
        assert_eq!(values(&log, name).await, [name]);
    }
}

/// The COMMIT itself fails, as it does when the disk does not take the last page.
#[tokio::test]
async fn a_commit_that_fails_at_the_end_is_never_taken_for_done() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    create(&log, &[TOPIC]).await;
    let mut writer = log.open_writer("shop").await.unwrap();
    let tool = Connection::open(dir.path().join("log.db")).unwrap();
    // A constraint that is only looked at by COMMIT.
    tool.execute_batch(
        "CREATE TABLE parent (id INTEGER PRIMARY KEY);
         CREATE TABLE child (id REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
         CREATE TRIGGER fail1 AFTER UPDATE ON partitions BEGIN INSERT INTO child VALUES (1); END;
         CREATE TRIGGER fail2 AFTER UPDATE ON owners BEGIN INSERT INTO child VALUES (1); END;",
    )
    .unwrap();
    assert_eq!(code_of(writer.commit(batch(TOPIC, &["a"])).await), id(&shared::COMMIT_IN_DOUBT));
    code_of(log.open_writer("shop").await);
    tool.execute_batch("DROP TRIGGER fail1; DROP TRIGGER fail2").unwrap();
    assert!(all(&log, TOPIC, 0).await.is_empty());
    append(&log, "shop", batch(TOPIC, &["b"])).await;
    assert_eq!(values(&log, TOPIC).await, ["b"]);
}
