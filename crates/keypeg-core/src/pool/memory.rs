//! The memory of a pool: what it takes now, and what a call may add.
//!
//! Each structure counts its own bytes when it takes and returns them; this file only adds them up.
//! Calls that end or keep something are never refused because the memory is full.

use super::Pool;
use crate::heap::{Changed, allocated, allocated_text};
use crate::refusal::Refusal;
use crate::shared::SharedState;
use crate::slots::Slots;

/// The fewest bytes that a key takes: its slot, its entry in the index by id, its place among the
/// available keys or its lease. More keys than the memory divided by this cannot exist.
pub const KEY_BYTES_MIN: u64 = 64;
/// The most bytes that a key takes beside its value outside a slot: slot, indices, heap.
const KEY_BYTES: usize = 112;
/// The most bytes that a lease takes: hold, indices, heap, and a holder of 128 characters.
const LEASE_BYTES: usize = 160 + 528;
/// The most bytes that a waiter takes beside its holder.
const WAITER_BYTES: usize = 320;
/// The bytes to which a reason is shortened when the memory is used up.
const SHORT_REASON: usize = 24;

impl Pool {
    /// Notes that a step changes structures, whose bytes are to be counted at its end.
    #[inline]
    pub(super) fn note_change(&mut self, changed: Changed) {
        self.bytes.changed.add(changed);
    }

    /// Returns the bytes of everything in the pool but the number of leases by borrower, which the
    /// number of access tokens bounds. O(1).
    pub(crate) fn bytes(&self) -> usize {
        self.lease_bytes() + self.key_bytes() + self.other_bytes()
    }

    #[inline]
    fn lease_bytes(&self) -> usize {
        self.holds.bytes() + self.hold_ends.bytes() + self.available.bytes()
    }

    fn key_bytes(&self) -> usize {
        self.slots.bytes() + self.by_id.bytes() + self.key_ends.bytes()
    }

    fn other_bytes(&self) -> usize {
        let waiting = self.wait_queue.bytes() + self.idempotency.bytes();
        let texts = self.reasons.bytes() + self.labels.bytes() + self.drain_reasons.bytes();
        waiting + texts + self.retired.bytes()
    }

    /// Counts the bytes of what has changed since the last call, for the pool and for all pools.
    ///
    /// Most calls change leases only, and few of them take or return memory: for these, the cost is
    /// a sum and a comparison.
    #[inline]
    pub(crate) fn count_bytes(&mut self, shared: &mut SharedState) {
        let changed = self.bytes.changed;
        if changed == Changed::NOTHING {
            return;
        }
        self.bytes.changed = Changed::NOTHING;
        let leases = self.lease_bytes();
        if leases != self.bytes.leases {
            shared.pool_bytes = shared.pool_bytes - self.bytes.leases + leases;
            self.bytes.leases = leases;
        }
        if changed != Changed::LEASES {
            self.recount(shared, changed);
        }
    }

    fn recount(&mut self, shared: &mut SharedState, changed: Changed) {
        if changed.has(Changed::KEYS) {
            let keys = self.key_bytes();
            shared.pool_bytes = shared.pool_bytes - self.bytes.keys + keys;
            self.bytes.keys = keys;
        }
        if changed.has(Changed::OTHER) {
            let other = self.other_bytes();
            shared.pool_bytes = shared.pool_bytes - self.bytes.other + other;
            self.bytes.other = other;
            shared.waiter_bytes = shared.waiters.allocation_size();
        }
    }

    /// Returns the bytes as last counted.
    pub(crate) fn counted_bytes(&self) -> usize {
        self.bytes.sum()
    }

    /// Refuses `count` more keys, whose values have `value_bytes` outside their slots, where the
    /// memory for keys is used up.
    pub(super) fn check_memory(
        &self,
        shared: &SharedState,
        count: u32,
        value_bytes: usize,
    ) -> Result<(), Refusal> {
        // A pool keeps the slots of removed keys for other keys.
        let used = self.counts().total() + self.staged_count();
        let more = count.saturating_sub(self.slots.free_count(used));
        let bytes = (more as usize).saturating_mul(KEY_BYTES).saturating_add(value_bytes);
        if bytes == 0 || shared.has_memory_for_keys(bytes) {
            return Ok(());
        }
        Err(Refusal::KeyMemoryFull { max: shared.key_bytes_max() })
    }

    /// Returns the bytes outside slots of `count` generated values.
    pub(super) fn bytes_of_generated(&self, count: u32) -> usize {
        let len = self.policy.key_prefix.len() + usize::from(self.policy.key_length);
        (count as usize).saturating_mul(Slots::bytes_of_value(len))
    }

    /// Refuses a lease where the memory is used up.
    #[inline]
    pub(super) fn check_lease_memory(shared: &SharedState) -> Result<(), Refusal> {
        shared.check_memory_for_lease(LEASE_BYTES)
    }

    /// Refuses a waiter where the memory is used up.
    pub(super) fn check_waiter_memory(
        shared: &SharedState,
        holder: Option<&str>,
    ) -> Result<(), Refusal> {
        shared.check_memory_for_lease(WAITER_BYTES + allocated_text(holder))
    }

    /// Returns a reason, shortened where the memory is used up: a release must not be refused.
    pub(super) fn reason_that_fits<'a>(shared: &SharedState, reason: &'a str) -> &'a str {
        if reason.len() <= SHORT_REASON || shared.has_memory(allocated(reason.len())) {
            return reason;
        }
        &reason[..reason.floor_char_boundary(SHORT_REASON)]
    }
}
