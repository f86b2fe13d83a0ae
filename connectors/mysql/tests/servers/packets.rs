//! M27: events around the size at which the protocol cuts them into packets.

use headwater_connector::{Batch, Limits, Position, Value};
use serde_json::json;

use crate::support::{Flavour, Reader, Server, on_both, start};

/// Most bytes of a packet; one of exactly so many is followed by another, even if that is empty.
const PACKET: u64 = 0xff_ffff;

/// Where the events of the server's file begin, with their kinds, and where the last one ends.
fn events(server: &Server) -> (Vec<(u64, String)>, u64) {
    let text = server.sql(&format!("SHOW BINLOG EVENTS IN '{}'", server.binlog()));
    let cells: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    let number = |text: &str| text.parse().expect("a number");
    let begins = cells.iter().map(|cells| (number(cells[1]), cells[2].to_owned())).collect();
    (begins, number(cells.last().expect("an event")[4]))
}

/// Size of the event of the row that was written last. MariaDB since 11.7 does not say where it ends, so that is where the next one begins.
fn event_size(server: &Server) -> u64 {
    let (events, _) = events(server);
    let row = events.iter().rposition(|(_, kind)| kind.starts_with("Write_rows")).expect("a row's event");
    events[row + 1].0 - events[row].0
}

async fn events_at_the_edge_of_packets_come_whole(flavour: Flavour) {
    let server = Server::start(flavour, &["--max-binlog-size=1G"]);
    server.sql("CREATE DATABASE shop;\nCREATE TABLE shop.items (id int PRIMARY KEY, name longblob)");
    let connector = server.connector("shop", json!({ "max_event_bytes": 80 << 20 }));
    let first = start(&*connector).await;
    server.sql("INSERT INTO shop.items VALUES (0, repeat('x', 1000000))");
    // What stands around the bytes; a byte in front of the event says that it is one.
    let around = event_size(&server) - 1_000_000 + 1;
    let mut lens = vec![1_000_000];
    for packets in 1..=2 {
        for beside in [-1_i64, 0, 1] {
            lens.push((PACKET * packets - around).saturating_add_signed(beside));
        }
    }
    for (id, len) in lens.iter().enumerate().skip(1) {
        server.sql(&format!("INSERT INTO shop.items VALUES ({id}, repeat('y', {len}))"));
        assert_eq!(event_size(&server) + 1, len + around, "the event is as long as was wanted");
    }
    let mut source = connector.open(&first.identity, &first.position).await.unwrap_or_else(|error| panic!("{error}"));
    let (mut found, mut position) = (Vec::new(), None::<Position>);
    // A transaction that is larger than a batch ends behind its last row.
    while found.len() < lens.len() || position.as_ref().is_none_or(|position| position.as_str().contains('+')) {
        let mut batch = Batch::default();
        source.next_batch(&mut batch, &Limits::default()).await.unwrap_or_else(|error| panic!("{error}"));
        for change in batch.changes() {
            let Value::Bytes(bytes) = batch.value(change.after.expect("a row"), 1) else { panic!("no bytes") };
            let letter = if found.is_empty() { b'x' } else { b'y' };
            assert!(bytes.iter().all(|byte| *byte == letter), "row {} is as it was written", found.len());
            found.push(bytes.len() as u64);
        }
        position = batch.position().cloned().or(position);
    }
    assert_eq!(found, lens);
    // The place is that of the file's end, whatever the events said of theirs.
    let position = position.expect("a position");
    let at = position.as_str().split(';').nth(4).and_then(|at| at.split('@').next()).expect("a place");
    assert_eq!(at, events(&server).1.to_string(), "{position}");
    // One that is larger than is allowed stops before it is held.
    let small = server.connector("shop", json!({ "max_event_bytes": 8 << 20 }));
    let mut source = small.open(&first.identity, &first.position).await.unwrap_or_else(|error| panic!("{error}"));
    let error = loop {
        if let Err(error) = source.next_batch(&mut Batch::default(), &Limits::default()).await {
            break error;
        }
    };
    assert_eq!(error.code().id, "HW3025", "{error}");
    what_is_too_large_when_unpacked_stops(&server).await;
}

/// M19: small on the wire and in the file, and above the limit when it is unpacked.
async fn what_is_too_large_when_unpacked_stops(server: &Server) {
    let connector = server.connector("shop", json!({ "max_event_bytes": 1 << 20 }));
    let first = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &first).await;
    server.sql("USE shop;\nINSERT INTO items VALUES (100, 'a')");
    let pack = match server.flavour {
        Flavour::Mysql => "SET binlog_transaction_compression = ON",
        Flavour::Mariadb => "SET GLOBAL log_bin_compress = ON",
    };
    let (_, before) = events(server);
    server.sql(&format!("USE shop;\n{pack};\nINSERT INTO items VALUES (101, repeat('x', 20000000))"));
    let (found, _) = events(server);
    assert!(found.last().is_some_and(|(at, _)| at - before < 1 << 20), "it is compressed: {found:?}");
    let error = reader.stops().await;
    assert_eq!((error.code().id, reader.lines.len()), ("HW3025", 1), "{error}");
}

on_both! {
    events_at_the_edge_of_packets_come_whole
}
