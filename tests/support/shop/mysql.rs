//! MariaDB and MySQL under the kill test.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicI64, Ordering},
};

use fastrand::Rng;
use headwater_mysql::Session;

use super::{Change, Client, Connect, Failure, Shop, Step, Trouble, Truth, mysql_oracle::Binlog};
use crate::{
    binlog::servers::{Flavour, Server},
    checker::Sample,
    support::{PATIENCE, daemon::Home, wait_until},
};

/// The name under which the daemon logs in, by which its sessions are known.
const DAEMON: &str = "headwater";
const SENDERS: &str = "SELECT id FROM information_schema.processlist WHERE user = 'headwater' AND command LIKE 'Binlog Dump%'";

/// How a server writes its binlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    Plain,
    Compressed,
    /// MySQL without names of transactions: the daemon goes by files and places in them.
    Unnamed,
}

impl Writing {
    /// One of them, by the seed of a run.
    pub fn of(flavour: Flavour, seed: u64) -> Self {
        match (seed / 2 % 3, flavour) {
            (1, _) => Self::Compressed,
            (2, Flavour::Mysql) => Self::Unnamed,
            _ => Self::Plain,
        }
    }

    const fn settings(self, flavour: Flavour) -> &'static [&'static str] {
        match (self, flavour) {
            (Self::Plain, _) | (Self::Unnamed, Flavour::Mariadb) => &[],
            (Self::Compressed, Flavour::Mysql) => &["--binlog-transaction-compression=ON", "--max-binlog-size=1M"],
            (Self::Compressed, Flavour::Mariadb) => {
                &["--log-bin-compress=ON", "--log-bin-compress-min-len=10", "--max-binlog-size=1M"]
            }
            (Self::Unnamed, Flavour::Mysql) => &["--gtid-mode=OFF", "--enforce-gtid-consistency=OFF"],
        }
    }
}

/// Settings of a server that is killed: what it has answered stays, and what it writes is spread over many files. Statements are in the
/// binlog beside their rows, for the oracle.
pub fn start(flavour: Flavour, writing: Writing) -> Server {
    let mut settings = vec!["--sync-binlog=1", "--innodb-flush-log-at-trx-commit=1", "--max-binlog-size=4M"];
    settings.push(match flavour {
        Flavour::Mariadb => "--binlog-annotate-row-events=ON",
        Flavour::Mysql => "--binlog-rows-query-log-events=ON",
    });
    settings.extend(writing.settings(flavour));
    println!("kill: {flavour:?}, {writing:?}");
    let server = Server::start(flavour, &settings);
    server.sql(&format!("CREATE USER {DAEMON}@'%' IDENTIFIED BY 'secret';\nGRANT ALL ON *.* TO {DAEMON}@'%'"));
    server
}

impl Shop for Server {
    fn name(&self) -> &'static str {
        if self.flavour == Flavour::Mariadb { "MariaDB" } else { "MySQL" }
    }

    fn prepare(&self) {
        let texts = include_str!("mysql_text.sql");
        let all =
            [include_str!("mysql.sql"), &texts.replace("TEXTS", "document"), &texts.replace("TEXTS", "journal")].join("//\n");
        let mut session = Conversation::open(&self.url()).expect("a session");
        for statement in all.split("//\n") {
            session.query(statement).unwrap_or_else(|error| panic!("{error}\nin: {statement:.400}"));
        }
    }

    fn capture(&self, home: &Home, tables: &str, more: &str) {
        let url = self.url().replace("hw:", &format!("{DAEMON}:"));
        let kind = self.name().to_lowercase();
        home.write(
            "connectors/shop.yaml",
            &format!(
                "connectors:\n  shop:\n    source:\n      kind: {kind}\n      url: {url}\n      tables: [ {tables} ]\n{more}"
            ),
        );
    }

    fn captured(&self) -> (&'static str, &'static str) {
        // Without GTIDs nothing tells what a row that is read includes.
        ("\"shop.*\"", if has_names(self) { "" } else { "      backfill: never\n" })
    }

    fn connect(&self) -> Connect {
        let url = self.url();
        Box::new(move || Ok(Box::new(Writer { session: Conversation::open(&url)?, gone: false })))
    }

    fn truth(&self) -> Box<dyn Truth + '_> {
        Box::new(Binlog::new(self))
    }

    fn troubles(&self) -> &'static [Trouble] {
        &[Trouble::DatabaseCrash, Trouble::NewFiles, Trouble::SenderEnd, Trouble::Freeze, Trouble::Rival]
    }

    fn words(&self) -> [&'static str; 2] {
        ["dump thread killed", "multi-row INSERT"]
    }

    fn crash_and_restart(&self) {
        Server::crash_and_restart(self);
    }

    fn end_senders(&self) {
        kill(self, SENDERS);
    }

    fn end_readers(&self) {
        kill(self, "SELECT id FROM information_schema.processlist WHERE user = 'headwater' AND command NOT LIKE 'Binlog Dump%'");
    }

    fn new_files(&self) {
        self.sql(&"FLUSH BINARY LOGS;\n".repeat(25));
    }

    fn outlast(&self) {
        // The server waits for a silent replica for as long as its messages fit into the socket: somebody has to end it.
        wait_until("the source to give the daemon up", PATIENCE, || {
            self.end_senders();
            match self.sql(SENDERS).lines().count() {
                0 => Ok(()),
                some => Err(format!("{some} dump threads")),
            }
        });
    }

    fn confirmed(&self) -> Option<u64> {
        // A server is told nothing, and forgets its files when they are old.
        None
    }

    fn sample(&self, _: Option<u64>, _: &str) -> Option<Sample> {
        None
    }

    fn is_partial(&self, position: &str) -> bool {
        position.split(';').nth(3).is_some_and(|partial| !partial.is_empty())
    }

    fn versioned(&self, rows: u32) {
        self.sql("CREATE DATABASE stock;\nCREATE TABLE stock.item (id int PRIMARY KEY, ver bigint NOT NULL, note text)");
        let ids: Vec<u32> = (1..=rows).collect();
        for part in ids.chunks(2_000) {
            let rows: Vec<String> = part.iter().map(|id| format!("({id}, 1, repeat('n', {}))", id % 50)).collect();
            self.sql(&format!("INSERT INTO stock.item VALUES {}", rows.join(",")));
        }
    }

    fn versioned_table(&self) -> &'static str {
        "stock.item"
    }

    fn change(&self) -> Change {
        change
    }

    fn versions(&self) -> BTreeMap<String, u64> {
        let table = self.sql("SELECT id, ver FROM stock.item");
        let row = |line: &str| {
            let (id, ver) = line.split_once('\t').expect("two columns");
            (format!("{{\"id\":{id}}}"), ver.parse().expect("a version"))
        };
        table.lines().map(row).collect()
    }
}

/// uuid_short() counts up in the life of a server and begins above its last life.
fn change(rng: &mut Rng, rows: u32) -> Vec<String> {
    let (id, other) = (rng.u32(1..=rows), rng.u32(1..=rows));
    match rng.u32(0..10) {
        0 => vec![format!("DELETE FROM stock.item WHERE id = {id}")],
        1 | 2 => vec![
            format!("INSERT IGNORE INTO stock.item VALUES ({id}, 0, 'new')"),
            format!("UPDATE stock.item SET ver = uuid_short() WHERE id = {id}"),
        ],
        3 => vec![format!("UPDATE IGNORE stock.item SET id = {rows} + {other}, ver = uuid_short() WHERE id = {id}")],
        _ => vec![format!("UPDATE stock.item SET ver = uuid_short() WHERE id BETWEEN {id} AND {id} + 5")],
    }
}

/// Whether the server's transactions have names, so that rows can be read.
pub fn has_names(server: &Server) -> bool {
    server.flavour == Flavour::Mariadb || server.sql("SELECT @@gtid_mode") == "ON"
}

fn kill(server: &Server, query: &str) {
    for id in server.sql(query).lines() {
        // It may have ended by itself.
        let _ = server.try_sql(&format!("KILL {id}"));
    }
}

/// One session, used from a thread that waits for it.
pub struct Conversation {
    runtime: tokio::runtime::Runtime,
    session: Session,
}

impl Conversation {
    /// Strict, so that nothing is cut in silence, and with the other database's rules for quoted text.
    pub fn open(url: &str) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let session = runtime.block_on(Session::open(url)).map_err(|error| error.to_string())?;
        let mut new = Self { runtime, session };
        // The lock of a changed table and those of rows do not know of each other: one of them has to give up.
        new.query(
            "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_BACKSLASH_ESCAPES', lock_wait_timeout = 2, innodb_lock_wait_timeout = 10",
        )?;
        Ok(new)
    }

    /// Runs one statement; a cell is text or NULL.
    pub fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, String> {
        self.runtime.block_on(self.session.query(sql)).map_err(|error| error.what())
    }

    /// The only value of a query.
    pub fn value(&mut self, sql: &str) -> Result<Option<String>, String> {
        Ok(self.query(sql)?.into_iter().next().and_then(|row| row.into_iter().next()).flatten())
    }
}

struct Writer {
    session: Conversation,
    gone: bool,
}

/// What a failed statement means. A server that is being killed, or was, says something else or nothing.
fn failure(error: String) -> Failure {
    let number = error.rsplit_once('(').and_then(|(_, rest)| rest.trim_end_matches(')').parse::<u16>().ok());
    match number {
        Some(1205 | 1213 | 1020 | 1412) => Failure::Deadlock,
        None | Some(1053 | 1927 | 1317) => Failure::Gone,
        Some(_) => panic!("the workload failed: {error}"),
    }
}

impl Client for Writer {
    fn run(&mut self, steps: &[Step], keep: bool, committed: &mut u64) -> Result<(), Failure> {
        let done = self.transaction(steps, keep, committed).map_err(failure);
        match done {
            Err(Failure::Deadlock) => match self.session.query("ROLLBACK") {
                Ok(_) => Err(Failure::Deadlock),
                Err(error) => Err(failure(error)),
            },
            other => other,
        }
    }

    fn change(&mut self, statements: &[String]) -> bool {
        let mut all = vec!["BEGIN"];
        all.extend(statements.iter().map(String::as_str));
        all.push("COMMIT");
        let done = all.into_iter().try_for_each(|sql| self.session.query(sql).map(drop));
        if done.is_err() {
            self.gone = self.session.query("ROLLBACK").is_err();
        }
        done.is_ok()
    }

    fn is_gone(&mut self) -> bool {
        self.gone
    }
}

impl Writer {
    fn transaction(&mut self, steps: &[Step], keep: bool, committed: &mut u64) -> Result<(), String> {
        self.begin()?;
        for step in steps {
            match step {
                Step::Reshape { kind, value, name, rename } => self.reshape(kind, value, name, *rename, committed)?,
                step => drop(self.session.query(&sql(step)).and_then(|rows| match step {
                    // What was copied is told to whoever changes the rows later.
                    Step::Copy { first, rows } => self.session.query(&format!("CALL truth.copied({first}, {rows})")),
                    _ => Ok(rows),
                })?),
            }
        }
        let events = self.events()?;
        self.session.query(if keep { "COMMIT" } else { "ROLLBACK" })?;
        *committed += if keep { events } else { 0 };
        Ok(())
    }

    /// The server's listing of its binlog shows this first statement, and so where the transaction has its place.
    fn begin(&mut self) -> Result<(), String> {
        static NEXT: AtomicI64 = AtomicI64::new(1);
        let tx = NEXT.fetch_add(1, Ordering::SeqCst);
        self.session.query("BEGIN")?;
        self.session.query(&format!("SET @tx = {tx}"))?;
        self.session.query(&format!("INSERT INTO truth.began VALUES ({tx})")).map(drop)
    }

    fn events(&mut self) -> Result<u64, String> {
        let count = self.session.value("SELECT count(*) FROM truth.changes WHERE tx = @tx")?;
        Ok(count.expect("a count").parse().expect("a number"))
    }

    /// These databases commit before they change a table, so what follows is another transaction.
    fn reshape(&mut self, kind: &str, value: &str, name: &str, rename: bool, committed: &mut u64) -> Result<(), String> {
        let events = self.events()?;
        self.session.query("COMMIT")?;
        *committed += events;
        self.session.query("SELECT GET_LOCK('reshape', 60)")?;
        let done = self.alter(kind, value, name, rename);
        self.session.query("SELECT RELEASE_LOCK('reshape')")?;
        done?;
        self.begin()
    }

    /// The comment is for the oracle: the server writes the statement to its binlog as it is.
    fn alter(&mut self, kind: &str, value: &str, name: &str, rename: bool) -> Result<(), String> {
        let columns = "SELECT column_name FROM information_schema.columns WHERE table_schema = 'shop' AND table_name = 'account'
            AND column_name NOT IN ('id', 'ver', 'owner', 'active')";
        let (kind, json) = match (kind, value) {
            ("int", "NULL") => ("int", "null".to_owned()),
            ("int", value) => ("int", value.trim_matches('\'').to_owned()),
            ("boolean", _) => ("boolean", "1".to_owned()),
            (_, value) => ("varchar(40)", value.replace('\'', "\"")),
        };
        let value = if kind == "boolean" { "1" } else { value };
        let alter = match self.session.value(columns)? {
            None => format!("ADD COLUMN `{name}` {kind} DEFAULT {value} /* reshape {{\"add\":\"{name}\",\"value\":{json}}} */"),
            Some(extra) if rename && extra != name => {
                format!("RENAME COLUMN `{extra}` TO `{name}` /* reshape {{\"rename\":\"{name}\"}} */")
            }
            Some(extra) => format!("DROP COLUMN `{extra}` /* reshape {{\"drop\":\"{extra}\"}} */"),
        };
        self.session.query(&format!("ALTER TABLE shop.account {alter}")).map(drop)
    }
}

fn sql(step: &Step) -> String {
    match step {
        Step::Call(call) => format!("CALL truth.{call}"),
        Step::Many { base, rows, owner } => format!("CALL truth.put_accounts({base} + 1, {rows}, '{owner}')"),
        Step::Large { base, rows, owner } => format!("CALL truth.put_accounts({base}, {rows}, '{owner}')"),
        Step::Copy { first, rows } => {
            let rows: Vec<String> = (*first..first + rows).map(|id| format!("({id}, 1, 'copy \t 🚲 {id}', false)")).collect();
            format!("INSERT INTO shop.account (id, ver, owner, active) VALUES {}", rows.join(","))
        }
        // The lock of a table would commit; the one of its columns is taken where they change.
        Step::Exclusive => "DO 0".to_owned(),
        Step::Reshape { .. } => panic!("a table is changed outside of a transaction"),
        Step::Savepoint(depth) => format!("SAVEPOINT s{depth}"),
        Step::RollbackTo(depth) => format!("ROLLBACK TO s{depth}"),
        Step::Release(depth) => format!("RELEASE SAVEPOINT s{depth}"),
    }
}
