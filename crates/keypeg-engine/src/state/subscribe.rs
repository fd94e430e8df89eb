//! Who follows a pool, as the works see it: from which turn on, and until when.

use super::EngineState;
use crate::core::{PoolName, Refusal};
use crate::request::{Reply, RequestError};

impl EngineState {
    /// Lets whoever asks follow a pool: what this turn does from here on is told already.
    pub(super) fn follow(&mut self, name: &PoolName) -> Reply {
        if self.batch.feed.is_closed() {
            return Reply::Refused(RequestError::ShuttingDown);
        }
        let Some(pool) = self.pools.get(name) else { return Refusal::UnknownPool.into() };
        let following = self.batch.feed.open(pool, self.pools.run_id(), &self.metrics);
        following.map_or(Reply::Refused(RequestError::Overloaded), Reply::Subscription)
    }
}
