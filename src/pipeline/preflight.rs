//! Looking without touching: what `check` and `plan` show.

use std::collections::{BTreeMap, HashSet};

use headwater_connector::{Action, Error, Finding, Result, Table};
use serde::Serialize;

use super::{backfill, claims::Claims, codes, start};
use crate::{
    config::plan::{Plan, SourcePlan},
    log::{
        self, Cleanup, Mode, SharedLog, TopicSpec, TopicState,
        checkpoint::{BackfillState, Checkpoint, TableBackfill},
        topic::InternalTopics,
    },
    mapping::{Place, Routes, rule::OnDataError},
};

/// With less time than this somebody has to act today.
const NEARLY_LOST_S: u64 = 86_400;

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
    /// Tables that were captured before and are not any more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<RemovedTable>,
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
    /// What happens to the rows that are in it already.
    pub backfill: PlannedRows,
}

/// What `run` would do about the rows of a table that are there already.
#[derive(Debug, Serialize)]
pub struct PlannedRows {
    /// The kind.
    pub action: RowsAction,
    /// Rows read so far.
    pub rows: u64,
    /// Rows in the table, roughly.
    pub estimated_rows: Option<u64>,
    /// Whether keys of the topic that the table does not have get a tombstone in the end.
    pub reconcile: bool,
}

/// See [`PlannedRows`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RowsAction {
    /// All are read.
    Read,
    /// Reading goes on where it was.
    Continue,
    /// Nothing until somebody resumes it.
    Paused,
    /// Nothing: all were read.
    Done,
    /// Nothing: somebody ended it.
    Cancelled,
    /// Nothing: only changes become events.
    Skip,
}

/// A table that is not captured any more: what is known of its rows is forgotten, its topic stays.
#[derive(Debug, Serialize)]
pub struct RemovedTable {
    /// `schema.table`.
    pub table: String,
    /// Where its events went; none if it never had one.
    pub topic: Option<String>,
}

/// Every preflight of the log and of each connector. Changes nothing.
pub async fn preflight(plan: &Plan) -> Preflight {
    let log = log::open(&plan.log, &plan.prefix, Mode::Plan).await;
    let checked = match &log {
        Ok(log) => log.check().await.map(|findings| (findings, Some(log))),
        Err(_) => Ok((Vec::new(), None)),
    };
    // Only a log that answers is asked about topics.
    let (mut findings, answering) = checked.unwrap_or_else(|error| (vec![Finding::error(error)], None));
    let claims = Claims::default();
    let mut groups = Vec::new();
    for source in &plan.sources {
        groups.push((source.name.clone(), check_source(plan, source, answering, &claims).await));
    }
    findings.extend(log.err().map(Finding::error));
    groups.insert(0, ("log".to_owned(), findings));
    Preflight { groups }
}

async fn check_source(plan: &Plan, source: &SourcePlan, log: Option<&SharedLog>, claims: &Claims) -> Vec<Finding> {
    let mut findings = match source.connector.check().await {
        Ok(findings) => findings,
        Err(error) => return vec![Finding::error(error)],
    };
    if let Some(log) = log {
        findings.extend(kept(plan, source, log).await);
    }
    // Faults of tables are among the connector's own findings; here only what their mapping adds.
    let Ok(tables) = source.connector.tables().await else { return findings };
    match start::routes_of(&source.name, &*source.connector, &source.events, &tables) {
        Ok(routes) => {
            match claim(plan, source, log, (&routes, claims)).await {
                Ok(()) if tables.len() == 1 => findings.push(Finding::ok("1 table maps to a topic of its own")),
                Ok(()) => findings.push(Finding::ok(format!("{} tables map to topics of their own", tables.len()))),
                Err(error) => findings.push(Finding::error(error)),
            }
            if let Some(log) = log {
                findings.extend(check_topics(plan, source, log, &routes).await);
            }
        }
        Err(errors) => findings.extend(errors.into_iter().map(Finding::error)),
    }
    findings
}

/// Whether the source's server still has what is behind the checkpoint, and for how long, where it deletes by age.
async fn kept(plan: &Plan, source: &SourcePlan, log: &SharedLog) -> Option<Finding> {
    let topic = InternalTopics::new(&plan.prefix, &source.name).checkpoint;
    // A checkpoint that cannot be read is told where topics are looked at.
    let position = Checkpoint::decode(&topic, &log.peek_records(&topic).await.ok()?).ok()??.position.position?;
    let retention = match source.connector.monitor(&position)?.retention(&position).await {
        Ok(retention) => retention,
        Err(error) => return Some(Finding::error(error)),
    };
    let seconds = retention.left_seconds?;
    let left = format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600);
    Some(match seconds {
        NEARLY_LOST_S.. => Finding::ok(format!("the source keeps what follows the checkpoint for {left}")),
        _ => Finding::warning(
            Error::new(&codes::NEARLY_LOST, format!("the source may delete what was not read in {left}"))
                .at("connector", &source.name)
                .hint(
                    "Start the connector now, or have the server keep its log for longer; `headwater explain HW1186` shows how.",
                ),
        ),
    })
}

/// Takes the topics of a source as a start would.
async fn claim(plan: &Plan, source: &SourcePlan, log: Option<&SharedLog>, (routes, claims): (&Routes, &Claims)) -> Result<()> {
    if let Some(log) = log {
        let topic = InternalTopics::new(&plan.prefix, &source.name).checkpoint;
        let checkpoint = Checkpoint::decode(&topic, &log.peek_records(&topic).await?)?;
        let pinned = checkpoint.map(|checkpoint| checkpoint.state.partitions).unwrap_or_default();
        let others = plan.sources.iter().map(|other| other.name.clone()).filter(|name| *name != source.name);
        claims.refuse_owned(&**log, &plan.prefix, &others.collect::<Vec<_>>(), (routes, &pinned)).await?;
    }
    claims.claim(&source.name, routes)
}

/// The topics of a source as the log knows them.
async fn check_topics(plan: &Plan, source: &SourcePlan, log: &SharedLog, routes: &Routes) -> Vec<Finding> {
    let internal = InternalTopics::new(&plan.prefix, &source.name);
    let dead_letters = source.events.on_data_error == OnDataError::DeadLetter;
    // Counts are compared with those that are pinned, at the start.
    let specs = start::topic_specs(&internal, routes, None, (dead_letters, false));
    log.check_topics(&specs).await.unwrap_or_else(|error| vec![Finding::error(error)])
}

/// What `run` would create or change. Changes nothing.
pub async fn planned(plan: &Plan) -> Result<Planned> {
    let log = log::open(&plan.log, &plan.prefix, Mode::Plan).await?;
    let mut planned = Planned::default();
    for source in &plan.sources {
        plan_source(plan, source, &log, &mut planned).await?;
    }
    Ok(planned)
}

async fn plan_source(plan: &Plan, source: &SourcePlan, log: &SharedLog, planned: &mut Planned) -> Result<()> {
    let internal = InternalTopics::new(&plan.prefix, &source.name);
    let tables = source.connector.tables().await.map_err(start::gather)?;
    let routes = start::routes_of(&source.name, &*source.connector, &source.events, &tables).map_err(start::gather)?;
    let dead_letters = source.events.on_data_error == OnDataError::DeadLetter;
    let specs = start::topic_specs(&internal, &routes, source.events.partitions, (dead_letters, false));
    let names: Vec<String> = specs.iter().map(|spec| spec.name.clone()).collect();
    let states = log.topics(&names).await?;
    let existed = names.iter().zip(&states).filter_map(|(name, state)| state.as_ref().map(|_| name.clone())).collect();
    planned.topics.extend(specs.iter().zip(states).map(|(spec, state)| planned_topic(spec, state, log.default_partitions())));
    let checkpoint = Checkpoint::decode(&internal.checkpoint, &log.peek_records(&internal.checkpoint).await?)?;
    let resumes_at = checkpoint.as_ref().and_then(|checkpoint| checkpoint.position.position.as_ref()).map(ToString::to_string);
    let fresh = resumes_at.is_none();
    let mut rows = plan_rows(source, &routes, checkpoint.as_ref(), &existed);
    planned.connectors.push(PlannedConnector {
        name: source.name.clone(),
        actions: source.connector.plan(fresh).await?,
        resumes_at,
        tables: tables.iter().filter_map(|table| planned_table(table, &routes, &mut rows)).collect(),
        removed: removed(checkpoint.as_ref(), &routes),
    });
    Ok(())
}

fn planned_topic(spec: &TopicSpec, state: Option<TopicState>, default_partitions: u32) -> PlannedTopic {
    PlannedTopic {
        name: spec.name.clone(),
        exists: state.is_some(),
        partitions: state.map_or(spec.partitions.unwrap_or(default_partitions), |state| state.partitions),
        cleanup: match spec.cleanup {
            Cleanup::Compact => "compact",
            Cleanup::Delete => "delete",
        },
    }
}

/// What the next start will know of the rows of tables, by the rule of the start itself.
fn plan_rows(
    source: &SourcePlan,
    routes: &Routes,
    checkpoint: Option<&Checkpoint>,
    existed: &HashSet<String>,
) -> BTreeMap<String, PlannedRows> {
    let before = checkpoint.map(|checkpoint| checkpoint.state.backfills.clone()).unwrap_or_default();
    let is_first_start = checkpoint.is_none_or(|checkpoint| checkpoint.position.position.is_none());
    let place =
        checkpoint.map_or(Place { era: 0, seq: 1 }, |known| Place { era: known.position.era, seq: known.position.seq + 1 });
    let mut after = before.clone();
    backfill::enlist(&mut after, source.connector.backfill().mode, routes, existed, (is_first_start, place));
    let planned = |(table, known): (String, TableBackfill)| {
        let action = match known.state {
            BackfillState::Running if before.contains_key(&table) && known.rows > 0 => RowsAction::Continue,
            BackfillState::Running => RowsAction::Read,
            BackfillState::Paused => RowsAction::Paused,
            BackfillState::Done => RowsAction::Done,
            BackfillState::Cancelled => RowsAction::Cancelled,
            BackfillState::Skipped => RowsAction::Skip,
        };
        let estimated_rows = known.estimated.or_else(|| routes.get(&table)?.estimated_rows);
        (table, PlannedRows { action, rows: known.rows, estimated_rows, reconcile: known.reconcile.is_some() })
    };
    after.into_iter().map(planned).collect()
}

fn removed(checkpoint: Option<&Checkpoint>, routes: &Routes) -> Vec<RemovedTable> {
    let Some(Checkpoint { state, .. }) = checkpoint else { return Vec::new() };
    let gone = state.backfills.keys().filter(|table| routes.get(table).is_none());
    gone.map(|table| RemovedTable { table: table.clone(), topic: state.tables.get(table).map(|known| known.topic.clone()) })
        .collect()
}

fn planned_table(table: &Table, routes: &Routes, rows: &mut BTreeMap<String, PlannedRows>) -> Option<PlannedTable> {
    let route = routes.get(&table.schema.table)?;
    Some(PlannedTable {
        table: route.table.clone(),
        entity: route.entity.clone(),
        topic: route.topic.clone(),
        key: table.schema.key_names().into_iter().map(str::to_owned).collect(),
        backfill: rows.remove(&table.schema.table)?,
    })
}
