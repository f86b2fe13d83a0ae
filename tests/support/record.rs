//! Records as a reader of the topics sees them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

/// One committed record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: u32,
    /// Its offset in the partition.
    pub offset: u64,
    /// RFC 3339.
    pub timestamp: String,
    /// The key's own bytes: the partition is a function of them.
    pub key: String,
    /// None is a tombstone.
    pub value: Option<Value>,
    /// By name.
    pub headers: BTreeMap<String, String>,
}

impl Record {
    /// A line of `tail --format json`.
    pub fn parse(line: &str) -> Self {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Line<'a> {
            topic: String,
            partition: u32,
            offset: u64,
            timestamp: String,
            #[serde(borrow)]
            key: &'a RawValue,
            value: Option<Value>,
            headers: BTreeMap<String, Value>,
        }
        let line: Line = serde_json::from_str(line).unwrap_or_else(|error| panic!("not a line of tail: {error}: {line}"));
        let text = |value: Value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        Self {
            topic: line.topic,
            partition: line.partition,
            offset: line.offset,
            timestamp: line.timestamp,
            key: line.key.get().to_owned(),
            value: line.value,
            headers: line.headers.into_iter().map(|(name, value)| (name, text(value))).collect(),
        }
    }

    /// A header's value, empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// `c`, `u`, `d`, `r` or `t`.
    pub fn op(&self) -> &str {
        self.header("hw.op")
    }

    /// A column of the value.
    pub fn column(&self, name: &str) -> Option<&Value> {
        self.value.as_ref()?.get(name)
    }

    /// The columns that `hw.absent` names.
    pub fn absent(&self) -> Vec<String> {
        match self.headers.get("hw.absent") {
            Some(names) => serde_json::from_str(names).unwrap_or_else(|error| panic!("hw.absent {names}: {error}")),
            None => Vec::new(),
        }
    }

    /// (era, seq, index) of `hw.pos`; none if it has another form.
    pub fn pos(&self) -> Option<(u64, u64, u64)> {
        let mut parts = self.header("hw.pos").split('-').map(|part| u64::from_str_radix(part, 16));
        let pos = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
        parts.next().is_none().then_some(pos)
    }
}
