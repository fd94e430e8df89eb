//! Random calls on the real pools beside a naive model (`support/naive.rs`), driven by seeds.
//!
//! Ticks aim at pending deadlines and a microsecond to either side; turns have small budgets, so
//! that backlogs occur; stale leases, foreign ids and lost keys are used on purpose. Every answer
//! is compared, every step checks the invariants, and the facts must give the same pools back.
//! `KEYPEG_SEED=n` plays one seed again, `KEYPEG_SEEDS=n` plays so many.

#[path = "support/agree.rs"]
mod agree;
#[path = "support/journal.rs"]
mod journal;
#[path = "support/naive.rs"]
mod naive;

use agree::{BORROWERS, LIMITS, drain, ids, pool_name};
use journal::Journal;
use keypeg_core::{
    AcquireOptions, Borrower, Fact, FactSink, Granted, KeyId, KeyRef, KeyState, LeaseId,
    ListOptions, NewKey, NextDue, Now, Policy, PolicyPatch, Pool, PoolId, Pools, RandomSource,
    Refusal, ReleaseOptions, Secret, SharedState, StepContext,
};
use keypeg_testkit::{ScaledRandom as Rng, env_number};
use naive::{NEVER, Naive};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

const SEEDS: u64 = 200;
const STEPS: u32 = 400;
const NAMES: [&str; 4] = ["default", "a", "b", "c"];
/// What must have been said, so that the runs are known to go everywhere.
const REFUSALS: [&str; 22] = [
    "UnknownPool",
    "DefaultPool",
    "TooManyPools",
    "Invalid",
    "PoolFull of_server=false",
    "PoolFull of_server=true",
    "KeyExists",
    "PoolEmpty",
    "AllLeased",
    "AllResting",
    "AllQuarantined",
    "NoneFree",
    "UnknownKey",
    "ended: None",
    "ended: Some(Released)",
    "ended: Some(Expired)",
    "ended: Some(Superseded)",
    "ended: Some(KeyGone)",
    "MaxHoldReached",
    "TooManyLeases",
    "Settling",
    "Settling and ended some",
];
const WEEK_MS: u64 = 604_800_000;

#[test]
fn the_pools_agree_with_a_naive_model() {
    let seeds = match env_number("KEYPEG_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..env_number("KEYPEG_SEEDS").unwrap_or(SEEDS),
    };
    let mut refusals = BTreeMap::new();
    for seed in seeds.clone() {
        let mut run = Run::new(seed);
        let played = catch_unwind(AssertUnwindSafe(|| run.play()));
        if let Err(why) = played {
            eprintln_last(&run);
            resume_unwind(why);
        }
        for (refusal, times) in run.refusals {
            *refusals.entry(refusal).or_insert(0) += times;
        }
    }
    if seeds.count() >= 10 {
        for refusal in REFUSALS {
            let times = refusals.get(refusal).copied().unwrap_or(0);
            assert!(times >= 10, "{refusal} hardly occurred: {times} times");
        }
    }
}

#[expect(clippy::print_stderr, reason = "a failure tells how to play it again")]
fn eprintln_last(run: &Run) {
    eprintln!("\nKEYPEG_SEED={} failed at step {}: {}\n", run.seed, run.step, run.last);
}

/// One seed's run: the real pools, the model and all that was ever named.
struct Run {
    seed: u64,
    step: u32,
    /// The call being played.
    last: String,
    rng: Rng,
    random: Rng,
    now: Now,
    real: Pools,
    naive: Naive,
    journal: Journal,
    keys: Vec<(KeyId, Secret)>,
    leases: Vec<LeaseId>,
    last_token: u64,
    last_pool: PoolId,
    /// Whether the last fact is a clean stop.
    stopped: bool,
    /// How often each refusal was said.
    refusals: BTreeMap<String, u32>,
}

/// What a call answered, and what it did to get there.
struct Told<T> {
    reply: Result<T, Refusal>,
    /// Keys purged by time.
    purged: u32,
    /// Facts beside those.
    facts: u32,
    spent: u32,
    left: u32,
}

impl Run {
    fn new(seed: u64) -> Self {
        let now = Now { lease_us: 1, serving_us: 0, wall_us: 1_800_000_000_000_123 };
        let mut run = Self {
            seed,
            step: 0,
            last: String::new(),
            rng: Rng::new(seed),
            random: Rng::new(!seed),
            now,
            real: Pools::new(ids(), LIMITS, 1),
            naive: Naive::new(LIMITS),
            journal: Journal::default(),
            keys: vec![],
            leases: vec![],
            last_token: 0,
            last_pool: PoolId(0),
            stopped: false,
            refusals: BTreeMap::new(),
        };
        run.put("default", &PolicyPatch::default());
        run
    }

    fn play(&mut self) {
        for step in 1..=STEPS {
            self.step = step;
            let settlings = self.refusals.get("Settling").copied();
            self.one();
            agree::look(&self.real, &self.naive, self.now);
            if step % 16 == 0 || self.refusals.get("Settling").copied() > settlings {
                agree::compare(&self.real, &self.naive, self.now, &self.journal);
            }
        }
        agree::compare(&self.real, &self.naive, self.now, &self.journal);
    }

    fn one(&mut self) {
        let name = NAMES[[0, 0, 0, 0, 1, 1, 1, 2, 2, 3][self.roll(10)]];
        match self.roll(200) {
            0..30 => self.tick(),
            30..50 => self.generate(name),
            50..62 => self.import(name),
            62..98 => {
                for _ in 0..self.pick(&[1, 1, 12]) {
                    self.acquire(name);
                }
            }
            98..112 => self.release(name),
            112..114 => self.quarantine_all(name),
            114..128 => self.renew(name),
            128..136 => self.force_release(name),
            136..148 => self.keep_alive(name),
            148..154 => self.keep_alive_many(name),
            154..159 => self.keep_alive_all(name),
            159..169 => self.delete(name),
            169..173 => self.show(name),
            173..175 => self.list(name),
            175..185 => {
                let patch = self.a_patch();
                self.put(name, &patch);
            }
            185..187 => self.remove(name),
            187..198 => self.expire(),
            _ => self.restart(),
        }
    }

    fn roll(&mut self, bound: usize) -> usize {
        self.rng.below(u32::try_from(bound).expect("small")) as usize
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len())].clone()
    }

    fn a_budget(&mut self) -> u32 {
        self.pick(&[0, 0, 1, 2, 3, 1_000, 1_000])
    }

    /// A deadline that is pending, in lease time or in serving time, and a little to either side;
    /// or any short time.
    fn tick(&mut self) {
        let pools = self.naive.pools.iter();
        let keys = pools.flat_map(|pool| &pool.keys);
        let mut aims: Vec<(bool, u64)> = vec![];
        for key in keys {
            aims.extend(key.comes_back().map(|at| (true, at - self.now.lease_us)));
            aims.extend((key.life != NEVER).then(|| (false, key.life - self.now.serving_us)));
        }
        let any = self.pick(&[1, 999, 1_000, 7_000, 300_000_000]);
        aims.push((self.roll(2) == 0, any));
        let (lease, by) = self.pick(&aims);
        let by = self.pick(&[by - 1, by, by, by + 1]);
        let alone = self.roll(10) < 3;
        if lease || !alone {
            self.now.lease_us += by;
        }
        if !lease || !alone {
            self.now.serving_us += by;
        }
        // Wall time decides nothing: it may stand still or jump.
        self.now.wall_us = self.now.wall_us - 50_000_000 + self.pick(&[50_000_000, 0, 1_000]) + by;
        self.last = format!("tick {by} (lease: {lease}, alone: {alone})");
        self.naive.settle(self.now);
    }

    fn call<T>(
        &mut self,
        name: &str,
        play: impl FnOnce(&mut Pool, &mut SharedState, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> Told<T> {
        self.call_all(|pools, step| pools.with_pool(&pool_name(name), step, play))
    }

    fn call_all<T>(
        &mut self,
        play: impl FnOnce(&mut Pools, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> Told<T> {
        let budget = self.a_budget();
        let (mut purged, mut facts) = (0, 0);
        let journal = &mut self.journal;
        let mut sink = |fact: &Fact<'_>| {
            journal.record(fact);
            *(if matches!(fact, Fact::KeyPurged { .. }) { &mut purged } else { &mut facts }) += 1;
        };
        let mut step = StepContext {
            now: self.now,
            random: &mut self.random,
            facts: &mut sink,
            budget,
            ended_by_time: false,
        };
        let reply = play(&mut self.real, &mut step);
        let left = step.budget;
        if let Err(refusal) = &reply {
            self.count(kind(refusal));
        }
        self.stopped &= purged + facts == 0;
        Told { reply, purged, facts, spent: budget - left, left }
    }

    fn count(&mut self, refusal: String) {
        *self.refusals.entry(refusal).or_insert(0) += 1;
    }

    /// Compares a reply and what was emitted for it; `named` keys may be ended beyond the budget.
    fn judge<T: Debug + PartialEq>(
        told: &Told<T>,
        expected: &Result<T, Refusal>,
        (named, facts): (usize, u32),
    ) {
        assert_eq!(told.reply, *expected);
        told.within_budget(named);
        assert_eq!(told.facts, if told.reply.is_ok() { facts } else { 0 }, "facts emitted");
    }

    /// A refusal to settle more: only where more was due than the budget.
    fn settling<T>(&mut self, name: &str, told: &Told<T>, named: usize) {
        assert_eq!((told.left, told.facts), (0, 0), "what was left of the budget, facts");
        told.within_budget(named);
        assert!(
            agree::is_behind(&self.real, &self.naive, name),
            "nothing is due, so nothing is to be settled"
        );
        if told.spent > 0 {
            self.count("Settling and ended some".into());
        }
    }

    fn holds_dead_keys(&self, name: &str) -> bool {
        let real = self.real.get(&pool_name(name)).expect("a pool");
        real.counts().total() > self.naive.pool(name).expect("the same pool").counts().total()
    }

    fn generate(&mut self, name: &str) {
        let count = [1, 1, 2, 3, 9][self.roll(5)];
        self.last = format!("generate {count} in {name}");
        let told = self.call(name, |pool, ledger, step| pool.generate(ledger, step, count));
        let room = self.naive.room(name, u64::from(count));
        let Some(keys) = self.judge_new(name, &told, &room, 0) else { return };
        assert_eq!(keys.len(), count as usize);
        let policy = &self.naive.pool(name).expect("it answered").policy;
        for key in &keys {
            let value = key.value.reveal();
            let random = value.strip_prefix(&*policy.key_prefix).expect("the prefix");
            assert_eq!(random.len(), usize::from(policy.key_length));
            assert!(random.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        }
        self.take_in(name, &keys, false);
    }

    fn import(&mut self, name: &str) {
        let count = self.roll(3) + 1;
        let values: Vec<Secret> = (0..count).map(|_| self.a_value()).collect();
        self.last = format!("import {count} into {name}");
        let told = self.call(name, |pool, ledger, step| pool.import(ledger, step, &values, None));
        let texts: Vec<String> = values.iter().map(|value| value.reveal().into()).collect();
        let room = self.naive.new_to(name, &texts);
        let room = room.and_then(|()| self.naive.room(name, count as u64));
        let Some(keys) = self.judge_new(name, &told, &room, count) else { return };
        assert!(keys.iter().map(|key| &key.value).eq(&values), "in order");
        self.take_in(name, &keys, true);
    }

    /// Judges an answer that is new keys; gives them where they came.
    fn judge_new(
        &mut self,
        name: &str,
        told: &Told<Vec<NewKey>>,
        room: &Result<(), Refusal>,
        named: usize,
    ) -> Option<Vec<NewKey>> {
        match (&told.reply, room) {
            (Ok(keys), Ok(())) => {
                told.within_budget(named);
                assert_eq!(told.facts, 1);
                Some(keys.clone())
            }
            (Err(Refusal::Settling), _) => {
                self.settling(name, told, named);
                None
            }
            // Other pools' keys that are due take room of the server's until they are ended.
            (Err(Refusal::PoolFull { of_server: true, .. }), Ok(()))
                if !self.holds_dead_keys(name) && self.real.key_count() > self.naive.keys() =>
            {
                told.within_budget(named);
                assert_eq!(told.facts, 0);
                None
            }
            (reply, _) => {
                assert_eq!(reply.as_ref().map(|_| ()), room.as_ref().copied());
                told.within_budget(named);
                assert_eq!(told.facts, 0);
                None
            }
        }
    }

    fn take_in(&mut self, name: &str, keys: &[NewKey], imported: bool) {
        self.naive.take_in(self.now, name, keys, imported);
        self.keys.extend(keys.iter().map(|key| (key.id, key.value.clone())));
    }

    /// A value to bring in: of a few that come again and again, or one that is or was a key.
    fn a_value(&mut self) -> Secret {
        let n = self.roll(30);
        match n {
            0..6 if !self.keys.is_empty() => {
                let keys = self.keys.clone();
                self.pick(&keys).1
            }
            0..25 => Secret::new(&format!("v{n}")).expect("a value"),
            _ => Secret::new(&format!("é{}", "x".repeat(n * n))).expect("a value"),
        }
    }

    fn a_ttl(&mut self, name: &str) -> Option<u64> {
        let max = self.naive.pool(name).map_or(1, |pool| pool.policy.lease_ttl_ms);
        self.pick(&[None, None, None, Some(max), Some(max / 2), Some(1), Some(0), Some(max + 1)])
    }

    fn acquire(&mut self, name: &str) {
        let ttl = self.a_ttl(name);
        let holder = self.pick(&[None, Some("job-7"), Some("")]);
        let (by, max) = self.a_borrower();
        self.last = format!("acquire of {name}, ttl {ttl:?}, by {by:?}, {max:?} at most");
        let reserved = self.real.next_token() >= self.real.counters().tokens_reserved;
        let borrower = by.map_or_else(Borrower::default, |by| Borrower::new(by, max));
        let wish = AcquireOptions { ttl_ms: ttl, holder, borrower };
        let told = self.call(name, |pool, ledger, step| pool.acquire(ledger, step, &wish));
        told.within_budget(0);
        let may = self.naive.may_borrow((name, ttl), (by, max));
        let full = max.is_some_and(|max| self.real.lease_count(borrower) >= u64::from(max));
        if full && told.reply == Err(Refusal::Settling) {
            // What is due may be this name's, in whatever pool; one in rotation was due.
            let rotates =
                self.real.next_due() == NextDue { lease_us: Some(0), serving_us: Some(0) };
            assert!(rotates || self.is_behind(), "nothing is due, so nothing is to be settled");
            return assert_eq!(told.facts, 0);
        }
        let free = may.and_then(|()| self.naive.free_keys(self.now, name, ttl));
        match (&told.reply, free) {
            (Ok(Granted { lease, value, .. }), Ok(free)) => {
                assert!(free.contains(&lease.key_id), "a key that may not be lent");
                assert!(self.keys.contains(&(lease.key_id, value.clone())), "another key's value");
                assert!(lease.token > self.last_token, "tokens grow");
                assert_eq!(told.facts, 1 + u32::from(reserved));
                self.last_token = lease.token;
                self.leases.push(lease.id);
                let expected = self.naive.lend(self.now, name, (lease, ttl), (holder, by));
                assert_eq!(*lease, expected);
            }
            (Err(Refusal::Settling), _) => self.settling(name, &told, 0),
            (Err(refusal), Err(expected)) => {
                assert_eq!((refusal, told.facts), (&expected, 0));
            }
            (Ok(lent), Err(expected)) => panic!("lent {lent:?}, must be {expected:?}"),
            (Err(refusal), Ok(free)) => panic!("{refusal:?} though {free:?} are free"),
        }
    }

    /// In whose name, and how many leases that may have: nobody's, or one of few with few.
    fn a_borrower(&mut self) -> (Option<&'static str>, Option<u32>) {
        let by = self.pick(&[None, Some(BORROWERS[0]), Some(BORROWERS[0]), Some(BORROWERS[1])]);
        (by, self.pick(&[None, Some(1), Some(2), Some(5)]))
    }

    /// A lease's id: mostly of late, of any pool, sometimes forged.
    fn a_lease(&mut self) -> LeaseId {
        let late = self.leases.len().saturating_sub(8);
        let leases = if self.roll(3) > 0 { &self.leases[late..] } else { &self.leases[..] };
        let mut leases = leases.to_vec();
        if self.roll(20) == 0 || leases.is_empty() {
            let token = u128::from(self.last_token);
            leases = vec![LeaseId(0), LeaseId(token), LeaseId(u128::MAX)];
        }
        self.pick(&leases)
    }

    fn release(&mut self, name: &str) {
        let (id, verdict) = (self.a_lease(), self.a_verdict());
        self.release_as(name, id, &verdict);
    }

    fn release_as(&mut self, name: &str, id: LeaseId, verdict: &ReleaseOptions) {
        self.last = format!("release {id:?} of {name}: {verdict:?}");
        let told = self.call(name, |pool, ledger, step| pool.release(ledger, step, id, verdict));
        let expected = self.naive.release(self.now, name, id, verdict);
        let expected = self.remembered(&told.reply, expected);
        Self::judge(&told, &expected, (1, 1));
    }

    /// Lends whatever is free, and each goes out of rotation.
    fn quarantine_all(&mut self, name: &str) {
        let before = self.leases.len();
        for _ in 0..12 {
            self.acquire(name);
        }
        for at in before..self.leases.len() {
            let (id, verdict) =
                (self.leases[at], ReleaseOptions { quarantine: true, ..self.a_verdict() });
            self.release_as(name, id, &verdict);
        }
        self.acquire(name);
    }

    /// What a holder says of a key: mostly nothing.
    fn a_verdict(&mut self) -> ReleaseOptions {
        let lengths = [0, 1, 20, 60_000, WEEK_MS, WEEK_MS + 1];
        let rest_ms = (self.roll(3) == 0).then(|| self.pick(&lengths));
        let reason = self.pick(&[None, None, Some("".into()), Some("429 ✗".into())]);
        ReleaseOptions { rest_ms, quarantine: self.roll(3) == 0, reason }
    }

    fn renew(&mut self, name: &str) {
        let (id, ttl) = (self.a_lease(), self.a_ttl(name));
        self.last = format!("renew {id:?} of {name}, ttl {ttl:?}");
        let told = self.call(name, |pool, ledger, step| pool.renew(ledger, step, id, ttl));
        let expected = self.naive.renew(self.now, name, id, ttl);
        let expected = self.remembered(&told.reply, expected);
        Self::judge(&told, &expected, (1, 1));
    }

    /// How a lease ended is told as far as it is known: after an unclean start it may not be.
    fn remembered<T>(
        &self,
        told: &Result<T, Refusal>,
        expected: Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        match (told, expected) {
            (Err(Refusal::LeaseEnded { cause: None }), Err(Refusal::LeaseEnded { .. }))
                if self.naive.forgetful =>
            {
                Err(Refusal::LeaseEnded { cause: None })
            }
            (_, expected) => expected,
        }
    }

    /// A key by its id or its value: of any pool, there or gone or never there.
    fn a_key(&mut self) -> KeyRef {
        let late = self.keys.len().saturating_sub(12);
        let keys = if self.roll(4) > 0 { &self.keys[late..] } else { &self.keys[..] };
        let never = Secret::new("never").expect("a value");
        let keys = if keys.is_empty() { vec![(KeyId(7), never)] } else { keys.to_vec() };
        let (id, value) = self.pick(&keys);
        if self.roll(3) == 0 { KeyRef::Value(value) } else { KeyRef::Id(id) }
    }

    fn force_release(&mut self, name: &str) {
        let key = self.a_key();
        self.last = format!("release key {key:?} of {name}");
        let told = self.call(name, |pool, ledger, step| pool.force_release(ledger, step, &key));
        let expected = self.naive.force_release(self.now, name, &key);
        Self::judge(&told, &expected, (1, u32::from(expected == Ok(true))));
    }

    fn keep_alive(&mut self, name: &str) {
        let key = self.a_key();
        self.last = format!("keep {key:?} of {name} alive");
        let told = self.call(name, |pool, ledger, step| pool.keep_alive(ledger, step, &key));
        let expected = self.naive.keep_alive(self.now, name, &key);
        Self::judge(&told, &expected, (1, 0));
    }

    fn keep_alive_many(&mut self, name: &str) {
        let mut ids = vec![];
        for _ in 0..self.roll(9) {
            ids.extend(match self.a_key() {
                KeyRef::Id(id) => Some(id),
                KeyRef::Value(_) => None,
            });
        }
        self.last = format!("keep {ids:?} of {name} alive");
        let told =
            self.call(name, |pool, ledger, step| Ok(pool.keep_alive_many(ledger, step, &ids)));
        let expected = self.naive.keep_alive_many(self.now, name, &ids);
        Self::judge(&told, &expected, (ids.len(), 0));
    }

    fn keep_alive_all(&mut self, name: &str) {
        self.last = format!("keep all of {name} alive");
        let told = self.call(name, Pool::keep_alive_all);
        if told.reply == Err(Refusal::Settling) {
            return self.settling(name, &told, 0);
        }
        let expected = self.naive.keep_alive_all(self.now, name);
        Self::judge(&told, &expected, (0, 0));
    }

    fn delete(&mut self, name: &str) {
        let key = self.a_key();
        self.last = format!("delete {key:?} of {name}");
        let told = self.call(name, |pool, ledger, step| pool.delete(ledger, step, &key));
        let expected = self.naive.delete(name, &key);
        Self::judge(&told, &expected, (1, 1));
    }

    fn show(&mut self, name: &str) {
        let key = self.a_key();
        self.last = format!("show {key:?} of {name}");
        let told = self.call(name, |pool, ledger, step| pool.get_key(ledger, step, &key));
        let expected = self.naive.show(self.now, name, &key);
        Self::judge(&told, &expected, (1, 0));
    }

    /// A whole listing, page by page; what of it is due ends on the way.
    fn list(&mut self, name: &str) {
        let states = [None, None, Some(KeyState::Available), Some(KeyState::Leased)];
        let (state, limit) = (self.pick(&states), self.roll(9) + 1);
        self.last = format!("list {limit} a page of {name}, {state:?}");
        let (mut found, mut cursor) = (vec![], None);
        loop {
            let told = self.call(name, |pool, ledger, step| {
                pool.list_keys(ledger, step, ListOptions { state, limit, cursor })
            });
            assert_eq!(told.facts, 0, "a listing changes nothing");
            let Ok(page) = told.reply else {
                assert_eq!(told.reply.err(), self.naive.pool(name).err());
                return;
            };
            assert!(page.keys.len() <= limit);
            found.extend(page.keys);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        let mut expected = self.naive.list(self.now, name, state);
        found.sort_by_key(|key| key.id);
        expected.sort_by_key(|key| key.id);
        assert_eq!(found, expected);
    }

    /// A change of a policy: mostly short lengths, sometimes out of range.
    fn a_patch(&mut self) -> PolicyPatch {
        let lengths = [1, 2, 5, 20, 20, 60_000, 60_000, WEEK_MS, WEEK_MS + 1, 0];
        let length = self.pick(&lengths);
        let or_never = self.pick(&[None, Some(length), Some(length)]);
        let mut patch = PolicyPatch::default();
        match self.roll(8) {
            0 | 1 => patch.lease_ttl_ms = Some(length),
            2 => patch.max_hold_ms = Some(or_never),
            3 | 4 => patch.keepalive_ttl_ms = Some(or_never),
            5 => patch.rest_ms = Some(self.pick(&[0, 0, 1, 20, 60_000, WEEK_MS + 1])),
            6 => {
                patch.key_length = Some(self.pick(&[15, 16, 20, 21, 128, 129]));
                patch.key_prefix = Some(self.pick(&["".into(), "kp_".into()]));
            }
            _ => patch.max_keys = Some(self.pick(&[None, Some(0), Some(1), Some(5), Some(30)])),
        }
        patch
    }

    fn put(&mut self, name: &str, patch: &PolicyPatch) {
        self.last = format!("put {name}: {patch:?}");
        let wrong = self.naive.wrong_fields(name, patch);
        let (base, put) = (Policy::default(), patch.clone());
        let told =
            self.call_all(|pools, step| pools.create_or_update(step, &pool_name(name), &base, put));
        if let Err(Refusal::Invalid(out)) = &told.reply {
            assert!(wrong.contains(&out.field), "{out:?}, must be one of {wrong:?}");
            assert_eq!(told.facts, 0);
            return;
        }
        assert!(wrong.is_empty(), "{wrong:?} were let through");
        let expected = self.naive.put(name, patch);
        Self::judge(&told, &expected, (0, 1));
        if expected == Ok(true) {
            let number = self.real.get(&pool_name(name)).expect("just made").id();
            assert!(number > self.last_pool, "a pool's number is never used twice");
            self.last_pool = number;
            self.naive.pools.last_mut().expect("just made").number = number;
        }
    }

    fn remove(&mut self, name: &str) {
        self.last = format!("remove {name}");
        let told = self.call_all(|pools, step| pools.remove(step, &pool_name(name)).map(drop));
        let expected = self.naive.remove(name);
        Self::judge(&told, &expected, (0, 1));
    }

    fn expire(&mut self) {
        self.last = "expire".into();
        let told = self.call_all(|pools, step| Ok(pools.expire(step)));
        told.within_budget(0);
        assert_eq!(told.facts, 0);
        let behind = self.is_behind();
        let more = told.reply == Ok(true);
        assert!(more || !behind, "more is due than it says");
        assert!(!more || told.left == 0, "budget is left though more is due");
    }

    fn is_behind(&self) -> bool {
        let mut pools = self.naive.pools.iter();
        pools.any(|pool| agree::is_behind(&self.real, &self.naive, &pool.name))
    }

    /// Stops, cleanly or not, and starts again from the facts.
    fn restart(&mut self) {
        let clean = self.roll(2) == 0;
        self.last = format!("restart, clean: {clean}");
        let keys = self.real.key_count();
        drain(&mut self.real, self.now, &mut self.journal);
        self.stopped &= keys == self.real.key_count();
        let next_token = self.real.next_token();
        if clean {
            self.journal.record(&Fact::Stopped { next_token });
            self.stopped = true;
        }
        self.now.lease_us += self.pick(&[0, 1, 5_000, 100_000_000]);
        self.now.serving_us = 0;
        self.real = self.journal.rebuild((ids(), LIMITS, 1), self.now).expect("facts fit");
        self.naive.settle(Now { serving_us: 0, ..self.now });
        self.naive.restart(self.now);
        let reserved = self.real.counters().tokens_reserved;
        assert_eq!(self.real.next_token(), if self.stopped { next_token } else { reserved });
        self.naive.forgetful |= !clean;
    }
}

impl<T> Told<T> {
    /// Every purge was paid for, or was of a key that the call named.
    fn within_budget(&self, named: usize) {
        assert!(self.purged as usize <= self.spent as usize + named, "more than the budget");
    }
}

/// A refusal's name, with what tells apart those of one name.
fn kind(refusal: &Refusal) -> String {
    match refusal {
        Refusal::PoolFull { of_server, .. } => format!("PoolFull of_server={of_server}"),
        Refusal::NoKey { cause, .. } => format!("{cause:?}"),
        Refusal::LeaseEnded { cause } => format!("ended: {cause:?}"),
        Refusal::Invalid(_) => "Invalid".into(),
        Refusal::TooManyPools { .. } => "TooManyPools".into(),
        Refusal::KeyExists { .. } => "KeyExists".into(),
        Refusal::WaitQueueFull { .. } => "WaitQueueFull".into(),
        Refusal::TooManyLeases { .. } => "TooManyLeases".into(),
        Refusal::MaxHoldReached { .. } => "MaxHoldReached".into(),
        Refusal::UnknownPool
        | Refusal::DefaultPool
        | Refusal::UnknownKey
        | Refusal::BadCursor
        | Refusal::IdempotencyMismatch
        | Refusal::KeysGone
        | Refusal::TakenOver
        | Refusal::TooManyAnswers { .. }
        | Refusal::Settling => {
            format!("{refusal:?}")
        }
    }
}
