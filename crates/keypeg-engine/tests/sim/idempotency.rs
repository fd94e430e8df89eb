//! What the model expects of a repeated Idempotency-Key: the same answer, across any crash.

use crate::model::{Checked, Instant, Key, Lease, Model, Observation, State, ensure};
use keypeg_core::{BodyDigest, LeaseId, NewKey, Refusal, Secret};
use keypeg_store::{Call, Reply, RequestError};
use std::collections::BTreeMap;

/// How long an answer is stored.
const RETENTION_MS: u64 = 3_600_000;

/// An Idempotency-Key and the digest of its request body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdempotencyKey {
    key: String,
    body: BodyDigest,
}

/// The stored answers of a pool, by route and Idempotency-Key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredAnswers(BTreeMap<(bool, String), StoredAnswer>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct StoredAnswer {
    body: BodyDigest,
    until: u64,
    result: IdempotentResult,
    /// Whether this run of the server returned it again.
    redelivered: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum IdempotentResult {
    Lease {
        key: u64,
        lease: u64,
        until: u64,
        granted_at: u64,
        expires_at: u64,
    },
    /// `guessed` is the lost turn that generated them, see [`Key::guessed`].
    Keys {
        keys: Vec<u64>,
        expires_at: Option<u64>,
        guessed: Option<u64>,
    },
}

impl StoredAnswers {
    pub(crate) fn store_lease(
        &mut self,
        idempotency: IdempotencyKey,
        key: &Key,
        lease: &Lease,
        now: Instant,
    ) {
        let result = IdempotentResult::Lease {
            key: key.serial,
            lease: lease.serial,
            until: lease.until,
            granted_at: now.wall,
            expires_at: now.wall + lease.until - now.lease,
        };
        let answer = StoredAnswer {
            body: idempotency.body,
            until: now.lease + RETENTION_MS,
            result,
            redelivered: false,
        };
        self.0.insert((true, idempotency.key), answer);
    }

    /// Applies a restart.
    pub(crate) fn restart(&mut self) {
        self.0.values_mut().for_each(|answer| answer.redelivered = false);
    }
}

fn running_lease<'a>(keys: &'a [Key], answer: &StoredAnswer) -> Option<(&'a Key, &'a Lease)> {
    let IdempotentResult::Lease { lease: wanted, .. } = answer.result else { return None };
    keys.iter().find_map(|key| match &key.state {
        State::Leased(lease) if lease.serial == wanted => Some((key, lease)),
        _ => None,
    })
}

impl Model {
    pub(crate) fn apply_idempotent(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        (key, body, call): (&str, BodyDigest, &Call),
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let is_acquire = matches!(call, Call::Acquire { .. });
        let idempotency = IdempotencyKey { key: key.to_owned(), body };
        let pool = &self.pools[name];
        let at = (is_acquire, idempotency.key.clone());
        let is_stored = |answer: &StoredAnswer, observed: &mut Observation<'_, '_>| {
            answer.until > now.lease
                || running_lease(&pool.keys, answer).is_some()
                || self.is_still_stored(slot, observed)
        };
        let answer = pool.answers.0.get(&at).cloned();
        if let Some(answer) = answer.filter(|answer| is_stored(answer, observed)) {
            if answer.body != body {
                return observed.refusal(slot, &Refusal::IdempotencyMismatch);
            }
            return self.check_redelivery(now, (slot, name), (&at, &answer), observed);
        }
        match call {
            Call::Acquire { ttl_ms, holder, wait_ms, .. } => {
                if let Some(position) = self.queue_position(name, &idempotency.key) {
                    return self.take_over(now, (slot, name), (position, body, *wait_ms), observed);
                }
                let terms = (*ttl_ms, holder.as_deref(), *wait_ms);
                self.acquire(now, (slot, name), terms, Some(idempotency), observed)
            }
            Call::Generate { count, .. } => {
                let before = pool.keys.len();
                self.generate(now, (slot, name), *count, observed)?;
                self.store_created_keys(now, (name, before), idempotency);
                Ok(())
            }
            Call::Import { values, options, labels, .. } => {
                let before = pool.keys.len();
                let values: Vec<_> = values.iter().map(Secret::reveal).collect();
                self.import(now, (slot, name), (&values, *options, labels), observed)?;
                self.store_created_keys(now, (name, before), idempotency);
                Ok(())
            }
            _ => unreachable!("no other call takes an Idempotency-Key"),
        }
    }

    /// Returns whether an answer past its retention is still stored, as the reply shows: lease time
    /// after a reboot is known only where a lease runs.
    fn is_still_stored(&self, slot: u32, observed: &mut Observation<'_, '_>) -> bool {
        let replies = match observed {
            Observation::Replies(replies) => replies,
            Observation::Lost(hypothesis) => return hypothesis.choose(2) == 1,
        };
        match replies.get(&slot) {
            Some(Reply::Keys(keys)) => keys.iter().any(|key| self.exists(key.id)),
            Some(Reply::Refused(RequestError::Refused(refusal))) => matches!(
                refusal,
                Refusal::LeaseEnded { .. } | Refusal::KeysGone | Refusal::IdempotencyMismatch
            ),
            _ => false,
        }
    }

    fn queue_position(&self, name: &str, key: &str) -> Option<usize> {
        let wait_queue = &self.pools[name].wait_queue;
        wait_queue.iter().position(|waiter| {
            waiter.idempotency.as_ref().is_some_and(|idempotency| idempotency.key == key)
        })
    }

    /// The repeat takes the queue position of the waiter with its key, whose options stay.
    fn take_over(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        (position, body, wait): (usize, BodyDigest, u64),
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let waiter = &mut self.pools.get_mut(name).expect("an existing pool").wait_queue[position];
        if waiter.idempotency.as_ref().is_some_and(|idempotency| idempotency.body != body) {
            return observed.refusal(slot, &Refusal::IdempotencyMismatch);
        }
        let replaced = std::mem::replace(&mut waiter.slot, slot);
        waiter.restart_wait(now.lease, wait);
        observed.refusal(replaced, &Refusal::TakenOver)
    }

    /// Stores the answer of a call that created keys, if it created any.
    fn store_created_keys(
        &mut self,
        now: Instant,
        (name, before): (&str, usize),
        IdempotencyKey { key, body }: IdempotencyKey,
    ) {
        let pool = self.pools.get_mut(name).expect("an existing pool");
        if pool.keys.len() == before {
            return;
        }
        let keys = pool.keys[before..].iter().map(|key| key.serial).collect();
        let Key { purge_at, guessed, .. } = pool.keys[before];
        let expires_at = purge_at.map(|at| now.wall + at - now.serving);
        let result = IdempotentResult::Keys { keys, expires_at, guessed };
        let answer =
            StoredAnswer { body, until: now.lease + RETENTION_MS, result, redelivered: false };
        pool.answers.0.insert((false, key), answer);
    }

    fn check_redelivery(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        (at, answer): (&(bool, String), &StoredAnswer),
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let pool = self.pools.get_mut(name).expect("an existing pool");
        match &answer.result {
            IdempotentResult::Keys { keys, expires_at, guessed } => {
                let exists = |serial: &u64| pool.keys.iter().any(|key| key.serial == *serial);
                let all_exist = keys.iter().all(exists);
                // One of these keys, or another key of the same lost turn, was removed.
                let may_be_gone = guessed.is_some_and(|turn| pool.removed_guesses.contains(&turn));
                let refused = RequestError::Refused(Refusal::KeysGone);
                observed.check(slot, |reply| match reply {
                    Reply::Keys(returned) if all_exist || may_be_gone => {
                        same_keys(returned, (keys, *expires_at), *guessed, &mut pool.keys)
                    }
                    Reply::Refused(why) if *why == refused && (!all_exist || may_be_gone) => Ok(()),
                    _ if all_exist => Err("expected the same keys again".into()),
                    _ => Err(format!("expected the refusal {:?}", Refusal::KeysGone)),
                })
            }
            IdempotentResult::Lease { key, until, granted_at, expires_at, .. } => {
                let Some((running, lease)) = running_lease(&pool.keys, answer) else {
                    let exists = pool.keys.iter().any(|known| known.serial == *key);
                    return observed.check(slot, |reply| match reply {
                        Reply::Refused(RequestError::Refused(Refusal::LeaseEnded { .. })) => Ok(()),
                        _ => Err(format!("its lease has ended; its key exists: {exists}")),
                    });
                };
                let lease = lease.clone();
                pool.answers.0.get_mut(at).expect("just found").redelivered = true;
                let serial = running.serial;
                let mut shown = None;
                observed.check(slot, |reply| {
                    let Reply::Granted {
                        lease: view, value, waited_ms: 0, redelivered: true, ..
                    } = reply
                    else {
                        return Err("expected the same lease again".into());
                    };
                    ensure!(running.id == Some(view.key_id), "a lease on another key");
                    let known = running.value.as_deref();
                    ensure!(known.is_none_or(|known| known == value.reveal()), "another value");
                    shown = Some(value.reveal().to_owned());
                    ensure!(lease.id.is_none_or(|id| id == view.id), "another lease");
                    ensure!(
                        view.holder == lease.holder.as_deref().map(Into::into),
                        "the same holder"
                    );
                    ensure!(view.granted_at_ms == *granted_at, "granted at {granted_at}");
                    ensure!(
                        view.expires_in_ms == lease.until - now.lease,
                        "expires as in {lease:?}"
                    );
                    let same_end = *until != lease.until || view.expires_at_ms == *expires_at;
                    ensure!(same_end, "expires at {expires_at}");
                    Ok(())
                })?;
                let shown_key = pool.keys.iter_mut().find(|key| key.serial == serial);
                if let Some(key) = shown_key {
                    // The answer of the call that generated the key may have been lost.
                    key.value = key.value.take().or(shown);
                }
                Ok(())
            }
        }
    }

    /// Revokes an undelivered grant, unless a repeat has returned it meanwhile.
    pub(crate) fn revoke_undelivered(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        lease: LeaseId,
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let Some(at) = self.running(name, lease) else {
            if self.rules.expiry_can_lag {
                // A redelivered grant is left alone, whether or not it is due.
                return observed.check(slot, |_| Ok(()));
            }
            return self.lease_ended(slot, (name, lease), observed);
        };
        if self.was_redelivered(lease) {
            return observed.done(slot);
        }
        let pool = self.pools.get_mut(name).expect("an existing pool");
        let State::Leased(Lease { serial, .. }) = pool.keys[at].state else {
            unreachable!("a running lease")
        };
        let is_of_lease = |answer: &StoredAnswer| match answer.result {
            IdempotentResult::Lease { lease, .. } => lease == serial,
            IdempotentResult::Keys { .. } => false,
        };
        pool.answers.0.retain(|_, answer| !is_of_lease(answer));
        self.release_lease(now, (name, at), None, None);
        observed.done(slot)
    }

    /// Returns whether a repeat has returned a running lease again.
    pub(crate) fn was_redelivered(&self, lease: LeaseId) -> bool {
        self.pools.values().any(|pool| {
            let mut answers = pool.answers.0.values().filter(|answer| answer.redelivered);
            answers.any(|answer| {
                running_lease(&pool.keys, answer)
                    .is_some_and(|(_, running)| running.id == Some(lease))
            })
        })
    }
}

/// Checks that the keys of a stored answer are returned again.
fn same_keys(
    returned: &[NewKey],
    (serials, expires_at): (&[u64], Option<u64>),
    guessed: Option<u64>,
    keys: &mut [Key],
) -> Checked {
    ensure!(returned.len() == serials.len(), "expected all keys of the answer");
    for new in returned {
        let at = keys.iter().position(|key| key.id == Some(new.id));
        let at = at.ok_or_else(|| format!("{} does not exist", new.id))?;
        if !serials.contains(&keys[at].serial) {
            // Keys that one lost turn generated are distinguished only now.
            ensure!(
                guessed.is_some() && keys[at].guessed == guessed,
                "{} is not a key of the answer",
                new.id
            );
            exchange_serial(at, (serials, returned), keys)?;
        }
        let value = new.value.reveal();
        let known = keys[at].value.get_or_insert_with(|| value.to_owned());
        ensure!(known == value, "the value of {} changed", new.id);
        ensure!(new.expires_at_ms == expires_at, "the keys expire at {expires_at:?}");
    }
    Ok(())
}

/// Gives the key at `at` a serial of the answer: that of a key that is not returned, which gets the
/// other serial, or that of a key that was removed.
fn exchange_serial(
    at: usize,
    (serials, returned): (&[u64], &[NewKey]),
    keys: &mut [Key],
) -> Checked {
    let is_returned = |key: &Key| returned.iter().any(|new| key.id == Some(new.id));
    let (one, id) = (keys[at].serial, keys[at].id);
    let other = keys.iter().position(|key| serials.contains(&key.serial) && !is_returned(key));
    let removed = serials.iter().find(|serial| keys.iter().all(|key| key.serial != **serial));
    let two = other.map(|other| keys[other].serial).or(removed.copied());
    keys[at].serial = two.ok_or_else(|| format!("{id:?} is one key too many"))?;
    if let Some(other) = other {
        keys[other].serial = one;
    }
    Ok(())
}
