//! Retired values: imported values that were deleted stay refused, also while the database is asked
//! for them, and the imports that wait for it are bounded.

mod support;

use keypeg_core::{KeyRef, PolicyPatch, PoolName, Refusal, Secret};
use keypeg_engine::state::CallId;
use keypeg_store::{Call, LaneItem, Principal, Reply, Request, RequestError};
use std::collections::VecDeque;
use std::sync::Arc;
use support::sim_disk::SimDisk;
use support::{Driver, ManualClock, default_pool};

fn open(disk: &SimDisk, clock: &ManualClock) -> Driver {
    Driver::open(Arc::new(disk.clone()), clock, 1).expect("opens")
}

#[test]
fn a_retired_value_is_never_used_again_wherever_its_deletion_was_written() {
    let side_pool = || PoolName::parse("side").unwrap();
    let import =
        |value: &str| Call::Import { pool: side_pool(), values: vec![Secret::new(value).unwrap()] };
    for checkpoint_point in [0, 1, 2, 3] {
        let (disk, clock) = (SimDisk::new(), ManualClock::new());
        let mut driver = open(&disk, &clock);
        let checkpoint_at = |driver: &mut Driver, point| {
            if point == checkpoint_point {
                driver.checkpoint().unwrap();
            }
        };
        driver.call(Call::PutPool { pool: side_pool(), patch: PolicyPatch::default() });
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
        driver.call(Call::PutPool { pool: side_pool(), patch: PolicyPatch::default() });
        assert!(
            matches!(driver.call(import("value")), Reply::Keys(_)),
            "values are retired only as long as the pool exists"
        );
    }
}

/// A value is deleted while an import of it waits for the database. The database did not have the
/// value when the lookup was sent, and has it when the import is applied.
#[test]
fn a_value_deleted_during_a_database_lookup_is_not_imported_again() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = open(&disk, &clock);
    let secret = |value: &str| Secret::new(value).unwrap();
    let import = |values: &[&str]| Call::Import {
        pool: default_pool(),
        values: values.iter().map(|v| secret(v)).collect(),
    };
    let delete =
        |value| Call::DeleteKey { pool: default_pool(), key: KeyRef::Value(secret(value)) };
    driver.call(import(&["first", "second"]));
    driver.call(delete("first"));
    driver.checkpoint().unwrap();
    // The database now has the first value, and memory drops it: the import needs a lookup.
    driver.call(Call::ListPools);
    let mut requests = VecDeque::new();
    for (slot, call) in (0..).zip([import(&["new", "second"]), delete("second")]) {
        requests
            .push_back((CallId { lane: 0, slot }, Request::new(Principal::Anyone, call).into()));
    }
    let mut replies = Vec::new();
    driver.engine.turn(&mut requests, &mut replies).unwrap();
    assert!(matches!(replies[..], [(CallId { slot: 1, .. }, Reply::Done)]), "{replies:?}");
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
    let import = || Call::Import { pool: side_pool(), values: vec![secret()] };
    let put = || Call::PutPool { pool: side_pool(), patch: PolicyPatch::default() };
    driver.call(put());
    driver.call(import());
    driver.call(Call::DeleteKey { pool: side_pool(), key: KeyRef::Value(secret()) });
    driver.checkpoint().unwrap();
    driver.call(Call::ListPools);
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
    let import = |value: String| Call::Import {
        pool: default_pool(),
        values: vec![Secret::new(&value).unwrap()],
    };
    driver.call(import("gone".into()));
    let key = KeyRef::Value(Secret::new("gone").unwrap());
    driver.call(Call::DeleteKey { pool: default_pool(), key });
    driver.checkpoint().unwrap();
    driver.call(Call::ListPools);
    let replies = driver.turn((0..300).map(|n| import(format!("value {n}"))).collect()).unwrap();
    let imported = replies.iter().filter(|reply| matches!(reply, Reply::Keys(_))).count();
    let refused = |reply: &&Reply| matches!(reply, Reply::Refused(RequestError::Overloaded));
    assert_eq!((imported, replies.iter().filter(refused).count()), (256, 44));
}
