//! What must be in the log, computed from the history alone.

use std::collections::BTreeMap;

use headwater_connector::Op;
use serde_json::Value as Json;

use super::{
    database::{ModelDatabase, Step, parse},
    model_log::{Committed, ModelLog},
};

const CHECKPOINT: &str = "headwater.shop.checkpoint";
const SCHEMA: &str = "headwater.shop.schema";
const POSITION_KEY: &str = r#"{"checkpoint":"position"}"#;

/// Whether the newest checkpoint is behind the whole history.
pub fn caught_up(database: &ModelDatabase, log: &ModelLog) -> bool {
    let Some(value) = log.last(CHECKPOINT, POSITION_KEY) else { return false };
    let record: Json = serde_json::from_slice(&value).unwrap();
    record["position"].as_str().is_some_and(|text| parse(text).0 == database.history.len())
}

/// The whole check: events equal to the history behind the first position, and an unbroken chain of checkpoints.
pub fn check(database: &ModelDatabase, log: &ModelLog) -> Result<(), String> {
    let records = log.records();
    let start = chain(&records)?;
    let expected: Vec<String> = database.history[start..]
        .iter()
        .enumerate()
        .flat_map(|(at, steps)| steps.iter().flat_map(move |step| events(step, start + at)))
        .collect();
    let data: Vec<&Committed> = records.iter().filter(|one| one.topic != CHECKPOINT && one.topic != SCHEMA).collect();
    let actual: Vec<String> = data.iter().map(|one| line(one)).collect();
    if let Some(at) = (0..expected.len().max(actual.len())).find(|at| expected.get(*at) != actual.get(*at)) {
        return Err(format!("event {at}: expected {:?}, found {:?}", expected.get(at), actual.get(at)));
    }
    let places: Vec<&[u8]> = data.iter().map(|one| header(one, "hw.pos")).collect();
    if !places.is_sorted_by(|a, b| a < b) {
        return Err("hw.pos does not rise".into());
    }
    schemas_come_first(&records)
}

/// Checkpoints follow each other without a gap and count what was published between them. Returns the first position.
fn chain(records: &[Committed]) -> Result<usize, String> {
    let mut seq = 0;
    let mut start = None;
    let mut counted: BTreeMap<(String, u32), u64> = BTreeMap::new();
    for one in records {
        if one.topic != CHECKPOINT || one.record.key != POSITION_KEY.as_bytes() {
            if one.topic != CHECKPOINT {
                *counted.entry((one.topic.clone(), one.partition)).or_default() += 1;
            }
            continue;
        }
        let record: Json = serde_json::from_slice(one.record.value.as_deref().unwrap()).unwrap();
        if record["seq"].as_u64() != Some(seq + 1) {
            return Err(format!("checkpoint {} follows {seq}", record["seq"]));
        }
        seq += 1;
        if let (None, Some(text)) = (start, record["position"].as_str()) {
            start = Some(parse(text).0);
        }
        let mut claimed = BTreeMap::new();
        for (topic, partitions) in record["counts"].as_object().unwrap() {
            for (partition, count) in partitions.as_object().unwrap() {
                claimed.insert((topic.clone(), partition.parse().unwrap()), count.as_u64().unwrap());
            }
        }
        if claimed != std::mem::take(&mut counted) {
            return Err(format!("checkpoint {seq} counts {claimed:?}"));
        }
    }
    if !counted.is_empty() {
        return Err(format!("events without a checkpoint: {counted:?}"));
    }
    start.ok_or_else(|| "no position was ever committed".to_owned())
}

fn schemas_come_first(records: &[Committed]) -> Result<(), String> {
    let mut known = Vec::new();
    for one in records {
        if one.topic == SCHEMA {
            let key: Json = serde_json::from_slice(&one.record.key).unwrap();
            known.push(key["schema"].as_str().unwrap().as_bytes().to_vec());
        } else if one.topic != CHECKPOINT && !known.iter().any(|schema| schema == header(one, "hw.schema")) {
            return Err(format!("an event came before its schema: {one:?}"));
        }
    }
    Ok(())
}

/// What a step publishes, in the words of [`line`].
fn events(step: &Step, tx: usize) -> Vec<String> {
    let topic = ["shop.orders", "shop.items"][step.table];
    let event = |op: &str, key: u32, value: Option<u32>| {
        let value = value.map_or_else(|| "null".to_owned(), |version| format!(r#"{{"id":{key},"ver":{version}}}"#));
        format!(r#"{topic} {{"id":{key}}} {value} {op} {tx}@model"#)
    };
    match (step.op, step.old_key) {
        (Op::Delete, _) => vec![event("d", step.key, None)],
        (Op::Update, Some(old)) => vec![event("d", old, None), event("c", step.key, Some(step.version))],
        (Op::Update, None) => vec![event("u", step.key, Some(step.version))],
        _ => vec![event("c", step.key, Some(step.version))],
    }
}

fn line(one: &Committed) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let value = one.record.value.as_deref().map_or_else(|| "null".to_owned(), text);
    format!("{} {} {value} {} {}", one.topic, text(&one.record.key), text(header(one, "hw.op")), text(header(one, "hw.tx")))
}

fn header<'a>(one: &'a Committed, name: &str) -> &'a [u8] {
    one.record.headers.iter().find(|(known, _)| known == name).map_or(b"", |(_, value)| value)
}
