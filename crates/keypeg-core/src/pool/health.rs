//! What becomes of a key that is given back: it rests, or is out of rotation until somebody puts
//! it back, and why.
//!
//! Why a key rests lies in its hold, why it is out of rotation in a side table by slot: a key that
//! nobody said anything about takes no memory for it.

use super::Pool;
use super::StepContext;
use crate::chunks::Chunks;
use crate::clocks::{US_PER_MS, after};
use crate::deadlines::NO_INDEX;
use crate::event::Event;
use crate::fact::Fact;
use crate::ids::LeaseId;
use crate::key::{KeyState, ReleaseOptions};
use crate::policy::{DURATION_MAX_MS, OutOfRange, REST};
use crate::refusal::{EndCause, Refusal};
use crate::shared::SharedState;

impl Pool {
    /// Gives a running lease's key back, with what its holder says of it. O(log n).
    pub fn release(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        lease: LeaseId,
        verdict: &ReleaseOptions,
    ) -> Result<(), Refusal> {
        if verdict.rest_ms.is_some_and(|ms| ms > DURATION_MAX_MS) {
            return Err(Refusal::Invalid(OutOfRange { field: "rest_seconds", allowed: REST }));
        }
        let hold = self.running(ledger, step, lease)?;
        // An empty reason is none: a journal cannot tell the two apart.
        let reason = verdict.reason.as_deref().filter(|reason| !reason.is_empty());
        if verdict.quarantine {
            let (slot, token) = (self.holds.get(hold).slot, self.holds.get(hold).token);
            let key = self.slots.number(slot);
            self.set_aside(ledger, slot, reason);
            step.facts.record(&Fact::Quarantined { pool: self.number, key, reason });
            let id = || self.id_of(&ledger.ids, slot);
            self.tell(step, || Event::Quarantined { key: id(), token, reason });
        } else {
            let as_granted = self.holds.get(hold).rest_us;
            let rest_us = verdict.rest_ms.map_or(as_granted, |ms| ms * US_PER_MS);
            self.end_by_call(ledger, step, hold, (rest_us, reason));
        }
        Ok(())
    }

    /// Ends a lease because a call said so: the key rests for so long, for this reason.
    pub(super) fn end_by_call(
        &mut self,
        ledger: &mut SharedState,
        step: &mut StepContext<'_>,
        hold: u32,
        (rest_us, reason): (u64, Option<&str>),
    ) {
        let (slot, token) = (self.holds.get(hold).slot, self.holds.get(hold).token);
        let key = self.slots.number(slot);
        let rest_until_us = if rest_us > 0 { after(step.now.lease_us, rest_us) } else { 0 };
        let reason = reason.filter(|_| rest_us > 0);
        self.end_lease(ledger, hold, (rest_until_us, reason), EndCause::Released);
        let pool = self.number;
        step.facts.record(&Fact::Released { pool, key, token, rest_until_us, reason });
        let id = || self.id_of(&ledger.ids, slot);
        self.tell(step, || Event::Released { key: id(), token, rest_until_us, reason });
    }

    /// Ends a lease: its key rests until a time, or is free when that is 0.
    pub(super) fn end_lease(
        &mut self,
        ledger: &mut SharedState,
        hold: u32,
        (rest_until_us, reason): (u64, Option<&str>),
        cause: EndCause,
    ) {
        let slot = self.holds.get(hold).slot;
        if rest_until_us == 0 {
            self.free(ledger, slot, cause);
            return;
        }
        self.note_end(ledger, hold, cause);
        self.begin_rest(hold, rest_until_us, reason);
    }

    /// Lets the key of a lease that has ended rest until a time.
    pub(super) fn begin_rest(&mut self, hold: u32, until_us: u64, reason: Option<&str>) {
        let slot = self.holds.get(hold).slot;
        self.slots.set_state(slot, KeyState::Resting);
        self.resting += 1;
        self.holds.rest(hold, reason);
        self.returns.set(hold, until_us, &mut self.holds);
    }

    /// Takes a key out of rotation, whatever it was.
    pub(super) fn set_aside(&mut self, ledger: &mut SharedState, slot: u32, reason: Option<&str>) {
        self.detach(ledger, slot, EndCause::Released);
        self.slots.set_state(slot, KeyState::Quarantined);
        self.slots.set_place(slot, self.reasons.add(reason));
        self.quarantined += 1;
    }

    /// Why a key rests or is out of rotation, where somebody said so.
    pub(super) fn reason(&self, slot: u32) -> Option<&str> {
        let place = self.slots.place(slot);
        match self.slots.state(slot)? {
            KeyState::Resting => self.holds.get(place).words.as_deref(),
            KeyState::Quarantined => self.reasons.get(place),
            KeyState::Available | KeyState::Leased => None,
        }
    }
}

/// Why keys are out of rotation: only of those of which it was said.
#[derive(Clone, Debug, Default)]
pub(super) struct Reasons {
    texts: Chunks<Box<str>>,
    free: Chunks<u32>,
}

impl Reasons {
    pub(super) fn len(&self) -> usize {
        self.texts.len() - self.free.len()
    }

    /// Keeps a reason and gives its place; that of none is [`NO_INDEX`].
    fn add(&mut self, reason: Option<&str>) -> u32 {
        let Some(reason) = reason else { return NO_INDEX };
        if let Some(at) = self.free.pop() {
            self.texts[at] = reason.into();
            return at;
        }
        self.texts.push(reason.into());
        u32::try_from(self.texts.len() - 1).expect("invariant: keys are bounded")
    }

    pub(super) fn remove(&mut self, at: u32) {
        if at != NO_INDEX {
            self.texts[at] = Box::default();
            self.free.push(at);
        }
    }

    fn get(&self, at: u32) -> Option<&str> {
        (at != NO_INDEX).then(|| &*self.texts[at])
    }
}
