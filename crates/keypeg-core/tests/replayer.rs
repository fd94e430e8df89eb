//! Facts that contradict the facts before them are rejected.
//!
//! Each case is a consistent journal and one more fact that cannot follow it: facts between are
//! missing, or it belongs to another journal. `model.rs` tests that consistent facts rebuild the
//! pools.

use keypeg_core::{
    AcquireOptions, BorrowerId, Checkpointed, Counters, Fact, Grant, IdHashKey, ImportOptions,
    KeyNumber, KeyRef, Limits, Now, PackedValues, Policy, PolicyPatch, PoolId, PoolName, Pools,
    RecordedLabels, Refusal, ReleaseOptions, ReplayError, Replayer, Secret, StepContext, StoredKey,
    StoredPool, TOKEN_MAX, TOKEN_RESERVATION,
};
use keypeg_testkit::ScaledRandom;

const LIMITS: Limits =
    Limits { pools: 10, keys: 100, bytes: u64::MAX, answers: keypeg_core::ANSWERS_MAX };
/// Three values as a journal stores them.
const ABC: &[u8] = b"\x01\x00a\x01\x00b\x01\x00c";
const D: &[u8] = b"\x01\x00d";
const E: &[u8] = b"\x01\x00e";

fn pool_created(pool: u32, name: &str) -> Fact<'_> {
    Fact::PoolCreated { pool: PoolId(pool), name, policy: Policy::default() }
}

fn keys_created(first: u64, packed: &[u8]) -> Fact<'_> {
    let values = PackedValues::parse(packed).expect("whole values");
    Fact::KeysCreated {
        pool: PoolId(1),
        first: KeyNumber(first),
        at_ms: 0,
        imported: false,
        keepalive: true,
        labels: RecordedLabels::None,
        values,
    }
}

fn granted(pool: u32, key: u64, token: u64) -> Fact<'static> {
    let (granted_us, until_us, hold_until_us) = (0, 60_000_000, 60_000_000);
    let (rest_us, holder, borrower) = (0, None, BorrowerId::NONE);
    let lease = Grant { granted_us, until_us, hold_until_us, rest_us, holder, borrower };
    Fact::Granted { pool: PoolId(pool), key: KeyNumber(key), token, lease }
}

/// Two pools; keys 1, 2 and 3 in the first: 1 leased with token 50, 2 released, 3 deleted.
fn consistent() -> Replayer {
    let mut replayer = Replayer::new(IdHashKey::new([1; 32]), LIMITS, 1);
    let facts = [
        pool_created(1, "default"),
        pool_created(2, "other"),
        keys_created(1, ABC),
        Fact::TokensReserved { until: 100 },
        granted(1, 1, 49),
        granted(1, 1, 50),
        granted(1, 2, 51),
        Fact::Released {
            pool: PoolId(1),
            key: KeyNumber(2),
            token: 51,
            rest_until_us: 0,
            reason: None,
        },
        Fact::KeyDeleted { pool: PoolId(1), key: KeyNumber(3) },
    ];
    for fact in facts {
        assert_eq!(replayer.apply(&fact, Checkpointed::No), Ok(()), "{fact:?}");
    }
    replayer
}

/// A clean stop below a granted token was once accepted, and that token would have been granted
/// again: the last two lines of the table test it.
#[test]
fn an_inconsistent_fact_is_rejected() {
    let renewed =
        |key, token| Fact::Renewed { pool: PoolId(1), key: KeyNumber(key), token, until_us: 1 };
    let released = |key, token| Fact::Released {
        pool: PoolId(1),
        key: KeyNumber(key),
        token,
        rest_until_us: 0,
        reason: None,
    };
    let quarantined =
        |key| Fact::Quarantined { pool: PoolId(1), key: KeyNumber(key), reason: Some("401") };
    let inconsistent_facts = [
        pool_created(1, "third"),
        pool_created(3, "default"),
        pool_created(3, "No Name"),
        Fact::PolicyChanged { pool: PoolId(3), policy: Policy::default() },
        Fact::PoolDeleted { pool: PoolId(3) },
        keys_created(4, ABC),
        keys_created(3, D),
        Fact::KeyDeleted { pool: PoolId(1), key: KeyNumber(3) },
        Fact::KeyDeleted { pool: PoolId(1), key: KeyNumber(4) },
        Fact::KeyDeleted { pool: PoolId(2), key: KeyNumber(1) },
        Fact::KeyPurged { pool: PoolId(3), key: KeyNumber(1) },
        Fact::KeyFreed { pool: PoolId(1), key: KeyNumber(3) },
        quarantined(3),
        granted(1, 3, 52),
        granted(2, 1, 52),
        granted(1, 2, 51),
        granted(1, 2, 50),
        granted(1, 2, 100),
        renewed(1, 49),
        renewed(2, 51),
        renewed(3, 50),
        released(1, 49),
        released(1, 51),
        released(2, 51),
        released(3, 50),
        Fact::TokensReserved { until: 100 },
        Fact::TokensReserved { until: TOKEN_MAX + 1 },
        Fact::Stopped { next_token: 101 },
        Fact::Stopped { next_token: 50 },
        Fact::Stopped { next_token: 51 },
    ];
    for fact in inconsistent_facts {
        assert!(
            matches!(consistent().apply(&fact, Checkpointed::No), Err(ReplayError(_))),
            "{fact:?} was accepted"
        );
    }
    let consistent_facts = [
        pool_created(3, "third"),
        Fact::PoolDeleted { pool: PoolId(2) },
        keys_created(4, D),
        keys_created(9, D),
        granted(1, 1, 52),
        granted(1, 2, 99),
        renewed(1, 50),
        released(1, 50),
        Fact::KeyFreed { pool: PoolId(1), key: KeyNumber(1) },
        quarantined(1),
        quarantined(2),
        Fact::KeyPurged { pool: PoolId(1), key: KeyNumber(1) },
        Fact::TokensReserved { until: 101 },
        Fact::Stopped { next_token: 52 },
        Fact::Stopped { next_token: 100 },
    ];
    for fact in consistent_facts {
        assert_eq!(consistent().apply(&fact, Checkpointed::No), Ok(()), "{fact:?}");
    }
}

fn pools(facts: &[Fact<'_>]) -> Pools {
    let mut replayer = consistent();
    for fact in facts {
        assert_eq!(replayer.apply(fact, Checkpointed::No), Ok(()), "{fact:?}");
    }
    let pools = replayer.finish(Now::default());
    pools.check_invariants();
    pools
}

#[test]
fn tokens_continue_after_a_clean_stop_and_skip_the_reservation_after_any_other() {
    let stopped = Fact::Stopped { next_token: 60 };
    assert_eq!(pools(&[]).next_token(), 100);
    assert_eq!(pools(std::slice::from_ref(&stopped)).next_token(), 60);
    assert_eq!(pools(&[stopped.clone(), granted(1, 2, 60)]).next_token(), 100);
    assert_eq!(pools(&[stopped, keys_created(4, D)]).next_token(), 100);
    let more = Fact::TokensReserved { until: 100 + TOKEN_RESERVATION };
    assert_eq!(pools(&[more]).next_token(), 100 + TOKEN_RESERVATION);
}

#[test]
fn counters_never_decrease() {
    let mut replayer = consistent();
    replayer.raise_counters(Counters {
        next_key: KeyNumber(40),
        next_pool: PoolId(1),
        tokens_reserved: 500,
    });
    replayer.raise_counters(Counters {
        next_key: KeyNumber(2),
        next_pool: PoolId(7),
        tokens_reserved: 5,
    });
    assert!(
        replayer.apply(&keys_created(39, D), Checkpointed::No).is_err(),
        "a number below the counter"
    );
    let mut replayer = consistent();
    replayer.raise_counters(Counters {
        next_key: KeyNumber(40),
        next_pool: PoolId(7),
        tokens_reserved: 500,
    });
    assert_eq!(replayer.apply(&keys_created(40, E), Checkpointed::No), Ok(()));
    let pools = replayer.finish(Now::default());
    let expected = Counters { next_key: KeyNumber(41), next_pool: PoolId(7), tokens_reserved: 500 };
    assert_eq!((pools.counters(), pools.next_token(), pools.key_count()), (expected, 500, 3));
}

/// A binary search over all keys once took half of a start, with a cache miss at each step.
#[test]
fn a_key_of_the_database_is_found_whatever_numbers_are_missing_before_and_after_it() {
    let far = 5_000_000_000;
    for numbers in [
        &[][..],
        &[1],
        &[7],
        &[u64::MAX / 2],
        &[3, 4, 5, 6],
        &[3, 5, 6, 7, 8, 9],
        &[3, 4, 5, 6, 7, 9],
        &[1, 2, 3, 90, 91, 92, far, far + 1, far + 10],
        &[1, far],
    ] {
        let ids = IdHashKey::new([1; 32]);
        let mut replayer = Replayer::new(ids.clone(), LIMITS, 1);
        let key_count = numbers.len() as u64;
        let row = StoredPool { name: "ci", policy: Policy::default(), key_count };
        replayer.load_pool(PoolId(1), row).expect("a pool");
        for &number in numbers {
            let value = number.to_string();
            let id = ids.key_id(PoolId(1), value.as_bytes());
            let (created_at_ms, imported, keepalive) = (0, false, true);
            let value = value.as_bytes();
            let row = StoredKey { value, id, created_at_ms, imported, keepalive };
            replayer.load_key(PoolId(1), KeyNumber(number), &row).expect("a key");
        }
        let near = numbers.iter().flat_map(|&at| [at - 1, at, at + 1]);
        for number in near.chain([0, 2, 50, far / 2, u64::MAX]) {
            let exists = numbers.contains(&number);
            let found = replayer.load_label(PoolId(1), KeyNumber(number), "x").is_ok();
            assert_eq!(found, exists, "{number} of {numbers:?}");
        }
    }
}

/// Values that earlier versions generated have no tag, and these versions accepted an import of
/// them after a deletion: such a journal must open. From then on the values are remembered.
#[test]
fn values_that_an_earlier_version_generated_are_remembered_when_they_are_removed() {
    let mut replayer = consistent();
    // Key 3, whose value is "c", is deleted; the earlier version imported the value again.
    let again = keys_created(4, b"\x01\x00c");
    let Fact::KeysCreated { pool, first, at_ms, keepalive, values, .. } = again else {
        unreachable!("created keys")
    };
    let labels = RecordedLabels::None;
    let again = Fact::KeysCreated { pool, first, at_ms, imported: true, keepalive, labels, values };
    assert_eq!(replayer.apply(&again, Checkpointed::No), Ok(()));
    let mut pools = replayer.finish(Now::default());
    pools.check_invariants();
    let mut sink = |_: &Fact<'_>| {};
    let (now, random, facts) = (Now::default(), &mut ScaledRandom::new(1), &mut sink);
    let mut step = StepContext { now, random, facts, budget: 0, ended_by_time: false };
    let name = PoolName::default_pool();
    let imported = pools.with_pool(&name, &mut step, |pool, shared, step| {
        let secret = |value| Secret::new(value).expect("a value");
        for value in ["b", "c"] {
            pool.delete(shared, step, &KeyRef::Value(secret(value)))?;
        }
        let options = ImportOptions::default();
        Ok(["a", "b", "c", "d"].map(|value| {
            let imported = pool.import(shared, step, &[secret(value)], options, None);
            imported.map(|keys| keys.len())
        }))
    });
    let exists = || Err(Refusal::KeyExists { index: 0 });
    assert_eq!(imported, Ok([exists(), exists(), exists(), Ok(1)]));
}

/// The last reservation once exceeded the largest token, and the replay rejects that fact: a server
/// near the end of its tokens could not have started again.
#[test]
fn the_last_tokens_can_be_reserved_and_replayed() {
    let ids = || IdHashKey::new([1; 32]);
    let first = TOKEN_MAX - 3;
    let (mut pools, mut replayer) =
        (Pools::new(ids(), LIMITS, first), Replayer::new(ids(), LIMITS, first));
    let mut sink =
        |fact: &Fact<'_>| assert_eq!(replayer.apply(fact, Checkpointed::No), Ok(()), "{fact:?}");
    let (now, random, facts) = (Now::default(), &mut ScaledRandom::new(1), &mut sink);
    let mut step = StepContext { now, random, facts, budget: 0, ended_by_time: false };
    let name = PoolName::default_pool();
    let created =
        pools.create_or_update(&mut step, &name, &Policy::default(), PolicyPatch::default());
    assert_eq!(created, Ok(true));
    let tokens = pools.with_pool(&name, &mut step, |pool, shared, step| {
        pool.generate(shared, step, 3)?;
        let acquire = |_| {
            pool.acquire(shared, step, &AcquireOptions::default())
                .map(|granted| granted.lease.token)
        };
        (0..3).map(acquire).collect()
    });
    assert_eq!(tokens, Ok(vec![first, first + 1, first + 2]));
    assert_eq!(replayer.finish(now).next_token(), TOKEN_MAX);
}

/// Each shard counts its tokens from the same number on. Without remainders of their own, two leases
/// of one installation had the same token.
#[test]
fn no_two_shards_grant_the_same_token() {
    const SHARDS: u16 = 16;
    let now = Now::default();
    let mut all: Vec<u64> = Vec::new();
    for shard in 0..SHARDS {
        let mut replayer = consistent();
        replayer.set_token_class(shard, SHARDS);
        let mut pools = replayer.finish(now);
        let mut sink = |_: &Fact<'_>| {};
        let (random, facts) = (&mut ScaledRandom::new(1), &mut sink);
        let mut step = StepContext { now, random, facts, budget: 0, ended_by_time: false };
        let tokens = pools.with_pool(&PoolName::default_pool(), &mut step, |pool, shared, step| {
            let acquire = |_| {
                let lease = pool.acquire(shared, step, &AcquireOptions::default())?.lease;
                pool.release(shared, step, lease.id, &ReleaseOptions::default())?;
                Ok(lease.token)
            };
            (0..3).map(acquire).collect::<Result<Vec<u64>, Refusal>>()
        });
        let tokens = tokens.expect("a key is available");
        assert!(tokens[0] >= 100 && tokens.is_sorted_by(|one, next| one < next), "{tokens:?}");
        all.extend(tokens);
    }
    all.sort_unstable();
    assert!(all.is_sorted_by(|one, next| one < next), "{all:?}");
}
