//! Work is bounded: a step ends no more than its budget and the keys it names, pools take turns,
//! and a pool that grows and shrinks by many keys stays consistent.
//!
//! Also tests that a step reports whether time ended a lease or a rest in it, which leaves no fact.

use keypeg_core::{
    AcquireOptions, Fact, IdHashKey, ImportOptions, KeyId, KeyRef, LeaseId, Limits, NextDue, Now,
    Policy, PolicyPatch, Pool, PoolName, Pools, RandomSource, Refusal, ReleaseOptions, Released,
    Secret, SharedState, StepContext,
};
use keypeg_testkit::ScaledRandom;

#[derive(Clone)]
struct World {
    pools: Pools,
    now: Now,
    random: ScaledRandom,
    budget: u32,
    /// The rest of the budget, the purges and the flag of the last step.
    left: u32,
    purged: usize,
    ended_by_time: bool,
}

impl World {
    fn new() -> Self {
        let limits = Limits {
            pools: 3_000,
            keys: 1_000_000,
            bytes: u64::MAX,
            answers: keypeg_core::ANSWERS_MAX,
        };
        let mut world = Self {
            pools: Pools::new(IdHashKey::new([1; 32]), limits, 1),
            now: Now::default(),
            random: ScaledRandom::new(1),
            budget: 0,
            left: 0,
            purged: 0,
            ended_by_time: false,
        };
        world.pool("default", PolicyPatch::default());
        world
    }

    fn step<T>(&mut self, apply: impl FnOnce(&mut Pools, &mut StepContext<'_>) -> T) -> T {
        let mut purged = 0;
        let mut sink =
            |fact: &Fact<'_>| purged += usize::from(matches!(fact, Fact::KeyPurged { .. }));
        let (now, random, facts) = (self.now, &mut self.random, &mut sink);
        let mut step =
            StepContext { now, random, facts, budget: self.budget, ended_by_time: false };
        let result = apply(&mut self.pools, &mut step);
        (self.left, self.ended_by_time) = (step.budget, step.ended_by_time);
        self.purged = purged;
        result
    }

    fn pool(&mut self, name: &str, patch: PolicyPatch) {
        let put = self.step(|pools, step| {
            pools.create_or_update(step, &pool_name(name), &Policy::default(), patch)
        });
        assert!(put.is_ok());
    }

    fn with_pool<T>(
        &mut self,
        name: &str,
        apply: impl FnOnce(&mut Pool, &mut SharedState, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        self.step(|pools, step| pools.with_pool(&pool_name(name), step, apply))
    }

    fn generate(&mut self, name: &str, count: u32) -> Vec<KeyId> {
        let keys = self.with_pool(name, |pool, shared, step| pool.generate(shared, step, count));
        keys.expect("room").into_iter().map(|key| key.id).collect()
    }

    fn acquire(&mut self, name: &str) -> (KeyId, LeaseId) {
        let granted = self.with_pool(name, |pool, shared, step| {
            pool.acquire(shared, step, &AcquireOptions::default())
        });
        let lease = granted.expect("an available key").lease;
        (lease.key_id, lease.id)
    }

    fn leased(&self, name: &str) -> u64 {
        self.pools.get(&pool_name(name)).expect("a pool").counts().leased
    }

    fn expire(&mut self) -> bool {
        self.step(Pools::expire)
    }
}

fn pool_name(name: &str) -> PoolName {
    PoolName::parse(name).expect("a name")
}

type Call = fn(&mut Pool, &mut SharedState, &mut StepContext<'_>, &[KeyId], LeaseId) -> bool;

/// Every call, with the number of keys that it names; the first three keys are named.
const CALLS: [(&str, usize, Call); 11] = [
    ("generate", 0, |pool, shared, step, _, _| pool.generate(shared, step, 5).is_ok()),
    ("import", 1, |pool, shared, step, _, _| {
        let values = [Secret::new("v").expect("a value")];
        pool.import(shared, step, &values, ImportOptions::default(), None).is_ok()
    }),
    ("acquire", 0, |pool, shared, step, _, _| {
        pool.acquire(shared, step, &AcquireOptions::default()).is_ok()
    }),
    ("renew", 1, |pool, shared, step, _, lease| pool.renew(shared, step, lease, None).is_ok()),
    ("release", 1, |pool, shared, step, _, lease| {
        pool.release(shared, step, lease, &ReleaseOptions::default()).is_ok()
    }),
    ("force_release", 1, |pool, shared, step, keys, _| {
        pool.force_release(shared, step, &KeyRef::Id(keys[0])).is_ok()
    }),
    ("keep_alive", 1, |pool, shared, step, keys, _| {
        pool.keep_alive(shared, step, &KeyRef::Id(keys[0])).is_ok()
    }),
    ("keep_alive_many", 3, |pool, shared, step, keys, _| {
        pool.keep_alive_many(shared, step, &keys[..3]).is_ok_and(|answer| answer.kept > 0)
    }),
    ("keep_alive_all", 0, |pool, shared, step, _, _| pool.keep_alive_all(shared, step).is_ok()),
    ("delete", 1, |pool, shared, step, keys, _| {
        pool.delete(shared, step, &KeyRef::Id(keys[0])).is_ok()
    }),
    ("get_key", 1, |pool, shared, step, keys, _| {
        pool.get_key(shared, step, &KeyRef::Id(keys[0])).is_ok()
    }),
];

#[test]
fn no_call_ends_more_leases_than_its_budget_and_what_it_names() {
    let mut world = World::new();
    world.generate("default", 100);
    let leases: Vec<(KeyId, LeaseId)> = (0..100).map(|_| world.acquire("default")).collect();
    let keys: Vec<KeyId> = leases.iter().map(|lease| lease.0).collect();
    world.now.lease_us += 60_000_000;
    for (name, names, call) in CALLS {
        for budget in [0, 1, 10, 1_000] {
            let mut world = World { budget, ..world.clone() };
            let _ = world.with_pool("default", |pool, shared, step| {
                Ok(call(pool, shared, step, &keys, leases[0].1))
            });
            let granted = u64::from(name == "acquire" && budget > 0);
            let ended = usize::try_from(100 + granted - world.leased("default")).expect("few");
            let spent = (budget - world.left) as usize;
            assert!(ended <= spent + names, "{name} ended {ended} with a budget of {budget}");
            assert_eq!(world.ended_by_time, ended > 0, "{name} reports whether time ended a lease");
        }
    }
}

#[test]
fn no_call_ends_more_keys_than_its_budget_and_what_it_names() {
    let mut world = World::new();
    world.generate("default", 100);
    let (first, lease) = world.acquire("default");
    let mut keys = world.generate("default", 3);
    keys.insert(0, first);
    world.now.serving_us += 300_000_000;
    for (name, names, call) in CALLS {
        for budget in [0, 1, 10, 1_000] {
            let mut world = World { budget, ..world.clone() };
            let _ = world.with_pool("default", |pool, shared, step| {
                Ok(call(pool, shared, step, &keys, lease))
            });
            let spent = (budget - world.left) as usize;
            assert!(world.purged <= spent + names, "{name} purged {} of {budget}", world.purged);
            assert!(!world.ended_by_time, "{name}: a purge is a fact and needs no flag");
        }
    }
}

#[test]
fn expire_spends_its_whole_budget_and_no_more() {
    let mut world = World::new();
    world.generate("default", 1_000);
    for _ in 0..1_000 {
        world.acquire("default");
    }
    assert!(!world.expire(), "nothing is due");
    world.now.lease_us += 60_000_000;
    world.budget = 300;
    for left in [700, 400, 100] {
        assert!(world.expire(), "more is due");
        assert!(world.ended_by_time, "no fact contains it, so the step must");
        assert_eq!((world.leased("default"), world.left), (left, 0));
        assert_eq!(
            world.pools.next_due(),
            NextDue { lease_us: Some(0), serving_us: Some(0) },
            "the rest is due at once"
        );
    }
    assert!(!world.expire() && world.ended_by_time);
    assert_eq!((world.leased("default"), world.left), (0, 200));
    assert!(!world.expire() && !world.ended_by_time);
    assert_eq!(world.pools.next_due(), NextDue { lease_us: None, serving_us: Some(300_000_000) });
}

#[test]
fn a_pool_with_a_backlog_delays_no_other() {
    let mut world = World::new();
    world.generate("default", 5_000);
    for name in ["a", "b", "c"] {
        world.pool(name, PolicyPatch::default());
        world.generate(name, 2);
    }
    world.now.serving_us += 300_000_000;
    world.budget = 300;
    assert!(world.expire());
    for name in ["a", "b", "c"] {
        let left = world.pools.get(&pool_name(name)).expect("a pool").counts().total();
        assert_eq!(left, 0, "{name} had its turn");
    }
}

/// The entry of a pool that was deleted with a backlog is reused: its old index in the rotation
/// must neither apply to the new pool nor stay in the rotation.
/// Leases of ten thousand pools ended at the same instant, and one turn looked at all these pools.
#[test]
fn few_of_many_due_pools_are_expired_in_one_step_and_all_in_some() {
    let mut world = World::new();
    let names: Vec<_> = (0..2_500).map(|number| format!("pool-{number}")).collect();
    for name in &names {
        world.pool(name, PolicyPatch::default());
        world.generate(name, 1);
        world.acquire(name);
    }
    world.now.lease_us += 60_000_000;
    world.budget = u32::MAX;
    let mut left = names.len();
    while left > 0 {
        let due = world.pools.next_due().lease_us.expect("leases are due");
        assert!(due <= world.now.lease_us, "the next step follows at once");
        world.expire();
        let leased = names.iter().filter(|name| world.leased(name) > 0).count();
        assert!(left - leased <= 1_024 && leased < left, "{leased} of {left} are left");
        left = leased;
    }
    world.pools.check_invariants();
}

#[test]
fn a_pool_deleted_with_a_backlog_leaves_nothing_behind() {
    let mut world = World::new();
    world.pool("a", PolicyPatch::default());
    world.generate("a", 1_000);
    world.now.serving_us += 300_000_000;
    world.budget = 10;
    assert!(world.expire());
    let deleted = world.step(|pools, step| pools.remove(step, &pool_name("a")));
    assert_eq!(deleted.expect("it existed").counts().total(), 990);
    assert_eq!(world.pools.key_count(), 0);
    world.pool("b", PolicyPatch::default());
    world.generate("b", 20);
    world.generate("default", 20);
    assert!(!world.expire());
    assert_eq!(world.left, 10);
    assert_eq!(world.pools.next_due(), NextDue { lease_us: None, serving_us: Some(600_000_000) });
    world.now.serving_us += 300_000_000;
    for _ in 0..3 {
        assert!(world.expire());
    }
    assert!(!world.expire());
    assert_eq!((world.pools.key_count(), world.left), (0, 0));
    world.pools.check_invariants();
}

/// Far beyond the edges of chunks, and of shards and levels of the index.
#[test]
fn a_pool_that_grows_and_shrinks_by_many_keys_stays_consistent() {
    let mut world = World::new();
    world.budget = 100_000;
    let mut keys = vec![];
    for _ in 0..3 {
        for _ in 0..6 {
            keys.extend(world.generate("default", 2_000));
        }
        let leases: Vec<(KeyId, LeaseId)> = (0..6_000).map(|_| world.acquire("default")).collect();
        world.pools.check_invariants();
        for (index, (_, lease)) in leases.into_iter().enumerate() {
            if index % 3 > 0 {
                let result = world.with_pool("default", |pool, shared, step| {
                    pool.release(shared, step, lease, &ReleaseOptions::default())
                });
                assert_eq!(result, Ok(Released::default()));
            }
        }
        while keys.len() > 1_000 {
            let index = world.random.below(u32::try_from(keys.len()).expect("few")) as usize;
            let key = KeyRef::Id(keys.swap_remove(index));
            let result =
                world.with_pool("default", |pool, shared, step| pool.delete(shared, step, &key));
            assert_eq!(result, Ok(Released::default()));
        }
        world.pools.check_invariants();
    }
    for key in &keys {
        let view = world.with_pool("default", |pool, shared, step| {
            pool.get_key(shared, step, &KeyRef::Id(*key))
        });
        assert_eq!(view.map(|view| view.id), Ok(*key));
    }
    world.now.serving_us += 300_000_000;
    assert!(!world.expire());
    assert_eq!((world.purged, world.pools.key_count()), (1_000, 0));
    world.pools.check_invariants();
}
