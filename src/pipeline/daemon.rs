//! Owns the connectors: starts them, ends them, and obeys commands. One task decides, so that two commands never cross.

use std::{
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use headwater_connector::{Error, Result, SourceConnector};
use tokio::{
    sync::{mpsc, oneshot},
    task::{Id, JoinError, JoinSet},
};
use uuid::Uuid;

use super::{
    backfill::order::Request,
    claims::Claims,
    codes,
    handle::{ConfigView, Handle, Shared, State, Status},
    ingest::Ingest,
    now_text,
    start::record_pause,
    supervisor::supervise,
};
use crate::{
    config::{
        closest::closest,
        plan::{Plan, SourcePlan},
    },
    log::SharedLog,
    shutdown::{self, Shutdown, Trigger},
};

/// How long a pause may try to reach the log; it holds without it until the daemon ends.
const RECORD_WAIT: Duration = Duration::from_secs(5);

/// How long a request about a table may take to become durable.
const ORDER_WAIT: Duration = Duration::from_secs(30);

/// What can be done to one connector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// End in order and do nothing until resumed, also over restarts of the daemon.
    Pause,
    /// End a pause.
    Resume,
    /// End, whatever the state, and start from the checkpoint.
    Restart,
}

impl Action {
    /// By the word that commands and URLs use.
    pub fn named(word: &str) -> Option<Self> {
        match word {
            "pause" => Some(Self::Pause),
            "resume" => Some(Self::Resume),
            "restart" => Some(Self::Restart),
            _ => None,
        }
    }
}

/// The difference that new files make.
pub(super) struct Change {
    /// Every connector that there is from now on, in the order of the files.
    pub sources: Vec<SourcePlan>,
    /// When the files were read.
    pub loaded_at: String,
}

type Reply<T> = oneshot::Sender<T>;

/// What the task that owns the connectors is asked to do.
pub(super) enum Command {
    Act { connector: String, action: Action, reply: Reply<Result<Arc<Status>>> },
    Backfill { connector: String, request: Request, reply: Reply<Result<Arc<Status>>> },
    Apply { change: Change, reply: Reply<()> },
}

/// The running connectors.
pub struct Daemon {
    world: World,
    entries: Vec<Entry>,
    tasks: JoinSet<Option<Error>>,
    handle: Handle,
    commands: mpsc::Receiver<Command>,
    shutdown: Shutdown,
}

/// What all connectors of the daemon have in common.
struct World {
    prefix: String,
    log: SharedLog,
    claims: Arc<Claims>,
    writer: Uuid,
}

struct Entry {
    plan: SourcePlan,
    status: Arc<Status>,
    life: Option<Life>,
    /// What follows when the life that runs has ended; the last wish counts.
    next: Next,
    waiting: Vec<Reply<Result<Arc<Status>>>>,
    /// Why it stopped for good.
    error: Option<Error>,
}

/// A task that runs a connector.
struct Life {
    id: Id,
    trigger: Trigger,
    pausing: Arc<AtomicBool>,
}

enum Next {
    /// It ended by itself.
    Rest,
    Pause,
    Start,
    Replace(Box<SourcePlan>),
    Remove,
}

impl Daemon {
    /// Starts every connector of the plan, each in a task of its own.
    pub fn start(plan: &Plan, log: &SharedLog, shutdown: &Shutdown) -> Self {
        let (sender, commands) = mpsc::channel(16);
        let config = ConfigView { loaded_at: now_text(), errors: Vec::new() };
        let shared = Arc::new(Shared { connectors: RwLock::default(), config: RwLock::new(config) });
        let world = World { prefix: plan.prefix.clone(), log: Arc::clone(log), claims: Arc::default(), writer: Uuid::new_v4() };
        let handle = Handle { shared, commands: sender, claims: Arc::clone(&world.claims) };
        let entries = plan.sources.iter().map(Entry::new).collect();
        let mut daemon = Self { world, entries, tasks: JoinSet::new(), handle, commands, shutdown: shutdown.clone() };
        for at in 0..daemon.entries.len() {
            daemon.run(at, false);
        }
        daemon.show();
        daemon
    }

    /// For status, metrics and commands.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Obeys commands until the signal, or until every connector has ended; returns the errors of those that did not end in
    /// order. A paused connector keeps the daemon.
    pub async fn wait(mut self) -> Vec<Error> {
        let mut stopping = false;
        while !self.tasks.is_empty() || (!stopping && self.is_any_paused()) {
            tokio::select! {
                biased;
                () = self.shutdown.wait(), if !stopping => {
                    stopping = true;
                    self.entries.iter().filter_map(|entry| entry.life.as_ref()).for_each(|life| life.trigger.stop());
                }
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended, stopping),
                Some(command) = self.commands.recv(), if !stopping => self.obey(command),
            }
        }
        self.entries.into_iter().filter_map(|entry| entry.error).collect()
    }

    fn is_any_paused(&self) -> bool {
        self.entries.iter().any(|entry| entry.status.state() == super::handle::State::Paused)
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Act { connector, action, reply } => match self.find(&connector) {
                Ok(at) => {
                    self.entries[at].waiting.push(reply);
                    self.act(at, action);
                }
                // Whoever asked may have gone.
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Backfill { connector, request, reply } => match self.find(&connector) {
                Ok(at) => {
                    let (source, status) = (Arc::clone(&self.entries[at].plan.connector), Arc::clone(&self.entries[at].status));
                    // The source is asked about its tables, which may take a while: nobody else waits for that.
                    tokio::spawn(async move {
                        let done = order(&*source, &status, &request).await;
                        let _ = reply.send(done.map(|()| status));
                    });
                }
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::Apply { change, reply } => {
                self.apply(change);
                let _ = reply.send(());
            }
        }
    }

    fn act(&mut self, at: usize, action: Action) {
        let entry = &mut self.entries[at];
        tracing::info!(connector = entry.plan.name, ?action, "asked from outside");
        let paused = entry.status.state() == super::handle::State::Paused;
        match action {
            Action::Pause if paused => entry.answer(),
            Action::Pause => match &entry.life {
                Some(life) => {
                    life.pausing.store(true, Ordering::Relaxed);
                    entry.end(Next::Pause);
                }
                // It stopped by itself; the pause is only written down.
                None => self.rest(at),
            },
            Action::Resume if !paused && entry.life.is_some() && !matches!(entry.next, Next::Pause) => entry.answer(),
            Action::Resume | Action::Restart => match &entry.life {
                Some(_) => entry.end(Next::Start),
                None => {
                    self.run(at, true);
                    self.entries[at].answer();
                }
            },
        }
    }

    /// Starts the connector's task. `resumed` ends a pause that stands in the checkpoint.
    fn run(&mut self, at: usize, resumed: bool) {
        let names: Vec<String> = self.entries.iter().map(|entry| entry.plan.name.clone()).collect();
        let entry = &mut self.entries[at];
        let mut ingest = self.world.ingest(&entry.plan, &entry.status);
        ingest.others = names.into_iter().filter(|name| *name != entry.plan.name).collect();
        if resumed {
            ingest.resume();
        }
        let (trigger, shutdown) = shutdown::channel();
        let pausing = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&pausing);
        entry.error = None;
        entry.next = Next::Rest;
        let task = self.tasks.spawn(async move {
            let error = supervise(&ingest, shutdown).await;
            if flag.load(Ordering::Relaxed) {
                pause(&ingest).await;
            }
            error
        });
        entry.life = Some(Life { id: task.id(), trigger, pausing });
    }

    /// Writes the pause of a connector down that does not run.
    fn rest(&mut self, at: usize) {
        let entry = &mut self.entries[at];
        let ingest = self.world.ingest(&entry.plan, &entry.status);
        // Whoever else wrote the last checkpoint took over, and is left alone.
        ingest.own();
        let (trigger, _shutdown) = shutdown::channel();
        entry.next = Next::Pause;
        let task = self.tasks.spawn(async move {
            pause(&ingest).await;
            None
        });
        entry.life = Some(Life { id: task.id(), trigger, pausing: Arc::default() });
    }

    /// A task has ended: by itself, or because something else is to follow.
    fn ended(&mut self, ended: Result<(Id, Option<Error>), JoinError>, stopping: bool) {
        let (id, error) = match ended {
            Ok((id, error)) => (id, error),
            Err(failure) => (failure.id(), Some(panicked())),
        };
        let Some(at) = self.entries.iter().position(|entry| entry.life.as_ref().is_some_and(|life| life.id == id)) else {
            return;
        };
        let entry = &mut self.entries[at];
        entry.life = None;
        self.world.claims.release(&entry.plan.name);
        let error = error.filter(|error| error.code().id != codes::PAUSED.id);
        if let Some(error) = error.as_ref().filter(|error| error.code().id == codes::PANICKED.id) {
            entry.status.stopped(Some(error));
            tracing::error!(connector = entry.plan.name, %error, "stopped");
        }
        match std::mem::replace(&mut entry.next, Next::Rest) {
            _ if stopping => entry.error = error,
            Next::Rest => entry.error = error,
            Next::Pause => {
                entry.error = None;
                entry.status.paused();
            }
            Next::Start => self.run(at, true),
            Next::Replace(plan) => {
                entry.plan = *plan;
                entry.status.forget_source();
                self.run(at, false);
            }
            Next::Remove => {
                tracing::info!(
                    connector = entry.plan.name,
                    "removed from the config; its topics and what it made at the source stay"
                );
                self.entries.remove(at);
                self.show();
                return;
            }
        }
        self.entries[at].answer();
    }

    /// Puts the new files in force: what did not change is not touched.
    fn apply(&mut self, change: Change) {
        let Change { sources, loaded_at } = change;
        for at in (0..self.entries.len()).rev() {
            if sources.iter().any(|source| source.name == self.entries[at].plan.name) {
                continue;
            }
            match self.entries[at].life {
                Some(_) => self.entries[at].end(Next::Remove),
                None => drop(self.entries.remove(at)),
            }
        }
        let order: Vec<String> = sources.iter().map(|source| source.name.clone()).collect();
        for source in sources {
            match self.entries.iter().position(|entry| entry.plan.name == source.name) {
                None => {
                    self.entries.push(Entry::new(&source));
                    self.run(self.entries.len() - 1, false);
                }
                Some(at) if self.entries[at].plan.fingerprint == source.fingerprint => {}
                Some(at) if self.entries[at].life.is_some() => self.entries[at].end(Next::Replace(Box::new(source))),
                Some(at) => {
                    self.entries[at].plan = source;
                    self.entries[at].status.forget_source();
                    // A pause outlives a change of the options.
                    self.run(at, false);
                }
            }
        }
        let place = |entry: &Entry| order.iter().position(|name| *name == entry.plan.name).unwrap_or(usize::MAX);
        self.entries.sort_by_key(place);
        self.show();
        let mut config = self.handle.shared.config.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        *config = ConfigView { loaded_at, errors: Vec::new() };
    }

    /// Lets observers see which connectors there are.
    fn show(&self) {
        let statuses = self.entries.iter().map(|entry| Arc::clone(&entry.status)).collect();
        let mut plans = self.handle.shared.connectors.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        *plans = statuses;
    }

    fn find(&self, name: &str) -> Result<usize> {
        self.entries.iter().position(|entry| entry.plan.name == name).ok_or_else(|| {
            let error = Error::new(&codes::UNKNOWN_CONNECTOR, "no connector has this name").at("connector", name);
            error.hint(match closest(name, self.entries.iter().map(|entry| entry.plan.name.as_str())) {
                Some(close) => format!("Did you mean {close}?"),
                None => "Run `headwater status` to see the connectors.".to_owned(),
            })
        })
    }
}

impl World {
    fn ingest(&self, source: &SourcePlan, status: &Arc<Status>) -> Ingest {
        let connector = Arc::clone(&source.connector);
        let mut ingest = Ingest::new(&source.name, &self.prefix, connector, Arc::clone(&self.log), source.events.clone());
        ingest.writer = self.writer;
        ingest.claims = Arc::clone(&self.claims);
        ingest.commit = source.commit;
        ingest.status = Arc::clone(status);
        ingest
    }
}

impl Entry {
    fn new(source: &SourcePlan) -> Self {
        let status = Arc::new(Status::new(&source.name));
        Self { plan: source.clone(), status, life: None, next: Next::Rest, waiting: Vec::new(), error: None }
    }

    /// Ends the life that runs; `next` follows.
    fn end(&mut self, next: Next) {
        self.next = next;
        if let Some(life) = &self.life {
            life.trigger.stop();
        }
    }

    /// Tells everybody who waits that it is done.
    fn answer(&mut self) {
        for reply in self.waiting.drain(..) {
            drop(reply.send(Ok(Arc::clone(&self.status))));
        }
    }
}

/// Has the connector's task do what is asked about a table, and waits until that is durable.
async fn order(source: &dyn SourceConnector, status: &Status, request: &Request) -> Result<()> {
    let idle = || {
        Error::new(&codes::BACKFILL_IDLE, "the connector does not run now")
            .at("connector", status.name())
            .hint("Look at `headwater status`; give the command again when the connector streams.")
    };
    if !matches!(status.state(), State::Streaming | State::Backfilling) {
        return Err(idle());
    }
    let answer = status.orders.put(request.order(source).await?);
    tokio::time::timeout(ORDER_WAIT, answer).await.map_err(|_| idle())?.map_err(|_| idle())?
}

/// Leaves the pause in the checkpoint. A log that does not answer is no reason not to pause.
async fn pause(ingest: &Ingest) {
    let recorded = tokio::time::timeout(RECORD_WAIT, record_pause(ingest, now_text())).await;
    match recorded {
        Ok(Ok(())) => {
            tracing::info!(connector = %ingest.name, "paused; how long the source keeps its log meanwhile is shown by `headwater status`")
        }
        Ok(Err(error)) => tracing::warn!(connector = %ingest.name, %error, "paused, but only until the daemon ends"),
        Err(_) => tracing::warn!(connector = %ingest.name, "paused, but only until the daemon ends: the log does not answer"),
    }
}

fn panicked() -> Error {
    Error::new(&codes::PANICKED, "the connector's task panicked")
        .hint("Restart headwater to resume from the checkpoint, and report the log.")
}
