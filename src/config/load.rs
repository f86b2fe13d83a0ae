//! Files, includes and environment to one located tree, and from there to the plan.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use headwater_connector::{ConnectorKind, Error};

use super::{
    closest::closest,
    codes, env,
    parse::{duplicate, parse},
    plan::{self, Plan},
    schema,
    tree::{Entry, Node, Place, Tree},
    validate::Validator,
};
use crate::{log::LogPlan, registry::CONNECTORS};

/// How much of the configuration a command needs. `tail` and `status` must work for somebody who does not have the secrets of
/// the connectors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    All,
    Log,
    Http,
}

impl Scope {
    fn covers(self, key: &str) -> bool {
        match self {
            Self::All => true,
            Self::Log => key == "log",
            Self::Http => key == "http",
        }
    }
}

/// Reads the whole configuration and reports every fault of all files.
pub fn load(main: &Path, env: impl Iterator<Item = (String, String)>) -> Result<Plan, Vec<Error>> {
    load_with(CONNECTORS, main, env)
}

/// [`load`] with other kinds than those that are compiled in, for tests.
pub fn load_with(
    kinds: &[&'static dyn ConnectorKind],
    main: &Path,
    env: impl Iterator<Item = (String, String)>,
) -> Result<Plan, Vec<Error>> {
    let mut loaded = tree(kinds, main, env, Scope::All)?;
    let plan = plan::plan(kinds, main, &loaded.root, &mut loaded.faults, loaded.warnings);
    if loaded.faults.is_empty() { plan.ok_or_else(Vec::new) } else { Err(in_order(loaded.faults, main)) }
}

/// Faults in the order of the files, the main one first, so that whoever mends them goes through each file once.
/// What stands in no file comes last.
fn in_order(mut faults: Vec<Error>, main: &Path) -> Vec<Error> {
    let main = main.to_string_lossy();
    faults.sort_by_cached_key(|fault| {
        let place = fault.place().iter().find(|(label, _)| *label == "file").map(|(_, value)| value.as_str());
        let mut parts = place.unwrap_or_default().rsplitn(3, ':');
        let mut number = || parts.next().and_then(|part| part.parse::<u64>().ok()).unwrap_or_default();
        let (column, line) = (number(), number());
        let file = parts.next().unwrap_or_default().to_owned();
        (place.is_none(), file != main, file, line, column)
    });
    faults
}

/// Reads only where topics live and `log.prefix`.
pub fn load_log(main: &Path, env: impl Iterator<Item = (String, String)>) -> Result<(LogPlan, String), Vec<Error>> {
    let mut loaded = tree(CONNECTORS, main, env, Scope::Log)?;
    let log = plan::log(&loaded.root, &mut loaded.faults);
    log.filter(|_| loaded.faults.is_empty()).ok_or_else(|| in_order(loaded.faults, main))
}

/// Reads only where the daemon listens; none if HTTP is off.
pub fn load_http(main: &Path, env: impl Iterator<Item = (String, String)>) -> Result<Option<std::net::SocketAddr>, Vec<Error>> {
    let mut loaded = tree(CONNECTORS, main, env, Scope::Http)?;
    let listen = plan::listen(&loaded.root, &mut loaded.faults);
    if loaded.faults.is_empty() { Ok(listen) } else { Err(in_order(loaded.faults, main)) }
}

struct Loaded {
    root: Node,
    faults: Vec<Error>,
    warnings: Vec<Error>,
}

/// The merged and validated tree. It fails only if there is nothing to go on with.
fn tree(
    kinds: &[&'static dyn ConnectorKind],
    main: &Path,
    env: impl Iterator<Item = (String, String)>,
    scope: Scope,
) -> Result<Loaded, Vec<Error>> {
    let whole = schema::whole(kinds);
    let base = main.parent().unwrap_or(Path::new("")).to_owned();
    let mut faults = Vec::new();
    let hint = "Name the main config file with -c FILE, and make sure that this user may read it.";
    let Some(mut root) = read(main, hint, &mut faults) else { return Err(faults) };
    let overrides = env::overrides(env);
    let set = |root: &mut Node, faults: &mut Vec<Error>, wanted: &dyn Fn(&env::Override) -> bool| {
        for variable in overrides.iter().filter(|variable| wanted(variable)) {
            faults.extend(env::apply(root, &whole, variable).err());
        }
    };
    if scope == Scope::All {
        // Which files there are must be known before the variables that override their connectors.
        set(&mut root, &mut faults, &|variable| variable.part() == "include");
        include(main, &base, &mut root, &mut faults);
    } else if let Tree::Map(entries) = &mut root.tree {
        entries.retain(|entry| scope.covers(&entry.key));
    }
    let kind_is_set = overrides.iter().any(|variable| variable.part() == "log" && variable.sets_kind());
    let default_log = root.get("log").is_none_or(|log| matches!(log.tree, Tree::Null)) && !kind_is_set;
    if default_log && let Some(entries) = root.entries_mut() {
        let log = Node::from_json(serde_json::json!({ "kind": "embedded", "path": "./data" }), &Place::Default);
        entries.retain(|entry| entry.key != "log");
        entries.push(Entry { key: "log".into(), place: Place::Default, value: log });
    }
    set(&mut root, &mut faults, &|variable| {
        variable.part() != "include" && (scope == Scope::All || scope.covers(variable.part()))
    });
    let mut validator = Validator::new(&whole, &base);
    validator.node(&mut root, &whole, "");
    faults.append(&mut validator.faults);
    Ok(Loaded { warnings: validator.warnings, root, faults })
}

fn read(path: &Path, hint: &str, faults: &mut Vec<Error>) -> Option<Node> {
    let file: Arc<Path> = Arc::from(path);
    let unreadable = |error: std::io::Error| {
        Error::new(&codes::FILE_UNREADABLE, "config file cannot be read").at("file", path.display()).hint(hint).caused_by(error)
    };
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let node = parse(&file, &text, faults)?;
            if matches!(node.tree, Tree::Map(_)) {
                return Some(node);
            }
            let error = Error::new(&codes::WRONG_TYPE, format!("expected options, found {}", node.describe()));
            faults.push(node.place.mark(error).hint("Begin with `connectors:` or another option."));
            None
        }
        Err(error) => {
            faults.push(unreadable(error));
            None
        }
    }
}

/// Reads the files that `include` names and adds their connectors to the main tree.
fn include(main: &Path, base: &Path, root: &mut Node, faults: &mut Vec<Error>) {
    let mut seen: Vec<PathBuf> = vec![same_file(main)];
    let patterns: Vec<Node> = root.get("include").map(|node| node.items().to_vec()).unwrap_or_default();
    for (index, pattern) in patterns.iter().enumerate() {
        let Some(text) = pattern.text() else { continue }; // The validator has a message about it.
        let option = format!("include[{index}]");
        let full = if Path::new(text).is_absolute() {
            text.to_owned()
        } else {
            Path::new(&glob::Pattern::escape(&base.to_string_lossy())).join(text).to_string_lossy().into_owned()
        };
        let files = match glob::glob(&full) {
            Ok(files) => files,
            Err(error) => {
                let error = Error::new(&codes::BAD_VALUE, format!("not a valid pattern: {}", error.msg));
                faults.push(
                    pattern.place.mark(error).at("option", option).hint("Use * for any text in a name, ** for any directories."),
                );
                continue;
            }
        };
        let files: Vec<PathBuf> = files.filter_map(Result::ok).filter(|file| file.is_file()).collect();
        if files.is_empty() {
            let error = Error::new(&codes::INCLUDE_NO_MATCH, format!("no file matches {full}"));
            let hint = "Create the file, or correct the pattern; it is relative to the main config file.";
            faults.push(pattern.place.mark(error).at("option", option).hint(hint));
        }
        for file in files {
            let identity = same_file(&file);
            if !seen.contains(&identity) {
                seen.push(identity);
                add(&file, root, faults);
            }
        }
    }
}

/// Two patterns may match one file, under two names.
fn same_file(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

fn add(file: &Path, root: &mut Node, faults: &mut Vec<Error>) {
    let hint = "Make sure that this user may read it and that it is text in UTF-8, or narrow `include` in the main config file.";
    let Some(node) = read(file, hint, faults) else { return };
    let Tree::Map(entries) = node.tree else { return };
    for entry in entries {
        if entry.key != "connectors" {
            let error = Error::new(&codes::INCLUDE_CONTENT, format!("{} cannot be set in an included file", entry.key));
            let hint = match closest(&entry.key, ["connectors"]) {
                Some(_) => "Did you mean connectors? Write connectors.",
                None => "Move it to the main config file; included files hold `connectors` only.",
            };
            faults.push(entry.place.mark(error).at("option", &entry.key).hint(hint));
            continue;
        }
        let connectors = match entry.value.tree {
            Tree::Map(connectors) => connectors,
            Tree::Null => continue,
            _ => {
                let error = Error::new(&codes::WRONG_TYPE, format!("expected a map, found {}", entry.value.describe()));
                faults.push(entry.value.place.mark(error).at("option", "connectors").hint("Write the connectors by name."));
                continue;
            }
        };
        let Some(main) = root.entries_mut() else { return };
        if !main.iter().any(|entry| entry.key == "connectors") {
            main.push(Entry { key: "connectors".into(), place: entry.place.clone(), value: Node::empty_map(entry.value.place) });
        }
        let Some(known) = main.iter_mut().find(|entry| entry.key == "connectors").and_then(|entry| entry.value.entries_mut())
        else {
            continue;
        };
        for connector in connectors {
            match known.iter().find(|entry| entry.key == connector.key) {
                Some(first) => {
                    faults.push(duplicate(&format!("connectors.{}", connector.key), &first.place, &connector.place));
                }
                None => known.push(connector),
            }
        }
    }
}
