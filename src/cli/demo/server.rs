//! A PostgreSQL for the demo: one that is there, or one that is started in a temporary directory.

use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use headwater_connector::{Error, Result};
use headwater_postgres::Session;

use super::{failed, show::Show};
use crate::cli::codes;

/// A server that the shop runs on.
pub struct Server {
    url: String,
    /// Held for its drop, which stops it.
    _own: Option<Cluster>,
}

/// A server that was started here; stopped on drop.
struct Cluster {
    binaries: PathBuf,
    data: PathBuf,
    user: Option<(u32, u32)>,
}

impl Server {
    /// The user's own server.
    pub fn existing(url: &str) -> Self {
        Self { url: url.to_owned(), _own: None }
    }

    /// Makes a cluster in `directory` and starts it on a free port of loopback.
    pub async fn start(directory: &Path, show: &Show) -> Result<Self> {
        let binaries = find_binaries()?;
        show.step("starting a PostgreSQL in a temporary directory");
        let data = directory.join("postgres");
        let port = free_port()?;
        // PostgreSQL refuses to run as root, so a root user hands the directory to an ordinary one.
        let user = if fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0) {
            Some(ordinary_user()?)
        } else {
            None
        };
        let cluster = Cluster { binaries, data, user };
        tokio::task::spawn_blocking(move || {
            cluster.initialise(port)?;
            cluster.pg_ctl(&["-w", "-t", "60", "-l", "server.log", "start"])?;
            Ok(Self { url: format!("postgres://postgres@127.0.0.1:{port}/postgres"), _own: Some(cluster) })
        })
        .await
        .map_err(|error| failed("starting PostgreSQL was interrupted").caused_by(error))?
    }

    /// The URL of the database.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A session of its own.
    pub async fn session(&self) -> Result<Session> {
        Session::open(&self.url).await
    }

    /// What runs there.
    pub async fn describe(&self) -> Result<String> {
        let mut session = self.session().await?;
        let rows = session.query("SELECT current_setting('server_version')").await?;
        let version = rows.first().and_then(|row| row.first().cloned().flatten()).unwrap_or_default();
        Ok(format!("PostgreSQL {}", version.split(' ').next().unwrap_or_default()))
    }

    /// Stops what was started here.
    pub async fn stop(self) {
        // Dropping stops it; a blocking thread keeps the show going.
        drop(tokio::task::spawn_blocking(move || drop(self)).await);
    }
}

impl Cluster {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.binaries.join(program));
        command.current_dir(&self.data).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // A terminal's Ctrl-C goes to its whole process group; the server is stopped by us, in order.
        command.process_group(0);
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        command
    }

    fn initialise(&self, port: u16) -> Result<()> {
        let trouble = |error| failed("the directory of the server cannot be made").caused_by(error);
        fs::create_dir_all(&self.data).map_err(trouble)?;
        if let Some((user, group)) = self.user {
            chown(&self.data, Some(user), Some(group)).map_err(trouble)?;
        }
        let data = self.data.join("data");
        let data = data.to_string_lossy();
        let mut initdb = self.command("initdb");
        run(initdb.args(["-D", &data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]))?;
        let settings = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nwal_level = logical\nfsync = off\n\
             logging_collector = off\n"
        );
        let file = self.data.join("data/postgresql.auto.conf");
        fs::write(&file, settings).map_err(trouble)
    }

    fn pg_ctl(&self, arguments: &[&str]) -> Result<()> {
        run(self.command("pg_ctl").arg("-D").arg(self.data.join("data")).args(arguments).stderr(Stdio::null()))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Nothing in it is worth a clean stop, and an error here has nobody to hear it.
        drop(self.pg_ctl(&["-m", "immediate", "-t", "20", "stop"]));
    }
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| failed(format!("{name} cannot be run")).caused_by(error))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let last = message.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message").to_owned();
    Err(failed(format!("{name} failed: {last}")))
}

/// `HEADWATER_PG_BIN`, else PATH, else where distributions put them, the newest first.
fn find_binaries() -> Result<PathBuf> {
    let complete = |directory: &PathBuf| ["initdb", "pg_ctl", "postgres"].iter().all(|name| directory.join(name).exists());
    if let Some(directory) = std::env::var_os("HEADWATER_PG_BIN").map(PathBuf::from) {
        return Some(directory.clone()).filter(complete).ok_or_else(|| {
            Error::new(&codes::DEMO, "HEADWATER_PG_BIN does not hold initdb, pg_ctl and postgres")
                .at("directory", directory.display())
                .hint("Point HEADWATER_PG_BIN at the bin directory of a PostgreSQL server.")
        });
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut packaged: Vec<PathBuf> = Vec::new();
    for pattern in ["/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin"] {
        packaged.extend(glob::glob(pattern).into_iter().flatten().flatten());
    }
    packaged.sort();
    let found = packaged.into_iter().rev().chain(std::env::split_paths(&path)).find(|directory| complete(directory));
    found.ok_or_else(|| {
        Error::new(&codes::DEMO, "no PostgreSQL server was found on this machine").hint(
            "Run `make demo`, which gets one; or install PostgreSQL, set HEADWATER_PG_BIN to its bin directory, or pass \
             `--url postgres://…` of a server that you have.",
        )
    })
}

/// User and group ids of `postgres`, else of `nobody`.
fn ordinary_user() -> Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").map_err(|error| failed("the users are not known").caused_by(error))?;
    let ids = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    ids("postgres").or_else(|| ids("nobody")).ok_or_else(|| {
        Error::new(&codes::DEMO, "PostgreSQL does not run as root, and there is no user postgres or nobody")
            .hint("Run the demo as an ordinary user.")
    })
}

/// A port of loopback that nobody uses now.
pub fn free_port() -> Result<u16> {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map(|address| address.port());
    port.map_err(|error| failed("no free port on loopback").caused_by(error))
}
