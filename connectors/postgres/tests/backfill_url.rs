//! Rows from a standby while changes come from its primary.

mod support;

use headwater_connector::{ChunkRequest, Kind, Level, Source, SourceConnector};
use serde_json::json;
use support::{
    Postgres, begin,
    chunks::{Held, chunk, chunk_error, first, passes, rows, waiting},
    connector, eventually, is, next,
};

/// A primary with nine rows, and a standby of it that has them.
fn pair(major: u32) -> (Postgres, Postgres, String) {
    let primary = Postgres::start_version(major, &[]);
    let database = primary.database();
    primary
        .sql(&database, "CREATE TABLE t (id int PRIMARY KEY, label int); INSERT INTO t SELECT i, i FROM generate_series(1, 9) i");
    let standby = primary.standby("sb", &[]);
    primary.replayed_by(&standby);
    (primary, standby, database)
}

fn reading_from(url: &str, reader: &str) -> Box<dyn SourceConnector> {
    connector(url, json!({ "backfill_url": reader }))
}

async fn open(connector: &dyn SourceConnector) -> Box<dyn Source> {
    let start = begin(connector).await;
    connector.open(&start.identity, &start.position).await.unwrap()
}

/// On the standby nothing is waited for but the replay: a transaction that is open on the primary does not concern its rows, and one
/// that waits for a synchronous standby on the primary is visible here already.
async fn a_standby_is_judged_by_what_it_has_replayed(major: u32) {
    let (primary, standby, database) = pair(major);
    let connector = reading_from(&primary.url(&database), &standby.url(&database));
    let mut source = open(&*connector).await;
    let mut reader = connector.reader().await.unwrap();
    let open = Held::after(&primary, &database, "BEGIN; INSERT INTO t VALUES (100, 100)");
    let request = ChunkRequest { gate: Some(reader.gate().await.unwrap()), ..first("public.t", 50) };
    eventually("the gate is replayed", || {
        let flushed = primary.sql("postgres", "SELECT pg_current_wal_flush_lsn()");
        standby.sql("postgres", &format!("SELECT pg_last_wal_replay_lsn() >= '{flushed}'")) == "t"
    });
    let (before, batch) = chunk(reader.as_mut(), &request).await;
    assert_eq!(rows(&batch).len(), 9);
    passes(source.as_mut(), &before.barrier).await;
    // The standby's rows are old from now on, and what the stream brings is not visible to them.
    standby.pause_replay(true);
    open.end("COMMIT");
    let streamed = next(source.as_mut()).await.unwrap();
    let id = streamed.transaction_id(&streamed.transactions()[0]);
    let (paused, batch) = chunk(reader.as_mut(), &request).await;
    assert_eq!(rows(&batch).len(), 9, "the rows are the standby's");
    passes(source.as_mut(), &paused.barrier).await;
    // A gate that is asked for now stands behind the change, which was published already.
    let behind = ChunkRequest { gate: Some(reader.gate().await.unwrap()), ..first("public.t", 50) };
    let told = waiting(reader.as_mut(), &behind).await;
    assert!(told.contains("to replay the log to"), "{told}");
    standby.pause_replay(false);
    primary.replayed_by(&standby);
    let (after, batch) = chunk(reader.as_mut(), &behind).await;
    assert_eq!(rows(&batch).len(), 10);
    assert_eq!([&before, &paused, &after].map(|chunk| chunk.seen.sees(id)), [false, false, true]);
    passes(source.as_mut(), &after.barrier).await;
    reader.close().await;
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_of_15_is_judged_by_what_it_has_replayed() {
    a_standby_is_judged_by_what_it_has_replayed(15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_of_18_is_judged_by_what_it_has_replayed() {
    a_standby_is_judged_by_what_it_has_replayed(18).await;
}

/// The runtime forgets what one snapshot saw. A standby that starts anew or stands in for another may see less.
#[tokio::test(flavor = "multi_thread")]
async fn another_standby_that_sees_less_than_was_read_already_is_waited_for() {
    let (primary, standby, database) = pair(15);
    let late = primary.standby("late", &[]);
    primary.replayed_by(&late);
    late.pause_replay(true);
    let hosts = format!("postgres://postgres@127.0.0.1:{},127.0.0.1:{}/{database}", standby.port, late.port);
    let connector = reading_from(&primary.url(&database), &hosts);
    let source = open(&*connector).await;
    primary.sql(&database, "INSERT INTO t VALUES (100, 100)");
    primary.replayed_by(&standby);
    let mut reader = connector.reader().await.unwrap();
    assert_eq!(rows(&chunk(reader.as_mut(), &first("public.t", 50)).await.1).len(), 10);
    standby.shut_down();
    assert_eq!(chunk_error(reader.as_mut(), &first("public.t", 50)).await.kind(), Kind::Retry);
    for reader in [&mut reader, &mut connector.reader().await.unwrap()] {
        let told = waiting(reader.as_mut(), &first("public.t", 50)).await;
        assert!(told.contains("to replay the log to"), "{told}");
    }
    late.pause_replay(false);
    primary.replayed_by(&late);
    assert_eq!(rows(&chunk(reader.as_mut(), &first("public.t", 50)).await.1).len(), 10);
    source.close().await.unwrap();
}

/// What a chunk and `check` say of the server.
async fn refuse(url: &str, reader: &str, words: &str) {
    let connector = reading_from(url, reader);
    let start = connector.create(&connector.prepare().await.unwrap(), true).await.unwrap();
    let source = connector.open(&start.identity, &start.position).await.unwrap();
    let error = chunk_error(connector.reader().await.unwrap().as_mut(), &first("public.t", 50)).await;
    is(&error, "HW2074", Kind::Environment);
    assert!(error.what().contains(words), "{words:?} in {error}");
    source.close().await.unwrap();
    let findings = connector.check().await.unwrap();
    let errors = findings.iter().filter(|finding| finding.level == Level::Error).filter_map(|finding| finding.error.as_ref());
    let said = errors.filter(|error| error.code().id == "HW2074" && error.what().contains(words)).count();
    assert_eq!(said, 1, "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_standby_of_the_source_is_read() {
    let (primary, standby, database) = pair(16);
    let url = primary.url(&database);
    let other = Postgres::start_of_another_origin();
    other.sql("postgres", &format!("CREATE DATABASE {database}"));
    refuse(&url, &other.url(&database), "system").await;
    refuse(&url, &standby.url("postgres"), "database").await;
    refuse(&url, &url, "no standby").await;
    let ok = reading_from(&url, &standby.url(&database)).check().await.unwrap();
    assert!(ok.iter().any(|one| one.level == Level::Ok && one.what.contains("rows are read from the standby")), "{ok:?}");
    standby.promote();
    eventually("the promotion", || standby.sql("postgres", "SELECT pg_is_in_recovery()") == "f");
    refuse(&url, &standby.url(&database), "no standby").await;
}

/// Places on two timelines cannot be compared: the standby follows another server from where both went their own way.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_follows_another_timeline_is_waited_for() {
    let (primary, standby, database) = pair(15);
    let below = standby.standby("below", &[]);
    let connector = reading_from(&primary.url(&database), &below.url(&database));
    let source = open(&*connector).await;
    primary.replayed_by(&below);
    let mut reader = connector.reader().await.unwrap();
    assert_eq!(rows(&chunk(reader.as_mut(), &first("public.t", 50)).await.1).len(), 9);
    standby.promote();
    standby.sql(&database, "UPDATE t SET label = 0");
    eventually("the standby follows", || below.sql(&database, "SELECT count(*) FROM t WHERE label = 0") == "9");
    let told = waiting(reader.as_mut(), &first("public.t", 50)).await;
    assert!(told.contains("one timeline; they are on 2 and 1"), "{told}");
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn check_looks_at_the_standby() {
    let (primary, standby, database) = pair(15);
    primary.sql(&database, "CREATE ROLE reader LOGIN REPLICATION");
    primary.replayed_by(&standby);
    let check = async |url: String, level: Level| -> Vec<String> {
        let findings = reading_from(&primary.url(&database), &url).check().await.unwrap();
        let text = |error: &headwater_connector::Error| format!("{error} | {}", error.hint_text());
        findings.iter().filter(|finding| finding.level == level).filter_map(|finding| finding.error.as_ref().map(text)).collect()
    };
    let one = |found: &[String], parts: &[&str]| {
        assert!(found.iter().any(|said| parts.iter().all(|part| said.contains(part))), "{parts:?} in {found:#?}");
    };
    let found = check(standby.url(&database).replace("postgres@", "reader@"), Level::Error).await;
    one(&found, &["HW2003", "public.t", "GRANT SELECT ON \"public\".\"t\" TO \"reader\"", "on the primary"]);
    let found = check(standby.url(&database).replace("postgres@", "postgres:hunter2@"), Level::Warning).await;
    one(&found, &["HW2030", "backfill_url"]);
    assert!(!format!("{found:?}").contains("hunter2"));
    standby.pause_replay(true);
    one(&check(standby.url(&database), Level::Warning).await, &["HW2075", "paused"]);
    standby.shut_down();
    one(&check(standby.url(&database), Level::Error).await, &["backfill_url", &standby.port.to_string()]);
}
