//! What must have become visible before the first chunk is read.
//!
//! The daemon remembers what it publishes only from some moment on. A transaction that was published before and that a snapshot does not
//! see would be forgotten, and an older row be published behind it. With a commit that waits for a replica's answer that can last.

use std::sync::Arc;

use headwater_connector::{Gate, Result};

use crate::{
    connection::{Connection, Flavour},
    error::protocol,
    gtid::Gtid,
    inspect,
    position::Mark,
};

/// See the module's page.
#[derive(Clone, Debug)]
pub enum Awaited {
    /// MySQL: transactions that had a name and were not in `gtid_executed`. All others of the binlog were visible.
    Commits(Vec<Gtid>),
    /// MariaDB: the snapshot's place in the binlog is at least the end as it was then.
    End(Mark),
}

impl Awaited {
    /// As of now.
    pub async fn now(connection: &mut Connection) -> Result<Gate> {
        Ok(Arc::new(match connection.flavour {
            Flavour::Mysql => Self::Commits(committing(connection).await?),
            Flavour::Mariadb => Self::End(inspect::end(connection).await?.1.mark()),
        }))
    }
}

/// MySQL's transactions that have their name and are not visible yet: a commit takes its name before it is written to the binlog, and gives
/// it up in the moment in which `gtid_executed` has it.
pub async fn committing(connection: &mut Connection) -> Result<Vec<Gtid>> {
    let text = connection.value("SELECT @@global.gtid_owned").await?.unwrap_or_default();
    owned(&text).ok_or_else(|| protocol("the transactions that are being committed cannot be read"))
}

/// `uuid:5#31:6#7,uuid:blue:8#9`: numbers, each with the session that holds it.
fn owned(text: &str) -> Option<Vec<Gtid>> {
    let mut found = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let mut words = part.split(':');
        let mut origin = words.next()?.to_owned();
        let bare = origin.len();
        for word in words.filter_map(|word| word.split('#').next()) {
            if word.starts_with(|c: char| c.is_ascii_digit()) {
                found.push(Gtid::parse(&format!("{origin}:{word}"))?);
            } else {
                // The tag of the numbers behind it.
                origin.truncate(bare);
                origin.push(':');
                origin.push_str(word);
            }
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_of_names_is_read_or_refused(text in "([0-9a-f:#,-]|\\PC){0,60}") {
            let _ = owned(&text);
        }
    }

    #[test]
    fn names_are_taken_out_of_what_sessions_hold() {
        let (a, b) = ("3e11fa47-71ca-11e1-9e33-c80aa9429562", "3e11fa47-71ca-11e1-9e33-c80aa9429563");
        let found = owned(&format!("{a}:5#31:6#7,\n{b}:8#9#10")).expect("a list");
        let texts: Vec<String> = found.iter().map(Gtid::to_string).collect();
        assert_eq!(texts, [format!("{a}:5"), format!("{a}:6"), format!("{b}:8")]);
        let tagged: Vec<String> =
            owned(&format!("{a}:5#31:blue:6#7:7#8:red:1#9")).expect("a list").iter().map(Gtid::to_string).collect();
        assert_eq!(tagged, [format!("{a}:5"), format!("{a}:blue:6"), format!("{a}:blue:7"), format!("{a}:red:1")]);
        assert_eq!(owned(""), Some(Vec::new()));
        assert_eq!(owned("x:5#1"), None);
    }
}
