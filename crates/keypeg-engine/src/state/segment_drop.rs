//! How old segments of the journal go: what lives of them is told anew from memory, a slice a turn,
//! and once that is durable they are removed.
//!
//! It begins only where it frees more than it writes and, on a full disk, where what it writes has
//! room: so it never feeds on itself and never takes the room that giving back needs.

use super::{CommitError, EngineState};
use crate::core::sabotage::{Sabotage, TestLimit, enabled, limit};
use crate::core::{Fact, FactSink, SnapshotCursor};
use crate::frame::SegmentNumber;
use crate::journal::{DiskSpace, Journal};

/// Holds and answers told anew in one turn.
const RETELL_MAX: u32 = 256;
/// Bytes that one of them takes, as long as none has been told.
pub(super) const HELD_BYTES: u64 = 64;

/// What lives of old segments is being told anew.
#[derive(Clone, Copy, Debug)]
pub(super) struct SegmentDrop {
    at: SnapshotCursor,
    /// The last segment that goes.
    through: SegmentNumber,
    /// Bytes told so far.
    bytes: u64,
    /// How many holds and answers those tell of.
    many: u64,
    /// Whether all has been told and the last of it is in the batch.
    told: bool,
}

impl EngineState {
    /// Where the journal has grown too large, tells a slice of what lives of its old segments anew,
    /// into this turn's batch.
    pub(super) fn tell_anew(&mut self) {
        if self.room() == DiskSpace::Full {
            return;
        }
        let Some(mut dropping) = self.dropping else {
            let at = SnapshotCursor::default();
            let begun = |through| SegmentDrop { at, through, bytes: 0, many: 0, told: false };
            self.dropping = self.to_drop().map(begun);
            return;
        };
        let before = self.batch.bytes().len();
        let most = u32::try_from(limit(TestLimit::SnapshotRecords, u64::from(RETELL_MAX)))
            .unwrap_or(RETELL_MAX);
        let batch = &mut self.batch;
        let mut tell = |fact: &Fact<'_>| {
            dropping.many += 1;
            batch.record(fact);
        };
        if !enabled(Sabotage::SkipRetelling)
            && let Some(at) = self.pools.write_snapshot(dropping.at, most, &mut tell)
        {
            dropping.at = at;
        } else {
            FactSink::record(
                &mut self.batch,
                &Fact::SegmentsDropped { through: dropping.through.0 },
            );
            dropping.told = true;
        }
        dropping.bytes += (self.batch.bytes().len() - before) as u64;
        self.dropping = Some(dropping);
    }

    /// The last segment that is to go now, if any is.
    fn to_drop(&self) -> Option<SegmentNumber> {
        let journal = self.journal.as_ref()?;
        let (bytes, most) = (journal.bytes(), self.sizes.journal / 4 * 3);
        if bytes <= most && !journal.is_starved() {
            return None;
        }
        let through = journal.droppable_through(self.progress.checkpointed())?;
        let telling = self.told() * self.told_each;
        let large = journal.is_starved() || bytes > most.max(2 * telling);
        let frees = journal.bytes_through(through) > telling;
        let fits = journal.writable_bytes().is_none_or(|room| telling <= room);
        (large && frees && fits).then_some(through)
    }

    /// How much is to be told: what holds keys away, and answers.
    fn told(&self) -> u64 {
        self.pools
            .iter()
            .map(|pool| pool.counts().leased_or_resting() + pool.stored_answer_count())
            .sum()
    }

    /// Drops the old segments once all that lives of them has been told anew, durably.
    pub(super) fn drop_told(&mut self) -> Result<(), CommitError> {
        let Some(SegmentDrop { through, told: true, bytes, many, .. }) = self.dropping else {
            return Ok(());
        };
        // By what was told, not by what there is now: most of it may have ended meanwhile.
        self.told_each = (bytes / many.max(1)).max(HELD_BYTES);
        self.dropping = None;
        self.journal
            .as_mut()
            .map_or(Ok(()), |journal: &mut Journal| journal.drop_through(through))?;
        Ok(())
    }
}
