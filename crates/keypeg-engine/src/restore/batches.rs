//! The batches that a restore adds to the journal of a directory, with the holds of its keys.
//!
//! It does not know where the pools come from.

use super::segments::{NewBatch, SegmentWriter};
use crate::meta::Meta;
use crate::record;
use crate::seal::{Installation, ValueSeal};
use keypeg_core::sabotage::{Sabotage, enabled};
use keypeg_core::{Fact, FactSink, HeldKeys, Pools, RestoredHolds};

/// Bytes of records after which a batch of holds is complete.
const BATCH_FULL: usize = 256 << 10;
/// Bytes of pages that the database keeps in memory while it is replayed.
pub(super) const CACHE: usize = 64 << 20;

/// What was written into a directory, `meta` excepted.
pub(super) struct Written {
    pub(super) version: String,
    /// When the backup began, wall time in milliseconds.
    pub(super) wall_ms: u64,
    pub(super) meta: Meta,
    pub(super) installation: Installation,
    /// The first token of the directory.
    pub(super) next_token: u64,
    /// The holds; their end is counted from the restore on.
    pub(super) held: HeldKeys,
}

/// Writes the holds of all keys.
pub(super) fn holds(pools: &Pools, terms: RestoredHolds, facts: &mut dyn FactSink) -> HeldKeys {
    if enabled(Sabotage::HoldNothingAtRestore) {
        return HeldKeys::default();
    }
    pools.write_restored_holds(terms, facts)
}

/// Collects facts into batches.
pub(super) struct Batches<'a> {
    pub(super) segments: &'a mut SegmentWriter,
    pub(super) records: Vec<u8>,
    pub(super) lease_us: u64,
    /// Seals the digests of stored answers.
    pub(super) seal: ValueSeal,
    pub(super) result: std::io::Result<()>,
}

impl<'a> Batches<'a> {
    /// For facts without values and digests.
    pub(super) fn new(segments: &'a mut SegmentWriter, lease_us: u64) -> Self {
        Self { segments, records: Vec::new(), lease_us, seal: ValueSeal::default(), result: Ok(()) }
    }
}

impl Batches<'_> {
    pub(super) fn end(&mut self) {
        if self.result.is_ok() {
            let batch = NewBatch { lease_us: self.lease_us, records: &self.records };
            self.result = self.segments.add(batch);
        }
        self.records.clear();
    }
}

impl FactSink for Batches<'_> {
    fn record(&mut self, fact: &Fact<'_>) {
        record::write(&mut self.records, fact, self.lease_us, &self.seal);
        if self.records.len() >= BATCH_FULL {
            self.end();
        }
    }
}
