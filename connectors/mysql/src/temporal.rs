//! Dates and times as ISO 8601 text with all digits of their column.
//!
//! What is no date of the calendar (a zero in year, month or day) keeps the server's own text, with a blank instead of `T`.

use std::io::Write;

use crate::{
    decode::fixed,
    wire::{Cursor, Torn},
};

/// Whether a date has a zero where the calendar has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zero {
    Yes,
    No,
}

/// Bytes of a fraction with so many digits.
pub fn fraction_len(digits: u16) -> Result<usize, Torn> {
    if digits <= 6 { Ok(usize::from(digits.div_ceil(2))) } else { Err(Torn) }
}

struct Moment {
    year: u64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Moment {
    fn is_zero(&self) -> Zero {
        if self.year == 0 || self.month == 0 || self.day == 0 { Zero::Yes } else { Zero::No }
    }

    fn check(&self) -> Result<(), Torn> {
        let fits = self.year <= 9999 && self.month <= 12 && self.day <= 31;
        if fits && self.hour < 24 && self.minute < 60 && self.second < 60 { Ok(()) } else { Err(Torn) }
    }

    /// With the fraction `micros`, of which `digits` are shown.
    fn write(&self, out: &mut Vec<u8>, micros: u64, digits: u8, zone: &str) -> Result<Zero, Torn> {
        self.check()?;
        let (between, zone) = if self.is_zero() == Zero::Yes { (b' ', "") } else { (b'T', zone) };
        let mut text = *b"0000-00-00T00:00:00";
        put_date(&mut text, self.year, self.month, self.day);
        text[10] = between;
        for (at, number) in [(11, self.hour), (14, self.minute), (17, self.second)] {
            put(&mut text, at, number);
        }
        out.extend_from_slice(&text);
        fraction(out, micros, digits)?;
        out.extend_from_slice(zone.as_bytes());
        Ok(self.is_zero())
    }
}

/// Two digits. Most rows have a time, and `write!` takes many times as long.
#[inline]
fn put<const N: usize>(text: &mut [u8; N], at: usize, number: u64) {
    text[at] = b'0' + (number / 10 % 10) as u8;
    text[at + 1] = b'0' + (number % 10) as u8;
}

#[inline]
fn put_date<const N: usize>(text: &mut [u8; N], year: u64, month: u64, day: u64) {
    for (at, number) in [(0, year / 100), (2, year % 100), (5, month), (8, day)] {
        put(text, at, number);
    }
}

fn fraction(out: &mut Vec<u8>, micros: u64, digits: u8) -> Result<(), Torn> {
    if micros >= 1_000_000 {
        return Err(Torn);
    }
    if digits > 0 {
        let mut text = *b".000000";
        for (at, number) in [(1, micros / 10_000), (3, micros / 100 % 100), (5, micros % 100)] {
            put(&mut text, at, number);
        }
        out.extend_from_slice(&text[..usize::from(digits.min(6)) + 1]);
    }
    Ok(())
}

/// Stored in hundreds by the byte: 1, 2 or 3 bytes for 2, 4 or 6 digits.
fn micros(value: u64, len: usize) -> u64 {
    value * [1_000_000, 10_000, 100, 1][len.min(3)]
}

/// `2026-01-02`
pub fn date(out: &mut Vec<u8>, raw: &[u8]) -> Result<Zero, Torn> {
    let bits = Cursor::new(raw).uint(raw.len())?;
    let moment = Moment { year: bits >> 9, month: bits >> 5 & 15, day: bits & 31, hour: 0, minute: 0, second: 0 };
    moment.check()?;
    let mut text = *b"0000-00-00";
    put_date(&mut text, moment.year, moment.month, moment.day);
    out.extend_from_slice(&text);
    Ok(moment.is_zero())
}

/// `2026-01-02T03:04:05.123456`
pub fn datetime(out: &mut Vec<u8>, raw: &[u8], digits: u8) -> Result<Zero, Torn> {
    let mut cursor = Cursor::new(raw);
    let bits = cursor.uint_be(5)?.checked_sub(0x80_0000_0000).ok_or(Torn)?;
    let len = cursor.rest().len();
    let micros = micros(cursor.uint_be(len)?, len);
    let (date, time) = (bits >> 17, bits & 0x1_ffff);
    let moment = Moment {
        year: (date >> 5) / 13,
        month: (date >> 5) % 13,
        day: date & 31,
        hour: time >> 12,
        minute: time >> 6 & 63,
        second: time & 63,
    };
    moment.write(out, micros, digits, "")
}

/// As MariaDB can still keep it: the digits of `yyyymmddhhmmss` as one number.
pub fn old_datetime(out: &mut Vec<u8>, raw: &[u8]) -> Result<Zero, Torn> {
    let number = u64::from_le_bytes(fixed(raw)?);
    let (date, time) = (number / 1_000_000, number % 1_000_000);
    let moment = Moment {
        year: date / 10_000,
        month: date / 100 % 100,
        day: date % 100,
        hour: time / 10_000,
        minute: time / 100 % 100,
        second: time % 100,
    };
    moment.write(out, 0, 0, "")
}

/// `2026-01-02T03:04:05.123456Z`, from seconds since 1970.
pub fn timestamp(out: &mut Vec<u8>, seconds: u32, rest: &[u8], digits: u8) -> Result<Zero, Torn> {
    let micros = micros(Cursor::new(rest).uint_be(rest.len())?, rest.len());
    if seconds == 0 && micros == 0 {
        let zero = Moment { year: 0, month: 0, day: 0, hour: 0, minute: 0, second: 0 };
        return zero.write(out, 0, digits, "");
    }
    let (days, second) = (u64::from(seconds) / 86_400, u64::from(seconds) % 86_400);
    let (year, month, day) = civil(days);
    Moment { year, month, day, hour: second / 3600, minute: second / 60 % 60, second: second % 60 }
        .write(out, micros, digits, "Z")
}

/// The date of so many days after 1970-01-01, by eras of 400 years that begin in March.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

/// `-838:59:59.999999` to `838:59:59.999999`
pub fn time(out: &mut Vec<u8>, raw: &[u8], digits: u8) -> Result<Zero, Torn> {
    let len = raw.len().checked_sub(3).ok_or(Torn)?;
    let stored = Cursor::new(raw).uint_be(raw.len())? as i64;
    let value = stored - (0x80_0000_i64 << (8 * len.min(3)));
    let (whole, part) = (value.unsigned_abs() >> (8 * len), value.unsigned_abs() & ((1 << (8 * len)) - 1));
    let (hour, minute, second) = (whole >> 12, whole >> 6 & 63, whole & 63);
    push_time(out, value < 0, (hour, minute, second))?;
    fraction(out, micros(part, len), digits)?;
    Ok(Zero::No)
}

/// As MariaDB can still keep it: the digits of `hhmmss` as one number.
pub fn old_time(out: &mut Vec<u8>, raw: &[u8]) -> Result<Zero, Torn> {
    let value = (Cursor::new(raw).u24()? << 8) as i32 >> 8;
    let number = u64::from(value.unsigned_abs());
    push_time(out, value < 0, (number / 10_000, number / 100 % 100, number % 100))?;
    Ok(Zero::No)
}

fn push_time(out: &mut Vec<u8>, is_negative: bool, (hour, minute, second): (u64, u64, u64)) -> Result<(), Torn> {
    if hour > 838 || minute > 59 || second > 59 {
        return Err(Torn);
    }
    let sign = if is_negative { "-" } else { "" };
    write!(out, "{sign}{hour:02}:{minute:02}:{second:02}").map_err(|_| Torn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(write: impl FnOnce(&mut Vec<u8>) -> Result<Zero, Torn>) -> String {
        let mut out = Vec::new();
        write(&mut out).expect("a value");
        String::from_utf8(out).expect("digits")
    }

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(text(|out| timestamp(out, 2_147_483_647, &[], 0)), "2038-01-19T03:14:07Z");
        assert_eq!(text(|out| timestamp(out, u32::MAX, &[0x27, 0x0f], 3)), "2106-02-07T06:28:15.999Z");
        assert_eq!(text(|out| timestamp(out, 0, &[], 0)), "0000-00-00 00:00:00");
    }

    #[test]
    fn negative_times_keep_their_fraction() {
        // -00:00:01.50, as the server stores it in four bytes.
        let stored = (0x80_0000_u32 << 8) - (1 << 8 | 50);
        assert_eq!(text(|out| time(out, &stored.to_be_bytes(), 2)), "-00:00:01.50");
        assert_eq!(text(|out| time(out, &[0x80, 0, 0], 0)), "00:00:00");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_time_or_refused(raw in proptest::collection::vec(any::<u8>(), 0..9), digits in 0_u8..7, seconds: u32) {
            let out = &mut Vec::new();
            let _ = (date(out, &raw), datetime(out, &raw, digits), time(out, &raw, digits), old_time(out, &raw));
            let _ = (old_datetime(out, &raw), timestamp(out, seconds, &raw, digits));
        }
    }
}
