//! JSON with line and column.
//!
//! The grammar is checked by `serde_json`; the walk below then only has to find where things stand, and may trust the text.

use std::{path::Path, sync::Arc};

use headwater_connector::Error;
use serde::de::IgnoredAny;

use super::{
    parse::{Lines, MAX_DEPTH, syntax},
    tree::{Entry, Node, Tree},
};

pub(super) fn parse_json(file: &Arc<Path>, text: &str) -> Result<Node, Vec<Error>> {
    if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
        let what = error.to_string();
        let what = what.split(" at line").next().unwrap_or_default();
        return Err(vec![syntax(file, error.line().max(1) as u64, error.column().max(1) as u64, what)]);
    }
    let mut walk = Walk { text, at: 0, lines: Lines::new(text), file };
    walk.node(0).map_err(|error| vec![error])
}

struct Walk<'a> {
    text: &'a str,
    at: usize,
    lines: Lines<'a>,
    file: &'a Arc<Path>,
}

impl Walk<'_> {
    /// The next byte that is not a blank, without taking it; 0 at the end.
    fn peek(&mut self) -> u8 {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
        self.text.as_bytes().get(self.at).copied().unwrap_or(0)
    }

    fn fault(&self, what: &str) -> Error {
        let (line, column) = self.lines.find(self.at);
        syntax(self.file, line, column, what)
    }

    /// Takes a scalar up to `end` and lets `serde_json` read it.
    fn scalar<T: serde::de::DeserializeOwned>(&mut self, end: usize) -> Result<T, Error> {
        let text = self.text.get(self.at..end).unwrap_or_default();
        let value = serde_json::from_str(text).map_err(|_| self.fault("this value cannot be read"))?;
        self.at = end;
        Ok(value)
    }

    fn string(&mut self) -> Result<String, Error> {
        let mut escaped = false;
        let quote = self.text[self.at..].bytes().skip(1).position(|byte| {
            let end = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            end
        });
        let end = quote.map_or(self.text.len(), |length| self.at + length + 2);
        self.scalar(end)
    }

    fn node(&mut self, depth: usize) -> Result<Node, Error> {
        if depth > MAX_DEPTH {
            return Err(self.fault("nested too deeply"));
        }
        let first = self.peek();
        let place = self.lines.place(self.file, self.at);
        let tree = match first {
            b'{' => self.map(depth)?,
            b'[' => self.list(depth)?,
            b'"' => Tree::Text(self.string()?),
            _ => {
                let rest = &self.text[self.at..];
                let length = rest.find([',', ']', '}', ' ', '\t', '\n', '\r']).unwrap_or(rest.len());
                match self.scalar::<serde_json::Value>(self.at + length)? {
                    serde_json::Value::Bool(value) => Tree::Bool(value),
                    serde_json::Value::Number(number) => Tree::Number(number),
                    _ => Tree::Null,
                }
            }
        };
        Ok(Node { place, tree })
    }

    fn list(&mut self, depth: usize) -> Result<Tree, Error> {
        self.at += 1;
        let mut items = Vec::new();
        while !matches!(self.peek(), b']' | 0) {
            items.push(self.node(depth + 1)?);
            if self.peek() == b',' {
                self.at += 1;
            }
        }
        self.at += 1;
        Ok(Tree::List(items))
    }

    fn map(&mut self, depth: usize) -> Result<Tree, Error> {
        self.at += 1;
        let mut entries = Vec::new();
        while !matches!(self.peek(), b'}' | 0) {
            let place = self.lines.place(self.file, self.at);
            let key = self.string()?;
            self.peek();
            self.at += 1;
            entries.push(Entry { key, place, value: self.node(depth + 1)? });
            if self.peek() == b',' {
                self.at += 1;
            }
        }
        self.at += 1;
        Ok(Tree::Map(entries))
    }
}
