//! Compaction and retention against a model.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use proptest::prelude::*;

use super::*;
use crate::log::embedded::{
    compaction::{TUNING, Tuning},
    maintenance::{Halt, Worker},
};

const HOUR_MS: i64 = 3_600_000;

fn worker(log: &EmbeddedLog, tuning: Tuning) -> Worker {
    Worker {
        files: log.files.clone(),
        writes: log.writes().unwrap(),
        stop: Arc::new(AtomicBool::new(false)),
        tuning,
        keep: Duration::from_secs(168 * 3600),
    }
}

fn offsets(records: &[StoredRecord]) -> Vec<u64> {
    records.iter().map(|record| record.offset).collect()
}

fn keyed(records: &[(u8, Option<u8>)]) -> Transaction {
    let mut transaction = Transaction::default();
    for (key, value) in records {
        push(&mut transaction, TOPIC, 0, &[*key], value.as_ref().map(std::slice::from_ref));
    }
    transaction
}

/// Offsets that compaction leaves: the head, and before it the last of each key, without old tombstones.
fn model(records: &[(u8, Option<u8>)], head: i64, tombstones_old: bool) -> Vec<u64> {
    let end = records.len().saturating_sub(head as usize);
    let mut last = BTreeMap::new();
    for (offset, (key, _)) in records[..end].iter().enumerate() {
        last.insert(*key, offset);
    }
    let stays = |offset: &usize| {
        let (key, value) = records[*offset];
        *offset >= end || last[&key] == *offset && !(tombstones_old && value.is_none())
    };
    (0..records.len()).filter(stays).map(|offset| offset as u64).collect()
}

async fn compact_and_compare(batches: Vec<Vec<(u8, Option<u8>)>>, tuning: Tuning) {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    create(&log, &[TOPIC]).await;
    let worker = worker(&log, tuning);
    let mut writer = log.open_writer("shop").await.unwrap();
    let mut records = Vec::new();
    let mut now = 0;
    for batch in batches {
        writer.commit(keyed(&batch)).await.unwrap();
        records.extend(batch);
        now += 1;
        worker.round(now).unwrap();
        // Passes wait until they are worth it, so between them more may be left than the model says, never less.
        let left = offsets(&all(&log, TOPIC, 0).await);
        assert!(model(&records, tuning.head, false).iter().all(|offset| left.contains(offset)));
        let mut last = BTreeMap::new();
        for (key, value) in &records {
            last.insert(vec![*key], value.map(|value| vec![value]));
        }
        let expected: BTreeMap<_, _> = last.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        let state = log.last_records(TOPIC).await.unwrap();
        assert_eq!(state.into_iter().map(|record| (record.key, record.value.unwrap())).collect::<BTreeMap<_, _>>(), expected);
    }
    let file = rusqlite::Connection::open(dir.path().join("log.db")).unwrap();
    file.execute_batch("UPDATE partitions SET clean_records = 0").unwrap();
    worker.round(now).unwrap();
    assert_eq!(offsets(&all(&log, TOPIC, 0).await), model(&records, tuning.head, false));
    worker.round(now + 25 * HOUR_MS).unwrap();
    assert_eq!(offsets(&all(&log, TOPIC, 0).await), model(&records, tuning.head, true));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn compaction_keeps_exactly_the_last_record_of_each_key(
        batches in prop::collection::vec(prop::collection::vec((0..12_u8, prop::option::of(any::<u8>())), 1..20), 1..8),
        head in 0..6_i64,
        keys in 1..15_usize,
        scan in 1..10_usize,
        deletes in 1..5_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(compact_and_compare(batches, Tuning { head, keys, scan, deletes }));
    }
}

#[tokio::test]
async fn a_tombstone_stays_for_a_day_after_it_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    create(&log, &[TOPIC]).await;
    let worker = worker(&log, Tuning { head: 0, ..TUNING });
    // The records' own time is years before this: it is the source's time and does not count.
    let now = 2_000_000_000_000;
    append(&log, "shop", keyed(&[(1, Some(1)), (1, None), (2, Some(2))])).await;
    worker.round(now).unwrap();
    assert_eq!(offsets(&all(&log, TOPIC, 0).await), [1, 2]);
    worker.round(now + 23 * HOUR_MS).unwrap();
    assert_eq!(offsets(&all(&log, TOPIC, 0).await), [1, 2]);
    worker.round(now + 24 * HOUR_MS).unwrap();
    assert_eq!(offsets(&all(&log, TOPIC, 0).await), [2]);
}

#[tokio::test]
async fn topics_that_are_not_compacted_forget_by_age_and_never_use_an_offset_again() {
    let dir = tempfile::tempdir().unwrap();
    {
        let log = open(dir.path(), Mode::Daemon);
        log.ensure_topics(&[spec(TOPIC, None, Cleanup::Delete)]).await.unwrap();
        let worker = worker(&log, Tuning { deletes: 2, ..TUNING });
        append(&log, "shop", batch(TOPIC, &["a", "a", "b", "c", "d"])).await;
        worker.round(0).unwrap();
        append(&log, "shop", batch(TOPIC, &["e"])).await;
        worker.round(100 * HOUR_MS).unwrap();
        assert_eq!(offsets(&all(&log, TOPIC, 0).await), [0, 1, 2, 3, 4, 5]);
        worker.round(167 * HOUR_MS).unwrap();
        assert_eq!(all(&log, TOPIC, 0).await.len(), 6);
        worker.round(168 * HOUR_MS).unwrap();
        assert_eq!(offsets(&all(&log, TOPIC, 0).await), [5]);
        worker.round(268 * HOUR_MS).unwrap();
        assert!(all(&log, TOPIC, 0).await.is_empty());
    }
    let log = open(dir.path(), Mode::Daemon);
    let mut latest = log.reader(TOPIC, 0, Start::Latest).await.unwrap();
    append(&log, "shop", batch(TOPIC, &["f"])).await;
    assert_eq!(offsets(&latest.read(9, Duration::ZERO).await.unwrap()), [6]);
}

/// A clock that goes back makes records stay longer, never shorter, and breaks nothing.
#[tokio::test]
async fn a_clock_that_goes_back_deletes_nothing_early() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    log.ensure_topics(&[spec(TOPIC, None, Cleanup::Delete)]).await.unwrap();
    let worker = worker(&log, TUNING);
    append(&log, "shop", batch(TOPIC, &["a"])).await;
    worker.round(1000 * HOUR_MS).unwrap();
    append(&log, "shop", batch(TOPIC, &["b"])).await;
    worker.round(10 * HOUR_MS).unwrap();
    worker.round(1167 * HOUR_MS).unwrap();
    assert_eq!(all(&log, TOPIC, 0).await.len(), 2);
    worker.round(1168 * HOUR_MS).unwrap();
    assert!(all(&log, TOPIC, 0).await.is_empty());
}

const BATCHES: u8 = 60;

/// Reads to the end of all batches; what it saw last of each key must be the last that was written.
async fn follow(log: &EmbeddedLog) {
    let mut reader = log.reader(TOPIC, 0, Start::Earliest).await.unwrap();
    let (mut next, mut state) = (0, BTreeMap::new());
    while next < u64::from(BATCHES) * 30 {
        for record in reader.read(50, Duration::from_secs(60)).await.unwrap() {
            assert!(record.offset >= next);
            next = record.offset + 1;
            state.insert(record.key, record.value.unwrap()[0]);
        }
    }
    assert!(state.len() == 30 && state.values().all(|value| *value == BATCHES - 1));
}

/// One thread compacts in a loop while a connector writes and two readers follow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_and_a_writer_go_on_while_compaction_runs() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    create(&log, &[TOPIC]).await;
    let outside = open(dir.path(), Mode::Reader);
    let worker = worker(&log, Tuning { head: 5, keys: 40, scan: 16, deletes: 8 });
    let stop = Arc::clone(&worker.stop);
    let compactor = std::thread::spawn(move || {
        loop {
            match worker.round(1) {
                Ok(()) => {}
                Err(Halt::Stopped) => return,
                Err(Halt::Fault(fault)) => panic!("{fault:?}"),
            }
        }
    });
    let writing = async {
        let mut writer = log.open_writer("shop").await.unwrap();
        for number in 0..BATCHES {
            let records: Vec<_> = (0..30).map(|key| (key, Some(number))).collect();
            writer.commit(keyed(&records)).await.unwrap();
        }
    };
    tokio::join!(writing, follow(&log), follow(&outside));
    stop.store(true, Ordering::Release);
    compactor.join().unwrap();
}

/// Whoever closes the log may be the one that maintenance waits for, on a runtime with one thread.
#[tokio::test]
async fn maintenance_stops_even_while_a_connector_has_its_turn() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::new(dir.path());
    options.compact_interval_seconds = 1;
    let log = EmbeddedLog::open(options, Mode::Daemon).unwrap();
    create(&log, &[TOPIC]).await;
    append(&log, "shop", keyed(&[(1, Some(1))])).await;
    let writes = log.writes().unwrap();
    let turn = writes.lock().await;
    log.start_maintenance().unwrap();
    log.start_maintenance().unwrap();
    drop(log);
    drop(turn);
}

#[tokio::test]
async fn maintenance_runs_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::new(dir.path());
    options.compact_interval_seconds = 0;
    let log = EmbeddedLog::open(options, Mode::Daemon).unwrap();
    create(&log, &[TOPIC]).await;
    let records: Vec<_> = (0..1200_u32).map(|number| ((number % 7) as u8, Some(1))).collect();
    append(&log, "shop", keyed(&records)).await;
    log.start_maintenance().unwrap();
    let compacted = async {
        while all(&log, TOPIC, 0).await.len() != 1007 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), compacted).await.expect("the first round comes within the interval");
    log.shutdown();
}

#[tokio::test]
async fn a_large_write_ahead_log_is_emptied() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    create(&log, &[TOPIC]).await;
    append(&log, "shop", batch(TOPIC, &["a"])).await;
    assert!(log.files.wal_bytes() > 0);
    worker(&log, TUNING).empty_wal().unwrap();
    assert_eq!(log.files.wal_bytes(), 0);
    append(&log, "shop", batch(TOPIC, &["b"])).await;
    assert_eq!(values(&log, TOPIC).await, ["a", "b"]);
}
