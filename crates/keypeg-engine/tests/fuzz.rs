//! Directories that nobody wrote: a start refuses them and tells why, or makes pools of them whose
//! invariants hold. It never panics.
//!
//! In half of the runs the sums are made right again, as no accident would: then what stands
//! behind them, the records' decoder and the rebuilding, meets the damage. `KEYPEG_FUZZ_RUNS` sets
//! the runs, `KEYPEG_SEED` repeats them.

#[path = "../../keypeg-core/tests/support/mutate.rs"]
mod mutate;
mod support;

use keypeg_engine::Call;
use keypeg_engine::disk::Disk;
use mutate::mutate;
use std::sync::Arc;
use support::sim_disk::SimDisk;
use support::story::{Story, TURNS, play, tick};
use support::{Driver, GivenClock, SeededRandom, default_pool};

fn given(name: &str, or: u64) -> u64 {
    std::env::var(name).ok().map_or(or, |text| text.parse().expect("a number"))
}

/// Directories from all along a story that makes every kind of fact; in some it is carried.
fn corpus() -> (Vec<SimDisk>, GivenClock) {
    let (disk, clock) = (SimDisk::new(), GivenClock::new());
    let mut driver = Driver::open(Arc::new(disk.clone()), &clock, 1).expect("opens");
    let mut story = Story::default();
    let mut disks = Vec::new();
    for turn in 0..TURNS {
        tick(&clock, turn);
        play(&mut driver, &mut story, turn).expect("plays");
        if turn == TURNS / 2 {
            driver.carry().expect("carries");
        }
        if turn % 5 == 4 {
            disks.push(disk.copy());
        }
    }
    (disks, clock)
}

const SEGMENT_HEAD: usize = 4096;
const BATCH_HEAD: usize = 64;

fn put_sum(bytes: &mut [u8], at: usize, sum: u32) {
    bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
}

/// Makes every sum right again that a segment's frames have.
fn refit_segment(bytes: &mut [u8]) {
    if bytes.len() < SEGMENT_HEAD {
        return;
    }
    let sum = crc32fast::hash(&bytes[16..SEGMENT_HEAD]);
    put_sum(bytes, 12, sum);
    let mut at = SEGMENT_HEAD;
    while at + BATCH_HEAD <= bytes.len() && bytes[at..].starts_with(b"KPGB") {
        let len = bytes[at + 8..].first_chunk().map_or(0, |len| u32::from_le_bytes(*len));
        let end = at + BATCH_HEAD + usize::try_from(len).unwrap_or(usize::MAX / 2);
        if end > bytes.len() {
            return;
        }
        let sum = crc32fast::hash(&bytes[at + 8..end]);
        put_sum(bytes, at + 4, sum);
        at = end.next_multiple_of(8);
    }
}

fn refit_meta(bytes: &mut Vec<u8>) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let summed = text.rsplit_once("sum ").map_or(text.as_str(), |(summed, _)| summed);
    *bytes = format!("{summed}sum {:08x}\n", crc32fast::hash(summed.as_bytes())).into_bytes();
}

/// A mutant of what is written in a file: damage behind it all, where all is zero, is no news.
fn damage(name: &str, bytes: &mut Vec<u8>, refit: bool, below: &mut impl FnMut(usize) -> usize) {
    let journal = name.starts_with("journal-");
    let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    // A head is mostly zero too, and its first numbers are what matters.
    let from = if journal && written > SEGMENT_HEAD && below(8) > 0 { SEGMENT_HEAD } else { 0 };
    let to = if from == 0 { written.min(200) } else { written };
    let to = if journal { to } else { written };
    let mut part = bytes[from..to].to_vec();
    let len = part.len();
    mutate(&mut part, below);
    if journal {
        // The file keeps its length, as a segment does.
        part.resize(len, 0);
    }
    bytes.splice(from..to, part);
    match name {
        "meta" if refit => refit_meta(bytes),
        _ if refit && journal => refit_segment(bytes),
        _ => {}
    }
}

#[test]
fn a_start_survives_every_directory() {
    let (runs, seed) = (given("KEYPEG_FUZZ_RUNS", 2_000), given("KEYPEG_SEED", 1));
    let (disks, clock) = corpus();
    let mut opened = [0_u64; 2];
    for run in 0..runs {
        let mut random = SeededRandom(seed.wrapping_mul(1 << 32).wrapping_add(run));
        let mut below =
            |bound: usize| usize::try_from(random.below(bound as u64)).expect("below the bound");
        let disk = disks[below(disks.len())].copy();
        let mut names = disk.list().expect("lists");
        names.sort();
        names.retain(|name| name != "ballast");
        names.retain(|name| name != "keyset" || below(4) == 0);
        let name = &names[below(names.len())];
        let refit = below(2) == 0;
        disk.damage(name, |bytes| damage(name, bytes, refit, &mut below));
        match Driver::open(Arc::new(disk), &clock, run) {
            Err(told) => assert!(!told.is_empty(), "run {run}"),
            Ok(mut driver) => {
                driver.works.pools().check_invariants();
                if name == "keyset" {
                    // The database reads some of its pages in its next commit only, which its drop
                    // makes too: where one of those is damaged it panics, then, beyond catching.
                    std::mem::forget(driver);
                    continue;
                }
                driver.call(Call::Generate { pool: default_pool(), count: 2 });
                let _ = driver.acquire("after");
                opened[usize::from(refit)] += 1;
            }
        }
    }
    println!(
        "{runs} runs, opened {opened:?} (as damaged, with sums made right), KEYPEG_SEED={seed}"
    );
    assert!(opened.iter().all(|opened| *opened > 0), "{opened:?}: nothing was reached");
}
