//! What every test and benchmark needs: waiting, ports, directories, signals, and where the servers' programs are.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{LazyLock, Mutex},
    time::{Duration, Instant},
};

pub use ports::free_port;
use tempfile::TempDir;

#[allow(clippy::duplicate_mod)] // the support for Kafka has it too
#[path = "ports.rs"]
mod ports;

/// Long enough for a busy machine; a test that waits this long has failed, it was not slow.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Looks until `look` gives a value; the last state it reported is in the failure.
pub fn wait_until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + deadline;
    loop {
        match look() {
            Ok(found) => return found,
            Err(state) if Instant::now() >= end => panic!("waited {deadline:?} for {what}; last seen: {state}"),
            Err(_) => std::thread::sleep(Duration::from_millis(25)),
        }
    }
}

/// A directory that vanishes with the guard. Others may enter it: servers run as another user when the tests run as root.
pub fn temp_dir() -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    tempfile::Builder::new()
        .prefix("headwater-test-")
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir()
        .expect("a temporary directory")
}

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Sends a signal to a process that a test started. The standard library can only kill.
pub fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status();
    assert!(status.expect("kill runs").success(), "signal {name} to process {}", child.id());
}

/// Waits for the end of a process; a process that does not end is killed and is a failure.
pub fn wait_exit(child: &mut Child, what: &str, deadline: Duration) -> std::process::ExitStatus {
    let end = Instant::now() + deadline;
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status;
        }
        if Instant::now() >= end {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{what} did not end within {deadline:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The directory of the PostgreSQL programs, found or installed by the project's own script: of any version, or of the major one that
/// is asked for.
pub fn postgres_bin(major: Option<u32>) -> PathBuf {
    postgres_path(major.map(|major| major.to_string()).into_iter().collect())
}

/// One of PostgreSQL's client programs, which work with servers of any version.
pub fn postgres_program(name: &str) -> PathBuf {
    postgres_path(vec!["--program".to_owned(), name.to_owned()])
}

fn postgres_path(arguments: Vec<String>) -> PathBuf {
    type Found = HashMap<Vec<String>, PathBuf>;
    static FOUND: LazyLock<Mutex<Found>> = LazyLock::new(Mutex::default);
    let mut found = FOUND.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(path) = found.get(&arguments) {
        return path.clone();
    }
    let output = Command::new(root().join("scripts/postgres-path.sh")).args(&arguments).output();
    let output = output.expect("scripts/postgres-path.sh runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "no PostgreSQL to test with: {errors}");
    let path = PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim());
    found.insert(arguments, path.clone());
    path
}
