//! Waiting for a key, as tables and with random calls: first come, first served; a step that makes
//! a key available grants it in the same step; no waiter is refused early or wrongly.

#[path = "support/journal.rs"]
mod journal;
#[path = "support/world.rs"]
mod world;

use keypeg_core::{
    AcquireOptions, Borrower, Fact, Granted, IdHashKey, KeyId, KeyRef, LeaseId, Limits, Now,
    Policy, PolicyPatch, Pool, PoolName, Pools, RandomSource, Refusal, ReleaseOptions, SharedState,
    StepContext, US_PER_MS, WAITERS_MAX, WaitOptions, WaitOutcome, WaiterId,
};
use keypeg_testkit::ScaledRandom;
use std::collections::{HashMap, VecDeque};
use world::{check, check_within};

#[test]
fn every_way_a_key_becomes_available_grants_it_to_the_first_waiter() {
    let ways = [
        ("", "release A"),
        ("", "force_release a"),
        ("", "generate b"),
        ("", "import v"),
        ("tick 5s", "expire"),
        ("tick 5s", "acquire X -> no_key AllLeased"),
        ("tick 5s", "release A -> lease_ended Expired"),
        ("tick 5s", "show a"),
        ("release A quarantine", "force_release a"),
        ("release A rest=2s", "force_release a"),
        ("release A rest=2s\n tick 2s", "expire"),
        ("release A rest=2s\n tick 2s", "keepalive a"),
    ];
    for (before, way) in ways {
        check(&format!(
            "
            generate a
            acquire A ttl=5s
            wait one holder=1     -> waits
            wait two              -> waits
            counts                -> counts available=0 waiting=2
            {before}
            got one               -> nothing
            {way}
            got one               -> granted
            got two               -> nothing
            counts                -> counts available=0 waiting=1
            show of:one           -> leased by=1
            acquire late          -> no_key available=0
            release one
            got two               -> granted
            release two
            acquire late          -> granted
            "
        ));
    }
}

#[test]
fn a_wait_ends_at_its_deadline_and_never_before() {
    check(
        "
        generate a
        acquire A ttl=30s
        wait one for=10s
        tick 2s
        wait two for=3s
        wait far for=300s
        tick 2.999999s
        expire                -> expired left=1000
        got two               -> nothing
        tick 1us
        expire                -> expired left=999
        got two               -> no_key AllLeased leased=1 next=25s
        counts                -> counts waiting=2
        tick 4.999s
        expire
        got one               -> nothing
        tick 0.001s
        expire
        got one               -> no_key AllLeased next=20s
        tick 20s              # the lease expires; the third has waited 28 s of 300
        expire
        got far               -> granted key=a waited=28s ttl=60s
        ",
    );
    check(
        "
        wait one              -> waits                      # a request can wait on an empty pool
        wait two for=0s       -> no_key PoolEmpty
        wait bad ttl=61s      -> invalid ttl_seconds
        counts                -> counts waiting=1
        generate a b
        got one               -> granted waited=0s
        counts                -> counts available=1 waiting=0
        wait three            -> granted                    # no wait while a key is available
        ",
    );
}

/// A key becomes available in the step in which a wait ends: a refusal would be wrong.
#[test]
fn no_waiter_is_refused_while_a_key_is_available() {
    check(
        "
        generate a
        acquire A ttl=10s
        wait one for=10s
        wait two for=10s
        tick 10s
        expire
        got one               -> granted key=a waited=10s
        got two               -> no_key AllLeased available=0 leased=1
        ",
    );
    check(
        "
        generate a b c d      # with more due than the budget, no waiter is refused either
        acquire A ttl=10s
        acquire B ttl=10s
        acquire C ttl=10s
        acquire D ttl=10s
        wait one for=5s
        tick 10s
        budget 0
        expire
        got one               -> nothing
        budget 1
        expire
        got one               -> granted waited=10s
        ",
    );
}

#[test]
fn a_cancelled_wait_keeps_the_order_of_the_others() {
    check(
        "
        generate a
        acquire A
        wait one
        wait two
        wait three
        wait four
        cancel two            -> cancelled
        cancel two            -> not_waiting
        cancel one            -> cancelled
        counts                -> counts waiting=2
        release A
        got three             -> granted
        cancel three          -> not_waiting
        release three
        got four              -> granted
        release four
        counts                -> counts available=1 waiting=0
        got one               -> nothing
        got two               -> nothing
        ",
    );
}

#[test]
fn each_pool_has_its_own_wait_queue() {
    check(
        "
        pool other
        wait one
        in default
        wait two
        drop other            # its waiters are refused a step later
        expire
        got one               -> unknown_pool
        cancel one            -> not_waiting
        counts                -> counts waiting=1
        pool other            # the same index, another queue
        wait three
        generate a
        got three             -> granted key=a
        got two               -> nothing
        restart               # waiting is in memory only
        in default
        counts                -> counts waiting=0
        ",
    );
}

#[test]
fn a_grant_to_a_waiter_follows_the_present_policy() {
    check(
        "
        wait one ttl=50s
        wait two
        policy lease_ttl=20s rest=7s
        generate a b
        got one               -> granted ttl=20s
        got two               -> granted ttl=20s
        release two
        show of:two           -> resting left=7s
        restart
        show of:one           -> leased ttl=20s             # it is a fact like any other
        ",
    );
}

#[test]
fn a_key_that_is_due_is_not_granted_to_a_waiter() {
    check_within(
        Limits { pools: 3, keys: 10 },
        "
        generate a
        tick 250s
        acquire A
        wait one for=300s
        tick 50s
        release A             -> lease_ended KeyGone
        got one               -> nothing
        generate b
        got one               -> granted key=b waited=50s
        ",
    );
}

/// A waiting request.
struct Waiting {
    waiter_id: WaiterId,
    since_us: u64,
    until_us: u64,
}

struct Run {
    pools: Pools,
    random: ScaledRandom,
    now: Now,
    next_waiter: u64,
    /// The expected wait queue.
    queue: VecDeque<Waiting>,
    /// The running leases and their ends.
    leases: HashMap<KeyId, (LeaseId, u64)>,
    keys: Vec<KeyId>,
    served: usize,
    refused: usize,
}

fn options() -> AcquireOptions<'static> {
    AcquireOptions { borrower: Borrower::new("ci", None), ..AcquireOptions::default() }
}

impl Run {
    fn new(seed: u64) -> Self {
        let limits = Limits { pools: 3, keys: 1_000 };
        let mut run = Self {
            pools: Pools::new(IdHashKey::new([3; 32]), limits, 1),
            random: ScaledRandom::new(seed),
            now: Now::default(),
            next_waiter: 0,
            queue: VecDeque::new(),
            leases: HashMap::new(),
            keys: vec![],
            served: 0,
            refused: 0,
        };
        let policy = Policy { lease_ttl_ms: 50, keepalive_ttl_ms: None, ..Policy::default() };
        let (name, patch) = (PoolName::default_pool(), PolicyPatch::default());
        run.step(|pools, step| pools.create_or_update(step, &name, &policy, patch)).expect("room");
        run
    }

    fn step<T>(&mut self, apply: impl FnOnce(&mut Pools, &mut StepContext<'_>) -> T) -> T {
        let budget = [0, 1, 2, 1_000][self.random.below(4) as usize];
        let mut sink = |_: &Fact<'_>| {};
        let (now, random, facts) = (self.now, &mut self.random, &mut sink);
        let mut step = StepContext { now, random, facts, budget, ended_by_time: false };
        let result = apply(&mut self.pools, &mut step);
        let outcomes: Vec<_> = self.pools.drain_wait_outcomes().collect();
        for outcome in outcomes {
            self.check_outcome(outcome);
        }
        result
    }

    fn with_pool<T>(
        &mut self,
        apply: impl FnOnce(&mut Pool, &mut SharedState, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        self.step(|pools, step| pools.with_pool(&PoolName::default_pool(), step, apply))
    }

    fn check_outcome(&mut self, outcome: WaitOutcome) {
        match outcome.outcome {
            Ok(granted) => {
                let first = self.queue.pop_front().expect("a request waits");
                assert_eq!(outcome.waiter_id, first.waiter_id, "first come, first served");
                let waited_us = self.now.lease_us - first.since_us;
                assert_eq!(granted.waited_ms, waited_us / US_PER_MS);
                self.lease(granted.lease.key_id, granted.lease.id);
                self.served += 1;
            }
            Err(refusal) => {
                let is_refused = |waiting: &Waiting| waiting.waiter_id == outcome.waiter_id;
                let index = self.queue.iter().position(is_refused).expect("the request waits");
                let refused = self.queue.remove(index).expect("within");
                assert!(refused.until_us <= self.now.lease_us, "refused before its deadline");
                let Refusal::NoKey { counts, .. } = refusal else { panic!("{refusal:?}") };
                assert_eq!(counts.available, 0, "refused while a key is available");
                self.refused += 1;
            }
        }
    }

    fn lease(&mut self, key: KeyId, lease: LeaseId) {
        let until = self.now.lease_us + 50 * US_PER_MS;
        let before = self.leases.insert(key, (lease, until));
        assert!(before.is_none_or(|(_, until)| until <= self.now.lease_us), "leased twice");
    }

    /// With a borrower, so that the invariants count its leases and waits.
    fn acquire(&mut self, wait_ms: u64) {
        let waiter_id = WaiterId(self.next_waiter);
        self.next_waiter += 1;
        let granted = self.with_pool(|pool, shared, step| {
            pool.acquire_or_wait(shared, step, &options(), WaitOptions { waiter_id, wait_ms })
        });
        match granted {
            Ok(Some(Granted { lease, .. })) => {
                assert!(self.queue.is_empty(), "a new request was served before the waiters");
                self.lease(lease.key_id, lease.id);
            }
            Ok(None) => {
                let since_us = self.now.lease_us;
                let until_us = since_us + wait_ms * US_PER_MS;
                self.queue.push_back(Waiting { waiter_id, since_us, until_us });
            }
            Err(Refusal::NoKey { .. }) => assert_eq!(wait_ms, 0),
            Err(refusal) => assert_eq!(refusal, Refusal::Settling),
        }
    }

    fn random_call(&mut self) {
        match self.random.below(20) {
            0..6 => self.acquire(0),
            6..11 => {
                let wait_ms = u64::from(self.random.below(40)) + 1;
                self.acquire(wait_ms);
            }
            11..13 => {
                let by = [1, 999, 1_000, 5_000, 20_000][self.random.below(5) as usize];
                self.now.lease_us += by;
            }
            13 if self.keys.len() < 20 => {
                let count = self.random.below(3) + 1;
                let created =
                    self.with_pool(|pool, shared, step| pool.generate(shared, step, count));
                self.keys.extend(created.iter().flatten().map(|key| key.id));
            }
            14 if !self.keys.is_empty() => {
                let index =
                    self.random.below(u32::try_from(self.keys.len()).expect("few")) as usize;
                let key = KeyRef::Id(self.keys.swap_remove(index));
                self.with_pool(|pool, shared, step| pool.delete(shared, step, &key))
                    .expect("exists");
            }
            15 if !self.queue.is_empty() => {
                let index =
                    self.random.below(u32::try_from(self.queue.len()).expect("few")) as usize;
                let Waiting { waiter_id, .. } = self.queue.remove(index).expect("within");
                assert!(self.pools.cancel_wait(waiter_id));
                assert!(!self.pools.cancel_wait(waiter_id));
            }
            16 => {
                self.step(Pools::expire);
            }
            _ => {
                let Some((&key, &(lease, until))) = self.leases.iter().next() else { return };
                // Removed before the step, in which a waiter may get the key.
                self.leases.remove(&key);
                let ended = self.with_pool(|pool, shared, step| {
                    pool.release(shared, step, lease, &ReleaseOptions::default())
                });
                assert!(ended.is_ok() || until <= self.now.lease_us || !self.keys.contains(&key));
            }
        }
    }

    /// Ends everything that is due, and checks what is left.
    fn expire_all(&mut self) {
        while self.step(Pools::expire) {}
        let counts = {
            let pool = self.pools.get(&PoolName::default_pool()).expect("exists");
            assert_eq!(pool.waiter_count(), self.queue.len() as u64);
            pool.counts()
        };
        assert!(
            self.queue.is_empty() || counts.available == 0,
            "a request waits while a key is available"
        );
        assert!(
            self.queue.iter().all(|waiting| waiting.until_us > self.now.lease_us),
            "refused in time"
        );
        assert_eq!(self.pools.waiter_count(), self.queue.len());
        self.pools.check_invariants();
    }
}

#[test]
fn random_calls_are_served_in_order() {
    let (mut served, mut refused) = (0, 0);
    for seed in 0..100 {
        let mut run = Run::new(seed);
        for step in 0..600 {
            run.random_call();
            if step % 5 == 0 {
                run.expire_all();
            }
        }
        (served, refused) = (served + run.served, refused + run.refused);
    }
    assert!(served > 2_000 && refused > 1_000, "{served} served, {refused} refused");
}

#[test]
fn waiting_requests_are_limited_over_all_pools() {
    let mut run = Run::new(1);
    let (limit, next) = (WAITERS_MAX as u64, WaiterId(WAITERS_MAX as u64));
    for _ in 0..limit {
        run.acquire(1_000);
    }
    let wait = |run: &mut Run, waiter_id| {
        run.with_pool(|pool, shared, step| {
            let wait = WaitOptions { waiter_id, wait_ms: 1_000 };
            pool.acquire_or_wait(shared, step, &options(), wait)
        })
    };
    assert_eq!(wait(&mut run, next), Err(Refusal::WaitQueueFull { max: WAITERS_MAX }));
    assert!(run.pools.cancel_wait(WaiterId(0)));
    assert_eq!(wait(&mut run, next), Ok(None));
    let mut cancelled = 0;
    run.pools.cancel_all_waits(|_| cancelled += 1);
    assert_eq!((cancelled, run.pools.waiter_count()), (WAITERS_MAX, 0));
    run.pools.check_invariants();
}
