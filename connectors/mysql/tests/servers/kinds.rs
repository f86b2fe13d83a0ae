//! Tables that a pattern selects by their name and that are gone, or no tables of rows.

use headwater_connector::{Level, SourceConnector};
use serde_json::json;

use crate::support::{Flavour, Reader, Server, on_both, shared, start};

fn leaving_out(server: &Server, database: &str, table: &str) -> Box<dyn SourceConnector> {
    server.connector(database, json!({ "tables": [format!("{database}.*"), format!("!{database}.{table}")] }))
}

/// Copies and temporary tables come and go: their rows are described in the binlog, and need no catalogue that has forgotten them.
async fn rows_of_a_table_that_is_gone_come(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    server.sql(&format!("CREATE TABLE {database}.stays (id int PRIMARY KEY)"));
    let connector = server.connector(&database, json!({}));
    let at = start(&*connector).await;
    server.sql(&format!(
        "USE {database};\nCREATE TABLE gone (id int PRIMARY KEY, body longtext, code char(16) CHARACTER SET latin1, raw binary(8));\n\
         INSERT INTO gone VALUES (1, 'text', 'abc', x'00');\nDROP TABLE gone;\nINSERT INTO stays VALUES (1)"
    ));
    let mut reader = Reader::open(&*connector, &at).await;
    assert_eq!(reader.read(2).await, ["Insert gone 1,text,abc,[00, 00, 00, 00, 00, 00, 00, 00]", "Insert stays 1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_a_catalogue_knows_that_forgot_it_stops_until_it_is_left_out() {
    let server = shared(Flavour::Mariadb);
    let database = server.database();
    server.sql(&format!("CREATE TABLE {database}.stays (id int PRIMARY KEY)"));
    let connector = server.connector(&database, json!({}));
    let kinds = [("uuid", "uuid()"), ("inet6", "'::1'"), ("inet4", "'127.0.0.1'"), ("binary(16)", "'x'"), ("json", "'{}'")];
    for (id, (kind, value)) in kinds.into_iter().enumerate() {
        let at = start(&*connector).await;
        server.sql(&format!(
            "USE {database};\nCREATE TABLE gone (id int PRIMARY KEY, what {kind});\nINSERT INTO gone VALUES (1, {value});\n\
             DROP TABLE gone;\nINSERT INTO stays VALUES ({id})"
        ));
        let connector = server.connector(&database, json!({}));
        let error = Reader::open(&*connector, &at).await.stops().await;
        assert_eq!(error.code().id, "HW3024", "{kind}: {error}");
        assert!(error.hint_text().contains(&format!("\"!{database}.gone\"")), "{error}");
        let mut reader = Reader::open(&*leaving_out(server, &database, "gone"), &at).await;
        assert_eq!(reader.read(1).await, [format!("Insert stays {id}")], "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sequence_that_a_pattern_selects_is_passed() {
    let server = shared(Flavour::Mariadb);
    let database = server.database();
    server.sql(&format!("USE {database};\nCREATE TABLE items (id int PRIMARY KEY);\nCREATE SEQUENCE before_start"));
    let connector = server.connector(&database, json!({}));
    let at = start(&*connector).await;
    server.sql(&format!(
        "USE {database};\nSELECT nextval(before_start);\nCREATE SEQUENCE later;\nINSERT INTO items VALUES (nextval(later));\nDROP SEQUENCE later"
    ));
    assert_eq!(Reader::open(&*connector, &at).await.read(1).await, ["Insert items 1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_versioned_table_is_refused_until_it_is_left_out() {
    let server = shared(Flavour::Mariadb);
    let database = server.database();
    let by_transaction = "(id int PRIMARY KEY, n int, a bigint unsigned GENERATED ALWAYS AS ROW START, b bigint unsigned GENERATED ALWAYS \
                          AS ROW END, PERIOD FOR SYSTEM_TIME (a, b))";
    server.sql(&format!("CREATE TABLE {database}.items (id int PRIMARY KEY)"));
    // What tells time by transactions is in the binlog as statements.
    for (columns, code) in [("(id int PRIMARY KEY, n int)", "HW3047"), ("(id int, n int)", "HW3047"), (by_transaction, "HW3020")]
    {
        let connector = server.connector(&database, json!({}));
        let at = start(&*connector).await;
        server.sql(&format!(
            "USE {database};\nCREATE TABLE versioned {columns} WITH SYSTEM VERSIONING;\nINSERT INTO versioned (id, n) VALUES (1, 1);\n\
             UPDATE versioned SET n = 2;\nINSERT INTO items SELECT count(*) FROM items"
        ));
        let error = Reader::open(&*connector, &at).await.stops().await;
        assert_eq!(error.code().id, code, "{columns}: {error}");
        let found = connector.check().await.expect("an answer");
        let errors = found.iter().filter(|finding| finding.level == Level::Error).filter_map(|finding| finding.error.as_ref());
        assert_eq!(errors.map(|error| error.code().id).collect::<Vec<_>>(), ["HW3047"], "{columns}");
        let connector = leaving_out(server, &database, "versioned");
        let mut reader = Reader::open(&*connector, &at).await;
        assert!(reader.read(1).await[0].starts_with("Insert items "), "{columns}");
        server.sql(&format!("DROP TABLE {database}.versioned"));
    }
}

on_both! {
    rows_of_a_table_that_is_gone_come
}
