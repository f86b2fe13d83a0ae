//! A table, its rows in the server's log, and a slot in front of them for everybody who will drain them.

use crate::{drain::Contestant, server::Server};

/// Rows of one kind.
pub struct Shape {
    /// The case.
    pub name: &'static str,
    /// How many.
    pub rows: u64,
    /// Rows per transaction.
    pub per_transaction: u64,
    /// Columns besides the key.
    columns: String,
    /// What a row `i` holds besides its key.
    values: String,
}

impl Shape {
    /// 10 columns, about 150 bytes, 100 rows per transaction.
    pub fn narrow(rows: u64) -> Self {
        Self::ordinary("narrow", rows, 100)
    }

    /// The same rows, one per transaction.
    pub fn single(rows: u64) -> Self {
        Self::ordinary("single", rows, 1)
    }

    fn ordinary(name: &'static str, rows: u64, per_transaction: u64) -> Self {
        Self {
            name,
            rows,
            per_transaction,
            columns: "customer int8, status text, total numeric(12,2), note text, qty int4, active bool, created timestamptz, \
                      updated timestamp, code varchar(32)"
                .to_owned(),
            values: "i % 10000, 'status-' || i % 7, i * 1.25, 'a note of some length that pads the row to size ' || i, i % 100, \
                     i % 2 = 0, timestamptz '2026-01-02 03:04:05.123456+00' + i * interval '1 second', \
                     timestamp '2026-01-02 03:04:05.123456', 'code-' || i"
                .to_owned(),
        }
    }

    /// 100 columns of mixed types.
    pub fn wide(rows: u64) -> Self {
        let kinds = [("int8", "i + {n}"), ("text", "'value ' || i % 1000"), ("numeric(12,2)", "i * 0.25"), ("bool", "i % 3 = 0")];
        let kind = |n: usize| kinds[n % kinds.len()];
        let columns: Vec<String> = (1..100).map(|n| format!("c{n} {}", kind(n).0)).collect();
        let values: Vec<String> = (1..100).map(|n| kind(n).1.replace("{n}", &n.to_string())).collect();
        Self { name: "wide", rows, per_transaction: 100, columns: columns.join(", "), values: values.join(", ") }
    }

    /// 2 KB per row, too little for TOAST to move it out of line.
    pub fn large(rows: u64) -> Self {
        Self { name: "large", per_transaction: 100, ..Self::text(rows) }
    }

    /// The same rows, all in one transaction.
    pub fn huge(rows: u64) -> Self {
        Self { name: "huge", per_transaction: rows, ..Self::text(rows) }
    }

    fn text(rows: u64) -> Self {
        let values = "repeat(md5(i::text), 60)".to_owned();
        Self { name: "", rows, per_transaction: 1, columns: "body text".to_owned(), values }
    }

    /// The statement that inserts rows `$from` to `$to`.
    fn insert(&self, from: &str, to: &str) -> String {
        format!("INSERT INTO bench SELECT i, {} FROM generate_series({from}, {to}) i", self.values)
    }
}

/// A loaded backlog.
pub struct Backlog {
    /// What is in it.
    pub shape: Shape,
    /// Where it ends, as an LSN.
    pub end: String,
    row_bytes: String,
    wal: String,
}

impl Backlog {
    /// Makes the slots, then the rows.
    pub fn load(server: &Server, shape: Shape, rounds: usize, contestants: &[Contestant]) -> Self {
        let mut client = server.client();
        client
            .batch_execute(&format!(
                "CREATE TABLE bench (id int8 PRIMARY KEY, {}); CREATE PUBLICATION bench FOR TABLE bench",
                shape.columns
            ))
            .expect("the table");
        if shape.columns.starts_with("body") {
            client.batch_execute("ALTER TABLE bench ALTER body SET STORAGE PLAIN").expect("storage");
        }
        for round in 0..rounds {
            for contestant in contestants {
                let slot = contestant.slot(round);
                client.execute("SELECT pg_create_logical_replication_slot($1, 'pgoutput')", &[&slot]).expect("a slot");
            }
        }
        let begin = server.value("SELECT pg_current_wal_insert_lsn()");
        let (rows, step) = (shape.rows, shape.per_transaction);
        let insert = shape.insert("t", &format!("t + {step} - 1"));
        client
            .batch_execute(&format!(
                "CREATE OR REPLACE PROCEDURE load() LANGUAGE plpgsql AS $$ BEGIN FOR t IN 1 .. {rows} BY {step} LOOP {insert}; COMMIT; \
                 END LOOP; END $$"
            ))
            .expect("the procedure");
        client.batch_execute("CALL load()").expect("the rows");
        client.batch_execute("CHECKPOINT").expect("a checkpoint");
        let end = server.value("SELECT pg_current_wal_flush_lsn()");
        let wal = server.value(&format!("SELECT pg_size_pretty('{end}'::pg_lsn - '{begin}'::pg_lsn)"));
        let row_bytes = server.value("SELECT round(avg(length(b::text))) FROM (SELECT b FROM bench b LIMIT 1000) b");
        Self { shape, end, row_bytes, wal }
    }

    /// Its conditions in words.
    pub fn describe(&self) -> String {
        let Shape { rows, per_transaction, columns, .. } = &self.shape;
        let columns = columns.split(", ").count() + 1;
        let (bytes, wal) = (&self.row_bytes, &self.wal);
        format!("{rows} rows of {columns} columns, {bytes} bytes as text, {per_transaction} rows per transaction, {wal} of WAL.")
    }

    /// Leaves the server as it was.
    pub fn drop(&self, server: &Server) {
        server
            .client()
            .batch_execute(
                "DROP PUBLICATION bench; DROP TABLE bench; \
                 SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active",
            )
            .expect("the table goes");
    }
}
