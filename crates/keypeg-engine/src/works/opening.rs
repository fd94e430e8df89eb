//! How works begin: from a directory as a start finds it, in a fresh one, or in memory alone.

use super::dropping::HELD_BYTES;
use super::{CommitError, POOLS_MAX, Sizes, Works, step};
use crate::carrier::Carrier;
use crate::core::{IdKey, Limits, PolicyPatch, Pool, PoolName, Pools};
use crate::disk::Disk;
use crate::journal::Journal;
use crate::keyset::Keyset;
use crate::meta::Meta;
use crate::record::Batch;
use crate::recover::{self, io};
use crate::times::Times;
use crate::{Chance, Clock, Reading, Recovered, Setup, StartError};
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

/// The greatest a new directory's first token can be: a wall clock that is centuries ahead must not
/// use the tokens up.
const FIRST_TOKEN_MAX: u64 = 1 << 52;

impl Works {
    /// Opens a directory, or begins in memory alone where `disk` is `None`.
    pub fn open(
        disk: Option<Arc<dyn Disk>>,
        sizes: Sizes,
        setup: &Setup,
        mut clock: Box<dyn Clock>,
        mut chance: Box<dyn Chance + Send>,
    ) -> Result<(Self, Recovered), StartError> {
        let limits = Limits { pools: POOLS_MAX, keys: setup.max_keys };
        let reading = clock.read();
        let found =
            disk.as_deref().map_or(Ok(None), |disk| recover::examine(disk, setup.existing))?;
        if disk.is_some() && found.is_none() && setup.existing {
            let dir = setup.data.as_ref().map_or_else(String::new, |dir| dir.display().to_string());
            return Err(StartError::NotThere { dir });
        }
        match (disk, found) {
            (Some(disk), Some(mut meta)) => {
                let keyset = recover::keyset(&*disk, &mut meta)?;
                let replayed = recover::replay(&*disk, &meta, limits, &keyset)?;
                let mut times = Times::resume(clock, reading, Some(replayed.last));
                let now = times.now(true);
                let (batches_cut, starts_before) = (replayed.batches_cut, replayed.starts);
                let reached = replayed.carried;
                // The replay took time: the header pairs lease time with the boot time of `now`.
                let reading = Reading { boot_us: times.boot_us(), ..reading };
                let (journal, pools) = replayed.resume(&disk, sizes.segment, reading, now)?;
                let carrier = Some(carrier(disk, keyset, &meta, journal.holding(reached))?);
                let mut works = Self::new(pools, Some(journal), carrier, times, chance);
                works.sizes = sizes;
                // The first batch proves what was written into the fresh segment.
                works.prove().map_err(|CommitError(error)| io("writing the journal")(error))?;
                let recovered = works.recovered(setup);
                Ok((works, Recovered { batches_cut, starts_before, ..recovered }))
            }
            (disk, _) => {
                let meta = Meta::draw(&mut *chance);
                let ids = IdKey::new(meta.id_key);
                let pools = Pools::new(ids, limits, reading.wall_us.min(FIRST_TOKEN_MAX));
                let times = Times::resume(clock, reading, None);
                let (mut journal, mut carries) = (None, None);
                if let Some(disk) = &disk {
                    let begun = begin(disk, sizes.segment, &meta, reading, &pools);
                    journal = Some(begun.map_err(io("making the data directory"))?);
                    let keyset = Keyset::open(&**disk, IdKey::new(meta.id_key))?;
                    carries = Some(carrier(Arc::clone(disk), keyset, &meta, 1)?);
                }
                let mut works = Self::new(pools, journal, carries, times, chance);
                works.sizes = sizes;
                works.make_default_pool(setup)?;
                if let Some(disk) = disk {
                    Meta::finish(&*disk).map_err(io("making the data directory"))?;
                }
                let recovered = works.recovered(setup);
                Ok((works, Recovered { made: true, ..recovered }))
            }
        }
    }

    fn new(
        mut pools: Pools,
        mut journal: Option<Journal>,
        carrier: Option<Carrier>,
        mut times: Times,
        mut chance: Box<dyn Chance + Send>,
    ) -> Self {
        pools.begin_run(&mut *chance);
        let now = times.now(true);
        let progress = carrier.as_ref().map_or_else(Arc::default, Carrier::progress);
        let lookups = carrier.as_ref().map_or_else(Arc::default, Carrier::lookups);
        if let Some(journal) = &mut journal {
            journal.follow(Arc::clone(&progress));
        }
        Self {
            pools,
            journal,
            times,
            chance,
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
            sizes: Sizes::default(),
            dropping: None,
            told_each: HELD_BYTES,
            gone: Vec::new(),
            unproven: false,
            committed_us: now.lease_us,
            now,
            unheld_us: now.lease_us,
            held: false,
            meter: Arc::default(),
        }
    }

    fn make_default_pool(&mut self, setup: &Setup) -> Result<(), StartError> {
        self.begin_step();
        let mut step = step(self.now, &mut *self.chance, &mut self.batch);
        self.pools
            .put(
                &mut step,
                &PoolName::default_pool(),
                &setup.default_policy,
                PolicyPatch::default(),
            )
            .map_err(|refusal| {
                StartError::Data(format!("the default pool's policy is refused: {refusal:?}"))
            })?;
        self.commit(true).map_err(|CommitError(error)| io("writing the journal")(error))
    }

    fn recovered(&self, setup: &Setup) -> Recovered {
        let stored = self.pools.get(&PoolName::default_pool()).map(Pool::policy);
        Recovered {
            pools: self.pools.iter().count() as u64,
            keys: self.pools.keys(),
            leases: self.pools.iter().map(|pool| pool.counts().leased).sum(),
            default_policy_kept: stored.filter(|kept| **kept != setup.default_policy).cloned(),
            ..Recovered::default()
        }
    }
}

fn carrier(
    disk: Arc<dyn Disk>,
    keyset: Keyset,
    meta: &Meta,
    oldest: u64,
) -> Result<Carrier, StartError> {
    let ids = (IdKey::new(meta.id_key), meta.installation);
    Ok(Carrier::new(disk, keyset, ids, oldest)?)
}

fn begin(
    disk: &Arc<dyn Disk>,
    segment_len: u64,
    meta: &Meta,
    reading: Reading,
    pools: &Pools,
) -> std::io::Result<Journal> {
    meta.prepare(&**disk)?;
    let head = crate::frame::SegmentHead {
        installation: meta.installation,
        segment: 1,
        starts_at: 1,
        synced_through: 0,
        starts: 1,
        boot_id: reading.boot_id,
        boot_us: reading.boot_us,
        lease_us: 0,
        counters: pools.counters(),
    };
    Journal::begin(disk, segment_len, head, &[], head.counters, None)
}
