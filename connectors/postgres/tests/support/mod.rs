//! A real PostgreSQL for the tests of one binary. A missing server is a failure, never a skip.

#![allow(dead_code)]

pub mod chunks;
pub mod sql;

use std::{
    collections::HashMap,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        LazyLock, Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use headwater_connector::{
    Batch, ConnectorKind, Error, Kind, Limits, Position, Source, SourceConnector, SourceContext, Start, Value,
};

/// A server in a directory that vanishes with it.
pub struct Postgres {
    bin: PathBuf,
    directory: tempfile::TempDir,
    /// TCP port on 127.0.0.1.
    pub port: u16,
    /// Its major version.
    pub major: u32,
}

impl Postgres {
    /// initdb and start. `settings` are lines of postgresql.conf; `hba` goes before the trusting default.
    pub fn start(settings: &[&str], hba: &str) -> Self {
        Self::start_with(settings, hba, |_| String::new())
    }

    /// The same; `prepare` may put files into the data directory and returns more settings.
    pub fn start_with(settings: &[&str], hba: &str, prepare: impl FnOnce(&Path) -> String) -> Self {
        Self::start_on(None, settings, hba, prepare)
    }

    /// One of a certain major version, whatever the version of this run is.
    pub fn start_version(major: u32, settings: &[&str]) -> Self {
        Self::start_on(Some(major), settings, "", |_| String::new())
    }

    fn start_on(version: Option<u32>, settings: &[&str], hba: &str, prepare: impl FnOnce(&Path) -> String) -> Self {
        let server = Self::placed(find_binaries(version));
        let port = server.port;
        let data = server.data();
        server.own();
        copy(&template(&server), &data);
        let mut conf = format!(
            "listen_addresses='127.0.0.1'\nport={port}\nunix_socket_directories='{}'\nwal_level=logical\nmax_wal_senders=40\n\
             max_replication_slots=40\nmax_connections=100\nfsync=off\nautovacuum=off\npassword_encryption='scram-sha-256'\n\
             wal_sender_timeout=10s\n",
            server.directory.path().display()
        );
        settings.iter().for_each(|line| conf.push_str(&format!("{line}\n")));
        conf.push_str(&prepare(&data));
        if is_root() {
            run(Command::new("chown").args(["-R", "postgres"]).arg(&data));
        }
        append(&data.join("postgresql.conf"), &conf);
        let path = data.join("pg_hba.conf");
        let rest = std::fs::read_to_string(&path).expect("pg_hba.conf");
        std::fs::write(&path, format!("{hba}\n{rest}")).expect("pg_hba.conf");
        server.boot();
        guard(&server);
        server
    }

    /// One that was not made from the template, and so has a system identifier of its own.
    pub fn start_of_another_origin() -> Self {
        let server = Self::start(&[], "");
        server.stop("fast");
        let conf = ["postgresql.conf", "pg_hba.conf"]
            .map(|name| (name, std::fs::read(server.data().join(name)).expect("a config file")));
        std::fs::remove_dir_all(server.data()).expect("the data directory");
        server.init(&server.data());
        for (name, bytes) in conf {
            std::fs::write(server.data().join(name), bytes).expect("a config file");
        }
        server.boot();
        server
    }

    fn init(&self, data: &Path) {
        run(self.command("initdb").args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N", "-D"]).arg(data));
    }

    fn own(&self) {
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(self.directory.path()));
        }
    }

    /// A place for a server: a directory and a port.
    fn placed((bin, major): (PathBuf, u32)) -> Self {
        let directory = tempfile::Builder::new().prefix("hw-pg-").tempdir().expect("a temporary directory");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
        Self { bin, directory, port, major }
    }

    /// The port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The directory of the unix socket.
    pub fn socket_directory(&self) -> &Path {
        self.directory.path()
    }

    fn boot(&self) {
        let log = self.directory.path().join("log");
        let mut command = self.command("pg_ctl");
        command.arg("-D").arg(self.data()).args(["-w", "-t", "60", "-l"]).arg(&log).arg("start");
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("pg_ctl");
        assert!(status.success(), "the server did not start:\n{}", std::fs::read_to_string(&log).unwrap_or_default());
    }

    /// Stops as a crash would, and starts again.
    pub fn crash_and_restart(&self) {
        self.stop("immediate");
        self.boot();
    }

    /// Stops in order and starts again with more settings.
    pub fn restart_with(&self, settings: &[&str]) {
        self.stop("fast");
        append(&self.data().join("postgresql.conf"), &format!("{}\n", settings.join("\n")));
        self.boot();
    }

    /// Stops in order.
    pub fn shut_down(&self) {
        self.stop("fast");
    }

    /// Starts again after [`shut_down`](Self::shut_down).
    pub fn start_again(&self) {
        self.boot();
    }

    fn stop(&self, mode: &str) {
        let mut command = self.command("pg_ctl");
        command.arg("-D").arg(self.data()).args(["-w", "-m", mode, "stop"]);
        let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }

    /// A copy of the whole server, as a snapshot of its disk would be. It is down for as long as that takes.
    pub fn save(&self) -> PathBuf {
        let saved = self.directory.path().join("saved");
        self.stop("fast");
        copy(&self.data(), &saved);
        self.boot();
        saved
    }

    /// Puts the server back to the copy.
    pub fn restore(&self, saved: &Path) {
        self.stop("fast");
        std::fs::remove_dir_all(self.data()).expect("the data directory");
        copy(saved, &self.data());
        self.boot();
    }

    /// Forks the server's history: from now on it is on a timeline of its own.
    pub fn fork(&self) {
        self.stop("fast");
        self.touch("standby.signal");
        self.boot();
        self.promote();
    }

    /// Makes a standby the primary.
    pub fn promote(&self) {
        self.sql("postgres", "SELECT pg_promote()");
    }

    /// A standby of this server, which is down for a moment. It uses the physical slot `name`.
    pub fn standby(&self, name: &str, settings: &[&str]) -> Self {
        self.sql("postgres", &format!("SELECT pg_create_physical_replication_slot('{name}', true)"));
        let standby = Self::placed((self.bin.clone(), self.major));
        standby.own();
        self.stop("fast");
        copy(&self.data(), &standby.data());
        self.boot();
        for entry in std::fs::read_dir(standby.data().join("pg_replslot")).expect("slots") {
            std::fs::remove_dir_all(entry.expect("a slot").path()).expect("a slot of the primary");
        }
        standby.touch("standby.signal");
        let mut conf = format!(
            "port={}\nunix_socket_directories='{}'\nprimary_slot_name='{name}'\nhot_standby_feedback=on\nwal_receiver_status_interval=1s\n\
             wal_retrieve_retry_interval=200ms\nprimary_conninfo='host=127.0.0.1 port={} user=postgres dbname=postgres'\n",
            standby.port,
            standby.directory.path().display(),
            self.port
        );
        settings.iter().for_each(|line| conf.push_str(&format!("{line}\n")));
        append(&standby.data().join("postgresql.conf"), &conf);
        standby.boot();
        guard(&standby);
        standby
    }

    /// Waits until a standby has replayed all that is written here now.
    pub fn replayed_by(&self, standby: &Self) {
        let end = self.sql("postgres", "SELECT pg_current_wal_insert_lsn()");
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
        eventually("the standby replays", || standby.sql("postgres", &sql) == "t");
    }

    /// Has this standby stop its replay, or go on with it.
    pub fn pause_replay(&self, pauses: bool) {
        let (function, state) = if pauses { ("pause", "paused") } else { ("resume", "not paused") };
        self.sql("postgres", &format!("SELECT pg_wal_replay_{function}()"));
        eventually("the replay obeys", || self.sql("postgres", "SELECT pg_get_wal_replay_pause_state()") == state);
    }

    fn touch(&self, name: &str) {
        let path = self.data().join(name);
        std::fs::write(&path, "").expect("a signal file");
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(path));
        }
    }

    fn command(&self, program: &str) -> Command {
        let path = self.bin.join(program);
        let mut command = match is_root() {
            false => Command::new(path),
            // initdb and postgres refuse root.
            true => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "env", "HOME=/tmp"]).arg(path);
                command
            }
        };
        command.current_dir("/").env("LC_ALL", "C");
        // Locales that a test has put there; the C library looks there first.
        let locales = self.data().join("locale");
        if locales.exists() {
            command.env("LOCPATH", locales);
        }
        command
    }

    /// An empty database of its own, and its name.
    pub fn database(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("d{}", NEXT.fetch_add(1, Ordering::SeqCst));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    /// Runs statements as the superuser, each in a transaction of its own unless they say otherwise. Panics on an error.
    pub fn sql(&self, database: &str, statements: &str) -> String {
        self.try_sql(database, statements).unwrap_or_else(|error| panic!("{error}\nin: {statements:.300}"))
    }

    /// Like [`sql`](Self::sql); the rows as lines, or the error.
    pub fn try_sql(&self, database: &str, statements: &str) -> Result<String, String> {
        sql::run(self.port, database, statements)
    }

    /// `postgres://postgres@127.0.0.1:PORT/DATABASE`
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop("immediate");
    }
}

/// One server for all tests of the binary.
pub fn shared() -> &'static Postgres {
    static SHARED: OnceLock<Postgres> = OnceLock::new();
    SHARED.get_or_init(|| Postgres::start(&[], ""))
}

/// Statics are not dropped at exit, and a killed test drops nothing. A small process waits for ours to end, however it ends, and stops the server.
fn guard(server: &Postgres) {
    let pid = std::process::id();
    let stop = format!(
        "while kill -0 {pid} 2>/dev/null; do sleep 0.2; done; kill -QUIT $(head -1 {0}/data/postmaster.pid) 2>/dev/null; sleep 0.5; rm -rf {0}",
        server.directory.path().display()
    );
    let mut command = Command::new("sh");
    command.args(["-c", &stop]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    use std::os::unix::process::CommandExt;
    // A group of its own, so that an interrupt from the terminal does not end it first.
    let mut child = command.process_group(0).spawn().expect("sh");
    std::thread::spawn(move || child.wait());
}

/// A data directory to copy from, one for each version: initdb takes much longer than a copy.
fn template(server: &Postgres) -> PathBuf {
    static MADE: LazyLock<Mutex<HashMap<u32, Postgres>>> = LazyLock::new(Mutex::default);
    let mut made = MADE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let template = made.entry(server.major).or_insert_with(|| {
        let template = Postgres::placed((server.bin.clone(), server.major));
        template.own();
        template.init(&template.data());
        guard(&template);
        template
    });
    template.data()
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").arg(from).arg(to));
}

fn append(path: &Path, text: &str) {
    let mut whole = std::fs::read_to_string(path).expect("a config file");
    whole.push_str(text);
    std::fs::write(path, whole).expect("a config file");
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn is_root() -> bool {
    static ROOT: OnceLock<bool> = OnceLock::new();
    *ROOT.get_or_init(|| {
        let output = Command::new("id").arg("-u").output().expect("id");
        output.stdout.starts_with(b"0\n")
    })
}

/// The directory of the programs and their major version: of this run (`HEADWATER_PG_BIN`, else what the project's script finds), or
/// the one that is asked for.
fn find_binaries(version: Option<u32>) -> (PathBuf, u32) {
    type Found = HashMap<Option<u32>, (PathBuf, u32)>;
    static FOUND: LazyLock<Mutex<Found>> = LazyLock::new(Mutex::default);
    let mut found = FOUND.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    found.entry(version).or_insert_with(|| search(version)).clone()
}

fn search(version: Option<u32>) -> (PathBuf, u32) {
    let mut script = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/postgres-path.sh"));
    let output = script.args(version.map(|major| major.to_string())).output().expect("scripts/postgres-path.sh runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "no PostgreSQL to test with: {errors}");
    let bin = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let output = Command::new(bin.join("postgres")).arg("--version").output().expect("postgres runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let digits = text.trim_start_matches(|letter: char| !letter.is_ascii_digit());
    let major = digits.split(|letter: char| !letter.is_ascii_digit()).next().and_then(|major| major.parse().ok());
    (bin, major.unwrap_or_else(|| panic!("no version in {text}")))
}

/// Polls until it holds; panics after a minute.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A connector over `public.*` unless the options say otherwise.
pub fn connector(url: &str, options: serde_json::Value) -> Box<dyn SourceConnector> {
    keyed_connector(url, options, &[])
}

/// The same with keys from the config.
pub fn keyed_connector(url: &str, options: serde_json::Value, keys: &[(&str, &[&str])]) -> Box<dyn SourceConnector> {
    let keys = keys.iter().map(|(table, key)| ((*table).to_owned(), key.iter().map(|name| (*name).to_owned()).collect()));
    let name = url.split('?').next().and_then(|url| url.rsplit('/').next()).expect("a database");
    let context = SourceContext { connector: name.into(), prefix: "hw".into(), keys: keys.collect() };
    let mut all = serde_json::json!({ "url": url, "tables": ["public.*"] });
    let more = options.as_object().expect("an object").clone();
    all.as_object_mut().expect("an object").extend(more);
    headwater_postgres::POSTGRES.source(&context, all).unwrap_or_else(|faults| panic!("{faults:?}"))
}

/// A first start.
pub async fn begin(connector: &dyn SourceConnector) -> Start {
    let intent = connector.prepare().await.expect("prepare");
    connector.create(&intent, false).await.expect("create")
}

/// Reads until there is a change or an error.
pub async fn next(source: &mut dyn Source) -> headwater_connector::Result<Batch> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let mut batch = Batch::default();
        source.next_batch(&mut batch, &Limits { max_wait: Duration::from_millis(200), ..Limits::default() }).await?;
        if !batch.changes().is_empty() {
            return Ok(batch);
        }
        assert!(Instant::now() < deadline, "no change came");
    }
}

/// The texts of a row's cells.
pub fn cells(batch: &Batch, row: headwater_connector::Row) -> Vec<String> {
    batch.values(row).map(|value| format!("{value:?}")).collect()
}

/// What a refused opening says.
pub async fn refused(connector: &dyn SourceConnector, start: &Start, position: &Position) -> Error {
    match connector.open(&start.identity, position).await {
        Ok(_) => panic!("opened at {position}"),
        Err(error) => error,
    }
}

/// Holds an error to its code and kind, and that it says what to do.
pub fn is(error: &Error, code: &str, kind: Kind) {
    assert_eq!((error.code().id, error.kind()), (code, kind), "{error}");
    assert!(!error.hint_text().is_empty(), "{error}");
}

/// Reads until there is an error, within a minute.
pub async fn next_error(source: &mut dyn Source) -> Error {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let mut batch = Batch::default();
        let limits = Limits { max_wait: Duration::from_millis(200), ..Limits::default() };
        if let Err(error) = source.next_batch(&mut batch, &limits).await {
            return error;
        }
        assert!(Instant::now() < deadline, "no error came");
    }
}

/// Reads until so many changes came; their first cells, and the last position.
pub async fn firsts(source: &mut dyn Source, count: usize) -> (Vec<String>, Position) {
    let mut firsts = Vec::new();
    loop {
        let batch = next(source).await.expect("changes");
        for change in batch.changes() {
            let row = change.after.expect("a row");
            firsts.push(match batch.value(row, 0) {
                Value::Text(text) => text.to_owned(),
                other => format!("{other:?}"),
            });
        }
        if firsts.len() >= count {
            return (firsts, batch.position().expect("a position").clone());
        }
    }
}
