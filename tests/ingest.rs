//! From committed rows to committed events, on the embedded log, read with `tail`.

mod events;
pub mod huge;
mod lives;
mod messages;

use crate::support::{
    daemon::Home,
    postgres::{Database, Postgres},
    record::Record,
};

const ORDERS: &str = "CREATE TABLE public.orders (id int PRIMARY KEY, status text, total numeric(10,2), body text);
    ALTER TABLE public.orders ALTER body SET STORAGE EXTERNAL;";

/// A connector over the table of orders; `more` holds further lines of its config.
fn shop(database: &Database, more: &str) -> Home {
    database.sql(ORDERS);
    let home = Home::new();
    home.shop(&database.url(), "public.orders", more);
    home
}

/// One life of the daemon in which each of these scripts is committed and published.
fn publish(home: &Home, database: &Database, scripts: &[&str]) {
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    scripts.iter().for_each(|script| database.sql(script));
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0), "an orderly stop");
}

/// What these scripts are in the topic of orders.
fn events(more: &str, scripts: &[&str]) -> Vec<Record> {
    let server = Postgres::shared();
    let database = server.database();
    let home = shop(&database, more);
    publish(&home, &database, scripts);
    home.tail("shop.orders")
}

fn ops(records: &[Record]) -> Vec<(&str, &str)> {
    records.iter().map(|record| (record.op(), record.key.as_str())).collect()
}

/// T10. The server sends a value in one piece, so a few copies of it are held at once, and not more than a few.
#[test]
fn a_value_of_100_mb_comes_whole_and_is_held_a_few_times_only() {
    const LEN: usize = 100_000_000;
    let server = Postgres::shared();
    let database = server.database();
    let home = shop(&database, "");
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql(&format!("INSERT INTO orders VALUES (1, 'new', 1, repeat('0123456789', {LEN} / 10))"));
    daemon.wait_caught_up("shop");
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: usize = peak.trim_end_matches("kB").trim().parse().unwrap();
    assert_eq!(daemon.terminate(), Some(0), "an orderly stop");
    assert!(peak * 1024 < 10 * LEN, "{peak} kB");
    let records = home.tail("shop.orders");
    assert_eq!(records.len(), 1);
    let body = records[0].value.as_ref().unwrap()["body"].as_str().unwrap();
    assert!(body.len() == LEN && body.as_bytes().chunks(10).all(|part| part == b"0123456789"), "{} bytes", body.len());
}
