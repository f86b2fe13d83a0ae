//! Which tables a connector captures: names and patterns, and behind a `!` what is left out of them.

use schemars::JsonSchema;
use serde::Deserialize;

/// One name or a list of names.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Names {
    /// A list
    Many(Vec<String>),
    /// A single one
    One(String),
}

/// A pattern of tables in two parts, as the source names them: `schema.table` or `database.table`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    text: String,
    space: String,
    table: String,
}

impl Pattern {
    fn parse(text: &str) -> Option<Self> {
        let (space, table) = text.split_once('.')?;
        let fine = !space.is_empty() && !table.is_empty();
        fine.then(|| Self { text: text.into(), space: space.into(), table: table.into() })
    }

    fn matches(&self, space: &str, table: &str) -> bool {
        glob(self.space.as_bytes(), space.as_bytes()) && glob(self.table.as_bytes(), table.as_bytes())
    }
}

/// What the option `tables` selects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    taken: Vec<Pattern>,
    left_out: Vec<Pattern>,
}

impl Selection {
    /// Reads the option. What is wrong comes back as its path in the options, what it is, and a hint, in the words of the source: `space`
    /// is what the first part of a table's name is, and `example` is one.
    pub fn parse(tables: &Names, space: &str, example: &str) -> (Self, Vec<[String; 3]>) {
        let (texts, is_list) = match tables {
            Names::Many(texts) => (texts.as_slice(), true),
            Names::One(text) => (std::slice::from_ref(text), false),
        };
        let (mut selection, mut wrong) = (Self::default(), Vec::new());
        for (at, text) in texts.iter().enumerate() {
            let (list, name) = match text.strip_prefix('!') {
                Some(name) => (&mut selection.left_out, name),
                None => (&mut selection.taken, text.as_str()),
            };
            match Pattern::parse(name) {
                Some(pattern) => list.push(pattern),
                None => {
                    let path = if is_list { format!("tables[{at}]") } else { "tables".to_owned() };
                    let hint = format!("Write it as {space}.table, for example {example}.{}.", text.trim_matches(['.', '!']));
                    wrong.push([path, format!("{text:?} is not {space}.table"), hint]);
                }
            }
        }
        if selection.taken.is_empty() && wrong.is_empty() {
            let hint = format!("Name at least one table, for example {example}.orders.");
            wrong.push(["tables".to_owned(), "no table is named".to_owned(), hint]);
        }
        (selection, wrong)
    }

    /// Whether a table is selected.
    pub fn selects(&self, space: &str, table: &str) -> bool {
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(space, table));
        any(&self.taken) && !any(&self.left_out)
    }

    /// The same where capitals make no difference, of the patterns and of the name.
    pub fn selects_any_case(&self, space: &str, table: &str) -> bool {
        let folded = |pattern: &Pattern| Pattern {
            text: String::new(),
            space: pattern.space.to_lowercase(),
            table: pattern.table.to_lowercase(),
        };
        let (space, table) = (space.to_lowercase(), table.to_lowercase());
        let is_in = |list: &[Pattern]| list.iter().any(|pattern| folded(pattern).matches(&space, &table));
        is_in(&self.taken) && !is_in(&self.left_out)
    }

    /// The same with the parts in one.
    pub fn selects_name(&self, name: &str) -> bool {
        name.split_once('.').is_some_and(|(space, table)| self.selects(space, table))
    }

    /// Patterns that select none of the tables.
    pub fn unmatched<'a>(&'a self, tables: &[(&str, &str)]) -> Vec<&'a str> {
        let is_unmatched = |pattern: &&Pattern| !tables.iter().any(|(space, table)| pattern.matches(space, table));
        self.taken.iter().filter(is_unmatched).map(|pattern| pattern.text.as_str()).collect()
    }

    /// Tables that are named in full.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.taken.iter().map(|pattern| pattern.text.as_str()).filter(|text| !text.contains('*'))
    }
}

/// `*` matches any bytes; everything else matches itself. Backtracks only to the last star, so it is never exponential.
pub fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut seen, mut star) = (0, 0, None);
    while seen < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(byte) if *byte == text[seen] => {
                at += 1;
                seen += 1;
            }
            _ => match star {
                Some((star_at, from)) => {
                    star = Some((star_at, from + 1));
                    at = star_at + 1;
                    seen = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(texts: &[&str]) -> Selection {
        let (selection, wrong) = parse(texts);
        assert_eq!(wrong, [] as [[String; 3]; 0]);
        selection
    }

    fn parse(texts: &[&str]) -> (Selection, Vec<[String; 3]>) {
        Selection::parse(&Names::Many(texts.iter().map(|text| (*text).to_owned()).collect()), "schema", "public")
    }

    #[test]
    fn globs_match_whole_names() {
        let matches = |pattern: &str, space: &str, table: &str| selection(&[pattern]).selects(space, table);
        assert!(matches("public.customer_*", "public", "customer_x"));
        assert!(matches("*.*", "a", "b.c"));
        assert!(matches("public.a*b*c", "public", "a1b2b3c"));
        assert!(!matches("public.customer_*", "public", "customers"));
        assert!(!matches("public.orders", "public", "orders2"));
        assert!(!matches("public.orders", "other", "orders"));
    }

    #[test]
    fn what_is_left_out_is_left_out_wherever_it_stands() {
        let all = selection(&["!shop._*_gho", "shop.*", "!shop.tmp"]);
        assert!(all.selects("shop", "orders") && all.selects_name("shop.tmp2"));
        assert!(!all.selects("shop", "tmp") && !all.selects("shop", "_orders_gho") && !all.selects("other", "orders"));
        assert_eq!(all.unmatched(&[("shop", "orders")]), [] as [&str; 0]);
        assert_eq!(selection(&["a.b", "a.c*"]).unmatched(&[("a", "b")]), ["a.c*"]);
    }

    #[test]
    fn what_has_not_two_parts_is_named_with_its_place() {
        let (_, wrong) = parse(&["a.b", "orders", "!c", ".x"]);
        let places: Vec<&str> = wrong.iter().map(|[path, ..]| path.as_str()).collect();
        assert_eq!(places, ["tables[1]", "tables[2]", "tables[3]"]);
        assert!(wrong[1][2].ends_with("for example public.c."), "{wrong:?}");
        assert_eq!(Selection::parse(&Names::One("x".to_owned()), "schema", "public").1[0][0], "tables");
        for nothing in [&[] as &[&str], &["!a.b"]] {
            assert_eq!(parse(nothing).1[0][1], "no table is named");
        }
    }
}
