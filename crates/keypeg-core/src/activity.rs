//! What has happened in a pool since the start of the server: counters that only grow.
//!
//! They decide nothing and are not facts: a start begins at zero. Each is one integer that a step
//! of the pool increments, so counting needs no lock and no memory of its own. A wait costs nothing
//! for a request that is granted at once: it is in no bucket.

use crate::refusal::NoKeyCause;

/// The upper bounds of [`PoolActivity::waits`], in microseconds.
pub const WAIT_BUCKETS_US: [u64; 9] =
    [1_000, 10_000, 100_000, 500_000, 1_000_000, 5_000_000, 15_000_000, 60_000_000, 300_000_000];
/// The upper bounds of [`PoolActivity::holds`], in microseconds: 10 ms to a day.
pub const HOLD_BUCKETS_US: [u64; 9] = [
    10_000,
    100_000,
    1_000_000,
    10_000_000,
    60_000_000,
    300_000_000,
    1_800_000_000,
    14_400_000_000,
    86_400_000_000,
];

/// The counters of one pool since the start of the server, or since the pool was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolActivity {
    /// Leases granted, at once or after a wait.
    pub grants: u64,
    /// Leases that a call ended: a release, with rest or quarantine too, or a force-release.
    pub releases: u64,
    /// How long leases were held until they were released or expired, in microseconds, summed up.
    pub held_us: u64,
    /// These leases by the time that they were held, see [`HOLD_BUCKETS_US`]; the last is longer.
    pub holds: [u64; HOLD_BUCKETS_US.len() + 1],
    /// Leases that ended by time.
    pub expiries: u64,
    /// Keys purged by time.
    pub purges: u64,
    /// Requests refused because no key was available, at once or at the end of their wait, by
    /// cause: see [`PoolActivity::refused`].
    pub refusals_by_cause: [u64; NoKeyCause::ALL.len()],
    /// How long the granted requests waited in the wait queue, in microseconds, summed up.
    pub waited_us: u64,
    /// The grants of requests that waited by the time that they waited, see [`WAIT_BUCKETS_US`];
    /// the last is longer.
    pub waits: [u64; WAIT_BUCKETS_US.len() + 1],
}

impl PoolActivity {
    /// Returns the number of requests refused because no key was available.
    pub fn refusals(&self) -> u64 {
        self.refusals_by_cause.iter().sum()
    }

    /// Returns the number of requests refused for one cause.
    pub fn refused(&self, cause: NoKeyCause) -> u64 {
        self.refusals_by_cause[cause as usize]
    }

    /// Returns all grants by the time that they waited, see [`WAIT_BUCKETS_US`]: those without a
    /// wait are in the first bucket.
    pub fn waits_of_all_grants(&self) -> [u64; WAIT_BUCKETS_US.len() + 1] {
        let waited: u64 = self.waits.iter().sum();
        let mut all = self.waits;
        all[0] += self.grants.saturating_sub(waited);
        all
    }

    /// Counts a refusal.
    pub fn count_refusal(&mut self, cause: NoKeyCause) {
        self.refusals_by_cause[cause as usize] += 1;
    }

    /// Takes a counted refusal back: the request waits instead.
    pub fn uncount_refusal(&mut self, cause: NoKeyCause) {
        self.refusals_by_cause[cause as usize] -= 1;
    }

    /// Counts the wait of a request that was granted after it.
    pub fn count_wait(&mut self, wait_us: u64) {
        self.waited_us += wait_us;
        self.waits[bucket(&WAIT_BUCKETS_US, wait_us)] += 1;
    }

    /// Counts the end of a lease by a call.
    #[inline]
    pub fn count_release(&mut self, held_us: u64) {
        self.releases += 1;
        self.count_hold(held_us);
    }

    /// Counts the end of a lease by time.
    #[inline]
    pub fn count_expiry(&mut self, held_us: u64) {
        self.expiries += 1;
        self.count_hold(held_us);
    }

    #[inline]
    fn count_hold(&mut self, held_us: u64) {
        self.held_us += held_us;
        self.holds[bucket(&HOLD_BUCKETS_US, held_us)] += 1;
    }

    /// Adds the counters of another pool.
    pub fn add(&mut self, other: &Self) {
        for (to, from) in self.counters_mut().into_iter().zip(other.counters()) {
            *to += from;
        }
    }

    /// Returns what was added to the counters since `before`. A pool that was created again under
    /// its name begins at zero: then everything is new.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut added = *self;
        for (to, before) in added.counters_mut().into_iter().zip(before.counters()) {
            let Some(difference) = to.checked_sub(before) else { return *self };
            *to = difference;
        }
        added
    }

    /// Returns all counters, in one order.
    fn counters(&self) -> [u64; COUNTERS] {
        let mut copy = *self;
        copy.counters_mut().map(|counter| *counter)
    }

    fn counters_mut(&mut self) -> [&mut u64; COUNTERS] {
        let Self { grants, releases, held_us, expiries, purges, waited_us, .. } = self;
        let single = [grants, releases, held_us, expiries, purges, waited_us];
        let listed =
            self.holds.iter_mut().chain(&mut self.refusals_by_cause).chain(&mut self.waits);
        let mut all = single.into_iter().chain(listed);
        std::array::from_fn(|_| all.next().expect("invariant: the sum of the lengths"))
    }
}

/// The number of counters of a pool.
const COUNTERS: usize =
    6 + HOLD_BUCKETS_US.len() + 1 + NoKeyCause::ALL.len() + WAIT_BUCKETS_US.len() + 1;

/// Returns the first bucket whose upper bound is not below the value.
#[inline]
fn bucket<const N: usize>(bounds: &[u64; N], value: u64) -> usize {
    bounds.partition_point(|&bound| bound < value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_first_bucket_whose_bound_is_not_below_it() {
        let mut activity = PoolActivity::default();
        for held_us in [0, 10_000, 10_001, 86_400_000_000, 86_400_000_001, u64::MAX >> 8] {
            activity.count_release(held_us);
        }
        assert_eq!(activity.holds, [2, 1, 0, 0, 0, 0, 0, 0, 1, 2]);
        activity.count_expiry(60_000_000);
        assert_eq!((activity.releases, activity.expiries, activity.holds[4]), (6, 1, 1));
    }

    #[test]
    fn a_grant_without_a_wait_is_in_the_first_bucket_of_the_waits() {
        let mut activity = PoolActivity { grants: 7, ..PoolActivity::default() };
        activity.count_wait(500);
        activity.count_wait(2_000_000);
        assert_eq!(activity.waits_of_all_grants(), [6, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(activity.waited_us, 2_000_500);
    }

    #[test]
    fn each_cause_has_its_own_counter() {
        let mut activity = PoolActivity::default();
        for (index, cause) in NoKeyCause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, index, "{cause:?}");
            (0..=index).for_each(|_| activity.count_refusal(cause));
        }
        activity.uncount_refusal(NoKeyCause::ALL[1]);
        assert_eq!(NoKeyCause::ALL.map(|cause| activity.refused(cause))[..3], [1, 1, 3]);
        let all = u64::try_from(NoKeyCause::ALL.len()).unwrap();
        assert_eq!(activity.refusals(), all * (all + 1) / 2 - 1);
    }

    #[test]
    fn the_difference_contains_every_counter_and_a_pool_that_began_again_counts_in_full() {
        let mut before = PoolActivity::default();
        let mut number = 0;
        for counter in before.counters_mut() {
            number += 1;
            *counter = number;
        }
        let mut now = before;
        now.add(&before);
        assert_eq!(now.since(&before), before);
        let again = PoolActivity { grants: 1, ..PoolActivity::default() };
        assert_eq!(again.since(&before), again);
        assert_eq!(
            size_of::<PoolActivity>(),
            COUNTERS * size_of::<u64>(),
            "no counter is left out"
        );
    }
}
