//! Owns the connectors' tasks and decides what an error means.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use headwater_connector::{Error, Kind};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{
    codes,
    handle::{Handle, Status},
    ingest::Ingest,
    start::Claims,
};
use crate::{config::plan::Plan, log::SharedLog, shutdown::Shutdown};

/// The first pause after a failure.
const BACKOFF_FIRST: Duration = Duration::from_millis(200);

/// The longest pause; it goes on for ever at this pace.
const BACKOFF_CAP: Duration = Duration::from_secs(30);

/// What the supervisor does about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Retry,
    Stop,
}

/// The one place that decides. No catch-all: a new kind must be thought about here.
fn action(kind: Kind) -> Action {
    match kind {
        Kind::Retry => Action::Retry,
        Kind::Config | Kind::Environment | Kind::Data | Kind::Lost | Kind::Fenced | Kind::Bug => Action::Stop,
    }
}

/// Pauses that double up to a cap, each between half and all of its length so that instances do not march in step.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let pause = BACKOFF_FIRST.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_CAP);
        self.failures += 1;
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// Runs a connector until the signal or an error that does not pass; returns that error.
pub async fn supervise(ingest: &Ingest, mut shutdown: Shutdown) -> Option<Error> {
    let mut backoff = Backoff::default();
    loop {
        ingest.status.starting();
        let commits = ingest.status.counters.commits.load(Ordering::Relaxed);
        let Err(error) = ingest.run(&mut shutdown).await else {
            ingest.status.stopped(None);
            tracing::info!(connector = %ingest.name, "stopped in order");
            return None;
        };
        if ingest.status.counters.commits.load(Ordering::Relaxed) > commits {
            // The attempt got something done, so the trouble is new: begin with the first pause again.
            backoff = Backoff::default();
        }
        match action(error.kind()) {
            Action::Stop => {
                ingest.status.stopped(Some(&error));
                tracing::error!(connector = %ingest.name, %error, kind = error.kind().name(), "stopped");
                return Some(error);
            }
            Action::Retry => {
                let pause = backoff.next();
                ingest.status.retrying(&error);
                tracing::warn!(connector = %ingest.name, %error, pause_ms = pause.as_millis() as u64, "retrying");
                tokio::select! {
                    () = shutdown.wait() => {}
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }
}

/// The running connectors.
pub struct Daemon {
    handle: Handle,
    tasks: JoinSet<Option<Error>>,
    statuses: Vec<(tokio::task::Id, Arc<Status>)>,
}

impl Daemon {
    /// Starts every connector of the plan, each in a task of its own.
    pub fn start(plan: &Plan, log: &SharedLog, shutdown: &Shutdown) -> Self {
        let claims = Arc::new(Claims::default());
        let writer = Uuid::new_v4();
        let mut tasks = JoinSet::new();
        let mut statuses = Vec::new();
        for source in &plan.sources {
            let connector = Arc::clone(&source.connector);
            let mut ingest = Ingest::new(&source.name, &plan.prefix, connector, Arc::clone(log), source.events.clone());
            ingest.writer = writer;
            ingest.claims = Arc::clone(&claims);
            ingest.commit = source.commit;
            let status = Arc::clone(&ingest.status);
            let shutdown = shutdown.clone();
            let task = tasks.spawn(async move { supervise(&ingest, shutdown).await });
            statuses.push((task.id(), status));
        }
        let connectors = statuses.iter().map(|(_, status)| Arc::clone(status)).collect();
        Self { handle: Handle { connectors }, tasks, statuses }
    }

    /// For status and metrics.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits until every connector has ended; returns the errors of those that did not end in order.
    pub async fn wait(mut self) -> Vec<Error> {
        let mut errors = Vec::new();
        while let Some(ended) = self.tasks.join_next().await {
            match ended {
                Ok(error) => errors.extend(error),
                Err(failure) => {
                    let error = Error::new(&codes::PANICKED, "the connector's task panicked")
                        .hint("Restart headwater to resume from the checkpoint, and report the log.");
                    if let Some((_, status)) = self.statuses.iter().find(|(id, _)| *id == failure.id()) {
                        status.stopped(Some(&error));
                        tracing::error!(connector = status.name(), %error, "stopped");
                    }
                    errors.push(error);
                }
            }
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_cap_and_stay_there() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..40).map(|_| backoff.next()).collect();
        assert!(pauses[0] >= BACKOFF_FIRST / 2 && pauses[0] <= BACKOFF_FIRST);
        assert!(pauses[20..].iter().all(|pause| *pause >= BACKOFF_CAP / 2 && *pause <= BACKOFF_CAP));
    }
}
