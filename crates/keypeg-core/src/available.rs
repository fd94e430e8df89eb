//! The available keys of a pool: a dense array of slots; each slot stores its position in it.
//!
//! Insertion, removal and a uniform random draw are O(1): removal moves the last entry into the
//! hole (swap-remove). A draw is uniform only because the array has no holes and no duplicates.

use crate::chunks::Chunks;
use crate::indices::{AvailablePosition, ItemIndex, SlotIndex};
use crate::random::RandomSource;
use crate::slots::Slots;

/// Slots of the keys that can be leased.
#[derive(Clone, Debug, Default)]
pub(crate) struct Available {
    slots: Chunks<AvailablePosition, SlotIndex>,
}

impl Available {
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns the bytes of the array. O(1).
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.slots.bytes()
    }

    /// Inserts a key that is neither here nor among the holds, and makes its state available.
    #[inline]
    pub(crate) fn insert(&mut self, slot: SlotIndex, slots: &mut Slots) {
        let position = self.slots.push(slot);
        slots.set_available(slot, position);
    }

    /// Removes a key that is here.
    pub(crate) fn remove(&mut self, slot: SlotIndex, slots: &mut Slots) {
        let position = slots.available_position(slot);
        let removed = self.slots.swap_remove(position);
        debug_assert_eq!(removed, slot, "an available key is at its position");
        if (position.get() as usize) < self.slots.len() {
            slots.set_available_position(self.slots[position], position);
        }
    }

    /// Returns a uniformly random key, which stays here; `None` when there is no key.
    pub(crate) fn draw(&self, random: &mut dyn RandomSource) -> Option<SlotIndex> {
        let len = u32::try_from(self.slots.len()).expect("invariant: keys are bounded");
        (len > 0).then(|| self.slots[AvailablePosition::new(random.below(len))])
    }

    /// Panics unless each key is at its position. O(n).
    pub(crate) fn check_invariants(&self, slots: &Slots) {
        for position in (0..self.slots.len()).map(AvailablePosition::of) {
            let stored = slots.available_position(self.slots[position]);
            assert_eq!(stored, position, "an available key is at its position");
        }
    }
}
