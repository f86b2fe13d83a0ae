//! Transactions that were rolled back and stand in the binlog all the same.

use std::{sync::OnceLock, time::Duration};

use headwater_connector::{Batch, Error, Kind, Limits, SourceConnector, Start};
use serde_json::json;

use crate::support::{Flavour, Reader, Server, on_both, shared, start};

/// A server whose sessions may mix tables with and without transactions, with a connector over one of each in a database.
async fn mixed(flavour: Flavour) -> (&'static Server, String, Box<dyn SourceConnector>, Start) {
    static UNNAMED: OnceLock<Server> = OnceLock::new();
    let server = match flavour {
        Flavour::Mariadb => shared(flavour),
        // With GTIDs it refuses the mixture.
        Flavour::Mysql => UNNAMED.get_or_init(|| Server::start(flavour, &["--gtid-mode=OFF", "--enforce-gtid-consistency=OFF"])),
    };
    let database = server.database();
    server.sql(&format!(
        "USE {database};\nCREATE TABLE items (id int PRIMARY KEY, name text);\nCREATE TABLE kept (id int PRIMARY KEY) ENGINE = MyISAM;\n\
         CREATE TABLE other (id int PRIMARY KEY) ENGINE = MyISAM"
    ));
    let tables = json!({ "tables": [format!("{database}.items"), format!("{database}.kept")] });
    let connector = server.connector(&database, tables);
    let first = start(&*connector).await;
    (server, database, connector, first)
}

/// What ends with ROLLBACK in the binlog: on MariaDB whatever makes a temporary table, on MySQL what has a statement beside its rows.
fn undone(flavour: Flavour, database: &str, rows: &str) -> String {
    match flavour {
        Flavour::Mariadb => format!("USE {database};\nBEGIN;\n{rows};\nCREATE TEMPORARY TABLE passing (id int);\nROLLBACK"),
        // A statement that needs rows comes first, and one that does not behind it.
        Flavour::Mysql => format!(
            "USE {database};\nSET binlog_format = MIXED, binlog_direct_non_transactional_updates = OFF;\nBEGIN;\n{rows};\n\
             INSERT INTO other SELECT count(*) FROM other;\nROLLBACK"
        ),
    }
}

/// Rows of a table without transactions stay, those of others never were.
async fn what_was_rolled_back_is_no_event(flavour: Flavour) {
    let (server, database, connector, first) = mixed(flavour).await;
    let mut reader = Reader::open(&*connector, &first).await;
    let from = server.binlog();
    server.sql(&format!("USE {database};\nBEGIN;\nINSERT INTO items VALUES (1, 'a');\nINSERT INTO kept VALUES (1);\nROLLBACK"));
    server.sql(&undone(flavour, &database, "INSERT INTO items VALUES (2, UUID())"));
    let point = format!("s {database}");
    server.sql(&format!(
        "USE {database};\nBEGIN;\nINSERT INTO items VALUES (3, 'c');\nSAVEPOINT `{point}`;\nINSERT INTO items VALUES (4, 'd');\n\
         INSERT INTO kept VALUES (4);\nROLLBACK TO `{point}`;\nINSERT INTO items VALUES (5, 'e');\nCOMMIT"
    ));
    if flavour == Flavour::Mariadb {
        // Other tests may begin new files.
        let files = server.sql("SHOW BINARY LOGS");
        let files = files.lines().filter_map(|line| line.split('\t').next()).filter(|file| *file >= from.as_str());
        let events: String = files.map(|file| server.sql(&format!("SHOW BINLOG EVENTS IN '{file}'"))).collect();
        assert!(
            events.contains("UUID()") && events.contains(&format!("ROLLBACK TO `{point}`")),
            "it writes what it undoes: {events}"
        );
    }
    server.sql(&format!("INSERT INTO {database}.items VALUES (6, 'f')"));
    let lines = reader.read(5).await;
    assert_eq!(lines, ["Insert kept 1", "Insert kept 4", "Insert items 3,c", "Insert items 5,e", "Insert items 6,f"]);
}

/// Reads with batches of so many changes until it stops, or is behind so many rows of a transaction.
async fn cut(reader: &mut Reader, max_changes: usize, behind: Option<u64>) -> Result<Vec<u64>, Error> {
    let mut ordinals = Vec::new();
    loop {
        let mut batch = Batch::default();
        let limits = Limits { max_wait: Duration::from_millis(200), max_changes, ..Limits::default() };
        reader.source.next_batch(&mut batch, &limits).await?;
        ordinals.extend(batch.changes().iter().map(|change| change.ordinal));
        reader.position = batch.position().cloned().unwrap_or_else(|| reader.position.clone());
        if behind.is_some_and(|rows| reader.position.as_str().contains(&format!("+{rows};"))) {
            return Ok(ordinals);
        }
    }
}

/// What is published cannot be taken back: right behind a batch's end, and after a restart there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_rolled_back_after_it_was_published_stops() {
    let (server, database, connector, mut at) = mixed(Flavour::Mariadb).await;
    // Two events of two rows each, so that a batch of two ends at the end of an event.
    server.sql(&undone(
        Flavour::Mariadb,
        &database,
        "INSERT INTO items VALUES (1, 'a'), (2, 'b');\nINSERT INTO items VALUES (3, 'c'), (4, 'd')",
    ));
    for max_changes in [4, 3, 1] {
        let mut reader = Reader::open(&*connector, &at).await;
        let error = cut(&mut reader, max_changes, None).await.expect_err("it is published");
        assert_eq!((error.code().id, error.kind()), ("HW3038", Kind::Environment), "{max_changes}: {error}");
    }
    let mut reader = Reader::open(&*connector, &at).await;
    assert_eq!(cut(&mut reader, 2, Some(2)).await.unwrap_or_else(|error| panic!("{error}")), [0, 1]);
    at.position = reader.position.clone();
    drop(reader);
    let mut again = Reader::open(&*connector, &at).await;
    assert_eq!(cut(&mut again, 1000, None).await.expect_err("it was published before the restart").code().id, "HW3038");
}

/// A restart passes rows that are done, and those that a savepoint takes back may be among them: then they are published for good.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_behind_a_savepoint_that_were_published_before_a_restart_stop() {
    let (server, database, connector, first) = mixed(Flavour::Mariadb).await;
    server.sql(&format!(
        "USE {database};\nBEGIN;\nINSERT INTO items VALUES (1, 'a'), (2, 'b');\nSAVEPOINT s;\nINSERT INTO items VALUES (3, 'c'), (4, 'd');\n\
         INSERT INTO kept VALUES (4);\nROLLBACK TO s;\nINSERT INTO items VALUES (5, 'e'), (6, 'f'), (7, 'g'), (8, 'h');\nCOMMIT"
    ));
    // The first batch has the row of the other table, which is a transaction of its own.
    for (max_changes, behind, rest) in [(3, 3, None), (2, 2, Some(4)), (5, 7, Some(1))] {
        let mut reader = Reader::open(&*connector, &first).await;
        cut(&mut reader, max_changes, Some(behind)).await.unwrap_or_else(|error| panic!("{behind}: {error}"));
        let at = Start { identity: first.identity.clone(), position: reader.position.clone() };
        drop(reader);
        let mut again = Reader::open(&*connector, &at).await;
        match rest {
            None => assert_eq!(again.stops().await.code().id, "HW3038"),
            Some(count) => {
                let wanted = ["Insert items 5,e", "Insert items 6,f", "Insert items 7,g", "Insert items 8,h"];
                assert_eq!(again.read(count).await, &wanted[4 - count..]);
            }
        }
    }
}

on_both! {
    what_was_rolled_back_is_no_event
}
