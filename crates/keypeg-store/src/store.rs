//! The contract of a store: opened once, it answers the requests of its lanes until it is stopped.
//!
//! The cut between server and store is behind the lanes: a request costs no call through a trait
//! object. These methods are called at the start, at the stop and for metrics. How a store is
//! opened depends on its own settings, so opening is not part of the trait.

use crate::backup::BackupSource;
use crate::cluster::Cluster;
use crate::key_versions::KeyVersions;
use crate::lanes::Lane;
use crate::metrics::StoreMetrics;
use keypeg_core::Policy;
use std::fmt;
use std::sync::Arc;

/// A running store. It takes requests from the store's ends of its lanes, answers each exactly
/// once, and only after all that the reply reports is durable; it applies what expires without a
/// request. A store that can no longer write ends the process.
pub trait Store: fmt::Debug + Send + Sync {
    /// Returns the store's counters.
    fn metrics(&self) -> Arc<StoreMetrics>;

    /// Refuses all requests in the wait queues with
    /// [`ShuttingDown`](crate::RequestError::ShuttingDown), and every request that would wait from
    /// now on, and ends all subscriptions and backups. The server calls it when it begins to stop, so that no
    /// waiter delays the stop.
    fn cancel_waits(&self);

    /// Returns the source of backups; `None` for a store that has no data to back up.
    fn backups(&self) -> Option<Arc<dyn BackupSource>>;

    /// Returns the versions of its keys, by which cores keep answers; `None` if each answer has to come
    /// from the store, as from one whose pools another server can take over.
    fn key_versions(&self) -> Option<Arc<KeyVersions>> {
        None
    }

    /// Closes the inboxes of all lanes, answers the requests already queued, closes the outboxes,
    /// and returns when all threads have ended.
    fn stop(self: Box<Self>);
}

/// A store at the moment it has opened.
#[derive(Debug)]
pub struct OpenedStore {
    /// The store.
    pub store: Box<dyn Store>,
    /// The server's ends of its lanes, for each core of the server.
    pub lanes: Vec<CoreLanes>,
    /// What it found.
    pub report: StartReport,
    /// The servers that share the pools; `None` if this server has all of them.
    pub cluster: Option<Arc<dyn Cluster>>,
}

/// The lanes of one core: one for each shard of the store.
#[derive(Clone, Debug)]
pub struct CoreLanes {
    /// The lanes in the order of the shards; never empty.
    pub shards: Vec<Lane>,
}

impl CoreLanes {
    /// Returns the lane of the first shard, which is the only one of an embedded store.
    pub fn first(&self) -> &Lane {
        &self.shards[0]
    }
}

impl From<Lane> for CoreLanes {
    fn from(lane: Lane) -> Self {
        Self { shards: vec![lane] }
    }
}

/// What a store found when it opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartReport {
    /// Whether this start created the store's data.
    pub created: bool,
    /// The number of pools.
    pub pools: u64,
    /// The number of keys.
    pub keys: u64,
    /// The number of running leases.
    pub leases: u64,
    /// The number of incomplete batches that no reply relied on and this start discarded (torn tail).
    pub batches_cut: u64,
    /// The number of earlier starts on this data.
    pub starts_before: u64,
    /// The default pool's stored policy, where it differs from the configured one.
    pub default_policy_kept: Option<Policy>,
}
