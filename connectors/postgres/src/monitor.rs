//! Lag at the moment of asking, measured over a session of its own.

use std::{
    sync::{Arc, Mutex as Shown, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use headwater_connector::{Error, Monitor, Position, Result, Retention, Standing};
use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};

use crate::{
    config::Server,
    connection::{Connection, Purpose, literal},
    error::protocol,
    position::{Lsn, Place},
    slot::END_OF_LOG,
    stream::Shared,
};

/// How often, and how far apart, the server is asked how far it has read.
const ASKS: u32 = 6;
const PAUSE: Duration = Duration::from_millis(50);

/// What the decoder knew when it last stood between two transactions with nothing left to decode.
#[derive(Clone, Copy, Debug)]
pub struct Quiet {
    /// The server had read its log to here, and everything of interest up to here was decoded.
    pub read_to: Lsn,
    /// End of the last transaction that had changes for us.
    pub changes_end: Lsn,
}

/// See the module's page.
pub struct StreamMonitor {
    server: Server,
    slot: String,
    session: Mutex<Option<Connection>>,
    shared: Arc<Shared>,
    quiet: watch::Receiver<Quiet>,
    drift: Arc<Shown<Vec<Error>>>,
}

impl StreamMonitor {
    /// Connects at the first question.
    pub fn new(
        server: Server,
        slot: &str,
        shared: Arc<Shared>,
        quiet: watch::Receiver<Quiet>,
        drift: Arc<Shown<Vec<Error>>>,
    ) -> Self {
        Self { server, slot: slot.to_owned(), session: Mutex::new(None), shared, quiet, drift }
    }

    /// Without a stream, for what the slot keeps meanwhile.
    pub fn without_stream(server: Server, slot: &str) -> Self {
        let (_, quiet) = watch::channel(Quiet { read_to: Lsn(0), changes_end: Lsn(0) });
        Self::new(server, slot, Arc::new(Shared::new(Lsn(0))), quiet, Arc::default())
    }

    async fn end_of_log(&self) -> Result<Lsn> {
        let row = self.ask(&format!("SELECT {END_OF_LOG}")).await?;
        let text = row.first().and_then(Option::as_deref).unwrap_or_default();
        text.parse().map_err(|()| protocol("the server's log position cannot be read"))
    }

    /// The first row of the answer; empty if it has none.
    async fn ask(&self, sql: &str) -> Result<Vec<Option<String>>> {
        let mut session = self.session.lock().await;
        // A session that sat idle may have been ended by the server: one fresh try.
        if let Some(mut connection) = session.take()
            && let Ok(rows) = connection.query(sql).await
        {
            *session = Some(connection);
            return Ok(rows.into_iter().next().unwrap_or_default());
        }
        let mut connection = Connection::open(&self.server, Purpose::Sql).await?;
        let rows = connection.query(sql).await?;
        *session = Some(connection);
        Ok(rows.into_iter().next().unwrap_or_default())
    }
}

#[async_trait]
impl Monitor for StreamMonitor {
    async fn lag_bytes(&self, committed: &Position) -> Result<u64> {
        let place = Place::from_position(committed)?;
        let end = self.end_of_log().await?;
        if place.partial.is_none() && place.base >= end {
            return Ok(0);
        }
        // The checkpoint lags behind an idle server's log on purpose (it is not written for every record of no interest), so
        // ask the stream: if the server has read all of its log and all it sent is committed, nothing is owed.
        let mut quiet = self.quiet.clone();
        for _ in 0..ASKS {
            self.shared.ask();
            if timeout(PAUSE, quiet.wait_for(|quiet| quiet.read_to >= end)).await.is_ok() {
                break;
            }
        }
        let seen = *self.quiet.borrow();
        if seen.read_to >= end && place.partial.is_none() && place.base >= seen.changes_end {
            return Ok(0);
        }
        Ok(end.0.saturating_sub(place.base.0).max(1))
    }

    async fn retention(&self, _: &Position) -> Result<Retention> {
        let slot = literal(&self.slot);
        let row = self
            .ask(&format!(
                "SELECT trunc(pg_wal_lsn_diff({END_OF_LOG}, restart_lsn)), greatest(safe_wal_size, 0) \
                 FROM pg_replication_slots WHERE slot_name = {slot}"
            ))
            .await?;
        let number = |at: usize| row.get(at).and_then(Option::as_deref).and_then(|text| text.parse().ok());
        Ok(Retention { held_bytes: number(0), left_bytes: number(1), left_seconds: None })
    }

    fn standing(&self, committed: &Position) -> Standing {
        let position_bytes = Place::from_position(committed).ok().map(|place| place.base.0);
        Standing { position_bytes, ..Standing::default() }
    }

    fn findings(&self) -> Vec<Error> {
        let copy = |error: &Error| {
            let again = Error::new(error.code(), error.what()).hint(error.hint_text());
            error.place().iter().fold(again, |again, (label, value)| again.at(label, value))
        };
        self.drift.lock().unwrap_or_else(PoisonError::into_inner).iter().map(copy).collect()
    }
}
