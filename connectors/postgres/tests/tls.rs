//! TLS as it is in production: a private authority, client certificates, and everything about them that goes wrong.

#[path = "support/certs.rs"]
mod certs;
mod support;

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use certs::{Authority, Signed, When, set_mode};
use headwater_connector::{Error, Kind, Level};
use serde_json::json;
use support::{Postgres, begin, connector, eventually, next};
use tokio::sync::{Mutex, MutexGuard};

const CERTIFICATE: (&str, Kind) = ("HW2048", Kind::Environment);
const CLIENT: (&str, Kind) = ("HW2049", Kind::Environment);

/// A server whose certificate the tests change, one test at a time.
struct Tls {
    server: Postgres,
    files: tempfile::TempDir,
    authority: Authority,
}

async fn tls() -> MutexGuard<'static, Tls> {
    static TLS: OnceLock<Mutex<Tls>> = OnceLock::new();
    let tls = TLS.get_or_init(|| {
        let hba = "hostssl all certified 127.0.0.1/32 cert\nhostssl replication certified 127.0.0.1/32 cert\n\
                   hostssl all scram 127.0.0.1/32 scram-sha-256\nhostssl all trusted 127.0.0.1/32 trust\n\
                   hostnossl all certified,scram,trusted 127.0.0.1/32 reject";
        let authority = Authority::new("the authority of the tests");
        let good = authority.sign("localhost", When::Now);
        let server = Postgres::start_with(&[], hba, |data| {
            std::fs::write(data.join("ca.crt"), &authority.pem).expect("ca.crt");
            good.store(data, "server");
            "ssl=on\nssl_ca_file='ca.crt'\n".to_owned()
        });
        server.sql(
            "postgres",
            "CREATE ROLE certified SUPERUSER LOGIN; CREATE ROLE trusted SUPERUSER LOGIN;
             CREATE ROLE scram SUPERUSER LOGIN PASSWORD 'geheim'",
        );
        let files = tempfile::tempdir().expect("a directory");
        std::fs::write(files.path().join("ca.crt"), &authority.pem).expect("ca.crt");
        Mutex::new(Tls { server, files, authority })
    });
    let tls = tls.lock().await;
    // Whatever the test before left.
    tls.present(&tls.authority.sign("localhost", When::Now));
    tls
}

impl Tls {
    /// Gives the server another certificate, and waits until it shows it.
    fn present(&self, signed: &Signed) {
        let loaded = || self.server.sql("postgres", "SELECT extract(epoch FROM pg_conf_load_time())");
        let before = loaded();
        // The files stay the server's own, they only get another content.
        std::fs::write(self.server.data().join("server.crt"), &signed.cert).expect("server.crt");
        std::fs::write(self.server.data().join("server.key"), &signed.key).expect("server.key");
        self.server.sql("postgres", "SELECT pg_reload_conf()");
        // Sessions inherit the time from the process that holds the certificate.
        eventually("a reload", || loaded() != before);
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn url(&self, user: &str, host: &str, database: &str, parameters: &str) -> String {
        format!("postgres://{user}@{host}:{}/{database}?{parameters}", self.server.port)
    }

    /// `sslmode=verify-full` with the tests' authority.
    fn verified(&self) -> String {
        format!("sslmode=verify-full&sslrootcert={}", self.file("ca.crt").display())
    }

    fn client(&self, (cert, key): &(PathBuf, PathBuf)) -> String {
        format!("{}&sslcert={}&sslkey={}", self.verified(), cert.display(), key.display())
    }

    async fn refusal(&self, user: &str, parameters: &str) -> Error {
        refusal(&self.url(user, "localhost", "postgres", parameters)).await
    }
}

async fn refusal(url: &str) -> Error {
    connector(url, json!({})).check().await.expect_err("refused")
}

fn assert_refused(error: &Error, (code, kind): (&str, Kind), said: &str) {
    assert_eq!((error.code().id, error.kind()), (code, kind), "{error}");
    assert!(error.to_string().contains(said), "{said:?} is missing: {error}");
    assert!(error.hint_text().ends_with(['.', ';']), "a hint is a sentence or a statement: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_authority_and_a_client_certificate_are_enough() {
    let tls = tls().await;
    let database = tls.server.database();
    tls.server.sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
    let files = tls.authority.sign("certified", When::Now).store(tls.files.path(), "certified");
    let connector = connector(&tls.url("certified", "localhost", &database, &tls.client(&files)), json!({}));
    let start = begin(&*connector).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    tls.server.sql(&database, "INSERT INTO t VALUES (1)");
    assert_eq!(next(&mut *source).await.unwrap().changes().len(), 1);
    source.close().await.unwrap();
    let findings = connector.check().await.unwrap();
    assert!(findings.iter().all(|finding| finding.level != Level::Error), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_the_servers_certificate_is_named() {
    let tls = tls().await;
    let stranger = Authority::new("somebody else");
    let cases = [
        (stranger.sign("localhost", When::Now), "signed by no authority that is trusted"),
        (tls.authority.sign("localhost", When::Past), "has expired"),
        (tls.authority.sign("localhost", When::Future), "is not valid yet"),
        (tls.authority.sign("db.example", When::Now), "for another host name: "),
    ];
    for (signed, said) in &cases {
        tls.present(signed);
        assert_refused(&tls.refusal("trusted", &tls.verified()).await, CERTIFICATE, said);
    }
    // verify-ca forgives the name and nothing else.
    let only_chain = tls.verified().replace("verify-full", "verify-ca");
    connector(&tls.url("trusted", "localhost", "postgres", &only_chain), json!({})).check().await.expect("another name");
    for (signed, said) in &cases[..3] {
        tls.present(signed);
        assert_refused(&tls.refusal("trusted", &only_chain).await, CERTIFICATE, said);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_gets_nothing() {
    let server = support::shared();
    let error = refusal(&format!("postgres://postgres@localhost:{}/postgres?sslmode=verify-full", server.port)).await;
    assert_refused(&error, ("HW2006", Kind::Environment), "offers no TLS");
}

#[tokio::test(flavor = "multi_thread")]
async fn authorities_that_cannot_be_read_are_named() {
    let tls = tls().await;
    std::fs::write(tls.file("empty.crt"), "nothing in here").unwrap();
    for name in ["absent.crt", "empty.crt"] {
        let parameters = format!("sslmode=verify-full&sslrootcert={}", tls.file(name).display());
        assert_refused(&tls.refusal("trusted", &parameters).await, ("HW2006", Kind::Environment), name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_key_that_others_may_read_is_refused() {
    let tls = tls().await;
    let files = tls.authority.sign("certified", When::Now).store(tls.files.path(), "open");
    let parameters = tls.client(&files);
    for mode in [0o644, 0o604, 0o660] {
        set_mode(&files.1, mode);
        assert_refused(&tls.refusal("certified", &parameters).await, CLIENT, "chmod 0600");
    }
    set_mode(&files.1, 0o400);
    connector(&tls.url("certified", "localhost", "postgres", &parameters), json!({})).check().await.expect("its owner's alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_files_that_do_not_fit_are_named() {
    let tls = tls().await;
    let (cert, key) = tls.authority.sign("certified", When::Now).store(tls.files.path(), "one");
    let (_, other_key) = tls.authority.sign("certified", When::Now).store(tls.files.path(), "two");
    std::fs::write(tls.file("no.key"), "nothing in here").unwrap();
    set_mode(&tls.file("no.key"), 0o600);
    let cases: [(&Path, &Path, &str); 4] = [
        (&cert, &other_key, "cannot be used"),
        (&cert, &tls.file("absent.key"), "absent.key"),
        (&cert, &tls.file("no.key"), "no.key"),
        (&tls.file("absent.crt"), &key, "absent.crt"),
    ];
    for (cert, key, said) in cases {
        let error = tls.refusal("certified", &tls.client(&(cert.into(), key.into()))).await;
        assert_refused(&error, CLIENT, said);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_that_the_server_refuses_is_no_lost_connection() {
    let tls = tls().await;
    let stranger = Authority::new("somebody else");
    let cases = [
        (stranger.sign("certified", When::Now), "stranger", "trusts no authority that signed it"),
        (tls.authority.sign("certified", When::Past), "old", "it has expired"),
    ];
    for (signed, name, said) in cases {
        let files = signed.store(tls.files.path(), name);
        // What the server says can come before or while we write.
        for _ in 0..10 {
            assert_refused(&tls.refusal("certified", &tls.client(&files)).await, CLIENT, said);
        }
    }
    let none = tls.refusal("certified", &tls.verified()).await;
    assert_refused(&none, ("HW2000", Kind::Environment), "sslcert");
    let other = tls.authority.sign("somebody", When::Now).store(tls.files.path(), "somebody");
    assert_refused(&tls.refusal("certified", &tls.client(&other)).await, ("HW2000", Kind::Environment), "28000");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_are_renewed_while_we_run_are_read_again() {
    let tls = tls().await;
    let database = tls.server.database();
    tls.server.sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
    let root = tls.file("rotating.crt");
    std::fs::write(&root, &tls.authority.pem).unwrap();
    let parameters = format!("sslmode=verify-full&sslrootcert={}", root.display());
    let connector = connector(&tls.url("scram", "localhost", &database, &parameters), json!({ "password": "geheim" }));
    let start = begin(&*connector).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    tls.server.sql(&database, "INSERT INTO t VALUES (1)");
    assert_eq!(next(&mut *source).await.unwrap().changes().len(), 1);
    let next_authority = Authority::new("next year's authority");
    tls.present(&next_authority.sign("localhost", When::Now));
    // The running session is not touched by it.
    tls.server.sql(&database, "INSERT INTO t VALUES (2)");
    assert_eq!(next(&mut *source).await.unwrap().changes().len(), 1);
    tls.server.sql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
    assert_eq!(next(&mut *source).await.expect_err("ended").kind(), Kind::Retry);
    drop(source);
    let error = connector.open(&start.identity, &start.position).await.err().expect("not trusted yet");
    assert_refused(&error, CERTIFICATE, "signed by no authority");
    // Both authorities in one file is how they are rotated.
    std::fs::write(&root, format!("{}{}", tls.authority.pem, next_authority.pem)).unwrap();
    let mut source = connector.open(&start.identity, &start.position).await.expect("the same connector");
    // Nothing was acked, so both rows come again.
    assert_eq!(next(&mut *source).await.unwrap().changes().len(), 2);
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_without_a_channel_binding_needs_a_word() {
    let tls = tls().await;
    let authority = Authority::ed25519("an authority of another kind");
    tls.present(&authority.sign("localhost", When::Now));
    std::fs::write(tls.file("ed25519.crt"), &authority.pem).unwrap();
    let parameters = format!("sslmode=verify-full&sslrootcert={}", tls.file("ed25519.crt").display());
    let with = |more: &str| {
        let url = tls.url("scram", "localhost", "postgres", &format!("{parameters}{more}"));
        connector(&url, json!({ "password": "geheim" }))
    };
    let error = with("").check().await.expect_err("no binding");
    assert_refused(&error, ("HW2050", Kind::Environment), "channel_binding=prefer");
    let findings = with("&channel_binding=prefer").check().await.expect("allowed");
    assert!(findings.iter().all(|finding| !finding.what.contains("PLUS")), "{findings:?}");
}
