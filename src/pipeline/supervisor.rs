//! Runs one connector and decides what an error means.

use std::{sync::atomic::Ordering, time::Duration};

use headwater_connector::{Error, Kind};

use super::{codes, ingest::Ingest};
use crate::shutdown::Shutdown;

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
        if error.code().id == codes::PAUSED.id {
            ingest.status.paused();
            tracing::info!(connector = %ingest.name, "{}", error.what());
            return Some(error);
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
