//! Traces of a real broker, with clients that do as they are told: the model stands for the broker, not for our writer.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use fastrand::Rng;
use rdkafka::{
    ClientConfig, ClientContext, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::DeliveryResult,
    producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer},
    types::RDKafkaErrorCode,
};

use super::{
    PATIENCE,
    log::{self, Op, Trace},
    proxy::{Caught, END_TXN, Fate, Proxy, error_code},
    real_kafka::{Kafka, Listener},
    seeds, wait_until,
};
use crate::pipeline::simulation::Lie;

/// Operations per seed: one here takes longer than one on the database.
const OPERATIONS: usize = 40;

/// Seeds that run at a time; much of it is waiting.
const TOGETHER: usize = 20;

const WAIT: Duration = Duration::from_secs(60);

/// Notes what the broker refused.
#[derive(Default)]
struct Deliveries(AtomicBool);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_err() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

struct Client {
    inner: Arc<ThreadedProducer<Deliveries>>,
    /// It has a transaction open.
    begun: bool,
    /// The broker refused it; only aborting or nothing at all makes sense.
    failed: bool,
}

struct Case {
    rng: Rng,
    name: String,
    broker: String,
    proxy: Arc<Proxy>,
    committed: BaseConsumer,
    all: BaseConsumer,
    clients: BTreeMap<usize, Client>,
    /// The one that was opened last.
    newest: usize,
    late: Option<Caught>,
    value: u32,
    trace: Trace,
}

fn settings(bootstrap: &str) -> ClientConfig {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", bootstrap).set("reconnect.backoff.ms", "10").set("reconnect.backoff.max.ms", "50");
    settings.set("retry.backoff.ms", "5");
    settings
}

fn consumer(bootstrap: &str, isolation: &str) -> BaseConsumer {
    let mut settings = settings(bootstrap);
    settings.set("group.id", "traces").set("enable.auto.commit", "false").set("enable.partition.eof", "true");
    settings.set("fetch.wait.max.ms", "5").set("isolation.level", isolation).create().unwrap()
}

fn word(error: &KafkaError, producer: &ThreadedProducer<Deliveries>) -> String {
    let fenced = [RDKafkaErrorCode::InvalidProducerEpoch, RDKafkaErrorCode::ProducerFenced, RDKafkaErrorCode::Fenced];
    let fatal = producer.client().fatal_error().is_some_and(|(code, _)| fenced.contains(&code));
    let code = error.rdkafka_error_code();
    if fatal || code.is_some_and(|code| fenced.contains(&code)) { "fenced".to_owned() } else { "refused".to_owned() }
}

impl Case {
    fn new(seed: u64, broker: &str, proxy: Arc<Proxy>) -> Self {
        let name = format!("trace-{seed}");
        let admin: rdkafka::admin::AdminClient<_> = settings(broker).create().unwrap();
        let topic = rdkafka::admin::NewTopic::new(&name, 1, rdkafka::admin::TopicReplication::Fixed(1));
        let making = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let made = making.block_on(admin.create_topics([&topic], &rdkafka::admin::AdminOptions::new())).unwrap();
        assert!(made.iter().all(Result::is_ok), "{made:?}");
        let (committed, all) = (consumer(broker, "read_committed"), consumer(broker, "read_uncommitted"));
        wait_until("the topic", PATIENCE, || all.fetch_watermarks(&name, 0, WAIT).map(drop).map_err(|error| error.to_string()));
        let (rng, broker, trace) = (Rng::with_seed(seed), broker.to_owned(), Trace::default());
        Self { rng, name, broker, proxy, committed, all, clients: BTreeMap::new(), newest: 0, late: None, value: 0, trace }
    }

    /// An operation that makes sense now.
    fn choose(&mut self) -> Op {
        // What was aborted in the meantime cannot be committed: rare by chance alone.
        if self.late.is_some() && matches!(self.trace.operations.last(), Some(Op::Abort { .. })) {
            return Op::Deliver;
        }
        loop {
            let producer = if self.rng.u32(0..4) > 0 { self.newest } else { self.rng.usize(0..3) };
            let client = self.clients.get(&producer);
            let (alive, begun) = (client.is_some_and(|one| !one.failed), client.is_some_and(|one| one.begun));
            match self.rng.u32(0..100) {
                0..6 => return Op::Open { producer: self.rng.usize(0..3) },
                6..40 if alive => {
                    let values = (0..self.rng.u32(1..4)).map(|at| self.value + at).collect::<Vec<_>>();
                    self.value += values.len() as u32;
                    return Op::Append { producer, values };
                }
                40..58 if alive && begun => return Op::Commit { producer },
                58..66 if alive && begun && producer == self.newest && self.late.is_none() => {
                    return Op::CommitTwice { producer };
                }
                66..72 if self.late.is_some() => return Op::Deliver,
                72..86 if begun => return Op::Abort { producer },
                86..88 if client.is_some() => return Op::Drop { producer },
                88..100 => return Op::Read,
                _ => {}
            }
        }
    }

    fn open(&mut self, producer: usize) -> String {
        let mut settings = settings(&self.proxy.address);
        settings.set("transactional.id", &self.name).set("linger.ms", "0").set("transaction.timeout.ms", "600000");
        let inner: ThreadedProducer<Deliveries> = settings.create_with_context(Deliveries::default()).unwrap();
        inner.init_transactions(WAIT).unwrap();
        self.clients.insert(producer, Client { inner: Arc::new(inner), begun: false, failed: false });
        self.newest = producer;
        "done".to_owned()
    }

    fn append(&mut self, producer: usize, values: &[u32]) -> String {
        let client = self.clients.get_mut(&producer).unwrap();
        let inner = &client.inner;
        let sent = (|| {
            if !client.begun {
                inner.begin_transaction()?;
                client.begun = true;
            }
            for value in values {
                let key = value.to_string();
                inner.send(BaseRecord::to(&self.name).partition(0).key(&key).payload("")).map_err(|(error, _)| error)?;
            }
            inner.flush(WAIT)
        })();
        if sent.is_ok() && !inner.context().0.swap(false, Ordering::Relaxed) {
            return "done".to_owned();
        }
        client.failed = true;
        word(&sent.err().unwrap_or(KafkaError::Canceled), inner)
    }

    fn ended(&mut self, producer: usize, result: Result<(), KafkaError>) -> String {
        let client = self.clients.get_mut(&producer).unwrap();
        match result {
            Ok(()) => {
                (client.begun, client.failed) = (false, false);
                client.inner.context().0.store(false, Ordering::Relaxed);
                "done".to_owned()
            }
            Err(error) => {
                client.failed = true;
                word(&error, &client.inner)
            }
        }
    }

    fn commit_twice(&mut self, producer: usize) -> String {
        let inner = Arc::clone(&self.clients[&producer].inner);
        self.proxy.next(END_TXN, Fate::Hold, 1);
        let committing = thread::spawn(move || inner.commit_transaction(WAIT));
        self.late = Some(self.proxy.caught());
        self.proxy.cut();
        let result = committing.join().unwrap();
        self.ended(producer, result)
    }

    fn deliver(&mut self) -> String {
        // While markers are on their way, the broker only says to ask again.
        self.settle();
        let code = error_code(&self.proxy.deliver(self.late.take().unwrap()));
        // Until its marker is there, a transaction that is decided still takes records: a race that no trace can repeat.
        self.settle();
        match code {
            0 => "done".to_owned(),
            47 | 90 => "fenced".to_owned(),
            48 => "refused".to_owned(),
            other => panic!("the broker answered {other}"),
        }
    }

    fn settle(&self) {
        wait_until("the coordinator to finish", PATIENCE, || match self.state() {
            state if state.starts_with("Prepare") => Err(state),
            _ => Ok(()),
        });
    }

    fn read(&mut self) -> String {
        self.settle();
        let (_, stable) = self.committed.fetch_watermarks(&self.name, 0, WAIT).unwrap();
        let (_, end) = self.all.fetch_watermarks(&self.name, 0, WAIT).unwrap();
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(&self.name, 0, Offset::Beginning).unwrap();
        self.committed.assign(&from).unwrap();
        let mut values = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "the reader does not get to the end");
            match self.committed.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => {
                    values.push(String::from_utf8_lossy(message.key().unwrap_or_default()).parse().expect("a number"));
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return log::seen(&values, stable < end),
                _ => {}
            }
        }
    }

    /// What the coordinator says about our transaction (DescribeTransactions, version 0).
    fn state(&self) -> String {
        let mut request =
            [&65_i16.to_be_bytes()[..], &[0; 6], &(-1_i16).to_be_bytes(), &[0, 2, self.name.len() as u8 + 1]].concat();
        request.extend_from_slice(self.name.as_bytes());
        request.push(0);
        let mut stream = TcpStream::connect(&self.broker).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&(request.len() as u32).to_be_bytes()).unwrap();
        stream.write_all(&request).unwrap();
        let mut length = [0; 4];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut answer).unwrap();
        // Correlation, tags, throttling, number of answers, error, the id, the state.
        let at = 4 + 1 + 4 + 1 + 2 + 1 + self.name.len();
        let length = answer[at] as usize - 1;
        String::from_utf8_lossy(&answer[at + 1..at + 1 + length]).into_owned()
    }

    fn step(&mut self, operation: Op) {
        let outcome = match &operation {
            Op::Open { producer } => self.open(*producer),
            Op::Append { producer, values } => self.append(*producer, values),
            Op::Commit { producer } => {
                let result = self.clients[producer].inner.commit_transaction(WAIT);
                self.ended(*producer, result)
            }
            Op::CommitTwice { producer } => self.commit_twice(*producer),
            Op::Deliver => self.deliver(),
            Op::Abort { producer } => {
                let result = self.clients[producer].inner.abort_transaction(WAIT);
                self.ended(*producer, result)
            }
            Op::Drop { producer } => {
                self.clients.remove(producer);
                "done".to_owned()
            }
            Op::Read => self.read(),
        };
        self.trace.outcomes.push(outcome);
        self.trace.operations.push(operation);
    }
}

fn run(seed: u64, broker: &str, proxy: Arc<Proxy>) -> Trace {
    let mut case = Case::new(seed, broker, proxy);
    case.step(Op::Open { producer: 0 });
    for _ in 1..OPERATIONS {
        let operation = case.choose();
        case.step(operation);
    }
    case.step(Op::Read);
    case.trace
}

fn record() -> Vec<Trace> {
    let proxies: Vec<Arc<Proxy>> = (0..TOGETHER).map(|_| Arc::new(Proxy::listen())).collect();
    let names: Vec<String> = (0..TOGETHER).map(|number| format!("PROXIED{number}")).collect();
    let listener = |(name, proxy): (_, &Arc<Proxy>)| (name, proxy.address.clone());
    let addresses: Vec<(&String, String)> = names.iter().zip(&proxies).map(listener).collect();
    let listeners: Vec<Listener<'_>> =
        addresses.iter().map(|(name, address)| Listener { name, protocol: "PLAINTEXT", advertised: Some(address) }).collect();
    let kafka = Kafka::start_listening("", &listeners, &[]);
    let (next, traces) = (AtomicU64::new(0), Mutex::new(BTreeMap::new()));
    thread::scope(|scope| {
        for (proxy, address) in proxies.iter().zip(&kafka.listeners) {
            proxy.forward_to(address);
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds() {
                        return;
                    }
                    let trace = run(seed, &kafka.bootstrap, Arc::clone(proxy));
                    traces.lock().unwrap().insert(seed, trace);
                }
            });
        }
    });
    traces.into_inner().unwrap().into_values().collect()
}

#[test]
fn the_model_of_the_broker_does_what_kafka_does() {
    let began = Instant::now();
    let traces = record();
    for (seed, trace) in traces.iter().enumerate() {
        log::check(trace, Lie::None).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
    }
    let steps: usize = traces.iter().map(|trace| trace.operations.len()).sum();
    println!("Kafka: {} seeds, {steps} operations in {:.1} s", traces.len(), began.elapsed().as_secs_f64());
    // What never happened was not compared.
    let all = || traces.iter().flat_map(|trace| trace.operations.iter().zip(&trace.outcomes));
    assert!(all().any(|(_, outcome)| outcome.contains("undecided")), "no reader met an open transaction");
    for word in ["done", "fenced", "refused"] {
        assert!(all().any(|(operation, outcome)| *operation == Op::Deliver && outcome == word), "no late request was {word}");
    }
    assert!(all().any(|(operation, outcome)| matches!(operation, Op::Append { .. }) && outcome == "fenced"), "nobody was fenced");
    let torn = |trace: &Trace| {
        (1..trace.operations.len()).any(|at| {
            let open = trace.operations[..at].iter().rev().find(|one| !matches!(one, Op::Read));
            trace.operations[at] == Op::Deliver && trace.outcomes[at] == "done" && matches!(open, Some(Op::Append { .. }))
        })
    };
    assert!(traces.iter().any(torn), "no late request met the next transaction");
    log::find_out(&traces, &[Lie::NoFence, Lie::LateEndIsIgnored, Lie::AbortedIsSeen, Lie::OpenIsSkipped]);
}
