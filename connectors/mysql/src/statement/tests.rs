use super::*;
use proptest::prelude::*;

const ANSI: u64 = 1 << 2;
const PLAIN_BACKSLASH: u64 = 1 << 20;

fn query(text: &[u8]) -> Query<'_> {
    Query { database: b"shop", text, sql_mode: Some(0), charset: Some(45) }
}

fn of(text: &str) -> Head {
    head(&query(text.as_bytes()))
}

fn name(database: &str, table: &str) -> Name {
    Name { database: database.into(), table: table.into() }
}

/// The table of a statement of which the table is known.
fn changed(head: &Head) -> Option<&Name> {
    match head {
        Head::Rows(Some(write)) => Some(&write.table),
        _ => None,
    }
}

fn reads(text: &str) -> Option<Reads> {
    match of(text) {
        Head::Rows(Some(write)) => write.reads,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn statements_that_change_rows_are_seen_through_comments_and_quotes() {
    for text in [
        "INSERT INTO orders VALUES (1)",
        "/* c */ insert ignore into `orders` set a = 1",
        "-- x\nREPLACE orders VALUES (1)",
        "UPDATE orders SET a = 1",
        "UPDATE LOW_PRIORITY shop . orders AS o SET a = 1",
        "DELETE FROM shop.`orders` WHERE a = 'JOIN'",
        "CREATE TABLE IF NOT EXISTS orders AS SELECT 1",
        "CREATE TABLE orders (a int) TABLE other",
        "CREATE TABLE orders AS VALUES ROW(1, 2)",
        "CREATE TABLE orders (a int) PARTITION BY RANGE (a) (PARTITION p VALUES LESS THAN (9)) VALUES (1)",
        "CREATE OR REPLACE TABLE orders SELECT 1",
        "SET STATEMENT max_statement_time = 5, sql_mode = 'FOR' FOR INSERT INTO orders VALUES (1)",
        "INSERT DELAYED IGNORE orders VALUES (1)",
        "DELETE LOW_PRIORITY QUICK IGNORE FROM orders",
        "UPDATE orders\x0bSET a = 1",
    ] {
        assert_eq!(changed(&of(text)), Some(&name("shop", "orders")), "{text}");
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
        "/*!99999 GRANT */ INSERT INTO orders VALUES (1)",
        "/*M!100100 SET a = 1, */ DELETE FROM orders",
        "INSERT INTO /*!99999 other */ orders VALUES (1)",
        "INSERT INTO /*!50000 orders */ /*!99999 other */ VALUES (1)",
        "INSERT INTO /*M! orders */ VALUES (1)",
        "/*!50000 INSERT */ INTO /*! orders */ VALUES (1)",
        "/*!99999 /* a */ GRANT */ INSERT INTO orders VALUES (1)",
        "/*!50000 a *//*!50001 a *//*!50002 a *//*!50003 a *//*!50004 a *//*!50005 a *//*!50006 a *//*!50007 a *//*!50008 a */ GRANT",
        "DELETE a FROM other AS a",
        "UPDATE other PARTITION (p) SET a = 1",
        "",
    ] {
        assert_eq!(of(text), Head::Rows(None), "{text}");
    }
    assert_eq!(changed(&of("INSERT INTO `a``b`.c VALUES (1)")), Some(&name("a`b", "c")));
    assert_eq!(of("INSERT INTO \"orders\" VALUES (1)"), Head::Rows(None), "a string, unless the mode says otherwise");
    let ansi = head(&Query { sql_mode: Some(ANSI), ..query(b"INSERT INTO \"a\"\"b\".\"c\\\" VALUES (1)") });
    assert_eq!(changed(&ansi), Some(&name("a\"b", "c\\")));
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
        "ALTER TABLE t DROP PRIMARY KEY, ADD PRIMARY KEY (id, d) PARTITION BY RANGE (d) (PARTITION p VALUES LESS THAN (9))",
        "ALTER TABLE t REORGANIZE PARTITION p INTO (PARTITION a VALUES LESS THAN (5), PARTITION b VALUES LESS THAN (9))",
        "ALTER TABLE t ADD PARTITION (PARTITION p VALUES LESS THAN (9))",
        "ALTER TABLE t COALESCE PARTITION 2",
        "ALTER TABLE t REBUILD PARTITION ALL",
        "ALTER TABLE t REMOVE PARTITIONING",
        "ALTER TABLE t ADD COLUMN exchange int, ORDER BY exchange PARTITION BY HASH (id)",
        "ALTER TABLE t COMMENT 'DROP PARTITION'",
        "ALTER TABLE t ADD COLUMN import int, TABLESPACE x",
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
}

#[test]
fn rows_that_leave_or_come_with_their_partitions_are_seen() {
    let orders = || name("shop", "orders");
    let leave = |names: &str, becomes| Head::Partitions(Partitions { table: orders(), names: names.into(), becomes });
    let moved = |other: &[Name]| Head::Moved([&[orders()], other].concat());
    let cases = [
        ("ALTER TABLE orders DROP PARTITION p1, `p 2`", leave("p1, p 2", None)),
        ("ALTER TABLE orders DROP /* c */ PARTITION IF EXISTS p1", leave("p1", None)),
        ("ALTER TABLE shop.orders TRUNCATE PARTITION p1", leave("p1", None)),
        ("ALTER TABLE orders TRUNCATE PARTITION ALL", Head::Truncate(orders())),
        ("ALTER ONLINE TABLE IF EXISTS orders CONVERT PARTITION p TO TABLE a.b", leave("p", Some(name("a", "b")))),
        ("ALTER TABLE orders CONVERT TABLE b TO PARTITION p VALUES LESS THAN (9)", moved(&[name("shop", "b")])),
        ("ALTER TABLE orders EXCHANGE PARTITION p WITH TABLE a.`b` WITHOUT VALIDATION", moved(&[name("a", "b")])),
        ("ALTER TABLE orders IMPORT PARTITION p TABLESPACE", moved(&[])),
        ("ALTER TABLE orders DISCARD PARTITION p TABLESPACE", moved(&[])),
        ("ALTER TABLE orders IMPORT TABLESPACE", moved(&[])),
        ("ALTER TABLE orders DISCARD TABLESPACE", moved(&[])),
        ("ALTER IGNORE TABLE orders ADD UNIQUE KEY (a)", moved(&[])),
        ("ALTER TABLE orders EXCHANGE PARTITION p", Head::Rows(None)),
        ("ALTER TABLE orders /*!99999 DROP PARTITION p */ /*!50000 COMMENT = 'a' */", Head::Rows(None)),
    ];
    for (text, head) in cases {
        assert_eq!(of(text), head, "{text}");
    }
}

#[test]
fn what_a_statement_can_reach_is_told_or_not_known() {
    let some = |databases: &[&str], names: &[&str]| {
        let set = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect();
        Some(Reads { databases: set(databases), names: set(names) })
    };
    assert_eq!(reads("DELETE FROM o"), some(&["shop"], &[]));
    assert_eq!(reads("INSERT INTO o (a, b) VALUES (1.5, 'f()'), (-2, NULL)"), some(&["shop"], &["a", "b", "VALUES", "NULL"]));
    assert_eq!(reads("INSERT INTO o SELECT a.`b c` FROM d.a"), some(&["a", "d", "shop"], &["SELECT", "a", "b c", "FROM", "d"]));
    for text in [
        "REPLACE INTO o SELECT CONCAT_WS('#', COALESCE(LOWER(CONV(BIT_XOR(CAST(CRC32(a) AS UNSIGNED)), 10, 16)), 0)) FROM d.e WHERE (a IN (1))",
        "INSERT INTO o VALUES (NOW(), UUID()) ON DUPLICATE KEY UPDATE a = VALUES(a)",
        "UPDATE o SET a = 5--1",
        "INSERT INTO o VALUES (1) -- f()",
    ] {
        assert!(reads(text).is_some(), "{text}");
    }
    for text in [
        "INSERT INTO o VALUES (f())",
        "INSERT INTO o VALUES (f ())",
        "INSERT INTO o VALUES (`f`(1))",
        "INSERT INTO o VALUES (d.f(1))",
        "INSERT INTO o VALUES (d.left(1))",
        "INSERT INTO o VALUES (d . `now`())",
        "INSERT INTO o SELECT count (1)",
        "INSERT INTO o SELECT count/**/(1)",
        "INSERT INTO o VALUES (value(1))",
        "UPDATE o SET a = 5--f()",
        "UPDATE o SET a = '\\' + f('')",
        "SET STATEMENT max_statement_time = 5 FOR INSERT INTO o VALUES (1)",
        "INSERT INTO o VALUES (1 /*!50000 + f() */)",
        "INSERT INTO o SELECT 1 /*!50000 FROM v */",
    ] {
        let mode = if text.contains('\\') { PLAIN_BACKSLASH } else { 0 };
        match head(&Query { sql_mode: Some(mode), ..query(text.as_bytes()) }) {
            Head::Rows(Some(write)) => assert_eq!((write.table, write.reads), (name("shop", "o"), None), "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    let modes = [(None, Some(45)), (Some(1 << 9), Some(45)), (Some(0), None), (Some(0), Some(63)), (Some(0), Some(4))];
    for (sql_mode, charset) in modes {
        let Head::Rows(Some(write)) = head(&Query { sql_mode, charset, ..query("INSERT INTO o VALUES ('é')".as_bytes()) })
        else {
            panic!("it changes rows");
        };
        assert_eq!(write.reads, None, "{sql_mode:?} {charset:?}");
    }
}

#[test]
fn a_quote_that_is_half_of_a_letter_is_none() {
    // The second byte of the letter is a backslash: the string ends behind it, and a call follows.
    let Head::Rows(Some(write)) = head(&Query { charset: Some(28), ..query(b"INSERT INTO o VALUES ('\xbf\\', f(''))") }) else {
        panic!("it changes rows");
    };
    assert_eq!(write.reads, None);
    let found = head(&Query { charset: Some(8), ..query(b"DELETE FROM caf\xe9") });
    assert_eq!(changed(&found), Some(&name("shop", "café")));
}

#[test]
fn a_table_may_have_a_modifier_as_its_name() {
    for text in [
        "INSERT quick VALUES (1)",
        "REPLACE quick VALUES (1)",
        "UPDATE quick SET a = 1",
        "DELETE quick FROM quick",
        "DELETE FROM quick",
    ] {
        assert_eq!(changed(&of(text)), Some(&name("shop", "quick")), "{text}");
    }
}

#[test]
fn the_words_of_transactions_are_known() {
    let xid = Xid::parse(b"X'61',X'',1").expect("a name");
    let cases = [
        ("BEGIN", Head::Begin),
        ("COMMIT", Head::Commit),
        ("ROLLBACK", Head::Rollback),
        ("ROLLBACK TO `s`", Head::RollbackTo("s".into())),
        ("ROLLBACK WORK TO SAVEPOINT s", Head::RollbackTo("s".into())),
        ("SAVEPOINT `s`", Head::Savepoint("s".into())),
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
    fn any_statement_comes_to_an_end(text: Vec<u8>, words in "(INSERT|DELETE|/\\*|\\*/|`|'|--|#|\\\\| |a|\\.){0,20}", mode: u64) {
        head(&Query { database: b"", text: &text, sql_mode: Some(0), charset: Some(45) });
        head(&Query { database: b"", text: words.as_bytes(), sql_mode: Some(mode), charset: Some(28) });
    }

    #[test]
    fn a_change_of_a_captured_table_is_never_cleared(statement in changes(), gaps in prop::collection::vec(gap(), 12), mode in prop::sample::select(vec![0, ANSI, PLAIN_BACKSLASH])) {
        let text = written(&statement, &gaps, mode);
        let found = head(&Query { sql_mode: Some(mode), ..query(text.as_bytes()) });
        prop_assert!(!is_cleared(&found), "{}: {:?}", text, found);
    }

    #[test]
    fn a_change_of_another_table_is_cleared_only_as_what_it_is(gaps in prop::collection::vec(gap(), 12), mode in prop::sample::select(vec![0, ANSI, PLAIN_BACKSLASH])) {
        for statement in ["INSERT INTO other VALUES (1)", "UPDATE other SET a = 1", "DELETE FROM other WHERE a = 1"] {
            let text = written(statement, &gaps, mode);
            let found = head(&Query { sql_mode: Some(mode), ..query(text.as_bytes()) });
            let is_plain = !text.contains("/*!") && !text.contains("/*M!");
            prop_assert!(!is_plain || is_cleared(&found), "{}: {:?}", text, found);
            prop_assert!(!is_plain || changed(&found) == Some(&name("shop", "other")), "{}: {:?}", text, found);
        }
    }
}

/// Whether a reader of `shop.orders` would let the statement pass, if the catalogue has nothing against it.
fn is_cleared(head: &Head) -> bool {
    let is_orders = |name: &Name| *name == self::name("shop", "orders");
    match head {
        Head::Rows(Some(write)) => !is_orders(&write.table) && write.reads.is_some(),
        Head::Rows(None) => false,
        Head::Moved(names) => !names.iter().any(is_orders),
        Head::Truncate(name) => !is_orders(name),
        Head::Partitions(left) => !is_orders(&left.table),
        _ => true,
    }
}

/// Statements that change rows of `orders`, with a blank where anything may stand that is none, and `@` for the table.
fn changes() -> impl Strategy<Value = String> {
    let shapes = vec![
        "INSERT INTO @ VALUES (1)",
        "INSERT @ (a) SELECT a FROM other",
        "INSERT IGNORE INTO @ SET a = 1",
        "INSERT HIGH_PRIORITY @ () VALUES ()",
        "REPLACE INTO @ SELECT * FROM other",
        "REPLACE LOW_PRIORITY @ VALUES (1)",
        "UPDATE @ SET a = 1",
        "UPDATE LOW_PRIORITY IGNORE @ AS o SET a = 1",
        "UPDATE @ o SET a = 1",
        "UPDATE other , @ SET a = 1",
        "UPDATE other JOIN @ USING (a) SET b = 1",
        "UPDATE other AS a , @ SET b = 1",
        "UPDATE ( other , @ ) SET b = 1",
        "DELETE FROM @",
        "DELETE QUICK FROM @ WHERE a = 1",
        "DELETE @ FROM @ JOIN other",
        "DELETE FROM @ USING other , @",
        "DELETE FROM other , @ USING other , @",
        "DELETE other , @ FROM other , @",
        "WITH c AS (SELECT 1) UPDATE @ SET a = 1",
        "WITH c AS (SELECT 1) DELETE FROM @",
        "LOAD DATA INFILE 'x' INTO TABLE @",
        "LOAD XML INFILE 'x' INTO TABLE @",
        "CREATE TABLE @ (a int) SELECT 1",
        "CREATE OR REPLACE TABLE @ AS SELECT 1",
        "SET STATEMENT max_statement_time = 1 FOR DELETE FROM @",
        "ANALYZE UPDATE @ SET a = 1",
        "EXECUTE IMMEDIATE 'DELETE FROM orders'",
        "ALTER TABLE @ DROP PARTITION p",
        "ALTER TABLE @ EXCHANGE PARTITION p WITH TABLE other",
        "ALTER TABLE other EXCHANGE PARTITION p WITH TABLE @",
        "ALTER TABLE other CONVERT TABLE @ TO PARTITION p VALUES IN (1)",
        "ALTER TABLE @ IMPORT TABLESPACE",
        "TRUNCATE TABLE @",
        "TRUNCATE @",
        "INSERT INTO other VALUES (f(1))",
    ];
    let tables = vec!["orders", "`orders`", "shop.orders", "`shop` . `orders`", "\"orders\"", "shop . \"orders\""];
    (prop::sample::select(shapes), prop::sample::select(tables), any::<bool>()).prop_map(|(shape, table, lower)| {
        let shape = if lower { shape.to_ascii_lowercase() } else { shape.to_owned() };
        shape.replace('@', table)
    })
}

/// What servers take for a blank; some of it is a part of the statement for some of them, and the rest changes no meaning.
fn gap() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => Just(" ".to_owned()),
        2 => "[ \t\n]{1,3}",
        2 => "/\\*[a-z'\"` ]{0,6}\\*/",
        1 => "-- [a-z'\"` ]{0,6}\n",
        1 => "#[a-z'\"` /*]{0,6}\n",
        1 => "/\\*!(50000|50799|999999|99999|) \\*/",
        1 => "/\\*M!(100100|999999|) \\*/",
    ]
}

/// The statement with these gaps between its words.
fn written(statement: &str, gaps: &[String], mode: u64) -> String {
    let statement = if mode == ANSI { statement.to_owned() } else { statement.replace('"', "`") };
    let mut gaps = gaps.iter().cycle();
    let mut text = gaps.next().map(String::as_str).unwrap_or_default().to_owned();
    for word in statement.split(' ') {
        text.push_str(word);
        text.push_str(gaps.next().map_or(" ", String::as_str));
    }
    text
}
