//! The rows of the key set, each under a sum of its own, since the database does not check what it
//! reads. Knows nothing of the database.

use super::{KeysetError, damaged};
use crate::core::{Fact, IdHashKey, Policy, PoolId, StoredKey};
use crate::record::{self, RecordError};

const IMPORTED: u8 = 1;
/// Bytes of a row before the value.
const KEY_HEAD: usize = 11;

pub(super) fn write_aside(at: (u32, u64), reason: &str) -> Vec<u8> {
    [&sum(at, reason.as_bytes()).to_le_bytes(), reason.as_bytes()].concat()
}

pub(super) fn read_aside(at: (u32, u64), row: &[u8]) -> Result<&str, KeysetError> {
    let unfit = || damaged("a quarantined key's row does not match its sum");
    let (found, reason) = row.split_first_chunk::<4>().ok_or_else(unfit)?;
    if u32::from_le_bytes(*found) != sum(at, reason) {
        return Err(unfit());
    }
    std::str::from_utf8(reason).map_err(|_| unfit())
}

/// A row: under a sum of its own, since the database does not check what it reads.
pub(super) fn write_key(at: (u32, u64), at_ms: u64, imported: bool, value: &[u8]) -> Vec<u8> {
    let [m0, m1, m2, m3, m4, m5, ..] = at_ms.to_le_bytes();
    let mut row = Vec::with_capacity(KEY_HEAD + value.len());
    row.extend_from_slice(&[0; 4]);
    row.extend_from_slice(&[if imported { IMPORTED } else { 0 }, m0, m1, m2, m3, m4, m5]);
    row.extend_from_slice(value);
    let sum = sum(at, &row[4..]);
    row[..4].copy_from_slice(&sum.to_le_bytes());
    row
}

fn sum((pool, key): (u32, u64), rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&pool.to_le_bytes());
    hasher.update(&key.to_le_bytes());
    hasher.update(rest);
    hasher.finalize()
}

pub(super) fn read_key<'a>(
    at: (u32, u64),
    row: &'a [u8],
    ids: &IdHashKey,
) -> Result<StoredKey<'a>, KeysetError> {
    let (found, rest) = row.split_first_chunk::<4>().ok_or_else(|| damaged("a row is cut"))?;
    if u32::from_le_bytes(*found) != sum(at, rest) {
        return Err(damaged("a key's row does not match its sum"));
    }
    let [flags, m0, m1, m2, m3, m4, m5, value @ ..] = rest else {
        return Err(damaged("a row is cut"));
    };
    Ok(StoredKey {
        value,
        id: ids.key_id(PoolId(at.0), value),
        created_at_ms: u64::from_le_bytes([*m0, *m1, *m2, *m3, *m4, *m5, 0, 0]),
        imported: flags & IMPORTED != 0,
    })
}

pub(super) fn retired_sum((pool, id): (u32, u128)) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&pool.to_le_bytes());
    hasher.update(&id.to_le_bytes());
    hasher.finalize()
}

/// The value of an imported key; `None` for one that was made here.
pub(super) fn imported_value(row: &[u8]) -> Option<&[u8]> {
    let (head, value) = row.split_at_checked(KEY_HEAD)?;
    (head[4] & IMPORTED != 0).then_some(value)
}

/// A row: a record behind its sum.
pub(super) fn write_pool(pool: u32, name: &str, policy: &Policy) -> Vec<u8> {
    let record =
        record::write_one(&Fact::PoolCreated { pool: PoolId(pool), name, policy: policy.clone() });
    [&crc32fast::hash(&record).to_le_bytes()[..], &record].concat()
}

pub(super) fn read_pool(number: u32, row: &[u8]) -> Result<(String, Policy), KeysetError> {
    let (sum, record) = row.split_first_chunk::<4>().ok_or_else(|| damaged("a row is cut"))?;
    if u32::from_le_bytes(*sum) != crc32fast::hash(record) {
        return Err(damaged("a pool's row does not match its sum"));
    }
    match record::read(record, 0) {
        Ok((Fact::PoolCreated { pool, name, policy }, [])) if pool == PoolId(number) => {
            Ok((name.to_owned(), policy))
        }
        Ok(_) => Err(damaged("a pool's row is another record")),
        Err(RecordError(why)) => Err(damaged(why)),
    }
}

/// The sum over the numbers of the state.
pub(super) fn state_sum(numbers: [u64; 4]) -> u64 {
    let mut hasher = crc32fast::Hasher::new();
    for number in numbers {
        hasher.update(&number.to_le_bytes());
    }
    u64::from(hasher.finalize())
}
