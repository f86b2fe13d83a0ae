//! Where the stream stands, as text.
//!
//! `1;mysql;UUID:1-57;;1234@1700000000#9f3a2b1c;binlog.000003`: the transactions that are published, and behind which place of which file
//! the last of them ended, when that file was begun and on which server. Files differ from server to server: the place measures lag, and
//! tells whether a server that is still the same has forgotten what it wrote. `1;mariadb;0-1-57;0-1-58+12034;1234;binlog.000003`
//! adds that 12034 raw rows of transaction `0-1-58` are published too. `0-1-57|0-1-50` for the set says that what was prepared behind
//! `0-1-50` must be read again. The first number is the format's version.
//!
//! Where MySQL gives transactions no names, `1;files;3:1234;;1234;binlog.000003` is a place in the files of one server, and a transaction is
//! named by the place where it begins, `at-3:1234`.

use std::fmt;

use headwater_connector::{Error, Identity, Position, Result, codes};

use crate::gtid::{Gtid, GtidSet, number_of};

const VERSION: &str = "1";

/// How far a transaction that was cut is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Its name.
    pub gtid: Gtid,
    /// Raw rows that are published.
    pub done: u64,
}

/// A place in a server's binlog.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spot {
    /// Name of the file
    pub file: String,
    /// Byte in it
    pub at: u64,
    /// When the file was begun, in seconds since 1970; 0 if that is not known.
    pub born: u32,
    /// Whose file it is, see [`Spot::owner_of`]; 0 if that is not known.
    pub owner: u32,
}

impl Spot {
    /// A place in a file of which nothing else is known.
    pub fn new(file: &str, at: u64) -> Self {
        Self { file: file.to_owned(), at, born: 0, owner: 0 }
    }

    /// What a place has for the name of a server: two of one topology differ in it, as good as always.
    pub fn owner_of(identity: &Identity) -> u32 {
        let name = identity.get("server_uuid").or_else(|| identity.get("server_id")).unwrap_or_default();
        crc32fast::hash(name.as_bytes())
    }
}

/// A place in a server's binlog that can be compared with others of the same server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Number of the file
    pub file: u64,
    /// Byte in it
    pub at: u64,
}

impl Spot {
    /// See [`Mark`]. The servers count their files at the end of the name, with more digits when six do not do.
    pub fn mark(&self) -> Mark {
        let file = self.file.rsplit_once('.').and_then(|(_, number)| number_of(number)).unwrap_or_default();
        Mark { file, at: self.at }
    }

    /// The name of the file behind this one.
    pub fn next_file(&self) -> String {
        match self.file.rsplit_once('.') {
            Some((stem, number)) => format!("{stem}.{:0width$}", self.mark().file + 1, width = number.len()),
            None => String::new(),
        }
    }
}

/// See the module's page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What is published whole.
    pub set: GtidSet,
    /// From where on to read again for what was prepared and not yet committed. Only MariaDB needs it: its sets have no holes.
    pub from: Option<GtidSet>,
    /// A transaction behind it that is partly published.
    pub partial: Option<Partial>,
    /// Where the last of the set ended on the server that it was read from.
    pub spot: Spot,
}

impl Place {
    /// Whether it is a place in the files of one server, since transactions have no names.
    pub fn is_of_files(&self) -> bool {
        matches!(self.set, GtidSet::Places(_))
    }

    /// The stored form.
    pub fn to_position(&self) -> Position {
        Position::new(self.to_string())
    }

    /// Reads the stored form. A newer or damaged one is an error, never a guess.
    pub fn from_position(position: &Position) -> Result<Self> {
        parse(position.as_str()).ok_or_else(|| {
            Error::new(&codes::BAD_POSITION, "the position of a MySQL source cannot be read")
                .at("position", position)
                .hint("Run the version of headwater that wrote the checkpoint, or a newer one.")
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flavour = match self.set {
            GtidSet::Mysql(_) => "mysql",
            GtidSet::Maria(_) => "mariadb",
            GtidSet::Places(_) => "files",
        };
        write!(f, "{VERSION};{flavour};{}", self.set)?;
        if let Some(from) = &self.from {
            write!(f, "|{from}")?;
        }
        f.write_str(";")?;
        if let Some(Partial { gtid, done }) = self.partial {
            write!(f, "{gtid}+{done}")?;
        }
        write!(f, ";{}", self.spot.at)?;
        if self.spot.born > 0 {
            write!(f, "@{}", self.spot.born)?;
        }
        if self.spot.owner > 0 {
            write!(f, "#{:08x}", self.spot.owner)?;
        }
        write!(f, ";{}", self.spot.file)
    }
}

fn parse(text: &str) -> Option<Place> {
    // The name of a file is the operator's choice, so it comes last and takes the rest.
    let mut parts = text.splitn(6, ';');
    if parts.next()? != VERSION {
        return None;
    }
    let flavour = parts.next()?;
    let set = parts.next()?;
    let (set, from) = match flavour {
        "mysql" => (GtidSet::parse_mysql(set)?, None),
        "files" => (GtidSet::parse_places(set)?, None),
        "mariadb" => {
            let (set, from) = set.split_once('|').map_or((set, None), |(set, from)| (set, Some(from)));
            let from = from.map(|from| GtidSet::parse_maria(from).ok_or(())).transpose().ok()?;
            (GtidSet::parse_maria(set)?, from)
        }
        _ => return None,
    };
    let partial = match parts.next()? {
        "" => None,
        text => {
            let (gtid, done) = text.split_once('+')?;
            Some(Partial { gtid: Gtid::parse(gtid)?, done: number_of(done).filter(|_| !done.is_empty())? })
        }
    };
    let fits = |partial: &Partial| {
        matches!(
            (partial.gtid, &set),
            (Gtid::Mysql(_), GtidSet::Mysql(_)) | (Gtid::Maria(_), GtidSet::Maria(_)) | (Gtid::Place(_), GtidSet::Places(_))
        )
    };
    if !partial.iter().all(fits) {
        return None;
    }
    let at = parts.next()?;
    let (at, owner) = at.split_once('#').unwrap_or((at, "0"));
    let owner = u32::from_str_radix(owner, 16).ok()?;
    let (at, born) = at.split_once('@').unwrap_or((at, "0"));
    let at = number_of(at).filter(|_| !at.is_empty())?;
    let born = number_of(born).filter(|_| !born.is_empty())?.try_into().ok()?;
    Some(Place { set, from, partial, spot: Spot { at, born, owner, file: parts.next()?.to_owned() } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_forms_come_back() {
        let uuid = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
        for text in [
            format!("1;mysql;{uuid}:1-57;;1234;binlog.000003"),
            format!("1;mysql;{uuid}:1-57:60;{uuid}:58+12034;1234;a;b.000003"),
            "1;mariadb;0-1-57,1-1-3;0-1-58+1;4;".to_owned(),
            "1;mariadb;;;4;binlog.000001".to_owned(),
            "1;files;3:1234;at-3:1234+7;1234;binlog.000003".to_owned(),
            "1;mariadb;0-1-57,1-1-3|0-1-50;;4@1700000000;binlog.000001".to_owned(),
            format!("1;mysql;{uuid}:1-57;;1234@1700000000#0f3a2b1c;binlog.000003"),
            format!("1;mysql;{uuid}:1-57;;1234#9f3a2b1c;binlog.000003"),
        ] {
            assert_eq!(Place::from_position(&Position::new(text.clone())).unwrap().to_string(), text);
        }
    }

    #[test]
    fn files_are_compared_by_their_number() {
        let spot = |file: &str, at| Spot::new(file, at);
        assert!(spot("binlog.999999", 9).mark() < spot("binlog.1000000", 4).mark());
        assert!(spot("a.b.000002", 4).mark() < spot("a.b.000002", 5).mark());
        assert!(Spot::default().mark() < spot("binlog.000001", 4).mark());
        assert_eq!(spot("a.b.000009", 4).next_file(), "a.b.000010");
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            "2;mysql;;;4;f",
            "1;oracle;;;4;f",
            "1;mysql;x;;4;f",
            "1;mysql;;;;f",
            "1;mysql;;0-1-1+1;4;f",
            "1;mariadb;;0-1-1+;4;f",
            "1;mariadb;0-1-1|x;;4;f",
            "1;mariadb;;;4@;f",
            "1;mariadb;;;4#;f",
            "1;mariadb;;;4#x;f",
        ] {
            let error = Place::from_position(&Position::new(text)).unwrap_err();
            assert_eq!(error.code().id, codes::BAD_POSITION.id, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}") {
            let _ = parse(&text);
        }
    }
}
