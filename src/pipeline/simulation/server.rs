//! A model of the PostgreSQL server: one log in commit order, one slot, and what operators and crashes do to both. What is in the
//! log becomes visible later, and in another order; [`tables`](super::tables) has what the rows are.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use fastrand::Rng;
use headwater_connector::{Column, Error, Op, Result, Schema, Type, codes as contract};
use tokio::time::Instant;

use super::{
    Lie, Place, World,
    tables::{Rows, Writer, Written},
};
use crate::log::codes;

/// A place in the log.
pub type Lsn = u64;

/// Tables of the model; the last one is not captured, but its rows are raw messages like all others.
pub const TABLES: usize = 3;
pub const FILTERED: usize = 2;

/// One raw row message.
#[derive(Clone, Debug)]
pub struct Step {
    pub table: usize,
    /// [`Op::Read`] stands for a statement that rewrites the table.
    pub op: Op,
    pub key: u32,
    /// The key before, of an update that changes it.
    pub old_key: Option<u32>,
    pub version: u32,
    /// Whether the log has all columns: those of an update that did not change a large value are not there.
    pub is_whole: bool,
    /// Rows of one COPY share it.
    pub lsn: Lsn,
}

/// One committed transaction.
#[derive(Debug)]
pub struct Transaction {
    pub xid: u64,
    /// Where its commit record begins. Equal to the end of the one before if the two commits are adjacent in the log.
    pub commit: Lsn,
    /// Where its commit record ends.
    pub end: Lsn,
    pub steps: Vec<Step>,
}

/// What a session sees at one moment.
pub struct Seen {
    /// Visible transactions.
    pub transactions: History,
    /// In the log and not visible.
    pub pending: Vec<u64>,
    /// Not in the log yet; the first ones may be running.
    pub future: Vec<u64>,
    /// The end of the last commit record, and of everything that is written.
    pub end: Lsn,
    pub written: Lsn,
    /// Since the beginning.
    pub at: Duration,
}

impl Seen {
    /// The rows of all tables.
    pub fn rows(&self, server: &ModelServer) -> Rows {
        server.rows.after(self.transactions.iter().map(|one| &**one))
    }
}

/// Transactions in the order of their commit records.
pub type History = Vec<Arc<Transaction>>;

struct Slot {
    /// What the server holds in memory.
    confirmed: Lsn,
    /// What a crash of the server leaves.
    persisted: Lsn,
    /// The next checkpoint stores it. A confirmation alone does not see to that.
    dirty: bool,
    /// What the standby has.
    synced: Option<Lsn>,
    /// Which opened source streams from it.
    active: Option<u64>,
}

#[derive(Default)]
struct State {
    history: History,
    /// How long each is in the log before it is visible; those that are missing are visible at once.
    lags: Vec<Duration>,
    /// So many are visible because the server has been restarted since.
    settled: usize,
    /// Ends of the server so far: whoever is connected is not any more.
    ends: u64,
    /// Histories that a failover has cut off.
    former: Vec<History>,
    began: Option<Instant>,
    timeline: u32,
    /// Timelines that were left, and where.
    switches: Vec<(u32, Lsn)>,
    slot: Option<Slot>,
    opened: u64,
    down_until: Option<Instant>,
    /// Readers that lost the slot, and what may have been on its way to them.
    on_the_way: BTreeMap<u64, History>,
}

pub struct ModelServer {
    pub schemas: Vec<Arc<Schema>>,
    /// What was in the tables before the first transaction.
    pub rows: Rows,
    /// When tables are rewritten, since the beginning.
    rewrites: Vec<(usize, Duration)>,
    world: Arc<World>,
    pace: Duration,
    state: Mutex<State>,
}

impl State {
    /// A transaction that will reach the log in its turn.
    fn push(&mut self, Written { transaction, lag }: Written) {
        self.history.push(transaction);
        self.lags.push(lag);
    }
}

impl ModelServer {
    pub fn generate(rng: &mut Rng, world: Arc<World>) -> Self {
        // Now and then a row is written all the time, for as long as a few look-ups take.
        let is_hot = rng.u32(0..8) == 0;
        let pace = Duration::from_millis(if is_hot { rng.u64(15..40) } else { rng.u64(1..60) });
        let rows = Rows::generate(rng);
        let mut writer = Writer::new(rows.clone(), pace);
        let count = rng.usize(1..30);
        let mut server = Self::with_history(History::new(), pace, world);
        let state = server.state.get_mut().unwrap();
        let count = if is_hot { rng.usize(40..70) } else { count };
        if is_hot {
            let places: Vec<(usize, u32)> = rows.0.keys().copied().filter(|(table, _)| *table != FILTERED).collect();
            places.first().into_iter().for_each(|(table, key)| writer.heat(*table, *key));
        }
        (0..count).for_each(|_| state.push(writer.transaction(rng)));
        server.rewrites = (0..rng.usize(0..8)).map(|_| (rng.usize(0..FILTERED), pace * rng.u32(0..40))).collect();
        Self { rows, ..server }
    }

    /// A server whose transactions reach the log one after each `pace`, and are visible at once.
    pub fn with_history(history: History, pace: Duration, world: Arc<World>) -> Self {
        let schemas = ["app.orders", "app.items", "app.other"].into_iter().map(schema).collect::<Vec<_>>();
        assert_eq!(schemas.len(), TABLES);
        let state = Mutex::new(State { history, timeline: 1, ..State::default() });
        Self { schemas, rows: Rows::default(), rewrites: Vec::new(), world, pace, state }
    }

    pub fn history(&self) -> History {
        self.state().history.clone()
    }

    /// Every history that this server ever had, the present one first.
    pub fn histories(&self) -> Vec<History> {
        let state = self.state();
        let mut all = vec![state.history.clone()];
        all.extend(state.former.iter().cloned());
        all
    }

    /// The end of the whole history, also of what is not in the log yet.
    pub fn end(&self) -> Lsn {
        self.state().history.last().map_or(0, |last| last.end)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Everything that asks the server fails while it is down.
    pub fn up(&self) -> Result<()> {
        if self.state().down_until.is_some_and(|until| Instant::now() < until) {
            return Err(Error::new(&contract::UNREACHABLE, "the server is down"));
        }
        Ok(())
    }

    pub fn timeline(&self) -> u32 {
        self.state().timeline
    }

    /// Where a timeline was left.
    pub fn left(&self, timeline: u32) -> Option<Lsn> {
        self.state().switches.iter().find(|(left, _)| *left == timeline).map(|(_, lsn)| *lsn)
    }

    /// The confirmed place of the slot; none without a slot.
    pub fn confirmed(&self) -> Option<Lsn> {
        self.state().slot.as_ref().map(|slot| slot.confirmed)
    }

    /// The place that a crash would leave; none without a slot.
    pub fn stored(&self) -> Option<Lsn> {
        self.state().slot.as_ref().map(|slot| slot.persisted)
    }

    pub fn slot_is_active(&self) -> bool {
        self.state().slot.as_ref().is_some_and(|slot| slot.active.is_some())
    }

    /// Makes the slot at the end of the log.
    pub fn create_slot(&self) -> Lsn {
        let mut state = self.state();
        let end = self.logged_end(&mut state);
        state.slot = Some(Slot { confirmed: end, persisted: end, dirty: false, synced: None, active: None });
        end
    }

    pub fn drop_slot(&self) {
        let mut state = self.state();
        self.evict(&mut state);
        state.slot = None;
    }

    /// The reader of the slot loses it. What it was sent before, it may still receive.
    fn evict(&self, state: &mut State) {
        let logged = self.logged(state);
        if let Some(reader) = state.slot.as_mut().and_then(|slot| slot.active.take()) {
            let sent = state.history[..logged].to_vec();
            state.on_the_way.insert(reader, sent);
        }
    }

    /// Nothing more is on its way to a reader that lost the slot.
    pub fn nothing_on_the_way(&self, handle: u64) {
        self.state().on_the_way.remove(&handle);
    }

    /// START_REPLICATION: takes the slot from whoever had it. The index of the first transaction that will be sent, which is
    /// the first whose commit record begins at or behind the greater of the two places.
    pub fn start(&self, at: Lsn) -> Option<(u64, usize)> {
        let mut state = self.state();
        state.opened += 1;
        let opened = state.opened;
        self.evict(&mut state);
        let slot = state.slot.as_mut()?;
        slot.active = Some(opened);
        let start = at.max(slot.confirmed);
        let by_end = self.world.lie == Lie::StartByTheEnd;
        Some((opened, state.history.partition_point(|one| if by_end { one.end <= start } else { one.commit < start })))
    }

    /// The transaction at `index` once it is in the log, for the holder of the slot, or for one who had it until then.
    pub fn read(&self, handle: u64, index: usize) -> Result<Option<Arc<Transaction>>> {
        if let Some(sent) = self.state().on_the_way.get(&handle).and_then(|sent| sent.get(index)) {
            return Ok(Some(Arc::clone(sent)));
        }
        let mut state = self.holder(handle)?;
        let logged = self.logged(&mut state);
        Ok((index < logged).then(|| Arc::clone(&state.history[index])))
    }

    /// Where the log stands before the commit of the transaction at `index`, while that is not in the log.
    pub fn idle_end(&self, handle: u64, index: usize) -> Result<Option<Lsn>> {
        let mut state = self.holder(handle)?;
        let logged = self.logged(&mut state);
        Ok(state.history.get(index).filter(|_| index >= logged).map(|one| one.commit))
    }

    /// The confirmation of the holder of the slot; never goes back.
    pub fn confirm(&self, handle: u64, lsn: Lsn) -> Result<()> {
        let mut state = self.holder(handle)?;
        let committed = self.world.committed();
        if lsn > committed.base {
            self.world.violation(format!("{lsn} was confirmed, only {} is committed (I1)", committed.base));
        }
        let slot = state.slot.as_mut().expect("a holder holds a slot");
        slot.confirmed = if self.world.lie == Lie::ConfirmGoesBack { lsn } else { slot.confirmed.max(lsn) };
        Ok(())
    }

    /// Streams that were ever opened.
    pub fn streams(&self) -> u64 {
        self.state().opened
    }

    pub fn disconnect(&self, handle: u64) {
        self.nothing_on_the_way(handle);
        if let Some(slot) = self.state().slot.as_mut()
            && slot.active == Some(handle)
        {
            slot.active = None;
        }
    }

    fn holder(&self, handle: u64) -> Result<MutexGuard<'_, State>> {
        self.up()?;
        let state = self.state();
        if state.slot.as_ref().is_some_and(|slot| slot.active == Some(handle)) {
            return Ok(state);
        }
        Err(Error::new(&contract::CONNECTION_LOST, "the connection ended, or the slot has another reader"))
    }

    /// Transactions in the log so far in virtual time.
    fn logged(&self, state: &mut State) -> usize {
        let began = *state.began.get_or_insert_with(Instant::now);
        let passed = began.elapsed().as_micros() / self.pace.as_micros().max(1);
        state.history.len().min(usize::try_from(passed).unwrap_or(usize::MAX))
    }

    fn logged_end(&self, state: &mut State) -> Lsn {
        let logged = self.logged(state);
        logged.checked_sub(1).map_or(0, |last| state.history[last].end)
    }

    /// Connects a reader.
    pub fn session(&self) -> Result<u64> {
        self.up()?;
        Ok(self.state().ends)
    }

    /// What the session sees at this moment.
    pub fn look(&self, session: u64) -> Result<Seen> {
        self.up()?;
        let mut state = self.state();
        if state.ends != session {
            return Err(Error::new(&contract::CONNECTION_LOST, "the server ended the session"));
        }
        let logged = self.logged(&mut state);
        let now = state.began.map_or(Duration::ZERO, |began| began.elapsed());
        let lag = |index: usize| state.lags.get(index).copied().unwrap_or_default();
        let is_visible = |index: &usize| *index < state.settled || now >= self.pace * (*index as u32 + 1) + lag(*index);
        let (visible, pending): (Vec<usize>, Vec<usize>) = (0..logged).partition(is_visible);
        let end = logged.checked_sub(1).map_or(0, |last| state.history[last].end);
        let xid = |index: usize| state.history[index].xid;
        Ok(Seen {
            transactions: visible.into_iter().map(|index| Arc::clone(&state.history[index])).collect(),
            pending: pending.into_iter().map(xid).collect(),
            future: state.history[logged..].iter().map(|one| one.xid).collect(),
            end,
            // Rows of transactions that are not committed may be behind the last commit record.
            written: state.history.get(logged).map_or(end, |next| next.commit),
            at: now,
        })
    }

    /// Whether a table was rewritten between two looks.
    pub fn was_rewritten(&self, table: usize, from: Duration, to: Duration) -> bool {
        self.rewrites.iter().any(|(one, at)| *one == table && (from..to).contains(at))
    }

    // What operators, time and accidents do.

    /// A checkpoint of the server. It stores a slot that was advanced, and no place that was only confirmed.
    pub fn checkpoint(&self) {
        if self.state().slot.as_ref().is_some_and(|slot| slot.dirty) || self.world.lie == Lie::CheckpointStoresAll {
            self.store_slot();
        }
    }

    /// The slot's place reaches the disk: the oldest log or catalogue that it needs has moved, or the server ended in order.
    pub fn store_slot(&self) {
        if let Some(slot) = self.state().slot.as_mut() {
            slot.persisted = slot.confirmed;
            slot.dirty = false;
        }
    }

    /// The standby learns the slot as it is on the primary's disk.
    pub fn sync_slot(&self) {
        if let Some(slot) = self.state().slot.as_mut() {
            slot.synced = Some(slot.persisted);
        }
    }

    /// The server dies and comes back: every connection is gone, and the slot may have moved back. True if it did.
    pub fn crash(&self, down: Duration) -> bool {
        let mut state = self.state();
        state.down_until = Some(Instant::now() + down);
        self.evict(&mut state);
        state.ends += 1;
        state.settled = self.logged(&mut state);
        let Some(slot) = state.slot.as_mut() else { return false };
        let regressed = slot.persisted < slot.confirmed;
        if self.world.lie != Lie::SlotOnDiskAtOnce {
            slot.confirmed = slot.persisted;
        }
        slot.dirty = false;
        regressed
    }

    /// pg_replication_slot_advance to the end, which a slot in use refuses.
    pub fn advance_slot(&self) {
        let mut state = self.state();
        let end = self.logged_end(&mut state);
        let in_use = self.world.lie == Lie::AdvanceInUse;
        if let Some(slot) = state.slot.as_mut().filter(|slot| slot.active.is_none() || in_use) {
            slot.confirmed = slot.confirmed.max(end);
            slot.dirty = true;
        }
    }

    /// A standby takes over. The slot is there as it was synchronized last, or not at all; of the log's end up to `lost`
    /// transactions never reached the standby, and others take their place. True if everything that matters is there.
    pub fn fail_over(&self, rng: &mut Rng, lost: usize, down: Duration) -> bool {
        let mut state = self.state();
        let logged = self.logged(&mut state);
        // A standby that follows this timeline has at least what was there when it began.
        let inherited = state.switches.last().map_or(0, |(_, switch)| *switch);
        let inherited = state.history.partition_point(|one| one.end <= inherited);
        let kept = logged.saturating_sub(lost).max(inherited);
        (state.settled, state.ends) = (kept, state.ends + 1);
        let whole = kept == logged;
        let end = kept.checked_sub(1).map_or(0, |last| state.history[last].end);
        // A standby that lacks nothing has also what was written behind the last commit.
        let switch = state.history.get(kept).filter(|_| whole).map_or(end, |next| next.commit);
        let timeline = state.timeline;
        self.evict(&mut state);
        state.switches.push((timeline, switch));
        state.timeline += 1;
        state.down_until = Some(Instant::now() + down);
        let synced = state.slot.as_ref().and_then(|slot| slot.synced);
        // A slot that was synchronized ahead of the standby's own log is not usable there.
        state.slot = synced.filter(|synced| *synced <= switch).map(|synced| Slot {
            confirmed: synced,
            persisted: synced,
            dirty: false,
            synced: None,
            active: None,
        });
        if !whole {
            let old = state.history.clone();
            let last = old.last().map_or(0, |last| last.xid);
            let versions = old.iter().flat_map(|one| &one.steps).map(|step| step.version).max().unwrap_or(0);
            state.history.truncate(kept);
            state.lags.truncate(kept);
            let rows = self.rows.after(state.history.iter().map(|one| &**one));
            let mut writer = Writer::new(rows, self.pace);
            (writer.lsn, writer.xid, writer.version) = (switch.max(1_000), last + 1_000, versions);
            for _ in kept..old.len() {
                state.push(writer.transaction(rng));
            }
            // The new branch grows beyond the old one, so that a place of the old one is never the end of the new one.
            writer.lsn = writer.lsn.max(old.last().map_or(0, |last| last.end));
            state.push(writer.transaction(rng));
            state.former.push(old);
        }
        whole && state.slot.is_some()
    }
}

fn schema(table: &str) -> Arc<Schema> {
    let column = |name: &str, r#type| Column { name: name.into(), r#type, source_type: "model".into(), nullable: false };
    let columns = vec![column("id", Type::Int64), column("ver", Type::Int64), column("big", Type::Int64)];
    Arc::new(Schema { table: table.into(), columns, key: vec![0] })
}

/// What a real connector would say with a code of its own.
pub fn lost(what: &str) -> Error {
    Error::new(&codes::CHECKPOINT_UNREADABLE, what.to_owned())
}

/// `base` or `base/xid:commit:ordinal:lsn`.
pub fn parse(position: &str) -> Place {
    let (base, partial) = match position.split_once('/') {
        Some((base, partial)) => (base, Some(partial)),
        None => (position, None),
    };
    let number = |text: &str| text.parse().expect("a number of a position of this model");
    let partial = partial.map(|partial| {
        let mut parts = partial.split(':').map(number);
        std::array::from_fn(|_| parts.next().expect("four numbers"))
    });
    Place { base: number(base), partial }
}
