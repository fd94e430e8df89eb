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
use crate::wakeup::Wakeup;
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

    /// Returns what the core of the last lane runs the store's turns by; `None` for a store whose own
    /// threads run all of them.
    fn core_turns(&self) -> Option<Arc<dyn CoreTurns>> {
        None
    }

    /// Closes the inboxes of all lanes, answers the requests already queued, closes the outboxes,
    /// and returns when all threads have ended.
    fn stop(self: Box<Self>);
}

/// The turns of a store that a core may run itself, after it has read all requests that have arrived.
pub trait CoreTurns: fmt::Debug + Send + Sync {
    /// Returns what each request of that core's lane notifies. The core is its listener.
    fn requests(&self) -> &Wakeup;

    /// Runs a turn on this thread, or leaves what is queued to the store's own thread. Waits for the
    /// disk, for no lock. After [`CoreTurn::Busy`] the listener of `requests` is woken as soon as the
    /// core can try again, if any request is left then.
    fn turn(&self) -> CoreTurn;
}

/// What became of the requests of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoreTurn {
    /// They are answered, or the store's thread has them.
    Done,
    /// The store's thread runs a turn without them: the core must try again.
    Busy,
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
