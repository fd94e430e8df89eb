//! The engine, its carrier, its clocks, its disk and its clients in one thread under one seed:
//! whatever next_fault it, no answer is wrong and nothing that was told is lost.
//!
//! `KEYPEG_SEED=7` plays one seed again and prints its trace, `KEYPEG_SEEDS=5000` plays as many.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    clippy::cast_possible_truncation,
    clippy::similar_names,
    clippy::struct_excessive_bools,
    clippy::type_complexity,
    reason = "a test may panic, draws small numbers, and has many switches"
)]

#[path = "../support/mod.rs"]
mod support;

mod calls;
mod faults;
mod guess;
mod idempotency;
mod model;
mod tally;
mod time;
mod views;
mod world;

use keypeg_engine::core::Policy;
use keypeg_engine::core::sabotage::{Sabotage, TestLimit};
use keypeg_engine::state::JournalSizes;
use model::Rules;
use support::SeededRandom;
use tally::Tally;
use world::{Plan, World};

/// Seeds that a test run plays.
const SEEDS: u64 = 60;

fn plan(seed: u64) -> Plan {
    let random = &mut SeededRandom(seed ^ 0x5eed);
    let mut one_in = |many: u64| random.below(many) == 0;
    let small = cfg!(feature = "sabotage");
    let lags = small && one_in(8);
    let full = small && !lags && one_in(8);
    let rules = Rules { full, lags, waiters: if small { 5 } else { 100_000 } };
    let segment = if full { 8_192 } else { 4_096 + 768 };
    let sector = if one_in(2) { 512 } else { 4_096 };
    let (fails, power_cuts, stops) = (!one_in(3), !one_in(4), !one_in(3));
    let (pauses, wall_steps, lost_replies) = (one_in(2), one_in(2), !one_in(3));
    let mut bounds = vec![(TestLimit::Waiters, 5), (TestLimit::SnapshotRecords, 2)];
    if lags {
        bounds.push((TestLimit::Expire, 1));
    }
    if full {
        bounds.push((TestLimit::LastRoom, 3_072));
    }
    if one_in(2) {
        bounds.push((TestLimit::TokenReservation, 4));
    }
    if one_in(2) {
        bounds.push((TestLimit::Facts, 3));
    }
    let slow_one_in = if one_in(3) { 40 } else { 0 };
    let carries_one_in = if one_in(2) { 6 } else { 0 };
    let struck_one_in = [0, 5, 10, 25][random.below(4) as usize];
    let carrier_one_in = [2, 5, 30][random.below(3) as usize];
    let keepalive = [None, Some(1_500), Some(3_000), Some(8_000)][random.below(4) as usize];
    let lease_ttl_ms = [300, 1_000, 4_000][random.below(3) as usize];
    let policy = Policy {
        lease_ttl_ms,
        max_hold_ms: [None, Some(lease_ttl_ms * 2)][random.below(2) as usize],
        rest_ms: [0, 0, 250][random.below(3) as usize],
        keepalive_ttl_ms: keepalive.filter(|_| !full && !lags),
        ..Policy::default()
    };
    Plan {
        beats: 60 + random.below(160),
        rules,
        sizes: JournalSizes { segment, journal: 4 * segment },
        bounds,
        sector,
        policy,
        struck_one_in,
        fails,
        power_cuts,
        stops,
        slow_one_in,
        carries_one_in,
        carrier_one_in,
        pauses,
        wall_steps,
        lost_replies,
    }
}

/// One seed, played to its end.
struct Played {
    tally: Tally,
    /// Of its trace.
    hash: u64,
    outcome: Result<(), String>,
    /// The last lines of its trace.
    told: String,
}

fn play(seed: u64, sabotage: Option<Sabotage>) -> Played {
    let plan = plan(seed);
    #[cfg(feature = "sabotage")]
    keypeg_engine::core::sabotage::configure(sabotage, plan.bounds.clone());
    assert!(sabotage.is_none() || cfg!(feature = "sabotage"), "nothing to switch on");
    let told = format!("{plan:?}");
    let mut world = World::new(plan, seed);
    let outcome = world.run();
    let lines: Vec<_> = world.trace.lines.iter().map(String::as_str).collect();
    let told = format!("{told}\n{}", lines.join("\n"));
    let played = Played { tally: world.counted(), hash: world.trace.hash, outcome, told };
    // What is left of it does nothing that is looked at.
    drop(world);
    #[cfg(feature = "sabotage")]
    keypeg_engine::core::sabotage::configure(None, Vec::new());
    played
}

/// How a seed is played again.
fn again(seed: u64) -> String {
    let feature = if cfg!(feature = "sabotage") { "--features sabotage " } else { "" };
    format!("KEYPEG_SEED={seed} cargo test -p keypeg-engine {feature}--test sim")
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
}

#[test]
fn whatever_befalls_it_no_answer_is_wrong() {
    let seeds = match number("KEYPEG_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("KEYPEG_SEEDS").unwrap_or(SEEDS),
    };
    let mut tally = Tally::default();
    let played = seeds.end - seeds.start;
    for seed in seeds {
        let Played { tally: counted, outcome, told, .. } = play(seed, None);
        tally.join(&counted);
        if let Err(why) = outcome {
            panic!("seed {seed}: {told}\n{why}\n{}", again(seed));
        }
    }
    for (what, many) in &tally.0 {
        println!("{many:>9} {what}");
    }
    if played >= ENOUGH && cfg!(feature = "sabotage") {
        let missed: Vec<_> = RARE.iter().filter(|what| tally.of(what) == 0).collect();
        assert!(missed.is_empty(), "{played} seeds did not come to: {missed:?}");
    }
}

/// Seeds after which every rare state must have been reached.
const ENOUGH: u64 = 1_000;

/// States that are easily missed.
const RARE: [&str; 32] = [
    "struck while recovering",
    "struck while carrying",
    "struck while dropping segments",
    "struck while making a segment ready",
    "struck while syncing names",
    "struck while writing a batch",
    "struck while syncing a batch",
    "starts cut short",
    "a sync failed",
    "a write failed",
    "a change of a name or a length failed",
    "a torn tail was cut",
    "a lost turn had happened",
    "a lost turn had not happened",
    "the carrier worked within a turn",
    "the carrier met a full disk",
    "a start met a full disk",
    "the disk was full for a call",
    "new keys waited for the carrier",
    "somebody in line was served",
    "the line was full",
    "an undelivered grant was taken back",
    "an undelivered grant was told again",
    "a repeat was told of the same lease",
    "a call went over into the next turn",
    "a policy changed while keys were leased",
    "a pool was dropped while somebody waited",
    "a renewal came at the very deadline",
    "a release came at the very deadline",
    "a keep-alive came at the very deadline",
    "a keep-alive came a millisecond before the deadline",
    "a token reservation was used up",
];

/// A seed is all there is to a simulation.
#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 1_000..1_012 {
        let hashes = [play(seed, None).hash, play(seed, None).hash];
        assert_eq!(hashes[0], hashes[1], "seed {seed}");
    }
}

/// Each defect is seen within this many seeds.
#[cfg(feature = "sabotage")]
const CAUGHT_WITHIN: u64 = 200;

/// A check that sees nothing proves nothing: with each of these defects switched on, some seed must
/// show it.
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
        let seen = (0..CAUGHT_WITHIN).find_map(|seed| {
            let outcome = std::panic::catch_unwind(|| play(seed, Some(sabotage)).outcome);
            match outcome {
                Ok(Ok(())) => None,
                Ok(Err(why)) => Some((seed, why)),
                Err(_) => Some((seed, "an invariant of the pools".into())),
            }
        });
        match seen {
            Some((seed, why)) => println!("| {name} | {} | {} |", seed + 1, seen_by(&why)),
            None => missed.push(name),
        }
    }
    assert!(missed.is_empty(), "not seen within {CAUGHT_WITHIN} seeds: {missed:?}");
}

/// Which check saw it.
#[cfg(feature = "sabotage")]
fn seen_by(why: &str) -> &'static str {
    let checks = [
        ("a start is refused", "a start must not be refused"),
        ("a start's finds", "what a start finds must be explained by what was told"),
        ("two holders", "one holder at a time, by what clients were told"),
        ("tokens only grow", "tokens only grow"),
        ("nobody received", "undelivered grants are taken back"),
        ("it ended though", "nothing ends by itself"),
        ("it does not come to rest", "all comes to rest"),
        ("an invariant", "an invariant of the pools"),
        ("uncounted", "every lease is somebody's"),
    ];
    let found = checks.iter().find(|(begins, _)| why.starts_with(begins));
    found.map_or("the model's answer is another", |(_, check)| check)
}
