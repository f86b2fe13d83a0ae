//! From the bytes of a row to cells. Without IO; nothing here panics or allocates beyond what arrived.

use std::{net::Ipv6Addr, sync::Arc};

use headwater_connector::{Batch, Value, json};

use crate::{
    charset::Charset,
    config::ZeroDates,
    document, number,
    table_map::field,
    temporal::{self, Zero},
    wire::{Cursor, Torn},
};

/// How a column's bytes become a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Codec {
    Int,
    Uint,
    Year,
    Float,
    Double,
    Decimal {
        precision: u8,
        scale: u8,
    },
    /// BIT(1)
    Bool,
    /// So many digits
    Bit(u16),
    Date,
    OldTime,
    OldDateTime,
    OldTimestamp,
    /// Digits of the fraction
    Time(u8),
    DateTime(u8),
    Timestamp(u8),
    Text(Charset),
    Bytes,
    /// Padded with zero bytes, which the binlog leaves out
    Binary(u16),
    Enum(Arc<[String]>),
    Set(Arc<[String]>),
    /// MySQL's binary form
    Json,
    /// MariaDB's: checked text
    JsonText(Charset),
    Geometry,
    Vector,
    Uuid,
    Inet6,
    Inet4,
}

impl Codec {
    /// Whether its values have a day of the calendar, or none.
    pub const fn has_dates(&self) -> bool {
        matches!(self, Self::Date | Self::DateTime(_) | Self::Timestamp(_) | Self::OldDateTime | Self::OldTimestamp)
    }
}

/// Why a value cannot be a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// The bytes are no value of the type.
    Value,
    /// A date that is none, and the policy is to stop.
    ZeroDate,
}

impl From<Torn> for Bad {
    fn from(_: Torn) -> Self {
        Self::Value
    }
}

/// Takes the bytes of one value off, without the length in front of them.
#[inline]
pub fn take<'a>(kind: u8, meta: u16, cursor: &mut Cursor<'a>) -> Result<&'a [u8], Torn> {
    let len = match kind {
        field::TINY | field::YEAR => 1,
        field::SHORT => 2,
        field::INT24 | field::DATE | field::NEWDATE | field::TIME => 3,
        field::LONG | field::FLOAT | field::TIMESTAMP => 4,
        field::LONGLONG | field::DOUBLE | field::DATETIME => 8,
        field::NULL => 0,
        field::NEWDECIMAL => {
            let [precision, scale] = meta.to_be_bytes();
            number::decimal_len(precision, scale).ok_or(Torn)?
        }
        field::TIMESTAMP2 => 4 + temporal::fraction_len(meta)?,
        field::DATETIME2 => 5 + temporal::fraction_len(meta)?,
        field::TIME2 => 3 + temporal::fraction_len(meta)?,
        field::ENUM | field::SET if meta <= 8 => usize::from(meta),
        field::BIT => usize::from(meta >> 8) + usize::from(meta & 0xff > 0),
        field::VARCHAR | field::VAR_STRING | field::STRING => match meta {
            0..=255 => usize::from(cursor.u8()?),
            256.. => usize::from(cursor.u16()?),
        },
        field::BLOB | field::JSON | field::GEOMETRY | field::VECTOR if (1..=4).contains(&meta) => {
            cursor.uint(usize::from(meta))?.try_into().map_err(|_| Torn)?
        }
        _ => return Err(Torn),
    };
    cursor.take(len)
}

/// Appends the cell of a value.
#[inline]
pub fn push(batch: &mut Batch, codec: &Codec, raw: &[u8], zero: ZeroDates) -> Result<(), Bad> {
    match codec {
        Codec::Int => batch.push(Value::Int(int(raw)?)),
        Codec::Uint => batch.push(Value::Uint(Cursor::new(raw).uint(raw.len())?)),
        Codec::Year => {
            let [year] = fixed(raw)?;
            batch.push(Value::Uint(if year == 0 { 0 } else { 1900 + u64::from(year) }));
        }
        // A zero has no sign: MariaDB shows none, and both servers take the two for the same key.
        Codec::Float => batch.push_text_with(|out| number::push_f32(out, f32::from_le_bytes(fixed(raw)?) + 0.0))?,
        Codec::Double => batch.push_text_with(|out| number::push_f64(out, f64::from_le_bytes(fixed(raw)?) + 0.0))?,
        Codec::Decimal { precision, scale } => {
            batch.push_text_with(|out| number::push_decimal(out, raw, *precision, *scale))?;
        }
        Codec::Bool => batch.push(Value::Bool(raw.last().is_some_and(|byte| byte & 1 == 1))),
        Codec::Bit(digits) => batch.push_text_with(|out| {
            let bits = Cursor::new(raw).uint_be(raw.len())?;
            out.extend((0..*digits).rev().map(|at| b'0' + (bits.checked_shr(at.into()).unwrap_or(0) & 1) as u8));
            Ok::<_, Torn>(())
        })?,
        Codec::Text(Charset::Utf8) => batch.push(Value::Text(std::str::from_utf8(raw).map_err(|_| Bad::Value)?)),
        Codec::Text(charset) => batch.push_text_with(|out| charset.decode(raw, out))?,
        Codec::Bytes => batch.push(Value::Bytes(raw)),
        Codec::Binary(len) => batch.push_bytes_with(|out| padded(out, raw, *len))?,
        Codec::Enum(labels) => {
            let index = Cursor::new(raw).uint(raw.len())?;
            // Index 0 is what the server stores for a wrong value; it shows it as an empty string.
            let label = if index == 0 { Some("") } else { labels.get(index as usize - 1).map(String::as_str) };
            batch.push(Value::Text(label.ok_or(Bad::Value)?));
        }
        Codec::Set(labels) => batch.push_json_with(|out| push_set(out, raw, labels))?,
        Codec::Json | Codec::JsonText(_) | Codec::Vector => push_json(batch, codec, raw)?,
        // Four bytes in front say which reference system it is in.
        Codec::Geometry => batch.push(Value::Bytes(raw.get(4..).ok_or(Bad::Value)?)),
        Codec::Uuid => batch.push_text_with(|out| uuid(out, raw))?,
        Codec::Inet6 => batch.push_text_with(|out| {
            let mut bytes = Vec::with_capacity(16);
            padded(&mut bytes, raw, 16)?;
            push_text(out, &Ipv6Addr::from(fixed::<16>(&bytes)?).to_string())
        })?,
        Codec::Inet4 => batch.push_text_with(|out| {
            let mut bytes = Vec::with_capacity(4);
            padded(&mut bytes, raw, 4)?;
            let [a, b, c, d] = fixed(&bytes)?;
            push_text(out, &format!("{a}.{b}.{c}.{d}"))
        })?,
        _ => return push_temporal(batch, codec, raw, zero),
    }
    Ok(())
}

fn push_temporal(batch: &mut Batch, codec: &Codec, raw: &[u8], zero: ZeroDates) -> Result<(), Bad> {
    let mut is_zero = Zero::No;
    batch
        .push_text_with(|out| {
            is_zero = match codec {
                Codec::Date => temporal::date(out, raw)?,
                Codec::OldTime => temporal::old_time(out, raw)?,
                Codec::OldDateTime => temporal::old_datetime(out, raw)?,
                Codec::OldTimestamp => temporal::timestamp(out, Cursor::new(raw).u32()?, &[], 0)?,
                Codec::Time(digits) => temporal::time(out, raw, *digits)?,
                Codec::DateTime(digits) => temporal::datetime(out, raw, *digits)?,
                Codec::Timestamp(digits) => {
                    let mut cursor = Cursor::new(raw);
                    let seconds = u32::from_be_bytes(cursor.array()?);
                    temporal::timestamp(out, seconds, cursor.rest(), *digits)?
                }
                _ => return Err(Torn),
            };
            // The cell that was just begun cannot be taken back, so the policy comes in front of it.
            if is_zero == Zero::Yes && zero != ZeroDates::Text { Err(Torn) } else { Ok(()) }
        })
        .or_else(|Torn| match (is_zero, zero) {
            (Zero::Yes, ZeroDates::Null) => {
                batch.push(Value::Null);
                Ok(())
            }
            (Zero::Yes, _) => Err(Bad::ZeroDate),
            (Zero::No, _) => Err(Bad::Value),
        })
}

fn push_json(batch: &mut Batch, codec: &Codec, raw: &[u8]) -> Result<(), Torn> {
    match codec {
        Codec::JsonText(charset) => {
            let mut text = Vec::new();
            charset.decode(raw, &mut text)?;
            let text = std::str::from_utf8(&text).map_err(|_| Torn)?;
            let compact = batch.push_json_with(|out| if json::push_compact(out, text) { Ok(()) } else { Err(Torn) });
            // The check that makes the column a document can be dropped or passed by.
            if compact.is_err() {
                batch.push(Value::Text(text));
            }
            Ok(())
        }
        Codec::Vector => batch.push_json_with(|out| vector(out, raw)),
        // An update that could not be made by a lax statement leaves no bytes at all, which the server shows as null.
        _ if raw.is_empty() => {
            batch.push(Value::Json("null"));
            Ok(())
        }
        _ => batch.push_json_with(|out| document::push(out, raw)),
    }
}

fn vector(out: &mut Vec<u8>, raw: &[u8]) -> Result<(), Torn> {
    let (numbers, []) = raw.as_chunks::<4>() else { return Err(Torn) };
    out.push(b'[');
    for (at, number) in numbers.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        number::push_f32(out, f32::from_le_bytes(*number))?;
    }
    out.push(b']');
    Ok(())
}

fn push_set(out: &mut Vec<u8>, raw: &[u8], labels: &[String]) -> Result<(), Torn> {
    let bits = Cursor::new(raw).uint(raw.len())?;
    let set = (0..64).filter(|at| bits >> at & 1 == 1);
    out.push(b'[');
    for (at, place) in set.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        json::push_string(out, labels.get(place).ok_or(Torn)?);
    }
    out.push(b']');
    Ok(())
}

fn push_text(out: &mut Vec<u8>, text: &str) -> Result<(), Torn> {
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

fn padded(out: &mut Vec<u8>, raw: &[u8], len: u16) -> Result<(), Torn> {
    let missing = usize::from(len).checked_sub(raw.len()).ok_or(Torn)?;
    out.extend_from_slice(raw);
    out.extend(std::iter::repeat_n(0, missing));
    Ok(())
}

/// MariaDB keeps uuids so that those of versions 1 to 5 sort by their time: the groups stand in reverse.
fn uuid(out: &mut Vec<u8>, raw: &[u8]) -> Result<(), Torn> {
    let mut bytes = Vec::with_capacity(16);
    padded(&mut bytes, raw, 16)?;
    let kept: [u8; 16] = fixed(&bytes)?;
    // The variant is in the top bits of the byte that begins the fourth group, which is the seventh of the kept form.
    let is_reversed = kept[6] & 0x80 != 0 && kept[8] > 0 && kept[8] <= 0x5f || kept == [0; 16];
    let mut plain = kept;
    if is_reversed {
        plain[..4].copy_from_slice(&kept[12..]);
        plain[4..6].copy_from_slice(&kept[10..12]);
        plain[6..8].copy_from_slice(&kept[8..10]);
        plain[8..10].copy_from_slice(&kept[6..8]);
        plain[10..].copy_from_slice(&kept[..6]);
    }
    for (at, byte) in plain.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            out.push(b'-');
        }
        out.push(b"0123456789abcdef"[usize::from(byte >> 4)]);
        out.push(b"0123456789abcdef"[usize::from(byte & 15)]);
    }
    Ok(())
}

/// Sign and all, for every width.
#[inline]
fn int(raw: &[u8]) -> Result<i64, Torn> {
    let bits = Cursor::new(raw).uint(raw.len())?;
    let unused = 64_u32.checked_sub(8 * raw.len() as u32).filter(|unused| *unused < 64).ok_or(Torn)?;
    Ok((bits << unused) as i64 >> unused)
}

pub fn fixed<const N: usize>(raw: &[u8]) -> Result<[u8; N], Torn> {
    raw.try_into().map_err(|_| Torn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_negative_mediumint_keeps_its_sign() {
        assert_eq!(int(&[0xff, 0xff, 0xff]), Ok(-1));
        assert_eq!(int(&[0, 0, 0x80]), Ok(-8_388_608));
        assert_eq!(int(&[0xff, 0xff, 0x7f]), Ok(8_388_607));
        assert_eq!(int(&[]), Err(Torn));
        assert_eq!(int(&[0; 9]), Err(Torn));
    }
}
