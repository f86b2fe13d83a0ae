//! Everything that must stop a source, by name, and what it must survive.

mod support;

use std::time::Duration;

use headwater_connector::{Batch, IntentMode, Kind, Level, Limits, Op, Position, SourceConnector, Start, Value};
use serde_json::json;
use support::{begin, cells, connector, eventually, is, keyed_connector, next, refused, shared};

/// A database with a table `t`, and a connector after its first start.
async fn started(options: serde_json::Value) -> (String, Box<dyn SourceConnector>, Start) {
    let database = shared().database();
    shared().sql(&database, "CREATE TABLE t (id int PRIMARY KEY, name text)");
    let connector = connector(&shared().url(&database), options);
    let start = begin(&*connector).await;
    (database, connector, start)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_slot_is_lost() {
    let (database, connector, start) = started(json!({})).await;
    shared().sql(&database, &format!("SELECT pg_drop_replication_slot('hw_{database}')"));
    is(&refused(&*connector, &start, &start.position).await, "HW2015", Kind::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_advanced_or_recreated_is_lost() {
    let (database, connector, start) = started(json!({})).await;
    shared().sql(&database, "INSERT INTO t VALUES (1)");
    shared().sql(&database, &format!("SELECT pg_replication_slot_advance('hw_{database}', pg_current_wal_lsn())"));
    is(&refused(&*connector, &start, &start.position).await, "HW2016", Kind::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_in_use_by_another_program_is_waited_for() {
    let (database, connector, start) = started(json!({})).await;
    let other = support::connector(&format!("{}?application_name=another", shared().url(&database)), json!({}));
    let source = other.open(&start.identity, &start.position).await.unwrap();
    is(&refused(&*connector, &start, &start.position).await, "HW2017", Kind::Retry);
    source.close().await.unwrap();
    connector.open(&start.identity, &start.position).await.unwrap().close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_predecessor_does_not_keep_the_slot() {
    let (_, connector, start) = started(json!({})).await;
    let mut old = connector.open(&start.identity, &start.position).await.unwrap();
    let new = connector.open(&start.identity, &start.position).await.unwrap();
    assert_eq!(next(&mut *old).await.unwrap_err().kind(), Kind::Retry);
    new.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_source_is_told_apart() {
    let (_, connector, start) = started(json!({})).await;
    let (_, other, _) = started(json!({})).await;
    is(&other.verify(&start.identity).await.unwrap_err(), "HW2021", Kind::Config);
    connector.verify(&start.identity).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_publication_is_lost() {
    let (database, connector, start) = started(json!({})).await;
    shared().sql(&database, &format!("DROP PUBLICATION hw_{database}"));
    is(&refused(&*connector, &start, &start.position).await, "HW2013", Kind::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partial_position_must_meet_its_transaction() {
    let (database, connector, start) = started(json!({})).await;
    shared().sql(&database, "INSERT INTO t VALUES (1)");
    let base = start.position.as_str();
    for partial in ["7@0/1+1", "7@FFFF/1+1"] {
        let position = Position::new(format!("{base}:{partial}"));
        let mut source = connector.open(&start.identity, &position).await.unwrap();
        is(&next(&mut *source).await.unwrap_err(), "HW2023", Kind::Lost);
        source.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_stops_behind_what_came_before_it() {
    let (database, connector, start) = started(json!({})).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    shared().sql(&database, "INSERT INTO t VALUES (1)");
    shared().sql(&database, "BEGIN; INSERT INTO t VALUES (2); TRUNCATE t; COMMIT");
    let batch = next(&mut *source).await.unwrap();
    assert_eq!(batch.changes().len(), 1, "the transaction of the truncate is not begun");
    let position = batch.position().unwrap().clone();
    is(&next(&mut *source).await.unwrap_err(), "HW2025", Kind::Data);
    source.close().await.unwrap();
    let with_event = support::connector(&shared().url(&database), json!({ "on_truncate": "event" }));
    let mut source = with_event.open(&start.identity, &position).await.unwrap();
    let batch = next(&mut *source).await.unwrap();
    let told: Vec<(Op, u64)> = batch.changes().iter().map(|change| (change.op, change.ordinal)).collect();
    assert_eq!(told, [(Op::Insert, 0), (Op::Truncate, 1)]);
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_not_utf8_are_handed_over_as_invalid() {
    let database = format!("{}_ascii", shared().database());
    shared().sql("postgres", &format!("CREATE DATABASE {database} ENCODING 'SQL_ASCII' TEMPLATE template0"));
    shared().sql(&database, "CREATE TABLE t (id int PRIMARY KEY, name text)");
    let connector = connector(&shared().url(&database), json!({}));
    let start = begin(&*connector).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    shared().sql(&database, "INSERT INTO t VALUES (1, E'canary\\xff')");
    let batch = next(&mut *source).await.unwrap();
    let row = batch.changes()[0].after.unwrap();
    assert_eq!(batch.value(row, 1), Value::Invalid(b"canary\xff"));
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_identity_fills_unchanged_values() {
    let (database, connector, start) = started(json!({})).await;
    shared().sql(&database, "ALTER TABLE t ALTER name SET STORAGE EXTERNAL, REPLICA IDENTITY FULL, ADD extra int");
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    shared().sql(&database, "INSERT INTO t VALUES (1, repeat('x', 9000)); UPDATE t SET extra = 5");
    let mut batch = next(&mut *source).await.unwrap();
    if batch.changes().len() == 1 {
        batch = next(&mut *source).await.unwrap();
    }
    let update = *batch.changes().last().unwrap();
    let (before, after) = (cells(&batch, update.before.row().unwrap()), cells(&batch, update.after.unwrap()));
    assert_eq!((before[1].len(), after[1].len()), (9008, 9008));
    assert_eq!((before[2].as_str(), after[2].as_str()), ("Null", "Text(\"5\")"));
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_table_brings_a_new_schema_at_its_place() {
    let (database, connector, start) = started(json!({})).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    let change = "BEGIN; INSERT INTO t VALUES (1, 'a'); ALTER TABLE t ADD at timestamptz(0); \
                  INSERT INTO t VALUES (2, 'b', '2026-01-01 00:00:00+00'); ALTER TABLE t DROP name; INSERT INTO t VALUES (3); COMMIT";
    shared().sql(&database, change);
    let batch = next(&mut *source).await.unwrap();
    let names: Vec<Vec<&str>> =
        batch.schemas().iter().map(|schema| schema.columns.iter().map(|column| column.name.as_str()).collect()).collect();
    assert_eq!(names, [vec!["id", "name"], vec!["id", "name", "at"], vec!["id", "at"]]);
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn new_tables_join_the_publication_and_foreign_ones_are_passed_over() {
    let (database, _, start) = started(json!({ "tables": "public.t" })).await;
    shared().sql(&database, "CREATE TABLE more (id int PRIMARY KEY); CREATE TABLE extra (id int PRIMARY KEY)");
    shared().sql(&database, &format!("ALTER PUBLICATION hw_{database} ADD TABLE extra"));
    let connector = connector(&shared().url(&database), json!({ "tables": ["public.t", "public.m*"] }));
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    shared().sql(&database, "BEGIN; INSERT INTO extra VALUES (1); INSERT INTO more VALUES (2); COMMIT");
    let batch = next(&mut *source).await.unwrap();
    let told: Vec<(u64, &str)> =
        batch.changes().iter().map(|change| (change.ordinal, batch.schemas()[change.schema as usize].table.as_str())).collect();
    assert_eq!(told, [(1, "public.more")], "counted, not published");
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_is_one_table() {
    let database = shared().database();
    shared().sql(
        &database,
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)",
    );
    let connector = connector(&shared().url(&database), json!({}));
    assert_eq!(connector.tables().await.unwrap().len(), 1);
    let start = begin(&*connector).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    shared().sql(&database, "INSERT INTO p VALUES (1), (11)");
    let batch = next(&mut *source).await.unwrap();
    // Each partition brings the table's description once more.
    assert!(batch.schemas().iter().all(|schema| schema == &batch.schemas()[0]));
    assert_eq!((batch.changes().len(), batch.schemas()[0].table.as_str()), (2, "public.p"));
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_faults_of_tables_come_at_once_with_their_statements() {
    let database = shared().database();
    shared().sql(
        &database,
        "CREATE TABLE bare (id int); CREATE TABLE uniq (id int NOT NULL UNIQUE);
         CREATE TABLE nothing (id int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
         CREATE TABLE keyed (id int PRIMARY KEY, code text, other int NOT NULL UNIQUE); CREATE TABLE composite (b int, a int, PRIMARY KEY (a, b))",
    );
    let options = json!({ "tables": ["public.*", "public.none_*"] });
    let connector = keyed_connector(&shared().url(&database), options, &[("public.keyed", &["code"])]);
    let faults = connector.tables().await.unwrap_err();
    let text: Vec<String> = faults.iter().map(ToString::to_string).collect();
    let text = text.join("\n");
    assert_eq!(faults.len(), 5, "{text}");
    for part in [
        "\"public.none_*\" matches no table",
        "ALTER TABLE \"public\".\"bare\" ADD PRIMARY KEY",
        "REPLICA IDENTITY USING INDEX \"uniq_id_key\"",
        "ALTER TABLE \"public\".\"nothing\" REPLICA IDENTITY DEFAULT",
        "ALTER COLUMN \"code\" SET NOT NULL",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let findings = connector.check().await.unwrap();
    assert_eq!(findings.iter().filter(|finding| finding.level == Level::Error).count(), 5, "{findings:?}");
    let one = keyed_connector(&shared().url(&database), json!({ "tables": "public.keyed" }), &[("public.keyed", &["other"])]);
    let fault = one.tables().await.unwrap_err().remove(0);
    assert!(fault.hint_text().contains("REPLICA IDENTITY USING INDEX \"keyed_other_key\""), "{fault}");
    let two = support::connector(&shared().url(&database), json!({ "tables": "public.composite" }));
    assert_eq!(two.tables().await.unwrap()[0].schema.key_names(), ["a", "b"], "in key order");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_existing_slot_is_adopted_where_it_stands() {
    let (database, connector, start) = started(json!({})).await;
    let intent = connector.prepare().await.unwrap();
    assert_eq!(intent.mode, IntentMode::Adopt);
    let adopted = connector.create(&intent, false).await.unwrap();
    assert_eq!(adopted.position, start.position);
    let actions = connector.plan(true).await.unwrap();
    let told: Vec<(&str, &str)> = actions.iter().map(|action| (action.verb, action.object)).collect();
    assert_eq!(told, [("keep", "publication"), ("adopt", "slot")]);
    shared().sql(&database, &format!("SELECT pg_drop_replication_slot('hw_{database}')"));
    shared().sql(&database, &format!("SELECT pg_create_logical_replication_slot('hw_{database}', 'test_decoding')"));
    is(&connector.prepare().await.unwrap_err(), "HW2019", Kind::Config);
    shared().sql(&database, &format!("SELECT pg_drop_replication_slot('hw_{database}')"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_appears_in_between_is_left_alone() {
    let database = shared().database();
    shared().sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
    let connector = connector(&shared().url(&database), json!({}));
    let intent = connector.prepare().await.unwrap();
    shared().sql(&database, &format!("SELECT pg_create_logical_replication_slot('hw_{database}', 'pgoutput')"));
    is(&connector.create(&intent, false).await.unwrap_err(), "HW2020", Kind::Environment);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_privileges_gets_the_statements() {
    let database = shared().database();
    let role = format!("poor_{database}");
    shared().sql(&database, &format!("CREATE TABLE t (id int PRIMARY KEY); CREATE ROLE {role} LOGIN"));
    let url = shared().url(&database).replace("postgres@", &format!("{role}@"));
    let findings = connector(&url, json!({})).check().await.unwrap();
    let text: Vec<String> = findings.iter().filter_map(|finding| finding.error.as_ref()).map(ToString::to_string).collect();
    let text = text.join("\n");
    assert!(text.contains(&format!("ALTER ROLE \"{role}\" REPLICATION;")), "{text}");
    assert!(text.contains(&format!("CREATE PUBLICATION \"hw_{database}\" FOR TABLE \"public\".\"t\"")), "{text}");
    let error = connector(&url, json!({})).verify(&headwater_connector::Identity::default()).await.unwrap_err();
    is(&error, "HW2003", Kind::Environment);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_pipeline_keeps_its_connection() {
    let (database, _, start) = started(json!({})).await;
    let role = format!("hasty_{database}");
    shared().sql(&database, &format!("CREATE ROLE {role} SUPERUSER LOGIN; ALTER ROLE {role} SET wal_sender_timeout = '1s'"));
    let url = shared().url(&database).replace("postgres@", &format!("{role}@"));
    let connector = connector(&url, json!({}));
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    shared().sql(&database, "INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 60000) i");
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut count = 0;
    while count < 60_000 {
        count += next(&mut *source).await.unwrap().changes().len();
    }
    assert_eq!(count, 60_000);
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_of_the_server_is_a_retry_and_loses_nothing() {
    let server = support::Postgres::start(&["fsync=on"], "");
    let database = server.database();
    server.sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
    let connector = connector(&server.url(&database), json!({}));
    let start = begin(&*connector).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    server.sql(&database, "INSERT INTO t VALUES (1)");
    let batch = next(&mut *source).await.unwrap();
    let position = batch.position().unwrap().clone();
    source.ack(&position).await.unwrap();
    server.crash_and_restart();
    assert_eq!(next(&mut *source).await.unwrap_err().kind(), Kind::Retry);
    server.sql(&database, "INSERT INTO t VALUES (2)");
    // The slot may have moved back to before the ack (C13); the position decides.
    let mut source = connector.open(&start.identity, &position).await.unwrap();
    let batch = next(&mut *source).await.unwrap();
    assert_eq!(cells(&batch, batch.changes()[0].after.unwrap()), ["Text(\"2\")"]);
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_session_is_a_retry() {
    let (database, connector, start) = started(json!({})).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    let pid = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'hw_{database}'");
    shared().sql(&database, &format!("SELECT pg_terminate_backend(({pid}))"));
    let mut batch = Batch::default();
    let limits = Limits { max_wait: Duration::from_secs(5), ..Limits::default() };
    assert_eq!(source.next_batch(&mut batch, &limits).await.unwrap_err().kind(), Kind::Retry);
    eventually("the slot is free", || shared().sql(&database, &pid).is_empty());
}
