//! The sessions that read the model server's tables: what `connectors/postgres` does, in small, with the faults that it must not have.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use headwater_connector::{
    Batch, Before, Chunk, ChunkRead, ChunkRequest, Cursor, Gate, Op, Result, Snapshot, TableReader, Value,
};

use super::{
    Place, Variant, World,
    server::{FILTERED, Lsn, ModelServer, Seen, lost},
    tables::{Row, Rows},
};

/// Transactions that were in the log, or about to be, when somebody asked.
struct Running(BTreeSet<u64>);

/// Transactions that a chunk saw.
struct Visible(BTreeSet<u64>);

impl Snapshot for Visible {
    fn sees(&self, transaction: &str) -> bool {
        let xid = transaction.strip_suffix("@model").and_then(|text| text.parse().ok());
        self.0.contains(&xid.expect("a transaction of the model"))
    }
}

/// Believes that it saw all transactions.
struct Everything;

impl Snapshot for Everything {
    fn sees(&self, _: &str) -> bool {
        true
    }
}

/// Takes the order of the log for the order in which transactions become visible.
struct InTheLog {
    ends: BTreeMap<u64, Lsn>,
    watermark: Lsn,
}

impl Snapshot for InTheLog {
    fn sees(&self, transaction: &str) -> bool {
        let xid: u64 = transaction.strip_suffix("@model").and_then(|text| text.parse().ok()).expect("a transaction");
        self.ends.get(&xid).is_some_and(|end| *end <= self.watermark)
    }
}

pub struct ModelReader {
    server: Arc<ModelServer>,
    world: Arc<World>,
    session: u64,
}

impl ModelReader {
    pub fn new(server: &Arc<ModelServer>, world: &Arc<World>) -> Result<Self> {
        Ok(Self { session: server.session()?, server: Arc::clone(server), world: Arc::clone(world) })
    }

    /// One statement: it is a while until the answer is here, which may be lost.
    async fn ask(&self, what: &str) -> Result<Seen> {
        self.world.delay().await;
        let seen = self.server.look(self.session)?;
        if self.world.fault() {
            // The server or the network is slow, or a conflict ends the statement.
            let stall = Duration::from_millis([0, 100, 600, 2_000][self.world.rng().usize(0..4)]);
            tokio::time::sleep(stall).await;
            self.world.tally().reader_faults += 1;
        }
        self.world.network(what).await?;
        Ok(seen)
    }

    fn table(&self, name: &str) -> Result<usize> {
        let found = self.server.schemas.iter().position(|schema| schema.table == name);
        found.filter(|table| *table != FILTERED).ok_or_else(|| lost("a table that is not captured was asked for"))
    }

    fn snapshot(&self, seen: &Seen, before: &Seen, request: &ChunkRequest) -> Arc<dyn Snapshot> {
        match self.world.variant {
            Variant::BuryUnseen if request.keys.is_some() => Arc::new(Everything),
            Variant::LogOrder => Arc::new(InTheLog {
                ends: self.server.history().iter().map(|one| (one.xid, one.end)).collect(),
                watermark: before.end,
            }),
            Variant::ForgetJournal => Arc::new(Everything),
            _ => Arc::new(Visible(seen.transactions.iter().map(|one| one.xid).collect())),
        }
    }
}

/// The key as the server has it, and in its order, which is not that of numbers.
fn cursor(key: u32) -> Cursor {
    vec![key.to_string()]
}

/// What the request asks for, in key order.
fn wanted(rows: &Rows, table: usize, request: &ChunkRequest) -> Vec<(u32, Row)> {
    let is_wanted = |key: &Cursor| {
        request.after.as_ref().is_none_or(|after| key > after)
            && request.until.as_ref().is_none_or(|until| key <= until)
            && request.keys.as_ref().is_none_or(|keys| keys.contains(key))
            && request.filter.as_ref().is_none_or(|keys| keys.split(' ').any(|one| one == key[0]))
    };
    let rows = rows.0.iter().filter(|((of, key), _)| *of == table && is_wanted(&cursor(*key)));
    let mut rows: Vec<(u32, Row)> = rows.map(|((_, key), row)| (*key, *row)).collect();
    rows.sort_by_key(|(key, _)| cursor(*key));
    rows
}

#[async_trait]
impl TableReader for ModelReader {
    async fn gate(&mut self) -> Result<Gate> {
        let seen = self.ask("gate").await?;
        let running = seen.future.iter().take(self.world.rng().usize(0..3));
        Ok(Arc::new(Running(seen.pending.iter().chain(running).copied().collect())))
    }

    async fn split(&mut self, table: &str, parts: usize) -> Result<Vec<Cursor>> {
        let table = self.table(table)?;
        let seen = self.ask("split").await?;
        let count = self.world.rng().usize(0..3).min(parts - 1);
        let rows = seen.rows(&self.server);
        let mut bounds: Vec<Cursor> = rows.0.keys().filter(|(of, _)| *of == table).map(|(_, key)| cursor(*key)).collect();
        bounds.sort();
        while bounds.len() > count {
            let at = self.world.rng().usize(0..bounds.len());
            bounds.remove(at);
        }
        Ok(bounds)
    }

    async fn read(&mut self, request: &ChunkRequest, batch: &mut Batch) -> Result<ChunkRead> {
        let table = self.table(&request.table)?;
        let before = self.ask("begin").await?;
        let seen = self.ask("snapshot").await?;
        let gate = request.gate.as_ref().and_then(|gate| gate.downcast_ref::<Running>());
        let unseen = |running: &Running| seen.pending.iter().chain(&seen.future).any(|xid| running.0.contains(xid));
        let is_ignored = match self.world.variant {
            Variant::NoGate => true,
            Variant::NoGateAfterRestart => self.server.streams() > 1,
            _ => false,
        };
        if gate.is_some_and(unseen) && !is_ignored {
            self.world.tally().gates += 1;
            return Ok(ChunkRead::Waiting("a transaction to end".into()));
        }
        let after = self.ask("rows").await?;
        self.world.tally().gaps += u64::from(!seen.pending.is_empty());
        let mut rows = wanted(&seen.rows(&self.server), table, request);
        // Whoever holds no lock before the snapshot finds a table empty that is rewritten before the rows are read.
        let is_rewritten = self.server.was_rewritten(table, seen.at, after.at);
        if is_rewritten {
            self.world.tally().rewrites += 1;
        }
        if is_rewritten && self.world.variant == Variant::SnapshotBeforeLock {
            rows.clear();
        }
        let cut_short = match self.world.variant {
            Variant::KeysCutShort => request.filter.is_some(),
            Variant::RefreshCutShort => request.keys.is_some(),
            _ => false,
        };
        if cut_short {
            rows.pop();
        }
        let barrier = match self.world.variant {
            Variant::BarrierBeforeSnapshot => before.end,
            _ => [seen.end, seen.written][self.world.rng().usize(0..2)],
        };
        // Bytes cut a chunk as well as rows; then nobody knows whether something is behind it.
        let cut = self.world.rng().usize(1..14).min(request.max_rows);
        let is_cut = request.keys.is_none() && (rows.len() > cut || rows.len() == cut && self.world.rng().bool());
        if is_cut {
            rows.truncate(cut);
        }
        let end = rows.last().filter(|_| is_cut).map(|(key, _)| cursor(*key));
        self.push(batch, table, &rows);
        self.world.tally().chunks += 1;
        let barrier = Place { base: barrier, partial: None }.to_position();
        Ok(ChunkRead::Rows(Chunk { seen: self.snapshot(&seen, &before, request), barrier, end, table_id: table.to_string() }))
    }

    async fn close(self: Box<Self>) {}
}

impl ModelReader {
    fn push(&self, batch: &mut Batch, table: usize, rows: &[(u32, Row)]) {
        batch.begin_transaction("read", 0);
        let index = batch.schema_index(&self.server.schemas[table]);
        for (ordinal, (key, row)) in rows.iter().enumerate() {
            let start = batch.begin_row();
            [*key, row.version, row.big].into_iter().for_each(|value| batch.push(Value::Uint(value.into())));
            let after = batch.end_row(start);
            batch.push_change(Op::Read, index, ordinal as u64, Before::None, Some(after));
        }
    }
}
