//! The reading end of the journal while the server runs: batches in their order, from the files.
//!
//! The checkpointer and backups read durable batches only, so each batch that they request exists
//! and is complete. A start reads by `recover.rs`, which must judge incomplete batches too.

use crate::disk::{Disk, DiskFile};
use crate::frame::{
    ALIGN, BATCH_HEAD, BatchFrame, BatchHead, SEGMENT_HEAD, SegmentHead, SegmentNumber, next_lsn,
    previous_lsn,
};
use crate::layout::file_name;
use keypeg_core::Lsn;
use std::io;

/// The position in the segment being read.
pub(crate) struct JournalReader {
    pub(crate) installation: u128,
    pub(crate) segment: SegmentNumber,
    file: Box<dyn DiskFile>,
    /// The byte offset of the next batch.
    offset: u64,
    /// The position of the last batch read.
    lsn: Lsn,
    /// The first position of the next segment, if it had been started when this one was opened.
    ends_before: Option<Lsn>,
}

/// A batch read from the journal.
pub(crate) struct ReadBatch {
    pub(crate) lsn: Lsn,
    /// Lease time of its turn.
    pub(crate) lease_us: u64,
    pub(crate) records: Vec<u8>,
}

impl JournalReader {
    /// Opens the journal at the first batch of a segment.
    pub(crate) fn open(
        disk: &dyn Disk,
        installation: u128,
        segment: SegmentNumber,
    ) -> io::Result<Self> {
        let name = file_name(segment);
        let file = disk.open(&name)?;
        let mut head = vec![0; SEGMENT_HEAD];
        file.read_at(0, &mut head)?;
        let head = SegmentHead::read(&head)
            .map_err(|_| invalid(format!("{name}: the segment header is damaged")))?;
        let mut reader = Self {
            installation,
            segment,
            file,
            offset: SEGMENT_HEAD as u64,
            lsn: previous_lsn(head.starts_at),
            ends_before: None,
        };
        reader.ends_before = reader.next_segment(disk)?.map(|(_, starts_at)| starts_at);
        Ok(reader)
    }

    /// Returns the next batch, which must exist.
    pub(crate) fn next(&mut self, disk: &dyn Disk) -> io::Result<ReadBatch> {
        loop {
            let in_segment = self.ends_before.is_none_or(|end| next_lsn(self.lsn) < end);
            if in_segment && let Some(batch) = self.read()? {
                return Ok(batch);
            }
            let missing = || {
                let (file, lsn) = (file_name(self.segment), next_lsn(self.lsn).0);
                invalid(format!("{file}: batch {lsn} is missing at byte {}", self.offset))
            };
            let (segment, starts_at) = self.next_segment(disk)?.ok_or_else(missing)?;
            if starts_at != next_lsn(self.lsn) {
                return Err(missing());
            }
            *self = Self::open(disk, self.installation, segment)?;
        }
    }

    /// Returns the next batch of this segment; `None` if there is no complete one.
    fn read(&mut self) -> io::Result<Option<ReadBatch>> {
        let end = self.file.length()?;
        let mut frame = vec![0; BATCH_HEAD];
        if self.offset + BATCH_HEAD as u64 > end {
            return Ok(None);
        }
        self.file.read_at(self.offset, &mut frame)?;
        let len = BatchHead::body_len(&frame);
        if self.offset + (BATCH_HEAD + len) as u64 > end {
            return Ok(None);
        }
        frame.resize(BATCH_HEAD + len, 0);
        self.file.read_at(self.offset + BATCH_HEAD as u64, &mut frame[BATCH_HEAD..])?;
        let Some(frame) = BatchHead::read(&frame) else { return Ok(None) };
        let BatchFrame { head, records, padded_len } = frame;
        let is_ours = head.installation == self.installation && head.segment == self.segment;
        if !is_ours || head.lsn != next_lsn(self.lsn) {
            return Ok(None);
        }
        debug_assert_eq!(padded_len % ALIGN, 0);
        let batch = ReadBatch { lsn: head.lsn, lease_us: head.lease_us, records: records.to_vec() };
        self.offset += padded_len as u64;
        self.lsn = head.lsn;
        Ok(Some(batch))
    }

    /// Returns the next segment that has been started, and its first position.
    fn next_segment(&self, disk: &dyn Disk) -> io::Result<Option<(SegmentNumber, Lsn)>> {
        // One preallocated and never used segment may lie between; see `recover.rs`.
        for segment in [self.segment.next(), self.segment.plus(2)] {
            match disk.read_head(&file_name(segment), SEGMENT_HEAD) {
                Ok(head) => {
                    if let Ok(head) = SegmentHead::read(&head) {
                        return Ok(Some((segment, head.starts_at)));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

/// Returns the error for a file whose content is not what was written.
pub(crate) fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
