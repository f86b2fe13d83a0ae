//! What an operator asks about the rows of a table, while the connector runs.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use headwater_connector::{Condition, Error, Result, Schema, SourceConnector, Type};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{super::codes, fresh};
use crate::{
    config::closest::closest,
    log::checkpoint::{BackfillState, TableBackfill},
    mapping::Place,
    pipeline::start::gather,
};

/// The longest condition that is kept in the checkpoint, in bytes.
const MAX_CONDITION: usize = 256 << 10;

/// What is asked, as it comes over HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Request {
    /// `schema.table`
    pub table: String,
    /// What to do about it.
    pub action: Action,
    /// Only rows that meet this condition, in the language of the server.
    #[serde(rename = "where", skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Only rows with these keys, as the topic has them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<serde_json::Map<String, serde_json::Value>>,
    /// Only rows whose `column` is at least this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// See `from`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// Also put tombstones where the topic has keys that the table does not have.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reconcile: bool,
    /// Read this table before the others, also if it is being read already.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub first: bool,
}

/// See [`Request::action`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Read the rows.
    #[default]
    Start,
    /// Stop reading, and keep how far it got.
    Pause,
    /// Go on where it was paused.
    Resume,
    /// Stop reading, and forget how far it got.
    Cancel,
}

/// A request that was looked at and is worth a log transaction.
#[derive(Clone, Debug)]
pub struct Order {
    table: String,
    action: Action,
    filter: Option<String>,
    estimated: Option<u64>,
    reconcile: bool,
    first: bool,
}

/// Tells whoever asked.
pub type Reply = oneshot::Sender<Result<()>>;

/// Orders on their way to the connector's task.
#[derive(Default)]
pub struct Orders(Mutex<VecDeque<(Order, Reply)>>);

impl Orders {
    /// Puts an order in; the answer comes when it is durable or refused.
    pub fn put(&self, order: Order) -> oneshot::Receiver<Result<()>> {
        let (reply, answer) = oneshot::channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back((order, reply));
        answer
    }

    /// Takes everything out for which somebody still waits.
    pub fn take(&self) -> Vec<(Order, Reply)> {
        let mut orders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        orders.drain(..).filter(|(_, reply)| !reply.is_closed()).collect()
    }
}

impl Request {
    /// Looks at the request with the source's help, before anything changes.
    pub async fn order(&self, connector: &dyn SourceConnector) -> Result<Order> {
        let tables = connector.tables().await.map_err(gather)?;
        let Some(table) = tables.iter().find(|table| table.schema.table == self.table) else {
            let error =
                Error::new(&codes::BACKFILL_UNKNOWN_TABLE, "the connector does not capture this table").at("table", &self.table);
            return Err(error.hint(match closest(&self.table, tables.iter().map(|table| table.schema.table.as_str())) {
                Some(close) => format!("Did you mean {close}?"),
                None => "Name the table as schema.table; `headwater backfill CONNECTOR --list` lists them.".to_owned(),
            }));
        };
        if !table.readable {
            return Err(Error::new(&codes::BACKFILL_REFUSED, "what is in the log alone has no rows to be read")
                .at("table", &self.table)
                .hint("Name a table of the database."));
        }
        if self.reconcile && (self.condition.is_some() || !self.keys.is_empty() || self.from.is_some()) {
            return Err(Error::new(&codes::BACKFILL_REFUSED, "a part of a table cannot be reconciled")
                .at("table", &self.table)
                .hint("Leave out the condition, or leave out --reconcile."));
        }
        if self.first && matches!(self.action, Action::Pause | Action::Cancel) {
            return Err(Error::new(&codes::BACKFILL_REFUSED, "what is not to be read cannot be read first")
                .at("table", &self.table)
                .hint("Leave out `first`, or resume the table with it."));
        }
        let mut filters: Vec<String> = self.condition.iter().cloned().collect();
        match (&self.column, &self.from) {
            (Some(column), Some(from)) => {
                known_column(&table.schema, column)?;
                filters.push(connector.condition(&table.schema, &Condition::From { column, value: from }).await?);
            }
            (None, None) => {}
            _ => {
                return Err(Error::new(&codes::BACKFILL_REFUSED, "`from` and `column` go together")
                    .at("table", &self.table)
                    .hint("Give both --column and --from."));
            }
        }
        if !self.keys.is_empty() {
            let keys =
                self.keys.iter().enumerate().map(|(at, key)| cursor(&table.schema, key, at + 1)).collect::<Result<Vec<_>>>()?;
            filters.push(connector.condition(&table.schema, &Condition::Keys(&keys)).await?);
        }
        let filter = match filters.as_slice() {
            [] => None,
            [only] => Some(only.clone()),
            many => Some(format!("({})", many.join(") AND ("))),
        };
        if filter.as_ref().is_some_and(|filter| filter.len() > MAX_CONDITION) {
            return Err(Error::new(&codes::BACKFILL_REFUSED, "the condition is too long to be kept in the checkpoint")
                .at("table", &self.table)
                .hint("Split the file of keys, or give a condition that selects the same rows."));
        }
        let estimated = table.estimated_rows.filter(|_| filter.is_none());
        let (table, action, reconcile, first) = (self.table.clone(), self.action, self.reconcile, self.first);
        Ok(Order { table, action, filter, estimated, reconcile, first })
    }
}

impl Order {
    /// The table it is about.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// What becomes of the table's state, or why it cannot be done. Asked for again, what is done already succeeds.
    /// `place` is that of the log transaction that makes it so.
    pub fn apply(&self, known: &mut TableBackfill, place: Place) -> Result<()> {
        use BackfillState::{Cancelled, Done, Paused, Running, Skipped};
        let refuse = |what: &str, hint: &str| {
            Err(Error::new(&codes::BACKFILL_REFUSED, what).at("table", &self.table).hint(hint.replace("TABLE", &self.table)))
        };
        let first = self.first.then_some((place.era, place.seq));
        let is_plain = self.filter.is_none() && !self.reconcile;
        match (self.action, known.state) {
            (Action::Start, Running | Paused) if self.first && is_plain => {
                known.first = first;
                Ok(())
            }
            (Action::Start, Running | Paused) => refuse(
                "the table is being read already",
                "Wait until it is done, or give it up with `headwater backfill CONNECTOR TABLE --cancel`.",
            ),
            (Action::Start, _) => {
                let reconcile = self.reconcile.then_some((place.era, place.seq));
                *known = TableBackfill { filter: self.filter.clone(), estimated: self.estimated, reconcile, first, ..fresh() };
                Ok(())
            }
            (Action::Pause, Running | Paused) => {
                known.state = Paused;
                Ok(())
            }
            (Action::Resume, Running | Paused) => {
                known.state = Running;
                known.first = first.or(known.first);
                Ok(())
            }
            (Action::Cancel, Running | Paused | Cancelled) => {
                *known =
                    TableBackfill { state: Cancelled, rows: known.rows, published: known.published, ..TableBackfill::default() };
                Ok(())
            }
            (Action::Pause | Action::Resume | Action::Cancel, Done | Skipped | Cancelled) => refuse(
                "the table is not being read",
                "Start it with `headwater backfill CONNECTOR TABLE`; `--list` shows what is being read.",
            ),
        }
    }
}

fn known_column(schema: &Schema, column: &str) -> Result<()> {
    if schema.column(column).is_some() {
        return Ok(());
    }
    let columns: Vec<&str> = schema.columns.iter().map(|column| column.name.as_str()).collect();
    Err(Error::new(&codes::BACKFILL_REFUSED, format!("there is no column {column:?}"))
        .at("table", &schema.table)
        .hint(format!("Use one of the table's columns: {}.", columns.join(", "))))
}

/// A key as the topic has it becomes the texts that the server takes.
pub fn cursor(schema: &Schema, key: &serde_json::Map<String, serde_json::Value>, line: usize) -> Result<Vec<String>> {
    let names = schema.key_names();
    let bad = |what: String| {
        Err(Error::new(&codes::BACKFILL_BAD_KEY, what)
            .at("table", &schema.table)
            .at("line", line)
            .hint(format!("Write one JSON object per line with the key's columns: {}.", names.join(", "))))
    };
    if key.len() != names.len() {
        return bad(format!("a key has {} columns instead of {}", key.len(), names.len()));
    }
    let mut cursor = Vec::with_capacity(names.len());
    for (name, at) in names.iter().zip(&schema.key) {
        let text = match key.get(*name) {
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(value @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_))) => value.to_string(),
            Some(_) => return bad(format!("the column {name:?} of a key is neither a text nor a number")),
            None => return bad(format!("a key lacks the column {name:?}")),
        };
        if schema.columns[*at].r#type == Type::Bytes {
            return bad(format!("the column {name:?} holds bytes, which a file of keys cannot name"));
        }
        cursor.push(text);
    }
    Ok(cursor)
}

#[cfg(test)]
mod tests {
    use headwater_connector::Column;

    use super::*;

    fn order(action: Action) -> Order {
        Order { table: "public.t".into(), action, filter: None, estimated: None, reconcile: false, first: false }
    }

    #[test]
    fn every_state_answers_every_action() {
        use BackfillState::{Cancelled, Done, Paused, Running, Skipped};
        let all = [Skipped, Running, Paused, Done, Cancelled];
        let after = |action| {
            all.map(|state| {
                let mut known = TableBackfill { state, ..fresh() };
                order(action).apply(&mut known, Place { era: 0, seq: 9 }).ok().map(|()| known.state)
            })
        };
        assert_eq!(after(Action::Start), [Some(Running), None, None, Some(Running), Some(Running)]);
        assert_eq!(after(Action::Pause), [None, Some(Paused), Some(Paused), None, None]);
        assert_eq!(after(Action::Resume), [None, Some(Running), Some(Running), None, None]);
        assert_eq!(after(Action::Cancel), [None, Some(Cancelled), Some(Cancelled), None, Some(Cancelled)]);
    }

    #[test]
    fn what_is_read_already_is_put_first_and_goes_on_as_it_was() {
        let place = Place { era: 1, seq: 9 };
        let first = |action| Order { first: true, ..order(action) };
        for state in [BackfillState::Running, BackfillState::Paused] {
            let mut known = TableBackfill { state, rows: 7, ..fresh() };
            first(Action::Start).apply(&mut known, place).unwrap();
            assert_eq!((known.state, known.rows, known.first), (state, 7, Some((1, 9))));
            Order { filter: Some("x".into()), ..first(Action::Start) }.apply(&mut known, place).unwrap_err();
            Order { reconcile: true, ..first(Action::Start) }.apply(&mut known, place).unwrap_err();
            order(Action::Resume).apply(&mut known, Place { era: 1, seq: 10 }).unwrap();
            assert_eq!(known.first, Some((1, 9)), "it stays where it was put");
        }
    }

    #[test]
    fn a_bad_key_names_its_line() {
        let column = |name: &str, r#type| Column { name: name.into(), r#type, source_type: "x".into(), nullable: false };
        let columns = vec![column("v", Type::String), column("a", Type::Int64), column("b", Type::String)];
        let schema = Schema { table: "public.t".into(), columns, key: vec![2, 1] };
        let parse = |text: &str| cursor(&schema, &serde_json::from_str(text).unwrap(), 7);
        assert_eq!(parse(r#"{"a":12345678901234567890,"b":"x"}"#).unwrap(), ["x", "12345678901234567890"]);
        for text in ["{}", r#"{"a":1}"#, r#"{"a":1,"c":2}"#, r#"{"a":null,"b":"x"}"#, r#"{"a":[1],"b":"x"}"#] {
            let error = parse(text).unwrap_err();
            assert!(error.place().iter().any(|(label, value)| *label == "line" && value == "7"), "{error}");
        }
    }
}
