//! What a turn ends by time before it executes requests: in slices, and for a bounded time while
//! requests wait.
//!
//! Due leases and keys that are left narrow the choice of an acquire, but delay no request. A request
//! that needs one of them ends it itself. The clock is read between slices alone: a turn with little
//! that is due does not read it.

use super::{DiskSpace, EngineState, expire_max, step};
use keypeg_store::Wakeup;

/// What is ended before the clock and the lanes are looked at again.
const SLICE: u32 = 256;
/// How long a turn ends what is due while requests wait.
const TIME_MAX_US: u64 = 1_000;

impl EngineState {
    /// Sets what is notified when a request arrives: then a turn soon stops to end what is due.
    pub fn set_arrivals(&mut self, arrivals: Vec<Wakeup>) {
        self.arrivals = arrivals;
    }

    /// Ends what is due, at most [`expire_max`] items, and for at most [`TIME_MAX_US`] once requests
    /// wait. Returns whether anything was ended by time.
    pub(super) fn end_what_is_due(&mut self, has_requests: bool) -> bool {
        let mut left = if self.disk_space() > DiskSpace::Full { expire_max() } else { 0 };
        // Requests get as much, for what they need.
        self.expiries_left = left;
        let mut slice = SLICE.min(left);
        let mut step = step(self.now, &mut *self.random, &mut self.batch);
        step.budget = slice;
        let mut has_more = self.pools.expire(&mut step);
        let mut by_time = step.ended_by_time;
        loop {
            left -= slice - step.budget;
            if !has_more || left == 0 || step.budget > 0 {
                return by_time;
            }
            let requests_wait = has_requests || self.arrivals.iter().any(Wakeup::is_notified);
            if requests_wait {
                let began_us = self.times.boot_us();
                if self.times.stopwatch_us().saturating_sub(began_us) >= TIME_MAX_US {
                    self.expiries_left = SLICE.min(left);
                    return by_time;
                }
            }
            slice = SLICE.min(left);
            step.budget = slice;
            has_more = self.pools.continue_expiry(&mut step);
            by_time |= step.ended_by_time;
        }
    }
}
