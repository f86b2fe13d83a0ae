//! Tools that change a large table by filling a copy and swapping names, while an application writes.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
};

use serde_json::json;

use crate::support::{Flavour, Reader, Server, eventually, on_both, shared, start};

/// Rows that the table has when the tool begins.
const ROWS: u32 = 300;

/// The tools' statements, as they say they do it, with a column that the new table has and the old one has not. The column of the last one is
/// of a type that only MariaDB's catalogue knows.
fn trigger_tool(database: &str) -> String {
    let copy = "INSERT IGNORE INTO _items_new (id, n, doc) SELECT id, n, doc FROM items";
    let parts: Vec<String> = (0..4).map(|part| format!("{copy} WHERE id % 4 = {part} LOCK IN SHARE MODE")).collect();
    format!(
        "USE {database};\nCREATE TABLE _items_new LIKE items;\nALTER TABLE _items_new ADD COLUMN more int DEFAULT 7 FIRST;\n\
         CREATE TRIGGER pt_del AFTER DELETE ON items FOR EACH ROW DELETE IGNORE FROM _items_new WHERE _items_new.id <=> OLD.id;\n\
         CREATE TRIGGER pt_upd AFTER UPDATE ON items FOR EACH ROW REPLACE INTO _items_new (id, n, doc) VALUES (NEW.id, NEW.n, NEW.doc);\n\
         CREATE TRIGGER pt_ins AFTER INSERT ON items FOR EACH ROW REPLACE INTO _items_new (id, n, doc) VALUES (NEW.id, NEW.n, NEW.doc);\n\
         {};\nANALYZE TABLE _items_new;\nRENAME TABLE items TO _items_old, _items_new TO items;\n\
         DROP TABLE IF EXISTS _items_old;\nDROP TRIGGER IF EXISTS pt_del;\nDROP TRIGGER IF EXISTS pt_upd;\nDROP TRIGGER IF EXISTS pt_ins",
        parts.join(";\n")
    )
}

/// The other tool reads the binlog itself; the application waits for it at the end only.
fn binlog_tool(database: &str) -> [String; 2] {
    let begin = format!(
        "USE {database};\nCREATE TABLE _items_ghc (id bigint PRIMARY KEY, hint varchar(64));\nINSERT INTO _items_ghc VALUES (1, 'state');\n\
         CREATE TABLE _items_gho LIKE items;\nALTER TABLE _items_gho ADD COLUMN more int DEFAULT 7 FIRST;\n\
         INSERT IGNORE INTO _items_gho (id, n, doc) SELECT id, n, doc FROM items LOCK IN SHARE MODE"
    );
    let end = format!(
        "USE {database};\nCREATE TABLE _items_del (id int PRIMARY KEY) COMMENT 'sentry';\n\
         REPLACE INTO _items_gho (id, n, doc) SELECT id, n, doc FROM items;\n\
         DELETE FROM _items_gho WHERE id NOT IN (SELECT id FROM items);\nDROP TABLE _items_del;\n\
         RENAME TABLE items TO _items_del, _items_gho TO items;\nDROP TABLE _items_ghc, _items_del"
    );
    [begin, end]
}

/// What an application does with the table meanwhile: one of its changes, by a number.
fn change(database: &str, number: u32) -> String {
    let id = number * 37 % (2 * ROWS);
    match number % 3 {
        0 => format!("REPLACE INTO {database}.items (id, n, doc) VALUES ({id}, {number}, '{{}}')"),
        1 => format!("UPDATE {database}.items SET n = {number} WHERE id = {id}"),
        _ => format!("DELETE FROM {database}.items WHERE id = {id}"),
    }
}

/// Columns of the table's rows by key, as the changes so far say.
fn fold(state: &mut BTreeMap<String, String>, lines: &[String]) {
    for line in lines {
        let Some((op, row)) = line.split_once(" items ") else { continue };
        // `more` stands in front where there is one: three columns before the swap, four behind it.
        let cells: Vec<&str> = row.split(',').collect();
        let [id, n, _] = cells[cells.len() - 3..] else { panic!("{line}") };
        match op {
            "Delete" => drop(state.remove(id)),
            _ => drop(state.insert(id.to_owned(), n.to_owned())),
        }
    }
}

fn table(server: &Server, database: &str) -> BTreeMap<String, String> {
    let rows = server.sql(&format!("SELECT id, n FROM {database}.items"));
    rows.lines().filter_map(|line| line.split_once('\t')).map(|(id, n)| (id.to_owned(), n.to_owned())).collect()
}

/// M21: the table goes by its name, whatever stands behind it; the copies are tables like others where a pattern selects them.
async fn a_table_that_a_tool_swaps_keeps_every_row(flavour: Flavour) {
    let server = shared(flavour);
    for (is_triggered, is_pattern) in [(true, false), (true, true), (false, false), (false, true)] {
        let database = server.database();
        server.sql(&format!("CREATE TABLE {database}.items (id int PRIMARY KEY, n int, doc json)"));
        let pattern = if is_pattern { "*" } else { "items" };
        let left_out = format!("!{database}._items_*");
        let connector = server.connector(&database, json!({ "tables": [format!("{database}.{pattern}"), left_out] }));
        let at = start(&*connector).await;
        let mut reader = Reader::open(&*connector, &at).await;
        let insert = |id| format!("({id}, {id}, '{{}}')");
        server.sql(&format!("INSERT INTO {database}.items VALUES {}", (0..ROWS).map(insert).collect::<Vec<_>>().join(",")));
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut number = 0;
                while !is_over.load(Ordering::Relaxed) {
                    server.sql(&(number..number + 20).map(|number| change(&database, number)).collect::<Vec<_>>().join(";\n"));
                    number += 20;
                }
                number
            });
            let [first, last] = binlog_tool(&database);
            let mut is_swapped = false;
            if is_triggered {
                server.sql(&trigger_tool(&database));
                is_swapped = true;
            } else {
                server.sql(&first);
            }
            // The application goes on for a while with what it has.
            let count = || server.sql(&format!("SELECT max(n) FROM {database}.items")).parse::<u32>().unwrap_or(0);
            let seen = count();
            eventually("more changes", || count() > seen + 60);
            is_over.store(true, Ordering::Relaxed);
            let number = writer.join().expect("the application");
            if !is_swapped {
                server.sql(&last);
            }
            server.sql(&(number..number + 20).map(|number| change(&database, number)).collect::<Vec<_>>().join(";\n"));
        });
        let wanted = table(server, &database);
        let (mut state, mut taken) = (BTreeMap::new(), 0);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while state != wanted {
            assert!(
                std::time::Instant::now() < deadline,
                "{is_triggered} {is_pattern}: {} of {} rows",
                state.len(),
                wanted.len()
            );
            reader.batch().await.unwrap_or_else(|error| panic!("{is_triggered} {is_pattern}: {error}"));
            fold(&mut state, &reader.lines[taken..]);
            taken = reader.lines.len();
        }
    }
}

on_both! {
    a_table_that_a_tool_swaps_keeps_every_row
}
