//! What people see of a backfill: status, plan, metrics, the log, and the bars of a terminal.

use std::{
    fs::File,
    io::Read,
    sync::{Arc, Mutex},
    thread,
};

use serde_json::Value;

use crate::{
    backfill::versioned,
    support::{
        PATIENCE,
        daemon::{Daemon, Home},
        postgres::{Database, Postgres},
        wait_until,
    },
};

const DONE: &str = "all rows of the table were read";

fn done_lines(daemon: &Daemon) -> usize {
    daemon.stderr().lines().filter(|line| line.contains(DONE)).count()
}

/// What `plan` says of a connector.
fn planned(home: &Home) -> Value {
    let plan = home.run(&["plan", "--format", "json"]);
    plan.expect_code(0);
    plan.json()["connectors"][0].clone()
}

/// What `plan` says of the rows of each table.
fn rows_of(planned: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let tables = planned["tables"].as_array().expect("tables");
    tables.iter().map(|table| (text(&table["table"]), text(&table["backfill"]["action"]))).collect()
}

fn expect_rows(planned: &Value, expected: &[(&str, &str)]) {
    let found = rows_of(planned);
    let found: Vec<(&str, &str)> = found.iter().map(|(table, action)| (table.as_str(), action.as_str())).collect();
    assert_eq!(found, expected, "{planned}");
}

/// The value of a series, by its name and labels as they stand in a scrape.
fn metric(home: &Home, series: &str) -> Option<f64> {
    let answer = ureq::get(format!("http://{}/metrics", home.address())).call();
    let page = answer.expect("an answer").body_mut().read_to_string().expect("a page");
    page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok())
}

fn slow(database: &Database, home: &Home, tables: &str) {
    home.shop(&database.url(), tables, "      backfill: { rows_per_second: 2000, readers: 1 }\n");
}

#[test]
fn plan_status_and_metrics_tell_the_same_about_a_table_from_its_first_row_to_its_removal() {
    let server = Postgres::shared();
    let database = server.database();
    let home = versioned(&database, 9_000, "");
    slow(&database, &home, "public.item");
    let plan = planned(&home);
    expect_rows(&plan, &[("public.item", "read")]);
    assert_eq!(plan["tables"][0]["backfill"]["estimated_rows"], 9_000);
    let text = home.run(&["plan"]).stdout;
    assert!(text.contains("backfill, about 9000") && text.contains("reads the rows that are there already"), "{text}");
    let mut daemon = home.start();
    daemon.wait_for("shop", "a rate", |shop| shop["backfills"][0]["rows_per_second"].as_f64().is_some());
    let status = home.run(&["status"]).stdout;
    assert!(status.contains("OF ABOUT") && status.contains("running") && status.contains(" %  "), "{status}");
    let of = |name: &str| metric(&home, &format!("headwater_backfill_{name}")).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(of(r#"tables{connector="shop",state="running"}"#), 1.0);
    assert_eq!(metric(&home, r#"headwater_connector_state{connector="shop",state="backfilling"}"#), Some(1.0));
    assert_eq!(of(r#"rows_estimated{connector="shop"}"#), 9_000.0);
    assert!(of(r#"rows_left{connector="shop"}"#) < 9_000.0 && of(r#"seconds_left{connector="shop"}"#) > 0.0);
    assert!(of(r#"rows_total{connector="shop"}"#) >= of(r#"published_total{connector="shop"}"#));
    home.run(&["backfill", "shop", "public.item", "--pause"]).expect_code(0);
    daemon.kill9();
    expect_rows(&planned(&home), &[("public.item", "paused")]);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    home.run(&["backfill", "shop", "public.item", "--resume"]).expect_code(0);
    daemon.kill9();
    expect_rows(&planned(&home), &[("public.item", "continue")]);
    home.shop(&database.url(), "public.item", "");
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    let seen = home.run(&["status"]).stdout;
    assert!(seen.contains("done: 1 table, 9000 rows read") && !seen.contains("OF ABOUT"), "{seen}");
    assert_eq!(done_lines(&daemon), 1);
    // Its rows were counted by this life for what this life read.
    let read = metric(&home, r#"headwater_backfill_rows_total{connector="shop"}"#).expect("a counter");
    assert!(read > 0.0 && read < 9_000.0, "{read}");
    assert_eq!(daemon.terminate(), Some(0));
    expect_rows(&planned(&home), &[("public.item", "done")]);
    exchange(&database, &home);
}

/// Another table in the place of the one that was captured.
fn exchange(database: &Database, home: &Home) {
    database.sql("CREATE TABLE public.late (id int PRIMARY KEY); INSERT INTO public.late SELECT generate_series(1, 70)");
    home.shop(&database.url(), "public.late", "");
    let plan = planned(home);
    expect_rows(&plan, &[("public.late", "read")]);
    assert_eq!(plan["removed"], serde_json::json!([{ "table": "public.item", "topic": "shop.item" }]));
    let text = home.run(&["plan"]).stdout;
    let line = "forget public.item is not captured any more: what is known of its rows is forgotten; its topic shop.item stays";
    assert!(text.contains(line), "{text}");
    assert!(text.contains("alter publication") && text.contains("public.late"), "{text}");
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    assert_eq!(home.tail("shop.late").len(), 70);
    assert_eq!(home.tail("shop.item").len(), 9_000, "its topic stays");
    assert_eq!(daemon.terminate(), Some(0));
    let plan = planned(home);
    assert!(plan.get("removed").is_none(), "{plan}");
    // Whoever brings a table back gets a plan for a topic that may hold keys that are gone.
    home.shop(&database.url(), "public.item, public.late", "");
    let plan = planned(home);
    expect_rows(&plan, &[("public.item", "read"), ("public.late", "done")]);
    assert_eq!(plan["tables"][0]["backfill"]["reconcile"], true);
    // And one that wants no rows gets none.
    home.shop(&database.url(), "public.item, public.late", "      backfill: never\n");
    expect_rows(&planned(home), &[("public.item", "skip"), ("public.late", "done")]);
}

#[test]
fn a_backfill_that_stands_still_is_named_by_status_and_metrics() {
    let server = Postgres::shared();
    let database = server.database();
    let home = versioned(&database, 10, "");
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    let failing = r#"headwater_backfill_failing{connector="shop"}"#;
    assert_eq!(metric(&home, failing), Some(0.0));
    home.run(&["backfill", "shop", "public.item", "--where", "nonsense >"]).expect_code(0);
    daemon.wait_for("shop", "the refusal", |shop| shop["backfills"][0]["error"]["code"] == "HW2072");
    let status = home.run(&["status"]).stdout;
    assert!(status.contains("failing") && status.contains("shop public.item HW2072") && status.contains("hint:"), "{status}");
    assert_eq!(metric(&home, failing), Some(1.0));
    home.run(&["backfill", "shop", "public.item", "--cancel"]).expect_code(0);
    daemon.wait_caught_up("shop");
    assert_eq!(metric(&home, failing), Some(0.0));
    assert_eq!(metric(&home, r#"headwater_backfill_tables{connector="shop",state="cancelled"}"#), Some(1.0));
    assert_eq!(daemon.terminate(), Some(0));
}

/// It was said when the last chunk was encoded: a death before its commit made that a lie, and the next life said it again.
#[test]
fn that_a_table_is_done_was_said_before_it_was_durable() {
    let server = Postgres::shared();
    let database = server.database();
    let home = versioned(&database, 10, "");
    // The commits of a first start, and then of later ones, up to that of the rows.
    for fault in ["C7:4", "C7:2", "C7:2", "C7:2"] {
        home.start_with(&[("HEADWATER_FAULT", fault)]).wait_fault(fault);
        let said = std::fs::read_to_string(home.path("stderr")).expect("its words").contains(DONE);
        let is_done = rows_of(&planned(&home)) == [("public.item".to_owned(), "done".to_owned())];
        assert!(is_done || !said, "said and not durable");
    }
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    wait_until("the word", PATIENCE, || match done_lines(&daemon) {
        1 => Ok(()),
        other => Err(format!("said {other} times")),
    });
    daemon.kill9();
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    assert_eq!(done_lines(&daemon), 1);
    assert_eq!(daemon.terminate(), Some(0));
}

/// A terminal: what is written to it, and the end that a program gets.
fn terminal() -> (Arc<Mutex<Vec<u8>>>, File) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&ours).expect("the right to use it");
    unlockpt(&ours).expect("a terminal that can be opened");
    let path = ptsname(&ours, Vec::new()).expect("its name").into_string().expect("a name of letters");
    let theirs = File::options().read(true).write(true).open(path).expect("its other end");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let copy = Arc::clone(&seen);
    thread::spawn(move || {
        let (mut ours, mut bytes) = (File::from(ours), [0; 4096]);
        // Reading fails once nobody has the other end open.
        while let Ok(count @ 1..) = ours.read(&mut bytes) {
            copy.lock().expect("the bytes").extend_from_slice(&bytes[..count]);
        }
    });
    (seen, theirs)
}

#[test]
fn bars_are_drawn_on_a_terminal_and_nowhere_else() {
    let server = Postgres::shared();
    let database = server.database();
    let home = versioned(&database, 9_000, "");
    slow(&database, &home, "public.item");
    let (seen, theirs) = terminal();
    let mut daemon = home.start_on(theirs);
    let text = || String::from_utf8_lossy(&seen.lock().expect("the bytes")).into_owned();
    wait_until("a bar", PATIENCE, || {
        let text = text();
        (text.contains("shop public.item  █") && text.contains("of about 9000 rows")).then_some(()).ok_or(text)
    });
    daemon.wait_state("shop", "streaming");
    // The last of it is taken away again, above the log's own line.
    wait_until("the end of the bar", PATIENCE, || {
        let text = text();
        let (_, last) = text.rsplit_once('█').expect("a bar");
        last.contains("\x1b[1F\x1b[J").then_some(()).ok_or(text.clone())
    });
    assert!(text().contains(DONE), "{}", text());
    assert_eq!(daemon.terminate(), Some(0));
    // The same into a file.
    home.shop(&database.url(), "public.item", "");
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    home.run(&["backfill", "shop", "public.item"]).expect_code(0);
    daemon.wait_for("shop", "all rows", |shop| shop["backfills"][0]["state"] == "done");
    let said = daemon.stderr();
    assert!(said.contains(DONE) && !said.contains(['\x1b', '█', '░']), "{said}");
    assert_eq!(daemon.terminate(), Some(0));
}
