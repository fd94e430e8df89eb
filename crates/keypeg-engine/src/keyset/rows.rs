//! The rows of the key set, each with its own CRC, because redb does not check the pages it reads.
//!
//! This file encodes and parses rows; it does not know the tables or transactions.

use super::error::{KeySetError, damaged};
use crate::record::{self, RecordError};
use crate::seal::{Installation, OpenError, SEAL_LEN, ValueSeal};
use keypeg_core::{Fact, KeyNumber, Policy, PoolId, StoredKey, must_remember};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use zeroize::Zeroizing;

/// The name of the row with the CRC of the numbers in the state.
pub(super) const STATE_CRC_NAME: &str = "sum";
/// The names of the numbers that the CRC covers, in its order.
pub(super) const STATE_NAMES: [&str; 4] = ["position", "next_key", NEXT_POOL, "tokens_reserved"];
/// The name of the number of the next pool.
pub(crate) const NEXT_POOL: &str = "next_pool";
/// The flag of an imported key.
const IMPORTED: u8 = 1;
/// The flag of a key that is never purged.
const NO_KEEPALIVE: u8 = 2;
/// The flag of a sealed value.
const SEALED: u8 = 4;
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

/// Encodes the row of a text of a key: the reason of its quarantine, or its label.
pub(super) fn write_text(row_key: RowKey, text: &str) -> Vec<u8> {
    [&key_crc(row_key, text.as_bytes()).to_le_bytes(), text.as_bytes()].concat()
}

/// Parses the row of a text of a key; `mismatch` is the error for a row that does not match its CRC.
pub(super) fn read_text<'a>(
    mismatch: &'static str,
    row_key: RowKey,
    row: &'a [u8],
) -> Result<&'a str, KeySetError> {
    let mismatch = || damaged(mismatch);
    let (crc, text) = row.split_first_chunk::<CRC_LEN>().ok_or_else(mismatch)?;
    if u32::from_le_bytes(*crc) != key_crc(row_key, text) {
        return Err(mismatch());
    }
    std::str::from_utf8(text).map_err(|_| mismatch())
}

/// Encodes the row of a key, with its value sealed if the directory is.
pub(super) fn write_key(row_key: RowKey, key: CreatedKey<'_>, seal: &ValueSeal) -> Vec<u8> {
    let CreatedKey { created_at_ms, imported, keepalive, value } = key;
    let flags = if imported { IMPORTED } else { 0 }
        | if keepalive { 0 } else { NO_KEEPALIVE }
        | if seal.is_on() { SEALED } else { 0 };
    let [m0, m1, m2, m3, m4, m5, ..] = created_at_ms.to_le_bytes();
    // Room for all, so that no copy of a plain value is left behind.
    let seal_len = if seal.is_on() { SEAL_LEN } else { 0 };
    let mut row = Vec::with_capacity(KEY_HEAD + value.len() + seal_len);
    row.extend_from_slice(&[0; CRC_LEN]);
    row.extend_from_slice(&[flags, m0, m1, m2, m3, m4, m5]);
    row.extend_from_slice(value);
    seal.seal_row(key_of(row_key), &mut row, KEY_HEAD);
    let crc = key_crc(row_key, &row[CRC_LEN..]);
    row[..CRC_LEN].copy_from_slice(&crc.to_le_bytes());
    row
}

/// Seals a row whose value is plain; `None` if it is sealed already.
pub(super) fn seal_key(
    row_key: RowKey,
    row: &[u8],
    installation: &Installation,
    value: &mut Zeroizing<Vec<u8>>,
) -> Result<Option<Vec<u8>>, KeySetError> {
    let StoredKey { created_at_ms, imported, keepalive, value, .. } =
        read_key(row_key, row, installation, value)?;
    if row[CRC_LEN] & SEALED != 0 {
        return Ok(None);
    }
    let key = CreatedKey { created_at_ms, imported, keepalive, value };
    Ok(Some(write_key(row_key, key, &installation.seal)))
}

fn key_of((pool, key): RowKey) -> (PoolId, KeyNumber) {
    (PoolId(pool), KeyNumber(key))
}

/// Computes the CRC of a row in a table by key number; it covers the key of the row too.
fn key_crc((pool, key): RowKey, rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&pool.to_le_bytes());
    hasher.update(&key.to_le_bytes());
    hasher.update(rest);
    hasher.finalize()
}

/// Parses the row of a key. A sealed value is opened into `opened`. O(length).
pub(super) fn read_key<'a>(
    row_key: RowKey,
    row: &'a [u8],
    installation: &Installation,
    opened: &'a mut Zeroizing<Vec<u8>>,
) -> Result<StoredKey<'a>, KeySetError> {
    let truncated = || damaged("the row of a key is truncated");
    let (crc, rest) = row.split_first_chunk::<CRC_LEN>().ok_or_else(truncated)?;
    if u32::from_le_bytes(*crc) != key_crc(row_key, rest) {
        return Err(damaged("the row of a key does not match its CRC"));
    }
    let [flags, m0, m1, m2, m3, m4, m5, value @ ..] = rest else {
        return Err(truncated());
    };
    if flags & !(IMPORTED | NO_KEEPALIVE | SEALED) != 0 {
        return Err(damaged(
            "the row of a key has an unknown flag: a newer version of keypeg may have written it",
        ));
    }
    let value = open_value(row_key, *flags, value, &installation.seal, opened)?;
    let (pool, _) = row_key;
    Ok(StoredKey {
        value,
        id: installation.ids.key_id(PoolId(pool), value),
        created_at_ms: u64::from_le_bytes([*m0, *m1, *m2, *m3, *m4, *m5, 0, 0]),
        imported: flags & IMPORTED != 0,
        keepalive: flags & NO_KEEPALIVE == 0,
    })
}

/// Returns the value of a row, opened if it is sealed.
fn open_value<'a>(
    row_key: RowKey,
    flags: u8,
    value: &'a [u8],
    seal: &ValueSeal,
    opened: &'a mut Zeroizing<Vec<u8>>,
) -> Result<&'a [u8], OpenError> {
    if flags & SEALED == 0 {
        seal.check_plain()?;
        return Ok(value);
    }
    seal.open_row(key_of(row_key), value, opened)?;
    Ok(opened)
}

pub(super) fn retired_crc((pool, id): (u32, u128)) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&pool.to_le_bytes());
    hasher.update(&id.to_le_bytes());
    hasher.finalize()
}

/// Returns the row key under which the value of a removed key is retired; `None` for a value that
/// its pool recognises without a row.
pub(super) fn retired_key(
    row_key: RowKey,
    row: &[u8],
    installation: &Installation,
) -> Result<Option<(u32, u128)>, OpenError> {
    let Some((head, value)) = row.split_at_checked(KEY_HEAD) else { return Ok(None) };
    let (flags, (pool, _), ids) = (head[CRC_LEN], row_key, &installation.ids);
    let mut opened = Zeroizing::default();
    let value = open_value(row_key, flags, value, &installation.seal, &mut opened)?;
    let imported = flags & IMPORTED != 0;
    Ok(must_remember(ids, PoolId(pool), value, imported)
        .then(|| (pool, ids.key_id(PoolId(pool), value).0)))
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

/// Changes the number of the next pool among the rows of the state.
pub(crate) fn set_next_pool(rows: &mut [(Vec<u8>, Vec<u8>)], next_pool: PoolId) {
    let mut numbers = [0; 4];
    for (number, name) in numbers.iter_mut().zip(STATE_NAMES) {
        let found = rows.iter_mut().find(|(key, _)| key == name.as_bytes());
        let Some((_, value)) = found else { continue };
        if name == NEXT_POOL {
            *value = u64::from(next_pool.0).to_le_bytes().to_vec();
        }
        *number = value.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    }
    if let Some((_, value)) = rows.iter_mut().find(|(key, _)| key == STATE_CRC_NAME.as_bytes()) {
        *value = state_crc(numbers).to_le_bytes().to_vec();
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
    use keypeg_core::IdHashKey;

    fn installation() -> Installation {
        Installation { id: 1, ids: IdHashKey::new([7; 32]), seal: ValueSeal::default() }
    }

    #[test]
    fn a_row_keeps_its_flags_and_an_unknown_one_is_refused() {
        let (installation, row_key) = (installation(), (3, 4));
        for (imported, keepalive) in [(false, true), (true, true), (true, false)] {
            let key = CreatedKey { created_at_ms: 5, imported, keepalive, value: b"v" };
            let mut row = write_key(row_key, key, &installation.seal);
            let mut opened = Zeroizing::default();
            let read = read_key(row_key, &row, &installation, &mut opened).expect("whole");
            assert_eq!(
                (read.imported, read.keepalive, read.value),
                (imported, keepalive, &b"v"[..])
            );
            row[CRC_LEN] |= 8;
            let crc = key_crc(row_key, &row[CRC_LEN..]);
            row[..CRC_LEN].copy_from_slice(&crc.to_le_bytes());
            let read = read_key(row_key, &row, &installation, &mut opened);
            let error = read.err().expect("unknown").to_string();
            assert!(error.contains("newer version"), "{error}");
        }
    }

    #[test]
    fn only_a_value_that_its_pool_does_not_recognise_needs_a_row() {
        let installation = installation();
        let row = |pool, imported, value| {
            let key = CreatedKey { created_at_ms: 5, imported, keepalive: true, value };
            write_key((pool, 4), key, &installation.seal)
        };
        let retired = |pool, row: &[u8]| retired_key((pool, 4), row, &installation).expect("opens");
        // The tag of pool 3, as in the tests of the pools.
        let generated = b"ci_0123456789abcdef7PoV";
        assert_eq!(retired(3, &row(3, false, generated)), None);
        for (pool, imported, value) in
            [(3, true, &generated[..]), (4, false, generated), (3, false, b"0123456789abcdef0123")]
        {
            let id = installation.ids.key_id(PoolId(pool), value).0;
            assert_eq!(retired(pool, &row(pool, imported, value)), Some((pool, id)));
        }
    }

    fn sealed() -> Installation {
        Installation { seal: ValueSeal::for_tests(7), ..installation() }
    }

    /// The CRC of a row does not detect a value that was moved and given a new CRC.
    #[test]
    fn a_sealed_row_reads_back_and_its_value_belongs_to_it_alone() {
        let (installation, row_key) = (sealed(), (3, 4));
        let key =
            CreatedKey { created_at_ms: 5, imported: true, keepalive: false, value: b"sk-123" };
        let row = write_key(row_key, key, &installation.seal);
        assert!(!row.windows(6).any(|part| part == b"sk-123"));
        let mut opened = Zeroizing::default();
        let read = read_key(row_key, &row, &installation, &mut opened).expect("whole");
        assert_eq!((read.value, read.imported, read.keepalive), (&b"sk-123"[..], true, false));
        let id = installation.ids.key_id(PoolId(3), b"sk-123");
        assert_eq!(read.id, id);
        assert_eq!(retired_key(row_key, &row, &installation), Ok(Some((3, id.0))));
        let with_crc = |row_key, mut row: Vec<u8>| {
            let crc = key_crc(row_key, &row[CRC_LEN..]);
            row[..CRC_LEN].copy_from_slice(&crc.to_le_bytes());
            row
        };
        let other = Installation { seal: ValueSeal::for_tests(8), ..sealed() };
        let mut flipped = row.clone();
        flipped[KEY_HEAD] ^= 1;
        for (row_key, row, by) in [
            ((3, 5), &row, &installation),
            ((4, 4), &row, &installation),
            ((3, 4), &row, &other),
            ((3, 4), &flipped, &installation),
        ] {
            let moved = with_crc(row_key, row.clone());
            let error =
                read_key(row_key, &moved, by, &mut opened).err().expect("moved").to_string();
            assert!(error.contains("another key, pool or data directory"), "{error}");
            assert_eq!(retired_key(row_key, &moved, by), Err(OpenError::Mismatch));
        }
        let plain = write_key(row_key, key, &ValueSeal::default());
        let error = read_key(row_key, &plain, &installation, &mut opened).err().expect("plain");
        assert!(error.to_string().contains("is not sealed"), "{error}");
    }

    #[test]
    fn a_rewrite_seals_plain_rows_and_keeps_sealed_ones() {
        use crate::seal::Unsealed;
        let seal = ValueSeal::for_tests(7).accepting(Unsealed::Accepted);
        let (installation, row_key) = (Installation { seal, ..installation() }, (3, 4));
        let key =
            CreatedKey { created_at_ms: 5, imported: true, keepalive: false, value: b"sk-123" };
        let plain = write_key(row_key, key, &ValueSeal::default());
        let sealed = write_key(row_key, key, &installation.seal);
        let mut opened = Zeroizing::default();
        let mut again = |row| seal_key(row_key, row, &installation, &mut opened).expect("opens");
        assert_eq!(again(&plain), Some(sealed.clone()));
        assert_eq!(again(&sealed), None);
    }
}
