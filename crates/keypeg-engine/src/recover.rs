//! Recovery: turns a data directory into pools at a start, or refuses it.
//!
//! The journal is replayed batch by batch. Damage at or below a position that some frame records as
//! synced is corruption: the start is refused, with file and offset. Damage above it is a torn tail
//! of a crash: it is discarded. Batches that are valid but not proven durable are written into a
//! new segment and synced before the server answers: bytes read from a page cache after a failed
//! sync are never relied on.

mod segments;
mod tail;

use crate::clock::ClockReading;
use crate::disk::Disk;
use crate::frame::{BatchFrame, BatchHead, SEGMENT_HEAD, SegmentHead, SegmentNumber, next_lsn};
use crate::journal::{FreshSegment, Journal, SegmentInfo, UnprovenBatch};
use crate::keyset::{KeySetDb, KeySetError};
use crate::layout::{
    BALLAST, JOURNAL_PREFIX, KEYSET, META, RESTORING, TEMPORARY, file_name, parse_file_name,
};
use crate::meta::Meta;
use crate::preallocator::ReadySegment;
use crate::record::{
    KEY_NUMBER_MAX, POOL_NUMBER_MAX, REPLAYED_TOKEN_MAX, RecordError, RecordReader,
};
use crate::seal::Installation;
use crate::start::{StartError, corrupt, io, missing};
use crate::times::LastClock;
use keypeg_core::sabotage::{Sabotage, enabled};
use keypeg_core::{
    Checkpointed, Counters, KeyNumber, Lsn, NEVER_US, PoolId, ReplayError, Replayer,
};
use segments::{Segments, UnusedSegment, segments};
use std::collections::VecDeque;
use std::sync::Arc;

/// The result of a replay.
pub(crate) struct ReplayedJournal {
    pub(crate) replayer: Replayer,
    records: RecordReader,
    pub(crate) last: LastClock,
    pub(crate) starts: u64,
    pub(crate) batches_cut: u64,
    /// The segments of the journal, oldest first.
    segments: Vec<SegmentInfo>,
    /// Segments that were preallocated and never used.
    unused: Vec<UnusedSegment>,
    /// See [`Segments::stranded`].
    stranded: Vec<SegmentNumber>,
    /// The header of the segment being replayed.
    head: SegmentHead,
    /// The last position whose changes are in the key set.
    pub(crate) checkpointed: Lsn,
    /// The last position that is proven durable.
    synced: Lsn,
    /// Batches that no frame proves durable, oldest first.
    unproven: VecDeque<ReplayedBatch>,
    /// The position of the next batch.
    next: Lsn,
}

/// A batch that no frame proves durable.
struct ReplayedBatch {
    /// The counters before it.
    counters: Counters,
    batch: UnprovenBatch,
}

/// Returns the content of `meta`; `None` if the directory is new. What an interrupted creation left
/// is deleted, unless `must_exist`.
pub(crate) fn examine(disk: &dyn Disk, must_exist: bool) -> Result<Option<Meta>, StartError> {
    let names = disk.list().map_err(io("listing the data directory"))?;
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    let temporary = format!("{META}{TEMPORARY}");
    if has(META) {
        let bytes = disk.read(META).map_err(io("reading meta"))?;
        return Meta::read(&bytes).map(Some);
    }
    if has(RESTORING) {
        return Err(StartError::Corrupt(
            "the data directory holds an incomplete restore: run keypeg restore again with the \
             same --data, or remove the directory"
                .into(),
        ));
    }
    // A creation writes the temporary file first, so without it these files are not a creation's.
    let has_journal = names.iter().any(|name| parse_file_name(name).is_some());
    if !has(&temporary) && (has_journal || has(KEYSET)) {
        let part = if has_journal { "a journal" } else { "a key set" };
        return Err(StartError::Corrupt(format!(
            "the data directory has {part} but no {META}: a part of it is missing. Put the file \
             back, or restore the data directory from a backup; nothing was changed"
        )));
    }
    if must_exist {
        return Ok(None);
    }
    // A creation that did not finish has served no client, so it starts again.
    let is_ours = |name: &&String| {
        [KEYSET, BALLAST].contains(&name.as_str()) || name.starts_with(JOURNAL_PREFIX)
    };
    for name in names.iter().filter(is_ours) {
        disk.remove(name).map_err(removing)?;
    }
    if has(&temporary) {
        // Last: a crash leaves no other file without it.
        disk.sync_dir().map_err(removing)?;
        disk.remove(&temporary).map_err(removing)?;
    }
    Ok(None)
}

fn removing(error: std::io::Error) -> StartError {
    io("removing the files of an interrupted first start")(error)
}

/// Opens the key set of an existing directory. The first version of Keypeg had none: such a
/// directory gets an empty one, and the whole journal is checkpointed into it.
pub(crate) fn open_keyset(
    disk: &dyn Disk,
    meta: &mut Meta,
    installation: &Installation,
    cache: usize,
) -> Result<KeySetDb, StartError> {
    let names = disk.list().map_err(io("listing the data directory"))?;
    let exists = names.iter().any(|name| name == KEYSET);
    if meta.has_keyset {
        if !exists {
            return Err(missing(KEYSET));
        }
        return KeySetDb::open(disk, installation, cache).map_err(StartError::from);
    }
    if exists {
        disk.remove(KEYSET).map_err(io("removing an incomplete key set"))?;
    }
    let keyset = KeySetDb::open(disk, installation, cache)?;
    meta.has_keyset = true;
    meta.replace(disk).map_err(io("writing meta"))?;
    Ok(keyset)
}

/// Loads the key set into a new replay, and replays the whole journal on top of it. Pools that need more than
/// `memory_max` bytes are refused. O(keys + journal).
pub(crate) fn replay(
    disk: &dyn Disk,
    installation: &Installation,
    mut replayer: Replayer,
    memory_max: u64,
    keyset: &KeySetDb,
) -> Result<ReplayedJournal, StartError> {
    let Segments { heads, all, unused, stranded } = segments(disk, installation.id)?;
    let first = *heads.first().ok_or_else(|| missing("the journal"))?;
    let checkpointed = keyset.load(&mut replayer, memory_max)?;
    if next_lsn(checkpointed) < first.starts_at {
        return Err(missing(&file_name(first.segment.previous())));
    }
    if first.segment > SegmentNumber::FIRST {
        replayer.set_truncated();
    }
    let mut journal = ReplayedJournal {
        replayer,
        records: RecordReader::new(installation.seal.clone()),
        last: LastClock { boot_id: 0, boot_us: 0, lease_us: 0 },
        starts: 0,
        batches_cut: 0,
        segments: all,
        unused,
        stranded,
        head: first,
        checkpointed,
        // Only durable batches are checkpointed.
        synced: checkpointed,
        unproven: VecDeque::new(),
        next: first.starts_at,
    };
    for (index, head) in heads.iter().enumerate() {
        let end = heads.get(index + 1).map(|next| next.starts_at);
        journal.replay_segment(disk, *head, end)?;
    }
    if SegmentNumber(journal.replayer.droppable_through()).next() < first.segment {
        return Err(missing(&file_name(first.segment.previous())));
    }
    let needed = journal.replayer.count_all_bytes();
    if needed > memory_max {
        return Err(StartError::TooLarge { needed, given: memory_max });
    }
    Ok(journal)
}

/// Refuses a clock value that no server reaches: no deadline could be after it.
fn check_clock(name: &str, offset: usize, lease_us: u64) -> Result<(), StartError> {
    if lease_us < NEVER_US / 2 {
        return Ok(());
    }
    Err(corrupt(name, offset, "the clock value is out of range"))
}

impl ReplayedJournal {
    /// Replays one segment up to `end`, the first position of the next segment.
    fn replay_segment(
        &mut self,
        disk: &dyn Disk,
        head: SegmentHead,
        end: Option<Lsn>,
    ) -> Result<(), StartError> {
        let name = file_name(head.segment);
        if head.starts_at != self.next {
            return Err(corrupt(&name, 0, "it does not start where the segment before it ends"));
        }
        check_clock(&name, 0, head.lease_us)?;
        let Counters { next_key, next_pool, tokens_reserved } = head.counters;
        if next_key > KeyNumber(KEY_NUMBER_MAX)
            || next_pool > PoolId(POOL_NUMBER_MAX)
            || tokens_reserved > REPLAYED_TOKEN_MAX
        {
            return Err(corrupt(&name, 0, "a counter is out of range"));
        }
        self.replayer.raise_counters(head.counters);
        self.starts = self.starts.max(head.starts);
        self.set_synced(head.synced_through);
        self.head = head;
        self.advance_clock(head.lease_us);
        let bytes = disk.read(&name).map_err(io(&name))?;
        let mut offset = SEGMENT_HEAD;
        while end.is_none_or(|end| self.next < end) {
            let frame = BatchHead::read(&bytes[offset.min(bytes.len())..]);
            let Some(frame) = frame.filter(|frame| self.is_next(&frame.head)) else {
                let tail = Tail { name: &name, bytes: &bytes, offset };
                return self.check_tail(tail, end);
            };
            let BatchFrame { head: BatchHead { lsn, lease_us, synced_through, .. }, .. } = frame;
            check_clock(&name, offset, lease_us)?;
            self.set_synced(synced_through);
            self.advance_clock(lease_us);
            let counters = self.replayer.pools().counters();
            self.replay_batch(frame.records, lease_us)
                .map_err(|why| corrupt(&name, offset, why))?;
            let batch = UnprovenBatch { lsn, lease_us, records: frame.records.to_vec() };
            self.unproven.push_back(ReplayedBatch { counters, batch });
            self.next = next_lsn(self.next);
            offset += frame.padded_len;
        }
        Ok(())
    }

    /// Returns true if this is the header of the next batch.
    fn is_next(&self, batch: &BatchHead) -> bool {
        self.is_of_segment(batch) && batch.lsn == self.next
    }

    fn is_of_segment(&self, batch: &BatchHead) -> bool {
        batch.installation == self.head.installation && batch.segment == self.head.segment
    }

    fn replay_batch(&mut self, records: &[u8], lease_us: u64) -> Result<(), &'static str> {
        self.replayer.set_position(self.next);
        let checkpointed =
            if self.next <= self.checkpointed { Checkpointed::Yes } else { Checkpointed::No };
        let mut rest = records;
        while !rest.is_empty() {
            let fact;
            (fact, rest) = self.records.read(rest, lease_us).map_err(|RecordError(why)| why)?;
            self.replayer.apply(&fact, checkpointed).map_err(|ReplayError(why)| why)?;
        }
        Ok(())
    }

    /// Distinguishes a torn tail from corruption where the next batch is not complete.
    fn check_tail(&mut self, tail: Tail<'_>, end: Option<Lsn>) -> Result<(), StartError> {
        let Tail { name, bytes, offset } = tail;
        let rest = bytes.get(offset..).unwrap_or_default();
        // A complete batch after the damage may prove that the damaged bytes were durable once.
        let scan = tail::scan(rest, |head| self.is_of_segment(head));
        self.set_synced(scan.synced_through);
        if end.is_some() || self.synced >= self.next {
            return Err(corrupt(name, offset, "a batch that was durable is damaged"));
        }
        if scan.overlaps {
            return Err(corrupt(name, offset, "frames overlap, which no crash leaves"));
        }
        self.batches_cut += u64::from(scan.is_torn);
        Ok(())
    }

    /// Records that batches up to `lsn` are proven durable.
    fn set_synced(&mut self, lsn: Lsn) {
        self.synced = self.synced.max(lsn);
        while self.unproven.front().is_some_and(|first| first.batch.lsn <= self.synced) {
            self.unproven.pop_front();
        }
    }

    fn advance_clock(&mut self, lease_us: u64) {
        if lease_us >= self.last.lease_us || self.last.boot_id != self.head.boot_id {
            let SegmentHead { boot_id, boot_us, lease_us: head_us, .. } = self.head;
            let boot_us = boot_us.wrapping_add(lease_us.wrapping_sub(head_us));
            let lease_us = lease_us.max(self.last.lease_us);
            self.last = LastClock { boot_id, boot_us, lease_us };
        }
    }

    /// Starts a new segment with the unproven batches; returns the journal, and the replay, which
    /// can go on or be finished.
    pub(crate) fn resume(
        self,
        disk: &Arc<dyn Disk>,
        segment_len: u64,
        reading: ClockReading,
        lease_us: u64,
    ) -> Result<(Journal, Replayer), StartError> {
        let counters_now = self.replayer.pools().counters();
        let mut records = self.records;
        let counters = self.unproven.front().map_or(counters_now, |first| first.counters);
        let mut unproven: Vec<_> = self.unproven.into_iter().map(|entry| entry.batch).collect();
        let is_sealed = records.is_sealed();
        for batch in unproven.iter_mut().filter(|_| is_sealed) {
            let name = file_name(self.head.segment);
            let sealed = records.seal_again(&batch.records, batch.lease_us);
            batch.records = sealed.map_err(|RecordError(why)| corrupt(&name, 0, why))?;
        }
        if enabled(Sabotage::TrustUnprovenTail) {
            unproven.clear();
        }
        let head = SegmentHead {
            installation: self.head.installation,
            segment: self.head.segment.next(),
            starts_at: Lsn(self.next.0 - unproven.len() as u64),
            synced_through: self.synced,
            starts: self.starts + 1,
            boot_id: reading.boot_id,
            boot_us: reading.boot_us,
            lease_us,
            counters,
        };
        remove_stranded(&**disk, head.segment, &self.stranded)?;
        remove_temporary(&**disk, head.segment)?;
        let mut unused = self.unused.into_iter();
        let next = unused.next().filter(|segment| segment.number == head.segment);
        let fresh = FreshSegment {
            segment_len,
            head,
            unproven: &unproven,
            counters: counters_now,
            preallocated_len: next.map(|segment| segment.len),
        };
        let journal = Journal::begin(disk, fresh);
        let mut journal = journal.map_err(io("starting a new journal segment"))?;
        for segment in unused {
            adopt(&**disk, &mut journal, segment)?;
        }
        journal.add_older(self.segments);
        journal
            .drop_through(SegmentNumber(self.replayer.droppable_through()))
            .map_err(io("removing journal segments that are no longer needed"))?;
        Ok((journal, self.replayer))
    }
}

/// The bytes of a segment from its first incomplete batch on.
#[derive(Clone, Copy)]
struct Tail<'a> {
    /// The name of the file.
    name: &'a str,
    /// The content of the whole file.
    bytes: &'a [u8],
    /// Where the batch begins.
    offset: usize,
}

/// Passes a preallocated segment to the journal if all its bytes are zero.
fn adopt(disk: &dyn Disk, journal: &mut Journal, unused: UnusedSegment) -> Result<(), StartError> {
    let UnusedSegment { number, len, is_zero } = unused;
    if is_zero {
        let name = file_name(number);
        let file = disk.open(&name).map_err(io(&name))?;
        journal.adopt(ReadySegment { number, file, len });
    }
    Ok(())
}

/// Deletes stranded segments, unless `fresh` fills the gap before them. Without the file with the
/// temporary name, a later start would report the gap as a missing segment; so they are deleted
/// first, durably.
fn remove_stranded(
    disk: &dyn Disk,
    fresh: SegmentNumber,
    stranded: &[SegmentNumber],
) -> Result<(), StartError> {
    if stranded.first().is_none_or(|first| *first == fresh.next()) {
        return Ok(());
    }
    for segment in stranded {
        disk.remove(&file_name(*segment)).map_err(io("removing a preallocated segment"))?;
    }
    disk.sync_dir().map_err(io("removing preallocated segments"))
}

/// Deletes segments with a temporary name, except the one that is started now.
fn remove_temporary(disk: &dyn Disk, fresh: SegmentNumber) -> Result<(), StartError> {
    for name in disk.list().map_err(io("listing the data directory"))? {
        let segment = name.strip_suffix(TEMPORARY).and_then(parse_file_name);
        if segment.is_some_and(|segment| segment != fresh) {
            disk.remove(&name).map_err(io("removing an incomplete segment"))?;
        }
    }
    Ok(())
}

impl From<KeySetError> for StartError {
    fn from(error: KeySetError) -> Self {
        match error {
            KeySetError::Io(error) => {
                Self::Io { doing: format!("reading or writing {KEYSET}"), error }
            }
            KeySetError::Damaged(_) => Self::Corrupt(error.to_string()),
            KeySetError::TooLarge { needed, given } => Self::TooLarge { needed, given },
        }
    }
}
