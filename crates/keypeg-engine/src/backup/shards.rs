//! Writes a backup with several shards: for each one its newest snapshot, and behind it the batches
//! of its log that the snapshot does not contain.
//!
//! It does not know where snapshots and batches come from. Each shard is as of a moment of its own.

use super::format::{BackupCounts, ChunkKind, ChunkWriter, read_trailer};
use super::head::{BackupBatch, BackupHead, batches, inconsistent};
use super::split::each_chunk;
use super::{BackupError, SplitError};
use crate::commit_log::LogBatch;
use crate::frame::SegmentNumber;
use crate::replica::ShardIdentity;
use keypeg_core::Lsn;
use std::fmt;
use std::io::Read;

/// Bytes of a body after which a chunk is complete.
const CHUNK_FULL: usize = 64 << 10;

/// What a shard amounts to: its newest snapshot, and the batches behind it.
pub struct ShardParts<'a, E> {
    /// The number of the shard.
    pub shard: u16,
    /// Its newest snapshot, if there is one.
    pub snapshot: Option<&'a mut dyn Read>,
    /// The number of batches behind it.
    pub count: u64,
    /// Passes these batches on, in their order.
    pub batches: &'a mut EachBatch<'a, E>,
}

/// Passes batches to its argument.
pub type EachBatch<'a, E> =
    dyn FnMut(&mut dyn FnMut(LogBatch<'_>) -> Result<(), E>) -> Result<(), E> + 'a;

/// A backup with several shards, to a consumer of bytes.
pub struct ShardsBackup<W> {
    out: ChunkWriter<W>,
    meta: Vec<u8>,
    /// When the backup began, wall time in milliseconds.
    wall_ms: u64,
    shards: u16,
}

impl<E, W: FnMut(Vec<u8>) -> Result<(), E>> ShardsBackup<W> {
    /// Begins a backup of an installation, at this wall time in milliseconds.
    pub fn begin(identity: &ShardIdentity, wall_ms: u64, send: W) -> Result<Self, E> {
        Ok(Self {
            out: ChunkWriter::begin_shards(send)?,
            meta: identity.meta(),
            wall_ms,
            shards: 0,
        })
    }

    /// Adds a shard. One without a snapshot and without batches is left out. O(bytes).
    pub fn shard(&mut self, parts: ShardParts<'_, E>) -> Result<(), SplitError<E>> {
        let ShardParts { shard, snapshot, count, batches } = parts;
        if snapshot.is_none() && count == 0 {
            return Ok(());
        }
        self.shards += 1;
        let Self { out, meta, wall_ms, .. } = self;
        out.chunk(ChunkKind::Shard, &shard.to_le_bytes()).map_err(SplitError::Output)?;
        let mut section = Section {
            out,
            meta,
            wall_ms: *wall_ms,
            count,
            next: Lsn(1),
            batches: Some(batches),
            counts: BackupCounts::default(),
        };
        match snapshot {
            Some(snapshot) => {
                each_chunk(snapshot, &mut |kind, body| section.of_snapshot(kind, body))?;
            }
            None => section.head(BackupHead {
                wall_ms: 0,
                starts: 1,
                segment: SegmentNumber::FIRST,
                checkpointed: Lsn(0),
                first: Lsn(1),
                through: Lsn(0),
                version: env!("CARGO_PKG_VERSION").into(),
            })?,
        }
        section.add_batches()?;
        let counts = section.counts;
        self.out.chunk(ChunkKind::ShardEnd, &counts.write()).map_err(SplitError::Output)?;
        self.out.counts.add(Some(counts));
        Ok(())
    }

    /// Ends the backup. Returns the number of shards in it.
    pub fn finish(self) -> Result<u16, E> {
        self.out.finish()?;
        Ok(self.shards)
    }
}

/// A shard that is written.
struct Section<'a, 'b, W, E> {
    out: &'a mut ChunkWriter<W>,
    meta: &'a [u8],
    wall_ms: u64,
    /// The number of batches behind the snapshot.
    count: u64,
    /// The position of the first of them.
    next: Lsn,
    /// `None` once they are written.
    batches: Option<&'a mut EachBatch<'b, E>>,
    counts: BackupCounts,
}

impl<E, W: FnMut(Vec<u8>) -> Result<(), E>> Section<'_, '_, W, E> {
    fn head(&mut self, head: BackupHead) -> Result<(), SplitError<E>> {
        self.next = Lsn(head.through.0 + 1);
        // The tokens of the batches are in them: the time counts from now on.
        let through = Lsn(head.through.0 + self.count);
        let head = BackupHead { wall_ms: self.wall_ms, through, ..head };
        self.chunk(ChunkKind::Head, &head.write())?;
        self.out.chunk(ChunkKind::Meta, self.meta).map_err(SplitError::Output)
    }

    fn of_snapshot(&mut self, kind: ChunkKind, body: &[u8]) -> Result<(), SplitError<E>> {
        match kind {
            ChunkKind::Head => {
                let head = BackupHead::read(body);
                self.head(head.ok_or_else(|| inconsistent("its head is not valid"))?)
            }
            // That of the installation, which is the same in all shards, is written instead.
            ChunkKind::Meta => Ok(()),
            ChunkKind::Batches => {
                self.counts.batches += batches(body).count() as u64;
                self.chunk(kind, body)
            }
            ChunkKind::Rows => {
                self.add_batches()?;
                self.chunk(kind, body)
            }
            ChunkKind::Trailer => {
                self.counts.keys = read_trailer(body).map_or(0, |counts| counts.keys);
                Ok(())
            }
            ChunkKind::Shard | ChunkKind::ShardEnd => {
                Err(BackupError::Content("a snapshot has several shards".into()).into())
            }
        }
    }

    /// Writes the batches behind the snapshot, once.
    fn add_batches(&mut self) -> Result<(), SplitError<E>> {
        let Some(each) = self.batches.take() else { return Ok(()) };
        let Self { out, counts, next, .. } = self;
        let (first, mut body) = (*next, Vec::new());
        each(&mut |LogBatch { lease_us, records }| {
            BackupBatch { lsn: *next, lease_us, records }.write(&mut body);
            counts.batches += 1;
            next.0 += 1;
            if body.len() < CHUNK_FULL {
                return Ok(());
            }
            let written = out.chunk(ChunkKind::Batches, &body);
            body.clear();
            written
        })
        .map_err(SplitError::Output)?;
        if next.0 - first.0 != self.count {
            return Err(inconsistent("a batch of the log is missing").into());
        }
        if body.is_empty() { Ok(()) } else { self.chunk(ChunkKind::Batches, &body) }
    }

    fn chunk(&mut self, kind: ChunkKind, body: &[u8]) -> Result<(), SplitError<E>> {
        self.out.chunk(kind, body).map_err(SplitError::Output)
    }
}

impl<W> fmt::Debug for ShardsBackup<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardsBackup({} shards)", self.shards)
    }
}

impl<E> fmt::Debug for ShardParts<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardParts(shard {}, {} batches)", self.shard, self.count)
    }
}
