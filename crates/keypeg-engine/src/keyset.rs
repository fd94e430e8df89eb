//! The key set: the database (redb on our [`Disk`]) that stores all pools and keys.
//!
//! A transaction writes changes together with the journal position up to which they are
//! checkpointed, so both agree after any crash. Leases are not in the database. `checkpointer.rs`
//! decides what is read from the journal and when.

mod backend;
mod copy;
mod delta;
mod error;
mod load;
mod rewrite;
mod rows;

use crate::disk::{Disk, DiskFile};
use crate::layout::KEYSET;
use crate::seal::Installation;
use backend::Backend;
use error::{damaged, failed, replay_error};
use keypeg_core::{Counters, KNOWN_MAX, KeyId, KeyNumber, Lsn, PoolId, Replayer, StoredPool};
use load::LoadMemory;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
};
use rows::{
    RowKey, STATE_CRC_NAME, STATE_NAMES, read_pool, read_text, retired_crc, retired_key, rows_of,
    state_crc, write_pool, write_text,
};
use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) use copy::{KeySetCopy, KeySetSnapshot, TableNumber};
pub(crate) use delta::KeySetDelta;
pub(crate) use error::KeySetError;
pub(crate) use rows::{NEXT_POOL, PoolRow, PoolRows, set_next_pool};

/// What the text of a row is, for errors.
const QUARANTINED_KEY: &str = "the row of a quarantined key does not match its CRC";
const LABEL: &str = "the row of a label does not match its CRC";
/// Rows of deleted pools that one transaction deletes at most.
const TRIM_ROWS: usize = 20_000;

/// Keys: CRC (4 bytes), flags (1), creation time (6, milliseconds), value.
const KEYS: TableDefinition<RowKey, &[u8]> = TableDefinition::new("keys");
/// Pools by id: CRC (4 bytes), record of kind `POOL_CREATED`.
const POOLS: TableDefinition<u32, &[u8]> = TableDefinition::new("pools");
/// Values that were deleted or purged and have no tag, or were imported, by pool and key id: CRC.
const RETIRED: TableDefinition<(u32, u128), u32> = TableDefinition::new("retired");
/// Keys that are quarantined, or will be when their leases end: CRC (4 bytes), reason.
const QUARANTINED: TableDefinition<RowKey, &[u8]> = TableDefinition::new("aside");
/// The labels of keys: CRC (4 bytes), label.
const LABELS: TableDefinition<RowKey, &[u8]> = TableDefinition::new("labels");
/// The number of keys of a pool, by pool id: a hint for the load.
const COUNTS: TableDefinition<u32, u64> = TableDefinition::new("counts");
/// Deleted pools with rows that are not deleted yet, by pool id.
const DELETED_POOLS: TableDefinition<u32, ()> = TableDefinition::new("gone");
/// The checkpointed position, the counters at it, and the owner.
const STATE: TableDefinition<&str, u64> = TableDefinition::new("state");
/// The name of the row that identifies the data directory of this key set.
const OWNER: &str = "owner";

/// Returns the name in the row of a pool.
pub(crate) fn pool_name(pool: PoolId, row: &[u8]) -> Result<String, KeySetError> {
    Ok(read_pool(pool, row)?.name)
}

/// The content of the database without the keys.
pub(crate) struct KeySetState {
    pub(crate) pools: PoolRows,
    /// The last journal position whose changes are in the database.
    pub(crate) checkpointed: Lsn,
    /// The counters at that position.
    pub(crate) counters: Counters,
}

/// The open database.
pub(crate) struct KeySetDb {
    /// `Some` until the value is dropped.
    database: Option<Database>,
    installation: Installation,
}

/// Which pages are compared with their checksums when the database is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PageCheck {
    EveryPage,
    None,
}

impl KeySetDb {
    /// Opens the database at a start, or creates an empty one if the file does not exist. Compares
    /// every page with its checksum, because redb does not when it reads one later. redb keeps at
    /// most `cache` bytes of pages in memory. O(bytes).
    pub(crate) fn open(
        disk: &dyn Disk,
        installation: &Installation,
        cache: usize,
    ) -> Result<Self, KeySetError> {
        Self::open_with(disk, installation, cache, PageCheck::EveryPage)
    }

    /// Opens the database again in the process that had it open, after a write failed. O(1).
    pub(crate) fn reopen(
        disk: &dyn Disk,
        installation: &Installation,
        cache: usize,
    ) -> Result<Self, KeySetError> {
        Self::open_with(disk, installation, cache, PageCheck::None)
    }

    fn open_with(
        disk: &dyn Disk,
        installation: &Installation,
        cache: usize,
        check: PageCheck,
    ) -> Result<Self, KeySetError> {
        let exists = disk.list()?.iter().any(|name| name == KEYSET);
        let file = if exists { open_file(disk)? } else { disk.create(KEYSET, 0)? };
        let mut builder = Database::builder();
        builder.set_cache_size(cache);
        builder.set_check_integrity_on_open(check == PageCheck::EveryPage);
        let database = catch_panic(|| builder.create_with_backend(Backend(file)).map_err(failed))?;
        disk.sync_dir()?;
        let this = Self { database: Some(database), installation: installation.clone() };
        if !exists {
            this.commit(&KeySetDelta::default())?;
        }
        Ok(this)
    }

    fn database(&self) -> &Database {
        self.database.as_ref().expect("invariant: present until it is dropped")
    }

    /// Loads all pools and keys into `replayer`, unless they need more than `bytes_max` of memory;
    /// returns the checkpointed position. O(keys).
    pub(crate) fn load(&self, replayer: &mut Replayer, bytes_max: u64) -> Result<Lsn, KeySetError> {
        catch_panic(|| self.read_into(replayer, bytes_max))
    }

    fn read_into(&self, replayer: &mut Replayer, bytes_max: u64) -> Result<Lsn, KeySetError> {
        let transaction = self.database().begin_read().map_err(failed)?;
        let (checkpointed, counters) = read_position(&transaction)?;
        self.check_owner(&transaction)?;
        replayer.raise_counters(counters);
        let pools = transaction.open_table(POOLS).map_err(failed)?;
        let keys = transaction.open_table(KEYS).map_err(failed)?;
        let retired = transaction.open_table(RETIRED).map_err(failed)?;
        let counts = transaction.open_table(COUNTS).map_err(failed)?;
        let quarantined = open_later(&transaction, QUARANTINED)?;
        let labels = open_later(&transaction, LABELS)?;
        let load = LoadMemory { key_count: keys.len().map_err(failed)?, bytes_max };
        let deleted_pools = transaction.open_table(DELETED_POOLS).map_err(failed)?;
        // Rows of deleted pools are counted too, but not loaded.
        let counts_loaded_only = deleted_pools.is_empty().map_err(failed)?;
        if counts_loaded_only {
            load.check_count()?;
        }
        let mut ids = Vec::new();
        for row in pools.iter().map_err(failed)? {
            let (pool, record) = row.map_err(failed)?;
            let id = PoolId(pool.value());
            let PoolRow { name, policy } = read_pool(id, record.value())?;
            let key_count = counts.get(id.0).map_err(failed)?.map_or(0, |count| count.value());
            let row = StoredPool { name: &name, policy, key_count };
            replayer.load_pool(id, row).map_err(replay_error)?;
            ids.push(id);
        }
        let loaded = load::keys(&keys, &ids, &self.installation, &load, replayer)?;
        for pool in ids {
            if let Some(quarantined) = &quarantined {
                for row in quarantined.range(rows_of(pool)).map_err(failed)? {
                    let (row_key, row) = row.map_err(failed)?;
                    let reason = read_text(QUARANTINED_KEY, row_key.value(), row.value())?;
                    let key = KeyNumber(row_key.value().1);
                    replayer.load_quarantined(pool, key, reason).map_err(replay_error)?;
                }
            }
            if let Some(labels) = &labels {
                for row in labels.range(rows_of(pool)).map_err(failed)? {
                    let (row_key, row) = row.map_err(failed)?;
                    let label = read_text(LABEL, row_key.value(), row.value())?;
                    let key = KeyNumber(row_key.value().1);
                    replayer.load_label(pool, key, label).map_err(replay_error)?;
                }
            }
            let mut retired = retired.range((pool.0, 0)..=(pool.0, u128::MAX)).map_err(failed)?;
            if retired.next().is_some() {
                replayer.set_has_retired(pool).map_err(replay_error)?;
            }
        }
        if counts_loaded_only && loaded != load.key_count {
            return Err(damaged("rows of keys are missing"));
        }
        Ok(checkpointed)
    }

    /// Returns the indices of the ids whose values were in the pool before and are retired: the
    /// first [`KNOWN_MAX`] of them. Knows the values that have rows, not those that their pool
    /// recognises. O(ids log n).
    pub(crate) fn retired(&self, pool: PoolId, ids: &[KeyId]) -> Result<Box<[u32]>, KeySetError> {
        let transaction = self.database().begin_read().map_err(failed)?;
        let retired = transaction.open_table(RETIRED).map_err(failed)?;
        let mut found = Vec::new();
        for (index, id) in (0..).zip(ids) {
            if found.len() == KNOWN_MAX {
                break;
            }
            let row_key = (pool.0, id.0);
            let Some(row) = retired.get(row_key).map_err(failed)? else { continue };
            if row.value() != retired_crc(row_key) {
                return Err(damaged("the row of a retired value does not match its CRC"));
            }
            found.push(index);
        }
        Ok(found.into())
    }

    /// Refuses the key set of another data directory: it has other keys, and its position belongs
    /// to another journal. A key set of an early version has no owner row and is accepted.
    fn check_owner(&self, transaction: &redb::ReadTransaction) -> Result<(), KeySetError> {
        let state = transaction.open_table(STATE).map_err(failed)?;
        let owner = state.get(OWNER).map_err(failed)?.map(|owner| owner.value());
        if owner.is_some_and(|owner| owner != self.owner()) {
            return Err(damaged("it belongs to another data directory"));
        }
        Ok(())
    }

    /// Returns the owner number: derived from the hash key of ids, so it identifies the directory.
    fn owner(&self) -> u64 {
        let KeyId(digest) = self.installation.ids.key_id(PoolId(0), OWNER.as_bytes());
        u64::try_from(digest >> 64).expect("invariant: half of the bits")
    }

    /// Reads all pools, the checkpointed position and the counters. O(pools).
    pub(crate) fn state(&self) -> Result<KeySetState, KeySetError> {
        let transaction = self.database().begin_read().map_err(failed)?;
        let mut pools = BTreeMap::new();
        let table = transaction.open_table(POOLS).map_err(failed)?;
        for row in table.iter().map_err(failed)? {
            let (pool, record) = row.map_err(failed)?;
            let id = PoolId(pool.value());
            pools.insert(id, read_pool(id, record.value())?);
        }
        let (checkpointed, counters) = read_position(&transaction)?;
        Ok(KeySetState { pools, checkpointed, counters })
    }

    /// Commits the changes, the position and the counters in one durable transaction; returns true
    /// when rows of deleted pools are left.
    pub(crate) fn commit(&self, delta: &KeySetDelta) -> Result<bool, KeySetError> {
        let mut transaction = self.database().begin_write().map_err(failed)?;
        transaction.set_durability(Durability::Immediate).map_err(failed)?;
        // Without quick repair, an open after a failed write reads the whole file.
        transaction.set_quick_repair(true);
        let rows_left = self.write(&transaction, delta)?;
        transaction.commit().map_err(failed)?;
        Ok(rows_left)
    }

    fn write(
        &self,
        transaction: &redb::WriteTransaction,
        delta: &KeySetDelta,
    ) -> Result<bool, KeySetError> {
        let mut pools = transaction.open_table(POOLS)?;
        let mut keys = transaction.open_table(KEYS)?;
        let mut retired = transaction.open_table(RETIRED)?;
        let mut deleted_pools = transaction.open_table(DELETED_POOLS)?;
        let mut counts = transaction.open_table(COUNTS)?;
        let mut quarantined = transaction.open_table(QUARANTINED)?;
        let mut labels = transaction.open_table(LABELS)?;
        let mut count_changes: BTreeMap<u32, i64> = BTreeMap::new();
        for (pool, row) in &delta.pools {
            pools.insert(pool.0, write_pool(*pool, row).as_slice())?;
        }
        for row_key in &delta.removed {
            let Some(row) = keys.remove(row_key)? else { continue };
            let (pool, _) = *row_key;
            let retired_value = retired_key(*row_key, row.value(), &self.installation)?;
            *count_changes.entry(pool).or_default() -= 1;
            quarantined.remove(row_key)?;
            labels.remove(row_key)?;
            if let Some(value_key) = retired_value {
                retired.insert(value_key, retired_crc(value_key))?;
            }
        }
        for (row_key, row) in &delta.created {
            keys.insert(row_key, row.as_slice())?;
            *count_changes.entry(row_key.0).or_default() += 1;
        }
        write_texts(&mut quarantined, &delta.quarantined)?;
        write_texts(&mut labels, &delta.labels)?;
        for value_key in &delta.retired {
            retired.insert(value_key, retired_crc(*value_key))?;
        }
        for (pool, change) in count_changes {
            let count = counts.get(pool)?.map_or(0, |count| count.value());
            counts.insert(pool, count.saturating_add_signed(change))?;
        }
        for PoolId(pool) in &delta.deleted_pools {
            pools.remove(pool)?;
            counts.remove(pool)?;
            deleted_pools.insert(pool, ())?;
        }
        let rows_left =
            trim(&mut deleted_pools, &mut keys, [&mut quarantined, &mut labels], &mut retired)?;
        let mut state = transaction.open_table(STATE)?;
        let Counters { next_key, next_pool, tokens_reserved } = delta.counters;
        let numbers = [delta.lsn.0, next_key.0, u64::from(next_pool.0), tokens_reserved];
        for (name, number) in STATE_NAMES.into_iter().zip(numbers) {
            state.insert(name, number)?;
        }
        state.insert(STATE_CRC_NAME, state_crc(numbers))?;
        state.insert(OWNER, self.owner())?;
        Ok(rows_left)
    }
}

/// Opens the existing file and makes its length durable.
///
/// The length may exist in the page cache alone, after a sync that failed when the file had grown.
/// redb refuses a length that no layout has, which is what a power cut leaves of pages written
/// behind the durable length.
fn open_file(disk: &dyn Disk) -> io::Result<Box<dyn DiskFile>> {
    let file = disk.open(KEYSET)?;
    // Set again: a sync alone repeats nothing that failed before.
    file.set_len(file.length()?)?;
    file.sync()?;
    Ok(file)
}

/// Runs a read of a start and reports a panic as damage: redb expects undamaged pages and panics on
/// a damaged one. Nothing is served at that time, so no other state can be affected.
fn catch_panic<T>(read: impl FnOnce() -> Result<T, KeySetError>) -> Result<T, KeySetError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(damaged("a page is damaged")))
}

/// Reads the checkpointed position and the counters at it.
fn read_position(transaction: &redb::ReadTransaction) -> Result<(Lsn, Counters), KeySetError> {
    let state = transaction.open_table(STATE).map_err(failed)?;
    let number = |name| -> Result<u64, KeySetError> {
        Ok(state.get(name).map_err(failed)?.map_or(0, |number| number.value()))
    };
    let mut numbers = [0; 4];
    for (index, name) in STATE_NAMES.into_iter().enumerate() {
        numbers[index] = number(name)?;
    }
    if number(STATE_CRC_NAME)? != state_crc(numbers) {
        return Err(damaged("the state does not match its CRC"));
    }
    let [position, next_key, next_pool, tokens_reserved] = numbers;
    let next_key = KeyNumber(next_key);
    let next_pool =
        u32::try_from(next_pool).map(PoolId).map_err(|_| damaged("a counter is out of range"))?;
    Ok((Lsn(position), Counters { next_key, next_pool, tokens_reserved }))
}

impl Drop for KeySetDb {
    /// Closes the database. All checkpoints are durable already; what redb writes at a close only
    /// makes its next open faster, so a panic there must not end the process.
    fn drop(&mut self) {
        let database = self.database.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
    }
}

/// Writes the texts of keys, and removes those of keys that have none.
fn write_texts(
    table: &mut redb::Table<'_, RowKey, &'static [u8]>,
    texts: &BTreeMap<RowKey, Option<String>>,
) -> Result<(), redb::Error> {
    for (row_key, text) in texts {
        match text {
            Some(text) => table.insert(row_key, write_text(*row_key, text).as_slice())?,
            None => table.remove(row_key)?,
        };
    }
    Ok(())
}

/// Deletes up to [`TRIM_ROWS`] rows of the first deleted pool; returns true when rows are left.
fn trim(
    deleted_pools: &mut redb::Table<'_, u32, ()>,
    keys: &mut redb::Table<'_, RowKey, &'static [u8]>,
    of_keys: [&mut redb::Table<'_, RowKey, &'static [u8]>; 2],
    retired: &mut redb::Table<'_, (u32, u128), u32>,
) -> Result<bool, redb::Error> {
    let first = deleted_pools.first()?.map(|(pool, _)| PoolId(pool.value()));
    let Some(pool) = first else { return Ok(false) };
    let mut row_keys = Vec::with_capacity(TRIM_ROWS);
    for row in keys.range(rows_of(pool))?.take(TRIM_ROWS) {
        row_keys.push(row?.0.value());
    }
    for row_key in &row_keys {
        keys.remove(row_key)?;
    }
    // Each key with a reason or a label has a row among the keys, so this finds all of them.
    for table in of_keys {
        for row_key in &row_keys {
            table.remove(row_key)?;
        }
    }
    let mut value_keys = Vec::new();
    let range = (pool.0, 0)..=(pool.0, u128::MAX);
    for row in retired.range(range)?.take(TRIM_ROWS - row_keys.len()) {
        value_keys.push(row?.0.value());
    }
    for value_key in &value_keys {
        retired.remove(value_key)?;
    }
    if row_keys.len() + value_keys.len() < TRIM_ROWS {
        deleted_pools.remove(pool.0)?;
    }
    Ok(deleted_pools.first()?.is_some())
}

type TextRows = redb::ReadOnlyTable<RowKey, &'static [u8]>;

/// Opens a table that earlier versions did not have; `None` in a database without it.
fn open_later(
    transaction: &redb::ReadTransaction,
    table: TableDefinition<'static, RowKey, &'static [u8]>,
) -> Result<Option<TextRows>, KeySetError> {
    match transaction.open_table(table) {
        Ok(table) => Ok(Some(table)),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests;
