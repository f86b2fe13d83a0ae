//! The same promises on Kafka, read back with Kafka's own consumer.

mod faults;
mod topics;
mod variants;

pub use faults::wait_aborted;
use serde_json::{Value, json};

use crate::{
    backfill,
    checker::partition,
    kill::{self, BrokenLog},
    support::{
        daemon::Home,
        follow::Follower,
        kafka::{Consumed, Kafka},
        postgres::{Database, Postgres},
        record::Record,
        root, workload,
    },
};

const TOPIC_COMMAND: &str = "org.apache.kafka.tools.TopicCommand";
const CONFIG_COMMAND: &str = "kafka.admin.ConfigCommand";

/// A config directory over this broker. `prefix` begins the internal topics and ids, and the topics of [`shop`].
pub fn home(kafka: &Kafka, prefix: &str) -> Home {
    let home = Home::new();
    home.write(
        "headwater.yaml",
        &home.main(&format!("{{ kind: kafka, bootstrap_servers: [ \"{}\" ], prefix: {prefix} }}", kafka.bootstrap)),
    );
    home
}

/// The connector over one table, in topics of its own: tests share a broker.
fn shop(kafka: &Kafka, database: &Database, prefix: &str) -> Home {
    database.sql("CREATE TABLE IF NOT EXISTS public.orders (id int PRIMARY KEY, status text)");
    let home = home(kafka, prefix);
    home.shop(&database.url(), "public.orders", &format!("    events: {{ topic: \"{prefix}.{{entity}}\" }}\n"));
    home
}

/// A record of the console consumer as the checker wants it.
fn record(topic: &str, consumed: Consumed) -> Record {
    let time = jiff::Timestamp::from_millisecond(consumed.timestamp_ms).expect("a time");
    Record {
        topic: topic.to_owned(),
        partition: consumed.partition,
        offset: consumed.offset,
        timestamp: time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        key: consumed.key.expect("no key is null"),
        value: consumed.value.map(|text| serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))),
        headers: consumed.headers.into_iter().collect(),
    }
}

pub fn consume(kafka: &Kafka, topic: &str) -> Vec<Record> {
    kafka.console_consume(topic).into_iter().map(|consumed| record(topic, consumed)).collect()
}

fn ids(records: &[Record]) -> Vec<u64> {
    let mut ids: Vec<u64> = records.iter().map(id).collect();
    ids.sort_unstable();
    ids
}

fn id(record: &Record) -> u64 {
    let key: Value = serde_json::from_str(&record.key).expect("a key in JSON");
    key["id"].as_u64().expect("an id")
}

/// The example of the documentation, with nothing changed but the places of the servers.
#[test]
fn the_example_for_kafka_works_as_it_stands() {
    // A broker of its own: the example has the default names, which other tests use too.
    let (kafka, server) = (&Kafka::start(), Postgres::shared());
    let database = server.database();
    database.sql(
        "CREATE TABLE public.orders (id int PRIMARY KEY, status text, internal_note text);
         CREATE TABLE public.customers (id bigint PRIMARY KEY, name text NOT NULL)",
    );
    let example = std::fs::read_to_string(root().join("config/examples/postgres-to-kafka.yaml")).expect("the example");
    let mut home = Home::with_main(&example);
    home.set("HEADWATER_LOG__BOOTSTRAP_SERVERS", &kafka.bootstrap);
    home.set("HEADWATER_HTTP__LISTEN", &home.address().to_string());
    home.set("HEADWATER_CONNECTORS__SHOP__SOURCE__URL", &database.url());
    home.set("HEADWATER_CONNECTORS__SHOP__SOURCE__SLOT", &format!("example_{}", database.name));
    home.run(&["check"]).expect_code(0);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders SELECT n, 'new', 'secret' FROM generate_series(1, 40) n");
    database.sql("INSERT INTO public.customers VALUES (9007199254740993, 'Ada \"Ö\"'), (2, 'B\ttab')");
    database.sql("UPDATE public.orders SET status = 'paid' WHERE id <= 3; DELETE FROM public.orders WHERE id = 2");
    daemon.wait_caught_up("shop");
    let consumed = kafka.console_consume("shop.order");
    events_of_orders(&consumed);
    customers(kafka.console_consume("shop.customer"));
    // `tail` and Kafka's own consumer agree on every field of every record.
    let records: Vec<Record> = consumed.into_iter().map(|consumed| record("shop.order", consumed)).collect();
    assert_eq!(home.tail("shop.order"), records);
    assert_eq!(daemon.terminate(), Some(0));
    let described = kafka.tool(TOPIC_COMMAND, &["--bootstrap-server", &kafka.bootstrap, "--describe"], "");
    for topic in ["shop.order", "shop.customer", "headwater.shop.checkpoint", "headwater.shop.schema"] {
        let line = described
            .lines()
            .find(|line| line.starts_with(&format!("Topic: {topic}\t")))
            .unwrap_or_else(|| panic!("{described}"));
        let partitions = if topic.starts_with("shop.") { "PartitionCount: 6" } else { "PartitionCount: 1" };
        assert!(line.contains("cleanup.policy=compact") && line.contains(partitions), "{line}");
    }
}

fn events_of_orders(consumed: &[Consumed]) {
    assert_eq!(consumed.len(), 44);
    let mut used: Vec<u32> = consumed.iter().map(|record| record.partition).collect();
    used.dedup();
    assert_eq!(used, [0, 1, 2, 3, 4, 5], "forty keys reach every partition");
    for record in consumed {
        let key = record.key.as_deref().expect("a key");
        assert_eq!(record.partition, partition(key, 6), "{key}");
        let names: Vec<&str> = record.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["hw.op", "hw.pos", "hw.tx", "hw.schema"]);
        assert!(record.timestamp_ms > 1_700_000_000_000, "a time of the source");
    }
    let of_two: Vec<_> = consumed.iter().filter(|record| record.key.as_deref() == Some(r#"{"id":2}"#)).collect();
    let values: Vec<_> = of_two.iter().map(|record| record.value.as_deref()).collect();
    // The exact bytes: compact, in column order, without the excluded column.
    assert_eq!(values, [Some(r#"{"id":2,"status":"new"}"#), Some(r#"{"id":2,"status":"paid"}"#), None]);
    let ops: Vec<_> = of_two.iter().map(|record| record.headers[0].1.as_str()).collect();
    assert_eq!(ops, ["c", "u", "d"]);
    let mut places: Vec<_> = consumed.iter().map(|record| &record.headers[1].1).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), consumed.len(), "hw.pos is unique");
}

fn customers(consumed: Vec<Consumed>) {
    let mut pairs: Vec<_> =
        consumed.into_iter().map(|record| (record.key.unwrap_or_default(), record.value.unwrap_or_default())).collect();
    pairs.sort_unstable();
    let expected = [
        (r#"{"id":2}"#, r#"{"id":2,"name":"B\ttab"}"#),
        (r#"{"id":9007199254740993}"#, r#"{"id":9007199254740993,"name":"Ada \"Ö\""}"#),
    ];
    assert_eq!(pairs, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
}

#[test]
fn kills_lose_no_row_of_a_backfill_and_bring_nothing_stale_on_kafka() {
    let (kafka, server) = (Kafka::shared(), Postgres::start());
    let database = server.database();
    let home = backfill::versioned(
        &database,
        20_000,
        "      backfill: { rows_per_second: 8000, readers: 2 }\n    events: { partitions: 3, topic: \"backfilled.{entity}\" }\n",
    );
    let log = format!("{{ kind: kafka, bootstrap_servers: [ \"{}\" ], prefix: backfilled }}", kafka.bootstrap);
    home.write("headwater.yaml", &home.main(&log));
    backfill::kill_backfills(&home, &database, kill::kills(10), "backfilled.item", 20_000);
}

/// Brokers that look often at how old transactions are: a freeze can outlast the shortest timeout, which [`killed`] has.
pub const SHORT_TRANSACTIONS: &str = "transaction.abort.timed.out.transaction.cleanup.interval.ms=1000\n";

/// The home of a daemon that is killed over this broker.
pub fn killed(kafka: &Kafka) -> Home {
    let home = home(kafka, "headwater");
    let log = format!("{{ kind: kafka, bootstrap_servers: [ \"{}\" ], transaction_timeout_seconds: 10 }}", kafka.bootstrap);
    home.write("headwater.yaml", &home.main(&log));
    home
}

/// Ends the broker and starts it again.
pub fn break_broker(kafka: &Kafka, how: BrokenLog) {
    match how {
        BrokenLog::Killed => {
            kafka.kill();
            kafka.run();
        }
        BrokenLog::Restarted => kafka.restart(),
    }
}

#[test]
fn kills_lose_and_repeat_nothing_on_kafka() {
    let kafka = Kafka::start_with(SHORT_TRANSACTIONS);
    let server = kill::source();
    let database = server.database();
    workload::prepare(&database);
    let home = killed(&kafka);
    kill::configure(&home, &database);
    kill::run(&kill::Run {
        seed: kill::seed(),
        kills: kill::kills(10),
        home: &home,
        shop: &database,
        final_reader: Some(&|topic| consume(&kafka, topic)),
        follower: Some(&Follower::new(&kafka.bootstrap)),
        break_log: Some(&|how| break_broker(&kafka, how)),
        outlast: Some(&|| wait_aborted(&kafka, "headwater.shop")),
    });
}

#[test]
fn a_daemon_that_dies_in_a_large_transaction_goes_on_inside_it() {
    let (kafka, server) = (Kafka::shared(), Postgres::shared());
    let database = server.database();
    let home = shop(kafka, &database, "bulk");
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    let bulk = 90_000;
    database.sql(&format!("INSERT INTO public.orders SELECT n, 'bulk' FROM generate_series(1, {bulk}) n"));
    daemon.wait_for("shop", "some events", |shop| shop["events"].as_u64() > Some(0));
    daemon.kill9();
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    let records = consume(kafka, "bulk.orders");
    assert_eq!(ids(&records), (1..=bulk).collect::<Vec<_>>());
    let transaction = records[0].header("hw.tx");
    assert!(records.iter().all(|record| record.header("hw.tx") == transaction));
}

#[test]
fn a_record_that_its_topic_does_not_allow_stops_the_connector_before_it() {
    let (kafka, server) = (Kafka::shared(), Postgres::shared());
    let database = server.database();
    let home = shop(kafka, &database, "large");
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (1, 'small')");
    daemon.wait_caught_up("shop");
    // Random, so that compression cannot help it through.
    database.sql(
        "INSERT INTO public.orders SELECT 2, string_agg(md5(random()::text), '') FROM generate_series(1, 60000);
         INSERT INTO public.orders VALUES (3, 'small')",
    );
    assert_eq!(daemon.exit_code(), Some(3));
    let said = std::fs::read_to_string(home.path("stderr")).expect("what the daemon said");
    for text in ["HW1242", "large.orders", "max.message.bytes", "hint:"] {
        assert!(said.contains(text), "no {text:?} in {said}");
    }
    let limit =
        ["--alter", "--entity-type", "topics", "--entity-name", "large.orders", "--add-config", "max.message.bytes=4000000"];
    kafka.tool(CONFIG_COMMAND, &[&["--bootstrap-server", &kafka.bootstrap][..], &limit].concat(), "");
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    assert_eq!(ids(&home.tail("large.orders")), [1, 2, 3], "nothing is skipped and nothing repeated");
}

#[test]
fn a_frozen_daemon_stands_down_when_another_took_its_place() {
    let (kafka, server) = (Kafka::shared(), Postgres::shared());
    let database = server.database();
    let home = shop(kafka, &database, "frozen");
    let mut first = home.start();
    first.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (1, 'first')");
    first.wait_caught_up("shop");
    first.signal("STOP");
    // The server would notice by its own timeout; nobody waits for that here.
    let slots = "FROM pg_replication_slots WHERE database = current_database() AND active";
    database.sql(&format!("SELECT pg_terminate_backend(active_pid) {slots}"));
    let successor = shop(kafka, &database, "frozen");
    let mut second = successor.start();
    second.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (2, 'second')");
    second.wait_caught_up("shop");
    first.signal("CONT");
    assert_eq!(first.exit_code(), Some(4), "fenced");
    database.sql("INSERT INTO public.orders VALUES (3, 'third')");
    second.wait_caught_up("shop");
    assert_eq!(ids(&consume(kafka, "frozen.orders")), [1, 2, 3]);
    assert_eq!(second.terminate(), Some(0));
}

#[test]
fn a_broker_that_is_away_fails_the_check_and_not_the_daemon() {
    let server = Postgres::shared();
    let database = server.database();
    database.sql("CREATE TABLE public.orders (id int PRIMARY KEY)");
    let home = Home::new();
    home.write("headwater.yaml", &home.main("{ kind: kafka, bootstrap_servers: [ \"127.0.0.1:1\" ] }"));
    home.shop(&database.url(), "public.orders", "");
    let check = home.run(&["check"]);
    check.expect_code(3);
    assert!(check.stdout.contains("127.0.0.1:1") && check.stdout.contains("hint:"), "{}", check.stdout);
    let mut daemon = home.start();
    let shop = daemon.wait_state("shop", "retrying");
    assert_eq!(shop["error"]["kind"], json!("retry"), "{shop}");
    assert_eq!(daemon.terminate(), Some(0));
}
