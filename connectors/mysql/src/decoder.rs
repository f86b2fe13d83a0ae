//! From events to a batch: the state between two events, and no IO.

mod noticed;
mod prepared;
mod statements;
mod undone;

use std::{borrow::Cow, sync::Arc};

use headwater_connector::{Batch, Before, Error, Limits, Mark, Op, Result, Row, Schema, Value, fault};

use self::{prepared::Prepared, undone::Savepoint};
use crate::{
    binlog::{self, Bad, Begin, Checksum, Format, Header, kind},
    codes,
    config::{Settings, ZeroDates},
    drift::News,
    error::torn,
    gtid::{FilePlace, Gtid, GtidSet},
    payload,
    position::{Mark as At, Partial, Place, Spot},
    relation::{Table, Tables},
    rows::{self, Action, Fault, Rows},
    statement::Write,
    stops, table_map,
    trail::Trail,
    wire::{Cursor, Torn},
};

/// What an event meant for the caller's loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing to decide.
    Nothing,
    /// Rows were taken; the batch may have outgrown its limits.
    Row,
    /// The batch has outgrown its limits in the middle of an event; the caller applies the event again to the next batch.
    Cut,
    /// A transaction is complete.
    Boundary,
    /// A selected table is described; the caller looks up what is missing and puts it into `tables`.
    Table,
    /// A statement that changes rows of a table which is not selected; the caller finds out whether it can reach another one, clears it,
    /// and applies the event again.
    Statement(Write),
    /// A truncate of a selected table that was not described; the caller looks it up, and applies the event again.
    Truncated(String),
    /// The events of a compressed transaction, to be applied next.
    Unpacked(Vec<u8>),
    /// The server has nothing more to send now.
    Idle,
}

/// A transaction that has begun.
struct Open {
    gtid: Gtid,
    commit_time_us: i64,
    /// Whether it ends with a word of its own; none until a statement said so.
    is_bracketed: Option<bool>,
    /// It was begun with XA START, or is prepared only.
    is_xa: bool,
    /// It is published, and was sent again for what was prepared before it.
    is_again: bool,
    /// Ordinal of the next raw row (invariant 4: counted before any filter).
    ordinal: u64,
    /// Raw rows that were published before a restart.
    skip: u64,
    /// Where it began in this batch; where the batch begins, if it was cut.
    mark: Mark,
    mark_bytes: usize,
    mark_changes: usize,
    /// Whether this batch knows it.
    announced: bool,
    /// Whether this batch or one before it has changes of it.
    has_changes: bool,
    /// Whether one before it has.
    is_cut: bool,
    savepoints: Vec<Savepoint>,
}

/// See the module's page.
pub struct Decoder {
    /// The tables described so far.
    pub tables: Tables,
    settings: Arc<Settings>,
    checksum: Checksum,
    set: GtidSet,
    resume: Option<Partial>,
    open: Option<Open>,
    prepared: Prepared,
    /// The last transaction that had changes for us.
    last_change: Option<Gtid>,
    spot: Spot,
    time: u32,
    /// Whether the position's file must be this server's own.
    is_bound: bool,
    /// Whose files are read.
    owner: u32,
    /// The file that is read, and where the next event begins in it; the server says so first of all.
    reading: Spot,
    /// Where the event that was taken last begins in it.
    begins_at: u64,
    /// A place before which everything is published, as far as that is known without reading.
    stood: At,
    /// Where readers of rows learn what was passed; MariaDB only.
    trail: Option<Arc<Trail>>,
    /// Selected tables that the statement described and of which no rows came yet.
    mapped: Vec<u64>,
    news: News,
    /// Statements that change no selected table, since DDL came last.
    cleared: Vec<Write>,
    /// A table that a truncate names and the catalogue does not have.
    gone: Option<String>,
    /// Whether the server does not tell capitals apart in names.
    folds: bool,
    id: String,
    limits: Limits,
}

impl Decoder {
    /// Continues behind `place`; `is_bound` is whether its file must be this server's own.
    pub fn new(place: Place, is_bound: bool, settings: Arc<Settings>) -> Self {
        Self {
            tables: Tables::default(),
            settings,
            checksum: Checksum::Unknown,
            set: place.set,
            resume: place.partial,
            open: None,
            prepared: Prepared::new(place.from),
            last_change: None,
            // The server says at once where it reads. Until then no place of another server may pass for one of this.
            owner: 0,
            reading: Spot::default(),
            begins_at: 0,
            stood: At::default(),
            trail: None,
            mapped: Vec::new(),
            news: News::default(),
            cleared: Vec::new(),
            gone: None,
            folds: false,
            spot: place.spot,
            time: 0,
            is_bound,
            id: String::new(),
            limits: Limits::default(),
        }
    }

    /// Says whose files are read, for the places that are handed out.
    pub fn reads_from(&mut self, owner: u32) {
        self.owner = owner;
    }

    /// Tells readers of rows what it passes. Everything before `stood` is published.
    pub fn follow(&mut self, trail: Option<Arc<Trail>>, stood: At) {
        (self.trail, self.stood) = (trail, stood);
    }

    /// Whether everything that ends at a place or before it was taken.
    pub fn has_passed(&self, at: At) -> bool {
        self.is_between() && (self.reading.mark() >= at || self.stood >= at)
    }

    /// Every transaction that came whole, and what is prepared.
    pub fn seen(&self) -> Cow<'_, GtidSet> {
        let mut seen = Cow::Borrowed(&self.set);
        for gtid in self.prepared.names().filter(|gtid| !self.set.contains(*gtid)) {
            seen.to_mut().insert(gtid);
        }
        seen
    }

    /// When the server wrote what came last, in seconds since 1970; 0 before the first event.
    pub fn time(&self) -> u32 {
        self.time
    }

    /// The last transaction that had changes for us, since this was opened.
    pub fn last_change(&self) -> Option<Gtid> {
        self.last_change
    }

    /// Where a batch that ends here stands.
    pub fn place(&self) -> Place {
        let cut = self.open.as_ref().filter(|open| !open.is_again && (open.ordinal > 0 || open.skip > 0));
        let partial = cut.map(|open| Partial {
            gtid: open.gtid,
            // Rows before the resume point are published whether they were passed again yet or not.
            done: open.ordinal.max(open.skip),
        });
        // A partial position that was not reached again yet stays as it is.
        let (set, from) = (self.set.clone(), self.prepared.resume_from());
        Place { set, from, partial: partial.or(self.resume), spot: self.spot.clone() }
    }

    /// Bytes of binlog behind the last complete transaction, as far as they are in one file.
    pub fn spot(&self) -> &Spot {
        &self.spot
    }

    /// Whether the batch holds changes of a transaction that is not complete.
    pub fn is_torn(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.announced)
    }

    /// Whether everything that was begun is complete.
    pub fn is_between(&self) -> bool {
        self.open.is_none() && self.resume.is_none()
    }

    /// Begins an empty batch.
    pub fn begin_batch(&mut self, batch: &Batch, limits: &Limits) {
        self.limits = *limits;
        if let Some(open) = &mut self.open {
            open.begin_batch(batch);
        }
    }

    /// Whether the open transaction alone has as much as a batch may.
    pub fn has_outgrown(&self, batch: &Batch) -> bool {
        let Limits { max_bytes, max_changes, .. } = self.limits;
        self.open.as_ref().is_some_and(|open| {
            batch.size_bytes() - open.mark_bytes >= max_bytes || batch.changes().len() - open.mark_changes >= max_changes
        })
    }

    /// After an error: takes the open transaction out of the batch. What is left ends at a transaction boundary.
    /// The decoder cannot go on.
    pub fn abandon(&mut self, batch: &mut Batch) {
        if let Some(open) = self.open.take() {
            batch.rewind(open.mark);
        }
    }

    /// Takes one event as the server sent it.
    #[inline]
    pub fn apply(&mut self, event: &[u8], batch: &mut Batch) -> Result<Event> {
        let (header, body) = binlog::split(event, self.checksum).map_err(|bad| match bad {
            Bad::Torn => torn("an event"),
            Bad::Checksum => stops::checksum(&self.reading),
        })?;
        let stood = self.reading.at;
        self.reading.at = header.behind(stood, event.len(), self.open.is_some());
        if header.next > 0 {
            self.time = header.time;
            self.begins_at = self.reading.at.saturating_sub(event.len() as u64);
        }
        let event = self.event(&header, body, batch)?;
        if matches!(event, Event::Cut | Event::Statement(_) | Event::Truncated(_)) {
            // It comes again, and is counted then.
            self.reading.at = stood;
        }
        if self.open.is_none() && self.is_of_files() {
            self.set.advance(&self.reading.file, self.reading.at);
            self.spot.clone_from(&self.reading);
        }
        Ok(event)
    }

    /// The body of an event that was just taken.
    pub fn body<'a>(&self, event: &'a [u8]) -> &'a [u8] {
        let end = if self.checksum == Checksum::Crc32 { event.len().saturating_sub(4) } else { event.len() };
        event.get(binlog::HEAD..end).unwrap_or_default()
    }

    /// Takes one event of a compressed transaction, which has no checksum and no place of its own.
    pub fn apply_unpacked(&mut self, event: &[u8], batch: &mut Batch) -> Result<Event> {
        let (header, body) = binlog::split(event, Checksum::Off).map_err(|_| torn("a compressed transaction"))?;
        match header.kind {
            kind::FORMAT_DESCRIPTION | kind::ROTATE | kind::TRANSACTION_PAYLOAD => Err(torn("a compressed transaction")),
            _ => self.event(&header, body, batch),
        }
    }

    #[inline]
    fn event(&mut self, header: &Header, body: &[u8], batch: &mut Batch) -> Result<Event> {
        if let Some(held) = self.hold(header, body)? {
            return Ok(held);
        }
        match header.kind {
            kind::TABLE_MAP => self.table(body),
            rows if kind::is_rows(rows) => self.rows(rows, body, batch),
            kind::PASSED if self.prepared.is_replayed() => self.passed_rows(body),
            kind::XID => self.commit(header, body),
            kind::GTID | kind::GTID_TAGGED | kind::ANONYMOUS_GTID if self.is_of_files() => {
                self.begin_in_file(header, body, batch)
            }
            kind::GTID => self.begin(header, binlog::mysql_gtid(body), batch),
            kind::GTID_TAGGED => self.begin(header, binlog::mysql_gtid_tagged(body), batch),
            kind::MARIA_GTID => self.begin(header, binlog::maria_gtid(header, body), batch),
            kind::QUERY | kind::QUERY_COMPRESSED => self.query(header, body, batch),
            kind::XA_PREPARE => self.prepare(header, body),
            kind::TRANSACTION_PAYLOAD => {
                let events = payload::transaction(body, self.settings.max_event_bytes);
                events.map(Event::Unpacked).map_err(|bad| stops::packed(bad, self.settings.max_event_bytes))
            }
            kind::FORMAT_DESCRIPTION => {
                self.checksum = Format::parse(body).map_err(|Torn| torn("a format description"))?.checksum;
                self.tables.forget_ids();
                self.forget_unfinished(batch)?;
                self.begin_file(header.time)
            }
            kind::ROTATE => {
                let (file, at) = binlog::rotate(body).map_err(|Torn| torn("a rotation"))?;
                self.reading = Spot { owner: self.owner, ..Spot::new(file, at) };
                self.tables.forget_ids();
                Ok(Event::Nothing)
            }
            kind::HEARTBEAT | kind::HEARTBEAT_V2 => Ok(Event::Idle),
            _ => self.other(header),
        }
    }

    /// A file of the same name that was begun at another time is one of another server, or of a history that was thrown away.
    fn begin_file(&mut self, born: u32) -> Result<Event> {
        let Spot { file, born: recorded, .. } = &self.spot;
        if self.is_bound && *recorded > 0 && *file == self.reading.file && *recorded != born {
            return Err(stops::other_server(&self.spot));
        }
        self.reading.born = born;
        Ok(Event::Nothing)
    }

    fn other(&self, header: &Header) -> Result<Event> {
        match header.kind {
            kind::ANONYMOUS_GTID => Err(stops::anonymous(&self.reading)),
            kind::INCIDENT => Err(stops::incident(&self.reading)),
            kind::BEGIN_LOAD | kind::EXECUTE_LOAD => Err(stops::statement(None, &self.reading)),
            kind::STOP
            | kind::INTVAR
            | kind::RAND
            | kind::USER_VAR
            | kind::ROWS_QUERY
            | kind::PREVIOUS_GTIDS
            | kind::TRANSACTION_CONTEXT
            | kind::VIEW_CHANGE
            | kind::ANNOTATE_ROWS
            | kind::BINLOG_CHECKPOINT
            | kind::GTID_LIST
            | kind::START_ENCRYPTION => Ok(Event::Nothing),
            _ if header.is_ignorable() => Ok(Event::Nothing),
            other => Err(stops::unknown(other, &self.reading)),
        }
    }

    fn is_of_files(&self) -> bool {
        matches!(self.set, GtidSet::Places(_))
    }

    /// Named or not, the transaction is known by the place where it begins: a mode that is switched on the way changes nothing.
    fn begin_in_file(&mut self, header: &Header, body: &[u8], batch: &Batch) -> Result<Event> {
        let place = FilePlace::new(&self.reading.file, self.begins_at).ok_or_else(|| torn("the name of a file"))?;
        let time = match header.kind {
            kind::GTID_TAGGED => binlog::mysql_gtid_tagged(body).map(|begin| begin.commit_time_us),
            _ => binlog::commit_time(body),
        };
        let time = time.map_err(|Torn| torn("the begin of a transaction"))?;
        let begin = Begin { gtid: Gtid::Place(place), commit_time_us: time, standalone: None, is_prepared_xa: false };
        self.begin(header, Ok(begin), batch)
    }

    fn begin(&mut self, header: &Header, begin: Result<Begin, Torn>, batch: &Batch) -> Result<Event> {
        let begin = begin.map_err(|Torn| torn("the begin of a transaction"))?;
        if self.open.is_some() {
            return Err(torn("a transaction"));
        }
        self.prepared.begin();
        self.mapped.clear();
        let is_published = self.set.contains(begin.gtid);
        let is_again = is_published && self.prepared.is_again(begin.gtid);
        if !is_published {
            self.prepared.passed_again(begin.gtid);
        }
        // Start rule 1.5(6): what was published must not come again.
        if is_published && !is_again && !fault::variant("resume-where-the-slot-stands") {
            return Err(Error::new(&codes::STREAM_BEHIND, "the server sent a transaction that is published")
                .at("transaction", begin.gtid)
                .hint("On MariaDB run SET GLOBAL gtid_strict_mode = ON; then begin anew with `headwater reset`; see `headwater explain HW3016`."));
        }
        if let (Some(trail), Gtid::Maria(gtid)) = (&self.trail, begin.gtid) {
            trail.begin(gtid, At { at: self.begins_at, ..self.reading.mark() });
        }
        // Before the transaction that was cut only those come that were prepared, and they show it at their end.
        let skip = match self.resume.take_if(|partial| partial.gtid == begin.gtid) {
            Some(partial) => partial.done,
            None if is_again => u64::MAX,
            None => 0,
        };
        self.open = Some(Open {
            gtid: begin.gtid,
            commit_time_us: begin.commit_time_us.unwrap_or(i64::from(header.time) * 1_000_000),
            is_bracketed: begin.standalone.map(|standalone| !standalone),
            is_xa: begin.is_prepared_xa,
            is_again,
            ordinal: 0,
            skip,
            mark: batch.mark(),
            mark_bytes: batch.size_bytes(),
            mark_changes: batch.changes().len(),
            announced: false,
            has_changes: false,
            is_cut: false,
            savepoints: Vec::new(),
        });
        Ok(Event::Nothing)
    }

    /// Where a transaction was cut, its rest comes first.
    fn require_expected(&self) -> Result<()> {
        match (self.resume, &self.open) {
            (Some(partial), Some(open)) if !open.is_again => Err(stops::mismatch(partial, &open.gtid.to_string())),
            _ => Ok(()),
        }
    }

    /// The open transaction is complete.
    fn end(&mut self) -> Result<Event> {
        self.require_expected()?;
        let Some(open) = self.open.take() else { return Err(torn("the end of a transaction")) };
        self.finish_prepared();
        if open.is_again {
            self.prepared.came_again(open.gtid);
            return Ok(Event::Nothing);
        }
        if open.ordinal < open.skip {
            let partial = Partial { gtid: open.gtid, done: open.skip };
            return Err(stops::mismatch(partial, &format!("it with only {} rows", open.ordinal)));
        }
        self.set.insert(open.gtid);
        self.set.advance(&self.reading.file, self.reading.at);
        self.spot.clone_from(&self.reading);
        if open.has_changes || open.skip > 0 {
            self.last_change = Some(open.gtid);
        }
        Ok(Event::Boundary)
    }

    fn table(&mut self, body: &[u8]) -> Result<Event> {
        let id = table_map::id(body).map_err(|Torn| torn("a table's description"))?;
        if let Some(at) = self.tables.find(id) {
            if self.tables.get(at).shape.is_some() {
                self.mapped.push(id);
            }
            return Ok(Event::Nothing);
        }
        let (database, name) = table_map::name(body).map_err(|Torn| torn("a table's description"))?;
        if self.settings.selects(database, name) {
            self.mapped.push(id);
            return Ok(Event::Table);
        }
        let fields = table_map::fields(body).map_err(|Torn| torn("a table's description"))?;
        self.tables.put(id, Table { name: format!("{database}.{name}"), fields, shape: None });
        Ok(Event::Nothing)
    }

    /// Counts a raw row. Its ordinal, or none if it was published before the restart.
    #[inline]
    fn count(&mut self) -> Result<Option<u64>> {
        self.require_expected()?;
        let Some(open) = &mut self.open else { return Err(torn("a row outside of transactions")) };
        let ordinal = open.ordinal;
        open.ordinal += 1;
        Ok((ordinal >= open.skip).then_some(ordinal))
    }

    fn open_id(&self) -> String {
        self.open.as_ref().map(|open| open.gtid.to_string()).unwrap_or_default()
    }

    fn announce(&mut self, batch: &mut Batch) {
        if let Some(open) = self.open.as_mut().filter(|open| !open.announced) {
            use std::fmt::Write;
            self.id.clear();
            // Writing to a String cannot fail.
            let _ = write!(self.id, "{}", open.gtid);
            batch.begin_transaction(&self.id, open.commit_time_us);
            (open.announced, open.has_changes) = (true, true);
        }
    }

    fn rows(&mut self, event: u8, body: &[u8], batch: &mut Batch) -> Result<Event> {
        let id = table_map::id(body).map_err(|Torn| torn("the head of rows"))?;
        self.opened(Some(id), rows::ends_statement(body));
        if self.means_no_table(id) {
            return Ok(Event::Nothing);
        }
        let rows = Rows::parse(event, body).map_err(|Torn| torn("the head of rows"))?;
        let unpacked = self.unpack(&rows)?;
        self.each_row(&rows, unpacked.as_deref().unwrap_or(rows.data), batch)
    }

    fn means_no_table(&mut self, id: u64) -> bool {
        rows::NO_TABLE.contains(&id) && self.tables.find(id).is_none()
    }

    fn unpack(&self, rows: &Rows<'_>) -> Result<Option<Vec<u8>>> {
        let limit = self.settings.max_event_bytes;
        let unpacked = rows.is_compressed.then(|| payload::maria(rows.data, limit)).transpose();
        unpacked.map_err(|bad| stops::packed(bad, limit))
    }

    fn each_row(&mut self, rows: &Rows<'_>, data: &[u8], batch: &mut Batch) -> Result<Event> {
        let Some(at) = self.tables.find(rows.table) else { return Err(torn("rows of a table that was not described")) };
        let mut cursor = Cursor::new(data);
        if rows.action == Action::Delete {
            News::note(&mut self.news.deleted, &self.tables.get(at).name);
        }
        if self.tables.get(at).shape.is_none() {
            while !cursor.is_empty() {
                let skipped = rows.skip(&self.tables.get(at).fields, &mut cursor);
                self.count()?;
                // A type that is not known here: the event counts as one row, as it will the next time.
                if skipped.is_err() {
                    break;
                }
            }
            return Ok(Event::Row);
        }
        if !rows.is_full || rows.columns != self.tables.get(at).fields.len() {
            let table = self.tables.get(at).shape.as_ref().map_or("", |shape| shape.schema.table.as_str());
            return Err(stops::image(table, &self.open_id()));
        }
        let first = self.open.as_ref().map_or(0, |open| open.ordinal);
        while !cursor.is_empty() {
            if self.is_torn() && self.has_outgrown(batch) {
                // Applied again, the event's rows up to here are passed as those are that were published before a restart.
                self.open.iter_mut().for_each(|open| (open.skip, open.ordinal) = (open.ordinal, first));
                return Ok(Event::Cut);
            }
            let ordinal = self.count()?;
            match ordinal {
                None => rows.skip(&self.tables.get(at).fields, &mut cursor).map_err(|Torn| torn("a row"))?,
                Some(ordinal) => {
                    self.announce(batch);
                    let settings = &self.settings;
                    if let Err(fault) = push_change(batch, self.tables.get(at), rows, ordinal, settings, &mut cursor) {
                        return Err(self.bad_row(at, fault));
                    }
                }
            }
        }
        Ok(Event::Row)
    }

    fn bad_row(&self, at: usize, fault: Fault) -> Error {
        let schema = self.tables.get(at).shape.as_ref().map(|shape| &shape.schema);
        let table = schema.map_or("", |schema| schema.table.as_str());
        match fault {
            Fault::Torn => torn("a row").at("table", table).at("transaction", self.open_id()),
            Fault::ZeroDate(column) => {
                let column = schema.and_then(|schema| schema.columns.get(column)).map_or("", |column| column.name.as_str());
                stops::zero_date(table, column, &self.open_id())
            }
        }
    }
}

#[inline]
fn push_change(
    batch: &mut Batch,
    table: &Table,
    rows: &Rows<'_>,
    ordinal: u64,
    settings: &Settings,
    cursor: &mut Cursor<'_>,
) -> Result<(), Fault> {
    let Some(shape) = &table.shape else { return Ok(()) };
    let index = batch.schema_index(&shape.schema);
    let zero = settings.zero_dates;
    let whole = *cursor;
    let first = rows::push(batch, &table.fields, &shape.codecs, zero, cursor)?;
    require_key(batch, &shape.schema, first, zero)?;
    match rows.action {
        Action::Insert => batch.push_change(Op::Insert, index, ordinal, Before::None, Some(first)),
        Action::Delete => batch.push_change(Op::Delete, index, ordinal, Before::Full(first), None),
        Action::Update => {
            let after = match rows.is_partial {
                false => rows::push(batch, &table.fields, &shape.codecs, zero, cursor)?,
                true => rows::push_partial(batch, &table.fields, &shape.codecs, zero, whole, cursor)?,
            };
            require_key(batch, &shape.schema, after, zero)?;
            batch.push_change(Op::Update, index, ordinal, Before::Full(first), Some(after));
        }
    }
    Ok(())
}

/// A key has no NULL but where the policy made one of a date: then rows that differ would be one.
#[inline]
fn require_key(batch: &Batch, schema: &Schema, row: Row, zero: ZeroDates) -> Result<(), Fault> {
    let is_null = |at: &&usize| batch.value(row, **at) == Value::Null;
    match schema.key.iter().find(|at| zero == ZeroDates::Null && is_null(at)) {
        Some(at) => Err(Fault::ZeroDate(*at)),
        None => Ok(()),
    }
}
