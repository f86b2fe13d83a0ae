//! Lock, damage, formats, crashes.

use std::{
    fs::{self, OpenOptions},
    io::{Seek, SeekFrom, Write},
};

use headwater_connector::{Kind, Level};
use rusqlite::Connection;

use super::*;
use crate::log::embedded::codes;

pub(super) fn refuse(dir: &Path, mode: Mode) -> &'static str {
    code_of(EmbeddedLog::open(Options::new(dir), mode))
}

pub(super) fn copy(from: &Path, to: &Path, names: &[&str]) {
    for name in names {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

/// A closed log with some records.
pub(super) async fn filled(dir: &Path) {
    let log = open(dir, Mode::Daemon);
    create(&log, &[TOPIC]).await;
    let value = "v".repeat(3000);
    for _ in 0..20 {
        append(&log, "shop", batch(TOPIC, &[&value, &value])).await;
    }
}

#[tokio::test]
async fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), Mode::Daemon);
    create(&first, &[TOPIC]).await;
    let mut writer = first.open_writer("shop").await.unwrap();
    let error = EmbeddedLog::open(Options::new(dir.path()), Mode::Daemon).err().unwrap();
    assert_eq!((error.code().id, error.kind()), (id(&codes::LOCKED), Kind::Environment));
    let text = error.to_string();
    assert!(text.contains(&std::process::id().to_string()) && text.contains(&*dir.path().to_string_lossy()), "{text}");
    writer.commit(batch(TOPIC, &["a"])).await.unwrap();
    drop(first);
    // The writer still has the log's lock: its commit may be under way.
    assert_eq!(refuse(dir.path(), Mode::Daemon), id(&codes::LOCKED));
    drop(writer);
    assert_eq!(values(&open(dir.path(), Mode::Daemon), TOPIC).await, ["a"]);
}

#[tokio::test]
async fn a_reader_creates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("not-there");
    assert_eq!(refuse(&missing, Mode::Reader), id(&codes::MISSING));
    let plan = open(&missing, Mode::Plan);
    assert_eq!(plan.topics(&[TOPIC.to_owned()]).await.unwrap(), [None]);
    assert!(plan.last_records(TOPIC).await.unwrap().is_empty());
    code_of(plan.reader(TOPIC, 0, Start::Earliest).await);
    code_of(plan.open_writer("shop").await);
    assert!(plan.check().await.unwrap().iter().all(|finding| finding.level == Level::Ok));
    assert!(!missing.exists());
    assert_eq!(refuse(dir.path(), Mode::Reader), id(&codes::MISSING));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_reader_works_without_a_daemon_and_leaves_the_files_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let before = fs::read(dir.path().join("log.db")).unwrap();
    let reader = open(dir.path(), Mode::Reader);
    assert_eq!(all(&reader, TOPIC, 0).await.len(), 40);
    code_of(reader.open_writer("shop").await);
    reader.start_maintenance().unwrap();
    drop(reader);
    assert_eq!(fs::read(dir.path().join("log.db")).unwrap(), before);
}

#[tokio::test]
async fn the_log_directory_is_private_and_problems_with_it_are_named() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join("a/b");
    drop(open(&new, Mode::Daemon));
    assert_eq!(fs::metadata(&new).unwrap().permissions().mode() & 0o777, 0o700);
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(refuse(&file, Mode::Daemon), id(&codes::NOT_WRITABLE));
    assert_eq!(refuse(&file.join("below"), Mode::Daemon), id(&codes::NOT_WRITABLE));
}

#[tokio::test]
async fn files_that_are_not_ours_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let database = dir.path().join("log.db");
    fs::write(&database, "this is a text file, and long enough to be taken for a database of SQLite. ".repeat(99)).unwrap();
    let before = fs::read(&database).unwrap();
    for mode in [Mode::Daemon, Mode::Reader, Mode::Plan] {
        assert_eq!(refuse(dir.path(), mode), id(&codes::NOT_A_LOG));
    }
    assert_eq!(fs::read(&database).unwrap(), before);
    fs::remove_file(&database).unwrap();
    Connection::open(&database).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    for mode in [Mode::Daemon, Mode::Reader] {
        assert_eq!(refuse(dir.path(), mode), id(&codes::NOT_A_LOG));
    }
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    Connection::open(dir.path().join("log.db")).unwrap().pragma_update(None, "user_version", 2).unwrap();
    for mode in [Mode::Daemon, Mode::Reader] {
        assert_eq!(refuse(dir.path(), mode), id(&codes::NEWER_FORMAT));
    }
}

#[tokio::test]
async fn a_first_start_that_crashed_is_made_good() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("log.db.new"), "half a lo").unwrap();
    assert_eq!(refuse(dir.path(), Mode::Reader), id(&codes::MISSING));
    filled(dir.path()).await;
    assert_eq!(all(&open(dir.path(), Mode::Reader), TOPIC, 0).await.len(), 40);
    assert!(!dir.path().join("log.db.new").exists());
}

#[tokio::test]
async fn a_truncated_file_is_named_damaged() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let file = OpenOptions::new().write(true).open(dir.path().join("log.db")).unwrap();
    for part in [2, 4] {
        file.set_len(file.metadata().unwrap().len() / part).unwrap();
        for mode in [Mode::Daemon, Mode::Reader] {
            assert_eq!(refuse(dir.path(), mode), id(&codes::DAMAGED));
        }
    }
}

#[tokio::test]
async fn an_overwritten_file_is_named_damaged() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let mut file = OpenOptions::new().write(true).open(dir.path().join("log.db")).unwrap();
    file.seek(SeekFrom::Start(file::PAGE_BYTES)).unwrap();
    let len = file.metadata().unwrap().len() as usize;
    file.write_all(&vec![0xa5; len - file::PAGE_BYTES as usize]).unwrap();
    match EmbeddedLog::open(Options::new(dir.path()), Mode::Reader) {
        Err(error) => assert_eq!(error.code().id, id(&codes::DAMAGED)),
        Ok(log) => {
            let findings = log.check().await.unwrap();
            let error = findings.into_iter().find_map(|finding| finding.error).expect("check finds the damage");
            assert_eq!((error.code().id, error.kind()), (id(&codes::DAMAGED), Kind::Environment));
            assert_eq!(code_of(log.reader(TOPIC, 0, Start::Earliest).await), id(&codes::DAMAGED));
        }
    }
    assert_eq!(refuse(dir.path(), Mode::Daemon), id(&codes::DAMAGED));
}

#[tokio::test]
async fn a_reader_sees_what_a_crashed_daemon_left_in_the_write_ahead_log() {
    let dir = tempfile::tempdir().unwrap();
    let crashed = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    create(&log, &[TOPIC]).await;
    append(&log, "shop", batch(TOPIC, &["a"])).await;
    copy(dir.path(), crashed.path(), &["log.db", "log.db-wal", "log.lock"]);
    let wal = fs::read(crashed.path().join("log.db-wal")).unwrap();
    let reader = open(crashed.path(), Mode::Reader);
    assert_eq!(values(&reader, TOPIC).await, ["a"]);
    drop(reader);
    // The daemon's next start finds everything as it was.
    assert_eq!(fs::read(crashed.path().join("log.db-wal")).unwrap(), wal);
    assert_eq!(values(&open(crashed.path(), Mode::Daemon), TOPIC).await, ["a"]);
}

#[tokio::test]
async fn a_reader_goes_on_while_the_daemon_comes_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let tail = open(dir.path(), Mode::Reader);
    let mut reader = tail.reader(TOPIC, 0, Start::Latest).await.unwrap();
    for round in 0..3 {
        let log = open(dir.path(), Mode::Daemon);
        append(&log, "shop", batch(TOPIC, &["a"])).await;
        let records = reader.read(10, Duration::from_secs(30)).await.unwrap();
        assert_eq!(records.iter().map(|record| record.offset).collect::<Vec<_>>(), [40 + round]);
    }
}

#[tokio::test]
async fn check_says_who_runs() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = open(dir.path(), Mode::Daemon);
    create(&daemon, &[TOPIC]).await;
    let reader = open(dir.path(), Mode::Reader);
    let findings: Vec<String> = reader.check().await.unwrap().into_iter().map(|finding| finding.what).collect();
    assert!(findings[0].contains(&format!("process {} runs", std::process::id())), "{findings:?}");
    assert!(findings.iter().any(|what| what.contains("1 topics")), "{findings:?}");
    assert!(daemon.check().await.unwrap().iter().all(|finding| finding.level == Level::Ok));
    drop(daemon);
    assert!(!reader.check().await.unwrap()[0].what.contains("runs"));
}
