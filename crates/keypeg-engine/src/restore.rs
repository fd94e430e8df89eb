//! Restoring a backup: a new data directory with the data of the backup, in which each key counts
//! as leased to an unknown holder, and with tokens above those that the original can have granted.
//!
//! The whole backup is read, checked and replayed before the directory gets its `meta`, and until
//! then a start refuses the directory. What a restore decides is written to the journal, so that a
//! crash at any later time changes none of it.

mod error;
mod read;
mod segments;

use crate::backup::{BackupError, ChunkKind, ChunkParser, inconsistent};
use crate::disk::{Directory, Disk};
use crate::keyset::KeySetDb;
use crate::layout::{META, RESTORING, is_ours};
use crate::meta::Meta;
use crate::preview::{NoFiles, Preview, Spill};
use crate::record::{self, REPLAYED_TOKEN_MAX};
use crate::recover;
use crate::seal::{Installation, SealKeys, ValueSeal};
use crate::start::{StartError, io};
use crate::state::{FIRST_TOKEN_MAX, POOLS_MAX};
use crate::unlock::adopt;
pub use error::RestoreError;
use keypeg_core::sabotage::{Sabotage, enabled};
use keypeg_core::{
    Fact, FactSink, HeldKeys, Limits, Pools, RandomSource, Replayer, RestoredHolds, answers_max,
};
use read::{BackupReading, ReadBackup};
use segments::{NewBatch, SegmentWriter};
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::Arc;

/// The most tokens that a server grants in a second: far more than a machine can.
const TOKENS_PER_S: u64 = 1 << 20;
/// By how much the clocks of two machines may differ: the first token accounts for it.
const CLOCK_ERROR_MS: u64 = 24 * 3_600 * 1_000;
/// Bytes of records after which a batch of holds is complete.
const BATCH_FULL: usize = 256 << 10;
/// Bytes of pages that the database keeps in memory while it is replayed.
const CACHE: usize = 64 << 20;
/// Bytes that are read at once until the identity in a backup is known.
const OPENING: usize = 4 << 10;
/// A directory that a new file system has.
const LOST_AND_FOUND: &str = "lost+found";

/// The options of a restore.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// How long each key is held, in microseconds; `None` is the longest that a lease of its pool
    /// can run.
    pub hold_us: Option<u64>,
    /// The first token that the restored server grants; `None` computes it.
    pub token_floor: Option<u64>,
    /// The time of the restore, wall time in milliseconds.
    pub wall_ms: u64,
    /// The seal keys of a sealed backup: the first one seals the new directory.
    pub seal: Option<SealKeys>,
}

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

/// Restores a backup into a directory that is empty or does not exist. O(keys).
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
    restore_all(&mut opening.chain(backup), &disk, &dir, options, random)
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
    restore_all(&mut opening.chain(backup), disk, dir, options, random)
}

/// Reads a backup up to the identity in it, and refuses seal keys that do not open it, before the
/// restore creates or changes anything. Returns the bytes, which are to be read again.
fn read_opening(
    backup: &mut dyn Read,
    options: &RestoreOptions,
    random: &mut dyn RandomSource,
) -> Result<Cursor<Vec<u8>>, RestoreError> {
    let (mut parser, mut bytes, mut piece) = (ChunkParser::new(), Vec::new(), vec![0; OPENING]);
    // `None` until the chunk after the head has arrived.
    let (mut chunks, mut meta) = (0, None);
    while chunks < 2 {
        let len = read::read_piece(backup, &mut piece)?;
        if len == 0 {
            // The reader of the whole backup says what is missing.
            break;
        }
        bytes.extend_from_slice(&piece[..len]);
        parser.feed(&piece[..len], &mut |kind, body| {
            chunks += 1;
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
    Ok(Cursor::new(bytes))
}

fn restore_all(
    backup: &mut dyn Read,
    disk: &Arc<dyn Disk>,
    dir: &str,
    options: RestoreOptions,
    random: &mut dyn RandomSource,
) -> Result<RestoreReport, RestoreError> {
    claim(&**disk, dir)?;
    let restored = write(backup, disk, options, random);
    if restored.is_err() {
        // As far as it is possible: what is left is marked as incomplete, and a start refuses it.
        let _ = remove_all(&**disk);
    }
    restored
}

/// Marks an empty directory as an incomplete restore; continues in one that is so marked.
fn claim(disk: &dyn Disk, dir: &str) -> Result<(), RestoreError> {
    let names = disk.list().map_err(io("listing the data directory"))?;
    let has = |wanted: &str| names.iter().any(|name| name == wanted);
    if has(RESTORING) && !has(META) {
        remove_all(disk).map_err(io("removing the files of an incomplete restore"))?;
    } else if names.iter().any(|name| name != LOST_AND_FOUND) {
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
    disk: &Arc<dyn Disk>,
    mut options: RestoreOptions,
    random: &mut dyn RandomSource,
) -> Result<RestoreReport, RestoreError> {
    let mut number = [0; 16];
    random.fill(&mut number);
    let number = u128::from_le_bytes(number);
    let ReadBackup { head, mut meta, mut segments, lease_us } =
        BackupReading::new(disk, number)?.read(backup)?;
    let keys = options.seal.take();
    let installation = adopt(&mut meta, keys.as_ref(), number, random)?.installation;
    let pools = replay(&**disk, &installation)?;
    let reserved = pools.counters().tokens_reserved;
    let first_token = first_token(reserved, head.wall_ms, &options)?;
    let next_token = first_token.saturating_add(pools.key_count()).max(reserved + 1);
    if next_token > REPLAYED_TOKEN_MAX {
        let message = format!(
            "the first token {first_token} is too high: name one below {REPLAYED_TOKEN_MAX} with \
             --token-floor"
        );
        return Err(RestoreError::Tokens(message));
    }
    let terms = RestoredHolds { now_us: lease_us, hold_us: options.hold_us, first_token };
    let held = write_holds(&pools, terms, next_token, &mut segments)?;
    drop(pools);
    // What the first start will find: it is checked once more as it is on the disk.
    let pools = replay(&**disk, &installation)?;
    let sum = |of: fn(keypeg_core::KeyCounts) -> u64| {
        pools.iter().map(|pool| of(pool.counts())).sum::<u64>()
    };
    let report = RestoreReport {
        version: head.version,
        created_at_ms: head.wall_ms,
        pools: pools.iter().count() as u64,
        keys: pools.key_count(),
        held: held.keys,
        hold_us: held.until_us.saturating_sub(lease_us),
        resting: sum(|counts| counts.leased + counts.resting) - held.keys,
        quarantined: sum(|counts| counts.quarantined),
        first_token: next_token,
    };
    let placed = meta.replace(&**disk);
    let placed = placed.and_then(|()| disk.remove(RESTORING)).and_then(|()| disk.sync_dir());
    placed.map_err(io("writing meta"))?;
    Ok(report)
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

/// Returns an error of a replay: the files are new, so damage in them comes from the backup.
fn of_backup(error: StartError) -> RestoreError {
    if let StartError::Corrupt(why) = error { inconsistent(why).into() } else { error.into() }
}

/// Chooses the first token: above all that the original server can have granted until now.
fn first_token(
    reserved: u64,
    backup_wall_ms: u64,
    options: &RestoreOptions,
) -> Result<u64, RestoreError> {
    if let Some(floor) = options.token_floor {
        if floor < reserved {
            let message = format!(
                "the token {floor} of --token-floor is too low: the server of the backup may have \
                 granted every token below {reserved}"
            );
            return Err(RestoreError::Tokens(message));
        }
        return Ok(floor);
    }
    let behind_ms = backup_wall_ms.saturating_sub(options.wall_ms);
    if behind_ms > CLOCK_ERROR_MS {
        let message = format!(
            "the clock of this machine is {} hours behind the backup: correct the clock, or name \
             the first token with --token-floor",
            behind_ms / 3_600_000
        );
        return Err(RestoreError::Tokens(message));
    }
    if enabled(Sabotage::KeepTokensAtRestore) {
        return Ok(reserved);
    }
    let elapsed_ms = options.wall_ms.saturating_sub(backup_wall_ms) + CLOCK_ERROR_MS;
    let granted = u128::from(elapsed_ms) * u128::from(TOKENS_PER_S) / 1_000;
    // A backup of an early version, before its first grant: tokens begin at the wall time in
    // microseconds, which grows more slowly than `granted`.
    let begins_at = backup_wall_ms.saturating_mul(1_000).min(FIRST_TOKEN_MAX);
    let reserved = if reserved > 1 { reserved } else { begins_at };
    Ok(reserved.saturating_add(u64::try_from(granted).unwrap_or(u64::MAX)))
}

/// Writes the holds of all keys, and the reservation of their tokens before them.
fn write_holds(
    pools: &Pools,
    terms: RestoredHolds,
    next_token: u64,
    segments: &mut SegmentWriter,
) -> Result<HeldKeys, RestoreError> {
    let lease_us = terms.now_us;
    let mut batches = Batches { segments, records: Vec::new(), lease_us, result: Ok(()) };
    batches.record(&Fact::TokensReserved { until: next_token });
    let held = if enabled(Sabotage::HoldNothingAtRestore) {
        HeldKeys::default()
    } else {
        pools.write_restored_holds(terms, &mut batches)
    };
    batches.end();
    // An empty batch, whose frame says that the holds are durable.
    batches.end();
    let written = batches.result.and_then(|()| segments.flush());
    written.map_err(io("writing the journal"))?;
    Ok(held)
}

/// Collects facts into batches.
struct Batches<'a> {
    segments: &'a mut SegmentWriter,
    records: Vec<u8>,
    lease_us: u64,
    result: std::io::Result<()>,
}

impl Batches<'_> {
    fn end(&mut self) {
        if self.result.is_ok() {
            let batch = NewBatch { lease_us: self.lease_us, records: &self.records };
            self.result = self.segments.add(batch);
        }
        self.records.clear();
    }
}

impl FactSink for Batches<'_> {
    fn record(&mut self, fact: &Fact<'_>) {
        // Holds have no values.
        record::write(&mut self.records, fact, self.lease_us, &ValueSeal::default());
        if self.records.len() >= BATCH_FULL {
            self.end();
        }
    }
}
