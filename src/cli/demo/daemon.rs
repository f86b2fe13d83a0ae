//! The headwater of the demo: a process of its own, so that it can really be killed.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use headwater_connector::Result;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::{
    failed,
    server::{Server, free_port},
    show::Show,
};

/// How long the daemon may take until it streams.
const START: Duration = Duration::from_secs(30);

/// How fast the rows are read that are there before the start.
const ROWS_PER_SECOND: u32 = 2_000;

/// A running daemon and how to start it again.
pub struct Daemon {
    child: Child,
    directory: PathBuf,
    port: u16,
}

impl Daemon {
    /// Writes the config that a user would write, starts the daemon, and waits until it streams.
    pub async fn start(directory: &Path, server: &Server, schema: &str, show: &Show) -> Result<Self> {
        let port = free_port()?;
        let config = serde_json::json!({
            "log": { "kind": "embedded", "path": directory.join("log") },
            "http": { "listen": format!("127.0.0.1:{port}") },
            "connectors": { schema: { "source": {
                "kind": server.address.monolith.kind(),
                "url": server.address.url,
                // So slowly that a person can follow, and that it is killed in the middle.
                "backfill": { "rows_per_second": ROWS_PER_SECOND },
                "tables": [format!("{schema}.customers"), format!("{schema}.orders"), format!("{schema}.payments")],
            } } },
        });
        let path = directory.join("headwater.json");
        fs::write(&path, config.to_string()).map_err(|error| failed("the config cannot be written").caused_by(error))?;
        let child = spawn(directory)?;
        let daemon = Self { child, directory: directory.to_owned(), port };
        daemon.until_streaming().await?;
        show.daemon_started(daemon.child.id());
        Ok(daemon)
    }

    /// Where its log is.
    pub fn log_path(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// SIGKILL: no time to say goodbye. Whether rows were being read.
    pub async fn kill(&mut self, show: &Show) -> bool {
        let (pid, reading) = (self.child.id(), self.reading().await);
        // Fails only if it is dead already, which `until_streaming` would report.
        drop(self.child.start_kill());
        show.killed(pid, reading);
        reading.is_some()
    }

    /// Starts it again and waits until it streams.
    pub async fn restart(&mut self, show: &Show) -> Result<()> {
        drop(self.child.wait().await);
        let began = Instant::now();
        self.child = spawn(&self.directory)?;
        self.until_streaming().await?;
        show.restarted(self.child.id(), began.elapsed());
        Ok(())
    }

    /// Stops it for good. Its database objects are free once it is gone.
    pub async fn stop(&mut self) {
        if let Some(pid) = self.child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
            // Fails only if it is dead already, which is what we want.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        if timeout(Duration::from_secs(6), self.child.wait()).await.is_err() {
            drop(self.child.kill().await);
        }
    }

    /// Waits until the rows that were there are read, or the deadline is over.
    pub async fn until_read(&self, deadline: Instant) {
        while self.reading().await.is_some() && Instant::now() < deadline {
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Rows read so far, while there are more.
    async fn reading(&self) -> Option<u64> {
        let url = format!("http://127.0.0.1:{}/v1/status", self.port);
        let ask = move || ureq::get(&url).call().ok()?.body_mut().read_json::<serde_json::Value>().ok();
        let status = tokio::task::spawn_blocking(ask).await.ok()??;
        let connector = &status["connectors"][0];
        let rows = |table: &serde_json::Value| table["rows"].as_u64().unwrap_or(0);
        (connector["state"] == "backfilling")
            .then(|| connector["backfills"].as_array().map_or(0, |all| all.iter().map(rows).sum()))
    }

    async fn until_streaming(&self) -> Result<()> {
        let url = format!("http://127.0.0.1:{}/readyz", self.port);
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            let url = url.clone();
            let ready = tokio::task::spawn_blocking(move || ureq::get(&url).call().is_ok()).await;
            if matches!(ready, Ok(true)) {
                return Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
        let log = fs::read_to_string(self.directory.join("daemon.log")).unwrap_or_default();
        let last = log.lines().last().unwrap_or("it wrote nothing").to_owned();
        Err(failed("the daemon does not stream").at("its last words", last))
    }
}

fn spawn(directory: &Path) -> Result<Child> {
    let trouble = |error| failed("the daemon cannot be started").caused_by(error);
    let program = std::env::current_exe().map_err(trouble)?;
    let log = File::options().create(true).append(true).open(directory.join("daemon.log")).map_err(trouble)?;
    let mut command = Command::new(program);
    command.arg("-c").arg(directory.join("headwater.json")).arg("run").stdin(std::process::Stdio::null());
    // The user's own settings must not reach the demo's daemon.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HEADWATER_")) {
        command.env_remove(name);
    }
    command.stdout(log.try_clone().map_err(trouble)?).stderr(log).process_group(0).kill_on_drop(true);
    command.spawn().map_err(trouble)
}
