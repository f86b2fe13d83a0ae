//! Rows that leave a table or come into it with the partition that holds them: the binlog has the statement only.

use headwater_connector::Kind;
use serde_json::json;

use crate::support::{Flavour, Reader, Server, on_both, shared, start};

const PARTS: &str = "PARTITION BY RANGE (id) (PARTITION p0 VALUES LESS THAN (10), PARTITION p1 VALUES LESS THAN (20), \
                     PARTITION p2 VALUES LESS THAN (30))";

/// What a source over `parts` and `swapped` brings for the statements, and for a row behind them; or its stop with place and hint.
async fn outcome(server: &Server, policy: &str, statements: &str) -> Result<Vec<String>, (&'static str, String)> {
    let database = server.database();
    server.sql(&format!(
        "USE {database};\nCREATE TABLE parts (id int NOT NULL, d int NOT NULL, PRIMARY KEY (id, d)) {PARTS};\n\
         CREATE TABLE other (id int NOT NULL, d int NOT NULL, PRIMARY KEY (id, d)) {PARTS};\n\
         CREATE TABLE swapped (id int NOT NULL, d int NOT NULL, PRIMARY KEY (id, d));\n\
         CREATE TABLE plain (id int NOT NULL, d int NOT NULL, PRIMARY KEY (id, d));\n\
         INSERT INTO parts VALUES (1, 1), (11, 1);\nINSERT INTO other VALUES (2, 2), (12, 2);\nINSERT INTO plain VALUES (3, 3)"
    ));
    let tables = json!([format!("{database}.parts"), format!("{database}.swapped"), format!("{database}.became")]);
    // A pattern that matches no table yet is refused; this one comes to be.
    server.sql(&format!("CREATE TABLE {database}.became (id int PRIMARY KEY)"));
    let connector = server.connector(&database, json!({ "tables": tables, "on_truncate": "event", "on_partition_drop": policy }));
    let first = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &first).await;
    server.sql(&format!("USE {database};\nDROP TABLE became;\n{statements};\nINSERT INTO swapped VALUES (99, 99)"));
    loop {
        match reader.batch().await {
            Err(error) if error.kind() == Kind::Retry => panic!("{error}"),
            Err(error) => return Err((error.code().id, error.to_string())),
            Ok(_) if reader.lines.iter().any(|line| line == "Insert swapped 99,99") => return Ok(reader.lines),
            Ok(_) => {}
        }
    }
}

/// The rows of one partition are not those of the table, so no truncate is published; those who keep what is gone may say so.
async fn a_dropped_partition_stops_or_keeps_its_rows(flavour: Flavour) {
    let server = shared(flavour);
    for statement in ["ALTER TABLE parts DROP PARTITION p0, p1", "ALTER TABLE parts TRUNCATE PARTITION p0, p1"] {
        let (code, said) = outcome(server, "stop", statement).await.expect_err("rows are gone");
        assert_eq!(code, "HW3017", "{said}");
        for part in ["parts", "p0, p1", "on_partition_drop: ignore"] {
            assert!(said.contains(part), "{part} is not in: {said}");
        }
        let kept = outcome(server, "ignore", statement).await;
        assert_eq!(kept, Ok(vec!["Insert swapped 99,99".to_owned()]), "{statement}");
    }
    // Of a table that is not selected it is nobody's business, and all partitions are the table.
    let passed =
        outcome(server, "stop", "ALTER TABLE other DROP PARTITION p0;\nALTER TABLE other EXCHANGE PARTITION p1 WITH TABLE plain")
            .await;
    assert_eq!(passed, Ok(vec!["Insert swapped 99,99".to_owned()]));
    let all = outcome(server, "stop", "ALTER TABLE parts TRUNCATE PARTITION ALL").await;
    assert_eq!(all, Ok(vec!["Truncate parts ".to_owned(), "Insert swapped 99,99".to_owned()]));
}

/// What takes the place of a partition brings rows that are no events, whichever of the two tables is selected.
async fn an_exchanged_partition_stops(flavour: Flavour) {
    let server = shared(flavour);
    let mut cases = vec![
        ("parts", "ALTER TABLE parts EXCHANGE PARTITION p0 WITH TABLE plain"),
        ("swapped", "ALTER TABLE other EXCHANGE PARTITION p0 WITH TABLE swapped"),
    ];
    if flavour == Flavour::Mariadb {
        cases.extend([
            ("parts", "UPDATE plain SET id = 33;\nALTER TABLE parts CONVERT TABLE plain TO PARTITION p3 VALUES LESS THAN (40)"),
            ("became", "ALTER TABLE other CONVERT PARTITION p0 TO TABLE became"),
        ]);
    }
    for (table, statement) in cases {
        let (code, said) = outcome(server, "ignore", statement).await.expect_err("rows came that are no events");
        assert_eq!(code, "HW3020", "{statement}: {said}");
        assert!(said.contains(table), "{statement}: {said}");
    }
    if flavour == Flavour::Mariadb {
        let statement = "ALTER TABLE parts CONVERT PARTITION p0 TO TABLE archived";
        assert_eq!(outcome(server, "stop", statement).await.map_err(|(code, _)| code), Err("HW3017"));
        assert_eq!(outcome(server, "ignore", statement).await, Ok(vec!["Insert swapped 99,99".to_owned()]));
    }
}

/// What has the same words and moves no row out of its table.
async fn partitions_that_keep_their_rows_pass(flavour: Flavour) {
    let server = shared(flavour);
    let found = outcome(
        server,
        "stop",
        "ALTER TABLE parts REMOVE PARTITIONING;\n\
         ALTER TABLE parts DROP PRIMARY KEY, ADD PRIMARY KEY (d, id) PARTITION BY RANGE (id) (PARTITION p0 VALUES LESS THAN (90));\n\
         ALTER TABLE parts REORGANIZE PARTITION p0 INTO (PARTITION a VALUES LESS THAN (10), PARTITION b VALUES LESS THAN (90));\n\
         ALTER TABLE parts ADD PARTITION (PARTITION c VALUES LESS THAN (99));\nALTER TABLE parts REBUILD PARTITION a;\n\
         ALTER TABLE parts PARTITION BY HASH (id) PARTITIONS 4;\nALTER TABLE parts COALESCE PARTITION 2",
    )
    .await;
    assert_eq!(found, Ok(vec!["Insert swapped 99,99".to_owned()]));
}

on_both! {
    a_dropped_partition_stops_or_keeps_its_rows
    an_exchanged_partition_stops
    partitions_that_keep_their_rows_pass
}
