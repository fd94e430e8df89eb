//! Calls under an Idempotency-Key, as tables: played once, answered the same when asked again, over
//! restarts too; whoever waits is taken over by its repeat; nothing of a refusal is remembered.

#[path = "support/journal.rs"]
mod journal;
#[path = "support/world.rs"]
mod world;

use keypeg_core::{
    ANSWERS_MAX, AcquireOptions, BodyDigest, Fact, IdHashKey, IdempotencyKey, Limits, Now, Policy,
    PolicyPatch, PoolName, Pools, Refusal, StepContext, WaitOptions, WaiterId,
};
use keypeg_testkit::ScaledRandom as Rng;
use world::{check, check_within};

#[test]
fn a_grant_asked_again_is_the_same_lease_while_it_runs_and_then_over() {
    for restart in ["", "restart"] {
        check(&format!(
            "
            generate a b
            wait A for=0s ttl=30s holder=x once=k -> granted ttl=30s
            {restart}
            tick 10s
            wait B for=0s ttl=30s holder=x once=k -> again same ttl=20s
            counts                -> counts available=1 leased=1
            wait C for=0s once=k body=other -> mismatch
            wait D for=0s once=other -> granted
            counts                -> counts available=0 leased=2
            {restart}
            tick 19.999s
            wait E for=0s once=k  -> again same ttl=0.001s
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
fn a_lease_renewed_since_is_told_with_its_present_end() {
    check(
        "
        pool p lease_ttl=60s max_hold=300s
        generate a
        wait A for=0s ttl=10s once=k -> granted ttl=10s
        tick 5s
        renew A ttl=60s
        tick 20s
        wait B for=0s once=k  -> again changed ttl=40s
        release B
        wait C for=0s once=k  -> lease_ended Released
        ",
    );
}

#[test]
fn an_answer_is_forgotten_after_an_hour_but_not_while_its_lease_runs() {
    check(
        "
        pool p lease_ttl=7200s keepalive=null
        generate a b once=g   -> made
        wait A for=0s ttl=10s once=k -> granted
        wait B for=0s once=l  -> granted ttl=7200s
        tick 3599.999s
        generate a b once=g   -> same
        wait C for=0s once=k  -> lease_ended
        wait D for=0s once=l  -> again same
        tick 0.001s
        generate a b once=g   -> others
        wait E for=0s once=k  -> granted
        wait F for=0s once=l  -> again same ttl=3600s
        restart
        wait G for=0s once=l  -> again same ttl=3600s
        ",
    );
}

#[test]
fn keys_asked_for_again_are_the_same_keys_while_all_of_them_live() {
    for restart in ["", "restart"] {
        check(&format!(
            "
            generate x y z        # what these leave is used again, out of order
            delete x
            delete z
            generate a b c d once=k -> made life=300s
            {restart}
            tick 10s
            generate a b c d once=k -> same life=290s
            acquire A
            generate a b c d once=k -> same
            generate a b c d once=k body=5 -> mismatch
            generate e once=l     -> made
            generate f once=k by=other -> made         # another caller's key is another
            delete b
            generate n m          # where b was
            {restart}
            generate a b c d once=k -> keys_gone
            counts                -> counts total=8
            "
        ));
    }
}

#[test]
fn what_was_brought_in_once_is_told_again_rather_than_refused() {
    check(
        "
        import a b once=k     -> made
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
fn a_key_that_is_due_is_gone_for_its_answer_too() {
    check(
        "
        pool p keepalive=10s
        generate a b once=k   -> made life=10s
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
fn a_refusal_is_not_remembered() {
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
        generate a once=g     -> made
        wait D for=0s once=k  -> granted
        ",
    );
    check_within(
        Limits { pools: 3, keys: 2 },
        "
        generate a b c once=g -> full of=server
        generate a b once=g   -> made
        generate a b once=g   -> same                  # which takes no room
        ",
    );
}

#[test]
fn whoever_waits_is_taken_over_by_its_repeat_in_the_same_place() {
    check(
        "
        wait one for=10s once=k -> waits
        wait two for=100s     -> waits
        tick 6s
        wait three for=10s once=k -> waits
        counts                -> counts waiting=2
        got one               -> taken_over
        leave one             -> not_in_line
        wait bad once=k body=other -> mismatch
        tick 4s               # the first one's time is over, the repeat's is not
        expire
        got three             -> nothing
        generate a
        got three             -> granted waited=4s
        got two               -> nothing
        wait four for=10s once=k -> again same
        release three
        got two               -> granted
        wait five once=k      -> lease_ended Released
        ",
    );
    check(
        "
        wait one once=k       -> waits
        leave one             -> left
        wait two              -> waits
        wait three once=k     -> waits                 # whoever left has lost its place
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

/// A grant that nobody received is given back, and whoever repeats the request must not be told
/// that it has ended: it never had it. But once it was told of, it is somebody's.
#[test]
fn a_grant_taken_back_is_no_answer_unless_it_was_told_again() {
    for restart in ["", "restart"] {
        check(&format!(
            "
            generate a
            wait A for=0s once=k  -> granted token=1
            takeback A            -> taken_back
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
        wait B for=0s once=k  -> again same
        takeback A            -> taken_back
        counts                -> counts leased=1
        wait C for=0s once=k  -> again same
        takeback A
        release B
        ",
    );
    check(
        "
        generate a
        acquire A
        takeback A            -> taken_back
        counts                -> counts available=1
        takeback A            -> lease_ended Released
        ",
    );
}

struct Server {
    pools: Pools,
    now: Now,
    facts: usize,
    random: Rng,
}

impl Server {
    fn ask(&mut self, pool: &str, key: &str, lends: bool) -> Result<bool, Refusal> {
        let once = IdempotencyKey { caller: "", key, body: BodyDigest(0) };
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
        self.pools.with_pool(&name, &mut step, |pool, ledger, step| {
            if !lends {
                let made = pool.add_idempotent(ledger, step, &once, |pool, ledger, step| {
                    pool.generate(ledger, step, 1)
                })?;
                return Ok(made.len() == 1);
            }
            let wish = AcquireOptions { ttl_ms: Some(1), ..AcquireOptions::default() };
            let lent = pool.acquire_idempotent(
                ledger,
                step,
                &wish,
                WaitOptions { waiter_id: WaiterId(0), wait_ms: 0 },
                &once,
            )?;
            Ok(lent.is_some_and(|granted| granted.redelivered))
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

    fn drop_pool(&mut self, pool: &str) {
        let mut sink = |_: &Fact<'_>| {};
        let mut step = StepContext {
            now: self.now,
            random: &mut self.random,
            facts: &mut sink,
            budget: 1_000,
            ended_by_time: false,
        };
        self.pools.remove(&mut step, &PoolName::parse(pool).expect("a name")).expect("there");
    }
}

/// Where nothing can be remembered no lease ends, but one that is due is over: it is told to nobody.
#[test]
fn a_lease_that_is_due_is_not_told_again_while_nothing_can_be_remembered() {
    let limits = Limits { pools: 1, keys: 10 };
    let now = Now { lease_us: 1, serving_us: 0, wall_us: 1 << 50 };
    let pools = Pools::new(IdHashKey::new([1; 32]), limits, 1);
    let mut server = Server { pools, now, facts: 0, random: Rng::new(1) };
    server.ask("p", "make", false).expect("made");
    assert_eq!(server.ask("p", "lend", true), Ok(false));
    server.now.lease_us += 999;
    server.pools.set_clocks_frozen(true);
    assert_eq!(server.ask("p", "lend", true), Ok(true), "it runs for another microsecond");
    server.now.lease_us += 1;
    let over = server.ask("p", "lend", true);
    assert!(matches!(over, Err(Refusal::LeaseEnded { .. })), "{over:?}");
}

/// The bound is refused clearly and in time: what is asked beyond it changes nothing. Old answers
/// make room after their hour, and a pool's when it goes. Answers of ended leases make room by
/// themselves, the oldest first.
#[test]
fn answers_are_bounded() {
    let limits = Limits { pools: 9, keys: 10_000_000 };
    let now = Now { lease_us: 1, serving_us: 0, wall_us: 1 << 50 };
    let mut server = Server {
        pools: Pools::new(IdHashKey::new([1; 32]), limits, 1),
        now,
        facts: 0,
        random: Rng::new(1),
    };
    for n in 0..ANSWERS_MAX / 2 {
        let pool = if n < 10 { "small" } else { "large" };
        assert_eq!(server.ask(pool, &n.to_string(), false), Ok(true));
    }
    let full = Err(Refusal::TooManyAnswers { max: ANSWERS_MAX });
    let keys = server.pools.key_count();
    assert_eq!(server.ask("large", "more", false), full);
    assert_eq!(server.ask("small", "more", true), full);
    assert_eq!(server.ask("small", "3", false), Ok(true), "asked again it is there");
    assert_eq!(
        (server.pools.key_count(), server.facts),
        (keys, ANSWERS_MAX / 2),
        "nothing was changed"
    );
    server.drop_pool("small");
    for n in 0..10 {
        assert_eq!(server.ask("large", &format!("more {n}"), false), Ok(true));
    }
    assert_eq!(server.ask("large", "more", false), full);
    server.now.lease_us += 3_600_000_000;
    server.turns(300);
    // Whoever is asked now: the pool that has them all may never be asked again.
    assert_eq!(server.ask("other", "first", false), Ok(true));
    let large = server.pools.get(&PoolName::parse("large").expect("a name")).expect("there");
    assert_eq!(large.stored_answer_count(), 0, "and they are not told anew for ever");
    for n in 0..300_000 {
        server.now.lease_us += 1_000;
        assert_eq!(server.ask("large", &format!("lease {n}"), true), Ok(false), "{n}");
    }
    let ended = server.ask("large", "lease 299998", true);
    let over = matches!(ended, Err(Refusal::LeaseEnded { .. }));
    assert!(over, "of the last ones it is known that they ended: {ended:?}");
    assert_eq!(server.ask("large", "lease 5", true), Ok(false), "the first are forgotten");
    // One pool's many leave another's few their place.
    assert_eq!(server.ask("other", "lease", true), Ok(false));
    server.now.lease_us += 1_000;
    for _ in 0..2 {
        let ended = server.ask("other", "lease", true);
        assert!(matches!(ended, Err(Refusal::LeaseEnded { .. })), "not a second grant: {ended:?}");
    }
    assert!(
        server
            .pools
            .get(&PoolName::parse("large").expect("a name"))
            .expect("there")
            .stored_answer_count()
            < 270_000
    );
}
