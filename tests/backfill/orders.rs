//! What an operator asks: tables read again, held, given up; tables that join and leave; what a reset and a truncate leave behind.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
};

use super::{expect_sound, versioned};
use crate::support::{PATIENCE, daemon::Home, postgres::Postgres, record::Record, wait_until};

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
fn a_table_to_be_read_first_that_is_not_captured_is_refused_everywhere() {
    let server = Postgres::shared();
    let database = server.database();
    let home = versioned(&database, 20, "");
    let first =
        |tables: &str, first: &str| home.shop(&database.url(), tables, &format!("      backfill: {{ first: [ {first} ] }}\n"));
    // No pattern selects the one; a pattern would select the other, and there is no such table.
    for (tables, code) in [("public.item", "HW2007"), ("\"public.*\"", "HW1185")] {
        first(tables, "public.item, public.itme");
        for command in ["check", "plan", "run"] {
            let refused = home.run(&[command]);
            refused.expect_code(2);
            for said in [code, "connectors.shop.source.backfill.first[1]", "hint:"] {
                assert!(refused.said().contains(said), "{command} does not say {said:?}: {}", refused.said());
            }
            assert!(code != "HW1185" || refused.said().contains("Did you mean public.item?"), "{}", refused.said());
        }
    }
    first("public.item", "public.item");
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    // New files with the mistake are refused, and what runs goes on.
    first("\"public.*\"", "public.itme");
    daemon.signal("HUP");
    wait_until("the refusal", PATIENCE, || match daemon.stderr() {
        said if said.contains("HW1185") => Ok(()),
        said => Err(said),
    });
    database.sql("UPDATE public.item SET ver = 2 WHERE id = 1");
    daemon.wait_caught_up("shop");
    expect_sound(&database, &home);
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn what_is_put_first_is_read_first_also_after_a_restart() {
    let server = Postgres::shared();
    let database = server.database();
    for table in ["alpha", "beta", "gamma", "delta"] {
        database.sql(&format!(
            "CREATE TABLE public.{table} (id int PRIMARY KEY); INSERT INTO public.{table} SELECT generate_series(1, 6000); ANALYZE public.{table}"
        ));
    }
    let home = Home::new();
    let limits = |rate: u32| format!("      backfill: {{ rows_per_second: {rate}, readers: 1, first: [ public.beta ] }}\n");
    home.shop(&database.url(), "\"public.*\"", &limits(1000));
    let turns = |shop: &serde_json::Value| -> Vec<String> {
        let mut turns: Vec<(u64, String)> = shop["backfills"].as_array().into_iter().flatten().filter_map(turn).collect();
        turns.sort_unstable();
        turns.into_iter().map(|(_, table)| table).collect()
    };
    let mut daemon = home.start();
    let shop = daemon.wait_for("shop", "the first rows", |shop| shop["backfills"][1]["rows"].as_u64() > Some(0));
    assert_eq!(turns(&shop), ["beta", "alpha", "delta", "gamma"]);
    home.run(&["backfill", "shop", "public.delta", "--first"]).expect_code(0);
    let body = "{\"table\":\"public.gamma\",\"first\":true}";
    assert_eq!(post(&home, "/v1/connectors/shop/backfill", body), 200);
    assert_eq!(
        post(&home, "/v1/connectors/shop/backfill", "{\"table\":\"public.beta\",\"action\":\"pause\",\"first\":true}"),
        400
    );
    let wanted = ["gamma", "delta", "beta", "alpha"];
    assert_eq!(turns(&daemon.connector("shop").expect("a status")), wanted);
    let text = home.run(&["backfill", "shop", "--list"]).stdout;
    assert!(text.contains("TURN"), "{text}");
    daemon.kill9();
    home.shop(&database.url(), "\"public.*\"", &limits(12_000));
    let mut daemon = home.start();
    daemon.wait_for("shop", "all rows", |shop| {
        let seen = turns(shop);
        assert!(wanted.iter().filter(|table| seen.iter().any(|one| one == *table)).eq(seen.iter()), "{seen:?}");
        shop["state"] == "streaming"
    });
    let mut ends = wanted.map(|table| (home.tail(&format!("shop.{table}")).iter().map(Record::pos).max(), table));
    ends.sort_unstable();
    assert_eq!(ends.map(|(_, table)| table), wanted);
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
}

/// The status of what is posted.
fn post(home: &Home, path: &str, body: &str) -> u16 {
    let mut stream = TcpStream::connect(home.address()).expect("the daemon listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let head = format!("POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}", home.address(), body.len());
    write!(stream, "{head}\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{body}").expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no status: {answer}"))
}

/// A table's place in the order, and its bare name.
fn turn(listed: &serde_json::Value) -> Option<(u64, String)> {
    Some((listed["turn"].as_u64()?, listed["table"].as_str()?.trim_start_matches("public.").to_owned()))
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

#[test]
fn a_row_that_changed_before_its_table_was_emptied_is_buried_like_the_others() {
    let server = Postgres::shared();
    let database = server.database();
    // Another table is read slowly all the while, so that what changes is remembered.
    database.sql("CREATE TABLE public.slow (id int PRIMARY KEY); INSERT INTO public.slow SELECT generate_series(1, 4000)");
    let home = versioned(&database, 60, "");
    home.shop(
        &database.url(),
        "public.item, public.slow",
        "      on_truncate: event\n      backfill: { first: [ public.item ], rows_per_second: 300, readers: 1 }\n",
    );
    let mut daemon = home.start();
    let item = |shop: &serde_json::Value| {
        shop["backfills"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|one| one["table"] == "public.item")
            .map(|one| one["state"].clone())
    };
    daemon.wait_for("shop", "the table's rows", |shop| item(shop).is_some_and(|state| state == "done"));
    database.sql("UPDATE public.item SET ver = ver + 1 WHERE id <= 20");
    database.sql("TRUNCATE public.item");
    daemon.wait_caught_up("shop");
    expect_sound(&database, &home);
    assert_eq!(daemon.terminate(), Some(0));
}
