//! Logical messages (`pg_logical_emit_message`) as events, on real servers: this run's, and the newest that we know.

mod support;

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use headwater_connector::{Batch, Kind, Limits, Position, Result, Source, SourceConnector, Start, Value};
use serde_json::{Value as Json, json};
use support::{Postgres, begin, connector, is, next, next_error, refused, shared};

fn servers() -> [&'static Postgres; 2] {
    static NEWEST: OnceLock<Postgres> = OnceLock::new();
    [shared(), NEWEST.get_or_init(|| Postgres::start_version(18, &[]))]
}

/// A connector over a table `t`, started.
struct Shop {
    server: &'static Postgres,
    database: String,
    connector: Box<dyn SourceConnector>,
    start: Start,
}

impl Shop {
    async fn new(server: &'static Postgres, options: Json) -> Self {
        let database = server.database();
        server.sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
        let connector = connector(&server.url(&database), options);
        let start = begin(&*connector).await;
        Self { server, database, connector, start }
    }

    fn sql(&self, statements: &str) -> String {
        self.server.sql(&self.database, statements)
    }

    async fn open(&self, position: &Position) -> Box<dyn Source> {
        self.connector.open(&self.start.identity, position).await.unwrap()
    }

    /// Everything since the start, up to the row `id`.
    async fn read_to(&self, id: u32) -> Vec<String> {
        let mut source = self.open(&self.start.position).await;
        let last = format!("row {id}");
        let mut told = Vec::new();
        while !told.iter().any(|text: &String| text.ends_with(&last)) {
            told.extend(texts(&next(&mut *source).await.unwrap()));
        }
        source.close().await.unwrap();
        told
    }
}

/// `ORDINAL row ID`, or `ORDINAL PREFIX=CONTENT`, with a `!` where the message is no part of a transaction.
fn texts(batch: &Batch) -> Vec<String> {
    let change = |change: &headwater_connector::Change| {
        let row = change.after.expect("a row");
        let ordinal = change.ordinal;
        if batch.schemas()[change.schema as usize].table != "hw.message" {
            let Value::Text(id) = batch.value(row, 0) else { panic!("an id") };
            return format!("{ordinal} row {id}");
        }
        match batch.values(row).collect::<Vec<_>>()[..] {
            [Value::Text(prefix), Value::Bytes(content), Value::Bool(transactional)] => {
                let mark = if transactional { "" } else { "!" };
                format!("{ordinal} {mark}{prefix}={}", String::from_utf8_lossy(content))
            }
            ref other => panic!("{other:?}"),
        }
    };
    batch.changes().iter().map(change).collect()
}

/// What a batch of at most one change tells, and where it ends.
async fn one(source: &mut dyn Source) -> Result<(Vec<String>, Position)> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let limits = Limits { max_changes: 1, max_wait: Duration::from_millis(200), ..Limits::default() };
    loop {
        let mut batch = Batch::default();
        source.next_batch(&mut batch, &limits).await?;
        if !batch.changes().is_empty() {
            return Ok((texts(&batch), batch.position().expect("a position").clone()));
        }
        assert!(Instant::now() < deadline, "no change came");
    }
}

const ALL: &str = "*";

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_neither_read_nor_counted_unless_asked_for() {
    for server in servers() {
        for options in [json!({}), json!({ "messages": [] })] {
            let shop = Shop::new(server, options).await;
            shop.sql(
                "SELECT pg_logical_emit_message(false, 'a', 'x');
                 BEGIN; SELECT pg_logical_emit_message(true, 'a', 'x'); INSERT INTO t VALUES (1); COMMIT",
            );
            assert_eq!(shop.read_to(1).await, ["0 row 1"]);
            assert_eq!(shop.connector.tables().await.unwrap().len(), 1);
            assert_eq!(shop.start.identity.get("options"), Some("proto_version=1"), "as checkpoints have it");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_comes_with_its_transaction_and_not_at_all_after_a_rollback() {
    for server in servers() {
        let shop = Shop::new(server, json!({ "messages": ALL })).await;
        shop.sql(
            "BEGIN; SELECT pg_logical_emit_message(true, 'a', 'never'); ROLLBACK;
             BEGIN; INSERT INTO t VALUES (1); SELECT pg_logical_emit_message(true, 'a', 'x'); SAVEPOINT s;
             SELECT pg_logical_emit_message(true, 'a', 'never'); ROLLBACK TO s; INSERT INTO t VALUES (2); COMMIT;
             SELECT pg_logical_emit_message(true, 'a', 'alone');
             INSERT INTO t VALUES (3)",
        );
        assert_eq!(shop.read_to(3).await, ["0 row 1", "1 a=x", "2 row 2", "0 a=alone", "0 row 3"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_outside_of_transactions_outlives_the_rollback_around_it() {
    for server in servers() {
        let shop = Shop::new(server, json!({ "messages": ALL })).await;
        let clock = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
        let before: i64 = shop.sql(clock).parse().unwrap();
        let place = shop.sql("BEGIN; INSERT INTO t VALUES (7); SELECT pg_logical_emit_message(false, 'a', 'x'); ROLLBACK");
        shop.sql("INSERT INTO t VALUES (1)");
        let mut source = shop.open(&shop.start.position).await;
        let (told, position) = one(&mut *source).await.unwrap();
        assert_eq!(told, ["0 !a=x"]);
        // The function returns where the record ends, and so does the server in the stream.
        assert_eq!(position.as_str(), format!("1:{place}"));
        source.close().await.unwrap();
        let mut source = shop.open(&shop.start.position).await;
        let batch = next(&mut *source).await.unwrap();
        let transaction = &batch.transactions()[0];
        assert_eq!(batch.transaction_id(transaction), format!("message@{place}"));
        let after: i64 = shop.sql(clock).parse().unwrap();
        assert!((before..=after).contains(&transaction.commit_time_us), "sent between two looks at the server's clock");
        source.close().await.unwrap();
    }
}

/// Writes what can make an order hard: transactions that are open while messages outside of them come from their own session and from
/// others, that end in another order than they began, that are rolled back, and that have messages of both kinds.
fn interleave(shop: &Shop) {
    let (port, database) = (shop.server.port(), shop.database.clone());
    let lone = |text: &str| format!("SELECT pg_logical_emit_message(false, 'lone', '{text}')");
    let part = |text: &str| format!("SELECT pg_logical_emit_message(true, 'part', '{text}')");
    let script = [
        (0, "BEGIN; INSERT INTO t VALUES (1)".to_owned()),
        (1, "BEGIN; INSERT INTO t VALUES (2)".to_owned()),
        (2, lone("a")),
        (1, lone("b")),
        (0, part("c")),
        (0, lone("d")),
        (3, "BEGIN; INSERT INTO t VALUES (3)".to_owned()),
        (3, part("e")),
        (1, "COMMIT".to_owned()),
        (2, lone("f")),
        (3, lone("g")),
        (0, "INSERT INTO t VALUES (4)".to_owned()),
        (2, part("h")),
        (3, "ROLLBACK".to_owned()),
        (0, "COMMIT".to_owned()),
        (2, lone("i")),
        (2, lone("j")),
        (2, "INSERT INTO t VALUES (5)".to_owned()),
    ];
    // The client blocks, and would not do so inside the runtime.
    let work = move || {
        let mut clients: Vec<_> = (0..4).map(|_| support::sql::connect(port, &database).unwrap()).collect();
        script.iter().for_each(|(client, sql)| clients[*client].batch_execute(sql).unwrap());
    };
    std::thread::spawn(work).join().unwrap();
}

/// Messages outside of transactions in the order in which they were written; transactions in the order of their commits.
const INTERLEAVED: [&str; 13] = [
    "0 !lone=a",
    "0 !lone=b",
    "0 !lone=d",
    "0 row 2",
    "0 !lone=f",
    "0 !lone=g",
    "0 part=h",
    "0 row 1",
    "1 part=c",
    "2 row 4",
    "0 !lone=i",
    "0 !lone=j",
    "0 row 5",
];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_open_meanwhile_every_message_comes_once_from_every_place() {
    for server in servers() {
        let shop = Shop::new(server, json!({ "messages": ["*"] })).await;
        interleave(&shop);
        assert_eq!(shop.read_to(5).await, INTERLEAVED);
        // Every change ends a batch, so every place is one to go on from: behind a message, and inside a transaction.
        let mut source = shop.open(&shop.start.position).await;
        let mut positions = vec![shop.start.position.clone()];
        while positions.len() < INTERLEAVED.len() {
            positions.push(one(&mut *source).await.unwrap().1);
        }
        source.close().await.unwrap();
        assert_eq!(positions.iter().filter(|position| position.as_str().contains('@')).count(), 5, "{positions:?}");
        for (at, position) in positions.iter().enumerate() {
            let mut source = shop.open(position).await;
            let mut told = Vec::new();
            while told.len() < INTERLEAVED.len() - at {
                told.extend(texts(&next(&mut *source).await.unwrap()));
            }
            assert_eq!(told, INTERLEAVED[at..], "from {position}");
            source.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_dies_at_every_place_and_confirms_it_gets_every_message_once() {
    for server in servers() {
        let shop = Shop::new(server, json!({ "messages": ALL })).await;
        interleave(&shop);
        let (mut told, mut position) = (Vec::new(), shop.start.position.clone());
        for at in 0..INTERLEAVED.len() {
            let mut source = shop.open(&position).await;
            let (texts, reached) = one(&mut *source).await.unwrap();
            told.extend(texts);
            position = reached;
            source.ack(&position).await.unwrap();
            // Half of the deaths leave the server in order, so that it has heard of the position; the others just break off.
            if at % 2 == 0 {
                source.close().await.unwrap();
            }
        }
        assert_eq!(told, INTERLEAVED);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_sends_no_message_again() {
    let server = Box::leak(Box::new(Postgres::start(&[], "")));
    let shop = Shop::new(server, json!({ "messages": ALL })).await;
    interleave(&shop);
    let (mut told, mut position) = (Vec::new(), shop.start.position.clone());
    while told.len() < INTERLEAVED.len() {
        let mut source = shop.open(&position).await;
        for _ in 0..4_usize.min(INTERLEAVED.len() - told.len()) {
            let (texts, reached) = one(&mut *source).await.unwrap();
            told.extend(texts);
            position = reached;
        }
        // C13: the server may forget this again.
        source.ack(&position).await.unwrap();
        server.crash_and_restart();
    }
    assert_eq!(told, INTERLEAVED);
}

/// What one writer has done: messages outside of transactions with the place that the server gave them, and committed transactions.
#[derive(Default)]
struct Written {
    lone: Vec<(u64, String)>,
    committed: Vec<[String; 3]>,
}

/// A session that writes messages of both kinds and of many sizes, in and out of transactions, half of which it rolls back.
fn write(port: u16, database: &str, writer: u32) -> Written {
    let mut client = support::sql::connect(port, database).unwrap();
    let mut written = Written::default();
    let mut random = u64::from(writer) + 1;
    for number in 0..80 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (size, kind) = ((random >> 33) % 3000, (random >> 50) % 3);
        let (id, row) = (format!("w{writer}n{number}"), writer * 1000 + number);
        let lone = format!("SELECT pg_logical_emit_message(false, 'lone', '{id}' || repeat('x', {size}))");
        let mut emit = |client: &mut postgres::Client| {
            let rows = client.simple_query(&lone).unwrap();
            let place = rows.iter().find_map(|message| match message {
                postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            });
            let place = place.expect("a place");
            let (high, low) = place.split_once('/').unwrap();
            let place = u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap();
            written.lone.push((place, format!("0 !lone={id}")));
        };
        if kind == 0 {
            emit(&mut client);
            continue;
        }
        let part = format!("pg_logical_emit_message(true, 'part', '{id}' || repeat('y', {size}))");
        client.batch_execute(&format!("BEGIN; INSERT INTO t VALUES ({row}); SELECT {part}")).unwrap();
        emit(&mut client);
        client.batch_execute(&format!("INSERT INTO t VALUES (-{row})")).unwrap();
        client.batch_execute(if kind == 1 { "COMMIT" } else { "ROLLBACK" }).unwrap();
        if kind == 1 {
            written.committed.push([format!("0 row {row}"), format!("1 part={id}"), format!("2 row -{row}")]);
        }
    }
    written
}

#[tokio::test(flavor = "multi_thread")]
async fn among_many_writers_every_message_comes_once_however_often_the_reader_dies() {
    for server in servers() {
        let shop = Shop::new(server, json!({ "messages": ALL })).await;
        let (port, database) = (server.port(), shop.database.clone());
        let writers: Vec<_> = (1..=4)
            .map(|writer| {
                let database = database.clone();
                std::thread::spawn(move || write(port, &database, writer))
            })
            .collect();
        let end = std::thread::spawn(move || {
            let all: Vec<Written> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
            support::sql::connect(port, &database).unwrap().batch_execute("INSERT INTO t VALUES (0)").unwrap();
            all
        });
        let (mut told, mut position) = (Vec::<String>::new(), shop.start.position.clone());
        for life in 1.. {
            let mut source = shop.open(&position).await;
            for _ in 0..life % 7 * 3 {
                let limits = Limits { max_changes: life % 5 + 1, max_wait: Duration::from_millis(20), ..Limits::default() };
                let mut batch = Batch::default();
                source.next_batch(&mut batch, &limits).await.unwrap();
                told.extend(texts(&batch).iter().map(|text| text.trim_end_matches(['x', 'y']).to_owned()));
                position = batch.position().unwrap_or(&position).clone();
            }
            source.ack(&position).await.unwrap();
            if told.iter().any(|text| text == "0 row 0") {
                break;
            }
        }
        let mut all = end.join().unwrap();
        let mut lone: Vec<(u64, String)> = all.iter_mut().flat_map(|written| written.lone.drain(..)).collect();
        lone.sort();
        let lone: Vec<String> = lone.into_iter().map(|(_, text)| text).collect();
        let (found, rest): (Vec<String>, Vec<String>) = told.into_iter().partition(|text| text.contains('!'));
        assert_eq!(found, lone, "in the order of their places");
        let mut found: Vec<[String; 3]> =
            rest[..rest.len() - 1].chunks_exact(3).map(|three| three.to_vec().try_into().unwrap()).collect();
        let mut committed: Vec<[String; 3]> = all.into_iter().flat_map(|written| written.committed).collect();
        found.sort();
        committed.sort();
        assert_eq!(found, committed);
        assert_eq!(rest.len(), committed.len() * 3 + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inside_a_transaction_messages_stay_as_they_were_switched() {
    for server in servers() {
        let shop = Shop::new(server, json!({ "messages": ALL })).await;
        let with = |messages: Json| connector(&server.url(&shop.database), json!({ "messages": messages }));
        shop.sql(
            "BEGIN; SELECT pg_logical_emit_message(true, 'a', 'x'); INSERT INTO t VALUES (1);
             SELECT pg_logical_emit_message(true, 'a', 'y'); INSERT INTO t VALUES (2); COMMIT; INSERT INTO t VALUES (3)",
        );
        let mut source = shop.open(&shop.start.position).await;
        one(&mut *source).await.unwrap();
        let inside = one(&mut *source).await.unwrap().1;
        assert!(inside.as_str().ends_with("+2"), "{inside}");
        source.close().await.unwrap();

        // C23: without messages, the third raw message would be another one.
        let without = with(json!([]));
        without.verify(&shop.start.identity).await.unwrap();
        let error = refused(&*without, &shop.start, &inside).await;
        is(&error, "HW2021", Kind::Config);
        assert!(error.to_string().contains("messages"), "{error}");
        // Other prefixes count the same.
        let mut source = with(json!("b")).open(&shop.start.identity, &inside).await.unwrap();
        let (mut told, mut between) = (Vec::new(), inside.clone());
        while told.len() < 2 {
            let batch = next(&mut *source).await.unwrap();
            told.extend(texts(&batch));
            between = batch.position().unwrap().clone();
        }
        assert_eq!(told, ["3 row 2", "0 row 3"]);
        source.close().await.unwrap();

        // Between two transactions they can be switched off, and what is stored then says so.
        shop.sql("INSERT INTO t VALUES (4); INSERT INTO t VALUES (5)");
        let mut source = without.open(&shop.start.identity, &between).await.unwrap();
        let identity = source.identity().unwrap().clone();
        assert_eq!(identity.get("options"), Some("proto_version=1"));
        assert_eq!(one(&mut *source).await.unwrap().0, ["0 row 4"]);
        source.close().await.unwrap();
        // And on again, but not inside.
        let mut source = shop.connector.open(&identity, &between).await.unwrap();
        assert_eq!(one(&mut *source).await.unwrap().0, ["0 row 4"]);
        source.close().await.unwrap();
        let start = Start { identity, position: inside.clone() };
        is(&refused(&*shop.connector, &start, &inside).await, "HW2021", Kind::Config);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_wanted_prefixes_become_events_and_the_others_move_the_position() {
    for server in servers() {
        let shop = Shop::new(server, json!({ "messages": ["order.*", "audit"] })).await;
        for prefix in ["order.new", "order.", "order", "audit", "audits", "AUDIT", "", "an order.x"] {
            shop.sql(&format!("SELECT pg_logical_emit_message(false, '{prefix}', 'x')"));
        }
        shop.sql(
            "BEGIN; SELECT pg_logical_emit_message(true, 'none', ''); SELECT pg_logical_emit_message(true, 'audit', 'y'); COMMIT;
             SELECT pg_logical_emit_message(true, 'none', ''); INSERT INTO t VALUES (1)",
        );
        let told = shop.read_to(1).await;
        assert_eq!(told, ["0 !order.new=x", "0 !order.=x", "0 !audit=x", "1 audit=y", "0 row 1"]);
        // What nobody wants must not hold the server's log: 20 MiB of it are progress at once.
        let mut source = shop.open(&shop.start.position).await;
        shop.sql("SELECT pg_logical_emit_message(false, 'none', repeat('x', 1 << 20)) FROM generate_series(1, 20)");
        let end: u64 = shop.sql("SELECT pg_current_wal_insert_lsn() - '0/0'").parse().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let mut batch = Batch::default();
            source.next_batch(&mut batch, &Limits::default()).await.unwrap();
            if let Some(position) = batch.position() {
                source.ack(position).await.unwrap();
                let base = position.as_str().trim_start_matches("1:");
                let base: u64 = shop.sql(&format!("SELECT '{base}'::pg_lsn - '0/0'")).parse().unwrap();
                if base + (2 << 20) > end {
                    break;
                }
            }
            assert!(Instant::now() < deadline, "the position stands still");
        }
        source.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_are_any_bytes_of_any_size() {
    const LARGE: usize = 30 << 20;
    for server in servers() {
        let shop = Shop::new(server, json!({ "messages": ALL })).await;
        let mut source = shop.open(&shop.start.position).await;
        for transactional in [true, false] {
            let emit = |prefix: &str, content: &str| {
                shop.sql(&format!("SELECT pg_logical_emit_message({transactional}, '{prefix}', {content})"))
            };
            let all: Vec<u8> = (0..=255).collect();
            let hex: String = all.iter().map(|byte| format!("{byte:02x}")).collect();
            emit("", "''");
            emit("größe", &format!("decode('{hex}', 'hex')"));
            emit("large", &format!("convert_to(repeat('0123456789abcdef', {LARGE} / 16), 'UTF8')"));
            for (prefix, content) in [("", Vec::new()), ("größe", all), ("large", b"0123456789abcdef".repeat(LARGE / 16))] {
                let (found, transactional_too, bytes) = first(&mut *source).await;
                assert_eq!((found.as_str(), transactional_too), (prefix, transactional));
                assert!(bytes == content, "{} bytes of {prefix:?}", bytes.len());
            }
        }
        source.close().await.unwrap();
    }
}

/// The next message, from a batch of its own.
async fn first(source: &mut dyn Source) -> (String, bool, Vec<u8>) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let limits = Limits { max_changes: 1, ..Limits::default() };
    loop {
        let mut batch = Batch::default();
        source.next_batch(&mut batch, &limits).await.unwrap();
        if let Some(change) = batch.changes().first() {
            match batch.values(change.after.unwrap()).collect::<Vec<_>>()[..] {
                [Value::Text(prefix), Value::Bytes(content), Value::Bool(transactional)] => {
                    return (prefix.to_owned(), transactional, content.to_vec());
                }
                ref other => panic!("{other:?}"),
            }
        }
        assert!(Instant::now() < deadline, "no message came");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prefixes_are_converted_where_the_server_can() {
    for server in servers() {
        for (encoding, expected) in [("LATIN1", Value::Text("größe")), ("SQL_ASCII", Value::Invalid(b"gr\xf6\xdfe"))] {
            let database = format!("{}_{}", server.database(), encoding.to_lowercase());
            server.sql("postgres", &format!("CREATE DATABASE {database} ENCODING '{encoding}' TEMPLATE template0"));
            server.sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
            let connector = connector(&server.url(&database), json!({ "messages": "gr*e" }));
            let start = begin(&*connector).await;
            let mut source = connector.open(&start.identity, &start.position).await.unwrap();
            let prefix = if encoding == "LATIN1" { "'größe'" } else { r"E'gr\xf6\xdfe'" };
            server.sql(&database, &format!("SELECT pg_logical_emit_message(true, {prefix}, 'x')"));
            let batch = next(&mut *source).await.unwrap();
            assert_eq!(batch.value(batch.changes()[0].after.unwrap(), 0), expected, "{encoding}");
            source.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_listed_as_a_table_and_their_name_is_taken() {
    for server in servers() {
        let database = server.database();
        server.sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
        let connector = |options: Json| connector(&server.url(&database), options);
        let reading = connector(json!({ "messages": ALL, "tables": ["*.*"] }));
        let tables = reading.tables().await.unwrap();
        let schema = &tables.iter().find(|table| table.schema.table == "hw.message").expect("a table of messages").schema;
        assert_eq!(schema.key_names(), ["prefix"]);
        let lines: Vec<String> = reading.check().await.unwrap().into_iter().map(|finding| finding.what).collect();
        assert!(lines.iter().any(|line| line.contains("hw.message")), "{lines:?}");
        let start = begin(&*reading).await;
        // A table is renamed while it is read.
        let mut source = reading.open(&start.identity, &start.position).await.unwrap();
        server.sql(
            &database,
            "INSERT INTO t VALUES (1); CREATE SCHEMA hw; ALTER TABLE t SET SCHEMA hw; ALTER TABLE hw.t RENAME TO message;
             INSERT INTO hw.message VALUES (2)",
        );
        assert_eq!(texts(&next(&mut *source).await.unwrap()), ["0 row 1"]);
        is(&next_error(&mut *source).await, "HW2007", Kind::Config);
        source.close().await.unwrap();
        is(&reading.tables().await.unwrap_err()[0], "HW2007", Kind::Config);
        assert_eq!(connector(json!({ "tables": ["*.*"] })).tables().await.unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_config_can_key_messages_by_more_than_their_prefix() {
    let database = shared().database();
    shared().sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
    let keys: [(&str, &[&str]); 1] = [("hw.message", &["prefix", "content"])];
    let connector = support::keyed_connector(&shared().url(&database), json!({ "messages": ALL }), &keys);
    let tables = connector.tables().await.unwrap();
    assert_eq!(tables[1].schema.key_names(), ["prefix", "content"]);
}
