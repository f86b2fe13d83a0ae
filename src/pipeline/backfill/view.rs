//! A backfill as `status` shows it.

use serde::Serialize;

pub use crate::log::checkpoint::BackfillState;
use crate::{log::checkpoint::TableBackfill, pipeline::handle::ErrorView};

/// One table.
#[derive(Clone, Debug, Serialize)]
pub struct BackfillView {
    /// `schema.table`
    pub table: String,
    /// What is done about its rows.
    pub state: BackfillState,
    /// Its place in the order in which tables are read, from 1; none if it is not to be read now.
    pub turn: Option<usize>,
    /// Rows read.
    pub rows: u64,
    /// Of those, rows that became events.
    pub published: u64,
    /// Keys of the topic that got a tombstone because the table does not have them.
    pub buried: u64,
    /// Rows in the table, roughly.
    pub estimated_rows: Option<u64>,
    /// Rows read per second, since this daemon began.
    pub rows_per_second: Option<f64>,
    /// How long it will take at this rate.
    pub seconds_left: Option<f64>,
    /// What it waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    /// Why it stands still.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorView>,
}

impl BackfillView {
    /// What the checkpoint knows of a table.
    pub fn new(table: &str, known: &TableBackfill) -> Self {
        Self {
            table: table.to_owned(),
            state: known.state,
            turn: None,
            rows: known.rows,
            published: known.published,
            buried: known.buried,
            estimated_rows: known.estimated,
            rows_per_second: None,
            seconds_left: None,
            waiting: None,
            error: None,
        }
    }

    /// Adds how fast it goes: so many rows in so many seconds.
    pub fn at_rate(mut self, rows: u64, seconds: f64) -> Self {
        if self.state == BackfillState::Running && seconds > 0.5 && rows > 0 {
            let rate = rows as f64 / seconds;
            self.rows_per_second = Some(rate);
            self.seconds_left = self.rows_left().map(|left| left as f64 / rate);
        }
        self
    }

    /// Rows that are not read yet, roughly.
    pub fn rows_left(&self) -> Option<u64> {
        self.estimated_rows.map(|all| all.saturating_sub(self.rows))
    }
}

/// How long these tables will take together at the rate so far; none while that cannot be told. Without tables it is 0.
pub fn seconds_left<'a>(tables: impl Iterator<Item = &'a BackfillView>) -> Option<f64> {
    let (mut left, mut rate) = (0, 0.0);
    for table in tables {
        left += table.rows_left()?;
        rate += table.rows_per_second.unwrap_or(0.0);
    }
    match left {
        0 => Some(0.0),
        _ => Some(left as f64 / rate).filter(|seconds| seconds.is_finite()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(rows: u64, estimated: Option<u64>) -> BackfillView {
        let known = TableBackfill { state: BackfillState::Running, rows, estimated, ..TableBackfill::default() };
        BackfillView::new("public.t", &known)
    }

    #[test]
    fn time_left_is_told_only_where_it_is_known() {
        assert_eq!(seconds_left([].iter()), Some(0.0));
        let slow = running(100, Some(300)).at_rate(100, 10.0);
        assert_eq!(slow.seconds_left, Some(20.0));
        // A table that nobody has begun counts with what is left of it.
        assert_eq!(seconds_left([slow.clone(), running(0, Some(300))].iter()), Some(50.0));
        assert_eq!(seconds_left([slow, running(0, None)].iter()), None);
        assert_eq!(seconds_left([running(0, Some(5))].iter()), None);
        // The estimate was too low: that nothing is left does not make it negative.
        assert_eq!(running(9, Some(5)).at_rate(9, 1.0).seconds_left, Some(0.0));
    }
}
