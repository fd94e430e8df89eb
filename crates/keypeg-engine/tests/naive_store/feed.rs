//! The events of a pool of the naive store, and its subscribers.
//!
//! Every pool keeps its latest events, whether or not it has subscribers. The events of a run are
//! published at the end of the run, before its replies.

use keypeg_core::{KeyCounts, PoolName};
use keypeg_store::{
    FeedBatch, FeedEvent, FeedEventKind, StoreMetrics, Subscriber, Subscription, TooManySubscribers,
};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

/// The most events that a pool keeps.
const EVENTS_MAX: usize = 8_000;
/// The most subscribers of the store.
const SUBSCRIBERS_MAX: u64 = 1_000;

/// What the store and the subscribers of one pool share.
#[derive(Debug)]
pub(super) struct Feed {
    pool: PoolName,
    /// The begin of the ids of its events: it differs between pools and between runs.
    id_prefix: String,
    metrics: Arc<StoreMetrics>,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    events: Vec<FeedEvent>,
    /// Events up to this number are missing.
    lost_through: u64,
    /// The number of the last event, and the time and the counts after it.
    last_seq: u64,
    at_ms: u64,
    counts: KeyCounts,
    is_closed: bool,
    wakers: Vec<Waker>,
}

impl Feed {
    pub(super) fn new(pool: &PoolName, id_prefix: String, metrics: &Arc<StoreMetrics>) -> Self {
        let log = Mutex::default();
        Self { pool: pool.clone(), id_prefix, metrics: Arc::clone(metrics), log }
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("no panic under this lock")
    }

    /// Appends events, numbered after `last_seq`, after which the pool has these counts.
    pub(super) fn publish(
        &self,
        kinds: impl IntoIterator<Item = FeedEventKind>,
        last_seq: &mut u64,
        at_ms: u64,
        counts: KeyCounts,
    ) {
        let mut log = self.lock();
        for kind in kinds {
            *last_seq += 1;
            log.last_seq = *last_seq;
            log.events.push(FeedEvent { seq: *last_seq, at_ms, kind });
        }
        let excess = log.events.len().saturating_sub(EVENTS_MAX);
        let lost = log.events.drain(..excess).next_back();
        if let Some(lost) = lost {
            log.lost_through = lost.seq;
        }
        (log.at_ms, log.counts) = (at_ms, counts);
        log.wakers.drain(..).for_each(Waker::wake);
    }

    /// Ends all subscriptions after the events published so far.
    pub(super) fn close(&self) {
        let mut log = self.lock();
        log.is_closed = true;
        log.wakers.drain(..).for_each(Waker::wake);
    }
}

impl Log {
    /// Returns the number after which a subscriber reads on after a resync: the deletion of the
    /// pool is still read as an event.
    fn resync_seq(&self) -> u64 {
        match self.events.last() {
            Some(FeedEvent { seq, kind: FeedEventKind::PoolDeleted, .. }) => seq - 1,
            _ => self.last_seq,
        }
    }
}

impl Subscription for Feed {
    fn subscribe(
        self: Arc<Self>,
        last: Option<&str>,
    ) -> Result<Box<dyn Subscriber>, TooManySubscribers> {
        if self.metrics.subscribers.fetch_add(1, Ordering::AcqRel) >= SUBSCRIBERS_MAX {
            self.metrics.subscribers.fetch_sub(1, Ordering::AcqRel);
            return Err(TooManySubscribers { max: SUBSCRIBERS_MAX });
        }
        let seq = last.and_then(|last| last.strip_prefix(&*self.id_prefix)?.parse().ok());
        let last_seq = self.lock().last_seq;
        let read_seq = seq.filter(|seq| *seq <= last_seq);
        Ok(Box::new(Reader { feed: self, read_seq }))
    }
}

#[derive(Debug)]
struct Reader {
    feed: Arc<Feed>,
    /// The last event that was read; `None` if a resync must come first.
    read_seq: Option<u64>,
}

impl Subscriber for Reader {
    fn pool(&self) -> &PoolName {
        &self.feed.pool
    }

    fn event_id(&self, seq: u64) -> String {
        format!("{}{seq}", self.feed.id_prefix)
    }

    fn poll_next(&mut self, context: &mut Context<'_>, max: usize) -> Poll<Option<FeedBatch>> {
        let metrics = &self.feed.metrics;
        let mut log = self.feed.lock();
        let Some(read_seq) = self.read_seq.filter(|seq| *seq >= log.lost_through) else {
            let (seq, at_ms, counts) = (log.resync_seq(), log.at_ms, log.counts);
            self.read_seq = Some(seq);
            metrics.resyncs.fetch_add(1, Ordering::Relaxed);
            return Poll::Ready(Some(FeedBatch::Resync { seq, at_ms, counts }));
        };
        let unread = log.events.iter().filter(|event| event.seq > read_seq);
        let events: Vec<_> = unread.take(max).cloned().collect();
        if let Some(last) = events.last() {
            self.read_seq = Some(last.seq);
            metrics.events.fetch_add(events.len() as u64, Ordering::Relaxed);
            return Poll::Ready(Some(FeedBatch::Events(events)));
        }
        if log.is_closed {
            return Poll::Ready(None);
        }
        log.wakers.retain(|waker| !waker.will_wake(context.waker()));
        log.wakers.push(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.feed.metrics.subscribers.fetch_sub(1, Ordering::AcqRel);
    }
}
