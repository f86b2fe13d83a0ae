//! `headwater run`.

use std::{path::Path, time::Duration};

use headwater_connector::{Error, fault};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
    time::sleep,
};

use super::{Failure, Outcome, environment, exit, output::Output, progress, start_failed};
use crate::{
    config::plan::Plan,
    http, log,
    pipeline::{Daemon, reload::reload},
    shutdown,
    telemetry::{self, Footer},
};

/// A stop in order may take this long; then it is cut short, which loses nothing.
const STOP: Duration = Duration::from_millis(4500);

/// Everything static is checked before anything is touched; then the pipeline has the process.
pub fn run(config: &Path, output: &mut Output) -> Outcome {
    if let Err(unknown) = fault::load() {
        // Only a test build reads these variables at all.
        return Err(Failure::from(Error::new(&headwater_connector::codes::INVARIANT, unknown)));
    }
    let plan = crate::config::load(config, environment())?;
    if plan.sources.is_empty() {
        // With nothing to run the warning is the error: a daemon that ends at once with 0 would look like success.
        return Err(Failure::Errors(plan.warnings));
    }
    output.warnings(&plan.warnings);
    let footer = telemetry::init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(start_failed).map_err(Failure::from)?;
    let ended = runtime.block_on(daemon(config, plan, footer.as_ref()));
    if let Some(footer) = footer {
        footer.show(&[]);
    }
    // A client library that hangs on a dead server must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(300));
    match ended? {
        errors if errors.is_empty() => Ok(exit::OK),
        errors => Err(Failure::Errors(errors)),
    }
}

/// Runs until a signal, or until every connector has ended; returns their errors.
///
/// HTTP is bound and the log's lock is taken before any connector fences anybody.
async fn daemon(config: &Path, mut plan: Plan, footer: Option<&Footer>) -> Result<Vec<Error>, Failure> {
    let listener = match plan.listen {
        Some(listen) => Some(http::bind(listen).await?),
        None => None,
    };
    let log = log::open(&plan.log, &plan.prefix, log::Mode::Daemon).await?;
    let mut signals = Signals::new().map_err(start_failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(start_failed)?;
    let (trigger, shutdown) = shutdown::channel();
    let daemon = Daemon::start(&plan, &log, &shutdown);
    let handle = daemon.handle();
    if let Some(listener) = listener {
        // Ends with the runtime: status answers as long as anything runs.
        tokio::spawn(http::serve(listener, handle.clone(), shutdown.clone()));
    }
    // A task set ends its tasks when it is dropped.
    let mut bars = JoinSet::new();
    if let Some(footer) = footer {
        bars.spawn(progress::draw(handle.clone(), footer.clone()));
    }
    tracing::info!(log = log.describe(), connectors = plan.sources.len(), "headwater runs");
    let ended = daemon.wait();
    tokio::pin!(ended);
    loop {
        tokio::select! {
            errors = &mut ended => return Ok(errors),
            () = signals.stop() => break,
            _ = hangup.recv() => {
                tracing::info!("SIGHUP: reading the files again");
                // A stop must not wait until a source that is asked about its tables has answered.
                tokio::select! {
                    taken = reload(&handle, &plan, crate::config::load(config, environment())) => plan = taken.unwrap_or(plan),
                    () = signals.stop() => break,
                    errors = &mut ended => return Ok(errors),
                }
            }
        }
    }
    trigger.stop();
    tracing::info!("stopping; a second signal stops at once");
    tokio::select! {
        errors = &mut ended => Ok(errors),
        () = signals.stop() => Ok(Vec::new()),
        () = sleep(STOP) => {
            tracing::warn!("the stop took too long and was cut short; nothing is lost");
            Ok(Vec::new())
        }
    }
}

/// The signals that end a daemon.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn stop(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
