//! M13: statements that write very many rows, whose events the server splits as it likes.

use std::time::{Duration, Instant};

use headwater_connector::{Batch, Limits, Op, Position, SourceConnector, Start, Value};
use serde_json::json;

use crate::support::{Flavour, on_both, shared, start};

/// A change in as few bytes as tell it from every other: there are very many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    op: Op,
    ordinal: u64,
    id: i64,
    before: i64,
    after: i64,
}

/// What was read, and how far each of the batches came: its position, and how many changes were there by then.
#[derive(Default)]
struct Read {
    seen: Vec<Seen>,
    stops: Vec<(Position, usize)>,
    transaction: String,
}

fn number(value: Value<'_>) -> i64 {
    let Value::Int(number) = value else { panic!("no number: {value:?}") };
    number
}

/// Reads so many changes from a position on, all of one transaction unless it is told to have none before.
async fn read(connector: &dyn SourceConnector, at: &Start, count: usize, max_changes: usize) -> Read {
    let mut source = connector.open(&at.identity, &at.position).await.unwrap_or_else(|error| panic!("{error}"));
    let limits = Limits { max_changes, max_wait: Duration::from_millis(200), ..Limits::default() };
    let (mut found, mut batch) = (Read::default(), Batch::default());
    let deadline = Instant::now() + Duration::from_secs(240);
    while found.seen.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} changes came", found.seen.len());
        batch.clear(usize::MAX);
        source.next_batch(&mut batch, &limits).await.unwrap_or_else(|error| panic!("{error}"));
        for change in batch.changes() {
            let row = change.after.or(change.before.row()).expect("a row");
            let before = change.before.row().map_or(-1, |row| number(batch.value(row, 1)));
            let after = change.after.map_or(-1, |row| number(batch.value(row, 1)));
            found.seen.push(Seen { op: change.op, ordinal: change.ordinal, id: number(batch.value(row, 0)), before, after });
            let name = batch.transaction_id(&batch.transactions()[change.transaction as usize]);
            if found.transaction.is_empty() {
                name.clone_into(&mut found.transaction);
            }
            assert_eq!(name, found.transaction, "the statement is one transaction");
        }
        if let Some(position) = batch.position().filter(|_| !batch.changes().is_empty()) {
            found.stops.push((position.clone(), found.seen.len()));
        }
    }
    assert_eq!(found.seen.len(), count);
    found
}

/// Reads a transaction of so many changes whole and then again from some of the places where it was cut; every change has the same number
/// each time, however the rest of it is cut. The position behind the transaction goes into `at`.
async fn whole_and_cut(connector: &dyn SourceConnector, at: &mut Start, count: usize, cuts: &[usize]) -> Vec<Seen> {
    let whole = read(connector, at, count, 7_001).await;
    let stops = &whole.stops;
    assert!(stops.len() > 10, "it was cut {} times", stops.len());
    for cut in cuts {
        let (position, done) = &stops[cut * (stops.len() - 2) / 100];
        assert!(position.as_str().contains('+'), "it was cut in the middle: {position}");
        let from = Start { identity: at.identity.clone(), position: position.clone() };
        let rest = read(connector, &from, count - done, 3_333).await;
        assert!(rest.seen == whole.seen[*done..], "reopened at {position}");
        assert_eq!(rest.transaction, whole.transaction);
    }
    assert!(whole.seen.windows(2).all(|pair| pair[0].ordinal < pair[1].ordinal), "the numbers ascend");
    at.position = stops.last().expect("an end").0.clone();
    assert!(!at.position.as_str().contains('+'), "it ends behind its last row: {}", at.position);
    whole.seen
}

async fn a_statement_of_very_many_rows_has_each_row_once_wherever_it_is_cut(flavour: Flavour) {
    const ROWS: i64 = 300_000;
    let server = shared(flavour);
    let database = server.database();
    let digits: Vec<String> = (0..1000).map(|n| format!("({n})")).collect();
    server.sql(&format!(
        "USE {database};\nCREATE TABLE digits (n int PRIMARY KEY);\nINSERT INTO digits VALUES {};\n\
         CREATE TABLE items (id bigint PRIMARY KEY, n bigint NOT NULL)",
        digits.join(",")
    ));
    let connector = server.connector(&database, json!({ "tables": format!("{database}.items") }));
    let mut at = start(&*connector).await;
    server.sql(&format!(
        "USE {database};\nINSERT INTO items SELECT a.n * 1000 + b.n, 7 FROM digits a, digits b WHERE a.n < {} ORDER BY 1",
        ROWS / 1000
    ));
    let seen = whole_and_cut(&*connector, &mut at, ROWS as usize, &[50, 100]).await;
    for (id, one) in (0_i64..).zip(&seen) {
        assert_eq!((one.op, one.id, one.before, one.after), (Op::Insert, id, -1, 7));
    }
    // Half of a part of the rows, with what they were before; then some of all go.
    server.sql(&format!("UPDATE {database}.items SET n = id WHERE id % 2 = 0 AND id < 180000 ORDER BY id"));
    let seen = whole_and_cut(&*connector, &mut at, 90_000, &[30]).await;
    for (half, one) in (0_i64..).zip(&seen) {
        assert_eq!((one.op, one.id, one.after), (Op::Update, half * 2, half * 2));
    }
    server.sql(&format!("DELETE FROM {database}.items WHERE id % 3 = 0 ORDER BY id"));
    let seen = whole_and_cut(&*connector, &mut at, ROWS as usize / 3, &[70]).await;
    for (third, one) in (0_i64..).zip(&seen) {
        let id = third * 3;
        assert_eq!((one.op, one.id, one.before), (Op::Delete, id, if id % 2 == 0 && id < 180_000 { id } else { 7 }));
    }
}

async fn rows_that_were_loaded_from_a_file_come_once_wherever_they_are_cut(flavour: Flavour) {
    const ROWS: usize = 90_000;
    let server = shared(flavour);
    let database = server.database();
    server.sql(&format!("USE {database};\nCREATE TABLE items (id bigint PRIMARY KEY, n bigint NOT NULL)"));
    let connector = server.connector(&database, json!({}));
    let mut at = start(&*connector).await;
    let file = server.data().join(format!("{database}.csv"));
    let lines: String = (0..ROWS).map(|id| format!("{id},{}\n", ROWS - id)).collect();
    std::fs::write(&file, lines).expect("a file");
    server.sql(&format!("LOAD DATA INFILE '{}' INTO TABLE {database}.items FIELDS TERMINATED BY ','", file.display()));
    let seen = whole_and_cut(&*connector, &mut at, ROWS, &[60]).await;
    for (id, one) in seen.iter().enumerate() {
        assert_eq!((one.op, one.id, one.after), (Op::Insert, id as i64, (ROWS - id) as i64));
    }
}

on_both! {
    a_statement_of_very_many_rows_has_each_row_once_wherever_it_is_cut
    rows_that_were_loaded_from_a_file_come_once_wherever_they_are_cut
}
