//! What must have become visible before the first chunk is read.
//!
//! The runtime remembers what it publishes only from some moment on. A transaction that was published before that moment, and that a
//! chunk's snapshot does not see, would be forgotten, and an older row be published behind it. On a primary that can be any transaction
//! that had a number then: its commit can be in the log while it waits for a synchronous standby, for as long as that takes.

use headwater_connector::Result;

use crate::{
    catalog::{Catalog, cell, number},
    position::Lsn,
    reader::Taken,
};

/// Named in status, at most.
const NAMED: usize = 5;

/// See the module's page.
pub struct Ended {
    /// On a primary: what held its own number then, from the moment it got one until it was visible.
    running: Vec<u32>,
    /// On a standby, which sees what it has replayed and sends nothing else: the end of that.
    replayed: Option<Lsn>,
}

impl Ended {
    /// As of now. A transaction holds the lock on its own number until after it has become visible. A snapshot does not do: a number that
    /// was given away while nothing later has ended is not below its upper end, and would not be waited for.
    pub async fn now(catalog: &mut Catalog) -> Result<Self> {
        let rows = catalog
            .query(
                "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END, \
                 coalesce((SELECT string_agg(DISTINCT transactionid::text, ',') FROM pg_locks \
                 WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted), '')",
            )
            .await?;
        let row = rows.first().map(Vec::as_slice).unwrap_or_default();
        let running = cell(row, 1).split(',').filter_map(|xid| xid.parse().ok()).collect();
        Ok(Self { running, replayed: cell(row, 0).parse().ok() })
    }

    /// For a standby of the server that the stream comes from: to replay so much.
    pub fn on_standby(replayed: Option<Lsn>) -> Self {
        Self { running: Vec::new(), replayed }
    }

    /// Names what a chunk's snapshot does not see yet.
    pub async fn waits_for(&self, catalog: &mut Catalog, taken: &Taken) -> Result<Option<String>> {
        if let (Some(wanted), Some(replayed)) = (self.replayed, taken.replayed) {
            return Ok((replayed < wanted).then(|| format!("the standby to replay the log to {wanted}")));
        }
        let Some(snapshot) = &taken.primary else { return Ok(None) };
        let open: Vec<u32> = self.running.iter().copied().filter(|xid| !snapshot.has_ended(snapshot.widen(*xid))).collect();
        if open.is_empty() {
            return Ok(None);
        }
        let list = open.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let rows = catalog
            .query(&format!(
                "SELECT x.xid, coalesce(p.gid, ''), coalesce(a.application_name, ''), coalesce(a.pid::text, ''), \
                 trunc(extract(epoch FROM clock_timestamp() - coalesce(p.prepared, a.xact_start)))::bigint \
                 FROM unnest('{{{list}}}'::xid[]) AS x(xid) LEFT JOIN pg_prepared_xacts p ON p.transaction = x.xid \
                 LEFT JOIN pg_stat_activity a ON a.backend_xid = x.xid ORDER BY 5 DESC NULLS LAST LIMIT {NAMED}"
            ))
            .await?;
        let told: Vec<String> = rows.iter().map(|row| blocker(row)).collect();
        let more = if open.len() > NAMED { ", and others" } else { "" };
        Ok(Some(format!("{} open transactions to end: {}{more}", open.len(), told.join("; "))))
    }
}

fn blocker(row: &[Option<String>]) -> String {
    let mut told = format!("transaction {}", cell(row, 0));
    if !cell(row, 1).is_empty() {
        told.push_str(&format!(", prepared as {:?}", cell(row, 1)));
    }
    if !cell(row, 3).is_empty() {
        told.push_str(&format!(", of {:?} in process {}", cell(row, 2), cell(row, 3)));
    }
    match number::<i64>(row, 4) {
        Ok(age) => format!("{told}, {age} s old"),
        Err(_) => told,
    }
}
