//! Holds every row of TYPES.md against real servers, in the stream and in the catalogue.

use std::collections::BTreeMap;

use headwater_connector::{Batch, Limits, Schema, Type, Value, json};
use serde_json::json;

use crate::{
    chunks::{chunk, whole},
    support::{Flavour, shared, start},
};

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
    let version = shared(flavour).version();
    let is_for = |on: &str| {
        let (flavour, since) = on.split_once(' ').unwrap_or((on, "0.0"));
        let (major, minor) = since.split_once('.').expect("a version");
        let since = (major.parse().expect("a number"), minor.parse().expect("a number"));
        (flavour == "both" || flavour == name) && version >= since
    };
    let mut found = Vec::new();
    for line in include_str!("../../TYPES.md").lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [sql_type, value, logical, json, on] = cells[..] else { panic!("not five cells: {line}") };
        if is_for(on) {
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

/// The rows of tables as the stream brought them, by table: their schema, and every cell.
pub type Images = BTreeMap<String, Vec<(Schema, Vec<String>)>>;

pub fn gather(batch: &Batch, images: &mut Images) {
    for change in batch.changes() {
        let schema = &*batch.schemas()[change.schema as usize];
        let cells = batch.values(change.after.expect("a row")).map(|value| format!("{value:?}")).collect();
        images.entry(schema.table.clone()).or_default().push((schema.clone(), cells));
    }
}

/// A table's columns and indexes, the names of those columns that are written, and rows of them.
pub type Written = (String, String, Vec<String>);

/// Writes rows, and compares how the stream and how a chunk have them: schema, kind of value and every byte. Returns how that is.
pub async fn chunk_and_stream_have_the_same(flavour: Flavour, tables: &[Written]) -> Images {
    let server = shared(flavour);
    let database = server.database();
    let mut sql = format!("USE {database};\nSET sql_mode = '';\nSET time_zone = '+05:30';\n");
    for (at, (columns, ..)) in tables.iter().enumerate() {
        sql.push_str(&format!("CREATE TABLE t{at} ({columns});\n"));
    }
    server.sql(&sql);
    let connector = server.connector(&database, json!({}));
    let first = start(&*connector).await;
    let mut sql = format!("USE {database};\nSET sql_mode = '';\nSET time_zone = '-03:00';\n");
    let mut count = 0;
    for (at, (_, names, rows)) in tables.iter().enumerate() {
        for row in rows {
            sql.push_str(&format!("INSERT INTO t{at} ({names}) VALUES ({row});\n"));
            count += 1;
        }
    }
    server.sql(&sql);
    let mut source = connector.open(&first.identity, &first.position).await.unwrap_or_else(|error| panic!("{error}"));
    let (mut streamed, mut batch, mut seen) = (Images::new(), Batch::default(), 0);
    while seen < count {
        batch.clear(usize::MAX);
        source.next_batch(&mut batch, &Limits::default()).await.unwrap_or_else(|error| panic!("{seen}: {error}"));
        seen += batch.changes().len();
        gather(&batch, &mut streamed);
    }
    let mut reader = connector.reader().await.expect("a reader");
    let (mut read, mut wrong) = (Images::new(), Vec::new());
    for table in streamed.keys() {
        let mut batch = Batch::default();
        chunk(&mut *reader, &whole(table), &mut batch).await;
        gather(&batch, &mut read);
    }
    for (table, rows) in &streamed {
        let others = &read[table];
        assert_eq!(rows.len(), others.len(), "{table}");
        for (row, other) in rows.iter().zip(others).filter(|(row, other)| row != other) {
            let columns =
                |(schema, cells): &(Schema, Vec<String>)| schema.columns.iter().cloned().zip(cells.clone()).collect::<Vec<_>>();
            let differ: Vec<_> = columns(row).into_iter().zip(columns(other)).filter(|(here, there)| here != there).collect();
            wrong.push(format!("{table}, in the stream and in the chunk: {differ:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    reader.close().await;
    streamed
}

/// Columns behind a key that the server fills.
fn keyed(columns: &str) -> String {
    format!("id int PRIMARY KEY AUTO_INCREMENT, {columns}")
}

/// Every row of the table, and what it has no room for: floats of every size, in columns and in documents, and long lists.
fn compared(flavour: Flavour) -> Vec<Written> {
    let mut tables: Vec<(String, Vec<String>)> = examples(flavour)
        .into_iter()
        .map(|example| (format!("v {}, tail int unsigned DEFAULT 4000000000", example.sql_type), vec![example.value]))
        .collect();
    let mut floats = Vec::new();
    for power in -40..40 {
        for digits in ["1", "-1.5", "1.2345678901234567", "9.999999999999999", "-1.234567"] {
            floats.push(format!("{digits}e{power}"));
        }
    }
    // Where the servers change from one way of writing to the other.
    for power in [-16, -15, -14, 13, 14, 15, 16, 17] {
        floats.extend((1..18).map(|len| format!("1.{}0e{power}", "23456789123456789".get(..len - 1).unwrap_or_default())));
    }
    floats.extend(["0e0", "-0e0", "1e300", "-4.9e-300", "1.7976931348623157e308"].map(str::to_owned));
    let labels: Vec<String> = (0..64).map(|at| format!("'l{at}'")).collect();
    let all = labels.join(",");
    tables.push(("v double".into(), floats.clone()));
    tables
        .push(("v float".into(), floats.iter().filter(|text| text.parse::<f32>().is_ok_and(f32::is_finite)).cloned().collect()));
    tables.push(("v double(20,4), w float(7,3) DEFAULT 1234.567".into(), vec!["1.1".into(), "-0.00005".into(), "NULL".into()]));
    tables.push((format!("v set({all})"), vec!["-1".into(), "1".into(), "9223372036854775808".into(), "''".into()]));
    tables.push((format!("v enum({all},'')"), vec!["'l63'".into(), "''".into(), "0".into(), "NULL".into()]));
    tables.push(("v int(9) zerofill, w decimal(9,2) zerofill DEFAULT 0.5, y int INVISIBLE DEFAULT 7".into(), vec!["42".into()]));
    tables.push((
        "v int, w int AS (v + 1) STORED, y varchar(9) AS (concat('x', v)) VIRTUAL".into(),
        vec!["1".into(), "NULL".into()],
    ));
    tables.push(("v char(9) CHARACTER SET utf16, w binary(3) DEFAULT 'a'".into(), vec!["'a  '".into(), "' '".into()]));
    if flavour == Flavour::Mysql {
        tables.push(("v json".into(), floats.iter().map(|float| format!("json_array({float})")).collect()));
        let texts = [r#"'"\\u0001\\b\\f/\\"\\\\é😀"'"#, "json_array(0.0000000001, 1.50, cast(0.00000000001 as decimal(20,15)))"];
        tables.push(("v json".into(), texts.map(str::to_owned).into()));
    } else {
        tables.push(("v inet6".into(), vec!["'::ffff:1.2.3.4'".into(), "'::1.2.3.4'".into(), "'1:0:0:2::'".into()]));
    }
    tables.into_iter().map(|(columns, rows)| (keyed(&columns), "v".to_owned(), rows)).collect()
}

/// Tables with types of TYPES.md beside each other. What the binlog says of columns, it says of all that are numbers or text in turn: whoever
/// counts one type too few reads those behind it by what is said of others.
fn mixed(flavour: Flavour) -> Vec<Written> {
    const TABLES: usize = 40;
    const COLUMNS: usize = 12;
    let examples = examples(flavour);
    let mut state = 1_u64;
    let mut below = |count: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % count
    };
    let mut tables = Vec::new();
    for _ in 0..TABLES {
        let chosen: Vec<&Example> = (0..COLUMNS).map(|_| &examples[below(examples.len())]).collect();
        let columns: Vec<String> = chosen.iter().enumerate().map(|(at, example)| format!("c{at} {}", example.sql_type)).collect();
        let names: Vec<String> = (0..COLUMNS).map(|at| format!("c{at}")).collect();
        let row: Vec<&str> = chosen.iter().map(|example| example.value.as_str()).collect();
        let holes: Vec<&str> = row.iter().map(|value| if below(2) == 0 { "NULL" } else { value }).collect();
        tables.push((keyed(&columns.join(", ")), names.join(", "), vec![row.join(", "), holes.join(", ")]));
    }
    tables
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_of_all_types_beside_each_other_are_told_apart_on_mariadb() {
    chunk_and_stream_have_the_same(Flavour::Mariadb, &mixed(Flavour::Mariadb)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_of_all_types_beside_each_other_are_told_apart_on_mysql() {
    chunk_and_stream_have_the_same(Flavour::Mysql, &mixed(Flavour::Mysql)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_has_every_type_as_the_stream_on_mariadb() {
    chunk_and_stream_have_the_same(Flavour::Mariadb, &compared(Flavour::Mariadb)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_has_every_type_as_the_stream_on_mysql() {
    chunk_and_stream_have_the_same(Flavour::Mysql, &compared(Flavour::Mysql)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_of_the_table_holds_on_mariadb() {
    every_row_of_the_table_holds(Flavour::Mariadb).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_of_the_table_holds_on_mysql() {
    every_row_of_the_table_holds(Flavour::Mysql).await;
}
