//! The shape of the sources, held by a test: sizes, layers, error pages, links. The rules are in the design, not here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::root;

const MAX_FILE_LINES: usize = 600;
const MAX_FUNCTION_LINES: usize = 70;

/// Part of the tree, words that must not stand in its code, and why.
const LAYERS: &[(&str, &[&str], &str)] = &[
    (
        "src/mapping/",
        &["tokio", "async ", ".await", "log::kafka", "log::embedded", "crate::pipeline", "crate::cli"],
        "mapping is pure",
    ),
    ("src/format/", &["tokio", "async ", ".await", "crate::pipeline", "crate::cli", "crate::http"], "formats are pure"),
    ("src/log/", &["crate::pipeline", "crate::cli", "crate::http", "crate::mapping"], "the log stands below the pipeline"),
    (
        "src/pipeline/",
        &["crate::cli", "crate::http", "log::kafka", "log::embedded"],
        "the pipeline knows no front and no concrete log",
    ),
    ("src/config/", &["crate::pipeline", "crate::cli", "crate::http"], "the config stands below the pipeline"),
    (
        "src/http/",
        &["crate::cli", "crate::log::kafka", "crate::log::embedded", "crate::mapping"],
        "HTTP sees the pipeline's handle",
    ),
    ("connectors/", &["use headwater::", "headwater::log", "headwater::config"], "connectors know the contract only"),
];

/// A part of the daemon, and the other parts that it may use. The command line may use all.
const MAY_USE: &[(&str, &[&str])] = &[
    ("src/format/", &[]),
    ("src/mapping/", &["format", "log"]),
    ("src/log/", &[]),
    ("src/registry.rs", &["config"]),
    ("src/config/", &["log", "mapping", "registry"]),
    ("src/pipeline/", &["config", "log", "mapping", "shutdown"]),
    ("src/http/", &["pipeline", "shutdown"]),
    ("src/telemetry.rs", &["log"]),
    ("src/shutdown.rs", &[]),
];

/// A word, and the only parts of the tree where it may stand.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("rdkafka::", &["src/log/kafka", "src/traces/kafka.rs", "benches/"]),
    ("rdkafka_sys", &["src/log/kafka"]),
    ("axum::", &["src/http"]),
    ("rusqlite", &["src/log/embedded"]),
];

fn tracked() -> Vec<PathBuf> {
    let output =
        Command::new("git").arg("-C").arg(root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).output();
    let output = output.expect("git runs");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("names in UTF-8");
    names.split('\0').filter(|name| !name.is_empty() && root().join(name).is_file()).map(PathBuf::from).collect()
}

fn with_extension(extension: &str) -> Vec<(String, String)> {
    let fits = |path: &PathBuf| path.extension().is_some_and(|found| found == extension);
    let read = |path: PathBuf| {
        let text = fs::read_to_string(root().join(&path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path.to_str().expect("a name in UTF-8").to_owned(), text)
    };
    tracked().into_iter().filter(fits).map(read).collect()
}

fn fail_on(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults:\n  {}", faults.len(), faults.join("\n  "));
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

/// The lines of each function, counted from `fn` to the brace at the same indent: rustfmt guarantees that form.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let Some(name) = function_name(code) else { continue };
        let indent = &line[..line.len() - code.len()];
        let closing = format!("{indent}}}");
        let ends = |line: &&str| **line == closing || **line == format!("{indent}}};");
        // A body on one line, or a declaration without one, has no closing brace of its own.
        let head_end = lines[at..].iter().position(|line| line.ends_with(['{', ';', '}'])).unwrap_or(0);
        if lines[at + head_end].ends_with('{')
            && let Some(length) = lines[at + head_end + 1..].iter().position(ends)
        {
            found.push((name.to_owned(), head_end + length + 2));
        }
    }
    found
}

fn function_name(code: &str) -> Option<&str> {
    let mut rest = code;
    loop {
        let (word, after) = rest.split_once(' ')?;
        match word {
            "fn" => return after.split(['(', '<']).next(),
            "pub" | "async" | "const" | "unsafe" | "extern" | "default" | "\"C\"" => rest = after,
            _ if word.starts_with("pub(") => rest = after,
            _ => return None,
        }
    }
}

#[test]
fn files_and_functions_fit_on_a_few_screens() {
    let mut faults = Vec::new();
    for (name, text) in with_extension("rs") {
        let lines = text.lines().count();
        if lines > MAX_FILE_LINES {
            faults.push(format!("{name} has {lines} lines, at most {MAX_FILE_LINES}"));
        }
        for (function, lines) in functions(&text).into_iter().filter(|(_, lines)| *lines > MAX_FUNCTION_LINES) {
            faults.push(format!("{name}: fn {function} has {lines} lines, at most {MAX_FUNCTION_LINES}"));
        }
    }
    fail_on(&faults);
}

#[test]
fn functions_are_measured() {
    let text = "impl X {\n    pub fn one(&self) -> u8 {\n        1\n    }\n\n    fn none(&self);\n}\n\nfn two(\n    a: u8,\n) {\n    a;\n}\n";
    assert_eq!(functions(text), [("one".to_owned(), 3), ("two".to_owned(), 5)]);
}

#[test]
fn layers_look_downwards_only() {
    let mut faults = Vec::new();
    for (name, text) in with_extension("rs") {
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !is_comment(line)) {
            let mut fault = |what: String| faults.push(format!("{name}:{}: {what}", number + 1));
            for (part, words, why) in LAYERS.iter().filter(|(part, ..)| name.starts_with(part)) {
                for word in words.iter().filter(|word| line.contains(**word)) {
                    fault(format!("`{word}` in {part}: {why}"));
                }
            }
            for (word, homes) in ONLY_IN {
                if !name.starts_with("tests/") && line.contains(word) && !homes.iter().any(|home| name.starts_with(home)) {
                    fault(format!("`{word}` outside {homes:?}"));
                }
            }
        }
    }
    fail_on(&faults);
}

/// The parts of the daemon that a file names as `crate::part`, also inside braces: `use crate::{part::x, other::{y, z}}`.
fn parts_used(text: &str) -> BTreeSet<String> {
    let code: String = text.lines().filter(|line| !is_comment(line)).collect::<Vec<_>>().join(" ");
    let mut parts = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        let word = |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        let Some(group) = after.strip_prefix('{') else {
            parts.insert(word(after));
            continue;
        };
        let mut depth = 0;
        let mut item = String::new();
        for c in group.chars() {
            match c {
                '}' if depth == 0 => break,
                ',' if depth == 0 => drop(parts.insert(word(&std::mem::take(&mut item)))),
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if !(c == ',' && depth == 0) {
                item.push(c);
            }
        }
        parts.insert(word(&item));
    }
    parts.remove("");
    parts
}

#[test]
fn parts_of_a_nested_use_are_seen() {
    let text = "use crate::{\n    log::{self, Mode},\n    mapping::Routes,\n};\nfn x() { crate::http::bind() }\n";
    assert_eq!(parts_used(text), BTreeSet::from(["http", "log", "mapping"].map(str::to_owned)));
}

#[test]
fn parts_use_only_what_they_may() {
    let mut faults = Vec::new();
    for (name, text) in with_extension("rs") {
        let Some((part, allowed)) = MAY_USE.iter().find(|(part, _)| name.starts_with(part)) else { continue };
        let own = part.trim_start_matches("src/").trim_end_matches('/').trim_end_matches(".rs");
        for used in parts_used(&text).iter().filter(|used| *used != own && !allowed.contains(&used.as_str())) {
            faults.push(format!("{name} uses {used}, which {part} may not"));
        }
    }
    fail_on(&faults);
}

#[test]
fn connectors_do_not_know_each_other() {
    let mut faults = Vec::new();
    for (name, text) in with_extension("toml") {
        let Some(own) = name.strip_prefix("connectors/").and_then(|rest| rest.strip_suffix("/Cargo.toml")) else { continue };
        for line in text.lines().filter(|line| line.starts_with("headwater")) {
            if own == "api" || !line.starts_with("headwater-connector") {
                faults.push(format!("{name}: {line}"));
            }
        }
    }
    fail_on(&faults);
}

#[test]
fn nothing_is_left_for_later() {
    let mut faults = Vec::new();
    // Spelled in two halves, so that this file does not find itself.
    let words = [
        concat!("todo", "!"),
        concat!("unimplemented", "!"),
        concat!("#[", "ignore"),
        concat!("dbg", "!("),
        concat!("FIX", "ME"),
    ];
    for (name, text) in with_extension("rs") {
        for (number, line) in text.lines().enumerate() {
            for word in words.iter().filter(|word| line.contains(**word)) {
                faults.push(format!("{name}:{}: {word}", number + 1));
            }
        }
    }
    fail_on(&faults);
}

#[test]
fn every_error_code_has_one_page_and_every_page_a_code() {
    let mut declared: BTreeMap<String, String> = BTreeMap::new();
    let mut pages = BTreeSet::new();
    let mut faults = Vec::new();
    for (name, text) in with_extension("rs") {
        for line in text.lines().filter(|line| !is_comment(line)) {
            // A declaration: NAME = "HW1234", Kind, "title";
            let Some((_, rest)) = line.split_once(" = \"HW") else { continue };
            let id = format!("HW{}", rest.split('"').next().unwrap_or_default());
            if rest.contains("\", ")
                && line.trim_end().ends_with("\";")
                && id.len() == 6
                && let Some(other) = declared.insert(id.clone(), name.clone())
            {
                faults.push(format!("{id} is declared in {other} and in {name}"));
            }
        }
    }
    for (name, text) in with_extension("md") {
        let path = Path::new(&name);
        let Some(id) = path.file_stem().and_then(|stem| stem.to_str()).filter(|stem| is_code(stem)) else { continue };
        if !pages.insert(id.to_owned()) {
            faults.push(format!("{id} has two pages"));
        }
        if !text.starts_with(&format!("# {id}: ")) {
            faults.push(format!("{name} does not begin with `# {id}: `"));
        }
    }
    let ids: BTreeSet<String> = declared.keys().cloned().collect();
    faults.extend(ids.difference(&pages).map(|id| format!("{id} has no page")));
    faults.extend(pages.difference(&ids).map(|id| format!("{id} has a page and is not declared")));
    assert!(ids.len() > 5, "the declarations have another form than this test reads");
    fail_on(&faults);
}

fn is_code(text: &str) -> bool {
    text.len() == 6 && text.starts_with("HW") && text[2..].bytes().all(|byte| byte.is_ascii_digit())
}

#[test]
fn links_between_documents_resolve() {
    let mut faults = Vec::new();
    for (name, text) in with_extension("md") {
        let folder = root().join(&name).parent().expect("a folder").to_owned();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split(['#', ' ']).next().unwrap_or_default();
            let elsewhere = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
            if !elsewhere && !folder.join(target).exists() {
                faults.push(format!("{name}: {target}"));
            }
        }
    }
    fail_on(&faults);
}

/// The image compiles the dependencies over empty crates; a crate that is not there makes that fail.
#[test]
fn the_image_copies_every_manifest() {
    let text = std::fs::read_to_string(root().join("Dockerfile")).expect("the Dockerfile");
    let crates = std::fs::read_dir(root().join("connectors")).expect("the connectors");
    let names = crates.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"));
    let missing: Vec<String> = names.filter(|name| !text.contains(&format!("COPY connectors/{name}/Cargo.toml"))).collect();
    fail_on(&missing);
}
