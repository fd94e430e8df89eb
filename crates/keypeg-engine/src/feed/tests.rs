//! The memory of the feed, played without an engine: how much many rings hold together.

use super::*;
use crate::core::KeyId;
use crate::core::{IdHashKey, Limits, Policy, PolicyPatch, RandomSource, StepContext};

struct NoChance;

impl RandomSource for NoChance {
    fn below(&mut self, _: u32) -> u32 {
        0
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.fill(0);
    }
}

fn pools(count: usize) -> (Pools, Vec<PoolName>) {
    let limits = Limits { pools: count, keys: 1 };
    let mut pools = Pools::new(IdHashKey::new([1; 32]), limits, 1);
    let names: Vec<_> =
        (0..count).map(|at| PoolName::parse(&format!("p{at}")).expect("a name")).collect();
    let (now, mut nobody) = (Now::default(), |_: &Fact<'_>| {});
    let (random, facts) = (&mut NoChance, &mut nobody);
    let mut step = StepContext { now, random, facts, budget: 0, ended_by_time: false };
    for name in &names {
        let put =
            pools.create_or_update(&mut step, name, &Policy::default(), PolicyPatch::default());
        put.expect("room for a pool");
    }
    (pools, names)
}

#[test]
fn rings_are_bounded_each_and_together_and_each_keeps_some() {
    const COUNT: usize = 40;
    let (pools, names) = pools(COUNT);
    let (mut feed, metrics) = (Feed::default(), Arc::default());
    feed.begin(Now::default());
    let open = |feed: &mut Feed, name| {
        let pool = pools.get(name).expect("made");
        feed.open(pool, 1, &metrics).expect("room").subscribe(None).expect("room")
    };
    let mut followers: Vec<_> = names.iter().map(|name| open(&mut feed, name)).collect();
    let holder = "h".repeat(512);
    let grant = Event::Granted { key: KeyId(1), token: 1, holder: Some(&holder), until_us: 1 };
    for name in &names {
        let number = pools.get(name).expect("made").id();
        for _ in 0..20 {
            feed.begin(Now::default());
            (0..500).for_each(|_| feed.emit(number, &grant));
            feed.tell(&pools);
        }
    }
    let each: Vec<_> = feed.rings.values().map(|open| open.shared.lock().bytes).collect();
    assert_eq!(each.iter().sum::<usize>(), feed.bytes);
    assert!(feed.bytes <= RINGS_BYTES_MAX + COUNT * RING_BYTES_MIN, "{} bytes", feed.bytes);
    assert!(feed.bytes > RINGS_BYTES_MAX / 10 * 9, "the room there is is used");
    assert!(each.iter().all(|&bytes| bytes <= RING_BYTES_MAX), "{each:?}");
    assert!(each.iter().all(|&bytes| bytes > RING_BYTES_MIN / 10 * 9), "{each:?}");
    feed.close();
    assert_eq!(feed.bytes, 0);
    drop(followers.pop());
    assert_eq!(metrics.subscribers.load(Ordering::Relaxed), COUNT as u64 - 1);
}

#[test]
fn as_many_pools_as_have_room_are_followed_and_rings_nobody_reads_make_room() {
    const FOLLOWED: usize = 1_000;
    assert_eq!(SUBSCRIBERS_MAX, FOLLOWED as u64);
    let (pools, names) = pools(RINGS_MAX + 1);
    let (mut feed, metrics) = (Feed::default(), Arc::default());
    feed.begin(Now::default());
    let open = |feed: &mut Feed, name| feed.open(pools.get(name).expect("made"), 1, &metrics);
    let all: Vec<_> = names.iter().take(FOLLOWED).map(|name| open(&mut feed, name)).collect();
    let read: Vec<_> = all.iter().flatten().map(|following| following.subscribe(None)).collect();
    for name in &names[all.len()..] {
        assert!(open(&mut feed, name).is_some());
    }
    assert!(feed.rings.len() <= RINGS_MAX);
    assert!(read.iter().flatten().all(|follower| !follower.shared.lock().closed));
}
