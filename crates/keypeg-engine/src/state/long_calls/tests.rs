//! When the engine's thread continues with queued long calls: not while all of them wait for lookups,
//! and always if a bound ended the last turn.

use super::super::work::CallId;
use super::*;
use keypeg_core::{ImportOptions, PoolName, Secret};
use keypeg_store::{Principal, Request};

fn queue(calls: &mut LongCalls, caller: u64, call: Call) {
    let request = Request { caller: CallerNumber(caller), ..Request::new(Principal::Anyone, call) };
    assert!(calls.push(QueuedRequest::new(CallId { lane: 0, slot: 1 }, request, 0)));
}

fn queue_import(calls: &mut LongCalls, caller: u64) {
    let values = vec![Secret::new("an imported value").expect("a length")];
    let (pool, options) = (PoolName::default_pool(), ImportOptions::default());
    queue(
        calls,
        caller,
        Call::Import { pool, values, options, labels: keypeg_core::NewLabels::None },
    );
}

fn queue_page(calls: &mut LongCalls, caller: u64) {
    let pool = PoolName::default_pool();
    queue(
        calls,
        caller,
        Call::ListKeys { pool, state: None, limit: 1_000, cursor: None, label: None },
    );
}

/// Returns a queue whose lookups are as many as are allowed at once.
fn all_lookups_in_use() -> LongCalls {
    LongCalls { in_lookup: IN_LOOKUP_MAX, ..LongCalls::default() }
}

/// Runs turns for as long as a turn can execute a call; returns the number of calls executed.
fn run_turns(calls: &mut LongCalls, spent_before: u32) -> usize {
    let (mut executed, mut turns) = (0, 0);
    while calls.has_ready() || turns == 0 {
        turns += 1;
        assert!(turns < 1_000, "the engine's thread never sleeps");
        let mut budget = LongBudget::of_turn();
        // Each turn but the first has its whole budget.
        budget.spend(if turns == 1 { spent_before } else { 0 });
        while calls.next(&mut budget).is_some() {
            executed += 1;
        }
    }
    executed
}

/// With more callers than one turn passes over, the thread once ran turn after turn until a lookup
/// was complete.
#[test]
fn imports_that_all_wait_for_lookups_let_the_thread_sleep() {
    let mut calls = all_lookups_in_use();
    (0..200).for_each(|caller| queue_import(&mut calls, caller));
    assert_eq!((run_turns(&mut calls, 0), calls.len()), (0, 200));
    calls.in_lookup -= 1;
    assert!(calls.has_ready(), "a lookup is complete, so another import can have one");
}

/// The calls of others waited until an import had its lookup: with a busy disk for seconds.
#[test]
fn a_turn_that_its_budget_ended_is_followed_by_another_while_imports_wait_for_lookups() {
    for spent_before in [0, 1, LONG_UNITS_MAX] {
        let mut calls = all_lookups_in_use();
        queue_import(&mut calls, 1);
        (0..40).for_each(|_| queue_page(&mut calls, 2));
        assert_eq!((run_turns(&mut calls, spent_before), calls.len()), (40, 1));
    }
}

#[test]
fn a_turn_that_passed_over_as_many_callers_as_allowed_is_followed_by_another() {
    let mut calls = all_lookups_in_use();
    let imports = 3 * PASSED_OVER_MAX;
    (0..imports as u64).for_each(|caller| queue_import(&mut calls, caller));
    queue_page(&mut calls, 1_000);
    assert_eq!((run_turns(&mut calls, 0), calls.len()), (1, imports));
    queue_page(&mut calls, 1_001);
    assert_eq!((run_turns(&mut calls, 0), calls.len()), (1, imports));
}
