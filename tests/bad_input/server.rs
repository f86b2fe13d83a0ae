//! What `check` and `run` find at the server.

use std::net::TcpListener;

use super::{NOWHERE, refused};
use crate::support::{
    daemon::Home,
    postgres::{Database, PASSWORD, Postgres},
};

const ORDERS: &str = "CREATE TABLE public.orders (id int PRIMARY KEY, note text)";

fn home(database: &Database, tables: &str) -> Home {
    let home = Home::new();
    home.shop(&database.url(), tables, "");
    home
}

/// Both `check` and `run` end with this code.
fn both_refused(home: &Home, exit: i32, code: &str, says: &[&str]) {
    refused(&home.run(&["check"]), exit, code, says);
    refused(&home.run(&["run"]), exit, code, says);
}

#[test]
fn a_pattern_without_match_is_refused() {
    let server = Postgres::shared();
    let database = server.database();
    database.sql(ORDERS);
    both_refused(&home(&database, "public.orders, \"public.customer_*\""), 2, "HW2011", &["public.customer_*"]);
}

#[test]
fn a_missing_table_is_refused_and_the_server_is_left_alone() {
    let server = Postgres::shared();
    let database = server.database();
    database.sql(ORDERS);
    both_refused(&home(&database, "public.orders, public.order"), 2, "HW2011", &["public.order"]);
    let made = "SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = current_database())
                     + (SELECT count(*) FROM pg_publication)";
    assert_eq!(database.value(made), "0", "a refused start leaves nothing at the server");
}

#[test]
fn a_table_without_a_key_gets_the_statement_that_mends_it() {
    let server = Postgres::shared();
    let database = server.database();
    database.sql("CREATE TABLE public.events (at timestamptz, what text)");
    both_refused(&home(&database, "public.events"), 2, "HW2012", &["public.events", "ALTER TABLE"]);
}

#[test]
fn a_key_outside_the_replica_identity_is_refused() {
    let server = Postgres::shared();
    let database = server.database();
    database.sql("CREATE TABLE public.orders (id int PRIMARY KEY, code text NOT NULL UNIQUE)");
    let home = Home::new();
    let rule = "    events:\n      tables:\n        public.orders: { key: [ code ] }\n";
    home.shop(&database.url(), "public.orders", rule);
    both_refused(&home, 2, "HW2012", &["public.orders", "ALTER TABLE", "REPLICA IDENTITY"]);
}

#[test]
fn two_tables_of_one_topic_are_refused() {
    let server = Postgres::shared();
    let database = server.database();
    database.sql(&format!("{ORDERS}; CREATE SCHEMA old; CREATE TABLE old.orders (id int PRIMARY KEY)"));
    both_refused(&home(&database, "\"*.orders\""), 2, "HW1150", &["public.orders", "old.orders", "shop.orders"]);
}

#[test]
fn a_rule_for_a_column_that_is_not_there_is_refused() {
    let server = Postgres::shared();
    let database = server.database();
    database.sql(ORDERS);
    let home = Home::new();
    home.shop(&database.url(), "public.orders", "    events: { tables: { public.orders: { exclude: [ nota ] } } }\n");
    both_refused(&home, 2, "HW1153", &["public.orders", "nota", "note"]);
}

#[test]
fn a_database_that_is_not_there_is_refused() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::new();
    home.shop(&format!("{}_nowhere", database.url()), "public.orders", "");
    both_refused(&home, 2, "HW2002", &["_nowhere"]);
}

#[test]
fn a_wrong_password_is_refused_and_not_shown() {
    const CANARY: &str = "wrong-password-canary";
    let server = Postgres::shared();
    let database = server.database();
    database.sql(ORDERS);
    let mut home = home(&database, "public.orders");
    home.set("SHOP_PASSWORD", CANARY);
    home.set("RUST_LOG", "trace");
    for command in ["check", "plan", "run"] {
        let outcome = home.run(&[command]);
        refused(&outcome, 3, "HW2000", &[]);
        assert!(!outcome.said().contains(CANARY), "{}", outcome.said());
    }
}

#[test]
fn a_host_that_is_down_fails_the_check_and_not_the_daemon() {
    let home = Home::new();
    home.shop(NOWHERE, "public.orders", "");
    refused(&home.run(&["check"]), 3, "HW0002", &["127.0.0.1:1"]);
    let mut daemon = home.start();
    let shop = daemon.wait_state("shop", "retrying");
    assert_eq!((&shop["error"]["code"], &shop["error"]["kind"]), (&"HW0002".into(), &"retry".into()), "{shop}");
    assert!(shop["error"]["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{shop}");
    assert_eq!(daemon.terminate(), Some(0), "a daemon that waits stops in order");
}

#[test]
fn a_server_without_logical_log_gets_the_statement_that_mends_it() {
    let server = Postgres::start_with(&["wal_level = replica"]);
    let database = server.database();
    database.sql(ORDERS);
    let home = home(&database, "public.orders");
    both_refused(&home, 3, "HW2009", &["ALTER SYSTEM SET wal_level = 'logical'"]);
}

#[test]
fn a_role_without_replication_gets_the_statement_that_mends_it() {
    let server = Postgres::shared();
    let database = server.database();
    // Roles belong to the whole server, which other tests use as well.
    let role = format!("reader_of_{}", database.name);
    database.sql(&format!(
        "{ORDERS}; CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}';
         ALTER TABLE public.orders OWNER TO {role}; GRANT CREATE ON DATABASE {} TO {role}",
        database.name
    ));
    let home = Home::new();
    home.shop(&database.url_as(&role), "public.orders", "");
    both_refused(&home, 3, "HW2003", &["ALTER ROLE", &role, "REPLICATION"]);
    database.sql(&format!("ALTER ROLE {role} REPLICATION"));
    home.run(&["check"]).expect_code(0);
}

#[test]
fn a_role_that_may_not_publish_is_told_so() {
    let server = Postgres::shared();
    let database = server.database();
    let role = format!("guest_of_{}", database.name);
    database.sql(&format!("{ORDERS}; CREATE ROLE {role} LOGIN REPLICATION PASSWORD '{PASSWORD}'"));
    let home = Home::new();
    home.shop(&database.url_as(&role), "public.orders", "");
    both_refused(&home, 3, "HW2003", &["publication headwater_", "CREATE"]);
}

#[test]
fn something_else_that_listens_is_no_server() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    // It accepts and hangs up, as a proxy without a server behind it does.
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let home = Home::new();
    home.shop(&format!("postgres://reader@127.0.0.1:{port}/shop"), "public.orders", "");
    refused(&home.run(&["check"]), 3, "HW000", &[&format!("127.0.0.1:{port}")]);
}

#[test]
fn a_literal_password_is_a_warning() {
    let server = Postgres::shared();
    let database = server.database();
    database.sql(ORDERS);
    let home = Home::new();
    home.write(
        "connectors/shop.yaml",
        &format!(
            "connectors:\n  shop:\n    source:\n      kind: postgres\n      url: {}\n      \
             password: {PASSWORD}\n      tables: [ public.orders ]\n",
            database.url()
        ),
    );
    refused(&home.run(&["check"]), 0, "HW1013", &["connectors/shop.yaml:6:17", "{ env: NAME }"]);
    let document = home.run(&["check", "--format", "json"]).json();
    assert_eq!((&document["errors"], document["warnings"].as_u64() > Some(0)), (&0.into(), true), "{document}");
}
