//! What a connection does, as one atomic word: written by the task of the connection, except that
//! another task displaces it.
//!
//! A displaced connection stays displaced, so no request begins on it.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a connection does.
#[derive(Debug)]
pub(super) struct State(AtomicU64);

impl State {
    /// A request is in progress.
    const BUSY: u64 = 0;
    /// The connection must end, and no request of it may start.
    const DISPLACED: u64 = 1;
    /// The first instant. Any value from it on is the time since which a connection waits.
    const FIRST: u64 = 2;

    pub(super) fn waiting(since_ms: u64) -> Self {
        Self(AtomicU64::new(Self::FIRST + since_ms))
    }

    /// Returns the time since which the connection waits; `None` if it does not.
    pub(super) fn waits_since(&self) -> Option<u64> {
        self.0.load(Ordering::Relaxed).checked_sub(Self::FIRST)
    }

    /// Displaces the connection if it still waits since `since_ms`.
    pub(super) fn displace(&self, since_ms: u64) -> bool {
        let (waiting, order) = (Self::FIRST + since_ms, Ordering::Relaxed);
        self.0.compare_exchange(waiting, Self::DISPLACED, order, order).is_ok()
    }

    /// Begins a request, or continues one; returns `false` if the connection is displaced.
    pub(super) fn begin(&self) -> bool {
        let order = Ordering::Relaxed;
        let now = self.0.load(order);
        now == Self::BUSY
            || (now != Self::DISPLACED
                && self.0.compare_exchange(now, Self::BUSY, order, order).is_ok())
    }

    /// Ends the request in progress, if there is one.
    pub(super) fn end(&self, now_ms: u64) {
        let (busy, order) = (Self::BUSY, Ordering::Relaxed);
        let _ = self.0.compare_exchange(busy, Self::FIRST + now_ms, order, order);
    }

    pub(super) fn is_busy(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::BUSY
    }

    #[cfg(test)]
    pub(super) fn is_displaced(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::DISPLACED
    }
}
