//! Retired values: values whose keys are deleted or purged, and which are not used again. Kept here
//! while the database does not contain them.
//!
//! A generated value is recognised by its tag and needs no place here, unless an earlier version
//! generated it. All imported values need one.
//!
//! Where checkpoints copy them to the database, in the order they were retired, they are evicted
//! from memory; without a database they stay. Growing never stops the server. Knows nothing of the
//! database itself.

use crate::heap::allocated;
use crate::ids::{IdHashKey, KeyId};
use crate::index::Index;
use crate::indices::{ItemIndex, RetiredIndex};
use crate::numbers::{Lsn, PoolId};
use crate::shared::JournalPositions;
use crate::symbols::has_tag;
use std::collections::VecDeque;

/// Values in a chunk.
const CHUNK: usize = 1 << 12;
/// The most values that one insertion evicts.
const EVICT_MAX: usize = 4;

/// The retired values of one pool, by id.
#[derive(Clone, Debug, Default)]
pub(crate) struct Retired {
    /// A queue in chunks, oldest first; all chunks but the last are full.
    chunks: VecDeque<Vec<RetiredValue>>,
    /// The index of the first value of the first chunk; indices wrap around.
    base: RetiredIndex,
    /// Values of the first chunk that are evicted already.
    evicted: usize,
    by_id: Index<RetiredIndex>,
    /// The bytes of the chunks.
    chunk_bytes: usize,
    /// Whether the database contains some: a value that is not here may be there.
    in_database: bool,
}

#[derive(Clone, Copy, Debug)]
struct RetiredValue {
    id: KeyId,
    /// The journal position of the batch that retired it.
    position: Lsn,
}

/// Returns whether a value must be remembered when its key is deleted or purged: it was imported,
/// or an earlier version generated it, without a tag.
pub fn must_remember(ids: &IdHashKey, pool: PoolId, value: &[u8], imported: bool) -> bool {
    imported || !has_tag(ids, pool, value)
}

impl Retired {
    pub(crate) fn contains(&self, id: KeyId) -> bool {
        self.by_id.len() > 0 && self.by_id.find(id.hash(), |index| self.id(index) == id).is_some()
    }

    /// Returns the bytes of all values here. O(1).
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.chunk_bytes + self.by_id.bytes()
    }

    /// Retires a value at the current position, and evicts a few of those checkpointed.
    pub(crate) fn insert(&mut self, id: KeyId, positions: JournalPositions) {
        if self.contains(id) {
            return;
        }
        if self.chunks.back().is_none_or(|last| last.len() == CHUNK) {
            self.chunks.push_back(Vec::new());
        }
        let before = self.chunks.len() - 1;
        let last = self.chunks.back_mut().expect("invariant: just pushed");
        self.chunk_bytes -= bytes_of(last);
        last.push(RetiredValue { id, position: positions.current });
        self.chunk_bytes += bytes_of(last);
        let index = wrapping_add(self.base, before * CHUNK + last.len() - 1);
        let (chunks, base) = (&self.chunks, self.base);
        self.by_id.insert(id.hash(), index, |index| value_at(chunks, base, index).id.hash());
        self.evict(positions.checkpointed, EVICT_MAX);
    }

    /// Evicts values retired at positions up to `checkpointed`, at most `max`. Returns whether more
    /// can be evicted.
    pub(crate) fn evict(&mut self, checkpointed: Lsn, max: usize) -> bool {
        for _ in 0..max {
            let Some(&RetiredValue { id, position }) = self.first() else { return false };
            if position > checkpointed {
                return false;
            }
            let index = wrapping_add(self.base, self.evicted);
            let (chunks, base) = (&self.chunks, self.base);
            self.by_id.remove(id.hash(), index, |index| value_at(chunks, base, index).id.hash());
            self.in_database = true;
            self.evicted += 1;
            if self.evicted == CHUNK {
                let chunk = self.chunks.pop_front().expect("invariant: it was evicted");
                self.chunk_bytes -= bytes_of(&chunk);
                self.base = wrapping_add(self.base, CHUNK);
                self.evicted = 0;
            }
        }
        self.first().is_some_and(|first| first.position <= checkpointed)
    }

    fn first(&self) -> Option<&RetiredValue> {
        self.chunks.front()?.get(self.evicted)
    }

    /// Notes that the database contains retired values of the pool.
    pub(crate) fn set_in_database(&mut self) {
        self.in_database = true;
    }

    /// Returns whether the database contains retired values of the pool.
    pub(crate) fn is_in_database(&self) -> bool {
        self.in_database
    }

    fn id(&self, index: RetiredIndex) -> KeyId {
        value_at(&self.chunks, self.base, index).id
    }
}

fn bytes_of(chunk: &Vec<RetiredValue>) -> usize {
    allocated(chunk.capacity() * size_of::<RetiredValue>())
}

fn value_at(
    chunks: &VecDeque<Vec<RetiredValue>>,
    base: RetiredIndex,
    index: RetiredIndex,
) -> RetiredValue {
    let offset = index.get().wrapping_sub(base.get()) as usize;
    chunks[offset / CHUNK][offset % CHUNK]
}

fn wrapping_add(base: RetiredIndex, offset: usize) -> RetiredIndex {
    RetiredIndex::new(base.get().wrapping_add(RetiredIndex::of(offset).get()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> KeyId {
        KeyId(number.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
    }

    #[test]
    fn checkpointed_values_are_evicted_in_order_and_no_others() {
        // Indices wrap around in the middle of the test.
        let base = RetiredIndex::new(u32::MAX - 5_000);
        let mut retired = Retired { base, ..Retired::default() };
        for n in 0..20_000_u64 {
            let (current, checkpointed) = (Lsn(n / 100 + 1), Lsn((n / 100).saturating_sub(50)));
            let positions = JournalPositions { current, checkpointed };
            retired.insert(id(u128::from(n)), positions);
            retired.insert(id(u128::from(n)), positions);
            assert!(retired.contains(id(u128::from(n))));
            assert_eq!(retired.is_in_database(), checkpointed > Lsn(0), "{n}");
        }
        // Positions up to 149 are checkpointed: those of 14 900 values.
        assert_eq!(retired.by_id.len(), 20_000 - 14_900);
        for n in 0..20_000 {
            assert_eq!(retired.contains(id(n)), n >= 14_900, "{n}");
        }
        assert!(retired.evict(Lsn(170), 1_000));
        assert!(!retired.evict(Lsn(170), 10_000));
        for n in 0..20_000 {
            assert_eq!(retired.contains(id(n)), n >= 17_000, "{n}");
        }
        assert!(!retired.evict(Lsn(u64::MAX), 10_000));
        assert_eq!(retired.by_id.len(), 0);
        let positions = JournalPositions { current: Lsn(300), checkpointed: Lsn(0) };
        retired.insert(id(1), positions);
        assert!(retired.contains(id(1)));
    }
}
