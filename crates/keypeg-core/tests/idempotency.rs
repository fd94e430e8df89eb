//! Stored answers of Idempotency-Keys: their limits, and due leases while the clocks are frozen. The
//! tables are in `keypeg-testkit/scripts/idempotency.rs`.

use keypeg_core::{
    ANSWERS_MAX, AcquireOptions, BodyDigest, BorrowerId, Fact, IdHashKey, IdempotencyKey,
    IdempotentCall, Limits, Now, Policy, PolicyPatch, PoolName, Pools, Refusal, StepContext,
    WaitOptions, WaiterId,
};
use keypeg_testkit::ScaledRandom;

struct Server {
    pools: Pools,
    now: Now,
    facts: usize,
    random: ScaledRandom,
}

impl Server {
    fn call(&mut self, pool: &str, key: &str, call: IdempotentCall) -> Result<bool, Refusal> {
        let (body, borrower) = (BodyDigest(0), BorrowerId::NONE);
        let key = IdempotencyKey { caller: "", key, body, borrower, network: 0 };
        let facts = &mut self.facts;
        let mut sink = |fact: &Fact<'_>| {
            *facts += usize::from(matches!(fact, Fact::AnswerStored { .. }));
        };
        let mut step = StepContext {
            now: self.now,
            random: &mut self.random,
            facts: &mut sink,
            budget: 1_000,
            ended_by_time: false,
        };
        let name = PoolName::parse(pool).expect("a name");
        if self.pools.get(&name).is_none() {
            let (policy, patch) = (Policy::default(), PolicyPatch::default());
            self.pools.create_or_update(&mut step, &name, &policy, patch).expect("room");
        }
        self.pools.with_pool(&name, &mut step, |pool, shared, step| {
            if call == IdempotentCall::AddKeys {
                let keys = pool.add_idempotent(shared, step, &key, |pool, shared, step| {
                    pool.generate(shared, step, 1)
                })?;
                return Ok(keys.len() == 1);
            }
            let options = AcquireOptions { ttl_ms: Some(1), ..AcquireOptions::default() };
            let granted = pool.acquire_idempotent(
                shared,
                step,
                &options,
                WaitOptions { waiter_id: WaiterId(0), wait_ms: 0 },
                &key,
            )?;
            Ok(granted.is_some_and(|granted| granted.redelivered))
        })
    }

    fn turns(&mut self, turns: u32) {
        for _ in 0..turns {
            let (facts, budget) = (&mut |_: &Fact<'_>| {}, 0);
            let (now, random) = (self.now, &mut self.random);
            self.pools.expire(&mut StepContext {
                now,
                random,
                facts,
                budget,
                ended_by_time: false,
            });
        }
    }

    fn remove_pool(&mut self, pool: &str) {
        let mut sink = |_: &Fact<'_>| {};
        let mut step = StepContext {
            now: self.now,
            random: &mut self.random,
            facts: &mut sink,
            budget: 1_000,
            ended_by_time: false,
        };
        self.pools.remove(&mut step, &PoolName::parse(pool).expect("a name")).expect("exists");
    }
}

/// The answers of a deleted pool, also those of ended leases, no longer count against the limits of
/// all pools.
#[test]
fn a_deleted_pool_takes_its_answers_out_of_the_shared_counts() {
    let limits = Limits { pools: 10, keys: 1_000, bytes: u64::MAX, answers: ANSWERS_MAX };
    let pools = Pools::new(IdHashKey::new([1; 32]), limits, 1);
    let mut server = Server { pools, now: Now::default(), facts: 0, random: ScaledRandom::new(1) };
    for pool in ["default", "other"] {
        assert_eq!(server.call(pool, "keys", IdempotentCall::AddKeys), Ok(true));
        for key in ["first", "second"] {
            // The lease of the first ends by time.
            assert_eq!(server.call(pool, key, IdempotentCall::Acquire), Ok(false));
            server.now.lease_us += 1_000;
        }
        server.pools.check_invariants();
    }
    server.remove_pool("other");
    server.pools.check_invariants();
}

/// While no fact can be stored no lease expires in memory, but a due lease is not redelivered. The
/// answer does not say that it has ended: a crash could take that back.
#[test]
fn a_due_lease_is_not_redelivered_while_the_clocks_are_frozen() {
    let limits = Limits { pools: 1, keys: 10, bytes: u64::MAX, answers: ANSWERS_MAX };
    let now = Now { lease_us: 1, serving_us: 0, wall_us: 1 << 50 };
    let pools = Pools::new(IdHashKey::new([1; 32]), limits, 1);
    let mut server = Server { pools, now, facts: 0, random: ScaledRandom::new(1) };
    server.call("p", "keys", IdempotentCall::AddKeys).expect("created");
    assert_eq!(server.call("p", "lease", IdempotentCall::Acquire), Ok(false));
    server.now.lease_us += 999;
    server.pools.set_clocks_frozen(true);
    assert_eq!(
        server.call("p", "lease", IdempotentCall::Acquire),
        Ok(true),
        "it runs for another microsecond"
    );
    server.now.lease_us += 1;
    let ended = server.call("p", "lease", IdempotentCall::Acquire);
    assert_eq!(ended, Err(Refusal::StorageFull));
    server.pools.set_clocks_frozen(false);
    let ended = server.call("p", "lease", IdempotentCall::Acquire);
    assert!(matches!(ended, Err(Refusal::LeaseEnded { .. })), "{ended:?}");
}

/// A request beyond the limit is refused before it changes anything. Answers make room after their
/// hour and when their pool is deleted. Answers of ended leases are evicted, oldest first.
#[test]
fn stored_answers_are_limited() {
    let limits = Limits { pools: 9, keys: 10_000_000, bytes: u64::MAX, answers: ANSWERS_MAX };
    let now = Now { lease_us: 1, serving_us: 0, wall_us: 1 << 50 };
    let mut server = Server {
        pools: Pools::new(IdHashKey::new([1; 32]), limits, 1),
        now,
        facts: 0,
        random: ScaledRandom::new(1),
    };
    for n in 0..ANSWERS_MAX / 2 {
        let pool = if n < 10 { "small" } else { "large" };
        assert_eq!(server.call(pool, &n.to_string(), IdempotentCall::AddKeys), Ok(true));
    }
    let full = Err(Refusal::TooManyAnswers { max: ANSWERS_MAX, is_share: false });
    let keys = server.pools.key_count();
    assert_eq!(server.call("large", "more", IdempotentCall::AddKeys), full);
    assert_eq!(server.call("small", "more", IdempotentCall::Acquire), full);
    assert_eq!(
        server.call("small", "3", IdempotentCall::AddKeys),
        Ok(true),
        "a repeat needs no room"
    );
    assert_eq!(
        (server.pools.key_count(), server.facts),
        (keys, ANSWERS_MAX / 2),
        "nothing is changed"
    );
    server.remove_pool("small");
    for n in 0..10 {
        assert_eq!(server.call("large", &format!("more {n}"), IdempotentCall::AddKeys), Ok(true));
    }
    assert_eq!(server.call("large", "more", IdempotentCall::AddKeys), full);
    server.now.lease_us += 3_600_000_000;
    server.turns(300);
    // A call on another pool: the pool with all the answers may never be called again.
    assert_eq!(server.call("other", "first", IdempotentCall::AddKeys), Ok(true));
    let large = server.pools.get(&PoolName::parse("large").expect("a name")).expect("exists");
    assert_eq!(large.stored_answer_count(), 0, "expired answers are not logged again");
    for n in 0..300_000 {
        server.now.lease_us += 1_000;
        assert_eq!(
            server.call("large", &format!("lease {n}"), IdempotentCall::Acquire),
            Ok(false),
            "{n}"
        );
    }
    let ended = server.call("large", "lease 299998", IdempotentCall::Acquire);
    let has_ended = matches!(ended, Err(Refusal::LeaseEnded { .. }));
    assert!(has_ended, "the latest answers of ended leases are stored: {ended:?}");
    assert_eq!(
        server.call("large", "lease 5", IdempotentCall::Acquire),
        Ok(false),
        "the oldest are evicted"
    );
    // Many answers of one pool leave room for those of another.
    for n in 0..200 {
        let key = format!("early {n}");
        assert_eq!(server.call("other", &key, IdempotentCall::Acquire), Ok(false));
        server.now.lease_us += 1_000;
    }
    for n in [0, 199] {
        let ended = server.call("other", &format!("early {n}"), IdempotentCall::Acquire);
        assert!(matches!(ended, Err(Refusal::LeaseEnded { .. })), "{n}: {ended:?}");
    }
    assert_eq!(server.call("other", "lease", IdempotentCall::Acquire), Ok(false));
    server.now.lease_us += 1_000;
    for _ in 0..2 {
        let ended = server.call("other", "lease", IdempotentCall::Acquire);
        assert!(matches!(ended, Err(Refusal::LeaseEnded { .. })), "not a second grant: {ended:?}");
    }
    assert!(
        server
            .pools
            .get(&PoolName::parse("large").expect("a name"))
            .expect("exists")
            .stored_answer_count()
            < 140_000
    );
}
