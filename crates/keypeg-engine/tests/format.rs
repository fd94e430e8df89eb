//! A directory of each format this version must read, kept as files: it opens, and holds what it
//! held. `fixtures/format-1` was written by the first version; nothing ever changes it. A new
//! format gets a fixture of its own by `KEYPEG_MAKE_FIXTURE=format-N cargo test --test format`.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use keypeg_engine::core::{KeyRef, Policy, PolicyPatch, PoolName, ReleaseOptions, Secret};
use keypeg_engine::disk::Directory;
use keypeg_engine::{Call, Reply};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::{Driver, GivenClock, default_pool, setup};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn open(path: &Path, clock: &GivenClock) -> Result<Driver, String> {
    let disk = Directory::open(path).map_err(|error| error.to_string())?;
    Driver::open(Arc::new(disk), clock, 3)
}

/// A directory of its own under the system's temporary one, removed at the end.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("keypeg-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }

    fn copy_of(from: &Path, name: &str) -> Self {
        let to = Self::new(name);
        std::fs::create_dir_all(&to.0).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.0.join(entry.file_name())).unwrap();
        }
        to
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Every kind of fact, so that the fixture holds one of each.
fn story(driver: &mut Driver, clock: &GivenClock) {
    let side = || PoolName::parse("side").unwrap();
    let ids = driver.generate(5);
    let (first, ..) = driver.acquire("job-1").unwrap();
    let (second, ..) = driver.acquire("").unwrap();
    clock.tick_ms(1_000);
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
        driver.call(Call::PutPool { pool, patch: patch.clone() });
    }
    driver.call(Call::DeletePool { pool: PoolName::parse("gone").unwrap() });
    let patch = PolicyPatch { keepalive_ttl_ms: Some(None), ..PolicyPatch::default() };
    driver.call(Call::PutPool { pool: side(), patch });
    let values = ["imported", "imported too", "retired"].map(|v| Secret::new(v).unwrap());
    let retired = KeyRef::Value(values[2].clone());
    driver.call(Call::Import { pool: side(), values: values.into() });
    driver.call(Call::DeleteKey { pool: side(), key: retired });
    for key in ["imported", "imported too"].map(|v| KeyRef::Value(Secret::new(v).unwrap())) {
        driver.call(Call::Acquire { pool: side(), ttl_ms: Some(10_000), holder: None, wait_ms: 0 });
        driver.call(Call::ForceRelease { pool: side(), key: key.clone() });
        driver.call(Call::ForceRelease { pool: side(), key });
    }
    driver.call(Call::Release {
        pool: default_pool(),
        lease: second,
        verdict: ReleaseOptions::default(),
    });
    driver.call(Call::DeleteKey { pool: default_pool(), key: KeyRef::Id(ids[0]) });
    let key = KeyRef::Id(ids[1]);
    for _ in 0..300 {
        let keys = vec![ids[2], ids[3], ids[4]];
        driver.call(Call::KeepAliveMany { pool: default_pool(), keys });
        clock.tick_ms(1_000);
    }
    let reply = driver.call(Call::GetKey { pool: default_pool(), key });
    assert!(matches!(reply, Reply::Refused(_)), "purged");
    driver.acquire("held").unwrap();
    driver.works.close().unwrap();
}

/// What can be seen of it, as text.
fn seen(driver: &mut Driver) -> String {
    let mut text = String::new();
    let Reply::Pools(pools) = driver.call(Call::ListPools) else { panic!("pools") };
    for pool in pools {
        writeln!(text, "{:?} {:?} {:?}", pool.name, pool.policy, pool.counts).unwrap();
        let mut ids = driver.works.pools().key_ids(&pool.name);
        ids.sort();
        for id in ids {
            let key = KeyRef::Id(id);
            let call = Call::GetKey { pool: pool.name.clone(), key };
            let Reply::Key(key) = driver.call(call) else { panic!("a key") };
            let lease = key.lease.map(|lease| (lease.id.to_string(), lease.token, lease.holder));
            writeln!(text, "  {id} {:?} {} {lease:?}", key.state, key.created_at_ms).unwrap();
        }
    }
    let retired = vec![Secret::new("retired").unwrap()];
    let side = PoolName::parse("side").unwrap();
    writeln!(text, "{:?}", driver.call(Call::Import { pool: side, values: retired })).unwrap();
    text
}

#[test]
fn every_format_ever_written_opens_and_holds_what_it_held() {
    if let Ok(name) = std::env::var("KEYPEG_MAKE_FIXTURE") {
        make(&fixtures().join(name));
    }
    let mut formats = 0;
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let fixture = entry.unwrap().path();
        let copy = Temporary::copy_of(&fixture.join("data"), "format");
        let clock = GivenClock::new();
        clock.tick_ms(3_600_000);
        clock.reboot();
        let mut driver = open(&copy.0, &clock).unwrap();
        let expected = std::fs::read_to_string(fixture.join("expected.txt")).unwrap();
        assert_eq!(seen(&mut driver), expected, "{}", fixture.display());
        assert_eq!(driver.recovered.starts_before, 1);
        driver.generate(1);
        formats += 1;
    }
    assert!(formats > 0);
}

fn make(fixture: &Path) {
    let data = fixture.join("data");
    std::fs::create_dir_all(fixture).unwrap();
    let clock = GivenClock::new();
    let mut driver = open(&data, &clock).unwrap();
    story(&mut driver, &clock);
    drop(driver);
    let copy = Temporary::copy_of(&data, "make");
    let text = seen(&mut open(&copy.0, &clock).unwrap());
    std::fs::write(fixture.join("expected.txt"), text).unwrap();
}

/// What a check tells is what a start then does, and the check changes nothing.
#[test]
fn a_check_tells_what_a_start_would_do_and_changes_nothing() {
    let (dir, clock) = (Temporary::new("check"), GivenClock::new());
    let check = || {
        keypeg_engine::check_data_dir(
            &dir.0,
            Box::new(clock.clone()),
            Box::new(support::SeededRandom(1)),
        )
    };
    let told = check().expect_err("nothing there").to_string();
    assert!(told.contains("holds no data"), "{told}");
    assert!(!dir.0.exists());
    let mut driver = open(&dir.0, &clock).unwrap();
    driver.generate(3);
    driver.acquire("job-7").unwrap();
    let told = check().expect_err("in use").to_string();
    assert!(told.contains("in use"), "{told}");
    drop(driver);
    let files = || {
        let names = std::fs::read_dir(&dir.0).unwrap().map(|entry| entry.unwrap().path());
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
    let told = check().expect_err("damaged").to_string();
    assert!(told.contains("damaged"), "{told}");
}

#[test]
fn a_real_directory_holds_over_a_restart_and_one_process_has_it() {
    let (dir, clock) = (Temporary::new("real"), GivenClock::new());
    let mut driver = open(&dir.0, &clock).unwrap();
    assert!(driver.recovered.created);
    driver.generate(3);
    let (_, _, token) = driver.acquire("job-7").unwrap();
    let told = open(&dir.0, &clock).err().expect("a second one is refused");
    assert!(told.contains("unavailable") || told.contains("block"), "{told}");
    drop(driver);
    let mut driver = open(&dir.0, &clock).unwrap();
    assert_eq!((driver.recovered.keys, driver.recovered.leases), (3, 1));
    assert_eq!(driver.recovered.default_policy_kept, None::<Policy>);
    assert_eq!(setup().default_policy, Policy::default());
    assert!(driver.acquire("next").unwrap().2 > token);
    let mode = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(&dir.0), 0o700);
    for entry in std::fs::read_dir(&dir.0).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
}
