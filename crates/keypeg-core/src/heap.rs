//! What an allocation takes: the bytes that structures report as theirs, and which groups of them
//! changed since they were last counted.
//!
//! The pools bound their memory by these numbers, so they include what the allocator adds. Knows no
//! structure.

/// Returns the bytes of a separate allocation of `len` bytes: glibc adds a word, and rounds up to 16
/// bytes, at least 32. Nothing is allocated for 0 bytes.
#[inline]
pub(crate) fn allocated(len: usize) -> usize {
    if len == 0 { 0 } else { ((len + 8 + 15) & !15).max(32) }
}

/// Returns the bytes of an allocated text, if there is one.
#[inline]
pub(crate) fn allocated_text(text: Option<&str>) -> usize {
    text.map_or(0, |text| allocated(text.len()))
}

/// Which structures a step can have changed: hot calls change few of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Changed(u8);

impl Changed {
    pub(crate) const NOTHING: Self = Self(0);
    /// Holds, their ends and the available keys.
    pub(crate) const LEASES: Self = Self(1);
    /// Slots, their index and the ends of keys.
    pub(crate) const KEYS: Self = Self(2);
    /// Waiters, stored answers, reasons of quarantines and of draining keys, labels and retired values.
    pub(crate) const OTHER: Self = Self(4);

    #[inline]
    pub(crate) fn add(&mut self, group: Self) {
        self.0 |= group.0;
    }

    #[inline]
    pub(crate) fn has(self, group: Self) -> bool {
        self.0 & group.0 != 0
    }
}

/// The bytes of a pool as last counted, by the groups of [`Changed`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct CountedBytes {
    pub(crate) changed: Changed,
    pub(crate) leases: usize,
    pub(crate) keys: usize,
    pub(crate) other: usize,
}

/// A new pool is still to be counted.
impl Default for CountedBytes {
    fn default() -> Self {
        Self { changed: Changed(7), leases: 0, keys: 0, other: 0 }
    }
}

impl CountedBytes {
    #[inline]
    pub(crate) fn sum(&self) -> usize {
        self.leases + self.keys + self.other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_allocations_take_more_than_they_ask_for() {
        for (len, bytes) in [(0, 0), (1, 32), (24, 32), (25, 48), (40, 48), (41, 64), (4096, 4112)]
        {
            assert_eq!(allocated(len), bytes, "{len}");
        }
        assert_eq!(allocated_text(None), 0);
        assert_eq!(allocated_text(Some("")), 0);
    }
}
