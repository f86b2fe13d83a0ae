//! Small pieces of JSON text that sources and formats share.

use base64::{Engine, engine::general_purpose::STANDARD};

/// Appends `text` as a JSON string with quotes. Only what must be escaped is.
pub fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    push_escaped(out, text);
    out.push(b'"');
}

/// Appends the inside of a JSON string.
pub fn push_escaped(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    let mut done = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0x08 => b"\\b",
            0x0c => b"\\f",
            0..0x20 => {
                out.extend_from_slice(&bytes[done..at]);
                out.extend_from_slice(b"\\u00");
                out.push(b"0123456789abcdef"[usize::from(byte >> 4)]);
                out.push(b"0123456789abcdef"[usize::from(byte & 15)]);
                done = at + 1;
                continue;
            }
            _ => continue,
        };
        out.extend_from_slice(&bytes[done..at]);
        out.extend_from_slice(escape);
        done = at + 1;
    }
    out.extend_from_slice(&bytes[done..]);
}

/// Appends bytes as a JSON string in base64.
pub fn push_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let len = STANDARD.encode_slice(bytes, &mut out[start..]).expect("the buffer has the length of the encoding");
    out.truncate(start + len);
    out.push(b'"');
}

/// Appends `text` without the blanks outside strings if it is one valid JSON document; digits and duplicate keys stay as they are.
/// Otherwise appends nothing and returns false.
pub fn push_compact(out: &mut Vec<u8>, text: &str) -> bool {
    // The parser below checks the grammar without building a tree; the copy then only drops blanks.
    if serde_json::from_str::<&serde_json::value::RawValue>(text).is_err() {
        return false;
    }
    let mut in_string = false;
    let mut escaped = false;
    for &byte in text.as_bytes() {
        if in_string {
            out.push(byte);
            if escaped {
                escaped = false;
            } else if byte == b'\\' {
                escaped = true;
            } else if byte == b'"' {
                in_string = false;
            }
        } else if !byte.is_ascii_whitespace() {
            out.push(byte);
            in_string = byte == b'"';
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compact(text: &str) -> Option<String> {
        let mut out = Vec::new();
        push_compact(&mut out, text).then(|| String::from_utf8(out).unwrap())
    }

    #[test]
    fn compact_drops_blanks_and_keeps_digits_and_duplicates() {
        assert_eq!(compact(r#" { "a" : 1.50e400, "a":"x \" y" } "#).unwrap(), r#"{"a":1.50e400,"a":"x \" y"}"#);
        assert_eq!(compact("[1, 2] 3"), None);
        assert_eq!(compact("nul"), None);
        assert_eq!(compact(""), None);
    }

    #[test]
    fn strings_escape_only_what_they_must() {
        let mut out = Vec::new();
        push_string(&mut out, "a\"\\\u{1}\n/é\u{7f}");
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "\"a\\\"\\\\\\u0001\\n/é\u{7f}\"");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), "a\"\\\u{1}\n/é\u{7f}");
    }

    #[test]
    fn bytes_are_base64_with_padding() {
        let mut out = Vec::new();
        push_base64(&mut out, &[0, 255, 1, 2]);
        assert_eq!(out, b"\"AP8BAg==\"");
    }
}
