//! TLS, logins and permissions, against a broker that insists on them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use tempfile::TempDir;

use super::{
    server::{Kafka, Listener},
    *,
};

/// A broker with a listener for each way in, and the files of its authority.
struct Guarded {
    kafka: Kafka,
    files: TempDir,
}

const TLS: usize = 0;
const MUTUAL: usize = 1;
const SASL: usize = 2;
const CLEAR: usize = 3;

/// The principal `User:ANONYMOUS` of the plaintext listener may do everything; who logs in may do what it is granted.
fn settings(files: &Path) -> String {
    let path = |name: &str| files.join(name).display().to_string();
    let (broker, ca) = (path("broker.both"), path("ca.pem"));
    let plain =
        "org.apache.kafka.common.security.plain.PlainLoginModule required user_ada=\"ada-secret\" user_eve=\"eve-secret\";";
    let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
    let bearer =
        "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=\"broker\";";
    let mut text = format!(
        "ssl.keystore.type=PEM
ssl.keystore.location={broker}
ssl.truststore.type=PEM
ssl.truststore.location={ca}
listener.name.mutual.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512,OAUTHBEARER
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:ada;User:CN=client
allow.everyone.if.no.acl.found=false
"
    );
    for listener in ["sasl", "clear"] {
        text += &format!(
            "listener.name.{listener}.plain.sasl.jaas.config={plain}
listener.name.{listener}.scram-sha-512.sasl.jaas.config={scram}
listener.name.{listener}.oauthbearer.sasl.jaas.config={bearer}
"
        );
    }
    text
}

fn guarded() -> &'static Guarded {
    static GUARDED: OnceLock<Guarded> = OnceLock::new();
    GUARDED.get_or_init(|| {
        let files = tempfile::tempdir().unwrap();
        authority(files.path(), "ca");
        authority(files.path(), "other");
        certificate(files.path(), "broker", "127.0.0.1");
        certificate(files.path(), "wrong", "127.0.0.2");
        certificate(files.path(), "client", "127.0.0.1");
        let listener = |name, protocol| Listener { name, protocol, advertised: None };
        let listeners = [
            listener("TLS", "SSL"),
            listener("MUTUAL", "SSL"),
            listener("SASL", "SASL_SSL"),
            listener("CLEAR", "SASL_PLAINTEXT"),
            listener("WRONG", "SSL"),
        ];
        let wrong = format!("listener.name.wrong.ssl.keystore.location={}\n", files.path().join("wrong.both").display());
        let scram = ["--add-scram", "SCRAM-SHA-512=[name=ada,password=ada-secret]"];
        let kafka = Kafka::start_listening(&(settings(files.path()) + &wrong), &listeners, &scram);
        Guarded { kafka, files }
    })
}

fn openssl(directory: &Path, args: &[&str]) {
    let output = Command::new("openssl").current_dir(directory).args(args).output().expect("openssl is installed");
    assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

const KEY: [&str; 5] = ["-newkey", "rsa:2048", "-nodes", "-days", "30"];

fn authority(directory: &Path, name: &str) {
    let (key, pem, subject) = (format!("{name}.key"), format!("{name}.pem"), format!("/CN={name}"));
    openssl(directory, &[&["req", "-x509"][..], &KEY, &["-keyout", &key, "-out", &pem, "-subj", &subject]].concat());
}

/// A certificate of the authority `ca` for an address; `NAME.both` has the key as well, as Kafka wants it.
fn certificate(directory: &Path, name: &str, address: &str) {
    let [key, pem, both] = ["key", "pem", "both"].map(|kind| format!("{name}.{kind}"));
    let (subject, names) = (format!("/CN={name}"), format!("subjectAltName=IP:{address}"));
    let signed = ["req", "-x509", "-CA", "ca.pem", "-CAkey", "ca.key", "-addext", &names, "-addext", "basicConstraints=CA:FALSE"];
    openssl(directory, &[&signed[..], &KEY, &["-keyout", &key, "-out", &pem, "-subj", &subject]].concat());
    let text = |file: &str| fs::read_to_string(directory.join(file)).unwrap();
    fs::write(directory.join(&both), text(&key) + &text(&pem)).unwrap();
}

impl Guarded {
    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// The log through a listener, with these security options.
    fn log(&self, listener: usize, security: &str) -> KafkaLog {
        let more = format!(r#","transaction_timeout_seconds":10,"security":{{{security}}}"#);
        KafkaLog::new(options(&self.kafka.listeners[listener], &more), PREFIX).unwrap()
    }

    fn ca(&self, name: &str) -> String {
        format!(r#""ca_file":"{}""#, self.file(name).display())
    }

    fn sasl(&self, mechanism: &str, user: &str, password: &str) -> String {
        let sasl = format!(r#""sasl":{{"mechanism":"{mechanism}","username":"{user}","password":"{password}"}}"#);
        format!(r#""protocol":"sasl_ssl",{},{sasl}"#, self.ca("ca.pem"))
    }

    fn grant(&self, change: &str, user: &str, operations: &[&str], resource: &[&str]) {
        let principal = format!("User:{user}");
        let mut args = vec!["--bootstrap-server", &self.kafka.bootstrap, change, "--allow-principal", &principal];
        operations.iter().for_each(|operation| args.extend(["--operation", operation]));
        args.extend(resource);
        if change == "--remove" {
            args.push("--force");
        }
        self.kafka.tool("org.apache.kafka.tools.AclCommand", &args, "");
    }
}

/// Writes and reads back, which needs every kind of client that there is.
async fn works(log: &KafkaLog) {
    let (topic, id) = (unique("secure"), unique("c"));
    log.ensure_topics(&[spec(&topic, 1)]).await.unwrap();
    let mut writer = log.open_writer(&id).await.unwrap();
    writer.commit(transaction(&[(&topic, 0, "a", Some("1"))])).await.unwrap();
    assert_eq!(keys(&log.last_records(&topic).await.unwrap()), ["a"]);
}

/// Is let in by nobody, says so soon, and tells no secret.
async fn refused(log: &KafkaLog, why: &[&str]) {
    let began = Instant::now();
    for failed in [log.check().await.map(drop).unwrap_err(), log.open_writer("c").await.map(drop).unwrap_err()] {
        assert_eq!((failed.code().id, failed.kind()), (codes::LOGIN_FAILED.id, Kind::Environment), "{failed}");
        let text = failed.to_string();
        assert!(why.iter().any(|why| text.to_lowercase().contains(why)), "none of {why:?} in {text}");
        assert!(!failed.hint_text().is_empty() && !text.contains("secret"), "{text}");
    }
    assert!(began.elapsed() < Duration::from_secs(60), "it is told before any time runs out");
}

#[tokio::test]
async fn tls_with_a_private_authority_works_and_others_are_refused() {
    let guarded = guarded();
    let tls = |listener: usize, ca: &str| guarded.log(listener, &format!(r#""protocol":"ssl",{}"#, guarded.ca(ca)));
    // Who speaks TLS without a certificate is nobody here, and nobody may do everything.
    works(&tls(TLS, "ca.pem")).await;
    refused(&tls(TLS, "other.pem"), &["certificate"]).await;
    refused(&tls(WRONG, "ca.pem"), &["certificate", "hostname"]).await;
    refused(&guarded.log(TLS, r#""protocol":"ssl""#), &["certificate"]).await;
}

/// Its certificate is for another address.
const WRONG: usize = 4;

#[tokio::test]
async fn a_client_certificate_is_shown_where_it_is_demanded() {
    let guarded = guarded();
    let (certificate, key) = (guarded.file("client.pem"), guarded.file("client.key"));
    let files = format!(r#""certificate_file":"{}","key_file":"{}""#, certificate.display(), key.display());
    let ca = guarded.ca("ca.pem");
    works(&guarded.log(MUTUAL, &format!(r#""protocol":"ssl",{ca},{files}"#))).await;
    refused(&guarded.log(MUTUAL, &format!(r#""protocol":"ssl",{ca}"#)), &["certificate", "handshake", "ssl"]).await;
}

#[tokio::test]
async fn a_password_is_proved_by_plain_and_by_scram() {
    let guarded = guarded();
    for mechanism in ["plain", "scram-sha-512"] {
        works(&guarded.log(SASL, &guarded.sasl(mechanism, "ada", "ada-secret"))).await;
        refused(&guarded.log(SASL, &guarded.sasl(mechanism, "ada", "no-secret")), &["authentication"]).await;
        refused(&guarded.log(SASL, &guarded.sasl(mechanism, "nobody", "no-secret")), &["authentication"]).await;
    }
    // One that the broker does not offer.
    refused(&guarded.log(SASL, &guarded.sasl("scram-sha-256", "ada", "ada-secret")), &["mechanism", "scram-sha-256"]).await;
    let clear = r#""sasl":{"mechanism":"scram-sha-512","username":"ada","password":"ada-secret"}"#;
    works(&guarded.log(CLEAR, clear)).await;
}

/// A token as the broker's validator for tests takes it, valid for so many seconds.
fn token(subject: &str, seconds: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let claims = format!(r#"{{"sub":"{subject}","iat":{},"exp":{}}}"#, now - 60, now + seconds);
    format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode(claims))
}

#[tokio::test]
async fn a_bearer_token_is_read_from_its_file_and_again_when_it_was_renewed() {
    let guarded = guarded();
    let file = guarded.file("token");
    let bearer = format!(r#""sasl":{{"mechanism":"oauthbearer","token":{{"file":"{}"}}}}"#, file.display());
    let log = guarded.log(SASL, &format!(r#""protocol":"sasl_ssl",{},{bearer}"#, guarded.ca("ca.pem")));
    let missing = log.check().await.map(drop).unwrap_err();
    assert_eq!((missing.code().id, missing.kind()), (shared::SECRET_MISSING.id, Kind::Config), "{missing}");
    fs::write(&file, token("ada", -10)).unwrap();
    let expired = log.check().await.map(drop).unwrap_err();
    assert_eq!((expired.code().id, expired.kind()), (codes::LOGIN_FAILED.id, Kind::Environment), "{expired}");
    fs::write(&file, "no-secret-token").unwrap();
    refused(&log, &["authentication", "token"]).await;
    fs::write(&file, token("ada", 3600)).unwrap();
    let log = KafkaLog::new(log.inner.options.clone(), PREFIX).unwrap();
    works(&log).await;
    // A client that lives longer than its token asks for the next one: it is asked for at four fifths of the life.
    fs::write(&file, token("ada", 5)).unwrap();
    let log = KafkaLog::new(log.inner.options.clone(), PREFIX).unwrap();
    let topic = unique("renewed");
    log.ensure_topics(&[spec(&topic, 1)]).await.unwrap();
    let mut writer = log.open_writer(&unique("c")).await.unwrap();
    fs::write(&file, token("ada", 3600)).unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    writer.commit(transaction(&[(&topic, 0, "a", Some("1"))])).await.unwrap();
    works(&log).await;
}

/// Eve may do with `headwater…` and one topic what the page of HW1240 grants.
fn grant_eve(guarded: &Guarded, change: &str, topic: &str, id: &str) {
    guarded.grant(change, "eve", &["Write", "Describe"], &["--transactional-id", id]);
    let topics = ["Create", "Read", "Write", "Describe", "DescribeConfigs"];
    guarded.grant(change, "eve", &topics, &["--topic", topic]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_permission_that_is_revoked_stops_and_one_that_is_granted_again_resumes() {
    let guarded = guarded();
    let (topic, connector) = (unique("granted"), unique("granted"));
    let id = format!("{PREFIX}.{connector}");
    let log = guarded.log(SASL, &guarded.sasl("plain", "eve", "eve-secret"));
    let stopped = |failed: Error| {
        assert_eq!((failed.code().id, failed.kind()), (codes::NOT_ALLOWED.id, Kind::Environment), "{failed}");
        assert!(failed.hint_text().contains("HW1240"), "{failed}");
    };
    stopped(log.ensure_topics(&[spec(&topic, 1)]).await.unwrap_err());
    grant_eve(guarded, "--add", &topic, &id);
    log.ensure_topics(&[spec(&topic, 1)]).await.unwrap();
    let mut writer = log.open_writer(&connector).await.unwrap();
    writer.commit(transaction(&[(&topic, 0, "a", Some("1"))])).await.unwrap();

    guarded.grant("--remove", "eve", &["Write"], &["--topic", &topic]);
    stopped(writer.commit(transaction(&[(&topic, 0, "x", Some("2"))])).await.map(drop).unwrap_err());
    guarded.grant("--add", "eve", &["Write"], &["--topic", &topic]);
    let mut writer = log.open_writer(&connector).await.unwrap();
    writer.commit(transaction(&[(&topic, 0, "b", Some("3"))])).await.unwrap();

    guarded.grant("--remove", "eve", &["Write", "Describe"], &["--transactional-id", &id]);
    stopped(writer.commit(transaction(&[(&topic, 0, "x", Some("4"))])).await.map(drop).unwrap_err());
    stopped(log.open_writer(&connector).await.map(drop).unwrap_err());
    guarded.grant("--add", "eve", &["Write", "Describe"], &["--transactional-id", &id]);
    let mut writer = log.open_writer(&connector).await.unwrap();
    writer.commit(transaction(&[(&topic, 0, "c", Some("5"))])).await.unwrap();
    assert_eq!(keys(&read_all(&log, &topic, 0).await), ["a", "b", "c"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_check_names_the_permission_that_is_missing_and_the_command_that_grants_it() {
    let guarded = guarded();
    let topic = unique("lacking");
    guarded.log(TLS, &format!(r#""protocol":"ssl",{}"#, guarded.ca("ca.pem"))).ensure_topics(&[spec(&topic, 1)]).await.unwrap();
    guarded.grant("--add", "eve", &["Read", "Describe"], &["--topic", &topic]);
    let log = guarded.log(SASL, &guarded.sasl("plain", "eve", "eve-secret"));
    let findings = log.check_topics(&[spec(&topic, 1)]).await.unwrap();
    let error = findings.iter().find(|finding| finding.level == Level::Error).and_then(|finding| finding.error.as_ref()).unwrap();
    assert_eq!(error.code().id, codes::NOT_ALLOWED.id, "{error}");
    let command = error.hint_text().split('`').nth(1).expect("a command");
    assert!(command.contains("--operation Write --operation DescribeConfigs") && command.contains("User:eve"), "{command}");
    // The command works as it is told, by somebody who may.
    let args: Vec<&str> = command.split_whitespace().skip(3).collect();
    let server = ["--bootstrap-server", &guarded.kafka.bootstrap];
    guarded.kafka.tool("org.apache.kafka.tools.AclCommand", &[&server[..], &args].concat(), "");
    let deadline = Instant::now() + Duration::from_secs(30);
    while log.check_topics(&[spec(&topic, 1)]).await.unwrap().iter().any(|finding| finding.level != Level::Ok) {
        assert!(Instant::now() < deadline, "the permission that was granted is not seen");
    }
    // Who may not look at the cluster is not told what it may do there either.
    guarded.grant("--add", "eve", &["Describe"], &["--cluster"]);
    let cluster = log.check().await.unwrap();
    assert!(cluster.iter().any(|finding| finding.what.contains("may not create topics everywhere")), "{cluster:?}");
}
