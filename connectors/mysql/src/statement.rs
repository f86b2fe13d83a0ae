//! Recognises what a statement in the binlog does, by its head. No parser: what is not recognised may change rows.

use crate::{binlog::Query, xid::Xid};

/// What a statement is to a reader of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    Begin,
    Commit,
    Rollback,
    /// To a savepoint
    RollbackTo,
    Savepoint,
    XaStart,
    /// `XA END`
    XaEnd,
    /// Of what was prepared
    XaCommit(Xid),
    XaRollback(Xid),
    /// All rows of a table, or of some of its partitions, are gone.
    Truncate(Name),
    /// Tables are gone.
    Drop(Vec<Name>),
    /// So are all tables of a database.
    DropDatabase(Vec<u8>),
    /// Rows may be changed; of this table only, if it is named.
    Rows(Option<Name>),
    /// No rows are changed.
    Other,
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
const MODIFIERS: [&str; 5] = ["LOW_PRIORITY", "HIGH_PRIORITY", "DELAYED", "QUICK", "IGNORE"];

/// What the statement does. An executable comment is part of it for some servers and not for others, so it is read both ways.
pub fn head(query: &Query<'_>) -> Head {
    let mut words = Words { rest: query.text, database: query.database, skips_all: false };
    let found = head_of(words.clone());
    words.skips_all = true;
    let may_clear = matches!(found, Head::Other | Head::Drop(_) | Head::DropDatabase(_));
    if may_clear && ["/*!", "/*M!"].iter().any(|start| query.text.windows(start.len()).any(|part| part == start.as_bytes())) {
        let other = head_of(words);
        if matches!(other, Head::Rows(_) | Head::Truncate(_)) {
            return other;
        }
    }
    found
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
        "ROLLBACK" => {
            if words.clone().any(&["TO"]) {
                Head::RollbackTo
            } else {
                Head::Rollback
            }
        }
        "SAVEPOINT" => Head::Savepoint,
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
            Head::Rows(words.name())
        }
        "UPDATE" => {
            words.skip(&MODIFIERS);
            let name = words.name();
            // An alias may stand between; anything else names more tables.
            words.is_next("AS");
            let is_single = words.is_next("SET") || words.name().is_some() && words.is_next("SET");
            Head::Rows(name.filter(|_| is_single))
        }
        "DELETE" => {
            words.skip(&MODIFIERS);
            let is_single = words.is_next("FROM");
            let name = words.name();
            let is_single = is_single && !words.next_is(b',') && !words.any(&["USING", "JOIN"]);
            Head::Rows(name.filter(|_| is_single))
        }
        "SET" if words.is_next("STATEMENT") => match words.any(&["FOR"]) {
            true => head_of(words),
            false => Head::Rows(None),
        },
        "ANALYZE" | "CHECK" | "OPTIMIZE" | "REPAIR" => maintenance(words),
        word if HARMLESS.contains(&word) => Head::Other,
        _ => Head::Rows(None),
    }
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
        if !words.next_is(b',') {
            break;
        }
        words.rest = &words.rest[1..];
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

/// A change of the table's form leaves its rows, except where it drops, exchanges or converts partitions, takes another file for them, or
/// deletes those that a new unique key does not allow.
fn alter(mut words: Words<'_>) -> Head {
    words.skip(&["ONLINE", "OFFLINE"]);
    let ignores = words.is_next("IGNORE");
    if !words.is_next("TABLE") {
        return Head::Other;
    }
    words.skip(&["IF", "EXISTS"]);
    let name = words.name();
    let has = |wanted: &[&str]| words.clone().any(wanted);
    if has(&["TABLESPACE"]) && has(&["IMPORT", "DISCARD"]) || ignores && has(&["UNIQUE", "PRIMARY"]) {
        return Head::Rows(name);
    }
    let removes = has(&["PARTITION"]) && has(&["TRUNCATE", "EXCHANGE", "DROP", "CONVERT"]);
    match (removes, name) {
        (false, _) => Head::Other,
        (true, Some(name)) => Head::Truncate(name),
        (true, None) => Head::Rows(None),
    }
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
        name if is_filled => Head::Rows(name),
        Some(name) if replaces && !is_temporary => Head::Drop(vec![name]),
        _ => Head::Other,
    }
}

/// Walks over a statement, outside of comments and quotes.
#[derive(Clone)]
struct Words<'a> {
    rest: &'a [u8],
    database: &'a [u8],
    /// Whether executable comments are comments.
    skips_all: bool,
}

impl<'a> Words<'a> {
    /// Passes blanks and comments. What stands in an executable comment is part of the statement.
    fn blanks(&mut self) {
        loop {
            self.rest = self.rest.trim_ascii_start();
            let executable = self.rest.strip_prefix(b"/*!").or_else(|| self.rest.strip_prefix(b"/*M!"));
            let executable = executable.filter(|_| !self.skips_all);
            if let Some(inside) = executable {
                let digits = inside.iter().take_while(|byte| byte.is_ascii_digit()).count();
                self.rest = &inside[digits..];
            } else if let Some(rest) = self.rest.strip_prefix(b"*/") {
                self.rest = rest;
            } else if let Some(inside) = self.rest.strip_prefix(b"/*") {
                let end = inside.windows(2).position(|pair| pair == b"*/");
                self.rest = end.map_or(&[][..], |end| &inside[end + 2..]);
            } else if self.rest.starts_with(b"#") || self.rest.starts_with(b"--") {
                let end = self.rest.iter().position(|byte| *byte == b'\n');
                self.rest = end.map_or(&[][..], |end| &self.rest[end..]);
            } else {
                return;
            }
        }
    }

    /// A word without quotes, in capitals.
    fn word(&mut self) -> Option<String> {
        self.blanks();
        let len = self.rest.iter().take_while(|byte| is_of_name(**byte)).count();
        let (word, rest) = self.rest.split_at(len);
        self.rest = rest;
        (len > 0).then(|| String::from_utf8_lossy(word).to_ascii_uppercase())
    }

    /// Takes the word if it is next.
    fn is_next(&mut self, wanted: &str) -> bool {
        let before = self.rest;
        let is = self.word().as_deref() == Some(wanted);
        if !is {
            self.rest = before;
        }
        is
    }

    fn skip(&mut self, words: &[&str]) {
        while words.iter().any(|word| self.is_next(word)) {}
    }

    fn next_is(&mut self, byte: u8) -> bool {
        self.blanks();
        self.rest.first() == Some(&byte)
    }

    /// A name, with its database or without.
    fn name(&mut self) -> Option<Name> {
        let first = self.part()?;
        if !self.next_is(b'.') {
            return Some(Name { database: self.database.to_vec(), table: first });
        }
        self.rest = &self.rest[1..];
        Some(Name { database: first, table: self.part()? })
    }

    fn part(&mut self) -> Option<Vec<u8>> {
        self.blanks();
        let (&quote, inside) = self.rest.split_first()?;
        if quote != b'`' && quote != b'"' {
            let len = self.rest.iter().take_while(|byte| is_of_name(**byte)).count();
            let (word, rest) = self.rest.split_at(len);
            self.rest = rest;
            return (len > 0).then(|| word.to_vec());
        }
        let (mut name, mut at) = (Vec::new(), 0);
        loop {
            match (inside.get(at)?, inside.get(at + 1)) {
                (byte, Some(next)) if *byte == quote && *next == quote => {
                    name.push(quote);
                    at += 2;
                }
                (byte, _) if *byte == quote => {
                    self.rest = &inside[at + 1..];
                    return Some(name);
                }
                (byte, _) => {
                    name.push(*byte);
                    at += 1;
                }
            }
        }
    }

    /// Whether one of the words comes anywhere outside of quotes.
    fn any(&mut self, wanted: &[&str]) -> bool {
        loop {
            self.blanks();
            match self.rest.first() {
                None => return false,
                Some(quote @ (b'\'' | b'"' | b'`')) => {
                    let quote = *quote;
                    self.rest = &self.rest[1..];
                    while let Some((byte, rest)) = self.rest.split_first() {
                        self.rest = if *byte == b'\\' && quote != b'`' { rest.get(1..).unwrap_or_default() } else { rest };
                        if *byte == quote {
                            break;
                        }
                    }
                }
                Some(byte) if is_of_name(*byte) => {
                    if self.word().is_some_and(|word| wanted.contains(&word.as_str())) {
                        return true;
                    }
                }
                Some(_) => self.rest = &self.rest[1..],
            }
        }
    }
}

fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(text: &str) -> Head {
        head(&Query { database: b"shop", text: text.as_bytes() })
    }

    fn name(database: &str, table: &str) -> Name {
        Name { database: database.into(), table: table.into() }
    }

    #[test]
    fn statements_that_change_rows_are_seen_through_comments_and_quotes() {
        let orders = || Head::Rows(Some(name("shop", "orders")));
        for text in [
            "INSERT INTO orders VALUES (1)",
            "/* c */ insert ignore into `orders` set a = 1",
            "-- x\nREPLACE orders VALUES (1)",
            "/*!50000 INSERT */ INTO /*! orders */ VALUES (1)",
            "UPDATE orders SET a = 1",
            "UPDATE LOW_PRIORITY shop . orders AS o SET a = 1",
            "DELETE FROM shop.`orders` WHERE a = 'JOIN'",
            "CREATE TABLE IF NOT EXISTS orders AS SELECT 1",
            "CREATE TABLE orders (a int) TABLE other",
            "CREATE TABLE orders AS VALUES ROW(1, 2)",
            "CREATE TABLE orders (a int) PARTITION BY RANGE (a) (PARTITION p VALUES LESS THAN (9)) VALUES (1)",
            "CREATE OR REPLACE TABLE orders SELECT 1",
            "SET STATEMENT max_statement_time = 5, sql_mode = 'FOR' FOR INSERT INTO orders VALUES (1)",
            "/*!99999 GRANT */ INSERT INTO orders VALUES (1)",
            "/*M!100100 SET a = 1, */ DELETE FROM orders",
            "ALTER TABLE orders IMPORT TABLESPACE",
            "ALTER TABLE orders DISCARD TABLESPACE",
            "ALTER IGNORE TABLE orders ADD UNIQUE KEY (a)",
        ] {
            assert_eq!(of(text), orders(), "{text}");
        }
        for text in [
            "UPDATE orders, b SET a = 1",
            "DELETE a FROM a JOIN b",
            "DELETE FROM a USING a, b",
            "LOAD DATA INFILE 'x'",
            "CALL p()",
            "ANALYZE UPDATE orders SET a = 1",
            "ANALYZE FORMAT=JSON DELETE FROM orders",
            "SET STATEMENT sql_mode = ''",
            "WITH a AS (SELECT 1) DELETE FROM orders",
            "DO change()",
            "",
        ] {
            assert_eq!(of(text), Head::Rows(None), "{text}");
        }
        assert_eq!(of("INSERT INTO `a``b`.\"c\" VALUES (1)"), Head::Rows(Some(name("a`b", "c"))));
    }

    #[test]
    fn what_changes_no_rows_passes() {
        for text in [
            "CREATE TABLE t (a int DEFAULT 1 COMMENT 'SELECT')",
            "CREATE VIEW v AS SELECT 1",
            "CREATE TRIGGER t BEFORE INSERT ON a FOR EACH ROW DELETE FROM b",
            "ALTER TABLE t ADD COLUMN a int, DROP COLUMN b",
            "DROP VIEW a, b",
            "DROP TEMPORARY TABLE a",
            "RENAME TABLE a TO b",
            "ANALYZE LOCAL TABLE a",
            "optimize table a",
            "SET PASSWORD FOR a = 'b'",
            "SET DEFAULT ROLE a FOR b",
            "ALTER IGNORE TABLE t ADD COLUMN a int",
            "ALTER TABLE t CONVERT TO CHARACTER SET utf8mb4",
            "CREATE TABLE t (a int) PARTITION BY LIST (a) (PARTITION p VALUES IN (1), PARTITION q VALUES LESS THAN (9))",
            "CREATE OR REPLACE TEMPORARY TABLE t (a int)",
            "DROP /*!40005 TEMPORARY */ TABLE IF EXISTS `orders`",
            "# a comment\nGRANT SELECT ON a.* TO b",
        ] {
            assert_eq!(of(text), Head::Other, "{text}");
        }
        assert_eq!(
            of("DROP TABLE IF EXISTS `a` , b.c /* generated by server */"),
            Head::Drop(vec![name("shop", "a"), name("b", "c")])
        );
        assert_eq!(of("drop database if exists `x y`"), Head::DropDatabase("x y".into()));
        assert_eq!(of("TRUNCATE TABLE `orders`"), Head::Truncate(name("shop", "orders")));
        assert_eq!(of("truncate a.b"), Head::Truncate(name("a", "b")));
        assert_eq!(of("CREATE OR REPLACE TABLE orders (a int)"), Head::Drop(vec![name("shop", "orders")]));
        for what in [
            "EXCHANGE PARTITION p WITH TABLE b",
            "CONVERT PARTITION p TO TABLE b",
            "DROP PARTITION p",
            "CONVERT TABLE b TO PARTITION p",
        ] {
            assert_eq!(of(&format!("ALTER TABLE orders {what}")), Head::Truncate(name("shop", "orders")), "{what}");
        }
        assert_eq!(of("ALTER TABLE orders TRUNCATE PARTITION p1"), Head::Truncate(name("shop", "orders")));
    }

    #[test]
    fn the_words_of_transactions_are_known() {
        let xid = Xid::parse(b"X'61',X'',1").expect("a name");
        let cases = [
            ("BEGIN", Head::Begin),
            ("COMMIT", Head::Commit),
            ("ROLLBACK", Head::Rollback),
            ("ROLLBACK TO `s`", Head::RollbackTo),
            ("SAVEPOINT `s`", Head::Savepoint),
            ("XA START X'61',X'',1", Head::XaStart),
            ("XA END X'61',X'',1", Head::XaEnd),
            ("XA COMMIT X'61',X'',1", Head::XaCommit(xid.clone())),
            ("XA ROLLBACK X'61',X'',1", Head::XaRollback(xid)),
            ("XA COMMIT X'61',X'',1 ONE PHASE", Head::Commit),
            ("XA COMMIT 'a'", Head::Rows(None)),
        ];
        for (text, head) in cases {
            assert_eq!(of(text), head, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_statement_comes_to_an_end(text: Vec<u8>, words in "(INSERT|DELETE|/\\*|\\*/|`|'|--|#|\\\\| |a|\\.){0,20}") {
            head(&Query { database: b"", text: &text });
            head(&Query { database: b"", text: words.as_bytes() });
        }

        #[test]
        fn a_change_of_a_captured_table_is_never_cleared(comment in "[a-z*' ]{0,8}", quoted: bool) {
            prop_assume!(!comment.contains("*/"));
            let table = if quoted { "`orders`" } else { "orders" };
            let text = format!("/*{comment}*/DELETE/*{comment}*/FROM/*{comment}*/{table} WHERE a = 1");
            prop_assert_eq!(of(&text), Head::Rows(Some(name("shop", "orders"))));
            // Whatever a server takes for a comment.
            for start in ["/*!", "/*!50000 ", "/*!999999 ", "/*M! "] {
                let gated = format!("{start}{comment}*/{text}");
                prop_assert!(matches!(of(&gated), Head::Rows(_)), "{}: {:?}", gated, of(&gated));
            }
        }
    }
}
