//! Counts and states that a subscriber derives from feed events alone equal those of the pool after
//! every turn, for many seeds.

#![expect(clippy::wildcard_enum_match_arm, reason = "most replies do not matter here")]

mod support;

use keypeg_core::{
    ImportOptions, KeyCounts, KeyId, KeyRef, KeyState, LeaseId, NewLabels, PolicyPatch,
    QuarantineOptions, ReleaseOptions, Secret,
};
use keypeg_store::{Call, Reply};
use keypeg_store::{FeedBatch, FeedEventKind, Subscriber};
use std::collections::{HashMap, HashSet};
use std::task::{Context, Poll, Waker};
use support::{Driver, ManualClock, SeededRandom, default_pool, engine_config};

/// Returns the next batch; `None` if there is none now.
type Reader = Box<dyn Subscriber>;

fn next(subscriber: &mut Reader) -> Option<FeedBatch> {
    match subscriber.poll_next(&mut Context::from_waker(Waker::noop()), 7) {
        Poll::Ready(batch) => batch,
        Poll::Pending => None,
    }
}

/// A subscriber like a dashboard: it starts with the counts and updates them from events alone.
#[derive(Default)]
struct Replica {
    counts: KeyCounts,
    states: HashMap<KeyId, KeyState>,
    draining: HashSet<KeyId>,
}

impl Replica {
    fn count_of(&mut self, state: KeyState) -> &mut u64 {
        match state {
            KeyState::Available => &mut self.counts.available,
            KeyState::Leased => &mut self.counts.leased,
            KeyState::Resting => &mut self.counts.resting,
            KeyState::Quarantined => &mut self.counts.quarantined,
        }
    }

    fn moved(&mut self, key: KeyId, from: KeyState, to: Option<KeyState>) {
        let known = self.states.remove(&key);
        assert_eq!(known, Some(from), "the event names another former state of {key}");
        *self.count_of(from) -= 1;
        self.draining.remove(&key);
        self.counts.draining = self.draining.len() as u64;
        if let Some(state) = to {
            *self.count_of(state) += 1;
            self.states.insert(key, state);
        }
    }

    fn apply(&mut self, what: &FeedEventKind) {
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
            FeedEventKind::Quarantined { key, was, token, .. } => {
                assert_eq!(token.is_some(), *was == Leased, "the lease that this ended");
                self.moved(*key, *was, Some(Quarantined));
            }
            FeedEventKind::Draining { key, .. } => {
                assert_eq!(self.states[key], Leased);
                self.draining.insert(*key);
                self.counts.draining = self.draining.len() as u64;
            }
            FeedEventKind::DrainCancelled { key, .. } => {
                assert!(self.draining.remove(key), "{key} was draining");
                self.counts.draining = self.draining.len() as u64;
            }
            FeedEventKind::KeyFreed { key, was } => self.moved(*key, *was, Some(Available)),
            FeedEventKind::KeyRemoved { key, was, .. } => self.moved(*key, *was, None),
            FeedEventKind::Renewed { key, .. } => assert_eq!(self.states[key], Leased),
            FeedEventKind::Labelled { key, .. } => assert!(self.states.contains_key(key)),
            FeedEventKind::PolicyChanged(_) => {}
            FeedEventKind::PoolDeleted => panic!("the default pool cannot be deleted"),
        }
    }
}

#[test]
fn counts_derived_from_events_alone_match_the_pool_after_every_turn() {
    for seed in 0..40 {
        let opened = Driver::open_with(None, &ManualClock::new(), seed, &engine_config());
        let mut driver = opened.expect("opens");
        let (mut random, mut replica) = (SeededRandom(seed), Replica::default());
        let patch = PolicyPatch {
            keepalive_ttl_ms: Some(Some(30_000)),
            lease_ttl_ms: Some(4_000),
            rest_ms: Some([0, 1_500][usize::from(seed % 2 == 0)]),
            ..PolicyPatch::default()
        };
        driver.call(Call::PutPool { pool: default_pool(), patch: Box::new(patch) });
        let Reply::Subscription(subscription) =
            driver.call(Call::Subscribe { pool: default_pool() })
        else {
            panic!("expected a subscription")
        };
        let mut subscriber = subscription.subscribe(None).expect("below the limit");
        assert!(matches!(next(&mut subscriber), Some(FeedBatch::Resync { .. })));
        let (mut keys, mut leases) = (Vec::new(), Vec::new());
        for turn in 0..300 {
            driver.clock.advance_ms(random.below(900));
            let calls = (0..random.below(4)).map(|_| call(&mut random, &keys, &leases)).collect();
            for reply in driver.turn(calls).expect("an engine in memory does not fail") {
                match reply {
                    Reply::Keys(new) => keys.extend(new.into_iter().map(|key| key.id)),
                    Reply::Granted { lease, .. } => leases.push(lease.id),
                    _ => {}
                }
            }
            while let Some(FeedBatch::Events(events)) = next(&mut subscriber) {
                for event in events {
                    replica.apply(&event.kind);
                }
            }
            let counts = driver.engine.pools().get(&default_pool()).expect("it exists").counts();
            assert_eq!(replica.counts, counts, "seed {seed}, turn {turn}");
        }
        let pool = default_pool();
        let ids = driver.engine.pools().key_ids(&pool);
        assert!(ids.iter().all(|key| replica.states.contains_key(key)), "seed {seed}");
        assert_eq!(ids.len(), replica.states.len(), "seed {seed}");
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
    match random.below(14) {
        0 => Call::Generate {
            pool,
            count: 1 + u32::try_from(random.below(3)).expect("small"),
            labels: NewLabels::None,
        },
        1 => {
            let value = format!("imported-{}", random.below(30));
            let value = Secret::new(&value).expect("in range");
            Call::Import {
                pool,
                values: vec![value],
                options: ImportOptions::default(),
                labels: NewLabels::None,
            }
        }
        2..=5 => Call::Acquire { pool, ttl_ms: None, holder: None, wait_ms: 0 },
        6 | 7 => {
            let rest_ms = [None, Some(0), Some(2_000)][pick(random, 3)];
            let options =
                ReleaseOptions { rest_ms, quarantine: random.below(3) == 0, reason: None };
            Call::Release { pool, lease, options }
        }
        8 => Call::Renew { pool, lease, ttl_ms: None },
        9 => Call::ForceRelease { pool, key: KeyRef::Id(key) },
        10 => Call::DeleteKey { pool, key: KeyRef::Id(key) },
        11 => {
            let reason = [None, Some("401".into())][pick(random, 2)].clone();
            let options = QuarantineOptions { when_free: random.below(4) > 0, reason };
            Call::QuarantineKey { pool, key: KeyRef::Id(key), options }
        }
        12 => Call::EndQuarantine { pool, key: KeyRef::Id(key) },
        _ => Call::KeepAlive { pool, key: KeyRef::Id(key) },
    }
}
