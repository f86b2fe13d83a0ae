//! Source to log: pull, map, encode, commit, ack.
//!
//! Two log transactions exist: while one is committed, the next batch is read and encoded. Everything happens in the
//! connector's one task; the only hand-over is the whole transaction to the log.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use headwater_connector::{Batch, Error, Limits, Position, Result, Source, SourceConnector, fault};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    backfill::{
        Backfill,
        order::{Order, Reply},
        publish::Emitted,
        view::BackfillView,
    },
    claims::Claims,
    handle::{Commit, Status},
    start::{Progress, Started, in_doubt, start},
};
use crate::{
    config::raw::CommitOptions,
    log::{LogWriter, SharedLog, Transaction, checkpoint::Checkpoint, codes as log_codes},
    mapping::{Encoder, encode::Encoded, rule::Events},
    shutdown::Shutdown,
};

/// Memory that an idle batch or transaction keeps.
const KEEP_BYTES: usize = 8 << 20;

/// The limits of the next batch; only while an earlier transaction is being committed is it worth waiting for more.
fn limits(commit: &CommitOptions, committing: bool) -> Limits {
    let linger = if committing { Duration::from_millis(commit.linger_ms) } else { Duration::ZERO };
    Limits { max_bytes: commit.max_bytes, max_changes: commit.max_events, linger, ..Limits::default() }
}

/// Everything that one source connector works with.
pub struct Ingest {
    /// The connector's name.
    pub name: String,
    /// `log.prefix`.
    pub prefix: String,
    /// The configured source.
    pub connector: Arc<dyn SourceConnector>,
    /// Where topics live.
    pub log: SharedLog,
    /// How rows become events.
    pub events: Events,
    /// When to commit.
    pub commit: CommitOptions,
    /// This process, as the checkpoint names it.
    pub writer: Uuid,
    /// Topics of all connectors.
    pub claims: Arc<Claims>,
    /// Names of the other connectors of the config.
    pub others: Vec<String>,
    /// What observers see.
    pub status: Arc<Status>,
    owned: AtomicBool,
    resumed: AtomicBool,
    wants_refresh: AtomicBool,
}

impl Ingest {
    /// A connector that has not started.
    pub fn new(name: &str, prefix: &str, connector: Arc<dyn SourceConnector>, log: SharedLog, events: Events) -> Self {
        Self {
            name: name.to_owned(),
            prefix: prefix.to_owned(),
            connector,
            log,
            events,
            commit: CommitOptions::default(),
            writer: Uuid::new_v4(),
            claims: Arc::default(),
            others: Vec::new(),
            status: Arc::new(Status::new(name)),
            owned: AtomicBool::new(false),
            resumed: AtomicBool::new(false),
            wants_refresh: AtomicBool::new(false),
        }
    }

    /// Somebody resumed the connector: a pause in the checkpoint is over.
    pub(super) fn resume(&self) {
        self.resumed.store(true, Ordering::Relaxed);
    }

    /// Whether [`resume`](Self::resume) was called.
    pub(super) fn is_resumed(&self) -> bool {
        self.resumed.load(Ordering::Relaxed)
    }

    /// Rows lack columns: there has to be a topic that names them.
    pub(super) fn want_refresh(&self) {
        self.wants_refresh.store(true, Ordering::Relaxed);
    }

    /// Whether [`want_refresh`](Self::want_refresh) was called.
    pub(super) fn wants_refresh(&self) -> bool {
        self.wants_refresh.load(Ordering::Relaxed)
    }

    /// This process has committed a checkpoint of its own: from now on another writer in the checkpoint is a rival.
    pub(super) fn own(&self) {
        self.owned.store(true, Ordering::Relaxed);
    }

    /// Stands down if another process took the place that was ours. Before we ever had it, another writer is a predecessor.
    pub(super) fn refuse_rival(&self, checkpoint: &Checkpoint) -> Result<()> {
        if checkpoint.position.writer == self.writer || !self.owned.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(Error::new(&log_codes::FENCED, "another headwater took over this connector")
            .at("connector", &self.name)
            .at("writer", checkpoint.position.writer)
            .hint("Find the other instance and stop one of the two; instances that share a cluster need different `log.prefix`."))
    }

    /// One attempt: takes the place, then moves batches until the signal or an error.
    pub async fn run(&self, shutdown: &mut Shutdown) -> Result<()> {
        let started = tokio::select! {
            biased;
            () = shutdown.wait() => return Ok(()),
            started = start(self) => started?,
        };
        tracing::info!(connector = %self.name, "streaming");
        self.stream(started, shutdown).await
    }

    async fn stream(&self, started: Started, shutdown: &mut Shutdown) -> Result<()> {
        let Started { mut writer, source, encoder, progress, refresh } = started;
        let backfill = Backfill::new(self, &progress, &encoder, refresh);
        let mut line = Line { source, encoder, progress, backfill, batch: Batch::default() };
        let mut spare = vec![line.encoder.transaction(), line.encoder.transaction()];
        let mut ready: Option<Ready> = None;
        loop {
            line.backfill.turn(&line.progress.backfills, &line.encoder);
            let limits = line.backfill.patience(limits(&self.commit, ready.is_some()));
            let out = spare.pop().unwrap_or_else(|| line.encoder.transaction());
            let next = line.next(self, out, &limits, shutdown);
            let next = match ready.take() {
                None => next.await?,
                Some(current) => {
                    // Both are borrowed for this round only; the first error ends the attempt and drops the other half.
                    let (done, next) = tokio::try_join!(self.commit(&mut *writer, current), next)?;
                    spare.push(done.out);
                    fault::point("C12");
                    line.source.ack(&done.position).await?;
                    fault::point("C13");
                    next
                }
            };
            match next {
                Next::Ready(next) => {
                    if fault::variant("confirm-before-commit") {
                        line.source.ack(&next.position).await?;
                    }
                    ready = Some(next);
                }
                Next::Nothing(out) => spare.push(out),
                Next::Stop => break,
            }
        }
        line.source.close().await?;
        writer.close().await;
        Ok(())
    }

    async fn commit(&self, writer: &mut dyn LogWriter, ready: Ready) -> Result<Done> {
        let began = Instant::now();
        let bytes = ready.out.size_bytes() as u64;
        let out = writer.commit(ready.out).await.map_err(in_doubt)?;
        let commit = Commit {
            events: ready.events,
            bytes,
            dead_letters: ready.dead_letters,
            newest_us: ready.newest_us,
            took: began.elapsed(),
        };
        self.status.committed(&ready.position, &commit);
        if let Some(tables) = &ready.backfills {
            self.status.backfilled(tables, ready.rows, ready.events);
        }
        for reply in ready.replies {
            // Whoever asked may have gone.
            let _ = reply.send(Ok(()));
        }
        Ok(Done { out, position: ready.position })
    }
}

/// A log transaction that only needs its commit.
struct Ready {
    out: Transaction,
    position: Position,
    events: u64,
    dead_letters: u64,
    newest_us: Option<i64>,
    /// How far the rows of tables are read, if the transaction brings that further.
    backfills: Option<Vec<BackfillView>>,
    /// Rows that were read for it.
    rows: u64,
    /// Who waits for it.
    replies: Vec<Reply>,
}

/// A log transaction that is durable.
struct Done {
    out: Transaction,
    position: Position,
}

enum Next {
    Ready(Ready),
    Nothing(Transaction),
    Stop,
}

/// From the source to a log transaction.
struct Line {
    source: Box<dyn Source>,
    encoder: Encoder,
    progress: Progress,
    backfill: Backfill,
    batch: Batch,
}

impl Line {
    /// A chunk that is due, or what the stream brings.
    async fn next(&mut self, ingest: &Ingest, mut out: Transaction, limits: &Limits, shutdown: &mut Shutdown) -> Result<Next> {
        out.clear(KEEP_BYTES);
        let orders = ingest.status.orders.take();
        if !orders.is_empty() {
            return Ok(self.obey(orders, out));
        }
        if self.backfill.is_due(&mut *self.source)? {
            return self.chunk(out);
        }
        self.read(ingest, out, limits, shutdown).await
    }

    /// Makes what is asked about tables a log transaction of its own.
    fn obey(&mut self, orders: Vec<(Order, Reply)>, mut out: Transaction) -> Next {
        let mut replies = Vec::new();
        let place = self.progress.next_place();
        for (order, reply) in orders {
            let known = self.progress.backfills.entry(order.table().to_owned()).or_default();
            match order.apply(known, place) {
                Ok(()) => {
                    // At once: a table that is given up and begun anew in one go must not keep its old run.
                    self.backfill.take_up(&self.progress.backfills, &self.encoder);
                    replies.push(reply);
                }
                // Whoever asked may have gone.
                Err(error) => drop(reply.send(Err(error))),
            }
        }
        let position = self.progress.position().cloned().filter(|_| !replies.is_empty());
        let Some(position) = position else { return Next::Nothing(out) };
        self.progress.finish(None, Some(self.encoder.tables()), &mut out);
        let backfills = Some(self.backfill.views(&self.progress.backfills));
        Next::Ready(Ready { out, position, events: 0, dead_letters: 0, newest_us: None, backfills, rows: 0, replies })
    }

    /// Makes a chunk a log transaction: its rows, how far the table is read, and the position as it was.
    fn chunk(&mut self, mut out: Transaction) -> Result<Next> {
        let (encoded, rows) = match self.backfill.emit(&mut self.encoder, &mut self.progress, &mut out)? {
            Emitted::Rows(encoded, rows) => (encoded, rows),
            Emitted::Discarded => {
                out.clear(KEEP_BYTES);
                return Ok(Next::Nothing(out));
            }
        };
        self.backfill.write_refresh(&mut out);
        self.progress.finish(None, Some(self.encoder.tables()), &mut out);
        let Some(position) = self.progress.position().cloned() else { return Ok(Next::Nothing(out)) };
        let backfills = Some(self.backfill.views(&self.progress.backfills));
        let Encoded { events, dead_letters, .. } = encoded;
        Ok(Next::Ready(Ready { out, position, events, dead_letters, newest_us: None, backfills, rows, replies: Vec::new() }))
    }

    /// Pulls a batch and makes it a log transaction.
    async fn read(&mut self, ingest: &Ingest, mut out: Transaction, limits: &Limits, shutdown: &mut Shutdown) -> Result<Next> {
        let Self { source, encoder, progress, backfill, batch } = self;
        batch.clear(KEEP_BYTES);
        tokio::select! {
            biased;
            () = shutdown.wait() => return Ok(Next::Stop),
            result = source.next_batch(batch, limits) => result?,
        }
        let Some(position) = batch.position().cloned() else {
            return Ok(Next::Nothing(out));
        };
        let place = progress.next_place();
        let encoded = encoder.encode(batch, place, &mut out, backfill)?;
        backfill.require_topic(ingest)?;
        let is_asked = backfill.follow(&mut progress.backfills, place);
        if is_asked {
            backfill.take_up(&progress.backfills, encoder);
        }
        backfill.write_refresh(&mut out);
        let tables = (encoded.state_changed || is_asked).then(|| encoder.tables());
        progress.finish(Some(&position), tables, &mut out);
        let backfills = is_asked.then(|| backfill.views(&progress.backfills));
        let newest_us = batch.transactions().last().map(|transaction| transaction.commit_time_us);
        let Encoded { events, dead_letters, .. } = encoded;
        Ok(Next::Ready(Ready { out, position, events, dead_letters, newest_us, backfills, rows: 0, replies: Vec::new() }))
    }
}
