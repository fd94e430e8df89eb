//! Expiry: time ends leases and rests on lease time and keys on serving time, each at its deadline
//! and never before.
//!
//! Each expiry costs one of the step's budget, except for the key that a call names. While no fact
//! can be stored, nothing is expired in memory, but requests still treat due leases and keys as
//! ended.

use super::Pool;
use crate::clocks::{Now, after};
use crate::event::Event;
use crate::fact::Fact;
use crate::holds::{Hold, Rest};
use crate::ids::LeaseId;
use crate::indices::{HoldIndex, SlotIndex};
use crate::key::KeyState;
use crate::refusal::{EndCause, Refusal};
use crate::sabotage::{Sabotage, enabled};
use crate::shared::SharedState;
use crate::step::StepContext;

impl Pool {
    /// Ends what is due, within the step's budget. O(log n) for each.
    pub fn expire(&mut self, shared: &mut SharedState, step: &mut StepContext<'_>) {
        self.expire_holds(shared, step);
        self.expire_keys(shared, step);
        self.serve_wait_queue(shared, step);
        self.expire_waits(shared, step);
    }

    /// Returns whether anything in this pool is due.
    pub(crate) fn has_due(&self, now: Now) -> bool {
        self.next_lease_deadline_us().is_some_and(|at_us| now.has_expired(at_us))
            || self.has_due_keys(now)
    }

    /// Returns whether a lease, a rest or a key of this pool is due.
    pub(super) fn has_due_holds_or_keys(&self, now: Now) -> bool {
        !enabled(Sabotage::FalseNone) && (self.has_due_holds(now) || self.has_due_keys(now))
    }

    #[inline]
    fn has_due_holds(&self, now: Now) -> bool {
        self.next_hold_end_us().is_some_and(|at_us| now.has_expired(at_us))
    }

    pub(super) fn has_due_keys(&self, now: Now) -> bool {
        self.next_purge_us().is_some_and(|at_us| now.is_purge_due(at_us))
    }

    /// Returns the next deadline in lease time: the end of a lease, a rest or a wait.
    #[inline]
    pub(crate) fn next_lease_deadline_us(&self) -> Option<u64> {
        let wait_end_us = self.next_wait_end().map(|(at_us, _)| at_us);
        match (self.next_hold_end_us(), wait_end_us) {
            (Some(hold_us), Some(wait_us)) => Some(hold_us.min(wait_us)),
            (hold_us, wait_us) => hold_us.or(wait_us),
        }
    }

    pub(super) fn expire_holds(&mut self, shared: &mut SharedState, step: &mut StepContext<'_>) {
        while let Some((at_us, hold)) = self.hold_ends.first()
            && step.now.has_expired(at_us)
            && step.budget > 0
        {
            step.budget -= 1;
            self.end_hold(shared, step, hold, at_us);
        }
    }

    pub(super) fn expire_keys(&mut self, shared: &mut SharedState, step: &mut StepContext<'_>) {
        while let Some((at_us, slot)) = self.key_ends.first()
            && step.now.is_purge_due(at_us)
            && step.budget > 0
        {
            step.budget -= 1;
            self.purge(shared, step, slot);
        }
    }

    /// Ends the due lease or rest of one key. Returns false when the key itself was due.
    pub(super) fn expire_key(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        slot: SlotIndex,
    ) -> bool {
        // Usually no key is due, and then the key's own deadline, a cache miss, is not read.
        if self.has_due_keys(step.now)
            && step.now.is_purge_due(self.key_ends.deadline(slot, &self.slots))
        {
            if !shared.clocks_frozen {
                self.purge(shared, step, slot);
            }
            return false;
        }
        while !shared.clocks_frozen
            && matches!(self.slots.state(slot), Some(KeyState::Leased | KeyState::Resting))
        {
            let hold = self.slots.hold(slot);
            let at_us = self.hold_ends.deadline(hold, &self.holds);
            if !step.now.has_expired(at_us) {
                break;
            }
            self.end_hold(shared, step, hold, at_us);
        }
        true
    }

    /// Finds the hold of a lease that runs at this instant.
    pub(super) fn running_hold(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        lease: LeaseId,
    ) -> Result<HoldIndex, Refusal> {
        if !shared.ids.has_issued(self.id, lease) {
            return Err(Refusal::LeaseEnded { cause: None });
        }
        if let Some(hold) = self.holds.find_by_token(lease.token()) {
            let slot = self.holds.get(hold).slot;
            // Usually nothing is due, and then the lease's own deadline is not read.
            if !self.has_due_keys(step.now)
                && !self.has_due_holds(step.now)
                && self.slots.state(slot) == Some(KeyState::Leased)
            {
                return Ok(hold);
            }
            let key_exists = self.expire_key(shared, step, slot);
            let leased = key_exists && self.slots.state(slot) == Some(KeyState::Leased);
            let cannot_end = shared.clocks_frozen
                && (!key_exists
                    || step.now.has_expired(self.hold_ends.deadline(hold, &self.holds)));
            if cannot_end {
                return Err(Refusal::StorageFull);
            }
            if leased {
                return Ok(hold);
            }
        } else if let Some(ended) = shared.ended_leases.find(lease.token())
            && self.state_after(ended).is_some()
        {
            // The cause depends on the present state of the key, so its due lease or rest ends
            // first.
            self.expire_key(shared, step, ended.slot);
            if enabled(Sabotage::ReleaseWhoeverHolds)
                && self.state_after(ended) == Some(KeyState::Leased)
            {
                return Ok(self.slots.hold(ended.slot));
            }
        }
        Err(Refusal::LeaseEnded { cause: self.end_cause(shared, lease.token()) })
    }

    /// Ends a hold that is due: a lease, after which the key rests if the grant said so, or a rest.
    fn end_hold(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        hold: HoldIndex,
        at_us: u64,
    ) {
        step.ended_by_time = true;
        let Hold { slot, token, rest_us, granted_us, .. } = *self.holds.get(hold);
        let leased = self.slots.state(slot) == Some(KeyState::Leased);
        let is_draining = self.slots.is_draining(slot);
        let rests = leased && rest_us > 0 && !is_draining;
        let rest_until_us = if rests { after(at_us, rest_us) } else { 0 };
        if leased {
            self.activity.count_expiry(at_us.saturating_sub(granted_us));
            let rest = Rest { until_us: rest_until_us, reason: None };
            self.end_lease(shared, &self.ending_lease(hold), rest, EndCause::Expired);
        } else {
            self.make_available(shared, slot, EndCause::Expired);
        }
        self.emit(step, || {
            let key = self.key_id(&shared.ids, slot);
            if leased {
                Event::Expired { key, token, rest_until_us }
            } else {
                Event::KeyFreed { key, was: KeyState::Resting }
            }
        });
        if is_draining {
            self.emit_quarantined(shared, step, slot, KeyState::Available);
        }
    }

    /// Removes a key that is due, because no client kept it alive.
    pub(super) fn purge(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        slot: SlotIndex,
    ) {
        let number = self.slots.number(slot);
        self.activity.purges += 1;
        let (key, was, _) = self.remove_key(shared, slot);
        if !enabled(Sabotage::ForgetPurge) {
            step.facts.record(&Fact::KeyPurged { pool: self.id, key: number });
        }
        self.emit(step, || Event::Purged { key, was });
    }
}
