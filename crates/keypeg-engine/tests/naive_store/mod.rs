//! A throw-away store for tests: it answers the requests of a lane from plain lists in memory.
//!
//! Written from the contract of keypeg-store, not from the engine. Nothing is durable and each
//! operation is O(n). It refuses the calls that it does not know as overloaded: Idempotency-Keys and
//! subscriptions. It keeps no retired values and has no limit of waiters.

mod views;

use keypeg_core::{
    EndCause, KeyId, KeyPage, KeyRef, KeyState, KeyView, LeaseId, LeaseView, NewKey, Policy,
    PoolName, Refusal, ReleaseOptions, Secret,
};
use keypeg_store::{Call, CallSlot, EngineLane, LaneItem, Principal, Reply, Request, RequestError};
use std::collections::{BTreeMap, VecDeque};

/// A call: the index of its lane, and its slot there.
type CallId = (usize, CallSlot);

/// The store.
#[derive(Default)]
pub(crate) struct NaiveStore {
    /// Lease time, serving time and wall time, in milliseconds: in memory they are one clock.
    pub(crate) now: u64,
    /// The last id, of keys and leases alike, and the last token.
    last: u64,
    pools: BTreeMap<PoolName, NaivePool>,
    replies: Vec<(CallId, Reply)>,
}

#[derive(Default)]
struct NaivePool {
    policy: Policy,
    keys: Vec<Key>,
    waiters: VecDeque<Waiter>,
    /// Leases that ended, with their key.
    ended: Vec<(LeaseId, KeyId, EndCause)>,
}

struct Key {
    id: KeyId,
    value: Secret,
    created_at: u64,
    purge_at: Option<u64>,
    state: State,
    reason: Option<Box<str>>,
}

#[derive(Clone)]
enum State {
    Available,
    Leased(Lease),
    Resting(u64),
    Quarantined,
}

#[derive(Clone)]
struct Lease {
    token: u64,
    holder: Option<Box<str>>,
    by: Principal,
    granted_at: u64,
    until: u64,
    hold_until: u64,
    rest: u64,
}

struct Waiter {
    slot: CallId,
    terms: Terms,
    since: u64,
    until: u64,
}

#[derive(Clone)]
struct Terms {
    by: Principal,
    ttl_ms: Option<u64>,
    holder: Option<Box<str>>,
}

impl NaiveStore {
    pub(crate) fn new() -> Self {
        let pools = [(PoolName::default_pool(), NaivePool::default())].into();
        Self { pools, ..Self::default() }
    }

    /// Answers all that the lanes have queued.
    pub(crate) fn run(&mut self, lanes: &mut [EngineLane]) {
        let mut items = Vec::new();
        for (index, lane) in lanes.iter_mut().enumerate() {
            lane.take(|slot, item| items.push(((index, slot), item)));
        }
        self.expire();
        for (slot, item) in items {
            match item {
                LaneItem::Request(request) => {
                    if let Some(reply) = self.execute(slot, request) {
                        self.replies.push((slot, reply));
                    }
                }
                LaneItem::Abandoned => self.abandon(slot),
            }
            self.grant_to_waiters();
        }
        for ((index, slot), reply) in self.replies.drain(..) {
            lanes[index].answer(slot, reply);
        }
        lanes.iter_mut().for_each(EngineLane::flush);
    }

    fn abandon(&mut self, slot: CallId) {
        for pool in self.pools.values_mut() {
            let before = pool.waiters.len();
            pool.waiters.retain(|waiter| waiter.slot != slot);
            if pool.waiters.len() < before {
                self.replies.push((slot, Reply::Done));
            }
        }
    }

    fn expire(&mut self) {
        let now = self.now;
        for pool in self.pools.values_mut() {
            for key in &mut pool.keys {
                if let State::Leased(lease) = &key.state
                    && lease.until <= now
                {
                    pool.ended.push((LeaseId(lease.token.into()), key.id, EndCause::Expired));
                    key.state = State::Resting(lease.until + lease.rest);
                }
                if matches!(key.state, State::Resting(until) if until <= now) {
                    (key.state, key.reason) = (State::Available, None);
                }
            }
            pool.remove_keys(|key| key.purge_at.is_some_and(|at| at <= now));
        }
        self.grant_to_waiters();
        for pool in self.pools.values_mut() {
            while let Some(index) = pool.waiters.iter().position(|waiter| waiter.until <= now) {
                let waiter = pool.waiters.remove(index).expect("found");
                let refusal = pool.no_key(now);
                self.replies.push((waiter.slot, refusal.into()));
            }
        }
    }

    fn grant_to_waiters(&mut self) {
        for name in self.pools.keys().cloned().collect::<Vec<_>>() {
            loop {
                let pool = self.pools.get_mut(&name).expect("listed");
                if !pool.has_available() {
                    break;
                }
                let Some(waiter) = pool.waiters.pop_front() else { break };
                let waited_ms = self.now - waiter.since;
                let reply = self.grant(&name, &waiter.terms, waited_ms).unwrap_or_else(Reply::from);
                self.replies.push((waiter.slot, reply));
            }
        }
    }

    /// Leases the first available key: the contract asks for a random one, which no script sees.
    fn grant(&mut self, name: &PoolName, terms: &Terms, waited_ms: u64) -> Result<Reply, Refusal> {
        let now = self.now;
        if !self.pools.contains_key(name) {
            return Err(Refusal::UnknownPool);
        }
        if let Some(max) = terms.by.borrower().max() {
            let keys = self.pools.values().flat_map(|pool| &pool.keys);
            let is_theirs = |key: &&Key| matches!(&key.state, State::Leased(of) if of.by.name() == terms.by.name());
            if keys.filter(is_theirs).count() >= max as usize {
                return Err(Refusal::TooManyLeases { max });
            }
        }
        let pool = self.pools.get_mut(name).ok_or(Refusal::UnknownPool)?;
        let ttl = pool.policy.lease_ttl(terms.ttl_ms).map_err(Refusal::Invalid)?;
        let hold = pool.policy.max_hold_ms.unwrap_or(pool.policy.lease_ttl_ms);
        let rest = pool.policy.rest_ms;
        let refusal = pool.no_key(now);
        let available = |key: &&mut Key| matches!(key.state, State::Available);
        let key = pool.keys.iter_mut().find(available).ok_or(refusal)?;
        self.last += 1;
        let lease = Lease {
            token: self.last,
            holder: terms.holder.clone(),
            by: terms.by.clone(),
            granted_at: now,
            until: now + ttl,
            hold_until: now + hold,
            rest,
        };
        let view = lease_view(key, &lease, now);
        key.state = State::Leased(lease);
        Ok(Reply::Granted {
            pool: name.clone(),
            lease: Box::new(view),
            value: key.value.clone(),
            waited_ms,
            redelivered: false,
        })
    }

    /// Executes a call; `None` when it waits.
    fn execute(&mut self, slot: CallId, Request { by, call }: Request) -> Option<Reply> {
        if let Call::Acquire { pool, ttl_ms, holder, wait_ms } = call {
            let terms = Terms { by, ttl_ms, holder };
            let reply = self.grant(&pool, &terms, 0);
            if wait_ms > 0 && matches!(reply, Err(Refusal::NoKey { .. })) {
                let (since, until) = (self.now, self.now + wait_ms);
                let pool = self.pools.get_mut(&pool).expect("it refused with no key");
                pool.waiters.push_back(Waiter { slot, terms, since, until });
                return None;
            }
            return Some(reply.unwrap_or_else(Reply::from));
        }
        Some(self.execute_now(call).unwrap_or_else(Reply::from))
    }

    fn execute_now(&mut self, call: Call) -> Result<Reply, Refusal> {
        let now = self.now;
        if let Call::PutPool { pool: name, patch } = call {
            let before = self.pools.get(&name).map(|pool| pool.policy.clone());
            let policy = before.clone().unwrap_or_default().with_patch(patch);
            let pool = self.pools.entry(name.clone()).or_default();
            pool.policy = policy.map_err(Refusal::Invalid)?;
            let view = Box::new(pool.view(&name));
            return Ok(Reply::Pool { pool: view, created: before.is_none() });
        }
        if matches!(call, Call::ListPools) {
            let views = self.pools.iter().map(|(name, pool)| pool.view(name));
            return Ok(Reply::Pools(views.collect()));
        }
        if let Call::DeletePool { pool: name } = call {
            if name == PoolName::default_pool() {
                return Err(Refusal::DefaultPool);
            }
            let pool = self.pools.remove(&name).ok_or(Refusal::UnknownPool)?;
            let unknown = |waiter: Waiter| (waiter.slot, Reply::from(Refusal::UnknownPool));
            self.replies.extend(pool.waiters.into_iter().map(unknown));
            return Ok(Reply::Done);
        }
        let name = pool_of(&call);
        let Some(name) = name else { return Ok(Reply::Refused(RequestError::Overloaded)) };
        let pool = self.pools.get_mut(&name).ok_or(Refusal::UnknownPool)?;
        let life = pool.policy.keepalive_ttl_ms;
        let mut kept = 0;
        match call {
            Call::GetPool { .. } => {
                Ok(Reply::Pool { pool: Box::new(pool.view(&name)), created: false })
            }
            Call::Generate { count, .. } => {
                let total = pool.keys.len() as u64 + u64::from(count);
                if let Some(max) = pool.policy.max_keys.filter(|max| total > *max) {
                    return Err(Refusal::PoolFull { max, of_server: false });
                }
                let mut created = Vec::new();
                for _ in 0..count {
                    self.last += 1;
                    let value = Secret::new(&format!("{:020}", self.last)).expect("short");
                    created.push(pool.add(KeyId(self.last.into()), value, now));
                }
                Ok(Reply::Keys(created))
            }
            Call::Import { values, .. } => {
                let exists = |value: &Secret| pool.keys.iter().any(|key| key.value == *value);
                if let Some(index) = values.iter().position(exists) {
                    return Err(Refusal::KeyExists { index });
                }
                let mut created = Vec::new();
                for value in values {
                    self.last += 1;
                    created.push(pool.add(KeyId(self.last.into()), value, now));
                }
                Ok(Reply::Keys(created))
            }
            Call::ListKeys { state, limit, .. } => {
                let views = pool.keys.iter().map(|key| key.view(now));
                let matching = views.filter(|view| state.is_none_or(|state| view.state == state));
                Ok(Reply::Page(KeyPage { keys: matching.take(limit).collect(), next: None }))
            }
            Call::Reveal { key, .. } => {
                let key = pool.find(&key)?;
                Ok(Reply::Revealed { id: key.id, value: key.value.clone() })
            }
            Call::Release { lease, options, .. } => pool.release(lease, &options, now),
            Call::RevokeUndelivered { lease, .. } => {
                pool.release(lease, &ReleaseOptions::default(), now)
            }
            Call::Renew { lease, ttl_ms, .. } => {
                let ttl = pool.policy.lease_ttl(ttl_ms).map_err(Refusal::Invalid)?;
                let index = pool.leased(lease)?;
                let key = &mut pool.keys[index];
                let State::Leased(mut running) = key.state.clone() else { unreachable!() };
                let until = (now + ttl).min(running.hold_until.max(running.granted_at + ttl));
                if until <= running.until {
                    return Err(Refusal::MaxHoldReached { expires_at_ms: running.until });
                }
                running.until = until;
                let view = lease_view(key, &running, now);
                key.state = State::Leased(running);
                Ok(Reply::Renewed(Box::new(view)))
            }
            Call::GetKey { key, .. } => Ok(Reply::Key(Box::new(pool.find(&key)?.view(now)))),
            Call::ForceRelease { key, .. } => {
                let id = pool.find(&key)?.id;
                let key = pool.keys.iter_mut().find(|found| found.id == id).expect("found");
                let released = !matches!(key.state, State::Available);
                if let State::Leased(lease) = &key.state {
                    pool.ended.push((LeaseId(lease.token.into()), id, EndCause::Released));
                    key.state = resting_for(lease.rest, now);
                } else {
                    (key.state, key.reason) = (State::Available, None);
                }
                Ok(Reply::KeyReleased { released })
            }
            Call::DeleteKey { key, .. } => {
                let id = pool.find(&key)?.id;
                pool.remove_keys(|found| found.id == id);
                Ok(Reply::Done)
            }
            Call::KeepAlive { key, .. } => {
                let id = pool.find(&key)?.id;
                let key = pool.keys.iter_mut().find(|found| found.id == id).expect("found");
                key.purge_at = life.map(|ms| now + ms);
                Ok(Reply::KeptAlive { id, expires_at_ms: key.purge_at })
            }
            Call::KeepAliveMany { mut keys, .. } => {
                keys.sort_unstable();
                keys.dedup();
                keys.retain(|id| match pool.keys.iter_mut().find(|key| key.id == *id) {
                    Some(key) => {
                        key.purge_at = life.map(|ms| now + ms);
                        kept += 1;
                        false
                    }
                    None => true,
                });
                Ok(Reply::KeptAliveMany { kept, missing: keys })
            }
            Call::KeepAliveAll { .. } => {
                pool.keys.iter_mut().for_each(|key| key.purge_at = life.map(|ms| now + ms));
                Ok(Reply::KeptAliveMany { kept: pool.keys.len() as u64, missing: Vec::new() })
            }
            Call::ListPools
            | Call::PutPool { .. }
            | Call::DeletePool { .. }
            | Call::Acquire { .. }
            | Call::Idempotent { .. }
            | Call::Subscribe { .. } => Ok(Reply::Refused(RequestError::Overloaded)),
        }
    }
}

fn pool_of(call: &Call) -> Option<PoolName> {
    match call {
        Call::GetPool { pool }
        | Call::Import { pool, .. }
        | Call::ListKeys { pool, .. }
        | Call::Reveal { pool, .. }
        | Call::Generate { pool, .. }
        | Call::Release { pool, .. }
        | Call::RevokeUndelivered { pool, .. }
        | Call::Renew { pool, .. }
        | Call::GetKey { pool, .. }
        | Call::ForceRelease { pool, .. }
        | Call::DeleteKey { pool, .. }
        | Call::KeepAlive { pool, .. }
        | Call::KeepAliveMany { pool, .. }
        | Call::KeepAliveAll { pool } => Some(pool.clone()),
        Call::ListPools
        | Call::PutPool { .. }
        | Call::DeletePool { .. }
        | Call::Acquire { .. }
        | Call::Idempotent { .. }
        | Call::Subscribe { .. } => None,
    }
}

fn resting_for(rest: u64, now: u64) -> State {
    if rest > 0 { State::Resting(now + rest) } else { State::Available }
}

fn lease_view(key: &Key, lease: &Lease, now: u64) -> LeaseView {
    LeaseView {
        id: LeaseId(lease.token.into()),
        key_id: key.id,
        token: lease.token,
        holder: lease.holder.clone(),
        granted_at_ms: lease.granted_at,
        expires_at_ms: lease.until,
        expires_in_ms: lease.until - now,
        key_expires_at_ms: key.purge_at,
    }
}

impl Key {
    fn view(&self, now: u64) -> KeyView {
        let (state, lease, rests_until_ms) = match &self.state {
            State::Available => (KeyState::Available, None, None),
            State::Leased(lease) => (KeyState::Leased, Some(lease_view(self, lease, now)), None),
            State::Resting(until) => (KeyState::Resting, None, Some(*until)),
            State::Quarantined => (KeyState::Quarantined, None, None),
        };
        KeyView {
            id: self.id,
            state,
            created_at_ms: self.created_at,
            expires_at_ms: self.purge_at,
            rests_until_ms,
            reason: self.reason.clone(),
            lease,
        }
    }
}

impl NaivePool {
    fn has_available(&self) -> bool {
        self.keys.iter().any(|key| matches!(key.state, State::Available))
    }

    fn add(&mut self, id: KeyId, value: Secret, now: u64) -> NewKey {
        let purge_at = self.policy.keepalive_ttl_ms.map(|ms| now + ms);
        let (state, reason) = (State::Available, None);
        self.keys.push(Key { id, value: value.clone(), created_at: now, purge_at, state, reason });
        NewKey { id, value, created_at_ms: now, expires_at_ms: purge_at }
    }

    fn remove_keys(&mut self, which: impl Fn(&Key) -> bool) {
        for key in self.keys.extract_if(.., |key| which(key)) {
            if let State::Leased(lease) = key.state {
                self.ended.push((LeaseId(lease.token.into()), key.id, EndCause::KeyGone));
            }
        }
    }

    fn find(&self, key: &KeyRef) -> Result<&Key, Refusal> {
        let is_it = |found: &&Key| match key {
            KeyRef::Id(id) => found.id == *id,
            KeyRef::Value(value) => found.value == *value,
        };
        self.keys.iter().find(is_it).ok_or(Refusal::UnknownKey)
    }

    /// Returns the index of the key with this running lease, or how the lease ended.
    fn leased(&self, id: LeaseId) -> Result<usize, Refusal> {
        let has_it = |key: &Key| matches!(&key.state, State::Leased(lease) if LeaseId(lease.token.into()) == id);
        if let Some(index) = self.keys.iter().position(has_it) {
            return Ok(index);
        }
        let ended = self.ended.iter().find(|(lease, ..)| *lease == id);
        let cause = ended.map(|(_, key, cause)| match self.find(&KeyRef::Id(*key)) {
            Err(_) => EndCause::KeyGone,
            Ok(key) if matches!(key.state, State::Leased(_)) && *cause == EndCause::Expired => {
                EndCause::Superseded
            }
            Ok(_) => *cause,
        });
        Err(Refusal::LeaseEnded { cause })
    }

    fn release(&mut self, id: LeaseId, with: &ReleaseOptions, now: u64) -> Result<Reply, Refusal> {
        with.check().map_err(Refusal::Invalid)?;
        let index = self.leased(id)?;
        let key = &mut self.keys[index];
        let State::Leased(lease) = &key.state else { unreachable!() };
        self.ended.push((id, key.id, EndCause::Released));
        key.state = if with.quarantine {
            State::Quarantined
        } else {
            resting_for(with.rest_ms.unwrap_or(lease.rest), now)
        };
        key.reason = if matches!(key.state, State::Available) { None } else { with.reason.clone() };
        Ok(Reply::Done)
    }
}
