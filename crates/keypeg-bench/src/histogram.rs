//! A histogram of durations, with a fixed size and a fixed relative precision.
//!
//! Log-linear: each power of two is divided into 128 buckets, so a reported quantile is at most 0.8
//! % too high and never too low. The maximum is exact. Histograms of one run can be merged.

use std::time::Duration;

/// Binary logarithm of `BUCKETS_PER_OCTAVE`.
const BUCKET_BITS: u32 = 7;
/// Buckets in each octave, which is the range from one power of two to the next.
const BUCKETS_PER_OCTAVE: u64 = 1 << BUCKET_BITS;
/// Each value below `BUCKETS_PER_OCTAVE` has its own bucket; each octave above is divided into 128.
const SIZE: usize = ((64 - BUCKET_BITS as usize) + 1) << BUCKET_BITS;

/// Counts durations, with nanosecond resolution.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: Box<[u64]>,
    count: u64,
    sum_ns: u128,
    max_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; SIZE].into(), count: 0, sum_ns: 0, max_ns: 0 }
    }
}

impl Histogram {
    pub(crate) fn record(&mut self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket_of(ns)] += 1;
        self.count += 1;
        self.sum_ns += u128::from(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.count += other.count;
        self.sum_ns += other.sum_ns;
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Returns the duration that `per_mille` of a thousand durations do not exceed. O(buckets).
    pub(crate) fn quantile(&self, per_mille: u16) -> Duration {
        let rank = (u128::from(self.count) * u128::from(per_mille)).div_ceil(1_000).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= rank {
                return Duration::from_nanos(max_of(bucket).min(self.max_ns));
            }
        }
        Duration::ZERO
    }

    pub(crate) fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns)
    }

    pub(crate) fn mean(&self) -> Duration {
        let mean = self.sum_ns.checked_div(u128::from(self.count)).unwrap_or(0);
        Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX))
    }
}

/// Returns the bucket of a value.
fn bucket_of(ns: u64) -> usize {
    let octave = (u64::BITS - ns.leading_zeros()).saturating_sub(BUCKET_BITS + 1);
    let offset = ns >> octave;
    usize::try_from(u64::from(octave) * BUCKETS_PER_OCTAVE + offset)
        .expect("invariant: there are only thousands of buckets")
}

/// Returns the largest value of a bucket.
fn max_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let octave = (bucket / BUCKETS_PER_OCTAVE).saturating_sub(1);
    let offset = bucket - octave * BUCKETS_PER_OCTAVE;
    (offset << octave) | ((1 << octave) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_in_a_bucket_that_ends_at_it_or_just_above() {
        let powers = (0..64).map(|bits| 1_u64 << bits);
        let around = powers.flat_map(|power| [power - 1, power, power.saturating_add(1)]);
        for ns in around.chain([0, 300, 12_345, 98_765_432, u64::MAX]) {
            let max = max_of(bucket_of(ns));
            assert!(max >= ns && max - ns <= ns / BUCKETS_PER_OCTAVE, "{ns} is reported as {max}");
            assert!(max == u64::MAX || bucket_of(max + 1) == bucket_of(ns) + 1, "{ns} to {max}");
        }
        assert_eq!(bucket_of(u64::MAX), SIZE - 1);
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_durations() {
        let mut histogram = Histogram::default();
        let mut values: Vec<u64> = (0..10_000).map(|i| (i * 7_919 % 10_007) * 1_000).collect();
        for &ns in &values {
            histogram.record(Duration::from_nanos(ns));
        }
        values.sort_unstable();
        for per_mille in [1_u16, 500, 900, 990, 999, 1_000] {
            let exact = values[usize::from(per_mille) * values.len() / 1_000 - 1];
            let reported = u64::try_from(histogram.quantile(per_mille).as_nanos()).unwrap();
            let is_close = reported >= exact && reported - exact <= exact / BUCKETS_PER_OCTAVE;
            assert!(is_close, "{per_mille}: {reported} {exact}");
        }
        assert_eq!(histogram.max(), Duration::from_nanos(*values.last().unwrap()));
        let mean = values.iter().sum::<u64>() / 10_000;
        assert_eq!(histogram.mean(), Duration::from_nanos(mean));
    }

    #[test]
    fn a_merged_histogram_equals_one_that_recorded_all_values() {
        let (mut one, mut other) = (Histogram::default(), Histogram::default());
        one.record(Duration::from_millis(1));
        other.record(Duration::from_millis(9));
        other.record(Duration::from_millis(2));
        one.merge(&other);
        assert_eq!((one.count(), one.max()), (3, Duration::from_millis(9)));
        assert_eq!(one.mean(), Duration::from_millis(4));
        assert!(one.quantile(667) >= Duration::from_millis(9));
        assert!(one.quantile(500) < Duration::from_millis(3));
    }

    #[test]
    fn an_empty_histogram_reports_zeros() {
        let empty = Histogram::default();
        assert_eq!((empty.quantile(990), empty.max(), empty.mean()), Default::default());
    }
}
