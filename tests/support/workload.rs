//! A seeded workload on a real database: several writers with keys of their own and keys they fight over.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use fastrand::Rng;

use super::shop::{Client, Failure, Shop, Step};

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
    /// Committed transactions with rows in bulk.
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
            Kind::Copy => Some(&self.copies),
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
pub fn prepare(shop: &dyn Shop) {
    shop.prepare();
}

impl Workload {
    /// Opens the bank and starts the writers. The same seed gives each writer the same transactions; how they interleave is real.
    pub fn start(shop: &dyn Shop, seed: u64, writers: u64, pause: Duration) -> Self {
        let progress = Arc::new(Progress::default());
        let connect = Arc::new(shop.connect());
        let (mut client, mut events) = (connect().expect("a session"), 0);
        let opening = [Step::Call(format!("open_bank({BANK_ROWS})"))];
        client.run(&opening, true, &mut events).expect("the bank opens");
        progress.committed_events.fetch_add(events, Ordering::SeqCst);
        progress.commits.fetch_add(1, Ordering::SeqCst);
        let start = |number: u64| {
            let mut writer = Writer { rng: Rng::with_seed(seed.wrapping_mul(31).wrapping_add(number)), number, copied: 0 };
            let (connect, progress) = (Arc::clone(&connect), Arc::clone(&progress));
            std::thread::spawn(move || {
                let open = || super::wait_until("a writer to reach the database", super::PATIENCE, || connect());
                let mut client = open();
                while !progress.stop.load(Ordering::SeqCst) {
                    if progress.is_too_far_ahead() {
                        std::thread::sleep(Duration::from_millis(5));
                        continue;
                    }
                    if !writer.one_transaction(&mut *client, &progress) {
                        client = open();
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

/// A transaction: its steps, and what is special about it.
struct Script {
    kind: Kind,
    steps: Vec<Step>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Small,
    Large,
    Copy,
    Reshape,
}

impl Writer {
    /// Whether the session can be used on. After a crash nobody knows whether the transaction committed, so it is not counted.
    fn one_transaction(&mut self, client: &mut dyn Client, progress: &Progress) -> bool {
        let keep = self.rng.u32(0..100) < 88;
        let script = if progress.takes_large() { self.large() } else { self.script() };
        // What was asked for is kept.
        let keep = keep || script.kind == Kind::Large;
        let mut events = 0;
        let done = client.run(&script.steps, keep, &mut events);
        progress.committed_events.fetch_add(events, Ordering::SeqCst);
        match done {
            Ok(()) if keep => {
                if let Some(counter) = progress.counter(&script) {
                    counter.fetch_add(1, Ordering::SeqCst);
                }
                progress.commits.fetch_add(1, Ordering::SeqCst);
            }
            Ok(()) => drop(progress.rollbacks.fetch_add(1, Ordering::SeqCst)),
            Err(Failure::Deadlock) => drop(progress.deadlocks.fetch_add(1, Ordering::SeqCst)),
            Err(Failure::Gone) => return false,
        }
        true
    }

    fn script(&mut self) -> Script {
        let (kind, steps) = match self.rng.u32(0..400) {
            0 => {
                // Large enough to be published in slices.
                let (base, rows) = (1_000_000 * (1 + self.number), self.rng.u32(700..2_500));
                let owner = format!("bulk {}", self.rng.u32(0..1_000_000));
                (Kind::Small, vec![Step::Many { base, rows, owner }])
            }
            1..6 => {
                let (first, rows) = (100_000_000 * (1 + self.number) + self.copied, self.rng.u64(2..250));
                self.copied += rows;
                let mut steps = vec![Step::Copy { first, rows }];
                self.changes(&mut steps);
                (Kind::Copy, steps)
            }
            6..9 => (Kind::Reshape, self.reshape()),
            _ => {
                let mut steps = Vec::new();
                self.changes(&mut steps);
                (Kind::Small, steps)
            }
        };
        Script { kind, steps }
    }

    fn large(&mut self) -> Script {
        let (base, number) = (1_000_000 * (1 + self.number), self.rng.u32(0..1_000_000));
        Script { kind: Kind::Large, steps: vec![Step::Large { base, rows: LARGE, owner: format!("large {number}") }] }
    }

    /// Rows before, between and after: the same transaction has events of several schemas where the database allows it.
    fn reshape(&mut self) -> Vec<Step> {
        // The lock comes first, else two of these would wait for each other every time.
        let mut steps = vec![Step::Exclusive];
        for _ in 0..self.rng.u32(1..3) {
            self.changes(&mut steps);
            let (kind, value) =
                [("int", "'7'"), ("text", "'später'"), ("boolean", "'true'"), ("int", "NULL")][self.rng.usize(0..4)];
            let name = ["extra", "Über 1", "surplus"][self.rng.usize(0..3)];
            // Not also once before, up to a savepoint that is rolled back: PostgreSQL 15.18 was seen to describe the table without the
            // column afterwards, to whoever decodes its log.
            steps.push(Step::Reshape { kind, value, name, rename: self.rng.bool() });
            steps.push(Step::Call(format!("put_account({}, 'reshaped', true)", self.account())));
        }
        self.changes(&mut steps);
        steps
    }

    /// 1 to 200 changes, mostly few, with savepoints that are released, rolled back and nested.
    fn changes(&mut self, steps: &mut Vec<Step>) {
        let changes = match self.rng.u32(0..100) {
            0..3 => self.rng.u32(100..200),
            3..20 => self.rng.u32(10..50),
            _ => self.rng.u32(1..8),
        };
        let mut depth = 0;
        for _ in 0..changes {
            match self.rng.u32(0..100) {
                0..5 => {
                    depth += 1;
                    steps.push(Step::Savepoint(depth));
                }
                5..8 if depth > 0 => steps.push(Step::RollbackTo(depth)),
                8..11 if depth > 0 => {
                    steps.push(Step::Release(depth));
                    depth -= 1;
                }
                _ => {}
            }
            steps.push(Step::Call(self.change()));
        }
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
