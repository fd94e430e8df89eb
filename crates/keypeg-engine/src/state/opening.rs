//! Opening an engine: from an existing data directory, in a new one, or in memory only.
//!
//! A directory counts as existing once its metadata is complete; an interrupted first start leaves
//! a directory that the next one begins again.

use super::long_calls::LongCalls;
use super::segment_drop::SNAPSHOT_RECORD_BYTES;
use super::work::{BackupProgress, Measured};
use super::{CommitError, EngineState, FIRST_TOKEN_MAX, JournalSizes, POOLS_MAX, step};
use crate::backup::BackupParts;
use crate::batch::Batch;
use crate::checkpointer::{Checkpointer, CheckpointerOptions};
use crate::clock::{Clock, ClockReading};
use crate::disk::Disk;
use crate::frame::{SegmentHead, SegmentNumber};
use crate::journal::{FreshSegment, Journal};
use crate::keyset::KeySetDb;
use crate::meta::Meta;
use crate::published::PublishedBytes;
use crate::recover;
use crate::rotation::SealControl;
use crate::seal::ValueSeal;
use crate::start::{EngineConfig, StartError, io};
use crate::times::Times;
use crate::unlock::{create as create_identity, unlock};
use keypeg_core::RandomSource;
use keypeg_core::{Limits, Lsn, Policy, PolicyPatch, Pool, PoolName, Pools, Replayer, answers_max};
use keypeg_store::{StartReport, StoreMetrics};
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

/// What a start is given.
#[derive(Clone, Copy)]
struct Options<'a> {
    sizes: JournalSizes,
    limits: Limits,
    config: &'a EngineConfig,
}

/// The source of time, and the reading with which the start began.
struct ReadClock {
    clock: Box<dyn Clock>,
    reading: ClockReading,
}

/// The parts of an opened engine.
pub(super) struct Parts {
    pub(super) pools: Pools,
    pub(super) journal: Option<Journal>,
    pub(super) checkpointer: Option<Checkpointer>,
    pub(super) seal: ValueSeal,
    pub(super) control: Option<Arc<SealControl>>,
}

impl EngineState {
    /// Opens a data directory, creates a new one, or, if `disk` is `None`, starts in memory only.
    /// Completes the sealing of a directory. O(keys).
    pub fn open(
        disk: Option<Arc<dyn Disk>>,
        sizes: JournalSizes,
        config: &EngineConfig,
        clock: Box<dyn Clock>,
        random: Box<dyn RandomSource + Send>,
    ) -> Result<(Self, StartReport), StartError> {
        let (mut state, report) = Self::open_as_it_is(disk, sizes, config, clock, random)?;
        state.complete_sealing(config.cache)?;
        Ok((state, report))
    }

    /// Opens a data directory like [`EngineState::open`], and leaves values that are not sealed.
    pub(crate) fn open_as_it_is(
        disk: Option<Arc<dyn Disk>>,
        sizes: JournalSizes,
        config: &EngineConfig,
        mut clock: Box<dyn Clock>,
        random: Box<dyn RandomSource + Send>,
    ) -> Result<(Self, StartReport), StartError> {
        let limits = limits_of(config.max_keys, config.memory);
        let reading = clock.read();
        let found =
            disk.as_deref().map_or(Ok(None), |disk| recover::examine(disk, config.must_exist))?;
        if disk.is_some() && found.is_none() && config.must_exist {
            let dir =
                config.data.as_ref().map_or_else(String::new, |dir| dir.display().to_string());
            return Err(StartError::NotFound { dir });
        }
        let options = Options { sizes, limits, config };
        let times = ReadClock { clock, reading };
        match (disk, found) {
            (Some(disk), Some(meta)) => Self::open_existing(disk, meta, &options, times, random),
            (disk, _) => Self::create(disk, &options, times, random),
        }
    }

    fn open_existing(
        disk: Arc<dyn Disk>,
        mut meta: Meta,
        options: &Options<'_>,
        times: ReadClock,
        mut random: Box<dyn RandomSource + Send>,
    ) -> Result<(Self, StartReport), StartError> {
        let Options { sizes, limits, config } = *options;
        let ReadClock { clock, reading } = times;
        let unlocked = unlock(&mut meta, config.seal.as_ref(), &mut *random)?;
        let installation = unlocked.installation;
        let keyset = recover::open_keyset(&*disk, &mut meta, &installation, config.cache)?;
        let begun = Replayer::new(installation.ids.clone(), limits, 1);
        let replayed = recover::replay(&*disk, &installation, begun, config.memory_max, &keyset)?;
        if unlocked.changes_meta {
            // Before the first sealed value is written, and after nothing can refuse the start.
            meta.replace(&*disk).map_err(io("writing meta"))?;
        }
        let mut times = Times::resume(clock, reading, Some(replayed.last));
        let now = times.now(true);
        let (batches_cut, starts_before) = (replayed.batches_cut, replayed.starts);
        let checkpoint_lsn = replayed.checkpointed;
        // The replay took time: the header pairs lease time with the boot time of `now`.
        let reading = ClockReading { boot_us: times.boot_us(), ..reading };
        let (journal, replay) = replayed.resume(&disk, sizes.segment, reading, now.lease_us)?;
        let pools = replay.finish(now);
        let segment = journal.segment_with(checkpoint_lsn);
        let control = unlocked
            .secrets
            .and_then(|secrets| SealControl::of(Arc::clone(&disk), &meta, secrets))
            .map(Arc::new);
        let (seal, id) = (installation.seal.clone(), installation.id);
        let options =
            CheckpointerOptions { disk: Arc::clone(&disk), keyset, installation, segment };
        let checkpointer = Some(Checkpointer::new(options)?);
        let parts = Parts { pools, journal: Some(journal), checkpointer, seal, control };
        let mut state = Self::new(parts, times, random);
        state.allow_backups(disk, id);
        state.sizes = sizes;
        warn_if_full(state.pools.bytes(), config.memory);
        // The first batch proves that the records written to the new segment are durable.
        state.write_proof().map_err(|CommitError(error)| io("writing the journal")(error))?;
        let report = state.report(config);
        Ok((state, StartReport { batches_cut, starts_before, ..report }))
    }

    fn create(
        disk: Option<Arc<dyn Disk>>,
        options: &Options<'_>,
        times: ReadClock,
        mut random: Box<dyn RandomSource + Send>,
    ) -> Result<(Self, StartReport), StartError> {
        let Options { sizes, limits, config } = *options;
        let ReadClock { clock, reading } = times;
        let seal = config.seal.as_ref().filter(|_| disk.is_some());
        let (meta, unlocked) = create_identity(seal, &mut *random);
        let installation = unlocked.installation;
        let (ids, seal) = (installation.ids.clone(), installation.seal.clone());
        let id = installation.id;
        let pools = Pools::new(ids, limits, reading.wall_us.min(FIRST_TOKEN_MAX));
        let times = Times::resume(clock, reading, None);
        let (mut journal, mut checkpointer, mut control) = (None, None, None);
        if let Some(disk) = &disk {
            let new = new_journal(disk, sizes.segment, &meta, reading, &pools);
            journal = Some(new.map_err(io("creating the data directory"))?);
            let keyset = KeySetDb::open(&**disk, &installation, config.cache)?;
            let (disk, segment) = (Arc::clone(disk), SegmentNumber::FIRST);
            control = unlocked
                .secrets
                .and_then(|secrets| SealControl::of(Arc::clone(&disk), &meta, secrets))
                .map(Arc::new);
            let options = CheckpointerOptions { disk, keyset, installation, segment };
            checkpointer = Some(Checkpointer::new(options)?);
        }
        let parts = Parts { pools, journal, checkpointer, seal, control };
        let mut state = Self::new(parts, times, random);
        state.sizes = sizes;
        state.create_default_pool(&config.default_policy)?;
        if let Some(disk) = disk {
            state.allow_backups(Arc::clone(&disk), id);
            Meta::finish(&*disk).map_err(io("creating the data directory"))?;
        }
        let report = state.report(config);
        Ok((state, StartReport { created: true, ..report }))
    }

    pub(super) fn new(
        parts: Parts,
        mut times: Times,
        mut random: Box<dyn RandomSource + Send>,
    ) -> Self {
        let Parts { mut pools, mut journal, checkpointer, seal, control } = parts;
        pools.set_run_id(&mut *random);
        let now = times.now(true);
        let metrics = Arc::<StoreMetrics>::default();
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
            batch: Batch::new(seal),
            seal: control,
            arrivals: Vec::new(),
            expiries_left: 0,
            carried_over: VecDeque::new(),
            parked_imports: VecDeque::new(),
            parked_bytes: 0,
            checked_imports: VecDeque::new(),
            withdrawals: VecDeque::new(),
            long_calls: LongCalls::default(),
            executed_long_calls: Vec::new(),
            long_units: 0,
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
            published: PublishedBytes::new(Arc::clone(&metrics)),
            metrics,
            measured: Measured::default(),
        }
    }

    /// Sets what backups read.
    pub(super) fn allow_backups(&mut self, disk: Arc<dyn Disk>, installation: u128) {
        let progress = self.progress();
        self.backup_parts = self.checkpointer.as_ref().map(|checkpointer| BackupParts {
            desk: checkpointer.desk(),
            disk,
            installation,
            progress,
        });
    }

    pub(super) fn create_default_pool(&mut self, policy: &Policy) -> Result<(), StartError> {
        self.begin_step();
        let mut step = step(self.now, &mut *self.random, &mut self.batch);
        self.pools
            .create_or_update(&mut step, &PoolName::default_pool(), policy, PolicyPatch::default())
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

/// Returns the limits of a server that holds so many keys, and takes so many bytes for its pools.
pub(crate) fn limits_of(keys: u64, bytes: u64) -> Limits {
    Limits { pools: POOLS_MAX, keys, bytes, answers: answers_max(bytes) }
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
