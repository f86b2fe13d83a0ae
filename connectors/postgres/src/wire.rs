//! A cursor over bytes that a server sent. Every read checks the length first; nothing here allocates or panics.

/// The bytes end before the message does, or do not have its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn;

/// Reads big-endian fields from the front of a byte slice.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    /// Reads from the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// The next `len` bytes.
    #[inline]
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Torn> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(Torn)?;
        self.0 = tail;
        Ok(head)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Torn> {
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
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes.
    #[inline]
    pub fn u32(&mut self) -> Result<u32, Torn> {
        self.array().map(u32::from_be_bytes)
    }

    /// Four bytes with a sign.
    #[inline]
    pub fn i32(&mut self) -> Result<i32, Torn> {
        self.array().map(i32::from_be_bytes)
    }

    /// Eight bytes.
    #[inline]
    pub fn u64(&mut self) -> Result<u64, Torn> {
        self.array().map(u64::from_be_bytes)
    }

    /// Eight bytes with a sign.
    #[inline]
    pub fn i64(&mut self) -> Result<i64, Torn> {
        self.array().map(i64::from_be_bytes)
    }

    /// Bytes up to a zero byte, which is swallowed.
    pub fn bytes(&mut self) -> Result<&'a [u8], Torn> {
        let end = memchr::memchr(0, self.0).ok_or(Torn)?;
        let bytes = self.take(end)?;
        self.take(1)?;
        Ok(bytes)
    }

    /// The same, as text.
    pub fn text(&mut self) -> Result<&'a str, Torn> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Torn)
    }

    /// Fails unless everything was read.
    pub fn end(&self) -> Result<(), Torn> {
        if self.0.is_empty() { Ok(()) } else { Err(Torn) }
    }
}
