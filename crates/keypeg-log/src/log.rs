//! The trait of a shared log, and its contract.
//!
//! The trait is dyn-compatible: a server selects its log by a URL at its start, and a boxed future
//! costs nothing beside a round trip to a store. A future may be polled by any thread, also by one
//! without a runtime ([`wait`](crate::wait)): a log that needs a runtime owns a handle to it.

use crate::error::LogError;
use crate::frame::{Frame, Tail};
use crate::heartbeat::{Heartbeat, ServerName};
use crate::shard::Shard;
use crate::snapshot::{Snapshot, SnapshotId};
use bytes::Bytes;
use std::fmt;
use std::future::Future;
use std::pin::Pin;

/// The future of a call.
pub type Call<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A log for each shard, shared by all servers of an installation and replicated by its store.
///
/// **Only [`append`](SharedLog::append) decides which server owns a shard.** Reads, listings and
/// heartbeats are hints. What a read returns can be gone after a failover of the store, until a later
/// append of the reader's own, chained to it, is [`Appended`](Append::Appended).
///
/// **A call is never undone.** A caller that drops a future before its end does not know whether the
/// call was applied. Each call ends within a time that the log's settings give.
///
/// **One append at a time.** A caller has at most one append in progress for each shard.
pub trait SharedLog: fmt::Debug + Send + Sync {
    /// Returns what the store checks before it appends.
    fn guarantee(&self) -> Guarantee;

    /// Checks that the store keeps this contract: that it enforces the condition of an append, also
    /// when writers race, and that an acknowledged append survives the loss of a machine. `nonce`
    /// has random bytes, which name the objects of this check. A server does not start when this
    /// fails.
    fn probe(&self, nonce: [u8; 16]) -> Call<'_, Result<ProbeReport, LogError>>;

    /// Returns the description of the installation (its number, hash key and count of shards). The
    /// first call of all servers stores `proposed`; every later one returns what the first stored.
    fn installation<'a>(&'a self, proposed: &'a [u8]) -> Call<'a, Result<Bytes, LogError>>;

    /// Appends a frame, if the log of its shard still ends with [`Frame::after`].
    ///
    /// A caller that receives [`Append::Unknown`] appends the same frame again until it receives
    /// another answer, or discards the state of its shard. It never appends another frame in its
    /// place.
    fn append<'a>(&'a self, frame: &'a Frame) -> Call<'a, Append>;

    /// Returns the end of a log, as the store shows it now.
    fn tail(&self, shard: Shard) -> Call<'_, Result<Tail, LogError>>;

    /// Returns frames above a position, in order and without holes: at least one if there is one,
    /// and further ones until they have `bytes_max` bytes. Empty at the end of the log.
    ///
    /// [`LogError::Hole`] if the next frame is missing although later ones or a later snapshot
    /// exist: the log was trimmed, and the reader begins at the newest snapshot. A hole above the
    /// newest snapshot is damage.
    fn read(
        &self,
        shard: Shard,
        above: u64,
        bytes_max: usize,
    ) -> Call<'_, Result<Vec<Frame>, LogError>>;

    /// Stores one part of a snapshot that is not complete yet: at most
    /// [`PART_MAX`](crate::PART_MAX) bytes. Repeating the call with the same bytes is harmless.
    fn put_part(
        &self,
        snapshot: SnapshotId,
        part: u32,
        bytes: Bytes,
    ) -> Call<'_, Result<(), LogError>>;

    /// Completes a snapshot whose parts are all stored: from now on [`snapshots`](Self::snapshots)
    /// lists it. A complete snapshot is never replaced: another one at the same position leaves the
    /// first as it is.
    fn complete(&self, snapshot: Snapshot) -> Call<'_, Result<Completed, LogError>>;

    /// Returns the complete snapshots of a shard, oldest first.
    fn snapshots(&self, shard: Shard) -> Call<'_, Result<Vec<Snapshot>, LogError>>;

    /// Returns one part of a complete snapshot. [`LogError::Gone`] if a trim has removed it.
    fn get_part(&self, snapshot: Snapshot, part: u32) -> Call<'_, Result<Bytes, LogError>>;

    /// Removes the frames at and below a position, oldest first, the snapshots below it, and parts
    /// of snapshots below it that were never completed. Refused unless a complete snapshot at this
    /// position or above exists. A log with [`Guarantee::Created`] keeps takeover frames: the next
    /// position of a paused server is exactly there.
    fn trim(&self, shard: Shard, through: u64) -> Call<'_, Result<(), LogError>>;

    /// Stores the heartbeat of this server, in place of the last one of its name.
    fn beat<'a>(&'a self, heartbeat: &'a Heartbeat) -> Call<'a, Result<(), LogError>>;

    /// Returns the heartbeats of all servers, by name. A server that watches others looks at whether
    /// their count changes, by its own clock.
    fn heartbeats(&self) -> Call<'_, Result<Vec<Heartbeat>, LogError>>;

    /// Removes the heartbeat of a server that has stopped.
    fn forget<'a>(&'a self, server: &'a ServerName) -> Call<'a, Result<(), LogError>>;
}

/// What a store checks before it appends a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarantee {
    /// That the log ends with the predecessor, position and id.
    Chained,
    /// That no frame exists at the position. What has been visible once stays.
    Created,
}

/// The outcome of an append.
#[derive(Debug)]
#[must_use]
pub enum Append {
    /// The frame stands: it and all frames before it survive every failover of the store.
    Appended,
    /// The log does not end with the predecessor, nor with this frame: another server has appended,
    /// or the store has lost the predecessor in a failover. The caller no longer owns the shard. If
    /// no earlier append of this frame was unknown, the frame is not in the log.
    Taken,
    /// It is not known whether the frame was appended, or will be: append the same frame again.
    Unknown(LogError),
}

impl Append {
    /// Returns whether the frame stands.
    pub fn is_appended(&self) -> bool {
        matches!(self, Self::Appended)
    }

    /// Returns whether the caller has lost the shard.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Taken)
    }
}

/// Whether a call has completed a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completed {
    /// The snapshot is complete, by this call or by an earlier one of the same snapshot.
    Created,
    /// Another snapshot of the same position is complete. Both hold the same frames.
    Exists,
}

/// What a probe found out about a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeReport {
    /// The store and how it replicates, on one line.
    pub store: String,
    /// What an operator should know, a sentence each.
    pub warnings: Vec<String>,
}
