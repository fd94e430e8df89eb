//! What a call that adds many keys needs of the pools beside the step that adds them: what it
//! computes before, what the database must look up, and what it leaves when it is refused.

use super::Pools;
use crate::ids::KeyId;
use crate::numbers::PoolId;
use crate::policy::PoolName;
use crate::prepared::{KeysToAdd, PreparedKeys};
use crate::random::RandomSource;
use crate::secret::Secret;

/// The ids that the database must look up before an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdsToCheck {
    /// The pool.
    pub pool: PoolId,
    /// One id for each value, in the order of the request.
    pub ids: Vec<KeyId>,
}

impl Pools {
    /// Returns the ids that the database must look up before an import into the pool of that name;
    /// `None` when there is nothing to look up. O(values).
    pub fn ids_to_check(
        &self,
        name: &PoolName,
        values: &[Secret],
        prepared: Option<&PreparedKeys>,
    ) -> Option<IdsToCheck> {
        let pool = self.get(name)?;
        let ids = pool.ids_to_check(&self.shared, values, prepared)?;
        Some(IdsToCheck { pool: pool.id(), ids })
    }

    /// Prepares more of the keys that a call adds to the pool of that name, see
    /// [`Pool::prepare_keys`](crate::Pool::prepare_keys); returns the units of work that it took.
    /// Prepares none where the pool does not exist or has no room for all of them.
    pub fn prepare_keys(
        &self,
        name: &PoolName,
        keys: KeysToAdd<'_>,
        prepared: &mut Option<Box<PreparedKeys>>,
        random: &mut dyn RandomSource,
        units_max: u32,
    ) -> u32 {
        let Some(pool) = self.get(name) else { return 0 };
        if !pool.seems_to_have_room(&self.shared, keys.count()) {
            return 0;
        }
        pool.prepare_keys(&self.shared, keys, prepared, random, units_max)
    }

    /// Removes what the last staged call left in the pool of that name, for about `units` of work;
    /// returns whether nothing is left. A pool that was deleted took it along.
    pub fn withdraw_staged(&mut self, name: &PoolName, id: PoolId, units: &mut u32) -> bool {
        let Some(&index) = self.by_name.get(name) else { return true };
        let pool = &mut self.entries.get_mut(index).pool;
        if pool.id() != id {
            return true;
        }
        let is_done = pool.withdraw_staged(&self.shared, units);
        self.count_bytes(index);
        is_done
    }
}
