//! What a server can be told to leave out of its binlog, and what rows a statement can reach. Of replicas, see [`replica`](crate::replica).

use headwater_connector::{Error, Result};

use crate::{
    catalog::cell,
    codes,
    connection::{Connection, Flavour, literal},
    connector::Selected,
    statement::Name,
};

/// Why changes of the tables would be missing. Who may not ask is told of that privilege elsewhere.
pub async fn faults(connection: &mut Connection, tables: &[Selected]) -> Result<Vec<Error>> {
    let mut found = Vec::new();
    let is_new = connection.flavour == Flavour::Mysql && connection.version >= (8, 2);
    let status = connection.try_query(if is_new { "SHOW BINARY LOG STATUS" } else { "SHOW MASTER STATUS" }).await?;
    if let Some(row) = status.ok().as_ref().and_then(|rows| rows.first()) {
        let listed = |at: usize| cell(row, at).split(',').map(str::trim).filter(|name| !name.is_empty()).collect::<Vec<_>>();
        let (only, without) = (listed(2), listed(3));
        let mut databases: Vec<&str> = tables.iter().map(|(facts, _)| facts.database.as_str()).collect();
        databases.dedup();
        for database in databases {
            let is_in = |names: &[&str]| names.iter().any(|name| name.eq_ignore_ascii_case(database));
            let option = match (only.is_empty(), is_in(&only), is_in(&without)) {
                (false, false, _) => "binlog_do_db",
                (true, _, true) => "binlog_ignore_db",
                _ => continue,
            };
            found.push(
                Error::new(&codes::OMITTED, format!("the server's {option} keeps changes out of the binlog"))
                    .at("database", database)
                    .hint(format!("Take {option} out of the server's configuration and restart it.")),
            );
        }
    }
    Ok(found)
}

/// Whether a statement that changes rows of this table can change rows of others: it is a view, or has triggers. Of a temporary table
/// the catalogue knows nothing, and it has neither.
pub async fn reaches_others(connection: &mut Connection, name: &Name) -> Result<bool> {
    let [database, table] = [&name.database, &name.table].map(|part| literal(&String::from_utf8_lossy(part)));
    let views = format!(
        "SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = {database} AND TABLE_NAME = {table} AND TABLE_TYPE = 'VIEW'"
    );
    let triggers = format!(
        "SELECT 1 FROM information_schema.TRIGGERS WHERE EVENT_OBJECT_SCHEMA = {database} AND EVENT_OBJECT_TABLE = {table} LIMIT 1"
    );
    Ok(!connection.query(&views).await?.is_empty() || !connection.query(&triggers).await?.is_empty())
}
