//! What the topics must hold, from the source alone: truth rows in the order in which their transactions committed.

use std::collections::BTreeMap;

use serde_json::Value;

use super::shop::{Shop, Truth};
use crate::checker::Expected;

/// An oracle that sees everything from its start on.
pub struct Oracle<'a>(Box<dyn Truth + 'a>);

impl<'a> Oracle<'a> {
    /// Begins to look.
    pub fn start(shop: &'a dyn Shop) -> Self {
        Self(shop.truth())
    }

    /// Everything that committed so far. A later call sees it again.
    pub fn expected(&self, connector: &str) -> Vec<Expected> {
        self.0.expected(connector)
    }

    /// The rows of all tables by topic and key, written as the topics write them.
    pub fn tables(&self, connector: &str) -> BTreeMap<(String, String), Value> {
        self.0.tables(connector)
    }
}

/// The event of a row of truth, and whether it is a change of its own: the tombstone of a moved row is half of one.
/// `fields` are table, op, key, version, row and absent column.
pub fn event(connector: &str, fields: &Value) -> (Expected, bool) {
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
    (expected, fields[1] != "m")
}
