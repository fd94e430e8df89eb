//! An indexed 4-ary heap: returns the item with the earliest deadline, exactly.
//!
//! Each item stores its position in the heap (see [`HeapIndex`]), so a deadline is set or
//! cancelled in O(log n). [`Deadlines::raise_all`] gives all items one new deadline in O(1) by
//! starting a new epoch: any order of items with equal deadlines is a valid heap. Knows neither
//! keys nor clocks.

use crate::chunks::Chunks;
use crate::clocks::NEVER_US;
use crate::indices::{HeapBlock, HeapPosition, ItemIndex, NOT_IN_HEAP};
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
/// The position of the first entry. The positions before it are unused, so that the children of a
/// node begin at a multiple of [`ARITY`] and are in one block.
const ROOT: u32 = ARITY - 1;
/// Entries of a block: one for each bit.
const BLOCK: u32 = u64::BITS;

/// An item and the deadline at which it is due.
#[derive(Clone, Copy, Debug)]
struct Entry {
    at_us: u64,
    item: u32,
}

/// An [`Entry`] in 12 bytes in place of 16.
#[derive(Clone, Copy, Debug)]
#[repr(Rust, packed(4))]
struct Stored {
    at_us: u64,
    item: u32,
}

impl From<Entry> for Stored {
    #[inline]
    fn from(Entry { at_us, item }: Entry) -> Self {
        Self { at_us, item }
    }
}

/// The latest epoch in which an entry of a block was placed, and a bit for each entry that was
/// placed in it.
#[derive(Clone, Copy, Debug, Default)]
struct Placed {
    epoch: u64,
    bits: u64,
}

/// Items ordered by deadline, earliest first.
#[derive(Clone, Debug)]
pub(crate) struct Deadlines<I> {
    /// The entries from [`ROOT`] on; empty when there is none.
    heap: Chunks<HeapPosition, Stored>,
    /// Which entries were placed in the current epoch. The others are due at `raised_us`, whatever
    /// they store. The root is always among them.
    placed: Chunks<HeapBlock, Placed>,
    /// The current epoch. In epoch 0, before all items are given one deadline for the first time,
    /// each entry is due at its own deadline.
    epoch: u64,
    raised_us: u64,
    item: PhantomData<I>,
}

impl<I> Default for Deadlines<I> {
    fn default() -> Self {
        let (heap, placed) = (Chunks::default(), Chunks::default());
        Self { heap, placed, epoch: 0, raised_us: 0, item: PhantomData }
    }
}

impl<I: ItemIndex> Deadlines<I> {
    pub(crate) fn len(&self) -> usize {
        self.heap.len().saturating_sub(ROOT as usize)
    }

    /// Returns the bytes of the heap. O(1).
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.heap.bytes() + self.placed.bytes()
    }

    /// Returns the earliest deadline and its item. O(1).
    #[inline]
    pub(crate) fn first(&self) -> Option<(u64, I)> {
        (!self.heap.is_empty()).then(|| {
            let Stored { at_us, item } = self.heap[HeapPosition::new(ROOT)];
            (at_us, I::new(item))
        })
    }

    /// Returns the deadline of an item, [`NEVER_US`] for one that is not in the heap. O(1).
    #[inline]
    pub(crate) fn deadline(&self, item: I, positions: &impl HeapIndex<Item = I>) -> u64 {
        let position = positions.heap_position(item);
        if position == NOT_IN_HEAP {
            return NEVER_US;
        }
        let entry = self.entry(position);
        debug_assert!(entry.item == item.get(), "an item is at its heap position");
        entry.at_us
    }

    /// Sets an item's deadline, inserting the item if necessary. O(log n).
    pub(crate) fn set(&mut self, item: I, at_us: u64, positions: &mut impl HeapIndex<Item = I>) {
        let entry = Entry { at_us, item: item.get() };
        match positions.heap_position(item) {
            NOT_IN_HEAP => {
                let position = self.push(entry);
                self.sift_up(position, entry, positions);
            }
            position if at_us < self.entry(position).at_us => {
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
        let removed = self.entry(position);
        debug_assert!(removed.item == item.get(), "an item is at its heap position");
        positions.set_heap_position(item, NOT_IN_HEAP);
        let last = self.pop();
        if (position.get() as usize) < self.heap.len() {
            if last.at_us < removed.at_us {
                self.sift_up(position, last, positions);
            } else {
                self.sift_down(position, last, positions);
            }
        }
    }

    /// Gives every item in the heap the same new deadline. O(1).
    pub(crate) fn raise_all(&mut self, at_us: u64) {
        self.epoch += 1;
        self.raised_us = at_us.min(NEVER_US);
        if !self.heap.is_empty() {
            let root = HeapPosition::new(ROOT);
            self.heap[root].at_us = self.raised_us;
            self.note_placed(root);
        }
    }

    /// Returns an entry with the deadline at which it is due.
    #[inline]
    fn entry(&self, position: HeapPosition) -> Entry {
        self.due(self.heap[position], self.placed_from(position))
    }

    /// Returns an entry with the deadline at which it is due, given the bits from it on.
    #[inline]
    fn due(&self, stored: Stored, placed: u64) -> Entry {
        let Stored { at_us, item } = stored;
        Entry { at_us: if placed & 1 == 1 { at_us } else { self.raised_us }, item }
    }

    /// Returns the bits of the entries that were placed in the current epoch, from a position to the
    /// end of its block.
    #[inline]
    fn placed_from(&self, position: HeapPosition) -> u64 {
        if self.epoch == 0 {
            return u64::MAX;
        }
        let placed = self.placed[block_of(position)];
        if placed.epoch == self.epoch { placed.bits >> (position.get() % BLOCK) } else { 0 }
    }

    /// Appends an entry, which is still to be placed, and returns its position.
    fn push(&mut self, entry: Entry) -> HeapPosition {
        if self.heap.is_empty() {
            for _ in 0..ROOT {
                self.heap.push(entry.into());
            }
            self.placed.push(Placed::default());
        }
        let position = self.heap.push(entry.into());
        if position.get().is_multiple_of(BLOCK) {
            self.placed.push(Placed::default());
        }
        position
    }

    /// Removes the last entry of a heap that is not empty.
    fn pop(&mut self) -> Entry {
        let placed = self.placed_from(HeapPosition::of(self.heap.len() - 1));
        let last = self.heap.pop().expect("invariant: the heap is not empty");
        let last = self.due(last, placed);
        if self.heap.len() == ROOT as usize {
            while self.heap.pop().is_some() {}
        }
        if self.heap.len().is_multiple_of(BLOCK as usize) {
            self.placed.pop();
        }
        last
    }

    /// Places an entry at `position` or above it: it is due no later than what is below.
    fn sift_up(
        &mut self,
        position: HeapPosition,
        entry: Entry,
        positions: &mut impl HeapIndex<Item = I>,
    ) {
        let mut hole = position;
        while hole.get() > ROOT {
            let parent = parent_of(hole);
            let above = self.entry(parent);
            if above.at_us <= entry.at_us {
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
        let mut hole = position;
        while let Some((child, below)) = self.earliest_child(hole)
            && below.at_us < entry.at_us
        {
            self.place(hole, below, positions);
            hole = child;
        }
        self.place(hole, entry, positions);
    }

    fn earliest_child(&self, position: HeapPosition) -> Option<(HeapPosition, Entry)> {
        let first = first_child_of(position);
        if first >= self.heap.len() {
            return None;
        }
        let (first, placed) = (HeapPosition::of(first), self.placed_from(HeapPosition::of(first)));
        let children = self.heap.group::<{ ARITY as usize }>(first);
        let due =
            (0..).zip(children).map(|(index, child)| (index, self.due(*child, placed >> index)));
        let (index, child) = due.min_by_key(|&(_, child)| child.at_us)?;
        Some((HeapPosition::new(first.get() + index), child))
    }

    #[inline]
    fn place(
        &mut self,
        position: HeapPosition,
        entry: Entry,
        positions: &mut impl HeapIndex<Item = I>,
    ) {
        self.heap[position] = entry.into();
        if self.epoch > 0 {
            self.note_placed(position);
        }
        positions.set_heap_position(I::new(entry.item), position);
    }

    #[inline(never)]
    fn note_placed(&mut self, position: HeapPosition) {
        let placed = &mut self.placed[block_of(position)];
        if placed.epoch != self.epoch {
            *placed = Placed { epoch: self.epoch, bits: 0 };
        }
        placed.bits |= 1 << (position.get() % BLOCK);
    }

    /// Panics unless every item is at its position and no item is due before its parent. O(n).
    pub(crate) fn check_invariants(&self, positions: &impl HeapIndex<Item = I>) {
        assert_eq!(
            self.placed.len(),
            self.heap.len().div_ceil(BLOCK as usize),
            "blocks and entries"
        );
        assert!(self.heap.is_empty() || self.placed_from(HeapPosition::new(ROOT)) & 1 == 1);
        for position in (ROOT as usize..self.heap.len()).map(HeapPosition::of) {
            let entry = self.entry(position);
            let stored = positions.heap_position(I::new(entry.item));
            assert_eq!(stored, position, "an item is at its heap position");
            if position.get() > ROOT {
                let parent_us = self.entry(parent_of(position)).at_us;
                assert!(parent_us <= entry.at_us, "a parent is due before its children");
            }
        }
    }
}

#[inline]
fn block_of(position: HeapPosition) -> HeapBlock {
    HeapBlock::new(position.get() / BLOCK)
}

/// Returns the parent of any position but the root.
#[inline]
fn parent_of(position: HeapPosition) -> HeapPosition {
    HeapPosition::new(position.get() / ARITY + ROOT - 1)
}

#[inline]
fn first_child_of(position: HeapPosition) -> usize {
    ARITY as usize * (position.get() - (ROOT - 1)) as usize
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

    #[test]
    fn an_entry_takes_12_bytes_and_a_quarter() {
        assert_eq!(size_of::<Stored>(), 12);
        assert_eq!(size_of::<Placed>() * 4, BLOCK as usize);
        let mut table = Table(vec![NOT_IN_HEAP; 1 << 16]);
        let mut heap = Deadlines::default();
        (0..(1 << 16) - ROOT).for_each(|item| heap.set(item, u64::from(item), &mut table));
        assert!(heap.bytes() >> 16 <= 12, "{} bytes for 65 533 entries", heap.bytes());
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
