//! Backups with several shards: each has some of the pools, and one restore makes one server of them.

use super::support::shared_log::replica_config;
use super::support::sim_disk::SimDisk;
use super::support::{Driver, SeededRandom, WALL_US};
use super::{Original, options, restored_servers_have_the_same_keys, side_pool};
use keypeg_core::{PolicyPatch, PoolName};
use keypeg_engine::backup::{PoolShards, ShardParts, ShardsBackup};
use keypeg_engine::disk::Disk;
use keypeg_engine::{Replica, ReplicaConfig, ShardIdentity, restore_onto};
use keypeg_store::{BackupRefused, Call};
use std::io::Read;
use std::sync::Arc;

/// Returns the backup as that of an installation with two shards, each of which has one pool. A third
/// shard was never served.
fn in_shards(bytes: &[u8]) -> Vec<u8> {
    let identity = ShardIdentity::of_backup(&mut &bytes[..], 3).unwrap();
    let shard_of = |pool: &str| u16::from(pool == side_pool().as_str());
    let pools = PoolShards::read(&mut &bytes[..], &shard_of).unwrap();
    let mut all = Vec::new();
    let mut backup = ShardsBackup::begin(&identity, WALL_US / 1_000, |piece| {
        all.extend(piece);
        Ok::<_, BackupRefused>(())
    })
    .unwrap();
    for shard in 0..3 {
        let mut snapshot = Vec::new();
        pools
            .write(shard, &mut &bytes[..], |piece| {
                snapshot.extend_from_slice(piece);
                Ok::<_, BackupRefused>(())
            })
            .unwrap();
        let mut snapshot = (shard < 2).then_some(&snapshot[..]);
        let parts = ShardParts {
            shard,
            snapshot: snapshot.as_mut().map(|snapshot| snapshot as &mut dyn Read),
            count: 0,
            batches: &mut |_| Ok(()),
        };
        backup.shard(parts).unwrap();
    }
    assert_eq!(backup.finish().unwrap(), 2);
    all
}

#[test]
fn a_server_that_is_restored_from_several_shards_has_the_same_keys_and_lends_none_within_the_hold()
{
    restored_servers_have_the_same_keys(in_shards, 6);
}

#[test]
fn a_backup_of_several_shards_whose_shards_are_mixed_up_or_missing_is_refused() {
    let mut original = Original::new(3);
    for _ in 0..60 {
        original.step(true);
    }
    let (one, _) = original.back_up();
    let whole = in_shards(&one);
    let refused = |bytes: &[u8]| {
        let disk = SimDisk::new();
        let onto: Arc<dyn Disk> = Arc::new(disk.clone());
        let options = options(&original.driver.clock);
        let error =
            restore_onto(&mut &bytes[..], &onto, "dir", options, &mut SeededRandom(5)).unwrap_err();
        assert_eq!(disk.list().unwrap(), [""; 0], "nothing is left");
        error.to_string()
    };
    for len in (16..whole.len()).step_by(97) {
        let error = refused(&whole[..len]);
        assert!(error.contains("incomplete"), "{len}: {error}");
    }
    for offset in (0..whole.len()).step_by(61) {
        let mut damaged = whole.clone();
        damaged[offset] ^= 4;
        refused(&damaged);
    }
    // No shard at all.
    let identity = ShardIdentity::of_backup(&mut &one[..], 3).unwrap();
    let mut empty = Vec::new();
    let send = |piece: Vec<u8>| {
        empty.extend(piece);
        Ok::<_, BackupRefused>(())
    };
    ShardsBackup::begin(&identity, 1, send).unwrap().finish().unwrap();
    assert!(refused(&empty).contains("the backup is not consistent"));
}

/// The log can lose batches between the look at its end and the reading.
#[test]
fn a_backup_of_a_shard_whose_log_has_fewer_batches_than_before_fails() {
    let mut original = Original::new(5);
    let (bytes, _) = original.back_up();
    let identity = ShardIdentity::of_backup(&mut &bytes[..], 1).unwrap();
    let send = |_: Vec<u8>| Ok::<_, BackupRefused>(());
    for (count, is_complete) in [(0, true), (1, false)] {
        let mut backup = ShardsBackup::begin(&identity, 1, send).unwrap();
        let mut snapshot = &bytes[..];
        let parts =
            ShardParts { shard: 0, snapshot: Some(&mut snapshot), count, batches: &mut |_| Ok(()) };
        let written = backup.shard(parts);
        assert_eq!(written.is_ok(), is_complete, "{count}: {written:?}");
    }
}

/// An installation that began at the time of the restore refused the first snapshots of its shards:
/// a backup can have reserved fewer tokens than microseconds have passed since 1970.
#[test]
fn an_installation_of_a_backup_continues_its_tokens_whatever_the_time_is() {
    let mut original = Original::new(4);
    original.driver.generate(1);
    let (_, _, token) = original.driver.acquire("a").unwrap();
    assert!(token < WALL_US + 100_000_000, "the original began long before the restore");
    let (bytes, _) = original.back_up();
    let identity = ShardIdentity::of_backup(&mut &bytes[..], 2).unwrap();
    let pools = PoolShards::read(&mut &bytes[..], &|_| 1).unwrap();
    for shard in 0..2 {
        let mut snapshot = Vec::new();
        pools
            .write(shard, &mut &bytes[..], |piece| {
                snapshot.extend_from_slice(piece);
                Ok::<_, BackupRefused>(())
            })
            .unwrap();
        let config = ReplicaConfig { shard, ..replica_config() };
        let (disk, mut random) = (Arc::new(SimDisk::new()), SeededRandom(1));
        let replica =
            Replica::from_snapshot(disk, &identity, &mut &snapshot[..], &config, &mut random);
        let next = replica.unwrap().pools().counters().tokens_reserved;
        assert!(next > token && next < token + (1 << 30), "{next} after {token}");
    }
}

/// Its number would give a new pool the retired ids and values of the deleted one.
#[test]
fn a_shard_of_a_backup_gives_no_pool_the_number_of_a_deleted_one() {
    let mut original = Original::new(6);
    let driver = &mut original.driver;
    let next_pool = |driver: &Driver| driver.engine.pools().counters().next_pool;
    let pool = PoolName::parse("deleted").unwrap();
    let patch = Box::new(PolicyPatch::default());
    driver.call(Call::PutPool { pool: pool.clone(), patch });
    driver.call(Call::DeletePool { pool });
    driver.checkpoint().unwrap();
    let next = next_pool(driver);
    let (bytes, _) = original.back_up();
    assert_eq!(next_pool(&original.driver), next, "the calls create no pool");
    let identity = ShardIdentity::of_backup(&mut &bytes[..], 2).unwrap();
    let pools = PoolShards::read(&mut &bytes[..], &|_| 1).unwrap();
    let mut snapshot = Vec::new();
    pools
        .write(0, &mut &bytes[..], |piece| {
            snapshot.extend_from_slice(piece);
            Ok::<_, BackupRefused>(())
        })
        .unwrap();
    let config = ReplicaConfig { shard: 0, ..replica_config() };
    let (disk, mut random) = (Arc::new(SimDisk::new()), SeededRandom(1));
    let replica = Replica::from_snapshot(disk, &identity, &mut &snapshot[..], &config, &mut random);
    assert_eq!(replica.unwrap().pools().counters().next_pool, next);
}
