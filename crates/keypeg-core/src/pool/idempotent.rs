//! Requests with an Idempotency-Key: executed once, and a repeat gets the same result.
//!
//! A repeat of a waiting request takes over its position in the wait queue. A refusal is not
//! stored. A stored answer is a fact in the batch of the change it describes, so after a crash both
//! exist or neither.

use super::Pool;
use super::wait::wait_end_us;
use crate::clocks::{Now, after};
use crate::fact::{Fact, IdempotencyRecord, IdempotentResult};
use crate::heap::Changed;
use crate::idempotency_store::{
    IdempotencyKey, IdempotentRequest, KEPT_US, STORED_ANSWER_BYTES, SlotRange, StoredAnswer,
    WaitingRequest,
};
use crate::ids::{BodyDigest, IdempotencyId, IdempotentCall, LeaseId};
use crate::indices::{AnswerIndex, ItemIndex, SlotIndex};
use crate::key::NewKey;
use crate::lease::{AcquireOptions, Granted, LeaseView, ReleaseOptions, WaitOptions};
use crate::numbers::{BorrowerId, KeyNumber};
use crate::refusal::Refusal;
use crate::secret::Secret;
use crate::shared::{SharedState, WaiterLocation};
use crate::staged::{RepeatedKeys, StageOutcome};
use crate::step::StepContext;
use crate::wait_outcome::WaitOutcome;
use crate::wait_queue::Waiter;

/// The units of work that it costs to return one key again, see `keypeg-store`.
const REPEAT: u32 = 2;
/// The keys for which the last step of a repeat looks again, for one unit.
const CHECKED: u32 = 8;

impl Pool {
    /// Generates or imports keys by `add`, once: a repeat returns the same keys. O(keys log n).
    pub fn add_idempotent(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        key: &IdempotencyKey<'_>,
        add: impl FnOnce(
            &mut Self,
            &mut SharedState,
            &mut StepContext<'_>,
        ) -> Result<Vec<NewKey>, Refusal>,
    ) -> Result<Vec<NewKey>, Refusal> {
        let request = self.idempotent_request(shared, IdempotentCall::AddKeys, key);
        if let Some(answer) = self.find_answer(step, request)? {
            return self.redeliver_keys(shared, step, answer);
        }
        self.check_room_for_answer(shared, step, request.borrower)?;
        let first = shared.counters.next_key;
        let keys = add(self, shared, step)?;
        let slots: Vec<_> = keys.iter().filter_map(|key| self.find(&shared.ids, key.id)).collect();
        self.store_new_keys(shared, step, request, (first, &keys), slots.into_iter());
        Ok(keys)
    }

    /// Grants a key as [`Pool::acquire_or_wait`] does, once: a repeat returns the same lease while
    /// it runs, and a repeat during the wait takes over its position. O(log n).
    pub fn acquire_idempotent(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        options: &AcquireOptions<'_>,
        wait: WaitOptions,
        key: &IdempotencyKey<'_>,
    ) -> Result<Option<Granted>, Refusal> {
        let request = self.idempotent_request(shared, IdempotentCall::Acquire, key);
        if let Some(answer) = self.find_answer(step, request)? {
            return self.redeliver_lease(shared, step, answer).map(Some);
        }
        let (waiter_id, until_us) = (wait.waiter_id, wait_end_us(step, wait));
        if let Some(&WaitingRequest { waiter, body }) = self.idempotency.waiting.get(&request.id) {
            check_body(body, request)?;
            let now_us = step.now.lease_us;
            let before = self.wait_queue.take_over(waiter, waiter_id, now_us, until_us);
            shared.waiters.remove(&before);
            shared.waiters.insert(waiter_id, WaiterLocation { pool: self.index, waiter });
            let outcome = Err(Refusal::TakenOver);
            shared.wait_outcomes.push(WaitOutcome { waiter_id: before, outcome });
            return Ok(None);
        }
        self.check_room_for_answer(shared, step, request.borrower)?;
        match self.acquire(shared, step, options) {
            Ok(granted) => {
                self.store_grant(shared, step, request, &granted.lease);
                Ok(Some(granted))
            }
            Err(Refusal::NoKey { cause, .. }) if wait.wait_ms > 0 && cause.allows_wait() => {
                let now_us = step.now.lease_us;
                let waiter = Waiter::new(waiter_id, now_us, options, Some(request));
                let waiter = self.enqueue(shared, waiter, until_us, cause)?;
                let waiting = WaitingRequest { waiter, body: request.body };
                self.idempotency.waiting.insert(request.id, waiting);
                Ok(None)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Releases a lease that no client received. A lease that was redelivered to a repeat stays,
    /// because its client received it. O(log n).
    pub fn revoke_undelivered(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        lease: LeaseId,
    ) -> Result<(), Refusal> {
        let answer = self.idempotency.find_by_token(lease.token());
        if answer.is_some_and(|answer| self.idempotency.get(answer).redelivered) {
            return Ok(());
        }
        let id = answer.map(|answer| self.idempotency.get(answer).record.id);
        self.release(shared, step, lease, &ReleaseOptions::default())?;
        if let Some(id) = id {
            self.note_change(Changed::OTHER);
            self.idempotency.remove_by_id(&mut shared.answers, id);
            step.facts.record(&Fact::AnswerRevoked { pool: self.id, id });
        }
        Ok(())
    }

    /// Returns whether the answer to this request is stored.
    pub(crate) fn has_stored_answer(
        &self,
        shared: &SharedState,
        call: IdempotentCall,
        key: &IdempotencyKey<'_>,
        now_us: u64,
    ) -> bool {
        let request = self.idempotent_request(shared, call, key);
        self.idempotency.find(request.id, now_us).is_some()
    }

    pub(super) fn idempotent_request(
        &self,
        shared: &SharedState,
        call: IdempotentCall,
        key: &IdempotencyKey<'_>,
    ) -> IdempotentRequest {
        let id = shared.ids.answer_id(self.id, call, key.caller, key.key);
        let borrower = match (key.borrower, key.network) {
            (BorrowerId::NONE, 1..) => shared.ids.network_id(key.network),
            (borrower, _) => borrower,
        };
        IdempotentRequest { id, body: key.body, borrower }
    }

    /// Finds the stored answer to this request.
    pub(super) fn find_answer(
        &self,
        step: &StepContext<'_>,
        request: IdempotentRequest,
    ) -> Result<Option<AnswerIndex>, Refusal> {
        let found = self.idempotency.find(request.id, step.now.lease_us);
        let Some(answer) = found else { return Ok(None) };
        check_body(self.idempotency.get(answer).record.body, request)?;
        Ok(Some(answer))
    }

    pub(super) fn check_room_for_answer(
        &mut self,
        shared: &mut SharedState,
        step: &StepContext<'_>,
        borrower: BorrowerId,
    ) -> Result<(), Refusal> {
        self.note_change(Changed::OTHER);
        self.idempotency.check_room(&mut shared.answers, step.now.lease_us, borrower)?;
        shared.check_memory_for_lease(STORED_ANSWER_BYTES)
    }

    /// Stores the answer with a lease that was just granted.
    pub(super) fn store_grant(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        request: IdempotentRequest,
        lease: &LeaseView,
    ) {
        let hold = self.holds.find_by_token(lease.token).expect("invariant: just granted");
        let result = IdempotentResult::Lease {
            key: self.slots.number(self.holds.get(hold).slot),
            token: lease.token,
            until_us: self.hold_ends.deadline(hold, &self.holds),
            granted_at_ms: lease.granted_at_ms,
            expires_at_ms: lease.expires_at_ms,
            key_expires_at_ms: lease.key_expires_at_ms,
        };
        self.store_answer(shared, step, request, result, Box::default());
    }

    /// Stores the answer with keys that were just created, in these slots.
    pub(super) fn store_new_keys(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        request: IdempotentRequest,
        (first, keys): (KeyNumber, &[NewKey]),
        slots: impl Iterator<Item = SlotIndex>,
    ) {
        let count = u32::try_from(keys.len()).expect("invariant: a request is bounded");
        let expires_at_ms = keys.first().and_then(|key| key.expires_at_ms);
        let result = IdempotentResult::Keys { first, count, expires_at_ms };
        self.store_answer(shared, step, request, result, ranges(slots));
    }

    fn store_answer(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        request: IdempotentRequest,
        result: IdempotentResult,
        slots: Box<[SlotRange]>,
    ) {
        self.note_change(Changed::OTHER);
        let IdempotentRequest { id, body, borrower } = request;
        let until_us = after(step.now.lease_us, KEPT_US);
        let record = IdempotencyRecord { id, body, borrower, until_us, result };
        let stored = StoredAnswer { record, slots, redelivered: false };
        self.idempotency.store(&mut shared.answers, stored, true);
        step.facts.record(&Fact::AnswerStored { pool: self.id, answer: record });
    }

    /// Returns the keys of a stored answer as it contained them; refused when one is removed.
    fn redeliver_keys(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        answer: AnswerIndex,
    ) -> Result<Vec<NewKey>, Refusal> {
        let mut repeated = RepeatedKeys::default();
        let is_complete =
            self.repeat_some(shared, step, (answer, &mut repeated), &mut { u32::MAX })?;
        debug_assert!(is_complete, "the units suffice");
        Ok(repeated.keys)
    }

    /// Collects more of the keys of the stored answer to a repeated call, for about `units` of work,
    /// which it subtracts. The call is refused when a key is removed before the last step.
    pub fn repeat_keys(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        (key, repeated): (&IdempotencyKey<'_>, &mut RepeatedKeys),
        units: &mut u32,
    ) -> StageOutcome {
        let request = self.idempotent_request(shared, IdempotentCall::AddKeys, key);
        let answer = match self.find_answer(step, request) {
            Ok(Some(answer)) => answer,
            // It was removed since: the call is a new one.
            Ok(None) => return StageOutcome::PoolChanged,
            Err(refusal) => return StageOutcome::Refused(refusal),
        };
        match self.repeat_some(shared, step, (answer, repeated), units) {
            Ok(true) => StageOutcome::Complete(std::mem::take(&mut repeated.keys)),
            Ok(false) => StageOutcome::Incomplete,
            Err(refusal) => StageOutcome::Refused(refusal),
        }
    }

    /// Collects keys of a stored answer; returns whether all are collected and exist in this step.
    fn repeat_some(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        (answer, repeated): (AnswerIndex, &mut RepeatedKeys),
        units: &mut u32,
    ) -> Result<bool, Refusal> {
        let StoredAnswer { record, slots, .. } = self.idempotency.get(answer);
        let IdempotentResult::Keys { first, count, expires_at_ms } = record.result else {
            unreachable!("{ID_IMPLIES_CALL}")
        };
        if repeated.first != first {
            *repeated = RepeatedKeys { first, keys: Vec::with_capacity(count as usize) };
        }
        let slots = slots.clone();
        let slots = || {
            let ranges = slots.iter().map(|SlotRange { first, count }| (first.get(), *count));
            let slots = ranges.flat_map(|(first, count)| first..first + count);
            first.range(count).zip(slots.map(SlotIndex::new))
        };
        let collected = repeated.keys.len();
        for (number, slot) in slots().skip(collected) {
            if *units == 0 {
                return Ok(false);
            }
            *units = units.saturating_sub(REPEAT);
            self.check_still_there(shared, step, (number, slot))?;
            repeated.keys.push(NewKey {
                id: self.key_id(&shared.ids, slot),
                value: Secret::from_stored(self.slots.value(slot)),
                created_at_ms: self.slots.created_ms(slot),
                expires_at_ms,
                label: self.label(slot).map(Into::into),
            });
        }
        if repeated.keys.len() < count as usize {
            return Err(Refusal::KeysGone);
        }
        // Some of those that earlier steps collected may be removed since.
        for key in slots().take(collected) {
            self.check_still_there(shared, step, key)?;
        }
        *units = units.saturating_sub(u32::try_from(collected).unwrap_or(u32::MAX) / CHECKED);
        Ok(true)
    }

    /// Refuses a repeat if this key of its answer is removed, or due.
    fn check_still_there(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        (number, slot): (KeyNumber, SlotIndex),
    ) -> Result<(), Refusal> {
        let exists = self.slots.state(slot).is_some() && self.slots.number(slot) == number;
        if !exists {
            return Err(Refusal::KeysGone);
        }
        if !self.expire_key(shared, step, slot) {
            return Err(Self::unless_frozen(shared, Refusal::KeysGone));
        }
        Ok(())
    }

    /// Returns the lease of a stored answer as it contained it, except for the time left; if the
    /// lease was renewed since, its end is the present one.
    fn redeliver_lease(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        answer: AnswerIndex,
    ) -> Result<Granted, Refusal> {
        let result = self.idempotency.get(answer).record.result;
        let IdempotentResult::Lease { token, until_us, granted_at_ms, .. } = result else {
            unreachable!("{ID_IMPLIES_CALL}")
        };
        let hold = self.running_hold(shared, step, shared.ids.lease_id(self.id, token))?;
        self.idempotency.set_redelivered(answer);
        let mut lease = self.lease_view(&shared.ids, step.now, hold);
        lease.granted_at_ms = granted_at_ms;
        if let IdempotentResult::Lease { expires_at_ms, key_expires_at_ms, .. } = result
            && self.hold_ends.deadline(hold, &self.holds) == until_us
        {
            (lease.expires_at_ms, lease.key_expires_at_ms) = (expires_at_ms, key_expires_at_ms);
        }
        let slot = self.holds.get(hold).slot;
        let value = Secret::from_stored(self.slots.value(slot));
        Ok(Granted { lease, value, redelivered: true })
    }

    /// Stores an answer from a fact; `slot_of` finds a key by its number.
    pub(crate) fn replay_answer_stored(
        &mut self,
        shared: &mut SharedState,
        record: IdempotencyRecord,
        slot_of: impl Fn(&Self, KeyNumber) -> Option<SlotIndex>,
    ) {
        self.note_change(Changed::OTHER);
        let (mut slots, mut lease_runs) = (Box::default(), true);
        match record.result {
            IdempotentResult::Lease { key, token, .. } => {
                let is_leased = |slot| self.leased_with(slot, token).is_some();
                lease_runs = slot_of(self, key).is_some_and(is_leased);
            }
            IdempotentResult::Keys { first, count, .. } => {
                slots = ranges(first.range(count).map_while(|number| slot_of(self, number)));
            }
        }
        let stored = StoredAnswer { record, slots, redelivered: false };
        self.idempotency.store(&mut shared.answers, stored, lease_runs);
    }

    pub(crate) fn replay_answer_revoked(&mut self, shared: &mut SharedState, id: IdempotencyId) {
        self.note_change(Changed::OTHER);
        self.idempotency.remove_by_id(&mut shared.answers, id);
    }

    /// Removes expired answers, at most `max` of each kind, and subtracts from it. Returns whether
    /// more may be expired.
    pub(crate) fn remove_due_answers(
        &mut self,
        shared: &mut SharedState,
        now: Now,
        max: &mut usize,
    ) -> bool {
        if self.idempotency.has_nothing_due() {
            return false;
        }
        self.note_change(Changed::OTHER);
        self.idempotency.remove_due(&mut shared.answers, now.lease_us, max)
    }

    /// Subtracts this pool's answers from the shared counts, because the pool is deleted.
    pub(crate) fn uncount_answers(&mut self, shared: &mut SharedState) {
        self.idempotency.uncount(&mut shared.answers);
    }

    /// Returns the number of stored answers. O(1).
    pub fn stored_answer_count(&self) -> u64 {
        self.idempotency.len() as u64
    }
}

const ID_IMPLIES_CALL: &str = "invariant: an answer's id implies the kind of its call";

fn check_body(body: BodyDigest, request: IdempotentRequest) -> Result<(), Refusal> {
    if body == request.body { Ok(()) } else { Err(Refusal::IdempotencyMismatch) }
}

/// Groups slots into ranges, in order: keys of one call mostly have adjacent slots.
fn ranges(slots: impl Iterator<Item = SlotIndex>) -> Box<[SlotRange]> {
    let mut ranges: Vec<SlotRange> = Vec::new();
    for slot in slots {
        match ranges.last_mut() {
            Some(last) if last.first.get() + last.count == slot.get() => last.count += 1,
            _ => ranges.push(SlotRange { first: slot, count: 1 }),
        }
    }
    ranges.into()
}
