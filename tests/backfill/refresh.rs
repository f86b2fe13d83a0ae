//! Rows whose event lacks a large value: read and published whole soon after, whatever is killed meanwhile.

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

use crate::support::{
    PATIENCE,
    daemon::Home,
    postgres::{Database, Postgres},
    record::Record,
    wait_until,
};

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
pub fn newest(home: &Home, topic: &str) -> BTreeMap<String, Record> {
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
pub fn wait_refreshed(home: &Home) {
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
