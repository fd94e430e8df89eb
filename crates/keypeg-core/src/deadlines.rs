//! An indexed 4-ary heap: returns the item with the earliest deadline, exactly.
//!
//! Each item stores its position in the heap (see [`HeapIndex`]), so a deadline is set or
//! cancelled in O(log n). [`Deadlines::raise_all`] gives all items one new deadline in O(1) by
//! starting a new epoch: any order of items with equal deadlines is a valid heap. Knows neither
//! keys nor clocks.

use crate::chunks::Chunks;
use crate::clocks::NEVER_US;
use crate::indices::{HeapPosition, ItemIndex, NOT_IN_HEAP};
use std::marker::PhantomData;

/// The positions of items in one heap, stored beside the items.
pub(crate) trait HeapIndex {
    type Item: ItemIndex;

    /// Returns [`NOT_IN_HEAP`] for an item that is not in the heap.
    fn heap_position(&self, item: Self::Item) -> HeapPosition;
    fn set_heap_position(&mut self, item: Self::Item, position: HeapPosition);
}

/// The most children of a node.
const ARITY: u32 = 4;
const EPOCH_BITS: u32 = 44;

/// Deadline (52 bits), epoch (44 bits), item (32 bits), most significant first.
#[derive(Clone, Copy, Debug)]
struct Entry(u128);

impl Entry {
    #[inline]
    fn new(at_us: u64, epoch: u64, item: u32) -> Self {
        debug_assert!(at_us <= NEVER_US && epoch < 1 << EPOCH_BITS);
        Self(u128::from(at_us) << 76 | u128::from(epoch) << 32 | u128::from(item))
    }

    #[inline]
    fn at_us(self) -> u64 {
        u64::try_from(self.0 >> 76).expect("invariant: 52 bits")
    }

    #[inline]
    fn epoch(self) -> u64 {
        u64::try_from((self.0 >> 32) & ((1 << EPOCH_BITS) - 1)).expect("invariant: 44 bits")
    }

    #[inline]
    fn item<I: ItemIndex>(self) -> I {
        I::new(u32::try_from(self.0 & u128::from(u32::MAX)).expect("invariant: 32 bits"))
    }
}

/// Items ordered by deadline, earliest first.
#[derive(Clone, Debug)]
pub(crate) struct Deadlines<I> {
    heap: Chunks<HeapPosition, Entry>,
    /// The current epoch. Entries of an earlier epoch are due at `raised_us`, whatever they store.
    epoch: u64,
    raised_us: u64,
    /// Whether an entry of the current epoch can be in the heap.
    touched: bool,
    item: PhantomData<I>,
}

impl<I> Default for Deadlines<I> {
    fn default() -> Self {
        let heap = Chunks::default();
        Self { heap, epoch: 0, raised_us: 0, touched: false, item: PhantomData }
    }
}

impl<I: ItemIndex> Deadlines<I> {
    pub(crate) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Returns the bytes of the heap. O(1).
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.heap.bytes()
    }

    /// Returns the earliest deadline and its item. O(1).
    pub(crate) fn first(&self) -> Option<(u64, I)> {
        let root = HeapPosition::new(0);
        (!self.heap.is_empty()).then(|| (self.due(self.heap[root]), self.heap[root].item()))
    }

    /// Returns the deadline of an item, [`NEVER_US`] for one that is not in the heap. O(1).
    pub(crate) fn deadline(&self, item: I, positions: &impl HeapIndex<Item = I>) -> u64 {
        let position = positions.heap_position(item);
        if position == NOT_IN_HEAP {
            return NEVER_US;
        }
        let entry = self.heap[position];
        debug_assert!(entry.item::<I>() == item, "an item is at its heap position");
        self.due(entry)
    }

    /// Sets an item's deadline, inserting the item if necessary. O(log n).
    pub(crate) fn set(&mut self, item: I, at_us: u64, positions: &mut impl HeapIndex<Item = I>) {
        let entry = Entry::new(at_us, self.epoch, item.get());
        self.touched = true;
        match positions.heap_position(item) {
            NOT_IN_HEAP => {
                let position = self.heap.push(entry);
                self.sift_up(position, entry, positions);
            }
            position if at_us < self.due(self.heap[position]) => {
                self.sift_up(position, entry, positions);
            }
            position => self.sift_down(position, entry, positions),
        }
    }

    /// Removes an item, if it is in the heap. O(log n).
    pub(crate) fn cancel(&mut self, item: I, positions: &mut impl HeapIndex<Item = I>) {
        let position = positions.heap_position(item);
        if position == NOT_IN_HEAP {
            return;
        }
        let (removed, last) = (self.heap[position], self.heap.pop());
        let last = last.expect("invariant: the position is below the length");
        debug_assert!(removed.item::<I>() == item, "an item is at its heap position");
        positions.set_heap_position(item, NOT_IN_HEAP);
        if (position.get() as usize) < self.heap.len() {
            if self.due(last) < self.due(removed) {
                self.sift_up(position, last, positions);
            } else {
                self.sift_down(position, last, positions);
            }
        }
    }

    /// Gives every item in the heap the same new deadline. O(1).
    pub(crate) fn raise_all(&mut self, at_us: u64) {
        if std::mem::take(&mut self.touched) {
            // 2^44 epochs last for years, even if every call starts one.
            self.epoch += 1;
        }
        self.raised_us = at_us.min(NEVER_US);
    }

    fn due(&self, entry: Entry) -> u64 {
        if entry.epoch() == self.epoch { entry.at_us() } else { self.raised_us }
    }

    /// Places an entry at `position` or above it: it is due no later than what is below.
    fn sift_up(
        &mut self,
        position: HeapPosition,
        entry: Entry,
        positions: &mut impl HeapIndex<Item = I>,
    ) {
        let (due, mut hole) = (self.due(entry), position);
        while hole.get() > 0 {
            let parent = parent_of(hole);
            let above = self.heap[parent];
            if self.due(above) <= due {
                break;
            }
            self.place(hole, above, positions);
            hole = parent;
        }
        self.place(hole, entry, positions);
    }

    /// Places an entry at `position` or below it: it is due no earlier than what is above.
    fn sift_down(
        &mut self,
        position: HeapPosition,
        entry: Entry,
        positions: &mut impl HeapIndex<Item = I>,
    ) {
        let (due, mut hole) = (self.due(entry), position);
        while let Some((child, below)) = self.earliest_child(hole)
            && self.due(below) < due
        {
            self.place(hole, below, positions);
            hole = child;
        }
        self.place(hole, entry, positions);
    }

    fn earliest_child(&self, position: HeapPosition) -> Option<(HeapPosition, Entry)> {
        let first = position.get() as usize * ARITY as usize + 1;
        let end = (first + ARITY as usize).min(self.heap.len());
        (first..end)
            .map(|child| (HeapPosition::of(child), self.heap[HeapPosition::of(child)]))
            .min_by_key(|&(_, entry)| self.due(entry))
    }

    fn place(
        &mut self,
        position: HeapPosition,
        entry: Entry,
        positions: &mut impl HeapIndex<Item = I>,
    ) {
        self.heap[position] = entry;
        positions.set_heap_position(entry.item(), position);
    }

    /// Panics unless every item is at its position and no item is due before its parent. O(n).
    pub(crate) fn check_invariants(&self, positions: &impl HeapIndex<Item = I>) {
        for position in (0..self.heap.len()).map(HeapPosition::of) {
            let entry = self.heap[position];
            let stored = positions.heap_position(entry.item());
            assert_eq!(stored, position, "an item is at its heap position");
            assert!(entry.epoch() <= self.epoch);
            assert!(self.touched || entry.epoch() < self.epoch || self.epoch == 0);
            if position.get() > 0 {
                let parent = self.heap[parent_of(position)];
                assert!(self.due(parent) <= self.due(entry), "a parent is due before its children");
            }
        }
    }
}

#[inline]
fn parent_of(position: HeapPosition) -> HeapPosition {
    HeapPosition::new((position.get() - 1) / ARITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Table(Vec<HeapPosition>);

    impl HeapIndex for Table {
        type Item = u32;
        fn heap_position(&self, item: u32) -> HeapPosition {
            self.0[item as usize]
        }
        fn set_heap_position(&mut self, item: u32, position: HeapPosition) {
            self.0[item as usize] = position;
        }
    }

    /// Random operations, drawn by a linear congruential generator, on the heap and on a plain
    /// list.
    #[test]
    fn it_agrees_with_a_plain_list() {
        let mut table = Table(vec![NOT_IN_HEAP; 300]);
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
            let earliest = list.iter().flatten().min().copied();
            assert_eq!(heap.first().map(|(at, _)| at), earliest, "step {step}");
            if let Some(due) = list[item as usize] {
                assert_eq!(heap.deadline(item, &table), due);
            }
            heap.check_invariants(&table);
        }
    }
}
