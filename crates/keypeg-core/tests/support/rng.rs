//! A small seeded generator (splitmix64): the source of randomness in tests and benches.
//!
//! The same seed gives the same run, so a failure that prints its seed can be repeated. Not for
//! secrets.

use keypeg_core::RandomSource;

/// A stream of random numbers from one seed.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// Starts the stream of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next 64 bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl RandomSource for Rng {
    fn below(&mut self, bound: u32) -> u32 {
        // The high part of a product; its bias, below 2^-32, is too small for any test here.
        u32::try_from((u128::from(self.bits()) * u128::from(bound)) >> 64).expect("below a u32")
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.bits().to_le_bytes()[..chunk.len()]);
        }
    }
}
