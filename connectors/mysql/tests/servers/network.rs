//! N1, N2: what a network does between the connector and its server, and a name that leads to another server.

use std::time::Duration;

use headwater_connector::{Batch, Error, Kind, Limits, SourceConnector, Start};
use serde_json::json;

use crate::{
    proxy::Proxy,
    support::{Flavour, Reader, Server, eventually, on_both, shared, show, start},
};

const TABLE: &str = "CREATE TABLE items (id int PRIMARY KEY, name text)";

/// A connector that reaches a new database of the server through a proxy.
fn behind(server: &Server, proxy: &Proxy) -> (String, Box<dyn SourceConnector>) {
    let database = server.database();
    server.sql(&format!("USE {database};\n{TABLE}"));
    let url = format!("mysql://hw:secret@127.0.0.1:{}/", proxy.port);
    let connector = server.connector(&database, json!({ "url": url }));
    (database, connector)
}

/// N1: no byte comes any more, and no word that none will. The clock is turned forward while nothing else can happen.
async fn a_connection_that_only_looks_open_is_given_up(flavour: Flavour) {
    let server = shared(flavour);
    let proxy = Proxy::to(server.port);
    let (database, connector) = behind(server, &proxy);
    let mut at = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &at).await;
    server.sql(&format!("INSERT INTO {database}.items VALUES (1, 'a')"));
    reader.read(1).await;
    proxy.freeze(true);
    server.sql(&format!("INSERT INTO {database}.items VALUES (2, 'b')"));
    tokio::time::pause();
    let silent_since = tokio::time::Instant::now();
    let error = loop {
        match reader.batch().await {
            Ok(_) => assert!(silent_since.elapsed() < Duration::from_secs(120), "it still waits"),
            Err(error) => break error,
        }
    };
    tokio::time::resume();
    assert_eq!((error.kind(), error.what().as_str(), reader.lines.len()), (Kind::Retry, "the server is silent", 1), "{error}");
    at.position = reader.position.clone();
    drop(reader);
    // The server still has the old connection of the same replica; that one must not be in the way, nor live on.
    let old = |server: &Server| {
        let ports = proxy.ports().iter().map(|port| format!("'127.0.0.1:{port}'")).collect::<Vec<_>>().join(",");
        let sql = "SELECT count(*) FROM information_schema.processlist WHERE command LIKE 'Binlog Dump%' AND host IN";
        server.sql(&format!("{sql} ({ports})"))
    };
    assert_eq!(old(server), "1");
    let beside = Proxy::to(server.port);
    let url = format!("mysql://hw:secret@127.0.0.1:{}/", beside.port);
    let connector = server.connector(&database, json!({ "url": url }));
    let mut again = Reader::open(&*connector, &at).await;
    assert_eq!(again.read(1).await, ["Insert items 2,b"]);
    eventually("the end of the connection of a replica that has come back", || old(server) == "0");
}

mod half_open {
    use super::{Flavour, a_connection_that_only_looks_open_is_given_up};

    // The clock can be turned where there is one thread only.
    #[tokio::test]
    async fn a_mariadb_that_is_silent_is_given_up() {
        a_connection_that_only_looks_open_is_given_up(Flavour::Mariadb).await;
    }

    #[tokio::test]
    async fn a_mysql_that_is_silent_is_given_up() {
        a_connection_that_only_looks_open_is_given_up(Flavour::Mysql).await;
    }
}

/// N1: a length can be torn at every byte of it.
async fn bytes_that_come_one_by_one_are_put_together(flavour: Flavour) {
    let server = shared(flavour);
    let proxy = Proxy::to(server.port);
    proxy.drip(true);
    let (database, connector) = behind(server, &proxy);
    let first = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &first).await;
    let long = "x".repeat(20_000);
    server.sql(&format!(
        "USE {database};\nINSERT INTO items VALUES (1, 'a'), (2, '{long}');\nUPDATE items SET name = 'b' WHERE id = 2"
    ));
    let long = format!("Insert items 2,{long}");
    assert_eq!(reader.read(3).await, ["Insert items 1,a", &long, "Update items 2,b"]);
}

/// Reads until so many rows came or the connection broke; each batch counts with its position only.
async fn some(connector: &dyn SourceConnector, at: &mut Start, rows: &mut Vec<String>, count: usize) -> Result<(), Error> {
    let mut source = connector.open(&at.identity, &at.position).await?;
    let limits = Limits { max_changes: 50, max_wait: Duration::from_millis(200), ..Limits::default() };
    let mut batch = Batch::default();
    while rows.len() < count {
        batch.clear(usize::MAX);
        source.next_batch(&mut batch, &limits).await?;
        rows.extend(batch.changes().iter().map(|change| {
            let row = change.after.expect("a row");
            batch.values(row).map(show).collect::<Vec<_>>().join(",")
        }));
        if let Some(position) = batch.position() {
            at.position = position.clone();
        }
    }
    Ok(())
}

/// N1: wherever a connection breaks, the next one goes on behind the last row that was handed out.
async fn a_transaction_comes_once_over_connections_that_break_in_it(flavour: Flavour) {
    const ROWS: usize = 3000;
    let server = shared(flavour);
    let proxy = Proxy::to(server.port);
    let (database, connector) = behind(server, &proxy);
    let mut at = start(&*connector).await;
    let values: Vec<String> = (0..ROWS).map(|id| format!("({id},'name {id}')")).collect();
    server.sql(&format!("INSERT INTO {database}.items VALUES {}", values.join(",")));
    let (mut rows, mut broken, mut inside) = (Vec::new(), 0, 0);
    // A connection that breaks gets a little further than the one before: the server begins the transaction anew each time.
    for attempt in 1.. {
        proxy.break_behind(4000 * attempt + 7 * attempt % 13);
        match some(&*connector, &mut at, &mut rows, ROWS).await {
            Ok(()) => break,
            Err(error) => assert_eq!(error.kind(), Kind::Retry, "{error}"),
        }
        broken += 1;
        inside += usize::from(at.position.as_str().contains('+'));
        assert!(broken < 200, "{} rows after {broken} connections", rows.len());
    }
    assert!(broken > 5 && inside > 3, "{broken} broke, {inside} of them inside the transaction");
    let wanted: Vec<String> = (0..ROWS).map(|id| format!("{id},name {id}")).collect();
    assert!(rows == wanted, "{} rows came: {:?}", rows.len(), rows.iter().zip(&wanted).find(|(row, wanted)| row != wanted));
}

/// N2: the name leads to another server from now on. What it has is none of what is published.
async fn a_name_that_leads_to_another_server_is_refused(flavour: Flavour) {
    let (server, stranger) = (shared(flavour), Server::start(flavour, &[]));
    let proxy = Proxy::to(server.port);
    let (database, connector) = behind(server, &proxy);
    stranger.sql(&format!("CREATE DATABASE {database};\nUSE {database};\n{TABLE};\nINSERT INTO items VALUES (1, 'of another')"));
    let mut at = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &at).await;
    server.sql(&format!("INSERT INTO {database}.items VALUES (1, 'a')"));
    reader.read(1).await;
    at = Start { identity: reader.source.identity().expect("who it is").clone(), position: reader.position.clone() };
    let other = shared(if flavour == Flavour::Mysql { Flavour::Mariadb } else { Flavour::Mysql });
    // Who it is tells one MariaDB from another; MySQL's transactions have their server's name.
    let code = if flavour == Flavour::Mysql { "HW3045" } else { "HW3012" };
    for (port, code) in [(stranger.port, code), (other.port, "HW3012")] {
        proxy.forward_to(port);
        proxy.cut();
        let error = loop {
            match reader.batch().await {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), Kind::Retry, "{error}");
        let refused = connector.open(&at.identity, &at.position).await.err().expect("it is another server");
        assert_eq!(refused.code().id, code, "{refused}");
        // Back again, everything goes on.
        proxy.forward_to(server.port);
        reader = Reader::open(&*connector, &at).await;
    }
    server.sql(&format!("INSERT INTO {database}.items VALUES (2, 'b')"));
    assert_eq!(reader.read(1).await, ["Insert items 2,b"]);
}

on_both! {
    bytes_that_come_one_by_one_are_put_together
    a_transaction_comes_once_over_connections_that_break_in_it
    a_name_that_leads_to_another_server_is_refused
}
