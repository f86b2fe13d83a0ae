//! `headwater status`.

use std::{fmt::Write as _, net::SocketAddr, path::Path, time::Duration};

use anstyle::AnsiColor;
use headwater_connector::Error;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    Failure, Outcome, codes, environment, exit,
    output::{Cell, Format, Output, table},
    progress::{self, Rows},
};
use crate::pipeline::codes::UNKNOWN_CONNECTOR;

const TIMEOUT: Duration = Duration::from_secs(5);

/// The answer of the daemon, as far as the text form shows it.
#[derive(Debug, Deserialize)]
struct Status {
    connectors: Vec<Connector>,
    #[serde(default)]
    config: Option<Config>,
}

#[derive(Debug, Deserialize)]
struct Config {
    loaded_at: String,
    errors: Vec<LastError>,
}

#[derive(Debug, Deserialize)]
struct Connector {
    name: String,
    role: String,
    state: String,
    #[serde(default)]
    position: Option<serde_json::Value>,
    #[serde(default)]
    lag: Option<Lag>,
    #[serde(default)]
    source: Place,
    #[serde(default)]
    error: Option<LastError>,
    #[serde(default)]
    backfills: Vec<Rows>,
    #[serde(default)]
    findings: Vec<LastError>,
}

/// Where a source stands in the words of its server; not all kinds know all of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Place {
    log_file: Option<String>,
    log_position_bytes: Option<u64>,
    gtid_set: Option<String>,
    retained_bytes: Option<u64>,
    safe_bytes: Option<u64>,
    safe_seconds: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Lag {
    #[serde(default)]
    bytes: Option<u64>,
    #[serde(default)]
    seconds: Option<f64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct LastError {
    code: String,
    message: String,
    #[serde(default)]
    hint: Option<String>,
}

/// Asks the daemon and prints its answer.
pub fn run(config: &Path, output: &mut Output) -> Outcome {
    let address = address(config)?;
    let body = ask(address)?;
    print(&body, address, output)
}

/// Where the daemon of this config listens.
pub(super) fn address(config: &Path) -> Result<SocketAddr, Failure> {
    crate::config::load_http(config, environment())?.ok_or_else(|| {
        let error = Error::new(&codes::HTTP_OFF, "http.listen is off, so no daemon can be asked").at("file", config.display());
        error.hint("Set http.listen to 127.0.0.1:8787 and restart the daemon.").into()
    })
}

/// The state of a connector in the running daemon; none without a daemon, or if it does not have the connector.
pub(super) fn state_of(config: &Path, connector: &str) -> Option<String> {
    let body = ask(address(config).ok()?).ok()?;
    let status: Status = serde_json::from_str(&body).ok()?;
    status.connectors.into_iter().find(|found| found.name == connector).map(|found| found.state)
}

/// One connector of the running daemon, as it says itself.
pub(super) fn connector(config: &Path, name: &str) -> Result<serde_json::Value, Failure> {
    let address = address(config)?;
    let body = ask(address)?;
    let unreadable = |_| bad_answer(address, "the answer is not a status of headwater");
    let mut status: serde_json::Value = serde_json::from_str(&body).map_err(unreadable)?;
    let all = status["connectors"].as_array_mut().map(std::mem::take).unwrap_or_default();
    let names: Vec<String> = all.iter().filter_map(|found| found["name"].as_str().map(str::to_owned)).collect();
    all.into_iter().find(|found| found["name"].as_str() == Some(name)).ok_or_else(|| {
        let error = Error::new(&UNKNOWN_CONNECTOR, "no connector has this name").at("connector", name);
        let close = crate::config::closest::closest(name, names.iter().map(String::as_str));
        error
            .hint(close.map_or_else(
                || "Run `headwater status` to see the connectors.".to_owned(),
                |close| format!("Did you mean {close}?"),
            ))
            .into()
    })
}

/// A client that waits this long, and through no proxy: the daemon is on this machine.
pub(super) fn agent(timeout: Duration) -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(timeout)).http_status_as_error(false).proxy(None).build().into()
}

/// Nobody answered at this address.
pub(super) fn no_daemon(address: SocketAddr, error: ureq::Error) -> Error {
    let error = Error::new(&codes::NO_DAEMON, "no daemon answers").at("address", address).caused_by(plainly(error));
    error.hint("Start it with `headwater run`, or name its config file with -c.")
}

fn ask(address: SocketAddr) -> Result<String, Error> {
    let answer = agent(TIMEOUT).get(format!("http://{address}/v1/status")).call();
    let mut answer = answer.map_err(|error| no_daemon(address, error))?;
    if answer.status() != 200 {
        return Err(bad_answer(address, format!("the answer is HTTP {}", answer.status().as_u16())));
    }
    answer.body_mut().read_to_string().map_err(|error| bad_answer(address, "the answer cannot be read").caused_by(error))
}

/// Without the client's own prefix, which says nothing to an operator.
fn plainly(error: ureq::Error) -> Box<dyn std::error::Error + Send + Sync> {
    match error {
        ureq::Error::Io(error) => error.into(),
        other => other.into(),
    }
}

pub(super) fn bad_answer(address: SocketAddr, what: impl Into<String>) -> Error {
    let error = Error::new(&codes::BAD_ANSWER, what).at("address", address);
    error.hint("Check which program listens there; set http.listen to a free port if it is not headwater.")
}

/// Prints an answer; JSON goes through as it is.
pub(super) fn print(body: &str, address: SocketAddr, output: &mut Output) -> Outcome {
    let unreadable = |_| bad_answer(address, "the answer is not a status of headwater");
    let status: Status = serde_json::from_str(body).map_err(unreadable)?;
    match output.format {
        Format::Json => {
            let document: &RawValue = serde_json::from_str(body).map_err(unreadable)?;
            output.line(document.get().trim())?;
        }
        Format::Text => text(&status, output)?,
    }
    Ok(exit::OK)
}

fn text(status: &Status, output: &mut Output) -> std::io::Result<()> {
    if status.connectors.is_empty() {
        return output.line("The daemon runs, without connectors.");
    }
    let paint = output.paint();
    let rows: Vec<Vec<Cell>> = status.connectors.iter().map(row).collect();
    let lines = table(&["CONNECTOR", "ROLE", "STATE", "LAG", "BEHIND", "POSITION"], &rows, paint);
    for line in lines {
        output.line(&line)?;
    }
    for connector in &status.connectors {
        if connector.state == "paused" {
            let name = paint.bold(&connector.name);
            output.line(&format!("\n{name} is paused until `headwater resume {}`.", connector.name))?;
        }
        write_place(connector, output)?;
        if let Some(error) = &connector.error {
            write_error(&connector.name, error, output)?;
        }
        write_rows(connector, output)?;
        connector.findings.iter().try_for_each(|finding| write_error(&connector.name, finding, output))?;
    }
    let Some(config) = status.config.as_ref().filter(|config| !config.errors.is_empty()) else { return Ok(()) };
    output.line(&format!("\nNewer config files were not taken; those of {} are in force:", config.loaded_at))?;
    config.errors.iter().try_for_each(|error| write_error("config", error, output))
}

/// Where a connector stands in its server's log, and what the server keeps for it where that has an end.
fn write_place(connector: &Connector, output: &mut Output) -> std::io::Result<()> {
    let place = &connector.source;
    let mut parts = Vec::new();
    if let (Some(file), Some(at)) = (&place.log_file, place.log_position_bytes) {
        parts.push(format!("{file}, byte {at}"));
    }
    parts.extend(place.gtid_set.as_ref().filter(|set| !set.is_empty()).map(|set| format!("GTIDs {set}")));
    // What a connector that runs has kept for it is no news.
    if !matches!(connector.state.as_str(), "streaming" | "backfilling") {
        parts.extend(place.retained_bytes.map(|bytes| format!("the source keeps {} of log for it", human_bytes(bytes))));
        parts.extend(place.safe_bytes.map(|bytes| format!("it gives up after {} more", human_bytes(bytes))));
    }
    parts.extend(place.safe_seconds.map(|left| match left {
        0 => "the source may delete what was not read at any time".to_owned(),
        _ => format!("the source may delete what was not read in {}", human_seconds(left as f64)),
    }));
    match parts.is_empty() {
        true => Ok(()),
        false => output.line(&format!("\n{}: {}", output.paint().bold(&connector.name), parts.join("; "))),
    }
}

fn write_rows(connector: &Connector, output: &mut Output) -> std::io::Result<()> {
    let lines = progress::lines(&connector.name, &connector.backfills, output.paint());
    if !lines.is_empty() {
        output.line("")?;
    }
    lines.iter().try_for_each(|line| output.line(line))?;
    let failed = |table: &Rows, output: &mut Output| match &table.error {
        Some(error) => write_error(&format!("{} {}", connector.name, table.table), error, output),
        None => Ok(()),
    };
    connector.backfills.iter().try_for_each(|table| failed(table, output))
}

fn write_error(name: &str, error: &LastError, output: &mut Output) -> std::io::Result<()> {
    let paint = output.paint();
    let mut text = String::new();
    let _ = writeln!(text, "\n{} {}: {}", paint.bold(name), paint.colored(&error.code, AnsiColor::Red), error.message);
    if let Some(hint) = error.hint.as_deref().filter(|hint| !hint.is_empty()) {
        let _ = writeln!(text, "  {} {}", paint.colored("hint:", AnsiColor::Cyan), hint.replace('\n', "\n        "));
    }
    output.bytes(text.as_bytes())
}

fn row(connector: &Connector) -> Vec<Cell> {
    let color = match connector.state.as_str() {
        "streaming" => AnsiColor::Green,
        "starting" | "backfilling" | "paused" => AnsiColor::Yellow,
        _ => AnsiColor::Red,
    };
    let bytes = connector.lag.as_ref().and_then(|lag| lag.bytes);
    let seconds = connector.lag.as_ref().and_then(|lag| lag.seconds);
    let position = match &connector.position {
        None | Some(serde_json::Value::Null) => "-".to_owned(),
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    vec![
        Cell::plain(&connector.name),
        Cell::plain(&connector.role),
        Cell::colored(&connector.state, color),
        Cell::plain(bytes.map_or_else(|| "-".to_owned(), human_bytes)),
        Cell::plain(seconds.map_or_else(|| "-".to_owned(), human_seconds)),
        Cell::plain(position),
    ]
}

pub(super) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

pub(super) fn human_seconds(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..60 => format!("{:.1} s", seconds.max(0.0)),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}
