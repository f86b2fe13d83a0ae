//! Every preflight, with the statement that mends what is wrong.

use headwater_connector::{BackfillMode, Error, Finding, Result};

use crate::{
    catalog::cell,
    codes,
    config::Settings,
    connection::{Connection, Flavour, ident, literal},
    connector::{Selected, select},
    inspect, omitted, replica,
    server::SslMode,
    stops,
};

/// A connector should be able to stand still over a long weekend.
const SHORT_RETENTION_S: u64 = 3 * 86_400;

/// Looks at everything.
pub async fn findings(connection: &mut Connection, settings: &Settings) -> Result<Vec<Finding>> {
    let mut found = vec![Finding::ok(format!("the server is {}", connection.version_text))];
    security(connection, settings, &mut found);
    let faults = inspect::faults(connection, settings).await?;
    if faults.is_empty() {
        found.push(Finding::ok("the binlog holds whole rows, with their columns described"));
    }
    if !inspect::has_names(connection).await? {
        found.push(Finding::warning(
            Error::new(&codes::GTID_OFF, "transactions have no GTIDs, so the position is good for this very server only").hint(
                "Run SET GLOBAL gtid_mode = ON; in the steps that `headwater explain HW3009` shows, before the first start.",
            ),
        ));
        if settings.backfill.mode != BackfillMode::Never {
            found.push(Finding::error(stops::backfill_without_names()));
        }
    }
    found.extend(faults.into_iter().map(Finding::error));
    grants(connection, settings, &mut found).await?;
    replicas(connection, settings, &mut found).await?;
    retention(connection, &mut found).await?;
    durability(connection, &mut found).await?;
    let (tables, faults) = select(connection, settings).await?;
    found.extend(tables.iter().map(|(_, table)| {
        Finding::ok(format!("table {} has key ({})", table.schema.table, table.schema.key_names().join(", ")))
    }));
    found.extend(faults.into_iter().map(Finding::error));
    found.extend(omitted::faults(connection, &tables).await?.into_iter().map(Finding::error));
    let replica = replica::look(connection).await?;
    found.extend(replica::faults(connection, replica.as_ref()).await?.into_iter().map(Finding::error));
    found.extend(replica::filtered(replica.as_ref()).map(Finding::warning));
    for cascade in cascades(connection, &tables).await? {
        found.push(if settings.accept_cascades { Finding::warning(cascade) } else { Finding::error(cascade) });
    }
    Ok(found)
}

fn security(connection: &Connection, settings: &Settings, found: &mut Vec<Finding>) {
    let server = &settings.server;
    if server.password_in_url {
        found.push(Finding::warning(
            Error::new(&codes::PASSWORD_IN_URL, "the password stands in the url")
                .hint("Take it out of the url and set `password: { env: NAME }` or `password: { file: PATH }`."),
        ));
    }
    if server.ssl_mode == SslMode::Require && server.ssl_root.is_none() {
        found.push(Finding::warning(
            Error::new(&codes::UNVERIFIED, "the connection is encrypted, but the server is not verified")
                .hint("Set sslmode=verify-full in the url."),
        ));
    } else if connection.is_encrypted() {
        found.push(Finding::ok("the connection is encrypted"));
    }
}

/// What the user may do, by the words of its grants. A role's grants are listed with it where the role is on.
async fn grants(connection: &mut Connection, settings: &Settings, found: &mut Vec<Finding>) -> Result<()> {
    let rows = connection.query("SHOW GRANTS").await?;
    let text: String =
        rows.iter().filter(|row| cell(row, 0).contains(" ON *.*")).map(|row| cell(row, 0).to_owned() + "\n").collect();
    let has = |words: &[&str]| words.iter().chain(&["ALL PRIVILEGES"]).any(|word| text.contains(word));
    let mut missing = Vec::new();
    if !has(&["REPLICATION SLAVE"]) {
        missing.push("REPLICATION SLAVE");
    }
    match connection.flavour {
        Flavour::Mysql if !has(&["REPLICATION CLIENT"]) => missing.push("REPLICATION CLIENT"),
        Flavour::Mariadb if !has(&["BINLOG MONITOR", "REPLICATION CLIENT"]) => missing.push("BINLOG MONITOR"),
        _ => {}
    }
    let user = connection.value("SELECT CURRENT_USER()").await?.unwrap_or_default();
    let (name, host) = user.rsplit_once('@').unwrap_or((&settings.server.user, "%"));
    let account = format!("{}@{}", literal(name), literal(host));
    found.push(match missing.is_empty() {
        true => Finding::ok("the user may read the binlog"),
        false => Finding::error(
            Error::new(&codes::PRIVILEGE, format!("the user lacks {}", missing.join(" and ")))
                .hint(format!("Run GRANT {} ON *.* TO {account};", missing.join(", "))),
        ),
    });
    Ok(())
}

/// Nobody else may have our number. Who may not ask is not told.
async fn replicas(connection: &mut Connection, settings: &Settings, found: &mut Vec<Finding>) -> Result<()> {
    let is_old = connection.flavour == Flavour::Mariadb || connection.version < (8, 1);
    let sql = if is_old { "SHOW SLAVE HOSTS" } else { "SHOW REPLICAS" };
    let Ok(rows) = connection.try_query(sql).await? else { return Ok(()) };
    let ours = settings.server_id.to_string();
    let taken = rows.iter().any(|row| cell(row, 0) == ours && cell(row, 1) != "headwater");
    found.push(match taken {
        true => Finding::error(inspect::server_id_taken(settings.server_id)),
        false => Finding::ok(format!("server id {ours} is free or ours")),
    });
    Ok(())
}

async fn retention(connection: &mut Connection, found: &mut Vec<Finding>) -> Result<()> {
    let kept = connection.try_query("SELECT @@global.binlog_expire_logs_seconds").await?;
    let seconds: u64 = kept.ok().and_then(|rows| rows.first().map(|row| cell(row, 0).parse().unwrap_or(0))).unwrap_or(0);
    found.push(match seconds {
        0 => Finding::ok("the server keeps its binlog until somebody deletes it"),
        SHORT_RETENTION_S.. => Finding::ok(format!("the server keeps its binlog for {} hours", seconds / 3600)),
        _ => Finding::warning(
            Error::new(&codes::RETENTION, format!("a connector that stands still for {seconds} s loses its place"))
                .hint("Run SET GLOBAL binlog_expire_logs_seconds = 604800; and put it into the server's configuration."),
        ),
    });
    Ok(())
}

/// Assumption A5: what was sent is not lost by a crash.
async fn durability(connection: &mut Connection, found: &mut Vec<Finding>) -> Result<()> {
    let rows = connection.query("SELECT @@global.sync_binlog, @@global.innodb_flush_log_at_trx_commit").await?;
    let row = rows.first().map(Vec::as_slice).unwrap_or_default();
    found.push(match (cell(row, 0), cell(row, 1)) {
        ("1", "1") => Finding::ok("the server's commits survive a crash"),
        (sync, flush) => Finding::warning(
            Error::new(
                &codes::DURABILITY,
                format!("a crash can lose transactions that are published (sync_binlog is {sync}, innodb_flush_log_at_trx_commit {flush})"),
            )
            .hint("Run SET GLOBAL sync_binlog = 1; SET GLOBAL innodb_flush_log_at_trx_commit = 1;"),
        ),
    });
    Ok(())
}

/// Selected tables whose rows the server changes by foreign keys and does not log.
pub async fn cascades(connection: &mut Connection, tables: &[Selected]) -> Result<Vec<Error>> {
    if logs_cascades(connection).await? {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for (facts, _) in tables {
        let table = format!("{}.{}", ident(&facts.database), ident(&facts.name));
        // MariaDB's catalogue shows foreign keys only to those who may change the table; its definition shows them to all who may read it.
        let rows = connection.query(&format!("SHOW CREATE TABLE {table}")).await?;
        let text = rows.first().map_or("", |row| cell(row, 1));
        for (name, rule) in text.lines().filter_map(cascade) {
            found.push(
                Error::new(&codes::CASCADES, format!("foreign key {name} changes rows without a trace in the binlog ({rule})"))
                    .at("table", facts.full_name())
                    .hint(format!(
                        "Run ALTER TABLE {table} DROP FOREIGN KEY {}; and add it again with RESTRICT, or set `accept_cascades: true`.",
                        ident(&name)
                    )),
            );
        }
    }
    Ok(found)
}

/// Whether the server writes to the binlog what foreign keys do. Since 9.6 MySQL can run them itself.
pub async fn logs_cascades(connection: &mut Connection) -> Result<bool> {
    let native = connection.query("SHOW VARIABLES LIKE 'innodb_native_foreign_keys'").await?;
    Ok(native.first().is_some_and(|row| cell(row, 1) == "OFF"))
}

/// Name and rules of a foreign key that changes rows, from its line in a table's definition.
pub fn cascade(line: &str) -> Option<(String, String)> {
    let rest = line.trim_start().strip_prefix("CONSTRAINT `")?;
    let (name, rest) = rest.split_once("` FOREIGN KEY ")?;
    // Behind the bracket of the other table's columns there are only the rules.
    let rule = rest.rsplit_once(')')?.1.trim().trim_end_matches(',');
    (rule.contains("CASCADE") || rule.contains("SET NULL")).then(|| (name.replace("``", "`"), rule.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::cascade;

    #[test]
    fn only_rules_that_change_rows_count() {
        let line =
            "  CONSTRAINT `a_``b` FOREIGN KEY (`item CASCADE`) REFERENCES `items` (`id`) ON DELETE SET NULL ON UPDATE CASCADE,";
        assert_eq!(cascade(line), Some(("a_`b".into(), "ON DELETE SET NULL ON UPDATE CASCADE".into())));
        assert_eq!(cascade("  CONSTRAINT `c` FOREIGN KEY (`CASCADE`) REFERENCES `items` (`id`)"), None);
        assert_eq!(cascade("  `note` text COMMENT 'ON DELETE CASCADE',"), None);
    }
}
