//! Who gets in, and what we refuse to send.

mod support;

use std::{process::Command, sync::OnceLock};

use headwater_connector::{Kind, Level};
use serde_json::json;
use support::{Postgres, begin, connector, next};

/// A server with TLS, and roles that are asked for their password in different ways.
fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        let hba = "hostssl all tls 127.0.0.1/32 scram-sha-256\nhostssl replication tls 127.0.0.1/32 scram-sha-256\n\
                   host all plain 127.0.0.1/32 scram-sha-256\nhost all old 127.0.0.1/32 md5\nhost all clear 127.0.0.1/32 password\n\
                   host all shut 127.0.0.1/32 reject";
        let server = Postgres::start_with(&[], hba, certificate);
        server.sql(
            "postgres",
            "CREATE ROLE tls SUPERUSER LOGIN PASSWORD 'geheim'; CREATE ROLE plain LOGIN PASSWORD 'geheim';
             CREATE ROLE clear LOGIN PASSWORD 'geheim'; CREATE ROLE shut LOGIN;
             SET password_encryption = 'md5'; CREATE ROLE old LOGIN PASSWORD 'geheim'",
        );
        server
    })
}

/// A self-signed certificate for localhost in the data directory.
fn certificate(data: &std::path::Path) -> String {
    let (key, cert) = (data.join("server.key"), data.join("server.crt"));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=localhost"]);
    command
        .args(["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(&key);
    let output = command.arg("-out").arg(&cert).output().expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    "ssl=on\nssl_min_protocol_version='TLSv1.2'\n".to_owned()
}

fn url(user: &str, host: &str, parameters: &str) -> String {
    format!("postgres://{user}@{host}:{}/postgres?{parameters}", server().port)
}

async fn refusal(url: &str, password: &str) -> headwater_connector::Error {
    let connector = connector(url, json!({ "password": password }));
    connector.check().await.expect_err("refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn scram_over_verified_tls_binds_the_channel_and_streams() {
    let database = server().database();
    server().sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
    let root = server().data().join("server.crt");
    let parameters = format!("sslmode=verify-full&sslrootcert={}", root.display());
    let url = format!("postgres://tls@localhost:{}/{database}?{parameters}", server().port);
    let connector = connector(&url, json!({ "password": "geheim" }));
    let start = begin(&*connector).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    server().sql(&database, "INSERT INTO t VALUES (1)");
    assert_eq!(next(&mut *source).await.unwrap().changes().len(), 1);
    source.close().await.unwrap();
    let findings = connector.check().await.unwrap();
    assert!(findings.iter().any(|finding| finding.what.contains("certificate is verified")), "{findings:?}");
    assert!(findings.iter().all(|finding| finding.level != Level::Error), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_modes_demand_what_they_say() {
    let root = server().data().join("server.crt");
    let rooted = |mode: &str| format!("sslmode={mode}&sslrootcert={}", root.display());
    // The certificate is for localhost, not for the address.
    let error = refusal(&url("tls", "127.0.0.1", &rooted("verify-full")), "geheim").await;
    assert_eq!((error.code().id, error.kind()), ("HW2048", Kind::Environment), "{error}");
    let error = refusal(&url("tls", "localhost", "sslmode=verify-full"), "geheim").await;
    assert_eq!(error.code().id, "HW2048", "not in the system's store: {error}");
    for parameters in [rooted("verify-ca"), "sslmode=require".to_owned()] {
        let connector = connector(&url("tls", "127.0.0.1", &parameters), json!({ "password": "geheim" }));
        let findings = connector.check().await.unwrap();
        let warned = findings.iter().any(|finding| finding.error.as_ref().is_some_and(|error| error.code().id == "HW2027"));
        assert_eq!(warned, parameters == "sslmode=require", "{findings:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_and_weak_methods_are_refused() {
    let cases =
        [("plain", "wrong", "HW2000"), ("shut", "geheim", "HW2000"), ("old", "geheim", "HW2001"), ("clear", "geheim", "HW2001")];
    for (user, password, code) in cases {
        let error = refusal(&url(user, "127.0.0.1", "sslmode=disable"), password).await;
        assert_eq!((error.code().id, error.kind()), (code, Kind::Environment), "{user}: {error}");
        assert!(!error.hint_text().is_empty() && !error.to_string().contains(password), "{error}");
    }
    let missing = url("tls", "127.0.0.1", "sslmode=require").replace("/postgres?", "/nowhere?");
    let error = refusal(&missing, "geheim").await;
    assert_eq!((error.code().id, error.kind()), ("HW2002", Kind::Config), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_a_retry() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = refusal(&format!("postgres://x@127.0.0.1:{free}/d"), "x").await;
    assert_eq!((error.code().id, error.kind()), ("HW0002", Kind::Retry), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_works() {
    let url = format!("postgres://postgres@/postgres?host={}", server().socket_directory().display());
    let url = format!("{}&application_name=x", url.replace("@/", &format!("@none:{}/", server().port)));
    connector(&url, json!({})).verify(&headwater_connector::Identity::default()).await.expect_err("an empty identity");
}
