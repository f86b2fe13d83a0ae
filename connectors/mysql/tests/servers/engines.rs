//! Tables of engines that know no transactions, and keys that nobody sees.

use headwater_connector::Batch;
use serde_json::json;

use crate::{
    chunks::{chunk, whole},
    support::{Flavour, Reader, Server, on_both, shared, show, start},
};

/// Every statement is a transaction of its own, and what a transaction of another engine wrote beside it keeps its place.
async fn rows_of_an_engine_without_transactions_come_as_they_were_written(flavour: Flavour) {
    let server = shared(flavour);
    let engines: &[&str] = if flavour == Flavour::Mariadb { &["MyISAM", "Aria", "MEMORY"] } else { &["MyISAM", "MEMORY"] };
    for engine in engines {
        let database = server.database();
        server.sql(&format!(
            "USE {database};\nCREATE TABLE plain (id int PRIMARY KEY, n int) ENGINE={engine};\nCREATE TABLE items (id int PRIMARY KEY)"
        ));
        let connector = server.connector(&database, json!({}));
        let at = start(&*connector).await;
        server.sql(&format!(
            "USE {database};\nINSERT INTO plain VALUES (1, 1), (2, 2);\nUPDATE plain SET n = n + 10 WHERE id = 1;\nDELETE FROM plain WHERE id = 2"
        ));
        let mut reader = Reader::open(&*connector, &at).await;
        let wanted = ["Insert plain 1,1", "Insert plain 2,2", "Update plain 1,11", "Delete plain 2,2"];
        assert_eq!(reader.read(4).await, wanted, "{engine}");
        // MySQL with GTIDs lets nobody mix the two.
        if flavour == Flavour::Mariadb {
            server.sql(&format!(
                "USE {database};\nBEGIN;\nINSERT INTO items VALUES (1);\nINSERT INTO plain VALUES (3, 3);\nINSERT INTO items VALUES (2);\nCOMMIT"
            ));
            // Which of them comes first the server decides.
            let mut lines = reader.read(7).await[4..].to_vec();
            lines.sort();
            assert_eq!(lines, ["Insert items 1", "Insert items 2", "Insert plain 3,3"], "{engine}");
        }
    }
}

/// M10: the server makes a key for a table without one, and may hide it from everybody who looks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hidden_key_is_the_key() {
    let server = Server::start(Flavour::Mysql, &[]);
    server.sql(
        "CREATE DATABASE shop;\nSET GLOBAL show_gipk_in_create_table_and_information_schema = OFF;\n\
         SET SESSION sql_generate_invisible_primary_key = ON;\nCREATE TABLE shop.items (name text);\nINSERT INTO shop.items VALUES ('a')",
    );
    let connector = server.connector("shop", json!({}));
    let tables = connector.tables().await.unwrap_or_else(|faults| panic!("{faults:?}"));
    let schema = &tables[0].schema;
    assert_eq!(schema.key.iter().map(|at| schema.columns[*at].name.as_str()).collect::<Vec<_>>(), ["my_row_id"]);
    let at = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &at).await;
    let (mut batch, mut rows) = (Batch::default(), connector.reader().await.expect("a reader"));
    chunk(&mut *rows, &whole("shop.items"), &mut batch).await;
    let read = batch.changes()[0].after.expect("a row");
    assert_eq!(batch.values(read).map(show).collect::<Vec<_>>(), ["1", "a"]);
    server.sql("INSERT INTO shop.items VALUES ('b');\nUPDATE shop.items SET name = 'c'");
    assert_eq!(reader.read(3).await, ["Insert items 2,b", "Update items 1,c", "Update items 2,c"]);
}

on_both! {
    rows_of_an_engine_without_transactions_come_as_they_were_written
}
