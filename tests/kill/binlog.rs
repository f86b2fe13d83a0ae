//! The same fire on MariaDB and MySQL, and behind it rows that were there before the connector was, on the same server.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::LazyLock,
};

use super::{CUT, FULL, Run, audit, configure, explain, kills, run, seed};
use crate::{
    backfill,
    binlog::servers::{Flavour, Server},
    kafka,
    support::{
        daemon::Home,
        follow::Follower,
        kafka::Kafka,
        oracle::Oracle,
        shop::{
            Shop as _, Step,
            mysql::{self, Writing},
        },
        workload,
    },
};

/// Kills that count in the tests of everyday.
const FEW: u32 = 4;
const ROWS: u32 = 12_000;

/// The same for all tests of a process, which divide the logs among them.
fn seed_of_the_process() -> u64 {
    static SEED: LazyLock<u64> = LazyLock::new(seed);
    *SEED
}

fn on_the_embedded_log(flavour: Flavour) {
    let server = mysql::start(flavour, Writing::of(flavour, seed_of_the_process()));
    let home = Home::new();
    prepare(&server, &home);
    run(&Run {
        seed: seed_of_the_process(),
        kills: kills(FEW),
        home: &home,
        shop: &server,
        final_reader: None,
        follower: None,
        break_log: None,
        outlast: None,
    });
    if !mysql::has_names(&server) {
        return;
    }
    let home = backfill::versioned(&server, ROWS, "      backfill: { rows_per_second: 6000, readers: 2 }\n");
    backfill::kill_backfills(&home, &server, kills(FEW), "shop.item", ROWS);
}

fn on_kafka(flavour: Flavour) {
    let kafka = Kafka::start_with(kafka::SHORT_TRANSACTIONS);
    let server = mysql::start(flavour, Writing::of(flavour, seed_of_the_process()));
    let home = kafka::killed(&kafka);
    prepare(&server, &home);
    // Kafka's own consumer takes longer than all of a few kills.
    let is_full = kills(FEW) >= FULL;
    run(&Run {
        seed: seed_of_the_process(),
        kills: kills(FEW),
        home: &home,
        shop: &server,
        final_reader: is_full.then_some(&|topic| kafka::consume(&kafka, topic)),
        follower: Some(&Follower::new(&kafka.bootstrap)),
        break_log: Some(&|how| kafka::break_broker(&kafka, how)),
        outlast: Some(&|| kafka::wait_aborted(&kafka, "headwater.shop")),
    });
    if !mysql::has_names(&server) {
        return;
    }
    let more =
        "      backfill: { rows_per_second: 6000, readers: 2 }\n    events: { partitions: 3, topic: \"backfilled.{entity}\" }\n";
    let home = backfill::versioned(&server, ROWS, more);
    let log = format!("{{ kind: kafka, bootstrap_servers: [ \"{}\" ], prefix: backfilled }}", kafka.bootstrap);
    home.write("headwater.yaml", &home.main(&log));
    backfill::kill_backfills(&home, &server, kills(FEW), "backfilled.item", ROWS);
}

fn prepare(server: &Server, home: &Home) {
    workload::prepare(server);
    configure(home, server);
}

/// A full run has both logs. A short one has one of them, and the other server the other: its seed says which.
fn on_its_logs(flavour: Flavour) {
    let is_full = kills(FEW) >= FULL;
    let embedded = seed_of_the_process().is_multiple_of(2) == (flavour == Flavour::Mariadb);
    if is_full || embedded {
        on_the_embedded_log(flavour);
    }
    if is_full || !embedded {
        on_kafka(flavour);
    }
}

#[test]
fn kills_lose_and_repeat_nothing_on_mariadb() {
    on_its_logs(Flavour::Mariadb);
}

#[test]
fn kills_lose_and_repeat_nothing_on_mysql() {
    on_its_logs(Flavour::Mysql);
}

#[test]
fn the_oracle_explains_the_tables_of_mariadb() {
    explain(&mysql::start(Flavour::Mariadb, Writing::Compressed));
}

#[test]
fn the_oracle_explains_the_tables_of_mysql() {
    explain(&mysql::start(Flavour::Mysql, Writing::Compressed));
}

/// A daemon that makes a known mistake dies behind the third slice of a large transaction, and comes to rest in another life. Says what the
/// audit has found.
fn mistake(flavour: Flavour, variant: &str) -> String {
    let (server, home) = (mysql::start(flavour, Writing::Plain), Home::new());
    prepare(&server, &home);
    let oracle = Oracle::start(&server);
    let mistake = ("HEADWATER_VARIANT", variant);
    let mut daemon = home.start_with(&[mistake]);
    daemon.wait_state("shop", "streaming");
    let (mut client, mut events) = (server.connect()().expect("a session"), 0);
    client.run(&[Step::Call("open_bank(20)".to_owned())], true, &mut events).expect("a bank");
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    let bulk = Step::Many { base: 1_000, rows: CUT as u32 * 6, owner: "bulk".to_owned() };
    client.run(&[bulk], true, &mut events).expect("a large transaction");
    home.start_with(&[mistake, ("HEADWATER_FAULT", "C12:3")]).wait_fault("C12:3");
    let mut daemon = home.start_with(&[mistake]);
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    let run =
        Run { seed: 0, kills: 1, home: &home, shop: &server, final_reader: None, follower: None, break_log: None, outlast: None };
    let judged = catch_unwind(AssertUnwindSafe(|| audit(&run, &oracle)));
    *judged.expect_err("the mistake was not found").downcast::<String>().expect("words")
}

#[test]
fn a_partial_transaction_that_is_forgotten_is_found_on_mariadb() {
    let found = mistake(Flavour::Mariadb, "forget-the-partial");
    assert!(found.contains("repeat"), "{found}");
}

#[test]
fn a_position_per_row_is_found_on_mysql() {
    let found = mistake(Flavour::Mysql, "per-row-position");
    assert!(found.contains("gap"), "{found}");
}
