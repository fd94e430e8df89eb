//! The rows of the key set, each with its own CRC, because redb does not check the pages it reads.
//!
//! This file encodes and parses rows; it does not know the tables or transactions.

use super::error::{KeySetError, damaged};
use crate::record::{self, RecordError};
use keypeg_core::{Fact, IdHashKey, Policy, PoolId, StoredKey, must_remember};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// The flag of an imported key.
const IMPORTED: u8 = 1;
/// The flag of a key that is never purged.
const NO_KEEPALIVE: u8 = 2;
const CRC_LEN: usize = 4;
/// Bytes of the row of a key before its value: CRC, flags (1), creation time (6).
const KEY_HEAD: usize = CRC_LEN + 1 + 6;

/// A key by pool and key number: a pair as redb stores it.
pub(super) type RowKey = (u32, u64);

/// A pool as the database stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PoolRow {
    pub(crate) name: String,
    pub(crate) policy: Policy,
}

/// Pools by id.
pub(crate) type PoolRows = BTreeMap<PoolId, PoolRow>;

/// Returns the range of the rows of a pool.
pub(super) fn rows_of(pool: PoolId) -> RangeInclusive<RowKey> {
    (pool.0, 0)..=(pool.0, u64::MAX)
}

/// A key to store.
#[derive(Clone, Copy)]
pub(super) struct CreatedKey<'a> {
    /// Wall time in milliseconds; the row keeps 48 bits of it.
    pub(super) created_at_ms: u64,
    pub(super) imported: bool,
    pub(super) keepalive: bool,
    pub(super) value: &'a [u8],
}

pub(super) fn write_quarantined(row_key: RowKey, reason: &str) -> Vec<u8> {
    [&key_crc(row_key, reason.as_bytes()).to_le_bytes(), reason.as_bytes()].concat()
}

pub(super) fn read_quarantined(row_key: RowKey, row: &[u8]) -> Result<&str, KeySetError> {
    let mismatch = || damaged("the row of a quarantined key does not match its CRC");
    let (crc, reason) = row.split_first_chunk::<CRC_LEN>().ok_or_else(mismatch)?;
    if u32::from_le_bytes(*crc) != key_crc(row_key, reason) {
        return Err(mismatch());
    }
    std::str::from_utf8(reason).map_err(|_| mismatch())
}

pub(super) fn write_key(row_key: RowKey, key: CreatedKey<'_>) -> Vec<u8> {
    let CreatedKey { created_at_ms, imported, keepalive, value } = key;
    let flags = if imported { IMPORTED } else { 0 } | if keepalive { 0 } else { NO_KEEPALIVE };
    let [m0, m1, m2, m3, m4, m5, ..] = created_at_ms.to_le_bytes();
    let mut row = Vec::with_capacity(KEY_HEAD + value.len());
    row.extend_from_slice(&[0; CRC_LEN]);
    row.extend_from_slice(&[flags, m0, m1, m2, m3, m4, m5]);
    row.extend_from_slice(value);
    let crc = key_crc(row_key, &row[CRC_LEN..]);
    row[..CRC_LEN].copy_from_slice(&crc.to_le_bytes());
    row
}

/// Computes the CRC of a row in a table by key number; it covers the key of the row too.
fn key_crc((pool, key): RowKey, rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&pool.to_le_bytes());
    hasher.update(&key.to_le_bytes());
    hasher.update(rest);
    hasher.finalize()
}

pub(super) fn read_key<'a>(
    row_key: RowKey,
    row: &'a [u8],
    ids: &IdHashKey,
) -> Result<StoredKey<'a>, KeySetError> {
    let truncated = || damaged("the row of a key is truncated");
    let (crc, rest) = row.split_first_chunk::<CRC_LEN>().ok_or_else(truncated)?;
    if u32::from_le_bytes(*crc) != key_crc(row_key, rest) {
        return Err(damaged("the row of a key does not match its CRC"));
    }
    let [flags, m0, m1, m2, m3, m4, m5, value @ ..] = rest else {
        return Err(truncated());
    };
    if flags & !(IMPORTED | NO_KEEPALIVE) != 0 {
        return Err(damaged(
            "the row of a key has an unknown flag: a newer version of keypeg may have written it",
        ));
    }
    let (pool, _) = row_key;
    Ok(StoredKey {
        value,
        id: ids.key_id(PoolId(pool), value),
        created_at_ms: u64::from_le_bytes([*m0, *m1, *m2, *m3, *m4, *m5, 0, 0]),
        imported: flags & IMPORTED != 0,
        keepalive: flags & NO_KEEPALIVE == 0,
    })
}

pub(super) fn retired_crc((pool, id): (u32, u128)) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&pool.to_le_bytes());
    hasher.update(&id.to_le_bytes());
    hasher.finalize()
}

/// Returns the row key under which the value of a removed key is retired; `None` for a value that
/// its pool recognises without a row.
pub(super) fn retired_key(pool: u32, row: &[u8], ids: &IdHashKey) -> Option<(u32, u128)> {
    let (head, value) = row.split_at_checked(KEY_HEAD)?;
    let imported = head[CRC_LEN] & IMPORTED != 0;
    must_remember(ids, PoolId(pool), value, imported)
        .then(|| (pool, ids.key_id(PoolId(pool), value).0))
}

pub(super) fn write_pool(pool: PoolId, row: &PoolRow) -> Vec<u8> {
    let PoolRow { name, policy } = row;
    let record = record::encode(&Fact::PoolCreated { pool, name, policy: policy.clone() });
    [&crc32fast::hash(&record).to_le_bytes()[..], &record].concat()
}

pub(super) fn read_pool(id: PoolId, row: &[u8]) -> Result<PoolRow, KeySetError> {
    let truncated = || damaged("the row of a pool is truncated");
    let (crc, record) = row.split_first_chunk::<CRC_LEN>().ok_or_else(truncated)?;
    if u32::from_le_bytes(*crc) != crc32fast::hash(record) {
        return Err(damaged("the row of a pool does not match its CRC"));
    }
    match record::read(record, 0) {
        Ok((Fact::PoolCreated { pool, name, policy }, [])) if pool == id => {
            Ok(PoolRow { name: name.to_owned(), policy })
        }
        Ok(_) => Err(damaged("the row of a pool contains another record")),
        Err(RecordError(why)) => Err(damaged(why)),
    }
}

/// Computes the CRC over the numbers of the state.
pub(super) fn state_crc(numbers: [u64; 4]) -> u64 {
    let mut hasher = crc32fast::Hasher::new();
    for number in numbers {
        hasher.update(&number.to_le_bytes());
    }
    u64::from(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_keeps_its_flags_and_an_unknown_one_is_refused() {
        let (ids, row_key) = (IdHashKey::new([7; 32]), (3, 4));
        for (imported, keepalive) in [(false, true), (true, true), (true, false)] {
            let key = CreatedKey { created_at_ms: 5, imported, keepalive, value: b"v" };
            let mut row = write_key(row_key, key);
            let read = read_key(row_key, &row, &ids).expect("whole");
            assert_eq!(
                (read.imported, read.keepalive, read.value),
                (imported, keepalive, &b"v"[..])
            );
            row[CRC_LEN] |= 4;
            let crc = key_crc(row_key, &row[CRC_LEN..]);
            row[..CRC_LEN].copy_from_slice(&crc.to_le_bytes());
            let error = read_key(row_key, &row, &ids).err().expect("unknown").to_string();
            assert!(error.contains("newer version"), "{error}");
        }
    }

    #[test]
    fn only_a_value_that_its_pool_does_not_recognise_needs_a_row() {
        let ids = IdHashKey::new([7; 32]);
        let row = |imported, value| {
            write_key((3, 4), CreatedKey { created_at_ms: 5, imported, keepalive: true, value })
        };
        // The tag of pool 3, as in the tests of the pools.
        let generated = b"ci_0123456789abcdefWT7y";
        assert_eq!(retired_key(3, &row(false, generated), &ids), None);
        for (pool, imported, value) in
            [(3, true, &generated[..]), (4, false, generated), (3, false, b"0123456789abcdef0123")]
        {
            let id = ids.key_id(PoolId(pool), value).0;
            assert_eq!(retired_key(pool, &row(imported, value), &ids), Some((pool, id)));
        }
    }
}
