//! The crash sweep: the real daemon dies at every named point, at its first hit and at a later one, on both logs, and what the
//! topics hold afterwards is judged by the kill test's oracle and checker.

use std::{cell::Cell, collections::BTreeSet};

use headwater_connector::fault::{POINTS, VARIANTS};

use crate::{
    control, kafka,
    kill::{self, CUT, Reader, Run, rest_and_judge},
    support::{
        PATIENCE,
        daemon::{Daemon, Home},
        kafka::Kafka,
        oracle::Oracle,
        postgres::{Database, Postgres},
        record::Record,
        root, wait_until, workload,
    },
};

/// Points that only the very first start passes, in the order in which it does.
const FIRST_START: [&str; 2] = ["C3", "C4"];

/// The later hit at which a point is tried.
fn later(point: &str) -> u32 {
    match point {
        "C1" | "C2" => 3,
        "C12" | "C13" | "C14" | "C25" => 2,
        _ => 5,
    }
}

/// Transactions of every kind: one in slices, one that changes a schema, and small ones around them.
fn work(database: &Database, number: u32) {
    let small = |n: u32| {
        let (from, to) = (1 + n % 20, 1 + (n + 7) % 20);
        let body = if n.is_multiple_of(2) { "repeat('x', 4000)" } else { "NULL" };
        format!(
            "SELECT truth.transfer({from}, {to}, {n}); SELECT truth.put_account({n} % 5, 'owner {number}', true);
             SELECT truth.put_text('document', 'text {}', 'title {n}', {body}); SELECT truth.put_order('r', 'c', {n}, NULL);
             SELECT truth.move_account({n} % 5, 100 + {n} % 5); SELECT truth.drop_account(100 + {n} % 5);",
            number % 4
        )
    };
    (1..5).for_each(|n| database.sql(&small(n)));
    let rows = CUT * 3;
    database.sql(&format!("SELECT truth.put_account(1000 + n, 'bulk {number}', true) FROM generate_series(1, {rows}) n"));
    let change = if number.is_multiple_of(2) { "DROP COLUMN IF EXISTS" } else { "ADD COLUMN IF NOT EXISTS" };
    let kind = if number.is_multiple_of(2) { "" } else { "int" };
    database.sql(&format!("ALTER TABLE shop.account {change} extra {kind}"));
    (5..8).for_each(|n| database.sql(&small(n)));
}

/// The daemon dies at this hit of the point, and the next life takes up what it left.
fn die(home: &Home, database: &Database, point: &str, hit: u32, number: u32) {
    let fault = format!("{point}:{hit}");
    work(database, number);
    let mut daemon = home.start_with(&[("HEADWATER_FAULT", &fault)]);
    if (point, hit) == ("C1", later("C1")) || (point, hit) == ("C2", later("C2")) {
        restart_to_death(home, &mut daemon);
    }
    if point == "C25" && hit > 1 {
        // Each change of the schema is a hit of its own.
        work(database, number + 1);
    }
    daemon.wait_fault(&fault);
    if point == "C13" {
        // What was confirmed may not be on the server's disk yet: the slot moves back.
        database.server.crash_and_restart();
    }
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0), "an orderly stop after {fault}");
}

/// Each start of a connector fences the writers before it, also one that an operator asks for.
fn restart_to_death(home: &Home, daemon: &mut Daemon) {
    wait_until("a restart to be the last", PATIENCE, || {
        let ready = daemon.connector("shop").is_ok_and(|connector| connector["state"] == "streaming");
        if ready {
            // The daemon may die of it before it answers.
            let _ = home.run(&["restart", "shop"]);
        }
        if daemon.is_running() { Err("it runs".to_owned()) } else { Ok(()) }
    });
}

fn sweep(home: &Home, skip: &[&str], reader: Option<Reader>) {
    let server = Postgres::start();
    let database = server.database();
    workload::prepare(&database);
    kill::configure(home, &database);
    let oracle = Oracle::start(&database);
    for point in FIRST_START {
        let fault = format!("{point}:1");
        home.start_with(&[("HEADWATER_FAULT", &fault)]).wait_fault(&fault);
    }
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql(&format!("SELECT truth.open_bank({})", workload::BANK_ROWS));
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    let mut kills = 0;
    for point in POINTS.iter().filter(|point| !FIRST_START.contains(point) && !skip.contains(point)) {
        for hit in [1, later(point)] {
            kills += 1;
            die(home, &database, point, hit, kills);
        }
    }
    rest_and_judge(
        &Run { seed: 0, kills, home, shop: &database, final_reader: reader, follower: None, break_log: None, outlast: None },
        &oracle,
    );
}

#[test]
fn a_crash_at_any_point_loses_and_repeats_nothing_on_the_embedded_log() {
    sweep(&Home::new(), &["C9"], None);
}

#[test]
fn a_crash_at_any_point_loses_and_repeats_nothing_on_kafka() {
    let kafka = Kafka::shared();
    let home = kafka::home(kafka, "headwater");
    sweep(&home, &[], Some(&|topic| kafka::consume(kafka, topic)));
}

/// The n-th hit of the points of a first start: one daemon makes one connector after another, as its files name them, and dies while
/// it makes the last one. What the others have is theirs already; the last one begins again, without what it left at the source.
fn sweep_of_creations(home: &Home, tail: &dyn Fn(&str) -> Vec<Record>) {
    const HIT: usize = 3;
    let server = Postgres::start();
    let database = server.database();
    let prefix = &database.name;
    database.sql("CREATE TABLE public.made (id int PRIMARY KEY)");
    let rows = Cell::new(0);
    let insert = || {
        rows.set(rows.get() + 1);
        database.sql(&format!("INSERT INTO public.made VALUES ({})", rows.get()));
    };
    insert();
    let mut made = Vec::new();
    for point in FIRST_START {
        let names: Vec<String> = (1..=HIT).map(|number| format!("{}{number}", point.to_lowercase())).collect();
        let fault = format!("{point}:{HIT}");
        let mut daemon = None;
        for (number, name) in names.iter().enumerate() {
            control::add(home, &database.url(), name, "public.made");
            let daemon = daemon.get_or_insert_with(|| home.start_with(&[("HEADWATER_FAULT", &fault)]));
            if number > 0 {
                daemon.signal("HUP");
            }
            if number + 1 < HIT {
                daemon.wait_caught_up(name);
            }
            insert();
        }
        daemon.expect("a daemon").wait_fault(&fault);
        made.extend(names);
        insert();
        let mut daemon = home.start();
        made.iter().for_each(|name| drop(daemon.wait_caught_up(name)));
        insert();
        made.iter().for_each(|name| drop(daemon.wait_caught_up(name)));
        // Rows that were there before are read beside the stream.
        for name in &made {
            wait_until(&format!("every row in {name}.made"), PATIENCE, || match home.tail(&format!("{name}.made")).len() {
                few if few < rows.get() => Err(format!("{few} of {}", rows.get())),
                _ => Ok(()),
            });
        }
        assert_eq!(daemon.terminate(), Some(0), "an orderly stop after {fault}");
    }
    let expected: BTreeSet<usize> = (1..=rows.get()).collect();
    for name in &made {
        // Old rows may come after the daemon has caught up, and a reader may give up before the first record on a busy machine.
        let seen = wait_until(&format!("every row in {name}.made"), PATIENCE, || {
            let mut seen: Vec<(usize, String)> = tail(&format!("{name}.made"))
                .iter()
                .map(|record| {
                    let id = number(record.column("id").expect("an id").to_string()) as usize;
                    (id, record.header("hw.op").to_owned())
                })
                .collect();
            seen.sort_unstable();
            let ids: BTreeSet<usize> = seen.iter().map(|(id, _)| *id).collect();
            if ids == expected { Ok(seen) } else { Err(format!("{seen:?}")) }
        });
        // A row that came as a change may be read once more; no change and no reading comes twice.
        assert!(seen.windows(2).all(|two| two[0] != two[1]), "{name}: {seen:?}");
    }
    let slots = database.value(&format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%{prefix}'"));
    assert_eq!(slots, made.len().to_string(), "a slot that was made before a death is not left behind");
}

fn number(text: String) -> u32 {
    text.trim_matches('"').parse().expect("a number")
}

#[test]
fn a_crash_while_the_third_connector_is_made_costs_none_of_them_anything_on_the_embedded_log() {
    let home = Home::new();
    sweep_of_creations(&home, &|topic| home.tail(topic));
}

#[test]
fn a_crash_while_the_third_connector_is_made_costs_none_of_them_anything_on_kafka() {
    let kafka = Kafka::shared();
    let home = kafka::home(kafka, "creations");
    sweep_of_creations(&home, &|topic| kafka::consume(kafka, topic));
}

/// The tables of the connector, and how much one of its log transactions holds.
fn select(home: &Home, database: &Database, tables: &str, cut: usize) {
    // What a config does to the stream shows where no rows are read beside it.
    let events = format!("    events:\n      partitions: {}\n", kill::PARTITIONS);
    let more = format!("      backfill: never\n{events}    commit: {{ max_events: {cut} }}\n");
    home.shop(&database.url(), tables, &more);
}

/// Accounts and orders in turn, in one transaction; the daemon dies when a part of it is published.
fn die_in_a_mixed_transaction(home: &Home, database: &Database, first: u32) {
    let rows = CUT * 3;
    database.sql(&format!(
        "SELECT truth.put_account({first} + n, 'mixed', true), truth.put_order('mixed', ({first} + n)::text, n, NULL)
         FROM generate_series(1, {rows}) n"
    ));
    home.start_with(&[("HEADWATER_FAULT", "C14:1")]).wait_fault("C14:1");
}

/// The ids in the order of the events; the place of every event is its own.
fn numbers(home: &Home, topic: &str, column: &str) -> Vec<u32> {
    let mut records = home.tail(topic);
    records.sort_by(|a, b| a.header("hw.pos").cmp(b.header("hw.pos")));
    assert!(records.windows(2).all(|pair| pair[0].header("hw.pos") < pair[1].header("hw.pos")), "a place twice in {topic}");
    records.iter().map(|record| number(record.column(column).expect("the column").to_string())).collect()
}

/// C23: the place inside of a transaction counts what the server sends and not what the config wants of it, so another selection
/// and other slices go on at the same row.
fn change_the_config_inside_a_transaction(home: &Home) {
    let server = Postgres::shared();
    let database = server.database();
    workload::prepare(&database);
    let of = |first: u32| (first + 1..=first + u32::try_from(CUT * 3).expect("few rows")).collect::<Vec<_>>();
    let rest = |what: &str| {
        let mut daemon = home.start();
        daemon.wait_caught_up("shop");
        assert_eq!(daemon.terminate(), Some(0), "an orderly stop {what}");
    };
    select(home, &database, "shop.account, shop.order", CUT);
    rest("before the first event");
    // A table less: its events stay where they are, and the other's go on without a gap.
    die_in_a_mixed_transaction(home, &database, 1_000);
    let published = numbers(home, "shop.order", "code");
    assert!(!published.is_empty() && published.len() < CUT * 3, "{} orders before the change", published.len());
    select(home, &database, "shop.account", CUT / 4);
    rest("with a table less");
    assert_eq!(numbers(home, "shop.account", "id"), of(1_000));
    assert_eq!(numbers(home, "shop.order", "code"), published);
    // A table more.
    die_in_a_mixed_transaction(home, &database, 5_000);
    let before = numbers(home, "shop.account", "id").len();
    assert!(before > CUT * 3 && before < CUT * 6, "{before} accounts before the change");
    select(home, &database, "shop.account, shop.order", CUT * 2);
    rest("with a table more");
    assert_eq!(numbers(home, "shop.account", "id"), [of(1_000), of(5_000)].concat());
    let orders = numbers(home, "shop.order", "code");
    let later = orders.strip_prefix(&published[..]).expect("what was published stays");
    // The server sent the orders all the time: what comes of them are those behind the place, and nothing of the skipped part.
    assert!(of(5_000).ends_with(later) && later.len() < CUT * 3, "{later:?}");
}

#[test]
fn another_config_in_the_middle_of_a_transaction_goes_on_at_the_same_row_on_the_embedded_log() {
    change_the_config_inside_a_transaction(&Home::new());
}

#[test]
fn another_config_in_the_middle_of_a_transaction_goes_on_at_the_same_row_on_kafka() {
    // A broker of its own: the topics bear the names of the tables.
    let kafka = Kafka::start();
    change_the_config_inside_a_transaction(&kafka::home(&kafka, "headwater"));
}

#[test]
fn an_unknown_fault_or_variant_is_an_error_at_the_start() {
    for (name, value) in [("HEADWATER_FAULT", "C99:1"), ("HEADWATER_VARIANT", "no-such-mistake")] {
        let mut home = Home::new();
        home.set(name, value);
        let outcome = home.run(&["run"]);
        assert!(outcome.code != Some(0) && outcome.stderr.contains("is none of"), "{}", outcome.said());
    }
}

#[test]
fn every_name_of_the_lists_is_hooked_somewhere_and_every_hook_is_in_the_lists() {
    let mut hooked = BTreeSet::new();
    let mut pending = vec![root().join("src"), root().join("connectors")];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(directory).expect("a directory of the sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                for call in ["fault::point(\"", "fault::point_with(\"", "fault::variant(\""] {
                    hooked.extend(text.split(call).skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned));
                }
            }
        }
    }
    let listed: BTreeSet<String> = POINTS.iter().chain(VARIANTS).map(|name| (*name).to_owned()).collect();
    assert_eq!(hooked, listed);
}
