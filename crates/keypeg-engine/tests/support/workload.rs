//! A scripted workload whose turns write every kind of fact, sent by two callers alternately, and a
//! description of the state that it leaves.

use super::sim_disk::SimDisk;
use super::{Driver, ManualClock, SentCall, default_pool, list_pools};
use keypeg_core::{
    BodyDigest, ImportOptions, KeyRef, KeyState, LeaseId, NewLabels, PolicyPatch, PoolName,
    QuarantineOptions, Refusal, ReleaseOptions, Secret,
};
use keypeg_store::{Call, Caller, Principal, Reply, RequestError};
use std::sync::Arc;

/// What the workload remembers between its turns.
#[derive(Default)]
pub(crate) struct Workload {
    keys: Vec<KeyRef>,
    leases: Vec<LeaseId>,
    pub(crate) greatest_token: u64,
}

pub(crate) const TURNS: usize = 30;

/// Advances the clock before a turn: before some turns, leases and rests expire and keys are
/// purged.
pub(crate) fn advance_clock(clock: &ManualClock, turn: usize) {
    clock.advance_ms(if matches!(turn % 10, 6 | 7) { 1_600 } else { 700 });
}

fn caller(index: usize) -> Caller {
    Caller::new(["even", "odd"][index], None)
}

/// Returns the Idempotency-Key of a turn's first call.
fn key_of(turn: usize) -> String {
    format!("turn {turn}")
}

/// Returns whether an Idempotency-Key of the workload has a stored answer. The request has another
/// body, and its values are out of range: it changes nothing in either case.
fn has_stored_answer(driver: &mut Driver, turn: usize) -> bool {
    let count = u32::MAX;
    let call = match turn % 10 {
        0 => Call::Generate { pool: default_pool(), count, labels: NewLabels::None },
        _ => Call::Acquire { pool: default_pool(), ttl_ms: Some(0), holder: None, wait_ms: 0 },
    };
    driver.by = Principal::Token(Arc::new(caller(turn % 2)));
    let reply = driver.call(SentCall::with_key(&key_of(turn), BodyDigest(1), call));
    driver.by = Principal::Anyone;
    match reply {
        Reply::Refused(RequestError::Refused(Refusal::IdempotencyMismatch)) => true,
        Reply::Refused(RequestError::Refused(Refusal::PoolFull { .. } | Refusal::Invalid(_))) => {
            false
        }
        other => panic!("{other:?}"),
    }
}

/// Runs one turn of the workload.
pub(crate) fn run_turn(
    driver: &mut Driver,
    workload: &mut Workload,
    turn: usize,
) -> Result<(), String> {
    let side_pool = || PoolName::parse("side").unwrap();
    let acquire = |pool, holder: &str| {
        let holder = Some(holder.into());
        Call::Acquire { pool, ttl_ms: None, holder, wait_ms: 0 }
    };
    let release = |lease, quarantine: bool| {
        let options = ReleaseOptions { rest_ms: Some(800), quarantine, reason: Some("429".into()) };
        Call::Release { pool: default_pool(), lease, options }
    };
    let import = |value: String, options| {
        let values = vec![Secret::new(&value).unwrap()];
        Call::Import { pool: side_pool(), values, options, labels: NewLabels::None }
    };
    // Of keys that are leased, and of others.
    let quarantine = |key| {
        let options = QuarantineOptions { when_free: true, reason: Some("rotation".into()) };
        Call::QuarantineKey { pool: default_pool(), key, options }
    };
    let usual = ImportOptions::default();
    let calls = match turn % 10 {
        0 => vec![Call::Generate { pool: default_pool(), count: 7, labels: NewLabels::None }],
        1 => vec![
            acquire(default_pool(), "a"),
            acquire(default_pool(), "b"),
            acquire(default_pool(), "c"),
        ],
        2 => vec![Call::PutPool {
            pool: side_pool(),
            patch: Box::new(PolicyPatch {
                lease_ttl_ms: Some(1_000),
                rest_ms: Some(900 + turn as u64),
                keepalive_ttl_ms: Some(Some(1_500)),
                ..PolicyPatch::default()
            }),
        }],
        3 => vec![
            import(format!("value {turn}"), usual),
            import("long ".repeat(50 + turn), usual),
            import(format!("kept {turn}"), ImportOptions { keepalive: false, ..usual }),
        ],
        4 => workload
            .leases
            .first()
            .map(|lease| {
                vec![
                    Call::Renew { pool: default_pool(), lease: *lease, ttl_ms: None },
                    release(workload.leases[1], false),
                    release(workload.leases[2], true),
                ]
            })
            .unwrap_or_default(),
        5 => vec![
            Call::ForceRelease { pool: default_pool(), key: workload.keys[0].clone() },
            Call::DeleteKey { pool: default_pool(), key: workload.keys[1].clone() },
            acquire(side_pool(), "d"),
        ],
        6 => {
            let mut calls = vec![acquire(default_pool(), ""), Call::GetPool { pool: side_pool() }];
            calls.extend(workload.keys.iter().rev().take(5).map(|key| quarantine(key.clone())));
            calls
        }
        7 => {
            let key = workload.keys.last().expect("turn 0 generates keys").clone();
            vec![acquire(default_pool(), ""), Call::EndQuarantine { pool: default_pool(), key }]
        }
        8 => vec![Call::KeepAliveAll { pool: default_pool() }, acquire(default_pool(), "e")],
        _ if turn > 15 => vec![Call::DeletePool { pool: side_pool() }],
        // The key with this value is purged.
        _ => vec![import("value 3".into(), ImportOptions { allow_retired: true, ..usual })],
    };
    let mut calls: Vec<SentCall> = calls.into_iter().map(SentCall::from).collect();
    if matches!(turn % 10, 0 | 1) {
        calls[0] = SentCall::with_key(&key_of(turn), BodyDigest(0), calls[0].call.clone());
    }
    driver.by = Principal::Token(Arc::new(caller(turn % 2)));
    let result = driver.turn_with_keys(calls);
    driver.by = Principal::Anyone;
    for reply in result.map_err(|error| error.to_string())? {
        match reply {
            Reply::Keys(keys) => workload.keys.extend(keys.iter().map(|key| KeyRef::Id(key.id))),
            Reply::Granted { lease, .. } => {
                assert!(lease.token > workload.greatest_token, "tokens only grow");
                workload.greatest_token = lease.token;
                workload.leases.insert(0, lease.id);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Describes everything that a client can see and a crash must not change: each key with its state,
/// its lease and its holder, and each pool with its policy.
pub(crate) fn visible_state(driver: &mut Driver) -> Vec<String> {
    let Reply::Pools(page) = driver.call(list_pools()) else { panic!("expected pools") };
    let pools = page.pools;
    let mut lines = Vec::new();
    let leased: u64 = pools.iter().map(|pool| pool.counts.leased).sum();
    let lease_counts =
        [0, 1].map(|index| driver.engine.pools().lease_count(caller(index).borrower()));
    assert_eq!(lease_counts.iter().sum::<u64>(), leased, "every lease counts for a caller");
    lines.push(format!("leases by caller {lease_counts:?}"));
    for pool in pools {
        lines.push(format!("{:?} {:?} {:?}", pool.name, pool.policy, pool.counts));
        let ids = driver.engine.pools().key_ids(&pool.name);
        for id in ids {
            let call = Call::GetKey { pool: pool.name.clone(), key: KeyRef::Id(id) };
            let Reply::Key(key) = driver.call(call) else { panic!("a listed key exists") };
            let lease = key.lease.map(|lease| (lease.id, lease.token, lease.holder));
            let leased = lease.is_some();
            assert_eq!(leased, key.state == KeyState::Leased);
            let (state, rest, reason) = (key.state, key.rests_until_ms, key.reason);
            let (created_at_ms, keepalive) = (key.created_at_ms, key.keepalive);
            let draining = key.draining;
            lines.push(format!(
                "  {id} {state:?} {created_at_ms} {keepalive} {lease:?} {rest:?} {reason:?} {draining}"
            ));
        }
    }
    lines.sort();
    lines
}

/// Describes the visible state and which Idempotency-Keys have an answer; runs the checkpointer.
pub(crate) fn visible_state_with_answers(driver: &mut Driver) -> Vec<String> {
    let mut lines = visible_state(driver);
    // New keys are refused while the checkpointer lags.
    driver.checkpoint().unwrap();
    for turn in (0..TURNS).filter(|turn| matches!(turn % 10, 0 | 1)) {
        lines.push(format!("turn {turn} has a stored answer: {}", has_stored_answer(driver, turn)));
    }
    lines
}

/// Returns the state that a clean start finds after `turns` turns; with `clock_advanced` the clock
/// has already moved for the next turn.
pub(crate) fn expected_state(turns: usize, clock_advanced: bool) -> Vec<String> {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = Driver::open(Arc::new(disk.clone()), &clock, 7).unwrap();
    let mut workload = Workload::default();
    for turn in 0..turns {
        advance_clock(&clock, turn);
        run_turn(&mut driver, &mut workload, turn).unwrap();
    }
    if clock_advanced {
        advance_clock(&clock, turns);
    }
    visible_state_with_answers(&mut Driver::open(Arc::new(disk), &clock, 8).unwrap())
}
