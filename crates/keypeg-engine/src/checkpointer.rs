//! The checkpointer: applies changes of the key set from the journal to the database, in the
//! background.
//!
//! It reads the files of the journal batch by batch, never past the last durable batch, and applies
//! many batches as one transaction. The database stores the position reached, so a crash at any
//! point only makes it read batches again. Lease records are skipped.

use crate::backup::BackupDesk;
use crate::disk::{Disk, is_full};
use crate::frame::SegmentNumber;
use crate::journal_reader::{JournalReader, ReadBatch, invalid};
use crate::keyset::{KeySetDb, KeySetDelta, KeySetError, KeySetState, PoolRows};
use crate::layout::{BALLAST, file_name};
use crate::lookups::{LookupResult, Lookups};
use crate::progress::CheckpointProgress;
use crate::record::{self, RecordError, RecordReader};
use crate::seal::Installation;
use keypeg_core::Counters;
use keypeg_core::sabotage::{Sabotage, TestLimit, enabled, limit};
use keypeg_store::BackupRefused;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Facts after which a transaction takes no further batch; a batch is never split.
const FACTS_MAX: usize = 50_000;
/// The pause between checkpoints while batches are left.
const PAUSE_BETWEEN_CHECKPOINTS: Duration = Duration::from_millis(20);
/// The pause when all batches are checkpointed.
const PAUSE_WHEN_IDLE: Duration = Duration::from_millis(250);
/// The pause before the next attempt on a full disk.
const PAUSE_WHEN_FULL: Duration = Duration::from_secs(1);
/// The pauses of a checkpoint that is put off while the engine ends what is due, and how many they are
/// at most: 1.5 s. The engine, the requests and a checkpoint together need more than two processors.
const PAUSE_IN_BACKLOG: Duration = Duration::from_millis(20);
const PAUSES_IN_BACKLOG_MAX: u32 = 75;
/// Bytes of pages that the database keeps in memory after a full disk.
const REOPENED_CACHE: usize = 4 << 20;
const BALLAST_LEN: u64 = 8 << 20;

/// The checkpointer and its position in the journal.
pub struct Checkpointer {
    disk: Arc<dyn Disk>,
    /// `None` from the time the disk was full until the next step.
    keyset: Option<KeySetDb>,
    installation: Installation,
    records: RecordReader,
    /// The segment of the last checkpointed batch: reading continues there after a failure.
    checkpointed_segment: SegmentNumber,
    progress: Arc<CheckpointProgress>,
    lookups: Arc<Lookups>,
    desk: Arc<BackupDesk>,
    /// The pools after the batches read so far.
    pools: PoolRows,
    counters: Counters,
    reader: JournalReader,
    /// Whether the database may contain rows of deleted pools.
    is_trimming: bool,
}

/// The values that a [`Checkpointer`] starts with.
pub(crate) struct CheckpointerOptions {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) keyset: KeySetDb,
    pub(crate) installation: Installation,
    /// The segment at which it starts to read.
    pub(crate) segment: SegmentNumber,
}

/// Why a checkpoint failed.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The database cannot be read or written.
    #[error("{0}")]
    KeySet(String),
    /// The disk is full; the caller tries again later.
    #[error("the disk is full")]
    Full,
    /// The journal cannot be read.
    #[error("cannot read the journal for a checkpoint: {0}")]
    Journal(#[from] io::Error),
}

impl Checkpointer {
    /// Creates a checkpointer that continues at the position stored in the database.
    pub(crate) fn new(options: CheckpointerOptions) -> Result<Self, KeySetError> {
        let CheckpointerOptions { disk, keyset, installation, segment } = options;
        let KeySetState { pools, checkpointed, counters } = keyset.state()?;
        let reader = JournalReader::open(&*disk, installation.id, segment)?;
        let progress = Arc::new(CheckpointProgress::default());
        let lookups = Arc::<Lookups>::default();
        let desk = Arc::new(BackupDesk::new(lookups.wakeup()));
        progress.set_checkpointed(checkpointed);
        Ok(Self {
            disk,
            keyset: Some(keyset),
            records: RecordReader::new(installation.seal.clone()),
            installation,
            checkpointed_segment: segment,
            progress,
            lookups,
            desk,
            pools,
            counters,
            reader,
            is_trimming: true,
        })
    }

    /// Returns the positions that the engine and the checkpointer share.
    pub(crate) fn progress(&self) -> Arc<CheckpointProgress> {
        Arc::clone(&self.progress)
    }

    /// Returns the queue of lookups that the engine fills.
    pub(crate) fn lookups(&self) -> Arc<Lookups> {
        Arc::clone(&self.lookups)
    }

    /// Returns the desk of backups.
    pub(crate) fn desk(&self) -> Arc<BackupDesk> {
        Arc::clone(&self.desk)
    }

    /// Begins the snapshot that a backup waits for.
    pub fn serve_backup(&self) {
        if !self.desk.take_snapshot_request() {
            return;
        }
        match self.keyset.as_ref().map(KeySetDb::snapshot) {
            Some(Ok(snapshot)) => self.desk.give_snapshot(snapshot),
            Some(Err(error)) => self.desk.fail(BackupRefused::Failed(error.to_string())),
            None => self.desk.fail(BackupRefused::StorageFull),
        }
    }

    /// Answers all queued lookups from the database.
    pub fn serve_lookups(&self) -> Result<(), CheckpointError> {
        while let Some(lookup) = self.lookups.next_request() {
            let found = match &self.keyset {
                None => LookupResult::StorageFull,
                Some(keyset) => LookupResult::Retired(keyset.retired(lookup.pool, &lookup.ids)?),
            };
            self.lookups.answer(found);
        }
        Ok(())
    }

    /// Writes the next checkpoint; returns false when all durable batches are checkpointed.
    ///
    /// After [`CheckpointError::Full`] the caller may call it again.
    pub fn step(&mut self) -> Result<bool, CheckpointError> {
        if self.keyset.is_none() {
            self.reopen()?;
        }
        let result = self.checkpoint_next();
        if matches!(result, Err(CheckpointError::Full)) {
            // The database accepts no call after a failed write; its committed content is kept.
            // The pages that a backup reads may be overwritten then, and they need space.
            self.desk.fail(BackupRefused::StorageFull);
            self.keyset = None;
            self.delete_ballast()?;
        }
        result
    }

    /// Checkpoints all durable batches, and rewrites the database into a new file with every value
    /// sealed. O(bytes).
    pub(crate) fn seal_all(&mut self, cache: usize) -> Result<(), CheckpointError> {
        while self.step()? {}
        let keyset = self.keyset.take().expect("invariant: opened before a step");
        self.keyset = Some(keyset.rewrite(&*self.disk, cache)?);
        Ok(())
    }

    /// Checkpoints all durable batches, and returns the database. O(bytes).
    pub(crate) fn finish(mut self) -> Result<KeySetDb, CheckpointError> {
        while self.step()? {}
        Ok(self.keyset.take().expect("invariant: opened before a step"))
    }

    /// Opens the database again and continues at the position stored in it.
    fn reopen(&mut self) -> Result<(), CheckpointError> {
        let keyset = KeySetDb::reopen(&*self.disk, &self.installation, REOPENED_CACHE)?;
        let KeySetState { pools, counters, .. } = keyset.state()?;
        (self.pools, self.counters) = (pools, counters);
        self.keyset = Some(keyset);
        let (installation, segment) = (self.installation.id, self.checkpointed_segment);
        self.reader = JournalReader::open(&*self.disk, installation, segment)?;
        Ok(())
    }

    /// Creates the ballast file if it does not exist. It reserves disk space for the database,
    /// because a checkpoint is what allows journal segments to be deleted. On a full disk the
    /// caller tries again later.
    pub fn ensure_ballast(&self) -> Result<(), CheckpointError> {
        if self.disk.list()?.iter().any(|name| name == BALLAST) {
            return Ok(());
        }
        match self.disk.create(BALLAST, BALLAST_LEN).and_then(|file| file.sync()) {
            Err(error) if is_full(&error) => self.delete_ballast(),
            other => Ok(other?),
        }
    }

    fn delete_ballast(&self) -> Result<(), CheckpointError> {
        match self.disk.remove(BALLAST) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn checkpoint_next(&mut self) -> Result<bool, CheckpointError> {
        let synced = self.progress.synced();
        let checkpointed = self.progress.checkpointed();
        let mut delta = KeySetDelta::after(checkpointed, self.counters);
        let reads_past_synced = enabled(Sabotage::CarryPastSynced);
        let facts_max = limit(TestLimit::Facts, FACTS_MAX as u64);
        while (delta.lsn < synced || reads_past_synced) && (delta.facts() as u64) < facts_max {
            let next = self.reader.next(&*self.disk);
            if reads_past_synced && next.is_err() && delta.lsn >= synced {
                break;
            }
            let batch = next?;
            if batch.lsn > checkpointed {
                self.apply(&batch, &mut delta)?;
                delta.lsn = batch.lsn;
            }
        }
        if delta.lsn == checkpointed && !self.is_trimming {
            return Ok(false);
        }
        let keyset = self.keyset.as_ref().expect("invariant: opened before a step");
        self.is_trimming = keyset.commit(&delta)?;
        self.counters = delta.counters;
        self.checkpointed_segment = self.reader.segment;
        self.progress.set_checkpointed(delta.lsn);
        Ok(delta.lsn < synced || self.is_trimming)
    }

    fn apply(&mut self, batch: &ReadBatch, delta: &mut KeySetDelta) -> Result<(), CheckpointError> {
        let mut rest = &batch.records[..];
        let segment = self.reader.segment;
        let unreadable = |RecordError(why)| {
            invalid(format!("{}: batch {}: {why}", file_name(segment), batch.lsn.0))
        };
        while !rest.is_empty() {
            // Nearly all records of a busy server: their fields are not parsed.
            if record::spares_key_set(rest) {
                rest = record::after_first(rest).map_err(unreadable)?;
                delta.skip();
                continue;
            }
            let fact;
            (fact, rest) = self.records.read(rest, batch.lease_us).map_err(unreadable)?;
            delta.apply(&fact, &self.installation, &mut self.pools).map_err(KeySetError::from)?;
        }
        Ok(())
    }

    /// Writes checkpoints until the engine stops. An error is final: the process must end.
    pub(crate) fn run(mut self) -> Result<(), CheckpointError> {
        self.ensure_ballast()?;
        self.lookups.listen();
        self.desk.listen();
        let mut pauses_in_backlog = 0;
        while !self.progress.stopping.load(Ordering::Acquire) {
            self.serve_lookups()?;
            self.serve_backup();
            let has_backlog = self.progress.has_backlog.load(Ordering::Relaxed);
            if puts_off(has_backlog, &mut pauses_in_backlog) {
                std::thread::park_timeout(PAUSE_IN_BACKLOG);
                continue;
            }
            let pause = match self.step() {
                Ok(true) => PAUSE_BETWEEN_CHECKPOINTS,
                Ok(false) => PAUSE_WHEN_IDLE,
                Err(CheckpointError::Full) => {
                    tracing::warn!(
                        "the disk is full: the checkpoint of the key set waits for free space"
                    );
                    std::thread::park_timeout(PAUSE_WHEN_FULL);
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.ensure_ballast()?;
            std::thread::park_timeout(pause);
        }
        Ok(())
    }
}

/// Returns whether the next checkpoint is put off once more. `pauses` counts these answers since the
/// engine last had nothing due, so that checkpoints go on even if it never catches up.
fn puts_off(has_backlog: bool, pauses: &mut u32) -> bool {
    if !has_backlog {
        *pauses = 0;
        return false;
    }
    *pauses = pauses.saturating_add(1);
    *pauses <= PAUSES_IN_BACKLOG_MAX
}

impl From<KeySetError> for CheckpointError {
    fn from(error: KeySetError) -> Self {
        match error {
            KeySetError::Io(ref error) if is_full(error) => Self::Full,
            KeySetError::Io(_) | KeySetError::Damaged(_) | KeySetError::TooLarge { .. } => {
                Self::KeySet(error.to_string())
            }
        }
    }
}

impl std::fmt::Debug for Checkpointer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checkpointer({:?})", self.progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_puts_checkpoints_off_and_does_not_stop_them() {
        let pauses = &mut 0;
        assert!(!puts_off(false, pauses));
        let put_off = (0..1_000).filter(|_| puts_off(true, pauses)).count();
        assert_eq!(put_off, PAUSES_IN_BACKLOG_MAX as usize, "then checkpoints go on");
        assert!(!puts_off(true, pauses));
        assert!(!puts_off(false, pauses));
        assert!(puts_off(true, pauses), "the next backlog");
    }
}
