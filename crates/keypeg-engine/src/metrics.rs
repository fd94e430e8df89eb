//! What the engine counts of its own work: written by its thread alone, read by whoever asks.
//!
//! Nothing here decides anything. Each number is an atomic of its own, so a reader may see one
//! turn's numbers in part.

use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds of [`EngineMetrics::commit_us`], in microseconds; what is above the last has a place of
/// its own.
pub const COMMIT_BUCKETS_US: [u64; 14] = [
    50, 100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 51_200, 102_400, 409_600,
    1_638_400,
];
/// Upper bounds of [`EngineMetrics::answers`], in answers a turn.
pub const ANSWERS_PER_TURN_BUCKETS: [u64; 14] =
    [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192];

/// The engine's counters since its start.
#[derive(Debug, Default)]
pub struct EngineMetrics {
    /// How long each write and sync of a batch took: as many as there were batches.
    pub commit_us: Histogram<15>,
    /// How many requests each turn answered, of the turns that answered any.
    pub answers: Histogram<15>,
    /// Who follows a pool now. Like the next two this is written by those who read the feed.
    pub followers: AtomicU64,
    /// Events told, to each who was told.
    pub events: AtomicU64,
    /// How often a follower was told the counts, since not all that came before was there.
    pub resyncs: AtomicU64,
}

/// KeyCounts of values by size: `N - 1` bounded places and one for what is above.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    places: [AtomicU64; N],
    sum: AtomicU64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self { places: [const { AtomicU64::new(0) }; N], sum: AtomicU64::new(0) }
    }
}

impl<const N: usize> Histogram<N> {
    /// KeyCounts a value; `bounds` are the upper bounds, one fewer than there are places.
    pub fn count(&self, bounds: &[u64], value: u64) {
        let place = bounds.partition_point(|&bound| bound < value);
        self.places[place].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Tells how many values each place has, and the sum of all.
    pub fn read(&self) -> ([u64; N], u64) {
        let places = std::array::from_fn(|at| self.places[at].load(Ordering::Relaxed));
        (places, self.sum.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_counted_at_the_first_bound_it_is_not_above() {
        let histogram = Histogram::<4>::default();
        for value in [0, 1, 2, 3, 10, 11, 1_000] {
            histogram.count(&[1, 2, 10], value);
        }
        assert_eq!(histogram.read(), ([2, 1, 2, 2], 1_027));
    }
}
