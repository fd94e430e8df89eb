//! What time does in the model: the end of leases, rests, keys and waits, and what waiters get then.
//!
//! The order is the contract's: everything that is due ends before the calls of a turn.

use super::{Checked, Ended, Instant, Key, Lease, Model, Observation, State, ensure};
use crate::idempotency::IdempotencyKey;
use crate::lost_turns::GrantQuery;
use keypeg_core::Refusal;
use keypeg_store::{Reply, RequestError};
use std::collections::BTreeMap;

impl Model {
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
    pub(super) fn cancel_waits_on_full_disk(
        &mut self,
        replies: &mut BTreeMap<u32, &Reply>,
    ) -> Checked {
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

    pub(super) fn expire_pool(
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
                key.state = match (key.drain.take(), lease.rest) {
                    (Some(reason), _) => State::Quarantined { reason },
                    (None, 0) => State::Available,
                    (None, rest) => State::Resting { until: lease.until + rest, reason: None },
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
            pool.retired.extend(key.value.map(|value| (value, key.id)));
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

    pub(super) fn time_out_waits(
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

    /// A pool that drains refuses its waiters at once.
    pub(super) fn refuse_waits_while_draining(
        &mut self,
        now: Instant,
        name: &str,
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let pool = self.pools.get_mut(name).expect("just changed");
        if !pool.policy.draining {
            return Ok(());
        }
        for waiter in std::mem::take(&mut pool.wait_queue) {
            self.no_key(now, waiter.slot, name, observed)?;
        }
        Ok(())
    }

    /// Grants available keys to waiters: the first waiter must get one, unless the pool drains.
    pub(super) fn serve_wait_queue(
        &mut self,
        now: Instant,
        name: &str,
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        loop {
            let Some(pool) = self.pools.get_mut(name) else { return Ok(()) };
            if !pool.can_grant() {
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

    pub(super) fn grant(
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

    pub(super) fn no_key(
        &mut self,
        now: Instant,
        slot: u32,
        name: &str,
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let pool = &self.pools[name];
        observed.check(slot, |reply| crate::views::no_key(reply, pool, now))
    }
}

/// The terms of a grant.
pub(super) struct GrantTerms {
    pub(super) ttl: u64,
    pub(super) holder: Option<String>,
    pub(super) since: u64,
    pub(super) idempotency: Option<IdempotencyKey>,
}
