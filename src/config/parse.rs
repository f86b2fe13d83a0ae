//! Text to tree: YAML, TOML and JSON, each with line and column of every key and value.

use std::{collections::HashMap, ffi::OsStr, fmt, path::Path, sync::Arc};

use headwater_connector::Error;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::Number;
use serde_saphyr::{DuplicateKeyPolicy, Spanned, options::NonFiniteFloatPolicy};

use super::{
    codes,
    json::parse_json,
    tree::{Entry, Node, Place, Tree, join},
};

/// Nesting deeper than this is a mistake or an attack.
pub(super) const MAX_DEPTH: usize = 64;

/// Parses the text of one file. Duplicate keys are reported, the first of them stays.
/// After a syntax error there is no tree.
pub fn parse(file: &Arc<Path>, text: &str, faults: &mut Vec<Error>) -> Option<Node> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let parsed = match file.extension().and_then(OsStr::to_str) {
        Some("yaml" | "yml") => parse_yaml(file, text),
        Some("toml") => parse_toml(file, text),
        Some("json") => parse_json(file, text),
        _ => Err(vec![
            Error::new(&codes::FILE_UNREADABLE, "the file's format is not known")
                .at("file", file.display())
                .hint("Give the file the extension .yaml, .yml, .toml or .json."),
        ]),
    };
    match parsed {
        Ok(mut node) => {
            if matches!(node.tree, Tree::Null) {
                node.tree = Tree::Map(Vec::new());
            }
            drop_duplicates(&mut node, "", faults);
            Some(node)
        }
        Err(errors) => {
            faults.extend(errors);
            None
        }
    }
}

pub(super) fn syntax(file: &Arc<Path>, line: u64, column: u64, what: impl fmt::Display) -> Error {
    let place = Place::File { file: Arc::clone(file), line, column };
    place
        .mark(Error::new(&codes::SYNTAX, format!("syntax error: {what}")))
        .hint("Correct the file at this place or just before it.")
}

fn drop_duplicates(node: &mut Node, path: &str, faults: &mut Vec<Error>) {
    match &mut node.tree {
        Tree::Map(entries) => {
            let mut seen: HashMap<String, Place> = HashMap::new();
            entries.retain(|entry| {
                let Some(first) = seen.get(&entry.key) else {
                    seen.insert(entry.key.clone(), entry.place.clone());
                    return true;
                };
                faults.push(duplicate(&join(path, &entry.key), first, &entry.place));
                false
            });
            for entry in entries {
                drop_duplicates(&mut entry.value, &join(path, &entry.key), faults);
            }
        }
        Tree::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                drop_duplicates(item, &format!("{path}[{index}]"), faults);
            }
        }
        Tree::Null | Tree::Bool(_) | Tree::Number(_) | Tree::Text(_) => {}
    }
}

/// The same option or connector in two places.
pub fn duplicate(option: &str, first: &Place, second: &Place) -> Error {
    let error = Error::new(&codes::DUPLICATE, format!("{option} is given twice, first at {first}"));
    second.mark(error).at("option", option).hint("Remove or rename one of the two.")
}

fn parse_yaml(file: &Arc<Path>, text: &str) -> Result<Node, Vec<Error>> {
    // Duplicates must reach us, so that both places can be named. `on` and `off` stay texts as in YAML 1.2.
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        strict_booleans: true,
        with_snippet: false,
    };
    if text.trim().is_empty() {
        return Ok(Node::empty_map(Place::File { file: Arc::clone(file), line: 1, column: 1 }));
    }
    match serde_saphyr::from_str_with_options::<Spanned<Yaml>>(text, options) {
        Ok(root) => Ok(located(root, file)),
        Err(error) => {
            let (line, column) = error.location().map_or((1, 1), |location| (location.line(), location.column()));
            Err(vec![syntax(file, line, column, yaml_message(&error))])
        }
    }
}

/// The parser's words up to where it may begin to quote the file, which may hold a secret. One or two characters of
/// punctuation in quotes are no secret, and without them the message would be a riddle.
fn yaml_message(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let text = text.lines().next().unwrap_or_default();
    let text = &text[..text.find(" at line").unwrap_or(text.len())];
    let mut kept = String::new();
    let mut rest = text;
    while let Some(at) = rest.find([':', ';', '`', '"', '\'']) {
        kept.push_str(&rest[..at]);
        let quote = rest[at..].chars().next().unwrap_or_default();
        let quoted = rest[at + 1..].split_once(quote).filter(|_| !matches!(quote, ':' | ';'));
        let Some((inner, after)) = quoted.filter(|(inner, _)| inner.len() <= 2 && !inner.contains(char::is_alphanumeric)) else {
            rest = "";
            break;
        };
        kept.push_str(&format!("{quote}{inner}{quote}"));
        rest = after;
    }
    kept.push_str(rest);
    let kept = kept.trim();
    if kept.is_empty() { "this is not YAML".to_owned() } else { kept.to_owned() }
}

fn located(node: Spanned<Yaml>, file: &Arc<Path>) -> Node {
    let place = |location: serde_saphyr::Location| Place::File {
        file: Arc::clone(file),
        line: location.line().max(1),
        column: location.column().max(1),
    };
    let tree = match node.value {
        Yaml::Null => Tree::Null,
        Yaml::Bool(value) => Tree::Bool(value),
        Yaml::Number(number) => Tree::Number(number),
        Yaml::Text(text) => Tree::Text(text),
        Yaml::List(items) => Tree::List(items.into_iter().map(|item| located(item, file)).collect()),
        Yaml::Map(entries) => Tree::Map(
            entries
                .into_iter()
                .map(|(key, value)| Entry { place: place(key.referenced), key: key.value, value: located(value, file) })
                .collect(),
        ),
    };
    Node { place: place(node.referenced), tree }
}

/// A YAML value as the parser hands it over.
enum Yaml {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Spanned<Self>>),
    Map(Vec<(Spanned<String>, Spanned<Self>)>),
}

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(YamlVisitor)
    }
}

struct YamlVisitor;

impl<'de> Visitor<'de> for YamlVisitor {
    type Value = Yaml;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_none<E>(self) -> Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Yaml, E> {
        Ok(Yaml::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Yaml, E> {
        Ok(Yaml::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Yaml, E> {
        Ok(Yaml::Number(value.into()))
    }

    fn visit_i128<E: serde::de::Error>(self, _: i128) -> Result<Yaml, E> {
        Err(E::custom("a number is too large"))
    }

    fn visit_u128<E: serde::de::Error>(self, _: u128) -> Result<Yaml, E> {
        Err(E::custom("a number is too large"))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Yaml, E> {
        Number::from_f64(value).map(Yaml::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Yaml, E> {
        Ok(Yaml::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Yaml, E> {
        Ok(Yaml::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Yaml, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Yaml::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Yaml, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key()? {
            let value = access.next_value()?;
            entries.push((key, value));
        }
        Ok(Yaml::Map(entries))
    }
}

fn parse_toml(file: &Arc<Path>, text: &str) -> Result<Node, Vec<Error>> {
    let lines = Lines::new(text);
    let (table, errors) = toml::de::DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let fault = |error: &toml::de::Error| {
            let (line, column) = lines.find(error.span().map_or(0, |span| span.start));
            syntax(file, line, column, error.message().lines().next().unwrap_or("this is not TOML"))
        };
        return Err(errors.iter().map(fault).collect());
    }
    let place = Place::File { file: Arc::clone(file), line: 1, column: 1 };
    let tree = toml_table(table.into_inner(), file, &lines, 0).map_err(|error| vec![error])?;
    Ok(Node { place, tree })
}

type TomlValue<'a> = toml::Spanned<toml::de::DeValue<'a>>;

fn toml_table(table: toml::de::DeTable<'_>, file: &Arc<Path>, lines: &Lines<'_>, depth: usize) -> Result<Tree, Error> {
    // The parser sorts keys; the order of the file is the order of their places.
    let mut pairs: Vec<_> = table.into_iter().collect();
    pairs.sort_by_key(|(key, _)| key.span().start);
    let mut entries = Vec::with_capacity(pairs.len());
    for (key, value) in pairs {
        let place = lines.place(file, key.span().start);
        entries.push(Entry { place, key: key.into_inner().into_owned(), value: toml_node(value, file, lines, depth + 1)? });
    }
    Ok(Tree::Map(entries))
}

fn toml_node(value: TomlValue<'_>, file: &Arc<Path>, lines: &Lines<'_>, depth: usize) -> Result<Node, Error> {
    use toml::de::DeValue;
    let start = value.span().start;
    let place = lines.place(file, start);
    let fault = |what: &str| {
        let (line, column) = lines.find(start);
        syntax(file, line, column, what)
    };
    if depth > MAX_DEPTH {
        return Err(fault("nested too deeply"));
    }
    let tree = match value.into_inner() {
        DeValue::String(text) => Tree::Text(text.into_owned()),
        DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
            .map(|value| Tree::Number(value.into()))
            .map_err(|_| fault("a number is too large"))?,
        DeValue::Float(float) => match float.as_str().parse().ok().and_then(Number::from_f64) {
            Some(number) => Tree::Number(number),
            None => Tree::Text(float.as_str().to_owned()),
        },
        DeValue::Boolean(value) => Tree::Bool(value),
        DeValue::Datetime(time) => Tree::Text(time.to_string()),
        DeValue::Array(items) => {
            Tree::List(items.into_iter().map(|item| toml_node(item, file, lines, depth + 1)).collect::<Result<Vec<_>, _>>()?)
        }
        DeValue::Table(table) => toml_table(table, file, lines, depth)?,
    };
    Ok(Node { place, tree })
}

/// Byte offset to line and column.
pub(super) struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    pub(super) fn find(&self, offset: usize) -> (u64, u64) {
        let line = self.starts.partition_point(|start| *start <= offset).max(1);
        let before = self.text.get(self.starts[line - 1]..offset).unwrap_or_default();
        (line as u64, before.chars().count() as u64 + 1)
    }

    pub(super) fn place(&self, file: &Arc<Path>, offset: usize) -> Place {
        let (line, column) = self.find(offset);
        Place::File { file: Arc::clone(file), line, column }
    }
}
