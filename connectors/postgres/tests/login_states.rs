//! Servers that take nobody now, or not us: what passes is tried again, what does not is named with the statement that mends it.

#[path = "support/standby.rs"]
mod standby;
mod support;

use headwater_connector::{Error, Kind};
use headwater_postgres::Session;
use serde_json::json;
use standby::Standby;
use support::{Postgres, begin, connector, eventually, shared};

const BUSY: (&str, Kind) = ("HW2004", Kind::Retry);

async fn refusal(url: &str) -> Error {
    connector(url, json!({ "password": "geheim" })).check().await.expect_err("refused")
}

fn assert_refused(error: &Error, (code, kind): (&str, Kind), said: &str) {
    assert_eq!((error.code().id, error.kind()), (code, kind), "{error}");
    assert!(error.to_string().contains(said), "{said:?} is missing: {error}");
    assert!(error.hint_text().ends_with(['.', ';']), "a hint is a sentence or a statement: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_free_wal_sender_the_connector_waits_for_one() {
    let server = Postgres::start(&["max_wal_senders=1"], "");
    let first = connector(&server.url(&server.database()), json!({}));
    let database = server.database();
    let second = connector(&server.url(&database), json!({}));
    server.sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
    let start = begin(&*second).await;
    // The first connector's database has no table, so only a session of it is needed: any replica would do.
    let holder = first.prepare().await.expect_err("no table");
    assert_eq!(holder.code().id, "HW2011");
    let source = second.open(&start.identity, &start.position).await.unwrap();
    let error = second.verify(&start.identity).await.expect_err("no sender");
    assert_refused(&error, BUSY, "max_wal_senders = 20");
    source.close().await.unwrap();
    eventually("a free sender", || server.sql("postgres", "SELECT count(*) FROM pg_stat_replication") == "0");
    second.verify(&start.identity).await.expect("a sender is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_all_connections_taken_is_tried_again() {
    let server = Postgres::start(&["max_connections=6", "superuser_reserved_connections=3", "max_wal_senders=5"], "");
    server.sql("postgres", "CREATE ROLE many LOGIN; CREATE ROLE few LOGIN CONNECTION LIMIT 1");
    let url = |user: &str| format!("postgres://{user}@127.0.0.1:{}/postgres", server.port);
    let held = Session::open(&url("few")).await.unwrap();
    assert_refused(&Session::open(&url("few")).await.err().expect("one too many"), BUSY, "53300");
    let mut all = vec![held];
    let error = loop {
        match Session::open(&url("many")).await {
            Ok(session) => all.push(session),
            Err(error) => break error,
        }
        assert!(all.len() < 6, "more sessions than there may be");
    };
    assert_refused(&error, BUSY, "53300");
    drop(all);
    eventually("free connections", || {
        server.sql("postgres", "SELECT count(*) FROM pg_stat_activity WHERE usename IN ('many', 'few')") == "0"
    });
    Session::open(&url("many")).await.expect("free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_stopping_is_tried_again() {
    let server = Postgres::start(&[], "");
    let mut held = Session::open(&server.url("postgres")).await.unwrap();
    let file = std::fs::read_to_string(server.data().join("postmaster.pid")).unwrap();
    let pid = file.lines().next().unwrap();
    // A smart shutdown waits for the session that we hold, and lets nobody in.
    assert!(std::process::Command::new("kill").args(["-TERM", pid]).status().unwrap().success());
    let mut found = None;
    eventually("the end of new sessions", || {
        found = server.try_sql("postgres", "SELECT 1").err();
        found.is_some()
    });
    let error = Session::open(&server.url("postgres")).await.err().expect("stopping");
    assert_refused(&error, BUSY, "57P03");
    held.query("SELECT 1").await.expect("who is in may finish");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_ready_for_sessions_is_tried_again() {
    let primary = Postgres::start(&[], "");
    let standby = Standby::of(&primary, &["hot_standby=off"]).await;
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", standby.port);
    assert_refused(&Session::open(&url).await.err().expect("not ready"), BUSY, "57P03");
    // With the primary in the list as well, that one is taken.
    let both = format!("postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres", standby.port, primary.port);
    Session::open(&both).await.expect("the primary");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_in_is_told_what_to_run() {
    shared().sql(
        "postgres",
        "CREATE ROLE nobody; CREATE ROLE walk LOGIN; CREATE DATABASE closed; REVOKE CONNECT ON DATABASE closed FROM PUBLIC",
    );
    let url = |user: &str, database: &str| format!("postgres://{user}@127.0.0.1:{}/{database}", shared().port);
    let open = async |url: String| Session::open(&url).await.err().expect("refused");
    let login = ("HW2000", Kind::Environment);
    assert_refused(&open(url("no_such_role", "postgres")).await, login, "28000");
    assert_refused(&open(url("nobody", "postgres")).await, login, "28000");
    assert_refused(&open(url("walk", "nowhere")).await, ("HW2002", Kind::Config), "3D000");
    let error = open(url("walk", "closed")).await;
    assert_refused(&error, ("HW2003", Kind::Environment), "GRANT CONNECT ON DATABASE \"closed\" TO \"walk\";");
    shared().sql("postgres", error.hint_text().trim_start_matches("Run "));
    Session::open(&url("walk", "closed")).await.expect("the hint mends it");
    let database = shared().database();
    shared().sql(&database, "CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t OWNER TO walk");
    shared().sql("postgres", &format!("GRANT CREATE ON DATABASE {database} TO walk"));
    let connector = connector(&url("walk", &database), json!({}));
    let intent = connector.prepare().await.unwrap();
    let error = connector.create(&intent, false).await.expect_err("no REPLICATION");
    assert_refused(&error, ("HW2003", Kind::Environment), "ALTER ROLE \"walk\" REPLICATION;");
    shared().sql("postgres", error.hint_text().trim_start_matches("Run "));
    connector.create(&intent, false).await.expect("the hint mends it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_to_a_server_that_asks_for_none_is_said_so() {
    // The default of initdb lets everybody in from here.
    let error = refusal(&format!("postgres://postgres@127.0.0.1:{}/postgres", shared().port)).await;
    assert_refused(&error, ("HW2050", Kind::Environment), "pg_hba.conf");
}
