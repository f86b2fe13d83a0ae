//! Reads rows that are in a table already: a chunk in one snapshot, with what tells which transactions it saw.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};

use async_trait::async_trait;
use headwater_connector::{
    Batch, Before, Chunk, ChunkRead, ChunkRequest, Cursor, Error, Gate, Op, Quota, Result, Schema, Snapshot, TableReader, Value,
    Verdict, codes as shared, fault,
};

use crate::{
    catalog::{Catalog, TableFacts, cell, flag},
    codes,
    config::Settings,
    connection::{ident, literal},
    decode::{self, Codec},
    error::{ServerError, lost, protocol},
    gate::Ended,
    keys::Keyed,
    position::{Lsn, Place},
    relation,
    replica::{Replica, Streamed},
    snapshot::{PrimarySnapshot, StandbySnapshot},
    wire::Cursor as Bytes,
};

/// Smaller tables are read as one range.
const MIN_SPLIT: u64 = 200_000;
/// About so many rows are sampled for each range. They come by whole pages, whose rows are often next to each other in the key as well.
const SAMPLE: u64 = 1000;
/// Sizes of the log's pages and of the longest head of a page.
const PAGE: u64 = 8192;
const PAGE_HEAD: u64 = 40;

/// A chunk waits for the lock only a little: it is tried again, and does not stand in the way of a heavy lock that is wanted behind it.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off; SET LOCAL lock_timeout = '2s'; \
    SET LOCAL enable_seqscan = off; SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL jit = off";

/// The plan of a range must follow the key's index: a sort of the rest of the table for every chunk would read it again and again.
const IN_ORDER: &str = "SET LOCAL enable_sort = off; SET LOCAL enable_incremental_sort = off; SET LOCAL enable_bitmapscan = off";

/// Rows that meet a condition should come soon; else the next attempt looks at a part of the table only.
const SHORT: &str = "SET LOCAL statement_timeout = '2s'";
const CANCELLED: &str = "57014";

/// Where the server's log stands, for a standby what of it is replayed.
const STANDING: &str = "SELECT pg_is_in_recovery(), \
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END";

/// A table as a chunk's snapshot has it.
struct Shape {
    facts: TableFacts,
    schema: Arc<Schema>,
    codecs: Vec<Codec>,
    keyed: Keyed,
}

/// What the first statement of a chunk's transaction told.
pub struct Taken {
    seen: Arc<dyn Snapshot>,
    /// On a primary.
    pub primary: Option<PrimarySnapshot>,
    /// On a standby: what it had replayed before the snapshot.
    pub replayed: Option<Lsn>,
    barrier: Lsn,
}

/// See the module's page.
pub struct PostgresReader {
    settings: Arc<Settings>,
    catalog: Catalog,
    /// Where rows are read, if that is not where the stream comes from.
    replica: Option<Replica>,
    schemas: HashMap<String, Arc<Schema>>,
    /// Tables with a condition that so few rows meet, or that no index helps with, that it took long to find one.
    sparse: HashSet<String>,
}

impl PostgresReader {
    /// Connects at the first request.
    pub fn new(streamed: &Streamed) -> Self {
        let settings = Arc::clone(&streamed.settings);
        let (catalog, replica) = (Catalog::new(&settings), Replica::of(streamed));
        Self { settings, catalog, replica, schemas: HashMap::new(), sparse: HashSet::new() }
    }

    /// Makes sure that the session is where rows are to be read.
    async fn connect(&mut self) -> Result<()> {
        if let Some(replica) = &mut self.replica
            && let Some(server) = replica.connect().await?
        {
            self.catalog = Catalog::at(&self.settings, server);
        }
        Ok(())
    }

    /// Opens the transaction, locks the table, and only then takes the snapshot: a rewriting ALTER in between would show an empty table.
    async fn begin(&mut self, request: &ChunkRequest) -> Result<Taken> {
        self.connect().await?;
        let (schema, name) = split_name(&request.table);
        let encoding = if self.is_unencoded().await? { "; SET LOCAL client_encoding TO 'SQL_ASCII'" } else { "" };
        let row = self.catalog.query(STANDING).await?;
        let row = row.first().map(Vec::as_slice).unwrap_or_default();
        let (is_standby, before) = (flag(row, 0), cell(row, 1).parse::<Lsn>().ok());
        // A standby shows a commit an instant before it counts it as replayed; it has received it by then.
        let end = match is_standby {
            true => "greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())",
            false => "pg_current_wal_insert_lsn()",
        };
        let order = if request.keys.is_none() { IN_ORDER } else { "SET LOCAL enable_sort = on" };
        // Partitions are locked with their table, which has no rows of its own; so are tables that inherit, which are not read.
        let lock = format!(
            "{BEGIN}; {order}{encoding}; LOCK TABLE {}.{} IN ACCESS SHARE MODE; \
             SELECT pg_current_snapshot(), {end}, pg_is_in_recovery()",
            ident(schema),
            ident(name)
        );
        let rows = self.catalog.sql().await?.try_query(&lock).await?.map_err(|refused| self.unreadable(request, &refused))?;
        let row = rows.last().map(Vec::as_slice).unwrap_or_default();
        let snapshot = PrimarySnapshot::parse(cell(row, 0)).ok_or_else(|| protocol("a snapshot cannot be read"))?;
        let mut barrier: Lsn = cell(row, 1).parse().map_err(|()| protocol("the server's log position cannot be read"))?;
        if let Some(replica) = self.replica.as_mut().filter(|_| !(is_standby && flag(row, 2))) {
            return Err(replica.not_a_standby().at("table", &request.table));
        }
        if flag(row, 2) != is_standby {
            // What the new primary writes is behind the end of what it replayed as a standby.
            return Err(waits(request, "the standby becomes the primary"));
        }
        if let Some(replica) = &mut self.replica {
            barrier = replica.barrier().await?;
        }
        Ok(match before.filter(|_| is_standby || fault::variant("watermark-window")) {
            Some(replayed) => {
                Taken { seen: Arc::new(StandbySnapshot { replayed }), primary: None, replayed: Some(replayed), barrier }
            }
            None => Taken {
                seen: Arc::new(snapshot.clone()),
                primary: Some(snapshot),
                replayed: None,
                barrier: start_of_page(barrier),
            },
        })
    }

    /// Whether the database does not know what its texts mean: it would refuse to show what is not UTF-8, where the stream shows the bytes.
    async fn is_unencoded(&mut self) -> Result<bool> {
        Ok(self.catalog.sql().await?.parameter("server_encoding") == Some("SQL_ASCII"))
    }

    async fn attempt(&mut self, request: &ChunkRequest, batch: &mut Batch) -> Result<ChunkRead> {
        let taken = self.begin(request).await?;
        if let Some(waiting) = self.waits_for(request, &taken).await? {
            self.catalog.query("COMMIT").await?;
            return Ok(ChunkRead::Waiting(waiting));
        }
        let shape = self.shape(&request.table).await?;
        let end = self.rows(request, &shape, batch).await?;
        self.catalog.query("COMMIT").await?;
        if let (Some(replica), Some(replayed)) = (&self.replica, taken.replayed) {
            replica.raise_floor(replayed);
        }
        let barrier = Place::at(taken.barrier).to_position();
        Ok(ChunkRead::Rows(Chunk { seen: taken.seen, barrier, end, table_id: shape.facts.oid.to_string() }))
    }

    /// What must be visible and is not.
    async fn waits_for(&mut self, request: &ChunkRequest, taken: &Taken) -> Result<Option<String>> {
        if let Some(gate) = request.gate.as_ref().and_then(|gate| gate.downcast_ref::<Ended>())
            && let Some(waiting) = gate.waits_for(&mut self.catalog, taken).await?
        {
            return Ok(Some(waiting));
        }
        match (&mut self.replica, taken.replayed) {
            (Some(replica), Some(replayed)) => replica.waits_for(replayed).await,
            _ => Ok(None),
        }
    }

    async fn shape(&mut self, table: &str) -> Result<Shape> {
        let (schema, name) = split_name(table);
        let facts = self.catalog.table_named(schema, name).await?.ok_or_else(|| gone(table))?;
        let filter = self.row_filter(&facts).await?;
        self.catalog.forget_types();
        let mut codecs = Vec::with_capacity(facts.columns.len());
        for column in &facts.columns {
            codecs.push(self.catalog.resolve(column.oid, column.modifier).await?.codec);
        }
        let found = relation::schema_now(&mut self.catalog, &self.settings, &facts).await??;
        // The same `Arc` as long as nothing changed, so that it is compiled once.
        let schema = match self.schemas.get(table).filter(|known| ***known == found) {
            Some(known) => Arc::clone(known),
            None => Arc::new(found),
        };
        self.schemas.insert(table.to_owned(), Arc::clone(&schema));
        let keyed = Keyed::of(&mut self.catalog, &facts, &schema, filter).await?;
        Ok(Shape { facts, schema, codecs, keyed })
    }

    /// What the publication asks of rows.
    async fn row_filter(&mut self, facts: &TableFacts) -> Result<Option<String>> {
        if self.catalog.sql().await?.major_version()? < 15 {
            return Ok(None);
        }
        let sql = format!(
            "SELECT pg_get_expr(r.prqual, r.prrelid) FROM pg_publication p \
             JOIN pg_publication_rel r ON r.prpubid = p.oid WHERE p.pubname = {} AND r.prrelid = {}",
            literal(&self.settings.publication),
            facts.oid
        );
        self.catalog.value(&sql).await
    }

    /// Reads rows; the key behind which the next chunk begins, if there can be more.
    async fn rows(&mut self, request: &ChunkRequest, shape: &Shape, batch: &mut Batch) -> Result<Option<Cursor>> {
        if let Some(filter) = &request.filter {
            self.try_condition(request, filter).await?;
        }
        let mut horizon = None;
        let is_sparse = shape.keyed.is_sparse(request);
        let is_slow = is_sparse && self.sparse.contains(&request.table);
        if is_slow {
            let rows = self.catalog.sql().await?.try_query(&shape.keyed.horizon(request)).await?;
            let rows = rows.map_err(|refused| self.unreadable(request, &refused))?;
            horizon = rows.into_iter().next().and_then(|row| row.into_iter().collect::<Option<Cursor>>());
        } else if is_sparse {
            self.catalog.query(SHORT).await?;
        }
        self.declare(request, shape, horizon.as_ref()).await?;
        let mut rows = Rows::new(request, shape, batch);
        let is_cut = loop {
            let fetch = rows.quota.fetch();
            let fetched = self.catalog.sql().await?.query_rows(&format!("FETCH {fetch} FROM hw"), |row| rows.push(row)).await;
            if rows.quota.is_flooded() {
                // The rows became much wider than they were: to read the rest of the fetch would take longer than to connect again.
                self.hang_up();
                break true;
            }
            if let Err(refused) = fetched? {
                if is_sparse && refused.state == CANCELLED {
                    self.sparse.insert(request.table.clone());
                }
                return Err(self.refused(request, &refused));
            }
            if rows.quota.is_done() {
                break !rows.quota.is_end();
            }
        };
        // The chunk was cut short, or as long as was asked for: something may be behind it.
        let may_go_on = is_cut || rows.quota.is_full();
        Ok(if may_go_on { rows.last_key() } else { horizon })
    }

    /// Opens the cursor, and makes sure that it is on the table that is locked: a schema can be renamed without a lock.
    async fn declare(&mut self, request: &ChunkRequest, shape: &Shape, horizon: Option<&Cursor>) -> Result<()> {
        let table = format!("{}.{}", ident(&shape.facts.schema), ident(&shape.facts.name));
        let select = shape.keyed.select(request, horizon, &shape.schema);
        let declare = format!("DECLARE hw NO SCROLL CURSOR FOR {select}; SELECT to_regclass({})::oid", literal(&table));
        let rows = self.catalog.sql().await?.try_query(&declare).await?.map_err(|refused| self.refused(request, &refused))?;
        match rows.first().map(|row| cell(row, 0).parse::<u32>()) {
            Some(Ok(oid)) if shape.facts.oid == oid => Ok(()),
            _ => Err(waits(request, "the table's name went over to another table")),
        }
    }

    /// Whether the condition alone is a condition: what ends the statement, or closes a bracket that it did not open, is refused.
    async fn try_condition(&mut self, request: &ChunkRequest, filter: &str) -> Result<()> {
        let (schema, name) = split_name(&request.table);
        let alone = format!("SELECT FROM {}.{} WHERE {filter}", ident(schema), ident(name));
        self.catalog.sql().await?.parse(&alone).await?.map_err(|refused| self.refused(request, &refused))
    }

    fn hang_up(&mut self) {
        self.catalog = Catalog::new(&self.settings);
        if let Some(replica) = &mut self.replica {
            replica.hang_up();
        }
    }

    /// Who reads: the role needs rights.
    fn user(&self) -> &str {
        &self.settings.reader.as_ref().unwrap_or(&self.settings.server).user
    }

    fn unreadable(&self, request: &ChunkRequest, refused: &ServerError) -> Error {
        let (schema, name) = split_name(&request.table);
        match refused.state.as_str() {
            "42P01" | "3F000" => gone(&request.table),
            "42501" => {
                let (schema, name, user) = (ident(schema), ident(name), ident(self.user()));
                let hint = format!("Run GRANT USAGE ON SCHEMA {schema} TO {user}; GRANT SELECT ON {schema}.{name} TO {user};");
                Error::new(&codes::PRIVILEGE, refused.text()).at("table", &request.table).hint(hint)
            }
            // A lock that is held, a statement that took too long, a conflict with a standby's recovery.
            "55P03" | CANCELLED | "40001" | "40P01" => waits(request, refused.text()),
            _ => refused.clone().into_error().at("table", &request.table),
        }
    }

    fn refused(&self, request: &ChunkRequest, refused: &ServerError) -> Error {
        let state = refused.state.as_str();
        if state == "42501" && refused.routine == "check_enable_rls" {
            let user = ident(self.user());
            return Error::new(&codes::ROW_SECURITY, "a row security policy would hide rows")
                .at("table", &request.table)
                .hint(format!("Run ALTER ROLE {user} BYPASSRLS; as a superuser, or take the table out of `tables`."));
        }
        // Syntax, names, rights and types, values that cannot be cast or computed with. The table itself is there: it is locked.
        let is_of_condition = ["42", "22", "0A", "21", "P0"].iter().any(|class| state.starts_with(class));
        if request.filter.is_some() && is_of_condition {
            return Error::new(&codes::CONDITION_REFUSED, refused.text())
                .at("table", &request.table)
                .hint("Correct the condition: it is put behind WHERE, and tables and functions need their schema.");
        }
        self.unreadable(request, refused)
    }
}

/// Rows on their way into a batch.
struct Rows<'a> {
    table: &'a str,
    batch: &'a mut Batch,
    schema: u32,
    codecs: &'a [Codec],
    key: &'a [usize],
    quota: Quota,
    /// The key of the row that was taken last, in buffers that are used again.
    last: Vec<Vec<u8>>,
}

impl<'a> Rows<'a> {
    fn new(request: &'a ChunkRequest, shape: &'a Shape, batch: &'a mut Batch) -> Self {
        let read_at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        batch.begin_transaction("read", read_at.as_micros() as i64);
        let schema = batch.schema_index(&shape.schema);
        let quota = Quota::of(request);
        let (codecs, key) = (shape.codecs.as_slice(), shape.schema.key.as_slice());
        let last = vec![Vec::new(); key.len()];
        let table = request.table.as_str();
        Self { table, batch, schema, codecs, key, quota, last }
    }

    /// Where the next chunk begins; none if no row was taken.
    fn last_key(&self) -> Option<Cursor> {
        let text = |raw: &Vec<u8>| String::from_utf8_lossy(raw).into_owned();
        (self.quota.taken() > 0).then(|| self.last.iter().map(text).collect())
    }

    /// Takes one row. What comes when the chunk is full is left for the next one.
    fn push(&mut self, row: &[u8]) -> Result<()> {
        match self.quota.came(row.len()) {
            Verdict::Take => {}
            Verdict::Leave => return Ok(()),
            Verdict::HangUp => return Err(protocol("a chunk is overfull")),
        }
        let torn = |_| protocol("a result row is torn");
        let mut cells = Bytes::new(row);
        if usize::from(cells.u16().map_err(torn)?) != self.codecs.len() {
            return Err(protocol("a row has another number of cells than its table has columns"));
        }
        let start = self.batch.begin_row();
        for (at, codec) in self.codecs.iter().enumerate() {
            let len = cells.i32().map_err(torn)?;
            let Ok(len) = usize::try_from(len) else {
                self.batch.push(Value::Null);
                continue;
            };
            let raw = cells.take(len).map_err(torn)?;
            if let Err(decode::Bad) = decode::push(self.batch, codec, raw) {
                if codec.has_labels() {
                    // Labels are written as they are now, not as the snapshot has them: one was renamed a moment ago.
                    return Err(lost("a label of an enum changed while rows were read"));
                }
                self.batch.push(Value::Invalid(raw));
            }
            if let Some(place) = self.key.iter().position(|key| *key == at) {
                // Changed in the least, it would be another place in the table.
                std::str::from_utf8(raw).map_err(|_| self.bad_key())?;
                self.last[place].clear();
                self.last[place].extend_from_slice(raw);
            }
        }
        let after = self.batch.end_row(start);
        self.batch.push_change(Op::Read, self.schema, self.quota.taken() as u64, Before::None, Some(after));
        self.quota.took(row.len() + self.codecs.len() * 8);
        Ok(())
    }

    fn bad_key(&self) -> Error {
        Error::new(&shared::BAD_VALUE, "a key holds bytes that are not UTF-8")
            .at("table", self.table)
            .hint("Correct the key in the table, then restart the connector.")
    }
}

#[async_trait]
impl TableReader for PostgresReader {
    async fn gate(&mut self) -> Result<Gate> {
        let Some(replica) = &mut self.replica else { return Ok(Arc::new(Ended::now(&mut self.catalog).await?)) };
        Ok(Arc::new(Ended::on_standby(replica.gate().await?)))
    }

    async fn split(&mut self, table: &str, parts: usize) -> Result<Vec<Cursor>> {
        self.connect().await?;
        let shape = self.shape(table).await?;
        let rows = shape.facts.estimated_rows.unwrap_or(0);
        if rows < MIN_SPLIT || parts < 2 {
            return Ok(Vec::new());
        }
        let percent = (100.0 * (SAMPLE * parts as u64) as f64 / rows as f64).min(100.0);
        let rows = self.catalog.query(&shape.keyed.bounds(percent, parts)).await?;
        let whole = |row: Vec<Option<String>>| row.into_iter().collect::<Option<Cursor>>();
        Ok(rows.into_iter().filter_map(whole).collect())
    }

    async fn read(&mut self, request: &ChunkRequest, batch: &mut Batch) -> Result<ChunkRead> {
        let was_slow = self.sparse.contains(&request.table);
        let mut read = self.attempt(request, batch).await;
        if read.is_err() && self.sparse.contains(&request.table) != was_slow {
            self.hang_up();
            batch.clear(request.max_bytes);
            read = self.attempt(request, batch).await;
        }
        if read.is_err() {
            // The transaction must not go on holding its lock.
            self.hang_up();
        }
        read
    }

    async fn close(mut self: Box<Self>) {
        self.catalog.rest().await;
        if let Some(replica) = &mut self.replica {
            replica.rest().await;
        }
    }
}

fn split_name(table: &str) -> (&str, &str) {
    table.split_once('.').unwrap_or(("public", table))
}

/// A place right behind a page's head is where the next record begins; the last one ended before the head, and that is as far as a
/// reader of the log gets while nothing is written.
pub fn start_of_page(lsn: Lsn) -> Lsn {
    let within = lsn.0 % PAGE;
    if within <= PAGE_HEAD { Lsn(lsn.0 - within) } else { lsn }
}

fn gone(table: &str) -> Error {
    Error::new(&codes::BACKFILL_TABLE, "a table whose rows are to be read is gone")
        .at("table", table)
        .hint("Take it out of `tables`, or create it again and restart the connector.")
}

/// What may pass by itself.
fn waits(request: &ChunkRequest, what: impl Into<String>) -> Error {
    Error::new(&codes::BACKFILL_WAITS, what)
        .at("table", &request.table)
        .hint("Nothing needs to be done unless it goes on: then end what holds the table.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_behind_a_pages_head_is_the_end_of_the_page_before() {
        assert_eq!(start_of_page(Lsn(8192 + 24)), Lsn(8192));
        assert_eq!(start_of_page(Lsn(8192 + 40)), Lsn(8192));
        assert_eq!(start_of_page(Lsn(8192 + 48)), Lsn(8192 + 48));
    }
}
