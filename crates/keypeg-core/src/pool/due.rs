//! What time ends: leases and rests on lease time, keys on serving time, each at its deadline and
//! never before.
//!
//! Each end costs the step's budget, but those of a key that a call names. Where nothing can be
//! remembered nothing ends, and what is due is over all the same for whoever asks for it.

use super::{Pool, StepContext, is_over};
use crate::clocks::{Now, after};
use crate::event::Event;
use crate::fact::Fact;
use crate::holds::Hold;
use crate::key::KeyState;
use crate::refusal::EndCause;
use crate::sabotage::{Sabotage, enabled};
use crate::shared::SharedState;

impl Pool {
    /// Ends what is due, at most the step's budget. O(log n) for each.
    pub fn expire(&mut self, ledger: &mut SharedState, step: &mut StepContext<'_>) {
        self.settle_returns(ledger, step);
        self.settle_lives(ledger, step);
        self.serve_line(ledger, step);
        self.settle_waits(ledger, step);
    }

    /// Whether something of this pool is due.
    pub(crate) fn is_due(&self, now: Now) -> bool {
        self.next_of_lease_us().is_some_and(|at| at <= now.lease_us) || self.life_is_due(now)
    }

    /// Whether a lease, a rest or a key of this pool is due.
    pub(super) fn key_is_due(&self, now: Now) -> bool {
        self.next_hold_end_us().is_some_and(|at| at <= now.lease_us) || self.life_is_due(now)
    }

    /// When something of this pool is due next in lease time: a return, or the end of a wait.
    pub(crate) fn next_of_lease_us(&self) -> Option<u64> {
        let end = self.line.next_end().map(|(at, _)| at);
        [self.next_hold_end_us(), end].into_iter().flatten().min()
    }

    pub(super) fn life_is_due(&self, now: Now) -> bool {
        self.next_purge_us().is_some_and(|at| is_over(at, now.serving_us))
    }

    pub(super) fn settle_returns(&mut self, ledger: &mut SharedState, step: &mut StepContext<'_>) {
        while let Some((at, hold)) = self.returns.first()
            && at <= step.now.lease_us
            && step.budget > 0
        {
            step.budget -= 1;
            self.come_back(ledger, step, hold, at);
        }
    }

    pub(super) fn settle_lives(&mut self, ledger: &mut SharedState, step: &mut StepContext<'_>) {
        while let Some((at, slot)) = self.lives.first()
            && is_over(at, step.now.serving_us)
            && step.budget > 0
        {
            step.budget -= 1;
            self.purge(ledger, step, slot);
        }
    }

    /// Ends what is due of one key; false when that was the key itself.
    pub(super) fn settle_key(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        slot: u32,
    ) -> bool {
        // Mostly nothing at all is due, and then the key's own deadline, a cache miss, need not be
        // looked up.
        if self.life_is_due(step.now)
            && is_over(self.lives.deadline(slot, &self.slots), step.now.serving_us)
        {
            if !ledger.held {
                self.purge(ledger, step, slot);
            }
            return false;
        }
        while !ledger.held
            && matches!(self.slots.state(slot), Some(KeyState::Leased | KeyState::Resting))
        {
            let hold = self.slots.place(slot);
            let at = self.returns.deadline(hold, &self.holds);
            if at > step.now.lease_us {
                break;
            }
            self.come_back(ledger, step, hold, at);
        }
        true
    }

    /// A hold's time is over: a lease ends, and its key rests where its grant said so.
    pub(super) fn come_back(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        hold: u32,
        at_us: u64,
    ) {
        step.ended_by_time = true;
        let Hold { slot, token, rest_us, .. } = *self.holds.get(hold);
        let leased = self.slots.state(slot) == Some(KeyState::Leased);
        let rest_until_us = if leased && rest_us > 0 { after(at_us, rest_us) } else { 0 };
        if leased {
            self.end_lease(ledger, hold, (rest_until_us, None), EndCause::Expired);
        } else {
            self.free(ledger, slot, EndCause::Expired);
        }
        self.tell(step, || {
            let key = self.id_of(&ledger.ids, slot);
            if leased {
                Event::Expired { key, token, rest_until_us }
            } else {
                Event::KeyFreed { key, was: KeyState::Resting }
            }
        });
    }

    /// Removes a key because nobody kept it alive.
    pub(super) fn purge(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        slot: u32,
    ) {
        let number = self.slots.number(slot);
        let (key, was) = self.forget(ledger, slot);
        if !enabled(Sabotage::ForgetPurge) {
            step.facts.record(&Fact::KeyPurged { pool: self.number, key: number });
        }
        self.tell(step, || Event::Purged { key, was });
    }
}
