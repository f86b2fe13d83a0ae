//! Where recent transactions begin in MariaDB's binlog, and so which of them a snapshot saw.
//!
//! A snapshot of MariaDB is a place in the binlog: what begins before it is visible, what begins at it or behind is not. The stream names
//! transactions by domain and sequence, so what it passes is remembered here, and a snapshot learns from it the first of each domain that
//! it did not see. Nothing here does IO.
//!
//! XA COMMIT of what was prepared is the exception: it is in the binlog a moment before its rows are visible, and a snapshot in that moment
//! counts it. Until they are, XA RECOVER lists its name, so a snapshot comes with the names that were listed and the end of the binlog
//! as it was before they were asked for. What is committed with such a name, or behind that end, counts as not seen.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use headwater_connector::Snapshot;

use crate::{
    gtid::{Gtid, MariaGtid},
    position::Mark,
    xid::Xid,
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
    /// Those of them that are an XA COMMIT.
    commits: VecDeque<(Mark, MariaGtid, Xid)>,
    cuts: Vec<(Mark, Weak<Cut>)>,
}

/// What was prepared and may be in the middle of its XA COMMIT.
#[derive(Debug, Default)]
pub struct Doubt {
    /// What XA RECOVER listed.
    pub names: Vec<Xid>,
    /// Where the binlog ended before that.
    pub end: Mark,
}

impl Doubt {
    /// Whether rows of an XA COMMIT at a place may be invisible.
    fn concerns(&self, at: Mark, xid: &Xid) -> bool {
        at >= self.end || self.names.contains(xid)
    }
}

/// A snapshot at a place of the binlog.
pub struct Cut {
    unseen: Mutex<Option<BTreeMap<u32, u64>>>,
    doubt: Doubt,
}

impl Trail {
    /// For a stream that is opened while the binlog ends at `floor`, or behind it.
    pub fn new(floor: Mark) -> Self {
        Self(Mutex::new(State { is_open: true, floor, begun: VecDeque::new(), commits: VecDeque::new(), cuts: Vec::new() }))
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

    /// The transaction to which the stream came last is an XA COMMIT.
    pub fn commits(&self, xid: &Xid) {
        let mut state = self.state();
        let Some(&(at, gtid)) = state.begun.back() else { return };
        state.commits.push_back((at, gtid, xid.clone()));
        if state.commits.len() > LIMIT {
            state.commits.pop_front();
        }
        let cuts = state.cuts.iter().filter_map(|(_, cut)| cut.upgrade());
        cuts.filter(|cut| cut.doubt.concerns(at, xid)).for_each(|cut| cut.first_unseen(gtid));
    }

    /// Whether a snapshot may lack rows of what is before `floor`.
    pub fn lacks(&self, doubt: &Doubt, floor: Mark) -> bool {
        self.state().commits.iter().any(|(at, _, xid)| *at < floor && doubt.concerns(*at, xid))
    }

    /// A snapshot at a place; none if too little is known of what is around it.
    pub fn cut(&self, at: Mark, doubt: Doubt) -> Option<Arc<Cut>> {
        let mut state = self.state();
        if !state.is_open || at < state.floor {
            return None;
        }
        let cut = Arc::new(Cut { unseen: Mutex::new(Some(BTreeMap::new())), doubt });
        let commits = state.commits.iter().filter(|(at, _, xid)| cut.doubt.concerns(*at, xid));
        commits.for_each(|(_, gtid, _)| cut.first_unseen(*gtid));
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
            *cut.unseen.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

impl Cut {
    /// The first one of a domain that is not seen stands for those behind it.
    fn first_unseen(&self, gtid: MariaGtid) {
        if let Some(unseen) = self.unseen.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            let first = unseen.entry(gtid.domain).or_insert(gtid.sequence);
            *first = gtid.sequence.min(*first);
        }
    }
}

impl Snapshot for Cut {
    fn sees(&self, transaction: &str) -> bool {
        let Some(Gtid::Maria(gtid)) = Gtid::parse(transaction) else { return false };
        let unseen = self.unseen.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Nothing is prepared.
    fn certain() -> Doubt {
        Doubt { names: Vec::new(), end: Mark { file: u64::MAX, at: 0 } }
    }

    #[test]
    fn what_begins_at_the_snapshot_or_behind_it_is_not_seen() {
        let trail = Trail::new(at(100));
        trail.begin(gtid(0, 7), at(100));
        trail.begin(gtid(1, 3), at(200));
        let cut = trail.cut(at(200), certain()).expect("a snapshot");
        // The stream goes on, also in a domain that was not there before.
        trail.begin(gtid(0, 8), at(300));
        trail.begin(gtid(2, 1), at(400));
        let seen = |id: &str| cut.sees(id);
        assert!(seen("0-1-7") && seen("0-1-1") && seen("1-1-2"));
        assert!(!seen("1-1-3") && !seen("0-1-8") && !seen("0-1-9") && !seen("2-1-1") && !seen("nonsense"));
    }

    #[test]
    fn a_commit_that_is_in_the_binlog_before_its_rows_are_visible_counted_as_seen() {
        let xid = |name: u8| Xid::parse(format!("X'{name:02x}',X'',1").as_bytes()).expect("a name");
        let trail = Trail::new(at(100));
        let pass = |sequence, place, name| {
            trail.begin(gtid(0, sequence), at(place));
            trail.commits(&xid(name));
        };
        pass(7, 100, 1);
        pass(8, 200, 2);
        // At the time of the list the second is not done, and nothing is known of what came since.
        let doubt = || Doubt { names: vec![xid(2), xid(3), xid(9)], end: at(300) };
        let cut = trail.cut(at(1000), doubt()).expect("a snapshot");
        assert!(cut.sees("0-1-7") && !cut.sees("0-1-8"));
        assert!(trail.lacks(&doubt(), at(201)) && !trail.lacks(&doubt(), at(200)));
        // The stream can be behind the snapshot. What is only prepared keeps nothing back.
        let trail = Trail::new(at(100));
        let cut = |names| trail.cut(at(1000), Doubt { names, end: at(300) }).expect("a snapshot");
        let (none, third, idle) = (cut(vec![]), cut(vec![xid(3)]), cut(vec![xid(9)]));
        for (sequence, place, name) in [(7, 200, 3), (8, 210, 4), (9, 400, 5), (10, 1000, 6)] {
            trail.begin(gtid(0, sequence), at(place));
            trail.commits(&xid(name));
        }
        let seen = |cut: &Cut| (7..11).filter(|sequence| cut.sees(&format!("0-1-{sequence}"))).count();
        assert_eq!([&none, &third, &idle].map(|cut| seen(cut)), [2, 0, 2]);
    }

    #[test]
    fn nothing_is_said_of_what_was_before_the_stream() {
        let trail = Trail::new(at(100));
        assert!(trail.cut(at(99), certain()).is_none());
        assert!(trail.cut(Mark { file: 0, at: 5000 }, certain()).is_none());
        assert!(trail.cut(Mark { file: 2, at: 4 }, certain()).is_some());
    }

    #[test]
    fn what_finds_no_room_is_not_spoken_of() {
        let trail = Trail::new(at(0));
        for number in 0..=LIMIT as u64 {
            trail.begin(gtid(0, number + 1), at(10 * number));
        }
        assert!(trail.cut(at(9), certain()).is_none());
        assert!(trail.cut(at(10), certain()).is_some_and(|cut| cut.sees("0-1-1") && !cut.sees("0-1-2")));
    }

    #[test]
    fn a_stream_that_ended_says_nothing() {
        let trail = Trail::new(at(0));
        let cut = trail.cut(at(10), certain()).expect("a snapshot");
        assert!(cut.sees("0-1-1"));
        trail.close();
        assert!(!cut.sees("0-1-1"));
        assert!(trail.cut(at(10), certain()).is_none());
    }
}
