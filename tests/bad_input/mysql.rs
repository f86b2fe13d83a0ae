//! Wrong options of a MySQL or MariaDB source (F1), and two that want the same.

use super::{refused, refuses, refuses_shop};
use crate::{
    binlog::servers::{Flavour, shared},
    support::{daemon::Home, postgres::PASSWORD},
};

/// A connector with these lines of options; nothing listens on port 1.
fn shop(options: &str) -> String {
    let lines: String = options.lines().map(|line| format!("      {line}\n")).collect();
    format!("connectors:\n  shop:\n    source:\n      kind: mysql\n{lines}")
}

const URL: &str = "url: mysql://reader@127.0.0.1:1/";
const TABLES: &str = "tables: [ shop.orders ]";
const PATH: &str = "connectors.shop.source";

#[test]
fn a_wrong_option_of_a_mysql_source_is_refused_where_it_stands() {
    for (line, code, place, what) in [
        ("serverid: 7", "HW1002", "yaml:7:7", "Did you mean server_id?"),
        ("server_id: seven", "HW1003", "yaml:7:18", "server_id"),
        ("server_id: 0", "HW1006", "yaml:7:18", "server_id"),
        ("max_event_bytes: 7", "HW1006", "yaml:7:24", "1048576"),
        ("on_truncate: stopp", "HW1005", "yaml:7:20", "Did you mean stop?"),
        ("zero_dates: nul", "HW1005", "yaml:7:19", "Did you mean null?"),
        ("accept_cascades: 1", "HW1003", "yaml:7:24", "found a number"),
        ("slot: mine", "HW1002", "yaml:7:7", "slot"),
        ("password: { env: NO_SUCH_VARIABLE_OF_A_TEST }", "HW0001", "yaml:7:17", "NO_SUCH_VARIABLE_OF_A_TEST"),
        ("password: { file: no-such-file }", "HW0001", "yaml:7:17", "no-such-file"),
        ("backfill: { first: [ shop.items ] }", "HW3006", "yaml:7", "shop.items"),
    ] {
        let option = line.split(':').next().expect("a name");
        let path = format!("{PATH}.{option}");
        refuses_shop(&shop(&format!("{URL}\n{TABLES}\n{line}")), code, &[&format!("connectors/shop.{place}"), &path, what]);
    }
    refuses_shop(&shop(URL), "HW1004", &["connectors/shop.yaml:", PATH, "tables"]);
    refuses_shop(&shop(TABLES), "HW1004", &["connectors/shop.yaml:", PATH, "url"]);
    refuses_shop(&shop(&format!("url: 5\n{TABLES}")), "HW1003", &["connectors/shop.yaml:5:12", "found a number"]);
    refuses_shop(
        &shop(&format!("{URL}\ntables: [ orders ]")),
        "HW3006",
        &["connectors/shop.yaml:6", "database.table", "shop.orders"],
    );
    refuses_shop(&shop(&format!("{URL}\ntables: []")), "HW3006", &["connectors/shop.yaml:6", "at least one table"]);
}

#[test]
fn a_wrong_url_of_a_mysql_source_shows_no_password() {
    for (url, what) in [
        ("postgres://reader@127.0.0.1/", "begin with mysql://"),
        ("mysql://127.0.0.1/", "names no user"),
        ("mysql://reader@127.0.0.1:port/", "url cannot be read"),
        ("mysql://reader@127.0.0.1/?sslmod=disable", "Use sslmode, sslrootcert"),
        ("mysql://reader@127.0.0.1/?sslmode=none", "verify-full"),
        ("mysql://reader@127.0.0.1/?sslcert=a.pem", "sslkey"),
        ("mysql://reader@127.0.0.1/?connect_timeout=soon", "connect_timeout"),
    ] {
        let home = Home::new();
        let url = url.replace("reader@", &format!("reader:{PASSWORD}@"));
        home.write("connectors/shop.yaml", &shop(&format!("url: {url}\n{TABLES}")));
        refuses(&home, "HW3006", &["connectors/shop.yaml:5", "connectors.shop.source.url", what]);
    }
}

#[test]
fn two_mysql_sources_that_want_the_same_topic_or_server_id_are_refused() {
    let server = shared(Flavour::Mysql);
    let database = server.database();
    server.sql(&format!("CREATE TABLE {database}.items (id int PRIMARY KEY)"));
    let home = Home::new();
    let write = |name: &str, id: u32, more: &str| {
        let (url, file) = (server.url(), format!("connectors/{name}.yaml"));
        let source = format!("{{ kind: mysql, url: \"{url}\", server_id: {id}, tables: [ {database}.items ] }}");
        home.write(&file, &format!("connectors:\n  {name}:\n    source: {source}\n{more}"));
    };
    let topic = "    events: { topic: \"same.{entity}\" }\n";
    write("one", 4001, topic);
    write("two", 4002, topic);
    refused(&home.run(&["check"]), 2, "HW1171", &["\"one\" writes to this topic already", "same.items", "events.topic"]);
    write("two", 4001, "");
    let owner = format!("the server id 4001 at 127.0.0.1:{} is that of the connector \"one\"", server.port);
    refuses(&home, "HW1007", &[&owner, "connectors.two.source"]);
    write("two", 4002, "");
    home.run(&["check"]).expect_code(0);
}
