//! What the stream carries and what stops it, on both flavours.

use std::time::{Duration, Instant};

use headwater_connector::{Batch, Kind, Level, Limits, Position, Start};
use serde_json::json;

use crate::support::{Flavour, Reader, Server, eventually, on_both, shared, start};

const TABLE: &str = "CREATE TABLE items (id int PRIMARY KEY, name text)";

/// A database with an empty table, a connector for it, and an open source.
async fn opened(server: &'static Server, options: serde_json::Value) -> (String, Reader) {
    let database = server.database();
    server.sql(&format!("USE {database};\n{TABLE}"));
    let connector = server.connector(&database, options);
    let first = start(&*connector).await;
    (database, Reader::open(&*connector, &first).await)
}

/// M19: one session packs its transactions, or the server packs what is long.
async fn compressed_rows_come_out_whole(flavour: Flavour) {
    let server = shared(flavour);
    let (database, mut reader) = opened(server, json!({})).await;
    let long = "x".repeat(5000);
    let pack = match flavour {
        Flavour::Mysql => "SET binlog_transaction_compression = ON",
        Flavour::Mariadb => "SET GLOBAL log_bin_compress = ON",
    };
    server.sql(&format!(
        "USE {database};\n{pack};\nBEGIN;\nINSERT INTO items VALUES (1, '{long}'), (2, '{long}');\nUPDATE items SET name = 'short' WHERE id = 1;\n\
         DELETE FROM items WHERE id = 2;\nCOMMIT;\nCREATE TABLE more (id int PRIMARY KEY) COMMENT '{}'",
        "y".repeat(900)
    ));
    if flavour == Flavour::Mariadb {
        server.sql("SET GLOBAL log_bin_compress = OFF");
    }
    server.sql(&format!("INSERT INTO {database}.more VALUES (7)"));
    let lines = reader.read(5).await.to_vec();
    let wanted = [
        &format!("Insert items 1,{long}"),
        &format!("Insert items 2,{long}"),
        "Update items 1,short",
        &format!("Delete items 2,{long}"),
        "Insert more 7",
    ];
    assert_eq!(lines, wanted);
}

/// M14: new files, new table numbers, checksums off and on.
async fn rotations_and_checksums_are_passed(flavour: Flavour) {
    let server = Server::start(flavour, &["--max-binlog-size=4096"]);
    let database = server.database();
    server.sql(&format!("USE {database};\n{TABLE}"));
    let connector = server.connector(&database, json!({}));
    let first = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &first).await;
    for (id, before) in
        ["SELECT 1", "SET GLOBAL binlog_checksum = 'NONE'", "FLUSH BINARY LOGS", "SET GLOBAL binlog_checksum = 'CRC32'"]
            .iter()
            .enumerate()
    {
        server
            .sql(&format!("USE {database};\n{before};\nINSERT INTO items VALUES ({id}, repeat('a', 3000));\nFLUSH BINARY LOGS"));
        reader.read(id + 1).await;
    }
    drop(reader);
    // From the start once more, over all the files.
    let mut again = Reader::open(&*connector, &first).await;
    again.read(4).await;
    server.crash_and_restart();
    server.sql(&format!("INSERT INTO {database}.items VALUES (9, 'after the crash')"));
    let mut last = Reader::open(&*connector, &first).await;
    assert_eq!(last.read(5).await[4], "Insert items 9,after the crash");
}

/// M21, M22: the columns are those of the place in the binlog, whatever the table is by now.
async fn ddl_flows_from_the_next_row(flavour: Flavour) {
    let server = shared(flavour);
    let (database, mut reader) = opened(server, json!({})).await;
    server.sql(&format!(
        "USE {database};\nINSERT INTO items VALUES (1, 'a');\nALTER TABLE items ADD COLUMN extra int DEFAULT 5 FIRST;\nINSERT INTO items VALUES (6, 2, 'b');\n\
         ALTER TABLE items DROP COLUMN name;\nINSERT INTO items VALUES (7, 3);\n/* c */ CREATE TABLE _items_gho LIKE items;\n\
         INSERT INTO _items_gho VALUES (8, 4);\nRENAME TABLE items TO _items_del, _items_gho TO items;\nINSERT INTO items VALUES (9, 5);\n\
         CREATE TABLE filled (id int PRIMARY KEY) AS SELECT 1 AS id;\nDROP TABLE _items_del"
    ));
    let lines = reader.read(6).await.to_vec();
    let wanted = [
        "Insert items 1,a",
        "Insert items 6,2,b",
        "Insert items 7,3",
        "Insert _items_gho 8,4",
        "Insert items 9,5",
        "Insert filled 1",
    ];
    assert_eq!(lines, wanted);
}

/// M11: what comes as a statement has no rows; what is of another table may pass.
async fn a_statement_instead_of_rows_stops(flavour: Flavour) {
    let server = shared(flavour);
    let other = server.database();
    let (database, mut reader) = opened(server, json!({})).await;
    server.sql(&format!(
        "CREATE TABLE {other}.o (id int PRIMARY KEY);\nUSE {database};\nINSERT INTO items VALUES (1, 'a');\nSET binlog_format = STATEMENT;\n\
         INSERT INTO {other}.o VALUES (1);\nINSERT INTO items VALUES (2, 'b')"
    ));
    let error = reader.stops().await;
    assert_eq!((error.code().id, error.kind()), ("HW3020", Kind::Environment), "{error}");
    assert_eq!(reader.lines, ["Insert items 1,a"], "what came before is handed out first");
    assert!(!error.to_string().contains("'b'"), "no row value in a message: {error}");
}

/// M12: one session leaves columns out.
async fn a_row_without_all_columns_stops(flavour: Flavour) {
    let server = shared(flavour);
    let (database, mut reader) = opened(server, json!({})).await;
    server.sql(&format!(
        "USE {database};\nINSERT INTO items VALUES (1, 'a');\nSET binlog_row_image = MINIMAL;\nUPDATE items SET name = 'b' WHERE id = 1"
    ));
    assert_eq!(reader.stops().await.code().id, "HW3021");
}

async fn a_truncate_stops_or_is_an_event(flavour: Flavour) {
    let server = shared(flavour);
    for (option, lines) in [("stop", 1), ("event", 3)] {
        let (database, mut reader) = opened(server, json!({ "on_truncate": option })).await;
        server.sql(&format!(
            "USE {database};\nINSERT INTO items VALUES (1, 'a');\nTRUNCATE TABLE items;\nINSERT INTO items VALUES (2, 'b')"
        ));
        if option == "stop" {
            let error = reader.stops().await;
            assert_eq!((error.code().id, error.kind()), ("HW3017", Kind::Data));
        } else {
            assert_eq!(reader.read(3).await[1], "Truncate items ");
        }
        assert_eq!(reader.lines.len(), lines);
    }
}

/// The reader knows the table from before the last connection only, or not at all.
async fn a_truncate_that_comes_first_is_an_event_too(flavour: Flavour) {
    let server = shared(flavour);
    let (database, mut reader) = opened(server, json!({ "on_truncate": "event" })).await;
    server.sql(&format!("USE {database};\nTRUNCATE TABLE items;\nINSERT INTO items VALUES (2, 'b')"));
    assert_eq!(reader.read(2).await, ["Truncate items ", "Insert items 2,b"]);
    // By now the table has another form, and then it is gone: what the truncate means stays the same.
    let connector = server.connector(&database, json!({ "on_truncate": "event" }));
    let mut at = start(&*connector).await;
    server.sql(&format!(
        "USE {database};\nTRUNCATE items;\nINSERT INTO items VALUES (3, 'c');\nALTER TABLE items ADD COLUMN more int;\nINSERT INTO items VALUES (4, 'd', 5)"
    ));
    let mut later = Reader::open(&*connector, &at).await;
    assert_eq!(later.read(3).await, ["Truncate items ", "Insert items 3,c", "Insert items 4,d,5"]);
    at.position = later.position.clone();
    drop(later);
    server.sql(&format!(
        "USE {database};\nTRUNCATE items;\nDROP TABLE items;\nCREATE TABLE rest (id int PRIMARY KEY);\nINSERT INTO rest VALUES (6)"
    ));
    let mut last = Reader::open(&*connector, &at).await;
    assert_eq!(last.read(1).await, ["Insert rest 6"]);
    last.batch().await.unwrap_or_else(|error| panic!("{error}"));
    let findings = last.source.monitor().findings();
    assert!(findings.iter().any(|error| error.code().id == "HW3042"), "what is gone is told of: {findings:?}");
}

/// M15: the files that are needed are gone, or all of them are.
async fn history_that_is_gone_stops(flavour: Flavour) {
    let server = Server::start(flavour, &[]);
    let database = server.database();
    server.sql(&format!("USE {database};\n{TABLE}"));
    let connector = server.connector(&database, json!({}));
    let first = start(&*connector).await;
    server.sql(&format!("USE {database};\nINSERT INTO items VALUES (1, 'a');\nFLUSH BINARY LOGS;\nINSERT INTO items VALUES (2, 'b');\nFLUSH BINARY LOGS"));
    let end = start(&*connector).await;
    let last = server.sql("SHOW BINARY LOGS").lines().last().expect("a file").split('\t').next().expect("its name").to_owned();
    // MariaDB keeps a file for a moment that recovery might need.
    eventually("the old files go", || {
        server.sql(&format!("PURGE BINARY LOGS TO '{last}'"));
        server.sql("SHOW BINARY LOGS").lines().count() == 1
    });
    let error = match connector.open(&first.identity, &first.position).await {
        Err(error) => error,
        Ok(source) => Reader { source, lines: Vec::new(), position: first.position.clone() }.stops().await,
    };
    assert_eq!((error.code().id, error.kind()), ("HW3013", Kind::Lost), "{error}");
    server.reset_binlog();
    let error = connector.open(&end.identity, &end.position).await.err().expect("what was published is not there");
    assert_eq!((error.code().id, error.kind()), ("HW3046", Kind::Lost), "{error}");
}

/// After a reset the server counts from one on again. When it has come further than before, all that is published seems to be there.
async fn a_reset_that_new_transactions_have_overrun_stops(flavour: Flavour) {
    let server = Server::start(flavour, &[]);
    let database = server.database();
    server.sql(&format!("USE {database};\n{TABLE}"));
    let connector = server.connector(&database, json!({}));
    let insert = |ids: std::ops::Range<u32>| {
        let rows: Vec<String> = ids.map(|id| format!(";\nINSERT INTO items VALUES ({id}, 'a')")).collect();
        server.sql(&format!("USE {database}{}", rows.concat()));
    };
    for (before, after) in [(0, 0), (0, 3), (3, 0), (2, 2)] {
        server.sql(&format!("DELETE FROM {database}.items"));
        let flush = |times| (0..times).for_each(|_| drop(server.sql("FLUSH BINARY LOGS")));
        flush(before);
        let at = start(&*connector).await;
        let mut reader = Reader::open(&*connector, &at).await;
        insert(0..3);
        reader.read(3).await;
        let at = Start { identity: reader.source.identity().unwrap_or(&at.identity).clone(), position: reader.position.clone() };
        drop(reader);
        // Files are told from each other by the second in which they were begun.
        let second = server.sql("SELECT unix_timestamp()");
        eventually("the next second", || server.sql("SELECT unix_timestamp()") != second);
        server.reset_binlog();
        flush(after);
        insert(10..50);
        let error = match connector.open(&at.identity, &at.position).await {
            Err(error) => error,
            Ok(source) => Reader { source, lines: Vec::new(), position: at.position.clone() }.stops().await,
        };
        // MariaDB's servers do not say who they are, so that it may be another one too.
        let wanted: &[&str] = if flavour == Flavour::Mysql { &["HW3046"] } else { &["HW3012", "HW3046"] };
        assert!(wanted.contains(&error.code().id), "{before} files before the reset, {after} behind it: {error}");
    }
}

/// While rows are read beside the stream nothing may be waited for; each transaction was a commit of its own then, and the stream fell
/// behind its writers.
async fn transactions_that_have_arrived_are_one_batch_even_if_none_may_be_waited_for(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    server.sql(&format!("USE {database};\n{TABLE}"));
    let connector = server.connector(&database, json!({}));
    let at = start(&*connector).await;
    let rows: Vec<String> = (0..500).map(|id| format!(";\nINSERT INTO items VALUES ({id}, 'a')")).collect();
    server.sql(&format!("USE {database}{}", rows.concat()));
    let mut source = connector.open(&at.identity, &at.position).await.unwrap_or_else(|error| panic!("{error}"));
    let limits = Limits { max_wait: Duration::ZERO, ..Limits::default() };
    let (mut seen, mut batches) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(60);
    while seen < 500 {
        assert!(Instant::now() < deadline, "{seen} rows came");
        let mut batch = Batch::default();
        source.next_batch(&mut batch, &limits).await.unwrap_or_else(|error| panic!("{error}"));
        seen += batch.changes().len();
        batches += usize::from(!batch.changes().is_empty());
        tokio::task::yield_now().await;
    }
    assert!(batches < 100, "{batches} batches of 500 transactions");
}

/// A position that was cut in a transaction which this server does not have.
async fn the_rest_of_another_transaction_is_not_taken(flavour: Flavour) {
    let server = shared(flavour);
    let (database, reader) = opened(server, json!({})).await;
    server.sql(&format!("USE {database};\nINSERT INTO items VALUES (1, 'a'), (2, 'b')"));
    let connector = server.connector(&database, json!({}));
    let gtid = if flavour == Flavour::Mariadb { "0-77-999999" } else { "3e11fa47-71ca-11e1-9e33-c80aa9429562:5" };
    let mut parts: Vec<&str> = reader.position.as_str().splitn(5, ';').collect();
    let partial = format!("{gtid}+1");
    parts[3] = &partial;
    let mut first = start(&*connector).await;
    first.position = Position::new(parts.join(";"));
    let mut again = Reader::open(&*connector, &first).await;
    assert_eq!(again.stops().await.code().id, "HW3015");
}

async fn check_prints_what_mends_it(flavour: Flavour) {
    let server = Server::start(flavour, &["--binlog-row-image=MINIMAL", "--binlog-row-metadata=MINIMAL"]);
    let database = server.database();
    server.sql(&format!(
        "USE {database};\n{TABLE};\nCREATE TABLE child (id int PRIMARY KEY, item int, FOREIGN KEY (item) REFERENCES items (id) ON DELETE CASCADE);\n\
         CREATE TABLE keyless (id int);\nCREATE USER weak@'%' IDENTIFIED BY 'secret';\nGRANT SELECT ON *.* TO weak@'%'"
    ));
    let url = server.url().replace("hw:", "weak:");
    let connector = server.connector(&database, json!({ "url": url }));
    let findings = connector.check().await;
    // Without the privilege to ask for the end of the binlog, everything else is still looked at.
    let findings = findings.unwrap_or_else(|error| panic!("{error}"));
    let errors: Vec<String> = findings
        .iter()
        .filter(|finding| finding.level == Level::Error)
        .filter_map(|finding| finding.error.as_ref())
        .map(ToString::to_string)
        .collect();
    let said = errors.join("\n");
    let warned = findings.iter().filter(|finding| finding.level == Level::Warning).filter_map(|finding| finding.error.as_ref());
    assert!(warned.into_iter().any(|error| error.code().id == "HW3034"), "the server's commits can be lost (M20)");
    for wanted in [
        "SET GLOBAL binlog_row_image = 'FULL';",
        "SET GLOBAL binlog_row_metadata = 'FULL';",
        "GRANT REPLICATION SLAVE",
        "ADD PRIMARY KEY",
    ] {
        assert!(said.contains(wanted), "{wanted} is not in:\n{said}");
    }
    assert_eq!(said.contains("HW3035"), !server.logs_cascades(), "{said}");
}

/// Two that say they are the same replica: each would end the other's connection for ever, so the one that is hung up on stops.
async fn the_same_replica_twice_stops_one(flavour: Flavour) {
    let server = shared(flavour);
    let (database, mut reader) = opened(server, json!({})).await;
    server.sql(&format!("INSERT INTO {database}.items VALUES (1, 'a')"));
    reader.read(1).await;
    let connector = server.connector(&database, json!({}));
    let first = start(&*connector).await;
    let mut second = Reader::open(&*connector, &first).await;
    server.sql(&format!("INSERT INTO {database}.items VALUES (2, 'b')"));
    second.read(1).await;
    let error = reader.stops().await;
    assert_eq!((error.code().id, error.kind()), ("HW3030", Kind::Environment), "{error}");
    // Of the same name, and told apart.
    let own = server.connector(&database, json!({ "server_id": 77 + first.position.as_str().len() }));
    let mut third = Reader::open(&*own, &first).await;
    server.sql(&format!("INSERT INTO {database}.items VALUES (3, 'c')"));
    assert_eq!(third.read(2).await.len(), 2);
    assert_eq!(second.read(2).await.len(), 2);
}

/// A stream that ended was taken for one that had brought everything.
async fn changes_behind_a_stream_that_ended_were_no_lag(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    server.sql(&format!("CREATE TABLE {database}.items (id int PRIMARY KEY)"));
    let connector = server.connector(&database, json!({}));
    let at = start(&*connector).await;
    let reader = Reader::open(&*connector, &at).await;
    let monitor = reader.source.monitor();
    drop(reader);
    server.sql(&format!("INSERT INTO {database}.items VALUES (1)"));
    assert!(monitor.lag_bytes(&at.position).await.expect("an answer") > 0);
}

on_both! {
    changes_behind_a_stream_that_ended_were_no_lag
    compressed_rows_come_out_whole
    rotations_and_checksums_are_passed
    ddl_flows_from_the_next_row
    a_statement_instead_of_rows_stops
    a_row_without_all_columns_stops
    a_truncate_stops_or_is_an_event
    a_truncate_that_comes_first_is_an_event_too
    history_that_is_gone_stops
    a_reset_that_new_transactions_have_overrun_stops
    transactions_that_have_arrived_are_one_batch_even_if_none_may_be_waited_for
    the_rest_of_another_transaction_is_not_taken
    check_prints_what_mends_it
    the_same_replica_twice_stops_one
}
