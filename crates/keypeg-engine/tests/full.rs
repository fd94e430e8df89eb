//! A full disk causes no loss: new keys are refused first, then grants, while releases continue.
//! Everything resumes without a restart when there is space again.

mod support;

use keypeg_core::{
    BodyDigest, KeyRef, LeaseId, NewLabels, PolicyPatch, PoolName, Refusal, ReleaseOptions,
};
use keypeg_engine::StartError;
use keypeg_engine::disk::Disk;
use keypeg_engine::state::CallId;
use keypeg_engine::state::{EngineState, JournalSizes};
use keypeg_store::{Call, Principal, Reply, Request, RequestError};
use std::collections::VecDeque;
use std::sync::Arc;
use support::sim_disk::SimDisk;
use support::{Driver, ManualClock, SeededRandom, SentCall, default_pool, engine_config};

/// A segment larger than the space that is kept unused at the end of the last one.
const SEGMENT: u64 = (2 << 20) + 16_384;
/// So large that segments are deleted only when the disk is full.
const JOURNAL: u64 = 1 << 40;

fn open(disk: &SimDisk, clock: &ManualClock) -> Driver {
    try_open(disk, clock).expect("opens")
}

fn try_open(disk: &SimDisk, clock: &ManualClock) -> Result<Driver, StartError> {
    let sizes = JournalSizes { segment: SEGMENT, journal: JOURNAL };
    let disk = Arc::new(disk.clone());
    let (engine, recovery) = EngineState::open(
        Some(disk),
        sizes,
        &engine_config(),
        Box::new(clock.clone()),
        Box::new(SeededRandom(1)),
    )?;
    let (clock, by) = (clock.clone(), Principal::Anyone);
    let mut driver = Driver { engine, recovery, clock, checkpointer: None, by };
    driver.checkpointer = driver.engine.take_checkpointer();
    driver.engine.start_preallocation(false).expect("the disk has space");
    Ok(driver)
}

fn is_full(reply: &Reply) -> bool {
    matches!(reply, Reply::Refused(RequestError::StorageFull))
}

fn generate(driver: &mut Driver, count: u32) -> Reply {
    driver.call(Call::Generate { pool: default_pool(), count, labels: NewLabels::None })
}

fn acquire(driver: &mut Driver) -> Reply {
    driver.call(Call::Acquire { pool: default_pool(), ttl_ms: None, holder: None, wait_ms: 0 })
}

/// Fills the disk, and lets the engine notice.
fn fill(disk: &SimDisk, driver: &mut Driver) {
    disk.set_capacity(Some(disk.used()));
    for _ in 0..200 {
        if is_full(&generate(driver, 2_000)) {
            return;
        }
    }
    panic!("the disk does not fill");
}

#[test]
fn new_keys_then_grants_are_refused_releases_continue_and_all_resumes() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = open(&disk, &clock);
    let ids = driver.generate(1_000);
    let mut leases: Vec<LeaseId> = Vec::new();
    for _ in 0..500 {
        let Reply::Granted { lease, .. } = acquire(&mut driver) else {
            panic!("a key is available")
        };
        leases.push(lease.id);
    }
    fill(&disk, &mut driver);
    assert!(!is_full(&acquire(&mut driver)), "grants continue in the reserved segment");
    let mut granted = 0;
    loop {
        let reply = acquire(&mut driver);
        if is_full(&reply) {
            break;
        }
        let Reply::Granted { lease, .. } = reply else { panic!("{reply:?}") };
        driver.call(Call::Release {
            pool: default_pool(),
            lease: lease.id,
            options: ReleaseOptions::default(),
        });
        granted += 1;
        assert!(granted < 100_000, "grants are refused in the end");
    }
    assert!(is_full(&generate(&mut driver, 1)));
    for lease in leases {
        let reply = driver.call(Call::Release {
            pool: default_pool(),
            lease,
            options: ReleaseOptions::default(),
        });
        assert!(matches!(reply, Reply::Released { .. }), "{reply:?}");
    }
    let reply = driver.call(Call::DeleteKey { pool: default_pool(), key: KeyRef::Id(ids[0]) });
    assert!(matches!(reply, Reply::Released { .. }), "{reply:?}");
    let keys = driver.engine.pools().key_count();
    drop(driver);
    let mut driver = open(&disk, &clock);
    assert_eq!(driver.recovery.keys, keys, "a start on a full disk keeps all keys");
    disk.set_capacity(None);
    clock.advance_ms(1_000);
    assert!(
        matches!(generate(&mut driver, 10), Reply::Keys(_)),
        "everything resumes without a restart"
    );
    assert!(matches!(acquire(&mut driver), Reply::Granted { .. }));
}

#[test]
fn a_checkpoint_frees_space_on_a_full_disk() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = open(&disk, &clock);
    driver.generate(1_000);
    driver.checkpoint().unwrap();
    driver.checkpointer.as_ref().unwrap().ensure_ballast().unwrap();
    for _ in 0..30_000 {
        let Reply::Granted { lease, .. } = acquire(&mut driver) else {
            panic!("a key is available")
        };
        driver.call(Call::Release {
            pool: default_pool(),
            lease: lease.id,
            options: ReleaseOptions::default(),
        });
    }
    // No space for another segment, and almost no new key since the last checkpoint.
    disk.set_capacity(Some(disk.used() + 65_536));
    assert!(driver.checkpoint().unwrap_err().contains("full"));
    driver.checkpoint().expect("the ballast frees space");
    for _ in 0..60_000 {
        clock.advance_ms(1);
        let reply = acquire(&mut driver);
        if let Reply::Granted { lease, .. } = &reply {
            driver.call(Call::Release {
                pool: default_pool(),
                lease: lease.id,
                options: ReleaseOptions::default(),
            });
        } else {
            assert!(is_full(&reply), "{reply:?}");
        }
    }
    assert!(matches!(acquire(&mut driver), Reply::Granted { .. }), "segments were deleted");
}

/// A directory with a thousand keys and a lease, whose disk is full before a segment is preallocated.
fn young_directory() -> (SimDisk, ManualClock, Driver, LeaseId) {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = open(&disk, &clock);
    driver.generate(1_000);
    driver.checkpoint().expect("there is space");
    let Reply::Granted { lease, .. } = acquire(&mut driver) else { panic!("a key is available") };
    for name in Disk::list(&disk).expect("lists") {
        if name.starts_with("journal") && name != "journal-000000000001" {
            disk.delete(&name);
        }
    }
    (disk, clock, driver, lease.id)
}

fn assert_all_is_there(driver: &mut Driver) {
    let reply = driver.call(Call::GetPool { pool: default_pool() });
    let Reply::Pool { pool, .. } = reply else { panic!("{reply:?}") };
    assert_eq!((pool.counts.total(), pool.counts.leased), (1_000, 1));
}

/// An operator restarts a server whose disk is full, although that frees no space.
#[test]
fn a_full_disk_does_not_end_a_start() {
    let (disk, clock, mut driver, _) = young_directory();
    driver.checkpointer.as_ref().unwrap().ensure_ballast().unwrap();
    for _ in 0..6 {
        // Other programs take what the last start has freed.
        disk.set_capacity(Some(disk.used()));
        drop(driver);
        driver = open(&disk, &clock);
        assert_all_is_there(&mut driver);
        // As in a server that runs for a short time: a checkpoint, and turns that delete segments.
        driver.checkpoint().unwrap();
        for _ in 0..100 {
            clock.advance_ms(10);
            driver.call(Call::GetPool { pool: default_pool() });
        }
    }
}

#[test]
fn a_start_takes_the_space_that_is_left_and_resumes_when_there_is_more() {
    for (free, starts) in [(10_000, false), (200_000, true)] {
        let (disk, clock, driver, lease) = young_directory();
        drop(driver);
        disk.set_capacity(Some(disk.used() + free));
        let opened = try_open(&disk, &clock);
        assert_eq!(opened.is_ok(), starts, "{free} bytes");
        disk.set_capacity(None);
        let mut driver = opened.unwrap_or_else(|_| open(&disk, &clock));
        assert_all_is_there(&mut driver);
        // A full disk is tried again after a second.
        clock.advance_ms(2_000);
        let options = ReleaseOptions::default();
        let released = driver.call(Call::Release { pool: default_pool(), lease, options });
        assert!(matches!(released, Reply::Released { .. }), "{released:?}");
        assert!(matches!(acquire(&mut driver), Reply::Granted { .. }), "there is space again");
    }
}

/// A key that became available while the disk was full would have been granted to the first waiter,
/// and that grant would have ended the process.
#[test]
fn waits_are_cancelled_while_no_grant_can_be_written() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = open(&disk, &clock);
    driver.generate(1_000);
    let side = PoolName::parse("side").unwrap();
    driver.call(Call::PutPool { pool: side.clone(), patch: Box::default() });
    let call = Call::Acquire { pool: side, ttl_ms: None, holder: None, wait_ms: 300_000 };
    let request = Request::new(Principal::Anyone, call).into();
    let mut requests = VecDeque::from([(CallId { lane: 9, slot: 0 }, request)]);
    driver.engine.turn(&mut requests, &mut Vec::new()).unwrap();
    assert_eq!(driver.engine.pools().waiter_count(), 1);
    fill(&disk, &mut driver);
    for _ in 0..100_000 {
        let Reply::Granted { lease, .. } = acquire(&mut driver) else { break };
        let (lease, options) = (lease.id, ReleaseOptions::default());
        driver.call(Call::Release { pool: default_pool(), lease, options });
    }
    assert!(is_full(&acquire(&mut driver)));
    assert_eq!(driver.engine.pools().waiter_count(), 0, "cancelled");
}

/// On a completely full disk, each lease that expired used to write an empty batch, until no space
/// was left and the process ended.
#[test]
fn time_is_frozen_while_expiries_cannot_be_written() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = open(&disk, &clock);
    let ids = driver.generate(40_000);
    for n in 0..200 {
        let call = Call::Acquire {
            pool: default_pool(),
            ttl_ms: Some(50_000 + n * 10),
            holder: None,
            wait_ms: 0,
        };
        assert!(matches!(driver.call(call), Reply::Granted { .. }));
    }
    fill(&disk, &mut driver);
    while matches!(acquire(&mut driver), Reply::Granted { .. }) {}
    let mut deletions =
        ids.into_iter().map(|id| Call::DeleteKey { pool: default_pool(), key: KeyRef::Id(id) });
    while !is_full(&driver.call(deletions.next().expect("the disk fills before"))) {}
    let leased =
        |driver: &Driver| driver.engine.pools().get(&default_pool()).unwrap().counts().leased;
    let (held, before) = (leased(&driver), journal(&disk));
    assert!(held > 100, "{held}");
    for _ in 0..400 {
        clock.advance_ms(1_000);
        let call = Call::GetPool { pool: default_pool() };
        let Reply::Pool { .. } = driver.call(call) else { panic!("reads continue") };
    }
    assert_eq!(leased(&driver), held, "no lease expires whose expiry cannot be written");
    assert!(before == journal(&disk), "nothing is written");
    disk.set_capacity(None);
    // Time must advance in the same turn in which there is space again: a lease granted on the
    // frozen clock would expire early.
    clock.advance_ms(1_000);
    let (id, granted_ms) = loop {
        if let Reply::Granted { lease, .. } = acquire(&mut driver) {
            break (lease.id, clock.boot_ms());
        }
        clock.advance_ms(1_000);
    };
    clock.advance_ms(granted_ms + 59_999 - clock.boot_ms());
    let renew = Call::Renew { pool: default_pool(), lease: id, ttl_ms: None };
    let reply = driver.call(renew.clone());
    let runs =
        matches!(reply, Reply::Refused(RequestError::Refused(Refusal::MaxHoldReached { .. })));
    assert!(runs, "{reply:?}");
    clock.advance_ms(1);
    let reply = driver.call(renew);
    assert!(matches!(reply, Reply::Refused(RequestError::Refused(Refusal::LeaseEnded { .. }))));
    assert_eq!(leased(&driver), 0, "the leases expire as soon as that can be written");
}

/// Keys that were already due when the space for purge records ran out used to be purged all the
/// same, until no space was left and the process ended.
#[test]
fn a_purge_backlog_is_frozen_too_while_purges_cannot_be_written() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = open(&disk, &clock);
    for _ in 0..90 {
        driver.generate(10_000);
    }
    fill(&disk, &mut driver);
    for _ in 0..400 {
        clock.advance_ms(1_000);
        let call = Call::GetPool { pool: default_pool() };
        let Reply::Pool { .. } = driver.call(call) else { panic!("reads continue") };
    }
    for _ in 0..400 {
        let call = Call::GetPool { pool: default_pool() };
        let Reply::Pool { .. } = driver.call(call) else { panic!("reads continue") };
    }
    let left = driver.engine.pools().key_count();
    assert!(left > 0, "there is no space for all purges");
    // A read purges nothing either.
    let call = Call::ListKeys {
        pool: default_pool(),
        state: None,
        limit: 1_000,
        cursor: None,
        label: None,
    };
    let reply = driver.call(call);
    assert!(is_full(&reply), "due keys are neither listed nor left out: {reply:?}");
    assert_eq!(driver.engine.pools().key_count(), left);
}

/// Fills the disk until no release and no deletion fits, or until `calls_max` of them; returns their
/// number. The keys of the pool `side` are a second away from their purge.
fn fill_beside_old_keys(calls_max: Option<usize>) -> (SimDisk, ManualClock, Driver, usize) {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = open(&disk, &clock);
    let patch = PolicyPatch { keepalive_ttl_ms: Some(None), ..PolicyPatch::default() };
    driver.call(Call::PutPool { pool: default_pool(), patch: Box::new(patch) });
    let patch = PolicyPatch { keepalive_ttl_ms: Some(Some(2_000)), ..PolicyPatch::default() };
    driver.call(Call::PutPool { pool: side(), patch: Box::new(patch) });
    let ids = driver.generate(10_000);
    let Reply::Keys(_) = driver.call(repeatable_call()) else { panic!("keys") };
    clock.advance_ms(1_000);
    fill(&disk, &mut driver);
    // Long texts, so that few calls fill a segment.
    let long = || Some("x".repeat(512).into());
    let grant = || Call::Acquire { pool: default_pool(), ttl_ms: None, holder: long(), wait_ms: 0 };
    let mut calls = Vec::new();
    while let Reply::Granted { lease, .. } = driver.call(grant()) {
        let options =
            ReleaseOptions { quarantine: true, reason: long(), ..ReleaseOptions::default() };
        calls.push(Call::Release { pool: default_pool(), lease: lease.id, options });
    }
    calls.extend(
        ids.into_iter().map(|id| Call::DeleteKey { pool: default_pool(), key: KeyRef::Id(id) }),
    );
    for (count, call) in calls.into_iter().enumerate() {
        if calls_max == Some(count) || is_full(&driver.call(call)) {
            return (disk, clock, driver, count);
        }
    }
    panic!("the disk does not fill");
}

fn side() -> PoolName {
    PoolName::parse("side").expect("valid")
}

fn repeatable_call() -> SentCall {
    SentCall::with_key(
        "keys",
        BodyDigest(1),
        Call::Generate { pool: side(), count: 10_000, labels: NewLabels::None },
    )
}

/// A key was due, and no record of its purge fitted on the disk: requests for it got 404, and a crash
/// took that back, because the next start found the key.
#[test]
fn no_answer_relies_on_a_purge_that_cannot_be_recorded() {
    let (.., calls) = fill_beside_old_keys(None);
    let (disk, clock, mut driver, _) = fill_beside_old_keys(Some(calls - 1));
    // One turn finds ten thousand due keys. It purges some, and leaves no space for the others.
    clock.advance_ms(1_000);
    driver.call(Call::GetPool { pool: side() });
    let left = driver.engine.pools().key_ids(&side());
    assert!((1..10_000).contains(&left.len()), "{} keys are due and not purged", left.len());
    let key = || KeyRef::Id(left[0]);
    let calls: Vec<SentCall> = vec![
        Call::GetKey { pool: side(), key: key() }.into(),
        Call::Reveal { pool: side(), key: key() }.into(),
        Call::KeepAlive { pool: side(), key: key() }.into(),
        Call::KeepAliveMany { pool: side(), keys: vec![left[0]] }.into(),
        Call::KeepAliveAll { pool: side() }.into(),
        Call::ListKeys { pool: side(), state: None, limit: 1_000, cursor: None, label: None }
            .into(),
        Call::DeleteKey { pool: side(), key: key() }.into(),
        Call::ForceRelease { pool: side(), key: key() }.into(),
        Call::Acquire { pool: side(), ttl_ms: None, holder: None, wait_ms: 0 }.into(),
        repeatable_call(),
    ];
    for call in calls {
        let reply = driver.call(call.clone());
        // One of the generated keys is purged, and that is recorded.
        let gone = matches!(reply, Reply::Refused(RequestError::Refused(Refusal::KeysGone)));
        let is_repeat = call.idempotency.is_some();
        assert!(is_full(&reply) || is_repeat && gone, "{:?}: {reply:?}", call.call);
    }
    assert_eq!(driver.engine.pools().key_ids(&side()), left);
    // A crash, then space: the keys exist again, as no answer has denied.
    drop(driver);
    disk.set_capacity(None);
    let mut driver = open(&disk, &clock);
    let get = || Call::GetKey { pool: side(), key: key() };
    assert!(matches!(driver.call(get()), Reply::Key(_)));
    // With space a purge is recorded before the answer.
    for _ in 0..5 {
        clock.advance_ms(1_000);
        driver.call(Call::GetPool { pool: side() });
    }
    let reply = driver.call(get());
    let unknown = matches!(reply, Reply::Refused(RequestError::Refused(Refusal::UnknownKey)));
    assert!(unknown, "{reply:?}");
}

/// A stored answer is returned again whatever space there is: a client that received "not applied"
/// for it would have lost its keys.
#[test]
fn a_stored_answer_is_returned_again_on_a_full_disk() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = open(&disk, &clock);
    let with_key = |key: &str, call| SentCall::with_key(key, BodyDigest(1), call);
    let acquire_call =
        || Call::Acquire { pool: default_pool(), ttl_ms: None, holder: None, wait_ms: 0 };
    let generate_call =
        || Call::Generate { pool: default_pool(), count: 40_000, labels: NewLabels::None };
    let Reply::Keys(keys) = driver.call(with_key("keys", generate_call())) else {
        panic!("expected keys")
    };
    let Reply::Granted { lease, .. } = driver.call(with_key("lease", acquire_call())) else {
        panic!("expected a grant")
    };
    let shown_expiry = |driver: &mut Driver| {
        let call = Call::GetKey { pool: default_pool(), key: KeyRef::Id(lease.key_id) };
        let Reply::Key(view) = driver.call(call) else { panic!("the key exists") };
        view.lease.expect("it is leased").expires_at_ms
    };
    fill(&disk, &mut driver);
    while matches!(acquire(&mut driver), Reply::Granted { .. }) {}
    let mut deletions = keys
        .iter()
        .filter(|key| key.id != lease.key_id)
        .map(|key| Call::DeleteKey { pool: default_pool(), key: KeyRef::Id(key.id) });
    let Reply::Keys(again) = driver.call(with_key("keys", generate_call())) else {
        panic!("the same answer")
    };
    assert_eq!(again, keys);
    while !is_full(&driver.call(deletions.next().expect("the disk fills before"))) {}
    let before = shown_expiry(&mut driver);
    for _ in 0..3 {
        clock.advance_ms(100_000);
        let reply = driver.call(with_key("lease", acquire_call()));
        let Reply::Granted { lease: again, redelivered: true, .. } = reply else {
            panic!("{reply:?}")
        };
        assert_eq!((again.id, again.expires_at_ms), (lease.id, lease.expires_at_ms));
        assert_eq!(shown_expiry(&mut driver), before, "the shown expiry is frozen with the lease");
    }
    assert!(is_full(&driver.call(with_key("other", acquire_call()))));
    let reply = driver.call(with_key("keys", generate_call()));
    let keys_gone = matches!(reply, Reply::Refused(RequestError::Refused(Refusal::KeysGone)));
    assert!(keys_gone, "{reply:?}");
}

/// Returns the contents of all journal files.
fn journal(disk: &SimDisk) -> Vec<Vec<u8>> {
    let names =
        disk.list().expect("it exists").into_iter().filter(|name| name.starts_with("journal"));
    names.map(|name| disk.read(&name).expect("it exists")).collect()
}
