//! The pick is uniform over the keys that are free, and values are uniform in their symbols.
//!
//! Judged by chi-square with seeded random, so a run never flickers. Each test also shows that a
//! draw known to be bad fails by the same judgement. Every draw is made on a fresh copy of the
//! pool: returning keys would shuffle the places and hide a bias between them.

use keypeg_core::{
    AcquireOptions, Fact, Granted, IdHashKey, KeyId, KeyRef, KeyView, LeaseId, Limits, Now, Policy,
    PolicyPatch, Pool, PoolName, Pools, RandomSource, Refusal, ReleaseOptions, SharedState,
    StepContext,
};
use keypeg_testkit::ScaledRandom as Rng;
use std::collections::{HashMap, HashSet};

/// One pool, its time and its random.
#[derive(Clone)]
struct World {
    pools: Pools,
    now: Now,
    rng: Rng,
}

impl World {
    fn new(seed: u64) -> Self {
        let limits = Limits { pools: 1, keys: 100_000 };
        let pools = Pools::new(IdHashKey::new([1; 32]), limits, 1);
        let mut world = Self { pools, now: Now::default(), rng: Rng::new(seed) };
        let (base, patch) = (Policy::default(), PolicyPatch::default());
        let mut sink = |_: &Fact<'_>| {};
        let (now, random, facts) = (world.now, &mut world.rng, &mut sink);
        let mut step = StepContext { now, random, facts, budget: 0, ended_by_time: false };
        let made = world.pools.create_or_update(&mut step, &PoolName::default_pool(), &base, patch);
        assert_eq!(made, Ok(true));
        world
    }

    fn on<T>(
        &mut self,
        play: impl FnOnce(&mut Pool, &mut SharedState, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> T {
        let mut random = self.rng.clone();
        let answer = self.on_with(&mut random, play);
        self.rng = random;
        answer
    }

    fn on_with<T>(
        &mut self,
        random: &mut dyn RandomSource,
        play: impl FnOnce(&mut Pool, &mut SharedState, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> T {
        let mut sink = |_: &Fact<'_>| {};
        let (now, facts) = (self.now, &mut sink);
        let mut step = StepContext { now, random, facts, budget: 1_000, ended_by_time: false };
        self.pools.with_pool(&PoolName::default_pool(), &mut step, play).expect("done")
    }

    fn generate(&mut self, count: u32) -> Vec<KeyId> {
        let keys = self.on(|pool, ledger, step| pool.generate(ledger, step, count));
        keys.into_iter().map(|key| key.id).collect()
    }

    fn acquire(&mut self) -> (KeyId, LeaseId) {
        let Granted { lease, .. } =
            self.on(|pool, ledger, step| pool.acquire(ledger, step, &AcquireOptions::default()));
        (lease.key_id, lease.id)
    }

    fn draw(&self, random: &mut dyn RandomSource) -> KeyId {
        let lent = |pool: &mut Pool, ledger: &mut SharedState, step: &mut StepContext<'_>| {
            pool.acquire(ledger, step, &AcquireOptions::default())
        };
        self.clone().on_with(random, lent).lease.key_id
    }
}

/// A pool that has seen much and has exactly 100 free keys.
fn churned(seed: u64) -> (World, Vec<KeyId>) {
    let mut world = World::new(seed);
    let mut keys = world.generate(120);
    let mut leases = vec![];
    for _ in 0..2_000 {
        let at = world.rng.below(u32::try_from(keys.len()).expect("few")) as usize;
        match world.rng.below(4) {
            0 if leases.len() < 60 => leases.push(world.acquire().1),
            1 if !leases.is_empty() => {
                let lease = leases.swap_remove(leases.len() / 2);
                // Its key may have been deleted meanwhile.
                let _ = world.on(|pool, ledger, step| {
                    Ok(pool.release(ledger, step, lease, &ReleaseOptions::default()))
                });
            }
            2 if keys.len() > 100 => {
                let key = KeyRef::Id(keys.swap_remove(at));
                world.on(|pool, ledger, step| pool.delete(ledger, step, &key));
            }
            _ if keys.len() < 150 => keys.extend(world.generate(1)),
            _ => {}
        }
    }
    let free = |world: &mut World| -> Vec<KeyId> {
        let mut view = |id: &KeyId| -> KeyView {
            world.on(|pool, ledger, step| pool.get_key(ledger, step, &KeyRef::Id(*id)))
        };
        keys.iter().copied().filter(|id| view(id).lease.is_none()).collect()
    };
    let now_free = free(&mut world).len();
    for _ in 100..now_free {
        let _ = world.acquire();
    }
    let more = world.generate(u32::try_from(100_usize.saturating_sub(now_free)).expect("few"));
    let mut free = free(&mut world);
    free.extend(more);
    assert_eq!(free.len(), 100);
    (world, free)
}

/// The chi-square statistic of counts that ought to be equal.
fn chi_square(counts: &[u64]) -> f64 {
    let total: u64 = counts.iter().sum();
    let float = |n: u64| f64::from(u32::try_from(n).expect("few"));
    let expected = float(total) / float(counts.len() as u64);
    counts.iter().map(|&count| (float(count) - expected).powi(2) / expected).sum()
}

/// Whether so many degrees of freedom give such a statistic in 99.8 % of cases: neither too
/// uneven nor too even. The quantiles are Wilson and Hilferty's approximation.
fn is_uniform(counts: &[u64]) -> bool {
    let free = f64::from(u32::try_from(counts.len() - 1).expect("few"));
    let quantile = |z: f64| {
        let part = 2.0 / (9.0 * free);
        free * (1.0 - part + z * part.sqrt()).powi(3)
    };
    (quantile(-3.09)..quantile(3.09)).contains(&chi_square(counts))
}

fn count_draws(world: &World, keys: &[KeyId], random: &mut dyn RandomSource) -> Vec<u64> {
    let mut counts: HashMap<KeyId, u64> = keys.iter().map(|id| (*id, 0)).collect();
    for _ in 0..20_000 {
        *counts.get_mut(&world.draw(random)).expect("a key that may be lent") += 1;
    }
    counts.into_values().collect()
}

#[test]
fn the_draw_is_uniform_over_the_free_keys() {
    for seed in 0..2 {
        let (world, free) = churned(seed);
        let counts = count_draws(&world, &free, &mut Rng::new(seed));
        assert!(is_uniform(&counts), "seed {seed}: {}", chi_square(&counts));
    }
}

/// Keys that are due are still among the free ones until somebody ends them: drawing one draws
/// again, and that must favour nobody.
#[test]
fn the_draw_is_uniform_beside_a_backlog() {
    let (mut world, free) = churned(7);
    world.now.serving_us += 200_000_000;
    let kept: Vec<KeyId> = free.iter().copied().step_by(2).collect();
    world.on(|pool, ledger, step| Ok(pool.keep_alive_many(ledger, step, &kept)));
    world.now.serving_us += 100_000_000;
    let counts = count_draws(&world, &kept, &mut Rng::new(7));
    assert!(is_uniform(&counts), "{}", chi_square(&counts));
}

/// Draws as one byte modulo the bound would: the first places come more often.
struct ByteModulo(Rng);

impl RandomSource for ByteModulo {
    fn below(&mut self, bound: u32) -> u32 {
        u32::from(u8::try_from(self.0.bits() >> 56).expect("a byte")) % bound
    }
    fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }
}

/// Goes round the places: each comes as often, and far too evenly.
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

/// Never draws the last place.
struct NeverLast(Rng);

impl RandomSource for NeverLast {
    fn below(&mut self, bound: u32) -> u32 {
        self.0.below(bound - 1)
    }
    fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }
}

#[test]
fn bad_draws_do_not_pass_for_uniform() {
    let (world, free) = churned(0);
    let bad: [(&str, &mut dyn RandomSource); 3] = [
        ("modulo", &mut ByteModulo(Rng::new(0))),
        ("round robin", &mut RoundRobin(0)),
        ("never the last", &mut NeverLast(Rng::new(0))),
    ];
    for (name, random) in bad {
        let counts = count_draws(&world, &free, random);
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
fn values_are_uniform_in_their_symbols_at_each_place() {
    let mut world = World::new(3);
    let keys = world.on(|pool, ledger, step| pool.generate(ledger, step, 6_200));
    let values: HashSet<&str> = keys.iter().map(|key| key.value.reveal()).collect();
    assert_eq!(values.len(), keys.len(), "no value comes twice");
    let all = count_symbols(values.iter().flat_map(|value| value.bytes()));
    assert!(is_uniform(&all), "{}", chi_square(&all));
    for place in 0..20 {
        let counts = count_symbols(values.iter().map(|value| value.as_bytes()[place]));
        assert!(is_uniform(&counts), "place {place}: {}", chi_square(&counts));
    }
}

/// What bytes modulo 62 give without drawing the last eight again.
#[test]
fn unfair_symbols_do_not_pass_for_uniform() {
    let mut bytes = vec![0; 124_000];
    Rng::new(3).fill(&mut bytes);
    let counts = count_symbols(bytes.iter().map(|byte| SYMBOLS[usize::from(byte % 62)]));
    assert!(!is_uniform(&counts), "{}", chi_square(&counts));
}
