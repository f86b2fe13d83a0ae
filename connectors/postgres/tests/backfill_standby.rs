//! Reading rows from a standby, which sees what it has replayed and says nothing true about the transactions of its primary.

mod support;

use std::time::{Duration, Instant};

use headwater_connector::{ChunkRequest, Kind, SourceConnector, Start};
use serde_json::json;
use support::{
    Postgres,
    chunks::{Held, chunk, chunk_error, first, passes, rows, waiting},
    connector, eventually, is, next,
};

fn primary(major: u32) -> (Postgres, String) {
    let server = Postgres::start_version(major, &[]);
    let database = server.database();
    server.sql(
        &database,
        &format!(
            "CREATE TABLE t (id int PRIMARY KEY, label int); INSERT INTO t SELECT i, i FROM generate_series(1, 9) i;
             CREATE PUBLICATION hw_{database} FOR TABLE t WITH (publish_via_partition_root = true)"
        ),
    );
    (server, database)
}

/// A first start, while the primary tells its running transactions again and again.
async fn begin_on_standby(connector: &dyn SourceConnector, primary: &Postgres) -> Start {
    let intent = connector.prepare().await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let port = primary.port;
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let snapshots = std::thread::spawn(move || {
            while told.recv_timeout(Duration::from_millis(300)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                support::sql::run(port, "postgres", "SELECT pg_log_standby_snapshot()").expect("a snapshot");
            }
        });
        let created = connector.create(&intent, true).await;
        drop(tell);
        snapshots.join().unwrap();
        match created {
            Ok(start) => return start,
            Err(error) => assert!(error.kind() == Kind::Retry && Instant::now() < deadline, "{error}"),
        }
    }
}

async fn rows_of_a_standby(major: u32) {
    let (primary, database) = primary(major);
    let standby = primary.standby("sb", &[]);
    let connector = connector(&standby.url(&database), json!({}));
    let start = begin_on_standby(&*connector, &primary).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    let mut reader = connector.reader().await.unwrap();
    // What runs on the primary is not waited for: before it is visible here, it is not sent from here.
    let open = Held::after(&primary, &database, "BEGIN; INSERT INTO t VALUES (100, 100)");
    let gate = reader.gate().await.unwrap();
    let request = ChunkRequest { gate: Some(gate), ..first("public.t", 50) };
    let (before, batch) = chunk(reader.as_mut(), &request).await;
    assert_eq!(rows(&batch).len(), 9);
    passes(source.as_mut(), &before.barrier).await;
    standby.pause_replay(true);
    open.end("COMMIT");
    let (paused, batch) = chunk(reader.as_mut(), &request).await;
    assert_eq!(rows(&batch).len(), 9);
    standby.pause_replay(false);
    let streamed = next(source.as_mut()).await.unwrap();
    let id = streamed.transaction_id(&streamed.transactions()[0]);
    let (after, batch) = chunk(reader.as_mut(), &request).await;
    assert_eq!(rows(&batch).len(), 10);
    assert_eq!([&before, &paused, &after].map(|chunk| chunk.seen.sees(id)), [false, false, true]);
    passes(source.as_mut(), &after.barrier).await;
    // The standby becomes the primary under the reader: snapshots tell transactions apart by number from now on.
    primary.shut_down();
    standby.promote();
    standby.sql(&database, "INSERT INTO t VALUES (101, 101)");
    let running = Held::after(&standby, &database, "BEGIN; INSERT INTO t VALUES (102, 102)");
    let (promoted, batch) = chunk(reader.as_mut(), &request).await;
    assert_eq!(rows(&batch).len(), 11);
    assert!(promoted.seen.sees(id));
    let gate = reader.gate().await.unwrap();
    let told = waiting(reader.as_mut(), &ChunkRequest { gate: Some(gate), ..first("public.t", 50) }).await;
    assert!(told.contains("1 open transactions"), "{told}");
    running.end("ROLLBACK");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_standby_of_16_show_what_it_has_replayed() {
    rows_of_a_standby(16).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_standby_of_18_show_what_it_has_replayed() {
    rows_of_a_standby(18).await;
}

async fn a_conflict_passes(major: u32) {
    let (primary, database) = primary(major);
    let standby = primary.standby("sb", &["hot_standby_feedback=off", "max_standby_streaming_delay=0"]);
    primary.replayed_by(&standby);
    let connector = connector(&standby.url(&database), json!({}));
    let mut reader = connector.reader().await.unwrap();
    let filter = Some("pg_sleep(600) IS NOT NULL".to_owned());
    let reading =
        tokio::spawn(async move { chunk_error(reader.as_mut(), &ChunkRequest { filter, ..first("public.t", 50) }).await });
    eventually("the chunk is read", || {
        standby.sql("postgres", "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == "1"
    });
    primary.sql(&database, "DELETE FROM t WHERE id > 2; VACUUM t");
    let error = reading.await.unwrap();
    is(&error, "HW2073", Kind::Retry);
    assert!(error.to_string().contains("40001"), "{error}");
    let (_, batch) = chunk(connector.reader().await.unwrap().as_mut(), &first("public.t", 50)).await;
    assert_eq!(rows(&batch).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_with_the_replay_of_15_is_tried_again() {
    a_conflict_passes(15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_with_the_replay_of_18_is_tried_again() {
    a_conflict_passes(18).await;
}

/// What is visible on one server may not be visible yet on another, so a gate that one has passed says nothing about the other.
#[tokio::test(flavor = "multi_thread")]
async fn rows_are_read_where_the_stream_comes_from_and_from_no_other_host() {
    let (primary, database) = primary(18);
    let standby = primary.standby("sb", &[]);
    primary.replayed_by(&standby);
    let url =
        format!("postgres://postgres@127.0.0.1:{},127.0.0.1:{}/{database}?target_session_attrs=any", primary.port, standby.port);
    let connector = connector(&url, json!({}));
    let start = support::begin(&*connector).await;
    let source = connector.open(&start.identity, &start.position).await.unwrap();
    let mut reader = connector.reader().await.unwrap();
    assert_eq!(rows(&chunk(reader.as_mut(), &first("public.t", 50)).await.1).len(), 9);
    source.close().await.unwrap();
    primary.shut_down();
    for mut reader in [reader, connector.reader().await.unwrap()] {
        assert_eq!(chunk_error(reader.as_mut(), &first("public.t", 50)).await.kind(), Kind::Retry);
    }
    assert_eq!(standby.sql(&database, "SELECT count(*) FROM t"), "9");
}
