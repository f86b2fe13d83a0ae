//! Both ends counted independently: what the database recorded by trigger against what the log holds.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use headwater_connector::Result;
use serde_json::Value as Json;
use tokio::time::{Instant, sleep};

use super::shop::Fact;
use crate::log::{
    From, Log,
    embedded::{EmbeddedLog, Mode, Options},
};

/// The tables of the shop.
pub const TABLES: [&str; 3] = ["customers", "orders", "payments"];

/// The two counts and how they differ.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Row changes that the source committed.
    pub committed: usize,
    /// Events in the topics.
    pub arrived: usize,
    /// Of these, tombstones.
    pub tombstones: usize,
    /// Changes without an event.
    pub missing: usize,
    /// Events beyond one per change.
    pub twice: usize,
}

impl Ledger {
    /// Counts until nothing is missing, or the deadline is over.
    pub async fn catch_up(log: PathBuf, connector: &str, truth: &[Fact], deadline: Instant) -> Result<Self> {
        loop {
            let (events, tombstones) = read(&log, connector).await?;
            let mut ledger = Self::compare(truth, &events);
            ledger.tombstones = tombstones;
            if ledger.missing == 0 || Instant::now() > deadline {
                return Ok(ledger);
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn compare(truth: &[Fact], events: &[Fact]) -> Self {
        let mut balance: HashMap<&Fact, i64> = HashMap::new();
        truth.iter().for_each(|fact| *balance.entry(fact).or_default() += 1);
        events.iter().for_each(|fact| *balance.entry(fact).or_default() -= 1);
        let sum = |sign: i64| balance.values().map(|count| (count * sign).max(0)).sum::<i64>().cast_unsigned() as usize;
        Self { committed: truth.len(), arrived: events.len(), tombstones: 0, missing: sum(1), twice: sum(-1) }
    }

    /// Nothing missing, nothing twice.
    pub fn is_exact(&self) -> bool {
        self.missing == 0 && self.twice == 0 && self.committed > 0
    }
}

/// Every event of the shop's topics, as facts.
async fn read(path: &std::path::Path, connector: &str) -> Result<(Vec<Fact>, usize)> {
    let log = EmbeddedLog::open(Options::new(path), Mode::Reader)?;
    let mut facts = Vec::new();
    let mut tombstones = 0;
    for table in TABLES {
        let mut reader = log.reader(&format!("{connector}.{table}"), 0, From::Earliest).await?;
        while !reader.at_end().await? {
            for record in reader.read(10_000, Duration::from_millis(50)).await? {
                let header = |name: &str| {
                    let value = record.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_slice());
                    String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
                };
                let key: Json = serde_json::from_slice(&record.key).unwrap_or_default();
                facts.push(Fact {
                    xid: header("hw.tx").split('@').next().and_then(|xid| xid.parse().ok()).unwrap_or(0),
                    table: table.to_owned(),
                    op: header("hw.op").chars().next().unwrap_or('?'),
                    id: key["id"].as_i64().unwrap_or(-1),
                });
                tombstones += usize::from(record.value.is_none());
            }
        }
    }
    Ok((facts, tombstones))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_repeated_events_are_counted_apart() {
        let fact = |id| Fact { xid: 7, table: "orders".into(), op: 'u', id };
        let ledger = Ledger::compare(&[fact(1), fact(2), fact(3)], &[fact(1), fact(3), fact(3)]);
        assert_eq!((ledger.missing, ledger.twice), (1, 1));
        assert!(!ledger.is_exact());
        assert!(Ledger::compare(&[fact(1)], &[fact(1)]).is_exact());
    }
}
