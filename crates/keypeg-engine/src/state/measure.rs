//! What the engine measures of itself for metrics: sizes of the journal, and how late deadlines are.
//!
//! It decides nothing. Sizes are read from time to time, not in each turn: reading them walks over
//! the segments.

use super::{CHECKPOINT_LAG_MAX, EngineState};
use crate::journal::DiskSpace;
use keypeg_store::LATENESS_BUCKETS_US;
use std::sync::atomic::Ordering;

/// How often the sizes are read.
const EVERY_US: u64 = 100_000;

impl EngineState {
    /// Measures how late the first deadline is that this turn executes, if one has passed.
    pub(super) fn measure_lateness(&self) {
        if let Some(due_us) = self.measured.due_us
            && let Some(late_us) = self.now.lease_us.checked_sub(due_us)
        {
            self.metrics.expiry_lateness_us.observe(&LATENESS_BUCKETS_US, late_us);
        }
    }

    /// Reads the sizes of the journal, unless they were read just before. O(segments).
    pub(super) fn measure_sizes(&mut self) {
        let now_us = self.unfrozen_us;
        if self.measured.sizes_us.is_some_and(|at_us| now_us < at_us + EVERY_US) {
            return;
        }
        self.measured.sizes_us = Some(now_us);
        // The files of a shard on a shared log are scratch, and its shards share the metrics.
        let Some(journal) = self.journal.as_ref().filter(|journal| !journal.has_log()) else {
            return;
        };
        let checkpointed = self.progress.checkpointed();
        let lag_max = self.sizes.journal.saturating_mul(CHECKPOINT_LAG_MAX);
        let refuses = match journal.disk_space() {
            DiskSpace::Normal => 0,
            DiskSpace::NoNewKeys => 1,
            DiskSpace::ReleasesOnly => 2,
            DiskSpace::Full => 3,
        };
        let metrics = &*self.metrics;
        for (metric, value) in [
            (&metrics.journal_bytes, journal.bytes()),
            (&metrics.journal_bytes_max, self.sizes.journal),
            (&metrics.checkpoint_lag_bytes, journal.bytes_to_checkpoint(checkpointed)),
            (&metrics.checkpoint_lag_bytes_max, lag_max),
            (&metrics.disk_refuses, refuses),
        ] {
            metric.store(value, Ordering::Relaxed);
        }
    }
}
