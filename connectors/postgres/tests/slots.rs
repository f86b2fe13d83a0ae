//! Slots that were lost, moved, given up or put back: every one is a named stop, and a creation that has to wait says for what.

mod support;

use std::time::{Duration, Instant};

use headwater_connector::{IntentMode, Kind, Level, SourceConnector, Start};
use serde_json::json;
use support::{Postgres, begin, connector, eventually, firsts, is, next, next_error, refused, shared};

/// Segments of 1 MiB, so that a slot loses its log after a little traffic.
const SMALL: [&str; 5] =
    ["max_slot_wal_keep_size=1MB", "wal_keep_size=0", "min_wal_size=32MB", "max_wal_size=32MB", "wal_sender_timeout=2s"];

fn started_on(server: &Postgres) -> (String, Box<dyn SourceConnector>) {
    let database = server.database();
    server.sql(&database, "CREATE TABLE t (id int PRIMARY KEY, name text)");
    let connector = connector(&server.url(&database), json!({}));
    (database, connector)
}

async fn started() -> (String, Box<dyn SourceConnector>, Start) {
    let (database, connector) = started_on(shared());
    let start = begin(&*connector).await;
    (database, connector, start)
}

/// Writes enough log to push a slot beyond its limit, and lets the server notice.
fn flood(server: &Postgres, database: &str) {
    for _ in 0..4 {
        server.sql(database, "CREATE TABLE IF NOT EXISTS filler (a int); INSERT INTO filler VALUES (1)");
        server.sql(database, "SELECT pg_switch_wal()");
    }
    server.sql(database, "CHECKPOINT");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_dropped_and_created_again_is_ahead() {
    let (database, connector, start) = started().await;
    shared().sql(&database, &format!("SELECT pg_drop_replication_slot('hw_{database}')"));
    shared().sql(&database, &format!("SELECT pg_create_logical_replication_slot('hw_{database}', 'pgoutput')"));
    is(&refused(&*connector, &start, &start.position).await, "HW2016", Kind::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_of_another_database_plugin_or_kind_is_foreign() {
    let (database, connector, start) = started().await;
    let other = shared().database();
    let slot = format!("hw_{database}");
    for (at, create) in [
        (&other, format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")),
        (&database, format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')")),
        (&database, format!("SELECT pg_create_physical_replication_slot('{slot}')")),
    ] {
        // A slot is dropped from its own database.
        let owner = shared().sql("postgres", &format!("SELECT database FROM pg_replication_slots WHERE slot_name = '{slot}'"));
        shared().sql(if owner.is_empty() { at } else { &owner }, &format!("SELECT pg_drop_replication_slot('{slot}')"));
        shared().sql(at, &create);
        is(&refused(&*connector, &start, &start.position).await, "HW2019", Kind::Config);
    }
    shared().sql(&database, &format!("SELECT pg_drop_replication_slot('{slot}')"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_whose_log_was_removed_stops_a_reader_and_a_start() {
    let server = Postgres::start(&SMALL, "");
    let (database, connector) = started_on(&server);
    let start = begin(&*connector).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    // The reader confirms nothing; the server throws it out and gives the slot up.
    flood(&server, &database);
    let lost = format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'hw_{database}'");
    eventually("the slot is lost", || {
        server.sql(&database, "CHECKPOINT");
        server.sql(&database, &lost) == "lost"
    });
    assert_eq!(next_error(&mut *source).await.kind(), Kind::Retry, "the end of the session alone tells nothing");
    let error = refused(&*connector, &start, &start.position).await;
    is(&error, "HW2018", Kind::Lost);
    assert!(error.hint_text().contains("max_slot_wal_keep_size"), "{error}");
    let findings = connector.check().await.unwrap();
    assert!(
        findings.iter().any(|finding| finding.error.as_ref().is_some_and(|error| error.code().id == "HW2018")),
        "{findings:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_about_to_be_lost_is_warned_of() {
    let server = Postgres::start(&["max_slot_wal_keep_size=1MB", "checkpoint_timeout=1h", "max_wal_size=1GB"], "");
    let (database, connector) = started_on(&server);
    begin(&*connector).await;
    for _ in 0..3 {
        server.sql(&database, "INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING; SELECT pg_switch_wal()");
    }
    let findings = connector.check().await.unwrap();
    let text: Vec<String> = findings.iter().filter_map(|finding| finding.error.as_ref()).map(ToString::to_string).collect();
    let warned = text.iter().any(|text| text.contains("HW2028") && text.contains("more than the server allows"));
    assert!(warned, "{text:#?}");
}

/// Castagnoli's polynomial, bit by bit: what the server checks its files with.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (if crc & 1 == 1 { 0x82f6_3b78 } else { 0 });
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_slot_without_a_position_is_lost() {
    let server = Postgres::start(&[], "");
    let (database, connector) = started_on(&server);
    let start = begin(&*connector).await;
    let confirmed =
        server.sql(&database, "SELECT confirmed_flush_lsn, restart_lsn <> confirmed_flush_lsn FROM pg_replication_slots");
    let (confirmed, differs) = confirmed.split_once('|').expect("two cells");
    assert_eq!(differs, "t");
    let (high, low) = confirmed.split_once('/').expect("an LSN");
    let lsn = u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap();
    server.shut_down();
    let path = server.data().join(format!("pg_replslot/hw_{database}/state"));
    let mut state = std::fs::read(&path).unwrap();
    let at = state.windows(8).position(|bytes| bytes == lsn.to_ne_bytes()).expect("the confirmed position in the slot's file");
    state[at..at + 8].fill(0);
    let sum = crc32c(&state[8..]);
    state[4..8].copy_from_slice(&sum.to_ne_bytes());
    std::fs::write(&path, state).unwrap();
    server.start_again();
    is(&refused(&*connector, &start, &start.position).await, "HW2036", Kind::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_put_back_to_an_older_state_is_behind() {
    let server = Postgres::start(&[], "");
    let (database, connector) = started_on(&server);
    let start = begin(&*connector).await;
    let saved = server.save();
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    server.sql(&database, "INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 2000) i");
    let (_, position) = firsts(&mut *source, 2000).await;
    source.close().await.unwrap();
    server.restore(&saved);
    is(&refused(&*connector, &start, &position).await, "HW2037", Kind::Lost);
    // What the copy knows can be read on.
    connector.open(&start.identity, &start.position).await.unwrap().close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_branched_off_before_the_position_has_diverged() {
    let server = Postgres::start(&[], "");
    let (database, connector) = started_on(&server);
    let start = begin(&*connector).await;
    let saved = server.save();
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    server.sql(&database, "INSERT INTO t VALUES (1)");
    let (_, position) = firsts(&mut *source, 1).await;
    source.close().await.unwrap();
    server.restore(&saved);
    server.fork();
    server.sql(&database, "INSERT INTO t SELECT i FROM generate_series(2, 5000) i");
    is(&refused(&*connector, &start, &position).await, "HW2022", Kind::Lost);
    // The fork itself is a history that can be followed, from before it.
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    let (rows, _) = firsts(&mut *source, 4999).await;
    assert_eq!((rows[0].as_str(), rows.len()), ("2", 4999));
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_primary_that_comes_back_has_diverged() {
    let server = Postgres::start(&[], "");
    let (database, connector) = started_on(&server);
    let saved = server.save();
    server.fork();
    let start = begin(&*connector).await;
    assert_eq!(start.identity.get("timeline"), Some("2"));
    server.restore(&saved);
    server.sql(&database, &format!("CREATE PUBLICATION hw_{database} FOR TABLE t"));
    server.sql(&database, &format!("SELECT pg_create_logical_replication_slot('hw_{database}', 'pgoutput')"));
    is(&refused(&*connector, &start, &start.position).await, "HW2022", Kind::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_origin_is_another_source() {
    let (_, connector, start) = started().await;
    let server = Postgres::start_of_another_origin();
    let (_, other) = started_on(&server);
    is(&other.verify(&start.identity).await.unwrap_err(), "HW2021", Kind::Config);
    connector.verify(&start.identity).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_a_crash_moved_back_repeats_nothing() {
    let server = Postgres::start(&["fsync=on", "checkpoint_timeout=1h"], "");
    let (database, connector) = started_on(&server);
    let start = begin(&*connector).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    server.sql(&database, "INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)");
    let (_, position) = firsts(&mut *source, 2).await;
    source.ack(&position).await.unwrap();
    let base = position.as_str().split(':').nth(1).expect("version:base").to_owned();
    let confirmed = format!("SELECT confirmed_flush_lsn >= '{base}' FROM pg_replication_slots WHERE slot_name = 'hw_{database}'");
    let mut told = false;
    let end = Instant::now() + Duration::from_secs(60);
    while !told && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(50)).await;
        told = server.sql(&database, &confirmed) == "t";
    }
    assert!(told, "the server never heard of the position");
    drop(source);
    server.crash_and_restart();
    assert_eq!(server.sql(&database, &confirmed), "f", "C13: the server forgot what it was told");
    server.sql(&database, "INSERT INTO t VALUES (3)");
    let mut source = connector.open(&start.identity, &position).await.unwrap();
    let (rows, _) = firsts(&mut *source, 1).await;
    assert_eq!(rows, ["3"]);
    source.close().await.unwrap();
}

/// A session that has written something and sits there.
fn idle_writer(server: &Postgres, database: &str) -> std::sync::mpsc::Sender<()> {
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let (began, begun) = std::sync::mpsc::channel();
    let (port, database) = (server.port, database.to_owned());
    std::thread::spawn(move || {
        let mut client = support::sql::connect(port, &database).expect("a session");
        client.batch_execute("SET application_name = 'nightly'; BEGIN; INSERT INTO t VALUES (100)").expect("a transaction");
        began.send(()).expect("the test waits");
        let _ = ended.recv();
        let _ = client.batch_execute("COMMIT");
    });
    begun.recv().expect("the transaction has begun");
    end
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_waits_names_the_transactions_and_goes_on_later() {
    let server = Postgres::start(&["max_prepared_transactions=5"], "");
    let (database, connector) = started_on(&server);
    let writer = idle_writer(&server, &database);
    server.sql(&database, "BEGIN; INSERT INTO t VALUES (200); PREPARE TRANSACTION 'forgotten'");
    let intent = connector.prepare().await.unwrap();
    let error = connector.create(&intent, false).await.unwrap_err();
    is(&error, "HW2040", Kind::Retry);
    let text = format!("{error} {}", error.hint_text());
    for part in ["nightly", "idle in transaction", "\"forgotten\"", "ROLLBACK PREPARED 'forgotten'"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert_eq!(server.sql(&database, "SELECT count(*) FROM pg_replication_slots"), "0", "nothing is left of the attempt");
    let findings = connector.check().await.unwrap();
    assert!(
        findings
            .iter()
            .any(|finding| finding.level == Level::Warning
                && finding.error.as_ref().is_some_and(|error| error.code().id == "HW2040")),
        "{findings:?}"
    );
    server.sql(&database, "ROLLBACK PREPARED 'forgotten'");
    let ending = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(1));
        drop(writer);
    });
    let start = connector.create(&intent, true).await.unwrap();
    ending.join().unwrap();
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    server.sql(&database, "INSERT INTO t VALUES (1)");
    assert_eq!(next(&mut *source).await.unwrap().changes().len(), 1);
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_whose_client_died_does_not_block_the_next_start() {
    let server = Postgres::start(&[], "");
    let (database, first) = started_on(&server);
    let writer = idle_writer(&server, &database);
    let intent = first.prepare().await.unwrap();
    let creating = async { first.create(&intent, false).await.map(drop) };
    // Dropped in the middle, as a daemon that is killed: the server does not notice, and goes on waiting.
    let _ = tokio::time::timeout(Duration::from_secs(2), creating).await;
    assert_eq!(server.sql(&database, "SELECT active FROM pg_replication_slots"), "t");
    let second = connector(&server.url(&database), json!({}));
    assert_eq!(intent.mode, IntentMode::Create);
    drop(writer);
    let start = second.create(&intent, true).await.unwrap();
    second.open(&start.identity, &start.position).await.unwrap().close().await.unwrap();
}
