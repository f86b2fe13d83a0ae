//! What SQLite says, as errors with a code and a hint.

use std::{fmt, io, path::Path};

use headwater_connector::{Error, codes as common};
use rusqlite::ErrorCode;

use super::codes;

/// Inside the embedded log: what SQLite said, or an error that already has its name.
pub(super) enum Fault {
    Sqlite(rusqlite::Error),
    Named(Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Named(error)
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(error) => error.fmt(f),
            Self::Named(error) => error.fmt(f),
        }
    }
}

impl Fault {
    /// Names what SQLite said about the file `database` while `doing`.
    pub(super) fn name(self, database: &Path, doing: &str) -> Error {
        match self {
            Self::Named(error) => error,
            Self::Sqlite(error) => sqlite(database, doing, error),
        }
    }
}

/// One place decides what an SQLite error means for the daemon.
fn sqlite(database: &Path, doing: &str, error: rusqlite::Error) -> Error {
    let (code, hint) = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => (&codes::DISK_FULL, "Free space on the disk of the log; headwater goes on by itself."),
        Some(ErrorCode::DatabaseCorrupt) => {
            (&codes::DAMAGED, "Stop the daemon, keep a copy of the directory, and restore `log.db` from a backup.")
        }
        Some(ErrorCode::NotADatabase) => {
            (&codes::NOT_A_LOG, "Set `log.path` to an empty directory, or move the foreign file away.")
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            (&codes::BUSY, "End the transaction of the other program that writes in the file.")
        }
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            (&codes::NOT_WRITABLE, "Give the user that runs headwater write permission on the directory and its files.")
        }
        Some(ErrorCode::SystemIoFailure | ErrorCode::FileLockingProtocolFailed | ErrorCode::OutOfMemory) => {
            (&codes::STORAGE, "Look at the disk below `log.path` and at the kernel's log.")
        }
        // A column of another type than we write: somebody edited the file.
        None if matches!(error, rusqlite::Error::InvalidColumnType(..)) => {
            (&codes::DAMAGED, "Undo what was edited in `log.db`, or restore it from a backup.")
        }
        _ => (&common::INVARIANT, "Report this message as a bug."),
    };
    Error::new(code, doing).at("file", database.display()).hint(hint).caused_by(said(&error))
}

/// The driver says the same again in the error underneath, so only its own text is chained.
pub(super) fn said(error: &rusqlite::Error) -> String {
    error.to_string()
}

/// A directory or file that cannot be created, opened or locked.
pub(super) fn not_writable(path: &Path, doing: &str, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::StorageFull {
        return Error::new(&codes::DISK_FULL, doing)
            .at("path", path.display())
            .hint("Free space on the disk of the log.")
            .caused_by(error);
    }
    Error::new(&codes::NOT_WRITABLE, doing)
        .at("path", path.display())
        .hint("Give the user that runs headwater write permission there, or set `log.path` to another directory.")
        .caused_by(error)
}
