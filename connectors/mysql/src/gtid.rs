//! Names of transactions, and sets of them: what was published, in the server's own writing.

use std::{collections::BTreeMap, fmt};

/// A word that stands before the numbers of some transactions of MySQL since 8.3: filled up with zeros, and all zeros for most of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag([u8; 32]);

impl Tag {
    /// Reads up to 32 small letters, digits and underscores, of which the first is no digit. No bytes at all are no tag.
    pub fn new(word: &[u8]) -> Option<Self> {
        let mut tag = Self::default();
        tag.0.get_mut(..word.len())?.copy_from_slice(word);
        let is_fit = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
        let is_tag = word.iter().all(is_fit) && word.first().is_none_or(|first| !first.is_ascii_digit());
        is_tag.then_some(tag)
    }

    /// Without the zeros.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        std::str::from_utf8(&self.0[..end]).unwrap_or_default()
    }
}

/// Whose numbers they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The uuid of the server that committed it first.
    pub server: [u8; 16],
    /// Each tag has numbers of its own.
    pub tag: Tag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tag = self.tag.as_str();
        write!(f, "{}{}{tag}", Uuid(&self.server), if tag.is_empty() { "" } else { ":" })
    }
}

/// A transaction of MySQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MysqlGtid {
    /// Whose number it is.
    pub origin: Origin,
    /// Its number there, from 1.
    pub number: u64,
}

/// A transaction of MariaDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MariaGtid {
    /// The stream that it belongs to.
    pub domain: u32,
    /// The server that committed it first.
    pub server: u32,
    /// Its number in the domain.
    pub sequence: u64,
}

/// Where a transaction begins in the binlog of one server, for transactions without a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FilePlace {
    /// The number at the end of the file's name.
    pub file: u64,
    /// Byte in it
    pub at: u64,
}

impl FilePlace {
    /// None if the name of the file ends without a number.
    pub fn new(file: &str, at: u64) -> Option<Self> {
        let (_, number) = file.rsplit_once('.')?;
        Some(Self { file: number_of(number).filter(|_| !number.is_empty())?, at })
    }

    fn parse(text: &str) -> Option<Self> {
        let (file, at) = text.split_once(':')?;
        if file.is_empty() || at.is_empty() {
            return None;
        }
        Some(Self { file: number_of(file)?, at: number_of(at)? })
    }
}

impl fmt::Display for FilePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.at)
    }
}

/// The name of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gtid {
    /// `uuid:number` or `uuid:tag:number`
    Mysql(MysqlGtid),
    /// `domain-server-sequence`
    Maria(MariaGtid),
    /// `at-file:byte`
    Place(FilePlace),
}

impl fmt::Display for Gtid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mysql(gtid) => write!(f, "{}:{}", gtid.origin, gtid.number),
            Self::Maria(gtid) => write!(f, "{}-{}-{}", gtid.domain, gtid.server, gtid.sequence),
            Self::Place(place) => write!(f, "at-{place}"),
        }
    }
}

impl Gtid {
    /// Reads what [`Display`](fmt::Display) writes.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(place) = text.strip_prefix("at-") {
            return FilePlace::parse(place).map(Self::Place);
        }
        if let Some((origin, number)) = text.rsplit_once(':') {
            let number = number_of(number).filter(|number| *number > 0)?;
            let (server, tag) = origin.split_once(':').map_or((origin, None), |(server, tag)| (server, Some(tag)));
            let tag = tag.map_or(Some(Tag::default()), |tag| Tag::new(tag.as_bytes()).filter(|_| !tag.is_empty()))?;
            return Some(Self::Mysql(MysqlGtid { origin: Origin { server: uuid(server)?, tag }, number }));
        }
        parse_maria(text).map(Self::Maria)
    }
}

fn parse_maria(text: &str) -> Option<MariaGtid> {
    let mut parts = text.split('-');
    let (domain, server) = (number_of(parts.next()?)?.try_into().ok()?, number_of(parts.next()?)?.try_into().ok()?);
    let sequence = number_of(parts.next()?)?;
    parts.next().is_none().then_some(MariaGtid { domain, server, sequence })
}

/// A number without sign or blank.
pub fn number_of(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

struct Uuid<'a>(&'a [u8; 16]);

impl fmt::Display for Uuid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

fn uuid(text: &str) -> Option<[u8; 16]> {
    let mut out = [0; 16];
    let mut digits = text.bytes().filter(|byte| *byte != b'-').map(|byte| char::from(byte).to_digit(16));
    for byte in &mut out {
        *byte = (digits.next()?? << 4 | digits.next()??) as u8;
    }
    (digits.next().is_none() && text.len() == 36).then_some(out)
}

/// A set of transactions. Both flavours at once never occur.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GtidSet {
    /// By server and tag; ranges ascend, do not touch, and include both ends.
    Mysql(BTreeMap<Origin, Vec<(u64, u64)>>),
    /// The last of each domain stands for all before it.
    Maria(BTreeMap<u32, (u32, u64)>),
    /// Everything that begins before this place.
    Places(FilePlace),
}

impl GtidSet {
    /// Reads MySQL's writing, with or without line ends: behind a server's uuid ranges, and behind a tag those of the tag.
    pub fn parse_mysql(text: &str) -> Option<Self> {
        let mut sets: BTreeMap<Origin, Vec<(u64, u64)>> = BTreeMap::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (server, words) = part.split_once(':')?;
            let mut origin = Origin { server: uuid(server)?, tag: Tag::default() };
            let mut has_ranges = false;
            for word in words.split(':').map(str::trim) {
                if !word.starts_with(|c: char| c.is_ascii_digit()) {
                    origin.tag = Tag::new(word.as_bytes()).filter(|_| !word.is_empty())?;
                    has_ranges = false;
                    continue;
                }
                let (from, to) = word.split_once('-').unwrap_or((word, word));
                let (from, to) = (number_of(from)?, number_of(to)?);
                if from == 0 || to < from {
                    return None;
                }
                insert_range(sets.entry(origin).or_default(), from, to);
                has_ranges = true;
            }
            // A name at the end may have been cut off from its numbers.
            if !has_ranges {
                return None;
            }
        }
        Some(Self::Mysql(sets))
    }

    /// Reads a place.
    pub fn parse_places(text: &str) -> Option<Self> {
        FilePlace::parse(text).map(Self::Places)
    }

    /// Everything up to a place, where transactions have no names.
    pub fn advance(&mut self, file: &str, at: u64) {
        if let (Self::Places(end), Some(place)) = (self, FilePlace::new(file, at)) {
            *end = place.max(*end);
        }
    }

    /// Reads MariaDB's writing.
    pub fn parse_maria(text: &str) -> Option<Self> {
        let mut domains = BTreeMap::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let gtid = parse_maria(part)?;
            domains.insert(gtid.domain, (gtid.server, gtid.sequence));
        }
        Some(Self::Maria(domains))
    }

    /// Adds a transaction. One of the other flavour changes nothing.
    pub fn insert(&mut self, gtid: Gtid) {
        if self.contains(gtid) {
            return;
        }
        match (self, gtid) {
            (Self::Mysql(sets), Gtid::Mysql(gtid)) => {
                insert_range(sets.entry(gtid.origin).or_default(), gtid.number, gtid.number);
            }
            (Self::Maria(domains), Gtid::Maria(gtid)) => {
                domains.insert(gtid.domain, (gtid.server, gtid.sequence));
            }
            (Self::Places(end), Gtid::Place(place)) => *end = FilePlace { at: place.at + 1, ..place },
            _ => {}
        }
    }

    /// Whether the transaction is in it.
    pub fn contains(&self, gtid: Gtid) -> bool {
        match (self, gtid) {
            (Self::Mysql(sets), Gtid::Mysql(gtid)) => {
                sets.get(&gtid.origin).is_some_and(|set| covers(set, gtid.number, gtid.number))
            }
            (Self::Maria(domains), Gtid::Maria(gtid)) => {
                domains.get(&gtid.domain).is_some_and(|(_, sequence)| *sequence >= gtid.sequence)
            }
            (Self::Places(end), Gtid::Place(place)) => place < *end,
            _ => false,
        }
    }

    /// Whether everything in `other` is in it.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Mysql(sets), Self::Mysql(other)) => other.iter().all(|(origin, ranges)| {
                let empty = Vec::new();
                let set = sets.get(origin).unwrap_or(&empty);
                ranges.iter().all(|(from, to)| covers(set, *from, *to))
            }),
            (Self::Maria(domains), Self::Maria(other)) => other
                .iter()
                .all(|(domain, (_, sequence))| *sequence == 0 || domains.get(domain).is_some_and(|(_, ours)| ours >= sequence)),
            (Self::Places(end), Self::Places(other)) => end >= other,
            _ => false,
        }
    }

    /// The form in which COM_BINLOG_DUMP_GTID wants it; empty for MariaDB, which is told by a variable.
    /// With tags it is another one, that servers before 8.3 refuse; they have no tags.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let Self::Mysql(sets) = self else { return out };
        let has_tags = sets.keys().any(|origin| origin.tag != Tag::default());
        let count = sets.len() as u64;
        // The form's number stands in the first byte and in the last one.
        let head = if has_tags { 1 | count << 8 | 1 << 56 } else { count };
        out.extend_from_slice(&head.to_le_bytes());
        for (Origin { server, tag }, ranges) in sets {
            out.extend_from_slice(server);
            if has_tags {
                let tag = tag.as_str().as_bytes();
                // A number of this form has its length in the lowest bits: none for one byte.
                out.push((tag.len() as u8) << 1);
                out.extend_from_slice(tag);
            }
            out.extend_from_slice(&(ranges.len() as u64).to_le_bytes());
            for (from, to) in ranges {
                out.extend_from_slice(&from.to_le_bytes());
                // The end is the first that is not in it.
                out.extend_from_slice(&to.saturating_add(1).to_le_bytes());
            }
        }
        out
    }
}

impl fmt::Display for GtidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mysql(sets) => {
                let mut last = None;
                for (Origin { server, tag }, ranges) in sets {
                    if last != Some(server) {
                        write!(f, "{}{}", if last.is_some() { "," } else { "" }, Uuid(server))?;
                        last = Some(server);
                    }
                    if *tag != Tag::default() {
                        write!(f, ":{}", tag.as_str())?;
                    }
                    for (from, to) in ranges {
                        if from == to { write!(f, ":{from}")? } else { write!(f, ":{from}-{to}")? }
                    }
                }
            }
            Self::Maria(domains) => {
                for (at, (domain, (server, sequence))) in domains.iter().enumerate() {
                    write!(f, "{}{domain}-{server}-{sequence}", if at > 0 { "," } else { "" })?;
                }
            }
            Self::Places(end) => write!(f, "{end}")?,
        }
        Ok(())
    }
}

fn covers(set: &[(u64, u64)], from: u64, to: u64) -> bool {
    // The last range that begins at or before `from`.
    let at = set.partition_point(|(begin, _)| *begin <= from);
    at > 0 && set[at - 1].1 >= to
}

fn insert_range(set: &mut Vec<(u64, u64)>, from: u64, to: u64) {
    // Nearly always the next number of the last range.
    if let Some(last) = set.last_mut()
        && from > last.0
        && from <= last.1.saturating_add(1)
    {
        last.1 = last.1.max(to);
        return;
    }
    let first = set.partition_point(|(_, end)| end.saturating_add(1) < from);
    let behind = set.partition_point(|(begin, _)| *begin <= to.saturating_add(1));
    let (mut from, mut to) = (from, to);
    if first < behind {
        from = from.min(set[first].0);
        to = to.max(set[behind - 1].1);
    }
    set.splice(first..behind, [(from, to)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const SERVER: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";

    #[test]
    fn both_writings_come_back() {
        for text in ["", &format!("{SERVER}:1-5:7:9-12"), &format!("{SERVER}:1-5:a_1:2:blue:1:7-9"), &format!("{SERVER}:blue:1")]
        {
            assert_eq!(GtidSet::parse_mysql(text).unwrap().to_string(), text);
        }
        assert_eq!(GtidSet::parse_maria("1-2-3,0-1-10").unwrap().to_string(), "0-1-10,1-2-3");
        for gtid in [format!("{SERVER}:7"), format!("{SERVER}:blue:7"), "0-1-10".to_owned(), "at-3:1234".to_owned()] {
            assert_eq!(Gtid::parse(&gtid).unwrap().to_string(), gtid);
        }
        let long = "t".repeat(33);
        for rest in ["0", "5-4", "", "tag", "1:tag", "tag::1", "Tag:1", "a-b:1", &format!("{long}:1"), ":1"] {
            let text = format!("{SERVER}:{rest}");
            assert!(GtidSet::parse_mysql(&text).is_none() && (rest == "1:tag" || Gtid::parse(&text).is_none()), "{text}");
        }
        assert!(GtidSet::parse_mysql("x").is_none() && GtidSet::parse_mysql("3e11:1").is_none());
        for text in ["1-2", "1-2-3-4", "-1-2-3", "a-b-c"] {
            assert!(GtidSet::parse_maria(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_tag_has_numbers_of_its_own() {
        let mut set = GtidSet::parse_mysql(&format!("{SERVER}:1-5:blue:1")).unwrap();
        let gtid = |text: &str| Gtid::parse(&format!("{SERVER}:{text}")).unwrap();
        assert!(
            set.contains(gtid("5"))
                && set.contains(gtid("blue:1"))
                && !set.contains(gtid("blue:2"))
                && !set.contains(gtid("red:1"))
        );
        set.insert(gtid("blue:2"));
        assert_eq!(set.to_string(), format!("{SERVER}:1-5:blue:1-2"));
        let untagged = GtidSet::parse_mysql(&format!("{SERVER}:1-9")).unwrap();
        assert!(!untagged.covers(&set) && !set.covers(&untagged));
    }

    /// What MySQL 9.7 wrote as PREVIOUS_GTIDS, which has the form that the command wants.
    #[test]
    fn sets_are_encoded_as_the_server_does() {
        let set = "0b27e605-e5d3-11f1-a543-02fc00000001:1-3:averylongtagofthirtytwocharacte:1:blue:1-2";
        let wanted = "01030000000000010b27e605e5d311f1a54302fc00000001000100000000000000010000000000000004000000000000000b27e605e5d311f1a5\
            4302fc000000013e61766572796c6f6e677461676f6674686972747974776f63686172616374650100000000000000010000000000000002000000000000\
            000b27e605e5d311f1a54302fc0000000108626c7565010000000000000001000000000000000300000000000000";
        let hex: String = GtidSet::parse_mysql(set).unwrap().encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, wanted);
    }

    #[test]
    fn a_place_covers_what_begins_before_it() {
        let mut set = GtidSet::parse_places("3:1234").unwrap();
        let begins = |text| Gtid::parse(text).unwrap();
        assert!(set.contains(begins("at-3:1233")) && set.contains(begins("at-2:9999")));
        assert!(!set.contains(begins("at-3:1234")) && !set.contains(begins("at-4:4")));
        set.advance("odd.name.000010", 4);
        assert_eq!(set.to_string(), "10:4");
        set.advance("binlog.000009", 400);
        set.advance("no number", 400);
        assert_eq!(set.to_string(), "10:4");
        for text in ["3", ":4", "3:", "a:4"] {
            assert!(GtidSet::parse_places(text).is_none(), "{text}");
        }
    }

    #[test]
    fn an_older_transaction_does_not_turn_a_set_back() {
        let mut set = GtidSet::parse_maria("0-1-10").unwrap();
        set.insert(Gtid::parse("0-1-9").unwrap());
        assert_eq!(set.to_string(), "0-1-10");
    }

    #[test]
    fn a_domain_that_is_missing_is_not_covered() {
        let set = |text| GtidSet::parse_maria(text).unwrap();
        assert!(set("0-1-10,1-1-3").covers(&set("0-2-10")));
        assert!(!set("0-1-10").covers(&set("0-1-10,1-1-1")));
        assert!(!set("0-1-10").covers(&set("0-1-11")));
    }

    proptest! {
        #[test]
        fn a_set_holds_what_was_put_into_it(numbers: Vec<(u8, u8)>) {
            let mut ranges = Vec::new();
            let mut plain = BTreeSet::new();
            for (from, len) in numbers {
                let (from, to) = (u64::from(from) + 1, u64::from(from) + 1 + u64::from(len % 8));
                insert_range(&mut ranges, from, to);
                plain.extend(from..=to);
            }
            for pair in ranges.windows(2) {
                prop_assert!(pair[0].1 + 1 < pair[1].0, "{:?}", ranges);
            }
            for number in 1..300 {
                prop_assert_eq!(covers(&ranges, number, number), plain.contains(&number));
            }
        }

        #[test]
        fn a_set_with_tags_is_read_as_it_is_written(parts in prop::collection::vec((0..3_u8, "([a-z_][a-z0-9_]{0,31})?", 1..99_u64), 0..20)) {
            let mut set = GtidSet::parse_mysql("").unwrap();
            let gtids: Vec<Gtid> = parts
                .iter()
                .map(|(server, tag, number)| {
                    let origin = Origin { server: [*server; 16], tag: Tag::new(tag.as_bytes()).unwrap() };
                    Gtid::Mysql(MysqlGtid { origin, number: *number })
                })
                .collect();
            gtids.iter().for_each(|gtid| set.insert(*gtid));
            prop_assert!(gtids.iter().all(|gtid| set.contains(*gtid)));
            prop_assert_eq!(GtidSet::parse_mysql(&set.to_string()), Some(set));
            for gtid in gtids {
                prop_assert_eq!(Gtid::parse(&gtid.to_string()), Some(gtid));
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}") {
            let _ = (GtidSet::parse_mysql(&text), GtidSet::parse_maria(&text), Gtid::parse(&text));
        }
    }
}
