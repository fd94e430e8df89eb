//! How works begin: from a directory as a start finds it, in a fresh one, or in memory alone.

use super::segment_drop::HELD_BYTES;
use super::{CommitError, EngineState, JournalSizes, POOLS_MAX, step};
use crate::checkpointer::{Checkpointer, CheckpointerOptions};
use crate::core::{IdHashKey, Limits, Lsn, PolicyPatch, Pool, PoolName, Pools};
use crate::disk::Disk;
use crate::frame::SegmentNumber;
use crate::journal::{FreshSegment, Journal};
use crate::keyset::KeySetDb;
use crate::meta::Meta;
use crate::record::Batch;
use crate::recover::{self, io};
use crate::times::Times;
use crate::{Clock, ClockReading, EngineConfig, RandomSource, RecoveryReport, StartError};
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

/// The greatest a new directory's first token can be: a wall clock that is centuries ahead must not
/// use the tokens up.
const FIRST_TOKEN_MAX: u64 = 1 << 52;

impl EngineState {
    /// Opens a directory, or begins in memory alone where `disk` is `None`.
    pub fn open(
        disk: Option<Arc<dyn Disk>>,
        sizes: JournalSizes,
        setup: &EngineConfig,
        mut clock: Box<dyn Clock>,
        mut random: Box<dyn RandomSource + Send>,
    ) -> Result<(Self, RecoveryReport), StartError> {
        let limits = Limits { pools: POOLS_MAX, keys: setup.max_keys };
        let reading = clock.read();
        let found =
            disk.as_deref().map_or(Ok(None), |disk| recover::examine(disk, setup.existing))?;
        if disk.is_some() && found.is_none() && setup.existing {
            let dir = setup.data.as_ref().map_or_else(String::new, |dir| dir.display().to_string());
            return Err(StartError::NotFound { dir });
        }
        match (disk, found) {
            (Some(disk), Some(mut meta)) => {
                let keyset = recover::open_keyset(&*disk, &mut meta)?;
                let replayed = recover::replay(&*disk, &meta, limits, &keyset)?;
                let mut times = Times::resume(clock, reading, Some(replayed.last));
                let now = times.now(true);
                let (batches_cut, starts_before) = (replayed.batches_cut, replayed.starts);
                let reached = replayed.checkpointed;
                // The replay took time: the header pairs lease time with the boot time of `now`.
                let reading = ClockReading { boot_us: times.boot_us(), ..reading };
                let (journal, pools) = replayed.resume(&disk, sizes.segment, reading, now)?;
                let carrier = Some(carrier(disk, keyset, &meta, journal.segment_with(reached))?);
                let mut works = Self::new(pools, Some(journal), carrier, times, random);
                works.sizes = sizes;
                // The first batch proves what was written into the fresh segment.
                works.prove().map_err(|CommitError(error)| io("writing the journal")(error))?;
                let recovered = works.recovered(setup);
                Ok((works, RecoveryReport { batches_cut, starts_before, ..recovered }))
            }
            (disk, _) => {
                let meta = Meta::generate(&mut *random);
                let ids = IdHashKey::new(meta.id_key);
                let pools = Pools::new(ids, limits, reading.wall_us.min(FIRST_TOKEN_MAX));
                let times = Times::resume(clock, reading, None);
                let (mut journal, mut carries) = (None, None);
                if let Some(disk) = &disk {
                    let begun = begin(disk, sizes.segment, &meta, reading, &pools);
                    journal = Some(begun.map_err(io("making the data directory"))?);
                    let keyset = KeySetDb::open(&**disk, IdHashKey::new(meta.id_key))?;
                    carries = Some(carrier(Arc::clone(disk), keyset, &meta, SegmentNumber::FIRST)?);
                }
                let mut works = Self::new(pools, journal, carries, times, random);
                works.sizes = sizes;
                works.make_default_pool(setup)?;
                if let Some(disk) = disk {
                    Meta::finish(&*disk).map_err(io("making the data directory"))?;
                }
                let recovered = works.recovered(setup);
                Ok((works, RecoveryReport { made: true, ..recovered }))
            }
        }
    }

    fn new(
        mut pools: Pools,
        mut journal: Option<Journal>,
        carrier: Option<Checkpointer>,
        mut times: Times,
        mut random: Box<dyn RandomSource + Send>,
    ) -> Self {
        pools.set_run_id(&mut *random);
        let now = times.now(true);
        let progress = carrier.as_ref().map_or_else(Arc::default, Checkpointer::progress);
        let lookups = carrier.as_ref().map_or_else(Arc::default, Checkpointer::lookups);
        if let Some(journal) = &mut journal {
            journal.set_progress(Arc::clone(&progress));
        }
        Self {
            pools,
            journal,
            times,
            random,
            batch: Batch::default(),
            late: VecDeque::new(),
            parked: VecDeque::new(),
            parked_bytes: 0,
            looked_up: VecDeque::new(),
            lookups,
            left: HashSet::new(),
            turns_away: false,
            carrier,
            progress,
            sizes: JournalSizes::default(),
            dropping: None,
            told_each: HELD_BYTES,
            gone: Vec::new(),
            unproven: false,
            committed_us: now.lease_us,
            now,
            unheld_us: now.lease_us,
            held: false,
            metrics: Arc::default(),
        }
    }

    fn make_default_pool(&mut self, setup: &EngineConfig) -> Result<(), StartError> {
        self.begin_step();
        let mut step = step(self.now, &mut *self.random, &mut self.batch);
        self.pools
            .create_or_update(
                &mut step,
                &PoolName::default_pool(),
                &setup.default_policy,
                PolicyPatch::default(),
            )
            .map_err(|refusal| {
                StartError::Corrupt(format!("the default pool's policy is refused: {refusal:?}"))
            })?;
        self.commit(true).map_err(|CommitError(error)| io("writing the journal")(error))
    }

    fn recovered(&self, setup: &EngineConfig) -> RecoveryReport {
        let stored = self.pools.get(&PoolName::default_pool()).map(Pool::policy);
        RecoveryReport {
            pools: self.pools.iter().count() as u64,
            keys: self.pools.key_count(),
            leases: self.pools.iter().map(|pool| pool.counts().leased).sum(),
            default_policy_kept: stored.filter(|kept| **kept != setup.default_policy).cloned(),
            ..RecoveryReport::default()
        }
    }
}

fn carrier(
    disk: Arc<dyn Disk>,
    keyset: KeySetDb,
    meta: &Meta,
    segment: SegmentNumber,
) -> Result<Checkpointer, StartError> {
    let (ids, installation) = (IdHashKey::new(meta.id_key), meta.installation);
    Ok(Checkpointer::new(CheckpointerOptions { disk, keyset, ids, installation, segment })?)
}

fn begin(
    disk: &Arc<dyn Disk>,
    segment_len: u64,
    meta: &Meta,
    reading: ClockReading,
    pools: &Pools,
) -> std::io::Result<Journal> {
    meta.prepare(&**disk)?;
    let head = crate::frame::SegmentHead {
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
