//! Backups under load and what a restore makes of them: key by key the same keys, none of which is
//! lent before every lease of the original server has ended, and no token twice.
//!
//! Everything runs in one thread with a seed: turns of the original server run between the steps of
//! a backup and between its pieces.

#![expect(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test may panic")]

#[path = "backup_parts/refused.rs"]
mod refused;
#[path = "backup_parts/shards.rs"]
mod shards;
mod support;

use keypeg_core::{
    ImportOptions, KeyId, KeyRef, KeyState, LeaseId, NewLabels, PolicyPatch, PoolName,
    RESTORED_HOLDER, ReleaseOptions, Secret,
};
use keypeg_engine::backup::Backup;
use keypeg_engine::disk::Disk;
use keypeg_engine::{RestoreError, RestoreOptions, RestoreReport, check_backup, restore_onto};
use keypeg_store::{BackupRefused, Call, Reply};
use keypeg_testkit::env_number;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use support::sim_disk::{CrashAt, SimDisk};
use support::{Driver, ManualClock, SeededRandom, WALL_US, default_pool};

/// The longest hold of the two pools.
const HOLD_MS: u64 = 20_000;
const TTL_MS: u64 = 5_000;
const REST_MS: u64 = 3_000;

/// Returns the seeds of a run: `KEYPEG_SEED=n` repeats one, `KEYPEG_SEEDS=n` runs that many.
fn seeds(runs: u64) -> std::ops::Range<u64> {
    match env_number("KEYPEG_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..env_number("KEYPEG_SEEDS").unwrap_or(runs),
    }
}

fn side_pool() -> PoolName {
    PoolName::parse("side").unwrap()
}

fn pools() -> [PoolName; 2] {
    [default_pool(), side_pool()]
}

/// An original server with random calls.
struct Original {
    driver: Driver,
    disk: SimDisk,
    random: SeededRandom,
    leases: Vec<(PoolName, LeaseId)>,
    /// The tokens of all grants.
    tokens: BTreeSet<u64>,
    /// The keys that were granted since the list was last emptied.
    granted: BTreeSet<KeyId>,
    values: u32,
}

impl Original {
    fn new(seed: u64) -> Self {
        let (disk, clock) = (SimDisk::new(), ManualClock::new());
        let driver = Driver::open(Arc::new(disk.clone()), &clock, seed).unwrap();
        let mut this = Self {
            driver,
            disk,
            random: SeededRandom(seed),
            leases: Vec::new(),
            tokens: BTreeSet::new(),
            granted: BTreeSet::new(),
            values: 0,
        };
        for (pool, rest_ms) in pools().into_iter().zip([0, REST_MS]) {
            let patch = PolicyPatch {
                lease_ttl_ms: Some(TTL_MS),
                max_hold_ms: Some(Some(HOLD_MS)),
                rest_ms: Some(rest_ms),
                keepalive_ttl_ms: Some(None),
                ..PolicyPatch::default()
            };
            this.driver.call(Call::PutPool { pool: pool.clone(), patch: Box::new(patch) });
            this.driver.call(Call::Generate { pool, count: 8, labels: NewLabels::None });
        }
        this
    }

    fn pick_key(&mut self, pool: &PoolName) -> Option<KeyRef> {
        let ids = self.driver.engine.pools().key_ids(pool);
        self.random.pick(&ids).map(|id| KeyRef::Id(*id))
    }

    fn random_call(&mut self, changes_keys: bool) -> Option<Call> {
        let pool = pools()[self.random.index_below(2)].clone();
        let lease = self.random.pick(&self.leases).cloned();
        Some(match self.random.below(if changes_keys { 12 } else { 8 }) {
            0..=3 => acquire(pool),
            4 => {
                let (pool, lease) = lease?;
                Call::Renew { pool, lease, ttl_ms: None }
            }
            5 | 6 => {
                let (pool, lease) = lease?;
                let rest_ms =
                    [None, Some(0), Some(1_000), Some(60_000)][self.random.index_below(4)];
                let quarantine = self.random.below(8) == 0;
                let options = ReleaseOptions { rest_ms, quarantine, reason: Some("429".into()) };
                Call::Release { pool, lease, options }
            }
            7 => Call::ForceRelease { key: self.pick_key(&pool)?, pool },
            8 => Call::Generate {
                pool,
                count: 1 + u32::try_from(self.random.below(4)).unwrap(),
                labels: NewLabels::None,
            },
            9 | 10 => {
                self.values += 1;
                let values = vec![Secret::new(&format!("imported-{}", self.values)).unwrap()];
                Call::Import {
                    pool,
                    values,
                    options: ImportOptions::default(),
                    labels: NewLabels::None,
                }
            }
            _ => Call::DeleteKey { key: self.pick_key(&pool)?, pool },
        })
    }

    /// Runs one turn with a random call at a random time, and sometimes a checkpoint or a restart.
    fn step(&mut self, changes_keys: bool) {
        self.driver.clock.advance_ms(self.random.below(400));
        if let Some(call) = self.random_call(changes_keys) {
            let pool = match &call {
                Call::Acquire { pool, .. } => pool.clone(),
                _ => default_pool(),
            };
            if let Reply::Granted { lease, .. } = self.driver.call(call) {
                assert!(self.tokens.insert(lease.token), "a token is granted once");
                self.granted.insert(lease.key_id);
                self.leases.push((pool, lease.id));
            }
        }
        if self.random.below(6) == 0 {
            self.driver.checkpoint().unwrap();
        }
    }

    fn restart(&mut self) {
        let clock = self.driver.clock.clone();
        self.driver = Driver::open(Arc::new(self.disk.clone()), &clock, 99).unwrap();
    }

    /// Begins a backup and runs turns until it can be written.
    fn prepared(&mut self) -> Backup {
        let mut backup = self.driver.engine.begin_backup().unwrap().unwrap();
        while !backup.prepare().unwrap() {
            self.step(true);
            self.driver.checkpointer.as_ref().unwrap().serve_backup();
        }
        backup
    }

    /// Returns a backup and the state of each key at its last position. Turns go on between its
    /// pieces.
    fn back_up(&mut self) -> (Vec<u8>, BTreeMap<KeyId, KeyLine>) {
        let backup = self.prepared();
        let keys = key_lines(&mut self.driver);
        self.granted.clear();
        let mut bytes = Vec::new();
        backup
            .write(|piece| {
                bytes.extend(piece);
                self.step(true);
                Ok(())
            })
            .unwrap();
        (bytes, keys)
    }
}

fn acquire(pool: PoolName) -> Call {
    Call::Acquire { pool, ttl_ms: None, holder: Some("job".into()), wait_ms: 0 }
}

/// What a restore keeps of a key, and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KeyLine {
    pool: PoolName,
    value: String,
    created_at_ms: u64,
    keepalive: bool,
    state: KeyState,
    holder: Option<String>,
    reason: Option<String>,
}

fn key_lines(driver: &mut Driver) -> BTreeMap<KeyId, KeyLine> {
    let mut lines = BTreeMap::new();
    for pool in pools() {
        for id in driver.engine.pools().key_ids(&pool) {
            let key = KeyRef::Id(id);
            let value = match driver.call(Call::Reveal { pool: pool.clone(), key: key.clone() }) {
                Reply::Revealed { value, .. } => value.reveal().to_owned(),
                other => panic!("{other:?}"),
            };
            let Reply::Key(view) = driver.call(Call::GetKey { pool: pool.clone(), key }) else {
                panic!("a listed key exists")
            };
            let line = KeyLine {
                pool: pool.clone(),
                value,
                created_at_ms: view.created_at_ms,
                keepalive: view.keepalive,
                state: view.state,
                holder: view
                    .lease
                    .as_ref()
                    .and_then(|lease| lease.holder.as_deref().map(Into::into)),
                reason: view.reason.as_deref().map(Into::into),
            };
            lines.insert(id, line);
        }
    }
    lines
}

fn options(clock: &ManualClock) -> RestoreOptions {
    RestoreOptions { wall_ms: clock.wall_ms(), ..RestoreOptions::default() }
}

fn restored(bytes: &[u8], options: RestoreOptions) -> (SimDisk, RestoreReport) {
    let disk = SimDisk::new();
    let mut random = SeededRandom(5);
    let onto: Arc<dyn Disk> = Arc::new(disk.clone());
    let report = restore_onto(&mut &bytes[..], &onto, "dir", options, &mut random).unwrap();
    (disk, report)
}

fn open(disk: &SimDisk, clock: &ManualClock) -> Driver {
    Driver::open(Arc::new(disk.clone()), clock, 3).unwrap()
}

/// Each key of the backup with its value, its flags and its quarantine; every other key is held or
/// rests, and no other key exists.
fn check_keys(driver: &mut Driver, expected: &BTreeMap<KeyId, KeyLine>) {
    let found = key_lines(driver);
    assert!(found.keys().eq(expected.keys()), "the same keys");
    for (id, was) in expected {
        let is = &found[id];
        let same = |line: &KeyLine| {
            let KeyLine { pool, value, created_at_ms, keepalive, .. } = line.clone();
            (pool, value, created_at_ms, keepalive)
        };
        assert_eq!(same(is), same(was));
        match was.state {
            KeyState::Quarantined => {
                assert_eq!((is.state, &is.reason), (KeyState::Quarantined, &was.reason));
            }
            KeyState::Resting if is.state == KeyState::Resting => {
                assert_eq!(is.reason, was.reason, "a long rest goes on");
            }
            KeyState::Available | KeyState::Leased | KeyState::Resting => {
                assert_eq!(is.state, KeyState::Leased, "{was:?}");
                assert_eq!(is.holder.as_deref(), Some(RESTORED_HOLDER));
            }
        }
    }
}

#[test]
fn a_restored_server_has_the_same_keys_and_lends_none_within_the_hold() {
    restored_servers_have_the_same_keys(<[u8]>::to_vec, 40);
}

/// Restores what `form` makes of a backup, with so many seeds.
fn restored_servers_have_the_same_keys(form: fn(&[u8]) -> Vec<u8>, runs: u64) {
    let (mut granted_since, mut resting) = (0, 0);
    for seed in seeds(runs) {
        let mut original = Original::new(seed);
        for _ in 0..original.random.below(120) {
            original.step(true);
        }
        if original.random.below(3) == 0 {
            original.restart();
        }
        let (bytes, keys) = original.back_up();
        let bytes = form(&bytes);
        // The original goes on: it lends keys that were available at the backup.
        for _ in 0..original.random.below(60) {
            original.step(false);
        }
        // In most runs the restored server is on the same machine, in the same boot.
        let clock = if original.random.below(4) == 0 {
            ManualClock::new()
        } else {
            original.driver.clock.clone()
        };
        let (disk, report) = restored(&bytes, options(&original.driver.clock));
        clock.advance_ms(original.random.below(2) * 30_000);
        let mut driver = open(&disk, &clock);
        check_keys(&mut driver, &keys);
        assert_eq!((report.keys, report.pools), (keys.len() as u64, 2));
        resting += report.resting;
        let ends_ms = clock.boot_ms() + HOLD_MS;
        let left_ms = || ends_ms.saturating_sub(clock.boot_ms());
        // A step of the original takes less than 400 ms of the same clock.
        while left_ms() > 400 {
            original.step(false);
            clock.advance_ms(original.random.below(2_000).min(left_ms() - 1));
            for pool in pools() {
                let reply = driver.call(acquire(pool));
                assert!(matches!(reply, Reply::Refused(_)), "seed {seed}: {reply:?}");
            }
            if original.random.below(8) == 0 {
                driver.checkpoint().unwrap();
            }
            if original.random.below(8) == 0 {
                drop(driver);
                driver = open(&disk, &clock);
            }
        }
        assert!(left_ms() > 0);
        granted_since += original.granted.len();
        // A key of the restored server alone is lent at once, with a token above all others.
        driver.generate(1);
        let (_, _, token) = driver.acquire("new").unwrap();
        let highest = original.tokens.last().copied().unwrap_or(0);
        assert!(token > highest && token >= report.first_token, "{token} after {highest}");
        clock.advance_ms(HOLD_MS + 61_000);
        for pool in pools() {
            let reply = driver.call(acquire(pool));
            let is_granted = matches!(reply, Reply::Granted { .. });
            assert!(is_granted, "the holds end: {reply:?}");
        }
    }
    let is_rich = granted_since as u64 > 5 * runs / 2 && resting > 0;
    assert!(is_rich, "{granted_since} grants, {resting} rests");
}

/// The restored directory is as good as any other: a crash at any operation of a restore leaves one
/// that a start refuses and a further restore accepts, or the complete one.
#[test]
fn a_restore_that_is_cut_anywhere_leaves_no_directory_that_a_start_accepts() {
    let mut original = Original::new(1);
    for _ in 0..40 {
        original.step(true);
    }
    let (bytes, keys) = original.back_up();
    let clock = original.driver.clock.clone();
    let (mut operation, mut complete) = (0, 0);
    loop {
        let disk = SimDisk::new();
        disk.crash_at(Some(CrashAt { operation, after: operation % 2 == 0 }));
        let onto: Arc<dyn Disk> = Arc::new(disk.clone());
        let result =
            restore_onto(&mut &bytes[..], &onto, "dir", options(&clock), &mut SeededRandom(5));
        let was_cut = disk.has_crashed();
        assert_eq!(result.is_err(), was_cut);
        let mut random = SeededRandom(operation);
        let after = disk.after_crash(&mut random);
        match Driver::open(Arc::new(after.copy()), &clock, 1) {
            Ok(driver) if driver.recovery.created => {
                // Nothing of the restore reached the disk.
                assert!(after.list().unwrap().is_empty(), "operation {operation}");
            }
            Ok(mut driver) => {
                check_keys(&mut driver, &keys);
                complete += 1;
            }
            Err(error) => {
                assert!(error.contains("incomplete restore"), "operation {operation}: {error}");
                let onto: Arc<dyn Disk> = Arc::new(after.clone());
                restore_onto(&mut &bytes[..], &onto, "dir", options(&clock), &mut random).unwrap();
                check_keys(&mut open(&after, &clock), &keys);
            }
        }
        if !was_cut {
            break;
        }
        operation += 1;
    }
    assert!(operation > 20 && complete > 0, "{operation} operations, {complete} complete");
}

#[test]
fn a_backup_that_is_cut_or_damaged_is_refused_and_leaves_an_empty_directory() {
    let mut original = Original::new(2);
    let (bytes, _) = original.back_up();
    let clock = original.driver.clock.clone();
    let mut random = SeededRandom(7);
    let refused = |damaged: &[u8]| {
        let disk = SimDisk::new();
        let onto: Arc<dyn Disk> = Arc::new(disk.clone());
        let result =
            restore_onto(&mut &damaged[..], &onto, "dir", options(&clock), &mut SeededRandom(5));
        assert!(matches!(result, Err(RestoreError::Backup(_))), "{result:?}");
        assert!(disk.list().unwrap().is_empty(), "nothing is left");
        result.unwrap_err().to_string()
    };
    for _ in 0..60 {
        let cut = random.index_below(bytes.len() - 1) + 1;
        let error = refused(&bytes[..cut]);
        assert!(error.contains(&format!("ends at byte {cut}")), "{error}");
        let mut damaged = bytes.clone();
        let at = random.index_below(damaged.len());
        damaged[at] ^= 1 << random.below(8);
        refused(&damaged);
    }
    assert!(refused(b"").contains("not a backup"));
}

#[test]
fn a_restore_into_a_directory_with_files_is_refused_and_changes_nothing() {
    let mut original = Original::new(3);
    let (bytes, _) = original.back_up();
    let before = original.disk.used();
    let onto: Arc<dyn Disk> = Arc::new(original.disk.clone());
    let options = options(&original.driver.clock);
    let error = restore_onto(&mut &bytes[..], &onto, "dir", options.clone(), &mut SeededRandom(5));
    assert!(error.unwrap_err().to_string().contains("dir is not empty"));
    assert_eq!(original.disk.used(), before);
    for name in ["notes", "notes.new", "keyset", "journal-000000000001"] {
        let disk = SimDisk::new();
        disk.create(name, 1).unwrap();
        let (onto, options): (Arc<dyn Disk>, _) = (Arc::new(disk.clone()), options.clone());
        restore_onto(&mut &bytes[..], &onto, "dir", options, &mut SeededRandom(5)).unwrap_err();
        assert_eq!(disk.list().unwrap(), [name]);
    }
}

/// The engine keeps the segments for a backup, but not without a bound: the journal would grow for
/// as long as a client does not read.
#[test]
fn a_backup_that_reads_more_slowly_than_the_journal_grows_ends() {
    let mut original = Original::new(5);
    let backup = original.prepared();
    for _ in 0..800 {
        original.step(false);
    }
    let error = backup.write(|_| Ok(())).unwrap_err();
    assert!(matches!(error, BackupRefused::Failed(why) if why.contains("slowly")));
    for _ in 0..100 {
        original.step(false);
        original.driver.checkpoint().unwrap();
    }
    let journal = original.disk.bytes_of("journal");
    assert!(journal < 3 * support::SMALL_JOURNAL, "{journal} bytes after the backup");
    original.back_up();
}

#[test]
fn the_first_token_follows_from_the_time_since_the_backup_or_is_given() {
    let mut original = Original::new(6);
    original.driver.acquire("a").unwrap();
    let (bytes, _) = original.back_up();
    let check = |options| check_backup(&mut &bytes[..], options, &mut SeededRandom(5));
    let at = |wall_ms| RestoreOptions { wall_ms, ..RestoreOptions::default() };
    let now_ms = original.driver.clock.wall_ms();
    let now = check(at(now_ms)).unwrap().first_token;
    let later = check(at(now_ms + 3_600_000)).unwrap().first_token;
    assert_eq!(later - now, 3_600 << 20, "2^20 tokens for each second");
    assert!(now > WALL_US + (86_400 << 20), "and a day for clocks that differ");
    let behind = check(at(now_ms - 25 * 3_600_000)).unwrap_err().to_string();
    assert!(behind.contains("behind the backup") && behind.contains("--token-floor"), "{behind}");
    check(at(now_ms - 3_600_000)).unwrap();
    let given = |floor| RestoreOptions { token_floor: Some(floor), ..at(now_ms) };
    let low = check(given(5)).unwrap_err().to_string();
    assert!(low.contains("too low"), "{low}");
    let report = check(given(now + 7)).unwrap();
    assert_eq!(report.first_token, now + 7 + report.keys, "the holds take the first tokens");
    let high = check(given(u64::MAX / 2)).unwrap_err().to_string();
    assert!(high.contains("too high"), "{high}");
}

#[test]
fn a_given_hold_replaces_the_longest_one_but_ends_no_known_lease_early() {
    let mut original = Original::new(7);
    let (lease, key, _) = original.driver.acquire("known").unwrap();
    let (bytes, _) = original.back_up();
    let clock = original.driver.clock.clone();
    let options = RestoreOptions { hold_us: Some(0), ..options(&clock) };
    let (disk, report) = restored(&bytes, options);
    assert!(report.hold_us <= TTL_MS * 1_000, "{report:?}");
    let mut driver = open(&disk, &clock);
    let Reply::Granted { lease: other, .. } = driver.call(acquire(default_pool())) else {
        panic!("keys that were available are lent")
    };
    assert_ne!(other.key_id, key, "the lease that was known goes on");
    let release = Call::Release { pool: default_pool(), lease, options: ReleaseOptions::default() };
    assert!(matches!(driver.call(release), Reply::Refused(_)), "but no client holds it");
}
