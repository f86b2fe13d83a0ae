//! Which transactions a snapshot saw. Pure.
//!
//! On a primary the server says so itself: `xmin:xmax:xip`, numbers of top-level transactions with the epoch in their upper half, and
//! the stream names the same numbers without it. On a standby that text says nothing about what is visible: there a transaction is
//! visible once its commit record has been replayed.

use headwater_connector::Snapshot;

use crate::position::Lsn;

/// `pg_current_snapshot()` of a primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrimarySnapshot {
    /// Everything below has ended.
    xmin: u64,
    /// Nothing from here on has ended.
    pub xmax: u64,
    /// What runs in between, in order.
    xip: Vec<u64>,
}

impl PrimarySnapshot {
    /// Reads the server's text.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let (xmin, xmax) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let list = parts.next()?;
        let mut xip = match list {
            "" => Vec::new(),
            list => list.split(',').map(|xid| xid.parse().ok()).collect::<Option<Vec<u64>>>()?,
        };
        xip.sort_unstable();
        parts.next().is_none().then_some(Self { xmin, xmax, xip })
    }

    /// A transaction's number with the epoch that puts it next to the snapshot: no two numbers that a server knows are further apart than 2^31.
    pub fn widen(&self, xid: u32) -> u64 {
        let near = self.xmax & !0xffff_ffff | u64::from(xid);
        match near.abs_diff(self.xmax) {
            0..=0x8000_0000 => near,
            _ if near > self.xmax => near.checked_sub(1 << 32).unwrap_or(near),
            _ => near + (1 << 32),
        }
    }

    /// Whether a transaction had ended, by its number with the epoch.
    pub fn has_ended(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.xip.binary_search(&xid).is_err())
    }
}

impl Snapshot for PrimarySnapshot {
    fn sees(&self, transaction: &str) -> bool {
        let xid = transaction.split_once('@').and_then(|(xid, _)| xid.parse::<u32>().ok());
        xid.is_some_and(|xid| self.has_ended(self.widen(xid)))
    }
}

/// A snapshot of a standby that had replayed the log up to here before it was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StandbySnapshot {
    /// End of the last record that had been replayed.
    pub replayed: Lsn,
}

impl Snapshot for StandbySnapshot {
    fn sees(&self, transaction: &str) -> bool {
        // The id says where the commit record begins; what was replayed ends behind it or does not hold it.
        let commit = transaction.split_once('@').and_then(|(_, commit)| commit.parse::<Lsn>().ok());
        commit.is_some_and(|commit| commit < self.replayed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_or_began_later_is_not_seen() {
        let snapshot = PrimarySnapshot::parse("100:105:100,103").unwrap();
        let seen: Vec<u32> = (98..108).filter(|xid| snapshot.sees(&format!("{xid}@0/1"))).collect();
        assert_eq!(seen, [98, 99, 101, 102, 104]);
        assert!(!snapshot.sees("nonsense") && !snapshot.sees("x@0/1"));
    }

    #[test]
    fn the_epoch_is_taken_from_the_snapshot() {
        let snapshot = PrimarySnapshot::parse("8589934600:8589934610:").unwrap();
        assert!(snapshot.sees("5@0/1"), "of the same epoch");
        assert!(snapshot.sees("4294967290@0/1"), "of the epoch before");
        assert!(!snapshot.sees("2000000000@0/1"), "far ahead");
        let late = PrimarySnapshot::parse("4294967290:4294967295:").unwrap();
        assert!(!late.sees("3@0/1"), "of the next epoch");
        let first = PrimarySnapshot::parse("750:752:").unwrap();
        assert!(first.sees("700@0/1") && !first.sees("3000000000@0/1"));
    }

    #[test]
    fn torn_texts_are_refused() {
        for text in ["", "1", "1:2", "1:2:x", "1:2:3:4", "a:2:"] {
            assert_eq!(PrimarySnapshot::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_standby_has_seen_what_it_has_replayed() {
        let snapshot = StandbySnapshot { replayed: Lsn(0x200) };
        assert!(snapshot.sees("9@0/1F8") && !snapshot.sees("9@0/200") && !snapshot.sees("9"));
    }
}
