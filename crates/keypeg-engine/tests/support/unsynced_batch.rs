//! A directed story: the checkpointer runs between the failed sync of a batch and a power cut.
//!
//! The deliberate defect `CarryPastSynced` breaks it at once; random simulations meet that instant
//! rarely.

use super::sim_disk::{FaultPolicy, Operation, Outcome, SimDisk};
use super::{Driver, ManualClock, SeededRandom, default_pool};
use keypeg_core::NewLabels;
use keypeg_store::Call;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Fails the syncs of the journal while it is switched on.
#[derive(Default)]
struct FailedSyncs(AtomicBool);

impl FaultPolicy for FailedSyncs {
    fn before(&self, operation: Operation, name: &str) -> Outcome {
        let fails = operation == Operation::Sync && name.starts_with("journal-");
        if fails && self.0.load(Ordering::Relaxed) { Outcome::Fails } else { Outcome::Succeeds }
    }
}

/// Writes a batch whose sync fails, runs the checkpointer, cuts the power, and starts again with the
/// acknowledged keys only. Returns what went wrong.
pub(crate) fn checkpoint_beside_an_unsynced_batch() -> Result<(), String> {
    let faults = Arc::new(FailedSyncs::default());
    let disk = SimDisk::with_fault_policy(Arc::<FailedSyncs>::clone(&faults), 512);
    let clock = ManualClock::new();
    let mut driver = Driver::open(Arc::new(disk.clone()), &clock, 1)?;
    driver.generate(3);
    driver.checkpoint()?;
    faults.0.store(true, Ordering::Relaxed);
    let lost = driver.turn(vec![Call::Generate {
        pool: default_pool(),
        count: 2,
        labels: NewLabels::None,
    }]);
    assert!(lost.is_err(), "the engine ends when a sync fails");
    // The page cache still has the batch, and the checkpointer's thread may still run.
    driver.checkpoint()?;
    drop(driver);
    faults.0.store(false, Ordering::Relaxed);
    disk.cut_power(&mut SeededRandom(1));
    let keys = Driver::open(Arc::new(disk), &clock, 2)?.recovery.keys;
    (keys == 3).then_some(()).ok_or(format!("{keys} keys instead of 3"))
}
