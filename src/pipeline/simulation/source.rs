//! The connector to the model server: what `connectors/postgres` does, in small, with the faults that it must not have.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use headwater_connector::{
    Action, BackfillOptions, Batch, Before, Condition, Error, Finding, Identity, Intent, IntentMode, Limits, Monitor, Op,
    Position, Result, Schema, Source, SourceConnector, Start, Survey, Table, TableReader, Value, codes as contract,
};
use tokio::time::Instant;

use super::{
    Lie, Place, Variant, World,
    reader::ModelReader,
    server::{FILTERED, Lsn, ModelServer, Step, Transaction, lost, parse},
};

/// How often the source looks for new transactions.
const POLL: Duration = Duration::from_millis(20);

pub fn connector(server: &Arc<ModelServer>, world: &Arc<World>, options: (&BackfillOptions, bool)) -> Arc<dyn SourceConnector> {
    let (backfill, refreshes) = (options.0.clone(), options.1);
    Arc::new(ModelConnector { server: Arc::clone(server), world: Arc::clone(world), backfill, refreshes })
}

struct ModelConnector {
    server: Arc<ModelServer>,
    world: Arc<World>,
    backfill: BackfillOptions,
    refreshes: bool,
}

impl ModelConnector {
    async fn ask(&self, what: &str) -> Result<()> {
        self.world.network(what).await?;
        self.server.up()
    }

    fn identity(&self) -> Identity {
        Identity::from([("system", "model".to_owned()), ("timeline", self.server.timeline().to_string())])
    }

    /// The stored timeline must have been left behind the place.
    fn require_history(&self, identity: &Identity, place: Place) -> Result<()> {
        let stored: u32 = identity.get("timeline").and_then(|text| text.parse().ok()).expect("a timeline");
        let reached = place.partial.map_or(place.base, |[_, commit, ..]| commit);
        if stored == self.server.timeline() || self.world.variant == Variant::SkipTimelineCheck {
            return Ok(());
        }
        match self.server.left(stored) {
            Some(left) if left >= reached => Ok(()),
            _ => Err(lost("the history branched off before the checkpoint")),
        }
    }

    /// The slot must be there and behind the place; then the place from which to ask.
    fn require_slot(&self, place: Place) -> Result<Lsn> {
        let variant = self.world.variant;
        let confirmed = match self.server.confirmed() {
            Some(confirmed) => confirmed,
            None if variant == Variant::RecreateSlot => self.server.create_slot(),
            None => return Err(lost("the slot is gone")),
        };
        if confirmed > place.base {
            return match variant {
                Variant::MaxOfPositions | Variant::RecreateSlot => Ok(confirmed),
                _ => Err(lost("the slot is ahead of the checkpoint")),
            };
        }
        Ok(match (variant, self.world.lie) {
            (Variant::ResumeFromEndPlusOne, _) => place.base + 1,
            (_, Lie::ResumeTooFar) if place.base > confirmed => place.base + 1_000,
            (_, Lie::ResumeTooEarly) => confirmed,
            _ => place.base,
        })
    }
}

#[async_trait]
impl SourceConnector for ModelConnector {
    fn endpoint(&self) -> String {
        "model".into()
    }

    async fn tables(&self) -> Result<Vec<Table>, Vec<Error>> {
        self.ask("tables").await.map_err(|error| vec![error])?;
        let table = |schema: &Arc<Schema>| Table { schema: Arc::clone(schema), estimated_rows: None, readable: true };
        Ok(self.server.schemas[..FILTERED].iter().map(table).collect())
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        Ok(Vec::new())
    }

    async fn plan(&self, _: bool) -> Result<Vec<Action>> {
        Ok(Vec::new())
    }

    async fn verify(&self, identity: &Identity) -> Result<()> {
        self.ask("verify").await?;
        assert_eq!(identity.get("system"), Some("model"));
        Ok(())
    }

    async fn prepare(&self) -> Result<Intent> {
        self.ask("prepare").await?;
        let mode = if self.server.confirmed().is_some() { IntentMode::Adopt } else { IntentMode::Create };
        Ok(Intent { mode, detail: "slot".into() })
    }

    async fn create(&self, intent: &Intent, again: bool) -> Result<Start> {
        self.ask("create").await?;
        let identity = self.identity();
        let first = match (self.server.confirmed(), intent.mode) {
            (None, IntentMode::Create) => self.server.create_slot(),
            (Some(_), IntentMode::Create) => {
                if !again || self.server.slot_is_active() {
                    return Err(Error::new(&contract::CONNECTION_LOST, "another process made or uses the slot"));
                }
                if self.world.committed().base > 0 {
                    // A first start that was frozen behind its proof takes an idle successor's slot. The successor stops by name.
                    self.world.harmed.store(true, Ordering::Relaxed);
                }
                self.world.tally().orphans += 1;
                self.server.create_slot()
            }
            (Some(confirmed), IntentMode::Adopt) => confirmed,
            (None, IntentMode::Adopt) => return Err(lost("the slot to adopt is gone")),
        };
        // A crash or an error here leaves the slot behind without a checkpoint (C4).
        self.world.network("create").await?;
        Ok(Start { identity, position: Place { base: first, partial: None }.to_position() })
    }

    async fn survey(&self, _: Option<&Identity>, _: Option<&Position>) -> Result<Survey> {
        self.ask("survey").await?;
        Ok(Survey { facts: Vec::new(), anew: Ok(("as a first start".into(), None)), rebind: Ok(self.identity()) })
    }

    fn backfill(&self) -> BackfillOptions {
        self.backfill.clone()
    }

    fn refreshes(&self) -> bool {
        self.refreshes
    }

    async fn condition(&self, _: &Schema, condition: &Condition<'_>) -> Result<String> {
        match condition {
            Condition::Keys(keys) => Ok(keys.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(" ")),
            Condition::From { .. } => Err(lost("the model knows no such condition")),
        }
    }

    async fn reader(&self) -> Result<Box<dyn TableReader>> {
        self.ask("reader").await?;
        Ok(Box::new(ModelReader::new(&self.server, &self.world)?))
    }

    async fn open(&self, identity: &Identity, at: &Position) -> Result<Box<dyn Source>> {
        self.ask("open").await?;
        let place = parse(at.as_str());
        self.require_history(identity, place)?;
        let start = self.require_slot(place)?;
        let found = self.identity();
        let Some((handle, next)) = self.server.start(start) else { return Err(lost("the slot is gone")) };
        let (server, world) = (Arc::clone(&self.server), Arc::clone(&self.world));
        let source = ModelSource {
            schemas: server.schemas.iter().map(|schema| Arc::new(Schema::clone(schema))).collect(),
            server,
            world,
            handle,
            next,
            resume: place.partial,
            offset: 0,
            place,
            found,
            unconfirmed: None,
        };
        // Once more, now that nobody else can move it.
        self.require_history(identity, place)?;
        self.require_slot(place)?;
        self.world.tally().partial_resumes += u64::from(place.partial.is_some());
        Ok(Box::new(source))
    }
}

impl Place {
    pub fn to_position(self) -> Position {
        Position::new(match self.partial {
            None => self.base.to_string(),
            Some([xid, commit, ordinal, lsn]) => format!("{}/{xid}:{commit}:{ordinal}:{lsn}", self.base),
        })
    }
}

struct ModelSource {
    /// As the stream described the tables last.
    schemas: Vec<Arc<Schema>>,
    server: Arc<ModelServer>,
    world: Arc<World>,
    handle: u64,
    /// Index of the transaction that comes next.
    next: usize,
    /// How far that transaction was published in an earlier life, if it was cut.
    resume: Option<[u64; 4]>,
    /// The same in this life.
    offset: usize,
    place: Place,
    found: Identity,
    /// Of the variant that confirms what it has read.
    unconfirmed: Option<Lsn>,
}

impl ModelSource {
    /// Raw messages of the transaction that are published already.
    fn skip(&mut self, transaction: &Transaction) -> Result<usize> {
        let Some([xid, commit, ordinal, lsn]) = self.resume.take() else { return Ok(self.offset) };
        if (transaction.xid, transaction.commit) != (xid, commit) {
            return Err(lost("the partly published transaction is not there"));
        }
        if self.world.variant == Variant::ForgetPartial || self.world.lie == Lie::ForgetOrdinal {
            return Ok(0);
        }
        if self.world.variant == Variant::PerRowPosition {
            return Ok(transaction.steps.iter().filter(|step| step.lsn <= lsn).count());
        }
        Ok(ordinal as usize)
    }

    /// Appends what is left of a transaction, or as much as the limits allow. True if the batch is full.
    fn append(&mut self, transaction: &Transaction, batch: &mut Batch, limits: &Limits) -> Result<bool> {
        let steps = &transaction.steps;
        let skip = self.skip(transaction)?;
        if !steps.is_empty() {
            batch.begin_transaction(&format!("{}@model", transaction.xid), transaction.commit as i64 * 1_000_000);
        }
        let (bytes_before, changes_before) = (batch.size_bytes(), batch.changes().len());
        for (ordinal, step) in steps.iter().enumerate().skip(skip) {
            if step.op == Op::Read {
                // The table was rewritten; the next change brings its description again.
                self.schemas[step.table] = Arc::new(Schema::clone(&self.schemas[step.table]));
            } else if step.table != FILTERED {
                push(batch, &self.schemas[step.table], step, ordinal as u64);
            }
            let own = (batch.size_bytes() - bytes_before, batch.changes().len() - changes_before);
            if ordinal + 1 < steps.len() && (own.0 >= limits.max_bytes || own.1 >= limits.max_changes) {
                let published = match self.world.variant {
                    Variant::OrdinalsAfterFilter => steps[..=ordinal].iter().filter(|step| step.table != FILTERED).count() as u64,
                    _ => ordinal as u64 + 1,
                };
                // Within this life the stream simply goes on; only a restart uses what the position says.
                self.offset = ordinal + 1;
                self.place.partial = Some([transaction.xid, transaction.commit, published, step.lsn]);
                batch.set_position(self.place.to_position());
                return Ok(true);
            }
        }
        self.next += 1;
        self.offset = 0;
        self.place = Place { base: transaction.end, partial: None };
        batch.set_position(self.place.to_position());
        Ok(batch.size_bytes() >= limits.max_bytes || batch.changes().len() >= limits.max_changes)
    }

    /// Takes what is there; true once the batch should be handed out.
    fn gather(&mut self, batch: &mut Batch, limits: &Limits) -> Result<bool> {
        while let Some(transaction) = self.server.read(self.handle, self.next)? {
            // A connection that the server ended breaks sooner or later.
            if self.world.rng().u32(0..5) == 0 {
                self.server.nothing_on_the_way(self.handle);
            }
            if self.append(&transaction, batch, limits)? || self.world.rng().u32(0..5) == 0 {
                return Ok(true);
            }
        }
        if batch.position().is_none() && self.offset == 0 && self.resume.is_none() && self.world.rng().u32(0..16) == 0 {
            self.idle(batch)?;
        }
        Ok(batch.position().is_some())
    }

    /// The log goes on without a transaction of ours.
    fn idle(&mut self, batch: &mut Batch) -> Result<()> {
        if let Some(base) = self.server.idle_end(self.handle, self.next)?.filter(|base| *base > self.place.base) {
            self.place = Place { base, partial: None };
            batch.set_position(self.place.to_position());
        }
        Ok(())
    }
}

fn push(batch: &mut Batch, schema: &Arc<Schema>, step: &Step, ordinal: u64) {
    let index = batch.schema_index(schema);
    if step.op == Op::Truncate {
        return batch.push_change(Op::Truncate, index, ordinal, Before::None, None);
    }
    let mut row = |key: u32, values: [Value<'_>; 2]| {
        let start = batch.begin_row();
        batch.push(Value::Uint(key.into()));
        values.into_iter().for_each(|value| batch.push(value));
        batch.end_row(start)
    };
    let old = step.old_key.or((step.op == Op::Delete).then_some(step.key));
    let old = old.map(|key| row(key, [Value::Unchanged, Value::Unchanged]));
    let version = Value::Uint(step.version.into());
    let big = if step.is_whole { version } else { Value::Unchanged };
    let after = (step.op != Op::Delete).then(|| row(step.key, [version, big]));
    batch.push_change(step.op, index, ordinal, old.map_or(Before::None, Before::Key), after);
}

impl Drop for ModelSource {
    fn drop(&mut self) {
        self.server.disconnect(self.handle);
    }
}

#[async_trait]
impl Source for ModelSource {
    fn identity(&self) -> Option<&Identity> {
        (self.world.variant != Variant::KeepTimeline).then_some(&self.found)
    }

    async fn next_batch(&mut self, batch: &mut Batch, limits: &Limits) -> Result<()> {
        let deadline = Instant::now() + limits.max_wait;
        loop {
            self.world.network("next_batch").await?;
            if let Some(read) = self.unconfirmed.take() {
                self.server.confirm(self.handle, read)?;
            }
            if self.gather(batch, limits)? || Instant::now() >= deadline {
                if self.world.variant == Variant::ConfirmBeforeCommit {
                    self.unconfirmed = Some(self.place.base);
                }
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn passed(&mut self, barrier: &Position) -> Result<bool> {
        let is_between = self.offset == 0 && self.resume.is_none();
        Ok(self.world.variant == Variant::NoBarrier || is_between && self.place.base >= parse(barrier.as_str()).base)
    }

    async fn ack(&mut self, position: &Position) -> Result<()> {
        self.server.confirm(self.handle, parse(position.as_str()).base)?;
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
