//! The embedded log of the real daemon on a disk that is full, with few file descriptors, and beside programs that read it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{
    PATIENCE,
    daemon::{Daemon, Home},
    postgres::{Database, Postgres},
    record::Record,
    wait_until,
};

/// How a daemon comes to a small disk of its own.
enum Disk {
    /// A tmpfs of 8 MiB in a mount namespace of the daemon's own, which vanishes with it: a real full disk.
    Mounted { unshare: &'static [&'static str] },
    /// Where namespaces are forbidden: a limit on the size of its files, which can be lifted while it runs.
    Limited,
}

impl Disk {
    fn pick() -> Self {
        for unshare in [&["unshare", "--mount"][..], &["unshare", "--map-root-user", "--mount"]] {
            let dir = crate::support::temp_dir();
            let mount = format!("mount -t tmpfs -o size=8m tmpfs '{}'", dir.path().display());
            let tried = Command::new(unshare[0]).args(&unshare[1..]).args(["sh", "-c", &mount]).output();
            if tried.is_ok_and(|tried| tried.status.success()) {
                println!("full disk: a tmpfs, by {unshare:?}");
                return Self::Mounted { unshare };
            }
        }
        println!("full disk: a limit on the size of files");
        Self::Limited
    }

    fn start<'a>(&self, home: &'a Home) -> Daemon<'a> {
        fs::create_dir(home.path("data")).expect("the log's directory");
        match self {
            Self::Mounted { unshare } => {
                let script = "mount -t tmpfs -o size=8m tmpfs data && exec \"$0\" \"$@\"";
                home.start_under(&[unshare, &["sh", "-c", script][..]].concat())
            }
            // An ignored signal stays ignored, so that a write beyond the limit is an error and not the end.
            Self::Limited => home.start_under(&["sh", "-c", "trap '' XFSZ; ulimit -S -f 2048; exec \"$0\" \"$@\""]),
        }
    }

    /// The log's directory as the daemon sees it.
    fn data(&self, home: &Home, daemon: &Daemon) -> PathBuf {
        let path = home.path("data");
        match self {
            Self::Mounted { .. } => PathBuf::from(format!("/proc/{}/root{}", daemon.pid(), path.display())),
            Self::Limited => path,
        }
    }

    /// Takes what is left of the disk.
    fn fill(&self, data: &Path) {
        if let Self::Mounted { .. } = self {
            let mut file = fs::File::create(data.join("filler")).expect("a file");
            let full = std::iter::repeat_with(|| file.write_all(&[0; 4096])).find_map(Result::err).expect("an end");
            assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        }
    }

    fn free(&self, data: &Path, daemon: &Daemon) {
        match self {
            Self::Mounted { .. } => fs::remove_file(data.join("filler")).expect("the filler"),
            Self::Limited => {
                let pid = daemon.pid().to_string();
                let lifted = Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited"]).status();
                assert!(lifted.expect("prlimit runs").success());
            }
        }
    }

    /// Runs a command where the daemon sees its disk.
    fn run(&self, home: &Home, daemon: &Daemon, arguments: &[&str]) -> crate::support::daemon::Outcome {
        let pid = daemon.pid().to_string();
        // The path is looked up again inside, so that it leads to the daemon's disk.
        let inside = format!("cd '{}' && exec \"$0\" \"$@\"", home.path(".").display());
        let enter = ["nsenter", "--target", &pid, "--mount", "sh", "-c", &inside];
        match self {
            Self::Mounted { unshare } if unshare.len() == 2 => home.run_under(&enter, arguments),
            Self::Mounted { .. } => {
                home.run_under(&[&enter[..3], &["--user", "--preserve-credentials"], &enter[3..]].concat(), arguments)
            }
            Self::Limited => home.run(arguments),
        }
    }
}

fn insert(database: &Database, from: u32, to: u32) {
    database.sql(&format!("INSERT INTO public.orders SELECT n, repeat('x', 500) FROM generate_series({from}, {to}) n"));
}

fn is_complete(output: &str, count: usize) {
    let keys: Vec<String> = output.lines().map(|line| Record::parse(line).key).collect();
    let expected: Vec<String> = (1..=count).map(|id| format!("{{\"id\":{id}}}")).collect();
    assert!(keys == expected, "{} events of {count}, or in another order", keys.len());
}

/// D1: the transaction is rolled back whole, the state has a name, and everything goes on by itself once there is room.
#[test]
fn a_full_disk_stops_the_log_and_nothing_else() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    let disk = Disk::pick();
    let mut daemon = disk.start(&home);
    daemon.wait_state("shop", "streaming");
    insert(&database, 1, 100);
    daemon.wait_caught_up("shop");
    let data = disk.data(&home, &daemon);
    let tail = ["tail", "shop.orders", "--from", "earliest", "--until-end", "--format", "json"];
    disk.fill(&data);
    // One transaction that needs half the disk.
    insert(&database, 101, 3_000);
    let stuck = daemon.wait_for("shop", "a full disk", |connector| connector["state"] == "retrying");
    let code = stuck["error"]["code"].as_str().unwrap_or_default().to_owned();
    // Beyond the limit a write is an IO error like any other: before the commit, or in it.
    let expected = if matches!(disk, Disk::Mounted { .. }) { &["HW1226"][..] } else { &["HW1227", "HW1201"] };
    assert!(expected.contains(&&*code), "{stuck}");
    if let Disk::Mounted { .. } = disk {
        let check = disk.run(&home, &daemon, &["check"]);
        assert!(check.said().contains("HW1232") || check.said().contains("HW1221"), "{}", check.said());
        let seen = disk.run(&home, &daemon, &tail);
        seen.expect_code(0);
        is_complete(&seen.stdout, 100);
    }
    disk.free(&data, &daemon);
    daemon.wait_caught_up("shop");
    let seen = disk.run(&home, &daemon, &tail);
    seen.expect_code(0);
    is_complete(&seen.stdout, 3_000);
    let check = disk.run(&home, &daemon, &["check"]);
    assert!(check.said().contains("MiB are free"), "{}", check.said());
    assert_eq!(daemon.terminate(), Some(0));
}

/// The same in the middle of a backfill: it goes on in the chunk it was in, and no row of it comes behind a change that it lacks.
#[test]
fn a_disk_that_fills_up_while_rows_are_read_costs_no_row_and_no_change() {
    let server = Postgres::shared();
    let database = server.database();
    database.sql("CREATE TABLE public.orders (id int PRIMARY KEY, note text)");
    insert(&database, 1, 3_000);
    let home = Home::new();
    home.shop(&database.url(), "public.orders", "      backfill: { rows_per_second: 1000 }\n");
    let disk = Disk::pick();
    let mut daemon = disk.start(&home);
    daemon.wait_for("shop", "the first rows", |shop| shop["backfills"][0]["rows"].as_u64().is_some_and(|rows| rows > 0));
    let data = disk.data(&home, &daemon);
    disk.fill(&data);
    let stuck = daemon.wait_for("shop", "a full disk", |shop| shop["state"] == "retrying");
    assert!(["HW1226", "HW1227", "HW1201"].map(Some).contains(&stuck["error"]["code"].as_str()), "{stuck}");
    database.sql("UPDATE public.orders SET note = 'changed' WHERE id IN (1, 3000); DELETE FROM public.orders WHERE id = 2000");
    disk.free(&data, &daemon);
    daemon.wait_for("shop", "the last rows", |shop| shop["backfills"][0]["state"] == "done");
    daemon.wait_caught_up("shop");
    let seen = disk.run(&home, &daemon, &["tail", "shop.orders", "--from", "earliest", "--until-end", "--format", "json"]);
    let mut newest = BTreeMap::new();
    let mut read = BTreeSet::new();
    for record in seen.stdout.lines().map(Record::parse) {
        assert!(record.op() != "r" || read.insert(record.key.clone()), "{} was read twice", record.key);
        newest.insert(record.key.clone(), record.column("note").map(|note| note.to_string().len()));
    }
    newest.retain(|_, note| note.is_some());
    let length = |id| if matches!(id, 1 | 3000) { "changed".len() + 2 } else { 500 + 2 };
    let rows = (1..=3_000).filter(|id| *id != 2000).map(|id| (format!("{{\"id\":{id}}}"), Some(length(id))));
    assert!(newest == rows.collect(), "{} rows", newest.len());
    assert_eq!(daemon.terminate(), Some(0));
}

/// E2: each life and each reader gives back what it took.
#[test]
fn sixty_four_file_descriptors_are_enough() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    let mut daemon = home.start_under(&["sh", "-c", "ulimit -n 64; exec \"$0\" \"$@\""]);
    daemon.wait_state("shop", "streaming");
    let open = |daemon: &Daemon| fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("its files").count();
    let kick = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication JOIN pg_replication_slots \
                ON active_pid = pid WHERE database = current_database()";
    for round in 0..40 {
        insert(&database, round * 10 + 1, round * 10 + 10);
        daemon.wait_caught_up("shop");
        assert_eq!(database.value(kick), "1");
        assert!(open(&daemon) < 64);
    }
    insert(&database, 401, 410);
    daemon.wait_caught_up("shop");
    is_complete(&home.run(&["tail", "shop.orders", "--from", "earliest", "--until-end", "--format", "json"]).stdout, 410);
    assert_eq!(daemon.terminate(), Some(0));
}

/// A program that keeps a read transaction open holds up the emptying of the write-ahead log, never a commit.
#[test]
fn a_reader_that_stays_does_not_block_the_daemon() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    insert(&database, 1, 10);
    daemon.wait_caught_up("shop");
    let reader = rusqlite::Connection::open(home.path("data/log.db")).expect("any SQLite tool");
    reader.execute_batch("BEGIN").expect("a transaction");
    let count = || reader.query_row("SELECT count(*) FROM \"shop.orders\"", [], |row| row.get::<_, i64>(0)).expect("a count");
    assert_eq!(count(), 10);
    // More than the daemon keeps in the write-ahead log when nobody is in its way.
    for round in 0..8 {
        insert(&database, round * 10_000 + 11, round * 10_000 + 10_010);
        daemon.wait_caught_up("shop");
    }
    let wal = || fs::metadata(home.path("data/log.db-wal")).map_or(0, |metadata| metadata.len());
    assert!(wal() > 32 << 20, "{} bytes", wal());
    assert_eq!(count(), 10, "the reader's view stands still");
    reader.execute_batch("COMMIT").expect("its end");
    assert_eq!(count(), 80_010);
    // Once the reader is gone, the next commits begin the write-ahead log anew and it shrinks.
    let mut next = 80_011;
    wait_until("the write-ahead log to shrink", PATIENCE, || {
        insert(&database, next, next);
        next += 1;
        daemon.wait_caught_up("shop");
        if wal() <= 33 << 20 { Ok(()) } else { Err(format!("{} bytes", wal())) }
    });
    assert_eq!(daemon.terminate(), Some(0));
}
