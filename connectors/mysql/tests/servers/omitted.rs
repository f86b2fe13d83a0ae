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

/// The names of a filter were compared without their capitals everywhere.
async fn a_filter_for_a_database_in_other_capitals_was_taken_for_this_ones(flavour: Flavour) {
    let server = Server::start(flavour, &["--binlog-do-db=SHOP"]);
    server.sql("CREATE DATABASE shop;\nCREATE TABLE shop.items (id int PRIMARY KEY)");
    let before = server.sql("SHOW BINARY LOGS");
    server.sql("USE shop;\nINSERT INTO items VALUES (1)");
    assert_eq!(server.sql("SHOW BINARY LOGS"), before, "the server leaves it out");
    let shop = server.connector("shop", json!({}));
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

const CHANGING: &str = "CREATE FUNCTION f(a int) RETURNS int DETERMINISTIC BEGIN UPDATE items SET name = 'b'; RETURN a + 7; END";
const VIEWED: &str = "CREATE FUNCTION f(a int) RETURNS int DETERMINISTIC BEGIN UPDATE items SET name = 'b'; RETURN a + 7; END;\n\
                      CREATE VIEW seen AS SELECT f(1) AS id";

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
        ("SELECT 1", "INSERT INTO /*!99999 other */ items VALUES (5, 'b')"),
        ("SELECT 1", "INSERT INTO /*!50000 items */ /*!99999 other */ VALUES (5, 'b')"),
        (CHANGING, "INSERT INTO other VALUES (f(1))"),
        (CHANGING, "INSERT INTO other VALUES (`f` (1))"),
        (CHANGING, "SET sql_mode = 'NO_BACKSLASH_ESCAPES';\nINSERT INTO other VALUES (length('\\') + f(length('')))"),
        (VIEWED, "INSERT INTO other SELECT id FROM seen"),
        (
            "CREATE TABLE quick (id int PRIMARY KEY);\nCREATE TRIGGER t BEFORE INSERT ON quick FOR EACH ROW DELETE FROM items",
            "INSERT quick VALUES (1)",
        ),
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
        "SET sql_mode = 'ANSI_QUOTES';\nINSERT INTO \"other\" SELECT COUNT(*) + 1 -- f()\nFROM \"items\"",
        "SET NAMES gbk;\nINSERT INTO other SELECT 1 FROM items WHERE name <> concat('é', lower('F(1)'))",
    ] {
        let found = written_as_a_statement(&server, "SELECT 1", statement).await;
        assert_eq!(found, Ok(vec!["Insert items 99,z".to_owned()]), "{statement}");
    }
}

/// A user that has what the docs ask for sees no triggers and no views elsewhere: nothing may be taken for harmless by that.
async fn what_the_user_cannot_see_is_not_harmless(flavour: Flavour) {
    let server = Server::start(flavour, &[]);
    let replica = if flavour == Flavour::Mariadb { "BINLOG MONITOR" } else { "REPLICATION CLIENT" };
    server.sql(&format!(
        "CREATE DATABASE shop;\nCREATE DATABASE tools;\nCREATE TABLE shop.items (id int PRIMARY KEY);\nCREATE TABLE tools.other (id int PRIMARY KEY);\n\
         CREATE TRIGGER tools.t BEFORE INSERT ON tools.other FOR EACH ROW INSERT INTO shop.items VALUES (NEW.id);\n\
         CREATE VIEW tools.seen AS SELECT * FROM shop.items;\nCREATE TABLE tools.plain (id int PRIMARY KEY);\n\
         CREATE USER reader@'%' IDENTIFIED BY 'secret';\nGRANT REPLICATION SLAVE, {replica} ON *.* TO reader@'%';\nGRANT SELECT ON shop.* TO reader@'%'"
    ));
    let url = server.url().replace("hw:", "reader:");
    let connector = server.connector("shop", json!({ "url": url }));
    for (statement, grant, why) in [
        ("INSERT INTO tools.other VALUES (1)", "", "GRANT SELECT, TRIGGER ON `tools`.* TO 'reader'@'%';"),
        ("INSERT INTO tools.seen VALUES (2)", "", "GRANT SELECT, TRIGGER ON `tools`.* TO 'reader'@'%';"),
        ("INSERT INTO tools.other VALUES (3)", "GRANT SELECT ON tools.* TO reader@'%'", "GRANT SELECT, TRIGGER ON `tools`.* TO"),
        ("INSERT INTO tools.other VALUES (4)", "GRANT SELECT, TRIGGER ON tools.* TO reader@'%'", "triggers"),
        ("INSERT INTO tools.seen VALUES (5)", "", "view"),
        ("INSERT INTO tools.plain SELECT id FROM mysql.nothing WHERE false", "", "GRANT SELECT ON `mysql`.* TO 'reader'@'%';"),
    ] {
        server.sql(&format!("CREATE TABLE IF NOT EXISTS mysql.nothing (id int PRIMARY KEY);\n{grant}"));
        let first = start(&*connector).await;
        let mut reader = Reader::open(&*connector, &first).await;
        server.sql(&format!("USE shop;\nSET binlog_format = STATEMENT;\n{statement}"));
        let error = reader.stops().await;
        assert_eq!(error.code().id, "HW3020", "{statement}: {error}");
        assert!(error.to_string().contains(why), "{why:?} is not in: {error}");
    }
    let first = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &first).await;
    server.sql("USE shop;\nSET binlog_format = STATEMENT;\nREPLACE INTO tools.plain SELECT COUNT(*) FROM items;\nSET binlog_format = ROW;\nINSERT INTO items VALUES (9)");
    assert_eq!(reader.read(1).await, ["Insert items 9"], "what it sees to be harmless passes");
}

on_both! {
    a_filter_for_a_database_in_other_capitals_was_taken_for_this_ones
    a_binlog_without_the_database_is_refused
    a_replica_that_does_not_log_is_refused
    a_statement_that_reaches_a_captured_table_stops
    a_statement_that_reaches_no_captured_table_passes
    what_the_user_cannot_see_is_not_harmless
}
