//! A backfill as `status` shows it.

use serde::Serialize;

use crate::{
    log::checkpoint::{BackfillState, TableBackfill},
    pipeline::handle::ErrorView,
};

/// One table.
#[derive(Clone, Debug, Serialize)]
pub struct BackfillView {
    /// `schema.table`
    pub table: String,
    /// What is done about its rows.
    pub state: BackfillState,
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
            self.seconds_left = self.estimated_rows.map(|all| all.saturating_sub(self.rows) as f64 / rate);
        }
        self
    }
}
