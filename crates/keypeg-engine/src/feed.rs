//! The feed: what is told of a pool to those who follow it, once it is durable.
//!
//! A followed pool has a ring of its latest events. The engine's thread alone puts events in,
//! after the commit of their turn, and never waits: a [`Subscriber`] reads at its own pace and its
//! own place, and one that has fallen out of the ring is told the counts anew. A pool that nobody
//! follows, nor did a minute ago, has no ring and costs nothing. Knows of no HTTP and no runtime.

mod event;

use crate::core::{Event, Fact, KeyCounts, Now, Pool, PoolId, PoolName, Pools, US_PER_MS};
use crate::metrics::EngineMetrics;
use event::bytes_of;
pub use event::{FeedEvent, FeedEventKind};
use std::collections::HashMap;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Followers a server has at most.
pub const SUBSCRIBERS_MAX: u64 = 1_000;
/// Rings at once: some more than followers, so that there is always one that nobody reads.
const RINGS_MAX: usize = 1_024;
/// Events in one ring.
const RING_EVENTS_MAX: usize = 32_768;
/// Bytes of one ring's events.
const RING_BYTES_MAX: usize = 4 << 20;
/// Bytes of all rings together, beyond what each may have in any case.
const RINGS_BYTES_MAX: usize = 64 << 20;
/// Bytes of its own that no other ring takes from a ring.
const RING_BYTES_MIN: usize = 32 << 10;
/// How long a ring is kept after its last follower left, so that one who comes back misses nothing.
const LINGER_US: u64 = 60_000_000;
/// How often rings that nobody follows are looked for.
const SWEEP_US: u64 = 1_000_000;
/// Events of one turn for which room is kept from turn to turn.
const PENDING_KEPT: usize = 64;

/// The engine's end: the rings of all followed pools, and what this turn has to tell.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    rings: HashMap<PoolId, Open>,
    /// Pools of which this turn has something to tell.
    touched: Vec<PoolId>,
    /// The number of the last event.
    seq: u64,
    /// Bytes in all rings.
    bytes: usize,
    now: Now,
    sweep_at_us: u64,
    /// Whether nothing is told any more: the server stops.
    closed: bool,
}

/// A ring, and what waits for the commit.
#[derive(Debug)]
struct Open {
    shared: Arc<Shared>,
    pending: Vec<FeedEvent>,
    touched: bool,
    /// Since when nobody follows it, as far as a sweep has seen.
    idle_since_us: Option<u64>,
}

impl Feed {
    /// Begins a turn: what an earlier one did not tell was never durable.
    pub(crate) fn begin(&mut self, now: Now) {
        self.now = now;
        for pool in self.touched.drain(..) {
            if let Some(open) = self.rings.get_mut(&pool) {
                open.pending.clear();
                open.touched = false;
            }
        }
        if !self.rings.is_empty() && now.lease_us >= self.sweep_at_us {
            self.sweep_at_us = now.lease_us + SWEEP_US;
            self.sweep();
        }
    }

    pub(crate) fn has_subscribers(&self, pool: PoolId) -> bool {
        !self.rings.is_empty() && self.rings.contains_key(&pool)
    }

    pub(crate) fn emit(&mut self, pool: PoolId, event: &Event<'_>) {
        let now = self.now;
        FeedEventKind::of(event, now, |what| self.keep(pool, what));
    }

    /// Takes what of a fact is told as it is: what happens to a pool rather than to its keys.
    pub(crate) fn record(&mut self, fact: &Fact<'_>) {
        if self.rings.is_empty() {
            return;
        }
        if let Fact::PolicyChanged { pool, policy } = fact {
            self.keep(*pool, FeedEventKind::PolicyChanged(Box::new(policy.clone())));
        } else if let Fact::PoolDeleted { pool } = fact {
            self.keep(*pool, FeedEventKind::PoolDeleted);
        }
    }

    fn keep(&mut self, pool: PoolId, what: FeedEventKind) {
        let Some(open) = self.rings.get_mut(&pool) else { return };
        if !open.touched {
            open.touched = true;
            self.touched.push(pool);
        }
        self.seq += 1;
        let at_ms = self.now.wall_us / US_PER_MS;
        open.pending.push(FeedEvent { seq: self.seq, at_ms, kind: what });
    }

    /// Lets a pool be followed from this turn on; `None` where no more can be.
    pub(crate) fn open(
        &mut self,
        pool: &Pool,
        run: u64,
        metrics: &Arc<EngineMetrics>,
    ) -> Option<Subscription> {
        if let Some(open) = self.rings.get_mut(&pool.id()) {
            open.idle_since_us = None;
            return Some(Subscription { shared: Arc::clone(&open.shared) });
        }
        if self.rings.len() >= RINGS_MAX {
            self.free(|open| !open.shared.is_followed());
            if self.rings.len() >= RINGS_MAX {
                return None;
            }
        }
        // One number is left out, so that nothing told before can be taken for all there was.
        self.seq += 1;
        let shared = Arc::new(Shared {
            run,
            pool: pool.id(),
            name: pool.name().clone(),
            metrics: Arc::clone(metrics),
            followers: AtomicU64::new(0),
            ring: Mutex::new(Ring::beginning_at(self.seq)),
        });
        let following = Subscription { shared: Arc::clone(&shared) };
        let open = Open { shared, pending: Vec::new(), touched: true, idle_since_us: None };
        self.rings.insert(pool.id(), open);
        // The counts are told when this turn is committed.
        self.touched.push(pool.id());
        Some(following)
    }

    /// Tells what this turn did, now that it is durable, and wakes who waits for it.
    pub(crate) fn tell(&mut self, pools: &Pools) {
        let mut woken = Vec::new();
        for number in self.touched.drain(..) {
            let open = self.rings.get_mut(&number).expect("invariant: touched rings are open");
            open.touched = false;
            let mut ring = open.shared.lock();
            self.bytes -= ring.bytes;
            ring.append(&mut open.pending);
            let others = self.bytes;
            ring.trim(|bytes| others + bytes > RINGS_BYTES_MAX);
            self.bytes += ring.bytes;
            ring.at_ms = self.now.wall_us / US_PER_MS;
            let pool = pools.get(&open.shared.name).filter(|pool| pool.id() == number);
            ring.counts = pool.map_or(KeyCounts::default(), Pool::counts);
            ring.closed = pool.is_none();
            woken.extend(ring.wakers.drain().map(|(_, waker)| waker));
            let closed = ring.closed;
            drop(ring);
            if closed {
                self.bytes -= self.rings.remove(&number).map_or(0, |open| open.shared.lock().bytes);
            }
        }
        woken.into_iter().for_each(Waker::wake);
    }

    /// Ends all that follow, and lets nobody follow any more: the server stops.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.free(|_| true);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    fn sweep(&mut self) {
        let now_us = self.now.lease_us;
        self.free(|open| {
            if open.shared.is_followed() {
                open.idle_since_us = None;
                return false;
            }
            now_us - *open.idle_since_us.get_or_insert(now_us) >= LINGER_US
        });
    }

    /// Closes rings; whoever still reads one comes to its end.
    fn free(&mut self, mut which: impl FnMut(&mut Open) -> bool) {
        let mut woken = Vec::new();
        for (_, open) in self.rings.extract_if(|_, open| which(open)) {
            let mut ring = open.shared.lock();
            self.bytes -= ring.bytes;
            ring.closed = true;
            woken.extend(ring.wakers.drain().map(|(_, waker)| waker));
        }
        let rings = &self.rings;
        self.touched.retain(|pool| rings.contains_key(pool));
        woken.into_iter().for_each(Waker::wake);
    }
}

/// FeedEventKind the engine's thread and the followers of one pool share.
struct Shared {
    /// Tells this run of the server from others.
    run: u64,
    pool: PoolId,
    name: PoolName,
    metrics: Arc<EngineMetrics>,
    followers: AtomicU64,
    ring: Mutex<Ring>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Ring> {
        // A panic while this is held would be a bug in this file; a ring is whole at every point
        // at which a push or a pop can panic.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_followed(&self) -> bool {
        self.followers.load(Ordering::Acquire) > 0
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("pool", &self.pool).finish_non_exhaustive()
    }
}

/// The latest events of one pool.
struct Ring {
    events: VecDeque<FeedEvent>,
    bytes: usize,
    /// The number up to which events are not here: they fell out, or were before it began.
    lost: u64,
    /// The number of the last event.
    last: u64,
    /// How many keys stood where after the last event, and when that was.
    counts: KeyCounts,
    at_ms: u64,
    closed: bool,
    wakers: HashMap<u64, Waker>,
    /// The number of the last follower.
    followers: u64,
}

impl Ring {
    fn beginning_at(seq: u64) -> Self {
        Self {
            events: VecDeque::new(),
            bytes: 0,
            lost: seq,
            last: seq,
            counts: KeyCounts::default(),
            at_ms: 0,
            closed: false,
            wakers: HashMap::default(),
            followers: 0,
        }
    }

    fn append(&mut self, pending: &mut Vec<FeedEvent>) {
        for told in pending.drain(..) {
            self.last = told.seq;
            self.bytes += bytes_of(&told);
            self.events.push_back(told);
        }
        if pending.capacity() > PENDING_KEPT {
            *pending = Vec::new();
        }
    }

    fn trim(&mut self, all_are_full: impl Fn(usize) -> bool) {
        while self.events.len() > RING_EVENTS_MAX
            || self.bytes > RING_BYTES_MAX
            || (self.bytes > RING_BYTES_MIN && all_are_full(self.bytes))
        {
            let oldest = self.events.pop_front().expect("invariant: what has bytes is there");
            self.bytes -= bytes_of(&oldest);
            self.lost = oldest.seq;
        }
    }

    /// Where whoever lost the thread goes on: at the present, or before the pool's end.
    fn present(&self) -> u64 {
        match self.events.back() {
            Some(FeedEvent { seq, kind: FeedEventKind::PoolDeleted, .. }) => seq - 1,
            _ => self.last,
        }
    }
}

/// A pool that can be followed: what an engine answers who asks for it.
#[derive(Clone, Debug)]
pub struct Subscription {
    shared: Arc<Shared>,
}

impl Subscription {
    /// Begins to read: after `last`, the id of an event, where all that came since is there, else
    /// with [`FeedBatch::Resync`]. `None` where as many as may do follow.
    pub fn subscribe(&self, last: Option<&str>) -> Option<Subscriber> {
        let shared = Arc::clone(&self.shared);
        let total = &shared.metrics.subscribers;
        total
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                (count < SUBSCRIBERS_MAX).then_some(count + 1)
            })
            .ok()?;
        shared.followers.fetch_add(1, Ordering::AcqRel);
        let mut ring = shared.lock();
        ring.followers += 1;
        let number = ring.followers;
        let read = last
            .and_then(|last| read_id(last, shared.run, shared.pool))
            .filter(|seq| (ring.lost..=ring.last).contains(seq));
        drop(ring);
        Some(Subscriber { shared, number, read })
    }
}

/// One who follows a pool, at a place of its own. SegmentDrop it ends that.
#[derive(Debug)]
pub struct Subscriber {
    shared: Arc<Shared>,
    number: u64,
    /// The last event read; `None` where the counts are to be told first.
    read: Option<u64>,
}

/// FeedEventKind a follower reads at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedBatch {
    /// The next events, in their order, at least one.
    Events(Vec<FeedEvent>),
    /// FeedEventKind came before is not told, or not all of it: how many keys stood where after the event
    /// of this number. FeedEventKind comes next is told from there on.
    Resync {
        /// That number.
        seq: u64,
        /// When that was.
        at_ms: u64,
        /// How many keys stood where.
        counts: KeyCounts,
    },
}

impl Subscriber {
    /// The followed pool.
    pub fn pool(&self) -> &PoolName {
        &self.shared.name
    }

    /// Writes the id of the event of this number: for [`Subscription::follow`], in this run alone.
    pub fn event_id(&self, seq: u64) -> String {
        format!("{:016x}-{:x}-{seq:x}", self.shared.run, self.shared.pool.0)
    }

    /// Reads on, at most `max` events; `None` at the end: the pool was removed or the server
    /// stops. Never waits for anybody but the engine's thread while that puts a turn in.
    pub fn poll_next(&mut self, context: &mut Context<'_>, max: usize) -> Poll<Option<FeedBatch>> {
        let mut ring = self.shared.lock();
        let Some(read) = self.read.filter(|read| *read >= ring.lost) else {
            let (seq, at_ms, counts) = (ring.present(), ring.at_ms, ring.counts);
            self.read = Some(seq);
            self.shared.metrics.resyncs.fetch_add(1, Ordering::Relaxed);
            return Poll::Ready(Some(FeedBatch::Resync { seq, at_ms, counts }));
        };
        let from = ring.events.partition_point(|told| told.seq <= read);
        let to = ring.events.len().min(from + max);
        if from == to {
            if ring.closed {
                return Poll::Ready(None);
            }
            ring.wakers.insert(self.number, context.waker().clone());
            return Poll::Pending;
        }
        let events: Vec<_> = ring.events.range(from..to).cloned().collect();
        drop(ring);
        self.read = events.last().map(|told| told.seq);
        self.shared.metrics.events.fetch_add(events.len() as u64, Ordering::Relaxed);
        Poll::Ready(Some(FeedBatch::Events(events)))
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.shared.lock().wakers.remove(&self.number);
        self.shared.followers.fetch_sub(1, Ordering::AcqRel);
        self.shared.metrics.subscribers.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Reads the number of an event of this run and this pool.
fn read_id(text: &str, run: u64, pool: PoolId) -> Option<u64> {
    let (of_run, rest) = text.split_once('-')?;
    let (of_pool, seq) = rest.split_once('-')?;
    let same = u64::from_str_radix(of_run, 16) == Ok(run)
        && u32::from_str_radix(of_pool, 16) == Ok(pool.0);
    same.then(|| u64::from_str_radix(seq, 16).ok()).flatten()
}

#[cfg(test)]
mod tests;
