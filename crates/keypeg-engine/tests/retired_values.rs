//! Retired values: values that were deleted stay refused, also while the database is asked for them,
//! unless the import allows them, and the imports that wait for it are bounded.

mod support;

use keypeg_core::{ImportOptions, KeyRef, NewLabels, PoolName, Refusal, Secret};
use keypeg_engine::state::CallId;
use keypeg_store::{Call, LaneItem, Principal, Reply, Request, RequestError};
use std::collections::VecDeque;
use std::sync::Arc;
use support::sim_disk::SimDisk;
use support::{Driver, ManualClock, default_pool, list_pools};

fn open(disk: &SimDisk, clock: &ManualClock) -> Driver {
    Driver::open(Arc::new(disk.clone()), clock, 1).expect("opens")
}

fn import_of(pool: PoolName, values: Vec<Secret>) -> Call {
    Call::Import { pool, values, options: ImportOptions::default(), labels: NewLabels::None }
}

#[test]
fn a_retired_value_is_never_used_again_wherever_its_deletion_was_written() {
    let side_pool = || PoolName::parse("side").unwrap();
    let import = |value: &str| import_of(side_pool(), vec![Secret::new(value).unwrap()]);
    for checkpoint_point in [0, 1, 2, 3] {
        let (disk, clock) = (SimDisk::new(), ManualClock::new());
        let mut driver = open(&disk, &clock);
        let checkpoint_at = |driver: &mut Driver, point| {
            if point == checkpoint_point {
                driver.checkpoint().unwrap();
            }
        };
        driver.call(Call::PutPool { pool: side_pool(), patch: Box::default() });
        driver.call(import("value"));
        checkpoint_at(&mut driver, 1);
        let key = KeyRef::Value(Secret::new("value").unwrap());
        driver.call(Call::DeleteKey { pool: side_pool(), key });
        checkpoint_at(&mut driver, 2);
        for _ in 0..2 {
            drop(driver);
            driver = open(&disk, &clock);
            checkpoint_at(&mut driver, 3);
            let reply = driver.call(import("value"));
            let Reply::Refused(RequestError::Refused(Refusal::KeyExists { index: 0 })) = reply
            else {
                panic!("checkpoint at {checkpoint_point}: {reply:?}")
            };
        }
        driver.call(Call::DeletePool { pool: side_pool() });
        driver.call(Call::PutPool { pool: side_pool(), patch: Box::default() });
        assert!(
            matches!(driver.call(import("value")), Reply::Keys(_)),
            "values are retired only as long as the pool exists"
        );
    }
}

/// A generated value is recognised without a row in the database, over any restart, and comes back
/// with its keep-alive choice only where the import allows it.
#[test]
fn a_generated_value_stays_retired_wherever_its_deletion_was_written() {
    for checkpoint_point in [0, 1, 2, 3, 4] {
        let (disk, clock) = (SimDisk::new(), ManualClock::new());
        let mut driver = open(&disk, &clock);
        let checkpoint_at = |driver: &mut Driver, point| {
            if point == checkpoint_point {
                driver.checkpoint().unwrap();
            }
        };
        let generate = Call::Generate { pool: default_pool(), count: 1, labels: NewLabels::None };
        let Reply::Keys(keys) = driver.call(generate) else { panic!("expected a key") };
        let (id, value) = (keys[0].id, keys[0].value.clone());
        let (.., token) = driver.acquire("before").unwrap();
        checkpoint_at(&mut driver, 1);
        driver.call(Call::DeleteKey { pool: default_pool(), key: KeyRef::Id(id) });
        checkpoint_at(&mut driver, 2);
        let import = |options| Call::Import {
            pool: default_pool(),
            values: vec![value.clone()],
            options,
            labels: NewLabels::None,
        };
        let is_refused = |driver: &mut Driver| {
            let reply = driver.call(import(ImportOptions::default()));
            let expected = Refusal::KeyExists { index: 0 };
            matches!(reply, Reply::Refused(RequestError::Refused(why)) if why == expected)
        };
        drop(driver);
        let mut driver = open(&disk, &clock);
        assert!(is_refused(&mut driver), "checkpoint at {checkpoint_point}");
        let back = ImportOptions { keepalive: false, allow_retired: true };
        let Reply::Keys(keys) = driver.call(import(back)) else { panic!("it is allowed") };
        assert_eq!((keys[0].id, keys[0].expires_at_ms), (id, None));
        checkpoint_at(&mut driver, 3);
        drop(driver);
        let mut driver = open(&disk, &clock);
        for _ in 0..400 {
            clock.advance_ms(1_000);
            driver.call(list_pools());
        }
        let reply = driver.call(Call::GetKey { pool: default_pool(), key: KeyRef::Id(id) });
        let Reply::Key(view) = reply else { panic!("it is never purged: {reply:?}") };
        assert_eq!((view.keepalive, view.expires_at_ms), (false, None));
        assert!(is_refused(&mut driver), "it is in the pool");
        assert!(driver.acquire("after").unwrap().2 > token, "tokens only grow");
        driver.call(Call::DeleteKey { pool: default_pool(), key: KeyRef::Id(id) });
        checkpoint_at(&mut driver, 4);
        assert!(is_refused(&mut driver), "imported and retired");
        drop(driver);
        assert!(is_refused(&mut open(&disk, &clock)), "after a start");
    }
}

/// A value is deleted while an import of it waits for the database. The database did not have the
/// value when the lookup was sent, and has it when the import is applied.
#[test]
fn a_value_deleted_during_a_database_lookup_is_not_imported_again() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = open(&disk, &clock);
    let secret = |value: &str| Secret::new(value).unwrap();
    let import =
        |values: &[&str]| import_of(default_pool(), values.iter().map(|v| secret(v)).collect());
    let delete =
        |value| Call::DeleteKey { pool: default_pool(), key: KeyRef::Value(secret(value)) };
    driver.call(import(&["first", "second"]));
    driver.call(delete("first"));
    driver.checkpoint().unwrap();
    // The database now has the first value, and memory drops it: the import needs a lookup.
    driver.call(list_pools());
    let mut requests = VecDeque::new();
    for (slot, call) in (0..).zip([import(&["new", "second"]), delete("second")]) {
        requests
            .push_back((CallId { lane: 0, slot }, Request::new(Principal::Anyone, call).into()));
    }
    let mut replies = Vec::new();
    driver.engine.turn(&mut requests, &mut replies).unwrap();
    assert!(
        matches!(replies[..], [(CallId { slot: 1, .. }, Reply::Released { .. })]),
        "{replies:?}"
    );
    assert_eq!(driver.engine.pending_count(), 1, "the import waits");
    driver.checkpointer.as_ref().unwrap().serve_lookups().unwrap();
    driver.checkpoint().unwrap();
    driver.engine.turn(&mut requests, &mut replies).unwrap();
    let reply = format!("{:?}", replies[1]);
    assert!(reply.contains("KeyExists { index: 1 }"), "{reply}");
    let reply = format!("{:?}", driver.call(import(&["new", "first"])));
    assert!(reply.contains("KeyExists { index: 1 }"), "{reply}");
    assert!(matches!(driver.call(import(&["new"])), Reply::Keys(_)));
}

/// A pool is deleted while an import waits, and created again under the same name: the lookup's
/// result belongs to the deleted pool, whose values are forgotten.
#[test]
fn an_import_is_not_checked_against_a_deleted_pool_of_the_same_name() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = open(&disk, &clock);
    let side_pool = || PoolName::parse("side").unwrap();
    let secret = || Secret::new("value").unwrap();
    let import = || import_of(side_pool(), vec![secret()]);
    let put = || Call::PutPool { pool: side_pool(), patch: Box::default() };
    driver.call(put());
    driver.call(import());
    driver.call(Call::DeleteKey { pool: side_pool(), key: KeyRef::Value(secret()) });
    driver.checkpoint().unwrap();
    driver.call(list_pools());
    let request = |call| LaneItem::Request(Request::new(Principal::Anyone, call));
    let mut requests = VecDeque::new();
    for (slot, call) in (0..).zip([import(), Call::DeletePool { pool: side_pool() }, put()]) {
        requests.push_back((CallId { lane: 0, slot }, request(call)));
    }
    let mut replies = Vec::new();
    driver.engine.turn(&mut requests, &mut replies).unwrap();
    assert_eq!((replies.len(), driver.engine.pending_count()), (2, 1), "the import waits");
    driver.checkpointer.as_ref().unwrap().serve_lookups().unwrap();
    driver.engine.turn(&mut requests, &mut replies).unwrap();
    assert!(matches!(replies[2], (CallId { slot: 0, .. }, Reply::Keys(_))), "{:?}", replies[2]);
}

/// The number of imports that wait for the database is bounded; further ones are refused.
#[test]
fn imports_that_wait_for_the_database_are_bounded() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = open(&disk, &clock);
    let import = |value: String| import_of(default_pool(), vec![Secret::new(&value).unwrap()]);
    driver.call(import("gone".into()));
    let key = KeyRef::Value(Secret::new("gone").unwrap());
    driver.call(Call::DeleteKey { pool: default_pool(), key });
    driver.checkpoint().unwrap();
    driver.call(list_pools());
    let replies = driver.turn((0..300).map(|n| import(format!("value {n}"))).collect()).unwrap();
    let imported = replies.iter().filter(|reply| matches!(reply, Reply::Keys(_))).count();
    let refused = |reply: &&Reply| matches!(reply, Reply::Refused(RequestError::Overloaded));
    assert_eq!((imported, replies.iter().filter(refused).count()), (256, 44));
}
