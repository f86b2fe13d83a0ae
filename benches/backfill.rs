//! Reading a table that is there already: beside one connection that selects it.

use std::time::{Duration, Instant};

use crate::{
    debezium,
    drain::{Contestant, Drained},
    headwater::Daemon,
    process::{cpu, memory_kib},
    server::Server,
};

/// Who reads the table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    /// The database's own client, one connection, to /dev/null.
    Select,
    /// Headwater into a log, with so many readers.
    Headwater(Contestant, usize),
    /// The snapshot of Debezium on Kafka Connect.
    Debezium,
}

/// What reading cost.
struct Cost {
    drained: Drained,
    /// CPU time of all processes of the server.
    server: Duration,
}

/// Fills the table and measures; the table stays.
pub fn run(server: &Server<'_>, rows: u64, rounds: usize, with_debezium: bool) {
    let filled = server.source.fill(rows);
    println!(
        "\n### {}: backfill\n\n{rows} rows of 10 columns, {}; nothing else happens. {} to /dev/null on one connection. The time of \
         Headwater is that of the whole process, from its start until the end of the backfill is committed; the CPU of the server is \
         that of all its processes.\n",
        server.source.title(),
        filled.size,
        filled.baseline,
    );
    println!("| Round | Read by | Readers | Seconds | Rows/s | Ratio | Server CPU µs/row | CPU µs/row | Peak MiB |");
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut all = vec![Who::Select];
    for log in [Contestant::Embedded, Contestant::Kafka] {
        all.extend([1, 2, 4].map(|readers| Who::Headwater(log, readers)));
    }
    if with_debezium {
        all.push(Who::Debezium);
    }
    for round in 0..rounds {
        let mut costs: Vec<(usize, Cost)> = (0..all.len())
            .map(|at| (at + round) % all.len())
            .map(|at| (at, measure(server, all[at], &format!("{}_bf_{round}_{at}", server.source.name()), rows)))
            .collect();
        costs.sort_by_key(|(at, _)| *at);
        let base = costs[0].1.drained.seconds;
        for (at, cost) in &costs {
            print(round, all[*at], rows, base, cost);
        }
    }
}

fn measure(server: &Server<'_>, who: Who, name: &str, rows: u64) -> Cost {
    let before = server_cpu(server);
    let drained = match who {
        Who::Select => server.source.select(),
        Who::Headwater(log, readers) => backfill(server, log, readers, name, rows),
        Who::Debezium => debezium::snapshot(server, name, rows),
    };
    let cost = Cost { drained, server: server_cpu(server).saturating_sub(before) };
    server.source.drop_slots();
    cost
}

fn print(round: usize, who: Who, rows: u64, base: f64, cost: &Cost) {
    let (name, readers) = match who {
        Who::Select => ("SELECT", "-".to_owned()),
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

fn backfill(server: &Server<'_>, log: Contestant, readers: usize, name: &str, rows: u64) -> Drained {
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
pub fn server_cpu(server: &Server<'_>) -> Duration {
    crate::process::family_cpu(server.source.pid())
}
