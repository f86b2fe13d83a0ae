//! Tables whose engine knows no transactions.

use headwater_connector::{BackfillMode, Error, Finding, Result};

use crate::{
    catalog::cell,
    codes,
    config::Settings,
    connection::{Connection, ident, literal},
    connector::Selected,
};

/// The engines whose tables show a snapshot: rows of others cannot be read beside the stream.
const SNAPSHOTS: [&str; 2] = ["InnoDB", "ROCKSDB"];

/// Whether rows of an engine's tables can be read beside the stream.
pub fn has_snapshots(engine: &str) -> bool {
    SNAPSHOTS.iter().any(|known| known.eq_ignore_ascii_case(engine))
}

/// What is to be known of each table of such an engine: an error if its rows are to be read, else a warning.
pub async fn findings(connection: &mut Connection, settings: &Settings, tables: &[Selected]) -> Result<Vec<Finding>> {
    let rows = connection.query("SELECT ENGINE, TRANSACTIONS FROM information_schema.ENGINES").await?;
    let is_transactional = |engine: &str| {
        rows.iter().any(|row| cell(row, 0).eq_ignore_ascii_case(engine) && cell(row, 1).eq_ignore_ascii_case("YES"))
    };
    let mut found = Vec::new();
    for (facts, _) in tables {
        let (database, name) = (literal(&facts.database), literal(&facts.name));
        let sql = format!("SELECT ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = {database} AND TABLE_NAME = {name}");
        let Some(engine) = connection.value(&sql).await? else { continue };
        let table = format!("{}.{}", ident(&facts.database), ident(&facts.name));
        let hint = format!("Run ALTER TABLE {table} ENGINE = InnoDB;");
        let reads = settings.backfill.mode != BackfillMode::Never;
        if reads && !has_snapshots(&engine) {
            let error = Error::new(&codes::BACKFILL_TABLE, format!("tables of engine {engine} have no snapshots"))
                .at("table", facts.full_name())
                .hint(format!("{hint} Or set `backfill: never`, and only its changes become events."));
            found.push(Finding::error(error));
        }
        if !is_transactional(&engine) {
            let what = match engine.eq_ignore_ascii_case("MEMORY") {
                true => "a restart of the server empties the table, by a statement that stops the connector",
                false => {
                    "a statement that fails halfway and a crash leave rows in the table, in the binlog, or in one of the two only"
                }
            };
            let error = Error::new(&codes::ENGINE, format!("engine {engine} has no transactions: {what}"));
            found.push(Finding::warning(error.at("table", facts.full_name()).hint(hint)));
        }
    }
    Ok(found)
}
