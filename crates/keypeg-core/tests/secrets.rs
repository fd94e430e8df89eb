//! No secret is in what `Debug` writes: whatever is logged, none gets into a log.
//!
//! Pools wrote their keys' values, as lists of bytes: each type was redacted where it is passed
//! around, but not where it is kept.

use keypeg_core::{
    AcquireOptions, Fact, IdHashKey, KeyRef, LeaseView, Limits, NewKey, Now, Policy, PolicyPatch,
    PoolName, Pools, Secret, StepContext,
};
use keypeg_testkit::ScaledRandom as Rng;
use std::fmt::Write;

#[test]
fn debug_shows_no_value_no_lease_id_and_no_hash_key() {
    let limits = Limits { pools: 1, keys: 100 };
    let mut pools = Pools::new(IdHashKey::new([251; 32]), limits, 1);
    let name = PoolName::default_pool();
    let mut told = String::new();
    let mut sink = |fact: &Fact<'_>| write!(told, "{fact:?}").expect("a string");
    let (now, random, facts) = (Now::default(), &mut Rng::new(1), &mut sink);
    let mut step = StepContext { now, random, facts, budget: 0, ended_by_time: false };
    let made = pools.create_or_update(&mut step, &name, &Policy::default(), PolicyPatch::default());
    assert_eq!(made, Ok(true));
    let long = Secret::new(&"lengthy".repeat(10)).expect("a value");
    let (keys, lease): (Vec<NewKey>, LeaseView) = pools
        .with_pool(&name, &mut step, |pool, ledger, step| {
            let mut keys = pool.generate(ledger, step, 1)?;
            keys.extend(pool.import(ledger, step, std::slice::from_ref(&long), None)?);
            Ok((keys, pool.acquire(ledger, step, &AcquireOptions::default())?.lease))
        })
        .expect("room and a free key");
    let named = KeyRef::Value(long);
    write!(told, "{pools:?}{keys:?}{lease:?}{named:?}").expect("a string");
    let told: String = told.split_whitespace().collect();
    let hidden = keys.iter().flat_map(|key| {
        let value = key.value.reveal();
        let bytes = format!("{:?}", &value.as_bytes()[..8]);
        [value.to_owned(), bytes.trim_matches(['[', ']']).replace(' ', "")]
    });
    for secret in hidden.chain([lease.id.to_string(), "251,251".into(), lease.id.0.to_string()]) {
        assert!(!told.contains(&secret), "{secret} is told in {told}");
    }
    assert!(told.contains(&lease.key_id.to_string()), "a key's id may be told");
}
