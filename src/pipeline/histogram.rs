//! How a figure of each commit is spread: counted in buckets without a lock, read by the metrics page.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of values up to each bound. A reader that comes in between sees a commit in some of the counts and not in others,
/// which the next scrape mends.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: [u64; N],
    counts: [AtomicU64; N],
    beyond: AtomicU64,
    sum: AtomicU64,
}

/// What a histogram held at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    /// Sum of all values.
    pub sum: u64,
    /// How many values there were.
    pub count: u64,
    /// Upper bound of each bucket, inclusive, and how many values fell between the bound before and this one.
    pub buckets: Vec<(u64, u64)>,
}

impl<const N: usize> Histogram<N> {
    /// With these upper bounds, inclusive and rising.
    pub const fn new(bounds: [u64; N]) -> Self {
        Self { bounds, counts: [const { AtomicU64::new(0) }; N], beyond: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }

    /// Counts one value.
    pub fn record(&self, value: u64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        self.counts.get(at).unwrap_or(&self.beyond).fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn spread(&self) -> Spread {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(u64, u64)> = self.bounds.iter().copied().zip(counts).collect();
        let within: u64 = buckets.iter().map(|(_, count)| count).sum();
        let count = within + self.beyond.load(Ordering::Relaxed);
        Spread { sum: self.sum.load(Ordering::Relaxed), count, buckets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_counted_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::new([1, 10, 100]);
        for value in [0, 1, 2, 10, 11, 100, 101, 5000] {
            histogram.record(value);
        }
        let spread = histogram.spread();
        assert_eq!(spread, Spread { sum: 5225, count: 8, buckets: vec![(1, 2), (10, 2), (100, 2)] });
    }
}
