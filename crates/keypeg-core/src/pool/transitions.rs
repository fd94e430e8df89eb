//! The transitions of a key between its states, and the reasons of rest and quarantine.
//!
//! Public calls, expiry and replay share them. The reason of a rest is in its hold, that of a
//! quarantine in `reasons.rs`, that of a draining key in `slot_texts.rs`.

use super::Pool;
use crate::fact::Grant;
use crate::heap::Changed;
use crate::holds::{EndingLease, Hold, Rest};
use crate::indices::{HoldIndex, SlotIndex};
use crate::key::KeyState;
use crate::refusal::EndCause;
use crate::sabotage::{Sabotage, enabled};
use crate::shared::{EndedLease, SharedState};

impl Pool {
    /// Leases a key in any state.
    pub(super) fn start_lease(
        &mut self,
        shared: &mut SharedState,
        slot: SlotIndex,
        token: u64,
        lease: &Grant<'_>,
    ) {
        // A key of every state is detached first, which notes that leases change.
        self.detach(shared, slot, EndCause::Expired);
        self.add_lease(shared, slot, token, lease);
    }

    /// Leases a key that is available.
    pub(super) fn lease_available(
        &mut self,
        shared: &mut SharedState,
        slot: SlotIndex,
        token: u64,
        lease: &Grant<'_>,
    ) {
        self.note_change(Changed::LEASES);
        self.available.remove(slot, &mut self.slots);
        self.add_lease(shared, slot, token, lease);
    }

    /// Leases a key that is removed from the structures of its state.
    fn add_lease(
        &mut self,
        shared: &mut SharedState,
        slot: SlotIndex,
        token: u64,
        lease: &Grant<'_>,
    ) {
        let hold = self.holds.add(Hold::new(slot, token, lease));
        shared.hold_count += 1;
        self.count_lease(shared, lease.borrower);
        self.slots.set_state(slot, KeyState::Leased);
        self.slots.set_hold(slot, hold);
        self.hold_ends.set(hold, lease.until_us, &mut self.holds);
    }

    /// Gives a running lease a later end.
    pub(super) fn extend_lease(&mut self, hold: HoldIndex, until_us: u64) {
        if !enabled(Sabotage::OldTimerEndsLease) {
            self.hold_ends.set(hold, until_us, &mut self.holds);
        }
    }

    /// Returns what the end of a lease needs of it.
    #[inline]
    pub(super) fn ending_lease(&self, hold: HoldIndex) -> EndingLease {
        let Hold { slot, token, granted_us, rest_us, borrower, .. } = *self.holds.get(hold);
        let (key, is_draining) = (self.slots.number(slot), self.slots.is_draining(slot));
        EndingLease { hold, slot, key, token, granted_us, rest_us, is_draining, borrower }
    }

    /// Ends a lease: its key rests, becomes available or, if it is draining, is quarantined. Returns
    /// the holder.
    pub(super) fn end_lease(
        &mut self,
        shared: &mut SharedState,
        lease: &EndingLease,
        rest: Rest<'_>,
        cause: EndCause,
    ) -> Option<Box<str>> {
        let EndingLease { hold, slot, is_draining, .. } = *lease;
        if is_draining {
            return self.end_drain(shared, slot, cause);
        }
        self.note_change(Changed::LEASES);
        self.note_lease_end(shared, lease, cause);
        if rest.until_us != 0 {
            return self.begin_rest(hold, rest);
        }
        let holder = self.remove_hold(shared, hold);
        self.available.insert(slot, &mut self.slots);
        holder
    }

    /// Removes a lease or a rest. Returns the holder or the reason that it had.
    #[inline]
    fn remove_hold(&mut self, shared: &mut SharedState, hold: HoldIndex) -> Option<Box<str>> {
        self.hold_ends.cancel(hold, &mut self.holds);
        shared.hold_count -= 1;
        self.holds.remove(hold)
    }

    /// Lets the key of a lease that has ended rest. Returns the holder.
    pub(super) fn begin_rest(&mut self, hold: HoldIndex, rest: Rest<'_>) -> Option<Box<str>> {
        let slot = self.holds.get(hold).slot;
        self.slots.set_state(slot, KeyState::Resting);
        self.resting += 1;
        self.note_change(Changed::LEASES);
        let holder = self.holds.set_rest_reason(hold, rest.reason);
        self.hold_ends.set(hold, rest.until_us, &mut self.holds);
        holder
    }

    /// Quarantines a key in any state; a lease on it ends for this cause. Returns the holder or the
    /// reason that it had.
    pub(super) fn quarantine(
        &mut self,
        shared: &mut SharedState,
        slot: SlotIndex,
        reason: Option<&str>,
        cause: EndCause,
    ) -> Option<Box<str>> {
        let text = self.detach(shared, slot, cause);
        self.note_change(Changed::OTHER);
        self.slots.set_state(slot, KeyState::Quarantined);
        self.slots.set_reason(slot, self.reasons.add(reason));
        self.quarantined += 1;
        text
    }

    /// Makes a key in any state available. Returns the holder or the reason that it had.
    pub(super) fn make_available(
        &mut self,
        shared: &mut SharedState,
        slot: SlotIndex,
        cause: EndCause,
    ) -> Option<Box<str>> {
        let text = self.detach(shared, slot, cause);
        self.available.insert(slot, &mut self.slots);
        text
    }

    /// Removes a key from the structures of its state; a lease on it ends for this cause. Returns
    /// the holder of the lease, or the reason of the rest.
    pub(super) fn detach(
        &mut self,
        shared: &mut SharedState,
        slot: SlotIndex,
        cause: EndCause,
    ) -> Option<Box<str>> {
        self.note_change(Changed::LEASES);
        match self.slots.state(slot).expect("invariant: a detached key exists") {
            KeyState::Available => self.available.remove(slot, &mut self.slots),
            KeyState::Quarantined => {
                self.quarantined -= 1;
                self.note_change(Changed::OTHER);
                self.reasons.remove(self.slots.reason(slot));
            }
            state @ (KeyState::Leased | KeyState::Resting) => {
                let hold = self.slots.hold(slot);
                if state == KeyState::Leased {
                    self.note_lease_end(shared, &self.ending_lease(hold), cause);
                    if self.slots.is_draining(slot) {
                        self.stop_drain(slot);
                    }
                } else {
                    self.resting -= 1;
                }
                return self.remove_hold(shared, hold);
            }
        }
        None
    }

    fn note_lease_end(&mut self, shared: &mut SharedState, lease: &EndingLease, cause: EndCause) {
        let EndingLease { slot, token, key: number, borrower, .. } = *lease;
        self.uncount_lease(shared, borrower);
        shared.ended_leases.add(EndedLease { token, number, slot, cause });
        if !self.idempotency.is_empty() {
            self.note_change(Changed::OTHER);
            self.idempotency.lease_ended(&mut shared.answers, token);
        }
    }

    /// Returns the present state of the key of an ended lease; `None` when the key is removed.
    pub(super) fn state_after(&self, ended: EndedLease) -> Option<KeyState> {
        let EndedLease { slot, number, .. } = ended;
        self.slots.state(slot).filter(|_| self.slots.number(slot) == number)
    }

    pub(super) fn end_cause(&self, shared: &SharedState, token: u64) -> Option<EndCause> {
        let ended = shared.ended_leases.find(token)?;
        Some(match (self.state_after(ended), ended.cause) {
            (None, _) => EndCause::KeyGone,
            (Some(KeyState::Leased), EndCause::Expired) => EndCause::Superseded,
            (Some(_), cause) => cause,
        })
    }

    /// Returns the reason of a rest, of a quarantine, or of the quarantine that begins when the lease
    /// ends, where one was given.
    pub(super) fn reason(&self, slot: SlotIndex) -> Option<&str> {
        match self.slots.state(slot)? {
            KeyState::Resting => self.holds.get(self.slots.hold(slot)).holder_or_reason.as_deref(),
            KeyState::Quarantined => self.reasons.get(self.slots.reason(slot)),
            KeyState::Leased if self.slots.is_draining(slot) => self.drain_reasons.text_of(slot),
            KeyState::Available | KeyState::Leased => None,
        }
    }
}
