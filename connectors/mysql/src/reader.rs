//! Reads rows that are in a table already: a chunk in one snapshot, with what tells which transactions it saw.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use async_trait::async_trait;
use headwater_connector::{
    Batch, Before, Chunk, ChunkRead, ChunkRequest, Cursor, Error, Gate, Identity, Op, Quota, Result, Schema, TableReader, Value,
    Verdict,
};

use crate::{
    catalog::{self, TableFacts, cell},
    cells, codes,
    config::{Settings, ZeroDates},
    connection::{self, Connection, Flavour, ident, literal},
    decode::{Bad, Codec},
    engines,
    error::{ServerError, protocol},
    gate::Awaited,
    inspect,
    keys::Keyed,
    relation,
    snapshot::{self, Taken},
    stops,
    trail::Trail,
    wire::Cursor as Bytes,
};

/// Smaller tables are read as one range.
const MIN_SPLIT: u64 = 200_000;

/// What the session of a chunk has beside what every session has. Nobody is to wait for long behind a chunk that waits for a lock. What
/// has no index to be read by is sorted by all of a key that can be in one, and in a memory that has room for that: a row that is sorted by
/// its beginning alone can stand behind the key at which the next chunk begins.
const PINNED: &str = "SET SESSION lock_wait_timeout = 2, max_sort_length = 65536, sort_buffer_size = 8388608, \
                      character_set_results = utf8mb4";

/// What the stream that is open now is read from, and what its readers share.
#[derive(Clone)]
pub struct Streamed {
    /// Who sends it.
    pub server: Identity,
    /// Whether its transactions have names.
    pub has_names: bool,
    /// What the stream passed.
    pub trail: Arc<Trail>,
}

/// The open stream of a connector; none before the first one.
pub type Current = Arc<Mutex<Option<Streamed>>>;

/// A table as a chunk finds it.
struct Shape {
    schema: Arc<Schema>,
    codecs: Vec<Codec>,
    keyed: Keyed,
    id: String,
    estimated_rows: u64,
}

/// See the module's page.
pub struct MysqlReader {
    settings: Arc<Settings>,
    current: Current,
    connection: Option<Connection>,
    identity: Identity,
    schemas: HashMap<String, Arc<Schema>>,
}

impl MysqlReader {
    /// Connects at the first request.
    pub fn new(settings: Arc<Settings>, current: Current) -> Self {
        Self { settings, current, connection: None, identity: Identity::default(), schemas: HashMap::new() }
    }

    async fn connect(&mut self) -> Result<&mut Connection> {
        if self.connection.is_none() {
            let mut connection = Connection::open(&self.settings.server).await?;
            connection.set_limit(self.settings.max_event_bytes);
            connection.query(PINNED).await?;
            connection.query("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
            connection
                .query(match connection.flavour {
                    Flavour::Mysql => "SET SESSION max_execution_time = 30000",
                    Flavour::Mariadb => "SET SESSION max_statement_time = 30",
                })
                .await?;
            self.identity = inspect::identity(&mut connection).await?;
            self.connection = Some(connection);
        }
        self.connection.as_mut().ok_or_else(|| protocol("there is no session"))
    }

    /// The open stream. What another server shows says nothing about its binlog.
    fn streamed(&self, request: &ChunkRequest) -> Result<Streamed> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let current = current.ok_or_else(|| waits(&request.table, "the stream is not open"))?;
        if !current.has_names {
            return Err(stops::backfill_without_names().at("table", &request.table));
        }
        match current.server == self.identity {
            true => Ok(current),
            false => Err(waits(&request.table, "another server answers than the one that the stream comes from")),
        }
    }

    async fn attempt(&mut self, request: &ChunkRequest, batch: &mut Batch) -> Result<ChunkRead> {
        self.connect().await?;
        let streamed = self.streamed(request)?;
        let before = self.table_id(&request.table).await?;
        let connection = self.connect().await?;
        let taken = snapshot::begin(connection, request.gate.as_ref(), &streamed.trail).await?;
        let (seen, barrier) = match taken {
            Taken::Waiting(words) => {
                connection.query("ROLLBACK").await?;
                return Ok(ChunkRead::Waiting(words));
            }
            Taken::Snapshot { seen, barrier } => (seen, barrier),
        };
        // From here on nobody alters the table. On MySQL the snapshot is taken behind this.
        let lock = format!("SELECT 1 FROM {} LIMIT 0", quoted(&request.table));
        connection.try_query(&lock).await?.map_err(|refused| self.unreadable(&request.table, &refused))?;
        let shape = self.shape(&request.table).await?;
        if shape.id != before {
            // A snapshot does not show a table that was made behind it: it would look empty.
            return Err(waits(&request.table, "the table was made anew in this moment"));
        }
        let end = self.rows(request, &shape, batch).await?;
        let connection = self.connect().await?;
        let barrier = snapshot::barrier(connection, barrier).await?;
        connection.query("COMMIT").await?;
        Ok(ChunkRead::Rows(Chunk { seen, barrier, end, table_id: shape.id }))
    }

    /// Tells a table from another of the same name, and from itself before it was made anew.
    async fn table_id(&mut self, table: &str) -> Result<String> {
        let (database, name) = split_name(table);
        let sql = format!(
            "SELECT CREATE_TIME, ENGINE FROM information_schema.TABLES WHERE TABLE_SCHEMA = {} AND TABLE_NAME = {}",
            literal(database),
            literal(name)
        );
        let rows = self.connect().await?.query(&sql).await?;
        let Some(row) = rows.first() else { return Err(gone(table)) };
        let engine = cell(row, 1);
        if !engines::has_snapshots(engine) {
            return Err(Error::new(&codes::BACKFILL_TABLE, format!("tables of engine {engine} have no snapshots"))
                .at("table", table)
                .hint(format!("Run ALTER TABLE {} ENGINE = InnoDB; or set `backfill: never`.", quoted(table))));
        }
        Ok(cell(row, 0).to_owned())
    }

    async fn shape(&mut self, table: &str) -> Result<Shape> {
        let id = self.table_id(table).await?;
        let (schema, codecs, facts) = look_up(self.connect().await?, table).await?.shape(&self.settings)?;
        // The same `Arc` as long as nothing changed, so that it is compiled once.
        let schema = match self.schemas.get(table).filter(|known| ***known == schema) {
            Some(known) => Arc::clone(known),
            None => Arc::new(schema),
        };
        self.schemas.insert(table.to_owned(), Arc::clone(&schema));
        let keyed = Keyed::of(&facts, &schema, &codecs)?;
        Ok(Shape { schema, codecs, keyed, id, estimated_rows: facts.estimated_rows.unwrap_or(0) })
    }

    /// Reads rows; the key behind which the next chunk begins, if there can be more.
    async fn rows(&mut self, request: &ChunkRequest, shape: &Shape, batch: &mut Batch) -> Result<Option<Cursor>> {
        if let Some(filter) = &request.filter {
            self.try_condition(request, filter).await?;
        }
        self.connect().await?.query("SET SESSION character_set_results = NULL").await?;
        let mut horizon = None;
        if request.filter.is_some() && request.keys.is_none() {
            // Few rows may meet the condition: a chunk looks at a part of the table only, found in the index alone.
            horizon = self.key(request, shape, &shape.keyed.horizon(request)?).await?;
        }
        let mut rows = Rows::new(request, shape, self.settings.zero_dates, batch);
        let mut after = request.after.clone();
        let is_cut = loop {
            let fetch = rows.quota.fetch();
            let select = shape.keyed.select(request, after.as_ref(), horizon.as_ref(), fetch)?;
            let connection = self.connect().await?;
            let fetched = connection.query_rows(&select, |row, columns| rows.push(row, columns)).await;
            if rows.quota.is_flooded() {
                // The rows became much wider than they were: to read the rest would take longer than to connect again.
                break None;
            }
            fetched?.map_err(|refused| self.refused(request, &refused))?;
            if rows.quota.is_done() {
                break Some(!rows.quota.is_end());
            }
            after = rows.last_key();
        };
        let (last, is_full) = (rows.last_key(), rows.quota.is_full());
        match is_cut {
            None => return Err(waits(&request.table, "the rows of a chunk are much wider than those before")),
            Some(_) => self.connect().await?.query("SET SESSION character_set_results = utf8mb4").await?,
        };
        // The chunk was cut short, or as long as was asked for: something may be behind it.
        Ok(if is_cut == Some(true) || is_full { last } else { horizon })
    }

    /// The key that a statement selects, as a cursor.
    async fn key(&mut self, request: &ChunkRequest, shape: &Shape, sql: &str) -> Result<Option<Cursor>> {
        let mut found = None;
        let take = |row: &[u8], columns: usize| {
            let mut row = Bytes::new(row);
            let cells = (0..columns).map(|_| Ok(connection::cell(&mut row)?.map(<[u8]>::to_vec))).collect::<Result<Vec<_>>>()?;
            found = shape.keyed.cursor(&cells);
            Ok(())
        };
        let asked = self.connect().await?.query_rows(sql, take).await?;
        asked.map_err(|refused| self.refused(request, &refused))?;
        Ok(found)
    }

    /// Whether the condition alone is a condition: what ends the statement, or closes a bracket that it did not open, is refused.
    async fn try_condition(&mut self, request: &ChunkRequest, filter: &str) -> Result<()> {
        let alone = format!("SELECT 1 FROM {} WHERE {filter}", quoted(&request.table));
        let prepare = format!("PREPARE hw FROM {}", literal(&alone));
        let prepared = self.connect().await?.try_query(&prepare).await?;
        prepared.map_err(|refused| self.refused(request, &refused))?;
        self.connect().await?.query("DEALLOCATE PREPARE hw").await.map(drop)
    }

    fn unreadable(&self, table: &str, refused: &ServerError) -> Error {
        match refused.number {
            1146 | 1049 => gone(table),
            1142 | 1143 | 1044 | 1370 => {
                let hint = format!("Run GRANT SELECT ON {} TO {}@'%';", quoted(table), literal(&self.settings.server.user));
                Error::new(&codes::PRIVILEGE, refused.text()).at("table", table).hint(hint)
            }
            // A lock that is held, a statement that took too long or was killed, a table that was altered behind the snapshot.
            1205 | 1213 | 3024 | 1969 | 1317 | 1412 => waits(table, refused.text()),
            _ => refused.clone().into_error().at("table", table),
        }
    }

    fn refused(&self, request: &ChunkRequest, refused: &ServerError) -> Error {
        let passes = matches!(refused.number, 1205 | 1213 | 3024 | 1969 | 1317 | 1412 | 1053 | 1927);
        if request.filter.is_some() && !passes {
            return Error::new(&codes::CONDITION_REFUSED, refused.text())
                .at("table", &request.table)
                .hint("Correct the condition: it is put behind WHERE, and the session is in no database.");
        }
        self.unreadable(&request.table, refused)
    }

    async fn cuts(&mut self, table: &str, parts: usize) -> Result<Vec<Cursor>> {
        self.connect().await?;
        let shape = self.shape(table).await?;
        let Some(extremes) = shape.keyed.extremes().filter(|_| shape.estimated_rows >= MIN_SPLIT && parts > 1) else {
            return Ok(Vec::new());
        };
        let rows = self.connect().await?.query(&extremes).await?;
        let number = |at| rows.first().and_then(|row| cell(row, at).parse::<i128>().ok());
        let (Some(low), Some(high)) = (number(0), number(1)) else { return Ok(Vec::new()) };
        let request = whole(table);
        let mut found: Vec<Cursor> = Vec::with_capacity(parts);
        self.connect().await?.query("SET SESSION character_set_results = NULL").await?;
        for part in 1..parts as i128 {
            let at = low + (high - low) * part / parts as i128;
            let key = self.key(&request, &shape, &shape.keyed.select_at_number(at)).await?;
            found.extend(key.filter(|key| found.last() != Some(key)));
        }
        self.connect().await?.query("SET SESSION character_set_results = utf8mb4").await?;
        Ok(found)
    }
}

fn whole(table: &str) -> ChunkRequest {
    let table = table.to_owned();
    ChunkRequest { table, after: None, until: None, filter: None, keys: None, max_rows: 1, max_bytes: 1, gate: None }
}

/// Facts of a table that is there.
pub struct Found(TableFacts);

impl Found {
    /// Schema and codecs, with the facts.
    pub fn shape(self, settings: &Settings) -> Result<(Schema, Vec<Codec>, TableFacts)> {
        let (schema, codecs) = relation::shape_now(settings, &self.0)?;
        Ok((schema, codecs, self.0))
    }
}

/// A table by its name.
pub async fn look_up(connection: &mut Connection, table: &str) -> Result<Found> {
    let (database, name) = split_name(table);
    catalog::table(connection, database, name).await?.map(Found).ok_or_else(|| gone(table))
}

/// Rows on their way into a batch.
struct Rows<'a> {
    table: &'a str,
    batch: &'a mut Batch,
    schema: u32,
    shape: &'a Shape,
    zero: ZeroDates,
    quota: Quota,
    /// The key of the row that was taken last.
    last: Cursor,
}

impl<'a> Rows<'a> {
    fn new(request: &'a ChunkRequest, shape: &'a Shape, zero: ZeroDates, batch: &'a mut Batch) -> Self {
        let read_at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        batch.begin_transaction("read", read_at.as_micros() as i64);
        let schema = batch.schema_index(&shape.schema);
        let quota = Quota::of(request);
        let last = vec![String::new(); shape.schema.key.len()];
        let table = request.table.as_str();
        Self { table, batch, schema, shape, zero, quota, last }
    }

    /// Where the next chunk begins; none if no row was taken.
    fn last_key(&self) -> Option<Cursor> {
        (self.quota.taken() > 0).then(|| self.last.clone())
    }

    /// Takes one row. What comes when the chunk is full is left for the next one.
    fn push(&mut self, row: &[u8], columns: usize) -> Result<()> {
        match self.quota.came(row.len()) {
            Verdict::Take => {}
            Verdict::Leave => return Ok(()),
            Verdict::HangUp => return Err(protocol("a chunk is overfull")),
        }
        if columns != self.shape.codecs.len() {
            return Err(protocol("a row has another number of cells than its table has columns"));
        }
        let mut cells = Bytes::new(row);
        let start = self.batch.begin_row();
        for (at, codec) in self.shape.codecs.iter().enumerate() {
            let Some(raw) = connection::cell(&mut cells)? else {
                self.batch.push(Value::Null);
                continue;
            };
            let place = self.shape.schema.key.iter().position(|key| *key == at);
            // No key becomes NULL: rows that differ would be one.
            let zero = if place.is_some() && self.zero == ZeroDates::Null { ZeroDates::Stop } else { self.zero };
            cells::push(self.batch, codec, raw, zero).map_err(|bad| self.bad(at, bad))?;
            if let Some(place) = place {
                self.last[place] = cells::cursor(codec, raw).ok_or_else(|| self.bad(at, Bad::Value))?;
            }
        }
        let after = self.batch.end_row(start);
        self.batch.push_change(Op::Read, self.schema, self.quota.taken() as u64, Before::None, Some(after));
        self.quota.took(row.len() + self.shape.codecs.len() * 8);
        Ok(())
    }

    fn bad(&self, column: usize, bad: Bad) -> Error {
        let name = self.shape.schema.columns.get(column).map_or("", |column| column.name.as_str());
        match bad {
            Bad::ZeroDate => stops::zero_date(self.table, name, "read"),
            Bad::Value => protocol("a value of a row cannot be read").at("table", self.table).at("column", name),
        }
    }
}

#[async_trait]
impl TableReader for MysqlReader {
    async fn gate(&mut self) -> Result<Gate> {
        let gate = Awaited::now(self.connect().await?).await;
        if gate.is_err() {
            self.connection = None;
        }
        gate
    }

    async fn split(&mut self, table: &str, parts: usize) -> Result<Vec<Cursor>> {
        let cuts = self.cuts(table, parts).await;
        if cuts.is_err() {
            self.connection = None;
        }
        cuts
    }

    async fn read(&mut self, request: &ChunkRequest, batch: &mut Batch) -> Result<ChunkRead> {
        let read = self.attempt(request, batch).await;
        if read.is_err() {
            // The transaction must not go on holding its lock.
            self.connection = None;
        }
        read
    }

    async fn close(mut self: Box<Self>) {
        if let Some(connection) = self.connection.take() {
            connection.close().await;
        }
    }
}

fn split_name(table: &str) -> (&str, &str) {
    table.split_once('.').unwrap_or(("", table))
}

fn quoted(table: &str) -> String {
    let (database, name) = split_name(table);
    format!("{}.{}", ident(database), ident(name))
}

fn gone(table: &str) -> Error {
    Error::new(&codes::BACKFILL_TABLE, "a table whose rows are to be read is gone")
        .at("table", table)
        .hint("Take it out of `tables`, or create it again and restart the connector.")
}

/// What may pass by itself.
fn waits(table: &str, what: impl Into<String>) -> Error {
    Error::new(&codes::BACKFILL_WAITS, what)
        .at("table", table)
        .hint("Nothing needs to be done unless it goes on: then end what holds the table.")
}
