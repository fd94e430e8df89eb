//! A vector that grows in chunks: pushing never moves existing items, so growing to ten million
//! items never stops the server, and popping frees memory. An empty vector keeps a small chunk. Knows
//! nothing of keys.

use crate::heap::allocated;
use crate::indices::ItemIndex;
use std::marker::PhantomData;

const SHIFT: u32 = 12;
/// Items in a chunk.
const CHUNK: usize = 1 << SHIFT;
const MASK: usize = CHUNK - 1;
/// Room for items in a first chunk, which doubles up to [`CHUNK`].
const FIRST_ROOM: usize = 4;
/// The most bytes of a chunk that an empty vector keeps. The available keys of a busy pool are often
/// none and then one: that must not allocate memory each time.
const KEPT_MAX: usize = 1_024;

/// A vector of `T` in chunks, indexed by `I`; every chunk but the last is full.
#[derive(Debug)]
pub(crate) struct Chunks<I, T> {
    parts: Vec<Vec<T>>,
    len: usize,
    /// The bytes of the parts.
    bytes: usize,
    index: PhantomData<I>,
}

impl<I, T> Default for Chunks<I, T> {
    fn default() -> Self {
        Self { parts: Vec::new(), len: 0, bytes: 0, index: PhantomData }
    }
}

/// Gives each chunk of the copy the room that the original has: a chunk but the first never grows.
impl<I, T: Clone> Clone for Chunks<I, T> {
    fn clone(&self) -> Self {
        let copy = |part: &Vec<T>| {
            let mut chunk = Vec::with_capacity(part.capacity());
            chunk.extend_from_slice(part);
            chunk
        };
        let mut parts = Vec::with_capacity(self.parts.capacity());
        parts.extend(self.parts.iter().map(copy));
        Self { parts, len: self.len, bytes: self.bytes, index: PhantomData }
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

    /// Returns the bytes of all items and of the room for more. O(1).
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends an item and returns its index.
    #[inline]
    pub(crate) fn push(&mut self, item: T) -> I {
        let len = self.len;
        match self.parts.last_mut() {
            Some(last) if last.len() < last.capacity() => last.push(item),
            _ => self.make_room().push(item),
        }
        self.len = len + 1;
        I::of(len)
    }

    /// Makes room for one item at least, in the last chunk.
    #[cold]
    fn make_room(&mut self) -> &mut Vec<T> {
        match &mut self.parts[..] {
            // The first chunk grows by doubling, so that a small pool stays small.
            [first] if first.len() < CHUNK => {
                self.bytes -= chunk_bytes(first);
                let room = first.len().max(FIRST_ROOM).min(CHUNK - first.len());
                first.reserve_exact(room);
                self.bytes += chunk_bytes(first);
            }
            parts => {
                let capacity = if parts.is_empty() { FIRST_ROOM } else { CHUNK };
                let chunk = Vec::with_capacity(capacity);
                self.bytes += chunk_bytes(&chunk);
                let list = self.parts.capacity();
                self.parts.push(chunk);
                let list_bytes = |capacity: usize| allocated(capacity * size_of::<Vec<T>>());
                self.bytes += list_bytes(self.parts.capacity()) - list_bytes(list);
            }
        }
        self.parts.last_mut().expect("invariant: there is room")
    }

    #[inline]
    pub(crate) fn pop(&mut self) -> Option<T> {
        let last = self.parts.last_mut()?;
        let item = last.pop()?;
        self.len -= 1;
        if last.is_empty() && !is_kept(last) {
            self.free_last();
        }
        Some(item)
    }

    /// Frees the last chunk.
    #[cold]
    fn free_last(&mut self) {
        let chunk = self.parts.pop().expect("invariant: there is a last chunk");
        self.bytes -= chunk_bytes(&chunk);
    }

    /// Returns the `N` items from `first` on, a multiple of `N`, fewer at the end; `N` is a power of
    /// two, so that they are in one chunk.
    #[inline]
    pub(crate) fn group<const N: usize>(&self, first: I) -> &[T] {
        let first = first.get() as usize;
        let (part, from) = (&self.parts[first >> SHIFT], first & MASK);
        &part[from..(from + N).min(part.len())]
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

/// Returns whether an empty vector keeps this chunk. Only a first chunk has so little room.
fn is_kept<T>(chunk: &Vec<T>) -> bool {
    chunk.capacity() * size_of::<T>() <= KEPT_MAX
}

fn chunk_bytes<T>(chunk: &Vec<T>) -> usize {
    allocated(chunk.capacity() * size_of::<T>())
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
    fn an_empty_vector_keeps_a_small_chunk_and_frees_a_large_one() {
        let (mut small, mut large) = (Chunks::<u32, u64>::default(), Chunks::<u32, u64>::default());
        for number in 0..128 {
            small.push(number);
            large.push(number);
        }
        large.push(128);
        let kept = small.bytes();
        while small.pop().is_some() {}
        while large.pop().is_some() {}
        assert_eq!(small.bytes(), kept, "128 items take 1 KiB");
        assert!(small.push(0) == 0 && small.bytes() == kept, "nothing is allocated again");
        assert!(large.bytes() < kept && large.parts.is_empty());
    }

    #[test]
    fn it_behaves_like_a_vector_across_chunk_boundaries() {
        let mut chunks = Chunks::<u32, usize>::default();
        let mut vector = Vec::new();
        let bytes = |chunks: &Chunks<u32, usize>| {
            let list = allocated(chunks.parts.capacity() * size_of::<Vec<usize>>());
            chunks.parts.iter().map(chunk_bytes).sum::<usize>() + list
        };
        for number in 0..3 * CHUNK + 5 {
            assert_eq!(chunks.push(number) as usize, number);
            vector.push(number);
            assert_eq!(chunks.bytes(), bytes(&chunks));
        }
        assert_eq!(chunks.clone().bytes(), bytes(&chunks.clone()));
        for index in [0, CHUNK - 1, CHUNK, 2 * CHUNK + 3, vector.len() - 1 - 4] {
            assert_eq!(chunks.swap_remove(u32::of(index)), vector.swap_remove(index));
        }
        while let Some(number) = vector.pop() {
            assert_eq!(chunks.len(), vector.len() + 1);
            assert_eq!(chunks.pop(), Some(number));
            assert_eq!(chunks.bytes(), bytes(&chunks));
        }
        assert!(chunks.is_empty() && chunks.pop().is_none() && chunks.parts.is_empty());
    }
}
