//! Tables that change while they are read: every row is told with the schema it was written with (rows P4 and P29 to P31).

mod support;

use std::time::{Duration, Instant};

use headwater_connector::{Batch, Limits, Source};
use serde_json::json;
use support::{begin, connector, next, shared};

/// The columns and values of every row that came, table by table, until one of the table `mark`.
async fn told(source: &mut dyn Source) -> Vec<String> {
    let mut told = Vec::new();
    loop {
        let batch: Batch = next(source).await.unwrap();
        for change in batch.changes() {
            let schema = &batch.schemas()[change.schema as usize];
            let Some(row) = change.after else { continue };
            if schema.table == "public.mark" {
                return told;
            }
            let cells = batch.values(row).map(|value| format!("{value:?}"));
            let columns: Vec<String> = schema
                .columns
                .iter()
                .zip(cells)
                .map(|(column, cell)| format!("{} {}={cell}", column.name, column.source_type))
                .collect();
            told.push(format!("{}: {}", schema.table.trim_start_matches("public."), columns.join(", ")));
        }
    }
}

async fn after(tables: &str, statements: &str) -> Vec<String> {
    let database = shared().database();
    shared().sql(&database, &format!("CREATE TABLE mark (id serial PRIMARY KEY); {tables}"));
    let connector = connector(&shared().url(&database), json!({}));
    let start = begin(&*connector).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    shared().sql(&database, statements);
    shared().sql(&database, "INSERT INTO mark VALUES (DEFAULT)");
    let told = told(&mut *source).await;
    source.close().await.unwrap();
    told
}

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

#[tokio::test(flavor = "multi_thread")]
async fn added_dropped_renamed_and_retyped_columns_flow_at_their_place() {
    let told = after(
        T,
        "INSERT INTO t VALUES (1, 'a');
         ALTER TABLE t ADD n int DEFAULT 7; INSERT INTO t VALUES (2, 'b');
         ALTER TABLE t RENAME v TO name; INSERT INTO t VALUES (3, 'c');
         ALTER TABLE t DROP name; INSERT INTO t VALUES (4);
         ALTER TABLE t ALTER n TYPE numeric(5, 2); INSERT INTO t VALUES (5, 1);
         ALTER TABLE t DROP n; ALTER TABLE t ADD n text; INSERT INTO t VALUES (6, 'x')",
    )
    .await;
    assert_eq!(
        told,
        [
            r#"t: id integer=Text("1"), v text=Text("a")"#,
            r#"t: id integer=Text("2"), v text=Text("b"), n integer=Text("7")"#,
            r#"t: id integer=Text("3"), name text=Text("c"), n integer=Text("7")"#,
            r#"t: id integer=Text("4"), n integer=Text("7")"#,
            r#"t: id integer=Text("5"), n numeric(5,2)=Text("1.00")"#,
            r#"t: id integer=Text("6"), n text=Text("x")"#,
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_changes_of_the_table_in_one_transaction_keep_apart() {
    let told = after(
        T,
        "BEGIN; INSERT INTO t VALUES (1, 'a'); ALTER TABLE t ADD n int; INSERT INTO t VALUES (2, 'b', 3); ALTER TABLE t DROP v;
         INSERT INTO t VALUES (3, 4); ALTER TABLE t RENAME n TO v; INSERT INTO t VALUES (4, 5); COMMIT",
    )
    .await;
    assert_eq!(
        told,
        [
            r#"t: id integer=Text("1"), v text=Text("a")"#,
            r#"t: id integer=Text("2"), v text=Text("b"), n integer=Text("3")"#,
            r#"t: id integer=Text("3"), n integer=Text("4")"#,
            r#"t: id integer=Text("4"), v integer=Text("5")"#,
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_rolled_back_leaves_the_old_schema() {
    let told =
        after(T, "BEGIN; ALTER TABLE t ADD n int; INSERT INTO t VALUES (1, 'a', 2); ROLLBACK; INSERT INTO t VALUES (2, 'b')")
            .await;
    assert_eq!(told, [r#"t: id integer=Text("2"), v text=Text("b")"#]);
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_that_are_added_to_an_enum_flow() {
    let told = after(
        "CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TABLE t (id int PRIMARY KEY, m mood)",
        "INSERT INTO t VALUES (1, 'sad'); ALTER TYPE mood ADD VALUE 'so so' BEFORE 'happy';
         INSERT INTO t VALUES (2, 'so so'); ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'; INSERT INTO t VALUES (3, 'blue')",
    )
    .await;
    let values: Vec<&str> = told.iter().filter_map(|line| line.rsplit_once('=').map(|(_, value)| value)).collect();
    assert_eq!(values[1..], [r#"Text("so so")"#, r#"Text("blue")"#]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_made_again_is_named_until_somebody_captures_it() {
    let database = shared().database();
    shared().sql(&database, T);
    let connector = connector(&shared().url(&database), json!({}));
    let start = begin(&*connector).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    shared().sql(&database, "INSERT INTO t VALUES (1, 'a'); DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, other int)");
    let findings = found(&mut *source, 1).await;
    assert!(findings[0].starts_with("HW2057") && findings[0].contains("public.t"), "{findings:?}");
    let mut batch = Batch::default();
    source.next_batch(&mut batch, &Limits::default()).await.unwrap();
    source.close().await.unwrap();
    // The next opening captures it, under a schema of its own.
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    shared().sql(&database, "INSERT INTO t VALUES (1, 5)");
    let mut last = String::new();
    while !last.contains("other") {
        let batch = next(&mut *source).await.unwrap();
        let schema = batch.schemas().last().unwrap();
        last = schema.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(",");
    }
    assert_eq!(last, "id,other");
    source.close().await.unwrap();
}

/// Reads until the monitor shows so many findings.
async fn found(source: &mut dyn Source, count: usize) -> Vec<String> {
    let monitor = source.monitor();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let findings: Vec<String> = monitor.findings().iter().map(ToString::to_string).collect();
        if findings.len() >= count {
            return findings;
        }
        assert!(Instant::now() < deadline, "{findings:?}");
        let mut batch = Batch::default();
        let limits = Limits { max_wait: Duration::from_millis(200), ..Limits::default() };
        source.next_batch(&mut batch, &limits).await.unwrap();
    }
}

/// The watch looks every five seconds, and compares with its look before.
async fn looked_once(source: &mut dyn Source) {
    let end = Instant::now() + Duration::from_secs(7);
    while Instant::now() < end {
        let mut batch = Batch::default();
        source.next_batch(&mut batch, &Limits { max_wait: Duration::from_millis(200), ..Limits::default() }).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_come_and_go_with_rows_are_told_and_ordinary_ones_are_not() {
    let database = shared().database();
    shared().sql(
        &database,
        "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20);
         CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (20) TO (30); CREATE TABLE p4 PARTITION OF p FOR VALUES FROM (30) TO (40);
         INSERT INTO p SELECT n, 'v' FROM generate_series(0, 39) n",
    );
    let connector = connector(&shared().url(&database), json!({ "tables": "public.p" }));
    let start = begin(&*connector).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    looked_once(&mut *source).await;
    // What partitions do all day: come empty, fill, and are emptied by deletes.
    shared().sql(&database, "CREATE TABLE p5 PARTITION OF p FOR VALUES FROM (40) TO (50); INSERT INTO p VALUES (41, 'v')");
    shared().sql(&database, "DELETE FROM p1; VACUUM FULL p1; VACUUM FULL p2; CREATE TABLE p6 PARTITION OF p FOR VALUES FROM (50) TO (60); DROP TABLE p6");
    looked_once(&mut *source).await;
    assert_eq!(source.monitor().findings().len(), 0, "{:?}", source.monitor().findings());
    shared().sql(
        &database,
        "TRUNCATE p2; ALTER TABLE p DETACH PARTITION p3; DROP TABLE p4;
         CREATE TABLE p7 (id int PRIMARY KEY, v text); INSERT INTO p7 VALUES (61, 'v'); ALTER TABLE p ATTACH PARTITION p7 FOR VALUES FROM (60) TO (70)",
    );
    let findings = found(&mut *source, 4).await.join("\n");
    for part in ["p2 was truncated", "p3 was detached", "p4 was dropped", "p7 was attached"] {
        assert!(findings.contains(part), "{part} in {findings}");
    }
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_swap_their_names_are_not_mixed() {
    let told = after(
        "CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE t_new (id int PRIMARY KEY, n int)",
        "INSERT INTO t VALUES (1, 'a'); INSERT INTO t_new VALUES (1, 2);
         BEGIN; ALTER TABLE t RENAME TO t_old; ALTER TABLE t_new RENAME TO t; COMMIT;
         INSERT INTO t VALUES (2, 3); INSERT INTO t_old VALUES (2, 'b')",
    )
    .await;
    assert_eq!(
        told,
        [
            r#"t: id integer=Text("1"), v text=Text("a")"#,
            r#"t_new: id integer=Text("1"), n integer=Text("2")"#,
            r#"t: id integer=Text("2"), n integer=Text("3")"#,
            r#"t_old: id integer=Text("2"), v text=Text("b")"#,
        ]
    );
}
