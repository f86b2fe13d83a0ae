//! The suite of every source, on both flavours.

use std::cmp::Ordering;

use async_trait::async_trait;
use headwater_connector::{
    Position, SourceConnector,
    testkit::{self, Bench, End, Rig, Statement},
};
use serde_json::json;

use crate::support::{Flavour, shared};

struct Servers(Flavour);

struct Database(Flavour, String);

#[async_trait]
impl Rig for Servers {
    async fn bench(&self) -> Box<dyn Bench> {
        let name = shared(self.0).database();
        shared(self.0).sql(&format!(
            "CREATE TABLE {name}.items (id bigint PRIMARY KEY, name text, big longtext);
             CREATE TABLE {name}.other (id bigint AUTO_INCREMENT PRIMARY KEY)"
        ));
        Box::new(Database(self.0, name))
    }
}

#[async_trait]
impl Bench for Database {
    fn connector(&self) -> Box<dyn SourceConnector> {
        shared(self.0).connector(&self.1, json!({ "tables": format!("{}.items", self.1) }))
    }

    async fn run(&self, statements: &[Statement], end: End) {
        let mut sql = format!("USE {};\nBEGIN;\n", self.1);
        for statement in statements {
            sql.push_str(&match statement {
                Statement::Insert(id, name) => {
                    let name = name.replace('\\', "\\\\");
                    format!("INSERT INTO items VALUES ({id}, '{name}', NULL);\n")
                }
                Statement::InsertRange(from, to) => {
                    let rows: Vec<String> = (*from..*to).map(|id| format!("({id}, 'n{id}', NULL)")).collect();
                    format!("INSERT INTO items VALUES {};\n", rows.join(","))
                }
                Statement::InsertBig(id, len) => {
                    format!("INSERT INTO items VALUES ({id}, 'big', repeat('0123456789', {len} / 10));\n")
                }
                Statement::Rename(id, name) => format!("UPDATE items SET name = '{name}' WHERE id = {id};\n"),
                Statement::Rekey(from, to) => format!("UPDATE items SET id = {to} WHERE id = {from};\n"),
                Statement::Delete(id) => format!("DELETE FROM items WHERE id = {id};\n"),
                Statement::InsertOther => "INSERT INTO other VALUES ();\n".to_owned(),
            });
        }
        sql.push_str(if end == End::Commit { "COMMIT" } else { "ROLLBACK" });
        shared(self.0).sql(&sql);
    }

    async fn forgets_before(&self, _: &Position) -> Option<Ordering> {
        // The server keeps its binlog by its own rules.
        None
    }
}

macro_rules! scenarios {
    ($($name:ident)*) => {
        mod mariadb {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    testkit::$name(&Servers(Flavour::Mariadb)).await;
                }
            )*
        }

        mod mysql {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    testkit::$name(&Servers(Flavour::Mysql)).await;
                }
            )*
        }
    };
}

scenarios! {
    fresh_start
    interrupted_start
    whole_in_order_once
    reopen_at_every_position
    cut_a_large_transaction
    idle_progress
    ack_lets_the_server_forget
    images_of_rows
}
