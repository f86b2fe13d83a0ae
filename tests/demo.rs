//! The demo, as a newcomer runs it: on every kind of database its own count is exact, and it leaves nothing behind.

use std::process::Command;

fn the_demo_counts_both_ends(kind: &str, base: &str, script: &[&str]) {
    let place =
        Command::new(script[0]).args(&script[1..]).current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("the script runs");
    assert!(place.status.success(), "no {kind} to show: {}", String::from_utf8_lossy(&place.stderr));
    let directory = tempfile::tempdir().expect("a directory");
    // The servers run as another user.
    Command::new("chmod").arg("a+rx").arg(directory.path()).status().expect("chmod");
    let output = Command::new(env!("CARGO_BIN_EXE_headwater"))
        .args(["demo", "--source", kind, "--seconds", "4"])
        .env(base, String::from_utf8_lossy(&place.stdout).trim())
        .env("TMPDIR", directory.path())
        .output()
        .expect("the demo runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}\n{err}");
    let last = out.lines().last().unwrap_or_default();
    assert!(last.starts_with("committed ") && last.ends_with(": 0 missing, 0 twice"), "{out}\n{err}");
    assert!(out.contains("3 kills"), "{out}");
    let left: Vec<_> = std::fs::read_dir(directory.path()).expect("the directory").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_demo_counts_both_ends_of_a_postgres() {
    the_demo_counts_both_ends("postgres", "HEADWATER_PG_BIN", &["scripts/postgres-path.sh"]);
}

#[test]
fn the_demo_counts_both_ends_of_a_mariadb() {
    the_demo_counts_both_ends("mariadb", "HEADWATER_MARIADB_BASE", &["scripts/mysql-path.sh", "mariadb"]);
}

#[test]
fn the_demo_counts_both_ends_of_a_mysql() {
    the_demo_counts_both_ends("mysql", "HEADWATER_MYSQL_BASE", &["scripts/mysql-path.sh", "mysql"]);
}
