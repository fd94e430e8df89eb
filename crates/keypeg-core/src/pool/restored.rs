//! The holds of a restored pool: each key that the original server could have lent since the backup
//! counts as leased to an unknown holder.
//!
//! They are written as snapshot records, so that they are ordinary leases from then on: they end by
//! time, and survive a crash. A key never becomes available earlier than without them.

use super::Pool;
use crate::clocks::{US_PER_MS, after};
use crate::fact::{Fact, FactSink, Grant};
use crate::indices::SlotIndex;
use crate::key::KeyState;
use crate::numbers::BorrowerId;

/// The holder that a restored key shows.
pub const RESTORED_HOLDER: &str = "(restored)";

/// The terms of the holds after a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoredHolds {
    /// Lease time of the restore.
    pub now_us: u64,
    /// How long a key is held; `None` is the longest that a lease of its pool can run. With 0 only
    /// the leases that are known run on.
    pub hold_us: Option<u64>,
    /// The token of the first hold; each further one takes the next.
    pub first_token: u64,
}

/// What the holds amount to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldKeys {
    /// The number of held keys.
    pub keys: u64,
    /// The end of the longest hold, lease time.
    pub until_us: u64,
}

impl Pool {
    /// Writes the holds of this pool after a restore, as facts. O(keys).
    pub(crate) fn write_restored_holds(
        &self,
        terms: RestoredHolds,
        held: &mut HeldKeys,
        facts: &mut dyn FactSink,
    ) {
        for slot in self.slots.used() {
            let Some(until_us) = self.restored_hold_end(slot, terms) else { continue };
            let lease = Grant {
                granted_us: terms.now_us,
                until_us,
                hold_until_us: until_us,
                rest_us: self.policy().rest_ms * US_PER_MS,
                holder: Some(RESTORED_HOLDER),
                borrower: BorrowerId::NONE,
            };
            let (key, token) = (self.slots.number(slot), terms.first_token + held.keys);
            facts.record(&Fact::LeaseSnapshot { pool: self.id, key, token, lease });
            held.keys += 1;
            held.until_us = held.until_us.max(until_us);
        }
    }

    /// Returns when the hold of a key ends; `None` for a key that needs none: it is quarantined, or
    /// rests for longer.
    fn restored_hold_end(&self, slot: SlotIndex, terms: RestoredHolds) -> Option<u64> {
        let RestoredHolds { now_us, hold_us, .. } = terms;
        // A record contains no end at 0, where a directory begins.
        let until_us = after(now_us, hold_us.unwrap_or_else(|| self.policy().hold_us())).max(1);
        let holds_unknown = hold_us != Some(0);
        let state = self.slots.state(slot)?;
        if matches!(state, KeyState::Available) {
            return holds_unknown.then_some(until_us);
        }
        if matches!(state, KeyState::Quarantined) {
            return None;
        }
        let hold = self.slots.hold(slot);
        let end_us = self.hold_ends.deadline(hold, &self.holds);
        let record = self.holds.get(hold);
        let is_leased = matches!(state, KeyState::Leased);
        if is_leased && end_us > now_us {
            // Its terms can be longer than those of the present policy. With a shorter hold the
            // operator says that no client renews, so only the lease that is known runs to its end.
            let is_shorter = hold_us.is_some_and(|hold_us| hold_us < self.policy().hold_us());
            let known_us = if is_shorter { end_us } else { record.latest_us };
            return Some(until_us.max(known_us));
        }
        // The end of a lease by time is not a fact: its key has begun to rest, or is quarantined.
        if is_leased && self.slots.is_draining(slot) {
            return None;
        }
        let rest_end_us = if is_leased { after(end_us, record.rest_us) } else { end_us };
        (holds_unknown && rest_end_us < until_us).then_some(until_us)
    }
}
