//! One transaction of MariaDB and MySQL that is far larger than what the daemon may hold, with a kill in its middle.

use super::servers::{Flavour, Server};
use crate::{ingest::huge, support::daemon::Home};

/// 256 MB, in rows of 16 KB: held whole, they would be above what the daemon may need at most.
const ROWS: u64 = 16_000;

fn a_transaction_larger_than_memory_is_resumed_inside_after_a_kill(flavour: Flavour) {
    let server = Server::start(flavour, &["--max-binlog-size=1G"]);
    let digits: Vec<String> = (0..1000).map(|n| format!("({n})")).collect();
    server.sql(&format!(
        "CREATE DATABASE d1;\nUSE d1;\nCREATE TABLE digits (n int PRIMARY KEY);\nINSERT INTO digits VALUES {};\n\
         CREATE TABLE narrow (id int PRIMARY KEY, n int NOT NULL, body text)",
        digits.join(",")
    ));
    let home = Home::new();
    home.write(
        "connectors/shop.yaml",
        &format!(
            "connectors:\n  shop:\n    source:\n      kind: mysql\n{}      tables: [ d1.narrow ]\n      backfill: never\n",
            super::place(&server, "d1")
        ),
    );
    huge::publish(&home, ROWS, 1, || {
        server.sql(&format!(
            "USE d1;\nINSERT INTO narrow SELECT a.n * 1000 + b.n + 1, crc32(a.n * 1000 + b.n) & 65535, repeat('0123456789', 1600) \
             FROM digits a, digits b WHERE a.n < {} ORDER BY 1",
            ROWS / 1000
        ));
    });
    let (count, sum) = huge::read(&home);
    assert_eq!(format!("{count}\t{sum}"), server.sql("SELECT count(*), sum(n) FROM d1.narrow"));
}

#[test]
fn a_transaction_larger_than_memory_is_resumed_inside_after_a_kill_on_mariadb() {
    a_transaction_larger_than_memory_is_resumed_inside_after_a_kill(Flavour::Mariadb);
}

#[test]
fn a_transaction_larger_than_memory_is_resumed_inside_after_a_kill_on_mysql() {
    a_transaction_larger_than_memory_is_resumed_inside_after_a_kill(Flavour::Mysql);
}
