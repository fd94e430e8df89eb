//! How many keys of a pool are in each state.

/// The number of keys in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyCounts {
    /// Keys that can be leased.
    pub available: u64,
    /// Keys with a running lease.
    pub leased: u64,
    /// Keys that rest after a lease.
    pub resting: u64,
    /// Keys out of rotation.
    pub quarantined: u64,
    /// The leased keys that are quarantined when their leases end: a part of `leased`.
    pub draining: u64,
}

impl KeyCounts {
    /// Returns the number of keys that are leased or rest.
    pub fn leased_or_resting(&self) -> u64 {
        self.leased + self.resting
    }

    /// Returns the number of all keys.
    pub fn total(&self) -> u64 {
        self.available + self.leased + self.resting + self.quarantined
    }
}
