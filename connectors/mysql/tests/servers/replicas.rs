//! M24: a replica as the server that is read.

use headwater_connector::{Batch, Level, SourceConnector, Start};
use serde_json::json;

use crate::{
    chunks::{chunk, whole},
    omitted::errors,
    support::{Flavour, Reader, Server, eventually, on_both, start},
};

/// A replica that writes its own binlog and works with several workers at once.
fn replica_of(primary: &Server, more: &[&str]) -> Server {
    let flavour = primary.flavour;
    let own: &[&str] = match flavour {
        Flavour::Mariadb => &["--log-slave-updates", "--slave-parallel-threads=4", "--slave-parallel-mode=aggressive"],
        Flavour::Mysql => &["--relay-log-recovery=ON"],
    };
    let server = Server::start(flavour, &[own, &["--server-id=2", "--relay-log=relay"], more].concat());
    let port = primary.port;
    server.sql(&match flavour {
        Flavour::Mariadb => format!(
            "CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {port}, MASTER_USER = 'hw', MASTER_PASSWORD = 'secret', \
             MASTER_SSL_VERIFY_SERVER_CERT = 0, MASTER_CONNECT_RETRY = 1, MASTER_USE_GTID = slave_pos;\nSTART SLAVE"
        ),
        Flavour::Mysql => format!(
            "CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_PORT = {port}, SOURCE_USER = 'hw', \
             SOURCE_PASSWORD = 'secret', SOURCE_CONNECT_RETRY = 1, SOURCE_AUTO_POSITION = 1, GET_SOURCE_PUBLIC_KEY = 1;\nSTART REPLICA"
        ),
    });
    server
}

/// Transactions from several sessions at once, each with rows of its own and one that all of them change.
fn write(primary: &Server, round: usize) -> usize {
    const SESSIONS: usize = 4;
    const EACH: usize = 15;
    std::thread::scope(|scope| {
        for session in 0..SESSIONS {
            scope.spawn(move || {
                for step in 0..EACH {
                    let id = 1 + step + EACH * (session + SESSIONS * round);
                    primary.sql(&format!(
                        "USE shop;\nBEGIN;\nINSERT INTO items VALUES ({id}, 'new'), (-{id}, 'gone');\nINSERT INTO hidden VALUES ({id});\n\
                         UPDATE items SET name = concat('after ', {id}) WHERE id = 0;\nDELETE FROM items WHERE id = -{id};\nCOMMIT"
                    ));
                }
            });
        }
    });
    SESSIONS * EACH * 4
}

fn has_all(replica: &Server, primary: &Server) -> bool {
    let sum = "SELECT count(*), sum(id), max(name) FROM shop.items";
    replica.try_sql(sum) == primary.try_sql(sum)
}

/// What `check` warns of, as text.
async fn warnings(connector: &dyn SourceConnector) -> String {
    let findings = connector.check().await.unwrap_or_else(|error| panic!("{error}"));
    let warnings = findings.iter().filter(|finding| finding.level == Level::Warning).filter_map(|finding| finding.error.as_ref());
    warnings.map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// From the replica comes what the primary wrote, once and in its order, also across a crash of the replica; and the primary goes on where
/// the replica stood.
async fn a_replica_hands_on_what_its_source_wrote_once(flavour: Flavour) {
    let primary = Server::start(flavour, &[]);
    let replica = replica_of(&primary, &["--replicate-wild-ignore-table=shop.hidden"]);
    primary.sql(
        "CREATE DATABASE shop;\nUSE shop;\nCREATE TABLE items (id int PRIMARY KEY, name text);\nCREATE TABLE hidden (id int PRIMARY KEY);\n\
         INSERT INTO items VALUES (0, 'all change it')",
    );
    eventually("the replica has the table", || has_all(&replica, &primary));
    let tables = json!({ "tables": "shop.items" });
    let [above, below] = [&primary, &replica].map(|server| server.connector("shop", tables.clone()));
    assert_eq!(errors(&*below).await, "");
    let said = warnings(&*below).await;
    assert!(said.contains("HW3044") && said.contains("replicate_wild_ignore_table"), "{said}");
    assert!(!warnings(&*above).await.contains("HW3044"));
    let (at_primary, mut at) = (start(&*above).await, start(&*below).await);
    let mut whole_of = Reader::open(&*above, &at_primary).await;
    let (mut found, mut count) = (Vec::new(), 0);
    for round in 0..2 {
        count += write(&primary, round);
        let mut reader = Reader::open(&*below, &at).await;
        found.extend_from_slice(reader.read(count - found.len()).await);
        at = Start { identity: reader.source.identity().expect("who it is").clone(), position: reader.position.clone() };
        drop(reader);
        if round == 0 {
            replica.crash_and_restart();
        }
    }
    assert_eq!(whole_of.read(count).await, found, "both have the same, in the same order");
    eventually("the replica has all", || has_all(&replica, &primary));
    rows_are_read(&*below, &at, &replica).await;
    // The primary takes over. On MariaDB an operator has to say so, since the names of its transactions do not.
    if flavour == Flavour::Mariadb {
        assert_eq!(above.verify(&at.identity).await.expect_err("another server").code().id, "HW3012");
        let survey = above.survey(Some(&at.identity), Some(&at.position)).await.expect("an answer");
        at.identity = survey.rebind.expect("it has everything");
    }
    let more = write(&primary, 2);
    let mut reader = Reader::open(&*above, &at).await;
    let rest = reader.read(more).await.to_vec();
    assert_eq!(whole_of.read(count + more).await[count..], rest);
}

/// Rows of a table of the replica, while its stream is open.
async fn rows_are_read(connector: &dyn SourceConnector, at: &Start, replica: &Server) {
    let mut source = Reader::open(connector, at).await;
    let mut reader = connector.reader().await.expect("a reader");
    let mut batch = Batch::default();
    chunk(&mut *reader, &whole("shop.items"), &mut batch).await;
    assert_eq!(batch.changes().len().to_string(), replica.sql("SELECT count(*) FROM shop.items"));
    reader.close().await;
    source.batch().await.unwrap_or_else(|error| panic!("{error}"));
}

/// MariaDB does not show the state of a replica to those who may only read the binlog.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_may_only_read_the_binlog_is_told_of_a_replica() {
    let primary = Server::start(Flavour::Mariadb, &[]);
    let replica = replica_of(&primary, &["--skip-log-slave-updates", "--replicate-ignore-db=other"]);
    primary.sql(&format!("CREATE DATABASE shop;\nCREATE TABLE shop.items (id int PRIMARY KEY);\n{}", reader("BINLOG MONITOR")));
    eventually("the replica has the user", || replica.sql("SELECT count(*) FROM mysql.user WHERE User = 'reader'") == "1");
    let connector = as_reader(&replica);
    let said = errors(&*connector).await;
    assert!(said.contains("HW3043") && said.contains("log_slave_updates"), "{said}");
    let said = warnings(&*connector).await;
    assert!(said.contains("HW3044") && said.contains("replicate_ignore_db"), "{said}");
    assert_eq!(connector.prepare().await.expect_err("changes are left out").code().id, "HW3043");
}

/// A user with what is needed and no more.
fn reader(right: &str) -> String {
    format!(
        "CREATE USER reader@'%' IDENTIFIED BY 'secret';\nGRANT REPLICATION SLAVE, {right} ON *.* TO reader@'%';\n\
         GRANT SELECT ON shop.* TO reader@'%'"
    )
}

fn as_reader(server: &Server) -> Box<dyn SourceConnector> {
    server.connector("shop", json!({ "url": server.url().replace("hw:", "reader:") }))
}

/// Workers that do not wait for each other commit in an order that the source never had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_commits_in_another_order_is_refused() {
    let words = ["replica_parallel_workers", "replica_preserve_commit_order"];
    let server = Server::start(Flavour::Mysql, &["--server-id=7", &format!("--{}=OFF", words[1].replace('_', "-"))]);
    let user = reader("REPLICATION CLIENT");
    server.sql(&format!(
        "SET GLOBAL {} = 4;\nCREATE DATABASE shop;\nCREATE TABLE shop.items (id int PRIMARY KEY);\n{user}",
        words[0]
    ));
    let connector = as_reader(&server);
    assert_eq!(errors(&*connector).await, "", "it is no replica yet");
    server.sql("CHANGE REPLICATION SOURCE TO SOURCE_HOST = '127.0.0.1', SOURCE_USER = 'nobody'");
    let said = errors(&*connector).await;
    assert!(said.contains("HW3044") && said.contains("SET GLOBAL replica_preserve_commit_order = ON"), "{said}");
    assert_eq!(connector.prepare().await.expect_err("another order").code().id, "HW3044");
    server.sql(&format!("SET GLOBAL {} = 1", words[0]));
    assert_eq!(errors(&*connector).await, "", "one worker has one order");
    server.sql(&format!("SET GLOBAL {} = 4;\nSET GLOBAL {} = ON", words[0], words[1]));
    assert_eq!(errors(&*connector).await, "");
    connector.prepare().await.unwrap_or_else(|error| panic!("{error}"));
}

on_both! {
    a_replica_hands_on_what_its_source_wrote_once
}
