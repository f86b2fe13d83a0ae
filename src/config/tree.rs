//! What was typed, with the place of every key and value.
//!
//! There is one such tree for a whole configuration: files are merged into it, variables of the environment are laid over it,
//! and every message takes its place from it.

use std::{fmt, path::Path, sync::Arc};

use headwater_connector::Error;
use serde_json::{Number, Value as Json};

/// Where a key or value was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// In a file; line and column count from 1, columns in characters.
    File {
        /// The file as it was named.
        file: Arc<Path>,
        /// The line.
        line: u64,
        /// The column.
        column: u64,
    },
    /// In a variable of the environment.
    Variable(Arc<str>),
    /// Nowhere: a default.
    Default,
}

impl Place {
    /// Adds this place to an error.
    #[must_use]
    pub fn mark(&self, error: Error) -> Error {
        match self {
            Self::File { .. } => error.at("file", self),
            Self::Variable(name) => error.at("variable", name),
            Self::Default => error,
        }
    }

    /// The file, if it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File { file, .. } => Some(file),
            Self::Variable(_) | Self::Default => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line, column } => write!(f, "{}:{line}:{column}", file.display()),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value and its place. It has no `Debug`: it may hold a secret.
#[derive(Clone)]
pub struct Node {
    /// Where the value begins.
    pub place: Place,
    /// The value.
    pub tree: Tree,
}

/// See [`Node`].
#[derive(Clone)]
pub enum Tree {
    /// `null`, `~` or nothing
    Null,
    /// `true` or `false`
    Bool(bool),
    /// Any number
    Number(Number),
    /// Any text
    Text(String),
    /// `[…]`
    List(Vec<Node>),
    /// `{…}`, in the order of the file, with every duplicate until they are reported
    Map(Vec<Entry>),
}

/// One key of a map.
#[derive(Clone)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where it stands.
    pub place: Place,
    /// What it has.
    pub value: Node,
}

impl Node {
    /// An empty map.
    pub fn empty_map(place: Place) -> Self {
        Self { place, tree: Tree::Map(Vec::new()) }
    }

    /// The keys of a map; none for anything else.
    pub fn entries(&self) -> &[Entry] {
        match &self.tree {
            Tree::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The keys of a map, to change them; a null becomes a map, as an empty `connectors:` should.
    pub fn entries_mut(&mut self) -> Option<&mut Vec<Entry>> {
        if matches!(self.tree, Tree::Null) {
            self.tree = Tree::Map(Vec::new());
        }
        match &mut self.tree {
            Tree::Map(entries) => Some(entries),
            _ => None,
        }
    }

    /// One key of a map.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The value of one key of a map.
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        match &self.tree {
            Tree::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a list; none for anything else.
    pub fn items(&self) -> &[Self] {
        match &self.tree {
            Tree::List(items) => items,
            _ => &[],
        }
    }

    /// The node at a path such as `tables[1].name`, or the deepest one on the way. Keys may hold dots (`public.orders`),
    /// so the longest key that fits is taken.
    pub fn nearest(&self, path: &str) -> &Self {
        let path = path.trim_start_matches('.');
        if path.is_empty() {
            return self;
        }
        if let Some((index, rest)) = path.strip_prefix('[').and_then(|path| path.split_once(']')) {
            let item = index.parse::<usize>().ok().and_then(|index| self.items().get(index));
            return item.map_or(self, |item| item.nearest(rest));
        }
        let fits = |entry: &&Entry| {
            path.strip_prefix(entry.key.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let entry = self.entries().iter().filter(fits).max_by_key(|entry| entry.key.len());
        entry.map_or(self, |entry| entry.value.nearest(&path[entry.key.len()..]))
    }

    /// Without places.
    pub fn to_json(&self) -> Json {
        match &self.tree {
            Tree::Null => Json::Null,
            Tree::Bool(value) => Json::Bool(*value),
            Tree::Number(number) => Json::Number(number.clone()),
            Tree::Text(text) => Json::String(text.clone()),
            Tree::List(items) => Json::Array(items.iter().map(Self::to_json).collect()),
            Tree::Map(entries) => Json::Object(entries.iter().map(|entry| (entry.key.clone(), entry.value.to_json())).collect()),
        }
    }

    /// A tree whose every part has the same place.
    pub fn from_json(json: Json, place: &Place) -> Self {
        let tree = match json {
            Json::Null => Tree::Null,
            Json::Bool(value) => Tree::Bool(value),
            Json::Number(number) => Tree::Number(number),
            Json::String(text) => Tree::Text(text),
            Json::Array(items) => Tree::List(items.into_iter().map(|item| Self::from_json(item, place)).collect()),
            Json::Object(map) => Tree::Map(
                map.into_iter()
                    .map(|(key, value)| Entry { key, place: place.clone(), value: Self::from_json(value, place) })
                    .collect(),
            ),
        };
        Self { place: place.clone(), tree }
    }

    /// What it is, for messages, without the value: it may be a secret.
    pub fn describe(&self) -> &'static str {
        match &self.tree {
            Tree::Null => "nothing",
            Tree::Bool(_) => "true or false",
            Tree::Number(number) if number.is_f64() => "a number with a fraction",
            Tree::Number(_) => "a number",
            Tree::Text(_) => "a text",
            Tree::List(_) => "a list",
            Tree::Map(_) => "a map",
        }
    }
}

/// `parent.key`, for messages.
pub fn join(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_nearest_node_of_a_path_is_found_through_dotted_keys_and_lists() {
        let node = Node::from_json(json!({"tables": {"public.orders": {"key": ["id", "no"]}}}), &Place::Default);
        assert_eq!(node.nearest("tables.public.orders.key[1]").text(), Some("no"));
        assert_eq!(node.nearest("tables.public.orders.key[7]").items().len(), 2);
        assert_eq!(node.nearest("tables.public.customers").entries().len(), 1);
        assert_eq!(node.nearest("").entries()[0].key, "tables");
    }
}
