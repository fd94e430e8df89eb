//! The batch of one turn: its records for the journal, and its feed events.
//!
//! It knows the encoding of neither. Both leave the turn together: the records are committed, then
//! the events are published.

use crate::feed::Feed;
use crate::record;
use crate::seal::ValueSeal;
use keypeg_core::{Event, Fact, FactSink, Now, PoolId};
use keypeg_store::KeyVersions;
use std::sync::Arc;

/// The records of one turn, and the feed events of the same turn.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    pub(crate) feed: Feed,
    /// Lease time of the turn: a grant stores its times relative to it.
    lease_us: u64,
    seal: ValueSeal,
    versions: Arc<KeyVersions>,
}

impl Batch {
    /// Creates a batch whose values are sealed like this.
    pub(crate) fn new(seal: ValueSeal) -> Self {
        Self { seal, ..Self::default() }
    }

    /// Starts the batch of a turn; the batch is committed with the clock `now`.
    pub(crate) fn begin(&mut self, now: Now) {
        self.bytes.clear();
        self.lease_us = now.lease_us;
        self.feed.begin(now);
    }

    /// Returns the versions of the keys, which each record of a change raises.
    pub(crate) fn versions(&self) -> Arc<KeyVersions> {
        Arc::clone(&self.versions)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl FactSink for Batch {
    fn record(&mut self, fact: &Fact<'_>) {
        record::write(&mut self.bytes, fact, self.lease_us, &self.seal);
        self.feed.record(fact);
        self.versions.raise(fact.changed_views());
    }

    fn has_subscribers(&self, pool: PoolId) -> bool {
        self.feed.has_subscribers(pool)
    }

    fn emit(&mut self, pool: PoolId, event: &Event<'_>) {
        self.feed.emit(pool, event);
    }
}
