//! From the sending of a row's transaction to the moment a reader of the topic has its event.

use std::{
    collections::BTreeMap,
    io::Read,
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use headwater::log::{From, LogReader, Mode};

use crate::{drain::Contestant, headwater::Daemon, postgres::PostgresServer, server::Server, source::Source};

/// pg_recvlogical
const RECEIVER: Contestant = Contestant::Client(0);
/// Connections that insert.
const LOADERS: u64 = 2;

/// What is measured, after as long a time as this for things to settle.
const SETTLE: Duration = Duration::from_secs(4);
const MEASURE: Duration = Duration::from_secs(20);

/// The ordinary table of ten columns, fed at a steady rate. `customer` holds the time of sending in µs.
pub struct Table;

impl Table {
    /// Creates it, empty.
    pub fn make(postgres: &PostgresServer) -> Self {
        postgres.ordinary_table();
        Self
    }

    /// Inserts in transactions of 100 rows until it is stopped.
    pub fn load(&self, postgres: &PostgresServer, rows_per_second: f64) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let pause = Duration::from_secs_f64(100.0 * LOADERS as f64 / rows_per_second);
        let threads = (0..LOADERS)
            .map(|loader| {
                let (stop, sent, mut client) = (Arc::clone(&stop), Arc::clone(&sent), postgres.client());
                std::thread::spawn(move || {
                    // The walsender sends what is flushed, and without this nobody flushes for up to 200 ms.
                    client.batch_execute("SET synchronous_commit = on").expect("a setting");
                    let insert = client
                        .prepare(
                            "INSERT INTO bench SELECT i, $2, 'status-' || i % 7, i * 1.25, \
                             'a note of some length that pads the row to size ' || i, i % 100, i % 2 = 0, now(), now(), 'code-' || i \
                             FROM generate_series($1::int8, $1 + 99) i",
                        )
                        .expect("the statement");
                    let (mut next, mut id) = (Instant::now(), loader as i64 * 1_000_000_000);
                    let mut took = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let began = Instant::now();
                        client.execute(&insert, &[&id, &now_us()]).expect("the rows");
                        took.push(began.elapsed().as_micros() as u64);
                        sent.fetch_add(100, Ordering::Relaxed);
                        id += 100;
                        next += pause;
                        std::thread::sleep(next.saturating_duration_since(Instant::now()));
                    }
                    took
                })
            })
            .collect();
        Load { stop, sent, threads }
    }

    /// Removes it and the slot of the daemon that has ended.
    pub fn drop(self, postgres: &PostgresServer) {
        postgres.drop_table();
    }
}

/// Connections that insert.
pub struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<u64>>>,
}

impl Load {
    /// Ends them; what each INSERT took, in µs.
    pub fn stop(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().expect("a loader")).collect()
    }
}

/// Measures both logs, each at half of the rate it drains a backlog with, and beside them a client that only receives.
pub fn run(postgres: &PostgresServer, server: &Server<'_>, drained: &BTreeMap<Contestant, f64>) {
    println!("\n### latency\n");
    println!(
        "From the sending of an INSERT of 100 rows (its execution and commit included) to the reader of a topic having the event, \
         for every event of {} s; {LOADERS} connections insert, server, daemon, broker, reader and inserters share the cores. \
         `pg_recvlogical` is the same with no Headwater at all: until its output has the row. The last column is what the INSERT \
         itself took, and so part of each figure.\n",
        MEASURE.as_secs()
    );
    println!(
        "| Received by | Rows/s asked | Rows/s inserted | p50 ms | p95 ms | p99 ms | p99.9 ms | max ms | Resident MiB | INSERT p99 ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for contestant in [RECEIVER, Contestant::Embedded, Contestant::Kafka] {
        // The client without a log takes the load of the faster of the two.
        let of = |contestant| drained.get(&contestant).copied().unwrap_or(120_000.0) / 2.0;
        let rate = of(if contestant == RECEIVER { Contestant::Embedded } else { contestant });
        for part in [1.0, 0.02] {
            measure(postgres, server, contestant, rate * part);
        }
    }
}

fn measure(postgres: &PostgresServer, server: &Server<'_>, contestant: Contestant, rate: f64) {
    let table = Table::make(postgres);
    let name = format!("latency_{}_{}", contestant.slot(0), rate as u64);
    let (resident, load, mut micros, inserted) = match contestant {
        RECEIVER => {
            let mut client = Receiver::start(postgres, &name);
            let load = table.load(postgres, rate);
            let (micros, inserted) = watch(&load, || client.read());
            (client.stop(), load, micros, inserted)
        }
        log => {
            let mut daemon = Daemon::start(server, log, &name, &name);
            daemon.wait_for("streaming", |connector| connector["state"] == "streaming");
            let load = table.load(postgres, rate);
            let (dir, topic) = (daemon.dir().to_owned(), format!("{name}.bench"));
            let (micros, inserted) = watch(&load, move || read(&dir, &topic));
            let resident = crate::process::memory_kib(daemon.pid(), "VmRSS") / 1024;
            daemon.stop();
            (resident, load, micros, inserted)
        }
    };
    let mut inserts = load.stop();
    micros.sort_unstable();
    inserts.sort_unstable();
    let ms = |part: f64| format!("{:.1}", at(&micros, part) as f64 / 1000.0);
    println!(
        "| {} | {rate:.0} | {:.0} | {} | {} | {} | {} | {} | {resident} | {:.1} |",
        if contestant == RECEIVER { "pg_recvlogical" } else { contestant.title() },
        inserted as f64 / MEASURE.as_secs_f64(),
        ms(0.5),
        ms(0.95),
        ms(0.99),
        ms(0.999),
        ms(1.0),
        at(&inserts, 0.99) as f64 / 1000.0,
    );
    table.drop(postgres);
}

fn at(sorted: &[u64], part: f64) -> u64 {
    sorted.get(((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
}

/// What `reader` brings of the time that is measured, and how many rows were inserted in it.
fn watch(load: &Load, reader: impl FnOnce() -> Vec<u64> + Send) -> (Vec<u64>, u64) {
    std::thread::scope(|scope| {
        let reader = scope.spawn(reader);
        std::thread::sleep(SETTLE);
        let before = load.sent.load(Ordering::Relaxed);
        std::thread::sleep(MEASURE);
        let inserted = load.sent.load(Ordering::Relaxed) - before;
        (reader.join().expect("the reader"), inserted)
    })
}

/// pg_recvlogical with its output read here.
struct Receiver(std::process::Child);

impl Receiver {
    fn start(postgres: &PostgresServer, slot: &str) -> Self {
        let create = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
        postgres.client().batch_execute(&create).expect("a slot");
        let child = postgres
            .command("pg_recvlogical")
            .args(["-S", slot, "--start", "-o", "proto_version=1", "-o", "publication_names=bench", "-F", "0", "-f", "-"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("pg_recvlogical starts");
        Self(child)
    }

    fn read(&mut self) -> Vec<u64> {
        // The only column of 16 characters is the time of sending: a text of pgoutput is `t`, its length, its bytes.
        const MARK: &[u8] = b"t\0\0\0\x10";
        const FOUND: usize = MARK.len() + 16;
        let (begin, mut micros) = (Instant::now() + SETTLE, Vec::new());
        let (mut buffer, mut filled) = (vec![0; 1 << 20], 0);
        let output = self.0.stdout.as_mut().expect("its output");
        while Instant::now() < begin + MEASURE {
            let count = output.read(&mut buffer[filled..]).expect("output");
            assert!(count > 0, "pg_recvlogical ended");
            let (now, end) = (now_us(), filled + count);
            let mut next = 0;
            while let Some(at) = buffer[next..end].windows(FOUND).position(|window| window.starts_with(MARK)) {
                let digits = std::str::from_utf8(&buffer[next + at + MARK.len()..next + at + FOUND]).ok();
                if let Some(sent) = digits.and_then(|digits| digits.parse::<i64>().ok()).filter(|_| Instant::now() >= begin) {
                    micros.push((now - sent).max(0) as u64);
                }
                next += at + FOUND;
            }
            // A value may be cut in two.
            let kept = next.max(end.saturating_sub(FOUND - 1));
            buffer.copy_within(kept..end, 0);
            filled = end - kept;
        }
        micros
    }

    /// Ends it; its resident memory in MiB.
    fn stop(mut self) -> u64 {
        let resident = crate::process::memory_kib(self.0.id(), "VmRSS") / 1024;
        self.0.kill().expect("pg_recvlogical can be ended");
        self.0.wait().expect("pg_recvlogical has ended");
        resident
    }
}

/// The ages of the events that came while it measured, in µs.
fn read(dir: &Path, topic: &str) -> Vec<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (plan, prefix) =
            headwater::config::load::load_log(&dir.join("headwater.yaml"), std::iter::empty()).expect("the config");
        let log = headwater::log::open(&plan, &prefix, Mode::Reader).await.expect("the log");
        let partitions = log.topics(&[topic.to_owned()]).await.expect("topics")[0].as_ref().map_or(1, |state| state.partitions);
        let mut readers = Vec::new();
        for partition in 0..partitions {
            readers.push(log.reader(topic, partition, From::Latest).await.expect("a reader"));
        }
        let (begin, mut micros) = (Instant::now() + SETTLE, Vec::new());
        let tasks = tokio::task::LocalSet::new();
        let all: Vec<_> = readers.into_iter().map(|reader| tasks.spawn_local(read_one(reader, begin))).collect();
        tasks
            .run_until(async {
                for one in all {
                    micros.extend(one.await.expect("a reader"));
                }
            })
            .await;
        micros
    })
}

async fn read_one(mut reader: Box<dyn LogReader>, begin: Instant) -> Vec<u64> {
    let mut micros = Vec::new();
    while begin.elapsed() < MEASURE || Instant::now() < begin {
        let records = reader.read(10_000, Duration::from_millis(100)).await.expect("records");
        let now = now_us();
        if Instant::now() < begin {
            continue;
        }
        for value in records.iter().filter_map(|record| record.value.as_deref()) {
            micros.push((now - sent_us(value)).max(0) as u64);
        }
    }
    micros
}

/// The number behind `"customer":`.
fn sent_us(value: &[u8]) -> i64 {
    const NAME: &[u8] = b"\"customer\":";
    let at = value.windows(NAME.len()).position(|window| window == NAME).expect("the column") + NAME.len();
    value[at..].iter().take_while(|byte| byte.is_ascii_digit()).fold(0, |number, byte| number * 10 + i64::from(byte - b'0'))
}

fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock behind 1970").as_micros() as i64
}
