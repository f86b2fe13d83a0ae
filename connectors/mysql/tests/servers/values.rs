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

/// The rules of a zone around the two nights of 2026, as the server's own tables have them: when, and which offset holds from then on.
const BERLIN: [(&str, &str); 2] = [("2026-03-29 01:00:00", "+02:00"), ("2026-10-25 01:00:00", "+01:00")];

/// Teaches the server the zone. It has no zones from the start, and this is none of the data.
fn teach_berlin(server: &Server) {
    let mut sql = "SET sql_log_bin = 0;\nUSE mysql;\nINSERT INTO time_zone VALUES (1, 'N');\n\
         INSERT INTO time_zone_name VALUES ('Europe/Berlin', 1);\n\
         INSERT INTO time_zone_transition_type VALUES (1, 0, 3600, 0, 'CET'), (1, 1, 7200, 1, 'CEST')"
        .to_owned();
    for (when, offset) in BERLIN {
        sql.push_str(&format!(
            ";\nINSERT INTO time_zone_transition VALUES (1, unix_timestamp('{when}'), {})",
            u8::from(offset == "+02:00")
        ));
    }
    server.sql(&sql);
}

/// Sessions of several zones write the hours that are there twice, or not at all, while the server's own zone is changed.
async fn moments_are_the_same_in_every_zone(flavour: Flavour) {
    // Every session of the tests sets its own zone, so the server's may change under them.
    let server = shared(flavour);
    teach_berlin(server);
    let database = server.database();
    server.sql(&format!(
        "CREATE TABLE {database}.items (id int PRIMARY KEY, t timestamp NULL, f timestamp(6) NULL, d datetime(6))"
    ));
    let connector = server.connector(&database, json!({}));
    let first = start(&*connector).await;
    let rows = [
        // The hour that comes twice, by its two offsets; by name it is one of the two.
        ("+02:00", "2026-10-25 02:30:00.000001", Some("2026-10-25T00:30:00")),
        ("+01:00", "2026-10-25 02:30:00.000001", Some("2026-10-25T01:30:00")),
        ("Europe/Berlin", "2026-10-25 02:30:00.000001", None),
        ("Europe/Berlin", "2026-10-25 01:59:59.000001", Some("2026-10-24T23:59:59")),
        ("Europe/Berlin", "2026-10-25 03:00:00.000001", Some("2026-10-25T02:00:00")),
        // The hour that is left out.
        ("Europe/Berlin", "2026-03-29 01:59:59.000001", Some("2026-03-29T00:59:59")),
        ("Europe/Berlin", "2026-03-29 02:30:00.000001", Some("2026-03-29T01:00:00")),
        ("Europe/Berlin", "2026-03-29 03:00:00.000001", Some("2026-03-29T01:00:00")),
        ("-12:00", "2026-12-31 23:59:59.000001", Some("2027-01-01T11:59:59")),
        ("+13:00", "2027-01-01 00:59:59.000001", Some("2026-12-31T11:59:59")),
        ("+00:00", "1970-01-01 00:00:01.000001", Some("1970-01-01T00:00:01")),
        ("+13:00", "1970-01-01 13:00:01.000001", Some("1970-01-01T00:00:01")),
        ("+00:00", "2038-01-19 03:14:07.000001", Some("2038-01-19T03:14:07")),
        ("-12:00", "2038-01-18 15:14:07.000001", Some("2038-01-19T03:14:07")),
    ];
    for (id, (zone, text, _)) in rows.iter().enumerate() {
        let own = ["-12:00", "Europe/Berlin", "+13:00", "SYSTEM"][id % 4];
        let (whole, _) = text.split_once('.').expect("a fraction");
        server.sql(&format!("SET GLOBAL time_zone = '{own}'"));
        server.sql(&format!("USE {database};\nSET sql_mode = '', time_zone = '{zone}';\nINSERT INTO items VALUES ({id}, '{whole}', '{text}', '{text}')"));
    }
    let found = read_both_ways(&*connector, &first, rows.len()).await;
    server.sql("SET GLOBAL time_zone = 'SYSTEM'");
    for ((id, (zone, text, utc)), row) in (0..).zip(rows).zip(found) {
        let said = server.sql(&format!("SELECT date_format(t, '%Y-%m-%dT%H:%i:%s') FROM {database}.items WHERE id = {id}"));
        assert_eq!(said, utc.unwrap_or(&said), "what the server has of {text} in {zone}");
        assert_eq!(
            row,
            [id.to_string(), format!("{said}Z"), format!("{said}.000001Z"), text.replace(' ', "T")],
            "{text} in {zone}"
        );
    }
}

/// The end of the servers' time: 2106 where seconds are counted without a sign, 2038 elsewhere.
async fn moments_go_to_their_end(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    server.sql(&format!("CREATE TABLE {database}.items (id int PRIMARY KEY, t timestamp(6) NULL)"));
    let connector = server.connector(&database, json!({}));
    let first = start(&*connector).await;
    let is_long = flavour == Flavour::Mariadb && server.version() >= (11, 5);
    let texts = ["2038-01-19 03:14:08", "2040-02-29 12:00:00.5", "2100-02-28 23:59:59.999999", "2106-02-07 06:28:15.999999"];
    let mut taken = vec!["2038-01-19 03:14:07.000000".to_owned()];
    let insert = |id: usize, text: &str| {
        server
            .try_sql(&format!("USE {database};\nSET sql_mode = 'STRICT_ALL_TABLES';\nINSERT INTO items VALUES ({id}, '{text}')"))
    };
    insert(0, &taken[0]).expect("it is in both");
    for (id, text) in (1..).zip(texts) {
        assert_eq!(insert(id, text).is_ok(), is_long, "{text}");
        if is_long {
            taken.push(format!("{:0<26}", if text.contains('.') { text.to_owned() } else { format!("{text}.") }));
        }
    }
    let found = read_both_ways(&*connector, &first, taken.len()).await;
    for (text, row) in taken.iter().zip(found) {
        assert_eq!(row[1], format!("{}Z", text.replace(' ', "T")));
    }
}

/// As they were kept before MariaDB 10.1 and MySQL 5.6, with and without a fraction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_in_the_old_form_are_read_or_refused() {
    let server = Server::start(Flavour::Mariadb, &["--mysql56-temporal-format=OFF"]);
    let database = server.database();
    server.sql(&format!(
        "USE {database};\nCREATE TABLE items (id int PRIMARY KEY, a time, b datetime, c timestamp NULL, d date, tail int unsigned)"
    ));
    let connector = server.connector(&database, json!({}));
    let first = start(&*connector).await;
    server.sql(&format!(
        "USE {database};\nSET sql_mode = '';\n\
         INSERT INTO items VALUES (1, '-838:59:59', '9999-12-31 23:59:59', '2038-01-19 03:14:07', '2026-01-02', 4000000000),\
         (2, '-00:00:01', '2024-00-10 01:02:03', '0000-00-00 00:00:00', '0000-00-00', 4000000000)"
    ));
    let rows = read_both_ways(&*connector, &first, 2).await;
    assert_eq!(rows[0].join(","), "1,-838:59:59,9999-12-31T23:59:59,2038-01-19T03:14:07Z,2026-01-02,4000000000");
    assert_eq!(rows[1].join(","), "2,-00:00:01,2024-00-10 01:02:03,0000-00-00 00:00:00,0000-00-00,4000000000");
    // The binlog does not say how long these are: rows of them could be taken for other rows.
    for column in ["time(6)", "datetime(3)", "timestamp(1) NULL"] {
        let database = server.database();
        let create =
            |name: &str, column: &str| server.sql(&format!("CREATE TABLE {database}.{name} (id int PRIMARY KEY, v {column})"));
        create("fine", "int");
        let connector = server.connector(&database, json!({}));
        let first = start(&*connector).await;
        create("items", column);
        let rows: Vec<String> = (0..8).map(|id| format!("({id}, 0)")).collect();
        server.sql(&format!(
            "USE {database};\nSET sql_mode = '';\nINSERT INTO fine VALUES (1, 1);\nINSERT INTO items VALUES {}",
            rows.join(",")
        ));
        let mut reader = Reader::open(&*connector, &first).await;
        let error = reader.stops().await;
        assert_eq!((error.code().id, &*reader.lines), ("HW3023", &["Insert fine 1,1".to_owned()][..]), "{column}: {error}");
        // Also where new columns are of the new form.
        server.sql("SET GLOBAL mysql56_temporal_format = ON");
        assert_eq!(connector.prepare().await.expect_err("it cannot be read").code().id, "HW3023", "{column}");
        server.sql(&format!("ALTER TABLE {database}.items MODIFY v {column}"));
        connector.prepare().await.unwrap_or_else(|error| panic!("{column}: {error}"));
        // What was written before is as it was.
        assert_eq!(Reader::open(&*connector, &first).await.stops().await.code().id, "HW3023", "{column}");
        server.sql("SET GLOBAL mysql56_temporal_format = OFF");
    }
}

on_both! {
    a_date_of_no_calendar_is_what_the_policy_says
    a_key_of_no_calendar_never_becomes_null
    times_go_to_their_ends
    moments_are_the_same_in_every_zone
    moments_go_to_their_end
}
