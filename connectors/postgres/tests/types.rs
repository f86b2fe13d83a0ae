//! `TYPES.md` against a real server whose defaults are as hostile as they can be.

mod support;

use std::{path::Path, process::Command};

use headwater_connector::{Batch, ConnectorKind, SourceConnector, SourceContext, Type, Value, json};
use serde_json::json;
use support::{
    Postgres, begin, cells,
    chunks::{chunk, first},
    connector, next, shared,
};

struct Line {
    sql_type: String,
    value: String,
    logical: String,
    json: String,
}

fn lines() -> Vec<Line> {
    let text = include_str!("../TYPES.md");
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let lines: Vec<Line> = rows
        .map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(|cell| cell.trim()).collect();
            let code = |at: usize| cells[at].trim_start_matches('`').strip_suffix('`').expect("code").to_owned();
            Line { sql_type: code(0), value: code(1), logical: cells[2].to_owned(), json: code(3) }
        })
        .collect();
    assert!(lines.len() > 70);
    lines
}

/// Rows that are read must be what the stream sends, to the byte.
async fn reads_as_streamed(connector: &dyn SourceConnector, table: &str, stream: &Batch) {
    let mut reader = connector.reader().await.unwrap();
    let (_, read) = chunk(reader.as_mut(), &first(table, 100)).await;
    assert_eq!(*read.schemas()[0], *stream.schemas()[0]);
    let of = |batch: &Batch| -> Vec<Vec<String>> {
        batch.changes().iter().map(|change| cells(batch, change.after.unwrap())).collect()
    };
    for (read, streamed) in of(&read).iter().zip(&of(stream)) {
        for (at, column) in stream.schemas()[0].columns.iter().enumerate() {
            assert_eq!(read[at], streamed[at], "{} {}", column.name, column.source_type);
        }
    }
    assert_eq!(of(&read), of(stream));
    reader.close().await;
}

/// The JSON rule of each type, as the native format has it.
fn to_json(r#type: &Type, value: Value<'_>) -> String {
    let mut out = Vec::new();
    match (value, r#type) {
        (Value::Null, _) => out.extend_from_slice(b"null"),
        (Value::Bool(value), _) => out.extend_from_slice(value.to_string().as_bytes()),
        (Value::Bytes(bytes), _) => json::push_base64(&mut out, bytes),
        (Value::Json(text), _) => out.extend_from_slice(text.as_bytes()),
        (Value::Text(text), Type::Int16 | Type::Int32 | Type::Int64 | Type::Uint32) => out.extend_from_slice(text.as_bytes()),
        (Value::Text(text), Type::Float32 | Type::Float64) if !text.ends_with(['N', 'y']) => {
            out.extend_from_slice(text.as_bytes());
        }
        (Value::Text(text), _) => json::push_string(&mut out, text),
        other => panic!("{other:?}"),
    }
    String::from_utf8(out).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_the_table_holds_under_hostile_defaults() {
    let (server, database, lines) = (shared(), shared().database(), lines());
    server.sql(
        &database,
        "CREATE TYPE public.mood AS ENUM ('sad', 'it''s ok', 'happy');
         CREATE DOMAIN public.price AS numeric(10,2);
         CREATE DOMAIN public.dear AS public.price;
         CREATE DOMAIN public.moments AS timestamptz(3)[];
         CREATE DOMAIN public.grid AS public.price[];
         CREATE DOMAIN public.mesh AS public.grid;
         CREATE TYPE public.pair AS (a int, b text);
         CREATE TYPE public.span AS RANGE (subtype = float8);
         CREATE TYPE public.tag;
         CREATE FUNCTION public.tag_in(cstring) RETURNS public.tag AS 'textin' LANGUAGE internal IMMUTABLE STRICT;
         CREATE FUNCTION public.tag_out(public.tag) RETURNS cstring AS 'textout' LANGUAGE internal IMMUTABLE STRICT;
         CREATE TYPE public.tag (INPUT = public.tag_in, OUTPUT = public.tag_out, LIKE = text, DELIMITER = ';');",
    );
    let columns: Vec<String> = lines.iter().enumerate().map(|(at, line)| format!("c{at} {}", line.sql_type)).collect();
    server.sql(&database, &format!("CREATE TABLE public.t (id int PRIMARY KEY, {})", columns.join(", ")));
    let values: Vec<&str> = lines.iter().map(|line| line.value.as_str()).collect();
    let role = format!("hostile_{database}");
    server.sql(&database, &format!("CREATE ROLE {role} SUPERUSER LOGIN"));
    for who in [format!("DATABASE {database}"), format!("ROLE {role}")] {
        for setting in [
            "DateStyle = 'SQL, DMY'",
            "TimeZone = 'Asia/Kathmandu'",
            "IntervalStyle = 'sql_standard'",
            "bytea_output = 'escape'",
            "extra_float_digits = -15",
            "search_path = 'nowhere'",
            "standard_conforming_strings = off",
            "xmlbinary = 'hex'",
        ] {
            server.sql("postgres", &format!("ALTER {who} SET {setting}"));
        }
    }
    let url = server.url(&database).replace("postgres@", &format!("{role}@"));
    let context = SourceContext { connector: database.clone(), prefix: "hw".into(), keys: Vec::new() };
    let connector = headwater_postgres::POSTGRES.source(&context, json!({ "url": url, "tables": "public.t" })).unwrap();
    let intent = connector.prepare().await.unwrap();
    let start = connector.create(&intent, false).await.unwrap();
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    let insert = format!("INSERT INTO public.t VALUES (1, {})", values.join(", "));
    server.sql(&database, &format!("SET standard_conforming_strings = on; SET IntervalStyle = postgres; {insert}"));
    let batch = next(source.as_mut()).await.unwrap();
    let schema = &batch.schemas()[0];
    let row = batch.changes()[0].after.unwrap();
    let mut wrong = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let column = &schema.columns[at + 1];
        let found = (column.r#type.name().to_owned(), to_json(&column.r#type, batch.value(row, at + 1)));
        if found != (line.logical.clone(), line.json.clone()) {
            wrong.push(format!("{} {}: {found:?}", line.sql_type, line.value));
        }
        let sql = format!(
            "SET search_path = pg_catalog; SELECT format_type(atttypid, atttypmod) FROM pg_attribute \
             WHERE attrelid = 'public.t'::regclass AND attname = 'c{at}'"
        );
        assert_eq!(column.source_type, server.sql(&database, &sql));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let tables = connector.tables().await.unwrap();
    assert_eq!(*tables[0].schema, **schema, "the catalogue and the stream tell the same schema");
    reads_as_streamed(connector.as_ref(), "public.t", &batch).await;
    source.close().await.unwrap();
}

/// Servers without the contributed modules prove the same with the type `tag` of the table above.
#[tokio::test(flavor = "multi_thread")]
async fn types_of_extensions_are_exact_text_with_their_name() {
    let (server, database) = (shared(), shared().database());
    let all = [
        ("hstore", r#"'a=>1, "b c"=>NULL'"#, "other", r#""\"a\"=>\"1\", \"b c\"=>NULL""#),
        ("citext", "'MiXed'", "string", r#""MiXed""#),
        ("ltree", "'Top.Science'", "other", r#""Top.Science""#),
    ];
    let there =
        |name: &str| server.sql(&database, &format!("SELECT count(*) FROM pg_available_extensions WHERE name = '{name}'")) == "1";
    let (found, missing): (Vec<_>, Vec<_>) = all.into_iter().partition(|(name, ..)| there(name));
    eprintln!("extensions this server lacks: {:?}", missing.iter().map(|row| row.0).collect::<Vec<_>>());
    server.sql(&database, "CREATE TABLE public.t (id int PRIMARY KEY)");
    for (name, ..) in &found {
        server.sql(&database, &format!("CREATE EXTENSION {name} SCHEMA public"));
        server.sql(&database, &format!("ALTER TABLE public.t ADD {name}_column public.{name}"));
    }
    let connector = connector(&server.url(&database), json!({}));
    let start = begin(connector.as_ref()).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    let values: String = found.iter().map(|row| format!(", {}", row.1)).collect();
    server.sql(&database, &format!("INSERT INTO public.t VALUES (1{values})"));
    let batch = next(source.as_mut()).await.unwrap();
    let (schema, row) = (&batch.schemas()[0], batch.changes()[0].after.unwrap());
    for (at, (name, _, logical, json)) in found.iter().enumerate() {
        let column = &schema.columns[at + 1];
        assert!(column.source_type.ends_with(name), "{}", column.source_type);
        assert_eq!(column.r#type.name(), *logical, "{name}");
        assert_eq!(to_json(&column.r#type, batch.value(row, at + 1)), *json, "{name}");
    }
    reads_as_streamed(connector.as_ref(), "public.t", &batch).await;
    source.close().await.unwrap();
}

/// What the schema of the first column's type says of labels.
fn labels(r#type: &Type) -> Vec<&str> {
    match r#type {
        Type::Enum { labels } => labels.iter().map(String::as_str).collect(),
        Type::Array(element) => labels(element),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_added_and_renamed_in_mid_stream_flow_under_a_schema_that_has_them() {
    for (column, wrap) in [("public.mood", ["", ""]), ("public.mood[]", ["[\"", "\"]"]), ("public.humour", ["", ""])] {
        let (server, database) = (shared(), shared().database());
        server.sql(
            &database,
            &format!(
                "CREATE TYPE public.mood AS ENUM ('sad'); CREATE DOMAIN public.humour AS public.mood;
                 CREATE TABLE public.t (id int PRIMARY KEY, m {column})"
            ),
        );
        let connector = connector(&server.url(&database), json!({}));
        let start = begin(connector.as_ref()).await;
        let mut source = connector.open(&start.identity, &start.position).await.unwrap();
        for (id, change, label, known) in [
            (1, "SELECT 1", "sad", &["sad"][..]),
            (2, "ALTER TYPE public.mood ADD VALUE 'happy' BEFORE 'sad'", "happy", &["happy", "sad"]),
            (3, "ALTER TYPE public.mood RENAME VALUE 'sad' TO 'blue'", "blue", &["happy", "blue", "sad"]),
            (4, "SELECT 1", "happy", &["happy", "blue", "sad"]),
        ] {
            server.sql(&database, change);
            let value = if wrap[0].is_empty() { label.to_owned() } else { format!("{{{label}}}") };
            server.sql(&database, &format!("INSERT INTO public.t VALUES ({id}, '{value}')"));
            let batch = next(source.as_mut()).await.unwrap();
            assert_eq!(batch.changes().len(), 1, "taken once");
            let change = &batch.changes()[0];
            let told = match batch.value(change.after.unwrap(), 1) {
                Value::Text(text) | Value::Json(text) => text.to_owned(),
                other => panic!("{other:?}"),
            };
            assert_eq!(told, format!("{}{label}{}", wrap[0], wrap[1]));
            assert_eq!(labels(&batch.schemas()[change.schema as usize].columns[1].r#type), known, "{column} {id}");
        }
        source.close().await.unwrap();
    }
}

/// The catalogue only knows labels as they are now; a backlog carries them as they were.
#[tokio::test(flavor = "multi_thread")]
async fn labels_of_a_backlog_that_were_renamed_since_flow_each_row_once() {
    let (server, database) = (shared(), shared().database());
    server.sql(
        &database,
        "CREATE TYPE public.mood AS ENUM ('a', 'b', 'c'); CREATE TABLE public.t (id int PRIMARY KEY, m public.mood, n public.mood[])",
    );
    let connector = connector(&server.url(&database), json!({}));
    let start = begin(connector.as_ref()).await;
    server.sql(
        &database,
        "INSERT INTO public.t SELECT g, (ARRAY['a', 'b', 'c'])[1 + g % 3]::public.mood, ARRAY['a', 'b']::public.mood[] FROM generate_series(1, 90) g;
         ALTER TYPE public.mood RENAME VALUE 'a' TO 'x'; ALTER TYPE public.mood RENAME VALUE 'b' TO 'y'; INSERT INTO public.t VALUES (91, 'x', '{y}')",
    );
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    let (mut told, mut last) = (Vec::new(), Vec::new());
    while told.len() < 91 {
        let batch = next(source.as_mut()).await.unwrap();
        for change in batch.changes() {
            let row = change.after.unwrap();
            let cells = [0, 1, 2].map(|at| match batch.value(row, at) {
                Value::Text(text) | Value::Json(text) => text.to_owned(),
                other => panic!("{other:?}"),
            });
            let columns = &batch.schemas()[change.schema as usize].columns;
            last = labels(&columns[1].r#type).iter().map(|label| (*label).to_owned()).collect();
            assert!(last.contains(&cells[1]), "{cells:?} under {last:?}");
            told.push(cells.join(" "));
        }
    }
    let mut wanted: Vec<String> = (1..91).map(|id| format!("{id} {} [\"a\",\"b\"]", ["a", "b", "c"][id % 3])).collect();
    wanted.push("91 x [\"y\"]".into());
    assert_eq!(told, wanted);
    assert_eq!(last, ["x", "y", "c", "b", "a"]);
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_number_and_the_oddest_names_are_exact() {
    let (server, database) = (shared(), shared().database());
    let long = "n".repeat(63);
    server.sql(
        &database,
        &format!(r#"CREATE TABLE public."Select ""it"" 😀" (id int PRIMARY KEY, "{long}" numeric, "😀 a.b" text, "order" text)"#),
    );
    let connector = connector(&server.url(&database), json!({}));
    let start = begin(connector.as_ref()).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    let number = format!("{}.{}", "9".repeat(131_072), "1".repeat(16_383));
    server.sql(&database, &format!(r#"INSERT INTO public."Select ""it"" 😀" VALUES (1, {number}, 'x', 'y')"#));
    let batch = next(source.as_mut()).await.unwrap();
    let (schema, row) = (&batch.schemas()[0], batch.changes()[0].after.unwrap());
    assert_eq!(schema.table, "public.Select \"it\" 😀");
    let names: Vec<&str> = schema.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["id", long.as_str(), "😀 a.b", "order"]);
    assert!(batch.value(row, 1) == Value::Text(&number), "the number differs");
    assert_eq!(batch.value(row, 2), Value::Text("x"));
    reads_as_streamed(connector.as_ref(), "public.Select \"it\" 😀", &batch).await;
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_1600_columns_has_every_cell_in_its_place() {
    let (server, database) = (shared(), shared().database());
    let columns: Vec<String> = (1..1600).map(|at| format!("c{at} smallint")).collect();
    server.sql(&database, &format!("CREATE TABLE public.t (id int PRIMARY KEY, {})", columns.join(", ")));
    let connector = connector(&server.url(&database), json!({}));
    let start = begin(connector.as_ref()).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    let cells: Vec<String> = (1..1600).map(|at| if at % 7 == 0 { "NULL".into() } else { at.to_string() }).collect();
    server.sql(&database, &format!("INSERT INTO public.t VALUES (0, {})", cells.join(", ")));
    let batch = next(source.as_mut()).await.unwrap();
    let (schema, row) = (&batch.schemas()[0], batch.changes()[0].after.unwrap());
    assert_eq!(schema.columns.len(), 1600);
    for (at, value) in batch.values(row).enumerate().skip(1) {
        assert_eq!(schema.columns[at].name, format!("c{at}"));
        let text = at.to_string();
        assert_eq!(value, if at % 7 == 0 { Value::Null } else { Value::Text(&text) });
    }
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn intervals_without_end_are_the_words_of_the_server() {
    let server = Postgres::start_version(17, &[]);
    let database = server.database();
    server.sql(&database, "CREATE TABLE public.t (id int PRIMARY KEY, v interval, a interval[])");
    let connector = connector(&server.url(&database), json!({}));
    let start = begin(connector.as_ref()).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    server.sql(&database, "INSERT INTO public.t VALUES (1, 'infinity', '{-infinity,1 day}')");
    let batch = next(source.as_mut()).await.unwrap();
    let row = batch.changes()[0].after.unwrap();
    assert_eq!(batch.value(row, 1), Value::Text("infinity"));
    assert_eq!(batch.value(row, 2), Value::Json(r#"["-infinity","1 day"]"#));
    source.close().await.unwrap();
}

/// The locale `xx_XX.UTF-8`, of which no machine knows anything, in the directory `into`. It writes amounts as most of Europe does.
fn build_locale(into: &Path) {
    std::fs::create_dir(into).unwrap();
    let ascii: String = (0..128).map(|code| format!("<U{code:04X}> /x{code:02x}\n")).collect();
    let charmap = format!(
        "<code_set_name> UTF-8\n<mb_cur_min> 1\n<mb_cur_max> 6\n<escape_char> /\nCHARMAP\n{ascii}<U20AC> /xe2/x82/xac\nEND CHARMAP\n"
    );
    // The order of letters has no default that the C library would load.
    let source = "LC_COLLATE\norder_start forward\nUNDEFINED\norder_end\nEND LC_COLLATE\n\
                  LC_MONETARY\nint_curr_symbol \"EUR \"\ncurrency_symbol \"<U20AC>\"\nmon_decimal_point \",\"\nmon_thousands_sep \".\"\n\
                  mon_grouping 3;3\npositive_sign \"\"\nnegative_sign \"-\"\nint_frac_digits 2\nfrac_digits 2\np_cs_precedes 0\n\
                  p_sep_by_space 1\nn_cs_precedes 0\nn_sep_by_space 1\np_sign_posn 1\nn_sign_posn 1\nEND LC_MONETARY\n";
    let files = ["charmap", "source"].map(|name| into.join(name));
    for (file, text) in files.iter().zip([charmap.as_str(), source]) {
        std::fs::write(file, text).unwrap();
    }
    let mut command = Command::new("localedef");
    command.arg("-c").arg("-f").arg(&files[0]).arg("-i").arg(&files[1]).arg(into.join("xx_XX.UTF-8"));
    // Its status is bad because the other categories are left out; those are then as in C.
    let output = command.output().expect("no localedef to make a locale with: install it (Debian: apt-get install libc-bin)");
    let made = into.join("xx_XX.UTF-8/LC_MONETARY").exists();
    assert!(made, "no locale was made: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn money_is_written_by_the_c_locale_under_a_foreign_lc_monetary() {
    let server = Postgres::start_with(&[], "", |data| {
        build_locale(&data.join("locale"));
        "lc_monetary = 'xx_XX.UTF-8'\n".to_owned()
    });
    let database = server.database();
    server.sql("postgres", &format!("ALTER DATABASE {database} SET lc_monetary = 'xx_XX.UTF-8'"));
    server.sql(&database, "CREATE TABLE public.t (id int PRIMARY KEY, v money, a money[])");
    let connector = connector(&server.url(&database), json!({}));
    let start = begin(connector.as_ref()).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    server.sql(&database, "INSERT INTO public.t VALUES (1, '1234,5', '{-1234567,NULL}'), (2, '-0,01', '{}')");
    let plain = server.sql(&database, "SELECT v, a FROM public.t WHERE id = 1");
    assert_eq!(plain, "1.234,50 €|{\"-1.234.567,00 €\",NULL}", "the server's own locale is another");
    let batch = next(source.as_mut()).await.unwrap();
    let rows: Vec<_> = batch.changes().iter().map(|change| change.after.unwrap()).collect();
    assert_eq!(batch.value(rows[0], 1), Value::Text("$1,234.50"));
    assert_eq!(batch.value(rows[0], 2), Value::Json(r#"["-$1,234,567.00",null]"#));
    assert_eq!(batch.value(rows[1], 1), Value::Text("-$0.01"));
    reads_as_streamed(connector.as_ref(), "public.t", &batch).await;
    source.close().await.unwrap();
}
