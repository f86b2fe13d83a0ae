//! `headwater backfill`: rows that are there already, read again or held back, through the running daemon.

use std::path::{Path, PathBuf};

use headwater_connector::Error;

use super::{
    Failure, Outcome, codes, control, exit,
    output::{Cell, Format, Output, table},
    status::human_seconds,
};
use crate::pipeline::backfill::order::{Action, Request};

const EXAMPLES: &str = "\
Examples:
  headwater backfill shop --list                              What is read, and how far
  headwater backfill shop public.orders                       Read all rows of a table (again)
  headwater backfill shop public.orders --where \"region = 7\"  Read some rows
  headwater backfill shop public.orders --column day --from 2026-11-01
  headwater backfill shop public.orders --keys keys.jsonl     One key per line, as in the topic: {\"id\":1}
  headwater backfill shop public.orders --reconcile           Also tombstones for keys that the table lacks
  headwater backfill shop public.orders --first               Before all others, also one that is being read already
  headwater backfill shop public.orders --pause               Hold it; then --resume, or --cancel";

/// Which rows, or what to do about those that are being read.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The connector's name in the config.
    connector: String,
    /// The table, as schema.table.
    #[arg(required_unless_present = "list")]
    table: Option<String>,
    /// Read only rows that meet this SQL condition.
    #[arg(long = "where", value_name = "SQL", conflicts_with = "reconcile")]
    condition: Option<String>,
    /// Read only rows with these keys: a file with one JSON object per line, as in the topic. - reads standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "reconcile")]
    keys: Option<PathBuf>,
    /// Read only rows whose --column is at least this.
    #[arg(long, value_name = "VALUE", requires = "column", conflicts_with = "reconcile")]
    from: Option<String>,
    /// See --from.
    #[arg(long, value_name = "COLUMN", requires = "from")]
    column: Option<String>,
    /// When all rows are read, put a tombstone for every key of the topic that the table does not have.
    #[arg(long)]
    reconcile: bool,
    /// Read this table before all others, also if it is being read already. With --resume: go on, and before all others.
    #[arg(long, conflicts_with_all = ["pause", "cancel", "list"])]
    first: bool,
    #[command(flatten)]
    act: Act,
}

/// What to do instead of starting.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Act {
    /// Stop reading, and keep how far it got.
    #[arg(long)]
    pause: bool,
    /// Go on where it was paused.
    #[arg(long)]
    resume: bool,
    /// Stop reading, and forget how far it got.
    #[arg(long)]
    cancel: bool,
    /// Show the tables and how far their rows are read.
    #[arg(long)]
    list: bool,
}

/// Asks the daemon to do it and prints how the tables are then.
pub fn run(config: &Path, args: &Args, output: &mut Output) -> Outcome {
    if args.act.list {
        let connector = super::status::connector(config, &args.connector)?;
        return print(&connector, args.table.as_deref(), output);
    }
    let request = Request {
        table: args.table.clone().unwrap_or_default(),
        action: match &args.act {
            Act { pause: true, .. } => Action::Pause,
            Act { resume: true, .. } => Action::Resume,
            Act { cancel: true, .. } => Action::Cancel,
            _ => Action::Start,
        },
        condition: args.condition.clone(),
        keys: args.keys.as_deref().map(keys).transpose()?.unwrap_or_default(),
        from: args.from.clone(),
        column: args.column.clone(),
        reconcile: args.reconcile,
        first: args.first,
    };
    let body = serde_json::to_value(&request).expect("a request is plain data");
    let connector = control::ask(config, &args.connector, "backfill", Some(&body))?;
    print(&connector, args.table.as_deref(), output)
}

/// The keys of a file, one per line.
fn keys(file: &Path) -> Result<Vec<serde_json::Map<String, serde_json::Value>>, Failure> {
    let text = match file.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(file),
    };
    let text = text.map_err(|error| {
        Error::new(&codes::KEYS_UNREADABLE, "the file of keys cannot be read")
            .at("file", file.display())
            .hint("Name a file of text with one key per line.")
            .caused_by(error)
    })?;
    let mut keys = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        // The parser's own words would quote the line.
        let key = serde_json::from_str(line).map_err(|_| {
            Error::new(&codes::KEYS_UNREADABLE, "a line is not a JSON object")
                .at("file", file.display())
                .at("line", at + 1)
                .hint("Write one key per line as in the topic, for example {\"id\":1}.")
        })?;
        keys.push(key);
    }
    if keys.is_empty() {
        return Err(Error::new(&codes::KEYS_UNREADABLE, "the file holds no key")
            .at("file", file.display())
            .hint("Write one key per line as in the topic, for example {\"id\":1}.")
            .into());
    }
    Ok(keys)
}

fn print(connector: &serde_json::Value, only: Option<&str>, output: &mut Output) -> Outcome {
    let none = Vec::new();
    let tables = connector["backfills"].as_array().unwrap_or(&none);
    let tables: Vec<&serde_json::Value> =
        tables.iter().filter(|table| only.is_none_or(|only| table["table"].as_str() == Some(only))).collect();
    if output.format == Format::Json {
        output.document(&serde_json::json!({ "backfills": tables }))?;
        return Ok(exit::OK);
    }
    if tables.is_empty() {
        output.line("No rows are or were read.")?;
        return Ok(exit::OK);
    }
    let rows: Vec<Vec<Cell>> = tables.iter().map(|table| row(table)).collect();
    let paint = output.paint();
    for line in table(&["TABLE", "STATE", "TURN", "READ", "OF ABOUT", "PUBLISHED", "LEFT", "WAITS FOR"], &rows, paint) {
        output.line(&line)?;
    }
    for error in tables.iter().filter(|table| table["error"].is_object()) {
        let of = |name: &str| error["error"][name].as_str().unwrap_or_default().to_owned();
        output.line(&format!(
            "\n{} {}: {}\n  hint: {}",
            error["table"].as_str().unwrap_or_default(),
            of("code"),
            of("message"),
            of("hint")
        ))?;
    }
    Ok(exit::OK)
}

fn row(table: &serde_json::Value) -> Vec<Cell> {
    let text = |name: &str| match &table[name] {
        serde_json::Value::Null => "-".to_owned(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let left = table["seconds_left"].as_f64().map_or_else(|| "-".to_owned(), human_seconds);
    vec![
        Cell::plain(text("table")),
        Cell::plain(text("state")),
        Cell::plain(text("turn")),
        Cell::plain(text("rows")),
        Cell::plain(text("estimated_rows")),
        Cell::plain(text("published")),
        Cell::plain(left),
        Cell::plain(text("waiting")),
    ]
}
