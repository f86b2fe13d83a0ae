//! Known mistakes, made on purpose by the real process: each must be found by the oracle and the checker of the kill test, which
//! know no switch, in a scenario in which the daemon without the mistake comes out clean.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{
    kill::{self, CUT, Run},
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
    let run =
        Run { seed: 0, kills: 1, home, shop: &database, final_reader: None, follower: None, break_log: None, outlast: None };
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

/// The point is one that the mistake does not remove: the slices are committed as ever, and only their position differs.
fn die_in_a_large_transaction(home: &Home, database: &Database, mistake: &[(&str, &str)]) {
    let rows = CUT * 6;
    database.sql(&format!("SELECT truth.put_account(1000 + n, 'bulk', true) FROM generate_series(1, {rows}) n"));
    die(home, mistake, "C12:3");
    rest(home, mistake);
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
fn a_partial_transaction_that_is_forgotten_is_found() {
    expect_found("forget-the-partial", die_in_a_large_transaction, &["repeat", "position"]);
}

#[test]
fn a_position_per_row_is_found() {
    expect_found("per-row-position", die_in_a_large_transaction, &["gap"]);
}

#[test]
fn a_start_where_the_slot_stands_is_found() {
    expect_found("resume-where-the-slot-stands", die_before_the_source_is_told, &["repeat", "position"]);
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

/// Runs the daemon with a mistake against a fault at the source for which it must stop; returns what the auditor found.
fn silent(variant: &str, fault: fn(&Database)) -> String {
    let server = Postgres::shared();
    let database = server.database();
    workload::prepare(&database);
    let home = Home::new();
    kill::configure(&home, &database);
    let oracle = Oracle::start(&database);
    let open = format!("SELECT truth.open_bank({})", workload::BANK_ROWS);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql(&open);
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    database.sql("SELECT truth.transfer(1, 2, 5)");
    fault(&database);
    // Without the mistake: a stop that somebody sees, and nothing published.
    let before = home.tail("shop.bank").len();
    assert_eq!(home.start().exit_code(), Some(1), "a slot that is gone or ahead stops the connector");
    assert_eq!(home.tail("shop.bank").len(), before);
    database.sql("SELECT truth.transfer(3, 4, 5)");
    rest(&home, &[("HEADWATER_VARIANT", variant)]);
    let run = Run {
        seed: 0,
        kills: 1,
        home: &home,
        shop: &database,
        final_reader: None,
        follower: None,
        break_log: None,
        outlast: None,
    };
    let judged = catch_unwind(AssertUnwindSafe(|| kill::audit(&run, &oracle)));
    *judged.expect_err("the mistake was not found").downcast::<String>().expect("words")
}

fn slot(database: &Database) -> String {
    format!("headwater_{}", database.name)
}

#[test]
fn a_slot_that_is_made_again_in_silence_is_found() {
    let found = silent("recreate-a-missing-slot", |database| {
        database.sql(&format!("SELECT pg_drop_replication_slot('{}')", slot(database)));
    });
    assert!(found.contains("gap"), "{found}");
}

#[test]
fn the_furthest_of_two_positions_is_found() {
    let found = silent("furthest-of-two-positions", |database| {
        database.sql(&format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", slot(database)));
    });
    assert!(found.contains("gap"), "{found}");
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
        // The session is alive: what it was going to confirm is said with its next reply at the latest.
        let hung = database.rows("SELECT clock_timestamp()")[0][0].clone();
        let replied = format!(
            "SELECT coalesce(bool_or(reply_time > '{hung}'), false) FROM pg_stat_replication
             JOIN pg_replication_slots ON pid = active_pid WHERE slot_name = '{}'",
            slot(&database)
        );
        crate::support::wait_until("a reply of the session", crate::support::PATIENCE, || {
            match database.rows(&replied)[0][0] == "t" {
                true => Ok(()),
                false => Err(daemon.stderr()),
            }
        });
        daemon.kill9();
        assert_eq!(confirmed_is_behind_the_checkpoint(&home, &database), held, "{mistake:?}");
    }
}
