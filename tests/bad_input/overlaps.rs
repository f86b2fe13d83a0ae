//! Connectors that want the same thing, and files that nobody means.

use super::{
    NOWHERE, refused, refuses,
    surroundings::{error_is, live_once, prepare},
};
use crate::support::{
    daemon::Home,
    postgres::{Database, Postgres},
};

/// A second connector over a database, with these lines below its source.
fn twin(home: &Home, database: &Database, slot: &str, more: &str) {
    home.write(
        "connectors/another.yaml",
        &format!(
            "connectors:\n  another:\n    source:\n      kind: postgres\n      url: {}\n      password: {{ env: SHOP_PASSWORD }}\n      \
             tables: [ public.orders ]\n      slot: {slot}\n{more}",
            database.url()
        ),
    );
}

/// The name of the second comes first, as in the order of the files and of the starts.
#[test]
fn a_topic_that_another_connector_made_was_taken_by_whichever_started_first() {
    let server = Postgres::shared();
    let database = server.database();
    let home = prepare(&database);
    live_once(&home, &database);
    twin(&home, &database, &format!("twin_{}", database.name), "    events: { topic: \"shop.{entity}\" }\n");
    refused(&home.run(&["check"]), 2, "HW1171", &["\"shop\" writes to this topic already", "shop.orders", "events.topic"]);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    error_is(&daemon.wait_state("another", "stopped"), "HW1171", "config");
    // Its topics are its own also while it does not run.
    home.run(&["pause", "shop"]).expect_code(0);
    daemon.wait_state("shop", "paused");
    home.run(&["restart", "another"]).expect_code(0);
    error_is(&daemon.wait_state("another", "stopped"), "HW1171", "config");
    home.run(&["resume", "shop"]).expect_code(0);
    database.sql("INSERT INTO public.orders VALUES (2, 'second')");
    daemon.wait_caught_up("shop");
    assert_eq!(home.tail("shop.orders").len(), 2, "each row once");
    assert_eq!(daemon.terminate(), Some(2));
}

#[test]
fn a_slot_of_another_connector_was_to_be_dropped_and_is_now_refused() {
    let server = Postgres::shared();
    let database = server.database();
    let home = prepare(&database);
    live_once(&home, &database);
    let slot = database.slot();
    twin(&home, &database, &slot, "");
    for command in ["check", "plan", "run"] {
        let owner = format!("the replication slot {slot} at 127.0.0.1:{} is that of the connector \"another\"", server.port());
        refused(&home.run(&[command]), 2, "HW1007", &[&owner, "connectors.shop.source", "connectors/shop.yaml"]);
    }
    // A daemon that reads other files cannot know; it must not advise to drop what is somebody's.
    std::fs::remove_file(home.path("connectors/shop.yaml")).expect("the file");
    let daemon = home.start();
    assert_eq!(daemon.exit_code(), Some(1));
    let said = std::fs::read_to_string(home.path("stderr")).expect("what the daemon said");
    assert!(
        said.contains("HW2013") && said.contains("Name another slot with `slot` if something else reads this one."),
        "{said}"
    );
    assert_eq!(database.slot(), slot, "it is still there");
}

#[test]
fn a_file_of_a_megabyte_and_one_that_is_no_text_are_refused_where_they_are_wrong() {
    let home = Home::new();
    home.shop(NOWHERE, "public.orders", &format!("{}      tabels: [ public.items ]\n", "# a comment\n".repeat(90_000)));
    refuses(&home, "HW1002", &["connectors/shop.yaml:90009:7", "Did you mean tables?"]);
    std::fs::write(home.path("connectors/shop.yaml"), b"connectors:\n  shop: \xff\xfe\n").expect("the file");
    refuses(&home, "HW1000", &["connectors/shop.yaml", "UTF-8"]);
}
