//! The draw is uniform over the available keys, and values are uniform in their symbols.
//!
//! Chi-square tests with seeded randomness, so the result never varies. Tests with draws known to
//! be biased show that the same check rejects them. Every draw uses a fresh copy of the pool:
//! releasing keys would shuffle the positions and hide a bias between them.

use keypeg_core::{
    AcquireOptions, Fact, Granted, IdHashKey, KeyId, KeyRef, KeyView, LeaseId, Limits, Now, Policy,
    PolicyPatch, Pool, PoolName, Pools, RandomSource, Refusal, ReleaseOptions, SharedState,
    StepContext,
};
use keypeg_testkit::ScaledRandom;
use std::collections::{HashMap, HashSet};

/// One pool, its time and its randomness.
#[derive(Clone)]
struct World {
    pools: Pools,
    now: Now,
    rng: ScaledRandom,
}

impl World {
    fn new(seed: u64) -> Self {
        let limits =
            Limits { pools: 1, keys: 100_000, bytes: u64::MAX, answers: keypeg_core::ANSWERS_MAX };
        let pools = Pools::new(IdHashKey::new([1; 32]), limits, 1);
        let mut world = Self { pools, now: Now::default(), rng: ScaledRandom::new(seed) };
        let (base, patch) = (Policy::default(), PolicyPatch::default());
        let mut sink = |_: &Fact<'_>| {};
        let (now, random, facts) = (world.now, &mut world.rng, &mut sink);
        let mut step = StepContext { now, random, facts, budget: 0, ended_by_time: false };
        let created =
            world.pools.create_or_update(&mut step, &PoolName::default_pool(), &base, patch);
        assert_eq!(created, Ok(true));
        world
    }

    fn with_pool<T>(
        &mut self,
        apply: impl FnOnce(&mut Pool, &mut SharedState, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> T {
        let mut random = self.rng.clone();
        let result = self.with_pool_and(&mut random, apply);
        self.rng = random;
        result
    }

    fn with_pool_and<T>(
        &mut self,
        random: &mut dyn RandomSource,
        apply: impl FnOnce(&mut Pool, &mut SharedState, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> T {
        let mut sink = |_: &Fact<'_>| {};
        let (now, facts) = (self.now, &mut sink);
        let mut step = StepContext { now, random, facts, budget: 1_000, ended_by_time: false };
        self.pools.with_pool(&PoolName::default_pool(), &mut step, apply).expect("done")
    }

    fn generate(&mut self, count: u32) -> Vec<KeyId> {
        let keys = self.with_pool(|pool, shared, step| pool.generate(shared, step, count));
        keys.into_iter().map(|key| key.id).collect()
    }

    fn acquire(&mut self) -> (KeyId, LeaseId) {
        let Granted { lease, .. } = self
            .with_pool(|pool, shared, step| pool.acquire(shared, step, &AcquireOptions::default()));
        (lease.key_id, lease.id)
    }

    fn draw(&self, random: &mut dyn RandomSource) -> KeyId {
        let acquire = |pool: &mut Pool, shared: &mut SharedState, step: &mut StepContext<'_>| {
            pool.acquire(shared, step, &AcquireOptions::default())
        };
        self.clone().with_pool_and(random, acquire).lease.key_id
    }
}

/// Returns a pool after many calls, with exactly 100 available keys.
fn churned(seed: u64) -> (World, Vec<KeyId>) {
    let mut world = World::new(seed);
    let mut keys = world.generate(120);
    let mut leases = vec![];
    for _ in 0..2_000 {
        let index = world.rng.below(u32::try_from(keys.len()).expect("few")) as usize;
        match world.rng.below(4) {
            0 if leases.len() < 60 => leases.push(world.acquire().1),
            1 if !leases.is_empty() => {
                let lease = leases.swap_remove(leases.len() / 2);
                // Its key may have been deleted since.
                let _ = world.with_pool(|pool, shared, step| {
                    Ok(pool.release(shared, step, lease, &ReleaseOptions::default()))
                });
            }
            2 if keys.len() > 100 => {
                let key = KeyRef::Id(keys.swap_remove(index));
                world.with_pool(|pool, shared, step| pool.delete(shared, step, &key));
            }
            _ if keys.len() < 150 => keys.extend(world.generate(1)),
            _ => {}
        }
    }
    let available_keys = |world: &mut World| -> Vec<KeyId> {
        let mut view = |id: &KeyId| -> KeyView {
            world.with_pool(|pool, shared, step| pool.get_key(shared, step, &KeyRef::Id(*id)))
        };
        keys.iter().copied().filter(|id| view(id).lease.is_none()).collect()
    };
    let count = available_keys(&mut world).len();
    for _ in 100..count {
        let _ = world.acquire();
    }
    let more = world.generate(u32::try_from(100_usize.saturating_sub(count)).expect("few"));
    let mut available = available_keys(&mut world);
    available.extend(more);
    assert_eq!(available.len(), 100);
    (world, available)
}

/// Returns the chi-square statistic of counts with equal expectations.
fn chi_square(counts: &[u64]) -> f64 {
    let total: u64 = counts.iter().sum();
    let float = |n: u64| f64::from(u32::try_from(n).expect("few"));
    let expected = float(total) / float(counts.len() as u64);
    counts.iter().map(|&count| (float(count) - expected).powi(2) / expected).sum()
}

/// Returns whether the statistic is within the central 99.8 % of its distribution: neither too
/// uneven nor too even. The quantiles are the Wilson-Hilferty approximation.
fn is_uniform(counts: &[u64]) -> bool {
    let freedom = f64::from(u32::try_from(counts.len() - 1).expect("few"));
    let quantile = |z: f64| {
        let part = 2.0 / (9.0 * freedom);
        freedom * (1.0 - part + z * part.sqrt()).powi(3)
    };
    (quantile(-3.09)..quantile(3.09)).contains(&chi_square(counts))
}

fn count_draws(world: &World, keys: &[KeyId], random: &mut dyn RandomSource) -> Vec<u64> {
    let mut counts: HashMap<KeyId, u64> = keys.iter().map(|id| (*id, 0)).collect();
    for _ in 0..20_000 {
        *counts.get_mut(&world.draw(random)).expect("an available key") += 1;
    }
    counts.into_values().collect()
}

#[test]
fn the_draw_is_uniform_over_the_available_keys() {
    for seed in 0..2 {
        let (world, available) = churned(seed);
        let counts = count_draws(&world, &available, &mut ScaledRandom::new(seed));
        assert!(is_uniform(&counts), "seed {seed}: {}", chi_square(&counts));
    }
}

/// Due keys stay among the available ones until they are purged: a draw of one is repeated, which
/// must not favour any key.
#[test]
fn the_draw_is_uniform_with_an_expiry_backlog() {
    let (mut world, available) = churned(7);
    world.now.serving_us += 200_000_000;
    let kept: Vec<KeyId> = available.iter().copied().step_by(2).collect();
    world.with_pool(|pool, shared, step| pool.keep_alive_many(shared, step, &kept));
    world.now.serving_us += 100_000_000;
    let counts = count_draws(&world, &kept, &mut ScaledRandom::new(7));
    assert!(is_uniform(&counts), "{}", chi_square(&counts));
}

/// Draws one byte modulo the bound: the first positions are more likely.
struct ByteModulo(ScaledRandom);

impl RandomSource for ByteModulo {
    fn below(&mut self, bound: u32) -> u32 {
        u32::from(u8::try_from(self.0.bits() >> 56).expect("a byte")) % bound
    }
    fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }
}

/// Returns the positions in turn: far too evenly.
struct RoundRobin(u32);

impl RandomSource for RoundRobin {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 += 1;
        self.0 % bound
    }
    fn fill(&mut self, _: &mut [u8]) {
        unreachable!("it only draws");
    }
}

/// Never draws the last position.
struct NeverLast(ScaledRandom);

impl RandomSource for NeverLast {
    fn below(&mut self, bound: u32) -> u32 {
        self.0.below(bound - 1)
    }
    fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }
}

#[test]
fn biased_draws_are_not_accepted_as_uniform() {
    let (world, available) = churned(0);
    let biased: [(&str, &mut dyn RandomSource); 3] = [
        ("modulo", &mut ByteModulo(ScaledRandom::new(0))),
        ("round robin", &mut RoundRobin(0)),
        ("never the last", &mut NeverLast(ScaledRandom::new(0))),
    ];
    for (name, random) in biased {
        let counts = count_draws(&world, &available, random);
        assert!(!is_uniform(&counts), "{name} passes: {}", chi_square(&counts));
    }
}

const SYMBOLS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

fn count_symbols(bytes: impl Iterator<Item = u8>) -> Vec<u64> {
    let mut counts = vec![0; SYMBOLS.len()];
    for byte in bytes {
        counts[SYMBOLS.iter().position(|symbol| *symbol == byte).expect("a symbol")] += 1;
    }
    counts
}

#[test]
fn values_are_uniform_in_their_symbols_at_each_position() {
    let mut world = World::new(3);
    let keys = world.with_pool(|pool, shared, step| pool.generate(shared, step, 6_200));
    let values: HashSet<&str> = keys.iter().map(|key| key.value.reveal()).collect();
    assert_eq!(values.len(), keys.len(), "all values are distinct");
    let all = count_symbols(values.iter().flat_map(|value| value.bytes()));
    assert!(is_uniform(&all), "{}", chi_square(&all));
    for position in 0..20 {
        let counts = count_symbols(values.iter().map(|value| value.as_bytes()[position]));
        assert!(is_uniform(&counts), "position {position}: {}", chi_square(&counts));
    }
}

/// Bytes modulo 62 without rejecting the last eight.
#[test]
fn biased_symbols_are_not_accepted_as_uniform() {
    let mut bytes = vec![0; 124_000];
    ScaledRandom::new(3).fill(&mut bytes);
    let counts = count_symbols(bytes.iter().map(|byte| SYMBOLS[usize::from(byte % 62)]));
    assert!(!is_uniform(&counts), "{}", chi_square(&counts));
}
