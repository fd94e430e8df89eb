//! The calls of a case: each is repeated while its outcome is not known.

use crate::error::LogError;
use crate::frame::{Frame, FrameId, FrameKind, Tail};
use crate::log::{Append, SharedLog};
use crate::shard::Shard;
use crate::snapshot::{Snapshot, SnapshotId};
use bytes::Bytes;

/// How often a call is made before a case fails.
const TRIES: u32 = 200;

/// The log of a case, two shards of its own, and random ids.
pub(super) struct Steps<'a> {
    pub(super) log: &'a dyn SharedLog,
    pub(super) shard: Shard,
    pub(super) other_shard: Shard,
    seed: u64,
}

impl<'a> Steps<'a> {
    pub(super) fn new(log: &'a dyn SharedLog, shard: u16, seed: u64) -> Self {
        Self { log, shard: Shard::new(shard), other_shard: Shard::new(shard + 1), seed }
    }

    /// Returns 64 bits of the seed (splitmix64).
    pub(super) fn bits(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn id(&mut self) -> FrameId {
        let mut bytes = [1; 16];
        bytes[..8].copy_from_slice(&self.bits().to_le_bytes());
        bytes[8..].copy_from_slice(&self.bits().to_le_bytes());
        FrameId::new(bytes)
    }

    pub(super) fn frame(&mut self, after: Tail) -> Frame {
        self.frame_with(after, FrameKind::Turn, 100)
    }

    pub(super) fn takeover(&mut self, after: Tail) -> Frame {
        self.frame_with(after, FrameKind::Takeover, 0)
    }

    pub(super) fn frame_with(&mut self, after: Tail, kind: FrameKind, len: usize) -> Frame {
        let payload = vec![self.bits().to_le_bytes()[0]; len];
        let id = self.id();
        Frame::new(self.shard, after, id, kind, &payload).expect("invariant: below the limit")
    }

    /// Appends a frame until it is known whether it stands; returns whether it does.
    pub(super) async fn append(&self, frame: &Frame) -> Result<bool, String> {
        let mut last = None;
        for _ in 0..TRIES {
            match self.log.append(frame).await {
                Append::Appended => return Ok(true),
                Append::Taken => return Ok(false),
                Append::Unknown(error) => last = Some(error),
            }
        }
        Err(format!("{frame:?} stays unknown: {last:?}"))
    }

    /// Appends `count` frames after `after`, each of which must stand, and returns the tail.
    pub(super) async fn append_many(
        &mut self,
        mut after: Tail,
        count: u32,
    ) -> Result<Tail, String> {
        for _ in 0..count {
            let frame = self.frame(after);
            if !self.append(&frame).await? {
                return Err(format!("{frame:?} after {after:?} is taken"));
            }
            after = frame.tail();
        }
        Ok(after)
    }

    /// Reads a log to its end, in pages.
    pub(super) async fn read_all(&self, above: u64) -> Result<Vec<Frame>, LogError> {
        let (mut frames, mut position) = (Vec::new(), above);
        loop {
            let page = surely(|| self.log.read(self.shard, position, 300)).await?;
            let Some(last) = page.last() else { return Ok(frames) };
            position = last.position();
            frames.extend(page);
        }
    }

    /// Stores the parts of a snapshot, without completing it.
    pub(super) async fn put_parts(
        &mut self,
        at: Tail,
        parts: &[&[u8]],
    ) -> Result<Snapshot, String> {
        let id = SnapshotId { shard: self.shard, at, attempt: self.id() };
        for (part, number) in parts.iter().zip(0..) {
            let bytes = Bytes::copy_from_slice(part);
            let put = surely(|| self.log.put_part(id, number, bytes.clone())).await;
            put.map_err(|error| format!("part {number}: {error}"))?;
        }
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        let parts = u32::try_from(parts.len()).expect("invariant: few parts");
        Ok(Snapshot { id, parts, bytes })
    }

    /// Stores a complete snapshot of one part.
    pub(super) async fn snapshot(&mut self, at: Tail) -> Result<Snapshot, String> {
        let snapshot = self.put_parts(at, &[b"state"]).await?;
        let completed = surely(|| self.log.complete(snapshot)).await;
        completed.map_err(|error| format!("{snapshot:?}: {error}"))?;
        Ok(snapshot)
    }

    pub(super) async fn trim(&self, through: u64) -> Result<(), LogError> {
        surely(|| self.log.trim(self.shard, through)).await
    }
}

/// Repeats a call while the store does not answer.
pub(super) async fn surely<T, F>(mut call: impl FnMut() -> F) -> Result<T, LogError>
where
    F: Future<Output = Result<T, LogError>>,
{
    let mut tries = 1;
    loop {
        match call().await {
            Err(LogError::Unavailable(_)) if tries < TRIES => tries += 1,
            result => return result,
        }
    }
}
