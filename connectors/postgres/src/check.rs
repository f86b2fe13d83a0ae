//! Preflight: everything an operator should know, at once, each with the statement that mends it.

use std::time::{SystemTime, UNIX_EPOCH};

use headwater_connector::{Action, BackfillMode, Column, Error, Finding, Result, Type};

use crate::{
    catalog::{Catalog, TableFacts, cell, flag, number},
    codes,
    config::{LargeValues, Settings, SslMode},
    connection::{ident, literal},
    connector::{Selected, select},
    creation,
    error::protocol,
    message, publication, replica, slot,
    slot::Slot,
    standby,
};

/// Every finding. Fails only if the server cannot be asked at all.
pub async fn findings(catalog: &mut Catalog, settings: &Settings) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    let version = catalog.sql().await?.major_version()?;
    found.push(match version {
        13.. => Finding::ok(format!("PostgreSQL {version} answers at {}", settings.server.endpoint())),
        _ => Finding::error(
            Error::new(&codes::TOO_OLD, format!("PostgreSQL {version} is too old")).hint("Upgrade to 13 or newer."),
        ),
    });
    transport(settings, catalog, &mut found).await?;
    server(catalog, settings, &mut found).await?;
    let (tables, faults) = select(catalog, settings).await?;
    found.extend(faults.into_iter().map(Finding::error));
    for (_, table) in &tables {
        let key = table.schema.key_names().join(", ");
        found.push(Finding::ok(format!("table {} is keyed by {key}", table.schema.table)));
    }
    if let Some(schema) = message::schema(settings) {
        let (table, key) = (&schema.table, schema.key_names().join(", "));
        found.push(Finding::ok(format!("logical messages become events as rows of {table}, keyed by {key}")));
    }
    large_values(settings, &tables, &mut found);
    generated(&tables, &mut found);
    key_forms(catalog, &tables, &mut found).await?;
    let facts: Vec<TableFacts> = tables.into_iter().map(|(facts, _)| facts).collect();
    publication(catalog, settings, &facts, &mut found).await?;
    replica::findings(catalog, settings, &facts, &mut found).await?;
    let slot = slot::find(catalog, settings).await?;
    slot_state(catalog, settings, slot.as_ref(), &mut found).await?;
    standby::findings(catalog, settings, slot.as_ref(), &mut found).await?;
    found.push(Finding::ok(match settings.backfill.mode {
        BackfillMode::Initial => "changes are published from the first start on, and rows from before it are read",
        BackfillMode::Never => "changes are published from the first start on; rows from before it are not read",
    }));
    Ok(found)
}

async fn transport(settings: &Settings, catalog: &mut Catalog, found: &mut Vec<Finding>) -> Result<()> {
    if settings.server.ssl_mode == SslMode::Require && settings.server.ssl_root.is_none() {
        found.push(Finding::warning(
            Error::new(&codes::UNVERIFIED, "sslmode=require does not check who answers")
                .at("server", settings.server.endpoint())
                .hint("Set sslmode=verify-full in the url, and sslrootcert if the authority is your own."),
        ));
    } else if catalog.sql().await?.is_encrypted() {
        found.push(Finding::ok("the connection is encrypted and the server's certificate is verified"));
    }
    if catalog.sql().await?.is_bound() {
        found.push(Finding::ok("the login is bound to the TLS channel (SCRAM-SHA-256-PLUS)"));
    }
    if !catalog.sql().await?.is_direct() {
        found.push(Finding::warning(
            Error::new(&codes::POOLER, "something between here and the server answers in its name")
                .at("server", settings.server.endpoint())
                .hint(
                    "Put the address of the server itself into the url, unless this is a proxy that keeps one session for each.",
                ),
        ));
    }
    if settings.server.password_in_url {
        found.push(Finding::warning(
            Error::new(&codes::PASSWORD_IN_URL, "the password stands in the url")
                .hint("Take it out of the url and set `password: { env: NAME }` or `password: { file: PATH }`."),
        ));
    }
    Ok(())
}

async fn server(catalog: &mut Catalog, settings: &Settings, found: &mut Vec<Finding>) -> Result<()> {
    let level = catalog.setting("wal_level").await?;
    found.push(match level.as_str() {
        "logical" => Finding::ok("wal_level is logical"),
        _ => Finding::error(
            Error::new(&codes::WAL_LEVEL, format!("wal_level is {level}"))
                .hint("Run ALTER SYSTEM SET wal_level = 'logical'; and restart the server."),
        ),
    });
    let rows = catalog
        .query(&format!(
            "SELECT (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user), \
             current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots), \
             current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_replication), \
             EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = {}), \
             has_database_privilege(current_database(), 'CREATE')",
            literal(&settings.slot)
        ))
        .await?;
    let row = rows.first().map(Vec::as_slice).unwrap_or_default();
    let role = ident(&settings.server.user);
    found.push(match flag(row, 0) {
        true => Finding::ok("the role may replicate"),
        false => Finding::error(
            Error::new(&codes::PRIVILEGE, "the role has no REPLICATION attribute")
                .hint(format!("Run ALTER ROLE {role} REPLICATION;")),
        ),
    });
    let (slots, senders): (i64, i64) = (number(row, 1)?, number(row, 2)?);
    capacity(found, "replication slot", "max_replication_slots", slots + i64::from(flag(row, 3)));
    capacity(found, "WAL sender", "max_wal_senders", senders);
    clock(catalog, found).await?;
    limits(catalog, found).await
}

/// Seconds that two clocks may differ before lag in seconds, which compares them, misleads.
const CLOCK_TOLERANCE: f64 = 2.0;

/// Record timestamps are the server's, and lag in seconds compares them with our clock. Nothing else depends on either.
async fn clock(catalog: &mut Catalog, found: &mut Vec<Finding>) -> Result<()> {
    let before = SystemTime::now();
    let theirs = catalog.value("SELECT extract(epoch FROM clock_timestamp())").await?;
    let after = SystemTime::now();
    let theirs: f64 = theirs.and_then(|text| text.parse().ok()).ok_or_else(|| protocol("the server's clock cannot be read"))?;
    let ours = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    found.push(judge_clock(theirs, (ours(before), ours(after))));
    Ok(())
}

/// The server's answer was given at some time between two looks at our clock.
fn judge_clock(theirs: f64, (before, after): (f64, f64)) -> Finding {
    let difference = if theirs < before { theirs - before } else { (theirs - after).max(0.0) };
    if difference.abs() <= CLOCK_TOLERANCE {
        return Finding::ok("the server's clock and ours agree");
    }
    let direction = if difference > 0.0 { "ahead of" } else { "behind" };
    Finding::warning(
        Error::new(&codes::CLOCK, format!("the server's clock is {:.0} s {direction} ours", difference.abs()))
            .hint("Set both clocks by NTP; until then, timestamps of records and lag in seconds are off by as much."),
    )
}

/// What can make the server give the slot up, or keep it for nobody.
async fn limits(catalog: &mut Catalog, found: &mut Vec<Finding>) -> Result<()> {
    let keep = catalog.setting("max_slot_wal_keep_size").await?;
    found.push(match keep.as_str() {
        "-1" => Finding::warning(
            Error::new(&codes::RETENTION, "a slot may keep log without bound (max_slot_wal_keep_size is -1)").hint(
                "Run ALTER SYSTEM SET max_slot_wal_keep_size = '100GB'; SELECT pg_reload_conf(); with a size that your disk has.",
            ),
        ),
        _ => Finding::ok(format!("a slot keeps up to {keep} of log; a connector that stands still for longer loses its place")),
    });
    // Version 18 and newer.
    let idle = catalog.setting("idle_replication_slot_timeout").await?;
    if !idle.is_empty() && idle != "0" {
        found.push(Finding::warning(
            Error::new(&codes::RETENTION, format!("a connector that is stopped for {idle} loses its place")).hint(
                "Run ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf(); and bound the log by max_slot_wal_keep_size.",
            ),
        ));
    }
    let timeout = catalog.setting("wal_sender_timeout").await?;
    found.push(match timeout.as_str() {
        "0" => Finding::warning(
            Error::new(
                &codes::SENDER_TIMEOUT,
                "wal_sender_timeout is 0: the server keeps the slot for a connection that is dead",
            )
            .hint("Run ALTER SYSTEM SET wal_sender_timeout = '60s'; SELECT pg_reload_conf();"),
        ),
        _ => Finding::ok(format!("the server gives up a dead connection after {timeout}")),
    });
    // Fixed by the minor versions of May 2025: a table that is published while a transaction writes to it.
    let version: u32 = catalog.setting("server_version_num").await?.parse().unwrap_or(u32::MAX);
    if loses_rows_of_new_tables(version) {
        found.push(Finding::warning(
            Error::new(&codes::TOO_OLD, "this minor version can lose rows of a table that is published while it is written to")
                .hint("Upgrade the server to its newest minor version, or stop writing to a table while it is added."),
        ));
    }
    Ok(())
}

fn loses_rows_of_new_tables(version: u32) -> bool {
    let (major, minor) = (version / 10_000, version % 10_000);
    minor
        < match major {
            13 => 21,
            14 => 18,
            15 => 13,
            16 => 9,
            17 => 5,
            _ => 0,
        }
}

fn capacity(found: &mut Vec<Finding>, what: &str, setting: &str, free: i64) {
    found.push(match free {
        1.. => Finding::ok(format!("a {what} is free")),
        _ => Finding::error(
            Error::new(&codes::CAPACITY, format!("no {what} is free"))
                .hint(format!("Run ALTER SYSTEM SET {setting} = 20; and restart the server.")),
        ),
    });
}

fn large_values(settings: &Settings, tables: &[Selected], found: &mut Vec<Finding>) {
    let names: Vec<String> = tables
        .iter()
        .filter(|(facts, _)| facts.has_large_values && facts.identity != 'f')
        .map(|(facts, _)| facts.full_name())
        .collect();
    match settings.large_values {
        _ if names.is_empty() => return,
        LargeValues::Absent => {}
        LargeValues::Refresh => {
            let text = "a large value that an update does not touch is absent from its event; an event of the whole row follows";
            found.push(Finding::ok(format!("{text}: {}", names.join(", "))));
            return;
        }
        LargeValues::Full => return,
    }
    found.push(Finding::warning(
        Error::new(&codes::ABSENT_VALUES, "large values that an update does not touch are absent from its event")
            .at("table", names.join(", "))
            .hint("Run ALTER TABLE ... REPLICA IDENTITY FULL; for these tables if readers need every column in every event."),
    ));
}

/// T19 and T20: keys that the database holds for equal and whose events have different keys. Events keep the text as it is stored.
async fn key_forms(catalog: &mut Catalog, tables: &[Selected], found: &mut Vec<Finding>) -> Result<()> {
    let oids: Vec<String> = tables.iter().map(|(facts, _)| facts.oid.to_string()).collect();
    let rows = catalog
        .query(&format!(
            "SELECT a.attrelid, a.attname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
             LEFT JOIN pg_type b ON b.oid = t.typbasetype LEFT JOIN pg_collation c ON c.oid = a.attcollation \
             WHERE a.attrelid = ANY ('{{{}}}'::oid[]) AND a.attnum > 0 AND NOT a.attisdropped \
             AND ('citext' IN (t.typname, b.typname) OR NOT c.collisdeterministic)",
            oids.join(",")
        ))
        .await?;
    for (facts, table) in tables {
        let oid = facts.oid.to_string();
        let many = |column: &&Column| {
            matches!(column.r#type, Type::Decimal { precision_scale: None } | Type::Float32 | Type::Float64 | Type::Interval)
                || rows.iter().any(|row| cell(row, 0) == oid && cell(row, 1) == column.name)
        };
        let keys = table.schema.key.iter().filter_map(|at| table.schema.columns.get(*at));
        let names: Vec<&str> = keys.filter(many).map(|column| column.name.as_str()).collect();
        if !names.is_empty() {
            found.push(Finding::warning(
                Error::new(&codes::KEY_FORMS, "values of a key column that the database holds for equal have different keys in events")
                    .at("table", facts.full_name())
                    .at("columns", names.join(", "))
                    .hint("Run ALTER TABLE ... ALTER COLUMN ... TYPE with numeric(p, s) or a deterministic collation, or let readers compare such keys as the database does."),
            ));
        }
    }
    Ok(())
}

/// T18: what readers of the table see and readers of the topic do not.
fn generated(tables: &[Selected], found: &mut Vec<Finding>) {
    for (facts, _) in tables.iter().filter(|(facts, _)| !facts.unsent.is_empty()) {
        let names: Vec<&str> = facts.unsent.iter().map(|column| column.name.as_str()).collect();
        let hint = if facts.unsent.iter().any(|column| column.publishable) {
            "Run ALTER PUBLICATION ... SET (publish_generated_columns = stored); for the connector's publication."
        } else {
            "Let readers compute them, or make them ordinary columns; this server does not publish them."
        };
        found.push(Finding::warning(
            Error::new(&codes::GENERATED, "generated columns of the table are not in its events")
                .at("table", facts.full_name())
                .at("columns", names.join(", "))
                .hint(hint),
        ));
    }
}

async fn publication(catalog: &mut Catalog, settings: &Settings, tables: &[TableFacts], found: &mut Vec<Finding>) -> Result<()> {
    let name = &settings.publication;
    let privilege =
        |what: &str, hint: String| Finding::error(Error::new(&codes::PRIVILEGE, what).at("publication", name).hint(hint));
    let not_owned: Vec<String> = tables.iter().filter(|table| !table.owned).map(TableFacts::full_name).collect();
    let Some(publication) = publication::find(catalog, settings).await? else {
        let statement = publication::create_statement(catalog, settings, tables).await?;
        let rows = catalog.query("SELECT has_database_privilege(current_database(), 'CREATE'), current_database()").await?;
        let row = rows.first().map(Vec::as_slice).unwrap_or_default();
        found.push(if !not_owned.is_empty() {
            let what = format!("the role cannot publish tables that it does not own: {}", not_owned.join(", "));
            privilege(&what, format!("Let the owner of the tables run {statement};"))
        } else if !flag(row, 0) {
            let (database, role) = (ident(cell(row, 1)), ident(&settings.server.user));
            privilege("the role may not create the publication", format!("Run GRANT CREATE ON DATABASE {database} TO {role};"))
        } else {
            Finding::ok(format!("publication {name} will be created"))
        });
        return Ok(());
    };
    if let Err(fault) = publication.require_whole(settings, tables) {
        found.push(Finding::error(fault));
    }
    if let Err(fault) = publication.require_kept(settings, tables) {
        found.push(Finding::error(fault));
        return Ok(());
    }
    let partial: Vec<&TableFacts> = tables.iter().filter(|table| publication.partial.contains(&table.full_name())).collect();
    if !partial.is_empty() {
        let names = partial.iter().map(|table| table.full_name()).collect::<Vec<_>>().join(", ");
        found.push(Finding::warning(
            Error::new(&codes::PUBLICATION_PARTIAL, "the publication leaves out rows or columns of tables")
                .at("publication", name)
                .at("table", names)
                .hint(format!("Run {}; if all are wanted.", publication::set_statement(settings, tables))),
        ));
    }
    let missing = publication.missing(tables);
    if missing.is_empty() {
        found.push(Finding::ok(format!("publication {name} has every selected table")));
    } else if publication.owned && missing.iter().all(|table| table.owned) {
        found.push(Finding::ok(format!("publication {name} will be extended")));
    } else {
        let statement = publication::add_statement(settings, &missing);
        found.push(privilege(
            "the publication lacks tables, and the role may not add them",
            format!("Let its owner run {statement};"),
        ));
    }
    Ok(())
}

async fn slot_state(catalog: &mut Catalog, settings: &Settings, slot: Option<&Slot>, found: &mut Vec<Finding>) -> Result<()> {
    let name = &settings.slot;
    let Some(slot) = slot else {
        found.push(Finding::ok(format!("replication slot {name} does not exist; a first start creates it")));
        let blockers = creation::blockers(catalog).await?;
        let stale: Vec<_> = blockers.into_iter().filter(|blocker| blocker.stale).collect();
        if !stale.is_empty() {
            found.push(Finding::warning(creation::waits(settings, &stale, false)));
        }
        return Ok(());
    };
    found.push(match (slot.usable(settings), slot.active_pid) {
        // A standby's copy is what it should be there.
        (Err(_), _) if slot.copy => {
            Finding::ok(format!("replication slot {name} is a copy that waits for this standby's promotion"))
        }
        (Err(fault), _) => Finding::error(fault),
        // A running daemon of ours looks just like this.
        (Ok(_), Some(_)) if slot.ours => Finding::ok(format!("replication slot {name} is read by a running headwater")),
        (Ok(_), Some(pid)) => Finding::warning(slot::active(settings, &format!("the slot is active for process {pid}"))),
        (Ok(confirmed), None) => Finding::ok(format!("replication slot {name} stands at {confirmed}")),
    });
    if let Some(retained) = slot.retained {
        found.push(match slot.safe {
            Some(..=0) => Finding::warning(
                Error::new(
                    &codes::RETENTION,
                    format!("the slot keeps {retained} bytes of log, which is more than the server allows"),
                )
                .at("slot", name)
                .hint("Start the connector now, or raise max_slot_wal_keep_size with ALTER SYSTEM and SELECT pg_reload_conf();"),
            ),
            Some(safe) => Finding::ok(format!("the slot keeps {retained} bytes of log, and loses its place after {safe} more")),
            None => Finding::ok(format!("the slot keeps {retained} bytes of log")),
        });
    }
    Ok(())
}

/// What a start would do.
pub async fn actions(catalog: &mut Catalog, settings: &Settings, fresh: bool) -> Result<Vec<Action>> {
    let (tables, faults) = select(catalog, settings).await?;
    if let Some(fault) = faults.into_iter().next() {
        return Err(fault);
    }
    let tables: Vec<TableFacts> = tables.into_iter().map(|(facts, _)| facts).collect();
    let (verb, detail) = match publication::find(catalog, settings).await? {
        None if fresh => ("create", publication::create_statement(catalog, settings, &tables).await?),
        None => return Err(publication::gone(settings, "the publication does not exist")),
        Some(found) => match found.missing(&tables) {
            missing if missing.is_empty() => ("keep", format!("{} tables", tables.len())),
            missing => ("alter", publication::add_statement(settings, &missing)),
        },
    };
    let mut actions = vec![Action { verb, object: "publication", name: settings.publication.clone(), detail }];
    let (verb, detail) = match slot::find(catalog, settings).await? {
        None if fresh => ("create", format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput", ident(&settings.slot))),
        None => return Err(slot::missing(settings, false)),
        Some(slot) => {
            let confirmed = slot.usable(settings)?;
            (if fresh { "adopt" } else { "keep" }, format!("confirmed_flush_lsn {confirmed}"))
        }
    };
    actions.push(Action { verb, object: "slot", name: settings.slot.clone(), detail });
    Ok(actions)
}

#[cfg(test)]
mod tests {
    use headwater_connector::Level;

    use super::*;

    #[test]
    fn minor_versions_that_lose_rows_are_known() {
        for bad in [130_020, 140_017, 150_012, 160_008, 170_004] {
            assert!(loses_rows_of_new_tables(bad) && !loses_rows_of_new_tables(bad + 1), "{bad}");
        }
        assert!(!loses_rows_of_new_tables(180_000));
    }

    #[test]
    fn only_a_clock_that_is_off_is_worth_a_warning() {
        let level = |theirs| judge_clock(theirs, (1000.0, 1000.5)).level;
        assert_eq!([level(1000.2), level(998.1), level(1002.4)], [Level::Ok; 3]);
        assert_eq!([level(997.0), level(1003.0)], [Level::Warning; 2]);
        let what = judge_clock(1060.5, (1000.0, 1000.5)).what;
        assert_eq!(what, "the server's clock is 60 s ahead of ours");
    }
}
