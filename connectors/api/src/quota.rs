//! How full a chunk is, and how many rows to ask the server for next. Nothing here does IO.
//!
//! A reader does not know how wide rows are before they come. It asks for a few, then for as many as should fill the chunk, and takes no
//! more than fit. What came beyond that is left for the next chunk.

use std::time::{Duration, Instant};

use crate::ChunkRequest;

/// Rows asked for first of a table whose rows are of unknown size; what they turn out to be decides about the next statement.
const FIRST_FETCH: usize = 64;
/// The most rows of one statement, and how many times the last one it may be: nothing tells how wide the rows behind it are.
const MAX_FETCH: usize = 20_000;
const GROWTH: usize = 8;
/// A chunk ends with the statement that comes to this. The table is locked as long, lightly; but whoever waits for a heavy lock stops
/// all others.
const LONG_ENOUGH: Duration = Duration::from_secs(2);
/// Chunks' worth of rows behind the end of one that the server may send before it is hung up on.
const SURPLUS: usize = 2;

/// What to do with a row that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It belongs to the chunk.
    Take,
    /// The chunk is full.
    Leave,
    /// So much came that is of no use that the rest should not be waited for.
    HangUp,
}

/// See the module's page.
#[derive(Debug)]
pub struct Quota {
    max_rows: usize,
    max_bytes: usize,
    began: Instant,
    /// Rows of the statement that runs, and how many had come before it.
    asked: usize,
    before: usize,
    /// Rows that came, and those of them that were taken, with their bytes.
    seen: usize,
    taken: usize,
    bytes: usize,
    /// Bytes of those that were not.
    surplus: usize,
}

impl Quota {
    /// Of an empty chunk.
    pub fn of(request: &ChunkRequest) -> Self {
        let (max_rows, max_bytes) = (request.max_rows, request.max_bytes);
        let began = Instant::now();
        Self { max_rows, max_bytes, began, asked: 0, before: 0, seen: 0, taken: 0, bytes: 0, surplus: 0 }
    }

    /// Begins a statement: as many rows as should fill the chunk, if they are like those that came, and not many more than came last.
    pub fn fetch(&mut self) -> usize {
        self.before = self.seen;
        self.asked = if self.asked == 0 {
            FIRST_FETCH.min(self.max_rows).max(1)
        } else {
            let width = self.bytes.checked_div(self.taken).unwrap_or(0).max(1);
            let most = self.max_rows.saturating_sub(self.taken).min(MAX_FETCH).min(self.asked.saturating_mul(GROWTH));
            (self.max_bytes.saturating_sub(self.bytes) / width).clamp(1, most.max(1))
        };
        self.asked
    }

    /// A row of so many bytes came.
    #[inline]
    pub fn came(&mut self, bytes: usize) -> Verdict {
        self.seen += 1;
        if self.taken < self.max_rows && self.bytes < self.max_bytes {
            return Verdict::Take;
        }
        self.surplus += bytes;
        if self.is_flooded() { Verdict::HangUp } else { Verdict::Leave }
    }

    /// The row is in the chunk, and takes so many bytes there.
    #[inline]
    pub fn took(&mut self, bytes: usize) {
        self.taken += 1;
        self.bytes += bytes;
    }

    /// Rows in the chunk.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// See [`Verdict::HangUp`].
    pub fn is_flooded(&self) -> bool {
        self.surplus > self.max_bytes.saturating_mul(SURPLUS)
    }

    /// Whether something may be behind the chunk because no more was to be taken.
    pub fn is_full(&self) -> bool {
        self.taken >= self.max_rows || self.bytes >= self.max_bytes || self.seen > self.taken
    }

    /// Whether the statement came to the last row that there is.
    pub fn is_end(&self) -> bool {
        self.seen - self.before < self.asked && self.seen == self.taken
    }

    /// Whether no further statement is to follow.
    pub fn is_done(&self) -> bool {
        let is_late = self.began.elapsed() >= LONG_ENOUGH && self.taken > 0;
        self.is_end() || self.is_full() || is_late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(max_rows: usize, max_bytes: usize) -> Quota {
        let table = "public.t".to_owned();
        Quota::of(&ChunkRequest { table, after: None, until: None, filter: None, keys: None, max_rows, max_bytes, gate: None })
    }

    /// So many rows of a width come; how many were taken.
    fn feed(quota: &mut Quota, rows: usize, bytes: usize) -> usize {
        let before = quota.taken();
        for _ in 0..rows {
            match quota.came(bytes) {
                Verdict::Take => quota.took(bytes),
                Verdict::Leave => {}
                Verdict::HangUp => break,
            }
        }
        quota.taken() - before
    }

    #[test]
    fn statements_grow_to_what_fills_the_chunk() {
        let mut quota = quota(1_000_000, 100_000);
        assert_eq!(quota.fetch(), 64);
        assert_eq!(feed(&mut quota, 64, 100), 64);
        assert_eq!(quota.fetch(), 64 * GROWTH);
        feed(&mut quota, 64 * GROWTH, 100);
        assert!(!quota.is_done());
        assert_eq!(quota.fetch(), 1000 - 64 - 64 * GROWTH, "the bytes that are left, in rows of that width");
        feed(&mut quota, 424, 100);
        assert!(quota.is_full() && quota.is_done() && !quota.is_end());
    }

    #[test]
    fn fewer_rows_than_were_asked_for_are_the_end() {
        let mut quota = quota(10, 1 << 20);
        assert_eq!(quota.fetch(), 10);
        feed(&mut quota, 9, 1);
        assert!(quota.is_end() && quota.is_done() && !quota.is_full());
        quota.fetch();
        feed(&mut quota, 0, 1);
        assert!(quota.is_end());
    }

    #[test]
    fn rows_that_do_not_fit_are_left_and_too_many_of_them_are_not_waited_for() {
        let mut quota = quota(1000, 100);
        assert_eq!(quota.fetch(), 64);
        assert_eq!(feed(&mut quota, 5, 60), 2, "the second one begins within the bytes");
        assert!(quota.is_full() && !quota.is_flooded() && !quota.is_end());
        assert_eq!(feed(&mut quota, 1, 60), 0);
        assert!(quota.is_flooded());
        assert_eq!(quota.came(1), Verdict::HangUp);
    }
}
