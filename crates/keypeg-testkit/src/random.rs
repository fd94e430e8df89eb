//! Random numbers from a seed (splitmix64), with the same sequence on every platform. Not for
//! secrets.
//!
//! The two types draw the same 64 bits and differ in how they bound them. A printed seed repeats a
//! run of the model or of the simulation only while its type's sequence stays as it is.

use keypeg_core::RandomSource;

/// Random numbers from a seed, bounded by remainder: of the engine's and of the server's tests.
#[derive(Clone, Debug)]
pub struct SeededRandom(
    /// The seed, then the state.
    pub u64,
);

impl SeededRandom {
    /// Returns the next 64 bits.
    #[expect(clippy::should_implement_trait, reason = "an infinite sequence needs no Option")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Returns an index below `bound`, which is not zero: the form that [`mutate`](crate::mutate)
    /// takes.
    pub fn index_below(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).expect("below the bound")
    }

    /// Returns a random item, if there is one.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        (!items.is_empty()).then(|| &items[self.index_below(items.len())])
    }

    /// Fills `bytes` with random bytes.
    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]);
        }
    }
}

impl RandomSource for SeededRandom {
    fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(Self::below(self, u64::from(bound))).expect("below a u32")
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        self.fill_bytes(bytes);
    }
}

/// Random numbers from a seed, bounded by multiplication: of the core's tests and benches.
#[derive(Clone, Debug)]
pub struct ScaledRandom(SeededRandom);

impl ScaledRandom {
    /// Returns the sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(SeededRandom(seed))
    }

    /// Returns the next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next()
    }
}

impl RandomSource for ScaledRandom {
    fn below(&mut self, bound: u32) -> u32 {
        // The high part of a product. Its bias is below 2^-32, too small for the tests to detect.
        u32::try_from((u128::from(self.bits()) * u128::from(bound)) >> 64).expect("below a u32")
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sequences stand as they were when each crate had its own generator.
    #[test]
    fn the_sequences_of_a_seed_do_not_change() {
        let (mut seeded, mut scaled) = (SeededRandom(1), ScaledRandom::new(1));
        let bits = [0x910a_2dec_8902_5cc1, 0xbeeb_8da1_658e_ec67, 0xf893_a2ee_fb32_555e];
        assert_eq!(bits.map(|_| seeded.next()), bits);
        assert_eq!(bits.map(|_| scaled.bits()), bits);
        let draws = |random: &mut dyn RandomSource| [(); 4].map(|()| random.below(1000));
        assert_eq!(draws(&mut seeded), [235, 761, 48, 45]);
        assert_eq!(draws(&mut scaled), [444, 444, 762, 877]);
        let mut bytes = [[0; 12]; 2];
        seeded.fill(&mut bytes[0]);
        scaled.fill(&mut bytes[1]);
        assert_eq!(bytes, [[117, 133, 39, 18, 15, 187, 231, 133, 168, 61, 126, 53]; 2]);
    }
}
