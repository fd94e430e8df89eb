//! Moves the data of one server into a store that several servers share: a backup becomes the first
//! snapshot of each shard.
//!
//! It does not know what a snapshot contains. The installation is created last, so a server finds
//! either all of the data or none.

use super::shared::{self, unusable};
use crate::clock::SystemClock;
use crate::failure::{Failure, exit};
use crate::memory::{self, MemoryPlan};
use crate::options::value::StoreUrl;
use crate::random::SystemRandom;
use keypeg_core::{Policy, RandomSource as _};
use keypeg_engine::backup::{BackupError, PoolShards, SplitError};
use keypeg_engine::{
    Engine, EngineConfig, RestoreOptions, RestoreReport, SealOptions, ShardIdentity,
};
use keypeg_log::{Call, Completed, FrameId, LogError, Shard, SharedLog, Tail, wait};
use keypeg_shard::{Executor, SnapshotWriter, shard_of_pool};
use keypeg_store::{BackupStream, Store as _};
use std::fs::File;
use std::future::poll_fn;
use std::io::{BufWriter, Read, Seek as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// Restores a backup into an empty store, with this number of shards. O(keys), with files of about
/// twice the size of the backup in a temporary directory.
pub(crate) fn restore_shared(
    backup: &mut dyn Read,
    store: &StoreUrl,
    shards: u16,
    options: RestoreOptions,
) -> Result<RestoreReport, Failure> {
    let seal = options.seal.clone().map(|keys| SealOptions { keys, seals_existing: false });
    let opened = shared::open_log(store)?;
    refuse_used(&*opened.log, shards)?;
    let temporary = TempDir::with_prefix_in("keypeg-restore-", temporary_parent())
        .map_err(|error| written(&error))?;
    let data = temporary.path().join("data");
    // With holds and reserved tokens, as for a server with a data directory.
    let report = keypeg_engine::restore(backup, &data, options, &mut SystemRandom::new())?;
    let mut whole = back_up(&data, seal, &temporary.path().join("backup"))?;
    let damaged = |error: BackupError| Failure::new(exit::DATA, error.to_string());
    let identity = ShardIdentity::of_backup(&mut whole, shards).map_err(damaged)?;
    rewind(&mut whole)?;
    let shard_of = |pool: &str| shard_of_pool(pool, shards).get();
    let pools = PoolShards::read(&mut whole, &shard_of).map_err(damaged)?;
    // The first shard comes last: a start with --existing looks at it, and so refuses what a restore
    // that fails has left.
    for shard in (0..shards).rev() {
        rewind(&mut whole)?;
        write_snapshot(&opened.log, shard, &pools, &mut whole)?;
    }
    let proposed = identity.bytes();
    let stored = wait(opened.log.installation(&proposed)).map_err(|error| unusable(&error))?;
    if *stored != *proposed {
        return Err(used());
    }
    Ok(report)
}

/// Refuses a store in which a shard has been written: a restore overwrites nothing.
fn refuse_used(log: &dyn SharedLog, shards: u16) -> Result<(), Failure> {
    for shard in (0..shards).map(Shard::new) {
        let tail = wait(log.tail(shard)).map_err(|error| unusable(&error))?;
        let snapshots = wait(log.snapshots(shard)).map_err(|error| unusable(&error))?;
        if tail != Tail::EMPTY || !snapshots.is_empty() {
            return Err(used());
        }
    }
    Ok(())
}

fn used() -> Failure {
    let message = "the store is not empty, and a restore overwrites nothing: name another schema, \
                   bucket or prefix in --store, or remove what is there";
    Failure::new(exit::CANNOT_CREATE, message)
}

/// Not `/tmp`, which is memory on many systems.
fn temporary_parent() -> std::path::PathBuf {
    let named = std::env::var_os("TMPDIR").filter(|name| !name.is_empty());
    named.map_or_else(|| "/var/tmp".into(), Into::into)
}

fn written(error: &std::io::Error) -> Failure {
    let message =
        format!("cannot write a temporary file: {error}; name a directory for it with TMPDIR");
    Failure::new(exit::CANNOT_CREATE, message)
}

fn rewind(file: &mut File) -> Result<(), Failure> {
    file.rewind().map_err(|error| written(&error))
}

/// Backs a restored directory up: its holds and tokens are then in the rows and batches of a backup.
fn back_up(data: &Path, seal: Option<SealOptions>, to: &Path) -> Result<File, Failure> {
    let memory = MemoryPlan::new(memory::of_machine(), 1);
    let config = EngineConfig {
        data: Some(data.to_owned()),
        lanes: 1,
        core_turns: false,
        default_policy: Policy::default(),
        max_keys: u64::MAX,
        memory: memory.keys,
        memory_max: memory.total,
        cache: memory.database_cache(),
        must_exist: true,
        seal,
    };
    let (clock, random) = (Box::new(SystemClock::new()?), Box::new(SystemRandom::new()));
    let (engine, _lanes, _) = Engine::start(&config, clock, random)?;
    let source = engine.backups().expect("invariant: a server with a directory has backups");
    let failed =
        |why: String| Failure::new(exit::IO, format!("cannot copy the restored data: {why}"));
    let mut stream = source.begin().map_err(|error| failed(error.to_string()))?;
    let file = File::create_new(to).map_err(|error| written(&error))?;
    let mut out = BufWriter::new(file);
    while let Some(bytes) = next(&mut *stream) {
        let bytes = bytes.map_err(|error| failed(error.to_string()))?;
        out.write_all(&bytes).map_err(|error| written(&error))?;
    }
    drop(stream);
    engine.stop();
    drop(out.into_inner().map_err(|error| written(error.error()))?);
    File::open(to).map_err(|error| written(&error))
}

fn next(stream: &mut dyn BackupStream) -> Option<Result<Vec<u8>, keypeg_store::BackupRefused>> {
    wait(poll_fn(|context| stream.poll_next(context)))
}

/// Waits on this thread.
#[derive(Debug)]
struct Waiting;

impl Executor for Waiting {
    fn run<T>(&self, call: Call<'_, T>) -> T {
        wait(call)
    }
}

/// Writes the first snapshot of a shard: before all frames.
fn write_snapshot(
    log: &Arc<dyn SharedLog>,
    shard: u16,
    pools: &PoolShards,
    whole: &mut File,
) -> Result<(), Failure> {
    let mut attempt = [0; 16];
    SystemRandom::new().fill(&mut attempt);
    let (shard_id, attempt) = (Shard::new(shard), FrameId::new(attempt));
    let mut writer =
        SnapshotWriter::begin(Arc::clone(log), Waiting, shard_id, Tail::EMPTY, attempt);
    let split = pools.write(shard, whole, |bytes| writer.write(bytes));
    split.map_err(|error: SplitError<LogError>| match error {
        SplitError::Backup(error) => Failure::new(exit::DATA, error.to_string()),
        SplitError::Output(error) => unusable(&error),
    })?;
    match writer.finish().map_err(|error| unusable(&error))? {
        Completed::Created => Ok(()),
        Completed::Exists => Err(used()),
    }
}
