//! What an Idempotency-Key must be answered when it comes again: the same, over any crash.

use crate::model::{Checked, Instant, Key, Lease, Model, State, Told, ensure};
use keypeg_engine::core::{BodyDigest, LeaseId, NewKey, Refusal, Secret};
use keypeg_engine::{Call, Reply, RequestError};
use std::collections::BTreeMap;

/// How long an answer that made keys is kept.
const KEPT_MS: u64 = 3_600_000;

/// An Idempotency-Key and what is asked under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Once {
    key: String,
    body: BodyDigest,
}

/// The answers of a pool, by route and Idempotency-Key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answers(BTreeMap<(bool, String), Answer>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    body: BodyDigest,
    until: u64,
    said: IdempotentResult,
    /// Whether it was told again by this run of the server.
    again: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum IdempotentResult {
    Lease { key: u64, lease: u64, until: u64, granted_at: u64, expires_at: u64 },
    Keys { keys: Vec<u64>, expires_at: Option<u64> },
}

impl Answers {
    pub(crate) fn lent(&mut self, once: Once, key: &Key, lease: &Lease, now: Instant) {
        let said = IdempotentResult::Lease {
            key: key.serial,
            lease: lease.serial,
            until: lease.until,
            granted_at: now.wall,
            expires_at: now.wall + lease.until - now.lease,
        };
        let answer = Answer { body: once.body, until: now.lease + KEPT_MS, said, again: false };
        self.0.insert((true, once.key), answer);
    }

    /// What a start makes of them.
    pub(crate) fn restart(&mut self) {
        self.0.values_mut().for_each(|answer| answer.again = false);
    }
}

fn runs<'a>(keys: &'a [Key], answer: &Answer) -> Option<(&'a Key, &'a Lease)> {
    let IdempotentResult::Lease { lease: wanted, .. } = answer.said else { return None };
    keys.iter().find_map(|key| match &key.state {
        State::Leased(lease) if lease.serial == wanted => Some((key, lease)),
        _ => None,
    })
}

impl Model {
    pub(crate) fn once(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        (key, body, call): (&str, BodyDigest, &Call),
        told: &mut Told<'_, '_>,
    ) -> Checked {
        let lends = matches!(call, Call::Acquire { .. });
        let once = Once { key: key.to_owned(), body };
        let pool = &self.pools[name];
        let at = (lends, once.key.clone());
        let kept = |answer: &Answer, told: &mut Told<'_, '_>| {
            answer.until > now.lease
                || runs(&pool.keys, answer).is_some()
                || self.is_known(slot, told)
        };
        let answer = pool.answers.0.get(&at).cloned();
        if let Some(answer) = answer.filter(|answer| kept(answer, told)) {
            if answer.body != body {
                return told.refusal(slot, &Refusal::IdempotencyMismatch);
            }
            return self.again(now, (slot, name), (&at, &answer), told);
        }
        match call {
            Call::Acquire { ttl_ms, holder, wait_ms, .. } => {
                if let Some(place) = self.place_in_line(name, &once.key) {
                    return self.take_over(now, (slot, name), (place, body, *wait_ms), told);
                }
                let wish = (*ttl_ms, holder.as_deref(), *wait_ms);
                self.acquire(now, (slot, name), wish, Some(once), told)
            }
            Call::Generate { count, .. } => {
                let before = pool.keys.len();
                self.generate(now, (slot, name), *count, told)?;
                self.made(now, (name, before), once);
                Ok(())
            }
            Call::Import { values, .. } => {
                let before = pool.keys.len();
                let values: Vec<_> = values.iter().map(Secret::reveal).collect();
                self.import(now, (slot, name), &values, told)?;
                self.made(now, (name, before), once);
                Ok(())
            }
            _ => unreachable!("no other call is asked once"),
        }
    }

    /// Whether an answer that was kept long enough still is, as the reply tells: lease time after a
    /// reboot is known only where a lease runs.
    fn is_known(&self, slot: u32, told: &mut Told<'_, '_>) -> bool {
        let replies = match told {
            Told::Seen(replies) => replies,
            Told::Unseen(guess) => return guess.choose(2) == 1,
        };
        match replies.get(&slot) {
            Some(Reply::Keys(keys)) => keys.iter().any(|key| !self.is_new(key.id)),
            Some(Reply::Refused(RequestError::Refused(denied))) => matches!(
                denied,
                Refusal::LeaseEnded { .. } | Refusal::KeysGone | Refusal::IdempotencyMismatch
            ),
            _ => false,
        }
    }

    fn place_in_line(&self, name: &str, key: &str) -> Option<usize> {
        let line = &self.pools[name].line;
        line.iter().position(|waiter| waiter.once.as_ref().is_some_and(|once| once.key == key))
    }

    /// The repeat takes the place of the one that waits, whose wish stands.
    fn take_over(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        (place, body, wait): (usize, BodyDigest, u64),
        told: &mut Told<'_, '_>,
    ) -> Checked {
        let waiter = &mut self.pools.get_mut(name).expect("it is there").line[place];
        if waiter.once.as_ref().is_some_and(|once| once.body != body) {
            return told.refusal(slot, &Refusal::IdempotencyMismatch);
        }
        let before = std::mem::replace(&mut waiter.slot, slot);
        waiter.take_time(now.lease, wait);
        told.refusal(before, &Refusal::TakenOver)
    }

    /// Keeps what made keys told of, if it made any.
    fn made(&mut self, now: Instant, (name, before): (&str, usize), Once { key, body }: Once) {
        let pool = self.pools.get_mut(name).expect("it is there");
        if pool.keys.len() == before {
            return;
        }
        let keys = pool.keys[before..].iter().map(|key| key.serial).collect();
        let expires_at = pool.policy.keepalive_ttl_ms.map(|ttl| now.wall + ttl);
        let said = IdempotentResult::Keys { keys, expires_at };
        let answer = Answer { body, until: now.lease + KEPT_MS, said, again: false };
        pool.answers.0.insert((false, key), answer);
    }

    fn again(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        (at, answer): (&(bool, String), &Answer),
        told: &mut Told<'_, '_>,
    ) -> Checked {
        let pool = self.pools.get_mut(name).expect("it is there");
        match &answer.said {
            IdempotentResult::Keys { keys, expires_at } => {
                let there = |serial: &u64| pool.keys.iter().any(|key| key.serial == *serial);
                if !keys.iter().all(there) {
                    return told.refusal(slot, &Refusal::KeysGone);
                }
                told.check(slot, |reply| match reply {
                    Reply::Keys(told) => same_keys(told, (keys, *expires_at), &mut pool.keys),
                    _ => Err("the same keys again".into()),
                })
            }
            IdempotentResult::Lease { key, until, granted_at, expires_at, .. } => {
                let Some((_, lease)) = runs(&pool.keys, answer) else {
                    let there = pool.keys.iter().any(|known| known.serial == *key);
                    return told.check(slot, |reply| match reply {
                        Reply::Refused(RequestError::Refused(Refusal::LeaseEnded { .. })) => Ok(()),
                        _ => Err(format!("its lease has ended; its key is there: {there}")),
                    });
                };
                pool.answers.0.get_mut(at).expect("just found").again = true;
                told.check(slot, |reply| {
                    let Reply::Granted { lease: view, waited_ms: 0, redelivered: true, .. } = reply
                    else {
                        return Err("the same lease again".into());
                    };
                    ensure!(lease.id.is_none_or(|id| id == view.id), "another lease");
                    ensure!(view.holder == lease.holder.as_deref().map(Into::into), "its holder");
                    ensure!(view.granted_at_ms == *granted_at, "granted at {granted_at}");
                    ensure!(view.expires_in_ms == lease.until - now.lease, "ends at {lease:?}");
                    let same = *until != lease.until || view.expires_at_ms == *expires_at;
                    ensure!(same, "ends at {expires_at}");
                    Ok(())
                })
            }
        }
    }

    /// A grant that nobody received is taken back, unless it was told again meanwhile.
    pub(crate) fn undo_undelivered(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        lease: LeaseId,
        told: &mut Told<'_, '_>,
    ) -> Checked {
        let Some(at) = self.running(name, lease) else {
            if self.rules.lags {
                // One that was told again is left alone, over or not.
                return told.check(slot, |_| Ok(()));
            }
            return self.lease_ended(slot, (name, lease), told);
        };
        if self.was_told_again(lease) {
            return told.done(slot);
        }
        let pool = self.pools.get_mut(name).expect("it is there");
        let State::Leased(Lease { serial, .. }) = pool.keys[at].state else { unreachable!("runs") };
        pool.answers.0.retain(
            |_, answer| !matches!(answer.said, IdempotentResult::Lease { lease, .. } if lease == serial),
        );
        self.give_back(now, (name, at), None, None);
        told.done(slot)
    }

    /// Whether a lease that runs was told again.
    pub(crate) fn was_told_again(&self, lease: LeaseId) -> bool {
        self.pools.values().any(|pool| {
            let mut answers = pool.answers.0.values().filter(|answer| answer.again);
            answers.any(|answer| {
                runs(&pool.keys, answer).is_some_and(|(_, running)| running.id == Some(lease))
            })
        })
    }
}

fn same_keys(
    told: &[NewKey],
    (serials, expires_at): (&[u64], Option<u64>),
    keys: &mut [Key],
) -> Checked {
    ensure!(told.len() == serials.len(), "all its keys");
    for new in told {
        let at = keys.iter().position(|key| key.id == Some(new.id));
        let at = at.ok_or_else(|| format!("{} is not there", new.id))?;
        if !serials.contains(&keys[at].serial) {
            // Keys whose answers were lost in one turn are only now told apart.
            let other = keys.iter().position(|key| {
                let named = told.iter().any(|new| key.id == Some(new.id));
                serials.contains(&key.serial) && key.value.is_none() && !named
            });
            let other = other.filter(|_| keys[at].value.is_none());
            let other = other.ok_or_else(|| format!("{} was not among them", new.id))?;
            let (one, two) = (keys[at].serial, keys[other].serial);
            (keys[at].serial, keys[other].serial) = (two, one);
        }
        let value = new.value.reveal();
        let known = keys[at].value.get_or_insert_with(|| value.to_owned());
        ensure!(known == value, "the value of {} is another", new.id);
        ensure!(new.expires_at_ms == expires_at, "they were to end at {expires_at:?}");
    }
    Ok(())
}
