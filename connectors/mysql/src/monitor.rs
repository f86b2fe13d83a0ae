//! Lag at the moment of asking, measured over a session of its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use headwater_connector::{Error, Monitor, Position, Result, Retention, Standing};
use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};

use crate::{
    catalog::cell,
    config::Server,
    connection::Connection,
    drift::Drift,
    dump,
    gtid::{FilePlace, Gtid, GtidSet},
    history, inspect,
    position::{Place, Spot},
    retention::Rules,
};

/// How long the stream is given to bring what the server has.
const PAUSE: Duration = Duration::from_millis(300);

/// What the decoder knew when it last stood between two transactions with nothing left to decode.
#[derive(Clone, Debug)]
pub struct Quiet {
    /// Everything of it is decoded.
    pub set: GtidSet,
    /// The last transaction that had changes for us.
    pub last_change: Option<Gtid>,
}

/// See the module's page.
pub struct StreamMonitor {
    server: Server,
    session: Arc<Mutex<Option<Connection>>>,
    quiet: watch::Receiver<Quiet>,
    read_to: AtomicU32,
    /// When nothing was unread last, by the server's clock.
    had_all: AtomicU32,
    drift: Drift,
}

impl StreamMonitor {
    /// Connects at the first question.
    pub fn new(server: Server, quiet: watch::Receiver<Quiet>, drift: Drift) -> Self {
        Self { server, session: Arc::default(), quiet, read_to: AtomicU32::default(), had_all: AtomicU32::default(), drift }
    }

    /// The stream has come to what the server wrote at this time, in seconds since 1970.
    pub fn came_to(&self, time: u32) {
        self.read_to.store(time, Ordering::Relaxed);
    }

    /// Without a stream, for what the server keeps meanwhile.
    pub fn without_stream(server: Server) -> Self {
        let (_, quiet) = watch::channel(Quiet { set: GtidSet::Places(FilePlace { file: 0, at: 0 }), last_change: None });
        Self::new(server, quiet, Drift::default())
    }

    /// What is unread was written at this time or later; 0 if nothing is known.
    fn known_to(&self) -> u32 {
        self.read_to.load(Ordering::Relaxed).max(self.had_all.load(Ordering::Relaxed))
    }

    /// What has come of the stream, while there is one: after its end nobody knows what of it is committed.
    fn came(&self) -> Option<GtidSet> {
        self.quiet.has_changed().is_ok().then(|| self.quiet.borrow().set.clone())
    }

    async fn ask<T>(&self, question: impl AsyncFn(&mut Connection) -> Result<T>) -> Result<T> {
        let mut session = self.session.lock().await;
        // A session that sat idle may have been ended by the server: one fresh try.
        if let Some(mut connection) = session.take()
            && let Ok(found) = question(&mut connection).await
        {
            *session = Some(connection);
            return Ok(found);
        }
        let mut connection = Connection::open(&self.server).await?;
        let found = question(&mut connection).await?;
        *session = Some(connection);
        Ok(found)
    }
}

/// The server's rules, and what time it is there, in seconds since 1970.
async fn rules(connection: &mut Connection) -> Result<(Rules, u64)> {
    let rules = Rules::of(connection).await?;
    let now = connection.value("SELECT UNIX_TIMESTAMP()").await?;
    Ok((rules, now.and_then(|text| text.split('.').next()?.parse().ok()).unwrap_or_default()))
}

/// Seconds until what was not read may be deleted, if it was written at or after `read_to`.
fn left(keeps: u64, now: u64, read_to: u32, is_behind: bool) -> u64 {
    let age = if is_behind { now.saturating_sub(read_to.into()) } else { 0 };
    keeps.saturating_sub(age)
}

async fn end_of_log(connection: &mut Connection) -> Result<(GtidSet, Spot, Vec<Spot>)> {
    let (set, spot) = inspect::end(connection).await?;
    let rows = connection.query("SHOW BINARY LOGS").await?;
    let files = rows.iter().map(|row| Spot::new(cell(row, 0), cell(row, 1).parse().unwrap_or(0)));
    Ok((set, spot, files.collect()))
}

/// Bytes between two places; of a file that is gone, or of another server, nothing is known and all that is there counts.
fn between(from: &Spot, end: &Spot, files: &[Spot]) -> u64 {
    if from.file == end.file {
        return end.at.saturating_sub(from.at);
    }
    let first = files.iter().position(|file| file.file == from.file);
    let sum: u64 = files[first.unwrap_or(0)..].iter().map(|file| file.at).sum();
    if first.is_some() { sum.saturating_sub(from.at) } else { sum }
}

#[async_trait]
impl Monitor for StreamMonitor {
    fn findings(&self) -> Vec<Error> {
        self.drift.findings()
    }

    async fn lag_bytes(&self, committed: &Position) -> Result<u64> {
        let place = Place::from_position(committed)?;
        let (set, end, files) = self.ask(end_of_log).await?;
        let set = if place.is_of_files() { inspect::up_to(&end).unwrap_or(set) } else { set };
        if place.partial.is_none() && place.set.covers(&set) {
            return Ok(0);
        }
        // The checkpoint lags behind irrelevant traffic on purpose (it is not written for each transaction of no interest), so ask the
        // stream: if all that the server has came, and all of interest in it is committed, nothing is owed.
        let mut quiet = self.quiet.clone();
        let came = timeout(PAUSE, quiet.wait_for(|quiet| quiet.set.covers(&set))).await;
        // A stream that ended brings nothing more.
        let came = matches!(came, Ok(Ok(_)));
        let last_change = self.quiet.borrow().last_change;
        if came && place.partial.is_none() && last_change.is_none_or(|gtid| place.set.contains(gtid)) {
            return Ok(0);
        }
        Ok(between(&place.spot, &end, &files).max(1))
    }

    async fn retention(&self, committed: &Position) -> Result<Retention> {
        let place = Place::from_position(committed)?;
        let (Rules { seconds, bytes }, now) = self.ask(rules).await?;
        let (set, end, files) = self.ask(end_of_log).await?;
        // The whole file is kept, or none of it.
        let left_bytes = bytes.map(|most| most.saturating_sub(between(&Spot::new(&place.spot.file, 0), &end, &files)));
        let Some(keeps) = seconds else { return Ok(Retention { left_bytes, ..Retention::default() }) };
        let set = if place.is_of_files() { inspect::up_to(&end).unwrap_or(set) } else { set };
        let has_all = place.partial.is_none() && place.set.covers(&set);
        let is_behind = !has_all && !self.came().is_some_and(|came| came.covers(&set));
        if !is_behind {
            self.had_all.fetch_max(now as u32, Ordering::Relaxed);
        } else if self.known_to() == 0 {
            // Nothing has come that tells how old the rest is, so the server is asked for the first of it.
            let mut connection = Connection::open(&self.server).await?;
            let found = inspect::identity(&mut connection).await?;
            history::require(&mut connection, &self.server, &place, &found).await?;
            if let Some(time) = dump::first_time(connection, &place).await? {
                self.came_to(time);
            }
        }
        let read_to = self.known_to();
        let left_seconds = (read_to > 0).then(|| left(keeps, now, read_to, is_behind));
        Ok(Retention { left_seconds, left_bytes, ..Retention::default() })
    }

    fn standing(&self, committed: &Position) -> Standing {
        let Ok(place) = Place::from_position(committed) else { return Standing::default() };
        Standing {
            file_number: Some(place.spot.mark().file),
            position_bytes: Some(place.spot.at),
            gtid_set: (!place.is_of_files()).then(|| place.set.to_string()),
            file: Some(place.spot.file),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_old_and_unread_has_less_time() {
        assert_eq!(left(3600, 10_000, 4_000, false), 3600, "everything was read");
        assert_eq!(left(3600, 10_000, 9_000, true), 2600);
        assert_eq!(left(3600, 10_000, 1_000, true), 0);
    }

    #[test]
    fn bytes_are_counted_over_files() {
        let spot = Spot::new;
        let files = [spot("a.1", 100), spot("a.2", 200), spot("a.3", 50)];
        assert_eq!(between(&spot("a.3", 10), &files[2], &files), 40);
        assert_eq!(between(&spot("a.1", 30), &files[2], &files), 320);
        assert_eq!(between(&spot("gone", 30), &files[2], &files), 350);
    }
}
