//! How the daemon ends when it is told to.

use std::net::{TcpListener, TcpStream};

use crate::support::{PATIENCE, daemon::Home, postgres::Postgres, wait_until};

#[test]
fn sigterm_and_sigint_end_in_order() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    for (life, signal) in ["TERM", "INT"].into_iter().enumerate() {
        let mut daemon = home.start();
        daemon.wait_state("shop", "streaming");
        database.sql(&format!("INSERT INTO public.orders VALUES ({life})"));
        daemon.wait_caught_up("shop");
        daemon.signal(signal);
        assert_eq!(daemon.exit_code(), Some(0), "SIG{signal}");
        // What was committed is confirmed at the source, so that it can forget it.
        let behind = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database() AND active";
        wait_until("the slot to be free", PATIENCE, || match database.value(behind).as_str() {
            "0" => Ok(()),
            other => Err(other.to_owned()),
        });
        assert_eq!(home.tail("shop.orders").len(), life + 1);
    }
    assert!(TcpStream::connect(home.address()).is_err(), "the port is free again");
}

#[test]
fn a_stop_in_the_middle_of_work_loses_and_repeats_nothing() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    for bulk in 0..3 {
        let ids = format!("generate_series({} + 1, {} + 30000)", bulk * 30_000, bulk * 30_000);
        database.sql(&format!("INSERT INTO public.orders SELECT n, 'bulk' FROM {ids} n"));
        assert_eq!(daemon.terminate(), Some(0));
        daemon = home.start();
    }
    daemon.wait_caught_up("shop");
    let keys: Vec<String> = home.tail("shop.orders").into_iter().map(|record| record.key).collect();
    let expected: Vec<String> = (1..=90_000).map(|id| format!("{{\"id\":{id}}}")).collect();
    assert!(keys == expected, "{} events of 90000, or in another order", keys.len());
}

/// A server that accepts and never answers: the connector hangs in its login, which is the worst time for a signal.
#[test]
fn a_connector_that_hangs_does_not_keep_the_daemon() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    for signals in [&["TERM"][..], &["TERM", "TERM"], &["INT", "TERM"]] {
        let home = Home::new();
        home.shop(&format!("postgres://reader@127.0.0.1:{port}/shop?connect_timeout=3600"), "public.orders", "");
        let daemon = home.start();
        let _connection = listener.accept().expect("the daemon connects");
        signals.iter().for_each(|signal| daemon.signal(signal));
        assert_eq!(daemon.exit_code(), Some(0), "{signals:?}");
    }
}

#[test]
fn sighup_with_the_same_files_changes_nothing() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    daemon.signal("HUP");
    wait_until("an answer to SIGHUP", PATIENCE, || match daemon.stderr() {
        said if said.contains("SIGHUP") => Ok(()),
        said => Err(said),
    });
    database.sql("INSERT INTO public.orders VALUES (1)");
    daemon.wait_caught_up("shop");
    assert_eq!(home.tail("shop.orders").len(), 1);
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn a_stop_while_the_source_is_away_is_in_order() {
    let home = Home::new();
    home.shop("postgres://reader@127.0.0.1:1/shop", "public.orders", "");
    let mut daemon = home.start();
    daemon.wait_state("shop", "retrying");
    assert_eq!(daemon.terminate(), Some(0));
}
