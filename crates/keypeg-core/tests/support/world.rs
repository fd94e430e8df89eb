//! The script language of `script.rs`: one call per line, `call -> answer`, executed on real pools.
//!
//! Keys and leases have names within a script. An answer consists of a first word and facts; a line
//! states the first word and any of the facts. A line without an answer must not be refused. The
//! runner checks the invariants after every line, and at the end it replays the journal.

use super::journal::Journal;
use keypeg_core::{
    AcquireOptions, AddKeys, Borrower, Granted, GrantedLease, IdHashKey, KeptAlive, KeptAliveMany,
    KeyId, KeyQuarantined, KeyRef, KeysToAdd, LeaseId, LeaseView, Limits, NewKey, Now, Policy,
    PolicyPatch, Pool, PoolName, Pools, Refusal, Secret, SharedState, StepContext, WaitOptions,
    WaitOutcome, WaiterId,
};
use keypeg_testkit::ScaledRandom;
use keypeg_testkit::script::words::{
    borrower_of, duration, form_text, idempotency_key_of, import_options_of, label_of, label_text,
    labels_of, life_text, micros, millis, patch_of, quarantine_options_of, refused_text,
    release_options_of, ttl_of, view_text, without_idempotency_key,
};
use keypeg_testkit::script::{self, Line};
use std::collections::HashMap;

const FIRST_TOKEN: u64 = 1_000;
const IDS: [u8; 32] = [7; 32];
/// The budget of a step, unless the script sets one.
const BUDGET: u32 = 1_000;

/// Runs a script on a pool `default` with the default policy and checks every answer.
pub(crate) fn check(script: &str) {
    check_within(
        Limits { pools: 3, keys: 1_000_000, bytes: u64::MAX, answers: keypeg_core::ANSWERS_MAX },
        script,
    );
}

/// Runs a script with other limits of the server.
pub(crate) fn check_within(limits: Limits, script: &str) {
    World::new(limits).run(script);
}

struct World {
    pools: Pools,
    limits: Limits,
    journal: Journal,
    random: ScaledRandom,
    now: Now,
    budget: u32,
    /// The pool that calls apply to.
    pool: PoolName,
    keys: HashMap<String, (KeyId, Secret)>,
    leases: HashMap<String, LeaseView>,
    /// The names of waiting requests, by waiter id.
    waiters: Vec<String>,
    /// The outcomes of waits, by name.
    outcomes: HashMap<String, Result<GrantedLease, Refusal>>,
    last_token: u64,
}

type Answer = Result<String, Refusal>;

impl World {
    fn new(limits: Limits) -> Self {
        let now = Now { lease_us: 5_000_000, serving_us: 0, wall_us: 1_700_000_000_000_000 };
        let mut world = Self {
            pools: Pools::new(IdHashKey::new(IDS), limits, FIRST_TOKEN),
            limits,
            journal: Journal::default(),
            random: ScaledRandom::new(1),
            now,
            budget: BUDGET,
            pool: PoolName::default_pool(),
            keys: HashMap::new(),
            leases: HashMap::new(),
            waiters: vec![],
            outcomes: HashMap::new(),
            last_token: 0,
        };
        world.put(&PoolName::default_pool(), PolicyPatch::default()).expect("a first pool");
        world
    }

    fn run(mut self, script: &str) {
        for line in script::lines(script) {
            let answer = self.call(line.verb, &line.args);
            self.drain_wait_outcomes();
            let answer = answer.map_err(|refusal| refused_text(self.now_ms(), &refusal));
            let matches = line.accepts(&answer, |_| true);
            let Line { number, text, .. } = line;
            assert!(matches, "line {number}: {text}\n   answered: {answer:?}\n{script}");
            self.pools.check_invariants();
        }
        let parts = (IdHashKey::new(IDS), self.limits, FIRST_TOKEN);
        self.journal.replay(parts, self.now).expect("consistent facts").check_invariants();
    }

    fn call(&mut self, verb: &str, args: &[&str]) -> Answer {
        match verb {
            "generate" => self.generate(args),
            "import" => self.import(args),
            "acquire" => self.acquire(args[0], &args[1..]),
            "release" => {
                let (lease, options) = (self.lease(args[0]), release_options_of(&args[1..]));
                self.with_pool(|pool, shared, step| pool.release(shared, step, lease, &options))?;
                Ok("released".into())
            }
            "renew" => {
                let (lease, ttl) = (self.lease(args[0]), ttl_of(&args[1..]));
                let view =
                    self.with_pool(|pool, shared, step| pool.renew(shared, step, lease, ttl))?;
                Ok(format!("renewed ttl={}", duration(view.expires_in_ms)))
            }
            "revoke" => {
                let lease = self.lease(args[0]);
                self.with_pool(|pool, shared, step| pool.revoke_undelivered(shared, step, lease))?;
                Ok("revoked".into())
            }
            "force_release" => {
                let key = self.key(args[0]);
                let outcome =
                    self.with_pool(|pool, shared, step| pool.force_release(shared, step, &key))?;
                Ok(if outcome.released { "freed" } else { "already_available" }.into())
            }
            "delete" => {
                let key = self.key(args[0]);
                self.with_pool(|pool, shared, step| pool.delete(shared, step, &key))?;
                Ok("deleted".into())
            }
            "label" => {
                let (key, label) = (self.key(args[0]), label_of(args));
                let view =
                    self.with_pool(|pool, shared, step| pool.set_label(shared, step, &key, label))?;
                let token_number = |token: u64| (token - FIRST_TOKEN + 1).to_string();
                Ok(view_text(self.now_ms(), &view, token_number))
            }
            "quarantine" => {
                let (key, options) = (self.key(args[0]), quarantine_options_of(&args[1..]));
                let KeyQuarantined { key: view, .. } = self.with_pool(|pool, shared, step| {
                    pool.quarantine_key(shared, step, &key, &options)
                })?;
                let token_number = |token: u64| (token - FIRST_TOKEN + 1).to_string();
                Ok(view_text(self.now_ms(), &view, token_number))
            }
            "put_back" => {
                let key = self.key(args[0]);
                let view =
                    self.with_pool(|pool, shared, step| pool.end_quarantine(shared, step, &key))?;
                let token_number = |token: u64| (token - FIRST_TOKEN + 1).to_string();
                Ok(view_text(self.now_ms(), &view, token_number))
            }
            "show" => {
                let key = self.key(args[0]);
                let view = self.with_pool(|pool, shared, step| pool.get_key(shared, step, &key))?;
                let token_number = |token: u64| (token - FIRST_TOKEN + 1).to_string();
                Ok(view_text(self.now_ms(), &view, token_number))
            }
            "keepalive" => self.keep_alive(args),
            "wait" => self.wait(args[0], &args[1..]),
            "cancel" => {
                let waiter_id = self.waiters.iter().rposition(|name| name == args[0]);
                let cancelled = self.pools.cancel_wait(WaiterId(
                    waiter_id.map_or(u64::MAX, |waiter_id| waiter_id as u64),
                ));
                Ok(if cancelled { "cancelled" } else { "not_waiting" }.into())
            }
            "got" => match self.outcomes.get(args[0]).cloned() {
                None => Ok("nothing".into()),
                Some(outcome) => {
                    let GrantedLease { lease, value, waited_ms, .. } = outcome?;
                    let text = self.granted(args[0], lease, &value);
                    Ok(format!("{text} waited={}", duration(waited_ms)))
                }
            },
            _ => self.call_on_server(verb, args),
        }
    }

    /// Calls that concern pools, time and the server.
    fn call_on_server(&mut self, verb: &str, args: &[&str]) -> Answer {
        match verb {
            "tick" => self.tick(args),
            "budget" => self.budget = args[0].parse().expect("a number"),
            "in" => self.pool = PoolName::parse(args[0]).expect("a name"),
            "pool" => {
                self.pool = PoolName::parse(args[0]).expect("a name");
                let name = self.pool.clone();
                let created = self.put(&name, patch_of(&args[1..]))?;
                let number = self.pools.get(&name).expect("just put").id();
                let word = if created { "created" } else { "changed" };
                return Ok(format!("{word} number={}", number.0));
            }
            "policy" => {
                let name = self.pool.clone();
                self.put(&name, patch_of(args))?;
            }
            "drop" => {
                let name = PoolName::parse(args[0]).expect("a name");
                let (pools, mut step) = self.parts();
                pools.remove(&mut step, &name)?;
            }
            "expire" => {
                let (pools, mut step) = self.parts();
                let more = pools.expire(&mut step);
                return Ok(format!("expired more={more} left={}", step.budget));
            }
            "counts" => return self.counts(),
            "leases" => {
                let borrower = Borrower::new(args[0], None);
                return Ok(format!("leases {}", self.pools.lease_count(borrower)));
            }
            "stop" => {
                self.pools.cancel_all_waits(|_| {});
            }
            "restart" => {
                let parts = (IdHashKey::new(IDS), self.limits, FIRST_TOKEN);
                let downtime_us = args.first().map_or(0, |time| micros(time));
                self.now.lease_us += downtime_us;
                self.now.wall_us += downtime_us;
                self.now.serving_us = 0;
                self.pools = self.journal.replay(parts, self.now).expect("consistent facts");
            }
            _ => panic!("unknown verb: {verb}"),
        }
        Ok("done".into())
    }

    /// Adds keys, with the Idempotency-Key `once=K` and the body `body=B` where the line has them.
    fn add(
        &mut self,
        args: &[&str],
        add: impl FnOnce(
            &mut Pool,
            &mut SharedState,
            &mut StepContext<'_>,
        ) -> Result<Vec<NewKey>, Refusal>,
    ) -> Result<Vec<NewKey>, Refusal> {
        let key = idempotency_key_of(args);
        self.with_pool(|pool, shared, step| match key {
            None => add(pool, shared, step),
            Some(key) => pool.add_idempotent(shared, step, &key, add),
        })
    }

    fn generate(&mut self, args: &[&str]) -> Answer {
        let (args, all) = (&without_idempotency_key(args)[..], args);
        let count = args.first().and_then(|arg| arg.parse().ok());
        let unnamed = count.is_some();
        let count = count.unwrap_or_else(|| u32::try_from(args.len()).expect("few"));
        let labels = labels_of(all);
        let keys = self.add(all, |pool, shared, step| {
            let call = AddKeys::new(KeysToAdd::Generated(count));
            pool.add_keys(shared, step, &AddKeys { labels: &labels, ..call })
        })?;
        assert_eq!(keys.len(), count as usize);
        if let Some(answer) = self.redelivered_text(args, all, &keys) {
            return Ok(answer);
        }
        if !unnamed {
            self.name_keys(args, &keys);
        }
        Ok(format!("created life={} {}", self.life(keys[0].expires_at_ms), form_text(&keys[0])))
    }

    fn import(&mut self, args: &[&str]) -> Answer {
        let all = args;
        let (args, options) = import_options_of(&without_idempotency_key(args));
        let args = &args[..];
        let values: Vec<Secret> = args.iter().map(|arg| self.value(arg)).collect();
        let labels = labels_of(all);
        let keys = self.add(all, |pool, shared, step| {
            let call = AddKeys::new(KeysToAdd::Imported(&values));
            pool.add_keys(shared, step, &AddKeys { options, labels: &labels, ..call })
        })?;
        assert!(keys.iter().map(|key| &key.value).eq(&values), "values are in order");
        if let Some(answer) = self.redelivered_text(args, all, &keys) {
            return Ok(answer);
        }
        self.name_keys(args, &keys);
        Ok(format!("created life={}", self.life(keys[0].expires_at_ms)))
    }

    fn acquire(&mut self, name: &str, args: &[&str]) -> Answer {
        let ttl = ttl_of(args);
        let holder = args.iter().find_map(|arg| arg.strip_prefix("holder="));
        let options = AcquireOptions { ttl_ms: ttl, holder, borrower: borrower_of(args) };
        let Granted { lease, value, .. } =
            self.with_pool(|pool, shared, step| pool.acquire(shared, step, &options))?;
        Ok(self.granted(name, lease, &value))
    }

    /// `wait W for=10s ttl=5s holder=x as=x max=2`: `got W` returns the outcome.
    fn wait(&mut self, name: &str, args: &[&str]) -> Answer {
        let (ttl, waiter_id) = (ttl_of(args), WaiterId(self.waiters.len() as u64));
        let holder = args.iter().find_map(|arg| arg.strip_prefix("holder="));
        let wait = args.iter().find_map(|arg| arg.strip_prefix("for=")).map_or(10_000, millis);
        let wait = WaitOptions { waiter_id, wait_ms: wait };
        let options = AcquireOptions { ttl_ms: ttl, holder, borrower: borrower_of(args) };
        self.waiters.push(name.into());
        if let Some(key) = idempotency_key_of(args) {
            let granted = self.with_pool(|pool, shared, step| {
                pool.acquire_idempotent(shared, step, &options, wait, &key)
            })?;
            return Ok(match granted {
                None => "waits".into(),
                Some(Granted { lease, value, redelivered: false }) => {
                    self.granted(name, lease, &value)
                }
                Some(Granted { lease, value, .. }) => self.redelivered(name, lease, &value),
            });
        }
        let granted = self
            .with_pool(|pool, shared, step| pool.acquire_or_wait(shared, step, &options, wait))?;
        let Some(Granted { lease, value, .. }) = granted else { return Ok("waits".into()) };
        Ok(self.granted(name, lease, &value))
    }

    /// A redelivered lease: equal to the one delivered before, except for the time left.
    fn redelivered(&mut self, name: &str, lease: LeaseView, value: &Secret) -> String {
        let mut same = self.leases.values().filter(|before| before.token == lease.token);
        let before = same.next().expect("delivered before").clone();
        let as_delivered = LeaseView { expires_in_ms: before.expires_in_ms, ..lease.clone() };
        let change = if as_delivered == before { "same" } else { "changed" };
        let (_, known) = self.keys.values().find(|(id, _)| *id == lease.key_id).expect("named");
        assert_eq!(known, value, "the value of the leased key");
        let text = format!("redelivered {change} ttl={}", duration(lease.expires_in_ms));
        self.leases.insert(name.into(), lease);
        text
    }

    fn drain_wait_outcomes(&mut self) {
        let outcomes: Vec<_> = self.pools.drain_wait_outcomes().collect();
        for WaitOutcome { waiter_id, outcome } in outcomes {
            let name = self.waiters[usize::try_from(waiter_id.0).expect("few")].clone();
            self.outcomes.insert(name, outcome);
        }
    }

    fn granted(&mut self, name: &str, lease: LeaseView, value: &Secret) -> String {
        assert!(lease.token > self.last_token, "tokens increase over all pools");
        self.last_token = lease.token;
        let named = self.keys.iter().find(|(_, (id, _))| *id == lease.key_id);
        let key = named.map_or("?", |(name, (_, known))| {
            assert_eq!(known, value, "the value of the leased key");
            name
        });
        let text = format!(
            "granted key={key} token={} ttl={} life={}{}",
            lease.token - FIRST_TOKEN + 1,
            duration(lease.expires_in_ms),
            self.life(lease.key_expires_at_ms),
            label_text(lease.label.as_deref()),
        );
        self.leases.insert(name.into(), lease);
        text
    }

    fn keep_alive(&mut self, args: &[&str]) -> Answer {
        match args {
            ["all"] => {
                let kept = self.with_pool(Pool::keep_alive_all)?;
                Ok(format!("kept count={kept}"))
            }
            [one] => {
                let key = self.key(one);
                let KeptAlive { expires_at_ms: until, .. } =
                    self.with_pool(|pool, shared, step| pool.keep_alive(shared, step, &key))?;
                Ok(format!("kept life={}", self.life(until)))
            }
            many => {
                let ids: Vec<KeyId> = many.iter().map(|name| self.keys[*name].0).collect();
                let KeptAliveMany { kept, missing } =
                    self.with_pool(|pool, shared, step| pool.keep_alive_many(shared, step, &ids))?;
                let missing: Vec<&str> = missing.iter().map(|id| self.name_of(*id)).collect();
                Ok(format!("kept count={kept} missing={}", missing.join(",")))
            }
        }
    }

    fn counts(&self) -> Answer {
        let pool = self.pools.get(&self.pool).ok_or(Refusal::UnknownPool)?;
        let counts = pool.counts();
        let until = |at: Option<u64>, now: u64| match at {
            None => "never".into(),
            Some(at) => at.checked_sub(now).map_or("past".into(), |left| duration(left / 1_000)),
        };
        Ok(format!(
            "counts available={} leased={} resting={} quarantined={} draining={} total={} server={} \
             waiting={} hold_end={} purge={}",
            counts.available,
            counts.leased,
            counts.resting,
            counts.quarantined,
            counts.draining,
            counts.total(),
            self.pools.key_count(),
            pool.waiter_count(),
            until(pool.next_hold_end_us(), self.now.lease_us),
            until(pool.next_purge_us(), self.now.serving_us),
        ))
    }

    fn tick(&mut self, args: &[&str]) {
        let (clocks, by) = match args {
            [by] => ("both", micros(by)),
            [clocks, by] => (*clocks, micros(by)),
            _ => panic!("tick [lease|serving] DURATION"),
        };
        if clocks != "serving" {
            self.now.lease_us += by;
            self.now.wall_us += by;
        }
        if clocks != "lease" {
            self.now.serving_us += by;
        }
    }

    fn put(&mut self, name: &PoolName, patch: PolicyPatch) -> Result<bool, Refusal> {
        let (pools, mut step) = self.parts();
        pools.create_or_update(&mut step, name, &Policy::default(), patch)
    }

    fn parts(&mut self) -> (&mut Pools, StepContext<'_>) {
        let step = StepContext {
            now: self.now,
            random: &mut self.random,
            facts: &mut self.journal,
            budget: self.budget,
            ended_by_time: false,
        };
        (&mut self.pools, step)
    }

    fn with_pool<T>(
        &mut self,
        apply: impl FnOnce(&mut Pool, &mut SharedState, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let name = self.pool.clone();
        let (pools, mut step) = self.parts();
        pools.with_pool(&name, &mut step, apply)
    }

    fn name_keys(&mut self, names: &[&str], keys: &[NewKey]) {
        for (name, key) in names.iter().zip(keys) {
            self.keys.insert((*name).into(), (key.id, key.value.clone()));
        }
    }

    /// Formats keys added with an Idempotency-Key; `None` unless the names are known already.
    fn redelivered_text(&self, names: &[&str], all: &[&str], keys: &[NewKey]) -> Option<String> {
        idempotency_key_of(all)?;
        let known: Option<Vec<_>> = names.iter().map(|name| self.keys.get(*name)).collect();
        let keys_and_values = keys.iter().map(|key| (key.id, key.value.clone()));
        let same = known?.into_iter().cloned().eq(keys_and_values);
        let life = self.life(keys[0].expires_at_ms);
        Some(format!("{} life={life}", if same { "same" } else { "others" }))
    }

    fn name_of(&self, id: KeyId) -> &str {
        self.keys.iter().find(|(_, key)| key.0 == id).map_or("?", |(name, _)| name)
    }

    /// Finds a key by its name, by `value:` and its name, or by its lease, `of:` L.
    fn key(&self, name: &str) -> KeyRef {
        if let Some(lease) = name.strip_prefix("of:") {
            return KeyRef::Id(self.leases[lease].key_id);
        }
        if let Some(value) = name.strip_prefix("value:") {
            return KeyRef::Value(self.value(value));
        }
        self.keys.get(name).map_or(KeyRef::Id(KeyId(0)), |(id, _)| KeyRef::Id(*id))
    }

    /// Returns the value of a known key, or else the word itself.
    fn value(&self, word: &str) -> Secret {
        let known = self.keys.get(word).map(|(_, value)| value.clone());
        known.unwrap_or_else(|| Secret::new(word).expect("a value"))
    }

    /// Finds a lease by its name; `forged:` L has the token of L and another MAC.
    fn lease(&self, name: &str) -> LeaseId {
        if let Some(lease) = name.strip_prefix("forged:") {
            return LeaseId(self.leases[lease].id.0 ^ (1 << 60));
        }
        self.leases.get(name).map_or(LeaseId(0), |lease| lease.id)
    }

    fn now_ms(&self) -> u64 {
        self.now.wall_us / 1_000
    }

    fn life(&self, expires_at_ms: Option<u64>) -> String {
        life_text(self.now_ms(), expires_at_ms)
    }
}
