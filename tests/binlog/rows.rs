//! Rows that are in tables of MariaDB and MySQL before the connector is: each arrives, and none is stale, whatever is asked for or held back
//! meanwhile.

use std::{collections::BTreeMap, thread};

use super::servers::{Flavour, Server, eventually, shared};
use crate::support::{daemon::Home, record::Record};

const ROWS: usize = 12_000;

/// A table of rows with a version each, and a connector over it.
fn versioned(server: &Server, more: &str) -> (Home, String) {
    let database = server.database();
    server.sql(&format!("USE {database};\nCREATE TABLE items (id int PRIMARY KEY, ver bigint NOT NULL, note text)"));
    for from in (0..ROWS).step_by(1000) {
        let rows: Vec<String> = (from + 1..=from + 1000).map(|id| format!("({id}, 1, repeat('n', {}))", id % 50)).collect();
        server.sql(&format!("INSERT INTO {database}.items VALUES {}", rows.join(",")));
    }
    let home = Home::new();
    home.write(
        "connectors/shop.yaml",
        &format!(
            "connectors:\n  shop:\n    source:\n      kind: mysql\n{}      tables: [ {database}.items ]\n{more}",
            super::place(server, &database)
        ),
    );
    (home, database)
}

/// What is wrong with the topic, held against the table: a row that came late, came twice, is missing, or is not the table's.
fn fault(server: &Server, database: &str, records: &[Record]) -> Option<String> {
    let mut sorted: Vec<&Record> = records.iter().collect();
    sorted.sort_by_key(|record| record.pos().expect("a position"));
    let mut topic: BTreeMap<&str, Option<u64>> = BTreeMap::new();
    for record in sorted {
        let version = record.column("ver").and_then(serde_json::Value::as_u64);
        match (version, topic.get(record.key.as_str())) {
            // Keys never come back.
            (Some(version), Some(None)) => return Some(format!("stale: {} has version {version} and was deleted", record.key)),
            // A row that is read may be as new as its last event, which nobody remembers after a kill.
            (Some(version), Some(Some(known))) if version < *known || (version == *known && record.op() != "r") => {
                return Some(format!("stale: {} has version {version} as {} behind {known}", record.key, record.op()));
            }
            _ => {}
        }
        topic.insert(&record.key, version);
    }
    let table = server.sql(&format!("SELECT id, ver FROM {database}.items"));
    let table: BTreeMap<String, u64> = table
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(id, ver)| (format!("{{\"id\":{id}}}"), ver.parse().expect("a version")))
        .collect();
    let topic: BTreeMap<String, u64> = topic.into_iter().filter_map(|(key, version)| Some((key.to_owned(), version?))).collect();
    let differing = table.iter().filter(|(key, version)| topic.get(*key) != Some(version)).count();
    let extra = topic.keys().filter(|key| !table.contains_key(*key)).count();
    (topic != table).then(|| format!("the topic is not the table: {differing} rows differ or are missing, {extra} are too many"))
}

fn a_table_is_read_on_demand_whole_or_in_part(flavour: Flavour) {
    let server = shared(flavour);
    let (home, database) = versioned(server, "      backfill: never\n");
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    assert_eq!(home.tail("shop.items").len(), 0);
    let table = format!("{database}.items");
    let mut count = 0;
    home.write("keys.jsonl", "{\"id\":7}\n\n{\"id\":299}\n{\"id\":1234567}\n");
    for (arguments, more) in [
        (vec!["--where", "id <= 10 AND note LIKE 'n%'"], 10),
        (vec!["--column", "id", "--from", "11996"], 5),
        (vec!["--keys", "keys.jsonl"], 2),
        (vec![], ROWS),
    ] {
        home.run(&[&["backfill", "shop", &table], arguments.as_slice()].concat()).expect_code(0);
        daemon.wait_state("shop", "streaming");
        count += more;
        let records = home.tail("shop.items");
        assert_eq!(records.iter().filter(|record| record.op() == "r").count(), count, "{arguments:?}");
    }
    home.run(&["backfill", "shop", &table, "--where", "nothing = 1"]);
    daemon.wait_for("shop", "the server's words", |shop| shop.to_string().contains("HW3039"));
    assert_eq!(daemon.terminate(), Some(0));
    assert_eq!(fault(server, &database, &home.tail("shop.items")), None);
}

#[test]
fn a_table_is_read_on_demand_whole_or_in_part_on_mariadb() {
    a_table_is_read_on_demand_whole_or_in_part(Flavour::Mariadb);
}

#[test]
fn a_table_is_read_on_demand_whole_or_in_part_on_mysql() {
    a_table_is_read_on_demand_whole_or_in_part(Flavour::Mysql);
}

/// Commits that are in the binlog, and in the topics, while no snapshot sees them: they wait for the answer of a replica that is not there.
fn stalled_commit(flavour: Flavour, variant: Option<&str>) -> Option<String> {
    let server = Server::start(flavour, &[]);
    let (name, word) =
        if flavour == Flavour::Mariadb { ("rpl_semi_sync_master", "slave") } else { ("rpl_semi_sync_source", "replica") };
    if flavour == Flavour::Mysql {
        server.sql("INSTALL PLUGIN rpl_semi_sync_source SONAME 'semisync_source.so'");
    }
    let (home, database) = versioned(&server, "      backfill: { rows_per_second: 3000, readers: 1 }\n");
    let mistake: Vec<(&str, &str)> = variant.iter().map(|name| ("HEADWATER_VARIANT", *name)).collect();
    let mut daemon = home.start_with(&mistake);
    // Somewhere in the middle, so that the gate is passed and the journal is kept.
    daemon.wait_for("shop", "the first rows", |shop| shop["backfills"][0]["rows"].as_u64() > Some(0));
    server.sql(&format!(
        "SET GLOBAL {name}_timeout = 600000;\nSET GLOBAL {name}_wait_point = 'AFTER_SYNC';\nSET GLOBAL {name}_wait_no_{word} = ON;\n\
         SET GLOBAL {name}_enabled = ON"
    ));
    thread::scope(|scope| {
        let stalled = scope.spawn(|| server.sql(&format!("UPDATE {database}.items SET ver = 2 WHERE id > 11000")));
        let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let changed = || home.tail("shop.items").iter().filter(|record| record.op() == "u").count();
            eventually("the changes in the topic", || changed() == 1000);
            assert_eq!(server.sql(&format!("SELECT count(*) FROM {database}.items WHERE ver = 2")), "0", "nobody sees them yet");
            // All rows are read while it is so.
            daemon.wait_for("shop", "all rows", |shop| shop["backfills"][0]["state"] == "done");
            assert_eq!(server.sql(&format!("SELECT count(*) FROM {database}.items WHERE ver = 2")), "0", "nobody sees them yet");
        }));
        server.sql(&format!("SET GLOBAL {name}_enabled = OFF"));
        stalled.join().expect("a commit");
        held.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    fault(&server, &database, &home.tail("shop.items"))
}

#[test]
fn a_commit_that_waits_for_a_replica_is_not_followed_by_the_row_it_replaced_on_mariadb() {
    assert_eq!(stalled_commit(Flavour::Mariadb, None), None);
}

#[test]
fn a_commit_that_waits_for_a_replica_is_not_followed_by_the_row_it_replaced_on_mysql() {
    assert_eq!(stalled_commit(Flavour::Mysql, None), None);
}

#[test]
fn the_well_known_watermark_window_is_found_on_mariadb() {
    let found = stalled_commit(Flavour::Mariadb, Some("watermark-window")).expect("a stale row");
    assert!(found.contains("stale"), "{found}");
}

#[test]
fn the_well_known_watermark_window_is_found_on_mysql() {
    let found = stalled_commit(Flavour::Mysql, Some("watermark-window")).expect("a stale row");
    assert!(found.contains("stale"), "{found}");
}
