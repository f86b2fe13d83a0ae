//! What a database needs to take part: how a backlog is made, who else drains it, and what configs say about it.

use std::path::Path;

use serde_json::Value;

use crate::{
    backlog::{Backlog, Kind, Shape},
    drain::{Contestant, Drained},
};

/// What Debezium's connector is told about a database.
pub struct Debezium {
    /// Options beside those that are the same everywhere.
    pub options: Value,
    /// The topic of the table `bench`.
    pub topic: String,
    /// Where it begins, as an offset of its own form; none where the database keeps that.
    pub offset: Option<Value>,
}

/// What a table of the case `backfill` says about itself.
pub struct Filled {
    /// Bytes per row and size, in words.
    pub size: String,
    /// The baseline, in words.
    pub baseline: &'static str,
}

/// A database server with its own clients.
pub trait Source {
    /// For headings: name and version.
    fn title(&self) -> String;

    /// The prefix of names in logs.
    fn name(&self) -> &'static str;

    /// Clients of the database's own that drain a shape; the ratios are to the first.
    fn clients(&self, shape: &Shape) -> Vec<&'static str>;

    /// Rows of the case `huge`, by the number of those of `narrow`.
    fn huge_rows(&self, rows: u64) -> u64;

    /// The columns besides the key, and what a row `i` holds in them, as SQL.
    fn columns(&self, kind: Kind) -> (String, String);

    /// An empty table `bench`; slots for the contestants where the database has slots.
    fn make_table(&self, columns: &str, slots: &[String]);

    /// Puts the rows of the shape into the log.
    fn load(&self, shape: &Shape) -> Backlog;

    /// Whether a daemon must have been there before a backlog, so that its position is in front of it.
    fn must_know_position(&self) -> bool;

    /// Drains by the client of that number.
    fn drain(&self, client: usize, backlog: &Backlog, round: usize) -> Drained;

    /// The lines of the source in the daemon's config, without indentation.
    fn config(&self, slot: &str) -> Vec<String>;

    /// The password, which a config may take from the environment.
    fn password(&self) -> &'static str;

    /// For Debezium; `backlog` unless it is to take a snapshot.
    fn debezium(&self, name: &str, slot: &str, bootstrap: &str, backlog: Option<&Backlog>) -> Debezium;

    /// Waits until the server knows that whoever drained a slot has gone.
    fn settle(&self, slot: &str);

    /// Removes slots that nobody reads.
    fn drop_slots(&self);

    /// Leaves the server without the table.
    fn drop_table(&self);

    /// The table of the case `backfill`.
    fn fill(&self, rows: u64) -> Filled;

    /// Reads that table on one connection to /dev/null.
    fn select(&self) -> Drained;

    /// The server's first process.
    fn pid(&self) -> u32;
}

/// The slot of somebody who drains in a round.
pub fn slots(contestants: &[Contestant], rounds: usize) -> Vec<String> {
    (0..rounds).flat_map(|round| contestants.iter().map(move |contestant| contestant.slot(round))).collect()
}

/// The process id in the first line of a file.
pub fn pid_in(file: &Path) -> u32 {
    let text = std::fs::read_to_string(file).expect("the server's pid file");
    text.lines().next().and_then(|line| line.trim().parse().ok()).expect("a pid")
}
