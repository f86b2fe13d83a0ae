//! Dates and times that are none of the calendar or of the usual clock, in the stream and in chunks, which must have the same bytes.

use headwater_connector::{Batch, Limits, SourceConnector, Start};
use serde_json::json;

use crate::{
    chunks::{chunk, whole},
    support::{Flavour, Reader, Server, on_both, shared, show, start},
    types::{Images, gather},
};

/// What the stream brings from a place on, of so many changes, and that a chunk of each of the tables has the same: schema, kind of value
/// and every byte. The cells of each row as text, in the order of the stream.
async fn read_both_ways(connector: &dyn SourceConnector, first: &Start, count: usize) -> Vec<Vec<String>> {
    let mut source = connector.open(&first.identity, &first.position).await.unwrap_or_else(|error| panic!("{error}"));
    let (mut streamed, mut rows, mut batch) = (Images::new(), Vec::new(), Batch::default());
    while rows.len() < count {
        batch.clear(usize::MAX);
        source.next_batch(&mut batch, &Limits::default()).await.unwrap_or_else(|error| panic!("{error}"));
        rows.extend(
            batch.changes().iter().map(|change| batch.values(change.after.expect("a row")).map(show).collect::<Vec<_>>()),
        );
        gather(&batch, &mut streamed);
    }
    let mut reader = connector.reader().await.expect("a reader");
    for (table, mut rows) in streamed {
        let (mut batch, mut read) = (Batch::default(), Images::new());
        chunk(&mut *reader, &whole(&table), &mut batch).await;
        gather(&batch, &mut read);
        // A chunk comes in the order of the key.
        let mut read = read.remove(&table).expect("its rows");
        [&mut rows, &mut read].into_iter().for_each(|rows| rows.sort_by(|(_, one), (_, other)| one.cmp(other)));
        assert_eq!(read, rows, "{table}: the chunk has what the stream had");
        for (schema, cells) in rows {
            for (column, cell) in schema.columns.iter().zip(cells) {
                assert!(column.nullable || cell != "Null", "{}: {column:?} is NULL", schema.table);
            }
        }
    }
    reader.close().await;
    rows
}

const DATES: [&str; 3] = ["0000-00-00", "2024-00-10", "0000-05-06"];

/// A table of which each column but the first has a zero as date, in every type that can have one, and how many rows it gets.
fn zeros(server: &Server) -> (String, String, usize) {
    let database = server.database();
    server.sql(&format!(
        "CREATE TABLE {database}.items (id int PRIMARY KEY, d date, n date NOT NULL, t datetime, f datetime(3) NOT NULL, s timestamp(2) NULL)"
    ));
    let rows: Vec<String> = (1..)
        .zip(DATES)
        // A timestamp is whole or all zero.
        .map(|(id, date)| format!("({id}, '{date}', '{date}', '{date} 01:02:03', '{date} 04:05:06.789', '0000-00-00 00:00:00')"))
        .collect();
    let sql = format!("USE {database};\nSET sql_mode = '';\nINSERT INTO items VALUES {}", rows.join(","));
    (database, sql, rows.len())
}

async fn a_date_of_no_calendar_is_what_the_policy_says(flavour: Flavour) {
    let server = shared(flavour);
    for policy in ["text", "null", "stop"] {
        let (database, sql, count) = zeros(server);
        let connector = server.connector(&database, json!({ "zero_dates": policy }));
        let first = start(&*connector).await;
        server.sql(&sql);
        if policy == "stop" {
            let error = Reader::open(&*connector, &first).await.stops().await;
            assert_eq!(error.code().id, "HW3029", "{error}");
            let _source = connector.open(&first.identity, &first.position).await.unwrap_or_else(|error| panic!("{error}"));
            let mut reader = connector.reader().await.expect("a reader");
            let read = reader.read(&whole(&format!("{database}.items")), &mut Batch::default()).await;
            assert_eq!(read.err().expect("it stops").code().id, "HW3029");
            reader.close().await;
            continue;
        }
        let rows = read_both_ways(&*connector, &first, count).await;
        for ((id, date), row) in (1..).zip(DATES).zip(rows) {
            let cells = match policy {
                "text" => format!("{id},{date},{date},{date} 01:02:03,{date} 04:05:06.789,0000-00-00 00:00:00.00"),
                _ => format!("{id},NULL,NULL,NULL,NULL,NULL"),
            };
            assert_eq!(row.join(","), cells, "{policy}");
        }
    }
}

/// Rows whose keys differ in nothing else would be one row without it.
async fn a_key_of_no_calendar_never_becomes_null(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    server.sql(&format!("CREATE TABLE {database}.items (d date, n int, PRIMARY KEY (d))"));
    let connector = server.connector(&database, json!({ "zero_dates": "null" }));
    let first = start(&*connector).await;
    server.sql(&format!(
        "USE {database};\nSET sql_mode = '';\nINSERT INTO items VALUES ('2026-01-02', 1);\nINSERT INTO items VALUES ('0000-00-00', 2), ('2024-00-10', 3)"
    ));
    let mut reader = Reader::open(&*connector, &first).await;
    let error = reader.stops().await;
    assert_eq!((error.code().id, &*reader.lines), ("HW3029", &["Insert items 2026-01-02,1".to_owned()][..]), "{error}");
    let mut chunks = connector.reader().await.expect("a reader");
    let read = chunks.read(&whole(&format!("{database}.items")), &mut Batch::default()).await;
    assert_eq!(read.err().expect("it stops").code().id, "HW3029");
    chunks.close().await;
    // As text they are told apart.
    let connector = server.connector(&database, json!({}));
    let rows = read_both_ways(&*connector, &first, 3).await;
    assert_eq!(rows[1..], [["0000-00-00", "2"], ["2024-00-10", "3"]]);
}

/// The ends of what a time can be, in every number of digits.
async fn times_go_to_their_ends(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    let columns: Vec<String> = (0..=6).map(|digits| format!("t{digits} time({digits})")).collect();
    server.sql(&format!("CREATE TABLE {database}.items (id int PRIMARY KEY, {})", columns.join(", ")));
    let connector = server.connector(&database, json!({}));
    let first = start(&*connector).await;
    let times = [
        "-838:59:59.999999",
        "838:59:59.999999",
        "-838:59:58.999999",
        "-00:00:00.999999",
        "-00:59:59.100001",
        "838:00:00.5",
        "-1:00:00",
    ];
    let mut sql = format!("USE {database};\nSET sql_mode = 'TIME_TRUNCATE_FRACTIONAL';\n");
    if server.try_sql(&sql).is_err() {
        sql = format!("USE {database};\nSET sql_mode = '';\n");
    }
    for (id, time) in times.iter().enumerate() {
        sql.push_str(&format!("INSERT INTO items VALUES ({id}{});\n", format!(", '{time}'").repeat(7)));
    }
    server.sql(&sql);
    let rows = read_both_ways(&*connector, &first, times.len()).await;
    let table: Vec<String> = rows.iter().map(|row| row.join("\t")).collect();
    assert_eq!(table.join("\n"), server.sql(&format!("SELECT * FROM {database}.items ORDER BY id")));
}

on_both! {
    a_date_of_no_calendar_is_what_the_policy_says
    a_key_of_no_calendar_never_becomes_null
    times_go_to_their_ends
}
