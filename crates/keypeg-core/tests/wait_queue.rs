//! Waiting for a key with random calls: first come, first served; a step that makes a key available
//! grants it in the same step; no waiter is refused early or wrongly, unless the pool drains. The tables are in
//! `keypeg-testkit/scripts/waiting.rs`.

#[path = "support/journal.rs"]
mod journal;
#[path = "support/world.rs"]
mod world;

use keypeg_core::{
    AcquireOptions, Borrower, Fact, Granted, IdHashKey, KeyId, KeyRef, LeaseId, Limits, NoKeyCause,
    Now, Policy, PolicyPatch, Pool, PoolName, Pools, RandomSource, Refusal, ReleaseOptions,
    SharedState, StepContext, US_PER_MS, WAITERS_MAX, WaitOptions, WaitOutcome, WaiterId,
};
use keypeg_testkit::ScaledRandom;
use std::collections::{HashMap, VecDeque};
use world::check;

/// With more due than the budget, no waiter is refused while a key is available.
#[test]
fn with_an_expiry_backlog_no_waiter_is_refused_early() {
    check(
        "
        generate a b c d
        acquire A ttl=10s
        acquire B ttl=10s
        acquire C ttl=10s
        acquire D ttl=10s
        wait one for=5s
        tick 10s
        budget 0
        expire
        got one               -> nothing
        budget 1
        expire
        got one               -> granted waited=10s
        ",
    );
}

/// A waiting request.
struct Waiting {
    waiter_id: WaiterId,
    since_us: u64,
    until_us: u64,
}

struct Run {
    pools: Pools,
    random: ScaledRandom,
    now: Now,
    next_waiter: u64,
    /// The expected wait queue.
    queue: VecDeque<Waiting>,
    /// The running leases and their ends.
    leases: HashMap<KeyId, (LeaseId, u64)>,
    keys: Vec<KeyId>,
    served: usize,
    refused: usize,
    /// Whether the pool drains now and then.
    drains: bool,
    draining: bool,
    /// Waiters that were refused because the pool was draining.
    drained: usize,
}

fn options() -> AcquireOptions<'static> {
    AcquireOptions { borrower: Borrower::new("ci", None), ..AcquireOptions::default() }
}

impl Run {
    fn new(seed: u64) -> Self {
        let limits =
            Limits { pools: 3, keys: 1_000, bytes: u64::MAX, answers: keypeg_core::ANSWERS_MAX };
        let mut run = Self {
            pools: Pools::new(IdHashKey::new([3; 32]), limits, 1),
            random: ScaledRandom::new(seed),
            now: Now::default(),
            next_waiter: 0,
            queue: VecDeque::new(),
            leases: HashMap::new(),
            keys: vec![],
            served: 0,
            refused: 0,
            drains: false,
            draining: false,
            drained: 0,
        };
        let policy = Policy { lease_ttl_ms: 50, keepalive_ttl_ms: None, ..Policy::default() };
        let (name, patch) = (PoolName::default_pool(), PolicyPatch::default());
        run.step(|pools, step| pools.create_or_update(step, &name, &policy, patch)).expect("room");
        run
    }

    fn step<T>(&mut self, apply: impl FnOnce(&mut Pools, &mut StepContext<'_>) -> T) -> T {
        let budget = [0, 1, 2, 1_000][self.random.below(4) as usize];
        let mut sink = |_: &Fact<'_>| {};
        let (now, random, facts) = (self.now, &mut self.random, &mut sink);
        let mut step = StepContext { now, random, facts, budget, ended_by_time: false };
        let result = apply(&mut self.pools, &mut step);
        let outcomes: Vec<_> = self.pools.drain_wait_outcomes().collect();
        for outcome in outcomes {
            self.check_outcome(outcome);
        }
        result
    }

    fn with_pool<T>(
        &mut self,
        apply: impl FnOnce(&mut Pool, &mut SharedState, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        self.step(|pools, step| pools.with_pool(&PoolName::default_pool(), step, apply))
    }

    fn check_outcome(&mut self, outcome: WaitOutcome) {
        match outcome.outcome {
            Ok(granted) => {
                assert!(!self.draining, "granted while the pool drains");
                let first = self.queue.pop_front().expect("a request waits");
                assert_eq!(outcome.waiter_id, first.waiter_id, "first come, first served");
                let waited_us = self.now.lease_us - first.since_us;
                assert_eq!(granted.waited_ms, waited_us / US_PER_MS);
                self.lease(granted.lease.key_id, granted.lease.id);
                self.served += 1;
            }
            Err(Refusal::NoKey { cause: NoKeyCause::Draining, next_hold_end_in_ms, .. }) => {
                assert!(self.draining, "the pool does not drain");
                assert_eq!(next_hold_end_in_ms, None, "no lease's end makes a key available");
                let first = self.queue.pop_front().expect("a request waits");
                assert_eq!(outcome.waiter_id, first.waiter_id, "refused in order");
                self.drained += 1;
            }
            Err(refusal) => {
                let is_refused = |waiting: &Waiting| waiting.waiter_id == outcome.waiter_id;
                let index = self.queue.iter().position(is_refused).expect("the request waits");
                let refused = self.queue.remove(index).expect("within");
                assert!(refused.until_us <= self.now.lease_us, "refused before its deadline");
                let Refusal::NoKey { counts, .. } = refusal else { panic!("{refusal:?}") };
                assert_eq!(counts.available, 0, "refused while a key is available");
                self.refused += 1;
            }
        }
    }

    fn lease(&mut self, key: KeyId, lease: LeaseId) {
        let until = self.now.lease_us + 50 * US_PER_MS;
        let before = self.leases.insert(key, (lease, until));
        assert!(before.is_none_or(|(_, until)| until <= self.now.lease_us), "leased twice");
    }

    /// With a borrower, so that the invariants count its leases and waits.
    fn acquire(&mut self, wait_ms: u64) {
        let waiter_id = WaiterId(self.next_waiter);
        self.next_waiter += 1;
        let granted = self.with_pool(|pool, shared, step| {
            pool.acquire_or_wait(shared, step, &options(), WaitOptions { waiter_id, wait_ms })
        });
        match granted {
            Ok(Some(Granted { lease, .. })) => {
                assert!(!self.draining, "granted while the pool drains");
                assert!(self.queue.is_empty(), "a new request was served before the waiters");
                self.lease(lease.key_id, lease.id);
            }
            Ok(None) => {
                assert!(!self.draining, "waits while the pool drains");
                let since_us = self.now.lease_us;
                let until_us = since_us + wait_ms * US_PER_MS;
                self.queue.push_back(Waiting { waiter_id, since_us, until_us });
            }
            Err(Refusal::NoKey { cause, .. }) => {
                assert_eq!(cause == NoKeyCause::Draining, self.draining);
                assert!(wait_ms == 0 || self.draining, "it waits instead");
            }
            Err(refusal) => assert_eq!(refusal, Refusal::Settling),
        }
    }

    fn set_draining(&mut self, draining: bool) {
        self.draining = draining;
        let patch = PolicyPatch { draining: Some(draining), ..PolicyPatch::default() };
        let (name, policy) = (PoolName::default_pool(), Policy::default());
        self.step(|pools, step| pools.create_or_update(step, &name, &policy, patch))
            .expect("a valid change");
    }

    fn random_call(&mut self) {
        match self.random.below(if self.drains { 22 } else { 20 }) {
            0..6 => self.acquire(0),
            6..11 => {
                let wait_ms = u64::from(self.random.below(40)) + 1;
                self.acquire(wait_ms);
            }
            11..13 => {
                let by = [1, 999, 1_000, 5_000, 20_000][self.random.below(5) as usize];
                self.now.lease_us += by;
            }
            13 if self.keys.len() < 20 => {
                let count = self.random.below(3) + 1;
                let created =
                    self.with_pool(|pool, shared, step| pool.generate(shared, step, count));
                self.keys.extend(created.iter().flatten().map(|key| key.id));
            }
            14 if !self.keys.is_empty() => {
                let index =
                    self.random.below(u32::try_from(self.keys.len()).expect("few")) as usize;
                let key = KeyRef::Id(self.keys.swap_remove(index));
                self.with_pool(|pool, shared, step| pool.delete(shared, step, &key))
                    .expect("exists");
            }
            15 if !self.queue.is_empty() => {
                let index =
                    self.random.below(u32::try_from(self.queue.len()).expect("few")) as usize;
                let Waiting { waiter_id, .. } = self.queue.remove(index).expect("within");
                assert!(self.pools.cancel_wait(waiter_id));
                assert!(!self.pools.cancel_wait(waiter_id));
            }
            16 => {
                self.step(Pools::expire);
            }
            20 | 21 => {
                let draining = self.random.below(4) == 0;
                self.set_draining(draining);
            }
            _ => {
                let Some((&key, &(lease, until))) = self.leases.iter().next() else { return };
                // Removed before the step, in which a waiter may get the key.
                self.leases.remove(&key);
                let ended = self.with_pool(|pool, shared, step| {
                    pool.release(shared, step, lease, &ReleaseOptions::default())
                });
                assert!(ended.is_ok() || until <= self.now.lease_us || !self.keys.contains(&key));
            }
        }
    }

    /// Ends everything that is due, and checks what is left.
    fn expire_all(&mut self) {
        while self.step(Pools::expire) {}
        let counts = {
            let pool = self.pools.get(&PoolName::default_pool()).expect("exists");
            assert_eq!(pool.waiter_count(), self.queue.len() as u64);
            pool.counts()
        };
        assert!(self.queue.is_empty() || !self.draining, "a request waits while the pool drains");
        assert!(
            self.queue.is_empty() || counts.available == 0,
            "a request waits while a key is available"
        );
        assert!(
            self.queue.iter().all(|waiting| waiting.until_us > self.now.lease_us),
            "refused in time"
        );
        assert_eq!(self.pools.waiter_count(), self.queue.len());
        self.pools.check_invariants();
    }
}

#[test]
fn random_calls_are_served_in_order() {
    let (mut served, mut refused, mut drained) = (0, 0, 0);
    for seed in 0..150 {
        let mut run = Run::new(seed);
        run.drains = seed >= 100;
        for step in 0..600 {
            run.random_call();
            if step % 5 == 0 {
                run.expire_all();
            }
        }
        (served, refused) = (served + run.served, refused + run.refused);
        drained += run.drained;
    }
    assert!(served > 2_000 && refused > 1_000, "{served} served, {refused} refused");
    assert!(drained > 300, "{drained} refused because the pool was draining");
}

#[test]
fn waiting_requests_are_limited_over_all_pools() {
    let mut run = Run::new(1);
    let (limit, next) = (WAITERS_MAX as u64, WaiterId(WAITERS_MAX as u64));
    for _ in 0..limit {
        run.acquire(1_000);
    }
    let wait = |run: &mut Run, waiter_id| {
        run.with_pool(|pool, shared, step| {
            let wait = WaitOptions { waiter_id, wait_ms: 1_000 };
            pool.acquire_or_wait(shared, step, &options(), wait)
        })
    };
    assert_eq!(wait(&mut run, next), Err(Refusal::WaitQueueFull { max: WAITERS_MAX }));
    assert!(run.pools.cancel_wait(WaiterId(0)));
    assert_eq!(wait(&mut run, next), Ok(None));
    let mut cancelled = 0;
    run.pools.cancel_all_waits(|_| cancelled += 1);
    assert_eq!((cancelled, run.pools.waiter_count()), (WAITERS_MAX, 0));
    run.pools.check_invariants();
}
