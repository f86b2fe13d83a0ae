//! Variables of the environment over the files: `HEADWATER_LOG__BOOTSTRAP_SERVERS=one:9092,two:9092`.
//!
//! The schema decides how a value is read, so that a password 12345 stays a text.

use std::sync::Arc;

use headwater_connector::Error;
use serde_json::Value as Json;

use super::{
    closest::closest,
    codes,
    schema::{accepts, alternatives, resolve, tag, takes_secret, variant, words},
    tree::{Entry, Node, Place, Tree},
};

const PREFIX: &str = "HEADWATER_";

/// A variable that overrides an option.
pub struct Override {
    name: String,
    /// The levels, in lower case.
    path: Vec<String>,
    value: String,
}

impl Override {
    /// The first level: `log`, `http`, `include` or `connectors`.
    pub fn part(&self) -> &str {
        &self.path[0]
    }

    /// Whether it sets a `kind`.
    pub fn sets_kind(&self) -> bool {
        self.path.last().is_some_and(|last| last == "kind")
    }
}

/// The variables that are meant for the config, in the order in which they are applied: a `kind` first, because it decides
/// which options there are. `HEADWATER_SERVICE_HOST` and the like, which some platforms set, are not: they have no `__`.
pub fn overrides(env: impl Iterator<Item = (String, String)>) -> Vec<Override> {
    let mut all: Vec<Override> = env
        .filter_map(|(name, value)| {
            let rest = name.strip_prefix(PREFIX)?;
            let path: Vec<String> = rest.split("__").map(str::to_lowercase).collect();
            (path.len() > 1 || rest == "INCLUDE").then_some(Override { name, path, value })
        })
        .collect();
    all.sort_by(|a, b| (!a.sets_kind(), &a.name).cmp(&(!b.sets_kind(), &b.name)));
    all
}

/// Lays one variable over the tree.
pub fn apply(root: &mut Node, schema: &Json, variable: &Override) -> Result<(), Error> {
    let place = Place::Variable(Arc::from(variable.name.as_str()));
    let levels: Vec<&str> = variable.path.iter().map(String::as_str).collect();
    // A variable that names no option leaves nothing behind.
    let mut trial = root.clone();
    let set = Setter { schema, place: &place, value: &variable.value }.set(&mut trial, schema, &levels);
    set.map(|()| *root = trial).map_err(|(level, close)| {
        let error = Error::new(&codes::UNKNOWN_VARIABLE, format!("no option {level:?} is known at this place"));
        let hint = match close {
            Some(close) => format!("Did you mean {}? Rename the variable.", close.to_uppercase()),
            None => "Unset the variable, or correct its name.".to_owned(),
        };
        place.mark(error).hint(hint)
    })
}

struct Setter<'a> {
    schema: &'a Json,
    place: &'a Place,
    value: &'a str,
}

type Unknown = (String, Option<String>);

impl<'a> Setter<'a> {
    fn set(&self, node: &mut Node, schema: &'a Json, levels: &[&str]) -> Result<(), Unknown> {
        let Some((level, rest)) = levels.split_first() else {
            *node = self.typed(schema);
            return Ok(());
        };
        if takes_secret(self.schema, schema) {
            return self.set_secret(node, level, rest);
        }
        let variants = self.variants(node, schema);
        let known = || variants.iter().filter_map(|variant| variant["properties"].as_object()).flatten();
        let property = known().find(|(key, _)| same(key, level));
        let free = variants.iter().filter_map(|variant| variant.get("additionalProperties")).find(|other| other.is_object());
        // A connector or table that the files name keeps its spelling; an option has its own.
        let existing = node.entries().iter().find(|entry| entry.key == *level);
        let existing = existing.or_else(|| node.entries().iter().find(|entry| same(&entry.key, level)));
        let (key, inner) = match (property, free) {
            (Some((key, inner)), _) => (key.clone(), inner),
            (None, Some(inner)) => (existing.map_or_else(|| (*level).to_owned(), |entry| entry.key.clone()), inner),
            (None, None) => {
                let close = closest(level, known().map(|(key, _)| key.as_str()));
                return Err(((*level).to_owned(), close.map(str::to_owned)));
            }
        };
        // Something that is not a map stands in the way; the variable wins.
        if node.entries_mut().is_none() {
            *node = Node::empty_map(self.place.clone());
        }
        let Some(entries) = node.entries_mut() else { return Ok(()) };
        let index = entries.iter().position(|entry| entry.key == key).unwrap_or_else(|| {
            entries.push(Entry { key, place: self.place.clone(), value: Node::empty_map(self.place.clone()) });
            entries.len() - 1
        });
        self.set(&mut entries[index].value, inner, rest)?;
        if key_is_tag(&entries[index].key, rest) {
            self.forget_others(node, schema);
        }
        Ok(())
    }

    /// With another kind than the files have, their options for the old one do not apply. What no kind knows stays, as a fault.
    fn forget_others(&self, node: &mut Node, schema: &'a Json) {
        let chosen = self.variants(node, schema);
        let [chosen] = chosen.as_slice() else { return };
        let all = alternatives(self.schema, schema);
        let known = |variant: &Json, key: &str| variant["properties"].get(key).is_some();
        let Some(entries) = node.entries_mut() else { return };
        entries.retain(|entry| known(chosen, &entry.key) || !all.iter().any(|variant| known(variant, &entry.key)));
    }

    fn set_secret(&self, node: &mut Node, level: &str, rest: &[&str]) -> Result<(), Unknown> {
        if !rest.is_empty() || !matches!(level, "env" | "file") {
            return Err((level.to_owned(), closest(level, ["env", "file"]).map(str::to_owned)));
        }
        let value = Node { place: self.place.clone(), tree: Tree::Text(self.value.to_owned()) };
        *node = Node::empty_map(self.place.clone());
        node.tree = Tree::Map(vec![Entry { key: level.to_owned(), place: self.place.clone(), value }]);
        Ok(())
    }

    /// The maps that can stand here; of a tagged union the one that the tag chooses.
    fn variants(&self, node: &Node, schema: &'a Json) -> Vec<&'a Json> {
        let variants: Vec<&'a Json> =
            alternatives(self.schema, schema).into_iter().filter(|variant| accepts(variant, "object")).collect();
        let chosen = tag(self.schema, &variants).and_then(|tag| {
            let value = node.get(tag)?.text()?;
            variant(self.schema, &variants, tag, value)
        });
        chosen.map_or(variants, |chosen| vec![chosen])
    }

    fn typed(&self, schema: &'a Json) -> Node {
        let schema = resolve(self.schema, schema);
        let text = || Node { place: self.place.clone(), tree: Tree::Text(self.value.to_owned()) };
        let variants = alternatives(self.schema, schema);
        if takes_secret(self.schema, schema) || words(&variants).is_some() {
            return text();
        }
        let takes = |kind: &str| variants.iter().find(|variant| variant.get("type").is_some() && accepts(variant, kind));
        let trimmed = self.value.trim();
        if let Some(list) = takes("array") {
            return self.list(list, trimmed);
        }
        if takes("string").is_none()
            && let Ok(json) = serde_json::from_str::<Json>(trimmed)
        {
            return Node::from_json(json, self.place);
        }
        text()
    }

    fn list(&self, schema: &'a Json, text: &str) -> Node {
        if text.starts_with('[')
            && let Ok(json) = serde_json::from_str::<Json>(text)
        {
            return Node::from_json(json, self.place);
        }
        let texts = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        let items = texts.map(|value| match schema.get("items") {
            Some(inner) => Setter { value, ..*self }.typed(inner),
            None => Node { place: self.place.clone(), tree: Tree::Text(value.to_owned()) },
        });
        Node { place: self.place.clone(), tree: Tree::List(items.collect()) }
    }
}

fn key_is_tag(key: &str, rest: &[&str]) -> bool {
    key == "kind" && rest.is_empty()
}

/// Names in variables cannot hold `-` and `.`, and their case is lost.
fn same(key: &str, level: &str) -> bool {
    key.len() == level.len()
        && key.chars().zip(level.chars()).all(|(a, b)| {
            let a = if matches!(a, '-' | '.') { '_' } else { a.to_ascii_lowercase() };
            a == b
        })
}
