//! Pools in the model, and the keys that enter them: by generation or by import.
//!
//! A random value is taken from the reply, and must be new.

use super::{Checked, Instant, Key, Model, Observation, Pool, Rules, State, ensure};
use crate::idempotency::StoredAnswers;
use keypeg_core::{ImportOptions, KeyId, NewLabels, Policy, PoolName, Refusal, Secret};
use keypeg_store::{Call, Reply, RequestError};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

impl Model {
    pub(super) fn put_pool(
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
            draining: patch.draining.unwrap_or(base.draining),
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
            retired: BTreeMap::new(),
            removed_guesses: BTreeSet::new(),
            answers: StoredAnswers::default(),
        };
        let pool = self.pools.entry(name.to_owned()).or_insert(empty);
        pool.policy = policy;
        self.refuse_waits_while_draining(now, name, observed)?;
        let (pool, expiry_can_lag) = (&self.pools[name], self.rules.expiry_can_lag);
        observed.check(slot, |reply| {
            crate::views::pool_reply(reply, (name, pool), now, (created, expiry_can_lag))
        })
    }

    pub(super) fn delete_pool(
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

    pub(super) fn has_capacity(&self, name: &str, count: usize) -> bool {
        let pool = &self.pools[name];
        pool.policy.max_keys.is_none_or(|max| (pool.keys.len() + count) as u64 <= max)
    }

    pub(super) fn add_key(
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
        let mut key = Key {
            serial,
            id,
            value,
            label: None,
            keepalive,
            guessed,
            purge_at: None,
            state,
            drain: None,
        };
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

    pub(super) fn is_new(&self, id: KeyId) -> bool {
        !self.removed_keys.contains(&id) && !self.exists(id)
    }

    pub(crate) fn was_removed(&self, id: KeyId) -> bool {
        self.removed_keys.contains(&id)
    }

    /// Creates the model with the default pool.
    pub(crate) fn new(policy: Policy, rules: Rules) -> Self {
        let mut model = Self { rules, ..Self::default() };
        let (keys, wait_queue, retired) = (Vec::new(), VecDeque::new(), BTreeMap::new());
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

    pub(super) fn pool_full(
        &self,
        slot: u32,
        name: &str,
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let max = self.pools[name].policy.max_keys.unwrap_or_default();
        observed.refusal(slot, &Refusal::PoolFull { max, of_server: false })
    }

    /// Returns the indices of the values of an import that are known, or occur before.
    fn known_values(&self, name: &str, values: &[&str], options: ImportOptions) -> Vec<usize> {
        let pool = &self.pools[name];
        let known = |index: usize, value: &str| {
            pool.retired.contains_key(value) && !options.allow_retired
                || pool.keys.iter().any(|key| key.value.as_deref() == Some(value))
                || values[..index].contains(&value)
        };
        (0..values.len()).filter(|&at| known(at, values[at])).collect()
    }

    /// Notes which values are known when an import is queued, or deferred for the first time.
    pub(crate) fn note_known_values(&mut self, slot: u32, call: &Call) {
        let Call::Import { pool, values, options, .. } = call else { return };
        if self.known_before.contains_key(&slot) || !self.pools.contains_key(pool.as_str()) {
            return;
        }
        let values: Vec<_> = values.iter().map(Secret::reveal).collect();
        let known = self.known_values(pool.as_str(), &values, *options);
        // Of equal values only the first counts: which of them is named depends on the rest.
        let known = known.into_iter().filter(|&at| !values[..at].contains(&values[at])).collect();
        self.known_before.insert(slot, known);
    }

    pub(crate) fn import(
        &mut self,
        now: Instant,
        (slot, name): (u32, &str),
        (values, options, labels): (&[&str], ImportOptions, &NewLabels),
        observed: &mut Observation<'_, '_>,
    ) -> Checked {
        let known = self.known_values(name, values, options);
        let known_before = self.known_before.remove(&slot);
        let has_capacity = self.has_capacity(name, values.len());
        if let [index, ..] = known[..] {
            let Some(before) = known_before else {
                // A value that occurs before the first known one is not listed.
                let is_listed =
                    |at: &usize| *at == index || !values[..index].contains(&values[*at]);
                let listed: Vec<_> = known.into_iter().filter(is_listed).collect();
                return observed.known_values(slot, &listed);
            };
            // Other imports can have brought values after the first steps of this one, which then does
            // not look at these values again if it finds another reason for a refusal.
            let is_full = before.is_empty() && !has_capacity;
            return observed.some_known_values(slot, (&before, &known), is_full);
        }
        if !has_capacity {
            return self.pool_full(slot, name, observed);
        }
        let mut ids = vec![None; values.len()];
        if let Observation::Lost(hypothesis) = observed {
            // A value that comes back has the id that it had, and a call of this turn can have
            // deleted it again by that id.
            let pool = &self.pools[name];
            let before = |value: &str| pool.retired.get(value).copied().flatten();
            let id = |value: &&str| hypothesis.imported(name, value).or_else(|| before(value));
            ids = values.iter().map(id).collect();
        }
        let this = &*self;
        observed.check(slot, |reply| {
            let Reply::Keys(keys) = reply else { return Err("all values are new".into()) };
            ensure!(keys.len() == values.len(), "all values are imported");
            for ((key, value), id) in keys.iter().zip(values).zip(&mut ids) {
                ensure!(key.value.reveal() == *value, "expected the value {value}");
                let comes_back = this.pools[name].retired.contains_key(*value);
                let is_new = this.is_new(key.id) || comes_back && !this.exists(key.id);
                ensure!(is_new, "key id {} was reused", key.id);
                let keepalive = options.keepalive;
                crate::views::new_key(key, (&this.pools[name].policy, keepalive), now)?;
                *id = Some(key.id);
            }
            Ok(())
        })?;
        for (place, (id, value)) in ids.into_iter().zip(values).enumerate() {
            self.add_key(now, name, (id, Some((*value).to_owned()), options.keepalive));
            let added = self.pools.get_mut(name).and_then(|pool| pool.keys.last_mut());
            added.expect("just added").label = labels.get(place).map(Into::into);
        }
        Ok(())
    }
}

/// Returns the indices of a refusal that names known values, if it is one and names all that it found.
fn named_values(reply: &Reply) -> Option<Vec<usize>> {
    match reply {
        Reply::Refused(RequestError::Refused(Refusal::KeyExists { index })) => Some(vec![*index]),
        Reply::Refused(RequestError::KeysExist(found)) if !found.more => {
            Some(found.indices.iter().map(|index| *index as usize).collect())
        }
        _ => None,
    }
}

impl Observation<'_, '_> {
    /// Checks the refusal of an import whose values at these indices are known.
    fn known_values(&mut self, slot: u32, known: &[usize]) -> Checked {
        self.check(slot, |reply| {
            let is_expected = named_values(reply).is_some_and(|named| named == known);
            if is_expected { Ok(()) } else { Err(format!("expected the known values {known:?}")) }
        })
    }

    /// Checks the refusal of an import that took several turns: it names at least those that were known
    /// at its begin, and only known ones. If none was known then, `is_full` is a reason too.
    fn some_known_values(
        &mut self,
        slot: u32,
        (before, known): (&[usize], &[usize]),
        is_full: bool,
    ) -> Checked {
        self.check(slot, |reply| {
            if let Reply::Refused(RequestError::Refused(Refusal::PoolFull { .. })) = reply {
                ensure!(is_full, "expected the known values {before:?}, not that the pool is full");
                return Ok(());
            }
            let named = named_values(reply).unwrap_or_default();
            let are_known = named.iter().all(|at| known.contains(at));
            let has_all = before.iter().all(|at| named.contains(at) || !known.contains(at));
            ensure!(
                !named.is_empty() && are_known && has_all,
                "expected {before:?} at least, and only of {known:?}"
            );
            Ok(())
        })
    }
}
