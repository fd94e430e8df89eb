//! Splits a backup by the shards of its pools: for each shard a backup that has its pools alone.
//!
//! Records and rows are copied as they are, so seals and CRCs stay. What belongs to no pool, such as
//! reserved tokens and counters, is in the backup of every shard. It does not know how pools are
//! spread.

use super::format::{BackupError, ChunkKind, ChunkParser, ChunkWriter, EachChunk};
use super::head::{BackupBatch, batches, inconsistent, split_row, write_row};
use crate::keyset::{NEXT_POOL, TableNumber, set_next_pool};
use crate::meta::Meta;
use crate::record::{self, RecordError};
use keypeg_core::PoolId;
use std::collections::BTreeMap;
use std::io::Read;

/// Bytes that are read at once.
const PIECE: usize = 256 << 10;

/// Why a backup was not split.
#[derive(Debug, thiserror::Error)]
pub enum SplitError<E> {
    /// The backup cannot be read.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The consumer of the bytes.
    #[error("{0}")]
    Output(E),
}

/// The pools of a backup, with the shard of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolShards {
    pools: BTreeMap<PoolId, u16>,
    /// The first number that is free in each block of numbers.
    next: BTreeMap<u16, PoolId>,
}

impl PoolShards {
    /// Reads which pools a backup has, and assigns them by their names. O(bytes).
    pub fn read(
        backup: &mut dyn Read,
        shard_of: &dyn Fn(&str) -> u16,
    ) -> Result<Self, BackupError> {
        let mut this = Self::default();
        each_chunk(backup, &mut |kind, body| {
            match kind {
                ChunkKind::Batches => {
                    for batch in batches(body) {
                        let mut rest = batch.ok_or_else(cut)?.records;
                        while !rest.is_empty() {
                            let found = record::created_pool(rest).map_err(damaged)?;
                            if let Some((pool, name)) = found {
                                this.note(pool, shard_of(name));
                            }
                            rest = record::after_first(rest).map_err(damaged)?;
                        }
                    }
                }
                ChunkKind::Rows => each_row(body, &mut |table, key, value| {
                    if table == TableNumber::Pools {
                        let pool = PoolId(pool_of(key)?);
                        let name = crate::keyset::pool_name(pool, value);
                        let name = name.map_err(|error| inconsistent(error.to_string()))?;
                        this.note(pool, shard_of(&name));
                    } else if table == TableNumber::State && key == NEXT_POOL.as_bytes() {
                        this.raise_next(PoolId(pool_of(value)?));
                    }
                    Ok(())
                })?,
                ChunkKind::Head | ChunkKind::Meta | ChunkKind::Trailer => {}
                ChunkKind::Shard | ChunkKind::ShardEnd => return Err(several()),
            }
            Ok::<(), BackupError>(())
        })?;
        Ok(this)
    }

    fn note(&mut self, pool: PoolId, shard: u16) {
        self.pools.insert(pool, shard);
        self.raise_next(PoolId(pool.0.saturating_add(1)));
    }

    fn raise_next(&mut self, next: PoolId) {
        let found = self.next.entry(next.block()).or_insert(next);
        *found = next.max(*found);
    }

    /// Passes the backup of one shard to `send`, piece by piece. O(bytes of the whole backup).
    pub fn write<E>(
        &self,
        shard: u16,
        backup: &mut dyn Read,
        mut send: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), SplitError<E>> {
        let send = |bytes: Vec<u8>| send(&bytes).map_err(SplitError::Output);
        let mut out = ChunkWriter::begin(send)?;
        let mut kept = Vec::new();
        each_chunk(backup, &mut |kind, body| {
            kept.clear();
            match kind {
                ChunkKind::Head | ChunkKind::Meta => return out.chunk(kind, body),
                // The last chunk: the writer has its own.
                ChunkKind::Trailer => return Ok(()),
                ChunkKind::Shard | ChunkKind::ShardEnd => return Err(several().into()),
                ChunkKind::Batches => {
                    for batch in batches(body) {
                        let batch = batch.ok_or_else(cut)?;
                        let records = self.records_of(shard, batch.records)?;
                        // Also without records: positions have no gaps.
                        BackupBatch { records: &records, ..batch }.write(&mut kept);
                        out.counts.batches += 1;
                    }
                }
                ChunkKind::Rows => {
                    kept.extend_from_slice(&body[..1]);
                    let (mut keys, mut state) = (0, Vec::new());
                    each_row(body, &mut |table, key, value| {
                        if table == TableNumber::State {
                            state.push((key.to_vec(), value.to_vec()));
                        } else if self.is_in(shard, pool_of(key)?) {
                            write_row(key, value, &mut kept);
                            keys += u64::from(table == TableNumber::Keys);
                        }
                        Ok(())
                    })?;
                    let next = self.next.get(&shard).copied();
                    set_next_pool(&mut state, next.unwrap_or(PoolId::first_of(shard)));
                    for (name, number) in &state {
                        write_row(name, number, &mut kept);
                    }
                    out.counts.keys += keys;
                    if kept.len() == 1 {
                        return Ok(());
                    }
                }
            }
            out.chunk(kind, &kept)
        })?;
        out.finish().map(drop)
    }

    fn is_in(&self, shard: u16, pool: u32) -> bool {
        // A pool without a name is deleted already.
        self.pools.get(&PoolId(pool)) == Some(&shard)
    }

    /// Returns the records of a batch that belong to the pools of a shard, or to no pool.
    fn records_of(&self, shard: u16, records: &[u8]) -> Result<Vec<u8>, BackupError> {
        let (mut rest, mut kept) = (records, Vec::with_capacity(records.len()));
        while !rest.is_empty() {
            let after = record::after_first(rest).map_err(damaged)?;
            let first = &rest[..rest.len() - after.len()];
            let pool = record::pool_of(first).map_err(damaged)?;
            if pool.is_none_or(|pool| self.is_in(shard, pool.0)) {
                kept.extend_from_slice(first);
            }
            rest = after;
        }
        Ok(kept)
    }
}

/// Returns the identity of the directory of a backup. O(bytes).
pub(crate) fn meta_of(backup: &mut dyn Read) -> Result<Meta, BackupError> {
    let mut meta = None;
    each_chunk(backup, &mut |kind, body| {
        if kind == ChunkKind::Meta {
            meta = Some(Meta::read(body).map_err(|error| inconsistent(error.to_string()))?);
        }
        Ok::<(), BackupError>(())
    })?;
    meta.ok_or_else(|| inconsistent("a part is missing"))
}

/// Reads a backup to its end, and passes each chunk on.
pub(super) fn each_chunk<E: From<BackupError>>(
    backup: &mut dyn Read,
    each: &mut EachChunk<'_, E>,
) -> Result<(), E> {
    let (mut parser, mut piece) = (ChunkParser::new(), vec![0; PIECE]);
    loop {
        match backup.read(&mut piece) {
            Ok(0) => return parser.finish().map_err(E::from),
            Ok(len) => parser.feed(&piece[..len], each)?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(BackupError::Io(error).into()),
        }
    }
}

/// What is called with each row: its table, key and value.
type EachRow<'a> = dyn FnMut(TableNumber, &[u8], &[u8]) -> Result<(), BackupError> + 'a;

/// Passes each row of a chunk on.
fn each_row(body: &[u8], each: &mut EachRow<'_>) -> Result<(), BackupError> {
    let (number, mut rest) = body.split_first().ok_or_else(cut)?;
    let table = TableNumber::from_byte(*number);
    let table = table.ok_or_else(|| inconsistent("it has an unknown table"))?;
    while !rest.is_empty() {
        let ((key, value), after) = split_row(rest).ok_or_else(cut)?;
        each(table, key, value)?;
        rest = after;
    }
    Ok(())
}

/// Returns the pool of a row: the keys of all tables but that of the state begin with it.
fn pool_of(key: &[u8]) -> Result<u32, BackupError> {
    key.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)).ok_or_else(cut)
}

fn cut() -> BackupError {
    inconsistent("a batch or a row is cut")
}

fn several() -> BackupError {
    inconsistent("it has several shards")
}

fn damaged(error: RecordError) -> BackupError {
    inconsistent(error.0)
}
