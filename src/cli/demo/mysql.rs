//! A MariaDB or MySQL that is started for the demo.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use headwater_connector::{Error, Result};

use super::{
    failed,
    server::{Monolith, User, apart, make_directory, run},
};
use crate::cli::codes;

/// The server's own tables, as a file of statements each; MariaDB's installation is these.
const SYSTEM_TABLES: [&str; 3] = ["mysql_system_tables.sql", "mysql_performance_tables.sql", "mysql_system_tables_data.sql"];

/// Who the shop and the connector are.
const USERS: &str =
    "SET sql_log_bin = 0;\nCREATE USER IF NOT EXISTS demo@'%' IDENTIFIED BY 'demo';\nGRANT ALL ON *.* TO demo@'%';\n";

/// A server, stopped on drop.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing in it is worth a clean stop, and an error here has nobody to hear it.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

struct Installation {
    monolith: Monolith,
    base: PathBuf,
    place: PathBuf,
    user: User,
}

/// Makes a server's data in a directory and starts it; its URL, and what stops it.
pub fn start(monolith: Monolith, place: PathBuf, port: u16, user: User) -> Result<(String, Box<dyn Send>)> {
    let installation = Installation { monolith, base: find_base(monolith)?, place, user };
    make_directory(&installation.place, user)?;
    installation.initialise()?;
    let running = installation.serve(port)?;
    Ok((format!("mysql://demo:demo@127.0.0.1:{port}/"), Box::new(running)))
}

impl Installation {
    fn file(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    fn command(&self) -> Result<Command> {
        let program = program(self.monolith, &self.base).ok_or_else(|| failed("the server's program is gone"))?;
        let mut command = Command::new(program);
        command.current_dir(&self.place).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        apart(&mut command, self.user);
        command.arg("--no-defaults").arg(format!("--basedir={}", self.base.display()));
        command.arg(format!("--datadir={}", self.file("data").display()));
        // Not where every server of the machine makes tables under the same names.
        command.arg(format!("--tmpdir={}", self.place.display()));
        if self.monolith == Monolith::Mariadb {
            command.arg(format!("--lc-messages-dir={}", self.share()?.display()));
        }
        Ok(command)
    }

    fn share(&self) -> Result<PathBuf> {
        let places = ["share/mysql", "share/mariadb", "share"].map(|directory| self.base.join(directory));
        let found = places.into_iter().find(|directory| directory.join(SYSTEM_TABLES[0]).exists());
        found.ok_or_else(|| failed("the server's files are not beside it").at("directory", self.base.display()))
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.file(name);
        fs::write(&path, text).map_err(|error| failed("a file of the server cannot be written").caused_by(error))?;
        Ok(path)
    }

    fn initialise(&self) -> Result<()> {
        let mut command = self.command()?;
        if self.monolith == Monolith::Mysql {
            return run(command.args(["--initialize-insecure", "--log-error-verbosity=1"]));
        }
        // What its installation script does, without the guesses of paths.
        let mut script = "create database if not exists mysql;\nuse mysql;\n".to_owned();
        for name in SYSTEM_TABLES {
            let text = fs::read_to_string(self.share()?.join(name));
            let text = text.map_err(|error| failed("the server's own tables are not known").caused_by(error))?;
            script.push_str(&text.replace("@auth_root_socket", "NULL"));
        }
        let script = fs::File::open(self.write("install.sql", &script)?);
        let script = script.map_err(|error| failed("a file of the server cannot be read").caused_by(error))?;
        for directory in ["data", "data/mysql", "data/sys"] {
            make_directory(&self.file(directory), self.user)?;
        }
        command.args(["--bootstrap", "--log-warnings=0", "--enforce-storage-engine=", "--max-allowed-packet=8M"]);
        run(command.stdin(script))
    }

    fn serve(&self, port: u16) -> Result<Running> {
        let mut command = self.command()?;
        command.arg(format!("--port={port}")).arg("--bind-address=127.0.0.1");
        for (option, name) in [("socket", "socket"), ("pid-file", "pid"), ("log-error", "server.log")] {
            command.arg(format!("--{option}={}", self.file(name).display()));
        }
        command.arg(format!("--init-file={}", self.write("users.sql", USERS)?.display()));
        command.args([
            "--skip-name-resolve",
            "--innodb-buffer-pool-size=64M",
            "--innodb-flush-log-at-trx-commit=2",
            "--sync-binlog=0",
        ]);
        // What the connector asks of a server.
        command.args(["--server-id=1", "--log-bin=binlog", "--binlog-format=ROW", "--binlog-row-image=FULL"]);
        command.arg("--binlog-row-metadata=FULL");
        if self.monolith == Monolith::Mysql {
            command.args(["--gtid-mode=ON", "--enforce-gtid-consistency=ON", "--mysqlx=OFF"]);
        }
        let child = command.stderr(Stdio::null()).spawn();
        child.map(Running).map_err(|error| failed("the server cannot be run").caused_by(error))
    }
}

fn program(monolith: Monolith, base: &Path) -> Option<PathBuf> {
    let name = if monolith == Monolith::Mariadb { "mariadbd" } else { "mysqld" };
    ["bin", "sbin", "libexec"].map(|directory| base.join(directory).join(name)).into_iter().find(|path| path.exists())
}

/// `HEADWATER_MARIADB_BASE` or `HEADWATER_MYSQL_BASE`, else where distributions put them.
fn find_base(monolith: Monolith) -> Result<PathBuf> {
    let kind = monolith.kind();
    let variable = format!("HEADWATER_{}_BASE", kind.to_uppercase());
    let places = match std::env::var_os(&variable) {
        Some(base) => vec![PathBuf::from(base)],
        None => {
            ["/usr", "/usr/local/mysql", "/usr/local", &format!("/opt/homebrew/opt/{kind}"), &format!("/usr/local/opt/{kind}")]
                .map(PathBuf::from)
                .to_vec()
        }
    };
    places.into_iter().find(|base| program(monolith, base).is_some()).ok_or_else(|| {
        Error::new(&codes::DEMO, format!("no {} server was found on this machine", monolith.name())).hint(format!(
            "Run `SOURCE={kind} make demo`, which gets one; or install it, set {variable} to the directory that has it in bin or \
             sbin, or pass `--url mysql://…` of a server that you have."
        ))
    })
}
