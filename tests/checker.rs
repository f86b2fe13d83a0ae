//! The checker: what the topics hold against what the source committed. Pure functions that share no code with the daemon.
//!
//! `expected` comes from an oracle that knows the source only; `records` are what a reader of the topics saw. Every rule
//! looks for one way to be wrong, so that a failure says what happened and not only that two lists differ. The numbers are
//! those of the invariants: I1 confirmation, I2 sequence, I3 unique places, I5 checkpoint counts, I6 versions, I7 last state, I8 rollbacks,
//! I9 conserved sums, I11 one writer at a time, I13 partitions, I14 absent is not null.

mod checkpoints;
mod mutations;
mod order;
mod rows;

pub use order::partition;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::support::record::Record;

/// One event that must be in the topics.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// Number of its source transaction in commit order.
    pub tx: usize,
    /// Its topic.
    pub topic: String,
    /// `c`, `u` or `d`.
    pub op: &'static str,
    /// Compact JSON.
    pub key: String,
    /// Its number among the changes of its key, from 1.
    pub ver: i64,
    /// None is a tombstone; columns in `absent` are missing.
    pub value: Option<Value>,
    /// Large columns that did not change.
    pub absent: Vec<String>,
}

/// What the checker must know about the run.
pub struct Rules {
    /// The connector's name.
    pub connector: String,
    /// Partitions of every topic that holds events.
    pub partitions: u32,
    /// Whether the log keeps every checkpoint for as long as the test runs; else compaction may remove older ones.
    pub keeps_checkpoints: bool,
    /// A source transaction with more events may be spread over consecutive log transactions.
    pub cut_above: usize,
    /// The topic whose rows conserve the sum of column `balance` at every transaction boundary.
    pub bank: String,
    /// Rows per topic and key as the tables hold them now.
    pub tables: BTreeMap<(String, String), Value>,
    /// What was seen at the source and the log in the course of the run.
    pub samples: Vec<Sample>,
}

/// One look at how far the source and the log are.
#[derive(Clone, Debug)]
pub struct Sample {
    /// What the source may forget, in its bytes; read before the other.
    pub confirmed: u64,
    /// End of what the newest committed checkpoint holds, in the same bytes.
    pub committed: u64,
}

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The rule.
    pub rule: &'static str,
    /// What was seen.
    pub what: String,
}

/// What the rules have found. One broken event can break many: only the first of each rule are kept.
#[derive(Default)]
pub struct Findings {
    found: Vec<Violation>,
    counts: BTreeMap<&'static str, usize>,
}

const KEPT_PER_RULE: usize = 5;

impl Findings {
    fn add(&mut self, rule: &'static str, what: String) {
        let count = self.counts.entry(rule).or_default();
        *count += 1;
        if *count <= KEPT_PER_RULE {
            self.found.push(Violation { rule, what });
        }
    }

    /// The rules that were broken.
    pub fn rules(&self) -> BTreeSet<&'static str> {
        self.counts.keys().copied().collect()
    }

    /// Fails with everything that was found.
    pub fn expect_none(&self, context: &str) {
        let mut text = String::new();
        for violation in &self.found {
            text.push_str(&format!("\n  {}: {}", violation.rule, violation.what));
        }
        assert!(self.counts.is_empty(), "{context}: {:?}{text}", self.counts);
    }
}

/// Holds the records of all event topics and of the checkpoint topic against what was expected.
pub fn check(expected: &[Expected], records: &[Record], checkpoints: &[Record], rules: &Rules) -> Findings {
    let mut findings = Findings::default();
    order::positions(records, &mut findings);
    order::partitions(records, rules, &mut findings);
    order::transactions(expected, records, rules, &mut findings);
    order::total(expected, records, &mut findings);
    rows::keys(expected, records, &mut findings);
    rows::versions(records, &mut findings);
    rows::forms(records, &mut findings);
    rows::last_states(records, rules, &mut findings);
    rows::conserved_sum(records, rules, &mut findings);
    checkpoints::confirmations(&rules.samples, &mut findings);
    checkpoints::writers(checkpoints, &mut findings);
    checkpoints::audit(records, checkpoints, rules, &mut findings);
    findings
}

/// The records in publication order. Those without a place are reported by [`order::positions`] and come first.
fn published(records: &[Record]) -> Vec<&Record> {
    let mut sorted: Vec<&Record> = records.iter().collect();
    sorted.sort_by(|a, b| a.header("hw.pos").cmp(b.header("hw.pos")));
    sorted
}

/// A record in few words, without its row.
fn name(record: &Record) -> String {
    format!(
        "{} {} {}/{}@{} pos {} tx {}",
        record.op(),
        record.key,
        record.topic,
        record.partition,
        record.offset,
        record.header("hw.pos"),
        record.header("hw.tx")
    )
}
