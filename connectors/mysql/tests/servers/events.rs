//! Events that only some settings and some statements bring.

use serde_json::json;

use crate::support::{Flavour, Reader, shared, start};

/// M8: a document behind an update is, byte for byte, the one that comes where the server writes it whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partial_documents_are_whole_documents() {
    let server = shared(Flavour::Mysql);
    let database = server.database();
    for table in ["partly", "whole", "others"] {
        server.sql(&format!("CREATE TABLE {database}.{table} (id int PRIMARY KEY, a json, n int, j json, k json)"));
    }
    let connector = server.connector(&database, json!({ "tables": [format!("{database}.partly"), format!("{database}.whole")] }));
    let first = start(&*connector).await;
    let long = "concat(repeat('x', 300), 'é\"')";
    let document = format!(
        "json_object('a', {long}, 'b', 1, 'l', json_array(1, 2, {long}), 'o', json_object('p', 1, 'qq', {long}), 'm', cast('12:00' as time))"
    );
    let statements = [
        format!("INSERT INTO T VALUES (1, NULL, 1, {document}, json_array('k', {long})), (2, 'null', 2, {document}, '[0]')"),
        "UPDATE T SET j = json_set(j, '$.b', 2)".to_owned(),
        "UPDATE T SET j = json_replace(j, '$.l[1]', json_object('x', 1, 'a long name', json_array(1.5, 99999999999999999999)))".to_owned(),
        r#"UPDATE T SET j = json_set(j, '$."odd \\" name"', 'é', '$.l[7]', true, '$.l[last]', NULL, '$.o.zz', cast('2024-02-29' as date))"#.to_owned(),
        "UPDATE T SET j = json_remove(j, '$.l[0]', '$.o.p'), n = 5".to_owned(),
        "UPDATE T SET j = json_set(j, '$.o.q', cast(18446744073709551615 as unsigned)), k = json_set(k, '$[0]', 'other')".to_owned(),
        "UPDATE T SET j = json_replace(j, '$.m', cast(1.50 as decimal(5, 2)), '$.l[0]', 1e300)".to_owned(),
        "UPDATE T SET a = '[1]', n = 6".to_owned(),
        "UPDATE T SET k = NULL, j = json_replace(j, '$.l', json_array())".to_owned(),
        "UPDATE T SET n = NULL, k = '{}' WHERE id = 2".to_owned(),
    ];
    for (table, option) in [("partly", "PARTIAL_JSON"), ("others", "PARTIAL_JSON"), ("whole", "")] {
        let statements: Vec<String> = statements.iter().map(|sql| sql.replacen(" T ", &format!(" {table} "), 1)).collect();
        server.sql(&format!(
            "USE {database};\nSET binlog_row_value_options = '{option}';\nBEGIN;\n{};\nCOMMIT",
            statements.join(";\n")
        ));
    }
    let events = server.sql(&format!("SHOW BINLOG EVENTS IN '{}'", server.binlog()));
    assert!(events.matches("Update_rows_partial").count() >= 2 * 7, "the server wrote differences:\n{events:.4000}");
    let mut reader = Reader::open(&*connector, &first).await;
    let rows = 2 * (statements.len() - 1) + 1;
    let lines = reader.read(2 * rows).await;
    for (partly, whole) in lines[..rows].iter().zip(&lines[rows..]) {
        assert_eq!(partly.replacen("partly", "whole", 1), *whole);
    }
}
