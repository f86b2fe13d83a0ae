//! The configured source: looks, prepares, creates, verifies, opens.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use headwater_connector::{
    Action, BackfillOptions, Condition, Error, Finding, Identity, Intent, IntentMode, Monitor, Position, Result, Schema, Source,
    SourceConnector, Start, Survey, Table, TableReader,
};
use tokio::time::{Instant, sleep};

use crate::{
    catalog::{Catalog, TableFacts},
    check, codes,
    config::{LargeValues, Settings},
    connection::{Connection, ident, literal},
    creation::{self, Tries},
    error::protocol,
    keys, message,
    monitor::StreamMonitor,
    position::{Lsn, Place},
    publication,
    reader::PostgresReader,
    rebind, relation,
    replica::Streamed,
    slot,
    source::PostgresSource,
    standby::{self, Role},
    stream::{PACE, Stream},
    watch::Watch,
};

/// How long a start waits for a slot that a dying daemon still holds, before it reports it in use.
const SLOT_PATIENCE: Duration = Duration::from_secs(2);

/// See the module's page.
pub struct PostgresConnector {
    settings: Arc<Settings>,
    tries: Tries,
    /// With the very server that the stream came from last.
    streamed: Mutex<Option<Streamed>>,
}

impl PostgresConnector {
    /// Touches nothing.
    pub fn new(settings: Settings) -> Self {
        Self { settings: Arc::new(settings), tries: Tries::default(), streamed: Mutex::default() }
    }

    fn catalog(&self) -> Catalog {
        Catalog::new(&self.settings)
    }

    async fn session(&self) -> Result<(Connection, Identity)> {
        let mut session = slot::replication_session(&self.settings).await?;
        let identity = slot::identify(&mut session, &self.settings).await?;
        Ok((session, identity))
    }

    /// The selected tables; the first fault if there is one.
    async fn selected(&self, catalog: &mut Catalog) -> Result<Vec<TableFacts>> {
        let (tables, mut faults) = select(catalog, &self.settings).await?;
        if faults.is_empty() { Ok(tables.into_iter().map(|(facts, _)| facts).collect()) } else { Err(faults.remove(0)) }
    }

    async fn create_slot(&self, catalog: &mut Catalog, session: &mut Connection, again: bool) -> Result<Lsn> {
        if let Some(found) = slot::find(catalog, &self.settings).await? {
            // C4: an orphan of an earlier start that got no further. Anything else is somebody's.
            if !again {
                return Err(slot::appeared(&self.settings));
            }
            found.require_native(&self.settings)?;
            if found.ours {
                // The server goes on with a creation whose client has died.
                slot::end_predecessor(catalog, &self.settings).await?;
            } else {
                found.free(&self.settings)?;
            }
            self.freed(catalog).await?;
            let name = literal(&self.settings.slot);
            // It may have vanished by itself: one whose creation is not complete does.
            catalog
                .query(&format!("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {name}"))
                .await?;
        }
        let role = Role::of(catalog).await?;
        role.require_decoding()?;
        let failover = role.wants_failover(&self.settings)?;
        creation::create(catalog, session, &self.settings, failover, &self.tries).await
    }

    /// Waits until no session holds the slot, which takes a moment after its end.
    async fn freed(&self, catalog: &mut Catalog) -> Result<()> {
        let deadline = Instant::now() + SLOT_PATIENCE;
        while let Some(found) = slot::find(catalog, &self.settings).await? {
            match found.free(&self.settings) {
                Ok(()) => break,
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
        Ok(())
    }

    async fn adopt_slot(&self, catalog: &mut Catalog, intent: &Intent) -> Result<Lsn> {
        let seen: Option<Lsn> = slot::Detail::of(intent)?.confirmed_flush_lsn.and_then(|text| text.parse().ok());
        let Some(seen) = seen else { return Err(protocol("the stored intent names no position")) };
        slot::require_behind(catalog, &self.settings, Place::at(seen), false).await?;
        Ok(seen)
    }

    /// Starts the copy. The slot may still be held by our own last session for a moment.
    async fn start(&self, session: &mut Connection, place: Place) -> Result<()> {
        let command = slot::start_command(&self.settings, place.base);
        let deadline = Instant::now() + SLOT_PATIENCE;
        loop {
            let Err(refused) = session.start_copy(&command).await? else { return Ok(()) };
            match refused.state.as_str() {
                "55006" if Instant::now() < deadline => {
                    session.recover().await?;
                    sleep(Duration::from_millis(50)).await;
                }
                "55006" => return Err(slot::active(&self.settings, &refused.text())),
                "55000" => {
                    return Err(Error::new(&codes::SLOT_INVALID, refused.text())
                        .at("slot", &self.settings.slot)
                        .hint("Begin anew with `headwater reset`; what the slot lacks cannot be read any more."));
                }
                _ => return Err(refused.into_error().at("slot", &self.settings.slot)),
            }
        }
    }
}

/// A selected table: as it is, and the schema that its events will have.
pub type Selected = (TableFacts, Table);

/// The tables that the patterns select, and every fault: patterns without match, tables without a usable key.
/// Fails only if the server cannot be asked.
pub async fn select(catalog: &mut Catalog, settings: &Settings) -> Result<(Vec<Selected>, Vec<Error>)> {
    let facts = catalog.tables(&settings.tables).await?;
    let mut faults = Vec::new();
    // A partition whose table is selected as well is covered by it and not listed.
    let names: Vec<(&str, &str)> = facts.iter().map(|table| (table.schema.as_str(), table.name.as_str())).collect();
    for pattern in settings.tables.unmatched(&names) {
        faults.push(
            Error::new(&codes::TABLE_MISSING, format!("{pattern:?} matches no table"))
                .at("server", settings.server.endpoint())
                .hint("Correct the entry of `tables`; it is written as schema.table, and * stands for any characters."),
        );
    }
    faults.extend(message::unsupported(settings, catalog.sql().await?.major_version()?));
    let mut tables = Vec::new();
    for table in facts {
        faults.extend(message::collision(settings, &table.full_name()));
        match relation::schema_now(catalog, settings, &table).await? {
            Ok(schema) => {
                faults.extend(relation::refused_updates(&table));
                if settings.large_values == LargeValues::Full && table.identity != 'f' {
                    faults.push(needs_full(&table));
                }
                let found = Table { schema: Arc::new(schema), estimated_rows: table.estimated_rows, readable: true };
                tables.push((table, found));
            }
            Err(fault) => faults.push(fault),
        }
    }
    Ok((tables, faults))
}

fn needs_full(table: &TableFacts) -> Error {
    let name = format!("{}.{}", ident(&table.schema), ident(&table.name));
    Error::new(&codes::ABSENT_VALUES, "`large_values: full` needs a full replica identity")
        .at("table", table.full_name())
        .hint(format!("Run ALTER TABLE {name} REPLICA IDENTITY FULL;"))
}

#[async_trait]
impl SourceConnector for PostgresConnector {
    fn endpoint(&self) -> String {
        self.settings.server.endpoint()
    }

    fn exclusive(&self) -> Option<String> {
        Some(format!("the replication slot {} at {}", self.settings.slot, self.settings.server.addresses()))
    }

    async fn tables(&self) -> Result<Vec<Table>, Vec<Error>> {
        let mut catalog = self.catalog();
        let selected = select(&mut catalog, &self.settings).await;
        catalog.rest().await;
        let (tables, faults) = selected.map_err(|error| vec![error])?;
        // Nothing of it is at the server, so it is listed, and not selected.
        let messages = message::schema(&self.settings).map(|schema| Table {
            schema: Arc::new(schema),
            estimated_rows: Some(0),
            readable: false,
        });
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(tables.into_iter().map(|(_, table)| table).chain(messages).collect())
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        let mut catalog = self.catalog();
        let findings = check::findings(&mut catalog, &self.settings).await;
        catalog.rest().await;
        findings
    }

    async fn plan(&self, fresh: bool) -> Result<Vec<Action>> {
        let mut catalog = self.catalog();
        let actions = check::actions(&mut catalog, &self.settings, fresh).await;
        catalog.rest().await;
        actions
    }

    async fn verify(&self, identity: &Identity) -> Result<()> {
        let (session, found) = self.session().await?;
        session.close().await;
        slot::require_same(identity, &found)
    }

    async fn prepare(&self) -> Result<Intent> {
        let mut catalog = self.catalog();
        self.selected(&mut catalog).await?;
        let found = slot::find(&mut catalog, &self.settings).await?;
        catalog.rest().await;
        let mut detail = slot::Detail {
            slot: self.settings.slot.clone(),
            publication: self.settings.publication.clone(),
            confirmed_flush_lsn: None,
        };
        let mode = match found {
            None => IntentMode::Create,
            Some(slot) => {
                detail.confirmed_flush_lsn = Some(slot.usable(&self.settings)?.to_string());
                slot.free(&self.settings)?;
                IntentMode::Adopt
            }
        };
        let detail = serde_json::to_string(&detail).map_err(|_| protocol("the intent cannot be written"))?;
        Ok(Intent { mode, detail })
    }

    async fn create(&self, intent: &Intent, again: bool) -> Result<Start> {
        let mut session = slot::replication_session(&self.settings).await?;
        // The tables that are looked at and the slot that is made are on one server.
        let mut catalog = Catalog::at(&self.settings, session.pin(&self.settings.server));
        let tables = self.selected(&mut catalog).await?;
        if intent.mode == IntentMode::Adopt && publication::find(&mut catalog, &self.settings).await?.is_none() {
            let drop = format!("SELECT pg_drop_replication_slot({})", literal(&self.settings.slot));
            return Err(publication::gone(&self.settings, "the slot that was found is older than its publication")
                .hint(format!(
                    "Name another slot with `slot` if something else reads this one. If not, run {drop}; and start again: headwater \
                     makes the publication first."
                )));
        }
        publication::create(&mut catalog, &self.settings, &tables).await?;
        // Only now: the identity tells this publication from a later one of the same name.
        let identity = slot::identify(&mut session, &self.settings).await?;
        let first = match intent.mode {
            // The intent stands for the slot that it names; the config may name another one by now.
            IntentMode::Create => {
                let again = again && slot::Detail::of(intent)?.slot == self.settings.slot;
                self.create_slot(&mut catalog, &mut session, again).await?
            }
            IntentMode::Adopt => self.adopt_slot(&mut catalog, intent).await?,
        };
        catalog.rest().await;
        session.close().await;
        let position = Place::at(first).to_position();
        Ok(Start { identity, position })
    }

    async fn survey(&self, identity: Option<&Identity>, position: Option<&Position>) -> Result<Survey> {
        let (mut session, found) = self.session().await?;
        let mut catalog = Catalog::at(&self.settings, session.pin(&self.settings.server));
        let survey = rebind::survey((&mut session, &mut catalog), &self.settings, found, identity, position).await;
        catalog.rest().await;
        session.close().await;
        survey
    }

    fn backfill(&self) -> BackfillOptions {
        self.settings.backfill.clone()
    }

    fn refreshes(&self) -> bool {
        self.settings.large_values == LargeValues::Refresh
    }

    async fn condition(&self, schema: &Schema, condition: &Condition<'_>) -> Result<String> {
        let mut catalog = self.catalog();
        let found = keys::condition(&mut catalog, schema, condition).await;
        catalog.rest().await;
        found
    }

    async fn reader(&self) -> Result<Box<dyn TableReader>> {
        // What one server has made visible, another may not have yet.
        let streamed = self.streamed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let streamed = streamed.unwrap_or_else(|| Streamed::new(Arc::clone(&self.settings), Identity::default()));
        Ok(Box::new(PostgresReader::new(&streamed)))
    }

    fn monitor(&self, _: &Position) -> Option<Arc<dyn Monitor>> {
        let monitor = StreamMonitor::without_stream(self.settings.server.clone(), &self.settings.slot);
        Some(Arc::new(monitor))
    }

    async fn open(&self, identity: &Identity, position: &Position) -> Result<Box<dyn Source>> {
        let place = Place::from_position(position)?;
        let (mut session, found) = self.session().await?;
        // Everything else that this source asks, it asks the server that it streams from.
        let settings = &Arc::new(Settings { server: session.pin(&self.settings.server), ..Settings::clone(&self.settings) });
        slot::require_same(identity, &found)?;
        slot::require_same_ordinals(identity, &found, place)?;
        // The checkpoint's identity is of the session that published the position, so its timeline is the one that was left.
        let (left, now) = (slot::timeline(identity), slot::timeline(&found));
        let mut catalog = Catalog::new(settings);
        slot::require_history(&mut session, &mut catalog, settings, (left, now), place).await?;
        let moved = left != now;
        let role = Role::of(&mut catalog).await?;
        let slot = slot::require_behind(&mut catalog, settings, place, moved).await?;
        slot::end_predecessor(&mut catalog, settings).await?;
        let tables = self.selected(&mut catalog).await?;
        let publication = publication::extend(&mut catalog, settings, &tables, identity.get(slot::PUBLICATION_ID)).await?;
        if standby::must_adjust(settings, role, slot.failover)? {
            self.freed(&mut catalog).await?;
            standby::adjust(&mut session, settings, !slot.failover).await?;
        }
        let silence = catalog.value("SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout'").await?;
        if session.parameter("server_encoding") == Some("SQL_ASCII") {
            // Such a server cannot convert, only refuse without naming the row; let the bytes come and judge them here (T9).
            session.query("SET client_encoding TO 'SQL_ASCII'").await?;
        }
        *self.streamed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Streamed::new(Arc::clone(settings), found.clone()));
        self.start(&mut session, place).await?;
        // Once more, now that nobody else can move it: another daemon may have had the slot until a moment ago.
        slot::require_behind(&mut catalog, settings, place, moved).await?;
        catalog.rest().await;
        let silence = match silence.and_then(|text| text.parse().ok()) {
            None | Some(0) => Duration::from_secs(60),
            Some(milliseconds) => Duration::from_millis(milliseconds),
        };
        let pace = if session.is_unix() { Duration::ZERO } else { PACE };
        let (socket, input) = session.into_parts();
        let stream = Stream::start(socket, input, place.base, silence, pace);
        let watch = Watch::start(Arc::clone(settings), publication, tables);
        Ok(Box::new(PostgresSource::new(Arc::clone(settings), found, stream, place, watch)))
    }
}
