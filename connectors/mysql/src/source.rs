//! A running source: chunks in, batches out.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use headwater_connector::{Batch, Error, Identity, Limits, Monitor, Position, Result, Source, fault};
use tokio::{
    sync::watch,
    time::{Instant as Deadline, timeout_at},
};

use crate::{
    binlog::HEAD,
    catalog::TableFacts,
    config::Settings,
    connection::{Connection, Flavour},
    decoder::{Decoder, Event},
    drift::{Drift, News},
    dump,
    error::{lost, torn},
    gtid::Gtid,
    inspect,
    monitor::{Quiet, StreamMonitor},
    omitted::{self, Reach},
    payload,
    position::{Mark, Place, Spot},
    relation::{self, Shape, Table},
    statement::Write,
    stream::{Chunk, Stream},
    table_map::TableMap,
    trail::Trail,
};

/// Progress without changes is a checkpoint of its own: at most this often,
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// or after so much binlog of one file.
const PROGRESS_BYTES: u64 = 16 << 20;
/// How long the rest of a transaction is waited for beyond `max_wait` before it is cut. It was committed before the server sent
/// its first byte, so only a sick connection or a huge share of rows that nobody selected makes it late.
const PATIENCE: Duration = Duration::from_secs(5);
/// Changes wait no longer than this, or `max_wait` if that is longer, for others that have arrived already: a batch of many is cheaper, and
/// where nothing of what arrives is selected, it would never be full.
const HELD: Duration = Duration::from_secs(1);
/// A server that gives no answer about foreign keys is asked again after this.
const JUDGE_AGAIN: Duration = Duration::from_secs(5);

/// A compressed transaction, unpacked, of which some events are taken.
struct Unpacked {
    bytes: Vec<u8>,
    taken: usize,
}

/// See the module's page.
pub struct MysqlSource {
    settings: Arc<Settings>,
    flavour: Flavour,
    identity: Identity,
    /// For what the binlog does not tell; opened when it is needed.
    catalog: Option<Connection>,
    stream: Stream,
    chunk: Option<Chunk>,
    unpacked: Option<Unpacked>,
    /// An event of which not all rows had room in the last batch.
    again: Option<Bytes>,
    decoder: Decoder,
    trail: Arc<Trail>,
    /// An error behind transactions that were handed out first.
    failed: Option<Error>,
    /// The large transaction of which parts are handed out: the binlog has its end.
    whole: Option<Gtid>,
    quiet: watch::Sender<Quiet>,
    drift: Drift,
    /// When to look again into what the server gave no answer to.
    judge_at: Option<Instant>,
    monitor: Arc<StreamMonitor>,
    /// The last position handed out, and when.
    given: Place,
    given_at: Instant,
}

/// Where a stream begins, and what is known of it.
pub struct Opening {
    /// Of the server, with what binds the position to it.
    pub identity: Identity,
    /// Whether the position's file must be this server's own.
    pub is_bound: bool,
    /// What is published.
    pub place: Place,
    /// Everything before it is published too.
    pub stood: Mark,
    /// Where readers of rows learn what was passed.
    pub trail: Arc<Trail>,
    /// What was found before, by a stream that ended.
    pub drift: Drift,
    /// Whether the server does not tell capitals apart in names.
    pub folds: bool,
}

impl MysqlSource {
    /// Reads on where it was left.
    pub fn new(settings: Arc<Settings>, flavour: Flavour, stream: Stream, opening: Opening) -> Self {
        let Opening { identity, is_bound, place, stood, trail, folds, drift } = opening;
        let mut decoder = Decoder::new(place.clone(), is_bound, Arc::clone(&settings));
        decoder.follow((flavour == Flavour::Mariadb).then(|| Arc::clone(&trail)), stood);
        decoder.reads_from(Spot::owner_of(&identity));
        decoder.compare(folds);
        let (quiet, seen) = watch::channel(Quiet { set: place.set.clone(), last_change: None });
        let monitor = Arc::new(StreamMonitor::new(settings.server.clone(), seen, drift.clone()));
        Self {
            decoder,
            trail,
            settings,
            flavour,
            identity,
            catalog: None,
            stream,
            chunk: None,
            unpacked: None,
            again: None,
            failed: None,
            whole: None,
            quiet,
            drift,
            judge_at: None,
            monitor,
            given: place,
            given_at: Instant::now(),
        }
    }

    async fn fill(&mut self, batch: &mut Batch, limits: &Limits) -> Result<()> {
        let latest = Deadline::now() + limits.max_wait;
        let held = Deadline::now() + HELD;
        let mut gathering: Option<Deadline> = None;
        loop {
            let Some(event) = self.next_event(batch).await? else {
                self.tell();
                self.look_after().await;
                if !self.wait(gathering.map(|until| (until, held)), latest).await? {
                    return Ok(());
                }
                continue;
            };
            match event {
                Event::Cut => return Ok(()),
                Event::Row if self.decoder.has_outgrown(batch) => return Ok(()),
                Event::Boundary => {
                    if !batch.changes().is_empty() {
                        gathering.get_or_insert_with(|| Deadline::now() + limits.linger);
                    }
                    let is_full = batch.size_bytes() >= limits.max_bytes || batch.changes().len() >= limits.max_changes;
                    // Irrelevant traffic must keep neither changes nor the position back for ever.
                    let is_late = match batch.changes().is_empty() {
                        true => Deadline::now() >= latest && self.progress_is_due(),
                        false => Deadline::now() >= latest.max(held),
                    };
                    if is_full || is_late {
                        return Ok(());
                    }
                }
                _ => {}
            }
        }
    }

    /// Applies the next event that is there; none if more bytes are needed.
    async fn next_event(&mut self, batch: &mut Batch) -> Result<Option<Event>> {
        if let Some(mut unpacked) = self.unpacked.take() {
            let mut rest = unpacked.bytes.get(unpacked.taken..).unwrap_or_default();
            if let Some(event) = payload::next_event(&mut rest).map_err(|_| torn("a compressed transaction"))? {
                let mut applied = self.decoder.apply_unpacked(event, batch)?;
                if applied == Event::Table {
                    self.describe(event.get(HEAD..).unwrap_or_default()).await?;
                    applied = Event::Nothing;
                }
                let is_unclear = matches!(applied, Event::Statement(_) | Event::Truncated(_));
                applied = self.look_up(applied).await?;
                if applied != Event::Cut && !is_unclear {
                    unpacked.taken = unpacked.bytes.len() - rest.len();
                }
                // What was held of a prepared transaction comes before the rest.
                if let Event::Unpacked(mut bytes) = applied {
                    bytes.extend_from_slice(rest);
                    (unpacked, applied) = (Unpacked { bytes, taken: 0 }, Event::Nothing);
                }
                self.unpacked = Some(unpacked);
                return Ok(Some(applied));
            }
        }
        let event = match self.again.take() {
            Some(event) => event,
            None => match self.chunk.as_mut().and_then(Chunk::next_event) {
                Some(event) => event?,
                None => {
                    self.chunk = None;
                    return Ok(None);
                }
            },
        };
        match self.decoder.apply(&event, batch)? {
            Event::Table => {
                let body = self.decoder.body(&event).to_vec();
                self.describe(&body).await?;
                Ok(Some(Event::Nothing))
            }
            Event::Unpacked(bytes) => {
                self.unpacked = Some(Unpacked { bytes, taken: 0 });
                Ok(Some(Event::Nothing))
            }
            Event::Cut => {
                self.again = Some(event);
                Ok(Some(Event::Cut))
            }
            unclear @ (Event::Statement(_) | Event::Truncated(_)) => {
                let known = self.look_up(unclear).await?;
                self.again = Some(event);
                Ok(Some(known))
            }
            event => Ok(Some(event)),
        }
    }

    /// Waits for the next chunk; false if it is time to return.
    async fn wait(&mut self, gathering: Option<(Deadline, Deadline)>, latest: Deadline) -> Result<bool> {
        let now = Deadline::now();
        let until = match gathering {
            _ if self.decoder.is_torn() => latest + PATIENCE,
            Some((deadline, _)) => deadline,
            None => latest,
        };
        // With changes in hand, what has arrived already is taken along even if nothing more was to be waited for.
        if now < gathering.map_or(until, |(_, held)| until.max(held))
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

    /// Everything that came is decoded: whoever measures lag may know.
    fn tell(&self) {
        let seen = self.decoder.seen();
        if self.decoder.is_between() && self.quiet.borrow().set != *seen {
            let last_change = self.decoder.last_change().or(self.quiet.borrow().last_change);
            self.quiet.send_replace(Quiet { set: seen.into_owned(), last_change });
        }
    }

    /// Learns a selected table from its description.
    async fn describe(&mut self, body: &[u8]) -> Result<()> {
        let map = TableMap::parse(body, self.flavour).map_err(|_| torn("a table's description"))?;
        let name = format!("{}.{}", map.database, map.table);
        if relation::is_sequence(&self.settings, &map, &name) {
            self.decoder.tables.put(map.id, Table { name, fields: map.fields(), shape: None });
            return Ok(());
        }
        let needs_catalog = relation::needs_catalog(&self.settings, self.flavour, &map, &name);
        let known = self.decoder.tables.known(&name, map.raw).filter(|_| !needs_catalog);
        let shape = match known {
            Some(shape) => shape,
            None => {
                let facts = if needs_catalog { self.ask(&map).await? } else { None };
                let shape = relation::shape(&self.settings, self.flavour, &map, facts.as_ref())?;
                self.decoder.tables.remember(&name, map.raw, shape)
            }
        };
        self.drift.came_back(&name);
        self.decoder.tables.put(map.id, Table { name, fields: map.fields(), shape: Some(shape) });
        Ok(())
    }

    /// Asks the catalogue what the decoder has to know before it can take a statement; other events stay as they are.
    async fn look_up(&mut self, event: Event) -> Result<Event> {
        match event {
            Event::Statement(write) => self.clear(write).await?,
            Event::Truncated(table) => self.describe_now(table).await?,
            event => return Ok(event),
        }
        Ok(Event::Nothing)
    }

    /// Lets a statement on a table that is not selected pass, or stops if it can reach one that is.
    async fn clear(&mut self, write: Write) -> Result<()> {
        let mut connection = self.catalog().await?;
        let reach = omitted::reach(&mut connection, &self.settings, &write).await?;
        self.catalog = Some(connection);
        if reach != Reach::Nothing {
            return Err(self.decoder.unclear(&write.table, &reach));
        }
        self.decoder.clear(write);
        Ok(())
    }

    /// Learns a selected table from the catalogue, which has it as it is now; the binlog's next description says more.
    async fn describe_now(&mut self, table: String) -> Result<()> {
        let mut connection = self.catalog().await?;
        let facts = relation::ask_by_name(&mut connection, &table).await?;
        self.catalog = Some(connection);
        let Some(facts) = facts else {
            self.decoder.is_gone(table);
            return Ok(());
        };
        let (schema, codecs) = relation::shape_now(&self.settings, &facts)?;
        self.decoder.tables.remember(&facts.full_name(), &[], Shape { schema: Arc::new(schema), codecs });
        Ok(())
    }

    /// Looks into what the decoder noticed. A server that does not answer now is asked again.
    async fn look_after(&mut self) {
        self.drift.waits(self.decoder.oldest_prepared());
        if self.judge_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        let Some(news) = self.decoder.take_news() else { return };
        news.dropped.iter().for_each(|table| self.drift.dropped(table));
        self.judge_at = None;
        if let Err(error) = self.judge(&news).await {
            tracing::warn!(code = error.code().id, "foreign keys could not be looked at: {}", error.what());
            self.decoder.give_back(news);
            self.judge_at = Some(Instant::now() + JUDGE_AGAIN);
        }
    }

    async fn judge(&mut self, news: &News) -> Result<()> {
        for table in &news.bare {
            if self.drift.is_due(table) {
                let mut connection = self.catalog().await?;
                self.drift.judge(&mut connection, table).await?;
                self.catalog = Some(connection);
                self.drift.asked(table);
            }
        }
        // MariaDB opens the other table in the binlog too, and that says more.
        let parents = if self.flavour == Flavour::Mariadb { &[] } else { news.deleted.as_slice() };
        for table in parents {
            let below = format!("below {table}");
            if self.drift.is_due(&below) {
                let mut connection = self.catalog().await?;
                self.drift.judge_below(&mut connection, &self.settings, table).await?;
                self.catalog = Some(connection);
                self.drift.asked(&below);
            }
        }
        Ok(())
    }

    /// A session for the catalogue. One that sat idle may have been ended by the server.
    async fn catalog(&mut self) -> Result<Connection> {
        if let Some(mut connection) = self.catalog.take()
            && connection.value("SELECT 1").await.is_ok()
        {
            return Ok(connection);
        }
        Connection::open(&self.settings.server).await
    }

    async fn ask(&mut self, map: &TableMap<'_>) -> Result<Option<TableFacts>> {
        let mut connection = self.catalog().await?;
        let facts = relation::ask(&mut connection, map).await?;
        self.catalog = Some(connection);
        Ok(facts)
    }

    /// Whether a batch without changes should carry a position (reliability 1.6: idle time and irrelevant traffic advance too).
    fn progress_is_due(&self) -> bool {
        let spot = self.decoder.spot();
        if *spot == self.given.spot {
            return false;
        }
        if self.given.partial.is_some() {
            // The rest of a cut transaction turned out to be empty.
            return self.decoder.place().partial.is_none();
        }
        let is_far = spot.file != self.given.spot.file || spot.at.saturating_sub(self.given.spot.at) >= PROGRESS_BYTES;
        is_far || self.given_at.elapsed() >= PROGRESS_EVERY
    }

    /// Before a part of a transaction is handed out, it must be sure that the rest exists. MySQL cuts off the beginning of what it was
    /// writing when it died, and MariaDB sends that like any other; but what it sends of the file that it writes now is whole.
    async fn prove_end(&mut self) -> Result<()> {
        let place = self.decoder.place();
        let cut = place.partial.map(|partial| partial.gtid).filter(|gtid| self.decoder.is_torn() && self.whole != Some(*gtid));
        let Some(Gtid::Maria(gtid)) = cut else { return Ok(()) };
        let mut catalog = self.catalog().await?;
        let written = inspect::spot(&mut catalog).await?.file;
        self.catalog = Some(catalog);
        let file = self.decoder.file();
        // Behind the last transaction, if that is in the same file; the first one of a file is behind its beginning.
        let spot = if place.spot.file == file { place.spot } else { Spot::new(file, dump::FILE_START) };
        let is_whole = written == file || dump::has_end_of(Connection::open(&self.settings.server).await?, &spot, gtid).await?;
        if !is_whole {
            return Err(lost("the server died while it wrote the transaction that comes next, which never happened")
                .at("transaction", Gtid::Maria(gtid)));
        }
        self.whole = cut;
        Ok(())
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
            place.set.insert(partial.gtid);
            place.partial = None;
        }
        batch.set_position(place.to_position());
        self.given = place;
        self.given_at = Instant::now();
    }
}

#[async_trait]
impl Source for MysqlSource {
    fn identity(&self) -> Option<&Identity> {
        Some(&self.identity)
    }

    async fn next_batch(&mut self, batch: &mut Batch, limits: &Limits) -> Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.decoder.begin_batch(batch, limits);
        let filled = match self.fill(batch, limits).await {
            Ok(()) => self.prove_end().await,
            failed => failed,
        };
        if let Err(error) = filled {
            // What cannot be published must not keep back what can: complete transactions first, then the error. The server may send
            // these and the same error whenever the connector opens, until they are published.
            self.decoder.abandon(batch);
            if batch.changes().is_empty() {
                return Err(error);
            }
            self.failed = Some(error);
        }
        self.monitor.came_to(self.decoder.time());
        self.finish(batch);
        Ok(())
    }

    fn passed(&mut self, barrier: &Position) -> Result<bool> {
        // Transactions become visible before the server counts them, but never before they are in the binlog: so by place.
        Ok(self.decoder.has_passed(Place::from_position(barrier)?.spot.mark()))
    }

    async fn ack(&mut self, position: &Position) -> Result<()> {
        // The server keeps its binlog by its own rules and is told nothing.
        if Place::from_position(position)?.partial.is_some() {
            fault::point("C14");
        }
        Ok(())
    }

    fn monitor(&self) -> Arc<dyn Monitor> {
        Arc::clone(&self.monitor) as Arc<dyn Monitor>
    }

    async fn close(mut self: Box<Self>) -> Result<()> {
        if let Some(catalog) = self.catalog.take() {
            catalog.close().await;
        }
        Ok(())
    }
}

impl Drop for MysqlSource {
    fn drop(&mut self) {
        self.trail.close();
    }
}
