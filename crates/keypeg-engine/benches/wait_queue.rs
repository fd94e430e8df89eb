//! Many waiters wait through a lane on an empty pool; then the same number of keys is created.
//! Prints the memory of a waiter, and the time until each has its own key, durably.
//!
//! `cargo bench -p keypeg-engine --bench wait_queue -- DIR WAITERS`

mod support;

use keypeg_core::{NewLabels, PoolName};
use keypeg_store::{Call, Reply};
use std::collections::HashSet;
use support::{StartedEngine, argument, block_on, directory, now, report, submit};

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1_024
}

fn main() {
    let waiters: u32 = argument(2).and_then(|count| count.parse().ok()).unwrap_or(100_000);
    let started = StartedEngine::open(directory("keypeg-wait-queue"), 1_000_000);
    let lane = started.lane.clone();
    let pool = PoolName::default_pool;
    let before = resident_bytes();
    let mut waiting = Vec::new();
    for number in 1..=waiters {
        let call = Call::Acquire { pool: pool(), ttl_ms: None, holder: None, wait_ms: 300_000 };
        waiting.push(submit(&lane, call));
        if number % 4_000 == 0 {
            // All earlier calls are in the wait queue once this one is answered.
            block_on(submit(&lane, Call::GetPool { pool: pool() }));
        }
    }
    let Reply::Pool { pool: shown, .. } = block_on(submit(&lane, Call::GetPool { pool: pool() }))
    else {
        panic!("the pool exists")
    };
    assert_eq!(shown.waiting, u64::from(waiters), "all calls wait");
    let bytes_per_waiter = (resident_bytes() - before) / u64::from(waiters);
    let start = now();
    let mut left = waiters;
    while left > 0 {
        let count = left.min(10_000);
        block_on(submit(&lane, Call::Generate { pool: pool(), count, labels: NewLabels::None }));
        left -= count;
    }
    let mut keys = HashSet::new();
    for reply in waiting {
        let Reply::Granted { lease, .. } = block_on(reply) else { panic!("a key for each") };
        assert!(keys.insert(lease.key_id), "a key is granted twice");
    }
    let seconds = start.elapsed().as_secs_f64();
    started.stop();
    report(&format!(
        "{waiters} waiters, {bytes_per_waiter} bytes each; {} keys created, \
         each waiter has its own after {seconds:.2} s",
        keys.len()
    ));
}
