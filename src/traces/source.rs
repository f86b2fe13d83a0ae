//! The operations of a source, and what the model makes of them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use headwater_connector::Op as Change;

use super::{compare, runtime, world};
use crate::pipeline::simulation::{
    Lie, Lsn,
    server::{History, ModelServer, Step, Transaction},
};

/// A place that both sides know under the same name; `n` counts commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// No place at all.
    Zero,
    CommitStart(usize),
    InsideCommit(usize),
    End(usize),
    /// How far the server had read its log when it had nothing to send.
    Idle,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Rows in a session's transaction, which begins with it; `copied` with one COPY, else one by one.
    Insert {
        session: usize,
        versions: Vec<u32>,
        copied: bool,
    },
    /// A row of a table that nobody publishes.
    InsertElsewhere {
        session: usize,
    },
    Commit {
        session: usize,
    },
    /// Both sessions, one directly behind the other.
    CommitBoth,
    Abort {
        session: usize,
    },
    CreateSlot,
    DropSlot,
    AdvanceSlot,
    /// A client opens the stream, and takes it from another one.
    Open {
        client: usize,
        at: Mark,
    },
    Read {
        client: usize,
    },
    Confirm {
        client: usize,
        at: Mark,
    },
    Disconnect {
        client: usize,
    },
    Checkpoint,
    /// The server dies and is started again.
    Crash,
}

/// What the server decided by itself while a step ran.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// For each commit in the step, whether its record touches the one before.
    pub adjacent: Vec<bool>,
    /// The slot went to the disk, as it does when its oldest needed log moves: before the operation, or behind it.
    pub stored: [bool; 2],
    /// A reader that lost the slot has got everything that was on its way.
    pub ended: bool,
}

/// A run on a real server.
#[derive(Default)]
pub struct Trace {
    pub operations: Vec<Op>,
    pub facts: Vec<Facts>,
    pub outcomes: Vec<String>,
}

/// What a step says, with the slot behind it: how many commits its place is behind, the same for what a crash would leave, and
/// whether somebody reads it.
pub fn outcome(result: &str, slot: Option<(usize, usize, bool)>) -> String {
    let Some((confirmed, stored, active)) = slot else { return format!("{result}; no slot") };
    let disk = if stored == confirmed { String::new() } else { format!(", on disk at {stored}") };
    format!("{result}; slot at {confirmed}{disk}{}", if active { ", in use" } else { "" })
}

/// A transaction that was sent: the rows, with `=` in front of one that shares the place of the row before.
pub fn sent(number: usize, rows: impl Iterator<Item = (u32, Lsn)>) -> String {
    let mut text = format!("transaction {number}:");
    let mut before = None;
    for (version, lsn) in rows {
        assert!(before.is_none_or(|before| before <= lsn), "places of rows go back");
        text.push_str(if before == Some(lsn) { "=" } else { " " });
        text.push_str(&version.to_string());
        before = Some(lsn);
    }
    text
}

/// The history that the operations make, laid out as the simulation does it.
fn history(trace: &Trace) -> History {
    let mut history = History::new();
    let mut open: BTreeMap<usize, Vec<(Vec<u32>, bool)>> = BTreeMap::new();
    let mut end = 1_000;
    for (operation, facts) in trace.operations.iter().zip(&trace.facts) {
        let mut adjacent = facts.adjacent.iter();
        let mut commit = |rows: Vec<(Vec<u32>, bool)>| {
            let adjacent = *adjacent.next().expect("a fact for each commit");
            let transaction = transaction(history.len() as u64, end, adjacent, &rows);
            end = transaction.end;
            history.push(Arc::new(transaction));
        };
        match operation {
            Op::Insert { session, versions, copied } => open.entry(*session).or_default().push((versions.clone(), *copied)),
            Op::InsertElsewhere { session } => {
                open.entry(*session).or_default();
            }
            Op::Commit { session } => commit(open.remove(session).expect("an open transaction")),
            Op::CommitBoth => [0, 1].into_iter().for_each(|session| commit(open.remove(&session).expect("an open transaction"))),
            Op::Abort { session } => drop(open.remove(session)),
            Op::Crash => open.clear(),
            _ => {}
        }
    }
    history
}

fn transaction(xid: u64, end: Lsn, adjacent: bool, statements: &[(Vec<u32>, bool)]) -> Transaction {
    let count: usize = statements.iter().map(|(versions, _)| versions.len()).sum();
    let mut lsn = if adjacent { end - 8 * count as Lsn } else { end + 8 };
    let mut steps = Vec::new();
    for (versions, copied) in statements {
        for (at, version) in versions.iter().enumerate() {
            if !(*copied && at % 16 != 0) {
                lsn += 8;
            }
            steps.push(Step {
                table: 0,
                op: Change::Insert,
                key: *version,
                old_key: None,
                version: *version,
                is_whole: true,
                lsn,
            });
        }
    }
    let commit = if adjacent { end } else { lsn + 8 };
    Transaction { xid, commit, end: commit + 8, steps }
}

/// The model, and the clients that have a stream of it open.
struct Replay {
    server: ModelServer,
    history: History,
    committed: usize,
    clients: BTreeMap<usize, (u64, usize)>,
    idle: Lsn,
}

/// One transaction becomes visible after each.
const PACE: Duration = Duration::from_secs(1);

impl Replay {
    fn before(&self, lsn: Lsn) -> usize {
        self.history[..self.committed].partition_point(|one| one.commit < lsn)
    }

    fn place(&self, mark: Mark) -> Lsn {
        match mark {
            Mark::Zero => 0,
            Mark::CommitStart(at) => self.history[at].commit,
            Mark::InsideCommit(at) => self.history[at].commit + 1,
            Mark::End(at) => self.history[at].end,
            Mark::Idle => self.idle,
        }
    }

    async fn commit(&mut self) {
        tokio::time::advance(PACE).await;
        self.committed += 1;
    }

    fn open(&mut self, client: usize, at: Mark) -> String {
        self.disconnect(client);
        let Some((handle, next)) = self.server.start(self.place(at)) else { return "refused".to_owned() };
        self.clients.insert(client, (handle, next));
        "open".to_owned()
    }

    /// A transaction without rows of ours is not sent.
    fn read(&mut self, client: usize) -> String {
        loop {
            let (handle, next) = self.clients[&client];
            match self.server.read(handle, next) {
                Err(_) => return "lost".to_owned(),
                Ok(None) => {
                    let Ok(idle) = self.server.idle_end(handle, next) else { return "lost".to_owned() };
                    // Behind the last transaction of all, the model's log simply ends.
                    self.idle = idle.unwrap_or_else(|| self.history.last().map_or(0, |last| last.end));
                    return format!("nothing, read up to {}", self.before(self.idle));
                }
                Ok(Some(transaction)) => {
                    self.clients.insert(client, (handle, next + 1));
                    if !transaction.steps.is_empty() {
                        return sent(next, transaction.steps.iter().map(|step| (step.version, step.lsn)));
                    }
                }
            }
        }
    }

    fn confirm(&mut self, client: usize, at: Mark) -> String {
        let result = self.server.confirm(self.clients[&client].0, self.place(at));
        if result.is_ok() { "confirmed".to_owned() } else { "lost".to_owned() }
    }

    fn disconnect(&mut self, client: usize) {
        if let Some((handle, _)) = self.clients.remove(&client) {
            self.server.disconnect(handle);
        }
    }

    async fn step(&mut self, operation: &Op, facts: &Facts) -> String {
        let mut result = "done".to_owned();
        if facts.stored[0] {
            self.server.store_slot();
        }
        if let Op::Read { client } | Op::Confirm { client, .. } = operation
            && facts.ended
        {
            self.server.nothing_on_the_way(self.clients[client].0);
        }
        match operation {
            Op::Insert { .. } | Op::InsertElsewhere { .. } | Op::Abort { .. } => {}
            Op::Commit { .. } => self.commit().await,
            Op::CommitBoth => {
                self.commit().await;
                self.commit().await;
            }
            Op::CreateSlot => drop(self.server.create_slot()),
            Op::DropSlot => self.server.drop_slot(),
            Op::AdvanceSlot => {
                if self.server.slot_is_active() {
                    result = "refused".to_owned();
                }
                self.server.advance_slot();
            }
            Op::Open { client, at } => result = self.open(*client, *at),
            Op::Read { client } => result = self.read(*client),
            Op::Confirm { client, at } => result = self.confirm(*client, *at),
            Op::Disconnect { client } => self.disconnect(*client),
            Op::Checkpoint => self.server.checkpoint(),
            Op::Crash => drop(self.server.crash(Duration::ZERO)),
        }
        if facts.stored[1] {
            self.server.store_slot();
        }
        let places = self.server.confirmed().zip(self.server.stored());
        let slot = places.map(|(confirmed, stored)| (self.before(confirmed), self.before(stored), self.server.slot_is_active()));
        outcome(&result, slot)
    }
}

/// Whether the model does what the server did.
pub fn check(trace: &Trace, lie: Lie) -> Result<(), String> {
    let replay = async {
        let history = history(trace);
        let server = ModelServer::with_history(history.clone(), PACE, world(lie));
        let mut replay = Replay { server, history, committed: 0, clients: BTreeMap::new(), idle: 0 };
        let mut outcomes = Vec::new();
        for (operation, facts) in trace.operations.iter().zip(&trace.facts) {
            outcomes.push(replay.step(operation, facts).await);
        }
        outcomes
    };
    compare(&trace.operations, &trace.outcomes, &runtime().block_on(replay))
}
