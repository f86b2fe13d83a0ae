//! Reading rows from a standby while the stream comes from its primary (`backfill_url`).
//!
//! On the standby a transaction is visible once its commit record has been replayed, whatever the primary thinks of it. So a chunk's
//! snapshot is told by what had been replayed before it, and the place behind everything that it shows is where the primary's log stood
//! after it. That holds only as long as both count along one log, and as long as no later snapshot sees less:
//!
//! - the standby is of the same system and on the timeline that the stream is on, asked after the snapshot: a timeline is never left for
//!   an older one;
//! - a standby that starts anew, or another one of the url's hosts, may have replayed less than was read from already. No chunk is
//!   read below that *floor*, which all readers of a stream share.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use headwater_connector::{Error, Finding, Identity, Result};

use crate::{
    catalog::{Catalog, TableFacts, cell, flag},
    codes,
    config::{Server, Settings},
    connection::{Connection, Purpose, ident},
    error::protocol,
    position::Lsn,
    reader::start_of_page,
    slot,
};

const OPTION: &str = "backfill_url";

/// What the stream that is open now is read from, and what its readers share.
#[derive(Clone)]
pub struct Streamed {
    /// With the very server.
    pub settings: Arc<Settings>,
    /// Of that server.
    pub identity: Identity,
    /// The most that a standby had replayed before rows were read from it.
    pub floor: Arc<AtomicU64>,
}

impl Streamed {
    /// From now on.
    pub fn new(settings: Arc<Settings>, identity: Identity) -> Self {
        Self { settings, identity, floor: Arc::default() }
    }
}

/// See the module's page.
pub struct Replica {
    server: Server,
    streamed: Streamed,
    /// At the server that the stream comes from.
    primary: Catalog,
    /// At the standby, to ask for its timeline. No statement tells that there.
    session: Option<Connection>,
}

impl Replica {
    /// Of a stream whose settings name a standby; connects when it is needed.
    pub fn of(streamed: &Streamed) -> Option<Self> {
        let server = streamed.settings.reader.clone()?;
        Some(Self { server, streamed: streamed.clone(), primary: Catalog::new(&streamed.settings), session: None })
    }

    /// Connects to a standby and makes sure that it is one of the stream's server. The very server, if it was not connected before.
    pub async fn connect(&mut self) -> Result<Option<Server>> {
        if self.session.is_some() {
            return Ok(None);
        }
        let mut session = open(&self.server).await?;
        require_kin(&self.server, &mut session, &self.streamed).await?;
        let server = session.pin(&self.server);
        self.session = Some(session);
        Ok(Some(server))
    }

    /// What a standby must have replayed before its first chunk: what was published so far is not behind it, for only what is flushed is.
    pub async fn gate(&mut self) -> Result<Option<Lsn>> {
        let rows =
            self.primary.query("SELECT CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_flush_lsn() END").await?;
        Ok(rows.first().and_then(|row| cell(row, 0).parse().ok()))
    }

    /// A place behind everything that a snapshot of the standby shows that was taken before.
    pub async fn barrier(&mut self) -> Result<Lsn> {
        let sql = "SELECT CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_insert_lsn() END";
        let rows = self.primary.query(sql).await?;
        let Some(end) = rows.first().filter(|row| !cell(row, 0).is_empty()) else {
            return Err(unfit(&self.server, "the source is a standby itself, whose rows are read from nowhere else")
                .hint("Remove `backfill_url`, or set `url` to the primary."));
        };
        Ok(start_of_page(cell(end, 0).parse().map_err(|()| protocol("the server's log position cannot be read"))?))
    }

    /// What is waited for before rows of a snapshot can be used that was taken after `replayed`, and before now.
    pub async fn waits_for(&mut self, replayed: Lsn) -> Result<Option<String>> {
        let floor = Lsn(self.streamed.floor.load(Ordering::Acquire));
        if replayed < floor {
            return Ok(Some(format!("the standby of backfill_url to replay the log to {floor}; it is at {replayed}")));
        }
        let Some(session) = &mut self.session else { return Err(protocol("the standby's session is gone")) };
        let rows = session.query("IDENTIFY_SYSTEM").await?;
        let found = rows.first().map(|row| cell(row, 1)).unwrap_or_default();
        let wanted = slot::timeline(&self.streamed.identity).to_string();
        Ok((found != wanted).then(|| {
            format!("the standby of backfill_url and the source to be on one timeline; they are on {found} and {wanted}")
        }))
    }

    /// Rows are handed out of a snapshot that was taken after `replayed`.
    pub fn raise_floor(&self, replayed: Lsn) {
        self.streamed.floor.fetch_max(replayed.0, Ordering::AcqRel);
    }

    /// The server is no standby, or not any more.
    pub fn not_a_standby(&self) -> Error {
        not_a_standby(&self.server)
    }

    /// Forgets the session at the standby.
    pub fn hang_up(&mut self) {
        self.session = None;
    }

    /// Ends the sessions.
    pub async fn rest(&mut self) {
        self.primary.rest().await;
        if let Some(session) = self.session.take() {
            session.close().await;
        }
    }
}

async fn open(server: &Server) -> Result<Connection> {
    Connection::open(server, Purpose::Replication).await.map_err(|error| {
        let error = error.at("option", OPTION);
        match error.code().id == codes::PRIVILEGE.id {
            true => error.hint(format!("Run ALTER ROLE {} REPLICATION; on the primary.", ident(&server.user))),
            false => error,
        }
    })
}

/// Fails if a server is none of the stream's system, or another database of it. Whether it replays is asked with each chunk.
async fn require_kin(server: &Server, session: &mut Connection, streamed: &Streamed) -> Result<()> {
    let found = slot::identify(session, &streamed.settings).await?;
    for part in ["system", "database"] {
        let (source, here) = (streamed.identity.get(part).unwrap_or_default(), found.get(part).unwrap_or_default());
        if source != here {
            return Err(unfit(server, format!("the source is {part} {source}, and this is {here}"))
                .hint("Set `backfill_url` to a standby of the source and to the same database, or remove it."));
        }
    }
    Ok(())
}

fn unfit(server: &Server, what: impl Into<String>) -> Error {
    Error::new(&codes::READER_UNFIT, what).at("option", OPTION).at("server", server.endpoint())
}

fn not_a_standby(server: &Server) -> Error {
    unfit(server, "the server is no standby, or not any more")
        .hint("Set `backfill_url` to a standby of the source, or remove it to read rows from the source itself; then restart the connector.")
}

/// What `check` says of the standby. Fails only if the primary cannot be asked.
pub async fn findings(primary: &mut Catalog, settings: &Settings, tables: &[TableFacts], found: &mut Vec<Finding>) -> Result<()> {
    let Some(server) = &settings.reader else { return Ok(()) };
    if server.password_in_url {
        found.push(Finding::warning(
            Error::new(&codes::PASSWORD_IN_URL, "the password stands in the url")
                .at("option", OPTION)
                .hint("Take it out of the url and set `password: { env: NAME }` or `password: { file: PATH }`."),
        ));
    }
    if primary.is_standby().await? {
        let error = unfit(server, "the source is a standby itself, whose rows are read from nowhere else");
        found.push(Finding::error(error.hint("Remove `backfill_url`, or set `url` to the primary.")));
        return Ok(());
    }
    let mut session = slot::replication_session(settings).await?;
    let identity = slot::identify(&mut session, settings).await?;
    let streamed = Streamed::new(Arc::new(settings.clone()), identity);
    session.close().await;
    let end = primary.value("SELECT pg_current_wal_flush_lsn()").await?;
    if let Err(error) = look(server, &streamed, (end, tables), found).await {
        found.push(Finding::error(error));
    }
    Ok(())
}

async fn look(
    server: &Server,
    streamed: &Streamed,
    (end, tables): (Option<String>, &[TableFacts]),
    found: &mut Vec<Finding>,
) -> Result<()> {
    let mut session = open(server).await?;
    require_kin(server, &mut session, streamed).await?;
    let mut standby = Catalog::at(&streamed.settings, session.pin(server));
    session.close().await;
    if !standby.is_standby().await? {
        return Err(not_a_standby(server));
    }
    let oids: Vec<String> = tables.iter().map(|table| table.oid.to_string()).collect();
    let hidden = standby
        .query(&format!(
            "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.oid = ANY ('{{{}}}'::oid[]) \
             AND NOT (has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE')) ORDER BY 1, 2",
            oids.join(",")
        ))
        .await?;
    for row in &hidden {
        let (schema, table, user) = (ident(cell(row, 0)), ident(cell(row, 1)), ident(&server.user));
        let hint =
            format!("Run GRANT USAGE ON SCHEMA {schema} TO {user}; GRANT SELECT ON {schema}.{table} TO {user}; on the primary.");
        let error = Error::new(&codes::PRIVILEGE, "the role of backfill_url may not read a table");
        found.push(Finding::error(error.at("table", format!("{}.{}", cell(row, 0), cell(row, 1))).hint(hint)));
    }
    let sql = format!(
        "SELECT pg_wal_lsn_diff('{}', pg_last_wal_replay_lsn())::bigint, pg_is_wal_replay_paused()",
        end.unwrap_or_default()
    );
    let rows = standby.query(&sql).await?;
    standby.rest().await;
    let row = rows.first().map(Vec::as_slice).unwrap_or_default();
    let behind: u64 = cell(row, 0).parse().unwrap_or(0);
    let much = behind > streamed.settings.backfill.max_lag_megabytes << 20;
    found.push(match (flag(row, 1), much) {
        (false, false) => {
            Finding::ok(format!("rows are read from the standby at {}, which is {behind} bytes behind", server.endpoint()))
        }
        (is_paused, _) => Finding::warning(
            Error::new(&codes::READER_LAGS, match is_paused {
                true => "the replay of the standby that rows are read from is paused".to_owned(),
                false => format!("the standby that rows are read from is {behind} bytes behind"),
            })
            .at("option", OPTION)
            .at("server", server.endpoint())
            .hint("Run SELECT pg_wal_replay_resume(); on the standby if its replay is paused; else wait until it has caught up, or remove `backfill_url`."),
        ),
    });
    Ok(())
}
