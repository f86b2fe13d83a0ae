//! Statements in the binlog: the ends of transactions, DDL, and those that must not be there.

use headwater_connector::{Batch, Before, Error, Op, Result};

use super::{Decoder, Event};
use crate::{
    binlog::{Header, Query, kind},
    config::{OnPartitionDrop, OnTruncate},
    drift::News,
    error::torn,
    omitted::Reach,
    payload,
    statement::{self, Head, Name, Partitions, Write},
    stops,
    wire::Torn,
};

/// Statements that are remembered as cleared.
const MAX_CLEARED: usize = 64;

impl Decoder {
    pub(super) fn query(&mut self, header: &Header, body: &[u8], batch: &mut Batch) -> Result<Event> {
        let query = Query::parse(body).map_err(|Torn| torn("a statement"))?;
        if header.kind == kind::QUERY {
            return self.statement(query, header, body, batch);
        }
        let limit = self.settings.max_event_bytes;
        let text = payload::maria(query.text, limit).map_err(|bad| stops::packed(bad, limit))?;
        self.statement(Query { text: &text, ..query }, header, body, batch)
    }

    fn statement(&mut self, query: Query<'_>, header: &Header, body: &[u8], batch: &mut Batch) -> Result<Event> {
        let head = statement::head(&query);
        let reading = self.reading.clone();
        let Some(open) = &mut self.open else { return Err(torn("a statement outside of transactions")) };
        match head {
            Head::Begin | Head::XaStart => {
                open.is_bracketed = Some(true);
                open.is_xa |= head == Head::XaStart;
                Ok(Event::Nothing)
            }
            Head::Commit => self.commit(header, body),
            Head::XaCommit(xid) => self.commit_prepared(&xid, header, body),
            Head::XaRollback(xid) => self.roll_back_prepared(&xid),
            Head::Rollback => self.roll_back(batch),
            Head::RollbackTo(name) => self.roll_back_to(&name, batch),
            Head::Savepoint(name) => self.set_savepoint(name, batch),
            Head::XaEnd => Ok(Event::Nothing),
            // Of a temporary table that hides the captured one.
            Head::Truncate(_) if header.is_of_session() => {
                self.count()?;
                self.statement_done()
            }
            Head::Truncate(name) => self.truncate(&name, batch),
            dropped @ (Head::Drop(_) | Head::DropDatabase(_)) => {
                self.dropped(&dropped);
                self.statement_done()
            }
            Head::Partitions(partitions) => self.partitions(&partitions),
            Head::Moved(names) => match names.iter().find(|name| self.selects(name)) {
                Some(name) => Err(stops::moved(&self.stored(name), &reading)),
                None => self.statement_done(),
            },
            Head::Rows(None) => Err(stops::statement(None, &reading)),
            Head::Rows(Some(write)) if self.selects(&write.table) => {
                Err(stops::statement(Some(&self.stored(&write.table)), &reading))
            }
            Head::Rows(Some(write)) if self.cleared.contains(&write) => self.statement_done(),
            Head::Rows(Some(write)) => Ok(Event::Statement(write)),
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

    /// The statement reaches no other table.
    pub fn clear(&mut self, write: Write) {
        if self.cleared.len() >= MAX_CLEARED {
            self.cleared.clear();
        }
        self.cleared.push(write);
    }

    /// Why a statement on a table that is not selected stops.
    pub fn unclear(&self, name: &Name, reach: &Reach) -> Error {
        stops::unclear(&self.stored(name), reach, &self.reading)
    }

    /// Names in statements are compared as the server does it: whether capitals make a difference.
    pub fn compare(&mut self, folds: bool) {
        self.folds = folds;
    }

    pub(super) fn selects(&self, name: &Name) -> bool {
        match (std::str::from_utf8(&name.database), std::str::from_utf8(&name.table)) {
            (Ok(database), Ok(table)) if self.folds => {
                // The server keeps names in small letters, or as they were first written.
                self.settings.selects(&database.to_lowercase(), &table.to_lowercase())
                    || self.settings.tables.selects_any_case(database, table)
            }
            (Ok(database), Ok(table)) => self.settings.selects(database, table),
            // In another character set: it cannot be told.
            _ => true,
        }
    }

    /// `database.table` as the server keeps it, of a name as a statement writes it.
    pub(super) fn stored(&self, name: &Name) -> String {
        let table = format!("{}.{}", String::from_utf8_lossy(&name.database), String::from_utf8_lossy(&name.table));
        if !self.folds {
            return table;
        }
        let folded = table.to_lowercase();
        let known = self.tables.names().find(|known| known.to_lowercase() == folded).map(str::to_owned);
        known.unwrap_or(folded)
    }

    fn truncate(&mut self, name: &Name, batch: &mut Batch) -> Result<Event> {
        let table = self.stored(name);
        let is_selected = self.selects(name);
        let schema = self.tables.schema_of(&table);
        // A name that cannot be read is looked up nowhere.
        let is_name = str::from_utf8(&name.database).is_ok() && str::from_utf8(&name.table).is_ok();
        let is_event = is_name && self.settings.on_truncate == OnTruncate::Event;
        let is_unknown = schema.is_none() && self.gone.as_ref() != Some(&table);
        if is_selected && self.is_due() && is_event && is_unknown {
            // It was not described since the start; the catalogue knows it, unless it is gone by now.
            return Ok(Event::Truncated(table));
        }
        let ordinal = self.count()?;
        match (ordinal.filter(|_| is_selected), schema) {
            (None, _) => {}
            (Some(_), _) if !is_event => return Err(stops::truncated(&table, &self.open_id())),
            (Some(ordinal), Some(schema)) => {
                self.announce(batch);
                let index = batch.schema_index(&schema);
                batch.push_change(Op::Truncate, index, ordinal, Before::None, None);
            }
            // Whatever the name stood for then, the rows that were published under it are those of a table that was dropped.
            (Some(_), None) => {
                self.gone = None;
                News::note(&mut self.news.dropped, &table);
            }
        }
        self.statement_done()
    }

    /// The table of a truncate is not in the catalogue any more.
    pub fn is_gone(&mut self, table: String) {
        self.gone = Some(table);
    }

    fn partitions(&mut self, left: &Partitions) -> Result<Event> {
        let is_due = self.count()?.is_some();
        if let Some(becomes) = left.becomes.as_ref().filter(|becomes| is_due && self.selects(becomes)) {
            return Err(stops::moved(&self.stored(becomes), &self.reading));
        }
        let stops = self.settings.on_partition_drop == OnPartitionDrop::Stop;
        if stops && is_due && self.selects(&left.table) {
            return Err(stops::partitions(&self.stored(&left.table), &left.names, &self.open_id()));
        }
        self.statement_done()
    }

    /// Whether what comes next is not published yet.
    fn is_due(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.ordinal >= open.skip)
    }
}
