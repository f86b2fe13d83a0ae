//! The commands that people and programs type: what they print, in which shape, and what they leave alone.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use serde_json::Value;

use crate::support::{
    daemon::Home,
    postgres::{Database, Postgres},
};

fn names(object: &Value) -> Vec<&str> {
    object.as_object().unwrap_or_else(|| panic!("not an object: {object}")).keys().map(String::as_str).collect()
}

fn list<'a>(document: &'a Value, name: &str) -> &'a [Value] {
    document[name].as_array().unwrap_or_else(|| panic!("no list {name} in {document}"))
}

fn shop(database: &Database) -> Home {
    database.sql("CREATE TABLE public.orders (id int PRIMARY KEY, note text); INSERT INTO public.orders VALUES (1)");
    let home = Home::new();
    home.shop(&database.url(), "public.orders", "");
    home
}

/// Everything below a directory, with contents.
fn files(dir: &Path) -> BTreeSet<(String, Vec<u8>)> {
    let mut all = BTreeSet::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.display().to_string();
        if path.is_dir() {
            all.extend(files(&path));
            all.insert((name, Vec::new()));
        } else {
            all.insert((name, fs::read(&path).expect("a file")));
        }
    }
    all
}

/// What a start would leave at the server.
fn traces(database: &Database) -> Vec<Vec<String>> {
    database.rows(
        "SELECT slot_name, confirmed_flush_lsn::text FROM pg_replication_slots WHERE database = current_database()
         UNION ALL SELECT pubname, puballtables::text FROM pg_publication",
    )
}

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let home = Home::new();
    let help = home.run(&["--help"]);
    help.expect_code(0);
    for word in
        ["run", "check", "plan", "status", "tail", "demo", "connectors", "explain", "completions", "Exit codes", "Examples"]
    {
        assert!(help.stdout.contains(word), "no {word:?} in\n{}", help.stdout);
    }
    assert!(help.stderr.is_empty() && !help.stdout.contains('\u{1b}'), "no colour where no terminal is");
    for command in ["run", "check", "plan", "status", "tail", "demo", "connectors", "explain", "completions"] {
        let page = home.run(&[command, "--help"]);
        page.expect_code(0);
        assert!(page.stdout.contains("Usage: headwater"), "{}", page.stdout);
    }
    let version = home.run(&["--version"]);
    version.expect_code(0);
    assert!(version.stdout.starts_with("headwater "), "{}", version.stdout);
}

#[test]
fn every_code_has_a_page() {
    let home = Home::new();
    let document = home.run(&["explain", "--format", "json"]).json();
    let codes = list(&document, "codes");
    assert!(codes.len() > 60, "{} codes", codes.len());
    for code in codes {
        assert_eq!(names(code), ["code", "kind", "title"]);
        let id = code["code"].as_str().expect("a code");
        let kinds = ["retry", "config", "environment", "data", "lost", "fenced", "bug"];
        assert!(kinds.contains(&code["kind"].as_str().expect("a kind")), "{code}");
        assert!(id.len() == 6 && id.starts_with("HW"), "{id}");
    }
    let page = home.run(&["explain", "hw2015"]);
    page.expect_code(0);
    assert!(page.stdout.starts_with("# HW2015: ") && page.stdout.contains("Mend it"), "{}", page.stdout);
    let json = home.run(&["explain", "HW2015", "--format", "json"]).json();
    assert_eq!(names(&json), ["code", "kind", "title", "page"]);
    assert_eq!(json["page"].as_str().map(str::trim_end), Some(page.stdout.trim_end()));
    let text = home.run(&["explain"]).stdout;
    assert_eq!(text.lines().count(), codes.len() + 1, "a header and one line per code");
    home.run(&["explain", "HW0000"]).expect_code(2);
}

#[test]
fn connectors_are_listed_and_described() {
    let home = Home::new();
    let document = home.run(&["connectors", "--format", "json"]).json();
    let postgres = list(&document, "connectors").iter().find(|kind| kind["kind"] == "postgres").expect("postgres");
    assert_eq!(postgres["roles"], serde_json::json!(["source"]));
    assert!(home.run(&["connectors"]).stdout.contains("postgres"));
    let reference = home.run(&["connectors", "postgres", "--format", "json"]).json();
    let options = list(&reference["source"], "options");
    let text = home.run(&["connectors", "postgres"]);
    text.expect_code(0);
    for option in ["kind", "url", "password", "tables", "slot", "publication", "on_truncate", "large_values"] {
        assert!(options.iter().any(|known| known["name"] == option), "no {option} in {reference}");
        assert!(text.stdout.contains(&format!("  {option}  ")), "no {option} in\n{}", text.stdout);
    }
    let url = options.iter().find(|option| option["name"] == "url").expect("url");
    assert_eq!(url["required"], true);
    assert_eq!(home.run(&["connectors", "postgresql", "--format", "json"]).json(), reference, "a synonym is as good");
}

#[test]
fn completions_are_scripts_that_their_shells_accept() {
    let home = Home::new();
    for (shell, checker) in [("bash", Some("bash")), ("zsh", None), ("fish", None)] {
        let script = home.run(&["completions", shell]);
        script.expect_code(0);
        for word in ["headwater", "connectors", "explain"] {
            assert!(script.stdout.contains(word), "no {word} for {shell}");
        }
        if let Some(checker) = checker {
            home.write("script", &script.stdout);
            let output = Command::new(checker).arg("-n").arg(home.path("script")).output().expect("the shell runs");
            assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    home.run(&["completions", "cobol"]).expect_code(2);
}

#[test]
fn check_and_plan_change_nothing() {
    let server = Postgres::shared();
    let database = server.database();
    let home = shop(&database);
    let dir = home.path("headwater.yaml").parent().expect("a directory").to_owned();
    let before = files(&dir);
    for command in ["check", "plan"] {
        for format in ["text", "json"] {
            home.run(&[command, "--format", format]).expect_code(0);
            assert_eq!(traces(&database), Vec::<Vec<String>>::new(), "{command} left something at the server");
            assert!(files(&dir) == before, "{command} left something in the directory");
        }
    }
    // Neither do they once there is something to change.
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (2)");
    daemon.wait_caught_up("shop");
    assert_eq!(daemon.terminate(), Some(0));
    let (there, known) = (traces(&database), home.tail("headwater.shop.checkpoint"));
    for command in ["check", "plan"] {
        home.run(&[command]).expect_code(0);
        assert_eq!(traces(&database), there, "{command} moved something at the server");
        assert_eq!(home.tail("headwater.shop.checkpoint"), known, "{command} wrote to the log");
    }
}

#[test]
fn check_says_what_it_looked_at() {
    let server = Postgres::shared();
    let database = server.database();
    let home = shop(&database);
    let document = home.run(&["check", "--format", "json"]).json();
    assert_eq!(names(&document), ["groups", "errors", "warnings"]);
    assert_eq!(document["errors"], 0);
    let groups: Vec<_> = list(&document, "groups").iter().map(|group| group["name"].as_str().expect("a name")).collect();
    assert_eq!(groups, ["config", "log", "shop"]);
    for finding in list(&document, "groups").iter().flat_map(|group| list(group, "findings")) {
        assert!(["ok", "warning", "error"].contains(&finding["level"].as_str().expect("a level")), "{finding}");
        assert!(finding["what"].as_str().is_some_and(|what| !what.is_empty()), "{finding}");
        if finding["level"] != "ok" {
            assert_eq!(names(&finding["error"]), ["code", "kind", "message", "place", "hint"]);
        }
    }
    let text = home.run(&["check"]).stdout;
    for what in ["public.orders is keyed by id", "replication slot", "publication", "0 errors"] {
        assert!(text.contains(what), "no {what:?} in\n{text}");
    }
}

#[test]
fn plan_shows_what_a_run_would_create_and_then_keep() {
    let server = Postgres::shared();
    let database = server.database();
    let home = shop(&database);
    let first = home.run(&["plan", "--format", "json"]).json();
    assert_eq!(names(&first), ["topics", "connectors"]);
    let topics = |document: &Value| -> BTreeSet<(String, bool)> {
        let topic = |topic: &Value| (topic["name"].as_str().expect("a name").to_owned(), topic["exists"] == true);
        list(document, "topics").iter().map(topic).collect()
    };
    let all = ["headwater.shop.checkpoint", "headwater.shop.schema", "shop.orders"];
    let expected = |exists: bool| all.iter().map(|name| ((*name).to_owned(), exists)).collect::<BTreeSet<_>>();
    assert_eq!(topics(&first), expected(false));
    let planned = &list(&first, "connectors")[0];
    assert_eq!((&planned["name"], &planned["resumes_at"]), (&"shop".into(), &Value::Null));
    let verbs = |connector: &Value| -> BTreeSet<String> {
        list(connector, "actions").iter().map(|action| format!("{} {}", action["verb"], action["object"])).collect()
    };
    let made = |verb: &str| {
        ["publication", "slot"].map(|object| format!("\"{verb}\" \"{object}\"")).into_iter().collect::<BTreeSet<_>>()
    };
    assert_eq!(verbs(planned), made("create"));
    let table = &list(planned, "tables")[0];
    assert_eq!(
        (&table["table"], &table["topic"], &table["key"]),
        (&"public.orders".into(), &"shop.orders".into(), &serde_json::json!(["id"]))
    );
    let text = home.run(&["plan"]).stdout;
    assert!(text.contains("create") && text.contains("reads the rows that are there already"), "{text}");
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    assert_eq!(daemon.terminate(), Some(0));
    let second = home.run(&["plan", "--format", "json"]).json();
    assert_eq!(topics(&second), expected(true));
    let planned = &list(&second, "connectors")[0];
    assert!(!planned["resumes_at"].is_null(), "{planned}");
    assert_eq!(verbs(planned), made("keep"));
}

#[test]
fn status_and_tail_print_what_the_design_spells() {
    let server = Postgres::shared();
    let database = server.database();
    let home = shop(&database);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders VALUES (2, 'two'); DELETE FROM public.orders WHERE id = 1");
    daemon.wait_caught_up("shop");
    let status = home.run(&["status", "--format", "json"]).json();
    assert_eq!(names(&status), ["connectors"]);
    let shop = &list(&status, "connectors")[0];
    for name in ["name", "role", "state", "position", "lag", "error"] {
        assert!(names(shop).contains(&name), "no {name} in {shop}");
    }
    assert_eq!(names(&shop["lag"]), ["bytes", "seconds"]);
    let text = home.run(&["status"]);
    text.expect_code(0);
    let lines: Vec<&str> = text.stdout.lines().collect();
    assert_eq!(lines[2..], ["", "shop: rows that were there already, done: 1 table, 1 row read"]);
    assert!(lines[0].starts_with("CONNECTOR") && lines[1].starts_with("shop"), "{}", text.stdout);
    assert_eq!(lines[0].find("STATE"), lines[1].find("streaming"), "columns are aligned");
    let tail = home.run(&["tail", "shop.orders", "--until-end", "--format", "json"]);
    let lines: Vec<Value> = tail.stdout.lines().map(|line| serde_json::from_str(line).expect("one object per line")).collect();
    // The row that was there, and what happened to it and to another one.
    let lines = &lines[1..];
    assert_eq!(lines.len(), 2);
    for line in lines {
        assert_eq!(names(line), ["topic", "partition", "offset", "timestamp", "key", "value", "headers"]);
        let timestamp = line["timestamp"].as_str().expect("a text");
        assert!(timestamp.ends_with('Z') && timestamp.as_bytes()[10] == b'T', "{timestamp}");
    }
    assert_eq!(
        (&lines[0]["key"], &lines[0]["value"]["note"], &lines[1]["value"]),
        (&serde_json::json!({ "id": 2 }), &"two".into(), &Value::Null)
    );
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let server = Postgres::shared();
    let database = server.database();
    let home = shop(&database);
    let mut daemon = home.start();
    daemon.wait_state("shop", "streaming");
    database.sql("INSERT INTO public.orders SELECT n FROM generate_series(2, 5000) n");
    daemon.wait_caught_up("shop");
    let script = "headwater=$1; shift; { \"$headwater\" \"$@\"; echo $? >&2; } | head -n 1";
    let output = Command::new("sh")
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_headwater"), "tail", "shop.orders", "--until-end"])
        .current_dir(home.path("headwater.yaml").parent().expect("a directory"))
        .output()
        .expect("sh runs");
    assert_eq!(String::from_utf8_lossy(&output.stderr).trim(), "0");
    assert!(String::from_utf8_lossy(&output.stdout).contains(r#"{"id":1}"#));
}
