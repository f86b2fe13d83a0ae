//! What probes, scrapers and the status command see over HTTP.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use serde_json::Value;

use crate::support::{PATIENCE, daemon::Home, postgres::Postgres};

/// An answer, as it came over the wire.
struct Answer {
    code: u16,
    head: String,
    body: String,
}

/// One request, written by hand: a client library would not send a foreign `Host`.
fn request(home: &Home, method: &str, path: &str, host: &str) -> Answer {
    let mut stream = TcpStream::connect(home.address()).expect("the daemon listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("a request");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status code");
    Answer { code, head: head.to_lowercase(), body: body.to_owned() }
}

fn get(home: &Home, path: &str) -> Answer {
    request(home, "GET", path, &home.address().to_string())
}

fn json(answer: &Answer) -> Value {
    assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {}", answer.body))
}

#[test]
fn a_daemon_that_streams_is_healthy_and_ready() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    assert_eq!((get(&home, "/healthz").code, get(&home, "/healthz").body.trim()), (200, "ok"));
    let ready = get(&home, "/readyz");
    assert_eq!((ready.code, &json(&ready)["ready"]), (200, &Value::Bool(true)));
    assert_eq!(get(&home, "/nowhere").code, 404);
    assert_eq!(request(&home, "POST", "/v1/status", &home.address().to_string()).code, 405);
}

#[test]
fn a_daemon_that_waits_is_healthy_and_not_ready() {
    let home = Home::new();
    home.shop("postgres://reader@127.0.0.1:1/shop", "public.orders", "");
    let mut daemon = home.start();
    daemon.wait_state("shop", "retrying");
    assert_eq!(get(&home, "/healthz").code, 200);
    let ready = get(&home, "/readyz");
    assert_eq!(ready.code, 503);
    let document = json(&ready);
    assert_eq!(document["ready"], Value::Bool(false));
    assert_eq!(document["waiting"][0]["name"], "shop", "{document}");
}

#[test]
fn the_status_has_the_shape_that_programs_rely_on() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (1), (2), (3)");
    daemon.wait_caught_up("shop");
    let document = json(&get(&home, "/v1/status"));
    let names: Vec<&String> = document.as_object().expect("an object").keys().collect();
    assert_eq!(names, ["connectors"]);
    let shop = &document["connectors"][0];
    assert_eq!((&shop["name"], &shop["role"], &shop["state"]), (&"shop".into(), &"source".into(), &"streaming".into()));
    assert_eq!((&shop["lag"]["bytes"], &shop["error"]), (&0.into(), &Value::Null), "{shop}");
    assert!(shop["lag"]["seconds"].is_number() && !shop["position"].is_null(), "{shop}");
    assert_eq!(shop["events"], 3);
    // The command prints what the daemon says.
    let printed = daemon.status().expect("a status");
    assert_eq!(printed["connectors"][0]["position"], shop["position"]);
}

#[test]
fn metrics_count_what_was_published() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    let value = |page: &str, name: &str| -> f64 {
        let line = page.lines().find(|line| line.starts_with(&format!("{name} ")));
        let text = line.unwrap_or_else(|| panic!("no {name} in\n{page}")).rsplit(' ').next().expect("a value");
        text.parse().expect("a number")
    };
    let before = get(&home, "/metrics");
    assert!(before.head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{}", before.head);
    assert_eq!(before.body.lines().last(), Some("# EOF"));
    assert_eq!(value(&before.body, "headwater_events_total{connector=\"shop\"}"), 0.0);
    database.sql("INSERT INTO public.orders VALUES (1), (2), (3); DELETE FROM public.orders WHERE id = 1");
    daemon.wait_caught_up("shop");
    let page = get(&home, "/metrics").body;
    for (name, least, most) in [
        ("headwater_events_total{connector=\"shop\"}", 4.0, 4.0),
        ("headwater_lag_bytes{connector=\"shop\"}", 0.0, 0.0),
        ("headwater_lag_seconds{connector=\"shop\"}", 0.0, 0.0),
        ("headwater_connector_state{connector=\"shop\",state=\"streaming\"}", 1.0, 1.0),
        ("headwater_connector_state{connector=\"shop\",state=\"stopped\"}", 0.0, 0.0),
        ("headwater_dead_letters_total{connector=\"shop\"}", 0.0, 0.0),
        ("headwater_failures_total{connector=\"shop\"}", 0.0, 0.0),
        ("headwater_commits_total{connector=\"shop\"}", 1.0, 1e6),
        ("headwater_record_bytes_total{connector=\"shop\"}", 100.0, 1e6),
        ("headwater_commit_duration_seconds_sum{connector=\"shop\"}", f64::MIN_POSITIVE, 1e6),
        ("headwater_commit_duration_seconds_count{connector=\"shop\"}", 1.0, 1e6),
        ("headwater_commit_events_count{connector=\"shop\"}", 1.0, 1.0),
        ("headwater_source_retained_bytes{connector=\"shop\"}", 0.0, 1e12),
        ("headwater_last_commit_timestamp_seconds{connector=\"shop\"}", 1.7e9, 1e10),
        ("headwater_resident_memory_bytes", 1e6, 1e9),
        ("headwater_open_files", 5.0, 1000.0),
        ("headwater_config_refused", 0.0, 0.0),
    ] {
        let found = value(&page, name);
        assert!((least..=most).contains(&found), "{name} is {found}, not from {least} to {most}");
    }
    // What the reference lists is there, and described.
    let documented = std::fs::read_to_string(crate::support::root().join("docs/reference/metrics.md")).expect("the page");
    let mut listed = 0;
    for line in documented.lines().filter(|line| line.starts_with("| `headwater_")) {
        let name = line
            .trim_start_matches("| `")
            .split(['{', '`'])
            .next()
            .expect("a name")
            .trim_end_matches("_total")
            .trim_end_matches("_info");
        assert!(page.contains(&format!("# HELP {name} ")), "{name} is documented and not served");
        listed += 1;
    }
    assert_eq!(listed, page.lines().filter(|line| line.starts_with("# TYPE ")).count(), "every metric is documented");
}

#[test]
fn a_page_of_another_site_gets_nothing() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    for path in ["/v1/status", "/metrics", "/readyz"] {
        let answer = request(&home, "GET", path, "evil.example");
        assert_eq!(answer.code, 403, "{path} answers a foreign Host: {}", answer.body);
        assert!(!answer.body.contains("shop"), "{path}: {}", answer.body);
        assert_eq!(request(&home, "GET", path, "localhost").code, 200, "{path}");
    }
}

/// Each of them held a file of the daemon for ever, and in the end all that it may open.
#[test]
fn clients_that_never_finish_their_request_kept_everybody_out() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    let mut daemon = home.start_under(&["sh", "-c", "ulimit -n 64; exec \"$0\" \"$@\""]);
    daemon.wait_state("shop", "streaming");
    let whole = "POST /v1/connectors/shop/backfill HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{";
    let idlers: Vec<TcpStream> = (0..100)
        .map(|number| {
            let mut stream = TcpStream::connect(home.address()).expect("the daemon listens");
            // Some say nothing at all, some half a head, some half a body.
            stream.write_all(&whole.as_bytes()[..[0, 60, whole.len()][number % 3]]).expect("a part of a request");
            stream
        })
        .collect();
    // The source's sessions are opened anew, for which files are needed.
    database.sql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()");
    database.sql("INSERT INTO public.orders VALUES (1)");
    crate::support::wait_until("the row to be in the topic", PATIENCE, || match home.tail("shop.orders").len() {
        1 => Ok(()),
        _ => Err(daemon.stderr()),
    });
    crate::support::wait_until("the status to be told", PATIENCE, || daemon.status());
    // Whoever has not asked by now is not waited for any longer.
    for mut stream in idlers {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut said = String::new();
        stream
            .read_to_string(&mut said)
            .map(drop)
            .or_else(|error| if error.kind() == std::io::ErrorKind::ConnectionReset { Ok(()) } else { Err(error) })
            .expect("the daemon closes");
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 408"), "{said}");
    }
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("its files").count();
    assert!(open < 48, "{open} files are still open");
    assert_eq!(daemon.terminate(), Some(0));
}

#[test]
fn http_can_be_off() {
    let server = Postgres::shared();
    let database = server.database();
    let home = Home::of_orders(&database);
    home.write(
        "headwater.yaml",
        "log: { kind: embedded, path: ./data }\nhttp: { listen: off }\ninclude: [ connectors/*.yaml ]\n",
    );
    let mut daemon = home.start();
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database() AND active";
    crate::support::wait_until("the slot to be in use", PATIENCE, || match database.value(slots).as_str() {
        "1" => Ok(()),
        _ => Err(daemon.stderr()),
    });
    assert!(daemon.is_running());
    assert!(TcpStream::connect(home.address()).is_err(), "nothing listens");
    assert_eq!(daemon.terminate(), Some(0));
}
