//! Backups of all shards, as the log has them: the newest snapshot of each shard and the frames
//! behind it.
//!
//! No owner takes part, so a backup costs the servers nothing but the reading, and includes the
//! shards that no server owns at the moment. It knows neither snapshots nor frames from inside. What
//! is read may not be replicated yet: such a frame is part of a possible state of its shard.

use super::options::NodeOptions;
use super::thread_wait::ParkingExecutor;
use crate::payload::Payload;
use crate::snapshot::SnapshotReader;
use keypeg_engine::LogBatch;
use keypeg_engine::backup::{
    BackupThread, EachBatch, SendBytes, ShardParts, ShardsBackup, SplitError,
};
use keypeg_log::{Frame, LogError, Shard, SharedLog, Snapshot, Tail, wait};
use keypeg_store::{BackupRefused, BackupSource, BackupStream};
use std::io::Read;
use std::sync::Arc;

/// Bytes of frames that one read takes.
const READ_BYTES: usize = 4 << 20;

/// The backups of a node.
#[derive(Clone, Debug)]
pub(super) struct NodeBackups {
    options: Arc<NodeOptions>,
    thread: BackupThread,
}

impl NodeBackups {
    pub(super) fn new(options: Arc<NodeOptions>) -> Self {
        Self { options, thread: BackupThread::default() }
    }

    /// Ends the backup that runs, and refuses further ones.
    pub(super) fn close(&self) {
        self.thread.close();
    }
}

impl BackupSource for NodeBackups {
    fn begin(&self) -> Result<Box<dyn BackupStream>, BackupRefused> {
        let options = Arc::clone(&self.options);
        self.thread.begin(move |send| write(&options, send))
    }
}

/// Writes a backup of all shards.
fn write(options: &NodeOptions, send: &mut SendBytes<'_>) -> Result<(), BackupRefused> {
    let wall_ms = (options.clock)().read().wall_us / 1_000;
    let mut backup = ShardsBackup::begin(&options.identity, wall_ms, send)?;
    for shard in (0..options.identity.shards()).map(Shard::new) {
        // The snapshot and the frames behind it, while others are appended and older ones go.
        let parts = Found::look(&*options.log, shard).map_err(|error| unreadable(&error))?;
        let Found { snapshot, tail } = parts;
        let mut reader =
            snapshot.map(|newest| SnapshotReader::new(&*options.log, &ParkingExecutor, newest));
        let from = snapshot.map_or(Tail::EMPTY, |newest| newest.id.at);
        let mut frames = Frames { log: &*options.log, shard, at: from, through: tail };
        let mut batches =
            |each: &mut dyn FnMut(LogBatch<'_>) -> Result<(), BackupRefused>| frames.read(each);
        let written = backup.shard(ShardParts {
            shard: shard.get(),
            snapshot: reader.as_mut().map(|reader| reader as &mut dyn Read),
            count: tail.position - from.position,
            batches: &mut batches as &mut EachBatch<'_, BackupRefused>,
        });
        let why = reader.and_then(|reader| reader.error);
        written.map_err(|error| match (why, error) {
            (Some(why), _) => unreadable(&why),
            (None, SplitError::Output(refused)) => refused,
            (None, SplitError::Backup(error)) => BackupRefused::Failed(error.to_string()),
        })?;
    }
    if backup.finish()? == 0 {
        return Err(BackupRefused::Failed("no server has served a shard yet".into()));
    }
    Ok(())
}

fn unreadable(error: &LogError) -> BackupRefused {
    BackupRefused::Failed(format!("the store cannot be read: {error}"))
}

/// What the log has of a shard at a moment.
struct Found {
    snapshot: Option<Snapshot>,
    tail: Tail,
}

impl Found {
    fn look(log: &dyn SharedLog, shard: Shard) -> Result<Self, LogError> {
        // The newest snapshot but one stays, so this one stays while the backup reads it.
        let snapshot = wait(log.snapshots(shard))?.pop();
        let tail = wait(log.tail(shard))?;
        // A failover of the store can have dropped what the snapshot holds; it holds only what
        // stands, so the log is read again up to there.
        let from = snapshot.map_or(0, |newest| newest.id.at.position);
        if tail.position >= from {
            return Ok(Self { snapshot, tail });
        }
        Ok(Self { snapshot, tail: snapshot.map_or(Tail::EMPTY, |newest| newest.id.at) })
    }
}

/// The frames behind a snapshot.
struct Frames<'a> {
    log: &'a dyn SharedLog,
    shard: Shard,
    at: Tail,
    through: Tail,
}

impl Frames<'_> {
    fn read(
        &mut self,
        each: &mut dyn FnMut(LogBatch<'_>) -> Result<(), BackupRefused>,
    ) -> Result<(), BackupRefused> {
        while self.at.position < self.through.position {
            let read = wait(self.log.read(self.shard, self.at.position, READ_BYTES));
            let mut frames = read.map_err(|error| unreadable(&error))?;
            frames.retain(|frame| frame.position() <= self.through.position);
            let broken = |why: String| {
                let shard = self.shard;
                BackupRefused::Failed(format!("the log of shard {shard} has changed: {why}"))
            };
            let chain = Frame::check_chain(self.shard, self.at, &frames);
            chain.map_err(|error| broken(error.to_string()))?;
            let last = frames.last().ok_or_else(|| broken("it is shorter than before".into()))?;
            for frame in &frames {
                let payload = frame.payload();
                let Payload { batch, .. } = Payload::read(&payload).ok_or_else(|| {
                    broken(format!("frame {} was written by a newer version", frame.position()))
                })?;
                each(batch)?;
            }
            self.at = last.tail();
        }
        Ok(())
    }
}
