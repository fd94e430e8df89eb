//! Starts that are cut short, one after another, after a turn was lost: bytes of an earlier attempt
//! stay in the segment that the next one uses. No start shows what an earlier one did not, once a
//! client may have seen the earlier one, and none takes such bytes for a torn tail.

mod support;

use keypeg_core::LeaseView;
use keypeg_store::{Call, Reply};
use std::sync::{Arc, Mutex};
use support::sim_disk::{CrashAt, FaultPolicy, Operation, Outcome, SimDisk};
use support::{Driver, ManualClock, SeededRandom, default_pool};

/// Ends the process at one operation on a file whose name has an ending.
#[derive(Default)]
struct EndAt(Mutex<Option<(Operation, &'static str, bool)>>);

impl EndAt {
    fn set(&self, operation: Operation, ending: &'static str, after: bool) {
        *self.0.lock().expect("no panic under the lock") = Some((operation, ending, after));
    }
}

impl FaultPolicy for EndAt {
    fn before(&self, operation: Operation, name: &str) -> Outcome {
        let mut end = self.0.lock().expect("no panic under the lock");
        match *end {
            Some((at, ending, after)) if at == operation && name.ends_with(ending) => {
                *end = None;
                Outcome::Crashes { after }
            }
            _ => Outcome::Succeeds,
        }
    }
}

fn open(disk: &SimDisk, clock: &ManualClock) -> Result<Driver, String> {
    let mut driver = Driver::open(Arc::new(disk.clone()), clock, 1)?;
    driver.engine.start_preallocation(false).map_err(|error| error.to_string())?;
    Ok(driver)
}

/// Returns the leases that a client can see.
fn visible_leases(driver: &mut Driver) -> Vec<Option<LeaseView>> {
    let call = Call::ListKeys {
        pool: default_pool(),
        state: None,
        limit: 1_000,
        cursor: None,
        label: None,
    };
    let Reply::Page(page) = driver.call(call) else { panic!("expected a page") };
    page.keys.into_iter().map(|key| key.lease).collect()
}

/// Returns a disk on which a start had written, and synced, the batches of a lost turn into the next
/// segment, when its machine ended. Whether the turn itself survived is random.
fn after_a_start_that_was_cut_short(seed: u64, preallocates: bool) -> (SimDisk, ManualClock) {
    let end = Arc::new(EndAt::default());
    let disk = SimDisk::with_fault_policy(Arc::<EndAt>::clone(&end), 512);
    let clock = ManualClock::new();
    let mut driver = Driver::open(Arc::new(disk.clone()), &clock, 1).expect("opens");
    if preallocates {
        driver.engine.start_preallocation(false).expect("preallocates");
    }
    driver.generate(3);
    driver.acquire("kept").expect("a key is available");
    end.set(Operation::Sync, ".new", false);
    let lost = Call::Acquire {
        pool: default_pool(),
        ttl_ms: None,
        holder: Some("lost".repeat(40).into()),
        wait_ms: 0,
    };
    assert!(driver.turn(vec![lost]).is_err(), "the process ends");
    drop(driver);
    disk.end_process();
    // The page cache still has the lost turn.
    let random = &mut SeededRandom(seed);
    disk.next_process(random);
    end.set(Operation::Sync, ".new", true);
    assert!(open(&disk, &clock).is_err(), "the start is cut short");
    disk.cut_power(random);
    (disk, clock)
}

#[test]
fn bytes_of_a_start_that_was_cut_short_are_neither_shown_nor_counted_later() {
    let (mut lost, mut kept) = (0, 0);
    for (seed, preallocates) in (0..16).flat_map(|seed| [(seed, false), (seed, true)]) {
        let (disk, clock) = after_a_start_that_was_cut_short(seed, preallocates);
        let mut driver = open(&disk, &clock).expect("opens");
        // A client may see this.
        let shown = visible_leases(&mut driver);
        match driver.recovery.leases {
            1 => lost += 1,
            2 => kept += 1,
            leases => panic!("{leases} leases"),
        }
        drop(driver);
        disk.end_process();
        disk.next_process(&mut SeededRandom(seed));
        let mut driver = open(&disk, &clock).expect("opens again");
        assert_eq!(visible_leases(&mut driver), shown, "seed {seed}");
        assert_eq!(driver.recovery.batches_cut, 0, "seed {seed}: no tail was torn");
    }
    assert!(lost > 3 && kept > 3, "the turn was lost {lost} times and kept {kept} times");
}

#[test]
fn each_further_start_can_be_cut_short_at_any_operation() {
    for seed in 0..3 {
        let (first, clock) = after_a_start_that_was_cut_short(seed, seed % 2 == 0);
        let mut operation = 0;
        loop {
            let disk = first.copy();
            disk.crash_at(Some(CrashAt { operation, after: operation % 2 == 0 }));
            let opened = open(&disk, &clock);
            if !disk.has_crashed() {
                break;
            }
            drop(opened);
            let disk = disk.after_crash(&mut SeededRandom(seed ^ operation));
            let mut driver = open(&disk, &clock)
                .unwrap_or_else(|error| panic!("seed {seed}, operation {operation}: {error}"));
            assert_eq!(driver.recovery.keys, 3);
            assert!((1..=2).contains(&driver.recovery.leases), "seed {seed}");
            driver.acquire("next").expect("a key is available");
            let shown = visible_leases(&mut driver);
            drop(driver);
            let mut driver = open(&disk.after_crash(&mut SeededRandom(seed)), &clock)
                .unwrap_or_else(|error| panic!("seed {seed}, operation {operation}: {error}"));
            assert_eq!(visible_leases(&mut driver), shown, "seed {seed}, operation {operation}");
            operation += 1;
        }
        assert!(operation > 8, "{operation} operations");
    }
}
