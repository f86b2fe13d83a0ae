//! What is told of a connector's place while it stands still: the server goes on deleting its binlog.

use serde_json::Value;

use super::{
    place,
    servers::{Flavour, Server, eventually, shared},
};
use crate::support::daemon::Home;

const WEEK: u64 = 7 * 86_400;
const DAY: u64 = 86_400;

/// One connector over a table, and the table.
fn items(server: &Server) -> (Home, String) {
    let database = server.database();
    server.sql(&format!(
        "SET GLOBAL binlog_expire_logs_seconds = {WEEK};\nCREATE TABLE {database}.items (id int PRIMARY KEY);\nINSERT INTO {database}.items VALUES (1)"
    ));
    let home = Home::new();
    let place = place(server, &database);
    home.write(
        "connectors/items.yaml",
        &format!("connectors:\n  items:\n    source:\n      kind: mysql\n{place}      tables: [ {database}.items ]\n"),
    );
    (home, format!("{database}.items"))
}

/// A value of a series of the connector.
fn gauge(home: &Home, name: &str) -> Option<f64> {
    let answer = ureq::get(format!("http://{}/metrics", home.address())).call();
    let page = answer.expect("an answer").body_mut().read_to_string().expect("a page");
    let start = format!("{name}{{connector=\"items\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok())
}

/// A paused or stopped connector showed nothing of what its server keeps, so the alert on that could not fire when it mattered.
fn what_is_kept_is_told_while_the_connector_stands(flavour: Flavour) {
    // What others do would be unread too.
    let server = Server::start(flavour, &[]);
    let (home, table) = items(&server);
    let other = server.database();
    server.sql(&format!("CREATE TABLE {other}.notes (id int PRIMARY KEY)"));
    let keeps = format!(
        "connectors:\n  other:\n    source:\n      kind: mysql\n{}      tables: [ {other}.notes ]\n",
        place(&server, &other)
    );
    home.write("connectors/other.yaml", &keeps);
    let mut daemon = home.start();
    daemon.wait_caught_up("items");
    assert_eq!(gauge(&home, "headwater_source_safe_seconds"), Some(WEEK as f64), "all of it was read");
    home.run(&["pause", "items"]).expect_code(0);
    assert!(gauge(&home, "headwater_source_safe_seconds").is_some(), "paused");
    let paused = daemon.connector("items").expect("a connector");
    assert!(paused["source"]["safe_seconds"].is_u64() && paused["lag"]["bytes"].is_null(), "{paused}");
    let shown = home.run(&["status"]).stdout;
    let file = paused["source"]["log_file"].as_str().expect("a file");
    assert!(shown.contains(file) && shown.contains("may delete") && !shown.contains("keeps the log until"), "{shown}");

    // Another daemon finds the pause, and what was not read is as old as the server says.
    assert_eq!(daemon.terminate(), Some(0));
    server.sql(&format!(
        "SET timestamp = UNIX_TIMESTAMP() - 6 * {DAY} - 43201;\nINSERT INTO {table} VALUES (2);\nFLUSH BINARY LOGS"
    ));
    let mut daemon = home.start();
    daemon.wait_state("items", "paused");
    let left = gauge(&home, "headwater_source_safe_seconds").expect("a paused connector's place is watched");
    assert!((1.0..43_200.0).contains(&left), "{left}");

    // And one that stops for an error.
    home.run(&["resume", "items"]).expect_code(0);
    daemon.wait_caught_up("items");
    server.sql(&format!("TRUNCATE TABLE {table}"));
    let stopped = daemon.wait_state("items", "stopped");
    assert_eq!(stopped["error"]["code"], "HW3017");
    assert!(gauge(&home, "headwater_source_safe_seconds").is_some(), "stopped");
    assert_eq!(daemon.terminate(), Some(1));
}

/// File, place and GTID set were one text that nobody could graph or compare.
fn the_place_is_told_in_the_servers_words(flavour: Flavour) {
    let server = shared(flavour);
    let (home, table) = items(server);
    let mut daemon = home.start();
    daemon.wait_caught_up("items");
    server.sql(&format!("FLUSH BINARY LOGS;\nINSERT INTO {table} VALUES (2)"));
    let is_there = |shop: &Value| home.tail("items.items").len() == 2 && shop["lag"]["bytes"] == 0;
    let found = daemon.wait_for("items", "the change", is_there);
    let source = &found["source"];
    let (file, at) = (source["log_file"].as_str().expect("a file"), source["log_position_bytes"].as_u64().expect("a place"));
    let number = source["log_file_number"].as_u64().expect("a number");
    assert_eq!(file, format!("binlog.{number:06}"));
    let status = home.run(&["status"]).stdout;
    assert!(status.contains(&format!("{file}, byte {at}")), "{status}");
    assert!(status.contains(source["gtid_set"].as_str().expect("a set")), "{status}");
    assert_eq!(gauge(&home, "headwater_source_log_file_number"), Some(number as f64));
    assert!(gauge(&home, "headwater_source_log_position_bytes") >= Some(at as f64));
    // It is where the server wrote it.
    let events = server.sql(&format!("SHOW BINLOG EVENTS IN '{file}'"));
    assert!(events.lines().any(|line| line.split('\t').nth(4) == Some(at.to_string().as_str())), "{at} in {events}");
    assert_eq!(daemon.terminate(), Some(0));
}

/// `check` knew how long the server keeps its binlog, and not how far back the connector stands in it.
fn check_compares_what_is_kept_with_the_checkpoint(flavour: Flavour) {
    let server = Server::start(flavour, &[]);
    let (home, table) = items(&server);
    let mut daemon = home.start();
    daemon.wait_caught_up("items");
    assert_eq!(daemon.terminate(), Some(0));
    let said = home.run(&["check"]).said();
    assert!(said.contains("what follows the checkpoint for 7 d") && !said.contains("HW1186"), "{said}");

    server.sql(&format!(
        "SET timestamp = UNIX_TIMESTAMP() - 6 * {DAY} - 43201;\nINSERT INTO {table} VALUES (2);\nFLUSH BINARY LOGS"
    ));
    let checked = home.run(&["check"]);
    let said = checked.said();
    assert!(said.contains("HW1186") && said.contains("11 h"), "{said}");
    checked.expect_code(0);

    let last = server.binlog();
    // Files are kept as long as the session of the daemon that ended has not noticed that.
    eventually("the purge", || {
        server.sql(&format!("FLUSH BINARY LOGS;\nPURGE BINARY LOGS TO '{last}'"));
        server.sql("SHOW BINARY LOGS").starts_with(&last)
    });
    let checked = home.run(&["check"]);
    assert!(checked.said().contains("HW3013"), "{}", checked.said());
    checked.expect_code(3);
}

/// Each function as a test on each flavour.
macro_rules! on_both {
    ($($name:ident)*) => {
        mod mariadb {
            use super::Flavour;
            $(
                #[test]
                fn $name() {
                    super::$name(Flavour::Mariadb);
                }
            )*
        }

        mod mysql {
            use super::Flavour;
            $(
                #[test]
                fn $name() {
                    super::$name(Flavour::Mysql);
                }
            )*
        }
    };
}

on_both! {
    what_is_kept_is_told_while_the_connector_stands
    the_place_is_told_in_the_servers_words
    check_compares_what_is_kept_with_the_checkpoint
}
