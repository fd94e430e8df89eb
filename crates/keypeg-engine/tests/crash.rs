//! The disk crashes at every operation of a story that makes every kind of fact, before and after
//! that operation's effect, and again at every operation of the recovery: what was acknowledged
//! stands, what was in flight is there whole or not at all, and tokens only grow.

mod support;

use std::sync::Arc;
use support::sim_disk::{CrashAt, SimDisk};
use support::story::{Story, TURNS, expected, picture, picture_with_answers, play, tick};
use support::{Driver, GivenClock, SeededRandom};

/// What a crash leaves of what was not synced is drawn this many times.
const SEEDS: u64 = 2;

/// Opens with segments made ready ahead, as a server does: a start then takes one of them.
fn open(disk: &SimDisk, clock: &GivenClock, seed: u64) -> Result<Driver, String> {
    let mut driver = Driver::open(Arc::new(disk.clone()), clock, seed)?;
    driver.works.start_preallocation(false).map_err(|error| error.to_string())?;
    Ok(driver)
}

/// Runs the story until the disk crashes: how many turns were acknowledged.
fn until_crash(disk: &SimDisk, clock: &GivenClock) -> (Option<usize>, Story) {
    let mut story = Story::default();
    let Ok(mut driver) = open(disk, clock, 7) else { return (None, story) };
    for turn in 0..TURNS {
        tick(clock, turn);
        if play(&mut driver, &mut story, turn).is_err() {
            return (Some(turn), story);
        }
        if turn % 4 == 3 && driver.carry().is_err() {
            tick(clock, turn + 1);
            return (Some(turn + 1), story);
        }
    }
    (Some(TURNS), story)
}

#[test]
fn a_crash_at_any_operation_loses_nothing_acknowledged() {
    let before: Vec<_> = (0..TURNS).map(|turns| expected(turns, true)).collect();
    let after: Vec<_> = (1..=TURNS).map(|turns| expected(turns, false)).collect();
    let mut pictures: Vec<_> = before.into_iter().zip(after).collect();
    // All turns acknowledged: the crash came when the database was closed.
    pictures.push((expected(TURNS, false), expected(TURNS, false)));
    let disk = SimDisk::new();
    until_crash(&disk, &GivenClock::new());
    let operations = disk.operations();
    let mut oldest = keypeg_engine::disk::Disk::list(&disk).expect("lists");
    oldest.retain(|name| name.starts_with("journal"));
    let dropped = oldest.iter().min().is_some_and(|name| name != "journal-000000000001");
    assert!(dropped, "the story carries and drops, so that it crashes there too");
    let mut crashes = 0;
    for operation in 0..operations {
        for after in [false, true] {
            let disk = SimDisk::new();
            disk.crash_at(Some(CrashAt { operation, after }));
            let clock = GivenClock::new();
            let (acknowledged, story) = until_crash(&disk, &clock);
            for seed in 0..SEEDS {
                check(&disk, &clock, (acknowledged, &story), seed, &pictures);
                crashes += 1;
            }
        }
    }
    println!(
        "{crashes} crashes at {operations} operations, each recovered from with crashes again"
    );
}

/// A sync that fails may leave bytes that are read back and yet are not on the disk. The process
/// ends; the next one must not build on them: what it shows must outlive the power.
#[test]
fn what_a_failed_sync_left_in_the_page_cache_is_not_built_upon() {
    let disk = SimDisk::new();
    until_crash(&disk, &GivenClock::new());
    let mut failed = 0;
    for operation in 0..disk.operations() {
        let (disk, clock) = (SimDisk::new(), GivenClock::new());
        disk.fail_sync_at(Some(operation));
        let (acknowledged, _) = until_crash(&disk, &clock);
        if acknowledged.is_none() || !disk.has_crashed() {
            continue;
        }
        failed += 1;
        disk.fail_sync_at(None);
        let mut driver = Driver::open(Arc::new(disk.clone()), &clock, 9).unwrap();
        let ids = driver.generate(2);
        let shown = picture(&mut driver);
        for seed in 0..3 {
            let disk = disk.after_crash(&mut SeededRandom(seed));
            let mut driver = Driver::open(Arc::new(disk), &clock, 10).unwrap();
            assert_eq!(picture(&mut driver), shown, "sync {operation}: {ids:?} were acknowledged");
        }
    }
    assert!(failed > 30, "{failed} syncs failed");
}

/// Recovers from a crash, with crashes at every operation of the recovery before it succeeds.
fn check(
    disk: &SimDisk,
    clock: &GivenClock,
    (acknowledged, story): (Option<usize>, &Story),
    seed: u64,
    pictures: &[(Vec<String>, Vec<String>)],
) {
    let random = &mut SeededRandom(seed);
    let mut disk = disk.after_crash(random);
    let mut operation = 0;
    let mut driver = loop {
        disk.crash_at(Some(CrashAt { operation, after: random.below(2) == 0 }));
        match open(&disk, clock, 100 + seed) {
            Ok(driver) => break driver,
            Err(error) => assert!(disk.has_crashed(), "recovery refuses: {error}"),
        }
        disk = disk.after_crash(random);
        operation += 1;
    };
    disk.crash_at(None);
    let found = picture_with_answers(&mut driver);
    let Some(acknowledged) = acknowledged else { return };
    let (before, after) = &pictures[acknowledged];
    assert!(
        found == *before || found == *after,
        "after {acknowledged} turns, {operation} crashes of the recovery: {found:#?}\n\
         is neither {before:#?}\nnor {after:#?}"
    );
    driver.carry().expect("carries");
    driver.generate(1);
    let (.., token) = driver.acquire("after").expect("a key is free");
    assert!(token > story.greatest_token, "tokens only grow");
}
