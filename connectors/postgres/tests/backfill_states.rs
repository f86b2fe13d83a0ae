//! What a chunk waits for, what refuses it, and what happens to its table meanwhile.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use headwater_connector::{Batch, ChunkRead, ChunkRequest, Error, Kind, Source, SourceConnector, TableReader, Value};
use serde_json::json;
use support::{
    Postgres, begin, cells,
    chunks::{Held, chunk, chunk_error, first, labels, reader, rows, waiting},
    connector, eventually, is, next, shared,
};

/// A role that may do what the documentation asks for, and a table of another role.
fn plain_role(server: &Postgres, database: &str) -> String {
    let role = format!("plain \"{database}\"");
    let quoted = format!("\"{}\"", role.replace('"', "\"\""));
    server.sql(
        database,
        &format!(
            "CREATE ROLE {quoted} LOGIN REPLICATION; CREATE SCHEMA app;
             CREATE TABLE app.t (id int PRIMARY KEY, label int); INSERT INTO app.t SELECT i, i FROM generate_series(1, 9) i;
             CREATE PUBLICATION hw_{database} FOR TABLE app.t WITH (publish_via_partition_root = true)"
        ),
    );
    role
}

fn connect_as(server: &Postgres, database: &str, role: &str) -> Box<dyn SourceConnector> {
    let user: String = role.bytes().map(|byte| format!("%{byte:02X}")).collect();
    connector(&server.url(database).replace("postgres@", &format!("{user}@")), json!({ "tables": "app.*" }))
}

/// Runs what the hint says.
fn heed(server: &Postgres, database: &str, error: &Error) {
    let hint = error.hint_text();
    let from = hint.find("Run ").expect("a statement") + 4;
    let to = hint.rfind(';').expect("a statement");
    server.sql(database, &hint[from..to]);
}

async fn pass(reader: &mut dyn TableReader, request: &ChunkRequest) -> Batch {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let mut batch = Batch::default();
        match reader.read(request, &mut batch).await.expect("a chunk") {
            ChunkRead::Rows(_) => return batch,
            ChunkRead::Waiting(what) => assert!(tokio::time::Instant::now() < deadline, "it waits for {what}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_or_is_prepared_is_waited_for_and_named_to_a_plain_role() {
    let server = Postgres::start(&["max_prepared_transactions=5"], "");
    let database = server.database();
    let role = plain_role(&server, &database);
    server.sql(
        &database,
        &format!("GRANT USAGE ON SCHEMA app TO \"{0}\"; GRANT SELECT ON app.t TO \"{0}\"", role.replace('"', "\"\"")),
    );
    let connector = connect_as(&server, &database, &role);
    let mut reader = connector.reader().await.unwrap();
    server.sql(&database, "BEGIN; INSERT INTO app.t VALUES (10, 10); PREPARE TRANSACTION 'the one'");
    let running = Held::after(&server, &database, "BEGIN; SAVEPOINT a; INSERT INTO app.t VALUES (11, 11); RELEASE a");
    let gate = reader.gate().await.unwrap();
    let later = Held::after(&server, &database, "BEGIN; INSERT INTO app.t VALUES (12, 12)");
    let xids = server.sql(&database, "SELECT string_agg(transaction::text, '') FROM pg_prepared_xacts");
    let request = ChunkRequest { gate: Some(gate), ..first("app.t", 100) };
    let told = waiting(reader.as_mut(), &request).await;
    for part in [&format!("transaction {xids}, prepared as \"the one\""), "of \"a test\" in process", "2 open transactions"] {
        assert!(told.contains(part), "{part} in {told}");
    }
    running.end("COMMIT");
    let told = waiting(reader.as_mut(), &request).await;
    assert!(told.contains("1 open transactions") && told.contains("the one") && !told.contains("a test"), "{told}");
    server.sql(&database, "COMMIT PREPARED 'the one'");
    let batch = pass(reader.as_mut(), &request).await;
    assert_eq!(rows(&batch).len(), 11, "what began after the gate is not waited for");
    later.end("ROLLBACK");
    let superuser = support::connector(&server.url(&database), json!({ "tables": "app.*" })).reader().await.unwrap();
    superuser.close().await;
}

async fn published(source: &mut dyn Source) -> String {
    let batch = next(source).await.unwrap();
    batch.transaction_id(&batch.transactions()[0]).to_owned()
}

/// The commit is in the log, so it is published, and invisible for as long as the standby is away. Nothing later has ended, so its number
/// is the snapshot's upper end: the rule "xmin of the chunk's snapshot is not below that" lets the chunk through.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_waits_for_a_dead_standby_is_waited_for_where_the_plain_rule_would_not() {
    let server = Postgres::start(&[], "");
    let database = server.database();
    server.sql(&database, "CREATE TABLE t (id int PRIMARY KEY, label int); INSERT INTO t VALUES (1, 1)");
    let connector = connector(&server.url(&database), json!({}));
    let start = begin(connector.as_ref()).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    let mut reader = connector.reader().await.unwrap();
    server.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'dead'; SELECT pg_reload_conf()");
    eventually("the setting holds", || server.sql("postgres", "SHOW synchronous_standby_names") == "dead");
    let stalled = Held::after(&server, &database, "BEGIN; UPDATE t SET label = 2");
    stalled.go_on("COMMIT");
    let id = published(source.as_mut()).await;
    let xid: u64 = id.split('@').next().unwrap().parse().unwrap();
    let snapshot = |at: usize| -> u64 {
        let text = server.sql(&database, "SELECT pg_current_snapshot()");
        text.split(':').nth(at).unwrap().parse().unwrap()
    };
    let upper_end = snapshot(1);
    let gate = reader.gate().await.unwrap();
    assert_eq!(xid, upper_end);
    assert!(snapshot(0) >= upper_end, "the plain rule holds");
    let (naive, stale) = chunk(reader.as_mut(), &first("public.t", 9)).await;
    assert_eq!(cells(&stale, rows(&stale)[0])[1], "Text(\"1\")", "and the row is older than what was published");
    assert!(!naive.seen.sees(&id));
    let request = ChunkRequest { gate: Some(gate), ..first("public.t", 9) };
    let told = waiting(reader.as_mut(), &request).await;
    assert!(told.contains(&format!("transaction {xid}, of \"a test\"")), "{told}");
    server.sql("postgres", "ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf()");
    stalled.end("SELECT 1");
    let (read, batch) = chunk(reader.as_mut(), &request).await;
    assert_eq!(cells(&batch, rows(&batch)[0])[1], "Text(\"2\")");
    assert!(read.seen.sees(&id));
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_right_and_a_policy_are_mended_by_what_the_hint_says() {
    let (server, database) = (shared(), shared().database());
    let role = plain_role(server, &database);
    let connector = connect_as(server, &database, &role);
    let request = first("app.t", 100);
    let refused = async || chunk_error(connector.reader().await.unwrap().as_mut(), &request).await;
    let error = refused().await;
    is(&error, "HW2003", Kind::Environment);
    heed(server, &database, &error);
    let (_, batch) = chunk(connector.reader().await.unwrap().as_mut(), &request).await;
    assert_eq!(rows(&batch).len(), 9);
    server.sql(&database, "ALTER TABLE app.t ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON app.t USING (id < 3)");
    let error = refused().await;
    is(&error, "HW2071", Kind::Environment);
    heed(server, &database, &error);
    let (_, batch) = chunk(connector.reader().await.unwrap().as_mut(), &request).await;
    assert_eq!(rows(&batch).len(), 9);
}

/// A type's schema is of no concern to who may read the table.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_a_type_in_a_closed_schema_is_read() {
    let (server, database) = (shared(), shared().database());
    let role = plain_role(server, &database);
    server.sql(
        &database,
        &format!(
            "CREATE SCHEMA closed; CREATE TYPE closed.mood AS ENUM ('sad', 'happy'); DROP TABLE app.t;
             CREATE TABLE app.t (m closed.mood PRIMARY KEY, label int); INSERT INTO app.t VALUES ('happy', 2), ('sad', 1);
             ALTER PUBLICATION hw_{database} ADD TABLE app.t;
             GRANT USAGE ON SCHEMA app TO \"{0}\"; GRANT SELECT ON app.t TO \"{0}\"",
            role.replace('"', "\"\"")
        ),
    );
    let connector = connect_as(server, &database, &role);
    assert_eq!(labels(connector.reader().await.unwrap().as_mut(), "app.t", 1, (None, None)).await, ["1", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_condition_is_named_and_runs_nothing() {
    let (server, database) = (shared(), shared().database());
    server.sql(&database, "CREATE TABLE t (id int PRIMARY KEY, label text); INSERT INTO t VALUES (1, 'x'), (2, '7'); CREATE TABLE other (id int PRIMARY KEY)");
    let (connector, _) = reader(server, &database).await;
    for filter in [
        "id = = 1",
        "nobody = 1",
        "label::int = 7",
        "1 / (id - 1) = 1",
        "label",
        "id IN (SELECT id FROM public.nowhere)",
        "true) OR (true",
        "true; DROP TABLE public.other",
        "true); COMMIT; DROP TABLE public.other; --",
        "true LIMIT 1",
        "'",
        "/*",
        "",
    ] {
        let request = ChunkRequest { filter: Some(filter.to_owned()), ..first("public.t", 9) };
        let error = chunk_error(connector.reader().await.unwrap().as_mut(), &request).await;
        is(&error, "HW2072", Kind::Config);
        assert!(!format!("{error}").contains("\"x\"") || filter.contains("::int"), "{error}");
    }
    server.sql(&database, "SELECT count(*) FROM public.other");
    let filter = Some("label = 'x''); --' OR id = 1 -- (".to_owned());
    let (_, batch) = chunk(connector.reader().await.unwrap().as_mut(), &ChunkRequest { filter, ..first("public.t", 9) }).await;
    assert_eq!(rows(&batch).len(), 1, "brackets and semicolons in texts and comments are no harm");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_lock_and_a_cancelled_statement_pass() {
    let (server, database) = (shared(), shared().database());
    server.sql(&database, "CREATE TABLE t (id int PRIMARY KEY, label int); INSERT INTO t VALUES (1, 1)");
    let (connector, mut reader) = reader(server, &database).await;
    let held = Held::after(server, &database, "BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE");
    let error = chunk_error(reader.as_mut(), &first("public.t", 9)).await;
    is(&error, "HW2073", Kind::Retry);
    assert!(error.to_string().contains("55P03"), "it gives up by itself: {error}");
    held.end("COMMIT");
    let mut reader = connector.reader().await.unwrap();
    let (port, name) = (server.port, database.clone());
    let end = Arc::new(AtomicBool::new(false));
    let ended = Arc::clone(&end);
    let cancel = std::thread::spawn(move || {
        let sql = format!(
            "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE datname = '{name}' AND wait_event = 'PgSleep'"
        );
        // The first time it is tried again at once.
        let mut times = 0;
        eventually("the statement runs", || {
            times += usize::from(support::sql::run(port, &name, &sql).as_deref() == Ok("1"));
            ended.load(Ordering::SeqCst)
        });
        times
    });
    let filter = Some("pg_sleep(600) IS NOT NULL".to_owned());
    let error = chunk_error(reader.as_mut(), &ChunkRequest { filter, ..first("public.t", 9) }).await;
    end.store(true, Ordering::SeqCst);
    assert!(cancel.join().unwrap() > 0);
    is(&error, "HW2073", Kind::Retry);
    assert!(error.to_string().contains("57014"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_goes_or_is_exchanged_between_chunks_is_noticed() {
    let (server, database) = (shared(), shared().database());
    let create = "CREATE TABLE t (id int PRIMARY KEY, label int); INSERT INTO t SELECT i, i FROM generate_series(1, 9) i";
    server.sql(&database, create);
    let (connector, mut reader) = reader(server, &database).await;
    let (before, _) = chunk(reader.as_mut(), &first("public.t", 3)).await;
    server.sql(&database, &format!("DROP TABLE t; {create}"));
    let behind = ChunkRequest { after: before.end.clone(), ..first("public.t", 3) };
    let (after, _) = chunk(reader.as_mut(), &behind).await;
    assert_ne!(before.table_id, after.table_id, "a table of the same name is another table");
    server.sql(&database, "ALTER TABLE t RENAME COLUMN label TO text; ALTER TABLE t ADD more int DEFAULT 5");
    let (same, batch) = chunk(reader.as_mut(), &behind).await;
    assert_eq!((same.table_id.as_str(), batch.schemas()[0].columns.len()), (after.table_id.as_str(), 3));
    server.sql(&database, "TRUNCATE t");
    let (empty, batch) = chunk(reader.as_mut(), &behind).await;
    assert!(empty.end.is_none() && batch.changes().is_empty());
    server.sql(&database, "ALTER TABLE t RENAME TO t2");
    is(&chunk_error(reader.as_mut(), &behind).await, "HW2070", Kind::Config);
    server.sql(&database, "CREATE VIEW t AS SELECT * FROM t2");
    let mut reader = connector.reader().await.unwrap();
    is(&chunk_error(reader.as_mut(), &behind).await, "HW2070", Kind::Config);
    let mut reader = connector.reader().await.unwrap();
    is(&chunk_error(reader.as_mut(), &first("nowhere.t", 3)).await, "HW2070", Kind::Config);
    server.sql(&database, "ALTER TABLE t2 DROP CONSTRAINT t_pkey");
    let mut reader = connector.reader().await.unwrap();
    is(&chunk_error(reader.as_mut(), &first("public.t2", 3)).await, "HW2012", Kind::Config);
}

/// A snapshot that is older than a rewritten table sees it empty, which would look like its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_rewritten_all_the_time_is_never_empty() {
    let (server, database) = (shared(), shared().database());
    server.sql(
        &database,
        "CREATE TABLE t (id int PRIMARY KEY, label int); INSERT INTO t SELECT i, i FROM generate_series(1, 500) i",
    );
    let (_, mut reader) = reader(server, &database).await;
    let (port, name) = (server.port, database.clone());
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let rewriting = std::thread::spawn(move || {
        let mut count = 0;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            let kind = if count % 2 == 0 { "bigint" } else { "int" };
            support::sql::run(port, &name, &format!("ALTER TABLE t ALTER label TYPE {kind}; ALTER TABLE t ALTER id TYPE {kind}"))
                .unwrap();
            count += 1;
        }
        count
    });
    let wanted: Vec<String> = (1..=500).map(|i| i.to_string()).collect();
    for _ in 0..20 {
        assert!(labels(reader.as_mut(), "public.t", 50, (None, None)).await == wanted);
    }
    drop(stop);
    assert!(rewriting.join().unwrap() > 0);
}

/// The whole point of reading it: bytes that are no text must arrive as the stream brings them, and a key of them is refused by name.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_an_encoding_shows_its_bytes() {
    let (server, database) = (shared(), format!("ascii_{}", shared().database()));
    server.sql("postgres", &format!("CREATE DATABASE {database} ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE 'C'"));
    server.sql(&database, "CREATE TABLE t (id text PRIMARY KEY, label text)");
    let connector = connector(&server.url(&database), json!({}));
    let start = begin(connector.as_ref()).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    server.sql(&database, r"INSERT INTO t VALUES ('a', E'\xff\xfe'), (E'\xc3\xa9', 'é')");
    let stream = next(source.as_mut()).await.unwrap();
    let mut reader = connector.reader().await.unwrap();
    let (read, batch) = chunk(reader.as_mut(), &first("public.t", 2)).await;
    let of = |batch: &Batch| -> Vec<Vec<String>> { rows(batch).into_iter().map(|row| cells(batch, row)).collect() };
    assert_eq!(of(&batch), of(&stream));
    assert_eq!(batch.value(rows(&batch)[0], 1), Value::Invalid(b"\xff\xfe"));
    assert_eq!(read.end.as_deref(), Some(["é".to_owned()].as_slice()));
    let behind = ChunkRequest { after: read.end, ..first("public.t", 2) };
    assert!(chunk(reader.as_mut(), &behind).await.1.changes().is_empty());
    server.sql(&database, r"INSERT INTO t VALUES (E'\xff', 'x')");
    is(&chunk_error(reader.as_mut(), &behind).await, "HW0006", Kind::Data);
    source.close().await.unwrap();
}
