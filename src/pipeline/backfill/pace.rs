//! When the next chunk may be read: limits that the user sets, and a guard for the server's sake. Pure but for the clock.

use std::time::Duration;

use headwater_connector::BackfillOptions;
use tokio::time::Instant;

/// A chunk that takes longer than this meets a busy server: it gets as long a rest afterwards.
const HEAVY: Duration = Duration::from_secs(1);
/// The longest such rest.
const LONGEST_REST: Duration = Duration::from_secs(10);

/// With a limit, chunks are as small as this share of what a second may bring: the source feels a trickle and no bursts.
const PIECES: u64 = 8;
/// But no smaller.
const FEWEST: usize = 50;

/// See the module's page.
pub struct Pace {
    rows_per_second: Option<u64>,
    bytes_per_second: Option<u64>,
    max_lag: u64,
    /// No chunk before this.
    next: Instant,
    /// The stream is so far behind that reading more would only make it worse.
    behind: bool,
}

impl Pace {
    /// With the user's limits.
    pub fn new(options: &BackfillOptions) -> Self {
        Self {
            rows_per_second: options.rows_per_second,
            bytes_per_second: options.megabytes_per_second.map(|megabytes| megabytes << 20),
            max_lag: options.max_lag_megabytes << 20,
            next: Instant::now(),
            behind: false,
        }
    }

    /// Whether a chunk may be asked for now.
    pub fn allows(&self) -> bool {
        !self.behind && Instant::now() >= self.next
    }

    /// Whether chunks are held back because the stream is behind.
    pub fn is_held(&self) -> bool {
        self.behind
    }

    /// Whether the user set a limit.
    pub fn is_limited(&self) -> bool {
        self.rows_per_second.is_some() || self.bytes_per_second.is_some()
    }

    /// The most rows that a chunk should have.
    pub fn most_rows(&self) -> usize {
        self.rows_per_second.map_or(usize::MAX, |rows| usize::try_from(rows / PIECES).unwrap_or(usize::MAX).max(FEWEST))
    }

    /// A chunk was read.
    pub fn read(&mut self, rows: usize, bytes: usize, took: Duration) {
        let share = |amount: usize, limit: Option<u64>| {
            limit.map_or(Duration::ZERO, |limit| Duration::from_secs_f64(amount as f64 / limit as f64))
        };
        let due = share(rows, self.rows_per_second).max(share(bytes, self.bytes_per_second));
        let rest = if took > HEAVY { took.min(LONGEST_REST) } else { Duration::ZERO };
        let now = Instant::now();
        self.next = (self.next.max(now) + due).max(now + rest);
    }

    /// Nothing is to be read for a moment.
    pub fn rest(&mut self, pause: Duration) {
        self.next = self.next.max(Instant::now() + pause);
    }

    /// How far the stream is behind, if that is known.
    pub fn note_lag(&mut self, bytes: Option<u64>) {
        // Once held, it has to catch up by half, so that it does not go back and forth.
        let limit = if self.behind { self.max_lag / 2 } else { self.max_lag };
        if let Some(bytes) = bytes {
            self.behind = bytes > limit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(rows_per_second: u64) -> Pace {
        Pace::new(&BackfillOptions { rows_per_second: Some(rows_per_second), ..BackfillOptions::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_holds_over_many_chunks() {
        let (mut pace, began) = (pace(1_000), Instant::now());
        for _ in 0..20 {
            while !pace.allows() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            pace.read(500, 0, Duration::from_millis(5));
        }
        let took = began.elapsed().as_secs_f64();
        assert!((9.0..10.1).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_behind_goes_first() {
        let mut pace = pace(1_000_000);
        pace.note_lag(Some(257 << 20));
        assert!(!pace.allows());
        pace.note_lag(Some(200 << 20));
        assert!(pace.is_held(), "until it has caught up by half");
        pace.note_lag(None);
        assert!(pace.is_held());
        pace.note_lag(Some(100 << 20));
        assert!(pace.allows());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_slow_gets_a_rest() {
        let mut pace = pace(1_000_000);
        pace.read(10, 0, Duration::from_secs(4));
        tokio::time::advance(Duration::from_millis(3_900)).await;
        assert!(!pace.allows());
        tokio::time::advance(Duration::from_millis(200)).await;
        assert!(pace.allows());
    }
}
