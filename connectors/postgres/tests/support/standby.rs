//! A standby of a server of the tests, copied while that runs.

#![allow(dead_code)]

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use headwater_postgres::Session;

use crate::support::Postgres;

/// A streaming standby; it vanishes with its primary's directory.
pub struct Standby {
    bin: PathBuf,
    data: PathBuf,
    /// TCP port on 127.0.0.1.
    pub port: u16,
}

impl Standby {
    /// Copies and starts one; `settings` are lines of postgresql.conf.
    pub async fn of(primary: &Postgres, settings: &[&str]) -> Self {
        let mut session = Session::open(&primary.url("postgres")).await.expect("a session");
        let mut one = async |sql: &str| {
            let rows = session.query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
            rows[0][0].clone().expect("a value")
        };
        let bin = PathBuf::from(one("SELECT setting FROM pg_config WHERE name = 'BINDIR'").await);
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
        let data = primary.socket_directory().join(format!("standby-{port}"));
        one("SELECT pg_backup_start('standby', true)::text").await;
        run(Command::new("cp").arg("-a").arg(primary.data()).arg(&data));
        let label = one("SELECT labelfile FROM pg_backup_stop(false)").await;
        std::fs::remove_file(data.join("postmaster.pid")).expect("the primary's file");
        std::fs::write(data.join("backup_label"), label).expect("backup_label");
        std::fs::write(data.join("standby.signal"), "").expect("standby.signal");
        let mut conf = std::fs::read_to_string(data.join("postgresql.conf")).expect("postgresql.conf");
        conf.push_str(&format!("port={port}\nprimary_conninfo='host=127.0.0.1 port={} user=postgres'\n", primary.port));
        settings.iter().for_each(|line| conf.push_str(&format!("{line}\n")));
        std::fs::write(data.join("postgresql.conf"), conf).expect("postgresql.conf");
        let standby = Self { bin, data, port };
        standby.boot(primary.socket_directory());
        standby
    }

    fn boot(&self, directory: &Path) {
        if is_root() {
            run(Command::new("chown").args(["-R", "postgres"]).arg(&self.data));
        }
        // Ends with the test, however that ends.
        let pid = std::process::id();
        let file = self.data.join("postmaster.pid");
        let stop = format!(
            "while kill -0 {pid} 2>/dev/null; do sleep 0.2; done; kill -QUIT $(head -1 {}) 2>/dev/null; sleep 0.2; rm -rf {}",
            file.display(),
            self.data.display()
        );
        let mut guard = Command::new("sh");
        guard.args(["-c", &stop]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        use std::os::unix::process::CommandExt;
        let mut child = guard.process_group(0).spawn().expect("sh");
        std::thread::spawn(move || child.wait());
        let log = directory.join(format!("standby-{}.log", self.port));
        let started = self.ctl(&["-w", "-t", "60", "-l", log.to_str().expect("a path in UTF-8"), "start"]);
        assert!(started, "the standby did not start:\n{}", std::fs::read_to_string(&log).unwrap_or_default());
    }

    fn ctl(&self, arguments: &[&str]) -> bool {
        let program = self.bin.join("pg_ctl");
        let mut command = Command::new(if is_root() { Path::new("setpriv") } else { &program });
        if is_root() {
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "env", "HOME=/tmp"]).arg(&program);
        }
        command.current_dir("/").env("LC_ALL", "C").arg("-D").arg(&self.data).args(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("pg_ctl").success()
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        self.ctl(&["-w", "-m", "immediate", "stop"]);
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().expect("id").stdout.starts_with(b"0\n")
}
