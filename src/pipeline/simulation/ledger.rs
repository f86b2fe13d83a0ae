//! What must be true of the rows that were there before: each key's events, those of rows that were read among them, against its history.

use std::collections::BTreeMap;

use headwater_connector::{BackfillMode, Op};
use serde_json::Value as Json;

use super::{
    broker::{Appended, STATE_KEY},
    checker::{CHECKPOINT, How, header},
    process::End,
    server::{FILTERED, Lsn, Step, Transaction},
    tables::{Row, Rows},
};

pub const TOPICS: [&str; FILTERED] = ["shop.orders", "shop.items"];
pub const CAPTURED: [&str; FILTERED] = ["app.orders", "app.items"];

/// One key of a table.
#[derive(Default)]
struct Key {
    /// What the row was at the first position, and after each event of the stream; more than once if the table was rewritten.
    states: Vec<Vec<Option<Row>>>,
    /// Events of the stream so far.
    at: usize,
    /// Which of the states there was read last.
    rewritten: usize,
    reads: u32,
    /// Whether the newest event lacks the large value.
    lacks: bool,
    /// How often its table was emptied so far.
    emptied: u32,
}

type Keys = BTreeMap<(usize, u32), Key>;

/// Rows that were read.
#[derive(Default)]
pub struct Found {
    /// All of them.
    pub rows: u64,
    /// Those whose event before lacked something.
    pub refreshed: u64,
    /// Tables that were emptied.
    pub truncates: u64,
    /// Keys that got a tombstone because the table does not have them.
    pub buried: u64,
}

/// Whether an event is none of the stream's: a row that was read, or a tombstone of a key that was looked up.
pub fn is_own(one: &Appended) -> bool {
    is_read(one) || is_burial(one)
}

fn is_burial(one: &Appended) -> bool {
    header(one, "hw.op") == b"d" && header(one, "hw.tx").is_empty()
}

fn is_truncate(one: &Appended) -> bool {
    header(one, "hw.op") == b"t"
}

/// Whether an event shows a row that was read.
pub fn is_read(one: &Appended) -> bool {
    header(one, "hw.op") == b"r"
}

/// The keys' histories from the first position on.
///
/// With them, for each truncate in its order, the keys that it removed.
fn keys(rows: &Rows, history: &[&Transaction], start: Lsn) -> (Keys, Vec<Vec<(usize, u32)>>) {
    let mut truncates = Vec::new();
    let (before, behind): (Vec<&Transaction>, Vec<&Transaction>) = history.iter().partition(|one| one.commit < start);
    let mut rows = rows.after(before.into_iter());
    let mut keys = Keys::new();
    for (place, row) in &rows.0 {
        keys.entry(*place).or_default().states.push(vec![Some(*row)]);
    }
    for step in behind.into_iter().flat_map(|one| &one.steps) {
        if step.op == Op::Truncate {
            let gone: Vec<(usize, u32)> = rows.0.keys().copied().filter(|(table, _)| *table == step.table).collect();
            gone.iter().for_each(|place| keys.get_mut(place).expect("a row has a history").states.push(vec![None]));
            rows.apply(step);
            truncates.push(gone);
            continue;
        }
        rows.apply(step);
        if step.op == Op::Read {
            for (place, row) in rows.0.iter().filter(|((table, _), _)| *table == step.table) {
                let states = &mut keys.get_mut(place).expect("a row has a history").states;
                states.last_mut().expect("a state").push(Some(*row));
            }
            continue;
        }
        for key in touched(step) {
            let states = &mut keys.entry((step.table, key)).or_default().states;
            if states.is_empty() {
                states.push(vec![None]);
            }
            states.push(vec![rows.0.get(&(step.table, key)).copied()]);
        }
    }
    (keys, truncates)
}

fn touched(step: &Step) -> impl Iterator<Item = u32> {
    step.old_key.filter(|_| step.op != Op::Delete).into_iter().chain([step.key])
}

/// The events of both kinds, in the order of the log, against a history. Rows that were read.
pub fn check(rows: &Rows, history: &[&Transaction], start: Lsn, data: &[&Appended], how: &How) -> Result<Found, String> {
    let (mut keys, truncates) = keys(rows, history, start);
    let (mut truncates, mut copies) = (truncates.into_iter(), 0);
    let mut found = Found::default();
    let mut asked: BTreeMap<(usize, u32), (u32, bool)> = BTreeMap::new();
    for (table, key, is_durable) in &how.asked {
        let (count, any) = asked.entry((*table, *key)).or_default();
        (*count, *any) = (*count + 1, *any || *is_durable);
    }
    let once = u32::from(how.mode == BackfillMode::Initial);
    for one in data {
        if is_truncate(one) {
            copies += 1;
            if copies % how.partitions == 1 % how.partitions {
                found.truncates += 1;
                empty(&mut keys, &truncates.next().ok_or("a truncate too many")?, one);
            }
            continue;
        }
        let (place, row) = event(one)?;
        let key = keys.get_mut(&place).ok_or_else(|| format!("{place:?} was never a row: {one:?}"))?;
        if is_burial(one) {
            found.buried += 1;
            if key.emptied == 0 || key.states.get(key.at) != Some(&vec![None]) {
                return Err(format!("{place:?} got a tombstone and is a row after {} changes: {:?}", key.at, key.states));
            }
            continue;
        }
        if !is_read(one) {
            (key.at, key.rewritten) = (key.at + 1, 0);
            key.lacks = row.is_some_and(|(_, big)| big.is_none());
            continue;
        }
        let is_refresh = how.refreshes && std::mem::take(&mut key.lacks);
        found.rows += 1;
        found.refreshed += u64::from(is_refresh);
        key.reads += u32::from(!is_refresh);
        let row = row.ok_or_else(|| format!("a row that was read has no columns: {one:?}"))?;
        // Rows are published behind everything that they show, and behind nothing newer.
        let row = Row { version: row.0, big: row.1.unwrap_or(0) };
        let states = key.states.get(key.at).map_or(&[][..], Vec::as_slice);
        let place_of = states.iter().rposition(|state| *state == Some(row)).filter(|at| *at >= key.rewritten);
        if let Some(at) = place_of {
            key.rewritten = at;
        } else {
            let what = format!("{place:?} is {row:?} after {} of {} changes: {:?}", key.at, key.states.len() - 1, key.states);
            return Err(format!("a row that was read is not as the events before it (I10): {what}"));
        }
        let often = once * (1 + key.emptied) + asked.get(&place).map_or(0, |(count, _)| *count);
        if !is_refresh && key.reads > often {
            return Err(format!("{place:?} was read {} times (I10)", key.reads));
        }
    }
    if how.end == End::Rest {
        let is_due = |place: &(usize, u32)| place.0 != FILTERED && (once > 0 || asked.get(place).is_some_and(|(_, any)| *any));
        for (place, key) in keys.iter().filter(|(place, _)| is_due(place)) {
            if key.at == 0 && key.reads == 0 && key.states[0][0].is_some() {
                return Err(format!("the row {place:?} was there before and has no event"));
            }
        }
    }
    Ok(found)
}

/// A table was emptied: these were its rows.
fn empty(keys: &mut Keys, gone: &[(usize, u32)], one: &Appended) {
    for place in gone {
        let Some(key) = keys.get_mut(place) else { continue };
        (key.at, key.rewritten, key.lacks) = (key.at + 1, 0, false);
    }
    let emptied = |place: &(usize, u32)| TOPICS.get(place.0).is_some_and(|topic| **topic == *one.topic);
    keys.iter_mut().filter(|(place, _)| emptied(place)).for_each(|(_, key)| key.emptied += 1);
}

type Content = (u32, Option<u32>);

/// Table and key of an event, and its row: the version, and the large value unless it is absent.
fn event(one: &Appended) -> Result<((usize, u32), Option<Content>), String> {
    let table = TOPICS.iter().position(|topic| **topic == *one.topic).ok_or_else(|| format!("a foreign topic: {one:?}"))?;
    let number = |json: &Json, name: &str| json[name].as_u64().map(|number| number as u32);
    let parse = |bytes: &[u8]| serde_json::from_slice::<Json>(bytes).map_err(|error| error.to_string());
    let key = number(&parse(&one.record.key)?, "id").ok_or("a key without an id")?;
    let Some(value) = &one.record.value else { return Ok(((table, key), None)) };
    let value = parse(value)?;
    let version = number(&value, "ver").ok_or("a row without a version")?;
    Ok(((table, key), Some((version, number(&value, "big")))))
}

/// The last event of each key is the table (I7).
pub fn end_state(
    rows: &Rows,
    (history, start): (&[&Transaction], Lsn),
    data: &[&Appended],
    &How { mode, refreshes, .. }: &How,
) -> Result<(), String> {
    let (keys, _) = keys(rows, history, start);
    let mut last = BTreeMap::new();
    for one in data {
        if is_truncate(one) {
            // Whoever reads no rows leaves it at that.
            last.retain(|(table, _), _| mode == BackfillMode::Initial || TOPICS[*table] != &*one.topic);
            continue;
        }
        let (place, row) = event(one)?;
        last.insert(place, row);
    }
    let truth = rows.after(history.iter().copied());
    for (place, found) in &last {
        let row = truth.0.get(place);
        let is_same = match (row, found) {
            (None, None) => true,
            (Some(row), Some((version, big))) => {
                // A table that was rewritten is not published anew.
                let states = keys.get(place).and_then(|key| key.states.last()).map_or(&[][..], Vec::as_slice);
                let shows = |big: u32| states.contains(&Some(Row { version: *version, big }));
                row.version == *version && big.map_or(!refreshes, shows)
            }
            _ => false,
        };
        if !is_same {
            return Err(format!("the last event of {place:?} is {found:?}, the table has {row:?} (I7)"));
        }
    }
    let missing = truth.0.keys().find(|place| place.0 != FILTERED && !last.contains_key(place));
    match missing.filter(|_| mode == BackfillMode::Initial) {
        Some(place) => Err(format!("the row {place:?} has no event (I7)")),
        None => Ok(()),
    }
}

/// How far tables are read only grows, counts exactly what is published, and ends once.
pub fn progress(records: &[Appended], &How { mode, refreshes, end, ref asked, .. }: &How) -> Result<(), String> {
    let mut tables: BTreeMap<&str, (u64, Json)> = CAPTURED.into_iter().map(|name| (name, (0, Json::Null))).collect();
    let (mut newest, mut is_changed): (&[u8], bool) = (b"", false);
    for one in records {
        if let Some(table) = TOPICS.iter().position(|topic| **topic == *one.topic).filter(|_| is_read(one)) {
            let (published, known) = tables.get_mut(CAPTURED[table]).expect("a table");
            *published += 1;
            is_changed = true;
            if known["state"] != "running" && !refreshes {
                return Err(format!("a row was read and published behind {known}: {one:?}"));
            }
        }
        if &*one.topic != CHECKPOINT || one.record.key != STATE_KEY {
            continue;
        }
        let value = one.record.value.as_deref().unwrap_or_default();
        if value == newest && !is_changed {
            continue;
        }
        (newest, is_changed) = (value, false);
        let state: Json = serde_json::from_slice(value).map_err(|error| error.to_string())?;
        for (name, (published, known)) in &mut tables {
            let new = &state["backfills"][*name];
            let is_anew = new["reconcile"].is_array() && new["reconcile"] != known["reconcile"];
            if new["state"] == "running" && (is_anew || known["state"] == "done" || known["state"] == "skipped") {
                let is_emptied = new["reconcile"].is_array();
                let is_asked = asked.iter().any(|(table, ..)| CAPTURED[*table] == *name) && new["filter"].is_string();
                if !is_asked && !is_emptied {
                    return Err(format!("{name} is read again, and nobody asked for it: {known} became {new}"));
                }
                (*published, *known) = (0, Json::Null);
            }
            step(known, new, *published, refreshes).map_err(|what| format!("{name}: {what}: {known} became {new}"))?;
            *known = new.clone();
        }
    }
    let wanted = if mode == BackfillMode::Never { "skipped" } else { "done" };
    for (name, (published, known)) in &tables {
        if known["published"].as_u64().unwrap_or(0) != *published && !refreshes {
            return Err(format!("{name}: {published} rows are published behind {known}"));
        }
        let is_asked = asked.iter().any(|(table, ..)| CAPTURED[*table] == *name);
        if end == End::Rest && known["state"] != wanted && !(is_asked && known["state"] == "done") {
            return Err(format!("{name} is at rest as {known}"));
        }
    }
    Ok(())
}

fn step(known: &Json, new: &Json, published: u64, refreshes: bool) -> Result<(), &'static str> {
    let rows = |json: &Json| json["rows"].as_u64().unwrap_or(0);
    let counted = new["published"].as_u64().unwrap_or(0);
    // Rows that lacked columns are not counted.
    if counted > published || counted < published && !refreshes {
        return Err("the rows that are published are not those that are counted");
    }
    if rows(new) < rows(known) {
        return Err("progress was lost");
    }
    if known["state"] == "done" && known != new {
        return Err("what is done changed");
    }
    if new["state"] == "done" && new["ranges"].as_array().is_some_and(|ranges| !ranges.is_empty()) {
        return Err("done, and something is left to be read");
    }
    Ok(())
}
