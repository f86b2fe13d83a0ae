//! Files that something else has damaged: named, and left as they are.

use std::{collections::BTreeMap, fs};

use super::{
    opening::{filled, refuse},
    *,
};
use crate::log::embedded::codes;

/// The files that hold records, byte for byte. The lock and the readers' index are made anew by whoever opens the log.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let named = entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()));
    named
        .filter(|(name, bytes)| name != "log.lock" && !name.ends_with("-shm") && !(name.ends_with("-wal") && bytes.is_empty()))
        .collect()
}

/// What each kind of damage is called. A page in the middle that nobody reads while opening is found by `check`.
#[tokio::test]
async fn damage_is_named_and_no_file_is_changed_or_made_anew() {
    let whole = tempfile::tempdir().unwrap();
    filled(whole.path()).await;
    let sound = fs::read(whole.path().join("log.db")).unwrap();
    let overwritten = |at: usize, bytes: &[u8]| {
        let mut damaged = sound.clone();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        damaged
    };
    let cases: [(&str, Vec<u8>, &Code); 8] = [
        ("a header of garbage", overwritten(0, &[0xa5; 100]), &codes::NOT_A_LOG),
        ("another program's mark", overwritten(68, b"GPKG"), &codes::NOT_A_LOG),
        ("no mark at all", overwritten(60, &[0; 12]), &codes::NOT_A_LOG),
        ("a newer format", overwritten(60, &9_u32.to_be_bytes()), &codes::NEWER_FORMAT),
        ("no byte", Vec::new(), &codes::EMPTIED),
        ("half a page", sound[..2048].to_vec(), &codes::DAMAGED),
        ("half the file", sound[..sound.len() / 2].to_vec(), &codes::DAMAGED),
        ("text", b"this is no database, whatever its name says".repeat(20), &codes::NOT_A_LOG),
    ];
    for (what, bytes, code) in cases {
        for wal in [None, Some(vec![0xa5_u8; 9000])] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("log.db"), &bytes).unwrap();
            if let Some(wal) = &wal {
                fs::write(dir.path().join("log.db-wal"), wal).unwrap();
            }
            for mode in [Mode::Plan, Mode::Reader, Mode::Daemon] {
                assert_eq!(refuse(dir.path(), mode), code.id, "{what}, {mode:?}, write-ahead log: {}", wal.is_some());
            }
            assert!(fs::read(dir.path().join("log.db")).unwrap() == bytes, "{what}: the file was changed");
        }
    }
}

#[tokio::test]
async fn an_emptied_log_keeps_its_write_ahead_log() {
    let dir = tempfile::tempdir().unwrap();
    let crashed = tempfile::tempdir().unwrap();
    let log = open(dir.path(), Mode::Daemon);
    create(&log, &[TOPIC]).await;
    append(&log, "shop", batch(TOPIC, &["a"])).await;
    super::opening::copy(dir.path(), crashed.path(), &["log.db-wal"]);
    fs::write(crashed.path().join("log.db"), "").unwrap();
    let before = files(crashed.path());
    for mode in [Mode::Plan, Mode::Reader, Mode::Daemon] {
        assert_eq!(refuse(crashed.path(), mode), id(&codes::EMPTIED));
    }
    assert!(files(crashed.path()) == before && before["log.db-wal"].len() as u64 > file::PAGE_BYTES);
}

#[tokio::test]
async fn a_damaged_page_in_the_middle_is_found_by_check_and_by_readers() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let path = dir.path().join("log.db");
    let mut bytes = fs::read(&path).unwrap();
    // The root of the records' table stands among the first pages; this page is one of its leaves.
    let size = file::PAGE_BYTES as usize;
    let page = bytes.len() / size / 2;
    bytes[page * size..(page + 1) * size].fill(0xa5);
    fs::write(&path, &bytes).unwrap();
    let log = open(dir.path(), Mode::Reader);
    let error = log.check().await.unwrap().into_iter().find_map(|finding| finding.error).expect("check finds the damage");
    assert_eq!(error.code().id, id(&codes::DAMAGED));
    let mut reader = log.reader(TOPIC, 0, Start::Earliest).await.unwrap();
    let failed = loop {
        match reader.read(1, Duration::ZERO).await {
            Ok(records) => assert!(!records.is_empty(), "the damage was read over"),
            Err(error) => break error,
        }
    };
    assert_eq!(failed.code().id, id(&codes::DAMAGED));
    assert!(fs::read(&path).unwrap() == bytes);
}
