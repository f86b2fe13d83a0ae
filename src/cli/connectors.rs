//! `headwater connectors`.

use headwater_connector::{ConnectorKind, Error};
use serde_json::{Value as Json, json};

use super::{
    Outcome, exit,
    output::{Cell, Format, Output, table},
};
use crate::{
    config::{codes, reference},
    registry::{CONNECTORS, find},
};

/// Which kind.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  headwater connectors\n  headwater connectors postgres --format json")]
pub struct Args {
    /// The kind whose options are printed; without it all kinds are listed.
    kind: Option<String>,
}

/// Lists the kinds, or prints the reference of one.
pub fn run(args: &Args, output: &mut Output) -> Outcome {
    print(CONNECTORS, args.kind.as_deref(), output)
}

/// [`run`] for any kinds.
pub fn print(kinds: &[&'static dyn ConnectorKind], wanted: Option<&str>, output: &mut Output) -> Outcome {
    let Some(wanted) = wanted else { return list(kinds, output) };
    let kind = find(kinds, wanted).map_err(|close| {
        let error = Error::new(&codes::UNKNOWN_KIND, format!("no kind of connector is called {wanted:?}"));
        error.hint(match close {
            Some(close) => format!("Did you mean {close}? Run `headwater connectors {close}`."),
            None => "Run `headwater connectors` to see all kinds.".to_owned(),
        })
    })?;
    match output.format {
        Format::Json => {
            let mut document = describe(kind);
            document["source"] = json!({ "options": plain(reference::source_options(kind)) });
            output.document(&document)?;
        }
        Format::Text => text(kind, output)?,
    }
    Ok(exit::OK)
}

/// Without the marks of Markdown, which mean nothing to a program.
fn plain(rows: Option<Vec<reference::OptionRow>>) -> Option<Vec<reference::OptionRow>> {
    let rows = rows?.into_iter().map(|row| reference::OptionRow { r#type: row.r#type.replace('`', ""), ..row });
    Some(rows.collect())
}

fn list(kinds: &[&'static dyn ConnectorKind], output: &mut Output) -> Outcome {
    match output.format {
        Format::Json => {
            let kinds: Vec<Json> = kinds.iter().map(|kind| describe(*kind)).collect();
            output.document(&json!({ "connectors": kinds }))?;
        }
        Format::Text => {
            let cells = |kind: &&'static dyn ConnectorKind| {
                let names: Vec<&str> = std::iter::once(kind.name()).chain(kind.synonyms().iter().copied()).collect();
                vec![Cell::plain(names.join(", ")), Cell::plain(roles(*kind).join(", ")), Cell::plain(kind.summary())]
            };
            let rows: Vec<Vec<Cell>> = kinds.iter().map(cells).collect();
            for line in table(&["KIND", "ROLES", "WHAT"], &rows, output.paint()) {
                output.line(&line)?;
            }
        }
    }
    Ok(exit::OK)
}

fn roles(kind: &dyn ConnectorKind) -> Vec<&'static str> {
    kind.source_options().map(|_| "source").into_iter().collect()
}

fn describe(kind: &dyn ConnectorKind) -> Json {
    json!({ "kind": kind.name(), "synonyms": kind.synonyms(), "roles": roles(kind), "summary": kind.summary() })
}

/// One paragraph per option: descriptions are too long for the columns of a table.
fn text(kind: &dyn ConnectorKind, output: &mut Output) -> std::io::Result<()> {
    let paint = output.paint();
    output.line(&format!("{}: {}", paint.bold(kind.name()), kind.summary()))?;
    let Some(rows) = reference::source_options(kind) else {
        return output.line("\nIt has no source.");
    };
    output.line("\nOptions of `source`:")?;
    let width = output.width.unwrap_or(100).clamp(40, 110) - 6;
    for row in rows {
        let default = row.default.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        let rest = match (row.required, default) {
            (true, _) => "required".to_owned(),
            (false, Some(default)) => format!("default {default}"),
            (false, None) => "optional".to_owned(),
        };
        output.line("")?;
        output.line(&format!(
            "  {}  {}",
            paint.bold(&row.name),
            paint.dim(&format!("{}; {rest}", row.r#type.replace('`', "")))
        ))?;
        for paragraph in row.description.lines() {
            for line in wrapped(paragraph, width) {
                output.line(&format!("      {line}"))?;
            }
        }
    }
    Ok(())
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last().map_or(0, |line| line.chars().count());
        if line > 0 && line + 1 + word.chars().count() > width {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}
