//! The calls of the naive store that are answered at once.

use super::pool::{Key, Room};
use super::{NaiveStore, random};
use keypeg_core::{
    Cursor, KNOWN_MAX, KeyId, KeyPage, KeyState, KnownValues, Policy, PoolName, Refusal,
    ReleaseOptions, Secret,
};
use keypeg_store::{Call, FeedEventKind, PoolPage, Reply, RequestError, Subscription};
use std::collections::HashSet;
use std::sync::Arc;

impl NaiveStore {
    pub(super) fn execute_now(&mut self, call: Call) -> Result<Reply, Refusal> {
        let now = self.now;
        let room = self.room();
        let name = pool_of(&call);
        let pool = name.as_ref().and_then(|name| self.pools.get_mut(name));
        let (Some(name), Some(pool)) = (name, pool) else { return self.execute_on_pools(call) };
        match call {
            Call::GetPool { .. } => {
                Ok(Reply::Pool { pool: Box::new(pool.view(&name)), created: false })
            }
            Call::Generate { count, labels, .. } => {
                pool.check_room(count as usize, room)?;
                let mut used = pool.used_values(false);
                let mut values = Vec::new();
                while values.len() < count as usize {
                    let value = random_value(&pool.policy);
                    if used.insert(value.clone()) {
                        values.push(value);
                    }
                }
                Ok(Reply::Keys(pool.add_keys((values, &labels), None, &mut self.last_number, now)))
            }
            Call::Import { values, options, labels, .. } => {
                let mut used = pool.used_values(options.allow_retired);
                let before = used.clone();
                if let Some(first) = values.iter().position(|value| !used.insert(value.clone())) {
                    return known_values(&values, first, before);
                }
                pool.check_room(values.len(), room)?;
                let (values, options) = ((values, &labels), Some(options));
                Ok(Reply::Keys(pool.add_keys(values, options, &mut self.last_number, now)))
            }
            Call::ListKeys { state, label, limit, cursor, .. } => {
                // A cursor consists of the run, the pool and the number of the next key.
                let first_cursor = u128::from(self.run_id) << 64 | u128::from(pool.number) << 32;
                let first = cursor.map_or(0, |cursor| cursor.0 ^ first_cursor);
                if first > u128::from(u32::MAX) {
                    return Err(Refusal::BadCursor);
                }
                let has_state = |found: KeyState| state.is_none_or(|state| found == state);
                let from_cursor = pool.keys.iter().filter(|key| u128::from(key.number) >= first);
                let has_label = |key: &Key| label.is_none() || key.label == label;
                let in_state = from_cursor.filter(|key| has_state(key.state()));
                let mut matching = in_state.filter(|key| has_label(key));
                let keys = matching.by_ref().take(limit).map(|key| key.view(now)).collect();
                let next = matching.next().map(|key| Cursor(first_cursor | u128::from(key.number)));
                Ok(Reply::Page(KeyPage { keys, next }))
            }
            Call::SetLabel { key, label, .. } => {
                let index = pool.find(&key)?;
                pool.set_label(index, label);
                Ok(Reply::Key(Box::new(pool.keys[index].view(now))))
            }
            Call::Reveal { key, .. } => {
                let key = &pool.keys[pool.find(&key)?];
                Ok(Reply::Revealed { id: key.id, value: key.value.clone() })
            }
            Call::Release { lease, options, .. } => pool.release(lease, &options, now),
            Call::RevokeUndelivered { lease, .. } => {
                if !pool.revoke_answer(lease) {
                    return Ok(Reply::Done);
                }
                pool.release(lease, &ReleaseOptions::default(), now).map(|_| Reply::Done)
            }
            Call::Renew { lease, ttl_ms, .. } => pool.renew(lease, ttl_ms, now),
            Call::GetKey { key, .. } => {
                Ok(Reply::Key(Box::new(pool.keys[pool.find(&key)?].view(now))))
            }
            Call::ForceRelease { key, .. } => {
                let index = pool.find(&key)?;
                let holder = pool.holder(index);
                Ok(Reply::KeyReleased { released: pool.force_release(index, now), holder })
            }
            Call::QuarantineKey { key, options, .. } => {
                let index = pool.find(&key)?;
                let holder = pool.quarantine(index, options, now);
                let key = Box::new(pool.keys[index].view(now));
                Ok(Reply::KeyQuarantined { key, holder })
            }
            Call::EndQuarantine { key, .. } => {
                let index = pool.find(&key)?;
                pool.end_quarantine(index);
                Ok(Reply::Key(Box::new(pool.keys[index].view(now))))
            }
            Call::DeleteKey { key, .. } => {
                let index = pool.find(&key)?;
                let holder = pool.holder(index);
                pool.remove_key(index, false);
                Ok(Reply::Released { holder })
            }
            Call::KeepAlive { key, .. } => {
                let index = pool.find(&key)?;
                pool.keep_alive(index, now);
                let key = &pool.keys[index];
                Ok(Reply::KeptAlive { id: key.id, expires_at_ms: key.purge_at })
            }
            Call::KeepAliveMany { keys, .. } => {
                let mut missing: HashSet<KeyId> = keys.iter().copied().collect();
                let mut kept = 0;
                for index in 0..pool.keys.len() {
                    if missing.remove(&pool.keys[index].id) {
                        pool.keep_alive(index, now);
                        kept += 1;
                    }
                }
                let missing = keys.into_iter().filter(|id| missing.remove(id)).collect();
                Ok(Reply::KeptAliveMany { kept, missing })
            }
            Call::KeepAliveAll { .. } => {
                (0..pool.keys.len()).for_each(|index| pool.keep_alive(index, now));
                Ok(Reply::KeptAliveMany { kept: pool.keys.len() as u64, missing: Vec::new() })
            }
            Call::Subscribe { .. } => {
                if self.cancels_waits {
                    return Ok(Reply::Refused(RequestError::ShuttingDown));
                }
                // The counts of a resync are those of now.
                let (events, counts) = (std::mem::take(&mut pool.events), pool.counts());
                pool.feed.publish(events, &mut self.last_seq, now, counts);
                Ok(Reply::Subscription(Arc::clone(&pool.feed) as Arc<dyn Subscription>))
            }
            call @ (Call::ListPools { .. }
            | Call::PutPool { .. }
            | Call::PutPoolIf { .. }
            | Call::DeletePool { .. }
            | Call::Acquire { .. }) => self.execute_on_pools(call),
        }
    }

    /// Returns how many more keys the store may have.
    fn room(&self) -> Room {
        let key_count: usize = self.pools.values().map(|pool| pool.keys.len()).sum();
        Room { left: self.max_keys.saturating_sub(key_count as u64), max: self.max_keys }
    }

    /// Executes a call that is not about the keys of one pool; refuses one on an unknown pool.
    fn execute_on_pools(&mut self, call: Call) -> Result<Reply, Refusal> {
        if let Call::PutPoolIf { pool: name, patch, exists } = call {
            return match (self.pools.get(&name), exists) {
                (None, true) => Err(Refusal::UnknownPool),
                (Some(pool), false) => {
                    Ok(Reply::Pool { pool: Box::new(pool.view(&name)), created: false })
                }
                _ => self.execute_on_pools(Call::PutPool { pool: name, patch }),
            };
        }
        if let Call::PutPool { pool: name, patch } = call {
            let before = self.pools.get(&name).map(|pool| pool.policy.clone());
            let policy = before.clone().unwrap_or_default().with_patch(*patch);
            let policy = policy.map_err(Refusal::Invalid)?;
            if let Some(pool) = self.pools.get_mut(&name) {
                pool.policy = policy.clone();
                while policy.draining
                    && let Some(waiter) = pool.waiters.pop_front()
                {
                    let refusal = pool.no_key(self.now);
                    pool.count_refusal(&refusal);
                    self.replies.push((waiter.slot, refusal.into()));
                }
                pool.events.push(FeedEventKind::PolicyChanged(Box::new(policy)));
            } else {
                self.add_pool(name.clone(), policy);
            }
            let pool = Box::new(self.pools[&name].view(&name));
            return Ok(Reply::Pool { pool, created: before.is_none() });
        }
        if let Call::ListPools { from, limit, filter } = call {
            let is_listed = |name: &PoolName| {
                from.as_ref().is_none_or(|from| from <= name)
                    && filter.as_ref().is_none_or(|filter| filter.allows(name.as_str()))
            };
            let mut listed = self.pools.iter().filter(|(name, _)| is_listed(name));
            let pools = listed.by_ref().take(limit).map(|(name, pool)| pool.view(name)).collect();
            let next = listed.next().map(|(name, _)| name.clone());
            return Ok(Reply::Pools(PoolPage { pools, next }));
        }
        if let Call::DeletePool { pool: name } = call {
            if name == PoolName::default_pool() {
                return Err(Refusal::DefaultPool);
            }
            let mut pool = self.pools.remove(&name).ok_or(Refusal::UnknownPool)?;
            let unknown = |waiter: super::Waiter| (waiter.slot, Refusal::UnknownPool.into());
            self.replies.extend(pool.waiters.drain(..).map(unknown));
            pool.events.push(FeedEventKind::PoolDeleted);
            let counts = pool.counts();
            pool.feed.publish(pool.events, &mut self.last_seq, self.now, counts);
            pool.feed.close();
            return Ok(Reply::Done);
        }
        Err(Refusal::UnknownPool)
    }
}

/// Returns the pool on whose keys a call is executed.
pub(super) fn pool_of(call: &Call) -> Option<PoolName> {
    match call {
        Call::GetPool { pool }
        | Call::Acquire { pool, .. }
        | Call::Subscribe { pool }
        | Call::Import { pool, .. }
        | Call::ListKeys { pool, .. }
        | Call::Reveal { pool, .. }
        | Call::Generate { pool, .. }
        | Call::Release { pool, .. }
        | Call::RevokeUndelivered { pool, .. }
        | Call::Renew { pool, .. }
        | Call::GetKey { pool, .. }
        | Call::SetLabel { pool, .. }
        | Call::ForceRelease { pool, .. }
        | Call::QuarantineKey { pool, .. }
        | Call::EndQuarantine { pool, .. }
        | Call::DeleteKey { pool, .. }
        | Call::KeepAlive { pool, .. }
        | Call::KeepAliveMany { pool, .. }
        | Call::KeepAliveAll { pool } => Some(pool.clone()),
        Call::ListPools { .. }
        | Call::PutPool { .. }
        | Call::PutPoolIf { .. }
        | Call::DeletePool { .. } => None,
    }
}

/// Refuses an import because of its value at `first`, and names all known ones from there on: those
/// that were used before, or occur twice among them.
fn known_values(
    values: &[Secret],
    first: usize,
    mut used: HashSet<Secret>,
) -> Result<Reply, Refusal> {
    let mut known = KnownValues::default();
    for (index, value) in (0..).zip(values).skip(first) {
        if known.indices.is_empty() || !used.insert(value.clone()) {
            if known.indices.len() == KNOWN_MAX {
                known.more = true;
                break;
            }
            known.indices.push(index);
        }
    }
    match known.indices[..] {
        [_] if !known.more => Err(Refusal::KeyExists { index: first }),
        _ => Ok(Reply::Refused(RequestError::KeysExist(Box::new(known)))),
    }
}

fn random_value(policy: &Policy) -> Secret {
    let symbol = |_| {
        let digit = u32::try_from(random() % 36).expect("a digit");
        char::from_digit(digit, 36).expect("a digit of base 36")
    };
    let symbols = (0..policy.key_length).map(symbol);
    let value: String = policy.key_prefix.chars().chain(symbols).collect();
    Secret::new(&value).expect("the policy limits its length")
}
