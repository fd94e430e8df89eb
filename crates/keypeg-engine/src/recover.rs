//! How a directory becomes pools again, or is refused.
//!
//! The journal is replayed batch by batch. Damage at or below a position that some frame says was
//! synced is corruption: refused, with file and offset. Damage above it is the tail of a crash:
//! cut. What is valid but not proven is written into a fresh segment and synced before anything is
//! answered: bytes that were read from a page cache after a failed sync are never built upon.

use crate::checkpointer::BALLAST;
use crate::core::sabotage::{Sabotage, enabled};
use crate::core::{
    Checkpointed, Counters, IdHashKey, KeyNumber, Limits, Lsn, NEVER_US, Now, PoolId, Pools,
    ReplayError, Replayer, TOKEN_MAX,
};
use crate::disk::Disk;
use crate::frame::{ALIGN, BadHead, BatchHead, FORMAT, SEGMENT_HEAD, SegmentHead};
use crate::journal::{Journal, TEMPORARY, UnprovenBatch, file_name, segment_of};
use crate::keyset::{KEYSET, KeySetDb, KeysetError};
use crate::meta::{META, Meta};
use crate::preallocator::ReadySegment;
use crate::record::{self, RecordError};
use crate::times::LastClock;
use crate::{ClockReading, StartError};
use std::collections::VecDeque;
use std::sync::Arc;

/// No server ever makes so many keys, so a number beyond is none of a key.
pub(crate) const KEYS_EVER: u64 = u64::MAX / 2;

/// No token is this near the last there can be: more than a server can grant are left behind it.
pub(crate) const TOKENS_EVER: u64 = TOKEN_MAX - (1 << 50);

/// What a journal held.
pub(crate) struct ReplayedJournal {
    pub(crate) rebuild: Replayer,
    pub(crate) last: LastClock,
    pub(crate) starts: u64,
    pub(crate) batches_cut: u64,
    /// The journal's segments: number, where it begins, length.
    segments: Vec<(u64, u64, u64)>,
    /// Segments made ready and never begun: number, length.
    unused: Vec<(u64, u64)>,
    stranded: Vec<u64>,
    head: SegmentHead,
    /// What is at or below this position is in the key set.
    pub(crate) carried: u64,
    synced: u64,
    /// Batches that no frame proves, each with the counters before it.
    unproven: VecDeque<(Counters, UnprovenBatch)>,
    /// The position the next batch must have.
    next: u64,
}

/// Finds out what the directory is: its meta where it was made, `None` where it is to be made. What
/// an unfinished making left is removed, unless the directory must be there already.
pub(crate) fn examine(disk: &dyn Disk, existing: bool) -> Result<Option<Meta>, StartError> {
    let names = disk.list().map_err(io("listing the data directory"))?;
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    let unfinished = format!("{META}{TEMPORARY}");
    if has(META) {
        let bytes = disk.read(META).map_err(io("reading meta"))?;
        return Meta::read(&bytes).map(Some);
    }
    let segments = names.iter().filter(|name| segment_of(name).is_some());
    if !has(&unfinished) && segments.clone().next().is_some() {
        return Err(StartError::Corrupt(format!(
            "the data directory has a journal but no {META}: part of it is missing. Put the file \
             back; nothing was changed"
        )));
    }
    if existing {
        return Ok(None);
    }
    // A making that did not finish never served anybody: it begins again.
    let ours = |name: &&String| {
        let part = [unfinished.as_str(), KEYSET, BALLAST].contains(&name.as_str());
        part || name.starts_with("journal-")
    };
    for name in names.iter().filter(ours) {
        disk.remove(name).map_err(io("removing what an unfinished start left"))?;
    }
    Ok(None)
}

/// Opens the key set of a directory that is made. The first version made none: it gets an empty
/// one, and the whole journal is carried into it.
pub(crate) fn keyset(disk: &dyn Disk, meta: &mut Meta) -> Result<KeySetDb, StartError> {
    let names = disk.list().map_err(io("listing the data directory"))?;
    let there = names.iter().any(|name| name == KEYSET);
    let ids = IdHashKey::new(meta.id_key);
    if meta.has_keyset {
        if !there {
            return Err(missing(KEYSET));
        }
        return KeySetDb::open(disk, ids).map_err(StartError::from);
    }
    if there {
        disk.remove(KEYSET).map_err(io("removing an unfinished key set"))?;
    }
    let keyset = KeySetDb::open(disk, ids)?;
    meta.has_keyset = true;
    meta.prepare(disk).and_then(|()| Meta::finish(disk)).map_err(io("writing meta"))?;
    Ok(keyset)
}

/// Loads the key set and replays the whole journal over it.
pub(crate) fn replay(
    disk: &dyn Disk,
    meta: &Meta,
    limits: Limits,
    keyset: &KeySetDb,
) -> Result<ReplayedJournal, StartError> {
    let Segments { heads, all, unused, stranded } = segments(disk, meta)?;
    let first = *heads.first().ok_or_else(|| missing("the journal"))?;
    let mut rebuild = Replayer::new(IdHashKey::new(meta.id_key), limits, 1);
    let carried = keyset.load(&mut rebuild)?;
    if carried + 1 < first.starts_at {
        return Err(missing(&file_name(first.segment - 1)));
    }
    if first.segment > 1 {
        rebuild.set_truncated();
    }
    let mut replayed = ReplayedJournal {
        rebuild,
        last: LastClock { boot_id: 0, boot_us: 0, lease_us: 0 },
        starts: 0,
        batches_cut: 0,
        segments: all,
        unused,
        stranded,
        head: first,
        carried,
        // Nothing is carried that was not durable.
        synced: carried,
        unproven: VecDeque::new(),
        next: first.starts_at,
    };
    for (at, head) in heads.iter().enumerate() {
        let limit = heads.get(at + 1).map(|next| next.starts_at);
        replayed.segment(disk, *head, limit)?;
    }
    if replayed.rebuild.droppable_through() + 1 < first.segment {
        return Err(missing(&file_name(first.segment - 1)));
    }
    Ok(replayed)
}

fn missing(what: &str) -> StartError {
    StartError::Corrupt(format!(
        "{what} is missing from the data directory. Put it back; nothing was changed"
    ))
}

/// The segments of a journal.
struct Segments {
    /// The headers of those that were begun, in order.
    heads: Vec<SegmentHead>,
    /// Those there are up to the last that was begun: number, where it begins, length.
    all: Vec<(u64, u64, u64)>,
    /// Those made ready behind it: number, length.
    unused: Vec<(u64, u64)>,
    /// Those made ready behind one that a start has taken by another name.
    stranded: Vec<u64>,
}

/// Reads the headers of all segments: none may be missing in between.
fn segments(disk: &dyn Disk, meta: &Meta) -> Result<Segments, StartError> {
    let names = disk.list().map_err(io("listing the data directory"))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment_of(name)).collect();
    numbers.sort_unstable();
    let (mut heads, mut all) = (Vec::new(), Vec::new());
    // Named and not begun, or begun when the disk failed. Where batches of it are missing, the
    // next segment does not go on where the one before ends, and that is refused.
    let mut not_begun = Vec::new();
    let mut stranded = Vec::new();
    for (expected, segment) in (numbers.first().copied().unwrap_or(1)..).zip(&numbers) {
        if *segment != expected {
            // A start takes a segment that was made ready by another name until it is whole. Cut
            // short there, it leaves a gap before the rest of those made ready.
            let unfinished = format!("{}{TEMPORARY}", file_name(expected));
            let mut begun = false;
            for behind in numbers.iter().filter(|number| **number >= *segment) {
                begun |= head(disk, meta, *behind)?.is_some();
            }
            if begun || !names.contains(&unfinished) {
                return Err(missing(&file_name(expected)));
            }
            stranded.extend(numbers.iter().copied().filter(|number| *number >= *segment));
            break;
        }
        let len = disk.open(&file_name(*segment)).and_then(|file| file.length());
        let len = len.map_err(io(&file_name(*segment)))?;
        match head(disk, meta, *segment)? {
            None => not_begun.push((*segment, len)),
            Some(head) => {
                let empty =
                    not_begun.drain(..).map(|(segment, len)| (segment, head.starts_at, len));
                all.extend(empty);
                all.push((*segment, head.starts_at, len));
                heads.push(head);
            }
        }
    }
    Ok(Segments { heads, all, unused: not_begun, stranded })
}

/// Refuses a clock that no server reaches: nothing could be due after it.
fn check_clock(name: &str, at: usize, lease_us: u64) -> Result<(), StartError> {
    if lease_us < NEVER_US / 2 {
        return Ok(());
    }
    Err(corrupt(name, at, "its clock is out of range"))
}

/// The header of a segment; `None` where it was not begun.
fn head(disk: &dyn Disk, meta: &Meta, segment: u64) -> Result<Option<SegmentHead>, StartError> {
    let name = file_name(segment);
    let bytes = disk.read_head(&name, SEGMENT_HEAD).map_err(io(&name))?;
    match SegmentHead::read(&bytes) {
        Ok(head) if head.installation == meta.installation && head.segment == segment => {
            Ok(Some(head))
        }
        Ok(_) => Err(corrupt(&name, 0, "it belongs to another directory or place")),
        Err(BadHead::Newer(format)) => Err(StartError::Corrupt(format!(
            "{name} has format {format}; this version reads up to {FORMAT}: use a newer keypeg. \
             Nothing was changed"
        ))),
        Err(BadHead::Unused | BadHead::Damaged) => {
            let bytes = disk.read(&name).map_err(io(&name))?;
            if bytes.get(SEGMENT_HEAD..).is_some_and(|rest| rest.iter().any(|byte| *byte != 0)) {
                return Err(corrupt(&name, 0, "its header is damaged"));
            }
            Ok(None)
        }
    }
}

impl ReplayedJournal {
    /// Replays one segment, up to where the next one begins.
    fn segment(
        &mut self,
        disk: &dyn Disk,
        head: SegmentHead,
        limit: Option<u64>,
    ) -> Result<(), StartError> {
        let name = file_name(head.segment);
        if head.starts_at != self.next {
            return Err(corrupt(&name, 0, "it does not go on where the one before it ends"));
        }
        check_clock(&name, 0, head.lease_us)?;
        let Counters { next_key, next_pool, tokens_reserved } = head.counters;
        if next_key > KeyNumber(KEYS_EVER)
            || next_pool > PoolId(u32::MAX / 2)
            || tokens_reserved > TOKENS_EVER
        {
            return Err(corrupt(&name, 0, "its counters are out of range"));
        }
        self.rebuild.raise_counters(head.counters);
        self.starts = self.starts.max(head.starts);
        self.prove(head.synced_through);
        self.head = head;
        self.clock(head.lease_us);
        let bytes = disk.read(&name).map_err(io(&name))?;
        let mut at = SEGMENT_HEAD;
        while limit.is_none_or(|limit| self.next < limit) {
            let Some((batch, records, len)) = BatchHead::read(&bytes[at.min(bytes.len())..])
                .filter(|(batch, ..)| self.fits(batch))
            else {
                return self.end_of(&name, &bytes, at, limit);
            };
            check_clock(&name, at, batch.lease_us)?;
            self.prove(batch.synced_through);
            self.clock(batch.lease_us);
            let counters = self.rebuild.pools().counters();
            self.batch(records, batch.lease_us).map_err(|why| corrupt(&name, at, why))?;
            let old = (batch.position, batch.lease_us, records.to_vec());
            self.unproven.push_back((counters, old));
            self.next += 1;
            at += len;
        }
        Ok(())
    }

    fn fits(&self, batch: &BatchHead) -> bool {
        batch.installation == self.head.installation
            && batch.segment == self.head.segment
            && batch.position == self.next
    }

    fn batch(&mut self, records: &[u8], lease_us: u64) -> Result<(), &'static str> {
        self.rebuild.set_position(Lsn(self.next));
        let carried = if self.next <= self.carried { Checkpointed::Yes } else { Checkpointed::No };
        let mut rest = records;
        while !rest.is_empty() {
            let fact;
            (fact, rest) = record::read(rest, lease_us).map_err(|RecordError(why)| why)?;
            self.rebuild.apply(&fact, carried).map_err(|ReplayError(why)| why)?;
        }
        Ok(())
    }

    /// Tells a torn tail from corruption where no further batch is whole.
    fn end_of(
        &mut self,
        name: &str,
        bytes: &[u8],
        at: usize,
        limit: Option<u64>,
    ) -> Result<(), StartError> {
        let rest = bytes.get(at..).unwrap_or_default();
        let mut torn = false;
        for (offset, word) in rest.chunks(ALIGN).enumerate() {
            if word.iter().all(|byte| *byte == 0) {
                continue;
            }
            torn = true;
            // A whole batch behind the damage may prove that what is damaged was durable once.
            if let Some((batch, ..)) = BatchHead::read(&rest[offset * ALIGN..])
                && batch.installation == self.head.installation
                && batch.segment == self.head.segment
            {
                self.prove(batch.synced_through);
            }
        }
        if limit.is_some() || self.synced >= self.next {
            return Err(corrupt(name, at, "a batch that was durable is damaged"));
        }
        self.batches_cut += u64::from(torn);
        Ok(())
    }

    /// Notes that batches up to `position` were durable.
    fn prove(&mut self, position: u64) {
        self.synced = self.synced.max(position);
        while self.unproven.front().is_some_and(|(_, (at, ..))| *at <= self.synced) {
            self.unproven.pop_front();
        }
    }

    fn clock(&mut self, lease_us: u64) {
        if lease_us >= self.last.lease_us || self.last.boot_id != self.head.boot_id {
            let SegmentHead { boot_id, boot_us, lease_us: head_us, .. } = self.head;
            let boot_us = boot_us.wrapping_add(lease_us.wrapping_sub(head_us));
            let lease_us = lease_us.max(self.last.lease_us);
            self.last = LastClock { boot_id, boot_us, lease_us };
        }
    }

    /// Begins a fresh segment with what is not proven, and gives the pools as a start finds them.
    pub(crate) fn resume(
        self,
        disk: &Arc<dyn Disk>,
        segment_len: u64,
        reading: ClockReading,
        now: Now,
    ) -> Result<(Journal, Pools), StartError> {
        let counters_now = self.rebuild.pools().counters();
        let counters = self.unproven.front().map_or(counters_now, |(before, _)| *before);
        let mut unproven: Vec<_> = self.unproven.into_iter().map(|(_, batch)| batch).collect();
        if enabled(Sabotage::TrustUnprovenTail) {
            unproven.clear();
        }
        let head = SegmentHead {
            installation: self.head.installation,
            segment: self.head.segment + 1,
            starts_at: self.next - unproven.len() as u64,
            synced_through: self.synced,
            starts: self.starts + 1,
            boot_id: reading.boot_id,
            boot_us: reading.boot_us,
            lease_us: now.lease_us,
            counters,
        };
        remove_stranded(&**disk, head.segment, &self.stranded)?;
        remove_unfinished(&**disk, head.segment)?;
        let mut unused = self.unused.into_iter();
        let next = unused.next().filter(|(segment, _)| *segment == head.segment);
        let next = next.map(|(_, len)| len);
        let begun = Journal::begin(disk, segment_len, head, &unproven, counters_now, next);
        let mut journal = begun.map_err(io("beginning a fresh segment"))?;
        for (segment, len) in unused {
            adopt(&**disk, &mut journal, segment, len)?;
        }
        journal.knows(self.segments);
        journal
            .drop_through(self.rebuild.droppable_through())
            .map_err(io("removing segments that are done"))?;
        Ok((journal, self.rebuild.finish(now)))
    }
}

/// Takes a segment in that is ready: all zero.
fn adopt(disk: &dyn Disk, journal: &mut Journal, segment: u64, len: u64) -> Result<(), StartError> {
    let name = file_name(segment);
    if disk.read(&name).map_err(io(&name))?.iter().all(|byte| *byte == 0) {
        let file = disk.open(&name).map_err(io(&name))?;
        journal.adopt(ReadySegment { segment, file, len });
    }
    Ok(())
}

/// Removes segments made ready behind one that an earlier start had taken by another name, where
/// this one takes another: without that name they would look like the end of a journal that lost a
/// part. They go first, durably.
fn remove_stranded(disk: &dyn Disk, fresh: u64, stranded: &[u64]) -> Result<(), StartError> {
    if stranded.first().is_none_or(|first| *first == fresh + 1) {
        return Ok(());
    }
    for segment in stranded {
        disk.remove(&file_name(*segment)).map_err(io("removing a segment made ready"))?;
    }
    disk.sync_dir().map_err(io("removing segments made ready"))
}

/// Removes segments that were not made ready to their end, but for the one that is begun now.
fn remove_unfinished(disk: &dyn Disk, fresh: u64) -> Result<(), StartError> {
    for name in disk.list().map_err(io("listing the data directory"))? {
        let segment = name.strip_suffix(TEMPORARY).and_then(segment_of);
        if segment.is_some_and(|segment| segment != fresh) {
            disk.remove(&name).map_err(io("removing an unfinished segment"))?;
        }
    }
    Ok(())
}

fn corrupt(name: &str, at: usize, why: &str) -> StartError {
    StartError::Corrupt(format!(
        "{name} is damaged at byte {at}: {why}. Restore the data directory from a backup; nothing \
         was changed"
    ))
}

impl From<KeysetError> for StartError {
    fn from(error: KeysetError) -> Self {
        match error {
            KeysetError::Io(error) => Self::Io { doing: KEYSET.into(), error },
            KeysetError::Damaged(_) => Self::Corrupt(error.to_string()),
        }
    }
}

/// Wraps a disk's error with what was being done.
pub(crate) fn io(doing: &str) -> impl FnOnce(std::io::Error) -> StartError {
    let doing = doing.to_owned();
    move |error| StartError::Io { doing, error }
}
