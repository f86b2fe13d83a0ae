//! MySQL without GTIDs: its files are read, and nothing else is promised.

use super::{
    place,
    servers::{Flavour, Server},
};
use crate::support::daemon::Home;

/// The stream needs no names of transactions, a chunk of a table does.
#[test]
fn a_backfill_without_gtids_is_refused_and_the_stream_goes_on() {
    let server = Server::start(Flavour::Mysql, &["--gtid-mode=OFF", "--enforce-gtid-consistency=OFF"]);
    let database = server.database();
    server.sql(&format!(
        "USE {database};\nCREATE TABLE items (id int PRIMARY KEY, name text);\nINSERT INTO items VALUES (1, 'before')"
    ));
    let home = Home::new();
    let write = |more: &str| {
        let place = place(&server, &database);
        let text =
            format!("connectors:\n  shop:\n    source:\n      kind: mysql\n{place}      tables: [ {database}.items ]\n{more}");
        home.write("connectors/shop.yaml", &text);
    };
    write("");
    let checked = home.run(&["check"]);
    assert_ne!(checked.code, Some(0), "{}", checked.said());
    let said = checked.said();
    assert!(said.contains("HW3036") && said.contains("backfill: never") && said.contains("gtid_mode = ON"), "{said}");

    let table = format!("{database}.items");
    let mut daemon = home.start();
    daemon.wait_for("shop", "the refusal", |shop| shop["backfills"][0]["error"]["code"] == "HW3036");
    let status = home.run(&["status"]).stdout;
    assert!(status.contains(&format!("shop {table} HW3036")) && status.contains("backfill: never"), "{status}");
    assert!(daemon.stderr().contains("HW3036"), "{}", daemon.stderr());
    // The stream is not held up, also across restarts.
    server.sql(&format!("INSERT INTO {table} VALUES (2, 'a')"));
    daemon.wait_for("shop", "the first change", |_| home.tail("shop.items").len() == 1);
    daemon.kill9();
    let mut daemon = home.start();
    server.sql(&format!("UPDATE {table} SET name = 'b'"));
    daemon.wait_for("shop", "all changes", |shop| shop["state"] != "failed" && home.tail("shop.items").len() == 3);
    assert_eq!(home.tail("shop.items").iter().map(|record| record.op()).collect::<Vec<_>>(), ["c", "u", "u"]);
    home.run(&["backfill", "shop", &table, "--cancel"]).expect_code(0);
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    // Whoever wants changes only is not told of it.
    write("      backfill: never\n");
    let checked = home.run(&["check"]).said();
    assert!(checked.contains("HW3009") && !checked.contains("HW3036"), "{checked}");
}
