//! A backup of each format that this version must restore, kept as a file: it restores, and the
//! restored server has the same keys. The files never change; `…-sealed` is sealed, and the directory
//! of `format-1-aes-ids` computes its ids with AES.
//!
//! A new format gets its own file by `KEYPEG_MAKE_FIXTURE=format-N cargo test --test backup_format`.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use keypeg_core::{
    BodyDigest, ImportOptions, KeyRef, KeyState, NewLabels, PolicyPatch, PoolName, ReleaseOptions,
    Secret,
};
use keypeg_engine::disk::Disk;
use keypeg_engine::{
    EngineConfig, RestoreOptions, SealKey, SealKeys, SealOptions, check_backup, restore_onto,
};
use keypeg_store::{Call, Caller, Principal, Reply};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::sim_disk::SimDisk;
use support::{
    Driver, ManualClock, SeededRandom, SentCall, default_pool, engine_config, list_pools,
};

/// The longest hold of the pools of the backups.
const HOLD_MS: u64 = 600_000;
const TOKEN_FLOOR: u64 = 5_000_000_000_000_000;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/backups")
}

fn side_pool() -> PoolName {
    PoolName::parse("side").unwrap()
}

fn seal_keys(is_sealed: bool) -> Option<SealKeys> {
    is_sealed.then(|| SealKeys::new(vec![SealKey::new([7; 32])]).unwrap())
}

fn open(disk: &SimDisk, clock: &ManualClock, is_sealed: bool) -> Driver {
    let seal = seal_keys(is_sealed).map(|keys| SealOptions { keys, seals_existing: false });
    let config = EngineConfig { seal, ..engine_config() };
    Driver::open_with(Some(Arc::new(disk.clone())), clock, 3, &config).unwrap()
}

fn acquire(pool: PoolName) -> Call {
    Call::Acquire { pool, ttl_ms: None, holder: Some("job".into()), wait_ms: 0 }
}

/// Gives the server one of each thing that a backup contains, in rows and in batches.
fn write_everything(driver: &mut Driver) {
    let patch = PolicyPatch {
        lease_ttl_ms: Some(60_000),
        max_hold_ms: Some(Some(HOLD_MS)),
        keepalive_ttl_ms: Some(Some(3_600_000)),
        ..PolicyPatch::default()
    };
    let side_patch = PolicyPatch {
        rest_ms: Some(5_000),
        key_prefix: Some("side_".into()),
        max_keys: Some(Some(100)),
        ..patch.clone()
    };
    driver.call(Call::PutPool { pool: default_pool(), patch: Box::new(patch) });
    driver.call(Call::PutPool { pool: side_pool(), patch: Box::new(side_patch) });
    driver.generate(4);
    let values = ["imported", "resting", "quarantined", "retired"];
    let values = values.map(|value| Secret::new(value).unwrap());
    let options = ImportOptions { keepalive: false, allow_retired: false };
    driver.call(Call::Import {
        pool: side_pool(),
        values: values.to_vec(),
        options,
        labels: NewLabels::None,
    });
    let retired = KeyRef::Value(values[3].clone());
    driver.call(Call::DeleteKey { pool: side_pool(), key: retired });
    for _ in 0..3 {
        let Reply::Granted { lease, value, .. } = driver.call(acquire(side_pool())) else {
            panic!("three keys are available")
        };
        let value = value.reveal().to_owned();
        if value == "imported" {
            continue;
        }
        let options = ReleaseOptions {
            rest_ms: (value == "resting").then_some(10 * HOLD_MS),
            quarantine: value == "quarantined",
            reason: Some(value.into()),
        };
        driver.call(Call::Release { pool: side_pool(), lease: lease.id, options });
    }
    driver.acquire("job-1").unwrap();
    driver.checkpoint().unwrap();
    for answer in repeat_calls(driver) {
        assert!(matches!(answer, Reply::Keys(_) | Reply::Granted { redelivered: false, .. }));
    }
}

/// Sends calls with an Idempotency-Key.
fn repeat_calls(driver: &mut Driver) -> Vec<Reply> {
    driver.by = Principal::Token(Arc::new(Caller::new("ci", None)));
    let generate = Call::Generate { pool: default_pool(), count: 2, labels: NewLabels::None };
    let calls = [generate, acquire(default_pool())]
        .map(|call| SentCall::with_key("once", BodyDigest(7), call));
    let replies = driver.turn_with_keys(calls.into()).unwrap();
    driver.by = Principal::Anyone;
    replies
}

/// Describes what a restore keeps. Ids and tokens of the holds are new in each restore.
fn description(driver: &mut Driver) -> String {
    let mut text = String::new();
    let Reply::Pools(page) = driver.call(list_pools()) else { panic!("expected pools") };
    for view in page.pools {
        let (pool, policy) = (view.name, view.policy);
        writeln!(
            text,
            "{} lease {} hold {:?} keep-alive {:?} rest {} length {} prefix {:?} most {:?}",
            pool.as_str(),
            policy.lease_ttl_ms,
            policy.max_hold_ms,
            policy.keepalive_ttl_ms,
            policy.rest_ms,
            policy.key_length,
            policy.key_prefix,
            policy.max_keys,
        )
        .unwrap();
        let mut ids = driver.engine.pools().key_ids(&pool);
        ids.sort();
        for id in ids {
            let key = KeyRef::Id(id);
            let shown = driver.call(Call::GetKey { pool: pool.clone(), key: key.clone() });
            let Reply::Key(view) = shown else { panic!("expected a key: {shown:?}") };
            let value = driver.call(Call::Reveal { pool: pool.clone(), key });
            let Reply::Revealed { value, .. } = value else {
                panic!("expected a value: {value:?}")
            };
            let holder = view.lease.and_then(|lease| lease.holder);
            writeln!(
                text,
                "  {id} {} created {} keep-alive {} {} holder {holder:?} reason {:?}",
                value.reveal(),
                view.created_at_ms,
                view.keepalive,
                state_name(view.state),
                view.reason,
            )
            .unwrap();
        }
    }
    text
}

fn state_name(state: KeyState) -> &'static str {
    match state {
        KeyState::Available => "available",
        KeyState::Leased => "leased",
        KeyState::Resting => "resting",
        KeyState::Quarantined => "quarantined",
    }
}

/// Returns the bytes of a backup of a server with one of each thing.
fn back_up(is_sealed: bool) -> Vec<u8> {
    let (disk, clock) = (SimDisk::new(), ManualClock::new());
    let mut driver = open(&disk, &clock, is_sealed);
    write_everything(&mut driver);
    driver.back_up()
}

/// Restores a backup on another machine, a day after it was created, and starts the server.
fn restored(bytes: &[u8], is_sealed: bool) -> Driver {
    let clock = ManualClock::new();
    clock.reboot();
    clock.advance_ms(86_400_000);
    let options = RestoreOptions {
        hold_us: None,
        token_floor: Some(TOKEN_FLOOR),
        wall_ms: clock.wall_ms(),
        seal: seal_keys(is_sealed),
    };
    let disk = SimDisk::new();
    let onto: Arc<dyn Disk> = Arc::new(disk.clone());
    let checked = check_backup(&mut &*bytes, options.clone(), &mut SeededRandom(5)).unwrap();
    let report = restore_onto(&mut &*bytes, &onto, "dir", options, &mut SeededRandom(5)).unwrap();
    assert_eq!(checked, report, "the check reports what the restore does");
    assert!(report.first_token >= TOKEN_FLOOR);
    open(&disk, &clock, is_sealed)
}

#[test]
fn every_backup_format_ever_written_restores_and_holds_the_same_data() {
    if let Ok(name) = std::env::var("KEYPEG_MAKE_FIXTURE") {
        let (fixture, is_sealed) = (fixtures().join(&name), name.ends_with("-sealed"));
        std::fs::create_dir_all(&fixture).unwrap();
        let bytes = back_up(is_sealed);
        let text = description(&mut restored(&bytes, is_sealed));
        std::fs::write(fixture.join("backup"), bytes).unwrap();
        std::fs::write(fixture.join("expected.txt"), text).unwrap();
    }
    let mut formats = Vec::new();
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let bytes = std::fs::read(entry.path().join("backup")).unwrap();
        let expected = std::fs::read_to_string(entry.path().join("expected.txt")).unwrap();
        let mut driver = restored(&bytes, name.ends_with("-sealed"));
        assert_eq!(description(&mut driver), expected, "{name}");
        check_behavior(&mut driver, &name);
        formats.push(name);
    }
    formats.sort();
    assert_eq!(
        formats,
        ["format-1", "format-1-aes-ids", "format-1-aes-ids-sealed", "format-1-sealed"]
    );
}

/// Checks what clients of the restored server get.
fn check_behavior(driver: &mut Driver, name: &str) {
    let values = vec![Secret::new("retired").unwrap()];
    let options = ImportOptions::default();
    let again =
        driver.call(Call::Import { pool: side_pool(), values, options, labels: NewLabels::None });
    assert!(matches!(again, Reply::Refused(_)), "{name}: a retired value stays retired");
    let replies = repeat_calls(driver);
    assert!(matches!(replies[0], Reply::Keys(_)), "{name}: the stored answer of keys goes on");
    assert!(matches!(replies[1], Reply::Refused(_)), "{name}: no lease of the original goes on");
    driver.clock.advance_ms(HOLD_MS - 1);
    for pool in [default_pool(), side_pool()] {
        let reply = driver.call(acquire(pool));
        assert!(matches!(reply, Reply::Refused(_)), "{name}: {reply:?} within the hold");
    }
    driver.clock.advance_ms(1);
    let (_, _, token) = driver.acquire("after").expect("the holds of this pool have no rest");
    assert!(token > TOKEN_FLOOR, "{name}: {token}");
    driver.clock.advance_ms(5_000);
    let reply = driver.call(acquire(side_pool()));
    let Reply::Granted { value, .. } = reply else { panic!("{name}: {reply:?}") };
    assert_eq!(value.reveal(), "imported", "{name}: the others rest or are quarantined");
}
