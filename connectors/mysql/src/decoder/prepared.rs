//! Prepared transactions, held until the binlog says whether they happened.
//!
//! Their rows stand where XA PREPARE wrote them, and only a later XA COMMIT or XA ROLLBACK says what became of them. So the events are
//! kept as they came and applied again at the commit, under the commit's name. A restart has them sent again: on MySQL because the
//! prepare's name stays out of the published set, on MariaDB (whose sets have no holes) because the position also says from where on to
//! read again.

use headwater_connector::Result;

use super::{Decoder, Event};
use crate::{
    binlog::{self, Header, kind},
    error::torn,
    gtid::{Gtid, GtidSet},
    rows::Rows,
    stops, table_map,
    wire::{Cursor, Torn},
    xid::Xid,
};

/// All prepared transactions together are held in memory, and not beyond this.
const MAX_HELD: usize = 64 << 20;

/// A transaction that was prepared and not yet committed.
struct Pending {
    xid: Xid,
    gtid: Gtid,
    /// When it was prepared, in seconds since 1970
    since: u32,
    events: Vec<u8>,
    /// What was published before it began, where the published set cannot leave it out.
    before: Option<GtidSet>,
}

/// See the module's page.
#[derive(Default)]
pub(super) struct Prepared {
    /// In the order of the binlog
    pending: Vec<Pending>,
    /// Events of the transaction that is open, if it was begun with XA START
    held: Vec<u8>,
    /// Selected tables that it described
    tables: Vec<u64>,
    /// What is applied now was held, and with the end of the transaction this is published too.
    replayed: Option<Option<Gtid>>,
    /// Where what was sent again stands
    again: Option<GtidSet>,
    /// The domains of which everything that was sent again has come.
    behind: Vec<u32>,
}

impl Prepared {
    /// For a position that says from where on to read again.
    pub(super) fn new(again: Option<GtidSet>) -> Self {
        Self { again, ..Self::default() }
    }

    /// Whether what comes may be published already. Within a domain all that is comes first.
    pub(super) fn is_again(&self, gtid: Gtid) -> bool {
        self.again.is_some() && !self.behind.contains(&domain(gtid))
    }

    /// Whether events of the open transaction are applied that were held before.
    pub(super) fn is_replayed(&self) -> bool {
        self.replayed.is_some()
    }

    /// Whether rows of selected tables are held of the open transaction.
    pub(super) fn has_rows(&self) -> bool {
        !self.tables.is_empty()
    }

    /// Nothing is held of a new transaction.
    pub(super) fn begin(&mut self) {
        self.held.clear();
        self.tables.clear();
    }

    /// Names of what waits for its commit.
    pub(super) fn names(&self) -> impl Iterator<Item = Gtid> + '_ {
        self.pending.iter().map(|pending| pending.gtid)
    }

    /// Something came that is not published.
    pub(super) fn passed_again(&mut self, gtid: Gtid) {
        if !self.behind.contains(&domain(gtid)) {
            self.behind.push(domain(gtid));
        }
    }

    /// From where on a restart must read again.
    pub(super) fn resume_from(&self) -> Option<GtidSet> {
        match self.pending.first() {
            Some(oldest) => oldest.before.clone(),
            None => self.again.clone().filter(|_| self.behind.is_empty()),
        }
    }

    /// A published transaction came again.
    pub(super) fn came_again(&mut self, gtid: Gtid) {
        if let Some(again) = &mut self.again {
            again.insert(gtid);
        }
    }

    fn size(&self) -> usize {
        self.held.len() + self.pending.iter().map(|pending| pending.events.len()).sum::<usize>()
    }

    fn find(&mut self, xid: &Xid) -> Option<&mut Pending> {
        self.pending.iter_mut().find(|pending| pending.xid == *xid)
    }

    fn hold(&mut self, header: &Header, body: &[u8]) {
        header.write(body, &mut self.held);
    }
}

/// Only MariaDB sends what is published again, and has several.
fn domain(gtid: Gtid) -> u32 {
    match gtid {
        Gtid::Maria(gtid) => gtid.domain,
        _ => 0,
    }
}

impl Decoder {
    /// What is prepared for the longest time, and since when, in seconds since 1970.
    pub fn oldest_prepared(&self) -> Option<(Gtid, u32)> {
        self.prepared.pending.first().map(|pending| (pending.gtid, pending.since))
    }

    /// Keeps an event of a transaction that may turn out to be prepared only; none if the event is not one to keep.
    pub(super) fn hold(&mut self, header: &Header, body: &[u8]) -> Result<Option<Event>> {
        if self.prepared.is_replayed() || !self.open.as_ref().is_some_and(|open| open.is_xa) {
            return Ok(None);
        }
        if header.kind == kind::TABLE_MAP {
            let (database, name) = table_map::name(body).map_err(|Torn| torn("a table's description"))?;
            if !self.settings.selects(database, name) {
                return Ok(None);
            }
            let id = table_map::id(body).map_err(|Torn| torn("a table's description"))?;
            if !self.prepared.tables.contains(&id) {
                self.prepared.tables.push(id);
            }
            self.prepared.hold(header, body);
        } else if kind::is_rows(header.kind) {
            let id = table_map::id(body).map_err(|Torn| torn("the head of rows"))?;
            if self.prepared.tables.contains(&id) {
                self.prepared.hold(header, body);
            } else {
                let count = self.count_rows(header.kind, body)?;
                self.prepared.hold(&header.of(kind::PASSED), &count.to_le_bytes());
            }
        } else {
            return Ok(None);
        }
        if self.prepared.size() > MAX_HELD {
            return Err(stops::held(&self.open_id(), MAX_HELD));
        }
        Ok(Some(Event::Nothing))
    }

    /// Raw rows of tables that nobody selected, in one event.
    fn count_rows(&mut self, event: u8, body: &[u8]) -> Result<u64> {
        let id = table_map::id(body).map_err(|Torn| torn("the head of rows"))?;
        if self.means_no_table(id) {
            return Ok(0);
        }
        let rows = Rows::parse(event, body).map_err(|Torn| torn("the head of rows"))?;
        let Some(at) = self.tables.find(rows.table) else { return Err(torn("rows of a table that was not described")) };
        let unpacked = self.unpack(&rows)?;
        let mut cursor = Cursor::new(unpacked.as_deref().unwrap_or(rows.data));
        let mut count = 0;
        while !cursor.is_empty() {
            let skipped = rows.skip(&self.tables.get(at).fields, &mut cursor);
            count += 1;
            if skipped.is_err() {
                break;
            }
        }
        Ok(count)
    }

    /// Raw rows that were not held, since nobody selected their tables.
    pub(super) fn passed_rows(&mut self, body: &[u8]) -> Result<Event> {
        let count = Cursor::new(body).u64().map_err(|Torn| torn("an event"))?;
        self.require_expected()?;
        let Some(open) = &mut self.open else { return Err(torn("a row outside of transactions")) };
        open.ordinal = open.ordinal.saturating_add(count);
        Ok(Event::Row)
    }

    /// A transaction that really happened: what was held of it is applied first.
    pub(super) fn commit(&mut self, header: &Header, body: &[u8]) -> Result<Event> {
        let is_held = !self.prepared.is_replayed() && self.open.as_ref().is_some_and(|open| open.is_xa);
        if is_held { Ok(self.replay(header, body, None)) } else { self.end() }
    }

    /// What was held is published with the transaction that ends now.
    pub(super) fn finish_prepared(&mut self) {
        let Some(with) = self.prepared.replayed.take() else { return };
        // The numbers of tables were those of another place.
        self.tables.forget_ids();
        if let Some(gtid) = with {
            self.prepared.pending.retain(|pending| pending.gtid != gtid);
            self.set.insert(gtid);
        }
    }

    /// The end of a transaction that was begun with XA START.
    pub(super) fn prepare(&mut self, header: &Header, body: &[u8]) -> Result<Event> {
        let bad = |Torn| torn("a prepared transaction");
        if self.prepared.is_replayed() {
            return self.end();
        }
        if binlog::is_one_phase(body).map_err(bad)? {
            return Ok(self.replay(header, body, None));
        }
        let xid = Xid::of_event(body).map_err(bad)?;
        if self.is_of_files() && self.prepared.has_rows() {
            return Err(stops::prepared_in_files(&self.open_id()));
        }
        let Some(open) = self.open.take() else { return Err(torn("the end of a transaction")) };
        if self.prepared.find(&xid).is_some() {
            return Err(torn("a transaction that is prepared twice"));
        }
        // In a set of MariaDB the next of its domain stands for it too.
        let is_maria = matches!(self.set, GtidSet::Maria(_));
        let published = self.prepared.again.as_ref().filter(|_| open.is_again).unwrap_or(&self.set);
        let before = is_maria.then(|| published.clone());
        if is_maria {
            self.set.insert(open.gtid);
        }
        if open.is_again {
            self.prepared.came_again(open.gtid);
        } else {
            self.spot.clone_from(&self.reading);
        }
        self.prepared.tables.clear();
        let events = std::mem::take(&mut self.prepared.held);
        self.prepared.pending.push(Pending { xid, gtid: open.gtid, since: header.time, events, before });
        Ok(Event::Boundary)
    }

    /// XA COMMIT of what was prepared: its rows are changes of this transaction.
    pub(super) fn commit_prepared(&mut self, xid: &Xid, header: &Header, body: &[u8]) -> Result<Event> {
        self.trail.iter().for_each(|trail| trail.commits(xid));
        if self.prepared.is_replayed() {
            return self.end();
        }
        // It stays in the list until the end, since a restart in its middle needs all of it again.
        match self.prepared.find(xid).map(|pending| (std::mem::take(&mut pending.events), pending.gtid)) {
            Some((events, gtid)) => {
                self.prepared.held = events;
                Ok(self.replay(header, body, Some(gtid)))
            }
            None if self.is_published() => self.end(),
            None => Err(stops::prepared(&self.open_id())),
        }
    }

    /// XA ROLLBACK of what was prepared: it never happened.
    pub(super) fn roll_back_prepared(&mut self, xid: &Xid) -> Result<Event> {
        // One that is not held was prepared before the start.
        if let Some(gtid) = self.prepared.find(xid).map(|pending| pending.gtid) {
            self.prepared.replayed = Some(Some(gtid));
        }
        self.end()
    }

    /// Applies what was held, and then the event that ends it once more.
    fn replay(&mut self, header: &Header, body: &[u8], with: Option<Gtid>) -> Event {
        self.prepared.tables.clear();
        let mut events = std::mem::take(&mut self.prepared.held);
        header.write(body, &mut events);
        self.prepared.replayed = Some(with);
        // The numbers of tables may stand for others by now.
        self.tables.forget_ids();
        Event::Unpacked(events)
    }

    /// Whether a transaction with rows of it would be published already.
    fn is_published(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.is_again)
    }
}
