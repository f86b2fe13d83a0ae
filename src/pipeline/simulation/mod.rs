//! Seeded simulation: the real pipeline between models of PostgreSQL and of Kafka that fail, stall, answer late, crash,
//! fail over and outlive crashes of ours. A seed replays any run exactly:
//!
//! `HEADWATER_SEED=17 cargo test --lib simulation::one_seed -- --nocapture`
//!
//! `server` and `broker` model the servers; `source` and `log` are the small clients between them and the pipeline, and
//! carry the faults of [`Variant`]. The checker knows neither lies nor variants.

pub mod broker;
mod checker;
mod ledger;
mod log;
mod process;
mod reader;
pub mod server;
mod source;
mod tables;
mod variants;

use std::{
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use fastrand::Rng;
use headwater_connector::{Error, codes as contract};

use self::process::Run;
pub use self::server::Lsn;
use super::backfill::journal::trial;

/// Seeds in an ordinary test run.
const SEEDS: u64 = 10_000;

/// Deliberate faults of the models, each of which the checker or the traces of the real servers must catch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    None,
    /// A commit whose answer is lost keeps its events but not its checkpoint.
    TornCommit,
    /// The log lets an older writer commit.
    NoFence,
    /// Reopening skips transactions behind the position.
    ResumeTooFar,
    /// Reopening begins at the slot's place, before the position.
    ResumeTooEarly,
    /// Reopening inside a cut transaction forgets how far it was published.
    ForgetOrdinal,
    /// A crash of the server leaves the slot where it was in memory.
    SlotOnDiskAtOnce,
    /// A stream begins with the first transaction that ends behind its place.
    StartByTheEnd,
    /// A later confirmation of less moves the slot back.
    ConfirmGoesBack,
    /// Advancing a slot takes it from whoever reads it.
    AdvanceInUse,
    /// Every checkpoint of the server stores the slot.
    CheckpointStoresAll,
    /// The request that ends a transaction does not end the next one of the same producer.
    LateEndIsIgnored,
    /// Readers of committed records see aborted ones.
    AbortedIsSeen,
    /// Readers of committed records pass by an open transaction.
    OpenIsSkipped,
}

/// What Headwater would do if it had one of the faults that such programs are known to have. Each acts where the pipeline meets
/// a server, so that the pipeline itself carries no switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Sound,
    /// Asks for the stream from one byte behind the position: a commit record may begin right there.
    ResumeFromEndPlusOne,
    /// Confirms to the source what was read and not yet committed.
    ConfirmBeforeCommit,
    /// Goes on with the commit although a record was not delivered.
    IgnoreSendError,
    /// Goes on from the slot's place where that is ahead of the checkpoint.
    MaxOfPositions,
    /// Keeps a producer whose last request may still be on its way.
    NoRecycling,
    /// Stores the place of the last row inside a cut transaction, which rows of one COPY share.
    PerRowPosition,
    /// Makes a slot anew that is missing.
    RecreateSlot,
    /// Begins to count checkpoints anew.
    SeqNotStored,
    /// Commits the checkpoint after the events, in a transaction of its own.
    CheckpointOutside,
    /// Takes the writer's place without raising the epoch.
    SkipFencing,
    /// Trusts the checkpoint that was read before the predecessor was fenced.
    CheckpointBeforeFencing,
    /// Forgets that a transaction was cut.
    ForgetPartial,
    /// Counts what is published in a cut transaction, and skips as many raw messages.
    OrdinalsAfterFilter,
    /// Takes the end that readers can see for the end of the checkpoint's partition.
    ReadToTheStableEnd,
    /// Sends everything again when the answer to a commit is lost.
    ResendOnDoubt,
    /// Follows a server whose history branched off before the checkpoint.
    SkipTimelineCheck,
    /// Goes on storing the timeline of the first start after a failover was accepted.
    KeepTimeline,
    /// Publishes rows that were read before the stream has passed what they show.
    NoBarrier,
    /// Takes the end of the log for the barrier before it takes the snapshot.
    BarrierBeforeSnapshot,
    /// Reads rows although a snapshot may not see what is before the first position.
    NoGate,
    /// Asks for the gate at the first start only: what an earlier life published may not be visible.
    NoGateAfterRestart,
    /// Drops only rows whose keys came behind the low watermark in the log, as the well-known window does.
    LogOrder,
    /// Forgets which transactions a snapshot does not see.
    ForgetJournal,
    /// Commits rows first, and how far the table is read in a transaction of its own.
    ProgressOutside,
    /// As above, the other way round.
    ProgressFirst,
    /// Takes the snapshot before the table is locked.
    SnapshotBeforeLock,
    /// Forgets at each start which rows lack columns.
    ForgetPending,
    /// Answers a look-up with some of the keys as if it were all.
    KeysCutShort,
    /// As above, of rows that lack columns.
    RefreshCutShort,
    /// Takes a key that a look-up does not see for one that the table does not have.
    BuryUnseen,
    /// Forgets keys for which the journal has no room.
    OverflowForgets,
}

/// A place in the source: everything before `base` is published, and of the transaction behind it what `partial` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub base: Lsn,
    /// Transaction, its commit record, raw messages that are published, place of the last of them.
    pub partial: Option<[u64; 4]>,
}

/// What happened in a run, to show that faults were really met.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    crashes: u64,
    fenced: u64,
    thawed: u64,
    lost_answers: u64,
    twins: u64,
    timeouts: u64,
    partial_resumes: u64,
    orphans: u64,
    regressions: u64,
    failovers: u64,
    lost_stops: u64,
    chunks: u64,
    /// Chunks that did not see everything that was in the log.
    gaps: u64,
    gates: u64,
    rewrites: u64,
    reader_faults: u64,
    rows: u64,
    orders: u64,
    /// Rows that were published whole after they lacked something.
    refreshed: u64,
    /// Look-ups of keys.
    looked_up: u64,
    /// Tables that were emptied, and keys that got a tombstone after it.
    truncates: u64,
    buried: u64,
}

impl Tally {
    fn fields(&mut self) -> [&mut u64; 22] {
        let Self { crashes, fenced, thawed, lost_answers, twins, timeouts, .. } = self;
        let Self { partial_resumes, orphans, regressions, failovers, lost_stops, .. } = self;
        let Self { chunks, gaps, gates, rewrites, reader_faults, rows, orders, refreshed, looked_up, .. } = self;
        let Self { truncates, buried, .. } = self;
        [
            crashes,
            fenced,
            thawed,
            lost_answers,
            twins,
            timeouts,
            partial_resumes,
            orphans,
            regressions,
            failovers,
            lost_stops,
            chunks,
            gaps,
            gates,
            rewrites,
            reader_faults,
            rows,
            orders,
            refreshed,
            looked_up,
            truncates,
            buried,
        ]
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, mut other: Self) {
        for (total, one) in self.fields().into_iter().zip(other.fields()) {
            *total += *one;
        }
    }
}

/// What the models of one run share: a stream of chance, how likely things go wrong, and what an observer of all sees.
pub struct World {
    rng: Mutex<Rng>,
    /// Chance of a fault at each opportunity, in thousandths.
    faults: u32,
    lie: Lie,
    variant: Variant,
    tally: Mutex<Tally>,
    committed: Mutex<Place>,
    violation: Mutex<Option<String>>,
    /// Somebody did what only a named stop can answer.
    harmed: AtomicBool,
    /// All tables are read, says the newest state that is committed in the log.
    read: AtomicBool,
    /// Keys that an operator asked for: table, key, and whether that is durable.
    asked: Mutex<Vec<(usize, u32, bool)>>,
}

impl World {
    pub fn new(rng: Rng, faults: u32, lie: Lie, variant: Variant) -> Self {
        Self {
            rng: Mutex::new(rng),
            faults,
            lie,
            variant,
            tally: Mutex::default(),
            committed: Mutex::default(),
            violation: Mutex::default(),
            harmed: AtomicBool::new(false),
            read: AtomicBool::new(false),
            asked: Mutex::default(),
        }
    }

    fn rng(&self) -> MutexGuard<'_, Rng> {
        self.rng.lock().unwrap()
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap()
    }

    /// The newest place that is committed in the log.
    fn committed(&self) -> Place {
        *self.committed.lock().unwrap()
    }

    pub fn set_committed(&self, place: Place) {
        *self.committed.lock().unwrap() = place;
    }

    /// An invariant that can only be seen while it breaks; the first one is kept.
    fn violation(&self, what: String) {
        self.violation.lock().unwrap().get_or_insert(what);
    }

    /// True with the world's chance of a fault.
    fn fault(&self) -> bool {
        self.rng().u32(0..1000) < self.faults
    }

    async fn delay(&self) {
        let micros = self.rng().u64(0..20_000);
        if !micros.is_multiple_of(3) {
            tokio::time::sleep(Duration::from_micros(micros)).await;
        }
    }

    /// Waits a little, then perhaps fails as a network does.
    async fn network(&self, what: &str) -> Result<(), Error> {
        self.delay().await;
        if self.fault() {
            return Err(Error::new(&contract::CONNECTION_LOST, format!("{what} failed")));
        }
        Ok(())
    }
}

fn simulate(seed: u64, lie: Lie, variant: Variant) -> Result<Tally, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let mut run = Run::new(seed, lie, variant);
    trial::LIMIT.set(run.journal_bytes);
    trial::FORGETS.set(variant == Variant::OverflowForgets);
    let end = runtime.block_on(run.play())?;
    if let Some(violation) = run.world.violation.lock().unwrap().take() {
        return Err(violation);
    }
    let found = checker::check(&run.server, &run.broker, &run.how(end))?;
    run.world.tally().rows += found.rows;
    let mut tally = run.world.tally();
    tally.refreshed += found.refreshed;
    tally.truncates += found.truncates;
    tally.buried += found.buried;
    drop(tally);
    Ok(*run.world.tally())
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let first = number("HEADWATER_FIRST_SEED").unwrap_or(0);
    first..first + number("HEADWATER_SEEDS").unwrap_or(SEEDS)
}

/// Runs `work` on each number until one gives something, on all cores. The result of the smallest such number.
fn search<T: Send>(numbers: std::ops::Range<u64>, work: impl Fn(u64) -> Option<T> + Sync) -> Option<(u64, T)> {
    let next = AtomicU64::new(numbers.start);
    let found = Mutex::new(None::<(u64, T)>);
    let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= numbers.end || found.lock().unwrap().as_ref().is_some_and(|(found, _)| *found < number) {
                        return;
                    }
                    if let Some(result) = work(number) {
                        let mut found = found.lock().unwrap();
                        if found.as_ref().is_none_or(|(found, _)| number < *found) {
                            *found = Some((number, result));
                        }
                    }
                }
            });
        }
    });
    found.into_inner().unwrap()
}

#[test]
fn every_seed_publishes_each_change_once_and_in_order() {
    let total = Mutex::new(Tally::default());
    let began = std::time::Instant::now();
    let failed = search(seeds(), |seed| match simulate(seed, Lie::None, Variant::Sound) {
        Ok(tally) => {
            *total.lock().unwrap() += tally;
            None
        }
        Err(fault) => Some(fault),
    });
    if let Some((seed, fault)) = failed {
        panic!("seed {seed}: {fault}\nreplay: HEADWATER_SEED={seed} cargo test --lib simulation::one_seed");
    }
    let mut tally = *total.lock().unwrap();
    let (count, took) = (seeds().count(), began.elapsed().as_secs_f64());
    println!("{count} seeds in {took:.0} s, {:.0} per second: {tally:?}", count as f64 / took);
    // A run that met none of its faults proves nothing.
    let text = format!("{tally:?}");
    assert!(tally.fields().into_iter().all(|count| *count > 0), "{text}");
}

#[test]
fn one_seed() {
    let seed = std::env::var("HEADWATER_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let tally = simulate(seed, Lie::None, Variant::Sound).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
    println!("seed {seed}: {tally:?}");
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..40 {
        let play = || simulate(seed, Lie::None, Variant::Sound).map(|tally| format!("{tally:?}"));
        assert_eq!(play(), play(), "seed {seed}");
    }
}
