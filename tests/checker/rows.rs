//! What the records say about the rows: per key, per value, and folded into tables.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Expected, Findings, Rules, name, published};
use crate::support::record::Record;

type Key<'a> = (&'a str, &'a str);

fn by_key(records: &[Record]) -> BTreeMap<Key<'_>, Vec<&Record>> {
    let mut keys: BTreeMap<Key, Vec<&Record>> = BTreeMap::new();
    for record in records {
        keys.entry((&record.topic, &record.key)).or_default().push(record);
    }
    for all in keys.values_mut() {
        // What a reader relies on is the order of offsets, not our own header.
        all.sort_by_key(|record| (record.partition, record.offset));
    }
    keys
}

/// I6, I8: per key no gap, no repeat, nothing that was rolled back, and every event as the source made it.
pub fn keys(expected: &[Expected], records: &[Record], findings: &mut Findings) {
    let actual = by_key(records);
    let mut wanted: BTreeMap<Key, Vec<&Expected>> = BTreeMap::new();
    for event in expected {
        wanted.entry((&event.topic, &event.key)).or_default().push(event);
    }
    let none = Vec::new();
    for (key, events) in &wanted {
        let records = actual.get(key).unwrap_or(&none);
        if records.len() < events.len() {
            findings.add("gap", format!("{key:?} has {} events, the topics hold {}", events.len(), records.len()));
        }
        if records.len() > events.len() {
            findings.add("repeat", format!("{key:?} has {} events, the topics hold {}", events.len(), records.len()));
        }
        for (event, record) in events.iter().zip(records) {
            compare(event, record, findings);
        }
    }
    for key in actual.keys().filter(|key| !wanted.contains_key(*key)) {
        findings.add("extra", format!("the source never committed a change of {key:?}"));
    }
}

fn compare(event: &Expected, record: &Record, findings: &mut Findings) {
    if event.op != record.op() {
        findings.add("op", format!("{} expected: {}", event.op, name(record)));
    }
    if event.value.is_none() != record.value.is_none() {
        findings.add("tombstone", format!("{} of version {} is {}", event.op, event.ver, name(record)));
    } else if event.value != record.value {
        findings.add("value", format!("version {} differs in {:?}: {}", event.ver, differing(event, record), name(record)));
    }
    if event.absent != record.absent() {
        findings.add("absent", format!("{:?} expected, {:?} named: {}", event.absent, record.absent(), name(record)));
    }
}

/// The columns that differ; values stay out of messages because they can be large.
fn differing(event: &Expected, record: &Record) -> BTreeSet<String> {
    let empty = serde_json::Map::new();
    let columns = |value: &Option<Value>| value.as_ref().and_then(Value::as_object).unwrap_or(&empty).clone();
    let (wanted, actual) = (columns(&event.value), columns(&record.value));
    let names = wanted.keys().chain(actual.keys()).cloned();
    names.filter(|name| wanted.get(name) != actual.get(name)).collect()
}

/// I6 without the oracle: the n-th event of a key is a tombstone or shows version n.
pub fn versions(records: &[Record], findings: &mut Findings) {
    for (key, records) in by_key(records) {
        for (number, record) in (1_i64..).zip(records) {
            if let Some(version) = record.column("ver").and_then(Value::as_i64)
                && version != number
            {
                findings.add("version", format!("event {number} of {key:?} shows version {version}"));
                break;
            }
        }
    }
}

/// I14 and the headers: a tombstone is a delete, an absent column is missing and not null, the key's columns are in the row.
pub fn forms(records: &[Record], findings: &mut Findings) {
    for record in records {
        if (record.op() == "d") != record.value.is_none() {
            findings.add("form", format!("a delete and nothing else is a tombstone: {}", name(record)));
        }
        if record.header("hw.schema").is_empty() {
            findings.add("form", format!("no schema: {}", name(record)));
        }
        let Some(value) = &record.value else { continue };
        for column in record.absent() {
            if value.get(&column).is_some() {
                findings.add("absent", format!("column {column} is named absent and is there: {}", name(record)));
            }
        }
        let key: Value = serde_json::from_str(&record.key).unwrap_or_default();
        for (column, part) in key.as_object().into_iter().flatten() {
            if value.get(column) != Some(part) {
                findings.add("form", format!("column {column} of the row is not that of the key: {}", name(record)));
            }
        }
    }
}

/// I7: who folds the events by key has the tables.
pub fn last_states(records: &[Record], rules: &Rules, findings: &mut Findings) {
    let mut folded: BTreeMap<(String, String), Value> = BTreeMap::new();
    // A row that moves to another key takes its large columns along; the event of the new key does not repeat them.
    let mut unknown: BTreeSet<(String, String, String)> = BTreeSet::new();
    for record in published(records) {
        let key = (record.topic.clone(), record.key.clone());
        let Some(value) = &record.value else {
            folded.remove(&key);
            continue;
        };
        let mut row = value.clone();
        for column in record.absent() {
            match folded.get(&key).and_then(|known| known.get(&column)) {
                Some(known) => row[&column] = known.clone(),
                None => drop(unknown.insert((key.0.clone(), key.1.clone(), column))),
            }
        }
        folded.insert(key, row);
    }
    for key in folded.keys().chain(rules.tables.keys()).collect::<BTreeSet<_>>() {
        match (folded.get(key), rules.tables.get(key)) {
            (Some(events), Some(table)) if same_row(key, events, table, &unknown) => {}
            (Some(_), Some(_)) => findings.add("last", format!("the last state of {key:?} is not the table's row")),
            (Some(_), None) => findings.add("last", format!("{key:?} lives in the topic and not in the table")),
            (None, _) => findings.add("last", format!("{key:?} is in the table and not in the topic")),
        }
    }
}

fn same_row(key: &(String, String), events: &Value, table: &Value, unknown: &BTreeSet<(String, String, String)>) -> bool {
    let Some(columns) = table.as_object() else { return false };
    columns.iter().all(|(column, value)| {
        let known = events.get(column);
        known == Some(value) || known.is_none() && unknown.contains(&(key.0.clone(), key.1.clone(), column.clone()))
    })
}

/// I9: no reader who respects transaction boundaries ever sees money made or lost.
pub fn conserved_sum(records: &[Record], rules: &Rules, findings: &mut Findings) {
    let mut balances: BTreeMap<&str, i64> = BTreeMap::new();
    let mut conserved = None;
    let published: Vec<&Record> = published(records).into_iter().filter(|record| record.topic == rules.bank).collect();
    for (at, record) in published.iter().enumerate() {
        match record.column("balance").and_then(Value::as_i64) {
            Some(balance) => drop(balances.insert(&record.key, balance)),
            None => drop(balances.remove(record.key.as_str())),
        }
        let ends = published.get(at + 1).is_none_or(|next| next.header("hw.tx") != record.header("hw.tx"));
        if ends {
            let sum: i64 = balances.values().sum();
            if *conserved.get_or_insert(sum) != sum {
                findings.add("sum", format!("{sum} instead of {conserved:?} behind {}", name(record)));
                break;
            }
        }
    }
}
