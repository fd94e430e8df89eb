//! Calls under an Idempotency-Key: played once, and answered the same when they are asked again.
//!
//! What is asked again while it waits takes its own place in line over. A refusal is not
//! remembered. An answer is a fact in the batch of what it tells of, so both are there after a
//! crash, or neither.

use super::wait::wait_until;
use super::{Pool, Step, Wish};
use crate::clocks::{Now, after};
use crate::fact::{Answer, Fact, Said};
use crate::ids::{Digest, LeaseId};
use crate::key::{LeaseView, NewKey, Secret, Verdict};
use crate::ledger::{Handed, Ledger};
use crate::line::Waiter;
use crate::refusal::Refusal;
use crate::replays::{ANSWERS_MAX, Asked, KEPT_US, Kept};

/// An Idempotency-Key: whose it is, what it is, and what was asked under it.
#[derive(Clone, Copy, Debug)]
pub struct Once<'a> {
    /// Who asks: the same key is another's with another caller.
    pub by: &'a str,
    /// The key.
    pub key: &'a str,
    /// What is asked: the same key with another body is refused.
    pub body: Digest,
}

const MAKES_KEYS: u8 = 1;
const LENDS: u8 = 2;

impl Pool {
    /// Makes or brings in keys by `make`, once: asked again, it tells of the same keys.
    /// O(keys log n).
    pub fn add_once(
        &mut self,
        ledger: &mut Ledger,
        step: &mut Step<'_>,
        once: &Once<'_>,
        make: impl FnOnce(&mut Self, &mut Ledger, &mut Step<'_>) -> Result<Vec<NewKey>, Refusal>,
    ) -> Result<Vec<NewKey>, Refusal> {
        let asked = self.asked(ledger, MAKES_KEYS, once);
        if let Some(at) = self.answered(step, asked)? {
            return self.keys_again(ledger, step, at);
        }
        self.room_for_answer(ledger, step)?;
        let first = ledger.counters.next_key;
        let keys = make(self, ledger, step)?;
        let count = u32::try_from(keys.len()).expect("invariant: a request is bounded");
        let expires_at_ms = keys.first().and_then(|key| key.expires_at_ms);
        let slots = ranges(keys.iter().filter_map(|key| self.find(&ledger.ids, key.id)));
        self.keep(ledger, step, asked, Said::Keys { first, count, expires_at_ms }, slots);
        Ok(keys)
    }

    /// Lends a key as [`Pool::acquire_or_wait`] does, once: asked again while the lease runs, it
    /// tells of the same lease, and the last part is true; asked again in line, it has the place.
    /// O(log n).
    pub fn acquire_once(
        &mut self,
        ledger: &mut Ledger,
        step: &mut Step<'_>,
        wish: &Wish<'_>,
        (ticket, wait_ms): (u64, u64),
        once: &Once<'_>,
    ) -> Result<Option<(LeaseView, Secret, bool)>, Refusal> {
        let asked = self.asked(ledger, LENDS, once);
        if let Some(at) = self.answered(step, asked)? {
            return self.lease_again(ledger, step, at).map(|(lease, key)| Some((lease, key, true)));
        }
        let until_us = wait_until(step, wait_ms);
        if let Some(&(at, body)) = self.replays.waiting.get(&asked.id) {
            same_body(body, asked)?;
            let before = self.line.take_over(at, ticket, step.now.lease_us, until_us);
            ledger.waiters.remove(&before);
            ledger.waiters.insert(ticket, (self.seat, at));
            let outcome = Err(Refusal::TakenOver);
            ledger.handed.push(Handed { ticket: before, outcome });
            return Ok(None);
        }
        self.room_for_answer(ledger, step)?;
        match self.acquire(ledger, step, wish) {
            Ok((lease, value)) => {
                self.keep_grant(ledger, step, asked, &lease);
                Ok(Some((lease, value, false)))
            }
            Err(Refusal::NoKey { .. }) if wait_ms > 0 => {
                let waiter = Waiter::new(ticket, step.now.lease_us, wish);
                let at = self.join(ledger, waiter.under(Some(asked)), until_us)?;
                self.replays.waiting.insert(asked.id, (at, asked.body));
                Ok(None)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Gives back a grant that nobody received. One that an Idempotency-Key has told of since is
    /// somebody's, and stays. O(log n).
    pub fn take_back(
        &mut self,
        ledger: &mut Ledger,
        step: &mut Step<'_>,
        lease: LeaseId,
    ) -> Result<(), Refusal> {
        let answered = self.replays.of_token(lease.token());
        if answered.is_some_and(|at| self.replays.get(at).again) {
            return Ok(());
        }
        let id = answered.map(|at| self.replays.get(at).answer.id);
        self.release(ledger, step, lease, &Verdict::default())?;
        if let Some(id) = id {
            self.replays.forget_id(ledger, id);
            step.facts.fact(&Fact::Unanswered { pool: self.number, id });
        }
        Ok(())
    }

    /// Whether this was asked before, and its answer is kept.
    pub(crate) fn is_answered(
        &self,
        ledger: &Ledger,
        lends: bool,
        once: &Once<'_>,
        now_us: u64,
    ) -> bool {
        let asked = self.asked(ledger, if lends { LENDS } else { MAKES_KEYS }, once);
        self.replays.find(asked.id, now_us).is_some()
    }

    fn asked(&self, ledger: &Ledger, route: u8, once: &Once<'_>) -> Asked {
        let id = ledger.ids.answer_id(self.number, route, once.by, once.key);
        Asked { id, body: once.body }
    }

    /// The answer that is kept, if this was asked before.
    fn answered(&self, step: &Step<'_>, asked: Asked) -> Result<Option<u32>, Refusal> {
        let Some(at) = self.replays.find(asked.id, step.now.lease_us) else { return Ok(None) };
        same_body(self.replays.get(at).answer.body, asked)?;
        Ok(Some(at))
    }

    fn room_for_answer(&mut self, ledger: &mut Ledger, step: &Step<'_>) -> Result<(), Refusal> {
        if self.replays.has_room(ledger, step.now.lease_us) {
            return Ok(());
        }
        Err(Refusal::TooManyAnswers { max: ANSWERS_MAX })
    }

    /// Keeps what a grant told.
    pub(super) fn keep_grant(
        &mut self,
        ledger: &mut Ledger,
        step: &mut Step<'_>,
        asked: Asked,
        lease: &LeaseView,
    ) {
        let hold = self.holds.find(lease.token).expect("invariant: just lent");
        let said = Said::Lease {
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
        ledger: &mut Ledger,
        step: &mut Step<'_>,
        Asked { id, body }: Asked,
        said: Said,
        slots: Box<[(u32, u32)]>,
    ) {
        let until_us = after(step.now.lease_us, KEPT_US);
        let answer = Answer { id, body, until_us, said };
        self.replays.keep(ledger, Kept { answer, slots, again: false }, true);
        step.facts.fact(&Fact::Answered { pool: self.number, answer });
    }

    /// Tells of the keys again that an answer told of, as it did; refused when one is gone.
    fn keys_again(
        &mut self,
        ledger: &mut Ledger,
        step: &mut Step<'_>,
        at: u32,
    ) -> Result<Vec<NewKey>, Refusal> {
        let Kept { answer, slots, .. } = self.replays.get(at);
        let Said::Keys { first, count, expires_at_ms } = answer.said else {
            unreachable!("{ROUTED}")
        };
        let slots = slots.clone();
        let mut keys = Vec::with_capacity(count as usize);
        let places = slots.iter().flat_map(|(slot, run)| *slot..slot + run);
        for (number, slot) in (first..).zip(places) {
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
        ledger: &mut Ledger,
        step: &mut Step<'_>,
        at: u32,
    ) -> Result<(LeaseView, Secret), Refusal> {
        let said = self.replays.get(at).answer.said;
        let Said::Lease { token, until_us, granted_at_ms, .. } = said else {
            unreachable!("{ROUTED}")
        };
        let hold = self.running(ledger, step, ledger.ids.lease_id(self.number, token))?;
        self.replays.give_again(at);
        let mut view = self.lease_view(&ledger.ids, step.now, hold);
        view.granted_at_ms = granted_at_ms;
        if let Said::Lease { expires_at_ms, key_expires_at_ms, .. } = said
            && self.returns.deadline(hold, &self.holds) == until_us
        {
            (view.expires_at_ms, view.key_expires_at_ms) = (expires_at_ms, key_expires_at_ms);
        }
        let slot = self.holds.get(hold).slot;
        Ok((view, Secret::of_pool(self.slots.value(slot))))
    }

    /// Keeps an answer that facts tell of; `slot_of` finds a key by its number.
    pub(crate) fn replay_answered(
        &mut self,
        ledger: &mut Ledger,
        answer: Answer,
        slot_of: impl Fn(&Self, u64) -> Option<u32>,
    ) {
        let (mut slots, mut runs) = (Box::default(), true);
        match answer.said {
            Said::Lease { key, token, .. } => {
                let lent = |slot| self.lent_for(slot, token).is_some();
                runs = slot_of(self, key).is_some_and(lent);
            }
            Said::Keys { first, count, .. } => {
                let numbers = first..first.saturating_add(u64::from(count));
                slots = ranges(numbers.map_while(|number| slot_of(self, number)));
            }
        }
        self.replays.keep(ledger, Kept { answer, slots, again: false }, runs);
    }

    pub(crate) fn replay_unanswered(&mut self, ledger: &mut Ledger, id: crate::AnswerId) {
        self.replays.forget_id(ledger, id);
    }

    /// Forgets answers whose time is over, at most `max`; true when more are to go.
    pub(crate) fn forget_answers(&mut self, ledger: &mut Ledger, now: Now, max: usize) -> bool {
        self.replays.forget_due(ledger, now.lease_us, max)
    }

    /// Counts this pool's answers no more: it is removed.
    pub(crate) fn leave_answers(&self, ledger: &mut Ledger) {
        self.replays.leave(ledger);
    }

    /// Answers that are kept. O(1).
    pub fn answers(&self) -> u64 {
        self.replays.len() as u64
    }
}

const ROUTED: &str = "invariant: an answer's id tells its route";

fn same_body(body: Digest, asked: Asked) -> Result<(), Refusal> {
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
