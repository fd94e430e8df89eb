//! Waiting through the engine: the maximum number of waiters, random disconnects, a stop, and a
//! crash right after a grant to a waiter.

mod support;

use keypeg_core::{KeyId, LeaseId, NewLabels, PolicyPatch, Refusal, ReleaseOptions, WAITERS_MAX};
use keypeg_engine::state::CallId;
use keypeg_store::{Call, LaneItem, Principal, Reply, Request, RequestError};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use support::sim_disk::SimDisk;
use support::{Driver, ManualClock, SeededRandom, default_pool, engine_config};

/// A driver for calls whose replies arrive in later turns.
struct DeferredDriver {
    driver: Driver,
    requests: VecDeque<(CallId, LaneItem)>,
    replies: Vec<(CallId, Reply)>,
}

impl DeferredDriver {
    fn new() -> Self {
        let driver =
            Driver::open_with(None, &ManualClock::new(), 1, &engine_config()).expect("opens");
        Self { driver, requests: VecDeque::new(), replies: Vec::new() }
    }

    fn send(&mut self, slot: u32, call: Call) {
        let by = Principal::Anyone;
        self.requests.push_back((CallId { lane: 3, slot }, Request::new(by, call).into()));
    }

    /// Reports that the client of the call has disconnected.
    fn abandon(&mut self, slot: u32) {
        self.requests.push_back((CallId { lane: 3, slot }, LaneItem::Abandoned));
    }

    fn wait(&mut self, slot: u32, wait_ms: u64) {
        let call = Call::Acquire { pool: default_pool(), ttl_ms: None, holder: None, wait_ms };
        self.send(slot, call);
    }

    /// Runs turns until no request is left, and returns their replies.
    fn run_turns(&mut self) -> Vec<(u32, Reply)> {
        loop {
            self.driver
                .engine
                .turn(&mut self.requests, &mut self.replies)
                .expect("an engine in memory does not fail");
            if self.requests.is_empty() && self.driver.engine.pending_count() == 0 {
                break;
            }
        }
        self.replies.drain(..).map(|(call_id, reply)| (call_id.slot, reply)).collect()
    }

    fn generate(&mut self, count: u32) {
        self.send(
            u32::MAX,
            Call::Generate { pool: default_pool(), count, labels: NewLabels::None },
        );
    }

    fn waiter_count(&mut self) -> u64 {
        let Reply::Pool { pool, .. } = self.driver.call(Call::GetPool { pool: default_pool() })
        else {
            panic!("a pool")
        };
        assert_eq!(pool.waiting, self.driver.engine.pools().waiter_count() as u64);
        pool.waiting
    }
}

fn granted(reply: &Reply) -> Option<(KeyId, LeaseId, u64)> {
    let Reply::Granted { lease, waited_ms, .. } = reply else { return None };
    Some((lease.key_id, lease.id, *waited_ms))
}

#[test]
fn the_maximum_number_of_waiters_get_one_key_each_in_their_order() {
    let mut run = DeferredDriver::new();
    let all = u32::try_from(WAITERS_MAX).expect("a hundred thousand");
    for slot in 0..all {
        run.wait(slot, 300_000);
    }
    run.wait(all, 1);
    let replies = run.run_turns();
    let [(slot, Reply::Refused(RequestError::Refused(Refusal::WaitQueueFull { .. })))] =
        &replies[..]
    else {
        panic!("{} replies", replies.len())
    };
    assert_eq!((*slot, run.waiter_count()), (all, u64::from(all)));
    run.driver.clock.advance_ms(1_500);
    let (mut keys, mut order) = (HashSet::new(), Vec::new());
    for _ in 0..all / 10_000 {
        run.generate(10_000);
        for (slot, reply) in run.run_turns() {
            if let Some((key, _, waited_ms)) = granted(&reply) {
                assert!(keys.insert(key), "no key twice");
                assert_eq!(waited_ms, 1_500);
                order.push(slot);
            }
        }
    }
    assert!(order.iter().copied().eq(0..all), "each one key, first come, first served");
    assert_eq!(run.waiter_count(), 0);
}

/// Callers arrive, disconnect and return on the same call ids, while keys are released: in the end
/// every key is available or leased by a connected caller.
#[test]
fn callers_disconnect_at_random_and_no_key_is_lost() {
    for seed in 0..30 {
        let (mut run, mut random) = (DeferredDriver::new(), SeededRandom(seed));
        run.generate(5);
        run.run_turns();
        // Open calls by slot; true while the caller is connected.
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
                        run.abandon(slot);
                    }
                    _ => {}
                }
            }
            if random.below(3) == 0
                && let Some(slot) = holders.keys().next().copied()
            {
                let (lease, options) = (holders[&slot], ReleaseOptions::default());
                holders.remove(&slot);
                run.send(u32::MAX, Call::Release { pool: default_pool(), lease, options });
            }
            run.driver.clock.advance_ms(random.below(200));
            for (slot, reply) in run.run_turns() {
                if slot == u32::MAX {
                    continue;
                }
                // A call id gets one reply and is then free: this panics otherwise.
                let connected = calls.remove(&slot).expect("an open call");
                match (connected, granted(&reply)) {
                    (true, Some((_, lease, _))) => drop(holders.insert(slot, lease)),
                    (false, Some((_, lease, _))) => {
                        let options = ReleaseOptions::default();
                        let release = Call::Release { pool: default_pool(), lease, options };
                        run.send(u32::MAX, release);
                    }
                    (true, None) => assert!(matches!(reply, Reply::Refused(_)), "{reply:?}"),
                    (false, None) => {}
                }
            }
        }
        run.run_turns();
        let connected = calls.values().filter(|connected| **connected).count() as u64;
        assert_eq!(run.waiter_count(), connected, "seed {seed}: only connected callers wait");
        for lease in holders.into_values() {
            let options = ReleaseOptions::default();
            run.send(u32::MAX, Call::Release { pool: default_pool(), lease, options });
        }
        run.driver.clock.advance_ms(3_000);
        let late_grants: Vec<_> =
            run.run_turns().iter().filter_map(|(_, reply)| granted(reply)).collect();
        let counts = run.driver.engine.pools().get(&default_pool()).expect("it exists").counts();
        assert_eq!(counts.available + late_grants.len() as u64, 5, "seed {seed}: no key is lost");
    }
}

/// A request that is deferred because much is due, and whose caller disconnects meanwhile, never
/// enters the wait queue.
#[test]
fn a_caller_that_disconnects_while_much_is_due_does_not_wait_afterwards() {
    let mut run = DeferredDriver::new();
    let patch = PolicyPatch { rest_ms: Some(600_000), ..PolicyPatch::default() };
    run.send(0, Call::PutPool { pool: default_pool(), patch: Box::new(patch) });
    run.generate(10_000);
    run.generate(10_000);
    run.run_turns();
    for slot in 1..=20_000 {
        run.wait(slot, 0);
    }
    let granted = run.run_turns().iter().filter(|(_, reply)| granted(reply).is_some()).count();
    assert_eq!(granted, 20_000);
    run.driver.clock.advance_ms(60_000);
    run.wait(1, 300_000);
    run.wait(2, 300_000);
    run.driver
        .engine
        .turn(&mut run.requests, &mut run.replies)
        .expect("an engine in memory does not fail");
    assert_eq!(
        (run.driver.engine.pending_count(), run.replies.len()),
        (2, 0),
        "more is due than one turn expires"
    );
    run.abandon(1);
    let replies = run.run_turns();
    assert!(matches!(replies[..], [(1, Reply::Done)]), "{replies:?}");
    assert_eq!(run.waiter_count(), 1, "the other one waits");
}

#[test]
fn a_stop_cancels_every_wait_and_no_call_waits_afterwards() {
    let mut run = DeferredDriver::new();
    run.wait(1, 300_000);
    run.wait(2, 300_000);
    assert!(run.run_turns().is_empty());
    run.driver.engine.cancel_waits();
    run.wait(3, 300_000);
    let mut cancelled: Vec<u32> = Vec::new();
    for (slot, reply) in run.run_turns() {
        assert!(matches!(reply, Reply::Refused(RequestError::ShuttingDown)), "{reply:?}");
        cancelled.push(slot);
    }
    cancelled.sort_unstable();
    assert_eq!(cancelled, [1, 2, 3]);
    run.generate(1);
    run.wait(4, 300_000);
    assert_eq!(
        run.run_turns().iter().filter_map(|(_, reply)| granted(reply)).count(),
        1,
        "available keys are still granted"
    );
}

#[test]
fn a_grant_to_a_waiter_is_durable_before_its_reply() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let driver = Driver::open(Arc::new(disk.clone()), &clock, 1).expect("opens");
    let mut run = DeferredDriver { driver, requests: VecDeque::new(), replies: Vec::new() };
    run.generate(1);
    run.run_turns();
    let (first, ..) = run.driver.acquire("first").expect("a key is available");
    run.wait(1, 300_000);
    assert!(run.run_turns().is_empty());
    // By time: the turn in which the lease expires grants the key to the waiter, without a request.
    clock.advance_ms(59_999);
    assert!(run.run_turns().is_empty());
    clock.advance_ms(1);
    let replies = run.run_turns();
    let (key, lease, waited_ms) = granted(&replies[0].1).expect("the first waiter");
    assert_eq!((replies.len(), replies[0].0, waited_ms), (1, 1, 60_000));
    drop(run);
    let mut restarted = Driver::open(Arc::new(disk), &clock, 2).expect("opens");
    assert_eq!((restarted.recovery.keys, restarted.recovery.leases), (1, 1));
    assert!(restarted.acquire("other").is_none(), "{key} is leased");
    let release =
        |lease| Call::Release { pool: default_pool(), lease, options: ReleaseOptions::default() };
    assert!(matches!(restarted.call(release(first)), Reply::Refused(_)));
    assert!(matches!(restarted.call(release(lease)), Reply::Released { .. }));
}
