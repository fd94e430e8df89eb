//! A throw-away store for tests: it answers the requests of a lane from plain lists in memory.
//!
//! Written from the contract of keypeg-store, not from the engine. It keeps the whole contract but
//! for durability, and has no limit of pools, waiters and stored answers in all pools together.
//! Each operation is O(n).

mod calls;
mod feed;
mod idempotency;
mod pool;
mod views;

use feed::Feed;
use idempotency::IdempotentRequest;
use keypeg_core::{LeaseId, NoKeyCause, Policy, PoolName, Refusal};
use keypeg_store::{
    ANSWERS_PER_TURN_BUCKETS, COMMIT_BUCKETS_US, Call, CallSlot, EngineLane, LaneItem, Principal,
    Reply, Request, RequestError, StoreMetrics,
};
use pool::{Lease, NaivePool, State};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

/// A call: the index of its lane, and its slot there.
type CallId = (usize, CallSlot);

/// The store.
pub(crate) struct NaiveStore {
    /// Lease time, serving time and wall time, in milliseconds: in memory they are one clock.
    pub(crate) now: u64,
    /// How far `now` can be behind the clock, so that nothing ends early.
    pub(crate) clock_lag_ms: u64,
    /// Whether the server stops: then no request waits, and there are no subscriptions.
    pub(crate) cancels_waits: bool,
    /// The most keys of all pools.
    max_keys: u64,
    /// Differs between any two stores.
    run_id: u64,
    metrics: Arc<StoreMetrics>,
    /// The last number of a key or a pool.
    last_number: u64,
    last_token: u64,
    /// The number of the last event.
    last_seq: u64,
    pools: BTreeMap<PoolName, NaivePool>,
    replies: Vec<(CallId, Reply)>,
}

struct Waiter {
    slot: CallId,
    terms: Terms,
    since: u64,
    until: u64,
}

/// What an acquire requests.
#[derive(Clone)]
struct Terms {
    by: Principal,
    ttl_ms: Option<u64>,
    holder: Option<Box<str>>,
    request: Option<IdempotentRequest>,
}

/// Returns a random number.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl NaiveStore {
    pub(crate) fn new(default_policy: Policy, max_keys: u64, metrics: Arc<StoreMetrics>) -> Self {
        let mut store = Self {
            now: 0,
            clock_lag_ms: 0,
            cancels_waits: false,
            max_keys,
            run_id: random(),
            metrics,
            last_number: 0,
            last_token: 0,
            // The beginning of every feed: no event has this number.
            last_seq: 1,
            pools: BTreeMap::new(),
            replies: Vec::new(),
        };
        store.add_pool(PoolName::default_pool(), default_policy);
        store
    }

    fn add_pool(&mut self, name: PoolName, policy: Policy) {
        self.last_number += 1;
        let number = self.last_number;
        let feed = Feed::new(&name, format!("{:x}-{number}-", self.run_id), &self.metrics);
        self.pools.insert(name, NaivePool::new(number, policy, feed));
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
        for pool in self.pools.values_mut() {
            if !pool.events.is_empty() {
                let (events, counts) = (std::mem::take(&mut pool.events), pool.counts());
                pool.feed.publish(events, &mut self.last_seq, self.now, counts);
            }
            if self.cancels_waits {
                let refuse =
                    |waiter: Waiter| (waiter.slot, Reply::Refused(RequestError::ShuttingDown));
                self.replies.extend(pool.waiters.drain(..).map(refuse));
                pool.feed.close();
            }
        }
        if !self.replies.is_empty() {
            self.metrics.answers.observe(&ANSWERS_PER_TURN_BUCKETS, self.replies.len() as u64);
            // What is only in memory is committed at once.
            self.metrics.commit_us.observe(&COMMIT_BUCKETS_US, 0);
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
        let due = now.saturating_sub(self.clock_lag_ms);
        self.pools.values_mut().for_each(|pool| pool.expire(due));
        self.grant_to_waiters();
        for pool in self.pools.values_mut() {
            while let Some(index) = pool.waiters.iter().position(|waiter| waiter.until <= now) {
                let waiter = pool.waiters.remove(index).expect("found");
                let refusal = pool.no_key(now);
                pool.count_refusal(&refusal);
                self.replies.push((waiter.slot, refusal.into()));
            }
        }
    }

    fn grant_to_waiters(&mut self) {
        for (name, pool) in &mut self.pools {
            while pool.counts().available > 0
                && !pool.policy.draining
                && let Some(mut waiter) = pool.waiters.pop_front()
            {
                // The policy may have changed during the wait: no grant exceeds its TTL.
                let max_ms = pool.policy.lease_ttl_ms;
                waiter.terms.ttl_ms = waiter.terms.ttl_ms.map(|ms| ms.min(max_ms));
                let waited_ms = self.now - waiter.since;
                let last_token = &mut self.last_token;
                let granted = pool.grant(name, &waiter.terms, waited_ms, last_token, self.now);
                self.replies.push((waiter.slot, granted.unwrap_or_else(Reply::from)));
            }
        }
    }

    /// Executes a call; `None` when it waits.
    fn execute(&mut self, slot: CallId, request: Request) -> Option<Reply> {
        let idempotent = IdempotentRequest::of(&request);
        let Request { by, call, .. } = request;
        self.try_execute(slot, by, idempotent, call).unwrap_or_else(|refusal| Some(refusal.into()))
    }

    fn try_execute(
        &mut self,
        slot: CallId,
        by: Principal,
        request: Option<IdempotentRequest>,
        call: Call,
    ) -> Result<Option<Reply>, Refusal> {
        let now = self.now;
        let name = calls::pool_of(&call);
        if let (Some(request), Some(name)) = (&request, &name) {
            let pool = self.pools.get_mut(name).ok_or(Refusal::UnknownPool)?;
            if let Some(reply) = pool.redeliver(name, request, now)? {
                return Ok(Some(reply));
            }
            if let Call::Acquire { wait_ms, .. } = call
                && let Some(before) = pool.take_over(request, slot, now, wait_ms)?
            {
                self.replies.push((before, Refusal::TakenOver.into()));
                return Ok(None);
            }
        }
        if let Call::Acquire { pool, ttl_ms, holder, wait_ms } = call {
            let terms = Terms { by, ttl_ms, holder, request };
            let reply = self.acquire(&pool, &terms);
            let waits = |cause: NoKeyCause| wait_ms > 0 && cause != NoKeyCause::Draining;
            if matches!(reply, Err(Refusal::NoKey { cause, .. }) if waits(cause)) {
                let (since, until) = (now, now + wait_ms);
                let pool = self.pools.get_mut(&pool).expect("it refused with no key");
                pool.waiters.push_back(Waiter { slot, terms, since, until });
                return Ok(None);
            }
            if let (Err(refusal), Some(pool)) = (&reply, self.pools.get_mut(&pool)) {
                pool.count_refusal(refusal);
            }
            return reply.map(Some);
        }
        let reply = self.execute_now(call)?;
        if let (Some(request), Some(name), Reply::Keys(keys)) = (request, name, &reply) {
            let pool = self.pools.get_mut(&name).expect("it has new keys");
            pool.store_keys(request, keys, now);
        }
        Ok(Some(reply))
    }

    fn acquire(&mut self, name: &PoolName, terms: &Terms) -> Result<Reply, Refusal> {
        let pool = self.pools.get(name).ok_or(Refusal::UnknownPool)?;
        pool.policy.lease_ttl(terms.ttl_ms).map_err(Refusal::Invalid)?;
        let borrower = terms.by.borrower();
        if let Some(max) = borrower.max() {
            let lease_count: usize =
                self.pools.values().map(|pool| pool.lease_count(borrower)).sum();
            if lease_count >= max as usize {
                return Err(Refusal::TooManyLeases { max });
            }
        }
        let pool = self.pools.get_mut(name).expect("found before");
        pool.grant(name, terms, 0, &mut self.last_token, self.now)
    }
}

impl NaivePool {
    /// Leases a random available key, without a check of the borrower's limit.
    fn grant(
        &mut self,
        name: &PoolName,
        terms: &Terms,
        waited_ms: u64,
        last_token: &mut u64,
        now: u64,
    ) -> Result<Reply, Refusal> {
        let ttl = self.policy.lease_ttl(terms.ttl_ms).map_err(Refusal::Invalid)?;
        let is_available = |index: &usize| matches!(self.keys[*index].state, State::Available);
        let available: Vec<usize> = (0..self.keys.len()).filter(is_available).collect();
        if available.is_empty() || self.policy.draining {
            return Err(self.no_key(now));
        }
        self.activity.grants += 1;
        if waited_ms > 0 {
            self.activity.count_wait(waited_ms * 1_000);
        }
        let drawn = random() % available.len() as u64;
        let index = available[usize::try_from(drawn).expect("an index")];
        *last_token += 1;
        let lease = Lease {
            id: LeaseId(u128::from(random()) << 64 | u128::from(*last_token)),
            token: *last_token,
            holder: terms.holder.clone(),
            by: terms.by.clone(),
            granted_at: now,
            until: now + ttl,
            hold_until: now + self.policy.max_hold_ms.unwrap_or(self.policy.lease_ttl_ms),
            rest: self.policy.rest_ms,
        };
        let (lease, value) = (self.start_lease(index, lease, now), self.keys[index].value.clone());
        if let Some(request) = terms.request.clone() {
            self.store_lease(request, &lease, &value);
        }
        let (pool, lease) = (name.clone(), Box::new(lease));
        Ok(Reply::Granted { pool, lease, value, waited_ms, redelivered: false })
    }
}
