//! X1: servers that want more than they may have.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread::JoinHandle,
};

use headwater_connector::{ConnectorKind, SourceContext};
use serde_json::json;

const PASSWORD: &str = "canary-5e1f";

fn packet(sequence: u8, body: &[u8]) -> Vec<u8> {
    let mut out = (body.len() as u32).to_le_bytes()[..3].to_vec();
    out.push(sequence);
    out.extend_from_slice(body);
    out
}

fn greeting(plugin: &str) -> Vec<u8> {
    let mut body = b"\x0a8.0.33\0\x01\0\0\0abcdefgh\0".to_vec();
    // Everything but TLS and packing.
    let capabilities = 0x000f_ffff_u32 & !(1 << 11) & !(1 << 5);
    body.extend_from_slice(&capabilities.to_le_bytes()[..2]);
    body.extend_from_slice(&[45, 2, 0]);
    body.extend_from_slice(&capabilities.to_le_bytes()[2..]);
    body.push(21);
    body.extend_from_slice(&[0; 10]);
    body.extend_from_slice(b"ijklmnopqrst\0");
    body.extend_from_slice(plugin.as_bytes());
    body.push(0);
    packet(0, &body)
}

fn heard(socket: &mut TcpStream) -> Vec<u8> {
    let mut buffer = [0; 4096];
    let len = socket.read(&mut buffer).unwrap_or(0);
    buffer[..len].to_vec()
}

/// A server that answers each message with the next of these; everything that it heard comes back.
fn rogue(plugin: &'static str, answers: Vec<Vec<u8>>) -> (u16, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let serve = move || {
        let (mut socket, _) = listener.accept().expect("a client");
        socket.write_all(&greeting(plugin)).expect("the client listens");
        let mut all = Vec::new();
        for answer in answers {
            all.extend(heard(&mut socket));
            let _ = socket.write_all(&answer);
        }
        // What comes after the last answer is what the rogue was after.
        all.extend(heard(&mut socket));
        all
    };
    (port, std::thread::spawn(serve))
}

async fn refused(plugin: &'static str, answers: Vec<Vec<u8>>) {
    let (port, server) = rogue(plugin, answers);
    let context = SourceContext { connector: "shop".into(), prefix: "hw".into(), keys: Vec::new() };
    let options =
        json!({ "url": format!("mysql://hw@127.0.0.1:{port}/"), "password": PASSWORD, "tables": "a.b", "backfill": "never" });
    let connector = headwater_mysql::MYSQL.source(&context, options).unwrap_or_else(|faults| panic!("{faults:?}"));
    let error = connector.check().await.expect_err("it is refused");
    assert_eq!(error.code().id, "HW3001", "{error}");
    let heard = server.join().expect("the rogue");
    assert!(!String::from_utf8_lossy(&heard).contains(PASSWORD), "the password was given away");
    assert!(!error.to_string().contains(PASSWORD));
}

#[tokio::test]
async fn a_server_that_asks_for_a_file_gets_none() {
    let ok = packet(2, &[0, 0, 0, 2, 0, 0, 0]);
    refused("mysql_native_password", vec![ok, packet(1, b"\xfb/etc/passwd")]).await;
}

#[tokio::test]
async fn a_server_that_asks_for_the_password_in_clear_text_gets_none() {
    refused("mysql_native_password", vec![packet(2, b"\xfemysql_clear_password\0")]).await;
    refused("mysql_clear_password", vec![packet(2, b"\xfemysql_clear_password\0")]).await;
    refused("mysql_native_password", vec![packet(2, b"\xfe")]).await;
}

#[tokio::test]
async fn a_server_that_wants_the_password_encrypted_with_its_own_key_gets_none() {
    // It says that it does not know the hash; others now ask for the key and send the password under it.
    refused("caching_sha2_password", vec![packet(2, &[1, 4])]).await;
    refused("sha256_password", vec![packet(2, b"\xfesha256_password\0abcdefghijklmnopqrst\0")]).await;
}
