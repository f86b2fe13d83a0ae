//! What the config means: resolved, cross-checked, all faults at once.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use headwater_connector::{ConnectorKind, Error, OptionFault, SourceConnector, SourceContext, codes::SECRET_MISSING};
use sha2::{Digest, Sha256};

use super::{
    codes, raw, rules,
    tree::{Entry, Node, Place, Tree, join},
    typed::{self, Misfit},
    validate::relocate,
};
use crate::{log::LogPlan, mapping::rule::Events, registry};

/// Everything that `run`, `check` and `plan` work from. Nothing in it was connected to yet.
pub struct Plan {
    /// Where topics live.
    pub log: LogPlan,
    /// `log.prefix`: begins the names of internal topics and ids.
    pub prefix: String,
    /// `http.listen`; none switches HTTP off.
    pub listen: Option<SocketAddr>,
    /// Sources in the order of the files.
    pub sources: Vec<SourcePlan>,
    /// Findings that do not stop, for example a literal secret.
    pub warnings: Vec<Error>,
    /// Equal for equal `log` parts.
    pub log_fingerprint: String,
}

/// One source connector.
#[derive(Clone)]
pub struct SourcePlan {
    /// The connector's name.
    pub name: String,
    /// Its kind.
    pub kind: &'static dyn ConnectorKind,
    /// The connector itself, built from its options.
    pub connector: Arc<dyn SourceConnector>,
    /// How rows become events.
    pub events: Events,
    /// When a log transaction is closed: the `commit` part.
    pub commit: raw::CommitOptions,
    /// The file that declares it.
    pub file: PathBuf,
    /// Equal for equal options; tells nothing about them, since a secret may be among them.
    pub fingerprint: String,
}

/// Reads a validated tree. Faults are added to those that are known; parts that have one already are left out.
pub(super) fn plan(
    kinds: &[&'static dyn ConnectorKind],
    main: &Path,
    root: &Node,
    faults: &mut Vec<Error>,
    mut warnings: Vec<Error>,
) -> Option<Plan> {
    let listen = listen(root, faults);
    let log = log(root, faults);
    let prefix = log.as_ref().map_or_else(|| raw::Log::default().prefix, |(_, prefix)| prefix.clone());
    let connectors = root.get("connectors").map_or(&[][..], Node::entries);
    if connectors.is_empty() {
        let error = Error::new(&codes::NO_CONNECTORS, "no connector is configured").at("file", main.display());
        warnings.push(error.hint("Add `connectors:`, or `include:` the files that have them."));
    }
    let reader = Reader { kinds, main, prefix: &prefix };
    let sources: Vec<SourcePlan> = connectors.iter().filter_map(|entry| reader.source(entry, faults)).collect();
    faults.extend(shared(&sources, root));
    let (log, prefix) = log?;
    let log_fingerprint = root.get("log").map_or_else(String::new, fingerprint);
    Some(Plan { log, prefix, listen, sources, warnings, log_fingerprint })
}

/// Connectors that would take from each other what only one may have: the first has it.
fn shared(sources: &[SourcePlan], root: &Node) -> Vec<Error> {
    let mut owners: BTreeMap<String, &str> = BTreeMap::new();
    let mut faults = Vec::new();
    for source in sources {
        let Some(what) = source.connector.exclusive() else { continue };
        if let Some(owner) = owners.get(&what) {
            let option = format!("connectors.{}.source", source.name);
            let error = Error::new(&codes::DUPLICATE, format!("{what} is that of the connector {owner:?}"));
            let hint = "Remove the option that names it from one of the two: by default each connector has one of its own.";
            faults.push(root.nearest(&option).place.mark(error).at("option", option).hint(hint));
        } else {
            owners.insert(what, &source.name);
        }
    }
    faults
}

/// Of a part of the config, to see whether it changed.
fn fingerprint(node: &Node) -> String {
    let digest = Sha256::digest(node.to_json().to_string());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The options whose shape is wrong, so that nothing can be read from them.
fn broken(faults: &[Error]) -> Vec<String> {
    // A secret that is missing has the right shape, and of duplicates the first one stays.
    let shapeless = |fault: &&Error| ![codes::DUPLICATE.id, SECRET_MISSING.id].contains(&fault.code().id);
    let options = faults.iter().filter(shapeless).flat_map(Error::place);
    options.filter(|(label, _)| *label == "option").map(|(_, path)| path.clone()).collect()
}

/// Whether one of the broken options is this one or below it.
fn touches(broken: &[String], option: &str) -> bool {
    let inside = |path: &String| path.strip_prefix(option).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    broken.iter().any(inside)
}

/// A copy without what is broken, so that one fault does not hide those beside it. A list loses all or nothing: the places of
/// its items are counted.
fn sound(node: &Node, path: &str, broken: &[String]) -> Node {
    let Tree::Map(entries) = &node.tree else { return node.clone() };
    let kept = entries.iter().filter_map(|entry| {
        let path = join(path, &entry.key);
        let gone =
            |option: &String| option.strip_prefix(path.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('['));
        let entry = Entry { value: sound(&entry.value, &path, broken), ..entry.clone() };
        (!broken.iter().any(gone)).then_some(entry)
    });
    Node { place: node.place.clone(), tree: Tree::Map(kept.collect()) }
}

fn misfit(misfit: Misfit, option: &str) -> Error {
    let error = Error::new(&codes::BAD_VALUE, misfit.what);
    let error = misfit.place.unwrap_or(Place::Default).mark(error);
    let option = if misfit.path.is_empty() { option.to_owned() } else { join(option, &misfit.path) };
    error.at("option", option).hint("Correct the value; `headwater connectors` and the examples show what is expected.")
}

/// The `log` part and its prefix.
pub(super) fn log(root: &Node, faults: &mut Vec<Error>) -> Option<(LogPlan, String)> {
    let broken = broken(faults);
    let node = sound(root.get("log")?, "log", &broken);
    let Tree::Map(_) = node.tree else { return None };
    let own = ["kind", "prefix"];
    let plan = match node.get("kind").and_then(Node::text) {
        Some("embedded") => typed::read(&node, &own).map(LogPlan::Embedded),
        Some("kafka") => typed::read(&node, &own).map(Box::new).map(LogPlan::Kafka),
        _ => return None,
    };
    let prefix = match node.get("prefix").filter(|node| !matches!(node.tree, Tree::Null)) {
        Some(prefix) => match rules::prefix(prefix) {
            None => prefix.text().unwrap_or_default().to_owned(),
            // The names that begin with it must not be blamed for it.
            Some(fault) => {
                faults.push(fault);
                raw::Log::default().prefix
            }
        },
        None => raw::Log::default().prefix,
    };
    match plan {
        Ok(plan) => {
            if let LogPlan::Kafka(options) = &plan {
                faults.extend(kafka_faults(options, root, &broken));
            }
            Some((plan, prefix))
        }
        // What is broken was reported where it stands; a complaint about the rest would be an echo.
        Err(_) if touches(&broken, "log") => None,
        Err(what) => {
            faults.push(misfit(what, "log"));
            None
        }
    }
}

/// What the Kafka log finds in its own options, with the place in the files.
fn kafka_faults(options: &crate::log::kafka::Options, root: &Node, broken: &[String]) -> Vec<Error> {
    let located = |fault: Error| {
        let option = fault.place().iter().find(|(label, _)| *label == "option").map_or("log", |(_, path)| path).to_owned();
        // The parts of `security` are judged together.
        let part = if option.starts_with("log.security") { "log.security" } else { option.as_str() };
        let place = &root.nearest(&option).place;
        (!touches(broken, part))
            .then(|| place.mark(Error::new(fault.code(), fault.what())).at("option", &option).hint(fault.hint_text()))
    };
    options.faults().into_iter().filter_map(located).collect()
}

/// Where HTTP listens.
pub(super) fn listen(root: &Node, faults: &mut Vec<Error>) -> Option<SocketAddr> {
    if touches(&broken(faults), "http") {
        return None;
    }
    let http = match root.get("http").filter(|node| !matches!(node.tree, Tree::Null)) {
        Some(node) => typed::read::<raw::Http>(node, &[]),
        None => Ok(raw::Http::default()),
    };
    let place = || root.get("http").map_or(Place::Default, |node| node.nearest("listen").place.clone());
    let result = match http {
        Ok(http) => http.listen.map_or(Ok(None), |text| rules::listen(&text, &place())),
        Err(what) => Err(misfit(what, "http")),
    };
    result.unwrap_or_else(|error| {
        faults.push(error);
        None
    })
}

struct Reader<'a> {
    kinds: &'a [&'static dyn ConnectorKind],
    main: &'a Path,
    prefix: &'a str,
}

impl Reader<'_> {
    fn source(&self, entry: &Entry, faults: &mut Vec<Error>) -> Option<SourcePlan> {
        let path = format!("connectors.{}", entry.key);
        let broken = broken(faults);
        let misnamed = rules::name(entry, self.prefix);
        // A name that is not allowed must not be blamed again in every topic.
        let name = if misnamed.is_some() { "x" } else { entry.key.as_str() };
        faults.extend(misnamed);
        if broken.contains(&path) {
            return None;
        }
        faults.extend(rules::source_or_sink(entry, &path));
        let readable = sound(&entry.value, &path, &broken);
        let connector = typed::read::<raw::Connector>(&readable, &["source", "sink"]);
        let connector = connector.map_err(|what| faults.push(misfit(what, &path))).ok()?;
        rules::events(name, &connector.events, &entry.value, &path, faults);
        let source = readable.get("source")?;
        let kind = registry::find(self.kinds, source.get("kind").and_then(Node::text)?).ok()?;
        let keys = connector.events.tables.iter();
        let context = SourceContext {
            connector: entry.key.clone(),
            prefix: self.prefix.to_owned(),
            keys: keys.filter_map(|(table, rule)| Some((table.clone(), rule.key.clone()?))).collect(),
        };
        let mut options = source.to_json();
        if let Some(options) = options.as_object_mut() {
            options.remove("kind");
        }
        match kind.source(&context, options) {
            Err(mut inner) => {
                let source_path = join(&path, "source");
                if touches(&broken, &source_path) {
                    // Without what is broken the whole may not be readable; that would be an echo.
                    inner.retain(|fault| !fault.path.is_empty());
                }
                faults.extend(inner.iter().map(|fault| option_fault(fault, entry.value.nearest("source"), &source_path)));
                None
            }
            Ok(built) => Some(SourcePlan {
                name: entry.key.clone(),
                kind,
                connector: Arc::from(built),
                events: connector.events,
                commit: connector.commit,
                file: entry.place.file().unwrap_or(self.main).to_owned(),
                fingerprint: fingerprint(&entry.value),
            }),
        }
    }
}

fn option_fault(fault: &OptionFault, source: &Node, path: &str) -> Error {
    let option = match fault.path.as_str() {
        "" => path.to_owned(),
        inner if inner.starts_with('[') => format!("{path}{inner}"),
        inner => join(path, inner),
    };
    relocate(&fault.error, &source.nearest(&fault.path).place, &option)
}
