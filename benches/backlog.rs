//! Kinds of rows, and a table of them in the server's log.

use crate::source::Source;

/// What rows hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 10 columns, about 150 bytes.
    Ordinary,
    /// 100 columns of mixed types.
    Wide,
    /// 2 KB of text.
    Text,
}

/// Rows of one kind.
pub struct Shape {
    /// The case.
    pub name: &'static str,
    /// How many.
    pub rows: u64,
    /// Rows per transaction.
    pub per_transaction: u64,
    /// What they hold.
    pub kind: Kind,
    /// Columns besides the key.
    pub columns: String,
    /// What a row `i` holds besides its key.
    pub values: String,
}

impl Shape {
    /// Of the case of that name, scaled by the rows of `narrow`.
    pub fn of(source: &dyn Source, name: &'static str, rows: u64) -> Self {
        let huge = source.huge_rows(rows);
        let (rows, per_transaction, kind) = match name {
            "single" => (rows / 4, 1, Kind::Ordinary),
            "wide" => (rows / 10, 100, Kind::Wide),
            "large" => (rows / 5, 100, Kind::Text),
            "huge" => (huge, huge, Kind::Text),
            _ => (rows, 100, Kind::Ordinary),
        };
        let (columns, values) = source.columns(kind);
        Self { name, rows, per_transaction, kind, columns, values }
    }
}

/// The columns `c1` to `c99` of the wide table: types and values of four kinds, in turn.
pub fn wide(kinds: [(&str, &str); 4]) -> (String, String) {
    let kind = |n: usize| kinds[n % kinds.len()];
    let columns: Vec<String> = (1..100).map(|n| format!("c{n} {}", kind(n).0)).collect();
    let values: Vec<String> = (1..100).map(|n| kind(n).1.replace("{n}", &n.to_string())).collect();
    (columns.join(", "), values.join(", "))
}

/// A loaded backlog.
pub struct Backlog {
    /// The case.
    pub case: &'static str,
    /// How many rows.
    pub rows: u64,
    /// Its conditions in words.
    pub words: String,
    /// What its reader must know: in PostgreSQL the LSN of its end; else the file where it begins, and the GTIDs before it.
    pub places: Vec<String>,
}

impl Backlog {
    /// `row_bytes` is of one row as text, `log` the size of all in the server's log.
    pub fn new(shape: &Shape, row_bytes: &str, log: &str, places: Vec<String>) -> Self {
        let columns = shape.columns.split(", ").count() + 1;
        let Shape { name, rows, per_transaction, .. } = shape;
        let words = format!(
            "{rows} rows of {columns} columns, {row_bytes} bytes as text, {per_transaction} rows per transaction, {log}."
        );
        Self { case: name, rows: *rows, words, places }
    }
}
