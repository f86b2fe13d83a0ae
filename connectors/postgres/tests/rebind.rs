//! What a server is taken for when a connector is to begin anew or to go on there: nothing that would lose rows is called good.

mod support;

use headwater_connector::{Identity, Intent, IntentMode, Kind, Position, SourceConnector, Survey};
use serde_json::json;
use support::{Postgres, begin, connector, firsts, is, refused, shared};

fn started_on(server: &Postgres) -> (String, Box<dyn SourceConnector>) {
    let database = server.database();
    server.sql(&database, "CREATE TABLE t (id int PRIMARY KEY, name text)");
    let connector = connector(&server.url(&database), json!({}));
    (database, connector)
}

async fn survey(connector: &dyn SourceConnector, identity: &Identity, position: &Position) -> Survey {
    connector.survey(Some(identity), Some(position)).await.expect("a survey")
}

fn fact<'a>(survey: &'a Survey, name: &str) -> &'a str {
    survey.facts.iter().find(|(found, _)| *found == name).map_or("", |(_, value)| value)
}

fn end(server: &Postgres) -> Position {
    Position::new(format!("1:{}", server.sql("postgres", "SELECT pg_current_wal_lsn()")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_branched_off_before_the_position_is_never_gone_on_with() {
    let server = Postgres::start(&[], "");
    let (database, connector) = started_on(&server);
    let start = begin(&*connector).await;
    let saved = server.save();
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    server.sql(&database, "INSERT INTO t VALUES (1)");
    let (_, position) = firsts(&mut *source, 1).await;
    source.close().await.unwrap();
    server.restore(&saved);
    server.fork();
    // By its numbers alone the position is good: the slot is behind it, and the log has grown beyond it. What lies between was never read.
    server.sql(&database, "INSERT INTO t SELECT i FROM generate_series(2, 5000) i");
    let found = survey(&*connector, &start.identity, &position).await;
    is(&found.rebind.unwrap_err(), "HW2022", Kind::Lost);
    let found = survey(&*connector, &start.identity, &position).await;
    assert!(fact(&found, "history").contains("before the position"), "{found:?}");
    found.anew.unwrap();
    // A position from before the fork is good on it, and stays so under the identity that is given out.
    let found = survey(&*connector, &start.identity, &start.position).await;
    let identity = found.rebind.unwrap();
    let mut source = connector.open(&identity, &start.position).await.unwrap();
    assert_eq!(firsts(&mut *source, 4999).await.0[0], "2");
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_of_another_system_or_database_mean_nothing() {
    let (_, connector) = started_on(shared());
    let start = begin(&*connector).await;
    let other = Postgres::start_of_another_origin();
    let (database, elsewhere) = started_on(&other);
    begin(&*elsewhere).await;
    other.sql(&database, "INSERT INTO t VALUES (1)");
    // Its slot is behind this position and its log reaches it, by chance.
    let found = survey(&*elsewhere, &start.identity, &end(&other)).await;
    is(&found.rebind.unwrap_err(), "HW2021", Kind::Config);
    let (sentence, intent) = found.anew.unwrap();
    assert!(sentence.contains("taken over") && sentence.contains("another system"), "{sentence}");
    assert!(intent.is_none());

    let (database, sibling) = started_on(shared());
    begin(&*sibling).await;
    shared().sql(&database, "INSERT INTO t VALUES (1)");
    let found = survey(&*sibling, &start.identity, &end(shared())).await;
    is(&found.rebind.unwrap_err(), "HW2021", Kind::Config);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_renamed_is_the_same() {
    let server = shared();
    let (database, connector) = started_on(server);
    let start = begin(&*connector).await;
    drop(connector);
    let renamed = format!("{database}_renamed");
    server.sql("postgres", &format!("ALTER DATABASE {database} RENAME TO {renamed}"));
    let names = json!({ "slot": start.identity.get("slot"), "publication": start.identity.get("publication") });
    let connector = support::connector(&server.url(&renamed), names);
    is(&refused(&*connector, &start, &start.position).await, "HW2021", Kind::Config);
    let identity = survey(&*connector, &start.identity, &start.position).await.rebind.unwrap();
    connector.open(&identity, &start.position).await.unwrap().close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn inside_a_transaction_only_the_same_publication_goes_on() {
    let server = shared();
    let (database, connector) = started_on(server);
    let start = begin(&*connector).await;
    let inside = Position::new(format!("{}:757@7FFF/0+12", start.position.as_str()));
    survey(&*connector, &start.identity, &inside).await.rebind.unwrap_err();
    // A commit that is in the log, so that only the publication speaks against it.
    server.sql(&database, "INSERT INTO t VALUES (1)");
    let inside = Position::new(format!("{}:757@{}+12", start.position.as_str(), &start.position.as_str()[2..]));
    survey(&*connector, &start.identity, &inside).await.rebind.unwrap();
    let (sentence, _) = survey(&*connector, &start.identity, &inside).await.anew.unwrap();
    assert!(sentence.contains("comes again"), "12 messages are published already: {sentence}");

    server.sql(&database, "CREATE PUBLICATION other FOR TABLE t WHERE (id > 0)");
    let other = support::connector(&server.url(&database), json!({ "publication": "other" }));
    is(&survey(&*other, &start.identity, &inside).await.rebind.unwrap_err(), "HW2021", Kind::Config);
    survey(&*other, &start.identity, &start.position).await.rebind.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intent_drops_no_slot_but_the_one_it_names() {
    let server = shared();
    let (database, connector) = started_on(server);
    let intent = connector.prepare().await.unwrap();
    assert_eq!(intent.mode, IntentMode::Create);
    // The config was changed since, and somebody else's slot bears the name that it has now.
    let slot = format!("theirs_{database}");
    server.sql(&database, &format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
    let renamed = support::connector(&server.url(&database), json!({ "slot": slot }));
    let appeared = renamed.create(&intent, true).await.unwrap_err();
    is(&appeared, "HW2020", Kind::Environment);
    let count =
        |slot: &str| server.sql(&database, &format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'"));
    assert_eq!(count(&slot), "1");
    // Nor one that headwater cannot have made.
    let named = format!("hw_{database}");
    server.sql(&database, &format!("SELECT pg_create_physical_replication_slot('{named}')"));
    let again = connector.create(&Intent { mode: IntentMode::Create, detail: intent.detail }, true).await.unwrap_err();
    is(&again, "HW2019", Kind::Config);
    assert_eq!(count(&named), "1");
    server.sql(&database, &format!("SELECT pg_drop_replication_slot('{named}'), pg_drop_replication_slot('{slot}')"));
}
