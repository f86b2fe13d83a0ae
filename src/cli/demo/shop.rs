//! The monolith: customers, orders, payments, and triggers that count what was really committed.

use std::collections::HashSet;

use fastrand::Rng;
use headwater_connector::Result;
use tokio::time::{Duration, Instant, sleep};

use super::{
    build::{self, CUSTOMERS, ORDERS, PAYMENTS},
    failed,
    ledger::TABLES,
    server::{Address, Monolith, Server},
    show::Show,
};

/// Pause between two transactions of the shop, so that a person can follow.
const PAUSE: Duration = Duration::from_millis(12);

/// Every n-th transaction is shown.
const SHOWN: u64 = 11;

/// The shop's place on the server.
#[derive(Clone)]
pub struct Shop {
    address: Address,
    /// PostgreSQL's schema, MySQL's database.
    schema: String,
}

/// One row change as the database itself recorded it, in the transaction that made it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fact {
    /// Transaction id, 32 bit, as the log carries it; 0 for a row that was there before, and where a transaction does not know its name
    /// before it is committed (MariaDB, MySQL).
    pub xid: u32,
    /// Bare table name.
    pub table: String,
    /// `c`, `u` or `d`; `r` for a row that was there before.
    pub op: char,
    /// Primary key.
    pub id: i64,
}

impl Shop {
    /// A shop that is not built yet, under a name that nobody has.
    pub fn new(server: &Server) -> Self {
        let schema = format!("shop_{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        Self { address: server.address.clone(), schema }
    }

    /// Builds and fills it. Its rows are there before headwater starts, and the shop's own record says so.
    pub async fn fill(&self, show: &Show) -> Result<()> {
        let rows = CUSTOMERS + ORDERS + PAYMENTS;
        show.step(&format!("filling a shop: customers, orders, payments; {rows} rows that are there before headwater is"));
        let mut session = self.address.session().await?;
        for statement in build::statements(self.address.monolith, &self.schema) {
            session.query(&statement).await?;
        }
        Ok(())
    }

    /// The schema, which is also the connector's name.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// Buys and sells until the shop closes. Returns how many transactions committed.
    pub async fn trade(self, closes: Instant, show: Show) -> Result<u64> {
        let mut session = self.address.session().await?;
        let mut rng = Rng::with_seed(20);
        let mut committed = 0;
        let mut next_id = 1_000_000;
        while Instant::now() < closes {
            let deal = deal(&self.schema, &mut rng, &mut next_id);
            let end = if rng.u32(0..12) == 0 { "ROLLBACK" } else { "COMMIT" };
            session.query("BEGIN").await?;
            for statement in &deal.statements {
                session.query(statement).await?;
            }
            session.query(end).await?;
            if end == "COMMIT" {
                committed += 1;
                if committed % SHOWN == 0 {
                    show.shop(&deal.words);
                }
            }
            sleep(PAUSE).await;
        }
        Ok(committed)
    }

    /// What the database says was committed.
    pub async fn truth(&self) -> Result<Vec<Fact>> {
        let mut session = self.address.session().await?;
        let rows = session.query(&format!("SELECT xid, tbl, op, id FROM {}.truth", self.schema)).await?;
        let fact = |row: Vec<Option<String>>| {
            let mut cells = row.into_iter().flatten();
            let (xid, table, op, id) = (cells.next()?, cells.next()?, cells.next()?, cells.next()?);
            Some(Fact { xid: xid.parse().ok()?, table, op: op.chars().next()?, id: id.parse().ok()? })
        };
        rows.into_iter().map(fact).collect::<Option<_>>().ok_or_else(|| failed("the shop's own record is not readable"))
    }

    /// The rows that are in the tables now.
    pub async fn rows(&self) -> Result<HashSet<(String, i64)>> {
        let mut session = self.address.session().await?;
        let mut rows = HashSet::new();
        for table in TABLES {
            let ids = session.query(&format!("SELECT id FROM {}.{table}", self.schema)).await?;
            let ids = ids.into_iter().filter_map(|row| row.into_iter().next()??.parse().ok());
            rows.extend(ids.map(|id| (table.to_owned(), id)));
        }
        Ok(rows)
    }

    /// Removes everything that the demo made on the server: tables, and on PostgreSQL slot and publication.
    pub async fn remove(&self) -> Result<()> {
        let mut session = self.address.session().await?;
        let s = &self.schema;
        if self.address.monolith != Monolith::Postgres {
            return session.query(&format!("DROP DATABASE IF EXISTS {s}")).await.map(drop);
        }
        let drop_slot = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_name = 'headwater_{s}' AND NOT active"
        );
        let gone = format!("SELECT 1 FROM pg_replication_slots WHERE slot_name = 'headwater_{s}'");
        let deadline = Instant::now() + Duration::from_secs(10);
        // The server may need a moment to notice that the daemon is gone.
        while !session.query(&gone).await?.is_empty() && Instant::now() < deadline {
            session.query(&drop_slot).await?;
            sleep(Duration::from_millis(50)).await;
        }
        session.query(&format!("DROP PUBLICATION IF EXISTS headwater_{s}")).await?;
        session.query(&format!("DROP SCHEMA IF EXISTS {s} CASCADE")).await?;
        Ok(())
    }
}

/// One transaction of the shop: its statements and what a person reads.
struct Deal {
    statements: Vec<String>,
    words: String,
}

fn deal(s: &str, rng: &mut Rng, next_id: &mut i64) -> Deal {
    let order = rng.i64(1..ORDERS);
    let mut fresh = || {
        *next_id += 1;
        *next_id
    };
    match rng.u32(0..10) {
        0 => {
            let id = fresh();
            Deal {
                statements: vec![format!(
                    "INSERT INTO {s}.customers (id, name, email) VALUES ({id}, 'Customer {id}', 'c{id}@example.com')"
                )],
                words: format!("INSERT customers {id}"),
            }
        }
        1..=4 => {
            let (id, cents) = (fresh(), rng.u32(100..99_999));
            let total = format!("{}.{:02}", cents / 100, cents % 100);
            Deal {
                statements: vec![
                    format!(
                        "INSERT INTO {s}.orders VALUES ({id}, {}, 'open', {total}, '[{{\"sku\": \"A{}\", \"n\": {}}}]')",
                        rng.i64(1..CUSTOMERS),
                        rng.u32(1..50),
                        rng.u32(1..5)
                    ),
                    format!("INSERT INTO {s}.payments VALUES ({id}, {id}, {total}, 'card')"),
                ],
                words: format!("INSERT orders {id} and its payment, {total}"),
            }
        }
        5..=7 => {
            let status = ["paid", "packed", "shipped"][rng.usize(0..3)];
            Deal {
                // The total changes too: an update to what a row is already is none on MySQL.
                statements: vec![format!(
                    "UPDATE {s}.orders SET status = '{status}', total = total + 0.05 WHERE id BETWEEN {order} AND {}",
                    order + 2
                )],
                words: format!("UPDATE orders {order} to {}: {status}", order + 2),
            }
        }
        8 => Deal {
            statements: ["payments", "orders"].map(|table| format!("DELETE FROM {s}.{table} WHERE id = {order}")).to_vec(),
            words: format!("DELETE orders {order} and its payment"),
        },
        _ => {
            let to = fresh();
            Deal {
                statements: vec![format!("UPDATE {s}.orders SET id = {to} WHERE id = {order}")],
                words: format!("UPDATE orders {order}: new key {to}"),
            }
        }
    }
}
