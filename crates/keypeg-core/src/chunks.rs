//! A vector that grows in chunks: pushing never moves existing items, so growing to ten million
//! items never stops the server, and popping frees memory. Knows nothing of keys.

use crate::indices::ItemIndex;
use std::marker::PhantomData;

const SHIFT: u32 = 12;
/// Items in a chunk.
const CHUNK: usize = 1 << SHIFT;
const MASK: usize = CHUNK - 1;

/// A vector of `T` in chunks, indexed by `I`; every chunk but the last is full.
#[derive(Clone, Debug)]
pub(crate) struct Chunks<I, T> {
    parts: Vec<Vec<T>>,
    len: usize,
    index: PhantomData<I>,
}

impl<I, T> Default for Chunks<I, T> {
    fn default() -> Self {
        Self { parts: Vec::new(), len: 0, index: PhantomData }
    }
}

impl<I: ItemIndex, T> Chunks<I, T> {
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends an item and returns its index.
    pub(crate) fn push(&mut self, item: T) -> I {
        if self.parts.last().is_none_or(|last| last.len() == CHUNK) {
            // The first chunk grows by doubling, so that a small pool stays small.
            let capacity = if self.parts.is_empty() { 0 } else { CHUNK };
            self.parts.push(Vec::with_capacity(capacity));
        }
        self.parts.last_mut().expect("invariant: just pushed").push(item);
        self.len += 1;
        I::of(self.len - 1)
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        let item = self.parts.last_mut()?.pop()?;
        self.len -= 1;
        if self.parts.last().is_some_and(Vec::is_empty) {
            self.parts.pop();
        }
        Some(item)
    }

    /// Removes the item at `index` and moves the last item into its position.
    pub(crate) fn swap_remove(&mut self, index: I) -> T {
        let last = self.pop().expect("invariant: the index is below the length");
        if index.get() as usize == self.len {
            last
        } else {
            std::mem::replace(&mut self[index], last)
        }
    }
}

impl<I: ItemIndex, T> std::ops::Index<I> for Chunks<I, T> {
    type Output = T;
    #[inline]
    fn index(&self, index: I) -> &T {
        let index = index.get() as usize;
        &self.parts[index >> SHIFT][index & MASK]
    }
}

impl<I: ItemIndex, T> std::ops::IndexMut<I> for Chunks<I, T> {
    #[inline]
    fn index_mut(&mut self, index: I) -> &mut T {
        let index = index.get() as usize;
        &mut self.parts[index >> SHIFT][index & MASK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_behaves_like_a_vector_across_chunk_boundaries() {
        let mut chunks = Chunks::<u32, usize>::default();
        let mut vector = Vec::new();
        for number in 0..3 * CHUNK + 5 {
            assert_eq!(chunks.push(number) as usize, number);
            vector.push(number);
        }
        for index in [0, CHUNK - 1, CHUNK, 2 * CHUNK + 3, vector.len() - 1 - 4] {
            assert_eq!(chunks.swap_remove(u32::of(index)), vector.swap_remove(index));
        }
        while let Some(number) = vector.pop() {
            assert_eq!(chunks.len(), vector.len() + 1);
            assert_eq!(chunks.pop(), Some(number));
        }
        assert!(chunks.is_empty() && chunks.pop().is_none() && chunks.parts.is_empty());
    }
}
