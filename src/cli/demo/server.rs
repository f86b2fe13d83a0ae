//! A database server for the demo: one that is there, or one that is started in a temporary directory.

use std::{fs, net::TcpListener, os::unix::process::CommandExt, path::Path, process::Command};

use headwater_connector::{Error, Result};

use super::{failed, mysql, postgres, show::Show};
use crate::cli::codes;

/// What the monolith runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Monolith {
    /// PostgreSQL
    Postgres,
    /// MariaDB
    Mariadb,
    /// MySQL
    Mysql,
}

impl Monolith {
    /// What a URL names.
    pub fn of_url(url: &str) -> Option<Self> {
        match url.split(':').next()? {
            "postgres" | "postgresql" => Some(Self::Postgres),
            "mariadb" => Some(Self::Mariadb),
            "mysql" => Some(Self::Mysql),
            _ => None,
        }
    }

    /// The connector's kind.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Mariadb => "mariadb",
            Self::Mysql => "mysql",
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::Mariadb => "MariaDB",
            Self::Mysql => "MySQL",
        }
    }
}

/// A session on either.
pub enum Session {
    /// PostgreSQL
    Postgres(headwater_postgres::Session),
    /// MariaDB or MySQL
    Binlog(headwater_mysql::Session),
}

impl Session {
    /// Runs one statement; a cell is text or NULL.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        match self {
            Self::Postgres(session) => session.query(sql).await,
            Self::Binlog(session) => session.query(sql).await,
        }
    }
}

/// Where a server is.
#[derive(Clone)]
pub struct Address {
    /// What it is.
    pub monolith: Monolith,
    /// For the connector too.
    pub url: String,
}

impl Address {
    /// A session of its own.
    pub async fn session(&self) -> Result<Session> {
        Ok(match self.monolith {
            Monolith::Postgres => Session::Postgres(headwater_postgres::Session::open(&self.url).await?),
            Monolith::Mariadb | Monolith::Mysql => Session::Binlog(headwater_mysql::Session::open(&self.url).await?),
        })
    }
}

/// A server that the shop runs on.
pub struct Server {
    /// Where it is.
    pub address: Address,
    /// What was started here, held for its drop, which stops it.
    _own: Option<Box<dyn Send>>,
}

impl Server {
    /// The user's own server.
    pub fn existing(monolith: Monolith, url: &str) -> Self {
        Self { address: Address { monolith, url: url.to_owned() }, _own: None }
    }

    /// Makes a server's data in `directory` and starts it on a free port of loopback.
    pub async fn start(monolith: Monolith, directory: &Path, show: &Show) -> Result<Self> {
        show.step(&format!("starting a {} in a temporary directory", monolith.name()));
        let (data, port) = (directory.join("server"), free_port()?);
        // The servers refuse to run as root, so a root user hands the directory to an ordinary one.
        let user = match fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0) {
            true => Some(ordinary_user(monolith)?),
            false => None,
        };
        let started = tokio::task::spawn_blocking(move || -> Result<(String, Box<dyn Send>)> {
            match monolith {
                Monolith::Postgres => postgres::start(data, port, user),
                Monolith::Mariadb | Monolith::Mysql => mysql::start(monolith, data, port, user),
            }
        });
        let started = started.await.map_err(|error| failed("starting the server was interrupted").caused_by(error))?;
        let (url, own) = started?;
        let server = Self { address: Address { monolith, url }, _own: Some(own) };
        server.answers().await.map(|()| server)
    }

    /// Waits until somebody can log in.
    async fn answers(&self) -> Result<()> {
        let deadline = tokio::time::Instant::now() + START;
        loop {
            match self.address.session().await {
                Ok(_) => return Ok(()),
                Err(error) if tokio::time::Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        }
    }

    /// What runs there.
    pub async fn describe(&self) -> Result<String> {
        let mut session = self.address.session().await?;
        let sql = match self.address.monolith {
            Monolith::Postgres => "SELECT current_setting('server_version')",
            Monolith::Mariadb | Monolith::Mysql => "SELECT version()",
        };
        let rows = session.query(sql).await?;
        let version = rows.first().and_then(|row| row.first().cloned().flatten()).unwrap_or_default();
        let version = version.split([' ', '-']).next().unwrap_or_default();
        Ok(format!("{} {version}", self.address.monolith.name()))
    }

    /// Stops what was started here.
    pub async fn stop(self) {
        // Dropping stops it; a blocking thread keeps the show going.
        drop(tokio::task::spawn_blocking(move || drop(self)).await);
    }
}

/// How long a server may take until it answers.
const START: std::time::Duration = std::time::Duration::from_secs(60);

/// User and group that a server runs as, if not as ours.
pub type User = Option<(u32, u32)>;

/// Makes a command run as a user, apart from the terminal: its Ctrl-C goes to a whole process group, and the server is stopped by us, in order.
pub fn apart(command: &mut Command, user: User) {
    command.process_group(0);
    if let Some((user, group)) = user {
        command.uid(user).gid(group);
    }
}

/// Makes a directory that a user owns.
pub fn make_directory(path: &Path, user: User) -> Result<()> {
    let trouble = |error| failed("the directory of the server cannot be made").caused_by(error);
    fs::create_dir_all(path).map_err(trouble)?;
    match user {
        Some((user, group)) => std::os::unix::fs::chown(path, Some(user), Some(group)).map_err(trouble),
        None => Ok(()),
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| failed(format!("{name} cannot be run")).caused_by(error))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let last = message.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message").to_owned();
    Err(failed(format!("{name} failed: {last}")))
}

/// User and group ids of the server's own user, else of `nobody`.
fn ordinary_user(monolith: Monolith) -> Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").map_err(|error| failed("the users are not known").caused_by(error))?;
    let ids = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    let own = if monolith == Monolith::Postgres { "postgres" } else { "mysql" };
    ids(own).or_else(|| ids("nobody")).ok_or_else(|| {
        Error::new(&codes::DEMO, format!("{} does not run as root, and there is no user {own} or nobody", monolith.name()))
            .hint("Run the demo as an ordinary user.")
    })
}

/// A port of loopback that nobody uses now.
pub fn free_port() -> Result<u16> {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).map(|address| address.port());
    port.map_err(|error| failed("no free port on loopback").caused_by(error))
}
