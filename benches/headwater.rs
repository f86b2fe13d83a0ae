//! The daemon under measurement.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    backlog::Backlog,
    drain::{Contestant, Drained},
    postgres::PostgresServer,
    process::{cpu, get, memory_kib},
    server::Server,
    support::{free_port, signal, temp_dir, wait_exit, wait_until},
};

/// Longer than anything here takes.
pub const LIMIT: Duration = Duration::from_secs(900);

/// A daemon with one connector over the table `bench`.
pub struct Daemon {
    dir: TempDir,
    port: u16,
    child: Option<Child>,
}

impl Daemon {
    /// Starts a connector of this name on a slot that exists or is made; it reads no rows that are there already.
    pub fn start(server: &Server<'_>, log: Contestant, name: &str, slot: &str) -> Self {
        Self::start_with(server, log, name, slot, "never")
    }

    /// The same, with what the config says about such rows.
    pub fn start_with(server: &Server<'_>, log: Contestant, name: &str, slot: &str, backfill: &str) -> Self {
        let mut daemon = Self::prepare(server, log, name, slot, backfill);
        daemon.start_again(server);
        daemon
    }

    /// Only writes the config.
    fn prepare(server: &Server<'_>, log: Contestant, name: &str, slot: &str, backfill: &str) -> Self {
        let (dir, port) = (temp_dir(), free_port());
        let place = match log {
            Contestant::Kafka => format!("{{ kind: kafka, bootstrap_servers: [\"{}\"] }}", server.kafka().bootstrap),
            _ => "{ kind: embedded, path: ./log }".to_owned(),
        };
        let source = server.source.config(slot).join("\n      ");
        let text = format!(
            "log: {place}\nhttp: {{ listen: 127.0.0.1:{port} }}\nconnectors:\n  {name}:\n    source:\n      {source}\n      \
             backfill: {backfill}\n"
        );
        fs::write(dir.path().join("headwater.yaml"), text).expect("the config");
        Self { dir, port, child: None }
    }

    /// A connector that has seen where the server stands, and has ended.
    pub fn stand(server: &Server<'_>, log: Contestant, name: &str, slot: &str) -> Self {
        let mut daemon = Self::start(server, log, name, slot);
        daemon.wait_for("streaming", |connector| connector["state"] == "streaming");
        daemon.end();
        daemon
    }

    /// Starts it, or once more, on the same config.
    pub fn start_again(&mut self, server: &Server<'_>) {
        self.child = Some(spawn(&self.dir.path().to_owned(), server.source.password()));
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("SIGKILL");
            child.wait().expect("its end");
        }
    }

    /// SIGTERM.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal(&child, "TERM");
            wait_exit(&mut child, "headwater", LIMIT);
        }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a process").id()
    }

    /// The directory of its config and of its embedded log.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Waits until its one connector shows something in the status.
    pub fn wait_for(&mut self, what: &str, mut is_so: impl FnMut(&serde_json::Value) -> bool) {
        let url = format!("http://127.0.0.1:{}/v1/status", self.port);
        wait_until(what, LIMIT, || {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().expect("its state")) {
                panic!("headwater ended with {status}: {}", self.said());
            }
            let status = get(&url).ok_or("no answer")?;
            let connector = &status["connectors"][0];
            if is_so(connector) { Ok(()) } else { Err(connector.to_string()) }
        });
    }

    fn said(&self) -> String {
        fs::read_to_string(self.dir.path().join("output")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn spawn(dir: &PathBuf, password: &str) -> Child {
    let output = fs::File::options().create(true).append(true).open(dir.join("output")).expect("its output");
    Command::new(env!("CARGO_BIN_EXE_headwater"))
        .args(["-c", "headwater.yaml", "run"])
        .current_dir(dir)
        .env("BENCH_PASSWORD", password)
        .stdin(Stdio::null())
        .stdout(output.try_clone().expect("a second handle"))
        .stderr(output)
        .spawn()
        .expect("headwater starts")
}

/// Drains a backlog by a daemon that stands in front of it or has a slot there.
pub fn drain(server: &Server<'_>, backlog: &Backlog, log: Contestant, round: usize, standing: Option<Daemon>) -> Drained {
    let name = name(server, backlog.case, log, round);
    let mut daemon = standing.unwrap_or_else(|| Daemon::prepare(server, log, &name, &log.slot(round), "never"));
    let began = Instant::now();
    daemon.start_again(server);
    daemon.wait_for("all rows", |connector| connector["events"].as_u64() == Some(backlog.rows));
    let drained =
        Drained { seconds: began.elapsed().as_secs_f64(), cpu: cpu(daemon.pid()), peak_kib: memory_kib(daemon.pid(), "VmHWM") };
    daemon.stop();
    drained
}

/// The connector's name in a case and round.
pub fn name(server: &Server<'_>, case: &str, log: Contestant, round: usize) -> String {
    format!("{}_{case}_{}", server.source.name(), log.slot(round))
}

/// From the start of the process after a SIGKILL until the first new event is committed.
pub fn restarts(postgres: &PostgresServer, server: &Server<'_>) {
    println!(
        "\n### restart\n\nSIGKILL while 100-row transactions flow, then a new process: until its first event is committed.\n"
    );
    println!("| Log | Seconds, each of 5 |\n|---|---|");
    for log in [Contestant::Embedded, Contestant::Kafka] {
        let table = crate::latency::Table::make(postgres);
        let name = format!("restart_{}", log.slot(0));
        let mut daemon = Daemon::start(server, log, &name, &name);
        daemon.wait_for("streaming", |connector| connector["state"] == "streaming");
        let load = table.load(postgres, 2_000.0);
        let mut seconds = Vec::new();
        for _ in 0..5 {
            daemon.wait_for("events", |connector| connector["events"].as_u64() > Some(2_000));
            daemon.kill();
            let began = Instant::now();
            daemon.start_again(server);
            daemon.wait_for("the first event", |connector| connector["events"].as_u64() > Some(0));
            seconds.push(format!("{:.2}", began.elapsed().as_secs_f64()));
        }
        load.stop();
        println!("| {} | {} |", log.title(), seconds.join(", "));
        daemon.stop();
        table.drop(postgres);
    }
}

/// Memory of a daemon that has nothing to do.
pub fn idle(postgres: &PostgresServer, server: &Server<'_>) {
    println!("\n### idle\n\nA fresh connector over one table without traffic, 10 s after it streams.\n");
    println!("| Log | Resident MiB | CPU ms in 10 s |\n|---|---|---|");
    for log in [Contestant::Embedded, Contestant::Kafka] {
        let table = crate::latency::Table::make(postgres);
        let name = format!("idle_{}", log.slot(0));
        let mut daemon = Daemon::start(server, log, &name, &name);
        daemon.wait_for("streaming", |connector| connector["state"] == "streaming");
        let before = cpu(daemon.pid());
        std::thread::sleep(Duration::from_secs(10));
        let (now, kib) = (cpu(daemon.pid()), memory_kib(daemon.pid(), "VmRSS"));
        println!("| {} | {} | {} |", log.title(), kib / 1024, (now - before).as_millis());
        daemon.stop();
        table.drop(postgres);
    }
}
