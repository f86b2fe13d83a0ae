//! Who must prove what at the login, and how.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use serde_json::json;

use crate::support::{Flavour, Reader, Server, on_both, shared, start};

/// A year in which no test runs.
const NEVER: i32 = 2090;

/// Logs in with a user of the name and password; the code of what refuses it.
async fn log_in(server: &Server, host: &str, user: &str, parameters: &str) -> Result<Option<String>, String> {
    let url = format!("mysql://{user}:long%20pass%20word@{host}:{}/?{parameters}", server.port);
    let refused = |error: headwater_connector::Error| error.code().id.to_owned();
    let mut session = headwater_mysql::Session::open(&url).await.map_err(refused)?;
    let rows = session.query("SHOW STATUS LIKE 'Ssl_cipher'").await.map_err(refused)?;
    Ok(rows[0][1].clone().filter(|cipher| !cipher.is_empty()))
}

/// An authority, and what it signed for a name until a year: certificate and key.
fn authority(name: &str, until: i32) -> (String, String, String) {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let root = params.self_signed(&key).expect("a certificate").pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
    // Else it has the authority's name, and MySQL 9 takes it for one that signed itself.
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    let cert = params.signed_by(&key, &issuer).expect("a certificate").pem();
    (root, cert, key.serialize_pem())
}

/// Every mode accepts what it should and nothing else: the right authority, the right name.
async fn tls_is_verified_as_the_mode_says(flavour: Flavour) {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let (root, cert, key) = authority("localhost", NEVER);
    let (root, other) = (file("root.pem", &root), file("other.pem", &authority("localhost", NEVER).0));
    let options = [
        format!("--ssl-cert={}", file("cert.pem", &cert)),
        format!("--ssl-key={}", file("key.pem", &key)),
        format!("--ssl-ca={root}"),
    ];
    // The server runs as another user.
    std::process::Command::new("chmod").args(["-R", "a+rX"]).arg(directory.path()).status().expect("chmod");
    let server = Server::start(flavour, &[&options[0], &options[1], &options[2]]);
    server.sql("CREATE USER me@'%' IDENTIFIED BY 'long pass word' REQUIRE SSL");
    let cases = [
        ("localhost", format!("sslmode=verify-full&sslrootcert={root}"), true),
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={root}"), false),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={root}"), true),
        ("localhost", format!("sslmode=verify-ca&sslrootcert={other}"), false),
        ("localhost", format!("sslmode=verify-full&sslrootcert={other}"), false),
        // Naming an authority verifies the chain.
        ("localhost", format!("sslmode=require&sslrootcert={other}"), false),
        ("127.0.0.1", format!("sslmode=require&sslrootcert={root}"), true),
        ("127.0.0.1", "sslmode=require".to_owned(), true),
        // The system does not know it.
        ("localhost", "sslmode=verify-full".to_owned(), false),
        ("127.0.0.1", String::new(), true),
    ];
    for (host, parameters, is_fine) in cases {
        let found = log_in(&server, host, "me", &parameters).await;
        match is_fine {
            true => assert!(matches!(found, Ok(Some(_))), "{host} {parameters}: {found:?}"),
            false => assert_eq!(found, Err("HW3005".to_owned()), "{host} {parameters}"),
        }
    }
    assert_eq!(log_in(&server, "127.0.0.1", "me", "sslmode=disable").await, Err("HW3000".to_owned()), "the user requires it");
    certificates_change_while_a_connector_reads(&server, directory.path()).await;
}

/// N2: an open connection outlives its certificate, the next one does not, and files are read again for each.
async fn certificates_change_while_a_connector_reads(server: &Server, directory: &Path) {
    let put = |name: &str, text: &str| std::fs::write(directory.join(name), text).expect("a file");
    let root = directory.join("root.pem").display().to_string();
    server.sql("CREATE DATABASE shop;\nCREATE TABLE shop.items (id int PRIMARY KEY)");
    let url = format!("mysql://hw:secret@localhost:{}/?sslmode=verify-full&sslrootcert={root}", server.port);
    let connector = server.connector("shop", json!({ "url": url }));
    let first = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &first).await;
    let mut count = 0;
    for (until, is_fine) in [(2020, false), (NEVER, true)] {
        let (root, cert, key) = authority("localhost", until);
        for (name, text) in [("root.pem", root), ("cert.pem", cert), ("key.pem", key)] {
            put(name, &text);
        }
        if let Err(error) =
            server.try_sql(if server.flavour == Flavour::Mysql { "ALTER INSTANCE RELOAD TLS" } else { "FLUSH SSL" })
        {
            // MySQL 9 looks at the date itself, and keeps the old one.
            assert!(!is_fine && error.contains("Invalid certificates"), "{error}");
            continue;
        }
        count += 1;
        server.sql(&format!("INSERT INTO shop.items VALUES ({count})"));
        reader.read(count).await;
        match connector.open(&first.identity, &first.position).await {
            Ok(source) => {
                assert!(is_fine, "the certificate ended in {until}");
                reader = Reader { source, lines: Vec::new(), position: first.position.clone() };
            }
            Err(error) => assert_eq!((error.code().id, is_fine), ("HW3005", false), "{error}"),
        }
    }
    reader.read(count).await;
}

on_both! {
    tls_is_verified_as_the_mode_says
}

/// Without TLS the password goes only to the owner of a key that is pinned here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pinned_key_carries_the_password() {
    let server = shared(Flavour::Mysql);
    server.sql("CREATE USER sealed@'%' IDENTIFIED WITH caching_sha2_password BY 'long pass word'");
    let refused = log_in(server, "127.0.0.1", "sealed", "sslmode=disable").await;
    assert_eq!(refused, Err("HW3001".to_owned()), "the server does not know the proof yet");
    let key = server.data().join("public_key.pem");
    let wrong = server.data().join("ca.pem");
    let with = |path: &std::path::Path| format!("sslmode=disable&server_public_key={}", path.display());
    assert_eq!(log_in(server, "127.0.0.1", "sealed", &with(&wrong)).await, Err("HW3001".to_owned()), "a certificate is no key");
    assert_eq!(log_in(server, "127.0.0.1", "sealed", &with(&key)).await, Ok(None));
    // Another server's key: nobody can read the password, and the login fails.
    server.sql("ALTER USER sealed@'%' IDENTIFIED WITH caching_sha2_password BY 'long pass word'");
    let other = tempfile::NamedTempFile::new().expect("a file");
    let made = std::process::Command::new("sh")
        .args(["-c", "openssl genrsa 2048 2>/dev/null | openssl rsa -pubout 2>/dev/null > \"$0\""])
        .arg(other.path())
        .status();
    assert!(made.expect("openssl is installed").success());
    assert_eq!(log_in(server, "127.0.0.1", "sealed", &with(other.path())).await, Err("HW3000".to_owned()));
}
