//! The pool that the benchmarks of the core measure: half of its keys are leased.
//!
//! Each kind of call has its own function `counted_…`, which contains nothing else and is never
//! inlined: `bench/cost` lets callgrind count the instructions in it. Reads no clock.

use keypeg_core::{
    AcquireOptions, Fact, IdHashKey, KeyId, KeyRef, LeaseId, Limits, Now, Policy, PolicyPatch,
    Pool, PoolName, Pools, RandomSource, Refusal, ReleaseOptions, SharedState, StepContext,
};
use keypeg_testkit::ScaledRandom;
use std::hint::black_box;

/// Keys that one call creates while the pool grows.
const BATCH: u32 = 10_000;
/// Ids kept for naming keys in calls.
const NAMED: u32 = 400_000;
/// Leases whose end the core remembers.
const ENDED_LEASES: u32 = 1 << 16;

/// Executes all calls of one kind.
pub(crate) type Calls = fn(&mut World);

/// The kinds of calls, in the order of a round.
pub(crate) const KINDS: [&str; 8] = [
    "acquire",
    "release",
    "keep-alive",
    "delete",
    "generate",
    "expire a lease",
    "purge a key",
    "keep-alive of the whole pool",
];

/// A pool, and what a benchmark needs to call it.
pub(crate) struct World {
    pools: Pools,
    name: PoolName,
    now: Now,
    rng: ScaledRandom,
    /// Some of the ids, for naming keys in calls.
    ids: Vec<KeyId>,
    calls: usize,
    leases: Vec<LeaseId>,
    named: Vec<KeyRef>,
}

impl World {
    pub(crate) fn new() -> Self {
        let limits = Limits {
            pools: 1,
            keys: 20_000_000,
            bytes: u64::MAX,
            answers: keypeg_core::ANSWERS_MAX,
        };
        let mut world = Self {
            pools: Pools::new(IdHashKey::new([1; 32]), limits, 1),
            name: PoolName::default_pool(),
            now: Now { wall_us: 1_700_000_000_000_000, ..Now::default() },
            rng: ScaledRandom::new(1),
            ids: vec![KeyId(1); 2 * NAMED as usize],
            calls: 0,
            leases: Vec::new(),
            named: Vec::new(),
        };
        // Allocated and touched before memory is measured.
        world.ids.clear();
        world.policy(PolicyPatch { lease_ttl_ms: Some(604_800_000), ..PolicyPatch::default() });
        world
    }

    #[inline]
    fn step<T>(
        &mut self,
        apply: impl FnOnce(&mut Pools, &mut StepContext<'_>, &PoolName) -> T,
    ) -> T {
        // No two calls at the same instant: all deadlines differ.
        self.now.lease_us += 1;
        self.now.serving_us += 1;
        let mut sink = |fact: &Fact<'_>| {
            black_box(fact);
        };
        let (now, random, facts) = (self.now, &mut self.rng, &mut sink);
        let mut step = StepContext { now, random, facts, budget: u32::MAX, ended_by_time: false };
        apply(&mut self.pools, &mut step, &self.name)
    }

    #[inline]
    fn with_pool<T>(
        &mut self,
        apply: impl FnOnce(&mut Pool, &mut SharedState, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> T {
        self.step(|pools, step, name| pools.with_pool(name, step, apply))
            .expect("a call that succeeds")
    }

    fn policy(&mut self, patch: PolicyPatch) {
        let put = self.step(|pools, step, name| {
            pools.create_or_update(step, name, &Policy::default(), patch)
        });
        put.expect("a policy in range");
    }

    pub(crate) fn grow(&mut self, size: u32) {
        self.policy(PolicyPatch {
            keepalive_ttl_ms: Some(Some(604_800_000)),
            ..PolicyPatch::default()
        });
        let mut left = size;
        while left > 0 {
            let count = left.min(BATCH);
            let keys = self.with_pool(|pool, shared, step| pool.generate(shared, step, count));
            let every = size.div_ceil(NAMED) as usize;
            self.ids.extend(keys.iter().step_by(every).map(|key| key.id));
            left -= count;
        }
    }

    /// Leases half of the keys, after as many other leases as the server remembers the ends of: the
    /// record of these ends grows no more.
    pub(crate) fn lease_half(&mut self, size: u32) {
        for _ in 0..ENDED_LEASES {
            let lease = self.acquire();
            self.release(lease);
        }
        for _ in 0..size / 2 {
            self.acquire();
        }
    }

    fn acquire(&mut self) -> LeaseId {
        self.with_pool(|pool, shared, step| pool.acquire(shared, step, &AcquireOptions::default()))
            .lease
            .id
    }

    #[inline]
    fn release(&mut self, lease: LeaseId) {
        self.with_pool(|pool, shared, step| {
            pool.release(shared, step, lease, &ReleaseOptions::default())
        });
    }

    fn draw(&mut self, take: impl FnOnce(&mut Vec<KeyId>, usize) -> KeyId) -> KeyId {
        let index = self.rng.below(u32::try_from(self.ids.len()).expect("few")) as usize;
        take(&mut self.ids, index)
    }

    /// Passes a number of calls of each kind to `measure`, which executes them; the size of the
    /// pool is the same afterwards.
    pub(crate) fn round(&mut self, calls: usize, mut measure: impl FnMut(&mut Self, Calls)) {
        self.calls = calls;
        measure(self, Self::counted_acquire);
        for index in (1..calls).rev() {
            let other = self.rng.below(u32::try_from(index + 1).expect("few"));
            self.leases.swap(index, other as usize);
        }
        measure(self, Self::counted_release);
        self.named = (0..calls).map(|_| KeyRef::Id(self.draw(|ids, index| ids[index]))).collect();
        measure(self, Self::counted_keep_alive);
        self.named = (0..calls).map(|_| KeyRef::Id(self.draw(Vec::swap_remove))).collect();
        measure(self, Self::counted_delete);
        measure(self, Self::counted_generate);
        let options = AcquireOptions { ttl_ms: Some(1_000), ..AcquireOptions::default() };
        for _ in 0..calls {
            self.with_pool(|pool, shared, step| pool.acquire(shared, step, &options));
        }
        self.now.lease_us += 1_000_000;
        measure(self, Self::counted_expire);
        self.add_due_keys();
        measure(self, Self::counted_purge);
        measure(self, Self::counted_keep_alive_all);
        self.restore_leases();
    }

    #[inline(never)]
    fn counted_acquire(&mut self) {
        self.leases.clear();
        for _ in 0..self.calls {
            let lease = self.acquire();
            self.leases.push(lease);
        }
    }

    #[inline(never)]
    fn counted_release(&mut self) {
        for lease in std::mem::take(&mut self.leases) {
            self.release(lease);
        }
    }

    #[inline(never)]
    fn counted_keep_alive(&mut self) {
        for key in std::mem::take(&mut self.named) {
            self.with_pool(|pool, shared, step| pool.keep_alive(shared, step, &key));
        }
    }

    #[inline(never)]
    fn counted_delete(&mut self) {
        for key in std::mem::take(&mut self.named) {
            self.with_pool(|pool, shared, step| pool.delete(shared, step, &key));
        }
    }

    #[inline(never)]
    fn counted_generate(&mut self) {
        for _ in 0..self.calls {
            let keys = self.with_pool(|pool, shared, step| pool.generate(shared, step, 1));
            self.ids.push(keys[0].id);
        }
    }

    /// Ends the leases that are due, in one step.
    #[inline(never)]
    fn counted_expire(&mut self) {
        assert!(!self.step(|pools, step, _| pools.expire(step)));
    }

    /// Purges the keys that are due, in one step.
    #[inline(never)]
    fn counted_purge(&mut self) {
        assert!(!self.step(|pools, step, _| pools.expire(step)));
    }

    #[inline(never)]
    fn counted_keep_alive_all(&mut self) {
        for _ in 0..self.calls {
            black_box(self.with_pool(Pool::keep_alive_all));
        }
    }

    /// Creates keys with a keep-alive TTL of a second, and advances the clock by it.
    fn add_due_keys(&mut self) {
        let short = Some(Some(1_000));
        self.policy(PolicyPatch { keepalive_ttl_ms: short, ..PolicyPatch::default() });
        for _ in 0..self.calls {
            self.with_pool(|pool, shared, step| pool.generate(shared, step, 1));
        }
        let long = Some(Some(604_800_000));
        self.policy(PolicyPatch { keepalive_ttl_ms: long, ..PolicyPatch::default() });
        self.now.serving_us += 1_000_000;
    }

    /// Leases keys until half of them are leased, as before.
    fn restore_leases(&mut self) {
        let counts = self.pools.get(&self.name).expect("the pool").counts();
        for _ in counts.leased..counts.total() / 2 {
            self.acquire();
        }
    }
}
