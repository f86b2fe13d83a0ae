//! Every preflight, with the statement that mends what is wrong.

use headwater_connector::{BackfillMode, Error, Finding, Result};

use crate::{
    catalog::cell,
    codes,
    config::Settings,
    connection::{Connection, Flavour, ident},
    connector::{Selected, select},
    engines,
    grants::Grants,
    inspect, omitted, replica,
    retention::Rules,
    server::SslMode,
    stops,
};

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
    let grants = Grants::of(connection).await?;
    found.extend(grants.findings(connection.flavour));
    found.push(replicas(connection, settings, &grants).await?);
    found.extend(Rules::of(connection).await?.findings());
    durability(connection, &mut found).await?;
    let (tables, faults) = select(connection, settings).await?;
    found.extend(tables.iter().map(|(_, table)| {
        Finding::ok(format!("table {} has key ({})", table.schema.table, table.schema.key_names().join(", ")))
    }));
    found.extend(faults.into_iter().map(Finding::error));
    found.extend(engines::findings(connection, settings, &tables).await?);
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

/// Nobody else may have our number.
async fn replicas(connection: &mut Connection, settings: &Settings, grants: &Grants) -> Result<Finding> {
    let (sql, privilege) = match connection.flavour {
        Flavour::Mariadb => ("SHOW SLAVE HOSTS", "REPLICATION MASTER ADMIN"),
        Flavour::Mysql if connection.version < (8, 1) => ("SHOW SLAVE HOSTS", "REPLICATION SLAVE"),
        Flavour::Mysql => ("SHOW REPLICAS", "REPLICATION SLAVE"),
    };
    let ours = settings.server_id.to_string();
    let Ok(rows) = connection.try_query(sql).await? else {
        return Ok(grants.unseen(&format!("whether a replica has server id {ours}"), privilege));
    };
    let taken = rows.iter().any(|row| cell(row, 0) == ours && cell(row, 1) != "headwater");
    Ok(match taken {
        true => Finding::error(inspect::server_id_taken(settings.server_id)),
        false => Finding::ok(format!("server id {ours} is free or ours")),
    })
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
