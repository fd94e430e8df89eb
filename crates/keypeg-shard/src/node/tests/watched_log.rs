//! A log for the tests of a node, around another log: it hides other servers, refuses appends, and lets
//! something happen before a read.

use crate::node::clock::now;
use bytes::Bytes;
use keypeg_log::{
    Append, Call as LogCall, Completed, Frame, FrameKind, Guarantee, Heartbeat, LogError,
    ProbeReport, ServerName, Shard, SharedLog, Snapshot, SnapshotId, Tail,
};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Instant;

/// What happens before a read.
#[derive(Clone, Default)]
pub(super) struct BeforeRead(pub(super) Option<Arc<dyn Fn() + Send + Sync>>);

impl fmt::Debug for BeforeRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BeforeRead").finish_non_exhaustive()
    }
}

/// A log that can hide the heartbeats of the other servers, refuse appends as if another server owned
/// the shard, and let something happen before each read.
#[derive(Debug)]
pub(super) struct Watched {
    log: Arc<dyn SharedLog>,
    hides_others: bool,
    refuses: Arc<AtomicBool>,
    /// Whether it does so for all frames but takeovers: each tenure ends with its first append.
    pub(super) refuses_turns: Arc<AtomicBool>,
    /// Whether the store has no space: no append is stored.
    pub(super) is_full: Arc<AtomicBool>,
    /// The position of the last frame before a hole in each shard; 0 without a hole.
    pub(super) hole_above: Arc<AtomicU64>,
    /// How often a replica of the first shard was begun.
    pub(super) begun: Arc<AtomicU64>,
    pub(super) before_read: BeforeRead,
    /// Where the calls of two servers that list the heartbeats meet: after the list before their first
    /// heartbeat, and before the list after it.
    pub(super) meeting: Option<Arc<Barrier>>,
    lists: AtomicU64,
    /// A heartbeat of another server, and when it comes.
    pub(super) later: Option<(Instant, Heartbeat)>,
}

impl Watched {
    pub(super) fn new(log: Arc<dyn SharedLog>) -> Self {
        let before_read = BeforeRead::default();
        let (refuses, refuses_turns, is_full) = (Arc::default(), Arc::default(), Arc::default());
        let (hole_above, begun) = (Arc::default(), Arc::default());
        let lists = AtomicU64::default();
        let (meeting, later) = (None, None);
        Self {
            log,
            hides_others: false,
            refuses,
            refuses_turns,
            is_full,
            hole_above,
            begun,
            before_read,
            meeting,
            lists,
            later,
        }
    }

    pub(super) fn alone(log: Arc<dyn SharedLog>, refuses: Arc<AtomicBool>) -> Self {
        Self { hides_others: true, refuses, ..Self::new(log) }
    }
}

impl SharedLog for Watched {
    fn guarantee(&self) -> Guarantee {
        self.log.guarantee()
    }

    fn probe(&self, nonce: [u8; 16]) -> LogCall<'_, Result<ProbeReport, LogError>> {
        self.log.probe(nonce)
    }

    fn installation<'a>(&'a self, proposed: &'a [u8]) -> LogCall<'a, Result<Bytes, LogError>> {
        self.log.installation(proposed)
    }

    fn append<'a>(&'a self, frame: &'a Frame) -> LogCall<'a, Append> {
        let refuses_turns = self.refuses_turns.load(Ordering::Relaxed);
        let is_refused = refuses_turns && frame.kind() == FrameKind::Turn;
        if is_refused || self.refuses.load(Ordering::Relaxed) {
            return Box::pin(async { Append::Taken });
        }
        if self.is_full.load(Ordering::Relaxed) {
            let error = LogError::Unavailable("no space left on device".into());
            return Box::pin(async { Append::Unknown(error) });
        }
        self.log.append(frame)
    }

    fn tail(&self, shard: Shard) -> LogCall<'_, Result<Tail, LogError>> {
        self.log.tail(shard)
    }

    fn read(
        &self,
        shard: Shard,
        above: u64,
        bytes_max: usize,
    ) -> LogCall<'_, Result<Vec<Frame>, LogError>> {
        if let Some(act) = &self.before_read.0 {
            act();
        }
        let end = self.hole_above.load(Ordering::Relaxed);
        if end == 0 {
            return self.log.read(shard, above, bytes_max);
        }
        Box::pin(async move {
            let mut frames = self.log.read(shard, above, bytes_max).await?;
            frames.retain(|frame| frame.position() <= end);
            let (missing, found) = (end + 1, end + 2);
            if frames.is_empty() {
                Err(LogError::Hole { shard, missing, found })
            } else {
                Ok(frames)
            }
        })
    }

    fn put_part(
        &self,
        snapshot: SnapshotId,
        part: u32,
        bytes: Bytes,
    ) -> LogCall<'_, Result<(), LogError>> {
        self.log.put_part(snapshot, part, bytes)
    }

    fn complete(&self, snapshot: Snapshot) -> LogCall<'_, Result<Completed, LogError>> {
        self.log.complete(snapshot)
    }

    fn snapshots(&self, shard: Shard) -> LogCall<'_, Result<Vec<Snapshot>, LogError>> {
        self.begun.fetch_add(u64::from(shard == Shard::FIRST), Ordering::Relaxed);
        self.log.snapshots(shard)
    }

    fn get_part(&self, snapshot: Snapshot, part: u32) -> LogCall<'_, Result<Bytes, LogError>> {
        self.log.get_part(snapshot, part)
    }

    fn trim(&self, shard: Shard, through: u64) -> LogCall<'_, Result<(), LogError>> {
        self.log.trim(shard, through)
    }

    fn beat<'a>(&'a self, heartbeat: &'a Heartbeat) -> LogCall<'a, Result<(), LogError>> {
        self.log.beat(heartbeat)
    }

    fn heartbeats(&self) -> LogCall<'_, Result<Vec<Heartbeat>, LogError>> {
        Box::pin(async move {
            let number = self.lists.fetch_add(1, Ordering::Relaxed);
            let meet = |at: u64| {
                if let Some(meeting) = self.meeting.as_ref().filter(|_| number == at) {
                    meeting.wait();
                }
            };
            meet(2);
            if let Some((at, heartbeat)) = &self.later
                && *at <= now()
            {
                self.log.beat(heartbeat).await?;
            }
            let mut all = self.log.heartbeats().await?;
            if self.hides_others {
                all.clear();
            }
            meet(1);
            Ok(all)
        })
    }

    fn forget<'a>(&'a self, server: &'a ServerName) -> LogCall<'a, Result<(), LogError>> {
        self.log.forget(server)
    }
}
