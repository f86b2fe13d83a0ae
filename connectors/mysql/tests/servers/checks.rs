//! What `check` finds at a server before anything is read.

use headwater_connector::{Level, SourceConnector};
use serde_json::json;

use crate::support::{Flavour, Reader, Server, on_both, shared, start};

/// The findings of a level, as `CODE what, where`.
async fn said(connector: &dyn SourceConnector, level: Level) -> String {
    let findings = connector.check().await.unwrap_or_else(|error| panic!("{error}"));
    let found = findings.iter().filter(|finding| finding.level == level).filter_map(|finding| finding.error.as_ref());
    found.map(|error| format!("{} {error}\n", error.code().id)).collect()
}

/// A table of an engine without transactions was told of only when a chunk of it failed.
async fn a_table_without_transactions_is_told_of(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    let mut engines = vec!["MyISAM", "MEMORY"];
    if flavour == Flavour::Mariadb {
        engines.push("Aria");
    }
    server.sql(&format!("CREATE TABLE {database}.fine (id int PRIMARY KEY)"));
    for engine in &engines {
        server.sql(&format!("CREATE TABLE {database}.t_{engine} (id int PRIMARY KEY) ENGINE = {engine}"));
    }
    let streamed = server.connector(&database, json!({}));
    assert_eq!(said(&*streamed, Level::Error).await, "", "their changes are in the binlog");
    let warnings = said(&*streamed, Level::Warning).await;
    let read = server.connector(&database, json!({ "backfill": "initial" }));
    let errors = said(&*read, Level::Error).await;
    for engine in &engines {
        let name = format!("{database}.t_{engine}");
        let of_table = |text: &str, code: &str| {
            text.lines().any(|line| line.contains(code) && line.to_lowercase().contains(&name.to_lowercase()))
        };
        assert!(of_table(&warnings, "HW3049"), "{engine}: {warnings}");
        assert!(of_table(&errors, "HW3036"), "{engine}: {errors}");
    }
    assert!(
        !warnings.contains(&format!("{database}.fine")) && !errors.contains(&format!("{database}.fine")),
        "{warnings}{errors}"
    );
}

/// What the warning says of MEMORY.
async fn a_memory_table_that_a_restart_emptied_stops(flavour: Flavour) {
    let server = Server::start(flavour, &[]);
    let database = server.database();
    server.sql(&format!("CREATE TABLE {database}.m (id int PRIMARY KEY) ENGINE = MEMORY;\nINSERT INTO {database}.m VALUES (1)"));
    let connector = server.connector(&database, json!({}));
    let first = start(&*connector).await;
    server.sql(&format!("INSERT INTO {database}.m VALUES (2)"));
    server.crash_and_restart();
    assert_eq!(server.sql(&format!("SELECT COUNT(*) FROM {database}.m")), "0");
    server.sql(&format!("INSERT INTO {database}.m VALUES (3)"));
    let mut reader = Reader::open(&*connector, &first).await;
    let error = reader.stops().await;
    assert!(["HW3017", "HW3020"].contains(&error.code().id), "{error}: {:?}", reader.lines);
    assert_eq!(reader.lines, ["Insert m 2"]);
}

/// The cascade is looked up in the table's definition, which has no backquotes where a server is told so.
async fn a_cascade_is_found_whatever_the_server_quotes(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    server.sql(&format!(
        "USE {database};\nCREATE TABLE parent (id int PRIMARY KEY);\n\
         CREATE TABLE child (id int PRIMARY KEY, parent int, FOREIGN KEY (parent) REFERENCES parent (id) ON DELETE CASCADE)"
    ));
    let connector = server.connector(&database, json!({}));
    server.sql("SET GLOBAL sql_quote_show_create = 0");
    let errors = said(&*connector, Level::Error).await;
    let prepared = connector.prepare().await;
    server.sql("SET GLOBAL sql_quote_show_create = 1");
    // A server that writes what its keys do has nothing to be refused for.
    let is_refused = !server.logs_cascades();
    assert_eq!(errors.contains("HW3035"), is_refused, "{errors}");
    assert_eq!(prepared.err().map(|error| error.code().id), is_refused.then_some("HW3035"));
}

/// Files that are deleted by size are as lost as those that are deleted by age; MariaDB can since 11.4.
async fn a_bound_of_bytes_is_told_of(flavour: Flavour) {
    let server = Server::start(flavour, &[]);
    let database = server.database();
    server.sql(&format!("SET GLOBAL binlog_expire_logs_seconds = 0;\nCREATE TABLE {database}.t (id int PRIMARY KEY)"));
    let connector = server.connector(&database, json!({}));
    let first = start(&*connector).await;
    let monitor = connector.monitor(&first.position).expect("a monitor");
    let kept = monitor.retention(&first.position).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((kept.left_bytes, kept.left_seconds), (None, None), "nothing is deleted");
    assert!(!said(&*connector, Level::Warning).await.contains("HW3033"));
    if server.try_sql("SET GLOBAL max_binlog_total_size = 1073741824").is_err() {
        return;
    }
    assert!(said(&*connector, Level::Warning).await.contains("HW3033"));
    let before = monitor.retention(&first.position).await.unwrap_or_else(|error| panic!("{error}")).left_bytes;
    server.sql(&format!("INSERT INTO {database}.t VALUES (1)"));
    let after = monitor.retention(&first.position).await.unwrap_or_else(|error| panic!("{error}")).left_bytes;
    assert!(before.is_some_and(|bytes| bytes < 1 << 30) && after < before, "{before:?} {after:?}");
}

on_both! {
    a_table_without_transactions_is_told_of
    a_memory_table_that_a_restart_emptied_stops
    a_cascade_is_found_whatever_the_server_quotes
    a_bound_of_bytes_is_told_of
}
