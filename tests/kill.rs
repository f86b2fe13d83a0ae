//! The promise, under fire: the daemon is killed again and again while real writers work, and the topics must hold every
//! committed transaction exactly once, in order, when the smoke has cleared.
//!
//! `HEADWATER_SEED` replays a run's workload and its moments of death, `HEADWATER_KILLS` sets how many kills must count.

mod binlog;

use std::{
    collections::BTreeMap,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use fastrand::Rng;

use crate::{
    checker::{Expected, Rules, Sample, check},
    support::{
        PATIENCE,
        daemon::{Daemon, Home},
        follow::Follower,
        oracle::Oracle,
        postgres::Postgres,
        record::Record,
        shop::{Shop, Step, Trouble},
        wait_until,
        workload::{self, Progress, Workload},
    },
};

/// Partitions of the topics in these runs: enough that a wrong choice shows.
pub const PARTITIONS: u32 = 3;
const TOPICS: [&str; 5] = ["shop.bank", "shop.account", "shop.order", "shop.document", "shop.journal"];
const CHECKPOINT: &str = "headwater.shop.checkpoint";
const WRITERS: u64 = 3;
/// Events of a log transaction at most: what is larger is published in slices.
pub const CUT: usize = 300;

/// Reads a whole topic.
pub type Reader<'a> = &'a dyn Fn(&str) -> Vec<Record>;

/// What one run is made of.
pub struct Run<'a> {
    /// Printed, so that a failure can be repeated.
    pub seed: u64,
    /// Kills that must count.
    pub kills: u32,
    /// The daemon's files.
    pub home: &'a Home,
    /// The source.
    pub shop: &'a dyn Shop,
    /// A reader that is not the daemon's own, for the last look; none takes what `tail` has shown.
    pub final_reader: Option<Reader<'a>>,
    /// Reads on between the lives; none where `tail` is fast because the log is a file.
    pub follower: Option<&'a Follower>,
    /// Ends the log's server and starts it again, in order or without warning; none where the log is a file.
    pub break_log: Option<&'a dyn Fn(BrokenLog)>,
    /// Returns when the log has given up the transaction that a frozen daemon has open; none where the log gives nothing up.
    pub outlast: Option<&'a dyn Fn()>,
}

/// How the log's server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokenLog {
    /// It says good-bye.
    Restarted,
    /// SIGKILL.
    Killed,
}

/// The seed of this run: given, or made from the clock and printed.
pub fn seed() -> u64 {
    setting("HEADWATER_SEED").unwrap_or_else(|| fastrand::u64(1..1_000_000))
}

/// How many kills must count, where nobody says otherwise this many.
pub fn kills(usual: u32) -> u32 {
    setting("HEADWATER_KILLS").map_or(usual, |kills| u32::try_from(kills).expect("a small number of kills"))
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// Everything that `tail` has ever shown. Compaction may remove a record later, so the history is gathered as the run goes.
#[derive(Default)]
struct History {
    records: BTreeMap<(&'static str, u32), Vec<Record>>,
    /// How far the source and the log were at every death.
    samples: Vec<Sample>,
}

impl History {
    /// Reads on behind what is known.
    fn read_on(&mut self, run: &Run) {
        let Some(follower) = run.follower else { return self.tail_on(run.home) };
        let places = TOPICS.iter().flat_map(|topic| (0..PARTITIONS).map(move |partition| (*topic, partition)));
        let known = |place| self.records.get(&place).and_then(|all| all.last()).map_or(0, |last| last.offset + 1);
        let from: Vec<_> = places.map(|place| (place.0, place.1, known(place))).collect();
        for record in follower.read(&from) {
            let topic = TOPICS.iter().find(|topic| **topic == record.topic).expect("a topic that was asked for");
            self.records.entry((topic, record.partition)).or_default().push(record);
        }
    }

    /// The same with the daemon's own command.
    fn tail_on(&mut self, home: &Home) {
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
    /// Log transactions that were complete at the log and not committed when the daemon died.
    aborted: u32,
    /// Commits that happened, and whose answer nobody heard.
    answers_lost: u32,
    /// Deaths inside a source transaction of which slices were published.
    partial: u32,
    databases_crashed: u32,
    storms: u32,
    senders_ended: u32,
    rivals_started: u32,
    frozen: u32,
    /// Freezes in an open log transaction that lasted until the source and the log had given the daemon up.
    outlasted: u32,
    logs_broken: u32,
    logs_restarted: u32,
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
    let oracle = Oracle::start(run.shop);
    let mut history = History::default();
    let mut first = run.home.start();
    first.wait_state("shop", "streaming");
    let workload = Workload::start(run.shop, run.seed, WRITERS, Duration::from_millis(12));
    // The topics exist once the first events are there; from then on they can be read between the lives.
    first.wait_for("shop", "the first events", |_| run.home.run(&["tail", "shop.bank", "--until-end"]).code == Some(0));
    first.kill9();
    let kills = kill_repeatedly(run, &workload, &mut history);
    let progress = workload.stop();
    let seen = kills.seen(run, &progress);
    kills.require(run, &seen);
    let Progress { commits, rollbacks, deadlocks, committed_events, .. } = &*progress;
    println!(
        "kill: seed {}: source: {commits:?} commits, {rollbacks:?} rollbacks, {deadlocks:?} deadlocks, {committed_events:?} events",
        run.seed
    );
    come_to_rest(run, &mut history);
    judge(run, &oracle, &history);
    kills.print_row(run, history.len(), &seen);
}

impl Kills {
    /// What a full run must have seen, by name.
    fn seen(&self, run: &Run, progress: &Progress) -> Vec<(&'static str, u64)> {
        let [sender_ended, bulk] = run.shop.words();
        let mut seen = vec![
            ("aborted", self.aborted),
            ("answers lost", self.answers_lost),
            ("resumed inside a transaction", self.partial),
            ("database crashed", self.databases_crashed),
            (sender_ended, self.senders_ended),
            ("rivals", self.rivals_started),
            ("frozen", self.frozen),
            ("frozen past every timeout", self.outlasted),
        ];
        if run.shop.troubles().contains(&Trouble::NewFiles) {
            seen.push(("storms of new binlogs", self.storms));
        }
        if run.break_log.is_some() {
            seen.extend([("broker killed", self.logs_broken), ("broker restarted", self.logs_restarted)]);
        }
        let mut seen: Vec<_> = seen.into_iter().map(|(what, count)| (what, u64::from(count))).collect();
        for (what, count) in [("20,000 rows", &progress.large), (bulk, &progress.copies), ("columns changed", &progress.reshapes)]
        {
            seen.push((what, count.load(Ordering::SeqCst)));
        }
        seen
    }

    /// A full run in which something never happened has shown nothing about it.
    fn require(&self, run: &Run, seen: &[(&str, u64)]) {
        println!("kill: seed {}: {} kills counted of {}; {seen:?}", run.seed, self.counted, self.tried);
        for (what, count) in seen.iter().filter(|_| run.kills >= FULL) {
            assert!(*count > 0, "seed {}: {what}: never in {} kills", run.seed, self.tried);
        }
    }

    /// The line of the long run's table; it is printed when the audit has passed.
    fn print_row(&self, run: &Run, events: usize, seen: &[(&str, u64)]) {
        let log = if run.follower.is_some() { "Kafka" } else { "embedded" };
        let seen: Vec<String> = seen.iter().map(|(what, count)| format!("{what} {count}")).collect();
        let (kills, work) = (self.counted, self.in_mid_work);
        let log = format!("{}, {log}", run.shop.name());
        println!("kill: | {} | {log} | {kills} of {} | {work} | {events} | {} |", run.seed, self.tried, seen.join(", "));
    }
}

/// From so many kills on a run must have seen every kind of trouble.
const FULL: u32 = 30;

fn kill_repeatedly(run: &Run, workload: &Workload, history: &mut History) -> Kills {
    let mut rng = Rng::with_seed(run.seed);
    let mut kills = Kills::default();
    while kills.counted < run.kills || kills.in_mid_work * 2 < run.kills {
        assert!(kills.tried < run.kills * 6 + 20, "{} kills, and only {} hit uncommitted work", kills.tried, kills.counted);
        let known = history.len();
        if run.kills >= FULL && kills.tried % 25 == 10 {
            workload.ask_for_large();
        }
        let (point, hit) = place_of_death(run, &kills, &mut rng);
        // Every fourth life has its trouble, each kind in its turn: luck alone leaves one out in a run of thirty.
        let due = due(run, kills.tried);
        let point = point.filter(|_| due.is_none());
        let outlasts = matches!(due, Some(Trouble::Freeze)) && run.kills >= FULL && kills.frozen.is_multiple_of(2);
        let fault = point.map(|point| format!("{point}:{}:stall", if point == "C14" { 1 } else { hit }));
        // It freezes itself, so that it has a log transaction open for sure.
        let fault = fault.or_else(|| outlasts.then(|| format!("C6:{hit}:stop")));
        let planned = fault.as_deref().map(|fault| ("HEADWATER_FAULT", fault));
        let faults_before = reached(run.home);
        let mut daemon = run.home.start_with(planned.as_slice());
        // Half of the deaths come while the daemon still starts or catches up, half when it streams.
        if outlasts {
            outlast(run, faults_before, &mut kills, &mut daemon);
        } else if point.is_none() && (rng.bool() || due.is_some()) {
            daemon.wait_state("shop", "streaming");
            if let Some(kind) = due {
                trouble(run, kind, &mut rng, &mut kills, &mut daemon);
            }
        }
        let moment = Instant::now() + Duration::from_millis(if point.is_some() { 4_000 } else { rng.u64(20..1_200) });
        while Instant::now() < moment && (point.is_none() || reached(run.home) == faults_before) {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Counted before the kill: a commit that returned by now and is not in the log was in flight when the daemon died.
        let committed = workload.committed_events();
        let at_point = reached(run.home) > faults_before;
        // A rival may have made it stand down: its end is no kill then.
        let killed = daemon.is_running();
        if killed {
            daemon.kill9();
        }
        history.read_on(run);
        workload.saw(history.len() as u64);
        kills.tried += 1;
        kills.aborted += u32::from(at_point && point == Some("C7"));
        kills.answers_lost += u32::from(at_point && point == Some("C8"));
        // Asked before the checkpoint is read, so that a difference is none of time.
        let confirmed = run.shop.confirmed();
        if let Some(position) = newest_position(run) {
            history.samples.extend(run.shop.sample(confirmed, &position));
            kills.partial += u32::from(run.shop.is_partial(&position));
        }
        if killed && (history.len() as u64) < committed {
            kills.counted += 1;
            kills.in_mid_work += u32::from(history.len() > known);
        }
        break_the_log(run, &mut kills);
    }
    kills
}

/// Half of the deaths come at a place that is known to be bad, the others anywhere. A place where a full run has not seen one is tried
/// until it has, early in a life.
fn place_of_death(run: &Run, kills: &Kills, rng: &mut Rng) -> (Option<&'static str>, u32) {
    let chosen = (["C7", "C8", "C14"].get(rng.usize(0..6)).copied(), rng.u32(2..12));
    let missing = [("C7", kills.aborted), ("C8", kills.answers_lost)].into_iter().find(|(_, seen)| *seen == 0);
    match missing {
        Some((point, _)) if run.kills >= FULL && kills.tried % 4 == 1 => (Some(point), 2 + chosen.1 % 3),
        _ => chosen,
    }
}

/// A start of a broker takes longer than many deaths, so it is rare, and a short run goes without.
fn break_the_log(run: &Run, kills: &mut Kills) {
    let how = match kills.tried % 30 {
        7 => BrokenLog::Killed,
        22 => BrokenLog::Restarted,
        _ => return,
    };
    if let Some(break_log) = run.break_log.filter(|_| run.kills >= FULL) {
        break_log(how);
        match how {
            BrokenLog::Killed => kills.logs_broken += 1,
            BrokenLog::Restarted => kills.logs_restarted += 1,
        }
    }
}

/// Points that a daemon of this home has reached so far.
fn reached(home: &Home) -> usize {
    let said = std::fs::read_to_string(home.path("stderr")).unwrap_or_default();
    said.lines().filter(|line| line.starts_with("fault C")).count()
}

/// What the newest checkpoint holds; none before the source was prepared.
fn newest_position(run: &Run) -> Option<String> {
    let checkpoints = match run.follower {
        Some(follower) => follower.read(&[(CHECKPOINT, 0, 0)]),
        None => run.home.tail(CHECKPOINT),
    };
    let newest = checkpoints.iter().rev().find(|record| record.key.contains("position"));
    newest.and_then(|record| record.column("position")).and_then(serde_json::Value::as_str).map(str::to_owned)
}

/// The trouble of this life. Short runs do not begin with the same one every time.
fn due(run: &Run, tried: u32) -> Option<Trouble> {
    let troubles = run.shop.troubles();
    let first = if run.kills < FULL { run.seed as usize } else { 0 };
    (tried % 4 == 3).then(|| troubles[(first + tried as usize / 4) % troubles.len()])
}

fn trouble(run: &Run, kind: Trouble, rng: &mut Rng, kills: &mut Kills, daemon: &mut Daemon) {
    match kind {
        Trouble::DatabaseCrash => {
            run.shop.crash_and_restart();
            kills.databases_crashed += 1;
        }
        Trouble::SenderEnd => {
            run.shop.end_senders();
            kills.senders_ended += 1;
        }
        Trouble::NewFiles => {
            run.shop.new_files();
            kills.storms += 1;
        }
        Trouble::Freeze => {
            daemon.signal("STOP");
            std::thread::sleep(Duration::from_millis(rng.u64(200..1_500)));
            daemon.signal("CONT");
            kills.frozen += 1;
        }
        Trouble::Rival => {
            // Two of one name: on the embedded log the file's lock keeps the second out, on Kafka they fence each other.
            let rival = run.home.start();
            std::thread::sleep(Duration::from_millis(rng.u64(50..800)));
            drop(rival);
            kills.rivals_started += 1;
        }
    }
}

/// Waits until the daemon has frozen itself and everybody has given it up, and wakes it up: it has to go on.
fn outlast(run: &Run, faults_before: usize, kills: &mut Kills, daemon: &mut Daemon) {
    wait_until("the freeze", PATIENCE, || (reached(run.home) > faults_before).then_some(()).ok_or_else(|| daemon.stderr()));
    run.shop.outlast();
    if let Some(outlast) = run.outlast {
        outlast();
    }
    daemon.signal("CONT");
    daemon.wait_state("shop", "streaming");
    kills.frozen += 1;
    kills.outlasted += 1;
}

fn come_to_rest(run: &Run, history: &mut History) {
    let mut daemon = run.home.start();
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0), "an orderly stop");
    history.read_on(run);
    let before = history.len();
    // A start without news publishes nothing.
    let mut again = run.home.start();
    again.wait_caught_up("shop");
    assert_eq!(again.terminate(), Some(0), "an orderly stop");
    history.read_on(run);
    assert_eq!(history.len(), before, "a restart published events although the source did nothing");
}

/// Brings the connector to rest and holds everything in its topics against the oracle.
pub fn rest_and_judge(run: &Run, oracle: &Oracle) {
    let mut history = History::default();
    come_to_rest(run, &mut history);
    judge(run, oracle, &history);
}

/// Holds everything in the topics against the oracle, whoever wrote it.
pub fn audit(run: &Run, oracle: &Oracle) {
    let mut history = History::default();
    history.read_on(run);
    judge(run, oracle, &history);
}

fn judge(run: &Run, oracle: &Oracle, history: &History) {
    let expected = oracle.expected("shop");
    let read = |topic: &str| {
        let tailed = run.home.tail(topic);
        let Some(reader) = run.final_reader else { return tailed };
        // That reader stops when nothing came for a while, on a busy machine before the first record; it may see more, not less.
        let deadline = Instant::now() + PATIENCE;
        let mut last = reader(topic);
        while last.len() < tailed.len() && Instant::now() < deadline {
            last = reader(topic);
        }
        assert_eq!(last.len(), tailed.len(), "tail and the log's own reader disagree about {topic}");
        last
    };
    let now: Vec<Record> = TOPICS.iter().flat_map(|topic| read(topic)).collect();
    let records = if run.final_reader.is_some() {
        assert_eq!(now.len(), history.len(), "two readers of the log disagree");
        now
    } else {
        history.expect_unchanged(&now);
        history.all()
    };
    let rules = Rules {
        connector: "shop".to_owned(),
        partitions: PARTITIONS,
        keeps_checkpoints: run.final_reader.is_some(),
        cut_above: CUT,
        bank: "shop.bank".to_owned(),
        tables: oracle.tables("shop"),
        samples: history.samples.clone(),
    };
    let checkpoints = read(CHECKPOINT);
    println!(
        "kill: seed {}: {} events, {} checkpoints, {} confirmations checked",
        run.seed,
        records.len(),
        checkpoints.len(),
        history.samples.len()
    );
    let findings = check(&expected, &records, &checkpoints, &rules);
    findings.expect_none(&format!("seed {}", run.seed));
}

/// The connector of these runs.
pub fn configure(home: &Home, shop: &dyn Shop) {
    // Large transactions are published in slices of this size, so that deaths come inside of them too.
    let (tables, source) = shop.captured();
    let more = format!("{source}    events:\n      partitions: {PARTITIONS}\n    commit: {{ max_events: {CUT} }}\n");
    shop.capture(home, tables, &more);
}

/// A source that gives up a silent client soon, so that a freeze can outlast that.
pub fn source() -> Postgres {
    Postgres::start_with(&["wal_sender_timeout=5s"])
}

#[test]
fn kills_lose_and_repeat_nothing_on_the_embedded_log() {
    let server = source();
    let database = server.database();
    workload::prepare(&database);
    let home = Home::new();
    configure(&home, &database);
    run(&Run {
        seed: seed(),
        kills: kills(10),
        home: &home,
        shop: &database,
        final_reader: None,
        follower: None,
        break_log: None,
        outlast: None,
    });
}

/// The oracle itself, without a daemon: what it expects is whole, and a copy of it as records satisfies the checker.
fn explain(shop: &dyn Shop) -> Vec<Expected> {
    workload::prepare(shop);
    let oracle = Oracle::start(shop);
    // A column that comes is the one thing that luck may leave out of a few transactions.
    let (mut client, mut reshaped) = (shop.connect()().expect("a session"), 0);
    let steps = [
        Step::Exclusive,
        Step::Reshape { kind: "int", value: "'7'", name: "extra", rename: false },
        Step::Call("put_account(1, 'with a column', true)".to_owned()),
    ];
    client.run(&steps, true, &mut reshaped).expect("a column");
    let workload = Workload::start(shop, seed(), WRITERS, Duration::from_millis(5));
    wait_until("enough transactions", PATIENCE, || match workload.committed_events() {
        events if events > 3_000 => Ok(()),
        events => Err(format!("{events} events")),
    });
    let progress = workload.stop();
    let expected = oracle.expected("shop");
    assert_eq!(expected.len() as u64, reshaped + progress.committed_events.load(Ordering::SeqCst));
    assert_eq!(expected[0].value.as_ref().expect("a row")["extra"], 7, "an account has the column that has come");
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
            // The last event of an account may be older than its latest columns, which the oracle leaves out therefore.
            let known = tables[key].get(column);
            assert!(known == Some(value) || known.is_none() && key.0 == "shop.account", "{key:?} {column}: {known:?}, {value}");
        }
    }
    expected
}

#[test]
fn the_oracle_explains_the_tables() {
    let server = Postgres::shared();
    let expected = explain(&server.database());
    assert!(expected.iter().any(|event| !event.absent.is_empty()), "no unchanged large value in the workload");
}
