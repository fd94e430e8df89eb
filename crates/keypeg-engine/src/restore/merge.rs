//! Makes one data directory from a backup with several shards: shard by shard, each is read and
//! replayed beside the directory, and what it amounts to is added.
//!
//! Shards have pools of their own, so their rows never collide. Their clocks, key numbers and tokens
//! have nothing in common: every instant moves to the clock of the new directory, and the counters
//! continue above the greatest ones. What has no time limit comes into the database, and everything
//! else is written as snapshot records.

use super::batches::{Batches, CACHE, Written, holds};
use super::error::{RestoreError, of_backup};
use super::read::{BackupReading, ReadBackup, read_piece};
use super::segments::SegmentWriter;
use super::terms::{RestoreOptions, first_token, too_high};
use crate::backup::{BackupCounts, ChunkKind, ChunkParser, inconsistent, read_trailer};
use crate::checkpointer::{Checkpointer, CheckpointerOptions};
use crate::clock::ClockReading;
use crate::disk::Disk;
use crate::frame::SegmentNumber;
use crate::journal::SEGMENT_LEN;
use crate::keyset::{KeySetCopy, KeySetDb, KeySetDelta, TableNumber};
use crate::meta::Meta;
use crate::preview::{NoFiles, Preview};
use crate::record::REPLAYED_TOKEN_MAX;
use crate::recover;
use crate::replica::SHARDS_MAX;
use crate::seal::{Installation, SealKeys};
use crate::start::{StartError, io};
use crate::state::POOLS_MAX;
use crate::unlock::adopt;
use keypeg_core::{
    Counters, Fact, FactSink, Grant, HeldKeys, IdempotencyRecord, IdempotentResult, Limits, Lsn,
    NEVER_US, PoolId, Pools, RandomSource, Replayer, RestoredHolds, SnapshotCursor, answers_max,
};
use std::io::Read;
use std::sync::Arc;

/// The lease time of a new directory, in microseconds: 35 years, far above that of any shard, so
/// that no instant moves below zero.
const NOW_US: u64 = 1 << 50;
/// The position of the rows; the batches follow.
const ROWS_AT: Lsn = Lsn(1);
/// Bytes of rows that are inserted in one transaction.
const ROWS_FULL: usize = 4 << 20;
/// Snapshot records that are written at once.
const RECORDS: u32 = 4_096;
/// Bytes that are read at once.
const PIECE: usize = 256 << 10;

/// Reads a backup with several shards into a directory.
pub(super) fn write(
    backup: &mut dyn Read,
    disk: &Arc<dyn Disk>,
    number: u128,
    options: &RestoreOptions,
    random: &mut dyn RandomSource,
) -> Result<Written, RestoreError> {
    let mut merge = Merge::new(disk, number, options, random)?;
    let (mut parser, mut piece) = (ChunkParser::new(), vec![0; PIECE]);
    let mut section: Option<Section> = None;
    loop {
        let len = read_piece(backup, &mut piece)?;
        if len == 0 {
            break;
        }
        parser.feed(&piece[..len], &mut |kind, body| match (kind, &mut section) {
            (ChunkKind::Shard, None) => {
                section = Some(Section::begin(body, number)?);
                Ok(())
            }
            (ChunkKind::ShardEnd, Some(_)) => {
                let mut section = section.take().expect("invariant: it was found");
                section.reading.chunk(kind, body)?;
                merge.counts.add(read_trailer(body));
                merge.add(&section.disk, section.shard, section.reading.finish()?)
            }
            (ChunkKind::Trailer, None) => merge.check(read_trailer(body)),
            (ChunkKind::Shard | ChunkKind::Trailer, Some(_)) | (_, None) => {
                Err(inconsistent("its shards are out of order").into())
            }
            (_, Some(section)) => section.reading.chunk(kind, body),
        })?;
    }
    parser.finish()?;
    merge.finish()
}

/// A shard that is read, into files beside the directory.
struct Section {
    shard: u16,
    disk: Arc<dyn Disk>,
    reading: BackupReading,
}

impl Section {
    fn begin(body: &[u8], number: u128) -> Result<Self, RestoreError> {
        let shard = body.try_into().map(u16::from_le_bytes).ok();
        let shard = shard.filter(|shard| *shard < SHARDS_MAX);
        let shard = shard.ok_or_else(|| inconsistent("the number of a shard is not valid"))?;
        let disk: Arc<dyn Disk> = Arc::new(Preview::over(Arc::new(NoFiles)));
        let reading = BackupReading::new(&disk, number)?;
        Ok(Self { shard, disk, reading })
    }
}

/// The directory so far.
struct Merge<'a> {
    disk: &'a Arc<dyn Disk>,
    number: u128,
    options: &'a RestoreOptions,
    random: &'a mut dyn RandomSource,
    keyset: KeySetCopy,
    segments: Option<SegmentWriter>,
    counters: Counters,
    counts: BackupCounts,
    /// The identity of the shards, as it was and as the directory gets it.
    meta: Option<(Meta, Meta, Installation)>,
    version: String,
    wall_ms: u64,
    held: HeldKeys,
}

impl<'a> Merge<'a> {
    fn new(
        disk: &'a Arc<dyn Disk>,
        number: u128,
        options: &'a RestoreOptions,
        random: &'a mut dyn RandomSource,
    ) -> Result<Self, RestoreError> {
        Ok(Self {
            disk,
            number,
            options,
            random,
            keyset: KeySetCopy::create(&**disk).map_err(StartError::from)?,
            segments: None,
            counters: Counters::default(),
            counts: BackupCounts::default(),
            meta: None,
            version: String::new(),
            wall_ms: u64::MAX,
            held: HeldKeys::default(),
        })
    }

    fn check(&self, counts: Option<BackupCounts>) -> Result<(), RestoreError> {
        if counts == Some(self.counts) {
            return Ok(());
        }
        Err(inconsistent("it does not contain what its trailer counts").into())
    }

    /// Adds a shard that was read into files beside the directory. O(keys of the shard).
    fn add(
        &mut self,
        beside: &Arc<dyn Disk>,
        shard: u16,
        read: ReadBackup,
    ) -> Result<(), RestoreError> {
        let ReadBackup { head, meta, .. } = read;
        let installation = self.installation(&meta)?;
        self.wall_ms = self.wall_ms.min(head.wall_ms);
        let (pools, keyset, lease_us) = open(beside, shard, &installation)?;
        let greatest = copy_rows(&keyset, &self.keyset)?;
        drop(keyset);
        let counters = pools.counters();
        let ours = &mut self.counters;
        ours.next_key = ours.next_key.max(counters.next_key);
        ours.next_pool = ours.next_pool.max(counters.next_pool).max(PoolId(greatest + 1));
        let reserved = counters.tokens_reserved;
        // Above what this shard can have granted, and above the tokens that the shards before have.
        let first = first_token(reserved, head.wall_ms, self.options)?.max(ours.tokens_reserved);
        let next = first.saturating_add(pools.key_count().max(1)).max(reserved.saturating_add(1));
        if next > REPLAYED_TOKEN_MAX {
            return Err(too_high(first));
        }
        ours.tokens_reserved = next;
        self.version = head.version;
        let starts = head.starts;
        let (disk, number) = (Arc::clone(self.disk), self.number);
        let at = (SegmentNumber::FIRST.next(), Lsn(ROWS_AT.0 + 1));
        let segments =
            self.segments.get_or_insert_with(|| SegmentWriter::new(disk, number, starts, at));
        let mut batches = Batches {
            segments,
            records: Vec::new(),
            lease_us: NOW_US,
            seal: installation.seal.clone(),
            result: Ok(()),
        };
        batches.record(&Fact::TokensReserved { until: next });
        let mut moved = Moved { to: &mut batches, from_us: lease_us };
        let mut cursor = Some(SnapshotCursor::default());
        while let Some(from) = cursor {
            cursor = pools.write_snapshot(from, RECORDS, &mut moved);
        }
        let hold_us = self.options.hold_us;
        let terms = RestoredHolds { now_us: lease_us, hold_us, first_token: first };
        let held = holds(&pools, terms, &mut moved);
        batches.end();
        batches.result.map_err(io("writing the journal"))?;
        self.held.keys += held.keys;
        self.held.until_us = self.held.until_us.max(held.until_us.saturating_sub(lease_us));
        Ok(())
    }

    /// Returns the installation of the directory, with the secrets of the shards.
    fn installation(&mut self, meta: &Meta) -> Result<Installation, RestoreError> {
        if let Some((original, _, installation)) = &self.meta {
            if original == meta {
                return Ok(installation.clone());
            }
            return Err(inconsistent("its shards belong to several installations").into());
        }
        let (original, mut adopted) = (meta.clone(), meta.clone());
        let keys: Option<&SealKeys> = self.options.seal.as_ref();
        let installation = adopt(&mut adopted, keys, self.number, self.random)?.installation;
        self.meta = Some((original, adopted, installation.clone()));
        Ok(installation)
    }

    fn finish(self) -> Result<Written, RestoreError> {
        let (Some((_, meta, installation)), Some(mut segments)) = (self.meta, self.segments) else {
            return Err(inconsistent("it has no shard").into());
        };
        let dropped = Fact::SegmentsDropped { through: SegmentNumber::FIRST.0 };
        let mut batches = Batches::new(&mut segments, NOW_US);
        batches.record(&dropped);
        batches.end();
        // An empty batch, whose frame says that all before it are durable.
        batches.end();
        let written = batches.result.and_then(|()| segments.flush());
        written.map_err(io("writing the journal"))?;
        self.keyset.finish().map_err(StartError::from)?;
        let keyset =
            KeySetDb::open(&**self.disk, &installation, CACHE).map_err(StartError::from)?;
        // The batches reserve the tokens, each more than the ones before.
        let state = KeySetDelta::after(ROWS_AT, Counters { tokens_reserved: 1, ..self.counters });
        keyset.commit(&state).map_err(StartError::from)?;
        drop(keyset);
        self.disk.sync_dir().map_err(io("writing the data directory"))?;
        let next_token = self.counters.tokens_reserved;
        let (version, wall_ms, held) = (self.version, self.wall_ms, self.held);
        Ok(Written { version, wall_ms, meta, installation, next_token, held })
    }
}

/// Replays the files of a shard, and brings all its keys into its database. Returns its pools, the
/// database and its lease time.
fn open(
    disk: &Arc<dyn Disk>,
    shard: u16,
    installation: &Installation,
) -> Result<(Pools, KeySetDb, u64), RestoreError> {
    let limits = Limits {
        pools: POOLS_MAX,
        keys: u64::MAX,
        bytes: u64::MAX,
        answers: answers_max(u64::MAX),
    };
    let keyset = KeySetDb::open(&**disk, installation, CACHE);
    let keyset = keyset.map_err(StartError::from).map_err(of_backup)?;
    let mut begun = Replayer::new(installation.ids.clone(), limits, 1);
    begun.set_pool_block(shard);
    let found = recover::replay(&**disk, installation, begun, u64::MAX, &keyset);
    let found = found.map_err(of_backup)?;
    let (rows_at, lease_us) = (found.checkpointed, found.last.lease_us);
    let reading = ClockReading { boot_us: 0, boot_id: 0, wall_us: 0 };
    let (mut journal, replayer) = found.resume(disk, SEGMENT_LEN, reading, lease_us)?;
    let segment = journal.segment_with(rows_at);
    let options = CheckpointerOptions {
        disk: Arc::clone(disk),
        keyset,
        installation: installation.clone(),
        segment,
    };
    let checkpointer = Checkpointer::new(options).map_err(StartError::from)?;
    journal.set_progress(checkpointer.progress());
    let keyset = checkpointer.finish().map_err(|error| inconsistent(error.to_string()))?;
    Ok((replayer.into_pools(), keyset, lease_us))
}

/// Copies all rows except those of the state. Returns the greatest number of a pool, also of a
/// deleted one that still has rows. O(keys).
fn copy_rows(from: &KeySetDb, to: &KeySetCopy) -> Result<u32, RestoreError> {
    let snapshot = from.snapshot().map_err(StartError::from)?;
    let mut greatest = 0;
    for table in TableNumber::ALL.into_iter().filter(|table| *table != TableNumber::State) {
        let (mut rows, mut bytes, mut copied) = (Vec::new(), 0, Ok(()));
        let insert = |rows: &mut Vec<(Vec<u8>, Vec<u8>)>| {
            let inserted = to.insert(table, rows.iter().map(|(key, value)| (&key[..], &value[..])));
            rows.clear();
            inserted
        };
        let read = snapshot.rows(table, &mut |key, value| {
            if let (TableNumber::Pools | TableNumber::DeletedPools, Some(pool)) =
                (table, key.first_chunk())
            {
                greatest = greatest.max(u32::from_le_bytes(*pool));
            }
            rows.push((key.to_vec(), value.to_vec()));
            bytes += key.len() + value.len();
            if bytes >= ROWS_FULL {
                copied = insert(&mut rows);
                bytes = 0;
            }
            copied.is_ok()
        });
        copied.map_err(StartError::from)?;
        read.map_err(StartError::from)?;
        insert(&mut rows).map_err(StartError::from)?;
    }
    Ok(greatest)
}

/// Moves the instants of snapshot records from the clock of a shard to that of the directory.
struct Moved<'a> {
    to: &'a mut dyn FactSink,
    /// The lease time of the shard, which becomes [`NOW_US`].
    from_us: u64,
}

impl Moved<'_> {
    fn at(&self, at_us: u64) -> u64 {
        if at_us >= NEVER_US / 2 {
            return at_us;
        }
        // Both are far from the ends of the range.
        (at_us + NOW_US).saturating_sub(self.from_us)
    }
}

impl FactSink for Moved<'_> {
    fn record(&mut self, fact: &Fact<'_>) {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "other facts have no instant of a lease"
        )]
        let moved = match fact.clone() {
            Fact::LeaseSnapshot { pool, key, token, lease } => {
                let lease = Grant {
                    granted_us: self.at(lease.granted_us),
                    until_us: self.at(lease.until_us),
                    hold_until_us: self.at(lease.hold_until_us),
                    ..lease
                };
                Fact::LeaseSnapshot { pool, key, token, lease }
            }
            Fact::RestSnapshot { pool, key, token, until_us, reason } => {
                let until_us = self.at(until_us);
                Fact::RestSnapshot { pool, key, token, until_us, reason }
            }
            Fact::AnswerStored { pool, answer } => {
                let mut result = answer.result;
                if let IdempotentResult::Lease { until_us, .. } = &mut result {
                    *until_us = self.at(*until_us);
                }
                let until_us = self.at(answer.until_us);
                let answer = IdempotencyRecord { until_us, result, ..answer };
                Fact::AnswerStored { pool, answer }
            }
            other => other,
        };
        self.to.record(&moved);
    }
}
