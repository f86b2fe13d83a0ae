//! What no schema can say: names, topics, columns, addresses. Nothing here touches the network or a file.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use headwater_connector::Error;

use super::{
    closest::{closest, listed},
    codes,
    tree::{Entry, Node, Place, join},
};
use crate::{
    log::topic::{InternalTopics, name_fault},
    mapping::rule::{Events, TableRule},
};

const PARTS: [&str; 5] = ["connector", "entity", "schema", "table", "version"];

fn fault(code: &'static headwater_connector::Code, what: String, place: &Place, option: &str, hint: &str) -> Error {
    place.mark(Error::new(code, what)).at("option", option).hint(hint)
}

/// `log.prefix` begins topic names and ids.
pub fn prefix(node: &Node) -> Option<Error> {
    let what = name_fault(node.text()?)?;
    let what = what.replace("topic name", "prefix");
    Some(fault(&codes::BAD_NAME, what, &node.place, "log.prefix", "Use letters, digits, '.', '_' and '-'."))
}

/// `http.listen`: loopback or nothing, as long as there is no token and no TLS.
pub fn listen(text: &str, place: &Place) -> Result<Option<SocketAddr>, Error> {
    if text.trim() == "off" {
        return Ok(None);
    }
    let option = "http.listen";
    let address = match text.strip_prefix("localhost:") {
        Some(port) => port.parse().ok().map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)),
        None => text.parse().ok(),
    };
    let Some(address) = address else {
        let what = format!("{text:?} is not an address with a port");
        return Err(fault(&codes::BAD_VALUE, what, place, option, "Write an address and a port, as in 127.0.0.1:8787, or off."));
    };
    if !address.ip().is_loopback() {
        let what = format!("{address} is open to other machines");
        let hint = "Use 127.0.0.1 or [::1]: listening remotely needs a token and TLS, which come in a later version.";
        return Err(fault(&codes::LISTEN_REMOTE, what, place, option, hint));
    }
    Ok(Some(address))
}

/// Names of connectors become parts of topics, ids and slots.
pub fn name(entry: &Entry, prefix: &str) -> Option<Error> {
    let name = entry.key.as_str();
    let option = format!("connectors.{name}");
    let first = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let rest = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '-'));
    if !(first && rest) {
        let what = format!("connector name {name:?} is not allowed");
        let hint = "Use lower-case letters, digits, '_' and '-', and begin with a letter or digit.";
        return Some(fault(&codes::BAD_NAME, what, &entry.place, &option, hint));
    }
    let what = name_fault(&InternalTopics::new(prefix, name).checkpoint)?;
    Some(fault(&codes::BAD_NAME, what, &entry.place, &option, "Choose a shorter name or prefix."))
}

/// A connector is a source or a sink.
pub fn source_or_sink(entry: &Entry, path: &str) -> Option<Error> {
    let source = entry.value.entry("source");
    let (what, place, option, hint) = match (source, entry.value.entry("sink")) {
        (Some(_), None) => return None,
        (Some(_), Some(sink)) => {
            ("the connector has both a source and a sink", &sink.place, "sink", "Make two connectors of it.")
        }
        (None, Some(sink)) => {
            ("this version has no kinds of sinks", &sink.place, "sink", "Remove the connector, or give it a source.")
        }
        (None, None) => ("the connector has no source", &entry.place, "source", "Add `source:` with a kind."),
    };
    Some(fault(&codes::SOURCE_OR_SINK, what.to_owned(), place, &join(path, option), hint))
}

/// Topics and columns of a connector's rules.
pub fn events(name: &str, events: &Events, connector: &Node, path: &str, faults: &mut Vec<Error>) {
    let path = join(path, "events");
    let node = connector.nearest("events");
    let version = events.version.as_deref();
    let mut check = |template: &str, values: &Values<'_>, option: &str| {
        if let Err((what, hint)) = topic(template, values) {
            let place = &node.nearest(option).place;
            faults.push(fault(&codes::BAD_TOPIC, what, place, &join(&path, option), &hint));
        }
    };
    check(&events.topic.0, &Values { connector: name, entity: None, table: None, version }, "topic");
    for (table, rule) in &events.tables {
        let values = Values { connector: name, entity: rule.entity.as_deref(), table: table.split_once('.'), version };
        match &rule.topic {
            Some(template) => check(&template.0, &values, &format!("tables.{table}.topic")),
            // The connector's own template was checked above; only what this entity makes of it is new.
            None if rule.entity.is_some() && topic(&events.topic.0, &Values { entity: None, ..values }).is_ok() => {
                check(&events.topic.0, &values, &format!("tables.{table}.entity"));
            }
            None => {}
        }
    }
    for (table, rule) in &events.tables {
        let option = format!("tables.{table}");
        if table.split('.').any(str::is_empty) || !table.contains('.') {
            let place = node.get("tables").and_then(|tables| tables.entry(table)).map_or(&node.place, |entry| &entry.place);
            let what = format!("{table:?} does not name a table");
            let hint = "Name the table with its schema or database, as in public.orders.";
            faults.push(fault(&codes::BAD_NAME, what, place, &join(&path, &option), hint));
        }
        columns(rule, node.nearest(&option), &join(&path, &option), faults);
    }
}

fn columns(rule: &TableRule, node: &Node, path: &str, faults: &mut Vec<Error>) {
    let mut add = |what: String, option: &str, hint: &str| {
        let place = &node.nearest(option).place;
        faults.push(fault(&codes::COLUMNS_CONTRADICT, what, place, &join(path, option), hint));
    };
    if rule.include.is_some() && rule.exclude.is_some() {
        add("include and exclude are both given".into(), "exclude", "Keep one of the two.");
    }
    let empty = |list: &Option<Vec<String>>| list.as_ref().is_some_and(Vec::is_empty);
    for (list, option) in [(&rule.key, "key"), (&rule.include, "include")] {
        if empty(list) {
            add(format!("{option} names no column"), option, "Name a column, or remove the option.");
        }
    }
    for (list, option) in [(&rule.key, "key"), (&rule.include, "include"), (&rule.exclude, "exclude")] {
        let list = list.as_deref().unwrap_or_default();
        for (index, column) in list.iter().enumerate().filter(|(index, column)| list[..*index].contains(column)) {
            add(format!("column {column} is named twice"), &format!("{option}[{index}]"), "Remove one of the two.");
        }
    }
    for column in rule.key.iter().flatten() {
        let excluded = rule.exclude.iter().flatten().position(|name| name == column);
        if let Some(index) = excluded {
            let what = format!("column {column} is in the key and cannot be excluded");
            add(what, &format!("exclude[{index}]"), "Remove it from exclude, or choose another key.");
        }
        if rule.include.as_ref().is_some_and(|include| !include.is_empty() && !include.contains(column)) {
            add(format!("key column {column} is not included"), "include", "Add the key columns to include.");
        }
    }
}

#[derive(Clone, Copy)]
struct Values<'a> {
    connector: &'a str,
    entity: Option<&'a str>,
    table: Option<(&'a str, &'a str)>,
    version: Option<&'a str>,
}

/// Fills the template with what is known; what only the server knows counts as one letter.
fn topic(template: &str, values: &Values<'_>) -> Result<String, (String, String)> {
    let mut name = String::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        name.push_str(&rest[..at]);
        let inner = rest[at..].strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let Some((part, after)) = inner else {
            return Err((format!("template {template:?} has a brace without its partner"), "Close the brace.".into()));
        };
        let bare = values.table.map_or("x", |(_, table)| table);
        name.push_str(match part {
            "connector" => values.connector,
            "entity" => values.entity.unwrap_or(bare),
            "schema" => values.table.map_or("x", |(schema, _)| schema),
            "table" => bare,
            "version" => values.version.ok_or_else(|| {
                let what = format!("template {template:?} has {{version}}, and events.version is not set");
                (what, "Set events.version, or remove {version}.".to_owned())
            })?,
            other => {
                let hint = match closest(other, PARTS) {
                    Some(close) => format!("Did you mean {{{close}}}? Write {{{close}}}."),
                    None => format!("Use {}.", listed(&PARTS.map(|part| format!("{{{part}}}")).each_ref().map(String::as_str))),
                };
                return Err((format!("template {template:?} has an unknown part {{{other}}}"), hint));
            }
        });
        rest = after;
    }
    name.push_str(rest);
    match name_fault(&name) {
        Some(what) => Err((what, "Choose a template that gives a legal topic name.".into())),
        None => Ok(name),
    }
}
