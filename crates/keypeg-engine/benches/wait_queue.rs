//! So many wait in line, through a lane, on an empty pool; then as many keys come. Prints what a
//! waiter takes of memory, and how long it took until each had a key of its own, durably.
//!
//! `cargo bench -p keypeg-engine --bench line -- DIR WAITERS`

mod support;

use keypeg_engine::core::PoolName;
use keypeg_engine::{Call, Reply};
use std::collections::HashSet;
use support::{Started, argument, ask, begin, block_on, directory, report};

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1_024
}

fn main() {
    let waiters: u32 = argument(2).and_then(|count| count.parse().ok()).unwrap_or(100_000);
    let started = Started::on(directory("keypeg-line"), 1_000_000);
    let lane = started.lane.clone();
    let pool = PoolName::default_pool;
    let before = resident();
    let mut waiting = Vec::new();
    for at in 1..=waiters {
        let call = Call::Acquire { pool: pool(), ttl_ms: None, holder: None, wait_ms: 300_000 };
        waiting.push(ask(&lane, call));
        if at % 4_000 == 0 {
            // All before it are in line once this is answered.
            block_on(ask(&lane, Call::GetPool { pool: pool() }));
        }
    }
    let Reply::Pool { pool: shown, .. } = block_on(ask(&lane, Call::GetPool { pool: pool() }))
    else {
        panic!("the pool is there")
    };
    assert_eq!(shown.waiting, u64::from(waiters), "all are in line");
    let each = (resident() - before) / u64::from(waiters);
    let begun = begin();
    let mut left = waiters;
    while left > 0 {
        let count = left.min(10_000);
        block_on(ask(&lane, Call::Generate { pool: pool(), count }));
        left -= count;
    }
    let mut keys = HashSet::new();
    for answer in waiting {
        let Reply::Granted { lease, .. } = block_on(answer) else { panic!("a key for each") };
        assert!(keys.insert(lease.key_id), "a key is lent twice");
    }
    let seconds = begun.elapsed().as_secs_f64();
    started.stop();
    report(&format!(
        "{waiters} waiters, {each} bytes each; {} keys made, each waiter has one of its own \
         within {seconds:.2} s",
        keys.len()
    ));
}
