//! A histogram of latencies, on the buckets of `hdrhistogram`.
//!
//! Two significant digits: the crate keeps 256 buckets for the first values and divides each
//! further power of two into 128. So a reported quantile is never too low, and at most 1/128 (0.8 %)
//! too high. The mean and the maximum are exact; those of the crate would be of buckets. Histograms
//! of one run can be merged.

use std::time::Duration;

/// Significant decimal digits of a reported quantile.
const SIGNIFICANT_DIGITS: u8 = 2;

/// Counts durations, with nanosecond resolution.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    /// The durations in nanoseconds.
    buckets: hdrhistogram::Histogram<u64>,
    sum_ns: u128,
    max_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        let buckets = hdrhistogram::Histogram::new_with_bounds(1, u64::MAX, SIGNIFICANT_DIGITS)
            .expect("invariant: the bounds and the digits are valid");
        Self { buckets, sum_ns: 0, max_ns: 0 }
    }
}

impl Histogram {
    pub(crate) fn record(&mut self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets.saturating_record(ns);
        self.sum_ns += u128::from(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.buckets += &other.buckets;
        self.sum_ns += other.sum_ns;
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    pub(crate) fn count(&self) -> u64 {
        self.buckets.len()
    }

    /// Returns the duration that `per_mille` of a thousand durations do not exceed. O(buckets).
    ///
    /// The rank is computed in floating point. For 500, 990 and 999, which are reported, it is exact;
    /// for some others it is one too high.
    pub(crate) fn quantile(&self, per_mille: u16) -> Duration {
        let bucket_max_ns = self.buckets.value_at_quantile(f64::from(per_mille) / 1_000.0);
        Duration::from_nanos(bucket_max_ns.min(self.max_ns))
    }

    pub(crate) fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns)
    }

    pub(crate) fn mean(&self) -> Duration {
        let mean = self.sum_ns.checked_div(u128::from(self.count())).unwrap_or(0);
        Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reported quantile exceeds the exact one by at most this part of it.
    const ERROR_DIVISOR: u64 = 128;

    fn quantile_ns(histogram: &Histogram, per_mille: u16) -> u64 {
        u64::try_from(histogram.quantile(per_mille).as_nanos()).unwrap()
    }

    #[test]
    fn each_value_is_in_a_bucket_that_ends_at_it_or_just_above() {
        let powers = (0..63).map(|bits| 1_u64 << bits);
        let around = powers.flat_map(|power| [power - 1, power, power + 1]);
        for ns in around.chain([0, 300, 12_345, 98_765_432]) {
            let mut histogram = Histogram::default();
            histogram.record(Duration::from_nanos(ns));
            assert_eq!(quantile_ns(&histogram, 500), ns, "a quantile does not exceed the maximum");
            histogram.record(Duration::MAX);
            let reported = quantile_ns(&histogram, 500);
            assert!(reported >= ns && reported - ns <= ns / ERROR_DIVISOR, "{ns}: {reported}");
            assert!(!histogram.buckets.equivalent(ns, reported + 1), "{ns}: {reported}");
        }
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
            let reported = quantile_ns(&histogram, per_mille);
            let is_close = reported >= exact && reported - exact <= exact / ERROR_DIVISOR;
            assert!(is_close, "{per_mille}: {reported} {exact}");
        }
        assert_eq!(histogram.max(), Duration::from_nanos(*values.last().unwrap()));
        let mean = values.iter().sum::<u64>() / 10_000;
        assert_eq!(histogram.mean(), Duration::from_nanos(mean));
    }

    #[test]
    fn the_reported_quantiles_have_exact_ranks() {
        let mut histogram = Histogram::default();
        // Each of these values has its own bucket.
        for count in 1_u64..256 {
            histogram.record(Duration::from_nanos(count));
            for per_mille in [500_u16, 990, 999] {
                let rank = (count * u64::from(per_mille)).div_ceil(1_000);
                assert_eq!(quantile_ns(&histogram, per_mille), rank, "{per_mille} of {count}");
            }
        }
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
