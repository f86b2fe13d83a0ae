//! The stream against a real server: the first rows from end to end, lag, progress, stops.

mod support;

use std::time::{Duration, Instant};

use headwater_connector::{Batch, ConnectorKind, Limits, Op, Source, SourceConnector, SourceContext, Value};
use serde_json::json;
use support::shared;

fn connector(database: &str, options: serde_json::Value) -> Box<dyn SourceConnector> {
    let context = SourceContext { connector: database.into(), prefix: "hw".into(), keys: Vec::new() };
    let mut all = json!({ "url": shared().url(database), "tables": ["public.*"] });
    all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
    headwater_postgres::POSTGRES.source(&context, all).unwrap()
}

async fn next(source: &mut dyn Source) -> Batch {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut batch = Batch::default();
        source.next_batch(&mut batch, &Limits::default()).await.unwrap();
        if !batch.changes().is_empty() {
            return batch;
        }
        assert!(Instant::now() < deadline, "no change came");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_comes_through() {
    let database = shared().database();
    shared().sql(&database, "CREATE TABLE t (id int PRIMARY KEY, name text, at timestamptz(3))");
    let connector = connector(&database, json!({}));
    let intent = connector.prepare().await.unwrap();
    let start = connector.create(&intent, false).await.unwrap();
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    shared().sql(&database, "INSERT INTO t VALUES (1, 'héllo', '2026-01-02 03:04:05.5+00')");
    let batch = next(&mut *source).await;
    let change = batch.changes()[0];
    assert_eq!(change.op, Op::Insert);
    let values: Vec<Value<'_>> = batch.values(change.after.unwrap()).collect();
    assert_eq!(values, [Value::Text("1"), Value::Text("héllo"), Value::Text("2026-01-02T03:04:05.500Z")]);
    let monitor = source.monitor();
    assert!(monitor.lag_bytes(&start.position).await.unwrap() > 0);
    source.close().await.unwrap();
}
