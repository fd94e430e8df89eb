//! Deterministic simulation: the engine, its checkpointer, its clocks, its disk and its clients in
//! one thread under one seed. Whatever fault is injected, no reply is wrong and no acknowledged
//! change is lost.
//!
//! `KEYPEG_SEED=7` runs one seed and prints its trace, `KEYPEG_SEEDS=5000` sets the number of
//! seeds, `KEYPEG_FIRST_SEED` the first of them. A run continues after a seed that fails.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    clippy::cast_possible_truncation,
    clippy::struct_excessive_bools,
    reason = "a test may panic, draws small numbers, and has many switches"
)]

#[path = "../support/mod.rs"]
mod support;

mod clients;
mod clocks;
mod coverage;
mod faults;
mod idempotency;
mod lost_turns;
mod model;
mod simulation;
mod trace;
mod views;

/// A seed spends a third of its time in the C library's allocator: most of it in the database, which
/// allocates for each commit.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use coverage::Coverage;
use keypeg_core::Policy;
use keypeg_core::sabotage::{Sabotage, TestLimit};
use keypeg_engine::state::JournalSizes;
use keypeg_testkit::env_number;
use model::Rules;
use simulation::{Plan, Simulation};
use support::SeededRandom;

/// Seeds per test run.
const SEEDS: u64 = 60;

fn plan(seed: u64) -> Plan {
    let random = &mut SeededRandom(seed ^ 0x5eed);
    let mut one_in = |count: u64| random.below(count) == 0;
    let small = cfg!(feature = "sabotage");
    let expiry_can_lag = small && one_in(8);
    let full = small && !expiry_can_lag && one_in(8);
    let mut rules = Rules {
        disk_can_fill: full,
        expiry_can_lag,
        waiters_max: if small { 5 } else { 100_000 },
        long_calls_are_few: false,
    };
    let segment = if full { 8_192 } else { 4_096 + 768 };
    let sector = if one_in(2) { 512 } else { 4_096 };
    let (fails, power_cuts, stops) = (!one_in(3), !one_in(4), !one_in(3));
    let (pauses, wall_steps, lost_replies) = (one_in(2), one_in(2), !one_in(3));
    let mut limits = vec![
        (TestLimit::Waiters, 5),
        (TestLimit::SnapshotRecords, 2),
        (TestLimit::PageSlots, 1 + seed % 3),
    ];
    if expiry_can_lag {
        limits.push((TestLimit::Expire, 1));
    }
    if full {
        limits.push((TestLimit::LastRoom, 3_072));
    }
    if one_in(2) {
        limits.push((TestLimit::TokenReservation, 4));
    }
    if one_in(2) {
        limits.push((TestLimit::Facts, 3));
    }
    if one_in(2) {
        // Every call is long that creates keys or concerns several of them.
        limits.push((TestLimit::ShortUnits, 4));
        limits.push((TestLimit::LongUnits, [1, 300][usize::from(one_in(2))]));
        if one_in(3) {
            limits.push((TestLimit::LongCalls, 4));
            rules.long_calls_are_few = small;
        }
    }
    let slow_one_in = if one_in(3) { 40 } else { 0 };
    let checkpoint_in_turn_one_in = if one_in(2) { 6 } else { 0 };
    let fault_one_in = [0, 5, 10, 25][random.below(4) as usize];
    let checkpoint_between_turns_one_in = [2, 5, 30][random.below(3) as usize];
    let keepalive = [None, Some(1_500), Some(3_000), Some(8_000)][random.below(4) as usize];
    let lease_ttl_ms = [300, 1_000, 4_000][random.below(3) as usize];
    let policy = Policy {
        lease_ttl_ms,
        max_hold_ms: [None, Some(lease_ttl_ms * 2)][random.below(2) as usize],
        rest_ms: [0, 0, 250][random.below(3) as usize],
        keepalive_ttl_ms: keepalive.filter(|_| !full && !expiry_can_lag),
        ..Policy::default()
    };
    Plan {
        steps: 60 + random.below(160),
        rules,
        sizes: JournalSizes { segment, journal: 4 * segment },
        limits,
        sector,
        policy,
        fault_one_in,
        fails,
        power_cuts,
        stops,
        slow_one_in,
        checkpoint_in_turn_one_in,
        checkpoint_between_turns_one_in,
        pauses,
        wall_steps,
        lost_replies,
    }
}

/// The result of one seed.
struct SeedResult {
    coverage: Coverage,
    /// A hash of the whole trace, if one was kept.
    hash: u64,
    outcome: Result<(), String>,
    /// The plan and the last lines of the trace, if one was kept.
    trace: String,
}

/// Whether a run keeps its trace. The steps of a seed are the same with and without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tracing {
    Kept,
    Omitted,
}

fn run_seed(seed: u64, sabotage: Option<Sabotage>, tracing: Tracing) -> SeedResult {
    let plan = plan(seed);
    #[cfg(feature = "sabotage")]
    keypeg_core::sabotage::configure(sabotage, plan.limits.clone());
    assert!(
        sabotage.is_none() || cfg!(feature = "sabotage"),
        "this build has no defects to switch on"
    );
    let header = format!("{plan:?}");
    let mut simulation = Simulation::new(plan, seed);
    if tracing == Tracing::Omitted {
        simulation = simulation.without_trace();
    }
    let outcome = simulation.run();
    let lines: Vec<_> = simulation.trace.lines.iter().map(String::as_str).collect();
    let trace = format!("{header}\n{}", lines.join("\n"));
    let result =
        SeedResult { coverage: simulation.coverage(), hash: simulation.trace.hash, outcome, trace };
    // Dropped while the defect is still on: nothing after this point is checked.
    drop(simulation);
    #[cfg(feature = "sabotage")]
    keypeg_core::sabotage::configure(None, Vec::new());
    result
}

/// Returns the seeds of this run.
fn seeds_to_run() -> std::ops::Range<u64> {
    if let Some(seed) = env_number("KEYPEG_SEED") {
        return seed..seed + 1;
    }
    let first = env_number("KEYPEG_FIRST_SEED").unwrap_or(0);
    first..first + env_number("KEYPEG_SEEDS").unwrap_or(SEEDS)
}

/// Returns the command that runs a seed again.
fn rerun_command(seed: u64) -> String {
    let feature = if cfg!(feature = "sabotage") { "--features sabotage " } else { "" };
    format!("KEYPEG_SEED={seed} cargo test -p keypeg-engine {feature}--test sim")
}

#[test]
fn no_reply_is_wrong_whatever_fault_is_injected() {
    let seeds = seeds_to_run();
    let mut coverage = Coverage::default();
    let seed_count = seeds.end - seeds.start;
    let (mut failed, mut first) = (Vec::new(), None);
    for seed in seeds {
        let result = std::panic::catch_unwind(|| run_seed(seed, None, Tracing::Omitted));
        let (why, trace) = match result {
            Ok(SeedResult { coverage: counted, outcome, .. }) => {
                coverage.join(&counted);
                let Err(why) = outcome else { continue };
                // Only a seed that fails needs a trace, so it runs again.
                (why, run_seed(seed, None, Tracing::Kept).trace)
            }
            Err(_) => ("a panic, printed above".into(), String::new()),
        };
        println!("failed: seed {seed}: {}", why.lines().next().unwrap_or_default());
        failed.push(seed);
        first.get_or_insert(format!("seed {seed}: {trace}\n{why}\n{}", rerun_command(seed)));
    }
    println!("{seed_count} seeds, {} failed", failed.len());
    if let Some(first) = first {
        panic!("failed seeds: {failed:?}\n{first}");
    }
    for (what, count) in &coverage.0 {
        println!("{count:>9} {what}");
    }
    if seed_count >= RARE_AFTER && cfg!(feature = "sabotage") {
        let missed: Vec<_> = RARE.iter().filter(|what| coverage.of(what) == 0).collect();
        assert!(missed.is_empty(), "{seed_count} seeds did not reach: {missed:?}");
    }
}

/// Seeds after which every rare state must have been reached.
const RARE_AFTER: u64 = 1_000;

/// States that random runs easily miss.
const RARE: &[&str] = &[
    "a fault during recovery",
    "a fault during a checkpoint",
    "a fault while deleting segments",
    "a fault while preallocating a segment",
    "a fault while syncing the directory",
    "a fault while writing a batch",
    "a fault while syncing a batch",
    "interrupted starts",
    "a sync failed",
    "a write failed",
    "a change of a name or a length failed",
    "a torn tail was discarded",
    "a lost turn had taken effect",
    "a lost turn had not taken effect",
    "the checkpointer ran within a turn",
    "the checkpointer met a full disk",
    "a start met a full disk",
    "a call was refused on a full disk",
    "the clocks were frozen on a full disk",
    "new keys were refused while the checkpointer lagged",
    "a waiter was granted a key",
    "the wait queue was full",
    "an undelivered grant was revoked",
    "an undelivered grant was redelivered",
    "a repeat returned the same lease",
    "a call was deferred to the next turn",
    "a policy changed while keys were leased",
    "a pool was deleted while a call waited",
    "a renewal arrived at the very deadline",
    "a release arrived at the very deadline",
    "a keep-alive arrived at the very deadline",
    "a keep-alive arrived a millisecond before the deadline",
    "a token reservation was used up",
    "an import brought a retired value back",
    "an import named a generated value of a removed key",
    "an import named an imported value of a removed key",
    "all keys were kept alive, one of them without a deadline",
    "a long call was executed while others were queued",
    "a long call was refused, because too many were queued",
    "a backup was completed",
    "a turn ran while a backup was written",
    "the process ended while a backup was written",
    "a server was restored",
    "a restore was interrupted",
    "a restore got the length of its holds",
    "a restore got its first token",
    "a restored server lent a key after its holds",
];

/// A seed determines the whole simulation.
#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 1_000..1_012 {
        let runs = [Tracing::Kept, Tracing::Kept].map(|kept| run_seed(seed, None, kept));
        assert_eq!(runs[0].hash, runs[1].hash, "seed {seed}");
        // A run without a trace reaches the same states as often.
        let untraced = run_seed(seed, None, Tracing::Omitted);
        assert_eq!(runs[0].coverage, untraced.coverage, "seed {seed}");
        assert_eq!(runs[0].outcome, untraced.outcome, "seed {seed}");
    }
}

/// Seeds within which each defect must be detected.
#[cfg(feature = "sabotage")]
const CAUGHT_WITHIN: u64 = 200;

/// Runs the directed story of a defect that needs an instant which random seeds rarely meet; `None`
/// for the other defects. Returns what the story saw.
#[cfg(feature = "sabotage")]
fn directed_story(sabotage: Sabotage) -> Option<Result<(), String>> {
    let story = match sabotage {
        Sabotage::CarryPastSynced => support::unsynced_batch::checkpoint_beside_an_unsynced_batch,
        _ => return None,
    };
    keypeg_core::sabotage::configure(Some(sabotage), Vec::new());
    let outcome = story();
    keypeg_core::sabotage::configure(None, Vec::new());
    Some(outcome)
}

/// A check that detects nothing proves nothing: with each of these defects switched on, its directed
/// story or at least one seed must fail.
#[test]
#[cfg(feature = "sabotage")]
fn each_sabotage_is_seen() {
    let only = std::env::var("KEYPEG_SABOTAGE").ok();
    let mut missed = Vec::new();
    println!("| sabotage | seeds until seen | seen by |\n|---|---|---|");
    for sabotage in Sabotage::ALL {
        let name = format!("{sabotage:?}");
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        match directed_story(sabotage) {
            Some(Err(_)) => {
                println!("| {name} | – | a directed story |");
                continue;
            }
            Some(Ok(())) => {
                missed.push(name);
                continue;
            }
            None => {}
        }
        let detection = (0..CAUGHT_WITHIN).find_map(|seed| {
            let outcome = std::panic::catch_unwind(|| {
                run_seed(seed, Some(sabotage), Tracing::Omitted).outcome
            });
            match outcome {
                Ok(Ok(())) => None,
                Ok(Err(why)) => Some((seed, why)),
                Err(_) => Some((seed, "an invariant of the pools".into())),
            }
        });
        match detection {
            Some((seed, why)) => println!("| {name} | {} | {} |", seed + 1, detected_by(&why)),
            None => missed.push(name),
        }
    }
    assert!(missed.is_empty(), "not seen within {CAUGHT_WITHIN} seeds: {missed:?}");
}

/// Returns the check that detected the defect.
#[cfg(feature = "sabotage")]
fn detected_by(why: &str) -> &'static str {
    let checks = [
        ("a start is refused", "a start must not be refused"),
        ("no model explains", "a model must explain the recovered state"),
        ("two holders", "one holder at a time, by the replies to clients"),
        ("tokens only grow", "tokens only grow"),
        ("not revoked", "undelivered grants are revoked"),
        ("the engine ended without", "the engine ends only by a fault"),
        ("not quiescent", "without faults everything becomes quiescent"),
        ("an invariant", "an invariant of the pools"),
        ("uncounted", "every lease counts for its caller"),
        ("restored: a held key", "a restored server lends no key that it must hold"),
        ("restored: it is not held", "a restored server holds every key"),
        ("restored: its token", "the tokens of a restored server are above all before"),
        ("a backup failed", "a backup ends only on a full disk or for a slow client"),
        ("restored", "a restored server has the data of the backup"),
    ];
    let found = checks.iter().find(|(begins, _)| why.starts_with(begins));
    found.map_or("the reply differs from the model", |(_, check)| check)
}
