//! Compaction: superseded records go, the last record of each key stays. Retention: old records go.
//!
//! One pass over a partition maps the keys of the part that is not clean yet to their last offsets, and deletes every older
//! record of these keys. The map holds hashes, so each deletion compares the keys themselves: a collision never deletes.
//! A pass that met one is repeated with another seed, so that `[0, clean_offset)` really has each key once, which is what
//! makes it safe to drop a tombstone there.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    time::Duration,
};

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    maintenance::{Halt, Worker},
    reader::raw,
    topics::Part,
};

/// Sizes of the steps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tuning {
    /// The newest records are left alone: readers are there, and most will be superseded again soon.
    pub(super) head: i64,
    /// Keys in memory at once. 900,000 fit a table of 2^20 places, which is 17 MiB.
    pub(super) keys: usize,
    /// Records looked at in one read transaction.
    pub(super) scan: usize,
    /// Records deleted in one write transaction, during which commits wait.
    pub(super) deletes: usize,
}

pub(super) const TUNING: Tuning = Tuning { head: 1000, keys: 900_000, scan: 4096, deletes: 500 };

/// A tombstone stays at least this long, so that a reader that is behind sees the delete.
pub(super) const TOMBSTONES_STAY: Duration = Duration::from_secs(24 * 3600);

/// What is stored about a partition.
struct State {
    next_offset: i64,
    clean_offset: i64,
    clean_records: i64,
    clean_tombstones: i64,
    cleaned_at: i64,
}

/// A record that may go.
enum Doomed {
    /// A later record, at the second offset, has the same key, if the hash tells the truth.
    Superseded(i64, i64),
    /// An old tombstone without earlier records.
    Tombstone(i64),
}

/// What one pass found.
#[derive(Default)]
struct Tally {
    kept: i64,
    tombstones: i64,
    collided: bool,
}

impl Tally {
    /// Whether all records that were mapped stay, if there is nothing before them: a table that was read for the first time.
    fn is_settled(&self, last: &HashMap<u64, i64>) -> bool {
        self.tombstones == 0 && self.kept == last.len() as i64
    }
}

/// Compacts one partition as far as it is due.
pub(super) fn compact(worker: &Worker, connection: &mut Connection, part: Part, now_ms: i64) -> Result<(), Halt> {
    let state = state(connection, part)?;
    let end = state.clean_offset.max(state.next_offset - worker.tuning.head);
    let stay_ms = TOMBSTONES_STAY.as_millis() as i64;
    // Each pass reads the clean part again, so it waits until that is worth it.
    let dirty = end - state.clean_offset;
    let worthwhile = dirty > 0 && dirty * 2 >= state.clean_records;
    let tombstones_due = state.clean_tombstones > 0 && now_ms - state.cleaned_at >= stay_ms;
    if !worthwhile && !tombstones_due {
        return Ok(());
    }
    let old = horizon(connection, part, now_ms - stay_ms)?;
    let mut clean_offset = state.clean_offset;
    loop {
        let seed = RandomState::new();
        let (last, upto, mapped) = map_keys(worker, connection, part, clean_offset..end, &seed)?;
        let tally = match mapped.is_settled(&last) && clean_offset == 0 {
            true => mapped,
            false => sweep(worker, connection, part, upto, old, &seed, &last)?,
        };
        if tally.collided {
            // The progress is not stored: the next round tries again with another seed.
            return Ok(());
        }
        clean_offset = upto;
        worker.exclusive(|| {
            connection.execute(
                "UPDATE partitions SET clean_offset = ?3, clean_records = ?4, clean_tombstones = ?5, cleaned_at = ?6 \
                 WHERE topic_id = ?1 AND partition = ?2",
                params![part.topic, part.partition, clean_offset, tally.kept, tally.tombstones, now_ms],
            )
        })?;
        if clean_offset >= end {
            return Ok(());
        }
    }
}

fn state(connection: &Connection, part: Part) -> rusqlite::Result<State> {
    connection.query_row(
        "SELECT next_offset, clean_offset, clean_records, clean_tombstones, cleaned_at FROM partitions \
         WHERE topic_id = ?1 AND partition = ?2",
        params![part.topic, part.partition],
        |row| {
            Ok(State {
                next_offset: row.get(0)?,
                clean_offset: row.get(1)?,
                clean_records: row.get(2)?,
                clean_tombstones: row.get(3)?,
                cleaned_at: row.get(4)?,
            })
        },
    )
}

/// Everything before this offset was in the partition at that time already.
fn horizon(connection: &Connection, part: Part, at_ms: i64) -> rusqlite::Result<i64> {
    connection.query_row(
        "SELECT coalesce(max(next_offset), 0) FROM marks WHERE topic_id = ?1 AND partition = ?2 AND at <= ?3",
        params![part.topic, part.partition, at_ms],
        |row| row.get(0),
    )
}

/// Last offset by hash of the key, for as much of the range as fits; where it ends; and what it has.
fn map_keys(
    worker: &Worker,
    connection: &Connection,
    part: Part,
    range: std::ops::Range<i64>,
    seed: &RandomState,
) -> Result<(HashMap<u64, i64>, i64, Tally), Halt> {
    let mut last = HashMap::new();
    let mut tally = Tally::default();
    let mut from = range.start;
    while from < range.end && last.len() < worker.tuning.keys {
        worker.proceed()?;
        // No more records than there is room for keys: the bound on memory is exact.
        let limit = worker.tuning.scan.min(worker.tuning.keys - last.len());
        from = page(connection, part, from..range.end, limit, |offset, key, tombstone| {
            last.insert(seed.hash_one(key), offset);
            tally.kept += 1;
            tally.tombstones += i64::from(tombstone);
        })?;
    }
    Ok((last, from.max(range.start), tally))
}

/// Visits up to `limit` records and says where to go on: behind the last one, or at the end of the range.
fn page(
    connection: &Connection,
    part: Part,
    range: std::ops::Range<i64>,
    limit: usize,
    mut visit: impl FnMut(i64, &[u8], bool),
) -> rusqlite::Result<i64> {
    // Key and the kind of the value stand before the value, so long values are not read from disk.
    let mut statement = connection.prepare_cached(&format!(
        "SELECT \"offset\", key, value IS NULL FROM {} WHERE \"offset\" >= ?1 AND \"offset\" < ?2 ORDER BY \"offset\" LIMIT ?3",
        part.table()
    ))?;
    let mut rows = statement.query(params![range.start, range.end, limit as i64])?;
    let mut seen = 0;
    let mut next = range.end;
    while let Some(row) = rows.next()? {
        let offset = row.get(0)?;
        visit(offset, raw(row, 1)?.unwrap_or_default(), row.get(2)?);
        seen += 1;
        next = offset + 1;
    }
    Ok(if seen < limit { range.end } else { next })
}

/// Goes through everything before `upto` in order of offsets and deletes what may go.
///
/// The order matters after a crash: the older records of a key are gone before its tombstone is.
fn sweep(
    worker: &Worker,
    connection: &mut Connection,
    part: Part,
    upto: i64,
    old: i64,
    seed: &RandomState,
    last: &HashMap<u64, i64>,
) -> Result<Tally, Halt> {
    let mut tally = Tally::default();
    let mut doomed = Vec::new();
    let mut from = 0;
    while from < upto {
        worker.proceed()?;
        from = page(connection, part, from..upto, worker.tuning.scan, |offset, key, tombstone| {
            match last.get(&seed.hash_one(key)) {
                Some(&later) if later > offset => doomed.push(Doomed::Superseded(offset, later)),
                _ if tombstone && offset < old => doomed.push(Doomed::Tombstone(offset)),
                _ => {
                    tally.kept += 1;
                    tally.tombstones += i64::from(tombstone);
                }
            }
        })?;
        for some in doomed.chunks(worker.tuning.deletes) {
            let deleted = worker.exclusive(|| delete(connection, part, some))?;
            tally.collided |= deleted < some.len();
        }
        doomed.clear();
    }
    Ok(tally)
}

fn delete(connection: &mut Connection, part: Part, doomed: &[Doomed]) -> rusqlite::Result<usize> {
    let table = part.table();
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let mut deleted = 0;
    {
        let superseded =
            format!("DELETE FROM {table} WHERE \"offset\" = ?1 AND key = (SELECT key FROM {table} WHERE \"offset\" = ?2)");
        let mut superseded = transaction.prepare_cached(&superseded)?;
        let mut tombstone =
            transaction.prepare_cached(&format!("DELETE FROM {table} WHERE \"offset\" = ?1 AND value IS NULL"))?;
        for record in doomed {
            deleted += match record {
                Doomed::Superseded(offset, later) => superseded.execute(params![offset, later])?,
                Doomed::Tombstone(offset) => tombstone.execute([offset])?,
            };
        }
    }
    transaction.commit()?;
    Ok(deleted)
}

/// Deletes the records of a partition that were written before `before_ms`.
pub(super) fn expire(worker: &Worker, connection: &mut Connection, part: Part, before_ms: i64) -> Result<(), Halt> {
    let limit = horizon(connection, part, before_ms)?;
    let table = part.table();
    let first = format!("SELECT \"offset\" FROM {table} WHERE \"offset\" < ?1 ORDER BY \"offset\" LIMIT 1");
    while let Some(first) = connection.query_row(&first, [limit], |row| row.get::<_, i64>(0)).optional()? {
        worker.proceed()?;
        let upto = limit.min(first + worker.tuning.deletes as i64);
        worker.exclusive(|| connection.execute(&format!("DELETE FROM {table} WHERE \"offset\" < ?1"), [upto]))?;
    }
    Ok(())
}

/// Notes how long the partitions are now. The clock may go back; the marks of a partition never do.
pub(super) fn mark(worker: &Worker, connection: &mut Connection, now_ms: i64, keep: Duration) -> Result<(), Halt> {
    const MOVED: &str = "FROM partitions p WHERE p.next_offset > coalesce((SELECT max(m.next_offset) FROM marks m \
         WHERE m.topic_id = p.topic_id AND m.partition = p.partition), 0)";
    let moved: bool = connection.query_row(&format!("SELECT EXISTS (SELECT 1 {MOVED})"), [], |row| row.get(0))?;
    if !moved {
        return Ok(());
    }
    let insert = format!(
        "INSERT INTO marks (topic_id, partition, at, next_offset) \
         SELECT p.topic_id, p.partition, max(?1, coalesce((SELECT max(m.at) FROM marks m \
         WHERE m.topic_id = p.topic_id AND m.partition = p.partition), ?1)), p.next_offset {MOVED} \
         ON CONFLICT DO UPDATE SET next_offset = excluded.next_offset"
    );
    let past = now_ms - keep.max(TOMBSTONES_STAY).as_millis() as i64;
    worker.exclusive(|| {
        let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        transaction.execute(&insert, [now_ms])?;
        // Of the marks that are older than anything asks for, the newest of each partition says it all.
        transaction.execute(
            "DELETE FROM marks WHERE at < (SELECT max(m.at) FROM marks m \
             WHERE m.topic_id = marks.topic_id AND m.partition = marks.partition AND m.at <= ?1)",
            [past],
        )?;
        transaction.commit()
    })
}
