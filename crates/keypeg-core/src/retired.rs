//! Imported values that are gone and never used again, as long as they are nowhere else to be found.
//!
//! Where a database takes them over, in the order they went, they leave this memory; without one
//! they stay. Growing never stops the world. Knows nothing of the database.

use crate::ids::KeyId;
use crate::index::Index;
use crate::numbers::Lsn;
use crate::shared::JournalPositions;
use std::collections::VecDeque;

/// Ids in a chunk.
const CHUNK: usize = 1 << 12;
/// How many leave at most when one comes.
const LEAVE_MAX: usize = 4;

/// The values of one pool, by id.
#[derive(Clone, Debug, Default)]
pub(crate) struct Retired {
    /// Chunks of ids with the mark each came under; all but the last are full.
    chunks: VecDeque<Vec<(KeyId, Lsn)>>,
    /// The number of the first id of the first chunk; numbers go round.
    base: u32,
    /// Ids of the first chunk that have left.
    left: usize,
    by_id: Index,
    /// Whether a database has some: what is not here may be there.
    elsewhere: bool,
}

impl Retired {
    pub(crate) fn contains(&self, id: KeyId) -> bool {
        self.by_id.len() > 0 && self.by_id.find(id.hash(), |at| self.id(at) == id).is_some()
    }

    /// Takes a value in, under a mark that never falls; those up to `taken_over` leave, a few at a
    /// time.
    pub(crate) fn insert(&mut self, id: KeyId, positions: JournalPositions) {
        let JournalPositions { current, checkpointed } = positions;
        if self.contains(id) {
            return;
        }
        if self.chunks.back().is_none_or(|last| last.len() == CHUNK) {
            self.chunks.push_back(Vec::new());
        }
        let before = self.chunks.len() - 1;
        let last = self.chunks.back_mut().expect("invariant: just pushed");
        last.push((id, current));
        let at = number(before * CHUNK + last.len() - 1).wrapping_add(self.base);
        let (chunks, base) = (&self.chunks, self.base);
        self.by_id.insert(id.hash(), at, |at| found(chunks, base, at).0.hash());
        self.leave(checkpointed, LEAVE_MAX);
    }

    /// Lets go of those that came under marks up to `taken_over`, at most `max`; true when more are
    /// to go.
    pub(crate) fn leave(&mut self, checkpointed: Lsn, max: usize) -> bool {
        for _ in 0..max {
            let Some(&(id, position)) = self.first() else { return false };
            if position > checkpointed {
                return false;
            }
            let at = self.base.wrapping_add(number(self.left));
            let (chunks, base) = (&self.chunks, self.base);
            self.by_id.remove(id.hash(), at, |at| found(chunks, base, at).0.hash());
            self.elsewhere = true;
            self.left += 1;
            if self.left == CHUNK {
                self.chunks.pop_front();
                self.base = self.base.wrapping_add(number(CHUNK));
                self.left = 0;
            }
        }
        self.first().is_some_and(|(_, position)| *position <= checkpointed)
    }

    fn first(&self) -> Option<&(KeyId, Lsn)> {
        self.chunks.front()?.get(self.left)
    }

    /// Says that a database has some.
    pub(crate) fn are_elsewhere(&mut self) {
        self.elsewhere = true;
    }

    /// Whether a database has some.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.elsewhere
    }

    fn id(&self, at: u32) -> KeyId {
        found(&self.chunks, self.base, at).0
    }
}

fn found(chunks: &VecDeque<Vec<(KeyId, Lsn)>>, base: u32, at: u32) -> (KeyId, Lsn) {
    let place = at.wrapping_sub(base) as usize;
    chunks[place / CHUNK][place % CHUNK]
}

fn number(place: usize) -> u32 {
    u32::try_from(place).expect("invariant: keys are bounded")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> KeyId {
        KeyId(n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
    }

    #[test]
    fn what_is_taken_over_leaves_in_order_and_nothing_else_does() {
        // Numbers go round in the middle of the story.
        let mut retired = Retired { base: u32::MAX - 5_000, ..Retired::default() };
        for n in 0..20_000_u64 {
            let (current, checkpointed) = (Lsn(n / 100 + 1), Lsn((n / 100).saturating_sub(50)));
            let positions = JournalPositions { current, checkpointed };
            retired.insert(id(u128::from(n)), positions);
            retired.insert(id(u128::from(n)), positions);
            assert!(retired.contains(id(u128::from(n))));
            assert_eq!(retired.is_elsewhere(), checkpointed > Lsn(0), "{n}");
        }
        // Marks up to 149 have been taken over: those of 14 900 values.
        assert_eq!(retired.by_id.len(), 20_000 - 14_900);
        for n in 0..20_000 {
            assert_eq!(retired.contains(id(n)), n >= 14_900, "{n}");
        }
        assert!(retired.leave(Lsn(170), 1_000));
        assert!(!retired.leave(Lsn(170), 10_000));
        for n in 0..20_000 {
            assert_eq!(retired.contains(id(n)), n >= 17_000, "{n}");
        }
        assert!(!retired.leave(Lsn(u64::MAX), 10_000));
        assert_eq!(retired.by_id.len(), 0);
        let (current, checkpointed) = (Lsn(300), Lsn(0));
        retired.insert(id(1), JournalPositions { current, checkpointed });
        assert!(retired.contains(id(1)));
    }
}
