//! Damaged data directories: a start refuses them with a reason, or opens them as pools whose
//! invariants hold. It never panics.
//!
//! In half of the runs the checksums are corrected, as no accident would: then the damage reaches
//! the code behind them, the record decoder and the replay. `KEYPEG_FUZZ_RUNS` sets the number of
//! runs, `KEYPEG_SEED` repeats them.

#[path = "fuzz/keyset_pages.rs"]
mod keyset_pages;
mod support;

use keypeg_core::NewLabels;
use keypeg_engine::disk::Disk;
use keypeg_store::Call;
use keypeg_testkit::{env_number, mutate};
use std::sync::Arc;
use support::sim_disk::SimDisk;
use support::workload::{TURNS, Workload, advance_clock, run_turn};
use support::{Driver, ManualClock, SeededRandom, default_pool};

/// Returns directories from several points of a workload that writes every kind of fact; some have
/// been checkpointed.
fn corpus() -> (Vec<SimDisk>, ManualClock) {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = Driver::open(Arc::new(disk.clone()), &clock, 1).expect("opens");
    let mut workload = Workload::default();
    let mut disks = Vec::new();
    for turn in 0..TURNS {
        advance_clock(&clock, turn);
        run_turn(&mut driver, &mut workload, turn).expect("the disk does not fail");
        if turn == TURNS / 2 {
            driver.checkpoint().expect("the checkpoint succeeds");
        }
        if turn % 5 == 4 {
            disks.push(disk.copy());
        }
    }
    (disks, clock)
}

const SEGMENT_HEAD: usize = 4096;
const BATCH_HEAD: usize = 64;

fn put_checksum(bytes: &mut [u8], offset: usize, sum: u32) {
    bytes[offset..offset + 4].copy_from_slice(&sum.to_le_bytes());
}

/// Corrects every checksum of a segment's frames.
fn correct_segment_checksums(bytes: &mut [u8]) {
    if bytes.len() < SEGMENT_HEAD {
        return;
    }
    let sum = crc32fast::hash(&bytes[16..SEGMENT_HEAD]);
    put_checksum(bytes, 12, sum);
    let mut offset = SEGMENT_HEAD;
    while offset + BATCH_HEAD <= bytes.len() && bytes[offset..].starts_with(b"KPGB") {
        let len = bytes[offset + 8..].first_chunk().map_or(0, |len| u32::from_le_bytes(*len));
        let end = offset + BATCH_HEAD + usize::try_from(len).unwrap_or(usize::MAX / 2);
        if end > bytes.len() {
            return;
        }
        let sum = crc32fast::hash(&bytes[offset + 8..end]);
        put_checksum(bytes, offset + 4, sum);
        offset = end.next_multiple_of(8);
    }
}

fn correct_meta_checksum(bytes: &mut Vec<u8>) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let summed = text.rsplit_once("sum ").map_or(text.as_str(), |(summed, _)| summed);
    *bytes = format!("{summed}sum {:08x}\n", crc32fast::hash(summed.as_bytes())).into_bytes();
}

/// Mutates the written part of a file: damage to the zeros behind it would test nothing.
fn damage(
    name: &str,
    bytes: &mut Vec<u8>,
    correct_checksums: bool,
    below: &mut impl FnMut(usize) -> usize,
) {
    let journal = name.starts_with("journal-");
    let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    // A header is mostly zero too, and its first numbers matter most.
    let from = if journal && written > SEGMENT_HEAD && below(8) > 0 { SEGMENT_HEAD } else { 0 };
    let to = if from == 0 { written.min(200) } else { written };
    let to = if journal { to } else { written };
    let mut part = bytes[from..to].to_vec();
    let len = part.len();
    mutate(&mut part, below);
    if journal {
        // A segment keeps its length.
        part.resize(len, 0);
    }
    bytes.splice(from..to, part);
    match name {
        "meta" if correct_checksums => correct_meta_checksum(bytes),
        _ if correct_checksums && journal => correct_segment_checksums(bytes),
        _ => {}
    }
}

#[test]
fn a_start_survives_every_damaged_directory() {
    let runs = env_number("KEYPEG_FUZZ_RUNS").unwrap_or(2_000);
    let seed = env_number("KEYPEG_SEED").unwrap_or(1);
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
        let correct_checksums = below(2) == 0;
        disk.damage(name, |bytes| damage(name, bytes, correct_checksums, &mut below));
        match Driver::open(Arc::new(disk), &clock, run) {
            Err(error) => assert!(!error.is_empty(), "run {run}"),
            Ok(mut driver) => {
                driver.engine.pools().check_invariants();
                driver.call(Call::Generate {
                    pool: default_pool(),
                    count: 2,
                    labels: NewLabels::None,
                });
                let _ = driver.acquire("after");
                opened[usize::from(correct_checksums)] += 1;
            }
        }
    }
    println!(
        "{runs} runs, opened {opened:?} (as damaged, with checksums corrected), KEYPEG_SEED={seed}"
    );
    assert!(opened.iter().all(|opened| *opened > 0), "{opened:?}: no directory opened");
}
