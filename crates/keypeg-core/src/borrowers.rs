//! Borrowers, and how much each one has: of leases, the number of leases and of requests that wait
//! for one; of stored answers, their weight.
//!
//! What has no borrower is not counted. A borrower that has nothing takes no memory, so a table is
//! bounded by the number of things that it counts. Knows nothing of how a client proves its name.

use crate::numbers::BorrowerId;
use hashbrown::HashMap;

/// Entries for which an empty table keeps its memory.
const KEPT_MAX: usize = 16;

/// The name that a lease counts for, and how many leases that name may have at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Borrower {
    pub(crate) id: BorrowerId,
    max: Option<u32>,
}

impl Borrower {
    /// Returns the borrower of that name. Its leases are counted even without a limit, because a
    /// limit may be set later.
    pub fn new(name: &str, max: Option<u32>) -> Self {
        let digest = blake3::hash(name.as_bytes());
        let (head, _) =
            digest.as_bytes().split_first_chunk::<8>().expect("invariant: a digest has 32 bytes");
        // 56 bits take 8 bytes as a varint in the journal.
        Self { id: BorrowerId((u64::from_le_bytes(*head) >> 8).max(1)), max }
    }

    /// Returns the number under which the leases are counted; the journal stores it.
    pub fn id(self) -> BorrowerId {
        self.id
    }

    /// Returns the most leases and waiting requests at once; `None` means without limit.
    pub fn max(self) -> Option<u32> {
        self.max
    }

    /// Returns the limit if it is reached. Calls `lease_count` only where a limit is set.
    pub(crate) fn reached_limit(self, lease_count: impl FnOnce(BorrowerId) -> u64) -> Option<u32> {
        self.max.filter(|max| lease_count(self.id) >= u64::from(*max))
    }
}

/// Borrowers of a deleted pool that are subtracted at once.
const AT_ONCE_MAX: usize = 1_024;
/// Deleted pools whose borrowers can wait to be subtracted.
const REMOVED_MAX: usize = 16;

type Counts = HashMap<BorrowerId, u64, foldhash::fast::RandomState>;

/// The number of leases, or the weight of stored answers, of each borrower.
#[derive(Clone, Debug, Default)]
pub(crate) struct Borrowers {
    counts: Counts,
    /// What deleted pools counted, as far as it is not subtracted from `counts` yet.
    removed: Vec<Counts>,
}

impl Borrowers {
    /// Returns the count of a borrower. O(1): few deleted pools wait to be subtracted.
    pub(crate) fn count(&self, id: BorrowerId) -> u64 {
        let count_in = |counts: &Counts| counts.get(&id).copied().unwrap_or(0);
        let removed: u64 = self.removed.iter().map(count_in).sum();
        count_in(&self.counts) - removed
    }

    /// Counts one lease more.
    pub(crate) fn add(&mut self, id: BorrowerId) {
        self.add_many(id, 1);
    }

    /// Counts this number more.
    pub(crate) fn add_many(&mut self, id: BorrowerId, count: u64) {
        if id != BorrowerId::NONE {
            *self.counts.entry(id).or_insert(0) += count;
        }
    }

    /// Counts one lease less.
    #[inline]
    pub(crate) fn remove(&mut self, id: BorrowerId) {
        self.remove_many(id, 1);
    }

    /// Counts this number less.
    #[inline]
    pub(crate) fn remove_many(&mut self, id: BorrowerId, count: u64) {
        if id != BorrowerId::NONE {
            self.subtract(id, count);
        }
    }

    /// Subtracts all counts of `others`: few of them at once, many within later calls of
    /// [`Self::settle`]. Until then, [`Self::count`] subtracts them.
    pub(crate) fn remove_all(&mut self, others: Self) {
        debug_assert!(others.removed.is_empty(), "a pool subtracts its own at once");
        if others.counts.is_empty() {
            return;
        }
        self.removed.push(others.counts);
        let last = self.removed.last().map_or(0, Counts::len);
        if last <= AT_ONCE_MAX || self.removed.len() > REMOVED_MAX {
            self.settle(last);
        }
    }

    /// Subtracts what deleted pools counted, at most `max` borrowers, the last pool first.
    pub(crate) fn settle(&mut self, max: usize) {
        let Some(mut removed) = self.removed.pop() else { return };
        let taken: Vec<_> = removed.extract_if(|_, _| true).take(max).collect();
        for (id, count) in taken {
            self.subtract(id, count);
        }
        if !removed.is_empty() {
            self.removed.push(removed);
        }
    }

    fn subtract(&mut self, id: BorrowerId, count: u64) {
        let counted = self.counts.get_mut(&id).expect("invariant: what ends was counted");
        *counted -= count;
        if *counted == 0 {
            self.counts.remove(&id);
            if self.counts.is_empty() && self.counts.capacity() > KEPT_MAX {
                // Frees a large table; a small one would be allocated again at the next grant.
                self.counts = HashMap::default();
            }
        }
    }

    pub(crate) fn add_all(&mut self, others: &Self) {
        for (id, count) in &others.counts {
            *self.counts.entry(*id).or_insert(0) += count;
        }
    }
}

/// Compares the counts that [`Borrowers::count`] returns. O(borrowers): for tests.
impl PartialEq for Borrowers {
    fn eq(&self, other: &Self) -> bool {
        let mut ids = self.counts.keys().chain(other.counts.keys());
        ids.all(|id| self.count(*id) == other.count(*id))
    }
}

impl Eq for Borrowers {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borrowers_without_a_lease_take_no_memory() {
        let mut all = Borrowers::default();
        for number in 1..10_000 {
            all.add(BorrowerId(number));
            all.add(BorrowerId::NONE);
        }
        for number in 1..10_000 {
            assert_eq!(all.count(BorrowerId(number)), 1);
            all.remove(BorrowerId(number));
            all.remove(BorrowerId::NONE);
        }
        let capacity = all.counts.capacity();
        assert!(all.counts.is_empty() && capacity <= KEPT_MAX, "{capacity}");
    }

    /// A pool with a million borrowers was deleted, and one turn subtracted all of them.
    #[test]
    fn the_borrowers_of_a_deleted_pool_are_subtracted_in_slices_and_never_count() {
        let count = 10 * AT_ONCE_MAX as u64;
        let [mut all, mut pool] = [Borrowers::default(), Borrowers::default()];
        for number in 1..=count {
            all.add_many(BorrowerId(number), 3);
            pool.add_many(BorrowerId(number), 2);
        }
        all.remove_all(pool);
        assert_eq!(all.removed[0].len() as u64, count, "the deletion subtracts none");
        let mut slices = 0;
        while !all.removed.is_empty() {
            assert!((1..=count).all(|number| all.count(BorrowerId(number)) == 1));
            // What ends meanwhile is another pool's.
            all.remove(BorrowerId(slices + 1));
            all.add(BorrowerId(slices + 1));
            all.settle(1_000);
            slices += 1;
        }
        assert_eq!(slices, count.div_ceil(1_000));
        (1..=count).for_each(|number| all.remove(BorrowerId(number)));
        assert!(all.counts.is_empty());
        let mut few = Borrowers::default();
        few.add(BorrowerId(7));
        all.add(BorrowerId(7));
        all.remove_all(few);
        assert!(all.counts.is_empty() && all.removed.is_empty(), "few are subtracted at once");
    }

    #[test]
    fn a_borrower_is_identified_by_its_name() {
        let [a, b] = ["a", "b"].map(|name| Borrower::new(name, None));
        assert_eq!(Borrower::new("a", Some(3)).id, a.id);
        assert_ne!(a.id, b.id);
        assert!((1..1 << 56).contains(&a.id.0), "8 bytes in the journal");
        assert_eq!(a.reached_limit(|_| u64::MAX), None);
        let limited = Borrower::new("a", Some(3));
        let reached = [2, 3, 4].map(|count| limited.reached_limit(|_| count));
        assert_eq!(reached, [None, Some(3), Some(3)]);
    }
}
