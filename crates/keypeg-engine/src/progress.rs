//! The progress of journal and checkpointer, which their threads share.

use keypeg_core::Lsn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How far the engine and the checkpointer have got, as positions of the journal.
#[derive(Debug, Default)]
pub(crate) struct CheckpointProgress {
    /// The last durable batch.
    pub(crate) synced: AtomicU64,
    /// The last batch whose changes are in the database.
    pub(crate) checkpointed: AtomicU64,
    /// Set when the checkpointer must end.
    pub(crate) stopping: AtomicBool,
    /// Whether the last turn of the engine has left much that is due to the next one.
    pub(crate) has_backlog: AtomicBool,
}

impl CheckpointProgress {
    /// Returns the last batch whose changes are in the database.
    pub(crate) fn checkpointed(&self) -> Lsn {
        Lsn(self.checkpointed.load(Ordering::Acquire))
    }

    /// Returns the last durable batch.
    pub(crate) fn synced(&self) -> Lsn {
        Lsn(self.synced.load(Ordering::Acquire))
    }

    /// Records the last batch whose changes are in the database.
    pub(crate) fn set_checkpointed(&self, lsn: Lsn) {
        self.checkpointed.store(lsn.0, Ordering::Release);
    }
}
