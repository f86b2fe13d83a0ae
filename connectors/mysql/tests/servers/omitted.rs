//! Changes that the binlog does not hold as rows: what a server leaves out, and what comes as a statement.

use headwater_connector::{Kind, Level, SourceConnector};
use serde_json::json;

use crate::support::{Flavour, Reader, Server, on_both, start};

/// What `check` has against the server, as text.
pub async fn errors(connector: &dyn SourceConnector) -> String {
    let findings = connector.check().await.unwrap_or_else(|error| panic!("{error}"));
    let errors = findings.iter().filter(|finding| finding.level == Level::Error).filter_map(|finding| finding.error.as_ref());
    errors.map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// M24: what a filter keeps out of the binlog would be missing without a sign.
async fn a_binlog_without_the_database_is_refused(flavour: Flavour) {
    let option = if flavour == Flavour::Mariadb { "--binlog-do-db=kept" } else { "--binlog-ignore-db=shop" };
    let server = Server::start(flavour, &[option]);
    for database in ["kept", "shop"] {
        server.sql(&format!("CREATE DATABASE {database};\nCREATE TABLE {database}.items (id int PRIMARY KEY)"));
    }
    let kept = server.connector("kept", json!({}));
    assert!(!errors(&*kept).await.contains("HW3043"));
    kept.prepare().await.unwrap_or_else(|error| panic!("{error}"));
    let shop = server.connector("shop", json!({}));
    let said = errors(&*shop).await;
    assert!(
        said.contains("HW3043") && said.contains(&option[2..].split("-db").next().expect("a word").replace("-", "_")),
        "{said}"
    );
    assert_eq!(shop.prepare().await.expect_err("changes are left out").code().id, "HW3043");
}

/// M24: a replica that keeps what it gets to itself.
async fn a_replica_that_does_not_log_is_refused(flavour: Flavour) {
    let (setting, source) = match flavour {
        Flavour::Mariadb => ("--skip-log-slave-updates", "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_USER = 'nobody'"),
        Flavour::Mysql => {
            ("--skip-log-replica-updates", "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_USER = 'nobody'")
        }
    };
    let server = Server::start(flavour, &[setting, "--server-id=7"]);
    server.sql("CREATE DATABASE shop;\nCREATE TABLE shop.items (id int PRIMARY KEY)");
    let connector = server.connector("shop", json!({}));
    assert_eq!(errors(&*connector).await, "", "it is no replica yet");
    server.sql(source);
    let said = errors(&*connector).await;
    assert!(said.contains("HW3043") && said.contains("log_slave_updates"), "{said}");
    assert_eq!(connector.prepare().await.expect_err("changes are left out").code().id, "HW3043");
}

/// A database with a captured table and others, and an open source; what a session does that writes statements, and how many rows came before.
/// The server is not shared: what is in its binlog stops every reader of it.
async fn written_as_a_statement(server: &Server, before: &str, statement: &str) -> Result<Vec<String>, String> {
    let database = server.database();
    server.sql(&format!(
        "USE {database};\nCREATE TABLE items (id int PRIMARY KEY, name text);\nCREATE TABLE other (id int PRIMARY KEY);\n\
         INSERT INTO items VALUES (1, 'a');\n{before}"
    ));
    let connector = server.connector(&database, json!({ "tables": [format!("{database}.items")] }));
    let first = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &first).await;
    server.sql(&format!("USE {database};\nSET binlog_format = STATEMENT;\n{statement};\nSET binlog_format = ROW;\nINSERT INTO items VALUES (99, 'z')"));
    loop {
        match reader.batch().await {
            Err(error) if error.kind() == Kind::Retry => panic!("{error}"),
            Err(error) => return Err(format!("{} {:?}", error.code().id, reader.lines)),
            Ok(_) if reader.lines.iter().any(|line| line == "Insert items 99,z") => return Ok(reader.lines),
            Ok(_) => {}
        }
    }
}

/// M11: the rows of a captured table change, and the statement does not name it, or not where one would look.
async fn a_statement_that_reaches_a_captured_table_stops(flavour: Flavour) {
    let mut cases = vec![
        ("CREATE TRIGGER t BEFORE INSERT ON other FOR EACH ROW UPDATE items SET name = 'b'", "INSERT INTO other VALUES (1)"),
        ("CREATE VIEW seen AS SELECT * FROM items", "UPDATE seen SET name = 'b'"),
        ("SELECT 1", "UPDATE items, other SET items.name = 'b'"),
        ("SELECT 1", "/* other */ UPDATE `items` SET name = 'b'"),
        ("SELECT 1", "/*!50000 UPDATE */ items SET name = 'b'"),
        ("SELECT 1", "/*!999999 SELECT */ UPDATE items SET name = 'b'"),
        ("SELECT 1", "BEGIN;\nINSERT INTO other VALUES (1);\nDELETE FROM items;\nCOMMIT"),
    ];
    match flavour {
        Flavour::Mariadb => cases.extend([
            ("SELECT 1", "SET STATEMENT max_statement_time = 9 FOR UPDATE items SET name = 'b'"),
            ("SELECT 1", "ANALYZE UPDATE items SET name = 'b'"),
            ("SELECT 1", "EXECUTE IMMEDIATE 'DELETE FROM items'"),
        ]),
        Flavour::Mysql => cases.push(("SELECT 1", "WITH a AS (SELECT 1) UPDATE items SET name = 'b'")),
    }
    let server = Server::start(flavour, &[]);
    for (before, statement) in cases {
        let found = written_as_a_statement(&server, before, statement).await;
        assert_eq!(found, Err("HW3020 []".to_owned()), "{statement}");
    }
}

/// What tools do that compare tables, and what only looks like the captured table.
async fn a_statement_that_reaches_no_captured_table_passes(flavour: Flavour) {
    let server = Server::start(flavour, &[]);
    for statement in [
        "INSERT INTO other VALUES (1);\nREPLACE INTO other SELECT id + 1 FROM items",
        "CREATE TEMPORARY TABLE passing (id int PRIMARY KEY);\nINSERT INTO passing SELECT id FROM items;\nDROP TEMPORARY TABLE passing",
        "BEGIN;\nINSERT INTO other VALUES (1);\nDELETE FROM other;\nCOMMIT",
    ] {
        let found = written_as_a_statement(&server, "SELECT 1", statement).await;
        assert_eq!(found, Ok(vec!["Insert items 99,z".to_owned()]), "{statement}");
    }
}

on_both! {
    a_binlog_without_the_database_is_refused
    a_replica_that_does_not_log_is_refused
    a_statement_that_reaches_a_captured_table_stops
    a_statement_that_reaches_no_captured_table_passes
}
