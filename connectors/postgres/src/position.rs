//! Where the stream stands, as text.
//!
//! `1:0/15D6FA8` is the end of the last complete transaction; `1:0/15D6FA8:757@0/15D7000+12034` adds that 12034 raw row messages
//! of transaction 757, which commits at `0/15D7000`, are published too. The first number is the format's version.
//! The base is never the place of a row: rows of one COPY share theirs, and those of interleaved transactions go backwards.

use std::{fmt, str::FromStr};

use headwater_connector::{Error, Position, Result, codes};

const VERSION: &str = "1";

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
    /// Behind what is published: the log reaches at least to here.
    pub fn reached(&self) -> Lsn {
        self.partial.map_or(self.base, |partial| partial.commit)
    }

    /// The end of a complete transaction.
    pub const fn at(base: Lsn) -> Self {
        Self { base, partial: None }
    }

    /// The stored form.
    pub fn to_position(self) -> Position {
        Position::new(self.to_string())
    }

    /// Reads the stored form. A newer or damaged one is an error, never a guess.
    pub fn from_position(position: &Position) -> Result<Self> {
        parse(position.as_str()).ok_or_else(|| {
            Error::new(&codes::BAD_POSITION, "the position of a PostgreSQL source cannot be read")
                .at("position", position)
                .hint("Run the version of headwater that wrote the checkpoint, or a newer one.")
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}:{}", self.base)?;
        if let Some(Partial { xid, commit, done }) = self.partial {
            write!(f, ":{xid}@{commit}+{done}")?;
        }
        Ok(())
    }
}

fn parse(text: &str) -> Option<Place> {
    let mut parts = text.split(':');
    if parts.next()? != VERSION {
        return None;
    }
    let base = parts.next()?.parse().ok()?;
    let partial = match parts.next() {
        None => None,
        Some(part) => {
            let (xid, rest) = part.split_once('@')?;
            let (commit, done) = rest.split_once('+')?;
            Some(Partial { xid: number(xid)?.try_into().ok()?, commit: commit.parse().ok()?, done: number(done)? })
        }
    };
    parts.next().is_none().then_some(Place { base, partial })
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_come_back() {
        for text in ["1:0/15D6FA8", "1:16/B374D848", "1:0/15D6FA8:757@0/15D7000+12034"] {
            assert_eq!(Place::from_position(&Position::new(text)).unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for text in ["", "2:0/1", "1:", "1:0/1:", "1:0/1:7@0/2", "1:0/1:7@0/2+1:x", "1:+0/1", "1:0/123456789", "1:0/1:-7@0/2+1"] {
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
        fn every_place_comes_back(base: u64, xid: u32, commit: u64, done: u64, cut: bool) {
            let partial = cut.then_some(Partial { xid, commit: Lsn(commit), done });
            let place = Place { base: Lsn(base), partial };
            prop_assert_eq!(parse(&place.to_string()), Some(place));
        }
    }
}
