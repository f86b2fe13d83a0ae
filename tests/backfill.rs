//! Rows that are there before the connector is: each arrives, none is stale, whatever is written or killed meanwhile.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use fastrand::Rng;

use crate::{
    kill,
    support::{
        PATIENCE,
        daemon::{Daemon, Home},
        postgres::{Database, PASSWORD, Postgres},
        record::Record,
        wait_until,
    },
};

/// A table of rows with a version each, and the connector over it.
pub fn versioned(database: &Database, rows: u32, more: &str) -> Home {
    database.sql(&format!(
        "CREATE TABLE public.item (id int PRIMARY KEY, ver bigint NOT NULL, note text);
         INSERT INTO public.item SELECT n, 1, repeat('n', n % 50) FROM generate_series(1, {rows}) n; ANALYZE public.item"
    ));
    let home = Home::new();
    home.shop(&database.url(), "public.item", more);
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
fn fault(database: &Database, records: &[Record]) -> Option<String> {
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
    let table: BTreeMap<String, u64> = database
        .rows("SELECT json_build_object('id', id)::text, ver::text FROM public.item")
        .into_iter()
        .map(|row| (row[0].replace(' ', ""), row[1].parse().expect("a version")))
        .collect();
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

/// Writers that change, move, remove and add rows until they are told to stop. They live through crashes of the database.
fn hammer(database: &Database, rows: u32, seed: u64, stop: &Arc<AtomicBool>) -> Vec<thread::JoinHandle<u64>> {
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

/// The table's entry in the list.
fn listed(home: &Home, table: &str) -> serde_json::Value {
    let outcome = home.run(&["backfill", "shop", "--list", "--format", "json"]);
    outcome.expect_code(0);
    let list = outcome.json();
    let found = list["backfills"].as_array().expect("a list").iter().find(|one| one["table"] == table).cloned();
    found.unwrap_or_else(|| panic!("{table} is missing in {list}"))
}

fn reads(home: &Home, topic: &str) -> usize {
    home.tail(topic).iter().filter(|record| record.op() == "r").count()
}

#[test]
fn a_table_is_read_again_on_demand_whole_or_in_part() {
    let server = Postgres::shared();
    let database = server.database();
    let home = versioned(&database, 300, "      backfill: never\n");
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    let ask = |arguments: &[&str]| home.run(&[&["backfill", "shop", "public.item"], arguments].concat());
    ask(&["--where", "id <= 10"]).expect_code(0);
    daemon.wait_state("shop", "streaming");
    assert_eq!(reads(&home, "shop.item"), 10);
    ask(&["--column", "id", "--from", "296"]).expect_code(0);
    daemon.wait_state("shop", "streaming");
    assert_eq!(reads(&home, "shop.item"), 15);
    home.write("keys.jsonl", "{\"id\":7}\n\n{\"id\":299}\n{\"id\":12345}\n");
    ask(&["--keys", "keys.jsonl"]).expect_code(0);
    daemon.wait_state("shop", "streaming");
    assert_eq!(reads(&home, "shop.item"), 17);
    ask(&[]).expect_code(0);
    daemon.wait_state("shop", "streaming");
    assert_eq!(reads(&home, "shop.item"), 317);
    assert_eq!(listed(&home, "public.item")["rows"], 300);
    let text = home.run(&["backfill", "shop", "--list"]);
    assert!(text.stdout.contains("public.item") && text.stdout.contains("done"), "{}", text.stdout);
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn a_backfill_is_paused_resumed_and_cancelled_also_over_restarts() {
    let server = Postgres::shared();
    let database = server.database();
    let home = versioned(&database, 9_000, "      backfill: { rows_per_second: 3000, readers: 1 }\n");
    let mut daemon = home.start();
    daemon.wait_for("shop", "the first rows", |shop| shop["backfills"][0]["rows"].as_u64() > Some(0));
    let ask = |action: &str| home.run(&["backfill", "shop", "public.item", action]);
    ask("--pause").expect_code(0);
    daemon.wait_state("shop", "streaming");
    let read = listed(&home, "public.item");
    assert_eq!(read["state"], "paused");
    daemon.kill9();
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    assert_eq!(listed(&home, "public.item")["rows"], read["rows"], "nothing was read while it was paused");
    ask("--resume").expect_code(0);
    daemon.wait_for("shop", "more rows", |shop| shop["backfills"][0]["rows"].as_u64() > read["rows"].as_u64());
    ask("--cancel").expect_code(0);
    daemon.wait_state("shop", "streaming");
    assert_eq!(listed(&home, "public.item")["state"], "cancelled");
    let again = ask("--pause");
    again.expect_code(2);
    assert!(again.stderr.contains("HW1181"), "{}", again.stderr);
    // Begun anew it reads everything.
    home.run(&["backfill", "shop", "public.item"]).expect_code(0);
    daemon.wait_for("shop", "all rows", |shop| shop["backfills"][0]["state"] == "done");
    expect_listed(&home, 9_000);
    assert_eq!(daemon.terminate(), Some(0));
}

fn expect_listed(home: &Home, rows: u64) {
    assert_eq!(listed(home, "public.item")["rows"].as_u64(), Some(rows));
    let keys: std::collections::BTreeSet<String> = home.tail("shop.item").into_iter().map(|record| record.key).collect();
    assert_eq!(keys.len() as u64, rows);
}

#[test]
fn what_cannot_be_read_is_refused_and_the_stream_goes_on() {
    let server = Postgres::shared();
    let database = server.database();
    let home = versioned(&database, 10, "");
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    for (arguments, code, word) in [
        (vec!["public.itme"], 2, "HW1180"),
        (vec!["public.item", "--column", "idd", "--from", "1"], 2, "HW1181"),
        (vec!["public.item", "--keys", "nowhere"], 2, "HW1110"),
        (vec!["public.item", "--keys", "bad.jsonl"], 2, "line 2"),
        (vec!["public.item", "--keys", "other.jsonl"], 2, "HW1182"),
        (vec!["public.item", "--resume"], 2, "HW1181"),
        (vec!["public.item", "--where", "id = 1", "--reconcile"], 2, "--reconcile"),
    ] {
        home.write("bad.jsonl", "{\"id\":7}\n7\n");
        home.write("other.jsonl", "{\"id\":7}\n{\"it\":7}\n");
        let refused = home.run(&[&["backfill", "shop"], arguments.as_slice()].concat());
        refused.expect_code(code);
        assert!(refused.stderr.contains(word), "{arguments:?}: {}", refused.stderr);
    }
    let refused = home.run(&["backfill", "shpo", "public.item"]);
    refused.expect_code(2);
    assert!(refused.stderr.contains("HW1175"), "{}", refused.stderr);
    // A condition that only the server can judge stops this table and nothing else.
    home.run(&["backfill", "shop", "public.item", "--where", "nonsense >"]).expect_code(0);
    let shop = daemon.wait_for("shop", "the refusal", |shop| shop["backfills"][0]["error"]["code"] == "HW2072");
    assert_eq!(shop["state"], "backfilling");
    database.sql("UPDATE public.item SET ver = 2 WHERE id = 1");
    daemon.wait_for("shop", "the change", |shop| shop["lag"]["bytes"] == 0);
    home.run(&["backfill", "shop", "public.item", "--cancel"]).expect_code(0);
    daemon.wait_caught_up("shop");
    expect_sound(&database, &home);
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn a_table_that_joins_is_read_while_the_others_go_on() {
    let server = Postgres::shared();
    let database = server.database();
    let home = versioned(&database, 50, "");
    database.sql("CREATE TABLE public.late (id int PRIMARY KEY); INSERT INTO public.late SELECT generate_series(1, 700)");
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    home.shop(&database.url(), "public.item, public.late", "");
    daemon.signal("HUP");
    daemon.wait_for("shop", "the new table", |shop| shop["backfills"][1]["state"] == "done");
    daemon.wait_caught_up("shop");
    assert_eq!((reads(&home, "shop.item"), reads(&home, "shop.late")), (50, 700));
    // Taken out, its state is forgotten; put in again, it begins anew, and what went meanwhile goes.
    home.shop(&database.url(), "public.item", "");
    daemon.signal("HUP");
    daemon.wait_for("shop", "one table", |shop| shop["backfills"].as_array().map(Vec::len) == Some(1));
    daemon.wait_caught_up("shop");
    database.sql("DELETE FROM public.late WHERE id > 600; INSERT INTO public.late VALUES (1000)");
    // Whoever is asked to stop and to start behind all this has never seen the deletes.
    daemon.wait_caught_up("shop");
    let passed =
        "SELECT confirmed_flush_lsn >= pg_current_wal_lsn() FROM pg_replication_slots WHERE database = current_database()";
    wait_until("the deletes to be confirmed", PATIENCE, || match database.value(passed).as_str() {
        "true" | "t" => Ok(()),
        other => Err(other.to_owned()),
    });
    home.shop(&database.url(), "public.item, public.late", "");
    daemon.signal("HUP");
    daemon.wait_for("shop", "the table again", |shop| shop["backfills"][1]["state"] == "done");
    let shop = daemon.wait_caught_up("shop");
    assert_eq!(shop["backfills"][1]["buried"], 100, "{shop}");
    let mut last: BTreeMap<String, bool> = BTreeMap::new();
    for record in home.tail("shop.late") {
        last.insert(record.key, record.value.is_some());
    }
    assert_eq!(last.values().filter(|alive| **alive).count(), 601, "the topic holds what the table holds");
    assert_eq!((reads(&home, "shop.item"), last.len()), (50, 701));
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn a_reset_reads_everything_again_and_buries_what_went_meanwhile() {
    let server = Postgres::shared();
    let database = server.database();
    let home = versioned(&database, 40, "    events: { partitions: 3 }\n");
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    // What happens without a slot is lost to the stream.
    database.sql(&format!("SELECT pg_drop_replication_slot('{}')", database.slot()));
    database.sql("DELETE FROM public.item WHERE id <= 5; UPDATE public.item SET ver = 2 WHERE id = 6; INSERT INTO public.item VALUES (99, 1)");
    let evidence = home.run(&["reset", "shop"]);
    let line = evidence.stdout.lines().find(|line| line.starts_with("incarnation")).expect("an incarnation");
    let incarnation = line.split_whitespace().last().expect("a value");
    home.run(&["reset", "shop", "--incarnation", incarnation]).expect_code(0);
    let mut daemon = home.start();
    let shop = daemon.wait_caught_up("shop");
    assert_eq!((&shop["backfills"][0]["rows"], &shop["backfills"][0]["buried"]), (&36.into(), &5.into()), "{shop}");
    let mut last: BTreeMap<String, Option<u64>> = BTreeMap::new();
    let mut records = home.tail("shop.item");
    records.sort_by_key(|record| record.pos());
    for record in records {
        let version = record.column("ver").and_then(serde_json::Value::as_u64);
        last.insert(record.key, version);
    }
    assert_eq!(last.values().filter(|version| version.is_some()).count(), 36);
    assert_eq!((last[r#"{"id":6}"#], last[r#"{"id":5}"#]), (Some(2), None));
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn a_truncate_that_is_accepted_buries_the_keys() {
    let server = Postgres::shared();
    let database = server.database();
    let home = versioned(&database, 60, "      on_truncate: event\n");
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    database.sql("TRUNCATE public.item; INSERT INTO public.item VALUES (7, 5), (1000, 1)");
    let shop = daemon.wait_for("shop", "the burial", |shop| {
        shop["state"] == "streaming" && shop["backfills"][0]["buried"].as_u64() == Some(59)
    });
    assert_eq!(shop["error"], serde_json::Value::Null);
    daemon.wait_caught_up("shop");
    let mut last: BTreeMap<String, bool> = BTreeMap::new();
    for record in home.tail("shop.item").into_iter().filter(|record| !record.key.contains("truncate")) {
        last.insert(record.key, record.value.is_some());
    }
    assert_eq!(
        last.iter().filter(|(_, alive)| **alive).map(|(key, _)| key.as_str()).collect::<Vec<_>>(),
        [r#"{"id":1000}"#, r#"{"id":7}"#]
    );
    assert_eq!(daemon.terminate(), Some(0));
}

/// A table whose body is stored out of line, and updates that do not touch it.
fn documents(database: &Database, rows: u32, more: &str) -> Home {
    database.sql(&format!(
        "CREATE TABLE public.doc (id int PRIMARY KEY, ver bigint, body text); ALTER TABLE public.doc ALTER body SET STORAGE EXTERNAL;
         INSERT INTO public.doc SELECT n, 1, repeat(n::text || '-', 3000) FROM generate_series(1, {rows}) n"
    ));
    let home = Home::new();
    home.shop(&database.url(), "public.doc", more);
    home
}

/// The newest event of each key.
fn newest(home: &Home, topic: &str) -> BTreeMap<String, Record> {
    let mut records = home.tail(topic);
    records.sort_by_key(Record::pos);
    records.into_iter().map(|record| (record.key.clone(), record)).collect()
}

/// Every row's newest event has every column, and nothing is pending.
fn expect_whole(database: &Database, home: &Home) {
    let newest = newest(home, "shop.doc");
    for row in database.rows("SELECT json_build_object('id', id)::text, ver::text, body FROM public.doc") {
        let record = newest.get(&row[0].replace(' ', "")).unwrap_or_else(|| panic!("no event of {}", row[0]));
        assert!(record.absent().is_empty(), "{} lacks {:?}", row[0], record.absent());
        assert_eq!(record.column("ver").map(ToString::to_string), Some(row[1].clone()), "{}", row[0]);
        assert_eq!(record.column("body").and_then(serde_json::Value::as_str), Some(row[2].as_str()), "{}", row[0]);
    }
    let mut pending: BTreeMap<String, bool> = BTreeMap::new();
    for record in home.tail("headwater.shop.refresh") {
        pending.insert(record.key, record.value.is_some());
    }
    assert!(pending.values().all(|is_pending| !is_pending), "{pending:?}");
}

/// Waits until nothing is pending any more.
fn wait_refreshed(home: &Home) {
    wait_until("every row to be whole", PATIENCE, || {
        let mut pending: BTreeMap<String, bool> = BTreeMap::new();
        for record in home.tail("headwater.shop.refresh") {
            pending.insert(record.key, record.value.is_some());
        }
        match pending.values().filter(|is_pending| **is_pending).count() {
            0 => Ok(()),
            other => Err(format!("{other} rows lack columns")),
        }
    });
}

#[test]
fn a_row_whose_event_lacks_a_large_value_is_published_whole_soon_after() {
    let server = Postgres::shared();
    let database = server.database();
    let home = documents(&database, 20, "");
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    database.sql("UPDATE public.doc SET ver = 2 WHERE id <= 5; UPDATE public.doc SET id = 100, ver = 3 WHERE id = 20; DELETE FROM public.doc WHERE id = 5");
    daemon.wait_caught_up("shop");
    wait_refreshed(&home);
    expect_whole(&database, &home);
    let records = home.tail("shop.doc");
    let of = |key: &str| records.iter().filter(|record| record.key == key).map(Record::op).collect::<Vec<_>>();
    assert_eq!(of(r#"{"id":1}"#), ["r", "u", "r"]);
    assert_eq!(of(r#"{"id":100}"#), ["c", "r"], "a changed key's event is made whole the same way");
    assert_eq!(of(r#"{"id":19}"#), ["r"], "and nothing else is read again");
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn a_row_that_lacks_columns_is_not_forgotten_by_any_death() {
    let server = Postgres::shared();
    let database = server.database();
    let rows = 300;
    let home = documents(&database, rows, "");
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    daemon.kill9();
    let (stop, mut rng) = (Arc::new(AtomicBool::new(false)), Rng::new());
    let (mut client, stopped) = (database.client(), Arc::clone(&stop));
    let writer = thread::spawn(move || {
        let mut rng = Rng::new();
        while !stopped.load(Ordering::Relaxed) {
            let id = rng.u32(1..=rows);
            let sql = match rng.u32(0..6) {
                0 => format!("UPDATE public.doc SET ver = ver + 1, body = repeat('{id}+', 4000) WHERE id = {id}"),
                1 => format!(
                    "DELETE FROM public.doc WHERE id = {id}; INSERT INTO public.doc VALUES ({id}, 1, repeat('{id}/', 3000))"
                ),
                _ => format!("UPDATE public.doc SET ver = ver + 1 WHERE id BETWEEN {id} AND {id} + 9"),
            };
            client.batch_execute(&format!("BEGIN; {sql}; COMMIT")).expect("a transaction");
        }
    });
    for _ in 0..6 {
        let mut daemon = home.start();
        daemon.wait_for("shop", "a stream", |shop| shop["events"].as_u64() > Some(50));
        thread::sleep(Duration::from_millis(rng.u64(0..700)));
        daemon.kill9();
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("the writer");
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    wait_refreshed(&home);
    expect_whole(&database, &home);
    assert_eq!(daemon.terminate(), Some(0));
}
