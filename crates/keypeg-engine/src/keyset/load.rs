//! The load of all keys at a start, on two threads: one reads rows, checks their CRCs and computes
//! the ids of the keys, the other inserts the keys into their pools.
//!
//! Keys arrive in the order of the rows and in bounded batches; the first error ends both threads.
//! This file does not know the other tables of the database.

use super::error::{KeySetError, damaged, failed, replay_error};
use super::rows::{RowKey, read_key, rows_of};
use crate::seal::Installation;
use keypeg_core::{KEY_BYTES_MIN, KeyId, KeyNumber, PoolId, Replayer, StoredKey};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use zeroize::Zeroizing;

/// Keys in a batch.
const BATCH_KEYS: usize = 1_024;
/// Batches that may wait between the two threads.
const BATCHES_MAX: usize = 16;

pub(super) type KeyRows = redb::ReadOnlyTable<RowKey, &'static [u8]>;

/// The keys of a load, and the memory for them.
pub(super) struct LoadMemory {
    /// The keys of all pools.
    pub(super) key_count: u64,
    /// The most bytes that all pools may take.
    pub(super) bytes_max: u64,
}

impl LoadMemory {
    /// Refuses more keys than the memory has room for, whatever their values are.
    pub(super) fn check_count(&self) -> Result<(), KeySetError> {
        self.check(self.key_count.saturating_mul(KEY_BYTES_MIN))
    }

    /// Refuses a load of which the first `loaded` keys take `bytes` already, with an estimate of
    /// what all keys need.
    fn check_loaded(&self, loaded: u64, bytes: u64) -> Result<(), KeySetError> {
        if bytes <= self.bytes_max {
            return Ok(());
        }
        let all = u128::from(bytes) * u128::from(self.key_count) / u128::from(loaded.max(1));
        self.check(u64::try_from(all).unwrap_or(u64::MAX).max(bytes))
    }

    fn check(&self, needed: u64) -> Result<(), KeySetError> {
        if needed <= self.bytes_max {
            return Ok(());
        }
        Err(KeySetError::TooLarge { needed, given: self.bytes_max })
    }
}

/// Keys of one pool, as read from the database.
struct Batch {
    pool: PoolId,
    keys: Vec<ReadKey>,
    /// The values of the keys, concatenated.
    values: Zeroizing<Vec<u8>>,
}

struct ReadKey {
    number: KeyNumber,
    id: KeyId,
    created_at_ms: u64,
    imported: bool,
    keepalive: bool,
    /// The end of its value in the concatenated values.
    end: usize,
}

/// Loads the keys of these pools, which are loaded already; returns the number of keys. O(keys).
pub(super) fn keys(
    rows: &KeyRows,
    pools: &[PoolId],
    installation: &Installation,
    memory: &LoadMemory,
    replayer: &mut Replayer,
) -> Result<u64, KeySetError> {
    std::thread::scope(|scope| {
        let (sender, batches) = sync_channel(BATCHES_MAX);
        let reader = std::thread::Builder::new()
            .name("keypeg-rows".into())
            .spawn_scoped(scope, move || read_all(rows, pools, installation, &sender))?;
        let inserted = insert_all(batches, memory, replayer);
        // An error of the reader is the first in the order of the rows, so it is reported first.
        let read = reader.join().map_err(|_| damaged("a page is damaged"))?;
        read.and(inserted)
    })
}

fn read_all(
    rows: &KeyRows,
    pools: &[PoolId],
    installation: &Installation,
    batches: &SyncSender<Batch>,
) -> Result<(), KeySetError> {
    let mut opened = Zeroizing::default();
    for &pool in pools {
        let mut batch = Batch::new(pool);
        for row in rows.range(rows_of(pool)).map_err(failed)? {
            let (row_key, row) = row.map_err(failed)?;
            let key = read_key(row_key.value(), row.value(), installation, &mut opened)?;
            batch.values.extend_from_slice(key.value);
            let StoredKey { id, created_at_ms, imported, keepalive, .. } = key;
            let (number, end) = (KeyNumber(row_key.value().1), batch.values.len());
            batch.keys.push(ReadKey { number, id, created_at_ms, imported, keepalive, end });
            if batch.keys.len() == BATCH_KEYS {
                let full = std::mem::replace(&mut batch, Batch::new(pool));
                if batches.send(full).is_err() {
                    // The other thread has met an error and reports it.
                    return Ok(());
                }
            }
        }
        if !batch.keys.is_empty() && batches.send(batch).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn insert_all(
    batches: Receiver<Batch>,
    memory: &LoadMemory,
    replayer: &mut Replayer,
) -> Result<u64, KeySetError> {
    let mut loaded = 0;
    for batch in batches {
        let mut start = 0;
        for key in &batch.keys {
            let value = &batch.values[start..key.end];
            start = key.end;
            let ReadKey { id, created_at_ms, imported, keepalive, .. } = *key;
            let row = StoredKey { value, id, created_at_ms, imported, keepalive };
            replayer.load_key(batch.pool, key.number, &row).map_err(replay_error)?;
        }
        loaded += batch.keys.len() as u64;
        let bytes = replayer.count_bytes(batch.pool).map_err(replay_error)?;
        memory.check_loaded(loaded, bytes)?;
    }
    Ok(loaded)
}

impl Batch {
    fn new(pool: PoolId) -> Self {
        // No capacity is reserved: most pools are small, and a large batch grows only once.
        Self { pool, keys: Vec::new(), values: Zeroizing::default() }
    }
}
