//! Putting all keys back at a start, on two threads: one reads rows, checks their sums and makes the
//! keys' ids, the other puts them into their pools.
//!
//! What is read comes in the order of the rows and in bounded batches; the first error ends both.
//! Knows nothing of what else a start reads.

use super::rows::read_key;
use super::{KeysetError, damaged, failed, misfit};
use crate::core::{IdHashKey, KeyId, KeyNumber, PoolId, Replayer, StoredKey};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Keys in a batch.
const BATCH: usize = 1_024;
/// Batches that wait to be put in, at most.
const AHEAD: usize = 16;

pub(super) type KeyRows = redb::ReadOnlyTable<(u32, u64), &'static [u8]>;

/// Keys of one pool as they were read.
struct Batch {
    pool: u32,
    keys: Vec<ReadKey>,
    /// Their values, one after the other.
    values: Vec<u8>,
}

struct ReadKey {
    number: u64,
    id: KeyId,
    created_at_ms: u64,
    imported: bool,
    /// Where its value ends.
    end: usize,
}

/// Puts the keys of these pools back, which are in already; gives how many. O(keys).
pub(super) fn keys(
    rows: &KeyRows,
    pools: &[u32],
    ids: &IdHashKey,
    rebuild: &mut Replayer,
) -> Result<u64, KeysetError> {
    std::thread::scope(|scope| {
        let (batches, read) = sync_channel(AHEAD);
        let reader = std::thread::Builder::new()
            .name("keypeg-rows".into())
            .spawn_scoped(scope, move || read_all(rows, pools, ids, &batches))?;
        let put = put_all(read, rebuild);
        // What cannot be read is told first: nothing came after it.
        let done = reader.join().map_err(|_| damaged("a page is damaged"))?;
        done.and(put)
    })
}

fn read_all(
    rows: &KeyRows,
    pools: &[u32],
    ids: &IdHashKey,
    batches: &SyncSender<Batch>,
) -> Result<(), KeysetError> {
    for &pool in pools {
        let mut batch = Batch::of(pool);
        for row in rows.range((pool, 0)..=(pool, u64::MAX)).map_err(failed)? {
            let (at, row) = row.map_err(failed)?;
            let key = read_key(at.value(), row.value(), ids)?;
            batch.values.extend_from_slice(key.value);
            let StoredKey { id, created_at_ms, imported, .. } = key;
            let (number, end) = (at.value().1, batch.values.len());
            batch.keys.push(ReadKey { number, id, created_at_ms, imported, end });
            if batch.keys.len() == BATCH {
                let full = std::mem::replace(&mut batch, Batch::of(pool));
                if batches.send(full).is_err() {
                    // Who puts them in has met an error and tells it.
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

fn put_all(read: Receiver<Batch>, rebuild: &mut Replayer) -> Result<u64, KeysetError> {
    let mut loaded = 0;
    for batch in read {
        let mut from = 0;
        for key in &batch.keys {
            let value = &batch.values[from..key.end];
            from = key.end;
            let ReadKey { id, created_at_ms, imported, .. } = *key;
            let row = StoredKey { value, id, created_at_ms, imported };
            let (pool, number) = (PoolId(batch.pool), KeyNumber(key.number));
            rebuild.load_key(pool, number, &row).map_err(misfit)?;
        }
        loaded += batch.keys.len() as u64;
    }
    Ok(loaded)
}

impl Batch {
    fn of(pool: u32) -> Self {
        // Most pools are small; a large one's batches grow once each.
        Self { pool, keys: Vec::new(), values: Vec::new() }
    }
}
