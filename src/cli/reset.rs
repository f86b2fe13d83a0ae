//! `headwater reset`: shows what there is and what would be lost, and does it only for somebody who says the incarnation.

use std::{path::Path, sync::Arc};

use headwater_connector::Error;
use serde_json::json;

use super::{
    Failure, Outcome, block_on, codes, environment, exit,
    output::{Format, Output},
    status,
};
use crate::{
    config::{closest::closest, plan::Plan},
    log::{self, Mode},
    pipeline::{
        codes as pipeline_codes,
        ingest::Ingest,
        reset::{Evidence, Request, evidence, reset},
    },
};

const EXAMPLES: &str = "\
Examples:
  headwater reset shop                       Show what there is, and what would be lost. Changes nothing
  headwater reset shop --incarnation UUID    Give the position up; the next start begins anew
  headwater reset shop --incarnation UUID --rebind --reason 'failed over'
                                             Keep the position, and take the server as it is now";

/// What to do with which checkpoint.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The connector's name in the config.
    connector: String,
    /// The incarnation that the evidence shows; without it nothing is changed.
    #[arg(long, value_name = "UUID")]
    incarnation: Option<String>,
    /// Keep the position and accept the source's new identity: a MariaDB that took
    /// the place of another; a renamed slot, publication or database of PostgreSQL; a restore beyond the position.
    #[arg(long)]
    rebind: bool,
    /// Why, for the audit record.
    #[arg(long, default_value = "")]
    reason: String,
}

/// Shows the evidence, or does it.
pub fn run(config: &Path, args: &Args, output: &mut Output) -> Outcome {
    let plan = crate::config::load(config, environment())?;
    let source = plan.sources.iter().find(|source| source.name == args.connector);
    let source = source.ok_or_else(|| unknown(&plan, &args.connector))?;
    let mode = if args.incarnation.is_some() { Mode::Daemon } else { Mode::Plan };
    if mode == Mode::Daemon {
        require_idle(config, &args.connector)?;
    }
    block_on(async {
        let log = log::open(&plan.log, &plan.prefix, mode).await?;
        let ingest = Ingest::new(&source.name, &plan.prefix, Arc::clone(&source.connector), log, source.events.clone());
        match &args.incarnation {
            None => show(&evidence(&ingest).await?, args, output),
            Some(incarnation) => {
                let (incarnation, era) = reset(&ingest, &request(args, incarnation)).await?;
                done(args, &incarnation.to_string(), era, output)
            }
        }
    })?
}

fn unknown(plan: &Plan, name: &str) -> Error {
    let error = Error::new(&pipeline_codes::UNKNOWN_CONNECTOR, "no connector has this name").at("connector", name);
    error.hint(match closest(name, plan.sources.iter().map(|source| source.name.as_str())) {
        Some(close) => format!("Did you mean {close}?"),
        None => "Name one of the connectors of the config.".to_owned(),
    })
}

/// A connector that runs would be fenced, and would end as if another daemon had taken over.
fn require_idle(config: &Path, connector: &str) -> Result<(), Failure> {
    match status::state_of(config, connector) {
        Some(state) if !["paused", "stopped"].contains(&state.as_str()) => {
            Err(Error::new(&codes::RUNNING, format!("the connector is {state}"))
                .at("connector", connector)
                .hint(format!("Run `headwater pause {connector}` first, or stop the daemon."))
                .into())
        }
        _ => Ok(()),
    }
}

fn request(args: &Args, incarnation: &str) -> Request {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    Request {
        rebind: args.rebind,
        incarnation: incarnation.to_owned(),
        user: std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_default(),
        host: read("/etc/hostname"),
        reason: args.reason.clone(),
    }
}

/// The outlook of what was asked for: what it does, or why it cannot be done.
fn outlook(evidence: &Evidence, rebind: bool) -> Result<String, &Error> {
    let survey = &evidence.survey;
    if rebind {
        survey.rebind.as_ref().map(|_| "The position is kept; nothing is lost or repeated.".to_owned())
    } else {
        survey.anew.as_ref().map(|(sentence, _)| sentence.clone())
    }
}

fn show(evidence: &Evidence, args: &Args, output: &mut Output) -> Outcome {
    let outlook = outlook(evidence, args.rebind);
    match output.format {
        Format::Json => {
            let facts: serde_json::Map<_, _> =
                evidence.survey.facts.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
            let refused = outlook.as_ref().err().map(|error| error.to_string());
            output.document(&json!({
                "connector": args.connector, "incarnation": evidence.incarnation, "era": evidence.era,
                "position": evidence.position, "identity": evidence.identity, "facts": facts,
                "outlook": outlook.as_ref().ok(), "refused": refused,
            }))?;
        }
        Format::Text => {
            let position = evidence.position.as_ref().map_or("none", |position| position.as_str());
            let mut lines = vec![
                ("connector", args.connector.clone()),
                ("incarnation", evidence.incarnation.clone()),
                ("era", evidence.era.to_string()),
                ("position", position.to_owned()),
            ];
            lines.extend(evidence.fault.iter().map(|fault| ("checkpoint", fault.to_string())));
            lines.extend(evidence.survey.facts.iter().cloned());
            for (name, value) in lines {
                output.line(&format!("{name:<14} {value}"))?;
            }
            if let Ok(sentence) = &outlook {
                output.line(&format!("\n{}: {sentence}", if args.rebind { "Rebinding" } else { "Beginning anew" }))?;
            }
        }
    }
    if let Err(error) = outlook {
        return Err(Error::new(error.code(), error.what()).at("connector", &args.connector).hint(error.hint_text()).into());
    }
    let rebind = if args.rebind { " --rebind" } else { "" };
    Err(Error::new(&codes::UNCONFIRMED, "nothing was changed: a reset must be confirmed")
        .at("connector", &args.connector)
        .hint(format!("Run `headwater reset {} --incarnation {}{rebind}`.", args.connector, evidence.incarnation))
        .into())
}

fn done(args: &Args, incarnation: &str, era: u32, output: &mut Output) -> Outcome {
    match output.format {
        Format::Json => output.document(&json!({ "connector": args.connector, "incarnation": incarnation, "era": era }))?,
        Format::Text => {
            let what = if args.rebind { "goes on with the server as it is now" } else { "begins anew at its next start" };
            output.line(&format!(
                "{} {what}: incarnation {incarnation}, era {era}. Start it with `headwater restart {}`, or start the daemon.",
                args.connector, args.connector
            ))?;
        }
    }
    Ok(exit::OK)
}
