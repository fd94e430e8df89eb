//! Carries what changed the key set from the journal into the database, in the background.
//!
//! It reads the journal's own files, batch by batch, never past what is synced, and folds many
//! batches into one change. Where it stands is in the database, so a crash at any point only makes
//! it read again what it had not carried. Leases pass it by.

use crate::core::sabotage::{Sabotage, TestLimit, enabled, limit};
use crate::core::{Counters, IdHashKey};
use crate::disk::{Disk, DiskFile};
use crate::frame::{ALIGN, BATCH_HEAD, BatchHead, SEGMENT_HEAD, SegmentHead};
use crate::journal::file_name;
use crate::keyset::{KeySetDb, KeySetDelta, KeysetError, PoolRows};
use crate::lookups::{LookupResult, Lookups};
use crate::preallocator::is_full;
use crate::record::{self, RecordError};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Facts one change takes at most; a batch is never cut in two.
const FACTS_MAX: usize = 50_000;
/// How long the carrier rests between changes while more is to be carried.
const PAUSE_BETWEEN_CHECKPOINTS: Duration = Duration::from_millis(20);
/// How long it waits for room on a full disk.
const FULL_REST: Duration = Duration::from_secs(1);
/// A file that is there to be removed when the disk is full.
pub(crate) const BALLAST: &str = "ballast";
const BALLAST_LEN: u64 = 8 << 20;
/// How long it rests when all is carried.
const REST: Duration = Duration::from_millis(250);

/// How far engine and carrier have come: positions of the journal.
#[derive(Debug, Default)]
pub(crate) struct CheckpointProgress {
    /// Batches up to here are durable.
    pub(crate) synced: AtomicU64,
    /// Batches up to here are in the database.
    pub(crate) carried: AtomicU64,
    /// Set when the carrier is to end.
    pub(crate) stopping: AtomicBool,
}

impl CheckpointProgress {
    pub(crate) fn carried(&self) -> u64 {
        self.carried.load(Ordering::Acquire)
    }
}

/// Where the carrier stands.
pub struct Checkpointer {
    disk: Arc<dyn Disk>,
    /// There but for the time after the disk was full.
    keyset: Option<KeySetDb>,
    ids: IdHashKey,
    /// The segment of the last batch that is carried: where to read again from after a failure.
    carried_segment: u64,
    progress: Arc<CheckpointProgress>,
    lookups: Arc<Lookups>,
    pools: PoolRows,
    counters: Counters,
    reading: JournalReader,
    /// Whether rows of removed pools are left to be taken out.
    trimming: bool,
}

/// The segment being read.
struct JournalReader {
    installation: u128,
    segment: u64,
    file: Box<dyn DiskFile>,
    at: u64,
    /// The position of the batch read last.
    position: u64,
    /// Where the next segment begins, if it was begun when this one was opened.
    ends_before: Option<u64>,
}

/// Why carrying cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The database cannot be written.
    #[error("{0}")]
    KeySetDb(String),
    /// The disk is full: to be tried again when there is room.
    #[error("the disk is full")]
    Full,
    /// The journal cannot be read back.
    #[error("reading the journal back: {0}")]
    Journal(#[from] io::Error),
}

impl Checkpointer {
    /// Goes on from what the database says it has. `first` is the oldest segment there is.
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        keyset: KeySetDb,
        (ids, installation): (IdHashKey, u128),
        first: u64,
    ) -> Result<Self, KeysetError> {
        let (pools, carried, counters) = keyset.pools()?;
        let reading = JournalReader::open(&*disk, installation, first)?;
        let (keyset, carried_segment) = (Some(keyset), first);
        let progress = Arc::new(CheckpointProgress::default());
        progress.carried.store(carried, Ordering::Release);
        let trimming = true;
        Ok(Self {
            disk,
            keyset,
            ids,
            carried_segment,
            progress,
            lookups: Arc::default(),
            pools,
            counters,
            reading,
            trimming,
        })
    }

    pub(crate) fn progress(&self) -> Arc<CheckpointProgress> {
        Arc::clone(&self.progress)
    }

    /// What it is asked to look up.
    pub(crate) fn lookups(&self) -> Arc<Lookups> {
        Arc::clone(&self.lookups)
    }

    /// Looks up what it was asked to.
    pub fn answer(&self) -> Result<(), CheckpointError> {
        while let Some(lookup) = self.lookups.next_request() {
            let found = match &self.keyset {
                None => LookupResult::StorageFull,
                Some(keyset) => {
                    LookupResult::FirstRetired(keyset.first_retired(lookup.pool, &lookup.ids)?)
                }
            };
            self.lookups.answer(found);
        }
        Ok(())
    }

    /// Carries the next change; false when all that is synced has been carried. After
    /// [`CheckpointError::Full`] it can be called again, when there may be room.
    pub fn step(&mut self) -> Result<bool, CheckpointError> {
        if self.keyset.is_none() {
            self.reopen()?;
        }
        let carried = self.carry_next();
        if matches!(carried, Err(CheckpointError::Full)) {
            // The database does not go on after a failed write; what it had carried stands.
            self.keyset = None;
            self.free_ballast()?;
        }
        carried
    }

    /// Opens the database again, and reads on from what it has.
    fn reopen(&mut self) -> Result<(), CheckpointError> {
        let keyset = KeySetDb::open(&*self.disk, self.ids.clone())?;
        (self.pools, _, self.counters) = keyset.pools()?;
        self.keyset = Some(keyset);
        let installation = self.reading.installation;
        self.reading = JournalReader::open(&*self.disk, installation, self.carried_segment)?;
        Ok(())
    }

    /// Keeps some room aside for the database: what it carries is what makes room in the journal.
    /// Where there is none it is tried again later.
    pub fn keep_ballast(&self) -> Result<(), CheckpointError> {
        if self.disk.list()?.iter().any(|name| name == BALLAST) {
            return Ok(());
        }
        match self.disk.create(BALLAST, BALLAST_LEN).and_then(|file| file.sync()) {
            Err(error) if is_full(&error) => self.free_ballast(),
            other => Ok(other?),
        }
    }

    fn free_ballast(&self) -> Result<(), CheckpointError> {
        match self.disk.remove(BALLAST) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn carry_next(&mut self) -> Result<bool, CheckpointError> {
        let synced = self.progress.synced.load(Ordering::Acquire);
        let carried = self.progress.carried.load(Ordering::Acquire);
        let mut change = KeySetDelta::after(carried, self.counters);
        let reads_on = enabled(Sabotage::CarryPastSynced);
        let facts_max = limit(TestLimit::Facts, FACTS_MAX as u64);
        while (change.position < synced || reads_on) && (change.facts() as u64) < facts_max {
            let next = self.reading.next(&*self.disk);
            if reads_on && next.is_err() && change.position >= synced {
                break;
            }
            let (position, records, lease_us) = next?;
            if position > carried {
                self.fold(&records, lease_us, &mut change)?;
                change.position = position;
            }
        }
        if change.position == carried && !self.trimming {
            return Ok(false);
        }
        let keyset = self.keyset.as_ref().expect("invariant: opened before a step");
        self.trimming = keyset.carry(&change)?;
        self.counters = change.counters;
        self.carried_segment = self.reading.segment;
        self.progress.carried.store(change.position, Ordering::Release);
        Ok(change.position < synced || self.trimming)
    }

    fn fold(&mut self, records: &[u8], lease_us: u64, change: &mut KeySetDelta) -> io::Result<()> {
        let mut rest = records;
        while !rest.is_empty() {
            let fact;
            (fact, rest) = record::read(rest, lease_us)
                .map_err(|RecordError(why)| io::Error::new(io::ErrorKind::InvalidData, why))?;
            change.take(&fact, &self.ids, &mut self.pools);
        }
        Ok(())
    }

    /// Carries until it is told to end. The error is one that the process must not survive.
    pub(crate) fn run(mut self) -> Result<(), CheckpointError> {
        self.keep_ballast()?;
        self.lookups.listen();
        while !self.progress.stopping.load(Ordering::Acquire) {
            self.answer()?;
            let rest = match self.step() {
                Ok(true) => PAUSE_BETWEEN_CHECKPOINTS,
                Ok(false) => REST,
                Err(CheckpointError::Full) => {
                    tracing::warn!("the disk is full: the key set is carried when there is room");
                    std::thread::park_timeout(FULL_REST);
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.keep_ballast()?;
            std::thread::park_timeout(rest);
        }
        Ok(())
    }
}

impl JournalReader {
    fn open(disk: &dyn Disk, installation: u128, segment: u64) -> io::Result<Self> {
        let file = disk.open(&file_name(segment))?;
        let mut head = vec![0; SEGMENT_HEAD];
        file.read_at(0, &mut head)?;
        let head = SegmentHead::read(&head)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a segment lost its header"))?;
        let mut reading = Self {
            installation,
            segment,
            file,
            at: SEGMENT_HEAD as u64,
            position: head.starts_at - 1,
            ends_before: None,
        };
        reading.ends_before = reading.next_segment(disk)?.map(|(_, starts_at)| starts_at);
        Ok(reading)
    }

    /// The next batch: its position, its records, its clock. One must be there.
    fn next(&mut self, disk: &dyn Disk) -> io::Result<(u64, Vec<u8>, u64)> {
        loop {
            let within = self.ends_before.is_none_or(|end| self.position + 1 < end);
            if within && let Some(batch) = self.read()? {
                return Ok(batch);
            }
            let missing = || io::Error::new(io::ErrorKind::InvalidData, "a batch is missing");
            let (segment, starts_at) = self.next_segment(disk)?.ok_or_else(missing)?;
            if starts_at != self.position + 1 {
                return Err(missing());
            }
            *self = Self::open(disk, self.installation, segment)?;
        }
    }

    fn read(&mut self) -> io::Result<Option<(u64, Vec<u8>, u64)>> {
        let end = self.file.length()?;
        let mut frame = vec![0; BATCH_HEAD];
        if self.at + BATCH_HEAD as u64 > end {
            return Ok(None);
        }
        self.file.read_at(self.at, &mut frame)?;
        let len = BatchHead::body_len(&frame);
        if self.at + (BATCH_HEAD + len) as u64 > end {
            return Ok(None);
        }
        frame.resize(BATCH_HEAD + len, 0);
        self.file.read_at(self.at + BATCH_HEAD as u64, &mut frame[BATCH_HEAD..])?;
        let Some((head, records, padded)) = BatchHead::read(&frame) else { return Ok(None) };
        let ours = head.installation == self.installation && head.segment == self.segment;
        if !ours || head.position != self.position + 1 {
            return Ok(None);
        }
        debug_assert_eq!(padded % ALIGN, 0);
        let batch = (head.position, records.to_vec(), head.lease_us);
        self.at += padded as u64;
        self.position = head.position;
        Ok(Some(batch))
    }

    /// The next segment that was begun, and where it begins.
    fn next_segment(&self, disk: &dyn Disk) -> io::Result<Option<(u64, u64)>> {
        // One that was named and never begun may lie between; see `recover.rs`.
        for segment in self.segment + 1..=self.segment + 2 {
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

impl From<KeysetError> for CheckpointError {
    fn from(error: KeysetError) -> Self {
        match error {
            KeysetError::Io(ref error) if is_full(error) => Self::Full,
            KeysetError::Io(_) | KeysetError::Damaged(_) => Self::KeySetDb(error.to_string()),
        }
    }
}

impl std::fmt::Debug for Checkpointer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checkpointer({:?})", self.progress)
    }
}
