//! A running engine: it starts the engine's threads and stops them.
//!
//! An error of the journal or the checkpointer ends the process, and a panic of a thread aborts it:
//! no reply leaves that is not durable.

use crate::backup::EngineBackups;
use crate::checkpointer::Checkpointer;
use crate::clock::Clock;
use crate::core_turns::{NOT_ACKNOWLEDGED, SharedRun};
use crate::disk::{Directory, Disk};
use crate::end::{AbortOnPanic, EXIT_IO, end_process};
use crate::permissions;
use crate::preview::Preview;
use crate::progress::CheckpointProgress;
use crate::recover;
use crate::rotation::{RotationError, SealControl, SealUse};
use crate::seal::{SealKeys, SealOptions};
use crate::start::{EngineConfig, StartError, io};
use crate::state::{CommitError, EngineState, JournalSizes};
use crate::thread::{LaneEnd, Run, Signals};
use crate::unlock::unlock;
use keypeg_core::{Policy, RandomSource};
use keypeg_store::{
    BackupSource, CoreTurns, KeyVersions, Lane, StartReport, Store, StoreMetrics, Wakeup,
};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// A running engine. Dropping it without [`Engine::stop`] leaves its threads running.
#[derive(Debug)]
pub struct Engine {
    wakeup: Wakeup,
    metrics: Arc<StoreMetrics>,
    stopping: Arc<AtomicBool>,
    cancels_waits: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    progress: Arc<CheckpointProgress>,
    checkpointer: Option<JoinHandle<()>>,
    backups: Option<Arc<EngineBackups>>,
    seal: Option<Arc<SealControl>>,
    versions: Arc<KeyVersions>,
    core_turns: Option<Arc<SharedRun>>,
}

impl Engine {
    /// Opens the data directory, replays its journal and starts the engine's threads.
    ///
    /// If a write to the journal fails after the start, the process ends: no change of the
    /// failed batch is acknowledged, and the next start recovers the journal. A panic of a thread aborts the
    /// process. O(keys).
    pub fn start(
        config: &EngineConfig,
        clock: Box<dyn Clock>,
        random: Box<dyn RandomSource + Send>,
    ) -> Result<(Self, Vec<Lane>, StartReport), StartError> {
        if let Some(path) = config.data.as_deref().filter(|_| config.must_exist) {
            require_dir(path)?;
        }
        let disk = config.data.as_deref().map(open_dir).transpose()?;
        let in_dir = |error: StartError| match &config.data {
            Some(dir) => error.in_dir(&dir.display().to_string()),
            None => error,
        };
        let sizes = JournalSizes::default();
        let opened = EngineState::open(disk, sizes, config, clock, random);
        let (mut state, report) = opened.map_err(in_dir)?;
        state
            .start_preallocation(true)
            .map_err(|error| in_dir(io("preallocating journal segments")(error.into())))?;
        let (progress, checkpointer) = (state.progress(), state.take_checkpointer());
        let checkpointer = checkpointer.map(spawn_checkpointer).transpose()?;
        let backups = state.backup_parts().map(|parts| Arc::new(EngineBackups(parts)));
        let (metrics, seal, versions) = (state.metrics(), state.seal(), state.key_versions());
        let wakeup = state.wakeup();
        let stopping = Arc::<AtomicBool>::default();
        let cancels_waits = Arc::<AtomicBool>::default();
        let requests = config.core_turns.then(Wakeup::default);
        let last = config.lanes.saturating_sub(1);
        let woken_by = |lane| requests.as_ref().filter(|_| lane == last).unwrap_or(&wakeup);
        let lanes = (0..config.lanes).map(|lane| keypeg_store::lane(woken_by(lane)));
        let (lanes, engine_lanes) = lanes.unzip();
        let signals = Signals {
            wakeup: wakeup.clone(),
            lookups: None,
            requests: requests.clone(),
            stopping: Arc::clone(&stopping),
            cancels_waits: Arc::clone(&cancels_waits),
        };
        let run = Run::new(state, engine_lanes, signals, LaneEnd::Closed);
        let (thread, core_turns) = match requests {
            None => (spawn_engine(run, Run::run)?, None),
            Some(requests) => {
                let shared = Arc::new(SharedRun::new(run, requests));
                let of_thread = Arc::clone(&shared);
                (spawn_engine(of_thread, |shared| shared.run())?, Some(shared))
            }
        };
        Ok((
            Self {
                wakeup,
                metrics,
                stopping,
                cancels_waits,
                thread,
                progress,
                checkpointer,
                backups,
                seal,
                versions,
                core_turns,
            },
            lanes,
            report,
        ))
    }

    /// Returns the engine's counters.
    pub fn metrics(&self) -> Arc<StoreMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Returns the seal of the data directory; `None` if it is not sealed.
    pub fn seal(&self) -> Option<Arc<SealControl>> {
        self.seal.clone()
    }

    /// Refuses all requests in the wait queues, and every request that would wait from now on. Ends
    /// a backup that runs.
    /// The server calls it when it begins to stop, so that no waiter delays the stop.
    pub fn cancel_waits(&self) {
        self.close_backups();
        self.cancels_waits.store(true, Ordering::Release);
        self.wakeup.notify();
    }

    /// Refuses new requests, executes those already queued, syncs, and waits for the engine's
    /// threads to end.
    pub fn stop(self) {
        self.close_backups();
        self.stopping.store(true, Ordering::Release);
        self.wakeup.notify();
        self.thread.join().expect("invariant: a panic of the engine's thread aborts");
        if let Some(checkpointer) = self.checkpointer {
            self.progress.stopping.store(true, Ordering::Release);
            checkpointer.thread().unpark();
            checkpointer.join().expect("invariant: a panic of the checkpointer aborts");
        }
    }
}

impl Engine {
    fn close_backups(&self) {
        if let Some(backups) = &self.backups {
            backups.close();
        }
    }
}

impl Store for Engine {
    fn metrics(&self) -> Arc<StoreMetrics> {
        Self::metrics(self)
    }

    fn cancel_waits(&self) {
        Self::cancel_waits(self);
    }

    fn backups(&self) -> Option<Arc<dyn BackupSource>> {
        self.backups.clone().map(|backups| backups as Arc<dyn BackupSource>)
    }

    fn key_versions(&self) -> Option<Arc<KeyVersions>> {
        Some(Arc::clone(&self.versions))
    }

    fn core_turns(&self) -> Option<Arc<dyn CoreTurns>> {
        self.core_turns.clone().map(|turns| turns as Arc<dyn CoreTurns>)
    }

    fn stop(self: Box<Self>) {
        Self::stop(*self);
    }
}

/// Checks a data directory without changing it: returns what a start would recover, or the error
/// it would end with. O(keys), like a start.
pub fn check_data_dir(
    path: &Path,
    seal: Option<SealOptions>,
    clock: Box<dyn Clock>,
    random: Box<dyn RandomSource + Send>,
) -> Result<StartReport, StartError> {
    require_dir(path)?;
    let directory = opened(path, Directory::open_read_only(path))?;
    let preview: Arc<dyn Disk> = Arc::new(Preview::over(Arc::new(directory)));
    let config = EngineConfig {
        data: None,
        lanes: 0,
        core_turns: false,
        default_policy: Policy::default(),
        max_keys: u64::MAX,
        memory: u64::MAX,
        memory_max: u64::MAX,
        cache: 64 << 20,
        must_exist: true,
        seal,
    };
    let sizes = JournalSizes::default();
    match EngineState::open_as_it_is(Some(preview), sizes, &config, clock, random) {
        Ok((_, report)) => Ok(report),
        // The preview has no path.
        Err(StartError::NotFound { .. }) => {
            Err(StartError::NotFound { dir: path.display().to_string() })
        }
        Err(error) => Err(error.in_dir(&path.display().to_string())),
    }
}

/// Seals a data directory, which no server uses, with the first of the new keys. One of the old
/// keys must be that which seals it now. O(1).
pub fn rotate_seal_key(
    path: &Path,
    old: &SealKeys,
    new: &SealKeys,
    random: &mut dyn RandomSource,
) -> Result<SealUse, StartError> {
    rotate(path, old, new, random).map_err(|error| error.in_dir(&path.display().to_string()))
}

fn rotate(
    path: &Path,
    old: &SealKeys,
    new: &SealKeys,
    random: &mut dyn RandomSource,
) -> Result<SealUse, StartError> {
    require_dir(path)?;
    let dir = path.display().to_string();
    let disk = open_dir(path)?;
    let found = recover::examine(&*disk, true)?;
    let mut meta = found.ok_or_else(|| StartError::NotFound { dir: dir.clone() })?;
    let options = SealOptions { keys: old.clone(), seals_existing: false };
    let stored = meta.clone();
    let secrets = unlock(&mut meta, Some(&options), random)?.secrets;
    let control = secrets.and_then(|secrets| SealControl::of(disk, &stored, secrets));
    let control = control.ok_or_else(|| StartError::Seal(format!("{dir} is not sealed")))?;
    let mut keys = new.clone();
    keys.add_old(old);
    control.use_keys(&keys, random).map_err(|error| match error {
        RotationError::Io(error) => io("writing meta")(error),
        missing @ RotationError::MissingKey { .. } => StartError::Seal(missing.to_string()),
    })
}

/// Returns an error unless the path is a directory.
fn require_dir(path: &Path) -> Result<(), StartError> {
    let dir = path.display().to_string();
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Err(StartError::Io { doing: format!("opening {dir}"), error })
        }
        _ => Err(StartError::NotFound { dir }),
    }
}

/// Creates or opens a data directory, locks it, and checks who else can change it.
fn open_dir(path: &Path) -> Result<Arc<dyn Disk>, StartError> {
    let directory = opened(path, Directory::open(path))?;
    for warning in permissions::examine(&directory, &path.display().to_string())? {
        tracing::warn!("{warning}");
    }
    Ok(Arc::new(directory))
}

fn opened(path: &Path, result: io::Result<Directory>) -> Result<Directory, StartError> {
    let dir = path.display().to_string();
    result.map_err(|error| {
        if error.kind() == ErrorKind::WouldBlock {
            return StartError::InUse { dir };
        }
        StartError::Io { doing: format!("opening {dir}"), error }
    })
}

/// Starts the checkpointer's thread. An error of the checkpointer ends the process.
fn spawn_checkpointer(checkpointer: Checkpointer) -> Result<JoinHandle<()>, StartError> {
    let run = move || {
        let _guard = AbortOnPanic;
        if let Err(error) = checkpointer.run() {
            end_process(&error, "the journal holds all acknowledged changes", EXIT_IO);
        }
    };
    // Linux truncates thread names to 15 bytes.
    let spawned = std::thread::Builder::new().name("keypeg-checkpt".into()).spawn(run);
    spawned.map_err(|error| StartError::Io { doing: "starting the checkpointer".into(), error })
}

/// Starts the engine's thread. An error of the journal ends the process.
fn spawn_engine<R: Send + 'static>(
    mut engine: R,
    run: fn(&mut R) -> Result<(), CommitError>,
) -> Result<JoinHandle<()>, StartError> {
    let run = move || {
        let _guard = AbortOnPanic;
        if let Err(error) = run(&mut engine) {
            end_process(&error, NOT_ACKNOWLEDGED, EXIT_IO);
        }
    };
    let spawned = std::thread::Builder::new().name("keypeg-engine".into()).spawn(run);
    spawned.map_err(|error| StartError::Io { doing: "starting the engine thread".into(), error })
}
