//! Looks from the side at what a running stream depends on and cannot tell: a publication that loses a table, or that is dropped and
//! created again, just falls silent.

use std::{sync::Arc, time::Duration};

use headwater_connector::{Error, Kind};
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use crate::{
    catalog::{Catalog, TableFacts},
    config::Settings,
    publication,
};

/// How often the catalogue is asked.
const EVERY: Duration = Duration::from_secs(5);

/// A watch over the publication while a source is open.
pub struct Watch {
    found: oneshot::Receiver<Error>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Begins with a session of its own. `publication` is the object id, `tables` are those that were read when the source was opened.
    pub fn start(settings: Arc<Settings>, publication: u32, tables: Vec<TableFacts>) -> Self {
        let (tell, found) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut catalog = Catalog::new(settings.server.clone());
            let mut ticks = interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let error = loop {
                ticks.tick().await;
                match publication::require_unchanged(&mut catalog, &settings, publication, &tables).await {
                    Ok(()) => {}
                    // The stream itself notices a server that is gone.
                    Err(error) if error.kind() == Kind::Retry => {}
                    Err(error) => break error,
                }
            };
            let _ = tell.send(error);
            catalog.rest().await;
        });
        Self { found, task }
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
