//! The instants a pool is told: time is an argument here, never read.
//!
//! Two clocks decide, and they never touch each other: lease time ends leases and rests, serving
//! time ends keys that nobody keeps alive. Wall time is carried along to be shown and decides
//! nothing.

/// Microseconds in a millisecond.
pub const US_PER_MS: u64 = 1_000;
/// Microseconds in a second.
pub const US_PER_S: u64 = 1_000_000;
/// The deadline that never comes, microseconds; the largest a deadline can be (142 years).
pub const NEVER_US: u64 = (1 << 52) - 1;

/// The instant at which a step is played, on each clock, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Lease time: since the directory was made; runs through suspend and downtime, never back.
    pub lease_us: u64,
    /// Serving time: since this process began to serve; stands still while it cannot serve.
    pub serving_us: u64,
    /// Wall time since 1970-01-01 UTC; only ever shown.
    pub wall_us: u64,
}

impl Now {
    /// Tells the wall time, in milliseconds, at which lease time is, or was, `lease_us`.
    pub fn lease_to_wall_ms(&self, lease_us: u64) -> u64 {
        shifted(self.wall_us, self.lease_us, lease_us) / US_PER_MS
    }

    /// Tells the wall time, in milliseconds, at which serving time would be `serving_us` if it
    /// ran on without a stop; `None` for [`NEVER_US`].
    pub fn serving_to_wall_ms(&self, serving_us: u64) -> Option<u64> {
        (serving_us < NEVER_US)
            .then(|| shifted(self.wall_us, self.serving_us, serving_us) / US_PER_MS)
    }
}

fn shifted(wall_us: u64, now_us: u64, then_us: u64) -> u64 {
    (wall_us + then_us).saturating_sub(now_us)
}

/// Adds a length to an instant; a sum past [`NEVER_US`] never comes.
pub(crate) fn after(at_us: u64, length_us: u64) -> u64 {
    at_us.saturating_add(length_us).min(NEVER_US)
}
