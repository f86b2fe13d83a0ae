//! New files while the daemon runs: everything that would refuse a start refuses the change, and the old config stays.

use std::sync::PoisonError;

use headwater_connector::{Error, Kind};

use super::{
    claims::Claims,
    codes,
    daemon::Change,
    handle::Handle,
    now_text,
    start::{gather, routes_of},
};
use crate::config::plan::{Plan, SourcePlan};

/// Takes what was read from the files, or keeps what runs and says why.
///
/// Connectors that did not change are not touched. Those that changed are tried against their source first, while the old ones
/// go on: only what the new files say wrong refuses the change; a source that is away does not.
pub async fn reload(handle: &Handle, running: &Plan, loaded: Result<Plan, Vec<Error>>) -> Option<Plan> {
    let loaded_at = now_text();
    let tried = match loaded {
        // A daemon without connectors would end at once; the warning says what is missing.
        Ok(plan) if plan.sources.is_empty() => Err(plan.warnings),
        Ok(plan) => check(handle, running, &plan).await.map(|()| plan),
        Err(errors) => Err(errors),
    };
    match tried {
        Err(errors) => {
            for error in &errors {
                tracing::error!(%error, "the new config is not taken; the old one goes on");
            }
            let mut config = handle.shared.config.write().unwrap_or_else(PoisonError::into_inner);
            config.errors = errors.iter().map(Into::into).collect();
            None
        }
        Ok(plan) => {
            let (changed, removed) = difference(running, &plan);
            let names: Vec<&str> = changed.iter().map(|source| source.name.as_str()).collect();
            tracing::info!(started_anew = ?names, ?removed, "the new config is in force");
            // The daemon that is ending takes no more orders, and needs none.
            let _ = handle.apply(Change { sources: plan.sources.clone(), loaded_at }).await;
            Some(plan)
        }
    }
}

/// The connectors that are new or different, and the names of those that are gone.
fn difference<'a>(running: &'a Plan, plan: &'a Plan) -> (Vec<&'a SourcePlan>, Vec<&'a str>) {
    let same = |source: &&SourcePlan| {
        !running.sources.iter().any(|old| old.name == source.name && old.fingerprint == source.fingerprint)
    };
    let gone = |old: &&SourcePlan| !plan.sources.iter().any(|source| source.name == old.name);
    (plan.sources.iter().filter(same).collect(), running.sources.iter().filter(gone).map(|old| old.name.as_str()).collect())
}

async fn check(handle: &Handle, running: &Plan, plan: &Plan) -> Result<(), Vec<Error>> {
    let mut errors = Vec::new();
    for (part, same) in [("log", running.log_fingerprint == plan.log_fingerprint), ("http", running.listen == plan.listen)] {
        if !same {
            let error = Error::new(&codes::RELOAD_REFUSED, "this part cannot change while the daemon runs").at("option", part);
            errors.push(error.hint("Restart the daemon, or take the change back and send SIGHUP again."));
        }
    }
    let (changed, removed) = difference(running, plan);
    let mut leaving = removed;
    leaving.extend(changed.iter().map(|source| source.name.as_str()));
    let claims = handle.claims.without(&leaving);
    for source in changed {
        errors.extend(try_one(source, &claims).await);
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// What the new options of a connector say wrong, as far as its source can be asked now.
async fn try_one(source: &SourcePlan, claims: &Claims) -> Option<Error> {
    let routes = match source.connector.tables().await {
        Ok(tables) => routes_of(&source.name, &*source.connector, &source.events, &tables),
        Err(errors) => Err(errors),
    };
    let tried = routes.map_err(gather).and_then(|routes| claims.claim(&source.name, &routes));
    tried.err().filter(|error| error.kind() == Kind::Config).map(|error| error.at("connector", &source.name))
}
