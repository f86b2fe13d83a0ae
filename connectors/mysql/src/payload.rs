//! What is compressed in the binlog, unpacked within a bound.

use std::io::Read;

use flate2::read::ZlibDecoder;

use crate::{
    binlog::HEAD,
    wire::{Cursor, Torn},
};

/// Why something cannot be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// It is not what it says it is.
    Torn,
    /// It is larger than is allowed.
    TooLarge,
    /// By a method that is not known here.
    Method,
}

impl From<Torn> for Bad {
    fn from(_: Torn) -> Self {
        Self::Torn
    }
}

/// The events of a TRANSACTION_PAYLOAD, one behind the other, each with its head and without a checksum.
pub fn transaction(body: &[u8], limit: usize) -> Result<Vec<u8>, Bad> {
    let mut cursor = Cursor::new(body);
    let (mut method, mut size, mut whole) = (255, None, None);
    loop {
        match cursor.number()? {
            0 => break,
            kind => {
                let mut value = Cursor::new(cursor.bytes()?);
                match kind {
                    1 => size = Some(value.count()?),
                    2 => method = value.number()?,
                    3 => whole = Some(value.count()?),
                    _ => {}
                }
            }
        }
    }
    let packed = cursor.rest();
    if size.is_some_and(|size| size != packed.len()) {
        return Err(Bad::Torn);
    }
    if whole.is_some_and(|whole| whole > limit) {
        return Err(Bad::TooLarge);
    }
    match method {
        0 => unpack(zstd::stream::read::Decoder::with_buffer(packed).map_err(|_| Bad::Torn)?, whole, limit),
        255 => unpack(packed, whole, limit),
        _ => Err(Bad::Method),
    }
}

/// Splits the first event off what [`transaction`] unpacked.
pub fn next_event<'a>(events: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Torn> {
    if events.is_empty() {
        return Ok(None);
    }
    let mut cursor = Cursor::new(events.get(9..).ok_or(Torn)?);
    let size = cursor.u32()? as usize;
    if size < HEAD {
        return Err(Torn);
    }
    let (event, rest) = events.split_at_checked(size).ok_or(Torn)?;
    *events = rest;
    Ok(Some(event))
}

/// The rows or the statement of one of MariaDB's compressed events.
pub fn maria(packed: &[u8], limit: usize) -> Result<Vec<u8>, Bad> {
    let mut cursor = Cursor::new(packed);
    let head = cursor.u8()?;
    if head >> 4 & 7 != 0 {
        return Err(Bad::Method);
    }
    let len = cursor.uint_be(usize::from(head & 7))? as usize;
    if len > limit {
        return Err(Bad::TooLarge);
    }
    let out = unpack(ZlibDecoder::new(cursor.rest()), Some(len), limit)?;
    if out.len() == len { Ok(out) } else { Err(Bad::Torn) }
}

fn unpack(reader: impl Read, expected: Option<usize>, limit: usize) -> Result<Vec<u8>, Bad> {
    let most = expected.unwrap_or(limit).min(limit);
    let mut out = Vec::new();
    reader.take(most as u64 + 1).read_to_end(&mut out).map_err(|_| Bad::Torn)?;
    if out.len() <= most { Ok(out) } else { Err(Bad::TooLarge) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::push_number;
    use proptest::prelude::*;

    fn payload(plain: &[u8], says: usize) -> Vec<u8> {
        let packed = zstd::encode_all(plain, 1).expect("packed");
        let mut body = Vec::new();
        for (kind, value) in [(2, 0), (1, packed.len()), (3, says)] {
            let mut number = Vec::new();
            push_number(&mut number, value);
            body.extend_from_slice(&[kind, number.len() as u8]);
            body.extend_from_slice(&number);
        }
        body.push(0);
        body.extend_from_slice(&packed);
        body
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let plain = vec![0; 10 << 20];
        assert_eq!(transaction(&payload(&plain, plain.len()), 16 << 20).unwrap(), plain);
        assert_eq!(transaction(&payload(&plain, plain.len()), 1 << 20), Err(Bad::TooLarge));
        // It says that it is small.
        assert_eq!(transaction(&payload(&plain, 1000), 16 << 20), Err(Bad::TooLarge));
    }

    /// What one of MariaDB's compressed events holds, and what it says of its length.
    fn packed(plain: &[u8], says: u32) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(vec![0x84], flate2::Compression::best());
        encoder.get_mut().extend_from_slice(&says.to_be_bytes());
        std::io::Write::write_all(&mut encoder, plain).expect("packed");
        encoder.finish().expect("packed")
    }

    #[test]
    fn a_bomb_of_mariadb_is_not_unpacked() {
        let plain = vec![0; 10 << 20];
        let len = plain.len() as u32;
        assert_eq!(maria(&packed(&plain, len), 16 << 20).unwrap(), plain);
        assert_eq!(maria(&packed(&plain, len), 1 << 20), Err(Bad::TooLarge));
        assert_eq!(maria(&packed(&plain, u32::MAX), 16 << 20), Err(Bad::TooLarge));
        // It says that it is small, or larger than it is.
        assert_eq!(maria(&packed(&plain, 1000), 16 << 20), Err(Bad::TooLarge));
        assert_eq!(maria(&packed(&plain, len + 1), 16 << 20), Err(Bad::Torn));
    }

    proptest! {
        #[test]
        fn any_bytes_are_unpacked_or_refused(body: Vec<u8>) {
            let _ = (transaction(&body, 1 << 16), maria(&body, 1 << 16), next_event(&mut &body[..]));
        }
    }
}
