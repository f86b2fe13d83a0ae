//! The messages of the `pgoutput` plugin, protocol version 1. Pure: bytes in, borrowed messages out.
//!
//! An unknown tag or a message that does not end where it says is [`Torn`]; nothing is skipped.

use crate::{
    position::Lsn,
    wire::{Cursor, Torn},
};

/// Microseconds from 1970 to 2000, where the server's clock begins.
pub const EPOCH_2000_US: i64 = 946_684_800_000_000;

/// One decoded message that borrows from the frame.
#[derive(Debug)]
pub enum Message<'a> {
    /// A transaction begins; the server sends it after its commit.
    Begin(Begin),
    /// It ends. `end` is the place behind its commit record.
    Commit { commit: Lsn, end: Lsn },
    /// The transaction came from another server.
    Origin,
    /// A table as it is at this place of the log; sent again after a reconnect, so never counted as a row message.
    Relation(Relation<'a>),
    /// The name of a type that is not built in; the catalogue tells more.
    Type,
    /// A new row.
    Insert { relation: u32, new: Tuple<'a> },
    /// A changed row.
    Update { relation: u32, old: Old<'a>, new: Tuple<'a> },
    /// A removed row.
    Delete { relation: u32, old: Old<'a> },
    /// Emptied tables: four bytes each.
    Truncate { relations: &'a [u8] },
    /// `pg_logical_emit_message`; comes only if it was asked for.
    Logical(Logical<'a>),
}

/// What somebody wrote into the log that is no row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logical<'a> {
    /// Whether it is part of a transaction and comes with it.
    pub transactional: bool,
    /// Where its record ends.
    pub end: Lsn,
    /// What it is about; not UTF-8 if the server cannot convert.
    pub prefix: &'a [u8],
    /// Any bytes.
    pub content: &'a [u8],
}

/// The head of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Where its commit record begins.
    pub commit: Lsn,
    /// Microseconds since 1970 UTC.
    pub commit_time_us: i64,
    /// Its number.
    pub xid: u32,
}

/// A table with its columns.
#[derive(Debug)]
pub struct Relation<'a> {
    /// The table's object id.
    pub id: u32,
    /// `public` and so on.
    pub schema: &'a str,
    /// The bare name.
    pub name: &'a str,
    /// `d`, `n`, `f` or `i`.
    pub identity: u8,
    /// In the order of the rows' cells.
    pub columns: Vec<Column<'a>>,
}

/// A column of a [`Relation`].
#[derive(Clone, Copy, Debug)]
pub struct Column<'a> {
    /// Part of the replica identity.
    pub in_identity: bool,
    /// Its name.
    pub name: &'a str,
    /// The type's object id.
    pub oid: u32,
    /// The type's modifier, or -1.
    pub modifier: i32,
}

/// What the log carries of the row before.
#[derive(Clone, Copy, Debug)]
pub enum Old<'a> {
    /// Nothing.
    None,
    /// The columns of the replica identity; the others are NULL on the wire, which means nothing.
    Key(Tuple<'a>),
    /// The whole row.
    Full(Tuple<'a>),
}

/// The cells of one row image. Their number is known, their form is checked as they are read.
#[derive(Clone, Copy, Debug)]
pub struct Tuple<'a> {
    /// Number of cells.
    pub columns: u16,
    cells: Cursor<'a>,
}

/// One cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell<'a> {
    /// SQL NULL
    Null,
    /// Not in the log, because it is stored out of line and did not change
    Unchanged,
    /// The text that the type's output function wrote
    Text(&'a [u8]),
}

impl<'a> Tuple<'a> {
    /// The next cell.
    #[inline]
    pub fn next_cell(&mut self) -> Result<Cell<'a>, Torn> {
        match self.cells.u8()? {
            b't' => {
                let len = usize::try_from(self.cells.i32()?).map_err(|_| Torn)?;
                self.cells.take(len).map(Cell::Text)
            }
            b'n' => Ok(Cell::Null),
            b'u' => Ok(Cell::Unchanged),
            _ => Err(Torn),
        }
    }

    /// Fails unless all bytes were read.
    #[inline]
    pub fn end(&self) -> Result<(), Torn> {
        self.cells.end()
    }

    fn all(cursor: Cursor<'a>) -> Result<Self, Torn> {
        let mut cells = cursor;
        Ok(Self { columns: cells.u16()?, cells })
    }

    /// Splits a row image off the front; what follows stays in the cursor.
    fn split(cursor: &mut Cursor<'a>) -> Result<Self, Torn> {
        let columns = cursor.u16()?;
        let before = cursor.rest();
        let mut walk = Self { columns, cells: *cursor };
        for _ in 0..columns {
            walk.next_cell()?;
        }
        let len = before.len() - walk.cells.rest().len();
        Ok(Self { columns, cells: Cursor::new(cursor.take(len)?) })
    }
}

/// Decodes one message.
pub fn parse(bytes: &[u8]) -> Result<Message<'_>, Torn> {
    let mut cursor = Cursor::new(bytes);
    match cursor.u8()? {
        b'I' => {
            let relation = cursor.u32()?;
            expect(&mut cursor, b'N')?;
            Ok(Message::Insert { relation, new: Tuple::all(cursor)? })
        }
        b'U' => update(cursor),
        b'D' => {
            let relation = cursor.u32()?;
            let old = match cursor.u8()? {
                b'K' => Old::Key(Tuple::all(cursor)?),
                b'O' => Old::Full(Tuple::all(cursor)?),
                _ => return Err(Torn),
            };
            Ok(Message::Delete { relation, old })
        }
        b'B' => begin(cursor),
        b'C' => {
            cursor.u8()?;
            let (commit, end) = (Lsn(cursor.u64()?), Lsn(cursor.u64()?));
            cursor.i64()?;
            cursor.end()?;
            Ok(Message::Commit { commit, end })
        }
        b'R' => relation(cursor).map(Message::Relation),
        b'Y' => {
            cursor.u32()?;
            cursor.text()?;
            cursor.text()?;
            cursor.end()?;
            Ok(Message::Type)
        }
        b'T' => truncate(cursor),
        b'O' => {
            cursor.u64()?;
            cursor.text()?;
            cursor.end()?;
            Ok(Message::Origin)
        }
        b'M' => logical(cursor),
        _ => Err(Torn),
    }
}

fn expect(cursor: &mut Cursor<'_>, tag: u8) -> Result<(), Torn> {
    if cursor.u8()? == tag { Ok(()) } else { Err(Torn) }
}

fn begin(mut cursor: Cursor<'_>) -> Result<Message<'_>, Torn> {
    let commit = Lsn(cursor.u64()?);
    let commit_time_us = cursor.i64()?.saturating_add(EPOCH_2000_US);
    let xid = cursor.u32()?;
    cursor.end()?;
    Ok(Message::Begin(Begin { commit, commit_time_us, xid }))
}

fn update(mut cursor: Cursor<'_>) -> Result<Message<'_>, Torn> {
    let relation = cursor.u32()?;
    let old = match cursor.u8()? {
        b'N' => return Ok(Message::Update { relation, old: Old::None, new: Tuple::all(cursor)? }),
        b'K' => Old::Key(Tuple::split(&mut cursor)?),
        b'O' => Old::Full(Tuple::split(&mut cursor)?),
        _ => return Err(Torn),
    };
    expect(&mut cursor, b'N')?;
    Ok(Message::Update { relation, old, new: Tuple::all(cursor)? })
}

fn relation(mut cursor: Cursor<'_>) -> Result<Relation<'_>, Torn> {
    let id = cursor.u32()?;
    let schema = match cursor.text()? {
        // The protocol writes pg_catalog as an empty name.
        "" => "pg_catalog",
        schema => schema,
    };
    let (name, identity, count) = (cursor.text()?, cursor.u8()?, cursor.u16()?);
    let mut columns = Vec::new();
    for _ in 0..count {
        let in_identity = cursor.u8()? & 1 == 1;
        columns.push(Column { in_identity, name: cursor.text()?, oid: cursor.u32()?, modifier: cursor.i32()? });
    }
    cursor.end()?;
    Ok(Relation { id, schema, name, identity, columns })
}

fn truncate(mut cursor: Cursor<'_>) -> Result<Message<'_>, Torn> {
    let count = usize::try_from(cursor.u32()?).map_err(|_| Torn)?;
    cursor.u8()?;
    let relations = cursor.take(count.checked_mul(4).ok_or(Torn)?)?;
    cursor.end()?;
    Ok(Message::Truncate { relations })
}

fn logical(mut cursor: Cursor<'_>) -> Result<Message<'_>, Torn> {
    let transactional = cursor.u8()? & 1 == 1;
    let end = Lsn(cursor.u64()?);
    let prefix = cursor.bytes()?;
    let len = usize::try_from(cursor.u32()?).map_err(|_| Torn)?;
    let content = cursor.take(len)?;
    cursor.end()?;
    Ok(Message::Logical(Logical { transactional, end, prefix, content }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(bytes: &[u8]) -> Result<(), Torn> {
        let walk = |mut tuple: Tuple<'_>| {
            for _ in 0..tuple.columns {
                tuple.next_cell()?;
            }
            tuple.end()
        };
        match parse(bytes)? {
            Message::Insert { new, .. } => walk(new),
            Message::Update { old, new, .. } => {
                if let Old::Key(tuple) | Old::Full(tuple) = old {
                    walk(tuple)?;
                }
                walk(new)
            }
            Message::Delete { old: Old::Key(tuple) | Old::Full(tuple), .. } => walk(tuple),
            _ => Ok(()),
        }
    }

    fn update_message() -> Vec<u8> {
        b"U\0\0\0\x07K\0\x02t\0\0\0\x011nN\0\x02t\0\0\0\x012u".to_vec()
    }

    #[test]
    fn an_update_with_its_old_key_splits_where_it_must() {
        let bytes = update_message();
        let Ok(Message::Update { relation: 7, old: Old::Key(mut old), mut new }) = parse(&bytes) else { panic!() };
        assert_eq!((old.next_cell(), old.next_cell(), old.end()), (Ok(Cell::Text(b"1")), Ok(Cell::Null), Ok(())));
        assert_eq!((new.next_cell(), new.next_cell(), new.end()), (Ok(Cell::Text(b"2")), Ok(Cell::Unchanged), Ok(())));
    }

    #[test]
    fn every_shorter_or_longer_message_is_torn() {
        let bytes = update_message();
        for len in 0..bytes.len() {
            assert!(read_all(&bytes[..len]).is_err(), "{len}");
        }
        let mut longer = bytes;
        longer.push(0);
        assert!(read_all(&longer).is_err());
    }

    #[test]
    fn a_begin_counts_from_1970() {
        let mut bytes = vec![b'B'];
        bytes.extend_from_slice(&0x15D_7000_u64.to_be_bytes());
        bytes.extend_from_slice(&0_i64.to_be_bytes());
        bytes.extend_from_slice(&757_u32.to_be_bytes());
        let Ok(Message::Begin(begin)) = parse(&bytes) else { panic!() };
        assert_eq!(begin, Begin { commit: Lsn(0x15D_7000), commit_time_us: 946_684_800_000_000, xid: 757 });
    }

    #[test]
    fn unknown_tags_and_binary_cells_stop() {
        assert!(parse(b"Z").is_err());
        assert!(read_all(b"I\0\0\0\x07N\0\x01b\0\0\0\x011").is_err());
        assert!(read_all(b"I\0\0\0\x07N\0\x01t\xff\xff\xff\xff").is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(tag in prop::sample::select(b"BCORYIUDTMxs".to_vec()), rest: Vec<u8>) {
            let mut bytes = vec![tag];
            bytes.extend(rest);
            let _ = read_all(&bytes);
        }
    }
}
