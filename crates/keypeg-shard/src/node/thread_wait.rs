//! How the plain threads of a node wait: for a call of the log, and for an append whose outcome is
//! not known.

use super::clock::{now, passed_since, sleep};
use super::view::View;
use crate::executor::{Executor, Patience};
use keypeg_log::{Call, LogError, Shard};
use keypeg_store::{ShardRole, StoreMetrics};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The pause before the first repetition of an append; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long an append whose outcome is not known is repeated.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same while the node stops: a container runtime kills a server that needs more than 10 seconds.
const PATIENCE_OF_A_STOP: Duration = Duration::from_secs(3);

/// Parks the thread until a call has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct ParkingExecutor;

impl Executor for ParkingExecutor {
    fn run<T>(&self, call: Call<'_, T>) -> T {
        keypeg_log::wait(call)
    }
}

/// How long a takeover is repeated before its error is shown.
const SHOWN_AFTER: Duration = Duration::from_secs(2);

/// Repeats an append for half a minute, or 3 seconds while the node stops, then gives the shard up.
#[derive(Debug)]
pub(super) struct ClockPatience {
    metrics: Arc<StoreMetrics>,
    view: Arc<View>,
    stopping: Arc<AtomicBool>,
    shard: Shard,
    /// When the append began whose outcome is not known.
    since: Option<Instant>,
}

impl ClockPatience {
    pub(super) fn new(
        metrics: Arc<StoreMetrics>,
        view: Arc<View>,
        stopping: Arc<AtomicBool>,
        shard: Shard,
    ) -> Self {
        Self { metrics, view, stopping, shard, since: None }
    }

    /// Shows why a takeover takes so long.
    fn show(&self, error: &LogError) {
        let (shard, mut facts) = (self.shard, self.view.shard(self.shard).facts());
        if facts.role != ShardRole::Owner && facts.note_failed_takeover(error.to_string()) {
            drop(facts);
            tracing::warn!(%shard, "a shard cannot be taken over yet: {error}");
        }
    }
}

impl Patience for ClockPatience {
    fn wait(&mut self, attempt: u32, error: &LogError) -> bool {
        self.metrics.append_retries.fetch_add(1, Ordering::Relaxed);
        if attempt == 1 {
            self.since = None;
        }
        let since = *self.since.get_or_insert_with(now);
        let is_stopping = self.stopping.load(Ordering::Acquire);
        if passed_since(since) >= if is_stopping { PATIENCE_OF_A_STOP } else { PATIENCE } {
            return false;
        }
        if passed_since(since) >= SHOWN_AFTER {
            self.show(error);
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << attempt.saturating_sub(1).min(10));
        sleep(pause.min(LONGEST_PAUSE));
        true
    }
}
