//! MariaDB and MySQL, with their client and the program that reads the binlog from a server.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::json;

use crate::{
    backlog::{self, Backlog, Kind, Shape},
    drain::{Drained, watch},
    source::{self, Debezium, Filled, Source},
    support::{
        mysql::{Flavour, Server},
        root, temp_dir,
    },
};

/// Settings of a server that is meant to be fast; the later of two wins over the tests' own.
const SETTINGS: &[&str] = &[
    "--innodb-buffer-pool-size=512M",
    "--innodb-log-file-size=256M",
    "--innodb-flush-log-at-trx-commit=2",
    "--binlog-cache-size=1M",
    "--sync-binlog=0",
];

/// Rows of one INSERT at most; a larger transaction has several.
const AT_ONCE: u64 = 10_000;

/// The ordinary columns besides the key, and their values but for the note.
const COLUMNS: &str = "customer bigint, status text, total numeric(12,2), note text, qty int, active bool, created timestamp(6) NULL, \
                       updated datetime(6), code varchar(32)";

/// See the module's page.
pub struct MysqlServer {
    server: Server,
    kind: &'static str,
    binlog_client: PathBuf,
    client: PathBuf,
}

impl MysqlServer {
    /// Starts one of `mariadb` or `mysql`; their client programs must be there too.
    pub fn start(name: &str) -> Self {
        let (flavour, kind) = match name {
            "mariadb" => (Flavour::Mariadb, "mariadb"),
            "mysql" => (Flavour::Mysql, "mysql"),
            _ => panic!("SOURCES has {name}; it may have postgres, mariadb and mysql"),
        };
        let programs = |what: &str| {
            let output = Command::new(root().join("scripts/mysql-extra-path.sh")).args([kind, what]).output();
            let output = output.expect("scripts/mysql-extra-path.sh runs");
            assert!(output.status.success(), "no client of {kind}: {}", String::from_utf8_lossy(&output.stderr));
            PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
        };
        let (binlog_client, client) = (programs("binlog"), programs("sql"));
        let server = Server::start(flavour, SETTINGS);
        server.sql("CREATE DATABASE bench CHARACTER SET utf8mb4");
        let digits = "SELECT 0 AS n UNION ALL SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3 UNION ALL SELECT 4 UNION ALL SELECT 5 \
                      UNION ALL SELECT 6 UNION ALL SELECT 7 UNION ALL SELECT 8 UNION ALL SELECT 9";
        server.sql(&format!(
            "CREATE TABLE bench.numbers (n int PRIMARY KEY);\nINSERT INTO bench.numbers SELECT a.n + 10 * b.n + 100 * c.n + 1000 * d.n \
             FROM ({digits}) a, ({digits}) b, ({digits}) c, ({digits}) d"
        ));
        Self { server, kind, binlog_client, client }
    }

    /// A client of the server without TLS.
    fn command(&self, program: &PathBuf) -> Command {
        let mut command = Command::new(program);
        command.args(["--no-defaults", "--host=127.0.0.1", "--user=hw", "--password=secret", "--protocol=tcp"]);
        command.arg(format!("--port={}", self.server.port));
        command.arg(if self.kind == "mariadb" { "--skip-ssl" } else { "--ssl-mode=DISABLED" });
        // It says that a password in the command line can be seen.
        command.stderr(Stdio::null());
        command
    }

    /// Fills the table by transactions of so many rows. With `quiet`, nothing of it is in the binlog.
    fn insert(&self, rows: u64, per_transaction: u64, values: &str, is_quiet: bool) {
        let step = per_transaction.min(AT_ONCE);
        let insert = format!(
            "INSERT INTO bench.bench SELECT i, {values} FROM (SELECT t + n AS i FROM bench.numbers WHERE n < {step}) s WHERE i <= {rows}"
        );
        self.server.sql(&format!(
            "SET SESSION sql_log_bin = 0;\nUSE bench;\nDROP PROCEDURE IF EXISTS put;\nCREATE PROCEDURE put() BEGIN DECLARE t bigint DEFAULT 1; \
             WHILE t <= {rows} DO IF (t - 1) % {per_transaction} = 0 THEN START TRANSACTION; END IF; {insert}; SET t = t + {step}; \
             IF (t - 1) % {per_transaction} = 0 OR t > {rows} THEN COMMIT; END IF; END WHILE; END"
        ));
        // By a program that waits for as long as it takes.
        let call = format!("--execute=SET SESSION sql_log_bin = {}; CALL bench.put()", u8::from(!is_quiet));
        let status = self.command(&self.client).arg(call).stdout(Stdio::null()).status().expect("the client starts");
        assert!(status.success(), "the rows could not be written: {status}");
    }

    /// Bytes of a row as text, on average.
    fn row_bytes(&self, columns: &str) -> String {
        let names: Vec<&str> = columns.split(", ").filter_map(|column| column.split(' ').next()).collect();
        let row = names.join(", ");
        self.server
            .sql(&format!("SELECT round(avg(length(concat_ws(',', id, {row})))) FROM (SELECT * FROM bench.bench LIMIT 1000) b"))
    }

    /// Files of the binlog with their sizes.
    fn binlogs(&self) -> Vec<(String, u64)> {
        let text = self.server.sql("SHOW BINARY LOGS");
        let line = |line: &str| {
            let mut cells = line.split('\t');
            Some((cells.next()?.to_owned(), cells.next()?.parse().ok()?))
        };
        text.lines().map(|text| line(text).expect("a file and its size")).collect()
    }
}

impl Source for MysqlServer {
    fn title(&self) -> String {
        let version = self.server.sql("SELECT version()");
        let number = version.split('-').next().unwrap_or_default();
        format!("{} {number}", if self.kind == "mariadb" { "MariaDB" } else { "MySQL" })
    }

    fn name(&self) -> &'static str {
        self.kind
    }

    fn clients(&self, shape: &Shape) -> Vec<&'static str> {
        let (decoding, raw) = match self.kind {
            "mariadb" => ("mariadb-binlog, decoding", "mariadb-binlog, raw"),
            _ => ("mysqlbinlog, decoding", "mysqlbinlog, raw"),
        };
        // What is raw becomes files, of which the large ones would measure the disk.
        if shape.kind == Kind::Text { vec![decoding] } else { vec![decoding, raw] }
    }

    fn huge_rows(&self, rows: u64) -> u64 {
        // 2 GB, where the others have 1,000,000 rows.
        rows * 11 / 10
    }

    fn columns(&self, kind: Kind) -> (String, String) {
        match kind {
            Kind::Ordinary => (COLUMNS.to_owned(), ordinary("a note of some length that pads the row to size ")),
            Kind::Wide => {
                let text = ("text", "concat('value ', i % 1000)");
                backlog::wide([("bigint", "i + {n}"), text, ("numeric(12,2)", "i * 0.25"), ("bool", "i % 3 = 0")])
            }
            Kind::Text => ("body text".to_owned(), "repeat(md5(i), 60)".to_owned()),
        }
    }

    fn make_table(&self, columns: &str, _: &[String]) {
        // The log counts here, not the table: what compresses well need not take its place on the disk twice.
        let format = if columns.starts_with("body") { "ROW_FORMAT=COMPRESSED" } else { "" };
        self.server.sql(&format!("CREATE TABLE bench.bench (id bigint PRIMARY KEY, {columns}) {format}"));
    }

    fn load(&self, shape: &Shape) -> Backlog {
        self.server.sql("FLUSH BINARY LOGS");
        let begin = self.server.binlog();
        let names = self.server.sql(match self.kind {
            "mariadb" => "SELECT @@gtid_binlog_pos",
            _ => "SELECT @@gtid_executed",
        });
        self.insert(shape.rows, shape.per_transaction, &shape.values, false);
        let bytes: u64 = self.binlogs().iter().filter(|(name, _)| *name >= begin).map(|(_, bytes)| bytes).sum();
        let log = format!("{} MB of binlog", bytes >> 20);
        Backlog::new(shape, &self.row_bytes(&shape.columns), &log, vec![begin, names.replace('\n', "")])
    }

    fn must_know_position(&self) -> bool {
        true
    }

    fn drain(&self, client: usize, backlog: &Backlog, _: usize) -> Drained {
        let mut command = self.command(&self.binlog_client);
        command.args(["--read-from-remote-server", "--to-last-log"]).stdout(Stdio::null());
        let raw = temp_dir();
        if client == 1 {
            command.arg("--raw").arg(format!("--result-file={}/", raw.path().display()));
        }
        watch(command.arg(&backlog.places[0]).spawn().expect("the client starts"), "the client of the binlog")
    }

    fn config(&self, _: &str) -> Vec<String> {
        vec![
            format!("kind: {}", self.kind),
            format!("url: mysql://hw@127.0.0.1:{}/?sslmode=disable", self.server.port),
            "password: { env: BENCH_PASSWORD }".to_owned(),
            "tables: [ bench.bench ]".to_owned(),
        ]
    }

    fn password(&self) -> &'static str {
        "secret"
    }

    fn debezium(&self, name: &str, slot: &str, bootstrap: &str, backlog: Option<&Backlog>) -> Debezium {
        let (class, tls) = match self.kind {
            "mariadb" => ("io.debezium.connector.mariadb.MariaDbConnector", "disable"),
            _ => ("io.debezium.connector.mysql.MySqlConnector", "disabled"),
        };
        // With an offset and no history of the tables, their structure is read from the server first.
        let snapshot = if backlog.is_some() { "recovery" } else { "initial" };
        let options = json!({
            "connector.class": class, "database.hostname": "127.0.0.1", "database.port": self.server.port.to_string(),
            "database.user": "hw", "database.password": "secret", "database.ssl.mode": tls,
            "database.server.id": (1000 + slot.len() * 100 + usize::from(slot.bytes().last().unwrap_or(0))).to_string(),
            "database.include.list": "bench", "table.include.list": "bench.bench", "snapshot.mode": snapshot,
            "snapshot.locking.mode": "none", "include.schema.changes": "false",
            "schema.history.internal.kafka.bootstrap.servers": bootstrap, "schema.history.internal.kafka.topic": format!("{name}_history"),
        });
        let offset = backlog.map(|backlog| {
            let (file, names) = (&backlog.places[0], &backlog.places[1]);
            json!({ "partition": { "server": name }, "offset": { "file": file, "pos": 4, "gtids": names } })
        });
        Debezium { options, topic: format!("{name}.bench.bench"), offset }
    }

    fn settle(&self, _: &str) {}

    fn drop_slots(&self) {}

    fn drop_table(&self) {
        self.server.sql("DROP TABLE bench.bench;\nFLUSH BINARY LOGS");
        self.server.sql(&format!("PURGE BINARY LOGS TO '{}'", self.server.binlog()));
    }

    fn fill(&self, rows: u64) -> Filled {
        self.make_table(COLUMNS, &[]);
        let values = ordinary("a note of some length that pads the whole of the row to the size of ");
        self.insert(rows, AT_ONCE, &values, true);
        self.server.sql("ANALYZE TABLE bench.bench");
        let size = "SELECT round((data_length + index_length) / 1048576) FROM information_schema.tables WHERE table_schema = 'bench' \
                    AND table_name = 'bench'";
        Filled {
            size: format!("{} bytes as text, {} MB", self.row_bytes(COLUMNS), self.server.sql(size)),
            baseline: "SELECT is `SELECT * FROM bench` by the database's client with `--quick`",
        }
    }

    fn select(&self) -> Drained {
        let mut command = self.command(&self.client);
        command.args(["--quick", "--batch", "--execute=SELECT * FROM bench.bench"]).stdout(Stdio::null());
        watch(command.spawn().expect("the client starts"), "the client")
    }

    fn pid(&self) -> u32 {
        source::pid_in(&self.server.data().with_file_name("pid"))
    }
}

/// The values of the ordinary columns in row `i`.
fn ordinary(note: &str) -> String {
    format!(
        "i % 10000, concat('status-', i % 7), i * 1.25, concat('{note}', i), i % 100, i % 2 = 0, \
         timestamp'2026-01-02 03:04:05.123456' + INTERVAL i SECOND, timestamp'2026-01-02 03:04:05.123456', concat('code-', i)"
    )
}
