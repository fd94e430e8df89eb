//! Copies of the whole key set, row by row and as the rows are: read from one transaction for a
//! backup, and written to a new database by a restore.
//!
//! A row keeps its own CRC, which a start checks. This file knows the tables but not the content of
//! their rows, except that a restore must parse the keys of rows.

use super::error::{KeySetError, damaged, failed};
use super::{COUNTS, DELETED_POOLS, KEYS, LABELS, POOLS, QUARANTINED, RETIRED, STATE};
use super::{
    KeySetDb, STATE_CRC_NAME, STATE_NAMES, catch_panic, open_later, read_position, state_crc,
};
use crate::disk::Disk;
use crate::layout::KEYSET;
use keypeg_core::Lsn;
use redb::WriteTransaction;
use redb::{Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable};

/// Bytes of pages that a restore keeps in memory while it writes the database.
const CACHE: usize = 64 << 20;

/// A table, as a backup numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableNumber {
    Pools = 1,
    Keys = 2,
    Quarantined = 3,
    Retired = 4,
    Counts = 5,
    DeletedPools = 6,
    State = 7,
    Labels = 8,
}

impl TableNumber {
    /// All tables, in the order of a backup.
    pub(crate) const ALL: [Self; 8] = [
        Self::Pools,
        Self::Keys,
        Self::Quarantined,
        Self::Retired,
        Self::Counts,
        Self::DeletedPools,
        Self::State,
        Self::Labels,
    ];

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|table| *table as u8 == byte)
    }
}

/// The key set at one position, whatever is written meanwhile. redb keeps the pages of the position
/// until this is dropped.
pub(crate) struct KeySetSnapshot {
    transaction: ReadTransaction,
    /// The position up to which it contains all changes.
    pub(crate) checkpointed: Lsn,
}

impl KeySetDb {
    /// Begins to read the key set as it is now. O(1).
    pub(crate) fn snapshot(&self) -> Result<KeySetSnapshot, KeySetError> {
        let transaction = self.database().begin_read().map_err(failed)?;
        let (checkpointed, _) = read_position(&transaction)?;
        Ok(KeySetSnapshot { transaction, checkpointed })
    }
}

/// Calls `each` for every row of a table with its key and value as bytes.
macro_rules! each_row {
    ($table:expr, |$key:ident, $value:ident| $bytes:expr, $each:ident) => {
        for row in $table.iter().map_err(failed)? {
            let (key, value) = row.map_err(failed)?;
            let ($key, $value) = (key.value(), value.value());
            let (key, value) = $bytes;
            if !$each(key.as_ref(), value.as_ref()) {
                return Ok(());
            }
        }
    };
}

impl KeySetSnapshot {
    /// Passes the rows of a table to `each` until it returns false. A damaged page is an error, not
    /// a panic. After the checkpointer has closed the database, because the disk is full or the
    /// server stops, reading fails.
    pub(crate) fn rows(
        &self,
        table: TableNumber,
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), KeySetError> {
        catch_panic(|| self.read_rows(table, each))
    }

    fn read_rows(
        &self,
        table: TableNumber,
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), KeySetError> {
        let from = &self.transaction;
        match table {
            TableNumber::Pools => {
                let rows = from.open_table(POOLS).map_err(failed)?;
                each_row!(rows, |key, value| (key.to_le_bytes(), value), each);
            }
            TableNumber::Keys => {
                let rows = from.open_table(KEYS).map_err(failed)?;
                each_row!(rows, |key, value| (number_key(key), value), each);
            }
            TableNumber::Quarantined => {
                // A database of an early version has no such table.
                let Some(rows) = open_later(from, QUARANTINED)? else { return Ok(()) };
                each_row!(rows, |key, value| (number_key(key), value), each);
            }
            TableNumber::Labels => {
                let Some(rows) = open_later(from, LABELS)? else { return Ok(()) };
                each_row!(rows, |key, value| (number_key(key), value), each);
            }
            TableNumber::Retired => {
                let rows = from.open_table(RETIRED).map_err(failed)?;
                each_row!(rows, |key, value| (id_key(key), value.to_le_bytes()), each);
            }
            TableNumber::Counts => {
                let rows = from.open_table(COUNTS).map_err(failed)?;
                each_row!(rows, |key, value| (key.to_le_bytes(), value.to_le_bytes()), each);
            }
            TableNumber::DeletedPools => {
                let rows = from.open_table(DELETED_POOLS).map_err(failed)?;
                each_row!(rows, |key, _value| (key.to_le_bytes(), []), each);
            }
            TableNumber::State => {
                let rows = from.open_table(STATE).map_err(failed)?;
                each_row!(rows, |key, value| (key.as_bytes(), value.to_le_bytes()), each);
            }
        }
        Ok(())
    }
}

/// A database that a restore writes.
pub(crate) struct KeySetCopy {
    database: Database,
}

/// A row whose key or value does not have the length of its table.
struct Misshapen;

impl KeySetCopy {
    /// Creates an empty database; no file with its name may exist.
    pub(crate) fn create(disk: &dyn Disk) -> Result<Self, KeySetError> {
        let file = disk.create(KEYSET, 0)?;
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE);
        let backend = super::Backend(file);
        let database = builder.create_with_backend(backend).map_err(failed)?;
        let this = Self { database };
        // A start expects every table, also an empty one.
        this.write(Durability::None, |transaction| {
            transaction.open_table(POOLS).map_err(failed)?;
            transaction.open_table(KEYS).map_err(failed)?;
            transaction.open_table(QUARANTINED).map_err(failed)?;
            transaction.open_table(LABELS).map_err(failed)?;
            transaction.open_table(RETIRED).map_err(failed)?;
            transaction.open_table(COUNTS).map_err(failed)?;
            transaction.open_table(DELETED_POOLS).map_err(failed)?;
            // A shard that has no snapshot yet has no rows of the state in its backup: it begins at
            // position 0, as a new database does.
            let mut state = transaction.open_table(STATE).map_err(failed)?;
            for name in STATE_NAMES {
                state.insert(name, 0).map_err(failed)?;
            }
            state.insert(STATE_CRC_NAME, state_crc([0; STATE_NAMES.len()])).map_err(failed)?;
            Ok(())
        })?;
        Ok(this)
    }

    /// Adds rows of a table; they are durable after [`KeySetCopy::finish`].
    pub(crate) fn insert<'a>(
        &self,
        table: TableNumber,
        rows: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<(), KeySetError> {
        self.write(Durability::None, |transaction| insert(transaction, table, rows))
    }

    /// Makes all rows durable and closes the database.
    pub(crate) fn finish(self) -> Result<(), KeySetError> {
        self.write(Durability::Immediate, |_| Ok(()))
    }

    fn write(
        &self,
        durability: Durability,
        change: impl FnOnce(&WriteTransaction) -> Result<(), KeySetError>,
    ) -> Result<(), KeySetError> {
        let mut transaction = self.database.begin_write().map_err(failed)?;
        transaction.set_durability(durability).map_err(failed)?;
        transaction.set_quick_repair(matches!(durability, Durability::Immediate));
        change(&transaction)?;
        transaction.commit().map_err(failed)
    }
}

fn insert<'a>(
    transaction: &WriteTransaction,
    table: TableNumber,
    rows: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<(), KeySetError> {
    /// Inserts rows, whose bytes the expressions convert.
    macro_rules! insert_all {
        ($table:expr, |$key:ident, $value:ident| $row:expr) => {{
            let mut table = transaction.open_table($table).map_err(failed)?;
            for ($key, $value) in rows {
                let (key, value) = $row;
                table.insert(key, value).map_err(failed)?;
            }
        }};
    }
    match table {
        TableNumber::Pools => insert_all!(POOLS, |key, value| (u32_of(key)?, value)),
        TableNumber::Keys => insert_all!(KEYS, |key, value| (number_key_of(key)?, value)),
        TableNumber::Quarantined => {
            insert_all!(QUARANTINED, |key, value| (number_key_of(key)?, value));
        }
        TableNumber::Labels => insert_all!(LABELS, |key, value| (number_key_of(key)?, value)),
        TableNumber::Retired => {
            insert_all!(RETIRED, |key, value| (id_key_of(key)?, u32_of(value)?));
        }
        TableNumber::Counts => insert_all!(COUNTS, |key, value| (u32_of(key)?, u64_of(value)?)),
        TableNumber::DeletedPools => {
            insert_all!(DELETED_POOLS, |key, _value| (u32_of(key)?, ()));
        }
        TableNumber::State => {
            insert_all!(STATE, |key, value| (str_of(key)?, u64_of(value)?));
        }
    }
    Ok(())
}

fn number_key((pool, key): (u32, u64)) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&pool.to_le_bytes());
    bytes[4..].copy_from_slice(&key.to_le_bytes());
    bytes
}

fn number_key_of(bytes: &[u8]) -> Result<(u32, u64), Misshapen> {
    let (pool, key) = bytes.split_first_chunk().ok_or(Misshapen)?;
    Ok((u32::from_le_bytes(*pool), u64_of(key)?))
}

fn id_key((pool, id): (u32, u128)) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&pool.to_le_bytes());
    bytes[4..].copy_from_slice(&id.to_le_bytes());
    bytes
}

fn id_key_of(bytes: &[u8]) -> Result<(u32, u128), Misshapen> {
    let (pool, id) = bytes.split_first_chunk().ok_or(Misshapen)?;
    let id = id.try_into().map_err(|_| Misshapen)?;
    Ok((u32::from_le_bytes(*pool), u128::from_le_bytes(id)))
}

fn u32_of(bytes: &[u8]) -> Result<u32, Misshapen> {
    bytes.try_into().map(u32::from_le_bytes).map_err(|_| Misshapen)
}

fn u64_of(bytes: &[u8]) -> Result<u64, Misshapen> {
    bytes.try_into().map(u64::from_le_bytes).map_err(|_| Misshapen)
}

fn str_of(bytes: &[u8]) -> Result<&str, Misshapen> {
    std::str::from_utf8(bytes).map_err(|_| Misshapen)
}

impl From<Misshapen> for KeySetError {
    fn from(_: Misshapen) -> Self {
        damaged("a row does not have the form of its table")
    }
}
