//! Topics that somebody deletes, makes anew, grows, changes, or writes to.

use super::*;
use crate::support::{PATIENCE, wait_until};

const TOPIC: &str = "org.apache.kafka.tools.TopicCommand";

fn topic_command(kafka: &Kafka, args: &[&str]) -> String {
    kafka.tool(TOPIC, &[&["--bootstrap-server", &kafka.bootstrap][..], args].concat(), "")
}

fn delete(kafka: &Kafka, topic: &str) {
    topic_command(kafka, &["--delete", "--topic", topic]);
}

fn create(kafka: &Kafka, topic: &str, partitions: &str) {
    topic_command(kafka, &["--create", "--topic", topic, "--partitions", partitions, "--config", "cleanup.policy=compact"]);
}

/// A connector that has published order 1 and stopped in order.
fn published<'a>(kafka: &Kafka, database: &'a Database<'a>, prefix: &str) -> Home {
    let home = shop(kafka, database, prefix);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (1, 'first')");
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    home
}

/// The daemon starts, and stops with this code and exit code, and says these words.
fn stops_with(home: &Home, exit: i32, words: &[&str]) {
    let _ = std::fs::remove_file(home.path("stderr"));
    assert_eq!(home.start().exit_code(), Some(exit));
    let said = std::fs::read_to_string(home.path("stderr")).expect("what the daemon said");
    for word in words {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
}

#[test]
fn a_topic_that_was_deleted_is_not_created_again_in_silence() {
    let (kafka, server) = (Kafka::shared(), Postgres::shared());
    let database = server.database();
    let home = published(kafka, &database, "gone");
    delete(kafka, "gone.orders");
    database.sql("INSERT INTO public.orders VALUES (2, 'second')");
    stops_with(&home, 1, &["HW1205", "gone.orders", "hint:"]);
    assert!(!topic_command(kafka, &["--list"]).lines().any(|topic| topic == "gone.orders"), "nothing was created");
    // By hand it is another topic.
    create(kafka, "gone.orders", "6");
    stops_with(&home, 1, &["HW1206", "gone.orders", "hint:"]);
    assert!(consume(kafka, "gone.orders").is_empty(), "nothing was written to it");
}

#[test]
fn a_topic_that_is_made_anew_while_the_daemon_runs_stops_it() {
    let (kafka, server) = (Kafka::shared(), Postgres::shared());
    let database = server.database();
    let home = shop(kafka, &database, "anew");
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (1, 'first')");
    daemon.wait_caught_up("shop");
    delete(kafka, "anew.orders");
    create(kafka, "anew.orders", "6");
    let mut number = 1;
    let said = wait_until("the connector to stop", PATIENCE, || {
        number += 1;
        database.sql(&format!("INSERT INTO public.orders VALUES ({number}, 'more')"));
        match daemon.is_running() {
            true => Err("it runs".into()),
            false => Ok(daemon.stderr()),
        }
    });
    assert!(said.contains("anew.orders") && (said.contains("HW1206") || said.contains("HW1246")), "{said}");
    drop(daemon);
    stops_with(&home, 1, &["HW1206", "anew.orders", "hint:"]);
}

/// C22: the checkpoint is gone, and with it what the connector knew. It must not be taken for a new one.
#[test]
fn a_checkpoint_topic_that_was_deleted_or_made_anew_is_a_named_stop() {
    let (kafka, server) = (Kafka::shared(), Postgres::shared());
    let database = server.database();
    let home = published(kafka, &database, "lost");
    database.sql("INSERT INTO public.orders VALUES (2, 'second')");
    delete(kafka, "lost.shop.checkpoint");
    stops_with(&home, 1, &["HW1207", "lost.shop.checkpoint", "hint:"]);
    // The start has found the topic missing and made an empty one, which is no better.
    stops_with(&home, 1, &["HW1207", "lost.shop.checkpoint", "hint:"]);
    assert_eq!(ids(&consume(kafka, "lost.orders")), [1]);
}

#[test]
fn a_record_of_another_producer_in_the_checkpoint_is_a_named_stop() {
    let (kafka, server) = (Kafka::shared(), Postgres::shared());
    let database = server.database();
    let home = published(kafka, &database, "foreign");
    database.sql("INSERT INTO public.orders VALUES (2, 'second')");
    let produce = |key: &str, value: &str| {
        let args = ["--bootstrap-server", &kafka.bootstrap, "--topic", "foreign.shop.checkpoint"];
        let reading = ["--reader-property", "parse.key=true", "--reader-property", "key.separator=\t"];
        let tool = "org.apache.kafka.tools.ConsoleProducer";
        kafka.tool(tool, &[&args[..], &reading].concat(), &format!("{key}\t{value}\n"));
    };
    // A whole position of some other life of the connector, then something that is no checkpoint at all.
    let checkpoint = home.tail("foreign.shop.checkpoint");
    let position = checkpoint.iter().rfind(|record| record.key.contains("position")).expect("a position");
    let mut foreign = position.value.clone().expect("a value");
    foreign["incarnation"] = json!("00000000-0000-0000-0000-000000000001");
    produce(&position.key, &foreign.to_string());
    stops_with(&home, 1, &["HW1203", "incarnations", "foreign.shop.checkpoint", "hint:"]);
    produce("somebody", "else");
    stops_with(&home, 1, &["HW1203", "did not write", "foreign.shop.checkpoint", "hint:"]);
    assert_eq!(ids(&consume(kafka, "foreign.orders")), [1], "nothing was published on such a ground");
}

#[test]
fn partitions_that_are_added_change_no_keys_place() {
    let (kafka, server) = (Kafka::shared(), Postgres::shared());
    let database = server.database();
    let home = shop(kafka, &database, "grown");
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders SELECT n, 'before' FROM generate_series(1, 40) n");
    daemon.wait_caught_up("shop");
    topic_command(kafka, &["--alter", "--topic", "grown.orders", "--partitions", "9"]);
    database.sql("UPDATE public.orders SET status = 'while it runs'");
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("UPDATE public.orders SET status = 'after a restart'");
    daemon.wait_caught_up("shop");
    let records = consume(kafka, "grown.orders");
    assert_eq!(records.len(), 120);
    for record in &records {
        assert_eq!(record.partition, partition(&record.key, 6), "{}", record.key);
    }
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn a_policy_that_forgets_events_is_a_stop_with_the_command_that_mends_it() {
    let (kafka, server) = (Kafka::shared(), Postgres::shared());
    let database = server.database();
    let home = published(kafka, &database, "policy");
    let set = |policy: &str| {
        let entity = ["--alter", "--entity-type", "topics", "--entity-name", "policy.orders", "--add-config"];
        let setting = format!("cleanup.policy={policy}");
        kafka.tool(CONFIG_COMMAND, &[&["--bootstrap-server", &kafka.bootstrap][..], &entity, &[&setting]].concat(), "");
    };
    set("delete");
    database.sql("INSERT INTO public.orders VALUES (2, 'second')");
    let check = home.run(&["check"]);
    check.expect_code(3);
    assert!(check.stdout.contains("HW1202") && check.stdout.contains("policy.orders"), "{}", check.stdout);
    stops_with(&home, 3, &["HW1202", "policy.orders", "--add-config cleanup.policy=compact"]);
    set("compact");
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    assert_eq!(ids(&consume(kafka, "policy.orders")), [1, 2]);
}
