//! The bytes of an engine's pools, published in a counter that the engines and replicas of all shards
//! of a server share: so each knows what the others take.

use keypeg_store::StoreMetrics;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// One engine's or replica's part of the counter. Dropping it takes the part out.
pub(crate) struct PublishedBytes {
    pub(crate) metrics: Arc<StoreMetrics>,
    bytes: u64,
}

impl PublishedBytes {
    pub(crate) fn new(metrics: Arc<StoreMetrics>) -> Self {
        Self { metrics, bytes: 0 }
    }

    /// Publishes how many bytes the pools have now.
    pub(crate) fn set(&mut self, bytes: u64) {
        if bytes != self.bytes {
            let change = bytes.wrapping_sub(self.bytes);
            self.metrics.pool_bytes.fetch_add(change, Ordering::Relaxed);
            self.bytes = bytes;
        }
    }

    /// Returns what the other shards of the server take.
    pub(crate) fn elsewhere(&self) -> u64 {
        self.metrics.pool_bytes.load(Ordering::Relaxed).saturating_sub(self.bytes)
    }
}

impl Drop for PublishedBytes {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl fmt::Debug for PublishedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublishedBytes({})", self.bytes)
    }
}
