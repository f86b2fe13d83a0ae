//! Holds every row of TYPES.md against real servers, in the stream and in the catalogue.

use headwater_connector::{Batch, Limits, Type, Value, json};
use serde_json::json;

use crate::support::{Flavour, shared, start};

struct Example {
    sql_type: String,
    value: String,
    logical: String,
    json: String,
}

/// The rows of the table that are for this flavour.
fn examples(flavour: Flavour) -> Vec<Example> {
    let name = if flavour == Flavour::Mariadb { "mariadb" } else { "mysql" };
    let code = |cell: &str| cell.trim_matches('`').to_owned();
    let mut found = Vec::new();
    for line in include_str!("../../TYPES.md").lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [sql_type, value, logical, json, on] = cells[..] else { panic!("not five cells: {line}") };
        if on == "both" || on == name {
            found.push(Example { sql_type: code(sql_type), value: code(value), logical: logical.into(), json: code(json) });
        }
    }
    assert!(found.len() > 60, "the table is read");
    found
}

/// The JSON that the daemon makes of a value.
fn to_json(value: Value<'_>, logical: &Type) -> String {
    let mut out = Vec::new();
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(value) => out.extend_from_slice(value.to_string().as_bytes()),
        Value::Int(value) => out.extend_from_slice(value.to_string().as_bytes()),
        Value::Uint(value) => out.extend_from_slice(value.to_string().as_bytes()),
        Value::Json(text) => out.extend_from_slice(text.as_bytes()),
        Value::Text(text) if matches!(logical, Type::Float32 | Type::Float64) => out.extend_from_slice(text.as_bytes()),
        Value::Text(text) => json::push_string(&mut out, text),
        Value::Bytes(bytes) => json::push_base64(&mut out, bytes),
        other => panic!("{other:?}"),
    }
    String::from_utf8(out).expect("UTF-8")
}

async fn every_row_of_the_table_holds(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    let examples = examples(flavour);
    // A column each, in tables of one, so that one type does not help another.
    let mut sql = format!("USE {database};\nSET sql_mode = '';\nSET time_zone = '+05:30';\n");
    for (at, example) in examples.iter().enumerate() {
        sql.push_str(&format!("CREATE TABLE t{at} (id int PRIMARY KEY, v {}, tail int unsigned);\n", example.sql_type));
    }
    server.sql(&sql);
    let connector = server.connector(&database, json!({}));
    let tables = connector.tables().await.unwrap_or_else(|errors| panic!("{errors:?}"));
    let first = start(&*connector).await;
    // Timestamps are given in UTC here and by another zone in the last session.
    let mut sql = format!("USE {database};\nSET sql_mode = '';\n");
    for (at, example) in examples.iter().enumerate() {
        sql.push_str(&format!("INSERT INTO t{at} VALUES (1, {}, 4000000000);\n", example.value));
    }
    server.sql(&sql);
    let mut source = connector.open(&first.identity, &first.position).await.unwrap_or_else(|error| panic!("{error}"));
    let (mut batch, mut wrong, mut seen) = (Batch::default(), Vec::new(), 0);
    while seen < examples.len() {
        batch.clear(usize::MAX);
        source.next_batch(&mut batch, &Limits::default()).await.unwrap_or_else(|error| panic!("{seen}: {error}"));
        for change in batch.changes() {
            let (example, schema) = (&examples[seen], &batch.schemas()[change.schema as usize]);
            assert_eq!(schema.table, format!("{database}.t{seen}"));
            let row = change.after.expect("a row");
            let column = &schema.columns[1];
            let found = to_json(batch.value(row, 1), &column.r#type);
            if found != example.json
                || column.r#type.name() != example.logical
                || batch.value(row, 2) != Value::Uint(4_000_000_000)
            {
                wrong.push(format!("{} {}: {} {found}", example.sql_type, example.value, column.r#type.name()));
            }
            let now = tables.iter().find(|table| table.schema.table == schema.table).expect("it is selected");
            if now.schema.columns[1] != *column {
                wrong.push(format!(
                    "{}: {:?} in the catalogue, {column:?} in the stream",
                    example.sql_type, now.schema.columns[1]
                ));
            }
            seen += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_of_the_table_holds_on_mariadb() {
    every_row_of_the_table_holds(Flavour::Mariadb).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_of_the_table_holds_on_mysql() {
    every_row_of_the_table_holds(Flavour::Mysql).await;
}
