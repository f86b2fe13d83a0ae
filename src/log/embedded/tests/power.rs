//! What a power cut can leave, made from the files of a log in use: a write-ahead log that ends or turns into garbage
//! anywhere, and a database file into which only some pages were copied. A disk that lies about flushes is out of reach.

use std::fs;

use super::*;

const PAGE: usize = super::file::PAGE_BYTES as usize;
const WAL_HEADER: usize = 32;
const FRAME: usize = 24 + PAGE;
const COMMITS: usize = 10;

/// Ten commits of three events and the checkpoint that counts them.
async fn commits(log: &EmbeddedLog) {
    let mut writer = log.open_writer("shop").await.unwrap();
    for number in 1..=COMMITS {
        let mut transaction = batch(TOPIC, &["a", "b", "c"]);
        push(&mut transaction, CHECKPOINT, 0, b"position", Some(format!("{number}").as_bytes()));
        writer.commit(transaction).await.unwrap();
    }
}

/// Opens what a power cut left: how many commits are there, whole, and that the log goes on behind them.
async fn commits_after(database: &[u8], wal: &[u8]) -> usize {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("log.db"), database).unwrap();
    fs::write(dir.path().join("log.db-wal"), wal).unwrap();
    let log = open(dir.path(), Mode::Daemon);
    create(&log, &[TOPIC, CHECKPOINT]).await;
    let position = log.last_records(CHECKPOINT).await.unwrap();
    let text = |record: &StoredRecord| String::from_utf8(record.value.clone().unwrap()).unwrap();
    let position = position.first().map_or(0, |record| text(record).parse().unwrap());
    assert_eq!(all(&log, TOPIC, 0).await.len(), position * 3, "events and checkpoint disagree");
    append(&log, "shop", batch(TOPIC, &["next"])).await;
    assert_eq!(all(&log, TOPIC, 0).await.last().unwrap().offset as usize, position * 3);
    position
}

#[tokio::test]
async fn a_power_cut_at_any_frame_of_the_write_ahead_log_leaves_whole_transactions() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    create(&log, &[TOPIC, CHECKPOINT]).await;
    commits(&log).await;
    let database = fs::read(dir.path().join("log.db")).unwrap();
    let wal = fs::read(dir.path().join("log.db-wal")).unwrap();
    let frames = (wal.len() - WAL_HEADER) / FRAME;
    assert!(frames > 2 * COMMITS, "{frames} frames");
    assert_eq!(commits_after(&database, &wal).await, COMMITS);
    let mut last = 0;
    for end in (0..frames).map(|frame| WAL_HEADER + frame * FRAME).chain([0, WAL_HEADER / 2]) {
        let whole = commits_after(&database, &wal[..end]).await;
        // The frame behind: cut in its head, cut in its page, never written although the file grew, written with a flipped bit.
        let torn = [&wal[..end + 12], &wal[..end + 24 + PAGE / 2]].map(<[u8]>::to_vec);
        let mut unwritten = wal.clone();
        unwritten[end..].fill(0);
        let mut flipped = wal.clone();
        flipped[(end + FRAME / 2).min(wal.len() - 1)] ^= 0x10;
        for tail in torn.into_iter().chain([unwritten, flipped]) {
            assert_eq!(commits_after(&database, &tail).await, whole, "cut at {end}");
        }
        if end > WAL_HEADER {
            assert!(whole >= last, "a longer log holds no less");
            last = whole;
        }
    }
    assert!(last >= COMMITS - 1);
}

/// The write-ahead log is on disk before a page is copied into the database file, and stays until all are: whichever pages of
/// the file are old, new or torn, the log is whole.
#[tokio::test]
async fn a_power_cut_while_pages_are_copied_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    create(&log, &[TOPIC, CHECKPOINT]).await;
    let before = fs::read(dir.path().join("log.db")).unwrap();
    commits(&log).await;
    let wal = fs::read(dir.path().join("log.db-wal")).unwrap();
    drop(log);
    let after = fs::read(dir.path().join("log.db")).unwrap();
    assert!(after.len() > before.len(), "closing copies the pages");
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..60 {
        let mut torn = after.clone();
        for at in (0..after.len()).step_by(PAGE / 2) {
            if rng.bool() {
                let old = before.get(at..at + PAGE / 2).map_or_else(|| vec![0; PAGE / 2], <[u8]>::to_vec);
                torn[at..at + PAGE / 2].copy_from_slice(&old);
            }
        }
        torn.truncate(rng.usize(before.len() / PAGE..=after.len() / PAGE) * PAGE);
        assert_eq!(commits_after(&torn, &wal).await, COMMITS);
    }
}
