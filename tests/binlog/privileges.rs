//! What the operating guide has an operator grant is enough, and not more is needed.

use super::servers::{Flavour, Server};
use crate::support::{daemon::Home, root};

/// The statements of the guide's block for a flavour.
fn guide(flavour: Flavour) -> Vec<String> {
    let text = std::fs::read_to_string(root().join("docs/mysql.md")).expect("the guide");
    let name = if flavour == Flavour::Mariadb { "MariaDB" } else { "MySQL" };
    let (_, block) = text.split_once(&format!("```sql\n-- {name}\n")).expect("a block of statements");
    let (block, _) = block.split_once("```").expect("its end");
    block.lines().map(|line| line.trim_end_matches(';').replace('…', "secret")).collect()
}

fn the_grants_of_the_guide_are_enough(flavour: Flavour) {
    let server = Server::start(flavour, &[]);
    server.sql("CREATE DATABASE shop;\nCREATE TABLE shop.items (id int PRIMARY KEY, price float);\nINSERT INTO shop.items VALUES (1, 0.1)");
    let statements = guide(flavour);
    assert_eq!(statements.len(), 3, "{statements:?}");
    server.sql(&statements.join(";\n"));
    let home = Home::new();
    let write = |user: &str| {
        let url = server.url().replace("hw:secret@", &format!("{user}:secret@"));
        home.write(
            "connectors/shop.yaml",
            &format!("connectors:\n  shop:\n    source: {{ kind: mysql, url: \"{url}\", tables: [ shop.items ] }}\n"),
        );
    };
    write("headwater");
    let checked = home.run(&["check"]);
    let said = checked.said();
    checked.expect_code(0);
    assert!(said.contains("the user may read the binlog") && said.contains("0 errors"), "{said}");
    // What it cannot see it names, with the statement that would let it.
    let is_blind = said.contains("HW3050") && said.contains("GRANT REPLICATION MASTER ADMIN ON *.* TO 'headwater'@'%';");
    assert_eq!(is_blind, flavour == Flavour::Mariadb, "{said}");

    home.run(&["plan"]).expect_code(0);
    let mut daemon = home.start();
    daemon.wait_caught_up("shop");
    server.sql("INSERT INTO shop.items VALUES (2, 0.2)");
    daemon.wait_for("shop", "the change", |shop| home.tail("shop.items").len() == 2 && shop["lag"]["bytes"] == 0);
    let shop = daemon.connector("shop").expect("a connector");
    assert!(shop["source"]["safe_seconds"].is_u64() || flavour == Flavour::Mariadb, "MySQL keeps for 30 days: {shop}");
    assert_eq!(shop["backfills"][0]["state"], "done", "{shop}");
    home.run(&["reset", "shop"]).expect_code(2);
    assert_eq!(daemon.terminate(), Some(0));
    assert_eq!(home.tail("shop.items").iter().map(|record| record.op()).collect::<Vec<_>>(), ["r", "c"]);

    // The same by a role that is on.
    let repl = statements[1].split(" ON ").next().expect("privileges").trim_start_matches("GRANT ");
    let default = if flavour == Flavour::Mariadb {
        "SET DEFAULT ROLE listener FOR roled@'%'"
    } else {
        "SET DEFAULT ROLE listener TO roled@'%'"
    };
    server.sql(&format!(
        "CREATE ROLE listener;\nGRANT {repl} ON *.* TO listener;\nGRANT SELECT ON shop.* TO listener;\n\
         CREATE USER roled@'%' IDENTIFIED BY 'secret';\nGRANT listener TO roled@'%';\n{default}"
    ));
    write("roled");
    let checked = home.run(&["check"]);
    checked.expect_code(0);
    // A privilege whose name only begins like the one that is needed is not it.
    let (similar, needed) = match flavour {
        Flavour::Mariadb => ("REPLICATION SLAVE ADMIN, BINLOG MONITOR", "GRANT REPLICATION SLAVE ON *.* TO 'close'@'%';"),
        Flavour::Mysql => ("REPLICATION_SLAVE_ADMIN, REPLICATION CLIENT", "GRANT REPLICATION SLAVE ON *.* TO 'close'@'%';"),
    };
    server.sql(&format!(
        "CREATE USER close@'%' IDENTIFIED BY 'secret';\nGRANT {similar} ON *.* TO close@'%';\nGRANT SELECT ON shop.* TO close@'%'"
    ));
    write("close");
    let checked = home.run(&["check"]);
    assert!(checked.said().contains("HW3002") && checked.said().contains(needed), "{}", checked.said());
    checked.expect_code(3);
}

#[test]
fn the_grants_of_the_guide_are_enough_for_mariadb() {
    the_grants_of_the_guide_are_enough(Flavour::Mariadb);
}

#[test]
fn the_grants_of_the_guide_are_enough_for_mysql() {
    the_grants_of_the_guide_are_enough(Flavour::Mysql);
}
