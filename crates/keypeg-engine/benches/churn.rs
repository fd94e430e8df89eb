//! Lends and returns keys through the engine's lanes, again and again, on a real directory, and
//! prints how large the directory was at the most: the journal must stay small whatever happened.
//!
//! `cargo bench -p keypeg-engine --bench churn -- DIR CYCLES`

mod support;

use keypeg_engine::core::{PoolName, ReleaseOptions};
use keypeg_engine::{Call, Lane, Reply};
use std::path::Path;
use support::{Started, argument, ask, begin, block_on, directory, report};

/// Calls under way at once.
const AT_ONCE: u64 = 4_000;
const KEYS: u32 = 10_000;

fn bytes_in(dir: &Path) -> (u64, u64) {
    let (mut journal, mut all) = (0, 0);
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let len = entry.metadata().map_or(0, |meta| meta.len());
        all += len;
        if entry.file_name().to_string_lossy().starts_with("journal") {
            journal += len;
        }
    }
    (journal, all)
}

fn main() {
    let cycles: u64 = argument(2).and_then(|count| count.parse().ok()).unwrap_or(1_000_000);
    let dir = directory("keypeg-churn");
    let started = Started::on(dir.clone(), 100_000);
    let lane = started.lane.clone();
    let (begun, mut most) = (begin(), (0, 0));
    block_on(ask(&lane, Call::Generate { pool: PoolName::default_pool(), count: KEYS }));
    let mut done = 0;
    while done < cycles {
        done += lend_and_return(&lane);
        let now = bytes_in(&dir);
        most = (most.0.max(now.0), most.1.max(now.1));
    }
    let seconds = begun.elapsed().as_secs_f64();
    started.stop();
    let mib = |bytes: u64| bytes >> 20;
    report(&format!(
        "{done} cycles in {seconds:.0} s; journal at most {} MiB, directory at most {} MiB, \
         at the end {} MiB",
        mib(most.0),
        mib(most.1),
        mib(bytes_in(&dir).1)
    ));
}

/// Lends and returns many keys at once; gives how many.
fn lend_and_return(lane: &Lane) -> u64 {
    let acquire =
        || Call::Acquire { pool: PoolName::default_pool(), ttl_ms: None, holder: None, wait_ms: 0 };
    let grants: Vec<_> = (0..AT_ONCE).map(|_| ask(lane, acquire())).collect();
    let releases: Vec<_> = grants
        .into_iter()
        .map(block_on)
        .map(|reply| {
            let Reply::Granted { pool, lease, .. } = reply else { panic!("{reply:?}") };
            ask(lane, Call::Release { pool, lease: lease.id, verdict: ReleaseOptions::default() })
        })
        .collect();
    for release in releases {
        let reply = block_on(release);
        assert!(matches!(reply, Reply::Done), "{reply:?}");
    }
    AT_ONCE
}
