//! What must be in the log, computed from the history alone.

use std::{collections::BTreeMap, sync::Arc};

use headwater_connector::{BackfillMode, Op};
use serde_json::Value as Json;

use super::{
    broker::{Appended, Broker, POSITION_KEY},
    ledger::{self, Found, TOPICS},
    process::End,
    server::{FILTERED, Lsn, ModelServer, Step, Transaction, parse},
};

pub const CHECKPOINT: &str = "headwater.shop.checkpoint";
const SCHEMA: &str = "headwater.shop.schema";
const REFRESH: &str = "headwater.shop.refresh";

/// Whether rows are read that were there before, whether those that lack columns are, how the run ended, and what was asked.
pub struct How {
    pub mode: BackfillMode,
    pub refreshes: bool,
    pub end: End,
    /// Keys that an operator asked for: table, key, and whether that is durable.
    pub asked: Vec<(usize, u32, bool)>,
    /// Partitions of each topic.
    pub partitions: u32,
}

/// The whole check: events equal to the history behind the first position, and an unbroken chain of checkpoints. After a
/// named stop the events are the beginning of a history that the server once had. Rows that were read fit in between. Returns their
/// number.
pub fn check(server: &ModelServer, broker: &Broker, how: &How) -> Result<Found, String> {
    let end = how.end;
    let records = broker.committed();
    let start = chain(&records)?;
    ledger::progress(&records, how)?;
    let data: Vec<&Appended> = records.iter().filter(|one| is_data(one)).collect();
    let places: Vec<&[u8]> = data.iter().map(|one| header(one, "hw.pos")).collect();
    if !places.is_sorted_by(|a, b| a < b) {
        return Err("hw.pos does not rise".into());
    }
    schemas_come_first(&records)?;
    let Some(start) = start else {
        return match (end, data.first()) {
            (End::Rest, _) => Err("no position was ever committed".to_owned()),
            (End::Lost, Some(event)) => Err(format!("an event without a position: {event:?}")),
            (End::Lost, None) => Ok(Found::default()),
        };
    };
    let mut differences = String::new();
    for history in server.histories().iter().take(if end == End::Rest { 1 } else { usize::MAX }) {
        match against(server, history, start, &data, how) {
            Ok(found) => return Ok(found),
            Err(difference) => differences += &difference,
        }
    }
    Err(differences)
}

/// The events against one history. After a named stop they are its beginning.
fn against(
    server: &ModelServer,
    history: &[Arc<Transaction>],
    start: Lsn,
    data: &[&Appended],
    how: &How,
) -> Result<Found, String> {
    let actual: Vec<String> = data.iter().filter(|one| !ledger::is_own(one)).map(|one| line(one)).collect();
    let mut expected = expected(history, start, how.partitions);
    if how.end == End::Lost {
        expected.truncate(actual.len());
    }
    compare(&expected, &actual)?;
    let history: Vec<&Transaction> = history.iter().map(|one| &**one).collect();
    if how.end == End::Rest {
        ledger::end_state(&server.rows, (&history, start), data, how)?;
    }
    ledger::check(&server.rows, &history, start, data, how)
}

/// What a history publishes from a place on.
fn expected(history: &[Arc<Transaction>], start: Lsn, partitions: u32) -> Vec<String> {
    let behind = history.iter().filter(|one| one.commit >= start);
    behind.flat_map(|one| one.steps.iter().flat_map(|step| events(step, one.xid, partitions))).collect()
}

fn is_data(one: &Appended) -> bool {
    ![CHECKPOINT, SCHEMA, REFRESH].contains(&&*one.topic)
}

fn compare(expected: &[String], actual: &[String]) -> Result<(), String> {
    match (0..expected.len().max(actual.len())).find(|at| expected.get(*at) != actual.get(*at)) {
        None => Ok(()),
        Some(at) => Err(format!("event {at}: expected {:?}, found {:?}", expected.get(at), actual.get(at))),
    }
}

/// Checkpoints follow each other without a gap and count what was published between them. Returns the first position.
fn chain(records: &[Appended]) -> Result<Option<Lsn>, String> {
    let mut seq = 0;
    let mut start = None;
    let mut counted: BTreeMap<(Arc<str>, u32), u64> = BTreeMap::new();
    for one in records {
        if &*one.topic != CHECKPOINT || one.record.key != POSITION_KEY {
            if &*one.topic != CHECKPOINT {
                *counted.entry((Arc::clone(&one.topic), one.partition)).or_default() += 1;
            }
            continue;
        }
        let record: Json = serde_json::from_slice(one.record.value.as_deref().unwrap()).unwrap();
        if record["seq"].as_u64() != Some(seq + 1) {
            return Err(format!("checkpoint {} follows {seq}", record["seq"]));
        }
        seq += 1;
        if let (None, Some(text)) = (start, record["position"].as_str()) {
            start = Some(parse(text).base);
        }
        let mut claimed = BTreeMap::new();
        for (topic, partitions) in record["counts"].as_object().unwrap() {
            for (partition, count) in partitions.as_object().unwrap() {
                claimed.insert((Arc::from(&**topic), partition.parse().unwrap()), count.as_u64().unwrap());
            }
        }
        if claimed != std::mem::take(&mut counted) {
            return Err(format!("checkpoint {seq} counts {claimed:?}"));
        }
    }
    if !counted.is_empty() {
        return Err(format!("events without a checkpoint: {counted:?}"));
    }
    Ok(start)
}

fn schemas_come_first(records: &[Appended]) -> Result<(), String> {
    let mut known = Vec::new();
    for one in records {
        if &*one.topic == SCHEMA {
            let key: Json = serde_json::from_slice(&one.record.key).unwrap();
            known.push(key["schema"].as_str().unwrap().as_bytes().to_vec());
        } else if is_data(one) && !known.iter().any(|schema| schema == header(one, "hw.schema")) {
            return Err(format!("an event came before its schema: {one:?}"));
        }
    }
    Ok(())
}

/// What a step publishes, in the words of [`line`].
fn events(step: &Step, tx: u64, partitions: u32) -> Vec<String> {
    if step.table == FILTERED || step.op == Op::Read {
        return Vec::new();
    }
    let topic = TOPICS[step.table];
    if step.op == Op::Truncate {
        let event = format!(r#"{topic} {{"hw.truncate":true}} null t {tx}@model"#);
        return vec![event; partitions as usize];
    }
    let event = |op: &str, key: u32, value: Option<u32>| {
        let value = match value {
            None => "null".to_owned(),
            Some(version) if step.is_whole => format!(r#"{{"id":{key},"ver":{version},"big":{version}}}"#),
            Some(version) => format!(r#"{{"id":{key},"ver":{version}}} ["big"]"#),
        };
        format!(r#"{topic} {{"id":{key}}} {value} {op} {tx}@model"#)
    };
    match (step.op, step.old_key) {
        (Op::Delete, _) => vec![event("d", step.key, None)],
        (Op::Update, Some(old)) => vec![event("d", old, None), event("c", step.key, Some(step.version))],
        (Op::Update, None) => vec![event("u", step.key, Some(step.version))],
        _ => vec![event("c", step.key, Some(step.version))],
    }
}

fn line(one: &Appended) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let value = one.record.value.as_deref().map_or_else(|| "null".to_owned(), text);
    let absent = match header(one, "hw.absent") {
        [] => String::new(),
        absent => format!("{} ", text(absent)),
    };
    let (op, tx) = (text(header(one, "hw.op")), text(header(one, "hw.tx")));
    format!("{} {} {value} {absent}{op} {tx}", one.topic, text(&one.record.key))
}

pub fn header<'a>(one: &'a Appended, name: &str) -> &'a [u8] {
    one.record.headers.iter().find(|(known, _)| known == name).map_or(b"", |(_, value)| value)
}
