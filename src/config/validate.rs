//! The located tree against the schema: every fault, each with its place.
//!
//! It knows the part of JSON Schema that `schemars` derives from our structs. A general validator would know more, but its
//! messages would speak of `oneOf`, not of options.

use std::path::{Path, PathBuf};

use headwater_connector::{Error, Secret};
use serde_json::Value as Json;

use super::{
    closest::{closest, listed},
    codes,
    schema::{accepts, alternatives, is_path, is_secret, resolve, tag, variant, words},
    tree::{Node, Place, Tree, join},
    typed,
};

/// What the walk over one tree finds. Paths are made absolute to their file on the way.
pub struct Validator<'a> {
    /// The schema that `$ref` begins at.
    pub root: &'a Json,
    /// Directory of the main file, for paths that come from the environment.
    pub base: &'a Path,
    /// What stops.
    pub faults: Vec<Error>,
    /// What does not.
    pub warnings: Vec<Error>,
}

impl<'a> Validator<'a> {
    /// Nothing found yet.
    pub fn new(root: &'a Json, base: &'a Path) -> Self {
        Self { root, base, faults: Vec::new(), warnings: Vec::new() }
    }

    /// Walks a node.
    pub fn node(&mut self, node: &mut Node, schema: &'a Json, path: &str) {
        let schema = resolve(self.root, schema);
        if schema.get("x-later").is_some() {
            return; // The rules have a better message.
        }
        if is_secret(schema) {
            return self.secret(node, path);
        }
        let variants = alternatives(self.root, schema);
        match variants.as_slice() {
            // With one kind compiled in, `kind` is still what a reader must be told about first.
            [_] if schema.get("oneOf").is_some() && tag(self.root, &variants) == Some("kind") => {
                self.tagged(node, &variants, "kind", path);
            }
            [one] => self.plain(node, one, path),
            // An enum whose variants have descriptions is one choice among words.
            all if words(all).is_some() => self.word(node, all, path),
            all => self.choice(node, all, path),
        }
    }

    fn fault(&mut self, error: Error, place: &Place, path: &str, hint: impl Into<String>) {
        let path = if path.is_empty() { "(the whole file)" } else { path };
        self.faults.push(place.mark(error).at("option", path).hint(hint));
    }

    fn wrong_type(&mut self, node: &Node, expected: &str, path: &str) {
        let error = Error::new(&codes::WRONG_TYPE, format!("expected {expected}, found {}", node.describe()));
        let hint = match (&node.tree, expected) {
            (Tree::Number(_) | Tree::Bool(_), "a text") => "Put the value into quotes.".to_owned(),
            (Tree::Text(_) | Tree::Map(_), list) if list.starts_with("a list") => {
                "Put the items into brackets: [ one, two ].".to_owned()
            }
            _ => format!("Write {expected} here."),
        };
        self.fault(error, &node.place, path, hint);
    }

    fn plain(&mut self, node: &mut Node, schema: &'a Json, path: &str) {
        if schema.get("const").is_some() || schema.get("enum").is_some() {
            return self.word(node, &[schema], path);
        }
        // `events:` with nothing behind it is an empty map, and `include:` an empty list.
        if matches!(node.tree, Tree::Null) && !accepts(schema, "null") {
            if accepts(schema, "object") {
                node.tree = Tree::Map(Vec::new());
            } else if accepts(schema, "array") {
                node.tree = Tree::List(Vec::new());
            }
        }
        if !accepts(schema, json_type(node)) {
            return self.wrong_type(node, &expectation(&[schema]), path);
        }
        match &mut node.tree {
            Tree::Map(_) if schema.get("type").is_some() => self.map(node, schema, path),
            Tree::List(items) => {
                let count = items.len() as u64;
                if let Some(inner) = schema.get("items") {
                    for (index, item) in items.iter_mut().enumerate() {
                        self.node(item, inner, &format!("{path}[{index}]"));
                    }
                }
                if schema["minItems"].as_u64().is_some_and(|least| count < least) {
                    let error = Error::new(&codes::BAD_VALUE, "the list has too few items");
                    self.fault(error, &node.place.clone(), path, "Add an item, or remove the option to have its default.");
                }
            }
            Tree::Number(_) => self.number(node, schema, path),
            Tree::Text(text) if is_path(schema) => *text = self.absolute(&node.place, text),
            Tree::Text(text) if text.is_empty() && schema["minLength"].as_u64() > Some(0) => {
                let error = Error::new(&codes::BAD_VALUE, "the text is empty");
                self.fault(error, &node.place.clone(), path, "Give it a value, or remove the option.");
            }
            _ => {}
        }
    }

    fn word(&mut self, node: &Node, schemas: &[&Json], path: &str) {
        let choices = words(schemas).unwrap_or_default();
        let Some(text) = node.text() else {
            // The only null here is the "not given" of an optional choice.
            let nullable = schemas.iter().any(|schema| accepts(schema, "null") && schema.get("type").is_some());
            if !(nullable && matches!(node.tree, Tree::Null)) {
                self.wrong_type(node, &format!("one of {}", listed(&choices)), path);
            }
            return;
        };
        if !choices.contains(&text) {
            let error = Error::new(&codes::NOT_A_CHOICE, format!("{text:?} is not one of {}", listed(&choices)));
            self.fault(error, &node.place, path, closest_hint(text, &choices));
        }
    }

    fn choice(&mut self, node: &mut Node, variants: &[&'a Json], path: &str) {
        let nullable = |variant: &&&Json| variant["type"] == "null";
        if matches!(node.tree, Tree::Null) && variants.iter().any(|variant| nullable(&variant)) {
            return;
        }
        let variants: Vec<&'a Json> = variants.iter().filter(|variant| !nullable(variant)).copied().collect();
        if let [one] = variants.as_slice() {
            return self.node(node, one, path);
        }
        if words(&variants).is_some() {
            return self.word(node, &variants, path);
        }
        if let Some(tag) = tag(self.root, &variants) {
            return self.tagged(node, &variants, tag, path);
        }
        let kind = json_type(node);
        let fitting: Vec<&'a Json> = variants.iter().filter(|variant| accepts(variant, kind)).copied().collect();
        match fitting.as_slice() {
            [] => self.wrong_type(node, &expectation(&variants), path),
            [one] => self.node(node, one, path),
            many => self.best(node, many, path),
        }
    }

    /// Several variants could be meant: the one with the fewest faults was.
    fn best(&mut self, node: &mut Node, variants: &[&'a Json], path: &str) {
        let mut best: Option<(usize, &'a Json)> = None;
        for variant in variants {
            let mut trial = Self::new(self.root, self.base);
            trial.node(&mut node.clone(), variant, path);
            if best.is_none_or(|(fewest, _)| trial.faults.len() < fewest) {
                best = Some((trial.faults.len(), variant));
            }
        }
        if let Some((_, variant)) = best {
            self.node(node, variant, path);
        }
    }

    fn tagged(&mut self, node: &mut Node, variants: &[&'a Json], tag: &str, path: &str) {
        if !matches!(node.tree, Tree::Map(_)) {
            return self.wrong_type(node, "a map", path);
        }
        let choices: Vec<&str> = variants
            .iter()
            .flat_map(|variant| words(&[resolve(self.root, &variant["properties"][tag])]).unwrap_or_default())
            .collect();
        let option = join(path, tag);
        match node.get(tag) {
            None => {
                let error = Error::new(&codes::OPTION_MISSING, format!("option {tag} is missing"));
                self.fault(error, &node.place, &option, format!("Add `{tag}:` with one of {}.", listed(&choices)));
            }
            Some(value) => match value.text().map(|text| (text, variant(self.root, variants, tag, text))) {
                Some((_, Some(variant))) => self.plain(node, variant, path),
                Some((text, None)) => {
                    let code = if tag == "kind" { &codes::UNKNOWN_KIND } else { &codes::NOT_A_CHOICE };
                    let what = match choices.as_slice() {
                        [] => format!("{tag} {text:?} is not known"),
                        choices => format!("{tag} {text:?} is not one of {}", listed(choices)),
                    };
                    let (place, hint) = (value.place.clone(), closest_hint(text, &choices));
                    self.fault(Error::new(code, what), &place, &option, hint);
                }
                None => self.wrong_type(value, &format!("one of {}", listed(&choices)), &option),
            },
        }
    }

    fn map(&mut self, node: &mut Node, schema: &'a Json, path: &str) {
        let none = serde_json::Map::new();
        let properties = schema["properties"].as_object().unwrap_or(&none);
        for required in schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str) {
            if node.get(required).is_none() {
                let error = Error::new(&codes::OPTION_MISSING, format!("option {required} is missing"));
                let hint = match properties.get(required).and_then(|property| property["description"].as_str()) {
                    Some(text) => {
                        format!("Add `{required}:` ({}).", text.lines().next().unwrap_or_default().trim_end_matches('.'))
                    }
                    None => format!("Add `{required}:`."),
                };
                self.fault(error, &node.place, &join(path, required), hint);
            }
        }
        let Tree::Map(entries) = &mut node.tree else { return };
        for entry in entries {
            let path = join(path, &entry.key);
            match (schema["properties"].get(&entry.key), schema.get("additionalProperties")) {
                (Some(property), _) => self.node(&mut entry.value, property, &path),
                (None, Some(other @ Json::Object(_))) => self.node(&mut entry.value, other, &path),
                (None, Some(Json::Bool(false))) => {
                    let known: Vec<&str> = properties.keys().map(String::as_str).collect();
                    let error = Error::new(&codes::UNKNOWN_OPTION, format!("unknown option {}", entry.key));
                    self.fault(error, &entry.place, &path, closest_hint(&entry.key, &known));
                }
                _ => {}
            }
        }
    }

    fn number(&mut self, node: &Node, schema: &Json, path: &str) {
        let Tree::Number(number) = &node.tree else { return };
        let value = number.as_f64().unwrap_or_default();
        let format_max = match schema["format"].as_str() {
            Some("uint8") => Some(f64::from(u8::MAX)),
            Some("uint16") => Some(f64::from(u16::MAX)),
            Some("uint32") => Some(f64::from(u32::MAX)),
            Some("int32") => Some(f64::from(i32::MAX)),
            _ => None,
        };
        let least = schema["minimum"].as_f64();
        let most = schema["maximum"].as_f64().or(format_max);
        if least.is_none_or(|least| value >= least) && most.is_none_or(|most| value <= most) {
            return;
        }
        // The bound of the machine's integers is named only to whoever hits it.
        let most = schema["maximum"].as_f64().or(most.filter(|most| value > *most));
        let range = match (least, most) {
            (Some(least), Some(most)) => format!("from {least} to {most}"),
            (Some(least), None) => format!("of at least {least}"),
            (None, most) => format!("of at most {}", most.unwrap_or_default()),
        };
        let error = Error::new(&codes::BAD_VALUE, format!("{number} is out of range"));
        self.fault(error, &node.place, path, format!("Use a number {range}."));
    }

    /// Never names what it finds: a mistake in the shape may have the secret as a key.
    fn secret(&mut self, node: &mut Node, path: &str) {
        if let Tree::Map(entries) = &mut node.tree
            && let [entry] = entries.as_mut_slice()
            && entry.key == "file"
            && let Tree::Text(text) = &mut entry.value.tree
        {
            *text = self.absolute(&entry.value.place, text);
        }
        // A list would be read as the fields of a reference, and the message about the variable would name the secret.
        let read = if matches!(node.tree, Tree::List(_)) { None } else { typed::read::<Secret>(node, &[]).ok() };
        let Some(secret) = read else {
            let error = Error::new(&codes::WRONG_TYPE, "expected a secret: {env: NAME}, {file: PATH} or a text");
            let hint = match node.tree {
                Tree::Number(_) | Tree::Bool(_) => "Put the value into quotes, or better, refer to a variable: { env: NAME }.",
                _ => "Refer to a variable, { env: NAME }, or to a file, { file: PATH }.",
            };
            return self.fault(error, &node.place, path, hint);
        };
        if secret.is_literal() && node.place.file().is_some() {
            let error = Error::new(&codes::LITERAL_SECRET, "a secret stands in the file in plain text");
            let hint = "Move it to a variable and write { env: NAME }, or to a file and write { file: PATH }.";
            self.warnings.push(node.place.mark(error).at("option", path).hint(hint));
        }
        if let Err(error) = secret.reveal() {
            self.faults.push(relocate(&error, &node.place, path));
        }
    }

    fn absolute(&self, place: &Place, text: &str) -> String {
        let base = place.file().map_or(Some(self.base), Path::parent).unwrap_or(Path::new(""));
        // `./` in the middle of a path says nothing; `..` stays, because links may stand before it.
        let path: PathBuf = base.join(text).components().collect();
        path.to_string_lossy().into_owned()
    }
}

/// The error of somebody who does not know the files, with its place in them in front.
pub fn relocate(error: &Error, place: &Place, option: &str) -> Error {
    let mut located = place.mark(Error::new(error.code(), error.what())).at("option", option);
    for (label, value) in error.place() {
        let label = if *label == "file" { "refers to" } else { label };
        located = located.at(label, value);
    }
    located.hint(error.hint_text())
}

fn closest_hint(word: &str, known: &[&str]) -> String {
    match (closest(word, known.iter().copied()), known) {
        (Some(close), _) => format!("Did you mean {close}? Write {close}."),
        (None, []) => "Remove it.".to_owned(),
        (None, known) => format!("Use one of {}.", listed(known)),
    }
}

fn json_type(node: &Node) -> &'static str {
    match &node.tree {
        Tree::Null => "null",
        Tree::Bool(_) => "boolean",
        Tree::Number(number) if number.is_f64() => "number",
        Tree::Number(_) => "integer",
        Tree::Text(_) => "string",
        Tree::List(_) => "array",
        Tree::Map(_) => "object",
    }
}

fn expectation(schemas: &[&Json]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for schema in schemas {
        let types = match &schema["type"] {
            Json::String(name) => vec![name.as_str()],
            Json::Array(list) => list.iter().filter_map(Json::as_str).collect(),
            _ => vec!["string"],
        };
        for name in types {
            let name = match name {
                "string" => "a text",
                "integer" => "a whole number",
                "number" => "a number",
                "boolean" => "true or false",
                "array" => "a list",
                "object" => "a map",
                _ => continue,
            };
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names.join(" or ")
}
