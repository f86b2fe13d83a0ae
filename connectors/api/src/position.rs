//! Where a source stands, and which server it stands on.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// A position in a source's log: opaque and versioned.
///
/// The runtime stores it in the checkpoint and hands it back; it never compares two positions and never takes the greater one.
/// The text begins with a format version that its connector chose, is ASCII, and stays short: it is written with every
/// log transaction and shown by `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(String);

impl Position {
    /// `text` is the connector's own encoding.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The connector's own encoding.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What tells one source from another: server, history, database, slot, and the options that shape ordinals.
///
/// It is stored with every checkpoint and verified by the connector at every start (invariant 3 of the daemon).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Identity(pub BTreeMap<String, String>);

impl Identity {
    /// The value of one part.
    pub fn get(&self, part: &str) -> Option<&str> {
        self.0.get(part).map(String::as_str)
    }
}

impl<K: Into<String>, V: Into<String>, const N: usize> From<[(K, V); N]> for Identity {
    fn from(parts: [(K, V); N]) -> Self {
        Self(parts.into_iter().map(|(part, value)| (part.into(), value.into())).collect())
    }
}
