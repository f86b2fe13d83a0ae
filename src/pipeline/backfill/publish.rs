//! From chunks to log transactions, and what the stream's own transactions mean for the rows that are read.

use std::collections::{BTreeMap, HashSet};

use headwater_connector::{BackfillMode, Batch, Change, Error, Op, Result, Source, fault};

use super::{AGAIN, Backfill, desk::ReadyChunk, fresh, journal::Superseded, refresh::Refresh, run::Run};
use crate::{
    log::{
        Transaction,
        checkpoint::{BackfillState, TableBackfill},
    },
    mapping::{
        Encoder, Place,
        encode::{Encoded, Keys, Side},
    },
    pipeline::{codes, ingest::Ingest, now_text, now_us, start::Progress},
};

/// What came of a chunk that was ready.
pub enum Emitted {
    /// A log transaction, what encoding it brought, and how many rows it holds the reading of.
    Rows(Encoded, u64),
    /// It could not be used and is read again.
    Discarded,
}

impl Backfill {
    /// What was just encoded asks for tables to be read. Emptied ones: their topics still hold the keys, which are buried. Those of which
    /// too many rows lack columns. True if `backfills` changed. `place` is that of the log transaction.
    pub fn follow(&mut self, backfills: &mut BTreeMap<String, TableBackfill>, place: Place) -> bool {
        let truncated = std::mem::take(&mut self.truncated);
        for table in &truncated {
            // What the same log transaction holds from before the truncate is old as well; what is there is looked up.
            let reconcile = Some((place.era, place.seq + 1));
            backfills.insert(table.clone(), TableBackfill { reconcile, ..fresh() });
            self.runs.remove(table);
        }
        let overflowed = std::mem::take(&mut self.overflowed);
        let mut changed = !truncated.is_empty();
        for table in &overflowed {
            let known = backfills.entry(table.clone()).or_default();
            if known.state != BackfillState::Running {
                *known = fresh();
                changed = true;
            } else if !known.again {
                known.again = true;
                changed = true;
            }
        }
        changed
    }

    /// Whether a chunk can be published now: the stream has passed what the chunk saw, and is between two transactions.
    pub fn is_due(&mut self, source: &mut dyn Source) -> Result<bool> {
        if !self.finished.is_empty() {
            return Ok(true);
        }
        match self.ready.front() {
            Some(chunk) => source.passed(&chunk.chunk.barrier),
            None => Ok(false),
        }
    }

    /// Makes a log transaction of the chunk that is due.
    pub fn emit(&mut self, encoder: &mut Encoder, progress: &mut Progress, out: &mut Transaction) -> Result<Emitted> {
        if let Some(table) = self.finished.pop() {
            let known = progress.backfills.entry(table.clone()).or_default();
            finish(known);
            self.runs.remove(&table);
            return Ok(Emitted::Rows(Encoded::default(), 0));
        }
        let Some(ready) = self.ready.pop_front() else { return Ok(Emitted::Discarded) };
        if self.refresh.as_ref().is_some_and(|refresh| refresh.expects(ready.ticket)) {
            return self.emit_refresh(ready, encoder, progress, out);
        }
        let Some(run) = self.runs.get_mut(&ready.table) else { return Ok(Emitted::Discarded) };
        let progress_place = progress.next_place();
        let known = progress.backfills.entry(ready.table.clone()).or_default();
        if known.table_id.as_ref().is_some_and(|id| *id != ready.chunk.table_id) {
            tracing::warn!(table = ready.table, "the table is another one than the one that was read so far; beginning anew");
            let reconcile = known.reconcile.or(Some((progress_place.era, progress_place.seq))).filter(|_| known.filter.is_none());
            *known = TableBackfill { filter: known.filter.take(), reconcile, first: known.first, ..fresh() };
            *run = Run::new(run.topic, known);
            self.drop_strays();
            return Ok(Emitted::Discarded);
        }
        let superseded = self.journal.superseded(run.topic, &*ready.chunk.seen);
        if matches!(superseded, Superseded::All) {
            run.again(ready.ticket);
            // A commit that waits for a standby can stay unseen for long: it is not asked for without a pause.
            self.pace.rest(AGAIN);
            self.drop_strays();
            return Ok(Emitted::Discarded);
        }
        if run.is_burial(ready.ticket) && ready.chunk.end.is_some() {
            // Cut short, so a key that is not among the rows may still be in the table.
            run.look_up_fewer(ready.ticket);
            return Ok(Emitted::Discarded);
        }
        if run.is_burial(ready.ticket) {
            // That a newer event of a key was published says nothing about the row: what emptied the table names no key.
            let superseded = self.journal.unseen(run.topic, &*ready.chunk.seen);
            let present: HashSet<Vec<u8>> = encoder.keys(&ready.batch)?.into_iter().collect();
            let keys = run.looked_up(ready.ticket);
            let gone = keys.iter().map(Vec::as_slice).filter(|key| !present.contains(*key) && !superseded.holds(key));
            let events = encoder.bury(&ready.table, gone, progress_place, now_us() / 1000, out)?;
            known.buried += events;
            self.desk.give_back(ready.batch);
            self.forget();
            return Ok(Emitted::Rows(Encoded { events, ..Encoded::default() }, 0));
        }
        let rows = ready.batch.changes().len() as u64;
        let mut judge = Judge { superseded, rows: usize::MAX, refresh: self.refresh.as_mut(), published: None };
        let encoded = encoder.encode(&ready.batch, progress_place, out, &mut judge)?;
        known.rows += rows;
        known.published += encoded.events;
        *self.read.entry(ready.table.clone()).or_default() += rows;
        known.table_id = Some(ready.chunk.table_id.clone());
        run.emitted(ready.ticket, &ready.chunk, known);
        match (known.ranges.is_empty(), known.reconcile) {
            (false, _) => {}
            (true, Some(_)) => run.begin_burial(),
            (true, None) => {
                let topic = run.topic;
                match finish(known) {
                    true => drop(self.runs.remove(&ready.table)),
                    false => drop(self.runs.insert(ready.table.clone(), Run::new(topic, known))),
                }
            }
        }
        self.desk.give_back(ready.batch);
        self.forget();
        Ok(Emitted::Rows(encoded, rows))
    }

    /// Publishes rows that lack columns in their topic.
    fn emit_refresh(
        &mut self,
        mut ready: ReadyChunk,
        encoder: &mut Encoder,
        progress: &Progress,
        out: &mut Transaction,
    ) -> Result<Emitted> {
        let Some(refresh) = &mut self.refresh else { return Ok(Emitted::Discarded) };
        let Some(topic) = encoder.topic_of(&ready.table) else { return Ok(Emitted::Discarded) };
        // What is pending says what the newest event is; here it matters only which changes the snapshot does not see.
        let superseded = self.journal.unseen(topic, &*ready.chunk.seen);
        if matches!(superseded, Superseded::All) {
            refresh.again(ready.ticket);
            return Ok(Emitted::Discarded);
        }
        let rows = ready.batch.changes().len();
        if refresh.keeps(ready.ticket) {
            let keys = encoder.keys(&ready.batch)?;
            let (seen, is_late) = (&*ready.chunk.seen, |key: &[u8]| superseded.holds(key));
            refresh.hot.complete(topic, (&self.journal, seen), (&keys, is_late), &mut ready.batch);
        }
        let mut judge = Judge { superseded, rows, refresh: Some(refresh), published: Some(HashSet::new()) };
        let encoded = encoder.encode(&ready.batch, progress.next_place(), out, &mut judge)?;
        let Judge { superseded, refresh, published, .. } = judge;
        if let (Some(refresh), Some(published)) = (refresh, published) {
            // A row that is not there has its tombstone: the stream has passed what the snapshot saw. Of a chunk that was cut short
            // nobody knows which rows are not there.
            let is_whole = ready.chunk.end.is_none();
            let is_done = |key: &[u8]| published.contains(key) || (is_whole && !superseded.holds(key));
            refresh.land(ready.ticket, is_done, |key| superseded.holds(key), self.journal.next_number());
        }
        self.forget();
        Ok(Emitted::Rows(encoded, 0))
    }

    /// Fails if a row lacks columns for the first time in the connector's life: the topic that says so is made at the next start, before
    /// anything of this is published.
    pub fn require_topic(&self, ingest: &Ingest) -> Result<()> {
        if !self.lacks_topic {
            return Ok(());
        }
        ingest.want_refresh();
        Err(Error::new(&codes::REFRESH_TOPIC, "the topic of rows that lack columns is to be made")
            .at("topic", &self.refresh_topic)
            .hint("Nothing needs to be done: the connector makes it and goes on."))
    }

    /// Writes which rows lack columns from now on, and which do not any more, into the log transaction that makes it so.
    pub fn write_refresh(&mut self, out: &mut Transaction) {
        if let Some(refresh) = &mut self.refresh {
            refresh.write(&self.refresh_topic, now_us() / 1000, out);
        }
    }

    /// Takes what every chunk on its way sees out of the journal.
    fn forget(&mut self) {
        let refresh = self.refresh.as_ref().and_then(Refresh::oldest_floor);
        let oldest = self.runs.values().filter_map(Run::oldest_floor).chain(refresh).min_by_key(|(ticket, _)| *ticket);
        match oldest {
            Some((_, Some(floor))) => self.journal.forget(&*floor),
            Some((_, None)) => {}
            None => {
                if let Some(newest) = &self.newest {
                    self.journal.forget(&**newest);
                }
            }
        }
    }
}

/// All rows were read. False if they are read once more.
fn finish(known: &mut TableBackfill) -> bool {
    if std::mem::take(&mut known.again) {
        *known = fresh();
        return false;
    }
    known.state = BackfillState::Done;
    known.first = None;
    known.finished_at = Some(now_text());
    true
}

/// The journal looks on while the stream is encoded, and so does who refreshes rows.
impl Side for Backfill {
    #[inline]
    fn passes(&mut self, batch: &Batch, change: &Change, topic: u32, event: &Keys<'_>) -> bool {
        if self.journal.watches(topic) && self.is_active() {
            let transaction = batch.transaction_id(&batch.transactions()[change.transaction as usize]);
            self.journal.touch(topic, transaction, event.key, event.is_whole);
            if let Some(old_key) = event.old_key {
                self.journal.touch(topic, transaction, old_key, true);
            }
        }
        self.lacks_topic |= !event.is_whole && self.refreshes && self.refresh.is_none();
        if let Some(refresh) = self.refresh.as_mut().filter(|refresh| !event.is_whole || refresh.is_active()) {
            let schema = &batch.schemas()[change.schema as usize];
            refresh.follow(topic, (batch, change), event);
            if !event.is_whole && !refresh.add(topic, schema, event.key) {
                self.overflowed.insert(schema.table.clone());
            }
        }
        true
    }

    fn touched_all(&mut self, batch: &Batch, change: &Change, topic: u32) {
        if change.op == Op::Truncate && self.options.mode == BackfillMode::Initial {
            self.truncated.insert(batch.schemas()[change.schema as usize].table.clone());
        }
        if let Some(refresh) = &mut self.refresh {
            refresh.hot.end_all(topic);
        }
        if self.journal.watches(topic) && self.is_active() {
            self.journal.touch_all(topic, batch.transaction_id(&batch.transactions()[change.transaction as usize]));
        }
    }
}

/// Leaves out rows for which something at least as new is published.
struct Judge<'a> {
    superseded: Superseded<'a>,
    /// How many of the rows were read; those behind them are newer and were completed.
    rows: usize,
    /// Rows that are published whole need no refresh.
    refresh: Option<&'a mut Refresh>,
    /// Of a refresh, the keys that were published; only rows that it asked for are.
    published: Option<HashSet<Vec<u8>>>,
}

impl Side for Judge<'_> {
    fn passes(&mut self, batch: &Batch, change: &Change, _: u32, event: &Keys<'_>) -> bool {
        let is_read = change.ordinal < self.rows as u64;
        if is_read && self.superseded.holds(event.key) && !fault::variant("publish-stale-rows") {
            return false;
        }
        let table = &batch.schemas()[change.schema as usize].table;
        match (&mut self.refresh, &mut self.published) {
            (Some(refresh), Some(published)) => {
                if !refresh.wants(table, event.key) {
                    return false;
                }
                published.insert(event.key.to_vec());
            }
            (Some(refresh), None) => refresh.settle(table, event.key),
            (None, _) => {}
        }
        true
    }
}
