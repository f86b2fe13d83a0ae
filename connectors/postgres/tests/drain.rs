//! How fast a backlog drains, beside the server's own client. A measurement, not a check. Run it optimised:
//! `CARGO_PROFILE_DEV_OPT_LEVEL=3 cargo test -p headwater-postgres --test drain -- --ignored --nocapture`.

mod support;

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use headwater_connector::{Batch, Limits};
use serde_json::json;
use support::{begin, connector, shared};

const ROWS: usize = 600_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn a_backlog_drains() {
    let database = shared().database();
    shared().sql(
        &database,
        "CREATE TABLE t (id bigint PRIMARY KEY, a int, b text, c text, d text, e numeric(10,2), f bool, g timestamptz, h timestamptz, i text)",
    );
    let connector = connector(&shared().url(&database), json!({}));
    let start = begin(&*connector).await;
    // An own slot for each run of theirs: it moves as it is read.
    shared().sql(&database, "SELECT pg_create_logical_replication_slot('other' || i, 'pgoutput') FROM generate_series(0, 2) i");
    let insert = format!(
        "DO $$ BEGIN FOR t IN 0 .. {ROWS} / 100 - 1 LOOP
           INSERT INTO t SELECT t * 100 + i, i, 'a name of a customer', 'an address with a street and a number', 'customer@example.com',
             12.34, true, now(), now(), 'open' FROM generate_series(0, 99) i;
           COMMIT; END LOOP; END $$"
    );
    shared().sql(&database, &insert);
    let port = shared().port.to_string();
    for run in 0..3 {
        let mut source = connector.open(&start.identity, &start.position).await.unwrap();
        let (started, mut rows, mut batch) = (Instant::now(), 0, Batch::default());
        while rows < ROWS {
            batch.clear(8 << 20);
            source.next_batch(&mut batch, &Limits { max_wait: Duration::from_secs(5), ..Limits::default() }).await.unwrap();
            rows += batch.changes().len();
        }
        println!("headwater      {:.0} rows/s", rows as f64 / started.elapsed().as_secs_f64());
        source.close().await.unwrap();
        let end = shared().sql(&database, "SELECT pg_current_wal_lsn()");
        let mut theirs = Command::new("pg_recvlogical");
        theirs.args(["-S", &format!("other{run}")]);
        theirs.args([
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-p",
            &port,
            "-d",
            &database,
            "--start",
            "--no-loop",
            "-f",
            "/dev/null",
        ]);
        theirs.args([
            "-o",
            "proto_version=1",
            "-o",
            &format!("publication_names=hw_{database}"),
            "--endpos",
            &end,
            "-F",
            "0",
            "-s",
            "0",
        ]);
        let started = Instant::now();
        assert!(theirs.stderr(Stdio::inherit()).status().expect("pg_recvlogical").success());
        println!("pg_recvlogical {:.0} rows/s", ROWS as f64 / started.elapsed().as_secs_f64());
    }
}
