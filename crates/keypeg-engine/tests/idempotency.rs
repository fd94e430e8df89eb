//! Idempotency-Keys on a disk: a stored answer is the same after a start, whether its facts are in
//! the journal, in the database or in snapshot records.

#![expect(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test may panic")]

mod support;

use keypeg_core::{
    BodyDigest, EndCause, ImportOptions, KeyRef, LeaseId, NewLabels, PoolName, Refusal,
    ReleaseOptions, Secret,
};
use keypeg_engine::disk::Disk;
use keypeg_store::{Call, Reply, RequestError};
use std::sync::Arc;
use support::sim_disk::{CrashAt, SimDisk};
use support::{Driver, ManualClock, SeededRandom, SentCall, default_pool};

fn open(disk: &SimDisk, clock: &ManualClock) -> Driver {
    Driver::open(Arc::new(disk.clone()), clock, 1).unwrap()
}

fn with_key(key: &str, call: Call) -> SentCall {
    SentCall::with_key(key, BodyDigest(1), call)
}

fn generate(key: &str, count: u32) -> SentCall {
    with_key(key, Call::Generate { pool: default_pool(), count, labels: NewLabels::None })
}

fn acquire(key: &str) -> SentCall {
    let holder = Some("job-7".into());
    with_key(key, Call::Acquire { pool: default_pool(), ttl_ms: Some(50_000), holder, wait_ms: 0 })
}

/// Returns every part of an answer that must be the same when it is returned again.
fn answer_text(reply: Reply) -> String {
    match reply {
        Reply::Keys(keys) => {
            let each = keys.iter().map(|key| {
                let value = key.value.reveal();
                format!("{} {value} {} {:?}", key.id, key.created_at_ms, key.expires_at_ms)
            });
            each.collect::<Vec<_>>().join("\n")
        }
        Reply::Granted { lease, value, .. } => format!(
            "{} {} {} {:?} {} {} {:?} {}",
            lease.id,
            lease.key_id,
            lease.token,
            lease.holder,
            lease.granted_at_ms,
            lease.expires_at_ms,
            lease.key_expires_at_ms,
            value.reveal(),
        ),
        other => panic!("{other:?}"),
    }
}

/// Leases in another pool until the journal's first segment is deleted.
fn replace_segments(driver: &mut Driver, disk: &SimDisk) {
    let side_pool = || PoolName::parse("side").unwrap();
    driver.call(Call::PutPool { pool: side_pool(), patch: Box::default() });
    driver.call(Call::Generate { pool: side_pool(), count: 1, labels: NewLabels::None });
    for _ in 0..300 {
        let call = Call::Acquire { pool: side_pool(), ttl_ms: None, holder: None, wait_ms: 0 };
        let Reply::Granted { lease, .. } = driver.call(call) else { panic!("a key is available") };
        let options = ReleaseOptions::default();
        driver.call(Call::Release { pool: side_pool(), lease: lease.id, options });
        driver.checkpoint().unwrap();
    }
    let names = disk.list().unwrap();
    assert!(!names.iter().any(|name| name == "journal-000000000001"), "{names:?}");
}

#[test]
fn an_answer_is_the_same_after_a_start_wherever_its_facts_are_stored() {
    for place in ["journal", "database", "snapshot"] {
        let (disk, clock) = (SimDisk::new(), ManualClock::new());
        let mut driver = open(&disk, &clock);
        let keys = answer_text(driver.call(generate("keys", 3)));
        let values = vec![Secret::new("one").unwrap(), Secret::new("two").unwrap()];
        let import = || {
            with_key(
                "values",
                Call::Import {
                    pool: default_pool(),
                    values: values.clone(),
                    options: ImportOptions::default(),
                    labels: NewLabels::None,
                },
            )
        };
        let imported = answer_text(driver.call(import()));
        let lease = answer_text(driver.call(acquire("lease")));
        let Reply::Granted { lease: ended, .. } = driver.call(acquire("ended")) else {
            panic!("a key is available")
        };
        let (id, options) = (ended.id, ReleaseOptions::default());
        driver.call(Call::Release { pool: default_pool(), lease: id, options });
        match place {
            "database" => driver.checkpoint().unwrap(),
            "snapshot" => replace_segments(&mut driver, &disk),
            _ => {}
        }
        for start in 0..3 {
            clock.advance_ms(7_000);
            if start > 0 {
                driver = open(&disk, &clock);
            }
            assert_eq!(
                answer_text(driver.call(generate("keys", 3))),
                keys,
                "{place}, start {start}"
            );
            assert_eq!(answer_text(driver.call(import())), imported, "{place}, start {start}");
            assert_eq!(answer_text(driver.call(acquire("lease"))), lease, "{place}, start {start}");
            let reply = driver.call(acquire("ended"));
            let ended =
                matches!(reply, Reply::Refused(RequestError::Refused(Refusal::LeaseEnded { .. })));
            assert!(ended, "{place}, start {start}: {reply:?}");
        }
    }
}

#[test]
fn an_answer_about_deleted_keys_is_refused_as_such_after_a_start() {
    for with_checkpoint in [false, true] {
        let (disk, clock) = (SimDisk::new(), ManualClock::new());
        let mut driver = open(&disk, &clock);
        let Reply::Keys(keys) = driver.call(generate("keys", 3)) else { panic!("expected keys") };
        driver.call(Call::DeleteKey { pool: default_pool(), key: KeyRef::Id(keys[1].id) });
        if with_checkpoint {
            driver.checkpoint().unwrap();
        }
        for _ in 0..2 {
            let reply = driver.call(generate("keys", 3));
            let keys_gone =
                matches!(reply, Reply::Refused(RequestError::Refused(Refusal::KeysGone)));
            assert!(keys_gone, "{reply:?}");
            driver = open(&disk, &clock);
        }
    }
}

#[test]
fn an_answer_is_stored_only_if_its_batch_is_durable() {
    let mut kept = [0; 2];
    for seed in 0..40 {
        let (disk, clock) = (SimDisk::new(), ManualClock::new());
        let mut driver = open(&disk, &clock);
        driver.call(generate("first", 1));
        disk.crash_at(Some(CrashAt { operation: 1, after: seed % 2 == 1 }));
        assert!(driver.turn_with_keys(vec![generate("keys", 3), acquire("lease")]).is_err());
        drop(driver);
        let mut driver = open(&disk.after_crash(&mut SeededRandom(seed)), &clock);
        // Either the whole batch was lost or all of it survived: an answer is stored in one batch
        // with its keys.
        let survived = driver.recovery.keys == 4;
        assert!(survived || driver.recovery.keys == 1);
        assert_eq!(driver.recovery.leases, u64::from(survived));
        kept[usize::from(survived)] += 1;
        let Reply::Keys(keys) = driver.call(generate("keys", 3)) else { panic!("expected keys") };
        assert_eq!(keys.len(), 3);
        assert_eq!(
            driver.engine.pools().key_count(),
            4,
            "created once, whatever survived the crash"
        );
        driver.call(acquire("lease"));
        let leased = driver.engine.pools().get(&default_pool()).unwrap().counts().leased;
        assert_eq!(leased, 1, "granted once, whatever survived the crash");
    }
    assert!(kept.iter().all(|times| *times > 3), "both cases occurred: {kept:?}");
}

#[test]
fn a_revoked_grant_is_granted_again_after_a_start() {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = open(&disk, &clock);
    driver.generate(1);
    let mut last = None::<LeaseId>;
    for _ in 0..3 {
        let Reply::Granted { lease, redelivered, .. } = driver.call(acquire("k")) else {
            panic!("a key is available")
        };
        assert!(!redelivered && last != Some(lease.id));
        last = Some(lease.id);
        driver.call(Call::RevokeUndelivered { pool: default_pool(), lease: lease.id });
        driver = open(&disk, &clock);
    }
    // A redelivered grant belongs to the client that received it.
    let Reply::Granted { lease, .. } = driver.call(acquire("k")) else {
        panic!("a key is available")
    };
    let Reply::Granted { redelivered: true, .. } = driver.call(acquire("k")) else {
        panic!("the same grant again")
    };
    driver.call(Call::RevokeUndelivered { pool: default_pool(), lease: lease.id });
    let (id, options) = (lease.id, ReleaseOptions::default());
    let release = Call::Release { pool: default_pool(), lease: id, options };
    assert!(matches!(driver.call(release), Reply::Released { .. }));
    let reply = driver.call(acquire("k"));
    let cause = Refusal::LeaseEnded { cause: Some(EndCause::Released) };
    assert!(matches!(&reply, Reply::Refused(RequestError::Refused(refusal)) if *refusal == cause));
}
