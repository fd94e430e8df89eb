//! The writing end of the journal: appends one frame per batch, with one write and one sync.
//!
//! Segments are preallocated (zeroed, synced, named), so a commit changes no file system metadata.
//! A failed write or sync is final: after an error the engine acknowledges nothing more and ends.
//! Reading is done elsewhere: by `recover.rs` at a start and by `checkpointer.rs` afterwards.

use crate::commit_log::{CommitLog, LogBatch};
use crate::disk::{Disk, DiskFile, is_full};
use crate::frame::{
    ALIGN, BATCH_HEAD, BatchHead, SEGMENT_HEAD, SegmentHead, SegmentNumber, next_lsn, previous_lsn,
};
use crate::layout::{BALLAST, TEMPORARY, file_name};
use crate::preallocator::{NextSegment, Preallocator, READY, ReadySegment};
use crate::progress::CheckpointProgress;
use keypeg_core::sabotage::{Sabotage, TestLimit, enabled, limit};
use keypeg_core::{Counters, Lsn};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes of a segment. A larger batch gets a segment of its own size.
pub const SEGMENT_LEN: u64 = 16 << 20;
/// Bytes at the end of the last segment that stay unused when no further segment is ready. A turn
/// that only expires, purges and releases writes less.
pub(crate) const LAST_SEGMENT_RESERVE: u64 = 2 << 20;
/// The least room that the first segment of a start has after what the start writes.
const FIRST_ROOM_MIN: u64 = 64 << 10;

const _: () = assert!(LAST_SEGMENT_RESERVE < SEGMENT_LEN, "the reserve fits into a segment");

/// The journal, open for appends.
pub(crate) struct Journal {
    segment_len: u64,
    file: Box<dyn DiskFile>,
    /// The header of the segment being written.
    head: SegmentHead,
    /// The byte offset of the next batch.
    offset: u64,
    /// The length of the segment being written, in bytes.
    len: u64,
    /// The position of the last durable batch.
    lsn: Lsn,
    /// The counters after that batch.
    counters: Counters,
    preallocator: Preallocator,
    /// The buffer in which a frame is built.
    frame: Vec<u8>,
    /// All segments up to the one being written, oldest first.
    segments: VecDeque<SegmentInfo>,
    /// Where the position of the last durable batch is published for the checkpointer.
    progress: Option<Arc<CheckpointProgress>>,
    /// The log of the shard, which makes batches durable; `None` where the files do.
    log: Option<Box<dyn CommitLog>>,
}

/// A segment of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentInfo {
    pub(crate) number: SegmentNumber,
    /// The position of its first batch.
    pub(crate) starts_at: Lsn,
    /// Its length in bytes.
    pub(crate) len: u64,
}

/// The calls for which the disk has space, from the fewest to all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DiskSpace {
    /// None that writes.
    Full,
    /// Those that free keys or space: releases, deletions, purges.
    ReleasesOnly,
    /// Those and grants.
    NoNewKeys,
    /// All.
    Normal,
}

/// The values that a batch frame or the next segment header contains beside the records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub(crate) lease_us: u64,
    pub(crate) counters: Counters,
}

/// A batch that no later frame proves to be durable; a start writes it again, into a new segment.
pub(crate) struct UnprovenBatch {
    pub(crate) lsn: Lsn,
    /// Lease time of its turn.
    pub(crate) lease_us: u64,
    pub(crate) records: Vec<u8>,
}

/// The first segment that a start writes.
#[derive(Clone, Copy)]
pub(crate) struct FreshSegment<'a> {
    /// The length of a segment in bytes.
    pub(crate) segment_len: u64,
    /// Its header, with the counters before the unproven batches.
    pub(crate) head: SegmentHead,
    /// The batches that it begins with.
    pub(crate) unproven: &'a [UnprovenBatch],
    /// The counters after the unproven batches.
    pub(crate) counters: Counters,
    /// The length of the preallocated segment with this number, if one exists.
    pub(crate) preallocated_len: Option<u64>,
}

impl Journal {
    /// Creates a new segment that begins with the unproven batches.
    ///
    /// The segment is written and synced under a temporary name, so a later start finds it complete
    /// or not at all. A preallocated segment of its number is reused, so a start needs no space on
    /// a full disk. Without one the segment is as short as the disk requires.
    pub(crate) fn begin(disk: &Arc<dyn Disk>, fresh: FreshSegment<'_>) -> io::Result<Self> {
        let FreshSegment { segment_len, head, unproven, counters, preallocated_len } = fresh;
        let mut body = Vec::new();
        let mut frame = Vec::new();
        for UnprovenBatch { lsn, lease_us, records } in unproven {
            let batch = BatchHead {
                installation: head.installation,
                segment: head.segment,
                lsn: *lsn,
                synced_through: head.synced_through,
                lease_us: *lease_us,
            };
            batch.write(records, &mut frame);
            body.extend_from_slice(&frame);
        }
        let offset = (SEGMENT_HEAD + body.len()) as u64;
        let len = segment_len.max(offset);
        let name = file_name(head.segment);
        let temporary = format!("{name}{TEMPORARY}");
        let left_by_interrupted_start = disk.list()?.contains(&temporary);
        let (file, len) = match preallocated_len.filter(|preallocated| *preallocated >= len) {
            // The file is not removed: without it, and with more preallocated segments after it, a
            // later start would find a gap and report a missing segment.
            _ if left_by_interrupted_start => {
                let file = disk.open(&temporary)?;
                file.set_len(0)?;
                file.set_len(len)?;
                (file, len)
            }
            Some(preallocated) => {
                // The rename is durable before the first write: a partly written segment must not
                // have the final name.
                disk.rename(&name, &temporary)?;
                disk.sync_dir()?;
                (disk.open(&temporary)?, preallocated)
            }
            None => create_first(&**disk, &temporary, len, offset)?,
        };
        file.write_at(0, &head.write())?;
        file.write_at(SEGMENT_HEAD as u64, &body)?;
        file.sync()?;
        disk.rename(&temporary, &name)?;
        if !enabled(Sabotage::ForgetDirectorySync) {
            disk.sync_dir()?;
        }
        let lsn = Lsn(previous_lsn(head.starts_at).0 + unproven.len() as u64);
        let segments = [SegmentInfo { number: head.segment, starts_at: head.starts_at, len }];
        Ok(Self {
            segment_len,
            file,
            head,
            offset,
            len,
            lsn,
            counters,
            preallocator: Preallocator::new(Arc::clone(disk), segment_len),
            frame,
            segments: segments.into(),
            progress: None,
            log: None,
        })
    }

    /// Appends one batch and makes it durable. The batch of a shard stands in the shard's log before
    /// anything is written to a file.
    pub(crate) fn commit(&mut self, records: &[u8], stamp: Stamp) -> io::Result<()> {
        if let Some(log) = &mut self.log {
            log.append(LogBatch { lease_us: stamp.lease_us, records })?;
        }
        self.write(records, stamp)
    }

    /// Writes one batch, which the log of the shard already contains if there is a log, and syncs.
    pub(crate) fn write(&mut self, records: &[u8], stamp: Stamp) -> io::Result<()> {
        let padded_len = (BATCH_HEAD + records.len()).next_multiple_of(ALIGN) as u64;
        if self.offset + padded_len > self.len {
            self.roll(padded_len, stamp)?;
        }
        let batch = BatchHead {
            installation: self.head.installation,
            segment: self.head.segment,
            lsn: self.next_lsn(),
            synced_through: self.lsn,
            lease_us: stamp.lease_us,
        };
        batch.write(records, &mut self.frame);
        if enabled(Sabotage::AnswerBeforeSync) {
            self.file.sync()?;
        }
        self.file.write_at(self.offset, &self.frame)?;
        if !enabled(Sabotage::AnswerBeforeSync) {
            let synced = self.file.sync();
            if !enabled(Sabotage::IgnoreFailedSync) {
                synced?;
            }
        }
        self.offset += padded_len;
        self.lsn = batch.lsn;
        self.counters = stamp.counters;
        self.publish();
        Ok(())
    }

    fn publish(&self) {
        if let Some(progress) = &self.progress {
            progress.synced.store(self.lsn.0, Ordering::Release);
        }
    }

    /// Returns the position of the next batch.
    pub(crate) fn next_lsn(&self) -> Lsn {
        next_lsn(self.lsn)
    }

    /// Publishes the position of the last durable batch in `progress`, now and after each commit.
    pub(crate) fn set_progress(&mut self, progress: Arc<CheckpointProgress>) {
        self.progress = Some(progress);
        self.publish();
    }

    /// Appends to the log of a shard from now on.
    pub(crate) fn set_log(&mut self, log: Box<dyn CommitLog>) {
        self.log = Some(log);
    }

    /// Returns whether a log makes the batches durable; the files are scratch then.
    pub(crate) fn has_log(&self) -> bool {
        self.log.is_some()
    }

    /// Returns the position of the last batch.
    pub(crate) fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Adds the segments from before this start, oldest first.
    pub(crate) fn add_older(&mut self, older: impl IntoIterator<Item = SegmentInfo>) {
        let newer = std::mem::take(&mut self.segments);
        self.segments.extend(older);
        self.segments.extend(newer);
    }

    /// Returns the bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len).sum()
    }

    /// Returns the segment that contains a position; the oldest segment for an earlier position.
    pub(crate) fn segment_with(&self, lsn: Lsn) -> SegmentNumber {
        let mut before = self.segments.iter().filter(|segment| segment.starts_at <= lsn);
        let found = before.next_back().or_else(|| self.segments.front());
        found.map_or(self.head.segment, |segment| segment.number)
    }

    /// Returns the bytes of the segments up to and including one.
    pub(crate) fn bytes_through(&self, through: SegmentNumber) -> u64 {
        let dropped = self.segments.iter().filter(|segment| segment.number <= through);
        dropped.map(|segment| segment.len).sum()
    }

    /// Returns the bytes that can still be written although no further segment can be created,
    /// without the reserve; `None` while segments can be created.
    pub(crate) fn writable_bytes(&self) -> Option<u64> {
        let ready = self.preallocator.ready_when_starved()? as u64;
        let bytes = self.len - self.offset + ready * self.segment_len;
        Some(bytes.saturating_sub(last_segment_reserve()))
    }

    /// Returns the oldest segment.
    pub(crate) fn oldest_segment(&self) -> SegmentNumber {
        self.segments.front().map_or(self.head.segment, |segment| segment.number)
    }

    /// Returns the starts of the server so far.
    pub(crate) fn starts(&self) -> u64 {
        self.head.starts
    }

    /// Returns the last segment before the present one whose batches are all checkpointed.
    pub(crate) fn droppable_through(&self, checkpointed: Lsn) -> Option<SegmentNumber> {
        let pairs = self.segments.iter().zip(self.segments.iter().skip(1));
        // The segment of the checkpointed position stays: the checkpointer reads on from it.
        let through = if enabled(Sabotage::DropBeforeCarry) { Lsn(u64::MAX) } else { checkpointed };
        let droppable = pairs.filter(|(_, next)| next.starts_at <= through);
        droppable.map(|(segment, _)| segment.number).max()
    }

    /// Returns the bytes of the segments with batches that are not checkpointed.
    pub(crate) fn bytes_to_checkpoint(&self, checkpointed: Lsn) -> u64 {
        if checkpointed >= self.lsn {
            return 0;
        }
        let ends = self.segments.iter().skip(1).map(|next| previous_lsn(next.starts_at));
        let ends = ends.chain([self.lsn]);
        let rest = self.segments.iter().zip(ends).filter(|(_, end)| *end > checkpointed);
        rest.map(|(segment, _)| segment.len).sum()
    }

    /// Deletes the segments up to and including one, oldest first. Each deletion is durable before
    /// the next, so a start finds no gap. No record in them may be needed any more.
    pub(crate) fn drop_through(&mut self, through: SegmentNumber) -> io::Result<()> {
        while let Some(oldest) = self.segments.pop_front_if(|oldest| oldest.number <= through) {
            self.preallocator.remove(oldest.number)?;
        }
        Ok(())
    }

    /// Continues in the next segment. Its header is durable before its first batch is written.
    fn roll(&mut self, batch_len: u64, stamp: Stamp) -> io::Result<()> {
        let number = self.head.segment.next();
        let min_len = self.segment_len.max(SEGMENT_HEAD as u64 + batch_len);
        let next = NextSegment { number, min_len, now_us: stamp.lease_us };
        let ready = self.preallocator.take(next)?;
        self.head = SegmentHead {
            segment: number,
            starts_at: self.next_lsn(),
            synced_through: self.lsn,
            boot_us: self.head.boot_us.wrapping_add(stamp.lease_us - self.head.lease_us),
            lease_us: stamp.lease_us,
            counters: self.counters,
            ..self.head
        };
        self.file = ready.file;
        self.file.write_at(0, &self.head.write())?;
        self.file.sync()?;
        self.offset = SEGMENT_HEAD as u64;
        self.len = ready.len;
        let starts_at = self.head.starts_at;
        self.segments.push_back(SegmentInfo { number, starts_at, len: self.len });
        Ok(())
    }

    /// Starts to preallocate segments: on a thread, or in [`Journal::maintain`].
    pub(crate) fn start_preallocation(&mut self, on_a_thread: bool) -> io::Result<()> {
        self.preallocator.start(on_a_thread)?;
        self.maintain(self.head.lease_us)
    }

    /// Adds a segment that was preallocated before this start; ignored unless it is the next one.
    pub(crate) fn adopt(&mut self, ready: ReadySegment) {
        self.preallocator.adopt(ready, self.head.segment);
    }

    /// Requests and collects preallocated segments; the engine calls it once per turn.
    pub(crate) fn maintain(&mut self, now_us: u64) -> io::Result<()> {
        self.preallocator.maintain(self.head.segment, now_us)
    }

    /// Returns the calls for which there is space. On a full disk the preallocated segments that
    /// are left are reserved: first for grants and releases, then for releases alone.
    pub(crate) fn disk_space(&self) -> DiskSpace {
        const _: () = assert!(READY == 3, "one level for each ready segment");
        match self.preallocator.ready_when_starved() {
            None | Some(READY..) => DiskSpace::Normal,
            Some(2) => DiskSpace::NoNewKeys,
            Some(1) => DiskSpace::ReleasesOnly,
            Some(_) if self.len - self.offset > last_segment_reserve() => DiskSpace::ReleasesOnly,
            Some(_) => DiskSpace::Full,
        }
    }

    /// Returns true while the disk is too full to preallocate a segment.
    pub(crate) fn is_starved(&self) -> bool {
        self.preallocator.ready_when_starved().is_some()
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { head, offset, lsn, .. } = self;
        write!(f, "Journal(segment {}, offset {offset}, position {})", head.segment, lsn.0)
    }
}

/// Creates the file of the first segment. Only if a full disk has no room for `len` bytes, it is
/// shorter, but has room after `needed` bytes; and only if there is no room for that either, the
/// ballast is removed: the next checkpoint then frees space by deleting older segments.
fn create_first(
    disk: &dyn Disk,
    name: &str,
    len: u64,
    needed: u64,
) -> io::Result<(Box<dyn DiskFile>, u64)> {
    match create_longest(disk, name, len, needed) {
        Err(error) if is_full(&error) && disk.list()?.iter().any(|name| name == BALLAST) => {
            disk.remove(BALLAST)?;
            // A part of the ballast is left for the checkpoint.
            create_longest(disk, name, len.min(needed + 2 * LAST_SEGMENT_RESERVE), needed)
        }
        created => created,
    }
}

/// Creates a file of `len` bytes, or of the first half, quarter and so on for which the disk has
/// room.
fn create_longest(
    disk: &dyn Disk,
    name: &str,
    mut len: u64,
    needed: u64,
) -> io::Result<(Box<dyn DiskFile>, u64)> {
    loop {
        match disk.create(name, len) {
            // A limit of a file's size stays, so a start names it: each later segment would fail.
            Err(error) if is_full(&error) && error.kind() != io::ErrorKind::FileTooLarge => {
                // The file exists up to the length that could be written.
                if disk.list()?.iter().any(|left| left == name) {
                    disk.remove(name)?;
                }
                len /= 2;
                if len < needed + FIRST_ROOM_MIN {
                    return Err(error);
                }
            }
            created => return created.map(|file| (file, len)),
        }
    }
}

fn last_segment_reserve() -> u64 {
    limit(TestLimit::LastRoom, LAST_SEGMENT_RESERVE)
}
