//! From the server's text of one cell to the canonical value. Pure, and without an allocation per cell.
//!
//! The session pins how the server writes (DateStyle ISO, IntervalStyle postgres, TimeZone UTC, bytea hex,
//! extra_float_digits 1), so most types need no more than a copy. `TYPES.md` lists every type; a test holds it.

use std::sync::Arc;

use headwater_connector::{Batch, Value, json};

use crate::array;

/// What a column's text needs to become canonical; chosen once per schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Codec {
    /// A copy; a string in JSON arrays
    Text,
    /// A copy; one of these labels, else the labels are out of date
    Enum(Arc<[String]>),
    /// A copy; a number in JSON arrays
    Integer,
    /// A copy; in JSON arrays a number, or a string if it is NaN or infinite
    Float,
    /// `t` or `f`
    Bool,
    /// `\x` and hex digits
    Bytea,
    /// A JSON document
    Json,
    /// Time of day with so many digits
    Time(u8),
    /// Date and time with so many digits
    Timestamp(u8),
    /// The same in UTC
    TimestampTz(u8),
    /// `{…}` with this element and delimiter
    Array(Box<Self>, u8),
}

impl Codec {
    /// Whether an enum's labels matter.
    pub fn has_labels(&self) -> bool {
        match self {
            Self::Enum(_) => true,
            Self::Array(element, _) => element.has_labels(),
            _ => false,
        }
    }
}

/// A cell that does not have the form its type promises, or is not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bad;

/// Appends one cell to the batch's arena. After [`Bad`] the batch holds a torn row and must be dropped.
#[inline]
pub fn push(batch: &mut Batch, codec: &Codec, raw: &[u8]) -> Result<(), Bad> {
    let text = std::str::from_utf8(raw).map_err(|_| Bad)?;
    match codec {
        Codec::Text | Codec::Integer | Codec::Float => batch.push(Value::Text(text)),
        Codec::Enum(labels) => batch.push(Value::Text(known(labels, text)?)),
        Codec::Bool => batch.push(Value::Bool(boolean(text)?)),
        Codec::Bytea => batch.push_bytes_with(|out| unhex(out, text))?,
        Codec::Json => {
            // A json column is validated by the server, but not to our parser's depth limit.
            let compact = batch.push_json_with(|out| if json::push_compact(out, text) { Ok(()) } else { Err(Bad) });
            if compact.is_err() {
                batch.push(Value::Text(text));
            }
        }
        Codec::Time(digits) => batch.push_text_with(|out| {
            time(out, text, *digits);
            Ok::<(), Bad>(())
        })?,
        Codec::Timestamp(digits) => push_timestamp(batch, text, *digits, "", "")?,
        Codec::TimestampTz(digits) => push_timestamp(batch, text, *digits, "+00", "Z")?,
        Codec::Array(element, delimiter) => batch.push_json_with(|out| array::write(out, element, *delimiter, text))?,
    }
    Ok(())
}

fn push_timestamp(batch: &mut Batch, text: &str, digits: u8, zone: &str, canonical_zone: &str) -> Result<(), Bad> {
    batch.push_text_with(|out| {
        timestamp(out, text, digits, zone, canonical_zone);
        Ok(())
    })
}

/// Appends an array's element by the JSON rule of its type. `scratch` is used again, so that elements cost no allocation.
pub fn push_element(out: &mut Vec<u8>, codec: &Codec, text: &str, scratch: &mut Vec<u8>) -> Result<(), Bad> {
    scratch.clear();
    match codec {
        Codec::Integer => out.extend_from_slice(text.as_bytes()),
        Codec::Float if !matches!(text, "NaN" | "Infinity" | "-Infinity") => out.extend_from_slice(text.as_bytes()),
        Codec::Text | Codec::Float => json::push_string(out, text),
        Codec::Enum(labels) => json::push_string(out, known(labels, text)?),
        Codec::Bool => out.extend_from_slice(if boolean(text)? { b"true" } else { b"false" }),
        Codec::Bytea => {
            unhex(scratch, text)?;
            json::push_base64(out, scratch);
        }
        Codec::Json => {
            if !json::push_compact(out, text) {
                json::push_string(out, text);
            }
        }
        Codec::Time(digits) => {
            time(scratch, text, *digits);
            json::push_string(out, utf8(scratch)?);
        }
        Codec::Timestamp(digits) => {
            timestamp(scratch, text, *digits, "", "");
            json::push_string(out, utf8(scratch)?);
        }
        Codec::TimestampTz(digits) => {
            timestamp(scratch, text, *digits, "+00", "Z");
            json::push_string(out, utf8(scratch)?);
        }
        // A domain over an array can be an element.
        Codec::Array(element, delimiter) => array::write(out, element, *delimiter, text)?,
    }
    Ok(())
}

fn known<'a>(labels: &[String], text: &'a str) -> Result<&'a str, Bad> {
    labels.iter().any(|label| label == text).then_some(text).ok_or(Bad)
}

fn utf8(bytes: &[u8]) -> Result<&str, Bad> {
    std::str::from_utf8(bytes).map_err(|_| Bad)
}

fn boolean(text: &str) -> Result<bool, Bad> {
    match text {
        "t" => Ok(true),
        "f" => Ok(false),
        _ => Err(Bad),
    }
}

fn unhex(out: &mut Vec<u8>, text: &str) -> Result<(), Bad> {
    let digits = text.strip_prefix("\\x").ok_or(Bad)?.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return Err(Bad);
    }
    out.reserve(digits.len() / 2);
    for pair in digits.chunks_exact(2) {
        out.push(nibble(pair[0])? << 4 | nibble(pair[1])?);
    }
    Ok(())
}

fn nibble(digit: u8) -> Result<u8, Bad> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(Bad),
    }
}

/// Pads the fraction of `03:04:05.12`; what has another form is copied.
fn time(out: &mut Vec<u8>, text: &str, digits: u8) {
    match clock(text.as_bytes()) {
        Some(fraction) => push_clock(out, &text.as_bytes()[..8], fraction, digits),
        None => out.extend_from_slice(text.as_bytes()),
    }
}

/// Rewrites `2026-01-02 03:04:05.12` with `T`, all digits and the wanted end. Infinities, years of more than four digits and
/// years before Christ have another form and are copied.
fn timestamp(out: &mut Vec<u8>, text: &str, digits: u8, zone: &str, canonical_zone: &str) {
    let bytes = text.as_bytes();
    let shape = bytes.len() >= 19 && bytes[4] == b'-' && bytes[7] == b'-' && bytes[10] == b' ';
    let clock_part = bytes.strip_suffix(zone.as_bytes()).filter(|_| shape).map(|bytes| &bytes[11..]);
    let Some((clock_part, fraction)) = clock_part.and_then(|part| clock(part).map(|fraction| (part, fraction))) else {
        out.extend_from_slice(bytes);
        return;
    };
    out.extend_from_slice(&bytes[..10]);
    out.push(b'T');
    push_clock(out, &clock_part[..8], fraction, digits);
    out.extend_from_slice(canonical_zone.as_bytes());
}

/// The digits of the fraction, if the text is a time of day and nothing else.
fn clock(bytes: &[u8]) -> Option<&[u8]> {
    if bytes.len() < 8 || bytes[2] != b':' || bytes[5] != b':' {
        return None;
    }
    match &bytes[8..] {
        [] => Some(&[]),
        [b'.', fraction @ ..] if fraction.iter().all(u8::is_ascii_digit) => Some(fraction),
        _ => None,
    }
}

fn push_clock(out: &mut Vec<u8>, hms: &[u8], fraction: &[u8], digits: u8) {
    out.extend_from_slice(hms);
    let digits = usize::from(digits).max(fraction.len());
    if digits > 0 {
        out.push(b'.');
        out.extend_from_slice(fraction);
        out.resize(out.len() + digits - fraction.len(), b'0');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn timestamps_get_all_their_digits() {
        let zoned = |input: &str, digits| text(|out| timestamp(out, input, digits, "+00", "Z"));
        assert_eq!(zoned("2026-01-02 03:04:05.12+00", 6), "2026-01-02T03:04:05.120000Z");
        assert_eq!(zoned("2026-01-02 03:04:05+00", 0), "2026-01-02T03:04:05Z");
        assert_eq!(zoned("0001-01-01 00:00:00+00", 3), "0001-01-01T00:00:00.000Z");
        for other in
            ["infinity", "-infinity", "294276-12-31 23:59:59.999999+00", "0044-03-15 00:00:00+00 BC", "2026-01-02 03:04:05", ""]
        {
            assert_eq!(zoned(other, 6), other);
        }
        let plain = |input: &str| text(|out| timestamp(out, input, 6, "", ""));
        assert_eq!(plain("2026-01-02 03:04:05"), "2026-01-02T03:04:05.000000");
        assert_eq!(plain("0044-03-15 00:00:00 BC"), "0044-03-15 00:00:00 BC");
        assert_eq!(text(|out| time(out, "24:00:00", 6)), "24:00:00.000000");
        assert_eq!(text(|out| time(out, "24:00:00", 0)), "24:00:00");
    }

    #[test]
    fn values_have_the_variant_of_their_type() {
        let mut batch = Batch::default();
        let start = batch.begin_row();
        push(&mut batch, &Codec::Bool, b"t").unwrap();
        push(&mut batch, &Codec::Bytea, b"\\x00ff").unwrap();
        push(&mut batch, &Codec::Json, b"{ \"a\": 1 }").unwrap();
        push(&mut batch, &Codec::Json, b"nonsense").unwrap();
        push(&mut batch, &Codec::Integer, b"-9223372036854775808").unwrap();
        let row = batch.end_row(start);
        let values: Vec<Value<'_>> = batch.values(row).collect();
        let wanted = [
            Value::Bool(true),
            Value::Bytes(&[0, 255]),
            Value::Json("{\"a\":1}"),
            Value::Text("nonsense"),
            Value::Text("-9223372036854775808"),
        ];
        assert_eq!(values, wanted);
    }

    #[test]
    fn a_wrong_form_is_an_error() {
        let mut batch = Batch::default();
        for (codec, raw) in [(Codec::Bool, &b"true"[..]), (Codec::Bytea, b"\\x0"), (Codec::Bytea, b"abc"), (Codec::Text, b"\xff")]
        {
            assert_eq!(push(&mut batch, &codec, raw), Err(Bad), "{codec:?}");
        }
    }

    fn codecs() -> impl Strategy<Value = Codec> {
        use Codec::*;
        let plain = prop::sample::select(vec![Text, Integer, Float, Bool, Bytea, Json, Time(3), Timestamp(6), TimestampTz(0)]);
        (plain, any::<bool>()).prop_map(|(codec, array)| if array { Array(Box::new(codec), b',') } else { codec })
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(codec in codecs(), raw: Vec<u8>) {
            let _ = push(&mut Batch::default(), &codec, &raw);
        }

        #[test]
        fn nearly_right_text_never_panics(codec in codecs(), raw in "[-{}\",\\\\0-9:. T+BCé=\\[\\]]{0,40}") {
            let _ = push(&mut Batch::default(), &codec, raw.as_bytes());
        }
    }
}
