//! What the topics must hold, from the source alone: truth rows in the order in which their transactions committed.
//!
//! The order comes from a slot of the oracle's own with another output plugin. The same slot shows every change of the
//! captured tables, so the oracle also holds itself: truth that does not match the real changes is a fault of the test.

use std::collections::BTreeMap;

use postgres::{Client, SimpleQueryMessage};
use serde_json::Value;

use super::postgres::Database;
use crate::checker::Expected;

const SLOT: &str = "oracle";

/// A slot that sees everything from its creation on.
pub struct Oracle<'a> {
    database: &'a Database<'a>,
    slot: String,
}

impl<'a> Oracle<'a> {
    /// Creates the slot.
    pub fn start(database: &'a Database) -> Self {
        let slot = format!("{SLOT}_{}", database.name);
        database.rows(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"));
        Self { database, slot }
    }

    /// Everything that committed so far. The slot keeps its history, so a later call sees it again.
    pub fn expected(&self, connector: &str) -> Vec<Expected> {
        let mut client = self.database.client();
        let mut truth = truth(&mut client, connector);
        let mut expected = Vec::new();
        let mut tx = 0;
        let (mut changes, mut told) = (BTreeMap::new(), BTreeMap::new());
        let query =
            format!("SELECT left(data, 60) FROM pg_logical_slot_peek_changes('{}', NULL, NULL, 'include-xids', '0')", self.slot);
        for line in texts(&mut client, &query) {
            if line == "COMMIT" {
                assert_eq!(changes, told, "the truth of transaction {tx} is not what the database did");
                tx += usize::from(!told.is_empty());
                changes.clear();
                told.clear();
            } else if let Some(id) = line.strip_prefix("table truth.change: INSERT: id[bigint]:") {
                let id: i64 = id.split(' ').next().expect("a first word").parse().expect("a number");
                let (mut event, is_change) = truth.remove(&id).expect("a row of truth that the slot has seen");
                event.tx = tx;
                *told.entry(event.topic.clone()).or_insert(0) += u32::from(is_change);
                expected.push(event);
            } else if let Some(change) = line.strip_prefix("table shop.") {
                let (table, _) = change.split_once(": ").expect("a table and what happened");
                *changes.entry(format!("{connector}.{}", table.trim_matches('"'))).or_insert(0_u32) += 1;
            }
        }
        assert!(truth.is_empty(), "{} rows of truth have no place in the commit order", truth.len());
        expected
    }

    /// The rows of all tables by topic and key, written as the topics write them.
    pub fn tables(&self, connector: &str) -> BTreeMap<(String, String), Value> {
        let mut client = self.database.client();
        let mut rows = BTreeMap::new();
        for (table, key, row) in [
            ("bank", "json_build_object('id', id)", "json_build_object('id', id, 'ver', ver, 'balance', balance)"),
            // Without the column that comes and goes: the last event of a row may be older than the column.
            (
                "account",
                "json_build_object('id', id)",
                "json_build_object('id', id, 'ver', ver, 'owner', owner, 'active', active)",
            ),
            (
                "order",
                "json_build_object('region', region, 'code', code)",
                "json_build_object('code', code, 'region', region, 'ver', ver, 'amount', amount::text, 'note', note)",
            ),
            ("document", "json_build_object('id', id)", "row_to_json(t)"),
            ("journal", "json_build_object('id', id)", "row_to_json(t)"),
        ] {
            let query = format!("SELECT json_build_array({key}, {row}) FROM shop.\"{table}\" t");
            for text in texts(&mut client, &query) {
                let pair: Value = serde_json::from_str(&text).expect("JSON of the database");
                rows.insert((format!("{connector}.{table}"), pair[0].to_string()), pair[1].clone());
            }
        }
        rows
    }
}

/// The rows of truth by id, and whether each is a change of its own: the tombstone of a moved row is half of one.
fn truth(client: &mut Client, connector: &str) -> BTreeMap<i64, (Expected, bool)> {
    let query = "SELECT id, tbl, op, key, ver, row, absent FROM truth.change ORDER BY id";
    let rows = client.query(&format!("SELECT id, json_build_array(tbl, op, key, ver, row, absent)::text FROM ({query}) t"), &[]);
    let mut truth = BTreeMap::new();
    for row in rows.expect("the truth") {
        let fields: Value = serde_json::from_str(row.get(1)).expect("JSON of the database");
        let op = match fields[1].as_str() {
            Some("c") => "c",
            Some("u") => "u",
            Some("d" | "m") => "d",
            other => panic!("an op that nobody writes: {other:?}"),
        };
        let expected = Expected {
            tx: 0,
            topic: format!("{connector}.{}", fields[0].as_str().expect("a table")),
            op,
            key: fields[2].to_string(),
            ver: fields[3].as_i64().expect("a version"),
            value: Some(fields[4].clone()).filter(|row| !row.is_null()),
            absent: fields[5].as_str().map(str::to_owned).into_iter().collect(),
        };
        truth.insert(row.get(0), (expected, fields[1] != "m"));
    }
    truth
}

/// The first column of a query.
fn texts(client: &mut Client, query: &str) -> Vec<String> {
    let messages = client.simple_query(query).unwrap_or_else(|error| panic!("{query}: {error:?}"));
    let text = |message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    };
    messages.into_iter().filter_map(text).collect()
}
