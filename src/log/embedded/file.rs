//! The files: directory, lock, database, and the ways to open it.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use headwater_connector::{Error, Result};
use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig};

use super::{
    codes,
    error::{Fault, not_writable, said},
    topics,
};

/// `HWLG` in ASCII: marks the file as a log of headwater, also for file(1).
pub(super) const APPLICATION_ID: i32 = 0x4857_4C47;

/// The layout that this version writes, in `user_version`.
pub(super) const FORMAT: i32 = 1;

/// How long a statement waits for a lock that a foreign program holds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Pages in the write-ahead log before a commit itself copies them into the file, which takes it a while. Maintenance does it long
/// before, beside the commits; this is for where there is none.
const WAL_PAGES: i64 = (8 * WAL_BYTES / PAGE_BYTES) as i64;

/// Maintenance copies the write-ahead log into the file when it is larger, so that one copy serves many commits.
pub(super) const WAL_BYTES: u64 = 32 << 20;

/// Twice SQLite's own, which takes a seventh off the CPU time of a backfill: fewer writes for the same rows. A file keeps the size it
/// was made with.
pub(super) const PAGE_BYTES: u64 = 8192;

/// Holds the pages of one large commit, so that they are written once.
const WRITER_CACHE_KIB: i64 = 16 << 10;

/// Prepared statements kept per connection: some for each partition in use.
const STATEMENTS: usize = 128;

/// A command that only looks may hold the lock for an instant, so a daemon tries more than once.
const LOCK_TRIES: u32 = 5;
const LOCK_PAUSE: Duration = Duration::from_millis(40);

/// Where the files are.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) dir: PathBuf,
}

impl Files {
    pub(super) fn database(&self) -> PathBuf {
        self.dir.join("log.db")
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.dir.join("log.lock")
    }

    /// Size of the write-ahead log; 0 if there is none.
    pub(super) fn wal_bytes(&self) -> u64 {
        fs::metadata(self.dir.join("log.db-wal")).map_or(0, |metadata| metadata.len())
    }

    /// Which file the path names at the moment.
    pub(super) fn identity(&self) -> io::Result<(u64, u64)> {
        fs::metadata(self.database()).map(|metadata| (metadata.dev(), metadata.ino()))
    }

    /// Creates the directory for our user alone: the log holds the rows of production tables.
    pub(super) fn create_dir(&self) -> Result<()> {
        let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        created.map_err(|error| not_writable(&self.dir, "cannot create the log's directory", error))
    }

    /// The directory, or the nearest one above that exists.
    pub(super) fn existing_dir(&self) -> &Path {
        self.dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("."))
    }

    /// Makes the names of new files durable; SQLite does it for the write-ahead log only.
    fn sync_dir(&self) -> Result<()> {
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|error| not_writable(&self.dir, "cannot flush the log's directory", error))
    }
}

/// The operating system's lock on the directory; it goes with the process, however that ends.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Takes the lock, or says which process has it.
pub(super) fn take_lock(files: &Files) -> Result<Lock> {
    let path = files.lock();
    let refused = |error| not_writable(&path, "cannot lock the log's directory", error);
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = opened.map_err(refused)?;
    let mut tries = LOCK_TRIES;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if tries > 1 => {
                tries -= 1;
                thread::sleep(LOCK_PAUSE);
            }
            Err(TryLockError::WouldBlock) => {
                let holder = holder_pid(&mut file).map_or("another process".to_owned(), |pid| format!("the process {pid}"));
                return Err(Error::new(&codes::LOCKED, format!("the log is in use by {holder}"))
                    .at("directory", files.dir.display())
                    .hint("Stop the other daemon, or set `log.path` to another directory."));
            }
            Err(TryLockError::Error(error)) => return Err(refused(error)),
        }
    }
    // The pid is for people and messages only; the lock itself does not depend on the content.
    let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(refused)?;
    Ok(Lock { _file: file })
}

/// The pid of a running daemon; none if no daemon holds the lock.
pub(super) fn running_daemon(files: &Files) -> Option<String> {
    let mut file = File::open(files.lock()).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Some(holder_pid(&mut file).unwrap_or_else(|| "unknown".to_owned())),
        // The lock goes with `file` at once; see `LOCK_TRIES` for a daemon that starts right now.
        _ => None,
    }
}

fn holder_pid(file: &mut File) -> Option<String> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    let pid = text.trim();
    (!pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit())).then(|| pid.to_owned())
}

/// How often a connection flushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// Each commit is on disk when it returns.
    EachCommit,
    /// On disk with the next commit that is flushed, never out of order: enough for deleting what is not needed any more.
    Later,
}

/// Opens the database for the daemon, who holds the lock, creating it first where there is none.
///
/// It gets its name only once it is whole and on disk. So a `log.db` that is empty or half there is never the trace of a
/// first start that crashed, but a log that lost its records, and is refused.
pub(super) fn create_database(files: &Files) -> Result<Connection> {
    let database = files.database();
    let exists = database.try_exists().map_err(|error| not_writable(&database, "cannot look for the log", error))?;
    if !exists {
        let new = files.dir.join("log.db.new");
        create_file(&new).map_err(|fault| fault.name(&new, "cannot create the log"))?;
        let renamed = File::open(&new).and_then(|file| file.sync_all()).and_then(|()| fs::rename(&new, &database));
        renamed.map_err(|error| not_writable(&database, "cannot create the log", error))?;
    }
    let connection = open_for_writing(files, Durability::EachCommit)?;
    files.sync_dir()?;
    Ok(connection)
}

/// A whole log without topics, in a file that no reader knows yet; what a crash left of an earlier try is replaced.
fn create_file(new: &Path) -> Result<(), Fault> {
    let refused = |error| not_writable(new, "cannot create the log", error);
    for leftover in [new.to_owned(), new.with_extension("new-journal")] {
        match fs::remove_file(&leftover) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(refused(error).into()),
            _ => {}
        }
    }
    let mut connection = Connection::open_with_flags(new, write_flags() | OpenFlags::SQLITE_OPEN_CREATE)?;
    connection.pragma_update(None, "page_size", PAGE_BYTES as i64)?;
    topics::create_layout(&mut connection)?;
    connection.close().map_err(|(_, error)| error)?;
    Ok(())
}

/// Opens the database that the daemon created before; never creates one.
pub(super) fn open_for_writing(files: &Files, durability: Durability) -> Result<Connection> {
    let database = files.database();
    refuse_empty(&database)?;
    let opened = || -> Result<Connection, Fault> {
        let connection = Connection::open_with_flags(&database, write_flags())?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        require_ours(&connection, &database)?;
        set_up(&connection, durability)?;
        Ok(connection)
    };
    opened().map_err(|fault| fault.name(&database, "cannot open the log"))
}

fn write_flags() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

fn set_up(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    debug_assert_eq!(mode, "wal");
    let synchronous = match durability {
        Durability::EachCommit => "FULL",
        Durability::Later => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    // On macOS a plain fsync leaves data in the drive's cache.
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES as i64)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(())
}

/// SQLite takes an empty file for a new database, and removes the write-ahead log beside it, which may hold the newest records.
fn refuse_empty(database: &Path) -> Result<()> {
    if fs::metadata(database).is_ok_and(|metadata| metadata.len() == 0) {
        return Err(Error::new(&codes::EMPTIED, "log.db is empty")
            .at("file", database.display())
            .hint("Stop the daemon, keep a copy of the directory, and restore `log.db` from a backup."));
    }
    Ok(())
}

/// Whose file it is. This is the first access, so it is also where damage of the first page shows.
fn require_ours(connection: &Connection, database: &Path) -> Result<(), Fault> {
    let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0));
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    match (number("application_id")?, number("user_version")?) {
        (APPLICATION_ID, FORMAT) => Ok(()),
        (APPLICATION_ID, newer) if newer > FORMAT => {
            let what = format!("log.db has format {newer}; this version of headwater knows up to {FORMAT}");
            Err(Error::new(&codes::NEWER_FORMAT, what)
                .at("file", database.display())
                .hint("Run the version of headwater that wrote it, or a newer one.")
                .into())
        }
        _ => Err(Error::new(&codes::NOT_A_LOG, "the file is an SQLite database of another program")
            .at("file", database.display())
            .hint("Set `log.path` to an empty directory, or move the foreign file away.")
            .into()),
    }
}

/// A connection for reading.
pub(super) struct ReadConnection {
    pub(super) connection: Connection,
    /// The file was taken as it is, without locks, so the connection must not outlive one short read.
    pub(super) once: bool,
}

/// Opens the database for reading, beside a daemon or without one, and creates neither directory nor database.
pub(super) fn open_for_reading(files: &Files) -> Result<ReadConnection> {
    let database = files.database();
    let named = |fault: Fault| fault.name(&database, "cannot open the log for reading");
    match database.try_exists() {
        Ok(true) => {}
        Ok(false) => return Err(missing(files)),
        // Part of the path is a file: no other user could read there either, and `run` will say the same.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(not_writable(&files.dir, "the log's directory cannot be created", error));
        }
        Err(error) => return Err(unreadable(&database).caused_by(error)),
    }
    refuse_empty(&database)?;
    // Readers of a write-ahead log share an index file that they also write, so a plain open is the normal case, even
    // after a crash: the first reader then rebuilds the index.
    match open_reader(&database, OpenFlags::SQLITE_OPEN_READ_WRITE) {
        Err(Fault::Sqlite(error)) if is_access(&error) => {}
        result => return result.map(|connection| ReadConnection { connection, once: false }).map_err(named),
    }
    // Without permission to write, the index of a running daemon can still be read.
    let refused = match open_reader(&database, OpenFlags::SQLITE_OPEN_READ_ONLY) {
        Err(Fault::Sqlite(error)) if is_access(&error) => error,
        result => return result.map(|connection| ReadConnection { connection, once: false }).map_err(named),
    };
    // Nobody writes and everything is in the file itself: it can be read as it is.
    if files.wal_bytes() == 0 {
        let connection = open_immutable(&database).map_err(|fault| match fault {
            Fault::Sqlite(error) if is_access(&error) => unreadable(&database).caused_by(said(&error)),
            fault => named(fault),
        })?;
        return Ok(ReadConnection { connection, once: true });
    }
    Err(unreadable(&database).caused_by(said(&refused)))
}

fn open_reader(database: &Path, access: OpenFlags) -> Result<Connection, Fault> {
    let connection = Connection::open_with_flags(database, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "query_only", true)?;
    // The last to close would copy the write-ahead log into the file; a reader leaves that to the daemon.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    require_ours(&connection, database)?;
    Ok(connection)
}

fn open_immutable(database: &Path) -> Result<Connection, Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(immutable_uri(database), flags)?;
    require_ours(&connection, database)?;
    Ok(connection)
}

fn immutable_uri(database: &Path) -> String {
    let mut uri = "file:".to_owned();
    for character in database.to_string_lossy().chars() {
        match character {
            '%' => uri.push_str("%25"),
            '?' => uri.push_str("%3f"),
            '#' => uri.push_str("%23"),
            other => uri.push(other),
        }
    }
    uri + "?immutable=1"
}

fn is_access(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::SystemIoFailure)
    )
}

fn missing(files: &Files) -> Error {
    Error::new(&codes::MISSING, "there is no log yet")
        .at("directory", files.dir.display())
        .hint("Start `headwater run`, which creates it, or pass the daemon's config file with `-c`.")
}

fn unreadable(database: &Path) -> Error {
    Error::new(&codes::UNREADABLE, "the log cannot be opened for reading")
        .at("file", database.display())
        .hint("Run this as the user that runs the daemon, or copy the whole directory to where you may write.")
}

/// Whether files can be created in the directory, or in the nearest one above that exists. Leaves nothing behind.
pub(super) fn probe_writable(files: &Files) -> Result<()> {
    let dir = files.existing_dir();
    let probe = dir.join(format!(".headwater-probe-{}", std::process::id()));
    let written = File::create(&probe).and_then(|_| fs::remove_file(&probe));
    written.map_err(|error| not_writable(&files.dir, "the log's directory cannot be written", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_special_characters_is_escaped_in_the_uri() {
        assert_eq!(immutable_uri(Path::new("/a b/c?d#e%/log.db")), "file:/a b/c%3fd%23e%25/log.db?immutable=1");
    }
}
