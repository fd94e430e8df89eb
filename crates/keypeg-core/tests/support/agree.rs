//! Compares the real pools with the naive ones: cheaply after every step, fully on copies.
//!
//! The naive pools are never behind; the real ones may be, by what is due and not ended yet, and
//! must then report that something is due. The full comparison also covers the replayed pools. Their
//! replay continues from one comparison to the next, so that each fact is applied once.

use super::journal::Journal;
use super::naive::{Naive, NaivePool};
use keypeg_core::{
    AcquireOptions, Borrower, Fact, FactSink, Granted, IdHashKey, ImportOptions, KeyRef, Limits,
    NextDue, Now, Pool, PoolName, Pools, Refusal, ReleaseOptions, Replayer, Secret, SharedState,
    StepContext,
};
use keypeg_testkit::ScaledRandom;

/// The limits of both.
pub(crate) const LIMITS: Limits =
    Limits { pools: 3, keys: 40, bytes: u64::MAX, answers: keypeg_core::ANSWERS_MAX };

/// The names of borrowers.
pub(crate) const BORROWERS: [&str; 2] = ["ci", "web"];

pub(crate) fn ids() -> IdHashKey {
    IdHashKey::new([9; 32])
}

pub(crate) fn pool_name(name: &str) -> PoolName {
    PoolName::parse(name).expect("a name")
}

/// Returns whether the real pool has not ended yet what is due.
pub(crate) fn is_behind(real: &Pools, naive: &Naive, name: &str) -> bool {
    let real = real.get(&pool_name(name)).expect("the same pools");
    real.counts() != naive.pool(name).expect("the same pools").counts()
}

/// Checks what must be true after every step, whatever is due.
pub(crate) fn check(real: &Pools, naive: &Naive, now: Now) {
    real.check_invariants();
    let (mut lease_us, mut serving_us) = (None, None);
    for pool in &naive.pools {
        let own = real.get(&pool_name(&pool.name)).expect("the same pools");
        let (hold_end, purge) = (own.next_hold_end_us(), own.next_purge_us());
        let due = hold_end.is_some_and(|at| at <= now.lease_us)
            || purge.is_some_and(|at| at <= now.serving_us);
        assert_eq!(
            is_behind(real, naive, &pool.name),
            due,
            "behind exactly where something is due"
        );
        if !due {
            assert_eq!(hold_end, pool.next_hold_end(), "the next hold end");
            assert_eq!(purge, pool.next_purge(), "the next purge");
        }
        lease_us = [lease_us, hold_end].into_iter().flatten().min();
        serving_us = [serving_us, purge].into_iter().flatten().min();
    }
    let next_due = real.next_due();
    let expected = NextDue { lease_us, serving_us };
    let at_once = NextDue { lease_us: Some(0), serving_us: Some(0) };
    assert!(next_due == expected || next_due == at_once, "{next_due:?}");
}

/// The replay of a journal, up to the last comparison.
#[derive(Debug)]
pub(crate) struct Replay {
    replayer: Replayer,
    /// The number of facts that it has applied.
    applied: usize,
}

impl Replay {
    pub(crate) fn new() -> Self {
        Self { replayer: Replayer::new(ids(), LIMITS, 1), applied: 0 }
    }

    /// Returns the pools as they are after a start with the journal and these facts behind it.
    fn with(&mut self, journal: &Journal, behind: &Journal, now: Now) -> Pools {
        let applied = journal.replay_from(self.applied, &mut self.replayer);
        self.applied = applied.expect("consistent facts");
        let mut replayer = self.replayer.clone();
        behind.replay_from(0, &mut replayer).expect("consistent facts");
        replayer.finish(now)
    }
}

/// Compares everything, on copies: with the model, and with the replayed pools.
pub(crate) fn compare(
    real: &Pools,
    naive: &Naive,
    now: Now,
    (journal, replay): (&Journal, &mut Replay),
) {
    let (mut live, mut ended) = (real.clone(), Journal::default());
    drain(&mut live, now, &mut ended);
    let started = Now { serving_us: 0, ..now };
    let mut replayed = replay.with(journal, &ended, started);
    replayed.check_invariants();
    assert_eq!(replayed.counters(), live.counters());
    assert!(replayed.next_token() >= live.next_token(), "tokens never decrease");
    compare_pools(&mut live, naive, now);
    drain(&mut replayed, started, &mut Journal::default());
    let mut naive = naive.clone();
    naive.restart(started);
    compare_pools(&mut replayed, &naive, started);
}

fn compare_pools(real: &mut Pools, naive: &Naive, now: Now) {
    assert_eq!(real.iter().count(), naive.pools.len());
    assert_eq!(real.key_count(), naive.keys());
    for name in BORROWERS {
        let count = real.lease_count(Borrower::new(name, None));
        assert_eq!(count, naive.lease_count(name), "leases of {name}");
    }
    for pool in &naive.pools {
        let name = pool_name(&pool.name);
        let own = real.get(&name).expect("the same pools");
        assert_eq!((own.id(), own.policy()), (pool.number, &pool.policy));
        assert_eq!(own.counts(), pool.counts());
        assert_eq!(own.next_hold_end_us(), pool.next_hold_end());
        assert_eq!(own.next_purge_us(), pool.next_purge());
        let mut sink = |_: &Fact<'_>| {};
        let mut random = ScaledRandom::new(0);
        let facts = &mut sink;
        let mut step =
            StepContext { now, random: &mut random, facts, budget: 0, ended_by_time: false };
        let result = real.with_pool(&name, &mut step, |own, shared, step| {
            compare_keys(own, shared, step, (naive, pool));
            Ok(())
        });
        result.expect("a pool");
        assert!(!step.ended_by_time, "something was due after everything was ended");
    }
}

/// Compares one pool: its keys, its ended leases, its retired values, its available keys.
fn compare_keys(
    own: &mut Pool,
    shared: &mut SharedState,
    step: &mut StepContext<'_>,
    (naive, pool): (&Naive, &NaivePool),
) {
    for key in &pool.keys {
        let expected = naive.get_key(step.now, &pool.name, &KeyRef::Id(key.id));
        assert_eq!(own.get_key(shared, step, &KeyRef::Id(key.id)), expected);
        let value = KeyRef::Value(Secret::new(&key.value).expect("a value"));
        assert_eq!(own.get_key(shared, step, &value), expected);
    }
    for ended in naive.ended.iter().rev().take(10) {
        let cause = naive.end_cause(pool, ended.id);
        let result = own.release(shared, step, ended.id, &ReleaseOptions::default());
        let unknown = naive.forgetful && result == Err(Refusal::LeaseEnded { cause: None });
        let known = result == Err(Refusal::LeaseEnded { cause });
        assert!(unknown || known, "{result:?}, must be {cause:?}");
    }
    for value in &pool.retired {
        let values = [Secret::new(value).expect("a value")];
        let result = own.import(shared, step, &values, ImportOptions::default(), None);
        assert_eq!(result, Err(Refusal::KeyExists { index: 0 }));
    }
    let mut available = naive.available_keys(step.now, &pool.name, None).unwrap_or_default();
    while let Ok(Granted { lease, .. }) = own.acquire(shared, step, &AcquireOptions::default()) {
        let index = available.iter().position(|id| *id == lease.key_id);
        available.swap_remove(index.expect("an available key"));
    }
    assert!(available.is_empty(), "available keys that are not leased");
}

/// Ends everything that is due.
pub(crate) fn drain(pools: &mut Pools, now: Now, facts: &mut dyn FactSink) {
    let mut random = ScaledRandom::new(0);
    let random = &mut random;
    let mut step = StepContext { now, random, facts, budget: 1_000_000, ended_by_time: false };
    assert!(!pools.expire(&mut step));
}
