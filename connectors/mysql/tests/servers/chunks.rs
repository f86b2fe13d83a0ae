//! Rows that are in tables already, chunk by chunk, on both flavours.

use std::{
    collections::HashSet,
    sync::OnceLock,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use headwater_connector::{
    Batch, Chunk, ChunkRead, ChunkRequest, Condition, ConnectorKind, Limits, Source, SourceConnector, SourceContext, TableReader,
};
use serde_json::json;

use crate::{
    support::{Flavour, Server, on_both, shared, show, start},
    types::{Written, chunk_and_stream_have_the_same},
};

/// A request for all rows of a table.
pub fn whole(table: &str) -> ChunkRequest {
    let table = table.to_owned();
    let (max_rows, max_bytes) = (1_000_000, 64 << 20);
    ChunkRequest { table, after: None, until: None, filter: None, keys: None, max_rows, max_bytes, gate: None }
}

/// Reads a chunk; what waits for something gets it before long.
pub async fn chunk(reader: &mut dyn TableReader, request: &ChunkRequest, batch: &mut Batch) -> Chunk {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match reader.read(request, batch).await.unwrap_or_else(|error| panic!("{}: {error}", request.table)) {
            ChunkRead::Rows(chunk) => return chunk,
            ChunkRead::Waiting(words) => assert!(Instant::now() < deadline, "it still waits for {words}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Reads a table in chunks of so many rows; the rows' cells as text, in the order in which they came.
async fn in_pieces(reader: &mut dyn TableReader, table: &str, rows: usize, filter: Option<&str>) -> Vec<String> {
    let mut request = ChunkRequest { max_rows: rows, filter: filter.map(str::to_owned), ..whole(table) };
    let mut found = Vec::new();
    loop {
        let mut batch = Batch::default();
        let read = chunk(reader, &request, &mut batch).await;
        assert!(batch.changes().len() <= rows, "{table}");
        for change in batch.changes() {
            let row: Vec<String> = batch.values(change.after.expect("a row")).map(show).collect();
            found.push(row.join(","));
        }
        match read.end {
            Some(end) => request.after = Some(end),
            None => return found,
        }
        assert!(found.len() < 10_000, "{table} has no end");
    }
}

/// A connector over a database whose stream is open, and a reader of it.
async fn opened(flavour: Flavour, database: &str) -> (Box<dyn SourceConnector>, Box<dyn Source>, Box<dyn TableReader>) {
    let connector = shared(flavour).connector(database, json!({}));
    let first = start(&*connector).await;
    let source = connector.open(&first.identity, &first.position).await.unwrap_or_else(|error| panic!("{error}"));
    let reader = connector.reader().await.expect("a reader");
    (connector, source, reader)
}

/// The same where the config names the key of the database's table `t`.
async fn opened_with_key(
    server: &Server,
    database: &str,
    key: &[&str],
) -> (Box<dyn SourceConnector>, Box<dyn Source>, Box<dyn TableReader>) {
    let keys = vec![(format!("{database}.t"), key.iter().map(|&column| column.to_owned()).collect())];
    let context = SourceContext { connector: database.into(), prefix: "hw".into(), keys };
    let options = json!({ "url": server.url(), "tables": [format!("{database}.*")], "backfill": "never" });
    let connector = headwater_mysql::MYSQL.source(&context, options).unwrap_or_else(|faults| panic!("{faults:?}"));
    let first = start(&*connector).await;
    let source = connector.open(&first.identity, &first.position).await.unwrap_or_else(|error| panic!("{error}"));
    let reader = connector.reader().await.expect("a reader");
    (connector, source, reader)
}

/// Keys whose order only the server knows: what they are of, and rows.
const KEYS: [(&str, &str, &str); 12] = [
    (
        "a varchar(20) COLLATE utf8mb4_general_ci",
        "a",
        "('b'),('A'),('ä2'),('Z'),('a1'),('é'),(''),('ß'),('x''y\\\\'),('😀'),('B2')",
    ),
    ("a varchar(20) CHARACTER SET latin1 COLLATE latin1_german2_ci", "a", "('b'),('Ä'),('ae1'),('Z'),('ö'),('x'),('y'),('ü')"),
    ("a char(9) CHARACTER SET gbk", "a", "('你'),('好'),('a'),('B'),('中'),('文'),('z')"),
    ("a varchar(9) CHARACTER SET utf16", "a", "('你'),('好'),('a'),('B'),('中'),('文'),('z')"),
    ("a bigint unsigned", "a", "(0),(1),(9223372036854775807),(9223372036854775808),(18446744073709551615),(7),(8),(9)"),
    ("a enum('z','m','a','')", "a", "('z'),('m'),('a'),(''),(0)"),
    ("a set('z','m','a')", "a", "('z'),('m'),('a'),('z,a'),(''),('m,a'),('z,m,a')"),
    ("a binary(3)", "a", "(x'00'),(x'0000ff'),(x'ff'),(x'41'),(x'2700'),(x'5c')"),
    ("a varbinary(30), b bit(9)", "a, b", "(x'00',1),(x'00',2),('',511),(x'5c27',0),(x'5c27',256),(x'ff',5)"),
    (
        "a int, b varchar(9), c date",
        "a, b, c",
        "(1,'x','2026-01-01'),(1,'x','0000-00-00'),(1,'y','2026-01-01'),(-5,'x','2026-01-01'),(1,'X2','2024-02-00'),(2,'','2026-01-01')",
    ),
    ("a decimal(30,10), b year", "a, b", "(1.5,2026),(1.5,0000),(-99999999999999999999.0000000001,1999),(0,2155),(1.5,2000)"),
    (
        "a timestamp(3), b time(6), c double",
        "a, b, c",
        "('2026-01-01 00:00:00.5','-838:59:59',0.1),('2026-01-01 00:00:00.5','-00:00:00.000001',0.1),('2026-01-01 00:00:00.5','01:00:00',0.1),('2026-01-01 00:00:00.5','01:00:00',0.30000000000000004),('1999-01-01 00:00:00','01:00:00',-1e300)",
    ),
];

async fn every_key_is_read_in_pieces_in_the_servers_order(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    let mut sql = format!("USE {database};\nSET sql_mode = '';\n");
    for (at, (columns, key, rows)) in KEYS.iter().enumerate() {
        sql.push_str(&format!(
            "CREATE TABLE k{at} ({columns}, v int DEFAULT 1, PRIMARY KEY ({key}));\nINSERT INTO k{at} ({key}) VALUES {rows};\n"
        ));
    }
    server.sql(&sql);
    let (_connector, _source, mut reader) = opened(flavour, &database).await;
    for (at, key) in KEYS.iter().enumerate() {
        let table = format!("{database}.k{at}");
        let all = in_pieces(&mut *reader, &table, 1000, None).await;
        let count: usize = server.sql(&format!("SELECT count(*) FROM {table}")).parse().expect("a number");
        assert_eq!(all.len(), count, "{key:?}");
        for rows in [1, 2, 3] {
            assert_eq!(in_pieces(&mut *reader, &table, rows, None).await, all, "{key:?} by {rows}");
        }
    }
    reader.close().await;
}

async fn a_condition_that_few_rows_meet_is_read_to_the_end(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    let rows: Vec<String> = (0..1000).map(|id| format!("({id},{})", id % 7)).collect();
    server.sql(&format!("USE {database};\nCREATE TABLE t (id int PRIMARY KEY, v int);\nINSERT INTO t VALUES {}", rows.join(",")));
    let (connector, _source, mut reader) = opened(flavour, &database).await;
    let table = format!("{database}.t");
    assert_eq!(in_pieces(&mut *reader, &table, 10, Some("id = 993 -- the last")).await, ["993,6"]);
    assert_eq!(in_pieces(&mut *reader, &table, 10, Some("v = 6")).await.len(), 142);
    for wrong in ["1) OR (1", "nothing = 1", "1; DROP TABLE t", "1 LIMIT 1", "1 /*"] {
        let request = ChunkRequest { filter: Some(wrong.to_owned()), ..whole(&table) };
        let error = reader.read(&request, &mut Batch::default()).await.err().unwrap_or_else(|| panic!("{wrong} was read"));
        assert_eq!(error.code().id, "HW3039", "{wrong}: {error}");
    }
    let tables = connector.tables().await.unwrap_or_else(|errors| panic!("{errors:?}"));
    let wrong = connector.condition(&tables[0].schema, &Condition::From { column: "id", value: "1 OR 1" }).await;
    assert_eq!(wrong.expect_err("no number").code().id, "HW3039");
    reader.close().await;
}

async fn a_table_is_split_where_its_rows_are(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    let digits: Vec<String> = (0..500).map(|n| format!("({n})")).collect();
    server.sql(&format!(
        "USE {database};\nCREATE TABLE d (n int PRIMARY KEY);\nINSERT INTO d VALUES {};\nCREATE TABLE t (a int, b int, PRIMARY KEY (a, b));\n\
         INSERT INTO t SELECT a.n - 250, b.n FROM d a JOIN d b;\nANALYZE TABLE t",
        digits.join(",")
    ));
    let (_connector, _source, mut reader) = opened(flavour, &database).await;
    let table = format!("{database}.t");
    assert_eq!(reader.split(&table, 4).await.expect("cuts"), [["-126", "0"], ["-1", "0"], ["124", "0"]]);
    assert!(reader.split(&format!("{database}.d"), 4).await.expect("cuts").is_empty(), "it is small");
    let mut batch = Batch::default();
    let request = ChunkRequest {
        after: Some(vec!["-126".into(), "498".into()]),
        until: Some(vec!["-125".into(), "1".into()]),
        ..whole(&table)
    };
    let read = chunk(&mut *reader, &request, &mut batch).await;
    assert_eq!((batch.changes().len(), read.end), (3, None));
    reader.close().await;
}

async fn a_table_that_cannot_be_read_says_why(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    server.sql(&format!(
        "USE {database};\nCREATE TABLE t (id int PRIMARY KEY);\nINSERT INTO t VALUES (1);\nCREATE TABLE m (id int PRIMARY KEY) ENGINE = MyISAM"
    ));
    let (_connector, _source, mut reader) = opened(flavour, &database).await;
    for (table, code) in [("m", "HW3036"), ("gone", "HW3036")] {
        let read = reader.read(&whole(&format!("{database}.{table}")), &mut Batch::default()).await;
        assert_eq!(read.err().expect("it cannot be read").code().id, code, "{table}");
    }
    // A table that is held is waited for a little, and read when it is free.
    let held = server.hold(&format!("LOCK TABLES {database}.t WRITE"));
    let read = reader.read(&whole(&format!("{database}.t")), &mut Batch::default()).await;
    assert_eq!(read.err().expect("it is locked").code().id, "HW3040");
    drop(held);
    let mut batch = Batch::default();
    let first = chunk(&mut *reader, &whole(&format!("{database}.t")), &mut batch).await;
    assert_eq!(batch.changes().len(), 1);
    // One that was made anew is another one, as soon as the server's clock of whole seconds shows it.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        server.sql(&format!("USE {database};\nDROP TABLE t;\nCREATE TABLE t (id int PRIMARY KEY)"));
        let again = chunk(&mut *reader, &whole(&format!("{database}.t")), &mut Batch::default()).await;
        if again.table_id != first.table_id {
            break;
        }
        assert!(Instant::now() < deadline, "it is still {}", first.table_id);
    }
    reader.close().await;
}

/// The catalogue writes what a label holds with escapes, which were taken for the label's own letters.
async fn labels_with_backslashes_were_others_in_a_chunk(flavour: Flavour) {
    let labels = [r"C:\\tmp", "it''s", r"n\nl", r"r\rr", r"z\0z", r"t\tt", r"ctl\Zx", r"pc\%x", r"two\\\\n", r"end\\", "é\"q"];
    let list = labels.map(|label| format!("'{label}'")).join(",");
    let rows = (1..=labels.len()).map(|at| format!("{at}, {at}, {}", 1 << (at - 1))).collect();
    let table = (format!("id int PRIMARY KEY, e enum({list}), s set({list})"), "id, e, s".to_owned(), rows);
    let images = chunk_and_stream_have_the_same(flavour, &[table]).await;
    assert!(format!("{images:?}").contains(r#"Text(\"C:\\\\tmp\")"#), "{images:?}");
}

/// Without a primary key the first of the alphabet was taken, and the server takes the first that was made.
async fn the_unique_index_that_the_server_promoted_was_not_the_key_of_a_chunk(flavour: Flavour) {
    let numbers = "a INT NOT NULL, b INT NOT NULL, c INT NOT NULL";
    let text = "a varchar(20) NOT NULL, b INT NOT NULL, c INT NOT NULL";
    let tables = [
        (numbers, "UNIQUE KEY z (a), UNIQUE KEY y (b)", vec!["a"]),
        (numbers, "UNIQUE KEY z (b, a), UNIQUE KEY y (c)", vec!["b", "a"]),
        (text, "UNIQUE KEY a (a(5)), UNIQUE KEY z (c), UNIQUE KEY b (b)", vec!["c"]),
    ];
    let rows = vec!["1, 2, 3".to_owned(), "4, 5, 6".to_owned()];
    let written: Vec<Written> = tables
        .iter()
        .map(|(columns, indexes, _)| (format!("{columns}, {indexes}"), "a, b, c".to_owned(), rows.clone()))
        .collect();
    let images = chunk_and_stream_have_the_same(flavour, &written).await;
    for (found, (.., key)) in images.values().zip(&tables) {
        assert_eq!(found[0].0.key_names(), *key);
    }
}

/// The server breaks the lines of a long text of bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_bytes_in_a_document_were_one_line_in_the_stream_only() {
    let rows = [0, 1, 56, 57, 58, 114, 115, 1000]
        .map(|len| format!("{len}, JSON_OBJECT('b', CAST(REPEAT('x', {len}) AS BINARY))"))
        .into();
    let table = ("id int PRIMARY KEY, d json".to_owned(), "id, d".to_owned(), rows);
    chunk_and_stream_have_the_same(Flavour::Mysql, &[table]).await;
}

/// A server whose sessions get little of everything unless they ask for more.
fn cramped(flavour: Flavour) -> &'static Server {
    static CRAMPED: [OnceLock<Server>; 2] = [const { OnceLock::new() }; 2];
    CRAMPED[flavour as usize].get_or_init(|| {
        let server = Server::start(flavour, &["--max-sort-length=8", "--sort-buffer-size=32768"]);
        server.sql("SET GLOBAL sql_select_limit = 3");
        server
    })
}

/// The server cuts every answer where it is told to, and says nothing of it.
async fn tables_and_columns_behind_the_servers_limit_of_rows_were_missing(flavour: Flavour) {
    let server = cramped(flavour);
    let database = server.database();
    let tables: Vec<String> =
        (0..5).map(|at| format!("CREATE TABLE t{at} (a int PRIMARY KEY, b int, c int, d int, e int)")).collect();
    server.sql(&format!("USE {database};\n{}", tables.join(";\n")));
    let found = server.connector(&database, json!({})).tables().await.unwrap_or_else(|errors| panic!("{errors:?}"));
    assert_eq!(found.iter().map(|table| table.schema.columns.len()).collect::<Vec<_>>(), [5; 5]);
}

/// A chunk that has no index to read by sorted what it read by the first letters of each value, and rows that share them were passed by.
async fn rows_that_begin_alike_were_skipped(flavour: Flavour) {
    let server = cramped(flavour);
    let database = server.database();
    let beginning = "a".repeat(600);
    let rows: Vec<String> = (0..40).map(|id| format!("({id}, '{beginning}{:02}')", (id * 7) % 40)).collect();
    server.sql(&format!(
        "USE {database};\nCREATE TABLE t (id int PRIMARY KEY, url varchar(700) NOT NULL);\nINSERT INTO t VALUES {};\n\
         CREATE TABLE p (url longtext NOT NULL, id int, PRIMARY KEY (url(602)));\nINSERT INTO p SELECT url, id FROM t",
        rows.join(",")
    ));
    let (_connector, _source, mut reader) = opened_with_key(server, &database, &["url", "id"]).await;
    for table in ["t", "p"] {
        let found = in_pieces(&mut *reader, &format!("{database}.{table}"), 3, None).await;
        assert_eq!(found.len(), 40, "{table}");
    }
    reader.close().await;
}

/// An index that the optimizer must not use cannot be named in a statement.
async fn a_chunk_was_read_by_an_index_that_is_hidden(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    let hidden = if flavour == Flavour::Mysql { "INVISIBLE" } else { "IGNORED" };
    server.sql(&format!(
        "USE {database};\nCREATE TABLE t (id int PRIMARY KEY, e int NOT NULL, UNIQUE u (e) {hidden});\n\
         INSERT INTO t VALUES (1, 30), (2, 20), (3, 10)"
    ));
    let (_connector, _source, mut reader) = opened_with_key(server, &database, &["e"]).await;
    assert_eq!(in_pieces(&mut *reader, &format!("{database}.t"), 2, None).await, ["3,10", "2,20", "1,30"]);
    reader.close().await;
}

/// The servers compare a float as a double, and the nearest double of what an event has is another number.
async fn a_float_that_was_asked_for_was_not_found(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    server.sql(&format!(
        "USE {database};\nCREATE TABLE t (f float PRIMARY KEY);\nINSERT INTO t VALUES (1.1), (-3.4e38), (0.5), (7)"
    ));
    let (connector, _source, mut reader) = opened(flavour, &database).await;
    let table = format!("{database}.t");
    let all = in_pieces(&mut *reader, &table, 1, None).await;
    assert_eq!(all, ["-3.4e38", "0.5", "1.1", "7"]);
    let keys: Vec<_> = all.iter().map(|float| vec![float.clone()]).collect();
    let mut batch = Batch::default();
    chunk(&mut *reader, &ChunkRequest { keys: Some(keys.into()), ..whole(&table) }, &mut batch).await;
    assert_eq!(batch.changes().len(), 4);
    let tables = connector.tables().await.unwrap_or_else(|errors| panic!("{errors:?}"));
    let wrong = connector.condition(&tables[0].schema, &Condition::From { column: "f", value: "1e39" }).await;
    assert_eq!(wrong.expect_err("no float").code().id, "HW3039");
    reader.close().await;
}

/// The end of a prepared transaction is in MariaDB's binlog a moment before its rows are visible, and a chunk of that moment had seen it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_transaction_counted_as_seen_before_its_rows_were() {
    let server = shared(Flavour::Mariadb);
    let database = server.database();
    server.sql(&format!("USE {database};\nCREATE TABLE t (id int PRIMARY KEY)"));
    let (_connector, mut source, mut reader) = opened(Flavour::Mariadb, &database).await;
    // One that is only prepared keeps no chunk from being read.
    server.sql(&format!("USE {database};\nXA START x'ff00', 'x', 7;\nINSERT INTO t VALUES (0);\nXA END x'ff00', 'x', 7;\nXA PREPARE x'ff00', 'x', 7"));
    let (writers, each) = (12, 800);
    let write = |writer: usize| {
        let cycle =
            |id| format!("XA START '{id}';\nINSERT INTO t VALUES ({id});\nXA END '{id}';\nXA PREPARE '{id}';\nXA COMMIT '{id}'");
        let cycles: Vec<String> = (writer * each..(writer + 1) * each).map(cycle).collect();
        let sql = format!("USE {database};\n{}", cycles.join(";\n"));
        std::thread::spawn(move || server.sql(&sql))
    };
    let writing: Vec<_> = (1..=writers).map(write).collect();
    let mut chunks = Vec::new();
    while chunks.is_empty() || !writing.iter().all(JoinHandle::is_finished) {
        let mut batch = Batch::default();
        let read = chunk(&mut *reader, &whole(&format!("{database}.t")), &mut batch).await;
        let rows = batch.changes().iter().map(|change| batch.values(change.after.expect("a row")).map(show).collect());
        chunks.push((read.seen, rows.collect::<HashSet<String>>()));
    }
    let mut committed: Vec<(String, String)> = Vec::new();
    while committed.len() < writers * each {
        let mut batch = Batch::default();
        source.next_batch(&mut batch, &Limits::default()).await.unwrap_or_else(|error| panic!("{error}"));
        for change in batch.changes() {
            let transaction = batch.transaction_id(&batch.transactions()[change.transaction as usize]);
            committed.push((transaction.to_owned(), batch.values(change.after.expect("a row")).map(show).collect()));
        }
    }
    server.sql("XA ROLLBACK x'ff00', 'x', 7");
    let mut count = 0;
    for (snapshot, rows) in &chunks {
        for (_, id) in committed.iter().filter(|(transaction, _)| snapshot.sees(transaction)) {
            assert!(rows.contains(id), "{id} is not in a chunk that counts it");
            count += 1;
        }
    }
    assert!(count > 0, "some of it was seen");
    reader.close().await;
}

on_both! {
    tables_and_columns_behind_the_servers_limit_of_rows_were_missing
    a_chunk_was_read_by_an_index_that_is_hidden
    a_float_that_was_asked_for_was_not_found
    labels_with_backslashes_were_others_in_a_chunk
    the_unique_index_that_the_server_promoted_was_not_the_key_of_a_chunk
    rows_that_begin_alike_were_skipped
    every_key_is_read_in_pieces_in_the_servers_order
    a_condition_that_few_rows_meet_is_read_to_the_end
    a_table_is_split_where_its_rows_are
    a_table_that_cannot_be_read_says_why
}
