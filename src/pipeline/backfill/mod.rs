//! Rows that are there already: read in chunks beside the stream, published between two of its transactions.
//!
//! [`journal`] remembers which keys recent transactions touched, [`run`] what is still to be read of each table, [`desk`] has the sessions
//! that read, [`pace`] says when. This module decides: a chunk is published once the stream has passed its barrier, without the rows
//! whose key a transaction touched that the chunk did not see; rows, progress and checkpoint go in one log transaction.

pub mod desk;
pub mod hot;
pub mod journal;
pub mod order;
pub mod pace;
pub mod publish;
pub mod reconcile;
pub mod refresh;
pub mod run;
pub mod view;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use headwater_connector::{BackfillMode, BackfillOptions, Batch, ChunkRead, Error, Gate, Limits, Result, Schema, Snapshot};
use tokio::{task::JoinSet, time::Instant};

use self::{
    desk::{Answer, Desk, Job, Outcome, ReadyChunk},
    journal::Journal,
    pace::Pace,
    reconcile::{Found, Search},
    refresh::Refresh,
    run::Run,
    view::BackfillView,
};
use super::{
    handle::{ErrorView, Status},
    ingest::Ingest,
    start::Progress,
};
use crate::{
    log::{
        SharedLog,
        checkpoint::{BackfillState, KeyRange, TableBackfill},
        topic::InternalTopics,
    },
    mapping::{Encoder, Place, Routes},
};

/// How long the stream may be waited for while chunks are on their way.
const GLANCE: Duration = Duration::from_millis(5);
/// How long while nothing is to be read because of a limit.
const DOZE: Duration = Duration::from_millis(50);
/// How often the guard looks how far the stream is behind.
const GUARD_EVERY: Duration = Duration::from_secs(2);
/// What stands for a lag that nobody knows.
const UNKNOWN: u64 = u64::MAX;
/// Pause before a gate is tried again, or a session that broke.
const AGAIN: Duration = Duration::from_millis(250);

/// Puts the tables that are captured now into the list: new ones are to be read if the options say so; what is not captured any more
/// is forgotten, so that it begins anew if it ever comes back.
///
/// Of the topics that `existed` before, keys that the table does not have are buried in the end. `place` is that of the next log transaction.
pub fn enlist(
    backfills: &mut BTreeMap<String, TableBackfill>,
    mode: BackfillMode,
    routes: &Routes,
    existed: &HashSet<String>,
    (is_first_start, place): (bool, Place),
) {
    // A checkpoint of a version that did not read rows knows no table; its tables stay as they are.
    let is_old = !is_first_start && backfills.is_empty();
    backfills.retain(|table, _| routes.get(table).is_some());
    for route in routes.iter() {
        backfills.entry(route.table.clone()).or_insert_with(|| match mode {
            BackfillMode::Initial if !is_old && route.readable => TableBackfill {
                estimated: route.estimated_rows,
                reconcile: existed.contains(&route.topic).then_some((place.era, place.seq)),
                ..fresh()
            },
            _ => TableBackfill::default(),
        });
    }
}

/// A table of which everything is to be read.
pub fn fresh() -> TableBackfill {
    TableBackfill { state: BackfillState::Running, ranges: vec![KeyRange::default()], ..TableBackfill::default() }
}

/// Whether something is to be read.
pub fn is_open(backfills: &BTreeMap<String, TableBackfill>) -> bool {
    backfills.values().any(|table| table.state == BackfillState::Running)
}

/// What must be visible before the first chunk.
enum Door {
    /// Nobody has asked yet.
    Closed,
    /// Somebody asks.
    Asked,
    /// It is known, and no chunk has passed it.
    Known(Gate),
    /// A snapshot has passed it, and so will every later one.
    Open,
}

/// See the module's page.
pub struct Backfill {
    options: BackfillOptions,
    journal: Journal,
    runs: BTreeMap<String, Run>,
    desk: Desk,
    door: Door,
    ready: VecDeque<ReadyChunk>,
    /// The newest snapshot that is known, for chunks that are asked for from now on.
    newest: Option<Arc<dyn Snapshot>>,
    pace: Pace,
    /// What the gate waits for.
    waiting: Option<String>,
    errors: BTreeMap<String, Error>,
    /// What of all this status knows.
    shown: (bool, Option<String>, usize),
    tickets: run::Ticket,
    /// How often the gate was needed anew.
    questions: u64,
    status: Arc<Status>,
    log: SharedLog,
    /// Tables of which nothing is left to be done.
    finished: Vec<String>,
    /// Tables that were truncated by what was encoded last.
    truncated: BTreeSet<String>,
    /// Rows whose newest event lacks columns, if they are to be read again.
    refresh: Option<Refresh>,
    refresh_topic: String,
    /// Whether they should be, and the first one has come while the topic that names them does not exist.
    refreshes: bool,
    lacks_topic: bool,
    /// Tables of which more rows lack columns than are remembered.
    overflowed: BTreeSet<String>,
    /// Bytes that the stream is behind, as the guard saw it last.
    lag: Arc<AtomicU64>,
    guard: JoinSet<()>,
    began: Instant,
    /// Rows read by table since then.
    read: BTreeMap<String, u64>,
}

impl Backfill {
    /// For a connector that has just opened its source: the journal begins now, so the gate is asked for anew.
    pub fn new(ingest: &Ingest, progress: &Progress, encoder: &Encoder, refresh: Option<Refresh>) -> Self {
        let connector = Arc::clone(&ingest.connector);
        let options = connector.backfill();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let readers = options.readers.unwrap_or(cores.min(4));
        let mut backfill = Self {
            pace: Pace::new(&options),
            desk: Desk::new(connector, readers),
            options,
            journal: Journal::default(),
            runs: BTreeMap::new(),
            door: Door::Closed,
            ready: VecDeque::new(),
            newest: None,
            waiting: None,
            errors: BTreeMap::new(),
            shown: (false, None, 0),
            tickets: 0,
            questions: 0,
            status: Arc::clone(&ingest.status),
            log: Arc::clone(&ingest.log),
            finished: Vec::new(),
            truncated: BTreeSet::new(),
            refresh,
            refreshes: ingest.connector.refreshes(),
            lacks_topic: false,
            refresh_topic: InternalTopics::new(&ingest.prefix, &ingest.name).refresh,
            overflowed: BTreeSet::new(),
            lag: Arc::new(AtomicU64::new(UNKNOWN)),
            guard: JoinSet::new(),
            began: Instant::now(),
            read: BTreeMap::new(),
        };
        backfill.take_up(&progress.backfills, encoder);
        backfill
    }

    /// Begins to read what is open and not being read yet, and lets go of what is not open any more.
    pub fn take_up(&mut self, backfills: &BTreeMap<String, TableBackfill>, encoder: &Encoder) {
        self.runs.retain(|table, _| backfills.get(table).is_some_and(|known| known.state == BackfillState::Running));
        // A chunk of a run that ended is not one of the next run's: what resumes begins behind what was published.
        self.drop_strays();
        if !self.is_active() {
            // Nothing is remembered while nothing is read.
            self.journal = Journal::default();
        }
        for (table, known) in backfills.iter().filter(|(_, known)| known.state == BackfillState::Running) {
            let Some(topic) = encoder.topic_of(table) else { continue };
            if self.journal.begin(topic) {
                // What was published of it until now is not remembered.
                self.door = Door::Closed;
                self.questions += 1;
            }
            let errors = &mut self.errors;
            self.runs.entry(table.clone()).or_insert_with(|| {
                errors.remove(table);
                let mut run = Run::new(topic, known);
                if known.ranges.is_empty() && known.reconcile.is_some() {
                    run.begin_burial();
                }
                run
            });
        }
    }

    /// Drops chunks that nobody expects any more, and ends that are none.
    fn drop_strays(&mut self) {
        let (runs, refresh) = (&self.runs, &self.refresh);
        self.ready.retain(|chunk| {
            runs.get(&chunk.table).is_some_and(|run| run.expects_ready(chunk.ticket))
                || refresh.as_ref().is_some_and(|refresh| refresh.expects(chunk.ticket))
        });
        self.finished.retain(|table| runs.get(table).is_some_and(Run::is_buried));
    }

    /// Whether something is being read or to be read.
    pub fn is_active(&self) -> bool {
        !self.runs.is_empty() || self.refresh.as_ref().is_some_and(Refresh::is_active)
    }

    /// How long the next batch of the stream may be waited for.
    pub fn patience(&self, limits: Limits) -> Limits {
        let max_wait = match () {
            () if !self.is_active() => return limits,
            () if self.ready.len() > 1 => Duration::ZERO,
            () if self.desk.is_busy() || !self.ready.is_empty() => GLANCE,
            () => DOZE,
        };
        Limits { max_wait: max_wait.min(limits.max_wait), ..limits }
    }

    /// Takes what readers have finished and gives them more to do. Never waits.
    pub fn turn(&mut self, backfills: &BTreeMap<String, TableBackfill>, encoder: &Encoder) {
        if let Some(refresh) = &mut self.refresh {
            refresh.tidy();
            for topic in refresh.topics() {
                if self.journal.begin(topic) {
                    self.door = Door::Closed;
                    self.questions += 1;
                }
            }
        }
        if !self.is_active() {
            if self.journal.is_kept() {
                self.journal = Journal::default();
                self.desk.rest();
                self.ready.clear();
                self.guard.abort_all();
            }
            return;
        }
        self.watch_lag();
        while let Some(answer) = self.desk.next_answer() {
            self.take(answer);
        }
        self.pace.note_lag(Some(self.lag.load(Ordering::Relaxed)).filter(|lag| *lag != UNKNOWN));
        match self.door {
            Door::Closed if self.desk.start(Job::Gate(self.questions)) => self.door = Door::Asked,
            Door::Closed | Door::Asked => {}
            Door::Known(_) | Door::Open => {
                self.search(backfills, encoder);
                self.dispatch(backfills);
            }
        }
        let standing = (self.pace.is_held(), self.waiting.clone(), self.errors.len());
        if standing != self.shown {
            self.shown = standing;
            self.status.backfill_waits(&self.views(backfills));
        }
    }

    /// Looks for keys in topics whose tables are read.
    fn search(&mut self, backfills: &BTreeMap<String, TableBackfill>, encoder: &Encoder) {
        for (table, run) in &mut self.runs {
            if run.is_buried() && !self.finished.contains(table) {
                self.finished.push(table.clone());
            }
            let since = backfills.get(table).and_then(|known| known.reconcile);
            let (Some(place), Some(since)) = (run.next_search(), since) else { continue };
            let Some((topic, partitions)) = encoder.topic_named(table) else { continue };
            let search = Search { log: Arc::clone(&self.log), topic, partitions, since, place };
            let job = Job::Search(table.clone(), search);
            if self.desk.start(job.clone()) {
                run.begin(&job, None);
            }
        }
    }

    /// Asks from the side how far the stream is behind: what is read may be what holds it up.
    fn watch_lag(&mut self) {
        while self.guard.try_join_next().is_some() {}
        if !self.guard.is_empty() {
            return;
        }
        let (status, lag) = (Arc::clone(&self.status), Arc::clone(&self.lag));
        self.guard.spawn(async move {
            loop {
                tokio::time::sleep(GUARD_EVERY).await;
                lag.store(status.lag_bytes().await.unwrap_or(UNKNOWN), Ordering::Relaxed);
            }
        });
    }

    /// Every table as status shows it.
    pub fn views(&self, backfills: &BTreeMap<String, TableBackfill>) -> Vec<BackfillView> {
        let seconds = self.began.elapsed().as_secs_f64();
        let turns = self.in_turn(backfills);
        let view = |(table, known): (&String, &TableBackfill)| {
            let rows = self.read.get(table).copied().unwrap_or(0);
            let mut view = BackfillView::new(table, known).at_rate(rows, seconds);
            if known.state == BackfillState::Running {
                view.turn = turns.iter().position(|turn| turn == table).map(|place| place + 1);
                view.waiting = match () {
                    () if self.pace.is_held() => Some("the stream to catch up".to_owned()),
                    () => self.waiting.clone(),
                };
                view.error = self.errors.get(table).map(ErrorView::from);
            }
            view
        };
        backfills.iter().map(view).collect()
    }

    /// The tables that are to be read, in the order in which they are: what somebody asked for, the config, the name.
    fn in_turn<'a>(&self, backfills: &'a BTreeMap<String, TableBackfill>) -> Vec<&'a str> {
        let place = |table: &str| self.options.first.iter().position(|first| first == table).unwrap_or(usize::MAX);
        let open = backfills.iter().filter(|(_, known)| known.state == BackfillState::Running);
        let mut tables: Vec<_> = open.map(|(table, known)| (Reverse(known.first), place(table), table.as_str())).collect();
        tables.sort_unstable();
        tables.into_iter().map(|(_, _, table)| table).collect()
    }

    fn dispatch(&mut self, backfills: &BTreeMap<String, TableBackfill>) {
        let floor = self.newest.clone();
        while self.desk.has_room(self.ready.len())
            && let Some(job) = self.refresh.as_mut().and_then(|refresh| refresh.next_job(self.tickets + 1, floor.as_ref()))
        {
            self.tickets += 1;
            let job = self.within_limits(job);
            self.desk.start(job);
        }
        let tables = self.in_turn(backfills);
        while self.pace.allows() && self.desk.has_room(self.ready.len()) && (self.desk.is_short() || !self.pace.is_limited()) {
            let next = tables
                .iter()
                .find_map(|table| self.runs.get(*table)?.next_job(table, self.tickets + 1))
                .map(|job| self.within_limits(job));
            let Some(job) = next else { return };
            self.tickets += 1;
            let name = job.table().to_owned();
            let floor = self.newest.clone();
            if let Some(run) = self.runs.get_mut(&name) {
                run.begin(&job, floor);
            }
            self.desk.start(job);
        }
    }

    fn within_limits(&self, mut job: Job) -> Job {
        if let Job::Chunk(request, _) = &mut job {
            if request.keys.is_none() {
                // Of keys that are looked up all are wanted: one that is left out would seem to be gone.
                request.max_rows = request.max_rows.min(self.pace.most_rows());
            }
            if let Door::Known(gate) = &self.door {
                request.gate = Some(Arc::clone(gate));
            }
        }
        job
    }

    fn take(&mut self, answer: Answer) {
        let Answer { job, outcome } = answer;
        let table = job.table().to_owned();
        match outcome {
            Outcome::Gate(_) if !matches!(job, Job::Gate(question) if question == self.questions) => {}
            Outcome::Gate(Ok(gate)) => self.door = Door::Known(gate),
            Outcome::Gate(Err(error)) => {
                tracing::warn!(%error, "the gate of a backfill could not be asked for; trying again");
                self.door = Door::Closed;
                self.pace.rest(AGAIN);
            }
            Outcome::Split(bounds) => {
                if let Some(run) = self.runs.get_mut(&table) {
                    run.split(bounds.unwrap_or_default());
                }
            }
            Outcome::Search(found) => self.found(&table, found),
            Outcome::Chunk { read, batch, took } => {
                let Job::Chunk(request, ticket) = job else { return };
                let is_refresh = self.refresh.as_ref().is_some_and(|refresh| refresh.expects(ticket));
                if is_refresh {
                    return self.refreshed(&table, ticket, (request.gate, read, *batch));
                }
                let Some(run) = self.runs.get_mut(&table) else { return };
                if !run.expects(ticket) {
                    return;
                }
                match read {
                    Ok(ChunkRead::Rows(chunk)) => {
                        self.pass(request.gate.as_ref());
                        let Some(run) = self.runs.get_mut(&table) else { return };
                        self.errors.remove(&table);
                        self.newest = Some(Arc::clone(&chunk.seen));
                        self.pace.read(batch.changes().len(), batch.size_bytes(), took);
                        run.arrived(ticket, &chunk, batch.changes().len(), took);
                        self.ready.push_back(ReadyChunk { table, ticket, chunk, batch: *batch });
                    }
                    Ok(ChunkRead::Waiting(what)) => {
                        run.failed(ticket);
                        self.waiting = Some(what);
                        self.pace.rest(AGAIN);
                    }
                    Err(error) => self.refused(&table, ticket, request.max_rows, error),
                }
            }
        }
    }

    /// A chunk has passed the gate that it was asked for with; one that was asked for before says nothing about it.
    fn pass(&mut self, passed: Option<&Gate>) {
        if let (Door::Known(gate), Some(passed)) = (&self.door, passed)
            && Arc::ptr_eq(gate, passed)
        {
            self.door = Door::Open;
        }
        self.waiting = None;
    }

    /// Rows were looked up that lack columns in their topic.
    fn refreshed(&mut self, table: &str, ticket: run::Ticket, (gate, read, batch): (Option<Gate>, Result<ChunkRead>, Batch)) {
        match read {
            Ok(ChunkRead::Rows(chunk)) => {
                self.pass(gate.as_ref());
                self.newest = Some(Arc::clone(&chunk.seen));
                return self.ready.push_back(ReadyChunk { table: table.to_owned(), ticket, chunk, batch });
            }
            Ok(ChunkRead::Waiting(what)) => self.waiting = Some(what),
            Err(error) => tracing::warn!(table, %error, "rows that lack columns in their topic could not be read; trying again"),
        }
        if let Some(refresh) = &mut self.refresh {
            refresh.again(ticket);
        }
    }

    /// The topic was searched: what was found is looked up in the table.
    fn found(&mut self, table: &str, found: Result<(Found, Option<Arc<Schema>>)>) {
        let Some(run) = self.runs.get_mut(table) else { return };
        let (found, schema) = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(table, %error, "the topic could not be searched for keys that the table lacks; trying again");
                run.found(None);
                return self.pace.rest(AGAIN);
            }
        };
        let next = found.next;
        let mut candidates = Vec::with_capacity(found.keys.len());
        let mut unknown = 0;
        for key in found.keys {
            let cursor = schema.as_ref().and_then(|schema| order::cursor(schema, &serde_json::from_slice(&key).ok()?, 0).ok());
            match cursor {
                Some(cursor) => candidates.push((key, cursor)),
                None => unknown += 1,
            }
        }
        if unknown > 0 {
            tracing::warn!(table, keys = unknown, "keys of the topic cannot be looked up in the table; they stay as they are");
        }
        run.found(Some((candidates, next)));
    }

    /// A chunk could not be read. What may pass is tried again, in smaller pieces; everything else ends this table's run until somebody acts.
    fn refused(&mut self, table: &str, ticket: run::Ticket, rows: usize, error: Error) {
        let passes = error.kind() == headwater_connector::Kind::Retry;
        if let Some(run) = self.runs.get_mut(table) {
            run.failed(ticket);
            run.shrink(rows);
        }
        if passes {
            tracing::warn!(table, %error, "a chunk could not be read; trying again");
            self.pace.rest(AGAIN);
        } else {
            tracing::error!(table, %error, "the backfill of a table stands still");
            self.runs.remove(table);
            self.drop_strays();
        }
        self.errors.insert(table.to_owned(), error);
    }
}
