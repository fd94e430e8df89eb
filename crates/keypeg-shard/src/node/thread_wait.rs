//! How the plain threads of a node wait: for a call of the log, and for an append whose outcome is
//! not known.

use super::clock::{now, passed_since, sleep};
use crate::executor::{Executor, Patience};
use keypeg_log::Call;
use keypeg_store::StoreMetrics;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// The pause before the first repetition of an append; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long an append whose outcome is not known is repeated.
const PATIENCE: Duration = Duration::from_secs(30);

/// Parks the thread until a call has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct ParkingExecutor;

impl Executor for ParkingExecutor {
    fn run<T>(&self, call: Call<'_, T>) -> T {
        keypeg_log::wait(call)
    }
}

/// Repeats an append for half a minute, then gives the shard up.
#[derive(Debug)]
pub(super) struct ClockPatience {
    metrics: Arc<StoreMetrics>,
    /// When the append began whose outcome is not known.
    since: Option<Instant>,
}

impl ClockPatience {
    pub(super) fn new(metrics: Arc<StoreMetrics>) -> Self {
        Self { metrics, since: None }
    }
}

impl Patience for ClockPatience {
    fn wait(&mut self, attempt: u32) -> bool {
        self.metrics.append_retries.fetch_add(1, Ordering::Relaxed);
        if attempt == 1 {
            self.since = None;
        }
        let since = *self.since.get_or_insert_with(now);
        if passed_since(since) >= PATIENCE {
            return false;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << attempt.saturating_sub(1).min(10));
        sleep(pause.min(LONGEST_PAUSE));
        true
    }
}
