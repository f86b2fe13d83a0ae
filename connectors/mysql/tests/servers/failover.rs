//! Another server in the place of the one that was read: which one may go on, and what the others are told.

use std::time::Duration;

use headwater_connector::{Batch, Kind, Limits, Op, SourceConnector, Start, Value};
use serde_json::json;

use crate::support::{Flavour, Reader, Server, on_both, start};

/// Runs a statement as if it had come from another server by replication: it keeps the name that it has there.
fn replicate(to: &Server, from: &Server, number: u64, statement: &str) {
    let (begin, end) = match to.flavour {
        Flavour::Mysql => {
            let uuid = from.sql("SELECT @@server_uuid");
            (format!("SET gtid_next = '{uuid}:{number}'"), "SET gtid_next = 'AUTOMATIC'".to_owned())
        }
        Flavour::Mariadb => {
            let id = from.sql("SELECT @@server_id");
            (format!("SET server_id = {id}, gtid_seq_no = {number}"), "DO 1".to_owned())
        }
    };
    to.sql(&format!("{begin};\n{statement};\n{end}"));
}

/// What is said to whoever wants to go on here. That a MariaDB may take another's place an operator has to say.
async fn refused(flavour: Flavour, connector: &dyn SourceConnector, at: &Start) -> &'static str {
    let opened = connector.open(&at.identity, &at.position).await.err();
    let error = match flavour {
        Flavour::Mysql => opened,
        Flavour::Mariadb => {
            assert_eq!(opened.map(|error| error.code().id), Some("HW3012"), "without an operator's word");
            connector.survey(Some(&at.identity), Some(&at.position)).await.expect("an answer").rebind.err()
        }
    };
    error.map_or("may go on", |error| error.code().id)
}

/// M16: what is published was lost with the old server, and the new one went on without it: then nothing may go on by itself.
async fn a_server_that_lacks_something_is_told_from_one_that_went_another_way(flavour: Flavour) {
    let [old, new] = [11, 12].map(|id: u32| Server::start(flavour, &[&format!("--server-id={id}")]));
    old.reset_binlog();
    new.reset_binlog();
    let table = "CREATE TABLE shop.items (id int PRIMARY KEY, name text)";
    let statements =
        ["CREATE DATABASE shop", table, "INSERT INTO shop.items VALUES (1, 'a')", "INSERT INTO shop.items VALUES (2, 'b')"];
    statements[..2].iter().for_each(|sql| drop(old.sql(sql)));
    let connector = old.connector("shop", json!({}));
    let at = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &at).await;
    statements[2..].iter().for_each(|sql| drop(old.sql(sql)));
    reader.read(2).await;
    let identity = reader.source.identity().unwrap_or(&at.identity).clone();
    let mut at = Start { identity, position: reader.position.clone() };
    drop(reader);
    let promoted = new.connector("shop", json!({}));
    (1..4).for_each(|number| replicate(&new, &old, number, statements[number as usize - 1]));
    assert_eq!(refused(flavour, &*promoted, &at).await, "HW3014", "it is behind");
    // In a domain of its own on MariaDB, where two servers share one only if they follow each other.
    let own = if flavour == Flavour::Mariadb { "SET gtid_domain_id = 7;\n" } else { "" };
    new.sql(&format!("{own}INSERT INTO shop.items VALUES (3, 'c')"));
    assert_eq!(refused(flavour, &*promoted, &at).await, "HW3045", "it went on without the last of the old one");
    replicate(&new, &old, 4, statements[3]);
    if flavour == Flavour::Mariadb {
        assert_eq!(refused(flavour, &*promoted, &at).await, "may go on");
        let survey = promoted.survey(Some(&at.identity), Some(&at.position)).await.expect("an answer");
        at.identity = survey.rebind.expect("it has everything");
    }
    let mut reader = Reader::open(&*promoted, &at).await;
    assert_eq!(reader.read(1).await, ["Insert items 3,c"], "what is published does not come again");
}

/// Lets the server die while it writes a transaction of sixty megabytes, of rows from an id on. Whether it never happened: on a busy machine it
/// can be complete by then.
fn die_while_writing(server: &Server, from: u64) -> bool {
    let file = server.data().join(server.binlog());
    let size = || std::fs::metadata(&file).expect("a binlog").len();
    let before = size();
    std::thread::scope(|scope| {
        let insert = format!("INSERT INTO shop.items SELECT {from} + id, repeat(char(65 + id % 26), 32000) FROM shop.numbers");
        let writer = scope.spawn(move || server.try_sql(&insert));
        // It is over in a moment, so nothing waits in between; before that comes the work on the table.
        while size() < before + (2 << 20) {
            if writer.is_finished() {
                writer.join().expect("the writer").unwrap_or_else(|error| panic!("{error}"));
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        server.crash_and_restart();
    });
    server.sql(&format!("SELECT count(*) FROM shop.items WHERE id >= {from}")) == "0"
}

/// Reads the ids of so many rows, and opens again where the stream breaks.
async fn ids(connector: &dyn SourceConnector, first: &Start, limits: &Limits, count: usize) -> Vec<i64> {
    let (mut at, mut ids, mut breaks) = (first.clone(), Vec::new(), 0);
    let mut source = connector.open(&at.identity, &at.position).await.unwrap_or_else(|error| panic!("{error}"));
    while ids.len() < count {
        let mut batch = Batch::default();
        if let Err(error) = source.next_batch(&mut batch, limits).await {
            breaks += 1;
            assert!(error.kind() == Kind::Retry && breaks < 10, "{breaks}: {error}");
            source = connector.open(&at.identity, &at.position).await.unwrap_or_else(|error| panic!("{error}"));
            continue;
        }
        for change in batch.changes() {
            let Value::Int(id) = batch.value(change.after.expect("a row"), 0) else { panic!("no id") };
            assert_eq!(change.op, Op::Insert);
            ids.push(id);
        }
        at.position = batch.position().cloned().unwrap_or(at.position);
    }
    ids
}

/// MariaDB leaves the beginning at the end of its file and sends it like any other, and the next transaction gets the same name.
async fn what_a_server_was_writing_when_it_died_is_no_event(flavour: Flavour) {
    let server = Server::start(flavour, &[]);
    let digits = (0..10).map(|digit| format!("({digit})")).collect::<Vec<_>>().join(",");
    server.sql(&format!(
        "CREATE DATABASE shop;\nUSE shop;\nCREATE TABLE items (id int PRIMARY KEY, name longtext);\nCREATE TABLE digits (n int PRIMARY KEY);\n\
         CREATE TABLE numbers (id int PRIMARY KEY);\nINSERT INTO digits VALUES {digits};\n\
         INSERT INTO numbers SELECT a.n * 1000 + b.n * 100 + c.n * 10 + d.n FROM digits a, digits b, digits c, digits d WHERE a.n < 2"
    ));
    let connector = server.connector("shop", json!({ "tables": "shop.items" }));
    let first = start(&*connector).await;
    let mut torn = 0;
    for id in [1, 10_000, 20_000] {
        server.sql(&format!("INSERT INTO shop.items VALUES ({id}, 'a')"));
        torn += usize::from(die_while_writing(&server, id + 1));
    }
    assert!(torn > 0, "it always died too late");
    server.sql("INSERT INTO shop.items VALUES (30000, 'a'), (30001, 'b')");
    // In the order of the commits.
    let listed = server.sql("SELECT id FROM shop.items ORDER BY id");
    let wanted: Vec<i64> = listed.lines().map(|id| id.parse().expect("a number")).collect();
    let ordinary = Limits { max_wait: Duration::from_millis(200), ..Limits::default() };
    // In parts as soon as it can be, and where all that was written has room in one batch.
    for limits in [Limits { max_changes: 3, ..ordinary }, Limits { max_bytes: 1 << 30, ..ordinary }] {
        assert_eq!(ids(&*connector, &first, &limits, wanted.len()).await, wanted, "{limits:?}");
    }
}

on_both! {
    what_a_server_was_writing_when_it_died_is_no_event
    a_server_that_lacks_something_is_told_from_one_that_went_another_way
}
