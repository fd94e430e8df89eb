//! The seal of a simulated directory: none, from the start, or from a later start on; each start
//! rotates the key.
//!
//! It draws nothing, so that a seed plays the same with and without a seal.

use keypeg_engine::{SealKey, SealKeys, SealOptions};

/// Which seal the starts of a simulation use.
pub(super) struct Sealing {
    /// The start from which on there is a seal; `None` never.
    from: Option<u64>,
    starts: u64,
}

impl Sealing {
    /// Half of all seeds have a seal.
    pub(super) fn of(seed: u64) -> Self {
        let from = [None, Some(0), None, Some(2)][usize::try_from(seed % 4).unwrap()];
        Self { from, starts: 0 }
    }

    /// Returns the options of the next start.
    pub(super) fn next(&mut self) -> Option<SealOptions> {
        self.starts += 1;
        Some(SealOptions { keys: self.keys()?, seals_existing: true })
    }

    /// Returns the number of starts so far.
    pub(super) fn starts(&self) -> u64 {
        self.starts
    }

    /// Returns the keys of the last start; `None` if it had no seal.
    pub(super) fn keys(&self) -> Option<SealKeys> {
        let start = self.starts.checked_sub(1)?;
        if start < self.from? {
            return None;
        }
        // The first key seals, and both open.
        let order = if start.is_multiple_of(2) { [1, 2] } else { [2, 1] };
        SealKeys::new(order.map(|byte| SealKey::new([byte; 32])).to_vec())
    }
}
