//! A seeded workload on a real PostgreSQL: several writers with keys of their own and keys they fight over.

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use fastrand::Rng;
use postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::postgres::{Database, PASSWORD};

/// Rows of the bank; the first transaction makes them.
pub const BANK_ROWS: u64 = 20;

/// Events that the writers may be ahead of the topics: more than any life publishes before it dies, so that a pause is rare.
const LEAD: u64 = 4_000;

/// Rows of a transaction that is so large that few lives get through it.
const LARGE: u32 = 20_000;

/// What the writers have done so far.
#[derive(Default)]
pub struct Progress {
    /// Events that committed transactions must have in the topics; counted after the source's commit returned.
    pub committed_events: AtomicU64,
    /// Transactions that committed.
    pub commits: AtomicU64,
    /// Transactions rolled back on purpose.
    pub rollbacks: AtomicU64,
    /// Transactions that the database rolled back to resolve a deadlock.
    pub deadlocks: AtomicU64,
    /// Committed transactions of [`LARGE`] rows.
    pub large: AtomicU64,
    /// Committed transactions with a COPY.
    pub copies: AtomicU64,
    /// Committed transactions that change the columns of a table between their rows.
    pub reshapes: AtomicU64,
    /// Large transactions that somebody asked for and no writer has begun.
    wanted: AtomicU64,
    /// Events that a reader of the topics has seen; the writers wait when they are too far ahead of it.
    pub published: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    /// The counter of such transactions, where they have one.
    fn counter(&self, script: &Script) -> Option<&AtomicU64> {
        match script.kind {
            Kind::Large => Some(&self.large),
            Kind::Copy { .. } => Some(&self.copies),
            Kind::Reshape => Some(&self.reshapes),
            Kind::Small => None,
        }
    }

    /// Whether this writer is the one that makes a large transaction somebody asked for.
    fn takes_large(&self) -> bool {
        self.wanted.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |wanted| wanted.checked_sub(1)).is_ok()
    }

    /// A log that is away for a while must not leave more work behind than the run can check in its time.
    fn is_too_far_ahead(&self) -> bool {
        self.committed_events.load(Ordering::SeqCst) > self.published.load(Ordering::SeqCst) + LEAD
    }
}

/// Running writers; they stop when this is dropped.
pub struct Workload {
    /// What they have done.
    pub progress: Arc<Progress>,
    writers: Vec<JoinHandle<()>>,
}

/// Makes the tables and the functions that change them.
pub fn prepare(database: &Database) {
    database.sql(include_str!("workload.sql"));
}

impl Workload {
    /// Opens the bank and starts the writers. The same seed gives each writer the same transactions; how they interleave is real.
    pub fn start(database: &Database, seed: u64, writers: u64, pause: Duration) -> Self {
        let progress = Arc::new(Progress::default());
        let mut client = database.client();
        let events = commit(&mut client, &format!("BEGIN; SELECT truth.open_bank({BANK_ROWS});"), true).expect("the bank opens");
        progress.committed_events.fetch_add(events, Ordering::SeqCst);
        progress.commits.fetch_add(1, Ordering::SeqCst);
        let start = |number: u64| {
            let mut writer = Writer { rng: Rng::with_seed(seed.wrapping_mul(31).wrapping_add(number)), number, copied: 0 };
            let (mut client, progress) = (database.client(), Arc::clone(&progress));
            let mut server: Config = database.url().parse().expect("the URL of the database");
            server.password(PASSWORD);
            std::thread::spawn(move || {
                while !progress.stop.load(Ordering::SeqCst) {
                    if progress.is_too_far_ahead() {
                        std::thread::sleep(Duration::from_millis(5));
                        continue;
                    }
                    if !writer.one_transaction(&mut client, &progress) {
                        client = reconnect(&server);
                    }
                    // The pace keeps the source from outrunning a build without optimisation for ever.
                    std::thread::sleep(pause.mul_f64(writer.rng.f64() * 2.0));
                }
            })
        };
        let writers = (0..writers).map(start).collect();
        Self { progress, writers }
    }

    /// Events that the topics must hold by now, at least.
    pub fn committed_events(&self) -> u64 {
        self.progress.committed_events.load(Ordering::SeqCst)
    }

    /// A writer makes a transaction of [`LARGE`] rows next.
    pub fn ask_for_large(&self) {
        self.progress.wanted.fetch_add(1, Ordering::SeqCst);
    }

    /// So many events have been seen in the topics.
    pub fn saw(&self, events: u64) {
        self.progress.published.store(events, Ordering::SeqCst);
    }

    /// Stops the writers; a writer that panicked is a failure here.
    pub fn stop(mut self) -> Arc<Progress> {
        self.progress.stop.store(true, Ordering::SeqCst);
        for writer in self.writers.drain(..) {
            writer.join().expect("a writer of the workload");
        }
        Arc::clone(&self.progress)
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.progress.stop.store(true, Ordering::SeqCst);
        for writer in self.writers.drain(..) {
            let _ = writer.join();
        }
    }
}

struct Writer {
    rng: Rng,
    number: u64,
    /// Rows that this writer has copied, kept or not: a copied row has a key that was never used.
    copied: u64,
}

/// A transaction: its statements, and what is special about it.
struct Script {
    kind: Kind,
    statements: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Small,
    Large,
    /// These rows come before the statements.
    Copy {
        first: u64,
        rows: u64,
    },
    Reshape,
}

impl Writer {
    /// Whether the connection can be used on. After a crash nobody knows whether the transaction committed, so it is not counted.
    fn one_transaction(&mut self, client: &mut Client, progress: &Progress) -> bool {
        let keep = self.rng.u32(0..100) < 88;
        let script = if progress.takes_large() { self.large() } else { self.script() };
        // What was asked for is kept.
        let keep = keep || script.kind == Kind::Large;
        match script.run(client, keep) {
            Ok(events) if keep => {
                if let Some(counter) = progress.counter(&script) {
                    counter.fetch_add(1, Ordering::SeqCst);
                }
                progress.committed_events.fetch_add(events, Ordering::SeqCst);
                progress.commits.fetch_add(1, Ordering::SeqCst);
            }
            Ok(_) => drop(progress.rollbacks.fetch_add(1, Ordering::SeqCst)),
            Err(error) if is_crash(client, &error) => return false,
            Err(error) => {
                let code = error.code().map_or_else(|| panic!("the workload failed: {error}"), postgres::error::SqlState::code);
                assert_eq!(code, "40P01", "the workload failed: {error:?}");
                // The server may crash right here.
                if let Err(error) = client.batch_execute("ROLLBACK") {
                    assert!(is_crash(client, &error), "a rollback failed: {error:?}");
                    return false;
                }
                progress.deadlocks.fetch_add(1, Ordering::SeqCst);
            }
        }
        true
    }

    fn script(&mut self) -> Script {
        let (kind, statements) = match self.rng.u32(0..400) {
            0 => {
                // Large enough to be published in slices.
                let (base, rows) = (1_000_000 * (1 + self.number), self.rng.u32(700..2_500));
                let number = self.rng.u32(0..1_000_000);
                let each = format!("truth.put_account({base} + n, 'bulk {number}', true)");
                (Kind::Small, format!("SELECT {each} FROM generate_series(1, {rows}) n;"))
            }
            1..6 => {
                let (first, rows) = (100_000_000 * (1 + self.number) + self.copied, self.rng.u64(2..250));
                self.copied += rows;
                (Kind::Copy { first, rows }, format!("SELECT truth.copied({first}, {rows});{}", self.changes()))
            }
            6..9 => (Kind::Reshape, self.reshape()),
            _ => (Kind::Small, self.changes()),
        };
        Script { kind, statements }
    }

    fn large(&mut self) -> Script {
        let (base, number) = (1_000_000 * (1 + self.number), self.rng.u32(0..1_000_000));
        Script { kind: Kind::Large, statements: format!("SELECT truth.put_accounts({base}, {LARGE}, 'large {number}');") }
    }

    /// Rows before, between and after: the same transaction has events of several schemas.
    fn reshape(&mut self) -> String {
        // The lock comes first, else two of these would wait for each other every time.
        let mut script = String::from("LOCK TABLE shop.account IN ACCESS EXCLUSIVE MODE;");
        for _ in 0..self.rng.u32(1..3) {
            script.push_str(&self.changes());
            let (kind, value) =
                [("int", "'7'"), ("text", "'später'"), ("boolean", "'true'"), ("int", "NULL")][self.rng.usize(0..4)];
            let name = ["extra", "Über 1", "surplus"][self.rng.usize(0..3)];
            // Not also once before, up to a savepoint that is rolled back: PostgreSQL 15.18 was seen to describe the table without the
            // column afterwards, to whoever decodes its log.
            script.push_str(&format!("SELECT truth.reshape('{kind}', {value}, '{name}', {});", self.rng.bool()));
            script.push_str(&format!("SELECT truth.put_account({}, 'reshaped', true);", self.account()));
        }
        script + &self.changes()
    }

    /// 1 to 200 changes, mostly few, with savepoints that are released, rolled back and nested.
    fn changes(&mut self) -> String {
        let changes = match self.rng.u32(0..100) {
            0..3 => self.rng.u32(100..200),
            3..20 => self.rng.u32(10..50),
            _ => self.rng.u32(1..8),
        };
        let mut script = String::new();
        let mut depth = 0;
        for _ in 0..changes {
            match self.rng.u32(0..100) {
                0..5 => {
                    depth += 1;
                    script.push_str(&format!("SAVEPOINT s{depth};"));
                }
                5..8 if depth > 0 => {
                    script.push_str(&format!("ROLLBACK TO s{depth};"));
                }
                8..11 if depth > 0 => {
                    script.push_str(&format!("RELEASE s{depth};"));
                    depth -= 1;
                }
                _ => {}
            }
            script.push_str("SELECT truth.");
            script.push_str(&self.change());
            script.push(';');
        }
        script
    }

    fn change(&mut self) -> String {
        match self.rng.u32(0..100) {
            0..20 => {
                let from = self.rng.u64(1..=BANK_ROWS);
                let to = 1 + (from + self.rng.u64(0..BANK_ROWS - 1)) % BANK_ROWS;
                format!("transfer({from}, {to}, {})", self.rng.i64(1..100))
            }
            20..40 => {
                let active = self.rng.bool();
                let owner = if self.rng.u32(0..8) == 0 { "NULL".to_owned() } else { self.text(1, 30) };
                format!("put_account({}, {owner}, {active})", self.account())
            }
            40..46 => format!("drop_account({})", self.account()),
            46..50 => format!("move_account({}, {})", self.account(), 1_000 + self.account()),
            50..64 => {
                let note = if self.rng.bool() { "NULL".to_owned() } else { self.text(0, 60) };
                let amount = format!("{}.{:02}", self.rng.i64(-99_999..99_999), self.rng.u32(0..100));
                format!("put_order({}, {amount}, {note})", self.order())
            }
            64..68 => format!("drop_order({})", self.order()),
            68..92 => {
                let body = match self.rng.u32(0..6) {
                    0..3 => "NULL".to_owned(),
                    3 => self.text(3_000, 6_000),
                    _ => self.text(0, 60),
                };
                format!("put_text('{}', {}, {}, {body})", self.texts(), self.document(""), self.text(0, 20))
            }
            92..96 => format!("drop_text('{}', {})", self.texts(), self.document("")),
            _ => format!("move_text('{}', {}, {})", self.texts(), self.document(""), self.document(" moved")),
        }
    }

    fn texts(&mut self) -> &'static str {
        if self.rng.u32(0..3) == 0 { "journal" } else { "document" }
    }

    /// A third of all changes hits keys that every writer wants.
    fn owner(&mut self) -> u64 {
        if self.rng.u32(0..3) == 0 { 0 } else { 1 + self.number }
    }

    fn account(&mut self) -> u64 {
        self.owner() * 10_000 + self.rng.u64(0..40)
    }

    fn order(&mut self) -> String {
        let owner = self.owner();
        format!("'région {owner}', 'code \"{}\" \\ '", self.rng.u32(0..40))
    }

    fn document(&mut self, suffix: &str) -> String {
        let owner = self.owner();
        format!("'Dok 🚲 {owner}-{}{suffix}'", self.rng.u32(0..30))
    }

    /// A quoted text with characters that JSON and SQL escape; its length is in characters.
    fn text(&mut self, min: usize, max: usize) -> String {
        const LETTERS: &[char] = &['a', 'b', 'z', ' ', '0', '"', '\\', '\n', '\t', '\u{1}', '/', 'é', '€', '🚲', '\u{7f}', '<'];
        let length = self.rng.usize(min..=max);
        let text: String = (0..length).map(|_| LETTERS[self.rng.usize(0..LETTERS.len())]).collect();
        format!("'{text}'")
    }
}

impl Script {
    /// The events it stands for, once it has committed or was rolled back as wanted.
    fn run(&self, client: &mut Client, keep: bool) -> Result<u64, postgres::Error> {
        let Kind::Copy { first, rows } = self.kind else {
            return commit(client, &format!("BEGIN;{}", self.statements), keep);
        };
        client.batch_execute("BEGIN")?;
        let mut copy = client.copy_in("COPY shop.account (id, ver, owner, active) FROM STDIN")?;
        let lines: String = (first..first + rows).map(|id| format!("{id}\t1\tcopy \\t 🚲 {id}\tf\n")).collect();
        // It is the end that tells what happened to the rows.
        let sent = copy.write_all(lines.as_bytes());
        let done = copy.finish()?;
        assert!(sent.is_ok() && done == rows, "{done} of {rows} rows copied: {sent:?}");
        commit(client, &self.statements, keep)
    }
}

/// Whether the server went away.
fn is_crash(client: &Client, error: &postgres::Error) -> bool {
    client.is_closed() || error.code().is_none_or(|code| code.code().starts_with("57P"))
}

fn reconnect(server: &Config) -> Client {
    super::wait_until("the writer to reach the database again", super::PATIENCE, || {
        server.connect(NoTls).map_err(|error| error.to_string())
    })
}

/// Runs a transaction in one round trip and returns how many events it stands for; nothing of it happened after an error.
fn commit(client: &mut Client, script: &str, keep: bool) -> Result<u64, postgres::Error> {
    let end = if keep { "COMMIT" } else { "ROLLBACK" };
    let count = "SELECT count(*) FROM truth.change WHERE xid = pg_current_xact_id()::text::bigint";
    let messages = client.simple_query(&format!("{script}{count};{end};"))?;
    let last = messages.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(|value| value.parse().expect("a count")),
        _ => None,
    });
    Ok(last.expect("the count of the transaction"))
}
