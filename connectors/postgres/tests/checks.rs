//! Preflight: each finding, good and bad, with the statement that mends it.

mod support;

use headwater_connector::{Finding, Level, SourceConnector};
use serde_json::json;
use support::{Postgres, begin, connector, shared};

fn text(finding: &Finding) -> String {
    finding.error.as_ref().map_or_else(|| finding.what.clone(), |error| format!("{error} | {}", error.hint_text()))
}

async fn all(connector: &dyn SourceConnector, level: Level) -> Vec<String> {
    connector.check().await.unwrap().iter().filter(|finding| finding.level == level).map(text).collect()
}

fn holds(found: &[String], parts: &[&str]) {
    assert!(found.iter().any(|text| parts.iter().all(|part| text.contains(part))), "{parts:?} in {found:#?}");
}

fn lacks(found: &[String], part: &str) {
    assert!(!found.iter().any(|text| text.contains(part)), "{part} in {found:#?}");
}

fn none(found: &[String]) {
    assert!(found.is_empty(), "{found:#?}");
}

/// A database of the server with a table, and its connector.
fn shop(server: &Postgres) -> (String, Box<dyn SourceConnector>) {
    let database = server.database();
    server.sql(&database, "CREATE TABLE t (id int PRIMARY KEY)");
    let connector = connector(&server.url(&database), json!({}));
    (database, connector)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_order_gives_no_error() {
    let server = Postgres::start(&["max_slot_wal_keep_size=1GB"], "");
    let (_, connector) = shop(&server);
    let good = all(&*connector, Level::Ok).await;
    for part in [
        "wal_level is logical",
        "the role may replicate",
        "a replication slot is free",
        "a WAL sender is free",
        "clock and ours agree",
        "keeps up to 1GB",
        "gives up a dead connection after 10s",
        "keyed by id",
        "will be created",
        "a first start creates it",
    ] {
        holds(&good, &[part]);
    }
    begin(&*connector).await;
    let good = all(&*connector, Level::Ok).await;
    for part in ["has every selected table", "stands at", "bytes of log, and loses its place after"] {
        holds(&good, &[part]);
    }
    none(&all(&*connector, Level::Error).await);
    none(&all(&*connector, Level::Warning).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_set_up_wrongly_gives_every_statement() {
    let server =
        Postgres::start(&["wal_level=replica", "max_replication_slots=1", "max_wal_senders=0", "wal_sender_timeout=0"], "");
    let (_, connector) = shop(&server);
    server.sql("postgres", "SELECT pg_create_physical_replication_slot('taken')");
    let errors = all(&*connector, Level::Error).await;
    holds(&errors, &["HW2009", "wal_level is replica", "ALTER SYSTEM SET wal_level = 'logical';"]);
    holds(&errors, &["HW2010", "no replication slot is free", "ALTER SYSTEM SET max_replication_slots = "]);
    holds(&errors, &["HW2010", "no WAL sender is free", "ALTER SYSTEM SET max_wal_senders = "]);
    let warnings = all(&*connector, Level::Warning).await;
    holds(&warnings, &["HW2028", "max_slot_wal_keep_size", "ALTER SYSTEM SET max_slot_wal_keep_size = "]);
    holds(&warnings, &["HW2044", "ALTER SYSTEM SET wal_sender_timeout = '60s'"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_of_others_is_looked_into() {
    let (database, connector) = shop(shared());
    shared().sql(&database, "CREATE TABLE more (id int PRIMARY KEY)");
    shared().sql(&database, &format!("CREATE PUBLICATION hw_{database} FOR TABLE t WITH (publish = 'insert')"));
    holds(&all(&*connector, Level::Error).await, &["HW2014", "leaves out update", "SET (publish = "]);
    let role = format!("reader_{database}");
    shared().sql(&database, &format!("CREATE ROLE {role} LOGIN REPLICATION"));
    let url = shared().url(&database).replace("postgres@", &format!("{role}@"));
    let poor = support::connector(&url, json!({}));
    holds(&all(&*poor, Level::Error).await, &["HW2003", "ADD TABLE \"public\".\"more\""]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_columns_that_a_publication_leaves_out_are_told() {
    let (database, connector) = shop(shared());
    shared().sql(&database, "ALTER TABLE t ADD a int; CREATE TABLE u (id int PRIMARY KEY)");
    shared().sql(&database, &format!("CREATE PUBLICATION hw_{database} FOR TABLE t (id) WHERE (id > 5), u"));
    let warnings = all(&*connector, Level::Warning).await;
    holds(&warnings, &["HW2014", "public.t", "rows", "columns", "SET TABLE"]);
    lacks(&warnings, "public.u");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_to_create_is_granted_by_the_statement_that_is_printed() {
    let (database, _) = shop(shared());
    let role = format!("owner_{database}");
    shared().sql(&database, &format!("CREATE ROLE {role} LOGIN REPLICATION; ALTER TABLE t OWNER TO {role}"));
    let url = shared().url(&database).replace("postgres@", &format!("{role}@"));
    let connector = support::connector(&url, json!({}));
    let errors = all(&*connector, Level::Error).await;
    let grant = format!("GRANT CREATE ON DATABASE \"{database}\" TO \"{role}\";");
    holds(&errors, &["HW2003", &grant]);
    shared().sql(&database, &grant);
    none(&all(&*connector, Level::Error).await);
    begin(&*connector).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_in_the_wrong_hands_is_told() {
    let (database, connector) = shop(shared());
    shared().sql(&database, &format!("SELECT pg_create_logical_replication_slot('hw_{database}', 'test_decoding')"));
    holds(&all(&*connector, Level::Error).await, &["HW2019", "test_decoding"]);
    shared().sql(&database, &format!("SELECT pg_drop_replication_slot('hw_{database}')"));
    let start = begin(&*connector).await;
    let other = support::connector(&format!("{}?application_name=another", shared().url(&database)), json!({}));
    let source = other.open(&start.identity, &start.position).await.unwrap();
    holds(&all(&*connector, Level::Warning).await, &["HW2017", "active for process"]);
    holds(&all(&*other, Level::Ok).await, &["read by a running headwater"]);
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_can_be_written_in_more_than_one_way_are_told() {
    // A build with ICU, which others need not have.
    let server = Postgres::start_version(15, &[]);
    let database = server.database();
    server.sql(
        &database,
        "CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE DOMAIN amount AS numeric; CREATE DOMAIN label AS text COLLATE blind;
         CREATE TABLE folded (id int, name text COLLATE blind, PRIMARY KEY (id, name)); CREATE TABLE labels (id label PRIMARY KEY);
         CREATE TABLE amounts (id amount PRIMARY KEY); CREATE TABLE spans (id interval PRIMARY KEY); CREATE TABLE floats (id float8 PRIMARY KEY);
         CREATE TABLE plain (id numeric(10, 2) PRIMARY KEY, name text COLLATE blind, n numeric); CREATE TABLE texts (id text PRIMARY KEY)",
    );
    let connector = connector(&server.url(&database), json!({}));
    let warnings = all(&*connector, Level::Warning).await;
    for (table, column) in [("folded", "name"), ("labels", "id"), ("amounts", "id"), ("spans", "id"), ("floats", "id")] {
        holds(&warnings, &["HW2063", &format!("public.{table}"), &format!("columns {column}")]);
    }
    lacks(&warnings, "public.plain");
    lacks(&warnings, "public.texts");
}
