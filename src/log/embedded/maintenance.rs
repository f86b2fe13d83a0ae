//! The thread that compacts and tidies, and the preflight of the log.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use headwater_connector::{Error, Finding, Result};
use rusqlite::Connection;

use super::{
    codes,
    compaction::{self, TUNING, Tuning},
    error::{Fault, not_writable},
    file::{self, Durability, Files, WAL_BYTES},
    reader::ReadSide,
    topics,
    writer::SharedWriteSide,
};
use crate::log::Cleanup;

/// How often the thread looks at the size of the write-ahead log.
const TICK: Duration = Duration::from_secs(2);

/// The first round comes soon: a daemon that is restarted often must compact, too.
const FIRST_ROUND: Duration = Duration::from_secs(10);

/// Maintenance gives way at once when a foreign program holds a lock; there is another round.
const BUSY_TIMEOUT: Duration = Duration::from_millis(100);

/// How long a round waits at most for a moment in which not much is written, as it is while tables are read for the first time: then
/// hardly anything is superseded, and what reads the log takes its share of the disk and of the CPU.
const PATIENCE: Duration = Duration::from_secs(60);

/// The write-ahead log filled up so shortly before: much is written.
const BUSY: Duration = Duration::from_secs(5);

/// How often the size of the write-ahead log is looked at.
const GLANCE: Duration = Duration::from_millis(100);

/// `check` reads the file for at most this long.
const CHECK_TIME: Duration = Duration::from_secs(5);

/// Below this space is called little; on small disks below a twentieth of the disk.
const LITTLE_BYTES: u64 = 1 << 30;

/// Why a round ended early.
#[derive(Debug)]
pub(super) enum Halt {
    /// The log is being closed.
    Stopped,
    Fault(Fault),
}

impl<E: Into<Fault>> From<E> for Halt {
    fn from(error: E) -> Self {
        Self::Fault(error.into())
    }
}

/// The running thread.
pub(super) struct Maintenance {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Maintenance {
    /// A thread of its own, not tasks: the work is long and blocks, and an async runtime would wait for it.
    pub(super) fn start(files: Files, writes: SharedWriteSide, interval: Duration, keep: Duration) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let worker = Worker { files: files.clone(), writes, stop: Arc::clone(&stop), tuning: TUNING, keep };
        let spawned = thread::Builder::new().name("log-maintenance".to_owned()).spawn(move || worker.run(interval));
        let thread = spawned.map_err(|error| not_writable(&files.dir, "cannot start the log's maintenance", error))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Maintenance {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic there was reported by the thread itself and has no other consequence.
            let _ = thread.join();
        }
    }
}

/// What the thread works with.
pub(super) struct Worker {
    pub(super) files: Files,
    pub(super) writes: SharedWriteSide,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) tuning: Tuning,
    /// How long records stay in topics that are not compacted.
    pub(super) keep: Duration,
}

impl Worker {
    fn run(&self, interval: Duration) {
        let mut due = Instant::now() + interval.min(FIRST_ROUND);
        let mut next_try = Instant::now();
        let mut filled = None;
        loop {
            thread::park_timeout(GLANCE.min(interval));
            let mut result = self.proceed();
            if result.is_ok() && self.files.wal_bytes() > WAL_BYTES && Instant::now() >= next_try {
                filled = Some(Instant::now());
                result = self.empty_wal();
                if self.files.wal_bytes() > WAL_BYTES {
                    // A reader is still in it.
                    next_try = Instant::now() + TICK;
                }
            }
            let is_busy = filled.is_some_and(|at| at.elapsed() < BUSY) && Instant::now() < due + PATIENCE;
            if result.is_ok() && Instant::now() >= due && !is_busy {
                result = self.round(now_ms());
                due = Instant::now() + interval;
            }
            match result {
                Ok(()) => {}
                Err(Halt::Stopped) => return,
                Err(Halt::Fault(fault)) => {
                    let error = fault.name(&self.files.database(), "cannot tidy the log");
                    tracing::warn!(code = error.code().id, %error, "the log was not tidied; the next round tries again");
                }
            }
        }
    }

    /// One round over all partitions.
    pub(super) fn round(&self, now_ms: i64) -> Result<(), Halt> {
        let mut connection = self.connect()?;
        compaction::mark(self, &mut connection, now_ms, self.keep)?;
        for topic in topics::all(&connection)?.into_values() {
            for partition in 0..topic.partitions {
                let part = topic.part(partition);
                match topic.cleanup {
                    Cleanup::Compact => compaction::compact(self, &mut connection, part, now_ms)?,
                    Cleanup::Delete => {
                        compaction::expire(self, &mut connection, part, now_ms - self.keep.as_millis() as i64)?;
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn empty_wal(&self) -> Result<(), Halt> {
        let connection = self.connect()?;
        // Most of it is copied while connectors go on committing, and then what came meanwhile; they wait for the rest only.
        for _ in 0..2 {
            connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        }
        connection.busy_timeout(Duration::ZERO)?;
        // A reader that stays too long is no error: it answers "busy" in a row, and the next tick tries again.
        self.exclusive(|| connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())))
    }

    /// A connection for one round: between rounds it would only hold memory.
    fn connect(&self) -> Result<Connection, Halt> {
        let connection = file::open_for_writing(&self.files, Durability::Later)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        Ok(connection)
    }

    /// Whether to go on.
    pub(super) fn proceed(&self) -> Result<(), Halt> {
        if self.stop.load(Ordering::Acquire) { Err(Halt::Stopped) } else { Ok(()) }
    }

    /// Runs `work` while no connector commits, then gives way for as long as it took.
    pub(super) fn exclusive<T>(&self, work: impl FnOnce() -> rusqlite::Result<T>) -> Result<T, Halt> {
        let guard = self.wait_for(self.writes.lock())?;
        guard.verify_identity()?;
        let begin = Instant::now();
        let result = work();
        drop(guard);
        thread::park_timeout(begin.elapsed());
        Ok(result?)
    }

    /// Waits for its turn among the connectors, or for the stop: whoever stops us may be the one that we wait for.
    fn wait_for<T>(&self, turn: impl Future<Output = T>) -> Result<T, Halt> {
        let mut turn = pin!(turn);
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            self.proceed()?;
            if let Poll::Ready(value) = turn.as_mut().poll(&mut context) {
                return Ok(value);
            }
            thread::park();
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// The preflight: who runs, whether we may write, whether the file is sound. Changes nothing.
pub(super) fn findings(files: &Files, reads: Option<&ReadSide>, daemon: bool) -> Vec<Finding> {
    let dir = files.dir.display();
    let mut findings = Vec::new();
    if !daemon && let Some(pid) = file::running_daemon(files) {
        findings.push(Finding::ok(format!("the process {pid} runs on the log in {dir}")));
    }
    findings.push(match file::probe_writable(files) {
        Ok(()) => Finding::ok(format!("the log's directory {dir} can be written")),
        Err(error) => Finding::error(error),
    });
    findings.push(space(files));
    match reads.map(|reads| inspect(files, reads)) {
        None => findings.push(Finding::ok(format!("there is no log in {dir} yet; `run` creates it"))),
        Some(Ok(topics)) => {
            findings.push(Finding::ok(format!("log.db has format {} and {topics} topics", file::FORMAT)));
        }
        Some(Err(error)) if std::ptr::eq(error.code(), &codes::UNCHECKED) => findings.push(Finding::warning(error)),
        Some(Err(error)) => findings.push(Finding::error(error)),
    }
    findings
}

/// What the log takes and what is left.
fn space(files: &Files) -> Finding {
    let dir = files.existing_dir();
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let taken = std::fs::metadata(files.database()).map_or(0, |metadata| metadata.len()) + files.wal_bytes();
    let disk = match rustix::fs::statvfs(dir) {
        Ok(disk) => disk,
        Err(error) => return Finding::error(not_writable(dir, "cannot ask for the space on the disk", error.into())),
    };
    let (free, size) = (disk.f_bavail.saturating_mul(disk.f_frsize), disk.f_blocks.saturating_mul(disk.f_frsize));
    let what = format!("the log takes {} MiB, {} of {} MiB are free on its disk", mib(taken), free >> 20, mib(size));
    if !is_little(free, size) {
        return Finding::ok(what);
    }
    Finding::warning(
        Error::new(&codes::LITTLE_SPACE, what)
            .at("directory", files.dir.display())
            .hint("Enlarge the disk of the log, or move the directory to a larger one while the daemon is stopped."),
    )
}

/// A large disk may be nearly full and still have room for days; a small one may be small on purpose.
fn is_little(free: u64, size: u64) -> bool {
    free < LITTLE_BYTES.min(size / 20).max(64 << 20)
}

/// Number of topics, after a look at the file that takes a bounded time.
fn inspect(files: &Files, reads: &ReadSide) -> Result<usize> {
    reads.with("cannot check the log", |connection| {
        let named = |code, what| Error::new(code, what).at("file", files.database().display());
        let topics = topics::all(connection)?.len();
        match quick_check(connection) {
            Ok(verdict) if verdict == "ok" => Ok(topics),
            Ok(_) => Err(named(&codes::DAMAGED, "log.db contradicts itself")
                .hint("Stop the daemon, keep a copy of the directory, and restore `log.db` from a backup.")
                .into()),
            Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted) => {
                Err(named(&codes::UNCHECKED, "log.db is too large to be read in 5 seconds; what was read is sound")
                    .hint("Run `PRAGMA quick_check` with an SQLite tool when there is time.")
                    .into())
            }
            Err(error) => Err(error.into()),
        }
    })
}

/// SQLite's own check, which a second thread interrupts when the time is up.
fn quick_check(connection: &Connection) -> rusqlite::Result<String> {
    let interrupt = connection.get_interrupt_handle();
    let (done, waiting) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if waiting.recv_timeout(CHECK_TIME) == Err(mpsc::RecvTimeoutError::Timeout) {
                interrupt.interrupt();
            }
        });
        let verdict = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
        drop(done);
        verdict
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_space_depends_on_the_disk() {
        let gib = 1 << 30;
        assert!(is_little(gib - 1, 1000 * gib) && !is_little(gib, 1000 * gib));
        assert!(is_little(gib / 5, 5 * gib) && !is_little(gib / 3, 5 * gib));
        assert!(is_little(8 << 20, 8 << 20), "a disk that cannot hold the write-ahead log");
    }
}
