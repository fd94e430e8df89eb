//! Acquires and releases keys through the engine's lanes, again and again, on a real directory, and
//! prints the greatest size of the directory: the journal must stay small throughout.
//!
//! `cargo bench -p keypeg-engine --bench churn -- DIR CYCLES`

mod support;

use keypeg_core::{NewLabels, PoolName, ReleaseOptions};
use keypeg_store::{Call, Lane, Reply};
use std::path::Path;
use support::{StartedEngine, argument, block_on, directory, now, report, submit};

/// Concurrent calls.
const CONCURRENT_CALLS: u64 = 4_000;
const KEYS: u32 = 10_000;

/// Bytes of a data directory.
#[derive(Default)]
struct DirSize {
    journal: u64,
    all: u64,
}

fn bytes_in(dir: &Path) -> DirSize {
    let mut size = DirSize::default();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let len = entry.metadata().map_or(0, |meta| meta.len());
        size.all += len;
        if entry.file_name().to_string_lossy().starts_with("journal") {
            size.journal += len;
        }
    }
    size
}

fn main() {
    let cycles: u64 = argument(2).and_then(|count| count.parse().ok()).unwrap_or(1_000_000);
    let dir = directory("keypeg-churn");
    let started = StartedEngine::open(dir.clone(), 100_000);
    let lane = started.lane.clone();
    let (start, mut greatest) = (now(), DirSize::default());
    block_on(submit(
        &lane,
        Call::Generate { pool: PoolName::default_pool(), count: KEYS, labels: NewLabels::None },
    ));
    let mut done = 0;
    while done < cycles {
        done += acquire_and_release(&lane);
        let size = bytes_in(&dir);
        greatest.journal = greatest.journal.max(size.journal);
        greatest.all = greatest.all.max(size.all);
    }
    let seconds = start.elapsed().as_secs_f64();
    started.stop();
    let mib = |bytes: u64| bytes >> 20;
    report(&format!(
        "{done} cycles in {seconds:.0} s; journal at most {} MiB, directory at most {} MiB, \
         at the end {} MiB",
        mib(greatest.journal),
        mib(greatest.all),
        mib(bytes_in(&dir).all)
    ));
}

/// Acquires and releases many keys at once; returns how many.
fn acquire_and_release(lane: &Lane) -> u64 {
    let acquire =
        || Call::Acquire { pool: PoolName::default_pool(), ttl_ms: None, holder: None, wait_ms: 0 };
    let grants: Vec<_> = (0..CONCURRENT_CALLS).map(|_| submit(lane, acquire())).collect();
    let releases: Vec<_> = grants
        .into_iter()
        .map(block_on)
        .map(|reply| {
            let Reply::Granted { pool, lease, .. } = reply else { panic!("{reply:?}") };
            submit(
                lane,
                Call::Release { pool, lease: lease.id, options: ReleaseOptions::default() },
            )
        })
        .collect();
    for release in releases {
        let reply = block_on(release);
        assert!(matches!(reply, Reply::Released { .. }), "{reply:?}");
    }
    CONCURRENT_CALLS
}
