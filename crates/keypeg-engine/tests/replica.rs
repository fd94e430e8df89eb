//! A shard that several servers share: who may go on, what a new owner knows, and what a reply is
//! worth.

#![expect(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test may panic")]

mod support;

use keypeg_core::{KeyId, KeyRef, NewLabels, Policy, PolicyPatch, Refusal, ReleaseOptions, Secret};
use keypeg_engine::state::CallId;
use keypeg_engine::{LogBatch, ReplicaConfig, ReplicaError, ShardIdentity};
use keypeg_store::{Call, Principal, Reply, RequestError, StartReport};
use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use support::shared_log::{Fate, Follower, Owner, SharedLog, replica_config, take_snapshot};
use support::sim_disk::SimDisk;
use support::{Driver, ManualClock, SeededRandom, WALL_US, default_pool, list_pools};

const TTL_MS: u64 = 60_000;
/// How often a frame carries the clock while a lease runs.
const CLOCK_FRAME_MS: u64 = 5_000;

/// What all servers of a shard share.
struct Shard {
    log: SharedLog,
    identity: ShardIdentity,
}

impl Shard {
    fn new() -> Self {
        let identity = ShardIdentity::create(1, None, WALL_US, &mut SeededRandom(5));
        Self { log: SharedLog::default(), identity }
    }

    /// Returns a replica that has read the whole log.
    fn follower(&self) -> Follower {
        let disk = Arc::new(SimDisk::new());
        let begun = Follower::begin(&self.log, &self.identity, disk, &replica_config());
        let mut follower = begun.unwrap();
        follower.follow(&self.log).unwrap();
        follower
    }

    /// Makes a server with a clock of its own machine the owner.
    fn take_over(&self) -> Driver {
        self.take_over_with(self.follower(), &ManualClock::new(), 1).unwrap()
    }

    fn take_over_with(
        &self,
        follower: Follower,
        clock: &ManualClock,
        seed: u64,
    ) -> Result<Driver, ReplicaError> {
        let owner = follower.take_over(&self.log, clock, seed, Policy::default())?;
        let Owner { engine, checkpointer } = owner;
        let (clock, recovery) = (clock.clone(), StartReport::default());
        Ok(Driver { engine, recovery, clock, checkpointer, by: Principal::Anyone })
    }

    /// Takes a snapshot of the shard and publishes it.
    fn snapshot(&self, driver: &mut Driver) {
        let Driver { engine, checkpointer, .. } = driver;
        let (bytes, batches) =
            take_snapshot(engine, checkpointer.as_mut().unwrap(), &self.log, |engine| {
                engine.turn(&mut VecDeque::new(), &mut Vec::new()).unwrap();
            });
        self.log.put_snapshot(bytes, batches);
    }
}

fn idle_turn(driver: &mut Driver) {
    driver.engine.turn(&mut VecDeque::new(), &mut Vec::new()).unwrap();
}

fn get_pool() -> Call {
    Call::GetPool { pool: default_pool() }
}

fn acquire() -> Call {
    Call::Acquire { pool: default_pool(), ttl_ms: Some(TTL_MS), holder: None, wait_ms: 0 }
}

fn leased(driver: &mut Driver) -> u64 {
    match driver.call(get_pool()) {
        Reply::Pool { pool, .. } => pool.counts.leased,
        other => panic!("{other:?}"),
    }
}

/// Returns what a client sees of every key, and its value.
fn keys(driver: &mut Driver) -> BTreeMap<KeyId, String> {
    let ids = driver.engine.pools().key_ids(&default_pool());
    let mut seen = BTreeMap::new();
    for id in ids {
        let key = KeyRef::Id(id);
        let value = driver.call(Call::Reveal { pool: default_pool(), key: key.clone() });
        let Reply::Key(view) = driver.call(Call::GetKey { pool: default_pool(), key }) else {
            panic!("the key exists")
        };
        let token = view.lease.as_ref().map(|lease| lease.token);
        let line = format!("{value:?} {:?} {token:?} {:?}", view.state, view.reason);
        seen.insert(id, line);
    }
    seen
}

#[test]
fn a_paused_owner_answers_nothing_after_a_takeover() {
    for call in [
        get_pool(),
        list_pools(),
        acquire(),
        Call::Generate { pool: default_pool(), count: 1, labels: NewLabels::None },
    ] {
        let shard = Shard::new();
        let mut paused = shard.take_over();
        paused.generate(1);
        let (_, key, token) = paused.acquire("a").unwrap();
        let mut owner = shard.take_over();
        let batches = shard.log.len();
        assert!(paused.turn(vec![call.clone()]).is_err(), "{call:?}");
        assert_eq!(shard.log.len(), batches, "nothing of the paused owner stands");
        assert_eq!(owner.acquire("b"), None, "the key is leased");
        let released = Call::ForceRelease { pool: default_pool(), key: KeyRef::Id(key) };
        assert!(matches!(owner.call(released), Reply::KeyReleased { released: true, .. }));
        let (_, again, next) = owner.acquire("b").unwrap();
        assert_eq!(again, key);
        assert!(next > token, "{next} after {token}");
    }
}

#[test]
fn one_of_two_servers_takes_the_shard_over() {
    let shard = Shard::new();
    shard.take_over().generate(1);
    let (first, second) = (shard.follower(), shard.follower());
    let mut owner = shard.take_over_with(first, &ManualClock::new(), 1).unwrap();
    let refused = shard.take_over_with(second, &ManualClock::new(), 2);
    assert!(refused.is_err(), "the log does not end where this server has read to");
    assert!(owner.acquire("a").is_some());
}

/// A refusal and a read prove as much as a grant: each stands behind a batch of its own turn.
#[test]
fn no_answer_leaves_without_a_batch_of_its_turn() {
    let shard = Shard::new();
    let mut owner = shard.take_over();
    for call in [get_pool(), acquire(), list_pools()] {
        let before = shard.log.len();
        owner.call(call.clone());
        assert_eq!(shard.log.len(), before + 1, "{call:?}");
    }
    let before = shard.log.len();
    idle_turn(&mut owner);
    assert_eq!(shard.log.len(), before, "a turn without an answer");
}

#[test]
fn a_grant_whose_append_failed_is_not_answered_and_its_token_never_returns() {
    for fate in [Fate::Lost, Fate::Unanswered] {
        let shard = Shard::new();
        let mut owner = shard.take_over();
        owner.generate(2);
        let (_, _, token) = owner.acquire("a").unwrap();
        shard.log.set_fate(fate);
        assert!(owner.turn(vec![acquire()]).is_err(), "{fate:?}");
        let mut next = shard.take_over();
        let expected = if fate == Fate::Lost { 1 } else { 2 };
        assert_eq!(leased(&mut next), expected, "{fate:?}: as the log has it");
        next.generate(1);
        let (_, _, after) = next.acquire("b").unwrap();
        assert!(after > token, "{fate:?}: {after} after {token}");
    }
}

/// A new owner continues lease time where the log stands, on a machine whose clock is another.
#[test]
fn a_lease_ends_after_a_takeover_late_by_at_most_a_clock_frame_and_never_early() {
    let shard = Shard::new();
    let mut owner = shard.take_over();
    owner.generate(1);
    owner.acquire("a").unwrap();
    for _ in 0..13 {
        owner.clock.advance_ms(1_000);
        idle_turn(&mut owner);
    }
    let clock = ManualClock::new();
    clock.advance_ms(987_654_321);
    clock.reboot();
    let mut next = shard.take_over_with(shard.follower(), &clock, 2).unwrap();
    let left_ms = TTL_MS - 13_000;
    clock.advance_ms(left_ms - 1);
    assert_eq!(next.acquire("b"), None, "a millisecond before its end");
    clock.advance_ms(CLOCK_FRAME_MS + 1);
    assert!(next.acquire("b").is_some(), "late by a clock frame");
}

#[test]
fn no_clock_frame_is_written_while_no_lease_runs() {
    let shard = Shard::new();
    let mut owner = shard.take_over();
    owner.generate(1);
    let before = shard.log.len();
    for _ in 0..100 {
        owner.clock.advance_ms(1_000);
        idle_turn(&mut owner);
    }
    assert_eq!(shard.log.len(), before);
}

/// Regression: the history reads the pools of each shard once a second, so a server without
/// requests appended a frame to each of its shards every second.
#[test]
fn a_read_of_the_server_itself_appends_no_frame_and_one_of_a_client_does() {
    let shard = Shard::new();
    let mut owner = shard.take_over();
    owner.generate(1);
    owner.clock.advance_ms(1_000);
    idle_turn(&mut owner);
    let mut frames_of = |by, call: Call| {
        let before = shard.log.len();
        owner.by = by;
        for _ in 0..10 {
            owner.clock.advance_ms(1_000);
            let reply = owner.call(call.clone());
            assert!(!matches!(reply, Reply::Refused(_)), "{reply:?}");
        }
        shard.log.len() - before
    };
    let show = Call::GetPool { pool: default_pool() };
    for call in [list_pools(), show] {
        assert_eq!(frames_of(Principal::Server, call.clone()), 0, "{call:?}");
        assert_eq!(frames_of(Principal::Anyone, call.clone()), 10, "{call:?}");
    }
    // What the server changes is in the log.
    let pool = default_pool();
    let generate = Call::Generate { pool, count: 1, labels: NewLabels::None };
    assert_eq!(frames_of(Principal::Server, generate), 10);
}

#[test]
fn every_key_has_its_whole_keep_alive_time_after_a_takeover() {
    let shard = Shard::new();
    let mut owner = shard.take_over();
    let patch = PolicyPatch { keepalive_ttl_ms: Some(Some(10_000)), ..PolicyPatch::default() };
    owner.call(Call::PutPool { pool: default_pool(), patch: Box::new(patch) });
    owner.generate(1);
    for _ in 0..9 {
        owner.clock.advance_ms(1_000);
        idle_turn(&mut owner);
    }
    let mut next = shard.take_over();
    for _ in 0..9 {
        next.clock.advance_ms(1_000);
        idle_turn(&mut next);
    }
    assert_eq!(next.engine.pools().key_count(), 1);
    next.clock.advance_ms(1_000);
    idle_turn(&mut next);
    assert_eq!(next.engine.pools().key_count(), 0);
}

#[test]
fn a_batch_that_contradicts_the_log_is_refused() {
    let shard = Shard::new();
    let mut owner = shard.take_over();
    owner.generate(1);
    let mut follower = shard.follower();
    let (lease_us, records) = shard.log.batch(shard.log.len() - 1).unwrap();
    let twice = follower.replica.apply(LogBatch { lease_us, records: &records });
    assert!(matches!(twice, Err(ReplicaError::Contradiction { number, .. })
        if number == follower.replica.applied() + 1));
    let mut follower = shard.follower();
    let cut = follower.replica.apply(LogBatch { lease_us, records: &records[..records.len() - 1] });
    assert!(matches!(cut, Err(ReplicaError::Contradiction { .. })), "{cut:?}");
}

#[test]
fn a_snapshot_of_another_installation_and_a_used_directory_are_refused() {
    let shard = Shard::new();
    let mut owner = shard.take_over();
    shard.snapshot(&mut owner);
    let other = ShardIdentity::create(1, None, WALL_US, &mut SeededRandom(6));
    let disk = Arc::new(SimDisk::new());
    let begin = |identity| Follower::begin(&shard.log, identity, disk.clone(), &replica_config());
    assert!(begin(&other).is_err_and(|error| error.to_string().contains("another installation")));
    assert!(begin(&shard.identity).is_err_and(|error| error.to_string().contains("not empty")));
}

#[test]
fn an_identity_reads_back_and_other_bytes_are_refused() {
    let identity = ShardIdentity::create(16, None, WALL_US, &mut SeededRandom(5));
    let bytes = identity.bytes();
    assert_eq!(ShardIdentity::read(&bytes).unwrap(), identity);
    for len in 0..bytes.len() - 1 {
        assert!(ShardIdentity::read(&bytes[..len]).is_err(), "{len} bytes");
    }
    for at in [0, 8, 10, 18, 30] {
        let mut changed = bytes.clone();
        changed[at] ^= 0x80;
        assert!(ShardIdentity::read(&changed).is_err(), "byte {at}");
    }
}

/// The clock of a log never goes back: a batch whose clock does is not of this log.
#[test]
fn a_batch_with_an_earlier_clock_is_refused() {
    let shard = Shard::new();
    let mut owner = shard.take_over();
    owner.clock.advance_ms(5);
    owner.generate(1);
    let mut follower = shard.follower();
    let (lease_us, _) = shard.log.batch(shard.log.len() - 1).unwrap();
    assert!(follower.replica.apply(LogBatch { lease_us, records: &[] }).is_ok());
    assert!(follower.replica.apply(LogBatch { lease_us: lease_us - 1, records: &[] }).is_err());
}

/// All shards of an installation share the hash key of ids, so their pools need different numbers.
#[test]
fn the_same_value_has_different_ids_in_the_pools_of_two_shards() {
    let identity = ShardIdentity::create(2, None, WALL_US, &mut SeededRandom(5));
    let ids = [0, 1].map(|shard| {
        let config = ReplicaConfig { shard, ..replica_config() };
        let (log, disk) = (SharedLog::default(), Arc::new(SimDisk::new()));
        let follower = Follower::begin(&log, &identity, disk, &config).unwrap();
        let shard = Shard { log, identity: identity.clone() };
        let mut owner = shard.take_over_with(follower, &ManualClock::new(), 1).unwrap();
        let values = vec![Secret::new("the same value").unwrap()];
        owner.call(Call::Import {
            pool: default_pool(),
            values,
            options: keypeg_core::ImportOptions::default(),
            labels: NewLabels::None,
        });
        let (_, key, token) = owner.acquire("a").unwrap();
        assert!(token >= WALL_US, "tokens begin at the time of the installation: {token}");
        key
    });
    assert_ne!(ids[0], ids[1]);
}

/// A server has one memory for all of its shards, those that it follows too.
#[test]
fn the_shards_of_a_server_share_its_memory() {
    let identity = ShardIdentity::create(2, None, WALL_US, &mut SeededRandom(5));
    let metrics = Arc::<keypeg_store::StoreMetrics>::default();
    let bytes = || metrics.pool_bytes.load(std::sync::atomic::Ordering::Relaxed);
    let shards = [0, 1].map(|number| {
        let config = ReplicaConfig {
            shard: number,
            memory: 200_000,
            metrics: Arc::clone(&metrics),
            ..replica_config()
        };
        let shard = Shard { log: SharedLog::default(), identity: identity.clone() };
        (shard, config)
    });
    let begin = |(shard, config): &(Shard, ReplicaConfig)| {
        let disk = Arc::new(SimDisk::new());
        let mut follower = Follower::begin(&shard.log, &shard.identity, disk, config).unwrap();
        follower.follow(&shard.log).unwrap();
        follower.replica.count_bytes();
        follower
    };
    let own = |of: &(Shard, ReplicaConfig)| {
        of.0.take_over_with(begin(of), &ManualClock::new(), 1).unwrap()
    };
    let mut first = own(&shards[0]);
    let generate = || Call::Generate { pool: default_pool(), count: 100, labels: NewLabels::None };
    // A step of growth of one shard may not fit where one of another does.
    let generate_all = |owner: &mut Driver| {
        let full = (0..1_000).take_while(|_| matches!(owner.call(generate()), Reply::Keys(_)));
        full.count()
    };
    let full = generate_all(&mut first);
    assert!((6..1_000).contains(&full) && bytes() > 100_000, "{full} times, {} bytes", bytes());
    let mut second = own(&shards[1]);
    let beside = generate_all(&mut second);
    assert!(beside < full / 4, "{beside} times beside {full}");
    let is_full = |reply: &Reply| {
        let Reply::Refused(RequestError::Refused(why)) = reply else { return false };
        matches!(why, Refusal::MemoryFull { .. } | Refusal::KeyMemoryFull { .. })
    };
    let refused = second.call(generate());
    assert!(is_full(&refused), "{refused:?}");
    drop(first);
    assert!(matches!(second.call(generate()), Reply::Keys(_)));
    // A replica takes as much as an engine.
    let follower = begin(&shards[0]);
    let refused = second.call(generate());
    assert!(is_full(&refused), "{refused:?}");
    drop((follower, second));
    assert_eq!(bytes(), 0);
}

/// The scratch files are deleted as soon as they are checkpointed, but not what a snapshot needs.
#[test]
fn a_snapshot_is_complete_although_scratch_files_are_deleted_meanwhile() {
    let shard = Shard::new();
    let mut owner = shard.take_over();
    let count = 1_000;
    owner.generate(count);
    for _ in 0..count {
        owner.acquire("a").unwrap();
    }
    let mut values = 0;
    let Driver { engine, checkpointer, .. } = &mut owner;
    let checkpointer = checkpointer.as_mut().unwrap();
    let (bytes, batches) = take_snapshot(engine, checkpointer, &shard.log, |engine| {
        values += 1;
        let long = Secret::new(&format!("{values}-{}", "x".repeat(3_000))).unwrap();
        let call = Call::Import {
            pool: default_pool(),
            values: vec![long],
            options: keypeg_core::ImportOptions::default(),
            labels: NewLabels::None,
        };
        let request = keypeg_store::Request::new(Principal::Anyone, call);
        let mut requests = VecDeque::from([(CallId { lane: 0, slot: 0 }, request.into())]);
        engine.turn(&mut requests, &mut Vec::new()).unwrap();
    });
    shard.log.put_snapshot(bytes, batches);
    let mut next = shard.take_over();
    assert_eq!(leased(&mut next), u64::from(count));
}

/// The next owner knows every key and every lease, whether it followed the log or began at a
/// snapshot.
#[test]
fn a_new_owner_knows_what_the_owner_before_it_knew() {
    let shard = Shard::new();
    let mut owner = shard.take_over();
    owner.generate(30);
    let mut leases = Vec::new();
    for round in 0..60 {
        let granted = owner.acquire("a");
        leases.extend(granted.map(|(lease, _, _)| lease));
        if round % 3 == 0 && !leases.is_empty() {
            let options = ReleaseOptions {
                quarantine: round % 9 == 0,
                rest_ms: Some(round % 2 * 100_000),
                reason: None,
            };
            let lease = leases.remove(0);
            owner.call(Call::Release { pool: default_pool(), lease, options });
        }
        owner.clock.advance_ms(10);
        if round == 30 {
            owner.checkpoint().unwrap();
            shard.snapshot(&mut owner);
        }
    }
    let expected = keys(&mut owner);
    assert_eq!(expected.len(), 30);
    let from_snapshot = shard.follower();
    assert!(from_snapshot.replica.applied() < shard.log.len() as u64, "it begins at the snapshot");
    let mut next = shard.take_over_with(from_snapshot, &ManualClock::new(), 1).unwrap();
    assert_eq!(keys(&mut next), expected);
}
