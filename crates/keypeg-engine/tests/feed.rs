//! The feed through the engine: which events are sent, when, to which subscribers, and what a
//! subscriber that missed events receives.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test may panic at what it did not expect")]

mod support;

use keypeg_core::{
    KeyCounts, KeyRef, KeyState, LeaseId, NewLabels, PolicyPatch, Refusal, ReleaseOptions,
};
use keypeg_engine::feed::SUBSCRIBERS_MAX;
use keypeg_store::{Call, Reply, RequestError};
use keypeg_store::{FeedBatch, FeedEventKind, TooManySubscribers};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use support::sim_disk::{CrashAt, SimDisk};
use support::subscriber::{
    Reader, event_kinds, events, force_release, in_memory, name, next, put_pool, resync, subscribe,
    subscription,
};
use support::{Driver, ManualClock, WALL_US, default_pool, engine_config};

#[track_caller]
fn event_kinds_of_batch(batch: Poll<Option<FeedBatch>>) -> Vec<FeedEventKind> {
    match batch {
        Poll::Ready(Some(FeedBatch::Events(events))) => {
            events.into_iter().map(|event| event.kind).collect()
        }
        other => panic!("expected events, got {other:?}"),
    }
}

fn release(lease: LeaseId, options: ReleaseOptions) -> Call {
    Call::Release { pool: default_pool(), lease, options }
}

#[test]
fn every_event_of_a_lease_is_sent_in_order_including_its_expiry() {
    let mut driver = in_memory();
    let mut subscriber = subscribe(&mut driver, "default");
    assert_eq!(resync(&mut subscriber).1, KeyCounts::default());
    let key = driver.generate(1)[0];
    let (lease, _, token) = driver.acquire("job-7").expect("free");
    driver.clock.advance_ms(1_000);
    let at_ms = |driver: &Driver| (WALL_US / 1_000) + driver.clock.boot_ms();
    let patch = PolicyPatch { max_hold_ms: Some(Some(90_000)), ..PolicyPatch::default() };
    put_pool(&mut driver, "default", patch);
    driver.call(release(lease, ReleaseOptions::default()));
    let (lease, _, second) = driver.acquire("").expect("free");
    driver.clock.advance_ms(2_000);
    driver.call(Call::Renew { pool: default_pool(), lease, ttl_ms: None });
    let renewed_at = at_ms(&driver);
    driver.clock.advance_ms(60_000);
    driver.turn(vec![]).expect("an engine in memory does not fail");
    let expired_at = at_ms(&driver);
    let sent = events(&mut subscriber);
    let kinds: Vec<_> = sent.iter().map(|event| event.kind.clone()).collect();
    let created_at = at_ms(&driver) - 63_000;
    let [
        FeedEventKind::KeysCreated { imported: false, keys, labels: None, expires_at_ms },
        FeedEventKind::Granted {
            key: granted,
            token: first,
            holder,
            label: None,
            expires_at_ms: until,
        },
        FeedEventKind::PolicyChanged(policy),
        FeedEventKind::LeaseEnded {
            by_time: false,
            rests_until_ms: None,
            reason: None,
            token: released,
            ..
        },
        FeedEventKind::Granted { holder: None, .. },
        FeedEventKind::Renewed { expires_at_ms: renewed, .. },
        FeedEventKind::LeaseEnded { by_time: true, token: expired, rests_until_ms: None, .. },
    ] = &kinds[..]
    else {
        panic!("{kinds:#?}")
    };
    assert_eq!((&keys[..], *expires_at_ms), (&[key][..], Some(created_at + 300_000)));
    assert_eq!((*granted, *first, *released, *expired), (key, token, token, second));
    assert_eq!(holder.as_deref(), Some("job-7"));
    assert_eq!((*until, *renewed), (created_at + 60_000, renewed_at + 60_000));
    assert_eq!(policy.max_hold_ms, Some(90_000));
    assert_eq!(sent.last().map(|event| event.at_ms), Some(expired_at));
    assert!(sent.is_sorted_by(|a, b| a.seq < b.seq), "sequence numbers grow");
}

#[test]
fn rests_quarantine_deletions_and_purges_name_the_former_state_of_the_key() {
    let mut driver = in_memory();
    driver.generate(4);
    let mut subscriber = subscribe(&mut driver, "default");
    let (_, counts) = resync(&mut subscriber);
    assert_eq!(counts, KeyCounts { available: 4, ..KeyCounts::default() });
    let leases: Vec<_> = (0..4).map(|_| driver.acquire("").expect("free")).collect();
    events(&mut subscriber);
    let [(rests, resting, _), (quarantined, quarantined_key, third), (_, doomed, _), _] =
        leases[..]
    else {
        panic!("four")
    };
    let rest =
        ReleaseOptions { rest_ms: Some(5_000), reason: Some("429".into()), quarantine: false };
    driver.call(release(rests, rest));
    let quarantine = ReleaseOptions { quarantine: true, reason: Some("bad".into()), rest_ms: None };
    driver.call(release(quarantined, quarantine));
    driver.call(Call::DeleteKey { pool: default_pool(), key: KeyRef::Id(doomed) });
    let [
        FeedEventKind::LeaseEnded {
            by_time: false,
            key: first,
            rests_until_ms: Some(until),
            reason,
            ..
        },
        FeedEventKind::Quarantined {
            key: second,
            was: KeyState::Leased,
            token: Some(token),
            reason: second_reason,
        },
        FeedEventKind::KeyRemoved { by_time: false, key: deleted, was: KeyState::Leased },
    ] = &event_kinds(&mut subscriber)[..]
    else {
        panic!("three")
    };
    assert_eq!((*first, *second, *deleted, *token), (resting, quarantined_key, doomed, third));
    assert_eq!((reason.as_deref(), second_reason.as_deref()), (Some("429"), Some("bad")));
    assert_eq!(*until, WALL_US / 1_000 + driver.clock.boot_ms() + 5_000);
    driver.clock.advance_ms(5_000);
    driver.turn(vec![]).expect("an engine in memory does not fail");
    driver.call(force_release(quarantined_key));
    let freed = |key, was| FeedEventKind::KeyFreed { key, was };
    let both = [freed(resting, KeyState::Resting), freed(quarantined_key, KeyState::Quarantined)];
    assert_eq!(event_kinds(&mut subscriber), both);
    // Serving time advances at most a second per step.
    for _ in 0..400 {
        driver.clock.advance_ms(1_000);
        driver.turn(vec![]).expect("an engine in memory does not fail");
    }
    let removals = event_kinds(&mut subscriber);
    let purged = |kind: &&FeedEventKind| {
        matches!(kind, FeedEventKind::KeyRemoved { by_time: true, was: KeyState::Available, .. })
    };
    assert_eq!(removals.iter().filter(purged).count(), 3, "{removals:?}");
    assert!(
        matches!(removals[0], FeedEventKind::LeaseEnded { by_time: true, .. }),
        "its lease ended first"
    );
    assert_eq!(removals.len(), 4);
}

#[test]
fn a_turn_whose_commit_fails_sends_no_event() {
    let mut failures = 0;
    for (operation, after) in (0..).flat_map(|operation| [(operation, false), (operation, true)]) {
        let (disk, clock) = (SimDisk::new(), ManualClock::new());
        let mut driver = Driver::open(Arc::new(disk.clone()), &clock, 1).expect("opens");
        let mut subscriber = subscribe(&mut driver, "default");
        resync(&mut subscriber);
        driver.generate(2);
        driver.acquire("").expect("free");
        assert_eq!(events(&mut subscriber).len(), 2);
        clock.advance_ms(60_000);
        disk.crash_at(Some(CrashAt { operation, after }));
        let result = driver.turn(vec![Call::Generate {
            pool: default_pool(),
            count: 1,
            labels: NewLabels::None,
        }]);
        let event_count = events(&mut subscriber).len();
        if result.is_ok() {
            assert_eq!(event_count, 2, "the expiry of the lease and the new key");
            break;
        }
        assert_eq!(event_count, 0, "crashed at {operation}");
        failures += 1;
    }
    assert!(failures >= 3, "a write and a sync failed");
}

#[test]
fn a_subscriber_that_returns_receives_exactly_the_missed_events() {
    let mut driver = in_memory();
    driver.generate(50);
    let mut first = subscribe(&mut driver, "default");
    let (begin, _) = resync(&mut first);
    for _ in 0..50 {
        driver.acquire("").expect("free");
    }
    let all = events(&mut first);
    assert_eq!(all.len(), 50);
    let ids: Vec<_> = [begin]
        .into_iter()
        .chain(all.iter().map(|event| event.seq))
        .map(|seq| first.event_id(seq))
        .collect();
    drop(first);
    for (missed_from, id) in ids.iter().enumerate() {
        let resumed = subscription(&mut driver, "default");
        let mut subscriber = Arc::clone(&resumed).subscribe(Some(id)).expect("below the limit");
        assert_eq!(events(&mut subscriber), all[missed_from..], "after {id}");
    }
}

#[test]
fn an_unknown_event_id_causes_a_resync_with_the_counts() {
    let mut driver = in_memory();
    driver.generate(3);
    put_pool(&mut driver, "other", PolicyPatch::default());
    let (mut here, mut there) =
        (subscribe(&mut driver, "default"), subscribe(&mut driver, "other"));
    let ((seq, _), (elsewhere, _)) = (resync(&mut here), resync(&mut there));
    // After this the other pool's sequence number alone would be one in this pool's ring.
    driver.generate(1);
    let restarted = Driver::open_with(None, &ManualClock::new(), 2, &engine_config());
    let mut other_run = subscribe(&mut restarted.expect("opens"), "default");
    let (theirs, _) = resync(&mut other_run);
    for id in [
        &there.event_id(elsewhere),
        &other_run.event_id(theirs),
        &here.event_id(seq + 5),
        &here.event_id(seq - 1),
        "",
        "42",
        "-",
        "--",
        "x-y-z",
        &format!("{}0", here.event_id(u64::MAX)),
    ] {
        let mut subscriber =
            subscription(&mut driver, "default").subscribe(Some(id)).expect("below the limit");
        assert_eq!(resync(&mut subscriber).1.available, 4, "{id:?}");
        assert_eq!(next(&mut subscriber), Poll::Pending);
    }
}

#[test]
fn a_subscriber_that_falls_behind_the_ring_resyncs_at_the_present() {
    let mut driver = in_memory();
    driver.generate(1);
    let mut slow = subscribe(&mut driver, "default");
    let mut fast = subscribe(&mut driver, "default");
    resync(&mut slow);
    resync(&mut fast);
    let mut read = 0;
    for _ in 0..17_000 {
        let (lease, ..) = driver.acquire("").expect("free");
        driver.call(release(lease, ReleaseOptions::default()));
        read += events(&mut fast).len();
    }
    assert_eq!(read, 34_000, "a subscriber that keeps up misses no event");
    driver.acquire("").expect("free");
    let (seq, counts) = resync(&mut slow);
    assert_eq!(counts, KeyCounts { leased: 1, ..KeyCounts::default() });
    assert_eq!(next(&mut slow), Poll::Pending);
    assert_eq!(events(&mut fast).last().map(|event| event.seq), Some(seq));
    let mut resumed =
        subscription(&mut driver, "default").subscribe(Some(&slow.event_id(seq - 32_768)));
    let kept = events(resumed.as_mut().expect("below the limit"));
    assert_eq!(kept.len(), 32_768, "all events that the ring keeps");
    let mut resumed =
        subscription(&mut driver, "default").subscribe(Some(&slow.event_id(seq - 32_769)));
    resync(resumed.as_mut().expect("below the limit"));
}

#[test]
fn a_deleted_pool_sends_its_deletion_and_no_further_event() {
    let mut driver = in_memory();
    put_pool(&mut driver, "ci", PolicyPatch::default());
    let mut fast = subscribe(&mut driver, "ci");
    let mut late = subscribe(&mut driver, "ci");
    resync(&mut fast);
    // Created again in the same turn: this is another pool, without subscribers.
    let put = Call::PutPool { pool: name("ci"), patch: Box::default() };
    let drop = Call::DeletePool { pool: name("ci") };
    driver
        .turn(vec![
            drop,
            put,
            Call::Generate { pool: name("ci"), count: 1, labels: NewLabels::None },
        ])
        .expect("an engine in memory does not fail");
    assert_eq!(event_kinds_of_batch(next(&mut fast))[0], FeedEventKind::PoolDeleted);
    assert_eq!(next(&mut fast), Poll::Ready(None));
    resync(&mut late);
    assert_eq!(event_kinds_of_batch(next(&mut late))[0], FeedEventKind::PoolDeleted);
    assert_eq!(next(&mut late), Poll::Ready(None));
    let unknown = driver.call(Call::Subscribe { pool: name("nope") });
    assert!(matches!(unknown, Reply::Refused(RequestError::Refused(Refusal::UnknownPool))));
}

#[test]
fn a_stop_ends_all_subscriptions_and_refuses_new_ones() {
    let mut driver = in_memory();
    driver.generate(1);
    let mut subscriber = subscribe(&mut driver, "default");
    resync(&mut subscriber);
    driver.acquire("").expect("free");
    driver.engine.cancel_waits();
    let last = next(&mut subscriber);
    assert!(matches!(last, Poll::Ready(Some(_))), "earlier events can still be read: {last:?}");
    assert_eq!(next(&mut subscriber), Poll::Ready(None));
    let refused = driver.call(Call::Subscribe { pool: default_pool() });
    assert!(matches!(refused, Reply::Refused(RequestError::ShuttingDown)), "{refused:?}");
}

#[test]
fn a_ring_stays_a_minute_after_its_last_subscriber_and_no_longer() {
    for (away_ms, missed) in [(58_000, true), (62_000, false)] {
        let mut driver = in_memory();
        driver.generate(1);
        let mut subscriber = subscribe(&mut driver, "default");
        let (seq, _) = resync(&mut subscriber);
        let id = subscriber.event_id(seq);
        // The ring stays while there is a subscriber, even if no event occurs.
        for _ in 0..100 {
            driver.clock.advance_ms(2_000);
            driver
                .turn(vec![Call::KeepAliveAll { pool: default_pool() }])
                .expect("an engine in memory does not fail");
        }
        drop(subscriber);
        for _ in 0..away_ms / 1_000 {
            driver.turn(vec![]).expect("an engine in memory does not fail");
            driver.clock.advance_ms(1_000);
        }
        driver.acquire("").expect("free");
        let mut resumed =
            subscription(&mut driver, "default").subscribe(Some(&id)).expect("below the limit");
        if missed {
            assert!(matches!(event_kinds(&mut resumed)[..], [FeedEventKind::Granted { .. }]));
        } else {
            resync(&mut resumed);
        }
    }
}

#[test]
fn subscribers_are_limited_and_one_that_leaves_frees_a_slot() {
    let mut driver = in_memory();
    let pool = subscription(&mut driver, "default");
    let mut all: Vec<_> = (0..SUBSCRIBERS_MAX)
        .map(|_| Arc::clone(&pool).subscribe(None).expect("below the limit"))
        .collect();
    assert_eq!(
        Arc::clone(&pool).subscribe(None).err(),
        Some(TooManySubscribers { max: SUBSCRIBERS_MAX })
    );
    assert_eq!(driver.engine.metrics().subscribers.load(Ordering::Relaxed), SUBSCRIBERS_MAX);
    all.pop();
    assert!(Arc::clone(&pool).subscribe(None).is_ok());
    drop(all);
    assert_eq!(driver.engine.metrics().subscribers.load(Ordering::Relaxed), 0);
}

#[test]
fn the_creation_of_ten_thousand_keys_is_sent_in_parts_that_name_each_key_once() {
    let mut driver = in_memory();
    let mut subscriber = subscribe(&mut driver, "default");
    resync(&mut subscriber);
    let created = driver.generate(10_000);
    let mut named = Vec::new();
    for what in event_kinds(&mut subscriber) {
        let FeedEventKind::KeysCreated { keys, .. } = what else { panic!("{what:?}") };
        assert!((1..=100).contains(&keys.len()));
        named.extend_from_slice(&keys);
    }
    assert_eq!(named, created);
}

struct WakeCounter(AtomicU64);

impl Wake for WakeCounter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_waiting_subscriber_is_woken_once_per_turn_with_events_of_its_pool() {
    let mut driver = in_memory();
    put_pool(&mut driver, "other", PolicyPatch::default());
    let mut subscriber = subscribe(&mut driver, "default");
    resync(&mut subscriber);
    let wake_counter = Arc::new(WakeCounter(AtomicU64::new(0)));
    let waker = Waker::from(Arc::clone(&wake_counter));
    let waits = |subscriber: &mut Reader| {
        assert!(subscriber.poll_next(&mut Context::from_waker(&waker), 9).is_pending());
    };
    waits(&mut subscriber);
    driver.call(Call::Generate { pool: name("other"), count: 3, labels: NewLabels::None });
    assert_eq!(wake_counter.0.load(Ordering::Relaxed), 0, "another pool");
    driver.generate(3);
    assert_eq!(wake_counter.0.load(Ordering::Relaxed), 1);
    driver.generate(3);
    assert_eq!(wake_counter.0.load(Ordering::Relaxed), 1, "it has not polled again");
    assert_eq!(events(&mut subscriber).len(), 2);
    waits(&mut subscriber);
    driver.engine.cancel_waits();
    assert_eq!(wake_counter.0.load(Ordering::Relaxed), 2);
}
