//! Known mistakes that only a log with brokers allows. The scenario comes first without the mistake and is clean, then with it, on
//! the same topics; the oracle and the checker of the kill test know neither.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::{
    kill::Run,
    support::{PATIENCE, oracle::Oracle, wait_until},
};

/// What is done to the daemon; told whether it makes the mistake.
type Scenario = fn(&Kafka, &Home, &Database, &[(&str, &str)]);

/// The mistake is found, and by one of these words; without it, the same scenario passes.
fn expect_found(variant: &str, scenario: Scenario, words: &[&str]) {
    let (kafka, server) = (Kafka::start(), Postgres::shared());
    let database = server.database();
    workload::prepare(&database);
    let home = connector(&kafka, &database);
    let oracle = Oracle::start(&database);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql(&format!("SELECT truth.open_bank({})", workload::BANK_ROWS));
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    let audit = || {
        let reader = |topic: &str| consume(&kafka, topic);
        let follower = Follower::new(&kafka.bootstrap);
        let (final_reader, follower): (Option<kill::Reader>, _) = (Some(&reader), Some(&follower));
        kill::audit(
            &Run { seed: 0, kills: 1, home: &home, shop: &database, final_reader, follower, break_log: None, outlast: None },
            &oracle,
        );
    };
    scenario(&kafka, &home, &database, &[]);
    audit();
    scenario(&kafka, &home, &database, &[("HEADWATER_VARIANT", variant)]);
    let cause = catch_unwind(AssertUnwindSafe(audit)).expect_err("the mistake was not found");
    let found = cause.downcast::<String>().expect("words");
    assert!(words.iter().any(|word| found.contains(word)), "{variant} was found by something else than {words:?}: {found}");
}

/// The client's queue is shorter than a log transaction is long, so that it refuses records until others have gone.
fn connector(kafka: &Kafka, database: &Database) -> Home {
    let home = home(kafka, "headwater");
    let properties = "properties: { queue.buffering.max.messages: \"50\" }";
    let log = format!("{{ kind: kafka, bootstrap_servers: [ \"{}\" ], prefix: headwater, {properties} }}", kafka.bootstrap);
    home.write("headwater.yaml", &home.main(&log));
    kill::configure(&home, database);
    home
}

/// The first daemon freezes with an open and empty log transaction, another takes its place, and then the first goes on.
fn freeze_and_succeed(kafka: &Kafka, home: &Home, database: &Database, mistake: &[(&str, &str)]) {
    database.sql("SELECT truth.transfer(1, 2, 5)");
    let before = std::fs::read_to_string(home.path("stderr")).unwrap_or_default().len();
    // The second log transaction of a life is the first with events.
    let first = home.start_with(&[mistake, &[("HEADWATER_FAULT", "C5:2:stop")]].concat());
    wait_until("the freeze", PATIENCE, || match first.stderr()[before..].contains("fault C5:2 Stop") {
        true => Ok(()),
        false => Err(first.stderr()),
    });
    let slots = "FROM pg_replication_slots WHERE database = current_database() AND slot_name LIKE 'headwater%' AND active";
    database.sql(&format!("SELECT pg_terminate_backend(active_pid) {slots}"));
    let successor = connector(kafka, database);
    let mut second = successor.start_with(mistake);
    second.wait_caught_up("shop");
    let published = home.tail("shop.bank").len();
    first.signal("CONT");
    if mistake.is_empty() {
        assert_eq!(first.exit_code(), Some(4), "fenced");
    } else {
        wait_until("the first to publish what the second has published", PATIENCE, || match home.tail("shop.bank").len() {
            more if more > published => Ok(()),
            same => Err(format!("{same} records")),
        });
        first.kill9();
    }
    second.kill9();
}

#[test]
fn two_writers_that_do_not_fence_each_other_are_found() {
    expect_found("skip-fencing", freeze_and_succeed, &["repeat", "position", "checkpoint"]);
}

/// A transaction that is longer than the client's queue.
fn fill_the_queue(_: &Kafka, home: &Home, database: &Database, mistake: &[(&str, &str)]) {
    let mut daemon = home.start_with(mistake);
    daemon.wait_state("shop", "streaming");
    database.sql("SELECT truth.put_account(2000 + n, 'many', true) FROM generate_series(1, 250) n");
    database.sql("SELECT truth.transfer(1, 2, 5)");
    // The daemon that makes the mistake believes that it has published everything.
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn records_that_the_client_refused_and_nobody_sent_again_are_found() {
    expect_found("ignore-a-send-error", fill_the_queue, &["gap", "transaction", "last"]);
}
