//! Replay and snapshot of one pool: facts applied without the checks of the calls that emitted
//! them, and live state written as facts.
//!
//! Each `replay_` method takes the contents of a fact and the slot of its key. Ends by time are not
//! facts: the journal's clock implies them, and ordinary steps apply them.

use super::Pool;
use crate::clocks::{Now, US_PER_MS};
use crate::fact::{CreatedKeys, Fact, FactSink, Grant};
use crate::heap::Changed;
use crate::holds::{Hold, Rest};
use crate::incoming::{IncomingKey, StoredKey};
use crate::index::Index;
use crate::indices::{AnswerIndex, HoldIndex, ItemIndex, SlotIndex};
use crate::key::KeyState;
use crate::numbers::{BorrowerId, KeyNumber, Lsn};
use crate::refusal::EndCause;
use crate::sabotage::{Sabotage, enabled};
use crate::shared::SharedState;

/// How far the snapshot of a pool has been written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PoolCursor {
    pub(crate) hold: HoldIndex,
    pub(crate) answer: AnswerIndex,
}

impl Pool {
    /// Prepares the pool for about `keys` keys. Until [`Pool::finish_replay`], slots of removed
    /// keys are not reused: keys that the database contains are found by the order of their slots.
    pub(crate) fn begin_replay(&mut self, keys: usize) {
        self.slots.keep_order(true);
        self.note_change(Changed::KEYS);
        self.by_id = Index::with_capacity(keys);
    }

    /// Inserts a key that the database contains; returns its slot.
    pub(crate) fn replay_stored(
        &mut self,
        shared: &SharedState,
        number: KeyNumber,
        row: &StoredKey<'_>,
    ) -> SlotIndex {
        let StoredKey { value, id, created_at_ms, imported, keepalive } = *row;
        let now = Now { wall_us: created_at_ms * US_PER_MS, ..Now::default() };
        debug_assert_eq!(id, shared.ids.key_id(self.id, value), "the id belongs to the value");
        self.insert_key(&shared.ids, now, IncomingKey { number, id, value, imported, keepalive })
    }

    /// Notes that the database contains retired values of this pool.
    pub(crate) fn set_has_retired(&mut self) {
        self.retired.set_in_database();
    }

    /// Evicts checkpointed retired values, at most `max`. Returns whether more can be evicted.
    pub(crate) fn evict_retired(&mut self, checkpointed: Lsn, max: usize) -> bool {
        self.note_change(Changed::OTHER);
        self.retired.evict(checkpointed, max)
    }

    /// Finds a key among the first `stored` slots, whose key numbers increase: a binary search.
    ///
    /// Numbers increase by one at least. So a key is no further from the first slot than its number
    /// is from the first number, and no nearer to the last slot than from the last number. Where no
    /// number is missing, one slot is left to look at, and most pools miss few: each step of a
    /// search is a cache miss.
    pub(crate) fn find_stored(&self, key: KeyNumber, stored: u32) -> Option<SlotIndex> {
        let last = stored.checked_sub(1)?;
        let number = |slot| self.slots.number(SlotIndex::new(slot));
        let from_first = key.0.checked_sub(number(0).0)?;
        let to_last = number(last).0.checked_sub(key.0)?;
        let slots = |numbers| u32::try_from(numbers).map_or(last, |slots: u32| slots.min(last));
        let (mut low, mut high) = (last - slots(to_last), slots(from_first));
        while low < high {
            let middle = low + (high - low) / 2;
            if number(middle) < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let slot = SlotIndex::new(low);
        (number(low) == key && self.slots.state(slot).is_some()).then_some(slot)
    }

    /// Inserts created keys and passes each one's slot to `each`, in order. Returns false when one
    /// exists already. A retired value is accepted: the import allowed it.
    pub(crate) fn replay_created(
        &mut self,
        shared: &SharedState,
        created: CreatedKeys<'_>,
        mut each: impl FnMut(KeyNumber, SlotIndex),
    ) -> bool {
        let CreatedKeys { first, at_ms, imported, keepalive, labels, values } = created;
        let now = Now { wall_us: at_ms * US_PER_MS, ..Now::default() };
        let labelled = values.iter().zip(labels.iter());
        for (number, (value, label)) in first.range(values.count()).zip(labelled) {
            let id = shared.ids.key_id(self.id, value);
            if self.find_value(id, value).is_some() {
                return false;
            }
            let key = IncomingKey { number, id, value, imported, keepalive };
            let slot = self.insert_key(&shared.ids, now, key);
            self.put_label(slot, label);
            each(number, slot);
        }
        true
    }

    pub(crate) fn replay_labelled(&mut self, slot: SlotIndex, label: Option<&str>) {
        self.put_label(slot, label);
    }

    pub(crate) fn replay_granted(
        &mut self,
        shared: &mut SharedState,
        slot: SlotIndex,
        token: u64,
        lease: &Grant<'_>,
    ) {
        // A snapshot record of a lease that runs already updates it in place: its stored answer
        // must not see it end.
        if let Some(hold) = self.leased_with(slot, token) {
            let before = self.holds.get(hold).borrower;
            self.uncount_lease(shared, before);
            self.count_lease(shared, lease.borrower);
            self.note_change(Changed::LEASES);
            self.holds.set_grant(hold, lease);
            self.hold_ends.set(hold, lease.until_us, &mut self.holds);
        } else {
            self.start_lease(shared, slot, token, lease);
        }
    }

    /// Finds the key that is leased with that token or rests after that lease.
    pub(crate) fn slot_with_token(&self, token: u64) -> Option<SlotIndex> {
        self.holds.find_by_token(token).map(|hold| self.holds.get(hold).slot)
    }

    /// Lets a key in any state rest after the lease with that token.
    pub(crate) fn replay_resting(
        &mut self,
        shared: &mut SharedState,
        slot: SlotIndex,
        token: u64,
        rest: Rest<'_>,
    ) {
        let lease = Grant {
            granted_us: rest.until_us,
            until_us: rest.until_us,
            hold_until_us: rest.until_us,
            rest_us: 0,
            holder: None,
            borrower: BorrowerId::NONE,
        };
        self.start_lease(shared, slot, token, &lease);
        // The record does not contain how the lease ended; what an earlier fact said still applies.
        self.begin_rest(self.slots.hold(slot), rest);
    }

    /// Changes a lease's end. Returns false when the key is not leased with that token.
    pub(crate) fn replay_renewed(&mut self, slot: SlotIndex, token: u64, until_us: u64) -> bool {
        let Some(hold) = self.leased_with(slot, token) else { return false };
        self.hold_ends.set(hold, until_us, &mut self.holds);
        true
    }

    /// Ends a lease. Returns false when the key is not leased with that token.
    pub(crate) fn replay_released(
        &mut self,
        shared: &mut SharedState,
        slot: SlotIndex,
        token: u64,
        rest: Rest<'_>,
    ) -> bool {
        let Some(hold) = self.leased_with(slot, token) else { return false };
        self.end_lease(shared, &self.ending_lease(hold), rest, EndCause::Released);
        true
    }

    /// Quarantines a key in any state.
    pub(crate) fn replay_quarantined(
        &mut self,
        shared: &mut SharedState,
        slot: SlotIndex,
        reason: Option<&str>,
    ) {
        self.quarantine(shared, slot, reason, EndCause::Released);
    }

    pub(crate) fn replay_freed(&mut self, shared: &mut SharedState, slot: SlotIndex) {
        // Only a resting or quarantined key is freed: if it is still leased here, the lease
        // expired.
        self.make_available(shared, slot, EndCause::Expired);
    }

    pub(crate) fn replay_removed(&mut self, shared: &mut SharedState, slot: SlotIndex) {
        self.remove_key(shared, slot);
    }

    /// Ends the replay: every key gets its full keep-alive time, as at every start.
    pub(crate) fn finish_replay(&mut self, now: Now) {
        self.slots.keep_order(false);
        self.idempotency.finish_replay();
        self.key_ends.raise_all(self.key_end_us(now));
    }

    /// Finds the hold of a key that is leased with that token.
    pub(super) fn leased_with(&self, slot: SlotIndex, token: u64) -> Option<HoldIndex> {
        if self.slots.state(slot) != Some(KeyState::Leased) {
            return None;
        }
        let hold = self.slots.hold(slot);
        (self.holds.get(hold).token == token).then_some(hold)
    }
}

/// Snapshot records, so that older segments of the journal can be deleted.
impl Pool {
    /// Writes leases and rests and then stored answers as facts, at most `max` from a cursor on.
    /// Returns where to continue, or `None` at the end. O(max).
    pub(crate) fn write_snapshot(
        &self,
        from: PoolCursor,
        max: u32,
        facts: &mut dyn FactSink,
    ) -> Option<PoolCursor> {
        let PoolCursor { hold, answer } = from;
        let (holds_end, answers_end) = (self.holds.end(), self.idempotency.end());
        if hold < holds_end {
            let end = holds_end.min(HoldIndex::new(hold.get() + max));
            for hold in (hold.get()..end.get()).map(HoldIndex::new) {
                self.write_hold(hold, facts);
            }
            let has_more = end < holds_end || answer < answers_end;
            return has_more.then_some(PoolCursor { hold: end, answer });
        }
        let end = answers_end.min(AnswerIndex::new(answer.get() + max));
        let answers = (answer.get()..end.get()).map(AnswerIndex::new);
        for stored in answers.filter_map(|answer| self.idempotency.get_any(answer)) {
            facts.record(&Fact::AnswerStored { pool: self.id, answer: stored.record });
        }
        (end < answers_end).then_some(PoolCursor { hold: holds_end, answer: end })
    }

    /// Returns whether the snapshot of this pool is complete at a cursor.
    pub(crate) fn is_written(&self, cursor: PoolCursor) -> bool {
        cursor.hold >= self.holds.end() && cursor.answer >= self.idempotency.end()
    }

    fn write_hold(&self, hold: HoldIndex, facts: &mut dyn FactSink) {
        let Hold { slot, token, granted_us, latest_us, rest_us, borrower, .. } =
            *self.holds.get(hold);
        if !self.holds.is_used(hold) {
            return;
        }
        let holder_or_reason = self.holds.get(hold).holder_or_reason.as_deref();
        let (pool, key) = (self.id, self.slots.number(slot));
        let until_us = self.hold_ends.deadline(hold, &self.holds);
        if self.slots.state(slot) == Some(KeyState::Resting) {
            let reason = holder_or_reason;
            facts.record(&Fact::RestSnapshot { pool, key, token, until_us, reason });
            return;
        }
        let old_end = enabled(Sabotage::RetellOldEnd);
        let no_borrower = enabled(Sabotage::ForgetBorrower);
        let lease = Grant {
            granted_us,
            until_us: if old_end { until_us.midpoint(granted_us) } else { until_us },
            hold_until_us: latest_us,
            rest_us,
            holder: holder_or_reason,
            borrower: if no_borrower { BorrowerId::NONE } else { borrower },
        };
        facts.record(&Fact::LeaseSnapshot { pool, key, token, lease });
    }
}
