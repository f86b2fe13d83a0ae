//! Known mistakes, made on purpose by the real process: each must be found by the oracle and the checker of the kill test, which
//! know no switch, in a scenario in which the daemon without the mistake comes out clean.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{
    kill::{self, Run},
    support::{
        daemon::Home,
        oracle::Oracle,
        postgres::{Database, Postgres},
        workload,
    },
};

/// What is done to the daemon while it makes the mistake, or not.
type Scenario = fn(&Home, &Database, &[(&str, &str)]);

/// A run of the scenario, with what the auditor has to say about it; none if all is well.
fn damage(home: &Home, scenario: Scenario, variant: Option<&str>) -> Option<String> {
    let server = Postgres::shared();
    let database = server.database();
    workload::prepare(&database);
    kill::configure(home, &database);
    let oracle = Oracle::start(&database);
    let mistake: Vec<(&str, &str)> = variant.iter().map(|name| ("HEADWATER_VARIANT", *name)).collect();
    let mut daemon = home.start_with(&mistake);
    daemon.wait_state("shop", "streaming");
    database.sql(&format!("SELECT truth.open_bank({})", workload::BANK_ROWS));
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    let run = Run { seed: 0, kills: 1, home, database: &database, final_reader: None, follower: None, break_log: None };
    let judged = catch_unwind(AssertUnwindSafe(|| {
        scenario(home, &database, &mistake);
        kill::audit(&run, &oracle);
    }));
    judged.err().map(|cause| match cause.downcast::<String>() {
        Ok(text) => *text,
        Err(_) => "a failure without words".to_owned(),
    })
}

/// The mistake is found, and by one of these words; without it, the same scenario passes.
fn expect_found(variant: &str, scenario: Scenario, words: &[&str]) {
    if let Some(found) = damage(&Home::new(), scenario, None) {
        panic!("the scenario of {variant} fails without the mistake: {found}");
    }
    let found = damage(&Home::new(), scenario, Some(variant)).unwrap_or_else(|| panic!("{variant} was not found"));
    assert!(words.iter().any(|word| found.contains(word)), "{variant} was found by something else than {words:?}: {found}");
}

/// The daemon comes to rest and ends.
fn rest(home: &Home, mistake: &[(&str, &str)]) {
    let mut daemon = home.start_with(mistake);
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
}

/// The daemon dies at this point.
fn die(home: &Home, mistake: &[(&str, &str)], fault: &str) {
    home.start_with(&[mistake, &[("HEADWATER_FAULT", fault)]].concat()).wait_fault(fault);
}

fn die_before_the_source_is_told(home: &Home, database: &Database, mistake: &[(&str, &str)]) {
    database.sql("SELECT truth.transfer(1, 2, 5)");
    die(home, mistake, "C12:1");
    rest(home, mistake);
}

fn move_and_keep_a_large_value(home: &Home, database: &Database, mistake: &[(&str, &str)]) {
    database.sql("SELECT truth.put_text('document', 'a', 'one', repeat('x', 9000))");
    database.sql("SELECT truth.put_text('document', 'a', 'two', NULL)");
    database.sql("SELECT truth.put_account(1, 'moves', true)");
    database.sql("SELECT truth.move_account(1, 2)");
    rest(home, mistake);
}

/// Commit records that follow one another without a gap: what begins exactly where the checkpoint ends must come.
fn commit_right_behind_the_checkpoint(home: &Home, database: &Database, mistake: &[(&str, &str)]) {
    for round in 0..4_u32 {
        let (mut early, mut late) = (database.client(), database.client());
        early.batch_execute(&format!("BEGIN; SELECT truth.put_account({round}, 'early', true)")).expect("an open transaction");
        late.batch_execute(&format!("BEGIN; SELECT truth.transfer(1, 2, {round} + 1)")).expect("an open transaction");
        let mut daemon = home.start_with(mistake);
        daemon.wait_state("shop", "streaming");
        late.batch_execute("COMMIT").expect("a commit");
        daemon.wait_for("shop", "the late one", |shop| shop["events"].as_u64() >= Some(2));
        daemon.kill9();
        early.batch_execute("COMMIT").expect("a commit");
        rest(home, mistake);
    }
}

#[test]
fn a_start_one_byte_past_the_end_is_found() {
    expect_found("resume-past-the-end", commit_right_behind_the_checkpoint, &["gap"]);
}

#[test]
fn a_sequence_that_stands_still_is_found() {
    expect_found("sequence-stands-still", die_before_the_source_is_told, &["position", "checkpoint"]);
}

#[test]
fn null_for_an_absent_column_is_found() {
    expect_found("absent-as-null", move_and_keep_a_large_value, &["absent"]);
}

#[test]
fn a_move_without_a_tombstone_is_found() {
    expect_found("move-without-a-tombstone", move_and_keep_a_large_value, &["gap"]);
}

fn slot(database: &Database) -> String {
    format!("headwater_{}", database.name)
}

/// I1: what the slot has confirmed is never beyond the newest checkpoint.
fn confirmed_is_behind_the_checkpoint(home: &Home, database: &Database) -> bool {
    let checkpoints = home.tail("headwater.shop.checkpoint");
    let newest = checkpoints.iter().rev().find_map(|record| record.column("position")?.as_str().map(str::to_owned));
    let newest = newest.expect("a checkpoint with a position");
    let base = newest.split(':').nth(1).expect("a base").to_owned();
    let query =
        format!("SELECT confirmed_flush_lsn <= '{base}' FROM pg_replication_slots WHERE slot_name = '{}'", slot(database));
    database.rows(&query)[0][0] == "t"
}

#[test]
fn a_confirmation_before_the_commit_is_found() {
    for (mistake, held) in [(vec![], true), (vec![("HEADWATER_VARIANT", "confirm-before-commit")], false)] {
        let server = Postgres::shared();
        let database = server.database();
        workload::prepare(&database);
        let home = Home::new();
        kill::configure(&home, &database);
        let mut daemon = home.start();
        daemon.wait_state("shop", "streaming");
        database.sql(&format!("SELECT truth.open_bank({})", workload::BANK_ROWS));
        daemon.wait_caught_up("shop");
        assert_eq!(daemon.terminate(), Some(0));
        database.sql("SELECT truth.transfer(1, 2, 5)");
        // The second log transaction of a life is the first with events; it hangs before its commit, and the session goes on.
        let daemon = home.start_with(&[&mistake[..], &[("HEADWATER_FAULT", "C7:2:stall")]].concat());
        let fault = "fault C7:2 Stall";
        crate::support::wait_until("the fault", crate::support::PATIENCE, || match daemon.stderr().contains(fault) {
            true => Ok(()),
            false => Err(daemon.stderr()),
        });
        std::thread::sleep(std::time::Duration::from_millis(500));
        daemon.kill9();
        assert_eq!(confirmed_is_behind_the_checkpoint(&home, &database), held, "{mistake:?}");
    }
}
