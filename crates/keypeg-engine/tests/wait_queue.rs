//! Waiting through the engine: as many as may wait and as many keys, hang-ups at random, a stop,
//! a crash right after a hand-over.

mod support;

use keypeg_engine::core::{KeyId, LeaseId, PolicyPatch, Refusal, ReleaseOptions, WAITERS_MAX};
use keypeg_engine::state::CallId;
use keypeg_engine::{Call, Principal, Reply, Request, RequestError};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use support::sim_disk::SimDisk;
use support::{Driver, GivenClock, SeededRandom, default_pool, setup};

/// What a driver does not do: calls whose answers come later.
struct Waiting {
    driver: Driver,
    asked: VecDeque<(CallId, Request)>,
    replies: Vec<(CallId, Reply)>,
}

impl Waiting {
    fn new() -> Self {
        let driver = Driver::open_with(None, &GivenClock::new(), 1, &setup()).expect("opens");
        Self { driver, asked: VecDeque::new(), replies: Vec::new() }
    }

    fn ask(&mut self, slot: u32, call: Call) {
        let by = Principal::Anyone;
        self.asked.push_back((CallId { lane: 3, slot }, Request { by, call }));
    }

    fn wait(&mut self, slot: u32, wait_ms: u64) {
        let call = Call::Acquire { pool: default_pool(), ttl_ms: None, holder: None, wait_ms };
        self.ask(slot, call);
    }

    /// Plays turns until all that was asked is played.
    fn play(&mut self) -> Vec<(u32, Reply)> {
        loop {
            self.driver.works.turn(&mut self.asked, &mut self.replies).expect("memory");
            if self.asked.is_empty() && self.driver.works.pending_count() == 0 {
                break;
            }
        }
        self.replies.drain(..).map(|(call_id, reply)| (call_id.slot, reply)).collect()
    }

    fn generate(&mut self, count: u32) {
        self.ask(u32::MAX, Call::Generate { pool: default_pool(), count });
    }

    fn waiting(&mut self) -> u64 {
        let Reply::Pool { pool, .. } = self.driver.call(Call::GetPool { pool: default_pool() })
        else {
            panic!("a pool")
        };
        assert_eq!(pool.waiting, self.driver.works.pools().waiter_count() as u64);
        pool.waiting
    }
}

fn lent(reply: &Reply) -> Option<(KeyId, LeaseId, u64)> {
    let Reply::Granted { lease, waited_ms, .. } = reply else { return None };
    Some((lease.key_id, lease.id, *waited_ms))
}

#[test]
fn as_many_as_may_wait_get_one_key_each_in_their_order() {
    let mut run = Waiting::new();
    let all = u32::try_from(WAITERS_MAX).expect("a hundred thousand");
    for slot in 0..all {
        run.wait(slot, 300_000);
    }
    run.wait(all, 1);
    let told = run.play();
    let [(slot, Reply::Refused(RequestError::Refused(Refusal::WaitQueueFull { .. })))] = &told[..]
    else {
        panic!("{} replies", told.len())
    };
    assert_eq!((*slot, run.waiting()), (all, u64::from(all)));
    run.driver.clock.tick_ms(1_500);
    let (mut keys, mut order) = (HashSet::new(), Vec::new());
    for _ in 0..all / 10_000 {
        run.generate(10_000);
        for (slot, reply) in run.play() {
            if let Some((key, _, waited_ms)) = lent(&reply) {
                assert!(keys.insert(key), "no key twice");
                assert_eq!(waited_ms, 1_500);
                order.push(slot);
            }
        }
    }
    assert!(order.iter().copied().eq(0..all), "each one key, first come, first served");
    assert_eq!(run.waiting(), 0);
}

/// Callers come, hang up and come again on the same tickets, while keys come back: in the end
/// every key is with somebody who is there, or free.
#[test]
fn callers_hang_up_at_random_and_no_key_is_lost() {
    for seed in 0..30 {
        let (mut run, mut random) = (Waiting::new(), SeededRandom(seed));
        run.generate(5);
        run.play();
        // What each call_id is about: nothing, or somebody who is there, or has gone.
        let mut calls: HashMap<u32, bool> = HashMap::new();
        let mut holders: HashMap<u32, LeaseId> = HashMap::new();
        for _ in 0..300 {
            for _ in 0..random.below(6) {
                let slot = u32::try_from(random.below(20)).expect("small");
                match calls.get(&slot) {
                    None if !holders.contains_key(&slot) => {
                        calls.insert(slot, true);
                        run.wait(slot, 1 + random.below(2_000));
                    }
                    Some(true) if random.below(2) == 0 => {
                        calls.insert(slot, false);
                        run.ask(slot, Call::CancelWait);
                    }
                    _ => {}
                }
            }
            if random.below(3) == 0
                && let Some(slot) = holders.keys().next().copied()
            {
                let (lease, verdict) = (holders[&slot], ReleaseOptions::default());
                holders.remove(&slot);
                run.ask(u32::MAX, Call::Release { pool: default_pool(), lease, verdict });
            }
            run.driver.clock.tick_ms(random.below(200));
            for (slot, reply) in run.play() {
                if slot == u32::MAX {
                    continue;
                }
                // A call_id is answered once, and then free: this panics otherwise.
                let there = calls.remove(&slot).expect("asked and not answered yet");
                match (there, lent(&reply)) {
                    (true, Some((_, lease, _))) => drop(holders.insert(slot, lease)),
                    (false, Some((_, lease, _))) => {
                        let verdict = ReleaseOptions::default();
                        let back = Call::Release { pool: default_pool(), lease, verdict };
                        run.ask(u32::MAX, back);
                    }
                    (true, None) => assert!(matches!(reply, Reply::Refused(_)), "{reply:?}"),
                    (false, None) => {}
                }
            }
        }
        run.play();
        let there = calls.values().filter(|there| **there).count() as u64;
        assert_eq!(run.waiting(), there, "seed {seed}: only who is there waits");
        for lease in holders.into_values() {
            let verdict = ReleaseOptions::default();
            run.ask(u32::MAX, Call::Release { pool: default_pool(), lease, verdict });
        }
        run.driver.clock.tick_ms(3_000);
        let free: Vec<_> = run.play().iter().filter_map(|(_, reply)| lent(reply)).collect();
        let counts = run.driver.works.pools().get(&default_pool()).expect("there").counts();
        assert_eq!(counts.available + free.len() as u64, 5, "seed {seed}: no key is lost");
    }
}

/// A request that goes over because much is due, and whose caller hangs up meanwhile, never gets
/// into the line.
#[test]
fn who_leaves_while_much_is_due_does_not_wait_after_it() {
    let mut run = Waiting::new();
    let patch = PolicyPatch { rest_ms: Some(600_000), ..PolicyPatch::default() };
    run.ask(0, Call::PutPool { pool: default_pool(), patch });
    run.generate(10_000);
    run.generate(10_000);
    for slot in 1..=20_000 {
        run.wait(slot, 0);
    }
    let granted = run.play().iter().filter(|(_, reply)| lent(reply).is_some()).count();
    assert_eq!(granted, 20_000);
    run.driver.clock.tick_ms(60_000);
    run.wait(1, 300_000);
    run.wait(2, 300_000);
    run.driver.works.turn(&mut run.asked, &mut run.replies).expect("memory");
    assert_eq!(
        (run.driver.works.pending_count(), run.replies.len()),
        (2, 0),
        "more is due than a turn ends"
    );
    run.ask(1, Call::CancelWait);
    let told = run.play();
    assert!(matches!(told[..], [(1, Reply::Done)]), "{told:?}");
    assert_eq!(run.waiting(), 1, "the other one waits");
}

#[test]
fn a_stop_sends_everybody_away_and_nobody_waits_after_it() {
    let mut run = Waiting::new();
    run.wait(1, 300_000);
    run.wait(2, 300_000);
    assert!(run.play().is_empty());
    run.driver.works.cancel_waits();
    run.wait(3, 300_000);
    let mut told: Vec<u32> = Vec::new();
    for (slot, reply) in run.play() {
        assert!(matches!(reply, Reply::Refused(RequestError::ShuttingDown)), "{reply:?}");
        told.push(slot);
    }
    told.sort_unstable();
    assert_eq!(told, [1, 2, 3]);
    run.generate(1);
    run.wait(4, 300_000);
    assert_eq!(run.play().iter().filter_map(|(_, reply)| lent(reply)).count(), 1, "free keys go");
}

#[test]
fn a_hand_over_is_on_the_disk_before_it_is_told() {
    let (disk, clock) = (SimDisk::new(), GivenClock::new());
    let driver = Driver::open(Arc::new(disk.clone()), &clock, 1).expect("opens");
    let mut run = Waiting { driver, asked: VecDeque::new(), replies: Vec::new() };
    run.generate(1);
    run.play();
    let (first, ..) = run.driver.acquire("first").expect("free");
    run.wait(1, 300_000);
    assert!(run.play().is_empty());
    // By time: the turn in which it comes back gives it away, without anybody asking.
    clock.tick_ms(59_999);
    assert!(run.play().is_empty());
    clock.tick_ms(1);
    let told = run.play();
    let (key, lease, waited_ms) = lent(&told[0].1).expect("the first in line");
    assert_eq!((told.len(), told[0].0, waited_ms), (1, 1, 60_000));
    drop(run);
    let mut again = Driver::open(Arc::new(disk), &clock, 2).expect("opens");
    assert_eq!((again.recovered.keys, again.recovered.leases), (1, 1));
    assert!(again.acquire("other").is_none(), "{key} is lent");
    let release =
        |lease| Call::Release { pool: default_pool(), lease, verdict: ReleaseOptions::default() };
    assert!(matches!(again.call(release(first)), Reply::Refused(_)));
    assert!(matches!(again.call(release(lease)), Reply::Done));
}
