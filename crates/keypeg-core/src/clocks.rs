//! The instants that calls pass to the pools: time is an argument here and is never read.
//!
//! Two clocks decide, independently of each other: lease time ends leases and rests, serving time
//! ends keys without a keep-alive. Wall time is only shown and decides nothing.

use crate::sabotage::{Sabotage, enabled};

/// Microseconds in a millisecond.
pub const US_PER_MS: u64 = 1_000;
/// Microseconds in a second.
pub const US_PER_S: u64 = 1_000_000;
/// The deadline that never passes, microseconds; also the largest deadline possible (142 years).
pub const NEVER_US: u64 = (1 << 52) - 1;

/// The instant of a step on each clock, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Lease time: since the data directory was created; includes suspend and downtime, never
    /// decreases.
    pub lease_us: u64,
    /// Serving time: since this process began to serve; stands still while it cannot serve.
    pub serving_us: u64,
    /// Wall time since 1970-01-01 UTC; only shown.
    pub wall_us: u64,
}

impl Now {
    /// Returns whether a lease, a rest or a wait with this end in lease time has expired.
    #[inline]
    pub(crate) fn has_expired(&self, end_us: u64) -> bool {
        is_due(end_us, self.lease_us)
    }

    /// Returns whether a key with this end in serving time must be purged.
    #[inline]
    pub(crate) fn is_purge_due(&self, end_us: u64) -> bool {
        is_due(end_us, self.serving_us)
            && !(enabled(Sabotage::RaiseAtDeadline) && end_us == self.serving_us)
    }

    /// Converts an instant of lease time to wall time in milliseconds.
    pub fn lease_to_wall_ms(&self, lease_us: u64) -> u64 {
        shifted(self.wall_us, self.lease_us, lease_us) / US_PER_MS
    }

    /// Converts an instant of serving time to wall time in milliseconds, assuming that serving
    /// time does not stop until then; `None` for [`NEVER_US`].
    pub fn serving_to_wall_ms(&self, serving_us: u64) -> Option<u64> {
        (serving_us < NEVER_US)
            .then(|| shifted(self.wall_us, self.serving_us, serving_us) / US_PER_MS)
    }
}

/// Returns whether a deadline is due: at its instant, and never before. Every end is compared here.
#[inline]
pub(crate) fn is_due(deadline_us: u64, now_us: u64) -> bool {
    deadline_us <= now_us
}

fn shifted(wall_us: u64, now_us: u64, then_us: u64) -> u64 {
    (wall_us + then_us).saturating_sub(now_us)
}

/// Adds a duration to an instant; a sum above [`NEVER_US`] becomes [`NEVER_US`].
pub(crate) fn after(at_us: u64, duration_us: u64) -> u64 {
    at_us.saturating_add(duration_us).min(NEVER_US)
}

/// The next deadline of all pools on each clock, in microseconds; `None` when there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextDue {
    /// The next end of a lease, a rest or a wait, in lease time.
    pub lease_us: Option<u64>,
    /// The next purge, in serving time.
    pub serving_us: Option<u64>,
}

impl NextDue {
    /// No deadline on either clock.
    pub(crate) const NOTHING: Self = Self { lease_us: None, serving_us: None };
}
