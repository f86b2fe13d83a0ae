//! Events of the binlog, borrowed from the bytes that came. Without IO and without knowledge of tables.

use crate::{
    gtid::{Gtid, MariaGtid, MysqlGtid, Origin, Tag},
    wire::{Cursor, Torn},
};

/// Bytes of the head that every event has.
pub const HEAD: usize = 19;
/// Bytes of a checksum at the end of an event.
const CHECKSUM: usize = 4;
/// Head flag: the file is still written; the checksum is of the event without it.
const IN_USE: u16 = 0x01;
/// Head flag: the sender made the event up.
const ARTIFICIAL: u16 = 0x20;
/// Head flag: whoever does not know the event may skip it.
const IGNORABLE: u16 = 0x80;
/// Marks a statement that needs its session: a temporary table is in it.
const OF_SESSION: u16 = 0x4;

/// The number of the last field that a tagged GTID has in MySQL 9.7.
const LAST_TAGGED_FIELD: u64 = 11;

/// Numbers of the events' types.
pub mod kind {
    /// No event of a server: how many raw rows were left out where a transaction was held.
    pub const PASSED: u8 = 0;
    pub const QUERY: u8 = 2;
    pub const STOP: u8 = 3;
    pub const ROTATE: u8 = 4;
    pub const INTVAR: u8 = 5;
    pub const RAND: u8 = 13;
    pub const USER_VAR: u8 = 14;
    pub const FORMAT_DESCRIPTION: u8 = 15;
    pub const XID: u8 = 16;
    pub const BEGIN_LOAD: u8 = 17;
    pub const EXECUTE_LOAD: u8 = 18;
    pub const TABLE_MAP: u8 = 19;
    pub const WRITE_ROWS_V1: u8 = 23;
    pub const DELETE_ROWS_V1: u8 = 25;
    pub const INCIDENT: u8 = 26;
    pub const HEARTBEAT: u8 = 27;
    pub const ROWS_QUERY: u8 = 29;
    pub const WRITE_ROWS: u8 = 30;
    pub const DELETE_ROWS: u8 = 32;
    pub const GTID: u8 = 33;
    pub const ANONYMOUS_GTID: u8 = 34;
    pub const PREVIOUS_GTIDS: u8 = 35;
    pub const TRANSACTION_CONTEXT: u8 = 36;
    pub const VIEW_CHANGE: u8 = 37;
    pub const XA_PREPARE: u8 = 38;
    pub const PARTIAL_UPDATE_ROWS: u8 = 39;
    pub const TRANSACTION_PAYLOAD: u8 = 40;
    pub const HEARTBEAT_V2: u8 = 41;
    pub const GTID_TAGGED: u8 = 42;
    pub const ANNOTATE_ROWS: u8 = 160;
    pub const BINLOG_CHECKPOINT: u8 = 161;
    pub const MARIA_GTID: u8 = 162;
    pub const GTID_LIST: u8 = 163;
    pub const START_ENCRYPTION: u8 = 164;
    pub const QUERY_COMPRESSED: u8 = 165;
    pub const WRITE_ROWS_COMPRESSED_V1: u8 = 166;
    pub const DELETE_ROWS_COMPRESSED_V1: u8 = 168;
    pub const WRITE_ROWS_COMPRESSED: u8 = 169;
    pub const DELETE_ROWS_COMPRESSED: u8 = 171;

    /// Whether it has rows of a table.
    pub const fn is_rows(kind: u8) -> bool {
        matches!(
            kind,
            WRITE_ROWS_V1..=DELETE_ROWS_V1
                | WRITE_ROWS..=DELETE_ROWS
                | PARTIAL_UPDATE_ROWS
                | WRITE_ROWS_COMPRESSED_V1..=DELETE_ROWS_COMPRESSED
        )
    }
}

/// The head of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Seconds since 1970.
    pub time: u32,
    /// See [`kind`].
    pub kind: u8,
    /// The server that wrote it first.
    pub server_id: u32,
    /// Where the next event begins in its file; 0 for what is in no file.
    pub next: u32,
    flags: u16,
}

impl Header {
    /// Whether whoever does not know the event may skip it.
    pub fn is_ignorable(&self) -> bool {
        self.flags & IGNORABLE != 0
    }

    /// Whether a statement is about a temporary table, among others perhaps.
    pub fn is_of_session(&self) -> bool {
        self.flags & OF_SESSION != 0
    }

    /// Where in its file the stream is behind an event of this size that came at `at`. Events say so with 32 bits, which the last transaction
    /// of a file can outgrow; MariaDB since 11.7 says nothing inside of transactions, so they are counted there.
    pub fn behind(&self, at: u64, size: usize, is_inside: bool) -> u64 {
        let ahead = self.next.wrapping_sub(at as u32);
        match self.next {
            0 if is_inside && self.flags & ARTIFICIAL == 0 => at + size as u64,
            0 => at,
            // The count can be beside the truth by what was left out or added on the way.
            _ if is_inside => at.saturating_add_signed((ahead as i32).into()),
            _ => at + u64::from(ahead),
        }
    }

    /// The same head for an event of another kind.
    pub fn of(&self, kind: u8) -> Self {
        Self { kind, ..*self }
    }

    /// Appends the event as it stands in a compressed transaction: without a checksum and without a place.
    pub fn write(&self, body: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&self.time.to_le_bytes());
        out.push(self.kind);
        out.extend_from_slice(&self.server_id.to_le_bytes());
        out.extend_from_slice(&((HEAD + body.len()) as u32).to_le_bytes());
        out.extend_from_slice(&0_u32.to_le_bytes());
        out.extend_from_slice(&self.flags.to_le_bytes());
        out.extend_from_slice(body);
    }
}

/// How the checksums of what comes now are made; none before the first format description.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// Not known yet
    #[default]
    Unknown,
    /// None
    Off,
    /// CRC-32
    Crc32,
}

/// The bytes of an event do not have its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// They do not have the form of an event.
    Torn,
    /// They were damaged on the way or on the disk.
    Checksum,
}

impl From<Torn> for Bad {
    fn from(_: Torn) -> Self {
        Self::Torn
    }
}

/// Splits an event into head and body, and takes the checksum off.
pub fn split(event: &[u8], checksum: Checksum) -> Result<(Header, &[u8]), Bad> {
    let mut cursor = Cursor::new(event);
    let (time, kind, server_id) = (cursor.u32()?, cursor.u8()?, cursor.u32()?);
    let (size, next, flags) = (cursor.u32()?, cursor.u32()?, cursor.u16()?);
    if size as usize != event.len() {
        return Err(Bad::Torn);
    }
    let header = Header { time, kind, server_id, next, flags };
    let body = cursor.rest();
    let has_checksum = match checksum {
        // What a format description has at its end it says itself.
        _ if kind == kind::FORMAT_DESCRIPTION => return format_body(event, header, body),
        // The servers disagree on whether what they make up has one, so it is looked at.
        _ if kind == kind::ROTATE && (flags & ARTIFICIAL != 0 || next == 0) => matches(event),
        Checksum::Unknown => matches(event),
        Checksum::Off => false,
        Checksum::Crc32 => true,
    };
    if !has_checksum {
        return Ok((header, body));
    }
    if !matches(event) {
        return Err(Bad::Checksum);
    }
    Ok((header, body.get(..body.len() - CHECKSUM).ok_or(Bad::Torn)?))
}

fn matches(event: &[u8]) -> bool {
    let Some((covered, sum)) = event.split_last_chunk::<CHECKSUM>() else { return false };
    covered.len() >= HEAD && crc32fast::hash(covered) == u32::from_le_bytes(*sum)
}

fn format_body<'a>(event: &[u8], header: Header, body: &'a [u8]) -> Result<(Header, &'a [u8]), Bad> {
    if Format::parse(body)?.checksum == Checksum::Crc32 {
        let mut plain = event.to_vec();
        plain.get_mut(17..HEAD).ok_or(Bad::Torn)?.copy_from_slice(&(header.flags & !IN_USE).to_le_bytes());
        if !matches(&plain) && !matches(event) {
            return Err(Bad::Checksum);
        }
    }
    Ok((header, body))
}

/// A FORMAT_DESCRIPTION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Of all events behind it.
    pub checksum: Checksum,
}

impl Format {
    /// Reads the body with what is at its end.
    pub fn parse(body: &[u8]) -> Result<Self, Torn> {
        let mut cursor = Cursor::new(body);
        let version = cursor.u16()?;
        cursor.take(50 + 4)?;
        let head = cursor.u8()?;
        // The only version since 5.0; every supported server puts an algorithm and four bytes at the end.
        if version != 4 || usize::from(head) != HEAD {
            return Err(Torn);
        }
        let rest = cursor.rest();
        let algorithm = rest.get(rest.len().checked_sub(1 + CHECKSUM).ok_or(Torn)?).ok_or(Torn)?;
        match algorithm {
            0 => Ok(Self { checksum: Checksum::Off }),
            1 => Ok(Self { checksum: Checksum::Crc32 }),
            _ => Err(Torn),
        }
    }
}

/// The file that a ROTATE names, and where in it the stream goes on.
pub fn rotate(body: &[u8]) -> Result<(&str, u64), Torn> {
    let mut cursor = Cursor::new(body);
    let at = cursor.u64()?;
    let name = std::str::from_utf8(cursor.rest()).map_err(|_| Torn)?;
    if name.is_empty() || name.len() > 512 { Err(Torn) } else { Ok((name, at)) }
}

/// A QUERY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query<'a> {
    /// The default database; not always UTF-8.
    pub database: &'a [u8],
    /// The statement in the character set of its session.
    pub text: &'a [u8],
    /// Bits of the session's mode, by which the statement was read.
    pub sql_mode: Option<u64>,
    /// A collation of that character set.
    pub charset: Option<u16>,
}

impl<'a> Query<'a> {
    /// Reads the body.
    pub fn parse(body: &'a [u8]) -> Result<Self, Torn> {
        let mut cursor = Cursor::new(body);
        cursor.take(8)?;
        let database = usize::from(cursor.u8()?);
        cursor.u16()?;
        let status = usize::from(cursor.u16()?);
        let (sql_mode, charset) = session(Cursor::new(cursor.take(status)?));
        let database = cursor.take(database)?;
        cursor.take(1)?;
        Ok(Self { database, text: cursor.rest(), sql_mode, charset })
    }
}

/// What a statement was read by: the mode and the character set, as far as the event says so. Both stand before anything unknown.
fn session(mut cursor: Cursor<'_>) -> (Option<u64>, Option<u16>) {
    let (mut sql_mode, mut charset) = (None, None);
    while let Ok(code) = cursor.u8() {
        let taken = match code {
            // Flags, and the steps of numbers that are given out.
            0 | 3 => cursor.take(4).map(drop),
            1 => cursor.u64().map(|mode| sql_mode = Some(mode)),
            4 => cursor.u16().and_then(|client| {
                charset = Some(client);
                cursor.take(4).map(drop)
            }),
            // The time zone and the catalogue.
            5 | 6 => cursor.u8().and_then(|len| cursor.take(usize::from(len)).map(drop)),
            _ => break,
        };
        if taken.is_err() {
            break;
        }
    }
    (sql_mode, charset)
}

/// What begins a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Its name.
    pub gtid: Gtid,
    /// Microseconds since 1970, if the event says so more exactly than its head.
    pub commit_time_us: Option<i64>,
    /// MariaDB says here whether one statement is all of it.
    pub standalone: Option<bool>,
    /// The changes are prepared only.
    pub is_prepared_xa: bool,
}

/// A GTID of MySQL without a tag.
pub fn mysql_gtid(body: &[u8]) -> Result<Begin, Torn> {
    let mut cursor = Cursor::new(body);
    cursor.u8()?;
    let (server, number) = (cursor.array::<16>()?, cursor.u64()?);
    if number == 0 || number > i64::MAX as u64 {
        return Err(Torn);
    }
    let commit_time_us = clocks(&mut cursor);
    let gtid = Gtid::Mysql(MysqlGtid { origin: Origin { server, tag: Tag::default() }, number });
    Ok(Begin { gtid, commit_time_us, standalone: None, is_prepared_xa: false })
}

/// A GTID of MySQL with a tag, since 8.3. Its fields have numbers and come in their order; those behind the time are not needed.
pub fn mysql_gtid_tagged(body: &[u8]) -> Result<Begin, Torn> {
    let mut cursor = Cursor::new(body);
    let (version, size) = (cursor.prefixed()?, cursor.prefixed()?);
    // The last field that whoever does not know it must not skip.
    let last_needed = cursor.prefixed()?;
    if version != 1 || size as usize != body.len() || last_needed > LAST_TAGGED_FIELD {
        return Err(Torn);
    }
    let field = |wanted: u64, cursor: &mut Cursor<'_>| if cursor.prefixed()? == wanted { Ok(()) } else { Err(Torn) };
    field(0, &mut cursor)?;
    cursor.prefixed()?;
    field(1, &mut cursor)?;
    let mut server = [0; 16];
    for byte in &mut server {
        *byte = u8::try_from(cursor.prefixed()?).map_err(|_| Torn)?;
    }
    field(2, &mut cursor)?;
    let number = cursor.prefixed()?;
    field(3, &mut cursor)?;
    let length = cursor.prefixed()?;
    let tag = Tag::new(cursor.take(usize::try_from(length).map_err(|_| Torn)?)?).ok_or(Torn)?;
    // The lowest bit is the sign.
    if number & 1 != 0 || number == 0 {
        return Err(Torn);
    }
    // The logical clocks of parallel replication.
    for clock in [4, 5] {
        field(clock, &mut cursor)?;
        cursor.prefixed()?;
    }
    field(6, &mut cursor)?;
    let commit_time_us = i64::try_from(cursor.prefixed()?).map_err(|_| Torn)?;
    let gtid = Gtid::Mysql(MysqlGtid { origin: Origin { server, tag }, number: number >> 1 });
    Ok(Begin { gtid, commit_time_us: Some(commit_time_us), standalone: None, is_prepared_xa: false })
}

/// The time of the commit in a GTID of MySQL, or in what stands in its place where there is none.
pub fn commit_time(body: &[u8]) -> Result<Option<i64>, Torn> {
    let mut cursor = Cursor::new(body);
    cursor.take(1 + 16 + 8)?;
    Ok(clocks(&mut cursor))
}

/// The logical clocks of parallel replication, then since 8.0 the time of the commit.
fn clocks(cursor: &mut Cursor<'_>) -> Option<i64> {
    if cursor.u8() != Ok(2) || cursor.take(16).is_err() {
        return None;
    }
    cursor.uint(7).ok().map(|time| (time & !(1 << 55)) as i64)
}

/// A GTID of MariaDB, which is also the BEGIN of its transaction.
pub fn maria_gtid(header: &Header, body: &[u8]) -> Result<Begin, Torn> {
    let mut cursor = Cursor::new(body);
    let (sequence, domain, flags) = (cursor.u64()?, cursor.u32()?, cursor.u8()?);
    let gtid = Gtid::Maria(MariaGtid { domain, server: header.server_id, sequence });
    Ok(Begin { gtid, commit_time_us: None, standalone: Some(flags & 1 != 0), is_prepared_xa: flags & 0x40 != 0 })
}

/// Whether this GTID of MariaDB is the one; which server wrote it says the head.
pub fn is_maria_gtid(body: &[u8], gtid: MariaGtid) -> bool {
    let mut cursor = Cursor::new(body);
    (cursor.u64(), cursor.u32()) == (Ok(gtid.sequence), Ok(gtid.domain))
}

/// Whether the prepared transaction is committed at once.
pub fn is_one_phase(body: &[u8]) -> Result<bool, Torn> {
    Cursor::new(body).u8().map(|flag| flag != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(kind: u8, body: &[u8], with_sum: bool) -> Vec<u8> {
        let mut out = vec![0, 0, 0, 0, kind, 1, 0, 0, 0];
        let size = HEAD + body.len() + if with_sum { CHECKSUM } else { 0 };
        out.extend_from_slice(&(size as u32).to_le_bytes());
        out.extend_from_slice(&[9, 0, 0, 0, 0, 0]);
        out.extend_from_slice(body);
        if with_sum {
            let sum = crc32fast::hash(&out);
            out.extend_from_slice(&sum.to_le_bytes());
        }
        out
    }

    #[test]
    fn a_damaged_byte_is_noticed() {
        let mut bytes = event(kind::XID, &[1; 8], true);
        assert_eq!(split(&bytes, Checksum::Crc32).unwrap().1, [1; 8]);
        bytes[22] ^= 1;
        assert_eq!(split(&bytes, Checksum::Crc32), Err(Bad::Checksum));
        bytes.pop();
        assert_eq!(split(&bytes, Checksum::Crc32), Err(Bad::Torn));
    }

    #[test]
    fn a_made_up_rotate_may_have_a_checksum_or_none() {
        let mut body = 4_u64.to_le_bytes().to_vec();
        body.extend_from_slice(b"binlog.000001");
        for with_sum in [true, false] {
            for checksum in [Checksum::Unknown, Checksum::Off, Checksum::Crc32] {
                let mut bytes = event(kind::ROTATE, &body, false);
                bytes[17] = ARTIFICIAL as u8;
                if with_sum {
                    let size = (bytes.len() + CHECKSUM) as u32;
                    bytes[9..13].copy_from_slice(&size.to_le_bytes());
                    let sum = crc32fast::hash(&bytes);
                    bytes.extend_from_slice(&sum.to_le_bytes());
                }
                let (_, found) = split(&bytes, checksum).unwrap();
                assert_eq!(rotate(found), Ok(("binlog.000001", 4)), "{with_sum} {checksum:?}");
            }
        }
    }

    #[test]
    fn a_place_is_known_behind_four_gigabytes_and_without_numbers() {
        const GIB: u64 = 1 << 30;
        let head = |next: u64, flags| Header { time: 0, kind: kind::WRITE_ROWS, server_id: 1, next: next as u32, flags };
        assert_eq!(head(2000, 0).behind(1000, 1000, false), 2000);
        // Skipped by the server, and past the end of the number.
        assert_eq!(head(3 * GIB, 0).behind(1000, 100, false), 3 * GIB);
        assert_eq!(head(5 * GIB, 0).behind(4 * GIB - 1, 100, true), 5 * GIB);
        // Nothing is said until the end of a transaction of six gigabytes, and then it is known exactly.
        let mut at = 1000;
        for _ in 0..6 {
            at = head(0, 0).behind(at, GIB as usize, true);
        }
        assert_eq!(at, 6 * GIB + 1000);
        assert_eq!(head(6 * GIB + 1040, 0).behind(at, 31, true), 6 * GIB + 1040);
        assert_eq!(head(6 * GIB + 990, 0).behind(at, 31, true), 6 * GIB + 990);
        // What the server makes up is in no file.
        assert_eq!((head(0, ARTIFICIAL).behind(7, 99, true), head(0, 0).behind(7, 99, false)), (7, 7));
    }

    /// The events that MySQL 9.7 wrote for two transactions.
    #[test]
    fn a_tagged_name_is_read() {
        for (hex, gtid, time) in [
            (
                "0270000000 02164e99030a95034d0322c50395028604f10300000002 0404 0608626c7565 0808 0a0c 0c7f108243eccc6006 102504 1283120b",
                "0b27e605-e5d3-11f1-a543-02fc00000001:blue:1",
                1_795_283_113_706_000,
            ),
            (
                "02a6000000 02164e99030a95034d0322c50395028604f10300000002 0404 063e61766572796c6f6e677461676f6674686972747974776f6368617261637465 \
                 0808 0a18 0c7f9aacdbeccc6006 109104 1283120b",
                "0b27e605-e5d3-11f1-a543-02fc00000001:averylongtagofthirtytwocharacte:1",
                1_795_283_123_678_362,
            ),
        ] {
            let hex: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
            let body: Vec<u8> =
                hex.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect();
            let begin = mysql_gtid_tagged(&body).unwrap();
            assert_eq!((begin.gtid.to_string(), begin.commit_time_us), (gtid.to_owned(), Some(time)));
            // A name that is cut off, and one that a newer server could not do without more.
            assert_eq!(mysql_gtid_tagged(&body[..40]), Err(Torn));
            let mut newer = body;
            newer[2] = 24;
            assert_eq!(mysql_gtid_tagged(&newer), Err(Torn));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_tagged_name_or_refused(mut bytes: Vec<u8>, fits: bool) {
            if fits && bytes.len() > 6 && bytes.len() < 128 {
                let size = (bytes.len() as u8) << 1;
                bytes[..6].copy_from_slice(&[2, size, 0, 0, 0, 2]);
            }
            let _ = mysql_gtid_tagged(&bytes);
        }

        #[test]
        fn any_bytes_are_an_event_or_refused(mut bytes: Vec<u8>, fits: bool) {
            if fits && bytes.len() >= HEAD {
                let size = bytes.len() as u32;
                bytes[9..13].copy_from_slice(&size.to_le_bytes());
            }
            for checksum in [Checksum::Unknown, Checksum::Off, Checksum::Crc32] {
                if let Ok((header, body)) = split(&bytes, checksum) {
                    let _ = (Format::parse(body), rotate(body), Query::parse(body).is_ok(), mysql_gtid(body));
                    let _ = (maria_gtid(&header, body), is_one_phase(body), commit_time(body));
                }
            }
        }
    }
}
