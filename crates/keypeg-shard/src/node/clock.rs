//! The only file of this crate that reads time, and that lets a thread sleep.

use std::time::{Duration, Instant};

/// Returns the present.
#[expect(clippy::disallowed_methods, reason = "the one place that reads time")]
pub(super) fn now() -> Instant {
    Instant::now()
}

/// Returns how much time has passed since then.
pub(super) fn passed_since(then: Instant) -> Duration {
    now().saturating_duration_since(then)
}

/// Lets this thread sleep.
#[expect(clippy::disallowed_methods, reason = "a store that does not answer notifies no thread")]
pub(super) fn sleep(time: Duration) {
    std::thread::sleep(time);
}
