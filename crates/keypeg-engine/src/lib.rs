//! One turn and its disk: requests come in by lanes, a turn plays them on the pools, the facts go
//! to the journal in one write and one sync, then the answers go out.
//!
//! No tokio and no HTTP: a thread, a journal and the [`Request`]s of `request.rs`, which is the
//! seam. Time and random come in as [`Clock`] and [`RandomSource`].

pub mod checkpointer;
pub mod disk;
pub mod feed;
mod frame;
mod journal;
mod keyset;
mod lanes;
mod lookups;
mod meta;
pub mod metrics;
mod preallocator;
mod preview;
mod record;
mod recover;
mod request;
pub mod state;
mod thread;
mod times;
mod turn;

use crate::checkpointer::{CheckpointProgress, Checkpointer};
use crate::disk::{Directory, Disk};
use crate::preview::Preview;
use crate::state::{EngineState, JournalSizes};
use crate::thread::Run;

pub use journal::SEGMENT_LEN;
pub use keypeg_core as core;
pub use keypeg_core::RandomSource;
pub use lanes::{LANE_MAX, LANE_RESERVE, Lane, PendingReply, undo_undelivered};
pub use request::{
    Call, Caller, GENERATE_MAX, PAGE_MAX, PoolView, Principal, Reply, Request, RequestError,
    WAIT_MAX_MS,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Where time comes from.
pub trait Clock: Send {
    /// Reads both clocks now.
    fn read(&mut self) -> ClockReading;
}

/// What the clocks say, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// Time since boot, suspend included.
    pub boot_us: u64,
    /// Which boot that is.
    pub boot_id: u128,
    /// Wall time since 1970-01-01 UTC: shown, decides nothing.
    pub wall_us: u64,
}

/// What an engine is started with.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Where the journal is; `None` keeps everything in memory alone.
    pub data: Option<PathBuf>,
    /// How many lanes: one a core of the server.
    pub lanes: usize,
    /// The default pool's policy when the directory is made new.
    pub default_policy: core::Policy,
    /// The most keys in all pools together.
    pub max_keys: u64,
    /// Refuses to make a directory: one must be there.
    pub existing: bool,
}

/// What a start found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Whether the directory was made by this start.
    pub made: bool,
    /// Pools there are.
    pub pools: u64,
    /// Keys there are.
    pub keys: u64,
    /// Leases that run.
    pub leases: u64,
    /// Batches that were cut from the journal's end because a crash tore them.
    pub batches_cut: u64,
    /// Starts of this directory before this one.
    pub starts_before: u64,
    /// The default pool's stored policy, where it differs from the one asked for.
    pub default_policy_kept: Option<core::Policy>,
}

/// A running engine. SegmentDrop it without [`Engine::stop`] leaves its thread running.
#[derive(Debug)]
pub struct Engine {
    wakeup: lanes::Wakeup,
    metrics: Arc<metrics::EngineMetrics>,
    stopping: Arc<AtomicBool>,
    turns_away: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    progress: Arc<CheckpointProgress>,
    carrier: Option<JoinHandle<()>>,
}

/// The exit code of a process whose journal cannot be written: `EX_IOERR` of sysexits.h.
const EXIT_IO: i32 = 74;

impl Engine {
    /// Opens the directory, replays its journal and starts the thread.
    ///
    /// A journal that cannot be written later ends the process: nothing of the batch that failed
    /// is acknowledged, and the journal is right at the next start. A panic of the thread aborts.
    pub fn start(
        setup: &EngineConfig,
        clock: Box<dyn Clock>,
        random: Box<dyn RandomSource + Send>,
    ) -> Result<(Self, Vec<Lane>, RecoveryReport), StartError> {
        if let Some(path) = setup.data.as_deref().filter(|path| setup.existing && !path.is_dir()) {
            return Err(StartError::NotFound { dir: path.display().to_string() });
        }
        let disk = setup.data.as_deref().map(lock).transpose()?;
        let (mut works, recovered) =
            EngineState::open(disk, JournalSizes::default(), setup, clock, random)?;
        works.start_preallocation(true).map_err(|error| StartError::Io {
            doing: "making segments ready".into(),
            error: error.into(),
        })?;
        let (progress, carrier) = (works.progress(), works.take_checkpointer());
        let carrier = carrier.map(carry).transpose()?;
        let metrics = works.metrics();
        let wakeup = works.wakeup();
        let (stopping, turns_away) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (outside, inside) = (0..setup.lanes).map(|_| lanes::lane(&wakeup)).unzip();
        let run = Run {
            works,
            lanes: inside,
            wakeup: wakeup.clone(),
            stopping: Arc::clone(&stopping),
            turns_away: Arc::clone(&turns_away),
        };
        let thread = std::thread::Builder::new()
            .name("keypeg-engine".into())
            .spawn(move || end_process_with(run))
            .map_err(|error| StartError::Io { doing: "starting the engine".into(), error })?;
        Ok((
            Self { wakeup, metrics, stopping, turns_away, thread, progress, carrier },
            outside,
            recovered,
        ))
    }

    /// What the engine counts of its work.
    pub fn metrics(&self) -> Arc<metrics::EngineMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Sends away whoever waits for a key, or would from now on: the server begins to stop, and
    /// nobody who waits shall hold it up.
    pub fn cancel_waits(&self) {
        self.turns_away.store(true, Ordering::Release);
        self.wakeup.notify();
    }

    /// Refuses new requests, plays those already asked, syncs, and waits for the thread to end.
    pub fn stop(self) {
        self.stopping.store(true, Ordering::Release);
        self.wakeup.notify();
        self.thread.join().expect("invariant: a panic of the engine's thread aborts");
        if let Some(carrier) = self.carrier {
            self.progress.stopping.store(true, Ordering::Release);
            carrier.thread().unpark();
            carrier.join().expect("invariant: a panic of the carrier aborts");
        }
    }
}

/// Tells what a start would make of a directory, without changing anything in it: what it would
/// recover, or why it would refuse. O(keys), like a start.
pub fn check(
    path: &Path,
    clock: Box<dyn Clock>,
    random: Box<dyn RandomSource + Send>,
) -> Result<RecoveryReport, StartError> {
    if !path.is_dir() {
        return Err(StartError::NotFound { dir: path.display().to_string() });
    }
    let preview: Arc<dyn Disk> = Arc::new(Preview::over(lock(path)?));
    let setup = EngineConfig {
        data: None,
        lanes: 0,
        default_policy: core::Policy::default(),
        max_keys: u64::MAX,
        existing: true,
    };
    let (_, recovered) =
        EngineState::open(Some(preview), JournalSizes::default(), &setup, clock, random)?;
    Ok(recovered)
}

fn lock(path: &Path) -> Result<Arc<dyn Disk>, StartError> {
    let dir = path.display().to_string();
    match Directory::open(path) {
        Ok(directory) => Ok(Arc::new(directory)),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            Err(StartError::InUse { dir })
        }
        Err(error) => Err(StartError::Io { doing: format!("opening {dir}"), error }),
    }
}

/// Starts the carrier's thread; where it cannot go on, the process does not either.
fn carry(carrier: Checkpointer) -> Result<JoinHandle<()>, StartError> {
    let run = move || {
        let _guard = AbortOnPanic;
        if let Err(error) = carrier.run() {
            tracing::error!("{error}; the journal holds all that was acknowledged");
            std::process::exit(EXIT_IO);
        }
    };
    let spawned = std::thread::Builder::new().name("keypeg-carrier".into()).spawn(run);
    spawned.map_err(|error| StartError::Io { doing: "starting the carrier".into(), error })
}

/// A thread that panicked leaves state that cannot be trusted.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("the engine panicked: its state cannot be trusted");
            std::process::abort();
        }
    }
}

/// Runs the thread; where it cannot go on, the process does not either.
fn end_process_with(run: Run) {
    let _guard = AbortOnPanic;
    if let Err(error) = run.run() {
        tracing::error!("{error}; nothing of the last batch was acknowledged");
        std::process::exit(EXIT_IO);
    }
}

/// Why an engine does not start. The messages name the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process has the directory.
    #[error("{dir} is in use by another process: stop it, or use another --data")]
    InUse {
        /// The directory.
        dir: String,
    },
    /// There is no data directory, and none may be made.
    #[error("{dir} holds no data: check the path and its mount, or leave --existing out")]
    NotFound {
        /// The directory.
        dir: String,
    },
    /// The directory's data is damaged or of a newer format, or parts of it are missing.
    #[error("{0}")]
    Corrupt(String),
    /// The disk said no.
    #[error("{doing}: {error}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the disk said.
        error: std::io::Error,
    },
}
