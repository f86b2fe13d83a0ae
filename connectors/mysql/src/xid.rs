//! Names of XA transactions.

use crate::wire::{Cursor, Torn};

/// The name that a client gave: format, and two parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xid {
    format: u32,
    global: Vec<u8>,
    branch: Vec<u8>,
}

impl Xid {
    /// Behind the first byte of an XA_PREPARE.
    pub fn of_event(body: &[u8]) -> Result<Self, Torn> {
        let mut cursor = Cursor::new(body);
        cursor.u8()?;
        let (format, global, branch) = (cursor.u32()?, cursor.u32()? as usize, cursor.u32()? as usize);
        let (global, branch) = (cursor.take(global)?.to_vec(), cursor.take(branch)?.to_vec());
        Ok(Self { format, global, branch })
    }

    /// A row of XA RECOVER: format, the lengths of both parts, and the parts.
    pub fn of_list(row: &[&[u8]]) -> Option<Self> {
        let [format, global, branch, data] = *row else { return None };
        let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<i64>().ok();
        let (global, rest) = data.split_at_checked(usize::try_from(number(global)?).ok()?)?;
        let fits = i64::try_from(rest.len()).ok()? == number(branch)?;
        fits.then(|| Some(Self { format: number(format)? as u32, global: global.to_vec(), branch: rest.to_vec() }))?
    }

    /// As the servers write it behind XA COMMIT: `X'6f6e65',X'',1`.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(text).ok()?.trim().splitn(3, ',');
        let (global, branch) = (hex(parts.next()?)?, hex(parts.next()?)?);
        Some(Self { format: parts.next()?.trim().parse().ok()?, global, branch })
    }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim().strip_prefix(['X', 'x'])?.strip_prefix('\'')?.strip_suffix('\'')?.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some((digit(*high)? << 4 | digit(*low)?) as u8),
        _ => None,
    };
    digits.chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_writings_of_a_name_are_one() {
        let mut body = vec![0, 1, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0];
        body.extend_from_slice(b"oneab");
        let found = Xid::of_event(&body);
        assert_eq!(found.ok(), Xid::parse(b" X'6f6e65',X'6162',1"));
        assert!(Xid::parse(b"X'6f6e65',X'',1").is_some_and(|xid| xid.branch.is_empty()));
        assert_eq!(Xid::of_list(&[b"1", b"3", b"2", b"oneab"]), Xid::of_event(&body).ok());
        for (global, branch) in [(&b"6"[..], &b"0"[..]), (b"3", b"1"), (b"-1", b"6"), (b"", b"5")] {
            assert_eq!(Xid::of_list(&[b"1", global, branch, b"oneab"]), None);
        }
        for text in [&b""[..], b"X'6f6',X'',1", b"X'zz',X'',1", b"'one',X'',1", b"X'6f',X''", b"X'6f',X'',x", b"X'6f"] {
            assert!(Xid::parse(text).is_none(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_name_or_refused(bytes: Vec<u8>, text in "(X'|'|,|[0-9a-f]{2}){0,12}") {
            let _ = (Xid::of_event(&bytes), Xid::parse(&bytes), Xid::parse(text.as_bytes()));
        }
    }
}
