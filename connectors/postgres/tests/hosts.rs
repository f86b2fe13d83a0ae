//! Which server answers: several hosts, a balancer, another server under the same name, a pooler.

#[path = "support/relay.rs"]
mod relay;
#[path = "support/standby.rs"]
mod standby;
mod support;

use headwater_connector::{Error, Kind, Level};
use headwater_postgres::Session;
use relay::{Filter, Relay, same};
use serde_json::json;
use standby::Standby;
use support::{Postgres, begin, connector, next, shared};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::OnceCell,
};

/// A primary and its standby.
async fn pair() -> &'static (Postgres, Standby) {
    static PAIR: OnceCell<(Postgres, Standby)> = OnceCell::const_new();
    PAIR.get_or_init(async || {
        let primary = Postgres::start(&[], "");
        let standby = Standby::of(&primary, &[]).await;
        (primary, standby)
    })
    .await
}

/// A port where nobody listens.
fn dead() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn hosts(ports: &[u16], database: &str, parameters: &str) -> String {
    let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("postgres://postgres@{}/{database}?connect_timeout=20&{parameters}", hosts.join(","))
}

/// `primary` or `standby`, or why there is no session.
async fn role(url: &str) -> Result<&'static str, Error> {
    let mut session = Session::open(url).await?;
    let rows = session.query("SELECT pg_is_in_recovery()").await?;
    Ok(if rows[0][0].as_deref() == Some("t") { "standby" } else { "primary" })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_host_that_has_the_wanted_role_is_taken() {
    let (primary, standby) = pair().await;
    let (p, s, none) = (primary.port, standby.port, dead());
    for (ports, target, expected) in [
        (vec![s, p], "any", "standby"),
        (vec![p, s], "any", "primary"),
        (vec![s, p], "primary", "primary"),
        (vec![s, p], "read-write", "primary"),
        (vec![p, s], "standby", "standby"),
        (vec![none, p, s], "read-only", "standby"),
        (vec![p, none, s], "prefer-standby", "standby"),
        (vec![none, p], "prefer-standby", "primary"),
    ] {
        let found = role(&hosts(&ports, "postgres", &format!("target_session_attrs={target}"))).await.unwrap();
        assert_eq!(found, expected, "{target} of {ports:?}");
    }
    // Of several hosts the primary is wanted unless the url says otherwise: there the slot is.
    assert_eq!(role(&hosts(&[none, s, p], "postgres", "")).await.unwrap(), "primary");
    let error = role(&hosts(&[none, s], "postgres", "")).await.expect_err("no primary");
    assert_eq!((error.code().id, error.kind()), ("HW2046", Kind::Retry), "{error}");
    for said in [format!("127.0.0.1:{none}/postgres: HW0002"), format!("127.0.0.1:{s}: HW2046 a standby answers")] {
        assert!(error.what().contains(&said), "{said} is missing: {error}");
    }
    // A single host of the wrong role says so, too.
    let error = role(&hosts(&[p], "postgres", "target_session_attrs=standby")).await.expect_err("a primary");
    assert_eq!((error.code().id, error.kind()), ("HW2046", Kind::Retry), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_streams_from_the_primary_of_its_hosts() {
    let (primary, standby) = pair().await;
    let database = primary.database();
    primary.sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
    let connector = connector(&hosts(&[dead(), standby.port, primary.port], &database, ""), json!({}));
    let start = begin(&*connector).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    primary.sql(&database, "INSERT INTO t VALUES (1)");
    assert_eq!(next(&mut *source).await.unwrap().changes().len(), 1);
    source.close().await.unwrap();
    let findings = connector.check().await.unwrap();
    assert!(findings.iter().all(|finding| finding.level != Level::Error), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_host_has_its_own_time_to_answer() {
    // The kernel takes the connections, and nobody ever answers them.
    let mute: Vec<_> = (0..2).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let port = |at: usize| mute[at].local_addr().unwrap().port();
    let url = |ports: &[u16]| hosts(ports, "postgres", "").replace("connect_timeout=20", "connect_timeout=3");
    assert_eq!(role(&url(&[port(0), port(1), shared().port])).await.unwrap(), "primary");
    let error = role(&url(&[port(0), port(1)])).await.expect_err("nobody");
    assert_eq!((error.code().id, error.what().matches("did not answer in time").count()), ("HW2046", 2), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_did_not_know_the_database_yet_hid_the_one_that_did() {
    let (primary, _) = pair().await;
    let database = shared().database();
    assert_eq!(role(&hosts(&[primary.port, shared().port], &database, "")).await.unwrap(), "primary");
    // If all refuse for good, the first refusal is the error; if one may come back, it is worth another try.
    let error = role(&hosts(&[primary.port, shared().port], "nowhere", "")).await.expect_err("no database");
    assert_eq!((error.code().id, error.kind()), ("HW2002", Kind::Config), "{error}");
    let error = role(&hosts(&[primary.port, dead()], "nowhere", "")).await.expect_err("no database");
    assert_eq!((error.code().id, error.kind()), ("HW2046", Kind::Retry), "{error}");
    assert!(error.what().contains("HW2002") && error.what().contains("HW0002"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_directory_and_a_port_are_parameters_as_in_libpq() {
    let (directory, port) = (shared().socket_directory().display(), shared().port);
    for url in [
        format!("postgres://postgres@/postgres?host={directory}&port={port}"),
        format!("postgres:///postgres?host={directory}&port={port}").replace(":///", "://postgres@/"),
        format!("postgres://postgres@{}:{port}/postgres", directory.to_string().replace('/', "%2F")),
        format!("postgres://postgres@elsewhere:1/postgres?host={directory},127.0.0.1&port={port}")
            .replace("?", "?sslmode=disable&"),
    ] {
        assert_eq!(role(&url).await.unwrap_or_else(|error| panic!("{url}: {error}")), "primary", "{url}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_between_two_servers_is_found_out() {
    let other = Postgres::start(&[], "");
    let database = shared().database();
    other.sql("postgres", &format!("CREATE DATABASE {database}"));
    for server in [shared(), &other] {
        server.sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
    }
    let relay = Relay::to(&[shared().port, other.port]).await;
    let connector = connector(&hosts(&[relay.port], &database, ""), json!({}));
    // Even connections end on one server, odd ones on the other.
    let intent = connector.prepare().await.expect("one session");
    assert_eq!(relay.connections(), 1);
    let error = connector.create(&intent, false).await.expect_err("two servers");
    assert_eq!((error.code().id, error.kind()), ("HW2045", Kind::Retry), "{error}");
    assert!(error.hint_text().contains("balancer"), "{error}");
    for server in [shared(), &other] {
        let made = "SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots WHERE database = current_database())";
        assert_eq!(server.sql(&database, made), "0", "something was made on half of a pair");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_under_the_same_name_is_refused_until_the_first_is_back() {
    let other = Postgres::start(&[], "");
    let database = shared().database();
    other.sql("postgres", &format!("CREATE DATABASE {database}"));
    for server in [shared(), &other] {
        server.sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
    }
    let relay = Relay::to(&[shared().port]).await;
    let connector = connector(&hosts(&[relay.port], &database, ""), json!({}));
    let start = begin(&*connector).await;
    // The other server has all that could be mistaken: a slot and a publication of the same name.
    other.sql(
        &database,
        &format!(
            "SELECT pg_create_logical_replication_slot('hw_{database}', 'pgoutput'); CREATE PUBLICATION hw_{database} FOR TABLE t"
        ),
    );
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    shared().sql(&database, "INSERT INTO t VALUES (1)");
    assert_eq!(next(&mut *source).await.unwrap().changes().len(), 1);
    relay.flip(other.port);
    assert_eq!(next(&mut *source).await.expect_err("cut").kind(), Kind::Retry);
    drop(source);
    let error = connector.open(&start.identity, &start.position).await.err().expect("another server");
    assert_eq!((error.code().id, error.kind()), ("HW2021", Kind::Config), "{error}");
    assert_eq!(connector.verify(&start.identity).await.expect_err("another server").code().id, "HW2021");
    relay.flip(shared().port);
    let mut source = connector.open(&start.identity, &start.position).await.expect("the first server again");
    assert_eq!(next(&mut *source).await.unwrap().changes().len(), 1);
    source.close().await.unwrap();
}

/// What PgBouncer 1.18 answered to each of our startup messages, byte by byte, with its default settings.
async fn pgbouncer() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut startup = vec![0; 4096];
            let read = socket.read(&mut startup).await.unwrap();
            let known = [
                "user",
                "database",
                "application_name",
                "client_encoding",
                "DateStyle",
                "TimeZone",
                "standard_conforming_strings",
            ];
            let text = String::from_utf8_lossy(&startup[8..read]).into_owned();
            let mut fields = text.split('\0').step_by(2).filter(|name| !name.is_empty());
            let refused = fields.find(|name| !known.contains(name)).expect("one that it does not know");
            let body = format!("SFATAL\0C08P01\0Munsupported startup parameter: {refused}\0\0");
            let mut answer = vec![b'E'];
            answer.extend((body.len() as u32 + 4).to_be_bytes());
            answer.extend(body.as_bytes());
            let _ = socket.write_all(&answer).await;
        }
    });
    port
}

/// What PgBouncer does with `ignore_startup_parameters`: it swallows settings, and makes up the key that cancels a statement.
fn swallowing(swallowed: &'static [&'static str]) -> (Filter, Filter) {
    let mut first = true;
    let up = move |bytes: &[u8]| {
        if !std::mem::take(&mut first) {
            return bytes.to_vec();
        }
        let text = String::from_utf8_lossy(&bytes[8..]).into_owned();
        let fields: Vec<&str> = text.split('\0').collect();
        let mut body = bytes[4..8].to_vec();
        for pair in fields.chunks_exact(2).filter(|pair| !pair[0].is_empty() && !swallowed.contains(&pair[0])) {
            body.extend(format!("{}\0{}\0", pair[0], pair[1]).into_bytes());
        }
        body.push(0);
        [&(body.len() as u32 + 4).to_be_bytes()[..], &body].concat()
    };
    let down = relay::messages(|mut message| {
        if message[0] == b'K' {
            message[5..9].copy_from_slice(&[4, 0xec, 0xb7, 0xe6]);
        }
        message
    });
    (Box::new(up), down)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_is_refused_with_a_hint() {
    let assert_pooler = |error: Error, said: &str| {
        assert_eq!((error.code().id, error.kind()), ("HW2047", Kind::Environment), "{error}");
        assert!(error.what().contains(said) && error.hint_text().contains("server itself"), "{error}");
    };
    let url = |port: u16| hosts(&[port], "postgres", "");
    assert_pooler(role(&url(pgbouncer().await)).await.expect_err("PgBouncer"), "unsupported startup parameter");
    const IGNORED: &[&str] = &["bytea_output", "extra_float_digits", "lc_monetary", "xmlbinary", "search_path", "replication"];
    const TIMEOUTS: &[&str] = &["statement_timeout", "lock_timeout"];
    for (swallowed, said) in [(IGNORED, "search_path"), (TIMEOUTS, "statement_timeout")] {
        let relay = Relay::with(&[shared().port], move |_| swallowing(swallowed)).await;
        assert_pooler(role(&url(relay.port)).await.expect_err("swallowed"), said);
    }
    // The defaults can be the same as our settings by chance; then replication is what is missing.
    let relay = Relay::with(&[shared().port], |_| swallowing(&["replication"])).await;
    let database = shared().database();
    shared().sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
    let connector = connector(&hosts(&[relay.port], &database, ""), json!({}));
    let intent = connector.prepare().await.expect("SQL is all it takes");
    assert_pooler(connector.create(&intent, false).await.expect_err("no replication"), "for replication");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_keeps_sessions_works_and_is_mentioned() {
    let database = shared().database();
    shared().sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
    let warned = async |port: u16| {
        let findings = connector(&hosts(&[port], &database, ""), json!({})).check().await.unwrap();
        let of = |finding: &headwater_connector::Finding| finding.error.as_ref().is_some_and(|error| error.code().id == "HW2047");
        findings.iter().any(|finding| of(finding) && finding.level == Level::Warning)
    };
    let honest = Relay::with(&[shared().port], |_| (same(), same())).await;
    let inventive = Relay::with(&[shared().port], |_| swallowing(&[])).await;
    assert!(!warned(shared().port).await && !warned(honest.port).await, "a plain relay is as good as a wire");
    assert!(warned(inventive.port).await);
    let connector = connector(&hosts(&[inventive.port], &database, ""), json!({}));
    let start = begin(&*connector).await;
    let source = connector.open(&start.identity, &start.position).await.expect("it keeps sessions");
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_default_of_server_role_or_database_reaches_a_session() {
    let server = Postgres::start(&["DateStyle='German'", "IntervalStyle='sql_standard'", "bytea_output='escape'"], "");
    server.sql(
        "postgres",
        "CREATE ROLE hostile SUPERUSER LOGIN; CREATE DATABASE h;
         ALTER DATABASE h SET TimeZone = 'Asia/Kathmandu'; ALTER DATABASE h SET search_path = 'evil'; ALTER DATABASE h SET xmlbinary = 'hex';
         ALTER ROLE hostile SET extra_float_digits = -15; ALTER ROLE hostile SET client_encoding = 'LATIN1';
         ALTER ROLE hostile SET default_transaction_read_only = on; ALTER ROLE hostile IN DATABASE h SET DateStyle = 'SQL, DMY';
         ALTER ROLE hostile IN DATABASE h SET statement_timeout = 1; ALTER ROLE hostile IN DATABASE h SET IntervalStyle = 'iso_8601'",
    );
    server.sql("h", "CREATE TABLE public.t (id timestamptz PRIMARY KEY, i interval, b bytea, f float8, e text)");
    let url = format!("postgres://hostile@127.0.0.1:{}/h", server.port);
    let connector = connector(&url, json!({}));
    let start = begin(&*connector).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    server.sql("h", "INSERT INTO public.t VALUES ('2026-02-01 12:00:00+00', '1 day 02:00', '\\x00ff', 0.1::float8 + 0.2, 'é')");
    let batch = next(&mut *source).await.unwrap();
    let change = batch.changes()[0];
    let texts = support::cells(&batch, change.after.expect("a row")).join(" | ");
    for text in ["2026-02-01", "12:00:00", "1 day 02:00:00", "0.30000000000000004", "é"] {
        assert!(texts.contains(text), "{text} is missing: {texts}");
    }
    source.close().await.unwrap();
    let mut session = Session::open(&url).await.unwrap();
    let sql = "SELECT timestamptz '2026-02-01 12:00+00', interval '1 day 02:00', bytea '\\x00ff', 0.1::float8 + 0.2, 'é'";
    let row: Vec<String> = session.query(sql).await.unwrap().remove(0).into_iter().flatten().collect();
    assert_eq!(row, ["2026-02-01 12:00:00+00", "1 day 02:00:00", "\\x00ff", "0.30000000000000004", "é"]);
    session.query("CREATE TEMP TABLE x ()").await.expect("it may write");
}
