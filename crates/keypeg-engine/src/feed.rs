//! The feed: the events of a pool, sent to its subscribers once they are durable.
//!
//! A pool with subscribers has a ring buffer of its latest events. Only the engine's thread appends
//! events, after the commit of their turn, and it never waits. A subscriber reads at its own
//! pace and position; one that has fallen out of the ring gets a resync with the pool's counts. A
//! pool without subscribers now and during the last minute has no ring and costs nothing. The feed
//! knows nothing of HTTP or an async runtime.

mod event;

use event::{each_feed_event, size_of_event};
use keypeg_core::{Event, Fact, KeyCounts, Now, Pool, PoolId, PoolName, Pools, US_PER_MS};
use keypeg_store::StoreMetrics;
use keypeg_store::{
    FeedBatch, FeedEvent, FeedEventKind, Subscriber, Subscription, TooManySubscribers,
};
use std::collections::HashMap;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// The most subscribers of a server.
pub const SUBSCRIBERS_MAX: u64 = 1_000;
/// The most rings. There are more than subscribers, so that one of them always has no reader.
const RINGS_MAX: usize = 1_024;
/// The most events in one ring.
const RING_EVENTS_MAX: usize = 32_768;
/// The most bytes of one ring's events.
const RING_BYTES_MAX: usize = 4 << 20;
/// The most bytes of all rings together, except what [`RING_BYTES_MIN`] grants each.
const RINGS_BYTES_MAX: usize = 64 << 20;
/// The bytes that each ring may use even when all rings together are full.
const RING_BYTES_MIN: usize = 32 << 10;
/// How long a ring is kept after its last subscriber left, so that one that reconnects misses no
/// event.
const LINGER_US: u64 = 60_000_000;
/// How often the feed looks for rings without subscribers.
const SWEEP_US: u64 = 1_000_000;
/// The number of events for which a pool's pending buffer keeps its memory between turns.
const PENDING_KEPT: usize = 64;

/// The engine's end: the rings of all pools with subscribers, and the events of this turn.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    rings: HashMap<PoolId, PoolFeed>,
    /// The pools with unpublished changes in this turn.
    touched: Vec<PoolId>,
    /// The sequence number of the last event.
    seq: u64,
    /// The bytes of all rings.
    bytes: usize,
    now: Now,
    sweep_at_us: u64,
    /// Whether the feed is closed, because the server stops.
    closed: bool,
}

/// A pool's ring, and its events that wait for the commit.
#[derive(Debug)]
struct PoolFeed {
    shared: Arc<Shared>,
    pending: Vec<FeedEvent>,
    touched: bool,
    /// The first of the latest sweeps that found no subscriber.
    idle_since_us: Option<u64>,
}

impl Feed {
    /// Begins a turn. Unpublished events of an earlier turn are discarded: they never became
    /// durable.
    pub(crate) fn begin(&mut self, now: Now) {
        self.now = now;
        for pool in self.touched.drain(..) {
            if let Some(feed) = self.rings.get_mut(&pool) {
                feed.pending.clear();
                feed.touched = false;
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
        each_feed_event(event, now, |kind| self.push(pool, kind));
    }

    /// Takes the facts about a pool itself. Changes of its keys arrive at [`Feed::emit`].
    pub(crate) fn record(&mut self, fact: &Fact<'_>) {
        if self.rings.is_empty() {
            return;
        }
        if let Fact::PolicyChanged { pool, policy } = fact {
            self.push(*pool, FeedEventKind::PolicyChanged(Box::new(policy.clone())));
        } else if let Fact::PoolDeleted { pool } = fact {
            self.push(*pool, FeedEventKind::PoolDeleted);
        }
    }

    fn push(&mut self, pool: PoolId, kind: FeedEventKind) {
        let Some(feed) = self.rings.get_mut(&pool) else { return };
        if !feed.touched {
            feed.touched = true;
            self.touched.push(pool);
        }
        self.seq += 1;
        let at_ms = self.now.wall_us / US_PER_MS;
        feed.pending.push(FeedEvent { seq: self.seq, at_ms, kind });
    }

    /// Returns a handle to a pool's feed, which begins within this turn; `None` when there are too
    /// many rings.
    pub(crate) fn subscribe(
        &mut self,
        pool: &Pool,
        run_id: u64,
        metrics: &Arc<StoreMetrics>,
    ) -> Option<Arc<dyn Subscription>> {
        if let Some(feed) = self.rings.get_mut(&pool.id()) {
            feed.idle_since_us = None;
            return Some(Arc::clone(&feed.shared) as Arc<dyn Subscription>);
        }
        if self.rings.len() >= RINGS_MAX {
            self.close_rings(|feed| !feed.shared.has_subscribers());
            if self.rings.len() >= RINGS_MAX {
                return None;
            }
        }
        // The ring starts behind a number that no event has, so that the id of an earlier event
        // always leads to a resync.
        self.seq += 1;
        let shared = Arc::new(Shared {
            run_id,
            pool: pool.id(),
            name: pool.name().clone(),
            metrics: Arc::clone(metrics),
            subscribers: AtomicU64::new(0),
            ring: Mutex::new(EventRing::starting_after(self.seq)),
        });
        let subscription = Arc::clone(&shared);
        let feed = PoolFeed { shared, pending: Vec::new(), touched: true, idle_since_us: None };
        self.rings.insert(pool.id(), feed);
        // The ring gets its counts when this turn is committed.
        self.touched.push(pool.id());
        Some(subscription)
    }

    /// Publishes the events of this turn, which is durable now, and wakes their subscribers.
    pub(crate) fn publish(&mut self, pools: &Pools) {
        let mut wakers = Vec::new();
        for id in self.touched.drain(..) {
            let feed = self.rings.get_mut(&id).expect("invariant: touched pools have a ring");
            feed.touched = false;
            let mut ring = feed.shared.lock();
            self.bytes -= ring.bytes;
            ring.append(&mut feed.pending);
            let other_bytes = self.bytes;
            ring.trim(|bytes| other_bytes + bytes > RINGS_BYTES_MAX);
            self.bytes += ring.bytes;
            ring.at_ms = self.now.wall_us / US_PER_MS;
            let pool = pools.get(&feed.shared.name).filter(|pool| pool.id() == id);
            ring.counts = pool.map_or(KeyCounts::default(), Pool::counts);
            ring.closed = pool.is_none();
            wakers.extend(ring.wakers.drain().map(|(_, waker)| waker));
            let closed = ring.closed;
            drop(ring);
            if closed {
                self.bytes -= self.rings.remove(&id).map_or(0, |feed| feed.shared.lock().bytes);
            }
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Ends all subscriptions and accepts no further ones: the server stops.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.close_rings(|_| true);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    fn sweep(&mut self) {
        let now_us = self.now.lease_us;
        self.close_rings(|feed| {
            if feed.shared.has_subscribers() {
                feed.idle_since_us = None;
                return false;
            }
            now_us - *feed.idle_since_us.get_or_insert(now_us) >= LINGER_US
        });
    }

    /// Closes and removes rings. A subscriber reads the remaining events, then the end.
    fn close_rings(&mut self, mut which: impl FnMut(&mut PoolFeed) -> bool) {
        let mut wakers = Vec::new();
        for (_, feed) in self.rings.extract_if(|_, feed| which(feed)) {
            let mut ring = feed.shared.lock();
            self.bytes -= ring.bytes;
            ring.closed = true;
            wakers.extend(ring.wakers.drain().map(|(_, waker)| waker));
        }
        let rings = &self.rings;
        self.touched.retain(|pool| rings.contains_key(pool));
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// What the engine's thread and the subscribers of one pool share.
struct Shared {
    /// The id of this run of the server.
    run_id: u64,
    pool: PoolId,
    name: PoolName,
    metrics: Arc<StoreMetrics>,
    subscribers: AtomicU64,
    ring: Mutex<EventRing>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, EventRing> {
        // A panic under this lock would be a bug of this file, and a ring is consistent at every
        // point where a push or a pop can panic: a poisoned lock is safe to use.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_subscribers(&self) -> bool {
        self.subscribers.load(Ordering::Acquire) > 0
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("pool", &self.pool).finish_non_exhaustive()
    }
}

/// A ring buffer of the latest events of one pool.
struct EventRing {
    events: VecDeque<FeedEvent>,
    bytes: usize,
    /// Events up to this number are missing: they fell out, or happened before the ring began.
    lost_through: u64,
    /// The number of the last event.
    last_seq: u64,
    /// The number of keys in each state after the last event, and the time of that.
    counts: KeyCounts,
    at_ms: u64,
    closed: bool,
    wakers: HashMap<u64, Waker>,
    /// The number of the last subscriber.
    last_subscriber: u64,
}

impl EventRing {
    fn starting_after(seq: u64) -> Self {
        Self {
            events: VecDeque::new(),
            bytes: 0,
            lost_through: seq,
            last_seq: seq,
            counts: KeyCounts::default(),
            at_ms: 0,
            closed: false,
            wakers: HashMap::default(),
            last_subscriber: 0,
        }
    }

    fn append(&mut self, pending: &mut Vec<FeedEvent>) {
        for event in pending.drain(..) {
            self.last_seq = event.seq;
            self.bytes += size_of_event(&event);
            self.events.push_back(event);
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
            let oldest = self.events.pop_front().expect("invariant: a ring with bytes has events");
            self.bytes -= size_of_event(&oldest);
            self.lost_through = oldest.seq;
        }
    }

    /// Returns the number after which a subscriber reads on after a resync: that of the last
    /// event, or of the one before the pool's deletion.
    fn resync_seq(&self) -> u64 {
        match self.events.back() {
            Some(FeedEvent { seq, kind: FeedEventKind::PoolDeleted, .. }) => seq - 1,
            _ => self.last_seq,
        }
    }
}

impl Subscription for Shared {
    /// Creates a reader of the ring, unless there are [`SUBSCRIBERS_MAX`] already.
    fn subscribe(
        self: Arc<Self>,
        last: Option<&str>,
    ) -> Result<Box<dyn Subscriber>, TooManySubscribers> {
        let total = &self.metrics.subscribers;
        total
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
                (count < SUBSCRIBERS_MAX).then_some(count + 1)
            })
            .map_err(|_| TooManySubscribers { max: SUBSCRIBERS_MAX })?;
        self.subscribers.fetch_add(1, Ordering::AcqRel);
        let mut ring = self.lock();
        ring.last_subscriber += 1;
        let number = ring.last_subscriber;
        let read_seq = last
            .and_then(|last| parse_event_id(last, self.run_id, self.pool))
            // An event that the ring has lost leads to a resync at the first read.
            .filter(|seq| *seq <= ring.last_seq);
        drop(ring);
        Ok(Box::new(RingReader { shared: self, number, read_seq }))
    }
}

/// A subscriber: a reader of a pool's ring, with its own position.
#[derive(Debug)]
struct RingReader {
    shared: Arc<Shared>,
    number: u64,
    /// The last event that was read; `None` if a resync must come first.
    read_seq: Option<u64>,
}

impl Subscriber for RingReader {
    fn pool(&self) -> &PoolName {
        &self.shared.name
    }

    /// Returns an id that is valid only during this run of the server.
    fn event_id(&self, seq: u64) -> String {
        format!("{:016x}-{:x}-{seq:x}", self.shared.run_id, self.shared.pool.0)
    }

    /// Blocks only while the engine's thread appends the events of a turn.
    fn poll_next(&mut self, context: &mut Context<'_>, max: usize) -> Poll<Option<FeedBatch>> {
        let mut ring = self.shared.lock();
        let Some(read_seq) = self.read_seq.filter(|seq| *seq >= ring.lost_through) else {
            let (seq, at_ms, counts) = (ring.resync_seq(), ring.at_ms, ring.counts);
            self.read_seq = Some(seq);
            self.shared.metrics.resyncs.fetch_add(1, Ordering::Relaxed);
            return Poll::Ready(Some(FeedBatch::Resync { seq, at_ms, counts }));
        };
        let from = ring.events.partition_point(|event| event.seq <= read_seq);
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
        self.read_seq = events.last().map(|event| event.seq);
        self.shared.metrics.events.fetch_add(events.len() as u64, Ordering::Relaxed);
        Poll::Ready(Some(FeedBatch::Events(events)))
    }
}

impl Drop for RingReader {
    fn drop(&mut self) {
        self.shared.lock().wakers.remove(&self.number);
        self.shared.subscribers.fetch_sub(1, Ordering::AcqRel);
        self.shared.metrics.subscribers.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Parses an event id of this run and this pool and returns the event's number.
fn parse_event_id(text: &str, run_id: u64, pool: PoolId) -> Option<u64> {
    let (id_run, rest) = text.split_once('-')?;
    let (id_pool, seq) = rest.split_once('-')?;
    let is_same = u64::from_str_radix(id_run, 16) == Ok(run_id)
        && u32::from_str_radix(id_pool, 16) == Ok(pool.0);
    is_same.then(|| u64::from_str_radix(seq, 16).ok()).flatten()
}

#[cfg(test)]
mod tests;
