//! Calls under an Idempotency-Key: played once, and answered the same when they are asked again.
//!
//! What is asked again while it waits takes its own place in line over. A refusal is not
//! remembered. An answer is a fact in the batch of what it tells of, so both are there after a
//! crash, or neither.

use super::wait::{WaitOptions, wait_until};
use super::{AcquireOptions, Granted, Pool, StepContext};
use crate::clocks::{Now, after};
use crate::fact::{Fact, IdempotencyRecord, IdempotentResult};
use crate::idempotency_store::{ANSWERS_MAX, IdempotentRequest, KEPT_US, StoredAnswer};
use crate::ids::{BodyDigest, LeaseId};
use crate::key::{LeaseView, NewKey, ReleaseOptions, Secret};
use crate::numbers::KeyNumber;
use crate::refusal::Refusal;
use crate::shared::{SharedState, WaitOutcome};
use crate::wait_queue::Waiter;

/// An Idempotency-Key: whose it is, what it is, and what was asked under it.
#[derive(Clone, Copy, Debug)]
pub struct IdempotencyKey<'a> {
    /// Who asks: the same key is another's with another caller.
    pub caller: &'a str,
    /// The key.
    pub key: &'a str,
    /// What is asked: the same key with another body is refused.
    pub body: BodyDigest,
}

/// The kinds of calls that accept an Idempotency-Key; one key used with both names two answers.
///
/// The discriminants are hashed into the ids of stored answers, which the journal keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdempotentCall {
    /// Generating or importing keys.
    AddKeys = 1,
    /// Acquiring a lease.
    Acquire = 2,
}

impl Pool {
    /// Makes or brings in keys by `make`, once: asked again, it tells of the same keys.
    /// O(keys log n).
    pub fn add_idempotent(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        once: &IdempotencyKey<'_>,
        make: impl FnOnce(
            &mut Self,
            &mut SharedState,
            &mut StepContext<'_>,
        ) -> Result<Vec<NewKey>, Refusal>,
    ) -> Result<Vec<NewKey>, Refusal> {
        let asked = self.asked(ledger, IdempotentCall::AddKeys, once);
        if let Some(at) = self.answered(step, asked)? {
            return self.keys_again(ledger, step, at);
        }
        self.room_for_answer(ledger, step)?;
        let first = ledger.counters.next_key;
        let keys = make(self, ledger, step)?;
        let count = u32::try_from(keys.len()).expect("invariant: a request is bounded");
        let expires_at_ms = keys.first().and_then(|key| key.expires_at_ms);
        let slots = ranges(keys.iter().filter_map(|key| self.find(&ledger.ids, key.id)));
        self.keep(
            ledger,
            step,
            asked,
            IdempotentResult::Keys { first, count, expires_at_ms },
            slots,
        );
        Ok(keys)
    }

    /// Lends a key as [`Pool::acquire_or_wait`] does, once: asked again while the lease runs, it
    /// tells of the same lease, and the last part is true; asked again in line, it has the place.
    /// O(log n).
    pub fn acquire_idempotent(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        wish: &AcquireOptions<'_>,
        wait: WaitOptions,
        once: &IdempotencyKey<'_>,
    ) -> Result<Option<Granted>, Refusal> {
        let WaitOptions { waiter_id, wait_ms } = wait;
        let asked = self.asked(ledger, IdempotentCall::Acquire, once);
        if let Some(at) = self.answered(step, asked)? {
            return self.lease_again(ledger, step, at).map(Some);
        }
        let until_us = wait_until(step, wait_ms);
        if let Some(&(at, body)) = self.replays.waiting.get(&asked.id) {
            same_body(body, asked)?;
            let before = self.line.take_over(at, waiter_id, step.now.lease_us, until_us);
            ledger.waiters.remove(&before);
            ledger.waiters.insert(waiter_id, (self.seat, at));
            let outcome = Err(Refusal::TakenOver);
            ledger.handed.push(WaitOutcome { waiter_id: before, outcome });
            return Ok(None);
        }
        self.room_for_answer(ledger, step)?;
        match self.acquire(ledger, step, wish) {
            Ok(granted) => {
                self.keep_grant(ledger, step, asked, &granted.lease);
                Ok(Some(granted))
            }
            Err(Refusal::NoKey { .. }) if wait_ms > 0 => {
                let waiter = Waiter::new(waiter_id, step.now.lease_us, wish);
                let at = self.join(ledger, waiter.under(Some(asked)), until_us)?;
                self.replays.waiting.insert(asked.id, (at, asked.body));
                Ok(None)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Gives back a grant that nobody received. One that an Idempotency-Key has told of since is
    /// somebody's, and stays. O(log n).
    pub fn revoke_undelivered(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        lease: LeaseId,
    ) -> Result<(), Refusal> {
        let answered = self.replays.of_token(lease.token());
        if answered.is_some_and(|at| self.replays.get(at).again) {
            return Ok(());
        }
        let id = answered.map(|at| self.replays.get(at).answer.id);
        self.release(ledger, step, lease, &ReleaseOptions::default())?;
        if let Some(id) = id {
            self.replays.forget_id(ledger, id);
            step.facts.record(&Fact::AnswerRevoked { pool: self.number, id });
        }
        Ok(())
    }

    /// Whether this was asked before, and its answer is kept.
    pub(crate) fn has_stored_answer(
        &self,
        ledger: &SharedState,
        call: IdempotentCall,
        once: &IdempotencyKey<'_>,
        now_us: u64,
    ) -> bool {
        let asked = self.asked(ledger, call, once);
        self.replays.find(asked.id, now_us).is_some()
    }

    fn asked(
        &self,
        ledger: &SharedState,
        call: IdempotentCall,
        once: &IdempotencyKey<'_>,
    ) -> IdempotentRequest {
        let id = ledger.ids.answer_id(self.number, call as u8, once.caller, once.key);
        IdempotentRequest { id, body: once.body }
    }

    /// The answer that is kept, if this was asked before.
    fn answered(
        &self,
        step: &StepContext<'_>,
        asked: IdempotentRequest,
    ) -> Result<Option<u32>, Refusal> {
        let Some(at) = self.replays.find(asked.id, step.now.lease_us) else { return Ok(None) };
        same_body(self.replays.get(at).answer.body, asked)?;
        Ok(Some(at))
    }

    fn room_for_answer(
        &mut self,
        ledger: &mut SharedState,
        step: &StepContext<'_>,
    ) -> Result<(), Refusal> {
        if self.replays.has_room(ledger, step.now.lease_us) {
            return Ok(());
        }
        Err(Refusal::TooManyAnswers { max: ANSWERS_MAX })
    }

    /// Keeps what a grant told.
    pub(super) fn keep_grant(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        asked: IdempotentRequest,
        lease: &LeaseView,
    ) {
        let hold = self.holds.find(lease.token).expect("invariant: just lent");
        let said = IdempotentResult::Lease {
            key: self.slots.number(self.holds.get(hold).slot),
            token: lease.token,
            until_us: self.returns.deadline(hold, &self.holds),
            granted_at_ms: lease.granted_at_ms,
            expires_at_ms: lease.expires_at_ms,
            key_expires_at_ms: lease.key_expires_at_ms,
        };
        self.keep(ledger, step, asked, said, Box::default());
    }

    fn keep(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        IdempotentRequest { id, body }: IdempotentRequest,
        result: IdempotentResult,
        slots: Box<[(u32, u32)]>,
    ) {
        let until_us = after(step.now.lease_us, KEPT_US);
        let answer = IdempotencyRecord { id, body, until_us, result };
        self.replays.keep(ledger, StoredAnswer { answer, slots, again: false }, true);
        step.facts.record(&Fact::AnswerStored { pool: self.number, answer });
    }

    /// Tells of the keys again that an answer told of, as it did; refused when one is gone.
    fn keys_again(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        at: u32,
    ) -> Result<Vec<NewKey>, Refusal> {
        let StoredAnswer { answer, slots, .. } = self.replays.get(at);
        let IdempotentResult::Keys { first, count, expires_at_ms } = answer.result else {
            unreachable!("{ROUTED}")
        };
        let slots = slots.clone();
        let mut keys = Vec::with_capacity(count as usize);
        let places = slots.iter().flat_map(|(slot, run)| *slot..slot + run);
        for (number, slot) in first.range(count).zip(places) {
            let there = self.slots.state(slot).is_some() && self.slots.number(slot) == number;
            if !there || !self.settle_key(ledger, step, slot) {
                return Err(Refusal::KeysGone);
            }
            keys.push(NewKey {
                id: self.id_of(&ledger.ids, slot),
                value: Secret::of_pool(self.slots.value(slot)),
                created_at_ms: self.slots.created_ms(slot),
                expires_at_ms,
            });
        }
        if keys.len() < count as usize { Err(Refusal::KeysGone) } else { Ok(keys) }
    }

    /// Tells of the lease again that an answer told of, as it did but for the time left; where it
    /// was renewed since, its end is the present one.
    fn lease_again(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        at: u32,
    ) -> Result<Granted, Refusal> {
        let said = self.replays.get(at).answer.result;
        let IdempotentResult::Lease { token, until_us, granted_at_ms, .. } = said else {
            unreachable!("{ROUTED}")
        };
        let hold = self.running(ledger, step, ledger.ids.lease_id(self.number, token))?;
        self.replays.give_again(at);
        let mut view = self.lease_view(&ledger.ids, step.now, hold);
        view.granted_at_ms = granted_at_ms;
        if let IdempotentResult::Lease { expires_at_ms, key_expires_at_ms, .. } = said
            && self.returns.deadline(hold, &self.holds) == until_us
        {
            (view.expires_at_ms, view.key_expires_at_ms) = (expires_at_ms, key_expires_at_ms);
        }
        let slot = self.holds.get(hold).slot;
        let value = Secret::of_pool(self.slots.value(slot));
        Ok(Granted { lease: view, value, redelivered: true })
    }

    /// Keeps an answer that facts tell of; `slot_of` finds a key by its number.
    pub(crate) fn replay_answered(
        &mut self,
        ledger: &mut SharedState,
        answer: IdempotencyRecord,
        slot_of: impl Fn(&Self, KeyNumber) -> Option<u32>,
    ) {
        let (mut slots, mut runs) = (Box::default(), true);
        match answer.result {
            IdempotentResult::Lease { key, token, .. } => {
                let lent = |slot| self.lent_for(slot, token).is_some();
                runs = slot_of(self, key).is_some_and(lent);
            }
            IdempotentResult::Keys { first, count, .. } => {
                let numbers = first.range(count);
                slots = ranges(numbers.map_while(|number| slot_of(self, number)));
            }
        }
        self.replays.keep(ledger, StoredAnswer { answer, slots, again: false }, runs);
    }

    pub(crate) fn replay_unanswered(&mut self, ledger: &mut SharedState, id: crate::IdempotencyId) {
        self.replays.forget_id(ledger, id);
    }

    /// Forgets answers whose time is over, at most `max`; true when more are to go.
    pub(crate) fn forget_answers(
        &mut self,
        ledger: &mut SharedState,
        now: Now,
        max: usize,
    ) -> bool {
        self.replays.forget_due(ledger, now.lease_us, max)
    }

    /// KeyCounts this pool's answers no more: it is removed.
    pub(crate) fn leave_answers(&self, ledger: &mut SharedState) {
        self.replays.leave(ledger);
    }

    /// Answers that are kept. O(1).
    pub fn stored_answer_count(&self) -> u64 {
        self.replays.len() as u64
    }
}

const ROUTED: &str = "invariant: an answer's id tells its route";

fn same_body(body: BodyDigest, asked: IdempotentRequest) -> Result<(), Refusal> {
    if body == asked.body { Ok(()) } else { Err(Refusal::IdempotencyMismatch) }
}

/// Slots as ranges, in order: keys made at once mostly lie side by side.
fn ranges(slots: impl Iterator<Item = u32>) -> Box<[(u32, u32)]> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for slot in slots {
        match ranges.last_mut() {
            Some((first, run)) if *first + *run == slot => *run += 1,
            _ => ranges.push((slot, 1)),
        }
    }
    ranges.into()
}
