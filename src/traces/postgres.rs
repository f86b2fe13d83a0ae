//! Traces of a real PostgreSQL. Several seeds share a server, each with a database and a slot of its own, so that its crashes are
//! shared too and cost little.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    thread,
};

use ::postgres::Client;
use fastrand::Rng;

use super::{
    OPERATIONS, PATIENCE,
    real_postgres::Postgres,
    seeds,
    source::{self, Facts, Mark, Op, Trace},
    wait_until,
    wire::Wire,
};
use crate::pipeline::simulation::{Lie, Lsn};

/// Seeds that share a server.
const TOGETHER: u64 = 10;

/// The slot as the server shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    confirmed: Lsn,
    active: Option<i32>,
    stored: Lsn,
}

struct Case<'a> {
    server: &'a Server,
    rng: Rng,
    database: String,
    control: Client,
    /// In another database.
    marker: Client,
    sessions: Vec<Client>,
    /// Which of them have a transaction open.
    open: BTreeSet<usize>,
    clients: BTreeMap<usize, Wire>,
    /// Where each commit record begins and ends.
    layout: Vec<(Lsn, Lsn)>,
    slot: Option<Slot>,
    idle: Lsn,
    version: u32,
    trace: Trace,
}

struct Server {
    postgres: Postgres,
    sockets: PathBuf,
}

impl Server {
    fn start() -> Self {
        let settings =
            ["unix_socket_directories = '.'", "autovacuum = off", "checkpoint_timeout = '1h'", "bgwriter_delay = '10s'"];
        let postgres = Postgres::start_with(&settings);
        let row = postgres.client("postgres").query_one("SHOW data_directory", &[]).unwrap();
        Self { postgres, sockets: row.get::<_, String>(0).into() }
    }
}

fn lsn(text: &str) -> Lsn {
    let (high, low) = text.split_once('/').unwrap();
    u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap()
}

impl<'a> Case<'a> {
    fn new(server: &'a Server, seed: u64) -> Self {
        let database = format!("trace_{seed}");
        server.postgres.client("postgres").batch_execute(&format!("CREATE DATABASE {database}")).unwrap();
        let mut control = server.postgres.client(&database);
        let script = "CREATE TABLE t (version int PRIMARY KEY); CREATE TABLE elsewhere (id int);
                      CREATE PUBLICATION captured FOR TABLE t; CREATE PUBLICATION everything FOR ALL TABLES;";
        control.batch_execute(script).unwrap();
        let audit = format!("SELECT pg_create_logical_replication_slot('audit_{database}', 'pgoutput')");
        control.batch_execute(&audit).unwrap();
        let sessions = (0..2).map(|_| server.postgres.client(&database)).collect();
        let (rng, clients, open) = (Rng::with_seed(seed), BTreeMap::new(), BTreeSet::new());
        let (layout, trace) = (Vec::new(), Trace::default());
        let marker = server.postgres.client("postgres");
        Self { server, rng, database, control, marker, sessions, open, clients, layout, slot: None, idle: 0, version: 0, trace }
    }

    fn look(&mut self) -> Option<Slot> {
        let query = "SELECT confirmed_flush_lsn::text, active_pid, pg_read_binary_file('pg_replslot/' || slot_name || '/state')
                     FROM pg_replication_slots WHERE slot_name = $1";
        let row = self.control.query_opt(query, &[&self.database]).unwrap()?;
        // The file: 16 bytes of head, a name of 64, four numbers of 4 bytes, restart_lsn, invalidation, confirmed_flush.
        let file: Vec<u8> = row.get(2);
        let stored = u64::from_ne_bytes(file[112..120].try_into().unwrap());
        Some(Slot { confirmed: lsn(row.get(0)), active: row.get(1), stored })
    }

    /// The end of everything that was written until now; all of it is on the disk.
    fn written(&mut self) -> Lsn {
        let written = self.control.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).unwrap();
        // A commit that decoding skips, because it is in another database.
        self.marker.batch_execute("SELECT pg_logical_emit_message(true, 'marker', '')").unwrap();
        lsn(written.get(0))
    }

    fn before(&self, lsn: Lsn) -> usize {
        self.layout.partition_point(|(commit, _)| *commit < lsn)
    }

    fn place(&self, mark: Mark) -> Lsn {
        match mark {
            Mark::Zero => 0,
            Mark::CommitStart(at) => self.layout[at].0,
            Mark::InsideCommit(at) => self.layout[at].0 + 1,
            Mark::End(at) => self.layout[at].1,
            Mark::Idle => self.idle,
        }
    }

    /// A place, more often a late one.
    fn mark(&mut self) -> Mark {
        let count = self.layout.len();
        if count == 0 {
            return Mark::Zero;
        }
        let reach = [3, 8, 100][self.rng.usize(0..3)];
        let at = self.rng.usize(count.saturating_sub(reach)..count);
        match self.rng.u32(0..20) {
            0 => Mark::Zero,
            1..=3 => Mark::CommitStart(at),
            4..=6 => Mark::InsideCommit(at),
            7 | 8 if self.idle > 0 => Mark::Idle,
            _ => Mark::End(at),
        }
    }

    /// An operation that makes sense now.
    fn choose(&mut self) -> Op {
        loop {
            let (session, client) = (self.rng.usize(0..2), usize::from(self.rng.u32(0..4) == 0));
            let (open, reading) = (self.open.contains(&session), self.clients.contains_key(&client));
            match self.rng.u32(0..120) {
                0..20 => {
                    let versions = (0..self.rng.u32(1..6)).map(|at| self.version + at).collect::<Vec<_>>();
                    self.version += versions.len() as u32;
                    return Op::Insert { session, versions, copied: self.rng.u32(0..3) == 0 };
                }
                20..22 => return Op::InsertElsewhere { session },
                22..40 if open => return Op::Commit { session },
                40..60 if self.open.len() == 2 => return Op::CommitBoth,
                60..62 if open => return Op::Abort { session },
                62..68 => return Op::Open { client, at: self.mark() },
                68..80 if !reading => return Op::Open { client, at: self.mark() },
                80..95 if reading => return Op::Read { client },
                95..112 if reading => return Op::Confirm { client, at: self.mark() },
                112..114 if reading => return Op::Disconnect { client },
                114 if self.slot.is_some() => return Op::DropSlot,
                115..120 if self.slot.is_some() => return Op::AdvanceSlot,
                _ => {}
            }
        }
    }

    fn insert(&mut self, session: usize, versions: &[u32], copied: bool) {
        use std::io::Write;
        let client = &mut self.sessions[session];
        if copied {
            let mut copy = client.copy_in("COPY t FROM STDIN").unwrap();
            versions.iter().for_each(|version| writeln!(copy, "{version}").unwrap());
            copy.finish().unwrap();
        } else {
            versions.iter().for_each(|version| client.batch_execute(&format!("INSERT INTO t VALUES ({version})")).unwrap());
        }
    }

    fn begin(&mut self, session: usize) {
        if self.open.insert(session) {
            self.sessions[session].batch_execute("BEGIN").unwrap();
        }
    }

    /// Learns from another slot where the commit records are. For each new one, whether it touches the one before.
    fn learn(&mut self) -> Vec<bool> {
        let query = format!(
            "SELECT data FROM pg_logical_slot_get_binary_changes('audit_{}', NULL, NULL,
             'proto_version', '1', 'publication_names', 'everything')",
            self.database
        );
        let mut adjacent = Vec::new();
        for row in self.control.query(&query, &[]).unwrap() {
            let data: Vec<u8> = row.get(0);
            let number = |at: usize| u64::from_be_bytes(data[at..at + 8].try_into().unwrap());
            // The slot may have moved back in a crash.
            if data[0] == b'C' && self.layout.last().is_none_or(|(last, _)| *last < number(2)) {
                adjacent.push(self.layout.last().is_some_and(|(_, end)| *end == number(2)));
                self.layout.push((number(2), number(10)));
            }
        }
        adjacent
    }

    fn end(&mut self, session: usize, how: &str) {
        self.sessions[session].batch_execute(how).unwrap();
        self.open.remove(&session);
    }

    /// Waits until nobody reads the slot.
    fn free(&mut self) {
        let query = "SELECT wait_event_type, wait_event FROM pg_stat_activity WHERE pid = $1";
        wait_until("the slot to be free", PATIENCE, || {
            let Some(Slot { active: Some(pid), .. }) = self.look() else { return Ok(()) };
            if let Some(wire) = self.clients.values_mut().find(|wire| wire.pid == pid) {
                wire.read_ahead().unwrap();
            }
            let row = self.control.query_opt(query, &[&pid]).unwrap();
            let waits = row.map(|row| (row.get::<_, Option<String>>(0), row.get::<_, Option<String>>(1)));
            Err(format!("process {pid} has it, {waits:?}"))
        });
    }

    /// Ends whoever reads the slot, as our connector does before it opens one.
    fn evict(&mut self) {
        if let Some(Slot { active: Some(pid), .. }) = self.look() {
            self.control.execute("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
            self.free();
        }
    }

    fn disconnect(&mut self, client: usize) {
        if let Some(wire) = self.clients.remove(&client)
            && self.look().is_some_and(|slot| slot.active == Some(wire.pid))
        {
            drop(wire);
            self.free();
        }
    }

    fn open(&mut self, client: usize, at: Mark) -> String {
        self.disconnect(client);
        self.evict();
        let mut wire = Wire::connect(&self.server.sockets, self.server.postgres.port(), &self.database).unwrap();
        match wire.start(&self.database, self.place(at)).unwrap() {
            Ok(()) => {
                self.clients.insert(client, wire);
                "open".to_owned()
            }
            Err(state) => {
                assert_eq!(state, "42704", "only a missing slot is a reason to refuse");
                "refused".to_owned()
            }
        }
    }

    fn read(&mut self, client: usize) -> String {
        let target = self.written();
        let wire = self.clients.get_mut(&client).unwrap();
        match wire.next(target) {
            Err(_) => "lost".to_owned(),
            Ok(None) => {
                self.idle = wire.reached;
                format!("nothing, read up to {}", self.before(self.idle))
            }
            Ok(Some(sent)) => {
                let number = self.layout.iter().position(|place| *place == (sent.commit, sent.end));
                source::sent(number.expect("a known transaction"), sent.rows.into_iter())
            }
        }
    }

    fn confirm(&mut self, client: usize, at: Mark) -> String {
        let place = self.place(at);
        let wire = self.clients.get_mut(&client).unwrap();
        let (pid, sent) = (wire.pid, wire.confirm(place));
        let query = "SELECT (extract(epoch FROM reply_time) * 1000000)::bigint FROM pg_stat_replication WHERE pid = $1";
        let Ok(sent) = sent else { return "lost".to_owned() };
        let noted = wait_until("the server to take note", PATIENCE, || match self.control.query_opt(query, &[&pid]).unwrap() {
            Some(row) if row.get::<_, Option<i64>>(0) == Some(sent) => Ok(true),
            None => Ok(false),
            Some(_) => Err("it has not".to_owned()),
        });
        if noted { "confirmed".to_owned() } else { "lost".to_owned() }
    }

    fn advance(&mut self) -> String {
        let target = self.written();
        let (high, low) = (target >> 32, target & 0xffff_ffff);
        let statement = format!("SELECT pg_replication_slot_advance('{}', '{high:X}/{low:X}')", self.database);
        match self.control.batch_execute(&statement) {
            Ok(()) => "done".to_owned(),
            Err(error) => {
                assert_eq!(error.code().map(|state| state.code()), Some("55006"), "{error}");
                "refused".to_owned()
            }
        }
    }

    fn run(&mut self, operation: &Op) -> (String, Vec<bool>) {
        let mut adjacent = Vec::new();
        let mut result = "done".to_owned();
        match operation {
            Op::Insert { session, versions, copied } => {
                self.begin(*session);
                self.insert(*session, versions, *copied);
            }
            Op::InsertElsewhere { session } => {
                self.begin(*session);
                self.sessions[*session].batch_execute("INSERT INTO elsewhere VALUES (1)").unwrap();
            }
            Op::Commit { session } => {
                self.end(*session, "COMMIT");
                adjacent = self.learn();
            }
            Op::CommitBoth => {
                self.end(0, "COMMIT");
                self.end(1, "COMMIT");
                adjacent = self.learn();
            }
            Op::Abort { session } => self.end(*session, "ROLLBACK"),
            Op::CreateSlot => {
                let statement = format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", self.database);
                self.control.batch_execute(&statement).unwrap();
            }
            Op::DropSlot => {
                self.evict();
                self.control.batch_execute(&format!("SELECT pg_drop_replication_slot('{}')", self.database)).unwrap();
            }
            Op::AdvanceSlot => result = self.advance(),
            Op::Open { client, at } => result = self.open(*client, *at),
            Op::Read { client } => result = self.read(*client),
            Op::Confirm { client, at } => result = self.confirm(*client, *at),
            Op::Disconnect { client } => self.disconnect(*client),
            Op::Checkpoint => self.control.batch_execute("CHECKPOINT").unwrap(),
            Op::Crash => {
                // It has happened; the connections have to be made anew.
                self.control = self.server.postgres.client(&self.database);
                self.marker = self.server.postgres.client("postgres");
                self.sessions = (0..2).map(|_| self.server.postgres.client(&self.database)).collect();
                self.open.clear();
            }
        }
        (result, adjacent)
    }

    /// Does an operation and writes down what could be seen.
    fn step(&mut self, operation: Op) {
        let before = self.slot;
        let (result, adjacent) = self.run(&operation);
        self.slot = self.look();
        let stored = match (before, self.slot) {
            (Some(before), Some(after)) if before.stored != after.stored && operation != Op::CreateSlot => {
                // In the background, before or behind the operation itself.
                let known = [before.confirmed, after.confirmed].contains(&after.stored);
                assert!(known, "the server stored another place than those it had, in {operation:?}: {before:?}, {after:?}");
                [after.stored != after.confirmed, after.stored == after.confirmed]
            }
            _ => [false; 2],
        };
        let slot = self.slot.map(|slot| (self.before(slot.confirmed), self.before(slot.stored), slot.active.is_some()));
        self.trace.outcomes.push(source::outcome(&result, slot));
        self.trace.facts.push(Facts { adjacent, stored, ended: result == "lost" });
        self.trace.operations.push(operation);
    }

    /// Slots are made when no transaction is open anywhere: their making waits for all of them.
    fn abort_all(&mut self) {
        for session in self.open.clone() {
            self.step(Op::Abort { session });
        }
    }

    fn renew(&mut self) {
        if self.slot.is_none() {
            self.step(Op::CreateSlot);
        }
    }
}

fn record(seeds: std::ops::Range<u64>) -> Vec<Trace> {
    let server = Server::start();
    let mut rng = Rng::with_seed(seeds.start);
    let mut cases: Vec<Case<'_>> = seeds.map(|seed| Case::new(&server, seed)).collect();
    cases.iter_mut().for_each(Case::renew);
    // What the server does, it does to all.
    for _ in 1..OPERATIONS {
        match rng.u32(0..40) {
            0 | 1 => {
                server.postgres.crash_and_restart();
                cases.iter_mut().for_each(|case| case.step(Op::Crash));
                cases.iter_mut().for_each(Case::renew);
            }
            2..=4 => cases.iter_mut().for_each(|case| case.step(Op::Checkpoint)),
            5 | 6 => {
                cases.iter_mut().for_each(Case::abort_all);
                cases.iter_mut().for_each(Case::renew);
            }
            _ => cases.iter_mut().for_each(|case| {
                let operation = case.choose();
                case.step(operation);
            }),
        }
    }
    cases.into_iter().map(|case| case.trace).collect()
}

fn record_all() -> Vec<Trace> {
    // Two servers at a time: much of it is waiting.
    let firsts: Vec<u64> = (0..seeds()).step_by(TOGETHER as usize).collect();
    let recorded = firsts.chunks(2).flat_map(|firsts| {
        thread::scope(|scope| {
            let recording = |first: &u64| {
                let seeds = *first..seeds().min(first + TOGETHER);
                scope.spawn(|| record(seeds))
            };
            let recording: Vec<_> = firsts.iter().map(recording).collect();
            recording.into_iter().flat_map(|one| one.join().expect("the recording ends")).collect::<Vec<_>>()
        })
    });
    recorded.collect()
}

#[test]
fn the_model_of_the_source_does_what_postgresql_does() {
    let began = std::time::Instant::now();
    let traces = record_all();
    for (seed, trace) in traces.iter().enumerate() {
        source::check(trace, Lie::None).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
    }
    let steps: usize = traces.iter().map(|trace| trace.operations.len()).sum();
    let took = began.elapsed().as_secs_f64();
    println!("PostgreSQL: {} seeds, {steps} operations in {took:.1} s", traces.len());
    // What never happened was not compared.
    let all = || traces.iter().flat_map(|trace| trace.facts.iter().zip(&trace.outcomes));
    assert!(all().any(|(facts, _)| facts.adjacent.contains(&true)), "no two commit records touched");
    assert!(all().any(|(facts, _)| facts.stored[1]), "the server stored no slot by itself");
    for word in ["transaction", "=", "nothing", "lost", "refused", "no slot"] {
        assert!(all().any(|(_, outcome)| outcome.contains(word)), "no step with the outcome {word:?}");
    }
    let regressed = |trace: &Trace| {
        let crash = |at: usize| trace.operations[at] == Op::Crash && trace.outcomes[at - 1].contains("on disk");
        (1..trace.operations.len()).any(crash)
    };
    assert!(traces.iter().any(regressed), "no crash moved a slot back");
    find_out(&traces);
}

/// Every lie must be found out by one of the traces.
fn find_out(traces: &[Trace]) {
    for lie in [Lie::SlotOnDiskAtOnce, Lie::StartByTheEnd, Lie::ConfirmGoesBack, Lie::AdvanceInUse, Lie::CheckpointStoresAll] {
        let found = traces.iter().enumerate().find_map(|(seed, trace)| Some((seed, source::check(trace, lie).err()?)));
        let (seed, fault) = found.unwrap_or_else(|| panic!("{lie:?} went unnoticed"));
        println!("{lie:?}: found by seed {seed}: {}", fault.lines().next().unwrap());
    }
}
