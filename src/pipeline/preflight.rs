//! Looking without touching: what `check` and `plan` show.

use headwater_connector::{Action, Error, Finding, Result};
use serde::Serialize;

use super::start::{self, Claims};
use crate::{
    config::plan::{Plan, SourcePlan},
    log::{Cleanup, SharedLog, checkpoint::Checkpoint, topic::InternalTopics},
    mapping::{Routes, rule::OnDataError},
};

/// What `check` found, by the log and each connector.
#[derive(Debug, Default)]
pub struct Preflight {
    /// A name (`log`, or the connector's) and its findings.
    pub groups: Vec<(String, Vec<Finding>)>,
}

/// What `run` would create or change.
#[derive(Debug, Default, Serialize)]
pub struct Planned {
    /// Topics, internal ones included.
    pub topics: Vec<PlannedTopic>,
    /// By connector.
    pub connectors: Vec<PlannedConnector>,
}

/// A topic as it is or will be.
#[derive(Debug, Serialize)]
pub struct PlannedTopic {
    /// The name.
    pub name: String,
    /// Its partitions, or those it will have.
    pub partitions: u32,
    /// Whether it exists.
    pub exists: bool,
    /// `compact` or `delete`.
    pub cleanup: &'static str,
}

/// A connector's part of the plan.
#[derive(Debug, Serialize)]
pub struct PlannedConnector {
    /// Its name.
    pub name: String,
    /// Where it resumes; none on a first start.
    pub resumes_at: Option<String>,
    /// What happens at the server.
    pub actions: Vec<Action>,
    /// The captured tables.
    pub tables: Vec<PlannedTable>,
}

/// A captured table.
#[derive(Debug, Serialize)]
pub struct PlannedTable {
    /// `schema.table`.
    pub table: String,
    /// What a row is called.
    pub entity: String,
    /// Where its events go.
    pub topic: String,
    /// Its key columns.
    pub key: Vec<String>,
    /// Rows that are in the table already, roughly. They are not read.
    pub existing_rows_not_read: Option<u64>,
}

/// Every preflight of the log and of each connector. Changes nothing.
pub async fn preflight(plan: &Plan, log: Result<SharedLog>) -> Preflight {
    let mut groups = Vec::new();
    if !plan.warnings.is_empty() {
        groups.push(("config".to_owned(), plan.warnings.iter().map(|warning| Finding::warning(copy(warning))).collect()));
    }
    let log_findings = match &log {
        Ok(log) => log.check().await.unwrap_or_else(|error| vec![Finding::error(error)]),
        Err(error) => vec![Finding::error(copy(error))],
    };
    groups.push(("log".to_owned(), log_findings));
    let claims = Claims::default();
    for source in &plan.sources {
        groups.push((source.name.clone(), check_source(source, &claims).await));
    }
    Preflight { groups }
}

async fn check_source(source: &SourcePlan, claims: &Claims) -> Vec<Finding> {
    let mut findings = match source.connector.check().await {
        Ok(findings) => findings,
        Err(error) => return vec![Finding::error(error)],
    };
    // Faults of tables are among the connector's own findings; here only what their mapping adds.
    let Ok(tables) = source.connector.tables().await else { return findings };
    match Routes::new(&source.name, &source.events, &tables) {
        Ok(routes) => match claims.claim(&source.name, &routes) {
            Ok(()) => findings.push(Finding::ok(format!("{} tables map to topics of their own", tables.len()))),
            Err(error) => findings.push(Finding::error(error)),
        },
        Err(errors) => findings.extend(errors.into_iter().map(Finding::error)),
    }
    findings
}

/// What `run` would create or change. Changes nothing.
pub async fn planned(plan: &Plan, log: Option<&SharedLog>) -> Result<Planned> {
    let mut planned = Planned::default();
    for source in &plan.sources {
        plan_source(plan, source, log, &mut planned).await?;
    }
    Ok(planned)
}

async fn plan_source(plan: &Plan, source: &SourcePlan, log: Option<&SharedLog>, planned: &mut Planned) -> Result<()> {
    let internal = InternalTopics::new(&plan.prefix, &source.name);
    let tables = source.connector.tables().await.map_err(start::gather)?;
    let routes = Routes::new(&source.name, &source.events, &tables).map_err(start::gather)?;
    let dead_letters = source.events.on_data_error == OnDataError::DeadLetter;
    let specs = start::topic_specs(&internal, &routes, source.events.partitions, dead_letters);
    let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    let states = match log {
        Some(log) => log.topics(&names).await?,
        None => vec![None; names.len()],
    };
    let default_partitions = match log {
        Some(log) => log.default_partitions(),
        None => 1,
    };
    for (spec, state) in specs.iter().zip(states) {
        planned.topics.push(PlannedTopic {
            name: spec.name.clone(),
            partitions: state.as_ref().map_or(spec.partitions.unwrap_or(default_partitions), |state| state.partitions),
            exists: state.is_some(),
            cleanup: match spec.cleanup {
                Cleanup::Compact => "compact",
                Cleanup::Delete => "delete",
            },
        });
    }
    let checkpoint = match log {
        Some(log) => Checkpoint::decode(&internal.checkpoint, &log.last_records(&internal.checkpoint).await?)?,
        None => None,
    };
    let resumes_at = checkpoint.and_then(|checkpoint| checkpoint.position.position).map(|position| position.to_string());
    let planned_table = |table: &headwater_connector::Table| {
        let route = routes.get(&table.schema.table)?;
        Some(PlannedTable {
            table: route.table.clone(),
            entity: route.entity.clone(),
            topic: route.topic.clone(),
            key: table.schema.key_names().into_iter().map(str::to_owned).collect(),
            existing_rows_not_read: table.estimated_rows,
        })
    };
    planned.connectors.push(PlannedConnector {
        name: source.name.clone(),
        actions: source.connector.plan(resumes_at.is_none()).await?,
        resumes_at,
        tables: tables.iter().filter_map(planned_table).collect(),
    });
    Ok(())
}

/// An error holds its cause and cannot be cloned; a finding needs only what can be shown.
fn copy(error: &Error) -> Error {
    let mut copy = Error::new(error.code(), error.what()).hint(error.hint_text());
    for (label, value) in error.place() {
        copy = copy.at(label, value);
    }
    copy
}
