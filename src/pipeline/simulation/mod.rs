//! Seeded simulation: the real pipeline between a model source and a model log that fail, stall, lie about answers and
//! outlive crashes. A seed replays any run exactly:
//!
//! `HEADWATER_SEED=17 cargo test --lib simulation::one_seed -- --nocapture`

mod checker;
mod database;
mod model_log;

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};

use fastrand::Rng;
use headwater_connector::{Error, Kind, codes as contract};

use self::{database::ModelDatabase, model_log::ModelLog};
use super::{ingest::Ingest, supervisor::supervise};
use crate::{
    config::raw::CommitOptions,
    mapping::rule::Events,
    shutdown::{self, Shutdown},
};

/// Seeds in an ordinary test run.
const SEEDS: u64 = 2_500;

/// Virtual time that a run may take to come to rest after its last fault (invariant I15).
const REST: Duration = Duration::from_secs(3600);

/// Deliberate faults of the models, each of which the checker must catch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    None,
    /// A commit whose answer is lost keeps its events but not its checkpoint.
    TornCommit,
    /// The log lets an older writer commit.
    NoFence,
    /// Reopening skips the transaction behind the position.
    ResumeTooFar,
    /// Reopening begins at the transaction before the position.
    ResumeTooEarly,
    /// Reopening inside a cut transaction forgets how far it was published.
    ForgetOrdinal,
}

/// What models share: one stream of chance, and how likely things go wrong.
struct World {
    rng: Mutex<Rng>,
    /// Chance of a fault at each opportunity, in thousandths.
    faults: u32,
    lie: Lie,
}

impl World {
    fn rng(&self) -> MutexGuard<'_, Rng> {
        self.rng.lock().unwrap()
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

/// Ends a process at its n-th await: drops it there, as SIGKILL would.
struct DropAfter<F> {
    inner: Option<Pin<Box<F>>>,
    polls_left: u32,
}

impl<F: Future> Future for DropAfter<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls_left == 0 {
            self.inner = None;
            return Poll::Ready(None);
        }
        self.polls_left -= 1;
        let inner = self.inner.as_mut().expect("polled after completion");
        inner.as_mut().poll(context).map(Some)
    }
}

/// What happened in a run, to show that faults were really met.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    crashes: u64,
    fenced: u64,
    lost_answers: u64,
    partial_resumes: u64,
    orphans: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.crashes += other.crashes;
        self.fenced += other.fenced;
        self.lost_answers += other.lost_answers;
        self.partial_resumes += other.partial_resumes;
        self.orphans += other.orphans;
    }
}

struct Run {
    world: Arc<World>,
    database: Arc<ModelDatabase>,
    log: Arc<ModelLog>,
    events: Events,
    commit: CommitOptions,
    tally: Tally,
}

impl Run {
    fn new(seed: u64, lie: Lie) -> Self {
        fastrand::seed(seed);
        let mut rng = Rng::with_seed(seed);
        let commit = CommitOptions {
            max_bytes: [600, 4_000, 1 << 20][rng.usize(0..3)],
            max_events: [3, 20, 1_000][rng.usize(0..3)],
            linger_ms: rng.u64(0..10),
        };
        let events = Events { partitions: Some([1, 3][rng.usize(0..2)]), ..Events::default() };
        let faults = [0, 5, 30, 120][rng.usize(0..4)];
        let database = ModelDatabase::generate(&mut rng);
        let world = Arc::new(World { rng: Mutex::new(rng), faults, lie });
        Self {
            database: Arc::new(database),
            log: Arc::new(ModelLog::new(Arc::clone(&world))),
            world,
            events,
            commit,
            tally: Tally::default(),
        }
    }

    /// One process: its own writer id and its own memory.
    fn process(&self) -> Ingest {
        let connector = database::connector(&self.database, &self.world);
        let log: Arc<dyn crate::log::Log> = self.log.clone();
        let mut ingest = Ingest::new("shop", "headwater", connector, log, self.events.clone());
        ingest.commit = self.commit;
        ingest
    }

    /// Crashes and restarts, then a last process that runs to rest.
    async fn play(&mut self) -> Result<(), String> {
        let crashes = self.world.rng().u32(0..8);
        for _ in 0..crashes {
            let polls = self.world.rng().u32(1..400);
            let (trigger, shutdown) = shutdown::channel();
            let process = self.process();
            let dying = DropAfter { inner: Some(Box::pin(supervise(&process, shutdown))), polls_left: polls };
            let rival = self.world.rng().u32(0..4) == 0;
            let ended = if rival { self.with_rival(dying).await } else { dying.await };
            drop(trigger);
            match ended {
                None => self.tally.crashes += 1,
                Some(Some(error)) if error.kind() == Kind::Fenced => self.tally.fenced += 1,
                Some(other) => return Err(format!("a process ended with {other:?}")),
            }
        }
        self.finish().await
    }

    /// A second daemon of the same name beside the first; it dies too.
    async fn with_rival(&self, first: impl Future<Output = Option<Option<Error>>>) -> Option<Option<Error>> {
        let polls = self.world.rng().u32(1..400);
        let (_trigger, shutdown) = shutdown::channel();
        let process = self.process();
        let second = async {
            self.world.delay().await;
            DropAfter { inner: Some(Box::pin(supervise(&process, shutdown))), polls_left: polls }.await
        };
        tokio::join!(first, second).0
    }

    async fn finish(&mut self) -> Result<(), String> {
        let (trigger, shutdown) = shutdown::channel();
        let process = self.process();
        let running = supervise(&process, shutdown.clone());
        let rest = tokio::time::timeout(REST, self.until_caught_up(shutdown));
        let stop = async {
            let rested = rest.await;
            trigger.stop();
            rested.map_err(|_| format!("the run did not come to rest: {:?}", process.status.last_error()))
        };
        let (error, rested) = tokio::join!(running, stop);
        rested?;
        if let Some(error) = error {
            return Err(format!("the last process ended with {error}"));
        }
        Ok(())
    }

    async fn until_caught_up(&self, _shutdown: Shutdown) {
        while !checker::caught_up(&self.database, &self.log) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn simulate(seed: u64, lie: Lie) -> Result<Tally, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let mut run = Run::new(seed, lie);
    runtime.block_on(run.play())?;
    checker::check(&run.database, &run.log)?;
    let mut tally = run.tally;
    tally.lost_answers = run.log.lost_answers();
    tally.partial_resumes = run.database.partial_resumes();
    tally.orphans = run.database.orphans();
    Ok(tally)
}

fn seeds() -> u64 {
    std::env::var("HEADWATER_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS)
}

#[test]
fn every_seed_publishes_each_change_once_and_in_order() {
    let mut tally = Tally::default();
    for seed in 0..seeds() {
        match simulate(seed, Lie::None) {
            Ok(one) => tally += one,
            Err(fault) => panic!("seed {seed}: {fault}\nreplay: HEADWATER_SEED={seed} cargo test --lib simulation::one_seed"),
        }
    }
    println!("{} seeds: {tally:?}", seeds());
    // A run that met none of its faults proves nothing.
    assert!(tally.crashes > 0 && tally.fenced > 0 && tally.lost_answers > 0, "{tally:?}");
    assert!(tally.partial_resumes > 0 && tally.orphans > 0, "{tally:?}");
}

#[test]
fn one_seed() {
    let seed = std::env::var("HEADWATER_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let tally = simulate(seed, Lie::None).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
    println!("seed {seed}: {tally:?}");
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..20 {
        let once = simulate(seed, Lie::None).map(|tally| format!("{tally:?}"));
        assert_eq!(once, simulate(seed, Lie::None).map(|tally| format!("{tally:?}")), "seed {seed}");
    }
}

#[test]
fn every_lie_of_a_model_is_caught() {
    for lie in [Lie::TornCommit, Lie::NoFence, Lie::ResumeTooFar, Lie::ResumeTooEarly, Lie::ForgetOrdinal] {
        // A model's own assertion, for example about the slot, counts as caught too.
        let caught = (0..500).any(|seed| !matches!(std::panic::catch_unwind(|| simulate(seed, lie)), Ok(Ok(_))));
        assert!(caught, "{lie:?} went unnoticed in 500 seeds");
    }
}
