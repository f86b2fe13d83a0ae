//! Prepared transactions (XA) where they cannot be held, and where they come in another form. Each test has a server of its own: a connector
//! that starts between the two halves of another test's transaction would rightly stop.

use headwater_connector::Kind;
use serde_json::json;

use crate::{
    events::finds,
    support::{Flavour, Reader, Server, on_both, start},
};

const TABLE: &str = "CREATE TABLE items (id int PRIMARY KEY, body longtext)";

fn prepared(name: &str, sql: &str) -> String {
    format!("XA START '{name}';\n{sql};\nXA END '{name}';\nXA PREPARE '{name}'")
}

/// A server with a table that is selected and one that is not, the name of their database, and an open source.
async fn opened(flavour: Flavour) -> (Server, String, Reader) {
    let server = Server::start(flavour, &[]);
    let database = server.database();
    server.sql(&format!("USE {database};\n{TABLE};\nCREATE TABLE others (id int PRIMARY KEY, body longtext)"));
    let connector = server.connector(&database, json!({ "tables": format!("{database}.items") }));
    let at = start(&*connector).await;
    let reader = Reader::open(&*connector, &at).await;
    (server, database, reader)
}

/// What is prepared waits in memory, and somebody may forget to commit it.
async fn more_prepared_rows_than_may_be_held_stop(flavour: Flavour) {
    let (server, database, mut reader) = opened(flavour).await;
    let rows = |table: &str, count: u32| -> String {
        let insert = |id| format!("INSERT INTO {table} VALUES ({id}, repeat('x', 1000000))");
        (0..count).map(insert).collect::<Vec<_>>().join(";\n")
    };
    // Rows that nobody selected are only counted.
    let [small, large] = ["small", "large"].map(|name| format!("{name}{database}"));
    server.sql(&format!("USE {database};\n{}", prepared(&small, &format!("{};\n{}", rows("others", 80), rows("items", 3)))));
    server.sql(&format!("XA COMMIT '{small}'"));
    assert_eq!(reader.read(3).await.len(), 3);
    server.sql(&format!("USE {database};\n{}", prepared(&large, &rows("items", 80).replace("VALUES (", "VALUES (1000 + "))));
    let error = reader.stops().await;
    assert_eq!((error.code().id, error.kind()), ("HW3026", Kind::Environment), "{error}");
    server.sql(&format!("XA ROLLBACK '{large}'"));
}

/// A restart reads on from what was prepared first, and the file with it is deleted one day.
async fn what_somebody_forgot_to_commit_is_told_of(flavour: Flavour) {
    let (server, database, mut reader) = opened(flavour).await;
    let [old, new] = ["old", "new"].map(|name| format!("{name}{database}"));
    let earlier = "SET timestamp = unix_timestamp() - 7200";
    server.sql(&format!("USE {database};\n{}", prepared(&new, "INSERT INTO others VALUES (1, 'x')")));
    finds(&mut reader, &[]).await;
    server.sql(&format!(
        "XA COMMIT '{new}';\n{earlier};\nUSE {database};\n{}",
        prepared(&old, "INSERT INTO others VALUES (2, 'x')")
    ));
    finds(&mut reader, &[("HW3048", "")]).await;
    server.sql(&format!("XA ROLLBACK '{old}'"));
    finds(&mut reader, &[]).await;
}

/// Servers that compress do not all do so with what is prepared.
async fn what_is_prepared_is_whole_where_transactions_are_compressed(flavour: Flavour) {
    let server = Server::start(flavour, &[]);
    let database = server.database();
    server.sql(&format!("USE {database};\n{TABLE}"));
    let connector = server.connector(&database, json!({}));
    let at = start(&*connector).await;
    let compress = match flavour {
        Flavour::Mysql => "SET SESSION binlog_transaction_compression = ON",
        Flavour::Mariadb => "SET GLOBAL log_bin_compress = ON",
    };
    let name = format!("packed{database}");
    let insert = "INSERT INTO items VALUES (1, repeat('x', 3000)), (2, 'b');\nDELETE FROM items WHERE id = 2";
    server.sql(&format!("{compress};\nUSE {database};\n{}", prepared(&name, insert)));
    server.sql(&format!("XA COMMIT '{name}'"));
    let phase = format!("one{database}");
    server.sql(&format!(
        "{compress};\nUSE {database};\nXA START '{phase}';\nINSERT INTO items VALUES (3, 'c');\nXA END '{phase}';\nXA COMMIT '{phase}' ONE PHASE"
    ));
    if flavour == Flavour::Mariadb {
        server.sql("SET GLOBAL log_bin_compress = OFF");
    }
    let mut reader = Reader::open(&*connector, &at).await;
    let wanted = [
        format!("Insert items 1,{}", "x".repeat(3000)),
        "Insert items 2,b".into(),
        "Delete items 2,b".into(),
        "Insert items 3,c".into(),
    ];
    assert_eq!(*reader.read(4).await, wanted);
}

/// Without names nothing could have what was prepared sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_rows_stop_where_transactions_have_no_names() {
    let server = Server::start(Flavour::Mysql, &["--gtid-mode=OFF", "--enforce-gtid-consistency=OFF"]);
    server.sql(&format!("CREATE DATABASE shop;\nUSE shop;\n{TABLE};\nCREATE TABLE others (id int PRIMARY KEY, body longtext)"));
    let connector = server.connector("shop", json!({ "tables": "shop.items" }));
    let at = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &at).await;
    server.sql(&format!("USE shop;\n{};\nXA COMMIT 'a'", prepared("a", "INSERT INTO others VALUES (1, 'x')")));
    server.sql("INSERT INTO shop.items VALUES (1, 'a')");
    assert_eq!(reader.read(1).await, ["Insert items 1,a"], "what nobody selected may be prepared");
    server.sql(&format!("USE shop;\n{}", prepared("b", "INSERT INTO items VALUES (2, 'x')")));
    assert_eq!(reader.stops().await.code().id, "HW3026");
    server.sql("XA ROLLBACK 'b'");
}

on_both! {
    more_prepared_rows_than_may_be_held_stop
    what_somebody_forgot_to_commit_is_told_of
    what_is_prepared_is_whole_where_transactions_are_compressed
}
