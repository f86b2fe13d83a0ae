//! Logical messages as events.

use serde_json::json;

use super::{ops, publish, shop};
use crate::support::{daemon::Home, postgres::Postgres};

#[test]
fn messages_are_events_of_a_topic_of_their_own() {
    let server = Postgres::shared();
    let database = server.database();
    let home = shop(&database, "      messages: [ \"order.*\" ]\n");
    publish(
        &home,
        &database,
        &[
            "BEGIN; INSERT INTO public.orders VALUES (1); SELECT pg_logical_emit_message(true, 'order.new', 'hello');
             SELECT pg_logical_emit_message(true, 'other', 'hello'); COMMIT",
            "BEGIN; SELECT pg_logical_emit_message(false, 'order.tried', '\\x00ff'::bytea); ROLLBACK;
             INSERT INTO public.orders VALUES (2)",
        ],
    );
    let (orders, messages) = (home.tail("shop.orders"), home.tail("shop.message"));
    assert_eq!(ops(&messages), [("c", r#"{"prefix":"order.new"}"#), ("c", r#"{"prefix":"order.tried"}"#)]);
    let values: Vec<_> = messages.iter().map(|record| record.value.clone()).collect();
    assert_eq!(values[0], Some(json!({ "prefix": "order.new", "content": "aGVsbG8=", "transactional": true })));
    assert_eq!(values[1], Some(json!({ "prefix": "order.tried", "content": "AP8=", "transactional": false })));
    assert_eq!(messages[0].header("hw.tx"), orders[0].header("hw.tx"));
    assert_eq!(messages[0].timestamp, orders[0].timestamp);
    assert!(messages[1].header("hw.tx").starts_with("message@"), "{:?}", messages[1]);
    let schema =
        home.tail("headwater.shop.schema").into_iter().find(|record| record.key.contains(messages[0].header("hw.schema")));
    let schema = schema.expect("a schema record").value.expect("a schema");
    assert_eq!(
        (&schema["table"], &schema["entity"], &schema["key"]),
        (&json!("hw.message"), &json!("message"), &json!(["prefix"]))
    );
}

#[test]
fn messages_come_once_however_often_the_daemon_dies() {
    let server = Postgres::shared();
    let database = server.database();
    let home = shop(&database, "      messages: \"*\"\n");
    publish(&home, &database, &[]);
    let emit = |life: u32, at: u32, transactional: bool| {
        let key = life * 10 + at;
        database.sql(&format!("SELECT pg_logical_emit_message({transactional}, 'm{key:02}', '')"));
    };
    for life in 0..4 {
        emit(life, 0, false);
        emit(life, 1, true);
        let mut daemon = home.start();
        daemon.wait_state("shop", "streaming");
        emit(life, 2, true);
        emit(life, 3, false);
        // A message outside of transactions waits for a commit, or for the server's own time, to be on its disk.
        emit(life, 4, true);
        daemon.wait_caught_up("shop");
        daemon.kill9();
    }
    let expected: Vec<String> = (0..4).flat_map(|life| (0..5).map(move |at| format!(r#"{{"prefix":"m{life}{at}"}}"#))).collect();
    assert_eq!(keys(&home), expected);
}

fn keys(home: &Home) -> Vec<String> {
    home.tail("shop.message").into_iter().map(|record| record.key).collect()
}
