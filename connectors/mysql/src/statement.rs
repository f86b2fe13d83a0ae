//! Recognises what a statement in the binlog does, by its head. No parser: what is not recognised may change rows.

use std::borrow::Cow;

mod reads;
#[cfg(test)]
mod tests;
mod words;

pub use self::reads::Reads;
use self::words::{By, Words};
use crate::{binlog::Query, charset::Charset, xid::Xid};

/// What a statement is to a reader of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    Begin,
    Commit,
    Rollback,
    /// To a savepoint of this name
    RollbackTo(Vec<u8>),
    Savepoint(Vec<u8>),
    XaStart,
    /// `XA END`
    XaEnd,
    /// Of what was prepared
    XaCommit(Xid),
    XaRollback(Xid),
    /// All rows of a table are gone.
    Truncate(Name),
    /// The rows of some partitions of a table are gone, or in a table of their own now.
    Partitions(Partitions),
    /// Rows of these tables came or went with the files that hold them, or were deleted by a change of the table's form.
    Moved(Vec<Name>),
    /// Tables are gone.
    Drop(Vec<Name>),
    /// So are all tables of a database.
    DropDatabase(Vec<u8>),
    /// Rows may be changed; unless more is known, of any table.
    Rows(Option<Write>),
    /// No rows are changed.
    Other,
}

/// A statement that changes rows of one table, as far as itself says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub table: Name,
    /// None if it can change other tables as well.
    pub reads: Option<Reads>,
}

/// Partitions that leave their table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partitions {
    pub table: Name,
    /// Their names, as the statement has them
    pub names: String,
    /// The table that they become
    pub becomes: Option<Name>,
}

/// Database and table; not always UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub database: Vec<u8>,
    pub table: Vec<u8>,
}

/// Heads of statements that change no rows of a table that stays.
const HARMLESS: [&str; 19] = [
    "RENAME",
    "GRANT",
    "REVOKE",
    "FLUSH",
    "SET",
    "INSTALL",
    "UNINSTALL",
    "LOCK",
    "UNLOCK",
    "RESET",
    "PURGE",
    "USE",
    "SHOW",
    "KILL",
    "SHUTDOWN",
    "RELEASE",
    "COMMENT",
    "CACHE",
    "IMPORT",
];
/// Before the table of an INSERT, a REPLACE or an UPDATE. No table can have one of these as its name without quotes.
const MODIFIERS: [&str; 4] = ["LOW_PRIORITY", "HIGH_PRIORITY", "DELAYED", "IGNORE"];

/// A mode of MariaDB with another grammar.
const ORACLE: u64 = 1 << 9;

/// What removes the rows of partitions, or moves them; each is two words that stand together.
const ON_PARTITIONS: [(&str, &str); 9] = [
    ("DROP", "PARTITION"),
    ("TRUNCATE", "PARTITION"),
    ("CONVERT", "PARTITION"),
    ("EXCHANGE", "PARTITION"),
    ("CONVERT", "TABLE"),
    ("IMPORT", "PARTITION"),
    ("DISCARD", "PARTITION"),
    ("IMPORT", "TABLESPACE"),
    ("DISCARD", "TABLESPACE"),
];

/// What the statement does. An executable comment is part of it for some servers and not for others, so it is read as each would.
pub fn head(query: &Query<'_>) -> Head {
    let decoded = decoded(query);
    let is_plain = decoded.is_some() && query.sql_mode.is_some_and(|mode| mode & ORACLE == 0);
    let text = decoded.as_deref().unwrap_or(query.text);
    let query = &Query { text, ..*query };
    let Some(servers) = By::all(query.text) else { return Head::Rows(None) };
    let mut heads = servers.into_iter().map(|by| head_of(Words::new(query, by)));
    let Some(mut first) = heads.next() else { return Head::Rows(None) };
    let passes = |head: &Head| matches!(head, Head::Other | Head::Drop(_) | Head::DropDatabase(_));
    for other in heads {
        first = match (first, other) {
            (one, other) if one == other || passes(&one) && passes(&other) => one,
            (Head::Rows(Some(one)), Head::Rows(Some(other))) if one.table == other.table => {
                Head::Rows(Some(Write { reads: None, ..one }))
            }
            _ => return Head::Rows(None),
        };
    }
    match first {
        Head::Rows(Some(write)) if !is_plain => Head::Rows(Some(Write { reads: None, ..write })),
        head => head,
    }
}

/// The text in UTF-8, since elsewhere a quote or a backslash can be half of a letter; none if it is not text as far as is known.
fn decoded<'a>(query: &Query<'a>) -> Option<Cow<'a, [u8]>> {
    if query.text.is_ascii() {
        return Some(Cow::Borrowed(query.text));
    }
    let charset = Charset::of(query.charset?.into())?;
    if charset == Charset::Utf8 {
        return std::str::from_utf8(query.text).is_ok().then_some(Cow::Borrowed(query.text));
    }
    let mut text = Vec::new();
    charset.decode(query.text, &mut text).is_ok().then_some(Cow::Owned(text))
}

fn head_of(mut words: Words<'_>) -> Head {
    let Some(first) = words.word() else { return Head::Rows(None) };
    match first.as_str() {
        "BEGIN" => Head::Begin,
        "START" => {
            if words.is_next("TRANSACTION") {
                Head::Begin
            } else {
                Head::Other
            }
        }
        "COMMIT" => Head::Commit,
        "ROLLBACK" => rollback(words),
        "SAVEPOINT" => words.part().map_or(Head::Rows(None), Head::Savepoint),
        "XA" => match words.word().as_deref() {
            Some("START" | "BEGIN") => Head::XaStart,
            Some("END") => Head::XaEnd,
            // What was not prepared, and here it ends.
            Some("COMMIT") if words.clone().any(&["PHASE"]) => Head::Commit,
            Some("COMMIT") => Xid::parse(words.rest).map_or(Head::Rows(None), Head::XaCommit),
            Some("ROLLBACK") => Xid::parse(words.rest).map_or(Head::Rows(None), Head::XaRollback),
            _ => Head::Rows(None),
        },
        "TRUNCATE" => {
            words.is_next("TABLE");
            words.name().map_or(Head::Rows(None), Head::Truncate)
        }
        "ALTER" => alter(words),
        "DROP" => drop_of(words),
        "CREATE" => create(words),
        "INSERT" | "REPLACE" => {
            words.skip(&MODIFIERS);
            words.is_next("INTO");
            rows(words)
        }
        "UPDATE" => {
            words.skip(&MODIFIERS);
            let head = rows(words.clone());
            words.name();
            // An alias may stand between; anything else names more tables.
            words.is_next("AS");
            let is_single = words.is_next("SET") || words.part().is_some() && words.is_next("SET");
            if is_single { head } else { Head::Rows(None) }
        }
        "DELETE" => {
            // The second can be the name of a table as well, and then this is the form that says FROM behind it.
            words.skip(&["LOW_PRIORITY", "QUICK", "IGNORE"]);
            let is_single = words.is_next("FROM");
            let head = rows(words.clone());
            words.name();
            let is_single = is_single && !words.sign(b',') && !words.any(&["USING", "JOIN", "STRAIGHT_JOIN"]);
            if is_single { head } else { Head::Rows(None) }
        }
        "SET" if words.is_next("STATEMENT") => match words.any(&["FOR"]) {
            // What it sets may be what the statement is read by.
            true => match head_of(words) {
                Head::Rows(Some(write)) => Head::Rows(Some(Write { reads: None, ..write })),
                head => head,
            },
            false => Head::Rows(None),
        },
        "ANALYZE" | "CHECK" | "OPTIMIZE" | "REPAIR" => maintenance(words),
        word if HARMLESS.contains(&word) => Head::Other,
        _ => Head::Rows(None),
    }
}

/// Of everything, or of what came since a savepoint.
fn rollback(mut words: Words<'_>) -> Head {
    words.skip(&["WORK"]);
    if !words.is_next("TO") {
        return Head::Rollback;
    }
    words.skip(&["SAVEPOINT"]);
    words.part().map_or(Head::Rows(None), Head::RollbackTo)
}

/// Of tables and databases it is told; anything else that is dropped has no rows.
fn drop_of(mut words: Words<'_>) -> Head {
    let is_table = words.is_next("TABLE") || words.is_next("TABLES");
    if !is_table {
        let is_database = words.is_next("DATABASE") || words.is_next("SCHEMA");
        words.skip(&["IF", "EXISTS"]);
        return match words.part().filter(|_| is_database) {
            Some(name) => Head::DropDatabase(name),
            None => Head::Other,
        };
    }
    words.skip(&["IF", "EXISTS"]);
    let mut names = Vec::new();
    while let Some(name) = words.name() {
        names.push(name);
        if !words.sign(b',') {
            break;
        }
    }
    Head::Drop(names)
}

/// Of tables and views it looks after them. MariaDB's ANALYZE also runs the statement behind it.
fn maintenance(mut words: Words<'_>) -> Head {
    words.skip(&["NO_WRITE_TO_BINLOG", "LOCAL"]);
    match words.word().as_deref() {
        Some("TABLE" | "TABLES" | "VIEW" | "VIEWS") => Head::Other,
        _ => Head::Rows(None),
    }
}

/// Rows of the table that is named next.
fn rows(mut words: Words<'_>) -> Head {
    let table = words.name();
    Head::Rows(table.map(|table| Write { table, reads: reads::reads(words) }))
}

/// A change of the table's form leaves its rows, except where it drops, exchanges or converts partitions, takes another file for them, or
/// deletes those that a new unique key or new partitions do not allow.
fn alter(mut words: Words<'_>) -> Head {
    words.skip(&["ONLINE", "OFFLINE"]);
    let ignores = words.is_next("IGNORE");
    if !words.is_next("TABLE") {
        return Head::Other;
    }
    words.skip(&["IF", "EXISTS"]);
    let Some(table) = words.name() else { return Head::Rows(None) };
    if ignores && words.clone().any(&["UNIQUE", "PRIMARY", "PARTITION"]) {
        return Head::Moved(vec![table]);
    }
    let mut rest = words;
    let what = loop {
        let Some(at) = rest.pair(&ON_PARTITIONS) else { return Head::Other };
        // A column can have such a name; PARTITION BY is what follows then.
        if ON_PARTITIONS[at].1 != "PARTITION" || !rest.clone().is_next("BY") {
            break ON_PARTITIONS[at];
        }
    };
    match what {
        ("DROP" | "TRUNCATE", _) => leaving(rest, table, what.0 == "TRUNCATE"),
        ("CONVERT", "PARTITION") => {
            let names = names(&mut rest);
            let becomes = (rest.is_next("TO") && rest.is_next("TABLE")).then(|| rest.name()).flatten();
            match becomes {
                Some(becomes) => Head::Partitions(Partitions { table, names, becomes: Some(becomes) }),
                None => Head::Rows(None),
            }
        }
        ("EXCHANGE", _) => match rest.any(&["TABLE"]).then(|| rest.name()).flatten() {
            Some(other) => Head::Moved(vec![table, other]),
            None => Head::Rows(None),
        },
        ("CONVERT", _) => match rest.name() {
            Some(other) => Head::Moved(vec![table, other]),
            None => Head::Rows(None),
        },
        _ => Head::Moved(vec![table]),
    }
}

/// Partitions that are dropped or truncated; all of them are the whole table.
fn leaving(mut words: Words<'_>, table: Name, can_be_all: bool) -> Head {
    words.skip(&["IF", "EXISTS"]);
    if can_be_all && words.is_next("ALL") {
        return Head::Truncate(table);
    }
    Head::Partitions(Partitions { table, names: names(&mut words), becomes: None })
}

/// A list of names as text.
fn names(words: &mut Words<'_>) -> String {
    let mut names = String::new();
    while let Some(name) = words.part() {
        names.push_str(&String::from_utf8_lossy(&name));
        if !words.sign(b',') {
            break;
        }
        names.push_str(", ");
    }
    names
}

/// A new table has no rows, unless it is filled by the same statement. One that it takes the place of is gone with its rows.
fn create(mut words: Words<'_>) -> Head {
    let replaces = words.is_next("OR");
    words.skip(&["REPLACE"]);
    let is_temporary = words.is_next("TEMPORARY");
    if !words.is_next("TABLE") {
        return Head::Other;
    }
    words.skip(&["IF", "NOT", "EXISTS"]);
    let head = rows(words.clone());
    let name = words.name();
    let mut rest = words.clone();
    let is_filled = loop {
        if !rest.any(&["VALUES"]) {
            break words.any(&["SELECT", "TABLE"]);
        }
        // Of a partition.
        if !rest.is_next("LESS") && !rest.is_next("IN") {
            break true;
        }
    };
    match name {
        _ if is_filled => head,
        Some(name) if replaces && !is_temporary => Head::Drop(vec![name]),
        _ => Head::Other,
    }
}
