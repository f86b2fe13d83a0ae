//! `headwater explain`.

use headwater_connector::{Code, Error};
use serde_json::{Value as Json, json};

use super::{
    Outcome, codes, exit,
    output::{Cell, Format, Output, table},
};
use crate::{config, config::closest::closest, http, log, mapping, pipeline, registry::CONNECTORS};

/// Which code.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  headwater explain HW1002\n  headwater explain --format json")]
pub struct Args {
    /// The code, as errors print it; without it all codes are listed.
    code: Option<String>,
}

/// Every code of the daemon and of the connectors, in the order of their numbers. A module with codes is named here once.
pub fn all() -> Vec<&'static Code> {
    let own = [
        headwater_connector::codes::ALL,
        config::codes::ALL,
        codes::ALL,
        mapping::codes::ALL,
        pipeline::codes::ALL,
        http::codes::ALL,
        log::codes::ALL,
        log::embedded::codes::ALL,
        log::kafka::codes::ALL,
    ];
    let kinds = CONNECTORS.iter().map(|kind| kind.codes());
    let mut all: Vec<&'static Code> = own.into_iter().chain(kinds).flatten().copied().collect();
    all.sort_by_key(|code| code.id);
    all
}

/// Prints a page, or the list.
pub fn run(args: &Args, output: &mut Output) -> Outcome {
    let all = all();
    let Some(wanted) = &args.code else { return list(&all, output) };
    let Some(code) = all.iter().find(|code| code.id.eq_ignore_ascii_case(wanted.trim())) else {
        let error = Error::new(&codes::UNKNOWN_CODE, format!("no error code {wanted:?} is known"));
        let hint = match closest(wanted, all.iter().map(|code| code.id)) {
            Some(close) => format!("Did you mean {close}? Run `headwater explain {close}`."),
            None => "Run `headwater explain` to see all codes.".to_owned(),
        };
        return Err(error.hint(hint).into());
    };
    match output.format {
        Format::Json => output.document(&json_of(code, true))?,
        Format::Text => output.line(code.page.trim_end())?,
    }
    Ok(exit::OK)
}

fn list(all: &[&Code], output: &mut Output) -> Outcome {
    match output.format {
        Format::Json => {
            let codes: Vec<Json> = all.iter().map(|code| json_of(code, false)).collect();
            output.document(&json!({ "codes": codes }))?;
        }
        Format::Text => {
            let cells = |code: &&Code| vec![Cell::plain(code.id), Cell::plain(code.kind.name()), Cell::plain(code.title)];
            let rows: Vec<Vec<Cell>> = all.iter().map(cells).collect();
            for line in table(&["CODE", "KIND", "WHAT"], &rows, output.paint()) {
                output.line(&line)?;
            }
        }
    }
    Ok(exit::OK)
}

fn json_of(code: &Code, with_page: bool) -> Json {
    let mut json = json!({ "code": code.id, "kind": code.kind.name(), "title": code.title });
    if let Some(object) = json.as_object_mut().filter(|_| with_page) {
        object.insert("page".into(), code.page.into());
    }
    json
}
