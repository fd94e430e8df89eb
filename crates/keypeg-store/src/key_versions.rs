//! Versions of what a store shows of its keys: a reader that keeps an answer learns whether a change
//! has made it old, without a call.
//!
//! Knows no key's content. Invariant: a store raises the version of a key before it sends the answer
//! of the change, so a request that follows that answer finds every older answer outdated. What ends
//! by time raises no version.

use keypeg_core::{ChangedViews, KeyNumber};
use std::sync::atomic::{AtomicU64, Ordering};

/// The number of counters; several keys share one.
const STRIPES: usize = 1 << 12;

/// The versions of all keys of a store: 32 KiB. The store's thread raises them, and all cores read
/// them.
#[derive(Debug)]
pub struct KeyVersions {
    stripes: Box<[AtomicU64]>,
    /// Counts the changes of whole pools.
    pools: AtomicU64,
}

/// The version of a key at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyVersion {
    key: KeyNumber,
    of_key: u64,
    of_pools: u64,
}

impl KeyVersion {
    /// Returns the key.
    pub fn key(self) -> KeyNumber {
        self.key
    }
}

impl Default for KeyVersions {
    fn default() -> Self {
        let stripes = std::iter::repeat_with(AtomicU64::default).take(STRIPES).collect();
        Self { stripes, pools: AtomicU64::new(0) }
    }
}

impl KeyVersions {
    /// Returns the version of a key now. An answer that is requested afterwards, and that
    /// [`is_current`](Self::is_current) confirms, contains every change of the key.
    pub fn of(&self, key: KeyNumber) -> KeyVersion {
        let of_pools = self.pools.load(Ordering::Acquire);
        KeyVersion { key, of_key: self.stripe(key).load(Ordering::Acquire), of_pools }
    }

    /// Returns whether no change of the key was recorded since.
    pub fn is_current(&self, version: KeyVersion) -> bool {
        self.of(version.key) == version
    }

    /// Raises the versions of the keys whose views a fact has changed. Only one thread may call it.
    pub fn raise(&self, changed: ChangedViews) {
        let counter = match changed {
            ChangedViews::None => return,
            ChangedViews::Key(key) => self.stripe(key),
            ChangedViews::Pool => &self.pools,
        };
        // A read-modify-write is not needed: no other thread writes.
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }

    fn stripe(&self, key: KeyNumber) -> &AtomicU64 {
        // Keys that are created together have consecutive numbers, and so counters of their own.
        &self.stripes[usize::try_from(key.0 % STRIPES as u64).expect("invariant: below STRIPES")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_current_until_its_key_or_a_pool_changes() {
        let versions = KeyVersions::default();
        let (one, other) = (versions.of(KeyNumber(7)), versions.of(KeyNumber(8)));
        versions.raise(ChangedViews::None);
        assert!(versions.is_current(one) && versions.is_current(other));
        versions.raise(ChangedViews::Key(KeyNumber(7)));
        assert!(!versions.is_current(one) && versions.is_current(other));
        let one = versions.of(KeyNumber(7));
        versions.raise(ChangedViews::Pool);
        assert!(!versions.is_current(one) && !versions.is_current(other));
        // Keys that share a counter make each other's answers old, which costs a call.
        let shared = versions.of(KeyNumber(7 + STRIPES as u64));
        versions.raise(ChangedViews::Key(KeyNumber(7)));
        assert!(!versions.is_current(shared));
    }
}
