//! A story of turns that makes every kind of fact, in the name of two callers in turns, and the
//! picture of what it leaves.

use super::sim_disk::SimDisk;
use super::{Driver, GivenClock, default_pool};
use keypeg_engine::core::{
    BodyDigest, KeyRef, KeyState, LeaseId, PolicyPatch, PoolName, Refusal, ReleaseOptions, Secret,
};
use keypeg_engine::{Call, Caller, Principal, Reply, RequestError};
use std::sync::Arc;

/// What the story remembers between its turns.
#[derive(Default)]
pub(crate) struct Story {
    keys: Vec<KeyRef>,
    leases: Vec<LeaseId>,
    pub(crate) greatest_token: u64,
}

pub(crate) const TURNS: usize = 30;

/// How the clock moves before a turn: in some, leases and rests end and keys are purged.
pub(crate) fn tick(clock: &GivenClock, turn: usize) {
    clock.tick_ms(if matches!(turn % 10, 6 | 7) { 1_600 } else { 700 });
}

fn caller(which: usize) -> Caller {
    Caller::new(["even", "odd"][which], None)
}

/// A call under this turn's Idempotency-Key.
fn once(turn: usize, call: Call) -> Call {
    Call::Idempotent {
        key: format!("turn {turn}").into(),
        body: BodyDigest(0),
        call: Box::new(call),
    }
}

/// Whether an Idempotency-Key of the story was answered: asked with another body, which changes
/// nothing where it was, nor, since it is too much, where it was not.
fn was_answered(driver: &mut Driver, turn: usize) -> bool {
    let count = u32::MAX;
    let call = Box::new(match turn % 10 {
        0 => Call::Generate { pool: default_pool(), count },
        _ => Call::Acquire { pool: default_pool(), ttl_ms: Some(0), holder: None, wait_ms: 0 },
    });
    let key = format!("turn {turn}").into();
    driver.by = Principal::Token(Arc::new(caller(turn % 2)));
    let reply = driver.call(Call::Idempotent { key, body: BodyDigest(1), call });
    driver.by = Principal::Anyone;
    match reply {
        Reply::Refused(RequestError::Refused(Refusal::IdempotencyMismatch)) => true,
        Reply::Refused(RequestError::Refused(Refusal::PoolFull { .. } | Refusal::Invalid(_))) => {
            false
        }
        other => panic!("{other:?}"),
    }
}

/// One turn of the story.
pub(crate) fn play(driver: &mut Driver, story: &mut Story, turn: usize) -> Result<(), String> {
    let side = || PoolName::parse("side").unwrap();
    let acquire = |pool, holder: &str| {
        let holder = Some(holder.into());
        Call::Acquire { pool, ttl_ms: None, holder, wait_ms: 0 }
    };
    let release = |lease, quarantine: bool| {
        let verdict = ReleaseOptions { rest_ms: Some(800), quarantine, reason: Some("429".into()) };
        Call::Release { pool: default_pool(), lease, verdict }
    };
    let calls = match turn % 10 {
        0 => vec![once(turn, Call::Generate { pool: default_pool(), count: 7 })],
        1 => vec![
            once(turn, acquire(default_pool(), "a")),
            acquire(default_pool(), "b"),
            acquire(default_pool(), "c"),
        ],
        2 => vec![Call::PutPool {
            pool: side(),
            patch: PolicyPatch {
                lease_ttl_ms: Some(1_000),
                rest_ms: Some(900 + turn as u64),
                keepalive_ttl_ms: Some(Some(1_500)),
                ..PolicyPatch::default()
            },
        }],
        3 => vec![Call::Import {
            pool: side(),
            values: vec![
                Secret::new(&format!("value {turn}")).unwrap(),
                Secret::new(&"long ".repeat(50 + turn)).unwrap(),
            ],
        }],
        4 => story
            .leases
            .first()
            .map(|lease| {
                vec![
                    Call::Renew { pool: default_pool(), lease: *lease, ttl_ms: None },
                    release(story.leases[1], false),
                    release(story.leases[2], true),
                ]
            })
            .unwrap_or_default(),
        5 => vec![
            Call::ForceRelease { pool: default_pool(), key: story.keys[0].clone() },
            Call::DeleteKey { pool: default_pool(), key: story.keys[1].clone() },
            acquire(side(), "d"),
        ],
        6 | 7 => vec![acquire(default_pool(), ""), Call::GetPool { pool: side() }],
        8 => vec![Call::KeepAliveAll { pool: default_pool() }, acquire(default_pool(), "e")],
        _ if turn > 15 => vec![Call::DeletePool { pool: side() }],
        _ => vec![Call::GetPool { pool: side() }],
    };
    driver.by = Principal::Token(Arc::new(caller(turn % 2)));
    let played = driver.turn(calls);
    driver.by = Principal::Anyone;
    for reply in played.map_err(|error| error.to_string())? {
        match reply {
            Reply::Keys(keys) => story.keys.extend(keys.iter().map(|key| KeyRef::Id(key.id))),
            Reply::Granted { lease, .. } => {
                assert!(lease.token > story.greatest_token, "tokens only grow");
                story.greatest_token = lease.token;
                story.leases.insert(0, lease.id);
            }
            _ => {}
        }
    }
    Ok(())
}

/// All that a client can see and a crash must not change: each key with its state, its lease and
/// its holder, and each pool with its policy.
pub(crate) fn picture(driver: &mut Driver) -> Vec<String> {
    let Reply::Pools(pools) = driver.call(Call::ListPools) else { panic!("pools") };
    let mut lines = Vec::new();
    let leased: u64 = pools.iter().map(|pool| pool.counts.leased).sum();
    let borrowed = [0, 1].map(|which| driver.works.pools().lease_count(caller(which).borrower()));
    assert_eq!(borrowed.iter().sum::<u64>(), leased, "every lease is somebody's");
    lines.push(format!("borrowed {borrowed:?}"));
    for pool in pools {
        lines.push(format!("{:?} {:?} {:?}", pool.name, pool.policy, pool.counts));
        let page = driver.works.pools().key_ids(&pool.name);
        for id in page {
            let call = Call::GetKey { pool: pool.name.clone(), key: KeyRef::Id(id) };
            let Reply::Key(key) = driver.call(call) else { panic!("a key that is there") };
            let lease = key.lease.map(|lease| (lease.id, lease.token, lease.holder));
            let leased = lease.is_some();
            assert_eq!(leased, key.state == KeyState::Leased);
            let (state, rest, why) = (key.state, key.rests_until_ms, key.reason);
            let made = key.created_at_ms;
            lines.push(format!("  {id} {state:?} {made} {lease:?} {rest:?} {why:?}"));
        }
    }
    lines.sort();
    lines
}

/// The picture with what Idempotency-Keys were answered; carries what is to be carried.
pub(crate) fn picture_with_answers(driver: &mut Driver) -> Vec<String> {
    let mut lines = picture(driver);
    // What makes keys waits for a carrier that lags.
    driver.carry().unwrap();
    for turn in (0..TURNS).filter(|turn| matches!(turn % 10, 0 | 1)) {
        lines.push(format!("turn {turn} answered: {}", was_answered(driver, turn)));
    }
    lines
}

/// The picture a clean start finds after `turns` turns, when the clock has moved for the next one
/// already if `ticked`.
pub(crate) fn expected(turns: usize, ticked: bool) -> Vec<String> {
    let (disk, clock) = (SimDisk::new(), GivenClock::new());
    let mut driver = Driver::open(Arc::new(disk.clone()), &clock, 7).unwrap();
    let mut story = Story::default();
    for turn in 0..turns {
        tick(&clock, turn);
        play(&mut driver, &mut story, turn).unwrap();
    }
    if ticked {
        tick(&clock, turns);
    }
    picture_with_answers(&mut Driver::open(Arc::new(disk), &clock, 8).unwrap())
}
