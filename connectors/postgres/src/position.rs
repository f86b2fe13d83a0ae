//! Where the stream stands, as text.
//!
//! `2:0/15D6FA8:1` is the end of the last complete transaction on timeline 1; `2:0/15D6FA8:1:757@0/15D7000+12034` adds that 12034 raw row
//! messages of transaction 757, which commits at `0/15D7000`, are published too. The first number is the format's version; version 1
//! had no timeline. The base is never the place of a row: rows of one COPY share theirs, and those of interleaved transactions go
//! backwards.

use std::{fmt, str::FromStr};

use headwater_connector::{Error, Position, Result, codes};

const VERSION: &str = "2";

/// A log sequence number: a byte offset in the server's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (high, low) = text.split_once('/').ok_or(())?;
        Ok(Self(u64::from(hex(high)?) << 32 | u64::from(hex(low)?)))
    }
}

/// `from_str_radix` alone would accept a sign.
fn hex(text: &str) -> Result<u32, ()> {
    if text.is_empty() || text.len() > 8 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(());
    }
    u32::from_str_radix(text, 16).map_err(|_| ())
}

/// How far a transaction that was cut is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// The transaction's number at the server.
    pub xid: u32,
    /// Where its commit record begins; with the xid it is unique.
    pub commit: Lsn,
    /// Raw row messages that are published.
    pub done: u64,
}

/// See the module's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// End of the last complete transaction. Streaming resumes here exactly: one byte more can skip a whole transaction.
    pub base: Lsn,
    /// A transaction behind it that is partly published.
    pub partial: Option<Partial>,
}

impl Place {
    /// The end of a complete transaction.
    pub const fn at(base: Lsn) -> Self {
        Self { base, partial: None }
    }

    /// The stored form. The timeline is the one that it was read on: after a failover that is not the one that the checkpoint began on.
    pub fn to_position(self, timeline: u32) -> Position {
        let partial = self.partial.map(|partial| format!(":{partial}")).unwrap_or_default();
        Position::new(format!("{VERSION}:{}:{timeline}{partial}", self.base))
    }

    /// Reads the stored form. A newer or damaged one is an error, never a guess.
    pub fn from_position(position: &Position) -> Result<Self> {
        Stored::from_position(position).map(|stored| stored.place)
    }
}

/// A place as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Where the stream stands.
    pub place: Place,
    /// The timeline it was read on, if that is known.
    pub timeline: Option<u32>,
}

impl Stored {
    /// See [`Place::from_position`].
    pub fn from_position(position: &Position) -> Result<Self> {
        parse(position.as_str()).ok_or_else(|| {
            Error::new(&codes::BAD_POSITION, "the position of a PostgreSQL source cannot be read")
                .at("position", position)
                .hint("Run the version of headwater that wrote the checkpoint, or a newer one.")
        })
    }
}

impl fmt::Display for Partial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}+{}", self.xid, self.commit, self.done)
    }
}

/// Without the timeline, as version 1 stored it.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let partial = self.partial.map(|partial| format!(":{partial}")).unwrap_or_default();
        write!(f, "1:{}{partial}", self.base)
    }
}

fn parse(text: &str) -> Option<Stored> {
    let mut parts = text.split(':');
    let version = parts.next()?;
    let base = parts.next()?.parse().ok()?;
    let timeline = match version {
        "1" => None,
        VERSION => Some(number(parts.next()?)?.try_into().ok()?),
        _ => return None,
    };
    let partial = match parts.next() {
        None => None,
        Some(part) => {
            let (xid, rest) = part.split_once('@')?;
            let (commit, done) = rest.split_once('+')?;
            Some(Partial { xid: number(xid)?.try_into().ok()?, commit: commit.parse().ok()?, done: number(done)? })
        }
    };
    parts.next().is_none().then_some(Stored { place: Place { base, partial }, timeline })
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_forms_come_back() {
        for text in ["2:0/15D6FA8:1", "2:16/B374D848:3", "2:0/15D6FA8:1:757@0/15D7000+12034"] {
            let stored = Stored::from_position(&Position::new(text)).unwrap();
            assert_eq!(stored.place.to_position(stored.timeline.unwrap()).as_str(), text);
        }
    }

    #[test]
    fn the_first_form_has_no_timeline() {
        let stored = Stored::from_position(&Position::new("1:0/15D6FA8:757@0/15D7000+12034")).unwrap();
        assert_eq!((stored.timeline, stored.place.base, stored.place.partial.unwrap().done), (None, Lsn(0x15D_6FA8), 12034));
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            "3:0/1:1",
            "1:",
            "1:0/1:",
            "1:0/1:7@0/2",
            "1:0/1:7@0/2+1:x",
            "1:+0/1",
            "1:0/123456789",
            "1:0/1:-7@0/2+1",
            "2:0/1",
            "2:0/1:",
            "2:0/1:x",
            "2:0/1:-1",
            "2:0/1:7@0/2+1",
            "2:0/1:1:7@0/2+1:x",
            "2:0/1:4294967296",
        ] {
            let error = Place::from_position(&Position::new(text)).unwrap_err();
            assert_eq!(error.code().id, codes::BAD_POSITION.id, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn every_place_comes_back(base: u64, timeline: u32, xid: u32, commit: u64, done: u64, cut: bool) {
            let partial = cut.then_some(Partial { xid, commit: Lsn(commit), done });
            let place = Place { base: Lsn(base), partial };
            prop_assert_eq!(parse(place.to_position(timeline).as_str()), Some(Stored { place, timeline: Some(timeline) }));
        }
    }
}
