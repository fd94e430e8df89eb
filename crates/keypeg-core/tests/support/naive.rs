//! The contract of the pools as a naive model: plain lists, searched linearly.
//!
//! Written from the contract, not from `src/`. Time ends everything at once here, while the real
//! pools may still be behind. The model draws no keys and generates no values: it takes them from
//! the real pools' answers after checking them.

use keypeg_core::{
    EndCause, ForceReleased, KeptAlive, KeptAliveMany, KeyCounts, KeyId, KeyNumber, KeyQuarantined,
    KeyRef, KeyState, KeyView, LeaseId, LeaseView, Limits, NewKey, NoKeyCause, Now, OutOfRange,
    Policy, PolicyPatch, PoolId, QuarantineOptions, Refusal, ReleaseOptions, Released,
};
use keypeg_fields::Field;
use std::collections::HashSet;

/// A deadline that never passes.
pub(crate) const NEVER: u64 = u64::MAX;
const WEEK_MS: u64 = 7 * 24 * 3_600 * 1_000;

/// A whole server.
#[derive(Clone, Debug)]
pub(crate) struct Naive {
    pub(crate) limits: Limits,
    pub(crate) pools: Vec<NaivePool>,
    /// Ended leases, oldest first.
    pub(crate) ended: Vec<EndedLease>,
    /// Whether the real pools may not know how a lease ended.
    pub(crate) forgetful: bool,
    created: u64,
}

/// One pool.
#[derive(Clone, Debug)]
pub(crate) struct NaivePool {
    pub(crate) number: PoolId,
    pub(crate) name: String,
    pub(crate) policy: Policy,
    pub(crate) keys: Vec<Key>,
    /// Values whose keys are deleted or purged.
    pub(crate) retired: HashSet<String>,
}

/// One key.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    /// The number of the key among all keys ever created.
    serial: u64,
    pub(crate) id: KeyId,
    pub(crate) value: String,
    label: Option<Box<str>>,
    keepalive: bool,
    created_ms: u64,
    /// When it is purged, in serving time.
    pub(crate) end: u64,
    pub(crate) state: State,
    /// While it is draining, the reason.
    #[expect(clippy::option_option, reason = "no drain, no reason and a reason are three cases")]
    drain: Option<Option<String>>,
}

/// The state of a key.
#[derive(Clone, Debug)]
pub(crate) enum State {
    Available,
    Leased(Lease),
    /// The end, in lease time, and the reason.
    Resting(u64, Option<String>),
    /// The reason.
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
    borrower: Option<&'static str>,
}

/// An ended lease.
#[derive(Clone, Debug)]
pub(crate) struct EndedLease {
    pub(crate) id: LeaseId,
    pub(crate) pool: PoolId,
    serial: u64,
    cause: EndCause,
}

impl Naive {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, pools: vec![], ended: vec![], forgetful: false, created: 0 }
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

    /// Ends everything that is due.
    pub(crate) fn expire(&mut self, now: Now) {
        let ended = &mut self.ended;
        for pool in &mut self.pools {
            let number = pool.number;
            for index in (0..pool.keys.len()).rev() {
                if pool.keys[index].end <= now.serving_us {
                    pool.remove(index, ended);
                    continue;
                }
                let key = &mut pool.keys[index];
                if let State::Leased(lease) = &key.state
                    && lease.until <= now.lease_us
                {
                    let cause = EndCause::Expired;
                    ended.push(EndedLease {
                        id: lease.id,
                        pool: number,
                        serial: key.serial,
                        cause,
                    });
                    let rest = State::Resting(lease.until + lease.rest, None);
                    key.state = key.drain.take().map_or(rest, State::Quarantined);
                }
                if matches!(key.state, State::Resting(until, _) if until <= now.lease_us) {
                    key.state = State::Available;
                }
            }
        }
    }

    /// Restarts the server: every key gets its full keep-alive time.
    pub(crate) fn restart(&mut self, now: Now) {
        for pool in &mut self.pools {
            pool.keep_all_alive(now);
        }
    }

    /// Returns the fields of the policy that this change would leave out of range; a refusal may
    /// name any of them.
    pub(crate) fn invalid_fields(&self, name: &str, patch: &PolicyPatch) -> Vec<&'static str> {
        let policy = self.patched(name, patch);
        let is_valid = |ms: u64| (1..=WEEK_MS).contains(&ms);
        let mut invalid = vec![];
        if !is_valid(policy.lease_ttl_ms) {
            invalid.push("lease_ttl_seconds");
        }
        if policy.max_hold_ms.is_some_and(|ms| !is_valid(ms) || ms < policy.lease_ttl_ms) {
            invalid.push("max_hold_seconds");
        }
        if policy.keepalive_ttl_ms.is_some_and(|ms| !is_valid(ms)) {
            invalid.push("keepalive_ttl_seconds");
        }
        if policy.rest_ms > WEEK_MS {
            invalid.push("rest_seconds");
        }
        if !(20..=128).contains(&policy.key_length) {
            invalid.push("key_length");
        }
        if policy.max_keys == Some(0) {
            invalid.push("max_keys");
        }
        invalid
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
            draining,
        } = patch.clone();
        lease_ttl_ms.inspect(|ms| policy.lease_ttl_ms = *ms);
        max_hold_ms.inspect(|ms| policy.max_hold_ms = *ms);
        keepalive_ttl_ms.inspect(|ms| policy.keepalive_ttl_ms = *ms);
        rest_ms.inspect(|ms| policy.rest_ms = *ms);
        key_length.inspect(|n| policy.key_length = *n);
        max_keys.inspect(|max| policy.max_keys = *max);
        draining.inspect(|draining| policy.draining = *draining);
        if let Some(prefix) = key_prefix {
            policy.key_prefix = prefix;
        }
        policy
    }

    /// Creates a pool or changes its policy; the change is within its ranges.
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

    /// Checks whether the limits allow `count` more keys.
    pub(crate) fn check_room(&self, name: &str, count: u64) -> Result<(), Refusal> {
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

    /// Checks whether these values may be imported, apart from the limits.
    pub(crate) fn check_new(
        &self,
        name: &str,
        values: &[String],
        allow_retired: bool,
    ) -> Result<(), Refusal> {
        let pool = self.pool(name)?;
        let mut seen = HashSet::new();
        for (index, value) in values.iter().enumerate() {
            let exists = pool.keys.iter().any(|key| key.value == *value);
            let is_retired = pool.retired.contains(value) && !allow_retired;
            if exists || is_retired || !seen.insert(value) {
                return Err(Refusal::KeyExists { index });
            }
        }
        Ok(())
    }

    /// Checks and adds keys that the real pools created.
    pub(crate) fn add_keys(&mut self, now: Now, name: &str, keys: &[NewKey], keepalive: bool) {
        let at = self.pool_at(name).expect("a pool");
        let end = if keepalive { self.pools[at].key_end(now) } else { NEVER };
        for new in keys {
            assert!(self.pools[at].keys.iter().all(|key| key.id != new.id), "ids are unique");
            assert_eq!(new.created_at_ms, now.wall_us / 1_000);
            assert_eq!(new.expires_at_ms, wall_of_serving(now, end));
            self.created += 1;
            self.pools[at].keys.push(Key {
                serial: self.created,
                id: new.id,
                value: new.value.reveal().into(),
                label: new.label.clone(),
                keepalive,
                created_ms: new.created_at_ms,
                end,
                state: State::Available,
                drain: None,
            });
        }
    }

    /// Returns the keys that may be drawn, or why there is none.
    pub(crate) fn available_keys(
        &self,
        now: Now,
        name: &str,
        ttl_ms: Option<u64>,
    ) -> Result<Vec<KeyId>, Refusal> {
        let pool = self.pool(name)?;
        pool.ttl(ttl_ms)?;
        let available: Vec<KeyId> = pool
            .keys
            .iter()
            .filter(|key| matches!(key.state, State::Available))
            .map(|key| key.id)
            .collect();
        if !available.is_empty() && !pool.policy.draining {
            return Ok(available);
        }
        let counts = pool.counts();
        let cause = match (counts.total(), counts.leased, counts.resting) {
            _ if pool.policy.draining => NoKeyCause::Draining,
            (0, ..) => NoKeyCause::PoolEmpty,
            (all, ..) if counts.quarantined == all => NoKeyCause::AllQuarantined,
            (all, leased, _) if leased == all => NoKeyCause::AllLeased,
            (all, _, resting) if resting == all => NoKeyCause::AllResting,
            _ => NoKeyCause::NoneFree,
        };
        let next_hold_end = pool.next_hold_end().filter(|_| !pool.policy.draining);
        let next_hold_end_in_ms = next_hold_end.map(|at| (at - now.lease_us).div_ceil(1_000));
        Err(Refusal::NoKey { cause, counts, next_hold_end_in_ms })
    }

    /// Returns the number of a borrower's leases in all pools together.
    pub(crate) fn lease_count(&self, name: &str) -> u64 {
        let keys = self.pools.iter().flat_map(|pool| &pool.keys);
        let has_borrower =
            |key: &&Key| matches!(&key.state, State::Leased(lease) if lease.borrower == Some(name));
        keys.filter(has_borrower).count() as u64
    }

    /// Checks a borrower's limit of leases; a lease without a borrower is not counted.
    pub(crate) fn check_borrower(
        &self,
        (name, ttl_ms): (&str, Option<u64>),
        (borrower, max): (Option<&str>, Option<u32>),
    ) -> Result<(), Refusal> {
        self.pool(name)?.ttl(ttl_ms)?;
        let reached = |name| max.filter(|max| self.lease_count(name) >= u64::from(*max));
        borrower.and_then(reached).map_or(Ok(()), |max| Err(Refusal::TooManyLeases { max }))
    }

    /// Leases the key that the real pools drew; returns the expected lease.
    pub(crate) fn lease_key(
        &mut self,
        now: Now,
        name: &str,
        (actual, ttl_ms): (&LeaseView, Option<u64>),
        (holder, borrower): (Option<&str>, Option<&'static str>),
    ) -> LeaseView {
        let at = self.pool_at(name).expect("a pool");
        let pool = &mut self.pools[at];
        let ttl = pool.ttl(ttl_ms).expect("in range");
        let hold_ms = pool.policy.max_hold_ms.unwrap_or(pool.policy.lease_ttl_ms);
        let lease = Lease {
            id: actual.id,
            token: actual.token,
            granted: now.lease_us,
            until: now.lease_us + ttl,
            latest: now.lease_us + hold_ms * 1_000,
            rest: pool.policy.rest_ms * 1_000,
            holder: holder.map(Into::into),
            borrower,
        };
        let key = pool.keys.iter_mut().find(|key| key.id == actual.key_id).expect("its key");
        key.state = State::Leased(lease);
        key.lease_view(now).expect("just leased")
    }

    pub(crate) fn release(
        &mut self,
        now: Now,
        name: &str,
        id: LeaseId,
        options: &ReleaseOptions,
    ) -> Result<Released, Refusal> {
        self.pool(name)?;
        if options.rest_ms.is_some_and(|ms| ms > WEEK_MS) {
            let field = Field::Seconds(&keypeg_fields::REST);
            return Err(Refusal::Invalid(OutOfRange { field }));
        }
        let (pool, key) = self.running(name, id)?;
        let holder = self.pools[pool].keys[key].holder();
        self.end_lease(now, pool, key, options);
        Ok(Released { holder })
    }

    fn end_lease(&mut self, now: Now, pool: usize, key: usize, options: &ReleaseOptions) {
        let number = self.pools[pool].number;
        let key = &mut self.pools[pool].keys[key];
        let State::Leased(lease) = &key.state else { panic!("only a leased key has a lease") };
        let cause = EndCause::Released;
        self.ended.push(EndedLease { id: lease.id, pool: number, serial: key.serial, cause });
        let rest = options.rest_ms.map_or(lease.rest, |ms| ms * 1_000);
        let reason = options.reason.as_deref().filter(|reason| !reason.is_empty());
        let reason = reason.map(String::from);
        key.state = match (options, key.drain.take()) {
            (ReleaseOptions { quarantine: true, .. }, _) => State::Quarantined(reason),
            (_, Some(reason)) => State::Quarantined(reason),
            _ if rest > 0 => State::Resting(now.lease_us + rest, reason),
            _ => State::Available,
        };
    }

    /// Returns the lease, and whether it ends later than before.
    pub(crate) fn renew(
        &mut self,
        now: Now,
        name: &str,
        id: LeaseId,
        ttl_ms: Option<u64>,
    ) -> Result<(LeaseView, bool), Refusal> {
        let (pool, key) = self.running(name, id)?;
        let ttl = self.pools[pool].ttl(ttl_ms)?;
        let key = &mut self.pools[pool].keys[key];
        let State::Leased(lease) = &mut key.state else { panic!("it runs") };
        let until = lease.latest.min(now.lease_us + ttl);
        if now.lease_us + ttl <= lease.until {
            return Ok((key.lease_view(now).expect("it runs"), false));
        }
        if until <= lease.until {
            let expires_at_ms = wall_of_lease(now, lease.until);
            return Err(Refusal::MaxHoldReached { expires_at_ms });
        }
        lease.until = until;
        Ok((key.lease_view(now).expect("it runs"), true))
    }

    fn running(&self, name: &str, id: LeaseId) -> Result<(usize, usize), Refusal> {
        let pool = self.pool_at(name)?;
        let runs = |key: &Key| matches!(&key.state, State::Leased(lease) if lease.id == id);
        let key = self.pools[pool].keys.iter().position(runs);
        key.map(|key| (pool, key))
            .ok_or_else(|| Refusal::LeaseEnded { cause: self.end_cause(&self.pools[pool], id) })
    }

    pub(crate) fn end_cause(&self, pool: &NaivePool, id: LeaseId) -> Option<EndCause> {
        let ended = self.ended.iter().find(|ended| ended.id == id && ended.pool == pool.number)?;
        let key = pool.keys.iter().find(|key| key.serial == ended.serial);
        Some(match key.map(|key| &key.state) {
            None => EndCause::KeyGone,
            Some(State::Leased(_)) if ended.cause == EndCause::Expired => EndCause::Superseded,
            Some(_) => ended.cause,
        })
    }

    fn find(&self, name: &str, key: &KeyRef) -> Result<(usize, usize), Refusal> {
        let pool = self.pool_at(name)?;
        let is_named = |other: &Key| match key {
            KeyRef::Id(id) => other.id == *id,
            KeyRef::Value(value) => other.value == value.reveal(),
        };
        let key = self.pools[pool].keys.iter().position(is_named).ok_or(Refusal::UnknownKey)?;
        Ok((pool, key))
    }

    pub(crate) fn force_release(
        &mut self,
        now: Now,
        name: &str,
        key: &KeyRef,
    ) -> Result<ForceReleased, Refusal> {
        let (pool, key) = self.find(name, key)?;
        let holder = self.pools[pool].keys[key].holder();
        match self.pools[pool].keys[key].state {
            State::Available => return Ok(ForceReleased::default()),
            State::Leased(_) => self.end_lease(now, pool, key, &ReleaseOptions::default()),
            State::Resting(..) | State::Quarantined(_) => {
                self.pools[pool].keys[key].state = State::Available;
            }
        }
        Ok(ForceReleased { released: true, holder })
    }

    /// Quarantines a key; returns whether that changed anything.
    pub(crate) fn quarantine_key(
        &mut self,
        now: Now,
        name: &str,
        (key, options): (&KeyRef, &QuarantineOptions),
    ) -> Result<(KeyQuarantined, bool), Refusal> {
        let (pool, index) = self.find(name, key)?;
        let key = &mut self.pools[pool].keys[index];
        let before = match &key.state {
            State::Quarantined(reason) => Some(reason.clone()),
            State::Available | State::Leased(_) | State::Resting(..) => key.drain.clone(),
        };
        let given = options.reason.as_deref().filter(|reason| !reason.is_empty());
        let reason = given.map(Into::into).or_else(|| before.clone().flatten());
        let mut holder = None;
        let is_change = if matches!(key.state, State::Leased(_)) && !options.when_free {
            holder = key.holder();
            let reason = reason.as_deref().map(Into::into);
            let options = ReleaseOptions { quarantine: true, reason, ..ReleaseOptions::default() };
            self.end_lease(now, pool, index, &options);
            true
        } else {
            let is_change = before.as_ref() != Some(&reason);
            if matches!(key.state, State::Leased(_)) {
                key.drain = Some(reason);
            } else {
                key.state = State::Quarantined(reason);
            }
            is_change
        };
        let key = self.pools[pool].keys[index].view(now);
        Ok((KeyQuarantined { key, holder }, is_change))
    }

    /// Ends a quarantine, or the draining of a key; returns whether that changed anything.
    pub(crate) fn end_quarantine(
        &mut self,
        now: Now,
        name: &str,
        key: &KeyRef,
    ) -> Result<(KeyView, bool), Refusal> {
        let (pool, key) = self.find(name, key)?;
        let key = &mut self.pools[pool].keys[key];
        let mut is_change = key.drain.take().is_some();
        if let State::Quarantined(_) = key.state {
            (key.state, is_change) = (State::Available, true);
        }
        Ok((key.view(now), is_change))
    }

    pub(crate) fn keep_alive(
        &mut self,
        now: Now,
        name: &str,
        key: &KeyRef,
    ) -> Result<KeptAlive, Refusal> {
        let (pool, key) = self.find(name, key)?;
        let end = self.pools[pool].key_end(now);
        let key = &mut self.pools[pool].keys[key];
        if key.keepalive {
            key.end = end;
        }
        Ok(KeptAlive { id: key.id, expires_at_ms: wall_of_serving(now, key.end) })
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
        pool.keep_all_alive(now);
        Ok(pool.keys.len() as u64)
    }

    pub(crate) fn delete(&mut self, name: &str, key: &KeyRef) -> Result<Released, Refusal> {
        let (pool, key) = self.find(name, key)?;
        let holder = self.pools[pool].keys[key].holder();
        self.pools[pool].remove(key, &mut self.ended);
        Ok(Released { holder })
    }

    /// Gives a key a label; returns whether that changed anything.
    pub(crate) fn set_label(
        &mut self,
        now: Now,
        name: &str,
        (key, label): (&KeyRef, Option<&str>),
    ) -> Result<(KeyView, bool), Refusal> {
        let (pool, key) = self.find(name, key)?;
        let key = &mut self.pools[pool].keys[key];
        let label = label.filter(|label| !label.is_empty());
        let is_change = key.label.as_deref() != label;
        key.label = label.map(Into::into);
        Ok((key.view(now), is_change))
    }

    pub(crate) fn list(
        &self,
        now: Now,
        name: &str,
        (state, label): (Option<KeyState>, Option<&str>),
    ) -> Vec<KeyView> {
        let keys = &self.pool(name).expect("a pool").keys;
        let views = keys.iter().map(|key| key.view(now));
        let in_state = views.filter(|view| state.is_none_or(|state| view.state == state));
        in_state.filter(|view| label.is_none() || view.label.as_deref() == label).collect()
    }

    pub(crate) fn get_key(&self, now: Now, name: &str, key: &KeyRef) -> Result<KeyView, Refusal> {
        let (pool, key) = self.find(name, key)?;
        Ok(self.pools[pool].keys[key].view(now))
    }
}

impl NaivePool {
    fn key_end(&self, now: Now) -> u64 {
        self.policy.keepalive_ttl_ms.map_or(NEVER, |ms| now.serving_us + ms * 1_000)
    }

    fn keep_all_alive(&mut self, now: Now) {
        let end = self.key_end(now);
        self.keys.iter_mut().filter(|key| key.keepalive).for_each(|key| key.end = end);
    }

    /// Returns the requested TTL in microseconds.
    fn ttl(&self, ms: Option<u64>) -> Result<u64, Refusal> {
        let ms = ms.unwrap_or(self.policy.lease_ttl_ms);
        if ms == 0 || ms > self.policy.lease_ttl_ms {
            let field = Field::Seconds(&keypeg_fields::TTL);
            return Err(Refusal::Invalid(OutOfRange { field }));
        }
        Ok(ms * 1_000)
    }

    fn remove(&mut self, index: usize, ended: &mut Vec<EndedLease>) {
        let Key { serial, value, state, .. } = self.keys.remove(index);
        if let State::Leased(lease) = state {
            let cause = EndCause::KeyGone;
            ended.push(EndedLease { id: lease.id, pool: self.number, serial, cause });
        }
        self.retired.insert(value);
    }

    pub(crate) fn counts(&self) -> KeyCounts {
        let mut counts = KeyCounts::default();
        for key in &self.keys {
            match key.state {
                State::Available => counts.available += 1,
                State::Leased(_) => counts.leased += 1,
                State::Resting(..) => counts.resting += 1,
                State::Quarantined(_) => counts.quarantined += 1,
            }
            counts.draining += u64::from(key.drain.is_some());
        }
        counts
    }

    pub(crate) fn next_hold_end(&self) -> Option<u64> {
        self.keys.iter().filter_map(Key::hold_end).min()
    }

    pub(crate) fn next_purge(&self) -> Option<u64> {
        self.keys.iter().map(|key| key.end).filter(|end| *end != NEVER).min()
    }
}

impl Key {
    fn holder(&self) -> Option<Box<str>> {
        let State::Leased(lease) = &self.state else { return None };
        lease.holder.as_deref().map(Into::into)
    }

    pub(crate) fn hold_end(&self) -> Option<u64> {
        match &self.state {
            State::Available | State::Quarantined(_) => None,
            State::Leased(lease) => Some(lease.until),
            State::Resting(until, _) => Some(*until),
        }
    }

    fn view(&self, now: Now) -> KeyView {
        let (state, rests_until_ms, reason) = match &self.state {
            State::Available => (KeyState::Available, None, &None),
            State::Leased(_) => (KeyState::Leased, None, self.drain.as_ref().unwrap_or(&None)),
            State::Resting(until, reason) => {
                (KeyState::Resting, Some(wall_of_lease(now, *until)), reason)
            }
            State::Quarantined(reason) => (KeyState::Quarantined, None, reason),
        };
        KeyView {
            id: self.id,
            number: KeyNumber(self.serial),
            state,
            label: self.label.clone(),
            created_at_ms: self.created_ms,
            expires_at_ms: wall_of_serving(now, self.end),
            rests_until_ms,
            draining: self.drain.is_some(),
            reason: reason.as_deref().map(Into::into),
            keepalive: self.keepalive,
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
            label: self.label.clone(),
            granted_at_ms: wall_of_lease(now, lease.granted),
            expires_at_ms: wall_of_lease(now, lease.until),
            expires_in_ms: (lease.until - now.lease_us) / 1_000,
            key_expires_at_ms: wall_of_serving(now, self.end),
        })
    }
}

fn wall_of_lease(now: Now, at: u64) -> u64 {
    (now.wall_us + at - now.lease_us) / 1_000
}

fn wall_of_serving(now: Now, at: u64) -> Option<u64> {
    (at != NEVER).then(|| (now.wall_us + at - now.serving_us) / 1_000)
}
