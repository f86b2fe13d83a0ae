//! The checkpoint topic against the events: one checkpoint per log transaction, with the right counts.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Findings, Rules, Sample};
use crate::support::record::Record;

type Counts = BTreeMap<(String, u32), u64>;

/// I2, I5. The topic is compacted: what is still there is checked, and where no offset is missing, nothing may be missing.
pub fn audit(records: &[Record], checkpoints: &[Record], rules: &Rules, findings: &mut Findings) {
    let mut published: BTreeMap<u64, Counts> = BTreeMap::new();
    for record in records {
        if let Some((_, seq, _)) = record.pos() {
            *published.entry(seq).or_default().entry((record.topic.clone(), record.partition)).or_default() += 1;
        }
    }
    let Some(kept) = positions(checkpoints, findings) else { return };
    let mut last: Option<(u64, u64)> = None;
    let offsets: Vec<u64> = checkpoints.iter().map(|record| record.offset).collect();
    for (offset, seq, counts) in &kept {
        let data: Counts =
            counts.iter().filter(|((topic, _), _)| !is_internal(topic, rules)).map(|(at, n)| (at.clone(), *n)).collect();
        let events = published.get(seq).cloned().unwrap_or_default();
        if data != events {
            findings.add("checkpoint", format!("checkpoint {seq} counts {data:?}, the topics hold {events:?}"));
        }
        if let Some((last_offset, last_seq)) = last {
            let all_there = rules.keeps_checkpoints || (last_offset..*offset).all(|offset| offsets.contains(&offset));
            if *seq <= last_seq || all_there && *seq != last_seq + 1 {
                findings.add("checkpoint", format!("{seq} follows {last_seq}"));
            }
        }
        last = Some((*offset, *seq));
    }
    let newest = last.map_or(0, |(_, seq)| seq);
    for seq in published.keys().filter(|seq| **seq > newest) {
        findings.add("checkpoint", format!("events of log transaction {seq} have no checkpoint; the newest is {newest}"));
    }
}

/// I1: the source is never told to forget what the log does not hold.
pub fn confirmations(samples: &[Sample], findings: &mut Findings) {
    for sample in samples.iter().filter(|sample| sample.confirmed > sample.committed) {
        findings.add("confirmed", format!("{sample:x?}: the source was told more than is committed"));
    }
}

/// I11: who was followed by another writer has committed its last transaction.
pub fn writers(checkpoints: &[Record], findings: &mut Findings) {
    let mut sorted: Vec<&Record> = checkpoints.iter().filter(|record| is_position(record)).collect();
    sorted.sort_by_key(|record| record.offset);
    let (mut current, mut gone) = (None, BTreeSet::new());
    for record in sorted {
        let Some(writer) = record.column("writer").and_then(Value::as_str) else {
            findings.add("writer", format!("no writer at offset {}", record.offset));
            continue;
        };
        if current != Some(writer) {
            gone.extend(current.replace(writer));
        }
        if gone.contains(writer) {
            findings.add("writer", format!("{writer} commits at offset {}, after another took its place", record.offset));
        }
    }
}

fn is_position(record: &Record) -> bool {
    record.key == r#"{"checkpoint":"position"}"#
}

/// (offset, seq, counts) of the position records in offset order.
fn positions(checkpoints: &[Record], findings: &mut Findings) -> Option<Vec<(u64, u64, Counts)>> {
    let mut found = Vec::new();
    for record in checkpoints.iter().filter(|record| is_position(record)) {
        let parsed = record.value.as_ref().and_then(|value| Some((value["seq"].as_u64()?, counts(value.get("counts")?)?)));
        match parsed {
            Some((seq, counts)) => found.push((record.offset, seq, counts)),
            None => findings.add("checkpoint", format!("unreadable at offset {}", record.offset)),
        }
    }
    found.sort_by_key(|(offset, ..)| *offset);
    if found.is_empty() {
        findings.add("checkpoint", "there is none".to_owned());
        return None;
    }
    Some(found)
}

fn counts(value: &Value) -> Option<Counts> {
    let mut counts = Counts::new();
    for (topic, partitions) in value.as_object()? {
        for (partition, count) in partitions.as_object()? {
            counts.insert((topic.clone(), partition.parse().ok()?), count.as_u64()?);
        }
    }
    Some(counts)
}

/// Schema and dead-letter records are counted as well, and are not events.
fn is_internal(topic: &str, rules: &Rules) -> bool {
    topic.starts_with(&format!("headwater.{}.", rules.connector))
}
