//! The data of a store, as one replica has it, and the checks that a call makes on it.

use super::rules::{Defect, Rules};
use crate::error::LogError;
use crate::frame::{Frame, FrameId, FrameKind, Tail};
use crate::heartbeat::{Heartbeat, ServerName};
use crate::log::Completed;
use crate::shard::Shard;
use crate::snapshot::{Snapshot, SnapshotId};
use bytes::Bytes;
use std::collections::BTreeMap;

/// The data of one replica.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    shards: BTreeMap<Shard, Log>,
    heartbeats: BTreeMap<ServerName, Heartbeat>,
    installation: Option<Bytes>,
}

#[derive(Clone, Debug, Default)]
struct Log {
    /// The last frame ever appended: a row of its own in a store that chains.
    head: Option<Tail>,
    frames: BTreeMap<u64, Frame>,
    snapshots: BTreeMap<u64, Snapshot>,
    /// By position, attempt and number.
    parts: BTreeMap<(u64, FrameId, u32), Bytes>,
}

/// One change of the data, which all replicas apply in one order.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Insert(Frame),
    Part(SnapshotId, u32, Bytes),
    Complete(Snapshot),
    Trim(Shard, u64),
    Beat(Heartbeat),
    Forget(ServerName),
    Install(Bytes),
    /// Changes nothing: it proves that all before it is replicated.
    Prove,
}

/// What an append finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The condition holds.
    Insert,
    /// The frame itself is there.
    Own,
    /// Another frame is there.
    Taken,
}

impl Contents {
    fn log(&self, shard: Shard, rules: Rules) -> Option<&Log> {
        self.shards.get(&place(shard, rules))
    }

    pub(super) fn apply(&mut self, change: Change, rules: Rules) {
        match change {
            Change::Insert(frame) => {
                let log = self.shards.entry(place(frame.shard(), rules)).or_default();
                log.head = Some(frame.tail());
                log.frames.insert(frame.position(), frame);
            }
            Change::Part(id, part, bytes) => {
                let log = self.shards.entry(place(id.shard, rules)).or_default();
                log.parts.insert((id.at.position, attempt(id, rules), part), bytes);
                if rules.has(Defect::ListIncompleteSnapshots) {
                    log.snapshots.insert(id.at.position, Snapshot { id, parts: 1, bytes: 0 });
                }
            }
            Change::Complete(snapshot) => {
                let log = self.shards.entry(place(snapshot.id.shard, rules)).or_default();
                log.snapshots.insert(snapshot.id.at.position, snapshot);
            }
            Change::Trim(shard, through) => {
                let log = self.shards.entry(place(shard, rules)).or_default();
                log.trim(through, rules);
            }
            Change::Beat(heartbeat) => {
                let frozen = rules.has(Defect::FreezeHeartbeats);
                if !frozen || !self.heartbeats.contains_key(&heartbeat.server) {
                    self.heartbeats.insert(heartbeat.server.clone(), heartbeat);
                }
            }
            Change::Forget(server) => {
                self.heartbeats.remove(&server);
            }
            Change::Install(bytes) => self.installation = Some(bytes),
            Change::Prove => {}
        }
    }

    /// Checks the condition of an append.
    pub(super) fn check(&self, frame: &Frame, rules: Rules) -> Verdict {
        let empty = Log::default();
        let log = self.log(frame.shard(), rules).unwrap_or(&empty);
        if rules.has(Defect::IgnoreCondition) {
            return Verdict::Insert;
        }
        let verdict = if rules.is_chained() {
            log.check_chained(frame, rules)
        } else {
            log.check_created(frame, rules)
        };
        match verdict {
            Verdict::Own if rules.has(Defect::ForgetOwnFrames) => Verdict::Taken,
            Verdict::Taken if rules.has(Defect::AppendNothing) => Verdict::Own,
            Verdict::Insert | Verdict::Own | Verdict::Taken => verdict,
        }
    }

    pub(super) fn tail(&self, shard: Shard, rules: Rules) -> Tail {
        self.log(shard, rules).map_or(Tail::EMPTY, |log| log.tail(rules))
    }

    pub(super) fn read(
        &self,
        shard: Shard,
        above: u64,
        bytes_max: usize,
        rules: Rules,
    ) -> Result<Vec<Frame>, LogError> {
        let Some(log) = self.log(shard, rules) else { return Ok(vec![]) };
        let (mut read, mut bytes, mut missing) = (Vec::new(), 0, above + 1);
        for (&found, frame) in log.frames.range(above + 1..) {
            if found != missing && !rules.has(Defect::SkipHoles) {
                if read.is_empty() {
                    return Err(LogError::Hole { shard, missing, found });
                }
                break;
            }
            missing = found + 1;
            bytes += frame.bytes().len();
            if !read.is_empty() && bytes > bytes_max && !rules.has(Defect::ReadWithoutBound) {
                break;
            }
            read.push(frame.clone());
        }
        let end = log.tail(rules).position.max(log.newest());
        if read.is_empty() && end > above && !rules.has(Defect::HideTrimmedEnd) {
            return Err(LogError::Hole { shard, missing, found: end });
        }
        Ok(read)
    }

    /// Returns what completing a snapshot changes: whether a change is needed, and the answer.
    pub(super) fn complete(&self, snapshot: Snapshot, rules: Rules) -> (bool, Completed) {
        let SnapshotId { shard, at, attempt } = snapshot.id;
        let found = self.log(shard, rules).and_then(|log| log.snapshots.get(&at.position));
        match found {
            Some(found) if found.id.attempt == attempt => {
                (rules.has(Defect::ListIncompleteSnapshots), Completed::Created)
            }
            Some(_) => (rules.has(Defect::ReplaceSnapshots), Completed::Exists),
            None => (true, Completed::Created),
        }
    }

    pub(super) fn snapshots(&self, shard: Shard, rules: Rules) -> Vec<Snapshot> {
        self.log(shard, rules)
            .map_or_else(Vec::new, |log| log.snapshots.values().copied().collect())
    }

    pub(super) fn part(
        &self,
        snapshot: Snapshot,
        part: u32,
        rules: Rules,
    ) -> Result<Bytes, LogError> {
        let SnapshotId { shard, at: Tail { position, .. }, .. } = snapshot.id;
        let key = (position, attempt(snapshot.id, rules), part);
        let found = self.log(shard, rules).and_then(|log| log.parts.get(&key));
        found.cloned().ok_or(LogError::Gone { shard, position })
    }

    pub(super) fn check_trim(
        &self,
        shard: Shard,
        through: u64,
        rules: Rules,
    ) -> Result<(), LogError> {
        let newest = self.log(shard, rules).map_or(0, Log::newest);
        if newest >= through || rules.has(Defect::TrimWithoutSnapshot) {
            return Ok(());
        }
        Err(LogError::NotInSnapshot { shard, through, newest })
    }

    pub(super) fn heartbeats(&self) -> Vec<Heartbeat> {
        self.heartbeats.values().cloned().collect()
    }

    pub(super) fn installation(&self) -> Option<&Bytes> {
        self.installation.as_ref()
    }

    pub(super) fn frames(&self, shard: Shard) -> Vec<Frame> {
        self.shards.get(&shard).map_or_else(Vec::new, |log| log.frames.values().cloned().collect())
    }

    pub(super) fn remove_frame(&mut self, shard: Shard, position: u64) {
        if let Some(log) = self.shards.get_mut(&shard) {
            log.frames.remove(&position);
        }
    }
}

impl Log {
    fn newest(&self) -> u64 {
        self.snapshots.last_key_value().map_or(0, |(position, _)| *position)
    }

    fn tail(&self, rules: Rules) -> Tail {
        if rules.has(Defect::ForgetTrimmedTail) {
            return self.frames.values().next_back().map_or(Tail::EMPTY, Frame::tail);
        }
        if rules.is_chained() {
            return self.head.unwrap_or(Tail::EMPTY);
        }
        // Below the newest snapshot, a late duplicate can have created a frame again.
        let above = self.frames.range(self.newest() + 1..).next_back();
        let snapshot = || self.snapshots.values().next_back().map(|snapshot| snapshot.id.at);
        above.map(|(_, frame)| frame.tail()).or_else(snapshot).unwrap_or(Tail::EMPTY)
    }

    fn check_chained(&self, frame: &Frame, rules: Rules) -> Verdict {
        let tail = self.head.unwrap_or(Tail::EMPTY);
        let follows = if rules.has(Defect::IgnorePredecessor) {
            tail.position == frame.after().position
        } else {
            tail == frame.after()
        };
        match (follows, tail == frame.tail()) {
            (true, _) => Verdict::Insert,
            (false, true) => Verdict::Own,
            (false, false) => Verdict::Taken,
        }
    }

    fn check_created(&self, frame: &Frame, rules: Rules) -> Verdict {
        match self.frames.get(&frame.position()) {
            Some(found) if found.id() == frame.id() => Verdict::Own,
            Some(_) => Verdict::Taken,
            None => {
                // The position was trimmed: the store would create the frame in the hole.
                let is_trimmed = self.newest() >= frame.position();
                let is_takeover = frame.kind() == FrameKind::Takeover;
                if is_takeover && is_trimmed && !rules.has(Defect::AppendIntoTrimmed) {
                    return Verdict::Taken;
                }
                Verdict::Insert
            }
        }
    }

    fn trim(&mut self, through: u64, rules: Rules) {
        let keeps_takeovers = !rules.is_chained() && !rules.has(Defect::TrimTakeoverFrames);
        if !rules.has(Defect::TrimNothing) {
            self.frames.retain(|position, frame| {
                *position > through || (keeps_takeovers && frame.kind() == FrameKind::Takeover)
            });
        }
        let first_kept = through + u64::from(rules.has(Defect::TrimNewestSnapshot));
        self.snapshots.retain(|position, _| *position >= first_kept);
        self.parts.retain(|(position, ..), _| *position >= first_kept);
    }
}

/// Returns the place of a shard's log.
fn place(shard: Shard, rules: Rules) -> Shard {
    if rules.has(Defect::MixShards) { Shard::FIRST } else { shard }
}

/// Returns the place of an attempt's parts.
fn attempt(id: SnapshotId, rules: Rules) -> FrameId {
    if rules.has(Defect::MixAttempts) { FrameId::NONE } else { id.attempt }
}
