//! A publication that changes under a running connector, or while it is away: named stops, and no gap that nobody sees.

mod support;

use headwater_connector::{Kind, SourceConnector, Start};
use serde_json::json;
use support::{begin, connector, firsts, is, next, next_error, refused, shared};

async fn started() -> (String, Box<dyn SourceConnector>, Start) {
    let database = shared().database();
    shared().sql(&database, "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)");
    let connector = connector(&shared().url(&database), json!({}));
    let start = begin(&*connector).await;
    (database, connector, start)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_taken_out_stops_a_running_stream_and_the_next_start() {
    let (database, connector, start) = started().await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    shared().sql(&database, "INSERT INTO t VALUES (1)");
    let (_, position) = firsts(&mut *source, 1).await;
    shared().sql(&database, &format!("ALTER PUBLICATION hw_{database} DROP TABLE t"));
    shared().sql(&database, "INSERT INTO t VALUES (2)");
    let error = next_error(&mut *source).await;
    is(&error, "HW2032", Kind::Lost);
    let statement = format!("ALTER PUBLICATION \"hw_{database}\" ADD TABLE \"public\".\"t\"");
    assert!(error.to_string().contains("public.t") && error.hint_text().contains(&statement), "{error}");
    source.close().await.unwrap();
    // Nor does a start put it back, which would hide the gap; the operator does.
    is(&refused(&*connector, &start, &position).await, "HW2032", Kind::Lost);
    shared().sql(&database, &statement);
    let mut source = connector.open(&start.identity, &position).await.unwrap();
    shared().sql(&database, "INSERT INTO t VALUES (3)");
    assert_eq!(firsts(&mut *source, 1).await.0, ["3"]);
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_becomes_unlogged_is_noticed() {
    let database = shared().database();
    shared().sql(&database, "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)");
    // The server refuses it for a table that a publication names, but not here.
    shared().sql(&database, &format!("CREATE PUBLICATION hw_{database} FOR ALL TABLES WITH (publish_via_partition_root = true)"));
    let connector = connector(&shared().url(&database), json!({}));
    let start = begin(&*connector).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    shared().sql(&database, "ALTER TABLE u SET UNLOGGED; INSERT INTO u VALUES (1)");
    let error = next_error(&mut *source).await;
    is(&error, "HW2032", Kind::Lost);
    assert!(error.to_string().contains("public.u"), "{error}");
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_or_made_anew_is_no_loss() {
    let (database, connector, start) = started().await;
    shared().sql(&database, "DROP TABLE u; CREATE TABLE u (id int PRIMARY KEY)");
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    shared().sql(&database, "INSERT INTO u VALUES (1)");
    let (rows, position) = firsts(&mut *source, 1).await;
    assert_eq!(rows, ["1"]);
    source.close().await.unwrap();
    shared().sql(&database, "DROP TABLE u");
    connector.open(&start.identity, &position).await.unwrap().close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_is_dropped_stops_a_running_stream() {
    let (database, connector, start) = started().await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    shared().sql(&database, &format!("DROP PUBLICATION hw_{database}"));
    shared().sql(&database, "INSERT INTO t VALUES (1)");
    is(&next_error(&mut *source).await, "HW2013", Kind::Lost);
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_was_made_again_is_another_one() {
    let (database, connector, start) = started().await;
    // Since version 18 the server passes over changes that were made in between without a word.
    shared().sql(&database, &format!("DROP PUBLICATION hw_{database}; INSERT INTO t VALUES (1)"));
    shared().sql(&database, &format!("CREATE PUBLICATION hw_{database} FOR TABLE t, u WITH (publish_via_partition_root = true)"));
    is(&refused(&*connector, &start, &start.position).await, "HW2013", Kind::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_older_than_its_publication_is_not_adopted() {
    let database = shared().database();
    shared().sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
    shared().sql(&database, &format!("SELECT pg_create_logical_replication_slot('hw_{database}', 'pgoutput')"));
    let connector = connector(&shared().url(&database), json!({}));
    let intent = connector.prepare().await.unwrap();
    let error = connector.create(&intent, false).await.unwrap_err();
    is(&error, "HW2013", Kind::Lost);
    assert!(error.hint_text().contains(&format!("pg_drop_replication_slot('hw_{database}')")), "{error}");
    shared().sql(&database, &format!("SELECT pg_drop_replication_slot('hw_{database}')"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_from_before_the_publication_ends_the_stream_by_name_or_is_passed_over() {
    let database = shared().database();
    shared().sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
    shared().sql(&database, &format!("SELECT pg_create_logical_replication_slot('hw_{database}', 'pgoutput')"));
    shared().sql(&database, "INSERT INTO t VALUES (1)");
    shared().sql(&database, &format!("CREATE PUBLICATION hw_{database} FOR TABLE t"));
    let connector = connector(&shared().url(&database), json!({}));
    let start = begin(&*connector).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    shared().sql(&database, "INSERT INTO t VALUES (2)");
    if shared().major < 18 {
        is(&next_error(&mut *source).await, "HW2013", Kind::Lost);
    } else {
        assert_eq!(firsts(&mut *source, 1).await.0, ["2"]);
    }
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_joins_while_it_is_written_to_loses_no_later_row() {
    let (database, connector, start) = started().await;
    shared().sql(&database, "CREATE TABLE w (id int PRIMARY KEY)");
    let port = shared().port;
    let (step, steps) = std::sync::mpsc::channel::<()>();
    let (done, doing) = std::sync::mpsc::channel::<()>();
    let name = database.clone();
    let writer = std::thread::spawn(move || {
        let mut client = support::sql::connect(port, &name).expect("a session");
        client.batch_execute("BEGIN; INSERT INTO w VALUES (1)").expect("a row from before");
        done.send(()).expect("the test waits");
        steps.recv().expect("the test goes on");
        client.batch_execute("INSERT INTO w VALUES (2); COMMIT").expect("a row from after");
    });
    doing.recv().unwrap();
    // The writer has its transaction open, and the server knows the table as not published in it.
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    step.send(()).unwrap();
    writer.join().unwrap();
    shared().sql(&database, "INSERT INTO w VALUES (3)");
    let mut rows = Vec::new();
    while !rows.contains(&"3".to_owned()) {
        rows.extend(firsts(&mut *source, 1).await.0);
    }
    assert!(rows.contains(&"2".to_owned()), "{rows:?}");
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_leaves_changes_out_stops_a_running_stream() {
    let (database, connector, start) = started().await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    shared().sql(&database, "INSERT INTO t VALUES (1)");
    assert_eq!(next(&mut *source).await.unwrap().changes().len(), 1);
    shared().sql(&database, &format!("ALTER PUBLICATION hw_{database} SET (publish = 'insert')"));
    let error = next_error(&mut *source).await;
    is(&error, "HW2014", Kind::Environment);
    assert!(error.hint_text().contains("ALTER PUBLICATION"), "{error}");
    source.close().await.unwrap();
}

/// Partitions under their own names would be tables that nobody asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_publication_of_partitions_is_refused_with_the_statement_that_mends_it() {
    let database = shared().database();
    shared().sql(
        &database,
        &format!(
            "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
             CREATE PUBLICATION hw_{database} FOR TABLE p"
        ),
    );
    let connector = connector(&shared().url(&database), json!({}));
    let intent = connector.prepare().await.unwrap();
    let refused = connector.create(&intent, false).await.unwrap_err();
    is(&refused, "HW2014", Kind::Environment);
    let mend = refused.hint_text().trim_start_matches("Run ").to_owned();
    assert!(mend.contains("publish_via_partition_root = true"), "{mend}");
    shared().sql(&database, &mend);
    let start = begin(connector.as_ref()).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    shared().sql(&database, "INSERT INTO p VALUES (1)");
    assert_eq!(next(source.as_mut()).await.unwrap().schemas()[0].table, "public.p");
}
