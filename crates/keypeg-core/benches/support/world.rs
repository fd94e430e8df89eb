//! A pool to play calls on, half of its keys leased: what the benches of the core measure.
//!
//! Each kind of call has a function of its own that holds nothing else, `counted_…`, never inlined:
//! `bench/cost` has callgrind count what is within. Knows no time of its own.

use keypeg_core::{
    AcquireOptions, Fact, IdHashKey, KeyId, KeyRef, LeaseId, Limits, Now, Policy, PolicyPatch,
    Pool, PoolName, Pools, RandomSource, Refusal, ReleaseOptions, SharedState, StepContext,
};
use keypeg_testkit::ScaledRandom as Rng;
use std::hint::black_box;

/// Keys that one call makes while a pool grows.
const BATCH: u32 = 10_000;
/// Ids kept to name keys by.
const NAMED: u32 = 400_000;

/// What plays all calls of one kind.
pub(crate) type Play = fn(&mut World);

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

/// A pool and what a bench needs to play with it.
pub(crate) struct World {
    pools: Pools,
    name: PoolName,
    now: Now,
    rng: Rng,
    /// Some of the ids, to name keys by.
    ids: Vec<KeyId>,
    calls: usize,
    leases: Vec<LeaseId>,
    named: Vec<KeyRef>,
}

impl World {
    pub(crate) fn new() -> Self {
        let limits = Limits { pools: 1, keys: 20_000_000 };
        let mut world = Self {
            pools: Pools::new(IdHashKey::new([1; 32]), limits, 1),
            name: PoolName::default_pool(),
            now: Now { wall_us: 1_700_000_000_000_000, ..Now::default() },
            rng: Rng::new(1),
            ids: vec![KeyId(1); 2 * NAMED as usize],
            calls: 0,
            leases: Vec::new(),
            named: Vec::new(),
        };
        // Taken and touched before memory is measured.
        world.ids.clear();
        world.policy(PolicyPatch { lease_ttl_ms: Some(604_800_000), ..PolicyPatch::default() });
        world
    }

    fn step<T>(
        &mut self,
        play: impl FnOnce(&mut Pools, &mut StepContext<'_>, &PoolName) -> T,
    ) -> T {
        // No two calls at the same instant: every deadline is another one.
        self.now.lease_us += 1;
        self.now.serving_us += 1;
        let mut sink = |fact: &Fact<'_>| {
            black_box(fact);
        };
        let (now, random, facts) = (self.now, &mut self.rng, &mut sink);
        let mut step = StepContext { now, random, facts, budget: u32::MAX, ended_by_time: false };
        play(&mut self.pools, &mut step, &self.name)
    }

    fn on<T>(
        &mut self,
        play: impl FnOnce(&mut Pool, &mut SharedState, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> T {
        self.step(|pools, step, name| pools.with_pool(name, step, play))
            .expect("a call that is granted")
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
            let keys = self.on(|pool, ledger, step| pool.generate(ledger, step, count));
            let every = size.div_ceil(NAMED) as usize;
            self.ids.extend(keys.iter().step_by(every).map(|key| key.id));
            left -= count;
        }
    }

    /// Lends half of the keys.
    pub(crate) fn lend_half(&mut self, size: u32) {
        for _ in 0..size / 2 {
            self.acquire();
        }
    }

    fn acquire(&mut self) -> LeaseId {
        self.on(|pool, ledger, step| pool.acquire(ledger, step, &AcquireOptions::default()))
            .lease
            .id
    }

    fn draw(&mut self, take: impl FnOnce(&mut Vec<KeyId>, usize) -> KeyId) -> KeyId {
        let at = self.rng.below(u32::try_from(self.ids.len()).expect("few")) as usize;
        take(&mut self.ids, at)
    }

    /// Plays so many calls of each kind and tells each kind's name and play to `measure`; the pool is
    /// as large after as before.
    pub(crate) fn round(&mut self, calls: usize, mut measure: impl FnMut(&mut Self, Play)) {
        self.calls = calls;
        measure(self, Self::counted_acquire);
        for at in (1..calls).rev() {
            let other = self.rng.below(u32::try_from(at + 1).expect("few"));
            self.leases.swap(at, other as usize);
        }
        measure(self, Self::counted_release);
        self.named = (0..calls).map(|_| KeyRef::Id(self.draw(|ids, at| ids[at]))).collect();
        measure(self, Self::counted_keep_alive);
        self.named = (0..calls).map(|_| KeyRef::Id(self.draw(Vec::swap_remove))).collect();
        measure(self, Self::counted_delete);
        measure(self, Self::counted_generate);
        let wish = AcquireOptions { ttl_ms: Some(1_000), ..AcquireOptions::default() };
        for _ in 0..calls {
            self.on(|pool, ledger, step| pool.acquire(ledger, step, &wish));
        }
        self.now.lease_us += 1_000_000;
        measure(self, Self::counted_expire);
        self.doom();
        measure(self, Self::counted_purge);
        measure(self, Self::counted_keep_alive_all);
        self.lease_again();
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
            self.on(|pool, ledger, step| {
                pool.release(ledger, step, lease, &ReleaseOptions::default())
            });
        }
    }

    #[inline(never)]
    fn counted_keep_alive(&mut self) {
        for key in std::mem::take(&mut self.named) {
            self.on(|pool, ledger, step| pool.keep_alive(ledger, step, &key));
        }
    }

    #[inline(never)]
    fn counted_delete(&mut self) {
        for key in std::mem::take(&mut self.named) {
            self.on(|pool, ledger, step| pool.delete(ledger, step, &key));
        }
    }

    #[inline(never)]
    fn counted_generate(&mut self) {
        for _ in 0..self.calls {
            let keys = self.on(|pool, ledger, step| pool.generate(ledger, step, 1));
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
            black_box(self.on(Pool::keep_alive_all));
        }
    }

    /// Makes keys that live for a second, and lets it pass.
    fn doom(&mut self) {
        let short = Some(Some(1_000));
        self.policy(PolicyPatch { keepalive_ttl_ms: short, ..PolicyPatch::default() });
        for _ in 0..self.calls {
            self.on(|pool, ledger, step| pool.generate(ledger, step, 1));
        }
        let long = Some(Some(604_800_000));
        self.policy(PolicyPatch { keepalive_ttl_ms: long, ..PolicyPatch::default() });
        self.now.serving_us += 1_000_000;
    }

    /// Brings the pool back to half of its keys leased.
    fn lease_again(&mut self) {
        let counts = self.pools.get(&self.name).expect("the pool").counts();
        for _ in counts.leased..counts.total() / 2 {
            self.acquire();
        }
    }
}
