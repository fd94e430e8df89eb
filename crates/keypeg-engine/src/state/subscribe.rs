//! Subscribing to a pool's feed, as a request of a turn.
//!
//! A subscription begins within its turn: it gets what the turn does after it.

use super::EngineState;
use keypeg_core::{PoolName, Refusal};
use keypeg_store::{Reply, RequestError};

impl EngineState {
    /// Returns a handle to the pool's feed, from this point of the turn on.
    pub(super) fn subscribe(&mut self, name: &PoolName) -> Reply {
        if self.batch.feed.is_closed() {
            return Reply::Refused(self.why_no_waits());
        }
        let Some(pool) = self.pools.get(name) else { return Refusal::UnknownPool.into() };
        let subscription = self.batch.feed.subscribe(pool, self.pools.run_id(), &self.metrics);
        subscription.map_or(Reply::Refused(RequestError::Overloaded), Reply::Subscription)
    }
}
