//! The feed through the engine: what is told, when, to whom, and what is told to whoever missed
//! something.

#![expect(clippy::wildcard_enum_match_arm, reason = "a test may panic at what it did not expect")]

mod support;

use keypeg_engine::core::{
    KeyCounts, KeyId, KeyRef, KeyState, LeaseId, PolicyPatch, PoolName, Refusal, ReleaseOptions,
};
use keypeg_engine::feed::{
    FeedBatch, FeedEvent, FeedEventKind, SUBSCRIBERS_MAX, Subscriber, Subscription,
};
use keypeg_engine::{Call, Reply, RequestError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use support::sim_disk::{CrashAt, SimDisk};
use support::{Driver, GivenClock, WALL_US, default_pool, setup};

fn in_memory() -> Driver {
    Driver::open_with(None, &GivenClock::new(), 1, &setup()).expect("opens")
}

fn name(text: &str) -> PoolName {
    PoolName::parse(text).expect("a name")
}

fn following(driver: &mut Driver, pool: &str) -> Subscription {
    match driver.call(Call::Subscribe { pool: name(pool) }) {
        Reply::Subscription(following) => following,
        other => panic!("{other:?}"),
    }
}

fn follow(driver: &mut Driver, pool: &str) -> Subscriber {
    following(driver, pool).subscribe(None).expect("room for one")
}

/// What is there to read.
fn next(follower: &mut Subscriber) -> Poll<Option<FeedBatch>> {
    follower.poll_next(&mut Context::from_waker(Waker::noop()), 7)
}

/// All events that are there to read.
#[track_caller]
fn events(follower: &mut Subscriber) -> Vec<FeedEvent> {
    let mut all = Vec::new();
    while let Poll::Ready(slice) = next(follower) {
        match slice {
            Some(FeedBatch::Events(events)) => all.extend(events),
            other => panic!("no events but {other:?}"),
        }
    }
    all
}

#[track_caller]
fn whats(follower: &mut Subscriber) -> Vec<FeedEventKind> {
    events(follower).into_iter().map(|told| told.kind).collect()
}

#[track_caller]
fn resync(follower: &mut Subscriber) -> (u64, KeyCounts) {
    match next(follower) {
        Poll::Ready(Some(FeedBatch::Resync { seq, counts, .. })) => (seq, counts),
        other => panic!("no resync but {other:?}"),
    }
}

fn release(lease: LeaseId, verdict: ReleaseOptions) -> Call {
    Call::Release { pool: default_pool(), lease, verdict }
}

fn by_key(key: KeyId) -> Call {
    Call::ForceRelease { pool: default_pool(), key: KeyRef::Id(key) }
}

fn patched(driver: &mut Driver, pool: &str, patch: PolicyPatch) {
    let put = driver.call(Call::PutPool { pool: name(pool), patch });
    assert!(matches!(put, Reply::Pool { .. }), "{put:?}");
}

#[test]
fn a_leases_whole_life_is_told_in_order_with_its_ends_by_time() {
    let mut driver = in_memory();
    let mut follower = follow(&mut driver, "default");
    assert_eq!(resync(&mut follower).1, KeyCounts::default());
    let key = driver.generate(1)[0];
    let (lease, _, token) = driver.acquire("job-7").expect("free");
    driver.clock.tick_ms(1_000);
    let at_ms = |driver: &Driver| (WALL_US / 1_000) + driver.clock.boot_ms();
    let patch = PolicyPatch { max_hold_ms: Some(Some(90_000)), ..PolicyPatch::default() };
    patched(&mut driver, "default", patch);
    driver.call(release(lease, ReleaseOptions::default()));
    let (lease, _, second) = driver.acquire("").expect("free");
    driver.clock.tick_ms(2_000);
    driver.call(Call::Renew { pool: default_pool(), lease, ttl_ms: None });
    let renewed_at = at_ms(&driver);
    driver.clock.tick_ms(60_000);
    driver.turn(vec![]).expect("memory");
    let expired_at = at_ms(&driver);
    let told = events(&mut follower);
    let what: Vec<_> = told.iter().map(|told| told.kind.clone()).collect();
    let born_at = at_ms(&driver) - 63_000;
    let [
        FeedEventKind::KeysCreated { imported: false, keys, expires_at_ms },
        FeedEventKind::Granted { key: lent, token: first, holder, expires_at_ms: until },
        FeedEventKind::PolicyChanged(policy),
        FeedEventKind::LeaseEnded {
            by_time: false,
            rests_until_ms: None,
            reason: None,
            token: released,
            ..
        },
        FeedEventKind::Granted { holder: None, .. },
        FeedEventKind::Renewed { expires_at_ms: longer, .. },
        FeedEventKind::LeaseEnded { by_time: true, token: expired, rests_until_ms: None, .. },
    ] = &what[..]
    else {
        panic!("{what:#?}")
    };
    assert_eq!((&keys[..], *expires_at_ms), (&[key][..], Some(born_at + 300_000)));
    assert_eq!((*lent, *first, *released, *expired), (key, token, token, second));
    assert_eq!(holder.as_deref(), Some("job-7"));
    assert_eq!((*until, *longer), (born_at + 60_000, renewed_at + 60_000));
    assert_eq!(policy.max_hold_ms, Some(90_000));
    assert_eq!(told.last().map(|told| told.at_ms), Some(expired_at));
    assert!(told.is_sorted_by(|a, b| a.seq < b.seq), "numbers grow");
}

#[test]
fn rests_quarantine_deletions_and_purges_tell_where_the_key_was() {
    let mut driver = in_memory();
    driver.generate(4);
    let mut follower = follow(&mut driver, "default");
    let (_, counts) = resync(&mut follower);
    assert_eq!(counts, KeyCounts { available: 4, ..KeyCounts::default() });
    let leases: Vec<_> = (0..4).map(|_| driver.acquire("").expect("free")).collect();
    events(&mut follower);
    let [(rests, resting, _), (apart, set_aside, third), (_, doomed, _), _] = leases[..] else {
        panic!("four")
    };
    let rest =
        ReleaseOptions { rest_ms: Some(5_000), reason: Some("429".into()), quarantine: false };
    driver.call(release(rests, rest));
    let quarantine = ReleaseOptions { quarantine: true, reason: Some("bad".into()), rest_ms: None };
    driver.call(release(apart, quarantine));
    driver.call(Call::DeleteKey { pool: default_pool(), key: KeyRef::Id(doomed) });
    let [
        FeedEventKind::LeaseEnded {
            by_time: false,
            key: first,
            rests_until_ms: Some(until),
            reason,
            ..
        },
        FeedEventKind::Quarantined { key: second, token, reason: why },
        FeedEventKind::KeyRemoved { by_time: false, key: deleted, was: KeyState::Leased },
    ] = &whats(&mut follower)[..]
    else {
        panic!("three")
    };
    assert_eq!((*first, *second, *deleted, *token), (resting, set_aside, doomed, third));
    assert_eq!((reason.as_deref(), why.as_deref()), (Some("429"), Some("bad")));
    assert_eq!(*until, WALL_US / 1_000 + driver.clock.boot_ms() + 5_000);
    driver.clock.tick_ms(5_000);
    driver.turn(vec![]).expect("memory");
    driver.call(by_key(set_aside));
    let back = |key, was| FeedEventKind::KeyFreed { key, was };
    let both = [back(resting, KeyState::Resting), back(set_aside, KeyState::Quarantined)];
    assert_eq!(whats(&mut follower), both);
    // Serving time adds a second a step.
    for _ in 0..400 {
        driver.clock.tick_ms(1_000);
        driver.turn(vec![]).expect("memory");
    }
    let gone = whats(&mut follower);
    let purged = |gone: &&FeedEventKind| {
        matches!(gone, FeedEventKind::KeyRemoved { by_time: true, was: KeyState::Available, .. })
    };
    assert_eq!(gone.iter().filter(purged).count(), 3, "{gone:?}");
    assert!(
        matches!(gone[0], FeedEventKind::LeaseEnded { by_time: true, .. }),
        "its lease ended before"
    );
    assert_eq!(gone.len(), 4);
}

#[test]
fn nothing_is_told_of_a_turn_whose_commit_fails() {
    let mut failures = 0;
    for (operation, after) in (0..).flat_map(|operation| [(operation, false), (operation, true)]) {
        let (disk, clock) = (SimDisk::new(), GivenClock::new());
        let mut driver = Driver::open(Arc::new(disk.clone()), &clock, 1).expect("opens");
        let mut follower = follow(&mut driver, "default");
        resync(&mut follower);
        driver.generate(2);
        driver.acquire("").expect("free");
        assert_eq!(events(&mut follower).len(), 2);
        clock.tick_ms(60_000);
        disk.crash_at(Some(CrashAt { operation, after }));
        let made = driver.turn(vec![Call::Generate { pool: default_pool(), count: 1 }]);
        let told = events(&mut follower).len();
        if made.is_ok() {
            assert_eq!(told, 2, "the end of the lease and the new key");
            break;
        }
        assert_eq!(told, 0, "crashed at {operation}");
        failures += 1;
    }
    assert!(failures >= 3, "a write and a sync failed");
}

#[test]
fn whoever_comes_back_is_told_exactly_what_was_missed() {
    let mut driver = in_memory();
    driver.generate(50);
    let mut first = follow(&mut driver, "default");
    let (begin, _) = resync(&mut first);
    for _ in 0..50 {
        driver.acquire("").expect("free");
    }
    let all = events(&mut first);
    assert_eq!(all.len(), 50);
    let ids: Vec<_> = [begin]
        .into_iter()
        .chain(all.iter().map(|told| told.seq))
        .map(|seq| first.event_id(seq))
        .collect();
    drop(first);
    for (missed_from, id) in ids.iter().enumerate() {
        let again = following(&mut driver, "default");
        let mut follower = again.subscribe(Some(id)).expect("room");
        assert_eq!(events(&mut follower), all[missed_from..], "after {id}");
    }
}

#[test]
fn an_id_that_is_of_nothing_here_gives_the_counts_anew() {
    let mut driver = in_memory();
    driver.generate(3);
    patched(&mut driver, "other", PolicyPatch::default());
    let (mut here, mut there) = (follow(&mut driver, "default"), follow(&mut driver, "other"));
    let ((seq, _), (elsewhere, _)) = (resync(&mut here), resync(&mut there));
    // So that the number alone, of the other pool, would be one of this pool's ring.
    driver.generate(1);
    let again = Driver::open_with(None, &GivenClock::new(), 2, &setup());
    let mut other_run = follow(&mut again.expect("opens"), "default");
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
        let mut follower = following(&mut driver, "default").subscribe(Some(id)).expect("room");
        assert_eq!(resync(&mut follower).1.available, 4, "{id:?}");
        assert_eq!(next(&mut follower), Poll::Pending);
    }
}

#[test]
fn who_falls_out_of_the_ring_goes_on_from_the_present() {
    let mut driver = in_memory();
    driver.generate(1);
    let mut slow = follow(&mut driver, "default");
    let mut quick = follow(&mut driver, "default");
    resync(&mut slow);
    resync(&mut quick);
    let mut read = 0;
    for _ in 0..17_000 {
        let (lease, ..) = driver.acquire("").expect("free");
        driver.call(release(lease, ReleaseOptions::default()));
        read += events(&mut quick).len();
    }
    assert_eq!(read, 34_000, "who keeps up misses nothing");
    driver.acquire("").expect("free");
    let (seq, counts) = resync(&mut slow);
    assert_eq!(counts, KeyCounts { leased: 1, ..KeyCounts::default() });
    assert_eq!(next(&mut slow), Poll::Pending);
    assert_eq!(events(&mut quick).last().map(|told| told.seq), Some(seq));
    let mut back = following(&mut driver, "default").subscribe(Some(&slow.event_id(seq - 32_768)));
    let kept = events(back.as_mut().expect("room"));
    assert_eq!(kept.len(), 32_768, "as many as are kept");
    let mut back = following(&mut driver, "default").subscribe(Some(&slow.event_id(seq - 32_769)));
    resync(back.as_mut().expect("room"));
}

#[test]
fn a_removed_pool_is_told_and_then_nothing_more() {
    let mut driver = in_memory();
    patched(&mut driver, "ci", PolicyPatch::default());
    let mut quick = follow(&mut driver, "ci");
    let mut late = follow(&mut driver, "ci");
    resync(&mut quick);
    // Made again in the same turn: another pool, which nobody follows.
    let put = Call::PutPool { pool: name("ci"), patch: PolicyPatch::default() };
    let drop = Call::DeletePool { pool: name("ci") };
    driver.turn(vec![drop, put, Call::Generate { pool: name("ci"), count: 1 }]).expect("memory");
    assert!(
        matches!(next(&mut quick), Poll::Ready(Some(FeedBatch::Events(told))) if told[0].kind == FeedEventKind::PoolDeleted)
    );
    assert_eq!(next(&mut quick), Poll::Ready(None));
    resync(&mut late);
    assert!(
        matches!(next(&mut late), Poll::Ready(Some(FeedBatch::Events(told))) if told[0].kind == FeedEventKind::PoolDeleted)
    );
    assert_eq!(next(&mut late), Poll::Ready(None));
    let unknown = driver.call(Call::Subscribe { pool: name("nope") });
    assert!(matches!(unknown, Reply::Refused(RequestError::Refused(Refusal::UnknownPool))));
}

#[test]
fn a_stop_ends_all_who_follow_and_lets_nobody_follow_any_more() {
    let mut driver = in_memory();
    driver.generate(1);
    let mut follower = follow(&mut driver, "default");
    resync(&mut follower);
    driver.acquire("").expect("free");
    driver.works.cancel_waits();
    let told = next(&mut follower);
    assert!(matches!(told, Poll::Ready(Some(_))), "what was told before can be read: {told:?}");
    assert_eq!(next(&mut follower), Poll::Ready(None));
    let refused = driver.call(Call::Subscribe { pool: default_pool() });
    assert!(matches!(refused, Reply::Refused(RequestError::ShuttingDown)), "{refused:?}");
}

#[test]
fn a_ring_stays_a_minute_after_its_last_follower_and_no_longer() {
    for (away_ms, missed) in [(58_000, true), (62_000, false)] {
        let mut driver = in_memory();
        driver.generate(1);
        let mut follower = follow(&mut driver, "default");
        let (seq, _) = resync(&mut follower);
        let id = follower.event_id(seq);
        // As long as somebody follows, however long nothing happens.
        for _ in 0..100 {
            driver.clock.tick_ms(2_000);
            driver.turn(vec![Call::KeepAliveAll { pool: default_pool() }]).expect("memory");
        }
        drop(follower);
        for _ in 0..away_ms / 1_000 {
            driver.turn(vec![]).expect("memory");
            driver.clock.tick_ms(1_000);
        }
        driver.acquire("").expect("free");
        let mut back = following(&mut driver, "default").subscribe(Some(&id)).expect("room");
        if missed {
            assert!(matches!(whats(&mut back)[..], [FeedEventKind::Granted { .. }]));
        } else {
            resync(&mut back);
        }
    }
}

#[test]
fn as_many_as_may_follow_do_and_one_who_leaves_makes_room() {
    let mut driver = in_memory();
    let here = following(&mut driver, "default");
    let mut all: Vec<_> =
        (0..SUBSCRIBERS_MAX).map(|_| here.subscribe(None).expect("room")).collect();
    assert!(here.subscribe(None).is_none());
    assert_eq!(driver.works.metrics().subscribers.load(Ordering::Relaxed), SUBSCRIBERS_MAX);
    all.pop();
    assert!(here.subscribe(None).is_some());
    drop(all);
    assert_eq!(driver.works.metrics().subscribers.load(Ordering::Relaxed), 0);
}

#[test]
fn ten_thousand_keys_are_told_in_parts_that_name_each_once() {
    let mut driver = in_memory();
    let mut follower = follow(&mut driver, "default");
    resync(&mut follower);
    let made = driver.generate(10_000);
    let mut named = Vec::new();
    for what in whats(&mut follower) {
        let FeedEventKind::KeysCreated { keys, .. } = what else { panic!("{what:?}") };
        assert!((1..=100).contains(&keys.len()));
        named.extend_from_slice(&keys);
    }
    assert_eq!(named, made);
}

struct Rings(AtomicU64);

impl Wake for Rings {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn whoever_waits_is_woken_once_a_turn_that_tells_something_of_its_pool() {
    let mut driver = in_memory();
    patched(&mut driver, "other", PolicyPatch::default());
    let mut follower = follow(&mut driver, "default");
    resync(&mut follower);
    let rings = Arc::new(Rings(AtomicU64::new(0)));
    let waker = Waker::from(Arc::clone(&rings));
    let waits = |follower: &mut Subscriber| {
        assert!(follower.poll_next(&mut Context::from_waker(&waker), 9).is_pending());
    };
    waits(&mut follower);
    driver.call(Call::Generate { pool: name("other"), count: 3 });
    assert_eq!(rings.0.load(Ordering::Relaxed), 0, "another pool");
    driver.generate(3);
    assert_eq!(rings.0.load(Ordering::Relaxed), 1);
    driver.generate(3);
    assert_eq!(rings.0.load(Ordering::Relaxed), 1, "it has not asked again");
    assert_eq!(events(&mut follower).len(), 2);
    waits(&mut follower);
    driver.works.cancel_waits();
    assert_eq!(rings.0.load(Ordering::Relaxed), 2);
}
