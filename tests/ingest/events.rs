//! What one change looks like as an event.

use serde_json::json;

use super::{ORDERS, events, ops, publish, shop};
use crate::support::{daemon::Home, postgres::Postgres};

const INSERT: &str = "INSERT INTO public.orders VALUES (1, 'new', 12.50, 'text')";

#[test]
fn insert_update_and_delete_are_the_rows_and_a_tombstone() {
    let records = events(
        "",
        &[
            INSERT,
            "UPDATE public.orders SET status = 'paid', total = 13 WHERE id = 1",
            "UPDATE public.orders SET status = NULL WHERE id = 1",
            "DELETE FROM public.orders WHERE id = 1",
        ],
    );
    assert_eq!(ops(&records), [("c", r#"{"id":1}"#), ("u", r#"{"id":1}"#), ("u", r#"{"id":1}"#), ("d", r#"{"id":1}"#)]);
    let values: Vec<_> = records.iter().map(|record| record.value.clone()).collect();
    // A decimal is its exact text, with its scale; null is null and not absent.
    assert_eq!(values[0], Some(json!({ "id": 1, "status": "new", "total": "12.50", "body": "text" })));
    assert_eq!(values[1], Some(json!({ "id": 1, "status": "paid", "total": "13.00", "body": "text" })));
    assert_eq!(values[2], Some(json!({ "id": 1, "status": null, "total": "13.00", "body": "text" })));
    assert_eq!(values[3], None);
    assert_eq!(records.iter().map(|record| record.offset).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
fn a_changed_key_is_a_tombstone_and_then_the_whole_row() {
    let records = events("", &[INSERT, "UPDATE public.orders SET id = 2 WHERE id = 1"]);
    assert_eq!(ops(&records), [("c", r#"{"id":1}"#), ("d", r#"{"id":1}"#), ("c", r#"{"id":2}"#)]);
    assert_eq!(records[1].value, None);
    assert_eq!(records[2].value, Some(json!({ "id": 2, "status": "new", "total": "12.50", "body": "text" })));
    assert_eq!(records[1].header("hw.tx"), records[2].header("hw.tx"));
    let (one, two) = (records[1].pos().expect("a pos"), records[2].pos().expect("a pos"));
    assert_eq!((one.0, one.1), (two.0, two.1), "both are in one log transaction");
}

#[test]
fn keys_that_swap_end_where_the_source_ends() {
    let records = events(
        "",
        &[
            "INSERT INTO public.orders VALUES (1, 'a'), (2, 'b')",
            "UPDATE public.orders SET id = 3 WHERE id = 1;
             UPDATE public.orders SET id = 1 WHERE id = 2;
             UPDATE public.orders SET id = 2 WHERE id = 3",
        ],
    );
    let last = |key: &str| records.iter().rfind(|record| record.key == key).expect("an event of the key");
    assert_eq!(last(r#"{"id":1}"#).column("status"), Some(&json!("b")));
    assert_eq!(last(r#"{"id":2}"#).column("status"), Some(&json!("a")));
    assert_eq!(last(r#"{"id":3}"#).value, None);
}

const LARGE: &str = "INSERT INTO public.orders VALUES (1, 'new', 1, repeat('0123456789', 2000))";

#[test]
fn an_unchanged_large_value_is_absent_and_named() {
    let touch = "UPDATE public.orders SET status = 'paid' WHERE id = 1";
    let records = events("      large_values: absent\n", &[LARGE, touch, "UPDATE public.orders SET body = NULL WHERE id = 1"]);
    assert_eq!(records[0].column("body"), Some(&json!("0123456789".repeat(2000))));
    assert_eq!(records[1].value, Some(json!({ "id": 1, "status": "paid", "total": "1.00" })));
    assert_eq!(records[1].absent(), ["body"]);
    // Null is a value: only what the log does not carry is absent.
    assert_eq!(records[2].column("body"), Some(&json!(null)));
    assert!(records[0].absent().is_empty() && records[2].absent().is_empty());
}

#[test]
fn a_full_identity_fills_large_values() {
    let full = "ALTER TABLE public.orders REPLICA IDENTITY FULL";
    let touch = "UPDATE public.orders SET status = 'paid' WHERE id = 1";
    let records = events("", &[full, LARGE, touch, "DELETE FROM public.orders"]);
    let body = json!("0123456789".repeat(2000));
    assert_eq!(records[1].value, Some(json!({ "id": 1, "status": "paid", "total": "1.00", "body": body })));
    assert!(records[1].absent().is_empty());
    assert_eq!((records[2].op(), records[2].key.as_str(), &records[2].value), ("d", r#"{"id":1}"#, &None));
}

#[test]
fn headers_place_every_event() {
    let records = events("", &[INSERT, "INSERT INTO public.orders VALUES (2), (3)", "DELETE FROM public.orders"]);
    let positions: Vec<&str> = records.iter().map(|record| record.header("hw.pos")).collect();
    let mut sorted = positions.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(positions, sorted, "unique, and text order is publication order");
    let width = positions[0].len();
    assert!(positions.iter().all(|position| position.len() == width), "{positions:?}");
    for record in &records {
        let names: Vec<&str> = record.headers.keys().map(String::as_str).collect();
        assert_eq!(names, ["hw.op", "hw.pos", "hw.schema", "hw.tx"], "nothing else by default");
        assert!(record.pos().is_some());
    }
    let transactions: Vec<&str> = records.iter().map(|record| record.header("hw.tx")).collect();
    assert_eq!(transactions[1], transactions[2]);
    assert_eq!(transactions[3..].iter().filter(|tx| **tx == transactions[3]).count(), 3);
    assert!(transactions[0] != transactions[1] && transactions[2] != transactions[3]);
}

#[test]
fn the_timestamp_is_the_commit_time_of_the_source() {
    let server = Postgres::shared();
    let database = server.database();
    let home = shop(&database, "");
    publish(&home, &database, &[]);
    // The server's clock, as the record shows it: milliseconds, rounded down.
    let clock =
        "SELECT to_char(date_trunc('milliseconds', clock_timestamp() AT TIME ZONE 'UTC'), 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')";
    // Committed while no daemon runs, so the time of publication is a later one.
    let mut client = database.client();
    let mut transaction = client.transaction().expect("a transaction");
    transaction.batch_execute(INSERT).expect("an insert");
    let before = database.value(clock);
    transaction.commit().expect("a commit");
    let after = database.value(clock);
    publish(&home, &database, &[]);
    let record = &home.tail("shop.orders")[0];
    assert!(before <= record.timestamp && record.timestamp <= after, "{before} {} {after}", record.timestamp);
}

#[test]
fn a_schema_travels_before_its_first_event() {
    let server = Postgres::shared();
    let database = server.database();
    let home = shop(&database, "    events: { tables: { public.orders: { entity: order, exclude: [ body ] } } }\n");
    publish(&home, &database, &[INSERT, "ALTER TABLE public.orders ADD at timestamptz", "UPDATE public.orders SET status = 'x'"]);
    let (records, schemas) = (home.tail("shop.order"), home.tail("headwater.shop.schema"));
    assert_eq!((records.len(), schemas.len()), (2, 2), "one schema before the new column and one with it");
    for (record, schema) in records.iter().zip(&schemas) {
        let id = record.header("hw.schema");
        assert_eq!(id.len(), 16);
        assert_eq!(schema.key, format!(r#"{{"schema":"{id}"}}"#));
        let value = schema.value.as_ref().expect("a schema");
        for (name, expected) in
            [("schema", id), ("connector", "shop"), ("entity", "order"), ("table", "public.orders"), ("key", r#"["id"]"#)]
        {
            let found = &value[name];
            assert_eq!(found.as_str().map_or_else(|| found.to_string(), str::to_owned), expected, "{name}");
        }
    }
    let columns = &schemas[1].value.as_ref().expect("a schema")["columns"];
    let names: Vec<_> = columns.as_array().expect("columns").iter().map(|column| column["name"].clone()).collect();
    assert_eq!(names, ["id", "status", "total", "at"]);
    assert_eq!((&columns[0]["type"], &columns[0]["nullable"]), (&json!("int32"), &json!(false)));
    assert_eq!((&columns[1]["type"], &columns[3]["type"]), (&json!("string"), &json!("timestamptz")));
    assert_eq!(columns[2]["source_type"], "numeric(10,2)");
    assert!(columns[2]["type"].to_string().contains("decimal"), "{columns}");
}

#[test]
fn columns_can_be_left_out() {
    let exclude = "    events: { tables: { public.orders: { exclude: [ body, total ] } } }\n";
    assert_eq!(events(exclude, &[INSERT])[0].value, Some(json!({ "id": 1, "status": "new" })));
    let include = "    events: { tables: { public.orders: { include: [ id, total ] } } }\n";
    let records = events(include, &[INSERT, LARGE.replace("(1,", "(2,").as_str(), "UPDATE public.orders SET status = 'x'"]);
    assert_eq!(records[0].value, Some(json!({ "id": 1, "total": "12.50" })));
    assert!(records[3].absent().is_empty(), "what is not published is not missed");
}

#[test]
fn a_key_can_be_chosen() {
    let server = Postgres::shared();
    let database = server.database();
    database.sql(
        "CREATE TABLE public.lines (id int PRIMARY KEY, shop text NOT NULL, number bigint NOT NULL, UNIQUE (shop, number));
         ALTER TABLE public.lines REPLICA IDENTITY FULL",
    );
    let home = Home::new();
    let rule = "    events: { tables: { public.lines: { key: [ number, shop ] } } }\n";
    home.shop(&database.url(), "public.lines", rule);
    let update = "UPDATE public.lines SET number = 8";
    publish(&home, &database, &["INSERT INTO public.lines VALUES (1, 'Ö \"q\"', 7)", update, "DELETE FROM public.lines"]);
    let records = home.tail("shop.lines");
    // In the order of the config, compact, and with letters as they are.
    let (seven, eight) = (r#"{"number":7,"shop":"Ö \"q\""}"#, r#"{"number":8,"shop":"Ö \"q\""}"#);
    assert_eq!(ops(&records), [("c", seven), ("d", seven), ("c", eight), ("d", eight)]);
}

#[test]
fn entities_and_topics_are_named_by_the_config() {
    let server = Postgres::shared();
    let database = server.database();
    database.sql(&format!(
        "{ORDERS} CREATE TABLE public.customer_home (id int PRIMARY KEY); CREATE TABLE public.customer_work (id int PRIMARY KEY);
         CREATE TABLE public.secret (id int PRIMARY KEY)"
    ));
    let home = Home::new();
    home.shop(
        &database.url(),
        "public.orders, \"public.customer_*\"",
        "    events:\n      topic: \"{schema}.{entity}.{version}\"\n      version: v2\n      tables:\n        \
         public.orders: { entity: order }\n        public.customer_work: { topic: \"staff.{table}\" }\n",
    );
    let statement = "INSERT INTO public.orders VALUES (1); INSERT INTO public.customer_home VALUES (2);
        INSERT INTO public.secret VALUES (3); INSERT INTO public.customer_work VALUES (4)";
    publish(&home, &database, &[statement]);
    for (topic, key) in [("public.order.v2", 1), ("public.customer_home.v2", 2), ("staff.customer_work", 4)] {
        let records = home.tail(topic);
        assert_eq!(ops(&records), [("c", format!(r#"{{"id":{key}}}"#).as_str())], "{topic}");
    }
    home.run(&["tail", "public.secret.v2", "--until-end"]).expect_code(2);
}

#[test]
fn a_truncate_stops_by_default() {
    let server = Postgres::shared();
    let database = server.database();
    let home = shop(&database, "");
    publish(&home, &database, &[INSERT]);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("TRUNCATE public.orders");
    assert_eq!(daemon.exit_code(), Some(1));
    let said = std::fs::read_to_string(home.path("stderr")).expect("what the daemon said");
    assert!(said.contains("HW2025") && said.contains("public.orders") && said.contains("on_truncate"), "{said}");
    assert_eq!(ops(&home.tail("shop.orders")), [("c", r#"{"id":1}"#)]);
    // With the other policy the connector goes on from exactly there.
    home.shop(&database.url(), "public.orders", "      on_truncate: event\n");
    publish(&home, &database, &[]);
    // A reader of the compacted topic alone must not keep the row.
    let records = home.tail("shop.orders");
    assert_eq!(ops(&records), [("c", r#"{"id":1}"#), ("t", r#"{"hw.truncate":true}"#), ("d", r#"{"id":1}"#)]);
}

#[test]
fn a_truncate_can_be_an_event_of_every_partition() {
    let more = "      on_truncate: event\n    events: { partitions: 3 }\n";
    let records = events(more, &[INSERT, "TRUNCATE public.orders", INSERT]);
    let truncates: Vec<_> = records.iter().filter(|record| record.op() == "t").collect();
    assert_eq!(truncates.iter().map(|record| record.partition).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(truncates.iter().all(|record| record.key == r#"{"hw.truncate":true}"# && record.value.is_none()));
    let rows: Vec<_> = records.iter().filter(|record| record.op() == "c").collect();
    assert_eq!(rows.len(), 2);
    let between = truncates.iter().find(|record| record.partition == rows[0].partition).expect("a truncate in the partition");
    assert!(rows[0].offset < between.offset && between.offset < rows[1].offset);
}
