//! Transactions that stand in the binlog and were rolled back, whole or to a savepoint.
//!
//! The servers leave such a one out of the binlog, unless it has something that no rollback undoes: a temporary table that was made or
//! dropped (MariaDB), or a statement on a table without transactions. Its rows are none of those: rows of tables without transactions
//! are written before it, as a transaction of their own. So they never happened, and are taken back as long as they are not published.
//! Nor did one happen that the server was writing when it died: MariaDB leaves its beginning at the end of the file.

use headwater_connector::{Batch, Mark, Result};

use super::{Decoder, Event, Open};
use crate::{error::torn, stops};

/// Nobody goes back behind so many; who does is told that it cannot be followed.
const MAX_SAVEPOINTS: usize = 1024;

/// A savepoint that was set since the batch began, or before the transaction had changes.
pub(super) struct Savepoint {
    name: Vec<u8>,
    mark: Mark,
    /// Whether the batch knew the transaction.
    announced: bool,
    /// Raw rows of the transaction in front of it.
    ordinal: u64,
}

impl Open {
    /// Goes on in another batch.
    pub(super) fn begin_batch(&mut self, batch: &Batch) {
        self.is_cut |= self.announced;
        let mark = batch.mark();
        match self.has_changes {
            true => self.savepoints.clear(),
            false => self.savepoints.iter_mut().for_each(|savepoint| savepoint.mark = mark),
        }
        (self.announced, self.mark, self.mark_bytes, self.mark_changes) = (false, mark, 0, 0);
    }

    fn back_to(&mut self, mark: Mark, announced: bool, batch: &mut Batch) {
        batch.rewind(mark);
        (self.announced, self.has_changes) = (announced, announced || self.is_cut);
    }

    /// Whether rows are published.
    fn is_begun(&self) -> bool {
        self.is_cut || self.skip > 0 && !self.is_again
    }
}

impl Decoder {
    pub(super) fn set_savepoint(&mut self, name: Vec<u8>, batch: &Batch) -> Result<Event> {
        let Some(open) = &mut self.open else { return Err(torn("a savepoint outside of transactions")) };
        open.savepoints.retain(|known| !known.name.eq_ignore_ascii_case(&name));
        if open.savepoints.len() >= MAX_SAVEPOINTS {
            open.savepoints.drain(..MAX_SAVEPOINTS / 2);
        }
        open.savepoints.push(Savepoint { name, mark: batch.mark(), announced: open.announced, ordinal: open.ordinal });
        Ok(Event::Nothing)
    }

    /// Takes everything back that came since the savepoint.
    pub(super) fn roll_back_to(&mut self, name: &[u8], batch: &mut Batch) -> Result<Event> {
        let (has_held, id) = (self.prepared.has_rows(), self.open_id());
        let Some(open) = &mut self.open else { return Err(torn("a savepoint outside of transactions")) };
        let found = open.savepoints.iter().position(|known| known.name.eq_ignore_ascii_case(name));
        match found {
            _ if has_held => Err(stops::rolled_back(&id)),
            // Rows behind the savepoint were passed since they are done. If all were, whoever was here before has followed this rollback.
            Some(at) if !open.is_again && open.savepoints[at].ordinal < open.skip => match open.ordinal < open.skip {
                true => Ok(Event::Nothing),
                false => Err(stops::rolled_back(&id)),
            },
            Some(at) => {
                open.savepoints.truncate(at + 1);
                let Savepoint { mark, announced, .. } = open.savepoints[at];
                open.back_to(mark, announced, batch);
                Ok(Event::Nothing)
            }
            None if open.has_changes || open.is_begun() => Err(stops::rolled_back(&id)),
            None => Ok(Event::Nothing),
        }
    }

    /// The file that is read.
    pub fn file(&self) -> &str {
        &self.reading.file
    }

    /// A file begins. What began in the one before and did not end there never will.
    pub(super) fn forget_unfinished(&mut self, batch: &mut Batch) -> Result<()> {
        if self.open.as_ref().is_some_and(Open::is_begun) {
            return Err(stops::rolled_back(&self.open_id()));
        }
        self.abandon(batch);
        Ok(())
    }

    /// Takes the whole transaction back.
    pub(super) fn roll_back(&mut self, batch: &mut Batch) -> Result<Event> {
        let (has_held, id) = (self.prepared.has_rows(), self.open_id());
        let Some(open) = &mut self.open else { return Err(torn("the end of a transaction")) };
        if has_held || open.is_begun() {
            return Err(stops::rolled_back(&id));
        }
        if open.announced {
            let mark = open.mark;
            open.back_to(mark, false, batch);
        }
        self.end()
    }
}
