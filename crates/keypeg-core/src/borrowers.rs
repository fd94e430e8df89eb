//! In whose name keys are lent, and how many leases each name has: running ones and those that are
//! waited for.
//!
//! Leases in nobody's name are not counted. A name without a lease takes no memory, so what is kept
//! is bounded by the leases there are. Knows nothing of how somebody proves to be who.

use crate::numbers::BorrowerId;
use hashbrown::HashMap;

/// Names whose room is kept when none has a lease.
const KEPT_MAX: usize = 16;

/// In whose name a key is lent, and how many leases that name may have at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Borrower {
    /// Which name: a part of its digest; 0 is nobody's.
    pub(crate) id: BorrowerId,
    max: Option<u32>,
}

impl Borrower {
    /// The borrower of that name. Without a bound it is counted all the same: one may come later.
    pub fn new(name: &str, max: Option<u32>) -> Self {
        let digest = blake3::hash(name.as_bytes());
        let (head, _) =
            digest.as_bytes().split_first_chunk::<8>().expect("invariant: a digest has 32 bytes");
        // 56 bits are 8 bytes in a journal.
        Self { id: BorrowerId((u64::from_le_bytes(*head) >> 8).max(1)), max }
    }

    /// The most leases it may have, where it has as many; what it has is only asked where there is a
    /// bound.
    pub(crate) fn passed(self, has: impl FnOnce(BorrowerId) -> u64) -> Option<u32> {
        self.max.filter(|max| has(self.id) >= u64::from(*max))
    }
}

/// How many leases each borrower has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Borrowers(HashMap<BorrowerId, u64, foldhash::fast::RandomState>);

impl Borrowers {
    pub(crate) fn has(&self, id: BorrowerId) -> u64 {
        self.0.get(&id).copied().unwrap_or(0)
    }

    /// KeyCounts one more.
    pub(crate) fn add(&mut self, id: BorrowerId) {
        if id != BorrowerId::NONE {
            *self.0.entry(id).or_insert(0) += 1;
        }
    }

    /// KeyCounts one less.
    pub(crate) fn remove(&mut self, id: BorrowerId) {
        if id != BorrowerId::NONE {
            self.take(id, 1);
        }
    }

    /// KeyCounts all that `others` count no more. O(borrowers among them).
    pub(crate) fn remove_all(&mut self, others: &Self) {
        for (id, count) in &others.0 {
            self.take(*id, *count);
        }
    }

    fn take(&mut self, id: BorrowerId, count: u64) {
        let has = self.0.get_mut(&id).expect("invariant: what ends was counted");
        *has -= count;
        if *has == 0 {
            self.0.remove(&id);
            if self.0.is_empty() && self.0.capacity() > KEPT_MAX {
                // The memory of many goes with them; that of few is taken again at the next grant.
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
    fn names_without_a_lease_take_no_memory() {
        let mut all = Borrowers::default();
        for number in 1..10_000 {
            all.add(BorrowerId(number));
            all.add(BorrowerId::NONE);
        }
        for number in 1..10_000 {
            assert_eq!(all.has(BorrowerId(number)), 1);
            all.remove(BorrowerId(number));
            all.remove(BorrowerId::NONE);
        }
        assert!(all.0.is_empty() && all.0.capacity() <= KEPT_MAX, "{}", all.0.capacity());
    }

    #[test]
    fn a_borrower_is_its_name() {
        let [a, b] = ["a", "b"].map(|name| Borrower::new(name, None));
        assert_eq!(Borrower::new("a", Some(3)).id, a.id);
        assert_ne!(a.id, b.id);
        assert!((1..1 << 56).contains(&a.id.0), "8 bytes in a journal");
        assert_eq!(a.passed(|_| u64::MAX), None);
        let few = Borrower::new("a", Some(3));
        assert_eq!([2, 3, 4].map(|has| few.passed(|_| has)), [None, Some(3), Some(3)]);
    }
}
