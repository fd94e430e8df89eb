//! The reference model of every reply: pools as lists that are searched linearly, in whole
//! milliseconds, updated call by call beside the engine.
//!
//! It shares no code with the engine. Random results (which key was drawn, which value was
//! generated) it takes from the reply, and checks that they were possible. For a turn whose replies
//! were lost it takes them from a hypothesis: see `lost_turns.rs`.

use crate::clients::Action;
use crate::idempotency::{IdempotencyKey, StoredAnswers};
use crate::lost_turns::{GrantQuery, Hypothesis};
use crate::support::SentCall;
use keypeg_core::{
    ImportOptions, KeyId, KeyRef, LeaseId, Policy, PoolName, ReleaseOptions, Secret,
};
use keypeg_store::{Call, Idempotency, Reply, RequestError};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The broken promise as an error, or nothing.
pub(crate) type Checked<T = ()> = Result<T, String>;

/// Fails with a message unless a condition holds.
macro_rules! ensure {
    ($holds:expr, $($words:tt)+) => {
        if !$holds {
            return Err(format!($($words)+));
        }
    };
}
pub(crate) use ensure;

/// The instant of a turn, in milliseconds on each clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Instant {
    pub(crate) lease: u64,
    pub(crate) serving: u64,
    pub(crate) wall: u64,
}

impl Instant {
    /// Returns the instant `ms` later.
    pub(crate) fn later(self, ms: u64) -> Self {
        Self { lease: self.lease + ms, serving: self.serving + ms, wall: self.wall + ms }
    }

    /// Returns the instant at which a turn happens whose clocks are frozen since `lease`.
    pub(crate) fn frozen_at(self, lease: u64) -> Self {
        Self { lease, wall: self.wall - (self.lease - lease), ..self }
    }
}

/// All pools.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) pools: BTreeMap<String, Pool>,
    /// Waiters of a deleted pool, by slot.
    orphaned_waiters: Vec<u32>,
    /// Calls deferred to the next turn.
    deferred: Vec<(u32, SentCall)>,
    /// Ids that must never appear again.
    removed_keys: BTreeSet<KeyId>,
    ended: BTreeMap<u128, Ended>,
    pub(crate) token: u64,
    next_key: u64,
    next_lease: u64,
    /// Lease time that no crash may undo, because a durable change relies on it.
    pub(crate) durable: u64,
    /// Lease time of the last turn, at which the clocks freeze while the disk is full.
    pub(crate) turned: u64,
    pub(crate) rules: Rules,
}

/// What one simulation can meet and others cannot.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rules {
    /// Whether the disk can be full.
    pub(crate) disk_can_fill: bool,
    /// Whether more can be due than one turn expires.
    pub(crate) expiry_can_lag: bool,
    /// Most waiters at once.
    pub(crate) waiters_max: usize,
    /// Whether so few long calls are queued that some are refused.
    pub(crate) long_calls_are_few: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pool {
    pub(crate) policy: Policy,
    pub(crate) keys: Vec<Key>,
    pub(crate) wait_queue: VecDeque<Waiter>,
    /// Values of keys that are gone.
    pub(crate) retired: BTreeSet<String>,
    /// The lost turns of which a generated key was removed, see [`Key::guessed`].
    pub(crate) removed_guesses: BTreeSet<u64>,
    /// Stored answers of Idempotency-Keys.
    pub(crate) answers: StoredAnswers,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// The model's own id of the key.
    pub(crate) serial: u64,
    /// `None` while no reply contained it.
    pub(crate) id: Option<KeyId>,
    pub(crate) value: Option<String>,
    /// Whether it is purged unless it is kept alive.
    pub(crate) keepalive: bool,
    /// Lease time of the lost turn that generated it: which of that turn's keys has which id is a
    /// guess, until a reply shows it.
    pub(crate) guessed: Option<u64>,
    pub(crate) purge_at: Option<u64>,
    pub(crate) state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Available,
    Leased(Lease),
    Resting { until: u64, reason: Option<String> },
    Quarantined { reason: Option<String> },
}

impl State {
    fn lease(&self) -> Option<&Lease> {
        if let Self::Leased(lease) = self { Some(lease) } else { None }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// `None` while no reply contained it.
    pub(crate) id: Option<LeaseId>,
    pub(crate) token: Option<u64>,
    pub(crate) granted: u64,
    pub(crate) until: u64,
    pub(crate) until_max: u64,
    pub(crate) rest: u64,
    pub(crate) holder: Option<String>,
    /// The model's own id of the lease.
    pub(crate) serial: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiter {
    pub(crate) slot: u32,
    since: u64,
    pub(crate) end: u64,
    ttl: Option<u64>,
    holder: Option<String>,
    pub(crate) idempotency: Option<IdempotencyKey>,
}

/// How a lease ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) serial: u64,
    pub(crate) by_call: bool,
}

/// Where the results of a turn come from.
pub(crate) enum Observation<'a, 'f> {
    /// From its replies, by slot.
    Replies(&'a mut BTreeMap<u32, &'f Reply>),
    /// From a hypothesis: the replies were lost.
    Lost(&'a mut Hypothesis<'f>),
}

impl Observation<'_, '_> {
    /// Checks the reply of a call, which must exist, if replies were received.
    pub(crate) fn check(&mut self, slot: u32, check: impl FnOnce(&Reply) -> Checked) -> Checked {
        let Observation::Replies(replies) = self else { return Ok(()) };
        let reply = replies.remove(&slot).ok_or_else(|| format!("#{slot} got no reply"))?;
        check(reply).map_err(|why| format!("#{slot}: {why}; the reply was {reply:?}"))
    }

    pub(crate) fn refusal(&mut self, slot: u32, refusal: &Refusal) -> Checked {
        self.check(slot, |reply| match reply {
            Reply::Refused(RequestError::Refused(actual)) if actual == refusal => Ok(()),
            _ => Err(format!("expected the refusal {refusal:?}")),
        })
    }

    pub(crate) fn done(&mut self, slot: u32) -> Checked {
        self.check(slot, |reply| match reply {
            Reply::Done => Ok(()),
            _ => Err("expected `Done`".into()),
        })
    }

    /// Checks the answer to a call that ended this lease.
    pub(crate) fn released(&mut self, slot: u32, lease: Option<&Lease>) -> Checked {
        self.check(slot, |reply| match reply {
            Reply::Released { holder } => is_holder(holder.as_deref(), lease),
            _ => Err("expected `Released`".into()),
        })
    }
}

fn is_holder(actual: Option<&str>, lease: Option<&Lease>) -> Checked {
    let holder = lease.and_then(|lease| lease.holder.as_deref());
    ensure!(actual == holder, "the lease of {holder:?} ended, not of {actual:?}");
    Ok(())
}

use keypeg_core::Refusal;

impl Model {
    /// Applies a turn: first everything that expires, then the calls in their order.
    pub(crate) fn turn(
        &mut self,
        now: Instant,
        actions: &[(u32, Action)],
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        self.turned = now.lease;
        self.apply_expiry(now, observed)?;
        let mut deferred = std::mem::take(&mut self.deferred);
        // Imports whose values were looked up come first.
        deferred.sort_by_key(|(_, call)| !matches!(call.call, Call::Import { .. }));
        for (slot, call) in &deferred {
            self.take_call(now, *slot, call, observed)?;
        }
        for (slot, action) in actions {
            match action {
                Action::Call(call) => self.take_call(now, *slot, call, observed)?,
                Action::Disconnect => self.cancel_wait(*slot, observed)?,
            }
        }
        if let Observation::Replies(replies) = observed {
            ensure!(replies.is_empty(), "replies without a call: {replies:?}");
        }
        Ok(())
    }

    fn take_call(
        &mut self,
        now: Instant,
        slot: u32,
        sent: &SentCall,
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        if self.is_deferred(slot, &sent.call, observed) {
            self.deferred.push((slot, sent.clone()));
        } else if !self.was_refused_for_load(slot, &sent.call, observed)? {
            self.apply_call(now, slot, sent, observed)?;
        }
        Ok(())
    }

    /// Returns whether a call was deferred: more was due than one turn expires, or the database
    /// must look up the imported values first.
    fn is_deferred(&self, slot: u32, call: &Call, observed: &mut Observation<'_, '_>) -> bool {
        let import = matches!(
            call,
            Call::Import { options: ImportOptions { allow_retired: false, .. }, .. }
        );
        match observed {
            Observation::Lost(hypothesis) => import && hypothesis.choose(2) == 1,
            Observation::Replies(replies) => {
                let may_defer =
                    import || self.rules.expiry_can_lag && matches!(call, Call::Acquire { .. });
                may_defer && !replies.contains_key(&slot)
            }
        }
    }

    /// Returns whether a call was refused because of disk space or load, which must be possible.
    fn was_refused_for_load(
        &mut self,
        slot: u32,
        call: &Call,
        observed: &mut Observation<'_, '_>,
    ) -> Checked<bool> {
        let can_fill = self.rules.disk_can_fill;
        match observed {
            Observation::Lost(hypothesis) => Ok(hypothesis.was_refused(call)),
            Observation::Replies(replies) => match replies.get(&slot) {
                Some(Reply::Refused(RequestError::StorageFull)) => {
                    ensure!(can_fill, "#{slot}: the disk is not full");
                    replies.remove(&slot);
                    Ok(true)
                }
                Some(Reply::Refused(RequestError::Refused(Refusal::Settling))) => {
                    ensure!(
                        self.rules.expiry_can_lag,
                        "#{slot}: one turn can expire all that is due"
                    );
                    replies.remove(&slot);
                    Ok(true)
                }
                Some(Reply::Refused(RequestError::Overloaded)) => {
                    let creates = matches!(call, Call::Generate { .. } | Call::Import { .. });
                    ensure!(
                        creates || self.rules.long_calls_are_few && call.is_long(),
                        "#{slot}: only new keys are refused while the checkpointer lags"
                    );
                    replies.remove(&slot);
                    Ok(true)
                }
                _ => Ok(false),
            },
        }
    }

    /// Expires everything that is due.
    pub(crate) fn apply_expiry(
        &mut self,
        now: Instant,
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        match observed {
            Observation::Replies(replies) => self.cancel_waits_on_full_disk(replies)?,
            Observation::Lost(hypothesis) if hypothesis.refuses_grants() => {
                self.pools.values_mut().for_each(|pool| pool.wait_queue.clear());
            }
            Observation::Lost(_) => {}
        }
        for slot in std::mem::take(&mut self.orphaned_waiters) {
            observed.refusal(slot, &Refusal::UnknownPool)?;
        }
        let names: Vec<_> = self.pools.keys().cloned().collect();
        for name in names {
            self.expire_pool(now, &name, observed)?;
        }
        Ok(())
    }

    /// Removes the waiters that the engine cancelled because the disk is full: all or none.
    fn cancel_waits_on_full_disk(&mut self, replies: &mut BTreeMap<u32, &Reply>) -> Checked {
        let slots = self.pools.values().flat_map(|pool| &pool.wait_queue).map(|waiter| waiter.slot);
        let waiting: Vec<u32> = slots.chain(self.orphaned_waiters.iter().copied()).collect();
        let is_full = |slot: &&u32| {
            matches!(replies.get(slot), Some(Reply::Refused(RequestError::StorageFull)))
        };
        let cancelled = waiting.iter().filter(is_full).count();
        if cancelled == 0 {
            return Ok(());
        }
        ensure!(
            self.rules.disk_can_fill,
            "the disk is not full, and {cancelled} waits are cancelled"
        );
        ensure!(
            cancelled == waiting.len(),
            "only {cancelled} of {} waits are cancelled",
            waiting.len()
        );
        for slot in waiting {
            replies.remove(&slot);
        }
        self.orphaned_waiters.clear();
        self.pools.values_mut().for_each(|pool| pool.wait_queue.clear());
        Ok(())
    }

    fn expire_pool(
        &mut self,
        now: Instant,
        name: &str,
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let pool = self.pools.get_mut(name).expect("just listed");
        let mut changed = false;
        for key in &mut pool.keys {
            if let State::Leased(lease) = &key.state
                && lease.until <= now.lease
            {
                if let Some(id) = lease.id {
                    let ended = Ended { serial: key.serial, by_call: false };
                    self.ended.insert(id.0, ended);
                }
                key.state = match lease.rest {
                    0 => State::Available,
                    rest => State::Resting { until: lease.until + rest, reason: None },
                };
                changed = true;
            }
            if let State::Resting { until, .. } = key.state
                && until <= now.lease
            {
                key.state = State::Available;
                changed = true;
            }
        }
        let is_due = |key: &Key| key.purge_at.is_some_and(|purge_at| purge_at <= now.serving);
        for key in pool.keys.extract_if(.., |key| is_due(key)) {
            pool.retired.extend(key.value);
            pool.removed_guesses.extend(key.guessed);
            self.removed_keys.extend(key.id);
            changed = true;
        }
        if changed {
            self.durable = now.lease;
        }
        self.serve_wait_queue(now, name, observed)?;
        self.time_out_waits(now, name, observed)
    }

    fn time_out_waits(
        &mut self,
        now: Instant,
        name: &str,
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let pool = self.pools.get_mut(name).expect("listed");
        let timed_out: Vec<_> =
            pool.wait_queue.iter().filter(|waiter| waiter.end <= now.lease).cloned().collect();
        pool.wait_queue.retain(|waiter| waiter.end > now.lease);
        for waiter in timed_out {
            self.no_key(now, waiter.slot, name, observed)?;
        }
        Ok(())
    }

    /// Grants available keys to waiters: the first waiter must get one.
    fn serve_wait_queue(
        &mut self,
        now: Instant,
        name: &str,
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        loop {
            let Some(pool) = self.pools.get_mut(name) else { return Ok(()) };
            if !pool.keys.iter().any(|key| key.state == State::Available) {
                return Ok(());
            }
            let Some(waiter) = pool.wait_queue.pop_front() else { return Ok(()) };
            let ttl_max = pool.policy.lease_ttl_ms;
            let ttl = waiter.ttl.map_or(ttl_max, |ttl| ttl.min(ttl_max));
            let terms = GrantTerms {
                ttl,
                holder: waiter.holder,
                since: waiter.since,
                idempotency: waiter.idempotency,
            };
            self.grant(now, (waiter.slot, name), terms, observed)?;
        }
    }

    fn grant(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        GrantTerms { ttl, holder, since, idempotency }: GrantTerms,
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        self.next_lease += 1;
        let serial = self.next_lease;
        let pool = self.pools.get_mut(name).expect("a pool with a key");
        let hold = pool.policy.max_hold_ms.unwrap_or(pool.policy.lease_ttl_ms);
        let mut lease = Lease {
            id: None,
            token: None,
            granted: now.lease,
            until: now.lease + ttl,
            until_max: now.lease + hold,
            rest: pool.policy.rest_ms,
            holder: holder.clone(),
            serial,
        };
        self.durable = now.lease;
        match observed {
            Observation::Lost(hypothesis) => {
                let query = GrantQuery {
                    holder: holder.as_deref(),
                    rests: lease.rest > 0,
                    has_idempotency_key: idempotency.is_some(),
                };
                let Some(drawn) = hypothesis.granted(&query, &mut pool.keys)? else {
                    return Ok(());
                };
                let index = drawn.index;
                if let Some((id, token)) = drawn.lease {
                    (lease.id, lease.token) = (Some(id), Some(token));
                    self.token = self.token.max(token);
                }
                if let Some(idempotency) = idempotency {
                    pool.answers.store_lease(idempotency, &pool.keys[index], &lease, now);
                }
                pool.keys[index].state = State::Leased(lease);
                Ok(())
            }
            Observation::Replies(_) => {
                let (greatest_token, ended) = (&mut self.token, &self.ended);
                observed.check(slot, |reply| {
                    let Reply::Granted { pool: of, lease: view, value, waited_ms, redelivered } =
                        reply
                    else {
                        return Err("a key is available, and it is the first in the queue".into());
                    };
                    ensure!(
                        of.as_str() == name && !redelivered,
                        "a new lease on a key of its pool"
                    );
                    ensure!(*waited_ms == now.lease - since, "waited since {since}");
                    ensure!(!ended.contains_key(&view.id.0), "a lease id was reused");
                    *greatest_token = view.token.max(*greatest_token);
                    let key = pool.keys.iter_mut().find(|key| key.id == Some(view.key_id));
                    let key = key.ok_or("a key that does not exist")?;
                    ensure!(
                        key.state == State::Available,
                        "its key is not available: {:?}",
                        key.state
                    );
                    let value = value.reveal();
                    let known = key.value.get_or_insert_with(|| value.to_owned());
                    ensure!(known == value, "the value of another key");
                    (lease.id, lease.token) = (Some(view.id), Some(view.token));
                    crate::views::lease(view, &lease, key, now)?;
                    if let Some(idempotency) = idempotency {
                        pool.answers.store_lease(idempotency, key, &lease, now);
                    }
                    key.state = State::Leased(lease);
                    Ok(())
                })
            }
        }
    }

    fn no_key(
        &mut self,
        now: Instant,
        slot: u32,
        name: &str,
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let pool = &self.pools[name];
        observed.check(slot, |reply| crate::views::no_key(reply, pool, now))
    }

    fn apply_call(
        &mut self,
        now: Instant,
        slot: u32,
        SentCall { call, idempotency }: &SentCall,
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let Some(name) = pool_of(call) else {
            return match call {
                Call::ListPools { from, limit, filter } => {
                    let (pools, expiry_can_lag) = (&self.pools, self.rules.expiry_can_lag);
                    let listed = (from.as_ref(), *limit, filter.as_deref());
                    observed.check(slot, |reply| {
                        crate::views::pools(reply, pools, listed, (now, expiry_can_lag))
                    })
                }
                _ => unreachable!("all other calls name a pool"),
            };
        };
        let name = name.as_str();
        if let Call::PutPool { patch, .. } = call {
            return self.put_pool(now, slot, (name, patch), observed);
        }
        if !self.pools.contains_key(name) {
            return observed.refusal(slot, &Refusal::UnknownPool);
        }
        if let Some(Idempotency { key, body, .. }) = idempotency {
            self.apply_idempotent(now, (slot, name), (key, *body, call), observed)?;
            return self.serve_wait_queue(now, name, observed);
        }
        match call {
            Call::DeletePool { .. } => self.delete_pool(now, slot, name, observed)?,
            Call::GetPool { .. } => {
                let (pool, expiry_can_lag) = (&self.pools[name], self.rules.expiry_can_lag);
                observed.check(slot, |reply| {
                    crate::views::pool_reply(reply, (name, pool), now, (false, expiry_can_lag))
                })?;
            }
            Call::Generate { count, .. } => self.generate(now, (slot, name), *count, observed)?,
            Call::Import { values, options, .. } => {
                let values: Vec<_> = values.iter().map(Secret::reveal).collect();
                self.import(now, (slot, name), (&values, *options), observed)?;
            }
            Call::Acquire { ttl_ms, holder, wait_ms, .. } => {
                let terms = (*ttl_ms, holder.as_deref(), *wait_ms);
                self.acquire(now, (slot, name), terms, None, observed)?;
            }
            Call::Release { lease, options, .. } => {
                self.release(now, (slot, name), (*lease, options), observed)?;
            }
            Call::RevokeUndelivered { lease, .. } => {
                self.revoke_undelivered(now, (slot, name), *lease, observed)?;
            }
            Call::Renew { lease, ttl_ms, .. } => {
                self.renew(now, (slot, name), (*lease, *ttl_ms), observed)?;
            }
            Call::KeepAliveMany { keys, .. } => {
                self.keep_alive_many(now, (slot, name), keys, observed)?;
            }
            Call::KeepAliveAll { .. } => self.keep_alive_all(now, (slot, name), observed)?,
            Call::ListKeys { state, limit, cursor, .. } => {
                let pool = &self.pools[name];
                let query = (*state, *limit, cursor.is_some());
                observed.check(slot, |reply| crate::views::page(reply, pool, query, now))?;
            }
            Call::ForceRelease { key, .. }
            | Call::DeleteKey { key, .. }
            | Call::KeepAlive { key, .. }
            | Call::Reveal { key, .. }
            | Call::GetKey { key, .. } => {
                self.apply_key_call(now, (slot, name), (call, key), observed)?;
            }
            _ => unreachable!("handled above"),
        }
        self.serve_wait_queue(now, name, observed)
    }

    fn cancel_wait(&mut self, slot: u32, observed: &mut Observation<'_, '_>) -> Checked {
        for pool in self.pools.values_mut() {
            let before = pool.wait_queue.len();
            pool.wait_queue.retain(|waiter| waiter.slot != slot);
            if pool.wait_queue.len() < before {
                return observed.done(slot);
            }
        }
        Ok(())
    }

    fn put_pool(
        &mut self,
        now: Instant,
        slot: u32,
        (name, patch): (&str, &keypeg_core::PolicyPatch),
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let created = !self.pools.contains_key(name);
        let base = self.pools.get(name).map_or_else(Policy::default, |pool| pool.policy.clone());
        let policy = Policy {
            lease_ttl_ms: patch.lease_ttl_ms.unwrap_or(base.lease_ttl_ms),
            max_hold_ms: patch.max_hold_ms.unwrap_or(base.max_hold_ms),
            keepalive_ttl_ms: patch.keepalive_ttl_ms.unwrap_or(base.keepalive_ttl_ms),
            rest_ms: patch.rest_ms.unwrap_or(base.rest_ms),
            key_length: patch.key_length.unwrap_or(base.key_length),
            key_prefix: patch.key_prefix.clone().unwrap_or(base.key_prefix),
            max_keys: patch.max_keys.unwrap_or(base.max_keys),
        };
        if policy.max_hold_ms.is_some_and(|hold| hold < policy.lease_ttl_ms) {
            return observed.check(slot, |reply| match reply {
                Reply::Refused(RequestError::Refused(Refusal::Invalid(_))) => Ok(()),
                _ => Err("max_hold is shorter than lease_ttl".into()),
            });
        }
        self.durable = now.lease;
        let empty = Pool {
            policy: policy.clone(),
            keys: Vec::new(),
            wait_queue: VecDeque::new(),
            retired: BTreeSet::new(),
            removed_guesses: BTreeSet::new(),
            answers: StoredAnswers::default(),
        };
        let pool = self.pools.entry(name.to_owned()).or_insert(empty);
        pool.policy = policy;
        let expiry_can_lag = self.rules.expiry_can_lag;
        observed.check(slot, |reply| {
            crate::views::pool_reply(reply, (name, pool), now, (created, expiry_can_lag))
        })
    }

    fn delete_pool(
        &mut self,
        now: Instant,
        slot: u32,
        name: &str,
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        if name == PoolName::DEFAULT {
            return observed.refusal(slot, &Refusal::DefaultPool);
        }
        let pool = self.pools.remove(name).expect("an existing pool");
        self.durable = now.lease;
        self.orphaned_waiters.extend(pool.wait_queue.iter().map(|waiter| waiter.slot));
        self.removed_keys.extend(pool.keys.iter().filter_map(|key| key.id));
        observed.done(slot)
    }

    fn has_capacity(&self, name: &str, count: usize) -> bool {
        let pool = &self.pools[name];
        pool.policy.max_keys.is_none_or(|max| (pool.keys.len() + count) as u64 <= max)
    }

    fn add_key(
        &mut self,
        now: Instant,
        name: &str,
        (id, value, keepalive): (Option<KeyId>, Option<String>, bool),
    ) {
        self.durable = now.lease;
        self.next_key += 1;
        let pool = self.pools.get_mut(name).expect("an existing pool");
        let serial = self.next_key;
        let guessed = (id.is_none() && value.is_none()).then_some(now.lease);
        let state = State::Available;
        let mut key = Key { serial, id, value, keepalive, guessed, purge_at: None, state };
        key.keep_alive(now, &pool.policy);
        pool.keys.push(key);
        if let Some(id) = id {
            // The value of a removed key came back.
            self.removed_keys.remove(&id);
        }
    }

    pub(crate) fn exists(&self, id: KeyId) -> bool {
        self.pools.values().flat_map(|pool| &pool.keys).any(|key| key.id == Some(id))
    }

    fn is_new(&self, id: KeyId) -> bool {
        !self.removed_keys.contains(&id) && !self.exists(id)
    }

    pub(crate) fn was_removed(&self, id: KeyId) -> bool {
        self.removed_keys.contains(&id)
    }

    /// Creates the model with the default pool.
    pub(crate) fn new(policy: Policy, rules: Rules) -> Self {
        let mut model = Self { rules, ..Self::default() };
        let (keys, wait_queue, retired) = (Vec::new(), VecDeque::new(), BTreeSet::new());
        let (removed_guesses, answers) = (BTreeSet::new(), StoredAnswers::default());
        let pool = Pool { policy, keys, wait_queue, retired, removed_guesses, answers };
        model.pools.insert(PoolName::DEFAULT.into(), pool);
        model
    }

    pub(crate) fn generate(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        count: u32,
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let count = count as usize;
        if !self.has_capacity(name, count) {
            return self.pool_full(slot, name, observed);
        }
        let mut created: Vec<(Option<KeyId>, Option<String>)> = vec![(None, None); count];
        let this = &*self;
        observed.check(slot, |reply| {
            let Reply::Keys(keys) = reply else { return Err("the pool is not full".into()) };
            ensure!(keys.len() == count, "expected {count} keys");
            for (key, created) in keys.iter().zip(&mut created) {
                let value = key.value.reveal();
                let policy = &this.pools[name].policy;
                let symbols = value.strip_prefix(&*policy.key_prefix);
                let fits = symbols.is_some_and(|rest| rest.len() == usize::from(policy.key_length));
                ensure!(fits, "the value does not match the policy");
                ensure!(this.is_new(key.id), "key id {} was reused", key.id);
                crate::views::new_key(key, (policy, true), now)?;
                *created = (Some(key.id), Some(value.to_owned()));
            }
            Ok(())
        })?;
        for (id, value) in created {
            self.add_key(now, name, (id, value, true));
        }
        Ok(())
    }

    fn pool_full(&self, slot: u32, name: &str, observed: &mut Observation<'_, '_>) -> Checked {
        let max = self.pools[name].policy.max_keys.unwrap_or_default();
        observed.refusal(slot, &Refusal::PoolFull { max, of_server: false })
    }

    pub(crate) fn import(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        (values, options): (&[&str], ImportOptions),
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let pool = &self.pools[name];
        let known = |index: usize, value: &str| {
            pool.retired.contains(value) && !options.allow_retired
                || pool.keys.iter().any(|key| key.value.as_deref() == Some(value))
                || values[..index].contains(&value)
        };
        if let Some(index) =
            values.iter().enumerate().position(|(index, value)| known(index, value))
        {
            return observed.refusal(slot, &Refusal::KeyExists { index });
        }
        if !self.has_capacity(name, values.len()) {
            return self.pool_full(slot, name, observed);
        }
        let mut ids = vec![None; values.len()];
        if let Observation::Lost(hypothesis) = observed {
            ids = values.iter().map(|value| hypothesis.imported(name, value)).collect();
        }
        let this = &*self;
        observed.check(slot, |reply| {
            let Reply::Keys(keys) = reply else { return Err("all values are new".into()) };
            ensure!(keys.len() == values.len(), "all values are imported");
            for ((key, value), id) in keys.iter().zip(values).zip(&mut ids) {
                ensure!(key.value.reveal() == *value, "expected the value {value}");
                let comes_back = this.pools[name].retired.contains(*value);
                let is_new = this.is_new(key.id) || comes_back && !this.exists(key.id);
                ensure!(is_new, "key id {} was reused", key.id);
                let keepalive = options.keepalive;
                crate::views::new_key(key, (&this.pools[name].policy, keepalive), now)?;
                *id = Some(key.id);
            }
            Ok(())
        })?;
        for (id, value) in ids.into_iter().zip(values) {
            self.add_key(now, name, (id, Some((*value).to_owned()), options.keepalive));
        }
        Ok(())
    }

    pub(crate) fn acquire(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        (ttl, holder, wait): (Option<u64>, Option<&str>, u64),
        idempotency: Option<IdempotencyKey>,
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let pool = &self.pools[name];
        let length = ttl.unwrap_or(pool.policy.lease_ttl_ms);
        if length == 0 || length > pool.policy.lease_ttl_ms {
            return observed.check(slot, |reply| match reply {
                Reply::Refused(RequestError::Refused(Refusal::Invalid(_))) => Ok(()),
                _ => Err("longer than the policy allows".into()),
            });
        }
        let free = pool.keys.iter().any(|key| key.state == State::Available);
        if free && pool.wait_queue.is_empty() {
            let holder = holder.map(Into::into);
            let terms = GrantTerms { ttl: length, holder, since: now.lease, idempotency };
            return self.grant(now, (slot, name), terms, observed);
        }
        if wait == 0 {
            return self.no_key(now, slot, name, observed);
        }
        let waiters: usize = self.pools.values().map(|pool| pool.wait_queue.len()).sum();
        let max = self.rules.waiters_max;
        if waiters + self.orphaned_waiters.len() >= max {
            return observed.refusal(slot, &Refusal::WaitQueueFull { max });
        }
        let pool = self.pools.get_mut(name).expect("an existing pool");
        let holder = holder.map(Into::into);
        let (since, end) = (now.lease, now.lease + wait);
        pool.wait_queue.push_back(Waiter { slot, since, end, ttl, holder, idempotency });
        Ok(())
    }

    /// Returns the index of a running lease's key.
    pub(crate) fn running(&self, name: &str, lease: LeaseId) -> Option<usize> {
        self.pools[name].keys.iter().position(
            |key| matches!(&key.state, State::Leased(running) if running.id == Some(lease)),
        )
    }

    pub(crate) fn lease_ended(
        &self,
        slot: u32,
        (name, lease): (&str, LeaseId),
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let ended = self.ended.get(&lease.0).copied();
        let pool = &self.pools[name];
        observed.check(slot, |reply| crate::views::lease_ended(reply, ended, pool))
    }

    fn release(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        (lease, options): (LeaseId, &ReleaseOptions),
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let Some(index) = self.running(name, lease) else {
            return self.lease_ended(slot, (name, lease), observed);
        };
        let reason = options.reason.as_deref().filter(|reason| !reason.is_empty());
        let reason = reason.map(ToOwned::to_owned);
        let before = self.pools[name].keys[index].state.clone();
        if options.quarantine {
            self.end_hold(now, (name, index), State::Quarantined { reason });
        } else {
            self.release_lease(now, (name, index), options.rest_ms, reason);
        }
        observed.released(slot, before.lease())
    }

    /// Ends a lease by a call: the key rests for `rest_ms`, or as long as its grant said.
    pub(crate) fn release_lease(
        &mut self,
        now: Instant,
        (name, index): (&str, usize),
        rest: Option<u64>,
        reason: Option<String>,
    ) {
        let State::Leased(lease) = &self.pools[name].keys[index].state else {
            unreachable!("a running lease")
        };
        let state = match rest.unwrap_or(lease.rest) {
            0 => State::Available,
            rest => State::Resting { until: now.lease + rest, reason },
        };
        self.end_hold(now, (name, index), state);
    }

    /// Ends a lease, a rest or a quarantine by a call.
    fn end_hold(&mut self, now: Instant, (name, index): (&str, usize), state: State) {
        self.durable = now.lease;
        let key = &mut self.pools.get_mut(name).expect("an existing pool").keys[index];
        if let State::Leased(Lease { id: Some(id), .. }) = key.state {
            self.ended.insert(id.0, Ended { serial: key.serial, by_call: true });
        }
        key.state = state;
    }

    fn renew(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        (lease, ttl): (LeaseId, Option<u64>),
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let Some(index) = self.running(name, lease) else {
            return self.lease_ended(slot, (name, lease), observed);
        };
        let pool = self.pools.get_mut(name).expect("an existing pool");
        let ttl_max = pool.policy.lease_ttl_ms;
        let length = ttl.unwrap_or(ttl_max);
        let key = &mut pool.keys[index];
        let snapshot = key.clone();
        let State::Leased(running) = &mut key.state else { unreachable!("a running lease") };
        if length == 0 || length > ttl_max {
            return observed.check(slot, |reply| match reply {
                Reply::Refused(RequestError::Refused(Refusal::Invalid(_))) => Ok(()),
                _ => Err("longer than the policy allows".into()),
            });
        }
        let until = (now.lease + length).min(running.until_max);
        if now.lease + length <= running.until {
            return observed.check(slot, |reply| match reply {
                Reply::Renewed(view) => crate::views::lease(view, running, &snapshot, now),
                _ => Err("the lease lasts longer already".into()),
            });
        }
        if until <= running.until {
            let expires_at_ms = now.wall + running.until - now.lease;
            return observed.refusal(slot, &Refusal::MaxHoldReached { expires_at_ms });
        }
        running.until = until;
        self.durable = now.lease;
        observed.check(slot, |reply| match reply {
            Reply::Renewed(view) => crate::views::lease(view, running, &snapshot, now),
            _ => Err("the lease is running and can be extended".into()),
        })
    }

    fn keep_alive_many(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        ids: &[KeyId],
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let pool = self.pools.get_mut(name).expect("an existing pool");
        let (mut found, mut not_found) = (BTreeSet::new(), BTreeSet::new());
        for id in ids {
            match pool.keys.iter_mut().find(|key| key.id == Some(*id)) {
                Some(key) => {
                    key.keep_alive(now, &pool.policy);
                    found.insert(*id);
                }
                None => drop(not_found.insert(*id)),
            }
        }
        observed.check(slot, |reply| {
            let Reply::KeptAliveMany { kept, missing } = reply else {
                return Err("expected `KeptAliveMany`".into());
            };
            let reported: BTreeSet<_> = missing.iter().copied().collect();
            ensure!(*kept == found.len() as u64, "{} keys exist", found.len());
            ensure!(
                reported == not_found && reported.len() == missing.len(),
                "missing keys: {not_found:?}"
            );
            Ok(())
        })
    }

    fn keep_alive_all(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let pool = self.pools.get_mut(name).expect("an existing pool");
        for key in &mut pool.keys {
            key.keep_alive(now, &pool.policy);
        }
        let total = pool.keys.len() as u64;
        observed.check(slot, |reply| match reply {
            Reply::KeptAliveMany { kept, missing } if *kept == total && missing.is_empty() => {
                Ok(())
            }
            _ => Err(format!("all {total} keys are kept alive")),
        })
    }

    fn apply_key_call(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        (call, key): (&Call, &KeyRef),
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let named = |known: &Key| match key {
            KeyRef::Id(id) => known.id == Some(*id),
            KeyRef::Value(value) => known.value.as_deref() == Some(value.reveal()),
        };
        let pool = self.pools.get_mut(name).expect("an existing pool");
        let Some(index) = pool.keys.iter().position(named) else {
            return observed.refusal(slot, &Refusal::UnknownKey);
        };
        match call {
            Call::GetKey { .. } => {
                let key = &pool.keys[index];
                observed.check(slot, |reply| match reply {
                    Reply::Key(view) => crate::views::key(view, key, now),
                    _ => Err("the key exists".into()),
                })
            }
            Call::Reveal { .. } => {
                let key = &pool.keys[index];
                observed.check(slot, |reply| match reply {
                    Reply::Revealed { id, value } => {
                        ensure!(Some(*id) == key.id, "another key");
                        let known = key.value.as_deref();
                        ensure!(known.is_none_or(|known| known == value.reveal()), "another value");
                        Ok(())
                    }
                    _ => Err("the key exists".into()),
                })
            }
            Call::KeepAlive { .. } => {
                let key = &mut pool.keys[index];
                key.keep_alive(now, &pool.policy);
                observed.check(slot, |reply| match reply {
                    Reply::KeptAlive { id, expires_at_ms } => {
                        ensure!(Some(*id) == key.id, "another key");
                        crate::views::purge_time(*expires_at_ms, key.purge_at, now)
                    }
                    _ => Err("the key exists".into()),
                })
            }
            Call::DeleteKey { .. } => {
                let key = pool.keys.remove(index);
                pool.removed_guesses.extend(key.guessed);
                pool.retired.extend(key.value);
                self.removed_keys.extend(key.id);
                if let State::Leased(Lease { id: Some(id), .. }) = key.state {
                    self.ended.insert(id.0, Ended { serial: key.serial, by_call: true });
                }
                self.durable = now.lease;
                observed.released(slot, key.state.lease())
            }
            Call::ForceRelease { .. } => {
                let before = pool.keys[index].state.clone();
                let released = before != State::Available;
                match &pool.keys[index].state {
                    State::Available => {}
                    State::Leased(_) => self.release_lease(now, (name, index), None, None),
                    State::Resting { .. } | State::Quarantined { .. } => {
                        self.end_hold(now, (name, index), State::Available);
                    }
                }
                observed.check(slot, |reply| match reply {
                    Reply::KeyReleased { released: actual, holder } if *actual == released => {
                        is_holder(holder.as_deref(), before.lease())
                    }
                    _ => Err(format!("expected released = {released}")),
                })
            }
            _ => unreachable!("all other calls name a key"),
        }
    }

    /// Returns the calls that were deferred to the next turn.
    pub(crate) fn deferred_calls(&self) -> impl Iterator<Item = &Call> {
        self.deferred.iter().map(|(_, sent)| &sent.call)
    }

    /// Applies a restart: no call waits, and every key has its full keep-alive TTL again.
    pub(crate) fn restart(&mut self) {
        self.orphaned_waiters.clear();
        self.deferred.clear();
        for pool in self.pools.values_mut() {
            pool.wait_queue.clear();
            pool.answers.restart();
            for key in &mut pool.keys {
                key.keep_alive(Instant::default(), &pool.policy);
            }
        }
    }

    /// Returns whether no observation can distinguish the two.
    pub(crate) fn is_equivalent(&self, other: &Self) -> bool {
        self.pools == other.pools
            && self.ended == other.ended
            && self.removed_keys == other.removed_keys
            && self.durable == other.durable
    }

    pub(crate) fn waiting(&self) -> usize {
        self.pools.values().map(|pool| pool.wait_queue.len()).sum()
    }
}

impl Key {
    /// Restarts its keep-alive time, unless it has none.
    fn keep_alive(&mut self, now: Instant, policy: &Policy) {
        let ttl = policy.keepalive_ttl_ms.filter(|_| self.keepalive);
        self.purge_at = ttl.map(|ttl| now.serving + ttl);
    }
}

impl Waiter {
    /// Restarts the wait at `now`.
    pub(crate) fn restart_wait(&mut self, now: u64, wait: u64) {
        (self.since, self.end) = (now, now + wait);
    }
}

/// The terms of a grant.
struct GrantTerms {
    ttl: u64,
    holder: Option<String>,
    since: u64,
    idempotency: Option<IdempotencyKey>,
}

/// Returns the pool that a call names.
pub(crate) fn pool_of(call: &Call) -> Option<&PoolName> {
    match call {
        Call::ListPools { .. } | Call::Subscribe { .. } => None,
        Call::PutPool { pool, .. }
        | Call::PutPoolIf { pool, .. }
        | Call::GetPool { pool }
        | Call::DeletePool { pool }
        | Call::Generate { pool, .. }
        | Call::Import { pool, .. }
        | Call::Acquire { pool, .. }
        | Call::Release { pool, .. }
        | Call::RevokeUndelivered { pool, .. }
        | Call::Renew { pool, .. }
        | Call::ForceRelease { pool, .. }
        | Call::DeleteKey { pool, .. }
        | Call::KeepAlive { pool, .. }
        | Call::KeepAliveMany { pool, .. }
        | Call::KeepAliveAll { pool }
        | Call::ListKeys { pool, .. }
        | Call::Reveal { pool, .. }
        | Call::GetKey { pool, .. } => Some(pool),
    }
}
