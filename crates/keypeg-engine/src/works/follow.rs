//! Who follows a pool, as the works see it: from which turn on, and until when.

use super::Works;
use crate::core::{PoolName, Refusal as Denied};
use crate::request::{Refusal, Reply};

impl Works {
    /// Lets whoever asks follow a pool: what this turn does from here on is told already.
    pub(super) fn follow(&mut self, name: &PoolName) -> Reply {
        if self.batch.feed.is_closed() {
            return Reply::Refused(Refusal::ShuttingDown);
        }
        let Some(pool) = self.pools.get(name) else { return Denied::UnknownPool.into() };
        let following = self.batch.feed.open(pool, self.pools.run(), &self.meter);
        following.map_or(Reply::Refused(Refusal::Overloaded), Reply::Following)
    }
}
