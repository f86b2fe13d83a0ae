//! The replication slot and the identity of the server it lives on.

use std::time::Duration;

use headwater_connector::{Error, Identity, Result, fault};
use serde::{Deserialize, Serialize};

use crate::{
    catalog::{Catalog, cell, flag},
    codes,
    config::Settings,
    connection::{Connection, Purpose, ident, literal},
    error::protocol,
    position::{Lsn, Place},
};

/// Creating a slot waits for every transaction that is running at the server.
const CREATE_PATIENCE: Duration = Duration::from_secs(600);
/// What shapes ordinals besides the publication (a partial position is only good under the same).
const OPTIONS: &str = "proto_version=1";

/// A slot as the server has it.
#[derive(Debug)]
pub struct Slot {
    /// Session that uses it.
    pub active_pid: Option<u32>,
    /// Whether that session bears our application name: another start of this connector.
    pub ours: bool,
    /// Everything before it may be forgotten; none after a restore.
    pub confirmed: Option<Lsn>,
    wal_status: String,
    foreign: Option<String>,
}

/// The words of an intent, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct Detail {
    /// Name of the slot.
    pub slot: String,
    /// Name of the publication.
    pub publication: String,
    /// Where an adopted slot stood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_flush_lsn: Option<String>,
}

/// Looks it up; none if it does not exist.
pub async fn find(catalog: &mut Catalog, settings: &Settings) -> Result<Option<Slot>> {
    let rows = catalog
        .query(&format!(
            "SELECT slot_type, coalesce(plugin, ''), coalesce(database, ''), temporary, active_pid, confirmed_flush_lsn, \
             coalesce(wal_status, ''), current_database(), \
             coalesce((SELECT application_name FROM pg_stat_activity a WHERE a.pid = active_pid), '') \
             FROM pg_replication_slots WHERE slot_name = {}",
            literal(&settings.slot)
        ))
        .await?;
    Ok(rows.first().map(|row| {
        let foreign = match (cell(row, 0), cell(row, 1), cell(row, 2)) {
            ("logical", "pgoutput", database) if database == cell(row, 7) => flag(row, 3).then(|| "is temporary".to_owned()),
            ("logical", "pgoutput", database) => Some(format!("belongs to database {database:?}")),
            ("logical", plugin, _) => Some(format!("uses the plugin {plugin:?}")),
            (kind, ..) => Some(format!("is a {kind} slot")),
        };
        Slot {
            active_pid: cell(row, 4).parse().ok(),
            ours: cell(row, 8) == settings.server.application_name,
            confirmed: cell(row, 5).parse().ok(),
            wal_status: cell(row, 6).to_owned(),
            foreign,
        }
    }))
}

impl Slot {
    /// Fails unless it is ours to read and still has its log. Its confirmed position.
    pub fn usable(&self, settings: &Settings) -> Result<Lsn> {
        if let Some(foreign) = &self.foreign {
            return Err(Error::new(&codes::SLOT_FOREIGN, format!("the slot {foreign}"))
                .at("slot", &settings.slot)
                .hint("Set `slot` to a name of its own."));
        }
        if self.wal_status == "lost" {
            return Err(Error::new(&codes::SLOT_INVALID, "the server removed log that the slot needs")
                .at("slot", &settings.slot)
                .hint("Begin anew under another connector name, and raise max_slot_wal_keep_size."));
        }
        // P17: a restored slot has no position; any guess would lose or repeat.
        self.confirmed.ok_or_else(|| {
            Error::new(&codes::SLOT_INVALID, "the slot has no confirmed position")
                .at("slot", &settings.slot)
                .hint("Drop the slot and begin anew under another connector name.")
        })
    }

    /// Fails if another session reads from it.
    pub fn free(&self, settings: &Settings) -> Result<()> {
        match self.active_pid {
            None => Ok(()),
            Some(pid) => Err(active(settings, &format!("the slot is active for process {pid}"))),
        }
    }
}

/// The slot is in use.
pub fn active(settings: &Settings, what: &str) -> Error {
    Error::new(&codes::SLOT_ACTIVE, what)
        .at("slot", &settings.slot)
        .hint("Stop the other program that uses this slot; the connector waits until it is free.")
}

/// Ends the session of an earlier start of this connector that still holds the slot. The caller has fenced that start at the log, so
/// whatever it still reads can never be published (C17); without this a fenced daemon on an idle server would keep the slot.
pub async fn end_predecessor(catalog: &mut Catalog, settings: &Settings) -> Result<()> {
    if let Some(Slot { active_pid: Some(pid), ours: true, .. }) = find(catalog, settings).await? {
        tracing::info!(slot = %settings.slot, pid, "ending the session of an earlier start");
        catalog.query(&format!("SELECT pg_terminate_backend({pid})")).await?;
    }
    Ok(())
}

/// The slot must exist and must not be ahead of what is published (rule 1.5(5)). It is never created again here: that would
/// hide the gap.
pub async fn require_behind(catalog: &mut Catalog, settings: &Settings, place: Place) -> Result<()> {
    if fault::variant("recreate-a-missing-slot") && find(catalog, settings).await?.is_none() {
        create(&mut replication_session(settings).await?, settings).await?;
        return Ok(());
    }
    let Some(slot) = find(catalog, settings).await? else {
        return Err(Error::new(&codes::SLOT_MISSING, "the replication slot does not exist")
            .at("slot", &settings.slot)
            .hint("Bring back the server that has the slot, or begin anew under another connector name."));
    };
    let confirmed = slot.usable(settings)?;
    if confirmed > place.base && !fault::variant("furthest-of-two-positions") {
        return Err(ahead(settings, confirmed, place.base));
    }
    Ok(())
}

/// Somebody moved the slot past what is published.
pub fn ahead(settings: &Settings, confirmed: Lsn, base: Lsn) -> Error {
    Error::new(&codes::SLOT_AHEAD, format!("the slot stands at {confirmed}, ahead of the position {base}"))
        .at("slot", &settings.slot)
        .hint("Find out who advanced or recreated the slot, then begin anew under another connector name.")
}

/// Creates the slot; its consistent point is the first position.
pub async fn create(session: &mut Connection, settings: &Settings) -> Result<Lsn> {
    // The old spelling of the options, which every version knows.
    let command = format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput NOEXPORT_SNAPSHOT", ident(&settings.slot));
    let refused = match session.query_within(&command, CREATE_PATIENCE).await? {
        Ok(rows) => {
            let point = rows.first().and_then(|row| cell(row, 1).parse().ok());
            return point.ok_or_else(|| protocol("the server names no consistent point"));
        }
        Err(refused) => refused,
    };
    match refused.state.as_str() {
        "42710" => Err(appeared(settings)),
        "55000" => Err(Error::new(&codes::WAL_LEVEL, refused.text())
            .hint("Run ALTER SYSTEM SET wal_level = 'logical'; and restart the server.")),
        _ => {
            let error = refused.clone().into_error().at("slot", &settings.slot);
            let role = ident(&settings.server.user);
            Err(if refused.state == "42501" { error.hint(format!("Run ALTER ROLE {role} REPLICATION;")) } else { error })
        }
    }
}

/// The slot exists although it did not when we looked.
pub fn appeared(settings: &Settings) -> Error {
    Error::new(&codes::SLOT_APPEARED, "a slot of this name exists already")
        .at("slot", &settings.slot)
        .hint("Stop the other daemon that starts with this configuration, or set `slot` to another name.")
}

/// Opens a replication session, with the hint that fits a role that may not have one.
pub async fn replication_session(settings: &Settings) -> Result<Connection> {
    Connection::open(&settings.server, Purpose::Replication).await.map_err(|error| {
        if error.code().id == codes::PRIVILEGE.id {
            return error.hint(format!("Run ALTER ROLE {} REPLICATION;", ident(&settings.server.user)));
        }
        error
    })
}

/// Which server and database a replication session is connected to.
pub async fn identify(session: &mut Connection, settings: &Settings) -> Result<Identity> {
    let system = session.query("IDENTIFY_SYSTEM").await?;
    let database = session.query("SELECT oid FROM pg_database WHERE datname = current_database()").await?;
    let (Some(system), Some(database)) = (system.first(), database.first()) else {
        return Err(protocol("the server does not say which one it is"));
    };
    Ok(Identity::from([
        ("system", cell(system, 0).to_owned()),
        ("timeline", cell(system, 1).to_owned()),
        // The object id tells a database from a later one of the same name.
        ("database", format!("{}/{}", cell(database, 0), cell(system, 3))),
        ("slot", settings.slot.clone()),
        ("publication", settings.publication.clone()),
        ("options", OPTIONS.to_owned()),
    ]))
}

/// Compares all but the timeline, which may change with a failover (see [`require_history`]).
pub fn require_same(stored: &Identity, found: &Identity) -> Result<()> {
    for part in ["system", "database", "slot", "publication", "options"] {
        let (stored, found) = (stored.get(part).unwrap_or_default(), found.get(part).unwrap_or_default());
        if stored != found {
            return Err(Error::new(
                &codes::OTHER_SOURCE,
                format!("the checkpoint was written for {part} {stored}, this is {found}"),
            )
            .hint("Set `url`, `slot` and `publication` back to what they were, name the connector anew, or reset it."));
        }
    }
    Ok(())
}

/// After a failover or a restore: the server must have left the checkpoint's timeline behind the position (P18, P19).
pub async fn require_history(session: &mut Connection, stored: &Identity, found: &Identity, place: Place) -> Result<()> {
    let timeline = |identity: &Identity| identity.get("timeline").and_then(|text| text.parse::<u32>().ok()).unwrap_or(0);
    let (old, new) = (timeline(stored), timeline(found));
    if old == new {
        return Ok(());
    }
    let reached = place.partial.map_or(place.base, |partial| partial.commit);
    let rows = if old < new { session.query(&format!("TIMELINE_HISTORY {new}")).await? } else { Vec::new() };
    let switch = rows.first().and_then(|row| switch_point(cell(row, 1), old));
    if switch.is_some_and(|switch| switch >= reached) {
        return Ok(());
    }
    Err(Error::new(&codes::DIVERGED, format!("the server left timeline {old} before the position {reached}"))
        .at("timeline", new)
        .hint("Bring back the former primary, or begin anew under another connector name."))
}

/// A history file has a line `timeline <tab> LSN <tab> reason` for each timeline that was left.
fn switch_point(history: &str, timeline: u32) -> Option<Lsn> {
    history.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let found: u32 = fields.next()?.parse().ok()?;
        let switch = fields.next()?.parse().ok()?;
        (found == timeline).then_some(switch)
    })
}

/// The command that starts the stream.
pub fn start_command(settings: &Settings, base: Lsn) -> String {
    // The option's value is a list of identifiers inside a literal.
    let publications = literal(&ident(&settings.publication));
    let base = match base {
        Lsn(base) if fault::variant("resume-past-the-end") => Lsn(base + 1),
        _ if fault::variant("resume-where-the-slot-stands") => Lsn(0),
        base => base,
    };
    format!(
        "START_REPLICATION SLOT {} LOGICAL {base} (proto_version '1', publication_names {publications})",
        ident(&settings.slot)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_file_tells_where_a_timeline_was_left() {
        let history = "1\t0/3000158\tno recovery target specified\n\n2\t0/5000000\tat restore point \"x\"\n";
        assert_eq!(switch_point(history, 1), Some(Lsn(0x300_0158)));
        assert_eq!(switch_point(history, 2), Some(Lsn(0x500_0000)));
        assert_eq!(switch_point(history, 3), None);
        assert_eq!(switch_point("nonsense", 1), None);
    }
}
