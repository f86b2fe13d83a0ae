//! Small pieces of JSON text that sources and formats share.

use base64::{Engine, engine::general_purpose::STANDARD};

/// Appends `text` as a JSON string with quotes. Only what must be escaped is.
pub fn push_string(out: &mut Vec<u8>, text: &str) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    push_escaped(out, text);
    out.push(b'"');
}

/// Appends the inside of a JSON string.
pub fn push_escaped(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    loop {
        let (plain, escaped) = rest.split_at(plain_len(rest));
        out.extend_from_slice(plain);
        let Some((&byte, behind)) = escaped.split_first() else { return };
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            _ => {
                out.extend_from_slice(b"\\u00");
                out.push(b"0123456789abcdef"[usize::from(byte >> 4)]);
                out.push(b"0123456789abcdef"[usize::from(byte & 15)]);
            }
        }
        rest = behind;
    }
}

/// How many bytes there are before the first that has to be escaped.
fn plain_len(bytes: &[u8]) -> usize {
    let is_escaped = |byte: u8| (byte < 0x20) | (byte == b'"') | (byte == b'\\');
    // Without a way out in between, the compiler looks at all bytes of a piece at once.
    let is_plain = |piece: &&[u8; 16]| !piece.iter().fold(false, |found, byte| found | is_escaped(*byte));
    let (pieces, _) = bytes.as_chunks::<16>();
    let plain = pieces.iter().take_while(is_plain).count() * 16;
    bytes[plain..].iter().position(|byte| is_escaped(*byte)).map_or(bytes.len(), |at| plain + at)
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
    fn what_must_be_escaped_is_found_wherever_it_stands() {
        for byte in (0..0x80).map(char::from) {
            for before in 0..40 {
                let text = format!("{}{byte}{}", "x".repeat(before), "é".repeat(40 - before));
                let mut out = Vec::new();
                push_string(&mut out, &text);
                assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
                let is_escaped = byte < ' ' || byte == '"' || byte == '\\';
                assert_eq!(out.len() > text.len() + 2, is_escaped, "{byte:?} after {before}");
            }
        }
    }

    #[test]
    fn bytes_are_base64_with_padding() {
        let mut out = Vec::new();
        push_base64(&mut out, &[0, 255, 1, 2]);
        assert_eq!(out, b"\"AP8BAg==\"");
    }
}
