//! The conformance suite on the embedded engine, in memory and on a disk, on the engine of a
//! shard, and on the naive store.
//!
//! The scripts and their language are in keypeg-testkit. Another store runs them in the same way: it
//! implements `TestStore`, and mounts the two modules of scripts beside a `check` of its own.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod naive_store;
#[path = "../../keypeg-testkit/scripts/requests.rs"]
mod requests;
#[path = "../../keypeg-testkit/scripts/mod.rs"]
mod scripts;
mod support;

use keypeg_core::{Limits, Policy};
use keypeg_engine::checkpointer::Checkpointer;
use keypeg_engine::disk::Disk;
use keypeg_engine::state::{CallId, EngineState};
use keypeg_engine::{EngineConfig, ReplicaConfig, ShardIdentity};
use keypeg_store::{CallSlot, EngineLane, Lane, Wakeup, lane};
use keypeg_testkit::conformance::{self, KeepsNothing, TestStore};
use naive_store::NaiveStore;
use std::collections::VecDeque;
use std::sync::Arc;
use support::shared_log::{Follower, Owner, SharedLog, replica_config, take_snapshot};
use support::sim_disk::SimDisk;
use support::{Driver, ManualClock, SeededRandom, WALL_US, engine_config};

/// Runs a script on each store.
#[track_caller]
fn check(script: &str) {
    check_within(
        Limits {
            pools: 10_000,
            keys: 1_000_000,
            bytes: u64::MAX,
            answers: keypeg_core::ANSWERS_MAX,
        },
        script,
    );
}

/// Runs a script on each store, with this limit of keys. No store can be given a limit of pools.
#[track_caller]
fn check_within(limits: Limits, script: &str) {
    let run = |name, store| conformance::check(name, store, script);
    run("engine in memory", Box::new(TestEngine::open(None, limits)));
    run("engine, stopped and started", Box::new(TestEngine::open(Some(End::Stop), limits)));
    run("engine, power cut", Box::new(TestEngine::open(Some(End::PowerCut), limits)));
    run("shard, taken over", Box::new(TestShard::open(Warm::Follows, limits)));
    run("shard, begun at a snapshot", Box::new(TestShard::open(Warm::BeginsAtSnapshot, limits)));
    run("naive store", Box::new(TestNaiveStore::open(limits)));
}

/// The naive store, whose only clock is a number.
struct TestNaiveStore {
    store: NaiveStore,
    us: u64,
    lane: Lane,
    engine_lane: EngineLane,
}

impl TestNaiveStore {
    fn open(limits: Limits) -> Self {
        let (lane, engine_lane) = lane(&Wakeup::default());
        let store = NaiveStore::new(Policy::default(), limits.keys, Arc::default());
        Self { store, us: 0, lane, engine_lane }
    }
}

impl TestStore for TestNaiveStore {
    fn lane(&self) -> &Lane {
        &self.lane
    }

    fn now_ms(&self) -> u64 {
        self.store.now
    }

    fn advance_us(&mut self, us: u64) {
        self.us += us;
        self.store.now = self.us / 1_000;
    }

    fn run(&mut self) {
        self.store.run(std::slice::from_mut(&mut self.engine_lane));
    }

    fn cancel_waits(&mut self) {
        self.store.cancels_waits = true;
    }

    fn restart(&mut self, _downtime_us: u64) -> Result<(), KeepsNothing> {
        Err(KeepsNothing)
    }
}

/// How an engine on a disk ends before it is started again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// It stops, after every change was checkpointed: a start reads the key set from the database.
    Stop,
    /// The power is cut, and a random part of the changes was checkpointed: a start replays the
    /// rest from the journal.
    PowerCut,
}

/// How the next owner of a shard knows what its log contains.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Warm {
    /// It has followed the log from the beginning.
    Follows,
    /// It begins at a snapshot, which the owner takes just before it ends.
    BeginsAtSnapshot,
}

/// The engine of a shard: at a restart another server takes the shard over.
struct TestShard {
    /// `None` only while the shard is taken over.
    owner: Option<Owner>,
    warm: Warm,
    log: SharedLog,
    identity: ShardIdentity,
    config: ReplicaConfig,
    follower: Follower,
    clock: ManualClock,
    lane: Lane,
    engine_lane: EngineLane,
}

impl TestShard {
    fn open(warm: Warm, limits: Limits) -> Self {
        let (clock, log) = (ManualClock::new(), SharedLog::default());
        let identity = ShardIdentity::create(1, None, WALL_US, &mut SeededRandom(5));
        let config = ReplicaConfig { max_keys: limits.keys, ..replica_config() };
        let follower =
            || Follower::begin(&log, &identity, Arc::new(SimDisk::new()), &config).unwrap();
        let owner = follower().take_over(&log, &clock, 1, Policy::default()).unwrap();
        let (lane, engine_lane) = lane(&Wakeup::default());
        let (follower, owner) = (follower(), Some(owner));
        Self { owner, warm, log, identity, config, follower, clock, lane, engine_lane }
    }
}

impl TestStore for TestShard {
    fn lane(&self) -> &Lane {
        &self.lane
    }

    fn now_ms(&self) -> u64 {
        self.clock.wall_ms()
    }

    fn advance_us(&mut self, us: u64) {
        advance_in_steps(us, |step_us| {
            self.clock.advance_us(step_us);
            self.run();
        });
    }

    fn run(&mut self) {
        let owner = self.owner.as_mut().expect("it is owned");
        run_turns(&mut owner.engine, owner.checkpointer.as_ref(), &mut self.engine_lane);
        owner.checkpointer.as_mut().expect("a disk").step().unwrap();
        self.follower.follow(&self.log).unwrap();
        self.follower.replica.checkpointer().step().unwrap();
    }

    fn cancel_waits(&mut self) {
        self.owner.as_mut().expect("it is owned").engine.cancel_waits();
    }

    fn keeps_causes(&self) -> bool {
        self.warm == Warm::Follows
    }

    /// The lease time of a shard does not count a downtime.
    fn restart(&mut self, downtime_us: u64) -> Result<(), KeepsNothing> {
        if downtime_us > 0 {
            return Err(KeepsNothing);
        }
        let mut owner = self.owner.take().expect("it is owned");
        if self.warm == Warm::BeginsAtSnapshot {
            let Owner { engine, checkpointer } = &mut owner;
            let checkpointer = checkpointer.as_mut().expect("a disk");
            let (snapshot, batches) = take_snapshot(engine, checkpointer, &self.log, |engine| {
                engine.turn(&mut VecDeque::new(), &mut Vec::new()).unwrap();
            });
            self.log.put_snapshot(snapshot, batches);
        }
        owner.engine.close().unwrap();
        drop(owner);
        let begin = |log: &SharedLog| {
            let disk = Arc::new(SimDisk::new());
            Follower::begin(log, &self.identity, disk, &self.config).unwrap()
        };
        let mut next = begin(&self.log);
        if self.warm == Warm::Follows {
            std::mem::swap(&mut next, &mut self.follower);
        } else {
            self.follower = begin(&self.log);
        }
        next.follow(&self.log).unwrap();
        self.owner = Some(next.take_over(&self.log, &self.clock, 1, Policy::default()).unwrap());
        (self.lane, self.engine_lane) = lane(&Wakeup::default());
        Ok(())
    }
}

/// Passes time in steps: a turn adds at most a second to the serving time.
fn advance_in_steps(us: u64, mut step: impl FnMut(u64)) {
    const STEP_US: u64 = 1_000_000;
    let mut left_us = us;
    while left_us > 0 {
        let step_us = left_us.min(STEP_US);
        left_us -= step_us;
        step(step_us);
    }
}

/// Runs turns until every request of the lane is answered.
fn run_turns(engine: &mut EngineState, checkpointer: Option<&Checkpointer>, lane: &mut EngineLane) {
    let (mut items, mut replies) = (VecDeque::new(), Vec::new());
    lane.take(|CallSlot(slot), item| items.push_back((CallId { lane: 0, slot }, item)));
    engine.turn(&mut items, &mut replies).unwrap();
    while engine.pending_count() > 0 {
        if let Some(checkpointer) = checkpointer {
            checkpointer.serve_lookups().unwrap();
        }
        engine.turn(&mut items, &mut replies).unwrap();
    }
    for (call_id, reply) in replies {
        lane.answer(CallSlot(call_id.slot), reply);
    }
    lane.flush();
}

/// The embedded engine, whose turns the suite runs.
struct TestEngine {
    /// `None` only while it restarts.
    driver: Option<Driver>,
    config: EngineConfig,
    clock: ManualClock,
    random: SeededRandom,
    /// The disk and how the engine ends; `None` in memory.
    disk: Option<(SimDisk, End)>,
    lane: Lane,
    engine_lane: EngineLane,
}

impl TestEngine {
    fn open(end: Option<End>, limits: Limits) -> Self {
        let clock = ManualClock::new();
        let config = EngineConfig { max_keys: limits.keys, ..engine_config() };
        let disk = end.map(|end| (SimDisk::new(), end));
        let on_disk = disk.as_ref().map(|(disk, _)| Arc::new(disk.clone()) as Arc<dyn Disk>);
        let driver = Driver::open_with(on_disk, &clock, 1, &config).unwrap();
        let (lane, engine_lane) = lane(&Wakeup::default());
        let random = SeededRandom(7);
        Self { driver: Some(driver), config, clock, random, disk, lane, engine_lane }
    }

    fn driver(&mut self) -> &mut Driver {
        self.driver.as_mut().expect("it runs")
    }

    /// Checkpoints all changes: after every turn, or after some.
    fn checkpoint(&mut self) {
        let is_due = match self.disk {
            None => false,
            Some((_, End::Stop)) => true,
            Some((_, End::PowerCut)) => self.random.below(4) == 0,
        };
        if is_due {
            self.driver().checkpoint().unwrap();
        }
    }
}

impl TestStore for TestEngine {
    fn lane(&self) -> &Lane {
        &self.lane
    }

    fn now_ms(&self) -> u64 {
        self.clock.wall_ms()
    }

    fn advance_us(&mut self, us: u64) {
        advance_in_steps(us, |step_us| {
            self.clock.advance_us(step_us);
            self.run();
        });
    }

    fn run(&mut self) {
        let mut driver = self.driver.take().expect("it runs");
        run_turns(&mut driver.engine, driver.checkpointer.as_ref(), &mut self.engine_lane);
        self.driver = Some(driver);
        self.checkpoint();
    }

    fn cancel_waits(&mut self) {
        self.driver().engine.cancel_waits();
    }

    fn restart(&mut self, downtime_us: u64) -> Result<(), KeepsNothing> {
        let Some((disk, end)) = &self.disk else { return Err(KeepsNothing) };
        let (disk, end) = (disk.clone(), *end);
        let mut driver = self.driver.take().expect("it runs");
        match end {
            End::Stop => driver.engine.close().unwrap(),
            End::PowerCut => disk.cut_power(&mut self.random),
        }
        drop(driver);
        self.clock.advance_us(downtime_us);
        let disk: Arc<dyn Disk> = Arc::new(disk);
        let driver = Driver::open_with(Some(disk), &self.clock, 1, &self.config).unwrap();
        self.driver = Some(driver);
        (self.lane, self.engine_lane) = lane(&Wakeup::default());
        Ok(())
    }
}
