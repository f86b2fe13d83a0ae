//! The replication slot and the identity of the server it lives on.

use headwater_connector::{Error, Identity, Intent, Result, fault};
use serde::{Deserialize, Serialize};

use crate::{
    catalog::{Catalog, cell, flag, number},
    codes,
    config::Settings,
    connection::{Connection, Purpose, ident, literal},
    error::protocol,
    position::{Lsn, Place},
};

/// What shapes ordinals besides the publication (a partial position is only good under the same). Which prefixes are wanted does not:
/// the server sends all messages or none.
fn options(settings: &Settings) -> &'static str {
    if settings.messages.is_empty() { "proto_version=1" } else { "proto_version=1, messages" }
}

/// A slot as the server has it.
#[derive(Debug)]
pub struct Slot {
    /// Session that uses it.
    pub active_pid: Option<u32>,
    /// Whether that session bears our application name: another start of this connector.
    pub ours: bool,
    /// Everything before it may be forgotten; none after a restore.
    pub confirmed: Option<Lsn>,
    /// Whether standbys keep a copy of it (17 and newer).
    pub failover: bool,
    /// Whether it is such a copy, which nobody may read before the standby is promoted.
    pub copy: bool,
    /// Bytes of log that the server keeps for it.
    pub retained: Option<u64>,
    /// Bytes that may still be written before the server gives it up; none without a limit.
    pub safe: Option<i64>,
    /// Why the server gave it up.
    reason: Option<String>,
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

impl Detail {
    /// Reads an intent's words.
    pub fn of(intent: &Intent) -> Result<Self> {
        serde_json::from_str(&intent.detail).map_err(|_| protocol("the stored intent cannot be read"))
    }
}

/// Looks it up; none if it does not exist.
pub async fn find(catalog: &mut Catalog, settings: &Settings) -> Result<Option<Slot>> {
    // Columns that not every version has are looked up by name in a document of the row.
    let rows = catalog
        .query(&format!(
            "SELECT slot_type, coalesce(plugin, ''), coalesce(database, ''), temporary, active_pid, confirmed_flush_lsn, \
             coalesce(wal_status, ''), current_database(), \
             coalesce((SELECT application_name FROM pg_stat_activity a WHERE a.pid = active_pid), ''), \
             to_jsonb(s) ->> 'invalidation_reason', \
             coalesce(to_jsonb(s) ->> 'conflicting', 'false') = 'true' AND restart_lsn IS NOT NULL, \
             coalesce(to_jsonb(s) ->> 'failover', 'false') = 'true', \
             coalesce(to_jsonb(s) ->> 'synced', 'false') = 'true' AND pg_is_in_recovery(), \
             trunc(pg_wal_lsn_diff({END_OF_LOG}, restart_lsn)), safe_wal_size \
             FROM pg_replication_slots s WHERE slot_name = {}",
            literal(&settings.slot)
        ))
        .await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let foreign = match (cell(row, 0), cell(row, 1), cell(row, 2)) {
        ("logical", "pgoutput", database) if database == cell(row, 7) => flag(row, 3).then(|| "is temporary".to_owned()),
        ("logical", "pgoutput", database) => Some(format!("belongs to database {database:?}")),
        ("logical", plugin, _) => Some(format!("uses the plugin {plugin:?}")),
        (kind, ..) => Some(format!("is a {kind} slot")),
    };
    let reason = match (cell(row, 9), cell(row, 6)) {
        // Until version 16 the server tells no reason. A slot whose log was removed has nothing left to restart from.
        ("", "lost") => Some(if flag(row, 10) { "conflict" } else { "wal_removed" }.to_owned()),
        ("", _) => None,
        (reason, _) => Some(reason.to_owned()),
    };
    Ok(Some(Slot {
        active_pid: cell(row, 4).parse().ok(),
        ours: cell(row, 8) == settings.server.application_name,
        confirmed: cell(row, 5).parse().ok(),
        failover: flag(row, 11),
        // A copy that is not yet good enough to be kept is temporary, and looks foreign for as long.
        copy: flag(row, 12),
        retained: number(row, 13).ok(),
        safe: number(row, 14).ok(),
        reason,
        foreign: foreign.filter(|_| !flag(row, 12)),
    }))
}

/// The end of the server's log: on a standby, of what it has replayed.
pub const END_OF_LOG: &str = "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END";

impl Slot {
    /// Fails unless it is ours to read and still has its log. Its confirmed position.
    pub fn usable(&self, settings: &Settings) -> Result<Lsn> {
        let error = |code, what: &str, hint: &str| Err(Error::new(code, what).at("slot", &settings.slot).hint(hint));
        self.require_native(settings)?;
        if self.copy {
            return error(
                &codes::SLOT_SYNCING,
                "the server is a standby, and the slot on it is a copy of its primary's",
                "Set `url` to the primary, or promote this standby with SELECT pg_promote();.",
            );
        }
        if let Some(reason) = &self.reason {
            return Err(invalidated(settings, reason));
        }
        match (self.confirmed, self.active_pid) {
            (Some(confirmed), _) => Ok(confirmed),
            // Another session is still creating it.
            (None, Some(pid)) => Err(active(settings, &format!("the slot is being created by process {pid}"))),
            // P17: a restored slot has no position; any guess would lose or repeat.
            (None, None) => error(
                &codes::SLOT_UNCONFIRMED,
                "the slot has no confirmed position",
                "Drop the slot, then begin anew with `headwater reset`.",
            ),
        }
    }

    /// Fails if no connector of this database can have made it.
    pub fn require_native(&self, settings: &Settings) -> Result<()> {
        match &self.foreign {
            None => Ok(()),
            Some(foreign) => Err(Error::new(&codes::SLOT_FOREIGN, format!("the slot {foreign}"))
                .at("slot", &settings.slot)
                .hint("Set `slot` to a name of its own.")),
        }
    }

    /// Fails if another session reads from it.
    pub fn free(&self, settings: &Settings) -> Result<()> {
        match self.active_pid {
            None => Ok(()),
            Some(pid) => Err(active(settings, &format!("the slot is active for process {pid}"))),
        }
    }
}

/// The server gave the slot up (P14, P28). Each reason has its own remedy against the next time.
fn invalidated(settings: &Settings, reason: &str) -> Error {
    let (code, what, hint) = match reason {
        "wal_removed" => (
            &codes::SLOT_INVALID,
            "the server removed log that the slot needs".to_owned(),
            "Raise max_slot_wal_keep_size at the server, then begin anew with `headwater reset`.",
        ),
        // 16 tells only that the standby's recovery conflicted with it.
        "rows_removed" | "conflict" => (
            &codes::SLOT_CONFLICT,
            "the standby replayed the removal of catalogue rows that the slot needs".to_owned(),
            "Set hot_standby_feedback = on and primary_slot_name at the standby, then begin anew with `headwater reset`.",
        ),
        "wal_level_insufficient" => (
            &codes::SLOT_WAL_LEVEL,
            "the primary's wal_level was lowered".to_owned(),
            "Set wal_level = 'logical' at the primary, restart it, then begin anew with `headwater reset`.",
        ),
        "idle_timeout" => (
            &codes::SLOT_IDLED,
            "nobody read the slot for longer than idle_replication_slot_timeout".to_owned(),
            "Raise idle_replication_slot_timeout at the server, then begin anew with `headwater reset`.",
        ),
        other => (
            &codes::SLOT_INVALID,
            format!("the server invalidated the slot, for the reason {other}"),
            "Look up the reason in the server's manual, then begin anew with `headwater reset`.",
        ),
    };
    Error::new(code, what).at("slot", &settings.slot).hint(hint)
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

/// The slot must exist and must not be ahead of what is published (rule 1.5(5)), and the server must have that much log. The slot is
/// never created again here: that would hide the gap.
pub async fn require_behind(catalog: &mut Catalog, settings: &Settings, place: Place, moved: bool) -> Result<Slot> {
    if fault::variant("recreate-a-missing-slot") && find(catalog, settings).await?.is_none() {
        let name = literal(&settings.slot);
        catalog.query(&format!("SELECT pg_create_logical_replication_slot({name}, 'pgoutput')")).await?;
    }
    let Some(slot) = find(catalog, settings).await? else { return Err(missing(settings, moved)) };
    let confirmed = slot.usable(settings)?;
    // A slot made again in silence is believed as well.
    let believed = fault::variant("furthest-of-two-positions") || fault::variant("recreate-a-missing-slot");
    if confirmed > place.base && !believed {
        return Err(ahead(settings, confirmed, place.base));
    }
    let rows = catalog.query(&format!("SELECT {END_OF_LOG}, pg_is_in_recovery()")).await?;
    let row = rows.first().map(Vec::as_slice).unwrap_or_default();
    let end: Lsn = cell(row, 0).parse().map_err(|()| protocol("the server's log position cannot be read"))?;
    if end >= place.base {
        return Ok(slot);
    }
    // A server would silently wait until its log has grown past the position, and leave out what it wrote until then.
    let what = format!("the server's log ends at {end}, before the position {}", place.base);
    Err(if flag(row, 1) {
        Error::new(&codes::STANDBY_BEHIND, what).hint("Wait until the standby has replayed what its primary sent.")
    } else {
        Error::new(&codes::SERVER_BEHIND, what)
            .hint("Bring back the server that the position was read from, or begin anew with `headwater reset`.")
    })
}

/// The slot of a checkpoint is gone. `moved`: the server was promoted since, and did not have it.
pub fn missing(settings: &Settings, moved: bool) -> Error {
    let error = if moved {
        Error::new(&codes::SLOT_NOT_SYNCED, "the server was promoted without the replication slot")
            .hint("Bring back the former primary, or begin anew with `headwater reset`; then set sync_replication_slots = on at each standby.")
    } else {
        Error::new(&codes::SLOT_MISSING, "the replication slot does not exist")
            .hint("Bring back the server that has the slot, or begin anew with `headwater reset`.")
    };
    error.at("slot", &settings.slot)
}

/// Somebody moved the slot past what is published.
pub fn ahead(settings: &Settings, confirmed: Lsn, base: Lsn) -> Error {
    Error::new(&codes::SLOT_AHEAD, format!("the slot stands at {confirmed}, ahead of the position {base}"))
        .at("slot", &settings.slot)
        .hint("Find out who advanced or recreated the slot, then begin anew with `headwater reset`.")
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

/// The part of an identity that tells a publication from a later one of the same name.
pub const PUBLICATION_ID: &str = "publication_id";

/// Which server and database a replication session is connected to.
pub async fn identify(session: &mut Connection, settings: &Settings) -> Result<Identity> {
    let system = session.query("IDENTIFY_SYSTEM").await?;
    let database = session.query("SELECT oid FROM pg_database WHERE datname = current_database()").await?;
    let name = literal(&settings.publication);
    let publication = session.query(&format!("SELECT oid FROM pg_publication WHERE pubname = {name}")).await?;
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
        ("options", options(settings).to_owned()),
        (PUBLICATION_ID, publication.first().map(|row| cell(row, 0)).unwrap_or_default().to_owned()),
    ]))
}

/// Compares all but the timeline, which may change with a failover (see [`require_history`]), and the options, which may change between
/// two transactions (see [`require_same_ordinals`]).
pub fn require_same(stored: &Identity, found: &Identity) -> Result<()> {
    for part in ["system", "database", "slot", "publication"] {
        let (stored, found) = (stored.get(part).unwrap_or_default(), found.get(part).unwrap_or_default());
        if stored != found {
            return Err(other_source(part, stored, found).hint("Set `url`, `slot` and `publication` back to what they were, or accept this one with `headwater reset CONNECTOR --rebind`."));
        }
    }
    Ok(())
}

/// C23: a place inside a transaction counts what the server sends, so there the options that shape that must stay.
pub fn require_same_ordinals(stored: &Identity, found: &Identity, place: Place) -> Result<()> {
    let (stored, found) = (stored.get("options").unwrap_or_default(), found.get("options").unwrap_or_default());
    let Some(partial) = place.partial.filter(|_| stored != found) else { return Ok(()) };
    Err(other_source("options", stored, found)
        .at("transaction", format!("{}@{}", partial.xid, partial.commit))
        .hint("Set `messages` back to what it was until the transaction that is partly published has ended."))
}

/// One part of the identity differs.
pub fn other_source(part: &str, stored: &str, found: &str) -> Error {
    Error::new(&codes::OTHER_SOURCE, format!("the checkpoint was written for {part} {stored}, this is {found}"))
}

/// The timeline of an identity.
pub fn timeline(identity: &Identity) -> u32 {
    identity.get("timeline").and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// After a failover or a restore: the server must have left the position's timeline, `left`, behind the position (P18, P19).
pub async fn require_history(
    session: &mut Connection,
    catalog: &mut Catalog,
    settings: &Settings,
    (left, now): (u32, u32),
    place: Place,
) -> Result<()> {
    if left == now {
        return Ok(());
    }
    let reached = place.reached();
    let rows = if left < now { session.query(&format!("TIMELINE_HISTORY {now}")).await? } else { Vec::new() };
    if let Some(switch) = rows.first().and_then(|row| switch_point(cell(row, 1), left)) {
        // A standby that is read goes along when it, or its primary, is promoted, and its stream does not tell. Its slot does: what
        // was confirmed there behind the branching point came from this very server. (A copied slot never gets that far.)
        let confirmed = find(catalog, settings).await?.and_then(|slot| slot.confirmed);
        if switch >= reached || confirmed.is_some_and(|confirmed| confirmed > switch) {
            return Ok(());
        }
    }
    Err(Error::new(&codes::DIVERGED, format!("the server left timeline {left} before the position {reached}"))
        .at("timeline", now)
        .hint("Bring back the former primary, or begin anew with `headwater reset`."))
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
    let messages = if settings.messages.is_empty() { "" } else { ", messages 'true'" };
    format!(
        "START_REPLICATION SLOT {} LOGICAL {base} (proto_version '1', publication_names {publications}{messages})",
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
