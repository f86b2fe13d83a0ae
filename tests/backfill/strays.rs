//! Chunks that are read and wait to be published while somebody changes what is to be read. The stream stands still meanwhile, so that they
//! wait for as long as the test needs.

use std::process::Command;

use super::{expect_sound, versioned};
use crate::support::{
    PATIENCE,
    daemon::Home,
    postgres::{Database, Postgres},
    record::Record,
    wait_until,
};

/// The process that sends the stream, stopped until this is dropped.
struct Frozen(String);

impl Frozen {
    fn sender_of(database: &Database) -> Self {
        let pid = database.value("SELECT active_pid FROM pg_replication_slots WHERE database = current_database()");
        let frozen = Self(pid);
        frozen.signal("-STOP");
        frozen
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.0]).status().expect("kill runs");
        assert!(status.success(), "no process {}", self.0);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.signal("-CONT");
    }
}

/// The database's clock.
fn now(database: &Database) -> String {
    database.value("SELECT clock_timestamp()")
}

/// Waits until a chunk was read after this time, and given back to the daemon.
fn wait_read(database: &Database, since: &str) {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'headwater%'
         AND backend_type = 'client backend' AND state = 'idle' AND query = 'COMMIT' AND state_change > '{since}'"
    );
    wait_until("a chunk to be read", PATIENCE, || match database.value(&sql).as_str() {
        "0" => Err(format!("{:?}", database.rows("SELECT state, query, state_change FROM pg_stat_activity"))),
        _ => Ok(()),
    });
}

#[test]
fn a_chunk_that_waits_while_its_backfill_is_paused_and_resumed_is_published_once() {
    let server = Postgres::start();
    let database = server.database();
    let rows = 400;
    let home = versioned(&database, rows, "      backfill: never\n");
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    let frozen = Frozen::sender_of(&database);
    // What is read now shows this, so it waits for the stream to bring it.
    database.sql("INSERT INTO public.item VALUES (0, 1)");
    let ask = |more: &[&str]| home.run(&[&["backfill", "shop", "public.item"], more].concat()).expect_code(0);
    let since = now(&database);
    ask(&[]);
    wait_read(&database, &since);
    ask(&["--pause"]);
    let since = now(&database);
    ask(&["--resume"]);
    wait_read(&database, &since);
    assert_eq!(home.tail("shop.item").len(), 0, "nothing is published while the stream stands still");
    drop(frozen);
    daemon.wait_for("shop", "all rows", |shop| shop["backfills"][0]["state"] == "done");
    daemon.wait_caught_up("shop");
    let records = home.tail("shop.item");
    let mut reads: Vec<&str> = records.iter().filter(|record| record.op() == "r").map(|record| record.key.as_str()).collect();
    reads.sort_unstable();
    let all = reads.len();
    reads.dedup();
    assert_eq!(all, reads.len(), "no row is read twice");
    assert!(reads.len() >= rows as usize, "{} rows were read", reads.len());
    expect_sound(&database, &home);
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn a_refresh_that_waits_while_a_backfill_begins_is_not_forgotten() {
    let server = Postgres::start();
    let database = server.database();
    database.sql(
        "CREATE TABLE public.doc (id int PRIMARY KEY, ver bigint, body text); ALTER TABLE public.doc ALTER body SET STORAGE EXTERNAL;
         INSERT INTO public.doc VALUES (1, 1, repeat('1-', 3000)); CREATE TABLE public.side (id int PRIMARY KEY); INSERT INTO public.side VALUES (1)",
    );
    let home = Home::new();
    home.shop(&database.url(), "public.doc, public.side", "      backfill: never\n");
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    let is_partial = |record: &Record| !record.absent().is_empty();
    let ops = || home.tail("shop.doc").iter().map(|record| (record.op().to_owned(), is_partial(record))).collect::<Vec<_>>();
    // The first one of the connector's life has the topic made that names such rows.
    database.sql("UPDATE public.doc SET ver = 2");
    wait_until("the first refresh", PATIENCE, || match ops() {
        found if found == [("u".into(), true), ("r".into(), false)] => Ok(()),
        found => Err(format!("{found:?}")),
    });
    // The look-up of the second waits behind a lock until the stream stands still.
    database.sql("UPDATE public.side SET id = 2");
    // Published first: the look at a table's description waits behind such a lock too.
    wait_until("the other table's event", PATIENCE, || match home.tail("shop.side").len() {
        0 => Err("none".to_owned()),
        _ => Ok(()),
    });
    let (mut writer, mut locker) = (database.client(), database.client());
    writer.batch_execute("BEGIN; UPDATE public.doc SET ver = 3").expect("an update");
    let locking = std::thread::spawn(move || {
        locker.batch_execute("BEGIN; LOCK TABLE public.doc IN ACCESS EXCLUSIVE MODE").expect("a lock");
        locker
    });
    wait_until("the lock to be queued", PATIENCE, || {
        match database.value("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'public.doc'::regclass").as_str() {
            "0" => Err("nobody waits".to_owned()),
            _ => Ok(()),
        }
    });
    writer.batch_execute("COMMIT").expect("a commit");
    let mut locker = locking.join().expect("the lock");
    wait_until("the partial event", PATIENCE, || match ops() {
        found if found.len() == 3 => Ok(()),
        found => Err(format!("{found:?}")),
    });
    let frozen = Frozen::sender_of(&database);
    database.sql("UPDATE public.side SET id = 3");
    let since = now(&database);
    locker.batch_execute("ROLLBACK").expect("the end of the lock");
    wait_read(&database, &since);
    home.run(&["backfill", "shop", "public.side"]).expect_code(0);
    assert_eq!(ops().len(), 3, "nothing is published while the stream stands still");
    drop(frozen);
    wait_until("the second refresh", PATIENCE, || match ops() {
        found if found.len() == 4 && found[3] == ("r".into(), false) => Ok(()),
        found => Err(format!("{found:?}")),
    });
    daemon.wait_for("shop", "the other table", |shop| shop["backfills"].to_string().contains("done"));
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
}
