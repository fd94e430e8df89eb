//! The reasons of quarantined keys, in a side table: a key without a reason takes no memory for
//! one.

use crate::chunks::Chunks;
use crate::indices::{ItemIndex, ReasonIndex};

/// The reasons of quarantined keys, as far as they have one: a slab with a free list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reasons {
    texts: Chunks<ReasonIndex, Box<str>>,
    free: Chunks<u32, ReasonIndex>,
}

impl Reasons {
    pub(crate) fn len(&self) -> usize {
        self.texts.len() - self.free.len()
    }

    /// Adds a reason and returns its index, which is [`ItemIndex::NONE`] for no reason.
    pub(crate) fn add(&mut self, reason: Option<&str>) -> ReasonIndex {
        let Some(reason) = reason else { return ReasonIndex::NONE };
        if let Some(index) = self.free.pop() {
            self.texts[index] = reason.into();
            return index;
        }
        self.texts.push(reason.into())
    }

    pub(crate) fn remove(&mut self, index: ReasonIndex) {
        if index != ReasonIndex::NONE {
            self.texts[index] = Box::default();
            self.free.push(index);
        }
    }

    pub(crate) fn get(&self, index: ReasonIndex) -> Option<&str> {
        (index != ReasonIndex::NONE).then(|| &*self.texts[index])
    }
}
