//! Rows of deleted pools: every one is deleted, in parts, whatever table it is in.

use super::*;
use crate::disk::Directory;
use crate::seal::ValueSeal;
use keypeg_core::{Fact, IdHashKey, PackedValues, Policy, RecordedLabels};
use keypeg_testkit::TempDir;

const POOL: PoolId = PoolId(7);
const KEPT: PoolId = PoolId(8);

fn open(dir: &TempDir) -> KeySetDb {
    let disk = Directory::open(dir.path()).expect("a directory");
    let (ids, seal) = (IdHashKey::new([1; 32]), ValueSeal::default());
    KeySetDb::open(&disk, &Installation { id: 1, ids, seal }, 1 << 20).expect("opens")
}

/// Commits facts as one checkpoint.
fn commit(keyset: &KeySetDb, facts: &[Fact<'_>]) -> bool {
    let KeySetState { mut pools, checkpointed, counters } = keyset.state().expect("reads");
    let mut delta = KeySetDelta::after(checkpointed, counters);
    for fact in facts {
        delta.apply(fact, &keyset.installation, &mut pools).expect("opens");
    }
    keyset.commit(&delta).expect("commits")
}

fn created(pool: PoolId, name: &str) -> Fact<'_> {
    Fact::PoolCreated { pool, name, policy: Policy::default() }
}

/// Returns packed values, all different.
fn values(count: usize) -> Vec<u8> {
    let each = (0..count).map(|number| format!("{number:08}"));
    each.flat_map(|value| [&8_u16.to_le_bytes()[..], value.as_bytes()].concat()).collect()
}

fn imported(pool: PoolId, first: u64, packed: &[u8]) -> Fact<'_> {
    let values = PackedValues::parse(packed).expect("whole values");
    Fact::KeysCreated {
        pool,
        first: KeyNumber(first),
        at_ms: 1,
        imported: true,
        keepalive: true,
        labels: RecordedLabels::None,
        values,
    }
}

/// Returns the rows of a pool in each table: keys, quarantined keys, retired values, counts, pools.
fn rows(keyset: &KeySetDb, pool: PoolId) -> [usize; 5] {
    let transaction = keyset.database().begin_read().expect("reads");
    let keys = transaction.open_table(KEYS).expect("reads");
    let quarantined = transaction.open_table(QUARANTINED).expect("reads");
    let retired = transaction.open_table(RETIRED).expect("reads");
    let of_pool = (pool.0, 0)..=(pool.0, u128::MAX);
    let counts = transaction.open_table(COUNTS).expect("reads");
    let pools = transaction.open_table(POOLS).expect("reads");
    [
        keys.range(rows_of(pool)).expect("reads").count(),
        quarantined.range(rows_of(pool)).expect("reads").count(),
        retired.range(of_pool).expect("reads").count(),
        usize::from(counts.get(pool.0).expect("reads").is_some()),
        usize::from(pools.get(pool.0).expect("reads").is_some()),
    ]
}

/// As many rows as one transaction deletes, with a quarantined key at both ends and retired values
/// behind them.
#[test]
fn a_deleted_pool_leaves_no_row_in_any_table() {
    let dir = TempDir::new();
    let keyset = open(&dir);
    let packed = values(TRIM_ROWS + 2);
    let last = KeyNumber(TRIM_ROWS as u64 - 1);
    let quarantine = |pool, key| Fact::Quarantined { pool, key, reason: Some("429") };
    commit(&keyset, &[created(POOL, "a"), created(KEPT, "b"), imported(POOL, 0, &packed)]);
    let kept = values(2);
    commit(
        &keyset,
        &[
            quarantine(POOL, KeyNumber(0)),
            quarantine(POOL, last),
            Fact::KeyDeleted { pool: POOL, key: KeyNumber(last.0 + 1) },
            Fact::KeyPurged { pool: POOL, key: KeyNumber(last.0 + 2) },
            imported(KEPT, last.0 + 3, &kept),
            quarantine(KEPT, KeyNumber(last.0 + 3)),
            Fact::KeyDeleted { pool: KEPT, key: KeyNumber(last.0 + 4) },
        ],
    );
    assert_eq!(rows(&keyset, POOL), [TRIM_ROWS, 2, 2, 1, 1]);
    // A key that is created, quarantined and gone in the checkpoint of the pool's deletion.
    let late = &values(1)[..];
    let mut parts = 1;
    let mut left = commit(
        &keyset,
        &[
            imported(POOL, last.0 + 5, late),
            quarantine(POOL, KeyNumber(last.0 + 5)),
            Fact::PoolDeleted { pool: POOL },
        ],
    );
    while left {
        left = commit(&keyset, &[]);
        parts += 1;
    }
    assert_eq!(parts, 2, "the keys, then the rest");
    assert_eq!(rows(&keyset, POOL), [0; 5]);
    assert_eq!(rows(&keyset, KEPT), [1, 1, 1, 1, 1], "another pool keeps its rows");
}

/// A key that is created, quarantined and removed between two checkpoints leaves only its retired
/// value, also where a later checkpoint would meet its number again.
#[test]
fn a_key_that_lives_between_two_checkpoints_leaves_only_its_retired_value() {
    let dir = TempDir::new();
    let keyset = open(&dir);
    let packed = values(2);
    let quarantine = |key| Fact::Quarantined { pool: POOL, key: KeyNumber(key), reason: None };
    commit(
        &keyset,
        &[
            created(POOL, "a"),
            imported(POOL, 0, &packed),
            quarantine(0),
            quarantine(1),
            Fact::KeyDeleted { pool: POOL, key: KeyNumber(0) },
        ],
    );
    assert_eq!(rows(&keyset, POOL), [1, 1, 1, 1, 1]);
    commit(&keyset, &[quarantine(1), Fact::KeyPurged { pool: POOL, key: KeyNumber(1) }]);
    assert_eq!(rows(&keyset, POOL), [0, 0, 2, 1, 1]);
}

/// The database compares no page with its checksum when it reads one after the start, so a lookup
/// compares the row itself: a value that is wrongly not retired would be granted again.
#[test]
fn a_lookup_compares_the_row_of_a_retired_value_with_its_crc() {
    let dir = TempDir::new();
    let keyset = open(&dir);
    commit(&keyset, &[created(POOL, "pool")]);
    let id = KeyId(77);
    let write = |crc: u32| {
        let transaction = keyset.database().begin_write().expect("writes");
        transaction
            .open_table(RETIRED)
            .expect("opens")
            .insert((POOL.0, id.0), crc)
            .expect("writes");
        transaction.commit().expect("commits");
    };
    write(retired_crc((POOL.0, id.0)));
    assert_eq!(*keyset.retired(POOL, &[KeyId(76), id]).expect("reads"), [1]);
    write(retired_crc((POOL.0, id.0)) ^ 1);
    let error = keyset.retired(POOL, &[id]).expect_err("a damaged row").to_string();
    assert!(error.contains("does not match its CRC"), "{error}");
}

#[test]
fn a_copy_without_a_row_opens_as_a_new_key_set() {
    let dir = TempDir::new();
    let disk = Directory::open(dir.path()).expect("a directory");
    let copy = KeySetCopy::create(&disk).expect("creates");
    copy.finish().expect("finishes");
    drop(disk);
    let state = open(&dir).state().expect("reads");
    assert_eq!((state.checkpointed, state.pools.len()), (Lsn(0), 0));
}
