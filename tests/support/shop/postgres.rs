//! PostgreSQL under the kill test.
//!
//! The order of the oracle comes from a slot of its own with another output plugin. The same slot shows every change of the
//! captured tables, so the oracle also holds itself: truth that does not match the real changes is a fault of the test.

use std::{collections::BTreeMap, io::Write as _};

use fastrand::Rng;
use postgres::{Config, NoTls, SimpleQueryMessage};
use serde_json::Value;

use super::{Change, Client, Connect, Failure, Shop, Step, Trouble, Truth};
use crate::{
    checker::{Expected, Sample},
    support::{
        PATIENCE,
        daemon::Home,
        oracle,
        postgres::{Database, PASSWORD},
        wait_until,
    },
};

const OURS: &str = "active AND database = current_database() AND slot_name LIKE 'headwater%'";

impl Shop for Database<'_> {
    fn name(&self) -> &'static str {
        "PostgreSQL"
    }

    fn prepare(&self) {
        self.sql(include_str!("postgres.sql"));
    }

    fn capture(&self, home: &Home, tables: &str, more: &str) {
        home.shop(&self.url(), tables, more);
    }

    fn captured(&self) -> (&'static str, &'static str) {
        // The oracle knows every event by itself, so no row is read again.
        ("\"shop.*\"", "      large_values: absent\n")
    }

    fn connect(&self) -> Connect {
        let mut server: Config = self.url().parse().expect("the URL of the database");
        server.password(PASSWORD);
        Box::new(move || Ok(Box::new(Session(server.connect(NoTls).map_err(|error| error.to_string())?))))
    }

    fn truth(&self) -> Box<dyn Truth + '_> {
        let slot = format!("oracle_{}", self.name);
        self.rows(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"));
        Box::new(Slot { database: self, slot })
    }

    fn troubles(&self) -> &'static [Trouble] {
        &[Trouble::DatabaseCrash, Trouble::SenderEnd, Trouble::Freeze, Trouble::Rival]
    }

    fn words(&self) -> [&'static str; 2] {
        ["walsender ended", "COPY"]
    }

    fn crash_and_restart(&self) {
        self.server.crash_and_restart();
    }

    fn end_senders(&self) {
        self.sql(&format!("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE {OURS}"));
    }

    fn end_readers(&self) {
        self.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE application_name LIKE 'headwater%' AND backend_type = 'client backend' AND datname = current_database()",
        );
    }

    fn new_files(&self) {
        self.sql("SELECT pg_switch_wal()");
    }

    fn outlast(&self) {
        let senders = format!("SELECT count(*) FROM pg_replication_slots WHERE {OURS}");
        wait_until("the source to give the daemon up", PATIENCE, || match self.value(&senders).as_str() {
            "0" => Ok(()),
            some => Err(format!("{some} senders")),
        });
    }

    fn confirmed(&self) -> Option<u64> {
        let slots = "FROM pg_replication_slots WHERE database = current_database() AND slot_name LIKE 'headwater%'";
        Some(lsn(&self.value(&format!("SELECT confirmed_flush_lsn {slots}"))))
    }

    fn sample(&self, confirmed: Option<u64>, position: &str) -> Option<Sample> {
        let committed = lsn(position.split(':').nth(1).expect("the end of the last whole transaction"));
        Some(Sample { confirmed: confirmed?, committed })
    }

    fn is_partial(&self, position: &str) -> bool {
        position.contains('@')
    }

    fn versioned(&self, rows: u32) {
        self.sql(&format!(
            "CREATE TABLE public.item (id int PRIMARY KEY, ver bigint NOT NULL, note text);
             INSERT INTO public.item SELECT n, 1, repeat('n', n % 50) FROM generate_series(1, {rows}) n; ANALYZE public.item;
             CREATE SEQUENCE public.vers START 10"
        ));
    }

    fn versioned_table(&self) -> &'static str {
        "public.item"
    }

    fn change(&self) -> Change {
        change
    }

    fn versions(&self) -> BTreeMap<String, u64> {
        let rows = self.rows("SELECT json_build_object('id', id)::text, ver::text FROM public.item");
        rows.into_iter().map(|row| (row[0].replace(' ', ""), row[1].parse().expect("a version"))).collect()
    }
}

fn change(rng: &mut Rng, rows: u32) -> Vec<String> {
    let (id, other) = (rng.u32(1..=rows), rng.u32(1..=rows));
    vec![match rng.u32(0..10) {
        0 => format!("DELETE FROM public.item WHERE id = {id}"),
        1 | 2 => format!(
            "INSERT INTO public.item VALUES ({id}, 0, 'new') ON CONFLICT (id) DO NOTHING;
             UPDATE public.item SET ver = nextval('public.vers') WHERE id = {id}"
        ),
        3 => format!(
            "UPDATE public.item SET id = {rows} + {other}, ver = nextval('public.vers')
             WHERE id = {id} AND NOT EXISTS (SELECT FROM public.item WHERE id = {rows} + {other})"
        ),
        _ => format!("UPDATE public.item SET ver = nextval('public.vers') WHERE id BETWEEN {id} AND {id} + 5"),
    }]
}

/// `16/B374D848` as bytes.
fn lsn(text: &str) -> u64 {
    let parts = text.split_once('/').map(|(high, low)| (u64::from_str_radix(high, 16), u64::from_str_radix(low, 16)));
    let Some((Ok(high), Ok(low))) = parts else { panic!("not a place in the log of the source: {text}") };
    high << 32 | low
}

struct Session(postgres::Client);

impl Client for Session {
    fn run(&mut self, steps: &[Step], keep: bool, committed: &mut u64) -> Result<(), Failure> {
        let client = &mut self.0;
        match transaction(client, steps, keep) {
            Ok(events) => *committed += if keep { events } else { 0 },
            Err(error) if is_crash(client, &error) => return Err(Failure::Gone),
            Err(error) => {
                let code = error.code().map_or_else(|| panic!("the workload failed: {error}"), postgres::error::SqlState::code);
                assert_eq!(code, "40P01", "the workload failed: {error:?}");
                // The server may crash right here.
                if let Err(error) = client.batch_execute("ROLLBACK") {
                    assert!(is_crash(client, &error), "a rollback failed: {error:?}");
                    return Err(Failure::Gone);
                }
                return Err(Failure::Deadlock);
            }
        }
        Ok(())
    }

    fn change(&mut self, statements: &[String]) -> bool {
        self.0.batch_execute(&format!("BEGIN; {}; COMMIT", statements.join(";"))).is_ok()
    }

    fn is_gone(&mut self) -> bool {
        self.0.is_closed() || self.0.batch_execute("SELECT 1").is_err() && self.0.batch_execute("ROLLBACK").is_err()
    }
}

/// Runs a transaction, in one round trip unless it copies rows first, and returns how many events it stands for; nothing of it happened
/// after an error.
fn transaction(client: &mut postgres::Client, steps: &[Step], keep: bool) -> Result<u64, postgres::Error> {
    let mut steps = steps;
    let mut script = String::from("BEGIN;");
    if let Some((Step::Copy { first, rows }, rest)) = steps.split_first() {
        client.batch_execute("BEGIN")?;
        let mut copy = client.copy_in("COPY shop.account (id, ver, owner, active) FROM STDIN")?;
        let lines: String = (*first..first + rows).map(|id| format!("{id}\t1\tcopy \\t 🚲 {id}\tf\n")).collect();
        // It is the end that tells what happened to the rows.
        let sent = copy.write_all(lines.as_bytes());
        let done = copy.finish()?;
        assert!(sent.is_ok() && done == *rows, "{done} of {rows} rows copied: {sent:?}");
        script = format!("SELECT truth.copied({first}, {rows});");
        steps = rest;
    }
    steps.iter().for_each(|step| script.push_str(&sql(step)));
    let end = if keep { "COMMIT" } else { "ROLLBACK" };
    let count = "SELECT count(*) FROM truth.change WHERE xid = pg_current_xact_id()::text::bigint";
    let messages = client.simple_query(&format!("{script}{count};{end};"))?;
    let last = messages.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(|value| value.parse().expect("a count")),
        _ => None,
    });
    Ok(last.expect("the count of the transaction"))
}

fn sql(step: &Step) -> String {
    match step {
        Step::Call(call) => format!("SELECT truth.{call};"),
        Step::Many { base, rows, owner } => {
            format!("SELECT truth.put_account({base} + n, '{owner}', true) FROM generate_series(1, {rows}) n;")
        }
        Step::Large { base, rows, owner } => format!("SELECT truth.put_accounts({base}, {rows}, '{owner}');"),
        Step::Copy { .. } => panic!("rows are copied before anything else"),
        Step::Exclusive => "LOCK TABLE shop.account IN ACCESS EXCLUSIVE MODE;".to_owned(),
        Step::Reshape { kind, value, name, rename } => format!("SELECT truth.reshape('{kind}', {value}, '{name}', {rename});"),
        Step::Savepoint(depth) => format!("SAVEPOINT s{depth};"),
        Step::RollbackTo(depth) => format!("ROLLBACK TO s{depth};"),
        Step::Release(depth) => format!("RELEASE s{depth};"),
    }
}

/// Whether the server went away.
fn is_crash(client: &postgres::Client, error: &postgres::Error) -> bool {
    client.is_closed() || error.code().is_none_or(|code| code.code().starts_with("57P"))
}

/// A slot that sees everything from its creation on.
struct Slot<'a> {
    database: &'a Database<'a>,
    slot: String,
}

impl Truth for Slot<'_> {
    fn expected(&self, connector: &str) -> Vec<Expected> {
        let mut client = self.database.client();
        let mut truth = truth(&mut client, connector);
        let mut expected = Vec::new();
        let mut tx = 0;
        let (mut changes, mut told) = (BTreeMap::new(), BTreeMap::new());
        let query =
            format!("SELECT left(data, 60) FROM pg_logical_slot_peek_changes('{}', NULL, NULL, 'include-xids', '0')", self.slot);
        for line in texts(&mut client, &query) {
            if line == "COMMIT" {
                assert_eq!(changes, told, "the truth of transaction {tx} is not what the database did");
                tx += usize::from(!told.is_empty());
                changes.clear();
                told.clear();
            } else if let Some(id) = line.strip_prefix("table truth.change: INSERT: id[bigint]:") {
                let id: i64 = id.split(' ').next().expect("a first word").parse().expect("a number");
                let (mut event, is_change) = truth.remove(&id).expect("a row of truth that the slot has seen");
                event.tx = tx;
                *told.entry(event.topic.clone()).or_insert(0) += u32::from(is_change);
                expected.push(event);
            } else if let Some(change) = line.strip_prefix("table shop.") {
                let (table, _) = change.split_once(": ").expect("a table and what happened");
                *changes.entry(format!("{connector}.{}", table.trim_matches('"'))).or_insert(0_u32) += 1;
            }
        }
        assert!(truth.is_empty(), "{} rows of truth have no place in the commit order", truth.len());
        expected
    }

    fn tables(&self, connector: &str) -> BTreeMap<(String, String), Value> {
        let mut client = self.database.client();
        let mut rows = BTreeMap::new();
        for (table, key, row) in [
            ("bank", "json_build_object('id', id)", "json_build_object('id', id, 'ver', ver, 'balance', balance)"),
            // Without the column that comes and goes: the last event of a row may be older than the column.
            (
                "account",
                "json_build_object('id', id)",
                "json_build_object('id', id, 'ver', ver, 'owner', owner, 'active', active)",
            ),
            (
                "order",
                "json_build_object('region', region, 'code', code)",
                "json_build_object('code', code, 'region', region, 'ver', ver, 'amount', amount::text, 'note', note)",
            ),
            ("document", "json_build_object('id', id)", "row_to_json(t)"),
            ("journal", "json_build_object('id', id)", "row_to_json(t)"),
        ] {
            let query = format!("SELECT json_build_array({key}, {row}) FROM shop.\"{table}\" t");
            for text in texts(&mut client, &query) {
                let pair: Value = serde_json::from_str(&text).expect("JSON of the database");
                rows.insert((format!("{connector}.{table}"), pair[0].to_string()), pair[1].clone());
            }
        }
        rows
    }
}

/// The rows of truth by id.
fn truth(client: &mut postgres::Client, connector: &str) -> BTreeMap<i64, (Expected, bool)> {
    let query = "SELECT id, tbl, op, key, ver, row, absent FROM truth.change ORDER BY id";
    let rows = client.query(&format!("SELECT id, json_build_array(tbl, op, key, ver, row, absent)::text FROM ({query}) t"), &[]);
    let mut truth = BTreeMap::new();
    for row in rows.expect("the truth") {
        let fields: Value = serde_json::from_str(row.get(1)).expect("JSON of the database");
        truth.insert(row.get(0), oracle::event(connector, &fields));
    }
    truth
}

/// The first column of a query.
fn texts(client: &mut postgres::Client, query: &str) -> Vec<String> {
    let messages = client.simple_query(query).unwrap_or_else(|error| panic!("{query}: {error:?}"));
    let text = |message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    };
    messages.into_iter().filter_map(text).collect()
}
