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
        let start = self.starts;
        self.starts += 1;
        if start < self.from? {
            return None;
        }
        // The first key seals, and both open.
        let order = if start.is_multiple_of(2) { [1, 2] } else { [2, 1] };
        let keys = order.map(|byte| SealKey::new([byte; 32])).to_vec();
        Some(SealOptions { keys: SealKeys::new(keys)?, seals_existing: true })
    }
}
