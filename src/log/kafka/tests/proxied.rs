//! Requests that are held, repeated, lost or cut off between us and a real broker (K1, K2, C10, C11).

use std::sync::{Mutex, OnceLock};

use super::{
    proxy::{self, Fate, Proxy},
    server::{Kafka, Listener},
    *,
};

/// One broker with as many proxies in front of it as tests want at once; each has a listener that advertises it.
fn proxied() -> (KafkaLog, Taken) {
    static POOL: OnceLock<(Kafka, Mutex<Vec<Proxy>>)> = OnceLock::new();
    let (_, pool) = POOL.get_or_init(|| {
        let proxies: Vec<Proxy> = (0..8).map(|_| Proxy::listen()).collect();
        let names: Vec<String> = (0..proxies.len()).map(|number| format!("PROXIED{number}")).collect();
        let listener = |(name, proxy)| Listener { name, protocol: "PLAINTEXT", advertised: Some(proxy) };
        let addresses = proxies.iter().map(|proxy| proxy.address.as_str());
        let listeners: Vec<Listener<'_>> = names.iter().map(String::as_str).zip(addresses).map(listener).collect();
        let kafka = Kafka::start_listening("", &listeners, &[]);
        for (proxy, address) in proxies.iter().zip(&kafka.listeners) {
            proxy.forward_to(address);
        }
        (kafka, Mutex::new(proxies))
    });
    let proxy = pool.lock().unwrap().pop().expect("a proxy is left");
    (log_at(&proxy.address), Taken { proxy: Some(proxy), pool })
}

/// A proxy that goes back to the pool.
struct Taken {
    proxy: Option<Proxy>,
    pool: &'static Mutex<Vec<Proxy>>,
}

impl std::ops::Deref for Taken {
    type Target = Proxy;

    fn deref(&self) -> &Proxy {
        self.proxy.as_ref().expect("taken only in drop")
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let proxy = self.proxy.take().expect("dropped once");
        proxy.let_pass();
        proxy.close(false);
        proxy.freeze(false);
        if let Ok(mut pool) = self.pool.lock() {
            pool.push(proxy);
        }
    }
}

/// The error codes with which a broker refuses a producer of an older epoch.
const OLD_EPOCH: [i16; 2] = [47, 90];

/// The fault that the next test survives, with a client that does not do what we do: the request that ended one transaction comes
/// late, is taken for the end of the next one, and half of that becomes visible.
#[tokio::test]
async fn a_late_end_of_a_transaction_tears_the_next_one_if_the_producer_is_kept() {
    let (log, proxy) = proxied();
    let (topic, id) = (unique("torn"), unique("c"));
    log.ensure_topics(&[spec(&topic, 1)]).await.unwrap();
    let settings = config::producer(&log.inner.options, &format!("{PREFIX}.{id}"), 100_000).unwrap();
    let topic_of_producer = topic.clone();
    let torn = tokio::task::spawn_blocking(move || {
        let producer: ThreadedProducer<config::Watch> = settings.create_with_context(config::Watch::default()).unwrap();
        let wait = Duration::from_secs(20);
        let send = |key: &str| {
            producer
                .send(BaseRecord::to(&topic_of_producer).partition(0).key(key).payload("v"))
                .map_err(|(cause, _)| cause)
                .unwrap();
            producer.flush(wait).unwrap();
        };
        producer.init_transactions(wait).unwrap();
        producer.begin_transaction().unwrap();
        send("whole");
        proxy.next(proxy::END_TXN, Fate::Hold, 1);
        let late = std::thread::scope(|scope| {
            let committing = scope.spawn(|| producer.commit_transaction(wait));
            let late = proxy.caught();
            proxy.cut();
            committing.join().unwrap().unwrap();
            late
        });
        producer.begin_transaction().unwrap();
        send("half");
        let refused = proxy::error_code(&proxy.deliver(late));
        let _ = producer.abort_transaction(wait);
        refused
    });
    assert_eq!(torn.await.unwrap(), 0, "the broker took the late request for good");
    assert_eq!(keys(&read_all(&same_cluster(&log), &topic, 0).await), ["whole", "half"], "the half was never committed");
}

/// Clients of their own.
fn same_cluster(log: &KafkaLog) -> KafkaLog {
    KafkaLog::new(log.inner.options.clone(), PREFIX).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_end_of_a_transaction_meets_a_newer_epoch() {
    let (log, proxy) = proxied();
    let (events, checkpoint, id) = (unique("late"), unique("late-checkpoint"), unique("c"));
    log.ensure_topics(&[spec(&events, 1), spec(&checkpoint, 1)]).await.unwrap();
    let (mut writer, number) = reopen(&log, &id, &checkpoint).await;
    proxy.next(proxy::END_TXN, Fate::Hold, 1);
    let sent = numbered(&events, &checkpoint, number);
    let committing = tokio::spawn(async move { (writer.commit(sent).await.map(drop), writer) });
    let late = proxy.caught();
    proxy.cut();
    let (first, mut writer) = committing.await.unwrap();
    // The retry passed, or the client gave up; either way the same writer must not go on.
    let next = writer.commit(numbered(&events, &checkpoint, number + 1)).await.map(drop);
    let failed = next.unwrap_err();
    if first.is_ok() {
        assert_eq!(failed.code().id, codes::RECYCLE.id, "{failed}");
    }
    let (mut writer, number) = reopen(&log, &id, &checkpoint).await;
    assert_eq!(number, 1, "the retry passed");
    // The next transaction is open, and its end is on its way, when the late one arrives.
    proxy.next(proxy::END_TXN, Fate::Hold, 1);
    let sent = numbered(&events, &checkpoint, number);
    let committing = tokio::spawn(async move { (writer.commit(sent).await.map(drop), writer) });
    let second = proxy.caught();
    let refused = proxy::error_code(&proxy.deliver(late));
    assert!(OLD_EPOCH.contains(&refused), "the broker answered {refused}");
    assert_eq!(read_all(&log, &events, 0).await.len(), 1, "the open transaction was not touched");
    proxy.cut();
    drop(committing.await.unwrap());
    let (mut writer, number) = reopen(&log, &id, &checkpoint).await;
    assert_eq!(number, 2);
    proxy.deliver(second);
    writer.commit(numbered(&events, &checkpoint, number)).await.unwrap();
    assert_eq!(keys(&read_all(&log, &events, 0).await), ["0", "1", "2"]);
}

/// Every kind of request of a transaction is lost, held and cut off, or repeated later, one after the other and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_lost_held_or_repeated_cost_nothing_and_double_nothing() {
    let (log, proxy) = proxied();
    let (events, checkpoint, id) = (unique("requests"), unique("requests-checkpoint"), unique("c"));
    log.ensure_topics(&[spec(&events, 1), spec(&checkpoint, 1)]).await.unwrap();
    let (mut writer, mut number) = reopen(&log, &id, &checkpoint).await;
    let (mut late, mut errors) = (Vec::new(), 0);
    let kinds = [proxy::ADD_PARTITIONS_TO_TXN, proxy::PRODUCE, proxy::END_TXN, proxy::INIT_PRODUCER_ID];
    for round in 0..24 {
        let (kind, fate) = (kinds[round % 4], [Fate::Hold, Fate::Copy, Fate::Cut][round / 4 % 3]);
        if kind == proxy::INIT_PRODUCER_ID {
            // It is sent when a writer is opened.
            writer.close().await;
            proxy.next(kind, fate, 1);
            let (log, id, checkpoint) = (same_cluster(&log), id.clone(), checkpoint.clone());
            let opening = tokio::spawn(async move { reopen(&log, &id, &checkpoint).await });
            tokio::task::block_in_place(|| catch(&proxy, fate, &mut late));
            (writer, number) = opening.await.unwrap();
        } else {
            proxy.next(kind, fate, 1);
            let sent = numbered(&events, &checkpoint, number);
            let committing = tokio::spawn(async move { (writer.commit(sent).await.map(drop), writer) });
            tokio::task::block_in_place(|| catch(&proxy, fate, &mut late));
            let (result, same) = committing.await.unwrap();
            writer = same;
            match result {
                Ok(()) => number += 1,
                Err(failed) => {
                    assert!(matches!(failed.kind(), Kind::Retry | Kind::Fenced), "{failed}");
                    errors += 1;
                    (writer, number) = reopen(&log, &id, &checkpoint).await;
                }
            }
        }
        // What was held arrives while later transactions are under way, three rounds behind.
        if late.len() > 2 {
            let request = late.remove(0);
            tokio::task::block_in_place(|| proxy.deliver(request));
        }
        match writer.commit(numbered(&events, &checkpoint, number)).await {
            Ok(_) => number += 1,
            Err(_) => {
                errors += 1;
                (writer, number) = reopen(&log, &id, &checkpoint).await;
            }
        }
    }
    let expected: Vec<String> = (0..number).map(|number| number.to_string()).collect();
    assert_eq!(keys(&read_all(&log, &events, 0).await), expected);
    assert_eq!(read_all(&log, &checkpoint, 0).await.len(), expected.len(), "every transaction has its checkpoint and no other");
    assert!(errors >= 6 && number >= 24, "{errors} errors and {number} transactions: the faults did not bite");
}

/// Takes the request that the fate kept, and breaks the connections if one was held.
fn catch(proxy: &Proxy, fate: Fate, late: &mut Vec<proxy::Caught>) {
    if fate != Fate::Cut {
        late.push(proxy.caught());
    }
    if fate == Fate::Hold {
        proxy.cut();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_is_away_is_waited_for_and_nothing_is_lost() {
    let (log, proxy) = proxied();
    let (events, checkpoint, id) = (unique("coordinator"), unique("coordinator-checkpoint"), unique("c"));
    log.ensure_topics(&[spec(&events, 1), spec(&checkpoint, 1)]).await.unwrap();
    let (mut writer, mut number) = reopen(&log, &id, &checkpoint).await;
    writer.commit(numbered(&events, &checkpoint, number)).await.unwrap();
    // The broker answers about topics and reads all the time; whoever asks its coordinator for something loses the connection.
    let coordinator = [proxy::INIT_PRODUCER_ID, proxy::ADD_PARTITIONS_TO_TXN, proxy::END_TXN];
    coordinator.iter().for_each(|kind| proxy.next(*kind, Fate::Cut, usize::MAX));
    let failed = writer.commit(numbered(&events, &checkpoint, number + 1)).await.map(drop).unwrap_err();
    assert_eq!(failed.kind(), Kind::Retry, "{failed}");
    let failed = log.open_writer(&id).await.map(drop).unwrap_err();
    assert_eq!(failed.kind(), Kind::Retry, "{failed}");
    assert_eq!(keys(&log.last_records(&checkpoint).await.unwrap()), ["position"], "reading needs no coordinator");
    proxy.let_pass();
    (writer, number) = reopen(&log, &id, &checkpoint).await;
    writer.commit(numbered(&events, &checkpoint, number)).await.unwrap();
    assert_eq!(keys(&read_all(&log, &events, 0).await), ["0", "1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_hangs_is_given_up_and_found_again() {
    let (log, proxy) = proxied();
    let (events, checkpoint, id) = (unique("hangs"), unique("hangs-checkpoint"), unique("c"));
    log.ensure_topics(&[spec(&events, 1), spec(&checkpoint, 1)]).await.unwrap();
    let (mut writer, number) = reopen(&log, &id, &checkpoint).await;
    writer.commit(numbered(&events, &checkpoint, number)).await.unwrap();
    proxy.freeze(true);
    let failed = writer.commit(numbered(&events, &checkpoint, number + 1)).await.map(drop).unwrap_err();
    assert_eq!(failed.kind(), Kind::Retry, "{failed}");
    proxy.freeze(false);
    let (mut writer, number) = reopen(&log, &id, &checkpoint).await;
    writer.commit(numbered(&events, &checkpoint, number)).await.unwrap();
    let expected: Vec<String> = (0..=number).map(|number| number.to_string()).collect();
    assert_eq!(keys(&read_all(&log, &events, 0).await), expected);
}
