//! Brokers that restart, die, or are too few.

use super::*;

/// Sends numbered transactions up to `count`, from wherever the checkpoint stands; returns how many attempts failed.
async fn write_to(log: &KafkaLog, names: [&str; 3], count: u32, progress: &AtomicU32) -> u32 {
    let [events, checkpoint, id] = names;
    let (mut writer, mut number) = reopen(log, id, checkpoint).await;
    let mut errors = 0;
    while number < count {
        match writer.commit(numbered(events, checkpoint, number)).await {
            Ok(_) => number += 1,
            Err(failed) => {
                // The brokers forget nothing, so nobody is fenced for good; a timeout may look like it.
                assert!(matches!(failed.kind(), Kind::Retry | Kind::Fenced), "{failed}");
                errors += 1;
                (writer, number) = reopen(log, id, checkpoint).await;
            }
        }
        progress.store(number, Ordering::Relaxed);
    }
    errors
}

/// Makes the topics, as the pipeline does: brokers that have just started may need longer than one try waits.
async fn ensure(log: &KafkaLog) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while let Err(failed) = log.ensure_topics(&[spec(NAMES[0], 1), spec(NAMES[1], 1)]).await {
        assert!(failed.kind() == Kind::Retry && Instant::now() < deadline, "{failed}");
    }
}

async fn expect_all(log: &KafkaLog, events: &str, count: u32) {
    let expected: Vec<String> = (0..count).map(|number| number.to_string()).collect();
    assert_eq!(keys(&read_all(log, events, 0).await), expected);
}

/// What happens to a broker.
type Fault = dyn Fn(&Kafka);

const NAMES: [&str; 3] = ["events", "headwater.c.checkpoint", "c"];

#[tokio::test]
async fn a_broker_that_is_killed_or_restarted_costs_nothing_and_doubles_nothing() {
    const COUNT: u32 = 1200;
    let kafka = Kafka::start();
    let log = log_at(&kafka.bootstrap);
    ensure(&log).await;
    let progress = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&progress);
    let faults = std::thread::spawn(move || {
        let kill = |kafka: &Kafka| {
            kafka.kill();
            kafka.run();
        };
        let steps: [(u32, &Fault); 2] = [(300, &kill), (800, &Kafka::restart)];
        for (at, fault) in steps {
            while seen.load(Ordering::Relaxed) < at {
                std::thread::sleep(Duration::from_micros(100));
            }
            fault(&kafka);
        }
        kafka
    });
    let errors = write_to(&log, NAMES, COUNT, &progress).await;
    let kafka = faults.join().unwrap();
    assert!(errors >= 1, "no fault met a commit");
    expect_all(&log, NAMES[0], COUNT).await;
    drop(kafka);
}

/// The brokers end transactions in another way from each of these versions on, and operators change it in clusters that run.
#[tokio::test]
async fn the_brokers_protocol_of_transactions_may_change_while_we_write() {
    let kafka = Kafka::start();
    let log = log_at(&kafka.bootstrap);
    ensure(&log).await;
    let progress = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&progress);
    let (done, is_done) = std::sync::mpsc::channel();
    let changes = std::thread::spawn(move || {
        // A new cluster has version 2.
        for (change, version) in [("downgrade", "1"), ("downgrade", "0"), ("upgrade", "2")] {
            let feature = format!("transaction.version={version}");
            let args = ["--bootstrap-server", &kafka.bootstrap, change, "--feature", &feature];
            let told = kafka.tool("org.apache.kafka.tools.FeatureCommand", &args, "");
            assert!(told.contains(&format!("transaction.version was {change}d to {version}")), "{told}");
            // Some more before the next change.
            let met = seen.load(Ordering::Relaxed);
            let deadline = Instant::now() + Duration::from_secs(60);
            while seen.load(Ordering::Relaxed) < met + 50 {
                assert!(Instant::now() < deadline, "nothing is written under transaction.version {version}");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        done.send(()).unwrap();
        kafka
    });
    let mut count = 0;
    while is_done.try_recv().is_err() {
        assert!(!changes.is_finished(), "a change failed");
        count += 100;
        write_to(&log, NAMES, count, &progress).await;
    }
    expect_all(&log, NAMES[0], count).await;
    drop(changes.join().unwrap());
}

/// A broker that starts before the controller has written that it is fenced drops the markers of a commit that the kill interrupted.
#[test]
fn a_killed_broker_is_not_taken_for_fenced_before_the_record_of_it_is_there() {
    let mut text = String::new();
    let mut told = |line: &str| {
        text.push_str(line);
        text.push('\n');
        server::is_fenced(&text)
    };
    assert_eq!(
        told("Replayed initial RegisterBrokerRecord for broker 1: RegisterBrokerRecord(brokerId=1, fenced=true, x=1)"),
        None
    );
    assert_eq!(told("Becoming the active controller at epoch 2, next write offset 95."), Some(true), "it was never let in");
    let changed = |state: &str| {
        format!("Replayed X for broker 1: BrokerRegistrationChangeRecord(brokerId=1, brokerEpoch=15, fenced={state}, x=0)")
    };
    assert_eq!(told(&changed("-1")), Some(false));
    assert_eq!(told(&changed("0")), Some(false));
    assert_eq!(told("Fencing broker 1 at epoch 15 because its session has timed out."), Some(false));
    assert_eq!(told("handleBrokerFenced: changing 7 partition(s)"), Some(false));
    assert_eq!(told(&changed("1")), Some(true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_brokers_may_be_away_and_two_stall_the_writer_until_one_is_back() {
    let nodes = tokio::task::block_in_place(|| Kafka::start_three(""));
    let addresses: Vec<String> = nodes.iter().map(|node| format!("\"{}\"", node.bootstrap)).collect();
    let bootstrap = format!(r#"{{"bootstrap_servers":[{}],"transaction_timeout_seconds":10}}"#, addresses.join(","));
    let log = KafkaLog::new(serde_json::from_str(&bootstrap).unwrap(), PREFIX).unwrap();
    ensure(&log).await;
    let progress = AtomicU32::new(0);
    write_to(&log, NAMES, 50, &progress).await;
    let findings = log.check().await.unwrap();
    assert!(findings.iter().all(|finding| !finding.what.contains("one replica")), "{findings:?}");
    let weak = ["--alter", "--entity-type", "topics", "--entity-name", NAMES[0], "--add-config"];
    let weaken = |setting: &'static str| {
        let args = [&["--bootstrap-server", &nodes[0].bootstrap][..], &weak, &[setting]].concat();
        nodes[0].tool("kafka.admin.ConfigCommand", &args, "");
    };
    tokio::task::block_in_place(|| weaken("min.insync.replicas=1"));
    let told = |findings: Vec<headwater_connector::Finding>, hint: &str| {
        let hints = findings.iter().filter_map(|finding| finding.error.as_ref()).map(|error| error.hint_text().to_owned());
        assert!(hints.collect::<String>().contains(hint), "no {hint:?} in {findings:?}");
    };
    told(log.check_topics(&[spec(NAMES[0], 1)]).await.unwrap(), "--add-config min.insync.replicas=2");
    tokio::task::block_in_place(|| weaken("min.insync.replicas=2"));

    tokio::task::block_in_place(|| nodes[2].kill());
    write_to(&log, NAMES, 100, &progress).await;
    told(log.check_topics(&[spec(NAMES[0], 1)]).await.unwrap(), "start the brokers that are away");

    let (mut writer, number) = reopen(&log, NAMES[2], NAMES[1]).await;
    assert_eq!(number, 100, "one broker less, and nothing is missing");
    tokio::task::block_in_place(|| nodes[1].kill());
    // With one replica in sync instead of two, nothing may count as committed.
    let failed = writer.commit(numbered(NAMES[0], NAMES[1], number)).await.map(drop).unwrap_err();
    assert!(matches!(failed.kind(), Kind::Retry | Kind::Fenced), "{failed}");
    drop(writer);
    let back = tokio::task::spawn_blocking(move || {
        nodes[1].run();
        nodes
    });
    // Begins while the second broker is still away.
    write_to(&log, NAMES, 150, &progress).await;
    expect_all(&log, NAMES[0], 150).await;
    drop(back.await.unwrap());
}
