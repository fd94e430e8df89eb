//! Quarantine by key id: a call takes a key out of rotation, at once or when its lease ends, and
//! puts it back.
//!
//! A leased key whose quarantine begins when its lease ends is draining. A flag of its slot says
//! so; its lease is like any other. The end of the lease needs no fact of its own for that: replay
//! finds the flag too.

use super::Pool;
use crate::event::Event;
use crate::fact::{Fact, Grant};
use crate::heap::Changed;
use crate::indices::SlotIndex;
use crate::key::{KeyQuarantined, KeyRef, KeyState, KeyView, QuarantineOptions};
use crate::refusal::{EndCause, Refusal};
use crate::sabotage::{Sabotage, enabled};
use crate::shared::SharedState;
use crate::slot_texts::SlotTexts;
use crate::step::StepContext;

impl Pool {
    /// Quarantines a key: at once, or when its lease ends if it is leased and the options say so.
    /// A key that is quarantined or draining stays so, and gets the reason if there is one.
    /// O(log n).
    pub fn quarantine_key(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        key: &KeyRef,
        options: &QuarantineOptions,
    ) -> Result<KeyQuarantined, Refusal> {
        let slot = self.find_live(shared, step, key)?;
        let before = self.quarantine_reason(slot);
        // The journal cannot distinguish an empty reason from none.
        let reason = options.reason.as_deref().filter(|reason| !reason.is_empty());
        let reason: Option<Box<str>> = reason.map(Into::into).or_else(|| before.clone().flatten());
        let mut holder = None;
        match self.slots.state(slot).expect("invariant: a found key exists") {
            KeyState::Leased if options.when_free => {
                let stays = before.as_ref() == Some(&reason);
                if !stays {
                    self.drain(shared, step, slot, reason.as_deref())?;
                }
            }
            KeyState::Leased => {
                let reason = reason.as_deref();
                let reason = reason.map(|reason| Self::reason_that_fits(shared, reason));
                holder = self.quarantine_leased(shared, step, self.slots.hold(slot), reason);
            }
            KeyState::Quarantined if before.as_ref() == Some(&reason) => {}
            was @ (KeyState::Available | KeyState::Resting | KeyState::Quarantined) => {
                let reason = reason.as_deref();
                let reason = reason.map(|reason| Self::reason_that_fits(shared, reason));
                self.quarantine(shared, slot, reason, EndCause::Released);
                self.record_quarantine(step, slot, reason);
                self.emit_quarantined(shared, step, slot, was);
            }
        }
        Ok(KeyQuarantined { key: self.key_view(shared, step.now, slot), holder })
    }

    /// Makes a quarantined key available, and lets the lease of a draining key end without a
    /// quarantine. Any other key stays as it is. O(log n).
    pub fn end_quarantine(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        key: &KeyRef,
    ) -> Result<KeyView, Refusal> {
        let slot = self.find_live(shared, step, key)?;
        let (pool, number) = (self.id, self.slots.number(slot));
        if self.slots.state(slot) == Some(KeyState::Quarantined) {
            self.make_available(shared, slot, EndCause::Released);
            step.facts.record(&Fact::KeyFreed { pool, key: number });
            let was = KeyState::Quarantined;
            self.emit(step, || Event::KeyFreed { key: self.key_id(&shared.ids, slot), was });
        } else if self.slots.is_draining(slot) {
            self.stop_drain(slot);
            step.facts.record(&Fact::DrainCancelled { pool, key: number });
            let token = self.holds.get(self.slots.hold(slot)).token;
            let id = || self.key_id(&shared.ids, slot);
            self.emit(step, || Event::DrainCancelled { key: id(), token });
        }
        Ok(self.key_view(shared, step.now, slot))
    }

    /// Lets the quarantine of a leased key begin when its lease ends.
    fn drain(
        &mut self,
        shared: &SharedState,
        step: &mut StepContext<'_>,
        slot: SlotIndex,
        reason: Option<&str>,
    ) -> Result<(), Refusal> {
        let bytes = reason.map_or(0, SlotTexts::bytes_of);
        if bytes > 0 && !shared.has_memory_for_keys(bytes) {
            return Err(Refusal::KeyMemoryFull { max: shared.key_bytes_max() });
        }
        self.start_drain(slot, reason);
        self.record_quarantine(step, slot, reason);
        let token = self.holds.get(self.slots.hold(slot)).token;
        let id = || self.key_id(&shared.ids, slot);
        self.emit(step, || Event::Draining { key: id(), token, reason });
        Ok(())
    }

    fn record_quarantine(&self, step: &mut StepContext<'_>, slot: SlotIndex, reason: Option<&str>) {
        if !enabled(Sabotage::ForgetDrain) {
            let (pool, key) = (self.id, self.slots.number(slot));
            step.facts.record(&Fact::QuarantinedWhenFree { pool, key, reason });
        }
    }

    /// Emits the event of a quarantine that ended no lease.
    #[cold]
    pub(super) fn emit_quarantined(
        &self,
        shared: &SharedState,
        step: &mut StepContext<'_>,
        slot: SlotIndex,
        was: KeyState,
    ) {
        self.emit(step, || {
            let (key, reason) = (self.key_id(&shared.ids, slot), self.reason(slot));
            Event::Quarantined { key, was, token: None, reason }
        });
    }

    /// Marks a leased key as draining, with this reason.
    pub(super) fn start_drain(&mut self, slot: SlotIndex, reason: Option<&str>) {
        if self.slots.is_draining(slot) {
            self.stop_drain(slot);
        }
        self.note_change(Changed::OTHER);
        self.draining += 1;
        self.slots.set_draining(slot, true);
        if let Some(reason) = reason {
            self.drain_reasons.add(slot, reason);
        }
    }

    /// Ends the draining of a key, which leaves its lease as it is.
    #[cold]
    pub(super) fn stop_drain(&mut self, slot: SlotIndex) {
        self.note_change(Changed::OTHER);
        self.draining -= 1;
        self.slots.set_draining(slot, false);
        if self.drain_reasons.text_of(slot).is_some() {
            self.drain_reasons.remove(slot);
        }
    }

    /// Ends the lease of a draining key, and quarantines the key. Returns the holder.
    #[cold]
    pub(super) fn end_drain(
        &mut self,
        shared: &mut SharedState,
        slot: SlotIndex,
        cause: EndCause,
    ) -> Option<Box<str>> {
        let reason: Option<Box<str>> = self.drain_reasons.text_of(slot).map(Into::into);
        self.quarantine(shared, slot, reason.as_deref(), cause)
    }

    /// Returns the reason of the present quarantine of a key, or of the one that begins when its
    /// lease ends; `None` for any other key.
    #[expect(
        clippy::option_option,
        reason = "no quarantine, no reason and a reason are three cases"
    )]
    fn quarantine_reason(&self, slot: SlotIndex) -> Option<Option<Box<str>>> {
        let quarantined = self.slots.state(slot) == Some(KeyState::Quarantined);
        (quarantined || self.slots.is_draining(slot)).then(|| self.reason(slot).map(Into::into))
    }
}

/// Replay, see `replay.rs`.
impl Pool {
    /// Quarantines a key from the end of its lease on: at once where no lease runs.
    pub(crate) fn replay_quarantined_when_free(
        &mut self,
        shared: &mut SharedState,
        slot: SlotIndex,
        reason: Option<&str>,
    ) {
        if self.slots.state(slot) == Some(KeyState::Leased) {
            self.start_drain(slot, reason);
        } else {
            self.quarantine(shared, slot, reason, EndCause::Released);
        }
    }

    /// Ends the draining of a key. A key whose lease is not known yet is quarantined in its place:
    /// the record of the lease is in a deleted segment, and its snapshot record follows.
    pub(crate) fn replay_drain_cancelled(&mut self, shared: &mut SharedState, slot: SlotIndex) {
        if self.slots.is_draining(slot) {
            self.stop_drain(slot);
        } else if self.slots.state(slot) == Some(KeyState::Quarantined) {
            self.make_available(shared, slot, EndCause::Released);
        }
    }

    /// Leases a key again with the lease of a snapshot record. A quarantined key is draining: its
    /// row in the database does not say whether its lease has ended, and this record does.
    pub(crate) fn replay_lease_snapshot(
        &mut self,
        shared: &mut SharedState,
        slot: SlotIndex,
        token: u64,
        lease: &Grant<'_>,
    ) {
        let reason = self.quarantine_reason(slot);
        self.replay_granted(shared, slot, token, lease);
        if let Some(reason) = reason.filter(|_| !self.slots.is_draining(slot)) {
            self.start_drain(slot, reason.as_deref());
        }
    }
}
