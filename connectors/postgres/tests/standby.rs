//! A standby as the source, and the failover to one. Each test starts the versions that it is about.

mod support;

use std::time::{Duration, Instant};

use headwater_connector::{Batch, Finding, IntentMode, Kind, Level, Limits, Position, Source, SourceConnector, Start};
use serde_json::json;
use support::{Postgres, begin, connector, eventually, firsts, is, next, next_error, refused};

/// A primary with a table and a publication.
fn primary(major: u32, settings: &[&str]) -> (Postgres, String) {
    let server = Postgres::start_version(major, settings);
    let database = server.database();
    server.sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
    (server, database)
}

fn publish(server: &Postgres, database: &str) {
    server.sql(database, &format!("CREATE PUBLICATION hw_{database} FOR TABLE t WITH (publish_via_partition_root = true)"));
}

/// A first start on a standby, whose primary is idle and has to be told to write down its transactions.
async fn begin_on_standby(connector: &dyn SourceConnector, primary: &Postgres) -> Start {
    let intent = connector.prepare().await.unwrap();
    let port = primary.port;
    let (done, ended) = std::sync::mpsc::channel::<()>();
    let snapshots = std::thread::spawn(move || {
        while ended
            .recv_timeout(Duration::from_millis(300))
            .is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            support::sql::run(port, "postgres", "SELECT pg_log_standby_snapshot()").expect("a snapshot");
        }
    });
    let start = loop {
        match connector.create(&intent, true).await {
            Ok(start) => break start,
            Err(error) => assert_eq!(error.kind(), Kind::Retry, "{error}"),
        }
    };
    drop(done);
    snapshots.join().unwrap();
    start
}

fn codes(findings: &[Finding], level: Level) -> Vec<(&'static str, String)> {
    let of_level = findings.iter().filter(|finding| finding.level == level);
    of_level
        .filter_map(|finding| finding.error.as_ref())
        .map(|error| (error.code().id, format!("{error} {}", error.hint_text())))
        .collect()
}

fn has(findings: &[Finding], level: Level, code: &str, parts: &[&str]) {
    let found = codes(findings, level);
    let fits = |(id, text): &(&str, String)| *id == code && parts.iter().all(|part| text.contains(part));
    assert!(found.iter().any(fits), "{code} {parts:?} in {findings:#?}");
}

fn lacks(findings: &[Finding], part: &str) {
    let found = [codes(findings, Level::Error), codes(findings, Level::Warning)].concat();
    assert!(!found.iter().any(|(_, text)| text.contains(part)), "{part} in {found:#?}");
}

async fn a_standby_is_read(major: u32) {
    let (primary, database) = primary(major, &[]);
    let standby = primary.standby("sb", &[]);
    let connector = connector(&standby.url(&database), json!({}));
    let intent = connector.prepare().await.unwrap();
    let error = connector.create(&intent, false).await.unwrap_err();
    is(&error, "HW2043", Kind::Environment);
    assert!(error.hint_text().contains("CREATE PUBLICATION") && error.hint_text().contains("primary"), "{error}");
    publish(&primary, &database);
    primary.replayed_by(&standby);
    let error = connector.create(&intent, false).await.unwrap_err();
    is(&error, "HW2040", Kind::Retry);
    assert!(error.hint_text().contains("pg_log_standby_snapshot"), "{error}");
    let start = begin_on_standby(&*connector, &primary).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    primary.sql(&database, "INSERT INTO t SELECT generate_series(1, 500)");
    let (rows, position) = firsts(&mut *source, 500).await;
    assert_eq!((rows.len(), rows[499].as_str()), (500, "500"));
    source.ack(&position).await.unwrap();
    let base = position.as_str().split(':').nth(1).expect("version:base").to_owned();
    let sql = format!("SELECT confirmed_flush_lsn >= '{base}' FROM pg_replication_slots");
    eventually("the standby's slot advances", || standby.sql(&database, &sql) == "t");
    lag_ends(&mut *source, &position).await;
    // The standby becomes the primary while it is read; its own slot goes on, and so does every position.
    primary.shut_down();
    standby.promote();
    let mut position = position;
    for id in 501..504 {
        standby.sql(&database, &format!("INSERT INTO t VALUES ({id})"));
        let mut rows = Vec::new();
        while rows.is_empty() {
            match next(&mut *source).await {
                Ok(batch) => {
                    rows = batch.changes().iter().map(|change| format!("{:?}", batch.value(change.after.unwrap(), 0))).collect();
                    position = batch.position().unwrap().clone();
                    source.ack(&position).await.unwrap();
                }
                Err(error) => {
                    assert_eq!(error.kind(), Kind::Retry, "{error}");
                    source = connector.open(&start.identity, &position).await.unwrap();
                }
            }
        }
        assert_eq!(rows, [format!("Text(\"{id}\")")]);
    }
    source.close().await.unwrap();
    standby.sql(&database, "INSERT INTO t VALUES (504)");
    let mut source = connector.open(&start.identity, &position).await.unwrap();
    assert_eq!(firsts(&mut *source, 1).await.0, ["504"]);
    source.close().await.unwrap();
}

/// Reads on until nothing is owed, as a running connector does: idle time and traffic of no interest are told by the server.
async fn lag_ends(source: &mut dyn Source, position: &Position) {
    let monitor = source.monitor();
    let end = Instant::now() + Duration::from_secs(60);
    let mut position = position.clone();
    loop {
        let asking = tokio::spawn({
            let (monitor, position) = (std::sync::Arc::clone(&monitor), position.clone());
            async move { monitor.lag_bytes(&position).await }
        });
        let mut batch = Batch::default();
        let limits = Limits { max_wait: Duration::from_millis(500), ..Limits::default() };
        source.next_batch(&mut batch, &limits).await.unwrap();
        position = batch.position().cloned().unwrap_or(position);
        let lag = asking.await.unwrap().unwrap();
        if lag == 0 {
            return;
        }
        assert!(Instant::now() < end, "{lag} bytes are owed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_of_16_is_a_source() {
    a_standby_is_read(16).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_of_17_is_a_source() {
    a_standby_is_read(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_of_18_is_a_source() {
    a_standby_is_read(18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_of_15_is_refused() {
    let (primary, database) = primary(15, &[]);
    publish(&primary, &database);
    let standby = primary.standby("sb", &[]);
    let connector = connector(&standby.url(&database), json!({}));
    has(&connector.check().await.unwrap(), Level::Error, "HW2008", &["standby", "16 or newer"]);
    let intent = connector.prepare().await.unwrap();
    is(&connector.create(&intent, false).await.unwrap_err(), "HW2008", Kind::Environment);
}

/// The standby hides from its primary what its slot needs, and the primary removes it.
async fn a_conflict_invalidates(major: u32) {
    let (primary, database) = primary(major, &[]);
    publish(&primary, &database);
    let standby = primary.standby("sb", &["hot_standby_feedback=off", "max_standby_streaming_delay=0"]);
    let connector = connector(&standby.url(&database), json!({}));
    let start = begin_on_standby(&*connector, &primary).await;
    has(&connector.check().await.unwrap(), Level::Error, "HW2041", &["ALTER SYSTEM SET hot_standby_feedback = on"]);
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    let reason = "SELECT wal_status FROM pg_replication_slots";
    eventually("the slot is invalidated", || {
        primary.sql(&database, "CREATE TABLE gone (a int); DROP TABLE gone; VACUUM pg_class, pg_attribute; INSERT INTO t VALUES (1) ON CONFLICT DO NOTHING");
        standby.sql(&database, reason) == "lost"
    });
    assert_eq!(next_error(&mut *source).await.kind(), Kind::Retry);
    is(&refused(&*connector, &start, &start.position).await, "HW2033", Kind::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_on_a_standby_of_16_is_named() {
    a_conflict_invalidates(16).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_on_a_standby_of_18_is_named() {
    a_conflict_invalidates(18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lowered_wal_level_of_the_primary_is_named() {
    let (primary, database) = primary(17, &[]);
    publish(&primary, &database);
    let standby = primary.standby("sb", &[]);
    let connector = connector(&standby.url(&database), json!({}));
    let start = begin_on_standby(&*connector, &primary).await;
    primary.restart_with(&["wal_level=replica"]);
    eventually("the slot is invalidated", || standby.sql(&database, "SELECT wal_status FROM pg_replication_slots") == "lost");
    is(&refused(&*connector, &start, &start.position).await, "HW2034", Kind::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_slot_that_the_server_gave_up_is_named() {
    let (server, database) = primary(18, &["idle_replication_slot_timeout='1s'"]);
    let connector = connector(&server.url(&database), json!({}));
    let start = begin(&*connector).await;
    has(&connector.check().await.unwrap(), Level::Warning, "HW2028", &["ALTER SYSTEM SET idle_replication_slot_timeout = 0"]);
    eventually("the slot is invalidated", || {
        server.sql(&database, "CHECKPOINT");
        server.sql(&database, "SELECT invalidation_reason FROM pg_replication_slots") == "idle_timeout"
    });
    is(&refused(&*connector, &start, &start.position).await, "HW2035", Kind::Lost);
}

/// Inserts a row, reads and confirms it.
async fn step(server: &Postgres, database: &str, source: &mut dyn Source, id: u32) -> Position {
    server.sql(database, &format!("INSERT INTO t VALUES ({id})"));
    let (rows, position) = firsts(source, 1).await;
    assert_eq!(rows, [id.to_string()]);
    source.ack(&position).await.unwrap();
    position
}

const SYNCING: [&str; 1] = ["sync_replication_slots=on"];

async fn a_copied_slot_survives(major: u32) {
    let (primary, database) = primary(major, &[]);
    let old = connector(&primary.url(&database), json!({}));
    let start = begin(&*old).await;
    assert_eq!(primary.sql(&database, "SELECT failover FROM pg_replication_slots"), "t", "by default");
    let standby = primary.standby("sb", &SYNCING);
    primary.sql("postgres", "ALTER SYSTEM SET synchronized_standby_slots = 'sb'; SELECT pg_reload_conf()");
    let new = connector(&standby.url(&database), json!({}));
    let mut source = old.open(&start.identity, &start.position).await.unwrap();
    let ready = "SELECT count(*) FROM pg_replication_slots WHERE synced AND NOT temporary AND invalidation_reason IS NULL";
    let mut id = 0;
    let end = Instant::now() + Duration::from_secs(120);
    let mut position = start.position.clone();
    while standby.sql("postgres", ready) != "1" {
        id += 1;
        position = step(&primary, &database, &mut *source, id).await;
        assert!(Instant::now() < end, "the slot is never copied");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Before the promotion the copy is nobody's to read.
    is(&refused(&*new, &start, &position).await, "HW2039", Kind::Retry);
    let findings = new.check().await.unwrap();
    assert!(findings.iter().any(|finding| finding.what.contains("copy that waits")), "{findings:#?}");
    lacks(&findings, "sync_replication_slots");
    lacks(&old.check().await.unwrap(), "synchronized_standby_slots");
    // Published and confirmed to the old primary, but perhaps not in the copy; and not read at all.
    position = step(&primary, &database, &mut *source, 1001).await;
    source.close().await.unwrap();
    primary.sql(&database, "INSERT INTO t VALUES (1002)");
    primary.replayed_by(&standby);
    primary.shut_down();
    standby.promote();
    standby.sql(&database, "INSERT INTO t VALUES (1003)");
    let mut source = new.open(&start.identity, &position).await.unwrap();
    let (rows, position) = firsts(&mut *source, 2).await;
    assert_eq!(rows, ["1002", "1003"], "nothing lost, nothing twice");
    let identity = source.identity().expect("where it reads").clone();
    assert_eq!(identity.get("timeline"), Some("2"), "checkpoints from here on belong to the new history");
    source.close().await.unwrap();
    // The position is beyond the place where the new history began; it was once taken for one of the old history.
    standby.sql(&database, "INSERT INTO t VALUES (1004)");
    let mut source = new.open(&identity, &position).await.unwrap();
    assert_eq!(firsts(&mut *source, 1).await.0, ["1004"]);
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_with_a_copied_slot_loses_and_repeats_nothing_on_17() {
    a_copied_slot_survives(17).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_with_a_copied_slot_loses_and_repeats_nothing_on_18() {
    a_copied_slot_survives(18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_without_the_slot_is_named() {
    let (primary, database) = primary(17, &[]);
    let old = connector(&primary.url(&database), json!({}));
    let start = begin(&*old).await;
    let standby = primary.standby("sb", &[]);
    let new = connector(&standby.url(&database), json!({}));
    has(&new.check().await.unwrap(), Level::Warning, "HW2041", &["ALTER SYSTEM SET sync_replication_slots = on"]);
    primary.replayed_by(&standby);
    primary.shut_down();
    standby.promote();
    is(&refused(&*new, &start, &start.position).await, "HW2031", Kind::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_to_a_standby_that_lagged_has_diverged() {
    let (primary, database) = primary(18, &[]);
    let old = connector(&primary.url(&database), json!({}));
    let start = begin(&*old).await;
    let standby = primary.standby("sb", &[]);
    primary.replayed_by(&standby);
    standby.shut_down();
    let mut source = old.open(&start.identity, &start.position).await.unwrap();
    let position = step(&primary, &database, &mut *source, 1).await;
    source.close().await.unwrap();
    primary.shut_down();
    standby.start_again();
    standby.promote();
    let new = connector(&standby.url(&database), json!({}));
    is(&refused(&*new, &start, &position).await, "HW2022", Kind::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_failover_option_is_checked_and_an_old_slot_is_changed() {
    let (server, database) = primary(17, &[]);
    let failover = || server.sql(&database, "SELECT failover FROM pg_replication_slots WHERE slot_type = 'logical'");
    let without = connector(&server.url(&database), json!({ "failover": false }));
    let start = begin(&*without).await;
    assert_eq!(failover(), "f");
    server.sql("postgres", "SELECT pg_create_physical_replication_slot('sb', true)");
    has(&without.check().await.unwrap(), Level::Warning, "HW2042", &["failover"]);
    let with = connector(&server.url(&database), json!({}));
    has(&with.check().await.unwrap(), Level::Warning, "HW2041", &["ALTER SYSTEM SET synchronized_standby_slots = 'sb'"]);
    let mut source = with.open(&start.identity, &start.position).await.unwrap();
    assert_eq!(failover(), "t");
    step(&server, &database, &mut *source, 1).await;
    source.close().await.unwrap();
    server.sql("postgres", "ALTER SYSTEM SET synchronized_standby_slots = 'sb'; SELECT pg_reload_conf()");
    eventually("the setting", || server.sql("postgres", "SHOW synchronized_standby_slots") == "sb");
    has(&with.check().await.unwrap(), Level::Error, "HW2041", &["holds back all changes", "sb"]);
    let (old, database) = primary(16, &[]);
    let wish = connector(&old.url(&database), json!({ "failover": true }));
    has(&wish.check().await.unwrap(), Level::Error, "HW2042", &["16"]);
    let intent = wish.prepare().await.unwrap();
    assert_eq!(intent.mode, IntentMode::Create);
    is(&wish.create(&intent, false).await.unwrap_err(), "HW2042", Kind::Config);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_fell_behind_is_waited_for() {
    let (primary, database) = primary(18, &[]);
    publish(&primary, &database);
    let standby = primary.standby("sb", &[]);
    let connector = connector(&standby.url(&database), json!({}));
    let start = begin_on_standby(&*connector, &primary).await;
    standby.sql("postgres", "SELECT pg_wal_replay_pause()");
    primary.sql(&database, "INSERT INTO t VALUES (1)");
    // Where the primary stands: a standby that restarts can be behind what it has shown already.
    let position = Position::new(format!("1:{}", primary.sql(&database, "SELECT pg_current_wal_lsn()")));
    is(&refused(&*connector, &start, &position).await, "HW2038", Kind::Retry);
    standby.sql("postgres", "SELECT pg_wal_replay_resume()");
    primary.replayed_by(&standby);
    let mut source = connector.open(&start.identity, &position).await.unwrap();
    primary.sql(&database, "INSERT INTO t VALUES (2)");
    assert_eq!(next(&mut *source).await.unwrap().changes().len(), 1);
    source.close().await.unwrap();
}
