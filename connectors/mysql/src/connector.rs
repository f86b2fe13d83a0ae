//! The configured source: looks, prepares, creates, verifies, opens.

use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use headwater_connector::{
    Action, BackfillOptions, Condition, Error, Finding, Identity, Intent, IntentMode, Monitor, Position, Result, Schema, Source,
    SourceConnector, Start, Survey, Table, TableReader,
};

use crate::{
    catalog::{self, TableFacts},
    check, codes,
    config::Settings,
    connection::{Connection, Flavour, literal},
    drift::Drift,
    dump, history, inspect, keys,
    monitor::StreamMonitor,
    omitted,
    position::{Mark, Place, Spot},
    reader::{self, Current, MysqlReader, Streamed},
    relation, replica,
    source::{MysqlSource, Opening},
    trail::Trail,
};

/// See the module's page.
pub struct MysqlConnector {
    settings: Arc<Settings>,
    /// For readers of rows.
    current: Current,
    /// Across all streams.
    drift: Drift,
}

impl MysqlConnector {
    /// Touches nothing.
    pub fn new(settings: Settings) -> Self {
        Self { settings: Arc::new(settings), current: Current::default(), drift: Drift::default() }
    }

    async fn session(&self) -> Result<(Connection, Identity)> {
        let mut connection = Connection::open(&self.settings.server).await?;
        connection.require_version()?;
        let identity = inspect::identity(&mut connection).await?;
        Ok((connection, identity))
    }

    /// Everything that a first start needs; the first fault if there is one.
    async fn require_ready(&self, connection: &mut Connection) -> Result<()> {
        let mut faults = inspect::faults(connection, &self.settings).await?;
        let (tables, more) = select(connection, &self.settings).await?;
        faults.extend(more);
        faults.extend(omitted::faults(connection, &tables).await?);
        let replica = replica::look(connection).await?;
        faults.extend(replica::faults(connection, replica.as_ref()).await?);
        if !self.settings.accept_cascades {
            faults.extend(check::cascades(connection, &tables).await?);
        }
        if faults.is_empty() { Ok(()) } else { Err(faults.remove(0)) }
    }
}

/// A selected table: as it is, and the schema that its events will have.
pub type Selected = (TableFacts, Table);

/// The tables that the patterns select, and every fault: patterns without match, tables without a usable key.
/// Fails only if the server cannot be asked.
pub async fn select(connection: &mut Connection, settings: &Settings) -> Result<(Vec<Selected>, Vec<Error>)> {
    let found = catalog::selected(connection, settings).await?;
    let mut faults = Vec::new();
    let names: Vec<(&str, &str)> = found.iter().map(|table| (table.database.as_str(), table.name.as_str())).collect();
    for pattern in settings.tables.unmatched(&names) {
        let user = literal(&settings.server.user);
        faults.push(
            Error::new(&codes::TABLE_MISSING, format!("{pattern:?} matches no table that the user can see"))
                .at("server", settings.server.endpoint())
                .hint(format!(
                    "Correct the entry of `tables`, or run GRANT SELECT ON DATABASE.* TO {user}@'%'; with its database."
                )),
        );
    }
    let mut tables = Vec::new();
    for facts in found {
        match relation::schema_now(settings, &facts) {
            Ok(schema) => {
                let table = Table { schema: Arc::new(schema), estimated_rows: facts.estimated_rows, readable: true };
                tables.push((facts, table));
            }
            Err(fault) => faults.push(fault),
        }
    }
    Ok((tables, faults))
}

#[async_trait]
impl SourceConnector for MysqlConnector {
    fn endpoint(&self) -> String {
        self.settings.server.endpoint()
    }

    fn exclusive(&self) -> Option<String> {
        // Two of the same number at a server are one replica, and it hangs up on one of them.
        Some(format!("the server id {} at {}", self.settings.server_id, self.settings.server.endpoint()))
    }

    async fn tables(&self) -> Result<Vec<Table>, Vec<Error>> {
        let one = |error| vec![error];
        let (mut connection, _) = self.session().await.map_err(one)?;
        let (tables, faults) = select(&mut connection, &self.settings).await.map_err(one)?;
        connection.close().await;
        if faults.is_empty() { Ok(tables.into_iter().map(|(_, table)| table).collect()) } else { Err(faults) }
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        let (mut connection, _) = self.session().await?;
        let findings = check::findings(&mut connection, &self.settings).await;
        connection.close().await;
        findings
    }

    async fn plan(&self, fresh: bool) -> Result<Vec<Action>> {
        let (mut connection, _) = self.session().await?;
        self.require_ready(&mut connection).await?;
        let (set, _) = inspect::end(&mut connection).await?;
        connection.close().await;
        let (verb, detail) = if fresh { ("adopt", format!("from {set} on")) } else { ("keep", format!("up to {set} now")) };
        Ok(vec![Action { verb, object: "binlog", name: self.endpoint(), detail }])
    }

    async fn verify(&self, identity: &Identity) -> Result<()> {
        let (connection, found) = self.session().await?;
        connection.close().await;
        inspect::require_same(identity, &found)
    }

    async fn prepare(&self) -> Result<Intent> {
        let (mut connection, _) = self.session().await?;
        self.require_ready(&mut connection).await?;
        let detail = format!("{{\"flavour\":\"{}\"}}", connection.flavour.name());
        connection.close().await;
        // The server keeps nothing for us, so there is nothing to adopt and no orphan to drop.
        Ok(Intent { mode: IntentMode::Create, detail })
    }

    async fn create(&self, _: &Intent, _: bool) -> Result<Start> {
        let (mut connection, identity) = self.session().await?;
        self.require_ready(&mut connection).await?;
        let (set, mut spot) = inspect::begin(&mut connection).await?;
        connection.close().await;
        spot.owner = Spot::owner_of(&identity);
        let place = Place { set, from: None, partial: None, spot };
        Ok(Start { identity: inspect::bind(identity, &place), position: place.to_position() })
    }

    async fn survey(&self, identity: Option<&Identity>, position: Option<&Position>) -> Result<Survey> {
        let (mut connection, found) = self.session().await?;
        let (set, spot) = inspect::end(&mut connection).await?;
        let facts = vec![
            ("server", connection.version_text.clone()),
            ("transactions", set.to_string()),
            ("binlog", format!("{}:{}", spot.file, spot.at)),
        ];
        let rebind = match (identity, position) {
            (Some(identity), Some(position)) => match inspect::may_accept(identity, &found) {
                Ok(()) => {
                    let place = Place::from_position(position)?;
                    let history = history::require(&mut connection, &self.settings.server, &place, &found).await;
                    history.map(|()| inspect::accept(inspect::bind(found, &place), &place))
                }
                Err(error) => Err(error),
            },
            _ => Err(Error::new(&codes::NOTHING_TO_REBIND, "there is no position to keep")
                .hint("Start the connector; it begins by itself.")),
        };
        connection.close().await;
        let anew = "what was committed since the checkpoint and before the new start does not become events".to_owned();
        Ok(Survey { facts, anew: Ok((anew, None)), rebind })
    }

    fn backfill(&self) -> BackfillOptions {
        self.settings.backfill.clone()
    }

    fn refreshes(&self) -> bool {
        // Every row is whole.
        false
    }

    async fn condition(&self, schema: &Schema, condition: &Condition<'_>) -> Result<String> {
        let (mut connection, _) = self.session().await?;
        let found = reader::look_up(&mut connection, &schema.table).await;
        connection.close().await;
        let (schema, codecs, facts) = found?.shape(&self.settings)?;
        keys::condition(&facts, &schema, &codecs, condition)
    }

    async fn reader(&self) -> Result<Box<dyn TableReader>> {
        Ok(Box::new(MysqlReader::new(Arc::clone(&self.settings), Arc::clone(&self.current))))
    }

    fn monitor(&self, _: &Position) -> Option<Arc<dyn Monitor>> {
        Some(Arc::new(StreamMonitor::without_stream(self.settings.server.clone())))
    }

    async fn open(&self, identity: &Identity, position: &Position) -> Result<Box<dyn Source>> {
        let place = Place::from_position(position)?;
        let (mut connection, server) = self.session().await?;
        let mut found = inspect::bind(server.clone(), &place);
        inspect::require_same(identity, &found)?;
        history::require(&mut connection, &self.settings.server, &place, &server).await?;
        let is_bound = inspect::is_bound(identity, &place);
        if is_bound {
            history::require_recorded(&mut connection, &place).await?;
        } else {
            found = inspect::accept(found, &place);
        }
        let flavour = connection.flavour;
        // Everything that is published was in the binlog before this. On MariaDB, what is not in the binlog yet is not in the set either.
        let (set, spot) = inspect::end(&mut connection).await?;
        let is_at_end = flavour == Flavour::Mariadb && place.set.covers(&set);
        let stood = if is_at_end { spot.mark() } else { Mark::default() };
        let folds = omitted::folds(&mut connection).await?;
        let stream = dump::begin(connection, &place, &self.settings).await?;
        let trail = Arc::new(Trail::new(spot.mark()));
        let streamed = Streamed { server, has_names: !place.is_of_files(), trail: Arc::clone(&trail) };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(streamed);
        let opening = Opening { identity: found, is_bound, place, stood, trail, folds, drift: self.drift.clone() };
        Ok(Box::new(MysqlSource::new(Arc::clone(&self.settings), flavour, stream, opening)))
    }
}
