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

/// The number of leases, or the weight of stored answers, of each borrower.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Borrowers(HashMap<BorrowerId, u64, foldhash::fast::RandomState>);

impl Borrowers {
    pub(crate) fn count(&self, id: BorrowerId) -> u64 {
        self.0.get(&id).copied().unwrap_or(0)
    }

    /// Counts one lease more.
    pub(crate) fn add(&mut self, id: BorrowerId) {
        self.add_many(id, 1);
    }

    /// Counts this number more.
    pub(crate) fn add_many(&mut self, id: BorrowerId, count: u64) {
        if id != BorrowerId::NONE {
            *self.0.entry(id).or_insert(0) += count;
        }
    }

    /// Counts one lease less.
    pub(crate) fn remove(&mut self, id: BorrowerId) {
        self.remove_many(id, 1);
    }

    /// Counts this number less.
    pub(crate) fn remove_many(&mut self, id: BorrowerId, count: u64) {
        if id != BorrowerId::NONE {
            self.subtract(id, count);
        }
    }

    /// Subtracts all counts of `others`. O(borrowers in `others`).
    pub(crate) fn remove_all(&mut self, others: &Self) {
        for (id, count) in &others.0 {
            self.subtract(*id, *count);
        }
    }

    fn subtract(&mut self, id: BorrowerId, count: u64) {
        let counted = self.0.get_mut(&id).expect("invariant: what ends was counted");
        *counted -= count;
        if *counted == 0 {
            self.0.remove(&id);
            if self.0.is_empty() && self.0.capacity() > KEPT_MAX {
                // Frees a large table; a small one would be allocated again at the next grant.
                self.0 = HashMap::default();
            }
        }
    }

    pub(crate) fn add_all(&mut self, others: &Self) {
        for (id, count) in &others.0 {
            *self.0.entry(*id).or_insert(0) += count;
        }
    }
}

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
        assert!(all.0.is_empty() && all.0.capacity() <= KEPT_MAX, "{}", all.0.capacity());
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
