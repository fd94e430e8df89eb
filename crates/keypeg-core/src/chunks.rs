//! A vector that grows in chunks: pushing never moves what is already there, so growing to ten
//! million never stops the world, and popping gives memory back. Knows nothing of keys.

const SHIFT: u32 = 12;
/// Items in a chunk.
const CHUNK: usize = 1 << SHIFT;
const MASK: usize = CHUNK - 1;

/// A vector of chunks; every chunk but the last is full. Indexed by `u32`.
#[derive(Clone, Debug)]
pub(crate) struct Chunks<T> {
    chunks: Vec<Vec<T>>,
    len: usize,
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }
}

impl<T> Chunks<T> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn push(&mut self, item: T) {
        if self.chunks.last().is_none_or(|last| last.len() == CHUNK) {
            // The first chunk grows as it needs, so that a small pool stays small.
            let capacity = if self.chunks.is_empty() { 0 } else { CHUNK };
            self.chunks.push(Vec::with_capacity(capacity));
        }
        self.chunks.last_mut().expect("invariant: just pushed").push(item);
        self.len += 1;
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        let item = self.chunks.last_mut()?.pop()?;
        self.len -= 1;
        if self.chunks.last().is_some_and(Vec::is_empty) {
            self.chunks.pop();
        }
        Some(item)
    }

    /// Takes the item at `at` out and puts the last one in its place.
    pub(crate) fn swap_remove(&mut self, at: u32) -> T {
        let last = self.pop().expect("invariant: `at` is within");
        if at as usize == self.len { last } else { std::mem::replace(&mut self[at], last) }
    }
}

impl<T> std::ops::Index<u32> for Chunks<T> {
    type Output = T;
    fn index(&self, at: u32) -> &T {
        &self.chunks[at as usize >> SHIFT][at as usize & MASK]
    }
}

impl<T> std::ops::IndexMut<u32> for Chunks<T> {
    fn index_mut(&mut self, at: u32) -> &mut T {
        &mut self.chunks[at as usize >> SHIFT][at as usize & MASK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_vector_over_the_edges_of_chunks() {
        let mut chunks = Chunks::default();
        let mut plain = Vec::new();
        for n in 0..3 * CHUNK + 5 {
            chunks.push(n);
            plain.push(n);
        }
        for at in [0, CHUNK - 1, CHUNK, 2 * CHUNK + 3, plain.len() - 1 - 4] {
            let at32 = u32::try_from(at).expect("small");
            assert_eq!(chunks.swap_remove(at32), plain.swap_remove(at));
        }
        while let Some(n) = plain.pop() {
            assert_eq!(chunks.len(), plain.len() + 1);
            assert_eq!(chunks.pop(), Some(n));
        }
        assert!(chunks.is_empty() && chunks.pop().is_none() && chunks.chunks.is_empty());
    }
}
