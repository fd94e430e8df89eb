//! What one call costs as a pool grows, and what one key costs in memory: a Markdown table.
//!
//! Half of the keys are leased, keys are named at random, deadlines are all different. Each figure
//! is the median of rounds. `cargo bench -p keypeg-core --bench cost`; results are kept in
//! `bench/RESULTS.md`. Without `--bench`, as tests run it, only small pools are looked at.

#[path = "../tests/support/rng.rs"]
mod rng;

use keypeg_core::{
    Chance, Fact, IdKey, KeyId, KeyRef, LeaseId, Ledger, Limits, Now, Policy, PolicyPatch, Pool,
    PoolName, Pools, Refusal, Step, Verdict,
};
use rng::Rng;
use std::hint::black_box;
use std::time::{Duration, Instant};

const BATCH: u32 = 10_000;
/// Calls measured of each kind, at least, where the pool has so many keys.
const CALLS: usize = 100_000;
/// Ids kept to name keys by.
const NAMED: u32 = 400_000;

fn main() {
    let full = std::env::args().any(|arg| arg == "--bench");
    // The largest first, while the allocator holds nothing that would hide its memory.
    let sizes: &[u32] = if full { &[10_000_000, 100_000, 1_000] } else { &[1_000] };
    let mut columns: Vec<_> = sizes.iter().map(|&size| measure(size, size == sizes[0])).collect();
    columns.reverse();
    let heads: Vec<String> = sizes.iter().rev().map(|size| format!("{size} keys")).collect();
    line(&format!("| | {} |", heads.join(" | ")));
    line(&format!("|---|{}", "---:|".repeat(sizes.len())));
    for row in 0..columns[0].len() {
        let cells: Vec<&str> = columns.iter().map(|column| column[row].1.as_str()).collect();
        line(&format!("| {} | {} |", columns[0][row].0, cells.join(" | ")));
    }
}

fn measure(size: u32, fresh: bool) -> Vec<(&'static str, String)> {
    let mut world = World::new();
    let before = fresh.then(resident);
    world.grow(size);
    let free = per_key(before, size);
    for _ in 0..size / 2 {
        world.acquire();
    }
    let half = per_key(before, size);
    let round = (size as usize / 8).min(CALLS);
    let rounds = (CALLS / round).max(5);
    let mut took: [Vec<Duration>; 7] = Default::default();
    for _ in 0..rounds {
        for (took, duration) in took.iter_mut().zip(world.round(round)) {
            took.push(duration);
        }
    }
    let names = [
        "generate, ns",
        "acquire, ns",
        "release, ns",
        "keep-alive, ns",
        "delete, ns",
        "expire a lease, ns",
        "purge a key, ns",
    ];
    let calls = u32::try_from(round).expect("few");
    let mut rows: Vec<(&str, String)> =
        names.into_iter().zip(took).map(|(name, took)| (name, median(took, calls))).collect();
    let all = timed(|| (0..calls).map(|_| world.on(Pool::keep_alive_all)).sum::<u64>());
    rows.push(("keep-alive of the whole pool, ns", median(vec![all], calls)));
    rows.push(("bytes a key, all available", free));
    rows.push(("bytes a key, half leased", half));
    rows
}

fn median(mut took: Vec<Duration>, calls: u32) -> String {
    took.sort();
    (took[took.len() / 2] / calls).as_nanos().to_string()
}

struct World {
    pools: Pools,
    name: PoolName,
    now: Now,
    rng: Rng,
    /// Some of the ids, to name keys by.
    ids: Vec<KeyId>,
}

impl World {
    fn new() -> Self {
        let limits = Limits { pools: 1, keys: 20_000_000 };
        let mut world = Self {
            pools: Pools::new(IdKey::new([1; 32]), limits, 1),
            name: PoolName::default_pool(),
            now: Now { wall_us: 1_700_000_000_000_000, ..Now::default() },
            rng: Rng::new(1),
            ids: vec![KeyId(1); 2 * NAMED as usize],
        };
        // Taken and touched before memory is measured.
        world.ids.clear();
        world.policy(PolicyPatch { lease_ttl_ms: Some(604_800_000), ..PolicyPatch::default() });
        world
    }

    fn step<T>(&mut self, play: impl FnOnce(&mut Pools, &mut Step<'_>, &PoolName) -> T) -> T {
        // No two calls at the same instant: every deadline is another one.
        self.now.lease_us += 1;
        self.now.serving_us += 1;
        let mut sink = |fact: &Fact<'_>| {
            black_box(fact);
        };
        let (now, chance, facts) = (self.now, &mut self.rng, &mut sink);
        let mut step = Step { now, chance, facts, budget: u32::MAX, ended_by_time: false };
        play(&mut self.pools, &mut step, &self.name)
    }

    fn on<T>(
        &mut self,
        play: impl FnOnce(&mut Pool, &mut Ledger, &mut Step<'_>) -> Result<T, Refusal>,
    ) -> T {
        self.step(|pools, step, name| pools.on(name, step, play)).expect("a call that is granted")
    }

    fn policy(&mut self, patch: PolicyPatch) {
        let put = self.step(|pools, step, name| pools.put(step, name, &Policy::default(), patch));
        put.expect("a policy in range");
    }

    fn grow(&mut self, size: u32) {
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

    fn acquire(&mut self) -> LeaseId {
        self.on(|pool, ledger, step| pool.acquire(ledger, step, None, None)).0.id
    }

    fn draw(&mut self) -> usize {
        self.rng.below(u32::try_from(self.ids.len()).expect("few")) as usize
    }

    /// Times so many calls of each kind; the pool is as large after as before.
    fn round(&mut self, calls: usize) -> [Duration; 7] {
        let mut leases = Vec::with_capacity(calls);
        let acquire = timed(|| (0..calls).for_each(|_| leases.push(self.acquire())));
        for at in (1..calls).rev() {
            let other = self.rng.below(u32::try_from(at + 1).expect("few"));
            leases.swap(at, other as usize);
        }
        let release = timed(|| {
            for lease in leases {
                self.on(|pool, ledger, step| {
                    pool.release(ledger, step, lease, &Verdict::default())
                });
            }
        });
        let named: Vec<usize> = (0..calls).map(|_| self.draw()).collect();
        let named: Vec<KeyRef> = named.into_iter().map(|at| KeyRef::Id(self.ids[at])).collect();
        let keep_alive = timed(|| {
            for key in &named {
                self.on(|pool, ledger, step| pool.keep_alive(ledger, step, key));
            }
        });
        let doomed: Vec<KeyRef> = (0..calls)
            .map(|_| {
                let at = self.draw();
                KeyRef::Id(self.ids.swap_remove(at))
            })
            .collect();
        let delete = timed(|| {
            for key in &doomed {
                self.on(|pool, ledger, step| pool.delete(ledger, step, key));
            }
        });
        let mut born = Vec::with_capacity(calls);
        let generate = timed(|| {
            for _ in 0..calls {
                born.extend(self.on(|pool, ledger, step| pool.generate(ledger, step, 1)));
            }
        });
        self.ids.extend(born.iter().map(|key| key.id));
        let (expire, purge) = (self.expire(calls), self.purge(calls));
        self.lease_again();
        [generate, acquire, release, keep_alive, delete, expire, purge]
    }

    /// Lends keys for a second and times their coming back.
    fn expire(&mut self, calls: usize) -> Duration {
        for _ in 0..calls {
            self.on(|pool, ledger, step| pool.acquire(ledger, step, Some(1_000), None));
        }
        self.now.lease_us += 1_000_000;
        timed(|| assert!(!self.step(|pools, step, _| pools.expire(step))))
    }

    /// Makes keys that live for a second and times their going.
    fn purge(&mut self, calls: usize) -> Duration {
        let short = Some(Some(1_000));
        self.policy(PolicyPatch { keepalive_ttl_ms: short, ..PolicyPatch::default() });
        for _ in 0..calls {
            self.on(|pool, ledger, step| pool.generate(ledger, step, 1));
        }
        let long = Some(Some(604_800_000));
        self.policy(PolicyPatch { keepalive_ttl_ms: long, ..PolicyPatch::default() });
        self.now.serving_us += 1_000_000;
        timed(|| assert!(!self.step(|pools, step, _| pools.expire(step))))
    }

    /// Brings the pool back to half of its keys leased.
    fn lease_again(&mut self) {
        let counts = self.pools.get(&self.name).expect("the pool").counts();
        for _ in counts.leased..counts.total() / 2 {
            self.acquire();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn timed<T>(play: impl FnOnce() -> T) -> Duration {
    let began = Instant::now();
    black_box(play());
    began.elapsed()
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = statm.split_whitespace().nth(1).expect("the second field");
    pages.parse::<u64>().expect("a number") * 4_096
}

/// Memory taken since then, where it can be told: what was freed before is taken again unseen.
fn per_key(before: Option<u64>, size: u32) -> String {
    before.map_or("–".into(), |before| {
        let tenths = (resident() - before) * 10 / u64::from(size);
        format!("{}.{}", tenths / 10, tenths % 10)
    })
}

#[expect(clippy::print_stdout, reason = "the table is what this program is for")]
fn line(text: &str) {
    println!("{text}");
}
