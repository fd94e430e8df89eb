//! A pool made again from facts: the same changes as the calls made, without their questions.
//!
//! Each method takes what a fact carries and the slot of the key it is about. Ends by time are not
//! among them: the journal's clock tells those, and the ordinary steps play them.

use super::{Hold, Pool};
use crate::clocks::{Now, US_PER_MS};
use crate::fact::{Fact, FactSink, Grant, PackedValues};
use crate::index::Index;
use crate::key::KeyState;
use crate::numbers::{BorrowerId, KeyNumber, Lsn};
use crate::refusal::EndCause;
use crate::replayer::StoredKey;
use crate::sabotage::{Sabotage, enabled};
use crate::shared::SharedState;

impl Pool {
    /// Keeps slots of keys that go from being used again until [`Pool::start`]: the keys a database
    /// kept are found by their order. `keys` is about how many will come.
    pub(crate) fn replay_begin(&mut self, keys: usize) {
        self.slots.keep_order(true);
        self.by_id = Index::with_capacity(keys);
    }

    /// Puts a key back that a database kept; gives its slot.
    pub(crate) fn replay_loaded(
        &mut self,
        ledger: &SharedState,
        key: KeyNumber,
        row: &StoredKey<'_>,
    ) -> u32 {
        let now = Now { wall_us: row.created_at_ms * US_PER_MS, ..Now::default() };
        debug_assert_eq!(
            row.id,
            ledger.ids.key_id(self.number, row.value),
            "an id is of its value"
        );
        self.admit(&ledger.ids, now, key, (row.id, row.value), row.imported)
    }

    /// Says that a database knows of values that are gone.
    pub(crate) fn replay_retired(&mut self) {
        self.retired.are_elsewhere();
    }

    /// Lets go of retired values that a database has, at most `max`; true when more are to go.
    pub(crate) fn leave_retired(&mut self, checkpointed: Lsn, max: usize) -> bool {
        self.retired.leave(checkpointed, max)
    }

    /// Finds a key among the first `loaded` slots, whose numbers rise. O(log n).
    pub(crate) fn slot_of(&self, key: KeyNumber, loaded: u32) -> Option<u32> {
        let (mut low, mut high) = (0, loaded);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.slots.number(middle) < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let found = low < loaded && self.slots.number(low) == key;
        (found && self.slots.state(low).is_some()).then_some(low)
    }

    /// Puts born keys in; gives each one's slot to `at`, in order. False when one is in already.
    pub(crate) fn replay_born(
        &mut self,
        ledger: &SharedState,
        (first, at_ms, imported): (KeyNumber, u64, bool),
        values: PackedValues<'_>,
        mut at: impl FnMut(KeyNumber, u32),
    ) -> bool {
        let now = Now { wall_us: at_ms * US_PER_MS, ..Now::default() };
        for (number, value) in first.range(values.count()).zip(values.iter()) {
            let id = ledger.ids.key_id(self.number, value);
            if self.ever_had(id, value) {
                return false;
            }
            let slot = self.admit(&ledger.ids, now, number, (id, value), imported);
            at(number, slot);
        }
        true
    }

    pub(crate) fn replay_granted(
        &mut self,
        ledger: &mut SharedState,
        slot: u32,
        token: u64,
        lease: &Grant<'_>,
    ) {
        // One that is told anew goes on: whoever knows of it still does.
        if let Some(hold) = self.lent_for(slot, token) {
            let before = self.holds.get(hold).borrower;
            self.count_less(ledger, before);
            self.count(ledger, lease.borrower);
            self.holds.set_grant(hold, lease);
            self.returns.set(hold, lease.until_us, &mut self.holds);
        } else {
            self.lend(ledger, slot, token, lease);
        }
    }

    /// The key that is lent or rests for that token.
    pub(crate) fn has_for(&self, token: u64) -> Option<u32> {
        self.holds.find(token).map(|hold| self.holds.get(hold).slot)
    }

    /// Makes a key rest after the lease of that token, whatever it was.
    pub(crate) fn replay_resting(
        &mut self,
        ledger: &mut SharedState,
        slot: u32,
        token: u64,
        (until_us, reason): (u64, Option<&str>),
    ) {
        let (granted_us, hold_until_us) = (until_us, until_us);
        let (rest_us, holder, borrower) = (0, None, BorrowerId::NONE);
        let lease = Grant { granted_us, until_us, hold_until_us, rest_us, holder, borrower };
        self.lend(ledger, slot, token, &lease);
        // How that lease ended is not told here; what an earlier fact told of it stands.
        self.begin_rest(self.slots.place(slot), until_us, reason);
    }

    /// Gives the lease a new end. False when the key is not lent for that token.
    pub(crate) fn replay_renewed(&mut self, slot: u32, token: u64, until_us: u64) -> bool {
        let Some(hold) = self.lent_for(slot, token) else { return false };
        self.returns.set(hold, until_us, &mut self.holds);
        true
    }

    /// Ends the lease. False when the key is not lent for that token.
    pub(crate) fn replay_released(
        &mut self,
        ledger: &mut SharedState,
        slot: u32,
        token: u64,
        rest: (u64, Option<&str>),
    ) -> bool {
        let Some(hold) = self.lent_for(slot, token) else { return false };
        self.end_lease(ledger, hold, rest, EndCause::Released);
        true
    }

    /// Takes a key out of rotation, whatever it was.
    pub(crate) fn replay_quarantined(
        &mut self,
        ledger: &mut SharedState,
        slot: u32,
        reason: Option<&str>,
    ) {
        self.set_aside(ledger, slot, reason);
    }

    pub(crate) fn replay_restored(&mut self, ledger: &mut SharedState, slot: u32) {
        // A key that is put back rested or was out of rotation: where it is still lent here, time
        // has ended the lease.
        self.free(ledger, slot, EndCause::Expired);
    }

    pub(crate) fn replay_gone(&mut self, ledger: &mut SharedState, slot: u32) {
        self.forget(ledger, slot);
    }

    /// Gives every key its full keep-alive time: what a start does.
    pub(crate) fn start(&mut self, now: Now) {
        self.slots.keep_order(false);
        self.lives.raise_all(self.life_until(now));
    }

    pub(super) fn lent_for(&self, slot: u32, token: u64) -> Option<u32> {
        let hold = (self.slots.state(slot) == Some(KeyState::Leased)).then(|| {
            let at = self.slots.place(slot);
            let Hold { token, .. } = *self.holds.get(at);
            (at, token)
        });
        hold.filter(|(_, lent)| *lent == token).map(|(at, _)| at)
    }
}

/// What is told anew of a pool, so that older segments of its journal can go.
impl Pool {
    /// Emits what holds keys away and then what Idempotency-Keys were answered, at most `max` of
    /// them from a hold and an answer on; gives where to go on, or `None` at the end. O(max).
    pub(crate) fn write_snapshot(
        &self,
        (hold, answer): (u32, u32),
        max: u32,
        facts: &mut dyn FactSink,
    ) -> Option<(u32, u32)> {
        let (holds, answers) = (self.holds.end(), self.replays.end());
        if hold < holds {
            let end = holds.min(hold + max);
            for at in hold..end {
                self.retell_hold(at, facts);
            }
            return (end < holds || answer < answers).then_some((end, answer));
        }
        let end = answers.min(answer + max);
        for kept in (answer..end).filter_map(|at| self.replays.at(at)) {
            facts.record(&Fact::AnswerStored { pool: self.number, answer: kept.answer });
        }
        (end < answers).then_some((holds, end))
    }

    pub(crate) fn is_told(&self, (hold, answer): (u32, u32)) -> bool {
        hold >= self.holds.end() && answer >= self.replays.end()
    }

    fn retell_hold(&self, at: u32, facts: &mut dyn FactSink) {
        let Hold { slot, token, granted_us, latest_us, rest_us, borrower, ref words, .. } =
            *self.holds.get(at);
        if !self.holds.is_in(at) {
            return;
        }
        let (pool, key) = (self.number, self.slots.number(slot));
        let until_us = self.returns.deadline(at, &self.holds);
        if self.slots.state(slot) == Some(KeyState::Resting) {
            let reason = words.as_deref();
            facts.record(&Fact::RestSnapshot { pool, key, token, until_us, reason });
            return;
        }
        let holder = words.as_deref();
        let until_us =
            if enabled(Sabotage::RetellOldEnd) { until_us.midpoint(granted_us) } else { until_us };
        let hold_until_us = latest_us;
        let borrower = if enabled(Sabotage::ForgetBorrower) { BorrowerId::NONE } else { borrower };
        let lease = Grant { granted_us, until_us, hold_until_us, rest_us, holder, borrower };
        facts.record(&Fact::LeaseSnapshot { pool, key, token, lease });
    }
}
