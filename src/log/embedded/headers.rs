//! Headers as one JSON object, so that every SQLite tool can read and query them.

use std::fmt;

use headwater_connector::json;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};

use crate::log::{Record, Transaction};

/// Writes a record's headers into `out`, which is cleared first; empty text stands for no headers.
///
/// A value that is not UTF-8 becomes `{"hex":"…"}`; our own headers never need it.
pub(super) fn encode(out: &mut Vec<u8>, transaction: &Transaction, record: &Record) {
    out.clear();
    for header in transaction.headers(record) {
        out.push(if out.is_empty() { b'{' } else { b',' });
        json::push_string(out, header.name);
        out.push(b':');
        match std::str::from_utf8(transaction.bytes(header.value)) {
            Ok(text) => json::push_string(out, text),
            Err(_) => push_hex(out, transaction.bytes(header.value)),
        }
    }
    if !out.is_empty() {
        out.push(b'}');
    }
}

fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(b"{\"hex\":\"");
    for byte in bytes {
        out.push(b"0123456789abcdef"[usize::from(byte >> 4)]);
        out.push(b"0123456789abcdef"[usize::from(byte & 15)]);
    }
    out.extend_from_slice(b"\"}");
}

/// Reads back what [`encode`] wrote, in the same order.
pub(super) fn decode(text: &[u8]) -> serde_json::Result<Vec<(String, Vec<u8>)>> {
    serde_json::from_slice::<Headers>(text).map(|headers| headers.0)
}

struct Headers(Vec<(String, Vec<u8>)>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    Hex { hex: String },
}

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeadersVisitor)
    }
}

struct HeadersVisitor;

impl<'de> Visitor<'de> for HeadersVisitor {
    type Value = Headers;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of headers")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
        let mut headers = Vec::new();
        while let Some((name, value)) = map.next_entry::<String, Value>()? {
            let bytes = match value {
                Value::Text(text) => text.into_bytes(),
                Value::Hex { hex } => unhex(&hex).ok_or_else(|| A::Error::custom("not hexadecimal"))?,
            };
            headers.push((name, bytes));
        }
        Ok(Headers(headers))
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes().chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(values: &[(&'static str, &[u8])]) -> (String, Vec<(String, Vec<u8>)>) {
        let mut transaction = Transaction::default();
        for (name, value) in values {
            let span = transaction.write(|out| out.extend_from_slice(value));
            transaction.push_header(name, span);
        }
        let key = transaction.write(|out| out.push(b'k'));
        transaction.push_record(0, 0, 0, key, None);
        let mut out = b"old".to_vec();
        encode(&mut out, &transaction, &transaction.records()[0]);
        let read = if out.is_empty() { Vec::new() } else { decode(&out).unwrap() };
        (String::from_utf8(out).unwrap(), read)
    }

    #[test]
    fn headers_come_back_in_order_with_doubles() {
        let values: &[(&'static str, &[u8])] = &[("hw.op", b"c"), ("b", b"\"\\\n\0"), ("a", "é".as_bytes()), ("hw.op", b"d")];
        let (text, read) = round(values);
        assert_eq!(text, r#"{"hw.op":"c","b":"\"\\\n\u0000","a":"é","hw.op":"d"}"#);
        let expected: Vec<_> = values.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect();
        assert_eq!(read, expected);
        assert_eq!(round(&[]).0, "");
    }

    #[test]
    fn bytes_that_are_not_utf8_are_hexadecimal() {
        let (text, read) = round(&[("x", &[0xff, 0x00])]);
        assert_eq!(text, r#"{"x":{"hex":"ff00"}}"#);
        assert_eq!(read, vec![("x".to_owned(), vec![0xff, 0x00])]);
        decode(br#"{"x":{"hex":"f"}}"#).unwrap_err();
        decode(b"[]").unwrap_err();
    }
}
