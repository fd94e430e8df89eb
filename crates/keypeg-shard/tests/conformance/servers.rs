//! Three servers that share one shard: one owns it, the others follow its log. At a restart the
//! shard moves twice: the owner hands it over to the next server, and the third one takes it from
//! that server, whose next append must be refused.
//!
//! The turns of the engine are run by hand, by the given time. It does not know which log it has.

use crate::SeededRandom;
use crate::sim_disk::SimDisk;
use keypeg_core::{Limits, Policy, RandomSource as _};
use keypeg_engine::checkpointer::Checkpointer;
use keypeg_engine::state::{CallId, EngineState, JournalSizes};
use keypeg_engine::{Clock, ClockReading, ReplicaConfig, SHARDS_MAX, ShardIdentity};
use keypeg_log::{FrameId, LogError, ServerName, Shard, SharedLog, wait};
use keypeg_shard::{
    EngineOptions, Executor, FollowOptions, Follower, Patience, Progress, SnapshotWriter, Tails,
    remove_older,
};
use keypeg_store::{CallSlot, EngineLane, Lane, Wakeup, lane};
use keypeg_testkit::conformance::{KeepsNothing, TestStore};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Wall time at the beginning, in microseconds.
const WALL_US: u64 = 1_795_305_600_000_000;
/// The longest step of time: a turn adds at most a second to the serving time.
const STEP_US: u64 = 1_000_000;
/// How often an append is repeated whose outcome is not known.
const REPETITIONS: u32 = 5;

/// Where a server begins that takes the place of one that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// At the first frame of the log.
    AtFirstFrame,
    /// At a snapshot, which the owner writes before it hands the shard over; so does each server
    /// that takes the shard over.
    AtSnapshot,
}

/// The clock of all servers, which only the script moves.
#[derive(Clone)]
struct GivenClock(Arc<AtomicU64>);

impl GivenClock {
    fn wall_us(&self) -> u64 {
        WALL_US + self.0.load(Ordering::Relaxed)
    }
}

impl Clock for GivenClock {
    fn read(&mut self) -> ClockReading {
        let boot_us = self.0.load(Ordering::Relaxed);
        ClockReading { boot_us, boot_id: 1, wall_us: self.wall_us() }
    }
}

/// Waits for the log on the thread of the test.
#[derive(Clone, Copy)]
struct Waiting;

impl Executor for Waiting {
    fn run<T>(&self, call: keypeg_log::Call<'_, T>) -> T {
        wait(call)
    }
}

impl Patience for Waiting {
    fn wait(&mut self, attempt: u32, _: &LogError) -> bool {
        attempt < REPETITIONS
    }
}

/// The server that owns the shard, or believes so.
struct Owner {
    engine: EngineState,
    checkpointer: Checkpointer,
    tails: Tails,
}

/// The servers of a script.
pub(crate) struct TestServers {
    log: Arc<dyn SharedLog>,
    identity: ShardIdentity,
    shard: Shard,
    begin: Begin,
    limits: Limits,
    clock: GivenClock,
    random: SeededRandom,
    /// `None` only while the shard moves.
    owner: Option<Owner>,
    /// The servers that follow; the next owner is the first.
    followers: VecDeque<Follower<Waiting>>,
    takeovers: u32,
    lane: Lane,
    engine_lane: EngineLane,
}

impl TestServers {
    pub(crate) fn start(log: Arc<dyn SharedLog>, shard: u16, begin: Begin, limits: Limits) -> Self {
        let (lane, engine_lane) = lane(&Wakeup::default());
        let mut servers = Self {
            log,
            identity: ShardIdentity::create(SHARDS_MAX, None, WALL_US, &mut SeededRandom(5)),
            shard: Shard::new(shard),
            begin,
            limits,
            clock: GivenClock(Arc::new(AtomicU64::new(1_000_000))),
            random: SeededRandom(11),
            owner: None,
            followers: VecDeque::new(),
            takeovers: 0,
            lane,
            engine_lane,
        };
        for _ in 0..3 {
            servers.add_follower();
        }
        servers.owner = Some(servers.take_over());
        servers
    }

    /// Adds a server that begins at the newest snapshot, or at the first frame.
    fn add_follower(&mut self) {
        let options = FollowOptions {
            log: Arc::clone(&self.log),
            identity: &self.identity,
            replica: ReplicaConfig {
                shard: self.shard.get(),
                max_keys: self.limits.keys,
                memory: u64::MAX,
                memory_max: u64::MAX,
                cache: 1 << 20,
                sizes: JournalSizes { segment: 4_096 + 768, journal: 4 * (4_096 + 768) },
                seal: None,
                on_a_thread: false,
                metrics: Arc::default(),
            },
            scratch: Arc::new(SimDisk::new()),
        };
        let follower = Follower::begin(options, Waiting, &mut self.random).unwrap();
        self.followers.push_back(follower);
    }

    /// Lets the first follower read to the end of the log and take the shard over.
    fn take_over(&mut self) -> Owner {
        let mut follower = self.followers.pop_front().unwrap();
        while follower.follow().unwrap() != Progress::AtEnd {}
        self.takeovers += 1;
        let name = ServerName::new(&format!("server-{}", self.takeovers % 3)).unwrap();
        let options = EngineOptions {
            clock: Box::new(self.clock.clone()),
            random: Box::new(SeededRandom(self.random.below(1 << 40))),
            default_policy: Some(Policy::default()),
        };
        let ids = Box::new(SeededRandom(self.random.below(1 << 40)));
        let (mut engine, tails) = follower.take_over(name, Waiting, ids, options).unwrap();
        let checkpointer = engine.take_checkpointer().unwrap();
        Owner { engine, checkpointer, tails }
    }

    /// Writes a snapshot of the shard, and removes what only older ones need.
    fn write_snapshot(&mut self, owner: &mut Owner) {
        let mut backup = owner.engine.begin_backup().unwrap().unwrap();
        while !backup.prepare().unwrap() {
            owner.engine.turn(&mut VecDeque::new(), &mut Vec::new()).unwrap();
            owner.checkpointer.serve_backup();
            owner.checkpointer.step().unwrap();
        }
        let behind = owner.engine.last_batch().unwrap().0 - backup.through().unwrap().0;
        let at = owner.tails.before_last(behind).unwrap();
        let mut attempt = [0; 16];
        self.random.fill(&mut attempt);
        let (log, attempt) = (Arc::clone(&self.log), FrameId::new(attempt));
        let mut writer = SnapshotWriter::begin(log, Waiting, self.shard, at, attempt);
        backup
            .write(|bytes| {
                writer.write(&bytes).unwrap();
                Ok(())
            })
            .unwrap();
        writer.finish().unwrap();
        remove_older(&*self.log, &Waiting, self.shard).unwrap();
    }

    /// Runs turns until every request of the lane is answered.
    fn run_turns(&mut self) {
        let Owner { engine, checkpointer, .. } = self.owner.as_mut().unwrap();
        let (mut items, mut replies) = (VecDeque::new(), Vec::new());
        let lane = &mut self.engine_lane;
        lane.take(|CallSlot(slot), item| items.push_back((CallId { lane: 0, slot }, item)));
        engine.turn(&mut items, &mut replies).unwrap();
        while engine.pending_count() > 0 {
            checkpointer.serve_lookups().unwrap();
            engine.turn(&mut items, &mut replies).unwrap();
        }
        for (call_id, reply) in replies {
            lane.answer(CallSlot(call_id.slot), reply);
        }
        lane.flush();
    }

    fn checkpoint(&mut self) {
        self.owner.as_mut().unwrap().checkpointer.step().unwrap();
    }
}

impl TestStore for TestServers {
    fn lane(&self) -> &Lane {
        &self.lane
    }

    fn now_ms(&self) -> u64 {
        self.clock.wall_us() / 1_000
    }

    fn advance_us(&mut self, us: u64) {
        let mut left_us = us;
        while left_us > 0 {
            let step_us = left_us.min(STEP_US);
            left_us -= step_us;
            self.clock.0.fetch_add(step_us, Ordering::Relaxed);
            self.run_turns();
        }
        self.checkpoint();
    }

    /// Also lets a follower read, now and then.
    fn run(&mut self) {
        self.run_turns();
        self.checkpoint();
        if self.random.below(8) == 0 {
            for follower in &mut self.followers {
                follower.follow().unwrap();
                follower.checkpointer().step().unwrap();
            }
        }
    }

    fn cancel_waits(&mut self) {
        self.owner.as_mut().unwrap().engine.cancel_waits();
    }

    fn keeps_causes(&self) -> bool {
        self.begin == Begin::AtFirstFrame
    }

    /// The lease time of a shard does not count a downtime.
    fn restart(&mut self, downtime_us: u64) -> Result<(), KeepsNothing> {
        if downtime_us > 0 {
            return Err(KeepsNothing);
        }
        let mut first = self.owner.take().unwrap();
        if self.begin == Begin::AtSnapshot {
            self.write_snapshot(&mut first);
            self.followers.clear();
            self.add_follower();
            self.add_follower();
        }
        first.engine.close().unwrap();
        drop(first);
        let mut second = self.take_over();
        let third = self.take_over();
        assert!(second.engine.close().is_err(), "a server appends to a shard that it has lost");
        drop(second);
        self.owner = Some(third);
        self.add_follower();
        self.add_follower();
        (self.lane, self.engine_lane) = lane(&Wakeup::default());
        Ok(())
    }
}
