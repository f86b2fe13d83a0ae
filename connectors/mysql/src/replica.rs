//! A replica as the server that is read: whether its binlog holds what its own source did, all of it and in that order.

use headwater_connector::{Error, Result};

use crate::{
    catalog::cell,
    codes,
    connection::{Connection, Flavour},
};

/// Options by which a replica leaves out changes of its source, in the order of the status.
const FILTERS: [&str; 6] = [
    "replicate_do_db",
    "replicate_ignore_db",
    "replicate_do_table",
    "replicate_ignore_table",
    "replicate_wild_do_table",
    "replicate_wild_ignore_table",
];

/// A server that gets changes from another.
pub struct Replica {
    /// Which of [`FILTERS`] are set.
    filters: Vec<&'static str>,
}

/// Whether the server is a replica. Who may not ask is told of that privilege elsewhere.
pub async fn look(connection: &mut Connection) -> Result<Option<Replica>> {
    let (sql, first) = match connection.flavour {
        Flavour::Mariadb => ("SHOW ALL SLAVES STATUS", 14),
        Flavour::Mysql if connection.version >= (8, 1) => ("SHOW REPLICA STATUS", 12),
        Flavour::Mysql => ("SHOW SLAVE STATUS", 12),
    };
    match connection.try_query(sql).await? {
        Ok(rows) if rows.is_empty() => Ok(None),
        Ok(rows) => {
            let is_set = |at: usize| rows.iter().any(|row| !cell(row, first + at).is_empty());
            let filters = FILTERS.iter().enumerate().filter(|(at, _)| is_set(*at)).map(|(_, name)| *name);
            Ok(Some(Replica { filters: filters.collect() }))
        }
        // MariaDB has a privilege of its own for the status, which reading the binlog does not need. Everybody sees that it runs.
        Err(_) if connection.flavour == Flavour::Mariadb => {
            let running = connection.query("SHOW GLOBAL STATUS LIKE 'Slaves_running'").await?;
            if running.iter().all(|row| cell(row, 1) == "0") {
                return Ok(None);
            }
            let variables = connection.query("SHOW GLOBAL VARIABLES LIKE 'replicate%'").await?;
            let is_set = |name: &str| variables.iter().any(|row| cell(row, 0) == name && !cell(row, 1).is_empty());
            Ok(Some(Replica { filters: FILTERS.into_iter().filter(|name| is_set(name)).collect() }))
        }
        Err(_) => Ok(None),
    }
}

/// Why a replica's binlog cannot stand for that of its source.
pub async fn faults(connection: &mut Connection, replica: Option<&Replica>) -> Result<Vec<Error>> {
    let mut found = Vec::new();
    if replica.is_none() {
        return Ok(found);
    }
    // The newer words came with 8.0.26.
    let values = connection
        .query(
            "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('log_slave_updates', 'log_replica_updates', 'slave_parallel_workers', \
             'replica_parallel_workers', 'slave_preserve_commit_order', 'replica_preserve_commit_order')",
        )
        .await?;
    let value = |name: &str| values.iter().find(|row| cell(row, 0).ends_with(name)).map(|row| cell(row, 1));
    if value("_updates") == Some("OFF") {
        found.push(
            Error::new(&codes::OMITTED, "the server is a replica that does not write what it gets to its own binlog")
                .hint("Put log_slave_updates = ON into the server's configuration and restart it, or connect to its source."),
        );
    }
    // MariaDB's workers wait for each other in every mode; only its domains are independent, and the position has one place in each.
    let workers = value("_parallel_workers").and_then(|workers| workers.parse::<u32>().ok()).unwrap_or(0);
    let is_free = value("_preserve_commit_order") == Some("OFF");
    if connection.flavour == Flavour::Mysql && workers > 1 && is_free {
        found.push(
            Error::new(&codes::REPLICA, "the server is a replica that commits in another order than its source")
                .at("replica_parallel_workers", workers)
                .hint(
                    "Run STOP REPLICA SQL_THREAD; SET GLOBAL replica_preserve_commit_order = ON; START REPLICA SQL_THREAD; and put the setting into the server's configuration.",
                ),
        );
    }
    Ok(found)
}

/// What the rows of a replica lack on purpose: its tables lack it too, so that the events fit them.
pub fn filtered(replica: Option<&Replica>) -> Option<Error> {
    let filters = &replica?.filters;
    (!filters.is_empty()).then(|| {
        Error::new(&codes::REPLICA, format!("the server is a replica that leaves out changes of its source ({})", filters.join(", ")))
            .hint("Take the filters out of the replica's configuration if they concern tables that are captured, or connect to its source.")
    })
}
