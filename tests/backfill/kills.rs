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
        postgres::{Database, PASSWORD, Postgres},
        wait_until,
    },
};

/// Writers that change, move, remove and add rows until they are told to stop. They live through crashes of the database.
pub fn hammer(database: &Database, rows: u32, seed: u64, stop: &Arc<AtomicBool>) -> Vec<thread::JoinHandle<u64>> {
    database.sql("CREATE SEQUENCE IF NOT EXISTS public.vers START 10");
    let writer = |writer: u64| {
        let mut server: ::postgres::Config = database.url().parse().expect("the URL of the database");
        server.password(PASSWORD);
        let stop = Arc::clone(stop);
        thread::spawn(move || {
            let connect = || {
                wait_until("a writer to reach the database", PATIENCE, || {
                    server.connect(::postgres::NoTls).map_err(|error| error.to_string())
                })
            };
            let (mut client, mut rng, mut done) = (connect(), Rng::with_seed(seed ^ writer), 0);
            while !stop.load(Ordering::Relaxed) {
                done += u64::from(client.batch_execute(&change(&mut rng, rows)).is_ok());
                if client.is_closed() || client.batch_execute("SELECT 1").is_err() && client.batch_execute("ROLLBACK").is_err() {
                    client = connect();
                }
            }
            done
        })
    };
    (0..2).map(writer).collect()
}

/// Versions come from one sequence, taken while the row is locked, so that they rise with each key.
fn change(rng: &mut Rng, rows: u32) -> String {
    let (id, other) = (rng.u32(1..=rows), rng.u32(1..=rows));
    let sql = match rng.u32(0..10) {
        0 => format!("DELETE FROM public.item WHERE id = {id}"),
        1 | 2 => format!(
            "INSERT INTO public.item VALUES ({id}, 0, 'new') ON CONFLICT (id) DO NOTHING;
             UPDATE public.item SET ver = nextval('public.vers') WHERE id = {id}"
        ),
        3 => format!(
            "UPDATE public.item SET id = {rows} + {other}, ver = nextval('public.vers')
             WHERE id = {id} AND NOT EXISTS (SELECT FROM public.item WHERE id = {rows} + {other})"
        ),
        _ => format!("UPDATE public.item SET ver = nextval('public.vers') WHERE id BETWEEN {id} AND {id} + 5"),
    };
    format!("BEGIN; {sql}; COMMIT")
}

/// What happens to a daemon that reads rows, besides its death.
fn trouble(database: &Database, daemon: &Daemon, rng: &mut Rng) {
    match rng.u32(0..4) {
        0 => database.server.crash_and_restart(),
        1 => database.sql(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active AND database = current_database()",
        ),
        2 => database.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE application_name LIKE 'headwater%' AND backend_type = 'client backend' AND datname = current_database()",
        ),
        _ => {
            daemon.signal("STOP");
            thread::sleep(Duration::from_millis(rng.u64(200..1_500)));
            daemon.signal("CONT");
        }
    }
}

/// Kills the daemon until so many deaths came while rows were being read, and holds the topic against the table.
pub fn kill_backfills(home: &Home, database: &Database, topic: &str, rows: u32) {
    let (stop, seed, kills) = (Arc::new(AtomicBool::new(false)), kill::seed(), kill::kills());
    let writers = hammer(database, rows, seed, &stop);
    let (mut rng, mut counted, mut tried, mut troubles, mut runs) = (Rng::with_seed(seed), 0, 0, 0, 1);
    while counted < kills {
        assert!(tried < kills * 6 + 20, "seed {seed}: {tried} kills, and only {counted} came while rows were read");
        let mut daemon = home.start();
        let read = |shop: &serde_json::Value| shop["backfills"][0]["rows"].as_u64().unwrap_or(0);
        let shop = daemon.wait_for("shop", "a stream", |shop| shop["state"] == "backfilling" || shop["state"] == "streaming");
        if shop["state"] == "streaming" {
            // Everything was read: again.
            home.run(&["backfill", "shop", "public.item"]).expect_code(0);
            runs += 1;
        }
        if rng.u32(0..4) == 0 {
            trouble(database, &daemon, &mut rng);
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
        "kill: seed {seed}: backfill: {counted} kills of {tried} while rows were read, {troubles} other troubles, {runs} runs, \
         {done} transactions of the writers, {} events",
        records.len()
    );
    if let Some(fault) = fault(database, &records) {
        panic!("seed {seed}: {fault}");
    }
}

#[test]
fn kills_lose_no_row_of_a_backfill_and_bring_nothing_stale_on_the_embedded_log() {
    let server = Postgres::start();
    let database = server.database();
    // Small chunks at a steady pace, so that every death comes while there are rows still to be read.
    let home = versioned(&database, 20_000, "      backfill: { rows_per_second: 8000, readers: 2 }\n");
    kill_backfills(&home, &database, "shop.item", 20_000);
}
