//! Servers that do not tell capitals apart in the names of tables, as on Windows and macOS, and those that do.

use serde_json::json;

use crate::support::{Flavour, Reader, Server, on_both, shared, start};

/// Statements name tables as somebody wrote them, and the rest of the binlog as the server keeps them.
async fn names_are_compared_as_the_server_does_it(flavour: Flavour) {
    let server = Server::start(flavour, &["--lower-case-table-names=1", "--binlog-ignore-db=OUT"]);
    server.sql(
        "CREATE DATABASE Shop;\nCREATE TABLE Shop.Items (id int PRIMARY KEY);\nCREATE TABLE Shop.Other (id int PRIMARY KEY);\n\
         CREATE VIEW Shop.Seen AS SELECT * FROM Shop.Items",
    );
    server.sql("CREATE DATABASE `Out`;\nCREATE TABLE `Out`.t (id int PRIMARY KEY)");
    let prepared = server.connector("out", json!({})).prepare().await;
    // MariaDB's filter takes its own capitals as they are, and so leaves nothing out.
    assert_eq!(prepared.err().map(|error| error.code().id), (flavour == Flavour::Mysql).then_some("HW3043"));
    let connector = server.connector("shop", json!({ "tables": "shop.items", "on_truncate": "event" }));
    let first = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &first).await;
    server.sql(
        "USE SHOP;\nTRUNCATE TABLE Items;\nINSERT INTO ITEMS VALUES (1);\nTRUNCATE TABLE SHOP.ITEMS;\nTRUNCATE Other;\n\
         SET binlog_format = STATEMENT;\nINSERT INTO OTHER VALUES (1);\nSET binlog_format = ROW;\nINSERT INTO Items VALUES (2)",
    );
    assert_eq!(reader.read(4).await, ["Truncate items ", "Insert items 1", "Truncate items ", "Insert items 2"]);
    for statement in [
        "UPDATE Items SET id = 7",
        "DELETE FROM SHOP.ITEMS",
        "INSERT INTO OTHER SELECT id + 10 FROM SEEN",
        "INSERT INTO SEEN VALUES (8)",
    ] {
        let now = start(&*connector).await;
        let mut reader = Reader::open(&*connector, &now).await;
        server.sql(&format!("USE shop;\nSET binlog_format = STATEMENT;\n{statement}"));
        assert_eq!(reader.stops().await.code().id, "HW3020", "{statement}");
    }
    let now = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &now).await;
    server.sql("DROP TABLE SHOP.ITEMS;\nCREATE TABLE SHOP.Items (id int PRIMARY KEY);\nINSERT INTO SHOP.Items VALUES (3)");
    assert_eq!(reader.read(1).await, ["Insert items 3"]);
}

/// Where capitals make a difference, the other table is another table.
async fn another_table_of_the_same_letters_is_another_one(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    server.sql(&format!("USE {database};\nCREATE TABLE items (id int PRIMARY KEY);\nCREATE TABLE Items (id int PRIMARY KEY)"));
    let connector = server.connector(&database, json!({ "tables": format!("{database}.items"), "on_truncate": "event" }));
    let first = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &first).await;
    server.sql(&format!(
        "USE {database};\nTRUNCATE TABLE Items;\nINSERT INTO Items VALUES (1);\nTRUNCATE TABLE items;\nINSERT INTO items VALUES (2);\n\
         DROP TABLE Items;\nINSERT INTO items VALUES (3)"
    ));
    assert_eq!(reader.read(3).await, ["Truncate items ", "Insert items 2", "Insert items 3"]);
    assert!(reader.source.monitor().findings().iter().all(|error| error.code().id != "HW3042"));
}

on_both! {
    names_are_compared_as_the_server_does_it
    another_table_of_the_same_letters_is_another_one
}
