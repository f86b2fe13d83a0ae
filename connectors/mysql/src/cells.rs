//! From the cells of a SELECT to those of the stream. A column is asked for in the form that comes nearest to what the binlog holds, so
//! that the same code makes the event's value of it; the session has its results in each column's own character set.

use std::net::{Ipv4Addr, Ipv6Addr};

use headwater_connector::{Batch, Value, json};

use crate::{
    config::ZeroDates,
    connection::{ident, literal},
    decode::{self, Bad, Codec},
    wire::Cursor,
};

/// What is to be selected for a column.
pub fn expression(name: &str, codec: &Codec) -> String {
    let name = ident(name);
    match codec {
        // As text a float has six digits. Doubled, it is exact.
        Codec::Float | Codec::Double => format!("CAST({name} AS DOUBLE)"),
        // Numbers, since a label may be in any character set, and the empty one is not told from a wrong value's.
        Codec::Enum(_) | Codec::Set(_) => format!("CAST({name} AS UNSIGNED)"),
        _ => name,
    }
}

/// Appends the cell of a value that [`expression`] selected.
pub fn push(batch: &mut Batch, codec: &Codec, cell: &[u8], zero: ZeroDates) -> Result<(), Bad> {
    match codec {
        Codec::Int => batch.push(Value::Int(number(cell)?)),
        Codec::Uint | Codec::Year => batch.push(Value::Uint(number(cell)?)),
        Codec::Float => return decode::push(batch, codec, &(number::<f64>(cell)? as f32).to_le_bytes(), zero),
        Codec::Double => return decode::push(batch, codec, &number::<f64>(cell)?.to_le_bytes(), zero),
        Codec::Enum(_) | Codec::Set(_) => return decode::push(batch, codec, &number::<u64>(cell)?.to_le_bytes(), zero),
        Codec::Decimal { .. } => batch.push(Value::Text(decimal(text(cell)?))),
        Codec::Date
        | Codec::Time(_)
        | Codec::DateTime(_)
        | Codec::Timestamp(_)
        | Codec::OldTime
        | Codec::OldDateTime
        | Codec::OldTimestamp => return moment(batch, codec, text(cell)?, zero),
        Codec::Json => {
            let document = text(cell)?;
            batch.push_json_with(|out| if json::push_compact(out, document) { Ok(()) } else { Err(Bad::Value) })?;
        }
        Codec::Uuid => batch.push(Value::Text(text(cell)?)),
        Codec::Inet6 => {
            let address: Ipv6Addr = number(cell)?;
            return decode::push(batch, codec, &address.octets(), zero);
        }
        Codec::Inet4 => {
            let address: Ipv4Addr = number(cell)?;
            return decode::push(batch, codec, &address.octets(), zero);
        }
        _ => return decode::push(batch, codec, cell, zero),
    }
    Ok(())
}

fn text(cell: &[u8]) -> Result<&str, Bad> {
    std::str::from_utf8(cell).map_err(|_| Bad::Value)
}

fn number<T: std::str::FromStr>(cell: &[u8]) -> Result<T, Bad> {
    text(cell)?.parse().map_err(|_| Bad::Value)
}

/// ZEROFILL shows more digits than are stored; one stays in front of the point.
fn decimal(text: &str) -> &str {
    let shown = text.trim_start_matches('0');
    let is_bare = !shown.starts_with(|first: char| first.is_ascii_digit());
    if shown.len() < text.len() && is_bare { &text[text.len() - shown.len() - 1..] } else { shown }
}

fn moment(batch: &mut Batch, codec: &Codec, text: &str, zero: ZeroDates) -> Result<(), Bad> {
    if matches!(codec, Codec::Time(_) | Codec::OldTime) {
        batch.push(Value::Text(text));
        return Ok(());
    }
    if !text.is_ascii() {
        return Err(Bad::Value);
    }
    let (Some(year), Some(month), Some(day)) = (text.get(..4), text.get(5..7), text.get(8..10)) else { return Err(Bad::Value) };
    if year == "0000" || month == "00" || day == "00" {
        match zero {
            ZeroDates::Text => batch.push(Value::Text(text)),
            ZeroDates::Null => batch.push(Value::Null),
            ZeroDates::Stop => return Err(Bad::ZeroDate),
        }
        return Ok(());
    }
    let zone = if matches!(codec, Codec::Timestamp(_) | Codec::OldTimestamp) { "Z" } else { "" };
    batch.push_text_with(|out| {
        out.extend_from_slice(&text.as_bytes()[..10]);
        if let Some(time) = text.as_bytes().get(11..) {
            out.push(b'T');
            out.extend_from_slice(time);
        }
        out.extend_from_slice(zone.as_bytes());
        Ok::<_, Bad>(())
    })
}

/// The text that stands for a value of a key in a cursor; none if it cannot be one.
pub fn cursor(codec: &Codec, cell: &[u8]) -> Option<String> {
    Some(match codec {
        // The column's own bytes: nothing is lost on the way through another character set.
        Codec::Text(_) | Codec::Bytes | Codec::Binary(_) => hex(cell),
        Codec::Bool | Codec::Bit(_) => Cursor::new(cell).uint_be(cell.len()).ok()?.to_string(),
        Codec::Json | Codec::JsonText(_) | Codec::Geometry | Codec::Vector => return None,
        _ => std::str::from_utf8(cell).ok()?.to_owned(),
    })
}

/// A value of a [`cursor`] in a statement; none if it is not one.
pub fn value(codec: &Codec, charset: &str, text: &str) -> Option<String> {
    let is_hex = text.len().is_multiple_of(2) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match codec {
        Codec::Text(_) => is_hex.then(|| format!("_{charset} x'{text}'")),
        Codec::Bytes | Codec::Binary(_) => is_hex.then(|| format!("x'{text}'")),
        Codec::Json | Codec::JsonText(_) | Codec::Geometry | Codec::Vector => None,
        _ => plain(codec, text),
    }
}

/// A value of a key as the events have it, in a statement; none if it cannot be one of the column.
pub fn told(codec: &Codec, text: &str) -> Option<String> {
    match codec {
        Codec::Text(_) => Some(literal(text)),
        Codec::Enum(labels) if text.is_empty() && !labels.iter().any(String::is_empty) => Some("0".to_owned()),
        Codec::Enum(labels) => labels.iter().position(|label| label == text).map(|at| (at + 1).to_string()),
        Codec::Bool => text.parse::<bool>().ok().map(|bit| u8::from(bit).to_string()),
        Codec::Bit(_) => u64::from_str_radix(text, 2).ok().map(|bits| bits.to_string()),
        // The server knows no letter for UTC, which is the session's zone.
        Codec::DateTime(_) | Codec::Timestamp(_) | Codec::OldDateTime | Codec::OldTimestamp => {
            Some(literal(&text.trim_end_matches('Z').replace('T', " ")))
        }
        Codec::Set(_) | Codec::Bytes | Codec::Binary(_) | Codec::Json | Codec::JsonText(_) | Codec::Geometry | Codec::Vector => {
            None
        }
        _ => plain(codec, text),
    }
}

fn plain(codec: &Codec, text: &str) -> Option<String> {
    match codec {
        Codec::Int => text.parse::<i64>().ok().map(|number| number.to_string()),
        Codec::Uint | Codec::Enum(_) | Codec::Set(_) | Codec::Bool | Codec::Bit(_) => {
            text.parse::<u64>().ok().map(|number| number.to_string())
        }
        // A plain number with a point would be a decimal. A float is compared as the double that is exactly its value.
        Codec::Float | Codec::Double => {
            let is_float = matches!(codec, Codec::Float);
            let number = if is_float { text.parse::<f32>().ok().map(f64::from) } else { text.parse().ok() };
            number.filter(|number| number.is_finite()).map(|number| format!("{number:e}"))
        }
        Codec::Decimal { .. } => {
            let digits = text.strip_prefix('-').unwrap_or(text);
            let fits = digits.bytes().any(|byte| byte.is_ascii_digit())
                && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
                && digits.matches('.').count() <= 1;
            fits.then(|| text.to_owned())
        }
        // As a number, 0 would be the year 2000 in some places.
        Codec::Year => text.parse::<u16>().ok().map(|year| format!("'{year:04}'")),
        _ => Some(literal(text)),
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        out.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
        out.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zerofill_is_not_part_of_a_number() {
        assert_eq!(["0012.50", "0000.05", "-0.05", "0", "000", "10"].map(decimal), ["12.50", "0.05", "-0.05", "0", "0", "10"]);
    }

    #[test]
    fn a_date_with_letters_in_it_that_are_cut_apart_did_not_end_the_daemon() {
        let mut batch = Batch::default();
        assert_eq!(push(&mut batch, &Codec::Date, "2026-01-02¡".as_bytes(), ZeroDates::Text), Err(Bad::Value));
    }

    #[test]
    fn what_is_no_value_never_gets_into_a_statement() {
        for codec in
            [Codec::Int, Codec::Uint, Codec::Double, Codec::Decimal { precision: 5, scale: 2 }, Codec::Bit(3), Codec::Year]
        {
            for text in ["1 OR 1", "", "x", "1'"] {
                assert_eq!((told(&codec, text), value(&codec, "utf8mb4", text)), (None, None), "{codec:?} {text}");
            }
        }
        assert_eq!(value(&Codec::Bytes, "", "0g"), None);
        assert_eq!(told(&Codec::Date, "2026-01-02' OR '1").as_deref(), Some("'2026-01-02'' OR ''1'"));
    }

    #[test]
    fn a_cursor_is_a_value_again() {
        let of = |codec: &Codec, cell: &[u8]| value(codec, "latin1", &cursor(codec, cell)?);
        assert_eq!(of(&Codec::Text(crate::charset::Charset::Utf8), b"\xe9'").as_deref(), Some("_latin1 x'e927'"));
        assert_eq!(of(&Codec::Binary(4), b"\0\0").as_deref(), Some("x'0000'"));
        assert_eq!(of(&Codec::Bit(9), b"\x01\x02").as_deref(), Some("258"));
        assert_eq!(of(&Codec::Uint, b"018446744073709551615").as_deref(), Some("18446744073709551615"));
        assert_eq!(of(&Codec::Double, b"1.5").as_deref(), Some("1.5e0"));
        assert_eq!(of(&Codec::Year, b"0000").as_deref(), Some("'0000'"));
        assert_eq!(of(&Codec::Json, b"1"), None);
    }
}
