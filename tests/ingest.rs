//! From committed rows to committed events, on the embedded log, read with `tail`.

mod events;
mod huge;
mod lives;

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
