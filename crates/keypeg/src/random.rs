//! The only file that draws random.
//!
//! Picks come from a fast generator that the operating system seeds; secrets are the operating
//! system's own random bytes, fetched a page at a time. Without them there is no key worth making,
//! so the process ends.

use keypeg_engine::RandomSource;
use rand::RngExt;

/// Random bytes fetched from the operating system at once.
const PAGE: usize = 4096;

/// RandomSource from the operating system.
pub struct SystemChance {
    page: Box<[u8; PAGE]>,
    used: usize,
}

impl SystemChance {
    /// Makes a source; nothing is drawn yet.
    pub fn new() -> Self {
        Self { page: Box::new([0; PAGE]), used: PAGE }
    }
}

impl Default for SystemChance {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for SystemChance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SystemChance(…)")
    }
}

impl RandomSource for SystemChance {
    #[expect(clippy::disallowed_methods, reason = "the one place that draws")]
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
            let drawn = &mut self.page[self.used..self.used + len];
            now.copy_from_slice(drawn);
            // What became a secret stays in no second place.
            drawn.fill(0);
            self.used += len;
            bytes = later;
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that draws")]
fn fetch(page: &mut [u8]) {
    if let Err(error) = getrandom::fill(page) {
        tracing::error!(%error, "the operating system gives no random bytes: no key can be made");
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_drawn_once_over_the_ends_of_pages() {
        let mut random = SystemChance::new();
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
        let mut random = SystemChance::new();
        let mut seen = [0; 3];
        for _ in 0..300 {
            seen[random.below(3) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| count > 0), "{seen:?}");
        assert_eq!(random.below(1), 0);
    }
}
