//! M11: sessions that write statements, always or where they think that a statement will do.

use headwater_connector::{SourceConnector, Start};
use serde_json::json;

use crate::support::{Flavour, Reader, Server, on_both, shared, start};

/// What a session does with another format, which writes no rows.
const WITHOUT_ROWS: [(&str, &str); 8] = [
    // Beside the statement, the binlog has what it needs to be the same again.
    ("STATEMENT", "INSERT INTO items (name) VALUES ('a secret')"),
    ("STATEMENT", "INSERT INTO items VALUES (2, rand())"),
    ("STATEMENT", "SET @v = 'a secret';\nINSERT INTO items VALUES (2, @v)"),
    ("STATEMENT", "LOAD DATA INFILE 'PATH' INTO TABLE items"),
    ("MIXED", "INSERT INTO items VALUES (2, 'a secret')"),
    ("MIXED", "UPDATE items SET name = 'a secret' WHERE id = 1"),
    ("MIXED", "BEGIN;\nINSERT INTO items VALUES (2, uuid());\nUPDATE items SET name = 'a secret' WHERE id = 1;\nCOMMIT"),
    ("MIXED", "BEGIN;\nUPDATE items SET name = 'a secret' WHERE id = 1;\nINSERT INTO items VALUES (2, uuid());\nCOMMIT"),
];

/// What the server writes as rows then, since a statement could do something else the next time, and how many.
const AS_ROWS: [(&str, usize); 3] = [
    ("INSERT INTO items VALUES (2, uuid()), (3, uuid())", 2),
    ("UPDATE items SET name = 'b' LIMIT 1", 1),
    ("LOAD DATA INFILE 'PATH' INTO TABLE items", 2),
];

/// A database with a row that came as a row, and where a reader of it begins.
async fn begun(server: &Server) -> (String, Box<dyn SourceConnector>, Start) {
    let database = server.database();
    server.sql(&format!("CREATE TABLE {database}.items (id int PRIMARY KEY AUTO_INCREMENT, name text)"));
    let connector = server.connector(&database, json!({}));
    let first = start(&*connector).await;
    server.sql(&format!("INSERT INTO {database}.items VALUES (1, 'a')"));
    (database, connector, first)
}

/// Tab-separated rows where the server may read them.
fn file(server: &Server) -> String {
    let path = server.data().join("rows.tsv");
    std::fs::write(&path, "12\tx\n13\ty\n").expect("a file");
    path.display().to_string()
}

async fn the_first_statement_of_a_session_stops_behind_what_came_before(flavour: Flavour) {
    let server = Server::start(flavour, &[]);
    let path = file(&server);
    for (format, sql) in WITHOUT_ROWS {
        let (database, connector, mut at) = begun(&server).await;
        let sql = sql.replace("PATH", &path);
        server.sql(&format!("USE {database};\nSET binlog_format = {format};\n{sql}"));
        server.sql(&format!("INSERT INTO {database}.items VALUES (99, 'z')"));
        // Also after a restart: what is not published is not passed over, and nothing comes twice.
        for lines in [vec!["Insert items 1,a"], vec![], vec![]] {
            let mut reader = Reader::open(&*connector, &at).await;
            let error = reader.stops().await;
            assert_eq!((error.code().id, reader.lines), ("HW3020", lines.iter().map(|&line| line.into()).collect()), "{sql}");
            assert!(!error.to_string().contains("secret"), "no row value in a message: {error}");
            at.position = reader.position;
        }
        assert!(!at.position.as_str().contains('+'), "{}", at.position);
    }
}

async fn what_a_mixed_session_writes_as_rows_flows(flavour: Flavour) {
    let server = shared(flavour);
    let path = file(server);
    for (sql, count) in AS_ROWS {
        let (database, connector, first) = begun(server).await;
        let sql = sql.replace("PATH", &path);
        server.sql(&format!("USE {database};\nSET binlog_format = MIXED;\n{sql}"));
        let table = server.sql(&format!("SELECT id, name FROM {database}.items ORDER BY id"));
        server.sql(&format!("INSERT INTO {database}.items VALUES (99, 'z')"));
        let mut reader = Reader::open(&*connector, &first).await;
        let lines = reader.read(count + 2).await;
        assert_eq!((&*lines[0], &*lines[count + 1]), ("Insert items 1,a", "Insert items 99,z"));
        for line in &lines[1..=count] {
            let row = line.rsplit(' ').next().expect("values").replace(',', "\t");
            assert!(table.lines().any(|one| one == row), "{line} is as it is in the table:\n{table}");
        }
    }
}

on_both! {
    the_first_statement_of_a_session_stops_behind_what_came_before
    what_a_mixed_session_writes_as_rows_flows
}
