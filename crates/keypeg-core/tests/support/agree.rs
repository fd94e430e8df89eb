//! Whether the real pools agree with the naive ones: cheaply after every step, fully on copies.
//!
//! The naive pools are never behind; the real ones may be, by what is due and not ended yet, and
//! must then say that something is due. Fully compared are also the pools that the facts give.

use super::journal::Journal;
use super::naive::{Naive, NaivePool};
use keypeg_core::{
    AcquireOptions, Borrower, Fact, FactSink, Granted, IdHashKey, KeyRef, Limits, NextDue, Now,
    Pool, PoolName, Pools, Refusal, ReleaseOptions, Secret, SharedState, StepContext,
};
use keypeg_testkit::ScaledRandom as Rng;

/// The bounds of both.
pub(crate) const LIMITS: Limits = Limits { pools: 3, keys: 40 };

/// In whose names keys are lent.
pub(crate) const BORROWERS: [&str; 2] = ["ci", "web"];

pub(crate) fn ids() -> IdHashKey {
    IdHashKey::new([9; 32])
}

pub(crate) fn pool_name(name: &str) -> PoolName {
    PoolName::parse(name).expect("a name")
}

/// Whether the real pool has not ended all that is due yet.
pub(crate) fn is_behind(real: &Pools, naive: &Naive, name: &str) -> bool {
    let real = real.get(&pool_name(name)).expect("the same pools");
    real.counts() != naive.pool(name).expect("the same pools").counts()
}

/// What must hold after every step, whatever is due.
pub(crate) fn look(real: &Pools, naive: &Naive, now: Now) {
    real.check_invariants();
    let (mut back, mut purge) = (None, None);
    for pool in &naive.pools {
        let own = real.get(&pool_name(&pool.name)).expect("the same pools");
        let (next_back, next_purge) = (own.next_hold_end_us(), own.next_purge_us());
        let due = next_back.is_some_and(|at| at <= now.lease_us)
            || next_purge.is_some_and(|at| at <= now.serving_us);
        assert_eq!(is_behind(real, naive, &pool.name), due, "behind exactly where it says so");
        if !due {
            assert_eq!(next_back, pool.next_return(), "the next return");
            assert_eq!(next_purge, pool.next_purge(), "the next purge");
        }
        back = [back, next_back].into_iter().flatten().min();
        purge = [purge, next_purge].into_iter().flatten().min();
    }
    let told = real.next_due();
    let expected = NextDue { lease_us: back, serving_us: purge };
    let at_once = NextDue { lease_us: Some(0), serving_us: Some(0) };
    assert!(told == expected || told == at_once, "{told:?}");
}

/// Compares all there is, on copies: with the model, and with the pools the facts give back.
pub(crate) fn compare(real: &Pools, naive: &Naive, now: Now, journal: &Journal) {
    let (mut live, mut journal) = (real.clone(), journal.clone());
    drain(&mut live, now, &mut journal);
    let started = Now { serving_us: 0, ..now };
    let mut again = journal.rebuild((ids(), LIMITS, 1), started).expect("facts fit");
    again.check_invariants();
    assert_eq!(again.counters(), live.counters());
    assert!(again.next_token() >= live.next_token(), "tokens never fall");
    compare_pools(&mut live, naive, now);
    drain(&mut again, started, &mut Journal::default());
    let mut naive = naive.clone();
    naive.restart(started);
    compare_pools(&mut again, &naive, started);
}

fn compare_pools(real: &mut Pools, naive: &Naive, now: Now) {
    assert_eq!(real.iter().count(), naive.pools.len());
    assert_eq!(real.key_count(), naive.keys());
    for name in BORROWERS {
        let told = real.lease_count(Borrower::new(name, None));
        assert_eq!(told, naive.borrowed(name), "leases of {name}");
    }
    for pool in &naive.pools {
        let name = pool_name(&pool.name);
        let own = real.get(&name).expect("the same pools");
        assert_eq!((own.id(), own.policy()), (pool.number, &pool.policy));
        assert_eq!(own.counts(), pool.counts());
        assert_eq!(own.next_hold_end_us(), pool.next_return());
        assert_eq!(own.next_purge_us(), pool.next_purge());
        let mut sink = |_: &Fact<'_>| {};
        let mut random = Rng::new(0);
        let facts = &mut sink;
        let mut step =
            StepContext { now, random: &mut random, facts, budget: 0, ended_by_time: false };
        let played = real.with_pool(&name, &mut step, |own, ledger, step| {
            compare_keys(own, ledger, step, (naive, pool));
            Ok(())
        });
        played.expect("a pool");
        assert!(!step.ended_by_time, "something was due after all was ended");
    }
}

/// Compares one pool key by key, its past leases, what it retired, and what it would lend.
fn compare_keys(
    own: &mut Pool,
    ledger: &mut SharedState,
    step: &mut StepContext<'_>,
    (naive, pool): (&Naive, &NaivePool),
) {
    for key in &pool.keys {
        let expected = naive.show(step.now, &pool.name, &KeyRef::Id(key.id));
        assert_eq!(own.get_key(ledger, step, &KeyRef::Id(key.id)), expected);
        let value = KeyRef::Value(Secret::new(&key.value).expect("a value"));
        assert_eq!(own.get_key(ledger, step, &value), expected);
    }
    for past in naive.past.iter().rev().take(10) {
        let cause = naive.how_ended(pool, past.id);
        let told = own.release(ledger, step, past.id, &ReleaseOptions::default());
        let forgot = naive.forgetful && told == Err(Refusal::LeaseEnded { cause: None });
        assert!(forgot || told == Err(Refusal::LeaseEnded { cause }), "{told:?}, was {cause:?}");
    }
    for value in &pool.retired {
        let values = [Secret::new(value).expect("a value")];
        assert_eq!(own.import(ledger, step, &values, None), Err(Refusal::KeyExists { index: 0 }));
    }
    let mut free = naive.free_keys(step.now, &pool.name, None).unwrap_or_default();
    while let Ok(Granted { lease, .. }) = own.acquire(ledger, step, &AcquireOptions::default()) {
        let at = free.iter().position(|id| *id == lease.key_id).expect("a key that was free");
        free.swap_remove(at);
    }
    assert!(free.is_empty(), "free keys that are not lent");
}

/// Ends all that is due.
pub(crate) fn drain(pools: &mut Pools, now: Now, facts: &mut dyn FactSink) {
    let mut random = Rng::new(0);
    let random = &mut random;
    let mut step = StepContext { now, random, facts, budget: 1_000_000, ended_by_time: false };
    assert!(!pools.expire(&mut step));
}
