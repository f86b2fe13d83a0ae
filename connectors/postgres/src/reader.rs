//! Reads rows that are in a table already: a chunk in one snapshot, with what tells which transactions it saw.

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use async_trait::async_trait;
use headwater_connector::{
    Batch, Before, Chunk, ChunkRead, ChunkRequest, Condition, Cursor, Error, Gate, Op, Result, Schema, Snapshot, TableReader,
    Value, fault,
};

use crate::{
    catalog::{Catalog, TableFacts, cell, flag, number},
    codes,
    config::Settings,
    connection::{ident, literal},
    decode::{self, Codec},
    error::{ServerError, lost, protocol},
    position::{Lsn, Place},
    relation,
    snapshot::{PrimarySnapshot, StandbySnapshot},
    wire::Cursor as Bytes,
};

/// Rows fetched first from a table whose rows are of unknown size; what they turn out to be decides about the next fetch.
const FIRST_FETCH: usize = 64;
/// The most rows of one fetch.
const MAX_FETCH: usize = 20_000;
/// Smaller tables are read as one range.
const MIN_SPLIT: u64 = 200_000;
/// About so many rows are sampled for each range.
const SAMPLE: u64 = 300;
/// Sizes of the log's pages and of the longest head of a page.
const PAGE: u64 = 8192;
const PAGE_HEAD: u64 = 40;

/// The plan must follow the key's index: a sort of the rest of the table for every chunk would read it again and again.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL row_security = off; \
    SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off; \
    SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL jit = off";

/// Where the server's log stands, for a standby what of it is replayed.
const STANDING: &str = "SELECT pg_is_in_recovery(), \
    CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END";

/// What must have ended before the first chunk.
struct Ended {
    /// On a primary: what held its own number then, from the moment it got one until it was visible.
    running: Vec<u32>,
    /// On a standby: everything below, and the log up to here.
    xmax: u64,
    replayed: Option<Lsn>,
}

/// A table as a chunk's snapshot has it.
struct Shape {
    facts: TableFacts,
    schema: Arc<Schema>,
    codecs: Vec<Codec>,
    /// The publication's row filter.
    filter: Option<String>,
}

/// What the first statement of a chunk's transaction told.
struct Taken {
    seen: Arc<dyn Snapshot>,
    primary: Option<PrimarySnapshot>,
    xmin: u64,
    replayed: Option<Lsn>,
    barrier: Lsn,
}

/// See the module's page.
pub struct PostgresReader {
    settings: Arc<Settings>,
    catalog: Catalog,
    /// Bytes of a row on average, by table.
    widths: HashMap<String, usize>,
    schemas: HashMap<String, Arc<Schema>>,
}

impl PostgresReader {
    /// Connects at the first request.
    pub fn new(settings: Arc<Settings>) -> Self {
        let catalog = Catalog::new(&settings);
        Self { settings, catalog, widths: HashMap::new(), schemas: HashMap::new() }
    }

    /// Opens the transaction, locks the table, and only then takes the snapshot: a rewriting ALTER in between would show an empty table.
    async fn begin(&mut self, table: &str) -> Result<Taken> {
        let (schema, name) = split_name(table);
        let row = self.catalog.query(STANDING).await?;
        let row = row.first().map(Vec::as_slice).unwrap_or_default();
        let (is_standby, before) = (flag(row, 0), cell(row, 1).parse::<Lsn>().ok());
        let end = if is_standby { "pg_last_wal_replay_lsn()" } else { "pg_current_wal_insert_lsn()" };
        // ONLY leaves out tables that inherit; partitions are locked with their table, which has no rows of its own.
        let lock = format!(
            "{BEGIN}; LOCK TABLE {}.{} IN ACCESS SHARE MODE; SELECT pg_current_snapshot(), {end}",
            ident(schema),
            ident(name)
        );
        let rows = self.catalog.sql().await?.try_query(&lock).await?.map_err(|refused| unreadable(table, &refused))?;
        let row = rows.last().map(Vec::as_slice).unwrap_or_default();
        let snapshot = PrimarySnapshot::parse(cell(row, 0)).ok_or_else(|| protocol("a snapshot cannot be read"))?;
        let barrier: Lsn = cell(row, 1).parse().map_err(|()| protocol("the server's log position cannot be read"))?;
        let xmin = cell(row, 0).split(':').next().and_then(|xmin| xmin.parse().ok()).unwrap_or(0);
        Ok(match before.filter(|_| is_standby || fault::variant("watermark-window")) {
            Some(replayed) => {
                Taken { seen: Arc::new(StandbySnapshot { replayed }), primary: None, xmin, replayed: Some(replayed), barrier }
            }
            None => Taken {
                seen: Arc::new(snapshot.clone()),
                primary: Some(snapshot),
                xmin,
                replayed: None,
                barrier: start_of_page(barrier),
            },
        })
    }

    async fn shape(&mut self, table: &str) -> Result<Shape> {
        let (schema, name) = split_name(table);
        let gone = || {
            Error::new(&codes::BACKFILL_TABLE, "a table whose rows are to be read is gone")
                .at("table", table)
                .hint("Take it out of `tables`, or create it again and restart the connector.")
        };
        let facts = self.catalog.table_named(schema, name).await?.ok_or_else(gone)?;
        // Before 15 a publication has no row filters.
        let select = if self.catalog.sql().await?.major_version()? < 15 { "SELECT WHERE false --" } else { "SELECT" };
        let published = self
            .catalog
            .query(&format!(
                "{select} coalesce(pg_get_expr(r.prqual, r.prrelid), '') FROM pg_publication p \
                 JOIN pg_publication_rel r ON r.prpubid = p.oid WHERE p.pubname = {} AND r.prrelid = {}",
                literal(&self.settings.publication),
                facts.oid
            ))
            .await?;
        let filter = published.first().map(|row| cell(row, 0).to_owned()).filter(|filter| !filter.is_empty());
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
        Ok(Shape { facts, schema, codecs, filter })
    }

    /// Names what still runs of what the gate asks for.
    async fn blockers(&mut self, gate: &Ended, taken: &Taken) -> Result<Option<String>> {
        let Some(snapshot) = &taken.primary else {
            let behind = gate.replayed > taken.replayed;
            let what = || format!("the standby to replay the log and to end what ran before transaction {}", gate.xmax);
            return Ok((behind || taken.xmin < gate.xmax).then(what));
        };
        let open: Vec<u32> = gate.running.iter().copied().filter(|xid| !snapshot.has_ended(snapshot.widen(*xid))).collect();
        if open.is_empty() {
            return Ok(None);
        }
        let list = open.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let rows = self
            .catalog
            .query(&format!(
                "SELECT x.xid, coalesce(p.gid, ''), coalesce(a.application_name, ''), \
                 trunc(extract(epoch FROM now() - coalesce(p.prepared, a.xact_start)))::bigint \
                 FROM unnest('{{{list}}}'::xid[]) AS x(xid) LEFT JOIN pg_prepared_xacts p ON p.transaction = x.xid \
                 LEFT JOIN pg_stat_activity a ON a.backend_xid = x.xid LIMIT 5"
            ))
            .await?;
        let told: Vec<String> = rows.iter().map(|row| blocker(row)).collect();
        Ok(Some(format!("{} open transactions to end: {}", open.len(), told.join(", "))))
    }

    async fn rows(&mut self, request: &ChunkRequest, shape: &Shape, batch: &mut Batch) -> Result<Option<Cursor>> {
        let declare = format!("DECLARE hw NO SCROLL CURSOR FOR {}", select(request, shape));
        let declared = self.catalog.sql().await?.try_query(&declare).await?;
        declared.map_err(|refused| refused_condition(request, &refused))?;
        let mut rows = Rows::new(request, shape, batch);
        let known = self.widths.get(&request.table).copied();
        loop {
            let left = request.max_rows - rows.taken;
            let fetch = match rows.width().or(known) {
                Some(width) => (request.max_bytes.saturating_sub(rows.bytes) / width.max(1)).clamp(1, left.min(MAX_FETCH)),
                None => left.min(FIRST_FETCH),
            };
            let before = rows.seen;
            let fetched = self.catalog.sql().await?.query_rows(&format!("FETCH {fetch} FROM hw"), |row| rows.push(row)).await?;
            fetched.map_err(|refused| refused_condition(request, &refused))?;
            let is_end = rows.seen - before < fetch && rows.seen == rows.taken;
            if is_end || rows.is_full() {
                break;
            }
        }
        if let Some(width) = rows.width() {
            self.widths.insert(request.table.clone(), width);
        }
        // The chunk was cut short, or as long as was asked for: something may be behind it.
        Ok(rows.is_full().then(|| rows.last_key()).flatten())
    }
}

/// Rows on their way into a batch.
struct Rows<'a> {
    batch: &'a mut Batch,
    schema: u32,
    codecs: &'a [Codec],
    key: &'a [usize],
    max_rows: usize,
    max_bytes: usize,
    /// Rows that came, and those of them that were taken.
    seen: usize,
    taken: usize,
    bytes: usize,
    /// The key of the row that was taken last, in buffers that are used again.
    last: Vec<Vec<u8>>,
}

impl<'a> Rows<'a> {
    fn new(request: &ChunkRequest, shape: &'a Shape, batch: &'a mut Batch) -> Self {
        let read_at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        batch.begin_transaction("read", read_at.as_micros() as i64);
        let schema = batch.schema_index(&shape.schema);
        let (max_rows, max_bytes) = (request.max_rows, request.max_bytes);
        let (codecs, key) = (shape.codecs.as_slice(), shape.schema.key.as_slice());
        let last = vec![Vec::new(); key.len()];
        Self { batch, schema, codecs, key, max_rows, max_bytes, seen: 0, taken: 0, bytes: 0, last }
    }

    fn is_full(&self) -> bool {
        self.taken >= self.max_rows || self.bytes >= self.max_bytes || self.seen > self.taken
    }

    /// Where the next chunk begins; none if no row was taken.
    fn last_key(&self) -> Option<Cursor> {
        let text = |raw: &Vec<u8>| String::from_utf8_lossy(raw).into_owned();
        (self.taken > 0).then(|| self.last.iter().map(text).collect())
    }

    fn width(&self) -> Option<usize> {
        self.bytes.checked_div(self.taken).map(|width| width.max(1))
    }

    /// Takes one row. What comes when the chunk is full is left for the next one.
    fn push(&mut self, row: &[u8]) -> Result<()> {
        self.seen += 1;
        if self.taken >= self.max_rows || self.bytes >= self.max_bytes {
            return Ok(());
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
                self.last[place].clear();
                self.last[place].extend_from_slice(raw);
            }
        }
        let after = self.batch.end_row(start);
        self.batch.push_change(Op::Read, self.schema, self.taken as u64, Before::None, Some(after));
        self.taken += 1;
        self.bytes += row.len() + self.codecs.len() * 8;
        Ok(())
    }
}

#[async_trait]
impl TableReader for PostgresReader {
    async fn gate(&mut self) -> Result<Gate> {
        // A transaction holds the lock on its own number until after it has become visible; a snapshot's upper end leaves out numbers
        // that were given away while nothing later has ended.
        let rows = self
            .catalog
            .query(
                "SELECT pg_current_snapshot(), CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END, \
                 coalesce((SELECT string_agg(DISTINCT transactionid::text, ',') FROM pg_locks \
                 WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock' AND granted), '')",
            )
            .await?;
        let row = rows.first().map(Vec::as_slice).unwrap_or_default();
        let snapshot = PrimarySnapshot::parse(cell(row, 0)).ok_or_else(|| protocol("a snapshot cannot be read"))?;
        let running = cell(row, 2).split(',').filter_map(|xid| xid.parse().ok()).collect();
        Ok(Arc::new(Ended { running, xmax: snapshot.xmax, replayed: cell(row, 1).parse().ok() }))
    }

    async fn split(&mut self, table: &str, parts: usize) -> Result<Vec<Cursor>> {
        let shape = self.shape(table).await?;
        let rows = shape.facts.estimated_rows.unwrap_or(0);
        if rows < MIN_SPLIT || parts < 2 {
            return Ok(Vec::new());
        }
        let percent = (100.0 * (SAMPLE * parts as u64) as f64 / rows as f64).min(100.0);
        let key = key_list(&shape);
        let sql = format!(
            "SELECT {key} FROM (SELECT {key}, row_number() OVER (ORDER BY {key}) AS hw_at, count(*) OVER () AS hw_all \
             FROM {} TABLESAMPLE SYSTEM ({percent})) s WHERE hw_at % greatest(hw_all / {parts}, 1) = 0 AND hw_at < hw_all \
             ORDER BY {key} LIMIT {}",
            from(&shape.facts),
            parts - 1
        );
        let rows = self.catalog.query(&sql).await?;
        let whole = |row: Vec<Option<String>>| row.into_iter().collect::<Option<Cursor>>();
        Ok(rows.into_iter().filter_map(whole).collect())
    }

    async fn read(&mut self, request: &ChunkRequest, batch: &mut Batch) -> Result<ChunkRead> {
        let taken = self.begin(&request.table).await?;
        if let Some(gate) = request.gate.as_ref().and_then(|gate| gate.downcast_ref::<Ended>())
            && let Some(waiting) = self.blockers(gate, &taken).await?
        {
            self.catalog.query("COMMIT").await?;
            return Ok(ChunkRead::Waiting(waiting));
        }
        let shape = self.shape(&request.table).await?;
        let end = self.rows(request, &shape, batch).await?;
        self.catalog.query("COMMIT").await?;
        let barrier = Place::at(taken.barrier).to_position();
        Ok(ChunkRead::Rows(Chunk { seen: taken.seen, barrier, end, table_id: shape.facts.oid.to_string() }))
    }

    async fn close(mut self: Box<Self>) {
        self.catalog.rest().await;
    }
}

fn split_name(table: &str) -> (&str, &str) {
    table.split_once('.').unwrap_or(("public", table))
}

fn from(facts: &TableFacts) -> String {
    let only = if facts.partitioned { "" } else { "ONLY " };
    format!("{only}{}.{}", ident(&facts.schema), ident(&facts.name))
}

fn key_columns(shape: &Shape) -> Vec<String> {
    shape.schema.key_names().into_iter().map(ident).collect()
}

fn key_list(shape: &Shape) -> String {
    key_columns(shape).join(", ")
}

/// `'text'::type` for each column of a key.
fn typed(schema: &Schema, cursor: &Cursor) -> String {
    let values = cursor.iter().zip(&schema.key);
    values.map(|(text, at)| format!("{}::{}", literal(text), schema.columns[*at].source_type)).collect::<Vec<_>>().join(", ")
}

/// What an operator asks for, as SQL.
pub fn condition(schema: &Schema, condition: &Condition<'_>) -> String {
    match condition {
        // An untyped literal takes the column's type.
        Condition::From { column, value } => format!("{} >= {}", ident(column), literal(value)),
        Condition::Keys(keys) => {
            let key: Vec<String> = schema.key_names().into_iter().map(ident).collect();
            let list: Vec<String> = keys.iter().map(|cursor| format!("({})", typed(schema, cursor))).collect();
            format!("({}) IN ({})", key.join(", "), list.join(", "))
        }
    }
}

/// The statement of a chunk. Bounds are compared by the server alone, in the order of its own index.
fn select(request: &ChunkRequest, shape: &Shape) -> String {
    let columns: Vec<String> = shape.schema.columns.iter().map(|column| ident(&column.name)).collect();
    let key = key_list(shape);
    let mut conditions = Vec::new();
    conditions.extend(request.after.as_ref().map(|after| format!("({key}) > ({})", typed(&shape.schema, after))));
    conditions.extend(request.until.as_ref().map(|until| format!("({key}) <= ({})", typed(&shape.schema, until))));
    conditions.extend(request.keys.as_ref().map(|keys| condition(&shape.schema, &Condition::Keys(keys))));
    conditions.extend(shape.filter.iter().chain(&request.filter).map(|filter| format!("({filter})")));
    let filter = if conditions.is_empty() { String::new() } else { format!(" WHERE {}", conditions.join(" AND ")) };
    format!("SELECT {} FROM {}{filter} ORDER BY {key}", columns.join(", "), from(&shape.facts))
}

/// A place right behind a page's head is where the next record begins; the last one ended before the head, and that is as far as a
/// reader of the log gets while nothing is written.
fn start_of_page(lsn: Lsn) -> Lsn {
    let within = lsn.0 % PAGE;
    if within <= PAGE_HEAD { Lsn(lsn.0 - within) } else { lsn }
}

fn blocker(row: &[Option<String>]) -> String {
    let mut told = format!("transaction {}", cell(row, 0));
    if !cell(row, 1).is_empty() {
        told.push_str(&format!(", prepared as {:?}", cell(row, 1)));
    }
    if !cell(row, 2).is_empty() {
        told.push_str(&format!(", of {:?}", cell(row, 2)));
    }
    match number::<i64>(row, 3) {
        Ok(age) => format!("{told}, {age} s old"),
        Err(_) => told,
    }
}

fn unreadable(table: &str, refused: &ServerError) -> Error {
    let (schema, name) = split_name(table);
    match refused.state.as_str() {
        "42P01" | "3F000" => Error::new(&codes::BACKFILL_TABLE, "a table whose rows are to be read is gone")
            .at("table", table)
            .hint("Take it out of `tables`, or create it again and restart the connector."),
        "42501" => Error::new(&codes::PRIVILEGE, refused.text()).at("table", table).hint(format!(
            "Run GRANT SELECT ON {}.{} TO the connector's user;",
            ident(schema),
            ident(name)
        )),
        // The transaction stands still and the session is given up.
        _ => refused.clone().into_error().at("table", table),
    }
}

fn refused_condition(request: &ChunkRequest, refused: &ServerError) -> Error {
    let state = refused.state.as_str();
    if state == "42501" && refused.message.contains("row-level security") {
        return Error::new(&codes::ROW_SECURITY, "a row security policy would hide rows")
            .at("table", &request.table)
            .hint("Run ALTER ROLE ... BYPASSRLS; for the connector's user, or take the table out of `tables`.");
    }
    if request.filter.is_some() && (state.starts_with("42") || state.starts_with("22")) && state != "42501" {
        return Error::new(&codes::CONDITION_REFUSED, refused.text())
            .at("table", &request.table)
            .hint("Correct the condition: it is put behind WHERE, and tables and functions need their schema.");
    }
    unreadable(&request.table, refused)
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
