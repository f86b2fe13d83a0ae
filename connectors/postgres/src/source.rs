//! A running source: chunks in, batches out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use headwater_connector::{Batch, Error, Identity, Kind, Limits, Monitor, Position, Result, Source, fault};
use tokio::{
    sync::watch,
    time::{Instant as Deadline, timeout_at},
};

use crate::{
    catalog::Catalog,
    config::Settings,
    decoder::{Decoder, Event, HEAD},
    error::protocol,
    message::{self, Messages},
    monitor::{Quiet, StreamMonitor},
    pgoutput::{self, Message},
    position::{Lsn, Place},
    relation::{self, Stale, Table},
    stream::{Chunk, Stream},
    watch::Watch,
};

/// Progress without changes is a checkpoint of its own: at most this often,
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// or after so much log.
const PROGRESS_BYTES: u64 = 16 << 20;
/// While somebody waits for a barrier, the server is asked this often how far its log has come.
const ASK_EVERY: Duration = Duration::from_millis(10);
/// How long the rest of a transaction is waited for beyond `max_wait` before it is cut. It was committed before the server sent
/// its first byte, so only a sick connection or a huge share of rows that nobody selected makes it late.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module's page.
pub struct PostgresSource {
    settings: Arc<Settings>,
    identity: Identity,
    catalog: Catalog,
    stream: Stream,
    chunk: Option<Chunk>,
    decoder: Decoder,
    /// An error behind transactions that were handed out first.
    failed: Option<Error>,
    quiet: watch::Sender<Quiet>,
    monitor: Arc<StreamMonitor>,
    watch: Watch,
    /// The last position handed out, and when.
    given: Place,
    given_at: Instant,
    /// When the server was asked last how far its log has come.
    asked_at: Instant,
}

impl PostgresSource {
    /// `stream` runs from `place` on the server that `identity` names.
    pub fn new(settings: Arc<Settings>, identity: Identity, stream: Stream, place: Place, watch: Watch) -> Self {
        let (quiet, watching) = watch::channel(Quiet { read_to: Lsn(0), changes_end: place.base });
        let monitor =
            StreamMonitor::new(settings.server.clone(), &settings.slot, Arc::clone(&stream.shared), watching, watch.drift());
        Self {
            catalog: Catalog::new(&settings),
            decoder: Decoder::new(place, settings.on_truncate, Messages::of(&settings)),
            settings,
            identity,
            stream,
            chunk: None,
            failed: None,
            quiet,
            monitor: Arc::new(monitor),
            watch,
            given: place,
            given_at: Instant::now(),
            asked_at: Instant::now(),
        }
    }

    async fn fill(&mut self, batch: &mut Batch, limits: &Limits) -> Result<()> {
        let latest = Deadline::now() + limits.max_wait;
        let mut gathering: Option<Deadline> = None;
        loop {
            while let Some(frame) = self.chunk.as_mut().and_then(Chunk::next_frame) {
                let mut event = self.decoder.apply(&frame, batch)?;
                if let Event::Stale(stale) = event {
                    event = self.relearn(&stale, &frame, batch).await?;
                }
                match event {
                    Event::Nothing | Event::Stale(_) => {}
                    Event::Row => {
                        if self.decoder.has_outgrown(batch, limits.max_bytes, limits.max_changes) {
                            return Ok(());
                        }
                    }
                    Event::Relation => self.describe(&frame).await?,
                    Event::Boundary => {
                        if batch.size_bytes() >= limits.max_bytes || batch.changes().len() >= limits.max_changes {
                            return Ok(());
                        }
                        if gathering.is_none() && !batch.changes().is_empty() {
                            gathering = Some(latest.min(Deadline::now() + limits.linger));
                        }
                    }
                    Event::Idle(read_to) => {
                        self.quiet.send_replace(Quiet { read_to, changes_end: self.decoder.changes_end() });
                    }
                }
            }
            self.chunk = None;
            if batch.changes().is_empty() && self.progress_is_due() {
                return Ok(());
            }
            if !self.next_chunk(gathering, latest).await? {
                return Ok(());
            }
        }
    }

    /// Fetches what to decode next; false if the batch is to be handed out as it is.
    async fn next_chunk(&mut self, gathering: Option<Deadline>, latest: Deadline) -> Result<bool> {
        // A backlog never makes the decoder wait, so it must let others run by itself.
        tokio::task::consume_budget().await;
        let now = Deadline::now();
        let until = match gathering {
            _ if self.decoder.is_torn() => latest + PATIENCE,
            Some(deadline) => deadline,
            None => latest,
        };
        // With changes in hand, what has arrived already is taken along even if the time is up; the limits end that.
        if (now < until || gathering.is_some())
            && let Some(chunk) = self.stream.try_next()
        {
            self.chunk = Some(chunk?);
            return Ok(true);
        }
        match timeout_at(until, self.stream.next()).await {
            Ok(chunk) => {
                self.chunk = Some(chunk?);
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    }

    /// Learns a table from its Relation message. Sent again after a reconnect or a change of the table, it is compared first.
    async fn describe(&mut self, frame: &[u8]) -> Result<()> {
        let raw = frame.get(HEAD..).unwrap_or_default();
        let Ok(Message::Relation(relation)) = pgoutput::parse(raw) else { return Err(protocol("a table's description is torn")) };
        if self.decoder.tables.knows(relation.id, raw) {
            return Ok(());
        }
        let selected = self.settings.tables.selects(relation.schema, relation.name);
        if selected && let Some(fault) = message::collision(&self.settings, &format!("{}.{}", relation.schema, relation.name)) {
            return Err(fault);
        }
        let shape = match selected {
            true => {
                self.catalog.forget_types();
                Some(relation::shape(&mut self.catalog, &self.settings, &relation).await?)
            }
            false => None,
        };
        self.decoder.tables.put(Table { id: relation.id, raw: raw.to_vec(), shape });
        Ok(())
    }

    /// T13: an enum got or renamed a label, which the stream does not tell. Takes the row under a schema that has it. Each label costs at
    /// most one look-up until the table is described again.
    async fn relearn(&mut self, stale: &Stale, frame: &[u8], batch: &mut Batch) -> Result<Event> {
        if let Some(at) = self.decoder.tables.find(stale.table) {
            let table = self.decoder.tables.get(at);
            if let (Some(before), Ok(Message::Relation(relation))) = (&table.shape, pgoutput::parse(&table.raw)) {
                self.catalog.forget_types();
                let shape = relation::labels_again(&mut self.catalog, &relation, before).await?;
                let table = Table { id: table.id, raw: table.raw.clone(), shape: Some(shape) };
                self.decoder.tables.put(table);
            }
        }
        loop {
            match self.decoder.apply(frame, batch)? {
                Event::Stale(stale) => self.decoder.tables.settle(&stale),
                event => return Ok(event),
            }
        }
    }

    /// Whether a batch without changes should carry a position (reliability 1.6: idle time and irrelevant traffic advance too).
    fn progress_is_due(&self) -> bool {
        let base = self.decoder.base();
        if self.given.partial.is_some() {
            // The rest of a cut transaction turned out to be empty.
            return base > self.given.base && self.decoder.place().partial.is_none();
        }
        base.0.saturating_sub(self.given.base.0) >= PROGRESS_BYTES
            || (base > self.given.base && self.given_at.elapsed() >= PROGRESS_EVERY)
    }

    fn finish(&mut self, batch: &mut Batch) {
        if batch.changes().is_empty() && !self.progress_is_due() {
            return;
        }
        let mut place = self.decoder.place();
        if fault::variant("forget-the-partial") {
            place.partial = None;
        }
        if let Some(partial) = place.partial.filter(|_| fault::variant("per-row-position")) {
            place = Place::at(Lsn(partial.commit.0 + 1));
        }
        batch.set_position(place.to_position());
        self.given = place;
        self.given_at = Instant::now();
    }
}

#[async_trait]
impl Source for PostgresSource {
    fn identity(&self) -> Option<&Identity> {
        Some(&self.identity)
    }

    async fn next_batch(&mut self, batch: &mut Batch, limits: &Limits) -> Result<()> {
        if let Some(error) = self.failed.take().or_else(|| self.watch.finding()) {
            return Err(error);
        }
        self.decoder.begin_batch(batch);
        if let Err(error) = self.fill(batch, limits).await {
            // What cannot be published must not keep back what can: complete transactions first, then the error.
            if error.kind() == Kind::Retry {
                return Err(error);
            }
            self.decoder.abandon(batch);
            if batch.changes().is_empty() {
                return Err(error);
            }
            self.failed = Some(error);
        }
        self.catalog.rest().await;
        self.finish(batch);
        Ok(())
    }

    fn passed(&mut self, barrier: &Position) -> Result<bool> {
        let barrier = Place::from_position(barrier)?.base;
        if self.decoder.is_between() && self.decoder.base() >= barrier {
            return Ok(true);
        }
        if self.asked_at.elapsed() >= ASK_EVERY {
            self.asked_at = Instant::now();
            self.stream.shared.ask();
        }
        Ok(false)
    }

    async fn ack(&mut self, position: &Position) -> Result<()> {
        // Invariant I1: inside a transaction only the end of the last complete one may be forgotten.
        let place = Place::from_position(position)?;
        if place.partial.is_some() {
            fault::point("C14");
        }
        self.stream.shared.ack(place.base);
        Ok(())
    }

    fn monitor(&self) -> Arc<dyn Monitor> {
        Arc::clone(&self.monitor) as Arc<dyn Monitor>
    }

    async fn close(self: Box<Self>) -> Result<()> {
        let mut source = *self;
        source.chunk = None;
        source.catalog.rest().await;
        source.stream.close().await;
        Ok(())
    }
}
