//! Lag at the moment of asking, measured over a session of its own.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use headwater_connector::{Monitor, Position, Result};
use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};

use crate::{
    config::Server,
    connection::{Connection, Purpose},
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
    session: Mutex<Option<Connection>>,
    shared: Arc<Shared>,
    quiet: watch::Receiver<Quiet>,
}

impl StreamMonitor {
    /// Connects at the first question.
    pub fn new(server: Server, shared: Arc<Shared>, quiet: watch::Receiver<Quiet>) -> Self {
        Self { server, session: Mutex::new(None), shared, quiet }
    }

    async fn end_of_log(&self) -> Result<Lsn> {
        let mut session = self.session.lock().await;
        // A session that sat idle may have been ended by the server: one fresh try.
        if let Some(mut connection) = session.take()
            && let Ok(end) = ask_end(&mut connection).await
        {
            *session = Some(connection);
            return Ok(end);
        }
        let mut connection = Connection::open(&self.server, Purpose::Sql).await?;
        let end = ask_end(&mut connection).await?;
        *session = Some(connection);
        Ok(end)
    }
}

async fn ask_end(connection: &mut Connection) -> Result<Lsn> {
    let rows = connection.query(&format!("SELECT {END_OF_LOG}")).await?;
    let text = rows.first().and_then(|row| row.first()).and_then(Option::as_deref).unwrap_or_default();
    text.parse().map_err(|()| protocol("the server's log position cannot be read"))
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
}
