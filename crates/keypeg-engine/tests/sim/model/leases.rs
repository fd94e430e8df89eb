//! Leases in the model: acquire, renew, release, and what a call gets after the end.
//!
//! The key of a grant is taken from the reply, and must have been available.

use super::expiry::GrantTerms;
use super::{Checked, Ended, Instant, Lease, Model, Observation, State, Waiter};
use crate::idempotency::IdempotencyKey;
use keypeg_core::{LeaseId, Refusal, ReleaseOptions};
use keypeg_store::{Reply, RequestError};

impl Model {
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
        if pool.can_grant() && pool.wait_queue.is_empty() {
            let holder = holder.map(Into::into);
            let terms = GrantTerms { ttl: length, holder, since: now.lease, idempotency };
            return self.grant(now, (slot, name), terms, observed);
        }
        if wait == 0 || pool.policy.draining {
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

    pub(super) fn release(
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
        let key = &self.pools[name].keys[index];
        let State::Leased(lease) = &key.state else { unreachable!("a running lease") };
        let state = match (key.drain.clone(), rest.unwrap_or(lease.rest)) {
            (Some(reason), _) => State::Quarantined { reason },
            (None, 0) => State::Available,
            (None, rest) => State::Resting { until: now.lease + rest, reason },
        };
        self.end_hold(now, (name, index), state);
    }

    /// Ends a lease, a rest or a quarantine by a call.
    pub(super) fn end_hold(&mut self, now: Instant, (name, index): (&str, usize), state: State) {
        self.durable = now.lease;
        let key = &mut self.pools.get_mut(name).expect("an existing pool").keys[index];
        if let State::Leased(Lease { id: Some(id), .. }) = key.state {
            self.ended.insert(id.0, Ended { serial: key.serial, by_call: true });
        }
        (key.state, key.drain) = (state, None);
    }

    pub(super) fn renew(
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
}
