//! Events that only some settings and some statements bring.

use headwater_connector::{Batch, Identity, Kind, Limits, SourceConnector, Start};
use serde_json::json;

use crate::support::{Flavour, Reader, Server, on_both, shared, start};

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

/// Statements of an XA transaction up to its PREPARE, in one session.
fn prepared(database: &str, name: &str, sql: &str) -> String {
    format!("USE {database};\nXA START '{name}{database}';\n{sql};\nXA END '{name}{database}';\nXA PREPARE '{name}{database}'")
}

/// M18: what is prepared becomes events at its commit and not before, wherever the connector or the server was restarted between.
async fn a_prepared_transaction_happens_at_its_commit(flavour: Flavour) {
    let server = Server::start(flavour, &["--max-binlog-size=4096"]);
    let database = server.database();
    server.sql(&format!(
        "USE {database};\nCREATE TABLE items (id int PRIMARY KEY, name text);\nCREATE TABLE others (id int PRIMARY KEY);\nCREATE TABLE more (id int PRIMARY KEY)"
    ));
    let tables = json!({ "tables": [format!("{database}.items"), format!("{database}.more")] });
    let connector = server.connector(&database, tables);
    let mut at = start(&*connector).await;
    let steps: [(String, &[&str]); 9] = [
        (
            prepared(
                &database,
                "a",
                "INSERT INTO items VALUES (1, 'a'), (2, 'b');\nINSERT INTO others VALUES (1), (2);\nUPDATE items SET name = 'c' WHERE id = 1",
            ),
            &[],
        ),
        (format!("INSERT INTO {database}.more VALUES (1)"), &["Insert more 1"]),
        (prepared(&database, "b", "INSERT INTO items VALUES (3, 'never')"), &[]),
        (prepared(&database, "c", "INSERT INTO more VALUES (4)"), &[]),
        (format!("XA ROLLBACK 'b{database}';\nFLUSH BINARY LOGS;\nINSERT INTO {database}.others VALUES (5)"), &[]),
        (
            format!("XA COMMIT 'a{database}';\nINSERT INTO {database}.more VALUES (2)"),
            &["Insert items 1,a", "Insert items 2,b", "Update items 1,c", "Insert more 2"],
        ),
        (prepared(&database, "d", "INSERT INTO others VALUES (7)"), &[]),
        (format!("XA COMMIT 'd{database}';\nXA COMMIT 'c{database}'"), &["Insert more 4"]),
        (
            format!("USE {database};\nXA START 'e';\nINSERT INTO items VALUES (9, 'i');\nXA END 'e';\nXA COMMIT 'e' ONE PHASE"),
            &["Insert items 9,i"],
        ),
    ];
    let first = at.clone();
    let mut all = Vec::new();
    for (step, (sql, lines)) in steps.iter().enumerate() {
        server.sql(sql);
        if step == 4 {
            server.crash_and_restart();
        }
        // The position of an empty batch comes late, so whatever is of interest comes again from the last one that was written.
        let mut reader = Reader::open(&*connector, &at).await;
        assert_eq!(reader.read(lines.len()).await, *lines, "step {step}");
        all.extend(lines.iter().map(ToString::to_string));
        at.position = reader.position.clone();
    }
    let mut whole = Reader::open(&*connector, &first).await;
    assert_eq!(*whole.read(all.len()).await, all, "in one go");
    let mut end = Reader::open(&*connector, &at).await;
    server.sql(&format!("INSERT INTO {database}.more VALUES (99)"));
    assert_eq!(end.read(1).await, ["Insert more 99"], "nothing comes twice");
}

/// A large one is cut where it is published, and goes on behind the cut.
async fn a_prepared_transaction_is_cut_where_it_is_committed(flavour: Flavour) {
    // Of its own: a connector that starts before the commit rightly stops.
    let server = Server::start(flavour, &[]);
    let database = server.database();
    server.sql(&format!("USE {database};\nCREATE TABLE items (id int PRIMARY KEY);\nCREATE TABLE others (id int PRIMARY KEY)"));
    let connector = server.connector(&database, json!({ "tables": format!("{database}.items") }));
    let mut at = start(&*connector).await;
    let rows = |from: i32| (from..from + 500).map(|id| format!("({id})")).collect::<Vec<_>>().join(",");
    let sql = format!(
        "INSERT INTO items VALUES {};\nINSERT INTO others VALUES {};\nINSERT INTO items VALUES {}",
        rows(0),
        rows(0),
        rows(500)
    );
    // One that stays prepared is sent again before the one that was cut.
    server.sql(&prepared(&database, "w", "INSERT INTO items VALUES (5000)"));
    server.sql(&prepared(&database, "x", &sql));
    server.sql(&format!("XA COMMIT 'x{database}';\nXA ROLLBACK 'w{database}'"));
    let limits = Limits { max_changes: 70, ..Limits::default() };
    let mut ids = Vec::new();
    while ids.len() < 1000 {
        let mut source = connector.open(&at.identity, &at.position).await.unwrap_or_else(|error| panic!("{error}"));
        let mut batch = Batch::default();
        source.next_batch(&mut batch, &limits).await.unwrap_or_else(|error| panic!("{error}"));
        assert!(batch.changes().len() <= 71, "{}", batch.changes().len());
        ids.extend(batch.changes().iter().map(|change| crate::support::show(batch.value(change.after.expect("a row"), 0))));
        if let Some(position) = batch.position() {
            at.position = position.clone();
        }
    }
    assert_eq!(ids, (0..1000).map(|id| id.to_string()).collect::<Vec<_>>());
}

/// What was prepared before the start is not known here.
async fn the_commit_of_what_was_prepared_before_the_start_stops(flavour: Flavour) {
    // Of its own: a connector that starts before the commit rightly stops.
    let server = Server::start(flavour, &[]);
    let database = server.database();
    server.sql(&format!("CREATE TABLE {database}.items (id int PRIMARY KEY)"));
    for end in ["ROLLBACK", "COMMIT"] {
        server.sql(&prepared(&database, end, "INSERT INTO items VALUES (1)"));
        let connector = server.connector(&database, json!({}));
        let first = start(&*connector).await;
        let mut reader = Reader::open(&*connector, &first).await;
        server.sql(&format!("XA {end} '{end}{database}';\nINSERT INTO {database}.items VALUES (2)"));
        if end == "ROLLBACK" {
            assert_eq!(reader.read(1).await, ["Insert items 2"]);
            server.sql(&format!("DELETE FROM {database}.items"));
        } else {
            let error = reader.stops().await;
            assert_eq!((error.code().id, error.kind()), ("HW3026", Kind::Environment), "{error}");
            assert!(reader.lines.is_empty(), "{:?}", reader.lines);
        }
    }
}

/// Opens and reads a little; the code of the error that refuses it.
async fn refused(connector: &dyn SourceConnector, at: &Start) -> &'static str {
    match connector.open(&at.identity, &at.position).await {
        Err(error) => error.code().id,
        Ok(source) => Reader { source, lines: Vec::new(), position: at.position.clone() }.stops().await.code().id,
    }
}

/// M16: two servers can have transactions of the same names. MariaDB has no uuid to tell them apart; where and when they were written has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_mariadb_with_the_same_names_is_refused() {
    let servers = [Server::start(Flavour::Mariadb, &[]), Server::start(Flavour::Mariadb, &[])];
    let sql = |statements: [&str; 2]| servers.iter().zip(statements).for_each(|(server, sql)| drop(server.sql(sql)));
    sql(["CREATE DATABASE shop;\nCREATE TABLE shop.items (id int PRIMARY KEY, name text)"; 2]);
    let [ours, other] = [0, 1].map(|at: usize| servers[at].connector("shop", json!({})));
    let mut at = start(&*ours).await;
    let mut reader = Reader::open(&*ours, &at).await;
    sql(["INSERT INTO shop.items VALUES (1, 'a')"; 2]);
    reader.read(1).await;
    at.position = reader.position.clone();
    // In the other's file the same transaction ends at the same place.
    let place = "SHOW MASTER STATUS";
    assert_eq!(servers[0].sql(place), servers[1].sql(place));
    assert_eq!(refused(&*other, &at).await, "HW3012");
    // And here at another.
    sql(["INSERT INTO shop.items VALUES (2, 'b')", "INSERT INTO shop.items VALUES (2, 'a longer name')"]);
    reader.read(2).await;
    at.position = reader.position.clone();
    drop(reader);
    assert_eq!(refused(&*other, &at).await, "HW3012");
    servers[0].crash_and_restart();
    sql(["INSERT INTO shop.items VALUES (3, 'c')"; 2]);
    let mut again = Reader::open(&*ours, &at).await;
    assert_eq!(again.read(1).await, ["Insert items 3,c"], "the same server after a crash");
    // An operator can say that the other took its place.
    let survey = other.survey(Some(&at.identity), Some(&at.position)).await.expect("an answer");
    at.identity = survey.rebind.expect("it has everything");
    for _ in 0..2 {
        let mut taken = Reader::open(&*other, &at).await;
        assert_eq!(taken.read(1).await, ["Insert items 3,c"]);
        at.identity = taken.source.identity().expect("who it is").clone();
    }
    let mut taken = Reader::open(&*other, &at).await;
    taken.read(1).await;
    at = Start {
        identity: taken.source.identity().cloned().unwrap_or_else(|| Identity::from([("", "")])),
        position: taken.position,
    };
    assert_eq!(refused(&*ours, &at).await, "HW3012", "from then on it is the other that counts");
}

/// M26: every domain counts, one that is silent and one that is new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_domain_is_read_once() {
    let server = Server::start(Flavour::Mariadb, &[]);
    let insert = |domain: u32, id: u32| {
        server.sql(&format!("SET gtid_domain_id = {domain};\nINSERT INTO shop.items VALUES ({id})"));
        format!("Insert items {id}")
    };
    server.sql("CREATE DATABASE shop;\nCREATE TABLE shop.items (id int PRIMARY KEY)");
    insert(7, 1);
    insert(3, 2);
    let connector = server.connector("shop", json!({}));
    let mut at = start(&*connector).await;
    for domain in ["0-1-", "3-1-1", "7-1-1"] {
        assert!(at.position.as_str().contains(domain), "{}", at.position);
    }
    for (round, domains) in [vec![3, 0, 3], vec![5, 3], vec![7, 5, 0], vec![0]].into_iter().enumerate() {
        let mut reader = Reader::open(&*connector, &at).await;
        let wanted: Vec<String> = (10..).zip(domains).map(|(id, domain)| insert(domain, 10 * round as u32 + id)).collect();
        assert_eq!(*reader.read(wanted.len()).await, wanted);
        at.position = reader.position.clone();
        drop(reader);
        server.sql("FLUSH BINARY LOGS");
    }
    // Without the strict mode a session can go back, and nobody can say then what is published.
    server.sql("SET GLOBAL gtid_strict_mode = OFF");
    let mut reader = Reader::open(&*connector, &at).await;
    server.sql("SET gtid_domain_id = 3, gtid_seq_no = 2;\nINSERT INTO shop.items VALUES (99)");
    assert_eq!(reader.stops().await.code().id, "HW3016");
}

/// M26: what is prepared is sent again after a restart, with what is published behind it. What goes back later is none of that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_that_goes_back_behind_what_was_sent_again_stops() {
    let server = Server::start(Flavour::Mariadb, &[]);
    server.sql("CREATE DATABASE shop;\nCREATE TABLE shop.items (id int PRIMARY KEY)");
    let connector = server.connector("shop", json!({}));
    let mut at = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &at).await;
    server.sql("USE shop;\nXA START 'x';\nINSERT INTO items VALUES (50);\nXA END 'x';\nXA PREPARE 'x'");
    server.sql("INSERT INTO shop.items VALUES (1)");
    reader.read(1).await;
    at.position = reader.position.clone();
    assert!(at.position.as_str().contains('|'), "it says from where on to read again: {}", at.position);
    drop(reader);
    let mut reader = Reader::open(&*connector, &at).await;
    server.sql("INSERT INTO shop.items VALUES (2)");
    reader.read(1).await;
    server.sql("SET GLOBAL gtid_strict_mode = OFF");
    server.sql("SET gtid_seq_no = 2;\nINSERT INTO shop.items VALUES (99)");
    assert_eq!(reader.stops().await.code().id, "HW3016");
}

/// M16, M17: without GTIDs a position is a place in the files of one server, and stays one when they are switched on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_gtids_the_files_of_one_server_are_read() {
    let server = Server::start(Flavour::Mysql, &["--gtid-mode=OFF", "--enforce-gtid-consistency=OFF", "--max-binlog-size=4096"]);
    server.sql("CREATE DATABASE shop;\nCREATE TABLE shop.items (id int PRIMARY KEY, name text)");
    let connector = server.connector("shop", json!({}));
    let mut at = start(&*connector).await;
    let first = at.clone();
    // Places are good for one server only.
    let mut elsewhere = at.clone();
    elsewhere.identity.0.insert("server_uuid".to_owned(), "3e11fa47-71ca-11e1-9e33-c80aa9429562".to_owned());
    assert_eq!(connector.verify(&elsewhere.identity).await.expect_err("another server").code().id, "HW3012");
    assert_eq!(refused(&*connector, &elsewhere).await, "HW3012");
    let insert = |id: u32| {
        server.sql(&format!("USE shop;\nBEGIN;\nINSERT INTO items VALUES ({id}, repeat('a', 3000)), ({id} + 1, 'b');\nUPDATE items SET name = 'c' WHERE id = {id};\nCOMMIT"))
    };
    let mut all = Vec::new();
    let steps = [
        "SELECT 1",
        "SET GLOBAL enforce_gtid_consistency = ON;\nSET GLOBAL gtid_mode = OFF_PERMISSIVE",
        "FLUSH BINARY LOGS",
        "SET GLOBAL gtid_mode = ON_PERMISSIVE",
        "SELECT 2",
    ];
    for (step, sql) in steps.into_iter().enumerate() {
        server.sql(sql);
        insert(10 * step as u32);
        let mut reader = Reader::open(&*connector, &at).await;
        all.extend_from_slice(reader.read(3).await);
        at.position = reader.position.clone();
    }
    // Cut after every row, and in one go.
    let limits = Limits { max_changes: 1, ..Limits::default() };
    let (mut cut, mut count) = (first.clone(), 0);
    while count < all.len() {
        let mut source = connector.open(&cut.identity, &cut.position).await.unwrap_or_else(|error| panic!("{error}"));
        let mut batch = Batch::default();
        source.next_batch(&mut batch, &limits).await.unwrap_or_else(|error| panic!("{error}"));
        count += batch.changes().len();
        cut.position = batch.position().cloned().unwrap_or(cut.position);
    }
    assert_eq!(count, all.len());
    assert_eq!(*Reader::open(&*connector, &first).await.read(all.len()).await, all);
    // It starts with GTIDs on, and does not send what has none any more.
    server.crash_and_restart();
    insert(90);
    let mut reader = Reader::open(&*connector, &at).await;
    all.extend_from_slice(reader.read(3).await);
    at.position = reader.position.clone();
    assert_eq!(reader.source.monitor().lag_bytes(&at.position).await.expect("an answer"), 0);
    assert_eq!(refused(&*connector, &first).await, "HW3041");
    // Files that are gone, and files that never were.
    server.sql("FLUSH BINARY LOGS");
    server.sql(&format!("PURGE BINARY LOGS TO '{}'", server.binlog()));
    assert_eq!(refused(&*connector, &first).await, "HW3013");
    server.reset_binlog();
    assert_eq!(refused(&*connector, &at).await, "HW3046");
}

/// M17: a position that is made of names does not go on without them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gtids_that_are_switched_off_stop() {
    let server = Server::start(Flavour::Mysql, &[]);
    server.sql("CREATE DATABASE shop;\nCREATE TABLE shop.items (id int PRIMARY KEY)");
    let connector = server.connector("shop", json!({}));
    let at = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &at).await;
    server.sql("INSERT INTO shop.items VALUES (1);\nSET GLOBAL gtid_mode = ON_PERMISSIVE;\nSET GLOBAL gtid_mode = OFF_PERMISSIVE;\nINSERT INTO shop.items VALUES (2)");
    let error = reader.stops().await;
    assert_eq!((error.code().id, error.kind()), ("HW3041", Kind::Environment), "{error}");
    assert_eq!(reader.lines, ["Insert items 1"]);
    assert_eq!(refused(&*connector, &at).await, "HW3041");
}

/// Reads on until the findings are these, as pairs of code and table.
pub async fn finds(reader: &mut Reader, wanted: &[(&str, &str)]) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        reader.batch().await.unwrap_or_else(|error| panic!("{error}"));
        let found = reader.source.monitor().findings();
        let pairs: Vec<(&str, &str)> = found
            .iter()
            .map(|error| {
                (
                    error.code().id,
                    error.place().iter().find(|(label, _)| *label == "table").map_or("", |(_, table)| table.as_str()),
                )
            })
            .collect();
        if pairs == wanted {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{found:?}");
    }
}

/// M23: InnoDB changes rows of the child and says nothing; MariaDB says that the child was opened, MySQL not even that.
async fn a_cascade_that_left_no_trace_is_told_of(flavour: Flavour) {
    let server = Server::start(flavour, &[]);
    let database = server.database();
    server.sql(&format!(
        "USE {database};\nCREATE TABLE items (id int PRIMARY KEY);\n\
         CREATE TABLE other (id int PRIMARY KEY);\n\
         CREATE TABLE below (id int PRIMARY KEY, item int, FOREIGN KEY (item) REFERENCES other (id) ON DELETE SET NULL);\n\
         CREATE TABLE plain (id int PRIMARY KEY, item int, FOREIGN KEY (item) REFERENCES items (id));\n\
         CREATE TABLE child (id int PRIMARY KEY, item int, FOREIGN KEY (item) REFERENCES items (id) ON DELETE CASCADE);\n\
         INSERT INTO items VALUES (1), (2);\nINSERT INTO other VALUES (1);\nINSERT INTO child VALUES (1, 1);\n\
         INSERT INTO below VALUES (1, 1)"
    ));
    let connector = server.connector(&database, json!({ "accept_cascades": true }));
    let first = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &first).await;
    server.sql(&format!(
        "USE {database};\nINSERT INTO items VALUES (3);\nINSERT INTO child VALUES (3, 3);\nUPDATE child SET item = 2 WHERE id = 3"
    ));
    reader.read(3).await;
    finds(&mut reader, &[]).await;
    server.sql(&format!("USE {database};\nDELETE FROM items WHERE id = 1"));
    assert_eq!(server.sql(&format!("SELECT count(*) FROM {database}.child WHERE item = 1")), "0");
    if server.logs_cascades() {
        let mut last = reader.read(5).await[3..].to_vec();
        last.sort();
        assert_eq!(last, ["Delete child 1,1", "Delete items 1"]);
        return finds(&mut reader, &[]).await;
    }
    assert_eq!(reader.read(4).await[3], "Delete items 1", "the child's row is gone without an event");
    let [child, below] = ["child", "below"].map(|table| format!("{database}.{table}"));
    finds(&mut reader, &[("HW3035", &child)]).await;
    // The session that was asked is gone by the next time, and that the server does not answer at once must not hide anything.
    for id in server.sql("SELECT id FROM information_schema.processlist WHERE command = 'Sleep'").lines() {
        drop(server.try_sql(&format!("KILL {id}")));
    }
    server.sql(&format!("DELETE FROM {database}.other"));
    finds(&mut reader, &[("HW3035", &below), ("HW3035", &child)]).await;
    // Nor does another stream: what was not told in the binlog is missing until somebody mends it.
    let at = Start { identity: first.identity, position: reader.position.clone() };
    drop(reader);
    let mut reader = Reader::open(&*connector, &at).await;
    finds(&mut reader, &[("HW3035", &below), ("HW3035", &child)]).await;
}

/// A table that was dropped is told of until it has rows again.
async fn a_dropped_table_is_told_of(flavour: Flavour) {
    let server = shared(flavour);
    let database = server.database();
    let create = |table: &str| server.sql(&format!("CREATE TABLE {database}.{table} (id int PRIMARY KEY)"));
    ["a", "b", "c"].iter().for_each(|table| drop(create(table)));
    let connector = server.connector(&database, json!({ "tables": [format!("{database}.a"), format!("{database}.b")] }));
    let first = start(&*connector).await;
    let mut reader = Reader::open(&*connector, &first).await;
    server.sql(&format!("USE {database};\nINSERT INTO a VALUES (1);\nINSERT INTO b VALUES (1);\nDROP TABLE c, a"));
    reader.read(2).await;
    let [a, b] = ["a", "b"].map(|table| format!("{database}.{table}"));
    finds(&mut reader, &[("HW3042", &a)]).await;
    create("a");
    server.sql(&format!("INSERT INTO {a} VALUES (2)"));
    reader.read(3).await;
    finds(&mut reader, &[]).await;
    server.sql(&format!("DROP DATABASE {database}"));
    finds(&mut reader, &[("HW3042", &a), ("HW3042", &b)]).await;
}

on_both! {
    a_cascade_that_left_no_trace_is_told_of
    a_dropped_table_is_told_of
    a_prepared_transaction_happens_at_its_commit
    a_prepared_transaction_is_cut_where_it_is_committed
    the_commit_of_what_was_prepared_before_the_start_stops
}
