//! Tables as the binlog describes them, and the key that their events have.

use std::{collections::HashMap, sync::Arc};

use headwater_connector::{Column, Error, Result, Schema};

use crate::{
    catalog::{self, ColumnFacts, TableFacts},
    codes,
    config::{Settings, ZeroDates},
    connection::{Connection, Flavour, ident, literal},
    decode::Codec,
    table_map::{self, TableMap},
    types::{self, Hint, Resolved},
};

/// A table at this place of the binlog.
pub struct Table {
    /// `database.table`
    pub name: String,
    /// What walking over a row needs: types, with what stands beside them.
    pub fields: Vec<(u8, u16)>,
    /// None if the options do not select it.
    pub shape: Option<Shape>,
}

/// What decoding a selected table's rows needs.
#[derive(Clone)]
pub struct Shape {
    /// The same `Arc` as long as nothing changed.
    pub schema: Arc<Schema>,
    /// One per column.
    pub codecs: Vec<Codec>,
}

/// The tables that the stream described. The numbers are good until the next file or format description only; rows come in runs, so
/// the last one is looked at first.
#[derive(Default)]
pub struct Tables {
    tables: Vec<(u64, Table)>,
    last: usize,
    /// Descriptions by table, with what came of them: a table is described in every transaction.
    known: HashMap<String, (Vec<u8>, Shape)>,
}

impl Tables {
    /// The index of a described table.
    #[inline]
    pub fn find(&mut self, id: u64) -> Option<usize> {
        if self.tables.get(self.last).is_some_and(|(known, _)| *known == id) {
            return Some(self.last);
        }
        self.last = self.tables.iter().position(|(known, _)| *known == id)?;
        Some(self.last)
    }

    /// A table found before.
    #[inline]
    pub fn get(&self, at: usize) -> &Table {
        &self.tables[at].1
    }

    /// Forgets which number stands for which table.
    pub fn forget_ids(&mut self) {
        self.tables.clear();
        self.last = 0;
    }

    /// Gives a number to a table.
    pub fn put(&mut self, id: u64, table: Table) {
        match self.find(id) {
            Some(at) => self.tables[at].1 = table,
            None => self.tables.push((id, table)),
        }
    }

    /// What came of this very description before.
    pub fn known(&self, name: &str, raw: &[u8]) -> Option<Shape> {
        self.known.get(name).filter(|(known, _)| known == raw).map(|(_, shape)| shape.clone())
    }

    /// The schema of a table that was described.
    pub fn schema_of(&self, name: &str) -> Option<Arc<Schema>> {
        self.known.get(name).map(|(_, shape)| Arc::clone(&shape.schema))
    }

    /// Selected tables that were described.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.known.keys().map(String::as_str)
    }

    /// Remembers what came of a description. A shape that says the same as before keeps its schema's `Arc`.
    pub fn remember(&mut self, name: &str, raw: &[u8], mut shape: Shape) -> Shape {
        if let Some((_, before)) = self.known.get(name)
            && before.schema == shape.schema
        {
            shape.schema = Arc::clone(&before.schema);
        }
        self.known.insert(name.to_owned(), (raw.to_vec(), shape.clone()));
        shape
    }
}

/// Whether the catalogue is needed to read a table: its key, or what its columns are.
pub fn needs_catalog(settings: &Settings, flavour: Flavour, map: &TableMap<'_>, name: &str) -> bool {
    let is_unclear = |column: &table_map::Column| {
        types::is_ambiguous(column) || types::may_be_vector(column) || types::may_lack_digits(column)
    };
    let is_mariadb = flavour == Flavour::Mariadb;
    (is_mariadb && (map.columns.iter().any(is_unclear) || may_be_versioned(map)))
        || (map.primary_key.is_none() && settings.key_of(name).is_none())
}

/// The columns of a MariaDB sequence, which is in the binlog as a table of one row.
const SEQUENCE: [&str; 8] = [
    "next_not_cached_value",
    "minimum_value",
    "maximum_value",
    "start_value",
    "increment",
    "cache_size",
    "cycle_option",
    "cycle_count",
];

/// Whether it is a sequence, which a pattern selects by its name. A table that looks like one has no key, so it cannot be captured either.
pub fn is_sequence(settings: &Settings, map: &TableMap<'_>, name: &str) -> bool {
    let names = map.columns.iter().map(|column| column.name.as_deref().unwrap_or_default());
    map.primary_key.is_none() && names.eq(SEQUENCE) && settings.key_of(name).is_none()
}

/// Whether the rows of the past may be among those of now: the end of a row's time is in the key then.
fn may_be_versioned(map: &TableMap<'_>) -> bool {
    let ends = |at: &usize| map.columns.get(*at).is_some_and(types::may_end_time);
    map.primary_key.as_ref().is_some_and(|key| key.len() > 1 && key.last().is_some_and(ends))
}

/// Builds what decoding needs from the binlog's description, and from the catalogue only what the first lacks.
pub fn shape(settings: &Settings, flavour: Flavour, map: &TableMap<'_>, facts: Option<&TableFacts>) -> Result<Shape> {
    let name = format!("{}.{}", map.database, map.table);
    if facts.is_some_and(|facts| facts.is_versioned) {
        return Err(versioned(&name));
    }
    let mut columns = Vec::with_capacity(map.columns.len());
    let mut codecs = Vec::with_capacity(map.columns.len());
    for column in &map.columns {
        let Some(column_name) = &column.name else { return Err(no_metadata(&name)) };
        let mut hint = Hint::Plain;
        let now = facts.and_then(|facts| facts.column(column_name));
        // Read without its digits, a row would be taken for others.
        let has_digits = now.is_some_and(|now| types::digits(&now.column) > 0);
        if types::may_lack_digits(column) && has_digits {
            return Err(unknown_type(&name, column_name, types::OLD_FRACTION));
        }
        let is_vector = |now: &ColumnFacts| now.hint == Hint::Vector && types::may_be_vector(column);
        let is_vector = now.is_some_and(is_vector);
        if flavour == Flavour::Mariadb && (is_vector || types::is_ambiguous(column)) {
            hint = said(&name, column_name, column, facts)?;
        }
        let Resolved { logical, name: source_type, codec } =
            types::resolve(column, hint).map_err(|why| unknown_type(&name, column_name, &why))?;
        codecs.push(codec);
        columns.push(Column { name: column_name.clone(), r#type: logical, source_type, nullable: column.nullable });
    }
    let names: Vec<String> = match (settings.key_of(&name), &map.primary_key) {
        (Some(names), _) => names.to_vec(),
        (None, Some(places)) => places.iter().filter_map(|at| columns.get(*at)).map(|column| column.name.clone()).collect(),
        (None, None) => facts.map(|facts| facts.key.clone()).unwrap_or_default(),
    };
    let key: Option<Vec<usize>> = names.iter().map(|name| columns.iter().position(|column| column.name == *name)).collect();
    match key.filter(|key| !key.is_empty()) {
        Some(key) => {
            let columns = with_zero_dates(settings, columns, &codecs, &key);
            Ok(Shape { schema: Arc::new(Schema { table: name, columns, key }), codecs })
        }
        None => Err(no_key(&name, "the table has no key, or not the one that the config names")),
    }
}

/// The columns as events have them. By the policy a date of no calendar can become NULL where the table has none, though never in a key.
fn with_zero_dates(settings: &Settings, mut columns: Vec<Column>, codecs: &[Codec], key: &[usize]) -> Vec<Column> {
    if settings.zero_dates == ZeroDates::Null {
        for (at, (column, codec)) in columns.iter_mut().zip(codecs).enumerate() {
            column.nullable |= codec.has_dates() && !key.contains(&at);
        }
    }
    columns
}

/// What the catalogue says of a column that the binlog cannot tell. A table that is gone or looks otherwise by now says nothing.
fn said(table: &str, name: &str, column: &table_map::Column, facts: Option<&TableFacts>) -> Result<Hint> {
    let now = facts.and_then(|facts| facts.column(name));
    match now {
        Some(now) if now.column.field == column.field && now.column.meta == column.meta => Ok(now.hint),
        _ => Err(Error::new(
            &codes::LAYOUT,
            "the catalogue cannot tell what a column of the binlog is, since the table was changed",
        )
        .at("table", table)
        .at("column", name)
        .hint(format!(
            "Change the column back until the connector has caught up, or leave the table out with {:?} in `tables`.",
            format!("!{table}")
        ))),
    }
}

fn versioned(table: &str) -> Error {
    let left_out = format!("!{table}");
    Error::new(&codes::TABLE_KIND, "a system-versioned table keeps the rows of the past beside those of now")
        .at("table", table)
        .hint(format!("Leave it out with {left_out:?} in `tables`, or run ALTER TABLE ... DROP SYSTEM VERSIONING;"))
}

fn no_metadata(table: &str) -> Error {
    Error::new(&codes::METADATA, "the binlog does not name the columns")
        .at("table", table)
        .hint("Run SET GLOBAL binlog_row_metadata = 'FULL'; and see `headwater explain HW3022` for what is written already.")
}

fn unknown_type(table: &str, column: &str, why: &str) -> Error {
    Error::new(&codes::COLUMN_TYPE, format!("a column cannot be read: {why}"))
        .at("table", table)
        .at("column", column)
        .hint("Change the column with ALTER TABLE ... MODIFY ..., or take the table out of `tables`.")
}

fn no_key(table: &str, what: &str) -> Error {
    let quoted =
        table.split_once('.').map_or_else(|| ident(table), |(database, name)| format!("{}.{}", ident(database), ident(name)));
    Error::new(&codes::NO_USABLE_KEY, what).at("table", table).hint(format!(
        "Run ALTER TABLE {quoted} ADD PRIMARY KEY (...); or set `key:` for the table to columns that are NOT NULL and unique."
    ))
}

/// A table's schema and key from the catalogue alone, before anything streams; or why it cannot be read or keyed.
pub fn schema_now(settings: &Settings, facts: &TableFacts) -> Result<Schema> {
    shape_now(settings, facts).map(|(schema, _)| schema)
}

/// The same, with how the columns are read.
pub fn shape_now(settings: &Settings, facts: &TableFacts) -> Result<(Schema, Vec<Codec>)> {
    let table = facts.full_name();
    if facts.is_versioned {
        return Err(versioned(&table));
    }
    let mut columns = Vec::with_capacity(facts.columns.len());
    let mut codecs = Vec::with_capacity(facts.columns.len());
    for ColumnFacts { column, hint } in &facts.columns {
        let name = column.name.clone().unwrap_or_default();
        let Resolved { logical, name: source_type, codec } =
            types::resolve(column, *hint).map_err(|why| unknown_type(&table, &name, &why))?;
        codecs.push(codec);
        columns.push(Column { name, r#type: logical, source_type, nullable: column.nullable });
    }
    let names = match settings.key_of(&table) {
        None => facts.key.as_slice(),
        Some(names) => {
            let missing = names.iter().find(|name| facts.column(name).is_none());
            if let Some(name) = missing {
                return Err(no_key(&table, &format!("the configured key names column {name:?}, which the table does not have")));
            }
            let nullable = names.iter().find(|name| facts.column(name).is_some_and(|facts| facts.column.nullable));
            if let Some(name) = nullable {
                return Err(no_key(&table, &format!("key column {name:?} may be NULL")));
            }
            let is_unique = facts.unique.iter().any(|index| index.iter().all(|column| names.contains(column)));
            if !is_unique {
                return Err(no_key(&table, "the columns of the configured key are not together unique"));
            }
            names
        }
    };
    if names.is_empty() {
        return Err(no_key(&table, "the table has no primary key"));
    }
    let key: Vec<usize> = names.iter().filter_map(|name| columns.iter().position(|column| column.name == *name)).collect();
    let columns = with_zero_dates(settings, columns, &codecs, &key);
    Ok((Schema { table, columns, key }, codecs))
}

/// The catalogue's word on a table.
pub async fn ask(connection: &mut Connection, map: &TableMap<'_>) -> Result<Option<TableFacts>> {
    catalog::table(connection, map.database, map.table).await
}

/// The same by `database.table`, under the name that the server keeps it by.
pub async fn ask_by_name(connection: &mut Connection, table: &str) -> Result<Option<TableFacts>> {
    let Some((database, name)) = table.split_once('.') else { return Ok(None) };
    let place = format!("TABLE_SCHEMA = {} AND TABLE_NAME = {}", literal(database), literal(name));
    let rows = connection
        .query(&format!("SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES WHERE TABLE_TYPE <> 'VIEW' AND {place}"))
        .await?;
    match rows.first() {
        Some(row) => catalog::table(connection, catalog::cell(row, 0), catalog::cell(row, 1)).await,
        None => Ok(None),
    }
}
