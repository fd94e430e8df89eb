//! The small language of `script.rs`: one call a line, `call -> answer`, played on real pools.
//!
//! Keys and leases have names within a script. An answer is its first word and facts about it;
//! a line names the first word and as many of the facts as it is about. A line without an answer
//! must not be refused. Invariants are checked after every line, and at the end the journal must
//! give pools back.

#[path = "script_words.rs"]
mod script_words;

use super::journal::Journal;
use keypeg_core::{
    AcquireOptions, Borrower, Granted, GrantedLease, IdHashKey, KeptAlive, KeptAliveMany, KeyId,
    KeyRef, LeaseId, LeaseView, Limits, NewKey, Now, Policy, PolicyPatch, Pool, PoolName, Pools,
    Refusal, Secret, SharedState, StepContext, WaitOptions, WaitOutcome, WaiterId,
};
use keypeg_testkit::ScaledRandom as Rng;
use script_words::{
    borrower_of, form, length, life_text, micros, millis, once_of, patch_of, plain, refused_text,
    ttl_of, verdict_of, view_text,
};
use std::collections::HashMap;

const FIRST_TOKEN: u64 = 1_000;
const IDS: [u8; 32] = [7; 32];
/// What a turn may end where a script does not say.
const BUDGET: u32 = 1_000;

/// Plays a script on one `default` pool with the default policy and checks every answer.
pub(crate) fn check(script: &str) {
    World::new(Limits { pools: 3, keys: 1_000_000 }).play(script);
}

/// Plays a script under other bounds of the server.
pub(crate) fn check_within(limits: Limits, script: &str) {
    World::new(limits).play(script);
}

struct World {
    pools: Pools,
    limits: Limits,
    journal: Journal,
    random: Rng,
    now: Now,
    budget: u32,
    /// The pool that lines speak of.
    pool: PoolName,
    keys: HashMap<String, (KeyId, Secret)>,
    leases: HashMap<String, LeaseView>,
    /// Who waits or waited, by waiter_id.
    waiter_ids: Vec<String>,
    /// What those who waited got.
    got: HashMap<String, Result<GrantedLease, Refusal>>,
    last_token: u64,
}

type IdempotencyRecord = Result<String, Refusal>;

impl World {
    fn new(limits: Limits) -> Self {
        let now = Now { lease_us: 5_000_000, serving_us: 0, wall_us: 1_700_000_000_000_000 };
        let mut world = Self {
            pools: Pools::new(IdHashKey::new(IDS), limits, FIRST_TOKEN),
            limits,
            journal: Journal::default(),
            random: Rng::new(1),
            now,
            budget: BUDGET,
            pool: PoolName::default_pool(),
            keys: HashMap::new(),
            leases: HashMap::new(),
            waiter_ids: vec![],
            got: HashMap::new(),
            last_token: 0,
        };
        world.put(&PoolName::default_pool(), PolicyPatch::default()).expect("a first pool");
        world
    }

    fn play(mut self, script: &str) {
        for (at, line) in script.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let (call, expected) = line.split_once("->").unwrap_or((line, ""));
            let words: Vec<&str> = call.split_whitespace().collect();
            let answer = self.call(words[0], &words[1..]);
            let refused = answer.is_err();
            self.drain_wait_outcomes();
            let answer = answer.unwrap_or_else(|refusal| refused_text(self.now, &refusal));
            let mut expected = expected.split_whitespace();
            let fits = match expected.next() {
                None => !refused,
                Some(first) => {
                    let told: Vec<&str> = answer.split_whitespace().collect();
                    told[0] == first && expected.all(|fact| told.contains(&fact))
                }
            };
            assert!(fits, "line {}: {line}\n   answered: {answer}\n{script}", at + 1);
            self.pools.check_invariants();
        }
        let parts = (IdHashKey::new(IDS), self.limits, FIRST_TOKEN);
        self.journal.rebuild(parts, self.now).expect("facts fit").check_invariants();
    }

    fn call(&mut self, verb: &str, args: &[&str]) -> IdempotencyRecord {
        match verb {
            "generate" => self.generate(args),
            "import" => self.import(args),
            "acquire" => self.acquire(args[0], &args[1..]),
            "release" => {
                let (lease, verdict) = (self.lease(args[0]), verdict_of(&args[1..]));
                self.on(|pool, ledger, step| pool.release(ledger, step, lease, &verdict))?;
                Ok("released".into())
            }
            "renew" => {
                let (lease, ttl) = (self.lease(args[0]), ttl_of(&args[1..]));
                let view = self.on(|pool, ledger, step| pool.renew(ledger, step, lease, ttl))?;
                Ok(format!("renewed ttl={}", length(view.expires_in_ms)))
            }
            "takeback" => {
                let lease = self.lease(args[0]);
                self.on(|pool, ledger, step| pool.revoke_undelivered(ledger, step, lease))?;
                Ok("taken_back".into())
            }
            "unblock" => {
                let key = self.key(args[0]);
                let changed =
                    self.on(|pool, ledger, step| pool.force_release(ledger, step, &key))?;
                Ok(if changed { "unblocked" } else { "free_already" }.into())
            }
            "delete" => {
                let key = self.key(args[0]);
                self.on(|pool, ledger, step| pool.delete(ledger, step, &key))?;
                Ok("deleted".into())
            }
            "show" => {
                let key = self.key(args[0]);
                let view = self.on(|pool, ledger, step| pool.get_key(ledger, step, &key))?;
                Ok(view_text(self.now, &view))
            }
            "keepalive" => self.keep_alive(args),
            "wait" => self.wait(args[0], &args[1..]),
            "leave" => {
                let waiter_id = self.waiter_ids.iter().rposition(|name| name == args[0]);
                let left = self.pools.cancel_wait(WaiterId(
                    waiter_id.map_or(u64::MAX, |waiter_id| waiter_id as u64),
                ));
                Ok(if left { "left" } else { "not_in_line" }.into())
            }
            "got" => match self.got.get(args[0]).cloned() {
                None => Ok("nothing".into()),
                Some(outcome) => {
                    let GrantedLease { lease, value, waited_ms, .. } = outcome?;
                    let text = self.granted(args[0], lease, &value);
                    Ok(format!("{text} waited={}", length(waited_ms)))
                }
            },
            _ => self.call_on_all(verb, args),
        }
    }

    /// Calls that are about pools, time and the server.
    fn call_on_all(&mut self, verb: &str, args: &[&str]) -> IdempotencyRecord {
        match verb {
            "tick" => self.tick(args),
            "budget" => self.budget = args[0].parse().expect("a number"),
            "in" => self.pool = PoolName::parse(args[0]).expect("a name"),
            "pool" => {
                self.pool = PoolName::parse(args[0]).expect("a name");
                let name = self.pool.clone();
                let made = self.put(&name, patch_of(&args[1..]))?;
                let number = self.pools.get(&name).expect("just put").id();
                let word = if made { "made" } else { "changed" };
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
            "borrowed" => {
                let borrower = Borrower::new(args[0], None);
                return Ok(format!("borrowed {}", self.pools.lease_count(borrower)));
            }
            "stop" => {
                self.pools.cancel_all_waits(|_| {});
            }
            "restart" => {
                let parts = (IdHashKey::new(IDS), self.limits, FIRST_TOKEN);
                self.now.serving_us = 0;
                self.pools = self.journal.rebuild(parts, self.now).expect("facts fit");
            }
            _ => panic!("no such verb: {verb}"),
        }
        Ok("done".into())
    }

    /// Plays keys being made, under `once=K`, where it is said, with the body `body=B`.
    fn add(
        &mut self,
        args: &[&str],
        add: impl FnOnce(
            &mut Pool,
            &mut SharedState,
            &mut StepContext<'_>,
        ) -> Result<Vec<NewKey>, Refusal>,
    ) -> Result<Vec<NewKey>, Refusal> {
        let once = once_of(args);
        self.on(|pool, ledger, step| match once {
            None => add(pool, ledger, step),
            Some(once) => pool.add_idempotent(ledger, step, &once, add),
        })
    }

    fn generate(&mut self, args: &[&str]) -> IdempotencyRecord {
        let (args, all) = (&plain(args)[..], args);
        let many = args.first().and_then(|arg| arg.parse().ok());
        let count = many.unwrap_or_else(|| u32::try_from(args.len()).expect("few"));
        let made = self.add(all, |pool, ledger, step| pool.generate(ledger, step, count))?;
        assert_eq!(made.len(), count as usize);
        if let Some(answer) = self.told_before(args, all, &made) {
            return Ok(answer);
        }
        if many.is_none() {
            self.name(args, &made);
        }
        Ok(format!("made life={} {}", self.life(made[0].expires_at_ms), form(&made[0])))
    }

    fn import(&mut self, args: &[&str]) -> IdempotencyRecord {
        let (args, all) = (&plain(args)[..], args);
        let values: Vec<Secret> = args.iter().map(|arg| self.value(arg)).collect();
        let made = self.add(all, |pool, ledger, step| pool.import(ledger, step, &values, None))?;
        assert!(made.iter().map(|key| &key.value).eq(&values), "values come back in order");
        if let Some(answer) = self.told_before(args, all, &made) {
            return Ok(answer);
        }
        self.name(args, &made);
        Ok(format!("made life={}", self.life(made[0].expires_at_ms)))
    }

    fn acquire(&mut self, name: &str, args: &[&str]) -> IdempotencyRecord {
        let ttl = ttl_of(args);
        let holder = args.iter().find_map(|arg| arg.strip_prefix("holder="));
        let wish = AcquireOptions { ttl_ms: ttl, holder, borrower: borrower_of(args) };
        let Granted { lease, value, .. } =
            self.on(|pool, ledger, step| pool.acquire(ledger, step, &wish))?;
        Ok(self.granted(name, lease, &value))
    }

    /// `wait W for=10s ttl=5s holder=x as=x max=2`: what comes of it is told by `got W`.
    fn wait(&mut self, name: &str, args: &[&str]) -> IdempotencyRecord {
        let (ttl, waiter_id) = (ttl_of(args), WaiterId(self.waiter_ids.len() as u64));
        let holder = args.iter().find_map(|arg| arg.strip_prefix("holder="));
        let wait = args.iter().find_map(|arg| arg.strip_prefix("for=")).map_or(10_000, millis);
        let wait = WaitOptions { waiter_id, wait_ms: wait };
        let wish = AcquireOptions { ttl_ms: ttl, holder, borrower: borrower_of(args) };
        self.waiter_ids.push(name.into());
        if let Some(once) = once_of(args) {
            let lent = self.on(|pool, ledger, step| {
                pool.acquire_idempotent(ledger, step, &wish, wait, &once)
            })?;
            return Ok(match lent {
                None => "waits".into(),
                Some(Granted { lease, value, redelivered: false }) => {
                    self.granted(name, lease, &value)
                }
                Some(Granted { lease, value, .. }) => self.again(name, lease, &value),
            });
        }
        let lent = self.on(|pool, ledger, step| pool.acquire_or_wait(ledger, step, &wish, wait))?;
        let Some(Granted { lease, value, .. }) = lent else { return Ok("waits".into()) };
        Ok(self.granted(name, lease, &value))
    }

    /// A lease told again: the one that was told before, in every part but the time left.
    fn again(&mut self, name: &str, lease: LeaseView, value: &Secret) -> String {
        let mut same = self.leases.values().filter(|before| before.token == lease.token);
        let before = same.next().expect("it was told before").clone();
        let left = LeaseView { expires_in_ms: before.expires_in_ms, ..lease.clone() };
        let as_before = if left == before { "same" } else { "changed" };
        let (_, known) = self.keys.values().find(|(id, _)| *id == lease.key_id).expect("named");
        assert_eq!(known, value, "the value of the key that is lent");
        let text = format!("again {as_before} ttl={}", length(lease.expires_in_ms));
        self.leases.insert(name.into(), lease);
        text
    }

    fn drain_wait_outcomes(&mut self) {
        let handed: Vec<_> = self.pools.drain_wait_outcomes().collect();
        for WaitOutcome { waiter_id, outcome } in handed {
            let name = self.waiter_ids[usize::try_from(waiter_id.0).expect("few")].clone();
            self.got.insert(name, outcome);
        }
    }

    fn granted(&mut self, name: &str, lease: LeaseView, value: &Secret) -> String {
        assert!(lease.token > self.last_token, "tokens grow over all pools");
        self.last_token = lease.token;
        let named = self.keys.iter().find(|(_, (id, _))| *id == lease.key_id);
        let key = named.map_or("?", |(name, (_, known))| {
            assert_eq!(known, value, "the value of the key that is lent");
            name
        });
        let text = format!(
            "granted key={key} token={} ttl={} life={}",
            lease.token - FIRST_TOKEN + 1,
            length(lease.expires_in_ms),
            self.life(lease.key_expires_at_ms),
        );
        self.leases.insert(name.into(), lease);
        text
    }

    fn keep_alive(&mut self, args: &[&str]) -> IdempotencyRecord {
        match args {
            ["all"] => {
                let kept = self.on(Pool::keep_alive_all)?;
                Ok(format!("kept count={kept}"))
            }
            [one] => {
                let key = self.key(one);
                let KeptAlive { expires_at_ms: until, .. } =
                    self.on(|pool, ledger, step| pool.keep_alive(ledger, step, &key))?;
                Ok(format!("kept life={}", self.life(until)))
            }
            many => {
                let ids: Vec<KeyId> = many.iter().map(|name| self.keys[*name].0).collect();
                let KeptAliveMany { kept, missing } =
                    self.on(|pool, ledger, step| Ok(pool.keep_alive_many(ledger, step, &ids)))?;
                let missing: Vec<&str> = missing.iter().map(|id| self.name_of(*id)).collect();
                Ok(format!("kept count={kept} missing={}", missing.join(",")))
            }
        }
    }

    fn counts(&self) -> IdempotencyRecord {
        let pool = self.pools.get(&self.pool).ok_or(Refusal::UnknownPool)?;
        let counts = pool.counts();
        let until = |at: Option<u64>, now: u64| match at {
            None => "never".into(),
            Some(at) => at.checked_sub(now).map_or("past".into(), |left| length(left / 1_000)),
        };
        Ok(format!(
            "counts available={} leased={} resting={} quarantined={} total={} server={} \
             waiting={} return={} purge={}",
            counts.available,
            counts.leased,
            counts.resting,
            counts.quarantined,
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
            _ => panic!("tick [lease|serving] LENGTH"),
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

    fn on<T>(
        &mut self,
        play: impl FnOnce(&mut Pool, &mut SharedState, &mut StepContext<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let name = self.pool.clone();
        let (pools, mut step) = self.parts();
        pools.with_pool(&name, &mut step, play)
    }

    fn name(&mut self, names: &[&str], made: &[NewKey]) {
        for (name, key) in names.iter().zip(made) {
            self.keys.insert((*name).into(), (key.id, key.value.clone()));
        }
    }

    /// Whether keys made under an Idempotency-Key are those that have these names already.
    fn told_before(&self, names: &[&str], all: &[&str], made: &[NewKey]) -> Option<String> {
        once_of(all)?;
        let known: Option<Vec<_>> = names.iter().map(|name| self.keys.get(*name)).collect();
        let told = made.iter().map(|key| (key.id, key.value.clone()));
        let same = known?.into_iter().cloned().eq(told);
        let life = self.life(made[0].expires_at_ms);
        Some(format!("{} life={life}", if same { "same" } else { "others" }))
    }

    fn name_of(&self, id: KeyId) -> &str {
        self.keys.iter().find(|(_, key)| key.0 == id).map_or("?", |(name, _)| name)
    }

    /// A key by its name, by `value:` and its name, or by the lease that lends it, `of:` L.
    fn key(&self, name: &str) -> KeyRef {
        if let Some(lease) = name.strip_prefix("of:") {
            return KeyRef::Id(self.leases[lease].key_id);
        }
        if let Some(value) = name.strip_prefix("value:") {
            return KeyRef::Value(self.value(value));
        }
        self.keys.get(name).map_or(KeyRef::Id(KeyId(0)), |(id, _)| KeyRef::Id(*id))
    }

    /// The value of a key that was made or brought in, else the word itself.
    fn value(&self, word: &str) -> Secret {
        let known = self.keys.get(word).map(|(_, value)| value.clone());
        known.unwrap_or_else(|| Secret::new(word).expect("a value"))
    }

    /// A lease by its name; `forged:` L has the token of L and another MAC.
    fn lease(&self, name: &str) -> LeaseId {
        if let Some(lease) = name.strip_prefix("forged:") {
            return LeaseId(self.leases[lease].id.0 ^ (1 << 60));
        }
        self.leases.get(name).map_or(LeaseId(0), |lease| lease.id)
    }

    fn life(&self, expires_at_ms: Option<u64>) -> String {
        life_text(self.now, expires_at_ms)
    }
}
