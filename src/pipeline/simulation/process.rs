//! The course of a run: processes that crash, freeze and have rivals, beside a server that things happen to.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use fastrand::Rng;
use headwater_connector::{BackfillMode, BackfillOptions, Error, Kind};
use tokio::{task::JoinHandle, time::Sleep};

use super::{
    Lie, Variant, World, broker::Broker, checker::How, ledger::CAPTURED, log::ModelLog, server::ModelServer, source, tables::KEYS,
};
use crate::{
    config::raw::CommitOptions,
    mapping::rule::Events,
    pipeline::{
        backfill::order::{Action, Request},
        ingest::Ingest,
        supervisor::supervise,
    },
    shutdown,
};

/// Virtual time that a run may take to come to rest after its last fault (invariant I15).
const REST: Duration = Duration::from_secs(2 * 3600);

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Everything is published.
    Rest,
    /// A named stop after something that nothing else can answer.
    Lost,
}

/// Ends a process at its n-th await: drops it there, as SIGKILL would. Before that it may be frozen once, as SIGSTOP would,
/// and go on as if nothing had happened.
struct Fate<F> {
    inner: Option<Pin<Box<F>>>,
    polls_left: u32,
    /// With how many polls left it freezes, and for how long.
    freeze: Option<(u32, Duration)>,
    frozen: Option<Pin<Box<Sleep>>>,
    world: Arc<World>,
}

impl<F: Future> Fate<F> {
    fn new(world: &Arc<World>, inner: F) -> Self {
        let mut rng = world.rng();
        let polls_left = rng.u32(1..400);
        // From a moment to far beyond every timeout.
        let pause = Duration::from_millis([50, 2_000, 45_000, 90_000, 400_000][rng.usize(0..5)]);
        let freeze = (rng.u32(0..3) == 0).then(|| (rng.u32(0..polls_left), pause));
        drop(rng);
        Self { inner: Some(Box::pin(inner)), polls_left, freeze, frozen: None, world: Arc::clone(world) }
    }
}

impl<F: Future> Future for Fate<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some((at, pause)) = self.freeze
            && self.polls_left <= at
        {
            self.freeze = None;
            self.frozen = Some(Box::pin(tokio::time::sleep(pause)));
        }
        if let Some(sleep) = &mut self.frozen {
            if sleep.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.frozen = None;
            self.world.tally().thawed += 1;
        }
        if self.polls_left == 0 {
            self.inner = None;
            return Poll::Ready(None);
        }
        self.polls_left -= 1;
        let inner = self.inner.as_mut().expect("polled after completion");
        inner.as_mut().poll(context).map(Some)
    }
}

pub struct Run {
    pub world: Arc<World>,
    pub server: Arc<ModelServer>,
    pub broker: Arc<Broker>,
    events: Events,
    commit: CommitOptions,
    backfill: BackfillOptions,
    pub mode: BackfillMode,
    /// Whether rows that lack columns are read again.
    pub refreshes: bool,
    /// What the journal may hold.
    pub journal_bytes: usize,
}

impl Run {
    pub fn new(seed: u64, lie: Lie, variant: Variant) -> Self {
        fastrand::seed(seed);
        let mut rng = Rng::with_seed(seed);
        let commit = CommitOptions {
            max_bytes: [600, 4_000, 1 << 20][rng.usize(0..3)],
            max_events: [3, 20, 1_000][rng.usize(0..3)],
            linger_ms: rng.u64(0..10),
        };
        let events = Events { partitions: Some([1, 3][rng.usize(0..2)]), ..Events::default() };
        let faults = [0, 5, 30, 80][rng.usize(0..4)];
        let mode = if rng.u32(0..10) == 0 { BackfillMode::Never } else { BackfillMode::Initial };
        let backfill = BackfillOptions {
            mode,
            readers: Some(rng.usize(1..5)),
            rows_per_second: [None, None, None, Some(20)][rng.usize(0..4)],
            first: [vec![], vec!["app.items".to_owned()]][rng.usize(0..2)].clone(),
            ..BackfillOptions::default()
        };
        let world = Arc::new(World::new(Rng::with_seed(rng.u64(..)), faults, lie, variant));
        let server = Arc::new(ModelServer::generate(&mut rng, Arc::clone(&world)));
        let broker = Arc::new(Broker::new(Arc::clone(&world)));
        let refreshes = rng.bool();
        let journal_bytes = [40, 400, 32 << 20, 32 << 20][rng.usize(0..4)];
        Self { world, server, broker, events, commit, backfill, mode, refreshes, journal_bytes }
    }

    /// What the checker must know.
    pub fn how(&self, end: End) -> How {
        let asked = self.world.asked.lock().unwrap().clone();
        let partitions = self.events.partitions.unwrap_or(1);
        How { mode: self.mode, refreshes: self.refreshes, end, asked, partitions }
    }

    /// One process: its own writer id and its own memory.
    fn process(&self) -> Ingest {
        let connector = source::connector(&self.server, &self.world, (&self.backfill, self.refreshes));
        let log = Arc::new(ModelLog::new(Arc::clone(&self.world), Arc::clone(&self.broker)));
        let mut ingest = Ingest::new("shop", "headwater", connector, log, self.events.clone());
        ingest.commit = self.commit;
        ingest
    }

    /// Crashes and restarts, then a last process that runs to rest.
    pub async fn play(&mut self) -> Result<End, String> {
        let accidents = tokio::spawn(accidents(Arc::clone(&self.world), Arc::clone(&self.server)));
        let end = self.lives(&accidents).await;
        accidents.abort();
        end
    }

    async fn lives(&self, accidents: &JoinHandle<()>) -> Result<End, String> {
        let crashes = self.world.rng().u32(0..8);
        for _ in 0..crashes {
            let rivals = [0, 0, 0, 1, 1, 2][self.world.rng().usize(0..6)];
            let ends = match rivals {
                0 => vec![self.life(false).await],
                1 => {
                    let (first, second) = tokio::join!(self.life(false), self.life(true));
                    vec![first, second]
                }
                _ => {
                    let (first, second, third) = tokio::join!(self.life(false), self.life(true), self.life(true));
                    vec![first, second, third]
                }
            };
            for end in ends {
                if self.judge(end)? == Some(End::Lost) {
                    return Ok(End::Lost);
                }
            }
        }
        self.finish(accidents).await
    }

    /// A process until its end, which is sooner or later a crash. A rival comes later.
    async fn life(&self, rival: bool) -> Option<Option<Error>> {
        if rival {
            let late = Duration::from_millis(self.world.rng().u64(0..400));
            tokio::time::sleep(late).await;
        }
        let (_trigger, shutdown) = shutdown::channel();
        let process = self.process();
        let run = async {
            tokio::select! {
                biased;
                end = supervise(&process, shutdown) => end,
                never = operator(&self.world, &process) => match never {},
            }
        };
        Fate::new(&self.world, run).await
    }

    /// Whether a process may end like this.
    fn judge(&self, end: Option<Option<Error>>) -> Result<Option<End>, String> {
        match end {
            None => {
                self.world.tally().crashes += 1;
                Ok(None)
            }
            Some(Some(error)) if error.kind() == Kind::Fenced => {
                self.world.tally().fenced += 1;
                Ok(None)
            }
            Some(Some(error)) if error.kind() == Kind::Lost && self.world.harmed.load(Ordering::Relaxed) => {
                self.world.tally().lost_stops += 1;
                Ok(Some(End::Lost))
            }
            Some(other) => Err(format!("a process ended with {other:?}")),
        }
    }

    async fn finish(&self, accidents: &JoinHandle<()>) -> Result<End, String> {
        let (trigger, shutdown) = shutdown::channel();
        let process = self.process();
        let watch = async {
            let rested = tokio::time::timeout(REST, self.until_caught_up()).await;
            // Everything is published: what happens to the server from now on is not this run's any more.
            accidents.abort();
            trigger.stop();
            rested
        };
        let mut running = std::pin::pin!(async {
            tokio::select! {
                biased;
                end = supervise(&process, shutdown) => end,
                never = resume_all(&process) => match never {},
            }
        });
        let error = tokio::select! {
            biased;
            error = &mut running => error,
            rested = watch => {
                let error = running.await;
                rested.map_err(|_| format!("the run did not come to rest: {:?}", process.status.last_error()))?;
                error
            }
        };
        match error {
            None => Ok(End::Rest),
            Some(error) => {
                let end = self.judge(Some(Some(error)))?;
                end.ok_or_else(|| "the last process stood down without a rival".to_owned())
            }
        }
    }

    async fn until_caught_up(&self) {
        let is_read = || self.world.read.load(Ordering::Relaxed);
        while self.world.committed().base < self.server.end() || !is_read() || self.broker.lacks_columns() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Somebody who pauses and resumes what is read.
async fn operator(world: &World, process: &Ingest) -> Infallible {
    let count = world.rng().u32(0..5);
    for _ in 0..count {
        let pause = Duration::from_millis(world.rng().u64(0..400));
        tokio::time::sleep(pause).await;
        let table = CAPTURED[world.rng().usize(0..CAPTURED.len())];
        if world.rng().u32(0..3) == 0 {
            look_up(world, process, table).await;
            continue;
        }
        let actions = [&[Action::Pause][..], &[Action::Pause, Action::Resume], &[Action::Resume]];
        let actions = actions[world.rng().usize(0..3)];
        for action in actions {
            let done = order(process, table, *action).await;
            world.tally().orders += u64::from(done);
        }
    }
    std::future::pending().await
}

/// Asks for the rows of some keys.
async fn look_up(world: &World, process: &Ingest, table: &str) {
    let count = world.rng().usize(1..6);
    let keys: Vec<u32> = (0..count).map(|_| world.rng().u32(0..KEYS)).collect();
    let name = |key: &u32| serde_json::Map::from_iter([("id".to_owned(), (*key).into())]);
    let request = Request { table: table.to_owned(), keys: keys.iter().map(name).collect(), ..Request::default() };
    let at = CAPTURED.iter().position(|captured| *captured == table).expect("a table");
    let known = {
        let mut asked = world.asked.lock().unwrap();
        asked.extend(keys.iter().map(|key| (at, *key, false)));
        asked.len() - keys.len()..asked.len()
    };
    if put(process, request).await {
        world.asked.lock().unwrap()[known].iter_mut().for_each(|(.., is_durable)| *is_durable = true);
        world.tally().looked_up += 1;
    }
}

/// In the end nothing stays paused.
async fn resume_all(process: &Ingest) -> Infallible {
    loop {
        for table in CAPTURED {
            order(process, table, Action::Resume).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// True if the order is durable.
async fn order(process: &Ingest, table: &str, action: Action) -> bool {
    put(process, Request { table: table.to_owned(), action, ..Request::default() }).await
}

async fn put(process: &Ingest, request: Request) -> bool {
    let Ok(order) = request.order(&*process.connector).await else { return false };
    let answer = process.status.orders.put(order);
    matches!(tokio::time::timeout(Duration::from_secs(1), answer).await, Ok(Ok(Ok(()))))
}

/// What happens to the server by itself and by its operators.
async fn accidents(world: Arc<World>, server: Arc<ModelServer>) {
    let count = world.rng().u32(0..6);
    let failover_slot = world.rng().bool();
    for _ in 0..count {
        let pause = Duration::from_millis(world.rng().u64(0..1_500));
        tokio::time::sleep(pause).await;
        if failover_slot {
            server.sync_slot();
        }
        let (what, down) = {
            let mut rng = world.rng();
            (rng.u32(0..40), Duration::from_millis(rng.u64(0..3_000)))
        };
        let harm = || world.harmed.store(true, Ordering::Relaxed);
        match what {
            0..=6 => server.checkpoint(),
            7..=13 => server.store_slot(),
            14..=26 => world.tally().regressions += u64::from(server.crash(down)),
            27..=35 => {
                let lost = [0, 0, 1, 2][world.rng().usize(0..4)];
                let mut rng = world.rng().fork();
                if !server.fail_over(&mut rng, lost, down) {
                    harm();
                }
                world.tally().failovers += 1;
            }
            36 | 37 => {
                harm();
                server.advance_slot();
            }
            38 => {
                harm();
                server.drop_slot();
            }
            _ => {
                harm();
                server.drop_slot();
                server.create_slot();
            }
        }
    }
}
