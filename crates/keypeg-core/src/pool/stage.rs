//! Adding many keys over several steps: each step stages some, and the last one makes keys of all.
//!
//! What a step stages is invisible to every other call, see `staged.rs`. All checks of a call that
//! adds keys at once apply: a value is checked when it is staged, which keeps it from being added by
//! a second staged call, and the limits are checked at the first and at the last step. An import in
//! one step that brings a staged value wins: the staged call finds the key then.

use super::Pool;
use super::prepare::{HASHES, VALUE_BYTES as HASHED_BYTES};
use crate::clocks::{NEVER_US, US_PER_MS};
use crate::heap::Changed;
use crate::idempotency_store::IdempotentRequest;
use crate::ids::{IdempotentCall, KeyId};
use crate::incoming::IncomingKey;
use crate::indices::{ItemIndex, SlotIndex};
use crate::key::NewKey;
use crate::numbers::KeyNumber;
use crate::prepared::KeysToAdd;
use crate::refusal::Refusal;
use crate::secret::Secret;
use crate::shared::SharedState;
use crate::slots::Slots;
use crate::staged::{AddKeys, KNOWN_MAX, KnownValues, StageOutcome, StagedKeys};
use crate::step::StepContext;
use hashbrown::HashSet;

/// The units of work that it costs to stage or to withdraw one value, see `keypeg-store`.
const STAGE: u32 = 3;
/// The bytes of a value that are copied for one unit.
const COPIED_BYTES: usize = 1_024;
/// The staged keys that the last step makes visible for one unit.
const PUBLISHED: usize = 4;
/// The labels that the last step stores for one unit.
const LABELLED: usize = 2;
/// The bytes of their values that the last step copies into the journal for one unit.
const RECORDED_BYTES: usize = 8_192;

/// Why a step cannot go on.
enum Obstacle {
    Refused(Refusal),
    PoolChanged,
}

impl From<Refusal> for Obstacle {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Pool {
    /// Goes on with a call that adds keys, for about `units` of work, which it subtracts. The last
    /// step, which makes keys of all values, is taken with the units that are left, or else as the
    /// only work of the next call. Calls are staged one after the other: the next one begins when
    /// what the last one staged is published or withdrawn.
    pub fn stage_keys(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        call: &AddKeys<'_>,
        units: &mut u32,
    ) -> StageOutcome {
        if self.staged.is_none()
            && let Err(refusal) = self.begin_staging(shared, step, call)
        {
            return StageOutcome::Refused(refusal);
        }
        let mut staged = self.staged.take().expect("invariant: it has begun");
        debug_assert!(!staged.is_withdrawn, "a withdrawal comes first");
        let outcome = match self.stage_step(shared, step, (call, &mut staged), units) {
            Ok(Some(keys)) => return StageOutcome::Complete(keys),
            Ok(None) => StageOutcome::Incomplete,
            Err(Obstacle::PoolChanged) => StageOutcome::PoolChanged,
            Err(Obstacle::Refused(refusal)) => StageOutcome::Refused(refusal),
        };
        staged.is_withdrawn = outcome != StageOutcome::Incomplete;
        self.staged = Some(staged);
        outcome
    }

    /// Returns the values of a refused import that are known, from the one on that is the reason of
    /// the refusal, for about `units` of work. A value that is known because it occurs before that
    /// one is missing. What is staged does not count as known.
    pub fn known_values(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        (call, first): (&AddKeys<'_>, usize),
        units: &mut u32,
    ) -> KnownValues {
        let mut known = KnownValues { indices: vec![bounded(first)], more: false };
        let mut seen = HashSet::<_, foldhash::fast::RandomState>::default();
        for index in first + 1..call.keys.count() {
            if *units == 0 || known.indices.len() == KNOWN_MAX {
                known.more = true;
                break;
            }
            let is_ready = call.prepared.is_some_and(|it| it.imported(self.id, index).is_some());
            *units = units.saturating_sub(STAGE + if is_ready { 0 } else { HASHES });
            let checked = self.check_imported(shared, step, call, index);
            if !checked.is_ok_and(|id| seen.insert(id)) {
                known.indices.push(bounded(index));
            }
        }
        known
    }

    /// Removes what the last call staged, for about `units` of work; returns whether nothing is left.
    pub fn withdraw_staged(&mut self, shared: &SharedState, units: &mut u32) -> bool {
        let Some(mut staged) = self.staged.take() else { return true };
        if staged.no_room.is_some() {
            return true;
        }
        self.note_change(Changed::KEYS);
        staged.is_withdrawn = true;
        while *units > 0
            && let Some(slot) = staged.slots.pop()
        {
            *units = units.saturating_sub(STAGE);
            let key = staged.keys.pop().expect("invariant: one for each slot");
            if slot != SlotIndex::NONE {
                staged.slot_count -= 1;
                self.unstage(shared, key.id, slot);
            }
        }
        if staged.slots.is_empty() {
            return true;
        }
        self.staged = Some(staged);
        false
    }

    /// Gives the place of a staged value up, because another call adds that value now.
    pub(super) fn take_staged_value(&mut self, shared: &SharedState, id: KeyId, value: &[u8]) {
        let found = self.find_any_value(id, value);
        let Some((slot, place)) =
            found.and_then(|slot| Some((slot, self.slots.staged_place(slot)?)))
        else {
            return;
        };
        self.unstage(shared, id, slot);
        let staged = self.staged.as_mut().expect("invariant: the value is staged");
        staged.slots[place as usize] = SlotIndex::NONE;
        staged.slot_count -= 1;
        staged.taken.push(place);
    }

    /// Returns the number of slots with staged values.
    pub(super) fn staged_count(&self) -> u64 {
        self.staged.as_ref().map_or(0, |staged| staged.slot_count)
    }

    fn unstage(&mut self, shared: &SharedState, id: KeyId, slot: SlotIndex) {
        self.remove_from_index(&shared.ids, id, slot);
        self.slots.withdraw(slot);
    }

    fn begin_staging(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        call: &AddKeys<'_>,
    ) -> Result<(), Refusal> {
        if let Some(request) = self.request_of(shared, call) {
            self.check_room_for_answer(shared, step, request.borrower)?;
        }
        let value_bytes = match call.keys {
            KeysToAdd::Generated(count) => self.bytes_of_generated(count),
            KeysToAdd::Imported(_) => bytes_of(call.keys),
        };
        let value_bytes = value_bytes + call.labels.bytes(call.keys.count());
        let room = self.check_room(shared, step, bounded(call.keys.count()), value_bytes);
        if matches!(call.keys, KeysToAdd::Generated(_)) {
            room.clone()?;
        }
        self.staged = Some(Box::new(StagedKeys::new(&self.policy, room.err())));
        Ok(())
    }

    /// Stages values, and makes keys of them when all are staged.
    fn stage_step(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        (call, staged): (&AddKeys<'_>, &mut StagedKeys),
        units: &mut u32,
    ) -> Result<Option<Vec<NewKey>>, Obstacle> {
        let is_generated = matches!(call.keys, KeysToAdd::Generated(_));
        if is_generated && !(staged.has_form_of(&self.policy) && staged.taken.is_empty()) {
            return Err(Obstacle::PoolChanged);
        }
        self.note_change(Changed::KEYS);
        let was_complete = staged.slots.len() == call.keys.count();
        self.stage_taken_again(shared, step, (call, staged), units)?;
        self.stage_some(shared, step, (call, staged), units)?;
        if staged.slots.len() < call.keys.count() {
            return Ok(None);
        }
        let last =
            staged.slots.len() / PUBLISHED + staged.values.values().packed().len() / RECORDED_BYTES;
        let last = last + call.labels.count(staged.slots.len()) / LABELLED;
        let last = bounded(last);
        if !was_complete && *units < last {
            *units = 0;
            return Ok(None);
        }
        *units = units.saturating_sub(last);
        match self.publish(shared, step, (call, staged)) {
            Ok(keys) => Ok(Some(keys)),
            // What is due is expired first, in this turn or the next ones.
            Err(Obstacle::Refused(Refusal::Settling)) => {
                *units = 0;
                Ok(None)
            }
            Err(obstacle) => Err(obstacle),
        }
    }

    /// Stages the values again that other calls imported meanwhile: their keys may be deleted since.
    fn stage_taken_again(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        (call, staged): (&AddKeys<'_>, &mut StagedKeys),
        units: &mut u32,
    ) -> Result<(), Obstacle> {
        let KeysToAdd::Imported(values) = call.keys else { return Ok(()) };
        // The first value that exists is the one that a client gets.
        staged.taken.sort_unstable_by(|a, b| b.cmp(a));
        while let Some(&place) = staged.taken.last() {
            let id = self.check_imported(shared, step, call, place as usize)?;
            let value = values[place as usize].bytes();
            staged.slots[place as usize] = self.insert_staged(shared, call, (id, value), place);
            staged.slot_count += 1;
            staged.taken.pop();
            *units = units.saturating_sub(STAGE);
        }
        Ok(())
    }

    fn stage_some(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        (call, staged): (&AddKeys<'_>, &mut StagedKeys),
        units: &mut u32,
    ) -> Result<(), Obstacle> {
        let mut generated = Vec::new();
        while *units > 0 && staged.slots.len() < call.keys.count() {
            let place = staged.slots.len();
            let is_ready =
                call.prepared.is_some_and(|ready| ready.is_ready(self.id, &self.policy, place));
            let (id, value) = match call.keys {
                KeysToAdd::Imported(values) => {
                    (self.check_imported(shared, step, call, place)?, values[place].bytes())
                }
                KeysToAdd::Generated(_) => {
                    let id = self.next_generated(shared, step, (call, staged), &mut generated);
                    (id, &generated[..])
                }
            };
            let hashes = if is_ready { 0 } else { HASHES + bounded(value.len() / HASHED_BYTES) };
            let cost = STAGE + hashes + bounded(value.len() / COPIED_BYTES);
            *units = units.saturating_sub(cost);
            if staged.no_room.is_some() {
                if !staged.checked.insert(id) {
                    return Err(Refusal::KeyExists { index: place }.into());
                }
                staged.slots.push(SlotIndex::NONE);
                continue;
            }
            let slot = self.insert_staged(shared, call, (id, value), bounded(place));
            staged.slots.push(slot);
            staged.slot_count += 1;
            staged.values.push(value);
            let value = Secret::from_stored(value);
            let label = call.labels.get(place).map(Into::into);
            staged.keys.push(NewKey { id, value, created_at_ms: 0, expires_at_ms: None, label });
        }
        Ok(())
    }

    fn next_generated(
        &self,
        shared: &SharedState,
        step: &mut StepContext<'_>,
        (call, staged): (&AddKeys<'_>, &mut StagedKeys),
        value: &mut Vec<u8>,
    ) -> KeyId {
        let place = staged.slots.len();
        let ready = call.prepared.and_then(|ready| ready.generated(self.id, &self.policy, place));
        match ready.filter(|(value, id)| !self.has_or_had(*id, value)) {
            Some((ready, id)) => {
                value.clear();
                value.extend_from_slice(ready);
                id
            }
            None => self.draw_value(shared, step.random, &mut staged.symbols, value),
        }
    }

    fn insert_staged(
        &mut self,
        shared: &SharedState,
        call: &AddKeys<'_>,
        (id, value): (KeyId, &[u8]),
        place: u32,
    ) -> SlotIndex {
        let imported = matches!(call.keys, KeysToAdd::Imported(_));
        let keepalive = !imported || call.options.keepalive;
        let number = KeyNumber(0);
        let key = IncomingKey { number, id, value, imported, keepalive };
        let slot = self.slots.stage(&key, place);
        self.insert_into_index(&shared.ids, id, slot);
        slot
    }

    /// Makes keys of all staged values.
    fn publish(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        (call, staged): (&AddKeys<'_>, &mut StagedKeys),
    ) -> Result<Vec<NewKey>, Obstacle> {
        let request = self.request_of(shared, call);
        if let Some(request) = request {
            if self.find_answer(step, request)?.is_some() {
                return Err(Obstacle::PoolChanged);
            }
            self.check_room_for_answer(shared, step, request.borrower)?;
        }
        let count = bounded(staged.slots.len());
        // The slots of staged values count as free ones here.
        let value_bytes = if staged.no_room.is_some() { bytes_of(call.keys) } else { 0 };
        let value_bytes = value_bytes + call.labels.bytes(call.keys.count());
        self.check_room(shared, step, count, value_bytes)?;
        if staged.no_room.is_some() {
            return Err(Obstacle::PoolChanged);
        }
        self.note_change(Changed::LEASES);
        let imported = matches!(call.keys, KeysToAdd::Imported(_));
        let keepalive = !imported || call.options.keepalive;
        let (first, at_ms) = (shared.allocate_keys(count), step.now.wall_us / US_PER_MS);
        let end_us = if keepalive { self.key_end_us(step.now) } else { NEVER_US };
        let expires_at_ms = step.now.serving_to_wall_ms(end_us);
        let mut keys = std::mem::take(&mut staged.keys);
        for (number, (&slot, key)) in first.range(count).zip(staged.slots.iter().zip(&mut keys)) {
            self.slots.publish(slot, number, at_ms);
            self.available.insert(slot, &mut self.slots);
            if keepalive {
                self.key_ends.set(slot, end_us, &mut self.slots);
            }
            self.put_label(slot, key.label.as_deref());
            (key.created_at_ms, key.expires_at_ms) = (at_ms, expires_at_ms);
        }
        self.record_created(step, call, (first, &keys), staged.values.values());
        if let Some(request) = request {
            let slots = staged.slots.iter().copied();
            self.store_new_keys(shared, step, request, (first, &keys), slots);
        }
        Ok(keys)
    }

    fn request_of(&self, shared: &SharedState, call: &AddKeys<'_>) -> Option<IdempotentRequest> {
        call.idempotency.map(|key| self.idempotent_request(shared, IdempotentCall::AddKeys, key))
    }
}

fn bytes_of(keys: KeysToAdd<'_>) -> usize {
    let KeysToAdd::Imported(values) = keys else { return 0 };
    values.iter().map(|value| Slots::bytes_of_value(value.bytes().len())).sum()
}

fn bounded(count: usize) -> u32 {
    u32::try_from(count).expect("invariant: a request is bounded")
}
