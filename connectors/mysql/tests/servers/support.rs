//! Real MariaDB and MySQL servers for the tests of one binary. A missing server is a failure, never a skip.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, Once, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use headwater_connector::{
    Batch, ConnectorKind, Error, Kind, Limits, Position, Source, SourceConnector, SourceContext, Start, Value,
};
use headwater_mysql::Session;

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    Mariadb,
    Mysql,
}

impl Flavour {
    const fn name(self) -> &'static str {
        match self {
            Self::Mariadb => "mariadb",
            Self::Mysql => "mysql",
        }
    }
}

/// A server in a directory that vanishes with it.
pub struct Server {
    pub flavour: Flavour,
    base: PathBuf,
    directory: tempfile::TempDir,
    settings: Vec<String>,
    pub port: u16,
}

impl Server {
    /// Makes a data directory and starts. `settings` are options of the server's command line.
    pub fn start(flavour: Flavour, settings: &[&str]) -> Self {
        Self::start_of(find(flavour), flavour, settings)
    }

    /// The same of a server that is elsewhere.
    pub fn start_of(base: PathBuf, flavour: Flavour, settings: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("hw-my-").tempdir().expect("a temporary directory");
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let server = Self { flavour, base, directory, settings, port };
        if is_root() {
            run(Command::new("chown").arg("nobody").arg(server.directory.path()));
        }
        server.init();
        server.boot();
        server.guard();
        server.tells_after_panics();
        server
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn program(&self) -> PathBuf {
        let name = if self.flavour == Flavour::Mariadb { "mariadbd" } else { "mysqld" };
        let place = ["bin", "sbin", "libexec"].map(|dir| self.base.join(dir).join(name));
        place.into_iter().find(|path| path.exists()).expect("the server's program")
    }

    /// Where MariaDB keeps its messages and the statements that make its tables, whose files have another name since 11.
    fn share(&self) -> (PathBuf, &'static str) {
        let places = ["share/mysql", "share/mariadb", "share"].map(|dir| self.base.join(dir));
        let named =
            |path: &Path| ["mariadb", "mysql"].into_iter().find(|name| path.join(format!("{name}_system_tables.sql")).exists());
        places.into_iter().find_map(|path| named(&path).map(|name| (path, name))).expect("the server's files")
    }

    fn command(&self) -> Command {
        let program = self.program();
        let mut command = match is_root() {
            false => Command::new(program),
            // The servers refuse root.
            true => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "env", "HOME=/tmp"]).arg(program);
                command
            }
        };
        command.current_dir("/").arg("--no-defaults").arg(format!("--basedir={}", self.base.display()));
        command.arg(format!("--datadir={}", self.data().display()));
        if self.flavour == Flavour::Mariadb {
            command.arg(format!("--lc-messages-dir={}", self.share().0.display()));
        }
        command
    }

    fn init(&self) {
        let log = self.directory.path().join("init.log");
        let log = || std::fs::OpenOptions::new().create(true).append(true).open(&log).expect("a log");
        let mut command = self.command();
        command.stdout(log()).stderr(log());
        // Not where every server of the machine makes tables under the same names.
        command.arg(format!("--tmpdir={}", self.directory.path().display()));
        // How names are compared is settled with the first table.
        command.args(self.settings.iter().filter(|setting| setting.starts_with("--lower-case-table-names")));
        if self.flavour == Flavour::Mysql {
            run(command.args(["--initialize-insecure", "--log-error-verbosity=1"]));
            return;
        }
        let data = self.data();
        for name in ["mysql", "sys"] {
            std::fs::create_dir_all(data.join(name)).expect("a directory");
        }
        if is_root() {
            run(Command::new("chown").args(["-R", "nobody"]).arg(&data));
        }
        // What mariadb-install-db does, without its guesses of paths.
        let mut script = "create database if not exists mysql;\nuse mysql;\n".to_owned();
        let (share, name) = self.share();
        for part in ["system_tables", "performance_tables", "system_tables_data"] {
            let text = std::fs::read_to_string(share.join(format!("{name}_{part}.sql"))).expect("the server's tables");
            script.push_str(&text.replace("@auth_root_socket", "NULL"));
        }
        let mut child = command
            .args(["--bootstrap", "--log-warnings=0", "--enforce-storage-engine=", "--max-allowed-packet=8M"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("the server's bootstrap");
        use std::io::Write;
        child.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("the server reads");
        assert!(child.wait().expect("the server's bootstrap").success(), "the bootstrap failed: {}", self.log("init.log"));
    }

    fn boot(&self) {
        let place = |name: &str| self.directory.path().join(name).display().to_string();
        let mut command = self.command();
        command
            .arg(format!("--port={}", self.port))
            .arg(format!("--socket={}", place("s.sock")))
            .arg(format!("--pid-file={}", place("pid")))
            .arg(format!("--tmpdir={}", self.directory.path().display()))
            .arg(format!("--log-error={}", place("error.log")))
            .args([
                "--bind-address=127.0.0.1",
                "--server-id=1",
                "--log-bin=binlog",
                "--binlog-format=ROW",
                "--binlog-row-image=FULL",
            ])
            .args(["--binlog-row-metadata=FULL", "--sync-binlog=0", "--innodb-flush-log-at-trx-commit=2"])
            .args(["--innodb-buffer-pool-size=32M", "--skip-name-resolve", "--max-allowed-packet=64M"])
            // LOAD DATA may read any file that the server can.
            .arg("--secure-file-priv=");
        match self.flavour {
            Flavour::Mariadb => command.args(["--gtid-strict-mode=ON", "--gtid-domain-id=0", "--skip-log-slave-updates"]),
            Flavour::Mysql => command.args(["--gtid-mode=ON", "--enforce-gtid-consistency=ON", "--mysqlx=OFF"]),
        };
        // With a password, so that every login has to prove one.
        let users = "SET sql_log_bin = 0;\nCREATE USER IF NOT EXISTS hw@'%' IDENTIFIED BY 'secret';\nGRANT ALL ON *.* TO hw@'%' WITH GRANT OPTION;\n";
        std::fs::write(place("users.sql"), users).expect("a file");
        command.arg(format!("--init-file={}", place("users.sql")));
        command.args(&self.settings).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("the server");
        let deadline = Instant::now() + Duration::from_secs(180);
        while let Err(error) = self.try_sql("SELECT 1") {
            assert!(child.try_wait().expect("the server").is_none(), "the server ended: {}", self.log("error.log"));
            assert!(Instant::now() < deadline, "the server did not start: {error}\n{}", self.log("error.log"));
            std::thread::sleep(Duration::from_millis(50));
        }
        std::thread::spawn(move || child.wait());
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory.path().join(name)).unwrap_or_default()
    }

    fn stop(&self, signal: &str) {
        if let Some(pid) = self.pid() {
            let _ = Command::new("kill").args([signal, &pid]).status();
            // Nothing here may panic: it also runs after a failure.
            for _ in 0..600 {
                let state = std::fs::read_to_string(Path::new("/proc").join(&pid).join("stat")).unwrap_or_default();
                if state.is_empty() || state.contains(") Z ") {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    fn pid(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.directory.path().join("pid")).ok()?;
        Some(text.trim().to_owned()).filter(|pid| !pid.is_empty())
    }

    /// A test that waited in vain says what the server was doing then.
    fn tells_after_panics(&self) {
        static STARTED: Mutex<Vec<(String, PathBuf)>> = Mutex::new(Vec::new());
        static HOOK: Once = Once::new();
        let log = self.directory.path().join("error.log");
        STARTED.lock().unwrap_or_else(PoisonError::into_inner).push((self.url(), log));
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                before(info);
                let started = STARTED.lock().unwrap_or_else(PoisonError::into_inner).clone();
                started.iter().filter(|(_, log)| log.exists()).for_each(|(url, log)| tell(url, log));
            }));
        });
    }

    /// Statics are not dropped at exit, and a killed test drops nothing. A small process waits for ours to end and stops the server.
    fn guard(&self) {
        let stop = format!(
            "while kill -0 {} 2>/dev/null; do sleep 0.2; done; kill -KILL $(cat {1}/pid) 2>/dev/null; sleep 0.5; rm -rf {1}",
            std::process::id(),
            self.directory.path().display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &stop]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        use std::os::unix::process::CommandExt;
        let mut child = command.process_group(0).spawn().expect("sh");
        std::thread::spawn(move || child.wait());
    }

    /// Stops as a crash would, and starts again.
    pub fn crash_and_restart(&self) {
        self.stop("-KILL");
        let _ = std::fs::remove_file(self.directory.path().join("pid"));
        self.boot();
    }

    /// An empty database of its own, and its name.
    pub fn database(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("d{}", NEXT.fetch_add(1, Ordering::SeqCst));
        self.sql(&format!("CREATE DATABASE {name} CHARACTER SET utf8mb4"));
        name
    }

    /// Runs statements, separated by `;` at the end of a line, in one session. Panics on an error.
    pub fn sql(&self, statements: &str) -> String {
        self.try_sql(statements).unwrap_or_else(|error| panic!("{error}\nin: {statements:.400}"))
    }

    /// Like [`sql`](Self::sql); the rows of the last one as lines, or the error.
    pub fn try_sql(&self, statements: &str) -> Result<String, String> {
        query(&self.url(), statements)
    }

    /// Runs a statement in a session that stays open until the guard is dropped.
    pub fn hold(&self, statement: &str) -> Held {
        let (url, statement) = (self.url(), statement.to_owned());
        let (release, released) = mpsc::channel::<()>();
        let (ready, is_ready) = mpsc::channel();
        let session = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let session = runtime.block_on(async {
                let mut session = Session::open(&url).await.expect("a session");
                session.query(&statement).await.unwrap_or_else(|error| panic!("{error}"));
                session
            });
            let _ = ready.send(());
            let _ = released.recv();
            drop(session);
        });
        is_ready.recv().expect("the statement");
        Held { release: Some(release), session: Some(session) }
    }

    /// Forgets all binlog.
    pub fn reset_binlog(&self) {
        let is_new = self.try_sql("RESET BINARY LOGS AND GTIDS").is_ok();
        if !is_new {
            self.sql("RESET MASTER");
        }
    }

    /// Whether it writes to the binlog what foreign keys do.
    pub fn logs_cascades(&self) -> bool {
        self.sql("SHOW VARIABLES LIKE 'innodb_native_foreign_keys'").ends_with("OFF")
    }

    /// Major and minor number.
    pub fn version(&self) -> (u32, u32) {
        let text = self.sql("SELECT version()");
        let mut parts = text.split('.').map(|part| part.parse().expect("a number"));
        (parts.next().expect("a major"), parts.next().expect("a minor"))
    }

    /// The file that the server writes its binlog to now.
    pub fn binlog(&self) -> String {
        self.sql("SHOW BINARY LOGS").lines().last().and_then(|line| line.split('\t').next()).expect("a file").to_owned()
    }

    /// `mysql://hw:secret@127.0.0.1:PORT/`
    pub fn url(&self) -> String {
        format!("mysql://hw:secret@127.0.0.1:{}/", self.port)
    }

    /// A connector over all tables of a database unless the options say otherwise.
    pub fn connector(&self, database: &str, options: serde_json::Value) -> Box<dyn SourceConnector> {
        let context = SourceContext { connector: database.into(), prefix: "hw".into(), keys: Vec::new() };
        let mut all = serde_json::json!({ "url": self.url(), "tables": [format!("{database}.*")], "backfill": "never" });
        for (name, value) in options.as_object().expect("an object") {
            all[name] = value.clone();
        }
        headwater_mysql::MYSQL.source(&context, all).unwrap_or_else(|faults| panic!("{faults:?}"))
    }
}

/// See [`Server::hold`].
pub struct Held {
    release: Option<mpsc::Sender<()>>,
    session: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(session) = self.session.take() {
            let _ = session.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop("-KILL");
    }
}

/// One server of each flavour for all tests of the binary.
pub fn shared(flavour: Flavour) -> &'static Server {
    static SHARED: [OnceLock<Server>; 2] = [const { OnceLock::new() }; 2];
    SHARED[flavour as usize].get_or_init(|| Server::start(flavour, &[]))
}

/// The rows of the last of the statements as lines, or the error.
fn query(url: &str, statements: &str) -> Result<String, String> {
    let (url, statements) = (url.to_owned(), statements.to_owned());
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut session = Session::open(&url).await.map_err(|error| error.to_string())?;
            let mut rows = Vec::new();
            for statement in statements.split(";\n").map(str::trim).filter(|statement| !statement.is_empty()) {
                rows = session.query(statement).await.map_err(|error| error.what())?;
            }
            let line = |row: Vec<Option<String>>| row.into_iter().map(Option::unwrap_or_default).collect::<Vec<_>>().join("\t");
            Ok(rows.into_iter().map(line).collect::<Vec<_>>().join("\n"))
        })
    };
    std::thread::spawn(run).join().expect("the session's thread")
}

/// What a server is doing and what it said last.
fn tell(url: &str, log: &Path) {
    let (sender, answer) = mpsc::channel();
    let asked = url.to_owned();
    std::thread::spawn(move || sender.send(query(&asked, "SHOW FULL PROCESSLIST")));
    let doing = match answer.recv_timeout(Duration::from_secs(5)) {
        Ok(Ok(text) | Err(text)) => text,
        Err(_) => "it does not answer".to_owned(),
    };
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let last: Vec<&str> = text.lines().rev().take(40).collect();
    let said: Vec<&str> = last.into_iter().rev().collect();
    eprintln!("--- the server at {}\n{doing}\n--- its log\n{}", log.display(), said.join("\n"));
}

/// Where the server is installed.
pub fn find(flavour: Flavour) -> PathBuf {
    // The daemon's tests use this file too, from the project's own directory.
    let place = ["scripts", "../../scripts"].map(|dir| Path::new(env!("CARGO_MANIFEST_DIR")).join(dir).join("mysql-path.sh"));
    let script = place.into_iter().find(|path| path.exists()).expect("scripts/mysql-path.sh");
    let output = Command::new(script).arg(flavour.name()).output().expect("scripts/mysql-path.sh runs");
    assert!(output.status.success(), "no {} to test with: {}", flavour.name(), String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}");
}

fn is_root() -> bool {
    static ROOT: OnceLock<bool> = OnceLock::new();
    *ROOT.get_or_init(|| Command::new("id").arg("-u").output().expect("id").stdout.starts_with(b"0\n"))
}

/// Polls until it holds; panics after a minute.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A connector's first start.
pub async fn start(connector: &dyn SourceConnector) -> Start {
    let intent = connector.prepare().await.unwrap_or_else(|error| panic!("prepare: {error}"));
    connector.create(&intent, false).await.unwrap_or_else(|error| panic!("create: {error}"))
}

/// An open source with what it brought.
pub struct Reader {
    pub source: Box<dyn Source>,
    /// A line per change: operation, table, values after or before.
    pub lines: Vec<String>,
    pub position: Position,
}

impl Reader {
    pub async fn open(connector: &dyn SourceConnector, start: &Start) -> Self {
        let source = connector.open(&start.identity, &start.position).await.unwrap_or_else(|error| panic!("open: {error}"));
        Self { source, lines: Vec::new(), position: start.position.clone() }
    }

    pub async fn batch(&mut self) -> Result<Batch, Error> {
        let mut batch = Batch::default();
        let limits = Limits { max_wait: Duration::from_millis(200), ..Limits::default() };
        self.source.next_batch(&mut batch, &limits).await?;
        for change in batch.changes() {
            let row = change.after.or(change.before.row());
            let values: Vec<String> = row.map(|row| batch.values(row).map(show).collect()).unwrap_or_default();
            let table = &batch.schemas()[change.schema as usize].table;
            self.lines.push(format!("{:?} {} {}", change.op, table.split_once('.').expect("a table").1, values.join(",")));
        }
        if let Some(position) = batch.position() {
            self.position = position.clone();
        }
        Ok(batch)
    }

    /// Reads until so many changes are there.
    pub async fn read(&mut self, count: usize) -> &[String] {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.lines.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} changes came: {:?}", self.lines.len(), self.lines);
            self.batch().await.unwrap_or_else(|error| panic!("{error}\nbefore: {:?}", self.lines));
        }
        assert_eq!(self.lines.len(), count, "{:?}", self.lines);
        &self.lines
    }

    /// Reads until it fails for good.
    pub async fn stops(&mut self) -> Error {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            assert!(Instant::now() < deadline, "nothing stopped it: {:?}", self.lines);
            match self.batch().await {
                Ok(_) => {}
                Err(error) if error.kind() == Kind::Retry => panic!("{error}"),
                Err(error) => return error,
            }
        }
    }
}

/// A value as text.
pub fn show(value: Value<'_>) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Unchanged => "<unchanged>".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Uint(value) => value.to_string(),
        Value::Text(text) | Value::Json(text) => text.to_owned(),
        Value::Bytes(bytes) => format!("{bytes:02x?}"),
        Value::Invalid(bytes) => format!("invalid {bytes:02x?}"),
    }
}

/// Each function as a test on each flavour.
macro_rules! on_both {
    ($($name:ident)*) => {
        mod mariadb {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(Flavour::Mariadb).await;
                }
            )*
        }

        mod mysql {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(Flavour::Mysql).await;
                }
            )*
        }
    };
}

#[allow(unused_imports, reason = "the daemon's tests use this file too")]
pub(crate) use on_both;
