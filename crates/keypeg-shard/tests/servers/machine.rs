//! One machine: a server that follows the shard, owns it, or wrongly believes so.

use crate::SeededRandom;
use crate::clients::{Answered, Sent};
use crate::sim_disk::SimDisk;
use crate::world::{SimExecutor, Store, WALL_US, World};
use keypeg_core::{KeyRef, KeyState, Policy, PoolName};
use keypeg_engine::checkpointer::Checkpointer;
use keypeg_engine::state::{CallId, EngineState, JournalSizes};
use keypeg_engine::{Clock, ClockReading, ReplicaConfig};
use keypeg_log::memory::MemoryLog;
use keypeg_log::{FrameId, ServerName, Shard, SharedLog};
use keypeg_shard::{
    EngineOptions, FollowError, FollowOptions, Follower, Progress, SnapshotWriter, Tails,
    remove_older,
};
use keypeg_store::{Call, Principal, Reply, Request};
use std::collections::VecDeque;
use std::sync::{Arc, Weak};

/// The clock of one machine.
struct MachineClock {
    log: MemoryLog,
    offset_us: u64,
    boot_id: u128,
}

impl Clock for MachineClock {
    fn read(&mut self) -> ClockReading {
        let boot_us = self.log.now_us() + self.offset_us;
        ClockReading { boot_us, boot_id: self.boot_id, wall_us: WALL_US + boot_us }
    }
}

/// The engine of the shard, on the machine that owns it or believes so.
struct Owned {
    engine: EngineState,
    checkpointer: Checkpointer,
    tails: Tails,
}

pub(crate) struct Machine {
    index: usize,
    pub(crate) world: Weak<World>,
    owned: Option<Owned>,
    follower: Option<Follower<SimExecutor>>,
}

impl Machine {
    pub(crate) fn new(index: usize, world: Weak<World>) -> Self {
        Self { index, world, owned: None, follower: None }
    }

    /// Does one thing.
    pub(crate) fn act(&mut self, world: &World) {
        match world.below(40) {
            0 => {
                world.shared().counts.crashes += 1;
                (self.owned, self.follower) = (None, None);
            }
            1 => self.stop(world),
            2 | 3 => self.snapshot(world),
            4..=7 => drop(self.take_over(world)),
            8..=12 => drop(self.follow(world)),
            _ if self.owned.is_some() => self.call(world),
            _ => {}
        }
    }

    fn log(world: &World) -> Arc<dyn SharedLog> {
        Arc::new(world.log.clone())
    }

    /// Reads once. An error other than one of the store is a violation.
    fn follow(&mut self, world: &World) -> Result<Progress, FollowError> {
        let followed = self.try_follow(world);
        match &followed {
            Err(FollowError::BeginAgain { .. }) => {
                world.shared().counts.begun_again += 1;
                self.follower = None;
            }
            Err(FollowError::Replica(error)) => world.note(format!("a log contradicts: {error}")),
            Err(FollowError::Checkpoint(error)) => world.note(format!("a checkpoint: {error}")),
            Err(FollowError::Log(_)) | Ok(_) => {}
        }
        followed
    }

    fn try_follow(&mut self, world: &World) -> Result<Progress, FollowError> {
        if self.follower.is_none() {
            let options = FollowOptions {
                log: Self::log(world),
                identity: &world.identity,
                replica: ReplicaConfig {
                    shard: 0,
                    max_keys: 100_000,
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
            let mut random = SeededRandom(world.below(1 << 40));
            let executor = SimExecutor(Weak::clone(&self.world));
            self.follower = Some(Follower::begin(options, executor, &mut random)?);
        }
        let follower = self.follower.as_mut().unwrap();
        let progress = follower.follow()?;
        follower.checkpointer().step()?;
        Ok(progress)
    }

    /// Takes the shard over, from wherever its follower is.
    fn take_over(&mut self, world: &World) -> Result<(), FollowError> {
        while self.follow(world)? != Progress::AtEnd {}
        let follower = self.follower.take().unwrap();
        self.owned = None;
        let server = ServerName::new(&format!("machine-{}", self.index)).unwrap();
        let seed = world.below(1 << 40);
        let engine = EngineOptions {
            clock: Box::new(MachineClock {
                log: world.log.clone(),
                offset_us: self.index as u64 * 777_777_777,
                // Containers share the boot id of their host.
                boot_id: 1,
            }),
            random: Box::new(SeededRandom(seed)),
            default_policy: Some(Policy { keepalive_ttl_ms: None, ..Policy::default() }),
        };
        let patience = SimExecutor(Weak::clone(&self.world));
        let ids = Box::new(SeededRandom(!seed));
        let taken = follower.take_over(server, patience, ids, engine);
        let counts = &mut world.shared().counts;
        match taken {
            Ok((mut engine, tails)) => {
                counts.takeovers += 1;
                let checkpointer = engine.take_checkpointer().unwrap();
                self.owned = Some(Owned { engine, checkpointer, tails });
                Ok(())
            }
            Err(error) => {
                counts.lost_takeovers += 1;
                Err(error)
            }
        }
    }

    /// Stops cleanly.
    fn stop(&mut self, world: &World) {
        let Some(mut owned) = self.owned.take() else { return };
        if owned.engine.close().is_ok() {
            world.shared().counts.clean_stops += 1;
        }
    }

    /// Writes a snapshot, and sometimes removes what it makes unnecessary.
    fn snapshot(&mut self, world: &World) {
        let Some(owned) = &mut self.owned else { return };
        let executor = SimExecutor(Weak::clone(&self.world));
        let Some(Ok(mut backup)) = owned.engine.begin_backup() else { return };
        loop {
            match backup.prepare() {
                Ok(true) => break,
                Ok(false) => {}
                Err(_) => return,
            }
            if owned.engine.turn(&mut VecDeque::new(), &mut Vec::new()).is_err() {
                world.shared().counts.fenced += 1;
                drop(backup);
                self.owned = None;
                return;
            }
            owned.checkpointer.serve_backup();
            owned.checkpointer.step().unwrap();
        }
        let behind = owned.engine.last_batch().unwrap().0 - backup.through().unwrap().0;
        let Some(at) = owned.tails.before_last(behind) else { return };
        let mut attempt = [0; 16];
        keypeg_core::RandomSource::fill(&mut SeededRandom(world.below(1 << 40)), &mut attempt);
        let attempt = FrameId::new(attempt);
        let mut writer =
            SnapshotWriter::begin(Self::log(world), executor.clone(), Shard::FIRST, at, attempt);
        let mut written = Ok(());
        let read = backup.write(|bytes| {
            if written.is_ok() {
                written = writer.write(&bytes);
            }
            Ok(())
        });
        if read.is_err() || written.is_err() || writer.finish().is_err() {
            return;
        }
        world.shared().counts.snapshots += 1;
        if world.below(2) == 0
            && let Ok(Some(_)) = remove_older(&*Self::log(world), &executor, Shard::FIRST)
        {
            world.shared().counts.trims += 1;
        }
    }

    /// A client sends one call to this machine and checks the answer.
    fn call(&mut self, world: &World) {
        let sent = {
            let mut shared = world.shared();
            let shared = &mut *shared;
            shared.clients.send(&mut shared.random, world.now_us())
        };
        let answered = self.answer(&sent);
        let now_us = world.now_us();
        let mut shared = world.shared();
        let Some(reply) = answered else {
            shared.counts.fenced += 1;
            drop(shared);
            self.owned = None;
            return;
        };
        shared.counts.answers += 1;
        shared.counts.grants += u32::from(matches!(reply, Reply::Granted { .. }));
        if let Err(why) = shared.clients.receive(&Answered { sent, reply, now_us }) {
            shared.violation.get_or_insert(why);
        }
    }

    /// Runs turns until the call is answered; `None` if the shard is lost.
    fn answer(&mut self, sent: &Sent) -> Option<Reply> {
        let owned = self.owned.as_mut()?;
        let request = Request::new(Principal::Anyone, sent.call.clone());
        let mut requests = VecDeque::from([(CallId { lane: 0, slot: 0 }, request.into())]);
        let mut replies = Vec::new();
        while replies.is_empty() {
            owned.engine.turn(&mut requests, &mut replies).ok()?;
            owned.checkpointer.serve_lookups().unwrap();
        }
        owned.checkpointer.step().unwrap();
        owned.engine.pools().check_invariants();
        replies.pop().map(|(_, reply)| reply)
    }

    /// Takes the shard over when the store has no faults any more.
    pub(crate) fn own_at_last(&mut self, world: &World) -> Result<(), String> {
        for _ in 0..200 {
            match self.take_over(world) {
                Ok(()) => return Ok(()),
                Err(FollowError::Replica(error)) if world.store == Store::Created => {
                    // A late frame of a server that has ended.
                    drop(error);
                }
                Err(_) => {}
            }
            world.log.advance_to(world.now_us() + 100_000);
        }
        Err("no server can take the shard over".into())
    }

    /// Checks that what was acknowledged is there.
    pub(crate) fn check_acknowledged(&mut self, world: &World) {
        let expected = world.shared().clients.expected(world.now_us());
        let pool = PoolName::default_pool();
        for (key, token) in expected.leases {
            let call = Call::GetKey { pool: pool.clone(), key: KeyRef::Id(key) };
            let reply = self.answer(&Sent::of(call));
            let found = match &reply {
                Some(Reply::Key(view)) => {
                    view.state == KeyState::Leased
                        && view.lease.as_ref().is_some_and(|lease| lease.token == token)
                }
                _ => false,
            };
            if !found {
                world.note(format!("the lease {token} of {key} is lost: {reply:?}"));
            }
        }
        for (key, exists) in expected.keys {
            let call = Call::GetKey { pool: pool.clone(), key: KeyRef::Id(key) };
            let reply = self.answer(&Sent::of(call));
            if matches!(reply, Some(Reply::Key(_))) != exists {
                world.note(format!("the key {key} should exist: {exists}, and: {reply:?}"));
            }
        }
    }
}
