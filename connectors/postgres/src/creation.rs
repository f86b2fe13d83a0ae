//! Creating the slot, which waits for every transaction that is running at the server: seen from outside, not a hang.

use std::{
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::Duration,
};

use headwater_connector::{Error, Result};
use tokio::time::{Instant, sleep};

use crate::{
    catalog::{Catalog, cell, flag},
    codes,
    config::Settings,
    connection::{Connection, ident, literal},
    error::{ServerError, protocol},
    position::Lsn,
    slot,
};

/// The first try gives up after this long, so that `status` soon says what it waits for; each further one takes twice as long, so that
/// transactions that follow each other closely cannot keep it from ever succeeding.
const FIRST_PATIENCE: Duration = Duration::from_secs(5);
const LAST_PATIENCE: Duration = Duration::from_secs(1280);
/// How long the server may take to free what a given up creation holds.
const CLEANING: Duration = Duration::from_secs(10);

/// Counts the tries of one connector.
#[derive(Debug, Default)]
pub struct Tries(AtomicU32);

impl Tries {
    fn patience(&self) -> Duration {
        (FIRST_PATIENCE * (1 << self.0.fetch_add(1, SeqCst).min(8))).min(LAST_PATIENCE)
    }
}

/// A transaction that a slot's creation waits for.
#[derive(Debug)]
pub struct Blocker {
    /// For a message: who it is, and since when.
    pub text: String,
    /// The statement that ends it.
    pub end: String,
    /// Whether it is old, or nobody's.
    pub stale: bool,
}

/// The transactions that have written something and have not ended, in all databases, the oldest first; at most ten.
pub async fn blockers(catalog: &mut Catalog) -> Result<Vec<Blocker>> {
    // Locks are visible to every role, sessions only in part.
    let rows = catalog
        .query(
            "SELECT a.pid, coalesce(nullif(a.application_name, ''), a.usename, '?'), coalesce(a.state, '?'), \
             coalesce(trunc(extract(epoch FROM clock_timestamp() - a.xact_start))::text, '?'), \
             coalesce(clock_timestamp() - a.xact_start > interval '5 seconds', true) \
             FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid \
             WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted AND l.pid <> pg_backend_pid() \
             ORDER BY a.xact_start LIMIT 10",
        )
        .await?;
    let prepared = catalog
        .query(
            "SELECT gid, owner, database, trunc(extract(epoch FROM clock_timestamp() - prepared)) \
             FROM pg_prepared_xacts ORDER BY prepared LIMIT 10",
        )
        .await?;
    let prepared = prepared.iter().map(|row| Blocker {
        text: format!(
            "prepared transaction {:?} of {} in database {} for {} s",
            cell(row, 0),
            cell(row, 1),
            cell(row, 2),
            cell(row, 3)
        ),
        end: format!(
            "in database {} COMMIT PREPARED {gid} or ROLLBACK PREPARED {gid}",
            cell(row, 2),
            gid = literal(cell(row, 0))
        ),
        stale: true,
    });
    let running = rows.iter().map(|row| Blocker {
        text: format!("process {} ({}, {}) for {} s", cell(row, 0), cell(row, 1), cell(row, 2), cell(row, 3)),
        end: format!("SELECT pg_terminate_backend({})", cell(row, 0)),
        stale: flag(row, 4),
    });
    Ok(prepared.chain(running).collect())
}

/// The error, or the finding, that tells what a creation waits for.
pub fn waits(settings: &Settings, blockers: &[Blocker], standby: bool) -> Error {
    let error = match (blockers.first(), standby) {
        // A standby learns from its primary which transactions run; an idle primary does not say.
        (_, true) => Error::new(&codes::CREATION_WAITS, "the slot waits for the primary to log its running transactions")
            .hint("Run SELECT pg_log_standby_snapshot(); at the primary, and end the long transactions there."),
        (None, false) => Error::new(&codes::CREATION_WAITS, "the slot waits for running transactions")
            .hint("Wait until the transactions that are running at the server have ended."),
        (Some(first), false) => {
            let texts: Vec<&str> = blockers.iter().map(|blocker| blocker.text.as_str()).collect();
            Error::new(&codes::CREATION_WAITS, format!("the slot waits for running transactions: {}", texts.join(", ")))
                .hint(format!("Wait until they end; if nobody needs the first, run {}.", first.end))
        }
    };
    error.at("slot", &settings.slot)
}

/// Creates the slot; its consistent point is the first position. While it waits, the log says for what.
pub async fn create(
    catalog: &mut Catalog,
    session: &mut Connection,
    settings: &Settings,
    failover: bool,
    tries: &Tries,
) -> Result<Lsn> {
    let name = ident(&settings.slot);
    let command = match failover {
        // The old spelling, which every version knows.
        false => format!("CREATE_REPLICATION_SLOT {name} LOGICAL pgoutput NOEXPORT_SNAPSHOT"),
        true => format!("CREATE_REPLICATION_SLOT {name} LOGICAL pgoutput (SNAPSHOT 'nothing', FAILOVER true)"),
    };
    let rows = session.query("SELECT pg_backend_pid()").await?;
    let pid: u32 = rows.first().and_then(|row| cell(row, 0).parse().ok()).ok_or_else(|| protocol("a session has no process"))?;
    let standby = catalog.is_standby().await?;
    let patience = tries.patience();
    let creating = session.query_within(&command, patience + CLEANING);
    tokio::pin!(creating);
    let end = Instant::now() + patience;
    let mut told = Instant::now();
    let answer = loop {
        tokio::select! {
            answer = &mut creating => break answer?,
            () = sleep(Duration::from_secs(1)) => {}
        }
        let waiting = waits(settings, &blockers(catalog).await?, standby);
        if Instant::now() >= end {
            give_up(catalog, settings, pid).await?;
            return Err(waiting);
        }
        if told.elapsed() >= Duration::from_secs(10) {
            tracing::warn!(slot = %settings.slot, "{waiting}");
            told = Instant::now();
        }
    };
    match answer {
        Ok(rows) => {
            let point = rows.first().and_then(|row| cell(row, 1).parse().ok());
            point.ok_or_else(|| protocol("the server names no consistent point"))
        }
        Err(refused) => Err(explain(settings, refused)),
    }
}

/// Ends the server's side of a creation, which would otherwise go on, and leave a slot behind that nobody waits for.
async fn give_up(catalog: &mut Catalog, settings: &Settings, pid: u32) -> Result<()> {
    catalog.query(&format!("SELECT pg_terminate_backend({pid})")).await?;
    let end = Instant::now() + CLEANING;
    while slot::find(catalog, settings).await?.is_some() && Instant::now() < end {
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn explain(settings: &Settings, refused: ServerError) -> Error {
    match refused.state.as_str() {
        "42710" => slot::appeared(settings),
        "55000" => Error::new(&codes::WAL_LEVEL, refused.text())
            .hint("Run ALTER SYSTEM SET wal_level = 'logical'; at the primary, and restart it."),
        "42501" => {
            let role = ident(&settings.server.user);
            refused.into_error().at("slot", &settings.slot).hint(format!("Run ALTER ROLE {role} REPLICATION;"))
        }
        _ => refused.into_error().at("slot", &settings.slot),
    }
}
