//! What role the server plays: a primary whose slot standbys may keep a copy of, or a standby that is read itself.

use headwater_connector::{Error, Finding, Result};

use crate::{
    catalog::{Catalog, cell, flag},
    codes,
    config::Settings,
    connection::{Connection, ident},
    slot::Slot,
};

/// The first version that decodes on a standby.
const DECODES_ON_STANDBY: u32 = 16;
/// The first version whose slots can be copied to standbys.
pub const HAS_FAILOVER: u32 = 17;

/// What decides what a server can do for us.
#[derive(Clone, Copy, Debug)]
pub struct Role {
    /// Its major version.
    pub version: u32,
    /// Whether it replays the log of a primary.
    pub standby: bool,
}

impl Role {
    /// Asks the server.
    pub async fn of(catalog: &mut Catalog) -> Result<Self> {
        let version = catalog.sql().await?.major_version()?;
        let standby = catalog.is_standby().await?;
        Ok(Self { version, standby })
    }

    /// Fails if the server can never be read from.
    pub fn require_decoding(self) -> Result<()> {
        if !self.standby || self.version >= DECODES_ON_STANDBY {
            return Ok(());
        }
        Err(Error::new(&codes::TOO_OLD, format!("PostgreSQL {} cannot decode on a standby", self.version))
            .hint("Set `url` to the primary, or upgrade to 16 or newer."))
    }

    /// Whether a slot is to be copied to standbys: wherever that is possible, unless the config says otherwise. It costs nothing while no
    /// standby asks for copies, and without it the first failover loses the connector's place.
    pub fn wants_failover(self, settings: &Settings) -> Result<bool> {
        let can = self.version >= HAS_FAILOVER && !self.standby;
        match settings.failover {
            Some(true) if !can => {
                let what = match self.standby {
                    true => "a slot on a standby cannot be copied to other servers".to_owned(),
                    false => format!("PostgreSQL {} cannot copy a slot to standbys", self.version),
                };
                Err(Error::new(&codes::FAILOVER, what)
                    .at("slot", &settings.slot)
                    .hint("Remove `failover: true`, or read from a primary of version 17 or newer."))
            }
            wanted => Ok(wanted.unwrap_or(can)),
        }
    }
}

/// Whether an existing slot is to become one that standbys copy, or no longer be one.
pub fn must_adjust(settings: &Settings, role: Role, failover: bool) -> Result<bool> {
    let wanted = role.wants_failover(settings)?;
    Ok(wanted != failover && !role.standby && role.version >= HAS_FAILOVER)
}

/// Changes whether standbys copy the slot, which must be free.
pub async fn adjust(session: &mut Connection, settings: &Settings, wanted: bool) -> Result<()> {
    tracing::info!(slot = %settings.slot, failover = wanted, "changing whether standbys keep a copy of the slot");
    session.query(&format!("ALTER_REPLICATION_SLOT {} (FAILOVER {wanted})", ident(&settings.slot))).await.map(drop)
}

fn fault(what: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::new(&codes::STANDBY_SETTING, what).hint(hint)
}

/// The findings about failover and standbys.
pub async fn findings(catalog: &mut Catalog, settings: &Settings, slot: Option<&Slot>, found: &mut Vec<Finding>) -> Result<()> {
    let role = Role::of(catalog).await?;
    if let Err(error) = role.require_decoding() {
        found.push(Finding::error(error));
        return Ok(());
    }
    let wanted = match role.wants_failover(settings) {
        Ok(wanted) => wanted,
        Err(error) => {
            found.push(Finding::error(error));
            false
        }
    };
    if role.standby {
        return on_standby(catalog, role, slot, found).await;
    }
    if role.version >= HAS_FAILOVER {
        on_primary(catalog, settings, wanted, found).await?;
    }
    Ok(())
}

async fn on_primary(catalog: &mut Catalog, settings: &Settings, wanted: bool, found: &mut Vec<Finding>) -> Result<()> {
    // The slot of a standby is active while that standby streams.
    let rows = catalog
        .query(
            "SELECT slot_name, active, \
             slot_name = ANY (string_to_array(replace(replace(current_setting('synchronized_standby_slots'), ' ', ''), '\"', ''), ',')) \
             FROM pg_replication_slots WHERE slot_type = 'physical' ORDER BY 1",
        )
        .await?;
    let listed = catalog.setting("synchronized_standby_slots").await?;
    let lagging: Vec<&str> = rows.iter().filter(|row| flag(row, 2) && !flag(row, 1)).map(|row| cell(row, 0)).collect();
    let known: Vec<&str> = rows.iter().map(|row| cell(row, 0)).collect();
    let names = listed.split(',').map(|name| name.trim().trim_matches('"')).filter(|name| !name.is_empty());
    let absent: Vec<&str> = names.filter(|name| !known.contains(name)).collect();
    if !wanted {
        if !rows.is_empty() {
            found.push(Finding::warning(
                Error::new(&codes::FAILOVER, "standbys do not copy the slot; a failover would lose the connector's place")
                    .at("slot", &settings.slot)
                    .hint("Remove `failover: false`."),
            ));
        }
        return Ok(());
    }
    if !absent.is_empty() || !lagging.is_empty() {
        let names = [absent, lagging].concat().join(", ");
        found.push(Finding::error(fault(
            format!("synchronized_standby_slots names slots that no standby uses, and holds back all changes for them: {names}"),
            "Start the standby, or take its slot out of the list with ALTER SYSTEM SET synchronized_standby_slots = '...'; SELECT pg_reload_conf();",
        )));
    } else if listed.is_empty() && !known.is_empty() {
        found.push(Finding::warning(fault(
            "changes can be published that no standby has yet; a failover to one that lags would stop the connector",
            format!("Run ALTER SYSTEM SET synchronized_standby_slots = '{}'; SELECT pg_reload_conf();", known.join(", ")),
        )));
    } else if known.is_empty() {
        found.push(Finding::ok("standbys can copy the slot; none has a slot of its own here"));
    } else {
        found.push(Finding::ok(format!("changes wait until the standbys have them: {listed}")));
    }
    Ok(())
}

async fn on_standby(catalog: &mut Catalog, role: Role, slot: Option<&Slot>, found: &mut Vec<Finding>) -> Result<()> {
    let reload = "SELECT pg_reload_conf();";
    if catalog.setting("hot_standby_feedback").await? != "on" {
        found.push(Finding::error(fault(
            "hot_standby_feedback is off: the primary removes catalogue rows that the slot needs, which invalidates it",
            format!("Run ALTER SYSTEM SET hot_standby_feedback = on; {reload} at the standby."),
        )));
    } else {
        found.push(Finding::ok("the standby tells its primary which rows it needs"));
    }
    if catalog.setting("primary_slot_name").await?.is_empty() {
        found.push(Finding::warning(fault(
            "primary_slot_name is empty: what the standby needs is not kept while it is disconnected",
            format!(
                "Run SELECT pg_create_physical_replication_slot('standby'); at the primary, then \
                 ALTER SYSTEM SET primary_slot_name = 'standby'; {reload} at the standby."
            ),
        )));
    } else {
        found.push(Finding::ok("the primary keeps what the standby needs"));
    }
    if role.version < HAS_FAILOVER {
        return Ok(());
    }
    // A slot of the standby's own needs no copies.
    if slot.is_some_and(|slot| !slot.copy) {
        return Ok(());
    }
    if catalog.setting("sync_replication_slots").await? != "on" {
        found.push(Finding::warning(fault(
            "sync_replication_slots is off: slots of the primary are not copied to this standby",
            format!("Run ALTER SYSTEM SET sync_replication_slots = on; {reload} at the standby."),
        )));
    } else {
        found.push(Finding::ok("the standby copies failover slots of its primary"));
    }
    // Only privileged roles see it; for others it is not there.
    let conninfo = catalog.value("SELECT setting FROM pg_settings WHERE name = 'primary_conninfo'").await?.unwrap_or_default();
    if !conninfo.is_empty() && !conninfo.contains("dbname") {
        found.push(Finding::warning(fault(
            "primary_conninfo names no database: slots cannot be copied without",
            format!("Add dbname=postgres to primary_conninfo with ALTER SYSTEM, then run {reload} at the standby."),
        )));
    }
    Ok(())
}
