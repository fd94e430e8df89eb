//! Opening an engine: from an existing data directory, in a new one, or in memory only.
//!
//! A directory counts as existing once its metadata is complete; an interrupted first start leaves
//! a directory that the next one begins again.

use super::long_calls::LongCalls;
use super::segment_drop::SNAPSHOT_RECORD_BYTES;
use super::work::BackupProgress;
use super::{CommitError, EngineState, JournalSizes, POOLS_MAX, step};
use crate::backup::BackupParts;
use crate::batch::Batch;
use crate::checkpointer::{Checkpointer, CheckpointerOptions};
use crate::clock::{Clock, ClockReading};
use crate::disk::Disk;
use crate::frame::{SegmentHead, SegmentNumber};
use crate::journal::{FreshSegment, Journal};
use crate::keyset::KeySetDb;
use crate::meta::Meta;
use crate::recover;
use crate::start::{EngineConfig, StartError, io};
use crate::times::Times;
use keypeg_core::RandomSource;
use keypeg_core::{IdHashKey, Limits, Lsn, PolicyPatch, Pool, PoolName, Pools, answers_max};
use keypeg_store::StartReport;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

/// The greatest first token of a new directory: a wall clock that is centuries ahead must not use
/// up the tokens.
const FIRST_TOKEN_MAX: u64 = 1 << 52;

impl EngineState {
    /// Opens a data directory, creates a new one, or, if `disk` is `None`, starts in memory only.
    /// O(keys).
    pub fn open(
        disk: Option<Arc<dyn Disk>>,
        sizes: JournalSizes,
        config: &EngineConfig,
        mut clock: Box<dyn Clock>,
        mut random: Box<dyn RandomSource + Send>,
    ) -> Result<(Self, StartReport), StartError> {
        let (keys, bytes) = (config.max_keys, config.memory);
        let limits = Limits { pools: POOLS_MAX, keys, bytes, answers: answers_max(bytes) };
        let reading = clock.read();
        let found =
            disk.as_deref().map_or(Ok(None), |disk| recover::examine(disk, config.must_exist))?;
        if disk.is_some() && found.is_none() && config.must_exist {
            let dir =
                config.data.as_ref().map_or_else(String::new, |dir| dir.display().to_string());
            return Err(StartError::NotFound { dir });
        }
        match (disk, found) {
            (Some(disk), Some(mut meta)) => {
                let keyset = recover::open_keyset(&*disk, &mut meta, config.cache)?;
                let replayed = recover::replay(&*disk, &meta, limits, config.memory_max, &keyset)?;
                let mut times = Times::resume(clock, reading, Some(replayed.last));
                let now = times.now(true);
                let (batches_cut, starts_before) = (replayed.batches_cut, replayed.starts);
                let checkpoint_lsn = replayed.checkpointed;
                // The replay took time: the header pairs lease time with the boot time of `now`.
                let reading = ClockReading { boot_us: times.boot_us(), ..reading };
                let (journal, pools) = replayed.resume(&disk, sizes.segment, reading, now)?;
                let oldest_segment = journal.segment_with(checkpoint_lsn);
                let checkpointer =
                    Some(new_checkpointer(Arc::clone(&disk), keyset, &meta, oldest_segment)?);
                let mut state = Self::new(pools, Some(journal), checkpointer, times, random);
                state.allow_backups(disk, &meta);
                state.sizes = sizes;
                warn_if_full(state.pools.bytes(), config.memory);
                // The first batch proves that the records written to the new segment are durable.
                state
                    .write_proof()
                    .map_err(|CommitError(error)| io("writing the journal")(error))?;
                let report = state.report(config);
                Ok((state, StartReport { batches_cut, starts_before, ..report }))
            }
            (disk, _) => {
                let meta = Meta::generate(&mut *random);
                let ids = IdHashKey::new(meta.id_key);
                let pools = Pools::new(ids, limits, reading.wall_us.min(FIRST_TOKEN_MAX));
                let times = Times::resume(clock, reading, None);
                let (mut journal, mut checkpointer) = (None, None);
                if let Some(disk) = &disk {
                    let new = new_journal(disk, sizes.segment, &meta, reading, &pools);
                    journal = Some(new.map_err(io("creating the data directory"))?);
                    let ids = IdHashKey::new(meta.id_key);
                    let keyset = KeySetDb::open(&**disk, ids, config.cache)?;
                    checkpointer = Some(new_checkpointer(
                        Arc::clone(disk),
                        keyset,
                        &meta,
                        SegmentNumber::FIRST,
                    )?);
                }
                let mut state = Self::new(pools, journal, checkpointer, times, random);
                state.sizes = sizes;
                state.create_default_pool(config)?;
                if let Some(disk) = disk {
                    state.allow_backups(Arc::clone(&disk), &meta);
                    Meta::finish(&*disk).map_err(io("creating the data directory"))?;
                }
                let report = state.report(config);
                Ok((state, StartReport { created: true, ..report }))
            }
        }
    }

    fn new(
        mut pools: Pools,
        mut journal: Option<Journal>,
        checkpointer: Option<Checkpointer>,
        mut times: Times,
        mut random: Box<dyn RandomSource + Send>,
    ) -> Self {
        pools.set_run_id(&mut *random);
        let now = times.now(true);
        let progress = checkpointer.as_ref().map_or_else(Arc::default, Checkpointer::progress);
        let lookups = checkpointer.as_ref().map_or_else(Arc::default, Checkpointer::lookups);
        if let Some(journal) = &mut journal {
            journal.set_progress(Arc::clone(&progress));
        }
        Self {
            pools,
            journal,
            times,
            random,
            batch: Batch::default(),
            carried_over: VecDeque::new(),
            parked_imports: VecDeque::new(),
            parked_bytes: 0,
            checked_imports: VecDeque::new(),
            long_calls: LongCalls::default(),
            executed_long_calls: Vec::new(),
            lookups,
            abandoned: HashSet::new(),
            cancels_waits: false,
            checkpointer,
            progress,
            sizes: JournalSizes::default(),
            segment_drop: None,
            backup: BackupProgress::None,
            backup_parts: None,
            snapshot_record_bytes: SNAPSHOT_RECORD_BYTES,
            deleted_pools: Vec::new(),
            unproven: false,
            committed_us: now.lease_us,
            now,
            unfrozen_us: now.lease_us,
            clocks_frozen: false,
            metrics: Arc::default(),
        }
    }

    /// Sets what backups read.
    fn allow_backups(&mut self, disk: Arc<dyn Disk>, meta: &Meta) {
        let (progress, installation) = (self.progress(), meta.installation);
        self.backup_parts = self.checkpointer.as_ref().map(|checkpointer| BackupParts {
            desk: checkpointer.desk(),
            disk,
            installation,
            progress,
        });
    }

    fn create_default_pool(&mut self, config: &EngineConfig) -> Result<(), StartError> {
        self.begin_step();
        let mut step = step(self.now, &mut *self.random, &mut self.batch);
        self.pools
            .create_or_update(
                &mut step,
                &PoolName::default_pool(),
                &config.default_policy,
                PolicyPatch::default(),
            )
            .map_err(|refusal| {
                StartError::Corrupt(format!(
                    "the default pool cannot be created: {refusal:?}; correct the pool options"
                ))
            })?;
        self.commit(true).map_err(|CommitError(error)| io("writing the journal")(error))
    }

    fn report(&self, config: &EngineConfig) -> StartReport {
        let stored = self.pools.get(&PoolName::default_pool()).map(Pool::policy);
        StartReport {
            pools: self.pools.iter().count() as u64,
            keys: self.pools.key_count(),
            leases: self.pools.iter().map(|pool| pool.counts().leased).sum(),
            default_policy_kept: stored.filter(|kept| **kept != config.default_policy).cloned(),
            ..StartReport::default()
        }
    }
}

/// Warns that a server accepts no keys and leases until enough of them have ended.
fn warn_if_full(bytes: u64, max: u64) {
    if bytes > max {
        tracing::warn!(
            bytes,
            max,
            "the data takes more than the part of the memory for keys: the server refuses new keys, \
             leases and waiting requests; raise --memory, or delete keys"
        );
    }
}

fn new_checkpointer(
    disk: Arc<dyn Disk>,
    keyset: KeySetDb,
    meta: &Meta,
    segment: SegmentNumber,
) -> Result<Checkpointer, StartError> {
    let (ids, installation) = (IdHashKey::new(meta.id_key), meta.installation);
    Ok(Checkpointer::new(CheckpointerOptions { disk, keyset, ids, installation, segment })?)
}

fn new_journal(
    disk: &Arc<dyn Disk>,
    segment_len: u64,
    meta: &Meta,
    reading: ClockReading,
    pools: &Pools,
) -> std::io::Result<Journal> {
    meta.prepare(&**disk)?;
    let head = SegmentHead {
        installation: meta.installation,
        segment: SegmentNumber::FIRST,
        starts_at: Lsn(1),
        synced_through: Lsn(0),
        starts: 1,
        boot_id: reading.boot_id,
        boot_us: reading.boot_us,
        lease_us: 0,
        counters: pools.counters(),
    };
    let counters = head.counters;
    let fresh = FreshSegment { segment_len, head, unproven: &[], counters, preallocated_len: None };
    Journal::begin(disk, fresh)
}
