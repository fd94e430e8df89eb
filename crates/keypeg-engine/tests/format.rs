//! A data directory of each format that this version must read, kept as files: it opens, and holds
//! the same data. `fixtures/format-1` was written by the first version and never changes;
//! `format-1-answers` has stored answers with their borrowers, `format-2-sealed` is sealed; since
//! format 3 ids are computed with AES; `format-3-drains` has labels, and keys and a pool that drain.
//! A new format gets its own fixture by `KEYPEG_MAKE_FIXTURE=format-N cargo test --test format`.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use keypeg_core::{
    BodyDigest, ImportOptions, KeyRef, KeyState, NewLabels, Policy, PolicyPatch, PoolName,
    QuarantineOptions, Refusal, ReleaseOptions, Secret,
};
use keypeg_engine::disk::Directory;
use keypeg_engine::{EngineConfig, SealKey, SealKeys, SealOptions};
use keypeg_store::{Call, Caller, Principal, Reply, RequestError};
use keypeg_testkit::TempDir;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::{Driver, ManualClock, SentCall, default_pool, engine_config, list_pools};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn open(path: &Path, clock: &ManualClock) -> Result<Driver, String> {
    let is_sealed =
        std::fs::read_to_string(path.join("meta")).is_ok_and(|meta| meta.contains("seal "));
    open_with(path, clock, is_sealed)
}

fn open_with(path: &Path, clock: &ManualClock, is_sealed: bool) -> Result<Driver, String> {
    let disk = Directory::open(path).map_err(|error| error.to_string())?;
    let keys = SealKeys::new(vec![SealKey::new([7; 32])]).unwrap();
    let seal = is_sealed.then_some(SealOptions { keys, seals_existing: false });
    let config = EngineConfig { seal, ..engine_config() };
    Driver::open_with(Some(Arc::new(disk)), clock, 3, &config)
}

/// Writes every kind of fact, so that the fixture holds one of each.
fn write_every_fact(driver: &mut Driver, clock: &ManualClock) {
    let side_pool = || PoolName::parse("side").unwrap();
    let ids = driver.generate(5);
    let (first, ..) = driver.acquire("job-1").unwrap();
    let (second, ..) = driver.acquire("").unwrap();
    clock.advance_ms(1_000);
    driver.call(Call::Renew { pool: default_pool(), lease: first, ttl_ms: None });
    let patch = PolicyPatch {
        max_hold_ms: Some(Some(600_000)),
        rest_ms: Some(5_000),
        key_prefix: Some("side_".into()),
        max_keys: Some(Some(100)),
        ..PolicyPatch::default()
    };
    for name in ["side", "gone"] {
        let pool = PoolName::parse(name).unwrap();
        driver.call(Call::PutPool { pool, patch: Box::new(patch.clone()) });
    }
    driver.call(Call::DeletePool { pool: PoolName::parse("gone").unwrap() });
    let patch = PolicyPatch { keepalive_ttl_ms: Some(None), ..PolicyPatch::default() };
    driver.call(Call::PutPool { pool: side_pool(), patch: Box::new(patch) });
    let values = ["imported", "imported too", "retired"].map(|v| Secret::new(v).unwrap());
    let retired = KeyRef::Value(values[2].clone());
    driver.call(Call::Import {
        pool: side_pool(),
        values: values.into(),
        options: ImportOptions::default(),
        labels: NewLabels::None,
    });
    driver.call(Call::DeleteKey { pool: side_pool(), key: retired });
    for key in ["imported", "imported too"].map(|v| KeyRef::Value(Secret::new(v).unwrap())) {
        driver.call(Call::Acquire {
            pool: side_pool(),
            ttl_ms: Some(10_000),
            holder: None,
            wait_ms: 0,
        });
        driver.call(Call::ForceRelease { pool: side_pool(), key: key.clone() });
        driver.call(Call::ForceRelease { pool: side_pool(), key });
    }
    driver.call(Call::Release {
        pool: default_pool(),
        lease: second,
        options: ReleaseOptions::default(),
    });
    driver.call(Call::DeleteKey { pool: default_pool(), key: KeyRef::Id(ids[0]) });
    let key = KeyRef::Id(ids[1]);
    for _ in 0..300 {
        let keys = vec![ids[2], ids[3], ids[4]];
        driver.call(Call::KeepAliveMany { pool: default_pool(), keys });
        clock.advance_ms(1_000);
    }
    let reply = driver.call(Call::GetKey { pool: default_pool(), key });
    assert!(matches!(reply, Reply::Refused(_)), "purged");
    driver.acquire("held").unwrap();
    driver.engine.close().unwrap();
}

/// Writes the stored answers of a token and of a client without one: fields of a later version.
fn write_answers(driver: &mut Driver) {
    for answer in repeat_calls(driver) {
        assert!(matches!(answer, Reply::Keys(_) | Reply::Granted { redelivered: false, .. }));
    }
    driver.engine.close().unwrap();
}

/// Writes labels, keys that drain and a pool that drains, in rows of the database and in records
/// after them: facts of later versions.
fn write_drains(driver: &mut Driver) {
    for round in ["row", "record"] {
        let drained = PoolName::parse(&format!("drained-{round}")).unwrap();
        let drain = |draining| PolicyPatch { draining: Some(draining), ..PolicyPatch::default() };
        let put = |pool, draining| Call::PutPool { pool, patch: Box::new(drain(draining)) };
        driver.call(put(drained.clone(), true));
        driver.call(put(PoolName::parse("undone").unwrap(), round == "row"));
        let labels = NewLabels::All(round.into());
        driver.call(Call::Generate { pool: drained, count: 1, labels });
        let labels = NewLabels::Each(vec![Some("first".into()), None, Some("third".into())]);
        driver.call(Call::Generate { pool: default_pool(), count: 3, labels });
        for reason in ["kept", "cancelled", "quarantined"] {
            drain_key(driver, reason);
        }
        if round == "row" {
            driver.checkpoint().unwrap();
        }
    }
    driver.engine.close().unwrap();
}

/// Leases a key, labels it and drains it; then, as the reason says, the drain is cancelled, or the
/// lease ends.
fn drain_key(driver: &mut Driver, reason: &str) {
    let (pool, (lease, id, _)) = (default_pool, driver.acquire(reason).unwrap());
    let key = || KeyRef::Id(id);
    let label = Some(format!("label of {reason}").into());
    driver.call(Call::SetLabel { pool: pool(), key: key(), label });
    let options = QuarantineOptions { when_free: true, reason: Some(reason.into()) };
    driver.call(Call::QuarantineKey { pool: pool(), key: key(), options });
    match reason {
        "cancelled" => drop(driver.call(Call::EndQuarantine { pool: pool(), key: key() })),
        "quarantined" => {
            let options = ReleaseOptions::default();
            driver.call(Call::Release { pool: pool(), lease, options });
        }
        _ => {}
    }
}

/// Sends requests with Idempotency-Keys, of a token and of a client without one.
fn repeat_calls(driver: &mut Driver) -> Vec<Reply> {
    let token = Principal::Token(Arc::new(Caller::new("ci", None)));
    let mut replies = Vec::new();
    for by in [token, Principal::Anyone] {
        driver.by = by;
        let pool = default_pool;
        let acquire = Call::Acquire { pool: pool(), ttl_ms: None, holder: None, wait_ms: 0 };
        let calls = [Call::Generate { pool: pool(), count: 2, labels: NewLabels::None }, acquire]
            .map(|call| SentCall::with_key("once", BodyDigest(7), call));
        replies.extend(driver.turn_with_keys(calls.into()).unwrap());
    }
    driver.by = Principal::Anyone;
    replies
}

#[test]
fn a_stored_answer_of_an_earlier_version_is_given_again() {
    for name in ["format-1-answers", "format-3-answers"] {
        let copy = TempDir::copy_of(&fixtures().join(name).join("data"));
        let mut driver = open(copy.path(), &ManualClock::new()).unwrap();
        let keys = driver.engine.pools().key_count();
        for reply in repeat_calls(&mut driver) {
            assert!(matches!(reply, Reply::Keys(_) | Reply::Granted { redelivered: true, .. }));
        }
        assert_eq!(driver.engine.pools().key_count(), keys, "{name}: no key is created again");
        driver.engine.pools().check_invariants();
    }
}

/// Describes everything visible, in the notation of the first fixture. Type names are written here,
/// so that renaming a type does not change it.
fn description(driver: &mut Driver) -> String {
    let mut text = String::new();
    let Reply::Pools(page) = driver.call(list_pools()) else { panic!("expected pools") };
    for pool in page.pools {
        let Policy {
            lease_ttl_ms,
            max_hold_ms,
            keepalive_ttl_ms,
            rest_ms,
            key_length,
            key_prefix,
            max_keys,
            draining,
        } = &pool.policy;
        let counts = pool.counts;
        let draining = if *draining { ", draining: true" } else { "" };
        writeln!(
            text,
            "PoolName({:?}) Policy {{ lease_ttl_ms: {lease_ttl_ms}, max_hold_ms: {max_hold_ms:?}, \
             keepalive_ttl_ms: {keepalive_ttl_ms:?}, rest_ms: {rest_ms}, \
             key_length: {key_length}, key_prefix: {key_prefix:?}, max_keys: {max_keys:?}{draining} }} \
             Counts {{ available: {}, leased: {}, resting: {}, quarantined: {} }}",
            pool.name.as_str(),
            counts.available,
            counts.leased,
            counts.resting,
            counts.quarantined,
        )
        .unwrap();
        let mut ids = driver.engine.pools().key_ids(&pool.name);
        ids.sort();
        for id in ids {
            let key = KeyRef::Id(id);
            let call = Call::GetKey { pool: pool.name.clone(), key };
            let Reply::Key(key) = driver.call(call) else { panic!("expected a key") };
            let state = match key.state {
                KeyState::Available => "Available",
                KeyState::Leased => "Leased",
                KeyState::Resting => "Resting",
                KeyState::Quarantined => "Quarantined",
            };
            let lease = key.lease.map(|lease| (lease.id.to_string(), lease.token, lease.holder));
            write!(text, "  {id} {state} {} {lease:?}", key.created_at_ms).unwrap();
            if key.draining || key.label.is_some() {
                let (label, reason) = (key.label, key.reason);
                let draining = if key.draining { "draining" } else { "not draining" };
                write!(text, " label {label:?}, {draining}, reason {reason:?}").unwrap();
            }
            text.push('\n');
        }
    }
    let values = vec![Secret::new("retired").unwrap()];
    let side_pool = PoolName::parse("side").unwrap();
    let reply = driver.call(Call::Import {
        pool: side_pool,
        values,
        options: ImportOptions::default(),
        labels: NewLabels::None,
    });
    let Reply::Refused(RequestError::Refused(refusal)) = reply else {
        panic!("the value is retired: {reply:?}");
    };
    if let Refusal::KeyExists { index } = refusal {
        writeln!(text, "Refused(Denied(KeyExists {{ at: {index} }}))").unwrap();
    } else {
        assert_eq!(refusal, Refusal::UnknownPool);
    }
    text
}

#[test]
fn every_format_ever_written_opens_and_holds_the_same_data() {
    if let Ok(name) = std::env::var("KEYPEG_MAKE_FIXTURE") {
        make_fixture(&fixtures().join(name));
    }
    let mut formats = 0;
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let fixture = entry.unwrap().path();
        let copy = TempDir::copy_of(&fixture.join("data"));
        let clock = ManualClock::new();
        clock.advance_ms(3_600_000);
        clock.reboot();
        let mut driver = open(copy.path(), &clock).unwrap();
        let expected = std::fs::read_to_string(fixture.join("expected.txt")).unwrap();
        assert_eq!(description(&mut driver), expected, "{}", fixture.display());
        assert_eq!(driver.recovery.starts_before, 1);
        driver.generate(1);
        formats += 1;
    }
    assert!(formats > 0);
}

fn make_fixture(fixture: &Path) {
    let data = fixture.join("data");
    std::fs::create_dir_all(fixture).unwrap();
    let clock = ManualClock::new();
    let name = fixture.file_name().unwrap().to_str().unwrap();
    let is_sealed = name.ends_with("-sealed");
    let mut driver = open_with(&data, &clock, is_sealed).unwrap();
    if name.ends_with("-answers") {
        write_answers(&mut driver);
    } else if name.ends_with("-drains") {
        write_drains(&mut driver);
    } else if is_sealed {
        // Sealed rows in the database, and sealed records after them.
        write_every_fact(&mut driver, &clock);
        driver.checkpoint().unwrap();
        driver.generate(2);
    } else {
        write_every_fact(&mut driver, &clock);
    }
    drop(driver);
    let copy = TempDir::copy_of(&data);
    let text = description(&mut open(copy.path(), &clock).unwrap());
    std::fs::write(fixture.join("expected.txt"), text).unwrap();
}

/// A check reports what a start would then do, and changes nothing.
#[test]
fn a_check_reports_what_a_start_would_do_and_changes_nothing() {
    let (parent, clock) = (TempDir::new(), ManualClock::new());
    let dir = parent.path().join("data");
    let check = || {
        keypeg_engine::check_data_dir(
            &dir,
            None,
            Box::new(clock.clone()),
            Box::new(support::SeededRandom(1)),
        )
    };
    let error = check().expect_err("no data").to_string();
    assert!(error.contains("holds no data"), "{error}");
    assert!(!dir.exists());
    let mut driver = open(&dir, &clock).unwrap();
    driver.generate(3);
    driver.acquire("job-7").unwrap();
    let error = check().expect_err("in use").to_string();
    assert!(error.contains("in use"), "{error}");
    drop(driver);
    let files = || {
        let names = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = names.map(|path| (std::fs::read(&path).unwrap(), path)).collect();
        files.sort();
        files
    };
    let before = files();
    for _ in 0..2 {
        let found = check().unwrap();
        assert_eq!((found.keys, found.leases, found.batches_cut), (3, 1, 0));
        assert!(files() == before, "the check changed something");
    }
    let (mut damaged, path) = before.last().cloned().unwrap();
    damaged[20] ^= 1;
    std::fs::write(path, damaged).unwrap();
    let error = check().expect_err("damaged").to_string();
    assert!(error.contains("damaged"), "{error}");
}

#[test]
fn a_real_directory_survives_a_restart_and_one_process_locks_it() {
    let (parent, clock) = (TempDir::new(), ManualClock::new());
    let dir = parent.path().join("data");
    let mut driver = open(&dir, &clock).unwrap();
    assert!(driver.recovery.created);
    driver.generate(3);
    let (_, _, token) = driver.acquire("job-7").unwrap();
    let error = open(&dir, &clock).err().expect("a second process is refused");
    assert!(error.contains("unavailable") || error.contains("block"), "{error}");
    drop(driver);
    let mut driver = open(&dir, &clock).unwrap();
    assert_eq!((driver.recovery.keys, driver.recovery.leases), (3, 1));
    assert_eq!(driver.recovery.default_policy_kept, None::<Policy>);
    assert_eq!(engine_config().default_policy, Policy::default());
    assert!(driver.acquire("next").unwrap().2 > token);
    let mode = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(&dir), 0o700);
    for entry in std::fs::read_dir(&dir).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
}
