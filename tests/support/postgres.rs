//! A PostgreSQL of the test's own: real server, own directory, own port, gone when the test ends, also by panic.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use postgres::{Client, Config, NoTls, SimpleQueryMessage};
use tempfile::TempDir;

use super::{PATIENCE, free_port, postgres_bin, signal, temp_dir, wait_exit, wait_until};

/// The password of every role that the tests make.
pub const PASSWORD: &str = "secret-of-the-tests";

/// A running server.
pub struct Postgres {
    bin: PathBuf,
    dir: TempDir,
    port: u16,
    process: Mutex<Option<Child>>,
    databases: AtomicU32,
}

impl Postgres {
    /// A server for logical replication.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A server with further lines for its configuration; the last line of a name wins.
    pub fn start_with(settings: &[&str]) -> Self {
        Self::start_from(postgres_bin(None), settings)
    }

    /// A server of a certain major version, whatever the version of this run is.
    pub fn start_version(major: u32, settings: &[&str]) -> Self {
        Self::start_from(postgres_bin(Some(major)), settings)
    }

    /// A standby of this server, which goes on meanwhile. It keeps the replication slots of this server out of it.
    pub fn standby(&self, settings: &[&str]) -> Self {
        let server = Self {
            bin: self.bin.clone(),
            dir: temp_dir(),
            port: free_port(),
            process: Mutex::new(None),
            databases: AtomicU32::new(0),
        };
        // By hand, since not every build of the server brings pg_basebackup.
        let mut client = self.client("postgres");
        client.batch_execute("SELECT pg_backup_start('standby', true)").expect("a backup");
        let copied = Command::new("cp").arg("-a").args([self.data(), server.data()]).status();
        assert!(copied.expect("cp runs").success(), "the data directory can be copied");
        let label: String =
            client.query_one("SELECT labelfile FROM pg_backup_stop(false)", &[]).expect("the end of the backup").get(0);
        fs::remove_file(server.data().join("postmaster.pid")).expect("the primary's file");
        let slots = fs::read_dir(server.data().join("pg_replslot")).expect("the slots");
        slots.for_each(|slot| fs::remove_dir_all(slot.expect("a slot").path()).expect("a slot can be removed"));
        let (label_file, signal_file) = (server.data().join("backup_label"), server.data().join("standby.signal"));
        fs::write(&label_file, label).expect("backup_label");
        fs::write(&signal_file, "").expect("standby.signal");
        as_server_user_owns(&[server.dir.path(), &label_file, &signal_file]);
        let source = format!("host=127.0.0.1 port={} user=postgres password={PASSWORD}", self.port);
        let config = server.data().join("postgresql.conf");
        let mut text = fs::read_to_string(&config).expect("postgresql.conf");
        text.push_str(&format!("port = {}\nprimary_conninfo = '{source}'\n{}\n", server.port, settings.join("\n")));
        fs::write(config, text).expect("postgresql.conf");
        server.launch();
        server
    }

    fn start_from(bin: PathBuf, settings: &[&str]) -> Self {
        let dir = temp_dir();
        let server = Self { bin, dir, port: free_port(), process: Mutex::new(None), databases: AtomicU32::new(0) };
        server.init(settings);
        server.launch();
        server
    }

    /// One server for all tests that do not mistreat it. It lives as long as one of them runs.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let server = Arc::new(Self::start());
        *shared = Arc::downgrade(&server);
        server
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A new, empty database.
    pub fn database(&self) -> Database<'_> {
        let name = format!("shop_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.client("postgres").batch_execute(&format!("CREATE DATABASE {name}")).expect("a database");
        Database { server: self, name }
    }

    /// A connection as the superuser.
    pub fn client(&self, database: &str) -> Client {
        self.connect(database).unwrap_or_else(|error| panic!("cannot connect to {database}: {error}\n{}", self.log()))
    }

    /// Stops without a checkpoint and starts again: what a crash of the server looks like to its clients.
    pub fn crash_and_restart(&self) {
        self.stop("QUIT");
        self.launch();
    }

    /// Stops in order; clients are thrown out.
    pub fn shut_down(&self) {
        self.stop("INT");
    }

    /// Starts again after [`shut_down`](Self::shut_down).
    pub fn start_again(&self) {
        self.launch();
    }

    fn connect(&self, database: &str) -> Result<Client, postgres::Error> {
        Config::new()
            .host("127.0.0.1")
            .port(self.port)
            .user("postgres")
            .password(PASSWORD)
            .dbname(database)
            .connect_timeout(Duration::from_secs(10))
            .connect(NoTls)
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("server.log")).unwrap_or_default()
    }

    fn init(&self, settings: &[&str]) {
        let password = self.dir.path().join("password");
        fs::write(&password, PASSWORD).expect("the password file");
        let data = self.data();
        fs::create_dir(&data).expect("the data directory");
        as_server_user_owns(&[self.dir.path(), &data, &password]);
        let output = self
            .program("initdb")
            .args(["-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync"])
            .args(["--auth-local=trust", "--auth-host=scram-sha-256"])
            .arg(format!("--pwfile={}", password.display()))
            .arg("-D")
            .arg(&data)
            .output()
            .expect("initdb runs");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        let config = data.join("postgresql.conf");
        let mut text = fs::read_to_string(&config).expect("postgresql.conf");
        text.push_str(&format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = ''\nwal_level = logical\nfsync = off\n\
             max_wal_senders = 100\nmax_replication_slots = 200\npassword_encryption = 'scram-sha-256'\nlog_line_prefix = '%t %p %d '\n\
             deadlock_timeout = '50ms'\nshared_buffers = '64MB'\n{}\n",
            self.port,
            settings.join("\n")
        ));
        fs::write(config, text).expect("postgresql.conf");
    }

    /// A program of the server as the user that may run it: PostgreSQL refuses root.
    fn program(&self, name: &str) -> Command {
        let program = self.bin.join(name);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        // The working directory of the tests may be closed to that user, and messages must not depend on the machine's language.
        command.current_dir("/").env("LC_ALL", "C").env("HOME", "/tmp");
        command
    }

    fn launch(&self) {
        let log =
            fs::File::options().create(true).append(true).open(self.dir.path().join("server.log")).expect("the server's log");
        let child = self
            .program("postgres")
            .arg("-D")
            .arg(self.data())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("postgres starts");
        *self.process.lock().expect("the process") = Some(child);
        wait_until("PostgreSQL to accept connections", PATIENCE, || {
            if let Some(child) = self.process.lock().expect("the process").as_mut()
                && let Some(status) = child.try_wait().expect("a child can be waited for")
            {
                panic!("postgres ended with {status}: {}", self.log());
            }
            self.connect("postgres").map(drop).map_err(|error| error.to_string())
        });
    }

    fn stop(&self, name: &str) {
        if let Some(mut child) = self.process.lock().expect("the process").take() {
            signal(&child, name);
            wait_exit(&mut child, "PostgreSQL", PATIENCE);
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let process = self.process.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(mut child) = process.take() {
            // SIGQUIT is the immediate shutdown: it takes the server's children along, which SIGKILL would leave behind.
            let _ = Command::new("kill").arg("-QUIT").arg(child.id().to_string()).status();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- last lines of PostgreSQL's log\n{}", lines[lines.len().saturating_sub(15)..].join("\n"));
        }
    }
}

/// One database of a server.
pub struct Database<'a> {
    /// Its server.
    pub server: &'a Postgres,
    /// Its name.
    pub name: String,
}

impl Database<'_> {
    /// The URL that a config names, without the password.
    pub fn url(&self) -> String {
        self.url_as("postgres")
    }

    /// The URL for another role.
    pub fn url_as(&self, role: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/{}", self.server.port, self.name)
    }

    /// Runs statements, all in one implicit transaction.
    pub fn sql(&self, statements: &str) {
        self.client().batch_execute(statements).unwrap_or_else(|error| panic!("{statements}: {error:?}"));
    }

    /// The rows of a query as text.
    pub fn rows(&self, query: &str) -> Vec<Vec<String>> {
        let messages = self.client().simple_query(query).unwrap_or_else(|error| panic!("{query}: {error:?}"));
        let mut rows = Vec::new();
        for message in messages {
            if let SimpleQueryMessage::Row(row) = message {
                rows.push((0..row.len()).map(|at| row.get(at).unwrap_or_default().to_owned()).collect());
            }
        }
        rows
    }

    /// The only value of a query.
    pub fn value(&self, query: &str) -> String {
        let rows = self.rows(query);
        assert!(rows.len() == 1 && rows[0].len() == 1, "{query}: {rows:?}");
        rows[0][0].clone()
    }

    /// A connection as the superuser.
    pub fn client(&self) -> Client {
        self.server.client(&self.name)
    }

    /// The same where the server may refuse it now.
    pub fn try_client(&self) -> Result<Client, postgres::Error> {
        self.server.connect(&self.name)
    }

    /// The name of the one slot that is not the oracle's.
    pub fn slot(&self) -> String {
        self.value("SELECT slot_name FROM pg_replication_slots WHERE database = current_database() AND plugin = 'pgoutput'")
    }
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().expect("id runs");
    output.stdout == b"0\n"
}

fn as_server_user_owns(paths: &[&Path]) {
    if is_root() {
        let status = Command::new("chown").arg("postgres:postgres").args(paths).status().expect("chown runs");
        assert!(status.success(), "no operating system user postgres to run PostgreSQL as");
    }
}
