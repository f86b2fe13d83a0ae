//! MySQL's binary JSON as compact text.

use base64::{Engine, engine::general_purpose::STANDARD};
use headwater_connector::json;

use crate::{
    number,
    table_map::field,
    temporal,
    wire::{Cursor, Torn},
};

/// The server nests no deeper.
pub const MAX_DEPTH: u32 = 100;
/// Bytes in a line of base64, of 76 letters.
const LINE_BYTES: usize = 57;
/// Text is at most so many times as long as the bytes: what is made up can point at the same bytes again and again.
const MAX_GROWTH: usize = 16;

/// Appends a document.
pub fn push(out: &mut Vec<u8>, raw: &[u8]) -> Result<(), Torn> {
    let (kind, rest) = raw.split_first().ok_or(Torn)?;
    Writer::new(out, raw.len()).value(*kind, rest, 0)
}

/// Writes values as text, and not beyond what so many bytes can mean.
pub struct Writer<'a> {
    /// What was written
    pub out: &'a mut Vec<u8>,
    limit: usize,
}

impl<'a> Writer<'a> {
    /// Appends to `out` what comes from `len` bytes.
    pub fn new(out: &'a mut Vec<u8>, len: usize) -> Self {
        let limit = out.len() + 1024 + len.saturating_mul(MAX_GROWTH);
        Self { out, limit }
    }

    /// Appends the value of a kind at `depth`.
    pub fn value(&mut self, kind: u8, raw: &[u8], depth: u32) -> Result<(), Torn> {
        if depth > MAX_DEPTH || self.out.len() > self.limit {
            return Err(Torn);
        }
        let mut cursor = Cursor::new(raw);
        match kind {
            0 | 1 => self.container(raw, kind == 1, true, depth)?,
            2 | 3 => self.container(raw, kind == 3, false, depth)?,
            4 => self.literal(cursor.u8()?)?,
            5 => self.text(&(cursor.u16()? as i16).to_string()),
            6 => self.text(&cursor.u16()?.to_string()),
            7 => self.text(&(cursor.u32()? as i32).to_string()),
            8 => self.text(&cursor.u32()?.to_string()),
            9 => self.text(&(cursor.u64()? as i64).to_string()),
            10 => self.text(&cursor.u64()?.to_string()),
            11 => self.double(f64::from_le_bytes(cursor.array()?))?,
            12 => {
                let len = length(&mut cursor)?;
                json::push_string(self.out, std::str::from_utf8(cursor.take(len)?).map_err(|_| Torn)?);
            }
            15 => {
                let field = cursor.u8()?;
                let len = length(&mut cursor)?;
                self.opaque(field, cursor.take(len)?)?;
            }
            _ => return Err(Torn),
        }
        Ok(())
    }

    fn text(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    /// As the server writes it, whose text of a document is what a SELECT shows: a whole number keeps its point.
    fn double(&mut self, value: f64) -> Result<(), Torn> {
        let start = self.out.len();
        let is_plain = value == 0.0 || (value.abs() >= 1e-15 && (value.abs() < 1e15 || value.fract() != 0.0));
        number::push_float(self.out, value.is_finite(), || if is_plain { format!("{value}") } else { format!("{value:e}") })?;
        if self.out[start..].iter().all(|byte| byte.is_ascii_digit() || *byte == b'-') {
            self.text(".0");
        }
        Ok(())
    }

    fn literal(&mut self, byte: u8) -> Result<(), Torn> {
        self.text(["null", "true", "false"].get(usize::from(byte)).ok_or(Torn)?);
        Ok(())
    }

    fn container(&mut self, raw: &[u8], is_large: bool, is_object: bool, depth: u32) -> Result<(), Torn> {
        self.out.push(if is_object { b'{' } else { b'[' });
        let mut is_first = true;
        entries(raw, is_large, is_object, |name, kind, raw| {
            if !std::mem::take(&mut is_first) {
                self.out.push(b',');
            }
            if let Some(name) = name {
                json::push_string(self.out, std::str::from_utf8(name).map_err(|_| Torn)?);
                self.out.push(b':');
            }
            self.value(kind, raw, depth + 1)
        })?;
        self.out.push(if is_object { b'}' } else { b']' });
        Ok(())
    }

    /// A value that JSON has no type for, as the server writes it.
    fn opaque(&mut self, kind: u8, raw: &[u8]) -> Result<(), Torn> {
        match kind {
            field::NEWDECIMAL => {
                let (precision, scale) = (*raw.first().ok_or(Torn)?, *raw.get(1).ok_or(Torn)?);
                number::push_decimal(self.out, &raw[2..], precision, scale)
            }
            field::DATE | field::TIME | field::DATETIME | field::TIMESTAMP => self.moment(kind, Cursor::new(raw).u64()? as i64),
            _ => {
                let kind = if kind == field::VAR_STRING { field::VARCHAR } else { kind };
                self.text(&format!("\"base64:type{kind}:"));
                for (at, line) in raw.chunks(LINE_BYTES).enumerate() {
                    // A line's end, as it is written in JSON.
                    self.text(if at > 0 { "\\n" } else { "" });
                    self.text(&STANDARD.encode(line));
                }
                self.out.push(b'"');
                Ok(())
            }
        }
    }

    /// A packed moment: the parts as in the columns, and a fraction of 24 bits.
    fn moment(&mut self, kind: u8, packed: i64) -> Result<(), Torn> {
        let mut text = Vec::new();
        let (whole, part) = (packed.unsigned_abs() >> 24, packed.unsigned_abs() & 0xff_ffff);
        if kind == field::TIME {
            let stored = 0x8000_0000_0000_i64.checked_add(packed).ok_or(Torn)?;
            temporal::time(&mut text, &stored.to_be_bytes()[2..], 6)?;
        } else {
            let mut raw = whole.checked_add(0x80_0000_0000).ok_or(Torn)?.to_be_bytes()[3..].to_vec();
            raw.extend_from_slice(&part.to_be_bytes()[5..]);
            temporal::datetime(&mut text, &raw, 6)?;
            // Inside a document the server separates by a blank.
            text.iter_mut().filter(|byte| **byte == b'T').for_each(|byte| *byte = b' ');
            if kind == field::DATE {
                text.truncate(10);
            }
        }
        json::push_string(self.out, std::str::from_utf8(&text).map_err(|_| Torn)?);
        Ok(())
    }
}

/// Calls `each` with every entry of an object or an array: its name (none in an array), kind and bytes. First come the counts, then
/// where names and values are, then those that have no room there.
pub fn entries<'a>(
    raw: &'a [u8],
    is_large: bool,
    is_object: bool,
    mut each: impl FnMut(Option<&'a [u8]>, u8, &'a [u8]) -> Result<(), Torn>,
) -> Result<(), Torn> {
    let width = if is_large { 4 } else { 2 };
    let mut cursor = Cursor::new(raw);
    let (count, size) = (cursor.uint(width)? as usize, cursor.uint(width)? as usize);
    let raw = raw.get(..size).ok_or(Torn)?;
    let mut names = Cursor::new(cursor.take(if is_object { count.checked_mul(width + 2).ok_or(Torn)? } else { 0 })?);
    let mut values = Cursor::new(cursor.take(count.checked_mul(width + 1).ok_or(Torn)?)?);
    for _ in 0..count {
        let mut name = None;
        if is_object {
            let (offset, len) = (names.uint(width)? as usize, usize::from(names.u16()?));
            name = Some(raw.get(offset..).and_then(|rest| rest.get(..len)).ok_or(Torn)?);
        }
        let (kind, inlined) = (values.u8()?, values.take(width)?);
        if matches!(kind, 4..=6) || is_large && matches!(kind, 7 | 8) {
            each(name, kind, inlined)?;
        } else {
            let offset = Cursor::new(inlined).uint(width)? as usize;
            each(name, kind, raw.get(offset..).ok_or(Torn)?)?;
        }
    }
    Ok(())
}

/// Seven bits a byte, the lowest first; the highest bit says that more follow.
fn length(cursor: &mut Cursor<'_>) -> Result<usize, Torn> {
    let mut len = 0_usize;
    for at in 0..5 {
        let byte = cursor.u8()?;
        len |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(len);
        }
    }
    Err(Torn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(raw: &[u8]) -> Result<String, Torn> {
        let mut out = Vec::new();
        push(&mut out, raw)?;
        Ok(String::from_utf8(out).expect("UTF-8"))
    }

    #[test]
    fn an_array_in_an_object_is_read() {
        // {"a":[1,true]}
        let array = [2, 0, 10, 0, 5, 1, 0, 4, 1, 0];
        let mut object = vec![0, 1, 0, 22, 0, 11, 0, 1, 0, 2, 12, 0, b'a'];
        object.extend_from_slice(&array);
        assert_eq!(text(&object).unwrap(), r#"{"a":[1,true]}"#);
        object.pop();
        assert_eq!(text(&object), Err(Torn));
    }

    #[test]
    fn a_document_that_points_at_itself_comes_to_an_end() {
        // An array whose two elements are the array itself.
        assert_eq!(text(&[2, 2, 0, 10, 0, 2, 0, 0, 2, 0, 0]), Err(Torn));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_document_or_refused(kind in 0_u8..17, rest: Vec<u8>) {
            let mut raw = vec![kind];
            raw.extend_from_slice(&rest);
            if let Ok(text) = text(&raw) {
                prop_assert!(text.len() <= 1024 + 2 * MAX_GROWTH * raw.len() + 4 * raw.len());
            }
        }
    }
}
