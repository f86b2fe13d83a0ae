//! A source in memory: transactions that become visible over time, one slot, positions with partial transactions.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use fastrand::Rng;
use headwater_connector::{
    Action, Batch, Before, Column, Error, Finding, Identity, Intent, IntentMode, Limits, Monitor, Op, Position, Result, Schema,
    Source, SourceConnector, Start, Table, Type, Value, codes as contract,
};
use tokio::time::Instant;

use super::{Lie, World};

/// One raw row message.
#[derive(Clone, Debug)]
pub struct Step {
    pub table: usize,
    pub op: Op,
    pub key: u32,
    /// The key before, of an update that changes it.
    pub old_key: Option<u32>,
    pub version: u32,
}

/// One committed transaction; its index in the history is its place in the log.
pub type Steps = Vec<Step>;

pub struct ModelDatabase {
    pub history: Vec<Steps>,
    pub schemas: Vec<Arc<Schema>>,
    pace: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    began: Option<Instant>,
    /// History from here on is kept for the slot.
    slot: Option<usize>,
    /// Which opened source holds the slot.
    active: Option<u64>,
    opened: u64,
    confirmed: usize,
    partial_resumes: u64,
    orphans: u64,
}

impl ModelDatabase {
    pub fn generate(rng: &mut Rng) -> Self {
        let mut version = 0;
        let mut step = |rng: &mut Rng| {
            version += 1;
            let op = [Op::Insert, Op::Update, Op::Update, Op::Delete][rng.usize(0..4)];
            let key = rng.u32(0..12);
            let old_key = (op == Op::Update && rng.u32(0..3) == 0).then(|| 100 + rng.u32(0..12));
            Step { table: rng.usize(0..2), op, key, old_key, version }
        };
        let count = rng.usize(1..40);
        let mut history = Vec::with_capacity(count);
        for _ in 0..count {
            let steps = if rng.u32(0..10) == 0 { rng.usize(20..90) } else { rng.usize(0..8) };
            history.push((0..steps).map(|_| step(rng)).collect());
        }
        let schemas = ["app.orders", "app.items"].into_iter().map(schema).collect();
        Self { history, schemas, pace: Duration::from_millis(rng.u64(1..60)), state: Mutex::default() }
    }

    pub fn partial_resumes(&self) -> u64 {
        self.state().partial_resumes
    }

    pub fn orphans(&self) -> u64 {
        self.state().orphans
    }

    /// Transactions committed so far in virtual time.
    fn visible(&self) -> usize {
        let mut state = self.state();
        let began = *state.began.get_or_insert_with(Instant::now);
        let passed = began.elapsed().as_micros() / self.pace.as_micros().max(1);
        self.history.len().min(usize::try_from(passed).unwrap_or(usize::MAX))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn schema(table: &str) -> Arc<Schema> {
    let column = |name: &str, r#type| Column { name: name.into(), r#type, source_type: "model".into(), nullable: false };
    let columns = vec![column("id", Type::Int64), column("ver", Type::Int64)];
    Arc::new(Schema { table: table.into(), columns, key: vec![0] })
}

/// `tx+ordinal`: transactions before `tx` are published, and of it the first `ordinal` raw messages.
pub fn parse(position: &str) -> (usize, u64) {
    let (tx, ordinal) = position.split_once('+').expect("a position of this model");
    (tx.parse().expect("a transaction"), ordinal.parse().expect("an ordinal"))
}

fn position(tx: usize, ordinal: u64) -> Position {
    Position::new(format!("{tx}+{ordinal}"))
}

pub fn connector(database: &Arc<ModelDatabase>, world: &Arc<World>) -> Arc<dyn SourceConnector> {
    Arc::new(ModelConnector { database: Arc::clone(database), world: Arc::clone(world) })
}

struct ModelConnector {
    database: Arc<ModelDatabase>,
    world: Arc<World>,
}

#[async_trait]
impl SourceConnector for ModelConnector {
    fn endpoint(&self) -> String {
        "model".into()
    }

    async fn tables(&self) -> Result<Vec<Table>, Vec<Error>> {
        self.world.network("tables").await.map_err(|error| vec![error])?;
        let table = |schema: &Arc<Schema>| Table { schema: Arc::clone(schema), estimated_rows: None };
        Ok(self.database.schemas.iter().map(table).collect())
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        Ok(Vec::new())
    }

    async fn plan(&self, _: bool) -> Result<Vec<Action>> {
        Ok(Vec::new())
    }

    async fn verify(&self, identity: &Identity) -> Result<()> {
        self.world.network("verify").await?;
        assert_eq!(identity.get("system"), Some("model"));
        Ok(())
    }

    async fn prepare(&self) -> Result<Intent> {
        self.world.network("prepare").await?;
        let mode = if self.database.state().slot.is_some() { IntentMode::Adopt } else { IntentMode::Create };
        Ok(Intent { mode, detail: "slot".into() })
    }

    async fn create(&self, intent: &Intent, again: bool) -> Result<Start> {
        self.world.network("create").await?;
        let visible = self.database.visible();
        let slot = {
            let mut state = self.database.state();
            if state.slot.is_some() && intent.mode == IntentMode::Create {
                if !again || state.active.is_some() {
                    return Err(Error::new(&contract::CONNECTION_LOST, "another process made or uses the slot"));
                }
                state.slot = None;
                state.orphans += 1;
            }
            *state.slot.get_or_insert(visible)
        };
        // A crash or an error here leaves the slot behind without a checkpoint (C4).
        self.world.network("create").await?;
        Ok(Start { identity: Identity::from([("system", "model")]), position: position(slot, 0) })
    }

    async fn open(&self, _: &Identity, at: &Position) -> Result<Box<dyn Source>> {
        self.world.network("open").await?;
        let (mut tx, mut ordinal) = parse(at.as_str());
        let mut state = self.database.state();
        let slot = state.slot.expect("a checkpoint has a slot");
        if state.confirmed > tx || slot > tx {
            return Err(Error::new(&contract::INVARIANT, "the slot is ahead of the checkpoint"));
        }
        state.partial_resumes += u64::from(ordinal > 0);
        match self.world.lie {
            Lie::ResumeTooFar if tx > slot && ordinal == 0 => tx += 1,
            Lie::ResumeTooEarly if tx > slot && ordinal == 0 => tx -= 1,
            Lie::ForgetOrdinal => ordinal = 0,
            _ => {}
        }
        state.opened += 1;
        state.active = Some(state.opened);
        let handle = state.opened;
        drop(state);
        let (database, world) = (Arc::clone(&self.database), Arc::clone(&self.world));
        Ok(Box::new(ModelSource { database, world, tx, ordinal, handle }))
    }
}

struct ModelSource {
    database: Arc<ModelDatabase>,
    world: Arc<World>,
    tx: usize,
    ordinal: u64,
    handle: u64,
}

impl ModelSource {
    /// Whoever opens the slot later ends our connection.
    fn still_mine(&self) -> Result<()> {
        if self.database.state().active == Some(self.handle) {
            return Ok(());
        }
        Err(Error::new(&contract::CONNECTION_LOST, "the slot has another reader"))
    }

    /// Appends what is left of the current transaction, or as much as the limits allow. True if the batch is full.
    fn append(&mut self, batch: &mut Batch, limits: &Limits) -> bool {
        let steps = &self.database.history[self.tx];
        if !steps.is_empty() {
            batch.begin_transaction(&format!("{}@model", self.tx), self.tx as i64 * 1_000_000);
        }
        let (bytes_before, changes_before) = (batch.size_bytes(), batch.changes().len());
        for (ordinal, step) in steps.iter().enumerate().skip(self.ordinal as usize) {
            push(batch, &self.database.schemas[step.table], step, ordinal as u64);
            self.ordinal = ordinal as u64 + 1;
            let own = (batch.size_bytes() - bytes_before, batch.changes().len() - changes_before);
            if self.ordinal < steps.len() as u64 && (own.0 >= limits.max_bytes || own.1 >= limits.max_changes) {
                batch.set_position(position(self.tx, self.ordinal));
                return true;
            }
        }
        self.tx += 1;
        self.ordinal = 0;
        batch.set_position(position(self.tx, 0));
        batch.size_bytes() >= limits.max_bytes || batch.changes().len() >= limits.max_changes
    }
}

fn push(batch: &mut Batch, schema: &Arc<Schema>, step: &Step, ordinal: u64) {
    let index = batch.schema_index(schema);
    let mut row = |key: u32, version: Value<'_>| {
        let start = batch.begin_row();
        batch.push(Value::Uint(key.into()));
        batch.push(version);
        batch.end_row(start)
    };
    let old = step.old_key.or((step.op == Op::Delete).then_some(step.key)).map(|key| row(key, Value::Unchanged));
    let after = (step.op != Op::Delete).then(|| row(step.key, Value::Uint(step.version.into())));
    batch.push_change(step.op, index, ordinal, old.map_or(Before::None, Before::Key), after);
}

impl Drop for ModelSource {
    fn drop(&mut self) {
        let mut state = self.database.state();
        state.active = state.active.filter(|handle| *handle != self.handle);
    }
}

#[async_trait]
impl Source for ModelSource {
    async fn next_batch(&mut self, batch: &mut Batch, limits: &Limits) -> Result<()> {
        let deadline = Instant::now() + limits.max_wait;
        loop {
            self.world.network("next_batch").await?;
            self.still_mine()?;
            let visible = self.database.visible();
            while self.tx < visible {
                if self.append(batch, limits) || self.world.rng().u32(0..5) == 0 {
                    return Ok(());
                }
            }
            if batch.position().is_some() || Instant::now() >= deadline {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ack(&mut self, position: &Position) -> Result<()> {
        self.still_mine()?;
        let (tx, _) = parse(position.as_str());
        self.database.state().confirmed = tx;
        self.world.network("ack").await
    }

    fn monitor(&self) -> Arc<dyn Monitor> {
        Arc::new(NoLag)
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

struct NoLag;

#[async_trait]
impl Monitor for NoLag {
    async fn lag_bytes(&self, _: &Position) -> Result<u64> {
        Err(Error::new(&contract::UNREACHABLE, "the model measures no lag"))
    }
}
