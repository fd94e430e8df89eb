//! Listings: a key that exists during a whole listing is listed exactly once, whatever else
//! changes; a page examines a bounded number of keys; a cursor is valid for one pool and one run.

use keypeg_core::{
    AcquireOptions, Cursor, Fact, IdHashKey, KeyId, KeyPage, KeyRef, KeyState, Limits, ListOptions,
    Now, Policy, PolicyPatch, Pool, PoolName, Pools, RandomSource, Refusal, ReleaseOptions,
    Released, SharedState, StepContext, US_PER_S,
};
use keypeg_testkit::ScaledRandom;
use std::collections::HashMap;

struct World {
    pools: Pools,
    now: Now,
    random: ScaledRandom,
    facts: usize,
}

impl World {
    fn new() -> Self {
        let limits = Limits {
            pools: 10,
            keys: 1_000_000,
            bytes: u64::MAX,
            answers: keypeg_core::ANSWERS_MAX,
        };
        let pools = Pools::new(IdHashKey::new([1; 32]), limits, 1);
        let mut world = Self { pools, now: Now::default(), random: ScaledRandom::new(1), facts: 0 };
        for name in ["default", "other"] {
            world.step(|pools, step| {
                let policy = Policy { keepalive_ttl_ms: None, ..Policy::default() };
                pools
                    .create_or_update(step, &pool_name(name), &policy, PolicyPatch::default())
                    .expect("room")
            });
        }
        world
    }

    fn step<T>(&mut self, apply: impl FnOnce(&mut Pools, &mut StepContext<'_>) -> T) -> T {
        let facts = &mut self.facts;
        let mut sink = |_: &Fact<'_>| *facts += 1;
        let (now, random, facts) = (self.now, &mut self.random, &mut sink);
        let mut step = StepContext { now, random, facts, budget: 100, ended_by_time: false };
        apply(&mut self.pools, &mut step)
    }

    fn with_pool<T>(
        &mut self,
        name: &str,
        apply: impl FnOnce(&mut Pool, &mut SharedState, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        self.step(|pools, step| pools.with_pool(&pool_name(name), step, apply))
    }

    fn generate(&mut self, count: u32) -> Vec<KeyId> {
        let keys =
            self.with_pool("default", |pool, shared, step| pool.generate(shared, step, count));
        keys.expect("room").iter().map(|key| key.id).collect()
    }

    fn page(
        &mut self,
        name: &str,
        state: Option<KeyState>,
        limit: usize,
        cursor: Option<Cursor>,
    ) -> Result<KeyPage, Refusal> {
        self.with_pool(name, |pool, shared, step| {
            pool.list_keys(shared, step, ListOptions { state, label: None, limit, cursor })
        })
    }

    /// Makes one random change to any keys but those that stay.
    fn change(&mut self, temporary: &mut Vec<KeyId>) {
        match self.random.below(6) {
            0 => temporary.extend(self.generate(1)),
            1 if !temporary.is_empty() => {
                let index = self.random.below(u32::try_from(temporary.len()).expect("small"));
                let key = KeyRef::Id(temporary.swap_remove(index as usize));
                let deleted =
                    self.with_pool("default", |pool, shared, step| pool.delete(shared, step, &key));
                assert_eq!(deleted, Ok(Released::default()));
            }
            2 => self.now.lease_us += US_PER_S,
            quarantine => {
                let _ = self.with_pool("default", |pool, shared, step| {
                    let lease = pool.acquire(shared, step, &AcquireOptions::default())?.lease;
                    let options =
                        ReleaseOptions { quarantine: quarantine == 3, ..ReleaseOptions::default() };
                    pool.release(shared, step, lease.id, &options)
                });
            }
        }
    }
}

fn pool_name(name: &str) -> PoolName {
    PoolName::parse(name).expect("a name")
}

#[test]
fn a_key_that_stays_is_listed_once_while_others_change() {
    for seed in 0..20 {
        let mut world = World::new();
        world.random = ScaledRandom::new(seed);
        let mut temporary = world.generate(300);
        let mut permanent = world.generate(300);
        temporary.extend(world.generate(300));
        permanent.extend(world.generate(100));
        for _ in 0..200 {
            world.change(&mut temporary);
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
                world.change(&mut temporary);
            }
        }
        for id in permanent {
            assert_eq!(listed.get(&id), Some(&1), "seed {seed}: {id}");
        }
    }
}

#[test]
fn a_page_examines_a_bounded_number_of_keys_and_a_listing_ends() {
    let mut world = World::new();
    for _ in 0..10 {
        world.generate(1_000);
    }
    let granted = world.with_pool("default", |pool, shared, step| {
        pool.acquire(shared, step, &AcquireOptions::default())
    });
    let leased = granted.expect("an available key").lease.key_id;
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
    assert_eq!(
        (found, pages, empty),
        (vec![leased], 3, 2),
        "10 000 keys, 4096 examined for each page"
    );
    let facts = world.facts;
    let page = world.page("default", Some(KeyState::Available), 1_000, None).expect("a page");
    assert_eq!((page.keys.len(), world.facts), (1_000, facts), "a page changes nothing");
    assert_eq!(world.page("other", None, 9, None), Ok(KeyPage { keys: vec![], next: None }));
}

#[test]
fn no_page_shows_a_due_lease_or_key() {
    let mut world = World::new();
    let keys = world.generate(2);
    let granted = world.with_pool("default", |pool, shared, step| {
        pool.acquire(shared, step, &AcquireOptions::default())
    });
    let leased_key = granted.expect("an available key").lease.key_id;
    let policy = PolicyPatch { keepalive_ttl_ms: Some(Some(70_000)), ..PolicyPatch::default() };
    world
        .step(|pools, step| {
            pools.create_or_update(step, &pool_name("default"), &Policy::default(), policy)
        })
        .ok();
    let short_lived = world.generate(1)[0];
    world.now.lease_us += 60 * US_PER_S - 1;
    let leased = world.page("default", Some(KeyState::Leased), 9, None).expect("a page").keys;
    assert_eq!(leased.iter().map(|key| key.id).collect::<Vec<_>>(), [leased_key]);
    world.now.lease_us += 1;
    assert_eq!(world.page("default", Some(KeyState::Leased), 9, None).expect("a page").keys, []);
    world.now.serving_us += 70 * US_PER_S;
    let kept = world.page("default", None, 9, None).expect("a page").keys;
    assert_eq!(kept.iter().map(|key| key.id).collect::<Vec<_>>(), keys);
    assert!(!kept.iter().any(|key| key.id == short_lived));
}

#[test]
fn a_cursor_of_another_pool_or_run_and_a_forged_one_are_refused() {
    let mut world = World::new();
    world.generate(3);
    let cursor = world.page("default", None, 1, None).expect("a page").next.expect("more");
    assert!(world.page("default", None, 1, Some(cursor)).is_ok());
    assert_eq!(world.page("other", None, 1, Some(cursor)), Err(Refusal::BadCursor));
    for forged in [0, 1, cursor.0 + 1, cursor.0 ^ 1 << 64] {
        let forged = Some(Cursor(forged));
        assert_eq!(world.page("default", None, 1, forged), Err(Refusal::BadCursor));
    }
    let mut random = ScaledRandom::new(5);
    world.pools.set_run_id(&mut random);
    assert_eq!(world.page("default", None, 1, Some(cursor)), Err(Refusal::BadCursor));
}

/// The slots that a page examines at most.
const EXAMINED: usize = 4_096;

/// Keys in the wanted state stand on both sides of each end of a page, where a cursor once could
/// skip one: the end by examined slots, and the end by listed keys.
#[test]
fn no_key_is_skipped_where_the_bound_on_examined_keys_ends_a_page() {
    let mut world = World::new();
    let mut ids = Vec::new();
    for count in [10_000; 2].iter().chain(&[5_000]) {
        ids.extend(world.generate(*count));
    }
    let mut wanted = Vec::new();
    for end in (1..=ids.len() / EXAMINED).map(|page| page * EXAMINED) {
        wanted.extend(end - 2..(end + 2).min(ids.len()));
    }
    wanted.insert(0, 0);
    wanted.push(ids.len() - 1);
    let mut left: Vec<KeyId> = wanted.iter().map(|index| ids[*index]).collect();
    while !left.is_empty() {
        let lease = world.with_pool("default", |pool, shared, step| {
            Ok(pool.acquire(shared, step, &AcquireOptions::default())?.lease)
        });
        let lease = lease.expect("an available key");
        if let Some(at) = left.iter().position(|id| *id == lease.key_id) {
            left.swap_remove(at);
            let options = ReleaseOptions { quarantine: true, ..ReleaseOptions::default() };
            let ended = world.with_pool("default", |pool, shared, step| {
                pool.release(shared, step, lease.id, &options)
            });
            assert_eq!(ended, Ok(Released::default()));
        }
    }
    let expected: Vec<_> = wanted.iter().map(|index| ids[*index]).collect();
    for limit in [1, 2, 3, 4, 1_000] {
        let (mut listed, mut cursor) = (Vec::new(), None);
        loop {
            let state = Some(KeyState::Quarantined);
            let page = world.page("default", state, limit, cursor).expect("a page");
            listed.extend(page.keys.iter().map(|key| key.id));
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(listed, expected, "{limit} keys in a page");
    }
}
