//! Generated columns, of which servers send none, some or what the publication says (row T18): the catalogue and the stream tell the same
//! columns, and a key or an identity that the stream lacks is refused before anything is written.

mod support;

use headwater_connector::{Kind, Level, Source, SourceConnector, Value};
use serde_json::json;
use support::{Postgres, begin, connector, is, keyed_connector, next};

const T: &str = "CREATE TABLE t (twice int GENERATED ALWAYS AS (id * 2) STORED, id int PRIMARY KEY, v text)";

async fn names(connector: &dyn SourceConnector) -> String {
    let tables = connector.tables().await.unwrap();
    tables[0].schema.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(",")
}

/// The columns of the next row and its cells.
async fn row(source: &mut dyn Source) -> (String, String) {
    let batch = next(source).await.unwrap();
    let change = &batch.changes()[0];
    let columns = &batch.schemas()[change.schema as usize].columns;
    let names = columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(",");
    let text = |value| match value {
        Value::Text(text) => text.to_owned(),
        Value::Null => "null".to_owned(),
        other => panic!("{other:?}"),
    };
    (names, batch.values(change.after.unwrap()).map(text).collect::<Vec<_>>().join(","))
}

async fn warnings(connector: &dyn SourceConnector) -> Vec<String> {
    let findings = connector.check().await.unwrap();
    let bad = findings.iter().filter(|finding| finding.level != Level::Ok);
    bad.filter_map(|finding| finding.error.as_ref()).map(|error| format!("{error} | {}", error.hint_text())).collect()
}

async fn refusal(connector: &dyn SourceConnector) -> headwater_connector::Error {
    connector.tables().await.unwrap_err().remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_send_no_generated_column_have_none_in_the_catalogue() {
    let versions = (15..18).map(|major| async move {
        let server = Postgres::start_version(major, &[]);
        let database = server.database();
        server.sql(&database, T);
        let connector = connector(&server.url(&database), json!({}));
        let start = begin(&*connector).await;
        let mut source = connector.open(&start.identity, &start.position).await.unwrap();
        server.sql(&database, "INSERT INTO t VALUES (DEFAULT, 1, 'a')");
        assert_eq!(row(&mut *source).await, ("id,v".into(), "1,a".into()), "{major}");
        assert_eq!(names(&*connector).await, "id,v", "{major}");
        let warnings = warnings(&*connector).await;
        assert!(warnings.iter().any(|text| text.contains("HW2062") && text.contains("twice")), "{major} {warnings:?}");
        // A full identity is the application's to have there.
        server.sql(&database, "ALTER TABLE t REPLICA IDENTITY FULL; UPDATE t SET v = 'b'");
        assert_eq!(row(&mut *source).await, ("id,v".into(), "1,b".into()), "{major}");
        source.close().await.unwrap();
    });
    for version in versions {
        version.await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_18_publishes_of_generated_columns_is_what_both_sides_tell() {
    let server = Postgres::start_version(18, &[]);
    let database = server.database();
    server.sql(&database, &format!("{T}; ALTER TABLE t ADD thrice int GENERATED ALWAYS AS (id * 3) VIRTUAL"));
    let connector = connector(&server.url(&database), json!({}));
    // Before there is a publication, the one that a first start creates.
    assert_eq!(names(&*connector).await, "twice,id,v");
    let start = begin(&*connector).await;
    assert_eq!(names(&*connector).await, "twice,id,v");
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    let mut id = 0;
    for (statement, columns, cells) in [
        ("SELECT 1", "twice,id,v", "2,1,a"),
        ("ALTER PUBLICATION p SET (publish_generated_columns = none)", "id,v", "2,a"),
        ("ALTER PUBLICATION p SET TABLE t (id, twice)", "twice,id", "6,3"),
        ("ALTER PUBLICATION p SET TABLE t", "id,v", "4,a"),
        ("ALTER PUBLICATION p SET (publish_generated_columns = stored)", "twice,id,v", "10,5,a"),
        ("ALTER TABLE t ADD late int GENERATED ALWAYS AS (id + 100) STORED", "twice,id,v,late", "12,6,a,106"),
        ("ALTER TABLE t ALTER late DROP EXPRESSION; UPDATE t SET late = 7 WHERE false", "twice,id,v,late", "14,7,a,null"),
    ] {
        id += 1;
        server.sql(&database, &statement.replace("PUBLICATION p", &format!("PUBLICATION hw_{database}")));
        server.sql(&database, &format!("INSERT INTO t VALUES (DEFAULT, {id}, 'a')"));
        assert_eq!(row(&mut *source).await, (columns.into(), cells.into()), "{statement}");
        assert_eq!(names(&*connector).await, columns, "{statement}");
    }
    let warnings = warnings(&*connector).await;
    assert!(warnings.iter().any(|text| text.contains("HW2062") && text.contains("columns thrice")), "{warnings:?}");
    source.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_identity_with_an_unpublished_column_is_refused_before_the_application_is() {
    let server = Postgres::start_version(18, &[]);
    let database = server.database();
    server.sql(&database, &format!("{T}; ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (DEFAULT, 1, 'a')"));
    let connector = connector(&server.url(&database), json!({}));
    // Our own publication has it, and updates pass.
    let start = begin(&*connector).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    server.sql(&database, "UPDATE t SET v = 'b'");
    assert_eq!(row(&mut *source).await, ("twice,id,v".into(), "2,1,b".into()));
    source.close().await.unwrap();
    // One that does not is refused by name, as the server refuses the application.
    server.sql(&database, &format!("ALTER PUBLICATION hw_{database} SET (publish_generated_columns = none)"));
    let told = server.try_sql(&database, "UPDATE t SET v = 'c'").unwrap_err();
    assert!(told.contains("42P10"), "{told}");
    let error = refusal(&*connector).await;
    assert!(error.to_string().contains("twice") && error.hint_text().contains("publish_generated_columns = stored"), "{error}");
    is(&error, "HW2062", Kind::Environment);
    // A virtual one cannot be published at all; nothing is created.
    let database = server.database();
    server.sql(&database, "CREATE TABLE t (id int PRIMARY KEY, n int GENERATED ALWAYS AS (id * 3) VIRTUAL)");
    server.sql(&database, "ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (1)");
    let connector = support::connector(&server.url(&database), json!({}));
    let error = refusal(&*connector).await;
    is(&error, "HW2062", Kind::Environment);
    assert!(error.hint_text().contains("REPLICA IDENTITY DEFAULT"), "{error}");
    assert_eq!(server.sql(&database, "SELECT count(*) FROM pg_publication"), "0");
    server.sql(&database, "ALTER TABLE t REPLICA IDENTITY DEFAULT");
    begin(&*connector).await;
    server.sql(&database, "UPDATE t SET id = 2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_a_generated_column_that_is_not_sent_is_refused_and_not_cut_short() {
    let server = Postgres::start_version(15, &[]);
    let keyed = |sql: &str| {
        let database = server.database();
        server.sql(&database, sql);
        (connector(&server.url(&database), json!({})), database)
    };
    let pair = "CREATE TABLE t (a int NOT NULL, b int NOT NULL GENERATED ALWAYS AS (a % 2) STORED, c int NOT NULL";
    for sql in [
        format!("{pair}, PRIMARY KEY (c, b))"),
        format!("{pair}, PRIMARY KEY (b))"),
        format!("{pair}, UNIQUE (c, b)); ALTER TABLE t REPLICA IDENTITY USING INDEX t_c_b_key"),
        format!("{pair}, PRIMARY KEY (c, b)); ALTER TABLE t REPLICA IDENTITY FULL"),
    ] {
        let (connector, _) = keyed(&sql);
        let error = refusal(&*connector).await;
        is(&error, "HW2012", Kind::Config);
        assert!(error.to_string().contains("\"b\" is generated"), "{sql}: {error}");
    }
    let database = server.database();
    server.sql(&database, &format!("{pair}, PRIMARY KEY (a))"));
    let named = keyed_connector(&server.url(&database), json!({}), &[("public.t", &["b"])]);
    let error = refusal(&*named).await;
    assert!(error.to_string().contains("generated"), "{error}");
    // In mid-stream as well.
    let (connector, database) = keyed(&format!("{pair}, PRIMARY KEY (c))"));
    let start = begin(&*connector).await;
    let mut source = connector.open(&start.identity, &start.position).await.unwrap();
    server.sql(
        &database,
        "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (c, b); INSERT INTO t (a, c) VALUES (1, 1), (2, 1)",
    );
    is(&support::next_error(&mut *source).await, "HW2012", Kind::Config);
    source.close().await.unwrap();
}
