//! The reasons of quarantined keys, in a side table: a key without a reason takes no memory for
//! one.

use crate::chunks::Chunks;
use crate::heap::allocated;
use crate::indices::{ItemIndex, ReasonIndex};

/// The reasons of quarantined keys, as far as they have one: a slab with a free list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reasons {
    texts: Chunks<ReasonIndex, Box<str>>,
    free: Chunks<u32, ReasonIndex>,
    /// The bytes of the texts.
    text_bytes: usize,
}

impl Reasons {
    pub(crate) fn len(&self) -> usize {
        self.texts.len() - self.free.len()
    }

    /// Returns the bytes of all reasons. O(1).
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.texts.bytes() + self.free.bytes() + self.text_bytes
    }

    /// Adds a reason and returns its index, which is [`ItemIndex::NONE`] for no reason.
    pub(crate) fn add(&mut self, reason: Option<&str>) -> ReasonIndex {
        let Some(reason) = reason else { return ReasonIndex::NONE };
        self.text_bytes += allocated(reason.len());
        if let Some(index) = self.free.pop() {
            self.texts[index] = reason.into();
            return index;
        }
        self.texts.push(reason.into())
    }

    pub(crate) fn remove(&mut self, index: ReasonIndex) {
        if index != ReasonIndex::NONE {
            self.text_bytes -= allocated(self.texts[index].len());
            self.texts[index] = Box::default();
            self.free.push(index);
        }
    }

    pub(crate) fn get(&self, index: ReasonIndex) -> Option<&str> {
        (index != ReasonIndex::NONE).then(|| &*self.texts[index])
    }
}
