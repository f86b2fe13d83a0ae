//! How far the rows of tables are read, as people see it: in `status`, and as bars below the log of `run`.

use std::time::Duration;

use anstyle::AnsiColor;
use serde::Deserialize;

use super::{
    output::{Cell, Paint, table},
    status::human_seconds,
};
use crate::{
    log::checkpoint::BackfillState,
    pipeline::{Handle, backfill::view::BackfillView},
    telemetry::Footer,
};

/// How often the bars are drawn.
const EVERY: Duration = Duration::from_millis(500);
/// Tables that get a bar; the others are counted.
const BARS: usize = 6;
/// Characters of a bar.
const BAR: u64 = 20;

/// The rows of a table as the daemon's answer has them.
#[derive(Debug, Deserialize)]
pub struct Rows {
    pub table: String,
    state: BackfillState,
    rows: u64,
    estimated_rows: Option<u64>,
    rows_per_second: Option<f64>,
    seconds_left: Option<f64>,
    waiting: Option<String>,
    pub error: Option<super::status::LastError>,
}

impl Rows {
    fn is_open(&self) -> bool {
        matches!(self.state, BackfillState::Running | BackfillState::Paused)
    }
}

/// Lines about a connector's tables: one for each that is not done below a header, and one for all that are.
pub fn lines(connector: &str, tables: &[Rows], paint: Paint) -> Vec<String> {
    let rows: Vec<Vec<Cell>> = tables.iter().filter(|table| table.is_open()).map(row).collect();
    let ended: Vec<String> = [(BackfillState::Done, "done"), (BackfillState::Cancelled, "cancelled")]
        .iter()
        .filter_map(|(state, word)| {
            let such = || tables.iter().filter(|table| table.state == *state);
            let counted = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
            let (tables, rows) = (counted(such().count() as u64, "table"), counted(such().map(|table| table.rows).sum(), "row"));
            such().next().map(|_| format!("{word}: {tables}, {rows} read"))
        })
        .collect();
    let ended = ended.join("; ");
    let head = format!("{}: rows that were there already", paint.bold(connector));
    match (rows.is_empty(), ended.is_empty()) {
        (true, true) => Vec::new(),
        (true, false) => vec![format!("{head}, {ended}")],
        (false, _) => {
            let header = ["TABLE", "STATE", "READ", "OF ABOUT", "DONE", "ROWS/S", "LEFT", "WAITS FOR"];
            let below = table(&header, &rows, paint).into_iter().chain(Some(ended).filter(|ended| !ended.is_empty()));
            std::iter::once(head).chain(below.map(|line| format!("  {line}"))).collect()
        }
    }
}

fn row(table: &Rows) -> Vec<Cell> {
    let or_dash = |text: Option<String>| Cell::plain(text.unwrap_or_else(|| "-".to_owned()));
    let (word, color) = match table.state {
        BackfillState::Paused => ("paused", AnsiColor::Yellow),
        _ if table.error.is_some() => ("failing", AnsiColor::Red),
        _ if table.waiting.is_some() => ("waiting", AnsiColor::Yellow),
        _ => ("running", AnsiColor::Green),
    };
    vec![
        Cell::plain(&table.table),
        Cell::colored(word, color),
        Cell::plain(table.rows.to_string()),
        or_dash(table.estimated_rows.map(|rows| rows.to_string())),
        or_dash(percent(table.rows, table.estimated_rows).map(|percent| format!("{percent} %"))),
        or_dash(table.rows_per_second.map(|rate| format!("{rate:.0}"))),
        or_dash(table.seconds_left.map(human_seconds)),
        or_dash(table.waiting.clone()),
    ]
}

/// Never 100 before the end: the number of rows is an estimate.
fn percent(rows: u64, estimated: Option<u64>) -> Option<u64> {
    let estimated = estimated.filter(|rows| *rows > 0)?;
    Some((u128::from(rows) * 100 / u128::from(estimated)).min(99) as u64)
}

/// Draws bars until it is dropped.
pub async fn draw(handle: Handle, footer: Footer) {
    loop {
        let mut open = Vec::new();
        for status in handle.connectors() {
            let tables = status.backfills().into_iter().filter(|table| table.state == BackfillState::Running);
            open.extend(tables.map(|table| (status.name().to_owned(), table)));
        }
        footer.show(&bars(open));
        tokio::time::sleep(EVERY).await;
    }
}

/// A line per table, those that move first.
fn bars(mut open: Vec<(String, BackfillView)>) -> Vec<String> {
    open.sort_by_key(|(_, table)| (table.rows == 0, table.error.is_none() && table.waiting.is_none()));
    let names: Vec<String> = open.iter().map(|(connector, table)| format!("{connector} {}", table.table)).collect();
    let width = names.iter().take(BARS).map(|name| name.chars().count()).max().unwrap_or(0);
    let mut lines: Vec<String> =
        names.iter().zip(&open).take(BARS).map(|(name, (_, table))| format!("{name:<width$}  {}", bar(table))).collect();
    if open.len() > BARS {
        lines.push(format!("and {} more tables; see headwater status", open.len() - BARS));
    }
    lines
}

fn bar(table: &BackfillView) -> String {
    let mut text = match percent(table.rows, table.estimated_rows) {
        Some(percent) => {
            let full = percent * BAR / 100;
            let (full, empty) = ("█".repeat(full as usize), "░".repeat((BAR - full) as usize));
            format!("{full}{empty} {percent:>2} %  {} of about {} rows", table.rows, table.estimated_rows.unwrap_or(0))
        }
        None => format!("{} rows", table.rows),
    };
    match (&table.error, &table.waiting) {
        (Some(error), _) => text.push_str(&format!("  {}: see headwater status", error.code)),
        (None, Some(waiting)) => text.push_str(&format!("  waits for {waiting}")),
        (None, None) => {
            text.extend(table.rows_per_second.map(|rate| format!("  {rate:.0} rows/s")));
            text.extend(table.seconds_left.map(|seconds| format!("  {} left", human_seconds(seconds))));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{log::checkpoint::TableBackfill, pipeline::handle::ErrorView};

    fn view(table: &str, rows: u64, estimated: Option<u64>) -> (String, BackfillView) {
        let known = TableBackfill { state: BackfillState::Running, rows, estimated, ..TableBackfill::default() };
        ("shop".to_owned(), BackfillView::new(table, &known))
    }

    #[test]
    fn a_bar_tells_how_far_it_is_and_what_holds_it() {
        let (_, moving) = view("public.a", 250, Some(1000));
        assert_eq!(bar(&moving.at_rate(250, 10.0)), "█████░░░░░░░░░░░░░░░ 25 %  250 of about 1000 rows  25 rows/s  30.0 s left");
        let (_, mut held) = view("public.a", 9000, Some(1000));
        held.waiting = Some("the stream to catch up".to_owned());
        assert!(bar(&held).ends_with("99 %  9000 of about 1000 rows  waits for the stream to catch up"), "{}", bar(&held));
        held.error = Some(ErrorView { code: "HW2001", kind: "config", message: String::new(), hint: String::new() });
        assert!(bar(&held).ends_with("rows  HW2001: see headwater status"));
        assert_eq!(bar(&view("public.a", 7, None).1), "7 rows");
        assert_eq!(bar(&view("public.a", 0, Some(0)).1), "0 rows");
    }

    #[test]
    fn many_tables_do_not_fill_the_screen() {
        let open: Vec<_> = (0..40).map(|at| view(&format!("public.t{at}"), u64::from(at == 39), Some(50))).collect();
        let lines = bars(open);
        assert_eq!(lines.len(), BARS + 1);
        assert!(lines[0].starts_with("shop public.t39"), "those that move come first: {lines:?}");
        assert!(lines[BARS].contains("34 more"));
        assert!(bars(Vec::new()).is_empty());
    }
}
