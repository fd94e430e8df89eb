//! Waiting for a key: a step that makes a key available grants it to the first waiter in the same
//! step, so after a step no request waits while a key is available and not due.
//!
//! Such a grant is like any other, with its fact. A waiter whose wait has expired is refused only
//! when nothing in the pool is due, so that it is never refused wrongly. A draining pool grants no
//! key: it accepts no waiter, and all its waits have expired.

use super::{LeaseTerms, Pool};
use crate::clocks::{US_PER_MS, after};
use crate::heap::Changed;
use crate::indices::WaiterIndex;
use crate::lease::{AcquireOptions, Granted, WaitOptions};
use crate::numbers::WaiterId;
use crate::refusal::{NoKeyCause, Refusal};
use crate::sabotage::{Sabotage, TestLimit, enabled, limit};
use crate::shared::{SharedState, WAITERS_MAX, WaiterLocation};
use crate::step::StepContext;
use crate::wait_outcome::{GrantedLease, WaitOutcome};
use crate::wait_queue::{WaitQueue, Waiter};

fn waiters_max() -> usize {
    let max = limit(TestLimit::Waiters, WAITERS_MAX as u64);
    usize::try_from(max).expect("invariant: it fits, or is lowered")
}

impl Pool {
    /// Returns the number of waiting requests. O(1).
    pub fn waiter_count(&self) -> u64 {
        self.wait_queue.len() as u64
    }

    /// Grants an available key as [`Pool::acquire`] does, or appends the request to the wait queue
    /// and returns `None`; then [`Pools::drain_wait_outcomes`](crate::Pools::drain_wait_outcomes)
    /// returns the outcome. O(log n).
    pub fn acquire_or_wait(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        options: &AcquireOptions<'_>,
        wait: WaitOptions,
    ) -> Result<Option<Granted>, Refusal> {
        match self.acquire(shared, step, options) {
            Ok(granted) => Ok(Some(granted)),
            Err(Refusal::NoKey { cause, .. }) if wait.wait_ms > 0 && cause.allows_wait() => {
                let waiter = Waiter::new(wait.waiter_id, step.now.lease_us, options, None);
                self.enqueue(shared, waiter, wait_end_us(step, wait), cause).map(|_| None)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Appends a waiter to the wait queue, until a deadline. `cause` is why no key was available.
    pub(super) fn enqueue(
        &mut self,
        shared: &mut SharedState,
        waiter: Waiter,
        until_us: u64,
        cause: NoKeyCause,
    ) -> Result<WaiterIndex, Refusal> {
        let max = waiters_max();
        if shared.waiters.len() >= max {
            return Err(Refusal::WaitQueueFull { max });
        }
        Self::check_waiter_memory(shared, waiter.holder.as_deref())?;
        // It was refused as a request that does not wait, and is not refused yet.
        self.activity.uncount_refusal(cause);
        self.note_change(Changed::OTHER);
        self.count_lease(shared, waiter.borrower);
        let waiter_id = waiter.id;
        let waiter = self.wait_queue.push_back(waiter, until_us);
        shared.waiters.insert(waiter_id, WaiterLocation { pool: self.index, waiter });
        Ok(waiter)
    }

    fn remove_waiter(&mut self, shared: &mut SharedState, index: WaiterIndex) -> Waiter {
        self.note_change(Changed::OTHER);
        let waiter = self.wait_queue.remove(index);
        self.uncount_lease(shared, waiter.borrower);
        shared.waiters.remove(&waiter.id);
        if let Some(request) = &waiter.request {
            self.idempotency.waiting.remove(&request.id);
        }
        waiter
    }

    /// Removes a waiter; returns false when `waiter_id` is not at `index` in this queue. O(log n).
    pub(crate) fn cancel_wait(
        &mut self,
        shared: &mut SharedState,
        index: WaiterIndex,
        waiter_id: WaiterId,
    ) -> bool {
        let is_here = self.wait_queue.is_at(index, waiter_id);
        if is_here {
            self.remove_waiter(shared, index);
        }
        is_here
    }

    /// Returns the wait queue and leaves an empty one, because the pool is deleted.
    pub(crate) fn take_wait_queue(&mut self) -> WaitQueue {
        self.note_change(Changed::OTHER);
        self.idempotency.waiting.clear();
        std::mem::take(&mut self.wait_queue)
    }

    /// Removes all waiters; the caller reports their outcome. O(waiters).
    pub(crate) fn clear_wait_queue(&mut self, shared: &mut SharedState) {
        let queue = self.take_wait_queue();
        for borrower in queue.borrowers() {
            self.uncount_lease(shared, borrower);
        }
    }

    /// Serves the wait queue before a new request. Returns whether requests still wait, which are
    /// served first.
    pub(super) fn serve_earlier_waiters(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
    ) -> bool {
        if enabled(Sabotage::NewcomerFirst) {
            return false;
        }
        self.serve_wait_queue(shared, step);
        !self.wait_queue.is_empty()
    }

    /// Grants available keys to waiters, in order. Bounded by the keys that became available since
    /// the last step; purging due keys on the way costs the budget.
    #[inline]
    pub(crate) fn serve_wait_queue(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
    ) {
        if !self.wait_queue.is_empty() {
            self.serve_waiters(shared, step);
        }
    }

    fn serve_waiters(&mut self, shared: &mut SharedState, step: &mut StepContext<'_>) {
        while let Some(head) = self.wait_queue.head() {
            // Without a key, none is available or the budget is spent.
            let Ok(slot) = self.draw_key(shared, step) else { return };
            let waiter = self.remove_waiter(shared, head);
            // The policy may have changed during the wait: no grant exceeds its TTL.
            let max_ms = self.policy.lease_ttl_ms;
            let terms = LeaseTerms {
                ttl_us: waiter.ttl_ms.map_or(max_ms, |ms| ms.min(max_ms)) * US_PER_MS,
                holder: waiter.holder.as_deref(),
                borrower: waiter.borrower,
            };
            let Granted { lease, value, .. } = self.grant(shared, step, slot, terms);
            if let Some(request) = waiter.request {
                self.store_grant(shared, step, *request, &lease);
            }
            let wait_us = step.now.lease_us - waiter.since_us;
            self.activity.count_wait(wait_us);
            let waited_ms = wait_us / US_PER_MS;
            let granted = GrantedLease { pool: self.name.clone(), lease, value, waited_ms };
            let (waiter_id, outcome) = (waiter.id, Ok(granted));
            shared.wait_outcomes.push(WaitOutcome { waiter_id, outcome });
        }
    }

    /// Returns which waiter is refused next, and when, in lease time; in a draining pool the first
    /// one, at once. O(1).
    pub(super) fn next_wait_end(&self) -> Option<(u64, WaiterIndex)> {
        let next = self.wait_queue.next_deadline()?;
        if !self.policy.draining {
            return Some(next);
        }
        self.wait_queue.head().map(|waiter| (0, waiter))
    }

    /// Refuses the waiters whose wait has expired. Runs after all other expiry of the pool: with
    /// budget left, nothing is due that could still provide a key.
    pub(super) fn expire_waits(&mut self, shared: &mut SharedState, step: &mut StepContext<'_>) {
        while let Some((until_us, waiter)) = self.next_wait_end()
            && step.now.has_expired(until_us)
            && step.budget > 0
        {
            debug_assert!(!self.has_due_holds_or_keys(step.now), "expired before");
            step.budget -= 1;
            let refusal = self.no_key(shared, step);
            let waiter_id = self.remove_waiter(shared, waiter).id;
            shared.wait_outcomes.push(WaitOutcome { waiter_id, outcome: Err(refusal) });
        }
    }
}

/// Returns the end of a wait that begins now.
pub(super) fn wait_end_us(step: &StepContext<'_>, wait: WaitOptions) -> u64 {
    after(step.now.lease_us, wait.wait_ms.saturating_mul(US_PER_MS))
}
