//! The shop's tables, its first rows, and the triggers that write down what happens in the very transaction that does it.

use super::{ledger::TABLES, server::Monolith};

/// Rows that are there before the start: enough to be read for some seconds.
pub const CUSTOMERS: i64 = 2_000;
pub const ORDERS: i64 = 12_000;
pub const PAYMENTS: i64 = 6_000;

/// Rows of one statement.
const AT_ONCE: i64 = 1_000;

/// Everything that makes a shop, in order.
pub fn statements(monolith: Monolith, s: &str) -> Vec<String> {
    let (schema, timestamp, json) = match monolith {
        Monolith::Postgres => (format!("CREATE SCHEMA {s}"), "timestamptz", "jsonb"),
        Monolith::Mariadb | Monolith::Mysql => (format!("CREATE DATABASE {s} CHARACTER SET utf8mb4"), "timestamp", "json"),
    };
    let mut statements = vec![
        schema,
        format!(
            "CREATE TABLE {s}.customers (id bigint PRIMARY KEY, name text NOT NULL, email text, since {timestamp} DEFAULT now())"
        ),
        format!(
            "CREATE TABLE {s}.orders (id bigint PRIMARY KEY, customer bigint, status text, total numeric(10,2), items {json})"
        ),
        format!("CREATE TABLE {s}.payments (id bigint PRIMARY KEY, order_id bigint, amount numeric(10,2), method text)"),
        format!("CREATE TABLE {s}.truth (xid bigint, tbl text, op text, id bigint)"),
    ];
    let mut fill = |head: &str, count: i64, row: &dyn Fn(i64) -> String| {
        for first in (1..=count).step_by(AT_ONCE as usize) {
            let rows: Vec<String> = (first..(first + AT_ONCE).min(count + 1)).map(row).collect();
            statements.push(format!("INSERT INTO {s}.{head} VALUES {}", rows.join(", ")));
        }
    };
    let cents = |i: i64| format!("{}.{:02}", i * 125 / 100, i * 125 % 100);
    fill("customers (id, name, email)", CUSTOMERS, &|i| format!("({i}, 'Customer {i}', 'c{i}@example.com')"));
    fill("orders", ORDERS, &|i| format!("({i}, {}, 'open', {}, '[{{\"sku\": \"A1\"}}]')", i % CUSTOMERS + 1, cents(i)));
    fill("payments", PAYMENTS, &|i| format!("({i}, {i}, {}, 'card')", cents(i)));
    // The triggers come last: what is there before the start counts as rows to be read, under no transaction.
    statements.extend(TABLES.map(|table| format!("INSERT INTO {s}.truth SELECT 0, '{table}', 'r', id FROM {s}.{table}")));
    statements.extend(match monolith {
        Monolith::Postgres => postgres_triggers(s),
        Monolith::Mariadb | Monolith::Mysql => mysql_triggers(s),
    });
    statements
}

fn postgres_triggers(s: &str) -> Vec<String> {
    let function = format!(
        "CREATE FUNCTION {s}.record() RETURNS trigger LANGUAGE plpgsql AS $$ \
         DECLARE x int8 := txid_current() % 4294967296; BEGIN \
         IF TG_OP = 'DELETE' THEN INSERT INTO {s}.truth VALUES (x, TG_TABLE_NAME, 'd', OLD.id); \
         ELSIF TG_OP = 'INSERT' THEN INSERT INTO {s}.truth VALUES (x, TG_TABLE_NAME, 'c', NEW.id); \
         ELSIF OLD.id = NEW.id THEN INSERT INTO {s}.truth VALUES (x, TG_TABLE_NAME, 'u', NEW.id); \
         ELSE INSERT INTO {s}.truth VALUES (x, TG_TABLE_NAME, 'd', OLD.id), (x, TG_TABLE_NAME, 'c', NEW.id); \
         END IF; RETURN NULL; END $$"
    );
    let trigger = |table: &str| {
        format!(
            "CREATE TRIGGER record AFTER INSERT OR UPDATE OR DELETE ON {s}.{table} FOR EACH ROW EXECUTE FUNCTION {s}.record()"
        )
    };
    std::iter::once(function).chain(TABLES.map(trigger)).collect()
}

/// A transaction has no name there before its commit, so the record says 0.
fn mysql_triggers(s: &str) -> Vec<String> {
    let of = |table: &str| {
        let head =
            |name: &str, event: &str| format!("CREATE TRIGGER {s}.{table}_{name} AFTER {event} ON {s}.{table} FOR EACH ROW");
        let record = |op: &str, row: &str| format!("INSERT INTO {s}.truth VALUES (0, '{table}', '{op}', {row}.id)");
        [
            format!("{} {}", head("insert", "INSERT"), record("c", "NEW")),
            format!("{} {}", head("delete", "DELETE"), record("d", "OLD")),
            format!(
                "{} IF OLD.id = NEW.id THEN {}; ELSE {}; {}; END IF",
                head("update", "UPDATE"),
                record("u", "NEW"),
                record("d", "OLD"),
                record("c", "NEW")
            ),
        ]
    };
    TABLES.iter().flat_map(|table| of(table)).collect()
}
