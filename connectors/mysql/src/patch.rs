//! Differences of a document (`binlog_row_value_options = PARTIAL_JSON`), applied to the whole document before.
//!
//! Only what a path leads through is taken apart; everything else stays the bytes that came.

use std::borrow::Cow;

use headwater_connector::json;

use crate::{
    document::{self, MAX_DEPTH, Writer},
    wire::{Cursor, Torn},
};

const REPLACE: u8 = 0;
const INSERT: u8 = 1;
const REMOVE: u8 = 2;
/// An entry of a container has a kind and at least two bytes.
const MIN_ENTRY: usize = 3;

/// Appends the document `before` as text, with the differences made.
pub fn push(out: &mut Vec<u8>, before: &[u8], differences: &[u8]) -> Result<(), Torn> {
    if differences.is_empty() {
        return document::push(out, before);
    }
    let (kind, rest) = before.split_first().ok_or(Torn)?;
    // What is made up can lead through the same bytes again and again; a real document has each entry once.
    let mut room = before.len().saturating_add(differences.len()) / MIN_ENTRY;
    let mut root = Node::Raw(*kind, rest);
    let mut cursor = Cursor::new(differences);
    while !cursor.is_empty() {
        let kind = cursor.u8()?;
        let path = path(cursor.bytes()?)?;
        let value = match kind {
            REPLACE | INSERT => {
                let (kind, rest) = cursor.bytes()?.split_first().ok_or(Torn)?;
                Some(Node::Raw(*kind, rest))
            }
            REMOVE => None,
            _ => return Err(Torn),
        };
        root.change(kind == INSERT, &path, value, &mut room)?;
    }
    let mut writer = Writer::new(out, before.len().saturating_add(differences.len()));
    root.write(&mut writer, 0)
}

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Leg<'a> {
    Member(Cow<'a, [u8]>),
    Cell(usize),
    /// So many before the last
    FromEnd(usize),
}

/// Reads a path as the server writes it: `$.name."other name"[3][last-1]`.
fn path(text: &[u8]) -> Result<Vec<Leg<'_>>, Torn> {
    let mut rest = text.strip_prefix(b"$").ok_or(Torn)?;
    let mut legs = Vec::new();
    while let Some((first, behind)) = rest.split_first() {
        if legs.len() > MAX_DEPTH as usize {
            return Err(Torn);
        }
        let (leg, behind) = match first {
            b'.' => member(behind)?,
            b'[' => {
                let end = behind.iter().position(|byte| *byte == b']').ok_or(Torn)?;
                (cell(&behind[..end])?, &behind[end + 1..])
            }
            _ => return Err(Torn),
        };
        legs.push(leg);
        rest = behind;
    }
    Ok(legs)
}

fn member(text: &[u8]) -> Result<(Leg<'_>, &[u8]), Torn> {
    if text.first() != Some(&b'"') {
        let end = text.iter().position(|byte| matches!(byte, b'.' | b'[')).unwrap_or(text.len());
        return if end > 0 { Ok((Leg::Member(Cow::Borrowed(&text[..end])), &text[end..])) } else { Err(Torn) };
    }
    let mut is_escaped = false;
    let end = text.iter().skip(1).position(|byte| {
        let is_end = *byte == b'"' && !is_escaped;
        is_escaped = *byte == b'\\' && !is_escaped;
        is_end
    });
    let (quoted, behind) = text.split_at(end.ok_or(Torn)? + 2);
    let name: String = serde_json::from_slice(quoted).map_err(|_| Torn)?;
    Ok((Leg::Member(Cow::Owned(name.into_bytes())), behind))
}

fn cell(text: &[u8]) -> Result<Leg<'static>, Torn> {
    let number = |digits: &[u8]| -> Result<usize, Torn> {
        let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        std::str::from_utf8(digits).ok().filter(|_| is_number).and_then(|digits| digits.parse().ok()).ok_or(Torn)
    };
    match text.strip_prefix(b"last") {
        None => number(text).map(Leg::Cell),
        Some([]) => Ok(Leg::FromEnd(0)),
        Some(rest) => number(rest.strip_prefix(b"-").ok_or(Torn)?).map(Leg::FromEnd),
    }
}

enum Node<'a> {
    /// Kind and bytes of what no path led into.
    Raw(u8, &'a [u8]),
    /// By length and bytes of the name, as the server keeps them.
    Object(Vec<(Cow<'a, [u8]>, Node<'a>)>),
    Array(Vec<Node<'a>>),
}

impl<'a> Node<'a> {
    /// Makes one difference: a value for INSERT and REPLACE, none for REMOVE. What the server itself would refuse is refused.
    fn change(&mut self, is_insert: bool, path: &[Leg<'a>], value: Option<Node<'a>>, room: &mut usize) -> Result<(), Torn> {
        let Some((last, way)) = path.split_last() else {
            *self = value.filter(|_| !is_insert).ok_or(Torn)?;
            return Ok(());
        };
        let mut parent = self;
        for leg in way {
            parent.open(room)?;
            parent = parent.child(leg).ok_or(Torn)?;
        }
        parent.open(room)?;
        match value {
            Some(value) if is_insert => parent.insert(last, value),
            Some(value) => {
                *parent.child(last).ok_or(Torn)? = value;
                Ok(())
            }
            None => parent.remove(last),
        }
    }

    /// Takes a container apart into its entries.
    fn open(&mut self, room: &mut usize) -> Result<(), Torn> {
        let Node::Raw(kind, raw) = *self else { return Ok(()) };
        let (is_object, is_large) = match kind {
            0 | 1 => (true, kind == 1),
            2 | 3 => (false, kind == 3),
            _ => return Err(Torn),
        };
        let (mut names, mut nodes) = (Vec::new(), Vec::new());
        document::entries(raw, is_large, is_object, |name, kind, raw| {
            *room = room.checked_sub(1).ok_or(Torn)?;
            names.extend(name.map(Cow::Borrowed));
            nodes.push(Node::Raw(kind, raw));
            Ok(())
        })?;
        *self = if is_object { Node::Object(names.into_iter().zip(nodes).collect()) } else { Node::Array(nodes) };
        Ok(())
    }

    fn child(&mut self, leg: &Leg<'_>) -> Option<&mut Node<'a>> {
        match (self, leg) {
            (Node::Object(members), Leg::Member(name)) => {
                members.iter_mut().find(|(known, _)| known == name).map(|(_, node)| node)
            }
            (Node::Array(cells), leg) => {
                let at = place(leg, cells.len())?;
                cells.get_mut(at)
            }
            _ => None,
        }
    }

    fn insert(&mut self, leg: &Leg<'a>, value: Node<'a>) -> Result<(), Torn> {
        match (self, leg) {
            (Node::Object(members), Leg::Member(name)) => {
                if members.iter().any(|(known, _)| known == name) {
                    return Err(Torn);
                }
                let at = members.partition_point(|(known, _)| (known.len(), &known[..]) < (name.len(), &name[..]));
                members.insert(at, (name.clone(), value));
                Ok(())
            }
            (Node::Array(cells), leg) => {
                // Behind the end is at the end, and before the begin at the begin.
                let at = match leg {
                    Leg::Cell(at) => (*at).min(cells.len()),
                    leg => place(leg, cells.len()).unwrap_or(0),
                };
                if matches!(leg, Leg::Member(_)) {
                    return Err(Torn);
                }
                cells.insert(at, value);
                Ok(())
            }
            _ => Err(Torn),
        }
    }

    fn remove(&mut self, leg: &Leg<'_>) -> Result<(), Torn> {
        match (self, leg) {
            (Node::Object(members), Leg::Member(name)) => {
                let at = members.iter().position(|(known, _)| known == name).ok_or(Torn)?;
                members.remove(at);
                Ok(())
            }
            (Node::Array(cells), leg) => {
                let at = place(leg, cells.len()).filter(|at| *at < cells.len()).ok_or(Torn)?;
                cells.remove(at);
                Ok(())
            }
            _ => Err(Torn),
        }
    }

    fn write(&self, writer: &mut Writer<'_>, depth: u32) -> Result<(), Torn> {
        if depth > MAX_DEPTH {
            return Err(Torn);
        }
        match self {
            Node::Raw(kind, raw) => return writer.value(*kind, raw, depth),
            Node::Object(members) => {
                writer.out.push(b'{');
                for (at, (name, node)) in members.iter().enumerate() {
                    if at > 0 {
                        writer.out.push(b',');
                    }
                    json::push_string(writer.out, std::str::from_utf8(name).map_err(|_| Torn)?);
                    writer.out.push(b':');
                    node.write(writer, depth + 1)?;
                }
                writer.out.push(b'}');
            }
            Node::Array(cells) => {
                writer.out.push(b'[');
                for (at, node) in cells.iter().enumerate() {
                    if at > 0 {
                        writer.out.push(b',');
                    }
                    node.write(writer, depth + 1)?;
                }
                writer.out.push(b']');
            }
        }
        Ok(())
    }
}

fn place(leg: &Leg<'_>, len: usize) -> Option<usize> {
    match leg {
        Leg::Member(_) => None,
        Leg::Cell(at) => Some(*at),
        Leg::FromEnd(before) => len.checked_sub(1)?.checked_sub(*before),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// {"a":[1,true]}
    const BEFORE: [u8; 23] = [0, 1, 0, 22, 0, 11, 0, 1, 0, 2, 12, 0, b'a', 2, 0, 10, 0, 5, 1, 0, 4, 1, 0];
    /// The number 7 as a document
    const SEVEN: [u8; 3] = [5, 7, 0];

    fn difference(kind: u8, path: &str, value: &[u8]) -> Vec<u8> {
        let mut out = vec![kind, path.len() as u8];
        out.extend_from_slice(path.as_bytes());
        if kind != REMOVE {
            out.push(value.len() as u8);
            out.extend_from_slice(value);
        }
        out
    }

    fn applied(differences: &[Vec<u8>]) -> Result<String, Torn> {
        let mut out = Vec::new();
        push(&mut out, &BEFORE, &differences.concat())?;
        Ok(String::from_utf8(out).expect("UTF-8"))
    }

    #[test]
    fn differences_are_made_where_their_paths_lead() {
        let cases: [(&[Vec<u8>], &str); 8] = [
            (&[], r#"{"a":[1,true]}"#),
            (&[difference(REPLACE, "$.a[0]", &SEVEN)], r#"{"a":[7,true]}"#),
            (&[difference(REPLACE, "$.a[last]", &SEVEN)], r#"{"a":[1,7]}"#),
            (&[difference(REPLACE, "$.a", &SEVEN)], r#"{"a":7}"#),
            (&[difference(INSERT, "$.a[9]", &SEVEN), difference(REMOVE, "$.a[last-2]", &[])], r#"{"a":[true,7]}"#),
            (
                &[difference(INSERT, r#"$."b \" c""#, &SEVEN), difference(INSERT, "$.B", &SEVEN)],
                r#"{"B":7,"a":[1,true],"b \" c":7}"#,
            ),
            (&[difference(INSERT, "$.b", &BEFORE), difference(REMOVE, "$.b.a[0]", &[])], r#"{"a":[1,true],"b":{"a":[true]}}"#),
            (&[difference(REMOVE, "$.a", &[])], "{}"),
        ];
        for (differences, wanted) in cases {
            assert_eq!(applied(differences).as_deref(), Ok(wanted));
        }
    }

    #[test]
    fn what_has_no_place_is_refused() {
        for differences in [
            difference(REPLACE, "$.b", &SEVEN),
            difference(REPLACE, "$.a[2]", &SEVEN),
            difference(REPLACE, "$.a[0].c", &SEVEN),
            difference(INSERT, "$.a", &SEVEN),
            difference(INSERT, "$", &SEVEN),
            difference(INSERT, "$[0]", &SEVEN),
            difference(REMOVE, "$.a[last-2]", &[]),
            difference(REMOVE, "$", &[]),
            difference(3, "$.a", &SEVEN),
            difference(REMOVE, "$.", &[]),
            difference(REMOVE, "a", &[]),
            difference(REMOVE, "$[x]", &[]),
            difference(REMOVE, "$.\"a", &[]),
        ] {
            assert_eq!(applied(std::slice::from_ref(&differences)), Err(Torn), "{differences:?}");
        }
    }

    #[test]
    fn a_path_through_a_document_that_points_at_itself_comes_to_an_end() {
        // An array whose two elements are the array itself, and a path that goes around in it.
        let before = [2, 2, 0, 10, 0, 2, 0, 0, 2, 0, 0];
        let mut out = Vec::new();
        let around = difference(REPLACE, &format!("${}", "[0]".repeat(60)), &SEVEN);
        assert_eq!(push(&mut out, &before, &around), Err(Torn));
        assert!(out.is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_differences_or_refused(kind in 0_u8..4, rest: Vec<u8>, differences: Vec<u8>) {
            let before: Vec<u8> = [kind].into_iter().chain(rest).collect();
            let mut out = Vec::new();
            if push(&mut out, &before, &differences).is_ok() {
                prop_assert!(out.len() <= 1024 + 20 * (before.len() + differences.len()));
            }
        }

        #[test]
        fn any_differences_of_a_document_are_made_or_refused(
            steps in proptest::collection::vec((0_u8..4, "\\$(\\.a|\\.b|\\.\"c d\"|\\[[0-3]\\]|\\[last\\]){0,3}", 0..3_u8), 0..12),
            wound: Option<(usize, u8)>,
        ) {
            let values: [&[u8]; 3] = [&SEVEN, &BEFORE, &[4, 0]];
            let steps = steps.iter().map(|(kind, path, value)| difference(*kind, path, values[usize::from(*value)]));
            let mut all: Vec<u8> = steps.collect::<Vec<_>>().concat();
            if let Some((at, byte)) = wound && !all.is_empty() {
                let len = all.len();
                all[at % len] = byte;
            }
            let mut out = Vec::new();
            if push(&mut out, &BEFORE, &all).is_ok() {
                prop_assert!(serde_json::from_slice::<serde_json::Value>(&out).is_ok(), "{:?}", String::from_utf8_lossy(&out));
            }
        }
    }
}
