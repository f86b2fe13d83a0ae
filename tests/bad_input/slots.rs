//! A daemon whose slot the server gives up, or cannot make yet.

use super::surroundings::{ends_lost, error_is, live_once, prepare};
use crate::support::{PATIENCE, postgres::Postgres, wait_until};

#[test]
fn a_slot_that_was_idle_for_too_long_stops_the_connector() {
    let server = Postgres::start_version(18, &["idle_replication_slot_timeout = '1s'"]);
    let database = server.database();
    let home = prepare(&database);
    live_once(&home, &database);
    wait_until("the server to give the slot up", PATIENCE, || {
        database.sql("CHECKPOINT");
        let reason = database.value("SELECT coalesce(invalidation_reason, '') FROM pg_replication_slots");
        if reason == "idle_timeout" { Ok(()) } else { Err(reason) }
    });
    ends_lost(&home, "HW2035", &database.slot());
}

#[test]
fn a_slot_that_is_lost_under_a_running_daemon_stops_it_after_one_look() {
    let limits =
        ["max_slot_wal_keep_size = '1MB'", "max_wal_size = '32MB'", "min_wal_size = '32MB'", "wal_sender_timeout = '2s'"];
    let server = Postgres::start_version(15, &limits);
    let database = server.database();
    let home = prepare(&database);
    live_once(&home, &database);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    // Frozen, it confirms nothing, and the server keeps no more log for it than it was told.
    daemon.signal("STOP");
    wait_until("the server to give the slot up", PATIENCE, || {
        database.sql("INSERT INTO public.orders SELECT coalesce(max(id), 0) + 1, 'more' FROM public.orders");
        database.sql("SELECT pg_switch_wal()");
        database.sql("CHECKPOINT");
        let status = database.value("SELECT wal_status FROM pg_replication_slots");
        if status == "lost" { Ok(()) } else { Err(status) }
    });
    daemon.signal("CONT");
    assert_eq!(daemon.exit_code(), Some(1));
    let said = std::fs::read_to_string(home.path("stderr")).expect("what the daemon said");
    assert!(said.contains("HW2018") && said.contains("max_slot_wal_keep_size"), "{said}");
    assert!(said.matches("retrying").count() <= 2, "a storm of tries:\n{said}");
}

#[test]
fn a_first_start_that_waits_for_a_transaction_says_so_and_goes_on() {
    let server = Postgres::start_version(16, &[]);
    let database = server.database();
    let home = prepare(&database);
    let mut writer = database.client();
    writer.batch_execute("SET application_name = 'nightly'; BEGIN; INSERT INTO public.orders VALUES (1, 'open')").expect("a row");
    let mut daemon = home.start();
    let shop = daemon.wait_state("shop", "retrying");
    error_is(&shop, "HW2040", "retry");
    assert!(shop["error"]["message"].as_str().is_some_and(|message| message.contains("nightly")), "{shop}");
    writer.batch_execute("COMMIT").expect("the end");
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (2, 'after')");
    daemon.wait_caught_up("shop");
    let read: Vec<String> = home.tail("shop.orders").iter().map(|record| record.op().to_owned()).collect();
    assert_eq!(read, ["r", "c"], "what was written before the slot is read, and not streamed");
    assert_eq!(daemon.terminate(), Some(0));
}
