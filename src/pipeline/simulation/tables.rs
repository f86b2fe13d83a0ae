//! Rows of the model's tables, and the transactions that change them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fastrand::Rng;
use headwater_connector::Op;

use super::server::{FILTERED, Lsn, Step, TABLES, Transaction};

/// Keys that a table may hold.
pub const KEYS: u32 = 20;
/// What stands for never, in transactions.
const NEVER: usize = usize::MAX;

/// One row: which change wrote it, and which its large value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub version: u32,
    pub big: u32,
}

/// The rows of all tables by table and key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows(pub BTreeMap<(usize, u32), Row>);

impl Rows {
    /// About half of the keys, in about two of three tables.
    pub fn generate(rng: &mut Rng) -> Self {
        let mut rows = Self::default();
        for table in 0..TABLES {
            let share = rng.u32(0..3);
            for key in (0..KEYS).filter(|_| rng.u32(0..3) < share) {
                let version = 1_000_000 + table as u32 * 1_000 + key;
                rows.0.insert((table, key), Row { version, big: version });
            }
        }
        rows
    }

    /// The rows behind these transactions. Each key's changes must come in their order.
    pub fn after<'a>(&self, transactions: impl Iterator<Item = &'a Transaction>) -> Self {
        let mut rows = self.clone();
        transactions.flat_map(|one| &one.steps).for_each(|step| rows.apply(step));
        rows
    }

    pub fn apply(&mut self, step: &Step) {
        if step.op == Op::Read {
            // Rewritten, each row with another large value, and nothing in the log that says so.
            for (_, row) in self.0.iter_mut().filter(|((table, _), _)| *table == step.table) {
                row.big = step.version;
            }
            return;
        }
        if step.op == Op::Truncate {
            return self.0.retain(|(table, _), _| *table != step.table);
        }
        let old = self.0.remove(&(step.table, step.old_key.unwrap_or(step.key)));
        if step.op != Op::Delete {
            let big = old.filter(|_| !step.is_whole).map_or(step.version, |old| old.big);
            self.0.insert((step.table, step.key), Row { version: step.version, big });
        }
    }
}

/// A transaction, and how long it is in the log before it is visible.
pub struct Written {
    pub transaction: Arc<Transaction>,
    pub lag: Duration,
}

/// Makes transactions whose places follow each other.
pub struct Writer {
    pub lsn: Lsn,
    pub xid: u64,
    pub version: u32,
    rows: Rows,
    pace: Duration,
    /// Transactions so far.
    count: usize,
    /// Keys of transactions that are in the log and not visible: before which transaction they are locked.
    locked: BTreeMap<(usize, u32), usize>,
    /// A row that most transactions change, but for its large value.
    hot: Option<(usize, u32)>,
}

impl Writer {
    /// On these rows, a transaction after each `pace`.
    pub fn new(rows: Rows, pace: Duration) -> Self {
        Self { lsn: 1_000, xid: 0, version: 0, rows, pace, count: 0, locked: BTreeMap::new(), hot: None }
    }

    /// Most transactions from now on change this row, but for its large value.
    pub fn heat(&mut self, table: usize, key: u32) {
        self.hot = Some((table, key));
    }

    pub fn transaction(&mut self, rng: &mut Rng) -> Written {
        let count = match rng.u32(0..20) {
            0 | 1 => rng.usize(20..90),
            2 => 0,
            3 | 4 if self.hot.is_some() => 0,
            _ => rng.usize(0..8),
        };
        // Rows may have been written before the commit in front of ours: then the two commit records touch.
        let adjacent = rng.bool();
        let mut lsn = if adjacent { self.lsn.saturating_sub(8 * count as Lsn) } else { self.lsn };
        let copy = rng.u32(0..4) == 0;
        let mut steps = Vec::with_capacity(count);
        for at in 0..count {
            if !(copy && at % 16 != 0) {
                lsn += 8;
            }
            steps.extend(self.step(rng, lsn));
        }
        lsn += 8;
        match rng.u32(0..6) {
            0..3 if count == 0 => steps.extend(self.whole_table(rng, lsn)),
            5 => lsn -= 8,
            _ => steps.extend(self.hot_step(lsn)),
        }
        let other_traffic = if adjacent { 0 } else { rng.u64(0..3) * 8 };
        let commit = if adjacent { self.lsn } else { lsn + other_traffic };
        self.lsn = commit + 8;
        self.xid += 1;
        self.count += 1;
        let lag = self.lag(rng, &steps);
        Written { transaction: Arc::new(Transaction { xid: self.xid, commit, end: self.lsn, steps }), lag }
    }

    /// Often nothing; sometimes as long as some other transactions take, or much longer. Whoever wants to touch the same keys waits,
    /// so nobody touches them in the meantime.
    fn lag(&mut self, rng: &mut Rng, steps: &[Step]) -> Duration {
        let (lag, until) = match rng.u32(0..10) {
            0..=4 => return Duration::ZERO,
            5..=8 => {
                let others = if self.hot.is_some() { 1 } else { rng.u32(1..12) };
                (self.pace * others, self.count + others as usize)
            }
            _ if steps.len() < 6 && self.hot.is_none() => (Duration::from_millis(rng.u64(0..3_000)), NEVER),
            _ => return Duration::ZERO,
        };
        for step in steps {
            match step.op {
                // The whole table is locked until it is seen: nobody changes a row of it in the meantime.
                Op::Read | Op::Truncate => self.locked.extend((0..KEYS).map(|key| ((step.table, key), until))),
                _ => self.locked.extend(step.old_key.into_iter().chain([step.key]).map(|key| ((step.table, key), until))),
            }
        }
        lag
    }

    /// Rewrites or empties a table of which nobody holds a row.
    fn whole_table(&mut self, rng: &mut Rng, lsn: Lsn) -> Option<Step> {
        let table = self.hot.map_or_else(|| rng.usize(0..FILTERED), |(table, _)| table);
        if self.locked.iter().any(|((of, _), until)| *of == table && *until > self.count) {
            return None;
        }
        self.version += 1;
        let op = if self.hot.is_none() && rng.bool() { Op::Truncate } else { Op::Read };
        let step = Step { table, op, key: 0, old_key: None, version: self.version, is_whole: true, lsn };
        self.rows.apply(&step);
        Some(step)
    }

    fn hot_step(&mut self, lsn: Lsn) -> Option<Step> {
        let (table, key) = self.hot?;
        let is_free = self.locked.get(&(table, key)).is_none_or(|until| *until <= self.count);
        if !is_free || !self.rows.0.contains_key(&(table, key)) {
            return None;
        }
        self.version += 1;
        let step = Step { table, op: Op::Update, key, old_key: None, version: self.version, is_whole: false, lsn };
        self.rows.apply(&step);
        Some(step)
    }

    /// A change that is possible on the rows as they are; none if others hold what was chosen.
    fn step(&mut self, rng: &mut Rng, lsn: Lsn) -> Option<Step> {
        let table = [0, 1, 0, 1, FILTERED][rng.usize(0..5)];
        let is_free = |key: u32| self.locked.get(&(table, key)).is_none_or(|until| *until <= self.count);
        let mut pick = |wanted: &dyn Fn(bool) -> bool| {
            let keys = (0..4).map(|_| rng.u32(0..KEYS)).collect::<Vec<_>>();
            keys.into_iter().find(|key| is_free(*key) && wanted(self.rows.0.contains_key(&(table, *key))))
        };
        let (any, absent) = (pick(&|_| true)?, pick(&|is_there| !is_there));
        let is_there = self.rows.0.contains_key(&(table, any));
        self.version += 1;
        let (version, mut is_whole) = (self.version, true);
        let (op, key, old_key) = match (is_there, rng.u32(0..6)) {
            (false, _) => (Op::Insert, any, None),
            (true, 0) => (Op::Delete, any, None),
            (true, 1) if absent.is_some() => (Op::Update, absent?, Some(any)),
            _ => (Op::Update, any, None),
        };
        if op == Op::Update {
            is_whole = rng.bool();
        }
        let step = Step { table, op, key, old_key, version, is_whole, lsn };
        self.rows.apply(&step);
        Some(step)
    }
}
