//! What commands print, by the byte, and the exit codes.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use clap::{CommandFactory, Parser};
use headwater_connector::{Code, Error, Finding, Kind};
use serde_json::Value as Json;

use super::{
    Cli, Failure, Outcome, check, codes, completions, connectors, exit, explain,
    output::{Cell, Format, Output, Paint, push_details, table},
    status, tail,
};
use crate::{log::StoredRecord, pipeline::preflight::Preflight, registry::CONNECTORS};

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a command prints, and its outcome.
fn printed(format: Format, command: impl FnOnce(&mut Output) -> Outcome) -> (String, Outcome) {
    let buffer = Buffer::default();
    let outcome = command(&mut Output::to_writer(format, Box::new(buffer.clone())));
    let bytes = buffer.0.lock().unwrap().clone();
    (String::from_utf8(bytes).unwrap(), outcome)
}

fn text(command: impl FnOnce(&mut Output) -> Outcome) -> String {
    let (text, outcome) = printed(Format::Text, command);
    assert_eq!(outcome.unwrap(), exit::OK);
    text
}

fn json(command: impl FnOnce(&mut Output) -> Outcome) -> Json {
    let (text, outcome) = printed(Format::Json, command);
    assert_eq!(outcome.unwrap(), exit::OK);
    serde_json::from_str(&text).unwrap()
}

fn failed(outcome: Outcome) -> Error {
    match outcome {
        Err(Failure::Errors(mut errors)) => errors.remove(0),
        other => panic!("{other:?}"),
    }
}

fn explain_args(arguments: &[&str]) -> explain::Args {
    let line = ["headwater", "explain"].iter().chain(arguments);
    match Cli::try_parse_from(line).unwrap().command {
        super::Command::Explain(args) => args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_tree_is_sound() {
    Cli::command().debug_assert();
    let cli = Cli::try_parse_from(["headwater", "tail", "t", "--format", "json", "-c", "x.toml"]).unwrap();
    assert_eq!((cli.format, cli.config.to_str()), (Format::Json, Some("x.toml")));
    assert!(Cli::try_parse_from(["headwater", "tail", "t", "--from", "yesterday"]).is_err());
}

#[test]
fn exit_codes_rank_as_documented() {
    assert_eq!(exit::gravest([]), 0);
    assert_eq!(exit::gravest([Kind::Config, Kind::Environment]), 3);
    assert_eq!(exit::gravest([Kind::Retry, Kind::Fenced]), 4);
    assert_eq!(exit::gravest([Kind::Fenced, Kind::Lost]), 1);
    assert_eq!(exit::of_check([Kind::Config, Kind::Environment]), 2);
    assert_eq!(exit::of_check([Kind::Retry]), 3);
    assert_eq!(exit::of_check([]), 0);
}

#[test]
fn a_table_is_aligned_and_has_no_trailing_blanks() {
    let rows = vec![vec![Cell::plain("a"), Cell::plain("")], vec![Cell::plain("länger"), Cell::plain("x")]];
    assert_eq!(table(&["N", "WHAT"], &rows, Paint::default()), ["N       WHAT", "a", "länger  x"]);
}

#[test]
fn the_lines_below_an_error_say_where_and_what_to_do() {
    let error = Error::new(&codes::START, "x").at("file", "a.yaml:1:2").at("option", "log").hint("Run:\nALTER x;");
    let mut text = String::new();
    push_details(&mut text, &error, "  ", Paint::default());
    assert_eq!(text, "  at: file a.yaml:1:2, option log\n  hint: Run:\n        ALTER x;\n");
}

#[test]
fn check_prints_findings_by_group_and_counts_them() {
    let preflight = || Preflight {
        groups: vec![
            ("config".to_owned(), vec![Finding::ok("read")]),
            ("shop".to_owned(), vec![Finding::error(Error::new(&codes::NO_DAEMON, "is gone").at("slot", "s").hint("Mend it."))]),
        ],
    };
    let (text, outcome) = printed(Format::Text, |output| check::print(&preflight(), output));
    assert_eq!(
        text,
        "config\n  ✓ read\nshop\n  ✗ HW1100: is gone\n      at: slot s\n      hint: Mend it.\n1 error, 0 warnings\n"
    );
    assert_eq!(outcome.unwrap(), 3);
    let (text, _) = printed(Format::Json, |output| check::print(&preflight(), output));
    let document: Json = serde_json::from_str(&text).unwrap();
    assert_eq!(document["errors"], 1);
    assert_eq!(document["groups"][1]["findings"][0]["error"]["hint"], "Mend it.");
}

#[test]
fn check_of_faulty_files_is_a_document_for_programs_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("headwater.yaml");
    std::fs::write(&file, "htpp: {}\nconectors: {}\n").unwrap();
    let (text, outcome) = printed(Format::Json, |output| check::run(&file, output));
    assert_eq!(outcome.unwrap(), 2);
    let document: Json = serde_json::from_str(&text).unwrap();
    assert_eq!((&document["errors"], &document["groups"][0]["name"]), (&2.into(), &"config".into()));
    assert_eq!(document["groups"][0]["findings"][1]["error"]["place"]["option"], "conectors");
}

#[test]
fn connectors_are_listed_and_described() {
    let list = text(|output| connectors::print(CONNECTORS, None, output));
    assert!(list.starts_with("KIND                  ROLES   WHAT\nmysql, mariadb        source  MySQL"), "{list}");
    assert!(list.contains("\npostgres, postgresql  source  PostgreSQL"), "{list}");
    let page = text(|output| connectors::print(CONNECTORS, Some("postgresql"), output));
    assert!(page.contains("\n  on_truncate  stop, event; default stop\n"), "{page}");
    assert!(page.contains("\n  tables  text or list of texts; required\n"), "{page}");
    assert!(page.lines().all(|line| line.chars().count() <= 110 && line.trim_end() == line), "{page}");
    let document = json(|output| connectors::print(CONNECTORS, Some("postgres"), output));
    let options = document["source"]["options"].as_array().unwrap();
    assert!(options.iter().any(|option| option["name"] == "url" && option["required"] == true));
    let (_, outcome) = printed(Format::Text, |output| connectors::print(CONNECTORS, Some("postgrse"), output));
    let error = failed(outcome);
    assert_eq!((error.code().id, error.hint_text()), ("HW1008", "Did you mean postgres? Run `headwater connectors postgres`."));
}

#[test]
fn every_code_is_explained() {
    for code in explain::all() {
        let page = text(|output| explain::run(&explain_args(&[&code.id.to_lowercase()]), output));
        assert!(page.starts_with(&format!("# {}: {}\n", code.id, code.title)), "{page}");
    }
    let document = json(|output| explain::run(&explain_args(&[]), output));
    assert_eq!(document["codes"].as_array().unwrap().len(), explain::all().len());
    let (_, outcome) = printed(Format::Text, |output| explain::run(&explain_args(&["HW99"]), output));
    assert_eq!(failed(outcome).code().id, "HW1103");
}

#[test]
fn completions_name_the_commands() {
    let shells = ["bash", "zsh", "fish"];
    for shell in shells {
        let cli = Cli::try_parse_from(["headwater", "completions", shell]).unwrap();
        let super::Command::Completions(args) = cli.command else { panic!("{shell}") };
        let script = text(|output| completions::run(&args, output));
        assert!(script.contains("explain") && script.contains("headwater"), "{shell}");
    }
}

#[test]
fn status_is_a_table_with_the_last_errors_below() {
    let address = "127.0.0.1:1".parse().unwrap();
    let body = r#"{"connectors":[
        {"name":"shop","role":"source","state":"streaming","position":"0/15D6FA8","lag":{"bytes":0,"seconds":0.0},"error":null},
        {"name":"b","role":"source","state":"retrying","position":null,"lag":{"bytes":1536,"seconds":3700.5},
         "error":{"code":"HW0002","kind":"retry","message":"no answer","hint":"Start it."}}]}"#;
    let shown = text(|output| status::print(body, address, output));
    assert_eq!(
        shown,
        "CONNECTOR  ROLE    STATE      LAG      BEHIND     POSITION\n\
         shop       source  streaming  0 B      0.0 s      0/15D6FA8\n\
         b          source  retrying   1.5 KiB  1 h 1 min  -\n\
         \nb HW0002: no answer\n  hint: Start it.\n"
    );
    assert_eq!(json(|output| status::print(body, address, output))["connectors"][0]["name"], "shop");
    let (_, outcome) = printed(Format::Text, |output| status::print("<html>", address, output));
    assert_eq!(failed(outcome).code().id, "HW1102");
}

#[test]
fn status_shows_the_tables_whose_rows_are_still_to_be_read_and_counts_the_others() {
    let address = "127.0.0.1:1".parse().unwrap();
    let done = |table: &str| format!(r#"{{"table":"{table}","state":"done","rows":40,"estimated_rows":39}}"#);
    let body = format!(
        r#"{{"connectors":[{{"name":"shop","role":"source","state":"backfilling","position":"0/1","lag":{{}},"backfills":[
        {},{},{{"table":"a.c","state":"cancelled","rows":1}},
        {{"table":"a.orders","state":"running","rows":250,"estimated_rows":1000,"rows_per_second":99.6,"seconds_left":7.5}},
        {{"table":"a.held","state":"running","rows":0,"estimated_rows":70,"waiting":"transaction 7"}},
        {{"table":"a.p","state":"paused","rows":12000}},
        {{"table":"a.bad","state":"running","rows":5,"estimated_rows":3,"error":{{"code":"HW2072","message":"no","hint":"Mend it."}}}}
        ]}}]}}"#,
        done("a.x"),
        done("a.y")
    );
    let shown = text(|output| status::print(&body, address, output));
    let (_, below) = shown.split_once("\n\n").unwrap();
    assert_eq!(
        below,
        "shop: rows that were there already\n  \
           TABLE     STATE    READ   OF ABOUT  DONE  ROWS/S  LEFT   WAITS FOR\n  \
           a.orders  running  250    1000      25 %  100     7.5 s  -\n  \
           a.held    waiting  0      70        0 %   -       -      transaction 7\n  \
           a.p       paused   12000  -         -     -       -      -\n  \
           a.bad     failing  5      3         99 %  -       -      -\n  \
           done: 2 tables, 80 rows read; cancelled: 1 table, 1 row read\n\
         \nshop a.bad HW2072: no\n  hint: Mend it.\n"
    );
}

#[test]
fn sizes_and_times_are_readable_at_every_magnitude() {
    let sizes = [0, 1023, 1024, 1_048_575, 1 << 30].map(status::human_bytes);
    assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "1.0 GiB"]);
    let times = [0.04, 59.0, 61.0, 7200.0, 200_000.0].map(status::human_seconds);
    assert_eq!(times, ["0.0 s", "59.0 s", "1 min 1 s", "2 h 0 min", "2 d 7 h"]);
}

#[test]
fn an_event_is_printed_with_every_digit_and_without_control_characters() {
    let record = StoredRecord {
        offset: 41,
        timestamp_ms: 1_767_323_045_123,
        key: br#"{"id":1}"#.to_vec(),
        value: Some(b"{\"n\":1.50,\"t\":\"\x1b[31m\"}".to_vec()),
        headers: vec![("hw.op".into(), b"u".to_vec())],
    };
    let mut line = Vec::new();
    tail::json_line("t", 0, &record, &mut line);
    let line = String::from_utf8(line).unwrap();
    assert!(
        line.starts_with(r#"{"topic":"t","partition":0,"offset":41,"timestamp":"2026-01-02T03:04:05.123Z","key":{"id":1},"#),
        "{line}"
    );
    assert!(line.contains("1.50") || line.contains("1.5"), "{line}");
    let shown = tail::text_line(0, &record, &Output::to_writer(Format::Text, Box::new(io::sink())));
    assert!(
        shown.starts_with(r#"0:41     2026-01-02T03:04:05.123Z u {"id":1} {"n":1.50"#) && !shown.contains('\u{1b}'),
        "{shown}"
    );
    let deleted =
        tail::text_line(0, &StoredRecord { value: None, ..record }, &Output::to_writer(Format::Text, Box::new(io::sink())));
    assert!(deleted.ends_with("(deleted)"), "{deleted}");
}

/// Page files by code.
fn pages() -> BTreeMap<String, PathBuf> {
    let mut pages = BTreeMap::new();
    let mut directories = vec![PathBuf::from("src"), PathBuf::from("connectors")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(root().join(&directory)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let path = directory.join(&name);
            if root().join(&path).is_dir() {
                directories.push(path);
            } else if let Some(id) = name.strip_suffix(".md").filter(|id| id.starts_with("HW")) {
                pages.insert(id.to_owned(), path);
            }
        }
    }
    pages
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

const KINDS: &[(Kind, &str)] = &[
    (Kind::Retry, "a server is away or busy: `run` tries again for ever, a command that runs once gives up"),
    (Kind::Config, "what the files or the command line say must change"),
    (Kind::Environment, "a privilege, setting, port, directory or server must change"),
    (Kind::Data, "a row cannot be keyed or represented: stop, or write it to the dead-letter topic"),
    (Kind::Lost, "history that is needed is gone: stop; nothing is guessed"),
    (Kind::Fenced, "another instance took over: stop, and do not restart"),
    (Kind::Bug, "an invariant broke: stop this connector, keep the others"),
];

fn codes_page() -> String {
    let mut page = String::from(
        "# Error codes\n\n<!-- Generated from the codes by a test. -->\n\n`headwater explain CODE` prints the page of a code.\n\n\
         | Kind | Means | Exit code |\n|---|---|---|\n",
    );
    for (kind, meaning) in KINDS {
        page.push_str(&format!("| {} | {meaning} | {} |\n", kind.name(), exit::of(*kind)));
    }
    page.push_str("\n| Code | Kind | What |\n|---|---|---|\n");
    let pages = pages();
    for Code { id, kind, title, .. } in explain::all() {
        page.push_str(&format!("| [{id}](../../{}) | {} | {title} |\n", pages[*id].display(), kind.name()));
    }
    page
}

/// Writes the list if it is stale, and fails once, so that the change is seen and committed.
#[test]
fn the_list_of_codes_is_fresh() {
    let path = root().join("docs/reference/codes.md");
    let page = codes_page();
    let stale = std::fs::read_to_string(&path).ok().as_ref() != Some(&page);
    if stale {
        std::fs::write(&path, page).unwrap();
    }
    assert!(!stale, "docs/reference/codes.md was stale and is rewritten now; commit it");
}

#[test]
fn the_guide_tells_of_every_stop_that_only_a_person_ends() {
    let guide = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operating.md")).unwrap();
    let grave = explain::all().into_iter().filter(|code| matches!(code.kind, Kind::Lost | Kind::Fenced));
    let missing: Vec<&str> = grave.map(|code| code.id).filter(|id| !guide.contains(&format!("[{id}]"))).collect();
    assert!(missing.is_empty(), "docs/operating.md, `Stop states`, lacks {missing:?}");
}
