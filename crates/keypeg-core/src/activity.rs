//! What has happened in a pool since the start of the server: counters that only grow.
//!
//! They decide nothing and are not facts: a start begins at zero. Each is one integer that a step
//! of the pool increments, so counting needs no lock and no memory of its own.

/// The counters of one pool since the start of the server, or since the pool was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolActivity {
    /// Leases granted, at once or after a wait.
    pub grants: u64,
    /// Requests refused because no key was available, at once or at the end of their wait.
    pub refusals: u64,
    /// Leases that ended by time.
    pub expiries: u64,
    /// Keys purged by time.
    pub purges: u64,
    /// How long the granted requests waited in the wait queue, in microseconds, summed up.
    pub waited_us: u64,
}
