//! One transaction of MariaDB and MySQL that is far larger than what the daemon may hold, with a kill in its middle.

use super::servers::{Flavour, Server, shared};
use crate::{bad_input::surroundings::error_is, ingest::huge, support::daemon::Home};

/// 256 MB, in rows of 16 KB: held whole, they would be above what the daemon may need at most.
const ROWS: u64 = 16_000;

fn shop(server: &Server, table: &str, more: &str) -> Home {
    let home = Home::new();
    home.write(
        "connectors/shop.yaml",
        &format!(
            "connectors:\n  shop:\n    source:\n      kind: mysql\n{}      tables: [ {table} ]\n      backfill: never\n{more}",
            super::place(server, "d1")
        ),
    );
    home
}

fn a_transaction_larger_than_memory_is_resumed_inside_after_a_kill(flavour: Flavour) {
    let server = Server::start(flavour, &["--max-binlog-size=1G"]);
    let digits: Vec<String> = (0..1000).map(|n| format!("({n})")).collect();
    server.sql(&format!(
        "CREATE DATABASE d1;\nUSE d1;\nCREATE TABLE digits (n int PRIMARY KEY);\nINSERT INTO digits VALUES {};\n\
         CREATE TABLE narrow (id int PRIMARY KEY, n int NOT NULL, body text)",
        digits.join(",")
    ));
    let home = shop(&server, "d1.narrow", "");
    huge::publish(&home, ROWS, 1, || {
        server.sql(&format!(
            "USE d1;\nINSERT INTO narrow SELECT a.n * 1000 + b.n + 1, crc32(a.n * 1000 + b.n) & 65535, repeat('0123456789', 1600) \
             FROM digits a, digits b WHERE a.n < {} ORDER BY 1",
            ROWS / 1000
        ));
    });
    let (count, sum) = huge::read(&home);
    assert_eq!(format!("{count}\t{sum}"), server.sql("SELECT count(*), sum(n) FROM d1.narrow"));
    stops_before_it_holds_a_larger_event(&server);
}

/// M27: the smallest limit, and a row far above it.
fn stops_before_it_holds_a_larger_event(server: &Server) {
    const ROW: u64 = 60_000_000;
    server.sql("CREATE TABLE d1.wide (id int PRIMARY KEY, body longtext)");
    let home = shop(server, "d1.wide", "      max_event_bytes: 1048576\n");
    // A daemon of which no connector is left ends. This one has another server, which is calm.
    let calm = shared(server.flavour);
    let database = calm.database();
    calm.sql(&format!("CREATE TABLE {database}.items (id int PRIMARY KEY)"));
    let place = super::place(calm, &database);
    home.write(
        "connectors/calm.yaml",
        &format!(
            "connectors:\n  calm:\n    source:\n      kind: mysql\n{place}      tables: {database}.items\n      backfill: never\n"
        ),
    );
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    server.sql(&format!(
        "INSERT INTO d1.wide VALUES (1, 'small');\nINSERT INTO d1.wide VALUES (2, repeat('0123456789', {ROW} / 10))"
    ));
    let stopped = daemon.wait_state("shop", "stopped");
    error_is(&stopped, "HW3025", "environment");
    let peak = huge::peak_kib(&daemon) * 1024;
    assert_eq!(daemon.terminate(), Some(3), "an orderly stop, with a connector that had stopped");
    println!("huge: an event of {ROW} bytes that is not allowed, VmHWM {peak} bytes");
    assert!(peak < ROW, "{peak} bytes: it was held");
    assert_eq!(home.tail("shop.wide").len(), 1, "what came before it is published");
}

#[test]
fn a_transaction_larger_than_memory_is_resumed_inside_after_a_kill_on_mariadb() {
    a_transaction_larger_than_memory_is_resumed_inside_after_a_kill(Flavour::Mariadb);
}

#[test]
fn a_transaction_larger_than_memory_is_resumed_inside_after_a_kill_on_mysql() {
    a_transaction_larger_than_memory_is_resumed_inside_after_a_kill(Flavour::Mysql);
}
