//! The borrowers of this pool: what it adds to the shared counts, and subtracts at every end.
//!
//! A lease counts from its grant, or from when its request joined the wait queue, until it ends in
//! any way. The pool keeps its own counts beside the shared ones, so that its deletion does not look
//! at its leases.

use super::Pool;
use crate::borrowers::{Borrower, Borrowers};
use crate::numbers::BorrowerId;
use crate::refusal::Refusal;
use crate::shared::SharedState;

impl Pool {
    /// Refuses a borrower whose limit of leases is reached. A lease that is due still counts: where
    /// something is due, [`Pools::with_pool`](crate::Pools::with_pool) returns
    /// [`Refusal::Settling`] instead.
    pub(super) fn check_borrower(shared: &SharedState, borrower: Borrower) -> Result<(), Refusal> {
        let reached = borrower.reached_limit(|id| shared.borrowers.count(id));
        reached.map_or(Ok(()), |max| Err(Refusal::TooManyLeases { max }))
    }

    /// Counts a lease, or a wait for one, for its borrower.
    pub(super) fn count_lease(&mut self, shared: &mut SharedState, borrower: BorrowerId) {
        self.borrowers.add(borrower);
        shared.borrowers.add(borrower);
    }

    pub(super) fn uncount_lease(&mut self, shared: &mut SharedState, borrower: BorrowerId) {
        self.borrowers.remove(borrower);
        shared.borrowers.remove(borrower);
    }

    /// Subtracts this pool's leases and waits, because the pool is deleted. O(1) for many borrowers.
    pub(crate) fn uncount_borrowers(&mut self, shared: &mut SharedState) {
        shared.borrowers.remove_all(std::mem::take(&mut self.borrowers));
    }

    pub(crate) fn borrowers(&self) -> &Borrowers {
        &self.borrowers
    }
}
