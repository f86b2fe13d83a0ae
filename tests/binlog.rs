//! MariaDB and MySQL: a daemon that is killed again and again publishes every change once, in the order of the binlog.

#[allow(dead_code, unused_macros)]
#[path = "../connectors/mysql/tests/servers/support.rs"]
pub mod servers;

mod rows;

use servers::{Flavour, shared};

use crate::support::daemon::Home;

const KILLS: usize = 4;
/// Between two kills.
const TRANSACTIONS: usize = 120;

/// Transaction `k` as SQL, and the events that it makes: operation, key, and name after it.
fn transaction(k: usize, expected: &mut Vec<String>) -> String {
    let mut sql = format!("BEGIN;\nINSERT INTO items VALUES ({k}, 'new {k}'), ({}, 'pair');\n", k + 1_000_000);
    expected.push(format!("c {k} new {k}"));
    expected.push(format!("c {} pair", k + 1_000_000));
    if k >= 1 {
        sql.push_str(&format!("UPDATE items SET name = 'old' WHERE id = {};\n", k - 1));
        expected.push(format!("u {} old", k - 1));
    }
    if k >= 5 {
        sql.push_str(&format!("DELETE FROM items WHERE id = {};\n", k - 5));
        expected.push(format!("d {} -", k - 5));
    }
    sql + "INSERT INTO other VALUES ();\nCOMMIT;\n"
}

fn a_killed_daemon_publishes_every_change_once(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    server.sql(&format!(
        "USE {database};\nCREATE TABLE items (id int PRIMARY KEY, name text);\nCREATE TABLE other (id bigint AUTO_INCREMENT PRIMARY KEY)"
    ));
    let home = Home::new();
    let kind = if flavour == Flavour::Mariadb { "mariadb" } else { "mysql" };
    home.write(
        "connectors/shop.yaml",
        &format!(
            "connectors:\n  shop:\n    source:\n      kind: {kind}\n      url: {}\n      tables: [ {database}.items ]\n      backfill: never\n    \
             commit: {{ max_events: 7 }}\n",
            server.url()
        ),
    );
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    let mut expected = Vec::new();
    for round in 0..=KILLS {
        let mut sql = format!("USE {database};\n");
        for k in round * TRANSACTIONS..(round + 1) * TRANSACTIONS {
            sql.push_str(&transaction(k, &mut expected));
        }
        let writer = std::thread::spawn(move || server.sql(&sql));
        if round < KILLS {
            // In the middle of what is written, and at another place each time.
            let reached = round * TRANSACTIONS + 10 + 25 * round;
            servers::eventually("the topic grows", || {
                home.tail("shop.items").iter().any(|record| record.key == format!("{{\"id\":{reached}}}"))
            });
            daemon.kill9();
            daemon = home.start();
        }
        writer.join().expect("the writer");
    }
    daemon.wait_caught_up("shop");
    let found: Vec<String> = home
        .tail("shop.items")
        .iter()
        .map(|record| {
            let id = record.key.trim_start_matches("{\"id\":").trim_end_matches('}');
            let name = record.value.as_ref().and_then(|value| value["name"].as_str()).unwrap_or("-");
            format!("{} {id} {name}", record.header("hw.op"))
        })
        .collect();
    assert_eq!(found.len(), expected.len(), "as many events as changes");
    let first = found.iter().zip(&expected).position(|(found, expected)| found != expected);
    assert_eq!(first, None, "the order of the binlog");
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn a_killed_daemon_publishes_every_change_once_on_mariadb() {
    a_killed_daemon_publishes_every_change_once(Flavour::Mariadb);
}

#[test]
fn a_killed_daemon_publishes_every_change_once_on_mysql() {
    a_killed_daemon_publishes_every_change_once(Flavour::Mysql);
}
