//! The journal of a restored directory: batches in new segments, with a new installation.
//!
//! No boot id is valid for them, so the first start continues lease time where it stood, however
//! long ago that was: no lease or rest ends early.

use crate::disk::Disk;
use crate::frame::{BatchHead, FORMAT, SEGMENT_HEAD, SegmentHead, SegmentNumber, previous_lsn};
use crate::journal::SEGMENT_LEN;
use crate::layout::file_name;
use keypeg_core::{Counters, Lsn};
use std::io;
use std::sync::Arc;

const _: () = assert!(FORMAT == 1, "a restore writes the format of this version");

/// A batch to write: its position is the next one.
#[derive(Clone, Copy)]
pub(super) struct NewBatch<'a> {
    /// Lease time.
    pub(super) lease_us: u64,
    pub(super) records: &'a [u8],
}

/// Writes segments, each when it is full.
pub(super) struct SegmentWriter {
    disk: Arc<dyn Disk>,
    installation: u128,
    starts: u64,
    segment: SegmentNumber,
    /// The position of the next batch.
    next: Lsn,
    /// The position and the lease time of the first batch in `body`.
    first: Option<(Lsn, u64)>,
    /// The frames of the segment that is not written yet.
    body: Vec<u8>,
    frame: Vec<u8>,
}

impl SegmentWriter {
    /// Creates a writer whose first batch has the position `next`.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        installation: u128,
        starts: u64,
        (segment, next): (SegmentNumber, Lsn),
    ) -> Self {
        let (body, frame) = (Vec::new(), Vec::new());
        Self { disk, installation, starts, segment, next, first: None, body, frame }
    }

    /// Returns the position of the next batch.
    pub(super) fn next(&self) -> Lsn {
        self.next
    }

    /// Adds a batch.
    pub(super) fn add(&mut self, batch: NewBatch<'_>) -> io::Result<()> {
        let room = usize::try_from(SEGMENT_LEN).map_err(io::Error::other)? - SEGMENT_HEAD;
        let longest = batch.records.len() + 2 * crate::frame::BATCH_HEAD;
        if !self.body.is_empty() && self.body.len() + longest > room {
            self.flush()?;
        }
        let head = BatchHead {
            installation: self.installation,
            segment: self.segment,
            lsn: self.next,
            synced_through: previous_lsn(self.next),
            lease_us: batch.lease_us,
        };
        head.write(batch.records, &mut self.frame);
        self.body.extend_from_slice(&self.frame);
        self.first.get_or_insert((self.next, batch.lease_us));
        self.next = Lsn(self.next.0 + 1);
        Ok(())
    }

    /// Writes the segment of the batches so far, durably; the next batch begins another one.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let Some((starts_at, lease_us)) = self.first.take() else { return Ok(()) };
        let head = SegmentHead {
            installation: self.installation,
            segment: self.segment,
            starts_at,
            synced_through: previous_lsn(starts_at),
            starts: self.starts,
            boot_id: 0,
            boot_us: 0,
            lease_us,
            // The rows of the key set and the records contain the counters.
            counters: Counters::default(),
        };
        // Nothing is appended to it: each start begins a segment of its own.
        let len = (SEGMENT_HEAD + self.body.len()) as u64;
        let file = self.disk.create(&file_name(self.segment), len)?;
        file.write_at(0, &head.write())?;
        file.write_at(SEGMENT_HEAD as u64, &self.body)?;
        file.sync()?;
        self.body.clear();
        self.segment = self.segment.next();
        Ok(())
    }
}
