//! KeyCounts and states kept by events alone are those of the pool, after every turn, under seeds.

#![expect(clippy::wildcard_enum_match_arm, reason = "of most replies nothing is needed")]

mod support;

use keypeg_engine::core::{
    KeyCounts, KeyId, KeyRef, KeyState, LeaseId, PolicyPatch, ReleaseOptions, Secret,
};
use keypeg_engine::feed::{FeedBatch, FeedEventKind, Subscriber};
use keypeg_engine::{Call, Reply};
use std::collections::HashMap;
use std::task::{Context, Poll, Waker};
use support::{Driver, GivenClock, SeededRandom, default_pool, setup};

/// What is there to read; `None` where nothing is.
fn next(follower: &mut Subscriber) -> Option<FeedBatch> {
    match follower.poll_next(&mut Context::from_waker(Waker::noop()), 7) {
        Poll::Ready(slice) => slice,
        Poll::Pending => None,
    }
}

/// What a dashboard does: it begins with the counts and keeps them by events alone.
#[derive(Default)]
struct Mirror {
    counts: KeyCounts,
    states: HashMap<KeyId, KeyState>,
}

impl Mirror {
    fn place(&mut self, state: KeyState) -> &mut u64 {
        match state {
            KeyState::Available => &mut self.counts.available,
            KeyState::Leased => &mut self.counts.leased,
            KeyState::Resting => &mut self.counts.resting,
            KeyState::Quarantined => &mut self.counts.quarantined,
        }
    }

    fn moved(&mut self, key: KeyId, was: KeyState, state: Option<KeyState>) {
        let known = self.states.remove(&key);
        assert_eq!(known, Some(was), "{key} was told to be elsewhere");
        *self.place(was) -= 1;
        if let Some(state) = state {
            *self.place(state) += 1;
            self.states.insert(key, state);
        }
    }

    fn take(&mut self, what: &FeedEventKind) {
        use KeyState::{Available, Leased, Quarantined, Resting};
        match what {
            FeedEventKind::KeysCreated { keys, .. } => {
                for key in keys.iter() {
                    assert_eq!(self.states.insert(*key, Available), None);
                    self.counts.available += 1;
                }
            }
            FeedEventKind::Granted { key, .. } => self.moved(*key, Available, Some(Leased)),
            FeedEventKind::LeaseEnded { key, rests_until_ms, .. } => {
                let state = if rests_until_ms.is_some() { Resting } else { Available };
                self.moved(*key, Leased, Some(state));
            }
            FeedEventKind::Quarantined { key, .. } => self.moved(*key, Leased, Some(Quarantined)),
            FeedEventKind::KeyFreed { key, was } => self.moved(*key, *was, Some(Available)),
            FeedEventKind::KeyRemoved { key, was, .. } => self.moved(*key, *was, None),
            FeedEventKind::Renewed { key, .. } => assert_eq!(self.states[key], Leased),
            FeedEventKind::PolicyChanged(_) => {}
            FeedEventKind::PoolDeleted => panic!("the default pool stays"),
        }
    }
}

#[test]
fn a_mirror_kept_by_events_is_right_after_every_turn() {
    for seed in 0..40 {
        let opened = Driver::open_with(None, &GivenClock::new(), seed, &setup());
        let mut driver = opened.expect("opens");
        let (mut random, mut mirror) = (SeededRandom(seed), Mirror::default());
        let patch = PolicyPatch {
            keepalive_ttl_ms: Some(Some(30_000)),
            lease_ttl_ms: Some(4_000),
            rest_ms: Some([0, 1_500][usize::from(seed % 2 == 0)]),
            ..PolicyPatch::default()
        };
        driver.call(Call::PutPool { pool: default_pool(), patch });
        let Reply::Subscription(following) = driver.call(Call::Subscribe { pool: default_pool() })
        else {
            panic!("it can be followed")
        };
        let mut follower = following.subscribe(None).expect("room for one");
        assert!(matches!(next(&mut follower), Some(FeedBatch::Resync { .. })));
        let (mut keys, mut leases) = (Vec::new(), Vec::new());
        for turn in 0..300 {
            driver.clock.tick_ms(random.below(900));
            let calls = (0..random.below(4)).map(|_| call(&mut random, &keys, &leases)).collect();
            for reply in driver.turn(calls).expect("memory") {
                match reply {
                    Reply::Keys(made) => keys.extend(made.into_iter().map(|key| key.id)),
                    Reply::Granted { lease, .. } => leases.push(lease.id),
                    _ => {}
                }
            }
            while let Some(FeedBatch::Events(events)) = next(&mut follower) {
                for told in events {
                    mirror.take(&told.kind);
                }
            }
            let counts = driver.works.pools().get(&default_pool()).expect("there").counts();
            assert_eq!(mirror.counts, counts, "seed {seed}, turn {turn}");
        }
        let pool = default_pool();
        let there = driver.works.pools().key_ids(&pool);
        assert!(there.iter().all(|key| mirror.states.contains_key(key)), "seed {seed}");
        assert_eq!(there.len(), mirror.states.len(), "seed {seed}");
    }
}

fn call(random: &mut SeededRandom, keys: &[KeyId], leases: &[LeaseId]) -> Call {
    let pool = default_pool();
    let pick = |random: &mut SeededRandom, len: usize| {
        usize::try_from(random.below(len.max(1) as u64)).expect("small")
    };
    let key = keys.get(pick(random, keys.len())).copied().unwrap_or(KeyId(0));
    let lease = leases.get(leases.len().saturating_sub(1 + pick(random, 6))).copied();
    let lease = lease.unwrap_or(LeaseId(0));
    match random.below(12) {
        0 => Call::Generate { pool, count: 1 + u32::try_from(random.below(3)).expect("small") },
        1 => {
            let value = format!("brought-{}", random.below(30));
            let value = Secret::new(&value).expect("in range");
            Call::Import { pool, values: vec![value] }
        }
        2..=5 => Call::Acquire { pool, ttl_ms: None, holder: None, wait_ms: 0 },
        6 | 7 => {
            let rest_ms = [None, Some(0), Some(2_000)][pick(random, 3)];
            let verdict =
                ReleaseOptions { rest_ms, quarantine: random.below(3) == 0, reason: None };
            Call::Release { pool, lease, verdict }
        }
        8 => Call::Renew { pool, lease, ttl_ms: None },
        9 => Call::ForceRelease { pool, key: KeyRef::Id(key) },
        10 => Call::DeleteKey { pool, key: KeyRef::Id(key) },
        _ => Call::KeepAlive { pool, key: KeyRef::Id(key) },
    }
}
