//! A store's metrics: counters and histograms that the store writes and the server reads.
//!
//! They decide nothing. Each number is an atomic of its own, so a reader may see the numbers of one
//! turn in part. A turn is one batch of requests that the store executes and makes durable at once.

use std::sync::atomic::{AtomicU64, Ordering};

/// The upper bounds of [`StoreMetrics::commit_us`], in microseconds. Values above the last bound
/// have a bucket of their own.
pub const COMMIT_BUCKETS_US: [u64; 14] = [
    50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 51_200, 102_400, 409_600,
    1_638_400,
];
/// The upper bounds of [`StoreMetrics::answers`], in answers per turn.
pub const ANSWERS_PER_TURN_BUCKETS: [u64; 14] =
    [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192];

/// The upper bounds of [`StoreMetrics::commit_bytes`], in bytes.
pub const COMMIT_BUCKETS_BYTES: [u64; 9] =
    [256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20];
/// The upper bounds of [`StoreMetrics::expiry_lateness_us`], in microseconds.
pub const LATENESS_BUCKETS_US: [u64; 9] =
    [500, 1_000, 2_500, 10_000, 50_000, 250_000, 1_000_000, 5_000_000, 60_000_000];

/// A store's counters since its start.
#[derive(Debug, Default)]
pub struct StoreMetrics {
    /// The duration of each batch's write and sync; one value for each batch.
    pub commit_us: Histogram<15>,
    /// The bytes of the records of each batch.
    pub commit_bytes: Histogram<10>,
    /// How long a deadline of a lease, a rest or a wait had passed when a turn executed it; one
    /// value for each turn that executes some, of the first of them.
    pub expiry_lateness_us: Histogram<10>,
    /// The number of answers of each turn that answered a request.
    pub answers: Histogram<15>,
    /// The bytes of all pools, with their keys, leases and stored answers, after the last turn.
    pub pool_bytes: AtomicU64,
    /// The bytes of the journal; this and the next four are read from time to time, and 0 for a
    /// store without a journal.
    pub journal_bytes: AtomicU64,
    /// The bytes above which the store shrinks the journal.
    pub journal_bytes_max: AtomicU64,
    /// The bytes of the journal that are not in the database yet.
    pub checkpoint_lag_bytes: AtomicU64,
    /// The lag above which the store refuses new keys, in bytes.
    pub checkpoint_lag_bytes_max: AtomicU64,
    /// What a full disk refuses: 0 nothing, 1 new keys, 2 grants too, 3 all changes.
    pub disk_refuses: AtomicU64,
    /// Appends to a shared log that were repeated because their outcome was unknown.
    pub append_retries: AtomicU64,
    /// The number of current subscribers. Subscribers write this and the next two.
    pub subscribers: AtomicU64,
    /// Events delivered, counted once for each subscriber.
    pub events: AtomicU64,
    /// Keep-alives, and connections that could have brought them, that the server refused because a
    /// limit was reached. Serving time stands still meanwhile.
    pub refused_keep_alives: AtomicU64,
    /// Resyncs: a subscriber got the counts, because events before it were missing.
    pub resyncs: AtomicU64,
}

/// A histogram with `N - 1` bounded buckets and one for all greater values.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    buckets: [AtomicU64; N],
    sum: AtomicU64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; N], sum: AtomicU64::new(0) }
    }
}

impl<const N: usize> Histogram<N> {
    /// Records a value; `bounds` are the upper bounds, one fewer than there are buckets.
    pub fn observe(&self, bounds: &[u64], value: u64) {
        let bucket = bounds.partition_point(|&bound| bound < value);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Returns the number of values in each bucket, and the sum of all values.
    pub fn read(&self) -> ([u64; N], u64) {
        let buckets = std::array::from_fn(|index| self.buckets[index].load(Ordering::Relaxed));
        (buckets, self.sum.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_counted_in_the_first_bucket_whose_bound_is_not_below_it() {
        let histogram = Histogram::<4>::default();
        for value in [0, 1, 2, 3, 10, 11, 1_000] {
            histogram.observe(&[1, 2, 10], value);
        }
        assert_eq!(histogram.read(), ([2, 1, 2, 2], 1_027));
    }
}
