//! The checkpoint: two records, `position` in every transaction and `state` when it changed.

use std::collections::BTreeMap;

use headwater_connector::{Cursor, Error, Identity, Intent, Position, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{StoredRecord, codes};

/// The format that this version writes; it reads this one and older ones.
pub const FORMAT: u32 = 1;

/// Key of the position record.
pub const POSITION_KEY: &str = r#"{"checkpoint":"position"}"#;

/// Key of the state record.
pub const STATE_KEY: &str = r#"{"checkpoint":"state"}"#;

/// Written in every log transaction, so it is small.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PositionRecord {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// One life of the connector; only a reset changes it.
    pub incarnation: Uuid,
    /// Number of resets so far.
    pub era: u32,
    /// The process that wrote this.
    pub writer: Uuid,
    /// +1 per log transaction.
    pub seq: u64,
    /// The source as it was verified; none before the source was prepared.
    pub identity: Option<Identity>,
    /// Behind everything published; none before the source was prepared.
    pub position: Option<Position>,
    /// Events of this transaction by topic and partition (the checkpoint topic is not counted).
    pub counts: BTreeMap<String, BTreeMap<u32, u64>>,
}

/// Written when it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRecord {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// The same as in the position record.
    pub incarnation: Uuid,
    /// What a first start is about to do at the source; stays until the first position is committed.
    pub intent: Option<Intent>,
    /// Pinned partition counts by topic.
    pub partitions: BTreeMap<String, u32>,
    /// Tables by name.
    pub tables: BTreeMap<String, TableState>,
    /// Since when the connector is paused, in RFC 3339; none if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<String>,
    /// Rows that are there already, by table: what is read of them, and what was.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub backfills: BTreeMap<String, TableBackfill>,
    /// Ids of the topics, where the log has them: a topic of the same name with another id is another topic.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub topic_ids: BTreeMap<String, String>,
}

/// What is known of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableState {
    /// Where its events go.
    pub topic: String,
    /// Fingerprint of the schema that was published last.
    pub schema: String,
    /// Its key columns, in key order; empty in records of older versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<String>,
}

/// How far the rows of a table are read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableBackfill {
    /// See [`BackfillState`].
    pub state: BackfillState,
    /// Tells the table from a later one of the same name; none before the first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table_id: Option<String>,
    /// Only rows that meet this condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Keys whose last event is from before this (era and sequence number) and that the table does not have get a tombstone in the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconcile: Option<(u32, u64)>,
    /// Somebody wanted it read before the others, in the log transaction at this place (era and sequence number); the newest wish goes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<(u32, u64)>,
    /// What is still to be read; empty when nothing is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<KeyRange>,
    /// When all are read, all are read again: more rows lost columns meanwhile than are remembered one by one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
    /// Rows read.
    #[serde(default)]
    pub rows: u64,
    /// Of those, rows that became events: for the others there was a newer one already.
    #[serde(default)]
    pub published: u64,
    /// Keys that got a tombstone because the table does not have them.
    #[serde(default)]
    pub buried: u64,
    /// Rows in the table when it was asked for, roughly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub estimated: Option<u64>,
    /// When the last row was read, in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
}

/// What is to be done about the rows of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackfillState {
    /// Nothing: it was captured without them.
    #[default]
    Skipped,
    /// They are read.
    Running,
    /// They are not read until somebody resumes it.
    Paused,
    /// All were read.
    Done,
    /// Somebody ended it before that.
    Cancelled,
}

/// Keys from one to another, as the server writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRange {
    /// Tells it from the others of its table.
    pub id: u32,
    /// Behind this key; none begins at the first row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Cursor>,
    /// Up to and including this key; none goes to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Cursor>,
}

/// Both records as read at a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The last position record.
    pub position: PositionRecord,
    /// The last state record.
    pub state: StateRecord,
}

impl Checkpoint {
    /// Decodes the last records of a checkpoint topic; none if there is no checkpoint.
    ///
    /// A newer format, half a checkpoint, or records of two incarnations are refused: guessing would lose events.
    pub fn decode(topic: &str, records: &[StoredRecord]) -> Result<Option<Self>> {
        let mut position = None;
        let mut state = None;
        for record in records {
            match (record.key.as_slice(), record.value.as_deref()) {
                (key, Some(value)) if key == POSITION_KEY.as_bytes() => position = Some(value),
                (key, Some(value)) if key == STATE_KEY.as_bytes() => state = Some(value),
                _ => return Err(unreadable(topic, "it holds a record that headwater did not write")),
            }
        }
        let (position, state) = match (position, state) {
            (None, None) => return Ok(None),
            (Some(position), Some(state)) => (position, state),
            _ => return Err(unreadable(topic, "one of its two records is missing")),
        };
        let position: PositionRecord = parse(topic, position)?;
        let state: StateRecord = parse(topic, state)?;
        if position.incarnation != state.incarnation {
            return Err(unreadable(topic, "its two records belong to different incarnations of the connector"));
        }
        Ok(Some(Self { position, state }))
    }
}

fn parse<T: serde::de::DeserializeOwned>(topic: &str, value: &[u8]) -> Result<T> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let bad = |error: serde_json::Error| unreadable(topic, "a record is not valid").caused_by(error);
    let Format { format } = serde_json::from_slice(value).map_err(bad)?;
    if format > FORMAT {
        return Err(unreadable(topic, format!("it has format {format}; this version reads up to {FORMAT}"))
            .hint("Run the version of headwater that wrote it, or a newer one."));
    }
    serde_json::from_slice(value).map_err(bad)
}

fn unreadable(topic: &str, what: impl Into<String>) -> Error {
    Error::new(&codes::CHECKPOINT_UNREADABLE, format!("the checkpoint cannot be used: {}", what.into()))
        .at("topic", topic)
        .hint("Do not delete the topic; run `headwater explain HW1203` for what to look at.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &str) -> StoredRecord {
        StoredRecord {
            offset: 0,
            timestamp_ms: 0,
            key: key.as_bytes().to_vec(),
            value: Some(value.as_bytes().to_vec()),
            headers: Vec::new(),
        }
    }

    fn checkpoint() -> Checkpoint {
        let incarnation = Uuid::from_u128(7);
        Checkpoint {
            position: PositionRecord {
                format: FORMAT,
                incarnation,
                era: 0,
                writer: Uuid::from_u128(9),
                seq: 3,
                identity: Some(Identity::from([("system", "1")])),
                position: Some(Position::new("1:0/0")),
                counts: BTreeMap::from([("shop.order".to_owned(), BTreeMap::from([(0, 5)]))]),
            },
            state: StateRecord { format: FORMAT, incarnation, ..StateRecord::default() },
        }
    }

    fn stored(checkpoint: &Checkpoint) -> Vec<StoredRecord> {
        vec![
            record(POSITION_KEY, &serde_json::to_string(&checkpoint.position).unwrap()),
            record(STATE_KEY, &serde_json::to_string(&checkpoint.state).unwrap()),
        ]
    }

    #[test]
    fn a_checkpoint_comes_back() {
        let checkpoint = checkpoint();
        assert_eq!(Checkpoint::decode("t", &stored(&checkpoint)).unwrap(), Some(checkpoint));
        assert_eq!(Checkpoint::decode("t", &[]).unwrap(), None);
    }

    #[test]
    fn a_checkpoint_of_a_newer_format_is_refused() {
        let mut newer = checkpoint();
        newer.position.format = FORMAT + 1;
        let error = Checkpoint::decode("t", &stored(&newer)).unwrap_err();
        assert!(error.what().contains("format 2"), "{error}");
    }

    #[test]
    fn half_a_checkpoint_or_a_foreign_one_is_refused() {
        let whole = stored(&checkpoint());
        Checkpoint::decode("t", &whole[..1]).unwrap_err();
        Checkpoint::decode("t", &whole[1..]).unwrap_err();
        let mut foreign = checkpoint();
        foreign.state.incarnation = Uuid::from_u128(8);
        Checkpoint::decode("t", &stored(&foreign)).unwrap_err();
        Checkpoint::decode("t", &[record("x", "{}")]).unwrap_err();
    }
}
