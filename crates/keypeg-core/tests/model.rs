//! Random calls, drawn from a seed, on the real pools and on a naive model (`support/naive.rs`).
//!
//! Ticks aim at pending deadlines and a microsecond to either side; turns have small budgets, so
//! that backlogs occur; ended leases, ids of other pools and removed keys are used on purpose.
//! Every answer is compared, every step checks the invariants, and a replay of the facts must
//! rebuild the same pools. `KEYPEG_SEED=n` repeats one seed, `KEYPEG_SEEDS=n` runs that many,
//! `KEYPEG_FIRST_SEED=n` sets the first of them. A run continues after a seed that fails.

#[path = "support/agree.rs"]
mod agree;
#[path = "support/journal.rs"]
mod journal;
#[path = "support/naive.rs"]
mod naive;

use agree::{BORROWERS, LIMITS, Replay, drain, ids, pool_name};
use journal::Journal;
use keypeg_core::{
    AcquireOptions, AddKeys, Borrower, Fact, FactSink, Granted, ImportOptions, KeyId, KeyRef,
    KeyState, KeysToAdd, LeaseId, ListOptions, NewKey, NewLabels, NextDue, Now, Policy,
    PolicyPatch, Pool, PoolId, Pools, QuarantineOptions, RandomSource, Refusal, ReleaseOptions,
    Secret, SharedState, StepContext,
};
use keypeg_testkit::{ScaledRandom, env_number};
use naive::{NEVER, Naive};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

const SEEDS: u64 = 200;
const STEPS: u32 = 400;
const NAMES: [&str; 4] = ["default", "a", "b", "c"];
/// Refusals and rare results that must occur, so that the runs are known to reach every case.
const REFUSALS: [&str; 24] = [
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
    "Draining",
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
    "a retired value came back",
];
const WEEK_MS: u64 = 604_800_000;

#[test]
fn the_pools_agree_with_a_naive_model() {
    let one = env_number("KEYPEG_SEED");
    let first = one.or_else(|| env_number("KEYPEG_FIRST_SEED")).unwrap_or(0);
    let count = one.map_or_else(|| env_number("KEYPEG_SEEDS").unwrap_or(SEEDS), |_| 1);
    let seeds = first..first + count;
    let (mut failed, mut first_panic) = (Vec::new(), None);
    let mut refusals = BTreeMap::new();
    for seed in seeds.clone() {
        let mut run = Run::new(seed);
        let result = catch_unwind(AssertUnwindSafe(|| run.run()));
        if let Err(panic) = result {
            print_failure(&run);
            failed.push(seed);
            first_panic.get_or_insert(panic);
            continue;
        }
        for (refusal, times) in run.refusals {
            *refusals.entry(refusal).or_insert(0) += times;
        }
    }
    println!("{} seeds, {} failed", seeds.clone().count(), failed.len());
    if let Some(panic) = first_panic {
        println!("failed seeds: {failed:?}");
        resume_unwind(panic);
    }
    if seeds.count() >= 10 {
        for refusal in REFUSALS {
            let times = refusals.get(refusal).copied().unwrap_or(0);
            assert!(times >= 10, "{refusal} hardly occurred: {times} times");
        }
    }
}

#[expect(clippy::print_stdout, reason = "a failure prints how to repeat it")]
fn print_failure(run: &Run) {
    println!("failed: seed {}: at step {}: {}", run.seed, run.step, run.last);
}

/// The run of one seed: the real pools, the model and everything they returned.
struct Run {
    seed: u64,
    step: u32,
    /// The present call.
    last: String,
    rng: ScaledRandom,
    random: ScaledRandom,
    now: Now,
    real: Pools,
    naive: Naive,
    journal: Journal,
    /// The replay of the journal up to the last comparison.
    replay: Replay,
    keys: Vec<(KeyId, Secret)>,
    leases: Vec<LeaseId>,
    last_token: u64,
    last_pool: PoolId,
    /// Whether the last fact is a clean stop.
    stopped: bool,
    /// How often each refusal occurred.
    refusals: BTreeMap<String, u32>,
}

/// The result of a call, and what it did before.
struct Outcome<T> {
    reply: Result<T, Refusal>,
    /// Keys purged by time.
    purged: u32,
    /// Other facts.
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
            rng: ScaledRandom::new(seed),
            random: ScaledRandom::new(!seed),
            now,
            real: Pools::new(ids(), LIMITS, 1),
            naive: Naive::new(LIMITS),
            journal: Journal::default(),
            replay: Replay::new(),
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

    fn run(&mut self) {
        for step in 1..=STEPS {
            self.step = step;
            let settlings = self.refusals.get("Settling").copied();
            self.random_call();
            agree::check(&self.real, &self.naive, self.now);
            if step % 16 == 0 || self.refusals.get("Settling").copied() > settlings {
                self.compare_all();
            }
        }
        self.compare_all();
    }

    fn compare_all(&mut self) {
        let facts = (&self.journal, &mut self.replay);
        agree::compare(&self.real, &self.naive, self.now, facts);
    }

    fn random_call(&mut self) {
        let name = NAMES[[0, 0, 0, 0, 1, 1, 1, 2, 2, 3][self.random_below(10)]];
        match self.random_below(200) {
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
            128..134 => self.force_release(name),
            134..136 | 172..173 => self.quarantine(name),
            136..148 => self.keep_alive(name),
            148..154 => self.keep_alive_many(name),
            154..159 => self.keep_alive_all(name),
            159..169 => self.delete(name),
            169..171 => self.get_key(name),
            171..172 => self.set_label(name),
            173..175 => self.list(name),
            175..185 => {
                let patch = self.random_patch();
                self.put(name, &patch);
            }
            185..187 => self.remove(name),
            187..198 => self.expire(),
            _ => self.restart(),
        }
    }

    fn random_below(&mut self, bound: usize) -> usize {
        self.rng.below(u32::try_from(bound).expect("small")) as usize
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.random_below(from.len())].clone()
    }

    fn random_budget(&mut self) -> u32 {
        self.pick(&[0, 0, 1, 2, 3, 1_000, 1_000])
    }

    /// Advances the clocks to a pending deadline, in lease time or in serving time, or a
    /// microsecond to either side; or by any short time.
    fn tick(&mut self) {
        let pools = self.naive.pools.iter();
        let keys = pools.flat_map(|pool| &pool.keys);
        let mut aims: Vec<(bool, u64)> = vec![];
        for key in keys {
            aims.extend(key.hold_end().map(|at| (true, at - self.now.lease_us)));
            aims.extend((key.end != NEVER).then(|| (false, key.end - self.now.serving_us)));
        }
        let any = self.pick(&[1, 999, 1_000, 7_000, 300_000_000]);
        aims.push((self.random_below(2) == 0, any));
        let (lease, by) = self.pick(&aims);
        let by = self.pick(&[by - 1, by, by, by + 1]);
        let alone = self.random_below(10) < 3;
        if lease || !alone {
            self.now.lease_us += by;
        }
        if !lease || !alone {
            self.now.serving_us += by;
        }
        // Wall time decides nothing: it may stand still or jump.
        self.now.wall_us = self.now.wall_us - 50_000_000 + self.pick(&[50_000_000, 0, 1_000]) + by;
        self.last = format!("tick {by} (lease: {lease}, alone: {alone})");
        self.naive.expire(self.now);
    }

    fn call<T>(
        &mut self,
        name: &str,
        apply: impl FnOnce(&mut Pool, &mut SharedState, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> Outcome<T> {
        self.call_all(|pools, step| pools.with_pool(&pool_name(name), step, apply))
    }

    fn call_all<T>(
        &mut self,
        apply: impl FnOnce(&mut Pools, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> Outcome<T> {
        let budget = self.random_budget();
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
        let reply = apply(&mut self.real, &mut step);
        let left = step.budget;
        if let Err(refusal) = &reply {
            self.count(kind(refusal));
        }
        self.stopped &= purged + facts == 0;
        Outcome { reply, purged, facts, spent: budget - left, left }
    }

    fn count(&mut self, refusal: String) {
        *self.refusals.entry(refusal).or_insert(0) += 1;
    }

    /// Compares a reply and the number of its facts; `named` keys may be ended beyond the budget.
    fn compare<T: Debug + PartialEq>(
        outcome: &Outcome<T>,
        expected: &Result<T, Refusal>,
        (named, facts): (usize, u32),
    ) {
        assert_eq!(outcome.reply, *expected);
        outcome.within_budget(named);
        assert_eq!(outcome.facts, if outcome.reply.is_ok() { facts } else { 0 }, "facts emitted");
    }

    /// Checks a refusal with `Settling`: valid only where more is due than the budget.
    fn check_settling<T>(&mut self, name: &str, outcome: &Outcome<T>, named: usize) {
        assert_eq!((outcome.left, outcome.facts), (0, 0), "the rest of the budget, facts");
        outcome.within_budget(named);
        assert!(
            agree::is_behind(&self.real, &self.naive, name),
            "nothing is due, so nothing is behind"
        );
        if outcome.spent > 0 {
            self.count("Settling and ended some".into());
        }
    }

    fn has_due_keys(&self, name: &str) -> bool {
        let real = self.real.get(&pool_name(name)).expect("a pool");
        real.counts().total() > self.naive.pool(name).expect("the same pool").counts().total()
    }

    fn generate(&mut self, name: &str) {
        let count = [1, 1, 2, 3, 9][self.random_below(5)];
        self.last = format!("generate {count} in {name}");
        let labels = self.random_labels();
        let outcome = self.call(name, |pool, shared, step| {
            let call = AddKeys::new(KeysToAdd::Generated(count));
            pool.add_keys(shared, step, &AddKeys { labels: &labels, ..call })
        });
        let room = self.naive.check_room(name, u64::from(count));
        let Some(keys) = self.check_new_keys(name, &outcome, &room, 0) else { return };
        assert_eq!(keys.len(), count as usize);
        let policy = &self.naive.pool(name).expect("a pool").policy;
        for key in &keys {
            let value = key.value.reveal();
            let random = value.strip_prefix(&*policy.key_prefix).expect("the prefix");
            assert_eq!(random.len(), usize::from(policy.key_length));
            assert!(random.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        }
        Self::check_labels(&keys, &labels);
        self.add_keys(name, &keys, true);
    }

    fn check_labels(keys: &[NewKey], labels: &NewLabels) {
        for (place, key) in keys.iter().enumerate() {
            assert_eq!(key.label.as_deref(), labels.get(place));
        }
    }

    /// Returns the labels of new keys: mostly none, or a few that recur.
    fn random_labels(&mut self) -> NewLabels {
        let each = (0..self.random_below(4)).map(|_| self.random_label()).collect();
        match self.random_below(4) {
            0 => NewLabels::All(self.random_label().unwrap_or_default()),
            1 => NewLabels::Each(each),
            _ => NewLabels::None,
        }
    }

    fn random_label(&mut self) -> Option<Box<str>> {
        self.pick(&[None, Some("".into()), Some("a".into()), Some("a".into()), Some("ä b".into())])
    }

    fn set_label(&mut self, name: &str) {
        let (key, label) = (self.random_key(), self.random_label());
        self.last = format!("label {key:?} of {name} {label:?}");
        let outcome = self
            .call(name, |pool, shared, step| pool.set_label(shared, step, &key, label.as_deref()));
        let expected = self.naive.set_label(self.now, name, (&key, label.as_deref()));
        let is_change = expected.as_ref().is_ok_and(|(_, is_change)| *is_change);
        let expected = expected.map(|(view, _)| view);
        Self::compare(&outcome, &expected, (1, u32::from(is_change)));
    }

    fn import(&mut self, name: &str) {
        let count = self.random_below(3) + 1;
        let values: Vec<Secret> = (0..count).map(|_| self.random_value()).collect();
        let keepalive = self.random_below(4) > 0;
        let allow_retired = self.random_below(4) == 0;
        let options = ImportOptions { keepalive, allow_retired };
        self.last = format!("import {count} into {name}: {options:?}");
        let labels = self.random_labels();
        let outcome = self.call(name, |pool, shared, step| {
            let call = AddKeys::new(KeysToAdd::Imported(&values));
            pool.add_keys(shared, step, &AddKeys { options, labels: &labels, ..call })
        });
        let texts: Vec<String> = values.iter().map(|value| value.reveal().into()).collect();
        let room = self.naive.check_new(name, &texts, allow_retired);
        let room = room.and_then(|()| self.naive.check_room(name, count as u64));
        let Some(keys) = self.check_new_keys(name, &outcome, &room, count) else { return };
        assert!(keys.iter().map(|key| &key.value).eq(&values), "in order");
        Self::check_labels(&keys, &labels);
        for key in &keys {
            let before = self.keys.iter().find(|(id, _)| *id == key.id);
            assert!(before.is_none_or(|(_, value)| *value == key.value), "an id has one value");
            let retired = &self.naive.pool(name).expect("a pool").retired;
            if retired.contains(key.value.reveal()) {
                self.count("a retired value came back".into());
            }
        }
        self.add_keys(name, &keys, keepalive);
    }

    /// Checks an answer with new keys; returns the keys if it has any.
    fn check_new_keys(
        &mut self,
        name: &str,
        outcome: &Outcome<Vec<NewKey>>,
        room: &Result<(), Refusal>,
        named: usize,
    ) -> Option<Vec<NewKey>> {
        match (&outcome.reply, room) {
            (Ok(keys), Ok(())) => {
                outcome.within_budget(named);
                assert_eq!(outcome.facts, 1);
                Some(keys.clone())
            }
            (Err(Refusal::Settling), _) => {
                self.check_settling(name, outcome, named);
                None
            }
            // Due keys of other pools count against the server's limit until they are purged.
            (Err(Refusal::PoolFull { of_server: true, .. }), Ok(()))
                if !self.has_due_keys(name) && self.real.key_count() > self.naive.keys() =>
            {
                outcome.within_budget(named);
                assert_eq!(outcome.facts, 0);
                None
            }
            (reply, _) => {
                assert_eq!(reply.as_ref().map(|_| ()), room.as_ref().copied());
                outcome.within_budget(named);
                assert_eq!(outcome.facts, 0);
                None
            }
        }
    }

    fn add_keys(&mut self, name: &str, keys: &[NewKey], keepalive: bool) {
        self.naive.add_keys(self.now, name, keys, keepalive);
        self.keys.extend(keys.iter().map(|key| (key.id, key.value.clone())));
    }

    /// Returns a value to import: one of a few that recur, or the value of a present or past key.
    fn random_value(&mut self) -> Secret {
        let n = self.random_below(30);
        match n {
            0..6 if !self.keys.is_empty() => {
                let keys = self.keys.clone();
                self.pick(&keys).1
            }
            0..25 => Secret::new(&format!("v{n}")).expect("a value"),
            _ => Secret::new(&format!("é{}", "x".repeat(n * n))).expect("a value"),
        }
    }

    fn random_ttl(&mut self, name: &str) -> Option<u64> {
        let max = self.naive.pool(name).map_or(1, |pool| pool.policy.lease_ttl_ms);
        self.pick(&[None, None, None, Some(max), Some(max / 2), Some(1), Some(0), Some(max + 1)])
    }

    fn acquire(&mut self, name: &str) {
        let ttl = self.random_ttl(name);
        let holder = self.pick(&[None, Some("job-7"), Some("")]);
        let (borrower, max) = self.random_borrower();
        self.last =
            format!("acquire of {name}, ttl {ttl:?}, borrower {borrower:?}, {max:?} at most");
        let reserved = self.real.next_token() >= self.real.counters().tokens_reserved;
        let real_borrower =
            borrower.map_or_else(Borrower::default, |name| Borrower::new(name, max));
        let options = AcquireOptions { ttl_ms: ttl, holder, borrower: real_borrower };
        let outcome = self.call(name, |pool, shared, step| pool.acquire(shared, step, &options));
        outcome.within_budget(0);
        let allowed = self.naive.check_borrower((name, ttl), (borrower, max));
        let count = self.real.lease_count(real_borrower);
        let reached = max.is_some_and(|max| count >= u64::from(max));
        if reached && outcome.reply == Err(Refusal::Settling) {
            // What is due may be this borrower's, in any pool; a pool in rotation was due.
            let in_rotation =
                self.real.next_due() == NextDue { lease_us: Some(0), serving_us: Some(0) };
            assert!(in_rotation || self.is_behind(), "nothing is due, so nothing is behind");
            return assert_eq!(outcome.facts, 0);
        }
        let available = allowed.and_then(|()| self.naive.available_keys(self.now, name, ttl));
        match (&outcome.reply, available) {
            (Ok(Granted { lease, value, .. }), Ok(available)) => {
                assert!(available.contains(&lease.key_id), "a key that is not available");
                assert!(
                    self.keys.contains(&(lease.key_id, value.clone())),
                    "the value of a different key"
                );
                assert!(lease.token > self.last_token, "tokens increase");
                assert_eq!(outcome.facts, 1 + u32::from(reserved));
                self.last_token = lease.token;
                self.leases.push(lease.id);
                let expected =
                    self.naive.lease_key(self.now, name, (lease, ttl), (holder, borrower));
                assert_eq!(*lease, expected);
            }
            (Err(Refusal::Settling), _) => self.check_settling(name, &outcome, 0),
            (Err(refusal), Err(expected)) => {
                assert_eq!((refusal, outcome.facts), (&expected, 0));
            }
            (Ok(granted), Err(expected)) => panic!("{granted:?}, must be {expected:?}"),
            (Err(refusal), Ok(keys)) => panic!("{refusal:?} though {keys:?} are available"),
        }
    }

    /// Returns a borrower and its limit: none, or one of a few with a low limit.
    fn random_borrower(&mut self) -> (Option<&'static str>, Option<u32>) {
        let names = [None, Some(BORROWERS[0]), Some(BORROWERS[0]), Some(BORROWERS[1])];
        (self.pick(&names), self.pick(&[None, Some(1), Some(2), Some(5)]))
    }

    /// Returns a lease's id: mostly a recent one, of any pool, sometimes forged.
    fn random_lease(&mut self) -> LeaseId {
        let recent = self.leases.len().saturating_sub(8);
        let leases =
            if self.random_below(3) > 0 { &self.leases[recent..] } else { &self.leases[..] };
        let mut leases = leases.to_vec();
        if self.random_below(20) == 0 || leases.is_empty() {
            let token = u128::from(self.last_token);
            leases = vec![LeaseId(0), LeaseId(token), LeaseId(u128::MAX)];
        }
        self.pick(&leases)
    }

    fn release(&mut self, name: &str) {
        let (id, options) = (self.random_lease(), self.random_release_options());
        self.release_with(name, id, &options);
    }

    fn release_with(&mut self, name: &str, id: LeaseId, options: &ReleaseOptions) {
        self.last = format!("release {id:?} of {name}: {options:?}");
        let outcome = self.call(name, |pool, shared, step| pool.release(shared, step, id, options));
        let expected = self.naive.release(self.now, name, id, options);
        let expected = self.if_known(&outcome.reply, expected);
        Self::compare(&outcome, &expected, (1, 1));
    }

    /// Leases all available keys and quarantines them.
    fn quarantine_all(&mut self, name: &str) {
        let before = self.leases.len();
        for _ in 0..12 {
            self.acquire(name);
        }
        for index in before..self.leases.len() {
            let (id, options) = (
                self.leases[index],
                ReleaseOptions { quarantine: true, ..self.random_release_options() },
            );
            self.release_with(name, id, &options);
        }
        self.acquire(name);
    }

    /// Returns the options of a release: mostly the default.
    fn random_release_options(&mut self) -> ReleaseOptions {
        let durations = [0, 1, 20, 60_000, WEEK_MS, WEEK_MS + 1];
        let rest_ms = (self.random_below(3) == 0).then(|| self.pick(&durations));
        let reason = self.pick(&[None, None, Some("".into()), Some("429 ✗".into())]);
        ReleaseOptions { rest_ms, quarantine: self.random_below(3) == 0, reason }
    }

    fn renew(&mut self, name: &str) {
        let (id, ttl) = (self.random_lease(), self.random_ttl(name));
        self.last = format!("renew {id:?} of {name}, ttl {ttl:?}");
        let outcome = self.call(name, |pool, shared, step| pool.renew(shared, step, id, ttl));
        let expected = self.naive.renew(self.now, name, id, ttl);
        let is_extended = expected.as_ref().is_ok_and(|(_, is_extended)| *is_extended);
        let expected = self.if_known(&outcome.reply, expected.map(|(lease, _)| lease));
        // A lease that lasts longer already stays as it is.
        Self::compare(&outcome, &expected, (1, u32::from(is_extended)));
    }

    /// Allows an unknown cause where the real pools may not know how a lease ended: after an
    /// unclean stop.
    fn if_known<T>(
        &self,
        outcome: &Result<T, Refusal>,
        expected: Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        match (outcome, expected) {
            (Err(Refusal::LeaseEnded { cause: None }), Err(Refusal::LeaseEnded { .. }))
                if self.naive.forgetful =>
            {
                Err(Refusal::LeaseEnded { cause: None })
            }
            (_, expected) => expected,
        }
    }

    /// Returns the id or the value of a key: of any pool, present, past or unknown.
    fn random_key(&mut self) -> KeyRef {
        let recent = self.keys.len().saturating_sub(12);
        let keys = if self.random_below(4) > 0 { &self.keys[recent..] } else { &self.keys[..] };
        let unknown = Secret::new("unknown").expect("a value");
        let keys = if keys.is_empty() { vec![(KeyId(7), unknown)] } else { keys.to_vec() };
        let (id, value) = self.pick(&keys);
        if self.random_below(3) == 0 { KeyRef::Value(value) } else { KeyRef::Id(id) }
    }

    fn force_release(&mut self, name: &str) {
        let key = self.random_key();
        self.last = format!("release key {key:?} of {name}");
        let outcome = self.call(name, |pool, shared, step| pool.force_release(shared, step, &key));
        let expected = self.naive.force_release(self.now, name, &key);
        let is_change = u32::from(expected.as_ref().is_ok_and(|outcome| outcome.released));
        Self::compare(&outcome, &expected, (1, is_change));
    }

    fn quarantine(&mut self, name: &str) {
        let key = self.random_key();
        if self.random_below(4) == 0 {
            self.last = format!("end the quarantine of {key:?} of {name}");
            let outcome =
                self.call(name, |pool, shared, step| pool.end_quarantine(shared, step, &key));
            let expected = self.naive.end_quarantine(self.now, name, &key);
            let is_change = u32::from(expected.as_ref().is_ok_and(|(_, is_change)| *is_change));
            Self::compare(&outcome, &expected.map(|(view, _)| view), (1, is_change));
            return;
        }
        let reason = self.random_label();
        let options = QuarantineOptions { when_free: self.random_below(4) > 0, reason };
        self.last = format!("quarantine {key:?} of {name}: {options:?}");
        let outcome =
            self.call(name, |pool, shared, step| pool.quarantine_key(shared, step, &key, &options));
        let expected = self.naive.quarantine_key(self.now, name, (&key, &options));
        let is_change = u32::from(expected.as_ref().is_ok_and(|(_, is_change)| *is_change));
        Self::compare(&outcome, &expected.map(|(done, _)| done), (1, is_change));
    }

    fn keep_alive(&mut self, name: &str) {
        let key = self.random_key();
        self.last = format!("keep {key:?} of {name} alive");
        let outcome = self.call(name, |pool, shared, step| pool.keep_alive(shared, step, &key));
        let expected = self.naive.keep_alive(self.now, name, &key);
        Self::compare(&outcome, &expected, (1, 0));
    }

    fn keep_alive_many(&mut self, name: &str) {
        let mut ids = vec![];
        for _ in 0..self.random_below(9) {
            ids.extend(match self.random_key() {
                KeyRef::Id(id) => Some(id),
                KeyRef::Value(_) => None,
            });
        }
        self.last = format!("keep {ids:?} of {name} alive");
        let outcome =
            self.call(name, |pool, shared, step| pool.keep_alive_many(shared, step, &ids));
        let expected = self.naive.keep_alive_many(self.now, name, &ids);
        Self::compare(&outcome, &expected, (ids.len(), 0));
    }

    fn keep_alive_all(&mut self, name: &str) {
        self.last = format!("keep all of {name} alive");
        let outcome = self.call(name, Pool::keep_alive_all);
        if outcome.reply == Err(Refusal::Settling) {
            return self.check_settling(name, &outcome, 0);
        }
        let expected = self.naive.keep_alive_all(self.now, name);
        Self::compare(&outcome, &expected, (0, 0));
    }

    fn delete(&mut self, name: &str) {
        let key = self.random_key();
        self.last = format!("delete {key:?} of {name}");
        let outcome = self.call(name, |pool, shared, step| pool.delete(shared, step, &key));
        let expected = self.naive.delete(name, &key);
        Self::compare(&outcome, &expected, (1, 1));
    }

    fn get_key(&mut self, name: &str) {
        let key = self.random_key();
        self.last = format!("show {key:?} of {name}");
        let outcome = self.call(name, |pool, shared, step| pool.get_key(shared, step, &key));
        let expected = self.naive.get_key(self.now, name, &key);
        Self::compare(&outcome, &expected, (1, 0));
    }

    /// Lists a whole pool, page by page; what is due ends on the way.
    fn list(&mut self, name: &str) {
        let states = [None, None, Some(KeyState::Available), Some(KeyState::Leased)];
        let (state, limit) = (self.pick(&states), self.random_below(9) + 1);
        let labels = [None, None, Some("a".into()), Some("unused".into())];
        let label: Option<Box<str>> = self.pick(&labels);
        self.last = format!("list {limit} a page of {name}, {state:?}, {label:?}");
        let (mut found, mut cursor) = (vec![], None);
        loop {
            let outcome = self.call(name, |pool, shared, step| {
                let label = label.clone();
                pool.list_keys(shared, step, ListOptions { state, label, limit, cursor })
            });
            assert_eq!(outcome.facts, 0, "a listing changes nothing");
            let Ok(page) = outcome.reply else {
                assert_eq!(outcome.reply.err(), self.naive.pool(name).err());
                return;
            };
            assert!(page.keys.len() <= limit);
            found.extend(page.keys);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        let mut expected = self.naive.list(self.now, name, (state, label.as_deref()));
        found.sort_by_key(|key| key.id);
        expected.sort_by_key(|key| key.id);
        assert_eq!(found, expected);
    }

    /// Returns a change of a policy: mostly short durations, sometimes out of range.
    fn random_patch(&mut self) -> PolicyPatch {
        let durations = [1, 2, 5, 20, 20, 60_000, 60_000, WEEK_MS, WEEK_MS + 1, 0];
        let duration = self.pick(&durations);
        let or_never = self.pick(&[None, Some(duration), Some(duration)]);
        let mut patch = PolicyPatch::default();
        match self.random_below(9) {
            0 | 1 => patch.lease_ttl_ms = Some(duration),
            2 => patch.max_hold_ms = Some(or_never),
            3 | 4 => patch.keepalive_ttl_ms = Some(or_never),
            5 => patch.rest_ms = Some(self.pick(&[0, 0, 1, 20, 60_000, WEEK_MS + 1])),
            6 => {
                patch.key_length = Some(self.pick(&[16, 19, 20, 21, 128, 129]));
                patch.key_prefix = Some(self.pick(&["".into(), "kp_".into()]));
            }
            7 => patch.draining = Some(self.pick(&[true, false, false, false])),
            _ => patch.max_keys = Some(self.pick(&[None, Some(0), Some(1), Some(5), Some(30)])),
        }
        patch
    }

    fn put(&mut self, name: &str, patch: &PolicyPatch) {
        self.last = format!("put {name}: {patch:?}");
        let invalid = self.naive.invalid_fields(name, patch);
        let (base, put) = (Policy::default(), patch.clone());
        let outcome =
            self.call_all(|pools, step| pools.create_or_update(step, &pool_name(name), &base, put));
        if let Err(Refusal::Invalid(out)) = &outcome.reply {
            assert!(invalid.contains(&out.field.name()), "{out:?}, must be one of {invalid:?}");
            assert_eq!(outcome.facts, 0);
            return;
        }
        assert!(invalid.is_empty(), "{invalid:?} were accepted");
        let expected = self.naive.put(name, patch);
        Self::compare(&outcome, &expected, (0, 1));
        if expected == Ok(true) {
            let number = self.real.get(&pool_name(name)).expect("just created").id();
            assert!(number > self.last_pool, "a pool's number is never used twice");
            self.last_pool = number;
            self.naive.pools.last_mut().expect("just created").number = number;
        }
    }

    fn remove(&mut self, name: &str) {
        self.last = format!("remove {name}");
        let outcome = self.call_all(|pools, step| pools.remove(step, &pool_name(name)).map(drop));
        let expected = self.naive.remove(name);
        Self::compare(&outcome, &expected, (0, 1));
    }

    fn expire(&mut self) {
        self.last = "expire".into();
        let outcome = self.call_all(|pools, step| Ok(pools.expire(step)));
        outcome.within_budget(0);
        assert_eq!(outcome.facts, 0);
        let behind = self.is_behind();
        let more = outcome.reply == Ok(true);
        assert!(more || !behind, "more is due than reported");
        assert!(!more || outcome.left == 0, "budget is left though more is due");
    }

    fn is_behind(&self) -> bool {
        let mut pools = self.naive.pools.iter();
        pools.any(|pool| agree::is_behind(&self.real, &self.naive, &pool.name))
    }

    /// Stops, cleanly or not, and starts by replaying the facts.
    fn restart(&mut self) {
        let clean = self.random_below(2) == 0;
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
        let replayed = self.journal.replay((ids(), LIMITS, 1), self.now);
        self.real = replayed.expect("consistent facts");
        self.naive.expire(Now { serving_us: 0, ..self.now });
        self.naive.restart(self.now);
        let reserved = self.real.counters().tokens_reserved;
        assert_eq!(self.real.next_token(), if self.stopped { next_token } else { reserved });
        self.naive.forgetful |= !clean;
    }
}

impl<T> Outcome<T> {
    /// Checks that every purge cost budget, or was of a key that the call named.
    fn within_budget(&self, named: usize) {
        assert!(self.purged as usize <= self.spent as usize + named, "more than the budget");
    }
}

/// Returns a refusal's name, with what distinguishes refusals of the same name.
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
        | Refusal::KeyMemoryFull { .. }
        | Refusal::MemoryFull { .. }
        | Refusal::StorageFull
        | Refusal::Settling => {
            format!("{refusal:?}")
        }
    }
}
