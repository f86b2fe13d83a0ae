//! The checker is held too: a correct stream passes, and every kind of damage to it is caught by the rule that should.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;
use serde_json::{Value, json};

use super::{Expected, Rules, Sample, check};
use crate::support::record::Record;

const PARTITIONS: u32 = 3;
const TRANSACTIONS: usize = 60;
/// Checkpoints that one process writes.
const LIFE: u64 = 5;

/// A correct run: what the source did and what the topics hold.
struct Run {
    expected: Vec<Expected>,
    records: Vec<Record>,
    checkpoints: Vec<Record>,
    rules: Rules,
}

/// A source in memory: bank transfers, and documents with large bodies that are made, changed, moved and deleted.
#[derive(Default)]
struct Model {
    tx: usize,
    expected: Vec<Expected>,
    versions: BTreeMap<(String, String), i64>,
    tables: BTreeMap<(String, String), Value>,
}

impl Model {
    fn event(&mut self, topic: &str, key: &Value, op: &'static str, mut row: Option<Value>, absent: &[&str]) {
        let place = (topic.to_owned(), key.to_string());
        let ver = self.versions.entry(place.clone()).or_default();
        *ver += 1;
        if let Some(row) = &mut row {
            row["ver"] = json!(*ver);
        }
        let absent: Vec<String> = absent.iter().map(|&name| name.to_owned()).collect();
        let expected = Expected {
            tx: self.tx,
            topic: place.0.clone(),
            op,
            key: place.1.clone(),
            ver: *ver,
            value: row.clone(),
            absent: absent.clone(),
        };
        match row {
            Some(mut row) => {
                for column in &absent {
                    row[column] = self.tables[&place][column].clone();
                }
                self.tables.insert(place, row);
            }
            None => drop(self.tables.remove(&place)),
        }
        self.expected.push(expected);
    }

    fn transfer(&mut self, rng: &mut Rng) {
        let amount = rng.i64(1..50);
        let from = rng.i64(0..4);
        for (id, change) in [(from, -amount), (from + 4, amount)] {
            let key = json!({ "id": id });
            let place = ("shop.bank".to_owned(), key.to_string());
            let known = self.tables.get(&place).and_then(|row| row["balance"].as_i64());
            let op = if known.is_some() { "u" } else { "c" };
            let balance = known.unwrap_or(0) + change;
            self.event("shop.bank", &key, op, Some(json!({ "id": id, "balance": balance })), &[]);
        }
    }

    fn document(&mut self, rng: &mut Rng) {
        let name = |n: u32| json!({ "id": format!("dé\"{n}") });
        let key = name(rng.u32(0..12));
        let there = self.tables.contains_key(&("shop.document".to_owned(), key.to_string()));
        let other = name(rng.u32(12..20));
        let other_there = self.tables.contains_key(&("shop.document".to_owned(), other.to_string()));
        let body = || json!("x".repeat(40));
        match rng.u32(0..10) {
            _ if !there => self.event("shop.document", &key, "c", Some(json!({ "id": key["id"], "body": body() })), &[]),
            0..4 => self.event("shop.document", &key, "u", Some(json!({ "id": key["id"] })), &["body"]),
            4..7 => self.event("shop.document", &key, "u", Some(json!({ "id": key["id"], "body": body() })), &[]),
            7 if !other_there => {
                self.event("shop.document", &key, "d", None, &[]);
                self.event("shop.document", &other, "c", Some(json!({ "id": other["id"], "body": body() })), &[]);
            }
            _ => self.event("shop.document", &key, "d", None, &[]),
        }
    }
}

fn correct_run(seed: u64) -> Run {
    let mut rng = Rng::with_seed(seed);
    let mut model = Model::default();
    for tx in 0..TRANSACTIONS {
        model.tx = tx;
        model.transfer(&mut rng);
        for _ in 0..rng.u32(1..6) {
            model.document(&mut rng);
        }
    }
    let (records, checkpoints) = publish(&model.expected, &mut rng);
    let rules = Rules {
        connector: "shop".to_owned(),
        partitions: PARTITIONS,
        keeps_checkpoints: true,
        cut_above: usize::MAX,
        bank: "shop.bank".to_owned(),
        tables: model.tables,
        samples: (0..20).map(|n| Sample { confirmed: 100 * n + rng.u64(0..=100), committed: 100 * n + 100 }).collect(),
    };
    Run { expected: model.expected, records, checkpoints, rules }
}

/// The partition comes from the daemon's function here, so that the checker's own murmur2 is held against a second one.
fn publish(expected: &[Expected], rng: &mut Rng) -> (Vec<Record>, Vec<Record>) {
    let mut records: Vec<Record> = Vec::new();
    let mut checkpoints = vec![checkpoint(0, 1, &[])];
    let (mut seq, mut from, mut last_tx) = (1, 0, usize::MAX);
    let mut offsets: BTreeMap<(String, u32), u64> = BTreeMap::new();
    for event in expected {
        // A log transaction holds one or several whole source transactions.
        if event.tx != last_tx && (records.is_empty() || rng.bool()) {
            if seq > 1 {
                checkpoints.push(checkpoint(checkpoints.len() as u64, seq, &records[from..]));
            }
            (seq, from) = (seq + 1, records.len());
        }
        last_tx = event.tx;
        let partition = headwater::log::partition::partition_of(event.key.as_bytes(), PARTITIONS);
        let offset = offsets.entry((event.topic.clone(), partition)).or_default();
        records.push(record(event, partition, *offset, seq, records.len() - from));
        *offset += 1;
    }
    checkpoints.push(checkpoint(checkpoints.len() as u64, seq, &records[from..]));
    (records, checkpoints)
}

fn record(event: &Expected, partition: u32, offset: u64, seq: u64, index: usize) -> Record {
    let mut headers = BTreeMap::from([
        ("hw.op".to_owned(), event.op.to_owned()),
        ("hw.pos".to_owned(), format!("{:04x}-{seq:016x}-{index:08x}", 0)),
        ("hw.tx".to_owned(), format!("tx{}", event.tx)),
        ("hw.schema".to_owned(), "0123456789abcdef".to_owned()),
    ]);
    if !event.absent.is_empty() {
        headers.insert("hw.absent".to_owned(), json!(event.absent).to_string());
    }
    Record {
        topic: event.topic.clone(),
        partition,
        offset,
        timestamp: String::new(),
        key: event.key.clone(),
        value: event.value.clone(),
        headers,
    }
}

fn checkpoint(offset: u64, seq: u64, records: &[Record]) -> Record {
    let mut counts = json!({ "headwater.shop.schema": { "0": 1 } });
    for record in records {
        let partition = record.partition.to_string();
        let known = counts[&record.topic][&partition].as_u64().unwrap_or(0);
        counts[&record.topic][&partition] = json!(known + 1);
    }
    Record {
        topic: "headwater.shop.checkpoint".to_owned(),
        partition: 0,
        offset,
        timestamp: String::new(),
        key: r#"{"checkpoint":"position"}"#.to_owned(),
        value: Some(json!({ "seq": seq, "writer": format!("life {}", offset / LIFE), "counts": counts })),
        headers: BTreeMap::new(),
    }
}

fn pick(run: &Run, rng: &mut Rng, fits: impl Fn(&Record) -> bool) -> usize {
    let fitting: Vec<usize> = (0..run.records.len()).filter(|at| fits(&run.records[*at])).collect();
    *rng.choice(&fitting).expect("the stream is long enough to hold every kind of event")
}

fn set(record: &mut Record, header: &str, value: String) {
    record.headers.insert(header.to_owned(), value);
}

type Mutation = (&'static str, &'static str, fn(&mut Run, &mut Rng));

/// Kind of damage, the rule that must name it, and the damage.
const MUTATIONS: &[Mutation] = &[
    ("a lost event", "gap", |run, rng| drop(run.records.remove(pick(run, rng, |_| true)))),
    ("a repeated event", "repeat", repeat),
    ("a confirmation of what is not committed", "confirmed", |run, rng| {
        let at = rng.usize(0..run.rules.samples.len());
        run.rules.samples[at].confirmed = run.rules.samples[at].committed + 1;
    }),
    ("a writer that wakes up after another took its place", "writer", |run, rng| {
        let at = rng.usize(usize::try_from(LIFE).expect("small")..run.checkpoints.len());
        let first = run.checkpoints[0].column("writer").cloned();
        run.checkpoints[at].value.as_mut().expect("a position")["writer"] = first.expect("a writer");
    }),
    ("a checkpoint that nobody signed", "writer", |run, rng| {
        let at = rng.usize(0..run.checkpoints.len());
        run.checkpoints[at].value.as_mut().expect("a position")["writer"] = Value::Null;
    }),
    ("two events of a key swapped", "version", swap_versions),
    ("a transaction torn over two commits", "transaction", tear),
    ("a missing tombstone", "gap", |run, rng| drop(run.records.remove(pick(run, rng, |record| record.op() == "d")))),
    ("a value in place of a tombstone", "form", |run, rng| {
        let at = pick(run, rng, |record| record.op() == "d");
        run.records[at].value = Some(json!({}));
    }),
    ("a wrong partition", "partition", |run, rng| {
        let at = pick(run, rng, |_| true);
        run.records[at].partition = (run.records[at].partition + 1) % PARTITIONS;
    }),
    ("null for a value that did not change", "absent", |run, rng| {
        let at = pick(run, rng, |record| !record.absent().is_empty());
        run.records[at].value.as_mut().expect("a row")["body"] = Value::Null;
    }),
    ("a large value filled without saying so", "absent", |run, rng| {
        let at = pick(run, rng, |record| !record.absent().is_empty());
        run.records[at].headers.remove("hw.absent");
    }),
    ("a stale value", "value", |run, rng| {
        let at = pick(run, rng, |record| record.op() == "u" && record.topic == "shop.bank");
        run.records[at].value.as_mut().expect("a row")["balance"] = json!(-1_000_000);
    }),
    ("an event nobody made", "extra", |run, rng| {
        let mut copy = run.records[pick(run, rng, |record| record.op() == "c")].clone();
        copy.key = r#"{"id":"nobody"}"#.to_owned();
        run.records.push(copy);
    }),
    ("a wrong op", "op", |run, rng| {
        let at = pick(run, rng, |record| record.op() == "u");
        set(&mut run.records[at], "hw.op", "c".to_owned());
    }),
    ("a wrong key", "form", |run, rng| {
        let at = pick(run, rng, |record| record.op() == "u" && record.topic == "shop.bank");
        run.records[at].key = r#"{"id":99}"#.to_owned();
    }),
    ("two transactions in the wrong order", "total", reorder),
    ("a transaction that was rolled back", "extra", rolled_back),
    ("a whole transaction lost", "transaction", lose_transaction),
    ("a transaction published twice", "repeat", publish_twice),
    ("half a bank transfer", "sum", |run, rng| drop(run.records.remove(pick(run, rng, |record| record.topic == "shop.bank")))),
    ("one place for two events", "position", |run, rng| {
        let (one, other) = (pick(run, rng, |_| true), pick(run, rng, |_| true));
        let other = if one == other { (one + 1) % run.records.len() } else { other };
        let pos = run.records[one].header("hw.pos").to_owned();
        set(&mut run.records[other], "hw.pos", pos);
    }),
    ("a checkpoint that miscounts", "checkpoint", |run, rng| {
        let at = rng.usize(1..run.checkpoints.len());
        run.checkpoints[at].value.as_mut().expect("a checkpoint")["counts"]["shop.bank"]["0"] = json!(77);
    }),
    ("a checkpoint left out", "checkpoint", |run, rng| drop(run.checkpoints.remove(rng.usize(1..run.checkpoints.len() - 1)))),
    ("events without a checkpoint", "checkpoint", |run, _| drop(run.checkpoints.pop())),
    ("a row in the table that the topic does not have", "last", |run, _| {
        run.rules.tables.insert(("shop.bank".to_owned(), r#"{"id":77}"#.to_owned()), json!({ "id": 77 }));
    }),
    ("a last event that is not the row", "last", |run, rng| {
        let keys: Vec<_> = run.rules.tables.keys().cloned().collect();
        run.rules.tables.get_mut(&keys[rng.usize(0..keys.len())]).expect("a row")["ver"] = json!(0);
    }),
];

fn repeat(run: &mut Run, rng: &mut Rng) {
    let mut copy = run.records[pick(run, rng, |_| true)].clone();
    // A second copy has a place and an offset of its own, as a real repeat would.
    let newest = run.records.iter().filter(|record| (&record.topic, record.partition) == (&copy.topic, copy.partition));
    copy.offset = newest.map(|record| record.offset).max().expect("itself") + 1;
    set(&mut copy, "hw.pos", format!("{:04x}-{:016x}-{:08x}", 0, 0xffff_u64, 0));
    run.records.push(copy);
}

fn swap_versions(run: &mut Run, rng: &mut Rng) {
    let first = pick(run, rng, |record| record.key == r#"{"id":4}"# || record.key == r#"{"id":0}"#);
    let same = |at: &usize| *at != first && run.records[*at].key == run.records[first].key;
    let second = (0..run.records.len()).find(same).expect("the key changes more than once");
    let value = run.records[first].value.take();
    run.records[first].value = run.records[second].value.take();
    run.records[second].value = value;
}

fn tear(run: &mut Run, rng: &mut Rng) {
    // Everything from the middle of a transaction on moves one log transaction further, as if a commit had split it.
    let at = pick(run, rng, |record| record.topic == "shop.bank");
    let tx = run.records[at].header("hw.tx").to_owned();
    let from = (0..run.records.len()).rfind(|at| run.records[*at].header("hw.tx") == tx).expect("itself");
    for record in &mut run.records[from..] {
        let (era, seq, index) = record.pos().expect("a place");
        set(record, "hw.pos", format!("{era:04x}-{:016x}-{index:08x}", seq + 1));
    }
}

fn transaction(run: &Run, rng: &mut Rng) -> (usize, usize) {
    let tx = run.records[pick(run, rng, |record| record.topic == "shop.bank")].header("hw.tx");
    let of = |record: &&Record| record.header("hw.tx") == tx;
    let from = run.records.iter().position(|record| of(&record)).expect("itself");
    (from, from + run.records.iter().filter(of).count())
}

fn reorder(run: &mut Run, rng: &mut Rng) {
    let (from, to) = transaction(run, rng);
    let (other_from, other_to) = if to == run.records.len() { transaction_before(run, from) } else { transaction_after(run, to) };
    let mut places: Vec<String> = Vec::new();
    let (a, b) = if from < other_from { ((from, to), (other_from, other_to)) } else { ((other_from, other_to), (from, to)) };
    for record in &run.records[a.0..b.1] {
        places.push(record.header("hw.pos").to_owned());
    }
    // The same records, the later transaction first.
    let mut moved: Vec<Record> = run.records[b.0..b.1].to_vec();
    moved.extend(run.records[a.0..a.1].to_vec());
    for (record, place) in moved.iter_mut().zip(places) {
        set(record, "hw.pos", place);
    }
    run.records.splice(a.0..b.1, moved);
}

fn transaction_after(run: &Run, from: usize) -> (usize, usize) {
    let tx = run.records[from].header("hw.tx");
    (from, from + run.records.iter().filter(|record| record.header("hw.tx") == tx).count())
}

fn transaction_before(run: &Run, to: usize) -> (usize, usize) {
    let tx = run.records[to - 1].header("hw.tx");
    (to - run.records.iter().filter(|record| record.header("hw.tx") == tx).count(), to)
}

fn rolled_back(run: &mut Run, rng: &mut Rng) {
    let (from, to) = transaction(run, rng);
    let mut copy: Vec<Record> = run.records[from..to].to_vec();
    for (index, record) in copy.iter_mut().enumerate() {
        record.key = format!(r#"{{"id":{}}}"#, 1_000 + index);
        record.offset += 1_000;
        set(record, "hw.tx", "rolled back".to_owned());
        set(record, "hw.pos", format!("{:04x}-{:016x}-{index:08x}", 0, 0xffff_u64));
    }
    run.records.extend(copy);
}

fn lose_transaction(run: &mut Run, rng: &mut Rng) {
    let (from, to) = transaction(run, rng);
    run.records.drain(from..to);
}

fn publish_twice(run: &mut Run, rng: &mut Rng) {
    let (from, to) = transaction(run, rng);
    let mut copy: Vec<Record> = run.records[from..to].to_vec();
    for (index, record) in copy.iter_mut().enumerate() {
        record.offset += 1_000;
        set(record, "hw.pos", format!("{:04x}-{:016x}-{index:08x}", 0, 0xffff_u64));
    }
    run.records.extend(copy);
}

#[test]
fn a_correct_stream_passes() {
    for seed in 0..20 {
        let run = correct_run(seed);
        assert!(run.records.len() > 150, "a stream worth checking");
        check(&run.expected, &run.records, &run.checkpoints, &run.rules).expect_none(&format!("seed {seed}"));
    }
}

#[test]
fn every_kind_of_damage_is_caught() {
    let mut kinds = BTreeSet::new();
    for (kind, rule, damage) in MUTATIONS {
        assert!(kinds.insert(kind), "{kind} stands twice");
        for seed in 0..8 {
            let mut run = correct_run(seed);
            damage(&mut run, &mut Rng::with_seed(seed));
            let broken = check(&run.expected, &run.records, &run.checkpoints, &run.rules).rules();
            assert!(broken.contains(rule), "{kind} (seed {seed}) must break the rule {rule}; broken: {broken:?}");
        }
    }
}

#[test]
fn a_checkpoint_that_compaction_removed_is_not_missed() {
    let mut run = correct_run(3);
    run.rules.keeps_checkpoints = false;
    run.checkpoints.drain(1..5);
    check(&run.expected, &run.records, &run.checkpoints, &run.rules).expect_none("compacted");
}
