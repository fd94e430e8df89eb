//! A subscriber of a pool's feed, and the calls whose events it gets.

use super::{Driver, ManualClock, default_pool, engine_config};
use keypeg_core::{KeyCounts, KeyId, KeyRef, PolicyPatch, PoolName};
use keypeg_store::{Call, FeedBatch, FeedEvent, FeedEventKind, Reply, Subscriber, Subscription};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

pub(crate) type Reader = Box<dyn Subscriber>;

pub(crate) fn in_memory() -> Driver {
    Driver::open_with(None, &ManualClock::new(), 1, &engine_config()).expect("opens")
}

pub(crate) fn name(text: &str) -> PoolName {
    PoolName::parse(text).expect("a name")
}

pub(crate) fn subscription(driver: &mut Driver, pool: &str) -> Arc<dyn Subscription> {
    match driver.call(Call::Subscribe { pool: name(pool) }) {
        Reply::Subscription(subscription) => subscription,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn subscribe(driver: &mut Driver, pool: &str) -> Reader {
    subscription(driver, pool).subscribe(None).expect("below the limit")
}

/// Returns the next batch.
pub(crate) fn next(subscriber: &mut Reader) -> Poll<Option<FeedBatch>> {
    subscriber.poll_next(&mut Context::from_waker(Waker::noop()), 7)
}

/// Returns all events that can be read now.
#[track_caller]
pub(crate) fn events(subscriber: &mut Reader) -> Vec<FeedEvent> {
    let mut all = Vec::new();
    while let Poll::Ready(batch) = next(subscriber) {
        match batch {
            Some(FeedBatch::Events(events)) => all.extend(events),
            other => panic!("expected events, got {other:?}"),
        }
    }
    all
}

#[track_caller]
pub(crate) fn event_kinds(subscriber: &mut Reader) -> Vec<FeedEventKind> {
    events(subscriber).into_iter().map(|event| event.kind).collect()
}

#[track_caller]
pub(crate) fn resync(subscriber: &mut Reader) -> (u64, KeyCounts) {
    match next(subscriber) {
        Poll::Ready(Some(FeedBatch::Resync { seq, counts, .. })) => (seq, counts),
        other => panic!("expected a resync, got {other:?}"),
    }
}

pub(crate) fn force_release(key: KeyId) -> Call {
    Call::ForceRelease { pool: default_pool(), key: KeyRef::Id(key) }
}

pub(crate) fn put_pool(driver: &mut Driver, pool: &str, patch: PolicyPatch) {
    let put = driver.call(Call::PutPool { pool: name(pool), patch: Box::new(patch) });
    assert!(matches!(put, Reply::Pool { .. }), "{put:?}");
}
