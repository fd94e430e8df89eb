//! Waiting for a key: whatever makes a key available gives it to the first in line within the same
//! step, so after a step nobody waits while a key is free and settled.
//!
//! A hand-over is a grant like any other, with its fact. A waiter whose time is over is refused
//! only when nothing of the pool is due: never a false "none".

use super::{AcquireOptions, Granted, Pool, StepContext};
use crate::clocks::{US_PER_MS, after};
use crate::key::{LeaseView, Secret};
use crate::numbers::WaiterId;
use crate::policy::PoolName;
use crate::refusal::Refusal;
use crate::sabotage::{TestLimit, limit};
use crate::shared::{SharedState, WAITERS_MAX, WaitOutcome};
use crate::wait_queue::{WaitQueue, Waiter};

/// A key that was lent to somebody who waited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantedLease {
    /// The pool.
    pub pool: PoolName,
    /// The lease.
    pub lease: LeaseView,
    /// The key's value.
    pub value: Secret,
    /// How long it was waited for, in milliseconds; never more than that.
    pub waited_ms: u64,
}

/// How long a request may wait, and the name by which its outcome is reported.
#[derive(Clone, Copy, Debug)]
pub struct WaitOptions {
    /// The caller's name for the request.
    pub waiter_id: WaiterId,
    /// How long it may wait, in milliseconds; 0 means not at all.
    pub wait_ms: u64,
}

fn waiters_max() -> usize {
    let max = limit(TestLimit::Waiters, WAITERS_MAX as u64);
    usize::try_from(max).expect("invariant: it fits, or is made smaller")
}

impl Pool {
    /// How many wait for a key. O(1).
    pub fn waiter_count(&self) -> u64 {
        self.line.len() as u64
    }

    /// Lends a free key as [`Pool::acquire`] does, or puts the asker in line for `wait_ms`, known
    /// by `waiter_id`: then it gives `None`, and the outcome comes from
    /// [`Pools::drain_wait_outcomes`](crate::Pools::drain_wait_outcomes). O(log n).
    pub fn acquire_or_wait(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        wish: &AcquireOptions<'_>,
        wait: WaitOptions,
    ) -> Result<Option<Granted>, Refusal> {
        match self.acquire(ledger, step, wish) {
            Ok(lent) => Ok(Some(lent)),
            Err(Refusal::NoKey { .. }) if wait.wait_ms > 0 => {
                let waiter = Waiter::new(wait.waiter_id, step.now.lease_us, wish);
                self.join(ledger, waiter, wait_until(step, wait.wait_ms)).map(|_| None)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Puts somebody in line until a time; gives the place.
    pub(super) fn join(
        &mut self,
        ledger: &mut SharedState,
        waiter: Waiter,
        until_us: u64,
    ) -> Result<u32, Refusal> {
        let max = waiters_max();
        if ledger.waiters.len() >= max {
            return Err(Refusal::WaitQueueFull { max });
        }
        self.count(ledger, waiter.borrower);
        let waiter_id = waiter.waiter_id;
        let at = self.line.join(waiter, until_us);
        ledger.waiters.insert(waiter_id, (self.seat, at));
        Ok(at)
    }

    /// Takes whoever stands at this place out of line.
    fn depart(&mut self, ledger: &mut SharedState, at: u32) -> Waiter {
        let waiter = self.line.leave(at);
        self.count_less(ledger, waiter.borrower);
        ledger.waiters.remove(&waiter.waiter_id);
        if let Some(asked) = &waiter.asked {
            self.replays.waiting.remove(&asked.id);
        }
        waiter
    }

    /// Takes somebody out of line; false when no such one is in this line. O(log n).
    pub(crate) fn leave(&mut self, ledger: &mut SharedState, at: u32, waiter_id: WaiterId) -> bool {
        let here = self.line.has(at, waiter_id);
        if here {
            self.depart(ledger, at);
        }
        here
    }

    /// Takes the whole line away: of a pool that is removed.
    pub(crate) fn take_line(&mut self) -> WaitQueue {
        self.replays.waiting.clear();
        std::mem::take(&mut self.line)
    }

    /// Sends the whole line away: whoever waits is told elsewhere. O(waiters).
    pub(crate) fn drop_line(&mut self, ledger: &mut SharedState) {
        let line = self.take_line();
        for borrower in line.borrowers() {
            self.count_less(ledger, borrower);
        }
    }

    /// Gives free keys to those in line, in their order. Bounded by the keys that became free
    /// since the last step; what must be purged on the way costs the budget.
    pub(crate) fn serve_line(&mut self, ledger: &mut SharedState, step: &mut StepContext<'_>) {
        while let Some(first) = self.line.first() {
            // Nothing is free, or more is due than the turn may settle.
            let Ok(slot) = self.draw(ledger, step) else { return };
            let waiter = self.depart(ledger, first);
            // The policy may have changed since: no grant is longer than it says.
            let most_ms = self.policy.lease_ttl_ms;
            let ttl_us = waiter.ttl_ms.map_or(most_ms, |ms| ms.min(most_ms)) * US_PER_MS;
            let wish = (ttl_us, waiter.holder.as_deref(), waiter.borrower);
            let Granted { lease, value, .. } = self.grant(ledger, step, slot, wish);
            if let Some(asked) = waiter.asked {
                self.keep_grant(ledger, step, *asked, &lease);
            }
            let waited_ms = (step.now.lease_us - waiter.since_us) / US_PER_MS;
            let lent = GrantedLease { pool: self.name.clone(), lease, value, waited_ms };
            ledger.handed.push(WaitOutcome { waiter_id: waiter.waiter_id, outcome: Ok(lent) });
        }
    }

    /// Refuses those whose time is over. To be called after all else was settled: with budget left,
    /// nothing of the pool is due that could still give them a key.
    pub(super) fn settle_waits(&mut self, ledger: &mut SharedState, step: &mut StepContext<'_>) {
        while let Some((until_us, at)) = self.line.next_end()
            && until_us <= step.now.lease_us
            && step.budget > 0
        {
            debug_assert!(!self.key_is_due(step.now), "settled before");
            step.budget -= 1;
            let refusal = self.no_key(ledger, step);
            let waiter_id = self.depart(ledger, at).waiter_id;
            ledger.handed.push(WaitOutcome { waiter_id, outcome: Err(refusal) });
        }
    }
}

/// When a wait that begins now is over.
pub(super) fn wait_until(step: &StepContext<'_>, wait_ms: u64) -> u64 {
    after(step.now.lease_us, wait_ms.saturating_mul(US_PER_MS))
}
