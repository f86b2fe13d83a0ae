//! Rows are read from a standby while changes come from its primary: old rows, paused replay, a promotion.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use super::{expect_sound, kills::hammer, versioned};
use crate::{
    kill,
    support::{
        PATIENCE,
        postgres::{Database, Postgres},
        wait_until,
    },
};

/// The same database of another server.
fn at<'a>(standby: &'a Postgres, database: &Database) -> Database<'a> {
    Database { server: standby, name: database.name.clone() }
}

fn options(standby: &Database, limits: &str) -> String {
    format!("      backfill_url: {}\n      backfill: {{ {limits} }}\n", standby.url())
}

/// The journal also holds keys back that were published a moment ago, whoever saw them, which spares events. It would hide here that what a
/// standby sees was judged wrongly, so it is left out.
const BARE: [(&str, &str); 1] = [("HEADWATER_VARIANT", "watermark-window")];

fn pause(standby: &Database, pauses: bool) {
    let (function, wanted) = if pauses { ("pause", "paused") } else { ("resume", "not paused") };
    wait_until("the replay to obey", PATIENCE, || {
        // The replay that goes on may cancel these very statements, and the login.
        let obeyed = standby.try_client().and_then(|mut client| {
            client.batch_execute(&format!("SELECT pg_wal_replay_{function}()"))?;
            client.query_one("SELECT pg_get_wal_replay_pause_state()", &[])
        });
        match obeyed.map(|row| row.get::<_, String>(0)) {
            Ok(state) if state == wanted => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// The rest of the table changes while the standby stands still, and is read from there to the end: every row of it is old.
#[test]
fn rows_of_a_standby_that_stands_still_do_not_come_after_their_changes() {
    let (server, rows) = (Postgres::start(), 9_000);
    let database = server.database();
    let home = versioned(&database, rows, "");
    let replica = server.standby(&[]);
    let standby = at(&replica, &database);
    home.shop(&database.url(), "public.item", &options(&standby, "rows_per_second: 3000, readers: 1"));
    let mut daemon = home.start_with(&BARE);
    daemon.wait_for("shop", "the first rows", |shop| shop["backfills"][0]["rows"].as_u64() > Some(0));
    pause(&standby, true);
    database.sql("UPDATE public.item SET ver = 2 WHERE id > 8000");
    let shop = daemon.wait_caught_up("shop");
    let read = &shop["backfills"][0];
    assert_eq!((&read["state"], read["rows"].as_u64()), (&"done".into(), Some(u64::from(rows))), "{shop}");
    assert_eq!(standby.value("SELECT count(*) FROM public.item WHERE ver = 2"), "0", "it stands still");
    assert!(read["published"].as_u64() <= Some(8_000), "{shop}");
    expect_sound(&database, &home);
    pause(&standby, false);
    assert_eq!(daemon.terminate(), Some(0));
}

/// The standby's rows are old again and again, while the same keys are written and the daemon is killed.
#[test]
fn no_old_row_of_a_standby_comes_after_a_newer_one() {
    let (server, rows) = (Postgres::start(), 6_000);
    let database = server.database();
    let home = versioned(&database, rows, "");
    let replica = server.standby(&["max_standby_streaming_delay = 0", "hot_standby_feedback = off"]);
    let standby = at(&replica, &database);
    home.shop(&database.url(), "public.item", &options(&standby, "rows_per_second: 4000, readers: 2"));
    let (stop, seed) = (Arc::new(AtomicBool::new(false)), kill::seed());
    let writers = hammer(&database, rows, seed, &stop);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut daemon = home.start_with(&BARE);
    for life in 0..3 {
        daemon.wait_for("shop", "a stream", |shop| shop["state"] == "backfilling" || shop["state"] == "streaming");
        if life > 0 {
            // What was read meanwhile is read again; what is not done yet goes on.
            home.run(&["backfill", "shop", "public.item"]);
        }
        for _ in 0..3 {
            pause(&standby, true);
            thread::sleep(Duration::from_millis(rng.u64(50..600)));
            // What replays this cancels statements that could still need the rows.
            database.sql("VACUUM public.item");
            pause(&standby, false);
            thread::sleep(Duration::from_millis(rng.u64(50..400)));
        }
        if life % 2 == 1 {
            daemon.kill9();
            daemon = home.start_with(&BARE);
        }
    }
    // While they write, the replay of every pruned page may cancel a chunk, which takes as long as chance wants.
    stop.store(true, Ordering::Relaxed);
    let done: u64 = writers.into_iter().map(|writer| writer.join().expect("a writer")).sum();
    assert!(done > 0, "seed {seed}");
    daemon.wait_state("shop", "streaming");
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    println!("seed {seed}: {done} transactions");
    expect_sound(&database, &home);
}

#[test]
fn a_standby_that_is_promoted_stops_the_backfill_and_nothing_else() {
    let (server, rows) = (Postgres::start(), 9_000);
    let database = server.database();
    let home = versioned(&database, rows, "");
    let replica = server.standby(&[]);
    let standby = at(&replica, &database);
    home.shop(&database.url(), "public.item", &options(&standby, "rows_per_second: 2000, readers: 1"));
    let mut daemon = home.start();
    daemon.wait_for("shop", "the first rows", |shop| shop["backfills"][0]["rows"].as_u64() > Some(0));
    standby.sql("SELECT pg_promote()");
    // It has a history of its own from now on, which must not be published.
    standby.sql("UPDATE public.item SET ver = 1000000");
    database.sql("UPDATE public.item SET ver = 2 WHERE id % 3 = 0");
    let shop = daemon.wait_for("shop", "the refusal", |shop| shop["backfills"][0]["error"]["code"] == "HW2074");
    assert_eq!(shop["state"], "backfilling", "{shop}");
    database.sql("UPDATE public.item SET ver = 3 WHERE id % 5 = 0");
    daemon.wait_for("shop", "the changes", |shop| shop["lag"]["bytes"] == 0);
    // Without the option rows are read from the primary, from where it stopped.
    let read = daemon.connector("shop").expect("a status")["backfills"][0]["rows"].as_u64();
    assert!(read < Some(u64::from(rows)));
    home.shop(&database.url(), "public.item", "");
    daemon.signal("HUP");
    daemon.wait_for("shop", "all rows", |shop| shop["backfills"][0]["state"] == "done");
    daemon.wait_caught_up("shop");
    expect_sound(&database, &home);
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn what_is_wrong_with_the_reader_is_told_before_anything_is_read() {
    let server = Postgres::shared();
    let database = server.database();
    let home = versioned(&database, 10, "");
    // The primary itself is no standby.
    home.shop(&database.url(), "public.item", &options(&database, "readers: 1"));
    let refused = home.run(&["check"]);
    refused.expect_code(3);
    for said in ["HW2074", "backfill_url", "hint:"] {
        assert!(refused.said().contains(said), "{said:?} is not in {}", refused.said());
    }
    home.shop(&database.url(), "public.item", "      backfill_url: postgres://reader:hunter2@127.0.0.1:x/shop\n");
    for command in ["check", "plan", "run"] {
        let refused = home.run(&[command]);
        refused.expect_code(2);
        assert!(refused.said().contains("connectors.shop.source.backfill_url"), "{}", refused.said());
        assert!(!refused.said().contains("hunter2"), "{}", refused.said());
    }
}
