//! `headwater plan`.

use std::path::Path;

use anstyle::AnsiColor;
use serde_json::json;

use super::{
    Outcome, block_on, environment, exit,
    output::{Cell, Format, Output, table},
};
use crate::pipeline::preflight::{self, Planned, PlannedConnector, PlannedRows, PlannedTable, RowsAction};

/// Connects, compares, and prints what `run` would do.
pub fn run(config: &Path, output: &mut Output) -> Outcome {
    let plan = crate::config::load(config, environment())?;
    output.warnings(&plan.warnings);
    let planned = block_on(preflight::planned(&plan))??;
    print(&planned, output)
}

/// Prints what `run` would do.
pub fn print(planned: &Planned, output: &mut Output) -> Outcome {
    match output.format {
        Format::Json => {
            output.document(&json!(planned))?;
        }
        Format::Text => text(planned, output)?,
    }
    Ok(exit::OK)
}

fn text(planned: &Planned, output: &mut Output) -> std::io::Result<()> {
    let paint = output.paint();
    let topics: Vec<Vec<Cell>> = planned
        .topics
        .iter()
        .map(|topic| {
            let verb = if topic.exists { Cell::plain("keep") } else { Cell::colored("create", AnsiColor::Green) };
            vec![verb, Cell::plain(&topic.name), Cell::plain(topic.partitions.to_string()), Cell::plain(topic.cleanup)]
        })
        .collect();
    output.line(&paint.bold("topics"))?;
    indented(output, &table(&["", "TOPIC", "PARTITIONS", "CLEANUP"], &topics, paint))?;
    for PlannedConnector { name, resumes_at, actions, tables, removed } in &planned.connectors {
        output.line("")?;
        output.line(&paint.bold(&format!("connector {name}")))?;
        output.line(&match resumes_at {
            Some(position) => format!("  resumes at {position}"),
            None if tables.iter().any(|table| table.backfill.action == RowsAction::Read) => {
                "  first start: begins with the changes after it, and reads the rows that are there already".to_owned()
            }
            None => "  first start: begins with the changes after it; rows that are there already are not read".to_owned(),
        })?;
        for action in actions {
            let verb = if action.verb == "keep" { action.verb.to_owned() } else { paint.colored(action.verb, AnsiColor::Green) };
            output.line(&format!("  {verb} {} {}", action.object, action.name))?;
            for line in action.detail.lines() {
                output.line(&format!("      {}", paint.dim(line)))?;
            }
        }
        if !tables.is_empty() {
            let rows: Vec<Vec<Cell>> = tables.iter().map(table_row).collect();
            indented(output, &table(&["TABLE", "ENTITY", "TOPIC", "KEY", "ROWS THAT ARE THERE"], &rows, paint))?;
        }
        for gone in removed {
            let topic = gone.topic.as_ref().map_or_else(String::new, |topic| format!("; its topic {topic} stays"));
            let what = "is not captured any more: what is known of its rows is forgotten";
            output.line(&format!("  {} {} {what}{topic}", paint.colored("forget", AnsiColor::Yellow), gone.table))?;
        }
    }
    Ok(())
}

fn table_row(planned: &PlannedTable) -> Vec<Cell> {
    vec![
        Cell::plain(&planned.table),
        Cell::plain(&planned.entity),
        Cell::plain(&planned.topic),
        Cell::plain(planned.key.join(", ")),
        rows(&planned.backfill),
    ]
}

fn rows(planned: &PlannedRows) -> Cell {
    let about = planned.estimated_rows.map_or_else(String::new, |rows| format!(", about {rows}"));
    let then = if planned.reconcile { ", then tombstones for keys that it lacks" } else { "" };
    match planned.action {
        RowsAction::Read => Cell::colored(format!("backfill{about}{then}"), AnsiColor::Green),
        RowsAction::Continue => Cell::colored(format!("backfill goes on after {}{about}{then}", planned.rows), AnsiColor::Green),
        RowsAction::Paused => Cell::colored(format!("backfill is paused after {}{about}", planned.rows), AnsiColor::Yellow),
        RowsAction::Done => Cell::plain("nothing: all were read"),
        RowsAction::Cancelled => Cell::plain("nothing: its backfill was cancelled"),
        RowsAction::Skip => Cell::plain(format!("not read{about}")),
    }
}

fn indented(output: &mut Output, lines: &[String]) -> std::io::Result<()> {
    for line in lines {
        output.line(format!("  {line}").trim_end())?;
    }
    Ok(())
}
