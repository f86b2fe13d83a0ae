//! Rows that are there before the connector is: each arrives, none is stale, whatever is written or killed meanwhile.

mod hot;
mod kills;
mod orders;
mod refresh;
mod standby;
mod strays;

use std::{collections::BTreeMap, thread};

pub use kills::kill_backfills;

use crate::support::{
    PATIENCE,
    daemon::Home,
    postgres::{Database, Postgres},
    record::Record,
    shop::Shop,
    wait_until,
};

/// A table of rows with a version each, and the connector over it.
pub fn versioned(shop: &dyn Shop, rows: u32, more: &str) -> Home {
    shop.versioned(rows);
    let home = Home::new();
    shop.capture(&home, shop.versioned_table(), more);
    home
}

/// The topic's history of each key, oldest first: the operation and the version.
fn histories(records: &[Record]) -> BTreeMap<String, Vec<(String, Option<u64>)>> {
    let mut sorted: Vec<&Record> = records.iter().collect();
    sorted.sort_by_key(|record| record.pos().expect("a position"));
    let mut histories: BTreeMap<String, Vec<(String, Option<u64>)>> = BTreeMap::new();
    for record in sorted {
        let version = record.column("ver").and_then(serde_json::Value::as_u64);
        histories.entry(record.key.clone()).or_default().push((record.op().to_owned(), version));
    }
    histories
}

/// What is wrong with a topic, held against the table: a row that came late, came twice, is missing, or is not the table's.
fn fault(shop: &dyn Shop, records: &[Record]) -> Option<String> {
    let histories = histories(records);
    for (key, history) in &histories {
        let mut newest = 0;
        for (op, version) in history {
            // A row that is inserted again goes on counting with the statement behind it, which has its lock.
            let Some(version) = version.filter(|version| *version > 0) else { continue };
            let is_stale = if op == "r" { version < newest } else { version <= newest };
            if is_stale {
                return Some(format!("stale row of {key}: {history:?}"));
            }
            newest = version;
        }
    }
    let last = |history: &Vec<(String, Option<u64>)>| history.last().and_then(|(_, version)| *version);
    let topic: BTreeMap<String, u64> = histories.iter().filter_map(|(key, all)| Some((key.clone(), last(all)?))).collect();
    let table = shop.versions();
    (topic != table).then(|| {
        let differing = table.iter().filter(|(key, version)| topic.get(*key) != Some(version)).count();
        let extra = topic.keys().filter(|key| !table.contains_key(*key)).count();
        format!("the topic is not the table: {differing} rows differ or are missing, {extra} are too many")
    })
}

fn expect_sound(database: &Database, home: &Home) {
    let records = home.tail("shop.item");
    if let Some(fault) = fault(database, &records) {
        panic!("{fault}");
    }
}

#[test]
fn rows_that_are_there_arrive_as_reads() {
    let server = Postgres::shared();
    let database = server.database();
    database.sql(
        "CREATE TABLE public.pair (b text, a int, v text, PRIMARY KEY (b, a)); INSERT INTO public.pair VALUES ('x', 1, 'p'), ('', -1, NULL);
         CREATE TABLE public.word (w text PRIMARY KEY); INSERT INTO public.word SELECT 'it''s \\ ' || chr(n) FROM generate_series(192, 400) n;
         CREATE TABLE public.thing (k uuid PRIMARY KEY); INSERT INTO public.thing SELECT gen_random_uuid() FROM generate_series(1, 500);
         CREATE TYPE mood AS ENUM ('well', 'ill', 'a''b'); CREATE TABLE public.state (m mood PRIMARY KEY, at timestamptz);
         INSERT INTO public.state SELECT unnest(enum_range(NULL::mood)), now();
         CREATE TABLE public.stamp (at timestamptz, n numeric(9,3), PRIMARY KEY (at, n));
         INSERT INTO public.stamp SELECT 'epoch'::timestamptz + n * interval '1.1 s', n / 3.0 FROM generate_series(1, 300) n;
         CREATE TABLE public.none (id int PRIMARY KEY); CREATE TABLE public.part (id int PRIMARY KEY, v int) PARTITION BY RANGE (id);
         CREATE TABLE public.part_1 PARTITION OF public.part FOR VALUES FROM (0) TO (50);
         CREATE TABLE public.part_2 PARTITION OF public.part FOR VALUES FROM (50) TO (1000);
         INSERT INTO public.part SELECT n, n FROM generate_series(1, 200) n",
    );
    let home = Home::new();
    home.shop(&database.url(), "\"public.*\"", "");
    let mut daemon = home.start();
    let shop = daemon.wait_caught_up("shop");
    for table in ["pair", "word", "thing", "state", "stamp", "none", "part"] {
        let known = shop["backfills"].as_array().expect("a list").iter().find(|one| one["table"] == format!("public.{table}"));
        let known = known.unwrap_or_else(|| panic!("{table} is missing in {shop}"));
        assert_eq!(known["state"], "done");
        let count: u64 = database.value(&format!("SELECT count(*) FROM public.{table}")).parse().expect("a number");
        assert_eq!(known["rows"].as_u64(), Some(count), "{table}");
        if count > 0 {
            let records = home.tail(&format!("shop.{table}"));
            assert_eq!(records.len() as u64, count, "{table}");
            assert!(records.iter().all(|record| record.op() == "r" && !record.headers.contains_key("hw.tx")), "{table}");
        }
    }
    // It is done once: another life reads nothing again.
    daemon.kill9();
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    assert_eq!(home.tail("shop.word").len(), 209);
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn a_connector_that_never_backfills_publishes_changes_only() {
    let server = Postgres::shared();
    let database = server.database();
    let home = versioned(&database, 10, "      backfill: never\n");
    let mut daemon = home.start();
    let shop = daemon.wait_caught_up("shop");
    assert!(shop.get("backfills").is_none(), "{shop}");
    database.sql("UPDATE public.item SET ver = 2 WHERE id = 1");
    daemon.wait_caught_up("shop");
    assert_eq!(home.tail("shop.item").len(), 1);
    assert_eq!(daemon.terminate(), Some(0));
}

/// Commits that are in the log, and in the topics, while no snapshot sees them: a synchronous standby that never answers.
fn stalled_commit(variant: Option<&str>) -> Option<String> {
    let server = Postgres::start();
    let database = server.database();
    let rows = 12_000;
    let home = versioned(&database, rows, "      backfill: { rows_per_second: 3000, readers: 1 }\n");
    let mistake: Vec<(&str, &str)> = variant.iter().map(|name| ("HEADWATER_VARIANT", *name)).collect();
    let mut daemon = home.start_with(&mistake);
    // Somewhere in the middle, so that the gate is passed and the journal is kept.
    daemon.wait_for("shop", "the first rows", |shop| shop["backfills"][0]["rows"].as_u64() > Some(0));
    database.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    database.sql("SELECT pg_reload_conf()");
    wait_until("the setting", PATIENCE, || match database.value("SHOW synchronous_standby_names").as_str() {
        "nobody" => Ok(()),
        other => Err(other.to_owned()),
    });
    let mut client = database.client();
    let stalled = thread::spawn(move || client.batch_execute("UPDATE public.item SET ver = 2 WHERE id > 11000"));
    let published = |records: &[Record]| records.iter().filter(|record| record.op() == "u").count();
    wait_until("the changes in the topic", PATIENCE, || match published(&home.tail("shop.item")) {
        1000 => Ok(()),
        other => Err(format!("{other} of them")),
    });
    assert_eq!(database.value("SELECT count(*) FROM public.item WHERE ver = 2"), "0", "nobody sees them yet");
    daemon.wait_state("shop", "streaming");
    database.sql("ALTER SYSTEM RESET synchronous_standby_names");
    database.sql("SELECT pg_reload_conf()");
    stalled.join().expect("a thread").expect("a commit");
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    fault(&database, &home.tail("shop.item"))
}

#[test]
fn a_commit_that_is_published_before_it_is_visible_is_not_followed_by_the_row_it_replaced() {
    assert_eq!(stalled_commit(None), None);
}

#[test]
fn the_well_known_watermark_window_is_found() {
    let found = stalled_commit(Some("watermark-window")).expect("a stale row");
    assert!(found.contains("stale"), "{found}");
}
