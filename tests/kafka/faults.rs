//! What brokers and networks do to a running daemon.

use rdkafka::{
    ClientConfig,
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};

use super::*;
use crate::support::{
    PATIENCE,
    kafka::Listener,
    proxy::{self, Fate, Proxy},
    wait_until,
};

const TRANSACTIONS: &str = "org.apache.kafka.tools.TransactionsCommand";

/// The shortest timeout that may be configured; with `HEADWATER_SOAK` the default one, and a freeze of 90 s.
fn freeze() -> (u32, std::time::Duration) {
    match std::env::var_os("HEADWATER_SOAK") {
        Some(_) => (60, std::time::Duration::from_secs(90)),
        None => (10, std::time::Duration::ZERO),
    }
}

/// The state of a transactional id, as the coordinator has it.
fn transaction_state(kafka: &Kafka, id: &str) -> String {
    let args = ["--bootstrap-server", &kafka.bootstrap, "describe", "--transactional-id", id];
    kafka.tool(TRANSACTIONS, &args, "")
}

/// Returns when the brokers have given up the transaction that this id had open.
pub fn wait_aborted(kafka: &Kafka, id: &str) {
    wait_until("the brokers to abort the transaction", 2 * PATIENCE, || match transaction_state(kafka, id) {
        state if state.contains("CompleteAbort") => Ok(()),
        state => Err(state),
    });
}

/// K3: the brokers give up a transaction of a process that is frozen, which looks like a rival to it. The checkpoint says that there
/// is none.
#[test]
fn a_daemon_that_was_frozen_beyond_the_transaction_timeout_goes_on() {
    let proxy = Proxy::listen();
    let listener = Listener { name: "PROXIED", protocol: "PLAINTEXT", advertised: Some(&proxy.address) };
    let kafka = Kafka::start_listening("transaction.abort.timed.out.transaction.cleanup.interval.ms=1000\n", &[listener], &[]);
    proxy.forward_to(&kafka.listeners[0]);
    let server = Postgres::shared();
    let database = server.database();
    let (timeout, length) = freeze();
    let home = shop(&kafka, &database, "asleep");
    let log = format!(
        "{{ kind: kafka, bootstrap_servers: [ \"{}\" ], prefix: asleep, transaction_timeout_seconds: {timeout} }}",
        proxy.address
    );
    home.write("headwater.yaml", &home.main(&log));
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (1, 'before')");
    daemon.wait_caught_up("shop");
    // The request that would end the transaction stays in the proxy, so that it is open for sure.
    proxy.next(proxy::END_TXN, Fate::Hold, 1);
    database.sql("INSERT INTO public.orders VALUES (2, 'open')");
    let held = proxy.caught();
    let frozen = std::time::Instant::now();
    daemon.signal("STOP");
    wait_aborted(&kafka, "asleep.shop");
    std::thread::sleep(length.saturating_sub(frozen.elapsed()));
    proxy.cut();
    daemon.signal("CONT");
    daemon.wait_caught_up("shop");
    // It comes later still, and ends nothing.
    assert_ne!(proxy::error_code(&proxy.deliver(held)), 0);
    database.sql("INSERT INTO public.orders VALUES (3, 'after')");
    daemon.wait_caught_up("shop");
    assert_eq!(ids(&consume(&kafka, "asleep.orders")), [1, 2, 3]);
    assert!(daemon.stderr().contains("HW1201"), "the refusal was looked into: {}", daemon.stderr());
    assert_eq!(daemon.terminate(), Some(0), "it did not stand down");
}

#[test]
fn a_quota_of_a_kilobyte_per_second_slows_the_log_and_nothing_else() {
    let kafka = Kafka::start();
    // A server that gives up a silent client soon.
    let server = Postgres::start_with(&["wal_sender_timeout=5s"]);
    let database = server.database();
    let home = shop(&kafka, &database, "quota");
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    let sender = || database.value("SELECT pid FROM pg_stat_replication WHERE state = 'streaming'");
    let before = sender();
    let quota = ["--alter", "--entity-type", "clients", "--entity-default", "--add-config", "producer_byte_rate=1024"];
    kafka.tool(CONFIG_COMMAND, &[&["--bootstrap-server", &kafka.bootstrap][..], &quota].concat(), "");
    // Random text, which does not compress; in several transactions.
    for round in 0..10 {
        database.sql(&format!(
            "INSERT INTO public.orders SELECT {round} * 5 + n, md5(random()::text) || md5(random()::text) || md5(random()::text) \
             FROM generate_series(1, 5) n"
        ));
    }
    let lag = daemon.wait_for("shop", "lag, then none", |shop| shop["lag"]["bytes"].as_u64() > Some(0));
    assert_eq!(lag["state"], json!("streaming"), "{lag}");
    daemon.wait_caught_up("shop");
    assert_eq!(ids(&consume(&kafka, "quota.orders")), (1..=50).collect::<Vec<_>>());
    assert_eq!(sender(), before, "the connection to the source lived through it");
    assert_eq!(daemon.terminate(), Some(0));
}

/// A stranger that has written a record and neither commits nor aborts for as long as the brokers allow.
fn hanging_transaction(kafka: &Kafka, topic: &str) -> ThreadedProducer<DefaultProducerContext> {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", &kafka.bootstrap).set("transactional.id", format!("stranger.{topic}"));
    settings.set("transaction.timeout.ms", "900000").set("message.timeout.ms", "60000");
    let producer: ThreadedProducer<DefaultProducerContext> = settings.create().expect("a producer");
    producer.init_transactions(PATIENCE).expect("a transactional producer");
    producer.begin_transaction().expect("a transaction");
    producer.send(BaseRecord::to(topic).partition(0).key("stranger").payload("x")).map_err(|(cause, _)| cause).expect("queued");
    producer.flush(PATIENCE).expect("written");
    producer
}

/// K9: a stranger's transaction that does not end, in the partition that a start has to read to its end.
#[test]
fn a_hanging_transaction_in_the_checkpoint_is_named_and_its_command_ends_it() {
    let (kafka, server) = (Kafka::shared(), Postgres::shared());
    let database = server.database();
    let home = shop(kafka, &database, "hanging");
    let log = format!(
        "{{ kind: kafka, bootstrap_servers: [ \"{}\" ], prefix: hanging, transaction_timeout_seconds: 10 }}",
        kafka.bootstrap
    );
    home.write("headwater.yaml", &home.main(&log));
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (1, 'before')");
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    let stranger = hanging_transaction(kafka, "hanging.shop.checkpoint");
    let mut daemon = home.start();
    let shop = daemon.wait_for("shop", "HW1244", |shop| shop["error"]["code"] == json!("HW1244"));
    let hint = shop["error"]["hint"].as_str().expect("a hint").to_owned();
    let command = hint.split('`').find(|part| part.starts_with("kafka-transactions.sh ")).expect("a command");
    let args: Vec<&str> = command.split_whitespace().skip(1).collect();
    kafka.tool(TRANSACTIONS, &args, "");
    database.sql("INSERT INTO public.orders VALUES (2, 'after')");
    daemon.wait_caught_up("shop");
    assert_eq!(ids(&consume(kafka, "hanging.orders")), [1, 2]);
    assert_eq!(daemon.terminate(), Some(0));
    drop(stranger);
}
