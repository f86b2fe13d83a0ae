//! Statements in the binlog: the ends of transactions, DDL, and those that must not be there.

use headwater_connector::{Batch, Before, Error, Op, Result};

use super::{Decoder, Event};
use crate::{
    binlog::{Header, Query, kind},
    config::OnTruncate,
    error::torn,
    payload,
    statement::{self, Head, Name},
    stops,
    wire::Torn,
};

/// Tables that are remembered as cleared.
const MAX_CLEARED: usize = 64;

impl Decoder {
    pub(super) fn query(&mut self, header: &Header, body: &[u8], batch: &mut Batch) -> Result<Event> {
        let query = Query::parse(body).map_err(|Torn| torn("a statement"))?;
        if header.kind == kind::QUERY {
            return self.statement(query, header, body, batch);
        }
        let limit = self.settings.max_event_bytes;
        let text = payload::maria(query.text, limit).map_err(|bad| stops::packed(bad, limit))?;
        self.statement(Query { database: query.database, text: &text }, header, body, batch)
    }

    fn statement(&mut self, query: Query<'_>, header: &Header, body: &[u8], batch: &mut Batch) -> Result<Event> {
        let head = statement::head(&query);
        let reading = self.reading.clone();
        let has_held = self.prepared.has_rows();
        let Some(open) = &mut self.open else { return Err(torn("a statement outside of transactions")) };
        let has_changes = open.announced || open.skip > 0 && !open.is_again || has_held;
        match head {
            Head::Begin | Head::XaStart => {
                open.is_bracketed = Some(true);
                open.is_xa |= head == Head::XaStart;
                Ok(Event::Nothing)
            }
            Head::Commit => self.commit(header, body),
            Head::XaCommit(xid) => self.commit_prepared(&xid, header, body),
            Head::XaRollback(xid) => self.roll_back_prepared(&xid),
            Head::Rollback | Head::RollbackTo if has_changes => Err(stops::rolled_back(&self.open_id())),
            Head::Rollback => self.end(),
            Head::RollbackTo | Head::Savepoint | Head::XaEnd => Ok(Event::Nothing),
            Head::Truncate(name) => self.truncate(&name, batch),
            dropped @ (Head::Drop(_) | Head::DropDatabase(_)) => {
                self.dropped(&dropped);
                self.statement_done()
            }
            Head::Rows(name) => match name {
                Some(name) if !self.selects(&name) && self.cleared.contains(&name) => self.statement_done(),
                Some(name) if !self.selects(&name) => Ok(Event::Statement(name)),
                name => Err(stops::statement(name.as_ref(), &reading)),
            },
            Head::Other => {
                self.cleared.clear();
                self.statement_done()
            }
        }
    }

    /// A statement that is a transaction of its own ends it.
    fn statement_done(&mut self) -> Result<Event> {
        if self.open.as_ref().is_some_and(|open| open.is_bracketed == Some(true)) { Ok(Event::Nothing) } else { self.end() }
    }

    /// Statements on this table reach no other one.
    pub fn clear(&mut self, name: Name) {
        if self.cleared.len() >= MAX_CLEARED {
            self.cleared.clear();
        }
        self.cleared.push(name);
    }

    /// Why a statement on this table stops, though it is not selected.
    pub fn unclear(&self, name: &Name) -> Error {
        let table = format!("{}.{}", String::from_utf8_lossy(&name.database), String::from_utf8_lossy(&name.table));
        stops::statement(None, &self.reading).at("of", table)
    }

    fn selects(&self, name: &Name) -> bool {
        match (std::str::from_utf8(&name.database), std::str::from_utf8(&name.table)) {
            (Ok(database), Ok(table)) => self.settings.selects(database, table),
            // In another character set: it cannot be told.
            _ => true,
        }
    }

    fn truncate(&mut self, name: &Name, batch: &mut Batch) -> Result<Event> {
        let ordinal = self.count()?;
        if !self.selects(name) {
            return self.statement_done();
        }
        let table = format!("{}.{}", String::from_utf8_lossy(&name.database), String::from_utf8_lossy(&name.table));
        // Without a description there is no schema for the event; none of the table's rows was an event either since the start.
        let schema = self.tables.schema_of(&table);
        if let (Some(ordinal), true) = (ordinal, self.settings.on_truncate == OnTruncate::Event) {
            let Some(schema) = schema else { return Err(stops::truncated(&table, &self.open_id(), false)) };
            self.announce(batch);
            let index = batch.schema_index(&schema);
            batch.push_change(Op::Truncate, index, ordinal, Before::None, None);
        } else if ordinal.is_some() {
            return Err(stops::truncated(&table, &self.open_id(), true));
        }
        self.statement_done()
    }
}
