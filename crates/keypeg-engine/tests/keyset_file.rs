//! The file of the key set over kills, failed syncs and power cuts: whatever length it is left with,
//! the next start opens it and finds every acknowledged key. What its rows say of draining keys.

mod support;

use keypeg_core::{
    KeyRef, KeyState, NewLabels, PolicyPatch, PoolName, QuarantineOptions, ReleaseOptions,
};
use keypeg_engine::disk::Disk;
use keypeg_store::{Call, Reply};
use std::sync::{Arc, Mutex};
use support::sim_disk::{FaultPolicy, Operation, Outcome, SimDisk};
use support::{Driver, ManualClock, SeededRandom, default_pool};

/// The sectors of these disks: smaller than a page of the key set, so that a page can tear.
const SECTOR: usize = 512;
/// Keys whose rows fit into the key set as it was created.
const FEW: u32 = 3;
/// Keys that make the key set grow.
const MANY: u32 = 600;

/// Injects one outcome at one operation on the file of the key set.
#[derive(Default)]
struct KeySetFault(Mutex<Option<PlannedFault>>);

struct PlannedFault {
    operation: Operation,
    /// The operations of this kind before it.
    left: u64,
    /// Whether the file must have been given a length before.
    after_set_len: bool,
    outcome: Outcome,
}

impl KeySetFault {
    fn plan(&self, planned: Option<PlannedFault>) {
        *self.0.lock().expect("no panic under the lock") = planned;
    }

    /// Returns whether the planned fault has occurred.
    fn occurred(&self) -> bool {
        self.0.lock().expect("no panic under the lock").is_none()
    }
}

impl FaultPolicy for KeySetFault {
    fn before(&self, operation: Operation, name: &str) -> Outcome {
        let mut planned = self.0.lock().expect("no panic under the lock");
        let Some(fault) = planned.as_mut().filter(|_| name == "keyset") else {
            return Outcome::Succeeds;
        };
        fault.after_set_len &= operation != Operation::SetLen;
        if fault.operation != operation || fault.after_set_len {
            return Outcome::Succeeds;
        }
        if fault.left > 0 {
            fault.left -= 1;
            return Outcome::Succeeds;
        }
        let outcome = fault.outcome;
        *planned = None;
        outcome
    }
}

fn open(disk: &SimDisk, clock: &ManualClock) -> Result<Driver, String> {
    Driver::open(Arc::new(disk.clone()), clock, 1)
}

/// Returns a disk on which the key set was being extended when its process ended, because `fault`
/// occurred.
fn cut_while_growing(fault: PlannedFault) -> (SimDisk, Arc<KeySetFault>, ManualClock) {
    let faults = Arc::new(KeySetFault::default());
    let disk = SimDisk::with_fault_policy(Arc::<KeySetFault>::clone(&faults), SECTOR);
    let clock = ManualClock::new();
    let mut driver = open(&disk, &clock).expect("opens");
    driver.generate(FEW);
    driver.checkpoint().expect("the disk does not fail");
    driver.generate(MANY);
    faults.plan(Some(fault));
    driver.checkpoint().expect_err("the fault ends the checkpointer");
    assert!(faults.occurred(), "the key set grows");
    disk.end_process();
    (disk, faults, clock)
}

/// Runs a start and its checkpoint up to each of its syncs of the key set, cuts the power there, and
/// starts again.
fn check_each_power_cut_after(growth: PlannedFault) {
    let (grown, faults, clock) = cut_while_growing(growth);
    let mut cuts = 0;
    for syncs in 0..20 {
        for in_cache in 0..2 {
            let disk = grown.copy();
            disk.next_process(&mut SeededRandom(in_cache));
            let outcome = Outcome::Crashes { after: false };
            let (operation, left) = (Operation::Sync, syncs);
            faults.plan(Some(PlannedFault { operation, left, after_set_len: false, outcome }));
            let opened = open(&disk, &clock);
            if opened.is_ok_and(|mut driver| driver.checkpoint().is_ok()) {
                assert!(cuts > 20, "only {cuts} power cuts");
                return;
            }
            assert!(faults.occurred(), "the process ends by the fault only");
            for seed in 0..12 {
                let disk = disk.copy();
                disk.cut_power(&mut SeededRandom(seed));
                let driver = open(&disk, &clock)
                    .unwrap_or_else(|error| panic!("sync {syncs}, seed {seed}: {error}"));
                assert_eq!(driver.recovery.keys, u64::from(FEW + MANY));
                cuts += 1;
            }
        }
    }
    panic!("the checkpoint does not end");
}

/// A sync of the extended key set failed, which ended the process. The next process took the length
/// from the page cache and wrote pages into the new part; then the power was cut. The file ended
/// within a page, and no start accepted it. Found by the simulation.
#[test]
fn a_key_set_whose_new_length_could_not_be_synced_survives_a_power_cut() {
    check_each_power_cut_after(PlannedFault {
        operation: Operation::Sync,
        left: 0,
        after_set_len: true,
        outcome: Outcome::Fails,
    });
}

/// The same without a failed sync: the process is killed before it can sync the new length.
#[test]
fn a_key_set_that_was_growing_when_its_process_was_killed_survives_a_power_cut() {
    check_each_power_cut_after(PlannedFault {
        operation: Operation::SetLen,
        left: 0,
        after_set_len: false,
        outcome: Outcome::Crashes { after: true },
    });
}

/// The row of a draining key does not say that its lease runs: a record of the lease does.
#[test]
fn a_draining_key_stays_draining_when_the_segments_of_its_grant_and_its_drain_are_gone() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = open(&disk, &clock).unwrap();
    driver.generate(3);
    let hour = Some(3_600_000);
    let patch =
        PolicyPatch { lease_ttl_ms: hour, keepalive_ttl_ms: Some(None), ..PolicyPatch::default() };
    driver.call(Call::PutPool { pool: default_pool(), patch: Box::new(patch) });
    let keys: Vec<_> = (0..3).map(|_| driver.acquire("holder").unwrap()).collect();
    let quarantine = |key, reason: Option<&str>| {
        let options = QuarantineOptions { when_free: true, reason: reason.map(Into::into) };
        Call::QuarantineKey { pool: default_pool(), key: KeyRef::Id(key), options }
    };
    let [(released, first, _), (_, second, _), (_, third, _)] = keys[..] else { panic!("three") };
    driver.call(quarantine(first, Some("old ✗")));
    driver.call(quarantine(second, None));
    driver.call(quarantine(third, Some("mistake")));
    driver.call(Call::EndQuarantine { pool: default_pool(), key: KeyRef::Id(third) });
    let side_pool = || PoolName::parse("side").unwrap();
    driver.call(Call::PutPool { pool: side_pool(), patch: Box::default() });
    driver.call(Call::Generate { pool: side_pool(), count: 1, labels: NewLabels::None });
    let replace_segments = |driver: &mut Driver| {
        for _ in 0..300 {
            let call = Call::Acquire { pool: side_pool(), ttl_ms: None, holder: None, wait_ms: 0 };
            let Reply::Granted { lease, .. } = driver.call(call) else {
                panic!("a key is available")
            };
            let (lease, options) = (lease.id, ReleaseOptions::default());
            driver.call(Call::Release { pool: side_pool(), lease, options });
            driver.checkpoint().unwrap();
        }
    };
    let shown = |driver: &mut Driver, key| {
        let call = Call::GetKey { pool: default_pool(), key: KeyRef::Id(key) };
        let Reply::Key(shown) = driver.call(call) else { panic!("expected a key") };
        (shown.state, shown.draining, shown.reason)
    };
    replace_segments(&mut driver);
    let has_first = disk.list().unwrap().iter().any(|name| name == "journal-000000000001");
    assert!(!has_first, "the first segment is deleted");
    let mut driver = open(&disk, &clock).unwrap();
    assert_eq!(shown(&mut driver, first), (KeyState::Leased, true, Some("old ✗".into())));
    assert_eq!(shown(&mut driver, second), (KeyState::Leased, true, None));
    assert_eq!(shown(&mut driver, third), (KeyState::Leased, false, None));
    let options = ReleaseOptions::default();
    driver.call(Call::Release { pool: default_pool(), lease: released, options });
    // The lease of the second ends by time, which no record says.
    clock.advance_ms(3_600_000);
    replace_segments(&mut driver);
    let mut driver = open(&disk, &clock).unwrap();
    assert_eq!(shown(&mut driver, first), (KeyState::Quarantined, false, Some("old ✗".into())));
    assert_eq!(shown(&mut driver, second), (KeyState::Quarantined, false, None));
    assert_eq!(shown(&mut driver, third), (KeyState::Available, false, None));
    driver.engine.pools().check_invariants();
}
