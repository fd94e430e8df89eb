//! The pools as the contract tells them, without any cleverness: plain lists, walked every time.
//!
//! Written from the contract, not from `src/`. Time ends everything at once here, so whatever the
//! real pools have not got round to yet is already over. It draws nothing and makes no values:
//! those it takes from the real pools' answers, after judging them.

use keypeg_core::{
    EndCause, KeptAlive, KeptAliveMany, KeyCounts, KeyId, KeyRef, KeyState, KeyView, LeaseId,
    LeaseView, Limits, NewKey, NoKeyCause, Now, OutOfRange, Policy, PolicyPatch, PoolId, Refusal,
    ReleaseOptions,
};
use std::collections::HashSet;

/// A deadline that never comes.
pub(crate) const NEVER: u64 = u64::MAX;
const WEEK_MS: u64 = 7 * 24 * 3_600 * 1_000;

/// A whole server.
#[derive(Clone, Debug)]
pub(crate) struct Naive {
    pub(crate) limits: Limits,
    pub(crate) pools: Vec<NaivePool>,
    /// Leases that are over, oldest first.
    pub(crate) past: Vec<Past>,
    /// Whether how a lease ended may have been forgotten.
    pub(crate) forgetful: bool,
    made: u64,
}

/// One pool.
#[derive(Clone, Debug)]
pub(crate) struct NaivePool {
    pub(crate) number: PoolId,
    pub(crate) name: String,
    pub(crate) policy: Policy,
    pub(crate) keys: Vec<Key>,
    /// PackedValues that were brought in and are gone.
    pub(crate) retired: HashSet<String>,
}

/// One key.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    /// Which one of all keys ever made.
    serial: u64,
    pub(crate) id: KeyId,
    pub(crate) value: String,
    imported: bool,
    created_ms: u64,
    /// When it is purged, in serving time.
    pub(crate) life: u64,
    pub(crate) state: State,
}

/// Where a key stands.
#[derive(Clone, Debug)]
pub(crate) enum State {
    Free,
    Leased(Lease),
    /// Until when, in lease time, and why.
    Resting(u64, Option<String>),
    /// Why.
    Quarantined(Option<String>),
}

/// A running lease; instants in lease time.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) id: LeaseId,
    pub(crate) token: u64,
    granted: u64,
    pub(crate) until: u64,
    latest: u64,
    rest: u64,
    holder: Option<String>,
    by: Option<&'static str>,
}

/// A lease that is over.
#[derive(Clone, Debug)]
pub(crate) struct Past {
    pub(crate) id: LeaseId,
    pub(crate) pool: PoolId,
    serial: u64,
    how: EndCause,
}

impl Naive {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, pools: vec![], past: vec![], forgetful: false, made: 0 }
    }

    pub(crate) fn pool(&self, name: &str) -> Result<&NaivePool, Refusal> {
        self.pools.iter().find(|pool| pool.name == name).ok_or(Refusal::UnknownPool)
    }

    fn pool_at(&self, name: &str) -> Result<usize, Refusal> {
        self.pools.iter().position(|pool| pool.name == name).ok_or(Refusal::UnknownPool)
    }

    pub(crate) fn keys(&self) -> u64 {
        self.pools.iter().map(|pool| pool.keys.len() as u64).sum()
    }

    /// Ends all that is due.
    pub(crate) fn settle(&mut self, now: Now) {
        let past = &mut self.past;
        for pool in &mut self.pools {
            let number = pool.number;
            for at in (0..pool.keys.len()).rev() {
                if pool.keys[at].life <= now.serving_us {
                    pool.lose(at, past);
                    continue;
                }
                let key = &mut pool.keys[at];
                if let State::Leased(lease) = &key.state
                    && lease.until <= now.lease_us
                {
                    let how = EndCause::Expired;
                    past.push(Past { id: lease.id, pool: number, serial: key.serial, how });
                    key.state = State::Resting(lease.until + lease.rest, None);
                }
                if matches!(key.state, State::Resting(until, _) if until <= now.lease_us) {
                    key.state = State::Free;
                }
            }
        }
    }

    /// A start of the server: every key has its full time again.
    pub(crate) fn restart(&mut self, now: Now) {
        for pool in &mut self.pools {
            let life = pool.life_from(now);
            pool.keys.iter_mut().for_each(|key| key.life = life);
        }
    }

    /// Tells which fields of the policy this change would leave out of range; an answer naming
    /// any of them is right.
    pub(crate) fn wrong_fields(&self, name: &str, patch: &PolicyPatch) -> Vec<&'static str> {
        let policy = self.patched(name, patch);
        let ok = |ms: u64| (1..=WEEK_MS).contains(&ms);
        let mut wrong = vec![];
        if !ok(policy.lease_ttl_ms) {
            wrong.push("lease_ttl_seconds");
        }
        if policy.max_hold_ms.is_some_and(|ms| !ok(ms) || ms < policy.lease_ttl_ms) {
            wrong.push("max_hold_seconds");
        }
        if policy.keepalive_ttl_ms.is_some_and(|ms| !ok(ms)) {
            wrong.push("keepalive_ttl_seconds");
        }
        if policy.rest_ms > WEEK_MS {
            wrong.push("rest_seconds");
        }
        if !(16..=128).contains(&policy.key_length) {
            wrong.push("key_length");
        }
        if policy.max_keys == Some(0) {
            wrong.push("max_keys");
        }
        wrong
    }

    fn patched(&self, name: &str, patch: &PolicyPatch) -> Policy {
        let mut policy = self.pool(name).map_or_else(|_| Policy::default(), |p| p.policy.clone());
        let PolicyPatch {
            lease_ttl_ms,
            max_hold_ms,
            keepalive_ttl_ms,
            rest_ms,
            key_length,
            key_prefix,
            max_keys,
        } = patch.clone();
        lease_ttl_ms.inspect(|ms| policy.lease_ttl_ms = *ms);
        max_hold_ms.inspect(|ms| policy.max_hold_ms = *ms);
        keepalive_ttl_ms.inspect(|ms| policy.keepalive_ttl_ms = *ms);
        rest_ms.inspect(|ms| policy.rest_ms = *ms);
        key_length.inspect(|n| policy.key_length = *n);
        max_keys.inspect(|max| policy.max_keys = *max);
        if let Some(prefix) = key_prefix {
            policy.key_prefix = prefix;
        }
        policy
    }

    /// Makes a pool or changes its policy; the change is within its ranges.
    pub(crate) fn put(&mut self, name: &str, patch: &PolicyPatch) -> Result<bool, Refusal> {
        let policy = self.patched(name, patch);
        if let Ok(at) = self.pool_at(name) {
            self.pools[at].policy = policy;
            return Ok(false);
        }
        if self.pools.len() == self.limits.pools {
            return Err(Refusal::TooManyPools { max: self.limits.pools });
        }
        let (keys, retired) = (vec![], HashSet::new());
        self.pools.push(NaivePool { number: PoolId(0), name: name.into(), policy, keys, retired });
        Ok(true)
    }

    pub(crate) fn remove(&mut self, name: &str) -> Result<(), Refusal> {
        if name == "default" {
            return Err(Refusal::DefaultPool);
        }
        let at = self.pool_at(name)?;
        self.pools.remove(at);
        Ok(())
    }

    /// Whether so many more keys may come.
    pub(crate) fn room(&self, name: &str, count: u64) -> Result<(), Refusal> {
        let pool = self.pool(name)?;
        if let Some(max) = pool.policy.max_keys
            && pool.keys.len() as u64 + count > max
        {
            return Err(Refusal::PoolFull { max, of_server: false });
        }
        let max = self.limits.keys;
        if self.keys() + count > max {
            return Err(Refusal::PoolFull { max, of_server: true });
        }
        Ok(())
    }

    /// Whether these values may be brought in, room aside.
    pub(crate) fn new_to(&self, name: &str, values: &[String]) -> Result<(), Refusal> {
        let pool = self.pool(name)?;
        let mut before = HashSet::new();
        for (index, value) in values.iter().enumerate() {
            let here = pool.keys.iter().any(|key| key.value == *value);
            if here || pool.retired.contains(value) || !before.insert(value) {
                return Err(Refusal::KeyExists { index });
            }
        }
        Ok(())
    }

    /// Takes keys that the real pools made, having judged them.
    pub(crate) fn take_in(&mut self, now: Now, name: &str, keys: &[NewKey], imported: bool) {
        let at = self.pool_at(name).expect("it was there");
        let life = self.pools[at].life_from(now);
        for new in keys {
            assert!(self.pools[at].keys.iter().all(|key| key.id != new.id), "an id comes twice");
            assert_eq!(new.created_at_ms, now.wall_us / 1_000);
            assert_eq!(new.expires_at_ms, wall_of_serving(now, life));
            self.made += 1;
            self.pools[at].keys.push(Key {
                serial: self.made,
                id: new.id,
                value: new.value.reveal().into(),
                imported,
                created_ms: new.created_at_ms,
                life,
                state: State::Free,
            });
        }
    }

    /// The keys that may be drawn, or why there is none.
    pub(crate) fn free_keys(
        &self,
        now: Now,
        name: &str,
        ttl_ms: Option<u64>,
    ) -> Result<Vec<KeyId>, Refusal> {
        let pool = self.pool(name)?;
        pool.ttl(ttl_ms)?;
        let free: Vec<KeyId> = pool
            .keys
            .iter()
            .filter(|key| matches!(key.state, State::Free))
            .map(|key| key.id)
            .collect();
        if !free.is_empty() {
            return Ok(free);
        }
        let counts = pool.counts();
        let cause = match (counts.total(), counts.leased, counts.resting) {
            (0, ..) => NoKeyCause::PoolEmpty,
            (all, ..) if counts.quarantined == all => NoKeyCause::AllQuarantined,
            (all, leased, _) if leased == all => NoKeyCause::AllLeased,
            (all, _, resting) if resting == all => NoKeyCause::AllResting,
            _ => NoKeyCause::NoneFree,
        };
        let next_hold_end_in_ms = pool.next_return().map(|at| (at - now.lease_us).div_ceil(1_000));
        Err(Refusal::NoKey { cause, counts, next_hold_end_in_ms })
    }

    /// How many leases run in this name, in all pools together.
    pub(crate) fn borrowed(&self, name: &str) -> u64 {
        let keys = self.pools.iter().flat_map(|pool| &pool.keys);
        let of = |key: &&Key| matches!(&key.state, State::Leased(l) if l.by == Some(name));
        keys.filter(of).count() as u64
    }

    /// Why a key may not be lent in this name, which may have `max` leases; nobody's is not counted.
    pub(crate) fn may_borrow(
        &self,
        (name, ttl_ms): (&str, Option<u64>),
        (by, max): (Option<&str>, Option<u32>),
    ) -> Result<(), Refusal> {
        self.pool(name)?.ttl(ttl_ms)?;
        let full = |by| max.filter(|max| self.borrowed(by) >= u64::from(*max));
        by.and_then(full).map_or(Ok(()), |max| Err(Refusal::TooManyLeases { max }))
    }

    /// Takes the real pools' word for which key was drawn; gives what the lease must look like.
    pub(crate) fn lend(
        &mut self,
        now: Now,
        name: &str,
        (told, ttl_ms): (&LeaseView, Option<u64>),
        (holder, by): (Option<&str>, Option<&'static str>),
    ) -> LeaseView {
        let at = self.pool_at(name).expect("it was there");
        let pool = &mut self.pools[at];
        let ttl = pool.ttl(ttl_ms).expect("it was in range");
        let hold_ms = pool.policy.max_hold_ms.unwrap_or(pool.policy.lease_ttl_ms);
        let lease = Lease {
            id: told.id,
            token: told.token,
            granted: now.lease_us,
            until: now.lease_us + ttl,
            latest: now.lease_us + hold_ms * 1_000,
            rest: pool.policy.rest_ms * 1_000,
            holder: holder.map(Into::into),
            by,
        };
        let key = pool.keys.iter_mut().find(|key| key.id == told.key_id).expect("a key of it");
        key.state = State::Leased(lease);
        key.lease_view(now).expect("just lent")
    }

    pub(crate) fn release(
        &mut self,
        now: Now,
        name: &str,
        id: LeaseId,
        verdict: &ReleaseOptions,
    ) -> Result<(), Refusal> {
        self.pool(name)?;
        if verdict.rest_ms.is_some_and(|ms| ms > WEEK_MS) {
            let (field, allowed) = ("rest_seconds", "0, or 0.001..604800");
            return Err(Refusal::Invalid(OutOfRange { field, allowed }));
        }
        let (pool, key) = self.running(name, id)?;
        self.give_back(now, pool, key, verdict);
        Ok(())
    }

    fn give_back(&mut self, now: Now, pool: usize, key: usize, verdict: &ReleaseOptions) {
        let number = self.pools[pool].number;
        let key = &mut self.pools[pool].keys[key];
        let State::Leased(lease) = &key.state else { panic!("only a leased key is given back") };
        let how = EndCause::Released;
        self.past.push(Past { id: lease.id, pool: number, serial: key.serial, how });
        let rest = verdict.rest_ms.map_or(lease.rest, |ms| ms * 1_000);
        let why = verdict.reason.as_deref().filter(|why| !why.is_empty()).map(String::from);
        key.state = match verdict {
            ReleaseOptions { quarantine: true, .. } => State::Quarantined(why),
            _ if rest > 0 => State::Resting(now.lease_us + rest, why),
            _ => State::Free,
        };
    }

    pub(crate) fn renew(
        &mut self,
        now: Now,
        name: &str,
        id: LeaseId,
        ttl_ms: Option<u64>,
    ) -> Result<LeaseView, Refusal> {
        let (pool, key) = self.running(name, id)?;
        let ttl = self.pools[pool].ttl(ttl_ms)?;
        let key = &mut self.pools[pool].keys[key];
        let State::Leased(lease) = &mut key.state else { panic!("it runs") };
        let until = lease.latest.min(now.lease_us + ttl);
        if until <= lease.until {
            let expires_at_ms = wall_of_lease(now, lease.until);
            return Err(Refusal::MaxHoldReached { expires_at_ms });
        }
        lease.until = until;
        Ok(key.lease_view(now).expect("it runs"))
    }

    fn running(&self, name: &str, id: LeaseId) -> Result<(usize, usize), Refusal> {
        let pool = self.pool_at(name)?;
        let runs = |key: &Key| matches!(&key.state, State::Leased(lease) if lease.id == id);
        let key = self.pools[pool].keys.iter().position(runs);
        key.map(|key| (pool, key))
            .ok_or_else(|| Refusal::LeaseEnded { cause: self.how_ended(&self.pools[pool], id) })
    }

    pub(crate) fn how_ended(&self, pool: &NaivePool, id: LeaseId) -> Option<EndCause> {
        let past = self.past.iter().find(|past| past.id == id && past.pool == pool.number)?;
        let key = pool.keys.iter().find(|key| key.serial == past.serial);
        Some(match key.map(|key| &key.state) {
            None => EndCause::KeyGone,
            Some(State::Leased(_)) if past.how == EndCause::Expired => EndCause::Superseded,
            Some(_) => past.how,
        })
    }

    fn find(&self, name: &str, key: &KeyRef) -> Result<(usize, usize), Refusal> {
        let pool = self.pool_at(name)?;
        let is = |one: &Key| match key {
            KeyRef::Id(id) => one.id == *id,
            KeyRef::Value(value) => one.value == value.reveal(),
        };
        let key = self.pools[pool].keys.iter().position(is).ok_or(Refusal::UnknownKey)?;
        Ok((pool, key))
    }

    pub(crate) fn force_release(
        &mut self,
        now: Now,
        name: &str,
        key: &KeyRef,
    ) -> Result<bool, Refusal> {
        let (pool, key) = self.find(name, key)?;
        match self.pools[pool].keys[key].state {
            State::Free => return Ok(false),
            State::Leased(_) => self.give_back(now, pool, key, &ReleaseOptions::default()),
            State::Resting(..) | State::Quarantined(_) => {
                self.pools[pool].keys[key].state = State::Free;
            }
        }
        Ok(true)
    }

    pub(crate) fn keep_alive(
        &mut self,
        now: Now,
        name: &str,
        key: &KeyRef,
    ) -> Result<KeptAlive, Refusal> {
        let (pool, key) = self.find(name, key)?;
        let life = self.pools[pool].life_from(now);
        let key = &mut self.pools[pool].keys[key];
        key.life = life;
        Ok(KeptAlive { id: key.id, expires_at_ms: wall_of_serving(now, life) })
    }

    pub(crate) fn keep_alive_many(
        &mut self,
        now: Now,
        name: &str,
        ids: &[KeyId],
    ) -> Result<KeptAliveMany, Refusal> {
        self.pool(name)?;
        let (mut kept, mut missing) = (HashSet::new(), vec![]);
        for &id in ids {
            if self.keep_alive(now, name, &KeyRef::Id(id)).is_ok() {
                kept.insert(id);
            } else if !missing.contains(&id) {
                missing.push(id);
            }
        }
        Ok(KeptAliveMany { kept: kept.len() as u64, missing })
    }

    pub(crate) fn keep_alive_all(&mut self, now: Now, name: &str) -> Result<u64, Refusal> {
        let at = self.pool_at(name)?;
        let pool = &mut self.pools[at];
        let life = pool.life_from(now);
        pool.keys.iter_mut().for_each(|key| key.life = life);
        Ok(pool.keys.len() as u64)
    }

    pub(crate) fn delete(&mut self, name: &str, key: &KeyRef) -> Result<(), Refusal> {
        let (pool, key) = self.find(name, key)?;
        self.pools[pool].lose(key, &mut self.past);
        Ok(())
    }

    pub(crate) fn list(&self, now: Now, name: &str, state: Option<KeyState>) -> Vec<KeyView> {
        let keys = &self.pool(name).expect("it answered").keys;
        let views = keys.iter().map(|key| key.view(now));
        views.filter(|view| state.is_none_or(|state| view.state == state)).collect()
    }

    pub(crate) fn show(&self, now: Now, name: &str, key: &KeyRef) -> Result<KeyView, Refusal> {
        let (pool, key) = self.find(name, key)?;
        Ok(self.pools[pool].keys[key].view(now))
    }
}

impl NaivePool {
    fn life_from(&self, now: Now) -> u64 {
        self.policy.keepalive_ttl_ms.map_or(NEVER, |ms| now.serving_us + ms * 1_000)
    }

    /// A length asked for, in microseconds.
    fn ttl(&self, ms: Option<u64>) -> Result<u64, Refusal> {
        let ms = ms.unwrap_or(self.policy.lease_ttl_ms);
        if ms == 0 || ms > self.policy.lease_ttl_ms {
            let (field, allowed) = ("ttl_seconds", "0.001..lease_ttl_seconds of the pool");
            return Err(Refusal::Invalid(OutOfRange { field, allowed }));
        }
        Ok(ms * 1_000)
    }

    fn lose(&mut self, at: usize, past: &mut Vec<Past>) {
        let Key { serial, value, imported, state, .. } = self.keys.remove(at);
        if let State::Leased(lease) = state {
            past.push(Past { id: lease.id, pool: self.number, serial, how: EndCause::KeyGone });
        }
        if imported {
            self.retired.insert(value);
        }
    }

    pub(crate) fn counts(&self) -> KeyCounts {
        let mut counts = KeyCounts::default();
        for key in &self.keys {
            match key.state {
                State::Free => counts.available += 1,
                State::Leased(_) => counts.leased += 1,
                State::Resting(..) => counts.resting += 1,
                State::Quarantined(_) => counts.quarantined += 1,
            }
        }
        counts
    }

    pub(crate) fn next_return(&self) -> Option<u64> {
        self.keys.iter().filter_map(Key::comes_back).min()
    }

    pub(crate) fn next_purge(&self) -> Option<u64> {
        self.keys.iter().map(|key| key.life).filter(|life| *life != NEVER).min()
    }
}

impl Key {
    pub(crate) fn comes_back(&self) -> Option<u64> {
        match &self.state {
            State::Free | State::Quarantined(_) => None,
            State::Leased(lease) => Some(lease.until),
            State::Resting(until, _) => Some(*until),
        }
    }

    fn view(&self, now: Now) -> KeyView {
        let (state, rests, why) = match &self.state {
            State::Free => (KeyState::Available, None, &None),
            State::Leased(_) => (KeyState::Leased, None, &None),
            State::Resting(until, why) => {
                (KeyState::Resting, Some(wall_of_lease(now, *until)), why)
            }
            State::Quarantined(why) => (KeyState::Quarantined, None, why),
        };
        KeyView {
            id: self.id,
            state,
            created_at_ms: self.created_ms,
            expires_at_ms: wall_of_serving(now, self.life),
            rests_until_ms: rests,
            reason: why.as_deref().map(Into::into),
            lease: self.lease_view(now),
        }
    }

    fn lease_view(&self, now: Now) -> Option<LeaseView> {
        let State::Leased(lease) = &self.state else { return None };
        Some(LeaseView {
            id: lease.id,
            key_id: self.id,
            token: lease.token,
            holder: lease.holder.as_deref().map(Into::into),
            granted_at_ms: wall_of_lease(now, lease.granted),
            expires_at_ms: wall_of_lease(now, lease.until),
            expires_in_ms: (lease.until - now.lease_us) / 1_000,
            key_expires_at_ms: wall_of_serving(now, self.life),
        })
    }
}

fn wall_of_lease(now: Now, at: u64) -> u64 {
    (now.wall_us + at - now.lease_us) / 1_000
}

fn wall_of_serving(now: Now, at: u64) -> Option<u64> {
    (at != NEVER).then(|| (now.wall_us + at - now.serving_us) / 1_000)
}
