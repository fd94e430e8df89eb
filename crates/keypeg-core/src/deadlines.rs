//! An indexed 4-ary heap: which item is due first, exactly.
//!
//! Items know their place in the heap through [`HeapIndex`], so a deadline is set or cancelled in
//! O(log n). All items can be given one new deadline in O(1): a heap whose items are equal is a
//! heap however they lie, so only the round is counted on. Knows neither keys nor clocks.

use crate::chunks::Chunks;
use crate::clocks::NEVER_US;

/// Where each item says it is in the heap.
pub(crate) trait HeapIndex {
    fn place(&self, item: u32) -> u32;
    fn set_place(&mut self, item: u32, place: u32);
}

/// The place of an item that is in no heap.
pub(crate) const NO_INDEX: u32 = u32::MAX;

const WAYS: u32 = 4;
const ROUND_BITS: u32 = 44;

/// Deadline (52 bits), round (44 bits), item (32 bits), most significant first.
#[derive(Clone, Copy, Debug)]
struct Entry(u128);

impl Entry {
    fn new(at_us: u64, round: u64, item: u32) -> Self {
        debug_assert!(at_us <= NEVER_US && round < 1 << ROUND_BITS);
        Self(u128::from(at_us) << 76 | u128::from(round) << 32 | u128::from(item))
    }

    fn at_us(self) -> u64 {
        u64::try_from(self.0 >> 76).expect("invariant: 52 bits")
    }

    fn round(self) -> u64 {
        u64::try_from((self.0 >> 32) & ((1 << ROUND_BITS) - 1)).expect("invariant: 44 bits")
    }

    fn item(self) -> u32 {
        u32::try_from(self.0 & u128::from(u32::MAX)).expect("invariant: 32 bits")
    }
}

/// Items by deadline, soonest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Deadlines {
    heap: Chunks<Entry>,
    /// Entries of an earlier round are due at `raised_us`, whatever they say.
    round: u64,
    raised_us: u64,
    /// Whether an entry of this round can be in the heap.
    touched: bool,
}

impl Deadlines {
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    /// The soonest deadline and its item. O(1).
    pub(crate) fn first(&self) -> Option<(u64, u32)> {
        (!self.heap.is_empty()).then(|| (self.due(self.heap[0]), self.heap[0].item()))
    }

    /// The deadline of an item that is in. O(1).
    pub(crate) fn deadline(&self, item: u32, places: &impl HeapIndex) -> u64 {
        let entry = self.heap[places.place(item)];
        debug_assert_eq!(entry.item(), item, "an item is where it says");
        self.due(entry)
    }

    /// Sets an item's deadline, putting it in if it is not. O(log n).
    pub(crate) fn set(&mut self, item: u32, at_us: u64, places: &mut impl HeapIndex) {
        let entry = Entry::new(at_us, self.round, item);
        self.touched = true;
        match places.place(item) {
            NO_INDEX => {
                self.heap.push(entry);
                self.settle(index(self.heap.len() - 1), places);
            }
            place => {
                self.heap[place] = entry;
                self.settle(place, places);
            }
        }
    }

    /// Takes an item out, if it is in. O(log n).
    pub(crate) fn cancel(&mut self, item: u32, places: &mut impl HeapIndex) {
        let place = places.place(item);
        if place == NO_INDEX {
            return;
        }
        let removed = self.heap.swap_remove(place);
        debug_assert_eq!(removed.item(), item, "an item is where it says");
        places.set_place(item, NO_INDEX);
        if (place as usize) < self.heap.len() {
            self.settle(place, places);
        }
    }

    /// Gives every item that is in the same new deadline. O(1).
    pub(crate) fn raise_all(&mut self, at_us: u64) {
        if std::mem::take(&mut self.touched) {
            // 2^44 rounds of a set and a raise each take years at any speed.
            self.round += 1;
        }
        self.raised_us = at_us.min(NEVER_US);
    }

    fn due(&self, entry: Entry) -> u64 {
        if entry.round() == self.round { entry.at_us() } else { self.raised_us }
    }

    /// Moves the entry at `place` up or down to where it belongs.
    fn settle(&mut self, place: u32, places: &mut impl HeapIndex) {
        let entry = self.heap[place];
        let due = self.due(entry);
        let mut hole = place;
        while hole > 0 {
            let parent = (hole - 1) / WAYS;
            let above = self.heap[parent];
            if self.due(above) <= due {
                break;
            }
            self.put(hole, above, places);
            hole = parent;
        }
        if hole == place {
            while let Some((child, below)) = self.soonest_child(hole)
                && self.due(below) < due
            {
                self.put(hole, below, places);
                hole = child;
            }
        }
        self.put(hole, entry, places);
    }

    fn soonest_child(&self, place: u32) -> Option<(u32, Entry)> {
        let first = place as usize * WAYS as usize + 1;
        let end = (first + WAYS as usize).min(self.heap.len());
        (first..end)
            .map(|child| (index(child), self.heap[index(child)]))
            .min_by_key(|&(_, entry)| self.due(entry))
    }

    fn put(&mut self, place: u32, entry: Entry, places: &mut impl HeapIndex) {
        self.heap[place] = entry;
        places.set_place(entry.item(), place);
    }

    /// Panics unless every item is where it says and no item is due before its parent. O(n).
    pub(crate) fn check_invariants(&self, places: &impl HeapIndex) {
        for place in 0..index(self.heap.len()) {
            let entry = self.heap[place];
            assert_eq!(places.place(entry.item()), place, "an item is where it says");
            assert!(entry.round() <= self.round);
            assert!(self.touched || entry.round() < self.round || self.round == 0);
            if place > 0 {
                let parent = self.heap[(place - 1) / WAYS];
                assert!(self.due(parent) <= self.due(entry), "a parent is due first");
            }
        }
    }
}

fn index(at: usize) -> u32 {
    u32::try_from(at).expect("invariant: a heap holds fewer than 2^32 items")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Table(Vec<u32>);

    impl HeapIndex for Table {
        fn place(&self, item: u32) -> u32 {
            self.0[item as usize]
        }
        fn set_place(&mut self, item: u32, place: u32) {
            self.0[item as usize] = place;
        }
    }

    /// A naive list beside the heap, driven by a linear congruence.
    #[test]
    fn it_agrees_with_a_sorted_list() {
        let mut table = Table(vec![NO_INDEX; 300]);
        let mut heap = Deadlines::default();
        let mut list: Vec<Option<u64>> = vec![None; 300];
        let mut state = 1_u64;
        let mut next = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % bound
        };
        for step in 0..20_000 {
            let item = u32::try_from(next(300)).expect("small");
            match next(10) {
                0..=5 => {
                    let at = next(1_000);
                    heap.set(item, at, &mut table);
                    list[item as usize] = Some(at);
                }
                6..=8 => {
                    heap.cancel(item, &mut table);
                    list[item as usize] = None;
                }
                _ => {
                    let at = next(1_000);
                    heap.raise_all(at);
                    list.iter_mut().flatten().for_each(|due| *due = at);
                }
            }
            let soonest = list.iter().flatten().min().copied();
            assert_eq!(heap.first().map(|(at, _)| at), soonest, "step {step}");
            if let Some(due) = list[item as usize] {
                assert_eq!(heap.deadline(item, &table), due);
            }
            heap.check_invariants(&table);
        }
    }
}
