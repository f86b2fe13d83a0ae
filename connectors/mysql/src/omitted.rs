//! What a server can be told to leave out of its binlog, and what rows a statement can reach. Of replicas, see [`replica`](crate::replica).

use headwater_connector::{Error, Result};

use crate::{
    catalog::cell,
    check, codes,
    config::Settings,
    connection::{Connection, Flavour, literal},
    connector::Selected,
    grants::Grants,
    statement::{Reads, Write},
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
        // MariaDB compares these names letter by letter even where it keeps all names in small letters.
        let folds = connection.flavour == Flavour::Mysql && folds(connection).await?;
        let is_same =
            |name: &str, database: &str| if folds { name.to_lowercase() == database.to_lowercase() } else { name == database };
        for database in databases {
            let is_in = |names: &[&str]| names.iter().any(|name| is_same(name, database));
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

/// What a statement on a table that is not selected may do to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// It changes no other table.
    Nothing,
    /// It may change another one, and why.
    Others(&'static str),
    /// The user does not see what would tell; with this privilege it would.
    Unseen { grant: String },
}

/// Whether a statement on a table that is not selected can change others: there or among what it reads is a view, or the table has
/// triggers or children. It is asked of what is there now. Of a temporary table the catalogue knows nothing, and it has neither.
pub async fn reach(connection: &mut Connection, settings: &Settings, write: &Write) -> Result<Reach> {
    let Some(reads) = &write.reads else {
        return Ok(Reach::Others("it may call a stored function, or cannot be read with certainty"));
    };
    let (Ok(database), Ok(table)) = (str::from_utf8(&write.table.database), str::from_utf8(&write.table.table)) else {
        return Ok(Reach::Others("its table's name is no UTF-8"));
    };
    if let Some(grant) = missing(connection, database, reads).await? {
        return Ok(Reach::Unseen { grant });
    }
    let folds = folds(connection).await?;
    let named = |name: &str| literal(&if folds { name.to_lowercase() } else { name.to_owned() });
    let list = |names: &mut dyn Iterator<Item = &str>| names.map(named).collect::<Vec<_>>().join(", ");
    let databases = list(&mut reads.databases.iter().map(String::as_str).chain([database]));
    let names = list(&mut reads.names.iter().map(String::as_str).chain([table]));
    let views = format!(
        "SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA IN ({databases}) AND TABLE_NAME IN ({names}) AND TABLE_TYPE = 'VIEW' LIMIT 1"
    );
    let triggers = format!(
        "SELECT 1 FROM information_schema.TRIGGERS WHERE EVENT_OBJECT_SCHEMA = {} AND EVENT_OBJECT_TABLE = {} LIMIT 1",
        named(database),
        named(table)
    );
    for (sql, why) in [(views, "it names a view"), (triggers, "its table has triggers")] {
        if !connection.query(&sql).await?.is_empty() {
            return Ok(Reach::Others(why));
        }
    }
    // Where the binlog lacks what foreign keys do, it is known already.
    if check::logs_cascades(connection).await? && has_children(connection, settings).await? {
        return Ok(Reach::Others("foreign keys change rows of a selected table, and only as part of the statement"));
    }
    Ok(Reach::Nothing)
}

/// Whether foreign keys change rows of any selected table.
async fn has_children(connection: &mut Connection, settings: &Settings) -> Result<bool> {
    let sql = "SELECT CONSTRAINT_SCHEMA, TABLE_NAME FROM information_schema.REFERENTIAL_CONSTRAINTS \
               WHERE DELETE_RULE NOT IN ('RESTRICT', 'NO ACTION') OR UPDATE_RULE NOT IN ('RESTRICT', 'NO ACTION')";
    Ok(connection.query(sql).await?.iter().any(|row| settings.selects(cell(row, 0), cell(row, 1))))
}

/// Whether the server does not tell capitals apart in the names of tables.
pub async fn folds(connection: &mut Connection) -> Result<bool> {
    Ok(connection.value("SELECT @@lower_case_table_names").await?.is_some_and(|value| value != "0"))
}

/// The privilege that is missing to see triggers of one database's tables, and views of all that the statement may name.
async fn missing(connection: &mut Connection, database: &str, reads: &Reads) -> Result<Option<String>> {
    let grants = Grants::of(connection).await?;
    let sees_own = grants.has_in("SELECT", database) && grants.has_in("TRIGGER", database);
    let own = (!sees_own).then(|| grants.grant_in("SELECT, TRIGGER", database));
    let others = reads.databases.iter().filter(|of| *of != database && !grants.has_in("SELECT", of));
    let missing: Vec<String> = own.into_iter().chain(others.map(|of| grants.grant_in("SELECT", of))).collect();
    Ok((!missing.is_empty()).then(|| missing.join(" ")))
}
