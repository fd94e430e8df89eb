//! Listings: a key that is there all the while is listed exactly once, whatever comes and goes
//! meanwhile; a page looks at a bounded number of keys; a cursor is of one pool and one run.

use keypeg_core::{
    AcquireOptions, Cursor, Fact, IdHashKey, KeyId, KeyPage, KeyRef, KeyState, Limits, ListOptions,
    Now, Policy, PolicyPatch, Pool, PoolName, Pools, RandomSource, Refusal, ReleaseOptions,
    SharedState, StepContext, US_PER_S,
};
use keypeg_testkit::ScaledRandom as Rng;
use std::collections::HashMap;

struct World {
    pools: Pools,
    now: Now,
    random: Rng,
    facts: usize,
}

impl World {
    fn new() -> Self {
        let limits = Limits { pools: 10, keys: 1_000_000 };
        let pools = Pools::new(IdHashKey::new([1; 32]), limits, 1);
        let mut world = Self { pools, now: Now::default(), random: Rng::new(1), facts: 0 };
        for name in ["default", "other"] {
            world.step(|pools, step| {
                let policy = Policy { keepalive_ttl_ms: None, ..Policy::default() };
                pools
                    .create_or_update(step, &named(name), &policy, PolicyPatch::default())
                    .expect("room")
            });
        }
        world
    }

    fn step<T>(&mut self, play: impl FnOnce(&mut Pools, &mut StepContext<'_>) -> T) -> T {
        let facts = &mut self.facts;
        let mut sink = |_: &Fact<'_>| *facts += 1;
        let (now, random, facts) = (self.now, &mut self.random, &mut sink);
        let mut step = StepContext { now, random, facts, budget: 100, ended_by_time: false };
        play(&mut self.pools, &mut step)
    }

    fn on<T>(
        &mut self,
        name: &str,
        play: impl FnOnce(&mut Pool, &mut SharedState, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        self.step(|pools, step| pools.with_pool(&named(name), step, play))
    }

    fn generate(&mut self, count: u32) -> Vec<KeyId> {
        let keys = self.on("default", |pool, ledger, step| pool.generate(ledger, step, count));
        keys.expect("room").iter().map(|key| key.id).collect()
    }

    fn page(
        &mut self,
        name: &str,
        state: Option<KeyState>,
        limit: usize,
        cursor: Option<Cursor>,
    ) -> Result<KeyPage, Refusal> {
        self.on(name, |pool, ledger, step| {
            pool.list_keys(ledger, step, ListOptions { state, limit, cursor })
        })
    }

    /// One random change of any key but those that stay.
    fn change(&mut self, passing: &mut Vec<KeyId>) {
        match self.random.below(6) {
            0 => passing.extend(self.generate(1)),
            1 if !passing.is_empty() => {
                let at = self.random.below(u32::try_from(passing.len()).expect("small"));
                let key = KeyRef::Id(passing.swap_remove(at as usize));
                let deleted =
                    self.on("default", |pool, ledger, step| pool.delete(ledger, step, &key));
                assert_eq!(deleted, Ok(()));
            }
            2 => self.now.lease_us += US_PER_S,
            quarantine => {
                let _ = self.on("default", |pool, ledger, step| {
                    let lease = pool.acquire(ledger, step, &AcquireOptions::default())?.lease;
                    let verdict =
                        ReleaseOptions { quarantine: quarantine == 3, ..ReleaseOptions::default() };
                    pool.release(ledger, step, lease.id, &verdict)
                });
            }
        }
    }
}

fn named(name: &str) -> PoolName {
    PoolName::parse(name).expect("a name")
}

#[test]
fn a_key_that_stays_is_listed_once_whatever_comes_and_goes() {
    for seed in 0..20 {
        let mut world = World::new();
        world.random = Rng::new(seed);
        let mut passing = world.generate(300);
        let mut staying = world.generate(300);
        passing.extend(world.generate(300));
        staying.extend(world.generate(100));
        for _ in 0..200 {
            world.change(&mut passing);
        }
        let mut listed = HashMap::new();
        let mut cursor = None;
        loop {
            let limit = world.random.below(20) as usize + 1;
            let page = world.page("default", None, limit, cursor).expect("a page");
            assert!(page.keys.len() <= limit);
            for key in page.keys {
                *listed.entry(key.id).or_insert(0) += 1;
            }
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
            for _ in 0..10 {
                world.change(&mut passing);
            }
        }
        for id in staying {
            assert_eq!(listed.get(&id), Some(&1), "seed {seed}: {id}");
        }
    }
}

#[test]
fn a_page_looks_at_a_bounded_number_of_keys_and_a_listing_ends() {
    let mut world = World::new();
    for _ in 0..10 {
        world.generate(1_000);
    }
    let one = world
        .on("default", |pool, ledger, step| pool.acquire(ledger, step, &AcquireOptions::default()));
    let lent = one.expect("free").lease.key_id;
    let (mut found, mut cursor, mut pages, mut empty) = (vec![], None, 0, 0);
    loop {
        let page = world.page("default", Some(KeyState::Leased), 1_000, cursor).expect("a page");
        pages += 1;
        empty += usize::from(page.keys.is_empty());
        found.extend(page.keys.iter().map(|key| key.id));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!((found, pages, empty), (vec![lent], 3, 2), "10 000 keys, 4096 looked at a page");
    let facts = world.facts;
    let page = world.page("default", Some(KeyState::Available), 1_000, None).expect("a page");
    assert_eq!((page.keys.len(), world.facts), (1_000, facts), "and it changes nothing");
    assert_eq!(world.page("other", None, 9, None), Ok(KeyPage { keys: vec![], next: None }));
}

#[test]
fn what_is_due_is_over_on_every_page() {
    let mut world = World::new();
    let keys = world.generate(2);
    let lent = world
        .on("default", |pool, ledger, step| pool.acquire(ledger, step, &AcquireOptions::default()));
    let lent = lent.expect("free").lease.key_id;
    let policy = PolicyPatch { keepalive_ttl_ms: Some(Some(70_000)), ..PolicyPatch::default() };
    world
        .step(|pools, step| {
            pools.create_or_update(step, &named("default"), &Policy::default(), policy)
        })
        .ok();
    let mortal = world.generate(1)[0];
    world.now.lease_us += 60 * US_PER_S - 1;
    let leased = world.page("default", Some(KeyState::Leased), 9, None).expect("a page").keys;
    assert_eq!(leased.iter().map(|key| key.id).collect::<Vec<_>>(), [lent]);
    world.now.lease_us += 1;
    assert_eq!(world.page("default", Some(KeyState::Leased), 9, None).expect("a page").keys, []);
    world.now.serving_us += 70 * US_PER_S;
    let kept = world.page("default", None, 9, None).expect("a page").keys;
    assert_eq!(kept.iter().map(|key| key.id).collect::<Vec<_>>(), keys);
    assert!(!kept.iter().any(|key| key.id == mortal));
}

#[test]
fn a_cursor_of_another_pool_or_run_or_of_nobody_is_refused() {
    let mut world = World::new();
    world.generate(3);
    let cursor = world.page("default", None, 1, None).expect("a page").next.expect("more");
    assert!(world.page("default", None, 1, Some(cursor)).is_ok());
    assert_eq!(world.page("other", None, 1, Some(cursor)), Err(Refusal::BadCursor));
    for forged in [0, 1, cursor.0 + 1, cursor.0 ^ 1 << 64] {
        let forged = Some(Cursor(forged));
        assert_eq!(world.page("default", None, 1, forged), Err(Refusal::BadCursor));
    }
    let mut random = Rng::new(5);
    world.pools.set_run_id(&mut random);
    assert_eq!(world.page("default", None, 1, Some(cursor)), Err(Refusal::BadCursor));
}
