//! Keys that the topic holds and the table lacks: found in the topic, looked up in the table, and buried.
//!
//! When all rows of a table have been read, every key of the table has an event from after the beginning of that. A key whose last event
//! is older is a candidate. It is looked up by the rules of every other row: one snapshot, and nothing is done about a key that a
//! transaction touched which the snapshot does not see.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hasher},
    sync::Arc,
    time::Duration,
};

use headwater_connector::Result;

use crate::log::{From, SharedLog};

/// Candidates that are kept in memory at once; a topic with more is gone through several times.
const LIMIT: usize = 100_000;
/// Records read at once.
const PAGE: usize = 1_000;
/// How long a record that is there may take to come.
const WAIT: Duration = Duration::from_millis(500);

/// Where a search goes on: a partition, and the part of its keys that is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Partition of the topic.
    pub partition: u32,
    /// Of `passes` shares of the keys, this one.
    pub pass: u32,
    /// How many there are.
    pub passes: u32,
}

/// What to look for, and where.
#[derive(Clone)]
pub struct Search {
    /// Where topics live.
    pub log: SharedLog,
    /// The table's topic,
    pub topic: Arc<str>,
    /// which has so many partitions.
    pub partitions: u32,
    /// Events at or behind this era and sequence number are new.
    pub since: (u32, u64),
    /// Where to go on.
    pub place: Place,
}

/// What a search found.
#[derive(Debug)]
pub struct Found {
    /// Keys whose last event in this place is old and no tombstone.
    pub keys: Vec<Vec<u8>>,
    /// Where to search next; none when all of the topic was searched.
    pub next: Option<Place>,
}

impl Search {
    /// Reads the partition to its end.
    pub async fn run(&self) -> Result<Found> {
        let mut place = Place { passes: self.place.passes.max(1), ..self.place };
        loop {
            match self.attempt(place).await? {
                Some(found) => return Ok(found),
                // Too many for the memory: smaller shares, from the first one on. What is buried by now is found no more.
                None => place = Place { pass: 0, passes: place.passes * 2, ..place },
            }
        }
    }

    async fn attempt(&self, place: Place) -> Result<Option<Found>> {
        let mut reader = self.log.reader(&self.topic, place.partition, From::Earliest).await?;
        let mut old: HashSet<Vec<u8>> = HashSet::new();
        let mut is_first = true;
        loop {
            let page = reader.read(PAGE, WAIT).await?;
            if page.is_empty() && reader.at_end().await? {
                break;
            }
            for record in page {
                let is_new = position(&record.headers) >= self.since;
                if std::mem::take(&mut is_first) && is_new {
                    // Everything behind it is new too.
                    return Ok(Some(Found { keys: Vec::new(), next: self.next_partition(place) }));
                }
                if share(&record.key, place.passes) != place.pass {
                    continue;
                }
                match record.value {
                    // The event of a truncate has no value either, so it is never among them.
                    Some(_) if !is_new => drop(old.insert(record.key)),
                    _ => drop(old.remove(&record.key)),
                }
                if old.len() > LIMIT {
                    return Ok(None);
                }
            }
        }
        let next = if is_first { self.next_partition(place) } else { self.next(place) };
        Ok(Some(Found { keys: old.into_iter().collect(), next }))
    }

    /// The next share of the partition's keys, or the next partition.
    fn next(&self, place: Place) -> Option<Place> {
        match place.pass + 1 < place.passes {
            true => Some(Place { pass: place.pass + 1, ..place }),
            false => self.next_partition(place),
        }
    }

    fn next_partition(&self, place: Place) -> Option<Place> {
        let partition = place.partition + 1;
        (partition < self.partitions).then_some(Place { partition, pass: 0, passes: 1 })
    }
}

/// Which share of the keys this one belongs to.
fn share(key: &[u8], passes: u32) -> u32 {
    let mut hasher = DefaultHasher::new();
    hasher.write(key);
    (hasher.finish() % u64::from(passes.max(1))) as u32
}

/// Era and sequence number of `hw.pos`. A record without it is none of ours, and so from before.
fn position(headers: &[(String, Vec<u8>)]) -> (u32, u64) {
    let text = headers.iter().find(|(name, _)| name == "hw.pos").and_then(|(_, value)| std::str::from_utf8(value).ok());
    let parse = |text: &str| {
        let (era, rest) = text.split_once('-')?;
        let (seq, _) = rest.split_once('-')?;
        Some((u32::from_str_radix(era, 16).ok()?, u64::from_str_radix(seq, 16).ok()?))
    };
    text.and_then(parse).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_one_share() {
        let keys: Vec<Vec<u8>> = (0..1000).map(|id| format!("{{\"id\":{id}}}").into_bytes()).collect();
        for share_of in 0..4 {
            let count = keys.iter().filter(|key| share(key, 4) == share_of).count();
            assert!((150..350).contains(&count), "{count}");
        }
        assert!(keys.iter().all(|key| share(key, 1) == 0));
    }

    #[test]
    fn places_are_read_from_the_header() {
        let header = |text: &str| vec![("hw.op".to_owned(), b"c".to_vec()), ("hw.pos".to_owned(), text.as_bytes().to_vec())];
        assert_eq!(position(&header("0002-00000000000a-00000001")), (2, 10));
        assert_eq!((position(&header("2")), position(&[])), ((0, 0), (0, 0)));
    }
}
