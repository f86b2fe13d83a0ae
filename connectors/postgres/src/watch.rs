//! Looks from the side at what a running stream depends on and cannot tell: a publication that loses a table, or that is dropped and
//! created again, just falls silent.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use headwater_connector::{Error, Kind};
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use crate::{
    catalog::{Catalog, TableFacts},
    config::Settings,
    drift::Drift,
    publication,
};

/// How often the catalogue is asked.
const EVERY: Duration = Duration::from_secs(5);

/// A watch over the publication while a source is open.
pub struct Watch {
    found: oneshot::Receiver<Error>,
    drift: Arc<Mutex<Vec<Error>>>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Begins with a session of its own. `publication` is the object id, `tables` are those that were read when the source was opened.
    pub fn start(settings: Arc<Settings>, publication: u32, tables: Vec<TableFacts>) -> Self {
        let (tell, found) = oneshot::channel();
        let drift = Arc::<Mutex<Vec<Error>>>::default();
        let shown = Arc::clone(&drift);
        let task = tokio::spawn(async move {
            let mut drift = Drift::default();
            let mut catalog = Catalog::new(&settings);
            let mut ticks = interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let error = loop {
                ticks.tick().await;
                match publication::require_unchanged(&mut catalog, &settings, publication, &tables).await {
                    // A look that failed is made again at the next tick.
                    Ok(()) => {
                        if drift.look(&mut catalog, &settings, &tables).await.is_ok() {
                            *shown.lock().unwrap_or_else(PoisonError::into_inner) = drift.findings();
                        }
                    }
                    // The stream itself notices a server that is gone.
                    Err(error) if error.kind() == Kind::Retry => {}
                    Err(error) => break error,
                }
            };
            let _ = tell.send(error);
            catalog.rest().await;
        });
        Self { found, drift, task }
    }

    /// Where it shows what differs between tables and topics.
    pub fn drift(&self) -> Arc<Mutex<Vec<Error>>> {
        Arc::clone(&self.drift)
    }

    /// What it has found; once.
    pub fn finding(&mut self) -> Option<Error> {
        self.found.try_recv().ok()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
