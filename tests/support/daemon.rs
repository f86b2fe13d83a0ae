//! The real binary: one-shot commands and the running daemon, each with a config directory of its own.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    PATIENCE, free_port,
    postgres::{Database, PASSWORD},
    record::Record,
    signal, temp_dir, wait_exit, wait_until,
};

/// The variable that holds the password in the configs of the tests.
pub const PASSWORD_VARIABLE: &str = "SHOP_PASSWORD";

/// A config directory, and where the embedded log of its daemon lives.
pub struct Home {
    dir: TempDir,
    port: u16,
    environment: Vec<(String, String)>,
}

impl Home {
    /// A new home whose connector `shop` captures one small table, `public.orders`, that is made here.
    pub fn of_orders(database: &Database) -> Self {
        database.sql("CREATE TABLE public.orders (id int PRIMARY KEY, note text)");
        let home = Self::new();
        home.shop(&database.url(), "public.orders", "");
        home
    }

    /// A directory with a main file for the embedded log; connectors are still missing.
    pub fn new() -> Self {
        let home = Self::with_main("");
        home.write("headwater.yaml", &home.main("{ kind: embedded, path: ./data }"));
        home
    }

    /// A directory with this main file.
    pub fn with_main(main: &str) -> Self {
        let environment = vec![(PASSWORD_VARIABLE.to_owned(), PASSWORD.to_owned())];
        let home = Self { dir: temp_dir(), port: free_port(), environment };
        home.write("headwater.yaml", main);
        home
    }

    /// The usual main file over another log.
    pub fn main(&self, log: &str) -> String {
        format!("log: {log}\nhttp: {{ listen: 127.0.0.1:{} }}\ninclude: [ connectors/*.yaml ]\n", self.port)
    }

    /// The usual connector `shop` over these tables; `more` holds further lines, indented as they stand in the file.
    pub fn shop(&self, url: &str, tables: &str, more: &str) {
        // Slots belong to the whole server: tests that share one need names of their own, and each has a database of its own.
        let database: String = url.rsplit('/').next().unwrap_or_default().split('?').next().unwrap_or_default().to_owned();
        self.write(
            "connectors/shop.yaml",
            &format!(
                "connectors:\n  shop:\n    source:\n      kind: postgres\n      url: {url}\n      \
                 password: {{ env: {PASSWORD_VARIABLE} }}\n      tables: [ {tables} ]\n      slot: headwater_{database}\n{more}"
            ),
        );
    }

    /// Writes a file of the directory.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, text).expect("a config file");
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Sets a variable for every command.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Where the daemon serves HTTP.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Runs one command to its end.
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        self.run_within(arguments, PATIENCE)
    }

    /// Runs one command that must end within this time.
    pub fn run_within(&self, arguments: &[&str], deadline: Duration) -> Outcome {
        // Output goes through files: a full pipe would block the command while we wait for its end.
        let out = tempfile::NamedTempFile::new().expect("a file for stdout");
        let err = tempfile::NamedTempFile::new().expect("a file for stderr");
        let mut child = self
            .command(arguments)
            .stdout(out.reopen().expect("a handle"))
            .stderr(err.reopen().expect("a handle"))
            .spawn()
            .expect("headwater starts");
        let status = wait_exit(&mut child, &format!("headwater {}", arguments.join(" ")), deadline);
        let read = |path: &Path| fs::read(path).expect("its output");
        Outcome::new(arguments, Output { status, stdout: read(out.path()), stderr: read(err.path()) })
    }

    /// Starts the daemon.
    pub fn start(&self) -> Daemon<'_> {
        self.start_with(&[])
    }

    /// Starts the daemon with variables for this life only.
    pub fn start_with(&self, environment: &[(&str, &str)]) -> Daemon<'_> {
        let open = |name: &str| fs::File::options().create(true).append(true).open(self.path(name)).expect("an output file");
        let mut command = self.command(&["run"]);
        command.envs(environment.iter().copied()).stdout(open("stdout")).stderr(open("stderr"));
        let child = command.spawn().expect("headwater starts");
        Daemon { home: self, child: Some(child) }
    }

    /// Starts the daemon with this as its stderr.
    pub fn start_on(&self, stderr: fs::File) -> Daemon<'_> {
        let out = fs::File::options().create(true).append(true).open(self.path("stdout")).expect("an output file");
        let mut command = self.command(&["run"]);
        command.env("TERM", "xterm").stdout(out).stderr(stderr);
        Daemon { home: self, child: Some(command.spawn().expect("headwater starts")) }
    }

    /// Starts the daemon under a program that ends by becoming it, so that its pid is the daemon's.
    pub fn start_under(&self, wrapper: &[&str]) -> Daemon<'_> {
        let open = |name: &str| fs::File::options().create(true).append(true).open(self.path(name)).expect("an output file");
        let command = self.wrapped(wrapper, &["run"]).stdout(open("stdout")).stderr(open("stderr")).spawn();
        Daemon { home: self, child: Some(command.expect("the wrapper starts")) }
    }

    /// Runs one command under a program that ends by becoming it.
    pub fn run_under(&self, wrapper: &[&str], arguments: &[&str]) -> Outcome {
        Outcome::new(arguments, self.wrapped(wrapper, arguments).output().expect("the wrapper starts"))
    }

    fn wrapped(&self, wrapper: &[&str], arguments: &[&str]) -> Command {
        let plain = self.command(arguments);
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(plain.get_program()).args(plain.get_args()).stdin(Stdio::null());
        command.current_dir(self.dir.path());
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }

    /// Everything in a topic from the first record to the last committed one.
    pub fn tail(&self, topic: &str) -> Vec<Record> {
        self.tail_with(topic, &["--from", "earliest"])
    }

    /// Shows each committed record of a topic, as it is read: for topics that are too large to be held.
    pub fn tail_each(&self, topic: &str, mut each: impl FnMut(Record)) {
        let mut command = self.command(&["tail", topic, "--until-end", "--format", "json", "--from", "earliest"]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("headwater starts");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        lines.for_each(|line| each(Record::parse(&line.expect("a line of UTF-8"))));
        assert!(child.wait().expect("its end").success(), "tail {topic}");
    }

    /// Committed records of a topic.
    pub fn tail_with(&self, topic: &str, arguments: &[&str]) -> Vec<Record> {
        let mut all = vec!["tail", topic, "--until-end", "--format", "json"];
        all.extend(arguments);
        let outcome = self.run(&all);
        outcome.expect_code(0);
        outcome.stdout.lines().map(Record::parse).collect()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headwater"));
        // Variables that steer the tests would reach the daemon as options of its config.
        for (name, _) in std::env::vars() {
            if name.starts_with("HEADWATER_") {
                command.env_remove(name);
            }
        }
        command.current_dir(self.dir.path()).args(["-c", "headwater.yaml"]).args(arguments).stdin(Stdio::null());
        command.env("NO_COLOR", "1").envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// What a command said and how it ended.
pub struct Outcome {
    /// The command, for messages.
    pub command: String,
    /// Its exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Outcome {
    fn new(arguments: &[&str], output: Output) -> Self {
        Self {
            command: format!("headwater {}", arguments.join(" ")),
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
        }
    }

    /// Fails with everything that was said unless the command ended with this code.
    pub fn expect_code(&self, code: i32) {
        assert_eq!(self.code, Some(code), "{}\n--- stdout\n{}\n--- stderr\n{}", self.command, self.stdout, self.stderr);
    }

    /// stdout as one JSON document.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{}: {error}: {}", self.command, self.stdout))
    }

    /// Everything it said.
    pub fn said(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// A running daemon; it is killed when the test ends, and what it said is printed when the test fails.
pub struct Daemon<'a> {
    home: &'a Home,
    child: Option<Child>,
}

impl Daemon<'_> {
    /// SIGKILL.
    pub fn kill9(mut self) {
        let mut child = self.child.take().expect("a daemon is stopped once");
        assert!(child.try_wait().expect("its state").is_none(), "the daemon was not running any more:\n{}", self.stderr());
        child.kill().expect("SIGKILL");
        child.wait().expect("its end");
    }

    /// SIGTERM, and the exit code.
    pub fn terminate(self) -> Option<i32> {
        self.signal("TERM");
        self.exit_code()
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        signal(self.child.as_ref().expect("a running daemon"), name);
    }

    /// Waits for the daemon to end by itself.
    pub fn exit_code(mut self) -> Option<i32> {
        let mut child = self.child.take().expect("a daemon is stopped once");
        let end = std::time::Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().expect("its state") {
                return status.code();
            }
            if std::time::Instant::now() > end {
                self.child = Some(child);
                panic!("the daemon did not end within {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running daemon").id()
    }

    /// Waits until a fault that was planned has ended the process; fails if it ended otherwise.
    pub fn wait_fault(mut self, fault: &str) {
        let mut child = self.child.take().expect("a daemon is stopped once");
        let status = wait_exit(&mut child, &format!("headwater with the fault {fault}"), PATIENCE);
        let said = self.stderr();
        assert_eq!(status.code(), None, "the daemon did not reach {fault}, it ended in order: {said}");
        let point = format!("fault {fault} Abort");
        assert!(said.lines().any(|line| line == point), "the daemon died elsewhere than at {fault}: {said}");
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("its state").is_none())
    }

    /// Everything it wrote to stderr, in all its lives in this directory.
    pub fn stderr(&self) -> String {
        fs::read_to_string(self.home.path("stderr")).unwrap_or_default()
    }

    /// `status --format json`; an error is what the command said.
    pub fn status(&self) -> Result<Value, String> {
        let outcome = self.home.run(&["status", "--format", "json"]);
        match outcome.code {
            Some(0) => Ok(outcome.json()),
            _ => Err(outcome.said()),
        }
    }

    /// One connector of the status.
    pub fn connector(&self, name: &str) -> Result<Value, String> {
        let status = self.status()?;
        let all = status["connectors"].as_array().ok_or_else(|| status.to_string())?;
        all.iter().find(|connector| connector["name"] == name).cloned().ok_or_else(|| status.to_string())
    }

    /// Waits for a state and returns the connector's status.
    pub fn wait_state(&mut self, name: &str, state: &str) -> Value {
        self.wait_for(name, &format!("state {state}"), |connector| connector["state"] == state)
    }

    /// Waits until everything that was committed at the source before the call is committed in the log.
    pub fn wait_caught_up(&mut self, name: &str) -> Value {
        self.wait_for(name, "lag 0", |connector| connector["state"] == "streaming" && connector["lag"]["bytes"] == 0)
    }

    /// Waits for a condition of one connector's status; a daemon that has ended fails at once.
    pub fn wait_for(&mut self, name: &str, what: &str, mut is_so: impl FnMut(&Value) -> bool) -> Value {
        wait_until(&format!("connector {name} to show {what}"), PATIENCE, || {
            assert!(self.is_running(), "the daemon ended while we waited for {what} of {name}");
            let connector = self.connector(name)?;
            if is_so(&connector) { Ok(connector) } else { Err(connector.to_string()) }
        })
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let stdout = fs::read_to_string(self.home.path("stdout")).unwrap_or_default();
            eprintln!("--- stdout of the daemon\n{stdout}\n--- stderr of the daemon\n{}", self.stderr());
        }
    }
}
