//! Reading a table that is there already: beside COPY on one connection, and beside an application that goes on working.

use std::{
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{
    debezium,
    drain::{Contestant, Drained},
    headwater::Daemon,
    process::{cpu, memory_kib},
    server::Server,
    support::postgres_program,
};

/// Connections of the application, each so many transactions per second at most.
const CLIENTS: u64 = 2;
const TRANSACTIONS_PER_SECOND: f64 = 100.0;
/// How long the application is watched; with the backfill at full speed, until that is done if it is done earlier.
const WATCH: Duration = Duration::from_secs(20);
/// The rate limit of the last measurement.
const LIMITED: u64 = 10_000;

/// Who reads the table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    /// psql, one connection, to /dev/null.
    Copy,
    /// Headwater into a log, with so many readers.
    Headwater(Contestant, usize),
    /// The snapshot of Debezium on Kafka Connect.
    Debezium,
}

/// What reading cost.
struct Cost {
    drained: Drained,
    /// CPU time of all processes of PostgreSQL.
    server: Duration,
}

/// Measures everything; `rows` in the table.
pub fn run(server: &Server, rows: u64, rounds: usize, with_debezium: bool) {
    fill(server, rows);
    println!("\n### backfill\n\n{}\n", describe(server, rows));
    println!("| Round | Read by | Readers | Seconds | Rows/s | Ratio | Server CPU µs/row | CPU µs/row | Peak MiB |");
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut all = vec![Who::Copy];
    for log in [Contestant::Embedded, Contestant::Kafka] {
        all.extend([1, 2, 4].map(|readers| Who::Headwater(log, readers)));
    }
    if with_debezium {
        all.push(Who::Debezium);
    }
    for round in 0..rounds {
        let mut costs: Vec<(usize, Cost)> = (0..all.len())
            .map(|at| (at + round) % all.len())
            .map(|at| (at, measure(server, all[at], &format!("bf_{round}_{at}"), rows)))
            .collect();
        costs.sort_by_key(|(at, _)| *at);
        let base = costs[0].1.drained.seconds;
        for (at, cost) in &costs {
            print(round, all[*at], rows, base, cost);
        }
    }
    for log in [Contestant::Embedded, Contestant::Kafka] {
        under_load(server, log, rows);
    }
    server.client().batch_execute("DROP PUBLICATION bench; DROP TABLE bench").expect("the table goes");
}

/// The rows are there before any slot is, so that none comes by the stream.
fn fill(server: &Server, rows: u64) {
    let mut client = server.client();
    client
        .batch_execute(
            "CREATE TABLE bench (id int8 PRIMARY KEY, customer int8, status text, total numeric(12,2), note text, qty int4, \
             active bool, created timestamptz, updated timestamp, code varchar(32)); CREATE PUBLICATION bench FOR TABLE bench",
        )
        .expect("the table");
    for from in (1..=rows).step_by(100_000) {
        let to = (from + 99_999).min(rows);
        client
            .batch_execute(&format!(
                "INSERT INTO bench SELECT i, i % 10000, 'status-' || i % 7, i * 1.25, \
                 'a note of some length that pads the whole of the row to the size of ' || i, i % 100, i % 2 = 0, \
                 timestamptz '2026-01-02 03:04:05.123456+00' + i * interval '1 second', timestamp '2026-01-02 03:04:05.123456', \
                 'code-' || i FROM generate_series({from}, {to}) i"
            ))
            .expect("the rows");
    }
    client.batch_execute("VACUUM ANALYZE bench").expect("a vacuum");
    client.batch_execute("CHECKPOINT").expect("a checkpoint");
}

fn describe(server: &Server, rows: u64) -> String {
    let bytes = server.value("SELECT round(avg(length(b::text))) FROM (SELECT b FROM bench b LIMIT 1000) b");
    let size = server.value("SELECT pg_size_pretty(pg_table_size('bench'))");
    format!(
        "{rows} rows of 10 columns, {bytes} bytes as text, {size}; nothing else happens. COPY is `COPY (SELECT * FROM bench) TO STDOUT` \
         by psql to /dev/null on one connection. The time of Headwater is that of the whole process, from its start until the end of \
         the backfill is committed; the CPU of the server is that of all its processes."
    )
}

fn measure(server: &Server, who: Who, name: &str, rows: u64) -> Cost {
    let before = server_cpu(server);
    let drained = match who {
        Who::Copy => copy(server),
        Who::Headwater(log, readers) => backfill(server, log, readers, name, rows),
        Who::Debezium => debezium::snapshot(server, name, rows),
    };
    let cost = Cost { drained, server: server_cpu(server).saturating_sub(before) };
    drop_slots(server);
    cost
}

fn print(round: usize, who: Who, rows: u64, base: f64, cost: &Cost) {
    let (name, readers) = match who {
        Who::Copy => ("COPY", "-".to_owned()),
        Who::Headwater(log, readers) => (log.title(), readers.to_string()),
        Who::Debezium => ("Debezium", "1".to_owned()),
    };
    let per_row = |time: Duration| time.as_secs_f64() * 1e6 / rows as f64;
    println!(
        "| {} | {name} | {readers} | {:.2} | {:.0} | {:.2} | {:.2} | {:.2} | {} |",
        round + 1,
        cost.drained.seconds,
        rows as f64 / cost.drained.seconds,
        base / cost.drained.seconds,
        per_row(cost.server),
        per_row(cost.drained.cpu),
        cost.drained.peak_kib / 1024,
    );
}

fn copy(server: &Server) -> Drained {
    let child = Command::new(postgres_program("psql"))
        .args(["-Xq", "-h", "127.0.0.1", "-p", &server.port().to_string(), "-U", "postgres", "-d", "postgres"])
        .args(["-c", "COPY (SELECT * FROM bench) TO STDOUT"])
        .env("PGPASSWORD", server.password())
        .stdout(Stdio::null())
        .spawn()
        .expect("psql starts");
    crate::drain::watch(child, "psql")
}

fn backfill(server: &Server, log: Contestant, readers: usize, name: &str, rows: u64) -> Drained {
    if log == Contestant::Kafka {
        server.kafka();
    }
    let began = Instant::now();
    let mut daemon = Daemon::start_with(server, log, name, name, &format!("{{ readers: {readers} }}"));
    daemon.wait_for("the end of the backfill", is_done);
    let seconds = began.elapsed().as_secs_f64();
    let drained = Drained { seconds, cpu: cpu(daemon.pid()), peak_kib: memory_kib(daemon.pid(), "VmHWM") };
    daemon.wait_for("all rows", |connector| connector["backfills"][0]["published"].as_u64() == Some(rows));
    daemon.stop();
    drained
}

fn is_done(connector: &serde_json::Value) -> bool {
    connector["backfills"][0]["state"] == "done"
}

/// User and system time of the server's processes, those that have ended included.
fn server_cpu(server: &Server) -> Duration {
    let directory = server.value("SELECT current_setting('data_directory')");
    let file = std::fs::read_to_string(format!("{directory}/postmaster.pid")).expect("the server's pid file");
    let pid: u32 = file.lines().next().and_then(|line| line.trim().parse().ok()).expect("a pid");
    crate::process::family_cpu(pid)
}

fn drop_slots(server: &Server) {
    let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active";
    server.client().batch_execute(drop).expect("the slots go");
}

/// What the application's transactions take without a backfill, with one, and with one that is limited.
fn under_load(server: &Server, log: Contestant, rows: u64) {
    println!(
        "\n### backfill under load: {}\n\n{CLIENTS} connections, each {TRANSACTIONS_PER_SECOND} transactions per second of three updates \
         by key and a commit with `synchronous_commit = on`; the daemon streams all the while.\n",
        log.title()
    );
    println!("| Backfill | Transactions/s | p50 ms | p99 ms | max ms | Rows/s | Server CPU µs/row | CPU µs/row | Peak MiB |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for (title, options) in [
        ("none", "never".to_owned()),
        ("full speed", "initial".to_owned()),
        ("`readers: 1`", "{ readers: 1 }".to_owned()),
        ("`rows_per_second`", format!("{{ rows_per_second: {LIMITED} }}")),
    ] {
        let name = format!("load_{}_{}", log.slot(0), title.len());
        let mut daemon = Daemon::start_with(server, log, &name, &name, &options);
        daemon.wait_for("a stream", |connector| ["streaming", "backfilling"].iter().any(|state| connector["state"] == *state));
        let (before, began) = (server_cpu(server), Instant::now());
        let load = Load::start(server, rows);
        let mut read = 0;
        while began.elapsed() < WATCH {
            std::thread::sleep(Duration::from_millis(100));
            daemon.wait_for("a status", |connector| {
                read = connector["backfills"][0]["rows"].as_u64().unwrap_or(0);
                true
            });
            if read >= rows {
                break;
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        let mut micros = load.stop();
        micros.sort_unstable();
        let ms =
            |part: f64| micros.get((micros.len() as f64 * part) as usize).or(micros.last()).map_or(0.0, |us| *us as f64 / 1e3);
        let per_row = |time: Duration| match read {
            0 => "-".to_owned(),
            read => format!("{:.2}", time.as_secs_f64() * 1e6 / read as f64),
        };
        println!(
            "| {title} | {:.0} | {:.2} | {:.2} | {:.1} | {:.0} | {} | {} | {} |",
            micros.len() as f64 / seconds,
            ms(0.5),
            ms(0.99),
            ms(1.0),
            read as f64 / seconds,
            per_row(server_cpu(server).saturating_sub(before)),
            per_row(cpu(daemon.pid())),
            memory_kib(daemon.pid(), "VmHWM") / 1024,
        );
        daemon.stop();
        drop_slots(server);
    }
}

/// The application.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<u64>>>,
}

impl Load {
    fn start(server: &Server, rows: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..CLIENTS)
            .map(|client| {
                let (stop, mut connection) = (Arc::clone(&stop), server.client());
                std::thread::spawn(move || {
                    connection.batch_execute("SET synchronous_commit = on").expect("a setting");
                    let update = connection.prepare("UPDATE bench SET qty = qty + 1 WHERE id = $1").expect("the statement");
                    // A walk without a pattern over the whole table; a row of the other client is never met.
                    let (mut at, mut micros, mut next) = (client + 1, Vec::new(), Instant::now());
                    while !stop.load(Ordering::Relaxed) {
                        let began = Instant::now();
                        let mut transaction = connection.transaction().expect("BEGIN");
                        for _ in 0..3 {
                            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                            let id = (at >> 33) % (rows / CLIENTS) * CLIENTS + client + 1;
                            transaction.execute(&update, &[&(id as i64)]).expect("an update");
                        }
                        transaction.commit().expect("COMMIT");
                        micros.push(began.elapsed().as_micros() as u64);
                        next += Duration::from_secs_f64(1.0 / TRANSACTIONS_PER_SECOND);
                        std::thread::sleep(next.saturating_duration_since(Instant::now()));
                    }
                    micros
                })
            })
            .collect();
        Self { stop, threads }
    }

    /// Ends it. What each transaction took, in µs.
    fn stop(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().expect("a client")).collect()
    }
}
