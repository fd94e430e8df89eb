//! Completes the sealing of a directory that existed without a seal, before the engine serves.
//!
//! From the first sealed start on the engine writes sealed values alone; here what was written
//! before leaves the disk: the key set is rewritten into a new file, the live records of all older
//! segments are written again, the segments are deleted. `meta` says so last, so that a start after
//! a crash does all of it again.

use super::work::SegmentDrop;
use super::{CommitError, EngineState};
use crate::checkpointer::CheckpointError;
use crate::journal::DiskSpace;
use crate::keyset::KeySetError;
use crate::start::{StartError, io};
use keypeg_core::SnapshotCursor;
use std::sync::Arc;

impl EngineState {
    /// Removes every value that is not sealed from the disk, and notes in `meta` that there is
    /// none. Does nothing in a directory that is sealed or that has no seal. O(bytes).
    pub(super) fn complete_sealing(&mut self, cache: usize) -> Result<(), StartError> {
        let Some(control) = self.seal.as_ref().filter(|control| !control.is_complete()) else {
            return Ok(());
        };
        let control = Arc::clone(control);
        tracing::info!("sealing the values of the data directory: the server listens afterwards");
        let checkpointer = self.checkpointer.as_mut().expect("invariant: a start has not moved it");
        checkpointer.seal_all(cache).map_err(checkpoint_failed)?;
        self.drop_all_older_segments()
            .map_err(|CommitError(error)| io("sealing the journal")(error))?;
        control.set_complete().map_err(io("writing meta"))?;
        tracing::info!(key = %control.key(), "all values of the data directory are sealed");
        Ok(())
    }

    /// Writes snapshot records of all that lives, and deletes the segments before the present one.
    fn drop_all_older_segments(&mut self) -> Result<(), CommitError> {
        let through = self
            .journal
            .as_ref()
            .and_then(|journal| journal.droppable_through(self.progress.checkpointed()));
        let Some(through) = through else { return Ok(()) };
        let cursor = SnapshotCursor::default();
        self.segment_drop =
            Some(SegmentDrop { cursor, through, bytes: 0, records: 0, complete: false });
        while self.segment_drop.is_some() {
            self.begin_step();
            debug_assert!(self.disk_space() > DiskSpace::Full, "nothing has been preallocated");
            self.write_snapshot_records();
            self.commit(true)?;
            self.drop_snapshotted_segments()?;
        }
        Ok(())
    }
}

fn checkpoint_failed(error: CheckpointError) -> StartError {
    match error {
        CheckpointError::Full => io("sealing the key set")(std::io::ErrorKind::StorageFull.into()),
        CheckpointError::Journal(error) => io("sealing the journal")(error),
        CheckpointError::KeySet(why) => KeySetError::Damaged(why).into(),
    }
}
