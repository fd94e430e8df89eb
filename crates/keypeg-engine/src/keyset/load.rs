//! The load of all keys at a start, on two threads: one reads rows, checks their CRCs and computes
//! the ids of the keys, the other inserts the keys into their pools.
//!
//! Keys arrive in the order of the rows and in bounded batches; the first error ends both threads.
//! This file does not know the other tables of the database.

use super::error::{KeySetError, damaged, failed, replay_error};
use super::rows::{RowKey, read_key, rows_of};
use keypeg_core::{IdHashKey, KeyId, KeyNumber, PoolId, Replayer, StoredKey};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Keys in a batch.
const BATCH_KEYS: usize = 1_024;
/// Batches that may wait between the two threads.
const BATCHES_MAX: usize = 16;

pub(super) type KeyRows = redb::ReadOnlyTable<RowKey, &'static [u8]>;

/// Keys of one pool, as read from the database.
struct Batch {
    pool: PoolId,
    keys: Vec<ReadKey>,
    /// The values of the keys, concatenated.
    values: Vec<u8>,
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
    ids: &IdHashKey,
    replayer: &mut Replayer,
) -> Result<u64, KeySetError> {
    std::thread::scope(|scope| {
        let (sender, batches) = sync_channel(BATCHES_MAX);
        let reader = std::thread::Builder::new()
            .name("keypeg-rows".into())
            .spawn_scoped(scope, move || read_all(rows, pools, ids, &sender))?;
        let inserted = insert_all(batches, replayer);
        // An error of the reader is the first in the order of the rows, so it is reported first.
        let read = reader.join().map_err(|_| damaged("a page is damaged"))?;
        read.and(inserted)
    })
}

fn read_all(
    rows: &KeyRows,
    pools: &[PoolId],
    ids: &IdHashKey,
    batches: &SyncSender<Batch>,
) -> Result<(), KeySetError> {
    for &pool in pools {
        let mut batch = Batch::new(pool);
        for row in rows.range(rows_of(pool)).map_err(failed)? {
            let (row_key, row) = row.map_err(failed)?;
            let key = read_key(row_key.value(), row.value(), ids)?;
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

fn insert_all(batches: Receiver<Batch>, replayer: &mut Replayer) -> Result<u64, KeySetError> {
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
    }
    Ok(loaded)
}

impl Batch {
    fn new(pool: PoolId) -> Self {
        // No capacity is reserved: most pools are small, and a large batch grows only once.
        Self { pool, keys: Vec::new(), values: Vec::new() }
    }
}
