//! One transaction far larger than memory: published in slices by a daemon that is killed in the middle, twice.
//!
//! `HEADWATER_HUGE_ROWS` sets its rows. Nothing here holds them: the topic is read as a stream and judged record by record.

use std::time::Duration;

use crate::support::{
    PATIENCE,
    daemon::{Daemon, Home},
    postgres::Postgres,
    wait_until,
};

const TOPIC: &str = "shop.narrow";
/// What the design allows through a transaction of any size.
const MOST_KIB: u64 = 200 << 10;

/// The record at this offset, if it is committed.
fn is_committed(home: &Home, offset: u64) -> bool {
    // The topic does not exist before the first life has begun its work.
    let outcome = home.run(&["tail", TOPIC, "--from", &offset.to_string(), "--limit", "1", "--until-end", "--format", "json"]);
    outcome.code == Some(0) && !outcome.stdout.is_empty()
}

fn wait_committed(home: &Home, daemon: &mut Daemon, offset: u64) {
    // Generous, and in proportion to the rows: a debug build on a busy machine publishes several thousand a second.
    let deadline = PATIENCE + Duration::from_millis(offset);
    wait_until(&format!("offset {offset} of {TOPIC}"), deadline, || {
        assert!(daemon.is_running(), "the daemon ended before offset {offset} was committed");
        is_committed(home, offset).then_some(()).ok_or_else(|| "not yet".to_owned())
    });
}

/// The peak of resident memory of the daemon's life so far.
pub fn peak_kib(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("a running daemon");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number of KiB")
}

/// Each row is at its own place once: row n at offset n - 1, in one transaction; returns the count and the sum of the column.
pub fn read(home: &Home) -> (u64, u64) {
    let (mut count, mut sum, mut transaction) = (0, 0, String::new());
    home.tail_each(TOPIC, |record| {
        assert_eq!(record.offset, count, "an offset is missing or repeated");
        assert_eq!(record.key, format!("{{\"id\":{}}}", count + 1), "a row is missing, repeated or out of order");
        if count == 0 {
            transaction = record.header("hw.tx").to_owned();
        }
        assert_eq!(record.header("hw.tx"), transaction, "offset {count} is of another transaction");
        sum += record.column("n").and_then(serde_json::Value::as_u64).expect("a number");
        count += 1;
    });
    (count, sum)
}

/// Runs the daemon over one transaction of so many rows, and kills it so many times inside it; the peak of each of its lives.
pub fn publish(home: &Home, rows: u64, kills: u64, write: impl FnOnce()) -> Vec<u64> {
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    write();
    let mut peaks = Vec::new();
    for kill in 1..=kills {
        wait_committed(home, &mut daemon, rows * kill / 5);
        peaks.push(peak_kib(&daemon));
        daemon.kill9();
        // A kill after the last slice would prove nothing.
        assert!(!is_committed(home, rows - 1), "kill {kill} came when the whole transaction was published");
        daemon = home.start();
    }
    wait_committed(home, &mut daemon, rows - 1);
    daemon.wait_caught_up("shop");
    peaks.push(peak_kib(&daemon));
    assert_eq!(daemon.terminate(), Some(0), "an orderly stop");
    println!("huge: {rows} rows in one transaction, {kills} kills inside it, VmHWM of the lives {peaks:?} KiB");
    assert!(peaks.iter().all(|peak| *peak < MOST_KIB), "VmHWM of the lives: {peaks:?} KiB, at most {MOST_KIB}");
    peaks
}

#[test]
fn a_transaction_larger_than_memory_is_resumed_inside_after_kills() {
    let rows: u64 = std::env::var("HEADWATER_HUGE_ROWS").map_or(500_000, |rows| rows.parse().expect("a number of rows"));
    assert!(rows >= 200_000, "HEADWATER_HUGE_ROWS: fewer than 200000 rows are published before a kill can hit");
    let server = Postgres::start();
    let database = server.database();
    database.sql("CREATE TABLE public.narrow (id int PRIMARY KEY, n int NOT NULL)");
    let home = Home::new();
    home.shop(&database.url(), "public.narrow", "");
    publish(&home, rows, 2, || {
        database.sql(&format!("INSERT INTO public.narrow SELECT n, hashint4(n) & 65535 FROM generate_series(1, {rows}) n"));
    });
    let expected = database.rows("SELECT count(*), sum(n) FROM public.narrow").remove(0);
    let (count, sum) = read(&home);
    assert_eq!([count.to_string(), sum.to_string()], expected[..]);
}
