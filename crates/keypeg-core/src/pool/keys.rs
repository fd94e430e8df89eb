//! The keys of a pool: room for them, inserting, finding and removing one.
//!
//! Every key is in a slot, in the index by id and in exactly one state, and in the heap of key ends
//! unless it needs no keep-alive.

use super::Pool;
use crate::clocks::{NEVER_US, Now, US_PER_MS, after};
use crate::heap::Changed;
use crate::ids::{IdHashKey, KeyId};
use crate::incoming::IncomingKey;
use crate::indices::SlotIndex;
use crate::key::{KeyRef, KeyState, NewKey};
use crate::lease::Released;
use crate::numbers::PoolId;
use crate::prepared::KeysToAdd;
use crate::refusal::{EndCause, Refusal};
use crate::retired::must_remember;
use crate::sabotage::{Sabotage, enabled};
use crate::secret::Secret;
use crate::shared::SharedState;
use crate::slots::Slots;
use crate::staged::AddKeys;
use crate::step::StepContext;
use crate::symbols::has_tag;

const IMPORTED: &str = "invariant: only an import has values to check";

/// Returns the id of a key of this pool. Hashes at most one block, whatever the value's length is.
fn id_of(slots: &Slots, (ids, pool): (&IdHashKey, PoolId), slot: SlotIndex) -> KeyId {
    slots.stored_id(slot).unwrap_or_else(|| ids.key_id(pool, slots.value(slot)))
}

impl Pool {
    /// Returns whether this value is in the pool, staged or not, or is retired as far as memory
    /// knows.
    pub(super) fn has_or_had(&self, id: KeyId, value: &[u8]) -> bool {
        self.find_any_value(id, value).is_some() || self.retired.contains(id)
    }

    /// Checks one value of an import, and returns its id. A value that is in the pool is refused,
    /// and a retired one too, unless the options allow it.
    pub(super) fn check_imported(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        call: &AddKeys<'_>,
        index: usize,
    ) -> Result<KeyId, Refusal> {
        let KeysToAdd::Imported(values) = call.keys else { unreachable!("{IMPORTED}") };
        let value = values[index].bytes();
        let ready = call.prepared.and_then(|prepared| prepared.imported(self.id, index));
        let id = ready.map_or_else(|| shared.ids.key_id(self.id, value), |key| key.id);
        let exists = self.find_any_value(id, value).is_some_and(|slot| {
            if self.slots.staged_place(slot).is_some() {
                // While a call stages values, `staged` is not here: the value is its own.
                return self.staged.is_none();
            }
            // Purges the key if it is due, which retires the value.
            self.expire_key(shared, step, slot);
            self.find_value(id, value).is_some()
        });
        let has_tag = || match ready {
            Some(ready) => ready.has_tag,
            None => has_tag(&shared.ids, self.id, value),
        };
        let allows_retired = call.options.allow_retired;
        let in_database = || {
            let index = u32::try_from(index).expect("invariant: a request is bounded");
            call.retired.binary_search(&index).is_ok()
        };
        let is_retired = || in_database() || self.is_retired(id, has_tag);
        if exists || !allows_retired && is_retired() {
            return Err(Refusal::KeyExists { index });
        }
        Ok(id)
    }

    /// Returns whether this value, which is not in the pool, was in it before: its key was imported
    /// or generated, and is deleted or purged. The database may know of more imported ones.
    /// `has_tag` returns whether the value ends in the pool's tag.
    pub(super) fn is_retired(&self, id: KeyId, has_tag: impl FnOnce() -> bool) -> bool {
        let was_generated = has_tag() && !enabled(Sabotage::ForgetGenerated);
        was_generated || self.retired.contains(id)
    }

    /// Refuses `count` more keys where the pool's or the server's limit does not allow them, or where
    /// the memory has no room for them; `value_bytes` is what their values take outside their slots.
    pub(super) fn check_room(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        count: u32,
        value_bytes: usize,
    ) -> Result<(), Refusal> {
        self.expire_keys(shared, step);
        let total = self.counts().total();
        let of_pool = self.policy.max_keys.filter(|max| total + u64::from(count) > *max);
        let of_server = (shared.key_count + u64::from(count) > shared.limits.keys)
            .then_some(shared.limits.keys);
        match (of_pool, of_server) {
            (None, None) => self.check_memory(shared, count, value_bytes),
            _ if self.has_due_keys(step.now) => Err(Refusal::Settling),
            (Some(max), _) => Err(Refusal::PoolFull { max, of_server: false }),
            (None, Some(max)) => Err(Refusal::PoolFull { max, of_server: true }),
        }
    }

    /// Returns whether the limits allow `count` more keys, as far as this is known before any due
    /// key is purged. O(1).
    pub(crate) fn seems_to_have_room(&self, shared: &SharedState, count: usize) -> bool {
        let (total, count) = (self.counts().total(), count as u64);
        let fits = self.policy.max_keys.is_none_or(|max| total + count <= max);
        fits && shared.key_count + count <= shared.limits.keys
    }

    /// Inserts a key: available, with its full keep-alive time unless it has none.
    pub(super) fn insert_key(
        &mut self,
        ids: &IdHashKey,
        now: Now,
        key: IncomingKey<'_>,
    ) -> SlotIndex {
        self.note_change(Changed::KEYS);
        self.note_change(Changed::LEASES);
        let slot = self.slots.add(&key, now.wall_us / US_PER_MS);
        self.insert_into_index(ids, key.id, slot);
        self.available.insert(slot, &mut self.slots);
        if key.keepalive {
            self.key_ends.set(slot, self.key_end_us(now), &mut self.slots);
        }
        slot
    }

    pub(super) fn insert_into_index(&mut self, ids: &IdHashKey, id: KeyId, slot: SlotIndex) {
        let (slots, pool) = (&self.slots, self.id);
        self.by_id.insert(id.hash(), slot, |slot| id_of(slots, (ids, pool), slot).hash());
    }

    pub(super) fn remove_from_index(&mut self, ids: &IdHashKey, id: KeyId, slot: SlotIndex) {
        let (slots, pool) = (&self.slots, self.id);
        self.by_id.remove(id.hash(), slot, |slot| id_of(slots, (ids, pool), slot).hash());
    }

    pub(super) fn new_key(&self, now: Now, id: KeyId, slot: SlotIndex) -> NewKey {
        NewKey {
            id,
            value: Secret::from_stored(self.slots.value(slot)),
            created_at_ms: self.slots.created_ms(slot),
            expires_at_ms: now.serving_to_wall_ms(self.key_ends.deadline(slot, &self.slots)),
            label: self.label(slot).map(Into::into),
        }
    }

    /// Finds a key and ends its due lease or rest; a key that is itself due counts as unknown, once
    /// that is recorded.
    pub(super) fn find_live(
        &mut self,
        shared: &mut SharedState,
        step: &mut StepContext<'_>,
        key: &KeyRef,
    ) -> Result<SlotIndex, Refusal> {
        let found = match key {
            KeyRef::Id(id) => self.find(&shared.ids, *id),
            KeyRef::Value(value) => {
                let id = shared.ids.key_id(self.id, value.bytes());
                self.find_value(id, value.bytes())
            }
        };
        let slot = found.ok_or(Refusal::UnknownKey)?;
        if self.expire_key(shared, step, slot) {
            return Ok(slot);
        }
        Err(Self::unless_frozen(shared, Refusal::UnknownKey))
    }

    /// Returns the refusal of a call that found a passed deadline: while the disk is too full to
    /// record that, a crash could undo it.
    pub(super) fn unless_frozen(shared: &SharedState, refusal: Refusal) -> Refusal {
        if shared.clocks_frozen { Refusal::StorageFull } else { refusal }
    }

    /// Finds a key. A staged value is none.
    #[inline]
    pub(super) fn find(&self, ids: &IdHashKey, id: KeyId) -> Option<SlotIndex> {
        let found = self.by_id.find(id.hash(), |slot| self.key_id(ids, slot) == id);
        found.filter(|slot| self.is_key(*slot))
    }

    /// Finds a key by its value.
    pub(super) fn find_value(&self, id: KeyId, value: &[u8]) -> Option<SlotIndex> {
        self.find_any_value(id, value).filter(|slot| self.is_key(*slot))
    }

    /// Returns whether a slot that is in the index has a key. Most pools have no staged value, and
    /// then the slot is not read.
    #[inline]
    fn is_key(&self, slot: SlotIndex) -> bool {
        self.staged.is_none() || self.slots.state(slot).is_some()
    }

    /// Finds a key or a staged value.
    pub(super) fn find_any_value(&self, id: KeyId, value: &[u8]) -> Option<SlotIndex> {
        self.by_id.find(id.hash(), |slot| self.slots.value(slot) == value)
    }

    pub(super) fn key_id(&self, ids: &IdHashKey, slot: SlotIndex) -> KeyId {
        id_of(&self.slots, (ids, self.id), slot)
    }

    /// Returns when a key that is kept alive now is purged, in serving time.
    pub(super) fn key_end_us(&self, now: Now) -> u64 {
        self.policy.keepalive_ttl_ms.map_or(NEVER_US, |ms| after(now.serving_us, ms * US_PER_MS))
    }

    /// Removes a key, and retires its value if the pool would not recognise it. Returns its id,
    /// the state before, and the holder of its lease.
    pub(super) fn remove_key(
        &mut self,
        shared: &mut SharedState,
        slot: SlotIndex,
    ) -> (KeyId, KeyState, Released) {
        self.note_change(Changed::KEYS);
        let id = self.key_id(&shared.ids, slot);
        let was = self.slots.state(slot).expect("invariant: a removed key exists");
        let text = self.detach(shared, slot, EndCause::KeyGone);
        let holder = text.filter(|_| was == KeyState::Leased);
        self.key_ends.cancel(slot, &mut self.slots);
        self.put_label(slot, None);
        self.remove_from_index(&shared.ids, id, slot);
        let (ids, pool) = (&shared.ids, self.id);
        let (value, imported) = (self.slots.value(slot), self.slots.imported(slot));
        let is_retired = must_remember(ids, pool, value, imported);
        if is_retired && !enabled(Sabotage::ForgetRetired) {
            self.note_change(Changed::OTHER);
            self.retired.insert(id, shared.positions);
        }
        self.slots.remove(slot);
        shared.key_count -= 1;
        (id, was, Released { holder })
    }
}
