//! The rewrite of the whole database into a new file, with every value sealed.
//!
//! The pages of a database keep deleted and replaced rows until they are used again, so values that
//! were not sealed could stay in the file. A new file never had them. It is complete and durable
//! before it replaces the old one by a rename.

use super::error::{damaged, failed};
use super::rows::{RowKey, seal_key};
use super::{
    Backend, COUNTS, DELETED_POOLS, KEYS, KeySetDb, LABELS, POOLS, QUARANTINED, RETIRED, STATE,
    catch_panic,
};
use super::{KeySetError, PageCheck};
use crate::disk::Disk;
use crate::layout::{KEYSET, TEMPORARY};
use redb::{Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable};
use redb::{TableDefinition, WriteTransaction};
use std::borrow::Borrow;
use zeroize::Zeroizing;

/// Rows that one transaction of a rewrite copies.
const ROWS_MAX: usize = 20_000;
/// Bytes of pages that the new database keeps in memory while it is written.
const CACHE: usize = 16 << 20;

impl KeySetDb {
    /// Writes all rows into a new file, with every value sealed, and replaces the old file by it.
    /// After a crash the file is the old one or the new one. O(bytes).
    pub(crate) fn rewrite(self, disk: &dyn Disk, cache: usize) -> Result<Self, KeySetError> {
        let installation = self.installation.clone();
        let name = format!("{KEYSET}{TEMPORARY}");
        if disk.list()?.contains(&name) {
            disk.remove(&name)?;
        }
        let file = disk.create(&name, 0)?;
        catch_panic(|| {
            let mut builder = Database::builder();
            builder.set_cache_size(CACHE);
            let new = builder.create_with_backend(Backend(file)).map_err(failed)?;
            self.copy_into(&new)
        })?;
        drop(self);
        // The close of a database writes once more.
        disk.open(&name)?.sync()?;
        disk.rename(&name, KEYSET)?;
        disk.sync_dir()?;
        Self::open_with(disk, &installation, cache, PageCheck::EveryPage)
    }

    fn copy_into(&self, new: &Database) -> Result<(), KeySetError> {
        let from = self.database().begin_read().map_err(failed)?;
        self.copy_keys(&from, new)?;
        copy(&from, new, RETIRED)?;
        copy(&from, new, POOLS)?;
        copy(&from, new, QUARANTINED)?;
        copy(&from, new, LABELS)?;
        copy(&from, new, COUNTS)?;
        copy(&from, new, DELETED_POOLS)?;
        copy(&from, new, STATE)
    }

    fn copy_keys(&self, from: &ReadTransaction, new: &Database) -> Result<(), KeySetError> {
        let table = from.open_table(KEYS)?;
        let mut rows = table.iter()?;
        let mut opened = Zeroizing::default();
        let mut more = true;
        while more {
            let to = begin(new)?;
            let mut keys = to.open_table(KEYS)?;
            for _ in 0..ROWS_MAX {
                let Some(row) = rows.next() else {
                    more = false;
                    break;
                };
                let (row_key, row) = row?;
                let row_key: RowKey = row_key.value();
                match seal_key(row_key, row.value(), &self.installation, &mut opened)? {
                    Some(sealed) => keys.insert(row_key, sealed.as_slice())?,
                    None => keys.insert(row_key, row.value())?,
                };
            }
            drop(keys);
            to.commit().map_err(failed)?;
        }
        Ok(())
    }
}

/// Copies a table as it is; one that does not exist has no rows.
fn copy<K, V>(
    from: &ReadTransaction,
    new: &Database,
    definition: TableDefinition<'static, K, V>,
) -> Result<(), KeySetError>
where
    K: redb::Key + 'static,
    V: redb::Value + 'static,
    for<'a> K::SelfType<'a>: Borrow<K::SelfType<'a>>,
    for<'a> V::SelfType<'a>: Borrow<V::SelfType<'a>>,
{
    let table = match from.open_table(definition) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
        table => table?,
    };
    let mut rows = table.iter()?;
    let mut more = true;
    while more {
        let to = begin(new)?;
        let mut copied = to.open_table(definition)?;
        for _ in 0..ROWS_MAX {
            let Some(row) = rows.next() else {
                more = false;
                break;
            };
            let (key, value) = row?;
            copied.insert(key.value(), value.value())?;
        }
        drop(copied);
        to.commit().map_err(failed)?;
    }
    Ok(())
}

fn begin(new: &Database) -> Result<WriteTransaction, KeySetError> {
    let mut transaction = new.begin_write().map_err(failed)?;
    let durable = transaction.set_durability(Durability::Immediate);
    durable.map_err(|_| damaged("the new file cannot be made durable"))?;
    transaction.set_quick_repair(true);
    Ok(transaction)
}
