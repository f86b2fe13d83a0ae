//! The same fire on MariaDB and MySQL, and behind it rows that were there before the connector was, on the same server.

use super::{Run, configure, explain, kills, run, seed};
use crate::{
    backfill,
    binlog::servers::{Flavour, Server},
    kafka,
    support::{daemon::Home, follow::Follower, kafka::Kafka, shop::mysql},
};

/// Kills that count in the tests of everyday.
const FEW: u32 = 4;
const ROWS: u32 = 12_000;

fn on_the_embedded_log(flavour: Flavour) {
    let server = mysql::start(flavour);
    let home = Home::new();
    prepare(&server, &home);
    run(&Run {
        seed: seed(),
        kills: kills(FEW),
        home: &home,
        shop: &server,
        final_reader: None,
        follower: None,
        break_log: None,
        outlast: None,
    });
    let home = backfill::versioned(&server, ROWS, "      backfill: { rows_per_second: 6000, readers: 2 }\n");
    backfill::kill_backfills(&home, &server, kills(FEW), "shop.item", ROWS);
}

fn on_kafka(flavour: Flavour) {
    let kafka = Kafka::start_with(kafka::SHORT_TRANSACTIONS);
    let server = mysql::start(flavour);
    let home = kafka::killed(&kafka);
    prepare(&server, &home);
    run(&Run {
        seed: seed(),
        kills: kills(FEW),
        home: &home,
        shop: &server,
        final_reader: Some(&|topic| kafka::consume(&kafka, topic)),
        follower: Some(&Follower::new(&kafka.bootstrap)),
        break_log: Some(&|how| kafka::break_broker(&kafka, how)),
        outlast: Some(&|| kafka::wait_aborted(&kafka, "headwater.shop")),
    });
    let more =
        "      backfill: { rows_per_second: 6000, readers: 2 }\n    events: { partitions: 3, topic: \"backfilled.{entity}\" }\n";
    let home = backfill::versioned(&server, ROWS, more);
    let log = format!("{{ kind: kafka, bootstrap_servers: [ \"{}\" ], prefix: backfilled }}", kafka.bootstrap);
    home.write("headwater.yaml", &home.main(&log));
    backfill::kill_backfills(&home, &server, kills(FEW), "backfilled.item", ROWS);
}

fn prepare(server: &Server, home: &Home) {
    crate::support::workload::prepare(server);
    configure(home, server);
}

#[test]
fn kills_lose_and_repeat_nothing_on_mariadb_and_the_embedded_log() {
    on_the_embedded_log(Flavour::Mariadb);
}

#[test]
fn kills_lose_and_repeat_nothing_on_mysql_and_the_embedded_log() {
    on_the_embedded_log(Flavour::Mysql);
}

#[test]
fn kills_lose_and_repeat_nothing_on_mariadb_and_kafka() {
    on_kafka(Flavour::Mariadb);
}

#[test]
fn kills_lose_and_repeat_nothing_on_mysql_and_kafka() {
    on_kafka(Flavour::Mysql);
}

#[test]
fn the_oracle_explains_the_tables_of_mariadb() {
    let server = mysql::start(Flavour::Mariadb);
    explain(&server);
}

#[test]
fn the_oracle_explains_the_tables_of_mysql() {
    let server = mysql::start(Flavour::Mysql);
    explain(&server);
}
