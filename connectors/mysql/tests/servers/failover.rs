//! Another server in the place of the one that was read: which one may go on, and what the others are told.

use headwater_connector::{SourceConnector, Start};
use serde_json::json;

use crate::support::{Flavour, Reader, Server, on_both, start};

/// Runs a statement as if it had come from another server by replication: it keeps the name that it has there.
fn replicate(to: &Server, from: &Server, number: u64, statement: &str) {
    let (begin, end) = match to.flavour {
        Flavour::Mysql => {
            let uuid = from.sql("SELECT @@server_uuid");
            (format!("SET gtid_next = '{uuid}:{number}'"), "SET gtid_next = 'AUTOMATIC'".to_owned())
        }
        Flavour::Mariadb => {
            let id = from.sql("SELECT @@server_id");
            (format!("SET server_id = {id}, gtid_seq_no = {number}"), "DO 1".to_owned())
        }
    };
    to.sql(&format!("{begin};\n{statement};\n{end}"));
}

/// What is said to whoever wants to go on here. That a MariaDB may take another's place an operator has to say.
async fn refused(flavour: Flavour, connector: &dyn SourceConnector, at: &Start) -> &'static str {
    let opened = connector.open(&at.identity, &at.position).await.err();
    let error = match flavour {
        Flavour::Mysql => opened,
        Flavour::Mariadb => {
            assert_eq!(opened.map(|error| error.code().id), Some("HW3012"), "without an operator's word");
            connector.survey(Some(&at.identity), Some(&at.position)).await.expect("an answer").rebind.err()
        }
    };
    error.map_or("may go on", |error| error.code().id)
}

/// M16: what is published was lost with the old server, and the new one went on without it: then nothing may go on by itself.
async fn a_server_that_lacks_something_is_told_from_one_that_went_another_way(flavour: Flavour) {
    let [old, new] = [11, 12].map(|id: u32| Server::start(flavour, &[&format!("--server-id={id}")]));
    old.reset_binlog();
    new.reset_binlog();
    let table = "CREATE TABLE shop.items (id int PRIMARY KEY, name text)";
    let statements =
        ["CREATE DATABASE shop", table, "INSERT INTO shop.items VALUES (1, 'a')", "INSERT INTO shop.items VALUES (2, 'b')"];
    statements[..2].iter().for_each(|sql| drop(old.sql(sql)));
    let connector = old.connector("shop", json!({}));
    let at = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &at).await;
    statements[2..].iter().for_each(|sql| drop(old.sql(sql)));
    reader.read(2).await;
    let identity = reader.source.identity().unwrap_or(&at.identity).clone();
    let mut at = Start { identity, position: reader.position.clone() };
    drop(reader);
    let promoted = new.connector("shop", json!({}));
    (1..4).for_each(|number| replicate(&new, &old, number, statements[number as usize - 1]));
    assert_eq!(refused(flavour, &*promoted, &at).await, "HW3014", "it is behind");
    // In a domain of its own on MariaDB, where two servers share one only if they follow each other.
    let own = if flavour == Flavour::Mariadb { "SET gtid_domain_id = 7;\n" } else { "" };
    new.sql(&format!("{own}INSERT INTO shop.items VALUES (3, 'c')"));
    assert_eq!(refused(flavour, &*promoted, &at).await, "HW3045", "it went on without the last of the old one");
    replicate(&new, &old, 4, statements[3]);
    if flavour == Flavour::Mariadb {
        assert_eq!(refused(flavour, &*promoted, &at).await, "may go on");
        let survey = promoted.survey(Some(&at.identity), Some(&at.position)).await.expect("an answer");
        at.identity = survey.rebind.expect("it has everything");
    }
    let mut reader = Reader::open(&*promoted, &at).await;
    assert_eq!(reader.read(1).await, ["Insert items 3,c"], "what is published does not come again");
}

on_both! {
    a_server_that_lacks_something_is_told_from_one_that_went_another_way
}
