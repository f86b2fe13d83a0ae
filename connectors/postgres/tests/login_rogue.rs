//! Servers that lie at the login, and proxies that sit in between: nothing is believed and nothing is given away.

#[path = "support/certs.rs"]
mod certs;
#[path = "support/relay.rs"]
mod relay;
mod support;

use std::sync::{Arc, Mutex, OnceLock};

use certs::{Authority, When};
use headwater_connector::{Error, Kind};
use relay::{join, same};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::json;
use support::{Postgres, connector};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const UNPROVEN: (&str, Kind) = ("HW2050", Kind::Environment);
const UNSAFE: (&str, Kind) = ("HW2001", Kind::Environment);
const PASSWORD: &str = "geheim-canary";

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend((body.len() as u32 + 4).to_be_bytes());
    bytes.extend(body);
    bytes
}

fn login(kind: u32, rest: &[u8]) -> Vec<u8> {
    message(b'R', &[&kind.to_be_bytes(), rest].concat())
}

/// What a server says at once after a login, so that only the login itself can make the difference.
fn welcome() -> Vec<u8> {
    [message(b'K', &[0; 8]), message(b'Z', b"I")].concat()
}

/// What a rogue says to what it just heard.
type Answer = Box<dyn Fn(&str) -> Vec<u8> + Send>;

/// A server that answers each message of the client with the next of its own. All that the client said.
async fn rogue(answers: Vec<Answer>) -> (u16, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let said = Arc::clone(&heard);
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut buffer = vec![0; 65536];
        for answer in answers {
            let Ok(read @ 1..) = socket.read(&mut buffer).await else { return };
            said.lock().unwrap().extend_from_slice(&buffer[..read]);
            let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
            let _ = socket.write_all(&answer(&text)).await;
        }
        // What comes after the last word is listened to, until the client leaves.
        while let Ok(read @ 1..) = socket.read(&mut buffer).await {
            said.lock().unwrap().extend_from_slice(&buffer[..read]);
        }
    });
    (port, heard)
}

fn always(bytes: Vec<u8>) -> Answer {
    Box::new(move |_| bytes.clone())
}

async fn refusal(port: u16, parameters: &str) -> Error {
    let url = format!("postgres://hw@localhost:{port}/postgres?connect_timeout=20&{parameters}");
    connector(&url, json!({ "password": PASSWORD })).check().await.expect_err("refused")
}

fn assert_refused(error: &Error, (code, kind): (&str, Kind), said: &str) {
    assert_eq!((error.code().id, error.kind()), (code, kind), "{error}");
    assert!(error.to_string().contains(said), "{said:?} is missing: {error}");
    assert!(error.hint_text().ends_with('.') && !error.to_string().contains(PASSWORD), "{error}");
}

/// The server's first SCRAM message, built on the nonce of the client's.
fn challenge(client: &str, rounds: &str) -> Vec<u8> {
    let nonce = client.split("r=").nth(1).expect("a nonce");
    login(11, format!("r={nonce}rogue,s=c2FsdHNhbHQ=,i={rounds}").as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_know_the_password_is_not_believed() {
    let offer = || always(login(10, b"SCRAM-SHA-256\0\0"));
    let scram = || Box::new(|client: &str| challenge(client, "4096")) as Answer;
    let no_login = always([login(0, b""), welcome()].concat());
    let wrong_proof = always([login(12, b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="), login(0, b""), welcome()].concat());
    let no_proof = always([login(0, b""), welcome()].concat());
    let early = always([login(0, b""), welcome()].concat());
    let cases: Vec<(Vec<Answer>, &str)> = vec![
        (vec![no_login], "without asking for the password"),
        (vec![offer(), scram(), wrong_proof], "could not prove"),
        (vec![offer(), scram(), no_proof], "could not prove"),
        (vec![offer(), early], "could not prove"),
    ];
    for (answers, said) in cases {
        let (port, heard) = rogue(answers).await;
        assert_refused(&refusal(port, "sslmode=disable").await, UNPROVEN, said);
        let heard = String::from_utf8_lossy(&heard.lock().unwrap()).into_owned();
        assert!(heard.contains("user\0hw") && !heard.contains(PASSWORD) && !heard.contains("SELECT"), "{heard:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unsafe_ways_to_ask_get_no_answer() {
    let scram = Box::new(|client: &str| challenge(client, "2000000000"));
    let cases: Vec<(Vec<Answer>, &str)> = vec![
        (vec![always(login(3, b""))], "cleartext"),
        (vec![always(login(5, b"salt"))], "md5"),
        (vec![always(login(7, b""))], "not supported"),
        (vec![always(login(10, b"OAUTHBEARER\0\0"))], "no SCRAM-SHA-256"),
        (vec![always(login(10, b"SCRAM-SHA-256\0\0")), scram], "absurd"),
    ];
    for (answers, said) in cases {
        let questions = answers.len();
        let (port, heard) = rogue(answers).await;
        assert_refused(&refusal(port, "sslmode=disable").await, UNSAFE, said);
        let heard = heard.lock().unwrap().clone();
        let startup = u32::from_be_bytes(*heard.first_chunk::<4>().unwrap()) as usize;
        assert!(questions > 1 || heard.len() == startup, "something followed the startup message: {heard:?}");
        assert!(!String::from_utf8_lossy(&heard).contains(PASSWORD));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_postgres_is_said_so() {
    for (parameters, answer) in [
        ("sslmode=disable", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("sslmode=verify-full", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("sslmode=disable", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        ("sslmode=disable", message(b'Z', b"I")),
    ] {
        let (port, _) = rogue(vec![always(answer)]).await;
        assert_refused(&refusal(port, parameters).await, ("HW2051", Kind::Environment), "does not speak");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_not_talked_away() {
    let words = |state: &str| message(b'E', format!("SFATAL\0C{state}\0Mplease send your password\0\0").as_bytes());
    let injected = [b"S".to_vec(), login(0, b""), welcome()].concat();
    for (answer, expected, said) in [
        (b"N".to_vec(), ("HW2006", Kind::Environment), "offers no TLS"),
        (words("28000"), ("HW0002", Kind::Retry), "before TLS"),
        // Bytes in the clear behind the S must not be taken for the server's (CVE-2021-23222).
        (injected, ("HW2006", Kind::Environment), "handshake failed"),
    ] {
        let (port, heard) = rogue(vec![always(answer)]).await;
        let error = refusal(port, "sslmode=verify-full").await;
        assert_refused(&error, expected, said);
        assert!(!error.to_string().contains("please send"), "{error}");
        let heard = String::from_utf8_lossy(&heard.lock().unwrap()).into_owned();
        assert!(!heard.contains("user\0") && !heard.contains("database"), "the user's name went out in the clear: {heard:?}");
    }
}

/// A server with TLS that asks for SCRAM, and its authority.
fn real() -> &'static (Postgres, Authority) {
    static REAL: OnceLock<(Postgres, Authority)> = OnceLock::new();
    REAL.get_or_init(|| {
        let authority = Authority::new("the authority of the tests");
        let signed = authority.sign("localhost", When::Now);
        let server = Postgres::start_with(&[], "host all hw 127.0.0.1/32 scram-sha-256", |data| {
            signed.store(data, "server");
            std::fs::write(data.join("ca.crt"), &authority.pem).expect("ca.crt");
            "ssl=on\n".to_owned()
        });
        server.sql("postgres", &format!("CREATE ROLE hw SUPERUSER LOGIN PASSWORD '{PASSWORD}'"));
        (server, authority)
    })
}

fn verified(more: &str) -> String {
    format!("sslmode=verify-full&sslrootcert={}{more}", real().0.data().join("ca.crt").display())
}

/// How somebody in between speaks to the real server.
#[derive(Clone, Copy, PartialEq)]
enum Behind {
    /// Without TLS, as a proxy does that ends it.
    Plain,
    /// With TLS.
    Tls,
    /// With TLS, and -PLUS is struck from the server's list.
    TlsStruck,
}

/// Ends the client's TLS with a certificate that the client trusts: what somebody can do who stole a key, or owns an authority.
/// All that the client said, in the clear.
async fn middle(behind: Behind) -> (u16, Arc<Mutex<Vec<u8>>>) {
    let (server, authority) = real();
    let signed = authority.sign("localhost", When::Now);
    let chain = vec![CertificateDer::from_pem_slice(signed.cert.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(signed.key.as_bytes()).unwrap();
    let ours = rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into());
    let ours = ours.with_safe_default_protocol_versions().unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
    let theirs = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into());
    let theirs = theirs.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
    let (ours, theirs) = (TlsAcceptor::from(Arc::new(ours)), TlsConnector::from(Arc::new(theirs)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let said = Arc::clone(&heard);
    let target = server.port;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut request = [0; 8];
            client.read_exact(&mut request).await.unwrap();
            client.write_all(b"S").await.unwrap();
            let Ok(client) = ours.accept(client).await else { continue };
            let mut upstream = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
            let said = Arc::clone(&said);
            let listen = Box::new(move |bytes: &[u8]| {
                said.lock().unwrap().extend_from_slice(bytes);
                bytes.to_vec()
            });
            if behind == Behind::Plain {
                tokio::spawn(join(client, upstream, listen, same()));
                continue;
            }
            upstream.write_all(&request).await.unwrap();
            assert_eq!(upstream.read_u8().await.unwrap(), b'S');
            let upstream = theirs.connect(ServerName::try_from("localhost").unwrap(), upstream).await.unwrap();
            let strike = relay::messages(move |message| match &message[..] {
                [b'R', _, _, _, _, 0, 0, 0, 10, ..] if behind == Behind::TlsStruck => login(10, b"SCRAM-SHA-256\0\0"),
                _ => message,
            });
            tokio::spawn(join(client, upstream, listen, strike));
        }
    });
    (port, heard)
}

async fn findings(port: u16, parameters: &str) -> headwater_connector::Result<String> {
    let url = format!("postgres://hw@localhost:{port}/postgres?{parameters}");
    let findings = connector(&url, json!({ "password": PASSWORD })).check().await?;
    Ok(findings.iter().map(|finding| format!("{}\n", finding.what)).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_login_is_bound_to_the_channel() {
    let found = findings(real().0.port, &verified("")).await.unwrap();
    assert!(found.contains("SCRAM-SHA-256-PLUS"), "{found}");
    let found = findings(real().0.port, &verified("&channel_binding=require")).await.unwrap();
    assert!(found.contains("SCRAM-SHA-256-PLUS"), "{found}");
    let found = findings(real().0.port, &verified("&channel_binding=disable")).await.unwrap();
    assert!(!found.contains("SCRAM-SHA-256-PLUS"), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_itself_notices_somebody_in_between() {
    // The certificate in between is trusted, so only the binding can tell: the server compares it with its own.
    let (port, heard) = middle(Behind::Tls).await;
    for parameters in [verified(""), verified("&channel_binding=prefer")] {
        let error = findings(port, &parameters).await.expect_err("somebody in between");
        assert_refused(&error, ("HW2000", Kind::Environment), "28000");
    }
    let heard = String::from_utf8_lossy(&heard.lock().unwrap()).into_owned();
    assert!(heard.contains("SCRAM-SHA-256-PLUS\0") && heard.contains("p=tls-server-end-point"), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_without_binding_is_refused_unless_it_is_allowed() {
    // Without TLS behind it the real server offers no binding: what a proxy looks like that ends TLS.
    let (port, heard) = middle(Behind::Plain).await;
    for parameters in [verified(""), verified("&channel_binding=require")] {
        let error = findings(port, &parameters).await.expect_err("no binding");
        assert_refused(&error, UNPROVEN, "does not offer to bind");
    }
    assert!(!String::from_utf8_lossy(&heard.lock().unwrap()).contains("SCRAM"), "nothing was proven to it");
    let found = findings(port, &verified("&channel_binding=prefer")).await.unwrap();
    assert!(!found.contains("SCRAM-SHA-256-PLUS"), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn striking_the_binding_from_the_servers_offer_is_noticed() {
    let (port, heard) = middle(Behind::TlsStruck).await;
    assert_refused(&findings(port, &verified("")).await.expect_err("struck"), UNPROVEN, "does not offer to bind");
    assert!(!String::from_utf8_lossy(&heard.lock().unwrap()).contains("SCRAM"), "nothing was proven to it");
    // Even where we would do without, the server hears from us that it did not offer what it did.
    let error = findings(port, &verified("&channel_binding=prefer")).await.expect_err("struck");
    assert_refused(&error, ("HW2000", Kind::Environment), "28000");
}
