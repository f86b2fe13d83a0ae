//! The sessions that read. Each job is a task; the next one waits beside each session, so that a session that is done never waits
//! for the commit that keeps the connector's own task busy. They end with the desk.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use headwater_connector::{
    Batch, Chunk, ChunkRead, ChunkRequest, Cursor, Error, Gate, Result, Schema, SourceConnector, TableReader, codes,
};
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};

use super::{
    super::start::gather,
    reconcile::{Found, Search},
    run::Ticket,
};

/// Memory that an idle batch keeps.
const KEEP_BYTES: usize = 4 << 20;

/// What a reader is asked to do.
#[derive(Clone)]
pub enum Job {
    /// Name what must be visible before the first chunk; the number tells a later question from an earlier one.
    Gate(u64),
    /// Cut a table into ranges.
    Split(String, usize),
    /// Read rows.
    Chunk(ChunkRequest, Ticket),
    /// Look for keys in a table's topic that the table may not have.
    Search(String, Search),
}

impl Job {
    /// The table that it is about; a gate is about all.
    pub fn table(&self) -> &str {
        match self {
            Self::Gate(_) => "",
            Self::Split(table, _) => table,
            Self::Chunk(request, _) => &request.table,
            Self::Search(table, _) => table,
        }
    }
}

/// What came of a job.
pub struct Answer {
    /// The job.
    pub job: Job,
    /// What came of it.
    pub outcome: Outcome,
}

/// See [`Answer`].
pub enum Outcome {
    /// Of [`Job::Gate`]
    Gate(Result<Gate>),
    /// Of [`Job::Split`]
    Split(Result<Vec<Cursor>>),
    /// Of [`Job::Search`]: what was found, and what the table's key is made of.
    Search(Result<(Found, Option<Arc<Schema>>)>),
    /// Of [`Job::Chunk`]
    Chunk {
        /// What was read,
        read: Result<ChunkRead>,
        /// into this,
        batch: Box<Batch>,
        /// in this time.
        took: Duration,
    },
}

/// A chunk that waits to be published.
pub struct ReadyChunk {
    /// `schema.table`
    pub table: String,
    /// Which chunk.
    pub ticket: Ticket,
    /// What is known of its snapshot.
    pub chunk: Chunk,
    /// Its rows.
    pub batch: Batch,
}

/// See the module's page.
pub struct Desk {
    sessions: Arc<Sessions>,
    readers: usize,
    batches: Vec<Batch>,
    tasks: JoinSet<Answer>,
}

/// Sessions that are open and have nothing to do, and the right to use one.
struct Sessions {
    connector: Arc<dyn SourceConnector>,
    idle: Mutex<Vec<Box<dyn TableReader>>>,
    free: Semaphore,
}

impl Desk {
    /// At most so many sessions; none is opened before there is something to do.
    pub fn new(connector: Arc<dyn SourceConnector>, readers: usize) -> Self {
        let readers = readers.max(1);
        let sessions = Sessions { connector, idle: Mutex::new(Vec::new()), free: Semaphore::new(readers) };
        Self { sessions: Arc::new(sessions), readers, batches: Vec::new(), tasks: JoinSet::new() }
    }

    /// Whether another job can start while so many chunks wait to be published: what is read and what waits take memory.
    pub fn has_room(&self, ready: usize) -> bool {
        self.tasks.len() < 2 * self.readers && self.tasks.len() + ready <= 2 * self.readers
    }

    /// Whether a session has nothing to do.
    pub fn is_short(&self) -> bool {
        self.tasks.len() < self.readers
    }

    /// Whether a job is on its way.
    pub fn is_busy(&self) -> bool {
        !self.tasks.is_empty()
    }

    /// Starts a job if there is room.
    pub fn start(&mut self, job: Job) -> bool {
        if !self.has_room(0) {
            return false;
        }
        let sessions = Arc::clone(&self.sessions);
        let mut batch = self.batches.pop().unwrap_or_default();
        batch.clear(KEEP_BYTES);
        self.tasks.spawn(async move {
            // It is never closed; without a permit there would be one session more, and no harm done.
            let _permit = sessions.free.acquire().await;
            sessions.work(job, batch).await
        });
        true
    }

    /// The next job that has ended, if any.
    pub fn next_answer(&mut self) -> Option<Answer> {
        // A reader does not panic; if it did, its chunk would never arrive, and the connector's restart would ask again.
        self.tasks.try_join_next()?.ok()
    }

    /// A batch to be used again.
    pub fn give_back(&mut self, batch: Batch) {
        self.batches.push(batch);
    }

    /// Whether there are sessions.
    pub fn is_open(&self) -> bool {
        !self.tasks.is_empty() || !self.sessions.idle().is_empty()
    }

    /// Ends the sessions.
    pub fn rest(&mut self) {
        self.tasks.abort_all();
        while self.tasks.try_join_next().is_some() {}
        self.batches.clear();
        for reader in self.sessions.idle().drain(..) {
            tokio::spawn(reader.close());
        }
    }
}

impl Sessions {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Box<dyn TableReader>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn work(&self, job: Job, batch: Batch) -> Answer {
        if let Job::Search(table, search) = &job {
            let outcome = Outcome::Search(look(&*self.connector, table, search).await);
            return Answer { job, outcome };
        }
        let idle = self.idle().pop();
        let mut reader = match idle {
            Some(reader) => reader,
            None => match self.connector.reader().await {
                Ok(reader) => reader,
                Err(error) => return Answer { outcome: failed(&job, error), job },
            },
        };
        let outcome = work(&mut *reader, &job, batch).await;
        // After an error the session is in no state that anybody knows.
        if outcome.is_fine() {
            self.idle().push(reader);
        }
        Answer { job, outcome }
    }
}

impl Outcome {
    fn is_fine(&self) -> bool {
        match self {
            Self::Gate(result) => result.is_ok(),
            Self::Split(result) => result.is_ok(),
            Self::Search(_) => true,
            Self::Chunk { read, .. } => read.is_ok(),
        }
    }
}

async fn work(reader: &mut dyn TableReader, job: &Job, mut batch: Batch) -> Outcome {
    match job {
        Job::Gate(_) => Outcome::Gate(reader.gate().await),
        Job::Split(table, parts) => Outcome::Split(reader.split(table, *parts).await),
        Job::Chunk(request, _) => {
            let began = Instant::now();
            let read = reader.read(request, &mut batch).await;
            Outcome::Chunk { read, batch: Box::new(batch), took: began.elapsed() }
        }
        Job::Search(..) => Outcome::Search(Err(Error::new(&codes::INVARIANT, "a reader was asked to search a topic"))),
    }
}

async fn look(connector: &dyn SourceConnector, table: &str, search: &Search) -> Result<(Found, Option<Arc<Schema>>)> {
    let found = search.run().await?;
    if found.keys.is_empty() {
        return Ok((found, None));
    }
    let tables = connector.tables().await.map_err(gather)?;
    Ok((found, tables.into_iter().find(|known| known.schema.table == table).map(|known| known.schema)))
}

fn failed(job: &Job, error: Error) -> Outcome {
    match job {
        Job::Gate(_) => Outcome::Gate(Err(error)),
        Job::Split(..) => Outcome::Split(Err(error)),
        Job::Search(..) => Outcome::Search(Err(error)),
        Job::Chunk(..) => Outcome::Chunk { read: Err(error), batch: Box::default(), took: Duration::ZERO },
    }
}
