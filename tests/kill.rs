use std::time::Duration;
use crate::support::{oracle::Oracle, postgres::Postgres, workload::{self, Workload}};

#[test]
fn oracle_tells() {
    let server = Postgres::shared();
    let database = server.database();
    workload::prepare(&database);
    let oracle = Oracle::start(&database);
    let workload = Workload::start(&database, 7, 3, Duration::from_millis(10));
    std::thread::sleep(Duration::from_secs(5));
    let committed = workload.committed_events();
    let p = workload.stop();
    let e = oracle.expected("shop");
    println!("{committed} {} {:?} {:?} {:?} ; {}", p.committed_events.load(std::sync::atomic::Ordering::SeqCst), p.commits, p.rollbacks, p.deadlocks, e.len());
    println!("{} absent", e.iter().filter(|e| !e.absent.is_empty()).count());
    for w in e.iter().take(30) { println!("{} {} {} {} {:?} {:?}", w.tx, w.topic, w.op, w.key, w.ver, w.absent); }
    println!("{}", oracle.tables("shop").len());
}
