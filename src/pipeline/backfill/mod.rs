//! Rows that are there already: read in chunks beside the stream, published between two of its transactions.
//!
//! [`journal`] remembers which keys recent transactions touched, [`run`] what is still to be read of each table, [`desk`] has the sessions
//! that read, [`pace`] says when. This module decides: a chunk is published once the stream has passed its barrier, without the rows
//! whose key a transaction touched that the chunk did not see; rows, progress and checkpoint go in one log transaction.

pub mod desk;
pub mod journal;
pub mod order;
pub mod pace;
pub mod reconcile;
pub mod refresh;
pub mod run;
pub mod view;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use headwater_connector::{
    BackfillMode, BackfillOptions, Batch, Change, ChunkRead, Error, Gate, Limits, Op, Result, Schema, Snapshot, Source, fault,
};
use tokio::{task::JoinSet, time::Instant};

use self::{
    desk::{Answer, Desk, Job, Outcome, ReadyChunk},
    journal::{Journal, Superseded},
    pace::Pace,
    reconcile::{Found, Search},
    refresh::Refresh,
    run::Run,
    view::BackfillView,
};
use super::{
    handle::{ErrorView, Status},
    ingest::Ingest,
    now_text, now_us,
    start::Progress,
};
use crate::{
    log::{
        SharedLog, Transaction,
        checkpoint::{BackfillState, KeyRange, TableBackfill},
        topic::InternalTopics,
    },
    mapping::{
        Encoder, Place, Routes,
        encode::{Encoded, Keys, Side},
    },
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
            BackfillMode::Initial if !is_old => TableBackfill {
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

/// What came of a chunk that was ready.
pub enum Emitted {
    /// A log transaction, and what encoding it brought.
    Rows(Encoded),
    /// It could not be used and is read again.
    Discarded,
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
    pub fn new(ingest: &Ingest, progress: &Progress, encoder: &Encoder, refresh: Refresh) -> Self {
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
            refresh: ingest.connector.refreshes().then_some(refresh),
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
        let runs = &self.runs;
        self.ready.retain(|chunk| runs.get(&chunk.table).is_some_and(|run| run.expects_ready(chunk.ticket)));
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

    /// What was just encoded asks for tables to be read. Emptied ones: their topics still hold the keys, which are buried. Those of which
    /// too many rows lack columns. True if `backfills` changed. `place` is that of the log transaction.
    pub fn follow(&mut self, backfills: &mut BTreeMap<String, TableBackfill>, place: Place) -> bool {
        let truncated = std::mem::take(&mut self.truncated);
        for table in &truncated {
            // What the same log transaction holds from before the truncate is old as well; what is there is looked up.
            let reconcile = Some((place.era, place.seq + 1));
            backfills.insert(table.clone(), TableBackfill { reconcile, ..fresh() });
            self.runs.remove(table);
            self.ready.retain(|chunk| chunk.table != *table);
        }
        let overflowed = std::mem::take(&mut self.overflowed);
        let mut changed = !truncated.is_empty();
        for table in &overflowed {
            let known = backfills.entry(table.clone()).or_default();
            if known.state != BackfillState::Running {
                *known = fresh();
                changed = true;
            } else if !known.again {
                known.again = true;
                changed = true;
            }
        }
        changed
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
                self.dispatch();
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
        let view = |(table, known): (&String, &TableBackfill)| {
            let rows = self.read.get(table).copied().unwrap_or(0);
            let mut view = BackfillView::new(table, known).at_rate(rows, seconds);
            if known.state == BackfillState::Running {
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

    fn dispatch(&mut self) {
        let floor = self.newest.clone();
        while self.desk.has_room()
            && let Some(job) = self.refresh.as_mut().and_then(|refresh| refresh.next_job(self.tickets + 1, floor.as_ref()))
        {
            self.tickets += 1;
            let job = self.with_gate(job);
            self.desk.start(job);
        }
        while self.pace.allows() && self.desk.has_room() {
            let order = |table: &str| self.options.first.iter().position(|first| first == table).unwrap_or(usize::MAX);
            let mut tables: Vec<&String> = self.runs.keys().collect();
            tables.sort_by_key(|table| order(table));
            let next = tables
                .into_iter()
                .find_map(|table| self.runs[table].next_job(table, self.tickets + 1))
                .map(|job| self.with_gate(job));
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

    fn with_gate(&self, mut job: Job) -> Job {
        if let (Job::Chunk(request, _), Door::Known(gate)) = (&mut job, &self.door) {
            request.gate = Some(Arc::clone(gate));
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
                    return self.refreshed(&table, ticket, (request.gate, read, batch));
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
                        self.ready.push_back(ReadyChunk { table, ticket, chunk, batch });
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
            self.ready.retain(|chunk| chunk.table != table);
        }
        self.errors.insert(table.to_owned(), error);
    }

    /// Whether a chunk can be published now: the stream has passed what the chunk saw, and is between two transactions.
    pub fn is_due(&mut self, source: &mut dyn Source) -> Result<bool> {
        if !self.finished.is_empty() {
            return Ok(true);
        }
        match self.ready.front() {
            Some(chunk) => source.passed(&chunk.chunk.barrier),
            None => Ok(false),
        }
    }

    /// Makes a log transaction of the chunk that is due.
    pub fn emit(&mut self, encoder: &mut Encoder, progress: &mut Progress, out: &mut Transaction) -> Result<Emitted> {
        if let Some(table) = self.finished.pop() {
            let known = progress.backfills.entry(table.clone()).or_default();
            finish(&table, known);
            self.runs.remove(&table);
            return Ok(Emitted::Rows(Encoded::default()));
        }
        let Some(ready) = self.ready.pop_front() else { return Ok(Emitted::Discarded) };
        if self.refresh.as_ref().is_some_and(|refresh| refresh.expects(ready.ticket)) {
            return self.emit_refresh(&ready, encoder, progress, out);
        }
        let Some(run) = self.runs.get_mut(&ready.table) else { return Ok(Emitted::Discarded) };
        let progress_place = progress.next_place();
        let known = progress.backfills.entry(ready.table.clone()).or_default();
        if known.table_id.as_ref().is_some_and(|id| *id != ready.chunk.table_id) {
            tracing::warn!(table = ready.table, "the table is another one than the one that was read so far; beginning anew");
            let reconcile = known.reconcile.or(Some((progress_place.era, progress_place.seq))).filter(|_| known.filter.is_none());
            *known = TableBackfill { filter: known.filter.take(), reconcile, ..fresh() };
            *run = Run::new(run.topic, known);
            self.ready.retain(|chunk| chunk.table != ready.table);
            return Ok(Emitted::Discarded);
        }
        let superseded = self.journal.superseded(run.topic, &*ready.chunk.seen);
        if matches!(superseded, Superseded::All) {
            run.again(ready.ticket);
            self.ready.retain(|chunk| chunk.table != ready.table || run.expects_ready(chunk.ticket));
            return Ok(Emitted::Discarded);
        }
        if run.is_burial(ready.ticket) {
            let present = encoder.keys(&ready.batch)?;
            let keys = run.looked_up(ready.ticket);
            let gone = keys.iter().map(Vec::as_slice).filter(|key| !present.contains(*key) && !superseded.holds(key));
            let events = encoder.bury(&ready.table, gone, progress_place, now_us() / 1000, out)?;
            known.buried += events;
            self.desk.give_back(ready.batch);
            self.forget();
            return Ok(Emitted::Rows(Encoded { events, ..Encoded::default() }));
        }
        let rows = ready.batch.changes().len() as u64;
        let mut judge = Judge { superseded, refresh: self.refresh.as_mut(), published: None };
        let encoded = encoder.encode(&ready.batch, progress.next_place(), out, &mut judge)?;
        let known = progress.backfills.entry(ready.table.clone()).or_default();
        known.rows += rows;
        known.published += encoded.events;
        *self.read.entry(ready.table.clone()).or_default() += rows;
        known.table_id = Some(ready.chunk.table_id.clone());
        run.emitted(ready.ticket, &ready.chunk, known);
        match (known.ranges.is_empty(), known.reconcile) {
            (false, _) => {}
            (true, Some(_)) => run.begin_burial(),
            (true, None) => {
                let topic = run.topic;
                match finish(&ready.table, known) {
                    true => drop(self.runs.remove(&ready.table)),
                    false => drop(self.runs.insert(ready.table.clone(), Run::new(topic, known))),
                }
            }
        }
        self.desk.give_back(ready.batch);
        self.forget();
        Ok(Emitted::Rows(encoded))
    }

    /// Publishes rows that lack columns in their topic.
    fn emit_refresh(
        &mut self,
        ready: &ReadyChunk,
        encoder: &mut Encoder,
        progress: &Progress,
        out: &mut Transaction,
    ) -> Result<Emitted> {
        let Some(refresh) = &mut self.refresh else { return Ok(Emitted::Discarded) };
        let Some(topic) = encoder.topic_of(&ready.table) else { return Ok(Emitted::Discarded) };
        let superseded = self.journal.superseded(topic, &*ready.chunk.seen);
        if matches!(superseded, Superseded::All) {
            refresh.again(ready.ticket);
            return Ok(Emitted::Discarded);
        }
        let mut judge = Judge { superseded, refresh: Some(refresh), published: Some(HashSet::new()) };
        let encoded = encoder.encode(&ready.batch, progress.next_place(), out, &mut judge)?;
        let Judge { superseded, refresh, published } = judge;
        if let (Some(refresh), Some(published)) = (refresh, published) {
            // A row that is not there has its tombstone: the stream has passed what the snapshot saw.
            refresh.land(ready.ticket, |key| published.contains(key) || !superseded.holds(key));
        }
        self.forget();
        Ok(Emitted::Rows(encoded))
    }

    /// Writes which rows lack columns from now on, and which do not any more, into the log transaction that makes it so.
    pub fn write_refresh(&mut self, out: &mut Transaction) {
        if let Some(refresh) = &mut self.refresh {
            refresh.write(&self.refresh_topic, now_us() / 1000, out);
        }
    }

    /// Takes what every chunk on its way sees out of the journal.
    fn forget(&mut self) {
        let refresh = self.refresh.as_ref().and_then(Refresh::oldest_floor);
        let oldest = self.runs.values().filter_map(Run::oldest_floor).chain(refresh).min_by_key(|(ticket, _)| *ticket);
        match oldest {
            Some((_, Some(floor))) => self.journal.forget(&*floor),
            Some((_, None)) => {}
            None => {
                if let Some(newest) = &self.newest {
                    self.journal.forget(&**newest);
                }
            }
        }
    }
}

/// All rows were read. False if they are read once more.
fn finish(table: &str, known: &mut TableBackfill) -> bool {
    if std::mem::take(&mut known.again) {
        *known = fresh();
        return false;
    }
    known.state = BackfillState::Done;
    known.finished_at = Some(now_text());
    let TableBackfill { rows, published, buried, .. } = known;
    tracing::info!(table, rows, published, buried, "all rows of the table were read");
    true
}

/// The journal looks on while the stream is encoded, and so does who refreshes rows.
impl Side for Backfill {
    #[inline]
    fn passes(&mut self, batch: &Batch, change: &Change, topic: u32, event: &Keys<'_>) -> bool {
        if self.journal.watches(topic) && self.is_active() {
            let transaction = batch.transaction_id(&batch.transactions()[change.transaction as usize]);
            self.journal.touch(topic, transaction, event.key, event.is_whole);
            if let Some(old_key) = event.old_key {
                self.journal.touch(topic, transaction, old_key, true);
            }
        }
        if let Some(refresh) = self.refresh.as_mut().filter(|refresh| !event.is_whole || refresh.is_active()) {
            let schema = &batch.schemas()[change.schema as usize];
            if event.is_whole {
                refresh.settle(&schema.table, event.key);
            } else if !refresh.add(topic, schema, event.key) {
                self.overflowed.insert(schema.table.clone());
            }
            if let Some(old_key) = event.old_key {
                refresh.settle(&schema.table, old_key);
            }
        }
        true
    }

    fn touched_all(&mut self, batch: &Batch, change: &Change, topic: u32) {
        if change.op == Op::Truncate && self.options.mode == BackfillMode::Initial {
            self.truncated.insert(batch.schemas()[change.schema as usize].table.clone());
        }
        if self.journal.watches(topic) && self.is_active() {
            self.journal.touch_all(topic, batch.transaction_id(&batch.transactions()[change.transaction as usize]));
        }
    }
}

/// Leaves out rows for which something at least as new is published.
struct Judge<'a> {
    superseded: Superseded<'a>,
    /// Rows that are published whole need no refresh.
    refresh: Option<&'a mut Refresh>,
    /// Of a refresh, the keys that were published; only rows that it asked for are.
    published: Option<HashSet<Vec<u8>>>,
}

impl Side for Judge<'_> {
    fn passes(&mut self, batch: &Batch, change: &Change, _: u32, event: &Keys<'_>) -> bool {
        if self.superseded.holds(event.key) && !fault::variant("publish-stale-rows") {
            return false;
        }
        let table = &batch.schemas()[change.schema as usize].table;
        match (&mut self.refresh, &mut self.published) {
            (Some(refresh), Some(published)) => {
                if !refresh.wants(table, event.key) {
                    return false;
                }
                published.insert(event.key.to_vec());
            }
            (Some(refresh), None) => refresh.settle(table, event.key),
            (None, _) => {}
        }
        true
    }
}
