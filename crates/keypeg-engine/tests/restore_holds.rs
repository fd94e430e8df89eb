//! How long a restored server holds a key whose lease had other terms than the policies at the
//! backup, with and without a given length, where its tokens begin, and what it removes.
//!
//! A lease keeps the terms of its grant, so the original can renew one beyond the present policy.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use keypeg_core::{KeyId, PolicyPatch};
use keypeg_engine::disk::Disk;
use keypeg_engine::{RestoreOptions, check_backup, restore_onto};
use keypeg_store::{Call, Reply};
use std::sync::Arc;
use support::sim_disk::SimDisk;
use support::{Driver, ManualClock, SeededRandom, default_pool};

const TTL_MS: u64 = 5_000;
/// The longest time of a lease when it was granted, and at the backup.
const GRANTED_HOLD_MS: u64 = 60_000;
const PRESENT_HOLD_MS: u64 = 20_000;

fn set_hold(driver: &mut Driver, hold_ms: u64) {
    let patch = PolicyPatch {
        lease_ttl_ms: Some(TTL_MS),
        max_hold_ms: Some(Some(hold_ms)),
        ..PolicyPatch::default()
    };
    assert!(matches!(
        driver.call(Call::PutPool { pool: default_pool(), patch: Box::new(patch) }),
        Reply::Pool { .. }
    ));
}

/// Returns a backup of a server that lent a key under older, longer terms, and that key.
fn back_up(clock: &ManualClock) -> (Vec<u8>, KeyId) {
    let mut driver = Driver::open(Arc::new(SimDisk::new()), clock, 1).unwrap();
    set_hold(&mut driver, GRANTED_HOLD_MS);
    driver.generate(2);
    clock.advance_ms(1_000);
    let (_, key, _) = driver.acquire("old").unwrap();
    set_hold(&mut driver, PRESENT_HOLD_MS);
    (driver.back_up(), key)
}

/// Returns after how many milliseconds the key with the older lease and the other key are lent.
fn lent_after(given_ms: Option<u64>) -> (u64, u64) {
    let clock = ManualClock::new();
    let (bytes, old_key) = back_up(&clock);
    let disk = SimDisk::new();
    let onto: Arc<dyn Disk> = Arc::new(disk.clone());
    let options = RestoreOptions {
        hold_us: given_ms.map(|ms| ms * 1_000),
        wall_ms: clock.wall_ms(),
        ..RestoreOptions::default()
    };
    restore_onto(&mut &bytes[..], &onto, "dir", options, &mut SeededRandom(5)).unwrap();
    let mut driver = Driver::open(Arc::new(disk), &clock, 3).unwrap();
    let (mut old_ms, mut other_ms) = (None, None);
    for ms in (0..=GRANTED_HOLD_MS * 2).step_by(1_000) {
        while let Some((_, key, _)) = driver.acquire("new") {
            let lent_ms = if key == old_key { &mut old_ms } else { &mut other_ms };
            lent_ms.get_or_insert(ms);
        }
        clock.advance_ms(1_000);
    }
    (old_ms.unwrap(), other_ms.unwrap())
}

/// A given length that is longer than the policy's shortened the hold of such a key: the original
/// could still renew the lease while the restored server lent the key.
#[test]
fn a_longer_hold_lets_no_lease_of_longer_terms_overlap() {
    assert_eq!(lent_after(None), (GRANTED_HOLD_MS, PRESENT_HOLD_MS));
    assert_eq!(lent_after(Some(30_000)), (GRANTED_HOLD_MS, 30_000));
    assert_eq!(lent_after(Some(PRESENT_HOLD_MS)), (GRANTED_HOLD_MS, PRESENT_HOLD_MS));
    assert_eq!(lent_after(Some(90_000)), (90_000, 90_000));
}

/// With a shorter one the operator says that no client renews: only the lease that is known runs.
#[test]
fn a_shorter_hold_ends_with_the_lease_that_is_known() {
    assert_eq!(lent_after(Some(10_000)), (10_000, 10_000));
    assert_eq!(lent_after(Some(0)), (TTL_MS, 0));
}

/// With a hold of no length, a key that was available rested as if a lease of it had ended.
#[test]
fn a_hold_of_no_length_lets_no_available_key_rest() {
    let clock = ManualClock::new();
    let mut driver = Driver::open(Arc::new(SimDisk::new()), &clock, 1).unwrap();
    let patch = PolicyPatch { rest_ms: Some(3_600_000), ..PolicyPatch::default() };
    driver.call(Call::PutPool { pool: default_pool(), patch: Box::new(patch) });
    driver.generate(3);
    let (_, leased, _) = driver.acquire("holder").unwrap();
    let bytes = driver.back_up();
    let disk = SimDisk::new();
    let onto: Arc<dyn Disk> = Arc::new(disk.clone());
    let options =
        RestoreOptions { hold_us: Some(0), wall_ms: clock.wall_ms(), ..RestoreOptions::default() };
    let report =
        restore_onto(&mut &bytes[..], &onto, "dir", options, &mut SeededRandom(5)).unwrap();
    assert_eq!((report.held, report.resting), (1, 0));
    let mut driver = Driver::open(Arc::new(disk), &clock, 3).unwrap();
    for _ in 0..2 {
        assert_ne!(driver.acquire("new").unwrap().1, leased);
    }
    assert_eq!(driver.acquire("new"), None, "the lease that is known runs on");
}

/// Before its first grant a server has recorded no token. A restore of such a backup began far below
/// the tokens that the original granted afterwards.
#[test]
fn the_tokens_of_a_backup_before_the_first_grant_begin_above_all_of_the_original() {
    let clock = ManualClock::new();
    let mut driver = Driver::open(Arc::new(SimDisk::new()), &clock, 1).unwrap();
    driver.generate(2);
    let bytes = driver.back_up();
    let (_, _, token) = driver.acquire("first").unwrap();
    let options = RestoreOptions { wall_ms: clock.wall_ms(), ..RestoreOptions::default() };
    let report = check_backup(&mut &bytes[..], options.clone(), &mut SeededRandom(5)).unwrap();
    assert!(report.first_token > token, "{} after {token}", report.first_token);
    let low = RestoreOptions { token_floor: Some(token), ..options };
    let error = check_backup(&mut &bytes[..], low, &mut SeededRandom(5)).unwrap_err().to_string();
    assert!(error.contains("too low"), "{error}");
}

/// At the first instant of a directory a hold of no length has an end at 0, which no record contains.
#[test]
fn a_hold_of_no_length_can_be_given_at_the_first_instant() {
    let clock = ManualClock::new();
    let mut driver = Driver::open(Arc::new(SimDisk::new()), &clock, 1).unwrap();
    driver.generate(2);
    let bytes = driver.back_up();
    let wall_ms = clock.wall_ms();
    let options = RestoreOptions { hold_us: Some(0), wall_ms, ..RestoreOptions::default() };
    let report = check_backup(&mut &bytes[..], options, &mut SeededRandom(5)).unwrap();
    assert_eq!(report.keys, 2);
}

/// A stop records the next token. A restore refused a backup in which that was the first token.
#[test]
fn a_backup_after_a_stop_before_the_first_grant_is_restored() {
    let (clock, disk) = (ManualClock::new(), SimDisk::new());
    let mut driver = Driver::open(Arc::new(disk.clone()), &clock, 1).unwrap();
    driver.generate(2);
    driver.engine.close().unwrap();
    drop(driver);
    let mut driver = Driver::open(Arc::new(disk), &clock, 2).unwrap();
    let bytes = driver.back_up();
    let (_, _, token) = driver.acquire("first").unwrap();
    let options = RestoreOptions { wall_ms: clock.wall_ms(), ..RestoreOptions::default() };
    let report = check_backup(&mut &bytes[..], options, &mut SeededRandom(5)).unwrap();
    assert!(report.keys == 2 && report.first_token > token, "{report:?} after {token}");
}

/// As a start on a full disk does. The restore asked for an empty directory, which an operator could
/// only make by hand.
#[test]
fn a_restore_removes_what_a_start_that_failed_has_left() {
    let clock = ManualClock::new();
    let (bytes, _) = back_up(&clock);
    let disk = SimDisk::new();
    let left = ["meta.new", "journal-000000000001.new"];
    for name in left {
        disk.create(name, 100).unwrap();
    }
    let onto: Arc<dyn Disk> = Arc::new(disk.clone());
    let wall_ms = clock.wall_ms();
    let options = RestoreOptions { hold_us: Some(0), wall_ms, ..RestoreOptions::default() };
    restore_onto(&mut &bytes[..], &onto, "dir", options, &mut SeededRandom(5)).unwrap();
    assert!(disk.list().unwrap().iter().all(|name| !left.contains(&name.as_str())));
    Driver::open(Arc::new(disk), &clock, 3).unwrap();
}
