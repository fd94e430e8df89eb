//! Waiting for a key, as tables and as random: first come, first served; whatever makes a key
//! available hands it over in the same step; nobody is refused early or falsely.

#[path = "support/journal.rs"]
mod journal;
#[path = "support/world.rs"]
mod world;

use keypeg_core::{
    AcquireOptions, Borrower, Fact, Granted, IdHashKey, KeyId, KeyRef, LeaseId, Limits, Now,
    Policy, PolicyPatch, Pool, PoolName, Pools, RandomSource, Refusal, ReleaseOptions, SharedState,
    StepContext, US_PER_MS, WAITERS_MAX, WaitOptions, WaitOutcome, WaiterId,
};
use keypeg_testkit::ScaledRandom as Rng;
use std::collections::{HashMap, VecDeque};
use world::{check, check_within};

#[test]
fn every_way_in_which_a_key_comes_free_hands_it_to_the_first_in_line() {
    let ways = [
        ("", "release A"),
        ("", "unblock a"),
        ("", "generate b"),
        ("", "import v"),
        ("tick 5s", "expire"),
        ("tick 5s", "acquire X -> no_key AllLeased"),
        ("tick 5s", "release A -> lease_ended Expired"),
        ("tick 5s", "show a"),
        ("release A quarantine", "unblock a"),
        ("release A rest=2s", "unblock a"),
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
        got two               -> no_key AllLeased leased=1 back=25s
        counts                -> counts waiting=2
        tick 4.999s
        expire
        got one               -> nothing
        tick 0.001s
        expire
        got one               -> no_key AllLeased back=20s
        tick 20s              # the key comes back, and the third has waited 28 s of 300
        expire
        got far               -> granted key=a waited=28s ttl=60s
        ",
    );
    check(
        "
        wait one              -> waits                      # an empty pool can be waited for
        wait two for=0s       -> no_key PoolEmpty
        wait bad ttl=61s      -> invalid ttl_seconds
        counts                -> counts waiting=1
        generate a b
        got one               -> granted waited=0s
        counts                -> counts available=1 waiting=0
        wait three            -> granted                    # nobody waits where a key is free
        ",
    );
}

/// A key that comes back in the very step in which a wait ends: a refusal would be a false one.
#[test]
fn nobody_is_refused_while_a_key_is_free() {
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
        generate a b c d      # with more due than a step may end, nobody is refused either
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
fn leaving_keeps_the_order_of_the_others() {
    check(
        "
        generate a
        acquire A
        wait one
        wait two
        wait three
        wait four
        leave two             -> left
        leave two             -> not_in_line
        leave one             -> left
        counts                -> counts waiting=2
        release A
        got three             -> granted
        leave three           -> not_in_line
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
fn lines_are_of_their_pools() {
    check(
        "
        pool other
        wait one
        in default
        wait two
        drop other            # those in its line are told, a step later
        expire
        got one               -> unknown_pool
        leave one             -> not_in_line
        counts                -> counts waiting=1
        pool other            # the same seat, another line
        wait three
        generate a
        got three             -> granted key=a
        got two               -> nothing
        restart               # waiting is memory only
        in default
        counts                -> counts waiting=0
        ",
    );
}

#[test]
fn a_grant_to_somebody_who_waited_follows_the_policy_as_it_is_then() {
    check(
        "
        wait one ttl=50s
        wait two
        policy lease_ttl=20s rest=7s
        generate a b
        got one               -> granted ttl=20s
        got two               -> granted ttl=20s
        release two
        show of:two           -> resting back=7s
        restart
        show of:one           -> leased ttl=20s             # it is a fact like any other
        ",
    );
}

#[test]
fn keys_that_nobody_keeps_alive_are_handed_to_nobody() {
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

struct Run {
    pools: Pools,
    random: Rng,
    now: Now,
    next_ticket: u64,
    /// Who waits: waiter_id, since, until.
    line: VecDeque<(WaiterId, u64, u64)>,
    /// Who holds what until when.
    held: HashMap<KeyId, (LeaseId, u64)>,
    keys: Vec<KeyId>,
    served: usize,
    refused: usize,
}

fn wish() -> AcquireOptions<'static> {
    AcquireOptions { borrower: Borrower::new("ci", None), ..AcquireOptions::default() }
}

impl Run {
    fn new(seed: u64) -> Self {
        let limits = Limits { pools: 3, keys: 1_000 };
        let mut run = Self {
            pools: Pools::new(IdHashKey::new([3; 32]), limits, 1),
            random: Rng::new(seed),
            now: Now::default(),
            next_ticket: 0,
            line: VecDeque::new(),
            held: HashMap::new(),
            keys: vec![],
            served: 0,
            refused: 0,
        };
        let policy = Policy { lease_ttl_ms: 50, keepalive_ttl_ms: None, ..Policy::default() };
        let (name, patch) = (PoolName::default_pool(), PolicyPatch::default());
        run.step(|pools, step| pools.create_or_update(step, &name, &policy, patch)).expect("room");
        run
    }

    fn step<T>(&mut self, play: impl FnOnce(&mut Pools, &mut StepContext<'_>) -> T) -> T {
        let budget = [0, 1, 2, 1_000][self.random.below(4) as usize];
        let mut sink = |_: &Fact<'_>| {};
        let (now, random, facts) = (self.now, &mut self.random, &mut sink);
        let mut step = StepContext { now, random, facts, budget, ended_by_time: false };
        let answer = play(&mut self.pools, &mut step);
        let handed: Vec<_> = self.pools.drain_wait_outcomes().collect();
        for each in handed {
            self.judge(each);
        }
        answer
    }

    fn on<T>(
        &mut self,
        play: impl FnOnce(&mut Pool, &mut SharedState, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        self.step(|pools, step| pools.with_pool(&PoolName::default_pool(), step, play))
    }

    fn judge(&mut self, handed: WaitOutcome) {
        match handed.outcome {
            Ok(lent) => {
                let (waiter_id, since, _) = self.line.pop_front().expect("somebody waits");
                assert_eq!(handed.waiter_id, waiter_id, "first come, first served");
                assert_eq!(lent.waited_ms, (self.now.lease_us - since) / US_PER_MS);
                self.hold(lent.lease.key_id, lent.lease.id);
                self.served += 1;
            }
            Err(refusal) => {
                let at =
                    self.line.iter().position(|(waiter_id, ..)| *waiter_id == handed.waiter_id);
                let (_, _, until) = self.line.remove(at.expect("who is told waits")).expect("in");
                assert!(until <= self.now.lease_us, "refused before its time");
                let Refusal::NoKey { counts, .. } = refusal else { panic!("{refusal:?}") };
                assert_eq!(counts.available, 0, "refused while a key is free");
                self.refused += 1;
            }
        }
    }

    fn hold(&mut self, key: KeyId, lease: LeaseId) {
        let until = self.now.lease_us + 50 * US_PER_MS;
        let before = self.held.insert(key, (lease, until));
        assert!(before.is_none_or(|(_, until)| until <= self.now.lease_us), "held twice");
    }

    /// In somebody's name, so that invariants count leases and waits in it.
    fn acquire(&mut self, wait_ms: u64) {
        let waiter_id = WaiterId(self.next_ticket);
        self.next_ticket += 1;
        let lent = self.on(|pool, ledger, step| {
            pool.acquire_or_wait(ledger, step, &wish(), WaitOptions { waiter_id, wait_ms })
        });
        match lent {
            Ok(Some(Granted { lease, .. })) => {
                assert!(self.line.is_empty(), "a newcomer was served before the line");
                self.hold(lease.key_id, lease.id);
            }
            Ok(None) => {
                let since = self.now.lease_us;
                self.line.push_back((waiter_id, since, since + wait_ms * US_PER_MS));
            }
            Err(Refusal::NoKey { .. }) => assert_eq!(wait_ms, 0),
            Err(refusal) => assert_eq!(refusal, Refusal::Settling),
        }
    }

    fn one(&mut self) {
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
                let made = self.on(|pool, ledger, step| pool.generate(ledger, step, count));
                self.keys.extend(made.iter().flatten().map(|key| key.id));
            }
            14 if !self.keys.is_empty() => {
                let at = self.random.below(u32::try_from(self.keys.len()).expect("few")) as usize;
                let key = KeyRef::Id(self.keys.swap_remove(at));
                self.on(|pool, ledger, step| pool.delete(ledger, step, &key)).expect("there");
            }
            15 if !self.line.is_empty() => {
                let at = self.random.below(u32::try_from(self.line.len()).expect("few")) as usize;
                let (waiter_id, ..) = self.line.remove(at).expect("within");
                assert!(self.pools.cancel_wait(waiter_id));
                assert!(!self.pools.cancel_wait(waiter_id));
            }
            16 => {
                self.step(Pools::expire);
            }
            _ => {
                let Some((&key, &(lease, until))) = self.held.iter().next() else { return };
                // It is given back before the step, in which somebody else may get it.
                self.held.remove(&key);
                let ended = self.on(|pool, ledger, step| {
                    pool.release(ledger, step, lease, &ReleaseOptions::default())
                });
                assert!(ended.is_ok() || until <= self.now.lease_us || !self.keys.contains(&key));
            }
        }
    }

    /// Ends all that is due, and looks at what is left.
    fn settle(&mut self) {
        while self.step(Pools::expire) {}
        let counts = {
            let pool = self.pools.get(&PoolName::default_pool()).expect("there");
            assert_eq!(pool.waiter_count(), self.line.len() as u64);
            pool.counts()
        };
        assert!(self.line.is_empty() || counts.available == 0, "somebody waits while one is free");
        assert!(self.line.iter().all(|(.., until)| *until > self.now.lease_us), "told in time");
        assert_eq!(self.pools.waiter_count(), self.line.len());
        self.pools.check_invariants();
    }
}

#[test]
fn chance_finds_no_way_around_the_line() {
    let (mut served, mut refused) = (0, 0);
    for seed in 0..100 {
        let mut run = Run::new(seed);
        for step in 0..600 {
            run.one();
            if step % 5 == 0 {
                run.settle();
            }
        }
        (served, refused) = (served + run.served, refused + run.refused);
    }
    assert!(served > 2_000 && refused > 1_000, "{served} served, {refused} refused");
}

#[test]
fn a_line_is_bounded_over_all_pools() {
    let mut run = Run::new(1);
    let (bound, next) = (WAITERS_MAX as u64, WaiterId(WAITERS_MAX as u64));
    for _ in 0..bound {
        run.acquire(1_000);
    }
    let over = |run: &mut Run, waiter_id| {
        run.on(|pool, ledger, step| {
            let wait = WaitOptions { waiter_id, wait_ms: 1_000 };
            pool.acquire_or_wait(ledger, step, &wish(), wait)
        })
    };
    assert_eq!(over(&mut run, next), Err(Refusal::WaitQueueFull { max: WAITERS_MAX }));
    assert!(run.pools.cancel_wait(WaiterId(0)));
    assert_eq!(over(&mut run, next), Ok(None));
    let mut away = 0;
    run.pools.cancel_all_waits(|_| away += 1);
    assert_eq!((away, run.pools.waiter_count()), (WAITERS_MAX, 0));
    run.pools.check_invariants();
}
