//! What the engine does for a backup: it writes its leases, rests and stored answers to the journal
//! again, as before a drop of segments, and then keeps the segments until the backup has read them.
//!
//! All of it happens within turns and costs each turn no more than a drop does. A backup never
//! makes a full disk fuller: if there is no space for another segment, or if the kept segments
//! become too large, the backup ends.

use super::EngineState;
use super::work::BackupProgress;
use crate::backup::{Backup, BackupParts, EngineTask, Ticket};
use crate::frame::{SegmentNumber, next_lsn};
use crate::journal::Journal;
use keypeg_core::US_PER_MS;
use keypeg_core::sabotage::{Sabotage, enabled};
use keypeg_store::BackupRefused;

/// How much the journal may grow while a backup reads it, in full journals.
const GROWTH_MAX: u64 = 2;

impl EngineState {
    /// Returns what backups read; `None` in memory.
    pub(crate) fn backup_parts(&self) -> Option<BackupParts> {
        self.backup_parts.clone()
    }

    /// Begins a backup that the caller drives by hand; `None` in memory.
    pub fn begin_backup(&self) -> Option<Result<Backup, BackupRefused>> {
        Some(Backup::begin(self.backup_parts()?, None))
    }

    /// Follows what the running backup needs. One atomic load while no backup runs.
    #[inline]
    pub(super) fn continue_backup(&mut self) {
        let Some(parts) = &self.backup_parts else { return };
        let task = parts.desk.engine_task();
        if task != EngineTask::None || self.backup != BackupProgress::None {
            self.follow_backup(task);
        }
    }

    #[cold]
    fn follow_backup(&mut self, task: EngineTask) {
        self.backup = match (task, self.backup) {
            (EngineTask::None, _) => BackupProgress::None,
            (EngineTask::WriteTicket, BackupProgress::None | BackupProgress::Keeps { .. }) => {
                BackupProgress::Requested
            }
            (_, progress) => progress,
        };
        let (Some(journal), Some(parts)) = (&self.journal, &self.backup_parts) else { return };
        let keeps_too_much = matches!(self.backup,
            BackupProgress::Keeps { journal_max, .. } if journal.bytes() > journal_max);
        if self.backup != BackupProgress::None && (journal.is_starved() || keeps_too_much) {
            let why = if keeps_too_much {
                BackupRefused::Failed(
                    "the client reads the backup more slowly than the journal grows".into(),
                )
            } else {
                BackupRefused::StorageFull
            };
            parts.desk.fail(why);
            self.backup = BackupProgress::None;
        }
    }

    /// Returns the last segment that a drop may delete: none that a backup reads.
    pub(super) fn droppable_through(&self, journal: &Journal) -> Option<SegmentNumber> {
        let through = journal.droppable_through(self.progress.checkpointed())?;
        let BackupProgress::Keeps { segment, .. } = self.backup else { return Some(through) };
        if enabled(Sabotage::DropUnderBackup) {
            return Some(through);
        }
        let through = through.min(segment.previous());
        (through >= journal.oldest_segment()).then_some(through)
    }

    /// Returns the last segment to delete if a backup waits for snapshot records: none, if none can
    /// be deleted.
    pub(super) fn snapshot_for_backup(&self) -> Option<SegmentNumber> {
        let journal = self.journal.as_ref()?;
        let through = || {
            let droppable = journal.droppable_through(self.progress.checkpointed());
            droppable.unwrap_or_else(|| journal.oldest_segment().previous())
        };
        (self.backup == BackupProgress::Requested).then(through)
    }

    /// Notes that the snapshot records of a drop are written from the next batch on.
    pub(super) fn note_snapshot_begins(&mut self) {
        if self.segment_drop.is_some()
            && self.backup == BackupProgress::Requested
            && let Some(journal) = &self.journal
        {
            self.backup = BackupProgress::Writes { first: journal.next_lsn() };
            self.pools.reserve_tokens(&mut self.batch);
        }
    }

    /// Gives a backup its ticket once the snapshot records that it waits for are durable.
    pub(super) fn give_backup_ticket(&mut self) {
        let BackupProgress::Writes { first } = self.backup else { return };
        let (Some(journal), Some(parts)) = (&self.journal, &self.backup_parts) else { return };
        // The snapshot of the key set begins later, so its position is not lower.
        let oldest = first.min(next_lsn(self.progress.checkpointed()));
        let segment = journal.segment_with(oldest);
        let (starts, wall_ms) = (journal.starts(), self.now.wall_us / US_PER_MS);
        let is_taken = parts.desk.give_ticket(Ticket { first, segment, starts, wall_ms });
        let journal_max = journal.bytes() + self.sizes.journal.saturating_mul(GROWTH_MAX);
        let keeps = BackupProgress::Keeps { segment, journal_max };
        self.backup = if is_taken { keeps } else { BackupProgress::None };
    }
}
