//! Tables as the stream describes them, and the key that their events have.

use std::sync::Arc;

use headwater_connector::{Column, Error, Result, Schema, Type};

use crate::{
    catalog::{Catalog, TableFacts},
    codes,
    config::Settings,
    connection::ident,
    decode::Codec,
    pgoutput,
};

/// A table at this place of the stream.
pub struct Table {
    /// Its object id.
    pub id: u32,
    /// The message that described it, to tell a repetition from a change.
    pub raw: Vec<u8>,
    /// None if the options do not select it.
    pub shape: Option<Shape>,
}

/// What decoding a selected table's rows needs.
pub struct Shape {
    /// The same `Arc` until the table is described again: its rows may have been rewritten then.
    pub schema: Arc<Schema>,
    /// One per column.
    pub codecs: Vec<Codec>,
    /// Whether a column is part of the replica identity.
    pub identity: Vec<bool>,
}

/// The tables that the stream described. A relation's rows come in runs, so the last one is looked at first.
#[derive(Default)]
pub struct Tables {
    tables: Vec<Table>,
    last: usize,
}

impl Tables {
    /// The index of a described table.
    #[inline]
    pub fn find(&mut self, id: u32) -> Option<usize> {
        if self.tables.get(self.last).is_some_and(|table| table.id == id) {
            return Some(self.last);
        }
        self.last = self.tables.iter().position(|table| table.id == id)?;
        Some(self.last)
    }

    /// A table found before.
    pub fn get(&self, at: usize) -> &Table {
        &self.tables[at]
    }

    /// Whether this very description is known. Its schema is another `Arc` from now on.
    pub fn knows(&mut self, id: u32, raw: &[u8]) -> bool {
        let Some(table) = self.find(id).map(|at| &mut self.tables[at]).filter(|table| table.raw == raw) else { return false };
        if let Some(shape) = &mut table.shape {
            shape.schema = Arc::new(Schema::clone(&shape.schema));
        }
        true
    }

    /// Marks a cell that is not among the labels of its column as right: looked up again, they still lack it, since it was renamed or
    /// its column is another one by now. A label joins the list at its end; an array is a copy until the table's next description.
    pub fn settle(&mut self, stale: &Stale) {
        let Some(shape) = self.find(stale.table).and_then(|at| self.tables[at].shape.as_mut()) else { return };
        let mut schema = Schema::clone(&shape.schema);
        match (&mut schema.columns[stale.column].r#type, &mut shape.codecs[stale.column], &stale.label) {
            (Type::Enum { labels }, codec, Some(label)) => {
                *labels = labels.iter().chain([label]).cloned().collect();
                *codec = Codec::Enum(Arc::clone(labels));
            }
            (_, codec, _) => without_labels(codec),
        }
        shape.schema = Arc::new(schema);
    }

    /// Adds a description or replaces an older one.
    pub fn put(&mut self, table: Table) {
        match self.find(table.id) {
            Some(at) => self.tables[at] = table,
            None => self.tables.push(table),
        }
    }
}

/// A cell that is none of the labels that its column is known to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stale {
    /// The table.
    pub table: u32,
    /// Place of the column.
    pub column: usize,
    /// The label; none for an array, and for what is not UTF-8.
    pub label: Option<String>,
}

/// The shape with the labels that its enums have now; everything else stays as it was described. Labels that were known before stay in
/// the list: the stream may still carry one that was renamed since, and asking again for each of its rows would never end.
pub async fn labels_again(catalog: &mut Catalog, relation: &pgoutput::Relation<'_>, before: &Shape) -> Result<Shape> {
    let (mut schema, mut codecs) = (Schema::clone(&before.schema), before.codecs.clone());
    for (at, column) in relation.columns.iter().enumerate().filter(|(at, _)| before.codecs[*at].has_labels()) {
        let mut now = catalog.resolve(column.oid, column.modifier).await?;
        // A type that was dropped since keeps the labels that it had.
        if now.codec.has_labels() {
            merge_labels(&mut now.logical, &before.schema.columns[at].r#type, &mut now.codec);
            (schema.columns[at].r#type, codecs[at]) = (now.logical, now.codec);
        }
    }
    Ok(Shape { schema: Arc::new(schema), codecs, identity: before.identity.clone() })
}

fn merge_labels(now: &mut Type, before: &Type, codec: &mut Codec) {
    match (now, before, codec) {
        (Type::Enum { labels }, Type::Enum { labels: before }, codec) => {
            let gone: Vec<String> = before.iter().filter(|label| !labels.contains(label)).cloned().collect();
            *labels = labels.iter().cloned().chain(gone).collect();
            *codec = Codec::Enum(Arc::clone(labels));
        }
        (Type::Array(now), Type::Array(before), Codec::Array(element, _)) => merge_labels(now, before, element),
        _ => (),
    }
}

fn without_labels(codec: &mut Codec) {
    match codec {
        Codec::Enum(_) => *codec = Codec::Text,
        Codec::Array(element, _) => without_labels(element),
        _ => (),
    }
}

/// Builds what decoding needs from the stream's description and the catalogue.
///
/// The description says how the table was at this place of the log; the catalogue says how it is now. Names, types and
/// identity are taken from the first, and from the second only what the first lacks: the order of a primary key,
/// nullability, and the meaning of types that are not built in.
pub async fn shape(catalog: &mut Catalog, settings: &Settings, relation: &pgoutput::Relation<'_>) -> Result<Shape> {
    let facts = catalog.table_by_oid(relation.id).await?;
    let mut columns = Vec::with_capacity(relation.columns.len());
    let mut codecs = Vec::with_capacity(relation.columns.len());
    for column in &relation.columns {
        let resolved = catalog.resolve(column.oid, column.modifier).await?;
        let now = facts.as_ref().and_then(|facts| facts.columns.iter().find(|now| now.name == column.name));
        codecs.push(resolved.codec);
        columns.push(Column {
            name: column.name.to_owned(),
            r#type: resolved.logical,
            source_type: resolved.name,
            nullable: now.map_or(!column.in_identity || relation.identity == b'f', |now| !now.not_null),
        });
    }
    let table = format!("{}.{}", relation.schema, relation.name);
    let identity: Vec<bool> = relation.columns.iter().map(|column| column.in_identity).collect();
    let key = key_in_stream(settings, &table, relation, facts.as_ref())?;
    Ok(Shape { schema: Arc::new(Schema { table, columns, key }), codecs, identity })
}

fn key_in_stream(
    settings: &Settings,
    table: &str,
    relation: &pgoutput::Relation<'_>,
    facts: Option<&TableFacts>,
) -> Result<Vec<usize>> {
    // Without an identity (NOTHING, or the primary key is away for a moment) the server lets nobody update or delete; what was inserted
    // meanwhile is whole, and has the key that the table has otherwise.
    let inserts_only = relation.identity != b'f' && !relation.columns.iter().any(|column| column.in_identity);
    let place =
        |name: &str| relation.columns.iter().position(|column| column.name == name && (column.in_identity || inserts_only));
    let all = |names: &[String]| names.iter().map(|name| place(name)).collect::<Option<Vec<usize>>>();
    if let Some(names) = key_option(settings, table) {
        // P4: the identity was switched, or a key column dropped, while we ran.
        return all(names).ok_or_else(|| {
            Error::new(&codes::NO_USABLE_KEY, "a column of the configured key is not in the replica identity any more")
                .at("table", table)
                .hint(format!("Run ALTER TABLE {} REPLICA IDENTITY FULL; or change the key in the config.", quoted(table)))
        });
    }
    if let Some(key) = facts.and_then(TableFacts::primary_key).and_then(|index| all(&index.columns)) {
        return Ok(key);
    }
    if let Some(fault) = facts.and_then(unsent_key) {
        return Err(fault);
    }
    if relation.identity == b'f' {
        return Ok(Vec::new());
    }
    let identity: Vec<usize> = (0..relation.columns.len()).filter(|at| relation.columns[*at].in_identity).collect();
    let index = facts.and_then(|facts| facts.indexes.iter().find(|index| index.identity)).and_then(|index| all(&index.columns));
    if inserts_only {
        return index.ok_or_else(|| {
            Error::new(&codes::NO_USABLE_KEY, "the table has no primary key and no replica identity any more")
                .at("table", table)
                .hint(format!("Run ALTER TABLE {} ADD PRIMARY KEY (...); with the key that it had.", quoted(table)))
        });
    }
    Ok(index.filter(|index| index.len() == identity.len()).unwrap_or(identity))
}

fn key_option<'a>(settings: &'a Settings, table: &str) -> Option<&'a [String]> {
    settings.keys.iter().find(|(name, _)| name == table).map(|(_, columns)| columns.as_slice())
}

/// `"schema"."table"` from the plain name. A schema's name has no dot, or the config could not name it.
fn quoted(table: &str) -> String {
    match table.split_once('.') {
        Some((schema, name)) => format!("{}.{}", ident(schema), ident(name)),
        None => ident(table),
    }
}

/// A table's schema and key from the catalogue alone, before anything streams; or why it cannot be keyed.
pub async fn schema_now(catalog: &mut Catalog, settings: &Settings, facts: &TableFacts) -> Result<Result<Schema>> {
    let key = match key_now(settings, facts) {
        Ok(key) => key,
        Err(error) => return Ok(Err(error)),
    };
    let mut columns = Vec::with_capacity(facts.columns.len());
    for column in &facts.columns {
        let resolved = catalog.resolve(column.oid, column.modifier).await?;
        columns.push(Column {
            name: column.name.clone(),
            r#type: resolved.logical,
            source_type: resolved.name,
            nullable: !column.not_null,
        });
    }
    Ok(Ok(Schema { table: facts.full_name(), columns, key }))
}

/// The rule of keys: NOT NULL, together unique, inside what the log carries of an old row.
fn key_now(settings: &Settings, facts: &TableFacts) -> Result<Vec<usize>> {
    let table = facts.full_name();
    let name = quoted(&table);
    let identity = facts.identity_columns();
    let fault = |what: String, hint: String| Err(Error::new(&codes::NO_USABLE_KEY, what).at("table", &table).hint(hint));
    if key_option(settings, &table).is_none()
        && let Some(fault) = unsent_key(facts)
    {
        return Err(fault);
    }
    if identity.is_empty() {
        let hint = match (facts.primary_key(), facts.identity) {
            (Some(_), _) => format!("Run ALTER TABLE {name} REPLICA IDENTITY DEFAULT;"),
            (None, _) => match usable_index(facts) {
                Some(index) => format!("Run ALTER TABLE {name} REPLICA IDENTITY USING INDEX {};", ident(index)),
                None => format!(
                    "Run ALTER TABLE {name} ADD PRIMARY KEY (...); or set `key:` for the table and run ALTER TABLE {name} REPLICA IDENTITY FULL;"
                ),
            },
        };
        // P3: in a publication such a table would even refuse the application's updates.
        return fault("the table has no replica identity, so updates and deletes cannot be keyed".into(), hint);
    }
    let columns = |names: &[String]| -> Option<Vec<usize>> {
        names.iter().map(|name| facts.columns.iter().position(|column| column.name == *name)).collect()
    };
    let inside = |names: &[String]| names.iter().all(|name| identity.contains(&name.as_str()));
    if let Some(names) = key_option(settings, &table) {
        return configured_key(facts, &name, names, &identity);
    }
    if let Some(index) = facts.primary_key().filter(|index| inside(&index.columns)) {
        return Ok(columns(&index.columns).unwrap_or_default());
    }
    match facts.indexes.iter().find(|index| index.identity && facts.identity == 'i') {
        Some(index) => Ok(columns(&index.columns).unwrap_or_default()),
        None => fault(
            "the table has no primary key".into(),
            format!(
                "Run ALTER TABLE {name} ADD PRIMARY KEY (...); or set `key:` for the table to columns that are NOT NULL and unique."
            ),
        ),
    }
}

/// T18: why the key that the catalogue names cannot be made of the stream's cells, if it has a generated column that is not sent. The
/// rest of the key alone would give different rows the same one.
fn unsent_key(facts: &TableFacts) -> Option<Error> {
    let index = facts.primary_key().filter(|_| facts.identity == 'f').or_else(|| facts.identity_index())?;
    let column = facts.unsent.iter().find(|column| index.columns.contains(&column.name))?;
    let name = quoted(&facts.full_name());
    let hint = if column.publishable {
        "Run ALTER PUBLICATION ... SET (publish_generated_columns = stored); for the connector's publication.".to_owned()
    } else {
        format!(
            "Run CREATE UNIQUE INDEX over columns that are not generated, and ALTER TABLE {name} REPLICA IDENTITY USING INDEX with its name."
        )
    };
    let what = format!("key column {:?} is generated, and the stream does not have it", column.name);
    Some(Error::new(&codes::NO_USABLE_KEY, what).at("table", facts.full_name()).hint(hint))
}

/// T18: since version 18 the server refuses the application's updates and deletes of a published table whose replica identity is the
/// whole row, if one of its columns is generated and not published.
pub fn refused_updates(facts: &TableFacts) -> Option<Error> {
    let columns: Vec<&str> = facts.unsent.iter().filter(|column| column.strict).map(|column| column.name.as_str()).collect();
    if facts.identity != 'f' || columns.is_empty() {
        return None;
    }
    let name = quoted(&facts.full_name());
    let hint = if facts.unsent.iter().all(|column| column.publishable) {
        "Run ALTER PUBLICATION ... SET (publish_generated_columns = stored); for the connector's publication.".to_owned()
    } else {
        format!(
            "Run ALTER TABLE {name} REPLICA IDENTITY DEFAULT; or USING INDEX with a unique index of columns that are not generated."
        )
    };
    let what =
        "the server would refuse updates and deletes of a published table with a full identity and unpublished generated columns";
    Some(Error::new(&codes::GENERATED, what).at("table", facts.full_name()).at("columns", columns.join(", ")).hint(hint))
}

fn usable_index(facts: &TableFacts) -> Option<&str> {
    let not_null = |name: &String| facts.columns.iter().any(|column| column.name == *name && column.not_null);
    facts.indexes.iter().find(|index| index.immediate && index.columns.iter().all(not_null)).map(|index| index.name.as_str())
}

fn configured_key(facts: &TableFacts, name: &str, names: &[String], identity: &[&str]) -> Result<Vec<usize>> {
    let fault =
        |what: String, hint: String| Err(Error::new(&codes::NO_USABLE_KEY, what).at("table", facts.full_name()).hint(hint));
    let mut key = Vec::new();
    for column in names {
        let Some(at) = facts.columns.iter().position(|found| found.name == *column) else {
            if facts.unsent.iter().any(|unsent| unsent.name == *column) {
                return fault(
                    format!("the configured key names column {column:?}, which is generated and not in the stream"),
                    "Correct `key:` of the table, or publish the column as `headwater explain HW2062` shows.".into(),
                );
            }
            return fault(
                format!("the configured key names column {column:?}, which does not exist or is not published"),
                "Correct `key:` of the table.".into(),
            );
        };
        if !facts.columns[at].not_null {
            let hint = format!("Run ALTER TABLE {name} ALTER COLUMN {} SET NOT NULL;", ident(column));
            return fault(format!("key column {column:?} can be NULL"), hint);
        }
        key.push(at);
    }
    let list = names.iter().map(|name| ident(name)).collect::<Vec<_>>().join(", ");
    if !facts.indexes.iter().any(|index| index.columns.iter().all(|column| names.contains(column))) {
        let hint = format!("Run CREATE UNIQUE INDEX ON {name} ({list});");
        return fault("the configured key is not unique".into(), hint);
    }
    if !names.iter().all(|name| identity.contains(&name.as_str())) {
        let index = facts.indexes.iter().find(|index| index.immediate && names.iter().all(|name| index.columns.contains(name)));
        let hint = match index {
            Some(index) => format!("Run ALTER TABLE {name} REPLICA IDENTITY USING INDEX {};", ident(&index.name)),
            None => format!("Run ALTER TABLE {name} REPLICA IDENTITY FULL;"),
        };
        return fault("the configured key is not inside the replica identity".into(), hint);
    }
    Ok(key)
}
