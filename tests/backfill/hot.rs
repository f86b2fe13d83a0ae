//! A row that is written without a pause, so that no snapshot ever sees its newest change: it is published whole all the same.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use fastrand::Rng;

use super::refresh::{newest, wait_refreshed};
use crate::support::{
    PATIENCE,
    daemon::{Daemon, Home},
    postgres::{Database, Postgres},
    record::Record,
    wait_until,
};

/// Log transactions are kept so large that each holds many changes of the row: none ends with the change that a snapshot saw last.
const MANY: &str = "    commit: { linger_ms: 150 }\n";
const WRITERS: usize = 3;
/// Times that the row must become whole before the writers pause.
const TIMES: usize = 4;

/// A table with a row whose body is stored out of line and tells the number beside it.
fn hot_row(database: &Database) -> Home {
    database.sql(
        "CREATE TABLE public.doc (id int PRIMARY KEY, ver bigint, edition int, body text);
         ALTER TABLE public.doc ALTER body SET STORAGE EXTERNAL; INSERT INTO public.doc VALUES (1, 1, 1, repeat('1-', 3000))",
    );
    let home = Home::new();
    home.shop(&database.url(), "public.doc", MANY);
    home
}

/// Sessions that write the row one after the other until they are told to stop.
struct Writers {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    fn start(database: &Database, statement: fn(&mut Rng) -> &'static str) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..WRITERS).map(|_| {
            let (mut client, stop, written) = (database.client(), Arc::clone(&stop), Arc::clone(&written));
            thread::spawn(move || {
                let mut rng = Rng::new();
                // The log need not be on disk before the next change: the more of them, the better.
                client.batch_execute("SET synchronous_commit = off").expect("a setting");
                while !stop.load(Ordering::Relaxed) {
                    client.batch_execute(statement(&mut rng)).expect("a change");
                    written.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let threads = threads.collect();
        Self { stop, written, threads }
    }

    fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().expect("a writer"));
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What came into the topic. A topic without a pause is compacted while it is looked at.
#[derive(Default)]
struct Watch {
    next: u64,
    /// What the row's newest events said of it, by key; 0 if there is none, or if events before were not seen.
    newest: [u64; 3],
    /// Rows that were read.
    reads: usize,
    /// Version and first letters of each body.
    bodies: Vec<(u64, String)>,
}

impl Watch {
    /// Takes in what is new. Each row that was read is the newest published one; each body is the one that the row had.
    fn look(&mut self, home: &Home) {
        for record in home.tail_with("shop.doc", &["--from", &self.next.to_string()]) {
            if record.offset > self.next {
                self.newest = [0; 3];
            }
            self.next = record.offset + 1;
            self.take(&record);
        }
    }

    fn take(&mut self, record: &Record) {
        let number = |name: &str| record.column(name).and_then(serde_json::Value::as_u64);
        let newest = &mut self.newest[if record.key == r#"{"id":1}"# { 1 } else { 2 }];
        let Some(version) = number("ver") else { return };
        if record.op() == "r" {
            assert!(*newest == 0 || version == *newest, "{} was read as {version} behind {newest}", record.key);
            assert!(record.absent().is_empty(), "{:?}", record.absent());
            self.reads += 1;
        } else {
            assert!(version > *newest, "{version} of {} came behind {newest}", record.key);
        }
        *newest = version;
        if let Some(body) = record.column("body").and_then(serde_json::Value::as_str) {
            let edition = number("edition").expect("an edition").to_string();
            assert_eq!(body.split('-').next(), Some(edition.as_str()), "{version}: a body that the row did not have");
            self.bodies.push((version, body.chars().take(10).collect()));
        }
    }

    /// Waits until the row was read so many more times, while it is written.
    fn wait_whole(&mut self, daemon: &mut Daemon<'_>, home: &Home, writers: &Writers, times: usize) {
        daemon.wait_for("shop", "a stream", |shop| shop["events"].as_u64() > Some(10));
        let (before, written) = (self.reads, writers.written.load(Ordering::Relaxed));
        wait_until("the row to be whole", PATIENCE, || {
            self.look(home);
            match self.reads - before {
                enough if enough >= times => Ok(()),
                other => Err(format!("{other} times, {} changes", writers.written.load(Ordering::Relaxed) - written)),
            }
        });
    }
}

fn expect_table(database: &Database, home: &Home) {
    let newest = newest(home, "shop.doc");
    let rows = database.rows("SELECT ver::text, edition::text, body FROM public.doc WHERE id = 1");
    let record = &newest[r#"{"id":1}"#];
    assert!(record.absent().is_empty(), "{:?}", record.absent());
    for (name, text) in ["ver", "edition"].into_iter().zip(&rows[0]) {
        assert_eq!(record.column(name).map(ToString::to_string).as_deref(), Some(text.as_str()));
    }
    assert_eq!(record.column("body").and_then(serde_json::Value::as_str), Some(rows[0][2].as_str()));
}

/// Lets everything come to rest and holds the topic against the table.
fn settle(writers: Writers, daemon: &mut Daemon, watch: &mut Watch, (database, home): (&Database, &Home)) {
    writers.stop();
    daemon.wait_caught_up("shop");
    wait_refreshed(home);
    watch.look(home);
    expect_table(database, home);
}

fn written_without_a_pause(statement: fn(&mut Rng) -> &'static str) {
    let server = Postgres::shared();
    let database = server.database();
    let home = hot_row(&database);
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    let mut watch = Watch::default();
    let writers = Writers::start(&database, statement);
    watch.wait_whole(&mut daemon, &home, &writers, TIMES);
    daemon.kill9();
    let mut daemon = home.start();
    watch.wait_whole(&mut daemon, &home, &writers, TIMES);
    settle(writers, &mut daemon, &mut watch, (&database, &home));
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn a_row_that_is_written_without_a_pause_is_published_whole_meanwhile() {
    written_without_a_pause(|_| "UPDATE public.doc SET ver = ver + 1 WHERE id = 1");
}

#[test]
fn a_large_value_that_changes_now_and_then_is_never_published_with_another_row() {
    written_without_a_pause(|rng| {
        match rng.u32(0..10_000) {
        0..3 => {
            "UPDATE public.doc SET ver = ver + 1, edition = edition + 1, body = repeat((edition + 1)::text || '-', 3000) WHERE id = 1"
        }
        3 => {
            "BEGIN; UPDATE public.doc SET ver = ver + 1, id = 2 WHERE id = 1;
             UPDATE public.doc SET ver = ver + 1, edition = edition + 1, body = repeat((edition + 1)::text || '-+', 3000) WHERE id = 2;
             UPDATE public.doc SET ver = ver + 1, edition = edition + 1, body = repeat((edition + 1)::text || '-', 3000) WHERE id = 2;
             UPDATE public.doc SET ver = ver + 1, id = 1 WHERE id = 2; COMMIT"
        }
        _ => "UPDATE public.doc SET ver = ver + 1 WHERE id = 1",
    }
    });
}

#[test]
fn a_table_that_is_rewritten_is_not_published_with_the_values_that_it_had_before() {
    let server = Postgres::shared();
    let database = server.database();
    let home = hot_row(&database);
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    let mut watch = Watch::default();
    let writers = Writers::start(&database, |_| "UPDATE public.doc SET ver = ver + 1 WHERE id = 1");
    // The version at which the body became another one, without a change of the row.
    let mut rewritten = Vec::new();
    let mut rng = Rng::new();
    for round in 1..=30 {
        // Anywhere between a look-up and what is made of it.
        thread::sleep(Duration::from_millis(rng.u64(0..300)));
        watch.look(&home);
        let rows = database.rows(&format!(
            "BEGIN; LOCK TABLE public.doc IN ACCESS EXCLUSIVE MODE; ALTER TABLE public.doc ALTER body TYPE text USING repeat('1-{round}', 3000),
               ALTER body SET STORAGE EXTERNAL;
             SELECT ver::text FROM public.doc; COMMIT"
        ));
        rewritten.push(rows[0][0].parse::<u64>().expect("a version"));
    }
    watch.wait_whole(&mut daemon, &home, &writers, 1);
    settle(writers, &mut daemon, &mut watch, (&database, &home));
    for (version, body) in watch.bodies {
        let rounds = rewritten.iter().filter(|at| **at < version).count();
        let is_at_once = rewritten.contains(&version);
        let shows = |rounds: usize| rounds == 0 && body.starts_with("1-1-") || body.starts_with(&format!("1-{rounds}1-"));
        assert!(shows(rounds) || is_at_once && shows(rounds + 1), "{version} has the body {body}… of another time");
    }
    assert_eq!(daemon.terminate(), Some(0));
}
