//! An application that goes on working while the daemon reads its table.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{
    backfill::server_cpu,
    drain::Contestant,
    headwater::Daemon,
    postgres::PostgresServer,
    process::{cpu, memory_kib},
    server::Server,
    source::Source,
};

/// Connections of the application, each so many transactions per second at most.
const CLIENTS: u64 = 2;
const TRANSACTIONS_PER_SECOND: f64 = 100.0;
/// How long the application is watched; with the backfill at full speed, until that is done if it is done earlier.
const WATCH: Duration = Duration::from_secs(20);
/// The rate limit of the last measurement.
const LIMITED: u64 = 10_000;

/// What the application's transactions take without a backfill, with one, and with one that is limited.
pub fn under_load(postgres: &PostgresServer, server: &Server<'_>, log: Contestant, rows: u64) {
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
        let load = Load::start(postgres, rows);
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
        postgres.drop_slots();
    }
}

/// The application.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<u64>>>,
}

impl Load {
    fn start(postgres: &PostgresServer, rows: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..CLIENTS)
            .map(|client| {
                let (stop, mut connection) = (Arc::clone(&stop), postgres.client());
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
