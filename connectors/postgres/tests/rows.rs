//! What the stream makes of every kind of transaction and of every kind of publication (rows P1 to P13, P22 and P23 of the field's
//! known traps), on a real server.

mod support;

use std::fmt::Write as _;

use headwater_connector::{Batch, Before, Change, Kind, Limits, Position, Source, SourceConnector, Start, Value};
use serde_json::json;
use support::{begin, connector, eventually, is, next, next_error, shared};

struct Running {
    database: String,
    connector: Box<dyn SourceConnector>,
    start: Start,
    source: Box<dyn Source>,
}

impl Running {
    /// A database after these statements, and a connector over `public.*` that streams.
    async fn over(statements: &str, options: serde_json::Value) -> Self {
        let database = shared().database();
        shared().sql(&database, statements);
        let connector = connector(&shared().url(&database), options);
        let start = begin(&*connector).await;
        let source = connector.open(&start.identity, &start.position).await.unwrap();
        Self { database, connector, start, source }
    }

    fn sql(&self, statements: &str) -> String {
        shared().sql(&self.database, statements)
    }

    /// Runs statements and reads until a row of the table `mark` says that all is there.
    async fn told(&mut self, statements: &str) -> Vec<String> {
        self.sql(statements);
        self.until_marked().await
    }

    async fn until_marked(&mut self) -> Vec<String> {
        self.sql("INSERT INTO mark VALUES (DEFAULT)");
        let mut told = Vec::new();
        loop {
            let batch = next(&mut *self.source).await.unwrap();
            told.extend(batch.changes().iter().map(|change| text(&batch, change)));
            if told.last().is_some_and(|last| last.starts_with("Insert mark")) {
                told.pop();
                return told;
            }
        }
    }
}

const MARK: &str = "CREATE TABLE mark (id serial PRIMARY KEY);";

fn text(batch: &Batch, change: &Change) -> String {
    let row = |row| {
        let cells: Vec<String> = batch
            .values(row)
            .map(|value| match value {
                Value::Text(text) | Value::Json(text) => text.to_owned(),
                Value::Null => "null".to_owned(),
                Value::Unchanged => "-".to_owned(),
                other => format!("{other:?}"),
            })
            .collect();
        cells.join(",")
    };
    let table = batch.schemas()[change.schema as usize].table.trim_start_matches("public.").to_owned();
    let mut text = format!("{:?} {table}", change.op);
    if let Before::Key(old) | Before::Full(old) = change.before {
        let _ = write!(text, " {}", row(old));
    }
    if let Some(new) = change.after {
        let _ = write!(text, " > {}", row(new));
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_key_changes_in_one_transaction_keeps_its_order() {
    let mut running = Running::over(&format!("{MARK} CREATE TABLE t (id int PRIMARY KEY, v text)"), json!({})).await;
    let told = running
        .told("BEGIN; INSERT INTO t VALUES (1, 'a'); UPDATE t SET id = 2; UPDATE t SET id = 3, v = 'b'; UPDATE t SET v = 'c'; DELETE FROM t; COMMIT")
        .await;
    assert_eq!(told, ["Insert t > 1,a", "Update t 1,- > 2,a", "Update t 2,- > 3,b", "Update t > 3,c", "Delete t 3,-"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn savepoints_that_were_rolled_back_leave_nothing_64_deep() {
    let mut running = Running::over(&format!("{MARK} CREATE TABLE t (id int PRIMARY KEY)"), json!({})).await;
    let mut sql = String::from("BEGIN;");
    for depth in 0..64 {
        let _ = write!(sql, "INSERT INTO t VALUES ({depth}); SAVEPOINT s{depth}; INSERT INTO t VALUES ({});", 1000 + depth);
        if depth % 2 == 0 {
            let _ = write!(sql, "ROLLBACK TO s{depth};");
        }
    }
    sql.push_str("COMMIT; BEGIN; INSERT INTO t VALUES (5000); ROLLBACK;");
    let told = running.told(&sql).await;
    let expected: Vec<String> = (0..64)
        .flat_map(|depth| [Some(depth), (depth % 2 == 1).then_some(1000 + depth)])
        .flatten()
        .map(|id| format!("Insert t > {id}"))
        .collect();
    assert_eq!(told, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_transactions_come_when_they_are_committed() {
    // The shared server does not allow them.
    let server = support::Postgres::start(&["max_prepared_transactions=10"], "");
    let database = server.database();
    server.sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
    let connector = connector(&server.url(&database), json!({}));
    let start = begin(&*connector).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    server.sql(&database, "BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'one'");
    server.sql(&database, "BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION 'two'");
    server.sql(&database, "INSERT INTO t VALUES (3)");
    server.sql(&database, "ROLLBACK PREPARED 'two'");
    server.sql(&database, "COMMIT PREPARED 'one'");
    server.sql(&database, "INSERT INTO t VALUES (4)");
    let (ids, _) = support::firsts(&mut *source, 3).await;
    assert_eq!(ids, ["3", "1", "4"]);
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_rows_share_a_place_is_cut_and_reopened_anywhere() {
    let running = Running::over(&format!("{MARK} CREATE TABLE t (id int PRIMARY KEY, v text)"), json!({})).await;
    running.sql("COPY t FROM PROGRAM 'seq -f %.0f,v 3000' (FORMAT csv)");
    let mut seen = Vec::new();
    let mut position = running.start.position.clone();
    running.source.close().await.unwrap();
    // Only a COPY puts many rows into one record of the log; an INSERT of many writes one for each.
    let peek = format!(
        "SELECT count(DISTINCT lsn) FROM pg_logical_slot_peek_binary_changes('hw_{0}', NULL, NULL, 'proto_version', '1',
         'publication_names', 'hw_{0}') WHERE get_byte(data, 0) = ascii('I')",
        running.database
    );
    // The server frees the slot a moment after the source has gone.
    let mut places = String::new();
    eventually("the slot is free", || {
        places = shared().try_sql(&running.database, &peek).unwrap_or_default();
        !places.is_empty()
    });
    assert!(places.parse::<u32>().unwrap() < 300, "{places} places of 3000 rows");
    while seen.len() < 3000 {
        let mut source = running.connector.open(&running.start.identity, &position).await.unwrap();
        let mut batch = Batch::default();
        let limits = Limits { max_changes: 700, ..Limits::default() };
        while batch.changes().is_empty() {
            source.next_batch(&mut batch, &limits).await.unwrap();
        }
        seen.extend(batch.changes().iter().map(|change| text(&batch, change)));
        position = batch.position().unwrap().clone();
        source.close().await.unwrap();
    }
    let expected: Vec<String> = (1..=3000).map(|id| format!("Insert t > {id},v")).collect();
    assert!(seen == expected, "{} rows, or in another order", seen.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_touch_each_other_are_resumed_between_all_of_them() {
    let running = Running::over(&format!("{MARK} CREATE TABLE t (id int PRIMARY KEY)"), json!({})).await;
    running.source.close().await.unwrap();
    // Empty transactions between them put commit records side by side.
    for id in 0..12 {
        shared().sql(
            &running.database,
            &format!("INSERT INTO t VALUES ({id}); SELECT pg_current_xact_id(); SELECT pg_current_xact_id()"),
        );
    }
    let mut position: Position = running.start.position.clone();
    for id in 0..12 {
        let mut source = running.connector.open(&running.start.identity, &position).await.unwrap();
        let limits = Limits { max_changes: 1, ..Limits::default() };
        let mut batch = Batch::default();
        while batch.changes().is_empty() {
            source.next_batch(&mut batch, &limits).await.unwrap();
        }
        assert_eq!(text(&batch, &batch.changes()[0]), format!("Insert t > {id}"), "after {position}");
        position = batch.position().unwrap().clone();
        source.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interleaved_transactions_come_in_the_order_of_their_commits() {
    let mut running = Running::over(&format!("{MARK} CREATE TABLE t (id int PRIMARY KEY)"), json!({})).await;
    // Commit in an order of its own.
    let order: Vec<usize> = (0..50).map(|at| (at * 37 + 11) % 50).collect();
    let (database, commits) = (running.database.clone(), order.clone());
    let work = move || {
        let mut open: Vec<_> = (0..50).map(|_| support::sql::connect(shared().port(), &database).unwrap()).collect();
        for (number, client) in open.iter_mut().enumerate() {
            client.batch_execute(&format!("BEGIN; INSERT INTO t VALUES ({number})")).unwrap();
        }
        for (number, client) in open.iter_mut().enumerate() {
            client.batch_execute(&format!("INSERT INTO t VALUES ({})", 100 + number)).unwrap();
        }
        for number in commits {
            open[number].batch_execute("COMMIT").unwrap();
        }
    };
    // The client blocks, and would not do so inside the runtime.
    std::thread::spawn(work).join().unwrap();
    let told = running.until_marked().await;
    let expected: Vec<String> =
        order.iter().flat_map(|number| [format!("Insert t > {number}"), format!("Insert t > {}", 100 + number)]).collect();
    assert_eq!(told, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_transactions_and_other_databases_move_the_slot_along() {
    let mut running = Running::over(&format!("{MARK} CREATE TABLE t (id int PRIMARY KEY)"), json!({})).await;
    let elsewhere = shared().database();
    shared().sql(&elsewhere, "CREATE TABLE noise (id int PRIMARY KEY, v text)");
    running.sql(
        "CREATE PROCEDURE nothing(n int) LANGUAGE plpgsql AS $$ BEGIN FOR i IN 1 .. n LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$",
    );
    running.sql("SET synchronous_commit = off; CALL nothing(100000)");
    shared().sql(&elsewhere, "INSERT INTO noise SELECT n, repeat('x', 500) FROM generate_series(1, 60000) n");
    let end = running.sql("SELECT pg_current_wal_lsn()");
    let reached = |running: &Running| {
        running.sql(&format!(
            "SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = 'hw_{}'",
            running.database
        ))
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(90);
    while reached(&running) != "t" {
        let mut batch = Batch::default();
        running.source.next_batch(&mut batch, &Limits::default()).await.unwrap();
        assert!(batch.changes().is_empty());
        if let Some(position) = batch.position() {
            running.source.ack(position).await.unwrap();
        }
        assert!(std::time::Instant::now() < deadline, "the slot stands still");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_large_values_are_absent_whatever_their_type() {
    let large = "repeat(md5('a'), 300)";
    let tables = format!(
        "{MARK} CREATE TABLE t (id int PRIMARY KEY, v text, list text[], doc jsonb, preset text DEFAULT {large}, n int);
         ALTER TABLE t ALTER v SET STORAGE EXTERNAL, ALTER list SET STORAGE EXTERNAL, ALTER doc SET STORAGE EXTERNAL, ALTER preset SET STORAGE EXTERNAL"
    );
    let insert =
        format!("INSERT INTO t (id, v, list, doc) VALUES (1, {large}, ARRAY[{large}], jsonb_build_object('a', {large}))");
    let mut running = Running::over(&tables, json!({})).await;
    let told = running.told(&format!("{insert}; UPDATE t SET n = 1; UPDATE t SET id = 2; UPDATE t SET v = 'small'")).await;
    assert_eq!(told[1..], ["Update t > 1,-,-,-,-,1", "Update t 1,-,-,-,-,- > 2,-,-,-,-,1", "Update t > 2,small,-,-,-,1"]);
    // Under a full identity the old row fills them, also when the key changes.
    let mut running = Running::over(&format!("{tables}; ALTER TABLE t REPLICA IDENTITY FULL"), json!({})).await;
    let told = running.told(&format!("{insert}; UPDATE t SET n = 1; UPDATE t SET id = 2")).await;
    for update in &told[1..] {
        let (_, after) = update.split_once(" > ").unwrap();
        assert!(after.len() > 4 * 9000 && !after.contains(",-,"), "{} characters", after.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_the_tables_whose_events_can_be_partial() {
    let tables = format!(
        "{MARK} CREATE TABLE small (id int PRIMARY KEY, n numeric(5,2)); CREATE TABLE large (id int PRIMARY KEY, v text); \
         INSERT INTO large SELECT 1, string_agg(md5(n::text), '') FROM generate_series(1, 1000) n"
    );
    let about = |findings: Vec<headwater_connector::Finding>| {
        let text = |finding: headwater_connector::Finding| match finding.error {
            Some(error) => (error.code().id == "HW2029").then(|| error.to_string()),
            None => finding.what.contains("a large value").then_some(finding.what),
        };
        findings.into_iter().filter_map(text).collect::<Vec<_>>().join("\n")
    };
    let running = Running::over(&tables, json!({"large_values": "absent"})).await;
    let text = about(running.connector.check().await.unwrap());
    assert!(text.contains("HW2029") && text.contains("public.large") && !text.contains("public.small"), "{text}");
    running.sql("ALTER TABLE large REPLICA IDENTITY FULL");
    assert_eq!(about(running.connector.check().await.unwrap()), "");
    // Where a whole event follows it is worth a line and no warning.
    let running = Running::over(&tables, json!({})).await;
    let text = about(running.connector.check().await.unwrap());
    assert!(!text.contains("HW2029") && text.contains("public.large") && !text.contains("public.small"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_moves_to_another_partition_has_one_history() {
    let mut running = Running::over(
        &format!(
            "{MARK} CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
             CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20)"
        ),
        json!({}),
    )
    .await;
    let told = running.told("INSERT INTO p VALUES (1, 'a'); UPDATE p SET id = 11; UPDATE p SET v = 'b'").await;
    // The server moves it by a delete and an insert.
    assert_eq!(told, ["Insert p > 1,a", "Delete p 1,-", "Insert p > 11,a", "Update p > 11,b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn row_filters_turn_updates_into_inserts_and_deletes() {
    let database = shared().database();
    shared().sql(
        &database,
        &format!(
            "{MARK} CREATE TABLE t (id int PRIMARY KEY, v int, secret text); ALTER TABLE t REPLICA IDENTITY FULL;
             CREATE TABLE u (id int PRIMARY KEY, v int, secret text);
             CREATE PUBLICATION hw_{database} FOR TABLE t WHERE (v > 0), u (id, v), mark"
        ),
    );
    let connector = connector(&shared().url(&database), json!({}));
    let start = begin(&*connector).await;
    let source = connector.open(&start.identity, &start.position).await.unwrap();
    let mut running = Running { database, connector, start, source };
    let told = running
        .told(
            "INSERT INTO t VALUES (1, 0, 's'); UPDATE t SET v = 1; UPDATE t SET v = 2; UPDATE t SET v = -1; DELETE FROM t;
             INSERT INTO u VALUES (1, 5, 's'); UPDATE u SET v = 6",
        )
        .await;
    assert_eq!(
        told,
        ["Insert t > 1,1,s", "Update t 1,1,s > 1,2,s", "Delete t 1,2,s", "Insert u > 1,5", "Update u > 1,6"],
        "a row that leaves the filter is deleted, and a column outside the list is never sent"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn truncates_of_several_tables_stop_or_are_told_for_each() {
    let tables = format!("{MARK} CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a)");
    let mut running = Running::over(&tables, json!({ "on_truncate": "event" })).await;
    let told =
        running.told("INSERT INTO a VALUES (1); INSERT INTO b VALUES (1, 1); TRUNCATE a CASCADE; INSERT INTO a VALUES (2)").await;
    assert_eq!(told, ["Insert a > 1", "Insert b > 1,1", "Truncate a", "Truncate b", "Insert a > 2"]);
    let mut running = Running::over(&tables, json!({})).await;
    running.sql("TRUNCATE a CASCADE");
    is(&next_error(&mut *running.source).await, "HW2025", Kind::Data);
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_of_tables_is_no_change_of_rows() {
    let mut running = Running::over(
        &format!(
            "{MARK} CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT n, 'v' FROM generate_series(1, 100) n;
             CREATE MATERIALIZED VIEW sums AS SELECT count(*) AS n FROM t; CREATE UNIQUE INDEX ON sums (n)"
        ),
        json!({}),
    )
    .await;
    for statement in ["VACUUM FULL t", "CLUSTER t USING t_pkey", "REFRESH MATERIALIZED VIEW sums", "ANALYZE t", "REINDEX TABLE t"]
    {
        running.sql(statement);
    }
    assert_eq!(running.told("UPDATE t SET v = 'w' WHERE id = 7").await, ["Update t > 7,w"]);
    eventually("the slot is in use", || {
        running.sql(&format!("SELECT active FROM pg_replication_slots WHERE slot_name = 'hw_{}'", running.database)) == "t"
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_becomes_full_in_mid_stream_fills_large_values_from_there_on() {
    let large = "repeat(md5('a'), 300)";
    let mut running = Running::over(
        &format!(
            "{MARK} CREATE TABLE t (id int PRIMARY KEY, v text, n int); ALTER TABLE t ALTER v SET STORAGE EXTERNAL;
             INSERT INTO t VALUES (1, {large}, 0)"
        ),
        json!({}),
    )
    .await;
    let told = running.told("UPDATE t SET n = 1; ALTER TABLE t REPLICA IDENTITY FULL; UPDATE t SET n = 2").await;
    let whole = running.sql(&format!("SELECT {large}"));
    assert_eq!(told, ["Update t > 1,-,1".to_owned(), format!("Update t 1,{whole},1 > 1,{whole},2")]);
    let told = running.told("ALTER TABLE t REPLICA IDENTITY DEFAULT; UPDATE t SET n = 3").await;
    assert_eq!(told, ["Update t > 1,-,3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_with_its_columns_in_another_order_is_told_in_the_order_of_the_whole() {
    let mut running = Running::over(
        &format!(
            "{MARK} CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
             CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); CREATE TABLE p2 (gone int, v text, id int NOT NULL);
             ALTER TABLE p2 DROP gone; ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20)"
        ),
        json!({}),
    )
    .await;
    let told =
        running.told("INSERT INTO p VALUES (1, 'a'), (11, 'b'); INSERT INTO p2 (id, v) VALUES (12, 'c'); DELETE FROM p2").await;
    assert_eq!(told, ["Insert p > 1,a", "Insert p > 11,b", "Insert p > 12,c", "Delete p 11,-", "Delete p 12,-"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_change_that_rewrites_the_table_is_no_change_of_its_rows() {
    let mut running = Running::over(
        &format!("{MARK} CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT n, n FROM generate_series(1, 100) n"),
        json!({}),
    )
    .await;
    let file = "SELECT relfilenode FROM pg_class WHERE relname = 't'";
    let before = running.sql(file);
    // Readers see the new values only as the rows are written again.
    let told = running.told("ALTER TABLE t ALTER n TYPE text USING 'n' || n; UPDATE t SET id = 101 WHERE id = 1").await;
    assert_eq!(told, ["Update t 1,- > 101,n1"]);
    assert_ne!(running.sql(file), before, "the table was rewritten");
}

/// Equal to the database, not as text: the old text must go when the new one comes, or a topic would keep both.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_written_in_another_way_leaves_no_second_row() {
    let mut running = Running::over(
        &format!("{MARK} CREATE TABLE t (id numeric PRIMARY KEY, n int); CREATE TABLE f (id float8 PRIMARY KEY)"),
        json!({}),
    )
    .await;
    let told = running
        .told(
            "INSERT INTO t VALUES (1.0, 1); UPDATE t SET id = 1.00; UPDATE t SET n = 2 WHERE id = 1; DELETE FROM t WHERE id = 1.000;
             INSERT INTO f VALUES (0); UPDATE f SET id = '-0'; DELETE FROM f",
        )
        .await;
    assert_eq!(
        told,
        [
            "Insert t > 1.0,1",
            "Update t 1.0,- > 1.00,1",
            "Update t > 1.00,2",
            "Delete t 1.00,-",
            "Insert f > 0",
            "Update f 0 > -0",
            "Delete f -0",
        ]
    );
}

/// A database that is itself fed by replication: its transactions name where they come from, and its types announce themselves.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_came_by_replication_are_changes_like_any_other() {
    let mut running = Running::over(
        &format!("CREATE TYPE mood AS ENUM ('sad', 'happy'); {MARK} CREATE TABLE t (id int PRIMARY KEY, m mood)"),
        json!({}),
    )
    .await;
    let origin = format!("from_{}", running.database);
    let told = running
        .told(&format!(
            "SELECT pg_replication_origin_create('{origin}'); SELECT pg_replication_origin_session_setup('{origin}');
             INSERT INTO t VALUES (1, 'sad');
             BEGIN; SELECT pg_replication_origin_xact_setup('0/1234', now()); UPDATE t SET m = 'happy'; DELETE FROM t; COMMIT;
             SELECT pg_replication_origin_session_reset(); INSERT INTO t VALUES (2, 'sad')"
        ))
        .await;
    assert_eq!(told, ["Insert t > 1,sad", "Update t > 1,happy", "Delete t 1,-", "Insert t > 2,sad"]);
}
