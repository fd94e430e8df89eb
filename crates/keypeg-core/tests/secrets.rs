//! `Debug` output contains no secret, so no log can contain one.
//!
//! Pools once wrote their keys' values, as lists of bytes: the types that are passed around were
//! redacted, but not those that store values.

use keypeg_core::{
    AcquireOptions, Fact, IdHashKey, ImportOptions, KeyRef, LeaseView, Limits, NewKey, Now, Policy,
    PolicyPatch, PoolName, Pools, Secret, StepContext,
};
use keypeg_testkit::ScaledRandom;
use std::fmt::Write;

#[test]
fn debug_shows_no_value_no_lease_id_and_no_hash_key() {
    let limits = Limits { pools: 1, keys: 100, bytes: u64::MAX, answers: keypeg_core::ANSWERS_MAX };
    let mut pools = Pools::new(IdHashKey::new([251; 32]), limits, 1);
    let name = PoolName::default_pool();
    let mut output = String::new();
    let mut sink = |fact: &Fact<'_>| write!(output, "{fact:?}").expect("a string");
    let (now, random, facts) = (Now::default(), &mut ScaledRandom::new(1), &mut sink);
    let mut step = StepContext { now, random, facts, budget: 0, ended_by_time: false };
    let created =
        pools.create_or_update(&mut step, &name, &Policy::default(), PolicyPatch::default());
    assert_eq!(created, Ok(true));
    let long = Secret::new(&"lengthy".repeat(10)).expect("a value");
    let (keys, lease): (Vec<NewKey>, LeaseView) = pools
        .with_pool(&name, &mut step, |pool, shared, step| {
            let mut keys = pool.generate(shared, step, 1)?;
            let values = std::slice::from_ref(&long);
            keys.extend(pool.import(shared, step, values, ImportOptions::default(), None)?);
            Ok((keys, pool.acquire(shared, step, &AcquireOptions::default())?.lease))
        })
        .expect("room and an available key");
    let named = KeyRef::Value(long);
    write!(output, "{pools:?}{keys:?}{lease:?}{named:?}").expect("a string");
    let output: String = output.split_whitespace().collect();
    let secrets = keys.iter().flat_map(|key| {
        let value = key.value.reveal();
        let bytes = format!("{:?}", &value.as_bytes()[..8]);
        [value.to_owned(), bytes.trim_matches(['[', ']']).replace(' ', "")]
    });
    for secret in secrets.chain([lease.id.to_string(), "251,251".into(), lease.id.0.to_string()]) {
        assert!(!output.contains(&secret), "{secret} is in {output}");
    }
    assert!(output.contains(&lease.key_id.to_string()), "a key's id is not secret");
}
