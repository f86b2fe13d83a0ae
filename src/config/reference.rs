//! Reference pages: what the schema says, as rows for `connectors KIND` and as Markdown for the docs.

use headwater_connector::ConnectorKind;
use serde::Serialize;
use serde_json::Value as Json;

use super::schema::{accepts, alternatives, is_path, is_secret, resolve, tag, words};

/// One option.
#[derive(Debug, Serialize)]
pub struct OptionRow {
    /// Path below the part that the page describes.
    pub name: String,
    /// What it takes, in words.
    pub r#type: String,
    /// Whether there is no default.
    pub required: bool,
    /// The default as JSON; none if there is none, or if it depends.
    pub default: Option<Json>,
    /// The doc comment.
    pub description: String,
}

/// The options of a source of this kind, with `kind` itself in front.
pub fn source_options(kind: &dyn ConnectorKind) -> Option<Vec<OptionRow>> {
    let schema: Json = kind.source_options()?.into();
    let mut rows = vec![OptionRow {
        name: "kind".into(),
        r#type: format!("`{}`", kind.name()),
        required: true,
        default: None,
        description: match kind.synonyms() {
            [] => "Chooses these options.".to_owned(),
            others => format!("Chooses these options. Also written `{}`.", others.join("`, `")),
        },
    }];
    rows.extend(options(&schema, &schema));
    Some(rows)
}

/// All options of a map, those of inner maps behind their own.
pub fn options(root: &Json, schema: &Json) -> Vec<OptionRow> {
    let mut rows = Vec::new();
    collect(root, resolve(root, schema), "", 0, &mut rows);
    rows
}

fn collect(root: &Json, schema: &Json, prefix: &str, depth: usize, rows: &mut Vec<OptionRow>) {
    let required = schema["required"].as_array();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let inner = resolve(root, property);
        if inner.get("x-later").is_some() {
            continue;
        }
        let path = format!("{prefix}{name}");
        let text = [property, inner].iter().find_map(|schema| schema["description"].as_str()).unwrap_or_default();
        rows.push(OptionRow {
            name: path.clone(),
            r#type: type_name(root, property),
            required: required.is_some_and(|list| list.iter().any(|item| item == name)),
            default: property.get("default").filter(|default| !is_empty(default)).cloned(),
            description: describe(root, inner, text),
        });
        // Options that contain each other would never end; ours are a few levels deep.
        if depth < 4 && !is_secret(inner) {
            below(root, inner, &path, depth, rows);
        }
    }
}

fn below(root: &Json, schema: &Json, path: &str, depth: usize, rows: &mut Vec<OptionRow>) {
    let variants: Vec<&Json> =
        alternatives(root, schema).into_iter().filter(|variant| variant.get("properties").is_some()).collect();
    let tag = tag(root, &variants).filter(|_| variants.len() > 1);
    for variant in &variants {
        let word =
            tag.and_then(|tag| words(&[resolve(root, &variant["properties"][tag])])).and_then(|words| words.first().copied());
        // The connectors' own options have pages of their own.
        match word {
            Some(word) => collect(root, variant, &format!("{path}({word})."), depth + 1, rows),
            None => collect(root, variant, &format!("{path}."), depth + 1, rows),
        }
    }
    for variant in alternatives(root, schema) {
        if let Some(other) = variant.get("additionalProperties").filter(|other| other.is_object()) {
            below(root, resolve(root, other), &format!("{path}.NAME"), depth + 1, rows);
        }
        if let Some(items) = variant.get("items").filter(|items| items.is_object()) {
            below(root, resolve(root, items), &format!("{path}[]"), depth + 1, rows);
        }
    }
}

fn is_empty(default: &Json) -> bool {
    match default {
        Json::Null => true,
        // The defaults of the inner options are listed with them.
        Json::Object(_) => true,
        Json::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// The description, and for a choice among words what each of them does.
fn describe(root: &Json, schema: &Json, text: &str) -> String {
    let mut text = text.replace("\n\n", "\u{1}").replace('\n', " ").replace('\u{1}', "\n");
    let variants = alternatives(root, schema);
    // A single word is a tag, whose description is this text already.
    if variants.len() > 1 && words(&variants).is_some() {
        for variant in variants {
            if let (Some(word), Some(about)) = (variant["const"].as_str(), variant["description"].as_str()) {
                let about = about.replace('\n', " ");
                text.push_str(&format!("\n`{word}`: {about}"));
            }
        }
    }
    text.trim().to_owned()
}

fn type_name(root: &Json, schema: &Json) -> String {
    let schema = resolve(root, schema);
    if is_secret(schema) {
        return "secret".into();
    }
    if is_path(schema) {
        return "path".into();
    }
    let variants: Vec<&Json> = alternatives(root, schema).into_iter().filter(|variant| variant["type"] != "null").collect();
    if let Some(words) = words(&variants) {
        return words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    }
    let mut names: Vec<String> = Vec::new();
    for variant in variants {
        let name = if is_secret(variant) { "secret".into() } else { simple_type(root, variant) };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    // The plain form first: `text or list of texts`.
    names.sort_by_key(|name| name.starts_with("list"));
    names.join(" or ")
}

fn simple_type(root: &Json, schema: &Json) -> String {
    if accepts(schema, "array") && schema.get("type").is_some() {
        return match schema.get("items") {
            Some(items) => format!("list of {}s", type_name(root, items)),
            None => "list".into(),
        };
    }
    let range = match (schema["minimum"].as_f64(), schema["maximum"].as_f64()) {
        (Some(least), Some(most)) => format!(", {least} to {most}"),
        (Some(least), None) if least > 0.0 => format!(", at least {least}"),
        (None, Some(most)) => format!(", at most {most}"),
        _ => String::new(),
    };
    let named =
        [("integer", "whole number"), ("number", "number"), ("string", "text"), ("boolean", "true or false"), ("object", "map")];
    let name = named.iter().find(|(name, _)| accepts(schema, name)).map_or("value", |(_, words)| words);
    format!("{name}{range}")
}

/// A Markdown table of the rows, with the choices and paragraphs of a description in one cell.
pub fn markdown(rows: &[OptionRow]) -> String {
    let mut out = String::from("| Option | Type | Default | Description |\n|---|---|---|---|\n");
    for row in rows {
        let default = match (&row.default, row.required) {
            (Some(default), _) => format!("`{}`", default.as_str().map_or_else(|| default.to_string(), str::to_owned)),
            (None, true) => "**required**".into(),
            (None, false) => String::new(),
        };
        let description = row.description.replace('|', "\\|").replace('\n', "<br>");
        out.push_str(&format!("| `{}` | {} | {default} | {description} |\n", row.name, row.r#type));
    }
    out
}

const GENERATED: &str = "<!-- Generated from the option structs by a test. Change the doc comments there. -->";

/// The reference page of a kind.
pub fn source_page(kind: &dyn ConnectorKind) -> Option<String> {
    let rows = source_options(kind)?;
    let mut page = format!("# Source `{}`\n\n{GENERATED}\n\n{}.\n\n", kind.name(), kind.summary());
    page.push_str("Options of `connectors.NAME.source`:\n\n");
    page.push_str(&markdown(&rows));
    Some(page)
}

/// The reference page of the main file, without the parts that have pages of their own.
pub fn main_page(whole: &Json) -> String {
    let elsewhere = ["log(", "connectors.NAME.source", "connectors.NAME.events."];
    let rows = options(whole, whole).into_iter().filter(|row| !elsewhere.iter().any(|part| row.name.starts_with(part)));
    format!(
        "# The config file\n\n{GENERATED}\n\nYAML, TOML or JSON, by the file's extension. A secret is `{{ env: NAME }}`, \
         `{{ file: PATH }}`, or the text itself, about\nwhich `check` warns. Relative paths begin at the file that says them. \
         Variables of the environment override options:\n`HEADWATER_LOG__PREFIX` is `log.prefix`; lists are separated by commas.\n\n{}\n\
         The parts of it: [log](log.md), [events](events.md), and for `connectors.NAME.source` [mysql](mysql.md), [postgres](postgres.md).\n",
        markdown(&rows.collect::<Vec<_>>())
    )
}

/// The reference page of `events`.
pub fn events_page(whole: &Json) -> String {
    let rows = options(whole, &whole["$defs"]["Events"]);
    format!("# Events\n\n{GENERATED}\n\nOptions of `connectors.NAME.events`:\n\n{}", markdown(&rows))
}

/// The reference page of `log`, with a table for each kind.
pub fn log_page(whole: &Json) -> String {
    let mut page = format!("# The log\n\n{GENERATED}\n\nOptions of `log`. Without it: the embedded log in `./data`.\n");
    for variant in alternatives(whole, &whole["$defs"]["Log"]) {
        let kind = &variant["properties"]["kind"];
        let (name, summary) = (kind["const"].as_str().unwrap_or_default(), kind["description"].as_str().unwrap_or_default());
        page.push_str(&format!("\n## `{name}`\n\n{summary}\n\n{}", markdown(&options(whole, variant))));
    }
    page
}
