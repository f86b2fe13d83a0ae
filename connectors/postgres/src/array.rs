//! Array literals (`{1,NULL,"a b"}`) as JSON. Pure.

use crate::decode::{Bad, Codec, push_element};

/// The server itself allows 6 dimensions; domains over arrays can nest further.
const MAX_DEPTH: usize = 32;

/// Appends an array literal as a JSON array. Bounds other than 1 (`[2:3]={…}`) are dropped.
pub fn write(out: &mut Vec<u8>, element: &Codec, delimiter: u8, text: &str) -> Result<(), Bad> {
    let body = if text.starts_with('[') { text.split_once('=').ok_or(Bad)?.1 } else { text };
    Writer { out, element, delimiter, text: body, at: 0, unquoted: String::new(), scratch: Vec::new() }.run()
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
    element: &'a Codec,
    delimiter: u8,
    text: &'a str,
    at: usize,
    unquoted: String,
    scratch: Vec<u8>,
}

impl Writer<'_> {
    fn run(mut self) -> Result<(), Bad> {
        let mut depth = 0;
        // Whether the next thing must be an element, may be one (right after an opening brace), or must not.
        let (mut wanted, mut opened) = (true, false);
        loop {
            let byte = *self.text.as_bytes().get(self.at).ok_or(Bad)?;
            match byte {
                b'{' if wanted && depth < MAX_DEPTH => {
                    self.out.push(b'[');
                    self.at += 1;
                    depth += 1;
                    opened = true;
                    continue;
                }
                b'}' if depth > 0 && (opened || !wanted) => {
                    self.out.push(b']');
                    self.at += 1;
                    depth -= 1;
                    wanted = false;
                }
                byte if byte == self.delimiter && depth > 0 && !wanted => {
                    self.out.push(b',');
                    self.at += 1;
                    wanted = true;
                }
                b'"' if depth > 0 && wanted => {
                    self.quoted()?;
                    wanted = false;
                }
                _ if depth > 0 && wanted => {
                    self.bare()?;
                    wanted = false;
                }
                _ => return Err(Bad),
            }
            opened = false;
            if depth == 0 {
                return if self.at == self.text.len() { Ok(()) } else { Err(Bad) };
            }
        }
    }

    fn bare(&mut self) -> Result<(), Bad> {
        let rest = &self.text[self.at..];
        let ends = |byte: u8| byte == self.delimiter || matches!(byte, b'{' | b'}' | b'"');
        let len = rest.bytes().position(ends).ok_or(Bad)?;
        let text = &rest[..len];
        self.at += len;
        match text {
            "" => Err(Bad),
            // Quoted, the same letters are text.
            "NULL" => {
                self.out.extend_from_slice(b"null");
                Ok(())
            }
            text => push_element(self.out, self.element, text, &mut self.scratch),
        }
    }

    fn quoted(&mut self) -> Result<(), Bad> {
        self.unquoted.clear();
        let mut rest = &self.text[self.at + 1..];
        loop {
            let stop = memchr::memchr2(b'"', b'\\', rest.as_bytes()).ok_or(Bad)?;
            self.unquoted.push_str(&rest[..stop]);
            let escape = rest.as_bytes()[stop] == b'\\';
            rest = &rest[stop + 1..];
            if !escape {
                break;
            }
            let escaped = rest.chars().next().ok_or(Bad)?;
            self.unquoted.push(escaped);
            rest = &rest[escaped.len_utf8()..];
        }
        self.at = self.text.len() - rest.len();
        push_element(self.out, self.element, &self.unquoted, &mut self.scratch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json(element: &Codec, text: &str) -> Result<String, Bad> {
        let mut out = Vec::new();
        write(&mut out, element, b',', text).map(|()| String::from_utf8(out).unwrap())
    }

    #[test]
    fn elements_follow_the_rule_of_their_type() {
        assert_eq!(json(&Codec::Integer, "{1,-2,NULL}").unwrap(), "[1,-2,null]");
        assert_eq!(
            json(&Codec::Text, r#"{a,"NULL",NULL,"b \"c\\","","é,{}"}"#).unwrap(),
            r#"["a","NULL",null,"b \"c\\","","é,{}"]"#
        );
        assert_eq!(json(&Codec::Float, "{1.5,NaN,-Infinity}").unwrap(), r#"[1.5,"NaN","-Infinity"]"#);
        assert_eq!(json(&Codec::Bool, "{t,f}").unwrap(), "[true,false]");
        assert_eq!(json(&Codec::Bytea, r#"{"\\x00ff"}"#).unwrap(), r#"["AP8="]"#);
        assert_eq!(json(&Codec::Json, r#"{"{\"a\": [1, 2]}"}"#).unwrap(), r#"[{"a":[1,2]}]"#);
        assert_eq!(json(&Codec::TimestampTz(3), r#"{"2026-01-02 03:04:05+00"}"#).unwrap(), r#"["2026-01-02T03:04:05.000Z"]"#);
    }

    #[test]
    fn nesting_and_bounds() {
        assert_eq!(json(&Codec::Integer, "{}").unwrap(), "[]");
        assert_eq!(json(&Codec::Integer, "{{1,2},{3,4}}").unwrap(), "[[1,2],[3,4]]");
        assert_eq!(json(&Codec::Integer, "[2:3]={5,6}").unwrap(), "[5,6]");
        assert_eq!(json(&Codec::Integer, "[0:0][2:3]={{5,6}}").unwrap(), "[[5,6]]");
    }

    #[test]
    fn malformed_literals_are_refused() {
        for text in ["", "{", "}", "{1", "{1,}", "{,1}", "{1}}", "{1}2", "1", "{\"a}", "{a\"b\"}", "[2:3]", "{{1}{2}}"] {
            assert_eq!(json(&Codec::Text, text), Err(Bad), "{text}");
        }
        assert_eq!(json(&Codec::Integer, &"{".repeat(1000)), Err(Bad));
    }

    proptest! {
        #[test]
        fn what_is_written_is_json(items in prop::collection::vec(prop::option::of(".{0,8}"), 0..6)) {
            let quote = |item: &Option<String>| match item {
                None => "NULL".to_owned(),
                Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
            };
            let literal = format!("{{{}}}", items.iter().map(quote).collect::<Vec<_>>().join(","));
            let back: Vec<Option<String>> = serde_json::from_str(&json(&Codec::Text, &literal).unwrap()).unwrap();
            prop_assert_eq!(back, items);
        }

        #[test]
        fn arbitrary_text_never_panics(text in "[{}\",\\\\a1N=\\[é]{0,24}") {
            let _ = json(&Codec::Text, &text);
        }
    }
}
