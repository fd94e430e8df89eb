//! Several servers on one shared log: each has its own clock, and is paused, ended and cut off at any
//! moment, also in the middle of an append, while the store loses answers, delivers late and fails
//! over. Clients check what they are answered: no key is lent twice at once, no token repeats, and
//! what was acknowledged is there at the end.
//!
//! One thread and one seed: while a server waits for the store, others act. `KEYPEG_SEED=n` repeats a
//! seed, `KEYPEG_SEEDS=n` plays so many.

#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::print_stdout, reason = "the counts of a run are its report")]

mod clients;
mod machine;
#[path = "../../../keypeg-engine/tests/support/sim_disk.rs"]
#[expect(dead_code, reason = "the crashes of a disk are tested with the engine")]
mod sim_disk;
mod world;

pub(crate) use keypeg_testkit::SeededRandom;
use keypeg_testkit::env_number;
use world::{Store, World};

/// Seeds of one run.
const SEEDS: u64 = 15;
/// Steps of one seed.
const STEPS: usize = 300;

fn seeds() -> std::ops::Range<u64> {
    match env_number("KEYPEG_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..env_number("KEYPEG_SEEDS").unwrap_or(SEEDS),
    }
}

/// Plays the seeds on a store; returns the counts, and fails at the first violation.
fn play(store: Store) {
    let mut sum = world::Counts::default();
    for seed in seeds() {
        let (counts, violation) = World::play(seed, store, STEPS);
        assert_eq!(violation, None, "{store:?}, KEYPEG_SEED={seed}");
        sum.add(counts);
    }
    println!("{store:?}: {sum:?}");
    if seeds().count() > 10 {
        assert!(sum.is_rich(store), "the run is no test otherwise: {sum:?}");
    }
}

#[test]
fn nothing_is_lent_twice_or_lost_on_a_store_that_chains_frames() {
    play(Store::Chained);
}

#[test]
fn nothing_is_lent_twice_or_lost_on_a_store_that_creates_objects() {
    play(Store::Created);
}

/// A check that detects nothing proves nothing: at least one seed must show each defect.
#[test]
#[cfg(feature = "sabotage")]
fn each_sabotage_of_a_shard_is_seen() {
    use keypeg_core::sabotage::{Sabotage, configure};
    const SEEN_WITHIN: u64 = 400;
    let mut missed = Vec::new();
    for sabotage in Sabotage::OF_SHARDS {
        configure(Some(sabotage), Vec::new());
        // Few seeds show it, the first of them late.
        let begin = if sabotage == Sabotage::SkipTakeoverFrame { 230 } else { 0 };
        let first = (begin..begin + SEEN_WITHIN).find_map(|seed| {
            let played = std::panic::catch_unwind(|| World::play(seed, Store::Chained, STEPS).1);
            let why = played.unwrap_or_else(|_| Some("an invariant".into()))?;
            Some((seed, why))
        });
        configure(None, Vec::new());
        match first {
            Some((seed, why)) => println!("| {sabotage:?} | {} | {why} |", seed + 1),
            None => missed.push(sabotage),
        }
    }
    assert!(missed.is_empty(), "not seen within {SEEN_WITHIN} seeds: {missed:?}");
}
