//! The promise, under fire: the daemon is killed again and again while real writers work, and the topics must hold every
//! committed transaction exactly once, in order, when the smoke has cleared.
//!
//! `HEADWATER_SEED` replays a run's workload and its moments of death, `HEADWATER_KILLS` sets how many kills must count.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use fastrand::Rng;

use crate::{
    checker::{Rules, check},
    support::{
        daemon::Home,
        oracle::Oracle,
        postgres::{Database, Postgres},
        record::Record,
        wait_until,
        workload::{self, Workload},
    },
};

/// Partitions of the topics in these runs: enough that a wrong choice shows.
pub const PARTITIONS: u32 = 3;
const TOPICS: [&str; 5] = ["shop.bank", "shop.account", "shop.order", "shop.document", "shop.journal"];
const WRITERS: u64 = 3;

/// Reads a whole topic.
type Reader<'a> = &'a dyn Fn(&str) -> Vec<Record>;

/// What one run is made of.
pub struct Run<'a> {
    /// Printed, so that a failure can be repeated.
    pub seed: u64,
    /// Kills that must count.
    pub kills: u32,
    /// The daemon's files.
    pub home: &'a Home,
    /// The source.
    pub database: &'a Database<'a>,
    /// A reader that is not the daemon's own, for the last look; none takes what `tail` has shown.
    pub final_reader: Option<Reader<'a>>,
}

/// The seed of this run: given, or made from the clock and printed.
pub fn seed() -> u64 {
    setting("HEADWATER_SEED").unwrap_or_else(|| fastrand::u64(1..1_000_000))
}

/// How many kills must count.
pub fn kills() -> u32 {
    setting("HEADWATER_KILLS").map_or(10, |kills| u32::try_from(kills).expect("a small number of kills"))
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// Everything that `tail` has ever shown. Compaction may remove a record later, so the history is gathered as the run goes.
#[derive(Default)]
struct History {
    records: BTreeMap<(&'static str, u32), Vec<Record>>,
}

impl History {
    /// Reads on behind what is known.
    fn read_on(&mut self, home: &Home) {
        for topic in TOPICS {
            for partition in 0..PARTITIONS {
                let known = self.records.entry((topic, partition)).or_default();
                let from = known.last().map_or(0, |record| record.offset + 1).to_string();
                known.extend(home.tail_with(topic, &["--partition", &partition.to_string(), "--from", &from]));
            }
        }
    }

    fn len(&self) -> usize {
        self.records.values().map(Vec::len).sum()
    }

    fn all(&self) -> Vec<Record> {
        self.records.values().flatten().cloned().collect()
    }

    /// What a reader has seen stays as it was: records may be compacted away, and never change.
    fn expect_unchanged(&self, now: &[Record]) {
        for record in now {
            let known =
                self.records.iter().find(|((topic, partition), _)| *topic == record.topic && *partition == record.partition);
            let seen = known.and_then(|(_, all)| all.iter().find(|seen| seen.offset == record.offset));
            assert_eq!(seen, Some(record), "a committed record is not what it was when it was read first");
        }
    }
}

/// How the kills went.
#[derive(Default)]
struct Kills {
    /// The source had committed transactions that the log did not hold.
    counted: u32,
    /// Of those, kills of a daemon that had published something in its life.
    in_mid_work: u32,
    /// All of them.
    tried: u32,
}

/// Kills the daemon until enough kills count, then lets everything come to rest and checks it.
pub fn run(run: &Run) {
    println!("kill: seed {} ({} kills wanted)", run.seed, run.kills);
    let oracle = Oracle::start(run.database);
    let mut history = History::default();
    let mut first = run.home.start();
    first.wait_state("shop", "streaming");
    let workload = Workload::start(run.database, run.seed, WRITERS, Duration::from_millis(12));
    // The topics exist once the first events are there; from then on they can be read between the lives.
    first.wait_for("shop", "the first events", |_| run.home.run(&["tail", "shop.bank", "--until-end"]).code == Some(0));
    first.kill9();
    let kills = kill_repeatedly(run, &workload, &mut history);
    let progress = workload.stop();
    println!(
        "kill: seed {}: {} kills counted of {} ({} in mid-work); source: {:?} commits, {:?} rollbacks, {:?} deadlocks, {:?} events",
        run.seed,
        kills.counted,
        kills.tried,
        kills.in_mid_work,
        progress.commits,
        progress.rollbacks,
        progress.deadlocks,
        progress.committed_events
    );
    come_to_rest(run, &mut history);
    judge(run, &oracle, &history);
}

fn kill_repeatedly(run: &Run, workload: &Workload, history: &mut History) -> Kills {
    let mut rng = Rng::with_seed(run.seed);
    let mut kills = Kills::default();
    while kills.counted < run.kills || kills.in_mid_work * 2 < run.kills {
        assert!(kills.tried < run.kills * 6 + 20, "{} kills, and only {} hit uncommitted work", kills.tried, kills.counted);
        let known = history.len();
        let mut daemon = run.home.start();
        // Half of the deaths come while the daemon still starts or catches up, half when it streams.
        if rng.bool() {
            daemon.wait_state("shop", "streaming");
        }
        let moment = Instant::now() + Duration::from_millis(rng.u64(20..1_200));
        while Instant::now() < moment {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Counted before the kill: a commit that returned by now and is not in the log was in flight when the daemon died.
        let committed = workload.committed_events();
        daemon.kill9();
        history.read_on(run.home);
        kills.tried += 1;
        if (history.len() as u64) < committed {
            kills.counted += 1;
            kills.in_mid_work += u32::from(history.len() > known);
        }
    }
    kills
}

fn come_to_rest(run: &Run, history: &mut History) {
    let mut daemon = run.home.start();
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0), "an orderly stop");
    history.read_on(run.home);
    let before = history.len();
    // A start without news publishes nothing.
    let mut again = run.home.start();
    again.wait_caught_up("shop");
    assert_eq!(again.terminate(), Some(0), "an orderly stop");
    history.read_on(run.home);
    assert_eq!(history.len(), before, "a restart published events although the source did nothing");
}

fn judge(run: &Run, oracle: &Oracle, history: &History) {
    let expected = oracle.expected("shop");
    let read = |topic: &str| match run.final_reader {
        Some(reader) => reader(topic),
        None => run.home.tail(topic),
    };
    let now: Vec<Record> = TOPICS.iter().flat_map(|topic| read(topic)).collect();
    let records = if run.final_reader.is_some() {
        assert_eq!(now.len(), history.len(), "tail and the log's own reader disagree");
        now
    } else {
        history.expect_unchanged(&now);
        history.all()
    };
    let rules = Rules {
        connector: "shop".to_owned(),
        partitions: PARTITIONS,
        keeps_checkpoints: run.final_reader.is_some(),
        bank: "shop.bank".to_owned(),
        tables: oracle.tables("shop"),
    };
    let checkpoints = read("headwater.shop.checkpoint");
    println!("kill: seed {}: {} events, {} checkpoints checked", run.seed, records.len(), checkpoints.len());
    let findings = check(&expected, &records, &checkpoints, &rules);
    findings.expect_none(&format!("seed {}", run.seed));
}

/// The connector of these runs.
pub fn configure(home: &Home, database: &Database) {
    home.shop(&database.url(), "\"shop.*\"", &format!("    events:\n      partitions: {PARTITIONS}\n"));
}

#[test]
fn kills_lose_and_repeat_nothing_on_the_embedded_log() {
    let server = Postgres::start();
    let database = server.database();
    workload::prepare(&database);
    let home = Home::new();
    configure(&home, &database);
    run(&Run { seed: seed(), kills: kills(), home: &home, database: &database, final_reader: None });
}

/// The oracle itself, without a daemon: what it expects is whole, and a copy of it as records satisfies the checker.
#[test]
fn the_oracle_explains_the_tables() {
    let server = Postgres::shared();
    let database = server.database();
    workload::prepare(&database);
    let oracle = Oracle::start(&database);
    let workload = Workload::start(&database, seed(), WRITERS, Duration::from_millis(5));
    wait_until("enough transactions", Duration::from_secs(60), || match workload.committed_events() {
        events if events > 3_000 => Ok(()),
        events => Err(format!("{events} events")),
    });
    let progress = workload.stop();
    let expected = oracle.expected("shop");
    assert_eq!(expected.len() as u64, progress.committed_events.load(std::sync::atomic::Ordering::SeqCst));
    assert!(expected.iter().any(|event| !event.absent.is_empty()), "no unchanged large value in the workload");
    let mut folded: BTreeMap<(String, String), serde_json::Value> = BTreeMap::new();
    for event in &expected {
        let key = (event.topic.clone(), event.key.clone());
        match &event.value {
            Some(row) => drop(folded.insert(key, row.clone())),
            None => drop(folded.remove(&key)),
        }
    }
    let tables = oracle.tables("shop");
    assert_eq!(folded.keys().collect::<Vec<_>>(), tables.keys().collect::<Vec<_>>());
    for (key, row) in &folded {
        for (column, value) in row.as_object().expect("a row") {
            assert_eq!(&tables[key][column], value, "{key:?} {column}");
        }
    }
}
