//! Rows that are there already: encoded as the stream encodes them, and read in the order of any key, each exactly once.

mod support;

use std::sync::Arc;

use headwater_connector::{Batch, ChunkRequest, Condition, Cursor, Op, SourceConnector, Value};
use serde_json::json;
use support::{
    Postgres, begin, cells,
    chunks::{chunk, first, labels, reader, rows, text},
    connector, keyed_connector, next, shared,
};

/// Reads the first row of a table by both ways and holds schema and cells to be the same.
async fn same(connector: &dyn SourceConnector, table: &str, insert: impl FnOnce()) -> (Vec<String>, Vec<String>) {
    let start = begin(connector).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    insert();
    let stream = next(source.as_mut()).await.unwrap();
    let mut reader = connector.reader().await.unwrap();
    let (_, read) = chunk(reader.as_mut(), &first(table, 10)).await;
    assert_eq!(*read.schemas()[0], *stream.schemas()[0], "{table}");
    let of = |batch: &Batch| -> Vec<Vec<String>> { rows(batch).into_iter().map(|row| cells(batch, row)).collect() };
    assert_eq!(of(&read), of(&stream), "{table}");
    assert!(read.changes().iter().all(|change| change.op == Op::Read));
    let names = read.schemas()[0].columns.iter().map(|column| column.name.clone()).collect();
    let found = of(&read).remove(0);
    source.close().await.unwrap();
    reader.close().await;
    (names, found)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partitioned_table_is_read_under_its_own_name() {
    let (server, database) = (shared(), shared().database());
    server.sql(
        &database,
        "CREATE TABLE t (id int, at int, label text, PRIMARY KEY (at, id)) PARTITION BY RANGE (at);
         CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10);
         CREATE TABLE t2 (junk int, label text, at int NOT NULL, id int NOT NULL); ALTER TABLE t2 DROP junk;
         ALTER TABLE t ATTACH PARTITION t2 FOR VALUES FROM (10) TO (20)",
    );
    let connector = connector(&server.url(&database), json!({}));
    let sql = "INSERT INTO t SELECT i, i, 'l' || i FROM generate_series(1, 19) i";
    let (names, _) =
        same(connector.as_ref(), "public.t", || drop(server.sql(&database, &format!("{sql} WHERE i IN (1, 12)")))).await;
    assert_eq!(names, ["id", "at", "label"]);
    server.sql(&database, &format!("{sql} WHERE i NOT IN (1, 12)"));
    let mut reader = connector.reader().await.unwrap();
    let wanted: Vec<String> = (1..20).map(|i| format!("l{i}")).collect();
    for size in [1, 7, 100] {
        assert_eq!(labels(reader.as_mut(), "public.t", size, (None, None)).await, wanted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_publication_leaves_out_is_left_out() {
    let (server, database) = (shared(), shared().database());
    server.sql(
        &database,
        &format!(
            "CREATE TABLE t (id int PRIMARY KEY, secret text, gone int, label text, twice int GENERATED ALWAYS AS (id * 2) STORED);
             ALTER TABLE t DROP gone; CREATE TABLE shown (LIKE t INCLUDING ALL);
             CREATE PUBLICATION hw_{database} FOR TABLE t (id, label) WHERE (id % 3 = 0), shown WITH (publish_via_partition_root = true)"
        ),
    );
    let connector = connector(&server.url(&database), json!({}));
    let insert = "INSERT INTO t (id, label) SELECT i, 'l' || i FROM generate_series(1, 6) i";
    let (names, row) = same(connector.as_ref(), "public.t", || drop(server.sql(&database, insert))).await;
    assert_eq!((names, row[0].as_str()), (vec!["id".to_owned(), "label".to_owned()], "Text(\"3\")"));
    server.sql(&database, "INSERT INTO t (id, label) SELECT i, 'l' || i FROM generate_series(7, 200) i");
    let mut reader = connector.reader().await.unwrap();
    let wanted: Vec<String> = (1..=66).map(|i| format!("l{}", i * 3)).collect();
    assert_eq!(found_anywhere(reader.as_mut(), &ChunkRequest { ..first("public.t", 2) }).await, wanted);
    server.sql(&database, "INSERT INTO shown (id, secret, label) VALUES (1, 's', 'l')");
    let (_, batch) = chunk(reader.as_mut(), &first("public.shown", 9)).await;
    assert_eq!(cells(&batch, rows(&batch)[0]), ["Text(\"1\")", "Text(\"s\")", "Text(\"l\")"], "without the generated column");
}

/// The labels of all rows, where chunks may be empty on the way.
async fn found_anywhere(reader: &mut dyn headwater_connector::TableReader, request: &ChunkRequest) -> Vec<String> {
    let (mut found, mut after) = (Vec::new(), request.after.clone());
    loop {
        let request = ChunkRequest { after: after.clone(), ..request.clone() };
        let (read, batch) = chunk(reader, &request).await;
        let at = batch.schemas()[0].columns.iter().position(|column| column.name == "label").unwrap();
        found.extend(rows(&batch).into_iter().map(|row| text(batch.value(row, at))));
        match read.end {
            None => return found,
            Some(end) => {
                assert_ne!(after.as_ref(), Some(&end), "a chunk that gets no further");
                after = Some(end);
            }
        }
    }
}

/// Only the publication tells which generated columns the stream carries.
#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_are_read_where_the_stream_has_them() {
    if shared().major < 18 {
        return;
    }
    let (server, columns) = (
        shared(),
        "id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED, thrice int GENERATED ALWAYS AS (id * 3) VIRTUAL, label text",
    );
    for (what, wanted) in [
        ("t WITH (publish_generated_columns = stored, publish_via_partition_root = true)", vec!["id", "twice", "label"]),
        ("t (id, twice) WITH (publish_via_partition_root = true)", vec!["id", "twice"]),
        ("t WITH (publish_generated_columns = none, publish_via_partition_root = true)", vec!["id", "label"]),
    ] {
        let database = server.database();
        server.sql(&database, &format!("CREATE TABLE t ({columns}); CREATE PUBLICATION hw_{database} FOR TABLE {what}"));
        let connector = connector(&server.url(&database), json!({}));
        let insert = || drop(server.sql(&database, "INSERT INTO t (id, label) VALUES (1, 'l')"));
        let (names, _) = same(connector.as_ref(), "public.t", insert).await;
        assert_eq!(names, wanted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_the_config_or_of_an_index_is_in_the_order_of_the_stream() {
    let server = shared();
    for table in [
        "CREATE TABLE t (a int NOT NULL, b text NOT NULL, label text); CREATE UNIQUE INDEX ON t (b, a); ALTER TABLE t REPLICA IDENTITY FULL",
        "CREATE TABLE t (a int NOT NULL, b text NOT NULL, label text); CREATE UNIQUE INDEX t_key ON t (b text_pattern_ops, a);
         ALTER TABLE t REPLICA IDENTITY USING INDEX t_key",
        "CREATE TABLE t (a int, b text, label text, PRIMARY KEY (b, a))",
    ] {
        let database = server.database();
        server.sql(&database, table);
        let connector = keyed_connector(&server.url(&database), json!({}), &[("public.t", &["b", "a"])]);
        let insert = || drop(server.sql(&database, "INSERT INTO t VALUES (2, 'x', 'x2'), (10, 'x', 'x10'), (1, 'y', 'y1')"));
        let (names, _) = same(connector.as_ref(), "public.t", insert).await;
        assert_eq!(names, ["a", "b", "label"]);
        let mut reader = connector.reader().await.unwrap();
        for size in [1, 2, 3, 4] {
            let found = labels(reader.as_mut(), "public.t", size, (None, None)).await;
            assert_eq!(found, ["x2", "x10", "y1"], "{table} {size}");
        }
    }
}

/// Every kind of key, with values whose order in the server is not the order of their texts.
const KEYS: [(&str, &str, &str); 30] = [
    ("int", "int PRIMARY KEY", "(-5), (9), (10), (0), (2147483647), (-2147483648)"),
    (
        "text",
        "text COLLATE \"C\" PRIMARY KEY",
        "(''), ('B'), ('a'), ('é'), ('😀'), (E'\\\\'), (''''), (E'a\\nb'), ('$$'), ('\"')",
    ),
    ("icu", "text COLLATE \"und-x-icu\" PRIMARY KEY", "('B'), ('a'), ('é'), ('f'), ('E'), ('ß'), ('ss'), ('')"),
    ("loose", "text COLLATE public.loose PRIMARY KEY", "('B'), ('a'), ('é'), ('f'), ('E'), ('')"),
    ("citext", "public.citext PRIMARY KEY", "('B'), ('a'), ('C'), ('d'), ('Z'), ('_'), ('E')"),
    ("varchar", "varchar(3) PRIMARY KEY", "('abc'), ('b'), (''), ('ab ')"),
    ("char_n", "char(4) PRIMARY KEY", "('a'), ('abcd'), (''), (E'a\\t'), ('B')"),
    ("one_byte", "\"char\" PRIMARY KEY", "('a'), ('B'), (''), ('~'), ('''')"),
    ("name", "name PRIMARY KEY", "('a'), ('B'), ('_'), ('')"),
    (
        "uuid",
        "uuid PRIMARY KEY",
        "('A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'), ('00000000-0000-0000-0000-000000000000'), ('ffffffff-ffff-ffff-ffff-ffffffffffff')",
    ),
    ("mood", "public.\"Mood\" PRIMARY KEY", "('sad'), ('it''s ok'), ('happy')"),
    ("moods", "public.\"Mood\"[] PRIMARY KEY", "('{sad}'), ('{happy,sad}'), ('{}'), ('{\"it''s ok\"}')"),
    ("domain", "public.price PRIMARY KEY", "(-1), (9.5), (10), (1.25)"),
    ("strict", "public.strict COLLATE \"C\" PRIMARY KEY", "('B'), ('a'), ('é')"),
    ("domain_of_mood", "public.temper PRIMARY KEY", "('sad'), ('it''s ok'), ('happy')"),
    (
        "timestamptz",
        "timestamptz PRIMARY KEY",
        "('infinity'), ('-infinity'), ('2026-01-02 03:04:05.123456+05:45'), ('0044-03-15 00:00:00+00 BC'), ('294276-12-31 23:59:59.999999+00')",
    ),
    ("timestamp", "timestamp(3) PRIMARY KEY", "('infinity'), ('2026-01-02 03:04:05.123'), ('2026-01-02 03:04:05.124')"),
    ("date", "date PRIMARY KEY", "('infinity'), ('-infinity'), ('2026-01-02'), ('0044-03-15 BC'), ('5874897-12-31')"),
    ("time", "time PRIMARY KEY", "('24:00:00'), ('03:04:05.12'), ('00:00:00')"),
    ("interval", "interval PRIMARY KEY", "('1 year'), ('-1 mons +2 days -00:00:01'), ('00:00:01.5')"),
    ("numeric", "numeric PRIMARY KEY", "('NaN'), ('-Infinity'), (1.0), (9), (10), (-0.5), (123456789012345678901234567890.1)"),
    (
        "float8",
        "float8 PRIMARY KEY",
        "('NaN'), ('-Infinity'), ('Infinity'), (0.1::float8 + 0.2::float8), (0.3), (1e300), (5e-324), ('-0')",
    ),
    ("float4", "float4 PRIMARY KEY", "('NaN'), (1.1), (1e-45), (16777216)"),
    ("bytea", "bytea PRIMARY KEY", "('\\x'), ('\\x00'), ('\\x00ff'), ('\\xff'), ('\\x5c27')"),
    ("boolean", "boolean PRIMARY KEY", "(true), (false)"),
    ("inet", "inet PRIMARY KEY", "('10.0.0.1/8'), ('9.0.0.0'), ('::1'), ('10.0.0.1')"),
    ("bits", "bit(3) PRIMARY KEY", "('101'), ('010'), ('011')"),
    ("money", "money PRIMARY KEY", "('1234.5'), ('-0.5'), ('99')"),
    ("pair", "public.pair PRIMARY KEY", "((7, 'x \"y\"')), ((7, 'a')), ((-1, ''''))"),
    ("ranges", "int4range PRIMARY KEY", "('[1,5)'), ('empty'), ('(,3]'), ('[1,)')"),
];

const TYPES_OF_KEYS: &str = "CREATE TYPE public.\"Mood\" AS ENUM ('sad', 'it''s ok', 'happy');
    CREATE DOMAIN public.price AS numeric(10,2); CREATE DOMAIN public.temper AS public.\"Mood\";
    CREATE DOMAIN public.strict AS text COLLATE \"und-x-icu\";
    CREATE TYPE public.pair AS (a int, b text);
    CREATE COLLATION public.loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";

/// `citext` is of the contributed modules, which a server may lack. What matters of it is that its order has operators of its own in a
/// schema of its own; a type made here has that too.
fn create_citext(server: &Postgres, database: &str) {
    if server.sql(database, "SELECT count(*) FROM pg_available_extensions WHERE name = 'citext'") == "1" {
        server.sql(database, "CREATE EXTENSION citext SCHEMA public");
        return;
    }
    let mut sql = "CREATE TYPE public.citext;
        CREATE FUNCTION public.citextin(cstring) RETURNS public.citext AS 'textin' LANGUAGE internal IMMUTABLE STRICT;
        CREATE FUNCTION public.citextout(public.citext) RETURNS cstring AS 'textout' LANGUAGE internal IMMUTABLE STRICT;
        CREATE TYPE public.citext (INPUT = public.citextin, OUTPUT = public.citextout, LIKE = text, CATEGORY = 'S');
        CREATE CAST (public.citext AS text) WITHOUT FUNCTION AS IMPLICIT;
        CREATE CAST (text AS public.citext) WITHOUT FUNCTION AS ASSIGNMENT;
        CREATE FUNCTION public.citext_cmp(public.citext, public.citext) RETURNS int LANGUAGE sql IMMUTABLE STRICT AS
        'SELECT pg_catalog.bttextcmp(lower($1::text) COLLATE \"C\", lower($2::text) COLLATE \"C\")';"
        .to_owned();
    let operators = [("lt", "<"), ("le", "<="), ("eq", "="), ("ge", ">="), ("gt", ">")];
    for (name, operator) in operators {
        sql.push_str(&format!(
            "CREATE FUNCTION public.citext_{name}(public.citext, public.citext) RETURNS boolean LANGUAGE sql IMMUTABLE STRICT AS
             'SELECT public.citext_cmp($1, $2) {operator} 0';
             CREATE OPERATOR public.{operator} (LEFTARG = public.citext, RIGHTARG = public.citext, FUNCTION = public.citext_{name});"
        ));
    }
    let list: Vec<String> = operators.iter().zip(1..).map(|((_, name), at)| format!("OPERATOR {at} public.{name}")).collect();
    sql.push_str(&format!(
        "CREATE OPERATOR CLASS public.citext_ops DEFAULT FOR TYPE public.citext USING btree AS {}, FUNCTION 1 public.citext_cmp(public.citext, public.citext)",
        list.join(", ")
    ));
    server.sql(database, &sql);
}

/// The labels in the server's own order.
fn in_order(server: &Postgres, database: &str, table: &str, key: &str) -> Vec<String> {
    server.sql(database, &format!("SELECT label FROM {table} ORDER BY {key}")).lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn any_key_cuts_its_table_so_that_every_row_comes_once_and_in_order() {
    let (server, database) = (shared(), shared().database());
    server.sql(&database, TYPES_OF_KEYS);
    create_citext(server, &database);
    for (table, column, values) in KEYS {
        server.sql(
            &database,
            &format!("CREATE TABLE by_{table} (label serial, k {column}); INSERT INTO by_{table} (k) VALUES {values}"),
        );
    }
    let (_, mut reader) = reader(server, &database).await;
    for (table, ..) in KEYS {
        let name = format!("public.by_{table}");
        let wanted = in_order(server, &database, &format!("by_{table}"), "k");
        assert!(wanted.len() > 1);
        for size in [1, 2, 7] {
            assert_eq!(labels(reader.as_mut(), &name, size, (None, None)).await, wanted, "{table} by {size}");
        }
        // Each key is a bound that belongs to what is before it, and finds its own row.
        let (_, all) = chunk(reader.as_mut(), &first(&name, 100)).await;
        assert_eq!(rows(&all).len(), wanted.len());
        let mut after: Option<Cursor> = None;
        for (at, label) in wanted.iter().enumerate() {
            let (read, _) = chunk(reader.as_mut(), &ChunkRequest { after: after.clone(), ..first(&name, 1) }).await;
            let end = read.end.expect("a key");
            let upto = labels(reader.as_mut(), &name, 7, (None, Some(end.clone()))).await;
            assert_eq!(upto, wanted[..=at], "{table}");
            let keys = Some(Arc::new(vec![end.clone()]));
            let (_, batch) = chunk(reader.as_mut(), &ChunkRequest { keys, ..first(&name, 9) }).await;
            let found: Vec<String> = rows(&batch).into_iter().map(|row| text(batch.value(row, 0))).collect();
            assert_eq!(found, std::slice::from_ref(label), "{table}");
            after = Some(end);
        }
    }
}

/// The session finds no operators of an extension by itself: `citext` was compared as text, where Z is less than m, and rows were left out;
/// a type without that way out was refused.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_asks_for_is_compared_in_the_order_of_its_own_type() {
    let (server, database) = (shared(), shared().database());
    server.sql(&database, TYPES_OF_KEYS);
    create_citext(server, &database);
    for (table, column, values) in KEYS {
        server.sql(
            &database,
            &format!("CREATE TABLE by_{table} (label serial, k {column}); INSERT INTO by_{table} (k) VALUES {values}"),
        );
    }
    let (connector, mut reader) = reader(server, &database).await;
    let tables = connector.tables().await.unwrap();
    for (table, ..) in KEYS {
        let name = format!("public.by_{table}");
        let schema = &tables.iter().find(|found| found.schema.table == name).expect("the table").schema;
        let wanted = in_order(server, &database, &format!("by_{table}"), "k");
        let mut after: Option<Cursor> = None;
        for (at, label) in wanted.iter().enumerate() {
            let (read, _) = chunk(reader.as_mut(), &ChunkRequest { after: after.clone(), ..first(&name, 1) }).await;
            let key = read.end.expect("a key");
            let mut found = async |condition: Condition<'_>| -> Vec<String> {
                let filter = Some(connector.condition(schema, &condition).await.unwrap());
                let (_, batch) = chunk(reader.as_mut(), &ChunkRequest { filter, ..first(&name, 100) }).await;
                rows(&batch).into_iter().map(|row| text(batch.value(row, 0))).collect()
            };
            assert_eq!(found(Condition::From { column: "k", value: &key[0] }).await, wanted[at..], "{table}");
            assert_eq!(found(Condition::Keys(std::slice::from_ref(&key))).await, std::slice::from_ref(label), "{table}");
            after = Some(key);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_several_columns_and_odd_names() {
    let (server, database) = (shared(), shared().database());
    server.sql(&database, TYPES_OF_KEYS);
    create_citext(server, &database);
    let odd = "\"Odd \"\"it\"\" 😀.x\"";
    server.sql(
        &database,
        &format!(
            "CREATE TABLE three (a text COLLATE \"und-x-icu\", b int, c timestamptz, label serial, PRIMARY KEY (c, a, b));
             INSERT INTO three SELECT t, i, c FROM unnest(ARRAY['b', 'B', 'é', '']) t, generate_series(9, 11) i, unnest(ARRAY['infinity', '2026-01-01 00:00:00+00']::timestamptz[]) c;
             CREATE TABLE mixed (a public.citext, b int, c public.\"Mood\", label serial, PRIMARY KEY (b, a, c));
             INSERT INTO mixed SELECT t::public.citext, i, m FROM unnest(ARRAY['b', 'A', 'c', 'D']) t, generate_series(9, 11) i, unnest(ARRAY['happy', 'sad']::public.\"Mood\"[]) m;
             CREATE TABLE {odd} (\"Key.\"\"1\" text, \"order\" int, label serial, PRIMARY KEY (\"Key.\"\"1\", \"order\"));
             INSERT INTO {odd} SELECT t, i FROM unnest(ARRAY['x''', '\"']) t, generate_series(9, 11) i"
        ),
    );
    let (_, mut reader) = reader(server, &database).await;
    let cases = [
        ("three", "public.three", "c, a, b"),
        ("mixed", "public.mixed", "b, a, c"),
        (odd, "public.Odd \"it\" 😀.x", "\"Key.\"\"1\", \"order\""),
    ];
    for (quoted, name, key) in cases {
        let wanted = in_order(server, &database, quoted, key);
        for size in [1, 2, 7] {
            assert_eq!(labels(reader.as_mut(), name, size, (None, None)).await, wanted, "{name} by {size}");
        }
        let (read, _) = chunk(reader.as_mut(), &first(name, 4)).await;
        let cut = read.end.expect("a key");
        let upto = labels(reader.as_mut(), name, 3, (None, Some(cut.clone()))).await;
        assert_eq!([upto, labels(reader.as_mut(), name, 3, (Some(cut.clone()), None)).await].concat(), wanted);
        let (next, _) = chunk(reader.as_mut(), &ChunkRequest { after: Some(cut.clone()), ..first(name, 1) }).await;
        let keys = Some(Arc::new(vec![next.end.expect("a key"), cut]));
        let (_, batch) = chunk(reader.as_mut(), &ChunkRequest { keys, ..first(name, 9) }).await;
        let at = batch.schemas()[0].columns.len() - 1;
        let found: Vec<String> = rows(&batch).into_iter().map(|row| text(batch.value(row, at))).collect();
        assert_eq!(found, wanted[3..5], "{name}");
    }
    let (_, none) = chunk(reader.as_mut(), &ChunkRequest { keys: Some(Arc::default()), ..first("public.three", 9) }).await;
    assert!(none.changes().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_table_is_cut_into_ranges_that_hold_every_row_once() {
    let (server, database) = (shared(), shared().database());
    server.sql(
        &database,
        "CREATE TABLE t (k text COLLATE \"C\", n int, label int, PRIMARY KEY (k, n));
         INSERT INTO t SELECT CASE WHEN i % 2 = 0 THEN 'Key ' ELSE 'key ' END || i / 10, i, i FROM generate_series(1, 200000) i; ANALYZE t;
         CREATE TABLE small (k int PRIMARY KEY, label int); INSERT INTO small VALUES (1, 1); ANALYZE small",
    );
    let (_, mut reader) = reader(server, &database).await;
    let bounds = reader.split("public.t", 4).await.unwrap();
    assert!((2..=3).contains(&bounds.len()), "{bounds:?}");
    let mut found = Vec::new();
    let mut after = None;
    for until in bounds.into_iter().map(Some).chain([None]) {
        let range = labels(reader.as_mut(), "public.t", 20_000, (after, until.clone())).await;
        assert!((5_000..150_000).contains(&range.len()), "of like size: {}", range.len());
        found.extend(range);
        after = until;
    }
    assert!(found == in_order(server, &database, "t", "k, n"), "the ranges hold another set than the table");
    for table in ["public.small", "public.t"] {
        assert!(reader.split(table, 1).await.unwrap().is_empty());
    }
    assert!(reader.split("public.small", 16).await.unwrap().is_empty());
    assert_eq!(labels(reader.as_mut(), "public.small", 5, (None, None)).await, ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_without_rows_with_one_and_with_all_the_columns_there_can_be() {
    let (server, database) = (shared(), shared().database());
    let columns: String = (2..=1600).map(|at| format!(", c{at} boolean")).collect();
    server.sql(
        &database,
        &format!(
            "CREATE TABLE empty (id int PRIMARY KEY, label int); CREATE TABLE one (id int PRIMARY KEY, label int);
             INSERT INTO one VALUES (1, 1); CREATE TABLE heir (more int, PRIMARY KEY (id)) INHERITS (one); INSERT INTO heir VALUES (2, 2);
             CREATE TABLE wide (id int PRIMARY KEY{columns}); INSERT INTO wide (id, c2, c1600) VALUES (1, true, true), (2, false, true)"
        ),
    );
    let (_, mut reader) = reader(server, &database).await;
    let (read, batch) = chunk(reader.as_mut(), &first("public.empty", 9)).await;
    assert!(read.end.is_none() && batch.changes().is_empty());
    for size in [1, 2] {
        assert_eq!(labels(reader.as_mut(), "public.one", size, (None, None)).await, ["1"], "without what inherits");
    }
    assert_eq!(labels(reader.as_mut(), "public.heir", 9, (None, None)).await, ["2"]);
    let (_, batch) = chunk(reader.as_mut(), &first("public.wide", 9)).await;
    let rows = rows(&batch);
    assert_eq!((rows.len(), batch.values(rows[1]).count()), (2, 1600));
    assert_eq!(batch.values(rows[0]).filter(|value| *value == Value::Bool(true)).count(), 2);
}

/// Narrow rows first, so that the reader expects more of them.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_become_a_megabyte_wide_do_not_overfill_a_batch() {
    let (server, database) = (shared(), shared().database());
    server.sql(
        &database,
        "CREATE TABLE t (id int PRIMARY KEY, label int, big text);
         INSERT INTO t SELECT i, i, CASE WHEN i > 3000 THEN repeat('0123456789abcdef', 65536) END FROM generate_series(1, 3060) i",
    );
    let (_, mut reader) = reader(server, &database).await;
    let (mut after, mut found, mut largest) = (None, Vec::new(), 0);
    loop {
        let request = ChunkRequest { after: after.take(), max_bytes: 2 << 20, ..first("public.t", 50_000) };
        let (read, batch) = chunk(reader.as_mut(), &request).await;
        largest = largest.max(batch.size_bytes());
        found.extend(rows(&batch).into_iter().map(|row| text(batch.value(row, 1))));
        let Some(end) = read.end else { break };
        after = Some(end);
    }
    assert!(found == (1..=3060).map(|i| i.to_string()).collect::<Vec<_>>(), "{} rows", found.len());
    assert!(((2 << 20)..(5 << 20)).contains(&largest), "{largest} bytes in a batch");
}

/// A comparison that the key's index does not understand reads the table from its beginning for every chunk.
#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_reads_no_more_of_the_index_than_its_own_rows() {
    let (server, database) = (shared(), shared().database());
    server.sql(&database, &format!("{TYPES_OF_KEYS}; CREATE DOMAIN public.word AS text COLLATE \"C\""));
    create_citext(server, &database);
    let cases = [
        ("int", "i"),
        ("varchar(9)", "'k' || i"),
        ("char(9)", "'k' || i"),
        ("public.word", "'k' || i"),
        ("public.citext", "('k' || i)::text::public.citext"),
        ("public.price", "i"),
        ("uuid", "md5(i::text)::uuid"),
    ];
    for (at, (column, value)) in cases.into_iter().enumerate() {
        server.sql(
            &database,
            &format!(
                "CREATE TABLE one_{at} (k {column} PRIMARY KEY, label int); INSERT INTO one_{at} SELECT {value}, i FROM generate_series(1, 4000) i;
                 CREATE TABLE two_{at} (n int, k {column}, label int, PRIMARY KEY (k, n)); INSERT INTO two_{at} SELECT i, {value}, i FROM generate_series(1, 4000) i"
            ),
        );
    }
    let (connector, mut reader) = reader(server, &database).await;
    for at in 0..cases.len() {
        for table in [format!("one_{at}"), format!("two_{at}")] {
            let name = format!("public.{table}");
            let middle = server.sql(&database, &format!("SET enable_indexscan = off; SET enable_indexonlyscan = off; SELECT k FROM {table} ORDER BY k OFFSET 2000 LIMIT 1"));
            let after = if table.starts_with("one") { vec![middle] } else { vec![middle, "0".to_owned()] };
            let (read, batch) = chunk(reader.as_mut(), &ChunkRequest { after: Some(after), ..first(&name, 20) }).await;
            assert_eq!(rows(&batch).len(), 20);
            let keys = Some(Arc::new(vec![read.end.clone().unwrap(), read.end.unwrap()]));
            let (_, batch) = chunk(reader.as_mut(), &ChunkRequest { keys, ..first(&name, 20) }).await;
            assert_eq!(rows(&batch).len(), 1, "{table}");
        }
    }
    reader.close().await;
    drop(connector);
    // What sessions counted is told when they end.
    let sql = "SELECT count(*) FROM pg_stat_user_indexes WHERE idx_scan < 2";
    support::eventually("the counts are told", || server.sql(&database, sql) == "0");
    let many = "SELECT relname, idx_tup_read FROM pg_stat_user_indexes WHERE idx_tup_read > 200";
    assert_eq!(server.sql(&database, many), "");
}

/// What takes longer than a statement may is looked for piece by piece.
#[tokio::test(flavor = "multi_thread")]
async fn a_condition_that_few_rows_meet_still_gets_further_with_every_chunk() {
    let (server, database) = (shared(), shared().database());
    server.sql(
        &database,
        "CREATE TABLE t (id int PRIMARY KEY, label int); INSERT INTO t SELECT i, i FROM generate_series(1, 3000) i",
    );
    let (_, mut reader) = reader(server, &database).await;
    let met = "label IN (2990, 17, 2000) -- some".to_owned();
    let quick = ChunkRequest { filter: Some(met.clone()), ..first("public.t", 50) };
    let (read, batch) = chunk(reader.as_mut(), &quick).await;
    assert!(rows(&batch).len() == 3 && read.end.is_none(), "at once if it does not take long");
    let slow = format!("CASE WHEN id % 100 = 0 AND pg_sleep(0.1) IS NULL THEN false ELSE {met}\n END");
    let (read, batch) = chunk(reader.as_mut(), &ChunkRequest { filter: Some(slow.clone()), ..quick.clone() }).await;
    assert_eq!(rows(&batch).len(), 1);
    let end = read.end.expect("a part of the table only");
    assert!(end[0].parse::<i32>().unwrap() < 1000, "{end:?}");
    let rest = ChunkRequest { filter: Some(slow), after: Some(end), ..quick.clone() };
    assert_eq!(found_anywhere(reader.as_mut(), &rest).await, ["2000", "2990"]);
    for max_rows in [1, 2, 3, 10_000] {
        let request = ChunkRequest { max_rows, ..quick.clone() };
        assert_eq!(found_anywhere(reader.as_mut(), &request).await, ["17", "2000", "2990"]);
    }
    let until = Some(vec!["2000".to_owned()]);
    let found = found_anywhere(reader.as_mut(), &ChunkRequest { until, after: Some(vec!["17".into()]), ..quick }).await;
    assert_eq!(found, ["2000"]);
}
