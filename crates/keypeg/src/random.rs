//! The only file that reads random numbers.
//!
//! Random picks come from a fast generator that the operating system seeds; secrets are random
//! bytes of the operating system, read a page at a time. Without them no key would be secret, so
//! the process aborts.

use keypeg_core::RandomSource;
use rand::RngExt;

/// Random bytes read from the operating system at once.
const PAGE: usize = 4096;

/// The random source of the operating system.
pub struct SystemRandom {
    page: Box<[u8; PAGE]>,
    used: usize,
}

impl SystemRandom {
    /// Creates a source; reads nothing yet.
    pub fn new() -> Self {
        Self { page: Box::new([0; PAGE]), used: PAGE }
    }
}

impl Default for SystemRandom {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for SystemRandom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SystemRandom(…)")
    }
}

impl RandomSource for SystemRandom {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads random numbers")]
    fn below(&mut self, bound: u32) -> u32 {
        rand::rng().random_range(0..bound)
    }

    fn fill(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            if self.used == PAGE {
                fetch(&mut self.page[..]);
                self.used = 0;
            }
            let len = bytes.len().min(PAGE - self.used);
            let (now, later) = bytes.split_at_mut(len);
            let bytes_of_page = &mut self.page[self.used..self.used + len];
            now.copy_from_slice(bytes_of_page);
            // A secret must not remain in a second place.
            bytes_of_page.fill(0);
            self.used += len;
            bytes = later;
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads random numbers")]
fn fetch(page: &mut [u8]) {
    if let Err(error) = getrandom::fill(page) {
        tracing::error!(%error, "cannot read random bytes from the operating system: aborting");
        crate::log::flush_streams();
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_used_once_across_page_ends() {
        let mut random = SystemRandom::new();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..3 * PAGE / 20 {
            let mut secret = [0; 20];
            random.fill(&mut secret);
            assert!(seen.insert(secret));
        }
        let mut long = vec![0; 3 * PAGE];
        random.fill(&mut long);
        assert!(long.chunks(16).all(|chunk| chunk.iter().any(|&byte| byte != 0)));
    }

    #[test]
    fn a_pick_is_below_its_bound() {
        let mut random = SystemRandom::new();
        let mut seen = [0; 3];
        for _ in 0..300 {
            seen[random.below(3) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| count > 0), "{seen:?}");
        assert_eq!(random.below(1), 0);
    }
}
