//! `headwater pause`, `resume` and `restart`: through the running daemon.

use std::{path::Path, time::Duration};

use headwater_connector::Error;
use serde::Deserialize;

use super::{
    Failure, Outcome, exit, explain,
    output::{Format, Output},
    status::{address, agent, bad_answer, no_daemon},
};

/// A connector that is told to end finishes its commit first.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Which connector.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The connector's name in the config.
    connector: String,
}

#[derive(Deserialize)]
struct Answer {
    connector: Option<serde_json::Value>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    code: String,
    message: String,
    hint: String,
}

/// Asks the daemon to do it and prints how the connector is then.
pub fn run(config: &Path, action: &str, args: &Args, output: &mut Output) -> Outcome {
    let connector = ask(config, &args.connector, action, None)?;
    match output.format {
        Format::Json => output.document(&connector)?,
        Format::Text => output.line(&format!("{} is {}.", args.connector, connector["state"].as_str().unwrap_or("unknown")))?,
    }
    Ok(exit::OK)
}

/// Has the daemon do something to a connector; how it is then, or why it was refused.
pub(super) fn ask(
    config: &Path,
    connector: &str,
    action: &str,
    body: Option<&serde_json::Value>,
) -> Result<serde_json::Value, Failure> {
    let address = address(config)?;
    let mut url = url::Url::parse(&format!("http://{address}/v1/connectors")).expect("an address makes a URL");
    url.path_segments_mut().expect("an http URL has a path").extend([connector, action]);
    let request = agent(TIMEOUT).post(url.as_str());
    let answer = match body {
        Some(body) => request.header("content-type", "application/json").send(body.to_string()),
        None => request.send_empty(),
    };
    let mut answer = answer.map_err(|error| no_daemon(address, error))?;
    let unreadable = || bad_answer(address, "the answer is not one of headwater");
    let body = answer.body_mut().read_to_string().map_err(|_| unreadable())?;
    let answer: Answer = serde_json::from_str(&body).map_err(|_| unreadable())?;
    if let Some(refusal) = answer.error {
        let code = explain::all().into_iter().find(|code| code.id == refusal.code).ok_or_else(unreadable)?;
        return Err(Error::new(code, refusal.message).hint(refusal.hint).into());
    }
    answer.connector.ok_or_else(|| unreadable().into())
}
