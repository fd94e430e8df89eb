//! The disk crashes at every operation of a workload that writes every kind of fact, before and
//! after that operation's effect, and again at every operation of the recovery. Acknowledged
//! changes survive, a turn in flight survives as a whole or not at all, and tokens only grow.

mod support;

use std::sync::Arc;
use support::sim_disk::{CrashAt, SimDisk};
use support::workload::{
    TURNS, Workload, advance_clock, expected_state, run_turn, visible_state,
    visible_state_with_answers,
};
use support::{Driver, ManualClock, SeededRandom};

/// How many times the surviving part of the unsynced data is drawn.
const SEEDS: u64 = 2;

/// Opens with preallocated segments, as a server does: a start then uses one of them.
fn open(disk: &SimDisk, clock: &ManualClock, seed: u64) -> Result<Driver, String> {
    let mut driver = Driver::open(Arc::new(disk.clone()), clock, seed)?;
    driver.engine.start_preallocation(false).map_err(|error| error.to_string())?;
    Ok(driver)
}

/// Runs the workload until the disk crashes, and returns how many turns were acknowledged.
fn run_until_crash(disk: &SimDisk, clock: &ManualClock) -> (Option<usize>, Workload) {
    let mut workload = Workload::default();
    let Ok(mut driver) = open(disk, clock, 7) else { return (None, workload) };
    for turn in 0..TURNS {
        advance_clock(clock, turn);
        if run_turn(&mut driver, &mut workload, turn).is_err() {
            return (Some(turn), workload);
        }
        if turn % 4 == 3 && driver.checkpoint().is_err() {
            advance_clock(clock, turn + 1);
            return (Some(turn + 1), workload);
        }
    }
    (Some(TURNS), workload)
}

#[test]
fn a_crash_at_any_operation_loses_nothing_acknowledged() {
    let before: Vec<_> = (0..TURNS).map(|turns| expected_state(turns, true)).collect();
    let after: Vec<_> = (1..=TURNS).map(|turns| expected_state(turns, false)).collect();
    let mut states: Vec<_> = before.into_iter().zip(after).collect();
    // All turns were acknowledged: the crash occurred when the database was closed.
    states.push((expected_state(TURNS, false), expected_state(TURNS, false)));
    let disk = SimDisk::new();
    run_until_crash(&disk, &ManualClock::new());
    let operations = disk.operations();
    let mut segments = keypeg_engine::disk::Disk::list(&disk).expect("lists");
    segments.retain(|name| name.starts_with("journal"));
    let deleted = segments.iter().min().is_some_and(|name| name != "journal-000000000001");
    assert!(deleted, "the workload checkpoints and deletes segments, so that it crashes there too");
    let mut crashes = 0;
    for operation in 0..operations {
        for after in [false, true] {
            let disk = SimDisk::new();
            disk.crash_at(Some(CrashAt { operation, after }));
            let clock = ManualClock::new();
            let (acknowledged, workload) = run_until_crash(&disk, &clock);
            for seed in 0..SEEDS {
                check_recovery(&disk, &clock, (acknowledged, &workload), seed, &states);
                crashes += 1;
            }
        }
    }
    println!(
        "{crashes} crashes at {operations} operations, each with further crashes during recovery"
    );
}

/// A sync that fails may leave bytes that are read back but are not on the disk. The process ends.
/// The next process must not rely on them: what it shows must survive a power cut.
#[test]
fn no_start_relies_on_what_a_failed_sync_left_in_the_page_cache() {
    let disk = SimDisk::new();
    run_until_crash(&disk, &ManualClock::new());
    let mut failed = 0;
    for operation in 0..disk.operations() {
        let (disk, clock) = (SimDisk::new(), ManualClock::new());
        disk.fail_sync_at(Some(operation));
        let (acknowledged, _) = run_until_crash(&disk, &clock);
        if acknowledged.is_none() || !disk.has_crashed() {
            continue;
        }
        failed += 1;
        disk.fail_sync_at(None);
        let mut driver = Driver::open(Arc::new(disk.clone()), &clock, 9).unwrap();
        let ids = driver.generate(2);
        let shown = visible_state(&mut driver);
        for seed in 0..3 {
            let disk = disk.after_crash(&mut SeededRandom(seed));
            let mut driver = Driver::open(Arc::new(disk), &clock, 10).unwrap();
            assert_eq!(
                visible_state(&mut driver),
                shown,
                "sync {operation}: {ids:?} were acknowledged"
            );
        }
    }
    assert!(failed > 30, "{failed} syncs failed");
}

/// Recovers from a crash, with a crash at every operation of the recovery before it succeeds.
fn check_recovery(
    disk: &SimDisk,
    clock: &ManualClock,
    (acknowledged, workload): (Option<usize>, &Workload),
    seed: u64,
    states: &[(Vec<String>, Vec<String>)],
) {
    let random = &mut SeededRandom(seed);
    let mut disk = disk.after_crash(random);
    let mut operation = 0;
    let mut driver = loop {
        disk.crash_at(Some(CrashAt { operation, after: random.below(2) == 0 }));
        match open(&disk, clock, 100 + seed) {
            Ok(driver) => break driver,
            Err(error) => assert!(disk.has_crashed(), "recovery refuses the directory: {error}"),
        }
        disk = disk.after_crash(random);
        operation += 1;
    };
    disk.crash_at(None);
    let found = visible_state_with_answers(&mut driver);
    let Some(acknowledged) = acknowledged else { return };
    let (before, after) = &states[acknowledged];
    assert!(
        found == *before || found == *after,
        "after {acknowledged} turns and {operation} crashes of the recovery: {found:#?}\n\
         is neither {before:#?}\nnor {after:#?}"
    );
    driver.checkpoint().expect("the checkpoint succeeds");
    driver.generate(1);
    let (.., token) = driver.acquire("after").expect("a key is available");
    assert!(token > workload.greatest_token, "tokens only grow");
}
