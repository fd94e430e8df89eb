//! Requests with an Idempotency-Key, as tables: executed once, and a repeat gets the same answer,
//! also after a restart; a repeat takes over the wait of the first request; refusals are not
//! stored.

#[path = "support/journal.rs"]
mod journal;
#[path = "support/world.rs"]
mod world;

use keypeg_core::{
    ANSWERS_MAX, AcquireOptions, BodyDigest, Fact, IdHashKey, IdempotencyKey, IdempotentCall,
    Limits, Now, Policy, PolicyPatch, PoolName, Pools, Refusal, StepContext, WaitOptions, WaiterId,
};
use keypeg_testkit::ScaledRandom;
use world::{check, check_within};

#[test]
fn a_repeated_acquire_returns_the_same_lease_while_it_runs_and_then_that_it_ended() {
    for restart in ["", "restart"] {
        check(&format!(
            "
            generate a b
            wait A for=0s ttl=30s holder=x once=k -> granted ttl=30s
            {restart}
            tick 10s
            wait B for=0s ttl=30s holder=x once=k -> redelivered same ttl=20s
            counts                -> counts available=1 leased=1
            wait C for=0s once=k body=other -> mismatch
            wait D for=0s once=other -> granted
            counts                -> counts available=0 leased=2
            {restart}
            tick 19.999s
            wait E for=0s once=k  -> redelivered same ttl=0.001s
            tick 0.001s
            wait F for=0s once=k  -> lease_ended
            generate c
            wait G for=0s once=k  -> lease_ended          # not a second grant
            {restart}
            wait H for=0s once=k  -> lease_ended
            "
        ));
    }
}

#[test]
fn a_lease_renewed_since_is_redelivered_with_its_present_end() {
    check(
        "
        pool p lease_ttl=60s max_hold=300s
        generate a
        wait A for=0s ttl=10s once=k -> granted ttl=10s
        tick 5s
        renew A ttl=60s
        tick 20s
        wait B for=0s once=k  -> redelivered changed ttl=40s
        release B
        wait C for=0s once=k  -> lease_ended Released
        ",
    );
}

#[test]
fn an_answer_is_removed_after_an_hour_but_not_while_its_lease_runs() {
    check(
        "
        pool p lease_ttl=7200s keepalive=null
        generate a b once=g   -> created
        wait A for=0s ttl=10s once=k -> granted
        wait B for=0s once=l  -> granted ttl=7200s
        tick 3599.999s
        generate a b once=g   -> same
        wait C for=0s once=k  -> lease_ended
        wait D for=0s once=l  -> redelivered same
        tick 0.001s
        generate a b once=g   -> others
        wait E for=0s once=k  -> granted
        wait F for=0s once=l  -> redelivered same ttl=3600s
        restart
        wait G for=0s once=l  -> redelivered same ttl=3600s
        ",
    );
}

#[test]
fn a_repeated_generate_returns_the_same_keys_while_all_of_them_exist() {
    for restart in ["", "restart"] {
        check(&format!(
            "
            generate x y z        # their slots are reused, out of order
            delete x
            delete z
            generate a b c d once=k -> created life=300s
            {restart}
            tick 10s
            generate a b c d once=k -> same life=290s
            acquire A
            generate a b c d once=k -> same
            generate a b c d once=k body=5 -> mismatch
            generate e once=l     -> created
            generate f once=k caller=other -> created  # the same key of another caller
            delete b
            generate n m          # reuses the slot of b
            {restart}
            generate a b c d once=k -> keys_gone
            counts                -> counts total=8
            "
        ));
    }
}

#[test]
fn a_repeated_import_returns_the_keys_instead_of_a_refusal() {
    check(
        "
        import a b once=k     -> created
        import a b            -> key_exists at=0
        restart
        import a b once=k     -> same
        delete a
        import a b once=k     -> keys_gone
        import a b once=l     -> key_exists at=0
        ",
    );
}

#[test]
fn a_key_that_is_due_is_missing_for_its_answer_too() {
    check(
        "
        pool p keepalive=10s
        generate a b once=k   -> created life=10s
        tick 9.999s
        generate a b once=k   -> same life=0.001s
        keepalive a
        tick 0.001s
        generate a b once=k   -> keys_gone
        counts                -> counts total=1
        ",
    );
}

#[test]
fn a_refusal_is_not_stored() {
    check(
        "
        wait A for=0s once=k  -> no_key PoolEmpty
        wait B for=1s once=k  -> waits
        tick 1s
        expire
        got B                 -> no_key PoolEmpty
        wait C for=0s once=k  -> no_key
        pool p max_keys=1
        generate a b once=g   -> full
        generate a once=g     -> created
        wait D for=0s once=k  -> granted
        ",
    );
    check_within(
        Limits { pools: 3, keys: 2 },
        "
        generate a b c once=g -> full of=server
        generate a b once=g   -> created
        generate a b once=g   -> same                  # needs no room
        ",
    );
}

#[test]
fn a_repeat_takes_over_the_position_of_the_waiting_request() {
    check(
        "
        wait one for=10s once=k -> waits
        wait two for=100s     -> waits
        tick 6s
        wait three for=10s once=k -> waits
        counts                -> counts waiting=2
        got one               -> taken_over
        cancel one            -> not_waiting
        wait bad once=k body=other -> mismatch
        tick 4s               # the first one's wait would end, the repeat's does not
        expire
        got three             -> nothing
        generate a
        got three             -> granted waited=4s
        got two               -> nothing
        wait four for=10s once=k -> redelivered same
        release three
        got two               -> granted
        wait five once=k      -> lease_ended Released
        ",
    );
    check(
        "
        wait one once=k       -> waits
        cancel one            -> cancelled
        wait two              -> waits
        wait three once=k     -> waits                 # a cancelled wait has no position
        generate a
        got two               -> granted
        got three             -> nothing
        drop default          -> default_pool
        ",
    );
    check(
        "
        pool p
        wait one once=k       -> waits
        drop p
        expire
        got one               -> unknown_pool
        pool p
        generate a
        wait two once=k       -> granted
        counts                -> counts waiting=0
        ",
    );
}

/// A grant that no client received is released, and a repeat of its request must not get the answer
/// that the lease ended, because it never had it. But a redelivered lease has a holder.
#[test]
fn a_revoked_grant_is_no_answer_unless_it_was_redelivered() {
    for restart in ["", "restart"] {
        check(&format!(
            "
            generate a
            wait A for=0s once=k  -> granted token=1
            revoke A              -> revoked
            {restart}
            counts                -> counts available=1
            wait B for=0s once=k  -> granted
            "
        ));
    }
    check(
        "
        generate a
        wait A for=0s once=k  -> granted
        wait B for=0s once=k  -> redelivered same
        revoke A              -> revoked
        counts                -> counts leased=1
        wait C for=0s once=k  -> redelivered same
        revoke A
        release B
        ",
    );
    check(
        "
        generate a
        acquire A
        revoke A              -> revoked
        counts                -> counts available=1
        revoke A              -> lease_ended Released
        ",
    );
}

struct Server {
    pools: Pools,
    now: Now,
    facts: usize,
    random: ScaledRandom,
}

impl Server {
    fn call(&mut self, pool: &str, key: &str, call: IdempotentCall) -> Result<bool, Refusal> {
        let key = IdempotencyKey { caller: "", key, body: BodyDigest(0) };
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
    let limits = Limits { pools: 10, keys: 1_000 };
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

/// While no fact can be stored no lease expires in memory, but a due lease is not redelivered.
#[test]
fn a_due_lease_is_not_redelivered_while_the_clocks_are_frozen() {
    let limits = Limits { pools: 1, keys: 10 };
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
    assert!(matches!(ended, Err(Refusal::LeaseEnded { .. })), "{ended:?}");
}

/// A request beyond the limit is refused before it changes anything. Answers make room after their
/// hour and when their pool is deleted. Answers of ended leases are evicted, oldest first.
#[test]
fn stored_answers_are_limited() {
    let limits = Limits { pools: 9, keys: 10_000_000 };
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
    let full = Err(Refusal::TooManyAnswers { max: ANSWERS_MAX });
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
    // Many answers of one pool do not evict the few of another.
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
            < 270_000
    );
}
