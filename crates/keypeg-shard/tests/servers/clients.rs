//! The clients: what they send, what they know from the answers, and what must hold for them.
//!
//! A client counts its lease from the moment it sent the request, and stops using a key before it
//! sends a release. A call without an answer may have been applied or not.

use crate::SeededRandom;
use keypeg_core::{KeyId, KeyRef, LeaseId, NewLabels, PoolName, Refusal, ReleaseOptions};
use keypeg_store::{Call, Reply, RequestError};
use std::collections::{BTreeMap, BTreeSet};

const TTL_MS: u64 = 8_000;
/// The most keys that clients create.
const KEYS_MAX: usize = 12;

/// A call on its way.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) call: Call,
    at_us: u64,
    /// The keys that must exist when it is answered, and those that may exist.
    keys_least: u64,
    keys_most: u64,
}

impl Sent {
    pub(crate) fn of(call: Call) -> Self {
        Self { call, at_us: 0, keys_least: 0, keys_most: u64::MAX }
    }
}

/// A call with its answer.
pub(crate) struct Answered {
    pub(crate) sent: Sent,
    pub(crate) reply: Reply,
    pub(crate) now_us: u64,
}

/// A lease that a client was granted.
#[derive(Clone, Copy, Debug)]
struct Held {
    lease: LeaseId,
    token: u64,
    from_us: u64,
    /// Until when its client may use the key.
    until_us: u64,
    /// Whether something was sent that may have ended it.
    may_be_gone: bool,
}

#[derive(Default)]
pub(crate) struct Clients {
    held: BTreeMap<KeyId, Vec<Held>>,
    tokens: BTreeSet<u64>,
    /// Keys whose creation was answered.
    keys: BTreeSet<KeyId>,
    /// Keys whose deletion was sent.
    deletions: BTreeSet<KeyId>,
    /// Keys whose deletion was answered, and when.
    deleted: BTreeMap<KeyId, u64>,
    /// The keys that were asked for.
    asked: u64,
}

/// What must be found at the end.
pub(crate) struct Expected {
    pub(crate) leases: Vec<(KeyId, u64)>,
    pub(crate) keys: Vec<(KeyId, bool)>,
}

impl Clients {
    /// Chooses the next call.
    pub(crate) fn send(&mut self, random: &mut SeededRandom, now_us: u64) -> Sent {
        let pool = PoolName::default_pool();
        let leases: Vec<_> = self.running(now_us).map(|(key, held)| (key, *held)).collect();
        let lease = random.pick(&leases).copied();
        let keys: Vec<_> = self.keys.difference(&self.deletions).copied().collect();
        let key = random.pick(&keys).copied();
        let can_create = self.asked < KEYS_MAX as u64 + self.deletions.len() as u64;
        let call = match (random.below(12), lease, key) {
            (0 | 1, _, _) if can_create => {
                self.asked += 1;
                Call::Generate { pool, count: 1, labels: NewLabels::None }
            }
            (2 | 3, Some((_, held)), _) => {
                self.stop_using(held.lease, now_us);
                Call::Release { pool, lease: held.lease, options: ReleaseOptions::default() }
            }
            (4, _, Some(key)) if random.below(3) == 0 => {
                self.deletions.insert(key);
                self.end_all(key, now_us);
                Call::DeleteKey { pool, key: KeyRef::Id(key) }
            }
            (5, Some((_, held)), _) => {
                Call::Renew { pool, lease: held.lease, ttl_ms: Some(TTL_MS) }
            }
            (6 | 7, _, _) => Call::GetPool { pool },
            _ => Call::Acquire { pool, ttl_ms: Some(TTL_MS), holder: None, wait_ms: 0 },
        };
        let keys_least = self.keys.difference(&self.deletions).count() as u64;
        let keys_most = self.asked - self.deleted.len() as u64;
        Sent { call, at_us: now_us, keys_least, keys_most }
    }

    fn running(&self, now_us: u64) -> impl Iterator<Item = (KeyId, &Held)> {
        let all = self.held.iter().flat_map(|(key, held)| held.iter().map(|held| (*key, held)));
        all.filter(move |(_, held)| held.until_us > now_us && !held.may_be_gone)
    }

    fn stop_using(&mut self, lease: LeaseId, now_us: u64) {
        let all = self.held.values_mut().flatten();
        for held in all.filter(|held| held.lease == lease) {
            held.until_us = held.until_us.min(now_us);
            held.may_be_gone = true;
        }
    }

    fn end_all(&mut self, key: KeyId, now_us: u64) {
        for held in self.held.entry(key).or_default() {
            held.until_us = held.until_us.min(now_us);
            held.may_be_gone = true;
        }
    }

    /// Checks an answer.
    pub(crate) fn receive(&mut self, answered: &Answered) -> Result<(), String> {
        let Answered { sent, reply, now_us } = answered;
        match (&sent.call, reply) {
            (_, Reply::Granted { lease, .. }) => {
                let (from_us, until_us) = (*now_us, sent.at_us + TTL_MS * 1_000);
                let (id, token) = (lease.id, lease.token);
                let held = Held { lease: id, token, from_us, until_us, may_be_gone: false };
                self.granted(lease.key_id, held, sent.at_us)
            }
            (Call::Generate { .. }, Reply::Keys(keys)) => {
                self.keys.extend(keys.iter().map(|key| key.id));
                Ok(())
            }
            (Call::DeleteKey { key: KeyRef::Id(key), .. }, reply) => {
                if !matches!(reply, Reply::Released { .. }) {
                    return Err(format!("the key {key} was deleted by no call before: {reply:?}"));
                }
                self.deleted.insert(*key, *now_us);
                Ok(())
            }
            (Call::Renew { lease, .. }, Reply::Renewed(_)) => {
                let until_us = sent.at_us + TTL_MS * 1_000;
                let all = self.held.values_mut().flatten();
                for held in all.filter(|held| held.lease == *lease && !held.may_be_gone) {
                    held.until_us = held.until_us.max(until_us);
                }
                Ok(())
            }
            (Call::GetPool { .. }, Reply::Pool { pool, .. }) => {
                let counts = pool.counts;
                let keys = counts.available + counts.leased_or_resting() + counts.quarantined;
                if keys < sent.keys_least || keys > sent.keys_most {
                    let Sent { keys_least, keys_most, .. } = sent;
                    return Err(format!(
                        "a stale answer: {keys} keys instead of {keys_least} to {keys_most}"
                    ));
                }
                Ok(())
            }
            (Call::GetPool { .. }, other) => Err(format!("the pool exists: {other:?}")),
            (_, Reply::Refused(RequestError::Refused(Refusal::UnknownKey))) => {
                Err(format!("a key that was acknowledged is unknown: {:?}", sent.call))
            }
            _ => Ok(()),
        }
    }

    fn granted(&mut self, key: KeyId, new: Held, sent_us: u64) -> Result<(), String> {
        if !self.tokens.insert(new.token) {
            return Err(format!("the token {} was granted twice", new.token));
        }
        if self.deleted.get(&key).is_some_and(|deleted_us| *deleted_us <= sent_us) {
            return Err(format!("the deleted key {key} was granted"));
        }
        let of_key = self.held.entry(key).or_default();
        let overlap = of_key
            .iter()
            .find(|held| held.from_us.max(new.from_us) < held.until_us.min(new.until_us))
            .copied();
        of_key.push(new);
        overlap.map_or(Ok(()), |other| Err(format!("{key} is lent twice: {other:?} and {new:?}")))
    }

    /// Returns what a server must find at the end.
    pub(crate) fn expected(&self, now_us: u64) -> Expected {
        let running = self.running(now_us).filter(|(key, _)| !self.deletions.contains(key));
        let leases = running.map(|(key, held)| (key, held.token)).collect();
        let there = self.keys.difference(&self.deletions).map(|key| (*key, true));
        let gone = self.deleted.keys().map(|key| (*key, false));
        Expected { leases, keys: there.chain(gone).collect() }
    }
}
