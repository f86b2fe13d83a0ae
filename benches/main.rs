//! `make bench`: Headwater beside pg_recvlogical and Debezium, on the same backlogs, on this machine, in one run.
//!
//! Figures of a shared machine are only good beside each other: the ratio within one round is what counts. The output is Markdown.
//!
//! - `CASES`: which cases (default all): narrow single wide large huge backfill latency restart idle
//! - `ROWS`: rows of the case `narrow` (default 1000000); the other cases scale with it, `backfill` has five times as many
//! - `ROUNDS`: how often each backlog is drained (default 3; `huge` once)
//! - `DEBEZIUM`: `off` leaves Debezium out; it takes part in the cases `narrow` and `backfill`

mod backfill;
mod backlog;
mod debezium;
mod drain;
mod headwater;
mod latency;
mod process;
mod server;
mod support;

use std::collections::BTreeMap;

use backlog::{Backlog, Shape};
use drain::{Contestant, Drained};
use server::Server;

/// What the environment asks for.
struct Wanted {
    cases: Vec<String>,
    rows: u64,
    rounds: usize,
    debezium: bool,
}

impl Wanted {
    fn read() -> Self {
        let text = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        let number = |name: &str, default: &str| text(name, default).parse().unwrap_or_else(|_| panic!("{name} is a number"));
        let all = "narrow single wide large huge backfill latency restart idle";
        Self {
            cases: text("CASES", all).split_whitespace().map(str::to_owned).collect(),
            rows: number("ROWS", "1000000"),
            rounds: number("ROUNDS", "3") as usize,
            debezium: text("DEBEZIUM", "on") != "off",
        }
    }

    fn has(&self, case: &str) -> bool {
        self.cases.iter().any(|wanted| wanted == case)
    }
}

fn main() {
    let wanted = Wanted::read();
    let server = Server::start();
    print_conditions(&server);
    let rows = wanted.rows;
    let shapes =
        [Shape::narrow(rows), Shape::single(rows / 4), Shape::wide(rows / 10), Shape::large(rows / 5), Shape::huge(rows / 2)];
    let mut ordinary = BTreeMap::new();
    for shape in shapes {
        if wanted.has(shape.name) {
            let name = shape.name;
            let rates = drain_all(&server, shape, &wanted);
            if name == "narrow" {
                ordinary = rates;
            }
        }
    }
    if wanted.has("backfill") {
        backfill::run(&server, rows * 5, wanted.rounds, wanted.debezium);
    }
    if wanted.has("latency") {
        latency::run(&server, &ordinary);
    }
    if wanted.has("restart") {
        headwater::restarts(&server);
    }
    if wanted.has("idle") {
        headwater::idle(&server);
    }
}

fn print_conditions(server: &Server) {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "PostgreSQL {}, Apache Kafka 4.3.1 (one broker, 6 partitions, lz4), headwater {};",
        server.version(),
        process::version()
    );
    println!("{cores} cores shared by server, walsender, broker and client; TCP on loopback without TLS; default commit limits;");
    println!("the embedded log synced at each commit. CPU and memory are of the client process alone, from its start.");
}

/// Drains one backlog by everybody, in an order that turns with the round.
///
/// Returns the rows per second of each, averaged over the rounds.
fn drain_all(server: &Server, shape: Shape, wanted: &Wanted) -> BTreeMap<Contestant, f64> {
    let mut rates = BTreeMap::new();
    let once = shape.name == "huge";
    let rounds = if once { 1 } else { wanted.rounds };
    let mut contestants = vec![Contestant::Recv, Contestant::Embedded, Contestant::Kafka];
    if wanted.debezium && shape.name == "narrow" {
        contestants.push(Contestant::DebeziumExactlyOnce);
    }
    let backlog = Backlog::load(server, shape, rounds, &contestants);
    println!("\n### {}\n\n{}\n", backlog.shape.name, backlog.describe());
    println!("| Round | Drain | Seconds | Rows/s | Ratio | CPU µs/row | Peak MiB |\n|---|---|---|---|---|---|---|");
    for round in 0..rounds {
        let mut drained = Vec::new();
        for at in 0..contestants.len() {
            let contestant = contestants[(at + round) % contestants.len()];
            drained.push((contestant, drain::drain(server, &backlog, contestant, round)));
        }
        drained.sort_by_key(|(contestant, _)| *contestant);
        print_round(round, backlog.shape.rows, &drained);
        for (contestant, one) in drained {
            *rates.entry(contestant).or_default() += backlog.shape.rows as f64 / one.seconds / rounds as f64;
        }
    }
    backlog.drop(server);
    rates
}

fn print_round(round: usize, rows: u64, drained: &[(Contestant, Drained)]) {
    let base = drained.iter().find(|(contestant, _)| *contestant == Contestant::Recv).map_or(f64::NAN, |(_, one)| one.seconds);
    for (contestant, one) in drained {
        println!(
            "| {} | {} | {:.2} | {:.0} | {:.2} | {:.2} | {} |",
            round + 1,
            contestant.title(),
            one.seconds,
            rows as f64 / one.seconds,
            base / one.seconds,
            one.cpu.as_secs_f64() * 1e6 / rows as f64,
            one.peak_kib / 1024,
        );
    }
}
