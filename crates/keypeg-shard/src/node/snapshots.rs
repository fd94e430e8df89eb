//! The snapshots that the owner of a shard writes while it owns it, and the trimming of the log
//! below them.

use super::clock::{now, passed_since};
use super::options::NodeOptions;
use super::thread_wait::ParkingExecutor;
use super::view::View;
use crate::snapshot::{SnapshotWriter, remove_older};
use crate::tails::Tails;
use keypeg_core::{Lsn, RandomSource};
use keypeg_engine::ShardControl;
use keypeg_log::{FrameId, LogError, Shard};
use keypeg_store::BackupRefused;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How often it is looked whether a snapshot is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What a frame costs a follower beside its bytes.
const FRAME_BYTES: u64 = 512;
/// After this time a snapshot is due if there are some frames above the newest one.
const AGE_MAX: Duration = Duration::from_mins(10);
const FRAMES_MIN: u64 = 1_000;
/// The pause after a snapshot that failed.
const PAUSE_AFTER_ERROR: Duration = Duration::from_mins(1);

/// The time during which this server owns a shard.
#[derive(Debug)]
pub(super) struct Tenure {
    shard: Shard,
    tails: Tails,
    /// The position in the engine's files when the list of frames began.
    base: Lsn,
    /// The position of the newest snapshot at the takeover.
    snapshot: u64,
    has_ended: AtomicBool,
}

impl Tenure {
    /// `last_batch` is the engine's position right after the takeover.
    pub(super) fn new(shard: Shard, last_batch: Lsn, tails: Tails, snapshot: u64) -> Self {
        let base = Lsn(last_batch.0 - tails.total().0);
        Self { shard, tails, base, snapshot, has_ended: AtomicBool::new(false) }
    }

    pub(super) fn position(&self) -> u64 {
        self.tails.last().position
    }

    pub(super) fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
    }

    fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }
}

/// Decides when a snapshot is due.
struct Schedule {
    /// Frames and bytes of the tenure at the newest snapshot.
    at: (u64, u64),
    /// The cost of reading frames after which the next one is due.
    due_at: u64,
    since: Instant,
}

impl Schedule {
    fn is_due(&self, (frames, bytes): (u64, u64), age: Duration) -> bool {
        let (frames, bytes) = (frames.saturating_sub(self.at.0), bytes.saturating_sub(self.at.1));
        let cost = bytes + frames * FRAME_BYTES;
        cost >= self.due_at || (age >= AGE_MAX && frames >= FRAMES_MIN)
    }
}

/// Writes snapshots until the tenure ends.
pub(super) fn write_snapshots(
    options: &NodeOptions,
    view: &View,
    control: &ShardControl,
    tenure: &Tenure,
) {
    let mut random = (options.random)();
    // What the takeover has read above its snapshot counts too.
    let mut read = tenure.position().saturating_sub(tenure.snapshot) * FRAME_BYTES * 2;
    let mut schedule = Schedule { at: (0, 0), due_at: options.snapshot_after, since: now() };
    while !tenure.has_ended() {
        thread::park_timeout(LOOK_EVERY);
        view.shard(tenure.shard).facts().position = tenure.position();
        let (frames, bytes) = tenure.tails.total();
        if tenure.has_ended()
            || !schedule.is_due((frames, bytes + read), passed_since(schedule.since))
        {
            continue;
        }
        match write(options, control, tenure, &mut *random) {
            Ok((position, size)) => {
                let due_at = options.snapshot_after.max(size / 2);
                (read, schedule) = (0, Schedule { at: (frames, bytes), due_at, since: now() });
                view.shard(tenure.shard).facts().snapshot = position;
                tracing::debug!(shard = %tenure.shard, position, size, "a snapshot is complete");
            }
            Err(_) if tenure.has_ended() => {}
            Err(error) => {
                tracing::warn!(shard = %tenure.shard, "a snapshot was not written: {error}");
                let until = now() + PAUSE_AFTER_ERROR;
                while !tenure.has_ended() && now() < until {
                    thread::park_timeout(LOOK_EVERY);
                }
            }
        }
    }
}

/// Writes one snapshot, and removes what it makes unnecessary. Returns its position and its bytes.
fn write(
    options: &NodeOptions,
    control: &ShardControl,
    tenure: &Tenure,
    random: &mut dyn RandomSource,
) -> Result<(u64, u64), String> {
    let mut attempt = [0; 16];
    random.fill(&mut attempt);
    let failed = |error: LogError| BackupRefused::Failed(error.to_string());
    let mut size = 0;
    let begin = |through: Lsn| {
        let added = through.0.checked_sub(tenure.base.0);
        let at = added.and_then(|count| tenure.tails.added(count));
        let at = at.ok_or_else(|| BackupRefused::Failed("its frame is forgotten".into()))?;
        let (log, attempt) = (Arc::clone(&options.log), FrameId::new(attempt));
        Ok((SnapshotWriter::begin(log, ParkingExecutor, tenure.shard, at, attempt), at))
    };
    let copied = control.copy(begin, |(writer, _), bytes| {
        size += bytes.len() as u64;
        writer.write(bytes).map_err(failed)
    });
    let (writer, at) = copied.map_err(|error| error.to_string())?;
    writer.finish().map_err(|error| error.to_string())?;
    let removed = remove_older(&*options.log, &ParkingExecutor, tenure.shard);
    removed.map_err(|error| format!("the log was not trimmed: {error}"))?;
    Ok((at.position, size))
}
