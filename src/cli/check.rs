//! `headwater check`.

use std::{fmt::Write as _, path::Path};

use headwater_connector::{Error, Finding, Kind, Level};
use serde_json::{Value as Json, json};

use super::{
    Outcome, block_on, environment, exit,
    output::{Format, Output, error_json, mark, push_details},
};
use crate::pipeline::preflight::{self, Preflight};

/// Reads the config, connects, and prints every finding.
pub fn run(config: &Path, output: &mut Output) -> Outcome {
    let plan = match crate::config::load(config, environment()) {
        Ok(plan) => plan,
        Err(errors) => {
            output.errors(&errors);
            let code = exit::gravest(errors.iter().map(Error::kind));
            // A program that reads the document learns of faults in the files as well.
            if output.format == Format::Json {
                let findings = errors.into_iter().map(Finding::error).collect();
                print(&Preflight { groups: vec![("config".to_owned(), findings)] }, output)?;
            }
            return Ok(code);
        }
    };
    let mut preflight = block_on(preflight::preflight(&plan))?;
    let mut findings = vec![Finding::ok(format!("{} read", config.display()))];
    findings.extend(plan.warnings.into_iter().map(Finding::warning));
    preflight.groups.insert(0, ("config".to_owned(), findings));
    print(&preflight, output)
}

/// Prints the findings and returns the exit code that they give.
pub fn print(preflight: &Preflight, output: &mut Output) -> Outcome {
    let all = || preflight.groups.iter().flat_map(|(_, findings)| findings);
    let count = |level: Level| all().filter(|finding| finding.level == level).count();
    let (errors, warnings) = (count(Level::Error), count(Level::Warning));
    match output.format {
        Format::Json => {
            let groups: Vec<Json> = preflight
                .groups
                .iter()
                .map(
                    |(name, findings)| json!({ "name": name, "findings": findings.iter().map(finding_json).collect::<Vec<_>>() }),
                )
                .collect();
            output.document(&json!({ "groups": groups, "errors": errors, "warnings": warnings }))?;
        }
        Format::Text => {
            let paint = output.paint();
            let mut text = String::new();
            for (name, findings) in &preflight.groups {
                let _ = writeln!(text, "{}", paint.bold(name));
                for finding in findings {
                    let code = finding.error.as_ref().map(|error| format!("{}: ", error.code().id)).unwrap_or_default();
                    let _ = writeln!(text, "  {} {code}{}", mark(finding.level, paint), finding.what);
                    if let Some(error) = &finding.error {
                        push_details(&mut text, error, "      ", paint);
                    }
                }
            }
            let _ = writeln!(text, "{}, {}", counted(errors, "error"), counted(warnings, "warning"));
            output.bytes(text.as_bytes())?;
        }
    }
    let kinds = all().filter(|finding| finding.level == Level::Error);
    Ok(exit::of_check(kinds.map(|finding| finding.error.as_ref().map_or(Kind::Environment, Error::kind))))
}

fn counted(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

fn finding_json(finding: &Finding) -> Json {
    let mut json = json!({ "level": finding.level, "what": finding.what });
    if let (Some(object), Some(error)) = (json.as_object_mut(), &finding.error) {
        object.insert("error".into(), error_json(error));
    }
    json
}
