//! Randomness as an argument: the pools draw keys and values, and never read a generator
//! themselves.

/// A source of randomness: an argument, so that a seed can replace it in tests.
pub trait RandomSource {
    /// Returns a uniformly random number below `bound`, which is at least 1.
    fn below(&mut self, bound: u32) -> u32;
    /// Fills `bytes` from the operating system's CSPRNG: secrets are generated from them.
    fn fill(&mut self, bytes: &mut [u8]);
}
