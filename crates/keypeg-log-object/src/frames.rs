//! Frames as objects: appends, the tail, reads, trims.

use crate::names::{Names, position};
use crate::objects::{Created, Objects, PAGE};
use futures_util::future::try_join_all;
use keypeg_log::{Append, Frame, FrameKind, LogError, Shard, Snapshot, Tail};
use std::collections::BTreeSet;

/// The greatest number of frames that a read requests at once.
const WINDOW_MAX: u64 = 16;

/// The frames of an installation.
pub(crate) struct Frames<'a> {
    pub(crate) objects: &'a Objects,
    pub(crate) names: &'a Names,
}

impl Frames<'_> {
    pub(crate) async fn append(&self, frame: &Frame) -> Append {
        match self.try_append(frame).await {
            Ok(true) => Append::Appended,
            Ok(false) => Append::Taken,
            Err(error) => Append::Unknown(error),
        }
    }

    /// Appends a frame; returns whether it stands.
    async fn try_append(&self, frame: &Frame) -> Result<bool, LogError> {
        let (shard, at) = (frame.shard(), frame.position());
        let is_takeover = frame.kind() == FrameKind::Takeover;
        if is_takeover {
            // Before the frame: trims keep each marked position, so no crash between leaves a
            // takeover frame that a trim removes.
            self.objects.put(&self.names.takeover(shard, at), bytes::Bytes::new()).await?;
        }
        let name = self.names.frame(shard, at);
        if let Created::Exists = self.objects.create(&name, frame.bytes().clone()).await? {
            match self.frame(shard, at).await? {
                Some(found) if found == *frame => {}
                Some(_) => return Ok(false),
                None => {
                    let text = "the store refused a frame, and has none at its position";
                    return Err(LogError::Unavailable(text.to_owned()));
                }
            }
        }
        if is_takeover { self.is_at_end(frame).await } else { Ok(true) }
    }

    /// Returns whether a takeover frame that the store has created is the end of the log, and not in
    /// a position that was trimmed since the writer looked, nor after a frame that is gone.
    async fn is_at_end(&self, frame: &Frame) -> Result<bool, LogError> {
        let (shard, at, after) = (frame.shard(), frame.position(), frame.after());
        let newest = self.newest(shard).await?;
        if newest.is_some_and(|newest| newest.position >= at) {
            return Ok(false);
        }
        let name = self.names.frame(shard, at);
        let beyond = self.objects.list(&self.names.frames(shard), Some(&name), 1).await?;
        if let Some(found) = beyond.first() {
            // A frame that chains to this one belongs to this writer, which repeats an append; any
            // other one shows that this position was a hole.
            let beyond = position(&self.names.frames(shard), &found.location).unwrap_or(u64::MAX);
            let follows = match self.frame(shard, beyond).await? {
                Some(found) => found.after() == frame.tail(),
                None => false,
            };
            if !follows {
                return Ok(false);
            }
        }
        if after.position == 0 || newest == Some(after) {
            return Ok(true);
        }
        let before = self.frame(shard, after.position).await?;
        Ok(before.is_some_and(|before| before.tail() == after))
    }

    /// Returns the frame at a position, if there is one.
    async fn frame(&self, shard: Shard, at: u64) -> Result<Option<Frame>, LogError> {
        let bytes = self.objects.get(&self.names.frame(shard, at)).await?;
        bytes.map(|bytes| Frame::decode(shard, at, bytes)).transpose()
    }

    /// Returns what the newest snapshot holds.
    async fn newest(&self, shard: Shard) -> Result<Option<Tail>, LogError> {
        let prefix = self.names.snapshots(shard);
        let listed = self.objects.list(&prefix, None, usize::MAX).await?;
        let Some(last) = listed.last() else { return Ok(None) };
        let at = position(&prefix, &last.location).unwrap_or(0);
        let Some(manifest) = self.objects.get(&last.location).await? else {
            let text = "a snapshot was removed while it was read";
            return Err(LogError::Unavailable(text.to_owned()));
        };
        Snapshot::decode(shard, at, &manifest).map(|snapshot| Some(snapshot.id.at))
    }

    pub(crate) async fn tail(&self, shard: Shard) -> Result<Tail, LogError> {
        let newest = self.newest(shard).await?;
        // Frames below the newest snapshot are left over: takeover frames, or late duplicates.
        let above = newest.map(|newest| self.names.frame(shard, newest.position));
        let prefix = self.names.frames(shard);
        let (mut above, mut last) = (above, None);
        loop {
            let listed = self.objects.list(&prefix, above.as_ref(), PAGE).await?;
            let Some(end) = listed.last() else { break };
            last = position(&prefix, &end.location).or(last);
            if listed.len() < PAGE {
                break;
            }
            above = Some(end.location.clone());
        }
        let Some(last) = last else { return Ok(newest.unwrap_or(Tail::EMPTY)) };
        let frame = self.frame(shard, last).await?;
        let text = "the last frame was trimmed while it was read";
        frame.map(|frame| frame.tail()).ok_or_else(|| LogError::Unavailable(text.to_owned()))
    }

    /// Reads by position: a request for an object costs a tenth of one for a listing.
    pub(crate) async fn read(
        &self,
        shard: Shard,
        above: u64,
        bytes_max: usize,
    ) -> Result<Vec<Frame>, LogError> {
        let (mut frames, mut bytes, mut next, mut window) = (Vec::new(), 0, above + 1, 1);
        loop {
            let end = next.saturating_add(window);
            let page = try_join_all((next..end).map(|at| self.frame(shard, at))).await?;
            for found in page {
                let Some(frame) = found else {
                    if frames.is_empty() {
                        self.check_end(shard, above).await?;
                    }
                    return Ok(frames);
                };
                bytes += frame.bytes().len();
                if !frames.is_empty() && bytes > bytes_max {
                    return Ok(frames);
                }
                frames.push(frame);
            }
            if bytes >= bytes_max {
                return Ok(frames);
            }
            (next, window) = (end, (window * 2).min(WINDOW_MAX));
        }
    }

    /// Checks that the log ends at `above`, where the next frame is missing.
    async fn check_end(&self, shard: Shard, above: u64) -> Result<(), LogError> {
        // A follower at the end asks again and again. Its last frame is there as long as no trim
        // has passed it; a takeover frame stays, so it shows nothing.
        let last = if above == 0 { None } else { self.frame(shard, above).await? };
        if last.is_some_and(|last| last.kind() == FrameKind::Turn) {
            return Ok(());
        }
        let missing = above + 1;
        let newest = self.newest(shard).await?.map_or(0, |newest| newest.position);
        let (prefix, name) = (self.names.frames(shard), self.names.frame(shard, above));
        let beyond = self.objects.list(&prefix, Some(&name), 1).await?;
        let beyond = beyond.first().and_then(|found| position(&prefix, &found.location));
        match beyond {
            // Appended meanwhile.
            Some(found) if found == missing && newest <= above => Ok(()),
            Some(found) if found > missing => Err(LogError::Hole { shard, missing, found }),
            _ if newest > above => Err(LogError::Hole { shard, missing, found: newest }),
            _ => Ok(()),
        }
    }

    /// Removes the frames at and below a position, except takeover frames.
    pub(crate) async fn trim(&self, shard: Shard, through: u64) -> Result<(), LogError> {
        let newest = self.newest(shard).await?.map_or(0, |newest| newest.position);
        if newest < through {
            return Err(LogError::NotInSnapshot { shard, through, newest });
        }
        let takeovers = self.names.takeovers(shard);
        let kept = self.objects.list(&takeovers, None, usize::MAX).await?;
        let kept: BTreeSet<u64> =
            kept.iter().filter_map(|mark| position(&takeovers, &mark.location)).collect();
        let (prefix, mut above) = (self.names.frames(shard), None);
        loop {
            let listed = self.objects.list(&prefix, above.as_ref(), PAGE).await?;
            let is_last = listed.len() < PAGE;
            above = listed.last().map(|last| last.location.clone());
            let end = above.as_ref().and_then(|last| position(&prefix, last)).unwrap_or(u64::MAX);
            let removed = listed.into_iter().map(|frame| frame.location).filter(|name| {
                position(&prefix, name).is_some_and(|at| at <= through && !kept.contains(&at))
            });
            self.objects.remove(removed.collect()).await?;
            if is_last || end > through {
                return Ok(());
            }
        }
    }
}
