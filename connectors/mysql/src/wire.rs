//! A cursor over bytes that a server sent. Every read checks the length first; nothing here allocates or panics.

/// The bytes end before the message does, or do not have its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn;

/// Reads little-endian fields from the front of a byte slice.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    /// Reads from the first byte.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// What is left.
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// Whether everything was read.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `len` bytes.
    #[inline]
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Torn> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(Torn)?;
        self.0 = tail;
        Ok(head)
    }

    /// The next `N` bytes.
    #[inline]
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Torn> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(Torn)?;
        self.0 = tail;
        Ok(*head)
    }

    /// One byte.
    #[inline]
    pub fn u8(&mut self) -> Result<u8, Torn> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Two bytes.
    #[inline]
    pub fn u16(&mut self) -> Result<u16, Torn> {
        self.array().map(u16::from_le_bytes)
    }

    /// Three bytes.
    #[inline]
    pub fn u24(&mut self) -> Result<u32, Torn> {
        self.array().map(|[a, b, c]| u32::from_le_bytes([a, b, c, 0]))
    }

    /// Four bytes.
    #[inline]
    pub fn u32(&mut self) -> Result<u32, Torn> {
        self.array().map(u32::from_le_bytes)
    }

    /// Six bytes.
    #[inline]
    pub fn u48(&mut self) -> Result<u64, Torn> {
        self.array().map(|[a, b, c, d, e, f]| u64::from_le_bytes([a, b, c, d, e, f, 0, 0]))
    }

    /// Eight bytes.
    #[inline]
    pub fn u64(&mut self) -> Result<u64, Torn> {
        self.array().map(u64::from_le_bytes)
    }

    /// Up to eight bytes, little end first.
    #[inline]
    pub fn uint(&mut self, len: usize) -> Result<u64, Torn> {
        let mut wide = [0; 8];
        wide.get_mut(..len).ok_or(Torn)?.copy_from_slice(self.take(len)?);
        Ok(u64::from_le_bytes(wide))
    }

    /// Up to eight bytes, big end first.
    #[inline]
    pub fn uint_be(&mut self, len: usize) -> Result<u64, Torn> {
        let from = 8_usize.checked_sub(len).ok_or(Torn)?;
        let mut wide = [0; 8];
        wide[from..].copy_from_slice(self.take(len)?);
        Ok(u64::from_be_bytes(wide))
    }

    /// A number whose lowest bits say how many bytes follow its first: as many as there are ones before the first zero.
    pub fn prefixed(&mut self) -> Result<u64, Torn> {
        let first = self.u8()?;
        let more = first.trailing_ones() as usize;
        let rest = self.uint(more)?;
        // With eight bytes behind it the first one has no room for bits of the number.
        let low = u64::from(first).checked_shr(more as u32 + 1).unwrap_or(0);
        Ok(if more >= 7 { rest } else { low | rest << (7 - more) })
    }

    /// A length-encoded number: 1, 3, 4 or 9 bytes.
    #[inline]
    pub fn number(&mut self) -> Result<u64, Torn> {
        match self.u8()? {
            byte @ 0..=250 => Ok(byte.into()),
            252 => self.u16().map(u64::from),
            253 => self.u24().map(u64::from),
            254 => self.u64(),
            251 | 255 => Err(Torn),
        }
    }

    /// A length-encoded number that counts bytes or things in memory.
    #[inline]
    pub fn count(&mut self) -> Result<usize, Torn> {
        self.number()?.try_into().map_err(|_| Torn)
    }

    /// Bytes behind their length-encoded length.
    #[inline]
    pub fn bytes(&mut self) -> Result<&'a [u8], Torn> {
        let len = self.count()?;
        self.take(len)
    }

    /// Bytes up to a zero byte, which is swallowed.
    pub fn until_zero(&mut self) -> Result<&'a [u8], Torn> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or(Torn)?;
        let bytes = self.take(end)?;
        self.take(1)?;
        Ok(bytes)
    }
}

/// Appends a length-encoded number.
pub fn push_number(out: &mut Vec<u8>, number: usize) {
    match number {
        0..=250 => out.push(number as u8),
        251..=0xffff => {
            out.push(252);
            out.extend_from_slice(&(number as u16).to_le_bytes());
        }
        0x1_0000..=0xff_ffff => {
            out.push(253);
            out.extend_from_slice(&(number as u32).to_le_bytes()[..3]);
        }
        _ => {
            out.push(254);
            out.extend_from_slice(&(number as u64).to_le_bytes());
        }
    }
}

/// Whether a bit is set in a bitmap whose first bit is the lowest of the first byte. Bits behind the end are not.
#[inline]
pub fn bit(bitmap: &[u8], at: usize) -> bool {
    bitmap.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1)
}

/// The same where the first bit is the highest of the first byte.
pub fn bit_high_first(bitmap: &[u8], at: usize) -> bool {
    bitmap.get(at / 8).is_some_and(|byte| byte >> (7 - at % 8) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for number in [0, 1, 250, 251, 252, 65_535, 65_536, 16_777_215, 16_777_216, usize::MAX] {
            let mut out = Vec::new();
            push_number(&mut out, number);
            assert_eq!(Cursor::new(&out).count(), Ok(number));
        }
        assert_eq!(Cursor::new(&[251]).number(), Err(Torn));
        assert_eq!(Cursor::new(&[252, 1]).number(), Err(Torn));
    }

    #[test]
    fn numbers_say_how_long_they_are() {
        for number in (0..64).flat_map(|bit| [(1 << bit) - 1, 1 << bit]).chain([u64::MAX]) {
            for more in 0..=8_u32 {
                if more < 8 && number >> (7 * (more + 1)) > 0 {
                    continue;
                }
                let ones = (1_u128 << more) - 1;
                let shift = if more == 8 { 8 } else { more + 1 };
                let bytes = (u128::from(number) << shift | ones).to_le_bytes();
                let mut cursor = Cursor::new(&bytes[..=more as usize]);
                assert_eq!((cursor.prefixed(), cursor.is_empty()), (Ok(number), true), "{more} bytes follow");
                assert_eq!(Cursor::new(&bytes[..more as usize]).prefixed(), Err(Torn));
            }
        }
    }

    #[test]
    fn both_ends_can_come_first() {
        assert_eq!(Cursor::new(&[1, 2, 3]).uint(3), Ok(0x03_02_01));
        assert_eq!(Cursor::new(&[1, 2, 3]).uint_be(3), Ok(0x01_02_03));
        assert_eq!(Cursor::new(&[0; 16]).uint(9), Err(Torn));
        assert_eq!(Cursor::new(&[0; 16]).uint_be(9), Err(Torn));
    }
}
