//! The world of a seed: the store, the machines, the time, and what happens next.

use crate::SeededRandom;
use crate::clients::Clients;
use crate::machine::Machine;
use keypeg_engine::ShardIdentity;
use keypeg_log::memory::{Faults, MemoryLog};
use keypeg_log::{Call, Guarantee, LogError};
use keypeg_shard::{Executor, Patience};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

/// Wall time at the beginning, in microseconds.
pub(crate) const WALL_US: u64 = 1_795_305_600_000_000;
const MACHINES: usize = 3;
const MS: u64 = 1_000;

/// The kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// It chains frames, and loses what it has not replicated when it fails over.
    Chained,
    /// It creates objects, and what can be read stays.
    Created,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) answers: u32,
    pub(crate) grants: u32,
    pub(crate) takeovers: u32,
    pub(crate) lost_takeovers: u32,
    pub(crate) fenced: u32,
    pub(crate) begun_again: u32,
    pub(crate) snapshots: u32,
    pub(crate) trims: u32,
    pub(crate) clean_stops: u32,
    pub(crate) crashes: u32,
    pub(crate) failovers: u32,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.answers += other.answers;
        self.grants += other.grants;
        self.takeovers += other.takeovers;
        self.lost_takeovers += other.lost_takeovers;
        self.fenced += other.fenced;
        self.begun_again += other.begun_again;
        self.snapshots += other.snapshots;
        self.trims += other.trims;
        self.clean_stops += other.clean_stops;
        self.crashes += other.crashes;
        self.failovers += other.failovers;
    }

    /// Returns whether the run has met everything that it is about.
    pub(crate) fn is_rich(self, store: Store) -> bool {
        let Self { grants, takeovers, lost_takeovers, fenced, snapshots, trims, .. } = self;
        let met = [grants, takeovers, lost_takeovers, fenced, snapshots, trims, self.clean_stops];
        let only_chained = store == Store::Created || (self.failovers > 0 && self.begun_again > 0);
        met.iter().all(|count| *count > 0) && only_chained
    }
}

/// What all machines and clients share.
pub(crate) struct World {
    pub(crate) log: MemoryLog,
    pub(crate) identity: ShardIdentity,
    pub(crate) store: Store,
    machines: Vec<Mutex<Machine>>,
    shared: Mutex<Shared>,
}

/// The part of the world that changes.
pub(crate) struct Shared {
    pub(crate) random: SeededRandom,
    pub(crate) clients: Clients,
    pub(crate) counts: Counts,
    /// The first violation.
    pub(crate) violation: Option<String>,
    is_held: bool,
    /// Whether faults are over.
    is_calm: bool,
}

impl World {
    /// Plays a seed; returns what happened, and the first violation.
    pub(crate) fn play(seed: u64, store: Store, steps: usize) -> (Counts, Option<String>) {
        let world = Self::new(seed, store);
        for _ in 0..steps {
            world.step();
            if world.shared().violation.is_some() {
                break;
            }
        }
        if world.shared().violation.is_none() {
            world.calm_down();
        }
        let shared = world.shared();
        (shared.counts, shared.violation.clone())
    }

    fn new(seed: u64, store: Store) -> Arc<Self> {
        let faults = Faults {
            lost_requests: 20,
            lost_answers: 20,
            late_duplicates: 30,
            delay_max_us: 20 * MS,
            late_max_us: 3_000 * MS,
            replication_max_us: 30 * MS,
            timeout_us: 300 * MS,
        };
        let guarantee = match store {
            Store::Chained => Guarantee::Chained,
            Store::Created => Guarantee::Created,
        };
        let identity = ShardIdentity::create(1, None, WALL_US, &mut SeededRandom(5));
        Arc::new_cyclic(|world: &Weak<Self>| {
            let machine = |index| Mutex::new(Machine::new(index, Weak::clone(world)));
            Self {
                log: MemoryLog::with_faults(guarantee, faults, seed),
                identity,
                store,
                machines: (0..MACHINES).map(machine).collect(),
                shared: Mutex::new(Shared {
                    random: SeededRandom(seed ^ 0x5eed),
                    clients: Clients::default(),
                    counts: Counts::default(),
                    violation: None,
                    is_held: false,
                    is_calm: false,
                }),
            }
        })
    }

    /// The changing part; never held while a machine acts.
    pub(crate) fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.shared().random.below(bound)
    }

    pub(crate) fn now_us(&self) -> u64 {
        self.log.now_us()
    }

    pub(crate) fn note(&self, violation: String) {
        self.shared().violation.get_or_insert(violation);
    }

    /// Lets something happen: a machine acts, time passes, or the store has a fault.
    fn step(&self) {
        self.store_fault();
        let us = self.below(300) * MS;
        self.log.advance_to(self.now_us() + us);
        self.machine_acts();
    }

    fn machine_acts(&self) {
        let index = usize::try_from(self.below(MACHINES as u64)).unwrap();
        // A machine that waits for the store cannot act.
        if let Ok(mut machine) = self.machines[index].try_lock() {
            machine.act(self);
        }
    }

    fn store_fault(&self) {
        if self.shared().is_calm {
            return;
        }
        match self.below(60) {
            0 if self.store == Store::Chained => {
                self.shared().counts.failovers += 1;
                self.log.fail_over();
            }
            1 => self.log.restart(),
            2 => self.hold_replication(true),
            3..=8 => self.hold_replication(false),
            _ => {}
        }
    }

    fn hold_replication(&self, is_held: bool) {
        let mut shared = self.shared();
        if shared.is_held != is_held {
            shared.is_held = is_held;
            self.log.hold_replication(is_held);
        }
    }

    /// A call of this machine waits: time passes, and sometimes others act meanwhile, so that it
    /// looks as if the machine was paused.
    fn while_waiting(&self) {
        self.store_fault();
        let pause = match self.below(30) {
            _ if self.shared().is_calm => 0,
            0 => self.below(40),
            1..=4 => 1,
            _ => 0,
        };
        for _ in 0..pause {
            self.machine_acts();
            self.log.advance_to(self.now_us() + self.below(100) * MS);
        }
        let next_us = self.log.next_event_us().unwrap_or(self.now_us() + MS);
        self.log.advance_to(next_us.max(self.now_us()));
    }

    /// Ends all faults: a machine takes the shard over, and the clients find what was acknowledged.
    fn calm_down(&self) {
        self.hold_replication(false);
        self.shared().is_calm = true;
        let mut machine = Machine::new(MACHINES, self.machines[0].lock().unwrap().world.clone());
        if let Err(why) = machine.own_at_last(self) {
            self.note(why);
            return;
        }
        machine.check_acknowledged(self);
    }
}

/// Runs the calls of one machine.
#[derive(Clone)]
pub(crate) struct SimExecutor(pub(crate) Weak<World>);

impl Executor for SimExecutor {
    fn run<T>(&self, mut call: Call<'_, T>) -> T {
        let world = self.0.upgrade().expect("the world lives while a machine acts");
        loop {
            let mut context = Context::from_waker(Waker::noop());
            if let Poll::Ready(output) = call.as_mut().poll(&mut context) {
                return output;
            }
            world.while_waiting();
        }
    }
}

impl Patience for SimExecutor {
    fn wait(&mut self, attempt: u32, _: &LogError) -> bool {
        let world = self.0.upgrade().expect("the world lives while a machine acts");
        world.while_waiting();
        world.log.advance_to(world.now_us() + 50 * MS);
        let is_calm = world.shared().is_calm;
        is_calm || (attempt < 12 && world.below(12) > 0)
    }
}
