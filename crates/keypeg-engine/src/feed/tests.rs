//! The feed's memory limits, without an engine: each ring's and those of all rings together.

use super::*;
use keypeg_core::{
    IdHashKey, KeyId, KeyState, Limits, Policy, PolicyPatch, RandomSource, StepContext,
};

struct ZeroRandom;

impl RandomSource for ZeroRandom {
    fn below(&mut self, _: u32) -> u32 {
        0
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.fill(0);
    }
}

fn pools(count: usize) -> (Pools, Vec<PoolName>) {
    let limits =
        Limits { pools: count, keys: 1, bytes: u64::MAX, answers: keypeg_core::ANSWERS_MAX };
    let mut pools = Pools::new(IdHashKey::new([1; 32]), limits, 1);
    let names: Vec<_> =
        (0..count).map(|index| PoolName::parse(&format!("p{index}")).expect("a name")).collect();
    let (now, mut no_facts) = (Now::default(), |_: &Fact<'_>| {});
    let (random, facts) = (&mut ZeroRandom, &mut no_facts);
    let mut step = StepContext { now, random, facts, budget: 0, ended_by_time: false };
    for name in &names {
        let created =
            pools.create_or_update(&mut step, name, &Policy::default(), PolicyPatch::default());
        created.expect("space for a pool");
    }
    (pools, names)
}

#[test]
fn rings_are_bounded_one_by_one_and_together_and_each_keeps_a_minimum() {
    const COUNT: usize = 40;
    let (pools, names) = pools(COUNT);
    let (mut feed, metrics) = (Feed::default(), Arc::default());
    feed.begin(Now::default());
    let open = |feed: &mut Feed, name| {
        let pool = pools.get(name).expect("a pool");
        feed.subscribe(pool, 1, &metrics)
            .expect("below the limit")
            .subscribe(None)
            .expect("below the limit")
    };
    let mut subscribers: Vec<_> = names.iter().map(|name| open(&mut feed, name)).collect();
    let holder = "h".repeat(512);
    let grant =
        Event::Granted { key: KeyId(1), token: 1, holder: Some(&holder), label: None, until_us: 1 };
    for name in &names {
        let pool = pools.get(name).expect("a pool").id();
        for _ in 0..20 {
            feed.begin(Now::default());
            (0..500).for_each(|_| feed.emit(pool, &grant));
            feed.publish(&pools);
        }
    }
    let each: Vec<_> = feed.rings.values().map(|feed| feed.shared.lock().bytes).collect();
    assert_eq!(each.iter().sum::<usize>(), feed.bytes);
    assert!(feed.bytes <= RINGS_BYTES_MAX + COUNT * RING_BYTES_MIN, "{} bytes", feed.bytes);
    assert!(feed.bytes > RINGS_BYTES_MAX / 10 * 9, "the rings use the memory they may");
    assert!(each.iter().all(|&bytes| bytes <= RING_BYTES_MAX), "{each:?}");
    assert!(each.iter().all(|&bytes| bytes > RING_BYTES_MIN / 10 * 9), "{each:?}");
    feed.close();
    assert_eq!(feed.bytes, 0);
    drop(subscribers.pop());
    assert_eq!(metrics.subscribers.load(Ordering::Relaxed), COUNT as u64 - 1);
}

#[test]
fn every_subscriber_can_have_its_own_pool_and_rings_without_readers_are_replaced() {
    const SUBSCRIBED: usize = 1_000;
    assert_eq!(SUBSCRIBERS_MAX, SUBSCRIBED as u64);
    let (pools, names) = pools(RINGS_MAX + 1);
    let (mut feed, metrics) = (Feed::default(), Arc::default());
    feed.begin(Now::default());
    let open =
        |feed: &mut Feed, name| feed.subscribe(pools.get(name).expect("a pool"), 1, &metrics);
    let subscriptions: Vec<_> =
        names.iter().take(SUBSCRIBED).map(|name| open(&mut feed, name)).collect();
    let subscribers: Vec<_> = subscriptions
        .iter()
        .flatten()
        .filter_map(|subscription| Arc::clone(subscription).subscribe(None).ok())
        .collect();
    for name in &names[subscriptions.len()..] {
        assert!(open(&mut feed, name).is_some());
    }
    assert!(feed.rings.len() <= RINGS_MAX);
    assert_eq!(subscribers.len(), SUBSCRIBED);
    let subscribed = names.iter().take(SUBSCRIBED).map(|name| pools.get(name).expect("a pool"));
    assert!(subscribed.into_iter().all(|pool| feed.has_subscribers(pool.id())));
}

/// A live follower that is exactly as far behind as the ring is long misses nothing; one event
/// further it misses one event, and a resync must say so. The edge was once tested for subscribers
/// that return only.
#[test]
fn a_live_follower_at_the_end_of_the_ring_misses_nothing_and_one_event_behind_it_resyncs() {
    let (pools, names) = pools(1);
    let pool = pools.get(&names[0]).expect("a pool");
    for behind in [0, 1, 2] {
        let (mut feed, metrics) = (Feed::default(), Arc::default());
        feed.begin(Now::default());
        let subscription = feed.subscribe(pool, 1, &metrics).expect("below the limit");
        let mut follower = Arc::clone(&subscription).subscribe(None).expect("below the limit");
        feed.publish(&pools);
        let mut next =
            || follower.poll_next(&mut Context::from_waker(Waker::noop()), 2 * RING_EVENTS_MAX);
        assert!(matches!(next(), Poll::Ready(Some(FeedBatch::Resync { .. }))));
        let mut emit = |count: usize| {
            feed.begin(Now::default());
            let purged = Event::Purged { key: KeyId(1), was: KeyState::Available };
            (0..count).for_each(|_| feed.emit(pool.id(), &purged));
            feed.publish(&pools);
        };
        // The follower has read an event, so that it is not at the beginning of the ring.
        emit(1);
        assert!(
            matches!(next(), Poll::Ready(Some(FeedBatch::Events(events))) if events.len() == 1)
        );
        emit(RING_EVENTS_MAX + behind);
        let batch = next();
        if let Poll::Ready(Some(FeedBatch::Events(events))) = &batch {
            assert_eq!((behind, events.len()), (0, RING_EVENTS_MAX), "every event, or a resync");
        } else {
            let resyncs = matches!(batch, Poll::Ready(Some(FeedBatch::Resync { .. })));
            assert!(resyncs && behind > 0, "{behind} events behind the ring: {batch:?}");
        }
        assert!(next().is_pending(), "it is at the present again");
    }
}

/// A turn whose commit failed is never published: its events never became durable.
#[test]
fn events_of_a_turn_that_was_not_committed_are_discarded() {
    let (pools, names) = pools(1);
    let pool = pools.get(&names[0]).expect("a pool");
    let (mut feed, metrics) = (Feed::default(), Arc::default());
    feed.begin(Now::default());
    let subscription = feed.subscribe(pool, 1, &metrics).expect("below the limit");
    let mut follower = Arc::clone(&subscription).subscribe(None).expect("below the limit");
    feed.publish(&pools);
    let mut next = || follower.poll_next(&mut Context::from_waker(Waker::noop()), 10);
    assert!(matches!(next(), Poll::Ready(Some(FeedBatch::Resync { .. }))));
    let mut emit = |publish: bool| {
        feed.begin(Now::default());
        feed.emit(pool.id(), &Event::Purged { key: KeyId(1), was: KeyState::Available });
        if publish {
            feed.publish(&pools);
        }
    };
    emit(false);
    emit(true);
    assert!(matches!(next(), Poll::Ready(Some(FeedBatch::Events(events))) if events.len() == 1));
}

/// A stream asks for the ring first, and reads it only after the engine's answer: meanwhile the ring
/// has no subscriber, and must not end by the time of the one before.
#[test]
fn a_ring_that_a_subscriber_takes_up_again_is_kept_as_long_as_after_its_last_one() {
    let (pools, names) = pools(1);
    let pool = pools.get(&names[0]).expect("a pool");
    let (mut feed, metrics) = (Feed::default(), Arc::default());
    let at = |lease_us| Now { lease_us, ..Now::default() };
    let begins_at = |feed: &mut Feed, us| {
        feed.begin(at(us));
        feed.publish(&pools);
        feed.has_subscribers(pool.id())
    };
    begins_at(&mut feed, 0);
    drop(feed.subscribe(pool, 1, &metrics).expect("below the limit"));
    let first = SWEEP_US;
    assert!(begins_at(&mut feed, first), "the first sweep without a subscriber");
    assert!(begins_at(&mut feed, first + LINGER_US - 1), "within its time");
    let subscription = feed.subscribe(pool, 1, &metrics).expect("below the limit");
    let again = first + LINGER_US + SWEEP_US;
    assert!(begins_at(&mut feed, again), "its time begins again");
    let mut follower = subscription.subscribe(None).expect("below the limit");
    let mut next = || follower.poll_next(&mut Context::from_waker(Waker::noop()), 10);
    assert!(matches!(next(), Poll::Ready(Some(FeedBatch::Resync { .. }))));
    assert!(next().is_pending(), "the ring is open");
    assert!(begins_at(&mut feed, again + 2 * LINGER_US), "it has a subscriber");
    drop(follower);
    let left = again + 3 * LINGER_US;
    assert!(begins_at(&mut feed, left), "the first sweep after the subscriber left");
    assert!(!begins_at(&mut feed, left + LINGER_US), "its time has passed");
}

#[test]
fn the_ring_of_a_deleted_pool_uses_no_memory() {
    let (pools, names) = pools(1);
    let pool = pools.get(&names[0]).expect("a pool");
    let (mut feed, metrics) = (Feed::default(), Arc::default());
    feed.begin(Now::default());
    feed.subscribe(pool, 1, &metrics).expect("below the limit");
    feed.emit(pool.id(), &Event::Purged { key: KeyId(1), was: KeyState::Available });
    feed.publish(&pools);
    assert!(feed.bytes > 0);
    feed.begin(Now::default());
    feed.record(&Fact::PoolDeleted { pool: pool.id() });
    let (without, _) = self::pools(0);
    feed.publish(&without);
    assert_eq!((feed.bytes, feed.rings.len()), (0, 0));
}
