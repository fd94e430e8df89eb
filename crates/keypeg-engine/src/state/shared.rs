//! The engine of a shard, whose batches become durable in a log that other servers read too.
//!
//! A turn that answers anything appends a frame, whatever the answers are: so each answer stands
//! behind a proof that no other owner has appended before it. While a lease runs, a frame carries
//! the clock every few seconds, since a new owner continues lease time where the last frame stood.

use super::opening::Parts;
use super::work::BackupProgress;
use super::{CommitError, EngineState, JournalSizes};
use crate::checkpointer::Checkpointer;
use crate::commit_log::CommitLog;
use crate::disk::Disk;
use crate::journal::Journal;
use crate::published::PublishedBytes;
use crate::rotation::SealControl;
use crate::seal::Installation;
use crate::start::{StartError, io};
use crate::times::Times;
use keypeg_core::sabotage::{Sabotage, enabled};
use keypeg_core::{Lsn, Policy, Pools};
use std::sync::Arc;

/// How long after the last frame another one carries the clock, while a lease or a rest runs. A
/// takeover makes them later by at most this and its own duration.
const CLOCK_FRAME_US: u64 = 5_000_000;

/// What a replica hands over to the engine of its shard.
pub(crate) struct Takeover {
    pub(crate) pools: Pools,
    pub(crate) journal: Journal,
    pub(crate) checkpointer: Checkpointer,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) installation: Installation,
    pub(crate) control: Option<Arc<SealControl>>,
    pub(crate) sizes: JournalSizes,
    pub(crate) log: Box<dyn CommitLog>,
    pub(crate) published: PublishedBytes,
    /// The default pool's policy, in the shard that has this pool.
    pub(crate) default_policy: Option<Policy>,
}

impl EngineState {
    /// Takes a shard over: appends the frame that fences the owner before, and only then returns.
    pub(crate) fn take_over(
        takeover: Takeover,
        times: Times,
        random: Box<dyn keypeg_core::RandomSource + Send>,
    ) -> Result<Self, StartError> {
        let Takeover { pools, mut journal, checkpointer, disk, installation, control, .. } =
            takeover;
        journal.set_log(takeover.log);
        let id = installation.id;
        let parts = Parts {
            pools,
            journal: Some(journal),
            checkpointer: Some(checkpointer),
            seal: installation.seal,
            control,
        };
        let mut state = Self::new(parts, times, random);
        state.allow_backups(disk, id);
        state.sizes = takeover.sizes;
        state.metrics = Arc::clone(&takeover.published.metrics);
        state.published = takeover.published;
        if !enabled(Sabotage::SkipTakeoverFrame) {
            state.write_proof().map_err(|CommitError(error)| io("taking the shard over")(error))?;
        }
        if let Some(policy) = &takeover.default_policy
            && state.pools.get(&keypeg_core::PoolName::default_pool()).is_none()
        {
            state.create_default_pool(policy)?;
        }
        Ok(state)
    }

    /// Returns whether the batches become durable in the log of a shard.
    pub(super) fn appends_to_a_log(&self) -> bool {
        self.journal.as_ref().is_some_and(Journal::has_log)
    }

    /// Returns whether a turn that answers a client must append a frame. Reads of the server itself
    /// need none: they are numbers for operators, and without this a server without requests would
    /// append a frame to each of its shards every second.
    pub(super) fn answers_need_a_frame(&self) -> bool {
        self.appends_to_a_log() && !enabled(Sabotage::AnswerWithoutFrame)
    }

    /// Returns the position of the last batch in the engine's own files; `None` in memory.
    pub fn last_batch(&self) -> Option<Lsn> {
        self.journal.as_ref().map(Journal::lsn)
    }

    /// Returns whether a frame must carry the clock, so long after the last frame.
    pub(super) fn clock_frame_is_due(&self, passed_us: u64) -> bool {
        passed_us >= CLOCK_FRAME_US
            && self.appends_to_a_log()
            && self.pools.next_due().lease_us.is_some()
    }

    /// Returns when the next clock frame is due, if a lease or a rest runs until then.
    pub(super) fn clock_frame_in_us(&self) -> Option<u64> {
        let at_us = self.committed_us + CLOCK_FRAME_US;
        self.appends_to_a_log().then(|| at_us.saturating_sub(self.now.lease_us))
    }

    /// Deletes the segments whose changes of the key set are checkpointed, except those that a
    /// backup reads: no start reads the files of a shard.
    pub(super) fn drop_scratch_segments(&mut self) {
        let Some(journal) = &self.journal else { return };
        // What a backup needs is known once its snapshot records are written.
        let is_backup_beginning =
            matches!(self.backup, BackupProgress::Requested | BackupProgress::Writes { .. });
        if journal.bytes() <= self.sizes.journal / 2 || is_backup_beginning {
            return;
        }
        let Some(through) = self.droppable_through(journal) else { return };
        if let Some(Err(error)) = self.journal.as_mut().map(|it| it.drop_through(through)) {
            tracing::warn!(%error, "a segment of a shard's scratch files is not deleted");
        }
    }
}
