//! The journal's writing end: one frame a batch, one write and one sync, then it stands.
//!
//! Segments are made ready ahead (zeroed, synced, named), so that a commit changes no metadata. A
//! failed write or sync is final: whoever gets the error must answer nothing and end. ClockReading back
//! is `recover.rs`' business.

use crate::checkpointer::CheckpointProgress;
use crate::core::Counters;
use crate::core::sabotage::{Sabotage, TestLimit, enabled, limit};
use crate::disk::{Disk, DiskFile};
use crate::frame::{BATCH_HEAD, BatchHead, SEGMENT_HEAD, SegmentHead};
use crate::preallocator::{Preallocator, READY, ReadySegment};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes of a segment. A batch that is larger gets a segment of its own size.
pub const SEGMENT_LEN: u64 = 16 << 20;
/// Bytes of the last segment that are left unused when no further one is ready: more than a turn
/// that only gives back can write.
const LAST_ROOM: u64 = 2 << 20;
const PREFIX: &str = "journal-";
/// What a file is called until it is whole.
pub(crate) const TEMPORARY: &str = ".new";

/// Where batches are appended.
pub(crate) struct Journal {
    segment_len: u64,
    file: Box<dyn DiskFile>,
    /// The header of the segment being written, as it was begun.
    head: SegmentHead,
    /// Where the next batch goes.
    at: u64,
    /// The length of the segment being written.
    len: u64,
    /// The position of the last batch that is durable.
    position: u64,
    /// The counters after that batch.
    counters: Counters,
    spares: Preallocator,
    frame: Vec<u8>,
    /// Every segment there is, oldest first: its number, where it begins, its length.
    segments: VecDeque<(u64, u64, u64)>,
    /// Who wants to know how far it is durable.
    progress: Option<Arc<CheckpointProgress>>,
}

/// What there is still room for, when the disk is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DiskSpace {
    /// For nothing that writes.
    Full,
    /// For what gives back: releases, deletions, purges.
    ReleasesOnly,
    /// For that and for grants.
    NoNewKeys,
    /// For all.
    Normal,
}

/// What a batch carries beside its records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub(crate) lease_us: u64,
    pub(crate) counters: Counters,
}

/// A batch that is rewritten into a fresh segment: its position, its clock, its records.
pub(crate) type UnprovenBatch = (u64, u64, Vec<u8>);

impl Journal {
    /// Begins a fresh segment with batches that were not proven to be durable, whole or not at
    /// all: it gets its name when it is synced. `head` tells the counters before those batches,
    /// `counters` those after them. A segment `unused` that was made ready for its place is taken,
    /// so that a start needs no room on a disk that is full.
    pub(crate) fn begin(
        disk: &Arc<dyn Disk>,
        segment_len: u64,
        head: SegmentHead,
        unproven: &[UnprovenBatch],
        counters: Counters,
        unused: Option<u64>,
    ) -> io::Result<Self> {
        let mut body = Vec::new();
        let mut frame = Vec::new();
        for (position, lease_us, records) in unproven {
            let batch = BatchHead {
                installation: head.installation,
                segment: head.segment,
                position: *position,
                synced_through: head.synced_through,
                lease_us: *lease_us,
            };
            batch.write(records, &mut frame);
            body.extend_from_slice(&frame);
        }
        let at = (SEGMENT_HEAD + body.len()) as u64;
        let len = segment_len.max(at);
        let name = file_name(head.segment);
        let unfinished = format!("{name}{TEMPORARY}");
        let begun_before = disk.list()?.contains(&unfinished);
        let (file, len) = match unused.filter(|unused| *unused >= len) {
            // A start that was cut short left it. It is not removed: without it, and with more
            // segments made ready behind, a later start would miss it.
            _ if begun_before => {
                let file = disk.open(&unfinished)?;
                file.set_len(0)?;
                file.set_len(len)?;
                (file, len)
            }
            Some(unused) => {
                // Durably, before a byte is written: half written it must not have its name.
                disk.rename(&name, &unfinished)?;
                disk.sync_dir()?;
                (disk.open(&unfinished)?, unused)
            }
            None => (disk.create(&unfinished, len)?, len),
        };
        file.write_at(0, &head.write())?;
        file.write_at(SEGMENT_HEAD as u64, &body)?;
        file.sync()?;
        disk.rename(&unfinished, &name)?;
        if !enabled(Sabotage::ForgetDirectorySync) {
            disk.sync_dir()?;
        }
        let position = head.starts_at - 1 + unproven.len() as u64;
        let spares = Preallocator::new(Arc::clone(disk), segment_len);
        let segments = [(head.segment, head.starts_at, len)].into();
        Ok(Self {
            segment_len,
            file,
            head,
            at,
            len,
            position,
            counters,
            spares,
            frame,
            segments,
            progress: None,
        })
    }

    /// Appends one batch and makes it durable.
    pub(crate) fn commit(&mut self, records: &[u8], stamp: Stamp) -> io::Result<()> {
        let padded = (BATCH_HEAD + records.len()).next_multiple_of(crate::frame::ALIGN) as u64;
        if self.at + padded > self.len {
            self.roll(padded, stamp)?;
        }
        let batch = BatchHead {
            installation: self.head.installation,
            segment: self.head.segment,
            position: self.position + 1,
            synced_through: self.position,
            lease_us: stamp.lease_us,
        };
        batch.write(records, &mut self.frame);
        if enabled(Sabotage::AnswerBeforeSync) {
            self.file.sync()?;
        }
        self.file.write_at(self.at, &self.frame)?;
        if !enabled(Sabotage::AnswerBeforeSync) {
            let synced = self.file.sync();
            if !enabled(Sabotage::IgnoreFailedSync) {
                synced?;
            }
        }
        self.at += padded;
        self.position += 1;
        self.counters = stamp.counters;
        self.publish();
        Ok(())
    }

    fn publish(&self) {
        if let Some(progress) = &self.progress {
            progress.synced.store(self.position, Ordering::Release);
        }
    }

    /// The position that the next batch has.
    pub(crate) fn next_position(&self) -> u64 {
        self.position + 1
    }

    /// Tells `progress` from now on how far the journal is durable.
    pub(crate) fn follow(&mut self, progress: Arc<CheckpointProgress>) {
        self.progress = Some(progress);
        self.publish();
    }

    /// KeyCounts segments of before this start, oldest first.
    pub(crate) fn knows(&mut self, older: impl IntoIterator<Item = (u64, u64, u64)>) {
        let newer = std::mem::take(&mut self.segments);
        self.segments.extend(older);
        self.segments.extend(newer);
    }

    /// Bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|(.., len)| len).sum()
    }

    /// The segment that holds a position; the oldest for one before all.
    pub(crate) fn holding(&self, position: u64) -> u64 {
        let mut before = self.segments.iter().filter(|(_, starts_at, _)| *starts_at <= position);
        let found = before.next_back().or_else(|| self.segments.front());
        found.map_or(self.head.segment, |(segment, ..)| *segment)
    }

    /// Bytes of the segments up to one.
    pub(crate) fn bytes_through(&self, through: u64) -> u64 {
        let up_to = self.segments.iter().filter(|(segment, ..)| *segment <= through);
        up_to.map(|(.., len)| len).sum()
    }

    /// Bytes that can still be written when no further segment can be made, what is kept for
    /// giving back aside; `None` while more can be made.
    pub(crate) fn room_bytes(&self) -> Option<u64> {
        let left = self.spares.left()? as u64;
        Some((self.len - self.at + left * self.segment_len).saturating_sub(last_room()))
    }

    /// The last segment before the present one whose batches are all in the database.
    pub(crate) fn droppable(&self, carried: u64) -> Option<u64> {
        let pairs = self.segments.iter().zip(self.segments.iter().skip(1));
        // The segment that holds the carried position stays: the carrier reads on from it.
        let carried = if enabled(Sabotage::DropBeforeCarry) { u64::MAX } else { carried };
        let whole = pairs.filter(|(_, (_, next_starts_at, _))| *next_starts_at <= carried);
        whole.map(|((segment, ..), _)| *segment).max()
    }

    /// Bytes of the segments that hold something not carried yet.
    pub(crate) fn bytes_to_carry(&self, carried: u64) -> u64 {
        if carried >= self.position {
            return 0;
        }
        let ends = self.segments.iter().skip(1).map(|(_, starts_at, _)| starts_at - 1);
        let ends = ends.chain([self.position]);
        let left = self.segments.iter().zip(ends).filter(|(_, end)| *end > carried);
        left.map(|((.., len), _)| len).sum()
    }

    /// Removes the segments up to one, oldest first, each durably before the next: a start finds
    /// no gap. Nothing of them may count any more.
    pub(crate) fn drop_through(&mut self, segment: u64) -> io::Result<()> {
        while self.segments.front().is_some_and(|(oldest, ..)| *oldest <= segment) {
            let (oldest, ..) = self.segments.pop_front().expect("invariant: just looked at");
            self.spares.remove(oldest)?;
        }
        Ok(())
    }

    /// Goes on in the next segment. Its header is durable before its first batch is written.
    fn roll(&mut self, room: u64, stamp: Stamp) -> io::Result<()> {
        let segment = self.head.segment + 1;
        let len = self.segment_len.max(SEGMENT_HEAD as u64 + room);
        let spare = self.spares.take(segment, len, stamp.lease_us)?;
        self.head = SegmentHead {
            segment,
            starts_at: self.position + 1,
            synced_through: self.position,
            boot_us: self.head.boot_us.wrapping_add(stamp.lease_us - self.head.lease_us),
            lease_us: stamp.lease_us,
            counters: self.counters,
            ..self.head
        };
        self.file = spare.file;
        self.file.write_at(0, &self.head.write())?;
        self.file.sync()?;
        self.at = SEGMENT_HEAD as u64;
        self.len = spare.len;
        self.segments.push_back((segment, self.head.starts_at, self.len));
        Ok(())
    }

    /// Has segments made ready ahead from now on: by a thread, or in [`Journal::tend`].
    pub(crate) fn start_preallocation(&mut self, on_a_thread: bool) -> io::Result<()> {
        self.spares.begin(on_a_thread)?;
        self.tend(self.head.lease_us)
    }

    /// Takes a segment in that was made ready before this start; it must be the next one.
    pub(crate) fn adopt(&mut self, spare: ReadySegment) {
        self.spares.adopt(spare, self.head.segment);
    }

    /// Looks after the segments made ready; to be called once a turn.
    pub(crate) fn tend(&mut self, now_us: u64) -> io::Result<()> {
        self.spares.tend(self.head.segment, now_us)
    }

    /// What there is room for. Segments that are ready when no more can be made are kept for what
    /// gives back.
    pub(crate) fn room(&self) -> DiskSpace {
        match self.spares.left() {
            None | Some(READY..) => DiskSpace::Normal,
            Some(2) => DiskSpace::NoNewKeys,
            Some(1) => DiskSpace::ReleasesOnly,
            Some(_) if self.len - self.at > last_room() => DiskSpace::ReleasesOnly,
            Some(_) => DiskSpace::Full,
        }
    }

    /// Whether no further segment can be made ready.
    pub(crate) fn is_starved(&self) -> bool {
        self.spares.left().is_some()
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { head, at, position, .. } = self;
        write!(f, "Journal(segment {}, at {at}, position {position})", head.segment)
    }
}

fn last_room() -> u64 {
    limit(TestLimit::LastRoom, LAST_ROOM)
}

/// The name of a segment's file.
pub(crate) fn file_name(segment: u64) -> String {
    format!("{PREFIX}{segment:012}")
}

/// The segment whose file has this name.
pub(crate) fn segment_of(name: &str) -> Option<u64> {
    let segment = name.strip_prefix(PREFIX)?.parse().ok()?;
    (file_name(segment) == name).then_some(segment)
}
