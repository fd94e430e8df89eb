//! The ladder of a full disk, as a table: each call at each level of disk space, and that snapshot
//! records never take the space that is reserved for releases.

mod support;

use keypeg_core::{
    BodyDigest, ImportOptions, KeyId, KeyRef, KeyState, LeaseId, NewLabels, PolicyPatch, PoolName,
    QuarantineOptions, ReleaseOptions, Secret,
};
use keypeg_engine::disk::Disk;
use keypeg_engine::state::{EngineState, JournalSizes};
use keypeg_store::{Call, Principal, Reply, RequestError};
use std::collections::BTreeSet;
use std::sync::Arc;
use support::sim_disk::SimDisk;
use support::{
    Driver, ManualClock, SeededRandom, SentCall, default_pool, engine_config, list_pools,
};

/// Bytes of the last segment that only releases may use.
const RESERVE: u64 = 2 << 20;
/// Bytes of the last segment before the reserve.
const BEFORE_RESERVE: u64 = 16_384;
/// So large that segments are deleted only when the disk is full.
const JOURNAL: u64 = 1 << 40;
/// A long holder or reason, so that few calls fill a segment.
const LONG: usize = 512;

/// The levels, from the fewest calls to all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Full,
    Releases,
    Grants,
    All,
}

struct World {
    disk: SimDisk,
    clock: ManualClock,
    driver: Driver,
    /// Leases that no call of the table has used.
    leases: Vec<(LeaseId, KeyId)>,
    /// Pools to delete.
    pools: Vec<PoolName>,
    /// Makes values and Idempotency-Keys unique.
    unique: u64,
}

fn is_full(reply: &Reply) -> bool {
    matches!(reply, Reply::Refused(RequestError::StorageFull))
}

fn acquire(holder: usize) -> Call {
    let holder = (holder > 0).then(|| "h".repeat(holder).into());
    Call::Acquire { pool: default_pool(), ttl_ms: Some(3_000_000), holder, wait_ms: 0 }
}

fn release(lease: LeaseId) -> Call {
    let options = ReleaseOptions { rest_ms: Some(0), ..ReleaseOptions::default() };
    Call::Release { pool: default_pool(), lease, options }
}

fn quarantine(lease: LeaseId, reason: usize) -> Call {
    let reason = (reason > 0).then(|| "r".repeat(reason).into());
    let options = ReleaseOptions { quarantine: true, reason, ..ReleaseOptions::default() };
    Call::Release { pool: default_pool(), lease, options }
}

impl World {
    /// Creates a directory with `leases` leases and space for all calls.
    fn new(leases: usize) -> Self {
        let (disk, clock) = (SimDisk::new(), ManualClock::new());
        let sizes = JournalSizes { segment: RESERVE + BEFORE_RESERVE, journal: JOURNAL };
        let (engine, recovery) = EngineState::open(
            Some(Arc::new(disk.clone())),
            sizes,
            &engine_config(),
            Box::new(clock.clone()),
            Box::new(SeededRandom(1)),
        )
        .expect("opens");
        let by = Principal::Anyone;
        let mut driver = Driver { engine, recovery, clock: clock.clone(), checkpointer: None, by };
        driver.checkpointer = driver.engine.take_checkpointer();
        driver.engine.start_preallocation(false).expect("the disk has space");
        let patch = PolicyPatch {
            lease_ttl_ms: Some(3_600_000),
            max_hold_ms: Some(Some(7_200_000)),
            keepalive_ttl_ms: Some(None),
            key_length: Some(100),
            ..PolicyPatch::default()
        };
        driver.call(Call::PutPool { pool: default_pool(), patch: Box::new(patch) });
        let pools: Vec<_> =
            (0..12).map(|n| PoolName::parse(&format!("side-{n}")).expect("a name")).collect();
        for pool in &pools {
            driver.call(Call::PutPool { pool: pool.clone(), patch: Box::default() });
        }
        driver.generate(10_000);
        let (leases_left, unique) = (Vec::new(), 0);
        let mut world = Self { disk, clock, driver, leases: leases_left, pools, unique };
        world.leases = world.grant(leases, 0);
        world.leases.sort_unstable_by_key(|(_, key)| key.0);
        world
    }

    /// Acquires keys until one is refused; returns the leases.
    fn grant(&mut self, count: usize, holder: usize) -> Vec<(LeaseId, KeyId)> {
        let replies = self.driver.turn((0..count).map(|_| acquire(holder)).collect());
        let granted = replies.expect("the engine continues").into_iter().map_while(|reply| {
            let Reply::Granted { lease, .. } = reply else {
                assert!(is_full(&reply), "{reply:?}");
                return None;
            };
            Some((lease.id, lease.key_id))
        });
        granted.collect()
    }

    /// Fills the disk up to a level. The levels are reached in their order, from the highest.
    fn fill_to(&mut self, level: Level) {
        if self.disk.used() > 0 && level < Level::All {
            self.disk.set_capacity(Some(self.disk.used()));
        }
        for _ in 0..400 {
            let refused = match level {
                Level::All => return,
                Level::Grants => is_full(&self.driver.call(Call::Generate {
                    pool: default_pool(),
                    count: 2_000,
                    labels: NewLabels::None,
                })),
                Level::Releases => {
                    let granted = self.grant(100, LONG);
                    let is_refused = granted.len() < 100;
                    let releases = granted.iter().map(|(lease, _)| release(*lease));
                    self.driver.turn(releases.collect()).expect("releases are executed");
                    is_refused
                }
                Level::Full => {
                    let (lease, _) = self.leases.pop().expect("enough leases");
                    is_full(&self.driver.call(quarantine(lease, LONG)))
                }
            };
            if refused {
                return;
            }
        }
        if level == Level::Full {
            return self.fill_to(level);
        }
        panic!("the disk does not reach {level:?}");
    }

    fn lease(&mut self) -> (LeaseId, KeyId) {
        self.leases.pop().expect("enough leases")
    }

    /// Returns one call of each kind, with the lowest level at which it is executed.
    fn table(&mut self) -> Vec<(Level, SentCall)> {
        self.unique += 1;
        let unique = self.unique;
        let pool = default_pool();
        let import = |kind: &str| {
            let value = Secret::new(&format!("value-{kind}-{unique}")).expect("a value");
            Call::Import {
                pool: default_pool(),
                values: vec![value],
                options: ImportOptions::default(),
                labels: NewLabels::None,
            }
        };
        let key = |(_, key): (LeaseId, KeyId)| KeyRef::Id(key);
        let known = key(*self.leases.first().expect("a lease that stays"));
        let KeyRef::Id(id) = known else { unreachable!("an id") };
        let generate =
            || Call::Generate { pool: default_pool(), count: 1, labels: NewLabels::None };
        let once = |kind: &str, call: Call| {
            SentCall::with_key(&format!("{kind}-{unique}"), BodyDigest(1), call)
        };
        let get = |pool: PoolName| Call::GetPool { pool };
        let renewed = self.leases.first().expect("a lease that stays").0;
        let released = self.lease().0;
        let (quarantined, undelivered) = (self.lease().0, self.lease().0);
        let calls = vec![
            (Level::All, generate()),
            (Level::All, import("plain")),
            (
                Level::All,
                Call::PutPoolIf { pool: pool.clone(), patch: Box::default(), exists: true },
            ),
            (
                Level::All,
                Call::SetLabel {
                    pool: pool.clone(),
                    key: known.clone(),
                    label: Some("x".repeat(usize::try_from(unique % 100).expect("small")).into()),
                },
            ),
            (Level::All, Call::PutPool { pool: pool.clone(), patch: Box::default() }),
            (Level::Grants, acquire(0)),
            (Level::Grants, Call::Renew { pool: pool.clone(), lease: renewed, ttl_ms: None }),
            (
                Level::Grants,
                Call::QuarantineKey {
                    pool: pool.clone(),
                    key: known.clone(),
                    options: QuarantineOptions {
                        when_free: true,
                        reason: Some(unique.to_string().into()),
                    },
                },
            ),
            (Level::Grants, Call::EndQuarantine { pool: pool.clone(), key: known.clone() }),
            (Level::Releases, release(released)),
            (Level::Releases, quarantine(quarantined, 0)),
            (Level::Releases, Call::RevokeUndelivered { pool: pool.clone(), lease: undelivered }),
            (Level::Releases, Call::ForceRelease { pool: pool.clone(), key: key(self.lease()) }),
            (Level::Releases, Call::DeleteKey { pool: pool.clone(), key: key(self.lease()) }),
            (Level::Releases, Call::DeletePool { pool: self.pools.pop().expect("pools") }),
            (Level::Full, list_pools()),
            (Level::Full, Call::Subscribe { pool: pool.clone() }),
            (Level::Full, get(pool.clone())),
            (
                Level::Full,
                Call::ListKeys {
                    pool: pool.clone(),
                    state: Some(KeyState::Leased),
                    limit: 1,
                    cursor: None,
                    label: None,
                },
            ),
            (Level::Full, Call::GetKey { pool: pool.clone(), key: known.clone() }),
            (Level::Full, Call::Reveal { pool: pool.clone(), key: known.clone() }),
            (Level::Full, Call::KeepAlive { pool: pool.clone(), key: known }),
            (Level::Full, Call::KeepAliveMany { pool: pool.clone(), keys: vec![id] }),
            (Level::Full, Call::KeepAliveAll { pool }),
        ];
        let mut calls: Vec<_> =
            calls.into_iter().map(|(level, call)| (level, SentCall::from(call))).collect();
        calls.extend([
            (Level::All, once("generate", generate())),
            (Level::All, once("import", import("once"))),
            (Level::Grants, once("acquire", acquire(0))),
        ]);
        calls
    }

    /// Sends each call of the table, in one turn, and checks which are refused.
    fn check_table(&mut self, level: Level) {
        // A renewal must extend its lease.
        self.clock.advance_ms(1);
        let table = self.table();
        let (lowest, calls): (Vec<_>, Vec<_>) = table.into_iter().unzip();
        let kinds: BTreeSet<_> = calls.iter().map(kind).collect();
        assert_eq!(kinds.len(), KINDS, "every kind of call: {kinds:?}");
        let replies = self.driver.turn_with_keys(calls.clone()).expect("the engine continues");
        for ((lowest, call), reply) in lowest.into_iter().zip(calls).zip(replies) {
            assert_eq!(is_full(&reply), level < lowest, "{call:?} at {level:?}: {reply:?}");
            let executed = !matches!(reply, Reply::Refused(_));
            assert!(executed || level < lowest, "{call:?} at {level:?}: {reply:?}");
        }
    }

    fn segments(&self) -> Vec<String> {
        let mut names = self.disk.list().expect("it exists");
        names.retain(|name| name.starts_with("journal"));
        names.sort();
        names
    }

    fn last_segment_is_started(&self) -> bool {
        let names = self.segments();
        let head = self.disk.read_head(names.last().expect("a segment"), 8).expect("it exists");
        head.iter().any(|byte| *byte != 0)
    }

    /// Returns the contents of all journal files.
    fn journal(&self) -> Vec<Vec<u8>> {
        self.segments().iter().map(|name| self.disk.read(name).expect("it exists")).collect()
    }
}

/// Kinds of calls.
const KINDS: usize = 22;

/// Returns the kind of a call: a new one must get a row in the table.
fn kind(sent: &SentCall) -> &'static str {
    if sent.idempotency.is_some() {
        return "idempotent";
    }
    match sent.call {
        Call::ListPools { .. } => "list pools",
        Call::PutPool { .. } => "put pool",
        Call::PutPoolIf { .. } => "put pool on a condition",
        Call::GetPool { .. } => "get pool",
        Call::DeletePool { .. } => "delete pool",
        Call::Generate { .. } => "generate",
        Call::Import { .. } => "import",
        Call::Acquire { .. } => "acquire",
        Call::Renew { .. } => "renew",
        Call::Release { .. } => "release",
        Call::RevokeUndelivered { .. } => "revoke undelivered",
        Call::ForceRelease { .. } => "force-release",
        Call::QuarantineKey { .. } => "quarantine",
        Call::EndQuarantine { .. } => "put back",
        Call::DeleteKey { .. } => "delete key",
        Call::ListKeys { .. } => "list keys",
        Call::GetKey { .. } => "get key",
        Call::SetLabel { .. } => "set label",
        Call::Reveal { .. } => "reveal",
        Call::KeepAlive { .. } | Call::KeepAliveMany { .. } | Call::KeepAliveAll { .. } => {
            "keep alive"
        }
        Call::Subscribe { .. } => "subscribe",
    }
}

#[test]
fn every_call_is_refused_exactly_below_its_level_of_disk_space() {
    let mut world = World::new(9_000);
    for level in [Level::All, Level::Grants, Level::Releases, Level::Full] {
        world.fill_to(level);
        // Two times: a call that is executed does not change the level.
        world.check_table(level);
        world.check_table(level);
    }
    world.disk.set_capacity(None);
    world.clock.advance_ms(1_000);
    world.driver.turn(Vec::new()).expect("there is space");
    world.check_table(Level::All);
}

/// Snapshot records once could be written into the space that is reserved for releases.
#[test]
fn snapshot_records_leave_the_space_that_releases_need() {
    let mut world = World::new(9_000);
    world.fill_to(Level::Grants);
    world.fill_to(Level::Releases);
    // Up to the last segment, of which less than a snapshot is left before the reserve.
    while !world.last_segment_is_started() {
        for _ in 0..8 {
            let (lease, _) = world.lease();
            let reply = world.driver.call(quarantine(lease, LONG));
            assert!(matches!(reply, Reply::Released { .. }), "{reply:?}");
        }
    }
    let leases = world.leases.len() as u64;
    assert!(leases * 64 > BEFORE_RESERVE, "a snapshot of {leases} leases does not fit");
    // The checkpoint makes all earlier segments ready to be deleted. It gets space; the engine does
    // not notice it.
    world.disk.set_capacity(None);
    world.driver.checkpoint().expect("the disk has space");
    world.disk.set_capacity(Some(world.disk.used()));
    let before = world.journal();
    for _ in 0..50 {
        world.driver.call(Call::GetPool { pool: default_pool() });
    }
    assert!(world.journal() == before, "no snapshot record is written");
    let (lease, _) = world.lease();
    let reply = world.driver.call(release(lease));
    assert!(matches!(reply, Reply::Released { .. }), "releases continue: {reply:?}");
}
