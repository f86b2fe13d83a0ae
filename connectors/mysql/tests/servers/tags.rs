//! Transactions whose names have a tag, which MySQL knows since 8.3. An older one is held to refusing them.

use headwater_connector::{Batch, ChunkRead, ChunkRequest, Limits, TableReader};
use serde_json::json;

use crate::{
    chunks::whole,
    support::{Flavour, Reader, Server, start},
};

/// A server with a table; none if it does not know tags.
fn tagging() -> Option<Server> {
    let server = Server::start(Flavour::Mysql, &[]);
    let refused = server.try_sql("SET gtid_next = 'AUTOMATIC:blue'").is_err();
    assert_eq!(refused, server.version() < (8, 3), "tags came with 8.3");
    server.sql("CREATE DATABASE shop;\nCREATE TABLE shop.items (id int PRIMARY KEY, name text)");
    (!refused).then_some(server)
}

/// Transactions of one row each: with a tag, with another one, without one.
fn write(server: &Server, from: u32) -> Vec<String> {
    let tags = ["blue", "red", ""];
    for (id, tag) in (from..).zip(tags) {
        let next = if tag.is_empty() { "AUTOMATIC".to_owned() } else { format!("AUTOMATIC:{tag}") };
        server.sql(&format!("SET gtid_next = '{next}';\nINSERT INTO shop.items VALUES ({id}, '{tag}')"));
    }
    (from..).zip(tags).map(|(id, tag)| format!("Insert items {id},{tag}")).collect()
}

/// M16: what has a tag is published once, in the order of the binlog, across restarts of both sides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tagged_transactions_are_read_once_across_restarts() {
    let Some(server) = tagging() else { return };
    let connector = server.connector("shop", json!({}));
    let mut at = start(&*connector).await;
    let first = at.clone();
    let mut all = Vec::new();
    for round in 0..4 {
        let wanted = write(&server, 10 * round);
        match round {
            1 => server.crash_and_restart(),
            2 => drop(server.sql("FLUSH BINARY LOGS")),
            _ => {}
        }
        let mut reader = Reader::open(&*connector, &at).await;
        assert_eq!(reader.read(3).await, wanted);
        at.position = reader.position.clone();
        let blue = if round == 0 { ":blue:1:".to_owned() } else { format!(":blue:1-{}:", round + 1) };
        assert!(at.position.as_str().contains(&blue), "{}", at.position.as_str());
        // Behind everything: the server sends nothing that is published.
        assert_eq!(reader.source.monitor().lag_bytes(&at.position).await.expect("an answer"), 0);
        all.extend(wanted);
    }
    assert_eq!(*Reader::open(&*connector, &first).await.read(all.len()).await, all);
}

/// A transaction with a tag that was cut between two batches goes on behind its last row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tagged_transaction_is_cut_and_continued() {
    let Some(server) = tagging() else { return };
    let connector = server.connector("shop", json!({}));
    let mut at = start(&*connector).await;
    server.sql("SET gtid_next = 'AUTOMATIC:blue';\nSET binlog_transaction_compression = ON;\nINSERT INTO shop.items VALUES (1, 'a'), (2, 'b'), (3, 'c')");
    write(&server, 10);
    let limits = Limits { max_changes: 1, ..Limits::default() };
    let (mut keys, mut was_cut) = (Vec::new(), false);
    while keys.len() < 6 {
        let mut source = connector.open(&at.identity, &at.position).await.unwrap_or_else(|error| panic!("{error}"));
        let mut batch = Batch::default();
        source.next_batch(&mut batch, &limits).await.unwrap_or_else(|error| panic!("{error}"));
        keys.extend(batch.changes().iter().map(|change| {
            let mut row = batch.values(change.after.expect("a row"));
            row.next().map(crate::support::show).expect("a key")
        }));
        at.position = batch.position().cloned().unwrap_or(at.position);
        was_cut |= at.position.as_str().contains(":blue:1+");
    }
    assert_eq!(keys, ["1", "2", "3", "10", "11", "12"]);
    assert!(was_cut);
}

/// A snapshot says of a tag's transactions which it saw, and one that is being committed is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_knows_which_tagged_transactions_it_saw() {
    let Some(server) = tagging() else { return };
    let connector = server.connector("shop", json!({}));
    let first = start(&*connector).await;
    let _source = connector.open(&first.identity, &first.position).await.unwrap_or_else(|error| panic!("{error}"));
    let mut reader = connector.reader().await.expect("a reader");
    write(&server, 1);
    let uuid = server.sql("SELECT @@server_uuid");
    let held = server.hold(&format!("SET gtid_next = '{uuid}:blue:7'"));
    let gate = reader.gate().await.expect("a gate");
    let request = ChunkRequest { gate: Some(gate), ..whole("shop.items") };
    match read(&mut *reader, &request).await {
        ChunkRead::Waiting(words) => assert!(words.contains(&format!("{uuid}:blue:7")), "{words}"),
        ChunkRead::Rows(_) => panic!("it did not wait for what has its name already"),
    }
    drop(held);
    let mut seen = None;
    crate::support::eventually("the name to be given up", || {
        let found = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(read(&mut *reader, &request)));
        if let ChunkRead::Rows(chunk) = found {
            seen = Some(chunk.seen);
        }
        seen.is_some()
    });
    let seen = seen.expect("a snapshot");
    assert!(seen.sees(&format!("{uuid}:blue:1")) && seen.sees(&format!("{uuid}:red:1")));
    assert!(!seen.sees(&format!("{uuid}:blue:2")) && !seen.sees(&format!("{uuid}:green:1")));
}

async fn read(reader: &mut dyn TableReader, request: &ChunkRequest) -> ChunkRead {
    reader.read(request, &mut Batch::default()).await.unwrap_or_else(|error| panic!("{error}"))
}
