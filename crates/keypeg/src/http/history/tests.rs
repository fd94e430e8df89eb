//! Tests of the history with given walks: which seconds it has, and which pools.

use super::*;
use crate::clock;
use keypeg_core::{KeyCounts, Policy, PoolPattern};
use std::time::Duration;

fn view(name: &str, available: u64, grants: u64) -> PoolView {
    PoolView {
        name: PoolName::parse(name).expect("a name"),
        policy: Policy::default(),
        counts: KeyCounts { available, leased: 1, resting: 2, quarantined: 3, draining: 0 },
        waiting: 4,
        activity: PoolActivity {
            grants,
            refusals_by_cause: [grants, 0, 0, grants, 0, 0],
            ..PoolActivity::default()
        },
        next_hold_end_at_ms: None,
        next_purge_at_ms: None,
    }
}

/// Walks over these pools at this second after the beginning; the wall clock shows it too.
fn walk(history: &History, second: u64, pools: &[PoolView]) {
    let now = history.began + Duration::from_secs(second);
    let mut walk = history.begin(now).expect("a new second");
    for page in pools.chunks(3) {
        history.add(&mut walk, page);
    }
    history.end(&walk, second * 1_000);
}

fn history() -> History {
    History::new(1 << 20, clock::stopwatch())
}

fn of(history: &History, pool: &str) -> wire::History {
    history.of_pool(&PoolName::parse(pool).expect("a name"), 900)
}

#[test]
fn a_second_has_the_counts_at_its_end_and_what_happened_in_it() {
    let history = history();
    assert_eq!(of(&history, "a").grants, []);
    // What the pool did before the first walk is of no second.
    walk(&history, 5, &[view("a", 10, 1_000)]);
    walk(&history, 6, &[view("a", 11, 1_007), view("b", 1, 3)]);
    // A second without a walk repeats the counts, and what happened in it counts in the next one.
    walk(&history, 8, &[view("a", 11, 1_008), view("b", 1, 3)]);
    let a = of(&history, "a");
    let none = [None; 5];
    assert_eq!(a.available, [&none[..], &[Some(10), Some(11), Some(11), Some(11)]].concat());
    assert_eq!(a.grants, [&none[..], &[Some(0), Some(7), Some(0), Some(1)]].concat());
    assert_eq!(a.refusals[5..], [Some(0), Some(14), Some(0), Some(2)]);
    assert_eq!((a.pool.as_deref(), a.pools, a.from_at), (Some("a"), 1, UnixMs(0)));
    assert_eq!(history.of_pool(&PoolName::parse("a").unwrap(), 2).grants, [Some(0), Some(1)]);
    let all = history.of_all(None, 3);
    assert_eq!(all.available, [Some(12), Some(12), Some(12)]);
    assert_eq!((all.grants, all.waiting), (vec![Some(10), Some(0), Some(1)], vec![Some(8); 3]));
    assert_eq!((all.pool, all.pools, all.from_at), (None, 2, UnixMs(6_000)));
    assert_eq!(of(&history, "unknown").grants, [None; 9]);
}

#[test]
fn a_second_has_one_walk() {
    let history = history();
    walk(&history, 1, &[view("a", 1, 1)]);
    assert!(history.begin(history.began + Duration::from_millis(1_999)).is_none());
    assert!(history.begin(history.began + Duration::from_secs(2)).is_some());
}

#[test]
fn the_history_ends_after_fifteen_minutes() {
    let history = history();
    for second in 0..2_000 {
        walk(&history, second, &[view("busy", second, second), view("idle", 1, 1)]);
    }
    let busy = of(&history, "busy");
    assert_eq!((busy.grants.len(), busy.from_at), (900, UnixMs(1_100_000)));
    assert!(busy.grants.iter().all(|&grants| grants == Some(1)));
    assert_eq!(busy.available[0], Some(1_100));
    // A pool at rest takes one point.
    assert!(of(&history, "idle").available.iter().all(|&available| available == Some(1)));
    let state = history.lock();
    assert_eq!(state.points, 900 + 1);
    assert_eq!(state.totals.len(), 900);
}

#[test]
fn a_pool_that_is_deleted_is_forgotten_and_begins_again_at_zero() {
    let history = history();
    walk(&history, 0, &[view("a", 1, 100), view("b", 1, 1)]);
    walk(&history, 1, &[view("b", 1, 1)]);
    assert_eq!(of(&history, "a").grants, [None; 2]);
    // The sum keeps what it had, and never counts backwards.
    walk(&history, 2, &[view("a", 1, 5), view("b", 1, 1)]);
    assert_eq!(history.of_all(None, 900).grants, [Some(0), Some(0), Some(5)]);
    // Deleted and created again between two walks.
    walk(&history, 3, &[view("a", 1, 2), view("b", 1, 1)]);
    assert_eq!(history.of_all(None, 1).grants, [Some(2)]);
}

#[test]
fn busy_pools_displace_idle_ones() {
    let history = history();
    let names: Vec<_> = (0..POOLS_MAX + 50).map(|number| format!("p{number:04}")).collect();
    // The first pools are there first; then the last ones become the busy ones.
    let pools = |busy: u64, range: std::ops::Range<usize>| -> Vec<_> {
        names[range].iter().map(|name| view(name, 1, busy)).collect()
    };
    walk(&history, 0, &pools(0, 0..POOLS_MAX));
    assert_eq!(history.lock().series, POOLS_MAX);
    for second in 1..=10 {
        let mut all = pools(0, 0..POOLS_MAX);
        all.extend(pools(second * 10, POOLS_MAX..POOLS_MAX + 50));
        walk(&history, second, &all);
    }
    let mut all = pools(0, 0..POOLS_MAX);
    all.extend(pools(110, POOLS_MAX..POOLS_MAX + 50));
    walk(&history, 11, &all);
    assert_eq!(history.lock().series, POOLS_MAX);
    for name in &names[POOLS_MAX..] {
        assert_eq!(of(&history, name).grants.last(), Some(&Some(10)), "{name}");
    }
}

#[test]
fn the_points_are_bounded_and_the_busiest_pools_keep_theirs() {
    let history = History::new((POINT_BYTES * 1_000) as u64, clock::stopwatch());
    let names: Vec<_> = (1..=20).map(|number| format!("p{number}")).collect();
    for second in 0..200 {
        let pools = (1..).zip(&names).map(|(busy, name)| view(name, second, busy * second));
        walk(&history, second, &pools.collect::<Vec<_>>());
        assert!(history.lock().points <= 1_000, "at {second}");
    }
    let has_all = |name: &str| of(&history, name).grants.iter().flatten().count() == 200;
    assert!(has_all("p20") && has_all("p19"), "the busiest pools");
    assert!(!has_all("p1"), "the least busy pool");
}

#[test]
fn a_token_sees_the_sum_of_its_own_pools() {
    let history = history();
    for second in 0..2 {
        walk(&history, second, &[view("a-1", 1, second), view("a-2", 2, second), view("b", 4, 9)]);
    }
    let filter = |patterns: &[&str]| {
        PoolFilter::new(patterns.iter().filter_map(|text| PoolPattern::parse(text)).collect())
    };
    for (patterns, pools, available) in
        [(&["a-*"][..], 2, 3), (&["b"], 1, 4), (&["*"], 3, 7), (&["*", "b"], 3, 7)]
    {
        let seen = history.of_all(Some(&filter(patterns)), 1);
        assert_eq!((seen.pools, &*seen.available), (pools, &[Some(available)][..]), "{patterns:?}");
    }
    assert_eq!(history.of_all(Some(&filter(&["c"])), 1).available, [None]);
}
