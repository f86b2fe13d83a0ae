//! Status out: what each connector is doing, measured when somebody asks.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, RwLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use headwater_connector::{Error, Monitor, Position, Result, Retention, SourceConnector, Standing};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::{
    backfill::{
        order::{Orders, Request},
        view::BackfillView,
    },
    claims::Claims,
    daemon::{Action, Change, Command},
    histogram::Histogram,
    now_us,
};
use crate::log::checkpoint::{BackfillState, TableBackfill};

/// How long a status waits for the source's answer about its lag.
const LAG_WAIT: Duration = Duration::from_secs(2);

/// Rates are averaged over about this long.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// What a connector does at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Checking, fencing, opening.
    Starting,
    /// Reading and publishing, with rows of tables still to be read that were there before.
    Backfilling,
    /// Reading and publishing.
    Streaming,
    /// Waiting to try again after an error that may pass.
    Retrying,
    /// Told to do nothing until somebody resumes it. How much of its log the source keeps meanwhile is the source's own rule.
    Paused,
    /// Ended: by an error that does not pass, or with the daemon.
    Stopped,
}

/// What a connector's task and its observers share.
pub struct Status {
    name: String,
    inner: Mutex<Inner>,
    /// Counters since the daemon started.
    pub counters: Counters,
    /// What is asked about the rows of tables.
    pub(super) orders: Orders,
}

/// Counters since the daemon started.
#[derive(Debug)]
pub struct Counters {
    /// Events committed to topics.
    pub events: AtomicU64,
    /// Bytes of committed records.
    pub bytes: AtomicU64,
    /// Log transactions committed.
    pub commits: AtomicU64,
    /// Microseconds that each commit took.
    pub commit_us: Histogram<12>,
    /// Events in each commit that had any.
    pub commit_events: Histogram<6>,
    /// When the last commit was made, in microseconds since 1970; 0 before the first.
    pub committed_us: AtomicI64,
    /// Rows sent to the dead-letter topic.
    pub dead_letters: AtomicU64,
    /// Attempts that ended in an error.
    pub failures: AtomicU64,
    /// Rows that were there already and were read.
    pub backfill_rows: AtomicU64,
    /// Of those, rows that became events.
    pub backfill_published: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            events: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            commit_us: Histogram::new([1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 5000, 30_000].map(|ms: u64| ms * 1000)),
            commit_events: Histogram::new([1, 10, 100, 1000, 10_000, 100_000]),
            committed_us: AtomicI64::new(0),
            dead_letters: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            backfill_rows: AtomicU64::new(0),
            backfill_published: AtomicU64::new(0),
        }
    }
}

struct Inner {
    state: State,
    position: Option<Position>,
    error: Option<ErrorView>,
    /// Stays when the source is closed: what the server still keeps matters most then.
    monitor: Option<Arc<dyn Monitor>>,
    /// Source commit time of the newest published event.
    newest_us: Option<i64>,
    samples: VecDeque<(Instant, u64)>,
    backfills: Vec<BackfillView>,
}

/// An error as status shows it.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorView {
    /// The stable code.
    pub code: &'static str,
    /// One of the seven kinds.
    pub kind: &'static str,
    /// What happened and where.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl From<&Error> for ErrorView {
    fn from(error: &Error) -> Self {
        let place: String = error.place().iter().map(|(label, value)| format!(", {label} {value}")).collect();
        Self {
            code: error.code().id,
            kind: error.kind().name(),
            message: format!("{}{place}", error.what()),
            hint: error.hint_text().to_owned(),
        }
    }
}

/// One connector as `status` prints it.
#[derive(Clone, Debug, Serialize)]
pub struct ConnectorView {
    /// Its name.
    pub name: String,
    /// `source` or `sink`.
    pub role: &'static str,
    /// See [`State`].
    pub state: State,
    /// The last committed position.
    pub position: Option<Position>,
    /// How far behind it is.
    pub lag: Lag,
    /// The position in the source's own words, and what its server keeps behind it.
    pub source: SourceView,
    /// Events per second over the last seconds.
    pub events_per_second: f64,
    /// Events committed since the daemon started.
    pub events: u64,
    /// The last error, until things go well again.
    pub error: Option<ErrorView>,
    /// Tables whose rows are or were read, but for those that were captured without them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backfills: Vec<BackfillView>,
    /// Where topics and tables differ although the connector goes on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<ErrorView>,
}

/// Where a source stands; what its kind does not know or cannot tell now is absent. The metrics `headwater_source_…` have the same names.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SourceView {
    /// The file of the server's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_file: Option<String>,
    /// Its number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_file_number: Option<u64>,
    /// The byte in that file, or in the whole log where that is counted as one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_position_bytes: Option<u64>,
    /// The published transactions by their global names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gtid_set: Option<String>,
    /// Bytes of log on the server's disk that it keeps for this connector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retained_bytes: Option<u64>,
    /// Bytes that may still be written before the server gives the connector's place up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safe_bytes: Option<u64>,
    /// Seconds until the server may delete log that was not read, if the connector stands still.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safe_seconds: Option<u64>,
}

/// Lag; null where it cannot be measured now.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Lag {
    /// Bytes of source log not yet in the topics.
    pub bytes: Option<u64>,
    /// Age of the newest published event while there is more to publish; 0 when caught up.
    pub seconds: Option<f64>,
}

impl Status {
    /// Of a connector that is about to start.
    pub fn new(name: &str) -> Self {
        let inner = Inner {
            state: State::Starting,
            position: None,
            error: None,
            monitor: None,
            newest_us: None,
            samples: VecDeque::new(),
            backfills: Vec::new(),
        };
        Self { name: name.to_owned(), inner: Mutex::new(inner), counters: Counters::default(), orders: Orders::default() }
    }

    /// An attempt begins.
    pub(super) fn starting(&self) {
        self.lock().state = State::Starting;
    }

    /// What the checkpoint says, before the source is open, and who can tell what its server keeps behind it.
    pub(super) fn standing(&self, position: Option<&Position>, connector: &dyn SourceConnector) {
        let mut inner = self.lock();
        inner.position = position.cloned();
        inner.monitor = position.and_then(|position| connector.monitor(position));
    }

    /// The options name another source now.
    pub(super) fn forget_source(&self) {
        self.lock().monitor = None;
    }

    /// The source is open; everything up to `position` is committed, and of the tables' rows what `backfills` says.
    pub(super) fn streaming(&self, position: &Position, monitor: Arc<dyn Monitor>, backfills: &BTreeMap<String, TableBackfill>) {
        let backfills: Vec<BackfillView> = backfills.iter().map(|(table, known)| BackfillView::new(table, known)).collect();
        let mut inner = self.lock();
        // A commit in doubt may have ended a table.
        self.report_done(&inner.backfills, &backfills);
        inner.backfills = backfills;
        inner.state = running(&inner.backfills);
        inner.position = Some(position.clone());
        inner.monitor = Some(monitor);
        inner.error = None;
    }

    /// A log transaction was committed.
    pub(super) fn committed(&self, position: &Position, commit: &Commit) {
        let events = self.counters.events.fetch_add(commit.events, Ordering::Relaxed) + commit.events;
        self.counters.bytes.fetch_add(commit.bytes, Ordering::Relaxed);
        self.counters.commits.fetch_add(1, Ordering::Relaxed);
        self.counters.dead_letters.fetch_add(commit.dead_letters, Ordering::Relaxed);
        self.counters.commit_us.record(commit.took.as_micros() as u64);
        if commit.events > 0 {
            self.counters.commit_events.record(commit.events);
        }
        self.counters.committed_us.store(now_us(), Ordering::Relaxed);
        let mut inner = self.lock();
        inner.position = Some(position.clone());
        inner.newest_us = commit.newest_us.or(inner.newest_us);
        sample(&mut inner.samples, events);
    }

    /// How far the tables' rows are read is committed; so many of them just now, in a log transaction of so many events.
    pub(super) fn backfilled(&self, backfills: &[BackfillView], rows: u64, events: u64) {
        self.counters.backfill_rows.fetch_add(rows, Ordering::Relaxed);
        if rows > 0 {
            self.counters.backfill_published.fetch_add(events, Ordering::Relaxed);
        }
        let mut inner = self.lock();
        self.report_done(&inner.backfills, backfills);
        inner.backfills = backfills.to_vec();
        if inner.state.is_open() {
            inner.state = running(&inner.backfills);
        }
    }

    /// What holds the reading of rows up. The rest of these views may not be committed yet, so only this is taken over.
    pub(super) fn backfill_waits(&self, backfills: &[BackfillView]) {
        let mut inner = self.lock();
        for shown in &mut inner.backfills {
            let Some(view) = backfills.iter().find(|view| view.table == shown.table) else { continue };
            if shown.state == BackfillState::Running {
                shown.waiting.clone_from(&view.waiting);
                shown.error.clone_from(&view.error);
            }
        }
    }

    /// Says that tables are done. Both lists are committed, so it is said once and only of what lasts.
    fn report_done(&self, before: &[BackfillView], now: &[BackfillView]) {
        let was_open = |table: &str| before.iter().any(|view| view.table == table && view.state == BackfillState::Running);
        for view in now.iter().filter(|view| view.state == BackfillState::Done && was_open(&view.table)) {
            let BackfillView { table, rows, published, buried, .. } = view;
            tracing::info!(connector = %self.name, table, rows, published, buried, "all rows of the table were read");
        }
    }

    /// Bytes of log between what is committed and the source's end; none if that cannot be told now.
    pub(super) async fn lag_bytes(&self) -> Option<u64> {
        let (position, monitor) = {
            let inner = self.lock();
            (inner.position.clone()?, inner.monitor.clone().filter(|_| inner.state.is_open())?)
        };
        tokio::time::timeout(LAG_WAIT, monitor.lag_bytes(&position)).await.ok()?.ok()
    }

    /// The tables whose rows are or were read.
    pub fn backfills(&self) -> Vec<BackfillView> {
        self.lock().backfills.clone()
    }

    /// The attempt failed; another follows.
    pub(super) fn retrying(&self, error: &Error) {
        self.ended(State::Retrying, Some(error));
    }

    /// The connector does nothing until it is resumed; what it did before is no error any more.
    pub(super) fn paused(&self) {
        let mut inner = self.lock();
        inner.state = State::Paused;
        inner.error = None;
    }

    /// The connector ended, by itself or with an error.
    pub(super) fn stopped(&self, error: Option<&Error>) {
        self.ended(State::Stopped, error);
    }

    fn ended(&self, state: State, error: Option<&Error>) {
        let mut inner = self.lock();
        inner.state = state;
        if let Some(error) = error {
            self.counters.failures.fetch_add(1, Ordering::Relaxed);
            inner.error = Some(error.into());
        }
    }

    /// The state now.
    pub fn state(&self) -> State {
        self.lock().state
    }

    /// The last error, until things go well again.
    pub fn last_error(&self) -> Option<ErrorView> {
        self.lock().error.clone()
    }

    /// The connector's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Everything about the connector now; asks the source for its lag and for what it keeps.
    pub async fn view(&self) -> ConnectorView {
        let (state, position, error, monitor, newest_us, rate) = {
            let inner = self.lock();
            let rate = rate(&inner.samples, self.counters.events.load(Ordering::Relaxed));
            (inner.state, inner.position.clone(), inner.error.clone(), inner.monitor.clone(), inner.newest_us, rate)
        };
        let open = monitor.as_ref().filter(|_| state.is_open());
        let findings = open.iter().flat_map(|monitor| monitor.findings()).map(|error| ErrorView::from(&error)).collect();
        let (lag, source) = match (&position, &monitor) {
            (Some(position), Some(monitor)) => {
                let lag = async {
                    match open {
                        Some(monitor) => measure(position, &**monitor, newest_us).await,
                        None => Lag::default(),
                    }
                };
                tokio::join!(lag, SourceView::of(position, &**monitor))
            }
            _ => (Lag::default(), SourceView::default()),
        };
        let events = self.counters.events.load(Ordering::Relaxed);
        let name = self.name.clone();
        let backfills = self.backfills().into_iter().filter(|table| table.state != BackfillState::Skipped).collect();
        let (role, events_per_second) = ("source", rate);
        ConnectorView { name, role, state, position, lag, source, events_per_second, events, error, backfills, findings }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while holding the lock leaves plain values behind, never torn ones.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    /// Whether the source is open.
    fn is_open(self) -> bool {
        matches!(self, Self::Backfilling | Self::Streaming)
    }
}

impl SourceView {
    async fn of(position: &Position, monitor: &dyn Monitor) -> Self {
        let asked = tokio::time::timeout(LAG_WAIT, monitor.retention(position)).await;
        let Retention { held_bytes, left_bytes, left_seconds } = asked.ok().and_then(Result::ok).unwrap_or_default();
        let Standing { file, file_number, position_bytes, gtid_set } = monitor.standing(position);
        Self {
            log_file: file,
            log_file_number: file_number,
            log_position_bytes: position_bytes,
            gtid_set,
            retained_bytes: held_bytes,
            safe_bytes: left_bytes,
            safe_seconds: left_seconds,
        }
    }
}

/// What a connector does whose source is open.
fn running(backfills: &[BackfillView]) -> State {
    match backfills.iter().any(|table| table.state == BackfillState::Running) {
        true => State::Backfilling,
        false => State::Streaming,
    }
}

/// One committed log transaction, for the counters.
pub(super) struct Commit {
    pub events: u64,
    pub bytes: u64,
    pub dead_letters: u64,
    pub newest_us: Option<i64>,
    pub took: Duration,
}

async fn measure(position: &Position, monitor: &dyn Monitor, newest_us: Option<i64>) -> Lag {
    let Ok(Ok(bytes)) = tokio::time::timeout(LAG_WAIT, monitor.lag_bytes(position)).await else {
        return Lag::default();
    };
    let seconds = match (bytes, newest_us) {
        (0, _) => Some(0.0),
        (_, Some(newest_us)) => Some((now_us() - newest_us).max(0) as f64 / 1e6),
        (_, None) => None,
    };
    Lag { bytes: Some(bytes), seconds }
}

fn sample(samples: &mut VecDeque<(Instant, u64)>, events: u64) {
    let now = Instant::now();
    // Spaced samples keep the list short whatever the commit rate.
    if samples.back().is_none_or(|(at, _)| now.duration_since(*at) >= RATE_WINDOW / 40) {
        samples.push_back((now, events));
    }
    while samples.front().is_some_and(|(at, _)| now.duration_since(*at) > RATE_WINDOW) {
        samples.pop_front();
    }
}

fn rate(samples: &VecDeque<(Instant, u64)>, events: u64) -> f64 {
    let now = Instant::now();
    let Some((at, before)) = samples.iter().find(|(at, _)| now.duration_since(*at) <= RATE_WINDOW) else { return 0.0 };
    let elapsed = now.duration_since(*at).max(RATE_WINDOW / 40);
    (events.saturating_sub(*before)) as f64 / elapsed.as_secs_f64()
}

/// The config of a daemon, as status shows it.
#[derive(Clone, Debug, Serialize)]
pub struct ConfigView {
    /// When the files in force were read, in RFC 3339.
    pub loaded_at: String,
    /// Why newer files were not taken; empty when they were.
    pub errors: Vec<ErrorView>,
}

/// What the command line and HTTP may ask of a running daemon.
#[derive(Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) claims: Arc<Claims>,
}

/// What the daemon and its observers share.
pub(super) struct Shared {
    pub connectors: RwLock<Vec<Arc<Status>>>,
    pub config: RwLock<ConfigView>,
}

impl Handle {
    /// Every connector, in the order of the config, asked at the same time.
    pub async fn status(&self) -> Vec<ConnectorView> {
        let tasks: Vec<_> =
            self.connectors().into_iter().map(|status| tokio::spawn(async move { status.view().await })).collect();
        let mut views = Vec::with_capacity(tasks.len());
        for task in tasks {
            // A view neither panics nor is cancelled.
            if let Ok(view) = task.await {
                views.push(view);
            }
        }
        views
    }

    /// The connectors, for metrics.
    pub fn connectors(&self) -> Vec<Arc<Status>> {
        self.shared.connectors.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// The config in force, and what is wrong with a newer one.
    pub fn config(&self) -> ConfigView {
        self.shared.config.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Does something to one connector and returns how it is then.
    ///
    /// A name that is not known is a Config error. An action that finds its work done already succeeds.
    pub async fn act(&self, connector: &str, action: Action) -> Result<ConnectorView> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Act { connector: connector.to_owned(), action, reply }).await?;
        let status = answer.await.map_err(|_| stopping())??;
        Ok(status.view().await)
    }

    /// Does something about the rows of a table and returns how the connector is then; what was asked is durable.
    pub async fn backfill(&self, connector: &str, request: Request) -> Result<ConnectorView> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Backfill { connector: connector.to_owned(), request, reply }).await?;
        let status = answer.await.map_err(|_| stopping())??;
        Ok(status.view().await)
    }

    /// Puts new connectors in the place of the old ones.
    pub(super) async fn apply(&self, change: Change) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Apply { change, reply }).await?;
        answer.await.map_err(|_| stopping())
    }

    async fn send(&self, command: Command) -> Result<()> {
        self.commands.send(command).await.map_err(|_| stopping())
    }
}

fn stopping() -> Error {
    Error::new(&super::codes::STOPPING, "the daemon is stopping").hint("Start it again, then repeat the command.")
}
