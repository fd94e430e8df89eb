//! The versions of keys: while the version of an answer is current and its time has not passed, the
//! engine would still give the same answer.
//!
//! The cores of the server keep answers by them. A change that raises no version would let a gateway
//! admit a holder whose lease has ended.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use keypeg_core::{
    KeyId, KeyRef, KeyState, KeyView, LeaseId, PolicyPatch, PoolName, QuarantineOptions,
    ReleaseOptions,
};
use keypeg_store::{Call, KeyVersion, Reply};
use std::collections::HashMap;
use std::sync::Arc;
use support::sim_disk::SimDisk;
use support::workload::{self, Workload};
use support::{Driver, ManualClock, default_pool};

/// What a core keeps of an answer.
struct Kept {
    view: KeyView,
    version: KeyVersion,
    until_ms: u64,
}

/// Answers that are kept, and how often one of them was checked and was out of date.
#[derive(Default)]
struct Answers {
    kept: HashMap<(PoolName, KeyId), Kept>,
    confirmed: usize,
    changed: usize,
    ended_by_time: usize,
}

/// What an answer shows of a leased key, without the time that is left.
fn shown(view: &KeyView) -> impl PartialEq + std::fmt::Debug {
    let lease = view.lease.clone().expect("a lease");
    let lease = (lease.id, lease.token, lease.holder, lease.granted_at_ms, lease.expires_at_ms);
    (view.id, view.state, view.label.clone(), lease)
}

/// Asks for a key; `None` if there is none.
fn ask(driver: &mut Driver, pool: &PoolName, id: KeyId) -> Option<KeyView> {
    let reply = driver.call(Call::GetKey { pool: pool.clone(), key: KeyRef::Id(id) });
    if let Reply::Key(view) = reply { Some(*view) } else { None }
}

impl Answers {
    /// Compares all answers that count with those of the engine, and keeps the new ones.
    fn check(&mut self, driver: &mut Driver) {
        let versions = driver.engine.key_versions();
        for (of, kept) in std::mem::take(&mut self.kept) {
            if !versions.is_current(kept.version) {
                self.changed += 1;
            } else if driver.clock.boot_ms() >= kept.until_ms {
                self.ended_by_time += 1;
            } else {
                let now = ask(driver, &of.0, of.1).expect("a key whose answer counts");
                assert_eq!(shown(&now), shown(&kept.view));
                self.confirmed += 1;
                self.kept.insert(of, kept);
            }
        }
        for pool in [default_pool(), side()] {
            for id in driver.engine.pools().key_ids(&pool) {
                let number = ask(driver, &pool, id).map(|view| view.number);
                let Some(number) = number else { continue };
                // As a core does: the version before the question.
                let version = versions.of(number);
                let Some(view) = ask(driver, &pool, id) else { continue };
                let Some(stands_for) = view.stands_for_ms() else { continue };
                assert_eq!(view.state, KeyState::Leased);
                let until_ms = driver.clock.boot_ms() + stands_for;
                self.kept.entry((pool.clone(), id)).or_insert(Kept { view, version, until_ms });
            }
        }
    }
}

fn side() -> PoolName {
    PoolName::parse("side").unwrap()
}

#[test]
fn each_change_of_a_leased_key_raises_its_version_and_no_other() {
    type Change = fn(PoolName, KeyRef, LeaseId) -> Call;
    let changes: [(&str, Change); 9] = [
        ("release", |pool, _, lease| Call::Release {
            pool,
            lease,
            options: ReleaseOptions::default(),
        }),
        ("rest", |pool, _, lease| {
            let options = ReleaseOptions { rest_ms: Some(500), ..ReleaseOptions::default() };
            Call::Release { pool, lease, options }
        }),
        ("renew", |pool, _, lease| Call::Renew { pool, lease, ttl_ms: None }),
        ("force-release", |pool, key, _| Call::ForceRelease { pool, key }),
        ("quarantine", |pool, key, _| Call::QuarantineKey {
            pool,
            key,
            options: QuarantineOptions::default(),
        }),
        ("drain", |pool, key, _| {
            let options = QuarantineOptions { when_free: true, reason: None };
            Call::QuarantineKey { pool, key, options }
        }),
        ("label", |pool, key, _| Call::SetLabel { pool, key, label: Some("team-a".into()) }),
        ("delete", |pool, key, _| Call::DeleteKey { pool, key }),
        ("undelivered", |pool, _, lease| Call::RevokeUndelivered { pool, lease }),
    ];
    let clock = ManualClock::new();
    let mut driver = Driver::open(Arc::new(SimDisk::new()), &clock, 1).unwrap();
    let max_hold_ms = Some(Some(60_000));
    let patch = PolicyPatch { lease_ttl_ms: Some(900), max_hold_ms, ..PolicyPatch::default() };
    driver.call(Call::PutPool { pool: default_pool(), patch: Box::new(patch) });
    driver.generate(40);
    let versions = driver.engine.key_versions();
    for (name, change) in changes {
        let (_, other, _) = driver.acquire("other").unwrap();
        let (lease, id, _) = driver.acquire("job").unwrap();
        let view = ask(&mut driver, &default_pool(), id).unwrap();
        let other = ask(&mut driver, &default_pool(), other).unwrap();
        let (version, of_other) = (versions.of(view.number), versions.of(other.number));
        clock.advance_ms(1);
        let reply = driver.call(change(default_pool(), KeyRef::Id(id), lease));
        assert!(!matches!(reply, Reply::Refused(_)), "{name}: {reply:?}");
        assert!(!versions.is_current(version), "{name}");
        // What does not change it: calls about other keys, a keep-alive, and keys that come.
        driver.call(Call::KeepAlive { pool: default_pool(), key: KeyRef::Id(other.id) });
        driver.generate(1);
        assert!(versions.is_current(of_other), "{name}");
    }
}

#[test]
fn an_answer_whose_version_is_current_and_whose_time_has_not_passed_still_holds() {
    let clock = ManualClock::new();
    let mut driver = Driver::open(Arc::new(SimDisk::new()), &clock, 1).unwrap();
    let (mut workload, mut answers) = (Workload::default(), Answers::default());
    for turn in 0..4 * workload::TURNS {
        workload::advance_clock(&clock, turn);
        answers.check(&mut driver);
        workload::run_turn(&mut driver, &mut workload, turn).unwrap();
        answers.check(&mut driver);
        // A policy changes when keys are purged; a deleted pool takes its keys with it.
        if turn % 17 == 16 {
            let keepalive_ttl_ms = Some((turn % 2 == 0).then_some(3_000));
            let patch = PolicyPatch { keepalive_ttl_ms, ..PolicyPatch::default() };
            driver.call(Call::PutPool { pool: default_pool(), patch: Box::new(patch) });
            answers.check(&mut driver);
        }
        if turn % 40 == 39 {
            driver.call(Call::DeletePool { pool: side() });
            answers.check(&mut driver);
        }
    }
    let Answers { confirmed, changed, ended_by_time, .. } = answers;
    println!("{confirmed} confirmed, {changed} changed, {ended_by_time} ended by time");
    assert!(confirmed > 100 && changed > 30 && ended_by_time > 3);
}
