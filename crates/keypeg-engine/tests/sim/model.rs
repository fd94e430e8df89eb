//! The reference model of every reply: pools as lists that are searched linearly, in whole
//! milliseconds, updated call by call beside the engine.
//!
//! It shares no code with the engine. Random results (which key was drawn, which value was
//! generated) it takes from the reply, and checks that they were possible. For a turn whose replies
//! were lost it takes them from a hypothesis: see `lost_turns.rs`.

mod expiry;
mod keys;
mod leases;
mod pools;

use crate::clients::Action;
use crate::idempotency::{IdempotencyKey, StoredAnswers};
use crate::lost_turns::Hypothesis;
use crate::support::SentCall;
use keypeg_core::{ImportOptions, KeyId, LeaseId, Policy, PoolName, Refusal, Secret};
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
    /// The indices of the values that were known when an import was queued or deferred, by slot.
    known_before: BTreeMap<u32, Vec<usize>>,
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
    /// Values of keys that are gone, with the ids that they had.
    pub(crate) retired: BTreeMap<String, Option<KeyId>>,
    /// The lost turns of which a generated key was removed, see [`Key::guessed`].
    pub(crate) removed_guesses: BTreeSet<u64>,
    /// Stored answers of Idempotency-Keys.
    pub(crate) answers: StoredAnswers,
}

impl Pool {
    /// Returns whether a key is available and the pool does not drain.
    pub(crate) fn can_grant(&self) -> bool {
        !self.policy.draining && self.keys.iter().any(|key| key.state == State::Available)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// The model's own id of the key.
    pub(crate) serial: u64,
    /// `None` while no reply contained it.
    pub(crate) id: Option<KeyId>,
    pub(crate) value: Option<String>,
    pub(crate) label: Option<String>,
    /// Whether it is purged unless it is kept alive.
    pub(crate) keepalive: bool,
    /// Lease time of the lost turn that generated it: which of that turn's keys has which id is a
    /// guess, until a reply shows it.
    pub(crate) guessed: Option<u64>,
    pub(crate) purge_at: Option<u64>,
    pub(crate) state: State,
    /// While it is draining, the reason.
    #[expect(clippy::option_option, reason = "no drain, no reason and a reason are three cases")]
    pub(crate) drain: Option<Option<String>>,
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
            self.note_known_values(slot, &sent.call);
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
            Call::Import { values, options, labels, .. } => {
                let values: Vec<_> = values.iter().map(Secret::reveal).collect();
                self.import(now, (slot, name), (&values, *options, labels), observed)?;
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
            Call::ListKeys { state, label, limit, cursor, .. } => {
                let pool = &self.pools[name];
                let query = (*state, label.as_deref(), *limit, cursor.is_some());
                observed.check(slot, |reply| crate::views::page(reply, pool, query, now))?;
            }
            Call::ForceRelease { key, .. }
            | Call::QuarantineKey { key, .. }
            | Call::EndQuarantine { key, .. }
            | Call::DeleteKey { key, .. }
            | Call::KeepAlive { key, .. }
            | Call::Reveal { key, .. }
            | Call::SetLabel { key, .. }
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

    /// Returns the calls that were deferred to the next turn.
    pub(crate) fn deferred_calls(&self) -> impl Iterator<Item = &Call> {
        self.deferred.iter().map(|(_, sent)| &sent.call)
    }

    /// Applies a restart: no call waits, and every key has its full keep-alive TTL again.
    pub(crate) fn restart(&mut self) {
        self.orphaned_waiters.clear();
        self.deferred.clear();
        self.known_before.clear();
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
        | Call::QuarantineKey { pool, .. }
        | Call::EndQuarantine { pool, .. }
        | Call::DeleteKey { pool, .. }
        | Call::KeepAlive { pool, .. }
        | Call::KeepAliveMany { pool, .. }
        | Call::KeepAliveAll { pool }
        | Call::ListKeys { pool, .. }
        | Call::Reveal { pool, .. }
        | Call::SetLabel { pool, .. }
        | Call::GetKey { pool, .. } => Some(pool),
    }
}
