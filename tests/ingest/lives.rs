//! What survives from one life of the daemon to the next, and what `tail` shows meanwhile.

use std::thread;

use super::{ORDERS, ops, publish, shop};
use crate::support::{
    daemon::Home,
    postgres::{Database, Postgres},
    record::Record,
};

fn insert(database: &Database, ids: std::ops::RangeInclusive<u32>) {
    for id in ids {
        database.sql(&format!("INSERT INTO public.orders VALUES ({id}, 's')"));
    }
}

fn keys(records: &[Record]) -> Vec<u32> {
    let number = |record: &Record| record.key.trim_start_matches("{\"id\":").trim_end_matches('}').parse().expect("an id");
    records.iter().map(number).collect()
}

#[test]
fn a_restart_goes_on_where_the_last_life_ended() {
    let server = Postgres::shared();
    let database = server.database();
    let home = shop(&database, "");
    publish(&home, &database, &[]);
    for life in 0..4 {
        // Half of the rows come while nobody looks.
        insert(&database, life * 4 + 1..=life * 4 + 2);
        let mut daemon = home.start();
        daemon.wait_state("shop", "streaming");
        insert(&database, life * 4 + 3..=life * 4 + 4);
        daemon.wait_caught_up("shop");
        if life % 2 == 0 {
            daemon.kill9();
        } else {
            assert_eq!(daemon.terminate(), Some(0));
        }
    }
    let records = home.tail("shop.orders");
    assert_eq!(keys(&records), (1..=16).collect::<Vec<_>>());
    assert_eq!(records.iter().map(|record| record.offset).collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
    let sequences: Vec<_> = records.iter().map(|record| record.pos().expect("a pos").1).collect();
    assert!(sequences.is_sorted());
}

#[test]
fn what_is_rolled_back_never_arrives() {
    let server = Postgres::shared();
    let database = server.database();
    let home = shop(&database, "");
    publish(
        &home,
        &database,
        &[
            "BEGIN; INSERT INTO public.orders VALUES (1); ROLLBACK",
            "BEGIN; INSERT INTO public.orders VALUES (2); SAVEPOINT s; INSERT INTO public.orders VALUES (3);
             UPDATE public.orders SET status = 'never' WHERE id = 2; ROLLBACK TO s; INSERT INTO public.orders VALUES (4); COMMIT",
        ],
    );
    let records = home.tail("shop.orders");
    assert_eq!(ops(&records), [("c", r#"{"id":2}"#), ("c", r#"{"id":4}"#)]);
    assert_eq!(records[0].header("hw.tx"), records[1].header("hw.tx"));
}

#[test]
fn rows_from_before_the_first_start_are_read_beside_the_stream() {
    let server = Postgres::shared();
    let database = server.database();
    let home = shop(&database, "");
    insert(&database, 1..=3);
    publish(&home, &database, &["INSERT INTO public.orders VALUES (4)", "DELETE FROM public.orders WHERE id = 1"]);
    let records = home.tail("shop.orders");
    let (read, streamed): (Vec<_>, Vec<_>) = ops(&records).into_iter().partition(|(op, _)| *op == "r");
    assert_eq!(streamed, [("c", r#"{"id":4}"#), ("d", r#"{"id":1}"#)]);
    assert!(read.len() >= 2 && read.iter().all(|(_, key)| *key != r#"{"id":4}"#), "{read:?}");
}

#[test]
fn transactions_arrive_in_the_order_of_their_commits() {
    let server = Postgres::shared();
    let database = server.database();
    let home = shop(&database, "");
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    let (mut one, mut two) = (database.client(), database.client());
    let mut early = one.transaction().expect("a transaction");
    early.batch_execute("INSERT INTO public.orders VALUES (1)").expect("an insert");
    let mut late = two.transaction().expect("a transaction");
    late.batch_execute("INSERT INTO public.orders VALUES (2)").expect("an insert");
    late.commit().expect("a commit");
    early.batch_execute("INSERT INTO public.orders VALUES (3)").expect("an insert");
    early.commit().expect("a commit");
    daemon.wait_caught_up("shop");
    assert_eq!(keys(&home.tail("shop.orders")), [2, 1, 3]);
}

#[test]
fn a_large_transaction_arrives_whole() {
    let server = Postgres::shared();
    let database = server.database();
    let home = shop(&database, "");
    // More than a log transaction holds, so it is published in slices that share one source transaction.
    publish(&home, &database, &["INSERT INTO public.orders SELECT n, 'bulk' FROM generate_series(1, 45000) n"]);
    let records = home.tail("shop.orders");
    assert_eq!(keys(&records), (1..=45_000).collect::<Vec<_>>());
    let first = records[0].header("hw.tx");
    assert!(records.iter().all(|record| record.header("hw.tx") == first));
}

#[test]
fn tail_reads_any_part_of_a_topic() {
    let server = Postgres::shared();
    let database = server.database();
    let home = shop(&database, "    events: { partitions: 3 }\n");
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    insert(&database, 1..=30);
    daemon.wait_caught_up("shop");
    let all = home.tail("shop.orders");
    assert_eq!(all.len(), 30, "beside a running daemon");
    for partition in 0..3 {
        let of: Vec<_> = all.iter().filter(|record| record.partition == partition).cloned().collect();
        assert!(of.len() > 2 && of.iter().map(|record| record.offset).eq(0..of.len() as u64), "partition {partition}");
        let number = partition.to_string();
        assert_eq!(home.tail_with("shop.orders", &["--partition", &number]), of);
        assert_eq!(home.tail_with("shop.orders", &["--partition", &number, "--from", "2"]), of[2..]);
        assert_eq!(home.tail_with("shop.orders", &["--partition", &number, "--from", "1", "--limit", "1"]), of[1..2]);
    }
    assert_eq!(home.tail_with("shop.orders", &["--from", "latest"]), []);
    assert_eq!(home.tail_with("shop.orders", &["--from", "1000000"]), []);
    assert_eq!(daemon.terminate(), Some(0));
    assert_eq!(home.tail("shop.orders"), all, "and without one");
}

#[test]
fn tail_follows_what_comes() {
    let server = Postgres::shared();
    let database = server.database();
    let home = shop(&database, "");
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    insert(&database, 1..=1);
    daemon.wait_caught_up("shop");
    let follow = |from: &'static str, limit: &'static str| {
        let outcome = home.run(&["tail", "shop.orders", "--from", from, "--limit", limit, "--format", "json"]);
        outcome.expect_code(0);
        keys(&outcome.stdout.lines().map(Record::parse).collect::<Vec<_>>())
    };
    thread::scope(|scope| {
        let earliest = scope.spawn(|| follow("earliest", "3"));
        insert(&database, 2..=3);
        assert_eq!(earliest.join().expect("tail"), [1, 2, 3]);
        let latest = scope.spawn(|| follow("latest", "2"));
        // It cannot be seen when it listens, so rows come until it has enough.
        let mut next = 4;
        while !latest.is_finished() {
            insert(&database, next..=next);
            next += 1;
        }
        let seen = latest.join().expect("tail");
        assert!(seen.len() == 2 && seen[0] > 3 && seen[1] == seen[0] + 1, "{seen:?}");
    });
    // The text form shows the key and the row as well.
    let text = home.run(&["tail", "shop.orders", "--until-end", "--limit", "1"]);
    assert!(text.stdout.contains(r#"{"id":1}"#) && text.stdout.contains("\"status\":\"s\""), "{}", text.stdout);
}

#[test]
fn a_server_that_crashes_is_found_again() {
    let server = Postgres::start();
    let database = server.database();
    let home = shop(&database, "");
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    insert(&database, 1..=5);
    server.crash_and_restart();
    insert(&database, 6..=10);
    daemon.wait_caught_up("shop");
    server.shut_down();
    let shop = daemon.wait_state("shop", "retrying");
    assert_eq!(shop["error"]["kind"], "retry", "{shop}");
    server.start_again();
    insert(&database, 11..=12);
    let shop = daemon.wait_caught_up("shop");
    assert!(shop["error"].is_null(), "the error goes when things go well: {shop}");
    assert_eq!(keys(&home.tail("shop.orders")), (1..=12).collect::<Vec<_>>());
}

#[test]
fn two_connectors_work_side_by_side() {
    let server = Postgres::shared();
    let (database, other) = (server.database(), server.database());
    other.sql(ORDERS);
    let home = shop(&database, "");
    let shop_file = std::fs::read_to_string(home.path("connectors/shop.yaml")).expect("the connector's file");
    home.write("connectors/branch.yaml", &shop_file.replace("shop:", "branch:").replace(&database.name, &other.name));
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    daemon.wait_state("branch", "streaming");
    insert(&database, 1..=2);
    insert(&other, 3..=4);
    daemon.wait_caught_up("shop");
    daemon.wait_caught_up("branch");
    assert_eq!((keys(&home.tail("shop.orders")), keys(&home.tail("branch.orders"))), (vec![1, 2], vec![3, 4]));
}

#[test]
fn a_new_table_of_a_pattern_is_read_after_a_restart() {
    let server = Postgres::shared();
    let database = server.database();
    database.sql(ORDERS);
    let home = Home::new();
    home.shop(&database.url(), "\"public.*\"", "");
    publish(&home, &database, &["INSERT INTO public.orders VALUES (1)"]);
    database.sql("CREATE TABLE public.items (id int PRIMARY KEY)");
    publish(&home, &database, &["INSERT INTO public.items VALUES (7); INSERT INTO public.orders VALUES (2)"]);
    assert_eq!(keys(&home.tail("shop.items")), [7]);
    assert_eq!(keys(&home.tail("shop.orders")), [1, 2]);
}
