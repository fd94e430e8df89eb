//! The only file of this crate that reads time.

use std::time::Instant;

/// Reads the monotonic clock that measures latencies.
#[expect(clippy::disallowed_methods, reason = "the one place that reads time")]
pub(crate) fn stopwatch() -> Instant {
    Instant::now()
}
