//! The free keys: a dense array; each slot knows its place in it.
//!
//! Insert, remove and a uniform draw are O(1): the last entry fills the hole. Draws are uniform
//! only because the array has no holes and no key twice.

use crate::RandomSource;
use crate::chunks::Chunks;
use crate::slots::Slots;

/// Slots of the keys that are free to be lent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Available {
    slots: Chunks<u32>,
}

impl Available {
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Puts a key in that is in neither these nor the holds.
    pub(crate) fn insert(&mut self, slot: u32, slots: &mut Slots) {
        slots.set_place(slot, u32::try_from(self.slots.len()).expect("invariant: bounded"));
        self.slots.push(slot);
    }

    /// Takes a key out that is in.
    pub(crate) fn remove(&mut self, slot: u32, slots: &mut Slots) {
        let place = slots.place(slot);
        let removed = self.slots.swap_remove(place);
        debug_assert_eq!(removed, slot, "a free key is where it says");
        if (place as usize) < self.slots.len() {
            slots.set_place(self.slots[place], place);
        }
    }

    /// Draws one, each as likely; it stays in. `None` when there is none.
    pub(crate) fn draw(&self, random: &mut dyn RandomSource) -> Option<u32> {
        let len = u32::try_from(self.slots.len()).expect("invariant: bounded");
        (len > 0).then(|| self.slots[random.below(len)])
    }

    /// Panics unless each key is where it says. O(n).
    pub(crate) fn check_invariants(&self, slots: &Slots) {
        for place in 0..u32::try_from(self.slots.len()).expect("invariant: bounded") {
            assert_eq!(slots.place(self.slots[place]), place, "a free key is where it says");
        }
    }
}
