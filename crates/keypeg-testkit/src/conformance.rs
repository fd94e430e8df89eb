//! Runs scripts on a store, as requests through a lane: the conformance suite of every store.
//!
//! A store implements [`TestStore`], and mounts `keypeg-testkit/scripts` in a test target, beside
//! a function `check` that calls [`check`] here; `keypeg-engine/tests/conformance.rs` is the model.
//! Knows no store, only the contract of keypeg-store. A script that restarts ends at that line for a
//! store that keeps nothing.

mod answers;

use crate::script::words::{
    borrower_limit_of, idempotency_key_of, import_options_of, label_of, labels_of, micros, millis,
    patch_of, quarantine_options_of, release_options_of, ttl_of, without_idempotency_key,
};
use crate::script::{self, Line};
use keypeg_core::{
    KeyId, KeyPage, KeyRef, KeyState, LeaseId, LeaseView, PoolFilter, PoolListOptions, PoolName,
    PoolPattern, Refusal, Secret,
};
use keypeg_store::{
    Answer as _, Call, Caller, Idempotency, Lane, PendingReply, PoolPage, Principal, Reply,
    Request, RequestError,
};
use std::collections::{BTreeMap, HashMap};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// A store whose time the suite moves. Each is opened empty: the pool `default` with the default
/// policy, and no key.
pub trait TestStore {
    /// Returns the server's end of a lane.
    fn lane(&self) -> &Lane;
    /// Returns the wall time of the store.
    fn now_ms(&self) -> u64;
    /// Moves all clocks of the running store.
    fn advance_us(&mut self, us: u64);
    /// Answers all that is queued, as far as it can be answered, after all that is due has expired.
    fn run(&mut self);
    /// Passes on [`Store::cancel_waits`](keypeg_store::Store::cancel_waits).
    fn cancel_waits(&mut self);
    /// Ends the store and opens it again on its data, with a new lane, after this time.
    fn restart(&mut self, downtime_us: u64) -> Result<(), KeepsNothing>;
    /// Returns whether the store knows after a restart why a lease ended before it: one that begins
    /// at a snapshot does not.
    fn keeps_causes(&self) -> bool {
        true
    }
}

/// The store keeps nothing over a restart: scripts end before their first restart.
#[derive(Clone, Copy, Debug)]
pub struct KeepsNothing;

/// How often a store may run before a call that does not wait is answered.
const RUNS_MAX: usize = 1_000;
/// Facts about the inside of the pools: a store need not have what they count.
const INNER_FACTS: [&str; 3] = ["left=", "more=", "number="];

/// Runs a script on a store and checks every answer.
///
/// # Panics
/// If an answer differs.
pub fn check(store_name: &str, store: Box<dyn TestStore>, script: &str) {
    let mut suite = Suite::new(store);
    for line in script::lines(script) {
        if line.verb == "restart" {
            let downtime_us = line.args.first().map_or(0, |time| micros(time));
            if suite.restart(downtime_us).is_err() {
                return;
            }
            continue;
        }
        let answer = suite.execute(&line);
        let forgot_cause = !suite.store.keeps_causes()
            && suite.has_restarted
            && answer.as_ref().is_err_and(|refusal| refusal == "lease_ended unknown");
        let is_checked = |fact: &str| {
            let is_inner = INNER_FACTS.iter().any(|inner| fact.starts_with(inner));
            !fact.starts_with("token=") && !is_inner && !forgot_cause
        };
        let fits = line.accepts(&answer, is_checked) && suite.check_tokens(&line, &answer);
        let Line { number, text, .. } = line;
        assert!(fits, "{store_name}: line {number}: {text}\n   answered: {answer:?}\n{script}");
    }
}

struct Suite {
    store: Box<dyn TestStore>,
    /// The pool that calls apply to.
    pool: PoolName,
    keys: HashMap<String, (KeyId, Secret)>,
    leases: HashMap<String, LeaseView>,
    waits: HashMap<String, PendingReply>,
    /// The outcomes of waits, by name.
    outcomes: HashMap<String, Result<String, String>>,
    /// Tokens, by their numbers in the script. Only their order is part of the contract.
    tokens: BTreeMap<u64, u64>,
    has_restarted: bool,
}

type Answer = Result<String, String>;

impl Suite {
    fn new(store: Box<dyn TestStore>) -> Self {
        Self {
            store,
            pool: PoolName::default_pool(),
            keys: HashMap::new(),
            leases: HashMap::new(),
            waits: HashMap::new(),
            outcomes: HashMap::new(),
            tokens: BTreeMap::new(),
            has_restarted: false,
        }
    }

    fn restart(&mut self, downtime_us: u64) -> Result<(), KeepsNothing> {
        self.waits.clear();
        self.has_restarted = true;
        self.turn();
        self.store.restart(downtime_us)
    }

    /// Runs the store, then passes its replies to their calls.
    fn turn(&mut self) {
        // Twice: the lane may revoke a grant that no call receives.
        for _ in 0..2 {
            self.store.run();
            let delivery = pin!(self.store.lane().run_delivery());
            assert!(delivery.poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
    }

    fn submit(&mut self, args: &[&str], call: Call) -> PendingReply {
        let key = idempotency_key_of(args);
        let arg = |name| args.iter().find_map(|arg| arg.strip_prefix(name));
        let name = arg("as=").or(arg("caller="));
        let by = name.map_or(Principal::Anyone, |name| {
            Principal::Token(Arc::new(Caller::new(name, borrower_limit_of(args))))
        });
        let idempotency = key.map(|key| Box::new(Idempotency::new(key.key, key.body)));
        self.store.lane().submit(Request { caller: by.caller_number(), by, idempotency, call })
    }

    /// Sends a call and returns its reply. A store may refuse it for a moment, while it expires much
    /// at once or has not stored what it accepted before; then the call is repeated.
    fn call_as(&mut self, args: &[&str], call: &Call) -> Reply {
        let mut pending = self.submit(args, call.clone());
        for _ in 0..RUNS_MAX {
            self.turn();
            match poll(&mut pending) {
                Poll::Ready(Reply::Refused(
                    RequestError::Refused(Refusal::Settling) | RequestError::Overloaded,
                )) => pending = self.submit(args, call.clone()),
                Poll::Ready(reply) => return reply,
                Poll::Pending => {}
            }
        }
        panic!("no answer after {RUNS_MAX} runs: {call:?}")
    }

    fn call(&mut self, call: &Call) -> Reply {
        self.call_as(&[], call)
    }

    /// Returns the call of a line, if the line is one call.
    fn call_of(&mut self, verb: &str, args: &[&str]) -> Option<Call> {
        let (pool, first) = (self.pool.clone(), args.first().copied().unwrap_or_default());
        let acquire = |pool, wait_ms| Call::Acquire {
            pool,
            ttl_ms: ttl_of(args),
            holder: args.iter().find_map(|arg| arg.strip_prefix("holder=")).map(Into::into),
            wait_ms,
        };
        Some(match verb {
            "generate" => {
                let names = without_idempotency_key(args);
                let count = first.parse().ok();
                let count = count.unwrap_or_else(|| u32::try_from(names.len()).expect("few"));
                Call::Generate { pool, count, labels: labels_of(args) }
            }
            "import" => {
                let (values, options) = import_options_of(&without_idempotency_key(args));
                let values = values.iter().map(|word| self.value(word)).collect();
                Call::Import { pool, values, options, labels: labels_of(args) }
            }
            "acquire" => acquire(pool, 0),
            "wait" => {
                let wait_ms = args.iter().find_map(|arg| arg.strip_prefix("for="));
                acquire(pool, wait_ms.map_or(10_000, millis))
            }
            "release" => {
                let options = release_options_of(&args[1..]);
                Call::Release { pool, lease: self.lease(first), options }
            }
            "renew" => Call::Renew { pool, lease: self.lease(first), ttl_ms: ttl_of(args) },
            "revoke" => Call::RevokeUndelivered { pool, lease: self.lease(first) },
            "force_release" => Call::ForceRelease { pool, key: self.key(first) },
            "delete" => Call::DeleteKey { pool, key: self.key(first) },
            "label" => {
                let (key, label) = (self.key(first), label_of(args).map(Into::into));
                Call::SetLabel { pool, key, label }
            }
            "quarantine" => {
                let (key, options) = (self.key(first), quarantine_options_of(&args[1..]));
                Call::QuarantineKey { pool, key, options }
            }
            "put_back" => Call::EndQuarantine { pool, key: self.key(first) },
            "show" => Call::GetKey { pool, key: self.key(first) },
            "reveal" => Call::Reveal { pool, key: self.key(first) },
            "keepalive" => match args {
                ["all"] => Call::KeepAliveAll { pool },
                [one] => Call::KeepAlive { pool, key: self.key(one) },
                many => {
                    let keys = many.iter().map(|name| self.keys[*name].0).collect();
                    Call::KeepAliveMany { pool, keys }
                }
            },
            "pool" => {
                self.pool = PoolName::parse(first).expect("a name");
                Call::PutPool { pool: self.pool.clone(), patch: Box::new(patch_of(&args[1..])) }
            }
            "pool_if" => {
                self.pool = PoolName::parse(first).expect("a name");
                let exists = args.contains(&"exists=true");
                Call::PutPoolIf {
                    pool: self.pool.clone(),
                    patch: Box::new(patch_of(&args[2..])),
                    exists,
                }
            }
            "policy" => Call::PutPool { pool, patch: Box::new(patch_of(args)) },
            "drop" => Call::DeletePool { pool: PoolName::parse(first).expect("a name") },
            _ => return None,
        })
    }

    fn execute(&mut self, line: &Line<'_>) -> Answer {
        let (verb, args) = (line.verb, &line.args[..]);
        if verb == "wait" {
            return self.wait(args);
        }
        if let Some(call) = self.call_of(verb, args) {
            let reply = self.call_as(args, &call);
            return self.text(verb, args, reply);
        }
        match verb {
            "tick" => self.store.advance_us(match args {
                [time] => micros(time),
                _ => panic!("a store has one time: {}", line.text),
            }),
            "in" => self.pool = PoolName::parse(args[0]).expect("a name"),
            "expire" => {
                self.turn();
                return Ok("expired".into());
            }
            "stop" => {
                self.store.cancel_waits();
                self.turn();
            }
            "cancel" => {
                self.turn();
                self.receive(args[0]);
                let waits = self.waits.remove(args[0]).is_some();
                self.turn();
                return Ok(if waits { "cancelled" } else { "not_waiting" }.into());
            }
            "got" => {
                self.turn();
                self.receive(args[0]);
                return self.outcomes.get(args[0]).cloned().unwrap_or(Ok("nothing".into()));
            }
            "counts" => return self.counts(),
            "list" => return self.list(args),
            "pools" => return self.list_pools(args),
            // The number of leases of a borrower is no part of an answer.
            "leases" => return Ok(line.expected.join(" ")),
            _ => panic!("a store has no such call: {}", line.text),
        }
        Ok("done".into())
    }

    /// `wait W for=10s ttl=5s holder=x as=x max=2`: `got W` returns the outcome.
    fn wait(&mut self, args: &[&str]) -> Answer {
        let call = self.call_of("wait", args).expect("a call");
        let mut pending = self.submit(args, call);
        // Behind it in the lane, so that the store has executed it.
        self.call(&Call::list_pools(PoolListOptions::default()).into_call());
        match poll(&mut pending) {
            Poll::Ready(reply) => self.text("wait", args, reply),
            Poll::Pending => {
                self.outcomes.remove(args[0]);
                self.waits.insert(args[0].into(), pending);
                Ok("waits".into())
            }
        }
    }

    /// Takes the reply of a call that waited, if there is one.
    fn receive(&mut self, name: &str) {
        if let Some(pending) = self.waits.get_mut(name)
            && let Poll::Ready(reply) = poll(pending)
        {
            self.waits.remove(name);
            let outcome = self.text("wait", &[name], reply);
            self.outcomes.insert(name.into(), outcome);
        }
    }

    /// Lists all keys, in pages: `list limit=2 state=leased label=x`. `cursor=NAME` begins with the cursor of
    /// that pool's first page.
    fn list(&mut self, args: &[&str]) -> Answer {
        let arg = |name| args.iter().find_map(|arg| arg.strip_prefix(name));
        let limit = arg("limit=").map_or(100, |limit| limit.parse().expect("a number"));
        let state = arg("state=").map(|state| match state {
            "available" => KeyState::Available,
            "leased" => KeyState::Leased,
            "resting" => KeyState::Resting,
            "quarantined" => KeyState::Quarantined,
            other => panic!("no such state: {other}"),
        });
        let pool = self.pool.clone();
        let page = |pool, cursor| {
            let label = arg("label=").map(Into::into);
            Call::ListKeys { pool, state, label, limit, cursor }
        };
        let mut cursor = match arg("cursor=") {
            None => None,
            Some(other) => {
                let other = PoolName::parse(other).expect("a name");
                let Reply::Page(first) = self.call(&page(other, None)) else { panic!("a page") };
                Some(first.next.expect("more than a page"))
            }
        };
        let (mut names, mut pages) = (Vec::new(), 0);
        loop {
            let listed = KeyPage::of(self.call(&page(pool.clone(), cursor)));
            let KeyPage { keys, next } = listed.map_err(|refusal| self.refusal_text(&refusal))?;
            cursor = next;
            pages += 1;
            assert!(keys.len() <= limit, "{} keys in a page of {limit}", keys.len());
            names.extend(keys.iter().map(|key| self.name_of(key.id).to_owned()));
            if cursor.is_none() {
                break;
            }
        }
        let count = names.len();
        names.sort();
        Ok(format!("listed count={count} keys={} pages={pages}", names.join(",")))
    }

    /// Lists pools, in pages: `pools limit=2 from=b of=a,b-*`.
    fn list_pools(&mut self, args: &[&str]) -> Answer {
        let arg = |name| args.iter().find_map(|arg| arg.strip_prefix(name));
        let limit = arg("limit=").map_or(1_000, |limit| limit.parse().expect("a number"));
        let mut from = arg("from=").map(|name| PoolName::parse(name).expect("a name"));
        let filter = arg("of=").map(|patterns| {
            let patterns = patterns.split(',').map(|text| PoolPattern::parse(text).expect("one"));
            Arc::new(PoolFilter::new(patterns.collect()))
        });
        let (mut names, mut pages) = (Vec::new(), 0);
        loop {
            let options = PoolListOptions { from, limit, filter: filter.clone() };
            let page = PoolPage::of(self.call(&Call::list_pools(options).into_call()));
            let PoolPage { pools, next } = page.map_err(|refusal| self.refusal_text(&refusal))?;
            assert!(pools.len() <= limit, "{} pools in a page of {limit}", pools.len());
            names.extend(pools.into_iter().map(|pool| pool.name.as_str().to_owned()));
            (from, pages) = (next, pages + 1);
            if from.is_none() {
                return Ok(format!("listed pools={} pages={pages}", names.join(",")));
            }
        }
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

    /// Finds a lease by its name; `forged:` L is another lease id with the token of L.
    fn lease(&self, name: &str) -> LeaseId {
        if let Some(lease) = name.strip_prefix("forged:") {
            return LeaseId(self.leases[lease].id.0 ^ (1 << 60));
        }
        self.leases.get(name).map_or(LeaseId(0), |lease| lease.id)
    }
}

fn poll(pending: &mut PendingReply) -> Poll<Reply> {
    Pin::new(pending).poll(&mut Context::from_waker(Waker::noop()))
}
