//! The daemon is killed while it reads rows that writers change.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use fastrand::Rng;

use super::{fault, versioned};
use crate::{
    kill,
    support::{
        PATIENCE,
        daemon::{Daemon, Home},
        postgres::Postgres,
        shop::Shop,
        wait_until,
    },
};

/// Writers that change, move, remove and add rows until they are told to stop. They live through crashes of the database.
pub fn hammer(shop: &dyn Shop, rows: u32, seed: u64, stop: &Arc<AtomicBool>) -> Vec<thread::JoinHandle<u64>> {
    let writer = |writer: u64| {
        let (connect, change, stop) = (shop.connect(), shop.change(), Arc::clone(stop));
        thread::spawn(move || {
            let open = || wait_until("a writer to reach the database", PATIENCE, &connect);
            let (mut client, mut rng, mut done) = (open(), Rng::with_seed(seed ^ writer), 0);
            while !stop.load(Ordering::Relaxed) {
                let happened = client.change(&change(&mut rng, rows));
                done += u64::from(happened);
                if !happened && client.is_gone() {
                    client = open();
                }
            }
            done
        })
    };
    (0..2).map(writer).collect()
}

/// What happens to a daemon that reads rows, besides its death.
fn trouble(shop: &dyn Shop, daemon: &Daemon, rng: &mut Rng) {
    match rng.u32(0..4) {
        0 => shop.crash_and_restart(),
        1 => shop.end_senders(),
        2 => shop.end_readers(),
        _ => {
            daemon.signal("STOP");
            thread::sleep(Duration::from_millis(rng.u64(200..1_500)));
            daemon.signal("CONT");
        }
    }
}

/// Kills the daemon until so many deaths came while rows were being read, and holds the topic against the table.
pub fn kill_backfills(home: &Home, shop: &dyn Shop, kills: u32, topic: &str, rows: u32) {
    let (stop, seed, table) = (Arc::new(AtomicBool::new(false)), kill::seed(), shop.versioned_table());
    let writers = hammer(shop, rows, seed, &stop);
    let (mut rng, mut counted, mut tried, mut troubles, mut runs) = (Rng::with_seed(seed), 0, 0, 0, 1);
    while counted < kills {
        assert!(tried < kills * 6 + 20, "seed {seed}: {tried} kills, and only {counted} came while rows were read");
        let mut daemon = home.start();
        let read = |shop: &serde_json::Value| shop["backfills"][0]["rows"].as_u64().unwrap_or(0);
        let seen = daemon.wait_for("shop", "a stream", |shop| shop["state"] == "backfilling" || shop["state"] == "streaming");
        if seen["state"] == "streaming" {
            // Everything was read: again.
            home.run(&["backfill", "shop", table]).expect_code(0);
            runs += 1;
        }
        if rng.u32(0..4) == 0 {
            trouble(shop, &daemon, &mut rng);
            troubles += 1;
        }
        thread::sleep(Duration::from_millis(rng.u64(0..900)));
        let hit = daemon.connector("shop").is_ok_and(|now| now["state"] == "backfilling" && read(&now) > 0);
        daemon.kill9();
        tried += 1;
        counted += u32::from(hit);
    }
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    stop.store(true, Ordering::Relaxed);
    let done: u64 = writers.into_iter().map(|writer| writer.join().expect("a writer")).sum();
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    let records = home.tail(topic);
    println!(
        "kill: seed {seed}: backfill of {}: {counted} kills of {tried} while rows were read, {troubles} other troubles, {runs} runs, \
         {done} transactions of the writers, {} events",
        shop.name(),
        records.len()
    );
    if let Some(fault) = fault(shop, &records) {
        panic!("seed {seed}: {fault}");
    }
}

#[test]
fn kills_lose_no_row_of_a_backfill_and_bring_nothing_stale_on_the_embedded_log() {
    let server = Postgres::start();
    let database = server.database();
    // Small chunks at a steady pace, so that every death comes while there are rows still to be read.
    let home = versioned(&database, 20_000, "      backfill: { rows_per_second: 8000, readers: 2 }\n");
    kill_backfills(&home, &database, kill::kills(10), "shop.item", 20_000);
}
