//! What the server's catalogue tells about tables, in the form in which the binlog describes them.

use headwater_connector::Result;

use crate::{
    config::Settings,
    connection::{Connection, Flavour, literal},
    table_map::{Column, field},
    types::Hint,
};

/// A table as it is now.
#[derive(Clone, Debug, Default)]
pub struct TableFacts {
    /// Database
    pub database: String,
    /// Table
    pub name: String,
    /// Whether it keeps the rows of the past beside those of now; MariaDB only.
    pub is_versioned: bool,
    /// In their order.
    pub columns: Vec<ColumnFacts>,
    /// The primary key's columns, else those of the unique index that the server takes for one.
    pub key: Vec<String>,
    /// Unique indexes over columns that are NOT NULL, the primary key included.
    pub unique: Vec<Vec<String>>,
    /// Those that a statement may name, with their names.
    pub indexes: Vec<(String, Vec<String>)>,
    /// Roughly.
    pub estimated_rows: Option<u64>,
}

/// A column as it is now.
#[derive(Clone, Debug)]
pub struct ColumnFacts {
    /// As the binlog describes it.
    pub column: Column,
    /// What the binlog cannot tell.
    pub hint: Hint,
}

impl TableFacts {
    /// `database.table`
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.database, self.name)
    }

    /// A column by its name.
    pub fn column(&self, name: &str) -> Option<&ColumnFacts> {
        self.columns.iter().find(|facts| facts.column.name.as_deref() == Some(name))
    }
}

/// The tables that the options select.
pub async fn selected(connection: &mut Connection, settings: &Settings) -> Result<Vec<TableFacts>> {
    let rows = connection
        .query("SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES WHERE TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') \
             ORDER BY 1, 2")
        .await?;
    let mut tables = Vec::new();
    for row in rows {
        let (database, name) = (cell(&row, 0), cell(&row, 1));
        if settings.selects(database, name)
            && let Some(facts) = table(connection, database, name).await?
        {
            tables.push(facts);
        }
    }
    Ok(tables)
}

/// One table; none if it is not there.
pub async fn table(connection: &mut Connection, database: &str, name: &str) -> Result<Option<TableFacts>> {
    let place = format!("TABLE_SCHEMA = {} AND TABLE_NAME = {}", literal(database), literal(name));
    let rows = connection.query(&format!("SELECT TABLE_ROWS, TABLE_TYPE FROM information_schema.TABLES WHERE {place}")).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let mut facts = TableFacts {
        database: database.to_owned(),
        name: name.to_owned(),
        is_versioned: cell(row, 1) == "SYSTEM VERSIONED",
        estimated_rows: cell(row, 0).parse().ok(),
        ..TableFacts::default()
    };
    let documents = documents(connection, database, name).await?;
    let rows = connection
        .query(&format!(
            "SELECT COLUMN_NAME, DATA_TYPE, COLUMN_TYPE, CHARACTER_SET_NAME, CHARACTER_OCTET_LENGTH, NUMERIC_PRECISION, NUMERIC_SCALE, \
             DATETIME_PRECISION, IS_NULLABLE, EXTRA, COLLATION_NAME, COLUMN_KEY FROM information_schema.COLUMNS WHERE {place} ORDER BY ORDINAL_POSITION"
        ))
        .await?;
    let flavour = connection.flavour;
    facts.columns = rows.iter().map(|row| column(flavour, row, &documents)).collect();
    let promoted: Vec<&str> = rows.iter().filter(|row| cell(row, 11) == "PRI").map(|row| cell(row, 0)).collect();
    let indexes = unique(connection, &place).await?;
    // Without a primary key the first index that was made is taken for one, as the binlog does too. Here the alphabet is the order.
    let is_promoted = |index: &&Unique| index.columns.len() == promoted.len() && promoted.iter().all(|name| index.has(name));
    let key = indexes.iter().find(is_promoted).or(indexes.first());
    facts.key = key.map(|index| index.columns.clone()).unwrap_or_default();
    facts.unique = indexes.iter().map(|index| index.columns.clone()).collect();
    facts.indexes = indexes.into_iter().filter(|index| !index.is_hidden).map(|index| (index.name, index.columns)).collect();
    Ok(Some(facts))
}

/// A unique index over columns that are NOT NULL.
struct Unique {
    name: String,
    /// Whether the optimizer may not use it. A statement that names it is refused.
    is_hidden: bool,
    columns: Vec<String>,
}

impl Unique {
    fn has(&self, column: &str) -> bool {
        self.columns.iter().any(|name| name == column)
    }
}

/// Those of the table at a place, the primary key first.
async fn unique(connection: &mut Connection, place: &str) -> Result<Vec<Unique>> {
    let hidden = if connection.flavour == Flavour::Mysql { "IS_VISIBLE = 'NO'" } else { "IGNORED = 'YES'" };
    let rows = connection
        .query(&format!(
            "SELECT INDEX_NAME, COLUMN_NAME, SUB_PART, NULLABLE, {hidden} FROM information_schema.STATISTICS \
             WHERE {place} AND NON_UNIQUE = 0 ORDER BY INDEX_NAME <> 'PRIMARY', INDEX_NAME, SEQ_IN_INDEX"
        ))
        .await?;
    let mut indexes: Vec<(Unique, bool)> = Vec::new();
    for row in &rows {
        let name = cell(row, 0);
        if indexes.last().is_none_or(|(index, _)| index.name != name) {
            indexes.push((Unique { name: name.to_owned(), is_hidden: cell(row, 4) == "1", columns: Vec::new() }, true));
        }
        // A part that may be NULL, is computed, or is only the beginning of a column tells no rows apart.
        let fits = cell(row, 3) != "YES" && !cell(row, 1).is_empty() && (cell(row, 2).is_empty() || name == "PRIMARY");
        if let Some((index, all_fit)) = indexes.last_mut() {
            index.columns.push(cell(row, 1).to_owned());
            *all_fit &= fits;
        }
    }
    Ok(indexes.into_iter().filter_map(|(index, all_fit)| all_fit.then_some(index)).collect())
}

/// MariaDB's columns of type JSON: LONGTEXT with a check of the column's own.
async fn documents(connection: &mut Connection, database: &str, name: &str) -> Result<Vec<String>> {
    if connection.flavour == Flavour::Mysql {
        return Ok(Vec::new());
    }
    let (database, name) = (literal(database), literal(name));
    let rows = connection
        .query(&format!(
            "SELECT CONSTRAINT_NAME, CHECK_CLAUSE FROM information_schema.CHECK_CONSTRAINTS \
             WHERE CONSTRAINT_SCHEMA = {database} AND TABLE_NAME = {name}"
        ))
        .await?;
    let valid = |row: &Vec<Option<String>>| {
        let column = cell(row, 0);
        cell(row, 1).eq_ignore_ascii_case(&format!("json_valid(`{}`)", column.replace('`', "``"))).then(|| column.to_owned())
    };
    Ok(rows.iter().filter_map(valid).collect())
}

fn column(flavour: Flavour, row: &[Option<String>], documents: &[String]) -> ColumnFacts {
    let (name, data_type, full_type) = (cell(row, 0), cell(row, 1).to_ascii_lowercase(), cell(row, 2));
    let number = |at: usize| cell(row, at).parse::<u32>().unwrap_or(0);
    let (octets, precision, scale, digits) = (number(4), number(5), number(6), number(7) as u16);
    let is_document = cell(row, 10) == "utf8mb4_bin" && documents.iter().any(|document| document == name);
    let mut hint = if is_document { Hint::Json } else { Hint::Plain };
    let is_old = full_type.contains("/* mariadb-5.3 */");
    let (kind, meta) = match data_type.as_str() {
        "tinyint" => (field::TINY, 0),
        "smallint" => (field::SHORT, 0),
        "mediumint" => (field::INT24, 0),
        "int" => (field::LONG, 0),
        "bigint" => (field::LONGLONG, 0),
        "float" => (field::FLOAT, 4),
        "double" => (field::DOUBLE, 8),
        "decimal" => (field::NEWDECIMAL, u16::from_be_bytes([precision as u8, scale as u8])),
        "bit" => (field::BIT, ((precision / 8) as u16) << 8 | (precision % 8) as u16),
        "year" => (field::YEAR, 0),
        "date" => (field::DATE, 0),
        "time" if is_old => (field::TIME, digits),
        "datetime" if is_old => (field::DATETIME, digits),
        "timestamp" if is_old => (field::TIMESTAMP, digits),
        "time" => (field::TIME2, digits),
        "datetime" => (field::DATETIME2, digits),
        "timestamp" => (field::TIMESTAMP2, digits),
        "char" | "binary" => (field::STRING, octets as u16),
        "varchar" | "varbinary" => (field::VARCHAR, octets as u16),
        "tinytext" | "tinyblob" => (field::BLOB, 1),
        "text" | "blob" => (field::BLOB, 2),
        "mediumtext" | "mediumblob" => (field::BLOB, 3),
        "longtext" | "longblob" => (field::BLOB, 4),
        "enum" => (field::ENUM, 1),
        "set" => (field::SET, 8),
        "json" => (field::JSON, 4),
        "vector" if flavour == Flavour::Mariadb => (field::VARCHAR, octets as u16),
        "vector" => (field::VECTOR, 4),
        "uuid" | "inet6" => (field::STRING, 16),
        "inet4" => (field::STRING, 4),
        _ => (field::GEOMETRY, 4),
    };
    match data_type.as_str() {
        "uuid" => hint = Hint::Uuid,
        "inet6" => hint = Hint::Inet6,
        "inet4" => hint = Hint::Inet4,
        "vector" => hint = Hint::Vector,
        _ => {}
    }
    let is_list = matches!(kind, field::ENUM | field::SET);
    let column = Column {
        field: kind,
        meta,
        nullable: cell(row, 8) == "YES",
        unsigned: full_type.to_ascii_lowercase().contains("unsigned"),
        name: Some(name.to_owned()),
        // The labels of a list come as UTF-8 here, whatever its character set is.
        collation: Some(if is_list { 45 } else { collation(cell(row, 3)) }),
        labels: if is_list { labels(full_type) } else { Vec::new() },
        invisible: cell(row, 9).contains("INVISIBLE"),
    };
    ColumnFacts { column, hint }
}

/// Some collation of each character set: all of one are read alike.
const CHARSETS: [(&str, u64); 41] = [
    ("big5", 1),
    ("cp850", 4),
    ("dec8", 3),
    ("hp8", 6),
    ("koi8r", 7),
    ("latin1", 8),
    ("latin2", 9),
    ("swe7", 10),
    ("ascii", 11),
    ("ujis", 12),
    ("sjis", 13),
    ("hebrew", 16),
    ("tis620", 18),
    ("euckr", 19),
    ("koi8u", 22),
    ("gb2312", 24),
    ("greek", 25),
    ("cp1250", 26),
    ("gbk", 28),
    ("latin5", 30),
    ("armscii8", 32),
    ("utf8", 33),
    ("utf8mb3", 33),
    ("ucs2", 35),
    ("cp866", 36),
    ("keybcs2", 37),
    ("macce", 38),
    ("macroman", 39),
    ("cp852", 40),
    ("latin7", 41),
    ("utf8mb4", 45),
    ("cp1251", 51),
    ("utf16", 54),
    ("utf16le", 56),
    ("cp1256", 57),
    ("cp1257", 59),
    ("utf32", 60),
    ("geostd8", 92),
    ("cp932", 95),
    ("eucjpms", 97),
    ("gb18030", 248),
];

fn collation(charset: &str) -> u64 {
    CHARSETS.iter().find(|(name, _)| *name == charset).map_or(63, |(_, collation)| *collation)
}

/// The character set of a collation that the catalogue gave.
pub fn charset_name(collation: u64) -> &'static str {
    CHARSETS.iter().rev().find(|(_, known)| *known == collation).map_or("binary", |(name, _)| *name)
}

/// The labels in `enum('a','it''s')`. The servers write four bytes with a backslash whatever the SQL mode is, and all others as they are.
fn labels(full_type: &str) -> Vec<Vec<u8>> {
    let mut labels = Vec::new();
    let mut rest = full_type;
    while let Some((_, inside)) = rest.split_once('\'') {
        let Some((label, behind)) = label(inside) else { return labels };
        labels.push(label.into_bytes());
        rest = behind;
    }
    labels
}

/// The label up to its closing quote, and what is behind that.
fn label(inside: &str) -> Option<(String, &str)> {
    let mut label = String::new();
    let mut tail = inside;
    loop {
        let (text, behind) = tail.split_at(tail.find(['\'', '\\'])?);
        label.push_str(text);
        let mut next = behind.chars();
        let is_quote = next.next() == Some('\'');
        label.push(match next.next() {
            Some('\'') if is_quote => '\'',
            _ if is_quote => return Some((label, &behind[1..])),
            Some('n') => '\n',
            Some('r') => '\r',
            Some('0') => '\0',
            // Only a backslash is left.
            other => other?,
        });
        tail = next.as_str();
    }
}

/// A cell's text; empty for NULL.
pub fn cell(row: &[Option<String>], at: usize) -> &str {
    row.get(at).and_then(Option::as_deref).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_type_of_a_list_has_labels_or_none(text in "(enum\\()?['a,n0\\\\\\(\\)é]{0,30}") {
            let found = super::labels(&text);
            prop_assert!(found.iter().map(Vec::len).sum::<usize>() <= text.len());
        }
    }

    #[test]
    fn labels_are_taken_out_of_their_quotes() {
        let found = super::labels("enum('a','it''s','','x,y')");
        assert_eq!(found, [&b"a"[..], b"it's", b"", b"x,y"]);
        let found = super::labels(r"enum('C:\\tmp','\n\r\0','\\','\\''z','last')");
        assert_eq!(found, [&b"C:\\tmp"[..], b"\n\r\0", b"\\", b"\\'z", b"last"]);
        assert!(super::labels(r"enum('a\").is_empty());
    }
}
