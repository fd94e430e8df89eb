//! What the engine tests share: a manual clock, a seeded random source, a disk that loses unsynced
//! data at a crash, and a driver that runs turns one by one.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![expect(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test may panic")]

pub(crate) mod shared_log;
pub(crate) mod sim_disk;
pub(crate) mod subscriber;
pub(crate) mod turns;
pub(crate) mod unsynced_batch;
pub(crate) mod workload;

use keypeg_core::{BodyDigest, KeyId, LeaseId, NewLabels, Policy, PoolListOptions, PoolName};
use keypeg_engine::checkpointer::Checkpointer;
use keypeg_engine::disk::Disk;
use keypeg_engine::state::{CallId, CommitError, EngineState, JournalSizes};
use keypeg_engine::{Clock, ClockReading, EngineConfig};
use keypeg_store::{Call, Idempotency, Principal, Reply, Request, StartReport};
pub(crate) use keypeg_testkit::SeededRandom;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Returns the call that lists the pools, on a page as long as allowed.
pub(crate) fn list_pools() -> Call {
    Call::list_pools(PoolListOptions::default()).into_call()
}

/// A clock that only the test moves.
#[derive(Clone, Debug)]
pub(crate) struct ManualClock {
    boot_us: Arc<AtomicU64>,
    /// What each reading adds: reading takes time.
    reading_us: Arc<AtomicU64>,
    boot_id: Arc<Mutex<u128>>,
}

/// Where the wall clock starts in tests: 2026-11-22T00:00:00Z, in microseconds.
pub(crate) const WALL_US: u64 = 1_795_305_600_000_000;

impl ManualClock {
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

    /// Sets how long every reading takes.
    pub(crate) fn set_reading_time_ms(&self, ms: u64) {
        self.reading_us.store(ms * 1_000, Ordering::Relaxed);
    }

    pub(crate) fn advance_ms(&self, ms: u64) {
        self.advance_us(ms * 1_000);
    }

    pub(crate) fn advance_us(&self, us: u64) {
        self.boot_us.fetch_add(us, Ordering::Relaxed);
    }

    /// Returns the wall time.
    pub(crate) fn wall_ms(&self) -> u64 {
        (WALL_US + self.boot_us.load(Ordering::Relaxed)) / 1_000
    }

    /// Starts another boot, whose clock starts near zero.
    pub(crate) fn reboot(&self) {
        *self.boot_id.lock().unwrap() += 1;
        self.boot_us.store(5, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn read(&mut self) -> ClockReading {
        let boot_us =
            self.boot_us.fetch_add(self.reading_us.load(Ordering::Relaxed), Ordering::Relaxed);
        let boot_id = *self.boot_id.lock().unwrap();
        ClockReading { boot_us, boot_id, wall_us: WALL_US + boot_us }
    }
}

pub(crate) fn engine_config() -> EngineConfig {
    EngineConfig {
        data: None,
        lanes: 1,
        core_turns: false,
        default_policy: Policy::default(),
        max_keys: 1_000_000,
        memory: u64::MAX,
        memory_max: u64::MAX,
        cache: 4 << 20,
        must_exist: false,
        seal: None,
    }
}

pub(crate) fn default_pool() -> PoolName {
    PoolName::default_pool()
}

/// A call with its Idempotency-Key, as a client sends it.
#[derive(Clone, Debug)]
pub(crate) struct SentCall {
    pub(crate) call: Call,
    pub(crate) idempotency: Option<Idempotency>,
}

impl SentCall {
    pub(crate) fn with_key(key: &str, body: BodyDigest, call: Call) -> Self {
        Self { call, idempotency: Some(Idempotency::new(key, body)) }
    }

    pub(crate) fn into_request(self, by: Principal) -> Request {
        Request { idempotency: self.idempotency.map(Box::new), ..Request::new(by, self.call) }
    }
}

impl From<Call> for SentCall {
    fn from(call: Call) -> Self {
        Self { call, idempotency: None }
    }
}

/// An engine whose turns the test runs.
pub(crate) struct Driver {
    pub(crate) engine: EngineState,
    pub(crate) recovery: StartReport,
    pub(crate) clock: ManualClock,
    pub(crate) checkpointer: Option<Checkpointer>,
    /// The principal of all calls.
    pub(crate) by: Principal,
}

/// A segment small enough that a test fills many.
pub(crate) const SMALL_SEGMENT: u64 = 4096 + 768;
/// A journal small enough that a test deletes many of its segments.
pub(crate) const SMALL_JOURNAL: u64 = 4 * SMALL_SEGMENT;

impl Driver {
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        clock: &ManualClock,
        seed: u64,
    ) -> Result<Self, String> {
        Self::open_with(Some(disk), clock, seed, &engine_config())
    }

    pub(crate) fn open_with(
        disk: Option<Arc<dyn Disk>>,
        clock: &ManualClock,
        seed: u64,
        config: &EngineConfig,
    ) -> Result<Self, String> {
        let boxed_clock = Box::new(clock.clone());
        let random = Box::new(SeededRandom(seed));
        let sizes = JournalSizes { segment: SMALL_SEGMENT, journal: SMALL_JOURNAL };
        let (mut engine, recovery) = EngineState::open(disk, sizes, config, boxed_clock, random)
            .map_err(|error| error.to_string())?;
        let checkpointer = engine.take_checkpointer();
        let by = Principal::Anyone;
        Ok(Self { engine, recovery, clock: clock.clone(), checkpointer, by })
    }

    /// Runs the checkpointer until everything synced is in the database.
    pub(crate) fn checkpoint(&mut self) -> Result<(), String> {
        let Some(checkpointer) = &mut self.checkpointer else { return Ok(()) };
        while checkpointer.step().map_err(|error| error.to_string())? {}
        Ok(())
    }

    /// Returns a backup, on a disk that does not fail.
    pub(crate) fn back_up(&mut self) -> Vec<u8> {
        let mut backup = self.engine.begin_backup().unwrap().unwrap();
        while !backup.prepare().unwrap() {
            self.call(list_pools());
            self.checkpointer.as_ref().unwrap().serve_backup();
        }
        let mut bytes = Vec::new();
        let send = |piece: Vec<u8>| {
            bytes.extend(piece);
            Ok(())
        };
        backup.write(send).unwrap();
        bytes
    }

    /// Runs turns until these calls are answered, and returns the replies in their order.
    pub(crate) fn turn(&mut self, calls: Vec<Call>) -> Result<Vec<Reply>, CommitError> {
        self.turn_with_keys(calls.into_iter().map(SentCall::from).collect())
    }

    /// Like [`Self::turn`], for calls that may have Idempotency-Keys.
    pub(crate) fn turn_with_keys(
        &mut self,
        calls: Vec<SentCall>,
    ) -> Result<Vec<Reply>, CommitError> {
        let count = calls.len();
        let mut requests: VecDeque<_> = (0..)
            .zip(calls)
            .map(|(slot, call)| {
                (CallId { lane: 0, slot }, call.into_request(self.by.clone()).into())
            })
            .collect();
        let mut replies = Vec::new();
        self.engine.turn(&mut requests, &mut replies)?;
        while replies.len() < count {
            if let Some(checkpointer) = &self.checkpointer {
                checkpointer.serve_lookups().expect("the database can be read");
            }
            self.engine.turn(&mut requests, &mut replies)?;
        }
        if self.engine.pools().key_count() < 1_000 {
            self.engine.pools().check_invariants();
        }
        replies.sort_by_key(|(call_id, _)| call_id.slot);
        Ok(replies.into_iter().map(|(_, reply)| reply).collect())
    }

    /// Runs one call on a disk that does not fail.
    pub(crate) fn call(&mut self, call: impl Into<SentCall>) -> Reply {
        self.turn_with_keys(vec![call.into()])
            .expect("the disk does not fail")
            .pop()
            .expect("one reply")
    }

    pub(crate) fn generate(&mut self, count: u32) -> Vec<KeyId> {
        match self.call(Call::Generate { pool: default_pool(), count, labels: NewLabels::None }) {
            Reply::Keys(keys) => keys.iter().map(|key| key.id).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Acquires a key and returns its lease id, its key and its token.
    pub(crate) fn acquire(&mut self, holder: &str) -> Option<(LeaseId, KeyId, u64)> {
        let holder = (!holder.is_empty()).then(|| holder.into());
        match self.call(Call::Acquire { pool: default_pool(), ttl_ms: None, holder, wait_ms: 0 }) {
            Reply::Granted { lease, .. } => Some((lease.id, lease.key_id, lease.token)),
            Reply::Refused(_) => None,
            other => panic!("{other:?}"),
        }
    }
}
