//! Snapshots of a shard in its log: parts first, the manifest last; and the removal of what a newer
//! snapshot makes unnecessary.
//!
//! A snapshot is a backup of the shard's engine. It holds acknowledged frames only, since an engine
//! writes nothing to its files that does not stand.

use crate::executor::Executor;
use bytes::{Bytes, BytesMut};
use keypeg_log::{Completed, FrameId, LogError, Shard, SharedLog, Snapshot, SnapshotId, Tail};
use std::io::{self, Read};
use std::sync::Arc;

/// Bytes of a part.
const PART: usize = 1 << 20;

/// Writes one snapshot.
#[derive(Debug)]
pub struct SnapshotWriter<E> {
    log: Arc<dyn SharedLog>,
    executor: E,
    id: SnapshotId,
    part: BytesMut,
    parts: u32,
    bytes: u64,
}

impl<E: Executor> SnapshotWriter<E> {
    /// Begins the snapshot of a shard that holds everything up to a frame. `attempt` is random.
    pub fn begin(
        log: Arc<dyn SharedLog>,
        executor: E,
        shard: Shard,
        at: Tail,
        attempt: FrameId,
    ) -> Self {
        let id = SnapshotId { shard, at, attempt };
        Self { log, executor, id, part: BytesMut::with_capacity(PART), parts: 0, bytes: 0 }
    }

    /// Writes the next bytes.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), LogError> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(PART - self.part.len()));
            self.part.extend_from_slice(now);
            bytes = rest;
            if self.part.len() == PART {
                self.put()?;
            }
        }
        Ok(())
    }

    /// Completes the snapshot: from now on a server can begin at it.
    pub fn finish(mut self) -> Result<Completed, LogError> {
        if !self.part.is_empty() {
            self.put()?;
        }
        let snapshot = Snapshot { id: self.id, parts: self.parts, bytes: self.bytes };
        self.executor.run(self.log.complete(snapshot))
    }

    fn put(&mut self) -> Result<(), LogError> {
        let part = self.part.split().freeze();
        self.bytes += part.len() as u64;
        self.executor.run(self.log.put_part(self.id, self.parts, part))?;
        self.parts += 1;
        Ok(())
    }
}

/// Removes what no server needs any more: the frames and snapshots below the newest snapshot but
/// one, so that a server that reads the older of the two can finish. Returns the position.
pub fn remove_older(
    log: &dyn SharedLog,
    executor: &impl Executor,
    shard: Shard,
) -> Result<Option<u64>, LogError> {
    let snapshots = executor.run(log.snapshots(shard))?;
    let [.., older, _] = &snapshots[..] else { return Ok(None) };
    let through = older.id.at.position;
    executor.run(log.trim(shard, through))?;
    Ok(Some(through))
}

/// The bytes of a snapshot, read part by part.
pub(crate) struct SnapshotReader<'a, E> {
    log: &'a dyn SharedLog,
    executor: &'a E,
    snapshot: Snapshot,
    next: u32,
    part: Bytes,
    /// Why a part could not be read.
    pub(crate) error: Option<LogError>,
}

impl<'a, E: Executor> SnapshotReader<'a, E> {
    pub(crate) fn new(log: &'a dyn SharedLog, executor: &'a E, snapshot: Snapshot) -> Self {
        Self { log, executor, snapshot, next: 0, part: Bytes::new(), error: None }
    }
}

impl<E: Executor> Read for SnapshotReader<'_, E> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.part.is_empty() && self.next < self.snapshot.parts {
            match self.executor.run(self.log.get_part(self.snapshot, self.next)) {
                Ok(part) => self.part = part,
                Err(error) => {
                    self.error = Some(error.clone());
                    return Err(io::Error::other(error));
                }
            }
            self.next += 1;
        }
        let len = out.len().min(self.part.len());
        out[..len].copy_from_slice(&self.part.split_to(len));
        Ok(len)
    }
}
