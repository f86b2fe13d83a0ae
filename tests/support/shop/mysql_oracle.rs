//! The oracle of MariaDB and MySQL: rows of truth that triggers wrote, in the order in which the server lists the transactions of its
//! binlog. It shares the SQL session with the daemon, and nothing that reads a binlog.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{Truth, mysql::Conversation};
use crate::{binlog::servers::Server, checker::Expected, support::oracle};

/// Rows of truth that are asked for at once.
const PAGE: usize = 2_000;

/// A server from a place in its binlog on.
pub struct Binlog<'a> {
    server: &'a Server,
    file: String,
}

/// The column of the accounts that comes and goes, and its value in every row.
type Extra = Option<(String, Value)>;

/// What the listing shows of one transaction, in the order of the commits.
#[derive(Default)]
struct Listed {
    number: Option<i64>,
    /// Captured tables of which it changed rows.
    tables: BTreeSet<String>,
}

impl<'a> Binlog<'a> {
    /// From a new file on.
    pub fn new(server: &'a Server) -> Self {
        server.sql("FLUSH BINARY LOGS");
        Self { server, file: server.binlog() }
    }

    /// Shows every line of the listing: kind of event and what the server says of it.
    fn list(&self, session: &mut Conversation, mut each: impl FnMut(&str, &str)) {
        let files = session.query("SHOW BINARY LOGS").expect("the files");
        let names = files.into_iter().map(|row| row[0].clone().expect("a name"));
        for file in names.skip_while(|name| *name != self.file) {
            // A whole file at once: places inside of a compressed transaction are no places to begin at.
            let query = format!("SHOW BINLOG EVENTS IN '{file}'");
            let rows = match session.query(&query) {
                Ok(rows) => rows,
                Err(error) if error.contains("(1220)") => before_the_tear(session, &query),
                Err(error) => panic!("{query}: {error}"),
            };
            let cell = |row: &[Option<String>], at: usize| row[at].clone().unwrap_or_default();
            rows.iter().for_each(|row| each(&cell(row, 2), &cell(row, 5)));
        }
    }
}

/// The listing of a file that ends within an event, since MariaDB died while it wrote that: it is refused as soon as it comes so far.
fn before_the_tear(session: &mut Conversation, query: &str) -> Vec<Vec<Option<String>>> {
    let (mut found, mut count, mut step) = (Vec::new(), 0, 1 << 22);
    while step > 0 {
        if let Ok(rows) = session.query(&format!("{query} LIMIT {}", count + step)) {
            count += step;
            // All there is, were it no more than that: the tear is right behind it.
            found = rows;
        }
        step /= 2;
    }
    found
}

impl Truth for Binlog<'_> {
    fn expected(&self, connector: &str) -> Vec<Expected> {
        let mut session = Conversation::open(&self.server.url()).expect("a session");
        let mut truth = truth(&mut session, connector);
        let (mut expected, mut tx, mut now, mut extra) = (Vec::new(), 0, Listed::default(), Extra::None);
        self.list(&mut session, |kind, info| match kind {
            // What the file before ended within never happened.
            "Format_desc" => now = Listed::default(),
            "Rows_query" | "Annotate_rows" => {
                if let Some(number) = info.split("truth.began VALUES (").nth(1) {
                    now.number = Some(number.trim_end_matches(')').parse().expect("a number"));
                }
            }
            "Table_map" => {
                if let Some((_, table)) = info.split_once("(shop.") {
                    now.tables.insert(format!("{connector}.{}", table.trim_end_matches(')')));
                }
            }
            "Query" | "Query_compressed" => reshape(info, &mut extra),
            "Xid" => {
                let listed = std::mem::take(&mut now);
                let told = listed.number.and_then(|number| truth.remove(&number)).unwrap_or_default();
                let tables: BTreeSet<String> = told.iter().map(|event| event.topic.clone()).collect();
                assert_eq!(listed.tables, tables, "the truth of transaction {:?} is not what the database did", listed.number);
                tx += usize::from(!told.is_empty());
                expected.extend(told.into_iter().map(|event| placed(event, tx, &extra, connector)));
            }
            _ => {}
        });
        assert!(truth.is_empty(), "{} transactions of the truth have no place in the commit order", truth.len());
        expected
    }

    fn tables(&self, connector: &str) -> BTreeMap<(String, String), Value> {
        let mut session = Conversation::open(&self.server.url()).expect("a session");
        let mut rows = BTreeMap::new();
        let (id, text) = ("CONCAT('{\"id\":', id, '}')", "CONCAT('{\"id\":', JSON_QUOTE(id), '}')");
        let texts = "JSON_OBJECT('id', id, 'ver', ver, 'title', title, 'body', body)";
        for (table, key, row) in [
            ("bank", id, "JSON_OBJECT('id', id, 'ver', ver, 'balance', balance)"),
            // Without the column that comes and goes: the last event of a row may be older than the column.
            ("account", id, "JSON_OBJECT('id', id, 'ver', ver, 'owner', owner, 'active', active)"),
            (
                "order",
                "CONCAT('{\"region\":', JSON_QUOTE(region), ',\"code\":', JSON_QUOTE(code), '}')",
                "JSON_OBJECT('code', code, 'region', region, 'ver', ver, 'amount', CAST(amount AS CHAR), 'note', note)",
            ),
            ("document", text, texts),
            ("journal", text, texts),
        ] {
            for pair in session.query(&format!("SELECT {key}, {row} FROM shop.`{table}`")).expect("the rows") {
                rows.insert((format!("{connector}.{table}"), parsed(&pair[0]).to_string()), parsed(&pair[1]));
            }
        }
        rows
    }
}

/// What an event must be at its place in the order: accounts have the column that there is then.
fn placed(mut event: Expected, tx: usize, extra: &Extra, connector: &str) -> Expected {
    event.tx = tx;
    if let (Some(row), Some((name, value))) = (&mut event.value, extra)
        && event.topic == format!("{connector}.account")
    {
        row[name] = value.clone();
    }
    event
}

/// Follows the column that comes and goes by the comments in the statements that change it.
fn reshape(statement: &str, extra: &mut Extra) {
    let Some((_, rest)) = statement.split_once("/* reshape ") else { return };
    let (text, _) = rest.split_once(" */").expect("the end of a comment");
    let change: Value = serde_json::from_str(text).expect("JSON in the comment");
    let name = |of: &str| change[of].as_str().map(str::to_owned);
    *extra = match (name("add"), name("rename"), extra.take()) {
        (Some(added), ..) => Some((added, change["value"].clone())),
        (_, Some(renamed), Some((_, value))) => Some((renamed, value)),
        _ => None,
    };
}

/// The rows of truth by transaction.
fn truth(session: &mut Conversation, connector: &str) -> BTreeMap<i64, Vec<Expected>> {
    let mut truth: BTreeMap<i64, Vec<Expected>> = BTreeMap::new();
    let mut last = 0;
    loop {
        let query = format!("SELECT id, tx, tbl, op, k, ver, doc FROM truth.changes WHERE id > {last} ORDER BY id LIMIT {PAGE}");
        let rows = session.query(&query).expect("the truth");
        for row in &rows {
            let number = |at: usize| row[at].as_ref().expect("no NULL").parse::<i64>().expect("a number");
            last = number(0);
            let fields = json!([row[2], row[3], parsed(&row[4]), number(5), parsed(&row[6]), null]);
            truth.entry(number(1)).or_default().push(oracle::event(connector, &fields).0);
        }
        if rows.len() < PAGE {
            return truth;
        }
    }
}

fn parsed(cell: &Option<String>) -> Value {
    cell.as_ref().map_or(Value::Null, |text| serde_json::from_str(text).expect("JSON of the database"))
}
