//! What engine tests are played with: a clock and random that are given, a disk that forgets what
//! was not synced, and a driver that plays turns by hand.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![expect(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test may panic")]

pub(crate) mod sim_disk;
pub(crate) mod story;

use keypeg_engine::checkpointer::Checkpointer;
use keypeg_engine::core::{KeyId, LeaseId, Policy, PoolName};
use keypeg_engine::disk::Disk;
use keypeg_engine::state::{CallId, CommitError, EngineState, JournalSizes};
use keypeg_engine::{
    Call, Clock, ClockReading, EngineConfig, Principal, RandomSource, RecoveryReport, Reply,
    Request,
};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// A small seeded generator (splitmix64): the same everywhere, for ever.
#[derive(Clone, Debug)]
pub(crate) struct SeededRandom(pub u64);

impl SeededRandom {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

impl RandomSource for SeededRandom {
    fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(SeededRandom::below(self, u64::from(bound))).unwrap()
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]);
        }
    }
}

/// A clock that stands where it is put.
#[derive(Clone, Debug)]
pub(crate) struct GivenClock {
    boot_us: Arc<AtomicU64>,
    /// What each reading adds: reading takes time.
    reading_us: Arc<AtomicU64>,
    boot_id: Arc<Mutex<u128>>,
}

/// Where the wall clock begins in tests: 2026-11-22T00:00:00Z, in microseconds.
pub(crate) const WALL_US: u64 = 1_795_305_600_000_000;

impl GivenClock {
    pub(crate) fn new() -> Self {
        Self {
            boot_us: Arc::new(AtomicU64::new(1_000_000)),
            reading_us: Arc::default(),
            boot_id: Arc::new(Mutex::new(1)),
        }
    }

    pub(crate) fn boot_ms(&self) -> u64 {
        self.boot_us.load(Ordering::Relaxed) / 1_000
    }

    /// Lets every reading take this long.
    pub(crate) fn each_reading_takes_ms(&self, ms: u64) {
        self.reading_us.store(ms * 1_000, Ordering::Relaxed);
    }

    pub(crate) fn tick_ms(&self, ms: u64) {
        self.boot_us.fetch_add(ms * 1_000, Ordering::Relaxed);
    }

    /// Another boot, whose clock begins near zero.
    pub(crate) fn reboot(&self) {
        *self.boot_id.lock().unwrap() += 1;
        self.boot_us.store(5, Ordering::Relaxed);
    }
}

impl Clock for GivenClock {
    fn read(&mut self) -> ClockReading {
        let boot_us =
            self.boot_us.fetch_add(self.reading_us.load(Ordering::Relaxed), Ordering::Relaxed);
        let boot_id = *self.boot_id.lock().unwrap();
        ClockReading { boot_us, boot_id, wall_us: WALL_US + boot_us }
    }
}

pub(crate) fn setup() -> EngineConfig {
    EngineConfig {
        data: None,
        lanes: 1,
        default_policy: Policy::default(),
        max_keys: 1_000_000,
        must_exist: false,
    }
}

pub(crate) fn default_pool() -> PoolName {
    PoolName::default_pool()
}

/// An engine played by hand.
pub(crate) struct Driver {
    pub(crate) works: EngineState,
    pub(crate) recovered: RecoveryReport,
    pub(crate) clock: GivenClock,
    pub(crate) carrier: Option<Checkpointer>,
    /// Who asks.
    pub(crate) by: Principal,
}

/// A segment small enough that a test rolls through many.
pub(crate) const SMALL_SEGMENT: u64 = 4096 + 768;
/// A journal small enough that a test drops many of its segments.
pub(crate) const SMALL_JOURNAL: u64 = 4 * SMALL_SEGMENT;

impl Driver {
    pub(crate) fn open(disk: Arc<dyn Disk>, clock: &GivenClock, seed: u64) -> Result<Self, String> {
        Self::open_with(Some(disk), clock, seed, &setup())
    }

    pub(crate) fn open_with(
        disk: Option<Arc<dyn Disk>>,
        clock: &GivenClock,
        seed: u64,
        setup: &EngineConfig,
    ) -> Result<Self, String> {
        let boxed = Box::new(clock.clone());
        let random = Box::new(SeededRandom(seed));
        let sizes = JournalSizes { segment: SMALL_SEGMENT, journal: SMALL_JOURNAL };
        let (mut works, recovered) = EngineState::open(disk, sizes, setup, boxed, random)
            .map_err(|error| error.to_string())?;
        let carrier = works.take_checkpointer();
        let by = Principal::Anyone;
        Ok(Self { works, recovered, clock: clock.clone(), carrier, by })
    }

    /// Carries all that is synced into the database.
    pub(crate) fn carry(&mut self) -> Result<(), String> {
        let Some(carrier) = &mut self.carrier else { return Ok(()) };
        while carrier.step().map_err(|error| error.to_string())? {}
        Ok(())
    }

    /// Plays one turn with these calls; the replies stand in their order.
    pub(crate) fn turn(&mut self, calls: Vec<Call>) -> Result<Vec<Reply>, CommitError> {
        let count = calls.len();
        let mut asked: VecDeque<_> = (0..)
            .zip(calls)
            .map(|(slot, call)| (CallId { lane: 0, slot }, Request { by: self.by.clone(), call }))
            .collect();
        let mut replies = Vec::new();
        self.works.turn(&mut asked, &mut replies)?;
        while replies.len() < count {
            if let Some(carrier) = &self.carrier {
                carrier.serve_lookups().expect("what is asked of the database is answered");
            }
            self.works.turn(&mut asked, &mut replies)?;
        }
        if self.works.pools().key_count() < 1_000 {
            self.works.pools().check_invariants();
        }
        replies.sort_by_key(|(call_id, _)| call_id.slot);
        Ok(replies.into_iter().map(|(_, reply)| reply).collect())
    }

    /// Plays one call on a disk that does not fail.
    pub(crate) fn call(&mut self, call: Call) -> Reply {
        self.turn(vec![call]).expect("the disk does not fail").pop().expect("one reply")
    }

    pub(crate) fn generate(&mut self, count: u32) -> Vec<KeyId> {
        match self.call(Call::Generate { pool: default_pool(), count }) {
            Reply::Keys(keys) => keys.iter().map(|key| key.id).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Acquires: the lease's id, its key and its token.
    pub(crate) fn acquire(&mut self, holder: &str) -> Option<(LeaseId, KeyId, u64)> {
        let holder = (!holder.is_empty()).then(|| holder.into());
        match self.call(Call::Acquire { pool: default_pool(), ttl_ms: None, holder, wait_ms: 0 }) {
            Reply::Granted { lease, .. } => Some((lease.id, lease.key_id, lease.token)),
            Reply::Refused(_) => None,
            other => panic!("{other:?}"),
        }
    }
}
