//! What SQL tells about tables and types.

use std::{collections::HashMap, sync::Arc};

use headwater_connector::{Error, Result, Selection, Type};

use crate::{
    config::{Server, Settings},
    connection::{Connection, Purpose, Rows, literal},
    decode::Codec,
    error::protocol,
    types::{self, Resolved},
};

/// A table as the catalogue has it now.
#[derive(Clone, Debug)]
pub struct TableFacts {
    /// Object id.
    pub oid: u32,
    /// Schema.
    pub schema: String,
    /// Bare name.
    pub name: String,
    /// `d`, `n`, `f` or `i`.
    pub identity: char,
    /// Whether it has partitions.
    pub partitioned: bool,
    /// Whether the role owns it, which creating a publication needs.
    pub owned: bool,
    /// Rows, roughly.
    pub estimated_rows: Option<u64>,
    /// Whether values are stored out of line now.
    pub has_large_values: bool,
    /// In the order of the stream's cells: without dropped ones, and of the generated ones only those that are published.
    pub columns: Vec<ColumnFacts>,
    /// Generated columns that the stream lacks.
    pub unsent: Vec<UnsentFacts>,
    /// Unique indexes without expression and predicate.
    pub indexes: Vec<IndexFacts>,
}

/// See [`TableFacts`].
#[derive(Clone, Debug)]
pub struct ColumnFacts {
    /// Name.
    pub name: String,
    /// Object id of the type.
    pub oid: u32,
    /// Its modifier.
    pub modifier: i32,
    /// Declared NOT NULL.
    pub not_null: bool,
}

/// A generated column that the stream lacks.
#[derive(Clone, Debug)]
pub struct UnsentFacts {
    /// Name.
    pub name: String,
    /// Whether the server can publish it: stored ones since version 18.
    pub publishable: bool,
    /// Whether the server refuses updates and deletes of a published table whose replica identity has it: since version 18.
    pub strict: bool,
}

/// See [`TableFacts`].
#[derive(Clone, Debug)]
pub struct IndexFacts {
    /// Name.
    pub name: String,
    /// Of the primary key.
    pub primary: bool,
    /// Of the replica identity.
    pub identity: bool,
    /// Not deferrable, so that it can be a replica identity.
    pub immediate: bool,
    /// Columns in key order.
    pub columns: Vec<String>,
}

impl TableFacts {
    /// `schema.table`
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Columns of the primary key in key order.
    pub fn primary_key(&self) -> Option<&IndexFacts> {
        self.indexes.iter().find(|index| index.primary)
    }

    /// The index that the log's old rows follow, if it is not the whole row.
    pub fn identity_index(&self) -> Option<&IndexFacts> {
        match self.identity {
            'i' => self.indexes.iter().find(|index| index.identity),
            'd' => self.primary_key(),
            _ => None,
        }
    }

    /// The names of the columns that the log carries of an old row.
    pub fn identity_columns(&self) -> Vec<&str> {
        let of = |index: Option<&IndexFacts>| -> Vec<String> { index.map(|index| index.columns.clone()).unwrap_or_default() };
        let names = match self.identity {
            'f' => self.columns.iter().map(|column| column.name.clone()).collect(),
            _ => of(self.identity_index()),
        };
        self.columns.iter().map(|column| column.name.as_str()).filter(|name| names.iter().any(|found| found == name)).collect()
    }
}

/// A lazily opened session for look-ups, and the types that it found.
pub struct Catalog {
    server: Server,
    publication: String,
    connection: Option<Connection>,
    types: HashMap<(u32, i32), Resolved>,
}

const TABLES: &str = "SELECT c.oid, n.nspname, c.relname, c.relreplident, c.relkind = 'p', \
    pg_has_role(c.relowner, 'USAGE'), greatest(c.reltuples, -1)::bigint, \
    coalesce(pg_relation_size(nullif(c.reltoastrelid, 0)), 0) > 0, \
    coalesce((SELECT string_agg(a.relid::oid::text, ',') FROM pg_partition_ancestors(c.oid) a WHERE a.relid <> c.oid), '') \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' \
    AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%' ";

impl Catalog {
    /// Connects at the first look-up.
    pub fn new(settings: &Settings) -> Self {
        Self::at(settings, settings.server.clone())
    }

    /// The same at another address of the server.
    pub fn at(settings: &Settings, server: Server) -> Self {
        Self { server, publication: settings.publication.clone(), connection: None, types: HashMap::new() }
    }

    /// Ends the session, so that none is idle for long; the next look-up opens another.
    pub async fn rest(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close().await;
        }
    }

    /// The session.
    pub async fn sql(&mut self) -> Result<&mut Connection> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(&self.server, Purpose::Sql).await?,
        };
        Ok(self.connection.insert(connection))
    }

    /// One statement's rows. A session that broke is not used again.
    pub async fn query(&mut self, sql: &str) -> Result<Rows> {
        let result = self.sql().await?.query(sql).await;
        if result.is_err() {
            self.connection = None;
        }
        result
    }

    /// The tables that match, without partitions of a table that matches too: their changes come under its name.
    pub async fn tables(&mut self, selection: &Selection) -> Result<Vec<TableFacts>> {
        let mut rows = self.query(&format!("{TABLES} ORDER BY 2, 3")).await?;
        rows.retain(|row| selection.selects(cell(row, 1), cell(row, 2)));
        let selected: Vec<String> = rows.iter().map(|row| cell(row, 0).to_owned()).collect();
        rows.retain(|row| !cell(row, 8).split(',').any(|ancestor| selected.iter().any(|oid| oid == ancestor)));
        self.details(&rows).await
    }

    /// One table by its object id; none if it is gone.
    pub async fn table_by_oid(&mut self, oid: u32) -> Result<Option<TableFacts>> {
        let rows = self.query(&format!("{TABLES} AND c.oid = {oid}")).await?;
        Ok(self.details(&rows).await?.pop())
    }

    /// One table by its name; none if there is none.
    pub async fn table_named(&mut self, schema: &str, name: &str) -> Result<Option<TableFacts>> {
        let found = format!("{TABLES} AND n.nspname = {} AND c.relname = {}", literal(schema), literal(name));
        let rows = self.query(&found).await?;
        Ok(self.details(&rows).await?.pop())
    }

    /// Columns and indexes of all tables by one statement each: a database can have thousands.
    async fn details(&mut self, rows: &[Vec<Option<String>>]) -> Result<Vec<TableFacts>> {
        let oids = rows.iter().map(|row| cell(row, 0)).collect::<Vec<_>>().join(",");
        let columns = self.query(&columns_statement(&oids, &self.publication)).await?;
        let indexes = self
            .query(&format!(
                "SELECT i.indrelid, c.relname, i.indisprimary, i.indisreplident, i.indimmediate, a.attname \
                 FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
                 CROSS JOIN LATERAL unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k(attnum, place) \
                 JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum \
                 WHERE i.indrelid = ANY ('{{{oids}}}'::oid[]) \
                 AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL \
                 ORDER BY i.indrelid, c.relname, k.place"
            ))
            .await?;
        let (columns, indexes) = (by_table(&columns), by_table(&indexes));
        let of = |groups: &HashMap<String, Rows>, row: &[Option<String>]| groups.get(cell(row, 0)).cloned().unwrap_or_default();
        rows.iter().map(|row| table(row, &of(&columns, row), &of(&indexes, row))).collect()
    }

    /// What a type means; built-in ones without a look-up.
    pub async fn resolve(&mut self, oid: u32, modifier: i32) -> Result<Resolved> {
        self.resolve_nested(oid, modifier, 0).await
    }

    async fn resolve_nested(&mut self, oid: u32, modifier: i32, depth: u8) -> Result<Resolved> {
        if let Some(resolved) = types::builtin(oid, modifier) {
            return Ok(resolved);
        }
        if let Some(resolved) = self.types.get(&(oid, modifier)) {
            return Ok(resolved.clone());
        }
        let rows = self
            .query(&format!(
                "SELECT t.typtype, t.typbasetype, t.typtypmod, t.typname, format_type(t.oid, {modifier}), \
                 CASE WHEN t.typlen = -1 AND t.typcategory = 'A' THEN t.typelem ELSE 0 END, e.typdelim \
                 FROM pg_type t LEFT JOIN pg_type e ON e.oid = t.typelem WHERE t.oid = {oid}"
            ))
            .await?;
        let Some(row) = rows.first().filter(|_| depth < 16) else {
            return Ok(Resolved::other(format!("type {oid}")));
        };
        let name = cell(row, 4).to_owned();
        let element: u32 = number(row, 5)?;
        let mut resolved = match cell(row, 0) {
            "e" => {
                let labels = self.labels(oid).await?;
                Resolved { logical: Type::Enum { labels: Arc::clone(&labels) }, codec: Codec::Enum(labels), name: String::new() }
            }
            "d" => Box::pin(self.resolve_nested(number(row, 1)?, number(row, 2)?, depth + 1)).await?,
            _ if element != 0 => {
                let delimiter = cell(row, 6).bytes().next().unwrap_or(b',');
                Box::pin(self.resolve_nested(element, modifier, depth + 1)).await?.array(delimiter)
            }
            _ if cell(row, 3) == "citext" => Resolved { logical: Type::String, codec: Codec::Text, name: String::new() },
            _ if oid == 1186 => Resolved { logical: Type::Interval, codec: Codec::Text, name: String::new() },
            _ => Resolved::other(""),
        };
        resolved.name = name;
        self.types.insert((oid, modifier), resolved.clone());
        Ok(resolved)
    }

    async fn labels(&mut self, oid: u32) -> Result<Arc<[String]>> {
        let rows = self.query(&format!("SELECT enumlabel FROM pg_enum WHERE enumtypid = {oid} ORDER BY enumsortorder")).await?;
        Ok(rows.iter().map(|row| cell(row, 0).to_owned()).collect())
    }

    /// Labels can be added at any time without a trace in the stream: forget what is known of types.
    pub fn forget_types(&mut self) {
        self.types.clear();
    }

    /// The first cell of a statement's first row.
    pub async fn value(&mut self, sql: &str) -> Result<Option<String>> {
        Ok(self.query(sql).await?.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
    }

    /// Whether the server replays the log of a primary.
    pub async fn is_standby(&mut self) -> Result<bool> {
        Ok(self.value("SELECT pg_is_in_recovery()").await?.as_deref() == Some("t"))
    }

    /// A setting's value.
    pub async fn setting(&mut self, name: &str) -> Result<String> {
        let sql = format!("SELECT coalesce(current_setting({}, true), '')", literal(name));
        Ok(self.value(&sql).await?.unwrap_or_default())
    }
}

/// The columns of tables, and whether the stream has them (T18). pgoutput sends what `attnames` lists, which knows the publication's
/// column lists and, since version 18, its `publish_generated_columns`. A table that the publication lacks yet will be sent without a
/// list. Version 15 lists generated ones too, and sends none; older servers send all but generated ones.
fn columns_statement(oids: &str, publication: &str) -> String {
    let name = literal(publication);
    format!(
        "WITH setting AS MATERIALIZED (SELECT coalesce((SELECT to_jsonb(p) ->> 'pubgencols' FROM pg_publication p WHERE pubname = {name}), \
         CASE WHEN current_setting('server_version_num')::int >= 180000 THEN 's' ELSE 'n' END) = 's' AS stored, \
         current_setting('server_version_num')::int >= 180000 AS able), \
         listed AS MATERIALIZED (SELECT schemaname, tablename, to_jsonb(t) -> 'attnames' AS names FROM pg_publication_tables t \
         WHERE pubname = {name}) \
         SELECT a.attrelid, a.attname, a.atttypid, a.atttypmod, a.attnotnull, \
         a.attgenerated <> '' AND NOT coalesce(s.able AND l.names ? a.attname::text, s.stored AND a.attgenerated = 's'), \
         s.able AND a.attgenerated = 's', s.able \
         FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN setting s \
         LEFT JOIN listed l ON l.schemaname = n.nspname AND l.tablename = c.relname \
         WHERE a.attrelid = ANY ('{{{oids}}}'::oid[]) AND a.attnum > 0 AND NOT a.attisdropped \
         AND (a.attgenerated <> '' OR coalesce(l.names ? a.attname::text, true)) ORDER BY a.attrelid, a.attnum"
    )
}

/// Groups rows by their first cell.
fn by_table(rows: &[Vec<Option<String>>]) -> HashMap<String, Rows> {
    let mut groups: HashMap<String, Rows> = HashMap::new();
    for row in rows {
        groups.entry(cell(row, 0).to_owned()).or_default().push(row.clone());
    }
    groups
}

fn table(row: &[Option<String>], columns: &[Vec<Option<String>>], indexes: &[Vec<Option<String>>]) -> Result<TableFacts> {
    let column = |row: &Vec<Option<String>>| {
        Ok(ColumnFacts { name: cell(row, 1).to_owned(), oid: number(row, 2)?, modifier: number(row, 3)?, not_null: flag(row, 4) })
    };
    let rows: i64 = number(row, 6)?;
    let (unsent, columns): (Vec<_>, Vec<_>) = columns.iter().partition(|row| flag(row, 5));
    let missing = |row: &&Vec<Option<String>>| UnsentFacts {
        name: cell(row, 1).to_owned(),
        publishable: flag(row, 6),
        strict: flag(row, 7),
    };
    Ok(TableFacts {
        oid: number(row, 0)?,
        schema: cell(row, 1).to_owned(),
        name: cell(row, 2).to_owned(),
        identity: cell(row, 3).chars().next().unwrap_or('n'),
        partitioned: flag(row, 4),
        owned: flag(row, 5),
        estimated_rows: u64::try_from(rows).ok(),
        has_large_values: flag(row, 7),
        columns: columns.into_iter().map(column).collect::<Result<_>>()?,
        unsent: unsent.iter().map(missing).collect(),
        indexes: group_indexes(indexes),
    })
}

fn group_indexes(rows: &[Vec<Option<String>>]) -> Vec<IndexFacts> {
    let mut indexes: Vec<IndexFacts> = Vec::new();
    for row in rows {
        let column = cell(row, 5).to_owned();
        match indexes.last_mut().filter(|index| index.name == cell(row, 1)) {
            Some(index) => index.columns.push(column),
            None => indexes.push(IndexFacts {
                name: cell(row, 1).to_owned(),
                primary: flag(row, 2),
                identity: flag(row, 3),
                immediate: flag(row, 4),
                columns: vec![column],
            }),
        }
    }
    indexes
}

/// A cell's text; NULL and a missing cell are empty.
pub fn cell(row: &[Option<String>], at: usize) -> &str {
    row.get(at).and_then(Option::as_deref).unwrap_or_default()
}

/// A boolean cell.
pub fn flag(row: &[Option<String>], at: usize) -> bool {
    cell(row, at) == "t"
}

/// A number cell.
pub fn number<T: std::str::FromStr>(row: &[Option<String>], at: usize) -> Result<T, Error> {
    cell(row, at).parse().map_err(|_| protocol("the catalogue answers with something that is no number"))
}
