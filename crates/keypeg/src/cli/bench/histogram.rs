//! A histogram of lengths of time, of fixed size and relative precision.
//!
//! Log-linear: each doubling is cut into 128 steps, so a quantile is told at most 0.8 % too high and
//! never too low; the greatest value is kept exactly. Two histograms of one run can be merged.

use std::time::Duration;

/// Steps in each doubling, as a power of two.
const STEP_BITS: u32 = 7;
const STEPS: u64 = 1 << STEP_BITS;
/// Up to `STEPS` each value has its own step, and so has each 128th of every doubling above.
const SIZE: usize = ((64 - STEP_BITS as usize) + 1) << STEP_BITS;

/// KeyCounts lengths of time.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
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
    pub(super) fn record(&mut self, length: Duration) {
        let ns = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        self.counts[step(ns)] += 1;
        self.count += 1;
        self.sum_ns += u128::from(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.count += other.count;
        self.sum_ns += other.sum_ns;
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The length that `per_mille` of a thousand lengths do not exceed.
    pub(super) fn quantile(&self, per_mille: u16) -> Duration {
        let wanted = (u128::from(self.count) * u128::from(per_mille)).div_ceil(1_000).max(1);
        let mut seen = 0;
        for (step, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= wanted {
                return Duration::from_nanos(greatest(step).min(self.max_ns));
            }
        }
        Duration::ZERO
    }

    pub(super) fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns)
    }

    pub(super) fn mean(&self) -> Duration {
        let mean = self.sum_ns.checked_div(u128::from(self.count)).unwrap_or(0);
        Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX))
    }
}

/// The step a value is counted in.
fn step(ns: u64) -> usize {
    let doubling = (u64::BITS - ns.leading_zeros()).saturating_sub(STEP_BITS + 1);
    let within = ns >> doubling;
    usize::try_from(u64::from(doubling) * STEPS + within).expect("invariant: steps are thousands")
}

/// The greatest value that is counted in a step.
fn greatest(step: usize) -> u64 {
    let step = step as u64;
    let doubling = (step / STEPS).saturating_sub(1);
    let within = step - doubling * STEPS;
    (within << doubling) | ((1 << doubling) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_is_in_the_step_that_ends_at_or_just_above_it() {
        let powers = (0..64).map(|bits| 1_u64 << bits);
        let around = powers.flat_map(|power| [power - 1, power, power.saturating_add(1)]);
        for ns in around.chain([0, 300, 12_345, 98_765_432, u64::MAX]) {
            let top = greatest(step(ns));
            assert!(top >= ns && top - ns <= ns / STEPS, "{ns} is told as {top}");
            assert!(top == u64::MAX || step(top + 1) == step(ns) + 1, "{ns} to {top}");
        }
        assert_eq!(step(u64::MAX), SIZE - 1);
    }

    #[test]
    fn quantiles_are_those_of_the_sorted_lengths() {
        let mut histogram = Histogram::default();
        let mut lengths: Vec<u64> = (0..10_000).map(|i| (i * 7_919 % 10_007) * 1_000).collect();
        for &ns in &lengths {
            histogram.record(Duration::from_nanos(ns));
        }
        lengths.sort_unstable();
        for per_mille in [1_u16, 500, 900, 990, 999, 1_000] {
            let exact = lengths[usize::from(per_mille) * lengths.len() / 1_000 - 1];
            let told = u64::try_from(histogram.quantile(per_mille).as_nanos()).unwrap();
            assert!(told >= exact && told - exact <= exact / STEPS, "{per_mille}: {told} {exact}");
        }
        assert_eq!(histogram.max(), Duration::from_nanos(*lengths.last().unwrap()));
        let mean = lengths.iter().sum::<u64>() / 10_000;
        assert_eq!(histogram.mean(), Duration::from_nanos(mean));
    }

    #[test]
    fn what_is_merged_counts_as_if_it_had_been_recorded_once() {
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
    fn an_empty_one_tells_zeros() {
        let none = Histogram::default();
        assert_eq!((none.quantile(990), none.max(), none.mean()), Default::default());
    }
}
