//! What goes wrong around a daemon that has worked before, or beside one that works.

use std::{
    net::TcpListener,
    process::{Command, Stdio},
};

use serde_json::Value;

use super::{NOWHERE, refused};
use crate::support::{
    PATIENCE,
    daemon::{Daemon, Home},
    postgres::{Database, PASSWORD, Postgres},
    postgres_program, wait_until,
};

pub fn prepare(database: &Database) -> Home {
    database.sql("CREATE TABLE public.orders (id int PRIMARY KEY, note text)");
    let home = Home::new();
    home.shop(&database.url(), "public.orders", "");
    home
}

/// One life of the daemon that publishes one event, so that there is a checkpoint to go on from.
pub fn live_once(home: &Home, database: &Database) {
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (1, 'first')");
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    // The server may take a moment to notice that its client has gone.
    wait_until("the slot to be free", PATIENCE, || {
        let active = database.value("SELECT active FROM pg_replication_slots WHERE database = current_database()");
        if active == "f" { Ok(()) } else { Err(active) }
    });
}

/// A connector in another database keeps the daemon alive, so that the status of the broken one can be read.
fn beside(home: &Home, database: &Database) {
    database.sql("CREATE TABLE public.items (id int PRIMARY KEY)");
    home.write(
        "connectors/other.yaml",
        &format!(
            "connectors:\n  other:\n    source:\n      kind: postgres\n      url: {}\n      \
             password: {{ env: SHOP_PASSWORD }}\n      tables: [ public.items ]\n      slot: headwater_{}\n",
            database.url(),
            database.name
        ),
    );
}

pub fn error_is(connector: &Value, code: &str, kind: &str) {
    let error = &connector["error"];
    assert_eq!((&error["code"], &error["kind"]), (&code.into(), &kind.into()), "{connector}");
    assert!(error["hint"].as_str().is_some_and(|hint| hint.ends_with('.')), "{connector}");
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{connector}");
}

pub fn ends_lost(home: &Home, code: &str, slot: &str) {
    let daemon = home.start();
    assert_eq!(daemon.exit_code(), Some(1), "lost history ends the daemon with code 1");
    let said = std::fs::read_to_string(home.path("stderr")).expect("what the daemon said");
    for text in [code, slot, "hint:"] {
        assert!(said.contains(text), "no {text:?} in:\n{said}");
    }
    assert!(!said.contains(PASSWORD), "the password is shown:\n{said}");
}

#[test]
fn a_dropped_slot_stops_the_connector_and_no_other() {
    let server = Postgres::shared();
    let (database, other) = (server.database(), server.database());
    let home = prepare(&database);
    live_once(&home, &database);
    let slot = database.slot();
    database.sql(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    ends_lost(&home, "HW2015", &slot);
    beside(&home, &other);
    let mut daemon = home.start();
    let shop = daemon.wait_state("shop", "stopped");
    error_is(&shop, "HW2015", "lost");
    daemon.wait_state("other", "streaming");
    other.sql("INSERT INTO public.items VALUES (1)");
    daemon.wait_caught_up("other");
    assert_eq!(home.tail("other.items").len(), 1, "the sound connector goes on");
    let slots = database.rows("SELECT 1 FROM pg_replication_slots WHERE database = current_database()");
    assert!(slots.is_empty(), "a lost slot is never made anew by itself");
    // The sound connector ends in order; what stopped the other is the result of the run.
    assert_eq!(daemon.terminate(), Some(1));
}

#[test]
fn a_slot_that_somebody_advanced_stops_the_connector() {
    let server = Postgres::shared();
    let database = server.database();
    let home = prepare(&database);
    live_once(&home, &database);
    let slot = database.slot();
    database.sql("INSERT INTO public.orders VALUES (2, 'thrown away')");
    database.sql(&format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())"));
    ends_lost(&home, "HW2016", &slot);
    assert_eq!(home.tail("shop.orders").len(), 1, "nothing is published behind a gap");
}

#[test]
fn a_dropped_publication_stops_the_connector() {
    let server = Postgres::shared();
    let database = server.database();
    let home = prepare(&database);
    live_once(&home, &database);
    let publication = database.value("SELECT pubname FROM pg_publication");
    database.sql(&format!("DROP PUBLICATION {publication}"));
    ends_lost(&home, "HW2013", &publication);
}

#[test]
fn a_slot_in_use_is_waited_for() {
    let server = Postgres::shared();
    let database = server.database();
    let home = prepare(&database);
    live_once(&home, &database);
    let mut thief = Thief::start(&server, &database);
    let mut daemon = home.start();
    let shop = daemon.wait_state("shop", "retrying");
    error_is(&shop, "HW2017", "retry");
    thief.end();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (2, 'second')");
    daemon.wait_caught_up("shop");
    assert_eq!(home.tail("shop.orders").len(), 2);
}

/// PostgreSQL's own client on the connector's slot. Without status messages it confirms nothing.
struct Thief(std::process::Child);

impl Thief {
    fn start(server: &Postgres, database: &Database) -> Self {
        let slot = database.slot();
        let publication = database.value("SELECT pubname FROM pg_publication");
        let child = Command::new(postgres_program("pg_recvlogical"))
            .args(["-h", "127.0.0.1", "-U", "postgres", "-w", "--start", "-f", "/dev/null", "--status-interval=0"])
            .args(["-p", &server.port().to_string(), "-d", &database.name, "-S", &slot])
            .args(["-o", "proto_version=1", "-o", &format!("publication_names={publication}")])
            .env("PGPASSWORD", PASSWORD)
            .current_dir("/")
            .stderr(Stdio::null())
            .spawn()
            .expect("pg_recvlogical starts");
        let mut thief = Self(child);
        wait_until("the slot to be taken", PATIENCE, || {
            assert!(thief.0.try_wait().expect("its state").is_none(), "pg_recvlogical ended");
            let active = database.value("SELECT active FROM pg_replication_slots WHERE database = current_database()");
            if active == "t" { Ok(()) } else { Err(active) }
        });
        thief
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Thief {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn a_second_daemon_on_the_same_log_is_refused_and_the_first_is_undisturbed() {
    let server = Postgres::shared();
    let database = server.database();
    let home = prepare(&database);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    let second = Home::new();
    second.shop(&database.url(), "public.orders", "");
    let data = home.path("data");
    second.write("headwater.yaml", &second.main(&format!("{{ kind: embedded, path: {} }}", data.display())));
    refused(&second.run(&["run"]), 3, "HW1220", &[&data.display().to_string()]);
    database.sql("INSERT INTO public.orders VALUES (1, 'one')");
    let shop = daemon.wait_caught_up("shop");
    assert!(shop["error"].is_null(), "{shop}");
    undisturbed(&daemon);
    assert_eq!(home.tail("shop.orders").len(), 1);
}

/// The first connection and the first writer are still the ones that work.
fn undisturbed(daemon: &Daemon) {
    let said = daemon.stderr();
    assert!(!said.contains("retrying") && !said.contains("WARN") && !said.contains("ERROR"), "disturbed:\n{said}");
}

#[test]
fn a_log_below_a_file_is_refused() {
    let home = Home::new();
    home.shop(NOWHERE, "public.orders", "");
    home.write("file", "");
    home.write("headwater.yaml", &home.main("{ kind: embedded, path: ./file/data }"));
    refused(&home.run(&["run"]), 3, "HW1221", &["file/data"]);
    refused(&home.run(&["check"]), 3, "HW1221", &["file/data"]);
}

#[test]
fn a_file_that_is_no_log_is_refused_and_kept() {
    let home = Home::new();
    home.shop(NOWHERE, "public.orders", "");
    home.write(
        "data/log.db",
        "my diary, which is longer than the header of a database file, so that it looks like one to nobody\n",
    );
    let before = std::fs::read(home.path("data/log.db")).expect("the file");
    refused(&home.run(&["run"]), 3, "HW122", &["data"]);
    assert_eq!(std::fs::read(home.path("data/log.db")).expect("the file"), before, "a foreign file was changed");
}

#[test]
fn a_port_in_use_is_refused_before_anything_is_touched() {
    let home = Home::new();
    home.shop(NOWHERE, "public.orders", "");
    let _listener = TcpListener::bind(home.address()).expect("the port of the daemon");
    refused(&home.run(&["run"]), 3, "HW1190", &["http.listen", &home.address().to_string()]);
    assert!(!home.path("data").exists(), "the port comes first");
}

#[test]
fn status_without_a_daemon_says_how_to_start_one() {
    let home = Home::new();
    home.shop(NOWHERE, "public.orders", "");
    refused(&home.run(&["status"]), 3, "HW1100", &[&home.address().to_string(), "headwater run"]);
    home.write("headwater.yaml", "http: { listen: off }\ninclude: [ connectors/*.yaml ]\n");
    refused(&home.run(&["status"]), 2, "HW1101", &["http.listen"]);
}

#[test]
fn tail_knows_what_is_not_there() {
    let server = Postgres::shared();
    let database = server.database();
    let home = prepare(&database);
    refused(&home.run(&["tail", "shop.orders", "--until-end"]), 3, "HW1222", &["data", "headwater run"]);
    live_once(&home, &database);
    refused(&home.run(&["tail", "shop.order", "--until-end"]), 2, "HW1204", &["shop.order", "headwater plan"]);
    refused(&home.run(&["tail", "shop.orders", "--until-end", "--partition", "3"]), 2, "HW1104", &["partition 3"]);
}

#[test]
fn the_checkpoint_of_another_database_is_refused_and_nobody_is_disturbed() {
    let server = Postgres::shared();
    let (database, other) = (server.database(), server.database());
    let home = prepare(&database);
    live_once(&home, &database);
    other.sql("CREATE TABLE public.orders (id int PRIMARY KEY, note text)");
    home.shop(&other.url(), "public.orders", "");
    refused(&home.run(&["run"]), 2, "HW2021", &[&other.name]);
    let made = "SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = current_database())
                     + (SELECT count(*) FROM pg_publication)";
    assert_eq!(other.value(made), "0", "the other database is left alone");
    home.shop(&database.url(), "public.orders", "");
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (2, 'second')");
    daemon.wait_caught_up("shop");
    assert_eq!(home.tail("shop.orders").len(), 2, "the right database goes on where it was");
}
