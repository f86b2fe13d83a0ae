//! Decimals and floats as exact text.

use crate::wire::{Cursor, Torn};

/// Digits that four bytes hold.
const WORD: u8 = 9;
/// Bytes of a group of so many digits.
const BYTES: [usize; 10] = [0, 1, 1, 2, 2, 3, 3, 4, 4, 4];

/// Bytes of a decimal; none if there is no such type.
pub fn decimal_len(precision: u8, scale: u8) -> Option<usize> {
    let whole = precision.checked_sub(scale)?;
    let part = |digits: u8| usize::from(digits / WORD) * 4 + BYTES[usize::from(digits % WORD)];
    Some(part(whole) + part(scale))
}

/// Appends a decimal with all digits of its scale.
pub fn push_decimal(out: &mut Vec<u8>, raw: &[u8], precision: u8, scale: u8) -> Result<(), Torn> {
    if raw.is_empty() || decimal_len(precision, scale) != Some(raw.len()) {
        return Err(Torn);
    }
    // The highest bit is inverted; for a negative number, all are.
    let is_negative = raw[0] & 0x80 == 0;
    let mut bytes = [0; 64];
    let bytes = bytes.get_mut(..raw.len()).ok_or(Torn)?;
    bytes.copy_from_slice(raw);
    bytes[0] ^= 0x80;
    if is_negative {
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
        out.push(b'-');
    }
    let mut cursor = Cursor::new(bytes);
    let whole = precision - scale;
    let start = out.len();
    digits(out, &mut cursor, whole % WORD, true)?;
    for _ in 0..whole / WORD {
        let is_first = out.len() == start;
        digits(out, &mut cursor, WORD, is_first)?;
    }
    // One digit stays in front of the point.
    if out.len() == start {
        out.push(b'0');
    }
    if scale > 0 {
        out.push(b'.');
        for _ in 0..scale / WORD {
            digits(out, &mut cursor, WORD, false)?;
        }
        digits(out, &mut cursor, scale % WORD, false)?;
    }
    Ok(())
}

/// So many digits of a group; the first ones of a number without the zeros in front of them.
#[inline]
fn digits(out: &mut Vec<u8>, cursor: &mut Cursor<'_>, count: u8, is_first: bool) -> Result<(), Torn> {
    let width = usize::from(count);
    let value = cursor.uint_be(BYTES[width])? as u32;
    if value >= 10_u32.pow(count.into()) {
        return Err(Torn);
    }
    let (mut text, mut rest) = ([b'0'; WORD as usize], value);
    for digit in text[..width].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let zeros = if is_first { text[..width].iter().take_while(|digit| **digit == b'0').count() } else { 0 };
    out.extend_from_slice(&text[zeros..width]);
    Ok(())
}

/// Appends the shortest text that gives the same number back. The servers store no infinities.
pub fn push_f32(out: &mut Vec<u8>, value: f32) -> Result<(), Torn> {
    let is_plain = value == 0.0 || (1e-5..1e16).contains(&value.abs());
    push_float(out, value.is_finite(), || if is_plain { format!("{value}") } else { format!("{value:e}") })
}

/// See [`push_f32`].
pub fn push_f64(out: &mut Vec<u8>, value: f64) -> Result<(), Torn> {
    let is_plain = value == 0.0 || (1e-5..1e16).contains(&value.abs());
    push_float(out, value.is_finite(), || if is_plain { format!("{value}") } else { format!("{value:e}") })
}

/// Appends a text made of a number that is finite.
pub fn push_float(out: &mut Vec<u8>, is_finite: bool, text: impl FnOnce() -> String) -> Result<(), Torn> {
    if !is_finite {
        return Err(Torn);
    }
    out.extend_from_slice(text().as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decimal(raw: &[u8], precision: u8, scale: u8) -> Result<String, Torn> {
        let mut out = Vec::new();
        push_decimal(&mut out, raw, precision, scale)?;
        Ok(String::from_utf8(out).expect("digits"))
    }

    #[test]
    fn decimals_keep_their_scale() {
        // The manual's example: 1234567890.1234 as DECIMAL(14,4).
        let raw = [0x81, 0x0d, 0xfb, 0x38, 0xd2, 0x04, 0xd2];
        assert_eq!(decimal(&raw, 14, 4).unwrap(), "1234567890.1234");
        let negative: Vec<u8> = raw.iter().map(|byte| !byte).collect();
        assert_eq!(decimal(&negative, 14, 4).unwrap(), "-1234567890.1234");
        assert_eq!(decimal(&[0x80, 0], 3, 2).unwrap(), "0.00");
        assert_eq!(decimal(&[0x80], 2, 2).unwrap(), "0.00");
        assert_eq!(decimal(&[0x80], 2, 0).unwrap(), "0");
    }

    #[test]
    fn floats_give_the_same_number_back() {
        for (value, text) in [(0.1, "0.1"), (1e300, "1e300"), (-0.0, "-0"), (5e-324, "5e-324"), (1e15, "1000000000000000")] {
            let mut out = Vec::new();
            push_f64(&mut out, value).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
        assert_eq!(push_f32(&mut Vec::new(), f32::NAN), Err(Torn));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_decimal_or_refused(raw: Vec<u8>, precision: u8, scale: u8) {
            let _ = decimal(&raw, precision, scale);
        }

        #[test]
        fn every_float_is_a_json_number(bits: u64) {
            let value = f64::from_bits(bits);
            let mut out = Vec::new();
            if push_f64(&mut out, value).is_ok() {
                let text = String::from_utf8(out).expect("digits");
                prop_assert_eq!(text.parse::<f64>().unwrap().to_bits(), bits);
                prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}", text);
            }
        }
    }
}
