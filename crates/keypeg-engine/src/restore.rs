//! Restoring a backup: a new data directory with the data of the backup, in which each key counts
//! as leased to an unknown holder, and with tokens above those that the original can have granted.
//!
//! The whole backup is read, checked and replayed before the directory gets its `meta`, and until
//! then a start refuses the directory. What a restore decides is written to the journal, so that a
//! crash at any later time changes none of it.

mod batches;
mod error;
mod merge;
mod read;
mod segments;
mod terms;

use crate::backup::{BackupError, ChunkKind, ChunkParser};
use crate::disk::{Directory, Disk};
use crate::keyset::KeySetDb;
use crate::layout::{META, RESTORING, is_ours, is_temporary};
use crate::meta::Meta;
use crate::preview::{NoFiles, Preview, Spill};
use crate::record::REPLAYED_TOKEN_MAX;
use crate::recover;
use crate::seal::Installation;
use crate::start::{StartError, io};
use crate::state::POOLS_MAX;
use crate::unlock::adopt;
use batches::{Batches, CACHE, Written, holds};
pub use error::RestoreError;
use error::of_backup;
use keypeg_core::{
    Fact, FactSink, HeldKeys, Limits, Pools, RandomSource, Replayer, RestoredHolds, answers_max,
};
use read::{BackupReading, ReadBackup};
use segments::SegmentWriter;
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::Arc;
pub use terms::RestoreOptions;
use terms::{first_token, too_high};

/// Bytes that are read at once until the identity in a backup is known.
const OPENING: usize = 4 << 10;
/// A directory that a new file system has.
const LOST_AND_FOUND: &str = "lost+found";

/// What a backup contains, and what a restore makes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreReport {
    /// The version of the server that created the backup.
    pub version: String,
    /// When the backup began, wall time in milliseconds.
    pub created_at_ms: u64,
    /// The number of pools.
    pub pools: u64,
    /// The number of keys.
    pub keys: u64,
    /// The number of keys that count as leased.
    pub held: u64,
    /// How long the longest of these leases runs from the first start on, in microseconds.
    pub hold_us: u64,
    /// The number of keys that rest for longer than they would be held.
    pub resting: u64,
    /// The number of quarantined keys.
    pub quarantined: u64,
    /// The first token that the restored server grants.
    pub first_token: u64,
}

/// Checks the frame of a backup as its bytes arrive: whether they are intact and complete.
#[derive(Debug)]
pub struct BackupCheck(ChunkParser);

impl Default for BackupCheck {
    fn default() -> Self {
        Self(ChunkParser::new())
    }
}

impl BackupCheck {
    /// Checks the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), BackupError> {
        self.0.feed(bytes, &mut |_, _| Ok(()))
    }

    /// Returns an error unless the bytes so far are a complete backup.
    pub fn finish(&self) -> Result<(), BackupError> {
        self.0.finish()
    }
}

/// Restores a backup into a directory that is empty, does not exist, or has only what a failed start
/// left. O(keys).
pub fn restore(
    backup: &mut dyn Read,
    path: &Path,
    options: RestoreOptions,
    random: &mut dyn RandomSource,
) -> Result<RestoreReport, RestoreError> {
    let opening = read_opening(backup, &options, random)?;
    let dir = path.display().to_string();
    let opened = Directory::open(path).map_err(|error| {
        if error.kind() == std::io::ErrorKind::WouldBlock {
            return StartError::InUse { dir: dir.clone() };
        }
        StartError::Io { doing: format!("opening {dir}"), error }
    })?;
    let disk: Arc<dyn Disk> = Arc::new(opened);
    restore_all(opening, backup, &disk, &dir, options, random).map_err(|error| match error {
        RestoreError::Directory(error) => error.in_dir(&dir).into(),
        RestoreError::Backup(_) | RestoreError::NotEmpty(_) | RestoreError::Tokens(_) => error,
    })
}

/// Checks a backup as a restore would, in memory, and returns what the restore would make of it.
/// O(keys), with the memory of a start and of the backup.
pub fn check_backup(
    backup: &mut dyn Read,
    options: RestoreOptions,
    random: &mut dyn RandomSource,
) -> Result<RestoreReport, RestoreError> {
    let preview: Arc<dyn Disk> = Arc::new(Preview::over(Arc::new(NoFiles)));
    restore_onto(backup, &preview, "memory", options, random)
}

/// Like [`check_backup`], with the memory of a start alone. `scratch` is an empty file, which gets
/// what a restore would write, encrypted with a key that exists only here.
pub fn check_backup_in(
    backup: &mut dyn Read,
    scratch: File,
    options: RestoreOptions,
    random: &mut dyn RandomSource,
) -> Result<RestoreReport, RestoreError> {
    let spill = Spill::new(scratch, random);
    let preview: Arc<dyn Disk> = Arc::new(Preview::spilling(Arc::new(NoFiles), spill));
    restore_onto(backup, &preview, "the temporary file", options, random)
}

/// Restores a backup onto a disk; `dir` is its name in messages.
pub fn restore_onto(
    backup: &mut dyn Read,
    disk: &Arc<dyn Disk>,
    dir: &str,
    options: RestoreOptions,
    random: &mut dyn RandomSource,
) -> Result<RestoreReport, RestoreError> {
    let opening = read_opening(backup, &options, random)?;
    restore_all(opening, backup, disk, dir, options, random)
}

/// The beginning of a backup.
struct Opening {
    /// The bytes, which are to be read again.
    bytes: Cursor<Vec<u8>>,
    /// Whether it has several shards.
    has_shards: bool,
}

/// Reads a backup up to the identity in it, and refuses seal keys that do not open it, before the
/// restore creates or changes anything.
fn read_opening(
    backup: &mut dyn Read,
    options: &RestoreOptions,
    random: &mut dyn RandomSource,
) -> Result<Opening, RestoreError> {
    let (mut parser, mut bytes, mut piece) = (ChunkParser::new(), Vec::new(), vec![0; OPENING]);
    // `None` until the chunk after the head has arrived.
    let (mut chunks, mut meta, mut has_shards) = (0, None, false);
    while chunks < 2 + usize::from(has_shards) {
        let len = read::read_piece(backup, &mut piece)?;
        if len == 0 {
            // The reader of the whole backup says what is missing.
            break;
        }
        bytes.extend_from_slice(&piece[..len]);
        parser.feed(&piece[..len], &mut |kind, body| {
            chunks += 1;
            has_shards |= kind == ChunkKind::Shard;
            if kind == ChunkKind::Meta {
                meta.get_or_insert(Meta::read(body));
            }
            Ok::<(), RestoreError>(())
        })?;
    }
    if let Some(Ok(mut meta)) = meta {
        let installation = meta.installation;
        adopt(&mut meta, options.seal.as_ref(), installation, random)?;
    }
    Ok(Opening { bytes: Cursor::new(bytes), has_shards })
}

fn restore_all(
    opening: Opening,
    backup: &mut dyn Read,
    disk: &Arc<dyn Disk>,
    dir: &str,
    options: RestoreOptions,
    random: &mut dyn RandomSource,
) -> Result<RestoreReport, RestoreError> {
    claim(&**disk, dir)?;
    let Opening { bytes, has_shards } = opening;
    let restored = write(&mut bytes.chain(backup), has_shards, disk, options, random);
    if restored.is_err() {
        // As far as it is possible: what is left is marked as incomplete, and a start refuses it.
        let _ = remove_all(&**disk);
    }
    restored
}

/// Marks an empty directory as an incomplete restore; continues in one that is so marked. A
/// failed start, as on a full disk, leaves only files with temporary names. They hold no data: it
/// removes them.
fn claim(disk: &dyn Disk, dir: &str) -> Result<(), RestoreError> {
    let names = disk.list().map_err(io("listing the data directory"))?;
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    let is_left = |name: &String| is_temporary(name) || name == LOST_AND_FOUND;
    if has(RESTORING) && !has(META) || names.iter().all(is_left) {
        remove_all(disk).map_err(io("removing the files of an incomplete restore or start"))?;
    } else {
        return Err(RestoreError::NotEmpty(dir.to_owned()));
    }
    let marked = disk.create(RESTORING, 0).and_then(|file| file.sync());
    marked.and_then(|()| disk.sync_dir()).map_err(io("writing the data directory"))?;
    Ok(())
}

/// Removes the files of a restore, the mark last.
fn remove_all(disk: &dyn Disk) -> std::io::Result<()> {
    for name in disk.list()? {
        if is_ours(&name) && name != RESTORING {
            disk.remove(&name)?;
        }
    }
    disk.sync_dir()?;
    if disk.list()?.iter().any(|name| name == RESTORING) {
        disk.remove(RESTORING)?;
    }
    disk.sync_dir()
}

/// Reads a snapshot of a shard into the scratch files of a replica; returns the installation that
/// it belongs to.
pub(crate) fn read_into(
    disk: &Arc<dyn Disk>,
    installation: u128,
    snapshot: &mut dyn Read,
) -> Result<u128, RestoreError> {
    Ok(BackupReading::new(disk, installation)?.read(snapshot)?.meta.installation)
}

fn write(
    backup: &mut dyn Read,
    has_shards: bool,
    disk: &Arc<dyn Disk>,
    options: RestoreOptions,
    random: &mut dyn RandomSource,
) -> Result<RestoreReport, RestoreError> {
    let mut number = [0; 16];
    random.fill(&mut number);
    let number = u128::from_le_bytes(number);
    let written = if has_shards {
        merge::write(backup, disk, number, &options, random)?
    } else {
        write_one(backup, disk, number, options, random)?
    };
    let Written { version, wall_ms, meta, installation, next_token, held } = written;
    // What the first start will find: it is checked once more as it is on the disk.
    let pools = replay(&**disk, &installation)?;
    let sum = |of: fn(keypeg_core::KeyCounts) -> u64| {
        pools.iter().map(|pool| of(pool.counts())).sum::<u64>()
    };
    let report = RestoreReport {
        version,
        created_at_ms: wall_ms,
        pools: pools.iter().count() as u64,
        keys: pools.key_count(),
        held: held.keys,
        hold_us: held.until_us,
        resting: sum(|counts| counts.leased + counts.resting) - held.keys,
        quarantined: sum(|counts| counts.quarantined),
        first_token: next_token,
    };
    let placed = meta.replace(&**disk);
    let placed = placed.and_then(|()| disk.remove(RESTORING)).and_then(|()| disk.sync_dir());
    placed.map_err(io("writing meta"))?;
    Ok(report)
}

/// Writes the backup of one server.
fn write_one(
    backup: &mut dyn Read,
    disk: &Arc<dyn Disk>,
    number: u128,
    mut options: RestoreOptions,
    random: &mut dyn RandomSource,
) -> Result<Written, RestoreError> {
    let ReadBackup { head, mut meta, mut segments, lease_us } =
        BackupReading::new(disk, number)?.read(backup)?;
    let keys = options.seal.take();
    let installation = adopt(&mut meta, keys.as_ref(), number, random)?.installation;
    let pools = replay(&**disk, &installation)?;
    let reserved = pools.counters().tokens_reserved;
    let first_token = first_token(reserved, head.wall_ms, &options)?;
    let next_token = first_token.saturating_add(pools.key_count()).max(reserved + 1);
    if next_token > REPLAYED_TOKEN_MAX {
        return Err(too_high(first_token));
    }
    let terms = RestoredHolds { now_us: lease_us, hold_us: options.hold_us, first_token };
    let mut held = write_holds(&pools, terms, next_token, &mut segments)?;
    held.until_us = held.until_us.saturating_sub(lease_us);
    let (version, wall_ms) = (head.version, head.wall_ms);
    Ok(Written { version, wall_ms, meta, installation, next_token, held })
}

/// Replays the directory as a start does.
fn replay(disk: &dyn Disk, installation: &Installation) -> Result<Pools, RestoreError> {
    let limits = Limits {
        pools: POOLS_MAX,
        keys: u64::MAX,
        bytes: u64::MAX,
        answers: answers_max(u64::MAX),
    };
    let keyset = KeySetDb::open(disk, installation, CACHE);
    let keyset = keyset.map_err(StartError::from).map_err(of_backup)?;
    let begun = Replayer::new(installation.ids.clone(), limits, 1);
    let replayed =
        recover::replay(disk, installation, begun, u64::MAX, &keyset).map_err(of_backup)?;
    Ok(replayed.replayer.into_pools())
}

/// Writes the holds of all keys, and the reservation of their tokens before them.
fn write_holds(
    pools: &Pools,
    terms: RestoredHolds,
    next_token: u64,
    segments: &mut SegmentWriter,
) -> Result<HeldKeys, RestoreError> {
    let lease_us = terms.now_us;
    let mut batches = Batches::new(segments, lease_us);
    batches.record(&Fact::TokensReserved { until: next_token });
    let held = holds(pools, terms, &mut batches);
    batches.end();
    // An empty batch, whose frame says that the holds are durable.
    batches.end();
    let written = batches.result.and_then(|()| segments.flush());
    written.map_err(io("writing the journal"))?;
    Ok(held)
}
