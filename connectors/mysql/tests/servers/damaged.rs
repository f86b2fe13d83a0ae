//! Events that no server of a test can be brought to write: real ones, changed on their way.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
};

use headwater_connector::{Error, Kind};
use serde_json::json;

use crate::{
    proxy::Proxy,
    support::{Flavour, Reader, on_both, shared, start},
};

const KIND: usize = 4;
const FLAGS: usize = 17;
const IGNORABLE: u8 = 0x80;
const INCIDENT: u8 = 26;
/// Rows that are inserted, of both versions.
const WRITES: [u8; 2] = [23, 30];

/// What becomes of an event of rows, which has its checksum at the end; it gets a new one behind the first kind.
#[derive(Clone, Copy)]
enum Change {
    Head(fn(&mut [u8])),
    Byte,
}

/// Passes what the server says, but for the first event of rows, which is changed.
fn packets(mut server: &TcpStream, mut client: &TcpStream, change: Change, is_done: &AtomicBool) -> std::io::Result<()> {
    loop {
        let mut head = [0; 4];
        server.read_exact(&mut head)?;
        let mut body = vec![0; u32::from_le_bytes([head[0], head[1], head[2], 0]) as usize];
        server.read_exact(&mut body)?;
        // An event stands behind a zero and says its own length.
        let len = body.get(10..14).map_or(0, |len| u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize);
        if len > 19
            && body[0] == 0
            && len + 1 == body.len()
            && WRITES.contains(&body[1 + KIND])
            && !is_done.swap(true, Ordering::SeqCst)
        {
            let event = &mut body[1..];
            let end = event.len() - 4;
            match change {
                Change::Head(change) => {
                    change(event);
                    let sum = crc32fast::hash(&event[..end]).to_le_bytes();
                    event[end..].copy_from_slice(&sum);
                }
                Change::Byte => event[end - 1] ^= 1,
            }
        }
        client.write_all(&[&head[..], &body].concat())?;
    }
}

/// What a reader brings of two transactions of which the first comes changed, and how it ends.
async fn through(flavour: Flavour, change: Change) -> (Vec<String>, Option<Error>, Reader) {
    let server = shared(flavour);
    let database = server.database();
    server.sql(&format!("CREATE TABLE {database}.items (id int PRIMARY KEY, name text)"));
    let direct = server.connector(&database, json!({}));
    let first = start(&*direct).await;
    server.sql(&format!("USE {database};\nINSERT INTO items VALUES (1, 'aaaa');\nINSERT INTO items VALUES (2, 'bbbb')"));
    let is_done: &'static AtomicBool = Box::leak(Box::default());
    let proxy = Proxy::with(server.port, move |_, server, client| {
        let _ = packets(&server, &client, change, is_done);
        let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
    });
    let url = format!("mysql://hw:secret@127.0.0.1:{}/?sslmode=disable", proxy.port);
    let connector = server.connector(&database, json!({ "url": url }));
    let mut reader = Reader::open(&*connector, &first).await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let error = loop {
        assert!(std::time::Instant::now() < deadline, "neither rows nor a stop: {:?}", reader.lines);
        match reader.batch().await {
            Err(error) => break Some(error),
            Ok(_) if reader.lines.iter().any(|line| line.starts_with("Insert items 2")) => break None,
            Ok(_) => {}
        }
    };
    // The same place without the change.
    (reader.lines, error, Reader::open(&*direct, &first).await)
}

async fn an_unknown_event_in_a_transaction_stops(flavour: Flavour) {
    let (lines, error, _) = through(flavour, Change::Head(|event| event[KIND] = 200)).await;
    let error = error.expect("nobody knows what it changed");
    assert_eq!((error.code().id, error.kind(), lines.len()), ("HW3019", Kind::Environment, 0), "{error}");
    assert!(error.to_string().contains("200"), "{error}");
    // The server marks what others may pass.
    let change = Change::Head(|event| (event[KIND], event[FLAGS]) = (200, event[FLAGS] | IGNORABLE));
    let (lines, error, _) = through(flavour, change).await;
    assert!(error.is_none() && lines == ["Insert items 2,bbbb"], "{error:?} {lines:?}");
}

async fn an_incident_stops(flavour: Flavour) {
    let (lines, error, _) = through(flavour, Change::Head(|event| event[KIND] = INCIDENT)).await;
    let error = error.expect("the server lost something");
    assert_eq!((error.code().id, error.kind(), lines.len()), ("HW3027", Kind::Lost, 0), "{error}");
}

/// Nothing of it is handed out, and another connection brings it whole.
async fn a_damaged_event_is_read_again(flavour: Flavour) {
    let (lines, error, mut again) = through(flavour, Change::Byte).await;
    let error = error.expect("its checksum is wrong");
    assert_eq!((error.code().id, error.kind(), lines.len()), ("HW3028", Kind::Retry, 0), "{error}");
    assert_eq!(again.read(2).await, ["Insert items 1,aaaa", "Insert items 2,bbbb"]);
}

on_both! {
    an_unknown_event_in_a_transaction_stops
    an_incident_stops
    a_damaged_event_is_read_again
}
