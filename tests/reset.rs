//! Beginning anew, and going on with a server that is not the one it was: only for somebody who says the incarnation.

use crate::support::{
    daemon::{Home, Outcome},
    kafka::Kafka,
    postgres::{Database, Postgres},
};

/// What a reset itself repeats or leaves out shows best where no rows are read again.
const NEVER: &str = "      backfill: never\n";

/// A connector that has published one row and whose daemon has ended.
fn published_one(database: &Database) -> Home {
    let home = Home::of_orders(database);
    home.shop(&database.url(), "public.orders", NEVER);
    publish_one(&home, database);
    home
}

fn publish_one(home: &Home, database: &Database) {
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (1)");
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
}

/// The value behind a name in the evidence.
fn shown(outcome: &Outcome, name: &str) -> String {
    let line = outcome.stdout.lines().find(|line| line.split_whitespace().next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {}", outcome.said()));
    line.strip_prefix(name).unwrap_or_default().trim().to_owned()
}

/// Looks, and confirms what was shown.
fn reset(home: &Home, arguments: &[&str]) -> Outcome {
    let mut look = vec!["reset", "shop"];
    look.extend(arguments);
    let evidence = home.run(&look);
    evidence.expect_code(2);
    assert!(evidence.stderr.contains("HW1108"), "{}", evidence.said());
    let incarnation = shown(&evidence, "incarnation");
    look.extend(["--incarnation", &incarnation]);
    let outcome = home.run(&look);
    outcome.expect_code(0);
    outcome
}

#[test]
fn after_a_lost_slot_a_reset_begins_a_new_era() {
    let server = Postgres::shared();
    let database = server.database();
    let home = published_one(&database);
    database.sql(&format!("SELECT pg_drop_replication_slot('{}')", database.slot()));
    database.sql("INSERT INTO public.orders VALUES (2)");
    let daemon = home.start();
    assert_eq!(daemon.exit_code(), Some(1));
    // Without the incarnation, and with another one, nothing changes.
    let evidence = home.run(&["reset", "shop"]);
    evidence.expect_code(2);
    assert!(evidence.stdout.contains("does not exist") && evidence.stdout.contains("not in the topics"), "{}", evidence.said());
    let wrong = home.run(&["reset", "shop", "--incarnation", "00000000-0000-0000-0000-000000000000"]);
    wrong.expect_code(2);
    assert!(wrong.stderr.contains("HW1178"), "{}", wrong.said());
    assert_eq!(home.start().exit_code(), Some(1));

    reset(&home, &["--reason", "the slot was dropped by hand"]);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (3)");
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    let records = home.tail("shop.orders");
    let keys: Vec<&str> = records.iter().map(|record| record.key.as_str()).collect();
    assert_eq!(keys, [r#"{"id":1}"#, r#"{"id":3}"#], "what happened without a slot is lost, and nothing else");
    let eras: Vec<u64> = records.iter().map(|record| record.pos().expect("hw.pos").0).collect();
    assert_eq!(eras, [0, 1]);
    assert!(records[0].header("hw.pos") < records[1].header("hw.pos"), "positions sort in the order of publication");
    let audit = home.tail("headwater.shop.audit");
    assert_eq!(audit.len(), 1);
    let value = audit[0].value.as_ref().expect("a value");
    assert_eq!((value["action"].as_str(), value["to"]["era"].as_u64()), (Some("reset"), Some(1)));
    assert_eq!(value["reason"], "the slot was dropped by hand");
    assert_ne!(value["from"]["incarnation"], value["to"]["incarnation"]);
}

#[test]
fn a_slot_that_is_ahead_is_taken_over_where_it_stands() {
    let server = Postgres::shared();
    let database = server.database();
    let home = published_one(&database);
    database.sql("INSERT INTO public.orders VALUES (2)");
    database.sql(&format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", database.slot()));
    database.sql("INSERT INTO public.orders VALUES (3)");
    assert_eq!(home.start().exit_code(), Some(1));
    // The position cannot be kept: what lies between is gone.
    let refused = home.run(&["reset", "shop", "--rebind"]);
    refused.expect_code(1);
    assert!(refused.stderr.contains("HW2016"), "{}", refused.said());
    reset(&home, &[]);
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    let keys: Vec<String> = home.tail("shop.orders").into_iter().map(|record| record.key).collect();
    assert_eq!(keys, [r#"{"id":1}"#, r#"{"id":3}"#]);
}

#[test]
fn a_slot_that_was_given_up_is_replaced() {
    let server = Postgres::start_with(&["max_slot_wal_keep_size = '1MB'", "max_wal_size = '32MB'"]);
    let database = server.database();
    let home = published_one(&database);
    // The server removes what the slot needs at a checkpoint, once enough was written.
    for _ in 0..3 {
        database.sql("CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 20000); DROP TABLE filler");
        database.sql("SELECT pg_switch_wal()");
        database.sql("CHECKPOINT");
    }
    assert_eq!(home.start().exit_code(), Some(1));
    reset(&home, &[]);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (3)");
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    assert_eq!(home.tail("shop.orders").len(), 2);
}

#[test]
fn rebinding_keeps_the_position_under_another_identity() {
    let server = Postgres::shared();
    let database = server.database();
    let home = published_one(&database);
    let slot = database.slot();
    database.sql("INSERT INTO public.orders VALUES (2)");
    // The same log behind a slot of another name: for the checkpoint this is another source.
    database.sql(&format!("SELECT pg_copy_logical_replication_slot('{slot}', 'moved_{slot}')"));
    let file = std::fs::read_to_string(home.path("connectors/shop.yaml")).expect("the file");
    home.write("connectors/shop.yaml", &file.replace("slot: ", "slot: moved_"));
    assert_eq!(home.start().exit_code(), Some(2));
    reset(&home, &["--rebind", "--reason", "the slot was renamed"]);
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    let records = home.tail("shop.orders");
    let keys: Vec<&str> = records.iter().map(|record| record.key.as_str()).collect();
    assert_eq!(keys, [r#"{"id":1}"#, r#"{"id":2}"#], "nothing lost, nothing twice");
    let audit = home.tail("headwater.shop.audit");
    let value = audit[0].value.as_ref().expect("a value");
    assert_eq!(
        (value["action"].as_str(), value["from"]["position"].as_str()),
        (Some("rebind"), value["to"]["position"].as_str())
    );
}

/// The usual connector on the shared broker, under a prefix of its own.
fn on_kafka(kafka: &Kafka, database: &Database, prefix: &str) -> Home {
    database.sql("CREATE TABLE public.orders (id int PRIMARY KEY, note text)");
    let home = Home::new();
    let log = format!("{{ kind: kafka, bootstrap_servers: [\"{}\"], prefix: {prefix} }}", kafka.bootstrap);
    home.write("headwater.yaml", &home.main(&log));
    home.shop(&database.url(), "public.orders", &format!("{NEVER}    events: {{ topic: \"{prefix}.{{entity}}\" }}\n"));
    home
}

#[test]
fn on_kafka_a_connector_is_reset_while_its_daemon_runs() {
    let (server, kafka) = (Postgres::shared(), Kafka::shared());
    let database = server.database();
    let home = on_kafka(kafka, &database, "reset_beside");
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (1)");
    daemon.wait_caught_up("shop");
    let evidence = home.run(&["reset", "shop"]);
    let incarnation = shown(&evidence, "incarnation");
    let refused = home.run(&["reset", "shop", "--incarnation", &incarnation]);
    refused.expect_code(3);
    assert!(refused.stderr.contains("HW1109"), "{}", refused.said());
    home.run(&["pause", "shop"]).expect_code(0);
    reset(&home, &[]);
    home.run(&["restart", "shop"]).expect_code(0);
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (2)");
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    let eras: Vec<u64> = home.tail("reset_beside.orders").iter().map(|record| record.pos().expect("hw.pos").0).collect();
    assert_eq!(eras.iter().min().zip(eras.iter().max()), Some((&0, &1)));
}

#[test]
fn a_checkpoint_topic_that_was_deleted_stops_the_connector() {
    let (server, kafka) = (Postgres::shared(), Kafka::shared());
    let database = server.database();
    let home = on_kafka(kafka, &database, "lost_checkpoint");
    publish_one(&home, &database);
    let topic = "lost_checkpoint.shop.checkpoint";
    let arguments = ["--bootstrap-server", &kafka.bootstrap, "--delete", "--topic", topic];
    kafka.tool("org.apache.kafka.tools.TopicCommand", &arguments, "");
    let daemon = home.start();
    let said = daemon.exit_code();
    let stderr = std::fs::read_to_string(home.path("stderr")).expect("its words");
    assert_eq!(said, Some(1), "{stderr}");
    assert!(stderr.contains("HW1207"), "{stderr}");
    let evidence = home.run(&["reset", "shop"]);
    assert_eq!(shown(&evidence, "incarnation"), "none");
    reset(&home, &[]);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (2)");
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    let last = home.tail("lost_checkpoint.orders").iter().map(|record| record.pos().expect("hw.pos").0).max();
    assert_eq!(last, Some(1));
}

#[test]
fn a_reset_that_dies_is_whole_or_not_at_all() {
    let server = Postgres::shared();
    let database = server.database();
    let home = published_one(&database);
    let mut before = shown(&home.run(&["reset", "shop"]), "incarnation");
    let mut done = 0;
    for point in ["C2", "C5", "C6", "C7", "C8"] {
        let fault = format!("HEADWATER_FAULT={point}:1");
        let died = home.run_under(&["env", &fault], &["reset", "shop", "--incarnation", &before, "--reason", point]);
        assert_eq!(died.code, None, "{point}: {}", died.said());
        let evidence = home.run(&["reset", "shop"]);
        let audit = home.run(&["tail", "headwater.shop.audit", "--until-end"]);
        done += u32::from(point == "C8");
        assert_eq!(shown(&evidence, "incarnation") != before, done > 0, "{point}: {}", evidence.said());
        assert_eq!(shown(&evidence, "era"), done.to_string(), "{point}");
        assert_eq!(audit.stdout.lines().count() as u32, done, "{point}: the record and the deed are one: {}", audit.said());
        before = shown(&evidence, "incarnation");
    }
    // The one that was not told that it had been obeyed asks for a look at what there is now.
    let mut daemon = home.start();
    database.sql("INSERT INTO public.orders VALUES (2)");
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    let keys: Vec<String> = home.tail("shop.orders").into_iter().map(|record| record.key).collect();
    assert_eq!(keys, [r#"{"id":1}"#, r#"{"id":2}"#]);
}

#[test]
fn a_reset_after_the_schema_topic_was_deleted_publishes_the_schemas_again() {
    let (server, kafka) = (Postgres::shared(), Kafka::shared());
    let database = server.database();
    let home = on_kafka(kafka, &database, "lost_schemas");
    publish_one(&home, &database);
    let arguments = ["--bootstrap-server", &kafka.bootstrap, "--delete", "--topic", "lost_schemas.shop.schema"];
    kafka.tool("org.apache.kafka.tools.TopicCommand", &arguments, "");
    assert_eq!(home.start().exit_code(), Some(1));
    reset(&home, &[]);
    let mut daemon = home.start();
    database.sql("INSERT INTO public.orders VALUES (2)");
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    let schemas: Vec<String> = home.tail("lost_schemas.shop.schema").into_iter().map(|record| record.key).collect();
    let mut records = home.tail("lost_schemas.orders");
    records.retain(|record| record.pos().expect("hw.pos").0 == 1);
    assert_eq!(records.len(), 1);
    let key = format!("{{\"schema\":\"{}\"}}", records[0].header("hw.schema"));
    assert_eq!(schemas, [key]);
}

#[test]
fn another_system_as_an_upgrade_leaves_one_is_gone_on_with_only_anew() {
    let (old, new) = (Postgres::start(), Postgres::start());
    let database = old.database();
    let home = published_one(&database);
    let slot = database.slot();
    // What pg_upgrade makes: the same rows, objects and names in another system, and the slot made anew at the end of its log.
    let upgraded = new.database();
    upgraded.sql("CREATE TABLE public.orders (id int PRIMARY KEY, note text); INSERT INTO public.orders VALUES (1)");
    let publication = database.value("SELECT pubname FROM pg_publication");
    upgraded.sql(&format!("CREATE PUBLICATION {publication} FOR TABLE public.orders"));
    upgraded.sql(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
    assert_eq!(database.url().rsplit('/').next(), upgraded.url().rsplit('/').next(), "both are the first of their server");
    let file = std::fs::read_to_string(home.path("connectors/shop.yaml")).expect("the file");
    home.write("connectors/shop.yaml", &file.replace(&database.url(), &upgraded.url()));

    assert_eq!(home.start().exit_code(), Some(2));
    let refused = home.run(&["reset", "shop", "--rebind"]);
    refused.expect_code(2);
    assert!(refused.stderr.contains("HW2021") && refused.stderr.contains("system"), "{}", refused.said());
    let evidence = home.run(&["reset", "shop"]);
    assert!(shown(&evidence, "was").contains("system") && evidence.stdout.contains("taken over"), "{}", evidence.said());
    upgraded.sql("INSERT INTO public.orders VALUES (2)");
    reset(&home, &[]);
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    let keys: Vec<String> = home.tail("shop.orders").into_iter().map(|record| record.key).collect();
    assert_eq!(keys, [r#"{"id":1}"#, r#"{"id":2}"#], "nothing lost, nothing twice");
}
