//! What an operator tells the running daemon: pause, resume, restart, and new files.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use crate::support::{PATIENCE, daemon::Home, postgres::Postgres, wait_until};

#[test]
fn a_paused_connector_publishes_nothing_until_it_is_resumed() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    home.run(&["pause", "shop"]).expect_code(0);
    assert_eq!(daemon.connector("shop").unwrap()["state"], "paused");
    let active = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database() AND active";
    wait_until("the slot to be free", PATIENCE, || match database.value(active).as_str() {
        "0" => Ok(()),
        other => Err(other.to_owned()),
    });
    database.sql("INSERT INTO public.orders VALUES (1)");
    // Asked for again it is still paused; status says what that costs.
    home.run(&["pause", "shop"]).expect_code(0);
    let status = home.run(&["status"]);
    assert!(status.stdout.contains("paused") && status.stdout.contains("headwater resume shop"), "{}", status.stdout);
    assert_eq!(home.tail("shop.orders").len(), 0);
    let paused = daemon.connector("shop").unwrap();
    assert!(paused["source"]["retained_bytes"].is_u64() && paused["lag"]["bytes"].is_null(), "{paused}");
    home.run(&["resume", "shop"]).expect_code(0);
    daemon.wait_caught_up("shop");
    assert_eq!(home.tail("shop.orders").len(), 1);
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn a_pause_outlives_the_daemon() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    home.run(&["pause", "shop"]).expect_code(0);
    daemon.kill9();
    database.sql("INSERT INTO public.orders VALUES (1)");
    let mut daemon = home.start();
    let paused = daemon.wait_state("shop", "paused");
    assert!(paused["source"]["retained_bytes"].is_u64(), "the slot goes on keeping log, and nobody saw how much: {paused}");
    assert_eq!(home.tail("shop.orders").len(), 0);
    home.run(&["resume", "shop"]).expect_code(0);
    daemon.wait_caught_up("shop");
    assert_eq!(home.tail("shop.orders").len(), 1);
    // And so does its end.
    daemon.kill9();
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    assert_eq!(daemon.terminate(), Some(0));
}

/// A connector beside another one, over a table of its own.
pub fn add(home: &Home, url: &str, name: &str, table: &str) {
    let database = url.rsplit('/').next().expect("a database");
    home.write(
        &format!("connectors/{name}.yaml"),
        &format!(
            "connectors:\n  {name}:\n    source:\n      kind: postgres\n      url: {url}\n      \
             password: {{ env: {} }}\n      tables: [ {table} ]\n      slot: {name}_{database}\n      publication: {name}\n",
            crate::support::daemon::PASSWORD_VARIABLE
        ),
    );
}

#[test]
fn a_stopped_connector_is_restarted_once_its_cause_is_mended() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    database.sql("CREATE TABLE public.notes (id int NOT NULL, body text)");
    add(&home, &database.url(), "notes", "public.notes");
    let mut daemon = home.start();
    // It has no usable key, so it stops; the other one keeps the daemon.
    daemon.wait_state("notes", "stopped");
    daemon.wait_state("shop", "streaming");
    home.run(&["restart", "notes"]).expect_code(0);
    daemon.wait_state("notes", "stopped");
    database.sql("ALTER TABLE public.notes ADD PRIMARY KEY (id)");
    home.run(&["restart", "notes"]).expect_code(0);
    let connector = daemon.wait_state("notes", "streaming");
    assert!(connector["error"].is_null(), "{connector}");
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn a_name_that_is_not_there_is_an_error_with_the_closest_one() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    let refused = home.run(&["pause", "shop"]);
    refused.expect_code(3);
    assert!(refused.stderr.contains("HW1100"), "{}", refused.stderr);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    let refused = home.run(&["pause", "shpo"]);
    refused.expect_code(2);
    assert!(refused.stderr.contains("HW1175") && refused.stderr.contains("shop"), "{}", refused.stderr);
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn new_files_change_what_they_change_and_nothing_else() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    database.sql("CREATE TABLE public.notes (id int PRIMARY KEY, body text); CREATE TABLE public.tags (id int PRIMARY KEY)");
    add(&home, &database.url(), "notes", "public.notes");
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    daemon.wait_state("notes", "streaming");
    let walsender =
        || database.value("SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'headwater_' || current_database()");
    let undisturbed = walsender();
    // One changes, one is new, one stays as it is.
    add(&home, &database.url(), "notes", "public.tags");
    add(&home, &database.url(), "more", "public.notes");
    daemon.signal("HUP");
    daemon.wait_state("more", "streaming");
    database.sql(
        "INSERT INTO public.tags VALUES (1); INSERT INTO public.notes VALUES (1, 'x'); INSERT INTO public.orders VALUES (1)",
    );
    for name in ["shop", "notes", "more"] {
        daemon.wait_caught_up(name);
    }
    // What is streamed before a table's rows are read may be read once more.
    let created = |topic: &str| home.tail(topic).iter().filter(|record| record.op() == "c").count();
    assert_eq!(["notes.tags", "more.notes", "shop.orders"].map(created), [1, 1, 1]);
    assert_eq!(walsender(), undisturbed, "the connector that did not change was reopened");
    // One leaves.
    std::fs::remove_file(home.path("connectors/more.yaml")).expect("the file goes");
    daemon.signal("HUP");
    wait_until("the removed connector to be gone", PATIENCE, || match daemon.connector("more") {
        Ok(connector) => Err(connector.to_string()),
        Err(_) => Ok(()),
    });
    assert_eq!(walsender(), undisturbed);
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn wrong_files_are_refused_and_everything_goes_on() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    let good = std::fs::read_to_string(home.path("connectors/shop.yaml")).expect("the file");
    let main = std::fs::read_to_string(home.path("headwater.yaml")).expect("the file");
    let wrong = [
        ("connectors/shop.yaml", good.replace("tables:", "tabels:"), "tabels"),
        ("connectors/shop.yaml", good.replace("public.orders", "public.nothing"), "public.nothing"),
        ("headwater.yaml", main.replace("kind: embedded", "kind: embedded, retention_hours: 7"), "HW1176"),
        ("headwater.yaml", "log: [".to_owned(), "headwater.yaml"),
    ];
    for (number, (file, text, expected)) in wrong.iter().enumerate() {
        home.write(file, text);
        daemon.signal("HUP");
        wait_until("the refusal to be shown", PATIENCE, || {
            // Not by the command, which reads the broken main file too.
            let answer = request(&home, &format!("GET /v1/status HTTP/1.1\r\nHost: {}", home.address()));
            let errors = answer.rsplit_once("\"config\":{").map_or(answer.as_str(), |(_, config)| config);
            if errors.contains(expected) { Ok(()) } else { Err(errors.to_owned()) }
        });
        home.write("headwater.yaml", &main);
        let text = home.run(&["status"]);
        assert!(text.stdout.contains("Newer config files were not taken"), "{}", text.said());
        home.write("connectors/shop.yaml", &good);
        database.sql(&format!("INSERT INTO public.orders VALUES ({number})"));
        daemon.wait_caught_up("shop");
    }
    assert_eq!(home.tail("shop.orders").len(), wrong.len());
    // Files that are right again clear the complaint.
    daemon.signal("HUP");
    wait_until("the complaint to be gone", PATIENCE, || match daemon.status()? {
        status if status["config"].is_null() => Ok(()),
        status => Err(status.to_string()),
    });
    assert_eq!(daemon.terminate(), Some(0));
}

/// One raw request; the whole answer.
fn request(home: &Home, head: &str) -> String {
    let mut stream = TcpStream::connect(home.address()).expect("the daemon listens");
    stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes()).expect("the request");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn pages_of_other_sites_cannot_pause_a_connector() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    let own = home.address();
    let post = "POST /v1/connectors/shop/pause HTTP/1.1\r\nContent-Length: 0";
    for (head, expected) in [
        (format!("{post}\r\nHost: evil.example:{}", own.port()), "403"),
        (format!("{post}\r\nHost: {own}\r\nOrigin: http://evil.example"), "403"),
        (format!("{post}\r\nHost: {own}\r\nOrigin: http://127.0.0.1:1"), "403"),
        (format!("{post}\r\nHost: {own}\r\nOrigin: null"), "403"),
        (format!("GET /v1/connectors/shop/pause HTTP/1.1\r\nHost: {own}"), "405"),
        (format!("POST /v1/connectors/shop/delete HTTP/1.1\r\nContent-Length: 0\r\nHost: {own}"), "404"),
    ] {
        let answer = request(&home, &head);
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{head}: {answer}");
    }
    assert_eq!(daemon.connector("shop").unwrap()["state"], "streaming");
    assert!(request(&home, &format!("{post}\r\nHost: {own}\r\nOrigin: http://{own}")).starts_with("HTTP/1.1 200"));
    assert_eq!(daemon.connector("shop").unwrap()["state"], "paused");
    assert_eq!(daemon.terminate(), Some(0));
}
