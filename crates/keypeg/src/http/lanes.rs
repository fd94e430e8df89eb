//! The lanes of one core: one for each shard of the store, and which one a pool's calls go to.
//!
//! An embedded store has one shard, and then nothing is looked up. Does not know what a call does,
//! nor how a request reaches the server that serves a shard.

use keypeg_core::PoolName;
use keypeg_store::{Call, Cluster, CoreLanes, Lane};
use std::sync::Arc;

/// One core's lanes to the store.
#[derive(Clone, Debug)]
pub(crate) struct Lanes {
    first: Lane,
    /// The lanes of the other shards, from shard 1 on.
    others: Vec<Lane>,
    cluster: Option<Arc<dyn Cluster>>,
}

impl Lanes {
    /// `cluster` says which pool belongs to which lane; without it there is only one.
    pub(crate) fn new(lanes: CoreLanes, cluster: Option<Arc<dyn Cluster>>) -> Self {
        let mut shards = lanes.shards.into_iter();
        let first = shards.next().expect("invariant: a core has a lane");
        Self { first, others: shards.collect(), cluster }
    }

    /// Returns the servers that share the pools; `None` if this server has all of them.
    pub(crate) fn cluster(&self) -> Option<&Arc<dyn Cluster>> {
        self.cluster.as_ref()
    }

    /// Returns the lane of a pool.
    pub(crate) fn of(&self, pool: &PoolName) -> &Lane {
        match &self.cluster {
            None => &self.first,
            Some(cluster) => self.of_shard(cluster.shard_of(pool)),
        }
    }

    /// Returns the lane of a call. A call that concerns no pool goes to the first shard.
    pub(crate) fn of_call(&self, call: &Call) -> &Lane {
        match (&self.cluster, call) {
            (None, _) => &self.first,
            (Some(_), call) => call.pool().map_or(&self.first, |pool| self.of(pool)),
        }
    }

    /// Returns the lane of a shard.
    pub(crate) fn of_shard(&self, shard: usize) -> &Lane {
        shard.checked_sub(1).map_or(&self.first, |index| &self.others[index])
    }

    /// Returns the lanes of all shards, in their order.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Lane> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// Returns the number of requests that the store has not taken yet, at this instant.
    pub(crate) fn depth(&self) -> usize {
        self.all().map(Lane::depth).sum()
    }

    /// Notes that the server refused a keep-alive, or what could have become one, of some pool.
    pub(crate) fn note_refused_keep_alive(&self) {
        self.all().for_each(Lane::note_refused_keep_alive);
    }
}

/// The lane of a store with one shard, for tests.
#[cfg(test)]
impl From<Lane> for Lanes {
    fn from(lane: Lane) -> Self {
        Self::new(lane.into(), None)
    }
}
