//! What the kill test needs of a database, so that all of them run under the same workload, oracle and nemesis.

pub mod mysql;
mod mysql_oracle;
pub mod postgres;

use std::collections::BTreeMap;

use fastrand::Rng;
use serde_json::Value;

use super::daemon::Home;
use crate::checker::{Expected, Sample};

/// One step of a transaction of the workload; how a database does it is its own affair.
#[derive(Clone, Debug)]
pub enum Step {
    /// A function of the workload, with its arguments.
    Call(String),
    /// So many accounts behind `base`, one by one where that is not too slow.
    Many {
        base: u64,
        rows: u32,
        owner: String,
    },
    /// The same in as few statements as the database can.
    Large {
        base: u64,
        rows: u32,
        owner: String,
    },
    /// Rows with new keys, in the way in which the database loads rows in bulk.
    Copy {
        first: u64,
        rows: u64,
    },
    /// Nobody else may use the accounts until the transaction ends.
    Exclusive,
    /// The one column of the accounts that comes and goes: it is added, renamed or dropped.
    Reshape {
        kind: &'static str,
        value: &'static str,
        name: &'static str,
        rename: bool,
    },
    Savepoint(u32),
    RollbackTo(u32),
    Release(u32),
}

/// Why a transaction did not happen.
#[derive(Debug)]
pub enum Failure {
    /// The server went away; whether it committed nobody knows.
    Gone,
    /// The database gave it up for the sake of others.
    Deadlock,
}

/// A session of a writer.
pub trait Client: Send {
    /// Runs the steps as a transaction, ends it as wanted, and adds the events that were committed for sure. Other failures panic.
    fn run(&mut self, steps: &[Step], keep: bool, committed: &mut u64) -> Result<(), Failure>;

    /// Runs statements as one transaction; false if they did not happen, and then the session is fit for the next ones or it is gone.
    fn change(&mut self, statements: &[String]) -> bool;

    /// Whether the session is over.
    fn is_gone(&mut self) -> bool;
}

/// Opens sessions, from any thread.
pub type Connect = Box<dyn Fn() -> Result<Box<dyn Client>, String> + Send + Sync>;

/// Statements that change rows of the versioned table, with versions that rise with each key: they are taken while the row is locked.
pub type Change = fn(&mut Rng, u32) -> Vec<String>;

/// What can be known from the source alone.
pub trait Truth {
    /// Everything that committed since the oracle was made. A later call sees it again.
    fn expected(&self, connector: &str) -> Vec<Expected>;

    /// The rows of all tables by topic and key, written as the topics write them.
    fn tables(&self, connector: &str) -> BTreeMap<(String, String), Value>;
}

/// What happens to a daemon besides its death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    DatabaseCrash,
    /// The session is ended in which the server sends its log.
    SenderEnd,
    Freeze,
    Rival,
    /// The server begins new files of its log again and again.
    NewFiles,
}

/// A database under test.
pub trait Shop: Sync {
    /// For the table of the long run.
    fn name(&self) -> &'static str;

    /// Makes the tables, and what changes them.
    fn prepare(&self);

    /// Writes the connector `shop` over these tables; `more` holds further lines, indented as they stand in the file.
    fn capture(&self, home: &Home, tables: &str, more: &str);

    /// The connector over the tables of the workload.
    fn captured(&self) -> (&'static str, &'static str);

    /// Sessions for writers.
    fn connect(&self) -> Connect;

    /// An oracle that sees everything from now on.
    fn truth(&self) -> Box<dyn Truth + '_>;

    /// Every kind of trouble that this database knows.
    fn troubles(&self) -> &'static [Trouble];

    /// What the counters of the long run call the session that sends the log, and rows in bulk.
    fn words(&self) -> [&'static str; 2];

    /// The server ends without warning and starts again.
    fn crash_and_restart(&self);

    /// Ends the sessions that send the log to the daemon.
    fn end_senders(&self);

    /// Ends the daemon's sessions that read rows.
    fn end_readers(&self);

    /// Begins new files of the log, many at once.
    fn new_files(&self);

    /// Returns when the source has given up a daemon that is frozen.
    fn outlast(&self);

    /// What the source may forget, in bytes, asked before the checkpoint is read; none where nothing tells it.
    fn confirmed(&self) -> Option<u64>;

    /// One look at how far the source and the log are, from the position of the newest checkpoint.
    fn sample(&self, confirmed: Option<u64>, position: &str) -> Option<Sample>;

    /// Whether the position is inside a transaction.
    fn is_partial(&self, position: &str) -> bool;

    /// Makes a table of rows with a version each.
    fn versioned(&self, rows: u32);

    /// Its name for the connector and the commands.
    fn versioned_table(&self) -> &'static str;

    /// See [`Change`].
    fn change(&self) -> Change;

    /// The versions that the table holds, by key.
    fn versions(&self) -> BTreeMap<String, u64>;
}
