//! `make bench`: Headwater beside the database's own clients and Debezium, on the same backlogs, on this machine, in one run.
//!
//! Figures of a shared machine are only good beside each other: the ratio within one round is what counts. The output is Markdown.
//!
//! - `SOURCES`: which databases, one after the other (default all): postgres mariadb mysql
//! - `CASES`: which cases (default all): narrow single wide large huge backfill latency restart idle; the last three and the
//!   application beside a backfill are of PostgreSQL only
//! - `ROWS`: rows of the case `narrow` (default 1000000); the other cases scale with it, `backfill` has five times as many
//! - `ROUNDS`: how often each backlog is drained (default 3)
//! - `DEBEZIUM`: `off` leaves Debezium out; it takes part in the cases `narrow` and `backfill`

mod backfill;
mod backlog;
mod debezium;
mod drain;
mod headwater;
mod latency;
mod load;
mod mysql;
mod postgres;
mod process;
mod server;
mod source;
mod support;

use std::collections::BTreeMap;

use backlog::{Backlog, Shape};
use drain::{Contestant, Drained};
use headwater::Daemon;
use mysql::MysqlServer;
use postgres::PostgresServer;
use server::Server;
use source::Source;

/// What the environment asks for.
struct Wanted {
    sources: Vec<String>,
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
            sources: text("SOURCES", "postgres mariadb mysql").split_whitespace().map(str::to_owned).collect(),
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
    for source in &wanted.sources {
        match source.as_str() {
            "postgres" => run_postgres(&wanted),
            name => run_mysql(name, &wanted),
        }
    }
}

fn run_mysql(name: &str, wanted: &Wanted) {
    let mysql = MysqlServer::start(name);
    let server = Server::new(&mysql);
    drains(&server, wanted);
    if wanted.has("backfill") {
        backfill::run(&server, wanted.rows * 5, wanted.rounds, wanted.debezium);
        mysql.drop_table();
    }
}

fn run_postgres(wanted: &Wanted) {
    let postgres = PostgresServer::start();
    let server = Server::new(&postgres);
    let ordinary = drains(&server, wanted);
    if wanted.has("backfill") {
        backfill::run(&server, wanted.rows * 5, wanted.rounds, wanted.debezium);
        for log in [Contestant::Embedded, Contestant::Kafka] {
            load::under_load(&postgres, &server, log, wanted.rows * 5);
        }
        postgres.drop_table();
    }
    if wanted.has("latency") {
        latency::run(&postgres, &server, &ordinary);
    }
    if wanted.has("restart") {
        headwater::restarts(&postgres, &server);
    }
    if wanted.has("idle") {
        headwater::idle(&postgres, &server);
    }
}

/// The cases that drain a backlog; the rates of `narrow`.
fn drains(server: &Server<'_>, wanted: &Wanted) -> BTreeMap<Contestant, f64> {
    print_conditions(server);
    let mut ordinary = BTreeMap::new();
    for case in ["narrow", "single", "wide", "large", "huge"] {
        if wanted.has(case) {
            let rates = drain_all(server, Shape::of(server.source, case, wanted.rows), wanted);
            if case == "narrow" {
                ordinary = rates;
            }
        }
    }
    ordinary
}

fn print_conditions(server: &Server<'_>) {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "\n## {}\n\nApache Kafka 4.3.1 (one broker, 6 partitions, lz4), headwater {};",
        server.source.title(),
        process::version()
    );
    println!("{cores} cores shared by server, broker and client; TCP on loopback without TLS; default commit limits;");
    println!("the embedded log synced at each commit. CPU and memory are of the client process alone, from its start.");
}

/// Drains one backlog by everybody, in an order that turns with the round.
///
/// Returns the rows per second of each, averaged over the rounds.
fn drain_all(server: &Server<'_>, shape: Shape, wanted: &Wanted) -> BTreeMap<Contestant, f64> {
    let mut rates = BTreeMap::new();
    let clients = server.source.clients(&shape);
    let mut contestants: Vec<Contestant> = (0..clients.len()).map(Contestant::Client).collect();
    contestants.extend([Contestant::Embedded, Contestant::Kafka]);
    if wanted.debezium && shape.name == "narrow" {
        contestants.push(Contestant::DebeziumExactlyOnce);
    }
    let rounds = wanted.rounds;
    let (backlog, mut standing) = load(server, &shape, &contestants, rounds);
    println!("\n### {}: {}\n\n{}\n", server.source.title(), backlog.case, backlog.words);
    println!("| Round | Drain | Seconds | Rows/s | Ratio | CPU µs/row | Peak MiB |\n|---|---|---|---|---|---|---|");
    for round in 0..rounds {
        let mut drained = Vec::new();
        for at in 0..contestants.len() {
            let contestant = contestants[(at + round) % contestants.len()];
            let one = match contestant {
                Contestant::Client(client) => server.source.drain(client, &backlog, round),
                Contestant::DebeziumExactlyOnce => debezium::drain(server, &backlog, round),
                log => headwater::drain(server, &backlog, log, round, standing.remove(&(log, round))),
            };
            drained.push((contestant, one));
        }
        drained.sort_by_key(|(contestant, _)| *contestant);
        print_round(round, backlog.rows, &clients, &drained);
        for (contestant, one) in drained {
            *rates.entry(contestant).or_default() += backlog.rows as f64 / one.seconds / rounds as f64;
        }
    }
    server.source.drop_table();
    rates
}

/// Daemons that stand in front of a backlog, where the database has no slots that do.
type Standing = BTreeMap<(Contestant, usize), Daemon>;

/// The table, whatever must be there before the rows are, and the rows.
fn load(server: &Server<'_>, shape: &Shape, contestants: &[Contestant], rounds: usize) -> (Backlog, Standing) {
    server.source.make_table(&shape.columns, &source::slots(contestants, rounds));
    let mut standing = BTreeMap::new();
    for log in [Contestant::Embedded, Contestant::Kafka] {
        for round in (0..rounds).filter(|_| server.source.must_know_position()) {
            let name = headwater::name(server, shape.name, log, round);
            standing.insert((log, round), Daemon::stand(server, log, &name, &log.slot(round)));
        }
    }
    (server.source.load(shape), standing)
}

fn print_round(round: usize, rows: u64, clients: &[&str], drained: &[(Contestant, Drained)]) {
    let base =
        drained.iter().find(|(contestant, _)| *contestant == Contestant::Client(0)).map_or(f64::NAN, |(_, one)| one.seconds);
    for (contestant, one) in drained {
        let title = match contestant {
            Contestant::Client(client) => clients[*client],
            other => other.title(),
        };
        println!(
            "| {} | {title} | {:.2} | {:.0} | {:.2} | {:.2} | {} |",
            round + 1,
            one.seconds,
            rows as f64 / one.seconds,
            base / one.seconds,
            one.cpu.as_secs_f64() * 1e6 / rows as f64,
            one.peak_kib / 1024,
        );
    }
}
