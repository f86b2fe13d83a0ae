//! A PostgreSQL that is started for the demo.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use headwater_connector::{Error, Result};

use super::{
    failed,
    server::{User, apart, make_directory, run},
};
use crate::cli::codes;

/// Stopped on drop.
struct Cluster {
    binaries: PathBuf,
    place: PathBuf,
    user: User,
}

/// Makes a cluster in a directory and starts it; its URL, and what stops it.
pub fn start(place: PathBuf, port: u16, user: User) -> Result<(String, Box<dyn Send>)> {
    let cluster = Cluster { binaries: find_binaries()?, place, user };
    cluster.initialise(port)?;
    cluster.pg_ctl(&["-w", "-t", "60", "-l", "server.log", "start"])?;
    Ok((format!("postgres://postgres@127.0.0.1:{port}/postgres"), Box::new(cluster)))
}

impl Cluster {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.binaries.join(program));
        command.current_dir(&self.place).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        apart(&mut command, self.user);
        command
    }

    fn initialise(&self, port: u16) -> Result<()> {
        make_directory(&self.place, self.user)?;
        let data = self.place.join("data");
        let data = data.to_string_lossy();
        let mut initdb = self.command("initdb");
        run(initdb.args(["-D", &data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]))?;
        let settings = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nwal_level = logical\nfsync = off\n\
             logging_collector = off\n"
        );
        let file = self.place.join("data/postgresql.auto.conf");
        fs::write(&file, settings).map_err(|error| failed("the server's settings cannot be written").caused_by(error))
    }

    fn pg_ctl(&self, arguments: &[&str]) -> Result<()> {
        run(self.command("pg_ctl").arg("-D").arg(self.place.join("data")).args(arguments).stderr(Stdio::null()))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Nothing in it is worth a clean stop, and an error here has nobody to hear it.
        drop(self.pg_ctl(&["-m", "immediate", "-t", "20", "stop"]));
    }
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
