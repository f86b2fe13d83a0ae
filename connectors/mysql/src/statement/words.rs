//! Walks over a statement as the servers' own lexers do.

use std::collections::BTreeSet;

use super::Name;
use crate::binlog::Query;

/// More versions than these in one statement are not told apart.
const MAX_VERSIONS: usize = 8;

/// Bits of `sql_mode`, the same on both flavours.
const ANSI_QUOTES: u64 = 1 << 2;
const NO_BACKSLASH_ESCAPES: u64 = 1 << 20;

/// A server that decides by its version which executable comments are part of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Mysql(u32),
    Mariadb(u32),
}

impl By {
    /// Whether it executes what stands in a comment that asks for a version; `is_maria` is whether it begins with `/*M!`.
    fn executes(self, is_maria: bool, version: u32) -> bool {
        match self {
            Self::Mysql(own) => !is_maria && version <= own,
            // It leaves to MySQL what came there after the two had parted.
            Self::Mariadb(own) => version <= own && (is_maria || !(50_700..=99_999).contains(&version)),
        }
    }

    /// Servers that read the statement differently; none if there are too many. Without executable comments all are alike.
    pub fn all(text: &[u8]) -> Option<Vec<Self>> {
        let mut versions = BTreeSet::new();
        for at in 0..text.len() {
            if let Some((_, version, _)) = executable(&text[at..]) {
                versions.insert(version);
                if versions.len() > MAX_VERSIONS {
                    return None;
                }
            }
        }
        if versions.is_empty() {
            return Some(vec![Self::Mysql(0)]);
        }
        versions.insert(0);
        // The one that executes most comes first.
        Some(versions.iter().rev().flat_map(|version| [Self::Mysql(*version), Self::Mariadb(*version)]).collect())
    }
}

/// The begin of an executable comment: whether it is for MariaDB only, its version, and what follows.
fn executable(text: &[u8]) -> Option<(bool, u32, &[u8])> {
    let maria = text.strip_prefix(b"/*M!");
    let inside = maria.or_else(|| text.strip_prefix(b"/*!"))?;
    // Fewer than five digits are no version, and a seventh is none of it.
    let digits = inside.iter().take(6).take_while(|byte| byte.is_ascii_digit()).count();
    let digits = if digits < 5 { 0 } else { digits };
    let version = inside[..digits].iter().fold(0, |version, digit| version * 10 + u32::from(digit - b'0'));
    Some((maria.is_some(), version, &inside[digits..]))
}

/// What a statement is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// A keyword, a name without quotes, or a number
    Word(&'a [u8]),
    /// A name in quotes
    Quoted(Vec<u8>),
    /// A string
    Text,
    Sign(u8),
}

/// What is left of a statement.
#[derive(Clone, Debug)]
pub struct Words<'a> {
    pub rest: &'a [u8],
    database: &'a [u8],
    by: By,
    is_ansi: bool,
    has_escapes: bool,
}

impl<'a> Words<'a> {
    /// The whole statement.
    pub fn new(query: &Query<'a>, by: By) -> Self {
        let mode = query.sql_mode.unwrap_or(0);
        let (is_ansi, has_escapes) = (mode & ANSI_QUOTES != 0, mode & NO_BACKSLASH_ESCAPES == 0);
        Self { rest: query.text, database: query.database, by, is_ansi, has_escapes }
    }

    /// Passes blanks and comments. What stands in a comment that is executed is part of the statement.
    fn blanks(&mut self) {
        loop {
            // A server takes a vertical tab for a blank as well.
            let blanks = self.rest.iter().take_while(|byte| byte.is_ascii_whitespace() || **byte == 0x0b).count();
            self.rest = &self.rest[blanks..];
            if let Some((is_maria, version, inside)) = executable(self.rest) {
                self.rest = if self.by.executes(is_maria, version) { inside } else { behind_comment(inside, true) };
            } else if let Some(rest) = self.rest.strip_prefix(b"*/") {
                self.rest = rest;
            } else if let Some(inside) = self.rest.strip_prefix(b"/*") {
                self.rest = behind_comment(inside, false);
            } else if self.rest.starts_with(b"#") || is_dashes(self.rest) {
                let end = self.rest.iter().position(|byte| *byte == b'\n');
                self.rest = end.map_or(&[][..], |end| &self.rest[end..]);
            } else {
                return;
            }
        }
    }

    /// The next piece; none at the end.
    pub fn token(&mut self) -> Option<Token<'a>> {
        self.blanks();
        let first = *self.rest.first()?;
        if is_of_name(first) {
            let len = self.rest.iter().take_while(|byte| is_of_name(**byte)).count();
            let (word, rest) = self.rest.split_at(len);
            self.rest = rest;
            return Some(Token::Word(word));
        }
        if first == b'`' || first == b'"' && self.is_ansi {
            return self.quoted(first).map(Token::Quoted);
        }
        self.rest = &self.rest[1..];
        if first != b'\'' && first != b'"' {
            return Some(Token::Sign(first));
        }
        // Of a quote that is doubled the second begins what looks like the next string.
        while let Some((byte, rest)) = self.rest.split_first() {
            self.rest = if *byte == b'\\' && self.has_escapes { rest.get(1..).unwrap_or_default() } else { rest };
            if *byte == first {
                break;
            }
        }
        Some(Token::Text)
    }

    /// A name in quotes; none if it does not end.
    fn quoted(&mut self, quote: u8) -> Option<Vec<u8>> {
        let mut name = Vec::new();
        let mut rest = std::mem::take(&mut self.rest).get(1..)?;
        loop {
            let (byte, behind) = rest.split_first()?;
            rest = behind;
            if *byte == quote {
                match rest.strip_prefix(&[quote]) {
                    Some(behind) => rest = behind,
                    None => {
                        self.rest = rest;
                        return Some(name);
                    }
                }
            }
            name.push(*byte);
        }
    }

    /// A word without quotes, in capitals.
    pub fn word(&mut self) -> Option<String> {
        let before = self.rest;
        match self.token() {
            Some(Token::Word(word)) => Some(String::from_utf8_lossy(word).to_ascii_uppercase()),
            _ => {
                self.rest = before;
                None
            }
        }
    }

    /// Takes the word if it is next.
    pub fn is_next(&mut self, wanted: &str) -> bool {
        let before = self.rest;
        let is = self.word().as_deref() == Some(wanted);
        if !is {
            self.rest = before;
        }
        is
    }

    /// Takes words as long as they are of these.
    pub fn skip(&mut self, words: &[&str]) {
        while words.iter().any(|word| self.is_next(word)) {}
    }

    /// Takes the sign if it is next.
    pub fn sign(&mut self, wanted: u8) -> bool {
        self.blanks();
        let is = self.rest.first() == Some(&wanted);
        if is {
            self.rest = &self.rest[1..];
        }
        is
    }

    /// A name, with its database or without.
    pub fn name(&mut self) -> Option<Name> {
        let first = self.part()?;
        if !self.sign(b'.') {
            return Some(Name { database: self.database.to_vec(), table: first });
        }
        Some(Name { database: first, table: self.part()? })
    }

    /// One part of a name.
    pub fn part(&mut self) -> Option<Vec<u8>> {
        match self.token()? {
            Token::Word(word) => Some(word.to_vec()),
            Token::Quoted(name) => Some(name),
            Token::Text | Token::Sign(_) => None,
        }
    }

    /// Whether one of the words comes anywhere outside of quotes.
    pub fn any(&mut self, wanted: &[&str]) -> bool {
        while let Some(token) = self.token() {
            if let Token::Word(word) = token
                && wanted.iter().any(|wanted| word.eq_ignore_ascii_case(wanted.as_bytes()))
            {
                return true;
            }
        }
        false
    }

    /// Goes behind the first pair of words of which the second follows the first at once; the number of the pair.
    pub fn pair(&mut self, wanted: &[(&str, &str)]) -> Option<usize> {
        let mut before: &[u8] = &[];
        while let Some(token) = self.token() {
            let Token::Word(word) = token else {
                before = &[];
                continue;
            };
            let is = |word: &[u8], wanted: &str| word.eq_ignore_ascii_case(wanted.as_bytes());
            if let Some(at) = wanted.iter().position(|(first, second)| is(before, first) && is(word, second)) {
                return Some(at);
            }
            before = word;
        }
        None
    }

    /// The database that names without one are of.
    pub fn database(&self) -> &'a [u8] {
        self.database
    }
}

/// Behind the end of a comment, in which another one may stand where the server skips what is for others.
fn behind_comment(mut inside: &[u8], nests: bool) -> &[u8] {
    loop {
        if let Some(rest) = inside.strip_prefix(b"*/") {
            return rest;
        }
        inside = match inside.strip_prefix(b"/*").filter(|_| nests) {
            Some(inner) => behind_comment(inner, false),
            None if inside.is_empty() => return inside,
            None => &inside[1..],
        };
    }
}

/// Two dashes begin a comment only before a blank, a control character or the end.
fn is_dashes(text: &[u8]) -> bool {
    text.strip_prefix(b"--").is_some_and(|rest| rest.first().is_none_or(|byte| *byte == b' ' || byte.is_ascii_control()))
}

fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}
