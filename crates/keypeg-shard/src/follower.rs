//! A server that follows a shard: it begins at the newest snapshot, applies frame after frame, and
//! can take the shard over at the end of the log.
//!
//! What it reads may be gone after a failover of the store. Then the frames no longer form a chain
//! with what it has applied, or its takeover frame is refused: it is thrown away, and another one
//! begins at the newest snapshot.

use crate::appender::{Appender, Taken};
use crate::executor::{Executor, Patience};
use crate::payload::Payload;
use crate::snapshot::SnapshotReader;
use crate::tails::Tails;
use keypeg_core::sabotage::{Sabotage, enabled};
use keypeg_core::{Policy, RandomSource};
use keypeg_engine::checkpointer::{CheckpointError, Checkpointer};
use keypeg_engine::disk::Disk;
use keypeg_engine::state::EngineState;
use keypeg_engine::{Clock, Replica, ReplicaConfig, ReplicaError, ShardIdentity, StartError};
use keypeg_log::{Frame, FrameKind, LogError, ServerName, Shard, SharedLog, Snapshot, Tail};
use std::fmt;
use std::sync::Arc;

/// Bytes of frames that one read takes.
const READ_BYTES: usize = 4 << 20;

/// What a follower begins with.
pub struct FollowOptions<'a> {
    /// The log.
    pub log: Arc<dyn SharedLog>,
    /// The identity of the installation.
    pub identity: &'a ShardIdentity,
    /// The options of the replica, with the number of the shard.
    pub replica: ReplicaConfig,
    /// An empty directory for scratch files.
    pub scratch: Arc<dyn Disk>,
}

/// Why a follower cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The log cannot be read now: the follower may try again.
    #[error(transparent)]
    Log(LogError),
    /// The log has been trimmed, or the store has lost frames that this server has read. A new
    /// follower begins at the newest snapshot.
    #[error("shard {shard} must be read again from its newest snapshot: {why}")]
    BeginAgain {
        /// The shard.
        shard: Shard,
        /// What was found.
        why: String,
    },
    /// The replica: its scratch files, its memory, or a log that contradicts itself.
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    /// The scratch database.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl FollowError {
    /// Returns whether a takeover failed because another server was faster.
    pub fn is_taken(&self) -> bool {
        let Self::Replica(ReplicaError::Start(StartError::Io { error, .. })) = self else {
            return false;
        };
        error.get_ref().and_then(|cause| cause.downcast_ref::<Taken>()).is_some()
    }
}

/// A read that returned fewer bytes of frames has usually reached the end of the log.
const NEAR_END_BYTES: usize = READ_BYTES / 4;

/// How far a follower has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It has applied many frames, and there are probably more.
    Behind,
    /// It has applied a few frames. The log showed no more at that moment, unless a large frame
    /// follows.
    NearEnd,
    /// It has applied everything that the log shows.
    AtEnd,
}

/// A server that follows a shard.
pub struct Follower<E> {
    log: Arc<dyn SharedLog>,
    executor: E,
    shard: Shard,
    replica: Replica,
    tail: Tail,
    /// The position at which it began: that of a snapshot, or 0.
    began_at: u64,
    /// The server whose takeover frame was applied last; empty before the first one.
    owner: String,
    /// The position of that frame.
    taken_over_at: u64,
    /// Whether that server has recorded nothing since.
    has_just_begun: bool,
}

impl<E: Executor> Follower<E> {
    /// Begins at the newest snapshot, or at the first frame. O(keys).
    pub fn begin(
        options: FollowOptions<'_>,
        executor: E,
        random: &mut dyn RandomSource,
    ) -> Result<Self, FollowError> {
        let FollowOptions { log, identity, replica: config, scratch } = options;
        let shard = Shard::new(config.shard);
        let snapshots = executor.run(log.snapshots(shard)).map_err(FollowError::Log)?;
        let (replica, tail) = match snapshots.last() {
            None => (Replica::create(scratch, identity, &config, random)?, Tail::EMPTY),
            Some(newest) => {
                let replica = read_snapshot(
                    (&*log, &executor, *newest),
                    identity,
                    (scratch, &config),
                    random,
                )?;
                (replica, newest.id.at)
            }
        };
        Ok(Self {
            log,
            executor,
            shard,
            replica,
            tail,
            began_at: tail.position,
            owner: String::new(),
            taken_over_at: 0,
            has_just_begun: false,
        })
    }

    /// Reads the next frames and applies them.
    pub fn follow(&mut self) -> Result<Progress, FollowError> {
        let above = self.tail.position;
        let read = self.executor.run(self.log.read(self.shard, above, READ_BYTES));
        let frames = read.map_err(|error| {
            let is_hole = matches!(error, LogError::Hole { .. });
            if is_hole { self.begin_again(error.to_string()) } else { FollowError::Log(error) }
        })?;
        if !enabled(Sabotage::FollowWithoutChain) {
            let chain = Frame::check_chain(self.shard, self.tail, &frames);
            chain.map_err(|error| self.begin_again(error.to_string()))?;
        }
        for frame in &frames {
            let payload = frame.payload();
            let Some(Payload { server, batch }) = Payload::read(&payload) else {
                let why = format!("frame {} was written by a newer version", frame.position());
                return Err(self.begin_again(why));
            };
            if frame.kind() == FrameKind::Takeover {
                server.clone_into(&mut self.owner);
                self.taken_over_at = frame.position();
                self.has_just_begun = true;
            } else if !batch.records.is_empty() {
                self.has_just_begun = false;
            }
            self.replica.apply(batch)?;
            self.tail = frame.tail();
        }
        let bytes: usize = frames.iter().map(|frame| frame.bytes().len()).sum();
        Ok(match bytes {
            0 => Progress::AtEnd,
            1..NEAR_END_BYTES => Progress::NearEnd,
            NEAR_END_BYTES.. => Progress::Behind,
        })
    }

    fn begin_again(&self, why: String) -> FollowError {
        FollowError::BeginAgain { shard: self.shard, why }
    }

    /// Returns the last frame that was applied.
    pub fn tail(&self) -> Tail {
        self.tail
    }

    /// Returns the position at which it began: that of a snapshot, or 0.
    pub fn began_at(&self) -> u64 {
        self.began_at
    }

    /// Returns how many frames it has applied.
    pub fn applied(&self) -> u64 {
        self.replica.applied()
    }

    /// Returns the name of the server that has taken the shard over last, as far as this follower
    /// has read; `None` before the first takeover after the snapshot.
    pub fn owner(&self) -> Option<&str> {
        Some(self.owner.as_str()).filter(|name| !name.is_empty())
    }

    /// Returns the position of the last takeover that was applied; 0 before the first one.
    pub fn taken_over_at(&self) -> u64 {
        self.taken_over_at
    }

    /// Returns whether the last owner has stopped and no server has taken the shard over since.
    pub fn is_released(&self) -> bool {
        !self.has_just_begun && self.replica.is_stopped()
    }

    /// Returns the checkpointer of the scratch files, to be stepped now and then.
    pub fn checkpointer(&mut self) -> &mut Checkpointer {
        self.replica.checkpointer()
    }

    /// Counts the bytes of the pools for the other shards of this server. O(pools).
    pub fn count_bytes(&mut self) -> u64 {
        self.replica.count_bytes()
    }

    /// Takes the shard over: appends the takeover frame behind the last frame that was applied, and
    /// returns the engine once it stands, with the list of its frames. O(keys).
    ///
    /// An error means that this server does not own the shard. A new follower begins again.
    pub fn take_over<P: Patience + Send + 'static>(
        self,
        server: ServerName,
        patience: P,
        ids: Box<dyn RandomSource + Send>,
        engine: EngineOptions,
    ) -> Result<(EngineState, Tails), FollowError>
    where
        E: Send + 'static,
    {
        let tails = Tails::beginning_at(self.tail);
        let appender = Appender {
            log: self.log,
            shard: self.shard,
            server,
            tails: tails.clone(),
            executor: self.executor,
            patience,
            random: ids,
            owns: false,
            payload: Vec::new(),
        };
        let EngineOptions { clock, random, default_policy } = engine;
        let state = self.replica.take_over(Box::new(appender), clock, random, default_policy)?;
        Ok((state, tails))
    }
}

/// What the engine of a shard is given.
pub struct EngineOptions {
    /// The clock of this machine.
    pub clock: Box<dyn Clock>,
    /// The source of random numbers.
    pub random: Box<dyn RandomSource + Send>,
    /// The default pool's policy, in the shard that has this pool.
    pub default_policy: Option<Policy>,
}

fn read_snapshot<E: Executor>(
    (log, executor, newest): (&dyn SharedLog, &E, Snapshot),
    identity: &ShardIdentity,
    (scratch, config): (Arc<dyn Disk>, &ReplicaConfig),
    random: &mut dyn RandomSource,
) -> Result<Replica, FollowError> {
    let mut reader = SnapshotReader::new(log, executor, newest);
    let replica = Replica::from_snapshot(scratch, identity, &mut reader, config, random);
    match (replica, reader.error) {
        (Ok(replica), _) => Ok(replica),
        (Err(_), Some(error @ LogError::Gone { .. })) => {
            Err(FollowError::BeginAgain { shard: newest.id.shard, why: error.to_string() })
        }
        (Err(_), Some(error)) => Err(FollowError::Log(error)),
        (Err(error), None) => Err(error.into()),
    }
}

impl<E> fmt::Debug for Follower<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shard, tail, owner, .. } = self;
        write!(f, "Follower(shard {shard}, position {}, owner {owner:?})", tail.position)
    }
}

impl fmt::Debug for FollowOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FollowOptions").field("replica", &self.replica).finish_non_exhaustive()
    }
}

impl fmt::Debug for EngineOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineOptions")
    }
}
