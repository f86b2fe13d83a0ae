//! PostgreSQL, with pg_recvlogical and psql.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use postgres::Client;
use serde_json::json;

use crate::{
    backlog::{self, Backlog, Kind, Shape},
    drain::{Contestant, Drained, watch},
    source::{self, Debezium, Filled, Source},
    support::{
        postgres::{PASSWORD, Postgres},
        postgres_program, wait_until,
    },
};

/// Settings of a server that is meant to be fast; the later line of a name wins over the tests' own.
const SETTINGS: &[&str] = &[
    "fsync = on",
    "synchronous_commit = off",
    "shared_buffers = '512MB'",
    "max_wal_size = '16GB'",
    "checkpoint_timeout = '30min'",
    "wal_sender_timeout = '10min'",
];

/// The ordinary columns besides the key.
const COLUMNS: &str = "customer int8, status text, total numeric(12,2), note text, qty int4, active bool, created timestamptz, \
                       updated timestamp, code varchar(32)";

/// See the module's page.
pub struct PostgresServer(Postgres);

impl PostgresServer {
    /// Starts it; its client programs must be there too.
    pub fn start() -> Self {
        let recv = postgres_program("pg_recvlogical");
        assert!(recv.exists(), "{} is missing; install PostgreSQL with its client programs", recv.display());
        Self(Postgres::start_with(SETTINGS))
    }

    /// A connection as the superuser.
    pub fn client(&self) -> Client {
        self.0.client("postgres")
    }

    /// One of its client programs, told where the server is.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(postgres_program(name));
        command.args(["-h", "127.0.0.1", "-p", &self.0.port().to_string(), "-U", "postgres", "-d", "postgres"]);
        command.env("PGPASSWORD", PASSWORD);
        command
    }

    /// The empty table of ten columns.
    pub fn ordinary_table(&self) {
        self.make_table(COLUMNS, &[]);
    }

    /// The only value of a query, as text.
    fn value(&self, query: &str) -> String {
        let row =
            self.client().query_one(&format!("SELECT ({query})::text"), &[]).unwrap_or_else(|error| panic!("{query}: {error:?}"));
        row.get(0)
    }

    fn run(&self, sql: &str) {
        self.client().batch_execute(sql).unwrap_or_else(|error| panic!("{sql:.200}: {error:?}"));
    }

    fn row_bytes(&self) -> String {
        self.value("SELECT round(avg(length(b::text))) FROM (SELECT b FROM bench b LIMIT 1000) b")
    }
}

impl Source for PostgresServer {
    fn title(&self) -> String {
        let version = self.value("SELECT current_setting('server_version')");
        format!("PostgreSQL {}", version.split(' ').next().unwrap_or_default())
    }

    fn name(&self) -> &'static str {
        "pg"
    }

    fn clients(&self, _: &Shape) -> Vec<&'static str> {
        vec!["pg_recvlogical"]
    }

    fn huge_rows(&self, rows: u64) -> u64 {
        rows / 2
    }

    fn columns(&self, kind: Kind) -> (String, String) {
        match kind {
            Kind::Ordinary => {
                let values = "i % 10000, 'status-' || i % 7, i * 1.25, 'a note of some length that pads the row to size ' || i, \
                              i % 100, i % 2 = 0, timestamptz '2026-01-02 03:04:05.123456+00' + i * interval '1 second', \
                              timestamp '2026-01-02 03:04:05.123456', 'code-' || i";
                (COLUMNS.to_owned(), values.to_owned())
            }
            Kind::Wide => {
                let text = ("text", "'value ' || i % 1000");
                backlog::wide([("int8", "i + {n}"), text, ("numeric(12,2)", "i * 0.25"), ("bool", "i % 3 = 0")])
            }
            // Too little for TOAST to move it out of line.
            Kind::Text => ("body text".to_owned(), "repeat(md5(i::text), 60)".to_owned()),
        }
    }

    fn make_table(&self, columns: &str, slots: &[String]) {
        self.run(&format!("CREATE TABLE bench (id int8 PRIMARY KEY, {columns}); CREATE PUBLICATION bench FOR TABLE bench"));
        if columns.starts_with("body") {
            self.run("ALTER TABLE bench ALTER body SET STORAGE PLAIN");
        }
        for slot in slots {
            self.run(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
        }
    }

    fn load(&self, shape: &Shape) -> Backlog {
        let begin = self.value("SELECT pg_current_wal_insert_lsn()");
        let Shape { rows, per_transaction: step, values, .. } = shape;
        let insert = format!("INSERT INTO bench SELECT i, {values} FROM generate_series(t, t + {step} - 1) i");
        self.run(&format!(
            "CREATE OR REPLACE PROCEDURE load() LANGUAGE plpgsql AS $$ BEGIN FOR t IN 1 .. {rows} BY {step} LOOP {insert}; COMMIT; \
             END LOOP; END $$"
        ));
        self.run("CALL load()");
        self.run("CHECKPOINT");
        let end = self.value("SELECT pg_current_wal_flush_lsn()");
        let wal = self.value(&format!("SELECT pg_size_pretty('{end}'::pg_lsn - '{begin}'::pg_lsn)"));
        Backlog::new(shape, &self.row_bytes(), &format!("{wal} of WAL"), vec![end])
    }

    fn must_know_position(&self) -> bool {
        false
    }

    fn drain(&self, client: usize, backlog: &Backlog, round: usize) -> Drained {
        let child = self
            .command("pg_recvlogical")
            .args(["-S", &Contestant::Client(client).slot(round), "--start", "-o", "proto_version=1"])
            .args(["-o", "publication_names=bench", &format!("--endpos={}", backlog.places[0]), "-F", "0", "-f", "/dev/null"])
            .spawn()
            .expect("pg_recvlogical starts");
        watch(child, "pg_recvlogical")
    }

    fn config(&self, slot: &str) -> Vec<String> {
        vec![
            "kind: postgres".to_owned(),
            format!("url: postgres://postgres@127.0.0.1:{}/postgres", self.0.port()),
            "password: { env: BENCH_PASSWORD }".to_owned(),
            "tables: [ public.bench ]".to_owned(),
            format!("slot: {slot}"),
            "publication: bench".to_owned(),
        ]
    }

    fn password(&self) -> &'static str {
        PASSWORD
    }

    fn debezium(&self, name: &str, slot: &str, _: &str, backlog: Option<&Backlog>) -> Debezium {
        let snapshot = if backlog.is_some() { "no_data" } else { "initial" };
        let options = json!({
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "database.hostname": "127.0.0.1", "database.port": self.0.port().to_string(), "database.user": "postgres",
            "database.password": PASSWORD, "database.dbname": "postgres", "plugin.name": "pgoutput",
            "publication.name": "bench", "publication.autocreate.mode": "disabled", "table.include.list": "public.bench",
            "slot.name": slot, "slot.drop.on.stop": "false", "snapshot.mode": snapshot,
        });
        Debezium { options, topic: format!("{name}.public.bench"), offset: None }
    }

    fn settle(&self, slot: &str) {
        wait_until("its slot to be free", Duration::from_secs(60), || {
            match self.value(&format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'")).as_str() {
                "false" => Ok(()),
                state => Err(state.to_owned()),
            }
        });
    }

    fn drop_slots(&self) {
        self.run("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active");
    }

    fn drop_table(&self) {
        self.run("DROP PUBLICATION bench; DROP TABLE bench");
        self.drop_slots();
    }

    fn fill(&self, rows: u64) -> Filled {
        self.ordinary_table();
        for from in (1..=rows).step_by(100_000) {
            let to = (from + 99_999).min(rows);
            self.run(&format!(
                "INSERT INTO bench SELECT i, i % 10000, 'status-' || i % 7, i * 1.25, \
                 'a note of some length that pads the whole of the row to the size of ' || i, i % 100, i % 2 = 0, \
                 timestamptz '2026-01-02 03:04:05.123456+00' + i * interval '1 second', timestamp '2026-01-02 03:04:05.123456', \
                 'code-' || i FROM generate_series({from}, {to}) i"
            ));
        }
        self.run("VACUUM ANALYZE bench");
        self.run("CHECKPOINT");
        let size = self.value("SELECT pg_size_pretty(pg_table_size('bench'))");
        Filled {
            size: format!("{} bytes as text, {size}", self.row_bytes()),
            baseline: "SELECT is `COPY (SELECT * FROM bench) TO STDOUT` by psql",
        }
    }

    fn select(&self) -> Drained {
        let child = self
            .command("psql")
            .args(["-Xqc", "COPY (SELECT * FROM bench) TO STDOUT"])
            .stdout(Stdio::null())
            .spawn()
            .expect("psql starts");
        watch(child, "psql")
    }

    fn pid(&self) -> u32 {
        source::pid_in(&Path::new(&self.value("SELECT current_setting('data_directory')")).join("postmaster.pid"))
    }
}
