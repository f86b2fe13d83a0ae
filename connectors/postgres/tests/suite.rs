//! The suite of every source, against a real PostgreSQL.

mod support;

use std::cmp::Ordering;

use async_trait::async_trait;
use headwater_connector::{
    ConnectorKind, Position, SourceConnector, SourceContext,
    testkit::{self, Bench, End, Rig, Statement},
};
use serde_json::json;
use support::shared;

struct Server;

struct Database(String);

#[async_trait]
impl Rig for Server {
    async fn bench(&self) -> Box<dyn Bench> {
        let name = shared().database();
        shared().sql(
            &name,
            "CREATE TABLE items (id bigint PRIMARY KEY, name text, big text);
             ALTER TABLE items ALTER big SET STORAGE EXTERNAL;
             CREATE TABLE other (id bigserial)",
        );
        Box::new(Database(name))
    }
}

fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').expect("an LSN");
    u64::from_str_radix(high, 16).expect("hex") << 32 | u64::from_str_radix(low, 16).expect("hex")
}

#[async_trait]
impl Bench for Database {
    fn connector(&self) -> Box<dyn SourceConnector> {
        let context = SourceContext { connector: self.0.clone(), prefix: "suite".into(), keys: Vec::new() };
        let options = json!({ "url": shared().url(&self.0), "tables": "public.items" });
        headwater_postgres::POSTGRES.source(&context, options).expect("good options")
    }

    async fn run(&self, statements: &[Statement], end: End) {
        let mut sql = String::from("BEGIN;\n");
        for statement in statements {
            sql.push_str(&match statement {
                Statement::Insert(id, name) => format!("INSERT INTO items VALUES ({id}, '{name}');\n"),
                Statement::InsertRange(from, to) => {
                    format!("INSERT INTO items SELECT i, 'n' || i FROM generate_series({from}, {to} - 1) i;\n")
                }
                Statement::InsertBig(id, len) => {
                    format!("INSERT INTO items VALUES ({id}, 'big', repeat('0123456789', {len} / 10));\n")
                }
                Statement::Rename(id, name) => format!("UPDATE items SET name = '{name}' WHERE id = {id};\n"),
                Statement::Rekey(from, to) => format!("UPDATE items SET id = {to} WHERE id = {from};\n"),
                Statement::Delete(id) => format!("DELETE FROM items WHERE id = {id};\n"),
                Statement::InsertOther => "INSERT INTO other DEFAULT VALUES;\n".to_owned(),
            });
        }
        sql.push_str(if end == End::Commit { "COMMIT" } else { "ROLLBACK" });
        shared().sql(&self.0, &sql);
    }

    async fn forgets_before(&self, position: &Position) -> Option<Ordering> {
        let sql = format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'suite_{}'", self.0);
        let base = position.as_str().split(':').nth(1).expect("version:base");
        Some(lsn(&shared().sql(&self.0, &sql)).cmp(&lsn(base)))
    }
}

macro_rules! scenarios {
    ($($name:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                testkit::$name(&Server).await;
            }
        )*
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
