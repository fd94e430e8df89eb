//! A shared log in memory, with the faults of a network and of a replicated store, for tests.
//!
//! Time is given ([`MemoryLog::advance_to`]) and every fault follows from a seed, so one thread can run
//! several servers, in an order that repeats. The log has two states: what a read shows, and what is
//! replicated. Only what is replicated is acknowledged, and only that survives
//! [`MemoryLog::fail_over`].

mod calls;
mod contents;
mod rules;
mod store;

pub use rules::{Defect, Faults};

use crate::frame::Frame;
use crate::log::Guarantee;
use crate::shard::Shard;
use rules::Rules;
use std::fmt;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use store::Store;

/// A shared log in memory. A clone is another client of the same store.
#[derive(Clone)]
pub struct MemoryLog {
    store: Arc<Mutex<Store>>,
    rules: Rules,
}

impl MemoryLog {
    /// Creates an empty log without faults: each call ends at once.
    pub fn new(guarantee: Guarantee) -> Self {
        Self::with_faults(guarantee, Faults::default(), 0)
    }

    /// Creates an empty log with faults, which follow from the seed.
    pub fn with_faults(guarantee: Guarantee, faults: Faults, seed: u64) -> Self {
        let rules = Rules { guarantee, defect: None };
        Self { store: Arc::new(Mutex::new(Store::new(faults, seed))), rules }
    }

    /// Returns a client of the same store that does not keep the contract in one respect.
    #[must_use]
    pub fn with_defect(mut self, defect: Defect) -> Self {
        self.rules.defect = Some(defect);
        self
    }

    /// Returns the time in microseconds.
    pub fn now_us(&self) -> u64 {
        self.store().now_us()
    }

    /// Returns when something happens next, in microseconds; `None` if nothing is in progress.
    pub fn next_event_us(&self) -> Option<u64> {
        self.store().next_event_us()
    }

    /// Lets time pass, and all that happens until then.
    pub fn advance_to(&self, now_us: u64) {
        self.store().advance_to(now_us);
    }

    /// Polls a future until it ends. While it waits, time passes to the next event.
    ///
    /// # Panics
    /// If the future waits although nothing is in progress.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
            let next_us = self.next_event_us().expect("invariant: a waiting call has an event");
            self.advance_to(next_us);
        }
    }

    /// Loses the machine of the primary: what was visible and not replicated is gone, and every
    /// call in progress ends without an answer. Requests still under way arrive at the new primary.
    pub fn fail_over(&self) {
        self.store().fail_over();
    }

    /// Restarts the primary: every call in progress ends without an answer, and what was visible
    /// stays visible, replicated or not.
    pub fn restart(&self) {
        self.store().restart();
    }

    /// Stops or continues replication. While it is stopped, appends are visible and are not
    /// acknowledged.
    pub fn hold_replication(&self, is_held: bool) {
        self.store().hold_replication(is_held);
    }

    /// Removes one frame from the store, as damage does.
    pub fn remove_frame(&self, shard: Shard, position: u64) {
        self.store().remove_frame(shard, position);
    }

    /// Returns the frames of a shard that are replicated, in the order of their positions.
    pub fn replicated(&self, shard: Shard) -> Vec<Frame> {
        self.store().replicated(shard)
    }

    /// Returns the frames of a shard that a read shows, in the order of their positions.
    pub fn visible(&self, shard: Shard) -> Vec<Frame> {
        self.store().visible(shard)
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryLog").field("rules", &self.rules).finish_non_exhaustive()
    }
}
