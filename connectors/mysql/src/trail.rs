//! Where recent transactions begin in MariaDB's binlog, and so which of them a snapshot saw.
//!
//! A snapshot of MariaDB is a place in the binlog: what begins before it is visible, what begins at it or behind is not. The stream names
//! transactions by domain and sequence, so what it passes is remembered here, and a snapshot learns from it the first of each domain that
//! it did not see. Nothing here does IO.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use headwater_connector::Snapshot;

use crate::{
    gtid::{Gtid, MariaGtid},
    position::Mark,
};

/// Transactions that are remembered. A snapshot is at most as many behind the stream as commits wait for a replica's answer.
const LIMIT: usize = 1 << 16;

/// What one opening of the stream passed.
pub struct Trail(Mutex<State>);

struct State {
    is_open: bool,
    /// Where the binlog ended when the stream was opened, or where the oldest remembered transaction begins: nothing is known of what is before.
    floor: Mark,
    begun: VecDeque<(Mark, MariaGtid)>,
    cuts: Vec<(Mark, Weak<Cut>)>,
}

/// A snapshot at a place of the binlog.
pub struct Cut(Mutex<Option<BTreeMap<u32, u64>>>);

impl Trail {
    /// For a stream that is opened while the binlog ends at `floor`, or behind it.
    pub fn new(floor: Mark) -> Self {
        Self(Mutex::new(State { is_open: true, floor, begun: VecDeque::new(), cuts: Vec::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place before which nothing is known.
    pub fn floor(&self) -> Mark {
        self.state().floor
    }

    /// The stream comes to a transaction that begins here.
    pub fn begin(&self, gtid: MariaGtid, at: Mark) {
        let mut state = self.state();
        state.begun.push_back((at, gtid));
        if state.begun.len() > LIMIT {
            state.begun.pop_front();
            state.floor = state.begun.front().map_or(at, |(at, _)| *at);
        }
        state.cuts.retain(|(cut_at, cut)| {
            let Some(cut) = cut.upgrade() else { return false };
            if at >= *cut_at {
                cut.first_unseen(gtid);
            }
            true
        });
    }

    /// A snapshot at a place; none if too little is known of what is around it.
    pub fn cut(&self, at: Mark) -> Option<Arc<Cut>> {
        let mut state = self.state();
        if !state.is_open || at < state.floor {
            return None;
        }
        let cut = Arc::new(Cut(Mutex::new(Some(BTreeMap::new()))));
        let behind = state.begun.partition_point(|(begin, _)| *begin < at);
        state.begun.iter().skip(behind).for_each(|(_, gtid)| cut.first_unseen(*gtid));
        state.cuts.push((at, Arc::downgrade(&cut)));
        Some(cut)
    }

    /// The stream ended: what comes later is not passed here, so no snapshot can say any more what it saw.
    pub fn close(&self) {
        let mut state = self.state();
        state.is_open = false;
        for cut in state.cuts.drain(..).filter_map(|(_, cut)| cut.upgrade()) {
            *cut.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

impl Cut {
    /// The stream brings the transactions of a domain in their order, so the first one that is told stands for those behind it.
    fn first_unseen(&self, gtid: MariaGtid) {
        if let Some(unseen) = self.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            unseen.entry(gtid.domain).or_insert(gtid.sequence);
        }
    }
}

impl Snapshot for Cut {
    fn sees(&self, transaction: &str) -> bool {
        let Some(Gtid::Maria(gtid)) = Gtid::parse(transaction) else { return false };
        let unseen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        unseen.as_ref().is_some_and(|unseen| unseen.get(&gtid.domain).is_none_or(|first| gtid.sequence < *first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gtid(domain: u32, sequence: u64) -> MariaGtid {
        MariaGtid { domain, server: 1, sequence }
    }

    fn at(at: u64) -> Mark {
        Mark { file: 1, at }
    }

    #[test]
    fn what_begins_at_the_snapshot_or_behind_it_is_not_seen() {
        let trail = Trail::new(at(100));
        trail.begin(gtid(0, 7), at(100));
        trail.begin(gtid(1, 3), at(200));
        let cut = trail.cut(at(200)).expect("a snapshot");
        // The stream goes on, also in a domain that was not there before.
        trail.begin(gtid(0, 8), at(300));
        trail.begin(gtid(2, 1), at(400));
        let seen = |id: &str| cut.sees(id);
        assert!(seen("0-1-7") && seen("0-1-1") && seen("1-1-2"));
        assert!(!seen("1-1-3") && !seen("0-1-8") && !seen("0-1-9") && !seen("2-1-1") && !seen("nonsense"));
    }

    #[test]
    fn nothing_is_said_of_what_was_before_the_stream() {
        let trail = Trail::new(at(100));
        assert!(trail.cut(at(99)).is_none());
        assert!(trail.cut(Mark { file: 0, at: 5000 }).is_none());
        assert!(trail.cut(Mark { file: 2, at: 4 }).is_some());
    }

    #[test]
    fn what_finds_no_room_is_not_spoken_of() {
        let trail = Trail::new(at(0));
        for number in 0..=LIMIT as u64 {
            trail.begin(gtid(0, number + 1), at(10 * number));
        }
        assert!(trail.cut(at(9)).is_none());
        assert!(trail.cut(at(10)).is_some_and(|cut| cut.sees("0-1-1") && !cut.sees("0-1-2")));
    }

    #[test]
    fn a_stream_that_ended_says_nothing() {
        let trail = Trail::new(at(0));
        let cut = trail.cut(at(10)).expect("a snapshot");
        assert!(cut.sees("0-1-1"));
        trail.close();
        assert!(!cut.sees("0-1-1"));
        assert!(trail.cut(at(10)).is_none());
    }
}
