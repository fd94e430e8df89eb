//! The feed through the engine: the events of keys that drain, that rest after an expiry, and that are
//! put back.

mod support;

use keypeg_core::{KeyRef, KeyState, PolicyPatch, QuarantineOptions};
use keypeg_store::{Call, FeedEventKind};
use support::subscriber::{
    event_kinds, events, force_release, in_memory, put_pool, resync, subscribe,
};
use support::{Driver, WALL_US, default_pool};

/// A key that drains is quarantined by the end of its lease, however it ends. A key that rests or
/// drains has a reason only if a call gave one.
#[test]
fn a_drain_a_rest_after_an_expiry_and_their_ends_are_sent() {
    let mut driver = in_memory();
    let patch = PolicyPatch { rest_ms: Some(5_000), ..PolicyPatch::default() };
    put_pool(&mut driver, "default", patch);
    let key = driver.generate(1)[0];
    let mut subscriber = subscribe(&mut driver, "default");
    resync(&mut subscriber);
    let quarantine = |driver: &mut Driver, when_free, reason: Option<&str>| {
        let options = QuarantineOptions { when_free, reason: reason.map(Into::into) };
        let key = KeyRef::Id(key);
        driver.call(Call::QuarantineKey { pool: default_pool(), key, options });
    };
    // The lease expires, and the key rests by its policy.
    let (_, _, token) = driver.acquire("").expect("free");
    let granted_ms = WALL_US / 1_000 + driver.clock.boot_ms();
    let FeedEventKind::Granted { expires_at_ms, .. } = event_kinds(&mut subscriber)[0] else {
        panic!("a grant")
    };
    driver.clock.advance_ms(expires_at_ms - granted_ms);
    driver.turn(vec![]).expect("an engine in memory does not fail");
    let expired = FeedEventKind::LeaseEnded {
        by_time: true,
        key,
        token,
        rests_until_ms: Some(expires_at_ms + 5_000),
        reason: None,
    };
    assert_eq!(event_kinds(&mut subscriber), [expired]);
    // A resting key is quarantined at once.
    quarantine(&mut driver, true, Some("rotation"));
    let quarantined = FeedEventKind::Quarantined {
        key,
        was: KeyState::Resting,
        token: None,
        reason: Some("rotation".into()),
    };
    assert_eq!(event_kinds(&mut subscriber), [quarantined]);
    driver.call(force_release(key));
    let freed = FeedEventKind::KeyFreed { key, was: KeyState::Quarantined };
    assert_eq!(event_kinds(&mut subscriber), [freed]);
    // A leased one drains; the drain is cancelled, begins again, and the lease expires.
    let (_, _, token) = driver.acquire("").expect("free");
    events(&mut subscriber);
    quarantine(&mut driver, true, Some("first"));
    driver.call(Call::EndQuarantine { pool: default_pool(), key: KeyRef::Id(key) });
    quarantine(&mut driver, true, Some("second"));
    let draining =
        |reason: &str| FeedEventKind::Draining { key, token, reason: Some(reason.into()) };
    let cancelled = FeedEventKind::DrainCancelled { key, token };
    assert_eq!(event_kinds(&mut subscriber), [draining("first"), cancelled, draining("second")]);
    driver.clock.advance_ms(120_000);
    driver.turn(vec![]).expect("an engine in memory does not fail");
    let ends = event_kinds(&mut subscriber);
    let [
        FeedEventKind::LeaseEnded { by_time: true, token: ended, rests_until_ms: None, .. },
        FeedEventKind::Quarantined { key: last, reason: Some(reason), .. },
    ] = &ends[..]
    else {
        panic!("{ends:?}")
    };
    assert_eq!((*ended, *last, &**reason), (token, key, "second"));
}
