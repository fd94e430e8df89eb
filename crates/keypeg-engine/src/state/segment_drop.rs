//! Dropping old segments of the journal: their live records are written again as snapshot records,
//! a bounded number in each turn, and once these are durable the segments are deleted.
//!
//! A drop starts only if it frees more bytes than it writes and, on a full disk, if the snapshot
//! records fit. So a drop never causes the next one, and never takes the space that releases need.

use super::work::SegmentDrop;
use super::{CommitError, EngineState};
use crate::frame::SegmentNumber;
use crate::journal::{DiskSpace, Journal};
use keypeg_core::sabotage::{Sabotage, TestLimit, enabled, limit};
use keypeg_core::{Fact, FactSink, SnapshotCursor};

/// The most snapshot records that one turn writes.
const SNAPSHOT_RECORDS_MAX: u32 = 256;
/// The assumed average size of a snapshot record, in bytes, before the first snapshot; also the
/// lowest average that a later snapshot sets.
pub(super) const SNAPSHOT_RECORD_BYTES: u64 = 64;

impl EngineState {
    /// Starts a drop when the journal is too large, or writes the next snapshot records of the
    /// current drop to this turn's batch. Returns whether the batch must be written although it may
    /// be empty: a backup reads the last batch of its snapshot records.
    pub(super) fn write_snapshot_records(&mut self) -> bool {
        if self.disk_space() == DiskSpace::Full {
            return false;
        }
        if self.appends_to_a_log() {
            self.drop_scratch_segments();
        }
        let Some(mut segment_drop) = self.segment_drop else {
            let cursor = SnapshotCursor::default();
            let start =
                |through| SegmentDrop { cursor, through, bytes: 0, records: 0, complete: false };
            let for_space = if self.appends_to_a_log() { None } else { self.segments_to_drop() };
            let through = for_space.or_else(|| self.snapshot_for_backup());
            self.segment_drop = through.map(start);
            self.note_snapshot_begins();
            return false;
        };
        let bytes_before = self.batch.bytes().len();
        let records_max = limit(TestLimit::SnapshotRecords, u64::from(SNAPSHOT_RECORDS_MAX));
        let records_max = u32::try_from(records_max).unwrap_or(SNAPSHOT_RECORDS_MAX);
        let batch = &mut self.batch;
        let mut write = |fact: &Fact<'_>| {
            segment_drop.records += 1;
            batch.record(fact);
        };
        if !enabled(Sabotage::SkipRetelling)
            && let Some(next) =
                self.pools.write_snapshot(segment_drop.cursor, records_max, &mut write)
        {
            segment_drop.cursor = next;
        } else {
            // The segments of a shard are scratch: no other owner has them.
            if !self.appends_to_a_log() {
                let through = segment_drop.through.0;
                FactSink::record(&mut self.batch, &Fact::SegmentsDropped { through });
            }
            segment_drop.complete = true;
        }
        segment_drop.bytes += (self.batch.bytes().len() - bytes_before) as u64;
        self.segment_drop = Some(segment_drop);
        segment_drop.complete
    }

    /// Returns the last segment to delete, if a drop must start now. O(segments).
    fn segments_to_drop(&self) -> Option<SegmentNumber> {
        let journal = self.journal.as_ref()?;
        let (bytes, bytes_max) = (journal.bytes(), self.sizes.journal / 4 * 3);
        if bytes <= bytes_max && !journal.is_starved() {
            return None;
        }
        let through = self.droppable_through(journal)?;
        let snapshot_bytes = self.pools.snapshot_record_count() * self.snapshot_record_bytes;
        let is_large = journal.is_starved() || bytes > bytes_max.max(2 * snapshot_bytes);
        let frees = journal.bytes_through(through) > snapshot_bytes;
        let fits = journal.writable_bytes().is_none_or(|room| snapshot_bytes <= room);
        (is_large && frees && fits).then_some(through)
    }

    /// Deletes the old segments once all snapshot records are durable.
    pub(super) fn drop_snapshotted_segments(&mut self) -> Result<(), CommitError> {
        let Some(SegmentDrop { through, complete: true, bytes, records, .. }) = self.segment_drop
        else {
            return Ok(());
        };
        // The average is that of the records written, not of what is live now: most leases may
        // have ended meanwhile.
        self.snapshot_record_bytes = (bytes / records.max(1)).max(SNAPSHOT_RECORD_BYTES);
        self.segment_drop = None;
        self.journal
            .as_mut()
            .map_or(Ok(()), |journal: &mut Journal| journal.drop_through(through))?;
        self.give_backup_ticket();
        Ok(())
    }
}
