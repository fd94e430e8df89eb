//! Idempotency-Keys over a disk: what was answered once is answered the same after a start, wherever
//! its facts have gone meanwhile: carried, told anew, their segments dropped.

#![expect(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test may panic")]

mod support;

use keypeg_engine::core::{
    BodyDigest, EndCause, KeyRef, LeaseId, PolicyPatch, PoolName, Refusal, ReleaseOptions, Secret,
};
use keypeg_engine::disk::Disk;
use keypeg_engine::{Call, Reply, RequestError};
use std::sync::Arc;
use support::sim_disk::{CrashAt, SimDisk};
use support::{Driver, GivenClock, SeededRandom, default_pool};

fn open(disk: &SimDisk, clock: &GivenClock) -> Driver {
    Driver::open(Arc::new(disk.clone()), clock, 1).unwrap()
}

fn once(key: &str, call: Call) -> Call {
    Call::Idempotent { key: key.into(), body: BodyDigest(1), call: Box::new(call) }
}

fn generate(key: &str, count: u32) -> Call {
    once(key, Call::Generate { pool: default_pool(), count })
}

fn acquire(key: &str) -> Call {
    let holder = Some("job-7".into());
    once(key, Call::Acquire { pool: default_pool(), ttl_ms: Some(50_000), holder, wait_ms: 0 })
}

/// An answer in every part that is told again as it was.
fn told(reply: Reply) -> String {
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

/// Leases in another pool until the journal's first segment is gone.
fn turn_over(driver: &mut Driver, disk: &SimDisk) {
    let side = || PoolName::parse("side").unwrap();
    driver.call(Call::PutPool { pool: side(), patch: PolicyPatch::default() });
    driver.call(Call::Generate { pool: side(), count: 1 });
    for _ in 0..300 {
        let call = Call::Acquire { pool: side(), ttl_ms: None, holder: None, wait_ms: 0 };
        let Reply::Granted { lease, .. } = driver.call(call) else { panic!("free") };
        let verdict = ReleaseOptions::default();
        driver.call(Call::Release { pool: side(), lease: lease.id, verdict });
        driver.carry().unwrap();
    }
    let names = disk.list().unwrap();
    assert!(!names.iter().any(|name| name == "journal-000000000001"), "{names:?}");
}

#[test]
fn an_answer_is_the_same_after_a_start_wherever_its_facts_have_gone() {
    for gone in ["nowhere", "carried", "dropped"] {
        let (disk, clock) = (SimDisk::new(), GivenClock::new());
        let mut driver = open(&disk, &clock);
        let keys = told(driver.call(generate("keys", 3)));
        let values = vec![Secret::new("one").unwrap(), Secret::new("two").unwrap()];
        let import =
            || once("values", Call::Import { pool: default_pool(), values: values.clone() });
        let imported = told(driver.call(import()));
        let lease = told(driver.call(acquire("lease")));
        let Reply::Granted { lease: ended, .. } = driver.call(acquire("ended")) else {
            panic!("a key is free")
        };
        let (id, verdict) = (ended.id, ReleaseOptions::default());
        driver.call(Call::Release { pool: default_pool(), lease: id, verdict });
        match gone {
            "carried" => driver.carry().unwrap(),
            "dropped" => turn_over(&mut driver, &disk),
            _ => {}
        }
        for start in 0..3 {
            clock.tick_ms(7_000);
            if start > 0 {
                driver = open(&disk, &clock);
            }
            assert_eq!(told(driver.call(generate("keys", 3))), keys, "{gone}, start {start}");
            assert_eq!(told(driver.call(import())), imported, "{gone}, start {start}");
            assert_eq!(told(driver.call(acquire("lease"))), lease, "{gone}, start {start}");
            let over = driver.call(acquire("ended"));
            let ended =
                matches!(over, Reply::Refused(RequestError::Refused(Refusal::LeaseEnded { .. })));
            assert!(ended, "{gone}, start {start}: {over:?}");
        }
    }
}

#[test]
fn what_a_key_tells_of_that_is_gone_is_told_so_after_a_start() {
    for carried in [false, true] {
        let (disk, clock) = (SimDisk::new(), GivenClock::new());
        let mut driver = open(&disk, &clock);
        let Reply::Keys(keys) = driver.call(generate("keys", 3)) else { panic!("made") };
        driver.call(Call::DeleteKey { pool: default_pool(), key: KeyRef::Id(keys[1].id) });
        if carried {
            driver.carry().unwrap();
        }
        for _ in 0..2 {
            let reply = driver.call(generate("keys", 3));
            let gone = matches!(reply, Reply::Refused(RequestError::Refused(Refusal::KeysGone)));
            assert!(gone, "{reply:?}");
            driver = open(&disk, &clock);
        }
    }
}

#[test]
fn what_was_not_durable_was_not_answered() {
    let mut kept = [0; 2];
    for seed in 0..40 {
        let (disk, clock) = (SimDisk::new(), GivenClock::new());
        let mut driver = open(&disk, &clock);
        driver.call(generate("first", 1));
        disk.crash_at(Some(CrashAt { operation: 1, after: seed % 2 == 1 }));
        assert!(driver.turn(vec![generate("keys", 3), acquire("lease")]).is_err());
        drop(driver);
        let mut driver = open(&disk.after_crash(&mut SeededRandom(seed)), &clock);
        // Either the whole batch was lost or all of it was kept: an answer is one with its keys.
        let there = driver.recovered.keys == 4;
        assert!(there || driver.recovered.keys == 1);
        assert_eq!(driver.recovered.leases, u64::from(there));
        kept[usize::from(there)] += 1;
        let Reply::Keys(keys) = driver.call(generate("keys", 3)) else { panic!("answered") };
        assert_eq!(keys.len(), 3);
        assert_eq!(driver.works.pools().key_count(), 4, "made once, whatever the crash kept");
        driver.call(acquire("lease"));
        let leased = driver.works.pools().get(&default_pool()).unwrap().counts().leased;
        assert_eq!(leased, 1, "lent once, whatever the crash kept");
    }
    assert!(kept.iter().all(|times| *times > 3), "both were seen: {kept:?}");
}

#[test]
fn a_grant_taken_back_is_asked_for_anew_after_a_start() {
    let (disk, clock) = (SimDisk::new(), GivenClock::new());
    let mut driver = open(&disk, &clock);
    driver.generate(1);
    let mut last = None::<LeaseId>;
    for _ in 0..3 {
        let Reply::Granted { lease, redelivered, .. } = driver.call(acquire("k")) else {
            panic!("free")
        };
        assert!(!redelivered && last != Some(lease.id));
        last = Some(lease.id);
        driver.call(Call::RevokeUndelivered { pool: default_pool(), lease: lease.id });
        driver = open(&disk, &clock);
    }
    // One that was told again is somebody's.
    let Reply::Granted { lease, .. } = driver.call(acquire("k")) else { panic!("free") };
    let Reply::Granted { redelivered: true, .. } = driver.call(acquire("k")) else {
        panic!("again")
    };
    driver.call(Call::RevokeUndelivered { pool: default_pool(), lease: lease.id });
    let (id, verdict) = (lease.id, ReleaseOptions::default());
    let release = Call::Release { pool: default_pool(), lease: id, verdict };
    assert!(matches!(driver.call(release), Reply::Done));
    let reply = driver.call(acquire("k"));
    let cause = Refusal::LeaseEnded { cause: Some(EndCause::Released) };
    assert!(matches!(&reply, Reply::Refused(RequestError::Refused(denied)) if *denied == cause));
}
