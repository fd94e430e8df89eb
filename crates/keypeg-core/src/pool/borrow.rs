//! In whose names this pool lends and is waited for: what it adds to the server's counts, and takes
//! from them at every end.
//!
//! A lease is counted from its grant, or from when somebody joined the line for it, until it ends,
//! however it does. What the pool counts it keeps beside, so that it can leave with one look at each
//! borrower, not at each lease.

use super::Pool;
use crate::borrowers::{Borrower, Borrowers};
use crate::numbers::BorrowerId;
use crate::refusal::Refusal;
use crate::shared::SharedState;

impl Pool {
    /// Refuses a borrower who has as many leases as it may. One that is over and not ended yet still
    /// counts: where something is due, [`Pools::on`](crate::Pools::on) tells that it settles.
    pub(super) fn may_borrow(ledger: &SharedState, borrower: Borrower) -> Result<(), Refusal> {
        let passed = borrower.passed(|id| ledger.borrowers.has(id));
        passed.map_or(Ok(()), |max| Err(Refusal::TooManyLeases { max }))
    }

    /// KeyCounts a lease, or a wait for one, in its borrower's name.
    pub(super) fn count(&mut self, ledger: &mut SharedState, borrower: BorrowerId) {
        self.borrowers.add(borrower);
        ledger.borrowers.add(borrower);
    }

    pub(super) fn count_less(&mut self, ledger: &mut SharedState, borrower: BorrowerId) {
        self.borrowers.remove(borrower);
        ledger.borrowers.remove(borrower);
    }

    /// KeyCounts this pool's leases and waits no more: it is removed. O(borrowers in it).
    pub(crate) fn leave_borrowers(&self, ledger: &mut SharedState) {
        ledger.borrowers.remove_all(&self.borrowers);
    }

    pub(crate) fn borrowers(&self) -> &Borrowers {
        &self.borrowers
    }
}
